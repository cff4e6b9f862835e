"""Any log, read once into one shape that every picture is drawn from.

A log is one of
  * `{worker: {stream: list}}`   what a `MultiEventLog` gives (`fetch_logs()`),
  * `{worker: [Event]}`          raw events (`get_logs(raw=True)`), or one flat list of `Event`s,
  * `[Timespan]`                 what a `LocalEventLog` gives.

`read_logs` turns it into a `LogTable`: matched spans and one `TaskRow` a task. It reads the streams
`core` and `id` (needed), `timeline`, `tasknames`, `taskfuncnames` and `taskdeps` (each where it is
there); a stream of whole events (`FullMetrics`) replaces them all. Nothing is assumed complete: a log
may begin and end in the middle of tasks, and tasks may never have run.

See docs/events.md and docs/pictures.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, repeat
from operator import attrgetter
from typing import Any, NamedTuple

from ..errors import InvalidOptionError, unwrap_exception
from ..timespans.fetched import read_together
from ..timespans.model import ChunkInfo, Event, EventId, Timespan, ValueInfo, function_name
from ..timespans.rows import Columns
from ..timespans.texts import printable, text_of

__all__ = [
    "PHASES",
    "Half",
    "LogTable",
    "Span",
    "TaskRow",
    "id_field",
    "length_of",
    "log_kind",
    "note_nested",
    "read_logs",
    "unique",
]

PHASES = ("dependency", "schedule", "queue", "move", "compute", "finish")
"""The phases of a task, in order; their times add up to the whole (docs/events.md)."""


class Half(NamedTuple):
    """One event, whatever kind of log it came from. `at` is its place in the worker's lists."""

    is_start: bool
    category: str
    id: Any
    timestamp: int
    timeline: Any
    worker: int
    at: int


class Span(NamedTuple):
    """A matched pair, times in monotonic ns. `timeline` is the finish's; `open` if it had no finish yet."""

    worker: int
    category: str
    id: Any
    start: int
    finish: int
    timeline: Any
    at: int
    open: bool = False


