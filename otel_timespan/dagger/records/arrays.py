"""From the scheduler's records to arrays of times and ids: what rows.py makes of one record, of many at once.

Each `_*_arrays(columns, count, shape)` must agree with rows.py to the nanosecond: tests/dagger/test_record_arrays.py.
Of a shape that it does not know it raises `LookupError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...timespans.arrays import array_way, set_processor_of
from ...timespans.model import ChunkInfo, IdLayout
from ...timespans.packing import ints_of
from ...timespans.rows import Shape
from . import kinds as records
from .kinds import OWNER_BITS, processor_of
from .rows import (
    BODY_ENDED,
    ENDS,
    PLACED,
    QUEUED,
    RETURNED,
    SENT,
    SUBMITTED,
    SUBMITTED_AND_PLACED,
    SUBMITTED_AND_SENT,
    TOOK,
    TOOK_END,
)

__all__: list[str] = []

_Id = tuple[IdLayout | None, dict[str, Any]]
_Told = tuple[list[Any], list[_Id | None]]


def _scheduled(uid: Any, task: Any) -> _Id:
    return records.OF_SCHEDULE, {"uid": uid, "thunk_id": task}


def _fired(uid: Any, task: Any, code: Any) -> _Id:
    return records.OF_FIRE, {"uid": uid, "worker": code >> OWNER_BITS, "thunk_id": task}


def _enqueued(uid: Any, task: Any, code: Any) -> _Id:
    return records.OF_ENQUEUE, {"uid": uid, "processor": code, "thunk_id": task}


def _computed(task: Any, code: Any) -> _Id:
    return records.OF_COMPUTE, {"thunk_id": task, "processor": code}


def _submit_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, uid, task, t1 = (ints_of(columns[n], count) for n in (1, 2, 3, 12))
    id = records.OF_TASK, {"thunk_id": task}
    if shape is SUBMITTED:
        return [t0, t1], [id, id]
    try:
        code = ints_of(columns[13], count)
        p0, p1, p2, end = t1, t1 + 1, t1, t1 + 6
    except TypeError:  # some are tuples
        both = zip(t1.tolist(), columns[13], strict=True)
        each = [(t, t + 1, t, t + 6, p) if type(p) is int else _placed(t, p) for t, p in both]
        p0, p1, p2, end, code = np.array(each, "int64").T
    times, ids = _placing(shape, p0, p1, np.maximum(p2, p1 + 3), uid, task, code)
    return (times, ids) if shape is QUEUED else ([t0, *times, end], [id, *ids, id])


def _placed(end: int, place: Any) -> tuple[int, int, int, int, int]:
    _, p0, p1, p2, _, _, code, _, _ = place
    return p0, max(p1, p0 + 1), p2, max(end, p2 + 6), code


def _placing(shape: Shape, t0: Any, t1: Any, t2: Any, uid: Any, task: Any, code: Any) -> _Told:
    """What a placement has of a worker: of the scheduler's own, of another one, or of the queue there."""
    of_task, fire, enqueue = _scheduled(uid, task), _fired(uid, task, code), _enqueued(uid, task, code)
    if shape is QUEUED:
        return [t1 + 2, t2], [enqueue, enqueue]
    if shape in (SENT, SUBMITTED_AND_SENT):
        return [t0, t1, t1 + 1, t2 + 1], [of_task, of_task, fire, fire]
    if shape in (PLACED, SUBMITTED_AND_PLACED):
        return [t0, t1, t1 + 1, t1 + 2, t2, t2 + 1], [of_task, of_task, fire, enqueue, enqueue, fire]
    raise LookupError(shape)


def _schedule_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, t1, t2, uid, task, code = (ints_of(columns[n], count) for n in range(1, 7))
    t1 = np.maximum(t1, t0 + 1)
    return _placing(shape, t0, t1, np.maximum(t2, t1 + 3), uid, task, code)


def _start_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, t2, uid, task, code = (ints_of(columns[n], count) for n in (1, 3, 4, 5, 6))
    t1 = t0 + 1
    t2 = np.maximum(t2, t1 + 4)
    fetch = records.OF_FETCH, {"uid": uid, "worker": code >> OWNER_BITS, "processor": code, "seq": task}
    move = None, {"thunk_id": task}
    moves = (shape.length - 3) // 2
    times = [t0, t1, *[t1 + 1] * moves, *[t2 - 1] * moves, t2]
    return times, [fetch, fetch, *[move] * (2 * moves), _computed(task, code)]


def _end_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    """Of a body that ended, however that was."""
    import numpy as np

    tb, t1, uid, task, code = (ints_of(columns[n], count) for n in range(1, 6))
    compute, of_task = _computed(task, code), _scheduled(uid, task)
    if shape is TOOK:
        return _taking(np.maximum(t1, tb + 2) + 1, uid, task)
    if shape is TOOK_END:
        scanned = [type(result) is ChunkInfo for result in columns[7]]
        return _taking(np.where(scanned, np.maximum(t1, tb + 2), t1) + 1, uid, task)
    if shape not in (BODY_ENDED, RETURNED, *ENDS.values()):
        raise LookupError(shape)
    times: list[Any] = []
    ids: list[_Id | None] = []
    if shape.categories[0] == "storage_safe_scan":
        t1 = np.maximum(t1, tb + 2)
        times, ids = [tb, t1 - 1], [compute, compute]
    times, ids = [*times, t1], [*ids, compute]
    if shape.categories[-1] == "finish":
        times, ids = [*times, t1 + 1, t1 + 2], [*ids, of_task, of_task]
    return times, ids


def _taken_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    if shape is not TOOK:
        return _end_arrays(columns, count, shape)
    tb, t1, uid, task, taken = (ints_of(columns[n], count) for n in (1, 2, 3, 4, 16))
    return _taking(np.maximum(np.maximum(taken, t1 + 1), tb + 3), uid, task)


def _taking(t: Any, uid: Any, task: Any) -> _Told:
    """The scheduler's worker takes the result of a body on another one."""
    take, of_task = (records.OF_TAKE, {"uid": uid, "seq": task}), _scheduled(uid, task)
    return [t, t + 1, t + 2, t + 3], [take, take, of_task, of_task]


def _finish_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, t1, uid, task = (ints_of(columns[n], count) for n in range(1, 5))
    of_task = _scheduled(uid, task)
    return [t0, np.maximum(t1, t0 + 1)], [of_task, of_task]


def _evict_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    t = ints_of(columns[1], count)
    return [t, t], [None, None]


set_processor_of(processor_of)
array_way(records.SUBMIT, _submit_arrays)
array_way(records.SCHEDULE, _schedule_arrays)
array_way(records.START, _start_arrays)
array_way(records.RETURN, _end_arrays)
array_way(records.TAKEN, _taken_arrays)
array_way(records.END, _end_arrays)
array_way(records.FINISH, _finish_arrays)
array_way(records.EVICT, _evict_arrays)
