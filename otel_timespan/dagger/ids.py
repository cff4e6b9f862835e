"""Ids come in blocks, so that workers can number tasks without asking the core each time.

Source: design/rulings.md 15. One source belongs to the process that holds the core; another process
leases blocks of it with `lease`. Task ids begin with 1; the eager scheduler's internal root takes one.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterator

__all__ = ["IdBlocks", "new_run_id"]

BLOCK = 1 << 20


class IdBlocks:
    """Integers from 1 on, never twice. `next()` is thread-safe and takes no lock within a block."""

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._blocks = itertools.count(0)
        self._lock = threading.Lock()
        self._ids: Iterator[int] = iter(self.lease(block))

    def lease(self, size: int) -> range:
        """A block of ids that nobody else will get. Whole blocks are given, whatever part is used."""
        blocks = -(-size // self._block)
        with self._lock:
            first = next(self._blocks)
            for _ in range(blocks - 1):
                next(self._blocks)
        return range(1 + first * self._block, 1 + (first + blocks) * self._block)

    def next(self) -> int:
        """The next id of this process."""
        while True:
            for task_id in self._ids:
                return task_id
            self._ids = iter(self.lease(self._block))


def new_run_id() -> int:
    """A random 63-bit number, never 0: names one scheduler instance for ever (rulings 34)."""
    return secrets.randbits(62) | 1 << 62
