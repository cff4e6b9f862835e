"""design/otel-model.md §1.2: the OpenTelemetry context and contextvars inside of bodies; ruling 41."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    Lab,
    check_account,
    check_tree,
    one,
    parent,
    phase,
    sid,
    task_span,
)

Make = Callable[..., Lab]
VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="unset")


@pytest.fixture(autouse=True)
def _no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test of this file may make OpenTelemetry or us log a warning, such as "Failed to detach context"."""
    caplog.set_level(logging.WARNING)
    yield
    gc.collect()
    told = [r for r in caplog.get_records("call") if r.name.startswith(("opentelemetry", "otel_timespan"))]
    said = [r.getMessage() for r in told if "nobody fetched" not in r.getMessage()]
    assert said == []


def double(x: int) -> int:
    """A body."""
    return 2 * x


# ---- the current span ------------------------------------------------------------------------------------


def test_12_current_span_is_the_recording_compute(lab: Lab) -> None:
    """Inside a body the compute span is current and records; what the user sets on it is exported."""
    seen: dict[str, Any] = {}

    def body() -> int:
        span = trace.get_current_span()
        seen["context"], seen["recording"] = span.get_span_context(), span.is_recording()
        span.set_attribute("user.key", "v")
        span.set_attributes({"user.a": 1, "user.b": [1, 2]})
        span.add_event("half way", {"percent": 50})
        span.record_exception(KeyError("handled"))
        span.add_link(other, {"why": "because"})
        return 1

    with lab.tracer.start_as_current_span("elsewhere") as e:
        other = e.get_span_context()
    task = ts.spawn(body)
    assert ts.fetch(task) == 1
    compute = phase(lab.spans(), task, "compute")
    assert seen["recording"]
    assert seen["context"].span_id == sid(compute)
    assert seen["context"].trace_id == compute.context.trace_id
    assert seen["context"].trace_flags.sampled
    assert compute.attributes["user.key"] == "v"
    assert compute.attributes["user.a"] == 1
    assert tuple(compute.attributes["user.b"]) == (1, 2)
    events = {e.name: dict(e.attributes) for e in compute.events}
    assert events["half way"] == {"percent": 50}
    assert events["exception"]["exception.type"] == "KeyError"
    assert [x.attributes["why"] for x in compute.links] == ["because"]
    assert compute.status.status_code is StatusCode.UNSET


def test_12_users_own_status_survives(lab: Lab) -> None:
    """A body that returns normally but says ERROR on its span keeps that status."""

    def body() -> int:
        trace.get_current_span().set_status(Status(StatusCode.ERROR, "half of the rows were bad"))
        return 1

    task = ts.spawn(body)
    assert ts.fetch(task) == 1
    spans = lab.spans()
    compute = phase(spans, task, "compute")
    assert compute.status.status_code is StatusCode.ERROR
    assert compute.status.description == "half of the rows were bad"
    assert task_span(spans, task).status.status_code is StatusCode.UNSET


def test_12_exception_that_the_body_recorded_itself_and_raised(lab: Lab) -> None:
    """A body that records its exception and raises it: the record of the user, and ours at most once."""

    def body() -> None:
        try:
            raise ValueError("x")
        except ValueError as e:
            trace.get_current_span().record_exception(e)
            raise

    task = ts.spawn(body)
    ts.wait(task)
    compute = phase(lab.spans(), task, "compute")
    assert 1 <= len([e for e in compute.events if e.name == "exception"]) <= 2
    assert compute.attributes["error.type"] == "ValueError"


def test_12_exception_after_recorded_and_handled_ones(lab: Lab) -> None:
    """Handled exceptions that the body recorded are gone when another one ends it: that one is recorded, too."""

    def attempt(n: int) -> None:
        raise ValueError(f"try {n}")

    def body() -> None:
        for n in range(3):
            try:
                attempt(n)
            except ValueError as e:
                trace.get_current_span().record_exception(e)
        attempt(3)

    task = ts.spawn(body)
    ts.wait(task)
    compute = phase(lab.spans(), task, "compute")
    messages = [e.attributes["exception.message"] for e in compute.events if e.name == "exception"]
    assert messages == ["try 0", "try 1", "try 2", "try 3"]


