"""Bodies that are coroutines: they are awaited on one event loop of their scheduler, without a slot.

The problem: a body that waits for the network should not take a thread, and its result should be that of any
body. So a body is called in its slot as ever; when what it gives is a coroutine, the slot goes back and
the coroutine runs on a thread that has an event loop and is started for the first one. Thousands of them
wait side by side. The task counts as running until the coroutine ends.

The inline driver runs a coroutine to its end in place: there `await task` steps the driver.

See docs/users.md.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar

from ... import forks
from ...errors import NotCallableError, SchedulingError, TaskCancelled
from ..service.guards import guard
from ..service.threads import start_bare, start_service
from ..tasks.dtask import DONE, DTask, live
from ..tasks.environment import in_event_loop, loop_threads

if TYPE_CHECKING:
    import asyncio


__all__ = ["ASYNC", "CoroutineBody", "Coroutines", "refusal", "run_here"]

T = TypeVar("T")

ASYNC = frozenset((CoroutineType, AsyncGeneratorType))
"""Types of what a body gives that is not its result."""

CLOSE_S = 1.0
"""How long cancelled coroutines are waited for when their scheduler goes down."""


def refusal(value: Any) -> NotCallableError | None:
    """The error for a body that is an async generator; None for a coroutine."""
    if type(value) is not AsyncGeneratorType:
        return None
    name = getattr(value, "__qualname__", "it")
    return NotCallableError(
        f"{name} is an async generator, but a task has one result: spawn a coroutine function that collects it, "
        f"such as one that returns [item async for item in {name}(...)]"
    )


class CoroutineBody:
    """One body on its way: from the call that gave the coroutine to the coroutine's end.

    `end(value, error)` is called once, on the loop's thread.
    """

    __slots__ = ("_aio", "_context", "_coroutine", "_end", "_loop", "_task")

    def __init__(
        self,
        task: DTask,
        coroutine: Coroutine[Any, Any, Any],
        context: contextvars.Context,
        end: Callable[[Any, BaseException | None], None],
    ) -> None:
        self._task, self._coroutine, self._context, self._end = task, coroutine, context, end
        self._aio: asyncio.Task[Any] | None = None
        self._loop: Any = None
        live(task).coroutine = self

    def begin(self, loop: Any) -> None:
        """Run on this loop; called there. In the task's own context, which each `await` comes back to."""
        self._loop = loop
        if self._task._state >= DONE:  # cancelled on the way here
            self.drop()
            return
        self._aio = self._context.run(self._make, loop)
        self._aio.add_done_callback(self._ended)

    def _make(self, loop: Any) -> asyncio.Task[Any]:
        aio: asyncio.Task[Any] = loop.create_task(self._coroutine, name=f"dagger-task-{self._task.id}")
        return aio

    def _ended(self, aio: asyncio.Task[Any]) -> None:
        if aio.cancelled():
            self._over(None, TaskCancelled(f"the coroutine of task {self._task.id} was cancelled"))
        elif (error := aio.exception()) is not None:
            self._over(None, error)
        else:
            self._over(aio.result(), None)

    def _over(self, value: Any, error: BaseException | None) -> None:
        live(self._task).coroutine = None
        self._aio = None
        self._end(value, error)

    def is_run_by(self, aio: asyncio.Task[Any] | None) -> bool:
        """Whether this asyncio task is the body itself, and none that it started."""
        return aio is not None and aio is self._aio

    def drop(self, error: BaseException | None = None) -> None:
        """It will never run: nobody wants its result, the loop is gone, or (`error`) there can be none."""
        self._coroutine.close()
        cancelled = TaskCancelled(f"task {self._task.id} was cancelled before its coroutine began")
        self._over(None, error or cancelled)

    def cancel(self) -> bool:
        """Cancel the coroutine, from any thread; False if it has not begun: a task that has its outcome never will."""
        if self._loop is None:
            return False
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel)
        return True

    def _cancel(self) -> None:
        if self._aio is not None:
            self._aio.cancel()


