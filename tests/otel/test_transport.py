"""Ways out of the process: what each answer of a receiver means, and what the variables must say."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel.export.objects import ProcessorTransport, ReadableTransport
from otel_timespan.otel.export.settings import exporter_names, milliseconds, read_settings
from otel_timespan.otel.export.transport import (
    ACCEPTED,
    REJECTED,
    RETRY,
    TOO_LARGE,
    OtlpTransport,
    Outcome,
    _grpc_outcome,
    _http_outcome,
)
from otel_timespan.otel.export.wire import encode_request, encode_span
from otel_timespan.otel.spans.spandata import ERROR, EventData, LinkData, SpanData

RESOURCE, SCOPE = Resource({"service.name": "test"}), InstrumentationScope("otel_timespan", "1", "schema")
DEADLINE_S = 20.0


def _span(number: int = 1, **fields: Any) -> SpanData:
    return SpanData("name", 7, number, 0, 1, 2, fields.pop("attributes", {"key": "value"}), **fields)


BODY = encode_request([encode_span(_span())], RESOURCE, SCOPE)


class Receiver:
    """What a test server saw, and what it shall answer."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Any = None
        self.hold = threading.Event()
        self.hold.set()
        self.url = ""


class _Servicer(TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.receiver.requests.append(request)
        self.receiver.headers.append(dict(context.invocation_metadata()))
        self.receiver.hold.wait(DEADLINE_S)
        if isinstance(self.receiver.reply, tuple):
            code, details, trailers = self.receiver.reply
            context.set_trailing_metadata(trailers)
            context.abort(code, details)
        return self.receiver.reply or ExportTraceServiceResponse()


@pytest.fixture
def grpc_receiver() -> Iterator[Receiver]:
    """A gRPC server on a free port."""
    receiver = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(_Servicer(receiver), server)
    receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield receiver
    receiver.hold.set()
    server.stop(None).wait()


@pytest.fixture
def http_receiver() -> Iterator[Receiver]:
    """An HTTP server on a free port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            unpack: dict[Any, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
            plain = unpack.get(self.headers.get("content-encoding"), bytes)(body)
            receiver.requests.append(ExportTraceServiceRequest.FromString(plain))
            receiver.headers.append({**{key.lower(): value for key, value in self.headers.items()}, ":path": self.path})
            status, headers, content = receiver.reply or (200, {}, b"")
            self.send_response(status)
            for key, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield receiver
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def transport() -> Iterator[Callable[..., OtlpTransport]]:
    """Makes transports and closes them after the test."""
    made: list[OtlpTransport] = []

    def make(**given: Any) -> OtlpTransport:
        made.append(OtlpTransport(read_settings("traces", **given)))
        return made[-1]

    yield make
    for each in made:
        each.cancel()


Make = Callable[..., OtlpTransport]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_grpc_sends_the_bytes(grpc_receiver: Receiver, transport: Make, compression: str) -> None:
    """The request arrives as it was made, with the headers, compressed or not."""
    way = transport(endpoint=grpc_receiver.url, headers={"X-Key": "a b"}, compression=compression)
    assert way.takes_bytes()
    assert way.send(BODY, 1, DEADLINE_S) == Outcome(ACCEPTED)
    assert grpc_receiver.requests == [ExportTraceServiceRequest.FromString(BODY)]
    assert grpc_receiver.headers[0]["x-key"] == "a b"


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_http_sends_the_bytes(http_receiver: Receiver, transport: Make, compression: str) -> None:
    """The request arrives at the signal's path as it was made, with the headers, compressed or not."""
    given = {"headers": {"X-Key": "a b"}, "compression": compression, "protocol": "http/protobuf"}
    way = transport(endpoint=http_receiver.url, **given)
    assert way.takes_bytes()
    assert way.send(BODY, 1, DEADLINE_S) == Outcome(ACCEPTED)
    assert http_receiver.requests == [ExportTraceServiceRequest.FromString(BODY)]
    sent = http_receiver.headers[0]
    assert (sent["x-key"], sent["content-type"], sent[":path"]) == ("a b", "application/x-protobuf", "/v1/traces")


def _retry_info(seconds: int) -> tuple[tuple[str, bytes], ...]:
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    info, wrapped = RetryInfo(), AnyMessage()
    info.retry_delay.seconds = seconds
    wrapped.Pack(info)
    return (("grpc-status-details-bin", Status(code=14, details=[wrapped]).SerializeToString()),)


@pytest.mark.parametrize(
    ("code", "details", "trailers", "status", "retry_after_s"),
    [
        (grpc.StatusCode.UNAVAILABLE, "busy", (), RETRY, None),
        (grpc.StatusCode.UNAVAILABLE, "busy", _retry_info(7), RETRY, 7.0),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue", (), RETRY, None),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5 vs. 4)", (), TOO_LARGE, None),
        (grpc.StatusCode.INVALID_ARGUMENT, "bad", (), REJECTED, None),
        (grpc.StatusCode.UNAUTHENTICATED, "who", (), REJECTED, None),
    ],
)
def test_grpc_codes(
    grpc_receiver: Receiver,
    transport: Make,
    code: grpc.StatusCode,
    details: str,
    trailers: Any,
    status: str,
    retry_after_s: float | None,
) -> None:
    """What each status code means: later, smaller, never."""
    grpc_receiver.reply = (code, details, trailers)
    outcome = transport(endpoint=grpc_receiver.url).send(BODY, 1, DEADLINE_S)
    assert (outcome.status, outcome.retry_after_s) == (status, retry_after_s)
    assert details in outcome.message


