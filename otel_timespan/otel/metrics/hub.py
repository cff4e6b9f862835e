"""Metrics of the log: counts in plain integers that observable instruments read, and histograms.

A `MeterHub` owns the instruments of one meter provider, for however many logs report to it: two logs at
one provider add up, and nothing is made twice (ruling 39). Counts cost 0.1 µs, `Counter.add` 10; only
histograms are recorded one by one, because the SDK has no other way, on the thread that drains the log.

Sources: design/otel-model.md §2; rulings 27, 39, 40.
"""

from __future__ import annotations

import bisect
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from ... import __version__
from ...timespans.model import Event
from ...timespans.warn import warn_once
from .. import semconv
from ..spans import failures
from ..spans.bodyspan import span_context
from ..spans.mapping import SpanMapper
from ..spans.runs import Run
from ..spans.tasks import OpenTask, code_attributes, function_name
from .gauges import ConsumerGauges
from .recording import HistogramRecorder

__all__ = ["LogMetrics", "MeterHub", "MetricSource", "hub_for"]

PREPARE_S = 1.0
"""How long a collection may wait for events to be drained first. Not for ever: the drain may run user code
that makes instruments, for which it would wait for the collection."""

EXEMPLARS_S = 0.1

Points = Iterable[tuple[tuple[Any, ...], float]]


class MetricSource(Protocol):
    """What reports to a hub. `observe` is called by the collecting thread, must not raise nor wait long.

    While a log reports, sources that are none are not asked: one owner an instrument (ruling 39).
    """

    is_log: bool

    def prepare(self) -> None:
        """A collection begins: bring the numbers up to date."""

    def observe(self, instrument: str) -> Points:
        """The present points of one instrument."""


