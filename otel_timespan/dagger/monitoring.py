"""The scheduler's state as users see it: the fields of `eager_state()`, and `status()`.

Everything is worked out when it is asked for: nobody pays for what nobody reads.

Source: spec/scheduler.md §18; design/rulings.md 6.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from .places.processors import OSProc, Processor
from .records.describe import function_name
from .tasks.dtask import DONE, FAILED, LAUNCHED, DTask, Result

if TYPE_CHECKING:
    from .core.costs import Costs, Signature
    from .core.machine import Core
    from .core.placement import Pressure, Slot

__all__ = ["Readable", "status"]

DEPTH, WIDTH = 5, 3
"""How much of the graph `status` shows: levels of dependents, and tasks a level."""


class Readable:
    """The readable fields of a scheduler; `Core` has them. Each is a copy of the moment."""

    __slots__ = ()

    costs: Costs
    pressure: dict[int, Pressure]
    slots: dict[Any, Slot]
    active: tuple[int, ...]
    devices: dict[int, Any] | None

    def unfinished(self) -> Iterator[DTask]:
        """Every submitted task without a result."""
        raise NotImplementedError  # Core's

    @property
    def running_count(self) -> int:
        """How many unfinished tasks wait for no other one: parked, queued, or running."""
        return sum(not task._tokens for task in self.unfinished())

    @property
    def signature_time_cost(self) -> dict[tuple[Signature, type], float]:
        """(signature, type of processor): learned run time in nanoseconds."""
        return dict(self.costs.time)

    @property
    def signature_alloc_cost(self) -> dict[tuple[Signature, type], float]:
        """(signature, type of processor): learned bytes of the result."""
        return dict(self.costs.alloc)

    @property
    def worker_transfer_rate(self) -> dict[int, float]:
        """Worker: bytes per second that reach it, as measured."""
        return dict(self.costs.rate)

    @property
    def worker_time_pressure(self) -> dict[int, dict[Processor, float]]:
        """Worker: {processor: expected nanoseconds of what was placed there}; `OSProc` for the shared queue.

        Empty of times where there is one worker and nothing to choose: then none are reserved.
        """
        found: dict[int, dict[Processor, float]] = {w: {OSProc(w): p.ns} for w, p in self.pressure.items()}
        for slot in self.slots.values():
            found[slot.worker][slot.processor] = slot.pressure.ns
        return found

    @property
    def worker_storage_pressure(self) -> dict[int, dict[Any, int]]:
        """Worker: {storage device: bytes that results take in memory}. Empty where nothing spills."""
        return self._storage("mem_used")

    @property
    def worker_storage_capacity(self) -> dict[int, dict[Any, int]]:
        """Worker: {storage device: bytes that results may take in memory}. Empty where nothing spills."""
        return self._storage("mem_limit")

    def _storage(self, name: str) -> dict[int, dict[Any, int]]:
        return {worker: {device: getattr(device, name)} for worker, device in (self.devices or {}).items()}

    @property
    def worker_loadavg(self) -> dict[int, tuple[float, float, float]]:
        """Worker: load averages over 1, 5 and 15 minutes. All workers of this core share our host."""
        return dict.fromkeys(self.active, os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0))


def status(io: TextIO | None = None) -> str:
    """What the scheduler is doing, as text: the running count, then unfinished tasks with their dependents.

    Flags: E failed, R running, C has its result, w waits for a slot, W waits for inputs, f somebody waits for
    it, ? unknown. At most 5 levels deep and 3 tasks wide; what is left out is counted. Written to `io`, if
    given; returned either way. Source: spec/scheduler.md §18.
    """
    from .context import eager_state

    core = eager_state()
    text = "no scheduler is running\n" if core is None else "".join(_lines(core))
    if io is not None:
        io.write(text)
    return text


def _lines(core: Core) -> Iterator[str]:
    tasks = sorted(core.unfinished(), key=lambda task: task.id)
    count = sum(not task._tokens for task in tasks)
    yield f"scheduler {core.uid}: {count} running or ready, {len(tasks)} unfinished, {len(core.active)} worker(s)\n"
    roots = [task for task in tasks if not task._tokens]
    shown: set[int] = set()
    yield from _level(core, roots, 1, shown)


def _level(core: Core, tasks: list[DTask], depth: int, shown: set[int]) -> Iterator[str]:
    new = [task for task in tasks if task.id not in shown]
    indent = "  " * depth
    for task in new[:WIDTH]:
        shown.add(task.id)
        yield f"{indent}{flags(core, task):<3} {task.id}: {function_name(task._f) if task._f else 'done'}\n"
        below = [sub for sub in list(task._subs) if type(sub) is DTask]
        if below and depth < DEPTH:
            yield from _level(core, below, depth + 1, shown)
        elif below:
            yield f"{indent}    ... {len(below)} dependent(s)\n"
    if len(new) > WIDTH:
        yield f"{indent}... {len(new) - WIDTH} more\n"


def flags(core: Core, task: DTask) -> str:
    """The flags of one task, see `status`."""
    state = task._state
    if state == FAILED:
        text = "E"
    elif state == DONE:
        text = "" if isinstance(task._outcome, Result) else "C"
    elif task in core.running:
        text = "R"
    elif state == LAUNCHED:
        text = "W" if task._tokens else "w"
    else:
        text = "?"
    waiters = [sub for sub in list(task._subs) if type(sub) is not DTask]
    return text + "f" * bool(waiters)
