"""Ways out of the process by bytes: OTLP over gRPC or HTTP; and what all transports are.

A transport makes one try and says what came of it (`Outcome`); retries, waiting and accounting are the
pipeline's, so that a shutdown never waits for an exporter's sleep. It is called by one thread at a time;
only `cancel` may come from another.

The stock exporters do all that the standard variables ask (TLS, credentials, proxies); of them are used the
channel (gRPC) and the HTTP client, so that ready-made bytes can be sent. These are private attributes:
where a version of the SDK has none of them, the bytes are parsed and go through the public `export`.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ... import forks
from ...errors import MissingExtraError
from .readable import readable_from_request
from .settings import OtlpSettings
from .wire import SPAN_TAG, Envelope, enclose, framed

__all__ = [
    "ACCEPTED",
    "REJECTED",
    "RETRY",
    "TOO_LARGE",
    "OtlpTransport",
    "Outcome",
    "Request",
    "Transport",
    "Wrapped",
    "outage_left",
    "outage_level",
    "outage_over",
    "silenced_here",
    "suppressed",
]

_log = logging.getLogger("otel_timespan")

_STOCK_READS = (
    "opentelemetry.exporter.otlp.proto.common._internal.metrics_encoder",
    "opentelemetry.exporter.otlp.common._aggregation",
)
"""Where a stock exporter says, each time that one is made, which variables it can't read: settings.py said it."""

ACCEPTED, RETRY, TOO_LARGE, REJECTED = "accepted", "retry", "too_large", "rejected"


class Outcome(NamedTuple):
    """What came of one try.

    ACCEPTED (of these, `rejected` spans were refused), RETRY (later, not before `retry_after_s` seconds),
    TOO_LARGE (send it in smaller pieces), REJECTED (it will never be accepted). `reached`: whether it is sure that
    the receiver answered. `whole`: it was refused for what it is, not for what is in it: no part would be taken.
    """

    status: str
    rejected: int = 0
    retry_after_s: float | None = None
    message: str = ""
    reached: bool = True
    whole: bool = False


class Request(bytes):
    """One span as a whole `ExportTraceServiceRequest`: a span of another scope, read back from disk."""


class Wrapped(NamedTuple):
    """The body of a span of another scope, or of another process."""

    body: bytes
    envelope: Envelope

    def request(self) -> Request:
        """As a request of its own."""
        return Request(enclose([framed(SPAN_TAG, self.body)], self.envelope))


Item = Any
"""bytes (a body of `encode_span`), `Packed`, `Wrapped`, `Request`, `SpanData` or the SDK's `ReadableSpan`."""


class Transport(Protocol):
    """What the pipeline needs. `wire` says whether `send` (bytes) or `send_spans` (objects) is to be called.

    `host`: where it sends, "" where nobody can know; `advice`: what to do where it never answered, "" for nothing.
    """

    wire: bool
    target: str
    timeout_s: float
    host: str
    advice: str

    def send(self, body: bytes, count: int, timeout_s: float) -> Outcome:
        """Send a request of `count` spans."""

    def send_spans(self, items: Sequence[Item], timeout_s: float) -> Outcome:
        """Send spans as objects."""

    def flush(self, timeout_s: float) -> bool:
        """Flush what lies behind the transport."""

    def cancel(self) -> None:
        """End a try that is under way, and all later ones."""

    def after_fork(self) -> None:
        """Forget connections: they are the parent's."""


@contextmanager
def suppressed() -> Iterator[None]:
    """Instrumentation is off inside: the export of spans must not make spans."""
    token = otel_context.attach(_suppressing())
    try:
        yield
    finally:
        otel_context.detach(token)


def _suppressing() -> otel_context.Context:
    context = otel_context.get_current()
    # The API has keys of its own, the instrumentation libraries look at the plain one too.
    for key in ("_SUPPRESS_INSTRUMENTATION_KEY", "_SUPPRESS_HTTP_INSTRUMENTATION_KEY"):
        if hasattr(otel_context, key):
            context = otel_context.set_value(getattr(otel_context, key), True, context)
    return otel_context.set_value("suppress_instrumentation", True, context)