@dataclass(slots=True)
class TaskRow:
    """What the log says of one task; what it does not say is None. Times are monotonic nanoseconds.

    Boundaries, in order: submitted, ready (its dependencies are there), placed (a processor is chosen),
    taken (that processor took it), body start, body end, finished (its result is known).
    """

    task_id: int
    function: str = ""
    label: str | None = None
    worker: int | None = None
    processor: Any = None
    thread_id: int | None = None
    thread_name: str | None = None
    state: str | None = None
    submitted_ns: int | None = None
    ready_ns: int | None = None
    placed_ns: int | None = None
    taken_ns: int | None = None
    first_body_ns: int | None = None
    """Start of the first attempt's body; `body_start_ns` is the last attempt's."""
    body_start_ns: int | None = None
    body_end_ns: int | None = None
    finished_ns: int | None = None
    running_until_ns: int | None = None
    """Of a body that still runs at the end of the log: that end."""
    compute_ns: int = 0
    """Time in bodies, all attempts together."""
    nested_ns: int = 0
    """Part of `compute_ns` in which its thread or its slot ran other tasks' bodies (a fetch that helped, or waited)."""
    computes: int = 0
    cpu_ns: int | None = None
    """CPU time of the threads of its bodies, all attempts together."""
    nested_cpu_ns: int = 0
    """Part of `cpu_ns` that is other tasks', which the same thread ran meanwhile."""
    result_bytes: int | None = None
    dependencies: tuple[int, ...] = ()
    spawned_by: int = 0
    run_id: int | None = None
    error: str | None = None
    """What it raised, or what that task raised because of which it was skipped: type and text, one line."""
    failure: BaseException | None = None
    """The same as an exception, with its traceback, where the log has that."""
    first_move_ns: int | None = None

    @property
    def name(self) -> str:
        """The label, else the function's name, else "task <id>"."""
        return self.label or self.function or f"task {self.task_id}"

    @property
    def own_ns(self) -> int:
        """Time in its bodies without what its thread and its slot ran for other tasks meanwhile.

        And without what an abandoned body takes after its task has ended: nobody waits for that.
        """
        return self.spent()["compute"]

    @property
    def own_cpu_ns(self) -> int | None:
        """CPU time of its bodies without that of other tasks, None where it was not measured."""
        return None if self.cpu_ns is None else max(0, self.cpu_ns - self.nested_cpu_ns)

    @property
    def computed(self) -> bool:
        """Whether a body of it ran to its end within this log."""
        return self.body_start_ns is not None and self.body_end_ns is not None

    def marks(self) -> tuple[int, ...]:
        """Submitted, ready, placed, taken, first body, body start, body end, finished: gapless, ascending.

        A boundary that the log lacks falls together with the next known one, so that its time counts
        for the phase that was still waited for. () when nothing is known.
        """
        taken = self.first_move_ns if self.taken_ns is None else self.taken_ns
        known = [self.submitted_ns, self.ready_ns, self.placed_ns, taken]
        body_end = self.running_until_ns if self.body_end_ns is None else self.body_end_ns
        known += [self.first_body_ns, self.body_start_ns, body_end, self.finished_ns]
        times = [t for t in known if t is not None]
        if not times:
            return ()
        # A cancelled task is finished while its body still runs: what comes after does not count.
        last = times[-1]
        filled = [last] * len(known)
        following = last
        for i in range(len(known) - 1, -1, -1):
            following = known[i] if known[i] is not None else following  # type: ignore[assignment]
            filled[i] = following
        floor = min(filled[0], last)
        for i, at in enumerate(filled):
            floor = filled[i] = min(max(at, floor), last)
        return tuple(filled)

    def waits(self) -> dict[str, int]:
        """Nanoseconds of each of `PHASES`; they add up to the time from submitted to finished.

        A task that was tried again has "retry" too: from its first body's start to its last one's.
        """
        marks = self.marks()
        if not marks:
            return dict.fromkeys(PHASES, 0)
        submitted, ready, placed, taken, first_body, body, body_end, finished = marks
        waits = {
            "dependency": ready - submitted,
            "schedule": placed - ready,
            "queue": taken - placed,
            "move": first_body - taken,
            "compute": body_end - body,
            "finish": finished - body_end,
        }
        if body > first_body:
            waits["retry"] = body - first_body
        return waits

    def spent(self) -> dict[str, int]:
        """As `waits`, but by who was at work: they add up to the same.

        "compute" is what its bodies took for themselves, those of all attempts; "nested" what their slots and
        threads ran for others meanwhile; "retry" only what passed between two attempts.
        """
        spent = self.waits()
        earlier = min(spent.get("retry", 0), max(0, self.compute_ns - self._last_body_ns))
        if earlier:
            spent["retry"] -= earlier
            spent["compute"] += earlier
        nested = min(self.nested_ns, spent["compute"])
        if nested:
            spent["compute"] -= nested
            spent["nested"] = nested
        return spent

    @property
    def _last_body_ns(self) -> int:
        end = self.running_until_ns if self.body_end_ns is None else self.body_end_ns
        return 0 if end is None or self.body_start_ns is None else end - self.body_start_ns


@dataclass
class LogTable:
    """A log, read. `spans` are in the order of their starts, `tasks` in the order of their ids."""

    spans: list[Span] = field(default_factory=list)
    tasks: dict[int, TaskRow] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)
    """What `logs_annotate` named: identity -> name."""
    workers: tuple[int, ...] = ()
    slots: dict[int, int] = field(default_factory=dict)
    """How many slots a worker has: as it said when it was set up, else those that ran a body in this log."""
    streams: Mapping[int, Mapping[str, list[Any]]] = field(default_factory=dict)
    """The log itself where it is one of streams, else empty."""
    source: Any = None
    start_ns: int = 0
    finish_ns: int = 0

    @property
    def computes(self) -> Iterator[Span]:
        """The spans of bodies, those still running included (up to the log's last event)."""
        return (span for span in self.spans if span.category == "compute")

    def task_of(self, span: Span) -> TaskRow | None:
        """The task that a span belongs to, if it belongs to one."""
        return self.tasks.get(id_field(span.id, "thunk_id"))

    def halves(self) -> Iterator[Half]:
        """The events again, worker by worker, in the order of the lists."""
        return _halves(self.source)


