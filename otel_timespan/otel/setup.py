"""Where spans and metrics go: the providers that the user configured, or ours.

A program that configured OpenTelemetry is left as it is: its global providers are used. Where none is
configured, the standard variables say what to set up, and what is set up becomes the global provider, so
that the spans that users and instrumentation libraries make inside bodies arrive too, by the same queue.

Nothing is set up, and no thread started, when OTEL_SDK_DISABLED is true or the exporter of the signal is
`none`. All functions are thread-safe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    ExemplarFilter,
    MeterProvider,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .. import __version__, forks
from ..errors import ConcurrencyViolationError, InvalidOptionError, MissingExtraError
from ..timespans.warn import warn_once
from .export.accounts import PipelineStats
from .export.metrics import Metrics, OtlpMetricExporter, OtlpMetricReader
from .export.objects import ProcessorTransport, ReadableTransport, halve_exports
from .export.pipeline import SpanPipeline, close_all, flush_all
from .export.pull import PullReader, pull_address
from .export.resources import default_resource, process_resource
from .export.sdklocks import renew_locks
from .export.settings import (
    MAX_BYTES,
    check_attributes,
    check_sending,
    check_temporality,
    check_texts,
    checked_seconds,
    exponential_histograms,
    exporter_names,
    milliseconds,
    read_settings,
    sdk_disabled,
    shown,
    variable_text,
    whole_number,
)
from .export.shutdown import METRICS, on_exit
from .export.transport import OtlpTransport, Transport, Wrapped
from .semconv import SCHEMA_URL, SCOPE_NAME
from .spans.limits import limits_of
from .spans.redact import Redact
from .spans.spandata import SpanData

__all__ = [
    "Providers",
    "TraceOutput",
    "are_metrics_configured",
    "check_environment",
    "instrumentation_scope",
    "is_tracing_configured",
    "meter_provider_for_metrics",
    "metrics_of",
    "provider_for_traces",
    "setup",
]

_METRIC_INTERVAL_MS = 1000.0


@cache
def instrumentation_scope() -> InstrumentationScope:
    """The scope of all that we make: name, version, schema URL."""
    return InstrumentationScope(SCOPE_NAME, __version__, SCHEMA_URL)


class FanOut:
    """Several pipelines as one: for OTEL_TRACES_EXPORTER=otlp,console. The accounts are the first one's."""

    def __init__(self, pipelines: Sequence[SpanPipeline]) -> None:
        self.pipelines = pipelines

    def put(self, spans: Sequence[SpanData | Wrapped], owner: Any = None) -> None:
        """To each."""
        for pipeline in self.pipelines:
            pipeline.put(spans, owner)

    def put_readable(self, span: ReadableSpan) -> None:
        """To each."""
        for pipeline in self.pipelines:
            pipeline.put_readable(span)

    def flush(self, timeout_s: float = 30.0, *, ending: bool = False) -> bool:
        """All of them at once, within the time; True when all are empty."""
        return flush_all(self.pipelines, timeout_s, ending=ending)

    def close(self, timeout_s: float | None = None) -> None:
        """All of them at once, within the time."""
        close_all(self.pipelines, timeout_s)

    def give_up(self, owner: Any) -> None:
        """What still waits of this owner is dropped."""
        for pipeline in self.pipelines:
            pipeline.give_up(owner)

    def stats(self, owner: Any = None) -> PipelineStats:
        """Of the first."""
        return self.pipelines[0].stats(owner)

    @property
    def closed(self) -> bool:
        """Whether the first one is closed."""
        return self.pipelines[0].closed


@dataclass(frozen=True)
class TraceOutput:
    """Where finished spans go (`pipeline`) and what decides about them (`provider`: sampler, ids, limits).

    `shared`: others use the pipeline too, namely the global provider that we set up. Then `close` only flushes.
    """

    provider: TracerProvider
    pipeline: SpanPipeline | FanOut
    shared: bool

    def close(self, timeout_s: float | None = None, owner: Any = None) -> None:
        """Flush within `timeout_s` (default 5 s), and drop what is left: in a shared pipeline that of the `owner`."""
        if self.shared:
            self.pipeline.flush(5.0 if timeout_s is None else timeout_s, ending=True)
            if owner is not None:
                self.pipeline.give_up(owner)
        else:
            self.pipeline.close(timeout_s)


