"""The dashboards, after a real run: every panel has something to show."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.backends import Stack, eventually
from tests.stack.running import environment, finished, new_service
from tests.test_deploy import DASHBOARDS, panels

PANELS = [
    pytest.param(target["expr"], id=f"{path.stem}-{panel['title']}-{target['refId']}")
    for path in DASHBOARDS
    for panel in panels(json.loads(path.read_text()))
    for target in panel["targets"]
]


@pytest.fixture(scope="module")
def demo(_running_stack: Stack | None, tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """`otel-timespan demo`, run once; the service that it logged as."""
    if _running_stack is None:
        return None
    service = new_service()
    finished(["-m", "otel_timespan", "demo"], environment(_running_stack, service), tmp_path_factory.mktemp("demo"))
    return service


def filled_in(expression: str, service: str) -> str:
    """A panel's query as Grafana would send it."""
    for name, value in {
        "$service": service,
        "$worker": ".*",
        "$__rate_interval_ms": "60000",
        "$__rate_interval": "1m",
        "$__range": "10m",
    }.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def numbers(series: list[dict[str, Any]]) -> list[float]:
    """All values of all series that a panel could draw."""
    values = [float(value) for one in series for _, value in one["values"]]
    return [value for value in values if not math.isnan(value)]


@pytest.mark.parametrize("expression", PANELS)
def test_panel_has_data(stack: Stack, demo: str, expression: str) -> None:
    """The query of the panel gives numbers for the demo's run."""
    query = filled_in(expression, demo)
    eventually(lambda: numbers(stack.query_range(query)), every=0.5)


def test_demo_has_exemplars(stack: Stack, demo: str) -> None:
    """The panel of task durations offers exemplars, and each leads to a trace that Jaeger knows."""
    (query,) = [p.values[0] for p in PANELS if p.id == "overview-Task duration, p50 and p95-A"]
    found = eventually(lambda: stack.exemplars(filled_in(str(query), demo)))
    trace_ids = {exemplar["labels"]["trace_id"] for exemplar in found}
    assert all(stack.trace(trace_id) for trace_id in trace_ids)


def test_variables_of_the_dashboards(stack: Stack, demo: str) -> None:
    """The list of services, from which people choose, holds the demo's."""
    series = eventually(lambda: stack.query("group by (job) (timespan_events_total)"))
    assert demo in {one["metric"]["job"] for one in series}
