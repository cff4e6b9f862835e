"""A worker may die at any point: each task has its one right outcome, and nothing is left of the worker."""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from bench.chaos import chaos, computes
from otel_timespan import dagger as D
from otel_timespan.dagger.core.invariants import check_idle
from otel_timespan.dagger.processes.failpoints import VARIABLE
from otel_timespan.dagger.processes.pool import pool
from otel_timespan.events import CoreMetrics
from otel_timespan.timespans import MultiEventLog
from tests.backends import eventually
from tests.dagger.processes.support import (
    GRAPHS,
    PATIENCE_S,
    add,
    diamond,
    is_alive,
    nested,
    nothing_left,
    sleep_and_give,
)

pytestmark = pytest.mark.filterwarnings("ignore:worker .* while:RuntimeWarning")


@pytest.fixture(autouse=True)
def _leaves_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("INFO", "otel_timespan")  # so that a failure shows who died of what
    with nothing_left():
        yield
        D.cluster.remove_workers([worker for worker in D.workers() if worker != 1])


def failing(point: str, how: str = "signal", number: int = 1, threads: int = 1) -> int:
    """A worker that fails there."""
    variables = {VARIABLE: f"{point}:{number}:{how}"}
    [worker] = D.cluster.add_workers(1, threads, env=variables, stall_timeout_s=1.0)
    return worker


def at_rest(context: D.Context) -> None:
    """All of a scheduler is as it was before the first task."""
    core = context.core
    assert core is not None
    eventually(core.driver.is_idle)
    check_idle(core)


# ---- where, and how ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["signal", "exit", "stop", "segv"])
@pytest.mark.parametrize("point", ["before_take", "in_body", "after_body", "before_report", "reported"])
def test_a_worker_may_fail_anywhere(point: str, how: str) -> None:
    """Graphs that it takes part in come to their results."""
    victim = failing(point, how, 3)
    [other] = D.cluster.add_workers(1)
    with D.Context(procs=[victim, other]) as context:
        wanted = [make() for make in GRAPHS]
        for task, value in wanted:
            assert D.fetch(task, timeout=PATIENCE_S) == value
        eventually(lambda: context.procs == [D.OSProc(other)])
        at_rest(context)
    assert victim not in D.workers() and other in D.workers()


@pytest.mark.parametrize("how", ["signal", "exit", "stop", "segv"])
@pytest.mark.parametrize("point", ["in_body", "spawning", "waiting", "reported"])
def test_a_worker_may_fail_where_bodies_wait_for_bodies(point: str, how: str) -> None:
    """Those that it waited for go on; its own begin again."""
    victim = failing(point, how, 4, threads=2)
    [other] = D.cluster.add_workers(1, threads=2)
    with D.Context(procs=[victim, other]) as context:
        task = D.spawn(nested, 4)
        assert D.fetch(task, timeout=PATIENCE_S) == 31
        eventually(lambda: context.procs == [D.OSProc(other)])
        at_rest(context)


@pytest.mark.parametrize("how", ["signal", "exit", "segv"])
def test_a_worker_that_fails_while_it_starts_is_an_error(how: str) -> None:
    """Of `add_workers`, which leaves none behind."""
    with pytest.raises(D.SchedulingError, match=r"a worker could not be started: it (was killed|ended|crashed)"):
        D.cluster.add_workers(2, env={VARIABLE: f"starting:1:{how}"})
    assert D.workers() == [1]


def test_two_workers_may_die_at_once() -> None:
    """What both had is done by the third."""
    victims = [failing("in_body", "exit", 2), failing("in_body", "exit", 2)]
    [other] = D.cluster.add_workers(1)
    with D.Context(procs=[*victims, other]):
        tasks = [D.spawn(add, n, 1) for n in range(60)]
        assert D.fetch_all(tasks, timeout=PATIENCE_S) == list(range(1, 61))


