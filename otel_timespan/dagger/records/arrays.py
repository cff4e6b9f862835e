"""From the scheduler's records to arrays of times and ids: what rows.py makes of one record, of many at once.

Each `_*_arrays(columns, count, shape)` must agree with rows.py to the nanosecond: tests/dagger/test_record_arrays.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...timespans.arrays import array_way, set_processor_of
from ...timespans.model import IdLayout
from ...timespans.packing import ints_of
from ...timespans.rows import Shape
from . import kinds as records
from .kinds import processor_of

__all__: list[str] = []

_HOME = records.CORE_WORKER

_Id = tuple[IdLayout | None, dict[str, Any]]
_Told = tuple[list[Any], list[_Id | None]]


def _ids(uid: Any, task: Any, code: Any = None) -> tuple[_Id, _Id, _Id, _Id]:
    """Of a task for the scheduler, of its firing, of its placing and of its body."""
    return (
        (records.OF_SCHEDULE, {"uid": uid, "thunk_id": task}),
        (records.OF_FIRE, {"uid": uid, "worker": _HOME, "thunk_id": task}),
        (records.OF_ENQUEUE, {"uid": uid, "processor": code, "thunk_id": task}),
        (records.OF_COMPUTE, {"thunk_id": task, "processor": code}),
    )


def _submit_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, uid, task, t1 = (ints_of(columns[n], count) for n in (1, 2, 3, 12))
    id = records.OF_TASK, {"thunk_id": task}
    if shape.length == 2:
        return [t0, t1], [id, id]
    try:
        code = ints_of(columns[13], count)
        p0, p1, p2, end = t1, t1 + 1, t1, t1 + 6
    except TypeError:  # some are tuples
        both = zip(t1.tolist(), columns[13], strict=True)
        each = [(t, t + 1, t, t + 6, p) if type(p) is int else _placed(t, p) for t, p in both]
        p0, p1, p2, end, code = np.array(each, "int64").T
    p2 = np.maximum(p2, p1 + 3)
    of_task, fire, enqueue, _ = _ids(uid, task, code)
    return (
        [t0, p0, p1, p1 + 1, p1 + 2, p2, p2 + 1, end],
        [id, of_task, of_task, fire, enqueue, enqueue, fire, id],
    )


def _placed(end: int, place: Any) -> tuple[int, int, int, int, int]:
    _, p0, p1, p2, _, _, code, _, _ = place
    return p0, max(p1, p0 + 1), p2, max(end, p2 + 6), code


def _schedule_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, t1, t2, uid, task, code = (ints_of(columns[n], count) for n in range(1, 7))
    t1 = np.maximum(t1, t0 + 1)
    t2 = np.maximum(t2, t1 + 3)
    of_task, fire, enqueue, _ = _ids(uid, task, code)
    return [t0, t1, t1 + 1, t1 + 2, t2, t2 + 1], [of_task, of_task, fire, enqueue, enqueue, fire]


def _start_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, t2, uid, task, code = (ints_of(columns[n], count) for n in (1, 3, 4, 5, 6))
    t1 = t0 + 1
    t2 = np.maximum(t2, t1 + 4)
    fetch = records.OF_FETCH, {"uid": uid, "worker": _HOME, "processor": code, "seq": task}
    move = None, {"thunk_id": task}
    moves = (shape.length - 3) // 2
    times = [t0, t1, *[t1 + 1] * moves, *[t2 - 1] * moves, t2]
    return times, [fetch, fetch, *[move] * (2 * moves), _ids(uid, task, code)[3]]


def _end_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    """Of a body that ended, however that was."""
    import numpy as np

    tb, t1, uid, task, code = (ints_of(columns[n], count) for n in range(1, 6))
    of_task, _, _, compute = _ids(uid, task, code)
    times, ids = [], []
    if shape.categories[0] == "storage_safe_scan":
        t1 = np.maximum(t1, tb + 2)
        times, ids = [tb, t1 - 1], [compute, compute]
    times, ids = [*times, t1], [*ids, compute]
    if shape.categories[-1] == "finish":
        times, ids = [*times, t1 + 1, t1 + 2], [*ids, of_task, of_task]
    return times, ids  # type: ignore[return-value]


def _finish_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    import numpy as np

    t0, t1, uid, task = (ints_of(columns[n], count) for n in range(1, 5))
    of_task = _ids(uid, task)[0]
    return [t0, np.maximum(t1, t0 + 1)], [of_task, of_task]


def _evict_arrays(columns: Sequence[Any], count: int, shape: Shape) -> _Told:
    t = ints_of(columns[1], count)
    return [t, t], [None, None]


set_processor_of(processor_of)
array_way(records.SUBMIT, _submit_arrays)
array_way(records.SCHEDULE, _schedule_arrays)
array_way(records.START, _start_arrays)
array_way(records.RETURN, _end_arrays)
array_way(records.END, _end_arrays)
array_way(records.FINISH, _finish_arrays)
array_way(records.EVICT, _evict_arrays)
