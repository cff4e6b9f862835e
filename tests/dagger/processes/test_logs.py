"""Logs of what runs on worker processes: whose events they are, when things were, in which order."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.backends import eventually


def add(*values: int) -> int:
    """Their sum."""
    return sum(values)


def boom() -> None:
    """Fail."""
    raise ValueError("boom")


def times() -> tuple[int, int]:
    """When it ran: (begin, end), of a body that takes a while."""
    begun = time.monotonic_ns()
    while time.monotonic_ns() < begun + 2_000_000:
        pass
    return begun, time.monotonic_ns()


def on_both(workers: list[int]) -> None:
    """Some tasks on each of the workers, to their end."""
    D.waitall([D.spawn(add, D.Options(scope=D.scope(worker=worker)), n) for n in range(10) for worker in workers])


class Pid:
    """Samples the process that it is in."""

    def sample(self) -> int:
        """Its id."""
        return os.getpid()

    def record(self, event: T.Event, value: Any) -> Any:
        """As sampled."""
        return value

    def __call__(self, event: T.Event) -> Any:
        return None


@pytest.fixture
def log(two_workers: list[int]) -> Iterator[T.MultiEventLog]:
    """The log of a context whose tasks all run on two workers."""
    with T.MultiEventLog() as log:
        log["all"] = E.FullMetrics()
        with D.Context(procs=two_workers, log_sink=log):
            yield log


def seen(log: T.MultiEventLog) -> dict[int, list[T.Event]]:
    """By worker what the log has."""
    return {worker: streams["all"] for worker, streams in T.get_logs(log).items()}


def of_task(events: list[T.Event], id: int) -> dict[tuple[str, str], T.Event]:
    """(category, phase): the last such event of a task."""
    found = {}
    for event in events:
        about = event.id.get("thunk_id") or getattr(event.timeline, "thunk_id", None)
        about = event.id["seq"] if event.category == "take" else about
        if about == id:
            found[event.category, event.phase] = event
    return found


ORDER = [
    ("add_thunk", "start"),
    ("schedule", "start"),
    ("schedule", "finish"),
    ("enqueue", "start"),
    ("enqueue", "finish"),
    ("proc_run_fetch", "finish"),
    ("move", "start"),
    ("move", "finish"),
    ("compute", "start"),
    ("storage_safe_scan", "start"),
    ("storage_safe_scan", "finish"),
    ("compute", "finish"),
    ("take", "start"),
    ("take", "finish"),
    ("finish", "start"),
    ("finish", "finish"),
]


def test_the_events_of_a_task_are_in_order_and_at_their_workers(log: T.MultiEventLog, two_workers: list[int]) -> None:
    """What happens in a worker is in its stream, what the core does in that of worker 1; times never fall."""
    up = D.spawn(add, 1, 2)
    task = D.spawn(add, up, 4)
    assert D.fetch(task) == 7
    logs = seen(log)
    assert set(logs) == {1, *two_workers}
    events = [event for events in logs.values() for event in events]
    mine = of_task(events, task.id)
    assert [kind for kind in ORDER if kind not in mine] == []
    stamps = [mine[kind].timestamp for kind in ORDER]
    assert stamps == sorted(stamps)
    before = of_task(events, up.id)
    assert mine["schedule", "start"].timestamp > before["finish", "finish"].timestamp
    core = {event.category for event in logs[1]}
    away = {event.category for worker in two_workers for event in logs[worker]}
    assert {"add_thunk", "schedule", "fire", "take", "finish"} <= core and not core & {"compute", "move", "enqueue"}
    assert {"enqueue", "move", "compute"} <= away
    assert not away & {"scheduler_init", "schedule", "fire", "take", "finish"}
    assert all(event.worker == worker for worker, some in logs.items() for event in some)


def test_times_are_those_of_the_body(log: T.MultiEventLog) -> None:
    """The body's own readings lie within its span, and nearly fill it."""
    task = D.spawn(times)
    begun, ended = D.fetch(task)
    mine = of_task([event for events in seen(log).values() for event in events], task.id)
    start, finish = mine["compute", "start"].timestamp, mine["compute", "finish"].timestamp
    assert start <= begun and ended <= finish <= mine["take", "start"].timestamp


def test_an_argument_moves_from_the_head_to_the_worker(log: T.MultiEventLog) -> None:
    """Its move says how many bytes went from where to where."""
    data = D.spawn(sorted, [3, 1, 2])
    task = D.spawn(len, data)
    assert D.fetch(task) == 3
    moves = {
        event.id["position"]: event
        for events in seen(log).values()
        for event in events
        if event.category == "move" and event.phase == "finish" and event.id["thunk_id"] == task.id
    }
    done = moves[1].timeline
    assert (done.kind, done.source, done.destination) == ("chunk", 1, moves[1].worker)
    assert done.data.type is list and done.data.nbytes > 0


def test_a_failure_is_told(log: T.MultiEventLog) -> None:
    """The end of the body and of the task have the error; its result was taken, too."""
    task = D.spawn(boom)
    with pytest.raises(ValueError):
        D.fetch(task)
    mine = of_task([event for events in seen(log).values() for event in events], task.id)
    assert isinstance(D.unwrap_exception(mine["compute", "finish"].timeline.result), ValueError)
    assert mine["finish", "finish"].timeline.state == "failure"
    assert mine["take", "finish"].timestamp < mine["finish", "start"].timestamp


def test_a_task_that_never_ran_has_no_body(log: T.MultiEventLog) -> None:
    """One whose argument a worker can't read, say."""
    task = D.spawn(id, Unreadable())
    with pytest.raises(D.InvalidOptionError, match="can't be read by worker"):
        D.fetch(task)
    mine = of_task([event for events in seen(log).values() for event in events], task.id)
    assert ("compute", "finish") not in mine and mine["finish", "finish"].timeline.state == "failure"


