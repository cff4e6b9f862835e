"""The few operations that threads race for, each atomic, so that the hot path takes no lock.

The problem: two threads that meet at one lock a task form a convoy (13 to 16 µs a task against 4.5
without; design/architecture.md §2). Under the GIL one operation on a list, a deque or a slot is atomic,
and these suffice:

* **claim** and **settle** are deletions of a slot: whoever deletes it wins, the others get an error. A
  queued task is claimed by the thread that runs it, cancels it or steals it; any unfinished task is
  settled once, by its body's end, a cancellation or a lost worker ("first result wins").
* **countdown**: a task waits with a list of tokens, one an unfinished upstream and one, at the bottom,
  that the spawning thread itself takes last. The one who pops the bottom token makes the task ready.
* **subscribe**: a subscriber appends itself to the upstream's list, then looks again whether the
  upstream is done; if so it tries to take its entry back. Who gets the entry, it or the finisher, owns it.

On a free-threaded build deleting a slot is no longer one step: there `claim` and `settle` take a lock of
a small pool. List and deque operations lock by themselves there.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from .dtask import DONE, DTask

__all__ = ["claim", "settle", "subscribe"]


def claim_gil(task: DTask) -> bool:
    """Take a queued task; False when somebody else has it."""
    try:
        del task._claim
    except AttributeError:
        return False
    return True


def settle_gil(task: DTask) -> bool:
    """Take the right to give the task its one result; False when it has one."""
    try:
        del task._open
    except AttributeError:
        return False
    return True


_LOCKS = tuple(threading.Lock() for _ in range(64))


def claim_locked(task: DTask) -> bool:
    """`claim` for builds without the GIL."""
    with _LOCKS[task.id & 63]:
        return claim_gil(task)


def settle_locked(task: DTask) -> bool:
    """`settle` for builds without the GIL."""
    with _LOCKS[task.id & 63]:
        return settle_gil(task)


if getattr(sys, "_is_gil_enabled", lambda: True)():
    claim, settle = claim_gil, settle_gil
else:
    claim, settle = claim_locked, settle_locked


def subscribe(upstream: DTask, subscriber: Any) -> bool:
    """Be told when `upstream` is done. False when it is done already and nothing will be told."""
    subs = upstream._subs
    subs.append(subscriber)
    if upstream._state < DONE:
        return True
    try:
        subs.remove(subscriber)
    except ValueError:  # the finisher took it meanwhile, and tells
        return True
    return False
