"""The scheduler's records: what the hot path appends to the log, and how each expands into events.

One record a phase of a task, not one an event: a tuple, built in 0.1 µs. The journal expands it later,
off the hot path, into the events of docs/events.md. The order in which records are appended agrees with
cause and effect (see timespans/journal.py), so each phase appends its record before its effect can be
seen: "submit" before the task can run, "end" before its result is there.

Records are flat, and of numbers and texts as far as they can be: what waits is visited by the garbage
collector again and again, except for tuples of nothing but such. So processors appear as numbers
(`code_of`), well-known functions too (`function_code`), and a chunk as its handle's number, size and type.

Events that share a reading of the clock are set 1 ns apart, in their order, so that sorting by timestamp
gives it back.

See docs/events.md.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Iterable
from typing import Any

from ...timespans.model import (
    NO_GC,
    NO_SAMPLES,
    ChunkInfo,
    Event,
    EventId,
    TaskRef,
    Timeline,
    ValueInfo,
    id_layout,
)
from ...timespans.rows import record_kind
from ...timespans.taskrecords import END, EVICT, OWNER_BITS, RESULTS, RETURN, SCHEDULE, START, SUBMIT, TAKEN
from ..options.options import DEFAULT
from ..places.processors import OSProc, ThreadProc
from ..service.guards import guard
from .describe import describe_function, without_data

__all__ = [
    "END",
    "EVENT_CATEGORIES",
    "EVICT",
    "FINISH",
    "OWNER_BITS",
    "RESULTS",
    "RETURN",
    "SCHEDULE",
    "SPAN",
    "START",
    "SUBMIT",
    "TAKEN",
    "code_of",
    "code_of_worker",
    "function_code",
    "next_handle",
    "next_seq",
]

EVENT_CATEGORIES = (
    "add_thunk",
    "assign_procs",
    "cleanup_proc",
    "compute",
    "data_annotation",
    "datadeps_copy",
    "datadeps_copy_skip",
    "datadeps_execute",
    "enqueue",
    "evict",
    "finish",
    "fire",
    "handle_fault",
    "init_proc",
    "move",
    "proc_run_fetch",
    "proc_run_wait",
    "proc_steal_local",
    "remove_procs",
    "schedule",
    "scheduler_exit",
    "scheduler_init",
    "storage_safe_scan",
    "storage_wait",
    "take",
)
"""Every category that the scheduler emits or reserves."""

next_handle = itertools.count(1 << 40).__next__
"""Numbers of handles in the log: an address may be used again, a number is not. Beyond all task ids, since an
annotation names tasks and data by number alone."""

next_seq = itertools.count(1).__next__
"""Numbers that keep concurrent spans of one processor apart, where no task's does. Drawn when something is recorded,
never when it is expanded: several logs of one record agree in every field."""

FUNCTION_VALUE = ValueInfo(types.FunctionType, None, 0)
"""What the move of a task's function shows, at position 0."""
_FUNCTION = (0, FUNCTION_VALUE, "value", None)
_new = tuple.__new__
CORE_WORKER = 1
"""Where the scheduler is."""

# ---- numbers instead of objects -------------------------------------------------------------------------

_functions: list[Any] = []
function_codes: dict[Any, int] = {}
"""The numbers of functions, by the function, or its `FunctionInfo` where it must not be kept."""
_MAX_FUNCTIONS = 2000
"""Functions that are numbered, and so kept. A program that makes more of them pays a little more for each."""

_NUMBERED = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)


def function_code(f: Any) -> Any:
    """What stands for a task's function in a record: a number, or as `describe_function` gives it."""
    code = function_codes.get(f) if type(f) is types.FunctionType else None
    return _number(f) if code is None else code


