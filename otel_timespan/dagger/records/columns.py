"""Records by columns: the shapes of many of a kind at a glance, for each worker, and how their fields are kept.

The shapes must be those that rows.py gives record by record: tests/dagger/test_record_rows.py compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import is_, itemgetter
from typing import Any

from ...timespans.model import ChunkInfo, ValueInfo, function_name
from ...timespans.packing import packed, packed_by, packed_ints, packed_ours
from ...timespans.rows import NOTHING, Packing, Shape, short_way
from . import kinds as records
from .describe import FunctionInfo
from .kinds import OWNER_BITS, RESULTS, function_of, worker_of
from .rows import (
    BODY_ENDED,
    ENDS,
    EVICTED,
    FINISHED,
    HOME,
    PLACED,
    QUEUED,
    RETURNED,
    SENT,
    STARTED,
    SUBMITTED,
    SUBMITTED_AND_PLACED,
    SUBMITTED_AND_SENT,
    TOOK,
    TOOK_END,
    end_rows,
    evict_rows,
    finish_rows,
    return_rows,
    schedule_rows,
    start_rows,
    submit_rows,
    taken_rows,
)

__all__: list[str] = []

_first = itemgetter(0)

# ---- shapes ---------------------------------------------------------------------------------------------


def _nones(column: Sequence[Any]) -> bool:
    return column.count(None) == len(column)


def _each(shapes: list[Shape]) -> Shape | list[Shape]:
    return shapes[0] if shapes.count(shapes[0]) == len(shapes) else shapes


def _owner(code: Any) -> int:
    """The worker of a processor, whether that has a number or not."""
    return code >> OWNER_BITS if type(code) is int else worker_of(code)


def _place_owner(place: Any) -> int:
    """The worker where a task was placed with its submission, 0 where it was not."""
    if place is None:
        return 0
    return place >> OWNER_BITS if type(place) is int else place[7]


def _numbered(codes: Any) -> bool:
    return all(type(code) is int for code in set(codes))


def _by_owner(
    owners: Sequence[int], worker: int | None, home: Shape, sent: Shape, there: Shape
) -> Shape | list[Shape] | None:
    """The shapes of records, by the worker of each, in the columns of `worker`.

    `home`: of those of worker 1 in its own, `sent`: of all others there; `there`: of those of another in its own.
    """
    distinct = set(owners)
    if worker is None or worker == HOME:
        if distinct == {HOME}:
            return home
        return None if worker is None else _each([home if owner == HOME else sent for owner in owners])
    if worker not in distinct:
        return NOTHING
    return there if len(distinct) == 1 else [there if owner == worker else NOTHING for owner in owners]


def _submit_shapes(columns: Any, worker: int | None) -> Shape | list[Shape] | None:
    options, place = columns[6], columns[13]
    if not _nones(options) and not all(each is None or each.name is None for each in options):
        return None
    here = worker is None or worker == HOME
    if _nones(place):
        return SUBMITTED if here else NOTHING
    if any(type(each) is tuple and each[6] is None for each in place):  # it could not be placed
        return None
    owners = list(map(_place_owner, place))
    if not here or 0 not in owners:
        return _by_owner(owners, worker, SUBMITTED_AND_PLACED, SUBMITTED_AND_SENT, QUEUED)
    shapes = {0: SUBMITTED, HOME: SUBMITTED_AND_PLACED}
    if worker is None and not shapes.keys() >= set(owners):
        return None
    return _each([shapes.get(owner, SUBMITTED_AND_SENT) for owner in owners])


def _schedule_shapes(columns: Any, worker: int | None) -> Shape | list[Shape] | None:
    if any(processor is None for processor in columns[6]):
        return None
    return _by_owner(columns[7], worker, PLACED, SENT, QUEUED)


def _start_shapes(columns: Any, worker: int | None) -> Shape | list[Shape] | None:
    moves, codes = columns[2], columns[6]
    if not _numbered(codes):
        return None
    owners, here = set(map(_owner, set(codes))), HOME if worker is None else worker
    if here not in owners or (worker is None and len(owners) > 1):
        return None if worker is None else NOTHING
    if len(owners) == 1:
        if not any(moves):
            return STARTED[0]
        lengths = set(map(len, moves))
        if len(lengths) == 1 and all(map(is_, map(_first, moves), repeat(RESULTS))):
            return STARTED[lengths.pop() // 4]
    counts = [len(each) // 4 if each and each[0] is RESULTS else -len(each) for each in moves]
    if len(owners) == 1:
        return _each([STARTED[count] for count in counts])
    pairs = zip(codes, counts, strict=True)
    return [STARTED[count] if code >> OWNER_BITS == here else NOTHING for code, count in pairs]


def _end_shapes_of(
    codes: Any, worker: int | None, of_each: Callable[[int], tuple[Shape, Shape, Shape]]
) -> Shape | list[Shape] | None:
    """The shapes of ends of bodies. `of_each(n)`: of the nth one `home`, `sent` and `there`, as in `_by_owner`."""
    owners = set(map(_owner, set(codes)))
    if not _numbered(codes) or (worker is None and owners != {HOME}):
        return None
    if worker is not None and worker != HOME and worker not in owners:
        return NOTHING
    found = []
    for n, code in enumerate(codes):
        home, sent, there = of_each(n)
        owner = code >> OWNER_BITS
        if worker is None or worker == HOME:
            found.append(home if owner == HOME else sent)
        else:
            found.append(there if owner == worker else NOTHING)
    return _each(found)


def _return_shapes(columns: Any, worker: int | None) -> Shape | list[Shape] | None:
    states = columns[14]
    if None not in states:
        if not _numbered(columns[5]):
            return None
        return _by_owner(list(map(_owner, columns[5])), worker, RETURNED, TOOK, BODY_ENDED)
    forms = (RETURNED, TOOK, BODY_ENDED), (BODY_ENDED, NOTHING, BODY_ENDED)
    return _end_shapes_of(columns[5], worker, lambda n: forms[states[n] is None])


def _taken_shapes(columns: Any, worker: int | None) -> Shape | list[Shape] | None:
    owners = list(map(_owner, columns[5]))
    if worker is None or HOME in owners or not _numbered(columns[5]):
        return None
    return _by_owner(owners, worker, TOOK, TOOK, BODY_ENDED)


def _end_shapes(columns: Any, worker: int | None) -> Shape | list[Shape] | None:
    results, states = columns[7], columns[12]

    def of_each(n: int) -> tuple[Shape, Shape, Shape]:
        scanned, finished = isinstance(results[n], ChunkInfo), states[n] is not None
        return ENDS[scanned, finished], TOOK_END if finished else NOTHING, ENDS[scanned, False]

    return _end_shapes_of(columns[5], worker, of_each)


def _finish_shapes(columns: Any, worker: int | None) -> Shape:
    return FINISHED if worker is None or worker == HOME else NOTHING


def _evict_shapes(columns: Any, worker: int | None) -> Shape | list[Shape] | None:
    return _by_owner(columns[5], worker, EVICTED, NOTHING, EVICTED)


# ---- how fields are kept ---------------------------------------------------------------------------------


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
_TAKEN = {**_RETURN, 16: _INTS}
_END = {**dict.fromkeys(range(1, 6), _INTS), 7: _packed_results, 12: packed}
_FINISH = {**dict.fromkeys(range(1, 5), _INTS), 5: _packed_results}
_EVICT = {1: _INTS, 2: _INTS, 5: _INTS}



def _workers_in(number: int) -> Callable[[Any], set[int]]:
    """The workers that have events of records: field `number` is the processor of each."""
    return lambda columns: set(map(_owner, set(columns[number])))


def _workers_of_places(columns: Any) -> set[int]:
    return set() if _nones(columns[13]) else set(map(_place_owner, columns[13])) - {0}


short_way(records.SUBMIT, submit_rows, Packing(_SUBMIT, _submit_shapes, _workers_of_places))
short_way(records.SCHEDULE, schedule_rows, Packing(_SCHEDULE, _schedule_shapes, lambda columns: set(columns[7])))
short_way(records.START, start_rows, Packing(_START, _start_shapes, _workers_in(6)))
short_way(records.RETURN, return_rows, Packing(_RETURN, _return_shapes, _workers_in(5)))
short_way(records.TAKEN, taken_rows, Packing(_TAKEN, _taken_shapes, _workers_in(5)))
short_way(records.END, end_rows, Packing(_END, _end_shapes, _workers_in(5)))
short_way(records.FINISH, finish_rows, Packing(_FINISH, _finish_shapes, lambda columns: set()))
short_way(records.EVICT, evict_rows, Packing(_EVICT, _evict_shapes, lambda columns: set(columns[5])))
