"""spec §2, `cancel(force=True)`: bodies are interrupted, the scheduler never is."""

from __future__ import annotations

import asyncio
import dis
import gc
import itertools
import operator
import os
import random
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.bodies import interrupts

DEADLINE_S = 60.0


class Upper(D.Processor):
    """A processor of the tests' own, beside the threads."""

    def get_parent(self) -> D.Processor:
        return D.OSProc(1)

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        return True

    def execute(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)


_test_is_over: list[bool] = []


@pytest.fixture(autouse=True)
def bodies_end() -> Iterator[None]:
    """No test leaves a body behind that spins, not even one that fails."""
    _test_is_over.clear()
    yield
    _test_is_over.append(True)


@pytest.fixture(params=[False, True], ids=["no log", "log"])
def two(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """A context of two slots, with and without a log; no thread may end by an exception."""
    stray: list[Any] = []
    hook, threading.excepthook = threading.excepthook, stray.append
    try:
        with D.Context(threads=2, log_sink=[] if request.param else None) as context:
            yield context
            _test_is_over.append(True)
            context.wait_idle()
            core = context.start()
            eventually(core.driver.is_idle)
            eventually(lambda: not core.running)
            D.check(core)
            assert D.fetch(D.spawn(int, 3), timeout=DEADLINE_S) == 3
        if request.param:
            eventually(lambda: not unpaired(list(context.log_sink)))
    finally:
        threading.excepthook = hook
    assert not stray


def unpaired(events: list[Any]) -> dict[Any, int]:
    """Starts without their one finish. Those of dying results come a moment later, from another thread."""
    seen: dict[Any, int] = {}
    for event in events:
        key = (event.category, event.id)
        seen[key] = seen.get(key, 0) + (1 if event.phase == "start" else -1)
    return {key: n for key, n in seen.items() if n}


def eventually(condition: Callable[[], Any]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.001)


def cancelled(task: D.DTask) -> D.DTaskFailedError:
    """The error of a fetch, which must be that of a cancelled task."""
    with pytest.raises(D.DTaskFailedError) as caught:
        task.fetch(timeout=DEADLINE_S)
    assert type(D.unwrap_exception(caught.value)) is D.TaskCancelled
    assert str(D.unwrap_exception(caught.value)) == f"task {caught.value.root.id} was cancelled"
    return caught.value


def forever(begun: threading.Event) -> None:
    """A body in Python code that never ends, as far as the test is concerned."""
    begun.set()
    while not _test_is_over:
        pass


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "named": {"name": "endless"},
    "pinned": {"scope": D.ExactScope(D.ThreadProc(1, 2))},
    "shared slot": {"scope": D.ExactScope(D.ThreadProc(1, 2)), "occupancy": {D.ThreadProc: 0.5}},
    "retries": {"retries": 3},
    "plain result": {"get_result": True},
    "time limit": {"timeout": 3600.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_s2_force_ends_a_body_that_never_ends(two: D.Context, options: dict[str, Any]) -> None:
    """§2: with `force` a running body gets an exception; its fetch raises when it died, its slot is free again."""
    begun = threading.Event()
    task = D.spawn(forever, D.Options(**options), begun)
    down = D.spawn(str, task)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    error = cancelled(task)
    assert error.root.id == error.task.id == task.id
    assert cancelled(down).root.id == task.id
    assert task not in two.start().running


def test_s2_the_traceback_says_where_the_body_was(two: D.Context) -> None:
    """The cause of the error carries the stack of the body at the moment of the interrupt."""
    begun = threading.Event()
    task = D.spawn(forever, begun)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    trace = cancelled(task).ex.__traceback__
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[-1] == "forever"


def test_s2_force_runs_the_clean_up_of_the_body(two: D.Context) -> None:
    """`finally` and `with` blocks of the body are left in order; inside of them fetch still works."""
    begun, left = threading.Event(), []

    def body() -> None:
        try:
            forever(begun)
        finally:
            left.append(D.fetch(D.spawn(int, 7)))

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    cancelled(task)
    assert left == [7]


def test_s2_force_is_final(two: D.Context) -> None:
    """A body that catches the exception can end in its own way and time; the task is cancelled all the same."""
    begun, caught, gate = threading.Event(), threading.Event(), threading.Event()

    def body() -> int:
        try:
            forever(begun)
        except D.TaskCancelled:
            caught.set()
        gate.wait(DEADLINE_S)
        return 5

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    assert caught.wait(DEADLINE_S)
    assert not task.isready()
    task.cancel(force=True)  # once at most: `gate.wait` goes on
    gate.set()
    cancelled(task)


def test_s2_what_a_body_raises_instead_is_the_cause(two: D.Context) -> None:
    """An exception that the body raises because of the interrupt is the cause of the cancellation."""
    begun = threading.Event()

    def body() -> None:
        try:
            forever(begun)
        except D.TaskCancelled:
            raise KeyError("shut") from None

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    assert isinstance(cancelled(task).ex.__cause__, KeyError)


def test_s2_a_body_in_c_code_ends_when_it_returns(two: D.Context) -> None:
    """Ruling 19: C code can't be interrupted. The task is done when that returned, and then cancelled."""
    lock = allocate_lock()
    lock.acquire()
    task = D.spawn(lock.acquire)
    core = two.start()
    eventually(lambda: task in core.running)
    task.cancel(force=True)
    with pytest.raises(D.FetchTimeoutError):
        task.fetch(timeout=0)
    lock.release()
    cancelled(task)


def test_s2_a_body_that_was_forced_can_be_abandoned(two: D.Context) -> None:
    """A plain cancel after a forced one gives up at once, and the slot is free for others."""
    lock = allocate_lock()
    lock.acquire()
    core = two.start()
    tasks = [D.spawn(lock.acquire) for _ in range(2)]
    eventually(lambda: len(core.running) == 2)
    for task in tasks:
        task.cancel(force=True)
        task.cancel()
        cancelled(task)
    assert D.spawn(int, 4).fetch(timeout=DEADLINE_S) == 4
    lock.release()
    eventually(lambda: len(core.running) < 2)
    lock.release()


def test_s2_an_interrupt_at_the_very_end_of_a_body_stays_its_own(two: D.Context) -> None:
    """A body that leaves C code by an exception may not have met its interrupt: it comes in `run`, and ends there."""
    reading, writing = os.pipe()
    begun = threading.Event()

    def body() -> None:
        begun.set()
        for _ in map(int, map(os.read, [reading], [1])):
            pass

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    os.write(writing, b"x")
    error = cancelled(task)
    assert error.ex.__context__ is None or isinstance(error.ex.__context__, ValueError)
    os.close(reading)
    os.close(writing)


WAITS: dict[str, Callable[[D.DTask], Any]] = {
    "fetch": lambda t: t.fetch(),
    "fetch with a timeout": lambda t: t.fetch(timeout=DEADLINE_S),
    "wait": lambda t: t.wait(),
    "waitany": lambda t: D.waitany([t]),
    "waitall": lambda t: D.waitall([t, t]),
    "as_completed": lambda t: list(D.as_completed([t])),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_s2_a_body_that_waits_is_woken(two: D.Context, wait: Callable[[D.DTask], Any]) -> None:
    """A body blocked in fetch and its kin raises there at once; what it waits for goes on."""
    gate, begun = threading.Event(), threading.Event()

    def target() -> int:
        begun.set()
        gate.wait(DEADLINE_S)
        return 5

    inner = D.spawn(target)
    assert begun.wait(DEADLINE_S)
    outer = D.spawn(lambda: wait(inner))
    core = two.start()
    eventually(lambda: core.driver.blocked == 1)
    outer.cancel(force=True)
    cancelled(outer)
    assert core.driver.blocked == 0
    assert not inner.isready()
    gate.set()
    assert inner.fetch(timeout=DEADLINE_S) == 5
    assert not [s for s in inner._subs if s]


def test_s2_threads_of_the_body_are_woken_too(two: D.Context) -> None:
    """A thread that the body started and that waits for a task raises there as the body does."""
    gate, begun, ended = threading.Event(), threading.Event(), []

    def target() -> None:
        begun.set()
        gate.wait(DEADLINE_S)

    inner = D.spawn(target)
    assert begun.wait(DEADLINE_S)

    def helper(tls: Any) -> None:
        D.set_tls(tls)
        try:
            inner.wait()
        except D.TaskCancelled:
            ended.append(True)

    def body() -> None:
        threads = [threading.Thread(target=helper, args=(D.get_tls(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            inner.wait()
        finally:
            for thread in threads:
                thread.join(DEADLINE_S)

    task = D.spawn(body)
    eventually(lambda: task._live is not None and len(task._live.wakes) == 3)
    task.cancel(force=True)
    cancelled(task)
    assert ended == [True, True]
    gate.set()


def test_s2_a_body_that_only_spawns_is_stopped(two: D.Context) -> None:
    """`spawn` in a body raises the interrupt too, as such a body is hardly ever outside of the scheduler."""
    begun = threading.Event()

    def body() -> None:
        while True:
            D.spawn(begun.set)

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    cancelled(task)


def test_s2_a_helped_body_is_interrupted_on_the_main_thread() -> None:
    """The main thread, which runs a body while it fetches it, gets the task's error and nothing else."""
    with D.Context(threads=1) as context:
        begun = threading.Event()
        where: list[int] = []

        def body() -> None:
            where.append(threading.get_ident())
            forever(begun)

        task = D.spawn(body)

        def killer() -> None:
            begun.wait(DEADLINE_S)
            task.cancel(force=True)

        thread = threading.Thread(target=killer)
        thread.start()
        with pytest.raises(D.DTaskFailedError) as caught:
            task.fetch()
        assert isinstance(D.unwrap_exception(caught.value), D.TaskCancelled)
        thread.join(DEADLINE_S)
        assert len(where) == 1
        assert context.core is not None
        D.check(context.core)


def test_s2_only_the_targets_body_is_interrupted() -> None:
    """A body that runs another one while it fetches it is interrupted after that one, which is unharmed."""
    with D.Context(threads=1) as context:
        begun, gate = threading.Event(), threading.Event()

        def inner() -> int:
            begun.set()
            while not gate.is_set():
                pass
            return 5

        children: list[D.DTask] = []

        def outer() -> None:
            children.append(D.spawn(inner))
            children[0].fetch()

        task = D.spawn(outer)
        assert begun.wait(DEADLINE_S)
        task.cancel(force=True)
        assert not task.isready()
        gate.set()
        cancelled(task)
        assert children[0].fetch(timeout=DEADLINE_S) == 5
        assert context.core is not None
        D.check(context.core)


def test_s2_a_body_forces_itself(two: D.Context) -> None:
    """`cancel(force=True)` of the very body that calls it raises there."""
    after: list[int] = []

    def body() -> None:
        D.cancel(D.task_id(), force=True)
        after.append(1)

    cancelled(D.spawn(body))
    assert after == []


def test_s2_force_of_what_does_not_run(two: D.Context) -> None:
    """Queued and waiting tasks, and finished ones: `force` changes nothing."""
    gate = threading.Event()
    blockers = [D.spawn(gate.wait, DEADLINE_S) for _ in range(2)]
    core = two.start()
    eventually(lambda: len(core.running) == 2)
    ran: list[int] = []
    queued = D.spawn(ran.append, 1)
    waiting = D.spawn(ran.append, blockers[0])
    for task in (queued, waiting):
        task.cancel(force=True)
        assert task.isready()
        cancelled(task)
    gate.set()
    D.waitall(blockers)
    blockers[0].cancel(force=True)
    assert blockers[0].fetch() is True
    assert ran == []


def test_s2_no_retry_after_force(two: D.Context) -> None:
    """A cancelled attempt is the last one."""
    begun, attempts = threading.Event(), []

    def body() -> None:
        attempts.append(1)
        forever(begun)

    task = D.spawn(body, D.Options(retries=5))
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    cancelled(task)
    assert attempts == [1]


def test_s2_a_body_that_cancels_itself_is_not_run_again(two: D.Context) -> None:
    """Leaving a body by `task_may_cancel` is a cancellation, for which there are no retries."""
    attempts: list[int] = []

    def body() -> None:
        attempts.append(1)
        D.task_cancel()
        D.task_may_cancel()

    task = D.spawn(body, D.Options(retries=2))
    with pytest.raises(D.DTaskFailedError) as caught:
        task.fetch(timeout=DEADLINE_S)
    assert isinstance(D.unwrap_exception(caught.value), D.TaskCancelled)
    assert attempts == [1]


def test_s2_halt_waits_for_interrupted_bodies() -> None:
    """§2: with `halt_sch` the interrupted bodies are waited for; their tasks end as any cancelled task."""
    with D.Context(threads=2) as context:
        begun, ended = threading.Event(), []

        def body() -> None:
            try:
                forever(begun)
            finally:
                ended.append(True)

        task = D.spawn(body)
        down = D.spawn(str, task)
        assert begun.wait(DEADLINE_S)
        D.cancel(force=True, halt_sch=True)
        assert ended == [True]
        assert context.core is None
        cancelled(task)
        cancelled(down)
        assert D.spawn(int, 3).fetch(timeout=DEADLINE_S) == 3


def test_s2_a_coroutine_is_cancelled(two: D.Context) -> None:
    """A body that is a coroutine gets asyncio's `CancelledError` where it awaits, and may clean up before it ends."""
    begun, left = threading.Event(), []

    async def body() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            left.append(True)

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    cancelled(task)
    assert left == [True]


def test_s2_where_nothing_can_be_interrupted(two: D.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the means a body is only asked to stop, by its token; the task is cancelled when it did."""
    monkeypatch.setattr(interrupts, "supported", False)
    begun = threading.Event()

    def body() -> int:
        begun.set()
        while not D.task_cancelled():
            pass
        return 5

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    cancelled(task)


def test_looking_and_interrupting_is_one_step() -> None:
    """Between the look at a thread and the interrupt there is no instruction at which CPython switches threads."""
    code = list(dis.get_instructions(interrupts._raise_in))
    begin = next(n for n, i in enumerate(code) if i.opname.startswith("LOAD_ATTR") and i.argval == "frames")
    end = next(n for n, i in enumerate(code) if n > begin and i.opname.startswith("CALL"))
    between = [i.opname for i in code[begin + 1 : end]]
    switching = ("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "FOR_ITER", "RESUME", "SEND", "YIELD", "BEFORE_WITH")
    assert between
    assert not [name for name in between if name.startswith(switching) and not name.startswith("CALL_INTRINSIC")]
    assert isinstance(interrupts._Executing.frames.fget, operator.methodcaller)


@pytest.fixture
def quick_switching() -> Iterator[None]:
    """Threads take turns a hundred times as often, so that races are met.

    Nobody's Python code runs meanwhile in the collections of garbage (hypothesis has some): an interrupt
    that meets it there is none of a body, and Python can only report it as unraisable.
    """
    before, callbacks = sys.getswitchinterval(), gc.callbacks[:]
    gc.callbacks.clear()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)
    gc.callbacks[:] = callbacks


def spin(rounds: int) -> int:
    """Python code for a while."""
    return sum(1 for _ in range(rounds))


def family(rounds: int) -> int:
    """A body that spawns and fetches."""
    return sum(D.fetch_all([D.spawn(spin, rounds) for _ in range(3)]))


@pytest.mark.usefixtures("quick_switching")
@pytest.mark.parametrize("seed", range(3))
def test_s2_force_races_the_ends_of_bodies(two: D.Context, seed: int) -> None:
    """Thousands of forced cancellations meet bodies at any point: each task has one result, nothing else breaks."""
    choose = random.Random(seed)
    values = cancellations = 0
    for _ in range(40):
        sizes = [choose.randrange(300) for _ in range(25)]
        bodies = [choose.choice((spin, family)) for _ in sizes]
        tasks = [D.spawn(body, size) for body, size in zip(bodies, sizes, strict=True)]
        tasks += [D.spawn(spin, *task_and_size) for task_and_size in itertools.product(tasks[:1])]
        order = list(tasks)
        choose.shuffle(order)
        others = threading.Thread(target=lambda half=order[::2]: [t.cancel(force=True) for t in half])
        others.start()
        for task in order[1::2]:
            if choose.random() < 0.5:
                task.cancel(force=True)
        others.join(DEADLINE_S)
        for task in tasks:
            try:
                task.fetch(timeout=DEADLINE_S)
                values += 1
            except D.DTaskFailedError as error:
                assert isinstance(D.unwrap_exception(error), D.TaskCancelled)
                cancellations += 1
    assert values
    assert cancellations
