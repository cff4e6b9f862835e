"""spec/scheduler.md §13: worker pools that change while the scheduler runs."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.tasks.dtask import new_task
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    add,
    code_of,
    done,
    identity,
    of_task,
    outcome,
    poll,
    settled,
    where,
)

pytestmark = pytest.mark.usefixtures("legacy")


@pytest.fixture
def log() -> list[Event]:
    """The events of the context `pool`."""
    return []


@pytest.fixture
def pool(log: list[Event]) -> Iterator[D.Context]:
    """Three simulated workers of two slots, of which the context uses the first two."""
    driver = D.InlineDriver(workers={1: 2, 2: 2, 3: 2}, seed=0)
    with D.Context([1, 2], driver=driver, log_sink=log) as context:
        yield context


def ids(context: D.Context) -> list[int]:
    """The worker ids of a context, in its order."""
    return [getattr(p, "pid", p) for p in D.procs(context)]


def owners(count: int = 60) -> set[int]:
    """The workers on which so many tasks run."""
    return {D.get_parent(p).pid for p in D.fetch_all([D.spawn(where) for _ in range(count)])}


def of_category(log: list[Event], category: str) -> list[Event]:
    """The events of a category so far."""
    return [e for e in list(log) if e.category == category]


# --- the list --------------------------------------------------------------------------------------------


def test_s13_procs_of_a_context(pool: D.Context) -> None:
    """§13: a context accepts worker ids; `procs(ctx)` lists them."""
    assert ids(pool) == [1, 2]


def test_s13_osprocs_are_accepted() -> None:
    """§13: a context accepts OSProcs too."""
    driver = D.InlineDriver(workers={1: 1, 2: 1, 3: 1})
    with D.Context([D.OSProc(1), D.OSProc(3)], driver=driver) as context:
        assert ids(context) == [1, 3]
        D.addprocs(context, [D.OSProc(2)])
        assert ids(context) == [1, 3, 2]
        D.rmprocs(context, [D.OSProc(3)])
        assert ids(context) == [1, 2]


def test_s13_the_default_is_all_workers() -> None:
    """§13: without a list a context has all workers."""
    with D.Context(driver=D.InlineDriver(workers={1: 1, 2: 1, 3: 1})) as context:
        assert ids(context) == [1, 2, 3]


def test_s13_procs_gives_a_copy(pool: D.Context) -> None:
    """§13: `procs(ctx)` returns a copy: changing it changes nothing."""
    listed = D.procs(pool)
    listed.clear()
    assert ids(pool) == [1, 2]


@pytest.mark.parametrize("running", [False, True], ids=["before the first spawn", "running"])
def test_s13_add_and_remove(pool: D.Context, running: bool) -> None:
    """§13 accept: after addprocs the pids are all, after rmprocs those of before."""
    if running:
        D.fetch(D.spawn(int))
    D.addprocs(pool, [3])
    assert ids(pool) == [1, 2, 3]
    D.rmprocs(pool, [3])
    assert ids(pool) == [1, 2]


def test_s13_adding_what_is_there_and_removing_what_is_not(pool: D.Context) -> None:
    """§13: a worker is in the list once; removing one that is not in it leaves the list as it is."""
    D.addprocs(pool, [2])
    assert ids(pool) == [1, 2]
    D.rmprocs(pool, [3])
    assert ids(pool) == [1, 2]
    assert owners() == {1, 2}


@pytest.mark.parametrize("bad", ["worker", [1.5], [None], [0], [-1]], ids=repr)
def test_s13_wrong_ids_are_refused(pool: D.Context, bad: Any) -> None:
    """§13: what is no worker id is refused with an error of ours, and the list stays."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.addprocs(pool, bad)
    assert isinstance(caught.value, D.TimespanError)
    assert ids(pool) == [1, 2]


def test_s13_a_worker_that_does_not_exist(pool: D.Context) -> None:
    """§13: adding a worker that was never started is a ValueError of ours; the list stays and tasks go on."""
    D.fetch(D.spawn(int))
    with pytest.raises(ValueError) as caught:
        D.addprocs(pool, [77])
    assert isinstance(caught.value, D.TimespanError)
    assert ids(pool) == [1, 2]
    assert owners() == {1, 2}


# --- where work goes -------------------------------------------------------------------------------------


