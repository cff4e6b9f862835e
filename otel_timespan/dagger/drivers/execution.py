"""Running one task's body, the same on every driver: resolve its arguments, call it, finish it.

`run` is the hot path of the scheduler. Without a log it makes no clock call and builds no record.

Source: spec/scheduler.md §1.3, §17.8.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import TaskCancelled
from .. import records
from ..atomics import settle
from ..chunks import Chunk, DRef, LoggedDRef
from ..core import release_inputs
from ..describe import describe_function, describe_value
from ..dtask import DONE, FAILED, DTask, Failure, Result, live, summarize
from ..environment import current, end_token
from ..files import File
from ..options import DEFAULT, enter_propagated
from ..placement import Slot, occupancy_on
from ..processors import has_custom_moves, move

if TYPE_CHECKING:
    from ..core import Core

__all__ = ["UserInterrupt", "as_chunk", "run"]

UserInterrupt = (KeyboardInterrupt, SystemExit)
"""In a body that the main thread runs while it waits, these are the user's, not the task's."""


def run(core: Core, task: DTask, slot: Slot, *, helping: bool = False) -> Sequence[DTask]:
    """Run a task that was claimed, on this thread, in this slot; the tasks that it made ready.

    With `helping` a `KeyboardInterrupt` or `SystemExit` ends the task as cancelled and is raised here.
    """
    f, args, kwargs, context = task._f, task._args, task._kwargs, task._context
    if task._state >= DONE or context is None:  # settled between its claim and here
        release_inputs(task)
        return ()
    task._slot = slot
    running = core.running
    running.add(task)
    recorder = core.context.recorder
    if recorder is not None:
        try:
            return _run_logged(core, task, slot, recorder, helping)
        finally:
            running.discard(task)
            release_inputs(task)
    error: BaseException | None = None
    value = None
    try:
        value = context.run(_body, task, f, args, kwargs)
    except BaseException as raised:
        error = raised
    running.discard(task)
    if error is None:
        task._f = task._kwargs = task._context = None
        task._args = task._deps = ()
        if task._options is DEFAULT and type(value) is not Chunk:
            ready = core.finish(task, DRef(value), DONE) if settle(task) else ()
            if task._live is not None:
                end_token(task)
            return ready
        return _end(core, task, value, None, None)
    try:
        return _fail(core, task, error, helping)
    finally:
        release_inputs(task)
        del error  # its traceback refers to this frame


def _body(task: DTask, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """In the task's own context: resolve, then call."""
    current.set(task)
    options = task._options
    if options is not DEFAULT or kwargs or type(f) in _REFERENCES or has_custom_moves():
        return _body_with_options(task, f, args, kwargs)
    if args:
        args = tuple(
            [a._outcome.value if type(a) is DTask else _resolve(a, task) if type(a) in _REFERENCES else a for a in args]
        )
    return f(*args)


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
    else:
        inner, source = value, None
    if has_custom_moves():
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


_REFERENCES = frozenset((DTask, Chunk, File))
"""Types of arguments that stand for something else."""


def _fail(core: Core, task: DTask, error: BaseException, helping: bool) -> Sequence[DTask]:
    if helping and isinstance(error, UserInterrupt):
        _end(core, task, None, TaskCancelled("interrupted by the user"), None)
        raise error
    return _end(core, task, None, error, None)


def _end(core: Core, task: DTask, value: Any, error: BaseException | None, log: RunLog | None) -> Sequence[DTask]:
    """Settle a task whose body ended; a late result of a cancelled one is dropped."""
    if error is not None:
        failure = _failure(task, error)
        outcome: Any = failure
    else:
        outcome = pack(core, task, value, None if log is None else log.recorder)
    won = settle(task)
    if log is not None:
        _record_end(core, task, outcome, won, log)
    ready = core.finish(task, outcome, FAILED if error is not None else DONE) if won else ()
    end_token(task)
    return ready


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
        return value.handle
    return DRef(value) if recorder is None else LoggedDRef(value, recorder.put)


def _failure(task: DTask, error: BaseException) -> Failure:
    task._summary = summarize(task)
    return Failure(task._summary, error)


# ---- with a log ------------------------------------------------------------------------------------


class RunLog:
    """What the records of one run need, from its begin to its end."""

    __slots__ = ("begun", "cpu0", "cpu_ns", "ended", "f", "processor", "recorder", "span", "thread")

    def __init__(self, recorder: Any, processor: Any, f: Any) -> None:
        self.recorder = recorder
        self.processor = processor
        self.f = f
        self.thread = (threading.get_ident(), threading.current_thread().name)
        self.span: Any = None
        self.begun = 0
        self.ended = 0
        self.cpu0 = 0
        self.cpu_ns: int | None = None


def _run_logged(core: Core, task: DTask, slot: Slot, recorder: Any, helping: bool) -> Sequence[DTask]:
    """`run` with a log: one record when the body begins, one when it ended (see records.py)."""
    log = RunLog(recorder, slot.processor, describe_function(task._f))
    interrupt: BaseException | None = None
    value: Any = None
    error: BaseException | None = None
    context = task._context
    assert context is not None
    try:
        value = context.run(_logged_body, core, task, slot, log)
    except UserInterrupt as raised:
        error = raised
        if helping:
            interrupt, error = raised, TaskCancelled("interrupted by the user")
    except BaseException as raised:
        error = raised
    log.ended = core.clock()
    if log.cpu0:
        log.cpu_ns = time.thread_time_ns() - log.cpu0
    ready = _end(core, task, value, error, log)
    if interrupt is not None:
        raise interrupt
    return ready


def _logged_body(core: Core, task: DTask, slot: Slot, log: RunLog) -> Any:
    t0 = core.clock()
    current.set(task)
    options = task._options
    if options is not DEFAULT:
        enter_propagated(options)
    t1 = core.clock()
    moves: list[Any] = []
    try:
        f, args, kwargs = resolve_all(task, task._f, task._args, task._kwargs)
        moves = records.describe_moves(task, args, kwargs)
    finally:
        log.begun = t2 = core.clock()
        shares = (slot.used, occupancy_on(task, slot.processor))
        row = (records.expand_start, t0, t1, moves, t2, core.uid, task.id, slot.processor, log.f, shares, log.thread)
        log.recorder.append((*row, log.recorder.sample()))
    if log.recorder.on_body is not None:
        extra = live(task)
        log.span = log.recorder.on_body(task.id, extra.attempt, log.f, options.name, extra.trace, t2)
    if log.recorder.wants_cpu:
        log.cpu0 = time.thread_time_ns()
    if options is DEFAULT:
        return f(*args, **kwargs)
    return slot.processor.execute(f, *args, **kwargs)


def _record_end(core: Core, task: DTask, outcome: Any, won: bool, log: RunLog) -> None:
    if isinstance(outcome, Failure):
        result: Any = outcome.ex
        state = "cancellation" if isinstance(result, TaskCancelled) else "failure"
    else:
        result = outcome.info if isinstance(outcome, DRef) else describe_value(outcome.value)
        state = "success"
    t1 = core.clock()
    row = (records.expand_end, log.ended, t1, core.clock(), core.uid, task.id, log.processor, log.f, result)
    log.recorder.append((*row, log.cpu_ns, log.span, log.thread, state if won else None, log.recorder.sample()))
