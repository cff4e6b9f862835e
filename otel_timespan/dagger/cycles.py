"""Waits that could never end: a body that waits for its own task, or for one that waits for it.

While a body waits, `Wait` says for which task. Whoever is about to block follows what that task needs: its unfinished
upstreams, and what their bodies wait for. If that leads back to the body, the wait is refused.

See docs/scheduling.md.
"""

from __future__ import annotations

import contextlib
import os

from ..errors import DynamicThunkError
from .tasks.dtask import DONE, DTask

__all__ = ["Wait", "is_declared", "refuse_cycle"]

_waits: dict[DTask, list[DTask]] = {}
"""What each body waits for that waits right now: one task, or several where its threads or coroutines wait."""


class Wait:
    """A block in which a body waits for a task, perhaps running it or others itself."""

    __slots__ = ("_body", "_task")

    def __init__(self, body: DTask, task: DTask) -> None:
        self._body, self._task = body, task

    def __enter__(self) -> None:
        _waits.setdefault(self._body, []).append(self._task)

    def __exit__(self, *raised: object) -> None:
        mine = _waits.get(self._body, [])
        with contextlib.suppress(ValueError):  # we are in a forked child
            mine.remove(self._task)
        if not mine:
            _waits.pop(self._body, None)


def is_declared(body: DTask, task: DTask) -> bool:
    """Whether we are in such a block already."""
    return task in _waits.get(body, ())


def refuse_cycle(body: DTask, task: DTask) -> None:
    """Raise `DynamicThunkError`, naming the way round, where `task` can't end before `body` does."""
    came_from: dict[DTask, DTask] = {task: body}
    stack = [task]
    while stack:
        one = stack.pop()
        if one is body:
            raise DynamicThunkError(_told(body, task, came_from), "self_fetch" if task is body else "dominated")
        needed = [up for up in one._deps if up._state < DONE]
        needed += [inner for inner in _waits.get(one, ()) if inner._state < DONE]
        for next_one in needed:
            if next_one not in came_from or next_one is body:
                came_from[next_one] = one
                stack.append(next_one)


def _told(body: DTask, task: DTask, came_from: dict[DTask, DTask]) -> str:
    if task is body:
        return f"task {body.id} waits for itself: its body can't fetch its own result"
    way = [body.id]
    one = came_from[body]
    while one is not body and len(way) < 20:
        way.append(one.id)
        one = came_from[one]
    steps = " → ".join(map(str, [body.id, *reversed(way)]))
    return f"task {body.id} waits for task {task.id}, which waits for it ({steps}): return the task instead"


def _in_child() -> None:
    _waits.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
