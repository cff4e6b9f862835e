"""From the values of consumers to gauges: one mechanism, whether an `OTelLog` or a `MultiEventLog` feeds them.

`READINGS` says which consumers have a gauge and what of their values it shows. `Levels` holds the newest value of each
on each worker, and is read when metrics are collected: an `OTelAggregator` puts into it what stands last in the
streams of its log, an `OTelLog` what its own consumers say (`ConsumerGauges`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple

from ... import forks
from ...errors import InvalidOptionError
from ...events import (
    BytesAllocd,
    CPULoadAverages,
    EventSaturation,
    MemoryFree,
    ProcessorSaturation,
    WorkerSaturation,
)
from ...timespans.calling import Caller, Plans, copy_for, is_sampler, kind_of, same_home
from ...timespans.model import Event
from ...timespans.taskrecords import Steps
from ...timespans.warn import warn_once
from .. import semconv
from ..export.settings import shown
from ..spans.values import plain_text

__all__ = ["BY_STREAM", "READINGS", "ConsumerGauges", "Levels", "Reading", "default_consumers"]

CATEGORIES_OF_STEPS = {
    "submitted": ("add_thunk",),
    "placed": ("schedule", "fire"),
    "queued": ("enqueue",),
    "took": ("take",),
    "finished": ("finish",),
    "begun": ("proc_run_fetch", "move", "compute"),
    "returned": ("storage_safe_scan",),
    "evicted": ("evict",),
}
"""What there would be events of, field by field of `Steps`."""

MAX_SERIES = 2000
"""Distinct label sets of one gauge; more are left out."""

READ_S = 0.05
"""How long reading waits for a consumer that is being called."""

Point = tuple[tuple[Any, ...], float]
"""Values of an instrument's attributes (`Reading.points`: those after the worker's id), and the number."""


class Reading(NamedTuple):
    """How the values of a consumer become a gauge: the instrument, and the points in one value.

    `labelled`: points have labels, which may come and go between two collections.
    """

    instrument: str
    points: Callable[[Any], list[Point]]
    labelled: bool = False


def number(value: Any) -> list[Point]:
    """One number; nothing for None and for what is no finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return [((), value)]
    return []


def counts(value: Any) -> list[Point]:
    """A mapping, a list of pairs, or a record with named fields: label → number; nothing for anything else."""
    if not isinstance(value, (list, tuple)):
        value = (value if isinstance(value, Mapping) else getattr(value, "__dict__", {})).items()
    return [((plain_text(label),), count) for label, count in value]


READINGS: Mapping[type, Reading] = {
    BytesAllocd: Reading(semconv.BYTES_ALLOCD, number),
    WorkerSaturation: Reading(semconv.WORKER_SATURATION, number),
    ProcessorSaturation: Reading(semconv.PROCESSOR_SATURATION, counts, True),
    EventSaturation: Reading(semconv.EVENT_SATURATION, counts, True),
    CPULoadAverages: Reading(semconv.LOAD_AVERAGE, number),
    MemoryFree: Reading(semconv.MEMORY_FREE, number),
}
"""By the type of the consumer."""

BY_STREAM: Mapping[str, Reading] = {
    **{kind.__name__: reading for kind, reading in READINGS.items()},
    "bytes": READINGS[BytesAllocd],
    "wsat": READINGS[WorkerSaturation],
    "psat": READINGS[ProcessorSaturation],
    "esat": READINGS[EventSaturation],
    "loadavg": READINGS[CPULoadAverages],
    "mem": READINGS[MemoryFree],
}
"""By the name of a stream whose consumer is not known: those of `enable_logging`, and the consumers' own."""


def default_consumers() -> list[Any]:
    """One of each consumer that has a gauge."""
    return [kind() for kind in READINGS]


class Series:
    """The present points of one gauge. A label set that was seen stays, with 0, when its consumer drops it.

    Else a collector would go on showing the last value before it was dropped.
    """

    def __init__(self) -> None:
        self._points: dict[tuple[Any, ...], float] = {}

    def update(self, worker: int, points: Iterable[Point]) -> None:
        """Take the points that a worker has now."""
        fresh = {(worker, *labels): value for labels, value in points}
        for key in self._points:
            if key[0] == worker and key not in fresh:
                self._points[key] = 0
        for key, value in fresh.items():
            if key in self._points or len(self._points) < MAX_SERIES:
                self._points[key] = value

    def see(self, *key: Any) -> None:
        """A label set that exists, whether or not a collection finds it above 0."""
        if len(self._points) < MAX_SERIES:
            self._points.setdefault(key, 0)

    def items(self) -> list[Point]:
        """(attribute values, number) of each point."""
        return list(self._points.items())


