"""A log's part in worker processes: the spans of bodies there, and what bodies tell OpenTelemetry by themselves.

The spans of tasks are made in the head, of what workers note. Two things can't be: the span that is current while a
body runs, and the spans that the body makes under it with OpenTelemetry's API. So each worker gets a `Part`, which
makes the first by the ids that the head will give it, and takes the second, unless the program set up a provider of
its own there (`opentelemetry-instrument` does): then the context is right, and that provider sends. What the part took
goes to the head, whose pipeline sends it and accounts for it, with a resource that names the worker.

See docs/workers.md.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from .. import forks
from ..timespans.adding import AnyThreadCount
from ..timespans.warn import warn_once
from . import semconv
from .export.entries import foreign_entry
from .export.metrics import Metrics, forward_metrics
from .export.resources import process_resource
from .export.transport import Wrapped
from .setup import are_metrics_configured, instrumentation_scope, is_tracing_configured
from .spans import ids
from .spans.bodyspan import BodySpan, LazySpan, span_context
from .spans.limits import Limits
from .spans.runs import Runs, current_run
from .spans.tasks import task_name

__all__ = ["Forwarded", "Part", "body_phase", "fill_body"]

MAX_WAITING = 8 << 20
"""Bytes of what bodies told that wait in a worker, or in the head for the drain of the log."""

_LAST_COLLECTION_MS = 500.0

Send = Callable[[str, int, "bytes | None", int], None]
"""(signal, how many, what, how many were given up): to the head."""


def fill_body(
    span: LazySpan, detail: str, offset_ns: int, limits: Limits, resource: Resource | None, scope: Any
) -> None:
    """Somebody looks at the span of a body."""
    parent, task_id, attempt, function, start_ns = span.of
    task = detail == "task"
    name = task_name(function) if task else semconv.COMPUTE
    own = ids.span_id(parent.seed, task_id, body_phase(detail), 0, attempt)
    above = parent.span_id if task else ids.span_id(parent.seed, task_id, ids.TASK, 0, attempt)
    BodySpan.__init__(
        span, name, parent.trace_id, own, above, parent.flags, parent.trace_state, start_ns + offset_ns,
        limits, resource, scope,
    )  # fmt: skip


def body_phase(detail: str) -> int:
    """Which span of a task is current in its body."""
    return ids.TASK if detail == "task" else ids.COMPUTE


# ---- in the worker ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What a log is in a worker; it can be pickled.

    `waits`: whether bodies wait where there is no room. `metrics`: how those of the program are collected; None where
    the head has no way for them: they leave with its own, by OTLP.
    """

    detail: str
    offset_ns: int
    limits: Limits
    resource: Mapping[str, Any]
    waits: bool
    metrics: Metrics | None

    def begin(self, worker: int, send: Send, made: Callable[[str, int], None]) -> There:
        """Begin, in the worker."""
        return There(self, worker, send, made)


class There:
    """The part of a log, in the worker. `on_body` is called as a `Recorder`'s."""

    def __init__(self, part: Part, worker: int, send: Send, made: Callable[[str, int], None]) -> None:
        self._part, self._send, self._note_made = part, send, made
        own = {**process_resource().attributes, semconv.WORKER_ID: worker}
        self._resource = Resource({**part.resource, **own})
        self._scope = instrumentation_scope()
        self._unpacked: tuple[Any, Any] = (None, None)
        self._lock = forks.lock()
        self._waiting: list[Wrapped] = []
        self._nbytes = self._given_up = 0
        self._closed = False
        _Ours.part = self
        if not is_tracing_configured():
            provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
            provider.add_span_processor(_Taker())
            trace.set_tracer_provider(provider)
        if part.metrics is not None and not are_metrics_configured():
            reader = PeriodicExportingMetricReader(_Sender(part.metrics), part.metrics.interval_ms)
            _Ours.meters = MeterProvider([reader], self._resource, shutdown_on_exit=False)
            metrics.set_meter_provider(_Ours.meters)

    def on_body(
        self, task_id: int, attempt: int, function: Any, label: str | None, packed: Any, start_ns: int
    ) -> BodySpan | None:
        """Make the body's span current in the body's own context. Never raises."""
        try:
            known, parent = self._unpacked
            if known is not packed:
                parent = ids.unpack(packed)
                self._unpacked = (packed, parent)
            if parent is None or self._closed:
                return None
            before = otel_context.get_current()
            if not parent.flags & 1:
                own = ids.span_id(parent.seed, task_id, body_phase(self._part.detail), 0, attempt)
                unsampled = NonRecordingSpan(span_context(parent.trace_id, own, 0, parent.trace_state))
                otel_context.attach(set_span_in_context(unsampled, before))
                return None
            span = LazySpan(self._fill, _nothing, parent, task_id, attempt, function, start_ns)
            otel_context.attach(set_span_in_context(span, before))
            return span
        except Exception:
            warn_once(There.on_body, "a body runs without a current span")
            return None

    def _fill(self, span: LazySpan) -> None:
        part = self._part
        fill_body(span, part.detail, part.offset_ns, part.limits, self._resource, self._scope)

    def take(self, span: ReadableSpan) -> None:
        """A span that the program made itself ended."""
        with self._lock:
            _Ours.made += 1
            self._note_made("traces", _Ours.made)
        item = foreign_entry(span, None, True).item  # type: ignore[arg-type]
        nbytes = len(item.body)
        if self._nbytes + nbytes > MAX_WAITING:
            if not self._part.waits:
                with self._lock:
                    self._given_up += 1
                return
            self.hand_over()  # which waits for the socket, if need be
        with self._lock:
            self._waiting.append(item)
            self._nbytes += nbytes

    def hand_over(self) -> None:
        """Send what waits. Called before the outcome of a body leaves, and now and then."""
        if not self._waiting and not self._given_up:
            return
        with self._lock:
            spans, self._waiting = self._waiting, []
            given_up, self._given_up, self._nbytes = self._given_up, 0, 0
        self._send("traces", len(spans), pickle.dumps(spans, 5) if spans else None, given_up)

    def send_metrics(self, points: int, request: bytes) -> None:
        """Send what was collected."""
        self._send("metrics", points, request, 0)

    def close(self) -> None:
        """The head wants no more, or the worker ends."""
        self.hand_over()
        if _Ours.part is self:
            if _Ours.meters is not None:
                _Ours.meters.force_flush(_LAST_COLLECTION_MS)
            _Ours.part = None
        self._closed = True


