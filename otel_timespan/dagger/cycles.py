"""Waits that could never end: a body that waits for its own task, or for one that waits for it.

While a body blocks, `Wait` says for which task; and where that thread has other bodies below, which wait for this one
to return, it says that, too. Whoever is about to block follows what its task needs: the unfinished upstreams, and what
bodies wait for. If that leads back to a body of this thread, the wait is refused. A thread that a body started is not
the body's own: it may wait for what it likes, since the body does not wait for it.

See docs/users.md.
"""

from __future__ import annotations

import contextlib
import sys
from _thread import get_ident
from collections.abc import Callable
from typing import Any

from .. import forks
from ..errors import DynamicThunkError
from .bodies import interrupts
from .service import head
from .tasks.dtask import DONE, DTask
from .tasks.environment import loop_threads

__all__ = ["Wait", "begin_elsewhere", "end_elsewhere", "is_declared"]

LONGEST_WAY = 8
"""Steps of a way that are told; of a longer one its ends."""

_waits: dict[DTask, list[DTask]] = {}
"""What each body waits for that waits right now: one task, or several where its coroutines wait."""


class Wait:
    """A block in which a body blocks until a task is done. Raises `DynamicThunkError` where that could never be.

    In a worker the head knows who waits for whom: it may refuse a wait that has begun. Then `notify()` is called, which
    ends the wait, and the block raises what the head said.
    """

    __slots__ = ("_body", "_pairs", "_task", "notify", "refused")

    def __init__(self, body: DTask, task: DTask, notify: Callable[[], Any]) -> None:
        self._body, self._task, self.notify = body, task, notify
        self._pairs: list[tuple[DTask, DTask]] = []
        self.refused: BaseException | None = None

    def __enter__(self) -> None:
        below = _own_bodies(self._body)
        self._pairs = [*zip(below, [self._task, *below], strict=False)]
        for waiter, wanted in self._pairs:
            _waits.setdefault(waiter, []).append(wanted)
        if below:
            try:
                _refuse_cycle(below, self._task)  # after saying so: of two that come at once one sees the other
            except DynamicThunkError:
                self._withdraw()
                raise
            if head.link is not None:
                head.link.begin_wait(self._body.id, self._task.id, self)

    def __exit__(self, *raised: object) -> None:
        if head.link is not None and self._pairs:
            head.link.end_wait(self._body.id, self._task.id, self, self._task._state >= DONE)
        self._withdraw()
        if self.refused is not None:
            raise self.refused

    def _withdraw(self) -> None:
        for waiter, wanted in self._pairs:
            mine = _waits.get(waiter, [])
            with contextlib.suppress(ValueError):  # we are in a forked child
                mine.remove(wanted)
            if not mine:
                _waits.pop(waiter, None)


def begin_elsewhere(body: DTask, task: DTask) -> None:
    """The body of a task, in a worker, waits for another one. Raises `DynamicThunkError` where that could never end."""
    wanted = _waits.setdefault(body, [])
    wanted[:] = [one for one in wanted if one._state < DONE]
    wanted.append(task)
    try:
        _refuse_cycle([body], task)
    except DynamicThunkError:
        end_elsewhere(body, task)
        raise


def end_elsewhere(body: DTask, task: DTask | None) -> None:
    """It waits no more for that one (None: for any)."""
    wanted = _waits.get(body, [])
    wanted[:] = [] if task is None else [one for one in wanted if one is not task]
    if not wanted:
        _waits.pop(body, None)


def is_declared(body: DTask, task: DTask) -> bool:
    """Whether a body blocks until this task is done."""
    return task in _waits.get(body, ())


def _own_bodies(body: DTask) -> list[DTask]:
    """The bodies that this thread is in, innermost first; none where it is not the body's own thread or coroutine."""
    coroutine = body._live.coroutine if body._live is not None else None
    if coroutine is not None:
        asyncio = sys.modules["asyncio"]
        return [body] if get_ident() in loop_threads and coroutine.is_run_by(asyncio.current_task()) else []
    below = interrupts.bodies_here()
    return below if below and below[0] is body else []


def _refuse_cycle(below: list[DTask], task: DTask) -> None:
    came_from: dict[DTask, DTask | None] = {task: None}
    stack = [task]
    while stack:
        one = stack.pop()
        if one in below:
            raise DynamicThunkError(_told(below[0], one, came_from), "self_fetch" if task is below[0] else "dominated")
        needed = [up for up in one._deps if up._state < DONE]
        needed += [wanted for wanted in _waits.get(one, ()) if wanted._state < DONE]
        for next_one in needed:
            if next_one not in came_from:
                came_from[next_one] = one
                stack.append(next_one)


def _told(body: DTask, found: DTask, came_from: dict[DTask, DTask | None]) -> str:
    if came_from[found] is None and found is body:
        return f"task {body.id} waits for itself: its body can't fetch its own result"
    way: list[str] = []
    one: DTask | None = found
    while one is not None:
        way.append(str(one.id))
        one = came_from[one]
    way = [str(body.id), *reversed(way)]
    steps = " → ".join(way if len(way) <= LONGEST_WAY else [*way[:3], "...", *way[-2:]])
    return f"task {body.id} waits for task {way[1]}, which can't end before it ({steps}): return the task instead"


@forks.in_child("_waits")
def _in_child() -> None:
    _waits.clear()
