"""`Context(workers=n)`: worker processes that are one context's own."""

from __future__ import annotations

import gc
import os
import signal
import threading
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.pool import pool
from tests.backends import eventually
from tests.dagger.processes.bodies import alive, pid

pytestmark = pytest.mark.filterwarnings("ignore:delayed, compute and collect are legacy")


def pids(workers: list[int]) -> list[int]:
    """The processes of workers."""
    return [D.cluster.run(worker, os.getpid) for worker in workers]


def test_a_context_has_workers_of_its_own_while_it_is_entered() -> None:
    """They are there from its first line to its last, run its tasks beside this process, and end with it."""
    before = D.workers()
    with D.Context(workers=2, threads=1) as context:
        own = [worker for worker in D.workers() if worker not in before]
        assert len(own) == 2 and [p.pid for p in D.procs(context)][-2:] == own
        processes = pids(own)
        bound = [D.spawn.opts(scope=D.scope(worker=worker))(pid) for worker in (1, *own)]
        assert [D.fetch(task) for task in bound] == [os.getpid(), *processes]
    assert D.workers() == before
    assert not any(map(alive, processes))


def test_only_its_workers_run_tasks_where_it_has_no_other() -> None:
    """With an empty list of `procs`; batch runs use them as well."""
    with D.Context(procs=[], workers=1) as context:
        [own] = pids([p.pid for p in context.procs])
        assert {D.fetch(task) for task in [D.spawn(pid) for _ in range(20)]} == {own}
        assert D.collect(D.delayed(pid)()) == own


def test_a_batch_run_starts_the_workers_of_a_context_that_was_not_entered() -> None:
    """They end when nobody has the context any more."""
    context = D.Context(procs=[], workers=1)
    made = D.collect(context, D.delayed(pid)())
    assert made != os.getpid() and alive(made)
    del context
    gc.collect()
    assert eventually(lambda: not alive(made), 10)


def test_making_one_starts_nothing() -> None:
    """Not even when it is shut down."""
    given = set(pool.given)
    context = D.Context(workers=3)
    context.shutdown()
    assert pool.given == given


def test_one_that_was_never_used_ends_its_workers() -> None:
    """As does one that is left by an exception, of whatever kind."""
    seen: list[int] = []
    for error in (None, ValueError, KeyboardInterrupt):
        try:
            with D.Context(workers=1) as context:
                seen += pids([context.procs[-1].pid])
                if error is not None:
                    raise error
        except BaseException as raised:
            assert type(raised) is error
    assert len(set(seen)) == 3 and not any(map(alive, seen))


def test_entering_it_twice_is_refused_and_costs_nothing() -> None:
    """The first time goes on."""
    with D.Context(procs=[], workers=1) as context:
        given = set(pool.given)
        with pytest.raises(D.ConcurrencyViolationError, match="entered already"), context:
            pass
        assert pool.given == given
        assert D.fetch(D.spawn(pid)) != os.getpid()


def test_a_halt_ends_them_and_the_next_spawn_starts_others() -> None:
    """A body that nobody could stop ends with its process."""
    with D.Context(procs=[], workers=1) as context:
        first = D.fetch(D.spawn(pid))
        D.cancel(halt_sch=True)
        assert not alive(first) and context.procs == []
        second = D.fetch(D.spawn(pid))
        assert second not in (first, os.getpid())
    assert not alive(second)


def test_it_can_be_used_again() -> None:
    """With new workers."""
    context = D.Context(procs=[], workers=1)
    seen = []
    for _ in range(2):
        with context:
            seen.append(D.fetch(D.spawn(pid)))
    assert len(set(seen)) == 2 and not any(map(alive, seen))


@pytest.mark.filterwarnings("ignore:worker ")
def test_one_that_dies_is_replaced() -> None:
    """What was spawned meanwhile, and what comes afterwards, runs as before, whether or not there was another."""
    with D.Context(procs=[], workers=1) as context:
        before, first = context.procs, D.fetch(D.spawn(pid))
        os.kill(first, signal.SIGKILL)
        meanwhile = [D.spawn(pid) for _ in range(20)]
        assert eventually(lambda: len(context.procs) == 1 and context.procs != before, 20)
        second = D.fetch(D.spawn(pid), timeout=20)
        assert second not in (first, os.getpid())
        assert {D.fetch(task, timeout=20) for task in meanwhile} <= {second}


def test_one_that_is_removed_is_not_replaced() -> None:
    """Somebody wanted it to go."""
    with D.Context(threads=1, workers=2) as context:
        gone, left = [p.pid for p in context.procs][-2:]
        D.cluster.remove_workers([gone])
        assert [p.pid for p in context.procs][-1] == left and gone not in D.workers()
        assert D.fetch(D.spawn.opts(scope=D.scope(worker=left))(D.myid)) == left


def test_workers_of_one_context_are_not_those_of_another(two_workers: list[int]) -> None:
    """Neither of one around it nor of one inside; common ones are everybody's."""
    with D.Context(workers=1) as outer:
        own = outer.procs[-1].pid
        assert [p.pid for p in outer.procs] == [1, *two_workers, own]
        with D.Context(workers=1) as inner:
            assert own not in [p.pid for p in inner.procs] and own not in D.workers()
            assert [p.pid for p in inner.procs][:-1] == [1, *two_workers]
        assert D.workers() == [*two_workers, own]


def test_a_worker_starts_none() -> None:
    """Neither by a context nor by a call: a clear error in the body."""

    def enter() -> None:
        with D.Context(workers=1):
            pass

    with D.Context(procs=[], workers=1):
        for body in (enter, lambda: D.cluster.add_workers(1)):
            with pytest.raises(D.ConcurrencyViolationError, match="only the head process starts workers"):
                D.fetch(D.spawn(body))


@pytest.mark.parametrize("bad", [-1, True, "2", 2.5, None], ids=repr)
def test_a_wrong_number_is_refused_at_once(bad: Any) -> None:
    """By name."""
    with pytest.raises(D.InvalidOptionError, match="workers must be a number of processes"):
        D.Context(workers=bad)


def test_workers_need_threads() -> None:
    """A driver that runs everything in one thread has none."""
    with pytest.raises(D.InvalidOptionError, match='workers=1 needs the driver "threads"'):
        D.Context(workers=1, driver=D.InlineDriver())


def test_a_start_that_fails_is_the_error_of_who_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing entered."""
    from otel_timespan.dagger.processes import pool as module

    def refuse(*_: Any) -> Any:
        raise OSError("no more processes")

    monkeypatch.setattr(module, "start_process", refuse)
    before = D.eager_context()
    context = D.Context(workers=1)
    with pytest.raises(D.SchedulingError, match="no more processes"), context:
        pass
    assert D.eager_context() is before and context.procs == before.procs


def test_threads_of_the_program_may_begin_at_once() -> None:
    """The workers are started once."""
    context = D.Context(procs=[], workers=1)
    given = len(pool.given)
    found: list[int] = []

    def begin() -> None:
        context.start()
        found.append(len(context.procs))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    context.shutdown()
    assert found == [1] * 4 and len(pool.given) == given + 1