def test_all_workers_may_die_but_the_head() -> None:
    """What they had is done here."""
    failing("in_body", "signal")
    failing("after_body", "signal")
    with D.Context():
        tasks = [D.spawn(sleep_and_give, 0.02, n) for n in range(40)]
        assert D.fetch_all(tasks, timeout=PATIENCE_S) == list(range(40))
        eventually(lambda: D.workers() == [1])


def test_the_diamond_of_bodies_that_end_all_workers_but_the_last() -> None:
    """It collects 6."""
    workers = D.cluster.add_workers(3)
    kill = _deadly_except_on(workers[-1])
    with D.Context(procs=workers):
        a = D.spawn(kill, 1, 1)
        b, c = D.spawn(kill, a, 1), D.spawn(kill, a, 1)
        assert D.fetch(D.spawn(kill, b, c), timeout=PATIENCE_S) == 6


def _deadly_except_on(last: int) -> Any:
    def kill(*values: int) -> int:
        if D.myid() != last:
            os._exit(1)
        return sum(values)

    return kill


def test_a_body_that_holds_the_interpreter_is_not_silent() -> None:
    """However long: it uses CPU time."""
    [worker] = D.cluster.add_workers(1, stall_timeout_s=0.5)
    with D.Context(procs=[worker]):
        assert D.fetch(D.spawn(sum, range(60_000_000)), timeout=60) == sum(range(60_000_000))
        assert D.fetch(D.spawn(sleep_and_give, 1.0, 1), timeout=PATIENCE_S) == 1
    assert worker in D.workers()


# ---- who is to blame ------------------------------------------------------------------------------------------


def test_what_ends_every_worker_fails_and_the_innocent_do_not() -> None:
    """After three workers; the error says which, how, and what it was; those beside it have their results."""
    workers = D.cluster.add_workers(4, threads=2)
    with D.Context(procs=workers):
        innocent = [D.spawn(sleep_and_give, 0.05, n) for n in range(30)]
        poison = D.spawn(os._exit, 5)
        innocent += [D.spawn(sleep_and_give, 0.05, n) for n in range(30)]
        with pytest.raises(D.WorkerLostError, match=r"_exit \(task \d+\) was running when worker") as caught:
            D.fetch(poison, timeout=PATIENCE_S)
        assert D.fetch_all(innocent, timeout=PATIENCE_S) == [*range(30), *range(30)]
    error = D.unwrap_exception(caught.value)
    assert isinstance(error, D.WorkerLostError)
    assert error.task == poison.id and len(error.losses) == 3
    assert {how for _, _, how in error.losses} == {"ended with exit code 5"} and "worker_losses=3" in str(error)
    assert len([worker for worker in D.workers() if worker in workers]) == 1
    assert pickle.loads(pickle.dumps(error)).losses == error.losses


def test_how_many_workers_a_task_may_cost_can_be_said() -> None:
    """With `worker_losses=1` it is not tried again."""
    workers = D.cluster.add_workers(2)
    with D.Context(procs=workers):
        poison = D.spawn.opts(worker_losses=1)(os._exit, 5)
        with pytest.raises(D.WorkerLostError, match="worker_losses=1"):
            D.fetch(poison, timeout=PATIENCE_S)
    assert len(D.workers()) == 1


def boom() -> None:
    """Fail."""
    raise ValueError("boom")


def test_losses_are_no_retries() -> None:
    """A task that may not be retried survives the death of its worker; one that may still has all its retries."""
    victim = failing("in_body", "exit")
    [other] = D.cluster.add_workers(1)
    with D.Context(procs=[victim, other]):
        bound = D.scope(worker=other)
        first = D.spawn.opts(scope=D.scope(worker=victim))(add, 1)
        with pytest.raises(D.WorkerLostError, match="can't run anywhere now that worker"):
            D.fetch(first, timeout=PATIENCE_S)
        assert D.fetch(D.spawn.opts(scope=bound)(add, 1), timeout=PATIENCE_S) == 1
    victim = failing("in_body", "exit")
    with D.Context(procs=[victim, other]) as context:
        tasks = [D.spawn.opts(retries=1)(boom) for _ in range(4)]
        D.waitall(tasks, timeout=PATIENCE_S)
        eventually(lambda: context.procs == [D.OSProc(other)])
        attempts = sorted(task._live.attempt for task in tasks if task._live is not None)
        assert attempts == [2, 2, 2, 3]


