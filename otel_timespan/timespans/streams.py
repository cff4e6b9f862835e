"""The streams of one worker in a `MultiEventLog`: who is called for an event, and how values are kept.

Three ways of keeping, with one result. *Segments*: a `lazy` consumer is told when somebody reads what it says; until
then the records are kept (segments.py). *Sparse*: any other is called only for what it wants, and its values wait with
the index of their event until somebody looks. *Full* (an aggregator that is not told batch by batch looks at the lists
after each event): every list grows by one entry an event.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter
from typing import Any

from .calling import Plans, attach, copy_for, detach, isolate, same_home, tell
from .fetched import LoggedList
from .journal import expand_all
from .logstream import LogStream
from .model import Event
from .reading import Parts, Reader, StreamView
from .rows import Shape
from .segments import Batch, LogSegment, added, blank_segment, segment_of_events
from .warn import warn_once

__all__ = ["SLICE", "WorkerStreams", "blame"]


class WorkerStreams:
    """The streams, consumers and aggregators of one worker of `log`. Not thread-safe: the log's lock guards it."""

    def __init__(self, log: Any, worker: int, max_events: int | None) -> None:
        self._log, self._worker, self._max_events = log, worker, max_events
        self._streams: dict[str, LogStream] = {}
        self._originals: dict[str, Any] = {}  # name -> what the user gave; same keys as _streams
        self._aggregators: dict[str, tuple[Any, Any]] = {}  # name -> (what the user gave, our copy)
        self._lists: dict[str, list[Any]] = {}  # of all streams without segments, unless an aggregator meddled
        self._segments: list[LogSegment] | None = []  # of lazy streams; None while these have lists too
        self._skip = 0  # events of the first segment that are no entries any more
        self._sealed = 0  # segments from before so many events are not joined with later ones
        self._before = 0  # events that came before the first entry
        self._count = 0  # entries so far; while sparse, lists may be shorter
        self._full = False  # whether aggregators look at the lists after each event
        self._plans = Plans(lambda head: self._plan(*head))  # refers to the lists in _lists
        self._shape_plans = Plans(self._plan_shape)  # refers to those plans
        self._known = Plans(self._knows)
        self._lazy_plans = Plans(lambda head: [s for s in self._streams.values() if s.lazy and s.wants_some(*head)])

    def configure(self, consumers: dict[str, Any], aggregators: dict[str, Any]) -> None:
        """Take over the log's consumers and aggregators, keeping the copies of those that stayed."""
        self._complete()
        for name in [n for n in self._streams if consumers.get(n) is not self._originals[n]]:
            self.remove(name)
        self._full = not all(same_home(one, "batch", "__call__") for one in aggregators.values())
        if self._full:
            self._unfold()
        for name, original in consumers.items():
            if name not in self._streams:
                self._originals[name] = original
                copy = copy_for(self._worker, original)
                stream = self._streams[name] = LogStream(name, copy, original, self._before + self._count)
                if not self._in_segments(stream):
                    self._lists[name] = [None] * self._count
        self._fill_segments()
        old, kept = self._aggregators, {}
        for name, original in aggregators.items():
            known = old.get(name)
            kept[name] = known if known is not None and known[0] is original else (original, self._attached(original))
        self._aggregators = kept
        for name, pair in old.items():
            if kept.get(name) is not pair:
                self._detach(*pair)
        self._restart()

    def _fill_segments(self) -> None:
        """Of events that came while no stream was read from segments there are none."""
        if self._segments is not None and any(map(self._in_segments, self._streams.values())):
            missing = self._count + self._skip - sum(segment.count for segment in self._segments)
            if missing > 0:
                self._segments.append(blank_segment(self._worker, missing))

    def _in_segments(self, stream: LogStream) -> bool:
        """Whether the stream has no list, but is read from the segments."""
        return stream.lazy and self._segments is not None

    def _unfold(self) -> None:
        """Lists for all, until the next fetch: an aggregator looks at them."""
        if self._segments is not None:
            parts = Parts(self._segments, self._skip)
            self._lists = {
                name: list(StreamView(stream.reader, parts)) if stream.lazy and stream.reader else self._lists[name]
                for name, stream in self._streams.items()
            }
            self._segments, self._skip = None, 0

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

    def take(self) -> dict[str, list[Any]]:
        """The lists, complete and of equal length; this worker then starts with new, empty ones."""
        if self._full:
            self._complete()
            for _, aggregator in self._aggregators.values():
                tell(aggregator, "settle", self._lists)
            self._level()
        else:
            self._aggregate(0)
            self._complete()
        if self._max_events is not None:
            self._trim(self._max_events)
        parts = Parts(self._segments or (), self._skip)
        taken = {
            name: LoggedList(StreamView(stream.reader, parts))
            if self._in_segments(stream) and stream.reader is not None and self._count
            else self._lists.get(name, [])
            for name, stream in self._streams.items()
        }
        count = self._count
        segments: list[LogSegment] | None = None if self._full else []
        lists: dict[str, Any] = {n: [] for n, s in self._streams.items() if not s.lazy or segments is None}
        self._forget_plans()
        # No call in between: a signal finds all of it done, or none.
        self._count, self._before, self._skip = 0, self._before + count, 0
        self._segments, self._lists = segments, lists
        self._restart()
        self._tell_dropped(count)
        return taken

    # ---- events come in ------------------------------------------------------------------------

    def feed(self, events: list[Event]) -> KeyboardInterrupt | None:
        """Take events, in order. Never raises: what is the user's, Ctrl-C in a consumer, is returned."""
        if self._full:
            interrupt = self._feed_full(events)
        else:
            interrupt = self._call(events, self._count)
            segment = None
            if any(stream.reader is not None for stream in self._streams.values()):
                segment = segment_of_events(self._worker, events, self._before + self._count)
            interrupt = self._keep(segment, events, len(events)) or interrupt
            interrupt = self._aggregate(len(events)) or interrupt
        self._bound()
        return interrupt

    def broken_off(self) -> None:
        """A signal ended `feed` half way. What only some streams have of its events goes: entries belong together."""
        self._forget_plans()
        if self._full:
            self._level()
            return
        if self._segments is not None:  # the last thing that is told
            self._count = max(self._count, sum(segment.count for segment in self._segments) - self._skip)
        for entries in self._lists.values():
            del entries[self._count :]
        for stream in self._streams.values():
            stream.forget_from(self._count)

    @property
    def kept(self) -> int:
        """How many entries there ever were."""
        return self._before + self._count

    @property
    def takes_records(self) -> bool:
        """Whether `feed_records` spares anything: not all consumers here need an object for each event."""
        streams = self._streams.values()
        told = any(s.reader is not None for s in streams) or all(s.is_picky for s in streams)
        return told and not self._full

    def feed_records(self, records: list[Any], elsewhere: _Feed) -> KeyboardInterrupt | None:
        """As `feed`, for records of all workers; `elsewhere(worker, events)` takes those of others.

        Only while `takes_records`.
        """
        segment, expanded = Batch(records).whole(self._known.__getitem__, self._before + self._count)
        if all(stream.is_picky or stream.reader is not None for stream in self._streams.values()):
            interrupt = self._call_some(records, segment, expanded, elsewhere)
        else:
            interrupt = self._call_all_of(records, elsewhere)
        odd = [event for events in expanded if events for event in events if event.worker == self._worker]
        interrupt = self._keep(segment, odd, segment.count) or interrupt
        interrupt = self._aggregate(segment.count) or interrupt
        self._bound()
        return interrupt

    @property
    def calls_nobody(self) -> bool:
        """Whether all consumers here are told by columns: then each worker can be given its part of some records."""
        return not self._full and all(stream.reader is not None for stream in self._streams.values())

    def feed_batch(self, batch: Batch) -> KeyboardInterrupt | None:
        """As `feed`, of all events of this worker among these records."""
        if not self.calls_nobody:  # a consumer could not be copied for this worker
            return self.feed(batch.events(self._worker))
        segment, odd = batch.segment(self._worker, self._known.__getitem__, self._before + self._count)
        interrupt = self._keep(segment, odd, segment.count)
        interrupt = self._aggregate(segment.count) or interrupt
        self._bound()
        return interrupt

    def _knows(self, shape: Shape) -> bool:
        return all(stream.reader.knows(shape) for stream in self._streams.values() if stream.reader is not None)

    def _keep(self, segment: LogSegment | None, odd: list[Event], count: int) -> KeyboardInterrupt | None:
        """What consumers say that are told by columns. `odd`: the events that are not in them."""
        interrupts: list[KeyboardInterrupt] = []
        told = [stream for stream in self._streams.values() if stream.reader is not None]
        if segment is not None and count:
            if segment.odd is not None:
                segment.odd.values = self._said(odd, interrupts)
            for stream in told:
                if stream.reader is not None and not self._in_segments(stream):
                    self._lists[stream.name].extend(stream.reader.rows(segment, interrupts=interrupts))
            if self._segments is not None:
                segment.pack(with_ids=any([stream.lazy and stream.reads_ids for stream in told]))
                added(self._segments, segment, self._sealed)
        self._count += count
        return interrupts[0] if interrupts else None

    def _said(self, events: list[Event], interrupts: list[KeyboardInterrupt]) -> dict[str, dict[int, Any]]:
        """What lazy consumers say of events that are not in columns, unless that is None: {stream: {number: value}}."""
        said: dict[str, dict[int, Any]] = {}
        for number, (event, streams) in enumerate(zip(events, self._lazy_plans.of_events(events), strict=True)):
            for stream in streams:
                try:
                    value = stream.call(event)
                except BaseException as error:
                    interrupts += filter(None, [stream.isolate(error)])
                    continue
                if value is not None:
                    said.setdefault(stream.name, {})[number] = value
        return said

    def _aggregate(self, new: int) -> KeyboardInterrupt | None:
        """Have aggregators look at the streams, of which the last `new` entries are new; 0 before they are fetched."""
        interrupt = None
        for name, (_, aggregator) in self._aggregators.items():
            try:
                gone = aggregator.batch(self.so_far(), new)
            except BaseException as error:
                interrupt = isolate(error, aggregator, f"the aggregator {name!r}") or interrupt
                continue
            if gone:
                self._cut(gone)
        return interrupt

    def so_far(self) -> dict[str, list[Any]]:
        """The streams, to be looked at."""
        self._complete()
        self._carry_on()
        parts = Parts(self._segments or (), self._skip)
        return {
            name: LoggedList(StreamView(stream.reader, parts))
            if self._in_segments(stream) and stream.reader is not None
            else self._lists[name]
            for name, stream in self._streams.items()
        }

    # ---- consumers are called ------------------------------------------------------------------

    def _call(self, events: list[Event], index: int) -> KeyboardInterrupt | None:
        """Call those that are not told by columns, for events of which the first is entry `index`."""
        interrupt = None
        for event, calls in zip(events, self._plans.of_events(events), strict=True):
            if calls:
                interrupt = _call_all(event, calls, index) or interrupt
            index += 1
        for stream in self._streams.values():
            if stream.batch is not None and stream.reader is None:
                self._lists[stream.name].extend(stream.take_batch(events))
        return interrupt

    def _call_some(
        self, records: list[Any], segment: LogSegment, expanded: list[Any], elsewhere: _Feed
    ) -> KeyboardInterrupt | None:
        """Call those that want some events only: the others are not made."""
        index, interrupt = self._count, None
        if not expanded and all(stream.reader is not None for stream in self._streams.values()):
            return None
        for record, shape, events in segment.steps(records, expanded):
            if shape is None:
                index, broken_off = self._call_by_worker(events, index, elsewhere)
                interrupt = broken_off or interrupt
                continue
            readers, callers = self._shape_plans[shape]
            for position, of, get, keep, stamp, stream in readers:
                try:
                    value = of(*get(record))
                except BaseException as error:
                    interrupt = stream.isolate(error) or interrupt
                    continue
                if value is not None:  # None is what fills the gaps
                    keep(value)
                    stamp(index + position)
            if callers:
                own = expand_all([record])
                for position, calls in callers:
                    interrupt = _call_all(own[position], calls, index + position) or interrupt
            index += shape.length
        return interrupt

    def _call_all_of(self, records: list[Any], elsewhere: _Feed) -> KeyboardInterrupt | None:
        """Call those that want all events."""
        index, interrupt = self._count, None
        for start in range(0, len(records), SLICE):
            index, broken_off = self._call_by_worker(expand_all(records[start : start + SLICE]), index, elsewhere)
            interrupt = broken_off or interrupt
        return interrupt

    def _call_by_worker(
        self, events: list[Event], index: int, elsewhere: _Feed
    ) -> tuple[int, KeyboardInterrupt | None]:
        """`_call` for those of this worker, the first of which is entry `index`; the entry that comes next."""
        interrupt = None
        for worker, group in groupby(events, _worker_of):
            some = list(group)
            if worker == self._worker:
                interrupt = self._call(some, index) or interrupt
                index += len(some)
            else:
                interrupt = elsewhere(worker, some) or interrupt
        return index, interrupt

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
        if self._full:
            return [(s.name, s.call if s.wants(category, phase) else None, s.filler, s) for s in streams]
        calls: list[Any] = []
        for s in streams:
            if s.reader is not None:
                continue
            if s.is_picky and s.wants(category, phase):
                calls.append((s.call, s.values.append, s.stamps.append, s))
            elif not s.is_picky and s.batch is None:
                calls.append((s.call, self._lists[s.name].append, None, s))
        return calls

    def _complete(self) -> None:
        """Make the lists whole, from whichever way of keeping is on."""
        if self._full:
            self._level()
            return
        for name, stream in self._streams.items():
            if not self._in_segments(stream):
                stream.complete(self._lists[name], self._count)

    def _restart(self) -> None:
        """After a change of lists, consumers or aggregators: plans refer to the old ones."""
        self._forget_plans()
        self._sealed = self._before + self._count
        self._carry_on()

    def _carry_on(self) -> None:
        """Nothing waits: what consumers carry on begins here."""
        for stream in self._streams.values():
            stream.restart(self._count)

    def _forget_plans(self) -> None:
        self._plans.clear()
        self._shape_plans.clear()
        self._known.clear()
        self._lazy_plans.clear()

    def _level(self) -> None:
        """Pad at the front what an aggregator cut unevenly: the newest entries belong together."""
        if not self._full:
            return
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
        if excess > 0:
            self._cut(excess)
            self._tell_dropped(excess)

    def _cut(self, excess: int) -> None:
        """Give up the first entries of every list."""
        self._complete()
        for entries in self._lists.values():
            del entries[:excess]
        if self._segments is not None:
            self._skip += excess
            gone = 0
            while gone < len(self._segments) and self._segments[gone].count <= self._skip:
                self._skip -= self._segments[gone].count
                gone += 1
            del self._segments[:gone]
        self._count -= excess
        self._before += excess
        self._carry_on()

    def _tell_dropped(self, count: int) -> None:
        if count:
            for _, aggregator in self._aggregators.values():
                tell(aggregator, "dropped", count)


