"""`OTelLog` with the real scheduler: traces, context, sampling, accounts, and never a harm to the program."""

from __future__ import annotations

import contextvars
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import StatusCode

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import DTaskFailedError, InvalidOptionError, LogNotKeptError
from otel_timespan.otel import OTelLog, dag, replay, semconv
from otel_timespan.otel.bodyspan import BodySpan
from otel_timespan.otel.mapping import SpanMapper
from otel_timespan.otel.spandata import SpanData

WAITS = (
    semconv.WAIT_DEPENDENCY,
    semconv.WAIT_SCHEDULE,
    semconv.WAIT_QUEUE,
    semconv.WAIT_MOVE,
    semconv.RUN_WALL,
    semconv.WAIT_FINISH,
)


class Bench:
    """A log at a provider of its own, the scheduler's sink meanwhile."""

    def __init__(self, **options: Any) -> None:
        sampler = options.pop("sampler", None)
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("user")
        options.setdefault("metrics", False)
        self.log = OTelLog(tracer_provider=self.provider, **options)
        self.context = D.eager_context()
        self.context.log_sink = self.log

    def spans(self) -> list[ReadableSpan]:
        """All spans so far, users' own too."""
        assert self.log.flush(), self.log.stats()
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of a name."""
        return [span for span in self.spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span of a name."""
        (span,) = self.named(name)
        return span

    def close(self) -> None:
        """Switch logging off and close."""
        self.context.log_sink = T.NoOpLog()
        self.log.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches and closes them."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("it never came true")


def parent_of(span: ReadableSpan) -> int:
    """The parent's span id, 0 for a root."""
    return span.parent.span_id if span.parent is not None else 0


def id_of(span: ReadableSpan) -> int:
    """The span id."""
    return span.get_span_context().span_id


def tasks_of(spans: list[ReadableSpan]) -> list[ReadableSpan]:
    """The spans of tasks."""
    return [span for span in spans if semconv.TASK_ATTEMPT in (span.attributes or {})]


def add(a: int, b: int) -> int:
    """A body."""
    return a + b


def boom(text: str) -> None:
    """A body that raises."""
    raise ValueError(text)


def counting() -> int:
    """A body that records on its span and spawns."""
    trace.get_current_span().set_attribute("rows", 3)
    return D.fetch(D.spawn(add, 1, 2))


# ---- the tree --------------------------------------------------------------------------------------


def test_tree_of_a_run(bench: Callable[..., Bench]) -> None:
    """Every span but the root has its parent in the trace, and lies within it; waits add up."""
    b = bench()
    total = D.spawn(add, D.spawn(add, 1, 2), D.spawn(add, 3, 4))
    assert D.fetch(total) == 10
    spans = b.spans()
    by_id = {id_of(span): span for span in spans}
    (root,) = (span for span in spans if span.parent is None)
    assert root.name == "dag" and len({s.get_span_context().trace_id for s in spans}) == 1
    for span in spans:
        parent = by_id.get(parent_of(span))
        if parent is not None:
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time  # type: ignore[operator]
    tasks = tasks_of(spans)
    assert [parent_of(t) for t in tasks] == [id_of(root)] * 3
    for task in tasks:
        assert sum(task.attributes[k] for k in WAITS) == pytest.approx((task.end_time - task.start_time) / 1e9)  # type: ignore
    last = next(t for t in tasks if t.links)
    assert {link.context.span_id for link in last.links} == {id_of(t) for t in tasks if not t.links}
    assert root.attributes is not None and root.attributes[semconv.DAG_TASKS] == 3


def test_explicit_run(bench: Callable[..., Bench]) -> None:
    """Tasks of a `with dag` block are children of its root, which has the given attributes."""
    b = bench()
    with dag("nightly", team="blue") as root:
        assert trace.get_current_span() is root
        root.set_attribute("rows", 12)
        task = D.spawn(add, 1, 2)
    assert not trace.get_current_span().get_span_context().is_valid
    D.fetch(task)
    span, of_task = b.one("dag nightly"), tasks_of(b.spans())[0]
    assert span.attributes is not None and span.attributes["team"] == "blue" and span.attributes["rows"] == 12
    assert parent_of(of_task) == id_of(span) and span.attributes[semconv.DAG_NAME] == "nightly"
    assert b.named("dag") == []


