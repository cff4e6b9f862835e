"""`OTelAggregator`: the streams of a `MultiEventLog` become metrics.

Streams of consumers that have a gauge (gauges.py) need no word: they are known by the type of their consumer,
whatever their name. Others are declared with `streams=`. Where an `OTelLog` reports to the same meter provider
the known ones are its own, and nothing counts twice.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry.metrics import Observation

from ... import forks
from ...errors import InvalidOptionError
from ...timespans.multi import MultiEventLog
from .. import semconv
from ..setup import instrumentation_scope, meter_provider_for_metrics
from .gauges import BY_STREAM, READINGS, Levels, Reading
from .hub import PREPARE_S, MeterHub, Points, hub_for

__all__ = ["OTelAggregator", "StreamSpec"]

KINDS = ("gauge", "counter", "histogram")
_NAME = re.compile(r"[a-zA-Z][-_./a-zA-Z0-9]{0,254}")


class StreamSpec(NamedTuple):
    """How a stream of numbers becomes a metric: the instrument's name, kind, unit and description.

    A gauge shows the newest number, a counter the sum of all, a histogram their distribution.
    """

    name: str
    kind: str = "gauge"
    unit: str = "1"
    description: str = ""


class OTelAggregator:
    """`log.aggregators["otel"] = OTelAggregator()`.

    `meter_provider`: by default the global one where configured, else OTLP as the `OTEL_*` variables say.
    `streams`: {stream name: `StreamSpec`, a mapping of its fields, or just the instrument's name} for streams
    of numbers that have no gauge of their own; what is no number is passed over. Raises
    `InvalidOptionError` for a spec that can't work. Each point carries `timespan.worker.id`.
    """

    def __init__(self, *, meter_provider: Any = None, streams: Mapping[str, Any] | None = None) -> None:
        if meter_provider is not None and not callable(getattr(meter_provider, "get_meter", None)):
            raise InvalidOptionError(f"meter_provider is a MeterProvider, not {meter_provider!r}")
        if streams is not None and not isinstance(streams, Mapping):
            raise InvalidOptionError(f"streams maps names of streams to specs, not {streams!r}")
        specs = {name: _spec(name, given) for name, given in (streams or {}).items()}
        self._shared = _Shared(meter_provider, specs)
        self._reset()
        if meter_provider is not None:
            self._shared.connect()  # else at the first event: the global one may be configured later

    def _reset(self) -> None:
        self._names: tuple[str, ...] | None = None
        self._readings: list[tuple[str, Reading]] = []
        self._declared: list[tuple[str, str]] = []
        self._worker = 1

    def init_similar(self) -> OTelAggregator:
        """The copy for one more worker: the same instruments."""
        twin = object.__new__(OTelAggregator)
        twin._shared = self._shared
        twin._reset()
        return twin

    def attach(self, log: MultiEventLog, worker: int) -> None:
        """This log, whose streams are those of `worker`, is about to call. An aggregator serves the last one."""
        self._shared.log = weakref.ref(log)
        self._worker, self._names = worker, None

    def detach(self, log: MultiEventLog, worker: int) -> None:
        """That log calls no more; what its streams said last stays."""
        if self._shared.log() is log and worker == 1:
            self._shared.log = _no_log

    def __call__(self, lists: Mapping[str, list[Any]]) -> None:
        """Look at the newest value of every stream. Called by the log after each event."""
        shared = self._shared
        if self._names is None or len(lists) != len(self._names) or self._names != tuple(lists):
            self._learn(lists)
        for name, reading in self._readings:
            values = lists[name]
            if values:
                shared.levels.take(reading, self._worker, values[-1])
        for name, kind in self._declared:
            values = lists[name]
            if values:
                shared.number(name, kind, self._worker, values[-1])

    def batch(self, streams: Mapping[str, list[Any]], new: int) -> None:
        """The same for many events: those of the last `new` entries."""
        if not new:
            return
        shared = self._shared
        if self._names is None or self._names != tuple(streams):
            self._learn(streams)
        for name, reading in self._readings:
            last = None
            for value in streams[name][-new:]:
                if value is not last:
                    shared.levels.take(reading, self._worker, value)
                last = value
        for name, kind in self._declared:
            for value in streams[name][-new:]:
                shared.number(name, kind, self._worker, value)

    def _learn(self, lists: Mapping[str, list[Any]]) -> None:
        """Find out what the streams are, anew whenever one came or went."""
        shared = self._shared
        shared.connect()
        log = shared.log()
        consumers = log.consumers if log is not None else {}
        self._names, self._readings, self._declared = tuple(lists), [], []
        for name in lists:
            spec = shared.specs.get(name)
            if spec is not None:
                self._declared.append((name, spec.kind))
                continue
            reading = READINGS.get(type(consumers[name])) if name in consumers else BY_STREAM.get(name)
            if reading is not None:
                self._readings.append((name, reading))


class _Shared:
    """What the copies of one aggregator share. A `MetricSource` of the hub for the known instruments."""

    is_log = False

    def __init__(self, provider: Any, specs: Mapping[str, StreamSpec]) -> None:
        self.specs = specs
        self.levels = Levels()
        self.log: Callable[[], MultiEventLog | None] = _no_log
        self._given = provider
        self._connected = False
        self._numbers: dict[tuple[str, int], float] = {}  # of declared gauges and counters
        self._histograms: dict[str, Any] = {}
        self._hub: MeterHub | None = None
        _live.add(self)

    def start_empty(self) -> None:
        """In a forked child: what the streams said so far was the parent's."""
        self.levels.start_empty()
        self._numbers.clear()

    def connect(self) -> None:
        """Make the instruments, once."""
        if self._connected:
            return
        self._connected = True
        provider = self._given if self._given is not None else meter_provider_for_metrics()
        if provider is None:
            return
        self._hub = hub_for(provider)
        self._hub.add(self)
        scope = instrumentation_scope()
        meter = provider.get_meter(scope.name + ".streams", scope.version, scope.schema_url)
        for stream, spec in self.specs.items():
            self._make(meter, stream, spec)

    def _make(self, meter: Any, stream: str, spec: StreamSpec) -> None:
        if spec.kind == "histogram":
            self._histograms[stream] = meter.create_histogram(spec.name, spec.unit, spec.description)
            return
        make = meter.create_observable_gauge if spec.kind == "gauge" else meter.create_observable_counter

        def observe(options: Any) -> list[Observation]:
            self.prepare()
            points = [(worker, value) for (name, worker), value in list(self._numbers.items()) if name == stream]
            return [Observation(value, {semconv.WORKER_ID: worker}) for worker, value in points]

        make(spec.name, [observe], spec.unit, spec.description)

    def number(self, stream: str, kind: str, worker: int, value: Any) -> None:
        """A number of a declared stream."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return
        key = (stream, worker)
        if kind == "gauge":
            self._numbers[key] = value
        elif kind == "counter":
            self._numbers[key] = self._numbers.get(key, 0) + max(value, 0)
        elif stream in self._histograms and value >= 0:
            self._histograms[stream].record(value, {semconv.WORKER_ID: worker})

    def prepare(self) -> None:
        """Have the log's streams brought up to date, unless that takes too long."""
        log = self.log()
        if log is not None:
            log.flush(PREPARE_S)

    def observe(self, instrument: str) -> Points:
        """The present points of one instrument."""
        return self.levels.points(instrument)


_live: weakref.WeakSet[_Shared] = weakref.WeakSet()


@forks.in_child("_live")
def _in_child() -> None:
    for shared in list(_live):
        shared.start_empty()


def _no_log() -> None:
    """The log of an aggregator that is in none."""


def _spec(stream: str, given: Any) -> StreamSpec:
    if isinstance(given, str):
        spec = StreamSpec(given)
    elif isinstance(given, StreamSpec):
        spec = given
    elif isinstance(given, Mapping):
        unknown = sorted(set(given) - set(StreamSpec._fields))
        if unknown or "name" not in given:
            fields = ", ".join(StreamSpec._fields)
            raise InvalidOptionError(f"streams[{stream!r}] needs a name and knows {fields}, not {unknown}")
        spec = StreamSpec(**given)
    else:
        raise InvalidOptionError(f"streams[{stream!r}] is a StreamSpec, a mapping or a name, not {given!r}")
    if spec.kind not in KINDS:
        raise InvalidOptionError(f"streams[{stream!r}]: kind is one of {', '.join(KINDS)}, not {spec.kind!r}")
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        rule = "the name of an instrument is made of letters, digits and -_./"
        raise InvalidOptionError(f"streams[{stream!r}]: {rule}, not {spec.name!r}")
    return spec
