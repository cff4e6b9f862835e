"""Robustness within one process: timeouts, futures, asyncio, interrupts in bodies, size, memory, finalizers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sys
import threading
import tracemalloc
import weakref
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    failure,
    identity,
    outcome,
    poll,
    where,
)

# --- timeouts (ruling 17) --------------------------------------------------------------------------------


def test_ruling_17_a_timeout_leaves_the_task_alone(one: D.Context, gate: threading.Event) -> None:
    """Ruling 17: fetch, wait, waitany, waitall raise a builtin TimeoutError; the task goes on."""
    task = D.spawn(gate.wait, DEADLINE_S)
    queued = D.spawn(identity, 5)
    for attempt in (
        lambda: D.fetch(task, timeout=0.01),
        lambda: task.fetch(timeout=0.01),
        lambda: task.fetch(timeout=0),
        lambda: queued.wait(timeout=0.01),
        lambda: D.wait(queued, timeout=0.01),
        lambda: D.waitany([task, queued], timeout=0.01),
        lambda: D.waitall([task, queued], timeout=0.01),
        lambda: list(D.as_completed([task, queued], timeout=0.01)),
    ):
        with pytest.raises(TimeoutError) as caught:
            attempt()
        assert isinstance(caught.value, concurrent.futures.TimeoutError)
        assert isinstance(caught.value, ts.TimespanError)
    assert not task.isready() and not queued.isready()
    gate.set()
    assert task.fetch(timeout=DEADLINE_S) is True and queued.fetch(timeout=DEADLINE_S) == 5


def test_ruling_17_a_body_s_own_timeout_error_is_its_failure() -> None:
    """Ruling 17: a TimeoutError raised by the body is the task's failure, not a timeout of the fetch."""

    def body() -> None:
        raise TimeoutError("mine")

    assert outcome(D.spawn(body)) == (D.DTaskFailedError, TimeoutError)


def test_ruling_17_finished_tasks_never_time_out() -> None:
    """Ruling 17: a result that is there is given whatever the timeout."""
    task = D.spawn(identity, 5)
    D.wait(task)
    assert task.fetch(timeout=0) == 5
    task.wait(timeout=0)


@pytest.mark.parametrize("bad", ["soon", -1, float("nan")])
def test_ruling_17_timeouts_that_are_none_are_refused(bad: Any, one: D.Context, gate: threading.Event) -> None:
    """Ruling 17: a timeout that is no number, or negative, raises; it never blocks for ever."""
    task = D.spawn(gate.wait, DEADLINE_S)
    with pytest.raises((ValueError, TypeError, TimeoutError)):
        task.fetch(timeout=bad)


# --- futures, asyncio, as_completed ----------------------------------------------------------------------


def test_ruling_17_future(one: D.Context, gate: threading.Event) -> None:
    """Ruling 17: `future()` is a concurrent future: result, exception with cause, callbacks."""
    blocked = D.spawn(gate.wait, DEADLINE_S)
    future = blocked.future()
    assert isinstance(future, concurrent.futures.Future) and not future.done()
    called: list[Any] = []
    future.add_done_callback(lambda f: called.append(f.result()))
    gate.set()
    assert future.result(DEADLINE_S) is True
    poll(lambda: called == [True])
    error = D.spawn(boom).future().exception(DEADLINE_S)
    assert isinstance(error, D.DTaskFailedError)
    assert isinstance(D.unwrap_exception(error.__cause__), BoomError)
    many = [D.spawn(identity, n).future() for n in range(20)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(many, DEADLINE_S)) == list(range(20))


def test_ruling_17_cancelling_a_future_cancels_or_is_refused_but_never_hangs(one: D.Context) -> None:
    """Ruling 17: whatever `future.cancel()` answers, the task and the scheduler go on consistently."""
    task = D.spawn(identity, 5)
    future = task.future()
    future.cancel()
    task.wait(timeout=DEADLINE_S)
    assert D.spawn(identity, 6).fetch(timeout=DEADLINE_S) == 6
    D.check(D.eager_state())


def test_ruling_17_a_future_of_an_unlaunched_task() -> None:
    """§1.2: the future of a task that is not launched raises like fetch, or follows the task once it is."""
    with D.bulk():
        task = D.spawn(identity, 5)
        try:
            future = task.future()
        except D.ConcurrencyViolationError:
            future = None
    assert (future or task.future()).result(DEADLINE_S) == 5


def test_await() -> None:
    """Ruling 17: `await task` gives the value, several times and in many coroutines, and never blocks the loop."""

    async def main() -> Any:
        gate = threading.Event()
        blocked = D.spawn(gate.wait, DEADLINE_S)
        waiter = asyncio.create_task(_await(blocked))
        await asyncio.sleep(0)
        assert not waiter.done()
        gate.set()
        assert await waiter is True and await blocked is True
        tasks = [D.spawn(identity, n) for n in range(100)]
        return await asyncio.gather(*tasks, *map(_await, tasks))

    assert asyncio.run(asyncio.wait_for(main(), DEADLINE_S)) == [*range(100), *range(100)]


