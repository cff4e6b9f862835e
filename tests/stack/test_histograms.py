"""Exponential histograms on their way to Prometheus: the same numbers there as of explicit ones."""

from __future__ import annotations

import random
from typing import Any

import pytest

from otel_timespan.otel.semconv import BOUNDARIES_S
from tests.backends import Stack, eventually
from tests.stack.running import environment, finished, new_service

VARIABLE = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
VALUES = sorted([*(0.0 for _ in range(9)), *(random.Random(7).lognormvariate(-6, 3) for _ in range(400)), 9000.0])
RUN = """
import json, sys
import otel_timespan as ts
from opentelemetry import metrics
from otel_timespan.otel.setup import meter_provider_for_metrics
ts.eager_context().log_sink = log = ts.OTelLog()
def load(number): return number
ts.fetch_all([ts.spawn(load, number) for number in range(300)])
values = json.loads(sys.argv[1])
meters = meter_provider_for_metrics()
for name in ("timespan.tests", "users.own"):  # the first as if it were one of the log's
    histogram = meters.get_meter("tests").create_histogram(name, "s")
    for value in values:
        histogram.record(value)
assert log.flush(60)
"""


@pytest.fixture(scope="module")
def services(_running_stack: Stack | None) -> dict[str, str]:
    """The same program with histograms of each kind: the services by the variable's value."""
    if _running_stack is None:
        return {}
    found = {}
    for kind in ("explicit_bucket_histogram", "base2_exponential_bucket_histogram"):
        found[kind.partition("_")[0]] = service = new_service()
        finished(["-c", RUN, str(VALUES)], {**environment(_running_stack, service), VARIABLE: kind})
    return found


def buckets(stack: Stack, service: str, metric: str) -> dict[float, float]:
    """Count of values up to each boundary, once they are there."""
    query = f'sum by (le) ({metric}_bucket{{job="{service}"}})'
    found = eventually(lambda: stack.query(query))
    return {float(one["metric"]["le"]): float(one["value"][1]) for one in found}


def value(stack: Stack, query: str) -> float:
    """The only value of a query."""
    (found,) = eventually(lambda: stack.query(query))
    return float(found["value"][1])


def test_exponential_histograms_have_the_advised_boundaries(stack: Stack, services: dict[str, str]) -> None:
    """Each value counts at the boundaries that it is below, but for those in the bucket in which a boundary lies."""
    found = buckets(stack, services["base2"], "timespan_tests_seconds")
    assert sorted(found)[:-1] == list(BOUNDARIES_S)
    assert found[float("inf")] == len(VALUES) and found[3600.0] == len(VALUES) - 1
    width = 2 ** (2**-1)  # 160 buckets reach from 1e-6 to 9000 at a scale of 2 or more
    for bound in BOUNDARIES_S:
        below, up_to = (sum(1 for v in VALUES if v <= bound * factor) for factor in (1 / width, width))
        assert below <= found[bound] <= up_to, bound


@pytest.mark.parametrize(
    "metric", ["timespan_task_run_seconds", "timespan_task_wait_seconds", "timespan_dag_duration_seconds"]
)
def test_the_logs_own_histograms_look_the_same(stack: Stack, services: dict[str, str], metric: str) -> None:
    """Of both kinds the same boundaries, as many values, and exemplars that lead to traces."""
    explicit, exponential = (buckets(stack, services[kind], metric) for kind in ("explicit", "base2"))
    assert explicit.keys() == exponential.keys()
    assert explicit[float("inf")] == exponential[float("inf")] > 0
    series = f'{metric}_bucket{{job="{services["base2"]}"}}'
    exemplars: list[Any] = eventually(lambda: stack.exemplars(series))
    assert eventually(lambda: all(stack.trace(exemplar["labels"]["trace_id"]) for exemplar in exemplars))


def test_a_users_own_histogram_stays_exponential(stack: Stack, services: dict[str, str]) -> None:
    """Prometheus keeps it as a native one, whose quantiles are near the truth."""
    metric = f'users_own_seconds{{job="{services["base2"]}"}}'
    assert value(stack, f"histogram_count({metric})") == len(VALUES)
    median = value(stack, f"histogram_quantile(0.5, {metric})")
    assert median == pytest.approx(VALUES[len(VALUES) // 2], rel=0.3)
    assert not stack.query(f'users_own_seconds_bucket{{job="{services["base2"]}"}}')
