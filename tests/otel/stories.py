"""Hand-made events of tasks, in the order and shape of docs/events.md."""

from __future__ import annotations

from typing import Any

from otel_timespan.errors import DTaskFailedError
from otel_timespan.timespans import ChunkInfo, Event, EventId, Timeline, ValueInfo

RUN_ID = 0x5EED5EED5EED5EED
MS = 1_000_000


class Summary:
    """What errors say of a task."""

    def __init__(self, id: int) -> None:
        self.id = id


def half(phase: str, category: str, at: int, timeline: Any = None, worker: int = 1, **id: Any) -> Event:
    """One half of a timespan of the scheduler."""
    return Event(phase, category, EventId(**id), timeline, at, worker=worker)


def submit(task: int, at: int, *, f: Any = len, deps: Any = (), trace: Any = None, **more: Any) -> list[Event]:
    """A submission, at this time."""
    fields = {"name": None, "spawned_by": 0, "attempt": 1, **more}
    timeline = Timeline(f=f, args=(), options=None, uid=task, deps=deps, run_id=RUN_ID, trace=trace, **fields)
    return [half(phase, "add_thunk", at, timeline, thunk_id=task) for phase in ("start", "finish")]


def schedule(task: int, start: int, end: int) -> list[Event]:
    """A placement."""
    timeline = Timeline(thunk_id=task)
    return [
        half("start", "schedule", start, timeline, uid=1, thunk_id=task),
        half("finish", "schedule", end, timeline, uid=1, thunk_id=task),
    ]


def taken(task: int, at: int, seq: int = 1) -> list[Event]:
    """A processor takes the task from its queue."""
    timeline = Timeline(thunk_id=task, proc_occupancy=0, task_occupancy=1)
    id = {"uid": 1, "worker": 1, "processor": "p1", "seq": seq}
    return [half("start", "proc_run_fetch", at, None, **id), half("finish", "proc_run_fetch", at, timeline, **id)]


def move(task: int, position: Any, start: int, end: int, kind: str = "chunk", nbytes: int = 100) -> list[Event]:
    """An argument is moved from worker 2 to worker 1."""
    data = ChunkInfo(f"h{task}", nbytes, bytes, 2)
    id = {"thunk_id": task, "position": position, "processor": "p1"}
    done = Timeline(f=len, data=data, kind=kind, source=2, destination=1)
    return [half("start", "move", start, Timeline(f=len, data=data), **id), half("finish", "move", end, done, **id)]


def body(task: int, start: int, end: int, result: Any = None, cpu_ns: int | None = 1000) -> list[Event]:
    """A body and its result."""
    id = {"thunk_id": task, "processor": "p1"}
    result = ValueInfo(int, 8) if result is None else result
    done = Timeline(f=len, result=result, cpu_ns=cpu_ns, span=None, thread_id=7, thread_name="t7")
    begun = Timeline(f=len, thread_id=7, thread_name="t7")
    return [half("start", "compute", start, begun, **id), half("finish", "compute", end, done, **id)]


def finish(task: int, start: int, end: int, result: Any = None, state: str = "success") -> list[Event]:
    """A task gets its result."""
    timeline = Timeline(thunk_id=task, result=ValueInfo(int, 8) if result is None else result, state=state)
    id = {"uid": 1, "thunk_id": task}
    return [half("start", "finish", start, timeline, **id), half("finish", "finish", end, timeline, **id)]


def whole(task: int, at: int = 0, **more: Any) -> list[Event]:
    """A task that succeeds: submitted at `at`, 1 ms a phase, finished 6 ms later."""
    return [
        *submit(task, at, **more),
        *schedule(task, at + 1 * MS, at + 2 * MS),
        *taken(task, at + 3 * MS),
        *body(task, at + 4 * MS, at + 5 * MS),
        *finish(task, at + 5 * MS, at + 6 * MS),
    ]


def failed(task: int, at: int, error: BaseException, **more: Any) -> list[Event]:
    """A task whose body raises."""
    return [
        *submit(task, at, **more),
        *schedule(task, at + 1 * MS, at + 2 * MS),
        *taken(task, at + 3 * MS),
        *body(task, at + 4 * MS, at + 5 * MS, error),
        *finish(task, at + 5 * MS, at + 6 * MS, error, "failure"),
    ]


def skipped(task: int, at: int, root: int, error: BaseException, **more: Any) -> list[Event]:
    """A task that never ran because `root` raised."""
    cause = DTaskFailedError(Summary(task), Summary(root), error)
    return [*submit(task, at, **more), *finish(task, at + 1 * MS, at + 2 * MS, cause, "skip")]


def raised(error: BaseException) -> BaseException:
    """The exception, with a stack."""
    try:
        raise error
    except BaseException as caught:
        return caught