def _call_all(event: Event, calls: list[Any], index: int) -> KeyboardInterrupt | None:
    """Call those who want this event, which is the stream's entry `index`."""
    interrupt = None
    for call, keep, stamp, stream in calls:
        value = None
        try:
            value = call(event)
        except BaseException as error:
            interrupt = stream.isolate(error) or interrupt
            if stream.carries:
                keep(None)
                stamp(index)
                stream.begin(index + 1)
                continue
        keep(value)
        if stamp is not None:
            stamp(index)
    return interrupt


def blame(frame: types.FrameType) -> str | None:
    """Which consumer or aggregator a draining thread is in, from its innermost frame."""
    inner: types.FrameType | None = frame
    while inner is not None:
        found = inner.f_locals
        if inner.f_code in _WITH_AGGREGATORS and "aggregator" in found:
            # `name` is the consumer's or the aggregator's, whichever of the two loops it is in.
            return f"the consumer or aggregator {found['name']!r}"
        stream = found.get("stream", found.get("self"))
        if isinstance(stream, Reader):
            stream = stream.caller
        if inner.f_code in _LOOPS and isinstance(stream, LogStream):
            return f"the consumer {stream.name!r}"
        inner = inner.f_back
    return None


_Feed = Callable[[int, "list[Event]"], "KeyboardInterrupt | None"]

_worker_of = attrgetter("worker")

SLICE = 16
"""Records expanded at once. Small, so that events die young: with 1,000 the garbage collector took a third more."""

_WITH_AGGREGATORS = (WorkerStreams._feed_full.__code__, WorkerStreams._aggregate.__code__)

_LOOPS = (
    Reader.rows.__code__,
    Reader.said.__code__,
    _call_all.__code__,
    WorkerStreams._call_some.__code__,
    WorkerStreams._said.__code__,
    LogStream.take_batch.__code__,
    WorkerStreams._feed_full.__code__,
)
