"""`OTelLog` beside the user's own spans: parents, baggage, what bodies record, and the head sampler's word."""

from __future__ import annotations

import contextvars
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import StatusCode

from otel_timespan import dagger as D
from otel_timespan.errors import DTaskFailedError
from otel_timespan.otel import dag, semconv
from otel_timespan.otel.spans.bodyspan import BodySpan
from otel_timespan.otel.spans.spandata import SpanData
from tests.otel.log_bench import Bench, add, boom, id_of, parent_of, tasks_of


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
    assert stats["sampled"] == stats["recorded"] == 2 * 4


def test_ratio_takes_whole_runs(bench: Callable[..., Bench]) -> None:
    """A ratio sampler takes or leaves whole runs: a trace has all of its spans or none."""
    b = bench(sampler=ParentBased(TraceIdRatioBased(0.5)))
    for n in range(60):
        with dag(f"run{n % 3}"):
            D.fetch(D.spawn(add, D.spawn(add, 1, 2), 3))
    spans = b.spans()
    per_trace = Counter(s.get_span_context().trace_id for s in spans)
    assert 5 < len(per_trace) < 55 and set(per_trace.values()) == {7}
    stats = b.log.stats()
    assert stats["recorded"] == 60 * 7 == stats["exported"] + stats["sampled"]


def test_unsampled_user_span(bench: Callable[..., Bench]) -> None:
    """Tasks under an unsampled span of the user's are not sampled."""
    b = bench()
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    with off.get_tracer("x").start_as_current_span("request"):
        D.fetch(D.spawn(add, 1, 2))
    assert b.spans() == [] and b.log.stats()["sampled"] == 3


def test_body_span_survives_pickling() -> None:
    """What a user recorded on a body's span travels with a saved or forwarded event."""
    span = BodySpan("compute", 1, 2, 3, 1, "", 5)
    span.set_attribute("rows", 3)
    span.add_event("read", {"n": 1}, 7)
    again = pickle.loads(pickle.dumps(span))
    plain = SpanData("compute", 1, 2, 3, 5, 9, {"ours": True})
    assert again.merged(plain) == span.merged(plain)
    assert again.merged(plain).attributes == {"ours": True, "rows": 3} and not span.is_recording()
