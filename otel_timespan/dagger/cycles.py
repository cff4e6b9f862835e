"""Waits that could never end: a body that waits for its own task, or for one that waits for it.

While a body waits, `Wait` says for which task. Whoever is about to block follows what that task needs: its unfinished
upstreams, and what their bodies wait for. If that leads back to the body, the wait is refused.

See docs/scheduling.md.
"""

from __future__ import annotations

import os

from ..errors import DynamicThunkError
from .tasks.dtask import DONE, DTask

__all__ = ["Wait", "is_declared", "refuse_cycle"]

_waits: dict[DTask, DTask] = {}
"""What each body waits for that waits right now."""


class Wait:
    """A block in which a body waits for a task, perhaps running it or others itself."""

    __slots__ = ("_before", "_body", "_task")

    def __init__(self, body: DTask, task: DTask) -> None:
        self._body, self._task = body, task
        self._before = _waits.get(body)  # a body's threads may wait for several

    def __enter__(self) -> None:
        _waits[self._body] = self._task

    def __exit__(self, *raised: object) -> None:
        if self._before is None:
            _waits.pop(self._body, None)
        else:
            _waits[self._body] = self._before


def is_declared(body: DTask, task: DTask) -> bool:
    """Whether we are in such a block already."""
    return _waits.get(body) is task


def refuse_cycle(body: DTask, task: DTask) -> None:
    """Raise `DynamicThunkError`, naming the way round, where `task` can't end before `body` does."""
    came_from: dict[DTask, DTask] = {task: body}
    stack = [task]
    while stack:
        one = stack.pop()
        if one is body:
            raise DynamicThunkError(_told(body, task, came_from), "self_fetch" if task is body else "dominated")
        needed = [up for up in one._deps if up._state < DONE]
        inner = _waits.get(one)
        if inner is not None and inner._state < DONE:
            needed.append(inner)
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
