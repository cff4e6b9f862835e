"""Chrome's trace event format: opens in ui.perfetto.dev, chrome://tracing and speedscope.

One process a worker, one track a thread; bodies on the thread that ran them, with an arrow from each
dependency. What is not tied to one thread (placing, finishing, moving data) has tracks of its own, and
waiting shows as counters rather than as thousands of overlapping bars.

A track holds nested slices only, so spans that overlap without nesting (two bodies that shared a slot
in turns) go to a second lane of the same track. Perfetto reads process and thread ids as 32-bit numbers:
a longer thread id is replaced by a small one and stands among the slice's arguments.

See docs/pictures.md, and the public "Trace Event Format" document.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import InvalidOptionError
from ..timespans.texts import printable
from .counters import counter_events, derived_counters, short_processor
from .output import open_output
from .rows import LogTable, Span, TaskRow, id_field, read_logs

__all__ = ["ChromeTrace", "chrome_trace", "write_chrome_trace"]

_log = logging.getLogger("otel_timespan")

DETAILS = ("tasks", "phases", "scheduler")
"""What `detail` may be, from little to much."""

_ALWAYS = frozenset(("add_thunk", "schedule", "finish", "storage_wait"))
"""Timespans besides the bodies that are shown from the detail `phases` on."""

_OWN_TRACKS = {"add_thunk": "scheduler", "schedule": "scheduler", "finish": "scheduler", "move": "moves"}
_FIRST_REPLACED_TID, _FIRST_OWN_TID = 1_000_000_000, 2_000_000_000
"""Above any thread id of an operating system: for threads known by a longer id, and for our own tracks."""
_TIDS_PER_TRACK = 1000
_MAX_LANES = 100
_UNKNOWN = -1

Event = dict[str, Any]


class _Slice(NamedTuple):
    """A bar. `tid` is its track's, until `_into_lanes` has moved it to a lane."""

    name: str
    category: str
    start: int
    finish: int
    pid: int
    tid: int
    span: Span
    task: TaskRow | None


class ChromeTrace:
    """A trace in Chrome's format: `str()`, `events`, `write(path)`; shows itself in a notebook.

    `left_out` says what a bound left out: {layer: number of events}.
    """

    def __init__(self, log: LogTable, detail: str, max_events: int) -> None:
        layers = _Layers(log, detail)
        self.left_out = dict(layers.without_lane)
        self._layers: list[Callable[[], Iterable[Event]]] = [layers.metadata]
        room = max_events
        for name, count, make in layers.ranked():
            if count <= room:
                self._layers.append(make)
                room -= count
            else:
                self.left_out[name] = self.left_out.get(name, 0) + count
        if self.left_out:
            _log.warning("the trace is bounded (max_events=%d) and leaves out %s", max_events, self.left_out)

    @property
    def events(self) -> list[Event]:
        """All trace events: metadata, then slices by time, then arrows, then counters."""
        return list(self._iterate())

    def _iterate(self) -> Iterator[Event]:
        for layer in self._layers:
            yield from layer()

    def pieces(self) -> Iterator[str]:
        """The JSON text piece by piece, one event each, so that it need not be in memory at once."""
        encode = json.JSONEncoder(separators=(",", ":"), default=printable).encode
        other = {"source": "otel-timespan", "clock": "monotonic", "left_out": self.left_out}
        yield f'{{"displayTimeUnit":"ms","otherData":{encode(other)},"traceEvents":['
        separator = "\n"
        for event in self._iterate():
            yield separator + encode(event)
            separator = ",\n"
        yield "\n]}\n"

    def __str__(self) -> str:
        return "".join(self.pieces())

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file. Raises `InvalidOptionError` when it can't be written there."""
        with open_output(path) as file:
            file.writelines(self.pieces())

    def _repr_html_(self) -> str:
        import base64

        text = str(self)
        count = text.count("\n") - 2
        if len(text) > 8_000_000:
            return f"<p>Chrome trace, {count:,} events: <code>.write(path)</code> writes it to a file.</p>"
        data = base64.b64encode(text.encode()).decode()
        return (
            f"<p>Chrome trace, {count:,} events: <a download='trace.json' "
            f"href='data:application/json;base64,{data}'>trace.json</a>, to be opened in ui.perfetto.dev.</p>"
        )


