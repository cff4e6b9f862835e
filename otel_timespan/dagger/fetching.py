"""Waiting for tasks: `fetch`, `wait`, `waitany`, `waitall`, futures and `await`.

Every wait here can be interrupted by Ctrl-C and, given a timeout, ends in time; a waiter that gives up
takes its entry back from the task. A lock is made only when somebody really blocks.

See docs/users.md.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import sys
import types
from _thread import allocate_lock, get_ident
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from ..errors import (
    ConcurrencyViolationError,
    FetchTimeoutError,
    InvalidOptionError,
    SchedulingError,
    StorageError,
    TaskCancelled,
    unwrap_exception,
)
from ..timespans.durations import Deadline
from .bodies import interrupts
from .bodies.results import as_chunk
from .core.limits import refuse_deadlock
from .cycles import Wait
from .data.chunks import Chunk
from .data.read import may_wait, read
from .service.apart import apart
from .tasks.atomics import subscribe
from .tasks.dtask import DONE, FAILED, UNLAUNCHED, DTask, Failure, summarize
from .tasks.environment import here, in_event_loop, loop_threads, running_task
from .tasks.failures import again

if TYPE_CHECKING:
    import asyncio

    from .core.machine import Core
    from .drivers.base import Driver

__all__ = ["awaitable", "fetch", "fetch_all", "future", "wait", "waitall", "waitany"]

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
K = TypeVar("K")
Content = TypeVar("Content", covariant=True)


class _Fetched(Protocol[Content]):
    """What refers to data: a chunk, a file, ..."""

    def fetch(self) -> Content: ...


@overload
def fetch(x: DTask[T], *, timeout: float | None = None, raw: Literal[False] = False) -> T: ...
@overload
def fetch(x: DTask[T], *, timeout: float | None = None, raw: Literal[True]) -> Chunk[T]: ...
@overload
def fetch(x: DTask[T], *, timeout: float | None = None, raw: bool) -> T | Chunk[T]: ...
@overload
def fetch(x: _Fetched[T], *, timeout: float | None = None, raw: bool = False) -> T: ...
def fetch(x: Any, *, timeout: float | None = None, raw: bool = False) -> Any:
    """The value of a task, a chunk, or anything else that refers to data (a `File`, ...).

    `timeout` is in seconds (None: for ever); when it ends first, `FetchTimeoutError` is raised and the
    task goes on. `raw=True` gives the `Chunk` that holds the result instead of its content. Without a
    timeout and outside of an event loop the calling thread helps: it runs what the task needs itself.

    Raises `DTaskFailedError` when the task failed (its `__cause__` is the root exception),
    `SchedulingError` when the scheduler went down, `ConcurrencyViolationError` when the task was not
    launched yet. Any number of threads may fetch the same task, before and after it is done.
    """
    deadline = None if timeout is None else Deadline(timeout)
    if type(x) is not DTask:
        return _fetch_reference(x)
    if x._state < DONE:
        wait_done(x, deadline)
    if x._state == FAILED:
        raise failure_of(x)
    if raw:
        return as_chunk(x)
    return x._outcome.value  # `read`, without a call


def _fetch_reference(x: Any) -> Any:
    if isinstance(x, Chunk):
        return x.fetch()
    method = getattr(x, "fetch", None)
    if not callable(method):
        several = isinstance(x, (list, tuple, set, frozenset, dict))
        hint = ": use fetch_all" if several else ": spawn(f) makes a task of it" if callable(x) else ""
        raise InvalidOptionError(f"fetch needs a task, a chunk or a file, not a {type(x).__name__}{hint}")
    return method()


def failure_of(task: DTask) -> BaseException:
    """The exception that a fetch of this failed task raises: a new one each time."""
    failure: Failure = task._outcome
    failure.retrieved = True
    error = failure.error_for(summarize(task))
    return error


def note_failure(task: DTask) -> None:
    """Somebody knows of the task's failure, if it has one: it need not be logged."""
    if task._state == FAILED:
        task._outcome.retrieved = True


