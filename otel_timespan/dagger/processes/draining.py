"""Taking back what a worker was given and has not begun: because it is to go, because another one idles.

The worker decides: a task that is recalled and that it can still claim comes back, and is placed again, by the same
`claim` by which its threads take tasks. So each runs exactly once, whoever was first.

All of it runs on the pump's thread. See docs/workers.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.placement import Spot, spots_of, steal_from_afar
from ..tasks.atomics import claim
from .recovery import requeue
from .wire import RECALL

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..tasks.dtask import DTask
    from .remote import Flight, Remote

__all__ = ["balance", "begin", "is_done", "let_alone", "recalled"]


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
        if one.message is not None and _can_move(task._core, task):
            remote.solitary.remove(one)
            recalled(remote, [task.id])
    _recall(remote, [flight for flight in remote.flights.values() if _can_move(flight.task._core, flight.task)])


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


def recalled(remote: Remote, ids: Sequence[int]) -> None:
    """These had not begun on a worker, and won't there: they are placed again."""
    for id in ids:
        flight = remote.flights.get(id)
        if flight is not None:
            remote.ahead_ns -= flight.expected_ns
            flight.task._core.running.discard(flight.task)
            requeue(flight.task._core, flight.task)
            del remote.flights[id]  # last: until it is in a queue again it is in hand


def let_alone(remote: Remote, messages: list[Any]) -> None:
    """Send the first of the tasks that are to run alone there, when nothing else runs; take back what has not begun."""
    while remote.solitary:
        first = remote.solitary[0]
        flight = first.flight
        if remote.flights.get(flight.task.id) is not flight:  # it was answered
            remote.solitary.popleft()
            continue
        if first.message is None and flight.paused:  # it needs no slot, and what it waits for may have to run here
            remote.solitary.popleft()
            continue
        if first.message is None:  # it runs
            return
        mine = {one.flight.task.id for one in remote.solitary}
        others = [other for id, other in remote.flights.items() if id not in mine]
        if others:
            _recall(remote, others)
            if not all(other.paused for other in others):
                return
        messages.append(first.message)
        first.message = None
        return


# ---- balance --------------------------------------------------------------------------------------------------


def balance(remotes: Sequence[Remote]) -> None:
    """Let who idles have some of what others have waiting: here first, then what was sent and has not begun."""
    usable = [remote for remote in remotes if remote.ready is not None and not remote.leaving and not remote.lost]
    fronts = {remote: remote.front for remote in usable}
    for remote in usable:
        remote.front = next(iter(list(remote.flights)), 0)
    stuck = [remote for remote in usable if remote.front and remote.front == fronts[remote]]
    if not stuck:
        return
    for core in {core for remote in stuck for core in remote.cores}:
        idle = [r.worker for r in usable if r.worker in core.active and not r.flights and not core.shared[r.worker]]
        if core.local in core.active and core.driver.has_room():
            idle.append(core.local)
        for worker in idle:
            if not _steal(core, worker):
                _recall_for(core, worker, [remote for remote in stuck if core in remote.cores])


def _steal(core: Core, worker: int) -> bool:
    """Move what waits in the queues of busier workers to one that idles: whether there was something."""
    threads = core.threads[worker]
    for n in range(2 * len(threads)):
        found = steal_from_afar(core, threads[0])
        if found is None:
            return n > 0
        core.record_steal(threads[0], None, found[0].id)
        core.queue_at(found[0], Spot(None, worker, threads))
        core.driver.wake()
    return True


def _recall_for(core: Core, worker: int, victims: Sequence[Remote]) -> None:
    victims = [victim for victim in victims if len(victim.flights) > victim.threads]
    if not victims:
        return
    victim = max(victims, key=lambda one: len(one.flights))
    spare = len(victim.flights) - victim.threads
    alone = {one.flight for one in victim.solitary}
    fit = [
        flight
        for flight in list(victim.flights.values())[victim.threads :]
        if flight.task._core is core and flight not in alone and _may_run(core, flight.task, worker)
    ]
    _recall(victim, fit[-max(1, spare // 2) :])


def _may_run(core: Core, task: DTask, worker: int) -> bool:
    try:
        return task._context is not None and any(spot.worker == worker for spot in spots_of(core, task))
    except Exception:  # see `_can_move`
        return False