def test_12_limits_of_the_provider_hold_on_the_compute_span(make_lab: Make) -> None:
    """Attribute and event limits and lengths of the provider count for what users put on our span."""
    limits = SpanLimits(max_span_attributes=20, max_events=2, max_attribute_length=16)
    lab = make_lab(provider_options={"span_limits": limits})

    def body() -> None:
        span = trace.get_current_span()
        for i in range(5):
            span.add_event(f"e{i}")
        span.set_attribute("long", "y" * 100)

    task = ts.spawn(body)
    ts.wait(task)
    compute = phase(lab.spans(), task, "compute")
    assert len(compute.events) == 2
    assert compute.dropped_events == 3
    assert compute.attributes["long"] == "y" * 16


def test_12_exception_survives_a_full_list_of_events(lab: Lab) -> None:
    """A body that made more events than the limit and then raises: its exception is there all the same."""

    def body() -> None:
        for i in range(200):
            trace.get_current_span().add_event(f"e{i}")
        raise ValueError("at last")

    task = ts.spawn(body)
    ts.wait(task)
    compute = phase(lab.spans(), task, "compute")
    assert len(compute.events) == 128
    assert compute.dropped_events == 73
    assert [e.attributes["exception.message"] for e in compute.events if e.name == "exception"] == ["at last"]


def test_12_span_kept_past_its_end_is_harmless(lab: Lab) -> None:
    """A span that a body leaked: it no longer records and changes nothing, without any error of ours."""
    kept: list[Any] = []
    task = ts.spawn(lambda: kept.append(trace.get_current_span()))
    ts.fetch(task)
    spans = lab.spans()
    assert not kept[0].is_recording()
    assert kept[0].get_span_context().span_id == sid(phase(spans, task, "compute"))


def test_12_users_spans_nest_under_compute(lab: Lab) -> None:
    """Spans that a body makes are children of the compute span, and tasks that it spawns in them theirs."""

    def body() -> int:
        with lab.tracer.start_as_current_span("query"), lab.tracer.start_as_current_span("row"):
            return ts.fetch(ts.spawn(double, 2))

    task = ts.spawn(body)
    assert ts.fetch(task) == 4
    spans = lab.spans()
    check_tree(spans)
    assert parent(one(spans, "query")) == sid(phase(spans, task, "compute"))
    assert parent(one(spans, "row")) == sid(one(spans, "query"))
    assert parent(one(spans, "double")) == sid(one(spans, "row"))


def test_12_current_span_is_back_after_each_body(lab: Lab) -> None:
    """No body's span or context leaks into the next body on the same thread, nor into the fetching thread."""

    def messy() -> None:
        context.attach(baggage.set_baggage("left", "over"))
        VAR.set("dirty")

    def look() -> tuple[Any, str]:
        return baggage.get_baggage("left"), VAR.get()

    with ts.Context(threads=1) as ctx:
        ctx.log_sink = lab.log
        for _ in range(3):
            ts.fetch(ts.spawn(messy))
            assert ts.fetch(ts.spawn(look)) == (None, "unset")
        assert not trace.get_current_span().get_span_context().is_valid
        assert look() == (None, "unset")


def test_12_baggage_and_contextvars_travel(lab: Lab) -> None:
    """What was set at spawn is seen in the body, in nested bodies too, and later changes are not."""

    def look() -> tuple[Any, str]:
        return baggage.get_baggage("tenant"), VAR.get()

    def outer() -> tuple[Any, str]:
        return ts.fetch(ts.spawn(look))

    gate = threading.Event()
    block = ts.spawn(gate.wait, DEADLINE_S)
    token, var = context.attach(baggage.set_baggage("tenant", "a")), VAR.set("before")
    tasks = [ts.spawn(look, ts.Options(syncdeps={block})), ts.spawn(outer, ts.Options(syncdeps={block}))]
    context.detach(token)
    VAR.reset(var)
    VAR.set("after")
    gate.set()
    assert ts.fetch_all(tasks) == [("a", "before")] * 2
    VAR.set("unset")