class Coroutines:
    """The event loop of one scheduler and its thread, both made for the first coroutine. Thread-safe."""

    def __init__(self) -> None:
        self._lock = guard()
        self._loop: Any = None
        self._thread: threading.Thread | None = None
        self._bare = contextvars.Context()
        self._closed = False

    def start(self, body: CoroutineBody) -> None:
        """Run a body on the loop."""
        refusal: str | None = None
        with self._lock:
            if self._loop is None and not self._closed:
                refusal = self._open()
            loop = self._loop if not self._closed else None
        if refusal is not None:
            body.drop(SchedulingError(f"{refusal} for the event loop of coroutines", "no_threads"))
            return
        try:
            if loop is None:
                raise RuntimeError
            loop.call_soon_threadsafe(body.begin, loop, context=self._bare)
        except RuntimeError:  # the scheduler went down
            body.drop()

    def _open(self) -> str | None:
        """Make the loop; None, or why there is no thread for it."""
        with forks.held_off:
            import asyncio

        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="dagger-loop", daemon=True)
        refusal = start_service(self._thread)
        if refusal is None:
            self._loop = loop
        else:
            loop.close()
        return refusal

    def _run(self, loop: Any) -> None:
        here = threading.get_ident()
        loop_threads.add(here)
        try:
            while True:
                try:
                    loop.run_forever()
                except (KeyboardInterrupt, SystemExit):  # a body's own, which is its failure
                    continue
                break
        finally:
            loop_threads.discard(here)
            _close(loop)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Cancel what runs, and end the thread; what does not end within `timeout_s` is left behind."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_stop, loop, timeout_s / 2, context=self._bare)
        if thread is not threading.current_thread():
            thread.join(timeout_s)


def _stop(loop: Any, timeout_s: float) -> None:
    """Cancel every asyncio task of the loop, give them a moment, and stop it."""
    import asyncio

    async def drain() -> None:
        others = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for one in others:
            one.cancel()
        if others:
            await asyncio.wait(others, timeout=timeout_s)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(loop.shutdown_asyncgens(), timeout_s)
        loop.stop()

    draining = loop.create_task(drain())
    draining.add_done_callback(lambda _: loop.stop())


def _close(loop: Any) -> None:
    import asyncio

    for one in asyncio.all_tasks(loop):
        one._log_destroy_pending = False  # type: ignore[attr-defined]  # they were cancelled, and would not end
    with contextlib.suppress(Exception):
        loop.close()


def run_here(coroutine: Coroutine[Any, Any, T], context: contextvars.Context) -> tuple[T | None, BaseException | None]:
    """Await a coroutine here and now; where a loop runs in this thread, in another one: its result, or what it raised.

    Raises what comes from elsewhere, such as from a signal handler in the middle of the loop.
    """
    if not in_event_loop():
        return _run_through(coroutine, context)
    found: list[Any] = []

    def elsewhere() -> None:
        try:
            found.append(_run_through(coroutine, context))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=elsewhere, name="dagger-inline-loop", daemon=True)
    start_bare(thread)
    thread.join()
    outcome: tuple[T | None, BaseException | None] = found.pop()
    return outcome


async def _outcome(coroutine: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    """Its error as a value: raised through the loop it would keep the frames of that, and these the task."""
    import asyncio

    try:
        return await coroutine, None
    except asyncio.CancelledError as cancelled:
        error = TaskCancelled("the coroutine was cancelled")
        error.__cause__ = cancelled
        return None, error
    except BaseException as raised:
        return None, raised


def _run_through(
    coroutine: Coroutine[Any, Any, T], context: contextvars.Context
) -> tuple[T | None, BaseException | None]:
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        return context.run(loop.run_until_complete, _outcome(coroutine))
    finally:
        left = asyncio.all_tasks(loop)
        for one in left:
            one.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=CLOSE_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        _close(loop)
