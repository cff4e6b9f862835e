"""What of the code around a `spawn` is there in bodies on workers."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.service import surroundings
from tests.dagger.processes.bodies import REQUEST, add, current, request, trace

LOCAL: contextvars.ContextVar[str] = contextvars.ContextVar("local")


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variable is registered for one test."""
    monkeypatch.setattr(surroundings, "_carried", {})
    D.carry(REQUEST)
    D.carry(REQUEST)
    token = REQUEST.set("none")
    yield
    REQUEST.reset(token)


def test_registered_variables_travel(on_workers: D.Context, carried: None) -> None:
    """With their value at the spawn, and on to what the body spawns; others don't."""
    REQUEST.set({"user": 7})
    task = D.spawn(request)
    REQUEST.set("later")
    assert D.fetch(task) == ({"user": 7}, {"user": 7})
    assert D.fetch(D.spawn(request)) == ("later", "later")


def test_a_variable_that_is_not_registered_does_not_travel(two_workers: list[int]) -> None:
    """It may mean something here only."""
    surroundings._carried.clear()
    with D.Context(procs=D.cluster.add_workers(1)) as context:
        try:
            token = REQUEST.set("here")
            assert D.fetch(D.spawn(current)) == "none"
            REQUEST.reset(token)
        finally:
            D.cluster.remove_workers([proc.pid for proc in context.procs])


def test_a_value_that_can_not_travel_fails_its_task_alone(on_workers: D.Context, carried: None) -> None:
    """By the name of the variable."""
    token = REQUEST.set(threading.Lock())
    bad = D.spawn(add, 1)
    REQUEST.reset(token)
    with pytest.raises(D.InvalidOptionError, match="the value of the context variable REQUEST can't be sent"):
        D.fetch(bad)
    assert D.fetch(D.spawn(add, 2)) == 2


def test_a_function_that_travels_by_value_may_use_it(on_workers: D.Context, carried: None) -> None:
    """One that is registered; another one is refused by its name."""
    variable: contextvars.ContextVar[str] = REQUEST
    token = REQUEST.set("yes")
    assert D.fetch(D.spawn(lambda: variable.get())) == "yes"
    REQUEST.reset(token)
    other: contextvars.ContextVar[str] = contextvars.ContextVar("other", default="x")
    with pytest.raises(D.InvalidOptionError, match=r"'other' does not go to other processes unless D\.carry is told"):
        D.fetch(D.spawn(lambda: other.get()))


def test_what_can_not_be_carried() -> None:
    """No variable, or none that workers could find."""
    with pytest.raises(D.InvalidOptionError, match="carry takes a ContextVar, not 'request'"):
        D.carry("request")  # type: ignore[arg-type]
    nowhere: contextvars.ContextVar[int] = contextvars.ContextVar("nowhere")
    with pytest.raises(D.InvalidOptionError, match="'nowhere' can't be carried to workers: it must be a global"):
        D.carry(nowhere)


def test_the_trace_and_the_baggage_travel(on_workers: D.Context) -> None:
    """By the configured propagators, also where nothing is exported."""
    from opentelemetry import baggage, context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
    token = context.attach(baggage.set_baggage("user", "7", set_span_in_context(span)))
    try:
        task = D.spawn(trace)
    finally:
        context.detach(token)
    assert D.fetch(task) == (0xABC, "7", 0xABC)
    assert D.fetch(D.spawn(trace)) == (0, None, 0)