class Providers(NamedTuple):
    """What `setup` made, each None where it was not wanted or is disabled."""

    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None


class _PipelineProcessor(SpanProcessor):
    """Feeds the spans of our global provider, the users' own, into the pipeline."""

    def __init__(self, pipeline: SpanPipeline | FanOut) -> None:
        self.pipeline = pipeline

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, if it is sampled."""
        if span.context is not None and span.context.trace_flags.sampled:
            self.pipeline.put_readable(span)

    def shutdown(self) -> None:
        """Flush and end the pipeline."""
        self.pipeline.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send all that is queued."""
        return self.pipeline.flush(timeout_millis / 1000)


class _Own:
    """What we set up in this process; `lock` guards it."""

    lock = forks.rlock()
    tracer_provider: TracerProvider | None = None
    processor: _PipelineProcessor | None = None
    meter_provider: MeterProvider | None = None
    readers: Sequence[MetricReader] = ()
    watching = False


# --- traces ----------------------------------------------------------------------------------------------


def provider_for_traces(
    *,
    tracer_provider: Any = None,
    span_exporter: SpanExporter | None = None,
    on_full: str = "block",
    max_bytes: int = MAX_BYTES,
    block_timeout_s: float = 1.0,
    exit_timeout_s: float = 5.0,
    redact: Redact | None = None,
) -> TraceOutput | None:
    """Where a log sends its spans; None when tracing is off.

    In this order: the `tracer_provider` that was given (its span processors get each span), the `span_exporter` that
    was given, the global provider that the user configured, our own as the variables say. For the options see
    `SpanPipeline`; of our own shared pipeline the options of the first caller hold. `redact` is asked about a resource
    that is made here. Too late at interpreter exit:
    the libraries that it loads can't be loaded any more then.
    Raises `InvalidOptionError` and `MissingExtraError`.
    """
    options: dict[str, Any] = {
        "on_full": on_full,
        "max_bytes": max_bytes,
        "block_timeout_s": block_timeout_s,
        "exit_timeout_s": exit_timeout_s,
    }
    if tracer_provider is not None and span_exporter is not None:
        raise InvalidOptionError("give tracer_provider or span_exporter, not both")
    if sdk_disabled():
        return None
    if tracer_provider is not None:
        return _through_processors(tracer_provider, options)
    if span_exporter is not None:
        return _through_exporter(span_exporter, options, redact)
    with _Own.lock:
        configured = _configured_tracer_provider()
        bare = configured if _is_bare(configured) else None
        if configured is not None and configured is not _Own.tracer_provider and bare is None:
            return _through_processors(configured, options)
        return _through_our_own(options, redact=redact, bare=bare)


def _through_processors(provider: Any, options: dict[str, Any]) -> TraceOutput:
    scope = instrumentation_scope()
    transport = ProcessorTransport(provider, scope)
    halve_exports(provider)
    limits = limits_of(getattr(provider, "_span_limits", None))
    pipeline = SpanPipeline(transport, resource=provider.resource, scope=scope, limits=limits, **options)
    return TraceOutput(provider, pipeline, shared=False)


def _through_exporter(exporter: SpanExporter, options: dict[str, Any], redact: Redact | None) -> TraceOutput:
    scope, resource = instrumentation_scope(), default_resource(redact=redact)
    transport = ReadableTransport(exporter, resource, scope)
    pipeline = SpanPipeline(transport, resource=resource, scope=scope, **options)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(_PipelineProcessor(pipeline))
    return TraceOutput(provider, pipeline, shared=False)


