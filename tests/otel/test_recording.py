"""Histograms that are filled by batch: the same as value by value, whatever their buckets."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, ExponentialBucketHistogramAggregation

from otel_timespan.otel.metrics import recording
from otel_timespan.otel.metrics.recording import HistogramRecorder
from otel_timespan.otel.semconv import BOUNDARIES_S

AGGREGATIONS: dict[str, Callable[[], Any]] = {
    "explicit": lambda: ExplicitBucketHistogramAggregation(BOUNDARIES_S),
    "exponential": ExponentialBucketHistogramAggregation,
    "coarse": lambda: ExponentialBucketHistogramAggregation(max_size=16),
}
LABELS = {"function": "f"}


class Histograms:
    """One that is filled by batch beside one that the SDK fills value by value."""

    def __init__(self, aggregation: Any, temporality: AggregationTemporality) -> None:
        options = {"preferred_aggregation": {Histogram: aggregation}, "preferred_temporality": {Histogram: temporality}}
        self.readers = [InMemoryMetricReader(**options) for _ in range(2)]  # type: ignore[arg-type]
        providers = [MeterProvider([reader], shutdown_on_exit=False) for reader in self.readers]
        histograms = [provider.get_meter("tests").create_histogram("h", "s") for provider in providers]
        self.recorder, self.plain = HistogramRecorder(histograms[0]), histograms[1]

    def record(self, values: list[float]) -> None:
        """Into both."""
        self.recorder.record_all(sorted(values), ("f",), LABELS)
        for value in sorted(values):
            self.plain.record(value, LABELS)

    def points(self) -> list[Any]:
        """What a collection gives of each."""
        return [told(point_of(reader)) for reader in self.readers]


def point_of(reader: InMemoryMetricReader) -> Any:
    """The only data point, None where there is none."""
    data = reader.get_metrics_data()
    found = [p for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics
             for p in m.data.data_points]  # fmt: skip
    return found[0] if found else None


def told(point: Any) -> Any:
    """What it says; empty buckets at the end of an exponential one say nothing."""
    if point is None:
        return None
    common = (point.count, pytest.approx(point.sum), point.min, point.max)
    if not hasattr(point, "scale"):
        return (*common, tuple(point.bucket_counts))
    counts = list(point.positive.bucket_counts)
    while counts and counts[-1] == 0:
        counts.pop()
    return (*common, point.scale, point.zero_count, point.positive.offset if counts else None, counts)


def some(rnd: random.Random) -> list[float]:
    """Durations as they come: zeros, powers of two, near ones and far ones."""
    kinds = (lambda: 0.0, lambda: 10 ** rnd.uniform(-7, 4), lambda: 2.0 ** rnd.randint(-20, 9), rnd.random)
    chosen = rnd.choices(kinds, k=2)
    return [rnd.choice(chosen)() for _ in range(rnd.randint(1, 40))]


@pytest.mark.parametrize("temporality", [AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA])
@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_a_batch_counts_as_its_values(kind: str, temporality: AggregationTemporality) -> None:
    """Random batches, with collections in between: counts, sums, extremes, scale and buckets are those of the SDK."""
    for seed in range(150):
        rnd = random.Random(seed)
        both = Histograms(AGGREGATIONS[kind](), temporality)
        for _ in range(rnd.randint(1, 5)):
            both.record(some(rnd))
            if rnd.random() < 0.5:
                first, second = both.points()
                assert first == second, seed
        first, second = both.points()
        assert first == second, seed


def test_a_collection_in_the_middle_of_a_batch_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may collect between the two values that make the buckets grow and the rest of them."""
    both = Histograms(ExponentialBucketHistogramAggregation(), AggregationTemporality.CUMULATIVE)
    both.record([1.0])
    add_each, collected = recording._add_each, []

    def then_collect(aggregation: Any, values: Any) -> None:
        add_each(aggregation, values)
        if not collected:
            collected.append(point_of(both.readers[0]).count)

    monkeypatch.setattr(recording, "_add_each", then_collect)
    both.record([0.0, 0.25, 0.5, 2.0, 4.0, 8.0])
    first, second = both.points()
    assert collected == [4] and first == second
