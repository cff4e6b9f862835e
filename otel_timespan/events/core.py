"""Consumers for any program: what an event says, and how the machine is."""

from __future__ import annotations

import functools
import logging
import operator
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..timespans.model import Event
from ..timespans.rows import Columns
from ..timespans.taskrecords import Steps
from .base import Sampler

__all__ = [
    "CPULoadAverages",
    "CoreMetrics",
    "CoreRecord",
    "DebugMetrics",
    "EventSaturation",
    "FullMetrics",
    "IDMetrics",
    "MemoryFree",
    "TimelineMetrics",
]

_log = logging.getLogger("otel_timespan.events")


class _CoreFields(NamedTuple):
    timestamp: int
    category: str
    kind: str


class CoreRecord(_CoreFields):
    """A row of `CoreMetrics`: `timestamp` (monotonic ns), `category`, `kind` ("start" or "finish").

    `row.kind`, `row["kind"]`, `row[2]` and `dict(row)` all work.
    """

    __slots__ = ()

    def keys(self) -> Iterator[str]:
        """The names of the fields (so that `dict(row)` works)."""
        return iter(self._fields)

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)


_new = tuple.__new__
_core_record = functools.partial(_new, CoreRecord)
_core_fields = operator.itemgetter(4, 1, 0)


class CoreMetrics:
    """The timestamp, category and kind of each event, as a `CoreRecord`."""

    lazy = True
    says = ("times", "categories", "phases")

    def __call__(self, event: Event) -> CoreRecord:
        """See the class."""
        return _core_record(_core_fields(event))

    def columns(self, columns: Columns) -> Iterable[CoreRecord]:
        """The same for many events."""
        return map(_core_record, zip(columns.times, columns.categories, columns.phases, strict=True))

    def arrow(self, times: Any, heads: Any, named: Sequence[tuple[str, str]]) -> Any:
        """The same as an array of pyarrow's structs. `heads`: the places of (category, kind) in `named`."""
        import pyarrow as pa

        indexes = pa.array(heads, pa.int32())
        tables = [pa.array([head[n] for head in named], pa.string()) for n in (0, 1)]
        texts = [pa.DictionaryArray.from_arrays(indexes, table).cast(pa.string()) for table in tables]
        fields = [pa.array(times, pa.int64()), *texts]
        return pa.StructArray.from_arrays(fields, list(CoreRecord._fields))


class IDMetrics:
    """The id of each event."""

    lazy = True
    says = ("ids",)

    def __call__(self, event: Event) -> Any:
        """See the class."""
        return event.id

    def columns(self, columns: Columns) -> list[Any]:
        """The same for many events."""
        return columns.ids


class TimelineMetrics:
    """The timeline (payload) of each event."""

    def __call__(self, event: Event) -> Any:
        """See the class."""
        return event.timeline

    def batch(self, events: list[Event]) -> list[Any]:
        """The same for many events."""
        return [event.timeline for event in events]


class FullMetrics:
    """The events themselves."""

    def __call__(self, event: Event) -> Event:
        """See the class."""
        return event

    def batch(self, events: list[Event]) -> list[Event]:
        """The same for many events."""
        return events


class _SlowSampler(Sampler):
    """A reading that costs 10 to 50 µs and changes slowly: taken anew after `_keep_ns` at the earliest."""

    _keep_ns = 50_000_000

    def __init__(self) -> None:
        self._last: tuple[int, Any] = (-self._keep_ns, None)

    def read(self) -> Any:
        raise NotImplementedError

    def sample(self) -> Any:
        """The reading, at most 50 ms old."""
        now, (since, value) = time.monotonic_ns(), self._last
        if now - since >= self._keep_ns:
            value = self.read()
            self._last = (now, value)
        return value

    def __call__(self, event: Event) -> Any:
        return self.read()


class CPULoadAverages(_SlowSampler):
    """The system's load average over one minute (`os.getloadavg()[0]`), at most 50 ms old in a log.

    None where the system has none (Windows).
    """

    def read(self) -> float | None:
        """The load average now."""
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


class MemoryFree(_SlowSampler):
    """Free memory of the system as a fraction (0 to 1) of all of it, at most 50 ms old in a log.

    Free is what programs can still get: Linux's MemAvailable, else free pages. None where unknown.
    """

    def read(self) -> float | None:
        """The fraction now."""
        return _linux_memory_free() or _posix_memory_free()


def _linux_memory_free() -> float | None:
    try:
        with open("/proc/meminfo", "rb") as file:
            fields = {line.split()[0]: int(line.split()[1]) for line in file.read(200).splitlines()[:3]}
    except (OSError, ValueError, IndexError):
        return None
    total, available = fields.get(b"MemTotal:"), fields.get(b"MemAvailable:")
    return None if not total or available is None else min(available / total, 1.0)


def _posix_memory_free() -> float | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") / os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


class EventSaturation:
    """How many spans of each category are open: a dict of those above 0, after counting the event."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, event: Event) -> dict[str, int]:
        """See the class. A finish without a start does not count below 0."""
        counts, category = self._counts, event.category
        count = counts.get(category, 0) + (1 if event.phase == "start" else -1)
        if count > 0:
            counts[category] = count
        else:
            counts.pop(category, None)
        return counts.copy()

    def last(self, kinds: Iterable[tuple[str, str]]) -> dict[str, int]:
        """The same for the last of many events, of which these are the (category, phase)."""
        # As `__call__`, written out: calling something for each event would cost more than the count.
        counts = self._counts
        for category, phase in kinds:
            count = counts.get(category, 0)
            if phase == "start":
                counts[category] = count + 1
            elif count > 1:
                counts[category] = count - 1
            elif count:
                del counts[category]
        return counts.copy()

    def take_steps(self, steps: Steps) -> None:
        """The same for records: only bodies outlast one."""
        count = self._counts.get("compute", 0) + len(steps.begun) - len(steps.returned)
        if count > 0:
            self._counts["compute"] = count
        else:
            self._counts.pop("compute", None)

    def init_similar(self) -> EventSaturation:
        """A fresh one."""
        return EventSaturation()


class DebugMetrics:
    """One debug line an event, `category, kind, (open spans)`, to the logger `otel_timespan.events`; None."""

    def __init__(self) -> None:
        self._saturation = EventSaturation()

    def __call__(self, event: Event) -> None:
        """See the class."""
        counts = ", ".join(f"{category} => {n}" for category, n in self._saturation(event).items())
        _log.debug("%s, %s, (%s)", event.category, event.phase, counts)

    def init_similar(self) -> DebugMetrics:
        """A fresh one."""
        return DebugMetrics()