async def _await(task: D.DTask) -> Any:
    return await task


def test_await_of_a_failure_and_a_cancellation() -> None:
    """Ruling 17: awaiting raises `DTaskFailedError` with its cause; of a cancelled task a cancellation."""

    async def main() -> None:
        with pytest.raises(D.DTaskFailedError) as caught:
            await D.spawn(boom)
        assert isinstance(D.unwrap_exception(caught.value.__cause__), BoomError)
        gate = threading.Event()
        blocked = D.spawn(gate.wait, DEADLINE_S)
        D.cancel(blocked)
        with pytest.raises((D.DTaskFailedError, asyncio.CancelledError)):
            await blocked
        gate.set()

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_await_with_a_timeout_leaves_the_task_alone(gate: threading.Event) -> None:
    """Ruling 17: `asyncio.wait_for` may give up; the task goes on and can be awaited again."""

    async def main() -> None:
        task = D.spawn(gate.wait, DEADLINE_S)
        with pytest.raises((asyncio.TimeoutError, TimeoutError)):
            await asyncio.wait_for(_await(task), 0.02)
        assert not task.isready()
        gate.set()
        assert await task is True

    asyncio.run(main())


def test_as_completed(gate: threading.Event) -> None:
    """Ruling 17: `as_completed` yields each task once, finished ones first, failures without raising."""
    with D.Context(threads=2):
        slow = D.spawn(gate.wait, DEADLINE_S)
        quick, bad = D.spawn(int), D.spawn(boom)
        order = []
        for task in D.as_completed([slow, quick, bad]):
            assert task.isready()
            order.append(task)
            if len(order) == 2:
                gate.set()
        assert set(order[:2]) == {quick, bad} and order[2] is slow
        assert list(D.as_completed([])) == []
        assert len(list(D.as_completed([quick, bad]))) == 2


# --- helping (ruling 13) ---------------------------------------------------------------------------------


def test_ruling_13_never_more_bodies_than_slots() -> None:
    """Ruling 13: the fetching thread borrows an idle slot, so no more than `threads` bodies run at once."""
    for threads in (1, 2):
        now, most, lock = [0], [0], threading.Lock()

        def body(now: list[int] = now, most: list[int] = most, lock: threading.Lock = lock) -> None:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            sum(range(20_000))
            with lock:
                now[0] -= 1

        with D.Context(threads=threads):
            for _ in range(5):
                tasks = [D.spawn(body) for _ in range(30)]
                fetchers = [threading.Thread(target=D.fetch_all, args=(tasks[n::3],)) for n in range(3)]
                for fetcher in fetchers:
                    fetcher.start()
                for fetcher in fetchers:
                    fetcher.join(DEADLINE_S)
        assert most[0] <= threads


def test_ruling_13_no_help_with_a_timeout_or_in_an_event_loop() -> None:
    """Ruling 13: with a timeout, and inside an event loop, the fetching thread runs no body."""
    here = threading.get_ident()
    for _ in range(50):
        assert D.spawn(threading.get_ident).fetch(timeout=DEADLINE_S) != here

    async def main() -> set[int]:
        return {D.fetch(D.spawn(threading.get_ident)) for _ in range(50)}

    assert here not in asyncio.run(main())


def test_ruling_13_help_runs_only_what_the_target_needs(one: D.Context, gate: threading.Event) -> None:
    """Ruling 13: fetching one task inside a body never runs an unrelated task on top of it."""
    inside: list[int] = []

    def unrelated() -> None:
        inside.append(threading.get_ident())

    def body() -> int:
        others = [D.spawn(unrelated, D.Options(occupancy={Any: 1})) for _ in range(5)]
        mine = D.fetch(D.spawn(identity, 5))
        assert len(others) == 5
        return mine

    assert D.fetch(D.spawn(body)) == 5
    poll(lambda: len(inside) == 5)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_on_a_worker_thread_are_the_task_s_failure(stop: type[BaseException], one: D.Context) -> None:
    """Robustness: KeyboardInterrupt and SystemExit of a body on a worker thread fail that task and nothing else."""

    def body() -> None:
        raise stop("from the body")

    task = D.spawn(body)
    down = D.spawn(identity, task)
    with pytest.raises(D.DTaskFailedError) as caught:
        task.fetch(timeout=DEADLINE_S)
    assert isinstance(D.unwrap_exception(caught.value), stop)
    assert failure(down).root.id == task.id
    assert D.spawn(identity, 5).fetch(timeout=DEADLINE_S) == 5


