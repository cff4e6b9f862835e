"""Issue 5, points 11 and 12: what users of asyncio, Dask, Ray and `concurrent.futures` reach for first."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import logging
import operator
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    done,
    failure,
    identity,
    of_task,
    outcome,
    poll,
    settled,
)


@pytest.fixture(params=["threads", "inline"])
def ctx(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Both drivers."""
    driver = "threads" if request.param == "threads" else D.InlineDriver(workers={1: 2}, seed=0)
    with D.Context(driver=driver) as context:
        yield context


class Peak:
    """Counts how many bodies are inside at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.entered = 0

    def __enter__(self) -> Peak:
        with self.lock:
            self.now += 1
            self.entered += 1
            self.most = max(self.most, self.now)
        return self

    def __exit__(self, *_: Any) -> None:
        with self.lock:
            self.now -= 1


class Flaky:
    """A body that fails so often, then gives the number of its attempt."""

    __name__ = "Flaky"

    def __init__(self, fail: int) -> None:
        self.fail, self.ran = fail, 0

    def __call__(self, *args: Any) -> int:
        self.ran += 1
        if self.ran <= self.fail:
            raise BoomError(self.ran)
        return self.ran


# --- retries, delays, time limits ------------------------------------------------------------------------


def test_issue5_12_retries(ctx: D.Context) -> None:
    """Issue 5.12: `retries=n` runs a failing body up to n times more; the value is that of the one that succeeds."""
    body = Flaky(2)
    task = D.spawn(body, D.Options(retries=2))
    assert D.fetch(D.spawn(add, task, 1)) == 4
    assert (D.fetch(task), body.ran) == (3, 3)


def test_issue5_12_retries_that_run_out(ctx: D.Context) -> None:
    """Issue 5.12: with retries used up the last error is the task's; dependents fail with it."""
    body = Flaky(10)
    task = D.spawn(body, D.Options(retries=3))
    down = D.spawn(identity, task)
    error = D.unwrap_exception(failure(done(task)))
    assert isinstance(error, BoomError) and error.args == (4,)
    assert body.ran == 4
    assert failure(done(down)).root.id == task.id


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_issue5_12_a_retry_of_a_task_that_waited_for_inputs(two: D.Context, gate: threading.Event, inputs: int) -> None:
    """Issue 5.12: a task that had to wait for its inputs is run again like any other, with the same inputs."""
    body = Flaky(2)
    ups = [D.spawn(gate.wait, DEADLINE_S) for _ in range(inputs)]
    task = D.spawn(lambda *x: (body(), x)[1], D.Options(retries=3), *ups)
    down = D.spawn(len, task)
    gate.set()
    assert task.fetch(timeout=DEADLINE_S) == (True,) * inputs
    assert down.fetch(timeout=DEADLINE_S) == inputs
    assert body.ran == 3
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    D.eager_context().wait_idle()
    D.check(D.eager_state())


def test_issue5_12_no_retries_by_default(ctx: D.Context) -> None:
    """§10, §14: without the option, or with 0, a body that raised is never run again."""
    for options in (D.Options(), D.Options(retries=0)):
        body = Flaky(1)
        D.wait(D.spawn(body, options))
        assert body.ran == 1


def test_issue5_12_a_success_is_not_repeated(ctx: D.Context) -> None:
    """Issue 5.12: retries are for failures only."""
    body = Flaky(0)
    assert D.fetch(D.spawn(body, D.Options(retries=5))) == 1
    assert body.ran == 1


def test_issue5_12_a_skipped_task_is_not_retried(ctx: D.Context) -> None:
    """Issue 5.12: a task whose upstream failed has nothing to retry; nor has one without a place to run."""
    body = Flaky(0)
    task = done(D.spawn(body, D.Options(retries=5), D.spawn(boom)))
    assert isinstance(D.unwrap_exception(failure(task)), BoomError) and body.ran == 0
    nowhere = D.Options(retries=5, scope=D.ExactScope(D.ThreadProc(9, 9)))
    assert outcome(done(D.spawn(body, nowhere))) == (D.DTaskFailedError, D.SchedulingError)