def test_s13_a_worker_not_in_the_context_is_never_used(pool: D.Context, log: list[Event]) -> None:
    """§13 accept: workers that were merely started never appear among the executing ones."""
    assert owners(200) == {1, 2}
    tasks = [D.spawn(where, D.Options(occupancy={Any: 0.5})) for _ in range(50)]
    assert {p.owner for p in D.fetch_all(tasks)} <= {1, 2}
    assert {e.id.worker for e in of_category(log, "init_proc")} == {1, 2}


def test_s13_not_for_scoped_tasks_either(pool: D.Context) -> None:
    """§13: a task that may only run on a worker outside of the context has no processor."""
    task = D.spawn(where, D.Options(scope=D.ProcessScope(3)))
    assert outcome(done(task)) == (D.DTaskFailedError, D.SchedulingError)
    assert code_of(task) == "no_processors"


def test_s13_not_for_batches_either(pool: D.Context) -> None:
    """§13: the lazy API keeps to the context's workers as well."""
    graph = D.delayed(lambda *p: {x.owner for x in p})(*[D.delayed(where)() for _ in range(40)])
    assert D.collect(graph) <= {1, 2}


def test_s13_added_workers_get_new_work(pool: D.Context, log: list[Event]) -> None:
    """§13: an added worker is initialised (assign_procs, init_proc) and gets new work."""
    assert owners() == {1, 2}
    D.addprocs(pool, [3])
    assert owners() == {1, 2, 3}
    assert D.fetch(D.spawn(where, D.Options(scope=D.ProcessScope(3)))).owner == 3
    for category in ("assign_procs", "init_proc"):
        phases = [e.phase for e in of_category(log, category)]
        assert phases.count("start") == phases.count("finish")
    assert [e.id.worker for e in of_category(log, "init_proc") if e.phase == "finish"] == [1, 2, 3]
    assert len(of_category(log, "assign_procs")) >= 2
    assert all(type(e.id.uid) is int and e.timeline is None for e in of_category(log, "assign_procs"))


def test_s13_a_worker_added_before_the_first_spawn(pool: D.Context) -> None:
    """§13: the list may be edited before the scheduler runs."""
    D.addprocs(pool, [3])
    D.rmprocs(pool, [1])
    assert owners() == {2, 3}


def test_s13_removed_workers_get_nothing_new(pool: D.Context, log: list[Event]) -> None:
    """§13: a removed worker is cleaned up (cleanup_proc) and gets nothing new; added again it works again."""
    assert owners() == {1, 2}
    D.rmprocs(pool, [2])
    assert owners() == {1}
    cleaned = [(e.phase, e.id.worker) for e in of_category(log, "cleanup_proc")]
    assert cleaned == [("start", 2), ("finish", 2)]
    D.addprocs(pool, [2])
    assert owners() == {1, 2}


def test_s13_removed_workers_finish_what_they_have(pool: D.Context) -> None:
    """§13: tasks that a removed worker has already are run there to their end."""
    tasks = [D.spawn(where, D.Options(scope=D.ProcessScope(2))) for _ in range(5)]
    D.rmprocs(pool, [2])
    assert {p.owner for p in D.fetch_all(tasks)} == {2}
    assert owners() == {1}


def test_s13_results_of_a_removed_worker_stay(pool: D.Context) -> None:
    """§13: removing is not losing: results made there are still fetched and used."""
    task = D.spawn(lambda: ["kept"], D.Options(scope=D.ProcessScope(2)))
    D.wait(task)
    D.rmprocs(pool, [2])
    assert D.fetch(task) == ["kept"]
    assert D.fetch(D.spawn(add, task, ["on"])) == ["kept", "on"]


def test_s13_the_scheduler_worker_can_be_removed(pool: D.Context) -> None:
    """§13: worker 1 need not execute: with it removed, the others do."""
    assert owners() == {1, 2}
    D.rmprocs(pool, [1])
    assert owners() == {2}
    D.check(D.eager_state())


def test_s13_from_within_a_task(pool: D.Context) -> None:
    """§13: the list may be edited by a body, without a deadlock."""

    def body() -> int:
        D.addprocs(pool, [3])
        return D.fetch(D.spawn(D.myid, D.Options(scope=D.ProcessScope(3))))

    assert D.fetch(D.spawn(body)) == 3
    assert ids(pool) == [1, 2, 3]