@overload
def fetch_all(x: DTask[T] | Chunk[T], *, timeout: float | None = None) -> T: ...
@overload
def fetch_all(x: list[DTask[T]] | list[Chunk[T]], *, timeout: float | None = None) -> list[T]: ...
@overload
def fetch_all(x: list[list[DTask[T]]], *, timeout: float | None = None) -> list[list[T]]: ...
@overload
def fetch_all(x: set[DTask[T]] | set[Chunk[T]], *, timeout: float | None = None) -> set[T]: ...
@overload
def fetch_all(x: frozenset[DTask[T] | Chunk[T]], *, timeout: float | None = None) -> frozenset[T]: ...
@overload
def fetch_all(x: tuple[DTask[T] | Chunk[T], DTask[U] | Chunk[U]], *, timeout: float | None = None) -> tuple[T, U]: ...
@overload
def fetch_all(
    x: tuple[DTask[T] | Chunk[T], DTask[U] | Chunk[U], DTask[V] | Chunk[V]], *, timeout: float | None = None
) -> tuple[T, U, V]: ...
@overload
def fetch_all(x: tuple[DTask[T] | Chunk[T], ...], *, timeout: float | None = None) -> tuple[T, ...]: ...
@overload
def fetch_all(x: dict[K, DTask[T]] | dict[K, Chunk[T]], *, timeout: float | None = None) -> dict[K, T]: ...
@overload
def fetch_all(x: dict[K, list[DTask[T]]], *, timeout: float | None = None) -> dict[K, list[T]]: ...
@overload
def fetch_all(x: object, *, timeout: float | None = None) -> Any: ...
def fetch_all(x: Any, *, timeout: float | None = None) -> Any:
    """The same structure of lists, tuples, sets and dicts with every task and chunk replaced by its value.

    `timeout` is for all together: `FetchTimeoutError` when it ends before the last of them is done. Raises the first
    failure in the order of the structure.
    """
    return _fetch_all(x, None if timeout is None else Deadline(timeout))


def _fetch_all(x: Any, deadline: Deadline | None) -> Any:
    if isinstance(x, DTask):
        if x._state < DONE:
            wait_done(x, deadline)
        if x._state == FAILED:
            raise failure_of(x)
        return read(x._outcome)
    if isinstance(x, Chunk):
        return x.fetch()
    if isinstance(x, dict):
        return {key: _fetch_all(value, deadline) for key, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_fetch_all(v, deadline) for v in x))
    if isinstance(x, (list, tuple, set, frozenset)):
        return type(x)(_fetch_all(v, deadline) for v in x)
    if isinstance(x, ITERATORS):
        raise InvalidOptionError(f"fetch_all looks into lists, tuples, sets and dicts, not into a {type(x).__name__}")
    return x


ITERATORS = (types.GeneratorType, map, zip, filter)
"""What may hold tasks, and can be read once only."""


def as_tasks(what: str, tasks: Iterable[DTask[T]]) -> list[DTask[T]]:
    """The tasks, each once; `InvalidOptionError` in the name of `what` for anything else."""
    if isinstance(tasks, DTask):
        raise InvalidOptionError(f"{what} needs several tasks, not one: {what}([task])")
    if not isinstance(tasks, Iterable):
        raise InvalidOptionError(f"{what} needs tasks, not a {type(tasks).__name__}")
    wanted = list(tasks)
    for task in wanted:
        if not isinstance(task, DTask):
            raise InvalidOptionError(f"{what} needs tasks, not a {type(task).__name__}")
    return list(dict.fromkeys(wanted))


def wait(x: DTask, *, timeout: float | None = None) -> None:
    """Wait until the task finished, well or not: never raises the task's error.

    Raises `FetchTimeoutError` and `ConcurrencyViolationError` as `fetch` does.
    """
    if type(x) is not DTask:
        hint = ": use waitall" if isinstance(x, (list, tuple, set, frozenset)) else ""
        raise InvalidOptionError(f"wait needs a task, not a {type(x).__name__}{hint}")
    deadline = None if timeout is None else Deadline(timeout)
    if x._state < DONE:
        wait_done(x, deadline)


