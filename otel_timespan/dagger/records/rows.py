"""The short way from the scheduler's records to rows: what `expand_*` of kinds.py does, without the objects.

Each `*_rows(record, columns)` adds the times and ids of the record's events to the columns and returns their
shape, which knows the way to the fields that consumers read (see timespans/rows.py). They must agree with
kinds.py to the nanosecond: tests/dagger/test_record_rows.py compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import is_, itemgetter
from typing import Any

from ...timespans.model import ChunkInfo, EventId, ValueInfo, function_name
from ...timespans.packing import packed, packed_by, packed_ints, packed_ours
from ...timespans.rows import Columns, Fields, Getter, Packing, Shape, short_way
from . import kinds as records
from .describe import FunctionInfo
from .kinds import OWNER_BITS, RESULTS, after_move, arguments_of, dependencies_of, function_of, processor_of

__all__: list[str] = []

_new, _first = tuple.__new__, itemgetter(0)
_HOME = records.CORE_WORKER


def _span(category: str) -> list[tuple[str, str]]:
    return [(category, "start"), (category, "finish")]


# ---- a submission and a placement -----------------------------------------------------------------------

_PLACING = [*_span("schedule"), ("fire", "start"), *_span("enqueue"), ("fire", "finish")]


def submit_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_submit`."""
    _, t0, uid, thunk_id, _, _, options, _, _, _, _, _, t1, place, _ = record
    if options is not None and options.name is not None:
        return None
    id = _new(EventId, (records.OF_TASK, thunk_id))
    if place is None:
        columns.times += (t0, t1)
        columns.ids += (id, id)
        return _SUBMITTED
    if type(place) is int:
        p0 = p2 = t1
        p1, end, processor, worker = t1 + 1, t1 + 6, place, place >> OWNER_BITS
    else:
        _, p0, p1, p2, _, _, processor, worker, _ = place
        p1, end = max(p1, p0 + 1), max(t1, p2 + 6)
    if worker != _HOME or processor is None:
        return None
    p2 = max(p2, p1 + 3)
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    fire = _new(EventId, (records.OF_FIRE, uid, _HOME, thunk_id))
    enqueue = _new(EventId, (records.OF_ENQUEUE, uid, processor_of(processor), thunk_id))
    columns.times += (t0, p0, p1, p1 + 1, p1 + 2, p2, p2 + 1, end)
    columns.ids += (id, task, task, fire, enqueue, enqueue, fire, id)
    return _SUBMITTED_AND_PLACED


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


_SUBMITTED = Shape(_span("add_thunk"), _submission(2))
_SUBMITTED_AND_PLACED = Shape([("add_thunk", "start"), *_PLACING, ("add_thunk", "finish")], _submission(8))


def schedule_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_schedule`."""
    _, t0, t1, t2, uid, thunk_id, processor, worker, _ = record
    if worker != _HOME or processor is None:
        return None
    t1 = max(t1, t0 + 1)
    t2 = max(t2, t1 + 3)
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    fire = _new(EventId, (records.OF_FIRE, uid, _HOME, thunk_id))
    enqueue = _new(EventId, (records.OF_ENQUEUE, uid, processor_of(processor), thunk_id))
    columns.times += (t0, t1, t1 + 1, t1 + 2, t2, t2 + 1)
    columns.ids += (task, task, fire, enqueue, enqueue, fire)
    return _PLACED


_PLACED = Shape(_PLACING)


# ---- a body begins --------------------------------------------------------------------------------------


def start_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_start`."""
    _, t0, moves, t2, uid, thunk_id, code, _, _, _, _ = record
    if type(code) is not int or code >> OWNER_BITS != _HOME:
        return None
    t1 = t0 + 1
    if t2 < t1 + 4:
        t2 = t1 + 4
    processor = processor_of(code)
    fetch = _new(EventId, (records.OF_FETCH, uid, _HOME, processor, thunk_id))
    compute = _new(EventId, (records.OF_COMPUTE, thunk_id, processor))
    function = _new(EventId, (records.OF_MOVE, thunk_id, 0, processor))
    if not moves:
        columns.times += (t0, t1, t1 + 1, t2 - 1, t2)
        columns.ids += (fetch, fetch, function, function, compute)
        return _STARTED[0]
    flat = moves[0] is RESULTS
    count = len(moves) // 4 if flat else len(moves)
    places = range(1, count + 1) if flat else [move[0] for move in moves]
    ids = [function, *[_new(EventId, (records.OF_MOVE, thunk_id, position, processor)) for position in places]]
    columns.times += (t0, t1, *[t1 + 1] * (count + 1), *[t2 - 1] * (count + 1), t2)
    columns.ids += (fetch, fetch, *ids, *ids, compute)
    return _STARTED[count] if flat else _STARTED[-count]


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
        return lambda record: place, lambda record: _new(ChunkInfo, (*record[2][at : at + 3], _HOME))

    def after(record: Any) -> ValueInfo:
        _, nbytes, kind, objid = record[2][at : at + 4]
        return _new(ValueInfo, (kind, nbytes, objid))

    return lambda record: place, after


_STARTED = _Started()


# ---- a body ends, a chunk dies --------------------------------------------------------------------------


def return_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_return`."""
    _, tb, t1, uid, thunk_id, code, _, _, _, _, _, _, _, _, state, _ = record
    if type(code) is not int or code >> OWNER_BITS != _HOME:
        return None
    if t1 < tb + 2:
        t1 = tb + 2
    compute = _new(EventId, (records.OF_COMPUTE, thunk_id, processor_of(code)))
    if state is None:
        columns.times += (tb, t1 - 1, t1)
        columns.ids += (compute, compute, compute)
        return _ABANDONED
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    columns.times += (tb, t1 - 1, t1, t1 + 1, t1 + 2)
    columns.ids += (compute, compute, compute, task, task)
    return _RETURNED


