"""The bound in bytes holds for what users put into spans; times hold for all exporters together."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, Status, StatusCode

from otel_timespan.otel.export.objects import ReadableTransport
from otel_timespan.otel.export.pipeline import SpanPipeline, close_all, flush_all
from otel_timespan.otel.export.transport import RETRY, Outcome
from otel_timespan.otel.spans.spandata import ERROR, EventData, LinkData, SpanData
from tests.backends import ROOT
from tests.otel.test_pipeline import DEADLINE_S, RESOURCE, SCOPE, Collector, _spans

BOUND = 1 << 20

Fill = Callable[[Any, int], None]


def _link(span: Any, number: int, to: int) -> None:
    span.add_link(SpanContext(1, to, False), {"n": f"{number} {to}"})


FILLS: dict[str, Fill] = {
    "nothing": lambda span, n: None,
    "text": lambda span, n: span.set_attribute("text", f"{n} " * 20_000),
    "texts": lambda span, n: span.set_attributes({f"key{j}": f"value {n} {j}" for j in range(60)}),
    "list": lambda span, n: span.set_attribute("list", [n * 1000 + j for j in range(2000)]),
    "event": lambda span, n: span.add_event("event", {"text": f"{n} " * 20_000}),
    "events": lambda span, n: [span.add_event(f"event {n} {j}", {"number": n + j}) for j in range(60)] and None,
    "links": lambda span, n: [_link(span, n, j) for j in range(1, 60)] and None,
    "status": lambda span, n: span.set_status(Status(StatusCode.ERROR, f"{n} " * 20_000)),
    "name": lambda span, n: span.update_name(f"{n} " * 20_000),
}  # fmt: skip


class Away(Collector):
    """A receiver that can't be reached, and does not look at what it gets."""

    def send(self, body: bytes, count: int, timeout_s: float) -> Outcome:
        """Refused."""
        return Outcome(RETRY, reached=False)

    def send_spans(self, items: Any, timeout_s: float) -> Outcome:
        """Refused."""
        return Outcome(RETRY, reached=False)


def _growth(transport: Any, put: Callable[[SpanPipeline, int], None]) -> int:
    pipeline = SpanPipeline(transport, resource=RESOURCE, scope=SCOPE, on_full="drop", max_bytes=BOUND)
    try:
        put(pipeline, 0)  # caches
        gc.collect()
        tracemalloc.start()
        for number in range(100_000):
            put(pipeline, number)
            if pipeline.stats().dropped:
                break
        assert pipeline.stats().dropped
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        pipeline.close(0)


def _transport(wire: bool) -> Any:
    transport = Away()
    transport.wire = wire
    return transport


@pytest.mark.parametrize("wire", [True, False], ids=["bytes", "objects"])
@pytest.mark.parametrize("fill", FILLS)
def test_users_spans_take_no_more_than_the_bound(fill: str, wire: bool) -> None:
    """Whatever a user's span holds, the queue takes at most twice its bound, and not a small part of it either."""
    tracer = TracerProvider(resource=RESOURCE, shutdown_on_exit=False).get_tracer("mine")

    def put(pipeline: SpanPipeline, number: int) -> None:
        span = tracer.start_span("name")
        FILLS[fill](span, number)
        span.end()
        pipeline.put_readable(span._readable_span())  # type: ignore[attr-defined]

    assert 0.4 * BOUND < _growth(_transport(wire), put) < 2 * BOUND


@pytest.mark.parametrize("wire", [True, False], ids=["bytes", "objects"])
@pytest.mark.parametrize("what", ["nothing", "text", "texts", "events", "links", "status"])
def test_our_spans_take_no_more_than_the_bound(what: str, wire: bool) -> None:
    """The same of spans of ours, with what users put on them."""

    def put(pipeline: SpanPipeline, number: int) -> None:
        long = f"{number} " * 20_000
        fields: dict[str, Any] = {
            "nothing": {},
            "text": {"attributes": {"text": long}},
            "texts": {"attributes": {f"key{j}": f"value {number} {j}" for j in range(60)}},
            "events": {"events": [EventData(f"e{j}", 1, {"text": f"{number} {j}"}) for j in range(60)]},
            "links": {"links": [LinkData(number << 64, j, {"text": f"{number} {j}"}) for j in range(60)]},
            "status": {"status": ERROR, "status_message": long},
        }[what]
        ids = (number + 1) << 65, (number + 1) << 31
        pipeline.put([SpanData("name", *ids, 7, number << 40, number << 41, **{"attributes": {}, **fields})])

    assert 0.3 * BOUND < _growth(_transport(wire), put) < 2 * BOUND


