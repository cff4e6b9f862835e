"""Calls that threads of ours make, in order, and none of which is lost with the thread that was to make it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

__all__ = ["Calls"]


class Calls:
    """`put` may be called from anywhere: a finalizer, a signal handler. `take` waits for the oldest call.

    A thread may end just when it took one out of the queue, before it knows (somebody raised an exception in it). So
    each call stands in a table, too, until it was taken, and who begins to serve puts all that are there in the queue
    again: whoever finds one first has it.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[Callable[[], Any]]] = queue.SimpleQueue()
        self._open: dict[int, list[Callable[[], Any]]] = {}

    def put(self, call: Callable[[], Any]) -> None:
        """Have this call made."""
        entry = [call]
        self._open[id(entry)] = entry
        self._queue.put(entry)

    def begin(self) -> None:
        """A thread begins to serve."""
        for entry in list(self._open.values()):
            self._queue.put(entry)

    def take(self) -> Callable[[], Any] | None:
        """Wait for a call; None where somebody else has it."""
        entry = self._queue.get()
        self._open.pop(id(entry), None)
        try:
            return entry.pop()
        except IndexError:
            return None
