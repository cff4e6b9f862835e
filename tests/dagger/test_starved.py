"""Where the system gives no threads, tasks run in those that wait for them, or fail and say why."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D


@pytest.fixture(params=["cold", "warm"])
def starved(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A context for which no thread can be started: none at all, or none but those that are there."""

    def refuse(*args: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with D.Context(threads=2) as context, monkeypatch.context() as patch:
        if request.param == "warm":
            D.spawn(int).fetch(timeout=60)
        for module, name in ((_thread, "start_new_thread"), (threading, "_start_new_thread")):
            patch.setattr(module, name, refuse)
        if hasattr(threading, "_start_joinable_thread"):
            patch.setattr(threading, "_start_joinable_thread", refuse)
        yield patch
        patch.undo()
        assert D.fetch(D.spawn(int), timeout=60) == 0
        context.wait_idle()


def add(*values: int) -> int:
    """Their sum."""
    return sum(values)


def nested(depth: int) -> int:
    """A body in a body in a body ..."""
    return 1 + D.fetch(D.spawn(nested, depth - 1)) if depth else 0


@pytest.mark.parametrize("timeout", [None, 60])
def test_tasks_run_where_they_are_waited_for(starved: pytest.MonkeyPatch, timeout: float | None) -> None:
    """A graph, with and without a time limit of the wait."""
    leaves = [D.spawn(add, n) for n in range(10)]
    assert D.spawn(add, *leaves).fetch(timeout=timeout) == 45
    assert [leaf.fetch(timeout=timeout) for leaf in leaves] == list(range(10))


def test_bodies_that_wait(starved: pytest.MonkeyPatch) -> None:
    """Some inside each other end; very many get the error of those that are too deep."""
    assert D.fetch(D.spawn(nested, 8), timeout=60) == 8
    with pytest.raises(D.DTaskFailedError, match="no thread can be started"):
        D.fetch(D.spawn(nested, 400), timeout=60)


@pytest.mark.parametrize(
    "options",
    [
        {"scope": D.ExactScope(D.ThreadProc(1, 1))},
        {"occupancy": {Any: 0.5}},
        {"occupancy": {Any: 0}},
        {"limit": "starved"},
        {"retries": 2},
    ],
    ids=repr,
)
def test_tasks_with_options(starved: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Pinned tasks, those that take a share of a slot, and limited ones run as well, and what depends on them."""
    D.set_limit("starved", 1)
    try:
        tasks = [D.spawn(add, D.Options(**options), n) for n in range(5)]
        assert D.spawn(add, *tasks).fetch(timeout=60) == 10
    finally:
        D.set_limit("starved", None)


def test_failures_are_told(starved: pytest.MonkeyPatch) -> None:
    """A failure reaches who depends on it."""
    broken = D.spawn(divmod, 1, 0)
    with pytest.raises(D.DTaskFailedError, match="ZeroDivisionError"):
        D.spawn(add, broken).fetch(timeout=60)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: D.waitany([D.spawn(add, 1)]),
        lambda: list(D.as_completed([D.spawn(add, 1), D.spawn(add, 2)])),
        lambda: list(D.map(add, range(20))),
        lambda: D.Executor().submit(add, 1).result(60),
        lambda: list(D.Executor().map(add, range(3))),
        lambda: D.waitall([D.spawn(add, 1)], timeout=60),
    ],
    ids=["waitany", "as_completed", "map", "Executor.submit", "Executor.map", "waitall"],
)
def test_all_ways_to_wait(starved: pytest.MonkeyPatch, wait: Callable[[], Any]) -> None:
    """None of them waits for a thread that will never come."""
    wait()


async def coroutine() -> None:
    """A body that needs the event loop's thread."""


def test_what_needs_a_thread_of_its_own_fails(starved: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one to keep the time, or to run an event loop, a task fails at once with that as its reason."""
    from otel_timespan.dagger.service import timers

    monkeypatch.setattr(timers, "_keeper", timers._Timekeeper())
    tasks = [
        D.spawn(add, D.Options(timeout=60), 1),
        D.spawn(divmod, D.Options(retries=1, retry_delay=60), 1, 0),
        D.spawn(coroutine),
    ]
    for task in tasks:
        with pytest.raises(D.DTaskFailedError, match="no thread can be started") as raised:
            task.fetch(timeout=60)
        error = D.unwrap_exception(raised.value)
        assert isinstance(error, D.SchedulingError) and error.code == "no_threads"
