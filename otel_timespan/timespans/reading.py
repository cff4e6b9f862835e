"""From segments to the rows of one stream: what a consumer would have said of each event, had it been called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any

from .arrays import ArrayReader, joined
from .calling import Caller, same_home
from .rows import Columns, Shape
from .segments import LogSegment

__all__ = ["Parts", "Reader", "StreamView"]


class Reader:
    """How one consumer, told by columns, makes its rows of a segment. Thread-safe where the consumer is `lazy`.

    `caller`: the consumer and what it wants. `since`: how many events were there before it.
    """

    __slots__ = ("caller", "columns", "of", "plans", "since")

    def __init__(self, caller: Caller, columns: Any, of: Any, since: int) -> None:
        self.caller, self.columns, self.of, self.since = caller, columns, of, since
        self.plans: dict[Shape, Any] = {}

    def knows(self, shape: Shape) -> bool:
        """Whether it can make its rows of such records."""
        return self.columns is not None or self._plan(shape) is not None

    def rows(
        self, segment: LogSegment, parts: Parts | None = None, interrupts: list[KeyboardInterrupt] | None = None
    ) -> Sequence[Any]:
        """One for each event of the segment. With `interrupts` it never raises: these are put there."""
        count = segment.count
        if segment.first < self.since:
            return [None] * count
        if self.columns is None:
            return self._of_fields(segment, interrupts)
        try:
            rows: list[Any] = list(self.columns(segment.read() if parts is None else parts.read(segment)))
            if len(rows) == count:
                return rows
            raise ValueError(f"{len(rows)} values for {count} events")
        except BaseException as error:
            self._isolate(error, interrupts)
            return [None] * count

    def _isolate(self, error: BaseException, interrupts: list[KeyboardInterrupt] | None) -> None:
        if interrupts is None and not isinstance(error, Exception):
            raise error  # of the thread that reads, whatever it was doing
        interrupt = self.caller.isolate(error)
        if interrupt is not None and interrupts is not None:
            interrupts.append(interrupt)

    def _of_fields(self, segment: LogSegment, interrupts: list[KeyboardInterrupt] | None) -> list[Any]:
        rows: list[Any] = [None] * segment.count
        for index, value in self.said(segment, interrupts):
            rows[index] = value
        return rows

    def said(self, segment: LogSegment, interrupts: list[KeyboardInterrupt] | None = None) -> Iterator[tuple[int, Any]]:
        """(index, row) of events that it wants, told by fields: no order is kept."""
        lengths: Sequence[int] = ()
        of = self.of
        for kind, group in segment.groups.items():
            if not any(map(self._plan, group.all_shapes())):
                continue
            lengths = lengths or segment.lengths()
            starts = segment.starts(lengths, kind)
            for record, shape, start in zip(group.records(), group.each_shape(), starts, strict=False):
                for position, get in self._plan(shape):
                    try:
                        value = of(*get(record))
                    except BaseException as error:
                        self._isolate(error, interrupts)
                        continue
                    yield start + position, value
        odd = segment.odd.values.get(self.caller.name) if segment.odd is not None else None
        if odd:
            places = list(segment.odd_places())
            for number, value in odd.items():
                yield places[number], value

    def _plan(self, shape: Shape) -> Any:
        """(position, how to get what it reads) of each event that it wants; None where one can't be told so."""
        try:
            return self.plans[shape]
        except KeyError:
            pass
        consumer = self.caller.consumer
        plan: list[Any] | None = []
        for position, head in enumerate(shape.heads):
            if self.caller.wants(*head) and getattr(consumer, "of_phase", head[1]) == head[1]:
                get = shape.getter(position, consumer.fields)
                plan = None if plan is None or get is None else [*plan, (position, get)]
        if len(self.plans) < _MAX_PLANS:
            self.plans[shape] = plan
        return plan


_MAX_PLANS = 4096
_index = itemgetter(0)


def _no_field(id: Any, name: str) -> None:
    return None


class Parts:
    """The segments of one fetch, of which the first `skip` events are left out."""

    __slots__ = ("_last", "bounds", "count", "segments", "skip")

    def __init__(self, segments: Sequence[LogSegment], skip: int) -> None:
        self.segments, self.skip = tuple(segments), skip
        self.bounds = [end - skip for end in accumulate([segment.count for segment in segments])]
        self.count = self.bounds[-1] if self.bounds else 0
        self._last: tuple[LogSegment | None, Columns | None] = None, None

    def read(self, segment: LogSegment) -> Columns:
        """The segment's events by columns; the last ones are kept, for streams are read side by side."""
        last, columns = self._last
        if last is not segment or columns is None:
            columns = segment.read()
            self._last = segment, columns
        return columns

    def read_all(self) -> Iterator[Columns]:
        """All events by columns, segment by segment."""
        for number, segment in enumerate(self.segments):
            columns = self.read(segment)
            yield columns.without(self.skip) if number == 0 and self.skip else columns


class StreamView:
    """A stream of a fetched log: rows that are not made yet."""

    __slots__ = ("parts", "reader")

    def __init__(self, reader: Reader, parts: Parts) -> None:
        self.reader, self.parts = reader, parts

    def rows_of(self, number: int) -> Sequence[Any]:
        """Those of one segment."""
        rows = self.reader.rows(self.parts.segments[number], self.parts)
        return rows[self.parts.skip :] if number == 0 and self.parts.skip else rows

    def said(self) -> Iterator[tuple[int, Any]]:
        """(index, row) of each that is not None."""
        base = -self.parts.skip
        for segment in self.parts.segments:
            if self.reader.columns is not None:
                told: Iterable[tuple[int, Any]] = enumerate(self.reader.rows(segment, self.parts))
            else:
                told = sorted(self.reader.said(segment), key=_index) if segment.first >= self.reader.since else ()
            yield from [(at + base, row) for at, row in told if row is not None and at + base >= 0]
            base += segment.count

    def says_columns(self, parts: Parts) -> bool:
        """Whether each row is what the columns of these parts say, there are no others, and none came before it."""
        says = getattr(self.reader.caller.consumer, "says", None)
        return says is not None and self.parts is parts and all(s.first >= self.reader.since for s in parts.segments)

    def arrow(self) -> Any:
        """The rows as an array of pyarrow's, made of columns; None where only the rows tell it."""
        consumer = self.reader.caller.consumer
        if not self.says_columns(self.parts) or not same_home(consumer, "arrow", "columns"):
            return None
        reader = ArrayReader(_no_field)
        some = [reader.read(segment) for segment in self.parts.segments]
        times, heads = (joined([arrays[n] for arrays in some])[self.parts.skip :] for n in (0, 1))
        try:
            return consumer.arrow(times, heads, list(reader.heads))
        except (TypeError, ValueError):  # a category that is no text, or none of UTF-8
            return None

    def count_before(self, start: int) -> int | None:
        """How many entries at the front have a time below `start`, one without counting as the next; of `CoreMetrics`.

        None where that has to be seen from the rows.
        """
        if "times" not in getattr(self.reader.caller.consumer, "says", ()):
            return None
        passed, before = -self.parts.skip, 0
        for segment in self.parts.segments:
            if segment.first >= self.reader.since:
                times = segment.times()[max(0, -passed) :]
                inside = next((n for n, time in enumerate(times) if time >= start), len(times))
                before = max(passed, 0) + inside if inside else before
                if inside < len(times):
                    return before
            passed += segment.count
        return before

    def __len__(self) -> int:
        return self.parts.count

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(map(self.rows_of, range(len(self.parts.segments))))