def read_logs(logs: Any) -> LogTable:
    """Read any log (see the module). A `LogTable` is handed back as it is. All texts in it are `printable`.

    Raises `InvalidOptionError` for what is no log, or lacks the streams `core` and `id`.
    """
    if isinstance(logs, LogTable):
        return logs
    table = getattr(logs, "table", None)
    if isinstance(table, LogTable):  # a LogView
        return table
    kind = log_kind(logs)
    table = LogTable(source=logs, streams=logs if kind == "streams" else {})
    reader = _Reader(table)
    for half in _halves(logs):
        reader.take(half)
    reader.close()
    return table


def log_kind(logs: Any) -> str:
    """ "streams", "events" or "timespans". Raises `InvalidOptionError` for anything else."""
    if isinstance(logs, Mapping):
        kinds = {_kind_of_worker(worker, of_worker) for worker, of_worker in logs.items()}
        if len(kinds) <= 1:
            return kinds.pop() if kinds else "streams"
    elif isinstance(logs, (list, tuple)):
        if all(isinstance(item, Timespan) for item in logs):
            return "timespans"
        if all(isinstance(item, Event) for item in logs):
            return "events"
    elif logs is None:
        raise InvalidOptionError("there is no log (None): logging is off. Call enable_logging() before the work")
    raise InvalidOptionError(
        f"a {type(logs).__name__} is no log that can be shown; allowed are the dict of fetch_logs() "
        "{worker: {stream: list}}, raw events {worker: [Event]}, a list of Events or a list of Timespans"
    )


def _kind_of_worker(worker: Any, log: Any) -> str:
    if isinstance(log, Mapping):
        return "streams"
    if isinstance(log, (list, tuple)) and all(isinstance(item, Event) for item in log):
        return "events"
    raise InvalidOptionError(
        f"the log of worker {worker!r} is a {type(log).__name__}; allowed are a dict of streams or a list of Events"
    )


def id_field(event_id: Any, name: str, default: Any = None) -> Any:
    """A field of an id, whether the id is an `EventId`, a mapping, a record or anything else."""
    if type(event_id) is EventId or hasattr(event_id, "get"):
        return event_id.get(name, default)
    return getattr(event_id, name, default)


# ---- events of any log -----------------------------------------------------------------------------


def _halves(logs: Any) -> Iterator[Half]:
    if isinstance(logs, Mapping):
        for worker in sorted(logs, key=lambda w: (str(type(w)), w)):
            log = logs[worker]
            yield from _of_streams(worker, log) if isinstance(log, Mapping) else _of_events(log, worker)
    elif logs and isinstance(logs[0], Timespan):
        yield from _of_timespans(logs)
    else:
        yield from _of_events(logs or (), None)


def _of_events(events: Iterable[Event | None], worker: int | None) -> Iterator[Half]:
    for index, event in enumerate(events):
        if event is not None:
            at = event.worker if worker is None else worker
            yield Half(event.phase == "start", event.category, event.id, event.timestamp, event.timeline, at, index)


def _of_timespans(spans: Iterable[Timespan]) -> Iterator[Half]:
    for index, span in enumerate(spans):
        worker = _worker_of(span.id)
        yield Half(True, span.category, span.id, span.start, span.timeline, worker, index)
        yield Half(False, span.category, span.id, span.finish, span.timeline, worker, index)


def _worker_of(event_id: Any) -> int:
    """A timespan does not say where it happened; its id may: on a processor's worker, else on the core's."""
    processor = id_field(event_id, "processor")
    for name in ("owner", "pid"):
        worker = getattr(processor, name, None)
        if isinstance(worker, int):
            return worker
    return 1


