"""Hand-made logs in the shapes of docs/events.md, for tests that need to know every nanosecond."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from otel_timespan.timespans.matching import build_timespans
from otel_timespan.timespans.model import ChunkInfo, Event, EventId, TaskRef, Timeline, Timespan, ValueInfo


class Proc(NamedTuple):
    """A thread slot, as `ThreadProc` looks like from outside."""

    owner: int
    tid: int

    def short_name(self) -> str:
        return f"W: {self.owner}, TID: {self.tid}"


class Thing(NamedTuple):
    """What `LoggedMutableObject` looks like from outside."""

    objid: Any
    kind: str


class Tally(NamedTuple):
    """One row of the stream `core`."""

    timestamp: int
    category: str
    kind: str


def load() -> None:
    """A function to name tasks after."""


def count() -> None:
    """Another one."""


def merge() -> None:
    """A third one."""


class Run:
    """Writes the events of a run, task by task. Times are given in nanoseconds."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, phase: str, category: str, id: Any, at: int, timeline: Any = None, worker: int = 1) -> None:
        self.events.append(Event(phase, category, id, timeline, at, worker=worker))

    def span(self, category: str, id: Any, start: int, end: int, timeline: Any = None, worker: int = 1) -> None:
        self.emit("start", category, id, start, timeline, worker)
        self.emit("finish", category, id, end, timeline, worker)

    def submit(
        self, task_id: int, at: int, f: Callable[..., Any] = load, deps: Sequence[int] = (), **fields: Any
    ) -> None:
        timeline = Timeline(
            f=f,
            args=tuple((i, TaskRef(d)) for i, d in enumerate(deps, 1)),
            options=None,
            uid=task_id,
            deps=tuple(enumerate(deps, 1)),
            name=fields.get("name"),
            spawned_by=fields.get("spawned_by", 0),
            run_id=7,
            attempt=1,
            trace=None,
        )
        self.span("add_thunk", EventId(thunk_id=task_id), at, at + 1, timeline)

    def place(self, task_id: int, start: int, end: int) -> None:
        self.span("schedule", EventId(uid=1, thunk_id=task_id), start, end, Timeline(thunk_id=task_id))

    def begin(
        self, task_id: int, taken: int, start: int, proc: Proc, thread: Any, f: Any = load, deps: Sequence[int] = ()
    ) -> None:
        fetch = EventId(uid=1, worker=proc.owner, processor=proc, seq=task_id * 10)
        self.emit("start", "proc_run_fetch", fetch, taken, None, proc.owner)
        self.emit("finish", "proc_run_fetch", fetch, taken, Timeline(thunk_id=task_id), proc.owner)
        for position, upstream in enumerate([0, *deps]):
            id = EventId(thunk_id=task_id, position=position, processor=proc)
            before: Any = ChunkInfo(upstream, 80, list) if upstream else ValueInfo(type(load), None)
            after: Any = ValueInfo(list, 80, 5000 + upstream) if upstream else before
            self.emit("start", "move", id, taken, Timeline(f=f, data=before), proc.owner)
            kind = "task" if upstream else "value"
            done = Timeline(f=f, data=after, kind=kind, source=1, destination=proc.owner)
            self.emit("finish", "move", id, start, done, proc.owner)
        id = EventId(thunk_id=task_id, processor=proc)
        self.emit("start", "compute", id, start, _body(f, thread), proc.owner)

    def end(self, task_id: int, at: int, proc: Proc, thread: Any, f: Any = load, result: Any = None) -> None:
        result = ChunkInfo(task_id, 80, list, proc.owner) if result is None else result
        timeline = _body(f, thread)
        timeline.result, timeline.cpu_ns, timeline.span = result, 5, None
        self.emit("finish", "compute", EventId(thunk_id=task_id, processor=proc), at, timeline, proc.owner)

    def finish(self, task_id: int, start: int, end: int, result: Any = None, state: str = "success") -> None:
        timeline = Timeline(thunk_id=task_id, result=result or ChunkInfo(task_id, 80, list), state=state)
        self.span("finish", EventId(uid=1, thunk_id=task_id), start, end, timeline)

    def task(
        self,
        task_id: int,
        submitted: int,
        ready: int,
        start: int,
        end: int,
        *,
        f: Callable[..., Any] = load,
        deps: Sequence[int] = (),
        proc: Proc = Proc(1, 1),  # noqa: B008
        thread: Any = (101, "worker-1"),
        **fields: Any,
    ) -> None:
        """A whole task: placed 10 ns after it was ready, taken 20 ns before its body, finished 5 ns after it."""
        self.submit(task_id, submitted, f, deps, **fields)
        self.place(task_id, ready, ready + 10)
        self.begin(task_id, start - 20, start, proc, thread, f, deps)
        self.end(task_id, end, proc, thread, f)
        self.finish(task_id, end, end + 5)

    # -- the three kinds of logs

    def raw(self) -> dict[int, list[Event]]:
        """{worker: [Event]}, in order of time."""
        logs: dict[int, list[Event]] = {1: []}
        for event in sorted(self.events, key=lambda e: e.timestamp):
            logs.setdefault(event.worker, []).append(event)
        return logs

    def timespans(self) -> list[Timespan]:
        """What a LocalEventLog gives."""
        return build_timespans(sorted(self.events, key=lambda e: e.timestamp)).completed

    def streams(self, timeline: bool = True, **extra: Callable[[Event], Any]) -> dict[int, dict[str, list[Any]]]:
        """What a MultiEventLog gives: the documented streams, and what `extra` makes of each event."""
        makers = {**_STREAMS, **({"timeline": lambda e: e.timeline} if timeline else {}), **extra}
        return {w: {name: [f(e) for e in events] for name, f in makers.items()} for w, events in self.raw().items()}


