"""The collector with our file: bursts, crashes, exemplars, and Jaeger's Monitor page."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from tests.backends import Stack, eventually, get_json
from tests.stack.running import environment, finished


class Acknowledged(SpanExporter):
    """Hands spans on and remembers which batches the collector took."""

    def __init__(self, endpoint: str) -> None:
        self.inner = OTLPSpanExporter(endpoint=endpoint, insecure=True)
        self.span_ids: set[str] = set()

    def export(self, spans: list[ReadableSpan]) -> SpanExportResult:  # type: ignore[override]
        result = self.inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.span_ids |= {format(span.context.span_id, "016x") for span in spans}
        return result


@pytest.fixture
def service() -> str:
    """A service name of the test's own."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def tracer_provider(service: str) -> Iterator[TracerProvider]:
    """A provider without processors: the tests hand its spans to an exporter themselves."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    yield provider
    provider.shutdown()


def ended_spans(provider: TracerProvider, count: int) -> list[ReadableSpan]:
    """A root and its children, all ended."""
    tracer = provider.get_tracer("tests")
    with tracer.start_as_current_span("root") as root:
        children = [tracer.start_span(f"child {i % 7}") for i in range(count - 1)]
        for child in children:
            child.end()
    return [*children, root]  # type: ignore[list-item]


def test_a_large_burst_arrives(stack: Stack, service: str, tracer_provider: TracerProvider) -> None:
    """30,000 spans sent as fast as the collector takes them are all in Jaeger."""
    exporter = Acknowledged(stack.otlp_grpc)
    for _ in range(10):
        spans = ended_spans(tracer_provider, 3000)
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert len(exporter.span_ids) == 30_000
    eventually(lambda: len(stack.span_ids(service)) == 30_000, every=0.5)


def test_a_large_message_fits(stack: Stack, service: str, tracer_provider: TracerProvider) -> None:
    """One message of more than gRPC's usual 4 MiB is taken, and Jaeger takes what becomes of it."""
    exporter = Acknowledged(stack.otlp_grpc)
    with tracer_provider.get_tracer("tests").start_as_current_span("large") as span:
        span.set_attribute("text", "x" * 6_000_000)
    assert exporter.export([span]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
    eventually(lambda: stack.span_ids(service) == exporter.span_ids)


@pytest.mark.parametrize("program", ["otelcol", "jaeger"])
def test_a_crash_loses_nothing_acknowledged(
    stack: Stack, program: str, service: str, tracer_provider: TracerProvider
) -> None:
    """SIGKILL of the collector, or of Jaeger, in the middle of a stream: what the collector took arrives.

    Jaeger keeps traces in memory: of its own crash, what was sent afterwards has to arrive.
    """
    exporter = Acknowledged(stack.otlp_grpc)
    going = threading.Event()
    stop = threading.Event()

    def stream() -> None:
        while not stop.is_set():
            exporter.export(ended_spans(tracer_provider, 200))
            going.set()

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        assert going.wait(30)
        eventually(lambda: len(exporter.span_ids) > 2000)
        stack.kill(program)
        lost = set(exporter.span_ids) if program == "jaeger" else set()
        before = len(exporter.span_ids)
        stack.start(program)
        eventually(lambda: len(exporter.span_ids) > before + 1000)
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    kept = exporter.span_ids - lost
    eventually(lambda: kept <= stack.span_ids(service), every=0.5)


def test_metrics_carry_exemplars(stack: Stack, service: str, tracer_provider: TracerProvider) -> None:
    """A histogram recorded inside of a span leads from Prometheus to that span's trace."""
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=stack.otlp_grpc, insecure=True), export_interval_millis=86_400_000
    )
    meters = MeterProvider([reader], resource=Resource.create({"service.name": service}))
    histogram = meters.get_meter("tests").create_histogram("test.duration", "s")
    traces = set()
    query = f'test_duration_seconds_bucket{{job="{service}"}}'

    def exemplars() -> list[dict[str, object]]:
        with tracer_provider.get_tracer("tests").start_as_current_span("observed") as span:
            traces.add(format(span.get_span_context().trace_id, "032x"))
            histogram.record(0.25)
        meters.force_flush()
        return stack.exemplars(query)

    found = eventually(exemplars, every=1.0)
    meters.shutdown()
    assert {e["labels"]["trace_id"] for e in found} <= traces  # type: ignore[index]


