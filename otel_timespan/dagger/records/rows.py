"""The short way from the scheduler's records to rows: what `expand_*` of kinds.py does, without the objects.

Each `*_rows(record, columns)` adds the times and ids of the record's events to the columns and returns their
shape, which knows the way to the fields that consumers read (see timespans/rows.py). They must agree with
kinds.py to the nanosecond: tests/dagger/test_record_rows.py compares the two.

Of a task on another worker the scheduler's own has the events of its submission, placement and end, the other one those
of its queue and its body.
"""

from __future__ import annotations

from typing import Any

from ...timespans.model import ChunkInfo, EventId, ValueInfo
from ...timespans.rows import NOTHING, Columns, Fields, Getter, Shape
from . import kinds as records
from .kinds import OWNER_BITS, RESULTS, after_move, arguments_of, dependencies_of, function_of, processor_of

__all__ = [
    "BODY_ENDED", "ENDS", "EVICTED", "FINISHED", "HOME", "PLACED", "QUEUED", "RETURNED", "SENT", "STARTED", "SUBMITTED",
    "SUBMITTED_AND_PLACED", "SUBMITTED_AND_SENT", "TOOK", "TOOK_END", "end_rows", "evict_rows", "finish_rows",
    "return_rows", "schedule_rows", "start_rows", "submit_rows", "taken_rows",
]  # fmt: skip

_new = tuple.__new__
HOME = records.CORE_WORKER
"""The worker that the scheduler is on."""


def _span(category: str) -> list[tuple[str, str]]:
    return [(category, "start"), (category, "finish")]


# ---- a submission and a placement -----------------------------------------------------------------------

_PLACING = [*_span("schedule"), ("fire", "start"), *_span("enqueue"), ("fire", "finish")]
_SENDING = [*_span("schedule"), *_span("fire")]


def submit_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_submit`."""
    _, t0, uid, thunk_id, _, _, options, _, _, _, _, _, t1, place, _ = record
    if options is not None and options.name is not None:
        return None
    at = columns.worker
    id = _new(EventId, (records.OF_TASK, thunk_id))
    if place is None:
        if at is not None and at != HOME:
            return NOTHING
        columns.times += (t0, t1)
        columns.ids += (id, id)
        return SUBMITTED
    if type(place) is int:
        p0 = p2 = t1
        p1, end, processor, worker = t1 + 1, t1 + 6, place, place >> OWNER_BITS
    else:
        _, p0, p1, p2, _, _, processor, worker, _ = place
        p1, end = max(p1, p0 + 1), max(t1, p2 + 6)
    if processor is None or (at is None and worker != HOME):
        return None
    p2 = max(p2, p1 + 3)
    if at is not None and at != HOME:
        return _queue_rows(columns, p1, p2, uid, processor, thunk_id) if at == worker else NOTHING
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    fire = _new(EventId, (records.OF_FIRE, uid, worker, thunk_id))
    if worker != HOME:
        columns.times += (t0, p0, p1, p1 + 1, p2 + 1, end)
        columns.ids += (id, task, task, fire, fire, id)
        return SUBMITTED_AND_SENT
    enqueue = _new(EventId, (records.OF_ENQUEUE, uid, processor_of(processor), thunk_id))
    columns.times += (t0, p0, p1, p1 + 1, p1 + 2, p2, p2 + 1, end)
    columns.ids += (id, task, task, fire, enqueue, enqueue, fire, id)
    return SUBMITTED_AND_PLACED


def _queue_rows(columns: Columns, t1: int, t2: int, uid: int, processor: Any, thunk_id: int) -> Shape:
    """A task comes into a queue of another worker than the scheduler's, which has no more of its placement."""
    enqueue = _new(EventId, (records.OF_ENQUEUE, uid, processor_of(processor), thunk_id))
    columns.times += (t1 + 2, t2)
    columns.ids += (enqueue, enqueue)
    return QUEUED


def _deps(record: Any) -> Any:
    flat, others = record[5], record[7]
    return dependencies_of(arguments_of(flat), others) if flat else others


_SUBMISSION: Fields = {
    "f": lambda record: function_of(record[4]),
    "thunk_id": 3,
    "uid": 3,
    "deps": _deps,
    "attempt": 10,
}


def _submission(length: int) -> Any:
    return lambda position: _SUBMISSION if position in (0, length - 1) else {}


SUBMITTED = Shape(_span("add_thunk"), _submission(2))
SUBMITTED_AND_PLACED = Shape([("add_thunk", "start"), *_PLACING, ("add_thunk", "finish")], _submission(8))
SUBMITTED_AND_SENT = Shape([("add_thunk", "start"), *_SENDING, ("add_thunk", "finish")], _submission(6))


def schedule_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_schedule`."""
    _, t0, t1, t2, uid, thunk_id, processor, worker, _ = record
    at = columns.worker
    if processor is None or (at is None and worker != HOME):
        return None
    t1 = max(t1, t0 + 1)
    t2 = max(t2, t1 + 3)
    if at is not None and at != HOME:
        return _queue_rows(columns, t1, t2, uid, processor, thunk_id) if at == worker else NOTHING
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    fire = _new(EventId, (records.OF_FIRE, uid, worker, thunk_id))
    if worker != HOME:
        columns.times += (t0, t1, t1 + 1, t2 + 1)
        columns.ids += (task, task, fire, fire)
        return SENT
    enqueue = _new(EventId, (records.OF_ENQUEUE, uid, processor_of(processor), thunk_id))
    columns.times += (t0, t1, t1 + 1, t1 + 2, t2, t2 + 1)
    columns.ids += (task, task, fire, enqueue, enqueue, fire)
    return PLACED


PLACED, SENT, QUEUED = Shape(_PLACING), Shape(_SENDING), Shape(_span("enqueue"))


# ---- a body begins --------------------------------------------------------------------------------------


def start_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_start`."""
    _, t0, moves, t2, uid, thunk_id, code, _, _, _, _ = record
    if type(code) is not int:
        return None
    worker = code >> OWNER_BITS
    if worker != columns.worker and (columns.worker is not None or worker != HOME):
        return None if columns.worker is None else NOTHING
    t1 = t0 + 1
    if t2 < t1 + 4:
        t2 = t1 + 4
    processor = processor_of(code)
    fetch = _new(EventId, (records.OF_FETCH, uid, worker, processor, thunk_id))
    compute = _new(EventId, (records.OF_COMPUTE, thunk_id, processor))
    function = _new(EventId, (records.OF_MOVE, thunk_id, 0, processor))
    if not moves:
        columns.times += (t0, t1, t1 + 1, t2 - 1, t2)
        columns.ids += (fetch, fetch, function, function, compute)
        return STARTED[0]
    flat = moves[0] is RESULTS
    count = len(moves) // 4 if flat else len(moves)
    places = range(1, count + 1) if flat else [move[0] for move in moves]
    ids = [function, *[_new(EventId, (records.OF_MOVE, thunk_id, position, processor)) for position in places]]
    columns.times += (t0, t1, *[t1 + 1] * (count + 1), *[t2 - 1] * (count + 1), t2)
    columns.ids += (fetch, fetch, *ids, *ids, compute)
    return STARTED[count] if flat else STARTED[-count]


