"""The moves of slots between those who hold them, each a section (tasks/atomics.py says what that is).

With the GIL none of them can be split by an interrupt of the main thread; slots.py has them for builds without it.
"""

from __future__ import annotations

from collections import deque

from ..core.placement import Slot
from ..tasks.atomics import GIL
from ..tasks.dtask import DTask
from .slots import (
    Hold,
    Seat,
    give_back_locked,
    hand_free_locked,
    hand_resuming_locked,
    sweep_locked,
    take_away_locked,
    take_free_locked,
    take_handed_locked,
)

__all__ = ["give_back", "hand_free", "hand_resuming", "sweep", "take_away", "take_free", "take_handed"]


def take_free_gil(free: list[Slot], hold: Hold) -> bool:
    """Take the first free slot into the hold; False if there is none."""
    try:
        slot = free[-1]
    except IndexError:
        return False
    del free[-1]
    hold.slot = slot
    return True


def give_back_gil(hold: Hold, free: list[Slot]) -> Slot | None:
    """Put what the hold has on the list of free slots: that slot; None if it has none (any more)."""
    slot = hold.slot
    if slot is not None:
        hold.slot = None
        free += (slot,)
    return slot


def take_away_gil(hold: Hold) -> Slot | None:
    """Take the slot out of a hold, to put it elsewhere at once; None if it has none (any more)."""
    slot = hold.slot
    hold.slot = None
    return slot


def take_handed_gil(handed: list[Seat], hold: Hold, limbo: list[Seat]) -> bool:
    """Take a slot back from a seat that was handed it and has not come up; the seat is in limbo then."""
    while True:
        try:
            seat = handed[-1]
        except IndexError:
            return False
        del handed[-1]
        cell = seat.cell
        if cell and cell[-1].__class__ is Slot:  # `type` would be a call
            hold.slot = cell[-1]
            del cell[-1]
            limbo += (seat,)
            return True


def hand_free_gil(free: list[Slot], limbo: list[Seat], idle: list[Seat], handed: list[Seat]) -> bool:
    """Hand the first free slot to a seat: one in limbo, else a parked one, which is woken; False without either.

    Nothing is looked at before the choice is made: Python 3.10 looks for signals at forward jumps, too.
    """
    try:
        if limbo:
            slot, seat = free[-1], limbo[-1]
            del limbo[-1], free[-1]
            seat.cell += (slot,)
            handed += (seat,)
            return True
        slot, seat = free[-1], idle[-1]
    except IndexError:
        return False
    del idle[-1], free[-1]
    seat.cell += (slot,)
    handed += (seat,)
    seat.lock.release()
    return True


def hand_resuming_gil(free: list[Slot], resuming: deque[Seat]) -> bool:
    """Hand the first free slot to the body that waits longest for one; False without either."""
    try:
        slot, seat = free[-1], resuming[0]
    except IndexError:
        return False
    del free[-1], resuming[0]
    seat.cell += (slot,)
    seat.lock.release()
    return True


def sweep_gil(queue: deque[DTask]) -> None:
    """Drop claimed tasks from the ends of a queue: they would keep their results alive there."""
    try:
        while queue:
            task = queue[-1]
            try:
                task._claim  # noqa: B018 - to look, without a call
                break
            except AttributeError:  # another thread may have come, as the error was made
                if queue[-1] is task:
                    del queue[-1]
        while queue:
            task = queue[0]
            try:
                task._claim  # noqa: B018
                return
            except AttributeError:
                if queue[0] is task:
                    del queue[0]
    except IndexError:  # another thread took the last one
        return


if GIL:
    take_free, take_handed, take_away, give_back = take_free_gil, take_handed_gil, take_away_gil, give_back_gil
    hand_free, hand_resuming, sweep = hand_free_gil, hand_resuming_gil, sweep_gil
else:
    take_free, take_handed, take_away = take_free_locked, take_handed_locked, take_away_locked
    give_back, sweep = give_back_locked, sweep_locked
    hand_free, hand_resuming = hand_free_locked, hand_resuming_locked