def test_12_contextvars_travel_without_any_log() -> None:
    """They travel with a NoOpLog, too."""
    token = VAR.set("plain")
    task = ts.spawn(VAR.get)
    VAR.reset(token)
    assert ts.fetch(task) == "plain"


def test_12_generators_and_contexts_left_open(lab: Lab) -> None:
    """A generator with an open span that is finished on another thread: our part never complains."""

    def body() -> Any:
        span = lab.tracer.start_span("kept open")
        return span

    task = ts.spawn(body)
    ts.fetch(task).end()
    spans = lab.spans()
    assert parent(one(spans, "kept open")) == sid(phase(spans, task, "compute"))


# ---- threads and event loops -----------------------------------------------------------------------------


def test_12_threads_started_in_bodies(lab: Lab) -> None:
    """A thread with a copy of the context nests; one without starts a trace of its own; both may spawn."""

    def traced(name: str) -> None:
        with lab.tracer.start_as_current_span(name):
            ts.fetch(ts.spawn(double, 1))

    def body() -> None:
        copied = contextvars.copy_context()
        threads = [
            threading.Thread(target=copied.run, args=(traced, "with")),
            threading.Thread(target=traced, args=("without",)),
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join(DEADLINE_S)

    task = ts.spawn(body)
    ts.fetch(task)
    spans = lab.spans()
    check_tree(spans)
    assert parent(one(spans, "with")) == sid(phase(spans, task, "compute"))
    without = one(spans, "without")
    assert parent(without) is None
    inside = [parent(s) for s in spans if s.name == "double"]
    assert sorted(inside) == sorted([sid(one(spans, "with")), sid(without)])


def test_12_asyncio_awaits_tasks(lab: Lab) -> None:
    """Coroutines that await tasks keep their own current span, and their tasks are its children."""

    async def one_request(n: int) -> int:
        with lab.tracer.start_as_current_span(f"request {n}") as span:
            first = await ts.spawn(double, n)
            assert trace.get_current_span() is span
            with ts.dag(f"part {n}"):
                second = await ts.spawn(double, first)
            assert trace.get_current_span() is span
            return second

    async def main() -> list[int]:
        return list(await asyncio.gather(*[one_request(n) for n in range(5)]))

    assert asyncio.run(main()) == [4 * n for n in range(5)]
    spans = lab.spans()
    check_tree(spans)
    for n in range(5):
        request, part = one(spans, f"request {n}"), one(spans, f"dag part {n}")
        assert parent(part) == sid(request)
        assert len([s for s in spans if s.name == "double" and parent(s) == sid(request)]) == 1
        assert len([s for s in spans if s.name == "double" and parent(s) == sid(part)]) == 1


def test_12_event_loop_inside_a_body(lab: Lab) -> None:
    """A body that runs an event loop: spans of its coroutines nest under compute."""

    async def inner() -> int:
        with lab.tracer.start_as_current_span("coroutine"):
            return await ts.spawn(double, 3)

    task = ts.spawn(lambda: asyncio.run(inner()))
    assert ts.fetch(task) == 6
    spans = lab.spans()
    check_tree(spans)
    assert parent(one(spans, "coroutine")) == sid(phase(spans, task, "compute"))
    assert parent(one(spans, "double")) == sid(one(spans, "coroutine"))


# ---- other signals in the body ---------------------------------------------------------------------------


def test_12_metrics_of_the_user_carry_exemplars_of_compute(lab: Lab) -> None:
    """A user's histogram recorded in a body has an exemplar with the ids of the compute span."""
    histogram = lab.meters.get_meter("user").create_histogram("user.rows")
    task = ts.spawn(lambda: histogram.record(3))
    ts.fetch(task)
    (point,) = lab.points("user.rows", flush=False)
    compute = phase(lab.spans(), task, "compute")
    assert [(e.trace_id, e.span_id) for e in point.exemplars] == [(compute.context.trace_id, sid(compute))]


def test_12_logs_of_the_user_carry_the_ids(lab: Lab) -> None:
    """What a logging filter reads of the current span inside of a body are the ids of the compute span."""
    seen: list[tuple[int, int]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            c = trace.get_current_span().get_span_context()
            seen.append((c.trace_id, c.span_id))

    log = logging.getLogger("acc_otel_user")
    log.propagate = False
    log.addHandler(Handler())
    task = ts.spawn(log.warning, "hello")
    ts.wait(task)
    compute = phase(lab.spans(), task, "compute")
    assert seen == [(compute.context.trace_id, sid(compute))]


class Watcher(SpanProcessor):
    """A user's processor: copies baggage, counts starts and ends."""

    def __init__(self) -> None:
        self.started: list[tuple[str, Any]] = []
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        tenant = baggage.get_baggage("tenant", parent_context)
        self.started.append((span.name, tenant))
        if tenant is not None:
            span.set_attribute("tenant", tenant)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


def test_12_span_processors_see_our_spans(make_lab: Make) -> None:
    """A user's processor gets on_start of the compute span in the task's context, and on_end of every span."""
    lab = make_lab()
    watcher = Watcher()
    lab.provider.add_span_processor(watcher)
    token = context.attach(baggage.set_baggage("tenant", "blue"))
    task = ts.spawn(double, 1)
    context.detach(token)
    ts.fetch(task)
    spans = lab.spans()
    compute = phase(spans, task, "compute")
    assert ("compute", "blue") in watcher.started
    assert compute.attributes["tenant"] == "blue"
    assert sorted(sid(s) for s in watcher.ended) == sorted(sid(s) for s in spans)


def test_12_span_processor_sees_dag_roots(make_lab: Make) -> None:
    """A dag root is current in its block, so processors get its start too, and what is set on it survives."""
    lab = make_lab()
    watcher = Watcher()
    lab.provider.add_span_processor(watcher)
    with ts.dag("watched"):
        trace.get_current_span().set_attribute("rows", 7)
        trace.get_current_span().add_event("note")
        ts.fetch(ts.spawn(double, 1))
    root = one(lab.spans(), "dag watched")
    assert "dag watched" in [name for name, _ in watcher.started]
    assert root.attributes["rows"] == 7
    assert [e.name for e in root.events] == ["note"]


@pytest.mark.parametrize("first", [True, False], ids=["bad first", "bad last"])
def test_12_a_span_processor_that_raises_hurts_nothing(first: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A processor whose hooks raise: results and account are right, other processors get their spans; a warning."""

    class Bad(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise RuntimeError("start")

        def on_end(self, span: Any) -> None:
            raise RuntimeError("end")

    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    for processor in (Bad(), SimpleSpanProcessor(kept)) if first else (SimpleSpanProcessor(kept), Bad()):
        provider.add_span_processor(processor)
    log = ts.OTelLog(tracer_provider=provider, metrics=False)
    ts.eager_context().log_sink = log
    assert ts.fetch_all([ts.spawn(double, i) for i in range(10)]) == [2 * i for i in range(10)]
    log.flush(DEADLINE_S)
    ts.eager_context().log_sink = ts.NoOpLog()
    log.close()
    stats = log.stats()
    said = [r.getMessage() for r in caplog.records if r.name.startswith("otel_timespan")]
    caplog.clear()
    check_account(stats)
    assert len(kept.get_finished_spans()) == (0 if first else 31)  # the SDK stops at the first that raises
    assert stats["recorded"] == 31
    assert 1 <= len(said) <= 3, said


def test_12_no_warnings_of_any_kind(lab: Lab) -> None:
    """Python's own warnings are errors here: a run with failures and nested loops makes none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = [ts.spawn(double, "x" if i % 2 else i) for i in range(10)]
        tasks += [ts.spawn(int, "no")]
        ts.waitall(tasks)
        lab.spans()
