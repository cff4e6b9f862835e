"""The streams of one worker in a `MultiEventLog`: who is called for an event, and how values are kept.

Two ways of keeping, with one result. *Sparse* (no aggregator): a consumer is called only for what it
wants, and its values wait with the index of their event until somebody looks. *Full* (an aggregator
looks at the lists after each event): every list grows by one entry an event.
"""

from __future__ import annotations

import types
from typing import Any

from .calling import Caller, Plans, attach, copy_for, detach, is_sampler, isolate, same_home, tell
from .journal import expand_all
from .model import Event
from .rows import Columns, Shape
from .warn import warn_once

__all__ = ["WorkerStreams", "blame"]


class _Nothing:
    value = None


class _Stream(Caller):
    """One consumer and its values that wait. A stamp is an index in the list that it will become."""

    __slots__ = ("carries", "columns", "of", "stamps", "values")

    def __init__(self, name: str, consumer: Any, original: Any) -> None:
        super().__init__(name, consumer, original)
        self.carries = self.is_picky and bool(getattr(consumer, "carries", False))
        self.columns: Any = None
        self.of: Any = None
        reads = isinstance(getattr(consumer, "fields", None), tuple) and callable(getattr(consumer, "of", None))
        if reads and self.is_picky and not self.carries and same_home(consumer, "of", "__call__"):
            self.of = consumer.of
        if not self.is_picky and not is_sampler(consumer) and same_home(consumer, "columns", "__call__"):
            self.columns = consumer.columns
        self.stamps: list[int] = []
        self.values: list[Any] = []

    @property
    def filler(self) -> Any:
        """Its attribute `value` is the entry of an event for which the consumer is not called."""
        return self.consumer if self.carries else _Nothing

    def take_batch(self, batch: Any, given: Any, count: int) -> list[Any]:
        """The values for all these events, or columns, at once."""
        try:
            values = list(batch(given))
            if len(values) == count:
                return values
            raise ValueError(f"{len(values)} values for {count} events")
        except Exception as error:
            self.isolate(error)
            return [None] * count

    def begin(self, index: int) -> None:
        """From `index` on a carrying stream shows its present value."""
        if self.carries:
            self.stamps.append(index)
            self.values.append(self.consumer.value)

    def complete(self, entries: list[Any], length: int) -> None:
        """Write what waits into `entries`, which then has `length` entries."""
        if self.carries:
            for place, (stamp, value) in enumerate(zip(self.stamps, self.values, strict=True)):
                until = self.stamps[place + 1] if place + 1 < len(self.stamps) else length
                entries.extend([value] * (until - stamp))
        else:
            entries.extend([None] * (length - len(entries)))
            for stamp, value in zip(self.stamps, self.values, strict=True):
                entries[stamp] = value
        self.stamps.clear()
        self.values.clear()


