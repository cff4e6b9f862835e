"""Bodies that are coroutine functions: awaited on one loop, without a slot."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import signal
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    done,
    failure,
    finish,
    of_task,
    poll,
    program,
    run_program,
    settled,
)


async def double(n: int) -> int:
    """2 n, after a turn of the loop."""
    await asyncio.sleep(0)
    return 2 * n


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


# --- edges ------------------------------------------------------------------------------------------------


async def forever(begun: threading.Event | None = None) -> None:
    """Until it is cancelled."""
    if begun is not None:
        begun.set()
    await asyncio.sleep(1e6)


class Awaited:
    """A callable object whose call gives a coroutine."""

    async def __call__(self, n: int) -> int:
        return await double(n)


@pytest.mark.parametrize(
    "f", [double, functools.partial(double), Awaited(), lambda n: double(n), D.task(double).local], ids=str
)
@pytest.mark.parametrize("log", [None, []], ids=["no_log", "log"])
def test_whatever_gives_a_coroutine_is_awaited(f: Callable[..., Any], log: Any) -> None:
    """Coroutine functions, partials of them, objects and lambdas: the result is what the coroutine returns."""
    with D.Context(threads=1, log_sink=log) as context:
        assert D.fetch(D.spawn(f, 4)) == 8
        assert D.fetch(D.spawn(f, D.Options(name="named"), D.spawn(f, 1))) == 4
        assert D.spawn(f, 4).fetch(timeout=DEADLINE_S) == 8
        assert D.fetch(D.spawn(lambda x: x + 1, D.spawn(f, 3))) == 7
        assert context.core is not None
        D.check(context.core)


def test_many_wait_side_by_side() -> None:
    """1,000 coroutines are under way at once on two slots: each waits until all have begun."""
    with D.Context(threads=2):
        begun, together = 0, asyncio.Event()

        async def body() -> int:
            nonlocal begun
            begun += 1
            if begun == 1000:
                together.set()
            await together.wait()
            return threading.get_ident()

        tasks = [D.spawn(body) for _ in range(1000)]
        assert len(set(D.fetch_all(tasks))) == 1


def test_no_loop_without_coroutines(one: D.Context) -> None:
    """The loop's thread is started for the first coroutine, and ends with the scheduler."""
    D.spawn(int).fetch()
    core = one.core
    assert core is not None and core.driver.coroutines._thread is None
    D.spawn(double, 1).fetch()
    thread = core.driver.coroutines._thread
    assert thread is not None and thread.daemon and thread.is_alive()
    one.shutdown()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert D.spawn(double, 1).fetch() == 2


def test_the_environment_of_the_task_holds_across_awaits(one: D.Context) -> None:
    """Scoped options, the task's id, its processor and the caller's variables are there before and after an await."""
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var", default=0)

    async def told() -> tuple[Any, ...]:
        here = (D.task_id(), D.get_options("tag", None), var.get(), D.in_task(), D.task_processor())
        var.set(99)
        await asyncio.sleep(0)
        assert var.get() == 99
        return here

    var.set(7)
    with D.with_options(tag=3):
        tasks = [D.spawn(told) for _ in range(20)]
    for task in tasks:
        assert D.fetch(task) == (task.id, 3, 7, True, D.ThreadProc(1, 1))
    assert var.get() == 7


def test_await_of_tasks_in_a_coroutine(one: D.Context) -> None:
    """A coroutine spawns and awaits, plain bodies and coroutines, to any depth, with one slot."""

    async def total(depth: int) -> int:
        if depth == 0:
            return int(await D.spawn(int, 1))
        return sum(await asyncio.gather(*(D.spawn(total, depth - 1) for _ in range(3))))

    assert D.spawn(total, 4).fetch() == 81


def test_blocking_in_a_coroutine_is_refused(one: D.Context) -> None:
    """A fetch of what is not done would stop all coroutines: it raises and says what to write. Done ones are given."""
    gate = threading.Event()

    async def body() -> int:
        done = D.spawn(int, 5)
        await done
        assert done.fetch() == 5
        waiting = D.spawn(gate.wait, DEADLINE_S)
        for wait in (waiting.fetch, waiting.wait, lambda: D.waitany([waiting]), lambda: waiting.fetch(timeout=1)):
            with pytest.raises(D.ConcurrencyViolationError, match="await"):
                wait()
        future = executor.submit(gate.wait, DEADLINE_S)
        for wait in (future.result, executor.shutdown):
            with pytest.raises(D.ConcurrencyViolationError, match="await"):
                wait()
        gate.set()
        await waiting
        return int(await asyncio.wrap_future(future))

    with D.Executor() as executor:
        assert D.spawn(body).fetch(timeout=DEADLINE_S) == 1