def _through_our_own(
    options: dict[str, Any],
    given: Mapping[str, Any] | None = None,
    redact: Redact | None = None,
    bare: TracerProvider | None = None,
) -> TraceOutput | None:
    provider, processor = _Own.tracer_provider or bare, _Own.processor
    if provider is not None and processor is not None and not processor.pipeline.closed:
        return TraceOutput(provider, processor.pipeline, shared=True)
    names = exporter_names("traces")
    if not names:
        return None
    given = given or {}
    known = provider if provider is not bare else None
    resource = known.resource if known is not None else default_resource(given.get("resource"), redact)
    pipelines = [
        SpanPipeline(
            _transport(name, given.get("otlp", {}), resource),
            resource=resource,
            scope=instrumentation_scope(),
            **_batch_options(),
            **options,
        )
        for name in names
    ]
    pipeline = pipelines[0] if len(pipelines) == 1 else FanOut(pipelines)
    if provider is not None and processor is not None:
        processor.pipeline = pipeline  # ours was shut down; it serves again
    else:
        if provider is None:
            provider = TracerProvider(resource=resource, shutdown_on_exit=False, sampler=given.get("sampler"))
            trace.set_tracer_provider(provider)
        provider._resource = resource
        processor = _PipelineProcessor(pipeline)
        provider.add_span_processor(processor)
        _Own.tracer_provider, _Own.processor = provider, processor
        _watch_forks()
    return TraceOutput(provider, pipeline, shared=True)


def _transport(name: str, otlp: Mapping[str, Any], resource: Resource) -> Transport:
    if name in _OTLP_PROTOCOLS:
        protocol = _OTLP_PROTOCOLS[name]
        return OtlpTransport(read_settings("traces", **{"protocol": protocol, **otlp}))
    exporter = _entry_point("opentelemetry_traces_exporter", "OTEL_TRACES_EXPORTER", name)
    return ReadableTransport(exporter(), resource, instrumentation_scope())


