"""The `Executor`: what users of `concurrent.futures` reach for first, and what ours does besides a thread pool."""

from __future__ import annotations

import asyncio
import concurrent.futures
import concurrent.futures as cf
import contextlib
import contextvars
import functools
import gc
import itertools
import operator
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger import executor as executor_module
from otel_timespan.dagger.executor import TaskFuture
from otel_timespan.timespans import Event
from tests.dagger.acceptance.stubs import Meter, held
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    finish,
    identity,
    poll,
    program,
    run_program,
)


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
    meter = Meter()
    barrier = threading.Barrier(3)

    def body(n: int) -> int:
        with meter.inside():
            if n < 3:
                barrier.wait(DEADLINE_S)
            return n

    with D.Executor(max_workers=3) as executor:
        assert list(executor.map(body, range(50))) == list(range(50))
    assert meter.most == 3


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


# --- what a thread pool does not have ------------------------------------------------------------------------


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


def test_a_coroutine_leaves_an_executor_whose_calls_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A future that is done holds nobody up, even if the thread that ended it has not come to the next line yet."""
    gate = threading.Event()
    resolve = TaskFuture._resolve

    def resolve_and_wait(future: TaskFuture) -> None:
        resolve(future)
        gate.wait(DEADLINE_S)

    monkeypatch.setattr(TaskFuture, "_resolve", resolve_and_wait)

    async def body() -> int:
        with D.Executor() as executor:
            return await asyncio.wrap_future(executor.submit(int, 5))

    with D.Context(threads=1):
        try:
            assert D.spawn(body).fetch(timeout=DEADLINE_S) == 5
        finally:
            gate.set()