# --- contexts (ruling 18) --------------------------------------------------------------------------------


def test_ruling_18_a_context_block_makes_it_current_and_waits() -> None:
    """Ruling 18: `with Context` makes it current; leaving waits for its tasks and shuts it down."""
    ran: list[int] = []
    outside = D.eager_context()
    with D.Context(threads=1) as context:
        assert D.eager_context() is context
        for n in range(50):
            D.spawn(ran.append, n)
    assert len(ran) == 50
    assert D.eager_context() is outside
    assert D.eager_state() is None


def test_ruling_18_contexts_nest() -> None:
    """Ruling 18: inside an inner block spawns go to the inner context, afterwards to the outer one again."""
    with D.Context(threads=1) as outer:
        a = D.spawn(D.task_id)
        with D.Context(threads=1) as inner:
            assert D.eager_context() is inner
            b = D.spawn(D.task_id)
        assert D.eager_context() is outer
        assert D.fetch(a) == a.id and D.fetch(b) == b.id and a.id != b.id


def test_ruling_18_an_exception_in_the_block_comes_out() -> None:
    """Ruling 18: leaving a context by an exception shuts it down and lets the exception through."""
    with pytest.raises(ZeroDivisionError), D.Context(threads=1):
        D.spawn(int)
        raise ZeroDivisionError
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0


def test_ruling_18_number_of_slots() -> None:
    """Ruling 18: at least two slots by default; the number asked for otherwise; not fewer than one."""
    with D.Context():
        D.fetch(D.spawn(int))
        assert D.num_processors() >= 2
    with D.Context(threads=3):
        pinned = [D.spawn(where, D.Options(scope=D.scope(worker=1, thread=n))) for n in (1, 2, 3)]
        assert [p.tid for p in D.fetch_all(pinned)] == [1, 2, 3]
    for bad in (0, -1, "many", 1.5):
        with pytest.raises((ValueError, TypeError)):
            D.Context(threads=bad)


def test_ruling_18_slots_do_not_stick_to_the_next_context() -> None:
    """Ruling 18: a context has its own number of slots, whatever the one before had, asked before or after a spawn."""
    for threads, others in ((1, 2), (2, 1), (3, 2)):
        with D.Context(threads=others):
            D.fetch(D.spawn(int))
        with D.Context(threads=threads):
            assert D.num_processors() == threads
            D.fetch(D.spawn(int))
            assert D.num_processors() == threads
    with D.Context(threads=1):
        D.fetch(D.spawn(int))
    with D.Context():
        meet = threading.Barrier(2)
        both = [D.spawn(meet.wait, 20) for _ in range(2)]
        assert sorted(t.fetch(timeout=DEADLINE_S) for t in both) == [0, 1]


def test_ruling_18_shutdown_twice_is_once() -> None:
    """Ruling 18: shutting down again, or before anything was started, does nothing."""
    context = D.Context(threads=1)
    context.shutdown()
    with context:
        D.fetch(D.spawn(int))
    context.shutdown()
    context.shutdown()


# --- mass ------------------------------------------------------------------------------------------------


def test_200_000_tasks() -> None:
    """Robustness: 200,000 tasks, half of them dependent, all run."""
    with D.Context(threads=2):
        first = [D.spawn(int, n) for n in range(100_000)]
        second = [D.spawn(add, t, 1) for t in first]
        assert D.fetch_all(second) == list(range(1, 100_001))


def test_a_chain_of_100_000(one: D.Context) -> None:
    """Robustness: a long chain is run and fetched without deep recursion."""
    t = D.spawn(identity, 0)
    for _ in range(100_000):
        t = D.spawn(add, t, 1)
    assert D.fetch(t) == 100_000


def test_wide_fan_in_and_fan_out(two: D.Context) -> None:
    """Robustness: one task with 20,000 dependents, and one with 20,000 inputs."""
    up = D.spawn(identity, 1)
    assert D.fetch(D.spawn(lambda *x: sum(x), *[D.spawn(identity, up) for _ in range(20_000)])) == 20_000


def test_a_waiting_task_is_small(one: D.Context, gate: threading.Event) -> None:
    """Robustness: a waiting task with its handle takes less than 1 KB."""
    count = 20_000
    up = D.spawn(gate.wait, DEADLINE_S)
    kept: list[Any] = [None] * count
    for _ in range(100):
        D.spawn(identity, up)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(count):
            kept[n] = D.spawn(identity, up)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert each < 1024, f"{each:.0f} bytes a waiting task"
    gate.set()
    D.waitall(kept)


def test_results_go_with_their_handles(one: D.Context) -> None:
    """§1.1, ruling 29: when the handle is dropped and nobody needs the result, its value is released."""

    class Value:
        pass

    task = D.spawn(Value)
    alive = weakref.ref(D.fetch(task))
    gc.collect()
    assert alive() is not None
    del task

    def gone() -> bool:
        gc.collect()
        return alive() is None

    poll(gone)