TOO_LARGE_WORDS = [
    "Error, decoded message length too large: found 6 bytes, the limit is: 4 bytes",
    "gRPC message exceeds maximum size 4194304: 6000691",
    "Received message exceeds the maximum configured message size.",
    "Sent message larger than max (6 vs. 4)",
    "http: request body too large",
    "Request Entity Too Large",
    "payload is too big",
    "The request exceeds the maximum size of 4194304 bytes",
    "max message length exceeded",
    "content length 5000000 is over the limit",
]
THROTTLED_WORDS = [
    "rate limit exceeded",
    "RATE_LIMITED: ingestion rate limit (local: 15000000 bytes) exceeded while adding 10 bytes",
    "quota exceeded: 5000 bytes",
    "too many concurrent requests, max 10 by message",
    "sending queue is full",
    "data refused due to high memory usage, limit 512 bytes",
]


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "INVALID_ARGUMENT", "INTERNAL"])
@pytest.mark.parametrize("details", TOO_LARGE_WORDS)
def test_too_large_in_the_words_of_many(code: str, details: str) -> None:
    """What the servers of several languages say of a request that is too large means: in smaller pieces."""
    assert _grpc_outcome(_Refusal(code, details)).status == TOO_LARGE
    assert _http_outcome(400, "Bad Request", {}, details.encode(), "traces").status == TOO_LARGE
    assert _http_outcome(500, details, {}, b"", "traces").status == TOO_LARGE


@pytest.mark.parametrize("details", THROTTLED_WORDS)
def test_too_fast_is_not_too_large(details: str) -> None:
    """What is said to a sender that is too fast sounds alike, and means: later, all of it."""
    assert _grpc_outcome(_Refusal("RESOURCE_EXHAUSTED", details)).status == RETRY
    assert _http_outcome(429, "Too Many Requests", {}, details.encode(), "traces").status == RETRY
    assert _http_outcome(503, "Service Unavailable", {}, details.encode(), "traces").status == RETRY


class _Refusal:
    """An error as gRPC raises it."""

    def __init__(self, code: str, details: str) -> None:
        self.code, self.details = lambda: grpc.StatusCode[code], lambda: details

    def trailing_metadata(self) -> tuple[()]:
        """None."""
        return ()