def test_explicit_root_waits_for_its_tasks(bench: Callable[..., Bench]) -> None:
    """A root ends after its block was left and its last task is done, tasks spawned by tasks included."""
    b = bench()
    go = threading.Event()

    def inner() -> int:
        return 1

    def outer() -> int:
        go.wait(20)
        return D.fetch(D.spawn(inner))

    with dag("slow"):
        task = D.spawn(outer)
    b.log.flush()
    assert b.named("dag slow") == []
    go.set()
    D.fetch(task)
    root = eventually(lambda: b.named("dag slow"))[0]
    tasks = tasks_of(b.spans())
    assert len(tasks) == 2 and all(t.end_time <= root.end_time for t in tasks)
    assert root.attributes[semconv.DAG_TASKS] == 2


def test_block_that_raises(bench: Callable[..., Bench]) -> None:
    """What ends a block by an exception stands on its root; the exception goes on."""
    b = bench()
    with pytest.raises(KeyError), dag("broken"):
        raise KeyError("gone")
    root = b.one("dag broken")
    assert root.status.status_code is StatusCode.ERROR and [e.name for e in root.events] == ["exception"]


def test_dag_without_a_log() -> None:
    """`dag` does nothing where nothing is logged."""
    with dag("alone") as root:
        assert not root.is_recording()
        assert D.fetch(D.spawn(add, 1, 1)) == 2


def test_dag_after_logging_was_switched_off(bench: Callable[..., Bench]) -> None:
    """A log that the scheduler used and no longer does gets no root."""
    b = bench()
    D.fetch(D.spawn(add, 1, 2))
    b.log.flush()
    b.context.log_sink = T.NoOpLog()
    with dag("unseen") as root:
        assert not root.is_recording()
    assert b.named("dag unseen") == []


def test_dag_needs_a_name() -> None:
    """A dag without a name is refused at once."""
    for wrong in ("", None, 5):
        with pytest.raises(InvalidOptionError, match="name of a dag"):
            dag(wrong)  # type: ignore[arg-type]