def _number(f: Any) -> Any:
    described = describe_function(f)
    if not isinstance(f, _NUMBERED):
        return described
    if type(described) is types.FunctionType:
        # One that holds data, as a default say, or is made anew again and again, must not be kept for ever.
        holds = described.__defaults__ or described.__kwdefaults__ or described.__dict__
        if holds or described.__qualname__ != described.__name__:
            described = without_data(described)
    code = function_codes.get(described)
    if code is not None:
        return code
    if len(_functions) >= _MAX_FUNCTIONS:
        return described
    with _lock:
        if described not in function_codes:
            _functions.append(described)
            function_codes[described] = _functions.index(described)  # a signal handler may just have put others there
    return function_codes[described]


_lock = guard()


def function_of(code: Any) -> Any:
    """The function, as the log shows it, that `function_code` stands for."""
    return _functions[code] if type(code) is int else code


def code_of(processor: Any) -> Any:
    """What stands for a processor in a record: numbers for threads and workers, else the processor itself."""
    kind = type(processor)
    if kind is ThreadProc and processor.tid >> OWNER_BITS == 0:
        return processor.owner << OWNER_BITS | processor.tid
    return code_of_worker(processor.pid) if kind is OSProc else processor


def code_of_worker(worker: int) -> int:
    """`code_of` of its `OSProc`."""
    return worker << OWNER_BITS


class _Processors(dict[int, Any]):
    """The processors that numbers stand for, made when first asked for."""

    def __missing__(self, code: int) -> Any:
        owner, tid = code >> OWNER_BITS, code & (1 << OWNER_BITS) - 1
        found = self[code] = ThreadProc(owner, tid) if tid else OSProc(owner)
        return found


_processors = _Processors()


def processor_of(code: Any) -> Any:
    """The processor that `code_of` stands for."""
    return _processors[code] if type(code) is int else code


# ---- ids ------------------------------------------------------------------------------------------------

OF_TASK = id_layout("thunk_id")
OF_SCHEDULE = id_layout("uid", "thunk_id")
OF_FIRE = id_layout("uid", "worker", "thunk_id")
OF_ENQUEUE = id_layout("uid", "processor", "thunk_id")
OF_FETCH = id_layout("uid", "worker", "processor", "seq")
OF_MOVE = id_layout("thunk_id", "position", "processor")
OF_TAKE = id_layout("uid", "seq")
OF_COMPUTE = id_layout("thunk_id", "processor")
OF_EVICT = id_layout("worker", "handle")
"""Layouts of the ids that are made for every task: `EventId(**fields)` costs three times as much."""

# ---- how each kind expands ------------------------------------------------------------------------------


def _event(
    out: list[Event], phase: str, category: str, id: Any, timeline: Any, t: int, worker: int, samples: Any
) -> None:
    out.append(_new(Event, (phase, category, id, timeline, t, NO_GC, NO_SAMPLES, worker, samples)))


def _span(out: list[Event], category: str, id: Any, timeline: Any, t0: int, t1: int, worker: int, samples: Any) -> None:
    _event(out, "start", category, id, timeline, t0, worker, samples)
    _event(out, "finish", category, id, timeline, t1, worker, samples)


def expand_span(record: Any, out: list[Event]) -> None:
    """(_, category, id, timeline, t0, t1, worker, samples): a whole span of the scheduler itself."""
    _span(out, *record[1:])


def expand_steal(record: Any, out: list[Event]) -> None:
    """(_, id, taken, t0, t1, worker, samples): an attempt to steal; `taken` None where there was nothing to take."""
    _, id, taken, t0, t1, worker, samples = record
    _event(out, "start", "proc_steal_local", id, None, t0, worker, samples)
    _event(out, "finish", "proc_steal_local", id, taken, t1, worker, samples)


