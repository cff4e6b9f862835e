"""Named concurrency limits: at most so many bodies of a name at once (option `limit`, `set_limit`).

The problem: a database takes four connections, whatever the number of slots. A task with `limit="db"` that
is ready asks for a place first; without one it waits here, in no queue and no slot, and is placed and queued
when it gets one, in the order in which they asked. A body keeps its place while it blocks in `fetch`, as it keeps its
connection. The places of a task come back when it has its result, however it got it, and before each retry.

A name means the same all over the process: what it protects does not care which context a task is in.

See docs/users.md.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ... import forks
from ...errors import InvalidOptionError, NestingError
from ..service import head
from ..service.guards import guard
from ..tasks.dtask import DONE, DTask

if TYPE_CHECKING:
    from .machine import Core

__all__ = ["check_limits", "enter", "get_limit", "leave", "refuse_deadlock", "set_limit", "waiting_of"]


class _Limit:
    """`waiting` is in order, and shared by nobody: all guarded by `_lock`."""

    __slots__ = ("most", "name", "taken", "waiting")

    def __init__(self, name: str, most: float) -> None:
        self.name, self.most = name, most
        self.taken = 0
        self.waiting: OrderedDict[DTask, None] = OrderedDict()


_lock = guard()
_limits: dict[str, _Limit] = {}
_waits: dict[DTask, tuple[_Limit, ...]] = {}
"""Tasks that wait for places."""
_holds: dict[DTask, tuple[_Limit, ...]] = {}
"""Tasks that have their places."""


def set_limit(name: str, most: int | None) -> None:
    """Let at most `most` bodies with the option `limit=name` run at once in this process; None: take the limit away.

    Takes effect at once: a higher one lets waiting tasks begin, a lower one lets the bodies that run go on.
    Thread-safe. Raises `InvalidOptionError` for a name that is no string or a number below 1.
    """
    if not isinstance(name, str) or not name:
        raise InvalidOptionError(f"the name of a limit must be a string, not {name!r}")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise InvalidOptionError(f"the limit {name!r} must be a positive int or None, not {most!r}")
    if head.link is not None:
        head.link.ask("set_limit", name, most)
        return
    _hand_out(_change(functools.partial(_set, name, most)))


def get_limit(name: str) -> int:
    """How many bodies with `limit=name` may run at once. Raises `InvalidOptionError` for an unknown name."""
    if head.link is not None:
        return int(head.link.ask("get_limit", name))
    check_limits((name,))
    return int(_limits[name].most)


def check_limits(names: Iterable[str]) -> None:
    """Raise `InvalidOptionError` unless each of these limits was set."""
    if head.link is not None:
        _ask_for_limits(head.link, [name for name in names if name not in _heard_of])
        return
    for name in names:
        if name not in _limits:
            known = ", ".join(sorted(_limits)) or "none"
            raise InvalidOptionError(f"there is no limit {name!r}, but {known}: call set_limit({name!r}, n) first")


_heard_of: set[str] = set()
"""In a worker: limits that there were once. One that is taken away meanwhile limits nothing."""


def _ask_for_limits(link: head.Head, names: list[str]) -> None:
    if names:
        link.ask("check_limits", tuple(names))
        _heard_of.update(names)


def enter(task: DTask) -> bool:
    """Take the task's places; False when it has to wait for one. True at once for a task that has them."""
    if task in _holds:
        return True
    got = _change(functools.partial(_ask, task))
    admitted = task in got
    if admitted:
        got.remove(task)
    _hand_out(got)
    if task._state >= DONE:  # it was cancelled in this moment, and gave back what it did not have yet
        leave(task)
        return False
    return admitted


def leave(task: DTask) -> None:
    """Give the task's places back, or stop waiting for them. Idempotent."""
    _hand_out(_change(functools.partial(_leave, task)))


# ---- changes: one after the other -----------------------------------------------------------------------

_changes: deque[Callable[[], list[DTask]]] = deque()
_changing = False