RUN = """
import otel_timespan as ts
ts.eager_context().log_sink = log = ts.OTelLog()
def load(number): return number
def fail(): raise ValueError
with ts.dag("monitored"):
    ts.fetch_all([ts.spawn(load, 1), ts.spawn(load, 2)])
    try: ts.fetch(ts.spawn(fail))
    except ts.DTaskFailedError: pass
assert log.flush(60)
"""


def monitored(stack: Stack, service: str, metric: str, **more: object) -> dict[str, list[float]]:
    """What Jaeger's Monitor page draws when it is opened: the values of each operation that has some."""
    answer = get_json(
        f"{stack.jaeger}/api/metrics/{metric}", service=service, spanKind="server", groupByOperation="true",
        endTs=int(time.time() * 1000), lookback=600_000, step=5000, ratePer=60_000, **more,
    )  # fmt: skip
    found: dict[str, list[float]] = {}
    for series in answer["metrics"]:
        operation = {label["name"]: label["value"] for label in series["labels"]}["operation"]
        values = [float(point["gaugeValue"]["doubleValue"]) for point in series["metricPoints"]]
        found[operation] = [value for value in values if value > 0]  # no NaN either
    return {operation: values for operation, values in found.items() if values}


def test_monitor_page_opens_on_the_functions(stack: Stack, service: str) -> None:
    """Calls, latencies and errors of tasks are there under the kind that the page asks for; traces keep theirs."""
    finished(["-c", RUN], environment(stack, service))
    eventually(lambda: monitored(stack, service, "calls").keys() == {"load", "fail"}, every=0.5)
    eventually(lambda: monitored(stack, service, "latencies", quantile=0.95).keys() == {"load", "fail"}, every=0.5)
    errors = eventually(lambda: monitored(stack, service, "errors"), every=0.5)
    assert {operation: max(values) for operation, values in errors.items()} == {"fail": 1.0}
    (trace,) = stack.traces(service)
    kinds = {tag["value"] for span in trace["spans"] for tag in span["tags"] if tag["key"] == "span.kind"}
    assert kinds == {"internal"} and len(trace["spans"]) > 4


def span_metrics(stack: Stack, service: str, metric: str) -> dict[str, float]:
    """By the name of the spans, what the collector counted of a service."""
    query = f'sum by (span_name) (traces_span_metrics_{metric}{{service_name="{service}"}})'
    return {one["metric"]["span_name"]: float(one["value"][1]) for one in stack.query(query)}


