"""What these acceptance tests share: hand-made events, a context, polling with a deadline, small bodies."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan import timespans as T

DEADLINE_S = 60.0


class BoomError(Exception):
    """What the failing bodies, consumers and filters raise."""


class Ctx:
    """A context of our own: any object with a `log_sink`."""

    def __init__(self, sink: Any, profile: Any = False) -> None:
        self.log_sink, self.profile = sink, profile


class Proc:
    """Stands for a processor: hashable, named."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def eid(tid: int, **fields: Any) -> T.EventId:
    """The id of an event of task `tid`."""
    return T.EventId(thunk_id=tid, **fields)


def start(category: str, id: Any, t: int = 0, timeline: Any = None, **more: Any) -> T.Event:
    """A start half."""
    return T.Event("start", category, id, timeline, t, **more)


def finish(category: str, id: Any, t: int = 0, timeline: Any = None, **more: Any) -> T.Event:
    """A finish half."""
    return T.Event("finish", category, id, timeline, t, **more)


def pair(category: str, id: Any, t0: int = 0, t1: int = 1, timeline: Any = None) -> list[T.Event]:
    """Both halves."""
    return [start(category, id, t0, timeline), finish(category, id, t1, timeline)]


def line(**fields: Any) -> SimpleNamespace:
    """A timeline."""
    return SimpleNamespace(**fields)


def submission(tid: int, f: Any, deps: Any = (), t: int = 0) -> list[T.Event]:
    """Both halves of an `add_thunk`, as docs/events.md says."""
    timeline = line(f=f, args=(), options=None, uid=tid, deps=tuple(deps), name=None, spawned_by=0, run_id=1, attempt=1,
                    trace=None)  # fmt: skip
    return pair("add_thunk", eid(tid), t, t, timeline)


def feed(consumer: Any, events: list[T.Event]) -> list[Any]:
    """What a consumer says to each event."""
    return [consumer(event) for event in events]


def streams(events: list[T.Event], log: Any | None = None, /, **consumers: Any) -> dict[str, list[Any]]:
    """Worker 1's streams after these events."""
    log = T.MultiEventLog() if log is None else log
    for name, consumer in consumers.items():
        log[name] = consumer
    for event in events:
        T.write_event(log, event)
    return T.get_logs(log)[1]


def poll(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait until `condition()` is true; its value. Fails after the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come true within {DEADLINE_S:.0f} s")
        time.sleep(0.002)
    return value


def add(x: Any, y: Any) -> Any:
    """x + y."""
    return x + y


def mul(x: Any, y: Any) -> Any:
    """x * y."""
    return x * y


def zeros(n: int) -> bytes:
    """n bytes."""
    return bytes(n)


def boom(*args: Any) -> None:
    """Fail."""
    raise BoomError("the fuse blew")


def numbers(n: int) -> list[int]:
    """A list: a mutable result."""
    return list(range(n))


def spin(seconds: float = 0.05) -> int:
    """Work that a sampler can see."""
    end, n = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        n += 1
    return n


def fetch(task: Any) -> Any:
    """Fetch with the deadline."""
    return D.fetch(task, timeout=DEADLINE_S)


def collected(take: Callable[[], Any], enough: Callable[[list[Any]], bool], what: str = "the log") -> list[Any]:
    """All pieces that `take()` gives until `enough(pieces)`."""
    pieces: list[Any] = []

    def more() -> bool:
        pieces.append(take())
        return enough(pieces)

    poll(more, what)
    return pieces


def joined(pieces: list[Any], worker: int = 1) -> dict[str, list[Any]]:
    """Several fetched logs of one worker as one."""
    out: dict[str, list[Any]] = {}
    for piece in pieces:
        for name, values in piece.get(worker, {}).items():
            out.setdefault(name, []).extend(values)
    return out


def finished(ids: Any, log: dict[str, list[Any]]) -> bool:
    """Whether the log has the `finish` of all those tasks, and no span of theirs is open."""
    ids = set(ids)
    halves: dict[int, int] = dict.fromkeys(ids, 0)
    done = set()
    for core, id in zip(log.get("core", ()), log.get("id", ()), strict=True):
        tid = getattr(id, "thunk_id", None)
        if tid in ids:
            halves[tid] += 1 if core.kind == "start" else -1
            if core.category == "finish" and core.kind == "finish":
                done.add(tid)
    return done == ids and not any(halves.values())


def logged(*tasks: Any) -> dict[str, list[Any]]:
    """Worker 1's streams of the eager log, once those tasks are complete in it."""
    ids = [task.id for task in tasks]
    return joined(collected(D.fetch_logs, lambda pieces: finished(ids, joined(pieces))))
