"""Which providers are used, what is set up where there are none, and what the variables change."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel import OTelLog
from otel_timespan.otel.setup import check_environment
from tests.backends import Stack, eventually

NOBODY = "http://127.0.0.1:9"


class Receiver(TraceServiceServicer, MetricsServiceServicer):
    """A collector in this process."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], str, Any]] = []
        self.metrics: list[tuple[dict[str, Any], Any]] = []
        self.url = ""
        self.lock = threading.Lock()

    def names(self) -> set[str]:
        """Names of all spans received."""
        return {span.name for _, _, span in self.spans}


class _Traces(TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        with self.receiver.lock:
            for group in request.resource_spans:
                resource = {pair.key: _value(pair.value) for pair in group.resource.attributes}
                for part in group.scope_spans:
                    self.receiver.spans += [(resource, part.scope.name, span) for span in part.spans]
        return ExportTraceServiceResponse()


class _Metrics(MetricsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        with self.receiver.lock:
            for group in request.resource_metrics:
                resource = {pair.key: _value(pair.value) for pair in group.resource.attributes}
                for part in group.scope_metrics:
                    self.receiver.metrics += [(resource, metric) for metric in part.metrics]
        return ExportMetricsServiceResponse()


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A collector on a free port."""
    made = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(_Traces(made), server)
    add_MetricsServiceServicer_to_server(_Metrics(made), server)
    made.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield made
    server.stop(None).wait()


_HEAD = """
import json, logging, os, sys, threading
sys.path.insert(0, os.getcwd())
logging.basicConfig(format="LOG %(levelname)s %(name)s %(message)s", level=logging.INFO)
from opentelemetry import metrics, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_timespan.otel.setup import meter_provider_for_metrics, provider_for_traces, setup
from otel_timespan.otel.spans.spandata import SpanData
def span(name="ours"):
    return SpanData(name, 7, 8, 0, 1, 2, {})
def say(**what):
    print("SAY", json.dumps(what), flush=True)
"""


def _run(program: str, **environment: str) -> tuple[list[dict[str, Any]], str]:
    """Run a program of its own: global providers are set once a process. What it said, and its log."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**variables, "PYTHONWARNINGS": "ignore::DeprecationWarning", **environment},
    )
    assert done.returncode == 0, done.stderr
    return [
        json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("SAY ")
    ], done.stdout + done.stderr


def test_our_own_provider_is_global_and_carries_users_spans(receiver: Receiver) -> None:
    """Without any set-up, our spans, the user's spans and metrics arrive, of one resource, at exit at the latest."""
    _run(
        """
output = provider_for_traces()
assert output.shared and trace.get_tracer_provider() is output.provider
assert provider_for_traces().pipeline is output.pipeline
meters = meter_provider_for_metrics()
assert metrics.get_meter_provider() is meters is meter_provider_for_metrics()
metrics.get_meter("mine").create_counter("count").add(3)
output.pipeline.put([span()])
with trace.get_tracer("mine").start_as_current_span("theirs"):
    pass
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_RESOURCE_ATTRIBUTES="team=blue",
    )
    assert sorted((scope, span.name) for _, scope, span in receiver.spans) == [
        ("mine", "theirs"),
        ("otel_timespan", "ours"),
    ]
    resources = [resource for resource, *_ in [*receiver.spans, *receiver.metrics]]
    assert all(resource == resources[0] for resource in resources)
    assert resources[0]["service.name"] == "python"
    assert resources[0]["team"] == "blue"
    assert {"service.instance.id", "process.pid", "host.name", "telemetry.sdk.name"} <= resources[0].keys()
    assert receiver.metrics[-1][1].sum.data_points[0].as_int == 3


def test_metrics_arrive_every_second(receiver: Receiver) -> None:
    """Our reader exports while the program runs, without OTEL_METRIC_EXPORT_INTERVAL being set."""
    program = """
meter_provider_for_metrics()
metrics.get_meter("mine").create_counter("count").add(1)
sys.stdin.read()
"""
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    command = [sys.executable, "-c", _HEAD + program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        until = time.monotonic() + 60
        while len(receiver.metrics) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.communicate(b"", timeout=60)
    assert process.returncode == 0


def test_series_start_where_there_was_nothing(receiver: Receiver) -> None:
    """The start time of a series is the collection before its first point, and stays; the first one is the set-up."""
    said, _ = _run(
        """
import time
from opentelemetry.metrics import Observation
before = time.time_ns()
meters = meter_provider_for_metrics()
meter = metrics.get_meter("mine")
keys = ["early"]
meter.create_observable_counter("seen", [lambda options: [Observation(5, {"key": key}) for key in keys]])
duration = meter.create_histogram("took")
duration.record(0.1, {"key": "early"})
say(before=before, created=time.time_ns())
assert meters.force_flush()
keys.append("late")
duration.record(0.1, {"key": "late"})
assert meters.force_flush()
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_METRIC_EXPORT_INTERVAL="600000",
    )
    points: dict[tuple[str, str], list[Any]] = {}
    for _, metric in receiver.metrics:
        for point in getattr(metric, metric.WhichOneof("data")).data_points:
            points.setdefault((metric.name, point.attributes[0].value.string_value), []).append(point)
    for name in ("seen", "took"):
        early, late = points[name, "early"], points[name, "late"]
        assert len(early) == 3 and len(late) == 2
        assert said[0]["before"] <= early[0].start_time_unix_nano <= said[0]["created"]
        assert len({p.start_time_unix_nano for p in early}) == 1
        assert {p.start_time_unix_nano for p in late} == {early[0].time_unix_nano}


def test_a_configured_provider_is_used() -> None:
    """A global SDK provider of the user's gets our spans by its processors, before its own end at exit."""
    said, output = _run(
        """
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
output = provider_for_traces()
assert output.provider is provider and not output.shared
output.pipeline.put([span()])
output.close()
later = TracerProvider()
later.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
provider_for_traces(tracer_provider=later).pipeline.put([span("at exit")])
[seen] = exporter.get_finished_spans()
say(names=[seen.name], scope=seen.instrumentation_scope.name)
"""
    )
    assert said == [{"names": ["ours"], "scope": "otel_timespan"}]
    assert '"at exit"' in output


def test_a_given_provider_and_a_given_exporter_are_used() -> None:
    """`tracer_provider=` and `span_exporter=` go before the variables, and nothing becomes global."""
    said, _ = _run(
        """
first, second = InMemorySpanExporter(), InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(first))
for output in (provider_for_traces(tracer_provider=provider), provider_for_traces(span_exporter=second)):
    output.pipeline.put([span()])
    assert output.pipeline.flush(60)
say(names=[[s.name for s in e.get_finished_spans()] for e in (first, second)])
say(placeholder=type(trace.get_tracer_provider()).__name__)
output.provider.get_tracer("mine").start_span("theirs").end()
output.close()
say(names=[s.name for s in second.get_finished_spans()])
"""
    )
    assert said == [
        {"names": [["ours"], ["ours"]]},
        {"placeholder": "ProxyTracerProvider"},
        {"names": ["ours", "theirs"]},
    ]


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}],
    ids=["disabled", "none"],
)
def test_nothing_at_all(environment: dict[str, str]) -> None:
    """Disabled, or without exporters, there are no providers and no threads."""
    said, _ = _run(
        """
say(traces=provider_for_traces() is None, metrics=meter_provider_for_metrics() is None)
say(threads=threading.active_count())
say(setup=list(setup()))
""",
        **environment,
    )
    assert said == [{"traces": True, "metrics": True}, {"threads": 1}, {"setup": [None, None]}]


