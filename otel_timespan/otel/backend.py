"""What an `OTelLog` sends through: the spans' pipeline, the sampler, and the meter provider.

`check_options` finds at construction what can't work; `connect` opens it all at the first event.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from ..errors import InvalidOptionError
from ..timespans.warn import warn_once
from .export.objects import ProcessorTransport
from .export.pipeline import SpanPipeline
from .export.settings import check_sending, checked_seconds, shown, variable_text, whole_number
from .export.sizes import span_nbytes
from .export.transport import Wrapped
from .setup import (
    TraceOutput,
    check_environment,
    instrumentation_scope,
    meter_provider_for_metrics,
    provider_for_traces,
)
from .spans.budget import MAX_SPANS
from .spans.interest import Interest
from .spans.limits import Limits, limits_of
from .spans.redact import Redact
from .spans.runs import Sampled
from .spans.spandata import SpanData
from .spans.values import plain_attributes

__all__ = [
    "FROM_ENVIRONMENT",
    "Backend",
    "ExportOptions",
    "check_options",
    "checked_max_spans",
    "connect",
    "interest_of",
]

FROM_ENVIRONMENT: Any = object()
"""An option that was not given: a variable says it."""

_MAX_SPANS, _KEEP = "OTEL_TIMESPAN_MAX_SPANS", "OTEL_TIMESPAN_KEEP"

_log = logging.getLogger("otel_timespan")


class ExportOptions(NamedTuple):
    """The checked options of an `OTelLog` that concern sending."""

    tracer_provider: Any
    meter_provider: Any
    span_exporter: Any
    metrics: bool
    on_full: str
    max_bytes: int
    block_timeout_s: float
    exit_timeout_s: float
    root_quiet_s: float


def check_options(**given: Any) -> ExportOptions:
    """Raises `InvalidOptionError` naming the option, or the `OTEL_*` variable, that can't work."""
    seconds = {name: checked_seconds(name, value) for name, value in given.items() if name.endswith("_s")}
    options = ExportOptions(**{**given, **seconds})
    if options.tracer_provider is not None and options.span_exporter is not None:
        raise InvalidOptionError("give tracer_provider or span_exporter, not both")
    if options.tracer_provider is not None:
        ProcessorTransport(options.tracer_provider, instrumentation_scope())
    if options.span_exporter is not None and not callable(getattr(options.span_exporter, "export", None)):
        given_as = shown(options.span_exporter)
        raise InvalidOptionError(f"span_exporter is a SpanExporter with a method export, not {given_as}")
    if options.meter_provider is not None and not callable(getattr(options.meter_provider, "get_meter", None)):
        raise InvalidOptionError(f"meter_provider is a MeterProvider, not {shown(options.meter_provider)}")
    if not isinstance(options.metrics, bool):
        raise InvalidOptionError(f"metrics is True or False, not {shown(options.metrics)}")
    check_sending({name: getattr(options, name) for name in ("on_full", "max_bytes")})
    check_environment(
        traces=options.tracer_provider is None,
        metrics_too=options.metrics and options.meter_provider is None,
        own_exporter=options.span_exporter is not None,
    )
    return options


def checked_max_spans(given: Any) -> int | None:
    """The option `max_spans`, or what the variable says where it was not given. Raises `InvalidOptionError`."""
    if given is None:
        return None
    if given is FROM_ENVIRONMENT:
        if variable_text(_MAX_SPANS).lower() == "none":
            return None
        return whole_number(_MAX_SPANS) or MAX_SPANS
    check_sending({"max_spans": given})
    return int(given)


