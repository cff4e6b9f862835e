"""The events of segments as numpy arrays: from columns of integers to arrays, with no object an event in between.

A kind of record may say how (`array_way`), as it may say how its rows are made (rows.py); both must agree to the
nanosecond (tests/dagger/test_record_arrays.py). Events of all others come one by one, which gives the same arrays.

numpy is imported at first use: who asks for arrays has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any, NamedTuple

from .model import EventId, IdLayout
from .rows import Columns, Shape
from .segments import LogSegment

__all__ = ["ABSENT", "FIELDS", "ArrayReader", "EventArrays", "array_way", "joined", "set_processor_of"]

FIELDS = ("uid", "worker", "thunk_id", "processor", "seq")
"""Fields of ids that are told as integers; of a processor it is a number of the reader's."""
ABSENT = -1
"""Stands for a field that an id does not have, and for the layout of an id that is None, or not told as a whole."""


class EventArrays(NamedTuple):
    """Some events in order, by arrays of 64 bit integers. Where `layouts` are not `ABSENT`, they say with `ids` which
    events have the same id.

    `heads`: the number of (category, phase), see `ArrayReader.heads`. `ids`: a row for each of `FIELDS`.
    """

    times: Any
    heads: Any
    layouts: Any
    ids: Any


Fields = dict[str, Any]
Id = tuple["IdLayout | None", Fields]
Way = Callable[[Sequence[Any], int, Shape], "tuple[list[Any], list[Id | None]]"]

_ways: dict[int, Way] = {}
_processor_of: Callable[[Any], Any] = lambda code: code  # noqa: E731


def array_way(kind: int, way: Way) -> None:
    """Make known how records of a kind become arrays.

    `way(columns, count, shape)` gives, by position: the times, and (layout, {field: array or number}) of the id, with
    None for a layout that has other fields too. What it raises where a value is not simple has the segment read event
    by event.
    """
    _ways[kind] = way


def set_processor_of(processor_of: Callable[[Any], Any]) -> None:
    """Make known which processor is meant by a number in a record."""
    global _processor_of
    _processor_of = processor_of


class ArrayReader:
    """Makes arrays of segments and of single events: numbers mean the same in all of one reader. Not thread-safe.

    `field(id, name)`: a field of an id of any kind, None where it has none.
    """

    def __init__(self, field: Callable[[Any, str], Any]) -> None:
        self.heads: dict[tuple[Any, str], int] = {}
        self.processors: dict[int, Any] = {}
        """By their numbers."""
        self._field = field
        self._numbers: dict[Any, int] = {}  # of processors
        self._of_codes: dict[int, int] = {}
        self._layouts: dict[IdLayout, int] = {}
        self.others: dict[tuple[type, Any], int] = {}
        """(type, id) of those that don't consist of `FIELDS`: the layout that each has for itself."""

    def head(self, category: Any, phase: str) -> int:
        """The number of a category and phase."""
        return self.heads.setdefault((category, phase), len(self.heads))

    def read(self, segment: LogSegment) -> EventArrays:
        """All events of a segment."""
        try:
            return self._of_groups(segment)
        except (LookupError, TypeError, ValueError, OverflowError):  # a kind or a value that no array tells
            return self.of_events(segment.read())

    def _of_groups(self, segment: LogSegment) -> EventArrays:
        import numpy as np

        arrays = _blank(segment.count)
        lengths = np.fromiter(segment.lengths(), "int64")
        starts = np.cumsum(lengths) - lengths
        kinds = np.frombuffer(segment.order, "uint8")
        for kind, group in segment.groups.items():
            way, places = _ways[kind], starts[kinds == kind]
            for shape in group.all_shapes():
                chosen = None if shape is group.shapes else [each is shape for each in group.each_shape()]
                columns = group.columns if chosen is None else _chosen(group.columns, chosen)
                first = places if chosen is None else places[chosen]
                self._put(arrays, first, shape, *way(columns, len(first), shape))
        if segment.odd is not None:
            at = np.fromiter(segment.odd_places(), "int64")
            for mine, theirs in zip(arrays, self.of_columns(*segment.odd.columns), strict=True):
                mine[..., at] = theirs
        return arrays

    def _put(self, arrays: EventArrays, first: Any, shape: Shape, times: list[Any], ids: list[Any]) -> None:
        for position, (head, time, id) in enumerate(zip(shape.heads, times, ids, strict=True)):
            at = first + position
            arrays.times[at], arrays.heads[at] = time, self.head(*head)
            if id is not None:
                layout, fields = id
                arrays.layouts[at] = ABSENT if layout is None else self._layout(layout)
                for name, values in fields.items():
                    if name == "processor":
                        values = self._of_all_codes(values)
                    arrays.ids[FIELDS.index(name)][at] = values

    def _of_all_codes(self, codes: Any) -> Any:
        import numpy as np

        distinct, inverse = np.unique(codes, return_inverse=True)
        return np.array([self._of_code(code) for code in distinct.tolist()], "int64")[inverse]

    def _of_code(self, code: int) -> int:
        number = self._of_codes.get(code)
        if number is None:
            number = self._of_codes[code] = self._processor(_processor_of(code))
        return number

    def _processor(self, processor: Any) -> int:
        number = self._numbers.setdefault(processor, len(self._numbers))
        self.processors.setdefault(number, processor)
        return number

    def _layout(self, layout: IdLayout) -> int:
        return self._layouts.setdefault(layout, len(self._layouts))

    def of_events(self, columns: Columns) -> EventArrays:
        """Events whose columns are objects."""
        return self.of_columns(columns.times, columns.ids, columns.categories, columns.phases)

    def of_columns(
        self, times: Iterable[int], ids: Iterable[Any], categories: Iterable[Any], phases: Iterable[str]
    ) -> EventArrays:
        """The same by single columns."""
        import numpy as np

        at = np.array(list(times), "int64")
        arrays = EventArrays(at, *_blank(len(at))[1:])
        arrays.heads[:] = [self.head(*head) for head in zip(categories, phases, strict=True)]
        rows = [self._of_id(id) for id in ids]
        if rows:
            told = np.array(rows, "int64").T
            arrays.layouts[:], arrays.ids[:] = told[0], told[1:]
        return arrays

    def _of_id(self, id: Any) -> tuple[int, ...]:
        """Layout and fields."""
        if id is None:
            return _NO_ID
        values = {name: self._field(id, name) for name in FIELDS}
        if values["processor"] is not None:
            values["processor"] = self._processor(values["processor"])
        plain = {name: value for name, value in values.items() if type(value) is int and value >= 0}
        if values["thunk_id"] is not None and "thunk_id" not in plain:
            raise LookupError("a task that is no number")
        row = [plain.get(name, ABSENT) for name in FIELDS]
        layout = tuple.__getitem__(id, 0) if type(id) is EventId else None
        if layout is not None and plain.keys() == layout.places.keys():
            return self._layout(layout), *row
        return self.others.setdefault((type(id), id), -2 - len(self.others)), *row


_NO_ID = (ABSENT,) * (len(FIELDS) + 1)


def joined(arrays: Sequence[Any]) -> Any:
    """One array of several, of integers."""
    import numpy as np

    return np.concatenate(arrays) if arrays else np.zeros(0, "int64")


def _blank(count: int) -> EventArrays:
    import numpy as np

    blank: Any = np.full((len(FIELDS) + 1, count), ABSENT, "int64")
    return EventArrays(np.zeros(count, "int64"), np.zeros(count, "int64"), blank[0], blank[1:])


def _chosen(columns: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
    return [None if column is None else tuple(compress(column, chosen)) for column in columns]