class OtlpTransport:
    """OTLP as the standard variables say (`settings.read_settings`), for "traces" or "metrics".

    The libraries are loaded at once, for some of them can't be any more when the interpreter exits; the connection
    is made at the first `send`. A lost gRPC connection is made anew, for a channel that failed may sleep for
    minutes by itself.
    """

    wire = True

    def __init__(self, settings: OtlpSettings) -> None:
        """Raises `MissingExtraError` when the exporter of this protocol is not installed."""
        self.settings = settings
        self.target, self.timeout_s = settings.endpoint, settings.timeout_s
        self.host, self.advice = urlsplit(settings.endpoint).netloc or settings.endpoint, _advice(settings)
        self._exporter: Any = None
        self._post: Callable[[bytes, float], Outcome] | None = None
        self._cancelled = False
        self._exporter_class = _exporter_class(settings)

    def send(self, body: bytes, count: int, timeout_s: float) -> Outcome:
        """One try of at most `timeout_s` seconds. Never raises."""
        if self._cancelled:
            return Outcome(RETRY, message="the transport is closed", reached=False)
        try:
            if self._post is None:
                self._post = self._connect()
            # gRPC's own care for forks ends where a thread is inside of it; HTTP has nothing that a child would miss.
            with forks.held_off if self.settings.protocol == "grpc" else nullcontext():
                outcome = self._post(body, timeout_s)
        except Exception as error:
            # Whatever a library raises beside its documented errors: the pipeline warns with the message.
            outcome = Outcome(RETRY, message=f"{type(error).__name__}: {error}", reached=False)
        if outcome.status == RETRY and self.settings.protocol == "grpc":
            self._disconnect()
        return outcome

    def send_spans(self, items: Sequence[Item], timeout_s: float) -> Outcome:
        """Not used: `wire` is True."""
        raise NotImplementedError("this transport takes bytes")

    def stock_exporter(self) -> Any:
        """The stock exporter behind this transport, made at the first call."""
        if self._exporter is None:
            with forks.held_off, silenced_here(*_STOCK_READS):
                self._exporter = self._exporter_class(**_exporter_options(self.settings))
        return self._exporter

    def takes_bytes(self) -> bool:
        """Whether this version of the stock exporter lets us send bytes; else `export` is all there is."""
        return _poster(self.stock_exporter(), self.settings) is not None

    def flush(self, timeout_s: float) -> bool:
        """True: nothing waits here."""
        return True

    def cancel(self) -> None:
        """Close the connection; a try under way ends at once (gRPC) or is left to its thread (HTTP)."""
        self._cancelled = True
        self._disconnect()

    def after_fork(self) -> None:
        """Drop the connection without closing it: a channel of the parent must not be touched here."""
        _abandoned.append(self._exporter)
        self._exporter, self._post, self._cancelled = None, None, False

    def _connect(self) -> Callable[[bytes, float], Outcome]:
        exporter = self.stock_exporter()
        with forks.held_off:
            return _poster(exporter, self.settings) or _export_objects(exporter)

    def _disconnect(self) -> None:
        exporter, self._exporter, self._post = self._exporter, None, None
        if exporter is not None:
            try:
                with forks.held_off:
                    exporter.shutdown()
            except Exception as error:
                _log.debug("closing the exporter to %s failed: %s", self.target, error)


@contextmanager
def silenced_here(*names: str) -> Iterator[None]:
    """What loggers of these names, the stock exporters', log on this thread is dropped: we say it, once."""
    me = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return threading.get_ident() != me

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(elsewhere)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(elsewhere)


def _advice(settings: OtlpSettings) -> str:
    if "://" not in settings.endpoint and not settings.insecure:
        return f"an address without a scheme means TLS: http://{settings.endpoint} is without"
    return "nothing has answered there so far: `docker compose up` starts a collector (docs/deploy.md)"


_down: dict[str, tuple[str, int]] = {}
"""Of which hosts it was told that they can't be reached, for which signal, and by whom (0: who is closed by now)."""


def outage_level(host: str, signal: str, teller: int) -> int:
    """How to log that a host can't be reached: where several send to the same one warning is enough."""
    told, by = _down.get(host, (signal, 0))
    if told != signal or by not in (0, teller):
        return logging.INFO
    if host:
        _down[host] = (signal, teller)
    return logging.WARNING


def outage_over(host: str) -> None:
    """It can be reached again: the next outage is another one."""
    _down.pop(host, None)


def outage_left(host: str, teller: int) -> None:
    """Who told of it is closed: who comes after it tells anew."""
    signal, by = _down.get(host, ("", 0))
    if by == teller:
        _down[host] = (signal, 0)


_abandoned: list[Any] = []
"""Exporters of a parent process; kept, because their finalizers would close what the parent still uses."""


