"""What threads hold: slots, seats to park on; and how slots go from one to the other without the GIL.

A slot is in one place: on the list of free ones, in the cell of a seat that was handed it, or in the hold of the thread
that runs in it. With the GIL each move is one section (tasks/atomics.py says what that is; they stand in threads.py),
so that no interrupt of the main thread can leave a slot in nobody's hands. The variants here are for builds without
the GIL, where lists lock by themselves and interrupts are not excluded.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from typing import Any, NamedTuple

from ... import forks
from ..core.placement import Slot
from ..tasks.dtask import DTask

__all__ = [
    "Hold",
    "PinnedStart",
    "Resumption",
    "Seat",
    "give_back_locked",
    "hand_free_locked",
    "hand_resuming_locked",
    "sweep_locked",
    "take_away_locked",
    "take_free_locked",
    "take_handed_locked",
]


class Seat:
    """One thread: its lock to park on, and the cell in which it is handed a slot or a pinned task."""

    __slots__ = ("cell", "lock", "thread")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.lock.acquire()
        self.cell: list[Any] = []
        self.thread: threading.Thread | None = None


class Hold:
    """What a thread holds while it runs bodies: a slot, whole (`share` None) or a share of it.

    It belongs to the thread and not to a task: a body that blocks inside another one on the same thread gives back,
    and gets again, what the thread holds. Whoever takes the slot out, the thread itself or a cancellation of its body,
    gives it back. `task` is the one that it was taken for, where that was pinned; `claimed` the one that a helping
    thread has in hand.
    """

    __slots__ = ("claimed", "share", "slot", "task")

    def __init__(self, slot: Slot | None = None, share: float | None = None, task: DTask | None = None) -> None:
        self.slot = slot
        """What it holds now; None before, and after it was taken away."""
        self.share = share
        self.task = task
        self.claimed: DTask | None = None


class Resumption(NamedTuple):
    """What `pause` gives and `resume` takes: the thread's hold and the slot it had, None where it had none."""

    hold: Hold | None
    slot: Slot | None


class PinnedStart(NamedTuple):
    """A task that was pinned to a slot and begins there now, with the share that it takes."""

    slot: Slot
    task: DTask
    share: float


# ---- without the GIL -------------------------------------------------------------------------------------

_swapping = forks.lock()


def take_free_locked(free: list[Slot], hold: Hold) -> bool:
    """`take_free` for builds without the GIL."""
    try:
        hold.slot = free.pop()
    except IndexError:
        return False
    return True


def give_back_locked(hold: Hold, free: list[Slot]) -> Slot | None:
    """`give_back` for builds without the GIL."""
    slot = take_away_locked(hold)
    if slot is not None:
        free.append(slot)
    return slot


def take_away_locked(hold: Hold) -> Slot | None:
    """`take_away` for builds without the GIL."""
    with _swapping:
        slot, hold.slot = hold.slot, None
    return slot


def take_handed_locked(handed: list[Seat], hold: Hold, limbo: list[Seat]) -> bool:
    """`take_handed` for builds without the GIL."""
    while True:
        try:
            seat = handed.pop()
        except IndexError:
            return False
        try:
            item = seat.cell.pop()
        except IndexError:
            continue
        if type(item) is not Slot:
            seat.cell.append(item)
            continue
        limbo.append(seat)
        hold.slot = item
        return True


def hand_free_locked(free: list[Slot], limbo: list[Seat], idle: list[Seat], handed: list[Seat]) -> bool:
    """`hand_free` for builds without the GIL."""
    try:
        slot = free.pop()
    except IndexError:
        return False
    for seats in (limbo, idle):
        try:
            seat = seats.pop()
        except IndexError:
            continue
        seat.cell.append(slot)
        handed.append(seat)
        if seats is idle:
            seat.lock.release()
        return True
    free.append(slot)
    return False


def hand_resuming_locked(free: list[Slot], resuming: deque[Seat]) -> bool:
    """`hand_resuming` for builds without the GIL."""
    try:
        slot = free.pop()
    except IndexError:
        return False
    try:
        seat = resuming.popleft()
    except IndexError:
        free.append(slot)
        return False
    seat.cell.append(slot)
    seat.lock.release()
    return True


def sweep_locked(queue: deque[DTask]) -> None:
    """`sweep` for builds without the GIL: what it takes out to look at it goes back."""
    for pop, put in ((queue.pop, queue.append), (queue.popleft, queue.appendleft)):
        while True:
            try:
                last = pop()
            except IndexError:
                return
            if hasattr(last, "_claim"):
                put(last)
                break