def test_s13_invariants_after_every_change(pool: D.Context) -> None:
    """§13, issue 5: the invariants hold after each change of the list, with tasks waiting and queued."""
    tasks: list[D.DTask] = []
    for add_ids, remove_ids in (([3], []), ([], [2]), ([2], [3]), ([3], [1]), ([1], [])):
        first = D.spawn(identity, 1)
        tasks += [first, *(D.spawn(add, first, n) for n in range(5))]
        D.addprocs(pool, add_ids)
        D.check(D.eager_state())
        D.rmprocs(pool, remove_ids)
        D.check(D.eager_state())
    D.waitall(tasks)
    D.check(D.eager_state())
    assert D.fetch_all(tasks) == [1, 1, 2, 3, 4, 5] * 5
    assert set(ids(pool)) == {1, 2, 3}


# --- parking ---------------------------------------------------------------------------------------------


def test_s17_5_parked_until_a_worker_is_there(pool: D.Context, log: list[Event]) -> None:
    """§17.5 defect 15: with no worker a ready task waits, and runs when one is added."""
    D.fetch(D.spawn(int))
    D.rmprocs(pool, [1, 2])
    assert ids(pool) == []
    task = D.spawn(where)
    down = D.spawn(identity, task)
    assert not task.isready() and task.istaskstarted()
    assert of_task(log, task, "compute") == []
    D.addprocs(pool, [3])
    assert D.fetch(task).owner == 3
    assert D.fetch(down) == D.fetch(task)
    settled(log, task)
    D.check(D.eager_state())


def test_s17_5_parked_tasks_freed_by_an_upstream(pool: D.Context) -> None:
    """§17.5: a dependent that becomes ready while there is no worker is parked as well."""
    up = D.spawn(where, D.Options(scope=D.ProcessScope(2)))
    down = D.spawn(identity, up)
    D.rmprocs(pool, [1, 2])
    D.wait(up)
    assert not down.isready()
    D.addprocs(pool, [1])
    assert D.fetch(down).owner == 2


def test_s17_5_parked_tasks_can_be_cancelled(pool: D.Context) -> None:
    """§2, §17.5: a parked task is cancelled at once and leaves no credit behind."""
    D.fetch(D.spawn(int))
    D.rmprocs(pool, [1, 2])
    ran: list[int] = []
    task, kept = D.spawn(ran.append, 1), D.spawn(ran.append, 2)
    D.cancel(task)
    assert task.isready() and outcome(task)[1] is D.TaskCancelled
    D.addprocs(pool, [2])
    D.wait(kept)
    assert ran == [2]
    D.check(D.eager_state())


def test_s17_5_parking_with_threads(gate: threading.Event) -> None:
    """§13, §17.5: the same on real threads: running bodies end, new tasks wait, and run once the worker is back."""
    with D.Context(threads=2) as context:
        begun = threading.Event()

        def body() -> int:
            begun.set()
            gate.wait(DEADLINE_S)
            return 5

        running = D.spawn(body)
        assert begun.wait(DEADLINE_S)
        D.rmprocs(context, [1])
        parked = [D.spawn(add, n, 1) for n in range(20)]
        gate.set()
        assert running.fetch(timeout=DEADLINE_S) == 5
        assert not any(t.isready() for t in parked)
        D.addprocs(context, [1])
        assert [t.fetch(timeout=DEADLINE_S) for t in parked] == list(range(1, 21))
        assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0


def test_s17_5_a_blocked_fetcher_of_a_parked_task_wakes() -> None:
    """§17.5: a thread that already waits for a parked task gets its value once a worker is added."""
    with D.Context(threads=1) as context:
        D.fetch(D.spawn(int))
        D.rmprocs(context, [1])
        task = D.spawn(add, 1, 2)
        got: list[int] = []
        thread = threading.Thread(target=lambda: got.append(D.fetch(task)))
        thread.start()
        D.addprocs(context, [1])
        thread.join(DEADLINE_S)
        assert got == [3]
        poll(task.isready)


# --- edges ---------------------------------------------------------------------------------------------------


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
    task = new_task(10**9, int, (), None, D.Options(), (), __import__("contextvars").copy_context(), core)
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