class Unreadable:
    """Can be pickled, and not be read again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_samples_are_of_the_process_where_things_happen(log: T.MultiEventLog, two_workers: list[int]) -> None:
    """Those of a body are taken in its worker, at its begin and at its end."""
    log["pid"] = Pid()
    pids = {worker: D.cluster.run(worker, os.getpid) for worker in two_workers}
    on_both(two_workers)
    logs = T.get_logs(log)
    found = {
        (worker, event.phase, value)
        for worker, streams in logs.items()
        for event, value in zip(streams["all"], streams["pid"], strict=True)
        if event.category == "compute"
    }
    assert found == {(worker, phase, pid) for worker, pid in pids.items() for phase in ("start", "finish")}
    assert {value for value in logs[1]["pid"]} <= {os.getpid(), None}  # nobody samples when a value goes


def test_running_bodies_count_by_worker(log: T.MultiEventLog, two_workers: list[int]) -> None:
    """Each worker has its own copy of a consumer; in the end nothing runs anywhere."""
    log["saturation"] = E.ProcessorSaturation()
    on_both(two_workers)
    logs = T.get_logs(log)
    for worker in two_workers:
        rows = logs[worker]["saturation"]
        assert rows[-1] == [] and {p.owner for row in rows for p, _ in row} == {worker}


def test_bytes_are_allocated_where_the_value_lies(log: T.MultiEventLog) -> None:
    """A small result lives in the head: its stream has it, until it is gone."""
    log["bytes"] = E.BytesAllocd()
    task = D.spawn(bytes, 1000)
    assert len(D.fetch(task)) == 1000
    assert max(T.get_logs(log)[1]["bytes"]) >= 1000
    del task
    eventually(lambda: (T.get_logs(log)[1]["bytes"] or [1])[-1] == 0)


def test_a_long_body_is_seen_before_it_ends(two_workers: list[int], tmp_path: Any) -> None:
    """Its begin is in the log while it runs, once."""
    gate = tmp_path / "gate"
    events: list[T.Event] = []
    with D.Context(procs=two_workers, log_sink=events.append):
        task = D.spawn(_until, str(gate))
        eventually(lambda: ("compute", "start") in of_task(list(events), task.id))
        gate.touch()
        D.fetch(task)
    begins = [e for e in events if e.category == "compute" and e.phase == "start"]
    assert len(begins) == 1


def _until(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.001)


def recorder_there() -> bool:
    """Whether anything is recorded in this process."""
    from otel_timespan.dagger import context

    assert context._eager is not None
    return context._eager.recorder is not None


def test_nothing_is_noted_while_no_log_wants_it(two_workers: list[int]) -> None:
    """A worker's recorder comes and goes with the sinks of the head."""
    worker = two_workers[0]
    bound = D.Options(scope=D.scope(worker=worker))
    with D.Context(procs=two_workers) as context:
        D.fetch(D.spawn(add, bound, 1))
        assert not D.cluster.run(worker, recorder_there)
        context.log_sink = T.MultiEventLog()
        D.fetch(D.spawn(add, bound, 1))
        assert D.cluster.run(worker, recorder_there)
        context.log_sink = None
        D.fetch(D.spawn(add, bound, 1))
        assert not D.cluster.run(worker, recorder_there)


def otel_is_loaded() -> bool:
    """Whether this process has imported the bridge."""
    return "otel_timespan.otel" in sys.modules


def test_workers_import_opentelemetry_only_for_spans() -> None:
    """Not without a log, and not for one that keeps events."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from otel_timespan.otel import OTelLog

    [worker] = D.cluster.add_workers(1)
    with D.Context(procs=[worker], log_sink=[]) as context:
        D.fetch(D.spawn(add, 1))
        assert not D.cluster.run(worker, otel_is_loaded)
        with OTelLog(span_exporter=InMemorySpanExporter(), metrics=False) as log:
            context.log_sink = log
            D.fetch(D.spawn(add, 1))
            assert D.cluster.run(worker, otel_is_loaded)
    D.cluster.remove_workers([worker])


def test_an_outcome_leaves_while_the_next_body_runs(two_workers: list[int], tmp_path: Any) -> None:
    """Whoever waits for it does not wait for bodies behind it."""
    gates = [tmp_path / str(n) for n in range(4)]
    bound = D.Options(scope=D.scope(worker=two_workers[0]))
    with D.Context(procs=two_workers):
        tasks = [D.spawn(_until, bound, str(gate)) for gate in gates]
        for task, gate in zip(tasks, gates, strict=True):
            gate.touch()
            D.fetch(task, timeout=30)


def test_a_large_result_counts_where_it_lies(log: T.MultiEventLog, two_workers: list[int]) -> None:
    """On the worker that made it; a task elsewhere has it moved from there; in the end it is gone."""
    first, second = two_workers
    log["bytes"] = E.BytesAllocd()
    data = D.spawn(bytearray, D.Options(scope=D.scope(worker=first)), 300_000)
    assert D.fetch(D.spawn(len, D.Options(scope=D.scope(worker=second)), data)) == 300_000
    logs = T.get_logs(log)
    assert max(logs[first]["bytes"]) >= 300_000 > max(logs[1]["bytes"])
    moves = [e for e in logs[second]["all"] if e.category == "move" and e.phase == "finish" and e.id["position"] == 1]
    assert [(e.timeline.kind, e.timeline.source, e.timeline.destination) for e in moves] == [("chunk", first, second)]
    assert moves[0].timeline.data.nbytes >= 300_000
    del data
    eventually(lambda: (T.get_logs(log)[first]["bytes"] or [1])[-1] == 0)
