"""The scheduler of a worker: it has threads, and no say. Bodies run as they do in the head (bodies/run.py)."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from ..dagger.bodies import interrupts
from ..dagger.bodies.ending import report_defect
from ..dagger.bodies.run import run
from ..dagger.drivers.moves import take_free
from ..dagger.drivers.slots import Hold, Resumption
from ..dagger.drivers.threads import ThreadsDriver
from ..dagger.processes.failpoints import fail_at, reach
from ..dagger.processes.flight import ENDED, FlightRecorder
from ..dagger.tasks.atomics import claim
from ..dagger.tasks.dtask import DTask
from ..dagger.tasks.environment import running_task
from .core import WorkerCore

if TYPE_CHECKING:
    from .link import Link

__all__ = ["TimedContext", "WorkerDriver"]


class TimedContext:
    """A task's context, which times its body and notes it in the flight recorder.

    `ns`: how long what ran in it took, for the head's costs; 0 until it did. `task` is set before it is used.
    """

    __slots__ = ("_attempt", "_flight", "_id", "_is_told", "_row", "context", "ns", "task")

    def __init__(self, context: contextvars.Context, flight: FlightRecorder, id: int, attempt: int) -> None:
        self.context = context
        self.ns = 0
        self.task: DTask
        self._flight, self._id, self._attempt = flight, id, attempt
        self._is_told = False
        self._row: int

    @interrupts.see_through
    def run(self, f: Callable[..., Any], *args: Any) -> Any:
        """As `contextvars.Context.run`."""
        begun = monotonic_ns()
        flight, slot = self._flight, self.task._slot
        self._row = row = flight.begin(self._id, self._attempt, slot.number, begun)
        if fail_at is not None:
            reach("in_body")
        try:
            return self.context.run(f, *args)
        finally:
            self.ns = monotonic_ns() - begun
            flight.phase(row, ENDED)
            if self._is_told:  # it was given up meanwhile
                self._free()
            if fail_at is not None:
                reach("after_body")

    def phase(self, phase: int) -> None:
        """What the body is at now (flight.py): it waits, it goes on."""
        row = getattr(self, "_row", None)
        if row is not None:  # else it was given up, and the head told
            self._flight.phase(row, phase)

    def told(self) -> int | None:
        """The head is being told the outcome: the row to be freed when it was sent; None while the body runs on."""
        self._is_told = True
        return self._take_row() if self.ns else None

    def _free(self) -> None:
        row = self._take_row()
        if row is not None:
            self._flight.end(row)

    def _take_row(self) -> int | None:
        """The row, once: by deleting it, as a task is claimed."""
        try:
            row = self._row
            del self._row
        except AttributeError:
            return None
        return row

    def copy(self) -> TimedContext:
        """Itself: a next attempt, whose variables are to be kept apart, comes as another task."""
        return self


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

    def work_here(self) -> None:
        """Run what waits for any thread, on this one, until there is nothing; if a slot is free."""
        hold = Hold()
        if not take_free(self.free, hold):
            return
        core, queue, own = self.core, self.queue, self._local.own
        own.hold = hold
        self._list(own, hold)
        while hold.slot is not None and not self.resuming and not hold.slot.heap:
            try:
                task = queue.popleft()
            except IndexError:
                break
            if not claim(task):
                del task
                continue
            try:
                run(core, task, hold.slot)
            except BaseException as error:  # of ours: bodies' own are outcomes
                report_defect(core, task, error)
            del task
        own.hold = None
        self._let_go(hold)

    def block(self, lock: Any, timeout_s: float) -> bool:
        """What ends a wait comes from the head: read it here, if nobody else reads."""
        return self._link.wait(lock, timeout_s)

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

    def go_on(self, task: DTask, coroutine: Any, context: Any, over: Callable[..., int]) -> int:
        """A coroutine needs no slot: the head may send others. The loop wants the plain context."""
        self._link.pauses(task, True)
        return super().go_on(task, coroutine, context.context, over)