_OTLP_PROTOCOLS = {"otlp": None, "otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}


def _batch_options() -> dict[str, Any]:
    """What OTEL_BSP_* says of our queue: the delay and the size of a batch. Its bound is in bytes, ours."""
    options: dict[str, Any] = {}
    delay_ms = milliseconds("OTEL_BSP_SCHEDULE_DELAY")
    batch = whole_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
    for unused in ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_EXPORT_TIMEOUT"):
        whole_number(unused)  # what is wrong with it is said all the same
    if delay_ms is not None:
        options["linger_s"] = delay_ms / 1000
    if batch is not None:
        options["max_batch_spans"] = batch
    return options


def _configured_tracer_provider() -> Any:
    """The global provider, None where it is still the API's placeholder."""
    provider = _global(trace.get_tracer_provider, "OTEL_PYTHON_TRACER_PROVIDER")
    return None if isinstance(provider, trace.ProxyTracerProvider) else provider


def is_tracing_configured() -> bool:
    """Whether there is a global provider. Raises nothing: one that can't be made is the program's affair."""
    try:
        return _configured_tracer_provider() is not None
    except InvalidOptionError:
        return True


def are_metrics_configured() -> bool:
    """The same of the global meter provider."""
    try:
        return _configured_meter_provider() is not None
    except InvalidOptionError:
        return True


def _is_bare(provider: Any) -> bool:
    """Whether it is what OTEL_PYTHON_TRACER_PROVIDER made and nobody gave a processor: its spans would go nowhere."""
    if "OTEL_PYTHON_TRACER_PROVIDER" not in os.environ or provider is _Own.tracer_provider:
        return False
    processors = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", None)
    return isinstance(provider, TracerProvider) and processors == ()


def _configured_meter_provider() -> Any:
    """The same for metrics."""
    provider = _global(metrics.get_meter_provider, "OTEL_PYTHON_METER_PROVIDER")
    # The placeholder's class is private, hence by name.
    return None if type(provider).__name__ == "_ProxyMeterProvider" else provider


def _global(getter: Callable[[], Any], variable: str) -> Any:
    """What the API says, which loads what the variable names and raises whatever that does."""
    try:
        return getter()
    except Exception as error:
        text = variable_text(variable)
        raise InvalidOptionError(f"{variable}={shown(text)} names no provider that can be made") from error


def _entry_point(group: str, variable: str, name: str) -> Any:
    found = metadata.entry_points(group=group)
    for entry in found:
        if entry.name.lower() == name:
            return entry.load()
    if name == "prometheus":
        raise MissingExtraError("opentelemetry-exporter-prometheus", "prometheus")
    allowed = sorted({"none", "otlp", *(entry.name for entry in found)})
    raise InvalidOptionError(f"{variable}={shown(name)}: allowed are {', '.join(allowed)}")


# --- metrics ---------------------------------------------------------------------------------------------


def meter_provider_for_metrics(*, exit_timeout_s: float = 5.0, redact: Redact | None = None) -> Any:
    """Where metrics go: the global provider that the user configured, else our own; None when metrics are off.

    Ours exports every second (OTEL_METRIC_EXPORT_INTERVAL wins) and once more at exit, within `exit_timeout_s`.
    Raises `InvalidOptionError` and `MissingExtraError`.
    """
    if sdk_disabled():
        return None
    with _Own.lock:
        configured = _configured_meter_provider()
        if configured is not None:
            return configured
        return _own_meter_provider({}, exit_timeout_s, redact)


def _own_meter_provider(
    given: Mapping[str, Any], exit_timeout_s: float, redact: Redact | None = None
) -> MeterProvider | None:
    names = exporter_names("metrics")
    if not names:
        return None
    readers = []
    for name in names:
        try:
            readers.append(_metric_reader(name, given.get("otlp", {}), given.get("interval_ms")))
        except OSError as error:  # the pull endpoint's port is taken, by another process of the service perhaps
            warn_once(("metrics", name), "metrics are not served for Prometheus: %s", error)
    if not readers:
        return None
    tracer_provider = _Own.tracer_provider
    resource = tracer_provider.resource if tracer_provider else default_resource(given.get("resource"), redact)
    provider = MeterProvider(
        metric_readers=readers,
        resource=resource,
        exemplar_filter=_exemplar_filter(),
        shutdown_on_exit=False,
        views=given.get("views", ()),
    )
    metrics.set_meter_provider(provider)
    _Own.meter_provider, _Own.readers = provider, readers
    _watch_forks()
    # The last collection is quick, and is tried even when spans have used up the time.
    on_exit(lambda left_s: _shut_down(provider, readers, max(left_s, 0.1)), METRICS, exit_timeout_s)
    return provider


def metrics_of(provider: Any) -> Metrics | None:
    """How workers are to collect what leaves with the metrics of this provider; None where it has no such way."""
    for reader in _Own.readers if provider is _Own.meter_provider else ():
        if isinstance(reader, OtlpMetricReader) and isinstance(reader._exporter, OtlpMetricExporter):
            return reader._exporter.ways(reader._export_interval_millis)
    return None


def _shut_down(provider: MeterProvider, readers: Sequence[MetricReader], left_s: float) -> None:
    for reader in readers:
        if isinstance(reader, OtlpMetricReader):
            left_s = min(left_s, reader.prepare_end())
    provider.shutdown(timeout_millis=left_s * 1000)


def _metric_reader(name: str, otlp: Mapping[str, Any], interval_ms: float | None) -> MetricReader:
    interval_ms = interval_ms or milliseconds("OTEL_METRIC_EXPORT_INTERVAL") or _METRIC_INTERVAL_MS
    if name in _OTLP_PROTOCOLS:
        settings = read_settings("metrics", **{"protocol": _OTLP_PROTOCOLS[name], **otlp})
        return OtlpMetricReader(OtlpMetricExporter(settings), export_interval_millis=interval_ms)
    if name == "prometheus":
        return PullReader()
    kind = _entry_point("opentelemetry_metrics_exporter", "OTEL_METRICS_EXPORTER", name)
    if issubclass(kind, MetricReader):
        reader: MetricReader = kind()
        return reader
    return PeriodicExportingMetricReader(kind(), export_interval_millis=interval_ms)


# --- public ----------------------------------------------------------------------------------------------


def check_environment(*, traces: bool = True, metrics_too: bool = True, own_exporter: bool = False) -> None:
    """Raise the `InvalidOptionError` that setting up would raise, without setting anything up.

    A signal whose global provider the user configured is not looked at: its variables were read already.
    With `own_exporter` spans go to an exporter that was given, through a provider of ours: only what concerns that
    provider is looked at.
    """
    if sdk_disabled():
        return
    check_texts()
    configured = _configured_tracer_provider() if traces and not own_exporter else None
    if traces and configured is not None and configured is not _Own.tracer_provider:
        ProcessorTransport(configured, instrumentation_scope())  # raises for one that has no processors
    if own_exporter or (traces and (configured is None or _is_bare(configured))):
        _check_limits()
        _check_sampler()
        if not own_exporter:
            _batch_options()
            _check_exporters("traces", "opentelemetry_traces_exporter")
    if metrics_too and _configured_meter_provider() is None:
        milliseconds("OTEL_METRIC_EXPORT_INTERVAL")
        milliseconds("OTEL_METRIC_EXPORT_TIMEOUT")
        _exemplar_filter()
        exponential_histograms()
        check_temporality()
        _check_exporters("metrics", "opentelemetry_metrics_exporter")


_EXEMPLAR_FILTERS: dict[str, type[ExemplarFilter]] = {
    "trace_based": TraceBasedExemplarFilter,
    "always_on": AlwaysOnExemplarFilter,
    "always_off": AlwaysOffExemplarFilter,
}


def _exemplar_filter() -> ExemplarFilter:
    """The filter of OTEL_METRICS_EXEMPLAR_FILTER: the SDK raises a bare ValueError for a wrong or empty one."""
    name = variable_text("OTEL_METRICS_EXEMPLAR_FILTER").lower() or "trace_based"
    if name not in _EXEMPLAR_FILTERS:
        allowed = ", ".join(_EXEMPLAR_FILTERS)
        raise InvalidOptionError(f"OTEL_METRICS_EXEMPLAR_FILTER={shown(name)}: allowed are {allowed}")
    return _EXEMPLAR_FILTERS[name]()


_LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
_SAMPLERS = ("always_on", "always_off", "traceidratio")


def _check_limits() -> None:
    """The SDK reads these only when it makes its first span, and raises there."""
    for variable in _LIMITS:
        whole_number(variable, least=0)


def _check_sampler() -> None:
    """The SDK takes another sampler, with a log line, where it does not know the name or the ratio."""
    name = variable_text("OTEL_TRACES_SAMPLER").lower()
    known = {*_SAMPLERS, *(f"parentbased_{one}" for one in _SAMPLERS)}
    others = {entry.name for entry in metadata.entry_points(group="opentelemetry_traces_sampler")}
    if name and name not in known | others:
        allowed = ", ".join(sorted(known | others))
        raise InvalidOptionError(f"OTEL_TRACES_SAMPLER={shown(name)} is no sampler; allowed are {allowed}")
    text = variable_text("OTEL_TRACES_SAMPLER_ARG")
    if name.endswith("traceidratio") and text:
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0.0 <= ratio <= 1.0:
            raise InvalidOptionError(f"OTEL_TRACES_SAMPLER_ARG={shown(text)}: {name} needs a ratio from 0 to 1")


def _check_exporters(signal: str, group: str) -> None:
    for name in exporter_names(signal):
        if name in _OTLP_PROTOCOLS:
            read_settings(signal, protocol=_OTLP_PROTOCOLS[name])
        else:
            _entry_point(group, f"OTEL_{signal.upper()}_EXPORTER", name)
            if signal == "metrics" and name == "prometheus":
                pull_address()


def setup(
    *,
    service_name: str | None = None,
    resource: Mapping[str, Any] | None = None,
    endpoint: str | None = None,
    protocol: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    compression: str | None = None,
    insecure: bool | None = None,
    sampler: Sampler | None = None,
    views: Sequence[Any] = (),
    traces: bool = True,
    metrics: bool = True,
    metric_interval_s: float | None = None,
    on_full: str = "block",
    max_bytes: int = MAX_BYTES,
    block_timeout_s: float = 1.0,
    exit_timeout_s: float = 5.0,
) -> Providers:
    """Set up our global providers with explicit values; what is not given, the OTEL_* variables say.

    Call it before the first event, once; `OTelLog` then uses what it made. `endpoint` is the base for all signals
    ("http://host:4317"), `protocol` "grpc" or "http/protobuf", `timeout_s` that of one try, `resource` further
    attributes of the process. For the last four see `SpanPipeline`.
    Raises `ConcurrencyViolationError` when a global provider exists already, and `InvalidOptionError`.
    """
    if service_name is not None and not isinstance(service_name, str):
        raise InvalidOptionError(f"service_name={shown(service_name)}: give a text")
    check_sending({"on_full": on_full, "max_bytes": max_bytes})
    check_sending({"block_timeout_s": block_timeout_s, "exit_timeout_s": exit_timeout_s})
    for name, mapping in (("resource", resource), ("headers", headers)):
        if mapping is not None and not isinstance(mapping, Mapping):
            # Only the type is shown: headers carry credentials.
            raise InvalidOptionError(f"{name} is a mapping of names to values, not {type(mapping).__name__}")
    attributes = {**(resource or {}), **({"service.name": service_name} if service_name else {})}
    check_attributes("resource", attributes)
    otlp = {
        "endpoint": endpoint,
        "protocol": protocol,
        "headers": headers,
        "timeout_s": timeout_s,
        "compression": compression,
        "insecure": insecure,
    }
    given = {
        "otlp": {key: value for key, value in otlp.items() if value is not None},
        "resource": attributes,
        "sampler": sampler,
        "views": views,
        "interval_ms": None if metric_interval_s is None else _interval_ms(metric_interval_s),
    }
    options: dict[str, Any] = {"on_full": on_full, "max_bytes": max_bytes}
    options.update(block_timeout_s=block_timeout_s, exit_timeout_s=exit_timeout_s)
    if sdk_disabled():
        return Providers(None, None)
    with _Own.lock:
        _refuse_second(traces, metrics)
        output = _through_our_own(options, given) if traces else None
        meters = _own_meter_provider(given, exit_timeout_s) if metrics else None
    return Providers(output.provider if output else None, meters)


def _interval_ms(interval_s: float) -> float:
    return checked_seconds("metric_interval_s", interval_s, 0.001) * 1000.0


def _refuse_second(traces: bool, meters: bool) -> None:
    advice = "call setup() before the first event and before any other OpenTelemetry setup, or use what is there"
    if traces and _configured_tracer_provider() is not None:
        raise ConcurrencyViolationError(f"a global tracer provider exists already: {advice}")
    if meters and _configured_meter_provider() is not None:
        raise ConcurrencyViolationError(f"a global meter provider exists already: {advice}")


def _watch_forks() -> None:
    """Called after a provider was made: newer providers renew their resource in a hook of their own, before ours."""
    if not _Own.watching:
        _Own.watching = True
        forks.in_child_last(_refresh_after_fork)


@forks.in_child()
def _in_child() -> None:
    renew_locks(_Own.tracer_provider, _Own.meter_provider)


def _refresh_after_fork() -> None:
    """A child process is an instance of its own."""
    fresh = process_resource()
    for provider in (_Own.tracer_provider, _Own.meter_provider):
        if provider is not None and callable(getattr(provider, "_update_resource", None)):
            provider._update_resource(fresh)
        elif isinstance(provider, TracerProvider):
            provider._resource = provider.resource.merge(fresh)
    if _Own.tracer_provider is None or _Own.processor is None:
        return
    pipeline = _Own.processor.pipeline
    for part in pipeline.pipelines if isinstance(pipeline, FanOut) else [pipeline]:
        part.resource = _Own.tracer_provider.resource
