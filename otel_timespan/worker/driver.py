"""The scheduler of a worker: it has threads, and no say. Bodies run as they do in the head (bodies/run.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..dagger.drivers.threads import ThreadsDriver
from ..dagger.tasks.dtask import DTask

if TYPE_CHECKING:
    from .link import Link

__all__ = ["WorkerDriver"]


class WorkerDriver(ThreadsDriver):
    """Runs what the head gives, and leaves to the head what is spawned here."""

    def __init__(self, worker: int, link: Link) -> None:
        super().__init__(worker)
        self._link = link

    def submit(self, task: DTask) -> None:
        """A body, or a thread of the program in this process, spawned a task."""
        self._link.spawned(task)

    def help(self, target: DTask | None) -> bool:
        """What is waited for here runs where the head wants it."""
        return False

    def pause(self) -> Any:
        """A body is about to block: what it spawned must have left by then."""
        self._link.flush()
        return super().pause()
