"""Spans of timespans that belong to no task: a program's own, and the scheduler's.

A program that uses the log without the scheduler gets a span named by the category, under the enclosing
open timespan of the same thread (or asyncio task), else under the active OpenTelemetry span, else as a
root. Where a timespan stands can only be known on the thread that emits it, so
`Enclosing.place` is called there and its answer travels with the event, in `Event.samples`.

The scheduler's own timespans become spans with detail "scheduler", under the root of their run.
"""

from __future__ import annotations

import contextvars
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from opentelemetry.trace import INVALID_SPAN, get_current_span

from ...timespans.model import Event, EventId
from .. import semconv
from . import failures, ids
from .runs import Run, Runs, Sampled
from .spandata import ERROR, UNSET, SpanData
from .tasks import processor_name
from .values import plain_text

__all__ = ["PLACE", "Enclosing", "Place", "PlainSpans", "is_program"]

PLACE = "otel_timespan.place"
"""The key of a `Place` in `Event.samples`."""

MAX_OPEN = 100_000
MAX_HELD = 256
_NAMES = {"proc_steal_local": "steal"}
_BEFORE_RUNS = frozenset(("scheduler_init", "init_proc", "assign_procs"))
"""What leads to a run although it comes before it. Between runs the scheduler's timespans are not spans."""


class Place(NamedTuple):
    """Where a program's timespan stands in a trace."""

    trace_id: int
    span_id: int
    parent_id: int
    flags: int
    trace_state: str = ""


def own_place(event: Event) -> tuple[int, int]:
    """(trace id, span id) that a timespan's start gives it when nothing encloses it: the same in a replay."""
    key = (plain_text(event.category), id_text(event.id), event.timestamp, event.worker)
    return ids.digest(128, *key), ids.digest(64, *key)


def id_text(id: Any) -> str:
    """The id of a timespan as text, cut."""
    try:
        return plain_text(repr(id)[:256])
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # a __repr__ of the user's may raise anything
        return f"<{type(id).__name__}: repr() raised {type(broken).__name__}>"


class _Frame:
    """An open timespan in the stack of its thread. `closed` may be set by another thread."""

    __slots__ = ("active", "closed", "owner", "place")

    def __init__(self, owner: Enclosing, place: Place, active: Any) -> None:
        self.owner, self.place, self.active, self.closed = owner, place, active, False


_stack: contextvars.ContextVar[tuple[_Frame, ...]] = contextvars.ContextVar("otel_timespan.timespans", default=())
"""The open timespans around us, of all logs, the innermost last."""


class Enclosing:
    """Which timespan is open around us, thread by thread. `sample(trace_id, name)` asks the sampler about a root."""

    def __init__(self, sample: Callable[[int, str], Sampled]) -> None:
        self._sample = sample
        self._open: OrderedDict[Any, _Frame] = OrderedDict()

    def place(self, event: Event) -> Event:
        """The event with its place; a finish closes what its start opened, whatever thread it is on."""
        key = (event.category, event.id)
        if event.phase != "start":
            entry = self._open.pop(key, None)
            if entry is not None:
                entry.closed = True
                _stack.set(tuple(e for e in _stack.get() if not e.closed))
            return event
        active = get_current_span()
        stack = tuple(e for e in _stack.get() if not e.closed)
        ours = [e for e in stack if e.owner is self]
        entry = _Frame(self, self._place(event, active, ours), active)
        _stack.set((*stack, entry))
        self._open[key] = entry
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].closed = True
        return event._replace(samples={**(event.samples or {}), PLACE: entry.place})

    def _place(self, event: Event, active: Any, stack: list[_Frame]) -> Place:
        trace_id, span_id = own_place(event)
        # An OpenTelemetry span that was opened inside of the timespan is nearer than the timespan.
        if stack and stack[-1].active is active:
            outer = stack[-1].place
            return Place(outer.trace_id, span_id, outer.span_id, outer.flags, outer.trace_state)
        context = active.get_span_context()
        if active is not INVALID_SPAN and context.is_valid:
            state = context.trace_state.to_header() if context.trace_state else ""
            return Place(context.trace_id, span_id, context.span_id, int(context.trace_flags) & 1, state)
        sampled = self._sample(trace_id, plain_text(event.category))
        return Place(trace_id, span_id, 0, sampled.flags, sampled.trace_state)