def waitany(tasks: Iterable[DTask], *, timeout: float | None = None) -> None:
    """Wait until at least one of the tasks finished; at once for none. Never raises a task's error.

    Raises `FetchTimeoutError` when none did within `timeout` seconds; they go on.
    """
    deadline = None if timeout is None else Deadline(timeout)
    wanted = as_tasks("waitany", tasks)
    if not wanted or any(task._state >= DONE for task in wanted):
        return
    for task in wanted:
        check_launched(task)
    refuse_on_loop_thread("none of the tasks is done, and waiting for them here")
    step_until(wanted[0]._core, lambda: any(task._state >= DONE for task in wanted))
    lock = allocate_lock()
    lock.acquire()
    once = Once(lock.release)
    entered = [task for task in wanted if subscribe(task, once) or once()]
    try:
        if not _block(lock, deadline, wanted[0], once) and deadline is not None:
            raise FetchTimeoutError(f"none of {len(wanted)} tasks was done within {deadline.seconds:g} s; they go on")
    finally:
        for task in entered:
            unsubscribe(task, once)


def waitall(tasks: Iterable[DTask], *, timeout: float | None = None) -> None:
    """Wait until all of the tasks finished. `timeout` is for all together. Never raises a task's error."""
    deadline = None if timeout is None else Deadline(timeout)
    for task in as_tasks("waitall", tasks):
        if task._state < DONE:
            wait_done(task, deadline)


def wait_done(task: DTask, deadline: Deadline | None) -> None:
    """Help, or block, until the task is done."""
    if task._state == UNLAUNCHED or task._core.halted is not None:
        check_launched(task)
    if loop_threads:
        refuse_on_loop_thread(f"task {task.id} is not done, and waiting for it here")
    body = running_task() if here() is not None else None
    if body is not None and deadline is None:
        refuse_deadlock(body, task)
    if deadline is None and not in_event_loop():
        apart(task._core.driver.help, task)
        if interrupts.used:
            interrupts.check()
        if task._state >= DONE:
            return
    lock = allocate_lock()
    lock.acquire()
    notify: Callable[[], Any] = lock.release if body is None else Once(lock.release)
    if not subscribe(task, notify):
        return
    try:
        with contextlib.nullcontext() if body is None else Wait(body, task, notify):
            if not _block(lock, deadline, task, notify) and deadline is not None:
                raise FetchTimeoutError(f"task {task.id} was not done within {deadline.seconds:g} s; it goes on")
    finally:
        unsubscribe(task, notify)


def check_launched(task: DTask) -> None:
    if task._state == UNLAUNCHED:
        raise ConcurrencyViolationError(
            f"task {task.id} was not launched yet: its task queue holds it back until the block around it ends"
        )
    if task._core.halted is not None and task._state < DONE:
        raise again(task._core.halted)


def _block(lock: Any, deadline: Deadline | None, task: DTask, notify: Callable[[], Any]) -> bool:
    """Acquire the lock, which `notify` releases; a body gives its slot back meanwhile. False at the deadline."""
    driver = task._core.driver
    with slot_given_back(notify):
        while True:
            left = LOOK_AGAIN_S if deadline is None else min(deadline.left(), LOOK_AGAIN_S)
            if driver.is_starved:
                found: list[bool] = []
                apart(_help_or_step, (driver, task, found))
                left = 0.0 if any(found) else min(left, STARVED_PAUSE_S)
            if driver.block(lock, left):
                return True
            if deadline is not None and deadline.left() <= 0:
                return False


def _help_or_step(what: tuple[Driver, DTask, list[bool]]) -> None:
    driver, task, found = what
    found.append(driver.help(task) or driver.step())


@contextlib.contextmanager
def slot_given_back(notify: Callable[[], Any] | None = None) -> Iterator[None]:
    """For a block that blocks: a body gives its slot back meanwhile. Does nothing outside of bodies.

    `notify()` ends the wait in the block early: it is called when the body is to be interrupted (in any thread, at
    any time up to the end of the block), and the block then raises `TaskCancelled`. None: the wait can't be ended.
    """
    body = running_task()
    if body is None:
        yield
        return
    driver = body._core.driver
    with interrupts.wakeable(body, notify):
        hold = driver.pause()
        try:
            yield
        finally:
            driver.resume(hold)


