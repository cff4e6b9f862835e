"""The `Executor` beside `ThreadPoolExecutor`: what both must do alike, and what ours does besides (issue 5)."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import contextvars
import functools
import gc
import itertools
import logging
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger import executor as executor_module
from tests.dagger.acceptance.support import DEADLINE_S, BoomError, boom, finish, poll, program, run_program

Make = Callable[..., Any]


@pytest.fixture(params=[cf.ThreadPoolExecutor, D.Executor], ids=["thread_pool", "ours"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes executors of one of the two kinds, and shuts them down at the end."""
    made: list[Any] = []

    def executor(*args: Any, **kwargs: Any) -> Any:
        made.append(request.param(*args, **kwargs))
        return made[-1]

    yield executor
    for one in made:
        one.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that bodies wait for; opened at the end."""
    event = threading.Event()
    yield event
    event.set()


def held(executor: Any, gate: threading.Event, bodies: int = 1) -> list[Any]:
    """Futures of bodies that run and wait for the gate, one a worker."""
    begun = [threading.Event() for _ in range(bodies)]

    def body(own: threading.Event) -> bool:
        own.set()
        return gate.wait(DEADLINE_S)

    futures = [executor.submit(body, own) for own in begun]
    for own in begun:
        assert own.wait(DEADLINE_S)
    return futures


# ---- what both do alike ----------------------------------------------------------------------------------


def test_submit(make: Make) -> None:
    """Positional and keyword arguments arrive, among them names that the machinery uses itself."""

    def record(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    executor = make(1)
    assert executor.submit(pow, 2, 8).result(DEADLINE_S) == 256
    given = {"self": 7, "fn": 6, "f": 5, "task": 4, "options": 3}
    assert executor.submit(record, 1, **given).result(DEADLINE_S) == ((1,), given)
    assert isinstance(executor, cf.Executor) and isinstance(executor.submit(int), cf.Future)


def test_an_exception_is_the_body_s_own(make: Make) -> None:
    """`result` raises and `exception` returns the very object that the body raised, with its traceback."""
    error = BoomError("mine")

    def body() -> None:
        raise error

    future = make(1).submit(body)
    assert future.exception(DEADLINE_S) is error
    with pytest.raises(BoomError) as caught:
        future.result(DEADLINE_S)
    assert caught.value is error
    assert "body" in [entry.name for entry in caught.traceback]
    assert future.done() and not future.cancelled() and not future.running()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_base_exception_of_a_body_is_its_result(make: Make, kind: type[BaseException]) -> None:
    """SystemExit and its like end the call, not the worker."""

    def body() -> None:
        raise kind("from the body")

    executor = make(1)
    assert isinstance(executor.submit(body).exception(DEADLINE_S), kind)
    assert executor.submit(int, 5).result(DEADLINE_S) == 5


def test_states_of_a_future(make: Make, gate: threading.Event) -> None:
    """`running` and `done` say what is: neither while queued, running in the body, done after it."""
    executor = make(1)
    (running,) = held(executor, gate)
    queued = executor.submit(int)
    assert running.running() and not running.done()
    assert not queued.running() and not queued.done()
    with pytest.raises(cf.TimeoutError):
        running.result(timeout=0.01)
    with pytest.raises(cf.TimeoutError):
        queued.exception(timeout=0.01)
    gate.set()
    assert running.result(DEADLINE_S) is True and queued.result(DEADLINE_S) == 0
    assert running.done() and not running.running()


def test_cancel_of_a_queued_call(make: Make, gate: threading.Event) -> None:
    """A cancelled call never runs; cancelling twice says True twice; result and exception raise CancelledError."""
    ran: list[int] = []
    executor = make(1)
    (running,) = held(executor, gate)
    queued = executor.submit(ran.append, 1)
    called: list[Any] = []
    queued.add_done_callback(called.append)
    assert queued.cancel() and queued.cancel()
    assert queued.cancelled() and queued.done() and called == [queued]
    for ask in (queued.result, queued.exception):
        with pytest.raises(cf.CancelledError):
            ask(DEADLINE_S)
    gate.set()
    assert executor.submit(int).result(DEADLINE_S) == 0 and running.result(DEADLINE_S)
    assert ran == []


def test_cancel_of_a_running_or_finished_call_is_refused(make: Make, gate: threading.Event) -> None:
    """`cancel` of a body that has begun says False and changes nothing."""
    executor = make(1)
    (running,) = held(executor, gate)
    assert not running.cancel() and running.running()
    gate.set()
    assert running.result(DEADLINE_S) is True
    assert not running.cancel() and not running.cancelled()


def test_cancel_races_with_the_beginning(make: Make) -> None:
    """Of cancel and begin exactly one wins: what says cancelled never ran, what says not cancelled did."""
    executor = make(2)
    ran: list[int] = []
    futures = []
    for n in range(500):
        futures.append(executor.submit(ran.append, n))
        if n % 3 == 0:
            futures[n // 2].cancel()
        futures[n].cancel() if n % 2 else None
    cf.wait(futures, DEADLINE_S)
    assert sorted(ran) == [n for n, future in enumerate(futures) if not future.cancelled()]


def test_done_callbacks(make: Make, gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks run once each with the future, in order, late ones at once; one that raises harms nobody."""
    executor = make(1)
    called: list[Any] = []
    (running,) = held(executor, gate)
    running.add_done_callback(lambda future: called.append((1, future)))
    running.add_done_callback(lambda future: boom())
    running.add_done_callback(lambda future: called.append((2, future)))
    with caplog.at_level(logging.CRITICAL + 1):
        gate.set()
        running.result(DEADLINE_S)
        poll(lambda: len(called) == 2)
    running.add_done_callback(lambda future: called.append((3, future)))
    assert called == [(1, running), (2, running), (3, running)]
    assert executor.submit(int).result(DEADLINE_S) == 0


