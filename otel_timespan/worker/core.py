"""The core of a worker: it queues what the head gave, and leaves what is spawned to the head."""

from __future__ import annotations

from ..dagger.core.machine import Core
from ..dagger.tasks.dtask import DONE, LAUNCHED, UNLAUNCHED, DTask

__all__ = ["WorkerCore"]


class WorkerCore(Core):
    """See the module."""

    __slots__ = ()

    def submit_known(self, task: DTask) -> None:
        """A queue of tasks held this one back: it goes to the head now, unless it was cancelled meanwhile."""
        self.held.pop(task.id, None)
        if task._state == UNLAUNCHED:
            task._state = LAUNCHED
        if task._state < DONE and hasattr(task, "_open"):
            self.driver.submit(task)