@pytest.mark.parametrize(
    ("code", "headers", "content", "status", "retry_after_s"),
    [
        (503, {}, b"", RETRY, None),
        (429, {"Retry-After": "9"}, b"", RETRY, 9.0),
        (503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, b"", RETRY, 0.0),
        (503, {"Retry-After": "soon"}, b"", RETRY, None),
        (413, {}, b"", TOO_LARGE, None),
        (400, {}, b"http: request body too large", TOO_LARGE, None),
        (400, {}, b"bad", REJECTED, None),
        (404, {}, b"", REJECTED, None),
        (500, {}, b"", REJECTED, None),
        (302, {"Location": "/elsewhere"}, b"", REJECTED, None),
        (200, {}, b"this is no protobuf", ACCEPTED, None),
    ],
)
def test_http_codes(
    http_receiver: Receiver,
    transport: Make,
    code: int,
    headers: dict[str, str],
    content: bytes,
    status: str,
    retry_after_s: float | None,
) -> None:
    """What each status code means: later, smaller, never."""
    http_receiver.reply = (code, headers, content)
    outcome = transport(endpoint=http_receiver.url, protocol="http/protobuf").send(BODY, 1, DEADLINE_S)
    assert (outcome.status, outcome.retry_after_s) == (status, retry_after_s)


def test_partial_success(grpc_receiver: Receiver, http_receiver: Receiver, transport: Make) -> None:
    """A receiver that refuses some spans says how many and why, by either protocol."""
    response = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="x")
    )
    grpc_receiver.reply, http_receiver.reply = response, (200, {}, response.SerializeToString())
    by_http = transport(endpoint=http_receiver.url, protocol="http/protobuf")
    for way in (transport(endpoint=grpc_receiver.url), by_http):
        assert way.send(BODY, 5, DEADLINE_S) == Outcome(ACCEPTED, 3, None, "x")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_nobody_there(transport: Make, protocol: str) -> None:
    """A refused connection is a reason to try later; then a new connection is made."""
    way = transport(endpoint="http://127.0.0.1:9", protocol=protocol)
    assert [way.send(BODY, 1, DEADLINE_S).status for _ in range(2)] == [RETRY, RETRY]


def test_a_try_has_an_end(grpc_receiver: Receiver, transport: Make) -> None:
    """A receiver that does not answer costs the timeout of the try and no more."""
    grpc_receiver.hold.clear()
    outcome = transport(endpoint=grpc_receiver.url).send(BODY, 1, 0.1)
    assert outcome.status == RETRY
    assert "DEADLINE_EXCEEDED" in outcome.message


def test_cancel_ends_a_try(grpc_receiver: Receiver, transport: Make) -> None:
    """`cancel` from another thread ends a try that hangs, long before its timeout."""
    grpc_receiver.hold.clear()
    way = transport(endpoint=grpc_receiver.url)
    if not hasattr(way.stock_exporter(), "_channel"):
        pytest.skip("this version of the exporter keeps no channel that could be closed")
    with futures.ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(way.send, BODY, 1, 1000.0)
        while not grpc_receiver.requests:
            assert not outcome.done()
        way.cancel()
        assert outcome.result(DEADLINE_S).status == RETRY
    assert way.send(BODY, 1, 1000.0).status == RETRY


class _Stub:
    """A stock exporter of an unknown version: only what is public is there."""

    def __init__(self, inner: SpanExporter) -> None:
        self.export, self.shutdown = inner.export, inner.shutdown


def test_without_private_parts_the_public_export_is_used(transport: Make) -> None:
    """Where the SDK's exporter has none of the attributes that we know, its `export` gets ReadableSpans."""
    exporter, way = InMemorySpanExporter(), transport()
    way._exporter_class = lambda **options: _Stub(exporter)
    assert not way.takes_bytes()
    assert way.send(BODY, 1, DEADLINE_S) == Outcome(ACCEPTED)
    assert [span.name for span in exporter.get_finished_spans()] == ["name"]
    exporter.export = lambda spans: SpanExportResult.FAILURE  # type: ignore[method-assign]
    way.after_fork()
    assert way.send(BODY, 1, DEADLINE_S).status == RETRY


