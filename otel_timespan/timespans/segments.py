"""Segments: how a `MultiEventLog` keeps what happened, until somebody reads it.

A row a stream an event is a lot of objects, and most rows are never looked at. So what is kept are the records
themselves: those of a batch by kind, transposed (packing.py), with nothing but the fields that streams are made of.
Rows are made when they are read, by the same functions that make them of records (rows.py); so they are the same.

What is not so simple (a program's own events, records with samples or of other processors) is *odd*: it is expanded
when it comes, and what consumers say of it stands beside.

A segment is of one worker. A record that several have events of is kept in a segment of each (`Batch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, groupby, islice, repeat
from operator import attrgetter, itemgetter
from typing import Any

from .journal import expand_all
from .model import Event
from .packing import packed
from .rows import NOTHING, Columns, Shape, packing_of, shape_of

__all__ = ["Batch", "LogSegment", "added", "blank_segment", "segment_of_events"]

_ENOUGH = 2560
"""Events. Smaller segments are joined with those that follow: a segment takes some KB beside what it keeps."""

_ODD = 255
"""Stands for a record's kind in `LogSegment.order`."""

_GONE = 254
"""Stands there while a segment is made, for a record of which its worker has no events."""

_kind_of = itemgetter(0)


def _is_odd(pair: tuple[int, int]) -> bool:
    return pair[0] == _ODD


_length_of = attrgetter("length")


class _Group:
    """The records of one kind: their columns, and the shape of all, or of each."""

    __slots__ = ("columns", "count", "kind", "shapes")

    def __init__(self, kind: int, shapes: Shape | list[Shape], columns: Sequence[Any], count: int) -> None:
        self.kind, self.shapes, self.columns, self.count = kind, shapes, columns, count

    def records(self) -> Iterator[tuple[Any, ...]]:
        """The records, with None where a field was not kept."""
        columns = [repeat(None, self.count) if column is None else column for column in self.columns]
        return zip(repeat(self.kind, self.count), *columns[1:], strict=True)

    def each_shape(self) -> Iterable[Shape]:
        """The shape of each record."""
        return repeat(self.shapes, self.count) if type(self.shapes) is Shape else self.shapes  # type: ignore[return-value]

    def all_shapes(self) -> Iterable[Shape]:
        """Each shape once."""
        return (self.shapes,) if type(self.shapes) is Shape else set(self.shapes)  # type: ignore[arg-type]

    def pack(self) -> None:
        """Keep the columns that streams are made of, and these in few objects."""
        packing = packing_of(self.kind)
        keep = packing.keep if packing is not None else {}
        self.columns = [keep[n](c) if n in keep else None for n, c in enumerate(self.columns)]

    def joined(self, other: _Group) -> _Group:
        """One of both."""
        if self.shapes is other.shapes:
            shapes: Any = self.shapes
        else:
            shapes = [*self.each_shape(), *other.each_shape()]
        columns = list(zip(*self.records(), *other.records(), strict=True))
        group = _Group(self.kind, shapes, columns, self.count + other.count)
        group.pack()
        return group


class _Odd:
    """Events that are no simple records, those of each record together: what streams are made of."""

    __slots__ = ("columns", "lengths", "values")

    def __init__(self, lengths: Any, columns: Sequence[Any], values: dict[str, dict[int, Any]]) -> None:
        self.lengths = lengths
        self.columns = columns  # times, ids, categories, phases
        self.values = values  # stream -> number of an event -> what its consumer said, unless that is None

    def pack(self, with_ids: bool) -> None:
        """Keep these in few objects. Ids only where a stream has them: they are the program's."""
        self.lengths = packed(self.lengths)
        times, ids, categories, phases = self.columns
        if times:
            ids = ids if with_ids else [None] * len(ids)
            self.columns = tuple(map(packed, (times, ids, categories, phases)))

    def joined(self, other: _Odd) -> _Odd:
        """One of both."""
        before = sum(self.lengths)
        values = {stream: dict(each) for stream, each in self.values.items()}
        for stream, each in other.values.items():
            values.setdefault(stream, {}).update({before + number: value for number, value in each.items()})
        columns = [[*mine, *theirs] for mine, theirs in zip(self.columns, other.columns, strict=True)]
        both = _Odd([*self.lengths, *other.lengths], columns, values)
        both.pack(True)
        return both


