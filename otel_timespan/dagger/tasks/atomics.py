"""The few operations that threads race for, each atomic, so that the hot path takes no lock.

The problem: two threads that meet at one lock a task form a convoy (13 to 16 µs a task against 4.5
without). Under the GIL one operation on a list, a deque or a slot is atomic, and these suffice:

* **claim** and **settle** are deletions of a slot: whoever deletes it wins, the others get an error. A
  queued task is claimed by the thread that runs it, cancels it or steals it; any unfinished task is
  settled once, by its body's end, a cancellation or a lost worker ("first result wins").
* **countdown**: a task waits with a number of tokens, one an unfinished upstream and one that the spawning thread
  itself takes last. The one who takes the last token makes the task ready.
* **subscribe**: a subscriber appends itself to the upstream's list, then looks again whether the
  upstream is done; if so it tries to take its entry back. Who gets the entry, it or the finisher, owns it. The
  first one finds no list yet (`NOBODY`), and puts one there, if the upstream is not done: one section.
* **hand over**: the finisher takes the entries out, one by one, and counts its dependents down.

**Sections.** Python runs signal handlers in the main thread, and what they raise (Ctrl-C) comes out between two
steps of ours. CPython looks for signals, and lets other threads run, after a call of a C function, at the entry of a
Python function and at a backward jump; between two of those it does neither. So code that makes no call between
taking something out of where others see it and putting it where others see it (or whose only call is its last
step, of a C function) happens as a whole or not at all. `x = list_[-1]; del list_[-1]` is such a section, and
`list_.pop()` is not: an interrupt after the call loses what it returned. Python 3.10 looks at forward jumps that it
takes, too: no branch lies between the two steps. Nor may a section make an object, be it an exception, between two
looks at what others see: up to Python 3.11 that may start a collection of garbage, whose finalizers let other
threads run. The functions here are such sections; what a broken-off thread had in hand then stands in a field of
its, where whoever mends it finds it (drivers/helping.py, bodies/ending.py).
tests/dagger/test_endings.py interrupts each of those places. Longer sections, with forward branches, are there for
Python 3.11 and later only (`BRANCHES`; bodies/ending.py: `succeed`).

On a free-threaded build nothing of this is one step: there is a second variant of each, with a lock of a small
pool where one is needed. List and deque operations lock by themselves there. An interrupt can lose a task there.
"""

from __future__ import annotations

import sys
from typing import Any

from ... import forks
from .dtask import DONE, GIL, NOBODY, DTask

__all__ = ["BRANCHES", "GIL", "claim", "claim_for", "count_down", "hand_over", "settle", "subscribe", "take_back"]

BRANCHES = GIL and sys.version_info >= (3, 11)
"""Whether a section may have forward branches."""


def claim_gil(task: DTask) -> bool:
    """Take a queued task; False when somebody else has it."""
    try:
        del task._claim
    except AttributeError:
        return False
    return True


def claim_for_gil(task: DTask, hold: Any) -> bool:
    """`claim`, noted in `hold.claimed` in the same step."""
    try:
        del task._claim
    except AttributeError:
        return False
    hold.claimed = task
    return True


def settle_gil(task: DTask, outcome: Any) -> bool:
    """Give the task its one outcome, not visible yet; False when it has one. From here on somebody must end it."""
    try:
        del task._open
    except AttributeError:
        return False
    task._outcome = outcome
    return True


def count_down_gil(task: DTask, tokens: int) -> bool:
    """Take so many of a task's tokens; whether none is left: then the caller makes it ready."""
    left: int = task._tokens - tokens  # type: ignore[operator]
    task._tokens = left
    return not left


def hand_over_gil(task: DTask, taken: list[Any]) -> None:
    """Take what subscribed to a task that is done: into `taken` go its waiters and the dependents it made ready.

    After a failure all dependents. Whoever subscribes from now on finds the task done.
    """
    subs = task._subs
    counts = task._state == DONE
    while subs:
        try:
            sub = subs[-1]
        except IndexError:  # the last one was just taken back
            return
        del subs[-1]
        if counts:
            try:
                left = sub._tokens - 1
            except AttributeError:  # a waiter
                taken.append(sub)
                continue
            sub._tokens = left
            if not left:
                taken.append(sub)
        else:
            taken.append(sub)


_LOCKS = tuple(forks.lock() for _ in range(64))


def claim_locked(task: DTask) -> bool:
    """`claim` for builds without the GIL."""
    with _LOCKS[task.id & 63]:
        return claim_gil(task)


def claim_for_locked(task: DTask, hold: Any) -> bool:
    """`claim_for` for builds without the GIL."""
    with _LOCKS[task.id & 63]:
        return claim_for_gil(task, hold)


def settle_locked(task: DTask, outcome: Any) -> bool:
    """`settle` for builds without the GIL."""
    with _LOCKS[task.id & 63]:
        return settle_gil(task, outcome)


def count_down_locked(task: DTask, tokens: int) -> bool:
    """`count_down` for builds without the GIL."""
    with _LOCKS[task.id & 63]:
        return count_down_gil(task, tokens)


def hand_over_locked(task: DTask, taken: list[Any]) -> None:
    """`hand_over` for builds without the GIL: each entry is popped, which locks by itself."""
    counts = task._state == DONE
    while True:
        try:
            sub = task._subs.pop()
        except IndexError:
            return
        if type(sub) is not DTask or not counts or count_down_locked(sub, 1):
            taken.append(sub)


if GIL:
    claim, claim_for, settle = claim_gil, claim_for_gil, settle_gil
    count_down, hand_over = count_down_gil, hand_over_gil
else:
    claim, claim_for, settle = claim_locked, claim_for_locked, settle_locked
    count_down, hand_over = count_down_locked, hand_over_locked


def subscribe(upstream: DTask, subscriber: Any) -> bool:
    """Be told when `upstream` is done. False when it is done already and nothing will be told."""
    subs = upstream._subs
    if subs is NOBODY:
        first = [subscriber]
        if upstream._subs is NOBODY and upstream._state < DONE:  # a section
            upstream._subs = first
            return True
        subs = upstream._subs
    if subs is NOBODY:  # it is just being ended
        return False
    subs.append(subscriber)
    return upstream._state < DONE or not take_back(subs, subscriber)


def take_back(subs: list[Any], subscriber: Any) -> bool:
    """Take an entry back; False if the finisher took it meanwhile, and tells."""
    try:
        subs.remove(subscriber)
    except ValueError:
        return False
    return True