def test_tasks_that_share_a_span_count_each(stack: Stack, service: str, tracer_provider: TracerProvider) -> None:
    """A span of 5000 tasks is 5000 calls of their function, each with the mean of their bodies."""
    tracer = tracer_provider.get_tracer("tests")
    steals = {"timespan.rollup.count": 70, "timespan.rollup.mean": 0.02}  # of the scheduler, no tasks
    rolled_up = {**steals, "timespan.rollup.count": 5000, "code.function.name": "m.load"}
    own = {"timespan.task.attempt": 1, "timespan.run.wall": 2.0}
    once = {**rolled_up, "timespan.rollup.count": 1}
    named = {"load (rolled up)": rolled_up, "load": own, "once (rolled up)": once, "steal (rolled up)": steals}
    spans = [tracer.start_span(name, attributes=attributes) for name, attributes in named.items()]
    for span in spans:
        span.end()
    assert Acknowledged(stack.otlp_grpc).export(spans) is SpanExportResult.SUCCESS  # type: ignore[arg-type]
    expected = {"load": 5001.0, "once": 1.0}
    eventually(lambda: span_metrics(stack, service, "calls_total") == expected, every=0.5)
    milliseconds = span_metrics(stack, service, "duration_milliseconds_sum")
    assert milliseconds == pytest.approx({"load": 5000 * 20 + 2000, "once": 20}, rel=1e-3)
    spans_there = eventually(lambda: len(found := [t["spans"][0] for t in stack.traces(service)]) == 4 and found)
    sent = {span.name: (span.end_time - span.start_time) // 1000 for span in spans}  # type: ignore[attr-defined]
    assert {span["operationName"]: span["duration"] for span in spans_there} == sent  # traces are as they were


def test_waits_are_no_latency_of_a_function(stack: Stack, service: str) -> None:
    """A task counts with the time of its body, as in the log's own metrics; one that never ran with none."""
    program = """
import time
import otel_timespan as ts
from otel_timespan import dagger as D
def load(number): time.sleep(0.01)
def fail(number): raise ValueError
def never(number): pass
with D.Context(threads=1) as ctx:
    ctx.log_sink = log = ts.OTelLog()
    D.wait(ts.spawn(never, ts.spawn(fail, 1)))
    ts.waitall([ts.spawn(load, number) for number in range(20)])
    log.close(60)
"""
    finished(["-c", program], environment(stack, service))
    found = eventually(
        lambda: len(found := span_metrics(stack, service, "duration_milliseconds_sum")) == 3 and found, every=0.5
    )
    query = f'sum by (code_function_name) (timespan_task_run_seconds_sum{{job="{service}"}})'
    own = {
        one["metric"]["code_function_name"].removeprefix("__main__."): 1000 * float(one["value"][1])
        for one in eventually(lambda: stack.query(query))
    }
    assert found == pytest.approx({**own, "never": 0}, rel=1e-3)


def test_span_metrics_are_of_tasks_and_servers(stack: Stack, service: str, tracer_provider: TracerProvider) -> None:
    """A server of the program's own is shown beside its tasks, other spans are not; no process claims the counters."""
    with tracer_provider.get_tracer("tests").start_as_current_span("request", kind=SpanKind.SERVER) as request:
        pass
    (inner,) = ended_spans(tracer_provider, 1)
    assert Acknowledged(stack.otlp_grpc).export([inner, request]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
    finished(["-c", RUN], environment(stack, service))
    query = f'traces_span_metrics_calls_total{{service_name="{service}"}}'
    names = {"request", "load", "fail"}
    found = eventually(lambda: len(series := [one["metric"] for one in stack.query(query)]) == 3 and series)
    assert {one["span_name"] for one in found} == names
    assert {one["span_kind"] for one in found} == {"SPAN_KIND_SERVER"}
    assert {one["job"] for one in found} == {service} and not [one for one in found if "process_pid" in one]


def test_rolled_up_tasks_count_on_the_monitor_page(stack: Stack, service: str) -> None:
    """Of a run beyond its bound each task is a call of its function there, as in the log's own metrics."""
    program = """
import otel_timespan as ts
from otel_timespan import dagger as D
def load(number): pass
with D.Context(threads=2) as ctx:
    ctx.log_sink = log = ts.OTelLog(max_spans=300)
    with ts.dag("big"):
        ts.waitall([ts.spawn(load, number) for number in range(2000)])
    assert log.flush(60) and log.stats()["rolled_up"] > 4000
    log.close(60)
"""
    finished(["-c", program], environment(stack, service))
    eventually(lambda: span_metrics(stack, service, "calls_total") == {"load": 2000.0}, every=0.5)
    query = f'sum(timespan_task_run_seconds_count{{job="{service}"}})'
    eventually(lambda: [one["value"][1] for one in stack.query(query)] == ["2000"])