def test_other_exporters(receiver: Receiver) -> None:
    """`otlp,console` sends to both; metrics go to the console too."""
    _, output = _run(
        """
output = provider_for_traces()
output.pipeline.put([span("on the console")])
with trace.get_tracer("mine").start_as_current_span("theirs"):
    pass
assert output.pipeline.flush(60)
meter_provider_for_metrics()
metrics.get_meter("mine").create_counter("count").add(3)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_TRACES_EXPORTER="otlp,console",
        OTEL_METRICS_EXPORTER="console",
    )
    assert receiver.names() == {"on the console", "theirs"}
    assert all(text in output for text in ('"on the console"', '"theirs"', '"count"'))


def test_a_collector_that_is_not_there_is_told_once(receiver: Receiver) -> None:
    """Unreachable: the program ends by itself with one warning of spans, one of metrics, one of what was lost."""
    _, output = _run(
        """
output, meters = provider_for_traces(exit_timeout_s=1.0), meter_provider_for_metrics(exit_timeout_s=1.0)
metrics.get_meter("mine").create_counter("count").add(3)
output.pipeline.put([span()])
for _ in range(3):
    meters.force_flush()
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=NOBODY,
    )
    logged = [line for line in output.splitlines() if line.startswith("LOG")]
    assert len(logged) == 3, output
    assert sum("spans can't be sent" in line for line in logged) == 1
    assert sum("metrics can't be sent" in line for line in logged) == 1
    assert sum("could not be sent" in line for line in logged) == 1
    assert "Traceback" not in output