def _exporter_class(settings: OtlpSettings) -> Any:
    package = "grpc" if settings.protocol == "grpc" else "http"
    kind, name = ("trace", "OTLPSpanExporter") if settings.signal == "traces" else ("metric", "OTLPMetricExporter")
    if package == "http":
        importlib.import_module("netrc")  # requests loads it at its first request: see `forks.held_off`
    try:
        module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}.{kind}_exporter")
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"opentelemetry-exporter-otlp-proto-{package}", "otlp") from error
    return getattr(module, name)


def _exporter_options(settings: OtlpSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"endpoint": settings.endpoint, "timeout": settings.timeout_s}
    if settings.protocol == "grpc":
        from grpc import Compression as GrpcCompression  # type: ignore[import-untyped,unused-ignore]

        # Given outright even where it is none, for the stock exporter refuses OTEL_EXPORTER_OTLP_COMPRESSION=none.
        gzip = settings.compression == "gzip"
        options["compression"] = GrpcCompression.Gzip if gzip else GrpcCompression.NoCompression
        options["insecure"] = settings.insecure
        options["headers"] = settings.headers or None
    else:
        from opentelemetry.exporter.otlp.proto.http import Compression

        options["compression"] = Compression(settings.compression)
        options["headers"] = dict(settings.headers) or None
    return options


def _poster(exporter: Any, settings: OtlpSettings) -> Callable[[bytes, float], Outcome] | None:
    """The function that posts bytes through this exporter; None where its private parts are not as known."""
    if settings.protocol == "grpc":
        return _grpc_poster(exporter, settings)
    client = getattr(exporter, "_client", None)
    if all(callable(getattr(client, name, None)) for name in ("_submit", "_compress")):
        return _client_poster(client, settings.signal)
    if callable(getattr(exporter, "_export", None)) and hasattr(exporter, "_timeout"):
        return _session_poster(exporter, settings.signal)
    return None


def _export_objects(exporter: SpanExporter) -> Callable[[bytes, float], Outcome]:
    def post(body: bytes, timeout_s: float) -> Outcome:
        done = exporter.export(readable_from_request(body)) is SpanExportResult.SUCCESS
        return Outcome(ACCEPTED) if done else Outcome(RETRY, message="the exporter reported a failure", reached=False)

    return post


# --- "too large", in whatever words ----------------------------------------------------------------------

_TOO_LARGE = re.compile(
    r"too\W?(large|big|long)|larger than|bigger than|longer than"
    r"|(message|request|body|payload|entity|content|length|size)\b.*\b(exceed|over the|limit|max)"
    r"|(exceed|over the|limit|max)\w*\b.*\b(size|length|bytes|message)",
    re.IGNORECASE | re.DOTALL,
)
_THROTTLED = re.compile(
    r"\brates?\b|rate.?limit|quota|too many|throttl|concurren|memory|per (second|minute)", re.IGNORECASE
)


def _says_too_large(text: str) -> bool:
    """Whether a refusal is about the size of the request. Each language's gRPC has words of its own for that, and
    codes of its own too; those for a sender that is too fast look alike."""
    return _TOO_LARGE.search(text) is not None and _THROTTLED.search(text) is None


# --- gRPC ------------------------------------------------------------------------------------------------

_RETRYABLE_CODES = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
_UNREACHED_CODES = frozenset(("CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"))  # said by our own side, too
_WHOLE_CODES = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"))


def _grpc_poster(exporter: Any, settings: OtlpSettings) -> Callable[[bytes, float], Outcome] | None:
    headers = getattr(exporter, "_headers", None)
    export = _grpc_call(exporter, settings.signal)
    if export is None or headers is None:
        return None
    from grpc import RpcError  # type: ignore[import-untyped,unused-ignore]

    def post(body: bytes, timeout_s: float) -> Outcome:
        try:
            return _partial(export(body, metadata=headers, timeout=timeout_s).partial_success)
        except RpcError as error:
            return _grpc_outcome(error)

    return post


def _grpc_call(exporter: Any, signal: str) -> Any:
    """A call that takes bytes: on the exporter's channel, or (before 1.35) on its stub, which takes messages."""
    name = "trace" if signal == "traces" else "metrics"
    messages = _messages(signal)
    channel, client = getattr(exporter, "_channel", None), getattr(exporter, "_client", None)
    if callable(getattr(channel, "unary_unary", None)):
        method = f"/opentelemetry.proto.collector.{name}.v1.{name.capitalize()}Service/Export"
        response = getattr(messages, f"Export{name.capitalize()}ServiceResponse")
        return channel.unary_unary(method, response_deserializer=response.FromString)  # type: ignore[union-attr]
    if callable(getattr(client, "Export", None)):
        request = getattr(messages, f"Export{name.capitalize()}ServiceRequest")
        return lambda body, **options: client.Export(request.FromString(body), **options)  # type: ignore[union-attr]
    return None


