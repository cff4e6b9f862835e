"""The short way from records to rows gives the very log that events give (timespans/rows.py, records/rows.py)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.timespans.segments import LogSegment


def one() -> int:
    """1."""
    return 1


def pair(x: Any, y: Any) -> list[Any]:
    """A new mutable object."""
    return [x, y]


def first(x: Any, *rest: Any, **named: Any) -> Any:
    """Its first argument itself."""
    return x


def boom(*args: Any) -> None:
    """Fail."""
    raise ValueError("boom")


def a_chunk(*args: Any) -> Any:
    """A result that is a chunk already."""
    return D.tochunk([1, 2])


def nested(x: int) -> Any:
    """Spawn from a body."""
    return ts.fetch(ts.spawn(pair, x, x))


def some_task(pick: random.Random, tasks: list[Any], n: int) -> Any:
    """A task of any sort: with values, results, chunks, keywords, options; one that fails or spawns."""
    up = [pick.choice(tasks) for _ in range(pick.randrange(4))]
    makes: list[Callable[[], Any]] = [
        lambda: ts.spawn(one),
        lambda: ts.spawn(first, *up, n),
        lambda: ts.spawn(first, [n], *up),
        lambda: ts.spawn(first, D.tochunk({"a": 1}), *up),
        lambda: ts.spawn(first, "text", named=pick.choice(tasks)),
        lambda: ts.spawn(pair, pick.choice(tasks), pick.choice(tasks)),
        lambda: ts.spawn(lambda: n),
        lambda: ts.spawn.opts(name=f"label {n}")(one),
        lambda: ts.spawn.opts(occupancy={D.ThreadProc: 0.5})(first, n, *up),
        lambda: ts.spawn.opts(get_result=True)(pair, n, n),
        lambda: ts.spawn.opts(syncdeps=set(up))(one),
        lambda: ts.spawn(boom, *up),
        lambda: ts.spawn(a_chunk, *up),
        lambda: ts.spawn(nested, n),
    ]
    return pick.choice(makes)()


def random_program(pick: random.Random, size: int) -> None:
    """Tasks of every sort, some cancelled, some forgotten early."""
    tasks = [ts.spawn(one)]
    for n in range(size):
        task = some_task(pick, tasks, n)
        tasks.append(task)
        if pick.random() < 0.05:
            task.cancel()
        if pick.random() < 0.1:
            del tasks[pick.randrange(len(tasks))]
            tasks.append(ts.spawn(one))
    for task in tasks:
        ts.wait(task)


def both_ways(workers: dict[int, int], seed: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]], list[Any]]:
    """The streams of one program on worker 1 by the short way and by events, and the events."""
    short, full = ts.MultiEventLog(), ts.MultiEventLog()
    consumers = {
        "core": E.CoreMetrics, "id": E.IDMetrics, "tasknames": E.TaskNames, "funcs": E.TaskFunctionNames,
        "deps": E.TaskDependencies, "args": E.TaskArguments, "moves": E.TaskArgumentMoves, "result": E.TaskResult,
        "uid": E.TaskUIDtoTID, "chunk": E.TaskToChunk, "bytes": E.BytesAllocd, "wsat": E.WorkerSaturation,
        "psat": E.ProcessorSaturation,
    }  # fmt: skip
    for name, kind in consumers.items():
        short[name], full[name] = kind(), kind()
    full["events"] = E.FullMetrics()
    with ts.Context(driver=D.InlineDriver(workers, seed=seed)) as context:
        context.log_sink = ts.TeeLog(short, full)
        random_program(random.Random(seed), 60)
        context.log_sink = ts.NoOpLog()
    mine, theirs = ts.get_logs(short), ts.get_logs(full)
    for log in (short, full):
        log.close()
    events = theirs[1].pop("events")
    return mine[1], theirs[1], events


@pytest.mark.parametrize("seed", range(12))
def test_both_ways_give_the_same_log(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random programs: each stream of the short way equals that of events, entry by entry, values and times."""
    fed: list[int] = []
    pack = LogSegment.pack

    def noted(self: LogSegment, with_ids: bool) -> None:
        fed.append(sum(group.count for group in self.groups.values()))
        pack(self, with_ids)

    monkeypatch.setattr(LogSegment, "pack", noted)
    mine, theirs, events = both_ways({1: 2} if seed % 3 else {1: 2, 2: 1}, seed)
    assert sum(fed) > 60
    for name in theirs:
        assert mine[name] == theirs[name], name
    assert [tuple(row) for row in mine["core"]] == [(e.timestamp, e.category, e.phase) for e in events]


def test_a_consumer_that_reads_fields_and_raises_costs_its_own_value(caplog: pytest.LogCaptureFixture) -> None:
    """One that reads fields is isolated like any other: one warning, None in its stream, the others complete."""

    class Broken(E.TaskNames):
        def __call__(self, event: T.Event) -> str | None:
            raise ArithmeticError(event)

        def of(self, f: Any, task: Any) -> str:
            raise ArithmeticError(task)

    with ts.Context(driver=D.InlineDriver()) as context:
        log = context.log_sink = ts.MultiEventLog()
        log["broken"], log["core"], log["names"] = Broken(), E.CoreMetrics(), E.TaskNames()
        ts.fetch([ts.spawn(one) for _ in range(3)][-1])
        context.log_sink = ts.NoOpLog()
    streams = ts.get_logs(log)[1]
    assert set(streams["broken"]) == {None}
    assert len(streams["core"]) == len(streams["names"]) == len(streams["broken"])
    assert len([name for name in streams["names"] if name]) == 3
    assert len([r for r in caplog.records if "Broken" in r.getMessage()]) == 1


def test_ids_are_the_same_whichever_way_they_are_made() -> None:
    """Fields in any order make equal ids with equal hashes; other fields with the same values do not."""
    a, b = T.EventId(thunk_id=1, count=2), T.EventId(count=2, thunk_id=1)
    assert a == b
    assert hash(a) == hash(b)
    assert (a.count, a["thunk_id"], dict(a), len(a), "count" in a) == (2, 1, {"thunk_id": 1, "count": 2}, 2, True)
    assert T.EventId(thunk_id=1) != T.EventId(uid=1)
    assert T.EventId(thunk_id=1) != (1,)
    with pytest.raises(AttributeError, match="no field 'index'"):
        _ = a.index
