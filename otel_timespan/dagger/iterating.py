"""Loops over tasks: `as_completed`, in the order in which they finish; `map`, over inputs without end.

Both work in `for` and in `async for`. A `for` gives the slot of a body back while it waits; in an event loop,
which it would stop, it raises.

See docs/users.md.
"""

# One overload covers a part of the next: the first that fits is meant.
# mypy: disable-error-code="overload-overlap, overload-cannot-match"

from __future__ import annotations

import contextvars
import functools
import queue
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ..errors import FetchTimeoutError, InvalidOptionError, NotCallableError
from ..timespans.durations import Deadline
from .api import current_core, spawn
from .control import cancel_task
from .fetching import (
    as_tasks,
    awaitable,
    check_launched,
    fetch,
    note_failure,
    refuse_in_event_loop,
    slot_given_back,
    step_until,
    unsubscribe,
)
from .options.declaring import drop_removed
from .options.options import Options
from .service import janitor
from .tasks.atomics import subscribe
from .tasks.dtask import DONE, DTask

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options.keywords import TaskKeywords
    from .signatures import Argument, Body

__all__ = ["as_completed", "map"]

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Item = TypeVar("Item", covariant=True)

LEAST_PENDING = 16
PENDING_PER_SLOT = 4


_INTERRUPTED: Any = None
"""What ends a wait for a task whose body is interrupted; never seen, as the wait raises then."""


class Finished:
    """Takes tasks and gives them back in the order in which they finish; for one thread."""

    def __init__(self) -> None:
        self._finished: queue.SimpleQueue[DTask] = queue.SimpleQueue()
        self._entries: dict[DTask, Callable[[], None]] = {}
        self._told: Callable[[], None] = _nobody

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, task: DTask) -> None:
        """Take a task (one that was taken already comes once)."""
        check_launched(task)
        if task in self._entries:
            return

        def entry() -> None:
            self._finished.put(task)
            self._told()

        self._entries[task] = entry
        if not subscribe(task, entry):
            entry()

    def drop_all(self) -> list[DTask]:
        """Let go of what was not given back: those tasks."""
        left, self._entries = self._entries, {}
        for task, entry in left.items():
            unsubscribe(task, entry)
        return list(left)

    def take(self, timeout: float | None = None) -> DTask | None:
        """The next one that finishes; None when `timeout` seconds end first."""
        if timeout is None:
            step_until(next(iter(self._entries))._core, lambda: not self._finished.empty())
        try:
            task = self._finished.get_nowait()
        except queue.Empty:
            try:
                with slot_given_back(functools.partial(self._finished.put, _INTERRUPTED)):
                    task = self._finished.get(timeout=None if timeout is None else max(0.0, timeout))
            except queue.Empty:
                return None
        del self._entries[task]
        return task

    async def take_async(self, timeout: float | None = None) -> DTask | None:
        """`take`, for one coroutine."""
        import asyncio

        loop, deadline = asyncio.get_running_loop(), None if timeout is None else time.monotonic() + timeout
        step_until(next(iter(self._entries))._core, lambda: not self._finished.empty())
        while True:
            woken = asyncio.Event()
            self._told = _waker(loop, woken)
            try:
                task = self._finished.get_nowait()
            except queue.Empty:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                try:
                    await asyncio.wait_for(woken.wait(), left)
                except asyncio.TimeoutError:
                    return None
                continue
            finally:
                self._told = _nobody
            del self._entries[task]
            return task


def _nobody() -> None:
    pass


def _waker(loop: Any, woken: Any) -> Callable[[], None]:
    def wake() -> None:
        try:
            loop.call_soon_threadsafe(woken.set)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            return

    return wake


class Source:
    """What a loop draws from. It must not refer to the loop: leaving the loop is to end it at once."""

    left_by_call = False
    """Whether the loop was closed by a call, and not by its object going away."""

    def steps(self) -> Generator[Any, None, None]:
        """The items, for `for`."""
        raise NotImplementedError

    def async_steps(self) -> AsyncGenerator[Any, None]:
        """The items, for `async for`."""
        raise NotImplementedError


