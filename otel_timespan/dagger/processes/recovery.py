"""What is done when a worker is gone, or is to go: nothing that it was given is lost.

A worker that dies had tasks in three states, and the flight recorder (flight.py) tells them apart:

* It waited there, or was on its way: it is queued again, as the same attempt, and nobody is to blame.
* Its body ran. It runs again, as the next attempt, and that the worker died counts against it (option
  `worker_losses`): what ends each worker that it runs on must not end them all. Where several bodies ran, one of them
  is to blame, and nobody knows which: each of them runs *alone* on a worker next (`Solitude`), so that the innocent
  are cleared.
* Its result was read: it is done.

What a worker died of is no failure of a body: the option `retries` has nothing to do with it.

All of it runs on the pump's thread. See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...errors import NoWorkersError, SchedulingError, SingleWorkerLostError, WorkerLostError
from ...timespans.model import EventId
from ..bodies.ending import end, fail, halt, release_inputs
from ..bodies.logged import end_row
from ..core import limits
from ..core.machine import Doomed
from ..core.placement import spots_of
from ..records import kinds as records
from ..records.describe import callable_name
from ..tasks.dtask import DONE, DTask, Failure, Loss, live, summarize
from .flight import BLOCKED, ENDED
from .flight import FlightRow as Row
from .telling import gone, run_log
from .upstairs import UPSTAIRS

if TYPE_CHECKING:
    from ..core.machine import Core
    from .remote import Flight, Remote

__all__ = ["WORKER_LOSSES", "lost", "place_left", "requeue", "stays", "values_lost"]

LOGGER = logging.getLogger("otel_timespan")

WORKER_LOSSES = 3
"""The default of the option `worker_losses`."""

_SHOWN = 5
"""So many bodies are named in the warning."""


def lost(remote: Remote, cores: Iterable[Core], how: str, blame: bool = True) -> None:
    """A worker is over, and all that it said was heard: have done elsewhere what it had.

    `blame`: it died by itself, which is warned of, and counts against the bodies that ran there.
    """
    flights = list(remote.flights.values())
    ran = _what_ran(remote) if flights else {}
    if blame and remote.ready is not None:
        _warn(remote, how, [flight.task for flight in flights if flight.task.id in ran], len(flights))
    values_lost(remote)
    gone(remote, remote.reader.made["traces"])
    blamed = _blamed(ran) if blame else set()
    for core in {*cores, *(flight.task._core for flight in flights)}:
        mine = [flight for flight in flights if flight.task._core is core]
        _recover(core, remote, mine, ran, how, blamed)
    remote.flights.clear()
    remote.slots.clear()
    remote.ahead_ns = 0.0


def values_lost(remote: Remote) -> None:
    """What lay on a worker is gone. Results that are small enough live in the head: there is nothing to do."""


def _what_ran(remote: Remote) -> dict[int, Row]:
    """The bodies that ran there, by task id. All that it was given, if nobody can tell."""
    reader = remote.reader
    if not reader.is_sound or reader.is_overfull:
        return {id: Row(id, flight.attempt, 0, 0, 0) for id, flight in remote.flights.items()}
    found = {}
    for row in reader.rows():
        flight = remote.flights.get(row.id)
        if flight is not None and flight.attempt == row.attempt:
            found[row.id] = row
    return found


def _blamed(ran: dict[int, Row]) -> set[int]:
    """Which of these bodies may have ended the worker: those that were at something, if any were."""
    return {id for id, row in ran.items() if row.phase not in (BLOCKED, ENDED)} or set(ran)


def _warn(remote: Remote, how: str, running: list[DTask], given: int) -> None:
    ran = ", ".join(_shown(task) for task in running[:_SHOWN])
    more = f" and {len(running) - _SHOWN} more" if len(running) > _SHOWN else ""
    doing = f"while it ran {ran}{more}" if running else "while no body ran there"
    text = f"worker {remote.worker} {how} {doing}"
    if given:
        text += f"; {given} task{'s' * (given > 1)} that it had {'are' if given > 1 else 'is'} done elsewhere"
    LOGGER.info("%s", text)
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=1)
    except RuntimeWarning:  # warnings are errors in this program; here is nobody to raise it to
        LOGGER.warning("%s", text)


def _shown(task: DTask) -> str:
    name = task._options.name or callable_name(task._f)
    return f"{name} (task {task.id})"


# ---- one scheduler ------------------------------------------------------------------------------------------


def _recover(
    core: Core, remote: Remote, flights: list[Flight], ran: dict[int, Row], how: str, blamed: set[int]
) -> None:
    worker = remote.worker
    t0 = core.clock()
    waiting = core.worker_lost(worker)
    core.context.lose_worker(worker)
    t1 = core.clock()
    record(core, "remove_procs", worker, t0, t1)
    if core.is_batch and not core.active and core.halted is None:
        halt(core, NoWorkersError("no remaining workers", "no_processors"))
    for flight in flights:
        task = flight.task
        row = ran.get(task.id)
        if flight.waits:
            UPSTAIRS.end_wait(task, None)
        core.running.discard(task)
        if task._state >= DONE:
            release_inputs(task)
        elif row is None:
            waiting.append(task)
        else:
            loss = Loss(worker, flight.attempt, how, len(blamed) > 1) if task.id in blamed else None
            _try_again(core, remote, task, row, loss)
    place_left(core, worker, waiting)
    record(core, "handle_fault", worker, t1, core.clock())


def place_left(core: Core, worker: int, tasks: Iterable[DTask]) -> None:
    """Place tasks again that a worker had, or was to have, and whose bodies did not run."""
    for task in tasks:
        error = _bound(core, worker, task)
        if error is None:
            requeue(core, task)
        else:
            _fail_run_or_task(core, task, error)


def requeue(core: Core, task: DTask) -> None:
    """Place a task again that was claimed, and whose body did not run: the same attempt."""
    if task._state >= DONE or task._context is None:  # cancelled meanwhile
        release_inputs(task)
        return
    task._slot = None
    core.unreserve(task)
    core.hand_on([task])
    if core.halted is not None:  # it went down meanwhile, perhaps without seeing this one
        core.effects.append(Doomed(task, core.halted))
        core.driver.perform_effects()


def _try_again(core: Core, remote: Remote, task: DTask, row: Row, loss: Loss | None) -> None:
    """Its body ran: the next attempt, if it has one left. `loss`: the worker that it may have ended."""
    extra, worker = live(task), remote.worker
    if loss is not None:
        extra.losses = (*extra.losses, loss)
    error = _bound(core, worker, task) or (None if loss is None else _spent(core, task))
    why = WorkerLostError(worker, f"{_shown(task)} was running when worker {worker} {remote.lost}", task.id)
    failure = Failure(summarize(task), error or why)
    recorder = core.context.recorder
    ended, told = (), None
    if recorder is not None:
        ended, told = _ended(core, remote, task, row, failure)
    if error is not None:
        if core.is_batch and isinstance(error, SingleWorkerLostError):
            halt(core, error)
        task._summary = failure.root
        end(core, task, failure, told, ended, "failure", True, True)
        return
    failure.retrieved = True  # the next attempt is to tell
    if told is not None:
        told.append((*ended, None, None))
    extra.attempt += 1
    task._summary = None
    task._slot = None
    core.unreserve(task)
    if task._options.limit is not None:
        limits.leave(task)
    core.submit_known(task)


def _bound(core: Core, worker: int, task: DTask) -> WorkerLostError | None:
    """What a task that can only run on a worker that is gone fails with; None for one that can run elsewhere."""
    if task._context is None:  # it has ended
        return None
    if task._options.single == worker:
        return SingleWorkerLostError(worker, f"{_shown(task)} may run on worker {worker} only, which is gone", task.id)
    if not core.active:  # it waits for another worker
        return None
    try:
        spots_of(core, task)
    except SchedulingError as error:
        reason = f"{_shown(task)} can't run anywhere now that worker {worker} is gone: {error.reason}"
        return WorkerLostError(worker, reason, task.id)
    except BaseException:  # of a hook of the user's: it says so where the task is placed
        return None
    return None


def _spent(core: Core, task: DTask) -> WorkerLostError | None:
    """What a task fails with that has cost as many workers as it may."""
    losses = live(task).losses
    allowed = task._options.worker_losses or WORKER_LOSSES
    if len(losses) < allowed:
        return None
    deaths = "; ".join(f"worker {one.worker} {one.how}" for one in losses)
    reason = f"{_shown(task)} was running when {deaths}: no more workers may die of it (worker_losses={allowed})"
    return WorkerLostError(
        losses[-1].worker, reason, task.id, tuple((one.worker, one.attempt, one.how) for one in losses)
    )


def _fail_run_or_task(core: Core, task: DTask, error: WorkerLostError) -> None:
    if core.is_batch and isinstance(error, SingleWorkerLostError):
        halt(core, error)
    fail(core, task, error)
    release_inputs(task)


def stays(core: Core, task: DTask) -> bool:
    """Whether a task can run on the workers that a scheduler has left."""
    if not core.active:
        return True
    with contextlib.suppress(SchedulingError):
        return bool(spots_of(core, task))
    return False


# ---- the log ------------------------------------------------------------------------------------------------


def record(core: Core, category: str, worker: int, t0: int, t1: int) -> None:
    """A span of the scheduler about a worker."""
    recorder = core.context.recorder
    if recorder is not None:
        id = EventId(uid=core.uid, worker=worker)
        recorder.append((records.SPAN, category, id, None, t0, t1, 1, recorder.sample()))


def _ended(core: Core, remote: Remote, task: DTask, row: Row, failure: Failure) -> tuple[tuple[Any, ...], Any]:
    """The record of the end of a body that nobody will tell of, but for its last two items, and who takes it.

    Its begin is recorded, if it was not.
    """
    now = core.clock()
    begun = row.since_ns or now
    task._slot = remote.slots.get(core, {}).get(row.slot, task._slot)
    thread = (row.slot, f"worker-{remote.worker}")
    log = [None, begun, begun, now, now, thread, None, None, None]  # as the worker would have noted it
    made = run_log(remote, core.context.recorder, task, log, failure.ex)
    return end_row(core, task, failure, made)[0], made.recorder