class Levels:
    """The newest values of consumers, and the points of their gauges. Thread-safe."""

    def __init__(self) -> None:
        self._lock = forks.lock()  # of the series: labels come while somebody collects
        self.start_empty()

    def start_empty(self) -> None:
        """Forget all of them."""
        self._newest: dict[tuple[str, int], tuple[Reading, Any]] = {}
        self._series: dict[str, Series] = {reading.instrument: Series() for reading in READINGS.values()}
        self._seen: set[tuple[Any, ...]] = set()  # (instrument, worker, labels): to ask without the lock

    def take(self, reading: Reading, worker: int, value: Any) -> None:
        """The newest value of a consumer on a worker. None says nothing: what was there stays."""
        if value is None:
            return
        key = (reading.instrument, worker)
        if reading.labelled:
            known = self._newest.get(key)
            if known is None or known[1] is not value:
                self.note(reading, worker, value)
        self._newest[key] = (reading, value)

    def note(self, reading: Reading, worker: int, value: Any) -> None:
        """A value that need not be the newest: its labels exist."""
        for labels, _ in reading.points(value):
            if (reading.instrument, worker, labels) not in self._seen:
                self.see(reading, worker, *labels)

    def see(self, reading: Reading, worker: int, *labels: Any) -> None:
        """Labels that exist on a worker, whether or not a collection finds them above 0."""
        with self._lock:
            self._series[reading.instrument].see(worker, *labels)
            if len(self._seen) < MAX_SERIES:
                self._seen.add((reading.instrument, worker, labels))

    def points(self, instrument: str) -> list[Point]:
        """The present points of an instrument."""
        series = self._series.get(instrument)
        if series is None:
            return []
        with self._lock:
            for (name, worker), (reading, value) in list(self._newest.items()):
                if name == instrument:
                    try:
                        series.update(worker, reading.points(value))
                    except Exception:
                        warn_once(self, "a stream has values that %s can't show", name)
            return series.items()


class ConsumerGauges:
    """Consumers that an `OTelLog` feeds, a copy a worker, into `levels`.

    Thread-safe; while a consumer takes more than `READ_S`, nothing can be read. Raises `InvalidOptionError` for a
    consumer that has no gauge.
    """

    def __init__(self, consumers: Iterable[Any]) -> None:
        self.levels = Levels()
        self._consumers: list[tuple[Any, Reading | None]] = []
        self._workers: dict[int, _WorkerConsumers] = {}
        self._in_use = forks.rlock()  # not the log's: a consumer that blocks must not hold up its account
        if not isinstance(consumers, Iterable) or isinstance(consumers, str):
            raise InvalidOptionError(f"consumers={shown(consumers)}: a list of consumers such as BytesAllocd()")
        for given in consumers:
            consumer = given() if isinstance(given, type) else given
            reading = READINGS.get(type(consumer))
            if reading is None:
                known = ", ".join(sorted(kind.__name__ for kind in READINGS))
                raise InvalidOptionError(f"consumers: {shown(consumer)} has no gauge; those that have one are {known}")
            self._consumers.append((consumer, reading))

    def start_empty(self) -> None:
        """In a forked child: consumers begin anew, as those of one more worker do; what they said is forgotten."""
        self.levels.start_empty()
        self._workers.clear()
        self._consumers = [(copy_for(0, consumer), reading) for consumer, reading in self._consumers]

    def listen(self, consumer: Any) -> None:
        """Feed one more consumer, which has no gauge. To be called before the first event."""
        self._consumers.append((consumer, None))

    def feed(self, events: list[Event]) -> KeyboardInterrupt | None:
        """Hand events to the consumers that want them. Never raises: Ctrl-C in a consumer is returned."""
        interrupt = None
        workers = set(map(_worker_of, events))
        with self._in_use:
            for worker in workers:
                some = events if len(workers) == 1 else [event for event in events if event.worker == worker]
                interrupt = self._of_worker(worker).feed(some) or interrupt
        return interrupt

    def take_steps(self, steps: Steps) -> None:
        """Records of which no events were made. Never raises."""
        with self._in_use:
            self._of_worker(steps.worker).take_steps(steps)

    def _of_worker(self, worker: int) -> _WorkerConsumers:
        found = self._workers.get(worker)
        if found is None:
            found = self._workers[worker] = _WorkerConsumers(worker, self._consumers, self.levels)
        return found

    def read(self, instrument: str, worker: int) -> list[Point]:
        """The points of an instrument. A consumer that samples the moment is asked now, for this process (`worker`)."""
        if not self._in_use.acquire(timeout=READ_S):
            return []
        try:
            return self._read(instrument, worker)
        finally:
            self._in_use.release()

    def _read(self, instrument: str, worker: int) -> list[Point]:
        for of_worker in self._workers.values():
            of_worker.settle(instrument)
        for consumer, reading in self._consumers:
            if reading is not None and reading.instrument == instrument and is_sampler(consumer):
                try:
                    self.levels.take(reading, worker, consumer.sample())
                except Exception:
                    warn_once(consumer, "the consumer %s could not sample", type(consumer).__name__)
        return self.levels.points(instrument)