class _Started(dict[int, Shape]):
    """The shapes of a beginning, by the number of arguments; below 0 where their moves are not flat."""

    def __missing__(self, key: int) -> Shape:
        count = abs(key) + 1
        heads = [*_span("proc_run_fetch"), *[("move", "start")] * count, *[("move", "finish")] * count]
        shape = Shape([*heads, ("compute", "start")], lambda position: _moving(position - 2, count, key >= 0))
        if count < 1000:  # of longer argument lists each has its own
            self[key] = shape
        return shape


def _moving(number: int, count: int, flat: bool) -> Fields:
    """The fields of the `number`th event of `count` moves that start, then finish."""
    if not 0 <= number < 2 * count:
        return {}
    finished, place = divmod(number, count)
    position, data = _move_fields(place, bool(finished), flat)
    fields: dict[Any, int | Getter] = {"thunk_id": 5, "position": position, "data": data}
    if place and not flat:
        fields["kind"] = lambda record: record[2][place - 1][2]
    if place == 0 or flat:
        fields["thunk_id", "position", "data"] = lambda record: (record[5], place, data(record))
    if finished:
        before = fields["before"] = _move_fields(place, False, flat)[1]
        if place == 0 or flat:
            ways = "thunk_id", "position", "before", "data"
            fields[ways] = lambda record: (record[5], place, before(record), data(record))
    return fields


def _move_fields(place: int, finished: bool, flat: bool) -> tuple[Getter, Getter]:
    """How to get position and data of a move from its record, before or after."""
    function, at = records.FUNCTION_VALUE, 4 * place - 3
    if place == 0:
        return lambda record: 0, lambda record: function
    if not flat:
        data = (lambda record: after_move(record[2][place - 1])) if finished else lambda record: record[2][place - 1][1]
        return lambda record: record[2][place - 1][0], data
    if not finished:
        return lambda record: place, lambda record: _new(ChunkInfo, (*record[2][at : at + 3], record[6] >> OWNER_BITS))

    def after(record: Any) -> ValueInfo:
        _, nbytes, kind, objid = record[2][at : at + 4]
        return _new(ValueInfo, (kind, nbytes, objid))

    return lambda record: place, after


STARTED = _Started()


# ---- a body ends, a chunk dies --------------------------------------------------------------------------


