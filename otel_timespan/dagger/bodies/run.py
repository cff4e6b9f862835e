"""Running one task's body, the same on every driver: call it, see what came of it, have the task ended.

`run` begins a body on this thread. What it gives is the task's outcome, or a coroutine: then the body goes on where
its driver has coroutines run. Whoever has the outcome of a body that began, on whichever thread and however much later,
hands it over with `conclude`.

`run` is the hot path of the scheduler. Without a log it makes no clock call and builds no record.

See docs/architecture.md.
"""

from __future__ import annotations

import contextvars
import functools
import time
from types import FunctionType
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError, SchedulingError, TaskCancelled, TaskTimeoutError
from ...timespans import profiler
from ..core import limits
from ..core.describe_task import describe_moves, take_arguments
from ..data.chunks import Chunk, DRef, new_logged_handle
from ..options.checks import retry_delay_s
from ..options.options import DEFAULT
from ..places.processors import move
from ..records import kinds as records
from ..records.kinds import function_code, function_codes
from ..records.sizes import FIXED
from ..service import timers
from ..service.timers import call_later
from ..service.uninterrupted import on_main_thread, uninterrupted
from ..tasks.dtask import DONE, FAILED, DTask, Failure, hint_for, live, summarize
from ..tasks.environment import enter, token_of
from ..tasks.failures import forget_frames, forget_handled
from . import interrupts
from .call import called, plain_body, resolve
from .checkpoints import save
from .coroutines import ASYNC, refusal
from .ending import abandon, end, fail, release_inputs, succeed
from .logged import RunLog, end_row, logged_body, threads
from .results import given_as, learn, pack_or_fail, saved_chunk
from .signals import is_of_a_handler

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..core.placement import Slot

__all__ = ["conclude", "run"]

_SPECIAL = frozenset((Chunk, *ASYNC))
"""Types of what a body gives that is not simply its result."""


@interrupts.entry
def run(core: Core, task: DTask, slot: Slot, helping: bool = False) -> int:
    """Run a task that was claimed, on this thread, in this slot: how many tasks became ready, and are queued.

    With `helping` (for somebody who waits) what a signal handler raises meanwhile ends the task as cancelled, and is
    raised here.
    """
    f, args, context = task._f, task._args, task._context
    if context is None or task._state >= DONE:  # settled between its claim and here
        release_inputs(task)
        return 0
    task._slot = slot  # from here on it has begun: whoever mends a broken run ends it
    options = task._options
    if options is not DEFAULT and (options.timeout is not None or options.retries):
        context = _limit(core, task, context)
        if context is None:
            return 0
    running = core.running
    running.add(task)
    recorder = core.context.recorder
    if recorder is not None:
        try:
            return _run_logged(core, task, slot, context, recorder, helping, f, args)
        finally:
            seen = interrupts.looked and task._state == FAILED
            del task, context, f, args  # see below
            if seen:
                interrupts.forget_look()
    begun = 0 if task.id & core.costs.skip else core.clock()
    error: BaseException | None = None
    try:  # as `called`, without a call
        try:
            value: Any = context.run(plain_body, task, f, args)
        except BaseException as raised:
            value, error = None, raised
            interrupts.deliver()
    except TaskCancelled as late:
        value, error = None, late
    kind = type(value)
    if (
        error is None
        and options is DEFAULT
        and kind not in _SPECIAL
        and core.devices is None
        and (task._live is None or not task._live.forced)
    ):
        running.discard(task)
        if not args or kind in FIXED or (ref := given_as(value, args)) is None:
            ref = DRef()  # as `new_handle`, without a call
            ref.value = value
            ref.worker = slot.worker
        if begun:
            learn(core, slot, f, args, task._kwargs, core.clock() - begun, ref)
        return succeed(core, task, ref)
    ns = core.clock() - begun if begun else 0
    try:
        if kind in ASYNC:
            return _go_on(core, task, value, context, None, helping)
        running.discard(task)
        return conclude(core, task, value, error, None, helping, ns)
    finally:
        error = value = None  # its traceback refers to this frame, and must not keep the value
        del task, context, f, args  # nor the task, whose failure it is, nor what that was given
        if interrupts.looked:
            interrupts.forget_look()


@interrupts.see_through
def _run_logged(
    core: Core, task: DTask, slot: Slot, context: contextvars.Context, recorder: Any, helping: bool, f: Any, args: Any
) -> int:
    """`run` with a log: one record when the body begins, one when it ended (see logged.py)."""
    code = function_codes.get(f) if type(f) is FunctionType else None
    code = function_code(f) if code is None else code
    profiled = core.context.profile_computes
    plain = type(code) is int and task._options is DEFAULT and core.devices is None
    if plain and not (profiled or task._kwargs or move.custom):
        try:
            return _run_plainly(core, task, slot, context, recorder, helping, code, f, args)
        finally:
            del task, context, f, args
    log = RunLog(recorder, slot.code, code)
    if profiled:
        profiler.begin((core.uid, task.id))
    value, error = called(context, logged_body, core, task, slot, log)
    log.ended = core.clock()
    if profiled:
        log.profile = profiler.end((log.thread[0],), (core.uid, task.id))
    try:
        if type(value) in ASYNC:
            return _go_on(core, task, value, context, log, helping)
        if log.cpu0:
            log.cpu_ns = time.thread_time_ns() - log.cpu0
        if log.span is not None:
            log.span = log.span.ended()
        core.running.discard(task)
        ns = 0 if task.id & core.costs.skip else log.ended - log.begun
        return conclude(core, task, value, error, log, helping, ns)
    finally:
        error = value = None
        del task, context, f, args


