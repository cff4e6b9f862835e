"""`OTelLog`: every span is accounted for, nothing is lost, and what leaves can be redacted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.errors import DTaskFailedError
from otel_timespan.otel import OTelLog, dag, semconv
from otel_timespan.otel.metrics.gauges import READINGS
from tests.backends import eventually
from tests.otel.log_bench import Bench, add, boom, id_of, parent_of, tasks_of


def test_ten_thousand_tasks(bench: Callable[..., Bench]) -> None:
    """Of a run of 10,000 tasks every span arrives, once, and the account says so at any moment."""
    b = bench()
    stop = threading.Event()
    wrong: list[Any] = []

    def watch() -> None:
        while not stop.wait(0.002):
            s = b.log.stats()
            if s["recorded"] != s["exported"] + s["sampled"] + s["pending"] + sum(s["dropped"].values()):
                wrong.append(s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with dag("burst"):
            tasks = [D.spawn(add, n, 1) for n in range(10_000)]
            assert sum(D.fetch(t) for t in tasks) == sum(range(1, 10_001))
        spans = b.spans()
    finally:
        stop.set()
        watcher.join()
    assert wrong == []
    assert len(spans) == len({id_of(s) for s in spans}) == 10_000 * 3 + 1
    stats = b.log.stats()
    assert stats == {"recorded": 30_001, "exported": 30_001, "sampled": 0, "rolled_up": 0, "pending": 0, "dropped": {}}
    root = b.one("dag burst")
    assert root.attributes is not None and root.attributes[semconv.DAG_COMPLETE] is True


def test_threads_that_spawn_at_once(bench: Callable[..., Bench]) -> None:
    """However threads and the closing of roots interleave, every task has a root that outlives it."""
    b = bench(root_quiet_s=0)
    done: list[int] = []

    def work() -> None:
        for n in range(60):
            done.append(D.fetch(D.spawn(add, n, 1)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = b.spans()
    roots = {id_of(s): s for s in spans if s.parent is None}
    tasks = tasks_of(spans)
    assert len(tasks) == 240 and all(parent_of(t) in roots for t in tasks)
    for task in tasks:
        root = roots[parent_of(task)]
        assert root.start_time <= task.start_time and task.end_time <= root.end_time  # type: ignore[operator]
    assert sum(r.attributes[semconv.DAG_TASKS] for r in roots.values()) == 240  # type: ignore[index, misc]


def test_redact(bench: Callable[..., Bench]) -> None:
    """`redact` sees every text that leaves; None leaves an attribute out; a redact that raises sends a mark."""

    def redact(key: str, text: str) -> str | None:
        if key == semconv.FILE_PATH:
            return None
        if key == semconv.THREAD_NAME:
            raise RuntimeError("bad redactor")
        return text.replace("secret", "***")

    b = bench(redact=redact)
    with pytest.raises(DTaskFailedError):
        D.fetch(D.spawn(boom, "the secret word"))
    spans = b.spans()
    assert "secret word" not in "".join(s.to_json() for s in spans if s.name != "x")
    task = b.one("boom")
    assert task.attributes is not None and semconv.FILE_PATH not in task.attributes
    assert task.attributes[semconv.THREAD_NAME] == "[redact failed]"
    assert task.status.description == "the *** word"


def test_broken_event_is_counted(bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    """An event that can't be mapped is counted, warned of once, and the next ones still arrive."""
    b = bench()
    for _ in range(3):
        b.log.write_event(T.Event("finish", "finish", T.EventId(uid=1), None, 1))
    D.fetch(D.spawn(add, 1, 2))
    assert len(tasks_of(b.spans())) == 1
    assert b.log.stats()["dropped"] == {"error": 3}
    assert sum("could not be turned into spans" in r.message for r in caplog.records) == 1


# ---- what was never looked at --------------------------------------------------------------------------


class Gate(SpanExporter):
    """An exporter that hangs until it is opened."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        """Waits."""
        self.entered.set()
        self.open.wait(60)
        return SpanExportResult.SUCCESS


class StuckRedact:
    """A `redact` that waits at the first span until it is let go."""

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()

    def __call__(self, key: str, text: str) -> str:
        """The text as it is."""
        if key == "span.name":  # not of the resource, which is asked about before there are spans
            self.begun.set()
            self.gate.wait(60)
        return text


def balanced(stats: dict[str, Any]) -> bool:
    """Whether each span is in one state."""
    rest = stats["exported"] + stats["pending"] + stats["sampled"] + sum(stats["dropped"].values())
    return bool(stats["recorded"] == rest)


@contextlib.contextmanager
def logged(**options: Any) -> Iterator[OTelLog]:
    """The scheduler's log meanwhile, closed by the block."""
    log = OTelLog(metrics=False, **options)
    context = D.eager_context()
    context.log_sink = log
    try:
        yield log
    finally:
        context.log_sink = T.NoOpLog()
        log.close()


def two_rows(count: int) -> None:
    """So many tasks, and as many that depend on them."""
    rows = [D.spawn(add, D.spawn(add, n, 1), 1) for n in range(count)]
    assert [D.fetch(task) for task in rows] == list(range(2, count + 2))


@pytest.mark.parametrize("detail", ["task", "phases"])
def test_what_was_not_looked_at_is_pending(detail: str) -> None:
    """The account begins with what happened: records that wait count as the spans that they will become."""
    each = 1 if detail == "task" else 3
    redact = StuckRedact()
    with logged(span_exporter=InMemorySpanExporter(), redact=redact, detail=detail) as log:
        with dag("all"):
            two_rows(1)
            assert redact.begun.wait(60)
            two_rows(50)
            stats = log.stats()
            assert balanced(stats) and stats["recorded"] == stats["pending"] == 102 * each
            redact.gate.set()
        assert log.flush(60)
        assert log.stats()["recorded"] == log.stats()["exported"] == 102 * each + 1


