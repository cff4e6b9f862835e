"""The driver of a simulated clock: the same core and placement, with virtual workers, speeds and networks.

A discrete-event simulation: a free slot takes a task (its own queue, its worker's, then by stealing), waits for
the data that lie elsewhere, is busy for the task's duration, and then the body runs, in no time, with the clock
at the task's end. So hours on a hundred workers take seconds here, and policies can be compared on what counts:
the makespan. Durations come from a function, sizes from the results (their `nbytes`).

See docs/scheduling.md.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from ..bodies.ending import give_up
from ..bodies.run import run
from ..core.costs import remote_bytes
from ..core.machine import Core
from ..core.placement import Slot, inputs_of, steal, steal_from_afar
from ..places.processors import OSProc
from ..service.uninterrupted import uninterrupted
from ..tasks.atomics import claim
from ..tasks.dtask import DTask
from .inline import InlineDriver

__all__ = ["SimulatedDriver"]

Duration = Callable[[DTask], float]


class SimulatedDriver(InlineDriver):
    """Give it to `Context(driver=SimulatedDriver(...))`. Not thread-safe: one thread uses the context.

    `workers`: {worker id: slots}. `duration(task)`: seconds that its body takes on a worker of speed 1.
    `speeds`: {worker id: factor}, default 1. `bandwidth`: bytes per second to any worker from others.
    `seed`: of the choice among equals. `now` is the simulated time in nanoseconds.
    """

    def __init__(
        self,
        workers: Mapping[int, int],
        duration: Duration,
        *,
        speeds: Mapping[int, float] | None = None,
        bandwidth: float = 1e9,
        seed: int = 0,
    ) -> None:
        super().__init__(workers, seed=seed, clock=self._read)
        self.now = 1
        self.moved_bytes = 0
        """Bytes that went from one worker to another so far."""
        self.duration, self.speeds, self.bandwidth = duration, dict(speeds or {}), bandwidth
        self._times = (0, 0)  # when the task that is run began, and was taken
        self._past: list[int] = []  # what the clock says meanwhile, the last one first
        self._ends: list[tuple[int, int, Slot, DTask, tuple[int, int]]] = []
        self._busy: set[Slot] = set()
        self._order = itertools.count()

    def similar(self) -> SimulatedDriver:
        """A fresh driver of the same machine, at time 0."""
        similar = SimulatedDriver(self.workers, self.duration, speeds=self.speeds, bandwidth=self.bandwidth)
        similar.is_guest = True
        return similar

    def _read(self) -> int:
        """The clock: a body that is just run was taken, and began when its slot had its data; it ends now."""
        past = self._past
        return self.now if not past else past.pop() if len(past) > 1 else past[0]

    def step(self) -> bool:
        """Let every free slot take a task, then go on to the next end of one; False when nothing is left."""
        core = self.core
        if core is None:
            return False
        for slot in sorted(core.slots.values(), key=lambda slot: (slot.processor != core.home, repr(slot.processor))):
            if slot not in self._busy:
                self._take(core, slot)
        if not self._ends:
            return False
        self.now, _, slot, task, self._times = heapq.heappop(self._ends)
        self._busy.discard(slot)
        self._past = [self._times[0]]
        context: Any = task._context
        if context is not None and type(context) is not _PastContext:
            task._context = _PastContext(self, context)  # type: ignore[assignment]
        try:
            run(core, task, slot, True)
        except BaseException:  # see `InlineDriver.step`
            uninterrupted(give_up, core, task)
            raise
        finally:
            self._past = []
        return True

    def _take(self, core: Core, slot: Slot) -> None:
        task = self._own(core, slot) or self._shared(core, slot) or self._stolen(core, slot)
        if task is None:
            return
        nbytes = int(remote_bytes(inputs_of(task), slot.worker))
        move_ns = int(nbytes * 1e9 / self.bandwidth)
        core.costs.learn_rate(slot.worker, nbytes, move_ns)
        self.moved_bytes += nbytes
        begun = self.now + move_ns
        end = begun + max(1, int(self.duration(task) * 1e9 / self.speeds.get(slot.worker, 1.0)))
        self._busy.add(slot)
        heapq.heappush(self._ends, (end, next(self._order), slot, task, (begun, self.now)))

    def _own(self, core: Core, slot: Slot) -> DTask | None:
        while slot.heap:
            task: DTask = core.unqueue(slot)[2]
            if claim(task):
                return task
        return None

    def _shared(self, core: Core, slot: Slot) -> DTask | None:
        queue = core.shared[slot.worker]
        while slot.shares and queue:
            task = queue.popleft()
            if claim(task):
                return task
        return None

    def _stolen(self, core: Core, slot: Slot) -> DTask | None:
        near = steal(core, slot, lambda *_: True)
        if near is not None and claim(near[1]):
            core.record_steal(slot, near[0].processor, near[1].id)
            return near[1]
        far = steal_from_afar(core, slot)
        if far is None:
            return None
        core.record_steal(slot, OSProc(far[1]), far[0].id)
        return far[0]


class _PastContext:
    """A task's context. What runs in it, in no time, happens when the task begins; the clock goes on after it."""

    __slots__ = ("_context", "_driver")

    def __init__(self, driver: SimulatedDriver, context: contextvars.Context) -> None:
        self._driver, self._context = driver, context

    def run(self, f: Callable[..., Any], *args: Any) -> Any:
        """As `contextvars.Context.run`."""
        self._driver._past = [*self._driver._times]  # the first reading is when it was taken
        try:
            return self._context.run(f, *args)
        finally:
            self._driver._past = []

    def copy(self) -> _PastContext:
        """As `contextvars.Context.copy`."""
        return _PastContext(self._driver, self._context.copy())
