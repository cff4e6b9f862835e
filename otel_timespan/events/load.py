"""Consumers of load: bytes of results, running bodies."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import Any

from ..timespans.model import ChunkInfo, Event
from ..timespans.taskrecords import Steps
from .base import id_field

__all__ = ["BytesAllocd", "ProcessorSaturation", "WorkerSaturation"]

_MAX_GONE = 1000
_begun_on, _returned_on = itemgetter(6), itemgetter(5)  # the processor's number, of a START and of a RETURN


class BytesAllocd:
    """Bytes of task results in a worker's memory: the total, for every event.

    Rises when a chunk appears as the result of a task (once a chunk, restored tasks included) or comes back
    to memory (`storage_wait`), falls when it is evicted (released or spilled). Chunks of unknown size do not
    count, nor do chunks of other workers, whose own stream has them.
    """

    categories = frozenset({"compute", "finish", "evict", "storage_wait"})
    carries = True

    def __init__(self) -> None:
        self.value = 0
        self._held: dict[Any, int] = {}
        self._spilled: set[Any] = set()
        self._gone: dict[Any, None] = {}  # the last that died: news of their birth may come late

    def __call__(self, event: Event) -> int:
        """See the class."""
        if event.category == "evict":
            self._evict(getattr(event.timeline, "data", None), getattr(event.timeline, "reason", ""))
        elif event.phase == "finish" and event.category in ("compute", "finish"):
            self._keep(getattr(event.timeline, "result", None), event.worker)
        elif event.phase == "finish" and event.category == "storage_wait":
            self._take_back(getattr(event.timeline, "data", None), event.worker)
        return self.value

    def take_steps(self, steps: Steps) -> None:
        """The same for records."""
        held, spilled, gone = self._held, self._spilled, self._gone
        for record in steps.made:  # as `_hold`, written out: these are nearly all
            handle, nbytes = record[7], record[8]
            if nbytes is not None and handle not in held and handle not in gone and handle not in spilled:
                held[handle] = nbytes
                self.value += nbytes
        for record in steps.evicted:
            self._let_go(record[2], record[6])

    def _keep(self, chunk: Any, worker: int) -> None:
        if isinstance(chunk, ChunkInfo) and chunk.nbytes is not None and chunk.worker == worker:
            self._hold(chunk.handle, chunk.nbytes)

    def _hold(self, handle: Any, nbytes: int) -> None:
        if handle not in self._held and handle not in self._spilled and handle not in self._gone:
            self._held[handle] = nbytes
            self.value += nbytes

    def _take_back(self, chunk: Any, worker: int) -> None:
        if isinstance(chunk, ChunkInfo):
            self._spilled.discard(chunk.handle)
            self._keep(chunk, worker)

    def _evict(self, chunk: Any, reason: str) -> None:
        """Each evict is two events; the second finds nothing to do."""
        if isinstance(chunk, ChunkInfo):
            self._let_go(chunk.handle, reason)

    def _let_go(self, handle: Any, reason: str) -> None:
        self.value -= self._held.pop(handle, 0)
        if reason == "spilled":
            if handle not in self._gone:  # it may have died while it was being written
                self._spilled.add(handle)
            return
        self._spilled.discard(handle)
        self._gone[handle] = None
        if len(self._gone) > _MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def init_similar(self) -> BytesAllocd:
        """A fresh one."""
        return BytesAllocd()


class WorkerSaturation:
    """The number of bodies (`compute` spans) that run on a worker, for every event."""

    categories = frozenset({"compute"})
    carries = True

    def __init__(self) -> None:
        self.value = 0

    def __call__(self, event: Event) -> int:
        """See the class. Never below 0."""
        if event.category == "compute":
            self.value = max(0, self.value + (1 if event.phase == "start" else -1))
        return self.value

    def take_steps(self, steps: Steps) -> None:
        """The same for records."""
        self.value = max(0, self.value + len(steps.begun) - len(steps.returned))

    def init_similar(self) -> WorkerSaturation:
        """A fresh one."""
        return WorkerSaturation()


class ProcessorSaturation:
    """The running bodies of each processor: a list of (processor, count above 0), for every event.

    Entries between two changes share one list.
    """

    categories = frozenset({"compute"})
    carries = True

    def __init__(self) -> None:
        self.value: list[tuple[Any, int]] = []
        self._counts: dict[Any, int] = {}

    def __call__(self, event: Event) -> list[tuple[Any, int]]:
        """See the class."""
        if event.category == "compute":
            self._count(id_field(event, "processor"), 1 if event.phase == "start" else -1)
        return self.value

    def take_steps(self, steps: Steps) -> None:
        """The same for records."""
        changes = Counter(map(_begun_on, steps.begun))
        changes.subtract(Counter(map(_returned_on, steps.returned)))
        for code, change in changes.items():
            if change:
                self._count(steps.processors[code], change)

    def _count(self, processor: Any, change: int) -> None:
        count = self._counts.get(processor, 0) + change
        if count > 0:
            self._counts[processor] = count
        else:
            self._counts.pop(processor, None)
        self.value = list(self._counts.items())

    def init_similar(self) -> ProcessorSaturation:
        """A fresh one."""
        return ProcessorSaturation()