class PlainSpans:
    """Matches the halves of timespans without a task and builds their spans. Not thread-safe.

    Methods append to `out` and return how many spans were not built because they are not sampled.
    """

    def __init__(self, runs: Runs, offset_ns: int) -> None:
        self._runs, self._offset = runs, offset_ns
        self._open: OrderedDict[Any, tuple[Event, Place]] = OrderedDict()
        self._finishes: OrderedDict[Any, Event] = OrderedDict()  # came before their starts
        self._scheduler: OrderedDict[Any, tuple[Event, Run | None]] = OrderedDict()
        self._held: deque[tuple[Event, Event]] = deque(maxlen=MAX_HELD)  # before any run was open
        self._stacks: dict[int, list[Any]] = {}  # open timespans of a worker, where no place came along

    def program(self, event: Event, out: list[SpanData]) -> int:
        """One half of a program's own timespan."""
        key = (event.category, event.id)
        if event.phase == "start":
            self._open[key] = (event, self._place(event, key))
            finish = self._finishes.pop(key, None)
            if finish is not None:
                return self._close(key, finish, out)
            return self._evict(event.timestamp, out)
        if key in self._open:
            return self._close(key, event, out)
        self._finishes[key] = event
        if len(self._finishes) > MAX_OPEN:
            self._finishes.popitem(last=False)
        return 0

    def scheduler(self, event: Event, run: Run | None, out: list[SpanData]) -> int:
        """One half of a timespan of the scheduler itself."""
        key = (event.category, event.id)
        if event.phase == "start":
            self._scheduler[key] = (event, run)
            if len(self._scheduler) > MAX_OPEN:
                self._scheduler.popitem(last=False)
            return 0
        start, own_run = self._scheduler.pop(key, (None, None))
        if start is None:
            return 0
        run = own_run or run or self._runs.current()
        if run is None:
            if event.category in _BEFORE_RUNS:
                self._held.append((start, event))
            return 0
        skipped = 0
        while self._held:
            skipped += self._under_root(run, *self._held.popleft(), out)
        return skipped + self._under_root(run, start, event, out)

    def is_open(self, key: Any) -> bool:
        """Whether a program's timespan (category, id) has begun."""
        return key in self._open

    def forget(self, key: Any) -> None:
        """The finish of an open timespan was given up, and is counted: it is no span."""
        self._open.pop(key, None)

    def abandon(self, now_ns: int, out: list[SpanData]) -> int:
        """Close what is open."""
        skipped = 0
        for start, place in self._open.values():
            skipped += self._emit(place, start, now_ns, None, out, "abandoned")
        self._open.clear()
        self._finishes.clear()
        self._stacks.clear()
        while self._held:  # no run ever opened: they are their own roots
            start, finish = self._held.popleft()
            place = Place(*own_place(start), 0, 1)
            skipped += self._emit(place, start, finish.timestamp, finish.timeline, out)
        return skipped

    def _place(self, event: Event, key: Any) -> Place:
        place = (event.samples or {}).get(PLACE)
        if isinstance(place, Place):
            return place
        # A log that was read back without places: the newest open timespan of the worker encloses.
        stack = self._stacks.setdefault(event.worker, [])
        while stack and stack[-1] not in self._open:
            stack.pop()
        outer = self._open[stack[-1]][1] if stack else None
        stack.append(key)
        trace_id, span_id = own_place(event)
        if outer is None:
            return Place(trace_id, span_id, 0, 1)
        return Place(outer.trace_id, span_id, outer.span_id, outer.flags, outer.trace_state)

    def _close(self, key: Any, finish: Event, out: list[SpanData]) -> int:
        start, place = self._open.pop(key)
        return self._emit(place, start, finish.timestamp, finish.timeline, out)

    def _evict(self, now_ns: int, out: list[SpanData]) -> int:
        if len(self._open) <= MAX_OPEN:
            return 0
        _, (start, place) = self._open.popitem(last=False)
        return self._emit(place, start, now_ns, None, out, "abandoned")

    def _under_root(self, run: Run, start: Event, finish: Event, out: list[SpanData]) -> int:
        run.cover(start.timestamp, max(finish.timestamp, start.timestamp + 1))  # as `_emit` has it
        root, parent = run.root, run.parent
        place = Place(parent.trace_id, own_place(start)[1], root.span_id, parent.flags, parent.trace_state)
        return self._emit(place, start, finish.timestamp, finish.timeline, out)

    def _emit(
        self, place: Place, start: Event, end_ns: int, timeline: Any, out: list[SpanData], state: str = ""
    ) -> int:
        if not place.flags & 1:
            return 1
        category = plain_text(start.category)
        attributes: dict[str, Any] = {semconv.EVENT_CATEGORY: category, semconv.WORKER_ID: start.worker}
        attributes[semconv.EVENT_ID] = id_text(start.id)
        status, message = UNSET, ""
        events = []
        # Jaeger warns of a span without a duration, such as an evict.
        begin, end = start.timestamp + self._offset, max(start.timestamp + 1, end_ns) + self._offset
        if type(start.id) is EventId:
            attributes.update(_of_scheduler(category, start.id, timeline))
        if state:
            attributes[semconv.TASK_STATE] = state
            status, message = ERROR, "the log was closed before it ended"
        if isinstance(timeline, BaseException):
            text = failures.describe(timeline)
            attributes[semconv.ERROR_TYPE] = text.type
            status, message = ERROR, text.message
            events.append(failures.exception_event(text, end))
        out.append(
            SpanData(
                _NAMES.get(category, category), place.trace_id, place.span_id, place.parent_id, begin, end, attributes,
                (), tuple(events), status, message, place.trace_state, flags=place.flags,
            )
        )  # fmt: skip
        return 0


def _of_scheduler(category: str, id: EventId, timeline: Any) -> Iterator[tuple[str, Any]]:
    """What a timespan of the scheduler says besides its category and id."""
    processor = id.get("processor")
    if processor is not None:
        yield semconv.PROCESSOR, processor_name(processor)
    if category == "evict":
        yield semconv.EVICT_REASON, plain_text(getattr(timeline, "reason", ""))
    elif category == "proc_steal_local" and timeline is not None:
        yield semconv.STEAL_TASK, timeline.thunk_id
        yield semconv.STEAL_SOURCE, processor_name(timeline.from_proc)
    elif category == "init_proc" and getattr(timeline, "pid", None) is not None:
        yield semconv.PROCESS_ID, timeline.pid
        yield semconv.HOST_NAME, plain_text(timeline.host)
        yield semconv.RUNTIME_VERSION, plain_text(timeline.python)
    elif category == "storage_wait":
        device = getattr(timeline, "device_type", None)
        yield semconv.STORAGE_DEVICE, plain_text(getattr(device, "__name__", device))


def is_program(event: Event, scheduler_categories: frozenset[str]) -> bool:
    """Whether an event is a program's own and not the scheduler's."""
    return not (type(event.id) is EventId and event.category in scheduler_categories)