def expand_submit(record: Any, out: list[Event]) -> None:
    """A submission, and the placement if that was part of it.

    (_, t0, uid, task id, f, args, options or None, other deps, spawned_by, run_id, attempt, trace, t1,
    place, samples); see `describe_task`. `place` is None, or as in `expand_schedule`, or just the number of
    the processor: for the queue of all, which takes no time.
    """
    _, t0, uid, thunk_id, f, flat, options, others, spawned_by, run_id, attempt, trace, t1, place, samples = record
    args = arguments_of(flat)
    options = DEFAULT if options is None else options
    timeline = Timeline(
        f=function_of(f),
        args=args,
        options=options,
        uid=thunk_id,
        deps=dependencies_of(args, others),
        name=options.name,
        spawned_by=spawned_by,
        run_id=run_id,
        attempt=attempt,
        trace=trace,
    )
    add = out.append
    id = _new(EventId, (OF_TASK, thunk_id))
    add(_new(Event, ("start", "add_thunk", id, timeline, t0, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))
    if place is not None:
        if type(place) is int:
            place = (_, t1, t1, t1, uid, thunk_id, place, place >> OWNER_BITS, samples)
        expand_schedule(place, out)
        t1 = max(t1, place[3] + 6)
    add(_new(Event, ("finish", "add_thunk", id, timeline, t1, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))
    if options.name is not None:  # the label
        label = EventId(objectid=thunk_id, name=options.name)
        _span(out, "data_annotation", label, None, t1, t1, CORE_WORKER, samples)


def expand_schedule(record: Any, out: list[Event]) -> None:
    """(_, t0, t1, t2, uid, thunk_id, processor, worker, samples): placement, then sending and queueing.

    A task that could not be placed has no processor: only `schedule`.
    """
    _, t0, t1, t2, uid, thunk_id, processor, worker, samples = record
    processor = processor_of(processor)
    timeline = Timeline(thunk_id=thunk_id)
    t1 = max(t1, t0 + 1)
    _span(out, "schedule", _new(EventId, (OF_SCHEDULE, uid, thunk_id)), timeline, t0, t1, CORE_WORKER, samples)
    if processor is None:
        return
    add = out.append
    fire = _new(EventId, (OF_FIRE, uid, worker, thunk_id))
    add(_new(Event, ("start", "fire", fire, None, t1 + 1, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))
    enqueue = _new(EventId, (OF_ENQUEUE, uid, processor, thunk_id))
    t2 = max(t2, t1 + 3)
    _span(out, "enqueue", enqueue, None, t1 + 2, t2, worker, samples)
    add(_new(Event, ("finish", "fire", fire, None, t2 + 1, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))


def expand_start(record: Any, out: list[Event]) -> None:
    """(_, t0, moves, t2, uid, thunk_id, processor, f, occupancies, thread, samples): taken, moved, begun.

    `moves` are as `describe_moves` gives them; they share their times. `occupancies` None: the task takes
    the whole of a free processor.
    """
    _, t0, moves, t2, uid, thunk_id, processor, f, occupancies, thread, samples = record
    add = out.append
    processor, f = processor_of(processor), function_of(f)
    worker = worker_of(processor)
    t1 = t0 + 1
    t2 = max(t2, t1 + 4)
    fetch = _new(EventId, (OF_FETCH, uid, worker, processor, thunk_id))
    add(_new(Event, ("start", "proc_run_fetch", fetch, None, t0, NO_GC, NO_SAMPLES, worker, samples)))
    before, share = occupancies or WHOLE
    taken = Timeline(thunk_id=thunk_id, proc_occupancy=before, task_occupancy=share)
    add(_new(Event, ("finish", "proc_run_fetch", fetch, taken, t1, NO_GC, NO_SAMPLES, worker, samples)))
    ends = []
    for move in moves_of(moves, worker):
        position, data, kind, _ = move
        after = after_move(move)
        source = getattr(data, "worker", worker)
        id = _new(EventId, (OF_MOVE, thunk_id, position, processor))
        add(_new(Event, ("start", "move", id, Timeline(f=f, data=data), t1 + 1, NO_GC, NO_SAMPLES, worker, samples)))
        done = Timeline(f=f, data=after, kind=kind, source=source, destination=worker)
        ends.append((id, done))
    for id, done in ends:
        add(_new(Event, ("finish", "move", id, done, t2 - 1, NO_GC, NO_SAMPLES, worker, samples)))
    begun = Timeline(f=f, thread_id=thread[0], thread_name=thread[1])
    id = _new(EventId, (OF_COMPUTE, thunk_id, processor))
    add(_new(Event, ("start", "compute", id, begun, t2, NO_GC, NO_SAMPLES, worker, samples)))


def arguments_of(flat: tuple[Any, ...]) -> tuple[tuple[Any, Any], ...]:
    """(position, description) of each argument."""
    pairs: list[tuple[Any, Any]] = [*enumerate(flat, 1)]
    if flat and type(flat[-1]) is dict:
        pairs[-1:] = flat[-1].items()
    return tuple([(n, TaskRef(value) if type(value) is int else value) for n, value in pairs])


def dependencies_of(args: tuple[tuple[Any, Any], ...], others: tuple[Any, ...]) -> tuple[tuple[Any, int], ...]:
    """(position or None, task id) of each upstream."""
    found = tuple([(position, value.id) for position, value in args if type(value) is TaskRef])
    return found + others if others else found


WHOLE = (0.0, 1.0)
"""Occupancies, of the processor before and of the task, where a task takes all of a free one."""


def moves_of(moves: tuple[Any, ...], worker: int) -> Iterable[tuple[Any, Any, str, Any]]:
    """(position, before, kind, after) of each move; see `describe_moves`."""
    yield _FUNCTION
    if moves and moves[0] is RESULTS:
        for n in range(1, len(moves), 4):
            handle, nbytes, type, objid = moves[n : n + 4]
            yield n // 4 + 1, ChunkInfo(handle, nbytes, type, worker), "task", objid
    else:
        yield from moves


def after_move(move: Any) -> Any:
    """What was moved, as it is afterwards."""
    _, data, _, after = move
    if after is None:
        return data
    return ValueInfo(data.type, data.nbytes, after) if type(after) is int else after


def expand_end(record: Any, out: list[Event]) -> None:
    """(_, tb, t1, uid, thunk_id, processor, f, result, cpu_ns, span, thread, profile, state, samples).

    The body ended at `tb`, its result was packed and the task finished at `t1`. An abandoned
    body (`state` None) ends without a `finish`: that was emitted when the task was cancelled.
    """
    _, tb, t1, uid, thunk_id, processor, f, result, cpu_ns, span, thread, profile, state, samples = record
    processor, f = processor_of(processor), function_of(f)
    worker = worker_of(processor)
    id = _new(EventId, (OF_COMPUTE, thunk_id, processor))
    if isinstance(result, ChunkInfo):
        scan = Timeline(T=result.type)
        t1 = max(t1, tb + 2)
        _span(out, "storage_safe_scan", id, scan, tb, t1 - 1, worker, samples)
    ended = Timeline(f=f, result=result, cpu_ns=cpu_ns, span=span, thread_id=thread[0], thread_name=thread[1])
    out.append(_new(Event, ("finish", "compute", id, ended, t1, NO_GC, profile, worker, samples)))
    if state is not None:
        if worker != CORE_WORKER:  # the core takes the result of another worker as a message
            t1 += 2
            _span(out, "take", _new(EventId, (OF_TAKE, uid, thunk_id)), None, t1 - 1, t1, CORE_WORKER, samples)
        expand_finish((None, t1 + 1, t1 + 2, uid, thunk_id, result, state, samples), out)


def expand_return(record: Any, out: list[Event]) -> None:
    """(_, tb, t1, uid, thunk_id, processor, f, handle, nbytes, type, worker, cpu_ns, span, thread, state, samples).

    The common case of `expand_end`: a body that returned a value, of which a chunk was made.
    """
    _, tb, t1, uid, thunk_id, processor, f, handle, nbytes, type, worker, cpu, span, thread, state, samples = record
    result = ChunkInfo(handle, nbytes, type, worker)
    whole = (_, tb, t1, uid, thunk_id, processor, f, result, cpu, span, thread, NO_SAMPLES, state, samples)
    expand_end(whole, out)


def expand_taken(record: Any, out: list[Event]) -> None:
    """`expand_return` of a body that ran in another process: all that has, then `received, here`.

    `received`: when its answer was; `here`: what was sampled then, in the core's own process.
    """
    _, tb, t1, uid, thunk_id = record[:5]
    state, samples, t2, here = record[14:]
    expand_return((*record[:14], None, samples), out)
    result = ChunkInfo(*record[7:11])
    t2 = max(t2, t1 + 1, tb + 3)
    _span(out, "take", EventId(uid=uid, seq=thunk_id), None, t2, t2 + 1, CORE_WORKER, here)
    expand_finish((None, t2 + 2, t2 + 3, uid, thunk_id, result, state, here), out)


def expand_finish(record: Any, out: list[Event]) -> None:
    """(_, t0, t1, uid, thunk_id, result, state, samples): a task has its result."""
    _, t0, t1, uid, thunk_id, result, state, samples = record
    timeline = Timeline(thunk_id=thunk_id, result=result, state=state)
    _span(
        out, "finish", _new(EventId, (OF_SCHEDULE, uid, thunk_id)), timeline, t0, max(t1, t0 + 1), CORE_WORKER, samples
    )


def expand_evict(record: Any, out: list[Event]) -> None:
    """(_, t, handle, nbytes, type, worker, reason): a chunk's data is gone from its worker's memory."""
    _, t, handle, nbytes, type, worker, reason = record
    timeline = Timeline(data=ChunkInfo(handle, nbytes, type, worker), reason=reason, in_memory=True)
    _span(out, "evict", _new(EventId, (OF_EVICT, worker, handle)), timeline, t, t, worker, None)


def expand_buried(record: Any, out: list[Event]) -> None:
    """(_, t, handle, nbytes, type, worker): a chunk died that was on a device, not in memory."""
    _, t, handle, nbytes, type, worker = record
    timeline = Timeline(data=ChunkInfo(handle, nbytes, type, worker), reason="released", in_memory=False)
    _span(out, "evict", _new(EventId, (OF_EVICT, worker, handle)), timeline, t, t, worker, None)


def expand_storage_wait(record: Any, out: list[Event]) -> None:
    """(_, t0, t1, thunk_id, processor, worker, f, device_type, data, seq): a wait for a storage device of `worker`.

    `data`: the chunk that came back to memory, None where none did. Task 0: no body waited, but a fetch.
    """
    _, t0, t1, thunk_id, processor, worker, f, device_type, data, seq = record
    id = EventId(thunk_id=thunk_id, processor=processor, seq=seq)
    begun = Timeline(f=f, device_type=device_type)
    _event(out, "start", "storage_wait", id, begun, t0, worker, None)
    ended = Timeline(f=f, device_type=device_type, data=data)
    _event(out, "finish", "storage_wait", id, ended, max(t1, t0 + 1), worker, None)


def worker_of(processor: Any) -> int:
    """The worker of a processor."""
    return getattr(processor, "owner", None) or getattr(processor, "pid", None) or CORE_WORKER


record_kind(expand_submit, SUBMIT)
record_kind(expand_schedule, SCHEDULE)
record_kind(expand_start, START)
record_kind(expand_return, RETURN)
record_kind(expand_evict, EVICT)
record_kind(expand_end, END)
record_kind(expand_taken, TAKEN)
SPAN = record_kind(expand_span)
FINISH = record_kind(expand_finish)
STEAL = record_kind(expand_steal)
BURIED = record_kind(expand_buried)
STORAGE_WAIT = record_kind(expand_storage_wait)