class WorkerStreams:
    """The streams, consumers and aggregators of one worker of `log`. Not thread-safe: the log's lock guards it."""

    def __init__(self, log: Any, worker: int, max_events: int | None) -> None:
        self._log, self._worker, self._max_events = log, worker, max_events
        self._streams: dict[str, _Stream] = {}
        self._originals: dict[str, Any] = {}  # name -> what the user gave; same keys as _streams
        self._aggregators: dict[str, tuple[Any, Any]] = {}  # name -> (what the user gave, our copy)
        self._lists: dict[str, list[Any]] = {}  # same keys as _streams, unless an aggregator meddled
        self._plans = Plans(lambda head: self._plan(*head))  # refers to the lists in _lists
        self._shape_plans = Plans(self._plan_shape)  # refers to those plans
        self._takes_columns: bool | None = None  # None: to be found out
        self._count = 0  # entries so far; while sparse, lists may be shorter

    def configure(self, consumers: dict[str, Any], aggregators: dict[str, Any]) -> None:
        """Take over the log's consumers and aggregators, keeping the copies of those that stayed."""
        self._complete()
        for name in [n for n in self._streams if consumers.get(n) is not self._originals[n]]:
            self.remove(name)
        for name, original in consumers.items():
            if name not in self._streams:
                self._originals[name] = original
                self._streams[name] = _Stream(name, copy_for(self._worker, original), original)
                self._lists[name] = [None] * self._count
        old, kept = self._aggregators, {}
        for name, original in aggregators.items():
            known = old.get(name)
            kept[name] = known if known is not None and known[0] is original else (original, self._attached(original))
        self._aggregators = kept
        for name, pair in old.items():
            if kept.get(name) is not pair:
                self._detach(*pair)
        self._restart()

    def _attached(self, original: Any) -> Any:
        """This worker's copy of an aggregator. What the user gave was attached when it was given."""
        copy = copy_for(self._worker, original)
        if copy is not original:
            try:
                attach(copy, self._log, self._worker)
            except Exception:
                warn_once(copy, "%s could not take the log of one more worker", type(copy).__name__)
        return copy

    def _detach(self, original: Any, copy: Any) -> None:
        if copy is not original:
            detach(copy, self._log, self._worker)

    def close(self) -> None:
        """The log is closed: this worker's copies of aggregators are on their own."""
        for pair in self._aggregators.values():
            self._detach(*pair)

    def remove(self, name: str) -> None:
        """Forget one stream with all its values."""
        for table in (self._streams, self._originals, self._lists):
            table.pop(name, None)
        self._forget_plans()

    @property
    def copies(self) -> list[Any]:
        """This worker's consumers and aggregators."""
        return [s.consumer for s in self._streams.values()] + [copy for _, copy in self._aggregators.values()]

    def feed(self, events: list[Event]) -> KeyboardInterrupt | None:
        """Take events, in order. Never raises: what is the user's, Ctrl-C in a consumer, is returned."""
        interrupt = self._feed_full(events) if self._aggregators else self._feed_sparse(events)
        self._bound()
        return interrupt

    def take(self) -> dict[str, list[Any]]:
        """The lists, complete and of equal length; this worker then starts with new, empty ones."""
        self._complete()
        for _, aggregator in self._aggregators.values():
            tell(aggregator, "settle", self._lists)
        self._level()
        if self._max_events is not None:
            self._trim(self._max_events)
        taken = {name: self._lists[name] for name in self._streams}
        count, self._count = self._count, 0
        self._lists = {name: [] for name in self._streams}
        self._restart()
        self._tell_dropped(count)
        return taken

    def _feed_sparse(self, events: list[Event]) -> KeyboardInterrupt | None:
        index, interrupt = self._count, None
        for event, calls in zip(events, self._plans.of_events(events), strict=True):
            if calls:
                interrupt = _call_all(event, calls, index) or interrupt
            index += 1
        for stream in self._streams.values():
            if stream.batch is not None:
                self._lists[stream.name].extend(stream.take_batch(stream.batch, events, len(events)))
        self._count = index
        return interrupt

    @property
    def takes_columns(self) -> bool:
        """Whether `feed_columns` will do: nobody here needs an object for each event."""
        if self._takes_columns is None:
            streams = self._streams.values()
            self._takes_columns = not self._aggregators and all(s.is_picky or s.columns is not None for s in streams)
        return self._takes_columns

    def feed_columns(self, columns: Columns) -> KeyboardInterrupt | None:
        """As `feed`, for events without objects; only while `takes_columns`."""
        first, interrupt = self._count, None
        plans = self._shape_plans
        for record, shape, start in columns.records:
            readers, callers = plans[shape]
            start += first
            for position, of, get, keep, stamp, stream in readers:
                try:
                    value = of(*get(record))
                except BaseException as error:
                    interrupt = stream.isolate(error) or interrupt
                    continue
                if value is not None:  # None is what fills the gaps
                    keep(value)
                    stamp(start + position)
            if callers:
                events = expand_all([record])
                for position, calls in callers:
                    interrupt = _call_all(events[position], calls, start + position) or interrupt
        count = len(columns.times)
        for stream in self._streams.values():
            if stream.columns is not None:
                self._lists[stream.name].extend(stream.take_batch(stream.columns, columns, count))
        self._count = first + count
        self._bound()
        return interrupt

    def _plan_shape(self, shape: Shape) -> tuple[list[Any], list[Any]]:
        """Who reads fields of such events: (position, what to call with them, how to get them, ...); who wants them."""
        readers: list[Any] = []
        callers: list[Any] = []
        for position, head in enumerate(shape.heads):
            calls = []
            for entry in self._plans[head]:
                _, keep, stamp, stream = entry
                get = None if stream.of is None else shape.getter(position, stream.consumer.fields)
                if get is None:
                    calls.append(entry)
                else:
                    readers.append((position, stream.of, get, keep, stamp, stream))
            if calls:
                callers.append((position, calls))
        return readers, callers

    def _feed_full(self, events: list[Event]) -> KeyboardInterrupt | None:
        lists, interrupt = self._lists, None
        for event, calls in zip(events, self._plans.of_events(events), strict=True):
            for name, call, filler, stream in calls:
                try:
                    value = filler.value if call is None else call(event)
                except BaseException as error:
                    value = None
                    interrupt = stream.isolate(error) or interrupt
                try:
                    lists[name].append(value)
                except (KeyError, AttributeError):  # an aggregator took the list away: `_level` pads the new one
                    lists[name] = [value]
            for name, (_, aggregator) in self._aggregators.items():
                try:
                    aggregator(lists)
                except BaseException as error:
                    interrupt = isolate(error, aggregator, f"the aggregator {name!r}") or interrupt
        self._count = max((len(entries) for entries in lists.values() if isinstance(entries, list)), default=0)
        return interrupt

    def _plan(self, category: Any, phase: str) -> list[Any]:
        """What to do for such events.

        Sparse: (function, where its value goes, where its index goes, stream) of those who are called.
        Full: (name, function or None, whose `value` it is else, stream) of all.
        """
        streams = self._streams.values()
        if self._aggregators:
            return [(s.name, s.call if s.wants(category, phase) else None, s.filler, s) for s in streams]
        calls: list[Any] = []
        for s in streams:
            if s.is_picky and s.wants(category, phase):
                calls.append((s.call, s.values.append, s.stamps.append, s))
            elif not s.is_picky and s.batch is None:
                calls.append((s.call, self._lists[s.name].append, None, s))
        return calls

    def _complete(self) -> None:
        """Make the lists whole, from whichever way of keeping is on."""
        if self._aggregators:
            self._level()
            return
        for name, stream in self._streams.items():
            stream.complete(self._lists[name], self._count)

    def _restart(self) -> None:
        """After a change of lists, consumers or aggregators: plans refer to the old ones."""
        self._forget_plans()
        for stream in self._streams.values():
            stream.stamps.clear()
            stream.values.clear()
            if not self._aggregators:
                stream.begin(self._count)

    def _forget_plans(self) -> None:
        self._plans.clear()
        self._shape_plans.clear()
        self._takes_columns = None

    def _level(self) -> None:
        """Pad at the front what an aggregator cut unevenly: the newest entries belong together."""
        own = [entries for name in self._streams if isinstance(entries := self._lists.get(name), list)]
        self._count = max(map(len, own), default=0)
        for name in self._streams:
            entries = self._lists.get(name)
            if not isinstance(entries, list):  # an aggregator meddled
                entries = self._lists[name] = []
            if len(entries) < self._count:
                entries[:0] = [None] * (self._count - len(entries))

    def _bound(self) -> None:
        """Give up the oldest events beyond `max_events`: a quarter of it at once, for it costs a look at each list."""
        most = self._max_events
        if most is not None and self._count > most + most // 4:
            self._trim(most)
            self._log.trimmed()

    def _trim(self, length: int) -> None:
        """Keep the newest `length` entries of every list."""
        excess = self._count - length
        if excess <= 0:
            return
        self._complete()
        self._level()
        for entries in self._lists.values():
            del entries[:excess]
        self._count = length
        self._restart()
        self._tell_dropped(excess)

    def _tell_dropped(self, count: int) -> None:
        if count:
            for _, aggregator in self._aggregators.values():
                tell(aggregator, "dropped", count)