@pytest.mark.parametrize("on_full", ["block", "drop"])
def test_tasks_that_find_no_room_are_left_out_as_a_whole(on_full: str) -> None:
    """Nothing stays open of them, their run ends, and each of their spans is counted."""
    exporter = Gate()
    with logged(span_exporter=exporter, on_full=on_full, max_bytes=20_000, block_timeout_s=0.1) as log:
        with dag("all"):
            two_rows(2000)
            assert exporter.entered.wait(60)
            assert log.stats()["dropped"].get("journal_full", 0) > 0 or on_full == "block"
            assert balanced(log.stats())
            exporter.open.set()
            assert log.flush(60)
        assert log.flush(60)
        stats = log.stats()
        state = (stats, [vars(run) for run in log._runs._open.values()], log._mapper._tasks, log._unmapped._left_out)
        assert balanced(stats) and stats["recorded"] == 4000 * 3 + 1 and stats["pending"] == 0, state
        assert not log._mapper._tasks and not log._runs._open and not log._unmapped._left_out
        two_rows(1)
        assert log.flush(60) and log.stats()["recorded"] == 4002 * 3 + 2


def test_a_submission_that_waited_while_its_task_was_given_up_leaves_its_run() -> None:
    """What follows of a task may find no room while its submission still waits for the drain: its run ends."""
    redact = StuckRedact()
    with logged(span_exporter=InMemorySpanExporter(), redact=redact) as log:
        with dag("all"):
            two_rows(1)
            assert redact.begun.wait(60)
            held = threading.Event()
            waits = D.spawn(held.wait, 60)
            assert log._unmapped.refuse(T.Event("start", "compute", T.EventId(thunk_id=waits.id), None, 1), True)
            redact.gate.set()
            assert log.flush(60)
            held.set()
            assert D.fetch(waits)
        assert log.flush(60)
        stats = log.stats()
        assert balanced(stats) and stats["pending"] == 0 and stats["recorded"] == 3 * 3 + 1
        assert not log._runs._open and not log._unmapped._left_out


def test_closing_keeps_its_time_whatever_redact_does(caplog: pytest.LogCaptureFixture) -> None:
    """A log whose `redact` never comes back is closed in time; what it did not send is dropped, for the shutdown."""
    redact, closed = StuckRedact(), threading.Event()
    context = D.eager_context()
    context.log_sink = log = OTelLog(metrics=False, span_exporter=InMemorySpanExporter(), redact=redact)
    two_rows(1)
    assert redact.begun.wait(60)
    two_rows(300)
    context.log_sink = T.NoOpLog()

    def close() -> None:
        log.close(0.5)
        closed.set()

    closing = threading.Thread(target=close)
    closing.start()
    assert closed.wait(30) and not redact.gate.is_set()
    stats = log.stats()
    assert balanced(stats) and stats["pending"] == 0
    assert stats["recorded"] == stats["dropped"]["shutdown"]
    assert stats["recorded"] - 602 * 3 in (1, 2)  # roots: two where the first run was over before the second began
    assert any("could not look at" in record.message for record in caplog.records)
    redact.gate.set()
    closing.join()
    assert eventually(lambda: not log._journal.is_draining)
    assert log.stats() == stats


def test_flushing_keeps_its_time_whatever_a_consumer_does() -> None:
    """A consumer that never comes back holds up neither a flush nor the account, nor whoever emits."""
    gate, begun = threading.Event(), threading.Event()

    class Stuck(E.BytesAllocd):
        def __call__(self, event: T.Event) -> Any:
            begun.set()
            gate.wait(60)
            return super().__call__(event)

    READINGS[Stuck] = READINGS[E.BytesAllocd]
    provider = MeterProvider()
    log = OTelLog(span_exporter=InMemorySpanExporter(), meter_provider=provider, consumers=[Stuck()])
    context = D.eager_context()
    context.log_sink = log
    try:
        two_rows(10)
        assert begun.wait(60)
        assert log.flush(0.1) is False
        assert balanced(log.stats()) and log.stats()["recorded"] >= 20 * 3
    finally:
        del READINGS[Stuck]
        context.log_sink = T.NoOpLog()
        log.close(0.2)
        assert not gate.is_set() and balanced(log.stats())
        gate.set()
        provider.shutdown()


def test_a_program_s_own_timespans_are_left_out_as_a_whole() -> None:
    """A start that found no room takes its finish with it; the others are spans, and the account is exact."""
    redact = StuckRedact()
    log = OTelLog(metrics=False, span_exporter=InMemorySpanExporter(), redact=redact, on_full="drop", max_bytes=1 << 20)

    def both(n: int) -> None:
        for phase in ("start", "finish"):
            log.write_event(T.Event(phase, "step", n, bytes(1024), n * 2 + 1 + (phase == "finish")))

    both(0)
    both(1)
    assert redact.begun.wait(60)
    for n in range(2, 2000):
        both(n)
    redact.gate.set()
    assert log.flush(60)
    stats = log.stats()
    assert balanced(stats) and stats["recorded"] == 2000 and 0 < stats["dropped"]["journal_full"] < 2000
    log.close()
    assert log.stats()["recorded"] == 2000
