"""The scheduler's records: what the hot path appends to the log, and how each expands into events.

One record a phase of a task, not one an event: a tuple of times and references, built in 0.2 µs. The
journal expands it later, off the hot path, into the events of docs/events.md. The order in which records
are appended agrees with cause and effect (see timespans/journal.py), so each phase appends its record
before its effect can be seen: "submit" before the task can run, "end" before its result is there.

Events that share a reading of the clock are set 1 ns apart, in their order, so that sorting by timestamp
gives it back.

Sources: spec/scheduler.md §17.11, §19; design/rulings.md 16, 27-29.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from ..timespans.model import NO_GC, NO_SAMPLES, ChunkInfo, Event, EventId, TaskRef, Timeline, ValueInfo

__all__ = ["EVENT_CATEGORIES", "next_handle", "next_seq"]

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
"""Numbers that keep concurrent spans of one processor apart."""

_FUNCTION = (0, ValueInfo(type(lambda: None), None, 0), "value", None)
RESULTS = "results"
"""Begins the moves of a task all of whose arguments are results on its own worker (`describe_moves`)."""

_new = tuple.__new__
CORE_WORKER = 1


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


def expand_submit(record: Any, out: list[Event]) -> None:
    """(_, t0, t1, given, place, samples): a submission; `place` as in `expand_schedule` or None.

    `given` is (task id, f, args, options, other deps, spawned_by, run_id, attempt, trace), see `describe_task`.
    """
    _, t0, t1, given, place, samples = record
    thunk_id, f, flat, options, others, spawned_by, run_id, attempt, trace = given
    args = _arguments_of(flat)
    timeline = Timeline(
        f=f,
        args=args,
        options=options,
        uid=thunk_id,
        deps=_dependencies_of(args, others),
        name=options.name,
        spawned_by=spawned_by,
        run_id=run_id,
        attempt=attempt,
        trace=trace,
    )
    add = out.append
    id = EventId(thunk_id=thunk_id)
    add(_new(Event, ("start", "add_thunk", id, timeline, t0, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))
    if place is not None:
        expand_schedule(place, out)
        t1 = max(t1, place[3] + 5)
    add(_new(Event, ("finish", "add_thunk", id, timeline, t1, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))
    if options.name is not None:  # the label (spec/timespans.md §9)
        label = EventId(objectid=thunk_id, name=options.name)
        _span(out, "data_annotation", label, None, t1, t1, CORE_WORKER, samples)


def expand_schedule(record: Any, out: list[Event]) -> None:
    """(_, t0, t1, t2, uid, thunk_id, processor, worker, samples): placement, then sending and queueing.

    A task that could not be placed has no processor: only `schedule`.
    """
    _, t0, t1, t2, uid, thunk_id, processor, worker, samples = record
    timeline = Timeline(thunk_id=thunk_id)
    _span(out, "schedule", EventId(uid=uid, thunk_id=thunk_id), timeline, t0, t1, CORE_WORKER, samples)
    if processor is None:
        return
    add = out.append
    fire = EventId(uid=uid, worker=worker, thunk_id=thunk_id)
    add(_new(Event, ("start", "fire", fire, None, t1 + 1, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))
    enqueue = EventId(uid=uid, processor=processor, thunk_id=thunk_id)
    t2 = max(t2, t1 + 3)
    _span(out, "enqueue", enqueue, None, t1 + 2, t2, worker, samples)
    add(_new(Event, ("finish", "fire", fire, None, t2 + 1, NO_GC, NO_SAMPLES, CORE_WORKER, samples)))


def expand_start(record: Any, out: list[Event]) -> None:
    """(_, t0, moves, t2, uid, thunk_id, processor, f, occupancies, thread, samples): taken, moved, begun.

    `moves` are as `describe_moves` gives them; they share their times.
    """
    _, t0, moves, t2, uid, thunk_id, processor, f, occupancies, thread, samples = record
    add = out.append
    worker = _worker_of(processor)
    t1 = t0 + 1
    t2 = max(t2, t1 + 4)
    fetch = EventId(uid=uid, worker=worker, processor=processor, seq=next_seq())
    add(_new(Event, ("start", "proc_run_fetch", fetch, None, t0, NO_GC, NO_SAMPLES, worker, samples)))
    taken = Timeline(thunk_id=thunk_id, proc_occupancy=occupancies[0], task_occupancy=occupancies[1])
    add(_new(Event, ("finish", "proc_run_fetch", fetch, taken, t1, NO_GC, NO_SAMPLES, worker, samples)))
    ends = []
    for position, before, kind, after in _moves_of(moves):
        if after is None:
            after = before
        elif type(after) is int:
            after = ValueInfo(before.type, before.nbytes, after)
        source = getattr(before, "worker", worker)
        id = EventId(thunk_id=thunk_id, position=position, processor=processor)
        add(_new(Event, ("start", "move", id, Timeline(f=f, data=before), t1 + 1, NO_GC, NO_SAMPLES, worker, samples)))
        done = Timeline(f=f, data=after, kind=kind, source=source, destination=worker)
        ends.append((id, done))
    for id, done in ends:
        add(_new(Event, ("finish", "move", id, done, t2 - 1, NO_GC, NO_SAMPLES, worker, samples)))
    begun = Timeline(f=f, thread_id=thread[0], thread_name=thread[1])
    id = EventId(thunk_id=thunk_id, processor=processor)
    add(_new(Event, ("start", "compute", id, begun, t2, NO_GC, NO_SAMPLES, worker, samples)))


def _arguments_of(flat: tuple[Any, ...]) -> tuple[tuple[Any, Any], ...]:
    """(position, description) of each argument."""
    pairs: list[tuple[Any, Any]] = [*enumerate(flat, 1)]
    if flat and type(flat[-1]) is dict:
        pairs[-1:] = flat[-1].items()
    return tuple([(n, TaskRef(value) if type(value) is int else value) for n, value in pairs])


def _dependencies_of(args: tuple[tuple[Any, Any], ...], others: tuple[Any, ...]) -> tuple[tuple[Any, int], ...]:
    """(position or None, task id) of each upstream."""
    found = tuple([(position, value.id) for position, value in args if type(value) is TaskRef])
    return found + others if others else found


def _moves_of(moves: tuple[Any, ...]) -> Iterable[tuple[Any, Any, str, Any]]:
    """(position, before, kind, after) of each move; see `describe_moves`."""
    yield _FUNCTION
    if moves and moves[0] is RESULTS:
        for n in range(1, len(moves), 2):
            yield (n + 1) // 2, moves[n], "task", moves[n + 1]
    else:
        yield from moves


def expand_end(record: Any, out: list[Event]) -> None:
    """(_, tb, t1, uid, thunk_id, processor, f, result, cpu_ns, span, thread, state, profile, samples).

    The body ended at `tb`, its result was packed and the task finished at `t1`. An abandoned
    body (`state` None) ends without a `finish`: that was emitted when the task was cancelled.
    """
    _, tb, t1, uid, thunk_id, processor, f, result, cpu_ns, span, thread, state, profile, samples = record
    worker = _worker_of(processor)
    id = EventId(thunk_id=thunk_id, processor=processor)
    if isinstance(result, ChunkInfo):
        scan = Timeline(T=result.type)
        t1 = max(t1, tb + 2)
        _span(out, "storage_safe_scan", id, scan, tb, t1 - 1, worker, samples)
    ended = Timeline(f=f, result=result, cpu_ns=cpu_ns, span=span, thread_id=thread[0], thread_name=thread[1])
    out.append(_new(Event, ("finish", "compute", id, ended, t1, NO_GC, profile, worker, samples)))
    if state is not None:
        if worker != CORE_WORKER:  # the core takes the result of another worker as a message
            t1 += 2
            _span(out, "take", EventId(uid=uid, seq=next_seq()), None, t1 - 1, t1, CORE_WORKER, samples)
        expand_finish((None, t1 + 1, t1 + 2, uid, thunk_id, result, state, samples), out)


def expand_finish(record: Any, out: list[Event]) -> None:
    """(_, t0, t1, uid, thunk_id, result, state, samples): a task has its result."""
    _, t0, t1, uid, thunk_id, result, state, samples = record
    timeline = Timeline(thunk_id=thunk_id, result=result, state=state)
    _span(out, "finish", EventId(uid=uid, thunk_id=thunk_id), timeline, t0, max(t1, t0 + 1), CORE_WORKER, samples)


def expand_evict(record: Any, out: list[Event]) -> None:
    """(_, t, info, reason): a chunk's data is gone from its worker's memory."""
    _, t, info, reason = record
    timeline = Timeline(data=info, reason=reason)
    _span(out, "evict", EventId(worker=info.worker, handle=info.handle), timeline, t, t, info.worker, None)


def _worker_of(processor: Any) -> int:
    return getattr(processor, "owner", None) or getattr(processor, "pid", None) or CORE_WORKER