def test_failures(one: D.Context) -> None:
    """An exception is the task's failure with the coroutine's own traceback, on its dependents too."""

    async def breaks() -> None:
        await asyncio.sleep(0)
        raise BoomError("in the coroutine")

    task = D.spawn(breaks)
    down = D.spawn(double, task)
    error = failure(task)
    assert isinstance(error.__cause__, BoomError) and failure(down).root.id == task.id
    names, trace = [], error.__cause__.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[-1] == "breaks"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_base_exception_ends_its_task_and_not_the_loop(one: D.Context, stop: type[BaseException]) -> None:
    """SystemExit and its like in a coroutine are that task's failure; the other coroutines go on."""

    async def stops() -> None:
        await asyncio.sleep(0)
        raise stop("from the coroutine")

    other = D.spawn(double, 1)
    assert isinstance(D.unwrap_exception(failure(D.spawn(stops))), stop)
    assert D.fetch(other) == 2 and D.spawn(double, 2).fetch(timeout=DEADLINE_S) == 4


def test_cancel_reaches_the_coroutine(one: D.Context) -> None:
    """A running coroutine is cancelled for real: the fetch sees it at once, its `finally` runs, nothing is left."""
    begun, cleaned = threading.Event(), threading.Event()

    async def body() -> None:
        try:
            begun.set()
            await asyncio.sleep(1e6)
        finally:
            cleaned.set()

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    assert not task.isready()
    task.cancel()
    assert task.isready() and isinstance(failure(task), D.DTaskCancelledError)
    assert cleaned.wait(DEADLINE_S)
    core = one.core
    assert core is not None
    poll(lambda: not core.running)
    poll(core.driver.is_idle)
    assert D.spawn(int, 5).fetch(timeout=DEADLINE_S) == 5


def test_a_coroutine_that_cancels_itself(one: D.Context) -> None:
    """One whose asyncio task is cancelled from inside is a cancelled task."""

    async def body() -> None:
        current = asyncio.current_task()
        assert current is not None and current.get_name() == f"dagger-task-{D.task_id()}"
        current.cancel()
        await asyncio.sleep(1e6)

    assert isinstance(failure(D.spawn(body)), D.DTaskCancelledError)


def test_cancel_of_one_that_has_not_begun(one: D.Context) -> None:
    """Cancelled while its slot is busy, a coroutine is never made, and nothing warns about it."""
    gate = threading.Event()
    blocker = D.spawn(gate.wait, DEADLINE_S)
    tasks = [D.spawn(double, n) for n in range(100)]
    for task in tasks:
        task.cancel()
    gate.set()
    D.wait(blocker)
    gc.collect()
    assert all(isinstance(failure(task), D.DTaskCancelledError) for task in tasks)


def test_cancelling_while_they_begin(one: D.Context) -> None:
    """Cancelled at any moment of its beginning, a task has one outcome and leaves nothing running."""
    for _ in range(200):
        task = D.spawn(forever)
        canceller = threading.Thread(target=task.cancel)
        canceller.start()
        canceller.join(DEADLINE_S)
        assert isinstance(failure(task), D.DTaskCancelledError)
    core = one.core
    assert core is not None
    poll(lambda: not core.running and core.driver.is_idle())
    D.check(core)
    gc.collect()


def test_timeout(one: D.Context) -> None:
    """The option `timeout` ends a coroutine and cancels it."""
    task = D.spawn(forever, D.Options(timeout=0.02))
    assert isinstance(D.unwrap_exception(failure(task)), D.TaskTimeoutError)
    core = one.core
    assert core is not None
    poll(lambda: not core.running)


def test_retries(one: D.Context) -> None:
    """The option `retries` calls the function again; each attempt is a coroutine of its own."""
    tries: list[int] = []

    async def flaky() -> int:
        tries.append(len(tries))
        await asyncio.sleep(0)
        if len(tries) < 3:
            raise BoomError
        return len(tries)

    assert D.spawn(flaky, D.Options(retries=5, retry_delay=0.001)).fetch(timeout=DEADLINE_S) == 3


def test_an_async_generator_is_refused(one: D.Context) -> None:
    """A body that is an async generator fails with an error that says what to write; nothing warns."""

    async def gen() -> AsyncIterator[int]:
        yield 1

    for options in ({}, {"name": "named"}):
        error = D.unwrap_exception(failure(D.spawn(gen, D.Options(**options))))
        assert isinstance(error, D.NotCallableError) and "async for" in str(error)
    gc.collect()


def test_events() -> None:
    """One compute from the call to the end of the coroutine, on the thread where it began, without CPU time."""
    log: list[Any] = []
    gate = asyncio.Event()

    async def body() -> int:
        await gate.wait()
        return 7

    async def opens() -> None:
        gate.set()

    with D.Context(threads=1, log_sink=log):
        task, other = D.spawn(body), D.spawn(int)
        other.fetch()
        D.spawn(opens)
        assert task.fetch() == 7
        settled(log, task, other)
    mine = [e for e in log if e.category == "compute" and e.id.thunk_id == task.id]
    assert [e.phase for e in mine] == ["start", "finish"]
    begun, ended = mine
    assert ended.timeline.cpu_ns is None and begun.timeline.thread_id == ended.timeline.thread_id
    inner = [e.timestamp for e in log if e.category == "compute" and e.id.thunk_id == other.id]
    assert begun.timestamp < inner[0] < inner[1] < ended.timestamp


