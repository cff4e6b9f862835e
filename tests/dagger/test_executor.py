"""The `Executor` beside `ThreadPoolExecutor`: what both do alike. Its own ways: acceptance/test_acc_executor.py."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import functools
import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger import executor as executor_module
from tests.dagger.acceptance.stubs import held
from tests.dagger.acceptance.support import DEADLINE_S, BoomError, boom, poll

Make = Callable[..., Any]


@pytest.fixture(params=[cf.ThreadPoolExecutor, D.Executor], ids=["thread_pool", "ours"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes executors of one of the two kinds, and shuts them down at the end."""
    made: list[Any] = []

    def executor(*args: Any, **kwargs: Any) -> Any:
        made.append(request.param(*args, **kwargs))
        return made[-1]

    executor.kind = request.param  # type: ignore[attr-defined]  # for one that nobody shuts down
    yield executor
    for one in made:
        one.shutdown(wait=False, cancel_futures=True)


def test_submit(make: Make) -> None:
    """Positional and keyword arguments arrive, among them names that the machinery uses itself."""

    def record(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    executor = make(1)
    assert executor.submit(pow, 2, 8).result(DEADLINE_S) == 256
    given = {"self": 7, "fn": 6, "f": 5, "task": 4, "options": 3}
    assert executor.submit(record, 1, **given).result(DEADLINE_S) == ((1,), given)
    assert isinstance(executor, cf.Executor) and isinstance(executor.submit(int), cf.Future)


BINARY = functools.partial(int, base=2)


@pytest.mark.parametrize(
    ("f", "args", "value"),
    [
        (BINARY, ("101",), 5),
        (functools.partial(int, "101", base=2), (), 5),
        (functools.partial(functools.partial(pow, 2), 3), (), 8),
        (functools.partial(max, 5), (3,), 5),
        (functools.partial([1, 2].index, 2), (), 1),
    ],
)
def test_a_partial_keeps_its_arguments(make: Make, f: Any, args: tuple[Any, ...], value: Any) -> None:
    """What a partial was given counts, in a call, in an event loop, of a partial of a partial, of a method."""
    executor = make(1)
    assert executor.submit(f, *args).result(DEADLINE_S) == value

    async def main() -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, f, *args)

    assert asyncio.run(main()) == value


def test_a_partial_in_a_map(make: Make) -> None:
    """Each call of a `map` has the partial's arguments, alone and in chunks."""
    executor = make(2)
    for chunksize in (1, 2):
        assert list(executor.map(BINARY, ["101", "11", "1"], chunksize=chunksize)) == [5, 3, 1]


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
    """It breaks the executor: what was submitted and what will be raise BrokenThreadPool; `concurrent.futures` logs."""
    executor = make(1, initializer=boom)
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        with pytest.raises(cf.BrokenExecutor):
            executor.submit(int).result(DEADLINE_S)
        with pytest.raises(cf.BrokenExecutor):
            executor.submit(int).result(DEADLINE_S)
    told = [(record.name, record.levelname, record.message) for record in caplog.records]
    assert told == [("concurrent.futures", "CRITICAL", "Exception in initializer:")]
    assert caplog.records[0].exc_info is not None


def test_the_number_of_workers_is_there_for_libraries(make: Make) -> None:
    """`_max_workers` says how many calls run at once, as libraries ask a pool for it."""
    assert make(3)._max_workers == 3
    assert make()._max_workers >= 1


@pytest.mark.parametrize("given", [{}, {"chunksize": 3}])
def test_a_map_keeps_nothing_that_it_gave(make: Make, given: dict[str, Any]) -> None:
    """A result that was taken from a `map` lives as long as its taker keeps it."""

    class Thing:
        pass

    for thing in make(2).map(lambda _: Thing(), range(12), **given):
        ref = weakref.ref(thing)
        del thing
        poll(lambda ref=ref: gc.collect() is not None and ref() is None)


def test_a_done_future_keeps_no_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of an executor that was dropped end, whoever keeps its results."""
    monkeypatch.setattr(executor_module, "LOOK_AGAIN_S", 0.02)
    services = ("dagger-janitor", "dagger-timer", "dagger-calls")
    before = set(threading.enumerate())
    futures = [make.kind(3).submit(int, n) for n in range(5)]  # type: ignore[attr-defined]
    assert [future.result(DEADLINE_S) for future in futures] == list(range(5))
    poll(lambda: gc.collect() is not None and {t.name for t in set(threading.enumerate()) - before} <= {*services})


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