def test_issue5_12_attempts_in_the_log() -> None:
    """Issue 5.12: a retry is a new attempt in the events, with the same task id and one finish."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        task = D.spawn(Flaky(2), D.Options(retries=5))
        assert D.fetch(task) == 3
        events = settled(log, task)
    submitted = [e.timeline.attempt for e in of_task(events, task, "add_thunk") if e.phase == "start"]
    assert submitted == [1, 2, 3]
    for category in ("compute", "schedule", "enqueue"):
        assert [e.phase for e in of_task(events, task, category)] == ["start", "finish"] * 3
    assert [e.phase for e in of_task(events, task, "finish")] == ["start", "finish"]


def test_issue5_12_a_cancelled_task_is_not_retried(one: D.Context, gate: threading.Event) -> None:
    """Issue 5.12: cancelling ends a task with retries, while it runs and between two attempts."""
    ran = []

    def body() -> None:
        ran.append(1)
        raise BoomError("again")

    task = D.spawn(body, D.Options(retries=5, retry_delay=DEADLINE_S * 2))
    poll(lambda: ran)
    assert not task.isready()
    D.cancel(task)
    assert task.isready() and outcome(task)[1] is D.TaskCancelled
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    assert ran == [1]
    D.check(D.eager_state())


def test_issue5_12_other_tasks_run_during_the_delay(one: D.Context) -> None:
    """Issue 5.12: between two attempts the slot is free."""
    body = Flaky(1)
    task = D.spawn(body, D.Options(retries=1, retry_delay=DEADLINE_S * 2))
    poll(lambda: body.ran == 1)
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    assert not task.isready() and D.eager_state().running_count >= 1
    D.cancel(task)


def test_issue5_12_timeout(one: D.Context, gate: threading.Event) -> None:
    """Issue 5.12, ruling 17: a body over its `timeout` fails with a builtin TimeoutError; its slot is free."""
    task = D.spawn(gate.wait, D.Options(timeout=0.01), DEADLINE_S)
    down = D.spawn(identity, task)
    error = failure(task)
    assert isinstance(error, D.DTaskFailedError)
    inner = D.unwrap_exception(error)
    assert isinstance(inner, TimeoutError) and isinstance(inner, D.TimespanError)
    assert failure(down).root.id == task.id
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0


def test_issue5_12_in_time_is_no_timeout(two: D.Context) -> None:
    """Issue 5.12: a body within its limit is not touched; time spent waiting for inputs does not count."""
    up = D.spawn(time.sleep, 0.05)
    task = D.spawn(lambda x: "in time", D.Options(timeout=30), up)
    assert task.fetch(timeout=DEADLINE_S) == "in time"


@pytest.mark.parametrize(
    "bad",
    [{"retries": -1}, {"retries": 1.5}, {"retry_delay": -1}, {"timeout": 0}, {"timeout": -1}, {"timeout": "1s"}],
    ids=repr,
)
def test_issue5_12_values_that_cannot_work(bad: dict[str, Any]) -> None:
    """Issue 5: options that can't work are refused at once, by us."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.Options(**bad)
    assert isinstance(caught.value, D.TimespanError)


# --- the executor ----------------------------------------------------------------------------------------


def test_issue5_12_executor_submit() -> None:
    """Issue 5.12: `submit` gives a concurrent.futures.Future with the result."""
    with D.Executor(max_workers=2) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        future = executor.submit(add, 1, y=2)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(DEADLINE_S) == 3 and future.done()
        assert executor.submit(pow, 2, 5, mod=7).result(DEADLINE_S) == 4


def test_issue5_12_executor_works_with_the_futures_module() -> None:
    """Issue 5.12: `wait` and `as_completed` of concurrent.futures take the executor's futures."""
    with D.Executor(max_workers=2) as executor:
        futures = [executor.submit(identity, n) for n in range(20)]
        assert sorted(f.result() for f in concurrent.futures.as_completed(futures, DEADLINE_S)) == list(range(20))
        ready, pending = concurrent.futures.wait(futures, DEADLINE_S)
        assert (len(ready), len(pending)) == (20, 0)