def test_older_grpc_exporters_send_messages(grpc_receiver: Receiver, transport: Make) -> None:
    """An exporter that keeps a stub but no channel is used by its stub."""
    way = transport(endpoint=grpc_receiver.url)
    exporter = way.stock_exporter()
    channel = getattr(exporter, "_channel", None)
    exporter._channel = None
    assert way.send(BODY, 1, DEADLINE_S) == Outcome(ACCEPTED)
    assert len(grpc_receiver.requests) == 1
    if channel is not None:
        channel.close()


def test_older_http_exporters_send_by_their_session(http_receiver: Receiver, transport: Make) -> None:
    """An exporter with `_export(bytes)` and a session is used by that."""
    import requests

    way = transport(endpoint=http_receiver.url, protocol="http/protobuf")

    class Old:
        _timeout = 1.0

        def _export(self, body: bytes) -> Any:
            return requests.post(http_receiver.url, data=body, timeout=self._timeout)

        def shutdown(self) -> None:
            """Nothing to close."""

    way._exporter_class = lambda **options: Old()
    assert way.takes_bytes()
    assert way.send(BODY, 1, DEADLINE_S) == Outcome(ACCEPTED)
    http_receiver.reply = (503, {"retry-after": "4"}, b"")
    assert way.send(BODY, 1, DEADLINE_S).retry_after_s == 4.0


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "foo", "grpc, http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "grpc, http/protobuf"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "none, gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "abc", "seconds"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0", "0.001 or more"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan", "seconds"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "not a url", "http://host:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", "http://host:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://host:port", "http://host:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "key=value"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "maybe", "true, false"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "no-such-file", "no such file"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1e-300", "seconds"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "9" * 5000, "seconds"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://host:1\x7f", "control character"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://caf\udce9:1", "no UTF-8"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "host:70000", "http://host:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "good=1,x api=secret", "name of header 2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret%0Ab", "value of header 1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret%C3%A9", "value of header 1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret\udce9", "value of header 1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "k%C3%A9y=secret", "name of header 1"),
    ],
)
def test_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, hint: str) -> None:
    """A value that can't work is an error that names the variable and says what would."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidOptionError, match=f"{variable}.*{hint}") as error:
        read_settings("traces")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_schemes_and_values_in_any_case(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """Schemes, names and booleans may be written in any case; headers keep the case of their values."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "HTTP://Host:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.upper())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "GZip")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20YWJj==")
    settings = read_settings()
    assert settings.endpoint.startswith("http://Host:4317")
    assert (settings.protocol, settings.compression, settings.insecure) == (protocol, "gzip", True)
    assert settings.headers == (("authorization", "Basic YWJj=="),)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "HTTPS://Host:4317")
    assert not read_settings().insecure


def test_long_times_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A duration beyond what can be waited is as long as can be."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1e300")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1e300")
    assert read_settings().timeout_s == 86_400.0
    interval_ms = milliseconds("OTEL_METRIC_EXPORT_INTERVAL")
    assert interval_ms is not None
    assert interval_ms / 1000 < threading.TIMEOUT_MAX


def test_wrong_http_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """host:port is enough for gRPC, and not for HTTP."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318")
    assert read_settings().endpoint == "localhost:4318"
    with pytest.raises(InvalidOptionError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        read_settings(protocol="http/protobuf")


def test_the_signals_own_variable_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_TRACES_* wins over OTEL_EXPORTER_OTLP_*, and an empty variable is not set."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:1/base/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://own:2/exactly")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=1, B=x%20y")
    traces, metrics = read_settings("traces"), read_settings("metrics")
    assert (traces.endpoint, metrics.endpoint) == ("https://own:2/exactly", "http://general:1/base/v1/metrics")
    assert (traces.insecure, metrics.insecure, traces.timeout_s) == (False, True, 3.0)
    assert traces.headers == (("a", "1"), ("b", "x y"))


def test_exporter_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_TRACES_EXPORTER is a list; none stands alone; the default is otlp."""
    assert exporter_names("traces") == ["otlp"]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp, console")
    assert exporter_names("traces") == ["otlp", "console"]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "OTLP,Console,otlp")
    assert exporter_names("traces") == ["otlp", "console"]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "NONE")
    assert exporter_names("traces") == []
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none,otlp")
    with pytest.raises(InvalidOptionError, match="OTEL_TRACES_EXPORTER"):
        exporter_names("traces")