class _Ours:
    """What there is once in a worker: `part` of the log that came last, which takes what the program tells."""

    part: There | None = None
    made = 0
    """Spans of the program, in all."""
    meters: MeterProvider | None = None


@forks.in_child()
def _in_child() -> None:
    """The way to the head is the worker's."""
    _Ours.part = None


class _Sender(MetricExporter):
    """Sends what was collected to the head, encoded."""

    def __init__(self, how: Metrics) -> None:
        super().__init__(how.temporality, how.aggregation)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **kwargs: Any) -> MetricExportResult:
        """Send it, if a log wants it."""
        part = _Ours.part
        if part is not None:
            from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

            of_scopes = [scope for resource in metrics_data.resource_metrics for scope in resource.scope_metrics]
            points = sum(len(metric.data.data_points) for scope in of_scopes for metric in scope.metrics)
            part.send_metrics(points, encode_metrics(metrics_data).SerializeToString())
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        """True: nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        """Nothing to end."""


class _Taker(SpanProcessor):
    """Gives the spans that end to the part of a log."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take it, if it is sampled."""
        part = _Ours.part
        if part is not None and span.context is not None and span.context.trace_flags.sampled:
            try:
                part.take(span)
            except Exception:
                warn_once(_Taker, "the span %.200r can't be encoded; it is dropped", span.name)


def _nothing(span: LazySpan) -> None:
    """Nothing waits here."""


# ---- in the head -------------------------------------------------------------------------------------------


class Forwarded:
    """The head's side (timespans/recorder.py: `WorkerSide`): what came from workers, until the log's drain sends it.

    `part() -> Part or None` is asked once `is_ready()`; `wake()` has the drain come by. `take` and `lost` are called by
    the thread that talks to workers, `collect` by whoever drains, with the log's lock.
    """

    def __init__(
        self,
        is_ready: Callable[[], bool],
        part: Callable[[], Part | None],
        runs: Callable[[], Runs],
        wake: Callable[[], None],
    ) -> None:
        self._is_ready, self._part, self._runs, self._wake = is_ready, part, runs, wake
        self._closed = False
        self.start_empty()

    def start_empty(self) -> None:
        """In a forked child, too: what is here, and what was counted, is the parent's."""
        self._spans: deque[tuple[bytes, int]] = deque()
        self._nbytes = 0
        self._full, self._missing = AnyThreadCount(), AnyThreadCount()

    @property
    def is_ready(self) -> bool:
        """Whether the log knows where to send."""
        return self._is_ready()

    def part(self, worker: int) -> Part | None:
        """What the log is in a worker."""
        return self._part()

    def close(self) -> None:
        """The log is closed: what comes from now on is nobody's."""
        self._closed = True

    def enter(self, caller: Any) -> None:
        """What is spawned in this context counts in the run of that caller."""
        parent = ids.unpack(caller)
        run = self._runs().find(parent.root) if parent is not None else None
        if run is not None:
            current_run.set(run)

    def take(self, worker: int, signal: str, count: int, data: bytes | None, given_up: int) -> None:
        """What the part in a worker took."""
        if self._closed:
            return
        if given_up:
            self._full.add(given_up)
        if data is not None and signal == "metrics":
            forward_metrics(worker, data)
        elif data is not None:
            if self._nbytes + len(data) > MAX_WAITING:
                self._full.add(count)
            else:
                self._nbytes += len(data)
                self._spans.append((data, count))
        self._wake()

    def lost(self, worker: int, missing: int) -> None:
        """A worker is gone: so many spans of the program's own were not received."""
        if missing > 0:
            self._missing.add(missing)
            self._wake()

    @property
    def waiting(self) -> int:
        """Spans that are here."""
        return sum([count for _, count in list(self._spans)])

    @property
    def dropped(self) -> dict[str, int]:
        """By reason, spans that were never handed on."""
        return {"queue_full": self._full.value, "worker_lost": self._missing.value}

    def collect(self) -> list[Wrapped]:
        """What is here, which is the caller's now."""
        found: list[Wrapped] = []
        for _ in range(len(self._spans)):
            data, _ = self._spans.popleft()
            self._nbytes -= len(data)
            found += pickle.loads(data)
        return found