class MeterHub:
    """All instruments on one meter provider. Thread-safe. A source that left keeps its counters."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(semconv.SCOPE_NAME, __version__, semconv.SCHEMA_URL)
        self._lock = threading.Lock()
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


_SYSTEM = frozenset(("timespan.system.load_average", "timespan.system.memory.free"))
_FIRST = next(item.name for item in semconv.INSTRUMENTS if item.kind != "histogram")

_hubs: weakref.WeakKeyDictionary[Any, MeterHub] = weakref.WeakKeyDictionary()
_hubs_lock = threading.Lock()


def hub_for(provider: MeterProvider) -> MeterHub:
    """The hub of a provider; makes its instruments the first time."""
    with _hubs_lock:
        hub = _hubs.get(provider)
        if hub is None:
            hub = _hubs[provider] = MeterHub(provider)
        return hub


class LogMetrics:
    """The metrics of one `OTelLog`: an `Observer` of its mapper and a `MetricSource` of its hub.

    `prepare` drains the log; `account` gives its stats. Fed by one thread at a time, under the log's lock.
    """

    is_log = True

    def __init__(
        self,
        hub: MeterHub,
        gauges: ConsumerGauges,
        *,
        clock: Callable[[], int],
        lock: Any,
        prepare: Callable[[], object],
        account: Callable[[], Mapping[str, Any]],
        worker: Callable[[], int],
    ) -> None:
        self._hub, self._gauges = hub, gauges
        self._clock, self._lock, self._worker = clock, lock, worker
        self._prepare, self._account = prepare, account
        self.mapper: SpanMapper | None = None
        self.events = 0
        self._counts: dict[str, dict[tuple[Any, ...], float]] = {
            item.name: {} for item in semconv.INSTRUMENTS if item.kind == "counter"
        }
        self._functions: dict[str, str] = {}
        self._error_types: set[str] = set()
        self._record = {
            item.name: HistogramRecorder(hub.histogram(item.name))
            for item in semconv.INSTRUMENTS
            if item.kind == "histogram"
        }
        self._exemplars: set[Any] = set()
        self._renewed_s = 0.0
        self._labels: dict[tuple[Any, ...], dict[str, Any]] = {}

    # ---- fed by the log ------------------------------------------------------------------------

    def begin_batch(self) -> None:
        """A slice of events begins. Every 100 ms each bucket may get one exemplar again: only the last one stays."""
        now = time.monotonic()
        if now - self._renewed_s >= EXEMPLARS_S:
            self._renewed_s = now
            self._exemplars.clear()

    def feed(self, event: Event) -> None:
        """Any event, after the mapper had it."""
        self.events += 1
        self._gauges.feed(event)
        if event.phase == "finish":
            name = _COUNTED.get(event.category)
            if name is not None and _happened(event):
                self._count(name, (event.worker,), 1)

    def task_opened(self, task: OpenTask) -> None:
        """A new task: its function's series begins at 0."""
        name = self._function(task)
        self._counts["timespan.task.count"].setdefault(("success", name), 0)

    def task_done(self, task: OpenTask, result: str, bounds: tuple[int, ...]) -> None:
        """A task has its result."""
        name = self._function(task)
        key: tuple[Any, ...] = (result, name)
        if result == "failure" and failures.is_failure(task.result):
            key = (result, name, self._error_type(task))
        self._count("timespan.task.count", key, 1)
        self._observe("timespan.task.duration", (name, result), bounds[6] - bounds[0], task, task.span_id)
        reached = 1 + sum(1 for b in (task.ready, task.placed, task.taken) if b)
        for i, phase in enumerate(_WAITS[: max(1, reached)]):
            self._observe("timespan.task.wait", (phase,), bounds[i + 1] - bounds[i], task, task.span_id)

    def move_done(self, task: OpenTask, start_ns: int, end_ns: int, timeline: Any, nbytes: int | None) -> None:
        """An argument was moved."""
        key = (timeline.source, timeline.destination)
        self._observe("timespan.move.duration", key, end_ns - start_ns, task, task.span_id)
        if nbytes:
            self._count("timespan.move.io", key, nbytes)

    def task_retried(self, task: OpenTask) -> None:
        """An attempt was replaced."""
        self._count("timespan.retry.count", (task.worker,), 1)

    def run_done(self, run: Run) -> None:
        """A run is over."""
        end_ns = max(run.latest_ns, run.left_ns or 0)
        key = (run.result,)
        self._observe("timespan.dag.duration", key, end_ns - run.start_ns, run, run.root.span_id)
        length = run.path.length_ns if run.path is not None else 0
        self._observe("timespan.dag.critical_path", key, length, run, run.root.span_id)

    def _count(self, name: str, key: tuple[Any, ...], amount: float) -> None:
        counts = self._counts[name]
        counts[key] = counts.get(key, 0) + amount

    def _function(self, task: OpenTask) -> str:
        name = code_attributes(task.f).get(semconv.FUNCTION_NAME) or function_name(task.f)
        found = self._functions.get(name)
        if found is None:
            found = name if len(self._functions) < semconv.MAX_FUNCTION_NAMES else semconv.OTHER
            if found is name:
                self._functions[name] = name
        return found

    def _error_type(self, task: OpenTask) -> str:
        name = failures.error_type(task.result)
        if name not in self._error_types:
            if len(self._error_types) >= semconv.MAX_ERROR_TYPES:
                return semconv.OTHER
            self._error_types.add(name)
        return name

    def _observe(self, name: str, key: tuple[Any, ...], ns: int, owner: Any, own_id: int) -> None:
        seconds = ns / 1e9
        parent = owner.parent
        context = None
        if parent.flags & 1:
            bucket = (name, key, bisect.bisect_left(semconv.BOUNDARIES_S, seconds))
            if bucket not in self._exemplars:
                self._exemplars.add(bucket)
                of_span = span_context(parent.trace_id, own_id, parent.flags, parent.trace_state)
                context = set_span_in_context(NonRecordingSpan(of_span), Context())
        labels = self._labels.get((name, key))
        if labels is None:
            labels = dict(zip(semconv.instrument(name).attributes, key))  # noqa: B905
            if len(self._labels) < 10_000:
                self._labels[name, key] = labels
        self._record[name].record(seconds, key, labels, context)

    # ---- read by the hub -----------------------------------------------------------------------

    def prepare(self) -> None:
        """Drain the log, unless that takes too long."""
        self._prepare()

    def observe(self, instrument: str) -> Points:
        """The present points of one instrument."""
        with self._lock:
            if instrument in self._counts:
                return self._counters(instrument)
            return self._levels(instrument)

    def _counters(self, instrument: str) -> Points:
        if instrument == "timespan.events":
            return [((), self.events)]
        if instrument in ("timespan.spans", "timespan.spans.recorded", "timespan.events.dropped"):
            account = self._account()
            dropped = account["dropped"]
            if instrument == "timespan.events.dropped":
                return [((reason,), count) for reason, count in dropped.items()]
            if instrument == "timespan.spans.recorded":
                return [((), account["recorded"])]
            lost = sum(dropped.values())
            return [(("exported",), account["exported"]), (("sampled",), account["sampled"]), (("dropped",), lost)]
        return list(self._counts[instrument].items())

    def _levels(self, instrument: str) -> Points:
        active = self.mapper.active if self.mapper is not None else {}
        if instrument == "timespan.task.active":
            return [((state,), len(tasks)) for state, tasks in active.items()]
        if instrument == "timespan.task.oldest_age":
            now = self._clock()
            return [((s,), max(0, now - next(iter(t.values()), now)) / 1e9) for s, t in active.items()]
        if instrument == "timespan.spans.pending":
            return [((), self._account()["pending"])]
        return self._gauges.read(instrument, self._worker())

    def close(self) -> None:
        """Leave the hub."""
        self._hub.remove(self)


_WAITS = ("dependency", "schedule", "queue", "move")
_COUNTED = {
    "proc_steal_local": "timespan.steal.count",
    "handle_fault": "timespan.fault.count",
    "evict": "timespan.evict.count",
}


def _happened(event: Event) -> bool:
    """Whether there is something to count: an attempt to steal may bring nothing, a spilled chunk dies in no memory."""
    if event.category == "proc_steal_local":
        return event.timeline is not None
    return getattr(event.timeline, "in_memory", True) is not False
