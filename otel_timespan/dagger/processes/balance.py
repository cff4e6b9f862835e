"""Tasks that wait behind a body that takes long, while others are idle: they are called back, and go there.

A worker is given tasks in advance. If nothing lands for a tenth of a second, what waits there, or here for it, may be
needed by the very body that holds it up, without the scheduler knowing (it waits for a future, or for a file that
another task makes). So it must not wait where somebody else could run it.

All on the pump's thread.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ...errors import TaskCancelled
from ..bodies.ending import fail, release_inputs
from ..core.placement import Spot, may_leave
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, DTask
from .recovery import requeue
from .wire import RECALL

if TYPE_CHECKING:
    from ..core.machine import Core
    from .remote import Remote

__all__ = ["look", "recalled"]


def look(remotes: list[Remote]) -> None:
    """Call back what waits at workers from which nothing came since the last look, if others are idle."""
    for remote in remotes:
        held_up = remote.landed == remote.landed_before and len(remote.flights) > remote.paused
        remote.landed_before = remote.landed
        if held_up:
            for core in list(remote.cores):
                idle = _idle(core, remotes, remote)
                if idle:
                    _move_queued(core, remote, idle)
                    _recall(core, remote, idle)


def recalled(remote: Remote, remotes: list[Remote], ids: list[int]) -> None:
    """A worker has not begun with these, and never will."""
    for number, id in enumerate(ids):
        flight = remote.flights.pop(id, None)
        if flight is None:
            continue
        remote.ahead_ns -= flight.expected_ns
        task = flight.task
        core = task._core
        core.running.discard(task)
        task._slot = None
        if task._state >= DONE:
            release_inputs(task)
        elif task._live is not None and task._live.forced:
            fail(core, task, TaskCancelled(f"task {id} was cancelled"), "cancellation")
            release_inputs(task)
        elif remote.worker not in core.active:  # it is to go
            requeue(core, task)
        else:
            idle = _idle(core, remotes, remote) or [remote.worker]
            _send(core, task, idle[number % len(idle)])


def _idle(core: Core, remotes: list[Remote], busy: Remote) -> list[int]:
    """The workers of a scheduler that have nothing to do."""
    found = [
        one.worker
        for one in remotes
        if one is not busy
        and core in one.cores
        and one.takes_tasks
        and not one.leaving
        and not one.solitary
        and len(one.flights) - one.paused < one.threads
        and not core.shared[one.worker]
    ]
    if core.local in core.active and getattr(core.driver, "free", None) and not core.shared[core.local]:
        found.append(core.local)
    return found


def _may_go(core: Core, task: DTask, idle: list[int]) -> bool:
    return any(may_leave(core, task, Spot(None, worker, core.threads[worker])) for worker in idle)


def _move_queued(core: Core, remote: Remote, idle: list[int]) -> None:
    """What was not sent yet."""
    queue = core.shared[remote.worker]
    for number, task in enumerate(list(queue)):
        if task._state < DONE and _may_go(core, task, idle) and claim(task):
            with contextlib.suppress(ValueError):
                queue.remove(task)
            _send(core, task, idle[number % len(idle)])


def _recall(core: Core, remote: Remote, idle: list[int]) -> None:
    ids = [
        id
        for id, flight in remote.flights.items()
        if flight.task._core is core and not flight.pinned and not flight.paused and _may_go(core, flight.task, idle)
    ]
    if len(remote.flights) - remote.paused > remote.threads:
        remote.say((RECALL, ids))


def _send(core: Core, task: DTask, worker: int) -> None:
    """Queue a task for a worker, if it may run there, else anywhere."""
    spot = Spot(None, worker, core.threads[worker])
    if may_leave(core, task, spot):
        core.queue_at(task, spot)
    else:
        core.enqueue(task)
    core.driver.wake()