def _of_streams(worker: int, log: Mapping[str, list[Any]]) -> Iterator[Half]:
    for values in log.values():
        if isinstance(next((v for v in values if v is not None), None), Event):
            yield from _of_events(values, worker)
            return
    if missing := [name for name in ("core", "id") if name not in log]:
        raise InvalidOptionError(
            f"the log of worker {worker} has no stream {' and no stream '.join(map(repr, missing))} (it has "
            f"{sorted(log)}): add CoreMetrics() as 'core' and IDMetrics() as 'id', or use enable_logging()"
        )
    timelines: Iterable[Any] = log.get("timeline") or repeat(None)
    if (columns := read_together(log["core"], log["id"])) is not None:
        yield from _of_columns(worker, columns, timelines)
        return
    for index, (core, event_id, timeline) in enumerate(zip(log["core"], log["id"], timelines, strict=False)):
        if core is None:  # a consumer that was added late: padding
            continue
        if isinstance(core, dict):
            yield Half(core["kind"] == "start", core["category"], event_id, core["timestamp"], timeline, worker, index)
        else:
            yield Half(core.kind == "start", core.category, event_id, core.timestamp, timeline, worker, index)


def _of_columns(worker: int, columns: Iterable[Columns], timelines: Iterable[Any]) -> Iterator[Half]:
    number, timeline = count(), iter(timelines)
    for some in columns:
        starts = [phase == "start" for phase in some.phases]
        yield from map(Half, starts, some.categories, some.ids, some.times, timeline, repeat(worker), number)


# ---- spans and tasks -------------------------------------------------------------------------------


class _Reader:
    """Folds halves into a `LogTable`: pairs per worker, a start is forgotten when its finish comes."""

    def __init__(self, table: LogTable) -> None:
        self.table = table
        self.pending: dict[Any, Half] = {}
        self.submitted: dict[tuple[int, int], int] = {}
        """(worker, place) of the start of a submission -> its task: where a stream says names."""
        self.workers: set[int] = set()
        self.first: int | None = None
        self.last = 0

    def take(self, half: Half) -> None:
        is_start, category, id, at, _, worker, _ = half
        if worker not in self.workers:
            self.workers.add(worker)
        if self.first is None or at < self.first:
            self.first = at
        if at > self.last:
            self.last = at
        handler = (_AT_START if is_start else _AT_FINISH).get(category)
        if handler is not None:
            handler(self, half)
        if id is None:
            return
        key = (worker, category, id)
        if is_start:
            self.pending[key] = half
            return
        start = self.pending.pop(key, None)
        if start is not None:
            self.span(start, at, half.timeline if half.timeline is not None else start.timeline, half.at)

    def span(self, start: Half, finish: int, timeline: Any, at: int, open: bool = False) -> None:
        finish = max(start.timestamp, finish)
        span = Span(start.worker, printable(start.category), start.id, start.timestamp, finish, timeline, at, open)
        self.table.spans.append(span)
        if start.category == "compute" and (task := self.task(start)):
            _note_compute(task, span)

    def task(self, half: Half) -> TaskRow | None:
        task_id = id_field(half.id, "thunk_id")
        return self.task_by_id(task_id) if isinstance(task_id, int) and task_id > 0 else None

    def task_by_id(self, task_id: int) -> TaskRow:
        task = self.table.tasks.get(task_id)
        if task is None:
            task = self.table.tasks[task_id] = TaskRow(task_id)
        return task

    def close(self) -> None:
        """What is still open lasts until the log's end; names and order are put last."""
        table = self.table
        table.start_ns, table.finish_ns = self.first or 0, self.last
        for start in self.pending.values():
            if start.category == "compute":
                self.span(start, self.last, start.timeline, start.at, open=True)
        for worker, streams in table.streams.items():
            self.workers.add(worker)
            self._read_streams(worker, streams)
        for task in table.tasks.values():
            task.label = table.names.get(task.task_id, task.label)
        table.workers = tuple(sorted(self.workers))
        table.spans.sort(key=attrgetter("start", "finish", "worker", "at"))
        table.tasks = dict(sorted(table.tasks.items()))
        _note_ready(table)
        note_nested(table)
        _note_slots(table)

    def _read_streams(self, worker: int, streams: Mapping[str, list[Any]]) -> None:
        ids = streams.get("id") or ()
        names, functions = (streams.get(name) or repeat(None) for name in ("tasknames", "taskfuncnames"))
        for at, name, function in zip(range(len(ids)), names, functions, strict=False):
            if name is None and function is None:
                continue
            task_id = self.submitted.get((worker, at)) or id_field(ids[at], "thunk_id")
            if isinstance(task_id, int):
                task = self.task_by_id(task_id)
                if function is not None:
                    task.function = printable(function)
                elif not task.function:  # "add [7]": the plain name, where a better source does not say it
                    task.function = printable(name).rpartition(" [")[0]
        for entry in streams.get("taskdeps") or ():
            if entry is not None:
                task = self.task_by_id(entry[0])
                task.dependencies = task.dependencies or unique(entry[1])