class Loop(Generic[Item]):
    """What can be looped over once, by `for` or by `async for`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._iterator: Generator[Item, None, None] | None = None
        self._async_iterator: AsyncGenerator[Item, None] | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        refuse_in_event_loop("this loop", "`async for`")
        if self._iterator is None:
            self._iterator = self._source.steps()
        return next(self._iterator)

    def close(self) -> None:
        """End the loop: what it holds is let go."""
        self._source.left_by_call = True
        if self._iterator is None:
            self._iterator = self._source.steps()
        self._iterator.close()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    def __anext__(self) -> Awaitable[Item]:
        if self._async_iterator is None:
            self._async_iterator = self._source.async_steps()
        return self._async_iterator.__anext__()

    async def aclose(self) -> None:
        """`close`, for `async for`."""
        self._source.left_by_call = True
        if self._async_iterator is None:
            self._async_iterator = self._source.async_steps()
        await self._async_iterator.aclose()


class _AsCompleted(Source):
    """See `as_completed`."""

    def __init__(self, tasks: Iterable[DTask], timeout: float | None) -> None:
        self._deadline = None if timeout is None else Deadline(timeout)
        self._timeout = None if self._deadline is None else self._deadline.seconds
        self._tasks = as_tasks("as_completed", tasks)

    def _left(self) -> float | None:
        return None if self._deadline is None else self._deadline.left()

    def _take_in(self) -> Finished:
        finished = Finished()
        for task in self._tasks:
            finished.add(task)
        self._tasks = []
        return finished

    def steps(self) -> Generator[DTask, None, None]:
        finished = self._take_in()
        try:
            while finished:
                yield self._in_time(finished.take(self._left()), finished)
        finally:
            finished.drop_all()

    async def async_steps(self) -> AsyncGenerator[DTask, None]:
        finished = self._take_in()
        try:
            while finished:
                yield self._in_time(await finished.take_async(self._left()), finished)
        finally:
            finished.drop_all()

    def _in_time(self, task: DTask | None, finished: Finished) -> DTask:
        if task is None:
            raise FetchTimeoutError(f"{len(finished)} tasks were not done within {self._timeout:g} s; they go on")
        return task


def as_completed(tasks: Iterable[DTask[T]], *, timeout: float | None = None) -> Loop[DTask[T]]:
    """The tasks in the order in which they finish, each once, well or not: `for` or `async for` over it.

    Raises `FetchTimeoutError` when `timeout` seconds from now end first; the tasks go on. A `for` in an event
    loop, which it would stop, raises `ConcurrencyViolationError`.
    """
    return Loop(_AsCompleted(tasks, timeout))


class _Mapped(Source):
    """See `map`."""

    def __init__(self, f: Any, iterables: Any, max_pending: int | None, ordered: bool, options: dict[str, Any]) -> None:
        if not callable(f):
            raise NotCallableError(f"map needs a function, not {f!r}: map(f, inputs)")
        if not iterables:
            raise InvalidOptionError("map needs at least one iterable: map(f, inputs)")
        if max_pending is not None and (isinstance(max_pending, bool) or not isinstance(max_pending, int)):
            raise InvalidOptionError(f"max_pending must be a positive int or None, not {max_pending!r}")
        if max_pending is not None and max_pending < 1:
            raise InvalidOptionError(f"max_pending must be a positive int or None, not {max_pending!r}")
        self._f, self._inputs = f, zip(*iterables, strict=False)
        self._options = Options(**drop_removed(options)) if options else None
        self._max_pending, self._ordered = max_pending, ordered
        self._context = contextvars.copy_context()
        self._window: deque[DTask] = deque()
        self._finished = Finished()

    def _fill(self) -> None:
        """Spawn as many as may be pending, in the context in which `map` was called."""
        janitor.start()
        if self._max_pending is None:
            slots = len(self._context.run(current_core).slots)
            self._max_pending = max(LEAST_PENDING, PENDING_PER_SLOT * slots)
        while len(self._window) + len(self._finished) < self._max_pending:
            args = next(self._inputs, None)
            if args is None:
                return
            given = args if self._options is None else (self._options, *args)
            task = self._context.run(spawn, self._f, *given)
            if self._ordered:
                self._window.append(task)
            else:
                self._finished.add(task)

    def _end(self, collected: bool) -> None:
        """Cancel what is pending; take no more inputs. `collected`: only ask another thread to."""
        self._inputs = zip(())
        left = [*self._window, *self._finished.drop_all()]
        self._window.clear()
        if collected and left:
            janitor.ask(functools.partial(_cancel_all, left))
        else:
            _cancel_all(left)

    def _value(self) -> Any:
        """The next result, which is the caller's alone: a generator would keep what is in its own names."""
        task = self._window[0] if self._ordered else self._finished.take()
        assert task is not None
        value = fetch(task)
        if self._ordered:
            self._window.popleft()
        del task
        self._fill()
        return value

    async def _value_async(self) -> Any:
        """`_value`, for a coroutine."""
        task = self._window[0] if self._ordered else await self._finished.take_async()
        assert task is not None
        value = await awaitable(task)
        if self._ordered:
            self._window.popleft()
        del task
        self._fill()
        return value

    def steps(self) -> Generator[Any, None, None]:
        collected = False
        try:
            self._fill()
            while self._window or self._finished:
                yield self._value()
        except GeneratorExit:
            collected = not self.left_by_call
            raise
        finally:
            self._end(collected)

    async def async_steps(self) -> AsyncGenerator[Any, None]:
        try:
            self._fill()
            while self._window or self._finished:
                yield await self._value_async()
        finally:  # an event loop closes what is collected in a step of its own
            self._end(False)


