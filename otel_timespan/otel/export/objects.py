"""Ways out of the process by objects: an exporter that the user gave, a provider of the user's.

See transport.py for what a transport is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ...errors import InvalidOptionError
from ...timespans.warn import warn_once
from ..spans.spandata import SpanData
from .readable import readable_from_request, to_readable
from .sdklocks import renew_locks
from .settings import shown, whole_number
from .transport import ACCEPTED, REJECTED, RETRY, Item, Outcome, Request, Wrapped
from .wire import encode_request

__all__ = ["ProcessorTransport", "ReadableTransport", "halve_exports"]

_RAISES_BEFORE_REJECTED = 5


class ReadableTransport:
    """For an exporter that the user gave (`span_exporter=`): it is called with lists of `ReadableSpan`.

    A FAILURE is tried again like an unreachable collector. What makes an exporter raise that raised five times in a
    row before is refused (counted as rejected): what raises always would hold up all that follows.
    """

    wire = False
    host = advice = ""

    def __init__(self, exporter: SpanExporter, resource: Resource, scope: InstrumentationScope) -> None:
        if not callable(getattr(exporter, "export", None)):
            raise InvalidOptionError(
                f"span_exporter must be a SpanExporter with a method export, not {shown(exporter)}"
            )
        self.exporter, self.resource, self.scope = exporter, resource, scope
        self.target, self.timeout_s = type(exporter).__name__, 10.0
        self._raised = 0

    def send(self, body: bytes, count: int, timeout_s: float) -> Outcome:
        """As `send_spans`, of a request."""
        return self._export(readable_from_request(body))

    def send_spans(self, items: Sequence[Item], timeout_s: float) -> Outcome:
        """One call of `export`. Never raises; the exporter has its own timeout."""
        return self._export(_objects(items, self.resource, self.scope))

    def _export(self, spans: list[ReadableSpan]) -> Outcome:
        try:
            result = self.exporter.export(spans)
        except Exception as error:
            self._raised += 1
            status = RETRY if self._raised < _RAISES_BEFORE_REJECTED else REJECTED
            message = f"{self.target}.export raised {type(error).__name__}: {error}"
            return Outcome(status, message=message, reached=False)
        self._raised = 0
        if result is SpanExportResult.FAILURE:
            return Outcome(RETRY, message=f"{self.target}.export reported a failure", reached=False)
        return Outcome(ACCEPTED)  # exporters that return None are common and mean no harm

    def flush(self, timeout_s: float) -> bool:
        """The exporter's own `force_flush`."""
        flush = getattr(self.exporter, "force_flush", None)
        return flush(int(timeout_s * 1000)) is not False if callable(flush) else True

    def cancel(self) -> None:
        """Shut the exporter down."""
        shutdown = getattr(self.exporter, "shutdown", None)
        if callable(shutdown):
            shutdown()

    def after_fork(self) -> None:
        """The SDK's own exporters have locks; any other is the user's to make safe."""
        renew_locks(self.exporter)


def _objects(items: Sequence[Item], resource: Resource, scope: InstrumentationScope) -> list[ReadableSpan]:
    spans: list[ReadableSpan] = []
    for item in items:
        if isinstance(item, SpanData):
            spans.append(to_readable(item, resource, scope))
        elif isinstance(item, (Request, Wrapped)):
            spans += readable_from_request(item if isinstance(item, Request) else item.request())
        elif isinstance(item, bytes):
            spans += readable_from_request(encode_request([item], resource, scope))
        else:
            spans.append(item)
    return spans


class ProcessorTransport:
    """For a provider that the user gave: each finished span goes to its span processors (`on_end`).

    `on_start` was called by whoever opened the span, if at all (the body's recording span). A batch processor
    drops what its queue can't hold, so it is flushed each time that half a queue was handed over.
    Accepted means handed over; what the processors do with it is theirs, and so is their shutdown.
    """

    wire = False
    host = advice = ""

    def __init__(self, provider: TracerProvider, scope: InstrumentationScope) -> None:
        """Raises `InvalidOptionError` when this is no SDK provider, which alone has processors."""
        if not callable(getattr(getattr(provider, "_active_span_processor", None), "on_end", None)):
            raise InvalidOptionError(
                f"tracer_provider must be an opentelemetry.sdk.trace.TracerProvider, not {type(provider).__name__}"
            )
        self.provider, self.scope = provider, scope
        self.target, self.timeout_s = type(provider).__name__, 30.0
        self._room = self._queue_half = max((whole_number("OTEL_BSP_MAX_QUEUE_SIZE") or 2048) // 2, 1)

    def send(self, body: bytes, count: int, timeout_s: float) -> Outcome:
        """As `send_spans`, of a request."""
        return self._hand_over(readable_from_request(body), timeout_s)

    def send_spans(self, items: Sequence[Item], timeout_s: float) -> Outcome:
        """Call `on_end` of each. A processor that raises is logged once; the others still get the span."""
        return self._hand_over(_objects(items, self.provider.resource, self.scope), timeout_s)

    def _hand_over(self, spans: list[ReadableSpan], timeout_s: float) -> Outcome:
        processor, lost = self.provider._active_span_processor, 0
        for span in spans:
            try:
                processor.on_end(span)
            except Exception:
                lost += 1
                warn_once(self, "a span processor of %s failed in on_end", self.target)
            self._room -= 1
            if self._room <= 0:
                self.flush(timeout_s)
        return Outcome(ACCEPTED, lost, reached=False)

    def flush(self, timeout_s: float) -> bool:
        """The provider's `force_flush`."""
        self._room = self._queue_half
        return self.provider.force_flush(int(timeout_s * 1000))

    def cancel(self) -> None:
        """Nothing: the provider is the user's."""

    def after_fork(self) -> None:
        """The SDK's own processors have locks; any other is the user's to make safe."""
        renew_locks(self.provider)


# --- batches of the user's processors ---------------------------------------------------------------------

_HOPELESS = 64
"""So many failures in a row are not about one span."""


def halve_exports(provider: TracerProvider) -> None:
    """Have the exporters behind the SDK's own processors get a batch that they raise for in halves.

    There a span of ours shares its batch with the user's, and one that an exporter raises for costs them all. What is
    raised for a span alone is logged by the SDK, as it was.
    """
    for processor in getattr(provider._active_span_processor, "_span_processors", ()):
        if type(processor).__module__.startswith("opentelemetry.sdk."):
            exporter = getattr(processor, "span_exporter", None)
            export = getattr(exporter, "export", None)
            if exporter is not None and callable(export) and not hasattr(export, "halves"):
                _replace(exporter, export)


def _replace(exporter: Any, export: Callable[[Any], Any]) -> None:
    in_a_row = 0

    def halving(spans: Sequence[ReadableSpan]) -> Any:
        nonlocal in_a_row
        try:
            result = export(spans)
        except Exception:
            in_a_row += 1
            if len(spans) < 2 or in_a_row > _HOPELESS:
                raise
        else:
            in_a_row = 0
            return result
        results, errors = [], []
        middle = len(spans) // 2
        for half in (spans[:middle], spans[middle:]):
            try:
                results.append(halving(half))
            except Exception as error:
                errors.append(error)
        if not results:
            raise errors[0]
        if errors:
            warn_once((id(exporter), "refused"), "%s refused a span: %r", type(exporter).__name__, errors[0])
        failed = errors or SpanExportResult.FAILURE in results
        return SpanExportResult.FAILURE if failed else SpanExportResult.SUCCESS

    halving.halves = True  # type: ignore[attr-defined]
    try:
        exporter.export = halving
    except AttributeError:
        return  # a class with slots: it stays as it is