def _note_compute(task: TaskRow, span: Span) -> None:
    first = task.first_body_ns
    task.first_body_ns = span.start if first is None else min(first, span.start)
    if task.body_start_ns is None or span.start >= task.body_start_ns:
        task.worker, task.processor = span.worker, id_field(span.id, "processor")
        task.body_start_ns, task.body_end_ns = span.start, None if span.open else span.finish
        task.running_until_ns = span.finish if span.open else None
        task.thread_id = getattr(span.timeline, "thread_id", None)
        name = getattr(span.timeline, "thread_name", None)
        task.thread_name = None if name is None else printable(name)
    cpu_ns = getattr(span.timeline, "cpu_ns", None)
    if cpu_ns is not None:
        task.cpu_ns = (task.cpu_ns or 0) + cpu_ns
    task.computes += 1
    task.compute_ns += span.finish - span.start


def _note_ready(table: LogTable) -> None:
    """A task whose upstreams have finished waits for no dependency any more, but for a worker or a place of its limit.

    Only then it is scheduled: what passed until then is "schedule", as `OTelLog` has it.
    """
    for task in table.tasks.values():
        if task.ready_ns is None or task.submitted_ns is None:
            continue
        ended = [up.finished_ns for d in task.dependencies if (up := table.tasks.get(d)) is not None]
        if len(ended) == len(task.dependencies) and None not in ended:
            task.ready_ns = min(task.ready_ns, max([task.submitted_ns, *ended]))  # type: ignore[type-var]


def note_nested(table: LogTable) -> None:
    """Whose time it is: at any moment a slot, and a thread, works for the body that began there last.

    A body inside of another one's fetch is not that one's own time, whether the same thread runs it or another
    one that was given the slot.
    """
    running: dict[Any, list[Span]] = {}  # by slot, and by thread: the bodies that have not ended
    covered: dict[int, tuple[Span, list[tuple[int, int]]]] = {}
    for span in sorted(table.computes, key=lambda s: (s.start, -s.finish)):
        thread = getattr(span.timeline, "thread_id", None)
        slot = id_field(span.id, "processor")
        for key in ((span.worker, "thread", thread), (span.worker, "slot", slot)):
            if key[2] is None:
                continue
            below = [one for one in running.get(key, ()) if one.finish > span.start]
            for outer in below:
                _, parts = covered.setdefault(id(outer), (outer, []))
                parts.append((span.start, min(span.finish, outer.finish)))
            if key[1] == "thread" and below and (task := table.task_of(below[-1])):
                task.nested_cpu_ns += getattr(span.timeline, "cpu_ns", None) or 0
            running[key] = [*below, span]
    for outer, parts in covered.values():
        if task := table.task_of(outer):
            task.nested_ns += length_of(parts)


def length_of(intervals: list[tuple[int, int]]) -> int:
    """How long at least one of them lasts."""
    total, reached = 0, 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _note_slots(table: LogTable) -> None:
    used: dict[int, set[Any]] = {}
    for span in table.computes:
        used.setdefault(span.worker, set()).add(id_field(span.id, "processor"))
    for worker, processors in used.items():
        table.slots[worker] = max(table.slots.get(worker, 0), len(processors))


