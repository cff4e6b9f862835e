"""`OTelLog` among other sinks: replayed, in a tee, behind a filter, and for programs without the scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import DTaskFailedError, InvalidOptionError, LogNotKeptError
from otel_timespan.otel import OTelLog, dag, replay, semconv
from otel_timespan.timespans import drainer
from tests.otel.log_bench import Bench, add, boom, counting, id_of, parent_of, tasks_of


def shape(span: Any) -> tuple[int, int, int, str]:
    """What a live span and a replayed one have in common."""
    if isinstance(span, ReadableSpan):
        context = span.get_span_context()
        return context.trace_id, context.span_id, parent_of(span), span.name
    return span.trace_id, span.span_id, span.parent_id, span.name


def outcome(span: Any) -> tuple[int, str, tuple[int, ...]]:
    """Of a live span and a replayed one: id, type of the error, links."""
    if isinstance(span, ReadableSpan):
        links = tuple(link.context.span_id for link in span.links)
        return id_of(span), str((span.attributes or {}).get(semconv.ERROR_TYPE)), links
    return span.span_id, str(span.attributes.get(semconv.ERROR_TYPE)), tuple(link.span_id for link in span.links)


@pytest.mark.parametrize("detail", ["task", "phases"])
def test_replay_has_the_same_ids(bench: Callable[..., Bench], detail: str, tmp_path: Path) -> None:
    """A replay of the events, or of a file of them, gives the spans that were sent live: ids, parents, names, links."""
    b = bench(detail=detail)
    keeper, file = T.LocalEventLog(), T.IOLog(tmp_path / "run.jsonl")
    T.get_logs(keeper, raw=True)
    b.context.log_sink = T.TeeLog(keeper, file, b.log)

    with dag("saved", team="blue"), b.tracer.start_as_current_span("request"):
        a = D.spawn(counting)
        D.fetch(D.spawn(add, a, 1))
        with pytest.raises(DTaskFailedError):
            D.fetch(D.spawn(boom, "x"))
    live = [s for s in b.spans() if s.name != "request"]
    file.close()
    for saved in (T.get_logs(keeper, raw=True), tmp_path / "run.jsonl"):
        again = list(replay(saved, detail=detail))
        assert sorted(map(shape, again)) == sorted(map(shape, live))
        assert sorted(map(outcome, again)) == sorted(map(outcome, live))


def test_tee_with_a_multi_event_log(bench: Callable[..., Bench]) -> None:
    """Both sinks of a TeeLog get the whole run; get_logs is that of the log that keeps one."""
    from otel_timespan.events import CoreMetrics, IDMetrics

    b = bench()
    ml = T.MultiEventLog()
    ml["core"], ml["id"] = CoreMetrics(), IDMetrics()
    b.context.log_sink = T.TeeLog(ml, b.log)
    with dag("both"):
        D.fetch(D.spawn(add, 1, 2))
    assert len(tasks_of(b.spans())) == 1 and b.one("dag both")
    streams = T.get_logs(b.context.log_sink)[1]
    assert len(streams["core"]) == len(streams["id"]) > 10


def test_two_otel_logs_in_a_tee(bench: Callable[..., Bench]) -> None:
    """A TeeLog refuses a second OTelLog: two would disagree about the current span."""
    b = bench()
    with pytest.raises(InvalidOptionError, match="one OTelLog"):
        T.TeeLog(b.log, OTelLog(tracer_provider=b.provider, metrics=False))


def test_behind_a_filter(bench: Callable[..., Bench]) -> None:
    """Behind a FilterLog, which hides the hooks, tasks still have a root and nested ones their parents."""
    b = bench()
    b.context.log_sink = T.FilterLog(lambda event: event.category != "fire", b.log)
    D.fetch(D.spawn(lambda: D.fetch(D.spawn(add, 1, 2))))
    (root,) = b.named("dag")
    inner = b.one("add")
    assert parent_of(inner) in {id_of(s) for s in b.named("compute")}
    assert root.attributes is not None and root.attributes[semconv.DAG_TASKS] == 2


def test_flush_has_what_finalizers_said(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put for a filter before us, and for a sink beside us, has arrived after a flush."""
    monkeypatch.setattr(drainer.Drainer, "wake", lambda self: None)  # nobody else drains
    b = bench()
    beside: list[T.Event] = []
    recorder = T.recorder_for(T.TeeLog(T.FilterLog(lambda event: True, b.log), beside))
    assert recorder is not None
    recorder.put(T.Event("start", "mine", 1, None, 1))
    assert beside == []
    assert b.log.flush() and len(beside) == 1
    recorder.put(T.Event("finish", "mine", 1, None, 2))
    assert b.one("mine")


def test_keeps_no_log(bench: Callable[..., Bench]) -> None:
    """Events are handed on, not kept."""
    with pytest.raises(LogNotKeptError):
        T.get_logs(bench().log)


def test_program_without_the_scheduler(bench: Callable[..., Bench]) -> None:
    """Timespans of a program's own nest in each other, in the user's spans, thread by thread."""
    b = bench()

    class Program:
        log_sink = b.log

    def other() -> None:
        with T.span(Program, "other", 1):
            pass

    with T.span(Program, "load", 1):
        with T.span(Program, "parse", 2), b.tracer.start_as_current_span("query"), T.span(Program, "row", 3):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with T.span(Program, "after", 4):
            pass
    load, parse, row = b.one("load"), b.one("parse"), b.one("row")
    assert load.parent is None and parent_of(parse) == id_of(load) and parent_of(b.one("query")) == 0
    assert parent_of(row) == id_of(b.one("query"))
    assert b.one("other").parent is None and parent_of(b.one("after")) == id_of(load)