def interest_of(keep: Any, slow_s: Any, slow_factor: Any, max_bytes: int) -> Interest | None:
    """What runs are worth sending; None for all. Raises `InvalidOptionError`."""
    name, kept = ("keep", keep) if keep is not None else (_KEEP, variable_text(_KEEP).lower() or "all")
    if not isinstance(kept, str) or kept not in ("all", "interesting"):
        raise InvalidOptionError(f"{name}={shown(kept)}: allowed are all, interesting")
    slow_ns = None if slow_s is None else checked_seconds("slow_s", slow_s) * 1e9
    is_number = isinstance(slow_factor, (int, float)) and not isinstance(slow_factor, bool)
    if not is_number or not 1 <= slow_factor <= sys.float_info.max:
        raise InvalidOptionError(f"slow_factor={shown(slow_factor)}: give a number from 1 on")
    return Interest(slow_ns, float(slow_factor), max_bytes // 4, span_nbytes) if kept == "interesting" else None


def connect(options: ExportOptions, redact: Redact | None = None) -> Backend | None:
    """Open what the options and variables say; None when neither spans nor metrics are wanted.

    `redact` is asked about the resource where a provider is made here: that of a user's provider is the user's.
    """
    output = provider_for_traces(
        tracer_provider=options.tracer_provider,
        span_exporter=options.span_exporter,
        on_full=options.on_full,
        max_bytes=options.max_bytes,
        block_timeout_s=options.block_timeout_s,
        exit_timeout_s=options.exit_timeout_s,
        redact=redact,
    )
    meter_provider = options.meter_provider if options.metrics else None
    if options.metrics and meter_provider is None:
        try:
            meter_provider = meter_provider_for_metrics(exit_timeout_s=options.exit_timeout_s, redact=redact)
        except Exception:
            warn_once(connect, "metrics can't be set up; spans are sent all the same")
    if output is None and meter_provider is None:
        return None
    return Backend(output, meter_provider)


class Backend:
    """Where one log sends. Without `output` no run is sampled, so that metrics alone stay exact."""

    def __init__(self, output: TraceOutput | None, meter_provider: Any) -> None:
        self.meter_provider = meter_provider
        self._output = output
        provider = output.provider if output is not None else None
        self.sampler = getattr(provider, "sampler", None)
        self.resource: Resource | None = getattr(provider, "resource", None)
        self.scope: InstrumentationScope = instrumentation_scope()
        self.limits: Limits = limits_of(getattr(provider, "_span_limits", None))
        ids = getattr(provider, "id_generator", None)
        self._ids: IdGenerator = ids if isinstance(ids, IdGenerator) else RandomIdGenerator()
        self.on_start: Callable[[Any, Any], None] | None = None
        if isinstance(getattr(getattr(output, "pipeline", None), "transport", None), ProcessorTransport):
            self.on_start = _starter(provider)

    def new_trace_id(self) -> int:
        """Random, by the provider's generator."""
        return self._ids.generate_trace_id()

    def new_span_id(self) -> int:
        """Random, for roots only: all other ids are derived."""
        return self._ids.generate_span_id()

    def sample(self, above: Any, trace_id: int, name: str, attributes: Mapping[str, Any]) -> Sampled:
        """The head sampler's word on a root whose parent context is `above`. One that raises takes all."""
        if self._output is None:
            return Sampled(0)
        if self.sampler is None:
            return Sampled(1)
        try:
            result = self.sampler.should_sample(above, trace_id, name, SpanKind.INTERNAL, attributes, ())
            state = result.trace_state.to_header() if result.trace_state else ""
            return Sampled(int(result.decision.is_sampled()), state, plain_attributes(result.attributes)[0])
        except Exception:
            warn_once(self.sampler, "the sampler raised; the run is taken")
            return Sampled(1)

    def put(self, spans: Sequence[SpanData | Wrapped]) -> None:
        """Hand finished spans on, of workers' programs too."""
        if self._output is not None:
            self._output.pipeline.put(spans, self)

    @property
    def packing_limits(self) -> Limits | None:
        """The span limits of packed spans; None where spans do not leave as bytes, by one way only."""
        pipeline = self._output.pipeline if self._output is not None else None
        return pipeline.limits if isinstance(pipeline, SpanPipeline) and pipeline.transport.wire else None

    def put_packed(self, packed: list[bytes], count: int) -> None:
        """Hand on spans that are bytes already, where `packing_limits` says that this can be done."""
        if self._output is not None and isinstance(self._output.pipeline, SpanPipeline):
            self._output.pipeline.put_packed(packed, count, self)

    def account(self) -> tuple[int, dict[str, int]]:
        """(exported, {reason: dropped}) of one moment, of the spans that were put here."""
        if self._output is None:
            return 0, {}
        stats = self._output.pipeline.stats(self)
        return stats.exported, stats.dropped

    @property
    def takes_spans(self) -> bool:
        """Whether spans go anywhere."""
        return self._output is not None

    def flush(self, timeout_s: float) -> bool:
        """Send spans, then metrics, within the time."""
        deadline = time.monotonic() + timeout_s
        sent = self._output is None or self._output.pipeline.flush(timeout_s)
        flush = getattr(self.meter_provider, "force_flush", None)
        if callable(flush):
            left_ms = max(1.0, (deadline - time.monotonic()) * 1000)
            sent = self._flush_metrics(flush, left_ms) and sent
        return sent

    def _flush_metrics(self, flush: Callable[[float], Any], timeout_ms: float) -> bool:
        try:
            return flush(timeout_ms) is not False
        except Exception as error:
            _log.info("metrics could not be flushed: %s", error)  # their exporter says why, once
            return False

    def close(self, timeout_s: float) -> None:
        """Send what is left and drop what can't be; close what is ours alone."""
        if self._output is not None:
            self._output.close(timeout_s, self)


def _starter(provider: Any) -> Callable[[Any, Any], None] | None:
    """What tells the user's span processors of a body's start; None when none of them listens."""
    processor = getattr(provider, "_active_span_processor", None)
    if processor is None:
        return None

    def start(span: Any, parent_context: Any) -> None:
        for one in getattr(processor, "_span_processors", (processor,)):
            # The SDK's own processors do nothing at a start.
            if type(one).__module__.startswith("opentelemetry.sdk."):
                continue
            try:
                one.on_start(span, parent_context)
            except Exception:
                warn_once(one, "the span processor %s raised in on_start", type(one).__name__)

    return start