@interrupts.see_through
def _run_plainly(
    core: Core,
    task: DTask,
    slot: Slot,
    context: contextvars.Context,
    recorder: Any,
    helping: bool,
    code: int,
    f: Any,
    args: Any,
) -> int:
    """`_run_logged` for most tasks: no options, no keywords, a well-known function."""
    thread = threads.info
    told: list[Any] | None = None if recorder.on_body is None and not recorder.wants_cpu else []
    begun = 0 if task.id & core.costs.skip else core.clock()
    value: Any = None
    error: BaseException | None = None
    try:  # as `called`, without a call
        try:
            value = context.run(_plain_logged_body, core, task, slot, recorder, code, thread, f, args, told)
        except BaseException as raised:
            error = raised
            interrupts.deliver()
    except TaskCancelled as late:
        error = late
    ended = core.clock()
    cpu_ns = span = None
    if told:
        span = told[0] if told[0] is None or type(value) in ASYNC else told[0].ended()
        cpu_ns = time.thread_time_ns() - told[1] if len(told) == 2 else None
    kind, extra = type(value), task._live
    special = error is not None or kind in _SPECIAL or (extra is not None and extra.forced)
    if special or (args and kind not in FIXED and given_as(value, args) is not None):
        log = RunLog(recorder, slot.code, code)
        log.ended, log.cpu_ns, log.span = ended, cpu_ns, span
        try:
            if kind in ASYNC:
                return _go_on(core, task, value, context, log, helping)
            core.running.discard(task)
            return conclude(core, task, value, error, log, helping, ended - begun if begun else 0)
        finally:
            error = value = None
            del task, context, f, args
    core.running.discard(task)
    ref = new_logged_handle(value, recorder.put, slot.worker)
    if begun and task._state < DONE:
        learn(core, slot, f, args, None, ended - begun, ref)
    packed = ended if kind in FIXED else core.clock()
    what = (ref._number, ref._nbytes, kind, ref.worker)
    row = (records.RETURN, ended, packed, core.uid, task.id, slot.code, code, *what, cpu_ns, span, thread)
    return end(core, task, ref, recorder, row)


@interrupts.see_through
def _plain_logged_body(
    core: Core,
    task: DTask,
    slot: Slot,
    recorder: Any,
    code: int,
    thread: tuple[int, str],
    f: Any,
    args: Any,
    told: list[Any] | None,
) -> Any:
    """`told` takes what is noted before the body, of what the log asks for: its span, the CPU time of the thread."""
    began = moved = core.clock()
    enter(task)
    moves: Any = ()
    try:
        if args:
            taken = take_arguments(args, slot.worker)
            if taken is not None:
                args, moves = taken
            else:
                args = tuple([resolve(a, task) for a in args])
                moves = describe_moves(task, args, None, slot.processor, slot.worker)
            moved = core.clock()
    finally:
        samples = recorder.sample() if recorder.samplers else None
        recorder.append((records.START, began, moves, moved, core.uid, task.id, slot.code, code, None, thread, samples))
    if told is not None:
        if recorder.on_body is not None:
            extra = task._live
            attempt, trace = (1, None) if extra is None else (extra.attempt, extra.trace)
            told.append(recorder.on_body(task.id, attempt, records.function_of(code), None, trace, moved))
        else:
            told.append(None)
        if recorder.wants_cpu:
            told.append(time.thread_time_ns())
    return f(*args)


# ---- time limits -----------------------------------------------------------------------------------------


def _limit(core: Core, task: DTask, context: contextvars.Context) -> contextvars.Context | None:
    """Start the clock of the option `timeout`; a context of its own for a body that may run again.

    None where there is nobody to keep the time: then the task has failed.
    """
    options = task._options
    if options.timeout is not None:
        extra = live(task)
        call = functools.partial(_expire, core, task, options.timeout, extra.attempt)
        try:
            extra.timer = uninterrupted(call_later, options.timeout, call)
        except SchedulingError as error:
            fail(core, task, error)
            release_inputs(task)
            return None
    return context.copy() if options.retries else context


def _expire(core: Core, task: DTask, timeout_s: float, attempt: int) -> None:
    if task._state < DONE and live(task).attempt == attempt and task in core.running:
        token_of(task).cancel(graceful=False)
        if fail(core, task, TaskTimeoutError(f"task {task.id} ran longer than its timeout of {timeout_s:g} s")):
            abandon(core, task)


