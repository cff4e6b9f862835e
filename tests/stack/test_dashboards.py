"""The dashboards and alerts, after real runs: every query has something to show."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from otel_timespan.otel import semconv
from tests.backends import ROOT, Stack, eventually, get_json
from tests.stack.running import PROGRAMS, environment, finished, new_service
from tests.test_deploy import DASHBOARDS, GRAFANA, JAEGER, PROMETHEUS, load, panels

LOADED = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}
TARGETS = [
    (f"{stem}-{panel['title']}-{target['refId']}", target)
    for stem, dashboard in LOADED.items()
    for panel in panels(dashboard)
    for target in panel["targets"]
]
PANELS = [pytest.param(t["expr"], id=name) for name, t in TARGETS if t["datasource"] == PROMETHEUS]
SEARCHES = [pytest.param(t, id=name) for name, t in TARGETS if t["datasource"] == JAEGER]
UNSEEN = {"CollectorLosesSpans"}
"""The collector has these counters from its first loss on."""


def rules() -> Iterator[Any]:
    """What each alert looks at: its expression without the threshold."""
    for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                looked_at, count = re.subn(r" (>|<|==) [\d.]+\s*$", "", rule["expr"])
                assert count == 1
                if rule["alert"] not in UNSEEN:
                    yield pytest.param(looked_at, id=rule["alert"])


def links() -> Iterator[Any]:
    """What Grafana asks Prometheus about a span."""
    for source in load(GRAFANA / "provisioning/datasources/datasources.yaml")["datasources"]:
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", []):
            yield pytest.param(query["query"], id=query["name"])


@pytest.fixture(scope="module")
def demo(_running_stack: Stack | None, tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """`otel-timespan demo` and runs of each outcome, once; the service that they logged as."""
    if _running_stack is None:
        return None
    service = new_service()
    env = environment(_running_stack, service)
    finished(["-m", "otel_timespan", "demo"], env, tmp_path_factory.mktemp("demo"))
    finished([str(PROGRAMS / "outcomes.py")], env)
    return service


def filled_in(expression: str, service: str) -> str:
    """A query as Grafana would send it; nothing in place of what is missing."""
    for name, value in {
        "$service": service,
        "$traced": service,
        "$worker": ".*",
        "$$__tags": f'job="{service}"',
        "$$__range": "10m",
        "$__rate_interval_ms": "60000",
        "$__rate_interval": "1m",
        "$__interval": "1s",
        "$__range": "10m",
    }.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression.removesuffix(" or vector(0)")


def numbers(series: list[dict[str, Any]]) -> list[float]:
    """All values of all series that a panel could draw."""
    values = [float(value) for one in series for _, value in one["values"]]
    return [value for value in values if not math.isnan(value)]


@pytest.mark.parametrize("expression", [*PANELS, *rules(), *links()])
def test_query_has_data(stack: Stack, demo: str, expression: str) -> None:
    """The query of the panel, alert or link gives numbers for the demo's run."""
    query = filled_in(expression, demo)
    eventually(lambda: numbers(stack.query_range(query)), every=0.5)


def test_failures_are_told_with_their_errors(stack: Stack, demo: str) -> None:
    """The table of failures counts those of each function and error, and nothing else."""
    (expression,) = [p.values[0] for p in PANELS if p.id == "runs-Failures by function and error-A"]
    found = eventually(lambda: stack.query(filled_in(str(expression), demo)))
    rows = {(one["metric"]["code_function_name"], one["metric"]["error_type"]): one["value"][1] for one in found}
    assert rows["__main__.fail", "LookupError"] == "1"
    assert all(float(value) > 0 for value in rows.values())


def test_lines_tell_the_runs_that_ended(stack: Stack, demo: str) -> None:
    """Each run is one line, with its result, in the second in which it came."""
    (runs,) = [one for one in LOADED["runs"]["annotations"]["list"] if one["name"] == "Runs that ended"]
    query = filled_in(runs["target"]["expr"], demo)

    def ended() -> dict[str, int]:
        return {one["metric"]["timespan_dag_result"]: len(one["values"]) for one in stack.query_range(query)}

    assert eventually(lambda: (found := ended()).keys() == {"success", "failure", "cancellation"} and found)


def test_lines_tell_the_alerts_that_fired(stack: Stack) -> None:
    """A service that lost events has a line from then on, which says what fired and for whom."""
    service = new_service()
    exporter = OTLPMetricExporter(endpoint=stack.otlp_grpc, insecure=True)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=86_400_000)
    provider = MeterProvider([reader], resource=Resource.create({"service.name": service}))
    dropped = semconv.instrument(semconv.EVENTS_DROPPED)
    counter = provider.get_meter("tests").create_counter(dropped.name, dropped.unit)
    counter.add(7, {semconv.DROP_REASON: "queue_full"})
    provider.shutdown()
    (alerts,) = [one for one in LOADED["overview"]["annotations"]["list"] if one["name"] == "Alerts"]
    query = filled_in(alerts["target"]["expr"], service)

    def fired() -> list[Any]:
        return [one["metric"] for one in stack.query_range(query) if one["metric"].get("job") == service]

    (alert,) = eventually(fired, every=0.5)
    assert (alert["alertname"], alert["severity"]) == ("TimespanEventsDropped", "warning")


@pytest.mark.parametrize("target", SEARCHES)
def test_search_finds_runs(stack: Stack, demo: str, target: dict[str, Any]) -> None:
    """What Grafana asks Jaeger for finds runs of that result, whose root says so; their ids open them."""
    tags = dict(tag.split("=") for tag in target["tags"].split())

    def found() -> Any:
        now_us = int(time.time() * 1e6)
        return get_json(
            f"{stack.jaeger}/api/traces", service=filled_in(target["service"], demo), tags=json.dumps(tags),
            limit=target["limit"], start=now_us - 900_000_000, end=now_us,
        )["data"]  # fmt: skip

    for trace in eventually(found):
        root = min(trace["spans"], key=lambda span: span["startTime"])  # Grafana's rule
        told = {tag["key"]: tag["value"] for tag in root["tags"]}
        assert root["operationName"].startswith("dag") and tags.items() <= told.items()
        assert stack.trace(trace["traceID"])


def test_demo_has_exemplars(stack: Stack, demo: str) -> None:
    """The panel of task durations offers exemplars, and each leads to a trace that Jaeger knows."""
    (query,) = [p.values[0] for p in PANELS if p.id == "overview-Task duration, p50 and p95-A"]
    found = eventually(lambda: stack.exemplars(filled_in(str(query), demo)))
    trace_ids = {exemplar["labels"]["trace_id"] for exemplar in found}
    assert all(stack.trace(trace_id) for trace_id in trace_ids)


def test_variables_of_the_dashboards(stack: Stack, demo: str) -> None:
    """The list of services, from which people choose, holds the demo's; Jaeger knows one in a namespace without it."""
    service = new_service()
    env = {**environment(stack, service), "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=tests"}
    finished([str(PROGRAMS / "outcomes.py")], env)

    def jobs() -> set[str]:
        return {one["metric"]["job"] for one in stack.query("group by (job) (timespan_events_total)")}

    eventually(lambda: {demo, f"tests/{service}"} <= jobs())
    (traced,) = [one for one in LOADED["runs"]["templating"]["list"] if one["name"] == "traced"]
    names = {re.search(traced["regex"].strip("/"), job)[1] for job in jobs()}  # type: ignore[index]
    assert {demo, service} <= names
    eventually(lambda: {demo, service} <= set(get_json(f"{stack.jaeger}/api/services")["data"]))