def _body(f: Any, thread: Any) -> SimpleNamespace:
    return Timeline(f=f, thread_id=thread[0] if thread else None, thread_name=thread[1] if thread else None)


def _thing(data: Any) -> Thing | None:
    if isinstance(data, ChunkInfo):
        return Thing(data.handle, "chunk")
    return Thing(data.objid, "object") if isinstance(data, ValueInfo) and data.objid else None


def _taskargs(e: Event) -> Any:
    if e.category != "move" or e.phase != "finish":
        return None
    thing = _thing(e.timeline.data)
    return e.id.thunk_id, [(e.id.position, thing)] if thing else []


def _taskargmoves(e: Event) -> Any:
    if e.category != "move" or e.phase != "finish" or e.id.position == 0:
        return None
    after = _thing(e.timeline.data)
    return e.id.thunk_id, e.id.position, Thing(after.objid - 5000, "chunk"), after


def _taskresult(e: Event) -> Any:
    thing = _thing(e.timeline.result) if e.category == "compute" and e.phase == "finish" else None
    return (e.id.thunk_id, thing) if thing else None


def _add_thunk(make: Callable[[Event], Any], phase: str) -> Callable[[Event], Any]:
    return lambda e: make(e) if e.category == "add_thunk" and e.phase == phase else None


_STREAMS: dict[str, Callable[[Event], Any]] = {
    "core": lambda e: Tally(e.timestamp, e.category, e.phase),
    "id": lambda e: e.id,
    "tasknames": _add_thunk(lambda e: f"{e.timeline.f.__name__} [{e.id.thunk_id}]", "start"),
    "taskfuncnames": _add_thunk(lambda e: e.timeline.f.__name__, "start"),
    "taskdeps": _add_thunk(lambda e: (e.id.thunk_id, [d[1] for d in e.timeline.deps]), "finish"),
    "taskargs": _taskargs,
    "taskargmoves": _taskargmoves,
    "taskresult": _taskresult,
}


def diamond() -> Run:
    """load(1) -> count(2), count(3) -> merge(4); two threads; all on worker 1."""
    run = Run()
    first, second = Proc(1, 1), Proc(1, 2)
    run.task(1, 1_000, 1_010, 2_000, 12_000, proc=first)
    run.task(2, 1_100, 12_010, 12_100, 32_100, f=count, deps=[1], proc=first)
    run.task(3, 1_200, 12_020, 12_200, 52_200, f=count, deps=[1], proc=second, thread=(102, "worker-2"))
    run.task(4, 1_300, 52_210, 52_300, 60_300, f=merge, deps=[2, 3], proc=first, name="the end")
    return run


def layered(layers: int, width: int, durations: Iterable[int] = (1_000,)) -> Run:
    """`layers` layers of `width` tasks, each needing two of the layer before; two threads."""
    run, cycle = Run(), list(durations)
    ends: dict[int, int] = {}
    free = [100, 100]
    for number in range(layers * width):
        task_id, layer = number + 1, number // width
        before = (layer - 1) * width
        deps = sorted({before + 1 + (number + k) % width for k in (0, 1)}) if layer else []
        slot = number % 2
        ready = max([100, *(ends[d] + 10 for d in deps)])
        start = max(ready + 50, free[slot] + 30)
        end = start + cycle[number % len(cycle)]
        f = (load, count, merge)[layer % 3]
        run.task(
            task_id, 10 + number, ready, start, end, f=f, deps=deps, proc=Proc(1, slot + 1), thread=(101 + slot, "")
        )
        ends[task_id] = free[slot] = end + 5
    return run