def test_a_callback_may_submit(make: Make) -> None:
    """A chain of calls, each submitted by the callback of the one before, comes to its end."""
    executor, ended = make(1), threading.Event()
    left = iter(range(200))

    def following(_: Any) -> None:
        if next(left, None) is None:
            ended.set()
        else:
            executor.submit(int).add_done_callback(following)

    executor.submit(int).add_done_callback(following)
    assert ended.wait(DEADLINE_S)


def test_wait(make: Make, gate: threading.Event) -> None:
    """`concurrent.futures.wait` with each of its conditions, and with cancelled futures among them."""
    executor = make(2)
    (slow,) = held(executor, gate)
    quick, bad = executor.submit(int), executor.submit(boom)
    done, left = cf.wait([slow, quick], DEADLINE_S, cf.FIRST_COMPLETED)
    assert done == {quick} and left == {slow}
    done, left = cf.wait([slow, bad], DEADLINE_S, cf.FIRST_EXCEPTION)
    assert done == {bad} and left == {slow}
    done, left = cf.wait([slow], 0.01)
    assert (done, left) == (set(), {slow})
    (other,) = held(executor, gate)
    cancelled = executor.submit(int)
    cancelled.cancel()
    gate.set()
    done, left = cf.wait([slow, other, quick, bad, cancelled], DEADLINE_S)
    assert len(done) == 5 and not left


def test_as_completed(make: Make, gate: threading.Event) -> None:
    """`concurrent.futures.as_completed` gives each once, finished ones first, and times out."""
    executor = make(2)
    (slow,) = held(executor, gate)
    quick = [executor.submit(int, n) for n in range(20)]
    iterator = cf.as_completed([slow, *quick, quick[0]], DEADLINE_S)
    assert set(itertools.islice(iterator, 20)) == set(quick)
    gate.set()
    assert list(iterator) == [slow]
    gate.clear()
    (stuck,) = held(executor, gate)
    with pytest.raises(cf.TimeoutError):
        list(cf.as_completed([stuck], 0.01))


def test_map_in_order(make: Make) -> None:
    """Results come in the order of the inputs, as many as the shortest input has; chunks make no difference."""
    executor = make(3)
    assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(executor.map(pow, range(10), itertools.repeat(2), chunksize=3)) == [n**2 for n in range(10)]
    assert list(executor.map(str, [])) == [] and list(executor.map(max, [1, 2], [3])) == [3]
    with pytest.raises(ValueError, match=r"."):
        D.Executor(1).map(str, [1], chunksize=0)


def test_map_raises_and_cancels_the_rest(make: Make, gate: threading.Event) -> None:
    """The first failure comes out where its result would have; what has not begun by then never runs."""
    executor = make(1)
    ran: list[int] = []

    def body(n: int) -> int:
        ran.append(n)
        if n == 1:
            gate.wait(DEADLINE_S)
            raise BoomError
        return n

    iterator = executor.map(body, range(50))
    assert next(iterator) == 0
    poll(lambda: ran == [0, 1])
    blocker = executor.submit(gate.wait, DEADLINE_S)  # behind them all
    gate.set()
    with pytest.raises(BoomError):
        next(iterator)
    assert list(iterator) == []
    blocker.result(DEADLINE_S)