_RESULT: Fields = {
    "thunk_id": 4,
    "result": lambda record: _new(ChunkInfo, record[7:11]),
}


def _result(position: int) -> Fields:
    return _RESULT if position >= 2 else {}


_ENDED = _span("finish")
_ABANDONED = Shape([*_span("storage_safe_scan"), ("compute", "finish")], _result)
_RETURNED = Shape([*_span("storage_safe_scan"), ("compute", "finish"), *_ENDED], _result)


def end_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_end`."""
    _, tb, t1, uid, thunk_id, code, _, result, _, _, _, _, state, _ = record
    if type(code) is not int or code >> OWNER_BITS != _HOME:
        return None
    compute = _new(EventId, (records.OF_COMPUTE, thunk_id, processor_of(code)))
    scanned = isinstance(result, ChunkInfo)
    if scanned:
        t1 = max(t1, tb + 2)
        columns.times += (tb, t1 - 1)
        columns.ids += (compute, compute)
    columns.times.append(t1)
    columns.ids.append(compute)
    if state is not None:
        task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
        columns.times += (t1 + 1, t1 + 2)
        columns.ids += (task, task)
    return _ENDS[scanned, state is not None]


def _end_shape(scanned: bool, finished: bool) -> Shape:
    heads = [*(_span("storage_safe_scan") if scanned else ()), ("compute", "finish"), *(_ENDED if finished else ())]
    fields: Fields = {"thunk_id": 4, "result": 7}
    return Shape(heads, lambda position: fields if position >= 2 * scanned else {})


_ENDS = {(scanned, finished): _end_shape(scanned, finished) for scanned in (False, True) for finished in (False, True)}


def finish_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_finish`."""
    _, t0, t1, uid, thunk_id, _, _, _ = record
    task = _new(EventId, (records.OF_SCHEDULE, uid, thunk_id))
    columns.times += (t0, max(t1, t0 + 1))
    columns.ids += (task, task)
    return _FINISHED


_FINISHED_FIELDS: Fields = {"thunk_id": 4, "result": 5}
_FINISHED = Shape(_ENDED, lambda position: _FINISHED_FIELDS)


def evict_rows(record: Any, columns: Columns) -> Shape | None:
    """See `records.expand_evict`."""
    _, t, handle, _, _, worker, _ = record
    if worker != _HOME:
        return None
    id = _new(EventId, (records.OF_EVICT, worker, handle))
    columns.times += (t, t)
    columns.ids += (id, id)
    return _EVICTED


_EVICTED = Shape(_span("evict"))


# ---- how they are kept ----------------------------------------------------------------------------------


def _nones(column: Sequence[Any]) -> bool:
    return column.count(None) == len(column)


def _at_home(codes: Any) -> bool:
    """Whether all of these are numbers of processors of the core's own worker."""
    return all(type(code) is int and code >> OWNER_BITS == _HOME for code in set(codes))


def _each(shapes: list[Shape]) -> Shape | list[Shape]:
    return shapes[0] if shapes.count(shapes[0]) == len(shapes) else shapes