def chrome_trace(logs: Any, *, detail: str = "phases", max_events: int = 2_000_000) -> ChromeTrace:
    """The trace of a log of any kind; times are monotonic microseconds.

    `detail`: "tasks" draws bodies, dependencies and counters; "phases" (default) placing, moving and
    finishing too; "scheduler" every span of the log. `max_events` bounds the trace: the least important
    layers (phases, then counters, then dependencies) are left out as a whole, see `ChromeTrace.left_out`.

    Raises `InvalidOptionError` for other values and for what is no log.
    """
    if detail not in DETAILS:
        raise InvalidOptionError(f"chrome_trace: detail={detail!r} is not known; allowed are {', '.join(DETAILS)}")
    if not isinstance(max_events, int) or max_events < 1:
        raise InvalidOptionError(f"chrome_trace: max_events is a number of at least 1, not {max_events!r}")
    return ChromeTrace(read_logs(logs), detail, max_events)


def write_chrome_trace(logs: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a log as a Chrome trace file; options as for `chrome_trace`.

    Raises `InvalidOptionError` naming the path when it can't be written.
    """
    chrome_trace(logs, **options).write(path)


class _Layers:
    """What a trace consists of: every layer can be counted before its events are built."""

    def __init__(self, log: LogTable, detail: str) -> None:
        self.log = log
        self.threads: dict[tuple[int, int], int] = {}
        self.track_names: dict[tuple[int, int], str] = {}
        self.own_tids: dict[str, int] = {}
        self.without_lane: dict[str, int] = {}
        slices = list(self._bodies())
        if detail != "tasks":
            slices += self._phases(slices, everything=detail == "scheduler")
        placed = self._into_lanes(slices)
        self.bodies = [s for s in placed if s.category in ("compute", "attempt")]
        self.phases = [s for s in placed if s.category not in ("compute", "attempt")]
        self.last_bodies = {s.task.task_id: s for s in self.bodies if s.task and s.category == "compute"}
        self.arrows = list(self._arrows())
        self.counters = [*counter_events(log), *derived_counters(log)]

    def ranked(self) -> list[tuple[str, int, Callable[[], Iterable[Event]]]]:
        """(name, number of events, maker), the most important first."""
        return [
            ("tasks", len(self.bodies), lambda: map(_complete, self.bodies)),
            ("dependencies", 2 * len(self.arrows), self._flow_events),
            ("counters", len(self.counters), lambda: self.counters),
            ("phases", len(self.phases), lambda: map(_complete, self.phases)),
        ]

    def metadata(self) -> Iterator[Event]:
        """Names and order of processes and threads."""
        for worker in self.log.workers:
            yield _meta("process_name", worker, 0, name=f"worker {worker}")
            yield _meta("process_sort_index", worker, 0, sort_index=worker)
        if (_UNKNOWN, _UNKNOWN) in self.track_names:
            yield _meta("process_name", _UNKNOWN, _UNKNOWN, name="Unknown")
        for rank, ((pid, tid), name) in enumerate(sorted(self.track_names.items())):
            yield _meta("thread_name", pid, tid, name=name)
            yield _meta("thread_sort_index", pid, tid, sort_index=rank)

    def _bodies(self) -> Iterator[_Slice]:
        for span in self.log.computes:
            task = self.log.task_of(span)
            # Tried again: only the last attempt's body is the task's, so that there is one a task.
            category = "compute" if task is None or span.start == task.body_start_ns else "attempt"
            pid, tid = self._thread_of(span)
            yield _Slice(task.name if task else "compute", category, span.start, span.finish, pid, tid, span, task)

    def _phases(self, bodies: list[_Slice], everything: bool) -> Iterator[_Slice]:
        places: dict[int, tuple[int, int]] = {}
        for body in bodies:
            if body.task is not None:
                places[body.task.task_id] = body.pid, body.tid
                taken = body.task.marks()[3]
                if taken < body.start == body.task.first_body_ns:
                    yield body._replace(name="move", category="move", start=taken, finish=body.start)
        for span in self.log.spans:
            task = self.log.task_of(span)
            place = places.get(task.task_id) if task else None
            if span.category == "compute":
                continue
            if span.category == "storage_safe_scan" and place and everything:
                yield _Slice(span.category, span.category, span.start, span.finish, *place, span, task)
            elif everything or span.category in _ALWAYS or _is_transfer(span):
                yield self._on_own_track(span, task)

    def _on_own_track(self, span: Span, task: TaskRow | None) -> _Slice:
        track = _OWN_TRACKS.get(span.category, span.category)
        tid = self.own_tids.setdefault(track, _FIRST_OWN_TID + _TIDS_PER_TRACK * len(self.own_tids))
        self.track_names.setdefault((span.worker, tid), track)
        name = f"{span.category} {task.name}" if task else span.category
        return _Slice(name, span.category, span.start, span.finish, span.worker, tid, span, task)

    def _thread_of(self, span: Span) -> tuple[int, int]:
        """The (pid, tid) of a body: its thread's, else its processor's slot, else "Unknown"."""
        processor = id_field(span.id, "processor")
        thread = getattr(span.timeline, "thread_id", None)
        name = getattr(span.timeline, "thread_name", None)
        if not isinstance(thread, int):
            thread, name = getattr(processor, "tid", None), short_processor(processor)
        if not isinstance(thread, int):
            if (_UNKNOWN, _UNKNOWN) not in self.track_names:
                _log.warning("%r names no thread: its bodies are drawn under 'Unknown'", processor)
                self.track_names[_UNKNOWN, _UNKNOWN] = "Unknown"
            return _UNKNOWN, _UNKNOWN
        tid = self.threads.get((span.worker, thread))
        if tid is None:
            replaced = _FIRST_REPLACED_TID + _TIDS_PER_TRACK * len(self.threads)
            tid = thread if 0 <= thread < _FIRST_REPLACED_TID else replaced
            self.threads[span.worker, thread] = tid
            self.track_names[span.worker, tid] = printable(name) if name else f"thread {thread}"
        return span.worker, tid

    def _into_lanes(self, slices: list[_Slice]) -> list[_Slice]:
        """Give each slice a lane of its track in which it nests; sorted by time, outer before inner."""
        lanes: dict[tuple[int, int], list[list[int]]] = {}
        lane_tids: dict[tuple[int, int, int], int] = {}
        placed = []
        for slice_ in sorted(slices, key=lambda s: (s.start, -s.finish, s.pid, s.tid, s.name)):
            number = _lane(lanes.setdefault((slice_.pid, slice_.tid), []), slice_)
            if number is None:
                layer = "phases" if slice_.tid >= _FIRST_OWN_TID else "tasks"
                self.without_lane[layer] = self.without_lane.get(layer, 0) + 1
            elif number == 0:
                placed.append(slice_)
            else:
                key = (slice_.pid, slice_.tid, number)
                if key not in lane_tids:
                    lane_tids[key] = self._lane_tid(*key)
                placed.append(slice_._replace(tid=lane_tids[key]))
        return placed

    def _lane_tid(self, pid: int, tid: int, number: int) -> int:
        name = self.track_names[pid, tid]
        lane = tid + number
        while tid < _FIRST_OWN_TID and (pid, lane) in self.track_names:
            lane += 1
        self.track_names[pid, lane] = f"{name} ({number + 1})"
        return lane

    def _arrows(self) -> Iterator[tuple[_Slice, _Slice]]:
        for task_id, body in self.last_bodies.items():
            for upstream in self.log.tasks[task_id].dependencies:
                if upstream in self.last_bodies:
                    yield self.last_bodies[upstream], body

    def _flow_events(self) -> Iterator[Event]:
        for number, (before, after) in enumerate(self.arrows, start=1):
            # An arrow belongs to the innermost slice at its moment, and Perfetto still takes for that one
            # which has just ended. So it leaves from shortly before the end of its slice, and where other
            # bodies ran inside, from the start. (Perfetto draws both from the end.)
            leaves = before.finish - min(1000, (before.finish - before.start + 1) // 2)
            if before.task and before.task.nested_ns:
                leaves = before.start
            common = {"name": "dependency", "cat": "dependency", "id": number}
            yield {**common, "ph": "s", "ts": min(leaves, after.start) / 1000, "pid": before.pid, "tid": before.tid}
            yield {**common, "ph": "f", "bp": "e", "ts": after.start / 1000, "pid": after.pid, "tid": after.tid}


def _is_transfer(span: Span) -> bool:
    return span.category == "move" and getattr(span.timeline, "kind", "value") not in ("value", "task")


def _lane(lanes: list[list[int]], slice_: _Slice) -> int | None:
    """The first lane where the slice nests. A lane is the stack of the ends of its open slices."""
    for number, ends in enumerate(lanes):
        while ends and ends[-1] <= slice_.start:
            ends.pop()
        if not ends or slice_.finish <= ends[-1]:
            ends.append(slice_.finish)
            return number
    if len(lanes) == _MAX_LANES:
        return None
    lanes.append([slice_.finish])
    return len(lanes) - 1


def _meta(kind: str, pid: int, tid: int, **args: Any) -> Event:
    return {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": args}


def _complete(slice_: _Slice) -> Event:
    event: Event = {
        "name": slice_.name,
        "cat": slice_.category,
        "ph": "X",
        "ts": slice_.start / 1000,
        "dur": (slice_.finish - slice_.start) / 1000,
        "pid": slice_.pid,
        "tid": slice_.tid,
        "args": _body_args(slice_) if slice_.category in ("compute", "attempt") else _span_args(slice_),
    }
    if slice_.category == "compute" and slice_.task and slice_.task.state == "failure":
        event["cname"] = "terrible"
    return event


def _span_args(slice_: _Slice) -> dict[str, Any]:
    args: dict[str, Any] = {} if slice_.task is None else {"task_id": slice_.task.task_id}
    timeline = slice_.span.timeline
    if slice_.category == "move" and slice_.span.category == "move":
        position = id_field(slice_.span.id, "position")
        args["position"] = position if isinstance(position, int) else printable(position)
        for name in ("kind", "source", "destination"):
            if hasattr(timeline, name):
                args[name] = getattr(timeline, name)
        args["nbytes"] = getattr(getattr(timeline, "data", None), "nbytes", None)
    return args


def _body_args(slice_: _Slice) -> dict[str, Any]:
    span, task = slice_.span, slice_.task
    args: dict[str, Any] = {"processor": short_processor(id_field(span.id, "processor"))}
    thread = getattr(span.timeline, "thread_id", None)
    if thread is not None:
        args["thread_id"] = thread
    if span.open:
        args["unfinished"] = True
    if task is None:
        return args
    args |= {"task_id": task.task_id, "function": task.function, "state": task.state}
    args["dependencies"] = list(task.dependencies)
    args |= {f"wait_{phase}_us": ns / 1000 for phase, ns in task.waits().items() if phase != "compute"}
    if task.cpu_ns is not None:
        args["cpu_us"] = task.cpu_ns / 1000
    if task.result_bytes is not None:
        args["result_bytes"] = task.result_bytes
    if task.error is not None:
        args["error"] = task.error
    return args
