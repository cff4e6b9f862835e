"""What the logs of the head are told of bodies that ran on workers, and what workers are told to note for that.

A worker notes when a body was taken, began and ended, and sends that along with its outcome; the records are made here,
so that their order, their numbers and the account of a log are those of bodies that ran here. Times are those of one
clock (CLOCK_MONOTONIC of the host), and exact. A body that runs for long is told of while it does.

All of it runs on the pump's thread.

See docs/workers.md.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from ...timespans.calling import init_similar
from ...timespans.model import ChunkInfo, EventId
from ...timespans.recorder import samplers_of
from ...timespans.warn import warn_once
from ..bodies.ending import end
from ..bodies.logged import RunLog
from ..core.describe_task import described
from ..data.chunks import Chunk, DRef
from ..data.files import File
from ..data.shards import Shard
from ..options.options import DEFAULT
from ..records import kinds as records
from ..records.describe import FIXED_INFO
from ..records.kinds import function_code
from ..tasks.dtask import DTask
from .handles import HEAD, handle_of
from .wire import LEVEL, UNDER, dumps, loads

if TYPE_CHECKING:
    from ..core.machine import Core
    from .remote import Remote

__all__ = ["Level", "enter", "expired", "gone", "is_well", "run_log", "signals", "started", "under", "well"]


class Level:
    """What one worker was told to note: as much as any of the logs wants whose schedulers use it."""

    def __init__(self) -> None:
        self._known: list[Any] = []
        self.is_on = False
        """Whether it notes anything."""
        self._numbers = itertools.count(1)
        self.samplers: dict[int, tuple[Any, ...]] = {}
        """By the number of a level: who samples; the last levels only, as answers may still come of one before."""
        self.sinks: dict[int, Any] = {}
        """What has a part in the worker, by number: recorders."""
        self.received = 0
        """How many spans came of those that bodies made there."""
        self.under: Any = None
        """The caller of the tasks that were sent last, as `under` told the worker."""

    def tell(self, remote: Remote, messages: list[Any]) -> None:
        """Tell the worker, if anything changed."""
        wanted: list[Any] = []
        for core in remote.cores:
            recorder = core.context.recorder
            if recorder is not None:
                side = recorder.workers
                wanted += recorder, samplers_of(recorder), None if side is None else side.is_ready
        known = self._known
        if len(wanted) == len(known) and all(one is other for one, other in zip(wanted, known, strict=True)):
            return
        self._known, self.is_on = wanted, bool(wanted)
        if not wanted:
            messages.append((LEVEL, None))
            return
        recorders = list({id(one): one for one in wanted[::3]}.values())
        samplers = tuple({id(one): one for some in wanted[1::3] for one in some}.values())
        number = next(self._numbers)
        self.samplers[number] = samplers
        self.samplers.pop(number - 10, None)
        twins = [_sendable(remote, sampler) for sampler in samplers] if samplers else None
        wants_cpu = any(one.wants_cpu for one in recorders)
        messages.append((LEVEL, (number, wants_cpu, twins, self._parts(remote, recorders))))

    def _parts(self, remote: Remote, recorders: list[Any]) -> dict[int, bytes]:
        """By number what the logs have to be in the worker themselves."""
        before = {id(recorder): number for number, recorder in self.sinks.items()}
        self.sinks = {}
        parts = {}
        for recorder in recorders:
            side = recorder.workers
            part = side.part(remote.worker) if side is not None and side.is_ready else None
            if part is not None:
                number = before.get(id(recorder)) or next(self._numbers)
                self.sinks[number] = recorder
                parts[number] = dumps(part, {})[0]
        return parts

    def number_of(self, recorder: Any) -> int:
        """The number of a log that has a part in the worker, else 0."""
        return next((number for number, one in self.sinks.items() if one is recorder), 0)


def _sendable(remote: Remote, sampler: Any) -> bytes | None:
    """A fresh twin of a consumer that samples; None where it can't be had in another process."""
    try:
        return dumps(init_similar(sampler), {})[0]
    except Exception:
        warn_once(sampler, "%s can't be sent to workers; its values there are None", type(sampler).__name__)
        return None


def under(remote: Remote, task: DTask, messages: list[Any]) -> None:
    """Tell the worker who called the task that comes next, where that is another one than before."""
    level, extra = remote.level, task._live
    caller = None if extra is None or extra.trace is None or not level.sinks else extra.trace
    if caller is not level.under:
        level.under = caller
        number = level.number_of(task._core.context.recorder) if caller is not None else 0
        messages.append((UNDER, (number, caller) if number else None))


