"""A log that keeps records by columns gives the very streams that consumers called event by event give."""

from __future__ import annotations

import contextlib
import gc
import pickle
import random
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan import viz
from otel_timespan.timespans.fetched import LoggedList
from tests.backends import eventually
from tests.dagger.test_record_rows import one, pair, random_program

TOLD: dict[str, Any] = {
    "core": E.CoreMetrics, "id": E.IDMetrics, "tasknames": E.TaskNames, "funcs": E.TaskFunctionNames,
    "deps": E.TaskDependencies, "args": E.TaskArguments, "moves": E.TaskArgumentMoves, "result": E.TaskResult,
    "uid": E.TaskUIDtoTID, "chunk": E.TaskToChunk,
}  # fmt: skip
"""Consumers that are told by columns."""


class Counting:
    """A program's own: every event, with a state."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, event: T.Event) -> tuple[int, str]:
        self.seen += 1
        return self.seen, event.category

    def init_similar(self) -> Counting:
        return Counting()


class Bodies(Counting):
    """A program's own that wants some events, and carries its value."""

    categories = frozenset({"compute"})
    carries = True
    value: Any = None

    def __call__(self, event: T.Event) -> Any:
        self.value = super().__call__(event)
        return self.value

    def init_similar(self) -> Bodies:
        return Bodies()


class Fragile(E.TaskNames):
    """A program's own, told by columns, that raises now and then, and counts: it is not lazy."""

    lazy = False

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, event: T.Event) -> Any:
        return self.of(getattr(event.timeline, "f", None), getattr(event.id, "thunk_id", None))

    def of(self, f: Any, task: Any) -> str:
        self.seen += 1
        if self.seen % 3 == 0:
            raise ArithmeticError(task)
        return f"{self.seen}"

    def init_similar(self) -> Fragile:
        return Fragile()


OWN: dict[str, Any] = {
    "counting": Counting, "bodies": Bodies, "fragile": Fragile, "bytes": E.BytesAllocd, "wsat": E.WorkerSaturation,
    "esat": E.EventSaturation, "mem": E.MemoryFree, "timeline": E.TimelineMetrics,
}  # fmt: skip

_names = st.sampled_from([*TOLD, *OWN])
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("tasks"), st.integers(0, 1000), st.integers(1, 12)),
        st.tuples(st.just("events"), st.integers(0, 1000), st.integers(1, 6)),
        st.tuples(st.just("add"), _names),
        st.tuples(st.just("remove"), _names),
        st.tuples(st.sampled_from(["drain", "fetch", "aggregate", "window"])),
    ),
    min_size=1,
    max_size=12,
)


def own_events(log: Any, pick: random.Random, count: int) -> None:
    """Events of a program, some in categories of the scheduler, of ids and workers of any sort."""
    for n in range(count):
        timeline = T.Timeline(f=pick.choice([len, "text", None]), data=T.ValueInfo(list, 8, pick.randrange(3)), deps=())
        id = pick.choice([n, "id", None, T.EventId(thunk_id=n, position=1), (1, n), -(2**70), 2.5])
        category = pick.choice(["mine", "add_thunk", "move", "compute", "finish", ["unhashable"]])
        phase, worker = pick.choice(["start", "finish"]), pick.choice([1, 1, 1, 2])
        T.write_event(log, T.Event(phase, category, id, timeline, pick.choice([n, 2**80]), worker=worker))


