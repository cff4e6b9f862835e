"""What the child of a `fork` has of its parent, made fit for use: the one list of it.

The problem: a child has one thread, the one that forked, and a copy of all memory at that moment. A lock that another
thread held stays taken for ever, a thread of ours that is noted as running is not there, and files, queues and
connections are the parent's to finish. So:

* A lock of ours is made by `lock`, `rlock` or `condition`: in a child it is free, whoever held it. One that the forking
  thread itself holds stays its own where that can be told (`rlock`, `condition`).
* Modules that are loaded at their first use, and what else takes locks of others, are `held_off`: a fork waits.
* A module that has a thread, or a table that means something in its own process only, sets it right in a function
  marked `in_child`. Lower modules come first, as they are imported first.

A table that a child may keep as it is, such as a cache, is named in `tests/test_forks.py`, with the reason; that test
fails for locks and tables that are neither.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from _thread import get_ident
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = [
    "LOCK_TYPES",
    "around",
    "condition",
    "held_off",
    "in_child",
    "in_child_last",
    "lock",
    "renew",
    "rlock",
    "set_right",
]

_Call = TypeVar("_Call", bound=Callable[[], None])

LOCK_TYPES = (type(threading.Lock()), type(threading.RLock()))

_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_calls: list[Callable[[], None]] = []
set_right: dict[str, set[str]] = {}
"""{module: the names of its tables that its function for a child sets right}."""


def lock() -> threading.Lock:
    """A `threading.Lock` that is free in a child. Not for user code to run under: a fork there would free it."""
    made = threading.Lock()
    _locks.add(made)
    return made


def rlock() -> threading.RLock:
    """A `threading.RLock` that is free in a child, unless it is the forking thread that holds it."""
    made = threading.RLock()
    _locks.add(made)
    return made


def condition() -> threading.Condition:
    """A `threading.Condition` that is free in a child, where nobody waits for it."""
    made = threading.Condition()
    _locks.add(made)
    return made


def in_child(*tables: str) -> Callable[[_Call], _Call]:
    """Have a function called in each child; `tables` are the names in its module that it sets right.

    It must not wait for anything. What it raises is logged, and the others are called all the same.
    """

    def mark(call: _Call) -> _Call:
        _calls.append(call)
        set_right.setdefault(call.__module__, set()).update(tables)
        return call

    return mark


def around(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Have `before()` called before each fork and `after()` after it, both in the parent, in the thread that forks.

    `before` may wait for a lock of ours, for a bounded time. What they raise Python prints, and forks all the same.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after)


def in_child_last(call: Callable[[], None]) -> None:
    """Have `call` called in each child after all that others have registered with the system until now."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def renew(found: Any) -> None:
    """In a child: free a lock, a condition or an event, whoever held it; the forking thread's own stays."""
    owned = getattr(found, "_is_owned", None)
    if owned is not None and owned():
        waiters = getattr(found, "_waiters", None)
        if waiters is not None:
            waiters.clear()
        return
    # What the standard library does with locks of its own, logging's for example.
    found._at_fork_reinit()


WAIT_S = 2.0
"""How long a fork waits for those who hold it off, and they for a fork that waits for others."""


class _HeldOff:
    """Around what takes locks that are not ours, for a moment: `with forks.held_off:`. Any number may be in here.

    Python's lock for a module that another thread is loading, `tempfile`'s at its first use, or what gRPC is at, stays
    as it is in a child for ever. So a fork waits until nobody else is in here, for a bounded time.
    """

    def __init__(self) -> None:
        self._changed = condition()
        self._inside: dict[int, int] = {}  # how deep, by thread
        self._forks = 0  # that wait or are under way

    def __enter__(self) -> None:
        me = get_ident()
        with self._changed:
            if me not in self._inside:
                self._changed.wait_for(lambda: not self._forks, WAIT_S)
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *exc: object) -> None:
        me = get_ident()
        with self._changed:
            depth = self._inside.pop(me, 1) - 1
            if depth:
                self._inside[me] = depth
            self._changed.notify_all()

    def before_fork(self) -> None:
        me = get_ident()
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._inside.keys() - {me}, WAIT_S)

    def after_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def in_child(self) -> None:
        me = get_ident()
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        self._forks = 0


held_off = _HeldOff()


def _begin_child() -> None:
    for found in list(_locks):
        renew(found)
    held_off.in_child()
    for call in _calls:
        try:
            call()
        except Exception:
            logging.getLogger("otel_timespan").exception("a forked process could not set %s right", call.__module__)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=held_off.before_fork, after_in_parent=held_off.after_fork, after_in_child=_begin_child)