def unique(ids: Iterable[Any]) -> tuple[int, ...]:
    """Those that are tasks, each once, in order."""
    return tuple(sorted({task_id for task_id in ids if isinstance(task_id, int)}))


def _earliest(known: int | None, at: int) -> int:
    return at if known is None else min(known, at)


def _add_thunk(reader: _Reader, half: Half) -> None:
    task = reader.task(half)
    if task is None:
        return
    if half.is_start:
        reader.submitted[half.worker, half.at] = task.task_id
        task.submitted_ns = _earliest(task.submitted_ns, half.timestamp)
    timeline = half.timeline
    if timeline is None:
        return
    task.function = _label_of(getattr(timeline, "f", None)) or task.function
    label = getattr(timeline, "name", None)
    task.label = task.label if label is None else printable(label) or task.label
    task.dependencies = unique(d[1] for d in getattr(timeline, "deps", None) or ()) or task.dependencies
    task.spawned_by = getattr(timeline, "spawned_by", 0) or 0
    task.run_id = getattr(timeline, "run_id", None)


def _init_proc(reader: _Reader, half: Half) -> None:
    slots, worker = getattr(half.timeline, "slots", None), id_field(half.id, "worker")
    if isinstance(slots, int) and isinstance(worker, int):
        reader.table.slots[worker] = max(slots, reader.table.slots.get(worker, 0))


def _schedule(reader: _Reader, half: Half) -> None:
    if task := reader.task(half):
        if half.is_start:
            task.ready_ns = _earliest(task.ready_ns, half.timestamp)
        else:
            task.placed_ns = _earliest(task.placed_ns, half.timestamp)


def _fetched(reader: _Reader, half: Half) -> None:
    task_id = getattr(half.timeline, "thunk_id", None)
    if isinstance(task_id, int) and task_id > 0:
        task = reader.task_by_id(task_id)
        task.taken_ns = _earliest(task.taken_ns, half.timestamp)


def _move(reader: _Reader, half: Half) -> None:
    if task := reader.task(half):
        task.first_move_ns = _earliest(task.first_move_ns, half.timestamp)


def _compute(reader: _Reader, half: Half) -> None:
    if task := reader.task(half):
        task.function = task.function or _label_of(getattr(half.timeline, "f", None))
        _note_result(task, half.timeline)


def _finish(reader: _Reader, half: Half) -> None:
    if task := reader.task(half):
        task.finished_ns = half.timestamp
        task.state = getattr(half.timeline, "state", None) or task.state
        task.error = task.failure = None  # an earlier attempt's
        _note_result(task, half.timeline)


def _note_result(task: TaskRow, timeline: Any) -> None:
    result = getattr(timeline, "result", None)
    if isinstance(result, (ChunkInfo, ValueInfo)):
        task.result_bytes = result.nbytes
    elif isinstance(result, BaseException):
        error = unwrap_exception(result)  # of a skipped task: what the one it depends on raised
        task.failure = error
        first = (text_of(error).splitlines() or [""])[0][:200]
        task.error = printable(f"{type(error).__name__}: {first}")


def _annotation(reader: _Reader, half: Half) -> None:
    objectid, name = id_field(half.id, "objectid"), id_field(half.id, "name")
    reader.table.names[getattr(objectid, "objid", objectid)] = printable(name)


def _label_of(f: Any) -> str:
    """A function as rows show it: its name, the text that stands for it in a saved log, "" where there is none."""
    return "" if f is None else printable(f if isinstance(f, str) else function_name(f))


_AT_START: dict[str, Any] = {
    "add_thunk": _add_thunk,
    "schedule": _schedule,
    "move": _move,
    "data_annotation": _annotation,
}
_AT_FINISH: dict[str, Any] = {
    "add_thunk": _add_thunk,
    "init_proc": _init_proc,
    "schedule": _schedule,
    "proc_run_fetch": _fetched,
    "proc_steal_local": _fetched,
    "compute": _compute,
    "finish": _finish,
}