def test_issue5_12_executor_map() -> None:
    """Issue 5.12: `map` gives the results in order, of several iterables too, and raises at the failing one."""
    with D.Executor(max_workers=2) as executor:
        assert list(executor.map(operator.mul, range(10), range(10, 20))) == [n * (n + 10) for n in range(10)]
        assert list(executor.map(identity, [], timeout=DEADLINE_S)) == []
        assert list(executor.map(identity, "abc", chunksize=2)) == ["a", "b", "c"]
        results = executor.map(lambda n: 10 // n, [5, 0, 2])
        assert next(results) == 2
        with pytest.raises(Exception) as caught:
            next(results)
        assert isinstance(D.unwrap_exception(caught.value), ZeroDivisionError)


def test_issue5_12_executor_map_timeout(gate: threading.Event) -> None:
    """Issue 5.12: `map(timeout=)` raises TimeoutError while a result is missing."""
    with D.Executor(max_workers=1) as executor:
        results = executor.map(gate.wait, [DEADLINE_S], timeout=0.01)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        gate.set()


def test_issue5_12_executor_errors_are_those_of_the_body() -> None:
    """Issue 5.12: code written for concurrent.futures catches the exception that the body raised."""
    with D.Executor(max_workers=1) as executor:
        future = executor.submit(boom)
        assert isinstance(D.unwrap_exception(future.exception(DEADLINE_S)), BoomError)
        with pytest.raises(BoomError):
            future.result(DEADLINE_S)


def test_issue5_12_executor_has_so_many_workers() -> None:
    """Issue 5.12: never more than `max_workers` bodies run at once."""
    peak = Peak()
    barrier = threading.Barrier(3)

    def body(n: int) -> int:
        with peak:
            if n < 3:
                barrier.wait(DEADLINE_S)
            return n

    with D.Executor(max_workers=3) as executor:
        assert list(executor.map(body, range(50))) == list(range(50))
    assert peak.most == 3


def test_issue5_12_executor_shutdown(gate: threading.Event) -> None:
    """Issue 5.12: `shutdown` waits for what was submitted; afterwards submit raises RuntimeError."""
    executor = D.Executor(max_workers=2)
    futures = [executor.submit(identity, n) for n in range(20)]
    executor.shutdown()
    assert [f.result(0) for f in futures] == list(range(20))
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(int)
    with pytest.raises(RuntimeError):
        executor.map(int, [1])


def test_issue5_12_executor_shutdown_cancels_on_request(gate: threading.Event) -> None:
    """Issue 5.12: `shutdown(cancel_futures=True)` cancels what has not begun; running bodies go on to their end."""
    executor = D.Executor(max_workers=1)
    begun = threading.Event()

    def body() -> str:
        begun.set()
        gate.wait(DEADLINE_S)
        return "ended"

    running = executor.submit(body)
    assert begun.wait(DEADLINE_S)
    queued = [executor.submit(int) for _ in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(f.cancelled() for f in queued)
    gate.set()
    assert running.result(DEADLINE_S) == "ended"
    with pytest.raises(concurrent.futures.CancelledError):
        queued[0].result(DEADLINE_S)


def test_issue5_12_executor_futures_can_be_cancelled(gate: threading.Event) -> None:
    """Issue 5.12: a future that has not begun is cancelled and never runs; a finished one isn't."""
    ran: list[int] = []
    with D.Executor(max_workers=1) as executor:
        begun = threading.Event()

        def body() -> None:
            begun.set()
            gate.wait(DEADLINE_S)

        running = executor.submit(body)
        assert begun.wait(DEADLINE_S)
        queued = executor.submit(ran.append, 1)
        assert queued.cancel() and queued.cancelled() and queued.done()
        gate.set()
        running.result(DEADLINE_S)
        assert not running.cancel()
    assert ran == []


def test_issue5_12_executor_is_traced() -> None:
    """Issue 5.12: what the executor runs has the scheduler's events: traces by changing one line."""
    log: list[Event] = []
    with D.Context(threads=2, log_sink=log), D.Executor(max_workers=2) as executor:
        assert executor.submit(add, 1, 2).result(DEADLINE_S) == 3
        poll(lambda: any(e.category == "finish" and e.phase == "finish" for e in list(log)))
    seen = {e.category for e in log}
    assert {"add_thunk", "schedule", "move", "compute", "finish"} <= seen
    assert [e.timeline.f.__name__ for e in log if e.category == "add_thunk" and e.phase == "start"] == ["add"]


def test_issue5_12_executor_in_an_event_loop() -> None:
    """Issue 5.11: `loop.run_in_executor` takes the executor."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, add, n, 1) for n in range(10)))

    with D.Executor(max_workers=2) as executor:
        assert asyncio.run(main()) == list(range(1, 11))


def test_issue5_12_executor_without_a_number() -> None:
    """Issue 5.12: `max_workers` may be left out; what is no number of workers is a ValueError or TypeError."""
    with D.Executor() as executor:
        assert executor.submit(int, "5").result(DEADLINE_S) == 5
    for bad in (0, -1, "two"):
        with pytest.raises((ValueError, TypeError)):
            D.Executor(max_workers=bad)


def test_issue5_12_executor_refuses_what_cannot_be_called() -> None:
    """Issue 5: `submit(5)` is a TypeError at once."""
    with D.Executor(max_workers=1) as executor, pytest.raises(TypeError):
        executor.submit(5)


# --- map over huge iterators -----------------------------------------------------------------------------


def test_issue5_12_map_in_order(ctx: D.Context) -> None:
    """Issue 5.12: `D.map` gives the results in order."""
    assert list(D.map(lambda n: n * n, range(500), max_pending=7)) == [n * n for n in range(500)]
    assert list(D.map(identity, [])) == []


def test_issue5_12_map_is_lazy(ctx: D.Context) -> None:
    """Issue 5.12: of an endless iterator no more is taken than the bound on what is pending."""
    taken = itertools.count()
    source = (next(taken) for _ in itertools.repeat(None))
    results = D.map(identity, source, max_pending=10)
    assert [next(results) for _ in range(25)] == list(range(25))
    assert next(taken) <= 25 + 10 + 1
    results.close() if hasattr(results, "close") else None


def test_issue5_12_map_bounds_what_is_pending(two: D.Context) -> None:
    """Issue 5.12: at no time are more than `max_pending` tasks submitted and unfetched."""
    most = 0
    for n, _ in enumerate(D.map(identity, range(2000), max_pending=16)):
        if n % 50 == 0:
            most = max(most, D.eager_state().running_count)
    assert most <= 16 + 2


def test_issue5_12_map_raises_at_the_failing_element(ctx: D.Context) -> None:
    """Issue 5.12: the failing element raises when its turn comes; those before it arrived."""
    results = D.map(lambda n: 10 // n, [5, 2, 0, 1], max_pending=4)
    assert [next(results), next(results)] == [2, 5]
    with pytest.raises(D.DTaskFailedError) as caught:
        next(results)
    assert isinstance(D.unwrap_exception(caught.value), ZeroDivisionError)


def test_issue5_12_map_with_an_iterator_that_raises(ctx: D.Context) -> None:
    """Issue 5: what the iterator raises comes out, after the results of what it gave before."""

    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise BoomError("no more")

    got = []
    with pytest.raises(BoomError):
        got.extend(D.map(identity, source(), max_pending=1))
    results = D.map(identity, source(), max_pending=10)
    with pytest.raises(BoomError):
        for value in results:
            got.append(value)
    assert set(got) <= {1, 2}


@pytest.mark.parametrize("bad", [0, -1, 1.5, "many"], ids=repr)
def test_issue5_12_map_bounds_that_cannot_work(bad: Any) -> None:
    """Issue 5: a bound below 1, or none, is refused at once, not at the first element."""
    with pytest.raises((ValueError, TypeError)) as caught:
        list(D.map(identity, [1], max_pending=bad))
    assert isinstance(caught.value, D.TimespanError)


def test_issue5_12_map_refuses_what_cannot_be_used() -> None:
    """Issue 5: no function, or nothing to iterate over, is a TypeError."""
    for f, items in ((5, [1]), (identity, 5)):
        with pytest.raises(TypeError):
            list(D.map(f, items))


# --- coroutine functions ---------------------------------------------------------------------------------


async def double(x: int) -> int:
    """2 * x, after a turn of the loop."""
    await asyncio.sleep(0)
    return 2 * x


def test_issue5_12_coroutine_bodies(ctx: D.Context) -> None:
    """Issue 5.12: a coroutine function is a body: its value is what it returns, an argument like any other."""
    task = D.spawn(double, 4)
    assert D.fetch(D.spawn(add, task, 1)) == 9
    assert D.fetch(D.spawn(double, D.spawn(double, 5))) == 20
    assert D.collect(D.fetch(task, raw=True)) == 8


def test_issue5_12_coroutine_callables(ctx: D.Context) -> None:
    """Issue 5.12: bound methods, partials and objects whose call is a coroutine work too."""

    class Service:
        async def ask(self, x: int) -> int:
            return await double(x)

        async def __call__(self, x: int) -> int:
            return await double(x) + 1

    assert D.fetch(D.spawn(Service().ask, 3)) == 6
    assert D.fetch(D.spawn(functools.partial(double, 7))) == 14
    assert D.fetch(D.spawn(Service(), 3)) == 7


def test_issue5_12_coroutine_environment(ctx: D.Context) -> None:
    """Issue 5.12, §3: within it a loop runs, and task, processor and scoped options are those of the task."""

    async def body() -> tuple[Any, ...]:
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        inner = await asyncio.create_task(double(1))
        return loop.is_running(), D.in_task(), D.task_id(), type(D.task_processor()), inner, D.get_options("name", None)

    with D.with_options(name="here"):
        task = D.spawn(body)
    assert D.fetch(task) == (True, True, task.id, D.ThreadProc, 2, "here")


def test_issue5_12_coroutine_failures(ctx: D.Context) -> None:
    """Issue 5.12: what a coroutine raises is the task's failure; retries apply."""
    calls: list[int] = []

    async def body() -> int:
        calls.append(1)
        await asyncio.sleep(0)
        if len(calls) < 3:
            raise BoomError(len(calls))
        return len(calls)

    assert isinstance(D.unwrap_exception(failure(done(D.spawn(body)))), BoomError)
    assert D.fetch(D.spawn(body, D.Options(retries=1))) == 3


def test_issue5_12_coroutines_await_tasks(two: D.Context) -> None:
    """Issue 5.11: `await task` works within a coroutine body, and gives the slot to the awaited one."""

    async def body(depth: int) -> int:
        return 0 if depth == 0 else 1 + await D.spawn(body, depth - 1)

    assert D.spawn(body, 10).fetch(timeout=DEADLINE_S) == 10


def test_issue5_12_coroutines_in_the_log() -> None:
    """Issue 5.12: the compute span of a coroutine body lasts until the coroutine is done."""
    log: list[Event] = []
    marks: list[int] = []

    async def body() -> None:
        await asyncio.sleep(0.001)
        marks.append(time.monotonic_ns())

    with D.Context(threads=1, log_sink=log):
        task = D.spawn(body)
        D.fetch(task)
        events = settled(log, task)
    start, finish = of_task(events, task, "compute")
    assert start.timestamp <= marks[0] <= finish.timestamp


def test_issue5_12_a_plain_function_that_returns_a_coroutine_is_no_surprise(two: D.Context) -> None:
    """Issue 5.12: many coroutine bodies one after the other leave neither loops nor warnings behind."""
    assert D.fetch_all([D.spawn(double, n) for n in range(200)]) == [2 * n for n in range(200)]
    gc.collect()


# --- named limits ----------------------------------------------------------------------------------------


def test_issue5_12_limits() -> None:
    """Issue 5.12: of the tasks with `limit="db"` never more than `set_limit` says run at once; all of them run."""
    peak, barrier = Peak(), threading.Barrier(2)

    def body(n: int) -> int:
        with peak:
            if n < 2:
                barrier.wait(DEADLINE_S)
            return n

    with D.Context(threads=4):
        D.set_limit("db", 2)
        tasks = [D.spawn(body, D.Options(limit="db"), n) for n in range(40)]
        poll(lambda: all(t.isready() for t in tasks))
        assert D.fetch_all(tasks) == list(range(40))
    assert peak.most == 2


def test_issue5_12_others_pass_by(gate: threading.Event) -> None:
    """Issue 5.12: tasks that wait for their limit hold no slot: tasks without it, or with another, go on."""
    with D.Context(threads=2):
        D.set_limit("narrow", 1)
        D.set_limit("wide", 5)
        begun = threading.Event()

        def body() -> None:
            begun.set()
            gate.wait(DEADLINE_S)

        holding = D.spawn(body, D.Options(limit="narrow"))
        assert begun.wait(DEADLINE_S)
        waiting = [D.spawn(int, D.Options(limit="narrow")) for _ in range(10)]
        assert D.spawn(int, "1").fetch(timeout=DEADLINE_S) == 1
        assert D.spawn(int, D.Options(limit="wide"), "2").fetch(timeout=DEADLINE_S) == 2
        assert not any(t.isready() for t in waiting)
        gate.set()
        poll(lambda: all(t.isready() for t in [holding, *waiting]))


def test_issue5_12_limits_come_back_after_every_end(gate: threading.Event) -> None:
    """Issue 5.12: failed, cancelled and timed out tasks give their place back."""
    with D.Context(threads=2):
        D.set_limit("db", 1)
        limited = D.Options(limit="db")
        for _ in range(3):
            bad = D.spawn(boom, limited)
            slow = D.spawn(gate.wait, D.Options(limit="db", timeout=0.01), DEADLINE_S)
            gone = D.spawn(gate.wait, limited, DEADLINE_S)
            D.cancel(gone)
            poll(lambda bad=bad, slow=slow, gone=gone: bad.isready() and slow.isready() and gone.isready())
        assert D.spawn(int, limited).fetch(timeout=DEADLINE_S) == 0


def test_issue5_12_a_limit_can_be_raised_meanwhile(gate: threading.Event) -> None:
    """Issue 5.12: raising a limit lets waiting tasks start."""
    begun = threading.Semaphore(0)

    def body() -> None:
        begun.release()
        gate.wait(DEADLINE_S)

    with D.Context(threads=3):
        D.set_limit("db", 1)
        tasks = [D.spawn(body, D.Options(limit="db")) for _ in range(3)]
        assert begun.acquire(timeout=DEADLINE_S)
        D.set_limit("db", 3)
        assert begun.acquire(timeout=DEADLINE_S) and begun.acquire(timeout=DEADLINE_S)
        gate.set()
        D.waitall(tasks)


def test_issue5_12_a_waiting_task_can_be_cancelled(gate: threading.Event) -> None:
    """§2: a task that waits for its limit is cancelled at once and never runs."""
    with D.Context(threads=2) as context:
        D.set_limit("db", 1)
        ran: list[int] = []
        holding = D.spawn(gate.wait, D.Options(limit="db"), DEADLINE_S)
        waiting = D.spawn(ran.append, D.Options(limit="db"), 1)
        D.cancel(waiting)
        assert waiting.isready() and outcome(waiting)[1] is D.TaskCancelled
        gate.set()
        holding.fetch(timeout=DEADLINE_S)
        context.wait_idle()
        D.check(D.eager_state())
    assert ran == []


def test_issue5_12_a_limit_for_a_block(gate: threading.Event) -> None:
    """§4.2: the limit may be given for a block of spawns."""
    peak = Peak()

    def body() -> None:
        with peak:
            time.sleep(0)

    with D.Context(threads=4):
        D.set_limit("db", 1)
        with D.with_options(limit="db"):
            tasks = [D.spawn(body) for _ in range(50)]
        D.waitall(tasks)
    assert (peak.most, peak.entered) == (1, 50)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "two"], ids=repr)
