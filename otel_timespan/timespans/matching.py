"""Matching halves into timespans, and sums over them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TextIO

from .model import Event, GCDiff, ProfilerResult, Timespan, make_timespan

__all__ = ["SpanBuilder", "aggregate_events", "build_timespans", "summarize_events"]


class SpanBuilder:
    """Folds events into timespans, whichever half of a span comes first.

    `completed` holds the spans in completion order; `pending` the halves still alone (falsy when there
    are none); `start_time` and `finish_time` the extremes over completed spans, 0 while there is none.
    A second half of the same kind with the same key replaces the first. Not thread-safe.
    """

    def __init__(self) -> None:
        self.completed: list[Timespan] = []
        self.start_time = 0
        self.finish_time = 0
        self._starts: dict[Any, Event] = {}
        self._finishes: dict[Any, Event] = {}

    @property
    def pending(self) -> Collection[Event]:
        """The unmatched halves, in the order of their timestamps."""
        halves = [*self._starts.values(), *self._finishes.values()]
        return sorted(halves, key=lambda event: event.timestamp)

    def feed(self, event: Event) -> Timespan | None:
        """Take one half; the timespan, if this completed one."""
        key = (event.category, event.id)
        is_start = event.phase == "start"
        mine, others = (self._starts, self._finishes) if is_start else (self._finishes, self._starts)
        other = others.pop(key, None)
        if other is None:
            mine[key] = event
            return None
        span = make_timespan(event, other) if is_start else make_timespan(other, event)
        self.start_time = min(self.start_time, span.start) if self.completed else span.start
        self.finish_time = max(self.finish_time, span.finish) if self.completed else span.finish
        self.completed.append(span)
        return span


def build_timespans(events: Iterable[Event]) -> SpanBuilder:
    """Fold a whole list of events."""
    builder = SpanBuilder()
    for event in events:
        builder.feed(event)
    return builder


def aggregate_events(spans: Iterable[Timespan]) -> tuple[int, GCDiff, ProfilerResult]:
    """(total nanoseconds, summed GC counters, merged samples) of the spans."""
    total, gc, samples = 0, GCDiff(), ProfilerResult()
    for span in spans:
        total += span.finish - span.start
        gc = gc + span.gc_diff
        samples = samples + span.profiler_samples
    return total, gc, samples


def summarize_events(spans: Iterable[Timespan], io: TextIO | None = None) -> str:
    """One line "time, bytes, GC time, allocations" (and the profile, if any); printed to `io` if given."""
    total, gc, profile = aggregate_events(spans)
    text = (
        f"{total / 1e9:.6f} seconds ({gc.allocd} bytes allocated, "
        f"{gc.total_time / 1e9:.6f} seconds in GC, {gc.malloc + gc.poolalloc} allocations)"
    )
    if profile:
        text += f"\nprofile: {len(profile.samples)} samples of {len(profile.tasks)} threads"
    if io is not None:
        print(text, file=io)
    return text
