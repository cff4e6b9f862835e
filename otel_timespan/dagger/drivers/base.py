"""What a driver is: who performs what the core decides. The contract between the two, method by method.

The core (core/machine.py) moves tasks between states and puts ready ones into queues. A driver takes them out of
there, begins their bodies (bodies/run.py), and has them ended (bodies/ending.py). It owns threads, processes or a
clock; the core owns none.

Who calls: *spawner*, any thread of the program, in `spawn`; *ender*, whichever thread ends a task; *waiter*, a
thread in `fetch` or `wait`; *control*, a thread that cancels, adds or removes workers, or shuts down. Unless a method
says otherwise it may be called by several threads at once, takes what locks it needs itself, and is never called
under `Core.lock`. None may raise, except what is said; what a signal handler raises in the main thread may come out
of any of them, and must leave no slot and no task behind (tasks/atomics.py says how).

One behavioural suite runs over every driver: tests/dagger/test_drivers.py.

See docs/architecture.md.
"""

from __future__ import annotations

import contextvars
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..core.machine import Core
from ..core.placement import Slot
from ..tasks.dtask import DTask

if TYPE_CHECKING:
    from ..context import Context

__all__ = ["Driver", "methods_missing"]


class Driver(Protocol):
    """The methods of a driver. A class that derives from this and lacks one can't be made."""

    is_stepped: bool
    """Whether nothing runs unless somebody calls `step`: a waiter must, and can't block."""

    is_starved: bool = False
    """Whether nobody comes for what waits, as the system gives no threads: whoever waits is to run tasks (`step`)."""

    @abstractmethod
    def attach(self, context: Context) -> Core:
        """Make the core that this driver serves, in a context that starts. Called once, by the thread that starts it.

        May raise what is wrong with its settings; the context then stays as it was.
        """

    @abstractmethod
    def can_use(self, worker: int) -> bool:
        """Whether this driver can run bodies on that worker."""

    def expect(self, worker: int) -> None:
        """A worker that it can use is about to come to the core: see to its queue. By control, before `add_slots`."""
        return

    @abstractmethod
    def add_slots(self, slots: Iterable[Slot]) -> None:
        """Slots came to the core: what waits may begin in them. By control."""

    @abstractmethod
    def submit(self, task: DTask) -> None:
        """Submit a new task to the core, perform its effects, and see to it that somebody runs it. By a spawner.

        On the hot path: one call a task. Raises what the log's hooks raise.
        """

    @abstractmethod
    def enqueue_ready(self, ready: Sequence[DTask]) -> None:
        """Queue tasks that became ready outside of an ending, and perform the effects of that. Wakes nobody."""

    @abstractmethod
    def perform_effects(self) -> None:
        """Do what stands in `Core.effects`, and take it out. By whoever called a method of the core that adds some.

        A call within a call returns at once: the outer one goes on with what was added.
        """

    @abstractmethod
    def wake(self) -> None:
        """There may be work for one more body in a shared queue. Called after each task that was queued."""

    @abstractmethod
    def help(self, target: DTask) -> bool:
        """Run, on this thread, what `target` needs, as long as nobody else does. By a waiter without a timeout.

        Returns, whether it ran something, early where others are at it, or where the waiter could not be left in time:
        it then blocks. A stepped driver returns only when it is done, and
        raises `SchedulingError` when nothing can run any more. Raises Ctrl-C and the like.
        """

    @abstractmethod
    def step(self) -> bool:
        """Run one task, if there is one: whether there was. Stepped drivers; others while they are starved."""

    @abstractmethod
    def pause(self) -> Any:
        """The body on this thread is about to block: its slot goes back. What it gives goes to `resume`, once.

        By a waiter in a body. Raises `NestingError` where too many bodies wait inside each other, and
        `SchedulingError` where a body can't block.
        """

    @abstractmethod
    def resume(self, paused: Any) -> None:
        """The body goes on: wait until it has its slot, or its share of it, again. By the thread that paused."""

    def block(self, lock: Any, timeout_s: float) -> bool:
        """Acquire a lock that is released when what a thread waits for is there: whether it was, in time. By a waiter.

        A driver whose threads bring that in themselves does so meanwhile.
        """
        acquired: bool = lock.acquire(timeout=timeout_s)
        return acquired

    @abstractmethod
    def go_on(
        self, task: DTask, coroutine: Any, context: contextvars.Context, over: Callable[..., int]
    ) -> int:
        """The body of a task gave a coroutine: have it run to its end, in that context, and hand over what it gave.

        `over(value, error)` is called exactly once, later on any thread; or before this returns, on this one, and then
        as `over(value, error, helping=True)`, which raises Ctrl-C and the like here. It gives the number of tasks that
        became ready, for each of which somebody is to be woken. Called on the thread of the body, whose
        slot goes back. Returns that number where `over` was called before, else 0.
        """

    @abstractmethod
    def abandon(self, task: DTask) -> None:
        """A body that runs has been given up: take its slot away from it, so that others may run. By control."""

    def interrupt(self, task: DTask) -> bool:
        """A body that runs is to be interrupted: whether another process has it, which does that. By control."""
        return False

    @abstractmethod
    def is_idle(self) -> bool:
        """Whether no thread of it has a slot, and so no task, in hand. A look at the moment."""

    def forget(self) -> None:
        """This is a forked child, where its threads are not: it may run nothing that it has in hand. By the context."""
        return

    @abstractmethod
    def close(self, timeout_s: float = ...) -> None:
        """The core went down: end all threads, and wait that long for those that run bodies. By control."""


METHODS = tuple(sorted(Driver.__abstractmethods__))


def methods_missing(driver: Any) -> list[str]:
    """What an object lacks to be a driver: names of methods, sorted; empty for a driver."""
    return [name for name in METHODS if not callable(getattr(driver, name, None))]
