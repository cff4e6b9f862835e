"""The pull endpoint: Prometheus asks the program itself (OTEL_METRICS_EXPORTER=prometheus).

The stock exporter calls some metrics otherwise than the collector does, and does not say of which service they are: the
same dashboard would be empty. Here both ways give the same names and labels (promnames.py), exemplars included.
"""

from __future__ import annotations

import json
import os
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricReader,
    MetricsData,
    Sum,
)

from ... import forks
from ...errors import InvalidOptionError, MissingExtraError
from ...timespans.warn import warn_once
from ..semconv import BOUNDARIES_S, INSTRUMENTS
from .promnames import label_name, metric_name

__all__ = ["PullReader", "pull_address"]


def pull_address() -> tuple[str, int]:
    """(host, port) as the standard variables say, by default localhost:9464. Raises `InvalidOptionError`."""
    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST", "").strip() or "localhost"
    text = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT", "").strip() or "9464"
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < 1 << 16):
        raise InvalidOptionError(f"OTEL_EXPORTER_PROMETHEUS_PORT={text[:40]!r}: give a port, from 0 to 65535")
    return host, int(text)


class PullReader(MetricReader):
    """Serves all metrics of its provider, with those of `prometheus_client`'s registry, until it is shut down.

    Raises `MissingExtraError`, `InvalidOptionError` for variables that can't work, and `OSError` where the port is
    taken. In a forked child nothing is served: the port is the parent's.
    """

    def __init__(self) -> None:
        host, port = pull_address()
        with forks.held_off:
            try:
                import prometheus_client
            except ImportError as error:
                raise MissingExtraError("opentelemetry-exporter-prometheus", "prometheus") from error
        cumulative = dict.fromkeys(_instrument_kinds(), AggregationTemporality.CUMULATIVE)
        super().__init__(preferred_temporality=cumulative)
        self._lock = forks.lock()
        self._data: MetricsData | None = None
        self._registry: Any = prometheus_client.REGISTRY
        started: Any = prometheus_client.start_http_server(port, host)
        self._server = started[0] if isinstance(started, tuple) else None  # older versions keep it for themselves
        self._source = _Source(self)
        self._registry.register(self._source)
        _live.add(self)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self._data = metrics_data

    def families(self) -> Iterator[Any]:
        """What is served: metric families of `prometheus_client`."""
        with self._lock:
            self._data = None
            self.collect()
            data = self._data
        if data is not None:
            yield from _families(data)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Stop serving."""
        _live.discard(self)
        self._registry.unregister(self._source)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _in_child(self) -> None:
        if self._server is not None:
            self._server.server_close()
            self._server = None


class _Source:
    """What the registry asks. It is asked for no names beforehand: then there is nothing yet."""

    def __init__(self, reader: PullReader) -> None:
        self._reader = reader

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        return self._reader.families()


_live: weakref.WeakSet[PullReader] = weakref.WeakSet()


@forks.in_child("_live")
def _in_child() -> None:
    for reader in list(_live):
        reader._in_child()


def _instrument_kinds() -> list[type]:
    from opentelemetry.sdk import metrics

    names = ("Counter", "UpDownCounter", "Histogram", "ObservableCounter", "ObservableUpDownCounter", "ObservableGauge")
    return [getattr(metrics, name) for name in names]


# ---- translation ----------------------------------------------------------------------------------------------

_IN_TARGET = ("service.namespace", "service.name", "service.instance.id")  # what `job` and `instance` say


def _families(data: MetricsData) -> Iterator[Any]:
    from prometheus_client.core import InfoMetricFamily

    made: dict[str, Any] = {}
    for of_resource in data.resource_metrics:
        resource = of_resource.resource.attributes
        target = _target(resource)
        rest = {key: value for key, value in resource.items() if key not in _IN_TARGET}
        yield InfoMetricFamily("target", "Target metadata", {**_labels(rest), **target})
        for of_scope in of_resource.scope_metrics:
            scope = of_scope.scope
            about = {"name": scope.name, "version": scope.version, "schema_url": scope.schema_url}
            labels = {**target, **{f"otel_scope_{key}": str(value or "") for key, value in about.items()}}
            for metric in of_scope.metrics:
                try:
                    _add(made, metric, labels)
                except Exception:
                    warn_once(("pull", metric.name), "the metric %s can't be shown to Prometheus", metric.name)
    yield from made.values()


def _target(resource: Mapping[str, Any]) -> dict[str, str]:
    """What Prometheus would say of a target by itself, were it not a collector that it asked."""
    service = [str(resource[key]) for key in _IN_TARGET[:2] if resource.get(key)]
    found = {"job": "/".join(service), "instance": str(resource.get("service.instance.id") or "")}
    return {name: value for name, value in found.items() if value}


def _labels(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {label_name(key): _text(value) for key, value in (attributes or {}).items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))


def _add(made: dict[str, Any], metric: Metric, common: Mapping[str, str]) -> None:
    from prometheus_client.core import Metric as Family

    data = metric.data
    kind = "histogram" if isinstance(data, (Histogram, ExponentialHistogram)) else "gauge"
    if isinstance(data, Sum) and data.is_monotonic:
        kind = "counter"
    name = metric_name(metric.name, metric.unit or "", kind)
    family = made.get(name)
    if family is None:
        base = name.removesuffix("_total") if kind == "counter" else name  # the library adds the ending to its samples
        family = made[name] = Family(base, metric.description or "", kind)
    for point in data.data_points:
        labels = {**common, **_labels(point.attributes)}
        if isinstance(point, ExponentialHistogramDataPoint) and metric.name in _OURS:
            point = _in_advised_boundaries(point)
        if isinstance(point, HistogramDataPoint):
            _add_histogram(family, name, point, labels)
        elif hasattr(point, "value"):
            family.add_sample(name, labels, point.value)
        else:
            warn_once(("pull", metric.name), "the metric %s is of a kind that Prometheus is not shown", metric.name)


_OURS = frozenset(item.name for item in INSTRUMENTS if item.kind == "histogram")


def _in_advised_boundaries(point: ExponentialHistogramDataPoint) -> HistogramDataPoint:
    """As the collector does it: this format knows no exponential histograms. A bucket counts where its middle is."""
    counts = [0] * (len(BOUNDARIES_S) + 1)
    counts[0] = point.zero_count + sum(point.negative.bucket_counts)
    for index, count in enumerate(point.positive.bucket_counts, point.positive.offset):
        exponent = (index + 0.5) * 2.0**-point.scale
        counts[bisect_left(BOUNDARIES_S, 2.0 ** min(exponent, 1000.0))] += count
    return HistogramDataPoint(
        point.attributes, point.start_time_unix_nano, point.time_unix_nano, point.count, point.sum, counts,
        BOUNDARIES_S, point.min, point.max, point.exemplars,
    )  # fmt: skip


def _add_histogram(family: Any, name: str, point: HistogramDataPoint, labels: dict[str, str]) -> None:
    from prometheus_client.utils import floatToGoString

    bounds = [*point.explicit_bounds, float("inf")]
    seen = 0
    for bound, below, count in zip(bounds, [float("-inf"), *bounds], point.bucket_counts, strict=False):
        seen += count
        within = [one for one in point.exemplars or () if below < one.value <= bound]
        exemplar = _exemplar(within[-1]) if within else None
        bound_text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
        family.add_sample(f"{name}_bucket", {**labels, "le": bound_text}, seen, exemplar=exemplar)
    family.add_sample(f"{name}_count", labels, point.count)
    family.add_sample(f"{name}_sum", labels, point.sum)


def _exemplar(found: Any) -> Any:
    from prometheus_client.samples import Exemplar

    ids = {}
    if found.trace_id and found.span_id:
        ids = {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}
    return Exemplar(ids, found.value, found.time_unix_nano / 1e9)