def _messages(signal: str) -> Any:
    name = "trace" if signal == "traces" else "metrics"
    return importlib.import_module(f"opentelemetry.proto.collector.{name}.v1.{name}_service_pb2")


def _partial(partial: Any) -> Outcome:
    rejected = getattr(partial, "rejected_spans", 0) or getattr(partial, "rejected_data_points", 0)
    return Outcome(ACCEPTED, rejected, message=partial.error_message)


def _grpc_outcome(error: Any) -> Outcome:
    code, details = error.code().name, error.details() or ""
    message = f"{code}: {details}"
    if code not in _UNREACHED_CODES and _says_too_large(details):
        return Outcome(TOO_LARGE, message=message)
    if code in _RETRYABLE_CODES:
        reached = code not in _UNREACHED_CODES
        return Outcome(RETRY, retry_after_s=_grpc_retry_after(error), message=message, reached=reached)
    return Outcome(REJECTED, message=message, whole=code in _WHOLE_CODES)


def _grpc_retry_after(error: Any) -> float | None:
    """The server's RetryInfo, in the status details or in a trailer of its own."""
    with forks.held_off:
        from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped,unused-ignore]
        from google.rpc.status_pb2 import Status  # type: ignore[import-untyped,unused-ignore]

    trailers = dict(error.trailing_metadata() or ())
    info = RetryInfo()
    if "google.rpc.retryinfo-bin" in trailers:
        info.ParseFromString(trailers["google.rpc.retryinfo-bin"])
    for detail in Status.FromString(trailers.get("grpc-status-details-bin", b"")).details:
        detail.Unpack(info)  # does nothing with a detail of another type
    delay = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
    return float(delay) if delay > 0 else None


# --- HTTP ------------------------------------------------------------------------------------------------

_RETRYABLE_STATUS = (408, 429, 502, 503, 504)
_WHOLE_STATUS = (401, 403, 404, 405, 407, 410, 415, 501)


def _client_poster(client: Any, signal: str) -> Callable[[bytes, float], Outcome]:
    """Of stock exporters since 1.42: a client that reports errors as results."""

    def post(body: bytes, timeout_s: float) -> Outcome:
        result = client._submit(client._compress(body), timeout_s)
        if result.status_code is None:
            return Outcome(RETRY, message=f"{type(result.error).__name__}: {result.error}", reached=False)
        return _http_outcome(result.status_code, result.reason, result.headers(), result.content(), signal)

    return post


def _session_poster(exporter: Any, signal: str) -> Callable[[bytes, float], Outcome]:
    """Of older stock exporters: `_export(body)` returns a response of requests, or raises."""

    def post(body: bytes, timeout_s: float) -> Outcome:
        exporter._timeout = timeout_s
        response = exporter._export(body)
        return _http_outcome(response.status_code, response.reason, response.headers, response.content, signal)

    return post


def _http_outcome(status: int, reason: Any, headers: Any, content: bytes, signal: str) -> Outcome:
    if 200 <= status < 300:
        return _http_accepted(content, signal)
    message = f"HTTP {status} {reason or ''}".strip()
    words = f"{reason or ''} {content[:2000].decode('utf-8', 'replace')}"
    if status == 413 or (status not in (408, 429) and status not in _WHOLE_STATUS and _says_too_large(words)):
        return Outcome(TOO_LARGE, message=message)
    if status in _RETRYABLE_STATUS:
        return Outcome(RETRY, retry_after_s=_http_retry_after(headers), message=message)
    return Outcome(REJECTED, message=message, whole=status in _WHOLE_STATUS or 300 <= status < 400)


def _http_accepted(content: bytes, signal: str) -> Outcome:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    messages = _messages(signal)
    response = messages.ExportTraceServiceResponse if signal == "traces" else messages.ExportMetricsServiceResponse
    try:
        return _partial(response.FromString(content).partial_success)
    except DecodeError:
        return Outcome(ACCEPTED)  # some receivers answer 200 with a text; it was accepted


def _http_retry_after(headers: Any) -> float | None:
    with forks.held_off:
        import time
        from email.utils import parsedate_to_datetime

    text = str(headers.get("retry-after") or "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None  # neither form of RFC 7231: our own back-off is used
