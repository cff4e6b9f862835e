"""Workers come and go while a scheduler runs; tasks without a worker wait. spec/scheduler.md §13."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, identity


@pytest.fixture
def log() -> list[Any]:
    """A log that is a list."""
    return []


@pytest.fixture
def two_of_three(log: list[Any]) -> Iterator[D.Context]:
    """Three pretended workers, of which the context uses two."""
    with D.Context([1, 2], driver=D.InlineDriver({1: 2, 2: 1, 3: 2}, seed=0, validate=True), log_sink=log) as context:
        yield context


def _where() -> int:
    return D.myid()


def _spread(count: int = 40) -> set[int]:
    return set(D.fetch_all([D.spawn(_where) for _ in range(count)]))


def test_editing_a_context_that_does_not_run() -> None:
    """The list of workers is edited in order, without duplicates; what `procs` gives is a copy."""
    context = D.Context([1, 2])
    D.addprocs(context, [3, D.OSProc(4), 2])
    assert [p.pid for p in D.procs(context)] == [1, 2, 3, 4]
    D.rmprocs(context, [D.OSProc(2), 9])
    assert [p.pid for p in D.procs(context)] == [1, 3, 4]
    D.procs(context).clear()
    assert len(D.procs(context)) == 3


def test_only_the_workers_of_the_context_run_tasks(two_of_three: D.Context) -> None:
    """A worker that was started but not added is never used; an added one is; a removed one no more."""
    assert _spread() == {1, 2}
    D.addprocs(two_of_three, [3])
    assert _spread() == {1, 2, 3}
    D.rmprocs(two_of_three, [1, 2])
    assert _spread() == {3}


def test_a_removed_worker_finishes_what_it_has(two_of_three: D.Context) -> None:
    """Tasks that were placed on a worker before it was removed run there."""
    tasks = [D.spawn(_where) for _ in range(20)]
    D.rmprocs(two_of_three, [2])
    assert {D.fetch(task) for task in tasks} == {1, 2}
    assert _spread() == {1}


def test_changes_are_events(two_of_three: D.Context, log: list[Any]) -> None:
    """`assign_procs` around `init_proc` of a new worker and `cleanup_proc` of a removed one."""
    D.fetch(D.spawn(int))
    log.clear()
    D.addprocs(two_of_three, [3])
    D.rmprocs(two_of_three, [2])
    found = [(e.category, getattr(e.id, "worker", None)) for e in log if e.phase == "finish"]
    assert found == [("init_proc", 3), ("assign_procs", None), ("cleanup_proc", 2), ("assign_procs", None)]


def test_a_task_without_worker_waits_until_one_is_added(caplog: pytest.LogCaptureFixture) -> None:
    """A ready task is parked with a warning, counted as unfinished, and runs as soon as a worker is there."""
    with D.Context(threads=1) as context:
        assert D.fetch(D.spawn(int)) == 0
        D.rmprocs(context, [1])
        up = D.spawn(identity, 5)
        down = D.spawn(identity, up)
        assert not up.isready() and "no worker" in caplog.text
        assert {task.id for task in D.eager_state().unfinished()} == {up.id, down.id}
        with pytest.raises(D.FetchTimeoutError):
            D.fetch(down, timeout=0.01)
        D.addprocs(context, [1])
        assert D.fetch(down, timeout=DEADLINE_S) == 5


def test_a_parked_task_can_be_cancelled() -> None:
    """Cancelling a parked task fails it at once, and nothing of it comes back with the worker."""
    with D.Context(threads=1) as context:
        D.rmprocs(context, [1])
        task = D.spawn(identity, 5)
        D.cancel(task)
        assert task.isready()
        D.addprocs(context, [1])
        context.wait_idle()
        assert not D.eager_state().parked and D.fetch(D.spawn(identity, 6)) == 6


def test_leaving_a_context_with_parked_tasks_does_not_hang() -> None:
    """Shutting down fails what is parked."""
    context = D.Context(threads=1)
    D.rmprocs(context, [1])
    core = context.start()
    task = D.DTask(10**9, int, (), None, D.Options(), (), __import__("contextvars").copy_context(), core)
    core.driver.submit(task)
    context.shutdown()
    with pytest.raises(D.SchedulingError):
        D.fetch(task)


def test_a_batch_without_workers_fails() -> None:
    """§13: no workers left: the run fails, with an error that is an AssertionError, too."""
    with D.Context([2], threads=1) as context:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            thunk = D.delayed(int)()
        with pytest.raises(AssertionError, match="no remaining workers"):
            D.collect(context, thunk)


def test_a_batch_that_loses_its_last_worker_fails() -> None:
    """§13: removing the last worker of a running batch ends it with the same error."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1})) as context:

        def body() -> None:
            D.rmprocs(context, [1, 2])

        with pytest.raises(D.NoWorkersError):
            D.collect(context, D.delayed(identity)(D.delayed(body)()))