def _call_all(event: Event, calls: list[Any], index: int) -> KeyboardInterrupt | None:
    """Call those who want this event, which is the stream's entry `index`."""
    interrupt = None
    for call, keep, stamp, stream in calls:
        try:
            keep(call(event))
        except BaseException as error:
            keep(None)
            interrupt = stream.isolate(error) or interrupt
            if stream.carries:
                stamp(index)
                stream.begin(index + 1)
                continue
        if stamp is not None:
            stamp(index)
    return interrupt


def blame(frame: types.FrameType) -> str | None:
    """Which consumer or aggregator a draining thread is in, from its innermost frame."""
    inner: types.FrameType | None = frame
    while inner is not None:
        found = inner.f_locals
        if inner.f_code is WorkerStreams._feed_full.__code__ and "aggregator" in found:
            # `name` is the consumer's or the aggregator's, whichever of the two loops it is in.
            return f"the consumer or aggregator {found['name']!r}"
        stream = found.get("stream", found.get("self"))
        if inner.f_code in _LOOPS and isinstance(stream, _Stream):
            return f"the consumer {stream.name!r}"
        inner = inner.f_back
    return None


_LOOPS = (
    WorkerStreams.feed_columns.__code__,
    _call_all.__code__,
    _Stream.take_batch.__code__,
    WorkerStreams._feed_full.__code__,
)
