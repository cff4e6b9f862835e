"""Recording into histograms at a fifth of the cost.

`Histogram.record` costs 10 µs, five times a task: most of it hashes the same labels again. After a first
public `record` the SDK keeps one aggregation object a label set; where it can be found and lives as long
as the instrument, later values go there directly. Where it can't (another SDK, a view that drops labels,
delta temporality) the public way is used for all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.context import Context

__all__ = ["HistogramRecorder"]

_EMPTY = Context()
MAX_BOUND = 5000


class _Value:
    """What an aggregation reads of a measurement when it takes no exemplar."""

    __slots__ = ("value",)
    value: float


class HistogramRecorder:
    """Records values of one histogram. Not thread-safe: the log's lock guards it."""

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._consumer = getattr(histogram, "_measurement_consumer", None)
        self._storages: Any = None
        self._bound: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}
        self._value = _Value()

    def record(self, value: float, key: tuple[Any, ...], labels: Mapping[str, Any], context: Context | None) -> None:
        """Record a value; with a `context` that holds a span, as an exemplar too. `key` stands for the labels."""
        if self._storages is not getattr(self._consumer, "_reader_storages", None):
            self._bound.clear()  # a reader came or went
            self._storages = getattr(self._consumer, "_reader_storages", None)
        bound = self._bound.get(key)
        if context is not None or bound is None:
            self._histogram.record(value, labels, context or _EMPTY)
            if key not in self._bound and len(self._bound) < MAX_BOUND:
                self._bound[key] = self._bind(labels)
            return
        self._value.value = value
        for aggregation in bound:
            aggregation.aggregate(self._value, False)

    def record_all(self, values: Sequence[float], key: tuple[Any, ...], labels: Mapping[str, Any]) -> None:
        """Record ascending values without exemplars, at once where that can be done."""
        if not values:
            return
        self.record(values[0], key, labels, None)
        bound = self._bound.get(key)
        for aggregation in bound or ():
            _ADD.get(type(aggregation).__name__, _add_each)(aggregation, values[1:])
        if bound is None:
            for value in values[1:]:
                self._histogram.record(value, labels, _EMPTY)

    def start_empty(self) -> None:
        """In a forked child: forget what the parent recorded, which it exports itself, where that can be found."""
        self._bound.clear()
        for match in self._matches():
            match._attributes_aggregation.clear()

    def _matches(self) -> list[Any]:
        try:
            return [
                match
                for storage in getattr(self._consumer, "_reader_storages", {}).values()
                for match in storage._get_or_init_view_instrument_match(self._histogram)
                if isinstance(match._attributes_aggregation, dict)
            ]
        except (AttributeError, TypeError):
            return []

    def _bind(self, labels: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The aggregations of these labels, one a reader; None where the short way can't be taken."""
        try:
            return tuple(
                _aggregation(match, labels)
                for storage in self._storages.values()
                for match in storage._get_or_init_view_instrument_match(self._histogram)
            )
        except (AttributeError, TypeError, LookupError):
            return None


def _add_each(aggregation: Any, values: Sequence[float]) -> None:
    measured = _Value()
    for value in values:
        measured.value = value
        aggregation.aggregate(measured, False)


def _add_explicit(aggregation: Any, values: Sequence[float]) -> None:
    """As its `aggregate` for each of these, with its lock taken once."""
    if not values:
        return
    bounds = aggregation._boundaries
    found = list(buckets_of(values, bounds))
    with aggregation._lock:
        if aggregation._value is None:
            aggregation._value = [0] * (len(bounds) + 1)
        counts = aggregation._value
        for (bucket, at), (_, end) in zip(found, [*found[1:], (0, len(values))], strict=True):
            counts[bucket] += end - at
        aggregation._sum += sum(values)
        if aggregation._record_min_max:
            aggregation._min = min(aggregation._min, values[0])
            aggregation._max = max(aggregation._max, values[-1])


def _add_exponential(aggregation: Any, values: Sequence[float]) -> None:
    """The same where the buckets grow with what is measured: the least and the largest of these make them grow first.

    A collection begins new ones. Where one comes in between, the rest goes one by one.
    """
    zeros = bisect_right(values, 0.0)
    if len(values) - zeros < 3 or values[0] < 0.0:
        _add_each(aggregation, values)
        return
    _add_each(aggregation, [values[zeros], values[-1]])
    rest = [*values[:zeros], *values[zeros + 1 : -1]]
    with aggregation._lock:
        buckets, mapping = aggregation._value_positive, aggregation._mapping
        first, last = mapping.map_to_index(rest[zeros]), mapping.map_to_index(rest[-1])
        fits = buckets is not None and buckets.index_start <= first and last <= buckets.index_end
        if fits:
            _fill(buckets, mapping, rest, zeros)
            aggregation._zero_count += zeros
            aggregation._count += len(rest)
            aggregation._sum += sum(rest)
            if zeros and getattr(aggregation, "_record_min_max", True):  # older SDKs always do
                aggregation._min = min(aggregation._min, 0.0)
    if not fits:
        _add_each(aggregation, rest)


def _fill(buckets: Any, mapping: Any, ordered: Sequence[float], at: int) -> None:
    """Count the values from `at` on into buckets that reach far enough."""
    counts, base = buckets.counts, buckets.index_base
    while at < len(ordered):
        index = mapping.map_to_index(ordered[at])
        end = bisect_right(ordered, mapping.get_lower_boundary(index + 1), at + 1)
        bucket = index - base
        counts[bucket if bucket >= 0 else bucket + len(counts)] += end - at
        at = end


_ADD = {
    "_ExplicitBucketHistogramAggregation": _add_explicit,
    "_ExponentialBucketHistogramAggregation": _add_exponential,
}


def buckets_of(ordered: Sequence[float], bounds: Sequence[float]) -> Iterator[tuple[int, int]]:
    """(bucket, index of its first value) of each bucket that has any of these ascending values."""
    at = 0
    while at < len(ordered):
        bucket = bisect_left(bounds, ordered[at])
        yield bucket, at
        at = bisect_right(ordered, bounds[bucket], at) if bucket < len(bounds) else len(ordered)


def _aggregation(match: Any, labels: Mapping[str, Any]) -> Any:
    if match._reset_on_collect or match._view._attribute_keys is not None:
        raise LookupError("aggregations of this view come and go, or know other labels")
    for aggregation in list(match._attributes_aggregation.values()):
        if aggregation._attributes == labels:
            return aggregation
    raise LookupError("no aggregation has these labels")