class LogSegment:
    """Some records, in their order, as far as one worker has events of them. Nobody changes it once it is packed.

    `count`: of events. `order`: the kind of each record. `first`: how many events this worker's streams had before.
    """

    __slots__ = ("_times", "count", "first", "groups", "odd", "order", "worker")

    def __init__(self, worker: int, order: bytes, groups: dict[int, _Group], odd: _Odd | None, first: int) -> None:
        self.worker, self.order, self.groups, self.odd, self.first = worker, order, groups, odd, first
        self._times: list[int] | None = None
        self.count = sum(map(_events_in, groups.values())) + (sum(odd.lengths) if odd is not None else 0)

    def pack(self, with_ids: bool) -> None:
        """Keep no more than streams are made of."""
        for group in self.groups.values():
            group.pack()
        if self.odd is not None:
            self.odd.pack(with_ids)

    def steps(self, records: Sequence[Any], expanded: Sequence[Any]) -> Iterator[tuple[Any, Shape | None, Any]]:
        """(record, its shape, None), or (record, None, its events) where it is odd; of all that `Batch.whole` gave."""
        each = {kind: iter(group.each_shape()) for kind, group in self.groups.items()}
        for number, kind in enumerate(self.order):
            if kind == _ODD:
                yield records[number], None, expanded[number]
            else:
                yield records[number], next(each[kind]), None

    def lengths(self) -> Sequence[int]:
        """How many events each record has."""
        groups, odd = self.groups, self.odd
        if odd is None and all(type(group.shapes) is Shape and group.shapes.length < 256 for group in groups.values()):
            table = bytearray(256)
            for kind, group in groups.items():
                table[kind] = group.shapes.length  # type: ignore[union-attr]
            return self.order.translate(table)
        each: dict[int, Iterator[int]] = {kind: map(_length_of, group.each_shape()) for kind, group in groups.items()}
        if odd is not None:
            each[_ODD] = iter(odd.lengths)
        return list(map(next, map(each.__getitem__, self.order)))

    def starts(self, lengths: Sequence[int], kind: int) -> Iterator[int]:
        """The index of the first event of each record of that kind."""
        return compress(accumulate(lengths, initial=0), self.order.translate(_mask_of(kind)))

    def read(self) -> Columns:
        """All its events by columns."""
        columns, order = Columns(self.worker), self.order
        if self.odd is not None:
            order = order.replace(bytes((_ODD,)), b"")
        each = {kind: group.records() for kind, group in self.groups.items()}
        records = list(map(next, map(each.__getitem__, order)))
        if columns.take(records, 0) != len(records):
            raise LookupError("a record that was simple is not any more")
        return columns if self.odd is None else self._with_odd(columns, self.odd)

    def times(self) -> list[int]:
        """The times of its events, kept for whoever asks again and again: a window asks for those of the oldest."""
        if self._times is None:
            self._times = self.read().times
        return self._times

    def _with_odd(self, simple: Columns, odd: _Odd) -> Columns:
        pairs = groupby(zip(self.order, self.lengths(), strict=True), _is_odd)
        runs = [(is_odd, sum([length for _, length in run])) for is_odd, run in pairs]
        woven = Columns()
        for name, theirs in zip(("times", "ids", "categories", "phases"), odd.columns, strict=True):
            sources, into = (iter(getattr(simple, name)), iter(theirs)), getattr(woven, name)
            for is_odd, count in runs:
                into += islice(sources[is_odd], count)
        return woven

    def odd_places(self) -> Iterator[int]:
        """The index of each odd event."""
        lengths = self.lengths()
        for start, length in zip(self.starts(lengths, _ODD), self.odd.lengths, strict=True):  # type: ignore[union-attr]
            yield from range(start, start + length)