def test_map_with_a_timeout(make: Make, gate: threading.Event) -> None:
    """The timeout counts from the call, raises TimeoutError in its place, and cancels the rest."""
    executor = make(1)
    iterator = executor.map(lambda n: gate.wait(DEADLINE_S) if n else n, range(3), timeout=0.2)
    assert next(iterator) == 0
    with pytest.raises(cf.TimeoutError):
        next(iterator)
    gate.set()
    assert executor.submit(int).result(DEADLINE_S) == 0


def test_map_closed_early_cancels_the_rest(make: Make, gate: threading.Event) -> None:
    """Closing the iterator cancels the calls that have not begun."""
    executor = make(1)
    ran: list[int] = []
    (running,) = held(executor, gate)
    iterator = executor.map(ran.append, range(100))
    # A generator that was never asked has nothing to clean up: ask once.
    asked = threading.Thread(target=lambda: next(iterator, None))
    asked.start()
    gate.set()
    asked.join(DEADLINE_S)
    iterator.close()
    assert running.result(DEADLINE_S) is True
    assert executor.submit(len, ran).result(DEADLINE_S) <= 100


def test_shutdown(make: Make, gate: threading.Event) -> None:
    """After a shutdown nothing is taken; what was submitted is done when it returns; twice does no harm."""
    executor = make(2)
    futures = [executor.submit(int, n) for n in range(100)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)
    executor.shutdown()
    with pytest.raises(RuntimeError):
        list(executor.map(int, [1]))


def test_shutdown_without_waiting(make: Make, gate: threading.Event) -> None:
    """`wait=False` returns at once; what was submitted is still done."""
    executor = make(1)
    (running,) = held(executor, gate)
    queued = executor.submit(int, 5)
    executor.shutdown(wait=False)
    assert not running.done() and not queued.done()
    gate.set()
    assert running.result(DEADLINE_S) is True and queued.result(DEADLINE_S) == 5


def test_shutdown_that_cancels(make: Make, gate: threading.Event) -> None:
    """`cancel_futures` cancels what has not begun, and leaves running calls alone."""
    executor = make(1)
    (running,) = held(executor, gate)
    queued = [executor.submit(int) for _ in range(20)]
    threading.Timer(0, lambda: (poll(lambda: all(f.cancelled() for f in queued)), gate.set())).start()
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in queued) and running.result(0) is True


def test_the_block_waits(make: Make) -> None:
    """Leaving the `with` block waits for all; an exception of the block comes out."""
    ran: list[int] = []
    with make(2) as executor:
        for n in range(50):
            executor.submit(ran.append, n)
    assert len(ran) == 50
    with pytest.raises(ZeroDivisionError), make(1):
        raise ZeroDivisionError


