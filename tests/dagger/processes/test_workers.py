"""Tasks on worker processes: values, errors, functions, and what can't travel."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes import wire
from tests.dagger.processes.bodies import note, until


def add(*values: int) -> int:
    """Their sum."""
    return sum(values)


def boom() -> None:
    """Fail."""
    raise ValueError("boom")


def test_bodies_run_in_other_processes(on_workers: D.Context) -> None:
    """Neither here nor all in one place; results come back."""
    pids = {D.fetch(task) for task in [D.spawn(os.getpid) for _ in range(50)]}
    assert os.getpid() not in pids and len(pids) <= 2


def test_a_graph_runs(on_workers: D.Context) -> None:
    """Dependents get the results of their upstreams, whatever their types."""
    numbers = [D.spawn(add, n, 1) for n in range(20)]
    assert D.fetch(D.spawn(add, *numbers)) == sum(range(1, 21))
    lists = D.spawn(sorted, [3, 1, 2], reverse=True)
    assert D.fetch(D.spawn(len, lists)) == 3
    assert D.fetch(lists) == [3, 2, 1]
    assert D.fetch(lists) is D.fetch(lists)


def test_functions_that_can_not_be_imported_travel_by_value(on_workers: D.Context) -> None:
    """Closures and lambdas."""
    factor = 7
    assert D.fetch(D.spawn(lambda x: x * factor, 6)) == 42


def test_what_a_body_raises_is_the_failure_of_its_task(on_workers: D.Context) -> None:
    """It can be caught by its own class, and says where it was."""
    task = D.spawn(boom)
    below = D.spawn(add, task, 1)
    with pytest.raises(ValueError, match="boom") as caught:
        D.fetch(below)
    assert isinstance(caught.value, D.DTaskFailedError)
    assert isinstance(D.unwrap_exception(caught.value), ValueError)
    assert isinstance(caught.value.ex, D.RemoteTaskError) and "in boom" in caught.value.ex.traceback_text
    assert caught.value.root.id == task.id


@pytest.mark.parametrize("make", [threading.Lock, lambda: (n for n in "ab")], ids=["argument", "generator"])
def test_an_argument_that_can_not_be_pickled_fails_its_task_alone(on_workers: D.Context, make: Any) -> None:
    """With a clear error; tasks beside it go on."""
    before, bad, after = D.spawn(add, 1, 2), D.spawn(id, make()), D.spawn(add, 3, 4)
    assert (D.fetch(before), D.fetch(after)) == (3, 7)
    with pytest.raises(D.InvalidOptionError, match=f"task {bad.id} can't be sent to worker"):
        D.fetch(bad)


def test_a_result_that_can_not_be_pickled_fails_its_task_alone(on_workers: D.Context) -> None:
    """With a clear error that names its type."""
    bad, after = D.spawn(threading.Lock), D.spawn(add, 3, 4)
    with pytest.raises(D.InvalidOptionError, match=r"result of task .* a lock, can't be sent"):
        D.fetch(bad)
    assert D.fetch(after) == 7


def test_a_task_can_be_bound_to_a_worker(two_workers: list[int]) -> None:
    """By its scope, and by `single`."""
    first, second = two_workers
    with D.Context(procs=two_workers):
        pid = D.cluster.run(second, os.getpid)
        bound = [D.spawn.opts(scope=D.scope(worker=second))(os.getpid) for _ in range(10)]
        assert {D.fetch(task) for task in bound} == {pid}
        share = D.Options(scope=D.scope(worker=first), occupancy={Any: 0.5})
        assert D.fetch(D.spawn(D.myid, share)) == first


def test_a_call_apart_from_tasks(two_workers: list[int]) -> None:
    """Its value, and what it raises."""
    first, second = two_workers
    assert D.cluster.run(first, D.myid) == first and D.cluster.run(second, D.myid) == second
    with pytest.raises(D.RemoteTaskError, match="boom"):
        D.cluster.run(first, boom)


def test_a_call_whose_worker_dies() -> None:
    """Is told so, whoever waits for it."""
    [worker] = D.cluster.add_workers(1)
    with pytest.raises(D.WorkerLostError) as caught:
        D.cluster.run(worker, os._exit, 3)
    assert caught.value.worker == worker


def test_workers_can_be_removed() -> None:
    """Their processes end; a second time does nothing; one that never was is an error."""
    [worker] = D.cluster.add_workers(1, threads=2)
    pid = D.cluster.run(worker, os.getpid)
    assert worker in D.workers()
    D.cluster.remove_workers([worker])
    D.cluster.remove_workers([worker])
    assert worker not in D.workers()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(D.InvalidOptionError, match="there never was a worker 999"):
        D.cluster.remove_workers([999])


def test_counts_of_workers_are_checked() -> None:
    """At once, by name."""
    with pytest.raises(D.InvalidOptionError, match="n=0"):
        D.cluster.add_workers(0)
    with pytest.raises(D.InvalidOptionError, match="threads=-1"):
        D.cluster.add_workers(1, threads=-1)


def test_what_waits_behind_a_long_body_goes_to_an_idle_worker(on_workers: D.Context, tmp_path: Path) -> None:
    """The body may be waiting for just that, without the scheduler knowing."""
    go = str(tmp_path / "go")
    long = D.spawn(until, go)
    others = [D.spawn(add, n) for n in range(40)]
    assert D.fetch_all(others) == list(range(40))
    assert not long.isready()
    late = [D.spawn(note, go) for _ in range(5)]
    assert D.fetch(long) is True
    D.waitall(late)


def test_each_kind_of_message_has_a_number_of_its_own() -> None:
    """Several features add kinds."""
    names = [name for name, value in vars(wire).items() if name.isupper() and type(value) is int and value < 100]
    items = {"HERE", "INPUT", "KEPT", "LOCATED", "PACKED"}  # which stand in messages, and are no kinds of them
    kinds = [name for name in names if name not in items and name[0] != "_"]
    assert len(kinds) > 20 and len({getattr(wire, name) for name in kinds}) == len(kinds)
