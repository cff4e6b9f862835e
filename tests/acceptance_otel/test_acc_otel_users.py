"""Issue 5, point 12 seen through OpenTelemetry: coroutines, executors, retries, timeouts."""

from __future__ import annotations

import asyncio

from opentelemetry import trace

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import Lab, check_tree, check_waits, phase, sid, task_span


def here() -> int:
    """The id of the current span."""
    return trace.get_current_span().get_span_context().span_id


def test_the_span_of_a_coroutine_body_is_current_across_its_awaits(lab: Lab) -> None:
    """Before and after an await the task's compute span is current, and what the body opens lies under it."""
    tracer = lab.provider.get_tracer("user")

    async def body() -> tuple[int, int]:
        before = here()
        await asyncio.sleep(0)
        with tracer.start_as_current_span("mine"):
            await asyncio.sleep(0)
        return before, here()

    tasks = [ts.spawn(body) for _ in range(3)]
    seen = ts.fetch_all(tasks)
    spans = lab.spans()
    check_tree(spans)
    for task, (before, after) in zip(tasks, seen, strict=True):
        compute = phase(spans, task, "compute")
        assert before == after == sid(compute)
        assert [s.name for s in spans if s.parent is not None and s.parent.span_id == sid(compute)] == ["mine"]
        check_waits(task_span(spans, task))


def test_calls_of_an_executor_join_the_caller_s_trace(lab: Lab) -> None:
    """A private context logs to the current one's sink, and the caller's span is the parent, by its name."""
    tracer = lab.provider.get_tracer("user")

    def load(n: int) -> int:
        return n

    with ts.Executor(2) as executor, tracer.start_as_current_span("request") as request:
        assert list(executor.map(load, range(5))) == list(range(5))
        mine = request.get_span_context()
    spans = [span for span in lab.spans() if span.name == "load"]
    assert len(spans) == 5
    for span in spans:
        assert span.parent is not None and span.parent.span_id == mine.span_id
        assert span.get_span_context().trace_id == mine.trace_id