def signals(remote: Remote, number: int, signal: str, count: int, data: bytes | None, given_up: int) -> None:
    """What bodies told OpenTelemetry in the worker is the log's whose part took it."""
    recorder = remote.level.sinks.get(number)
    remote.level.received += count + given_up if signal == "traces" else 0
    if recorder is not None:
        recorder.workers.take(remote.worker, signal, count, data, given_up)


def gone(remote: Remote, made: int) -> None:
    """A worker is gone whose bodies made so many spans of their own in all: what did not arrive is lost."""
    missing = made - remote.level.received
    for recorder in list(remote.level.sinks.values())[:1]:
        recorder.workers.lost(remote.worker, missing)


def enter(parent: DTask | None) -> None:
    """In the context in which what a body on a worker spawned is submitted: it counts where the body does."""
    extra = None if parent is None else parent._live
    recorder = None if parent is None else parent._core.context.recorder
    if extra is not None and extra.trace is not None and recorder is not None and recorder.workers is not None:
        recorder.workers.enter(extra.trace)


# ---- what a worker noted ------------------------------------------------------------------------------


def started(remote: Remote, task: DTask, code: Any, log: Any) -> None:
    """A body has been running for a while: its begin is recorded now, and not again at its end."""
    recorder = task._core.context.recorder
    if recorder is not None and task.id not in remote.begun:
        remote.begun.add(task.id)
        recorder.append(_start(remote, task, code, function_code(task._f), log))


def well(remote: Remote, core: Core, task: DTask, recorder: Any, item: Any, log: Any) -> int:
    """`conclude` for a task without options whose body gave a value: the same, quicker. How many became ready."""
    code, f, uid, id = task._slot.code, function_code(task._f), core.uid, task.id
    _, taken, begun, ended, packed, thread, cpu_ns, span, _ = log
    append = recorder.append
    if id in remote.begun:
        remote.begun.discard(id)
    else:
        moves = _moves(task, remote.worker) if task._args or task._kwargs else ()
        append((records.START, taken, moves, begun, uid, id, code, f, None, thread, None))
    handle = handle_of(item, recorder.put)
    info = handle._number, handle._nbytes, handle.type, HEAD
    told = _taken
    told.put_record, told.received = append, core.clock()
    row = (records.TAKEN, ended, packed, uid, id, code, f, *info, cpu_ns, span, thread)
    return end(core, task, handle, told, row)


def is_well(core: Core, task: DTask, recorder: Any, item: Any, log: Any) -> bool:
    """Whether `well` can do it."""
    extra = task._live
    return (
        log is not None
        and task._options is DEFAULT
        and (extra is None or not extra.forced)
        and core.devices is None
        and log[8] is None
        and type(log[7]) is not tuple
        and log[3] != 0
        and not recorder.samplers
        and not (type(item) is tuple and item[3])
    )


class _Taken:
    """Stands for a log's recorder where `end` appends the one record of `well`. Of the pump's thread alone."""

    samplers = ()

    def __init__(self) -> None:
        self.put_record: Any = None
        self.received = 0

    def append(self, record: Any) -> None:
        """With the time of receipt; of a task that had its result already just the end of the body."""
        if record[14] is None:
            self.put_record((records.RETURN, *record[1:]))
        else:
            self.put_record((*record, self.received, None))

    def again(self, record: Any) -> None:
        """As `_Told` does."""


_taken = _Taken()


def run_log(remote: Remote, recorder: Any, task: DTask, log: Any, error: BaseException | None = None) -> RunLog:
    """What the end of a body that ran on a worker is recorded with; its begin is recorded here.

    `error`: what the body raised. `log`: what the worker noted; None where it noted nothing, as the body never ran or
    nobody wanted to know.
    """
    received = task._core.clock()
    if log is None:
        return RunLog(_Told(recorder, received, False, received, None), task._slot.code, 0)
    code, f = task._slot.code, function_code(task._f)
    _, _, _, ended, packed, thread, cpu_ns, span, _ = log
    if task.id in remote.begun:
        remote.begun.discard(task.id)
    else:
        recorder.append(_start(remote, task, code, f, log))
    told = _Told(recorder, received, True, packed or received, _samples(remote, log, 1))
    made = RunLog(told, code, f)
    made.ended, made.cpu_ns, made.thread = ended or received, cpu_ns, thread
    if type(span) is tuple:
        made.span = loads(span[0])
        if span[1]:
            made.span.remember(error)
    else:
        made.span = span
    return made


