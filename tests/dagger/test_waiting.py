"""A waiting thread helps where that makes no difference: it can be let go in time, whoever runs the body."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.drivers.brief import BRIEF_NS, DEEP, Brief, code_of, is_ordinary_here
from otel_timespan.dagger.drivers.helping import Own
from otel_timespan.dagger.drivers.slots import Seat


@pytest.fixture
def context() -> Iterator[D.Context]:
    """Two slots."""
    with D.Context(threads=2) as context:
        yield context


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What bodies wait for; opened at the end of the test."""
    gate = threading.Event()
    yield gate
    gate.set()


def known(f: Callable[..., Any], *args: Any) -> None:
    """Run bodies of this function until the main thread runs them itself."""
    while D.fetch(D.spawn(f, *args)) != threading.get_ident():
        time.sleep(0)


def where(gate: threading.Event | None = None) -> int:
    """The thread that runs this."""
    if gate is not None:
        gate.wait(60)
    return threading.get_ident()


def test_a_time_limit_lets_the_waiter_go(context: D.Context, gate: threading.Event) -> None:
    """A body over its time is left by whoever fetches it, though its function was always brief."""
    known(where)
    task = D.spawn(where, D.Options(timeout=0.05), gate)
    with pytest.raises(D.DTaskFailedError, match="ran longer than its timeout"):
        D.fetch(task)
    assert not gate.is_set()


def test_a_cancellation_lets_the_waiter_go(context: D.Context, gate: threading.Event) -> None:
    """Whoever fetches a body that nobody knows is told of its cancellation while the body still runs."""
    begun = threading.Event()

    def body() -> None:
        begun.set()
        gate.wait(60)

    task = D.spawn(body)
    threading.Thread(target=lambda: begun.wait(60) and task.cancel()).start()
    with pytest.raises(D.DTaskCancelledError):
        D.fetch(task)
    assert not gate.is_set()


def test_a_cancellation_lets_a_body_go(gate: threading.Event) -> None:
    """A body that fetches another one is told as soon, though it has the only slot."""
    begun = threading.Event()

    def inner() -> None:
        begun.set()
        gate.wait(60)

    box: list[D.DTask] = []

    def outer() -> bool:
        box.append(D.spawn(inner))
        with pytest.raises(D.DTaskCancelledError):
            box[0].fetch()
        return gate.is_set()

    with D.Context(threads=1):
        waiting = D.spawn(outer)
        assert begun.wait(60)
        box[0].cancel()
        assert waiting.fetch(timeout=60) is False


def deep(frames: int, f: Callable[[], Any]) -> Any:
    """`f()`, on a stack that is so much deeper."""
    return deep(frames - 1, f) if frames else f()


def test_a_deep_stack_is_no_place_for_a_body(context: D.Context) -> None:
    """A body may recurse as deep as on a thread of its own, wherever it is fetched."""

    def recurse(depth: int) -> int:
        return recurse(depth - 1) if depth else threading.get_ident()

    known(recurse, 3)
    room = sys.getrecursionlimit() - 150
    assert deep(room // 2, lambda: D.fetch(D.spawn(recurse, room))) != threading.get_ident()


def test_how_deep_a_stack_is_told_wherever_it_was_looked_at_before() -> None:
    """Shallower, deeper, or far deeper than at the last look: what counts is the stack at this one."""
    stack = Own()
    for frames in (0, 3, 0, 20, 3, DEEP, 3, 0, DEEP + 50, DEEP, 20, 0, *range(30), *range(30, 0, -7)):
        assert deep(frames, lambda: is_ordinary_here(stack)) is (frames < DEEP), frames


def test_a_seat_that_comes_up_sees_to_all_that_was_spawned_meanwhile(context: D.Context) -> None:
    """A spawn wakes nobody while a thread is on its way; which then takes a slot, and wakes others for the rest."""
    driver: Any = context.start().driver
    coming, parked = Seat(), Seat()
    driver.limbo.append(coming)
    driver.idle.append(parked)
    tasks = [D.spawn(int), D.spawn(int)]
    assert len(driver.free) == 2
    assert driver._take_handed(coming) is None
    driver.free += [seat.cell.pop() for seat in (coming, parked)]
    driver.wake()
    assert D.fetch_all(tasks, timeout=60) == [0, 0]


@pytest.mark.parametrize("trace", [sys.settrace, sys.setprofile])
def test_a_debugger_or_profiler_sees_no_bodies(context: D.Context, trace: Callable[[Any], None]) -> None:
    """What the waiting thread is traced with does not see some bodies, and others not."""
    known(where)
    before = sys.gettrace() if trace is sys.settrace else sys.getprofile()
    trace(lambda *event: None)
    try:
        found = {D.fetch(D.spawn(where)) for _ in range(20)}
    finally:
        trace(before)
    assert threading.get_ident() not in found


def test_bodies_inside_each_other(context: D.Context) -> None:
    """Bodies that wait inside each other, a thousand deep, find an end, though none of them is brief."""

    def nested(depth: int) -> int:
        return 1 + D.fetch(D.spawn(nested, depth - 1)) if depth else 0

    assert D.fetch(D.spawn(nested, 1000), timeout=60) == 1000


def test_what_is_known_of_functions() -> None:
    """A function is known by what nobody makes anew; a slow body makes it unknown, quick ones known again."""
    brief = Brief()

    def is_known(f: Any) -> bool:
        return id(code_of(f)) in brief.known

    def made(number: int) -> Callable[[], int]:
        return lambda: number

    assert not is_known(made(1))
    brief.learn(made(1), 1000)
    assert is_known(made(2)) and is_known(functools.partial(made(3)))
    brief.learn(made(1), 10 * BRIEF_NS)
    assert not is_known(made(2))
    for _ in range(4):
        brief.learn(made(1), 1000)
    assert is_known(made(2))


def test_what_functions_are_known_by() -> None:
    """Methods, decorated functions and C functions are themselves, and not what they have in common with all."""

    def decorated(f: Callable[[], int]) -> Callable[[], int]:
        @functools.wraps(f)
        def call() -> int:
            return f()

        return call

    one, two = decorated(lambda: 1), decorated(lambda: 2)
    assert code_of(one) is not code_of(two)
    assert code_of([].append) is code_of([1].append) is not code_of([].sort)
    assert code_of(dict.fromkeys) is not None and code_of(int) is int and code_of(len) is len
    assert code_of(threading.Event().set) is threading.Event.set.__code__
    assert code_of(threading.Event()) is threading.Event
    brief = Brief()
    for _ in range(100):
        brief.learn(time.sleep, 1000)
    assert not brief.known
