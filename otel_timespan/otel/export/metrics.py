"""Metrics to an OTLP receiver: one try at a time, one warning per outage.

The stock exporter retries by itself for ten seconds and logs each failure. Metrics here are cumulative and go
out every second, so the next collection is the retry. The SDK gives each exemplar away once, but a receiver
keeps only the last point of a series: one without exemplars goes out with those of the point before. A series
starts, for the SDK, with its first collection, where it holds all that happened before; here it starts with the
collection before that, where there was nothing yet: a receiver that knows start times sees even the first
values as a rise. What is
private of the stock exporter is used as in transport.py; where it is missing, the stock `export` does the
work and its log lines are thinned out.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics import Histogram
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation

from ... import forks
from .settings import OtlpSettings, check_temporality, exponential_histograms
from .transport import ACCEPTED, OtlpTransport, outage_level, outage_over, silenced_here

__all__ = ["Metrics", "OtlpMetricExporter", "OtlpMetricReader", "forward_metrics"]

_log = logging.getLogger("otel_timespan")

_FIRST_TRY_S = 0.2
"""For the only collection of a program that ends before it ever reached a receiver."""

MAX_FORWARDED = 1 << 20
"""Bytes of what a worker collected that wait at most for a collection here."""

_LEAST_MS = 20.0
"""A collection with less time than this would only raise MetricsTimeoutError."""

_STOCK_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.common.http",
)


class Metrics(NamedTuple):
    """How metrics are collected: how often, and as the exporter wants them."""

    interval_ms: float
    temporality: Any
    aggregation: Any


class OtlpMetricExporter(MetricExporter):
    """Sends metrics by OTLP. The temporality is the stock exporter's, which reads the variable."""

    def __init__(self, settings: OtlpSettings) -> None:
        check_temporality()
        aggregation = ExponentialBucketHistogramAggregation() if exponential_histograms() else None
        self._transport = OtlpTransport(settings)
        stock = self._transport.stock_exporter()
        super().__init__(
            preferred_temporality=getattr(stock, "_preferred_temporality", None),
            preferred_aggregation={Histogram: aggregation} if aggregation is not None else None,
        )
        self._by_bytes = self._transport.takes_bytes()
        self._outage = False
        self.reached = self.tried = False  # a receiver answered; any try was made
        self._exemplars: dict[tuple[Any, ...], list[Any]] = {}  # of each series, the last ones
        self._starts: dict[tuple[Any, ...], int] = {}  # of each series, wall-clock ns
        self._forwarded: dict[int, bytes] = {}  # what other processes collected, by worker; it leaves with ours
        self._collected_ns = time.time_ns()  # the newest collection; series that are not known yet started after it
        _live.add(self)

    def _after_fork(self) -> None:
        """In a child: connections and series were the parent's; the child's begin now."""
        self._transport.after_fork()
        self._outage = False
        self._exemplars, self._starts, self._collected_ns = {}, {}, time.time_ns()
        self._forwarded = {}

    def ways(self, interval_ms: float) -> Metrics | None:
        """How other processes are to collect what leaves with ours; None where it can't."""
        if not self._by_bytes:
            return None
        temporality = getattr(self, "_preferred_temporality", None)
        return Metrics(interval_ms, temporality, getattr(self, "_preferred_aggregation", None))

    def forward(self, worker: int, request: bytes) -> None:
        """Send what another process collected, with our next collection. From any thread."""
        before = self._forwarded.pop(worker, b"")
        # Requests that follow each other are one request to protobuf. Cumulative ones can do without those before.
        self._forwarded[worker] = before + request if len(before) < MAX_FORWARDED else request

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """One try. Called by one thread at a time, the reader's."""
        if not self._by_bytes:
            return self._stock_export(metrics_data, timeout_millis)
        with forks.held_off:
            from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

        timeout_s = min(timeout_millis / 1000, self._transport.timeout_s)
        request = encode_metrics(metrics_data)
        self._amend(request)
        body = request.SerializeToString()
        for worker in list(self._forwarded):
            body += self._forwarded.pop(worker, b"")
        outcome = self._transport.send(body, 0, timeout_s)
        self.tried, self.reached = True, self.reached or outcome.reached
        self._report(outcome.status == ACCEPTED, outcome.message)
        return MetricExportResult.SUCCESS if outcome.status == ACCEPTED else MetricExportResult.FAILURE

    def _amend(self, request: Any) -> None:
        """Complete the points of cumulative series: when the series started, and its exemplars."""
        from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

        collected_ns = self._collected_ns
        for scope, metric in _metrics_of(request):
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind) if kind in ("sum", "histogram", "exponential_histogram") else None
            if data is None or data.aggregation_temporality != AGGREGATION_TEMPORALITY_CUMULATIVE:
                continue
            for point in data.data_points:
                series = (scope, metric.name, *(a.SerializeToString() for a in point.attributes))
                start_ns = self._starts.setdefault(series, self._collected_ns)
                point.start_time_unix_nano = min(start_ns, point.time_unix_nano)  # the wall clock may go back
                collected_ns = max(collected_ns, point.time_unix_nano)
                if kind != "sum":
                    self._keep_exemplars(series, point)
        self._collected_ns = collected_ns

    def _keep_exemplars(self, series: tuple[Any, ...], point: Any) -> None:
        """Carry the exemplars of a series over to a point that has none."""
        if point.exemplars:
            self._exemplars[series] = list(point.exemplars)
        else:
            point.exemplars.extend(self._exemplars.get(series, ()))

    def _stock_export(self, metrics_data: MetricsData, timeout_millis: float) -> MetricExportResult:
        with silenced_here(*_STOCK_LOGGERS):
            result: MetricExportResult = self._transport.stock_exporter().export(metrics_data, timeout_millis)
        self.tried, self.reached = True, self.reached or result is MetricExportResult.SUCCESS
        self._report(result is MetricExportResult.SUCCESS, "the exporter reported a failure")
        return result

    def _report(self, success: bool, message: str) -> None:
        host = self._transport.host
        if success and self._outage:
            outage_over(host)
            _log.info("%s takes metrics again", self._transport.target)
        elif not success and not self._outage:
            level = outage_level(host, "metrics", id(self))
            _log.log(level, "metrics can't be sent to %s (%s); trying on", self._transport.target, message)
        self._outage = not success

    def give_up(self) -> None:
        """End a try that is under way, and make none any more."""
        self._transport.cancel()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """True: nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """End a try that is under way."""
        self._transport.cancel()


class OtlpMetricReader(PeriodicExportingMetricReader):
    """The SDK's periodic reader, whose `force_flush` keeps its timeout while another export is under way."""

    def prepare_end(self) -> float:
        """How long the last collection may take: what never answered is tried once, and not waited for."""
        exporter = self._exporter
        if not isinstance(exporter, OtlpMetricExporter) or exporter.reached:
            return math.inf
        if exporter.tried:
            exporter.give_up()
        return _FIRST_TRY_S

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collect and send now; False when there is no time for it (the last collection is `shutdown`'s)."""
        deadline = time.monotonic() + timeout_millis / 1000
        lock = getattr(self, "_export_lock", None)
        if lock is not None:
            if not lock.acquire(timeout=max(timeout_millis / 1000, 0.0)):
                return False
            lock.release()
        left_ms = (deadline - time.monotonic()) * 1000
        return left_ms >= _LEAST_MS and super().force_flush(left_ms)


def _metrics_of(request: Any) -> Iterator[tuple[str, Any]]:
    """(name of the scope, metric) of an encoded request."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield scope.scope.name, metric


def forward_metrics(worker: int, request: bytes) -> None:
    """Have what was collected in a worker leave with our next collection."""
    for exporter in list(_live):
        exporter.forward(worker, request)


_live: weakref.WeakSet[OtlpMetricExporter] = weakref.WeakSet()


@forks.in_child("_live")
def _in_child() -> None:
    for exporter in list(_live):
        exporter._after_fork()
