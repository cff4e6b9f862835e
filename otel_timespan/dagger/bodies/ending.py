"""The end of a task: one order, in one function, whoever ends it.

A task ends because its body did, on a thread or on the event loop; because it was cancelled, timed out, could not be
placed, or its upstream failed; because `restore` had its result; because the scheduler went down. It will also end
because another process says so. All of them call `end`, which does, in this order:

    win the right to end it, and store the outcome → append the record → give back token and expected time →
    make the outcome visible → take out who subscribed → queue the dependents that became ready, call the waiters →
    let go of the inputs, and of the places of its limits

Whoever sees a task done finds its events; whoever is told of it finds it done. First come, first served: a task has
one outcome, and a later one is only recorded, as the end of a body that nobody waits for any more.

**It can't be split.** In the main thread an exception may come out of any step of ours (a signal handler raised it).
Each step is one section (tasks/atomics.py) or may be done twice; what was broken off is completed by a thread that
gets no signals, and the interrupt goes on its way after that. What can't be made of such steps (failures, which pass
on to any number of dependents; waiters in Python; places of limits) is done by that thread from the start. Waiters
and hooks are the user's code: whatever they raise, of any class, is logged and stops nothing.

See docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import types
from _thread import get_ident
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import SchedulingError, TaskCancelled
from ..core import limits
from ..core.machine import Doomed, Restorable
from ..data.chunks import scoped_chunks
from ..data.spilling import watch_handle
from ..options.defaults import signature_defaults
from ..options.options import DEFAULT
from ..records import kinds as records
from ..service.callbacks import call_apart, carriers, held_back
from ..service.uninterrupted import on_main_thread, uninterrupted
from ..tasks.atomics import GIL, claim, hand_over, settle
from ..tasks.dtask import DONE, FAILED, TOLD, DTask, Failure, live, summarize
from ..tasks.environment import end_token
from .checkpoints import try_restore

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..data.chunks import DRef

__all__ = ["abandon", "end", "fail", "give_up", "halt", "perform", "release_inputs", "report_defect", "succeed"]

LOGGER = logging.getLogger("otel_timespan")


def end(
    core: Core,
    task: DTask,
    outcome: Any,
    recorder: Any = None,
    row: tuple[Any, ...] = (),
    state: str = "success",
    ran: bool = True,
    failed: bool = False,
    doomed: list[DTask] | None = None,
) -> int:
    """End a task with this outcome, unless it has one: how many tasks became ready, and are queued. Wake for them.

    `outcome`: a handle or a `Result`; with `failed` a `Failure`. `recorder` and `row`: its record but for the last two
    items (state and samples), where there is a log. `ran`: its body ended just now; else it ends from outside, and a
    body that runs goes on for nothing. `doomed`: where the dependents of a failed one go; by default they end here.
    From any thread. Raises only what a signal handler raised meanwhile, after everything is done.
    """
    limited = task._options is not DEFAULT and task._options.limit is not None
    if (failed or limited) and on_main_thread():
        return uninterrupted(end, core, task, outcome, recorder, row, state, ran, failed, doomed)
    record = None
    queued = 0
    try:
        if GIL:  # `settle`, without a call
            try:
                del task._open
                task._outcome = outcome
                won = True
            except AttributeError:
                won = False
        else:
            won = settle(task, outcome)
        if recorder is not None and (won or ran):
            samples = recorder.sample() if recorder.samplers else None
            record = (*row, state if won else None, samples)
            recorder.append(record)
        if task._live is not None or task._reserved is not None:
            _let_go(core, task, ran)
        if won:
            task._state = FAILED if failed else DONE
            if core.on_end is not None:
                core.on_end(task, outcome)
            if task._subs:
                taken: list[Any] = []
                task._taken = taken  # where it is found if this breaks off
                hand_over(task, taken)
                task._subs = TOLD
                for one in taken:
                    if failed or type(one) is not DTask:  # what stands before it is queued already
                        queued += _tell(core, task, taken, doomed)
                        break
                    core.enqueue(one)
                    queued += 1
                del task._taken
                if core.effects:
                    core.driver.perform_effects()
            else:
                task._subs = TOLD
        if ran or claim(task) or task not in core.running:
            task._f = task._kwargs = task._context = None
            task._args = task._deps = ()
        if limited:
            limits.leave(task)
    except BaseException:
        uninterrupted(_complete, core, task, outcome, recorder, row, state, ran, record)
        raise
    return queued


def succeed(core: Core, task: DTask, handle: DRef) -> int:
    """`end` for a body that just gave a value, of a task without options, where there is no log: the same, quicker.

    Outcome and state are set in one section, and each dependent goes from here to the queue in one (tasks/atomics.py).
    """
    if not core.is_quick or task._live is not None or task._reserved is not None:
        return end(core, task, handle)
    try:
        del task._open
    except AttributeError:  # it has its outcome
        return end(core, task, handle)
    task._outcome = handle
    task._state = DONE
    queued = 0
    if task._subs:
        try:
            queued = _hand_on(core, task)
        except BaseException:
            uninterrupted(_complete, core, task, handle, None, (), "success", True, None)
            raise
    else:
        task._subs = TOLD
    task._f = task._kwargs = task._context = None
    task._args = task._deps = ()
    return queued


def _hand_on(core: Core, task: DTask) -> int:
    """Count down the dependents of a success, and queue those that are ready: how many. Call the waiters."""
    subs, push, queued = task._subs, core.queue.append, 0
    others: list[Any] = []
    plain = not scoped_chunks and not signature_defaults
    task._taken = others  # where it is found if this breaks off
    while subs:  # as `hand_over`: an entry belongs to whoever takes it out of this list
        try:
            one = subs[-1]
        except IndexError:  # the last one was just taken back
            break
        del subs[-1]
        try:
            left = one._tokens - 1
        except AttributeError:  # a waiter
            others.append(one)
            continue
        one._tokens = left
        if not left:
            if plain and one._options is DEFAULT and one._state < DONE:
                one._tokens = None  # as `Core.enqueue`, without a call
                one._claim = True
                push(one)
                queued += 1
            else:
                others.append(one)
    task._subs = TOLD
    if others:
        queued += _tell(core, task, others, None)
    del task._taken
    if core.effects:
        core.driver.perform_effects()
    return queued


def _complete(
    core: Core, task: DTask, outcome: Any, recorder: Any, row: tuple[Any, ...], state: str, ran: bool, record: Any
) -> None:
    """What is left of an ending that was broken off anywhere; all of it may be done again. `record`: made already."""
    won = settle(task, outcome) or task._outcome is outcome
    if record is not None:
        recorder.again(record)
    elif recorder is not None and (won or ran):
        recorder.append((*row, state if won else None, recorder.sample()))
    _let_go(core, task, ran)
    if won:
        _show(core, task)
    if ran:
        core.running.discard(task)
        release_inputs(task)


def _show(core: Core, task: DTask) -> None:
    """Make the outcome of a settled task visible and tell everybody, as far as that was not done."""
    task._state = FAILED if task._outcome.__class__ is Failure else DONE
    taken = getattr(task, "_taken", None) or []
    if task._subs is not TOLD:
        task._taken = taken
        hand_over(task, taken)
        task._subs = TOLD
    for _ in range(_tell(core, task, taken, None)):
        core.driver.wake()
    with contextlib.suppress(AttributeError):
        del task._taken  # else it would keep its dependents alive
    core.driver.perform_effects()


def _tell(core: Core, task: DTask, taken: list[Any], doomed: list[DTask] | None) -> int:
    """Queue the dependents that a done task made ready, or doom them; call its waiters. May be done again."""
    queued = 0
    done = task._state == DONE
    skipped: list[DTask] = []
    for n, one in enumerate(taken):
        if type(one) is DTask:
            if not done:
                skipped.append(one)
            elif one._tokens is not None:  # it was not queued before
                core.enqueue(one)
                queued += 1
        elif one is not None:
            if one.__class__ is not types.BuiltinMethodType and on_main_thread():
                return queued + uninterrupted(_tell, core, task, taken, doomed)
            taken[n] = None
            _call(one)
    if doomed is not None:
        doomed += skipped
    elif skipped:
        _skip(core, skipped, task._outcome)
    return queued


def _call(waiter: Any) -> None:
    if waiter.__class__ is types.BuiltinMethodType:  # a lock: nothing of the user's, and no step after it
        late = held_back.get(get_ident()) if held_back else None
        waiter() if late is None else late.append(waiter)
        return
    if carriers and get_ident() in carriers and not getattr(waiter, "is_brief", False):
        call_apart(functools.partial(_call_here, waiter))
        return
    _call_here(waiter)


def _call_here(waiter: Any) -> None:
    try:
        waiter()
    except BaseException:
        LOGGER.exception("a callback of a task failed")


def _skip(core: Core, tasks: Sequence[DTask], failure: Failure) -> None:
    """Fail tasks whose upstream failed, and all that depend on them, however long their chain."""
    doomed = list(tasks)
    while doomed:
        task = doomed.pop()
        if hasattr(task, "_open"):
            task._summary = summarize(task)
            recorder = core.context.recorder
            row = () if recorder is None else _finish_row(core, task, failure.error_for(task._summary))
            state = "cancellation" if failure.direct and _is_departure(failure.ex) else "skip"
            end(core, task, failure, recorder, row, state, False, True, doomed)


def _finish_row(core: Core, task: DTask, result: Any) -> tuple[Any, ...]:
    """The record of a task whose body did not run to its end here."""
    return (records.FINISH, core.clock(), core.clock(), core.uid, task.id, result)


def _let_go(core: Core, task: DTask, ran: bool) -> None:
    """What only some tasks hold: a token, a timer, expected time."""
    if ran:
        end_token(task)
    if task._reserved is not None:
        core.unreserve(task)


def release_inputs(task: DTask) -> None:
    """Let go of what the task was given: it will not run (again)."""
    task._f = task._kwargs = task._context = None
    task._args = task._deps = ()


# ---- from outside of the body --------------------------------------------------------------------------


def fail(core: Core, task: DTask, error: BaseException, state: str = "failure", direct: bool = False) -> bool:
    """End a task that does not run (any more) with an error; False if it has an outcome already.

    `direct`: the scheduler went down. Its tasks failed only if it could not go on: else they were dropped.
    """
    if on_main_thread():
        return uninterrupted(fail, core, task, error, state, direct)
    if not hasattr(task, "_open"):
        return False
    task._summary = summarize(task)
    failure = Failure(task._summary, error, direct)
    recorder = core.context.recorder
    row = () if recorder is None else _finish_row(core, task, error)
    state = "cancellation" if direct and _is_departure(error) else state
    end(core, task, failure, recorder, row, state, False, True)
    return task._outcome is failure


def _is_departure(error: BaseException) -> bool:
    """Whether a scheduler that goes down with this error was left, and not broken: nothing failed."""
    return not isinstance(error, SchedulingError) or error.code == "exited"


def perform(core: Core, effect: Doomed | Restorable) -> None:
    """What a driver does with these effects of the core; not in the main thread."""
    task, what = effect
    if isinstance(effect, Restorable):
        _restore(core, task, effect.spot)
    elif isinstance(what, Failure):
        _skip(core, [task], what)
    else:
        fail(core, task, what, direct=what is core.halted)  # type: ignore[arg-type]


def _restore(core: Core, task: DTask, spot: Any) -> None:
    chunk = try_restore(task._options.restore, "Thunk", task)
    if chunk is None:
        core.queue_at(task, spot)
        return
    live(task).chunk = chunk
    recorder = core.context.recorder
    if recorder is not None:
        watch_handle(chunk.handle, recorder, core.clock)
    row = () if recorder is None else _finish_row(core, task, chunk.handle.info)
    for _ in range(end(core, task, chunk.handle, recorder, row, "success", False)):
        core.driver.wake()


def abandon(core: Core, task: DTask) -> None:
    """A task whose body runs has its outcome from elsewhere: cancel the coroutine, or give the slot back."""
    body = task._live.coroutine if task._live is not None else None
    if body is not None:
        body.cancel()
    else:
        core.driver.abandon(task)


def give_up(core: Core, task: DTask, error: BaseException | None = None) -> None:
    """Running this task broke off somewhere (by default: the user interrupted a helper): see to it that it ends."""
    core.running.discard(task)
    if hasattr(task, "_open"):
        state = "cancellation" if error is None else "failure"
        fail(core, task, error or TaskCancelled("interrupted by the user"), state)
    else:
        _show(core, task)
    release_inputs(task)


def report_defect(core: Core, task: DTask, error: BaseException) -> None:
    """Something of ours raised while a task was run: the task fails, and the thread goes on."""
    LOGGER.error("a defect of otel_timespan in running task %d", task.id, exc_info=error)
    broken = SchedulingError(f"a defect of otel_timespan: {error!r}", "inconsistent")
    broken.__cause__ = error
    give_up(core, task, broken)


def halt(core: Core, error: BaseException) -> None:
    """Go down: every unfinished task ends with `error`, directly. Bodies that run are abandoned."""
    if on_main_thread():
        uninterrupted(halt, core, error)
        return
    core.halted = error
    for task in list(core.unfinished()):
        fail(core, task, error, direct=True)
    core.clear()