def _events_in(group: _Group) -> int:
    shapes = group.shapes
    return shapes.length * group.count if type(shapes) is Shape else sum(map(_length_of, shapes))  # type: ignore[arg-type]


_Known = Callable[[Shape], bool]
"""Whether records of a shape need no expanding, as far as consumers are concerned."""


class Batch:
    """Records as they came, of which the segment of each worker is made."""

    def __init__(self, records: Sequence[Any]) -> None:
        self.records = records
        self._order = _order_of(records)
        self._expanded: dict[int, list[Event]] = {}
        self._kinds: list[tuple[int, bytes, list[Any], list[Any] | None]] = []  # kind, its mask, records, their columns
        for kind in sorted(set(self._order) - {_ODD}):
            mask = self._order.translate(_mask_of(kind))
            some = list(compress(records, mask))
            try:
                columns: list[Any] | None = list(zip(*some, strict=True))
            except Exception:  # expanding them will say what is wrong
                columns = None
            self._kinds.append((kind, mask, some, columns))

    def workers(self) -> set[int]:
        """Those that have events of these records, and worker 1."""
        found = {1}
        odd = [number for number, kind in enumerate(self._order) if kind == _ODD] if _ODD in self._order else []
        for kind, mask, _, columns in self._kinds:
            packing = packing_of(kind)
            try:
                found |= packing.workers(columns)  # type: ignore[union-attr, arg-type]
            except Exception:
                odd += compress(range(len(mask)), mask)
        return found.union(*[[event.worker for event in self._events(number)] for number in odd])

    def events(self, worker: int) -> list[Event]:
        """All events of a worker."""
        every = chain.from_iterable(map(self._events, range(len(self.records))))
        return [event for event in every if event.worker == worker]

    def _events(self, number: int) -> list[Event]:
        found = self._expanded.get(number)
        if found is None:
            found = self._expanded[number] = expand_all([self.records[number]])
        return found

    def segment(self, worker: int, knows: _Known, first: int) -> tuple[LogSegment, list[Event]]:
        """A worker's segment, not packed yet, and its odd events."""
        order, groups = self._sorted(worker, knows)
        odd: list[list[Event]] = []
        if _ODD in order:
            marked = bytearray(order)
            for number in compress(range(len(order)), order.translate(_mask_of(_ODD))):
                events = [event for event in self._events(number) if event.worker == worker]
                if events:
                    odd.append(events)
                else:
                    marked[number] = _GONE
            order = bytes(marked)
        segment = LogSegment(worker, order.translate(None, _GONE_BYTES), groups, _odd_of(odd) if odd else None, first)
        return segment, list(chain.from_iterable(odd))

    def whole(self, knows: _Known, first: int) -> tuple[LogSegment, list[Any]]:
        """The segment of worker 1, where records that others have events of are odd; not packed yet.

        And of each record None, or its events, of all workers, where it is odd. Empty where nothing is odd.
        """
        order, groups = self._sorted(None, knows)
        if _ODD not in order:
            return LogSegment(1, order, groups, None, first), []
        expanded = [self._events(number) if kind == _ODD else None for number, kind in enumerate(order)]
        odd = _odd_of([[event for event in events if event.worker == 1] for events in expanded if events is not None])
        return LogSegment(1, order, groups, odd, first), expanded

    def _sorted(self, worker: int | None, knows: _Known) -> tuple[bytes, dict[int, _Group]]:
        """The kind of each record, or what stands for it; and the simple ones by kind."""
        marked, groups = bytearray(self._order), {}
        for kind, mask, some, columns in self._kinds:
            shapes = None if columns is None else _shapes_of(kind, columns, worker)
            if shapes is NOTHING:
                marked = _marked(marked, mask, repeat(_GONE))
                continue
            group = None if shapes is None else _Group(kind, shapes, columns, len(some))  # type: ignore[arg-type]
            if group is None or not all(map(knows, group.all_shapes())) or NOTHING in group.all_shapes():
                if group is not None:
                    each: Iterable[Any] = [shape if knows(shape) else None for shape in group.each_shape()]
                else:
                    each = [s if (s := shape_of(one, worker)) is not None and knows(s) else None for one in some]
                each = list(each)
                marks = [_ODD if shape is None else _GONE if shape is NOTHING else kind for shape in each]
                marked = _marked(marked, mask, marks)
                kept = [shape is not None and shape is not NOTHING for shape in each]
                simple = list(compress(some, kept))
                group = _Group(kind, list(compress(each, kept)), list(zip(*simple, strict=True)), len(simple))
            if group.count:
                groups[kind] = group
        return bytes(marked), groups


