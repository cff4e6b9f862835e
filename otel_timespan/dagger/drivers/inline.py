"""The deterministic driver: one thread, an injected clock and random source, any number of pretended workers.

Nothing runs until somebody waits; then ready tasks are run one after the other, chosen by the random
source among all that could run now, until the awaited one is done. The same seed gives the same order
and, with a clock that counts, the same log. It steps the very methods of the core that threads use.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError, SchedulingError
from ..bodies.run import restore, run
from ..core.invariants import check
from ..core.machine import Core
from ..core.placement import Slot, slots_of
from ..places.processors import topology
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, DTask

if TYPE_CHECKING:
    from ..context import Context

__all__ = ["InlineDriver"]

TICK_NS = 1_000_000
"""What the default clock counts a call: so much that bodies outweigh the cost of sending them to a worker."""


class InlineDriver:
    """Give it to `Context(driver=InlineDriver(...))`. Not thread-safe: one thread uses the context.

    `workers`: {worker id: number of slots}, default {1: 2}. `seed`: of the choices; None takes the oldest
    ready task always. `clock`: nanoseconds; default counts up by 1 ms a call. `validate`: check the invariants
    after every step (slow).
    """

    def __init__(
        self,
        workers: Mapping[int, int] | None = None,
        *,
        seed: int | None = None,
        clock: Callable[[], int] | None = None,
        validate: bool = False,
    ) -> None:
        self.validate = validate
        self.workers = dict(workers or {1: 2})
        if 1 not in self.workers or any(n < 1 for n in self.workers.values()):
            raise InvalidOptionError(f"workers must map 1 and others to slot counts of at least 1, not {workers!r}")
        self.random = random.Random(seed) if seed is not None else None
        self.clock = clock or _counting_clock()
        self.core: Core | None = None
        self.is_guest = False
        """Whether the pretended workers are those of another driver, which outlives this one."""
        self._steps = 0

    def similar(self) -> InlineDriver:
        """A fresh driver with the same workers and clock, and choices drawn from this one's."""
        seed = self.random.randrange(1 << 30) if self.random is not None else None
        similar = InlineDriver(self.workers, seed=seed, clock=self.clock, validate=self.validate)
        similar.is_guest = True
        return similar

    def attach(self, context: Context) -> Core:
        """Make the core that this driver steps."""
        for worker, count in self.workers.items():
            topology.add_worker(worker, count)
        used = [p.pid for p in context.procs if p.pid in self.workers]
        self.core = Core(context, [s for worker in used for s in slots_of(worker)], self.clock, self.random)
        return self.core

    def can_use(self, worker: int) -> bool:
        """Whether there is such a pretended worker."""
        return worker in self.workers

    def add_slots(self, slots: Iterable[Slot]) -> None:
        """Nothing runs until somebody waits."""

    def submit(self, task: DTask) -> None:
        """Submit; nothing runs yet."""
        task._core.submit(task)

    def wake(self) -> None:
        """Nothing runs until somebody waits."""

    def enqueue_ready(self, ready: Iterable[DTask]) -> None:
        """Queue tasks that became ready."""
        for task in ready:
            task._core.enqueue(task)

    def restore(self, task: DTask) -> Sequence[DTask] | None:
        """Finish a placed task by its option `restore`: what became ready; None if that gives no result."""
        return restore(task._core, task)

    def help(self, target: DTask) -> None:
        """Run ready tasks until `target` is done. Raises `SchedulingError` when nothing can run any more."""
        while target._state < DONE:
            if not self.step():
                raise SchedulingError(f"task {target.id} can't finish: nothing is left to run", "inconsistent")

    def step(self) -> bool:
        """Run one ready task; False when there is none."""
        core = self.core
        if core is None:
            return False
        choices = self._choices(core)
        if not choices:
            return False
        task, slot, victim = choices[0] if self.random is None else self.random.choice(choices)
        self._steps += 1
        if not claim(task):
            return True
        self._forget(core, task)
        if victim is not None:
            core.record_steal(slot, victim.processor, task.id)
        if task._context is not None:
            task._context.run(topology.acting.set, slot.worker)
        self.enqueue_ready(run(core, task, slot, helping=True))
        if self.validate:
            check(core)
        return True

    def _choices(self, core: Core) -> list[tuple[DTask, Slot, Slot | None]]:
        """(task, slot that may run it now, slot from whose queue it would be stolen)."""
        found: list[tuple[DTask, Slot, Slot | None]] = []
        for worker, queue in core.shared.items():
            slots = core.threads[worker]
            found += [(task, slots[self._steps % len(slots)], None) for task in queue if hasattr(task, "_claim")]
        for slot in core.slots.values():
            for _, _, task, others in sorted(slot.heap, key=lambda entry: entry[:2])[:1]:
                if hasattr(task, "_claim"):
                    thieves = [s for s in others if s is not slot] if self.random is not None else []
                    found += [(task, slot, None), *((task, thief, slot) for thief in thieves)]
        return found

    def _forget(self, core: Core, task: DTask) -> None:
        """Take it, and whatever else is done or taken, out of the queues."""
        for queue in core.shared.values():
            kept = [t for t in queue if hasattr(t, "_claim")]
            queue.clear()
            queue.extend(kept)
        for slot in core.slots.values():
            slot.heap[:] = [entry for entry in slot.heap if hasattr(entry[2], "_claim")]
            heapq.heapify(slot.heap)
        core.waiting = {slot for slot in core.slots.values() if slot.heap}
        core.effects.clear()

    def pause(self) -> None:
        """A body that blocks has nobody to wait for here."""
        reason = "a body blocked with a timeout or in an event loop: the inline driver can't do that"
        raise SchedulingError(reason, "inconsistent")

    def resume(self, hold: Any) -> None:
        """Never reached: `pause` raises."""

    def abandon(self, task: DTask) -> None:
        """Nothing to give back: the body is below us on the stack."""

    def is_idle(self) -> bool:
        """Whether nothing is under way between calls."""
        return True

    def close(self, timeout_s: float = 0.0) -> None:
        """Forget the pretended workers."""
        for worker in () if self.is_guest else self.workers:
            if worker == 1:
                topology.add_worker(1)
            else:
                topology.remove_worker(worker)


def _counting_clock() -> Callable[[], int]:
    ticks = itertools.count(1)
    return lambda: next(ticks) * TICK_NS