def test_issue5_12_limits_that_cannot_work(bad: Any) -> None:
    """Issue 5: a limit below 1, or none, is refused at once, by us."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.set_limit("db", bad)
    assert isinstance(caught.value, D.TimespanError)


def test_issue5_12_names_of_limits() -> None:
    """Issue 5: the option is a name."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.Options(limit=5)
    assert isinstance(caught.value, D.TimespanError)


# --- failures that nobody fetched ------------------------------------------------------------------------


def logged_errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The texts of the errors that the library logged, with their exceptions."""
    found = [r for r in list(caplog.records) if r.name == "otel_timespan" and r.levelno == logging.ERROR]
    return [logging.Formatter().format(r) for r in found]


def test_issue5_12_an_unfetched_failure_is_logged_once(one: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 5.12: a failed task that nobody fetched is logged once, when its handle is dropped."""

    def lonely() -> None:
        raise BoomError("nobody looked")

    task = D.spawn(lonely)
    D.wait(task)
    number = task.id
    assert logged_errors(caplog) == []
    del task

    def told() -> list[str]:
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
        return logged_errors(caplog)

    (text,) = poll(told)
    assert "nobody looked" in text and "lonely" in text and str(number) in text
    for _ in range(5):
        told()
    assert len(told()) == 1


def test_issue5_12_fetched_failures_are_not_logged(one: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 5.12: a failure that somebody saw (fetch, future, await) is not logged."""

    async def wait_for(task: D.DTask) -> None:
        with pytest.raises(D.DTaskFailedError):
            await task

    tasks = [D.spawn(boom) for _ in range(3)]
    failure(tasks[0])
    assert tasks[1].future().exception(DEADLINE_S) is not None
    asyncio.run(wait_for(tasks[2]))
    tasks.clear()
    for _ in range(5):
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
    D.eager_context().wait_idle()
    assert logged_errors(caplog) == []


def test_issue5_12_cancellations_are_not_logged(
    one: D.Context, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 5.12: a task that was cancelled has not failed: nothing is logged."""
    task = D.spawn(gate.wait, DEADLINE_S)
    down = D.spawn(identity, task)
    D.cancel(task)
    D.waitall([task, down])
    del task, down
    for _ in range(5):
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
    assert logged_errors(caplog) == []


def test_issue5_12_a_failure_seen_downstream_is_not_logged(one: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 5.12: whoever fetched a dependent saw the failure: its originator is not logged again."""
    task = D.spawn(identity, D.spawn(boom))
    assert isinstance(D.unwrap_exception(failure(task)), BoomError)
    del task
    for _ in range(5):
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
    assert logged_errors(caplog) == []


# --- asyncio ---------------------------------------------------------------------------------------------


def test_issue5_11_await_many(two: D.Context) -> None:
    """Issue 5.11: `await` and `asyncio.gather` take tasks; the loop is not blocked meanwhile."""
    gate = threading.Event()

    async def main() -> list[Any]:
        tasks = [D.spawn(gate.wait, DEADLINE_S), D.spawn(add, 1, 2)]

        async def wait_for(task: D.DTask) -> Any:
            return await task

        waiting = [asyncio.ensure_future(wait_for(t)) for t in tasks]
        assert await waiting[1] == 3
        gate.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [True, 3]


def test_issue5_11_async_for(two: D.Context) -> None:
    """Issue 5.11: `async for` over `as_completed` gives tasks as they finish, with an open loop."""

    async def main() -> list[Any]:
        gates = [threading.Event() for _ in range(2)]
        tasks = [D.spawn(lambda g=g, n=n: (g.wait(DEADLINE_S), n)[1]) for n, g in enumerate(gates)]
        seen = []
        gates[1].set()
        async for task in D.as_completed(tasks):
            assert isinstance(task, D.DTask)
            seen.append(await task)
            gates[0].set()
        return seen

    assert asyncio.run(main()) == [1, 0]


def test_issue5_11_async_for_over_failures(two: D.Context) -> None:
    """Issue 5.11: failed tasks arrive as well; awaiting them raises."""

    async def main() -> list[str]:
        seen = []
        async for task in D.as_completed([D.spawn(boom), D.spawn(int)]):
            try:
                seen.append(str(await task))
            except D.DTaskFailedError as error:
                seen.append(type(D.unwrap_exception(error)).__name__)
        return seen

    assert sorted(asyncio.run(main())) == ["0", "BoomError"]


def test_issue5_11_async_for_over_nothing_and_much(two: D.Context) -> None:
    """Issue 5.11: no tasks end the loop at once; a thousand arrive each once."""

    async def main(count: int) -> list[int]:
        return [await t async for t in D.as_completed([D.spawn(identity, n) for n in range(count)])]

    assert asyncio.run(main(0)) == []
    assert sorted(asyncio.run(main(1000))) == list(range(1000))


def test_issue5_11_async_for_with_a_timeout(one: D.Context, gate: threading.Event) -> None:
    """Issue 5.11, ruling 17: the timeout of as_completed is a TimeoutError in `async for` too."""

    async def main() -> None:
        async for _ in D.as_completed([D.spawn(gate.wait, DEADLINE_S)], timeout=0.01):
            raise AssertionError("not reached")

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(main())
    assert isinstance(caught.value, D.TimespanError)


def test_issue5_11_progress(two: D.Context, capfd: pytest.CaptureFixture[str]) -> None:
    """Issue 5.11: `progress(tasks)` goes over the tasks as they finish, and raises for none of them."""
    tasks = [D.spawn(identity, n) for n in range(20)] + [D.spawn(boom)]
    seen = list(D.progress(tasks))
    assert sorted(t.id for t in seen) == [t.id for t in tasks]
    assert all(t.isready() for t in tasks)
    assert isinstance(D.unwrap_exception(failure(tasks[-1])), BoomError)