def step_until(core: Core, done: Callable[[], bool]) -> None:
    """Where nobody else runs tasks (the inline driver; no thread can be started), run them here until `done()`.

    Raises `SchedulingError` when nothing is left to run before that, and nobody else will.
    """
    driver = core.driver
    if (driver.is_stepped or driver.is_starved) and not done():
        apart(_step_until, (driver, done))


def _step_until(what: tuple[Driver, Callable[[], bool]]) -> None:
    driver, done = what
    while driver.is_stepped and not done():
        if not driver.step():
            raise SchedulingError("what is waited for can't happen: nothing is left to run", "inconsistent")
    while driver.is_starved and not done() and driver.step():
        pass


LOOK_AGAIN_S = 5.0
"""So often a thread that waits looks whether it must run tasks itself, as no thread can be started."""

STARVED_PAUSE_S = 0.02
"""The same where that is so, and there was nothing to run."""


def unsubscribe(task: DTask, subscriber: Any) -> None:
    """Take an entry back, if it is still there."""
    with contextlib.suppress(ValueError):
        task._subs.remove(subscriber)


class Once:
    """Calls `notify` the first time it is called; several tasks may call it."""

    __slots__ = ("_left",)

    is_brief = True
    """See bodies/ending.py."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._left = [notify]

    def __call__(self) -> bool:
        try:
            notify = self._left.pop()
        except IndexError:
            return False
        notify()
        return False


def refuse_on_loop_thread(what: str) -> None:
    """Raise `ConcurrencyViolationError` in a coroutine body, which must not block: the others wait with it."""
    if get_ident() in loop_threads:
        raise ConcurrencyViolationError(f"{what} would stop every coroutine: use `await`")


def refuse_in_event_loop(what: str, instead: str) -> None:
    """Raise `ConcurrencyViolationError` where waiting would stop an event loop of the program.

    A notebook runs each cell inside of its loop and expects that to wait.
    """
    if in_event_loop() and "ipykernel" not in sys.modules:
        raise ConcurrencyViolationError(f"{what} would stop this event loop: use {instead}")


def future(task: DTask[T]) -> concurrent.futures.Future[T]:
    """A `concurrent.futures.Future` of a task's value; a cancelled task gives a cancelled future."""
    made: concurrent.futures.Future[T] = concurrent.futures.Future()

    if not subscribe(task, lambda: resolve_future(task, made)):
        resolve_future(task, made)
    return made


def resolve_future(task: DTask, future: concurrent.futures.Future[Any]) -> None:
    """Set a future to the outcome of a finished task."""
    if is_cancelled(task):
        future.cancel()
        future.set_running_or_notify_cancel()
    elif future.set_running_or_notify_cancel():
        if task._state == FAILED:
            future.set_exception(failure_of(task))
        else:
            try:
                value = read(task._outcome)
            except StorageError as lost:  # it was spilled, and can't be read back
                future.set_exception(lost)
            else:
                future.set_result(value)


def is_cancelled(task: DTask) -> bool:
    """Whether the task ended by a cancellation, its own or an upstream's."""
    return task._state == FAILED and isinstance(unwrap_exception(task._outcome.ex), TaskCancelled)


async def awaitable(task: DTask[T]) -> T:
    """The coroutine behind `await task`: never blocks the event loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(set_done, done)

    if task._state < DONE:
        check_launched(task)
        step_until(task._core, lambda: task._state >= DONE)
        body = running_task()
        if body is not None:
            refuse_deadlock(body, task)
        with contextlib.nullcontext() if body is None else Wait(body, task, wake):
            if subscribe(task, wake):
                try:
                    await done
                finally:
                    unsubscribe(task, wake)
    if task._state == FAILED:
        raise failure_of(task)
    if may_wait(task._outcome):  # reading a file must not hold up the loop
        return await loop.run_in_executor(None, read, task._outcome)
    value: T = read(task._outcome)
    return value


def set_done(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