def expired(remote: Remote, task: DTask, log: Any) -> None:
    """The task ends as its time is up; as far as the log is concerned its body ends now, whatever it does."""
    recorder = task._core.context.recorder
    if recorder is not None and log is not None:
        made = run_log(remote, recorder, task, log)
        end = (records.END, made.ended, made.ended, task._core.uid, task.id, made.processor, made.f, None)
        made.recorder.append((*end, made.cpu_ns, made.span, made.thread, made.profile, None, None))


def _start(remote: Remote, task: DTask, code: Any, f: Any, log: Any) -> tuple[Any, ...]:
    shares, taken, begun, _, _, thread = log[:6]
    moves = _moves(task, remote.worker) if task._args or task._kwargs else ()
    samples = _samples(remote, log, 0)
    return (records.START, taken, moves, begun, task._core.uid, task.id, code, f, shares, thread, samples)


def _samples(remote: Remote, log: Any, which: int) -> dict[Any, Any] | None:
    """What was sampled in the worker at the begin (0) or the end (1) of a body, by the consumers of the head."""
    sampled = log[8]
    if sampled is None:
        return None
    number, values = sampled[0], sampled[1 + which]
    samplers = remote.level.samplers.get(number)
    return None if samplers is None or values is None else dict(zip(samplers, loads(values), strict=True))


def _moves(task: DTask, worker: int) -> tuple[Any, ...]:
    """The moves of a task's arguments to a worker, as `describe_moves` has them."""
    moves: list[tuple[Any, Any, str, Any]] = []
    for position, given in enumerate(task._args, 1):
        info = FIXED_INFO.get(type(given))
        moves.append((position, *_move(task, given, worker)) if info is None else (position, info, "value", None))
    if task._kwargs:
        moves += [(name, *_move(task, given, worker)) for name, given in task._kwargs.items()]
    return tuple(moves)


def _move(task: DTask, given: Any, worker: int) -> tuple[Any, str, Any]:
    kind = type(given)
    ref = given._outcome if kind is DTask else given.handle if kind is Chunk else None
    if isinstance(ref, DRef):
        return ref.info, "task" if ref.worker == worker and kind is DTask else "chunk", 0
    if kind is File or kind is Shard:
        return described(task, given), "file" if kind is File else "shard", None
    return described(task, given), "value", None


class _Told:
    """Stands for a log's recorder at the end of one body: what comes is told with the times of the worker.

    `noted`: whether the body is known to have run; else the log hears of the task's end alone.
    """

    __slots__ = ("_noted", "_packed", "_received", "_recorder", "_samples", "put")
    samplers = ()

    def __init__(self, recorder: Any, received: int, noted: bool, packed: int, samples: Any) -> None:
        self._recorder, self._received, self._noted, self._packed = recorder, received, noted, packed
        self._samples = samples
        self.put = recorder.put

    def sample(self) -> None:
        """It was done in the worker."""
        return

    def append(self, record: Any) -> None:
        """Record the end of the body (records/kinds.py: `expand_end`), the taking of its result, and what it ended."""
        _, ended, _, uid, id, code, f, result, cpu_ns, span, thread, _, state, _ = record
        append, samples, received = self._recorder.append, self._samples, max(self._received, self._packed)
        if self._noted and state == "success" and type(result) is ChunkInfo:
            row = (records.TAKEN, ended, self._packed, uid, id, code, f, *result, cpu_ns, span, thread, state, samples)
            append((*row, received, self._recorder.sample()))
            return
        if self._noted:
            append((records.END, ended, self._packed, *record[3:12], None, samples))
        if state is not None:
            t0, t1 = received + 2, received + 3
            take = EventId(uid=uid, seq=id)
            here = self._recorder.sample()
            append((records.SPAN, "take", take, None, t0, t1, records.CORE_WORKER, here))
            append((records.FINISH, t1 + 1, t1 + 2, uid, id, result, state, here))

    def again(self, record: Any) -> None:
        """It came in: only a signal handler breaks an append off, and none runs on the pump's thread."""