def test_many_threads_submit(make: Make) -> None:
    """Eight threads submit at once; each gets its own results."""
    executor = make(2)
    got: list[bool] = []

    def submits(n: int) -> None:
        futures = [executor.submit(pow, n, 2) for _ in range(100)]
        got.append([future.result(DEADLINE_S) for future in futures] == [n * n] * 100)

    threads = [threading.Thread(target=submits, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert got == [True] * 8


@pytest.mark.parametrize("workers", [0, -1])
def test_a_wrong_number_of_workers(make: Make, workers: int) -> None:
    """Zero or fewer workers are a ValueError."""
    with pytest.raises(ValueError, match="max_workers"):
        make(workers)


def test_as_many_at_once_as_workers(make: Make) -> None:
    """Four workers run four bodies at once, whatever the machine has."""
    barrier = threading.Barrier(4)
    executor = make(4)
    futures = [executor.submit(barrier.wait, DEADLINE_S) for _ in range(4)]
    assert sorted(future.result(DEADLINE_S) for future in futures) == [0, 1, 2, 3]


def test_an_initializer(make: Make) -> None:
    """The initializer runs once in each thread, before its first call."""
    made: list[int] = []
    local = threading.local()

    def initialise(value: int) -> None:
        local.value = value
        made.append(threading.get_ident())

    executor = make(2, initializer=initialise, initargs=(7,))
    assert [executor.submit(lambda: local.value).result(DEADLINE_S) for _ in range(50)] == [7] * 50
    assert 1 <= len(made) == len(set(made)) <= 2


def test_an_initializer_that_fails(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It breaks the executor: what was submitted and what will be raise BrokenThreadPool."""
    executor = make(1, initializer=boom)
    with caplog.at_level(logging.CRITICAL + 1):
        with pytest.raises(cf.BrokenExecutor):
            executor.submit(int).result(DEADLINE_S)
        with pytest.raises(cf.BrokenExecutor):
            executor.submit(int).result(DEADLINE_S)


def test_results_and_arguments_are_let_go(make: Make) -> None:
    """When the future is gone, neither the result nor an argument is kept alive by the executor."""

    class Thing:
        pass

    executor = make(1)
    argument = Thing()
    future = executor.submit(lambda given: Thing(), argument)
    refs = [weakref.ref(argument), weakref.ref(future.result(DEADLINE_S))]
    del argument, future
    executor.submit(int).result(DEADLINE_S)
    poll(lambda: gc.collect() is not None and [ref() for ref in refs] == [None, None])


def test_in_an_event_loop(make: Make, gate: threading.Event) -> None:
    """`run_in_executor` and `wrap_future` give results, errors and cancellation, and never block the loop."""
    executor = make(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, pow, 2, 5) == 32
        with pytest.raises(BoomError):
            await loop.run_in_executor(executor, boom)
        held(executor, gate)
        queued = executor.submit(int)
        wrapped = asyncio.wrap_future(queued)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        await asyncio.sleep(0)
        assert queued.cancelled()
        gate.set()
        assert await asyncio.gather(*(loop.run_in_executor(executor, int, n) for n in range(20))) == list(range(20))

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


# ---- what ours does besides ------------------------------------------------------------------------------


def test_bad_arguments_are_told_at_once() -> None:
    """What can't be called, unknown options and contexts that are none raise when they are given."""
    with D.Executor(1) as executor:
        with pytest.raises(D.NotCallableError):
            executor.submit(5)  # type: ignore[arg-type]
        for wrong in (0, True, -3):
            with pytest.raises(D.InvalidOptionError):
                executor.map(str, [1], chunksize=wrong)
    for wrong in ({"colour": 1}, {"context": 5}, {"max_workers": "many"}, {"retries": -1}):
        with pytest.raises(D.InvalidOptionError):
            D.Executor(**wrong)
    with pytest.raises(D.InvalidOptionError), D.Context(threads=1) as context:
        D.Executor(2, context=context)
    with pytest.raises(D.NotCallableError):
        D.Executor(initializer=5)  # type: ignore[arg-type]


def test_map_with_a_buffer() -> None:
    """`buffersize` reads no more inputs than it holds results that were not taken."""
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    with D.Executor(2) as executor:
        results = executor.map(str, inputs(), buffersize=3)
        assert len(taken) == 3
        assert [next(results) for _ in range(10)] == [str(n) for n in range(10)]
        assert len(taken) == 13
        results.close()  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            executor.map(str, [], buffersize=1.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(str, [], buffersize=0)


def test_chunks_are_tasks() -> None:
    """With `chunksize` several calls make one task, and tasks among the items are inputs."""
    with D.Context(threads=2) as context:
        log: list[Any] = []
        context.log_sink = log
        with D.Executor() as executor:
            items = [D.spawn(int, n) for n in range(10)]
            assert list(executor.map(pow, items, itertools.repeat(2), chunksize=4)) == [n * n for n in range(10)]
    names = [e.timeline.f.__name__ for e in log if (e.category, e.phase) == ("compute", "start")]
    assert names.count("pow") == 3


def test_tasks_and_chunks_are_inputs() -> None:
    """A `DTask` or `Chunk` as an argument is replaced by its value; an upstream's failure says whose it was."""
    with D.Executor(2) as executor:
        assert executor.submit(pow, D.spawn(int, 3), D.tochunk(2)).result(DEADLINE_S) == 9
        later = executor.submit(int, 4)
        assert executor.submit(lambda x: x + 1, x=later.task).result(DEADLINE_S) == 5
        bad = D.spawn(boom)
        error = executor.submit(str, bad).exception(DEADLINE_S)
        assert isinstance(error, D.DTaskFailedError) and error.root.id == bad.id


def test_the_log_sees_the_user_s_function() -> None:
    """Events name the function, not our wrapping; a private context logs where the current one does."""
    log: list[Any] = []
    with D.Context(threads=1) as context, D.Executor(1, name="load") as executor:
        executor.submit(str.upper, "a").result(DEADLINE_S)
        context.log_sink = log
        task = executor.submit(functools.partial(boom, 1)).task
        D.wait(task)
        poll(lambda: any(e.category == "finish" and e.phase == "finish" for e in log))
    told = next(e.timeline for e in log if e.category == "add_thunk" and e.phase == "start")
    assert told.f.__name__ == "boom" and told.name == "load"
    assert str(D.unwrap_exception(_failure(task))) == "the fuse blew"


def _failure(task: Any) -> BaseException:
    with pytest.raises(D.DTaskFailedError) as caught:
        task.fetch()
    return caught.value


def test_options_and_default_options_hold() -> None:
    """Options given to the executor, scoped ones and defaults of the function hold for its tasks."""
    tries: list[int] = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise BoomError
        return len(tries)

    with D.Context(threads=1), D.Executor(retries=5) as executor:
        assert executor.submit(flaky).result(DEADLINE_S) == 3
        D.set_default_option("name", flaky, (), "flaky one")
        with D.with_options(tag=7):
            task = executor.submit(flaky).task
        D.wait(task)
        assert (task.options.retries, task.options.tag, task.options.name) == (5, 7, "flaky one")


def test_without_a_number_it_goes_where_spawn_goes() -> None:
    """Without arguments the calls run in the current context, in a body in the body's, and shutdown leaves it up."""
    with D.Executor() as executor:
        with D.Context(threads=1) as context:
            assert executor.submit(int).task._core is context.core
            inner = D.spawn(lambda: executor.submit(int).task._core)
            assert inner.fetch() is context.core
        with D.Context(threads=1) as other:
            future = executor.submit(int)
            executor.shutdown()
            assert future.done() and other.core is not None and other.core.halted is None
    with D.Context(threads=1) as chosen, D.Executor(context=chosen) as executor, D.Context(threads=1):
        assert executor.submit(int).task._core is chosen.core


def test_a_private_context_ends_with_the_executor() -> None:
    """After the shutdown no thread of the private context is left, and scopes know the program's slots only."""
    before = D.num_processors()
    with D.Executor(5) as executor:
        core = executor.submit(int).task._core
        assert len(core.slots) == 5 and D.num_processors() == before
    assert core.halted is not None and core.context.core is None
    poll(lambda: not any(seat.thread.is_alive() for seat in core.driver.seats))
    again = D.Executor(1)
    gate = threading.Event()
    core = held(again, gate)[0].task._core
    again.shutdown(wait=False)
    gate.set()
    poll(lambda: core.halted is not None)


def test_contextvars_of_the_caller_hold() -> None:
    """A body sees the context variables of the code that submitted it (a thread pool's does not)."""
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var", default=0)
    with D.Executor(1) as executor:
        var.set(5)
        assert executor.submit(var.get).result(DEADLINE_S) == 5


def test_waiting_in_a_body_gives_the_slot_back() -> None:
    """Where a thread pool of one worker would wait for ever, a body that waits for a future lets it run."""

    def outer(executor: D.Executor) -> int:
        return executor.submit(int, 5).result() + executor.submit(int, 6).result(DEADLINE_S)

    with D.Executor(1) as executor:
        assert executor.submit(outer, executor).result(DEADLINE_S) == 11
        assert list(executor.map(outer, [executor] * 5)) == [11] * 5


def test_a_callback_that_fetches_takes_nothing_away_from_its_thread() -> None:
    """After a callback that fetches, bodies on that thread still give their slot back when they block."""
    with D.Context(threads=1), D.Executor() as executor:
        gate = threading.Event()
        first = executor.submit(gate.wait, DEADLINE_S)
        fetched: list[int] = []
        first.add_done_callback(lambda _: fetched.append(D.fetch(D.spawn(int, 3))))

        def blocks() -> int:
            return D.spawn(int, 7).fetch(timeout=DEADLINE_S)

        second = executor.submit(blocks)
        gate.set()
        assert second.result(DEADLINE_S) == 7 and fetched == [3]


def test_cancelled_from_elsewhere() -> None:
    """A task that is cancelled as a task cancels its future; a running one's future raises a CancelledError."""
    gate = threading.Event()
    with D.Executor(1) as executor:
        (running,) = held(executor, gate)
        queued = executor.submit(int)
        D.cancel(queued.task)
        assert queued.cancelled()
        D.cancel(running.task)
        with pytest.raises(cf.CancelledError):
            running.result(DEADLINE_S)
        assert not running.cancelled() and running.done()
        gate.set()
        late = executor.submit(int)
        assert late.result(DEADLINE_S) == 0


def test_a_cancelled_call_is_a_cancelled_task() -> None:
    """Cancelling a queued future cancels its task: the log says so and no queue keeps it."""
    log: list[Any] = []
    gate = threading.Event()
    with D.Context(threads=1, log_sink=log) as context, D.Executor() as executor:
        held(executor, gate)
        queued = [executor.submit(int) for _ in range(100)]
        waiting = executor.submit(str, queued[0].task)
        assert all(future.cancel() for future in queued)
        assert waiting.cancelled()
        gate.set()
        executor.shutdown()
        D.check(context.core)  # type: ignore[arg-type]
    states = [e.timeline.state for e in log if (e.category, e.phase) == ("finish", "finish")]
    assert states.count("cancellation") == 100 and states.count("skip") == 1


def test_a_halt_resolves_every_future() -> None:
    """When the scheduler goes down, no future is left pending."""
    gate = threading.Event()
    with D.Context(threads=1), D.Executor() as executor:
        (running,) = held(executor, gate)
        queued = [executor.submit(int) for _ in range(10)]
        D.cancel(halt_sch=True)
        assert running.done() and all(future.done() for future in queued)
        gate.set()
        assert executor.submit(int, 5).result(DEADLINE_S) == 5


def test_a_body_may_shut_its_executor_down() -> None:
    """A body that shuts down its own executor does not wait for itself."""
    executor = D.Executor(1)
    assert executor.submit(executor.shutdown).result(DEADLINE_S) is None
    with pytest.raises(RuntimeError):
        executor.submit(int)


def test_on_the_inline_driver() -> None:
    """On the deterministic driver `result`, `map` and `shutdown` step it; nothing hangs."""
    with D.Context(driver=D.InlineDriver(seed=1)) as context, D.Executor(context=context) as executor:
        assert executor.submit(pow, 2, 3).result() == 8
        assert list(executor.map(int, range(20), buffersize=4)) == list(range(20))
        futures = [executor.submit(int, n) for n in range(5)]
        executor.shutdown()
        assert [future.result() for future in futures] == list(range(5))


def test_at_the_end_of_the_program() -> None:
    """As with a thread pool, a program that ends waits for what it submitted."""
    out = run_program(
        """
        for make in (ts.Executor, lambda: ts.Executor(2)):
            executor = make()
            for n in range(3):
                executor.submit(lambda n: (time.sleep(0.05), sys.stdout.write(f"did {n}\\n")), n)
        """
    )
    assert sorted(out.split("\n")) == sorted(["did 0", "did 1", "did 2"] * 2 + [""])


def test_the_face_has_it() -> None:
    """`ts.Executor` is `D.Executor`."""
    assert ts.Executor is D.Executor


def test_an_executor_that_is_dropped_ends_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shutdown a private context ends, once the executor and its futures are gone and its tasks done."""
    monkeypatch.setattr(executor_module, "LOOK_AGAIN_S", 0.02)
    gate = threading.Event()
    executor = D.Executor(2)
    spawned: list[D.DTask] = []
    executor.submit(lambda: spawned.append(D.spawn(gate.wait, DEADLINE_S))).result(DEADLINE_S)
    core = spawned[0]._core
    del executor
    gc.collect()
    assert not spawned[0].isready() and core.halted is None
    gate.set()
    poll(lambda: core.halted is not None)
    assert spawned[0].fetch() is True
    poll(lambda: not any(seat.thread.is_alive() for seat in core.driver.seats))


def test_ctrl_c_ends_the_waiting_at_the_end() -> None:
    """A program that waits at its end for a call that never ends goes on to end at Ctrl-C."""
    process = program("ts.Executor(1).submit(threading.Event().wait)\nprint('end', flush=True)")
    assert process.stdout is not None and process.stdout.readline() == "end\n"
    while process.poll() is None:  # it may not wait yet, or no more
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    finish(process)


def test_after_a_fork() -> None:
    """A forked child has nothing of the parent's calls to wait for, and may use the executor itself."""
    out = run_program(
        """
        gate = threading.Event()
        executor = ts.Executor(2)
        executor.submit(gate.wait)
        child = os.fork()
        if child == 0:
            print("child", executor.submit(int, 5).result(), flush=True)
            sys.exit(0)
        print("status", os.waitpid(child, 0)[1], flush=True)
        gate.set()
        """
    )
    assert out == "child 5\nstatus 0\n"
