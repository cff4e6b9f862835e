"""What the log is told of a body: a record when it begins, one when it ended (records/kinds.py says what is in them).

See docs/events.md.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from ...errors import TaskCancelled
from ...timespans.model import NO_SAMPLES
from ..core.describe_task import describe_moves
from ..core.placement import occupancy_on
from ..data.chunks import DRef
from ..data.read import read
from ..options.options import DEFAULT
from ..options.scoped import enter_propagated
from ..places.processors import move
from ..records import kinds as records
from ..records.describe import describe_value
from ..tasks.dtask import DTask, Failure, live
from ..tasks.environment import enter
from . import interrupts
from .call import REFERENCES, arguments_of

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..core.placement import Slot

__all__ = ["RunLog", "end_row", "logged_body", "threads"]


class _Threads(threading.local):
    """(ident, name) of each thread, asked once: `current_thread().name` costs 0.3 µs."""

    def __init__(self) -> None:
        self.info = (threading.get_ident(), threading.current_thread().name)


threads = _Threads()
"""`threads.info`: (ident, name) of the calling thread."""


class RunLog:
    """What the records of one run need, from its begin to its end."""

    __slots__ = ("begun", "cpu0", "cpu_ns", "ended", "f", "processor", "profile", "recorder", "span", "thread")

    def __init__(self, recorder: Any, processor: Any, f: Any) -> None:
        self.recorder = recorder
        self.processor = processor
        self.f = f
        self.thread = threads.info
        self.span: Any = None
        self.begun = 0
        self.ended = 0
        self.cpu0 = 0
        self.cpu_ns: int | None = None
        self.profile = NO_SAMPLES


@interrupts.see_through
def logged_body(core: Core, task: DTask, slot: Slot, log: RunLog) -> Any:
    """In the task's own context: resolve the arguments, record the begin, call."""
    t0 = core.clock()
    enter(task)
    options = task._options
    if options is not DEFAULT:
        enter_propagated(options)
    moves: tuple[Any, ...] = ()
    f, args, kwargs = task._f, task._args, task._kwargs or {}
    try:
        if args or kwargs or type(f) in REFERENCES or move.custom:
            f, args, kwargs = arguments_of(task, f, args, kwargs)
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


def end_row(core: Core, task: DTask, outcome: Any, log: RunLog) -> tuple[tuple[Any, ...], str]:
    """The record of the end of a body, but for its last two items; and the state of its task if this ends it."""
    if isinstance(outcome, Failure):
        result: Any = outcome.ex
        state = "cancellation" if isinstance(result, TaskCancelled) else "failure"
    else:
        result = outcome.info if isinstance(outcome, DRef) else describe_value(read(outcome))
        state = "success"
    row = (records.END, log.ended, core.clock(), core.uid, task.id, log.processor, log.f, result)
    return (*row, log.cpu_ns, log.span, log.thread, log.profile), state
