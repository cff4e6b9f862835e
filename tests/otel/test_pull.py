"""The pull endpoint: what Prometheus is given where it asks the program itself. tests/stack compares both ways."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_timespan import OTelLog
from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel.export.promnames import label_name, metric_name
from otel_timespan.otel.export.pull import PullReader
from otel_timespan.otel.semconv import BOUNDARIES_S
from tests.backends import ROOT


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[MeterProvider]:
    """A provider that is asked at the port of the variable."""
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(free_port()))
    resource = Resource(
        {"service.name": "s", "service.namespace": "n", "service.instance.id": "i", "some.list": [1, "a"]}
    )
    made = MeterProvider([PullReader()], resource=resource)
    yield made
    made.shutdown()


def asked() -> list[str]:
    """The lines that Prometheus gets."""
    url = f"http://localhost:{os.environ['OTEL_EXPORTER_PROMETHEUS_PORT']}/metrics"
    with urlopen(Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}), timeout=10) as answer:
        return [
            line for line in answer.read().decode().splitlines() if not line.startswith(("#", "python_", "process_"))
        ]


def test_each_series_says_what_it_is_of(provider: MeterProvider) -> None:
    """Service, instance and scope are labels; the rest of the resource is said once, as the collector does."""
    provider.get_meter("mine", "1.0").create_counter("my.count", "By").add(3, {"a.b": True})
    (line,) = [line for line in asked() if line.startswith("my_count")]
    name, labels = line.split("{")[0], line.split("{")[1].split("}")[0]
    assert name == "my_count_bytes_total" and line.endswith(" 3.0")
    for label in ('job="n/s"', 'instance="i"', 'a_b="true"', 'otel_scope_name="mine"'):
        assert label in labels
    scope = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
    assert set(re.findall(r'(\w+)="', labels)) == {"job", "instance", "a_b", *scope}
    (about,) = [line for line in asked() if line.startswith("target_info")]
    assert about == 'target_info{instance="i",job="n/s",some_list="[1,\\"a\\"]"} 1.0'


def test_durations_carry_their_exemplars(provider: MeterProvider) -> None:
    """A bucket names the trace of the last value that fell into it."""
    histogram = provider.get_meter("mine").create_histogram("my.duration", "s")
    with TracerProvider().get_tracer("mine").start_as_current_span("observed") as span:
        histogram.record(0.3)
        trace = format(span.get_span_context().trace_id, "032x")
    lines = asked()
    assert [line for line in lines if line.startswith("my_duration_seconds_bucket") and f'trace_id="{trace}"' in line]
    assert [line for line in lines if line.startswith("my_duration_seconds_count") and line.endswith(" 1.0")]


def test_exponential_histograms_are_shown_in_the_advised_boundaries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the log keep counts, places of values and exemplars; that a user's own can't be shown is said."""
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(free_port()))
    view = View(instrument_type=Histogram, aggregation=ExponentialBucketHistogramAggregation())
    meters = MeterProvider([PullReader()], views=[view], shutdown_on_exit=False)
    run, own = (meters.get_meter("mine").create_histogram(name, "s") for name in ("timespan.task.run", "own.size"))
    values = [0.0, 1e-9, 3e-5, 0.004, 0.15, 7.0, 1e6]
    with TracerProvider().get_tracer("mine").start_as_current_span("observed"):
        for value in values:
            run.record(value)
            own.record(value)
    lines = asked()
    meters.shutdown()
    named = [line for line in lines if line.startswith("timespan_task_run_seconds_bucket")]
    counts = {float(re.findall(r'le="([^"]*)"', line)[0]): float(line.split("} ")[1].split()[0]) for line in named}
    assert counts == {bound: sum(1 for v in values if v <= bound) for bound in (*BOUNDARIES_S, math.inf)}
    assert sum("trace_id" in line for line in named) == len(values) - 1  # two share a bucket
    assert [line for line in lines if line.startswith("timespan_task_run_seconds_count") and line.endswith(" 7.0")]
    assert not [line for line in lines if line.startswith("own_size")] and "own.size" in caplog.text


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("timespan.bytes_allocd", "By", "gauge", "timespan_bytes_allocd"),
        ("timespan.system.memory.free", "1", "gauge", "timespan_system_memory_free_ratio"),
        ("timespan.task.count", "{task}", "counter", "timespan_task_count_total"),
        ("a.total.things", "", "counter", "a_things_total"),
        ("speed", "m/s", "gauge", "speed_meters_per_second"),
        ("2nd.try", "", "gauge", "_2nd_try"),
        ("odd--name", "%", "gauge", "odd_name_percent"),
    ],
)
def test_names_are_the_collectors(name: str, unit: str, kind: str, expected: str) -> None:
    """Units become words, once; counters end in _total, shares in _ratio."""
    assert metric_name(name, unit, kind) == expected


def test_labels_are_the_collectors() -> None:
    """What a label may not hold becomes an underscore."""
    assert [label_name(key) for key in ("service.name", "a-b", "1st")] == ["service_name", "a_b", "key_1st"]


@pytest.mark.parametrize("port", ["x", "-1", "70000", "1e3", "9" * 5000])
def test_a_port_that_is_none_is_refused_at_construction(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", port)
    with pytest.raises(InvalidOptionError, match="OTEL_EXPORTER_PROMETHEUS_PORT"):
        OTelLog(metrics=True)


def test_a_port_that_is_taken_costs_this_way_only() -> None:
    """The other exporters of the list go on, and one line says what is missing."""
    code = """if True:
        import socket
        from opentelemetry import metrics
        taken = socket.socket(); taken.bind(("127.0.0.1", 0)); taken.listen()
        import os
        os.environ |= {"OTEL_METRICS_EXPORTER": "prometheus,console", "OTEL_TRACES_EXPORTER": "none",
                       "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
                       "OTEL_EXPORTER_PROMETHEUS_PORT": str(taken.getsockname()[1])}
        import otel_timespan as ts
        log = ts.OTelLog()
        ts.eager_context().log_sink = log
        ts.fetch(ts.spawn(abs, -1))
        log.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "timespan.task.count" in done.stdout
    assert "metrics are not served for Prometheus" in done.stderr