def test_arguments_go_when_the_body_is_done(one: D.Context) -> None:
    """§17.2: a finished task does not keep its arguments alive, even while its handle is held."""

    class Value:
        pass

    value = Value()
    alive = weakref.ref(value)
    task = D.spawn(lambda v: None, value)
    del value
    D.wait(task)
    D.spawn(int).fetch(timeout=DEADLINE_S)

    def gone() -> bool:
        gc.collect()
        return alive() is None

    poll(gone)
    assert task.isready()


def test_a_finalizer_may_use_the_scheduler(two: D.Context) -> None:
    """Ruling 11: finalizers run at any allocation; one that drops handles and spawns does not deadlock."""
    ran: list[int] = []

    class Value:
        def __init__(self) -> None:
            self.held = D.spawn(list)

        def __del__(self) -> None:
            D.spawn(ran.append, 1)

    for _ in range(200):
        loop = Value()
        loop.me = loop
        del loop
        D.spawn(int)
    gc.collect()
    poll(lambda: len(ran) == 200)


def test_spawning_from_many_threads(two: D.Context) -> None:
    """§1.1: spawn and fetch are thread-safe: ids stay unique, results correct."""
    ids: list[int] = []
    wrong: list[Any] = []

    def work(base: int) -> None:
        tasks = [D.spawn(add, base, n) for n in range(500)]
        ids.extend(t.id for t in tasks)
        if D.fetch_all(tasks) != [base + n for n in range(500)]:
            wrong.append(base)

    threads = [threading.Thread(target=work, args=(k * 1000,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(set(ids)) == 4000 and wrong == []


def test_many_bodies_block_in_fetch_at_once(one: D.Context, gate: threading.Event) -> None:
    """Ruling 14: bodies that block give the slot back; 50 of them wait for one task on a single slot."""
    target = D.spawn(gate.wait, D.Options(occupancy={Any: 0}), DEADLINE_S)
    begun: list[int] = []

    def body(n: int) -> int:
        begun.append(n)
        D.wait(target, timeout=DEADLINE_S)
        return n

    tasks = [D.spawn(body, n) for n in range(50)]
    poll(lambda: len(begun) == 50)
    gate.set()
    assert [t.fetch(timeout=DEADLINE_S) for t in tasks] == list(range(50))


def test_a_fetch_of_oneself_is_an_error_not_a_hang(one: D.Context) -> None:
    """§12's guard for handles: a body that fetches its own task can never succeed; with a timeout it says so."""
    box: list[D.DTask] = []
    ready = threading.Event()

    def body() -> None:
        ready.wait(DEADLINE_S)
        box[0].fetch(timeout=0.05)

    box.append(D.spawn(body))
    ready.set()
    kind = D.unwrap_exception(failure(box[0]))
    assert isinstance(kind, (TimeoutError, D.DynamicThunkError, D.ConcurrencyViolationError))


def test_fetch_of_something_else_is_an_error() -> None:
    """errors: fetching or waiting for what is neither a task nor data is refused with an error of ours."""
    for call in (lambda: D.fetch(5), lambda: D.wait("x"), lambda: D.waitall([1])):
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        assert isinstance(caught.value, ts.TimespanError)


def test_ruling_10_silence(capfd: pytest.CaptureFixture[str], two: D.Context) -> None:
    """Ruling 10: successes, failures, skips and cancellations print nothing."""
    bad = D.spawn(boom)
    tasks = [D.spawn(int), bad, D.spawn(identity, bad), D.spawn(int, D.Options(name="x"))]
    D.cancel(D.spawn(identity, tasks[0]))
    D.waitall(tasks)
    del bad, tasks
    gc.collect()
    two.shutdown()
    assert capfd.readouterr() == ("", "")


def test_no_threads_are_left_after_shutdown() -> None:
    """Ruling 18: leaving a context ends its threads."""
    before = set(threading.enumerate())
    for _ in range(5):
        with D.Context(threads=3):
            D.fetch_all([D.spawn(identity, n) for n in range(50)])

    def ended() -> bool:
        return not [t for t in set(threading.enumerate()) - before if "journal" not in t.name.lower()]

    poll(ended, "the end of the threads")


def test_recursion_limit_and_switch_interval_stay_as_they_were() -> None:
    """architecture §2: the interpreter's settings are not changed behind the user's back."""
    before = sys.getrecursionlimit(), sys.getswitchinterval(), threading.excepthook, sys.excepthook
    D.fetch_all([D.spawn(identity, n) for n in range(50)])
    assert (sys.getrecursionlimit(), sys.getswitchinterval(), threading.excepthook, sys.excepthook) == before
