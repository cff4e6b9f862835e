"""Issue 5, point 12 seen through OpenTelemetry: coroutines, executors, retries, timeouts."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
from opentelemetry import trace

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import Lab, check_tree, check_waits, phase, sid, task_span
from tests.dagger.acceptance.support import poll


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


def test_a_retried_attempt_says_why_and_the_next_one_links_to_it(lab: Lab) -> None:
    """Each attempt has its span, with the error of its own body; the next one links to it, coroutine or not."""
    left = [KeyError("second"), OSError("first")]

    def flaky() -> int:
        if left:
            raise left.pop()
        return 1

    async def again() -> int:
        await asyncio.sleep(0)
        return flaky()

    for body in (flaky, again):
        left[:] = [KeyError("second"), OSError("first")]
        task = ts.spawn(body, ts.Options(retries=3, retry_delay=lambda attempt: 0.001 * attempt))
        assert ts.fetch(task) == 1
        spans = [s for s in lab.spans() if s.attributes.get("timespan.task.id") == task.id]
        attempts = sorted(
            (s for s in spans if "timespan.task.attempt" in s.attributes),
            key=lambda s: s.attributes["timespan.task.attempt"],
        )
        told = [(s.attributes.get("error.type"), s.attributes["timespan.task.state"]) for s in attempts]
        assert told == [("OSError", "retried"), ("KeyError", "retried"), (None, "finished")]
        assert "first" in attempts[0].status.description
        for before, after in itertools.pairwise(attempts):
            (link,) = after.links
            assert link.attributes["timespan.link.type"] == "retry" and link.context.span_id == sid(before)
        computes = sorted((s for s in spans if s.name == "compute"), key=lambda s: s.start_time)
        assert [s.attributes.get("error.type") for s in computes] == ["OSError", "KeyError", None]
        assert [s.parent.span_id for s in computes] == [sid(s) for s in attempts]
    assert lab.value("timespan.retry.count") == 4


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_timeout_is_a_failure(lab: Lab, kind: str, gate: threading.Event) -> None:
    """The option `timeout` ends the task's span as a failure with our error, whenever its body ends."""

    async def forever() -> None:
        await asyncio.sleep(1e6)

    if kind == "plain":
        task = ts.spawn(gate.wait, ts.Options(timeout=0.02), 60)
    else:
        task = ts.spawn(forever, ts.Options(timeout=0.02))
    ts.wait(task)
    gate.set()
    poll(lambda: not ts.eager_context().core.running)
    span = task_span(lab.spans(), task)
    assert span.attributes["timespan.task.state"] == "failed" and span.attributes["error.type"].endswith(
        "TaskTimeoutError"
    )