_worker_of = attrgetter("worker")


class _WorkerConsumers:
    """One worker's copies, but for those that sample the moment: these are asked when somebody looks.

    Who looks wants the newest value only. A consumer that carries one has it as its `value`, then; all others
    have `last`.
    """

    def __init__(self, worker: int, consumers: Iterable[tuple[Any, Reading | None]], levels: Levels) -> None:
        self._worker, self._levels = worker, levels
        self._called: list[tuple[Caller, Reading | None]] = []
        self._carrying: dict[str, tuple[Any, Reading]] = {}  # by instrument: those that were called already
        self._whole: list[tuple[Caller, Any, Reading]] = []
        self._told: set[str] = set()
        self._plans = Plans(self._plan)
        for original, reading in consumers:
            consumer = copy_for(worker, original)
            if is_sampler(consumer):
                continue
            caller = Caller(type(original).__name__, consumer, original)
            if reading is None or caller.is_picky:
                self._called.append((caller, reading))
            elif same_home(consumer, "last", "__call__"):
                self._whole.append((caller, consumer.last, reading._replace(labelled=False)))

    def _plan(self, kind: tuple[Any, str]) -> list[tuple[Callable[[Event], Any], Reading | None, Caller]]:
        """Whom to call for such events, with the reading where labels come and go."""
        for _, _, reading in self._whole:
            # Of `EventSaturation`: its labels are the categories, and a value says nothing of those that closed.
            self._levels.see(reading, self._worker, plain_text(kind[0]))
        calls: list[tuple[Callable[[Event], Any], Reading | None, Caller]] = []
        for caller, of in self._called:
            if caller.wants(*kind):
                if of is not None:
                    self._carrying[of.instrument] = (caller.consumer, of)
                calls.append((caller.call, of if of is not None and of.labelled else None, caller))
        return calls

    def feed(self, events: list[Event]) -> KeyboardInterrupt | None:
        interrupt, note, worker = None, self._levels.note, self._worker
        kinds = list(map(kind_of, events))
        planned = list(map(self._plans.__getitem__, kinds))
        for event, calls in compress(zip(events, planned, strict=True), planned):
            for call, reading, caller in calls:
                try:
                    value = call(event)
                    if reading is not None:
                        note(reading, worker, value)
                except BaseException as error:
                    interrupt = caller.isolate(error) or interrupt
        for caller, last, reading in self._whole:
            try:
                self._levels.take(reading, worker, last(kinds))
            except BaseException as error:
                interrupt = caller.isolate(error) or interrupt
        return interrupt

    def take_steps(self, steps: Steps) -> None:
        """As `ConsumerGauges.take_steps`."""
        given = [field for field in CATEGORIES_OF_STEPS if getattr(steps, field)]
        if not given and not steps.made:
            return
        for field in given:
            if field not in self._told:  # make known what the events would have
                self._told.add(field)
                for category in CATEGORIES_OF_STEPS[field]:
                    self._plans[category, "start"], self._plans[category, "finish"]
        for caller, reading in self._called:
            try:
                caller.consumer.take_steps(steps)
                if reading is not None and reading.labelled:
                    self._levels.note(reading, self._worker, [(one, 1) for one in steps.processors.values()])
            except Exception as error:
                caller.isolate(error)
        for caller, last, reading in self._whole:
            try:
                caller.consumer.take_steps(steps)
                self._levels.take(reading, self._worker, last(()))
            except Exception as error:
                caller.isolate(error)

    def settle(self, instrument: str) -> None:
        """Somebody is about to look."""
        if instrument in self._carrying:
            consumer, reading = self._carrying[instrument]
            self._levels.take(reading, self._worker, consumer.value)