def test_an_exporter_gets_readable_spans() -> None:
    """A user's exporter sees all of a span: ids, times, attributes, links, events, status, resource, scope."""
    exporter = InMemorySpanExporter()
    span = _span(
        status=ERROR,
        status_message="no",
        links=[LinkData(3, 4, {"kind": "dependency"}, "a=1")],
        events=[EventData("exception", 5, {"exception.type": "E"})],
        dropped_links=2,
    )._replace(parent_id=9)
    assert ReadableTransport(exporter, RESOURCE, SCOPE).send_spans([span], 1.0) == Outcome(ACCEPTED)
    [seen] = exporter.get_finished_spans()
    assert (seen.name, seen.context.trace_id, seen.context.span_id, seen.parent.span_id) == ("name", 7, 1, 9)  # type: ignore[union-attr]
    assert (seen.start_time, seen.end_time, dict(seen.attributes or {})) == (1, 2, {"key": "value"})
    assert (seen.status.is_ok, seen.status.description, seen.dropped_links) == (False, "no", 2)
    assert (seen.links[0].context.span_id, seen.links[0].attributes) == (4, {"kind": "dependency"})
    assert (seen.events[0].name, seen.events[0].timestamp) == ("exception", 5)
    assert (seen.resource, seen.instrumentation_scope) == (RESOURCE, SCOPE)
    assert seen.context.trace_flags.sampled


def test_an_exporter_that_fails_is_tried_again() -> None:
    """FAILURE means later; raising means later too, but not for ever."""

    class Failing(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            raise RuntimeError("broken")

    failing = ReadableTransport(Failing(), RESOURCE, SCOPE)
    assert [failing.send_spans([_span()], 1.0).status for _ in range(5)] == [RETRY] * 4 + [REJECTED]
    failing.exporter.export = lambda spans: SpanExportResult.FAILURE  # type: ignore[method-assign]
    assert [failing.send_spans([_span()], 1.0).status for _ in range(9)] == [RETRY] * 9


def test_what_is_no_exporter_is_refused() -> None:
    """The error says what is needed."""
    with pytest.raises(InvalidOptionError, match="span_exporter"):
        ReadableTransport(object(), RESOURCE, SCOPE)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="tracer_provider"):
        ProcessorTransport(object(), SCOPE)  # type: ignore[arg-type]


def test_processors_get_on_end_only(caplog: pytest.LogCaptureFixture) -> None:
    """Each processor gets `on_end`, with the resource of the provider; one that raises hurts no other span."""
    calls: list[tuple[str, ReadableSpan]] = []

    class Seeing(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            calls.append(("start", span))

        def on_end(self, span: ReadableSpan) -> None:
            calls.append(("end", span))
            if span.context.span_id == 1:  # type: ignore[union-attr]
                raise RuntimeError("broken")

    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(Seeing())
    outcome = ProcessorTransport(provider, SCOPE).send_spans([_span(1), _span(2)], 1.0)
    assert (outcome.status, outcome.rejected) == (ACCEPTED, 1)
    assert [kind for kind, _ in calls] == ["end", "end"]
    assert calls[1][1].resource is provider.resource


def test_a_batch_processor_loses_nothing_in_a_burst() -> None:
    """Ten times what a batch processor's queue holds arrives, for it is flushed in time."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=10_000_000))
    transport = ProcessorTransport(provider, SCOPE)
    for first in range(1, 20_001, 4_000):
        transport.send_spans([_span(number) for number in range(first, first + 4_000)], DEADLINE_S)
    assert transport.flush(DEADLINE_S)
    assert len(exporter.get_finished_spans()) == 20_000
    provider.shutdown()
