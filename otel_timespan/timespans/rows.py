"""The short way from records to the rows of a log: columns of times and ids, without an event object each.

Most of what a `MultiEventLog` keeps of an event is its time, category, phase and id; few events mean more to
a consumer. A kind of record may therefore give, besides `expand`, a function `rows(record, columns)`, which
adds the time and the id of each of its events and returns their `Shape`; None for a record that is not so
simple, which is then expanded. Both ways give the same log (tests/dagger/test_record_rows.py).

Of a task that runs on another worker than the scheduler's a record has events of both. Columns are of one worker
(`Columns.worker`), and `rows` adds the events of that one; where it has none, their shape is `NOTHING`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from .model import Event
from .taskrecords import KINDS

__all__ = [
    "NOTHING", "Columns", "Packing", "Shape", "count_events", "packing_of", "record_kind", "shape_of", "short_way",
]  # fmt: skip

_expanders: list[Callable[[Any, list[Event]], None]] = []
_row_makers: list[Callable[[Any, Columns], Shape | None]] = []
_packings: dict[int, Packing] = {}


def record_kind(expand: Callable[[Any, list[Event]], None], kind: int | None = None) -> int:
    """Make known a kind of record: its number. `expand(record, out)` appends the record's events to `out`.

    `kind`: one of the numbers of taskrecords.py.
    """
    if kind is not None:
        _expanders[kind] = expand
        return kind
    _expanders.append(expand)
    _row_makers.append(_no_rows)
    return len(_expanders) - 1


def short_way(kind: int, rows: Callable[[Any, Columns], Shape | None], packing: Packing) -> None:
    """Make known how records of that kind become rows without event objects, and how they are kept until then."""
    _row_makers[kind] = rows
    _packings[kind] = packing


class Packing(NamedTuple):
    """How records of a kind are kept as columns (segments.py).

    `keep`: {index of a field: what packs its column}: the fields that `rows` and the getters of built-in consumers
    read. All others are None in the records that are made again. `shapes(columns, worker)`, of all fields of some
    records: the `Shape` of them all, or of each, for `Columns` of that worker; None where one of them is not so simple.
    `workers(columns)`: those besides 1 that have events of them.
    """

    keep: Mapping[int, Callable[[Sequence[Any]], Any]]
    shapes: Callable[[Sequence[Sequence[Any]], int | None], Shape | list[Shape] | None]
    workers: Callable[[Sequence[Sequence[Any]]], set[int]]


def packing_of(kind: Any) -> Packing | None:
    """How records of that kind are kept; None where they are not."""
    return _packings.get(kind)


def shape_of(record: Any, worker: int | None) -> Shape | None:
    """The shape of a record for `Columns` of that worker, None where it has to be expanded."""
    try:
        rows: Callable[[Any, Columns], Shape | None] = _row_makers[record[0]]
        return rows(record, Columns(worker))
    except Exception:  # expanding it will say what is wrong
        return None


def expander_of(record: Any) -> Callable[[Any, list[Event]], None]:
    """The function that expands a record."""
    expand: Callable[[Any, list[Event]], None] = _expanders[record[0]]
    return expand


def _no_rows(record: Any, columns: Columns) -> Shape | None:
    return None


def _no_scheduler(record: Any, out: list[Event]) -> None:
    raise LookupError("the scheduler whose record this is was not loaded")


for _ in KINDS:
    record_kind(_no_scheduler)


class Columns:
    """Some events of one worker, by columns: entry i of each list belongs to the same event.

    `times`, `ids`, `categories`, `phases`; and `records`, as (record, shape, index of its first event). `worker` None:
    of worker 1, and of no record that has events of any other.
    """

    __slots__ = ("categories", "ids", "phases", "records", "times", "worker")

    def __init__(self, worker: int | None = None) -> None:
        self.worker = worker
        self.times: list[int] = []
        self.ids: list[Any] = []
        self.categories: list[str] = []
        self.phases: list[str] = []
        self.records: list[tuple[Any, Shape, int]] = []

    def without(self, count: int) -> Columns:
        """The same without the first `count` events."""
        rest = Columns(self.worker)
        for name in ("times", "ids", "categories", "phases"):
            getattr(rest, name).extend(getattr(self, name)[count:])
        return rest

    def take(self, records: Sequence[Any], first: int) -> int:
        """Add the events of the records from `first` on: the index of the first one that has to be expanded."""
        categories, phases, times = self.categories, self.phases, self.times
        keep, makers = self.records.append, _row_makers
        at, start = first, 0
        try:
            for at in range(first, len(records)):
                record = records[at]
                shape = None if type(record) is Event else makers[record[0]](record, self)
                if shape is None:
                    return at
                keep((record, shape, start))
                categories += shape.categories
                phases += shape.phases
                start += shape.length
        except Exception:  # expanding it will say what is wrong
            del times[start:], self.ids[start:]
            return at
        return len(records)


def count_events(records: Sequence[Any]) -> int:
    """How many events these records tell of. Never raises: what can't be expanded is one."""
    at = found = 0
    while at < len(records):
        columns = Columns()
        at = columns.take(records, at)
        found += len(columns.times)
        if at < len(records):
            found += len(expanded(records[at]))
            at += 1
    return found


def expanded(record: Any) -> list[Event]:
    """The events of one record; where it can't be expanded, one that stands for it."""
    events: list[Event] = []
    if type(record) is not Event:
        try:
            expander_of(record)(record, events)
            return events
        except Exception:
            record = Event("finish", "", None)
    return [record]


Getter = Callable[[Any], Any]
Fields = Mapping[Any, "int | Getter"]


class Shape:
    """What the events of a record are: `heads`, the (category, phase) of each, in order. Compared by identity.

    `fields(position)` says how to get at the fields of one event's id and timeline without making them:
    {name: index in the record, or function of the record}; by a tuple of names, a function that gives them
    all. For all others the record is expanded.
    """

    def __init__(self, heads: Sequence[tuple[str, str]], fields: Callable[[int], Fields] | None = None) -> None:
        self.heads = tuple(heads)
        self.length = len(heads)
        self.categories = tuple([category for category, _ in heads])
        self.phases = tuple([phase for _, phase in heads])
        self._fields = fields

    def getter(self, position: int, names: Sequence[str]) -> Getter | None:
        """A function that gives the tuple of these fields of the event at `position`; None if it can't."""
        known = {"phase": _constant(self.phases[position]), **(self._fields(position) if self._fields else {})}
        at_once = known.get(tuple(names))
        if callable(at_once):
            return at_once
        if not all(name in known for name in names):
            return None
        wanted = [known[name] for name in names]
        if len(wanted) > 1 and all(type(way) is int for way in wanted):
            return itemgetter(*wanted)
        ways = [itemgetter(way) if isinstance(way, int) else way for way in wanted]
        if len(ways) == 2:
            one, two = ways
            return lambda record: (one(record), two(record))
        if len(ways) == 3:
            one, two, three = ways
            return lambda record: (one(record), two(record), three(record))
        return lambda record: [way(record) for way in ways]


NOTHING = Shape(())
"""Of a record of which a worker has no events."""


def _constant(value: Any) -> Getter:
    return lambda record: value
