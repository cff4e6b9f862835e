"""Records that are not turned into spans: how many spans they would be, and what is left out with them.

An account that begins with the spans that were made says nothing of what was never looked at. So records that still
wait, or that a full journal gave up, are counted as the spans that they would have become.

A task is left out as a whole: where its submission found no room, whatever follows of it is given up as well, for
half a task would be one that never ends, and its run with it. Where it came in, what follows has room too, up to twice
the bound; beyond that a note stands for the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...timespans.adding import AnyThreadCount
from ...timespans.model import Event, EventId
from ...timespans.rows import Columns, Shape, expanded
from ...timespans.taskrecords import EVICT, RESULTS, RETURN, SCHEDULE, START, SUBMIT, TAKEN
from . import ids
from .mapping import ENDED, MOVED_KINDS, NEVER_SPANS, SCHEDULER_CATEGORIES, TASK_CATEGORIES, SpanMapper
from .runs import Runs

__all__ = ["Unmapped"]

_SURE = {"scheduler": {"schedule": 1, "proc_run_fetch": 1, "compute": 1, "finish": 2}}
"""Of these those that do even where no run is open."""

_WEIGHTS: dict[str, dict[str, int]] = {
    "task": {"finish": 1},
    "phases": {"proc_run_fetch": 1, "compute": 1, "finish": 1},
    "scheduler": {**dict.fromkeys(SCHEDULER_CATEGORIES - NEVER_SPANS, 1), **_SURE["scheduler"]},
}
"""Spans that come out when an event of this category finishes."""

_MAX_SHAPES = 4096
_MAX_LEFT_OUT = 1_000_000
"""Tasks under way that are left out; of any more the ends come through, as those of tasks that began before the log."""


class Unmapped:
    """Counts for one log, and who is left out. `refuse` may be called by any thread; `keep`, `give_up` by who maps."""

    def __init__(self, runs: Runs, mapper: SpanMapper, detail: str) -> None:
        self._runs, self._mapper = runs, mapper
        self.lane: Any = None  # the fast way to the mapper, if there is one
        self._all = _Count(_WEIGHTS[detail], detail != "task")
        self._sure = _Count(_SURE.get(detail, _WEIGHTS[detail]), detail != "task")
        self._left_out: set[Any] = set()
        self._gaps = False
        self._refused = AnyThreadCount()

    # ---- what finds no room --------------------------------------------------------------------

    @property
    def refused(self) -> int:
        """Spans that were given up because there was no room."""
        return self._refused.value

    def refuse(self, record: Any, hard: bool) -> Any:
        """What is to be kept of a record that finds no room (see `timespans.journal.Journal`); None: nothing."""
        events = expanded(record)
        keys = [key for event in events if (key := _key_of(event)) is not None]
        if not keys:
            return self._count(events)
        key = keys[0]
        closes = any(map(_closes, events))
        if key in self._left_out:
            if closes:
                self._left_out.discard(key)
            return self._count(events)
        opening = next((event for event in events if _opens(event)), None)
        if opening is not None:
            if not closes and len(self._left_out) < _MAX_LEFT_OUT:
                self._left_out.add(key)
            self._gaps = True
            self._retract(opening)
            return self._count(events)
        if not hard:
            return record
        if not closes:
            self._left_out.add(key)
        self._gaps = True
        self._count(events)
        return Event("finish", ENDED, key)

    def _count(self, events: Iterable[Event]) -> None:
        spans = self._all.of_events(events)
        if spans:
            self._refused.add(spans)

    def _retract(self, submission: Event) -> None:
        """A task was registered with its run when it was spawned: it is no part of it any more."""
        if type(submission.id) is not EventId or submission.category != "add_thunk":
            return  # the program's own event: no run counts it, and its timeline is not ours to ask
        parent = ids.unpack(getattr(submission.timeline, "trace", None))
        run = self._runs.find(parent.root) if parent is not None else None
        if run is not None:
            run.whole = False
            run.retracted.add()
            self._runs.touch(run)

    def keep(self, events: list[Event]) -> list[Event]:
        """The events of those who are not left out.

        Once tasks were left out, one that the mapper does not know is taken for such: its submission may have been
        given up long before.
        """
        if not self._gaps:
            return events
        kept: list[Event] = []
        opened: set[Any] = set()
        for event in events:
            key, opens = _key_of(event), _opens(event)
            if opens:
                opened.add(key)
            known = key in opened or type(key) is not int or self._mapper.knows(key)
            if key is None or (known and key not in self._left_out):
                kept.append(event)
                continue
            self._count((event,))
            if opens:  # it waited while what follows of its task was given up: nobody will end it
                self._retract(event)
            if _closes(event):
                self._left_out.discard(key)
        return kept

    # ---- counts --------------------------------------------------------------------------------

    def begun(self, records: Sequence[Any]) -> set[Any]:
        """The program's timespans that are open, of those that these records end. Call with the log's lock."""
        ends = [_key_of(one) for one in records if type(one) is Event and one.phase == "finish"]
        return {key for key in ends if self._mapper.is_open(key)}

    def surely(self, records: Sequence[Any], begun: set[Any]) -> int:
        """The spans that these records will become at least: 0.1 µs for most of them, up to 2.

        A span of the scheduler itself that has no run to be in is none, nor is the end of what is not in `begun`.
        """
        weights = self._sure.weights
        starts, ends = weights.get("proc_run_fetch", 0), weights.get("compute", 0) + weights["finish"]
        if weights.get("schedule"):
            return self._sure.walk(records, None, begun)
        spans, others = 0, []
        for record in records:
            kind = record[0]
            if kind == START and (not record[2] or record[2][0] is RESULTS):
                spans += starts
            elif kind in (RETURN, TAKEN) and record[14] is not None:
                spans += ends
            elif kind not in (EVICT, SCHEDULE) and not (kind == SUBMIT and record[10] == 1):
                others.append(record)
        return spans + self._sure.walk(others, None, begun)

    def give_up(self, records: Sequence[Any]) -> int:
        """The spans that these records would be, which will not be looked at any more: what they end is not open."""
        return self._all.walk(records, self._forget)

    def of(self, records: Sequence[Any]) -> int:
        """The spans that these records would be."""
        return self._all.walk(records, None)

    def _forget(self, key: Any) -> int:
        """What of its spans is lost besides those of its records."""
        lost: int = self.lane.forget(key) if self.lane is not None else 0
        return lost + self._mapper.forget(key)


class _Count:
    """How many spans records are. `weights`: {category: spans when it finishes}. `moves`: whether these are any."""

    def __init__(self, weights: Mapping[str, int], moves: bool) -> None:
        self.weights, self._moves = weights, moves
        self._shapes: dict[Shape, tuple[int, tuple[Callable[[Any], int], ...]]] = {}

    def of_events(self, events: Iterable[Event], begun: set[Any] | None = None) -> int:
        """The spans that these events complete.

        `begun`: the program's timespans that are open then; None where each end counts.
        """
        return sum([self._of_event(event, begun) for event in events])

    def _of_event(self, event: Event, begun: set[Any] | None) -> int:
        if event.category == ENDED:
            return 0
        if type(event.id) is not EventId or event.category not in SCHEDULER_CATEGORIES:
            return self._of_program(event, begun)
        if event.phase != "finish":
            return int(event.category == "add_thunk" and getattr(event.timeline, "attempt", 1) > 1)
        if event.category == "move":
            return int(self._moves and getattr(event.timeline, "kind", "value") in MOVED_KINDS)
        return self.weights.get(event.category, 0)

    def _of_program(self, event: Event, begun: set[Any] | None) -> int:
        if begun is None:
            return int(event.phase == "finish")
        key = _key_of(event)
        if event.phase == "finish":
            return int(key is None or key in begun)
        begun.add(key)
        return 0

    def walk(
        self, records: Sequence[Any], forget: Callable[[Any], int] | None, begun: set[Any] | None = None
    ) -> int:
        """The spans of these records; `forget` is called with whatever ends in them, and gives further ones."""
        at = spans = 0
        while at < len(records):
            columns = Columns()
            at = columns.take(records, at)
            for record, shape, start in columns.records:
                fixed, asked = self._shapes.get(shape) or self._learn(shape)
                spans += fixed
                for ask in asked:
                    spans += ask(record)
                if forget is not None and shape.heads[-1] == ("finish", "finish"):
                    spans += forget(columns.ids[start + shape.length - 1].thunk_id)
            if at < len(records):
                events = expanded(records[at])
                spans += self.of_events(events, begun)
                for event in events:
                    if forget is not None and _closes(event):
                        spans += forget(_key_of(event))
                at += 1
        return spans

    def _learn(self, shape: Shape) -> tuple[int, tuple[Callable[[Any], int], ...]]:
        """What every record of this shape counts, and what to ask of each."""
        fixed, asked = 0, []
        for position, (category, phase) in enumerate(shape.heads):
            if phase == "finish" and category != "move":
                fixed += self.weights.get(category, 0)
            elif phase == "finish" and self._moves:
                kind = shape.getter(position, ("kind",))  # None: a result that is there, or the function
                asked += [] if kind is None else [lambda record, kind=kind: int(kind(record)[0] in MOVED_KINDS)]
            elif category == "add_thunk" and phase == "start":
                attempt = shape.getter(position, ("attempt",))
                asked += [] if attempt is None else [lambda record, attempt=attempt: int(attempt(record)[0] > 1)]
        found = (fixed, tuple(asked))
        if len(self._shapes) < _MAX_SHAPES:
            self._shapes[shape] = found
        return found


def _key_of(event: Event) -> Any:
    """Whom an event is about: a task's id, or (category, id) of a program's timespan; None: nobody in particular."""
    id = event.id
    if type(id) is EventId and event.category in SCHEDULER_CATEGORIES:
        if event.category == "proc_run_fetch":
            return getattr(event.timeline, "thunk_id", None)
        return id.get("thunk_id") if event.category in TASK_CATEGORIES else None
    if event.category == ENDED:
        return None
    try:
        hash(id)
    except TypeError:
        return None
    return (event.category, id)


def _opens(event: Event) -> bool:
    if event.phase != "start":
        return False
    if type(event.id) is EventId and event.category in SCHEDULER_CATEGORIES:
        return event.category == "add_thunk" and getattr(event.timeline, "attempt", 1) == 1
    return True


def _closes(event: Event) -> bool:
    if event.phase != "finish":
        return False
    return event.category == "finish" or not (type(event.id) is EventId and event.category in SCHEDULER_CATEGORIES)