def _submit_shapes(columns: Any) -> Shape | list[Shape] | None:
    options, place = columns[6], columns[13]
    if not _nones(options) and not all(each is None or each.name is None for each in options):
        return None
    if _nones(place):
        return _SUBMITTED
    if _at_home(place):
        return _SUBMITTED_AND_PLACED
    shapes = []
    for each in place:
        if each is None:
            shapes.append(_SUBMITTED)
        elif (each >> OWNER_BITS if type(each) is int else each[6] is not None and each[7]) == _HOME:
            shapes.append(_SUBMITTED_AND_PLACED)
        else:
            return None
    return _each(shapes)


def _schedule_shapes(columns: Any) -> Shape | None:
    simple = columns[7].count(_HOME) == len(columns[7])
    return _PLACED if simple and not any(processor is None for processor in columns[6]) else None


def _start_shapes(columns: Any) -> Shape | list[Shape] | None:
    moves = columns[2]
    if not _at_home(columns[6]):
        return None
    if not any(moves):
        return _STARTED[0]
    lengths = set(map(len, moves))
    if len(lengths) == 1 and all(map(is_, map(_first, moves), repeat(RESULTS))):
        return _STARTED[lengths.pop() // 4]
    counts = [len(each) // 4 if each and each[0] is RESULTS else -len(each) for each in moves]
    return _each([_STARTED[count] for count in counts])


def _return_shapes(columns: Any) -> Shape | list[Shape] | None:
    if not _at_home(columns[5]):
        return None
    states = columns[14]
    return _each([_ABANDONED if each is None else _RETURNED for each in states]) if None in states else _RETURNED


def _end_shapes(columns: Any) -> Shape | list[Shape] | None:
    if not _at_home(columns[5]):
        return None
    pairs = zip(columns[7], columns[12], strict=True)
    return _each([_ENDS[isinstance(result, ChunkInfo), state is not None] for result, state in pairs])


def _finish_shapes(columns: Any) -> Shape:
    return _FINISHED


def _evict_shapes(columns: Any) -> Shape | None:
    return _EVICTED if columns[5].count(_HOME) == len(columns[5]) else None


class _Called(dict[str, FunctionInfo]):
    """What stands for the functions of a name."""

    def __missing__(self, name: str) -> FunctionInfo:
        info = FunctionInfo(name, name, "", None)
        if len(self) < 10_000:
            self[name] = info
        return info


_called = _Called()


def _packed_functions(codes: Any) -> Any:
    """Functions by what they are called now; nothing else of them is read later."""
    return packed_by(codes, lambda code: _called[_name_of(function_of(code))])


def _name_of(f: Any) -> str:
    """As `function_name`, of what raises when it is asked, too."""
    try:
        return function_name(f)
    except Exception:
        return type(f).__name__


def _packed_results(results: Any) -> Any:
    """What of results has an identity; an exception would keep what its frames hold."""
    return packed([result if type(result) in (ChunkInfo, ValueInfo) else None for result in results])


def _packed_places(places: Any) -> Any:
    """Without what was sampled there."""
    return packed([place if type(place) is int or place is None else (*place[:8], None) for place in places])


_INTS = packed_ints
_SUBMIT = {
    1: _INTS,
    2: _INTS,
    3: _INTS,
    4: _packed_functions,
    5: packed_ours,
    7: packed_ours,
    12: _INTS,
    13: _packed_places,
}
_SCHEDULE = {**dict.fromkeys(range(1, 6), _INTS), 6: packed, 7: _INTS}
_START = {1: _INTS, 2: packed_ours, 3: _INTS, 4: _INTS, 5: _INTS, 6: _INTS}
_RETURN = {**dict.fromkeys(range(1, 6), _INTS), 7: _INTS, 14: packed}
_END = {**dict.fromkeys(range(1, 6), _INTS), 7: _packed_results, 12: packed}
_FINISH = {**dict.fromkeys(range(1, 5), _INTS), 5: _packed_results}
_EVICT = {1: _INTS, 2: _INTS, 5: _INTS}

short_way(records.SUBMIT, submit_rows, Packing(_SUBMIT, _submit_shapes))
short_way(records.SCHEDULE, schedule_rows, Packing(_SCHEDULE, _schedule_shapes))
short_way(records.START, start_rows, Packing(_START, _start_shapes))
short_way(records.RETURN, return_rows, Packing(_RETURN, _return_shapes))
short_way(records.END, end_rows, Packing(_END, _end_shapes))
short_way(records.FINISH, finish_rows, Packing(_FINISH, _finish_shapes))
short_way(records.EVICT, evict_rows, Packing(_EVICT, _evict_shapes))
