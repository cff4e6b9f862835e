"""A data frame made of a log's columns is the one that its rows make."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.viz import tables
from otel_timespan.viz.arrays import UntoldError, read_arrays

pandas = pytest.importorskip("pandas")

CONSUMERS: dict[str, Callable[[], Any]] = {
    "core": E.CoreMetrics,
    "id": E.IDMetrics,
    "tasknames": E.TaskNames,
    "taskfuncnames": E.TaskFunctionNames,
    "taskdeps": E.TaskDependencies,
}


def give(*values: Any) -> list[Any]:
    """A new list."""
    return [*values]


def boom(*values: Any) -> None:
    """Fail."""
    raise ValueError("boom")


def outer(n: int) -> Any:
    """Other tasks while its own slot waits."""
    return ts.fetch(ts.spawn(give, *[ts.spawn(give, k) for k in range(n)]))


def some_task(pick: random.Random, ups: list[Any], n: int) -> Any:
    """One that succeeds, fails, is tried again, has a name, or runs others."""
    makes: list[Callable[[], Any]] = [
        lambda: ts.spawn(give, *ups),
        lambda: ts.spawn(give, n, D.tochunk([n])),
        lambda: ts.spawn(boom, *ups),
        lambda: ts.spawn.opts(retries=2)(boom, *ups),
        lambda: ts.spawn.opts(name=f"named {n}")(give, *ups),
        lambda: ts.spawn.opts(syncdeps=set(ups))(give),
        lambda: ts.spawn(outer, pick.randrange(4)),
    ]
    return pick.choice(makes)()


def program(pick: random.Random, size: int, log: Any) -> None:
    """Tasks of each sort, some cancelled or annotated, and a program's own events."""
    tasks = [ts.spawn(give)]
    for n in range(size):
        tasks.append(some_task(pick, pick.sample(tasks, min(len(tasks), pick.randrange(3))), n))
        chance = pick.random()
        if chance < 0.05:
            tasks[-1].cancel()
        elif chance < 0.1:
            D.logs_annotate(tasks[-1], f"annotated {n}")
        elif chance < 0.2:
            id, at = pick.choice([n % 3, "text", T.EventId(thunk_id=n + 1, processor="mine")]), time.monotonic_ns()
            phase, category = pick.choice(["start", "finish"]), pick.choice(["compute", "take", "mine"])
            log.write_event(T.Event(phase, category, id, None, at))
    for task in tasks:
        ts.wait(task)


def run_of(seed: int, consumers: Any = CONSUMERS, workers: Any = None, **options: Any) -> Any:
    """The log of a random program."""
    log, pick = ts.MultiEventLog(**options), random.Random(seed)
    for name, consumer in consumers.items():
        log[name] = consumer()
    with ts.Context(driver=D.InlineDriver(workers or {1: 2}, seed=seed)) as context:
        context.log_sink = log
        program(pick, 60, log)
        context.log_sink = ts.NoOpLog()
    return ts.get_logs(log)


def check_frames(logs: Any) -> None:
    """Both ways give the same, and of the same types."""
    for target in tables.TARGETS:
        frame = tables.logs_to_dataframe(logs, target)
        pandas.testing.assert_frame_equal(frame, tables._frame_of_rows(pandas, logs, target))


@pytest.mark.parametrize("seed", range(10))
def test_columns_and_rows_give_the_same_frame(seed: int) -> None:
    """Random programs with failures, retries, annotations, bodies within bodies, and events of the program's own."""
    logs = run_of(seed)
    assert len(read_arrays(logs, ()).times) > 300
    check_frames(logs)


@pytest.mark.parametrize("most", [40, 400])
def test_a_log_that_begins_in_the_middle_of_tasks(most: int) -> None:
    """Of those whose first events were given up both ways say as much."""
    logs = run_of(3, max_events=most)
    assert len(logs[1]["core"]) <= most
    assert (read_arrays(logs, ()).at < most).all()
    check_frames(logs)


def test_bodies_that_still_run() -> None:
    """They last until the end of the log."""

    def fetched(log: Any) -> None:
        logs.append(ts.get_logs(log))

    logs: list[Any] = []
    log = ts.MultiEventLog()
    for name, consumer in CONSUMERS.items():
        log[name] = consumer()
    with ts.Context(driver=D.InlineDriver({1: 1})) as context:
        context.log_sink = log
        ts.fetch(ts.spawn(lambda: (ts.fetch(ts.spawn(give)), fetched(log))))
        context.log_sink = ts.NoOpLog()
    assert tables.logs_to_dataframe(logs[0]).end_ns.isna().any()
    check_frames(logs[0])
    check_frames(ts.get_logs(log))


LACKING: dict[str, dict[str, Any]] = {
    "without names": {name: CONSUMERS[name] for name in ("core", "id")},
    "names of a consumer of its own": {**CONSUMERS, "taskfuncnames": lambda: lambda e: e.category or None},
    "timelines": {**CONSUMERS, "timeline": E.TimelineMetrics},
    "events": {"all": E.FullMetrics},
    "dependencies of a consumer of its own": {**CONSUMERS, "taskdeps": lambda: lambda e: None},
}


@pytest.mark.parametrize("consumers", LACKING.values(), ids=LACKING)
def test_logs_with_other_streams(consumers: Any) -> None:
    """Whatever is in the log, and whichever way it is read."""
    check_frames(run_of(5, consumers))


def test_logs_of_several_workers() -> None:
    """Tasks are one table, wherever they ran."""
    check_frames(run_of(6, workers={1: 1, 2: 2}))


def test_a_log_without_events() -> None:
    """All columns, and no row."""
    log = ts.MultiEventLog()
    for name, consumer in CONSUMERS.items():
        log[name] = consumer()
    log.flush()
    check_frames(ts.get_logs(log))
    check_frames({})


def test_what_arrays_do_not_tell_is_read_by_rows() -> None:
    """Raw events, and lists that the caller changed."""
    logs = run_of(7)
    logs[1]["core"].append(logs[1]["core"][-1])
    logs[1]["id"].append(None)
    with pytest.raises(UntoldError):
        read_arrays(logs, ())
    check_frames(logs)
