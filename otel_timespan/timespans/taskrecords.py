"""The records of a task's common way, for sinks that read them as they are.

A scheduler's record is opaque to most: it expands into events (`rows.record_kind`). Seven kinds tell nearly all that
happens, four times a task, and a sink that can't afford eighteen event objects a task reads these itself. So their
numbers and fields are fixed here; the first field is always the number.

======== ==============================================================================================================
SUBMIT   t0, uid, task, function, args, options, others, spawned_by, run_id, attempt, trace, t1, place, samples
SCHEDULE t0, t1, t2, uid, task, processor, worker, samples
START    t0, moves, t2, uid, task, processor, function, occupancies, thread, samples
RETURN   tb, t1, uid, task, processor, function, handle, nbytes, type, worker, cpu_ns, span, thread, state, samples
END      tb, t1, uid, task, processor, function, result, cpu_ns, span, thread, profile, state, samples
EVICT    t, handle, nbytes, type, worker, reason
TAKEN    all of RETURN, of a body in another process; then received, here: when its answer was, the samples of then
======== ==============================================================================================================

What the fields hold is said where they are expanded (dagger/records/kinds.py). A processor is a number where it is a
thread of a worker or a whole worker: `owner << OWNER_BITS | thread`. Times are monotonic ns as they were read; the
events, and whoever wants to agree with them, set those that share a reading apart:

======== ==============================================================================================================
SUBMIT   placed with it: the schedule lasts from t1 to t1 + 1 (`place` a number), else as SCHEDULE's fields in `place`
SCHEDULE the schedule lasts from t0 to max(t1, t0 + 1)
START    taken at t0 + 1, the body begins at max(t2, t0 + 5)
RETURN   the body ended at max(t1, tb + 2), the task 2 later, 4 where another worker than 1 had the body; END, where its
         result is a chunk, likewise
TAKEN    the body ended at max(t1, tb + 2), the task 3 after its answer was received, or after that
======== ==============================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["END", "EVICT", "KINDS", "OWNER_BITS", "RESULTS", "RETURN", "SCHEDULE", "START", "SUBMIT", "TAKEN", "Steps"]

KINDS = SUBMIT, SCHEDULE, START, RETURN, EVICT, END, TAKEN = range(7)

OWNER_BITS = 32

RESULTS = "results"
"""Begins the `moves` of a START all of whose arguments are results on its own worker: (RESULTS, handle, nbytes, type,
objid, ...). All others are (position, before, kind, after) each."""


class Steps(NamedTuple):
    """Records of which nobody made events, as far as one worker would have had events of them.

    A consumer that has a method `take_steps(steps)` can be told so. Numbers of tasks: submitted and placed, of which
    the scheduler's worker has the events; queued here; whose results came from other workers (`took`); finished. STARTs
    and RETURNs of bodies here, RETURNs of which this worker heard and holds the result, EVICTs. `processors` has the
    processor of each number in them.
    """

    worker: int
    submitted: int
    placed: int
    queued: int
    took: int
    finished: int
    begun: Sequence[Any]
    returned: Sequence[Any]
    made: Sequence[Any]
    evicted: Sequence[Any]
    processors: Mapping[int, Any]