def return_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_return`."""
    _, tb, t1, uid, thunk_id, code, _, _, _, _, _, _, _, _, state, _ = record
    if type(code) is not int:
        return None
    at, worker = columns.worker, code >> OWNER_BITS
    if t1 < tb + 2:
        t1 = tb + 2
    if worker != HOME and at != worker:
        return _took_rows(columns, t1 + 1, uid, thunk_id, TOOK if state is not None else NOTHING)
    if worker != at and at is not None:
        return NOTHING
    compute = _new(EventId, (records.OF_COMPUTE, thunk_id, processor_of(code)))
    if state is None or worker != HOME:
        columns.times += (tb, t1 - 1, t1)
        columns.ids += (compute, compute, compute)
        return BODY_ENDED
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    columns.times += (tb, t1 - 1, t1, t1 + 1, t1 + 2)
    columns.ids += (compute, compute, compute, task, task)
    return RETURNED


_RESULT: Fields = {
    "thunk_id": 4,
    "result": lambda record: _new(ChunkInfo, record[7:11]),
}


def _result(position: int) -> Fields:
    return _RESULT if position >= 2 else {}


def taken_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_taken`."""
    _, tb, t1, uid, thunk_id, code = record[:6]
    if type(code) is not int or code >> OWNER_BITS == HOME:
        return None
    if columns.worker != code >> OWNER_BITS:
        return _took_rows(columns, max(record[16], t1 + 1, tb + 3), uid, thunk_id, TOOK)
    t1 = max(t1, tb + 2)
    compute = _new(EventId, (records.OF_COMPUTE, thunk_id, processor_of(code)))
    columns.times += (tb, t1 - 1, t1)
    columns.ids += (compute, compute, compute)
    return BODY_ENDED


def _took_rows(columns: Columns, t: int, uid: int, thunk_id: int, took: Shape) -> Shape | None:
    """The scheduler's worker takes the result of a body on another one at `t`, if it takes it (`NOTHING`)."""
    if columns.worker is None:
        return None
    if columns.worker != HOME or took is NOTHING:
        return NOTHING
    take, task = _new(EventId, (records.OF_TAKE, uid, thunk_id)), _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    columns.times += (t, t + 1, t + 2, t + 3)
    columns.ids += (take, take, task, task)
    return took


_ENDED = _span("finish")
BODY_ENDED = Shape([*_span("storage_safe_scan"), ("compute", "finish")], _result)
TOOK = Shape([*_span("take"), *_ENDED], _result)
RETURNED = Shape([*_span("storage_safe_scan"), ("compute", "finish"), *_ENDED], _result)


def end_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_end`."""
    _, tb, t1, uid, thunk_id, code, _, result, _, _, _, _, state, _ = record
    if type(code) is not int:
        return None
    at, worker = columns.worker, code >> OWNER_BITS
    scanned = isinstance(result, ChunkInfo)
    if scanned:
        t1 = max(t1, tb + 2)
    if worker != HOME and at != worker:
        return _took_rows(columns, t1 + 1, uid, thunk_id, TOOK_END if state is not None else NOTHING)
    if worker != at and at is not None:
        return NOTHING
    compute = _new(EventId, (records.OF_COMPUTE, thunk_id, processor_of(code)))
    if scanned:
        columns.times += (tb, t1 - 1)
        columns.ids += (compute, compute)
    columns.times.append(t1)
    columns.ids.append(compute)
    finished = state is not None and worker == HOME
    if finished:
        task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
        columns.times += (t1 + 1, t1 + 2)
        columns.ids += (task, task)
    return ENDS[scanned, finished]


_END_FIELDS: Fields = {"thunk_id": 4, "result": 7}


def _end_shape(scanned: bool, finished: bool) -> Shape:
    heads = [*(_span("storage_safe_scan") if scanned else ()), ("compute", "finish"), *(_ENDED if finished else ())]
    return Shape(heads, lambda position: _END_FIELDS if position >= 2 * scanned else {})


ENDS = {(scanned, finished): _end_shape(scanned, finished) for scanned in (False, True) for finished in (False, True)}
TOOK_END = Shape([*_span("take"), *_ENDED], lambda position: _END_FIELDS if position >= 2 else {})


def finish_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_finish`."""
    _, t0, t1, uid, thunk_id, _, _, _ = record
    if columns.worker is not None and columns.worker != HOME:
        return NOTHING
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    columns.times += (t0, max(t1, t0 + 1))
    columns.ids += (task, task)
    return FINISHED


_FINISHED_FIELDS: Fields = {"thunk_id": 4, "result": 5}
FINISHED = Shape(_ENDED, lambda position: _FINISHED_FIELDS)


def evict_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_evict`."""
    _, t, handle, _, _, worker, _ = record
    if worker != columns.worker and (columns.worker is not None or worker != HOME):
        return None if columns.worker is None else NOTHING
    id = _new(EventId, (records.OF_EVICT, worker, handle))
    columns.times += (t, t)
    columns.ids += (id, id)
    return EVICTED


EVICTED = Shape(_span("evict"))
