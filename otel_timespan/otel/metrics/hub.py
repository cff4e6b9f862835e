"""`MeterHub`: the instruments of one meter provider, for however many logs report to it.

Two logs at one provider add up, and nothing is made twice. Instruments are observable ones, which ask their sources
when metrics are collected: a count costs 0.1 µs, `Counter.add` 10. Only histograms are recorded one by one, because
the SDK has no other way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from ... import forks
from ...timespans.warn import warn_once
from .. import semconv
from ..export.sdklocks import renew_locks
from ..setup import instrumentation_scope

__all__ = ["PREPARE_S", "MeterHub", "MetricSource", "Points", "hub_for"]

PREPARE_S = 1.0
"""How long a collection may wait for events to be drained first. Not for ever: the drain may run user code
that makes instruments, for which it would wait for the collection."""

Points = Iterable[tuple[tuple[Any, ...], float]]


class MetricSource(Protocol):
    """What reports to a hub. `observe` is called by the collecting thread, must not raise nor wait long.

    While a log reports, sources that are none are not asked: one owner an instrument.
    """

    is_log: bool

    def prepare(self) -> None:
        """A collection begins: bring the numbers up to date."""

    def observe(self, instrument: str) -> Points:
        """The present points of one instrument."""


class MeterHub:
    """All instruments on one meter provider. Thread-safe. A source that left keeps its counters."""

    def __init__(self, provider: MeterProvider) -> None:
        scope = instrumentation_scope()
        meter = provider.get_meter(scope.name, scope.version, scope.schema_url)
        self._lock = forks.lock()
        self._sources: list[MetricSource] = []
        self._left: dict[str, dict[tuple[Any, ...], float]] = {}
        self._had_logs = self._ready = False
        self._histograms: dict[str, Any] = {}
        for item in semconv.INSTRUMENTS:
            self._make(meter, item)
        self._ready = True

    def _make(self, meter: Any, item: semconv.Instrument) -> None:
        if item.kind == "histogram":
            bounds = list(semconv.BOUNDARIES_S)
            try:
                made = meter.create_histogram(
                    item.name, item.unit, item.description, explicit_bucket_boundaries_advisory=bounds
                )
            except TypeError:  # an API older than the advice
                made = meter.create_histogram(item.name, item.unit, item.description)
            self._histograms[item.name] = made
            return
        makers = {
            "counter": meter.create_observable_counter,
            "updown": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }
        makers[item.kind](item.name, [self._callback(item)], item.unit, item.description)

    def _callback(self, item: semconv.Instrument) -> Callable[[CallbackOptions], list[Observation]]:
        first = item.name == _FIRST

        def observe(options: CallbackOptions) -> list[Observation]:
            if not self._ready:
                return []
            try:
                if first:
                    self.prepare()
                points = self._points(item)
            except Exception:
                warn_once(item, "the instrument %s could not be observed", item.name)
                return []
            return [Observation(value, dict(zip(item.attributes, key))) for key, value in points.items()]  # noqa: B905

        return observe

    def _points(self, item: semconv.Instrument) -> dict[tuple[Any, ...], float]:
        with self._lock:
            logs = [source for source in self._sources if source.is_log]
            sources, left = logs or list(self._sources), self._left.get(item.name, {})
        points: dict[tuple[Any, ...], float] = {}
        if self._had_logs:
            points = {(zero,): 0 for zero in item.zero or ()}
            if item.zero == () and item.attributes in ((), (semconv.WORKER_ID,)):
                points[(1,) if item.attributes else ()] = 0
        for key, value in left.items():
            points[key] = points.get(key, 0) + value
        for source in sources:
            for key, value in source.observe(item.name):
                points[key] = value if item.name in _SYSTEM else points.get(key, 0) + value
        return points

    def prepare(self) -> None:
        """Bring every source up to date."""
        with self._lock:
            sources = list(self._sources)
        for source in sources:
            source.prepare()

    def start_empty(self) -> None:
        """In a forked child: what logs counted that are closed was the parent's."""
        self._left.clear()

    def histogram(self, name: str) -> Any:
        """The histogram of that name."""
        return self._histograms[name]

    def add(self, source: MetricSource) -> None:
        """One more source."""
        with self._lock:
            self._sources.append(source)
            self._had_logs = self._had_logs or source.is_log

    def remove(self, source: MetricSource) -> None:
        """A source that leaves: its counters stay as they are, its gauges end."""
        final = {i.name: list(source.observe(i.name)) for i in semconv.INSTRUMENTS if i.kind == "counter"}
        with self._lock:
            if source not in self._sources:
                return
            self._sources.remove(source)
            for name, points in final.items():
                kept = self._left.setdefault(name, {})
                for key, value in points:
                    kept[key] = kept.get(key, 0) + value


_SYSTEM = frozenset((semconv.LOAD_AVERAGE, semconv.MEMORY_FREE))
_FIRST = next(item.name for item in semconv.INSTRUMENTS if item.kind != "histogram")

_hubs: weakref.WeakKeyDictionary[Any, MeterHub] = weakref.WeakKeyDictionary()
_hubs_lock = forks.lock()


@forks.in_child("_hubs")
def _in_child() -> None:
    """Before the SDK starts its threads anew: its hooks were registered later."""
    renew_locks(*_hubs)
    for hub in list(_hubs.values()):
        hub.start_empty()


def hub_for(provider: MeterProvider) -> MeterHub:
    """The hub of a provider; makes its instruments the first time."""
    with _hubs_lock:
        hub = _hubs.get(provider)
        if hub is None:
            hub = _hubs[provider] = MeterHub(provider)
        return hub