def test_pictures_of_coroutines() -> None:
    """Coroutines that overlap on one processor do no harm to the pictures and tables."""
    with D.Context(threads=1), D.logging(timeline=True, metrics=True, all_task_deps=True):
        D.fetch_all([D.spawn(double, n) for n in range(20)])
        logs = D.fetch_logs()
    for mode in ("summary", "chrome_trace", "gantt", "dataframe"):
        assert ts.render_logs(logs, mode) is not None


def test_on_the_inline_driver() -> None:
    """There a coroutine runs to its end in place, awaits step the driver, and the same seed gives the same order."""

    def order() -> list[int]:
        ran: list[int] = []

        async def body(n: int) -> int:
            ran.append(n)
            await asyncio.sleep(0)
            return n if n == 0 else n + await D.spawn(body, n - 1)

        with D.Context(driver=D.InlineDriver(seed=5)) as context:
            tasks = [D.spawn(body, n) for n in range(5)]
            assert D.fetch_all(tasks) == [0, 1, 3, 6, 10]
            assert context.core is not None
            D.check(context.core)
        return ran

    assert order() == order()


def test_inline_leaves_the_thread_s_own_loop_alone() -> None:
    """A coroutine body that runs in place does not touch the event loop of the program's thread."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        with D.Context(driver=D.InlineDriver()):
            value: int = await D.spawn(double, 4)
        assert asyncio.get_running_loop() is loop
        return value

    assert asyncio.run(main()) == 8


def test_executor_and_map_take_coroutine_functions() -> None:
    """`Executor.submit`, its `map` with chunks, and `map` await them as any body."""
    with D.Executor(2) as executor:
        assert executor.submit(double, 4).result(DEADLINE_S) == 8
        assert list(executor.map(double, range(10), chunksize=4)) == [2 * n for n in range(10)]
    assert list(D.map(double, range(100), max_pending=50)) == [2 * n for n in range(100)]


def test_halt_cancels_them() -> None:
    """A halt of the scheduler ends its coroutines; the next one starts a new loop."""
    cleaned = threading.Event()
    begun = threading.Event()

    async def body() -> None:
        try:
            begun.set()
            await asyncio.sleep(1e6)
        finally:
            cleaned.set()

    with D.Context(threads=1):
        task = D.spawn(body)
        assert begun.wait(DEADLINE_S)
        D.cancel(halt_sch=True)
        assert task.isready() and cleaned.wait(DEADLINE_S)
        assert D.spawn(double, 2).fetch(timeout=DEADLINE_S) == 4


def test_a_coroutine_may_halt_its_scheduler() -> None:
    """A coroutine that shuts down the scheduler it runs in does not wait for itself."""

    async def body() -> None:
        D.cancel(halt_sch=True)

    with D.Context(threads=1):
        task = D.spawn(body)
        poll(task.isready)
        assert D.spawn(double, 2).fetch(timeout=DEADLINE_S) == 4


@pytest.mark.parametrize(
    "body",
    [
        "await asyncio.sleep(1e6)",
        "time.sleep(1e6)",
        """
    while True:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            pass
""",
    ],
    ids=["waits", "blocks", "refuses"],
)
def test_the_program_ends_whatever_a_coroutine_does(body: str) -> None:
    """One that waits for ever, one that blocks the loop and one that refuses to be cancelled: the program ends."""
    out = run_program(
        f"""
import asyncio
async def body():
    begun.set()
    {body}
begun = threading.Event()
D.spawn(body)
begun.wait()
print("end")
"""
    )
    assert out == "end\n"


def test_a_task_that_a_body_left_behind_goes_on(one: D.Context) -> None:
    """What a coroutine started with `create_task` lives on until the scheduler ends, and is cancelled then."""
    ended: list[str] = []

    async def lingers() -> None:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    kept: list[Any] = []

    async def body() -> int:
        kept.append(asyncio.create_task(lingers()))
        await asyncio.sleep(0)
        return 5

    assert D.spawn(body).fetch(timeout=DEADLINE_S) == 5
    one.shutdown()
    poll(lambda: ended == ["cancelled"])


def test_in_a_lazy_run() -> None:
    """`delayed` and `collect` take coroutine functions: results, and the first error as it is."""

    async def breaks(n: int) -> int:
        await asyncio.sleep(0)
        raise BoomError(n)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert D.collect(D.delayed(double)(D.delayed(double)(1))) == 4
        with pytest.raises(BoomError, match="3"):
            D.collect(D.delayed(double)(D.delayed(breaks)(3)))


def test_an_interrupt_of_the_program_ends_it() -> None:
    """Ctrl-C while the main thread waits for a coroutine that never ends: the program ends with the interrupt."""
    process = program(
        """
        import asyncio
        async def forever():
            print("begun", flush=True)
            await asyncio.sleep(1e6)
        D.fetch(D.spawn(forever))
        """
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code in (130, -signal.SIGINT) and err.rstrip().endswith("KeyboardInterrupt")
