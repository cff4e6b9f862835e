"""Which runs are worth sending, where only those are: what failed, or took longer than it should.

"Longer than it should" is longer than a fixed time, or than a multiple of the median of the last runs of the same name.
Runs that the log opened by itself all have one name; of these the same functions make the same run.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from statistics import median
from typing import TYPE_CHECKING, Any

from .spandata import SpanData

if TYPE_CHECKING:
    from .runs import Run

__all__ = ["FAILURE", "FULL", "SLOW", "SLOWER", "Interest"]

FAILURE, SLOW, SLOWER, FULL = "failure", "slow", "slower", "full"
"""Why a run is sent: something in it failed; longer than the fixed time; longer than its like; too much was held."""

REMEMBERED = 20
"""So many runs of a name are compared with."""

LEAST = 5
"""With fewer nothing is compared."""

MAX_NAMES = 1000


class Interest:
    """`slow_ns`: the fixed time, None for none. `factor`: the multiple. `max_bytes`: what all runs together may hold
    until it is known, as `weigh(span)` measures. Not thread-safe."""

    def __init__(
        self, slow_ns: float | None, factor: float, max_bytes: int, weigh: Callable[[SpanData], int]
    ) -> None:
        self.slow_ns, self._factor, self.max_bytes, self.weigh = slow_ns, factor, max_bytes, weigh
        self._known: OrderedDict[Any, deque[int]] = OrderedDict()

    def so_far(self, run: Run) -> str:
        """Why a run is worth sending that goes on; "" if it is not yet."""
        if run.failed or run.first_failure is not None:
            return FAILURE
        return SLOW if self.slow_ns is not None and run.latest_ns - run.start_ns > self.slow_ns else ""

    def at_last(self, run: Run, functions: Iterable[str]) -> str:
        """The same of one that is over, which is remembered. `functions` are those of its tasks."""
        took = max(run.latest_ns, run.left_ns or 0) - run.start_ns
        key = run.root.name if run.root.explicit else (run.root.name, frozenset(functions))
        known = self._known.setdefault(key, deque(maxlen=REMEMBERED))
        self._known.move_to_end(key)
        if len(self._known) > MAX_NAMES:
            self._known.popitem(last=False)
        usual = median(known) if len(known) >= LEAST else None
        known.append(took)
        if run.result == FAILURE:
            return FAILURE
        if self.slow_ns is not None and took > self.slow_ns:
            return SLOW
        return SLOWER if usual is not None and took > self._factor * usual else ""
