"""What code knows about the task that it runs in, and about the `sync` block around it.

One context variable holds the running `DTask` (inside a body) or a `SyncBlock` (in a `sync` block). A body
runs in a copy of its spawner's context with the variable set to itself, so a body never sees a block of
its spawner.

See docs/concepts.md.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from typing import TYPE_CHECKING

from ... import forks
from ...errors import ConcurrencyViolationError, TaskCancelled
from ..service.guards import guard
from ..service.threads import carry
from .dtask import DONE, DTask, live

if TYPE_CHECKING:
    from ..places.processors import Processor

__all__ = [
    "CancelToken",
    "SyncBlock",
    "current",
    "get_tls",
    "in_event_loop",
    "in_task",
    "must_be_in_task",
    "set_tls",
    "task_cancel",
    "task_cancelled",
    "task_id",
    "task_logging_enabled",
    "task_may_cancel",
    "task_processor",
]


class SyncBlock:
    """A `sync` block, outside of or within a body: `tasks` collects what its thread spawns in it.

    `task` is the body around it, None outside of bodies.
    """

    __slots__ = ("task", "tasks", "thread")

    def __init__(self) -> None:
        self.task: DTask | None = running_task()
        self.tasks: list[DTask] = []
        self.thread = threading.get_ident()

    def note(self, task: DTask) -> None:
        """A task was spawned here. Threads that inherited the block do not count."""
        if self.thread == threading.get_ident():
            self.tasks.append(task)


current: contextvars.ContextVar[DTask | SyncBlock | None] = contextvars.ContextVar("otel_timespan.task", default=None)
carry(current)

here = current.get
"""What the calling code is in: a task's body, a `sync` block, or None. As `current.get`, which takes twice as long."""

enter = current.set
"""Make the calling code part of a body or block; as `current.set`."""

loop_threads: set[int] = set()
"""Idents of the threads that run coroutine bodies (see coroutines.py)."""


forked_in: list[tuple[DTask, int]] = []
"""The task whose body forked this process, and the thread that it is on; empty in all other processes."""


@forks.in_child("loop_threads", "forked_in")
def _in_child() -> None:
    """What goes on in a child is no body of the parent's scheduler, even where one of its bodies forked."""
    loop_threads.clear()
    task = running_task()
    forked_in[:] = [] if task is None else [(task, threading.get_ident())]
    current.set(None)


def running_task() -> DTask | None:
    """The task whose body this code belongs to, None outside of bodies."""
    here = current.get()
    return here.task if isinstance(here, SyncBlock) else here


def in_event_loop() -> bool:
    """Whether this thread runs an asyncio event loop right now."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        return asyncio._get_running_loop() is not None
    except AttributeError:  # it is just being imported
        return False


def in_task() -> bool:
    """Whether this code runs in the body of a task."""
    return running_task() is not None


def must_be_in_task(what: str) -> DTask:
    """The running task. Raises `ConcurrencyViolationError`, naming `what`, outside of bodies."""
    task = running_task()
    if task is None:
        raise ConcurrencyViolationError(f"{what} was called outside of a task's body")
    return task


def task_id() -> int:
    """The id of the running task. Raises `ConcurrencyViolationError` outside of a body, as do all below."""
    return must_be_in_task("task_id()").id


def task_processor() -> Processor:
    """The processor that runs this body."""
    processor: Processor = must_be_in_task("task_processor()")._slot.processor
    return processor


def task_logging_enabled() -> bool:
    """Whether the scheduler of this task logs."""
    return must_be_in_task("task_logging_enabled()")._core.context.recorder is not None


def get_tls() -> DTask:
    """The environment of this body, to hand to a thread that the body starts."""
    return must_be_in_task("get_tls()")


def set_tls(tls: DTask) -> None:
    """Make this thread part of the body that `tls` was taken in."""
    current.set(tls)


_token_lock = guard()


class CancelToken:
    """Says whether a task was cancelled, and whether gracefully. Thread-safe."""

    __slots__ = ("cancelled", "graceful")

    def __init__(self) -> None:
        self.cancelled = False
        self.graceful = True

    def cancel(self, graceful: bool = True) -> None:
        """Cancel; only a non-graceful cancel clears `graceful`."""
        if not graceful:
            self.graceful = False
        self.cancelled = True

    def is_cancelled(self, must_force: bool = False) -> bool:
        """Whether it was cancelled; with `must_force` a graceful cancellation is ignored."""
        return self.cancelled and not (must_force and self.graceful)


def token_of(task: DTask) -> CancelToken:
    """The cancel token of a task, made at the first need."""
    extra, made = live(task), CancelToken()
    with _token_lock:
        if extra.token is None:
            extra.token = made
    token: CancelToken = extra.token
    if task._state >= DONE:  # it ended before anybody asked
        token.cancel()
    return token


def end_token(task: DTask) -> None:
    """The task ended: what it started may stop."""
    if task._live is not None and task._live.token is not None:
        task._live.token.cancel()


def task_cancelled(must_force: bool = False) -> bool:
    """Whether the running task was cancelled: its result is not wanted any more."""
    return token_of(must_be_in_task("task_cancelled()")).is_cancelled(must_force)


def task_may_cancel(must_force: bool = False) -> None:
    """Raise `TaskCancelled` here if the running task was cancelled."""
    if task_cancelled(must_force):
        raise TaskCancelled("the task was cancelled")


def task_cancel(graceful: bool = True) -> None:
    """Cancel the token of the running task, so that helpers it started can stop."""
    token_of(must_be_in_task("task_cancel()")).cancel(graceful)
