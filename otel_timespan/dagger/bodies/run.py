"""Running one task's body, the same on every driver: resolve its arguments, call it, finish it.

`run` is the hot path of the scheduler. Without a log it makes no clock call and builds no record.

Source: spec/scheduler.md §1.3, §17.8.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError, TaskCancelled, TaskTimeoutError
from ...timespans import profiler
from ...timespans.model import NO_SAMPLES
from ..core import limits
from ..core.costs import signature_of
from ..core.describe_task import describe_moves, take_results
from ..core.machine import release_inputs
from ..core.placement import Slot, occupancy_on
from ..data.chunks import Chunk, DRef, LoggedDRef
from ..data.files import File
from ..data.spilling import keep_result, watch_handle
from ..mutable import Shard
from ..options.checks import retry_delay_s
from ..options.options import DEFAULT
from ..options.scoped import enter_propagated
from ..places.processors import ThreadProc, move
from ..places.scopes import AnyScope
from ..records import kinds as records
from ..records.describe import describe_value
from ..records.kinds import function_code
from ..records.sizes import FIXED
from ..service.timers import call_later
from ..tasks.atomics import settle
from ..tasks.dtask import DONE, FAILED, DTask, Failure, Result, live, summarize
from ..tasks.environment import current, end_token, token_of
from ..tasks.failures import forget_frames
from . import interrupts
from .checkpoints import save, try_restore
from .coroutines import ASYNC, CoroutineBody, refusal, run_here

if TYPE_CHECKING:
    from ..core.machine import Core

__all__ = ["UserInterrupt", "as_chunk", "restore", "run"]

UserInterrupt = (KeyboardInterrupt, SystemExit)
"""In a body that the main thread runs while it waits, these are the user's, not the task's."""


@interrupts.entry
def run(core: Core, task: DTask, slot: Slot, *, helping: bool = False) -> Sequence[DTask]:
    """Run a task that was claimed, on this thread, in this slot; the tasks that it made ready.

    With `helping` a `KeyboardInterrupt` or `SystemExit` ends the task as cancelled and is raised here.
    """
    f, args, kwargs, context = task._f, task._args, task._kwargs, task._context
    if task._state >= DONE or context is None:  # settled between its claim and here
        release_inputs(task)
        return ()
    task._slot = slot
    options = task._options
    if options is not DEFAULT and (options.timeout is not None or options.retries):
        context = _limit(core, task, context)
    running = core.running
    running.add(task)
    recorder = core.context.recorder
    if recorder is not None:
        try:
            return _run_logged(core, task, slot, context, recorder, helping)
        finally:
            del task, context  # see below
    begun = 0 if task.id & core.costs.skip else core.clock()
    error: BaseException | None = None
    value = None
    try:
        try:
            value = context.run(_body, task, f, args, kwargs)
        except BaseException as raised:
            error = raised
            if task._live is not None:
                interrupts.deliver()
    except TaskCancelled as late:
        error = late
    ns = core.clock() - begun if begun else 0
    kind, extra = type(value), task._live
    plain = error is None and options is DEFAULT and kind not in _SPECIAL and (extra is None or not extra.forced)
    if plain and core.devices is None:
        running.discard(task)
        task._f = task._kwargs = task._context = None
        task._args = task._deps = ()
        ref = None if not args or kind in FIXED else _given_as(value, args)
        ref = ref or DRef(value, slot.worker)
        if begun:
            learn(core, slot, f, args, kwargs, ns, ref)
        ready = core.finish(task, ref, DONE) if settle(task) else ()
        if task._live is not None:
            end_token(task)
            core.unreserve(task)
        return ready
    if kind in ASYNC:
        return _go_on(core, task, value, context, None, helping)
    running.discard(task)
    try:
        return _end(core, task, value, error, None, helping, ns)
    finally:
        error = value = None  # its traceback refers to this frame, and must not keep the value
        del task, context  # nor the task, whose failure it is


_SPECIAL = frozenset((Chunk, *ASYNC))
"""Types of what a body gives that is not simply its result."""


def learn(core: Core, slot: Slot, f: Any, args: tuple[Any, ...], kwargs: Any, ns: int, outcome: Any) -> None:
    """Remember how long a body took, and how large its result is."""
    nbytes = outcome.nbytes if isinstance(outcome, DRef) else None
    core.costs.learn_run(signature_of(f, args, kwargs), type(slot.processor), ns, nbytes)


def _limit(core: Core, task: DTask, context: contextvars.Context) -> contextvars.Context:
    """Start the clock of the option `timeout`; a context of its own for a body that may run again."""
    options = task._options
    if options.timeout is not None:
        extra = live(task)
        call = functools.partial(_expire, core, task, options.timeout, extra.attempt)
        extra.timer = call_later(options.timeout, call)
    return context.copy() if options.retries else context


def _expire(core: Core, task: DTask, timeout_s: float, attempt: int) -> None:
    if task._state < DONE and live(task).attempt == attempt and task in core.running:
        token_of(task).cancel(graceful=False)
        if core.fail(task, TaskTimeoutError(f"task {task.id} ran longer than its timeout of {timeout_s:g} s")):
            core.abandon(task)


@interrupts.see_through
def _body(task: DTask, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """In the task's own context: resolve, then call."""
    current.set(task)
    options = task._options
    if options is not DEFAULT or kwargs or type(f) in _REFERENCES or move.custom:
        return _body_with_options(task, f, args, kwargs)
    if args:
        args = tuple(
            [a._outcome.value if type(a) is DTask else _resolve(a, task) if type(a) in _REFERENCES else a for a in args]
        )
    return f(*args)


