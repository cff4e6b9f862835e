"""From the values of consumers to gauges: the one mapping that `OTelLog` and `OTelAggregator` share.

A consumer is known by the name of its class (so that `otel_timespan.events` need not be imported) or by
the name that `enable_logging` gives its stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ...errors import InvalidOptionError
from ...timespans.model import Event
from ...timespans.multi import init_similar
from ...timespans.warn import warn_once

__all__ = ["BY_CONSUMER", "BY_STREAM", "ConsumerGauges", "Reading", "Series", "default_consumers"]

_OPEN = "EventSaturation"
MAX_SERIES = 2000
"""Distinct label sets of one gauge; more are left out."""

Point = tuple[tuple[Any, ...], float]
"""Values of an instrument's attributes after the worker's id, and the number."""


class Reading(NamedTuple):
    """How a stream becomes a gauge: the instrument, and the points in one value of the stream.

    `labelled`: points have labels, which may come and go between two collections.
    """

    instrument: str
    points: Callable[[Any], Iterator[Point]]
    labelled: bool = False


def number(value: Any) -> Iterator[Point]:
    """One number; nothing for None and for what is no finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield (), value


def counts(value: Any) -> Iterator[Point]:
    """A mapping or a list of pairs: label → number."""
    pairs = value.items() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for label, count in pairs:
        yield (str(label),), count


def named_counts(value: Any) -> Iterator[Point]:
    """As `counts`, of a record with named fields too (`EventSaturation`)."""
    if value is None or isinstance(value, (Mapping, list, tuple)):
        return counts(value)
    return counts(vars(value))


_READINGS = {
    "BytesAllocd": Reading("timespan.bytes_allocd", number),
    "WorkerSaturation": Reading("timespan.worker.saturation", number),
    "ProcessorSaturation": Reading("timespan.processor.saturation", counts, True),
    "EventSaturation": Reading("timespan.event.saturation", named_counts, True),
    "CPULoadAverages": Reading("timespan.system.load_average", number),
    "MemoryFree": Reading("timespan.system.memory.free", number),
}
_BY_INSTRUMENT = {reading.instrument: name for name, reading in _READINGS.items()}
BY_CONSUMER: Mapping[str, Reading] = _READINGS
"""By the name of the consumer's class."""

BY_STREAM: Mapping[str, Reading] = {
    **_READINGS,
    "bytes": _READINGS["BytesAllocd"],
    "wsat": _READINGS["WorkerSaturation"],
    "psat": _READINGS["ProcessorSaturation"],
    "esat": _READINGS["EventSaturation"],
    "loadavg": _READINGS["CPULoadAverages"],
    "mem": _READINGS["MemoryFree"],
}
"""By the name of the stream: those of `enable_logging`, and the consumers' own."""


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

    def items(self) -> list[tuple[tuple[Any, ...], float]]:
        """(attribute values, number) of each point."""
        return list(self._points.items())


def default_consumers() -> list[Any]:
    """One of each consumer that has a gauge."""
    from ... import events

    return [getattr(events, name)() for name in _READINGS]


class _Plan:
    """What to do for a category on a worker: whom to call, and how many of its timespans are open.

    The latter is what `EventSaturation` counts; called for each event it would cost more than all others.
    """

    __slots__ = ("calls", "open")

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, int], Any, Any]] = []
        self.open = 0


class ConsumerGauges:
    """Consumers that are fed by an `OTelLog`, a copy a worker, and read at each collection.

    Not thread-safe. Raises `InvalidOptionError` for a consumer that has no gauge.
    """

    def __init__(self, consumers: Iterable[Any]) -> None:
        self._consumers: dict[str, Any] = {}
        self._plans: dict[tuple[str, int], _Plan] = {}
        self._twins: dict[tuple[str, int], Any] = {}
        self._values: dict[tuple[str, int], Any] = {}
        self._series: dict[str, Series] = {}
        if not isinstance(consumers, Iterable) or isinstance(consumers, str):
            raise InvalidOptionError(f"consumers={consumers!r}: a list of consumers such as BytesAllocd()")
        for given in consumers:
            consumer = given() if isinstance(given, type) else given
            name = type(consumer).__name__
            if name not in BY_CONSUMER:
                known = ", ".join(sorted(BY_CONSUMER))
                raise InvalidOptionError(f"consumers: {consumer!r} has no gauge; those that have one are {known}")
            self._consumers[name] = consumer

    def feed(self, event: Event) -> None:
        """Hand an event to the consumers that want it."""
        plan = self._plans.get((event.category, event.worker))
        if plan is None:
            plan = self._plan(event.category, event.worker)
        if event.phase == "start":
            plan.open += 1
        elif plan.open:
            plan.open -= 1
        for key, call, see in plan.calls:
            try:
                value = self._values[key] = call(event)
                if see is not None:
                    for label, _ in value:
                        see(event.worker, str(label))
            except Exception:
                warn_once(self._consumers[key[0]], "the consumer %s raised; its gauge stands still", key[0])

    def _plan(self, category: str, worker: int) -> _Plan:
        """Whom to call for a category on a worker; bound methods are twice as fast as callable objects."""
        plan = _Plan()
        if len(self._plans) < MAX_SERIES:
            self._plans[category, worker] = plan
        for name, consumer in self._consumers.items():
            categories = getattr(consumer, "categories", None)
            if name == _OPEN or _samples(consumer) or (categories is not None and category not in categories):
                continue
            key = (name, worker)
            if key not in self._twins:
                self._twins[key] = consumer if worker == 1 else init_similar(consumer)
            series = self._series.setdefault(name, Series())
            see = series.see if name == "ProcessorSaturation" else None
            plan.calls.append((key, self._twins[key].__call__, see))
        return plan

    def read(self, instrument: str, worker: int) -> list[tuple[tuple[Any, ...], float]]:
        """The points of an instrument. A consumer that samples the moment is asked now, for this process (`worker`)."""
        name = _BY_INSTRUMENT.get(instrument, "")
        consumer = self._consumers.get(name)
        if consumer is None:
            return []
        if _samples(consumer):
            try:
                self._values[name, worker] = consumer.sample()
            except Exception:
                warn_once(consumer, "the consumer %s could not sample", name)
        if name == _OPEN:
            return [((of_worker, category), plan.open) for (category, of_worker), plan in self._plans.items()]
        series = self._series.setdefault(name, Series())
        for (of, of_worker), value in self._values.items():
            if of == name:
                series.update(of_worker, BY_CONSUMER[name].points(value))
        return series.items()


def _samples(consumer: Any) -> bool:
    return callable(getattr(consumer, "sample", None))
