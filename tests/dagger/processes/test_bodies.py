"""Bodies on workers: they spawn, wait, ask the scheduler, as bodies on threads do."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.backends import eventually
from tests.dagger.processes.bodies import add, boom, down, fib, note, stay, until


def test_bodies_spawn_and_fetch(on_workers: D.Context) -> None:
    """As deep, and as wide, as they like: a body that waits gives its slot back."""
    assert D.fetch(D.spawn(down, 40)) == 40
    assert D.fetch(D.spawn(fib, 8)) == 21


def test_too_many_bodies_inside_each_other_are_a_clear_error(on_workers: D.Context) -> None:
    """Not a hang."""
    with pytest.raises(D.NestingError, match="bodies already wait inside each other"):
        D.fetch(D.spawn(down, 400))
    assert D.fetch(D.spawn(down, 3)) == 3


def test_tasks_of_bodies_are_the_schedulers(on_workers: D.Context) -> None:
    """They run where it wants them, with inputs of any kind, options, and a name for whoever spawned them."""

    def body() -> Any:
        lists = D.spawn(sorted, [3, 1, 2], reverse=True)
        task = D.spawn(add, 1, D.spawn(add, 2), D.tochunk(3))
        pids = {D.fetch(one) for one in [D.spawn(os.getpid) for _ in range(40)]}
        named = D.spawn.opts(name="mine", scope=D.scope(worker=D.myid()))(D.myid)
        return D.fetch(lists), D.fetch(task), len(pids) >= 1, D.fetch(named) == D.myid(), D.in_task()

    assert D.fetch(D.spawn(body)) == ([3, 2, 1], 6, True, True, True)


def test_the_log_knows_the_parent(on_workers: D.Context) -> None:
    """Of a task that was spawned in a body on a worker."""
    events: list[Any] = []
    on_workers.log_sink = events
    parent = D.spawn(down, 1)
    D.fetch(parent)
    on_workers.log_sink = None
    told = {event.timeline.uid: event.timeline.spawned_by for event in events if hasattr(event.timeline, "spawned_by")}
    assert [by for by in told.values() if by] == [parent.id]


def test_what_nested_tasks_raise(on_workers: D.Context) -> None:
    """The body gets what `fetch` raises anywhere; unfetched failures of its tasks do it no harm."""

    def body() -> tuple[str, bool, bool, int]:
        task = D.spawn(boom, "inner")
        below = D.spawn(add, task)
        try:
            D.fetch(below)
        except D.DTaskFailedError as error:
            is_remote = isinstance(error.ex, D.RemoteTaskError)
            return str(D.unwrap_exception(error)), isinstance(error, ValueError), is_remote, error.root.id - task.id
        raise AssertionError

    assert D.fetch(D.spawn(body)) == ("inner", True, True, 0)


def test_a_failure_that_a_body_saw_is_not_logged_again(on_workers: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """One that nobody saw is, by the head."""

    def looks() -> None:
        with pytest.raises(ValueError, match="seen"):
            D.fetch(D.spawn(boom, "seen"))

    def leaves() -> None:
        D.wait(D.spawn(boom, "unseen"))

    D.fetch(D.spawn(looks))
    D.fetch(D.spawn(leaves))
    eventually(lambda: "unseen" in caplog.text)
    assert "ValueError: seen" not in caplog.text


def test_waits_end_in_time(on_workers: D.Context, tmp_path: Path) -> None:
    """`fetch` with a timeout, `waitany`; the task goes on."""

    def body(begun: str, path: str) -> tuple[str, bool]:
        slow = D.spawn(stay, begun, path)
        with pytest.raises(D.FetchTimeoutError):
            D.fetch(slow, timeout=0.05)
        D.waitany([slow, D.spawn(add, 1)])
        early = slow.isready()
        note(path)
        return D.fetch(slow), early

    assert D.fetch(D.spawn(body, str(tmp_path / "begun"), str(tmp_path / "go"))) == ("went on", False)


def test_futures_and_callbacks(on_workers: D.Context) -> None:
    """A future is kept by its task alone; what a callback waits for comes, too."""

    def body() -> tuple[int, int]:
        future = D.spawn(add, 3).future()
        gc.collect()
        later: concurrent.futures.Future[int] = concurrent.futures.Future()
        D.spawn(add, 4).future().add_done_callback(lambda f: later.set_result(f.result() + D.fetch(D.spawn(add, 5))))
        return future.result(20), later.result(20)

    assert D.fetch(D.spawn(body)) == (3, 9)


def test_a_callback_in_the_head_may_wait_for_workers(on_workers: D.Context) -> None:
    """The thread that hears of outcomes is not held up by it."""
    later: concurrent.futures.Future[int] = concurrent.futures.Future()
    D.spawn(add, 4).future().add_done_callback(lambda f: later.set_result(f.result() + D.fetch(D.spawn(add, 5))))
    assert later.result(20) == 9


def test_as_completed_and_map(on_workers: D.Context) -> None:
    """In a body."""

    def body() -> tuple[list[int], list[int]]:
        tasks = [D.spawn(add, n) for n in range(10)]
        return sorted(D.fetch(task) for task in D.as_completed(tasks)), list(D.map(add, range(50)))

    assert D.fetch(D.spawn(body)) == (list(range(10)), list(range(50)))


def prepare(text: str) -> None:
    """An initializer."""
    os.environ["PREPARED"] = text


def prepared() -> str:
    """What it left."""
    return os.environ["PREPARED"]


def test_executors(on_workers: D.Context) -> None:
    """In a body, shared and private; and of this process, with an initializer on the workers."""

    def body() -> Any:
        with D.Executor() as shared, D.Executor(1) as private:
            results = shared.submit(add, 1, 2).result(), list(private.map(add, range(9), chunksize=4))
        with pytest.raises(ValueError, match="boom"):
            shared.__class__(2).submit(boom).result()
        return results

    assert D.fetch(D.spawn(body)) == (3, list(range(9)))
    with D.Executor(context=on_workers, initializer=prepare, initargs=("yes",)) as executor:
        assert [future.result() for future in [executor.submit(prepared) for _ in range(9)]] == ["yes"] * 9
        assert list(executor.map(add, range(9), chunksize=4)) == list(range(9))


def test_coroutine_bodies(on_workers: D.Context) -> None:
    """They await tasks, side by side with any number of others, and loop over them."""

    async def waits(task: list[Any]) -> int:
        return 1 + int(await task[0])

    async def body(n: int) -> int:
        found = [D.fetch(task) async for task in D.as_completed([D.spawn(add, i) for i in range(n)])]
        return sum(found) + int(await D.spawn(add, 100))

    gate = D.spawn(body, 5)
    assert D.fetch_all([D.spawn(waits, [gate]) for _ in range(50)]) == [111] * 50
    assert D.fetch(gate) == 110


def test_queues_of_tasks_and_sync_blocks(on_workers: D.Context) -> None:
    """`bulk` holds back, `sequential` orders, `waiting` and `sync` wait."""

    def body() -> Any:
        with D.bulk():
            first = D.spawn(add, 1)
            second = D.spawn(add, first, 1)
            launched = first.istaskstarted()
            with pytest.raises(D.ConcurrencyViolationError):
                D.fetch(first)
        with D.sequential():
            chain = [D.spawn(add, n) for n in range(4)]
        D.fetch(chain[-1])
        with D.waiting():
            waited = D.spawn(add, 5)
        with D.sync():
            synced = D.spawn(add, 7)
        dropped: list[D.DTask] = []
        with pytest.raises(KeyError), D.bulk():
            dropped.append(D.spawn(add, 1))
            raise KeyError
        with pytest.raises(D.DTaskCancelledError):
            D.fetch(dropped[0])
        done = [task.isready() for task in chain]
        return launched, D.fetch(second), done, waited.isready(), synced.isready(), D.spawn_bulk(lambda: 3)

    assert D.fetch(D.spawn(body)) == (False, 2, [True] * 4, True, True, 3)


def test_scoped_options(on_workers: D.Context) -> None:
    """What a task propagates holds in its body on a worker, and for what that spawns; nothing else does."""

    def body() -> Any:
        inner = D.spawn(lambda: (D.get_options("name", "none"), D.get_options("retries", 0)))
        with D.with_options(retries=3):
            scoped = D.spawn(lambda: D.get_options("retries", 0))
        return D.get_options("name", "none"), D.fetch(inner), D.fetch(scoped)

    with D.with_options(name="outer", retries=2):
        assert D.fetch(D.spawn(body)) == ("outer", ("outer", 2), 3)
    assert D.fetch(D.spawn(body)) == ("none", ("none", 0), 3)


def test_what_a_body_knows_of_itself(on_workers: D.Context) -> None:
    """Its number, its processor, its worker; threads that it starts can be part of it."""

    def body() -> Any:
        found: list[Any] = []
        tls = D.get_tls()

        def helper() -> None:
            D.set_tls(tls)
            found.append((D.task_id(), D.fetch(D.spawn(add, 2))))

        thread = threading.Thread(target=helper)
        thread.start()
        thread.join()
        return D.task_id(), D.task_processor(), D.myid(), found

    task = D.spawn(body)
    number, processor, worker, found = D.fetch(task)
    assert number == task.id and worker in on_workers.core.active  # type: ignore[union-attr]
    assert processor == D.ThreadProc(worker, 1)
    assert found == [(task.id, 2)]


def test_spawn_outside_of_tasks_goes_to_the_head(two_workers: list[int]) -> None:
    """From a call apart from tasks; the worker has no scheduler of its own."""
    with D.Context(procs=two_workers) as context:
        task = D.cluster.run(two_workers[0], D.spawn, add, 1, 2)
        assert D.fetch(task) == 3 and task._core is context.core
        assert D.eager_state() is not None
        assert D.cluster.run(two_workers[0], D.eager_state) is None


def test_a_body_sees_the_schedulers_state(on_workers: D.Context) -> None:
    """What `status` says is of the head; only that ends workers."""
    task = D.spawn(D.status)
    assert f"{task.id}: status" in D.fetch(task)
    with pytest.raises(D.ConcurrencyViolationError, match="only the head process ends workers"):
        D.fetch(D.spawn(D.cluster.remove_workers, [2]))


def test_bodies_know_all_workers(on_workers: D.Context, two_workers: list[int]) -> None:
    """Those that come and go, too."""
    here = D.workers(), D.nprocs(), D.procs()
    assert D.fetch(D.spawn(lambda: (D.workers(), D.nprocs(), D.procs()))) == here
    first, second = two_workers

    def elsewhere(worker: int) -> Any:
        return D.fetch(D.spawn.opts(scope=D.scope(worker=worker))(D.myid))

    assert D.fetch(D.spawn.opts(scope=D.scope(worker=first))(elsewhere, second)) == second
    more = D.cluster.add_workers(1)
    eventually(lambda: more[0] in D.fetch(D.spawn(D.workers)))
    D.cluster.remove_workers(more)
    eventually(lambda: more[0] not in D.fetch(D.spawn(D.workers)))


def test_calls_from_worker_to_worker(on_workers: D.Context, two_workers: list[int]) -> None:
    """And to the head."""
    first, second = two_workers
    task = D.spawn.opts(scope=D.scope(worker=first))(D.cluster.run, second, os.getpid)
    assert D.fetch(task) == D.cluster.run(second, os.getpid)
    assert D.fetch(D.spawn(D.cluster.run, 1, os.getpid)) == os.getpid()
    with pytest.raises(D.InvalidOptionError, match="there is no worker 999"):
        D.fetch(D.spawn(D.cluster.run, 999, os.getpid))


# ---- limits and deadlocks --------------------------------------------------------------------------------


def test_limits_hold_for_tasks_of_bodies(on_workers: D.Context) -> None:
    """Set there or here; a name that nobody set is refused at once."""

    def body() -> Any:
        D.set_limit("of workers", 1)
        tasks = [D.spawn(add, D.Options(limit="of workers"), n) for n in range(5)]
        with pytest.raises(D.InvalidOptionError, match="there is no limit 'of nobody'"):
            D.spawn(add, D.Options(limit="of nobody"))
        return D.fetch_all(tasks), D.get_limit("of workers")

    try:
        assert D.fetch(D.spawn(body)) == ([0, 1, 2, 3, 4], 1)
        assert D.get_limit("of workers") == 1
    finally:
        D.set_limit("of workers", None)


def test_a_wait_for_the_only_place_that_a_body_has_is_refused(on_workers: D.Context) -> None:
    """It would never end."""
    D.set_limit("alone", 1)
    try:
        with pytest.raises(D.NestingError, match="whose only place this body has"):
            D.fetch(D.spawn(lambda: D.fetch(D.spawn(add, D.Options(limit="alone"))), D.Options(limit="alone")))
    finally:
        D.set_limit("alone", None)


def test_waits_that_can_not_end_are_refused(on_workers: D.Context) -> None:
    """A body that waits for its own task, and two that wait for each other, wherever they run."""

    def child(parent: list[Any]) -> Any:
        return D.fetch(parent[0])

    def parent() -> Any:
        return D.fetch(D.spawn(child, [D.get_tls()]))

    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(D.spawn(lambda: D.fetch(D.get_tls())))
    assert D.unwrap_exception(caught.value).code == "self_fetch"  # type: ignore[attr-defined]

    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(D.spawn(parent), timeout=30)
    assert D.unwrap_exception(caught.value).code == "dominated"  # type: ignore[attr-defined]


# ---- dynamic control -------------------------------------------------------------------------------------


def test_the_scheduler_can_be_asked(on_workers: D.Context) -> None:
    """By bodies on workers: functions run in the head, tasks are added, found, waited for."""

    def look(context: Any, state: Any, task: Any, id: int, args: Any) -> Any:
        return os.getpid(), task.id == id, args, len(state.active)

    def body() -> Any:
        handle = D.sch_handle()
        first = handle.add_thunk(add, 1, 2)
        second = handle.add_thunk(add, first, 10, name="second")
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        handle.register_future(second, future)
        handle.wait(second)
        known = handle.get_dag_ids()
        again = handle.fetch(D.ThunkID(first.id))
        asked = handle.exec(look, 1, "a")
        return asked, handle.fetch(second), future.result(20), again, {first, second, handle.thunk_id} <= set(known)

    assert D.fetch(D.spawn(body)) == ((os.getpid(), True, (1, "a"), 2), 13, 13, 3, True)


def test_what_can_not_be_asked(on_workers: D.Context) -> None:
    """A wait for oneself, and for what waits for oneself; errors of what the head is to run come back."""

    def itself() -> None:
        handle = D.sch_handle()
        handle.fetch(handle.thunk_id)

    def dominated() -> None:
        handle = D.sch_handle()
        handle.fetch(handle.add_thunk(add, handle.thunk_id))

    for body, code in ((itself, "self_fetch"), (dominated, "dominated")):
        with pytest.raises(D.DTaskFailedError) as caught:
            D.fetch(D.spawn(body), timeout=30)
        assert D.unwrap_exception(caught.value).code == code  # type: ignore[attr-defined]
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(D.spawn(lambda: D.sch_handle().exec(lambda *given: boom("in the head"))))
    assert isinstance(caught.value.ex, D.RemoteTaskError) and "in the head" in str(caught.value)


def test_a_body_halts_the_scheduler(two_workers: list[int], tmp_path: Path) -> None:
    """All that is unfinished ends; workers serve the next one."""
    with D.Context(procs=two_workers):
        waiting = D.spawn(stay, str(tmp_path / "begun"), str(tmp_path / "go"))
        until(str(tmp_path / "begun"))
        halting = D.spawn(lambda: D.sch_handle().halt())
        for task in (waiting, halting):
            with pytest.raises(D.SchedulerHaltedError):
                D.fetch(task, timeout=30)
        assert D.fetch(D.spawn(add, 4)) == 4
    note(str(tmp_path / "go"))