def _change(change: Callable[[], list[DTask]]) -> list[DTask]:
    """Make a change: the tasks that got their places by it.

    A signal handler may come on top of a change that the main thread is making, with one of its own. That is then
    made when the first is done, by who makes that.
    """
    global _changing
    admitted: list[DTask] = []
    _changes.append(change)
    with _lock:
        while _changes and not _changing:
            try:
                _changing = True
                while _changes:
                    admitted += _changes.popleft()()
            finally:
                _changing = False
    return admitted


def _set(name: str, most: int | None) -> list[DTask]:
    limit = _limits.get(name)
    if limit is None:
        if most is not None:
            _limits[name] = _Limit(name, most)
        return []
    limit.most = math.inf if most is None else most
    if most is None:
        del _limits[name]
    return _admit([limit])


def _ask(task: DTask) -> list[DTask]:
    if task in _holds:
        return []
    limits = tuple(_limits[name] for name in task._options.limit or () if name in _limits)
    if all(limit.taken < limit.most and not limit.waiting for limit in limits):
        _take(task, limits)
        return [task]
    _waits[task] = limits
    for limit in limits:
        limit.waiting[task] = None
    return []


def _leave(task: DTask) -> list[DTask]:
    limits = _holds.pop(task, ())
    for limit in limits:
        limit.taken -= 1
    waited_for = _waits.pop(task, ())
    for limit in waited_for:
        limit.waiting.pop(task, None)
    return _admit([*limits, *waited_for])


def _take(task: DTask, limits: tuple[_Limit, ...]) -> None:
    for limit in limits:
        limit.taken += 1
    _holds[task] = limits


def _admit(changed: list[_Limit]) -> list[DTask]:
    """Give places to those that wait first, as far as there are any; the lock is held."""
    admitted: list[DTask] = []
    while changed:
        limit = changed.pop()
        while limit.waiting:
            head = next(iter(limit.waiting))
            wanted = _waits[head]
            if not all(one.taken < one.most and next(iter(one.waiting)) is head for one in wanted):
                break
            del _waits[head]
            for one in wanted:
                del one.waiting[head]
            _take(head, wanted)
            admitted.append(head)
            changed += [one for one in wanted if one is not limit]
    return admitted


_local = threading.local()


def _hand_out(admitted: Sequence[DTask]) -> None:
    """Have tasks that got their places queued; one that can't be placed gives them to the next: no recursion."""
    if not admitted:
        return
    left: deque[DTask] | None = getattr(_local, "left", None)
    if left is not None:  # we are within one of these calls
        left.extend(admitted)
        return
    left = _local.left = deque(admitted)
    try:
        while left:
            task = left.popleft()
            task._core.hand_on([task])
    finally:
        _local.left = None
    _hand_out(left)  # what a signal handler put there just when we had looked


@forks.in_child("_limits", "_waits", "_holds", "_changes")
def _in_child() -> None:
    """After a fork: the limits hold here, too, but nobody has a place: those who had one are the parent's."""
    global _changing
    _changes.clear()
    _changing = False
    _holds.clear()
    _waits.clear()
    for limit in _limits.values():
        limit.taken = 0
        limit.waiting.clear()


def waiting_of(core: Core) -> list[DTask]:
    """The tasks of a core that wait for places."""
    if not _waits:
        return []
    with _lock:
        return [task for task in _waits if task._core is core]


def refuse_deadlock(body: DTask, task: DTask) -> None:
    """Raise `NestingError` when `body` waits for a task that waits for the very place that `body` has alone."""
    if body._options.limit is None:
        return
    with _lock:
        mine = _holds.get(body, ())
        stuck = [limit.name for limit in _waits.get(task, ()) if limit in mine and limit.most == 1]
    if stuck:
        raise NestingError(
            f"task {task.id} waits for the limit {stuck[0]!r}, whose only place this body has: it would wait for ever",
            "nesting",
        )