def test_a_task_that_may_run_on_one_worker_only() -> None:
    """`SingleWorkerLostError`, which is an `AssertionError`; a run that is bound to it fails with that."""
    victim = failing("in_body", "exit")
    [other] = D.cluster.add_workers(1)
    with D.Context(procs=[victim, other]) as context, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(D.SingleWorkerLostError):
            D.fetch(D.spawn.opts(single=victim)(add, 1), timeout=PATIENCE_S)
        victim = failing("in_body", "exit")
        D.addprocs(context, [victim])
        with pytest.raises(AssertionError, match=f"may run on worker {victim} only"):
            D.collect(context, D.delayed(add)(1), options=D.SchedulerOptions(single=victim))


def test_a_batch_without_workers_fails_and_eager_tasks_wait() -> None:
    """Until a worker is added."""
    victim = failing("in_body", "exit")
    with D.Context(procs=[victim]) as context:
        with warnings.catch_warnings(), pytest.raises(D.NoWorkersError):
            warnings.simplefilter("ignore", DeprecationWarning)
            D.collect(context, D.delayed(add)(1))
        eventually(lambda: not context.procs)
        task = D.spawn(add, 2)
        with pytest.raises(D.FetchTimeoutError):
            D.fetch(task, timeout=0.05)
        D.addprocs(context, D.cluster.add_workers(1))
        assert D.fetch(task, timeout=PATIENCE_S) == 2


def test_one_warning_a_worker_says_what_became_of_it() -> None:
    """How it ended, what ran, how much was lost."""
    [victim, _] = D.cluster.add_workers(2)
    pid = D.cluster.run(victim, os.getpid)
    with warnings.catch_warnings(record=True) as seen, D.Context(procs=[victim]) as context:
        warnings.simplefilter("always")
        task = D.spawn(sleep_and_give, 30, 1)
        waiting = D.spawn(add, 1)
        eventually(lambda: pool.remotes[victim].reader.rows())
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: victim not in D.workers())
        D.addprocs(context, [1])
        assert D.fetch(waiting, timeout=PATIENCE_S) == 1
        D.cancel(task)
    [text] = [str(one.message) for one in seen if one.category is RuntimeWarning]
    assert f"worker {victim} was killed by SIGKILL (perhaps out of memory: it had " in text
    assert f"while it ran sleep_and_give (task {task.id}); 2 tasks that it had are done elsewhere" in text


def test_the_log_tells_of_a_loss() -> None:
    """`remove_procs`, then `handle_fault`, each once a worker; each attempt has one compute."""
    victim = failing("in_body", "signal", 3)
    [other] = D.cluster.add_workers(1)
    log = MultiEventLog()
    log["core"] = CoreMetrics()
    with D.Context(procs=[victim, other], log_sink=log):
        task, value = diamond()
        tasks = [D.spawn(add, n) for n in range(10)]
        assert D.fetch(task, timeout=PATIENCE_S) == value
        D.waitall(tasks, timeout=PATIENCE_S)
        eventually(lambda: victim not in D.workers())
    rows = [(row.category, row.kind) for row in log.get_logs()[1]["core"]]
    faults = [row for row in rows if row[0] in ("remove_procs", "handle_fault")]
    assert faults == [(what, kind) for what in ("remove_procs", "handle_fault") for kind in ("start", "finish")]


# ---- races -------------------------------------------------------------------------------------------------


def test_a_call_apart_from_tasks_ends_with_its_worker() -> None:
    """`WorkerLostError` that says why."""
    [victim] = D.cluster.add_workers(1)
    with pytest.raises(D.WorkerLostError, match=f"worker {victim} ended with exit code 4"):
        D.cluster.run(victim, os._exit, 4)