def check_same(mine: list[Any], plain: list[Any], pick: random.Random) -> None:
    """Equal however they are read."""
    assert mine == plain and plain == mine and (mine != plain) is False
    assert len(mine) == len(plain) and list(mine) == plain and list(reversed(mine)) == plain[::-1]
    for _ in range(4):
        a, b, step = (pick.randrange(-9, len(plain) + 9) for _ in range(3))
        assert mine[a:b] == plain[a:b] and mine[:: step or 1] == plain[:: step or 1]
        assert mine[a : b : step or -1] == plain[a : b : step or -1]
        if plain:
            at = pick.randrange(-len(plain), len(plain))
            assert mine[at] == plain[at]


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """What the garbage collector finds is evicted at any time: between the fetches of two logs, say."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@settings(max_examples=50, deadline=None)
@given(
    steps=_steps,
    first=st.sets(_names),
    workers=st.sampled_from([{1: 2}, {1: 1, 2: 1}]),
    max_events=st.sampled_from([None, None, 40, 400]),
    seed=st.integers(0, 1000),
)
def test_columns_give_the_streams_of_events(
    steps: list[Any], first: set[str], workers: dict[int, int], max_events: int | None, seed: int
) -> None:
    """Random programs, events of their own, consumers that come and go, fetches: entry by entry as event by event."""
    mine, plain = ts.MultiEventLog(max_events), ts.MultiEventLog(max_events)
    plain.aggregators["looks"] = lambda lists: None  # so that all are called for each event
    known = {**TOLD, **OWN}
    pick = random.Random(seed)
    rows: tuple[list[Any], list[Any]] = [], []
    gone: tuple[list[int], list[int]] = [], []

    def settle() -> None:
        for _ in range(2):  # what dies with a record that was processed is evicted, too: now, and not between two logs
            assert mine.flush() and plain.flush()
            gc.collect(1)

    def compare() -> None:
        settle()
        got, expected = ts.get_logs(mine), ts.get_logs(plain)
        assert {w: list(s) for w, s in got.items()} == {w: list(s) for w, s in expected.items()}
        for worker, streams in expected.items():
            for name, entries in streams.items():
                if name != "mem":  # each log samples itself
                    check_same(got[worker][name], entries, pick)
                if name in TOLD and entries:
                    assert pickle.loads(pickle.dumps(got[worker][name])) == entries

    with no_collections(), ts.Context(driver=D.InlineDriver(workers, seed=seed)) as context:
        context.log_sink = both = ts.TeeLog(mine, plain)
        mine["anchor"], plain["anchor"] = E.CoreMetrics(), E.CoreMetrics()  # without any stream nothing is counted
        for name in sorted(first):
            mine[name], plain[name] = known[name](), known[name]()
        for step, *details in steps:
            if step == "tasks":
                random_program(random.Random(details[0]), details[1])
            elif step == "events":
                own_events(both, random.Random(details[0]), details[1])
            elif step == "add":
                settle()
                mine[details[0]], plain[details[0]] = known[details[0]](), known[details[0]]()
            elif step == "remove" and details[0] in mine:
                settle()
                del mine[details[0]], plain[details[0]]
            elif step == "aggregate" and "for a while" not in mine.aggregators:
                mine.aggregators["for a while"] = lambda lists: None
            elif step == "aggregate":
                del mine.aggregators["for a while"]
            elif step == "window":
                settle()
                for log, made, dropped in zip((mine, plain), rows, gone, strict=True):
                    window = E.LogWindow(4 * 10**6, "anchor", clock=lambda: 10**7)
                    window.creation_handlers.append(lambda row, made=made: made.append({**row, "mem": None}))
                    window.deletion_handlers.append(dropped.append)
                    log.aggregators["window"] = window
            elif step == "drain":
                assert mine.flush() and plain.flush()
            elif step == "fetch":
                compare()
        context.log_sink = ts.NoOpLog()
        compare()
    if workers == {1: 2} and "events" not in [step for step, *_ in steps]:
        assert rows[0] == rows[1]
    assert sorted(map(repr, rows[0])) == sorted(map(repr, rows[1]))  # those of another worker come batch by batch
    assert max_events is not None or sum(gone[0]) == sum(gone[1])  # a bound is kept when it suits
    mine.close()
    plain.close()


@pytest.mark.parametrize("max_events", [None, 100])
@pytest.mark.parametrize("seed", range(3))
def test_pictures_read_columns_as_they_read_rows(seed: int, max_events: int | None) -> None:
    """Spans, tasks and pairs of events of a fetched log are those of its rows; no rows are put in place for them."""
    with ts.Context(driver=D.InlineDriver({1: 2}, seed=seed)) as context:
        log = context.log_sink = ts.MultiEventLog(max_events)
        for name in ("core", "id", "tasknames", "funcs", "deps"):
            log[{"funcs": "taskfuncnames", "deps": "taskdeps"}.get(name, name)] = TOLD[name]()
        random_program(random.Random(seed), 40)
        for n in range(9):
            T.write_event(log, T.Event("start" if n % 2 else "finish", "mine", n // 2, None, n))
        random_program(random.Random(seed), 10)
        context.log_sink = ts.NoOpLog()
    logs = ts.get_logs(log)
    rows = {worker: {name: list(entries) for name, entries in streams.items()} for worker, streams in logs.items()}
    mine, theirs = viz.read_logs(logs), viz.read_logs(rows)
    assert (mine.spans, mine.tasks, mine.workers) == (theirs.spans, theirs.tasks, theirs.workers)
    assert list(D.logs_event_pairs(logs)) == list(D.logs_event_pairs(rows))
    assert viz.logs_to_rows(logs, "tasks") == viz.logs_to_rows(rows, "tasks")
    assert all(entries.view is not None for entries in logs[1].values() if isinstance(entries, LoggedList))
    late = {1: {"core": logs[1]["core"], "id": [*logs[1]["id"]]}}  # not side by side any more
    assert list(D.logs_event_pairs(late)) == list(D.logs_event_pairs(rows))
    log.close()


def test_a_log_keeps_nothing_alive_that_its_streams_do_not_show() -> None:
    """Neither exceptions nor what frames hold wait in the columns; ids of a program only where a stream has them."""

    class Held:
        pass

    def fails(held: Held) -> None:
        raise ValueError(held)

    held = Held()
    gone = weakref.ref(held)
    with ts.Context(driver=D.InlineDriver()) as context:
        log = context.log_sink = ts.MultiEventLog()
        log["core"], log["names"], log["result"] = E.CoreMetrics(), E.TaskNames(), E.TaskResult()
        with pytest.raises(D.DTaskFailedError):
            ts.fetch(ts.spawn(fails, held))
        T.write_event(log, T.Event("start", "mine", held))
        log.flush()
        context.log_sink = ts.NoOpLog()
    del held
    gc.collect()
    eventually(lambda: gc.collect() >= 0 and gone() is None)
    assert "fails" in str(list(ts.get_logs(log)[1]["names"]))
    log.close()


def test_names_are_those_that_functions_had() -> None:
    """A function that is called something else later keeps its name in what was logged before."""

    def before() -> None:
        pass

    with ts.Context(driver=D.InlineDriver()) as context:
        log = context.log_sink = ts.MultiEventLog()
        log["funcs"], log["names"] = E.TaskFunctionNames(), E.TaskNames()
        for name in ("before", "meanwhile"):
            before.__name__ = name
            ts.fetch([ts.spawn(before) for _ in range(3)][-1])
            log.flush()
        before.__name__ = "after"
        context.log_sink = ts.NoOpLog()
    streams = ts.get_logs(log)[1]
    assert [name for name in streams["funcs"] if name] == ["before"] * 3 + ["meanwhile"] * 3
    assert [name.split()[0] for name in streams["names"] if name] == ["before"] * 3 + ["meanwhile"] * 3
    log.close()


def test_a_log_is_few_objects_and_bytes() -> None:
    """Many tasks with results and arguments: some bytes an event, next to nothing for the garbage collector."""
    with ts.Context(driver=D.InlineDriver()) as context:
        log = ts.enable_logging()
        ts.disable_logging()
        gc.collect()
        objects = len(gc.get_objects())
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        context.log_sink = log
        for n in range(600):
            ts.fetch(ts.spawn(pair, ts.spawn(one), n))
        context.log_sink = ts.NoOpLog()
        logs = ts.get_logs(log)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert len(logs[1]["core"]) > 20_000
        assert kept / len(logs[1]["core"]) < 20
        assert len(gc.get_objects()) - objects < 2000
    log.close()


def test_a_second_thread_fetches_meanwhile() -> None:
    """While tasks run on threads and another thread fetches, each event is fetched once, and streams stay level."""
    mine, plain, over = ts.MultiEventLog(), ts.MultiEventLog(), threading.Event()
    plain.aggregators["looks"] = lambda lists: None
    for name in TOLD:
        mine[name], plain[name] = TOLD[name](), TOLD[name]()
    fetched: dict[str, list[Any]] = {name: [] for name in TOLD}
    uneven: list[Any] = []

    def fetch() -> None:
        streams = ts.get_logs(mine)[1]
        if len({len(entries) for entries in streams.values()}) != 1:
            uneven.append(streams)
        for name, entries in streams.items():
            fetched[name] += entries

    def fetch_on() -> None:
        while not over.is_set():
            fetch()

    with no_collections(), ts.Context(threads=3) as context:
        context.log_sink = ts.TeeLog(mine, plain)
        thread = threading.Thread(target=fetch_on)
        thread.start()
        for _ in range(20):
            for task in [ts.spawn(pair, ts.spawn(one), n) for n in range(50)]:
                ts.fetch(task)
        context.log_sink = ts.NoOpLog()
        over.set()
        thread.join()
        for log in (mine, plain, mine, plain):
            assert log.flush()
        fetch()
        expected = ts.get_logs(plain)[1]
    for name in TOLD:  # two logs may see what happens at the same time in another order
        assert Counter(map(repr, fetched[name])) == Counter(map(repr, expected[name])), name
    assert not uneven
    mine.close()
    plain.close()