@interrupts.see_through
def _body_with_options(task: DTask, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    enter_propagated(task._options)
    f, args, named = resolve_all(task, f, args, kwargs)
    return task._slot.processor.execute(f, *args, **named)


def resolve_all(task: DTask, f: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function and arguments as the body sees them; with `meta` only the function is resolved."""
    take: Callable[[Any, DTask], Any] = as_chunk if task._options.meta else _resolve
    f = _resolve(f, task)
    positional = tuple([take(a, task) for a in args])
    return f, positional, {name: take(v, task) for name, v in (kwargs or {}).items()}


def _resolve(value: Any, task: DTask) -> Any:
    """What the body sees for an argument (spec §1.3). Containers are passed untouched."""
    kind = type(value)
    if kind is DTask:
        inner = value._outcome.value
        chunk = value._live.chunk if value._live is not None else None
        source = chunk.processor if chunk is not None else value._slot.processor if value._slot else None
    elif kind is Chunk:
        inner, source = value.handle.value, value.processor
    elif kind is File:
        inner, source = value.fetch(), value.processor
    elif kind is Shard:
        piece = value.piece(task._slot.processor)
        inner, source = piece.handle.value, piece.processor
    else:
        inner, source = value, None
    if move.custom:
        target = task._slot.processor
        return move(source or target, target, inner)
    return inner


def as_chunk(value: Any, task: DTask | None = None) -> Any:
    """For `meta`: the result of a task as the `Chunk` that holds it; all else as it is."""
    if type(value) is not DTask:
        return value
    outcome = value._outcome
    if not isinstance(outcome, DRef):
        return outcome.value
    extra = live(value)
    if extra.chunk is None:
        scope = value._options.result_scope
        processor = value._slot.processor
        extra.chunk = Chunk(outcome, processor) if scope is None else Chunk(outcome, processor, scope)
    return extra.chunk


interrupts.see_through(ThreadProc.execute)

_REFERENCES = frozenset((DTask, Chunk, File, Shard))
"""Types of arguments that stand for something else."""


def _end(
    core: Core, task: DTask, value: Any, error: BaseException | None, log: RunLog | None, helping: bool, ns: int
) -> Sequence[DTask]:
    """Settle a task whose body ended after `ns` (0: not timed), or have it run again.

    A late result of a cancelled one is dropped.
    """
    interrupt = error if helping and isinstance(error, UserInterrupt) else None
    extra = task._live
    if interrupt is not None:
        error = TaskCancelled("interrupted by the user")
    elif extra is not None and extra.forced:
        error = interrupts.forced_error(task, error)
    if extra is not None and extra.timer is not None:
        extra.timer.cancel()
    outcome: Any = None
    if error is None:
        outcome, error = _pack_or_fail(core, task, value, log)
        value = None
    if error is None:
        if ns and task._state < DONE:
            learn(core, task._slot, task._f, task._args, task._kwargs, ns, outcome)
        if task._options.checkpoint is not None and task._state < DONE:
            save(task._options.checkpoint, "Thunk", task, _chunk_of(task, outcome))
    else:
        task._summary = summarize(task)
        forget_frames(error)
        outcome = Failure(task._summary, error)
        if task._options.retries and _retry(core, task, outcome, log):
            return ()
    won = settle(task)
    if error is not None and (not won or core.on_body_error is not None):
        outcome.retrieved = True  # nobody wants to know, or `compute` raises it
    if log is not None:
        _record_end(core, task, outcome, won, log)
    ready = core.finish(task, outcome, FAILED if error is not None else DONE) if won else ()
    release_inputs(task)
    end_token(task)
    core.unreserve(task)
    if task._options.limit is not None:
        limits.leave(task)
    if won and error is not None and core.on_body_error is not None:
        core.on_body_error(task, error)
    if interrupt is not None:
        raise interrupt
    return ready


def _go_on(
    core: Core, task: DTask, coroutine: Any, context: contextvars.Context, log: RunLog | None, helping: bool
) -> Sequence[DTask]:
    """The body gave a coroutine: the slot goes back, and the task goes on where coroutines run."""

    def end(value: Any, error: BaseException | None, helping: bool = False) -> Sequence[DTask]:
        core.running.discard(task)
        if log is not None:
            log.ended = core.clock()
        return _end(core, task, value, error, log, helping, 0)

    error: BaseException | None = refusal(coroutine)
    if error is not None:
        return end(None, error)
    core.unreserve(task)
    if core.driver.step is None:
        body = CoroutineBody(task, coroutine, context, lambda value, error: core.hand_on(end(value, error)))
        body.drop() if task._state >= DONE else core.coroutines.start(body)
        return ()
    value = None
    try:
        value = run_here(coroutine, context)
    except BaseException as raised:
        error = raised
    try:
        return end(value, error, helping)
    finally:
        error = None


def _retry(core: Core, task: DTask, failure: Failure, log: RunLog | None) -> bool:
    """Begin the next attempt of a task whose body raised, if it has one left."""
    options, extra = task._options, live(task)
    allowed = extra.attempt <= (options.retries or 0) and isinstance(failure.ex, options.retry_on or Exception)
    allowed = allowed and not isinstance(failure.ex, TaskCancelled)
    if not allowed or task._state >= DONE or core.halted is not None or interrupts.is_forced(task):
        return False
    try:
        delay_s = retry_delay_s(options.retry_delay, extra.attempt) if options.retry_delay is not None else 0.0
    except InvalidOptionError as error:
        error.__cause__, failure.ex = failure.ex, error
        return False
    failure.retrieved = True  # the next attempt is to tell
    if log is not None:
        _record_end(core, task, failure, False, log)
    extra.attempt += 1
    task._summary = None
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


def restore(core: Core, task: DTask) -> Sequence[DTask] | None:
    """The option `restore` of a placed task: what became ready if it gave the result, None if it is to run."""
    chunk = try_restore(task._options.restore, "Thunk", task)
    if chunk is None:
        return None
    if not settle(task):
        return ()
    live(task).chunk = chunk
    if core.context.recorder is not None:
        watch_handle(chunk.handle, core.context.recorder, core.clock)
    core.record_finish(task, chunk.handle.info, "success")
    ready = core.finish(task, chunk.handle, DONE)
    release_inputs(task)
    if task._options.limit is not None:
        limits.leave(task)
    return ready


def _chunk_of(task: DTask, outcome: Any) -> Any:
    """What a checkpoint is given: the chunk of the result, or the plain value of `get_result` and `meta`."""
    if not isinstance(outcome, DRef):
        return outcome.value
    chunk = task._live.chunk if task._live is not None else None
    return chunk or Chunk(outcome, task._slot.processor, task._options.result_scope or AnyScope())


def _pack_or_fail(core: Core, task: DTask, value: Any, log: RunLog | None) -> tuple[Any, BaseException | None]:
    """`pack`; a value that its storage does not take fails the task, and is not kept alive by the error."""
    try:
        return pack(core, task, value, None if log is None else log.recorder), None
    except Exception as refused:
        value = None
        inner: BaseException | None = refused
        while inner is not None:
            traceback.clear_frames(inner.__traceback__)
            inner = inner.__cause__ or inner.__context__
        return None, refused


def pack(core: Core, task: DTask, value: Any, recorder: Any) -> Any:
    """The outcome that holds a body's value: a handle, a plain `Result`, or the chunk that it returned."""
    options = task._options
    if options is not DEFAULT:
        if options.result_scope is not None:
            Chunk.scoped_exist = True
        if options.get_result or options.meta:
            return Result(value)
    if type(value) is Chunk:
        live(task).chunk = value
        if recorder is not None:
            watch_handle(value.handle, recorder, core.clock)
        return value.handle
    if options.storage is not None:
        kept = keep_result(core, task, value, recorder)
        if kept is not None:
            return kept
    ref = None if type(value) in FIXED else _given_as(value, task._args)
    if ref is not None:
        if recorder is not None:
            watch_handle(ref, recorder, core.clock)
        return ref
    if core.devices is not None and options.storage is None:
        kept = keep_result(core, task, value, recorder)
        if kept is not None:
            return kept
    worker = task._slot.worker
    return DRef(value, worker) if recorder is None else LoggedDRef(value, recorder.put, worker)


def _given_as(value: Any, args: tuple[Any, ...]) -> DRef | None:
    """The handle under which a body was given what it returned: one object must not count twice."""
    for arg in args:
        ref = arg._outcome if type(arg) is DTask else arg.handle if type(arg) is Chunk else None
        if isinstance(ref, DRef) and ref.held is value:
            return ref
    return None


# ---- with a log ------------------------------------------------------------------------------------


class RunLog:
    """What the records of one run need, from its begin to its end."""

    __slots__ = ("begun", "cpu0", "cpu_ns", "ended", "f", "processor", "profile", "recorder", "span", "thread")

    def __init__(self, recorder: Any, processor: Any, f: Any) -> None:
        self.recorder = recorder
        self.processor = processor
        self.f = f
        self.thread = this_thread()
        self.span: Any = None
        self.begun = 0
        self.ended = 0
        self.cpu0 = 0
        self.cpu_ns: int | None = None
        self.profile = NO_SAMPLES


@interrupts.see_through
def _run_logged(
    core: Core, task: DTask, slot: Slot, context: contextvars.Context, recorder: Any, helping: bool
) -> Sequence[DTask]:
    """`run` with a log: one record when the body begins, one when it ended (see records/kinds.py)."""
    code = function_code(task._f)
    profiled = core.context.profile_computes
    plain = type(code) is int and task._options is DEFAULT and core.devices is None
    if plain and not (profiled or task._kwargs or move.custom or recorder.wants_cpu or recorder.on_body is not None):
        try:
            return _run_plainly(core, task, slot, context, recorder, helping, code)
        finally:
            del task, context
    log = RunLog(recorder, slot.code, code)
    value: Any = None
    error: BaseException | None = None
    if profiled:
        profiler.begin((core.uid, task.id))
    try:
        try:
            value = context.run(_logged_body, core, task, slot, log)
        except BaseException as raised:
            error = raised
            if task._live is not None:
                interrupts.deliver()
    except TaskCancelled as late:
        error = late
    log.ended = core.clock()
    kind = type(value)
    if profiled:
        log.profile = profiler.end((log.thread[0],), (core.uid, task.id))
    if kind in ASYNC:
        return _go_on(core, task, value, context, log, helping)
    if log.cpu0:
        log.cpu_ns = time.thread_time_ns() - log.cpu0
    core.running.discard(task)
    try:
        ns = 0 if task.id & core.costs.skip else log.ended - log.begun
        return _end(core, task, value, error, log, helping, ns)
    finally:
        error = value = None
        del task, context


@interrupts.see_through
def _run_plainly(
    core: Core, task: DTask, slot: Slot, context: contextvars.Context, recorder: Any, helping: bool, code: int
) -> Sequence[DTask]:
    """`_run_logged` for most tasks: no options, a well-known function, a log that asks for nothing more."""
    thread = _threads.info
    value: Any = None
    begun = 0 if task.id & core.costs.skip else core.clock()
    error: BaseException | None = None
    try:
        try:
            value = context.run(_plain_body, core, task, slot, recorder, code, thread)
        except BaseException as raised:
            error = raised
            if task._live is not None:
                interrupts.deliver()
    except TaskCancelled as late:
        error = late
    if error is not None:
        log = RunLog(recorder, slot.code, code)
        log.ended = core.clock()
        core.running.discard(task)
        try:
            return _end(core, task, None, error, log, helping, 0)
        finally:
            error = None
            del task, context
    ended = core.clock()
    ns = ended - begun if begun else 0
    args, kind = task._args, type(value)
    if kind in ASYNC:
        return _go_on(core, task, value, context, RunLog(recorder, slot.code, code), helping)
    core.running.discard(task)
    extra = task._live
    forced = extra is not None and extra.forced
    if forced or kind is Chunk or (args and kind not in FIXED and _given_as(value, args) is not None):
        log = RunLog(recorder, slot.code, code)
        log.ended = ended
        return _end(core, task, value, None, log, helping, ns)
    ref = LoggedDRef(value, recorder.put, slot.worker)
    if ns and task._state < DONE:
        learn(core, slot, task._f, args, None, ns, ref)
    release_inputs(task)
    won = settle(task)
    samples = recorder.sample() if recorder.samplers else None
    packed = ended if kind in FIXED else core.clock()
    number, nbytes, state = ref._number, ref._nbytes, "success" if won else None
    end = (records.RETURN, ended, packed, core.uid, task.id, slot.code, code, number, nbytes, kind, ref.worker)
    recorder.append((*end, thread, state, samples))
    ready = core.finish(task, ref, DONE) if won else ()
    if task._live is not None:
        end_token(task)
        core.unreserve(task)
    return ready


@interrupts.see_through
def _plain_body(core: Core, task: DTask, slot: Slot, recorder: Any, code: int, thread: tuple[int, str]) -> Any:
    began = moved = core.clock()
    current.set(task)
    f: Any = task._f
    args: Any = task._args
    moves: Any = ()
    try:
        if args:
            taken = take_results(args, slot.worker)
            if taken is not None:
                args, moves = taken
            else:
                args = tuple([_resolve(a, task) for a in args])
                moves = describe_moves(task, args, None, slot.processor, slot.worker)
            moved = core.clock()
    finally:
        samples = recorder.sample() if recorder.samplers else None
        recorder.append((records.START, began, moves, moved, core.uid, task.id, slot.code, code, None, thread, samples))
    return f(*args)


class _Threads(threading.local):
    """(ident, name) of each thread, asked once: `current_thread().name` costs 0.3 µs."""

    def __init__(self) -> None:
        self.info = (threading.get_ident(), threading.current_thread().name)


_threads = _Threads()


def this_thread() -> tuple[int, str]:
    """(ident, name) of the calling thread."""
    return _threads.info


@interrupts.see_through
def _logged_body(core: Core, task: DTask, slot: Slot, log: RunLog) -> Any:
    t0 = core.clock()
    current.set(task)
    options = task._options
    if options is not DEFAULT:
        enter_propagated(options)
    moves: tuple[Any, ...] = ()
    f, args, kwargs = task._f, task._args, task._kwargs or {}
    try:
        if args or kwargs or type(f) in _REFERENCES or move.custom:
            f, args, kwargs = resolve_all(task, f, args, kwargs)
            moves = describe_moves(task, args, kwargs, slot.processor, slot.worker)
    finally:
        log.begun = t2 = core.clock()
        shares = None if options is DEFAULT else _shares(task, slot)
        row = (records.START, t0, moves, t2, core.uid, task.id, log.processor, log.f, shares, log.thread)
        log.recorder.append((*row, log.recorder.sample()))
    if log.recorder.on_body is not None:
        extra = live(task)
        f_shown = records.function_of(log.f)
        log.span = log.recorder.on_body(task.id, extra.attempt, f_shown, options.name, extra.trace, t2)
    if log.recorder.wants_cpu:
        log.cpu0 = time.thread_time_ns()
    if options is DEFAULT:
        return f(*args, **kwargs)
    return slot.processor.execute(f, *args, **kwargs)


def _shares(task: DTask, slot: Slot) -> tuple[float, float]:
    """(occupancy of the processor before this task, that of the task)."""
    share = occupancy_on(task, slot.processor)
    return max(0.0, round(slot.used - share, 9)), share


def _record_end(core: Core, task: DTask, outcome: Any, won: bool, log: RunLog) -> None:
    if isinstance(outcome, Failure):
        result: Any = outcome.ex
        state = "cancellation" if isinstance(result, TaskCancelled) else "failure"
    else:
        result = outcome.info if isinstance(outcome, DRef) else describe_value(outcome.value)
        state = "success"
    row = (records.END, log.ended, core.clock(), core.uid, task.id, log.processor, log.f, result)
    log.recorder.append(
        (*row, log.cpu_ns, log.span, log.thread, state if won else None, log.profile, log.recorder.sample())
    )
