"""The scheduler of a worker: it has threads, and no say. Bodies run as they do in the head (bodies/run.py)."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..dagger.drivers.slots import Resumption
from ..dagger.drivers.threads import ThreadsDriver
from ..dagger.tasks.dtask import DTask
from ..dagger.tasks.environment import running_task
from .core import WorkerCore

if TYPE_CHECKING:
    from .link import Link

__all__ = ["WorkerDriver"]


class WorkerDriver(ThreadsDriver):
    """Runs what the head gives, and leaves to the head what is spawned here."""

    core_type = WorkerCore

    def __init__(self, worker: int, link: Link) -> None:
        super().__init__(worker)
        self._link = link

    def submit(self, task: DTask) -> None:
        """A body, or a thread of the program in this process, spawned a task."""
        self._link.spawned(task)

    def help(self, target: DTask | None) -> bool:
        """What is waited for here runs where the head wants it."""
        return False

    def pause(self) -> Resumption:
        """A body is about to block: what it spawned must have left by then, and the head may send others."""
        paused = super().pause()
        if paused.hold is not None:
            self._link.pauses(running_task(), True)
        self._link.flush()
        return paused

    def resume(self, paused: Resumption) -> None:
        """The body goes on."""
        super().resume(paused)
        if paused.hold is not None:
            self._link.pauses(running_task(), False)

    def go_on(self, task: DTask, coroutine: Any, context: contextvars.Context, over: Callable[..., int]) -> int:
        """A coroutine needs no slot: the head may send others."""
        self._link.pauses(task, True)
        return super().go_on(task, coroutine, context, over)