_GONE_BYTES = bytes((_GONE,))


def _marked(order: bytearray, mask: bytes, marks: Iterable[int]) -> bytearray:
    """With these at the places that the mask shows."""
    for place, mark in zip(compress(range(len(mask)), mask), marks, strict=False):
        order[place] = mark
    return order


def _order_of(records: Sequence[Any]) -> bytes:
    """The kind of each record that may be kept by columns, `_ODD` of all others."""
    try:
        order = bytes(map(_kind_of, records))
        if set(map(type, records)) == {tuple} and all(map(packing_of, set(order))):
            return order
    except Exception:  # there are events among them, or what is no record at all
        pass
    return bytes([r[0] if type(r) is tuple and r and packing_of(r[0]) is not None else _ODD for r in records])


def _mask_of(kind: int) -> bytearray:
    table = bytearray(256)
    table[kind] = 1
    return table


def _shapes_of(kind: int, columns: Sequence[Any], worker: int | None) -> Shape | list[Shape] | None:
    """The shape of all these, or of each; None where it can't be told at a glance that they are simple."""
    packing = packing_of(kind)
    try:
        return packing.shapes(columns, worker) if packing is not None else None
    except Exception:  # expanding them will say what is wrong
        return None


def segment_of_events(worker: int, events: Sequence[Event], first: int) -> LogSegment:
    """A segment of nothing but odd events."""
    return LogSegment(worker, bytes((_ODD,)), {}, _odd_of([events]), first)


def blank_segment(worker: int, count: int) -> LogSegment:
    """A segment of so many events that came before any stream that reads it: all have None there."""
    nothing = [None] * count
    segment = LogSegment(worker, bytes((_ODD,)), {}, _Odd([count], ([0] * count, nothing, nothing, nothing), {}), 0)
    segment.pack(False)
    return segment


def added(segments: list[LogSegment], segment: LogSegment, sealed: int) -> None:
    """Put it at the end, joined with what is small there and began after so many events (`sealed`).

    Only with what is not much larger than itself: so each record is packed anew a few times only.
    """
    while segments and segments[-1].first >= sealed:
        last = segments[-1].count
        if last >= _ENOUGH or last > 2 * segment.count:
            break
        segment = _joined(segments.pop(), segment)
    segments.append(segment)


def _joined(one: LogSegment, other: LogSegment) -> LogSegment:
    """One segment of two that follow each other."""
    groups = {**one.groups, **other.groups}
    for kind in one.groups.keys() & other.groups.keys():
        groups[kind] = one.groups[kind].joined(other.groups[kind])
    odd = one.odd or other.odd
    if one.odd is not None and other.odd is not None:
        odd = one.odd.joined(other.odd)
    return LogSegment(one.worker, one.order + other.order, groups, odd, one.first)


def _odd_of(batches: Sequence[Sequence[Event]]) -> _Odd:
    events = list(chain.from_iterable(batches))
    columns = [[event[n] for event in events] for n in _ODD_FIELDS]
    return _Odd(list(map(len, batches)), columns, {})


_ODD_FIELDS = 4, 2, 1, 0
"""Timestamp, id, category and phase of an `Event`."""
