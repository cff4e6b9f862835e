"""What the acceptance tests of the bridge share: a log with in-memory ends, and a collector that only listens."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_timespan as ts
from tests.backends import ROOT
from tests.otel.log_bench import forget_line_filters

WAITS = (
    *(f"timespan.wait.{p}" for p in ("dependency", "schedule", "queue", "move", "finish")),
    "timespan.run.wall",
)
PHASES = {"schedule", "queue", "move", "compute", "finish"}
DEADLINE_S = 60


class Lab:
    """An OTelLog at providers of its own, as the sink of the current context."""

    def __init__(self, *, provider_options: dict[str, Any] | None = None, use: bool = True, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **(provider_options or {}))
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("user")
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider(
            metric_readers=[self.reader], exemplar_filter=AlwaysOnExemplarFilter(), shutdown_on_exit=False
        )
        self.log = ts.OTelLog(tracer_provider=self.provider, meter_provider=self.meters, **options)
        self.ctx = ts.eager_context()
        if use:
            self.ctx.log_sink = self.log

    def spans(self) -> list[ReadableSpan]:
        """All finished spans, the user's own too."""
        assert self.log.flush(DEADLINE_S), self.log.stats()
        return list(self.exporter.get_finished_spans())

    def points(self, name: str, flush: bool = True) -> list[Any]:
        """The data points of an instrument, after a flush unless exemplars matter: each collection ends those."""
        assert not flush or self.log.flush(DEADLINE_S), self.log.stats()
        return [p for m in metrics_of(self.reader) if m.name == name for p in m.data.data_points]

    def value(self, name: str, **attributes: Any) -> Any:
        """The sum of the values of the points that carry these attributes (dots as double underscores)."""
        wanted = {k.replace("__", "."): v for k, v in attributes.items()}
        return sum(p.value for p in self.points(name) if wanted.items() <= dict(p.attributes).items())

    def close(self) -> None:
        """Log off, close all."""
        self.ctx.log_sink = ts.NoOpLog()
        self.log.close()
        self.provider.shutdown()
        self.meters.shutdown()
        forget_line_filters()


def metrics_of(reader: InMemoryMetricReader) -> list[Any]:
    """All metrics that a collection gives."""
    data = reader.get_metrics_data()
    if data is None:
        return []
    return [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]


def sid(span: ReadableSpan) -> int:
    """Its span id."""
    return span.context.span_id


def parent(span: ReadableSpan) -> int | None:
    """Its parent's span id."""
    return span.parent.span_id if span.parent else None


def children(spans: Iterable[ReadableSpan], of: ReadableSpan) -> list[ReadableSpan]:
    """The direct children of a span, by start."""
    return sorted((s for s in spans if parent(s) == sid(of)), key=lambda s: s.start_time or 0)


def task_spans(spans: Iterable[ReadableSpan]) -> dict[int, ReadableSpan]:
    """Task spans by task id (the last attempt)."""
    found: dict[int, ReadableSpan] = {}
    for s in spans:
        if "timespan.task.id" in s.attributes and s.name not in PHASES:
            number = s.attributes["timespan.task.id"]
            if (
                number not in found
                or s.attributes["timespan.task.attempt"] > found[number].attributes["timespan.task.attempt"]
            ):
                found[number] = s
    return found


def task_span(spans: Iterable[ReadableSpan], task: Any) -> ReadableSpan:
    """The span of a DTask."""
    return task_spans(spans)[task.id]


def phase(spans: Iterable[ReadableSpan], task: Any, name: str) -> ReadableSpan:
    """The only phase span of a name of a task."""
    spans = list(spans)
    (found,) = [s for s in children(spans, task_span(spans, task)) if s.name == name]
    return found


def one(spans: Iterable[ReadableSpan], name: str) -> ReadableSpan:
    """The only span of a name."""
    found = [s for s in spans if s.name == name]
    assert len(found) == 1, Counter(s.name for s in spans)
    return found[0]


def check_tree(spans: Iterable[ReadableSpan], outside: Iterable[int] = ()) -> None:
    """What holds for every finished set of spans: unique ids, known parents, children inside of parents, durations."""
    spans = list(spans)
    by_id = {sid(s): s for s in spans}
    assert len(by_id) == len(spans), "a span id occurs twice"
    known = set(outside)
    for s in spans:
        assert s.start_time < s.end_time, f"{s.name} has no duration: Jaeger warns of it"
        up = parent(s)
        if up is None or up in known:
            continue
        assert up in by_id, f"{s.name} has an unknown parent"
        above = by_id[up]
        assert above.context.trace_id == s.context.trace_id
        assert above.start_time <= s.start_time, f"{s.name} starts before {above.name}"
        assert s.end_time <= above.end_time, f"{s.name} ends after {above.name}"


def check_waits(span: ReadableSpan) -> None:
    """Waits and run add up to the span's duration, to the rounding of floats."""
    total = sum(span.attributes[name] for name in WAITS)
    assert abs(round(total * 1e9) - (span.end_time - span.start_time)) <= 6, {n: span.attributes[n] for n in WAITS}
    assert all(span.attributes[name] >= 0 for name in WAITS)


def check_account(stats: dict[str, Any]) -> None:
    """Ruling 33."""
    total = stats["exported"] + stats["sampled"] + stats["pending"] + sum(stats["dropped"].values())
    assert stats["recorded"] == total, stats
    assert min(stats["exported"], stats["sampled"], stats["pending"], *stats["dropped"].values(), 0) >= 0, stats


class Ear:
    """A collector that takes OTLP over HTTP, keeps the bytes and parses them."""

    def __init__(self) -> None:
        ear = self
        self.requests: list[tuple[str, bytes]] = []
        self.status = 200

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if ear.status == 200:
                    ear.requests.append((self.path, body))
                self.send_response(ear.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(DEADLINE_S)

    def env(self) -> dict[str, str]:
        """What makes a program talk to it."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}

    def resource_spans(self) -> list[Any]:
        """All resource spans that came."""
        bodies = [b for path, b in self.requests if path == "/v1/traces"]
        return [r for b in bodies for r in ExportTraceServiceRequest.FromString(b).resource_spans]

    def spans(self) -> list[Any]:
        """All spans that came, as protobuf messages."""
        return [s for r in self.resource_spans() for scope in r.scope_spans for s in scope.spans]

    def metrics(self) -> dict[str, Any]:
        """The last message of each metric."""
        bodies = [b for path, b in self.requests if path == "/v1/metrics"]
        found = {}
        for b in bodies:
            for r in ExportMetricsServiceRequest.FromString(b).resource_metrics:
                for scope in r.scope_metrics:
                    found.update({m.name: m for m in scope.metrics})
        return found


def pairs(attributes: Any) -> dict[str, Any]:
    """OTLP's attributes as a dict."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def run(
    program: str, env: dict[str, str] | None = None, timeout: float = 60, code: int | None = 0, folder: Any = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with no OTEL_* variable but these; its output."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    clean["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**clean, **(env or {})}, capture_output=True, text=True, timeout=timeout, cwd=folder,
    )  # fmt: skip
    assert code is None or done.returncode == code, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def last_json(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON of the last line of output."""
    return json.loads(done.stdout.strip().splitlines()[-1])