def test_the_sampler_variable_holds(receiver: Receiver) -> None:
    """OTEL_TRACES_SAMPLER=always_off: the provider's sampler says so and users' spans are not sent."""
    _run(
        """
output = provider_for_traces()
assert "AlwaysOff" in output.provider.sampler.get_description()
with trace.get_tracer("mine").start_as_current_span("theirs"):
    pass
output.pipeline.put([span()])
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_TRACES_SAMPLER="always_off",
    )
    assert receiver.names() == {"ours"}


def test_a_fork_is_an_instance_of_its_own(receiver: Receiver) -> None:
    """The child's spans, ours and the user's, carry its own instance id and process id."""
    _run(
        """
output = provider_for_traces()
output.pipeline.put([span("parent")])
assert output.pipeline.flush(60)
if os.fork() == 0:
    output.pipeline.put([span("child")])
    trace.get_tracer("mine").start_span("child's").end()
    output.pipeline.close(60)
    os._exit(0)
assert os.wait()[1] == 0
output.pipeline.put([span("parent again")])
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )
    who = {
        span.name: (resource["service.instance.id"], resource["process.pid"]) for resource, _, span in receiver.spans
    }
    assert who["parent"] == who["parent again"]
    assert who["child"] == who["child's"]
    assert all(one != other for one, other in zip(who["parent"], who["child"], strict=True))


