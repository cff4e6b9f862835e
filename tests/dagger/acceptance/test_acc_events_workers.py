"""spec/scheduler.md §17.11, §19, spec/timespans.md §4, §8: events of several workers, pretended ones and processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan.timespans import ChunkInfo, EventId
from tests.dagger.acceptance.support import add, boom, identity, of_task, timeline_of
from tests.dagger.acceptance.test_acc_events import CORE_ONLY, ID_FIELDS, assert_order, logged, run_to_end


class Two(NamedTuple):
    """Worker 1, which is this process, and `there`, another one; `context`: how to make a context of both."""

    there: int
    context: dict[str, Any]

    def on(self, worker: int) -> D.Options:
        """Run there."""
        return D.Options(scope=D.ProcessScope(worker))


@pytest.fixture(scope="module", params=["pretended", "process"])
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    """Two workers."""
    if request.param == "pretended":
        yield Two(2, {"driver": D.InlineDriver(workers={1: 2, 2: 2}, seed=0)})
        return
    (worker,) = D.cluster.add_workers(1, threads=2)
    yield Two(worker, {"procs": [1, worker], "threads": 2})
    D.cluster.remove_workers([worker])


def test_s17_11_order_on_two_workers(two: Two) -> None:
    """§17.11: the order of the events of a task holds wherever it runs."""
    log, tasks = logged(
        lambda: run_to_end(*(D.spawn(add, two.on((1, two.there)[n % 2]), n, 1) for n in range(10))), **two.context
    )
    for task in tasks:
        assert_order(log, task)


def test_s17_11_a_dependent_on_another_worker_is_scheduled_after_its_upstreams(two: Two) -> None:
    """§17.11: its schedule start comes after every upstream's finish finish, by time and in the log."""

    def body() -> tuple[D.DTask, ...]:
        a, b = D.spawn(identity, two.on(two.there), 1), D.spawn(identity, two.on(1), 2)
        return run_to_end(a, b, D.spawn(add, two.on(two.there), a, b))

    log, (a, b, c) = logged(body, **two.context)
    schedule = of_task(log, c, "schedule")[0]
    for up in (a, b):
        finish = of_task(log, up, "finish")[-1]
        assert finish.timestamp <= schedule.timestamp and log.index(finish) < log.index(schedule)


def test_s19_worker_2_has_a_stream_of_its_own(two: Two) -> None:
    """§19 accept: the other's stream has enqueue, move, compute and none of the scheduler's own events."""
    log, (task,) = logged(lambda: run_to_end(D.spawn(add, two.on(two.there), 1, 2)), **two.context)
    categories = {e.category for e in log if e.worker == two.there}
    assert {"enqueue", "move", "compute"} <= categories
    assert not categories & (CORE_ONLY | {"init_proc", "cleanup_proc"})
    assert {e.worker for e in of_task(log, task) if e.category in CORE_ONLY} == {1}
    assert {e.id.processor.owner for e in of_task(log, task, "compute")} == {two.there}
    assert {e.id.worker for e in of_task(log, task, "fire")} == {two.there}


def test_s19_take_pairs_a_result_of_another_worker(two: Two) -> None:
    """§17.11, ruling 28: a result from another worker adds a take pair before its finish; a local one has none."""
    log, (task, _) = logged(
        lambda: run_to_end(D.spawn(add, two.on(two.there), 1, 2), D.spawn(add, two.on(1), 1, 2)), **two.context
    )
    takes = [e for e in log if e.category == "take"]
    assert [e.phase for e in takes] == ["start", "finish"]
    finish = of_task(log, task, "finish")[0]
    assert log.index(takes[1]) < log.index(finish) and takes[1].timestamp <= finish.timestamp
    assert of_task(log, task, "compute")[-1].timestamp <= takes[0].timestamp


def test_s19_moves_between_workers_say_where(two: Two) -> None:
    """events.md: `source` and `destination` are worker ids; a result of another worker is moved as a chunk."""

    def body() -> tuple[D.DTask, ...]:
        up = D.spawn(identity, two.on(1), [1])
        return run_to_end(up, D.spawn(identity, two.on(two.there), up), D.spawn(identity, two.on(1), up))

    log, (_, far, near) = logged(body, **two.context)
    moved, stayed = (timeline_of(log, t, "move", "finish", position=1) for t in (far, near))
    assert (moved.source, moved.destination, moved.kind) == (1, two.there, "chunk")
    assert (stayed.source, stayed.destination, stayed.kind) == (1, 1, "task")
    assert isinstance(moved.data, (ChunkInfo, ts.timespans.ValueInfo)) and moved.data.type is list


def test_s19_ids_pairs_and_categories_of_two_workers(two: Two) -> None:
    """§19: ids have exactly the fields of the table, categories are known, every start has one finish, none overlap."""

    def body() -> None:
        there = two.on(two.there)
        a = D.spawn(add, D.Options(name="a", scope=D.ProcessScope(two.there)), 1, 2)
        parts = [D.spawn(identity, two.on((1, two.there)[n % 2]), a) for n in range(20)]
        bad = D.spawn(boom, there)
        D.waitall([*parts, bad, D.spawn(identity, there, bad), D.spawn(identity, there, x=D.tochunk([1]))])

    log, _ = logged(body, **two.context)
    open_spans: set[tuple[str, EventId]] = set()
    for event in log:
        assert event.category in D.EVENT_CATEGORIES and set(event.id.keys()) == ID_FIELDS[event.category], event
        key = (event.category, event.id)
        assert (key in open_spans) == (event.phase == "finish"), key
        open_spans ^= {key}
    assert open_spans == set()


def test_s19_a_body_that_raises_there(two: Two) -> None:
    """§19 accept: compute finish is present, its result is an error; so is that of `finish`."""
    log, (task,) = logged(lambda: run_to_end(D.spawn(boom, two.on(two.there))), **two.context)
    for category in ("compute", "finish"):
        assert type(D.unwrap_exception(timeline_of(log, task, category).result)).__name__ == "BoomError"
    assert timeline_of(log, task, "finish").state == "failure"


def test_s19_streams_of_two_workers(two: Two) -> None:
    """timespans §4, §8: `{worker: {stream: [...]}}`, equally long; a second fetch is empty; saturation by worker."""
    log = ts.MultiEventLog()
    log["core"], log["id"], log["wsat"], log["psat"] = (
        E.CoreMetrics(), E.IDMetrics(), E.WorkerSaturation(), E.ProcessorSaturation(),
    )  # fmt: skip
    with D.Context(log_sink=log, **two.context):
        task = D.spawn(add, two.on(two.there), 1, 2)
        assert D.fetch(task) == 3
        logs = ts.get_logs(log)
        assert {name: [] for name in ("core", "id", "wsat", "psat")} == ts.get_logs(log)[two.there]
    assert set(logs) == {1, two.there}
    categories = {c.category for c in logs[two.there]["core"]}
    assert {"enqueue", "move", "compute"} <= categories and not categories & CORE_ONLY
    assert {"add_thunk", "schedule", "fire", "finish"} <= {c.category for c in logs[1]["core"]}
    assert max(logs[two.there]["wsat"]) == 1 and max(logs[1]["wsat"]) == 0
    assert logs[two.there]["wsat"][-1] == 0 and logs[two.there]["psat"][-1] == []
    for streams in logs.values():
        assert len({len(v) for v in streams.values()}) == 1