def test_a_span_larger_than_the_bound_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """It can't wait anywhere: it is counted, and others go on."""
    pipeline = SpanPipeline(Collector(), resource=RESOURCE, scope=SCOPE, max_bytes=100_000, linger_s=0.0)
    pipeline.put([*_spans(1, 1), *_spans(2, 2, text="x" * 200_000), *_spans(3, 3)])
    assert pipeline.flush(DEADLINE_S)
    assert (pipeline.stats().exported, pipeline.stats().dropped) == (2, {"queue_full": 1})
    pipeline.close()


@pytest.mark.parametrize("way", ["flush", "close"])
def test_a_receiver_that_hangs_takes_no_time_from_another(way: str) -> None:
    """Several pipelines are flushed and closed at once: the second sends while the first is waited for."""
    hanging, healthy = Collector(), Collector()
    hanging.gate.clear()
    options: dict[str, Any] = {"resource": RESOURCE, "scope": SCOPE, "linger_s": 1000.0}
    pipelines = [SpanPipeline(hanging, **options), SpanPipeline(healthy, **options)]
    for pipeline in pipelines:
        pipeline.put(_spans(1, 2))
    end = {"flush": lambda: flush_all(pipelines, 600.0), "close": lambda: close_all(pipelines, 600.0)}[way]
    thread = threading.Thread(target=end)
    thread.start()
    assert hanging.entered.wait(DEADLINE_S)
    assert healthy.entered.wait(DEADLINE_S)
    hanging.gate.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert hanging.received == healthy.received == [1, 2]
    for pipeline in pipelines:
        pipeline.close(0)


def test_an_exporter_that_hangs_in_its_shutdown_is_left_alone() -> None:
    """`close` comes back all the same."""
    gate = threading.Event()

    class Hanging:
        def export(self, spans: Any) -> None:
            """Take them."""

        def shutdown(self) -> None:
            """Hang."""
            gate.wait()

    transport = ReadableTransport(Hanging(), RESOURCE, SCOPE)  # type: ignore[arg-type]
    pipeline = SpanPipeline(transport, resource=RESOURCE, scope=SCOPE)
    pipeline.put(_spans(1, 1))
    pipeline.close(0.05)
    assert pipeline.closed
    gate.set()


_PROGRAM = """
import otel_timespan as ts
ts.eager_context().log_sink = log = ts.OTelLog(exit_timeout_s=600)
ts.fetch(ts.spawn(abs, -1))
{end}
"""


@pytest.mark.parametrize("end", ["", "log.close()"], ids=["exit", "close"])
@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, {"OTEL_TRACES_EXPORTER": "otlp,otlp_proto_grpc"}],
    ids=["grpc", "http", "two"],
)
def test_without_a_collector_a_program_ends(environment: dict[str, str], end: str) -> None:
    """Where none ever answered the end waits for none, whatever it may wait, and one line says how to get one."""
    address = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(end=end)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **address, **environment},
    )  # fmt: skip
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if "docker compose up" in line]
    assert len(told) == 1, done.stderr
    assert "metrics" not in done.stderr


MEMORY_OF_BODIES = """
import os
import otel_timespan as ts
from opentelemetry import trace

log = ts.OTelLog(metrics=False, max_bytes=8 << 20, on_full="drop")
ts.eager_context().log_sink = log

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def body(n):
    trace.get_current_span().set_attribute("prompt", str(n) + "x" * 500_000)

ts.fetch_all([ts.spawn(body, n) for n in range(20)])
before = resident()
with ts.dag("run"):
    for _ in range(10):
        ts.fetch_all([ts.spawn(body, n) for n in range(100)])
stats = log.stats()
assert stats["recorded"] == stats["pending"] + sum(stats["dropped"].values()), stats
print((resident() - before) >> 20)
os._exit(0)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not say how much memory is in use")
def test_what_bodies_put_on_their_spans_counts_while_it_waits_in_the_journal() -> None:
    """500 MB of texts on the spans of bodies, a collector that is away, max_bytes of 8 MiB: memory grows by few."""
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEMORY_OF_BODIES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48, done.stdout
