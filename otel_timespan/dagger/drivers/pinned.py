"""What is pinned to a slot: tasks that take a share of it, or that may run there only; and stealing between slots.

Each slot has a queue of its own, lowest share first (`Slot.heap`, core/placement.py). What fits is started: a thread
slot is taken off the list of free ones for the first share, and goes back with the last. All of this is guarded by the
core's lock and never runs in the main thread, where an interrupt could come between.

See docs/scheduling.md.
"""

from __future__ import annotations

import heapq
import itertools
import math
from _thread import allocate_lock
from abc import abstractmethod
from typing import Any

from ..core.machine import Core
from ..core.placement import Slot, steal
from ..service.uninterrupted import uninterrupted
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, DTask
from .slots import Hold, PinnedStart

__all__ = ["Pinned"]

_tickets = itertools.count(1)


class _Resume:
    """A body that blocked and wants its share of a slot again; sits in the slot's heap like a task."""

    __slots__ = ("given", "lock")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.lock.acquire()
        self.given = False


class Pinned:
    """The part of the driver of threads that serves the slots' own queues."""

    core: Core
    free: list[Slot]

    @abstractmethod
    def _hand(self, start: PinnedStart) -> None:
        """Have a thread run a pinned task."""

    @abstractmethod
    def _use(self, slot: Slot | None) -> None:
        """A whole slot was freed."""

    def dispatch(self, slot: Slot) -> None:
        """Start what waits for a slot and fits, lowest share first; then see to stealing.

        An idle slot without work of its own steals from the others; what does not fit here may fit there.
        """
        if slot.worker != self.core.local:
            return
        starts: list[PinnedStart] = []
        steals: list[tuple[Slot, Any, int]] = []
        with self.core.lock:
            self._take_own(slot, starts)
            if not self.core.waiting:
                thieves: list[Slot] = []
            elif slot.heap:
                thieves = [*self.free, *(s for s in self.core.slots.values() if not s.shares and not s.used)]
            else:
                thieves = [slot]
            for thief in thieves:
                self._steal(thief, starts, steals)
        for start in starts:
            self._hand(start)
        for steal_attempt in steals:
            self.core.record_steal(*steal_attempt)

    def _take_own(self, slot: Slot, starts: list[PinnedStart], most: float = math.inf) -> None:
        while slot.heap and len(starts) < most:
            share, _, entry, _ = slot.heap[0]
            if type(entry) is DTask and entry._state >= DONE:
                self.core.unqueue(slot)
                continue
            if not self._fits(slot, share):
                return
            self.core.unqueue(slot)
            if type(entry) is _Resume:
                slot.used += share
                entry.given = True
                entry.lock.release()
            else:
                self._start(slot, entry, share, starts)

    def _start(self, slot: Slot, task: DTask, share: float, starts: list[PinnedStart]) -> bool:
        """Begin a pinned task that fits: False if somebody else has it, and the slot is as it was."""
        if claim(task):
            slot.used += share
            starts.append(PinnedStart(slot, task, share))
            return True
        if slot.used == 0 and share and slot.shares:
            self.free.append(slot)
        return False

    def _steal(self, thief: Slot, starts: list[PinnedStart], steals: list[tuple[Slot, Any, int]]) -> None:
        """Take from other slots' queues what fits, one task an attempt; the core's lock is held."""
        while not thief.heap and any(s is not thief and s.worker == thief.worker for s in self.core.waiting):
            found = steal(self.core, thief, self._fits)
            if found is None:
                steals.append((thief, None, 0))
                return
            victim, task, share = found
            if self._start(thief, task, share, starts):
                steals.append((thief, victim.processor, task.id))

    def _fits(self, slot: Slot, share: float) -> bool:
        """Whether a pinned body may start; takes a thread slot off the free list for the first one."""
        if share == 0:
            return True
        if slot.used or not slot.shares:
            return slot.used + share <= 1.0 + 1e-9
        try:
            self.free.remove(slot)
        except ValueError:  # a body of the shared queue has it, and looks here when it is done
            return False
        return True

    def _leave_share(self, slot: Slot, share: float) -> None:
        with self.core.lock:
            vacant = self._end_share(slot, share)
        if vacant and slot.shares:
            self.free.append(slot)
            self._use(slot)
        elif self.core.waiting:
            self.dispatch(slot)

    def _end_share(self, slot: Slot, share: float) -> bool:
        """Whether nobody uses the slot any more; the core's lock is held."""
        slot.used = max(0.0, slot.used - share)
        if slot.used < 1e-9:
            slot.used = 0.0
        return slot.used == 0

    def _put_back(self, item: Any, slot: Slot) -> None:
        """What no thread could be started for waits again: for the next slot that is freed, or who waits for it."""
        if item is slot:
            self.free.append(slot)
            return
        _, task, share = item
        task._claim = False
        with self.core.lock:
            heapq.heappush(slot.heap, (share, -next(_tickets), task, (slot,)))
            self.core.waiting.add(slot)
            vacant = self._end_share(slot, share)
        if vacant and share and slot.shares:  # a share of nothing did not take it
            self.free.append(slot)

    def begin_pinned(self) -> PinnedStart | None:
        """Take one pinned task that fits, for the calling thread to run; None if there is none."""
        starts: list[PinnedStart] = []
        with self.core.lock:
            for slot in [one for one in self.core.waiting if one.worker == self.core.local]:
                self._take_own(slot, starts, 1)
                if starts:
                    return starts[0]
        return None

    def _retake_share(self, hold: Hold, slot: Slot, share: float) -> None:
        ticket = _Resume()
        try:
            with self.core.lock:
                heapq.heappush(slot.heap, (share, -next(_tickets), ticket, ()))
                self.core.waiting.add(slot)
            uninterrupted(self.dispatch, slot)
            ticket.lock.acquire()
            hold.slot = slot
        except BaseException:
            uninterrupted(self._give_up_share, ticket, slot, share)
            raise

    def _give_up_share(self, ticket: _Resume, slot: Slot, share: float) -> None:
        with self.core.lock:
            slot.heap[:] = [entry for entry in slot.heap if entry[2] is not ticket]
            heapq.heapify(slot.heap)
            if not slot.heap:
                self.core.waiting.discard(slot)
        if ticket.given:
            self._leave_share(slot, share)
