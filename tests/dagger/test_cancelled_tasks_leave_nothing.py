"""Issue 5, figures: 10,000 cancelled tasks leave no memory and no ids behind, wherever they were."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.context import unfinished_by_id
from otel_timespan.dagger.service import timers
from otel_timespan.dagger.tasks.dtask import Live

MANY = 10_000
DEADLINE_S = 60.0
KINDS = (D.DTask, Live, D.CancelToken, D.DRef, D.Options)


class Held:
    """An argument."""


def eventually(condition: Callable[[], Any]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


def alive() -> dict[str, int]:
    """How many objects there are of each kind that a task brings along."""
    gc.collect()
    counts = dict.fromkeys((*KINDS, Held), 0)
    for found in gc.get_objects():
        if type(found) in counts:
            counts[type(found)] += 1
    return {kind.__name__: count for kind, count in counts.items()}


def nothing_more(before: dict[str, int]) -> bool:
    """Whether there are no more of them than before. Fewer there may be: what an earlier test left."""
    now = alive()
    return all(now[kind] <= count for kind, count in before.items())


@pytest.fixture
def busy() -> Iterator[tuple[D.Context, D.DTask]]:
    """A context of one slot, and the task whose body keeps it until the end."""
    gate, begun = threading.Event(), threading.Event()

    def blocker() -> None:
        begun.set()
        gate.wait(DEADLINE_S)

    with D.Context(threads=1) as context:
        try:
            task = D.spawn(blocker)
            assert begun.wait(DEADLINE_S)
            D.set_limit("one", 1)
            yield context, task
        finally:
            D.set_limit("one", None)
            gate.set()


def _queued(blocker: D.DTask) -> D.DTask:
    return D.spawn(id, Held())


def _waiting(blocker: D.DTask) -> D.DTask:
    return D.spawn(max, blocker, Held(), blocker)


def _pinned(blocker: D.DTask) -> D.DTask:
    return D.spawn(id, D.Options(scope=D.ExactScope(D.ThreadProc(1, 1))), Held())


def _limited(blocker: D.DTask) -> D.DTask:
    return D.spawn(id, D.Options(timeout=3600.0, retries=2), Held())


def _for_a_place(blocker: D.DTask) -> D.DTask:
    return D.spawn(id, D.Options(limit="one"), Held())


def _asked(blocker: D.DTask) -> D.DTask:
    task = D.spawn(id, Held())
    from otel_timespan.dagger.tasks.environment import token_of

    token_of(task)
    return task


@pytest.mark.parametrize("make", [_queued, _waiting, _pinned, _limited, _for_a_place, _asked])
@pytest.mark.parametrize("oldest_first", [True, False])
def test_nothing_is_left(
    busy: tuple[D.Context, D.DTask], make: Callable[[D.DTask], D.DTask], oldest_first: bool
) -> None:
    """Cancelled where they wait, tasks are gone at once, while the slot and their upstream are still busy."""
    context, blocker = busy
    before, count = alive(), MANY if oldest_first else MANY // 5
    tasks = [make(blocker) for _ in range(count)]
    ids = [task.id for task in tasks]
    for task in tasks if oldest_first else reversed(tasks):
        task.cancel()
    assert all(task.isready() for task in tasks)
    del tasks, task
    assert nothing_more(before)
    core = context.start()
    assert list(core.unfinished()) == [blocker]
    assert not core.queue
    assert not blocker._subs
    assert not any(slot.heap for slot in core.slots.values())
    assert all(unfinished_by_id(number) is None for number in (ids[0], ids[count // 2], ids[-1]))
    D.check(core)


def test_cancelling_everything_leaves_nothing(busy: tuple[D.Context, D.DTask]) -> None:
    """`cancel()` of all, the running one included, which is abandoned."""
    context, blocker = busy
    before = alive()
    tasks = [make(blocker) for make in (_queued, _waiting, _pinned) for _ in range(MANY // 3)]
    D.cancel()
    assert all(task.isready() for task in [blocker, *tasks])
    del tasks
    assert nothing_more({**before, "Live": before["Live"] + 1, "CancelToken": before["CancelToken"] + 1})  # blocker's
    assert list(context.start().unfinished()) == []


def test_memory_is_given_back(busy: tuple[D.Context, D.DTask]) -> None:
    """Three rounds of 10,000 cancelled tasks take no more memory than one did."""
    _, blocker = busy

    def round_of_cancellations() -> None:
        tasks = [D.spawn(int) for _ in range(MANY // 2)] + [D.spawn(int, blocker) for _ in range(MANY // 2)]
        for task in tasks:
            task.cancel()

    round_of_cancellations()
    gc.collect()
    tracemalloc.start()
    try:
        round_of_cancellations()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            round_of_cancellations()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 3 * MANY  # a byte a task


def test_abandoned_bodies_leave_nothing_when_they_end() -> None:
    """Tasks cancelled while they run go with the last line of their bodies; so do their results and tokens."""
    with D.Context(threads=4) as context:
        D.fetch(D.spawn(int))
        core = context.start()
        before = alive()
        gate = threading.Event()
        for _ in range(25):
            begun = threading.Semaphore(0)

            def body(begun: threading.Semaphore = begun) -> Held:
                begun.release()
                gate.wait(DEADLINE_S)
                return Held()

            tasks = [D.spawn(body) for _ in range(4)]
            for _ in range(len(tasks)):
                assert begun.acquire(timeout=DEADLINE_S)
            for task in tasks:
                task.cancel()
            del tasks, task, body
        gate.set()
        eventually(lambda: not core.running and core.driver.is_idle())
        eventually(lambda: nothing_more(before))
        D.check(core)


def test_forced_ones_leave_nothing() -> None:
    """Tasks whose bodies were interrupted go when their errors do, whose tracebacks hold them."""
    with D.Context(threads=2) as context:
        D.fetch(D.spawn(int))
        core = context.start()
        before = alive()

        def body(begun: threading.Event, held: Held) -> None:
            begun.set()
            while True:
                pass

        for _ in range(50):
            begun = threading.Event()
            task = D.spawn(body, begun, Held())
            assert begun.wait(DEADLINE_S)
            task.cancel(force=True)
            task.wait()
            del task
        eventually(lambda: not core.running and core.driver.is_idle())
        eventually(lambda: nothing_more(before))


def test_unlaunched_tasks_stay_cancelled() -> None:
    """A task that a queue holds back, cancelled meanwhile, is not launched when the block ends, and is gone."""
    ran: list[int] = []
    with D.Context(threads=1):
        D.fetch(D.spawn(int))
        before = alive()
        with D.bulk():
            tasks = [D.spawn(ran.append, n) for n in range(100)]
            downs = [D.spawn(ran.append, task) for task in tasks]
            for task in tasks[::2]:
                task.cancel()
        D.waitall([*tasks, *downs])
        assert sorted(n for n in ran if n is not None) == list(range(1, 100, 2))
        assert ran.count(None) == 50
        for task in tasks[::2]:
            with pytest.raises(D.DTaskFailedError):
                task.fetch()
        del tasks, downs, task
        eventually(lambda: nothing_more(before))


def test_a_task_between_two_attempts_stays_cancelled() -> None:
    """Cancelled while it waits for its next attempt, a task does not run again, and its timer goes at once."""
    with D.Context(threads=1) as context:
        D.fetch(D.spawn(int))
        core, before, pending = context.start(), alive(), len(timers._keeper._due)
        attempts: list[int] = []

        def body(held: Held) -> None:
            attempts.append(1)
            raise ValueError("again")

        tasks = [D.spawn(body, D.Options(retries=3, retry_delay=3600.0), Held()) for _ in range(200)]
        eventually(lambda: len(core.delayed) == 200)
        for task in tasks:
            task.cancel()
        assert not core.delayed
        assert len(timers._keeper._due) <= pending + timers.FEW
        assert len(attempts) == 200
        for task in tasks:
            with pytest.raises(D.DTaskFailedError) as caught:
                task.fetch()
            assert isinstance(D.unwrap_exception(caught.value), D.TaskCancelled)
            del caught
        del tasks, task
        eventually(lambda: nothing_more(before))


def test_a_time_limit_does_not_keep_its_task() -> None:
    """A task that ended in time is gone with its handle, however far its limit is."""
    with D.Context(threads=1):
        D.fetch(D.spawn(int))
        before, pending = alive(), len(timers._keeper._due)
        for _ in range(300):
            D.spawn(Held, D.Options(timeout=3600.0)).fetch()
        eventually(lambda: nothing_more(before))
        assert len(timers._keeper._due) <= pending + timers.FEW


def test_a_timer_that_was_dropped_is_not_called() -> None:
    """`Timer.cancel` in time, twice, and too late."""
    called: list[int] = []
    done = threading.Event()
    first = timers.call_later(3600.0, lambda: called.append(1))
    first.cancel()
    first.cancel()
    second = timers.call_later(0.0, done.set)
    assert done.wait(DEADLINE_S)
    second.cancel()
    assert called == []
