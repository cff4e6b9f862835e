"""Task queues decide when tasks are submitted, and behind what. See docs/concepts.md.

A queue is in force for a block of code, as the scoped option `task_queue`, which never propagates: bodies
begin with the default queue, which submits at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import TaskCancelled
from .bodies.ending import fail
from .fetching import fetch, note_failure, wait
from .options.options import Options
from .options.scoped import get_options, with_options

if TYPE_CHECKING:
    from .tasks.dtask import DTask

__all__ = [
    "BulkQueue",
    "DefaultTaskQueue",
    "SequentialQueue",
    "Spec",
    "TaskQueue",
    "WaitQueue",
    "bulk",
    "in_queue",
    "sequential",
    "spawn_bulk",
    "spawn_sequential",
    "wait_all",
    "waiting",
]

T = TypeVar("T")


class Spec(NamedTuple):
    """What `spawn` was asked for."""

    f: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: Options


Pairs = Sequence[tuple[Spec, "DTask"]]


class TaskQueue(ABC):
    """Receives what is spawned in its block, one pair or a batch, in the spawning thread.

    What `enqueue` raises, `spawn` raises.
    """

    @abstractmethod
    def enqueue(self, pairs: Pairs) -> None:
        """Take tasks: submit them, hold them back, or hand them to an outer queue."""


class DefaultTaskQueue(TaskQueue):
    """Submits immediately; a batch in its order."""

    def enqueue(self, pairs: Pairs) -> None:
        """Submit each task to its scheduler."""
        for _, task in pairs:
            task._core.submit_known(task)


class _Wrapping(TaskQueue):
    """A queue that hands on to the one that was in force around it."""

    def __init__(self) -> None:
        self.outer: TaskQueue = get_options("task_queue", DEFAULT_QUEUE)


class BulkQueue(_Wrapping):
    """Holds everything back until `launch`."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[tuple[Spec, DTask]] = []

    def enqueue(self, pairs: Pairs) -> None:
        """Keep them: they are "not launched"."""
        self._held += pairs

    def launch(self) -> None:
        """Hand everything on as one batch."""
        held, self._held = self._held, []
        if held:
            self.outer.enqueue(held)

    def drop(self) -> None:
        """The block failed: what it held is cancelled, so that nobody waits for it for ever."""
        held, self._held = self._held, []
        for _, task in held:
            fail(task._core, task, TaskCancelled("the block that was to launch this task failed"), "cancellation")


class SequentialQueue(_Wrapping):
    """Each task, or each batch, waits for the one before."""

    def __init__(self) -> None:
        super().__init__()
        self._previous: tuple[DTask, ...] = ()

    def enqueue(self, pairs: Pairs) -> None:
        """Add the dependencies, then hand on at once."""
        for _, task in pairs:
            task._deps = (*task._deps, *self._previous)
        self._previous = tuple(task for _, task in pairs)
        self.outer.enqueue(pairs)


class WaitQueue(_Wrapping):
    """Hands on at once and remembers what to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[DTask] = []

    def enqueue(self, pairs: Pairs) -> None:
        """Remember, then hand on."""
        self.tasks += [task for _, task in pairs]
        self.outer.enqueue(pairs)


DEFAULT_QUEUE = DefaultTaskQueue()


@contextmanager
def in_queue(queue: TaskQueue) -> Iterator[TaskQueue]:
    """Spawn into `queue` within the block."""
    with with_options(task_queue=queue):
        yield queue


@contextmanager
def bulk() -> Iterator[None]:
    """Tasks spawned in the block are launched together when it ends; before that they are not launched."""
    queue = BulkQueue()
    try:
        with in_queue(queue):
            yield
    except BaseException:
        queue.drop()
        raise
    queue.launch()


@contextmanager
def sequential() -> Iterator[None]:
    """Each task spawned in the block waits for the one before (each batch for every task of the last)."""
    with in_queue(SequentialQueue()):
        yield


@contextmanager
def waiting(check_errors: bool = False) -> Iterator[None]:
    """Wait at the end for every task spawned in the block; `check_errors` raises the first failure."""
    queue = WaitQueue()
    with in_queue(queue):
        yield
    for task in queue.tasks:
        wait(task)
    if check_errors:
        try:
            for task in queue.tasks:
                fetch(task)
        finally:  # the first failure is raised, the others are known to be there
            for task in queue.tasks:
                note_failure(task)


def spawn_bulk(f: Callable[[], T]) -> T:
    """Call `f` in a `bulk` block; its result."""
    with bulk():
        return f()


def spawn_sequential(f: Callable[[], T]) -> T:
    """Call `f` in a `sequential` block; its result."""
    with sequential():
        return f()


def wait_all(f: Callable[[], T], check_errors: bool = False) -> T:
    """Call `f` in a `waiting` block; its result."""
    with waiting(check_errors):
        return f()