def test_dag_left_in_another_context(bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    """Leaving a block in another context than it was entered in logs no detach error."""
    b = bench()
    block = dag("moved")
    contextvars.copy_context().run(block.__enter__)
    contextvars.copy_context().run(block.__exit__, None, None, None)
    assert b.one("dag moved") and not caplog.records


def test_implicit_root_ends_when_quiet() -> None:
    """A run that nobody opened ends once it was quiet for long enough, by the given clock, without any call."""
    now = [1_000_000_000]
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with OTelLog(tracer_provider=provider, metrics=False, root_quiet_s=5, clock=lambda: now[0]) as log:
        parent = log.recorder.on_submit()  # type: ignore[misc]
        from tests.otel.stories import whole

        for event in whole(2, 1_000_000_000, trace=parent):
            log.write_event(event)
        eventually(lambda: any(s.name == "len" for s in exporter.get_finished_spans()))
        assert not any(s.name == "dag" for s in exporter.get_finished_spans())
        now[0] += 6_000_000_000
        eventually(lambda: any(s.name == "dag" for s in exporter.get_finished_spans()))


def test_two_runs_are_two_traces(bench: Callable[..., Bench]) -> None:
    """After a quiet time the next task opens a new trace."""
    b = bench(root_quiet_s=0)
    D.fetch(D.spawn(add, 1, 2))
    eventually(lambda: len(b.named("dag")) == 1)
    D.fetch(D.spawn(add, 1, 2))
    eventually(lambda: len(b.named("dag")) == 2)
    assert len({s.get_span_context().trace_id for s in b.spans()}) == 2


def test_users_span_is_the_parent(bench: Callable[..., Bench]) -> None:
    """Tasks spawned under a span of the user's are its children, in its trace, without a root of ours."""
    b = bench()
    with b.tracer.start_as_current_span("request") as request:
        task = D.spawn(add, 1, 2)
        D.fetch(task)
    spans = b.spans()
    (of_task,) = tasks_of(spans)
    assert parent_of(of_task) == request.get_span_context().span_id
    assert not [s for s in spans if s.name.startswith("dag")]


def test_users_spans_nest_in_bodies(bench: Callable[..., Bench]) -> None:
    """Spans made in a body are children of its compute; tasks spawned under them are theirs."""
    b = bench()

    def body() -> int:
        with b.tracer.start_as_current_span("query"):
            return D.fetch(D.spawn(add, 1, 2))

    with dag("nested"):
        D.fetch(D.spawn(body))
    query = b.one("query")
    computes = {id_of(s): s for s in b.named("compute")}
    outer = computes[parent_of(query)]
    assert outer.attributes is not None
    inner = b.one("add")
    assert parent_of(inner) == id_of(query)
    root = b.one("dag nested")
    assert root.attributes is not None and root.attributes[semconv.DAG_TASKS] == 2


def test_context_and_baggage_travel(bench: Callable[..., Bench]) -> None:
    """Contextvars and baggage of the spawner are there in the body; what a body sets stays in it."""
    bench()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    variable.set("outer")

    def body() -> tuple[Any, str]:
        found = baggage.get_baggage("tenant"), variable.get()
        variable.set("inner")
        return found

    try:
        tasks = [D.spawn(body) for _ in range(5)]
        assert [D.fetch(t) for t in tasks] == [("acme", "outer")] * 5
    finally:
        otel_context.detach(token)
    assert not trace.get_current_span().get_span_context().is_valid


# ---- the span in the body --------------------------------------------------------------------------


def test_what_the_user_records_in_a_body(bench: Callable[..., Bench]) -> None:
    """Attributes, events, links, a name and a status set on the current span are on the compute span."""
    b = bench()

    def body() -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("rows", 3)
        span.set_attributes({"table": "t", "ok": True})
        span.add_event("read", {"n": 1})
        span.add_link(span.get_span_context(), {"why": "test"})
        span.set_status(StatusCode.OK)
        span.update_name("load table")
        span.end()

    D.fetch(D.spawn(body))
    span = b.one("load table")
    assert span.attributes is not None
    assert (span.attributes["rows"], span.attributes["table"], span.attributes["ok"]) == (3, "t", True)
    assert span.attributes[semconv.WORKER_ID] == 1
    assert [(e.name, dict(e.attributes or {})) for e in span.events] == [("read", {"n": 1})]
    assert [dict(link.attributes or {}) for link in span.links] == [{"why": "test"}]
    assert span.status.status_code is StatusCode.OK


def test_exception_is_recorded_once(bench: Callable[..., Bench]) -> None:
    """An exception that the user records and raises is on the compute span once, with its stack."""
    b = bench()

    def body() -> None:
        try:
            boom("secret")
        except ValueError as error:
            trace.get_current_span().record_exception(error)
            raise

    with pytest.raises(DTaskFailedError):
        D.fetch(D.spawn(body))
    compute = b.one("compute")
    assert [e.name for e in compute.events] == ["exception"]
    assert compute.status.status_code is StatusCode.ERROR
    assert compute.attributes is not None and compute.attributes[semconv.ERROR_TYPE] == "ValueError"
    assert "in boom" in str((compute.events[0].attributes or {})[semconv.EXCEPTION_STACKTRACE])
    events = [e.name for s in b.spans() for e in s.events]
    assert events == ["exception"]


def test_span_processors_see_the_start(bench: Callable[..., Bench]) -> None:
    """A user's span processor gets `on_start` in the task's context and may set attributes."""

    class Tenant(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            assert isinstance(span, ReadableSpan) and span.start_time
            span.set_attribute("tenant", str(baggage.get_baggage("tenant", parent_context)))

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    b = bench()
    b.provider.add_span_processor(Tenant())
    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        D.fetch(D.spawn(add, 1, 2))
    finally:
        otel_context.detach(token)
    compute = b.one("compute")
    assert compute.attributes is not None and compute.attributes["tenant"] == "acme"


def test_body_span_is_the_task_with_detail_task(bench: Callable[..., Bench]) -> None:
    """With detail "task" the task's own span is current in the body."""
    b = bench(detail="task")

    def body() -> None:
        trace.get_current_span().set_attribute("rows", 3)
        with b.tracer.start_as_current_span("query"):
            pass

    D.fetch(D.spawn(body))
    task = b.one("body")
    assert task.attributes is not None and task.attributes["rows"] == 3
    assert parent_of(b.one("query")) == id_of(task) and b.named("compute") == []


# ---- sampling --------------------------------------------------------------------------------------


def test_sampler_off(bench: Callable[..., Bench]) -> None:
    """An unsampled run makes no span, users' own in its bodies included; all are counted as sampled."""
    b = bench(sampler=ParentBased(ALWAYS_OFF))

    def body() -> bool:
        with b.tracer.start_as_current_span("query"):
            return trace.get_current_span().get_span_context().is_valid

    assert D.fetch(D.spawn(body)) is True
    with dag("off"):
        D.fetch(D.spawn(add, 1, 2))
    assert b.spans() == []
    stats = b.log.stats()
    assert stats["exported"] == stats["pending"] == 0 and stats["dropped"] == {}
    assert stats["sampled"] == stats["recorded"] == 2 * 6


def test_ratio_takes_whole_runs(bench: Callable[..., Bench]) -> None:
    """A ratio sampler takes or leaves whole runs: a trace has all of its spans or none."""
    b = bench(sampler=ParentBased(TraceIdRatioBased(0.5)))
    for n in range(60):
        with dag(f"run{n % 3}"):
            D.fetch(D.spawn(add, D.spawn(add, 1, 2), 3))
    spans = b.spans()
    per_trace = Counter(s.get_span_context().trace_id for s in spans)
    assert 5 < len(per_trace) < 55 and set(per_trace.values()) == {11}
    stats = b.log.stats()
    assert stats["recorded"] == 60 * 11 == stats["exported"] + stats["sampled"]


def test_unsampled_user_span(bench: Callable[..., Bench]) -> None:
    """Tasks under an unsampled span of the user's are not sampled."""
    b = bench()
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    with off.get_tracer("x").start_as_current_span("request"):
        D.fetch(D.spawn(add, 1, 2))
    assert b.spans() == [] and b.log.stats()["sampled"] == 5


# ---- accounts --------------------------------------------------------------------------------------


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
    with dag("burst"):
        tasks = [D.spawn(add, n, 1) for n in range(10_000)]
        assert sum(D.fetch(t) for t in tasks) == sum(range(1, 10_001))
    spans = b.spans()
    stop.set()
    watcher.join()
    assert wrong == []
    assert len(spans) == len({id_of(s) for s in spans}) == 10_000 * 5 + 1
    stats = b.log.stats()
    assert stats == {"recorded": 50_001, "exported": 50_001, "sampled": 0, "pending": 0, "dropped": {}}
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


# ---- sinks and replays -----------------------------------------------------------------------------


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


# ---- the end of things -----------------------------------------------------------------------------


def test_close_abandons_what_is_open(bench: Callable[..., Bench]) -> None:
    """Closing the log closes what still runs as abandoned, ends roots, and takes no more events."""
    b = bench()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    with dag("cut short"):
        task = D.spawn(stuck)
        assert started.wait(20)
        b.log.close()
    go.set()
    D.wait(task)
    D.fetch(D.spawn(add, 1, 2))
    spans = list(b.exporter.get_finished_spans())
    assert sorted(s.name for s in spans) == ["compute", "dag cut short", "queue", "schedule", "stuck"]
    (task_span,) = tasks_of(spans)
    assert task_span.attributes is not None and task_span.attributes[semconv.TASK_STATE] == "abandoned"
    root = next(s for s in spans if s.name.startswith("dag"))
    assert root.attributes is not None and root.attributes[semconv.DAG_COMPLETE] is False
    assert b.log.stats()["pending"] == 0


def test_cancelled_while_running_arrives(bench: Callable[..., Bench]) -> None:
    """A task cancelled in its body is sent once, when the body ends, and its root after it."""
    b = bench()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    task = D.spawn(stuck)
    assert started.wait(20)
    task.cancel()
    b.log.flush()
    assert b.named("stuck") == []
    D.fetch(D.spawn(add, 1, 2))
    go.set()
    eventually(lambda: b.named("stuck"))
    stuck_span = b.one("stuck")
    assert stuck_span.attributes is not None and stuck_span.attributes[semconv.TASK_STATE] == "cancelled"
    assert stuck_span.status.status_code is StatusCode.UNSET
    root = eventually(lambda: [s for s in b.named("dag") if id_of(s) == parent_of(stuck_span)])[0]
    assert root.end_time >= stuck_span.end_time


class Raising(SpanExporter):
    """An exporter that always raises."""

    def export(self, spans: Any) -> SpanExportResult:
        """Raise."""
        raise OSError("disk on fire")

    def shutdown(self) -> None:
        """Raise."""
        raise OSError("still on fire")


def test_bad_exporter_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exporter that raises the program's result is the same and all spans are accounted for."""
    log = OTelLog(span_exporter=Raising(), metrics=False, exit_timeout_s=0.2)
    context = D.eager_context()
    context.log_sink = log
    try:
        assert D.fetch(D.spawn(add, 1, 2)) == 3
        log.close()
        stats = log.stats()
        assert stats["recorded"] == 6 == sum(stats["dropped"].values()) and stats["pending"] == 0
    finally:
        context.log_sink = T.NoOpLog()


def test_bad_hooks_do_no_harm(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails inside of the log stays there."""
    b = bench()

    def broken(*args: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(b.log._runs, "submit", broken)
    monkeypatch.setattr(SpanMapper, "end_run", broken)
    assert D.fetch(D.spawn(add, 1, 2)) == 3
    b.log.flush()
    assert b.log.stats()["dropped"] == {"error": 1}


SCRIPT = """
import otel_timespan.dagger as D
from otel_timespan.otel import OTelLog
ctx = D.eager_context()
ctx.log_sink = log = OTelLog(exit_timeout_s=1)
def add(a, b):
    return a + b
print("result", D.fetch(D.spawn(add, D.spawn(add, 1, 2), 3)))
"""


def run_script(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these variables on top of a clean OTEL environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env={**clean, "PYTHONPATH": path, **env}, capture_output=True, text=True, timeout=60)


def test_unreachable_endpoint() -> None:
    """With no collector there the program gives its result, ends in time, and warns, briefly."""
    done = run_script(SCRIPT, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0 and done.stdout == "result 6\n", done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 6 and "Traceback" not in done.stderr, done.stderr


def test_sdk_disabled() -> None:
    """OTEL_SDK_DISABLED: no spans, no metrics, no threads, no word."""
    script = SCRIPT + "\nimport threading\nprint(log.flush(), log.stats()['recorded'])\n"
    script += "print([t.name for t in threading.enumerate() if 'export' in t.name or 'Otel' in t.name])\n"
    done = run_script(script, OTEL_SDK_DISABLED="true")
    assert done.stdout == "result 6\nTrue 0\n[]\n" and done.stderr == "", done.stderr


def test_spans_written_at_exit() -> None:
    """A program that ends at once has sent its spans, root included."""
    done = run_script(SCRIPT, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"name": "add"') == 2 and '"name": "dag"' in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"detail": "all"}, "task, phases, scheduler"),
        ({"on_full": "panic"}, "block, drop, spill"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 1.5}, "max_bytes"),
        ({"root_quiet_s": -1}, "root_quiet_s"),
        ({"exit_timeout_s": "5"}, "exit_timeout_s"),
        ({"block_timeout_s": float("nan")}, "block_timeout_s"),
        ({"redact": "x"}, "redact"),
        ({"clock": 5}, "clock"),
        ({"metrics": "yes"}, "metrics"),
        ({"tracer_provider": object()}, "tracer_provider"),
        ({"meter_provider": object()}, "meter_provider"),
        ({"span_exporter": object()}, "span_exporter"),
        ({"consumers": [object()]}, "consumers"),
        ({"tracer_provider": TracerProvider(shutdown_on_exit=False), "span_exporter": Raising()}, "not both"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    """A wrong option is refused at construction, by name, with what is allowed."""
    with pytest.raises(InvalidOptionError, match=says):
        OTelLog(**options)


def test_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong OTEL_* value is refused at construction where it would be used."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(InvalidOptionError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        OTelLog()
    OTelLog(tracer_provider=TracerProvider(shutdown_on_exit=False), metrics=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_starts_empty() -> None:
    """A child that is forked in the middle of a run sends nothing of its parent's."""
    script = """
import os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_timespan import timespans as T
from otel_timespan.otel import OTelLog
exporter = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
class Program:
    log_sink = OTelLog(tracer_provider=provider, metrics=False)
T.timespan_start(Program, "outer", 1)
with T.span(Program, "before", 1):
    pass
pid = os.fork()
if not pid:
    with T.span(Program, "child", 1):
        pass
else:
    os.waitpid(pid, 0)
Program.log_sink.close()
print(sorted(s.name for s in exporter.get_finished_spans()), flush=True)
os._exit(0)
"""
    done = run_script(script)
    child, parent = done.stdout.splitlines()
    assert child == "['child']" and parent == "['before', 'outer']", done.stderr


def test_body_span_survives_pickling() -> None:
    """What a user recorded on a body's span travels with a saved or forwarded event."""
    span = BodySpan("compute", 1, 2, 3, 1, "", 5)
    span.set_attribute("rows", 3)
    span.add_event("read", {"n": 1}, 7)
    again = pickle.loads(pickle.dumps(span))
    plain = SpanData("compute", 1, 2, 3, 5, 9, {"ours": True})
    assert again.merged(plain) == span.merged(plain)
    assert again.merged(plain).attributes == {"ours": True, "rows": 3} and not span.is_recording()
