"""Counter tracks: what a log's streams sampled over time, and what follows from its tasks.

Known streams are `bytes` (BytesAllocd), `wsat`, `psat`, `esat`, `loadavg`, `mem`; any other stream of
plain numbers becomes a counter under its own name, except those that hold one span's cost each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..timespans.texts import printable
from .rows import LogTable

__all__ = ["counter_events", "derived_counters", "short_processor"]

_NAMES = {
    "bytes": "bytes allocated",
    "wsat": "worker saturation",
    "psat": "processor saturation",
    "esat": "event saturation",
    "loadavg": "load average",
    "mem": "free memory",
}
_PER_SPAN = ("gc_stats", "lock_contend", "compile_time", "linuxperf")
_MAX_POINTS = 4000

Point = tuple[int, dict[str, float]]


def counter_events(log: LogTable) -> Iterator[dict[str, Any]]:
    """Counter events of every sampled stream of every worker, changes only."""
    for worker in sorted(log.streams):
        streams = log.streams[worker]
        core = streams.get("core") or ()
        for stream, values in sorted(streams.items()):
            series = _series_of(stream, values)
            if series is None:
                continue
            points = (
                (row["timestamp"] if isinstance(row, dict) else row.timestamp, series(value))
                for row, value in zip(core, values, strict=False)
                if row is not None and value is not None
            )
            yield from _events(_NAMES.get(stream) or printable(stream), worker, points, log)


def derived_counters(log: LogTable) -> Iterator[dict[str, Any]]:
    """How many tasks wait for dependencies, wait for a processor, and run: from the tasks themselves."""
    steps: list[tuple[int, str, int]] = []
    for task in log.tasks.values():
        marks = task.marks()
        if not marks:
            continue
        begun = marks[4] if task.computes else marks[-1]
        for name, start, end in (("waiting", marks[0], marks[1]), ("queued", marks[1], begun)):
            if end > start:
                steps += [(start, name, 1), (end, name, -1)]
    for span in log.computes:
        steps += [(span.start, "running", 1), (span.finish, "running", -1)]
    if steps:
        worker = log.workers[0] if log.workers else 1
        yield from _events("tasks", worker, _running_sums(sorted(steps)), log)


def _running_sums(steps: Iterable[tuple[int, str, int]]) -> Iterator[Point]:
    counts = {"waiting": 0.0, "queued": 0.0, "running": 0.0}
    for at, name, change in steps:
        counts[name] += change
        yield at, dict(counts)


def _series_of(stream: str, values: Iterable[Any]) -> Callable[[Any], dict[str, float]] | None:
    """How to read a value of the stream, None if the stream is no counter."""
    first = next((v for v in values if v is not None), None)
    if stream in _PER_SPAN or first is None:
        return None
    if isinstance(first, (int, float)) and not isinstance(first, bool):
        return lambda value: {"value": value}
    if stream == "psat":
        return lambda value: {short_processor(processor): count for processor, count in value}
    if stream == "esat":
        return _counts
    return None


def _counts(value: Any) -> dict[str, float]:
    counted = dict(value) if isinstance(value, Mapping) or hasattr(value, "keys") else dict(vars(value))
    return {printable(name): count for name, count in counted.items()}


def short_processor(processor: Any) -> str:
    """A processor's short name; its text where it has none."""
    if processor is None:
        return ""
    try:
        short = getattr(processor, "short_name", None)
        return printable(short() if callable(short) else processor)
    except Exception:  # a custom processor's own
        return type(processor).__name__


def _events(name: str, worker: int, points: Iterable[Point], log: LogTable) -> Iterator[dict[str, Any]]:
    for at, values in _thinned(sorted(points, key=lambda p: p[0]), log):
        values = {label: value for label, value in values.items() if math.isfinite(value)}  # JSON knows no others
        if values:
            yield {"name": name, "ph": "C", "ts": at / 1000, "pid": worker, "tid": 0, "args": values}


def _thinned(points: Iterable[Point], log: LogTable) -> Iterator[Point]:
    """Changes only, and of each moment that a picture can tell apart the last one; what vanishes is 0."""
    resolution = max(1, (log.finish_ns - log.start_ns) // _MAX_POINTS)
    known: dict[str, float] = {}
    held: Point | None = None
    shown: dict[str, float] | None = None
    for at, values in points:
        for name in known:
            values.setdefault(name, 0)
        if not values:  # nothing was ever counted yet
            continue
        known = values
        if held is not None and at // resolution != held[0] // resolution and held[1] != shown:
            yield held
            shown = held[1]
        held = (at, values)
    if held is not None and held[1] != shown:
        yield held