def test_a_provider_that_was_shut_down_serves_again(receiver: Receiver) -> None:
    """After the user shut our global provider down, the next log gets a pipeline that works."""
    _run(
        """
provider_for_traces().provider.shutdown()
output = provider_for_traces()
assert not output.pipeline.closed and output.provider is trace.get_tracer_provider()
output.pipeline.put([span()])
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )
    assert receiver.names() == {"ours"}


def test_explicit_setup(receiver: Receiver) -> None:
    """`setup` takes explicit values, a later log uses what it made, and a second `setup` is refused."""
    said, _ = _run(
        f"""
from otel_timespan.errors import ConcurrencyViolationError, InvalidOptionError
for wrong in (dict(protocol="foo"), dict(endpoint="http://"), dict(on_full="x"), dict(metric_interval_s=0)):
    try:
        setup(**wrong)
    except InvalidOptionError as error:
        say(error=next(iter(wrong)) in str(error))
made = setup(service_name="mine", resource={{"team": "red"}}, endpoint={receiver.url!r}, headers={{"key": "value"}})
assert made.tracer_provider is trace.get_tracer_provider() and made.meter_provider is metrics.get_meter_provider()
assert provider_for_traces().provider is made.tracer_provider
provider_for_traces().pipeline.put([span()])
try:
    setup()
except ConcurrencyViolationError as error:
    say(second=str(error))
"""
    )
    assert said[:4] == [{"error": True}] * 4
    assert "exists already" in said[4]["second"]
    [(resource, _, _)] = receiver.spans
    assert (resource["service.name"], resource["team"]) == ("mine", "red")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_real_collector_that_dies_costs_no_span(stack: Stack, protocol: str) -> None:
    """Spans put before, while and after the collector is away are all in Jaeger in the end, by either protocol."""
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": stack.otlp_grpc if protocol == "grpc" else stack.otlp_http,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    program = """
pipeline = provider_for_traces(exit_timeout_s=60.0).pipeline
for line in sys.stdin:
    trace_id, first, last, flush = map(int, line.split())
    pipeline.put([SpanData("real", trace_id, number, 0, 10**18, 10**18 + 1, {}) for number in range(first, last)])
    say(flushed=bool(flush) and pipeline.flush(60))
"""
    trace_id = random.getrandbits(127) + 1
    command = [sys.executable, "-c", _HEAD + program]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def put(first: int, last: int, flush: bool) -> str:
            process.stdin.write(f"{trace_id} {first} {last} {int(flush)}\n")  # type: ignore[union-attr]
            return process.stdout.readline()  # type: ignore[union-attr]

        assert "true" in put(1, 1001, True)
        stack.kill("otelcol")
        try:
            put(1001, 2001, False)
        finally:
            stack.start("otelcol")
        put(2001, 3001, False)
        process.stdin.close()
        assert process.wait(120) == 0

    def all_there() -> bool:
        found = stack.trace(f"{trace_id:032x}")
        ids = {int(span["spanID"], 16) for span in found["spans"]} if found else set()
        return ids == set(range(1, 3001))

    assert eventually(all_there)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "jaeger"),
        ("OTEL_METRICS_EXPORTER", "statsd"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "foo"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "abc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "bogus"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "many"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-3"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_SERVICE_NAME", "caf\udce9"),
        ("OTEL_SERVICE_NAME", "two\nlines"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=caf\udce9"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,nothing"),
        ("OTEL_PYTHON_TRACER_PROVIDER", "junk"),
        ("OTEL_PYTHON_METER_PROVIDER", "junk"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9" * 5000),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "x"),
        ("OTEL_BSP_SCHEDULE_DELAY", "nan"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1e-9"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "abc"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "9" * 5000),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "²"),
    ],
)
def test_wrong_variables_are_found_early(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """`check_environment` names the variable, and sets nothing up; a disabled SDK is not looked at."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidOptionError, match=variable) as error:
        check_environment()
    assert len(str(error.value)) < 300
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    check_environment()


ODD: list[Any] = [
    1e13,
    -1,
    math.nan,
    math.inf,
    10**5000,
    -(10**5000),
    "9" * 5000,
    "a\nb",
    "\ud800",
    None,
    True,
    [],
    b"x",
    "",
]


@pytest.mark.parametrize(
    "name", ["on_full", "max_bytes", "block_timeout_s", "exit_timeout_s", "root_quiet_s", "detail"]
)
def test_options_of_any_content(name: str) -> None:
    """An option is taken, capped, or refused with a short printable error of ours; nothing else is raised."""
    for value in ODD:
        try:
            log = OTelLog(metrics=False, **{name: value})
        except InvalidOptionError as error:
            text = str(error)
            assert name in text and len(text) < 300 and text.isprintable()
        else:
            log.close(0)


def test_times_to_wait_of_any_content() -> None:
    """`flush` and `close` take any number, and refuse what is none."""
    log = OTelLog(metrics=False)
    assert log.flush(-1) in (True, False)
    for value in ("1", math.nan, [], True):
        with pytest.raises(InvalidOptionError, match="timeout_s"):
            log.flush(value)  # type: ignore[arg-type]
    log.close(10**5000)


def test_what_a_variable_made_is_completed(receiver: Receiver) -> None:
    """A provider that OTEL_PYTHON_TRACER_PROVIDER made and nobody gave a processor gets ours."""
    _run(
        """
provider_for_traces().pipeline.put([span()])
with trace.get_tracer("mine").start_as_current_span("theirs"):
    pass
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_PYTHON_TRACER_PROVIDER="sdk_tracer_provider",
    )
    assert receiver.names() == {"ours", "theirs"}
    assert {resource["service.name"] for resource, *_ in receiver.spans} == {"python"}


@pytest.mark.parametrize("how", ["file", "module", "folder"])
def test_a_service_is_called_like_its_program(tmp_path: Path, how: str) -> None:
    """The name of a file, of a module of `python -m`, of a folder that is run."""
    program = "from otel_timespan.otel.export.resources import default_resource as it\n"
    program += "print(it().attributes['service.name'])\n"
    (tmp_path / "baking").mkdir()
    (tmp_path / "baking" / "__init__.py").touch()
    for name in ("cake.py", "baking/bread.py", "baking/__main__.py"):
        (tmp_path / name).write_text(program)
    arguments = {
        "file": [str(tmp_path / "cake.py")],
        "module": ["-m", "baking.bread"],
        "folder": [str(tmp_path / "baking")],
    }
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    done = subprocess.run(
        [sys.executable, *arguments[how]], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.strip() == {"file": "cake", "module": "baking.bread", "folder": "baking"}[how], done.stderr
