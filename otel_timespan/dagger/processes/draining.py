"""Taking back what a worker was given and has not begun: because it is to go, because another task is to be alone.

The worker decides: a task that is recalled and that it can still claim comes back, and is placed again, by the same
`claim` by which its threads take tasks. So each runs exactly once, whoever was first.

All of it runs on the pump's thread. See docs/workers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..core.placement import spots_of
from ..tasks.atomics import claim
from .recovery import requeue
from .wire import RECALL

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..tasks.dtask import DTask
    from .remote import Flight, Remote, Solitary

__all__ = ["begin", "is_done", "let_alone"]


# ---- a worker that is to go ---------------------------------------------------------------------------------


def begin(remotes: Iterable[Remote]) -> None:
    """Workers get nothing more: what can be done elsewhere, and has not begun, is done there.

    What can't, as it is bound to one of them or there is no other one, they still get, and finish.
    """
    for remote in remotes:
        _give_up(remote)


def _give_up(remote: Remote) -> None:
    for core in remote.cores:
        core.remove_worker(remote.worker)
        for task in _waiting(core, remote.worker):
            if _can_move(core, task) and _take_out(core, remote.worker, task):
                requeue(core, task)
    for one in list(remote.solitary):
        task = one.flight.task
        if not one.is_given and _can_move(task._core, task):
            remote.solitary.remove(one)
            _requeue(remote, one.flight)
    _recall(remote, [flight for flight in remote.flights.values() if _can_move(flight.task._core, flight.task)])


def _requeue(remote: Remote, flight: Flight) -> None:
    remote.ahead_ns -= flight.expected_ns
    flight.task._core.running.discard(flight.task)
    requeue(flight.task._core, flight.task)
    del remote.flights[flight.task.id]  # last: until it is in a queue again it is in hand


def is_done(remote: Remote) -> bool:
    """Whether a worker that is to go has finished all that it had."""
    return not remote.flights and not any(_waiting(core, remote.worker) for core in list(remote.cores))


def _waiting(core: Core, worker: int) -> list[DTask]:
    with core.lock:
        pinned = [entry[2] for slot in core.waiting if slot.worker == worker for entry in slot.heap]
    return [task for task in (*list(core.shared.get(worker, ())), *pinned) if hasattr(task, "_claim")]


def _take_out(core: Core, worker: int, task: DTask) -> bool:
    if not claim(task):
        return False
    try:
        core.shared[worker].remove(task)
    except ValueError:
        core.take_out(task)
    return True


def _can_move(core: Core, task: DTask) -> bool:
    """Whether a task that has not begun can run on one of the workers that a scheduler has."""
    if not core.active or task._context is None:
        return False
    try:
        return bool(spots_of(core, task))
    except Exception:  # there is none, or a hook of the user's failed: it says so where it is placed
        return False


# ---- recalling ----------------------------------------------------------------------------------------------


def _recall(remote: Remote, flights: Iterable[Flight]) -> None:
    ids = []
    for flight in flights:
        if not flight.is_recalled:
            flight.is_recalled = True
            ids.append(flight.task.id)
    if ids:
        remote.say((RECALL, ids))


def let_alone(remote: Remote, give: Callable[[Solitary], None]) -> None:
    """Give the first of the tasks that are to run alone there, when nothing else runs; call back what has not begun."""
    while remote.solitary:
        first = remote.solitary[0]
        flight = first.flight
        if remote.flights.get(flight.task.id) is not flight:  # it was answered
            remote.solitary.popleft()
            continue
        if first.is_given and flight.paused:  # it needs no slot, and what it waits for may have to run here
            remote.solitary.popleft()
            continue
        if first.is_given:  # it runs
            return
        mine = {one.flight.task.id for one in remote.solitary}
        others = [other for id, other in remote.flights.items() if id not in mine]
        if others:
            _recall(remote, others)
            if not all(other.paused for other in others):
                return
        first.is_given = True
        give(first)
        return
