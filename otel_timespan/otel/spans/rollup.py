"""Many tasks of one function as one span: how many, how long their bodies took, from first to last.

Durations are counted in buckets of which there are 32 for each doubling, so that quantiles are right to 1.6 % whatever
their number, in at most 2,000 numbers a roll-up. Count, sum, least and most are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .. import semconv
from . import ids
from .ids import TraceParent
from .spandata import SpanData

__all__ = ["RollUp"]

_BITS = 5


def _bucket(ns: int) -> int:
    """The bucket of a duration: its highest bits, and how many follow."""
    shift = ns.bit_length() - _BITS - 1
    return ns if shift <= 0 else (shift << _BITS) + (ns >> shift)


def _middle(bucket: int) -> int:
    """The duration in the middle of a bucket."""
    shift = (bucket >> _BITS) - 1
    if shift <= 0:
        return bucket
    return ((bucket - (shift << _BITS)) << shift) + (1 << shift - 1)


class RollUp:
    """The tasks of one function of one run that are not sent one by one. Not thread-safe.

    Its id is known before there is anything in it: it follows from the root (and part) of the run and the function, so
    that links may lead to it. `base` is what `ids.of` makes it of.
    """

    __slots__ = ("_attributes", "_buckets", "_first_ns", "_last_ns", "_least", "_most", "_name", "_total", "base",
                 "count")  # fmt: skip

    def __init__(self, root_id: int, part: int, function: str, name: str, attributes: Mapping[str, Any]) -> None:
        self.base = ids.swapped(ids.digest(64, "rolled up", root_id, part, function))
        self._name, self._attributes = f"{name} (rolled up)", attributes
        self.count = self._total = self._most = self._last_ns = 0
        self._first_ns = self._least = 1 << 64
        self._buckets: dict[int, int] = {}

    def add(self, starts: Sequence[int], runs: Sequence[int], ends: Sequence[int]) -> None:
        """Tasks: when they were submitted, how long their bodies took, when they finished. All in monotonic ns."""
        self.count += len(runs)
        self._total += sum(runs)
        self._least, self._most = min(self._least, *runs), max(self._most, *runs)
        self._first_ns, self._last_ns = min(self._first_ns, *starts), max(self._last_ns, *ends)
        buckets = self._buckets
        for bucket, count in Counter(map(_bucket, runs)).items():
            buckets[bucket] = buckets.get(bucket, 0) + count

    def quantile(self, share: float) -> int:
        """The duration in ns that this share of the tasks did not exceed, to 1.6 %."""
        left = share * self.count
        for bucket, count in sorted(self._buckets.items()):
            left -= count
            if left <= 0:
                return min(max(_middle(bucket), self._least), self._most)
        return self._most

    def span(self, run: TraceParent, offset_ns: int) -> SpanData:
        """The span of the tasks so far, under the root of their run."""
        attributes = {
            **self._attributes,
            semconv.ROLLUP_COUNT: self.count,
            semconv.ROLLUP_MIN: self._least / 1e9,
            semconv.ROLLUP_MEAN: self._total / self.count / 1e9,
            semconv.ROLLUP_P50: self.quantile(0.5) / 1e9,
            semconv.ROLLUP_P99: self.quantile(0.99) / 1e9,
            semconv.ROLLUP_MAX: self._most / 1e9,
            semconv.ROLLUP_TOTAL: self._total / 1e9,
        }
        return SpanData(
            self._name, run.trace_id, ids.of(self.base, ids.TASK), run.span_id, self._first_ns + offset_ns,
            max(self._last_ns, self._first_ns + 1) + offset_ns, attributes, trace_state=run.trace_state,
            flags=run.flags,
        )  # fmt: skip