# ---- what came of it ---------------------------------------------------------------------------------------


def conclude(
    core: Core, task: DTask, value: Any, error: BaseException | None, log: RunLog | None, helping: bool, ns: int
) -> int:
    """Hand over what came of a body, after `ns` (0: not timed): the task ends, or its body is to run again.

    How many tasks became ready, and are queued. From any thread; the task is not among the running ones any more.
    A late result of a cancelled one is dropped.
    """
    interrupt = None
    if error is not None:
        forget_handled(error)
        mine = helping and (on_main_thread() or core.driver.is_stepped)
        interrupt = error if mine and is_of_a_handler(error) else None
    extra = task._live
    if interrupt is not None:
        error = TaskCancelled("interrupted by the user")
    elif extra is not None and extra.forced:
        error = interrupts.forced_error(task, error)
    if extra is not None and extra.timer is not None:
        uninterrupted(extra.timer.cancel)
    try:
        outcome: Any = None
        if error is None:
            outcome, error = pack_or_fail(core, task, value, None if log is None else log.recorder)
        if error is None:
            queued = _end_well(core, task, outcome, log, ns)
        else:  # made where no signal comes, from its first step to its last
            queued = uninterrupted(_end_failed, core, task, error, log)
    finally:
        error = value = None  # a traceback may refer to this frame
        del task, extra
    if interrupt is not None:
        raise interrupt
    return queued


def _end_well(core: Core, task: DTask, outcome: Any, log: RunLog | None, ns: int) -> int:
    if task._state < DONE:
        if ns:
            learn(core, task._slot, task._f, task._args, task._kwargs, ns, outcome)
        if task._options.checkpoint is not None:
            uninterrupted(save, task._options.checkpoint, "Thunk", task, saved_chunk(task, outcome))
    if log is None:
        return end(core, task, outcome)
    return end(core, task, outcome, log.recorder, *end_row(core, task, outcome, log))


def _end_failed(core: Core, task: DTask, error: BaseException, log: RunLog | None) -> int:
    task._summary = summarize(task)
    forget_frames(error)
    failure = Failure(task._summary, error, hint=hint_for(task, error))
    if task._options.retries and _retry(core, task, failure, log):
        return 0
    tell = core.on_body_error
    if tell is not None or task._state >= DONE:
        failure.retrieved = True  # nobody wants to know, or `compute` raises it
    row, state = ((), "") if log is None else end_row(core, task, failure, log)
    queued = end(core, task, failure, None if log is None else log.recorder, row, state, True, True)
    if task._outcome is not failure:
        failure.retrieved = True
    elif tell is not None:
        tell(task, error)
    return queued


def _go_on(
    core: Core, task: DTask, coroutine: Any, context: contextvars.Context, log: RunLog | None, helping: bool
) -> int:
    """The body gave a coroutine: the slot goes back, and the task goes on where coroutines run."""

    def over(value: Any, error: BaseException | None, helping: bool = False) -> int:
        core.running.discard(task)
        if log is not None:
            log.ended = core.clock()
            if log.span is not None:
                log.span = log.span.ended()
        return conclude(core, task, value, error, log, helping, 0)

    error = refusal(coroutine)
    if error is not None:
        return over(None, error, helping)
    core.unreserve(task)
    return core.driver.go_on(task, coroutine, context, over)


# ---- the next attempt ----------------------------------------------------------------------------------------


def _retry(core: Core, task: DTask, failure: Failure, log: RunLog | None) -> bool:
    """Begin the next attempt of a task whose body raised, if it has one left."""
    options, extra = task._options, live(task)
    allowed = extra.failures < (options.retries or 0) and isinstance(failure.ex, options.retry_on or Exception)
    allowed = allowed and not isinstance(failure.ex, TaskCancelled)
    if not allowed or task._state >= DONE or core.halted is not None or interrupts.is_forced(task):
        return False
    try:
        delay_s = retry_delay_s(options.retry_delay, extra.failures + 1) if options.retry_delay is not None else 0.0
        if delay_s:
            timers.start()
    except (InvalidOptionError, SchedulingError) as error:
        error.__cause__, failure.ex = failure.ex, error
        return False
    failure.retrieved = True  # the next attempt is to tell
    if log is not None:
        row, _ = end_row(core, task, failure, log)
        log.recorder.append((*row, None, log.recorder.sample()))
    extra.failures += 1
    extra.attempt += 1
    task._summary = None
    task._slot = None  # it has not begun
    if options.limit is not None:
        limits.leave(task)
    if not delay_s:
        core.submit_known(task)
    else:
        core.delayed.add(task)
        extra.timer = call_later(delay_s, functools.partial(_resubmit, core, task))
        if task._state >= DONE:  # cancelled before the timer was there
            extra.timer.cancel()
            core.delayed.discard(task)
    return True


def _resubmit(core: Core, task: DTask) -> None:
    core.delayed.discard(task)
    if core.halted is None:
        core.submit_known(task)
