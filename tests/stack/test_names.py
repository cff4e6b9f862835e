"""The names of our instruments, through the real collector into the real Prometheus."""

from __future__ import annotations

import uuid

import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from otel_timespan.otel.export.pull import PullReader
from otel_timespan.otel.semconv import INSTRUMENTS
from tests.backends import Stack, eventually, get_json
from tests.stack.naming import label_name, series_names


def record_each(provider: MeterProvider) -> None:
    """One measurement with every instrument of the catalogue, with all of its attributes."""
    meter = provider.get_meter("otel_timespan")
    for instrument in INSTRUMENTS:
        attributes = {key: "x" for key in instrument.attributes}
        described = (instrument.name, instrument.unit, instrument.description)
        if instrument.kind == "gauge":
            meter.create_gauge(*described).set(1, attributes)
        elif instrument.kind == "histogram":
            meter.create_histogram(*described).record(1, attributes)
        elif instrument.kind == "updown":
            meter.create_up_down_counter(*described).add(1, attributes)
        else:
            meter.create_counter(*described).add(1, attributes)


def labels_of(stack: Stack, service: str) -> dict[str, set[str]]:
    """The labels of each metric of a service that Prometheus has."""
    match = f'{{job="tests/{service}", __name__!~"ALERTS.*"}}'  # what rules make of them comes when it comes
    series = get_json(f"{stack.prometheus}/api/v1/series", **{"match[]": match})["data"]
    labels: dict[str, set[str]] = {}
    for one in series:
        labels.setdefault(one["__name__"], set()).update(one)
    return labels


def all_labels(stack: Stack, service: str) -> dict[str, set[str]]:
    """The same, once every instrument of the catalogue has arrived; and that nothing else of ours has."""
    expected = {name for instrument in INSTRUMENTS for name in series_names(instrument)}
    labels = eventually(lambda: (names := labels_of(stack, service)) and expected <= names.keys() and names)
    assert {name for name in labels if name.startswith("timespan_")} == expected
    for instrument in INSTRUMENTS:
        for name in series_names(instrument):
            assert {label_name(key) for key in instrument.attributes} <= labels[name], name
    return labels


def pull_reader() -> PullReader | None:
    """On the port that deploy/prometheus/prometheus.yaml asks; None while that is taken."""
    try:
        return PullReader()
    except OSError:
        return None


def test_names_in_prometheus(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every instrument has the names and labels that the dashboards use, by the collector and by the pull endpoint."""
    services = [f"test-{uuid.uuid4().hex[:12]}" for _ in range(2)]
    attributes = {"service.instance.id": "here", "service.namespace": "tests", "process.pid": 7, "odd": [True, 1.5]}
    resources = [Resource.create({"service.name": service, **attributes}) for service in services]
    push = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=stack.otlp_grpc, insecure=True), export_interval_millis=86_400_000
    )
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0")  # a Prometheus in a container asks from outside
    pull = eventually(pull_reader)
    providers = [MeterProvider([reader], resource=found) for reader, found in zip((push, pull), resources, strict=True)]
    try:
        for provider in providers:
            record_each(provider)
        providers[0].force_flush()
        by_push, by_pull = (all_labels(stack, service) for service in services)
    finally:
        for provider in providers:
            provider.shutdown()
    assert by_pull == by_push
    assert {"process_pid", "odd"} <= by_push["target_info"]


def test_names_that_people_know() -> None:
    """Some names in full, so that a change of the translation does not pass unseen."""
    names = {instrument.name: series_names(instrument)[0] for instrument in INSTRUMENTS}
    assert names["timespan.bytes_allocd"] == "timespan_bytes_allocd"
    assert names["timespan.worker.saturation"] == "timespan_worker_saturation"
    assert names["timespan.task.count"] == "timespan_task_count_total"
    assert names["timespan.task.duration"] == "timespan_task_duration_seconds_bucket"
    assert names["timespan.task.wait"] == "timespan_task_wait_seconds_bucket"
    assert names["timespan.system.memory.free"] == "timespan_system_memory_free_ratio"
    assert names["timespan.move.io"] == "timespan_move_io_bytes_total"
