"""The scheduler's state as users read it: the fields of `eager_state()`.

Everything is worked out when it is asked for: nobody pays for what nobody reads.

See docs/scheduling.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..places.processors import OSProc, Processor
from ..tasks.dtask import DTask
from .costs import Costs, Signature

if TYPE_CHECKING:
    from .placement import Pressure, Slot

__all__ = ["Readable"]


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
        there = [(worker, device) for worker, device in (self.devices or {}).items() if worker in self.active]
        return {worker: {device: getattr(device, name)} for worker, device in there}

    @property
    def worker_loadavg(self) -> dict[int, tuple[float, float, float]]:
        """Worker: load averages over 1, 5 and 15 minutes. All workers of this core share our host."""
        return dict.fromkeys(self.active, os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0))