def size_of(*parts: bytes) -> int:
    """Of all of them."""
    return sum(map(len, parts))


def test_a_worker_may_die_while_it_is_sent_to() -> None:
    """A frame that was half sent is sent to another one, whole."""
    [victim, other] = D.cluster.add_workers(2)
    pid = D.cluster.run(victim, os.getpid)
    os.kill(pid, signal.SIGSTOP)
    with D.Context(procs=[victim]) as context:
        parts = [bytes(100_000) for _ in range(40)]  # which go with the message, as they are not large
        blobs = [D.spawn(size_of, *parts) for _ in range(4)]
        remote = pool.remotes[victim]
        eventually(lambda: not remote.drained)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: victim not in D.workers())
        D.addprocs(context, [other])
        assert D.fetch_all(blobs, timeout=PATIENCE_S) == [4_000_000] * 4


def test_a_cancelled_body_that_goes_on_may_take_its_worker_along() -> None:
    """Nothing but that body is lost."""
    [victim, other] = D.cluster.add_workers(2)
    with D.Context(procs=[victim]) as context:
        task = D.spawn(_sleep_and_exit)
        eventually(lambda: pool.remotes[victim].reader.rows())
        D.cancel(task)
        D.addprocs(context, [other])
        later = [D.spawn(add, n) for n in range(20)]
        assert D.fetch_all(later, timeout=PATIENCE_S) == list(range(20))
        eventually(lambda: victim not in D.workers())
        with pytest.raises(D.DTaskFailedError, match="was cancelled"):
            D.fetch(task, timeout=PATIENCE_S)


def _sleep_and_exit() -> None:
    time.sleep(0.3)
    os._exit(1)


def close_descriptors() -> None:
    """As some programs do that mean to become daemons."""
    os.closerange(3, 100)


def test_a_body_may_close_all_descriptors() -> None:
    """That ends its worker; others go on."""
    workers = D.cluster.add_workers(4)
    with D.Context(procs=workers):
        bad = D.spawn(close_descriptors)
        good = [D.spawn(add, n) for n in range(20)]
        assert D.fetch_all(good, timeout=PATIENCE_S) == list(range(20))
        with pytest.raises(D.WorkerLostError, match="close_descriptors"):
            D.fetch(bad, timeout=PATIENCE_S)


def fork_and_exit() -> None:
    """End, and leave a child in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(3)
        os._exit(0)
    os._exit(2)


def test_the_end_of_a_worker_is_seen_where_a_child_of_its_lives_on() -> None:
    """Whatever that child has of it."""
    workers = D.cluster.add_workers(2)
    with D.Context(procs=workers):
        bad = D.spawn.opts(worker_losses=1)(fork_and_exit)
        with pytest.raises(D.WorkerLostError, match="ended with exit code 2"):
            D.fetch(bad, timeout=2.5)


# ---- chaos ---------------------------------------------------------------------------------------------------


def test_chaos() -> None:
    """Three thousand tasks, ten workers killed at random: all results are right, each attempt ended once."""
    seed = 20261127
    print(f"seed {seed}")
    figures = chaos(3_000, 10, seed, span_s=3.0)
    assert figures["kills"] == 10
    ended = [n for (kind, _), n in computes(figures["log"]).items() if kind == "finish"]
    assert sum(ended) == figures["attempts"] and len(ended) == 3_000


def test_the_victims_of_chaos_are_gone() -> None:
    """A worker's process group ends with it."""
    [worker] = D.cluster.add_workers(1)
    child = D.cluster.run(worker, _start_sleeper)
    assert is_alive(child)
    os.kill(D.cluster.run(worker, os.getpid), signal.SIGKILL)
    eventually(lambda: not is_alive(child))
    eventually(lambda: worker not in D.workers())


def _start_sleeper() -> int:
    import subprocess

    return subprocess.Popen(["sleep", "100"]).pid