def _cancel_all(tasks: list[DTask]) -> None:
    for task in reversed(tasks):  # a running one last: its slot would start the next
        if task._state < DONE:
            cancel_task(task, graceful=True)
        note_failure(task)


@overload
def map(
    f: Callable[[A], Body[T]],
    a: Iterable[Argument[A]],
    /,
    *,
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
@overload
def map(
    f: Callable[[A], T],
    a: Iterable[Argument[A]],
    /,
    *,
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
@overload
def map(
    f: Callable[[A, B], Body[T]],
    a: Iterable[Argument[A]],
    b: Iterable[Argument[B]],
    /,
    *,
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
@overload
def map(
    f: Callable[[A, B], T],
    a: Iterable[Argument[A]],
    b: Iterable[Argument[B]],
    /,
    *,
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
@overload
def map(
    f: Callable[[A, B, C], Body[T]],
    a: Iterable[Argument[A]],
    b: Iterable[Argument[B]],
    c: Iterable[Argument[C]],
    /,
    *,
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
@overload
def map(
    f: Callable[[A, B, C], T],
    a: Iterable[Argument[A]],
    b: Iterable[Argument[B]],
    c: Iterable[Argument[C]],
    /,
    *,
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
@overload
def map(
    f: Callable[..., Body[T]],
    a: Iterable[Any],
    b: Iterable[Any],
    c: Iterable[Any],
    d: Iterable[Any],
    /,
    *more: Iterable[Any],
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
@overload
def map(
    f: Callable[..., T],
    a: Iterable[Any],
    b: Iterable[Any],
    c: Iterable[Any],
    d: Iterable[Any],
    /,
    *more: Iterable[Any],
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Unpack[TaskKeywords],
) -> Loop[T]: ...
def map(
    f: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    max_pending: int | None = None,
    ordered: bool = True,
    **options: Any,
) -> Loop[Any]:
    """Spawn `f` for each item (of several iterables: for the items side by side), and loop over the results.

    Lazy: inputs are read as results are taken, so that they may have no end. At most `max_pending` tasks are
    there whose result was not taken, by default four a slot, at least 16. `ordered=False` gives results as
    the tasks finish. `**options` are options of the tasks, whose scoped options and context are those of the
    call of `map`. `for` or `async for`; the former in a body gives its slot back while it waits.

    Raises the first failure that it comes to, as `fetch` does. Then, and when the loop is left early, what is
    pending is cancelled: by `close()` at once, when the object just goes, a moment later.
    """
    return Loop(_Mapped(f, iterables, max_pending, ordered, options))
