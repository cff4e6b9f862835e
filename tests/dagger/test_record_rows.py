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
from otel_timespan.dagger.places.processors import move
from otel_timespan.dagger.records import kinds
from otel_timespan.timespans.journal import expand_all
from otel_timespan.timespans.rows import count_events
from otel_timespan.timespans.segments import LogSegment
from otel_timespan.timespans.taskrecords import OWNER_BITS, RETURN, TAKEN


@pytest.fixture(autouse=True)
def _no_custom_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests before these may have registered some, which all tasks heed from then on."""
    monkeypatch.setattr(move, "custom", False)


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


def of_processes(log: ts.MultiEventLog) -> None:
    """From now on the log is told as if other workers than 1 were processes: their answers are received later."""
    append = log.recorder.append

    def told(record: Any) -> None:
        if type(record) is not T.Event and record[0] == RETURN and record[5] >> OWNER_BITS != 1 and record[14]:
            record = (TAKEN, *record[1:], record[2] + record[4] % 5, None)
        append(record)

    log.recorder.append = told


def both_ways(
    workers: dict[int, int], seed: int, called: bool, processes: bool
) -> tuple[Any, Any, dict[int, list[Any]]]:
    """The streams of one program by the short way and by events, and the events, of each worker.

    `called`: whether there are consumers, too, that have to be told while it runs. `processes`: see `of_processes`.
    """
    short, full = ts.MultiEventLog(), ts.MultiEventLog()
    consumers = {
        "core": E.CoreMetrics, "id": E.IDMetrics, "tasknames": E.TaskNames, "funcs": E.TaskFunctionNames,
        "deps": E.TaskDependencies, "args": E.TaskArguments, "moves": E.TaskArgumentMoves, "result": E.TaskResult,
        "uid": E.TaskUIDtoTID, "chunk": E.TaskToChunk,
    }  # fmt: skip
    if called:
        consumers |= {"bytes": E.BytesAllocd, "wsat": E.WorkerSaturation, "psat": E.ProcessorSaturation}
    for name, kind in consumers.items():
        short[name], full[name] = kind(), kind()
    full["events"] = E.FullMetrics()
    for log in (short, full) if processes else ():
        of_processes(log)
    with ts.Context(driver=D.InlineDriver(workers, seed=seed)) as context:
        context.log_sink = ts.TeeLog(short, full)
        random_program(random.Random(seed), 60)
        context.log_sink = ts.NoOpLog()
    mine, theirs = ts.get_logs(short), ts.get_logs(full)
    for log in (short, full):
        log.close()
    return mine, theirs, {worker: streams.pop("events") for worker, streams in theirs.items()}


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_both_ways_give_the_same_log(seed: int, called: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random programs: each stream of the short way equals that of events, entry by entry, values and times."""
    fed: list[int] = []
    pack = LogSegment.pack

    def noted(self: LogSegment, with_ids: bool) -> None:
        fed.append(sum(group.count for group in self.groups.values()))
        pack(self, with_ids)

    monkeypatch.setattr(LogSegment, "pack", noted)
    workers = ({1: 2}, {1: 2, 2: 1}, {1: 2, 2: 1, 3: 1})[seed % 3]
    mine, theirs, events = both_ways(workers, seed, called, processes=seed % 2 == 1)
    assert sum(fed) > 60
    assert mine.keys() == theirs.keys() == workers.keys()
    for worker in theirs:
        for name in theirs[worker]:
            assert mine[worker][name] == theirs[worker][name], (worker, name)
        expected = [(e.timestamp, e.category, e.phase) for e in events[worker]]
        assert [tuple(row) for row in mine[worker]["core"]] == expected


