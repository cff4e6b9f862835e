"""The deterministic driver: one thread, an injected clock and random source, any number of pretended workers.

Nothing runs until somebody waits; then ready tasks are run one after the other, chosen by the random
source among all that could run now, until the awaited one is done. The same seed gives the same order
and, with a clock that counts, the same log. It steps the very methods of the core that threads use.
"""

from __future__ import annotations

import contextvars
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError, SchedulingError
from ..bodies.coroutines import run_here
from ..bodies.ending import give_up, perform
from ..bodies.run import run
from ..core.invariants import check
from ..core.machine import Core
from ..core.placement import Slot, slots_of
from ..places.topology import topology
from ..service.uninterrupted import uninterrupted
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, DTask
from .base import Driver

if TYPE_CHECKING:
    from ..context import Context

__all__ = ["InlineDriver"]

TICK_NS = 1_000_000
"""What the default clock counts a call: so much that bodies outweigh the cost of sending them to a worker."""


class InlineDriver(Driver):
    """Give it to `Context(driver=InlineDriver(...))`. Not thread-safe: one thread uses the context.

    `workers`: {worker id: number of slots}, default {1: 2}. `seed`: of the choices; None takes the oldest
    ready task always. `clock`: nanoseconds; default counts up by 1 ms a call. `validate`: check the invariants
    after every step (slow).
    """

    is_stepped = True

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
        self._performing = False

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
        self.core.driver = self
        return self.core

    def can_use(self, worker: int) -> bool:
        """Whether there is such a pretended worker."""
        return worker in self.workers

    def add_slots(self, slots: Iterable[Slot]) -> None:
        """Nothing runs until somebody waits."""
        self.perform_effects()

    def submit(self, task: DTask) -> None:
        """Submit; nothing runs yet."""
        task._core.submit(task)
        self.perform_effects()

    def wake(self) -> None:
        """Nothing runs until somebody waits."""

    def enqueue_ready(self, ready: Sequence[DTask]) -> None:
        """Queue tasks that became ready."""
        for task in ready:
            task._core.enqueue(task)
        self.perform_effects()

    def perform_effects(self) -> None:
        """End what can only fail, or can be restored. Slots look at their queues with each step anyway."""
        core = self.core
        if core is None or self._performing:
            return
        self._performing = True
        try:
            while core.effects:
                effect = core.effects.popleft()
                if type(effect) is not Slot:
                    uninterrupted(perform, core, effect)
        finally:
            self._performing = False

    def help(self, target: DTask) -> bool:
        """Run ready tasks until `target` is done. Raises `SchedulingError` when nothing can run any more."""
        while target._state < DONE:
            if not self.step():
                raise SchedulingError(f"task {target.id} can't finish: nothing is left to run", "inconsistent")
        return True

    def step(self) -> bool:
        """Run one ready task; False when there is none."""
        core = self.core
        if core is None:
            return False
        choice = self._choose(core)
        if choice is None:
            return False
        task, slot, victim = choice
        self._steps += 1
        if not claim(task):
            return True
        if victim is not None:
            core.record_steal(slot, victim.processor, task.id)
        if task._context is not None:
            task._context.run(topology.acting.set, slot.worker)
        try:
            run(core, task, slot, True)
        except BaseException:  # it may have come in our own code, before the body or after it
            uninterrupted(give_up, core, task)
            raise
        if self.validate:
            check(core)
        return True

    def _choose(self, core: Core) -> tuple[DTask, Slot, Slot | None] | None:
        """(task, slot that runs it now, slot from whose queue it is stolen), taken out of its queue; None without any.

        Among all that could run now chance decides; without it the oldest task of the first queue goes first.
        """
        while True:
            pinned = [choice for slot in core.slots.values() for choice in self._pinned(core, slot)]
            total = sum(map(len, core.shared.values())) + len(pinned)
            if not total:
                return None
            n = 0 if self.random is None else self.random.randrange(total)
            for worker, queue in core.shared.items():
                if n < len(queue):
                    task = queue[n]
                    del queue[n]
                    slots = core.threads[worker]
                    if hasattr(task, "_claim"):
                        return task, slots[self._steps % len(slots)], None
                    break  # it was cancelled, or taken
                n -= len(queue)
            else:
                core.take_out(pinned[n][0])
                return pinned[n]

    def _pinned(self, core: Core, slot: Slot) -> list[tuple[DTask, Slot, Slot | None]]:
        """What the head of a slot's own queue may do: run there, or be stolen."""
        while slot.heap and not hasattr(slot.heap[0][2], "_claim"):
            core.unqueue(slot)
        if not slot.heap:
            return []
        _, _, task, others = slot.heap[0]
        thieves = [s for s in others if s is not slot] if self.random is not None else []
        return [(task, slot, None), *((task, thief, slot) for thief in thieves)]

    def go_on(self, task: DTask, coroutine: Any, context: contextvars.Context, over: Callable[..., int]) -> int:
        """Here and now, to its end: there `await task` steps this driver."""
        value: Any = None
        error: BaseException | None = None
        try:
            value, error = run_here(coroutine, context)
        except BaseException as raised:
            error = raised
        try:
            return over(value, error, helping=True)
        finally:
            error = None

    def pause(self) -> None:
        """A body that blocks has nobody to wait for here."""
        reason = "a body blocked with a timeout or in an event loop: the inline driver can't do that"
        raise SchedulingError(reason, "inconsistent")

    def resume(self, paused: Any) -> None:
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
