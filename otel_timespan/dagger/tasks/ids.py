"""Ids come in blocks, so that workers can number tasks without asking the core each time.

One source belongs to the process that holds the core; another process leases blocks of it with `lease`. Task
ids begin with 1; the eager scheduler's internal root takes one.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator

from ..service.guards import guard

__all__ = ["IdBlocks", "new_run_id"]

BLOCK = 1 << 20


class IdBlocks:
    """Integers from 1 on, never twice. `next()` is thread-safe and takes no lock within a block."""

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._blocks = itertools.count(0)
        self._lock = guard()
        # All in C within a block. At the end of one, two threads may each lease the next: one is lost, no harm.
        blocks: Iterator[range] = iter(lambda: self.lease(block), None)
        self.next: Callable[[], int] = itertools.chain([1], itertools.chain.from_iterable(blocks)).__next__
        """The next id of this process."""

    def begin_at(self, block: int) -> None:
        """Go on with this block, and those after it, from the second id on. Only before any other was taken."""
        self._blocks = itertools.count(block)

    def lease(self, size: int) -> range:
        """A block of ids that nobody else will get. Whole blocks are given, whatever part is used."""
        blocks = -(-size // self._block)
        with self._lock:
            first = next(self._blocks)
            for _ in range(blocks - 1):
                next(self._blocks)
        return range(2 + first * self._block, 2 + (first + blocks) * self._block)


def new_run_id() -> int:
    """A random 63-bit number, never 0: names one scheduler instance for ever."""
    return secrets.randbits(62) | 1 << 62