@pytest.mark.parametrize("processes", [False, True])
def test_tasks_of_all_workers_are_kept_by_columns(processes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no consumer has to be called, no event is made of a task on whichever worker, with inputs or without."""
    kept: list[LogSegment] = []
    pack = LogSegment.pack

    def noted(self: LogSegment, with_ids: bool) -> None:
        kept.append(self)
        pack(self, with_ids)

    monkeypatch.setattr(LogSegment, "pack", noted)
    with ts.Context(driver=D.InlineDriver({1: 1, 2: 1, 3: 1}, seed=3)) as context:
        log = context.log_sink = ts.MultiEventLog()
        log["core"], log["moves"], log["result"] = E.CoreMetrics(), E.TaskArgumentMoves(), E.TaskResult()
        if processes:
            of_processes(log)
        tasks = [ts.spawn(one) for _ in range(30)]
        tasks += [ts.spawn(pair, tasks[n], 5) for n in range(30)]
        for task in tasks:
            ts.wait(task)
        context.log_sink = ts.NoOpLog()
    streams = ts.get_logs(log)
    assert {segment.worker for segment in kept} == {1, 2, 3}
    assert all(segment.odd is None for segment in kept if segment.groups)
    assert sum(len(segment.order) for segment in kept if not segment.groups) < 20  # the scheduler's own
    bodies = [sum(row.category == "compute" for row in streams[worker]["core"]) for worker in (1, 2, 3)]
    assert sum(bodies) == 2 * len(tasks) and min(bodies) > 10


class Before:
    """What was moved, as it was described before: on which worker it lay."""

    categories, fields = frozenset({"move"}), ("data",)
    lazy, of_phase = True, "start"

    def __call__(self, event: T.Event) -> Any:
        return event.timeline.data if event.phase == "start" else None

    def of(self, data: Any) -> Any:
        """The same."""
        return data

    def init_similar(self) -> Before:
        """A fresh one."""
        return Before()


def random_records() -> list[Any]:
    """What a program on three workers told its log."""
    records: list[Any] = []
    with ts.Context(driver=D.InlineDriver({1: 1, 2: 1, 3: 1}, seed=3)) as context:
        log = context.log_sink = ts.MultiEventLog()
        log["core"] = E.CoreMetrics()
        log._journal._process = records.extend
        random_program(random.Random(5), 60)
        context.log_sink = ts.NoOpLog()
    ts.get_logs(log)
    return records


def as_of_processes(records: list[Any]) -> list[Any]:
    """As if the other workers were processes: what their bodies gave is received some time later."""
    return [
        (kinds.TAKEN, *record[1:], record[2] + record[4] % 7, None)
        if type(record) is tuple and record[0] == kinds.RETURN and record[5] >> kinds.OWNER_BITS > 1 and record[14]
        else record
        for record in records
    ]


def test_events_of_all_workers_are_counted() -> None:
    """What is given up counts with all its events, on whichever worker they would have been."""
    for records in (random_records(), as_of_processes(random_records())):
        for record in records:
            assert count_events([record]) == len(expand_all([record]))
        assert count_events(records) == len(expand_all(records))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_bodies_in_other_processes_are_told_both_ways_alike(size: int) -> None:
    """Results that are received later than they were made: each stream of each worker, in batches of any size."""
    records = as_of_processes(random_records())
    assert sum(type(record) is tuple and record[0] == kinds.TAKEN for record in records) > 10
    short, full = ts.MultiEventLog(), ts.MultiEventLog()
    for log in (short, full):
        log["core"], log["id"], log["result"] = E.CoreMetrics(), E.IDMetrics(), E.TaskResult()
        log["chunk"], log["moves"], log["before"] = E.TaskToChunk(), E.TaskArgumentMoves(), Before()
    full["events"] = E.FullMetrics()
    for start in range(0, len(records), size):
        short._process(records[start : start + size])
        full._process(records[start : start + size])
    mine, theirs = ts.get_logs(short), ts.get_logs(full)
    assert mine.keys() >= {1, 2, 3}
    for worker, streams in theirs.items():
        assert [(e.timestamp, e.category, e.phase) for e in streams.pop("events")] == list(map(tuple, streams["core"]))
        for name in streams:
            assert mine[worker][name] == streams[name], (worker, name)


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
