"""Spans of a run that is over, from its events: the same ids as live."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import InvalidOptionError
from ..timespans.eventfile import read_events
from ..timespans.model import Event, Timespan
from .export.settings import check_sending
from .spans import ids
from .spans.ids import Root, TraceParent
from .spans.mapping import SpanMapper
from .spans.redact import Redact, redacted
from .spans.runs import Run, Runs
from .spans.spandata import SpanData

__all__ = ["replay"]


class ReplayRuns(Runs):
    """Runs as the events tell of them: nobody submits, nothing is drawn, everything is taken."""

    def __init__(self) -> None:
        super().__init__(_no_root, 1, 0, lambda: 0)

    def arrived(self, parent: TraceParent) -> None:
        """A task of the run with this root."""
        root = parent.root
        if root is None:
            return
        run = self._open.get(root.span_id)
        if run is None:
            of_root = parent._replace(span_id=root.span_id)
            run = self._open[root.span_id] = Run(of_root, None)
        run.entered.add()

    def adopt(self, run_id: int) -> TraceParent:
        """A log that no `OTelLog` saw: one run for each scheduler instance, its ids made from the run id."""
        span_id = ids.digest(64, "dag", run_id)
        run = self._open.get(span_id)
        if run is None:
            parent = TraceParent(ids.digest(128, "dag", run_id), span_id, 1, "", run_id or 1, Root(span_id, "dag", 0))
            run = self._open[span_id] = Run(parent, None)
            run.start_ns = 1 << 63  # until a task covers it
        run.entered.add()
        return run.parent


def _no_root(*args: Any) -> Any:
    raise AssertionError("a replay draws no roots")


def replay(
    source: Any,
    *,
    detail: str = "phases",
    offset_ns: int | None = None,
    redact: Redact | None = None,
    max_spans: int | None = None,
) -> Iterator[SpanData]:
    """The spans of a saved log, children before parents, roots last.

    `source`: a file that an `IOLog` wrote (its path), `{worker: [Event]}`, or any iterable of events (not of
    matched `Timespan`s, which have lost their starts' timelines). Ids are those that the live `OTelLog` gave, where
    one was on; in any case the same at each replay. `offset_ns` is wall clock minus monotonic clock, by
    default the present one, which is right for a log of this boot of the machine. `redact` and `max_spans` as of
    `OTelLog`, but that nothing bounds a run by default. Tasks that never ended come out as abandoned. Raises
    `InvalidOptionError` for a wrong `detail`, `max_spans` or source.
    """
    if max_spans is not None:
        check_sending({"max_spans": max_spans})
    runs = ReplayRuns()
    offset = time.time_ns() - time.monotonic_ns() if offset_ns is None else offset_ns
    mapper = SpanMapper(runs, detail=detail, offset_ns=offset, max_spans=max_spans)
    spans = _replayed(mapper, runs, _events_of(source))
    return spans if redact is None else (redacted(redact, span) for span in spans)


def _replayed(mapper: SpanMapper, runs: ReplayRuns, events: Iterable[Event]) -> Iterator[SpanData]:
    latest = 0
    for event in events:
        latest = max(latest, event.timestamp)
        spans = mapper.feed(event)
        mapper.budgets.sweep(spans)
        yield from spans
    yield from mapper.abandon(latest)
    for run in runs.end_all():
        run.start_ns = min(run.start_ns, run.latest_ns)
        yield from mapper.end_run(run)
    last: list[SpanData] = []
    mapper.budgets.end_strays(math.inf, last)
    yield from last


def _events_of(source: Any) -> Iterable[Event]:
    if isinstance(source, (str, os.PathLike)):
        return read_events(source)
    if isinstance(source, Mapping):
        workers = [list(events) for events in source.values()]
        source = sorted((e for events in workers for e in events), key=_order) if len(workers) > 1 else workers[0]
    try:
        events = list(source)
    except TypeError:
        events = [source]
    wrong = next((item for item in events if not isinstance(item, Event)), None)
    if wrong is not None:
        hint = "; fetch the log with raw=True" if isinstance(wrong, Timespan) else ""
        raise InvalidOptionError(f"replay needs events, not {type(wrong).__name__}{hint}")
    return events


def _order(event: Event) -> tuple[int, bool]:
    return event.timestamp, event.phase == "finish"
