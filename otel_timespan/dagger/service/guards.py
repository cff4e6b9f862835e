"""Locks that the main thread may hold when a signal handler of the program comes and uses the scheduler, too.

A handler runs in the main thread, on top of whatever that executes. If that holds a lock, and the handler wants it, a
plain lock is waited for for ever; and so it is if the handler waits for another thread of ours that wants it. So the
locks of ours that code in the main thread takes are *guards*: the thread that has one may take it again, and what the
handler would leave to another thread it does itself while it is on top of one (service/uninterrupted.py looks at
`any_held`). For code under a guard that means:

* It waits for nothing, calls nothing of the user's, and takes no other guard: else two threads might want each other's.
* Between two of its steps a handler may do the same, to its end. What checks first and acts then does so in one section
  (tasks/atomics.py), or hands what comes on top to the one below (core/limits.py).
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ... import forks

__all__ = ["any_held", "guard"]

_guards: dict[int, weakref.ref[Any]] = {}
"""All there are, by id: each takes itself out."""


def guard() -> threading.RLock:
    """A new lock, which its holder may take again; free in a forked child."""
    made = forks.rlock()
    key = id(made)
    _guards[key] = weakref.ref(made, lambda _: _guards.pop(key, None) and None)
    return made


_owned: Callable[[Any], bool] = operator.methodcaller("_is_owned")


def any_held() -> bool:
    """Whether the calling thread has any guard now."""
    return any([_owned(lock) for ref in list(_guards.values()) if (lock := ref()) is not None])
