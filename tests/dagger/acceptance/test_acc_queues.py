"""spec/scheduler.md §11: task queues."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, BoomError, add, boom, identity, mul, outcome, poll


def test_s11_default_submits_immediately() -> None:
    """§11 accept: with the default queue a chain counts up as it is waited for."""
    count = itertools.count(1)
    seen: list[int] = []

    def step(*_: Any) -> int:
        seen.append(next(count))
        return seen[-1]

    b = D.spawn(step)
    D.wait(b)
    assert seen == [1]
    c = D.spawn(step, b)
    D.wait(c)
    assert seen == [1, 2]
    D.wait(D.spawn(step, c))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("form", ["block", "function"])
def test_s11_bulk_launches_at_the_end(form: str) -> None:
    """§11 accept: within bulk nothing is launched and waiting raises; afterwards everything runs."""
    ran: list[int] = []

    def noted(f: Any) -> Any:
        def call(*args: Any) -> Any:
            ran.append(1)
            return f(*args)

        return call

    def region() -> D.DTask:
        b = D.spawn(noted(add), 1, 2)
        c = D.spawn(noted(mul), 2, 3)
        d = D.spawn(noted(lambda x, y: (x + 4) / y), b, c)
        for task in (b, d):
            with pytest.raises(D.ConcurrencyViolationError):
                D.wait(task)
            with pytest.raises(D.ConcurrencyViolationError):
                D.fetch(task)
            assert not task.istaskstarted()
        assert ran == []
        return d

    if form == "function":
        d = D.spawn_bulk(region)
    else:
        with D.bulk():
            d = region()
    assert d.istaskstarted()
    assert D.fetch(d) == (3 + 4) / (2 * 3)
    assert len(ran) == 3


def test_s11_bulk_that_raises_launches_nothing_or_all_but_never_hangs() -> None:
    """§11: when the block raises its exception comes out and no fetch of a collected task blocks for ever."""
    tasks: list[D.DTask] = []
    with pytest.raises(BoomError), D.bulk():
        tasks.append(D.spawn(int))
        raise BoomError
    with pytest.raises((D.ConcurrencyViolationError, D.SchedulingError, D.TaskCancelled, D.DTaskFailedError)):
        tasks[0].fetch(timeout=DEADLINE_S)
        raise D.TaskCancelled("launched all the same: it ran")


def test_s11_functions_return_their_result() -> None:
    """§11: all three return what the function returned."""
    for run in (D.spawn_bulk, D.spawn_sequential, D.wait_all):
        assert run(lambda: "result") == "result"


@pytest.mark.parametrize("form", ["block", "function"])
def test_s11_sequential_runs_one_at_a_time(form: str) -> None:
    """§11 accept: of three blocking tasks of occupancy 0 one is parked at a time, in spawn order."""
    parked: list[int] = []
    gates = [threading.Event() for _ in range(3)]

    def body(n: int) -> None:
        parked.append(n)
        gates[n].wait(DEADLINE_S)

    def region() -> list[D.DTask]:
        return [D.spawn(body, D.Options(occupancy={Any: 0}), n) for n in range(3)]

    if form == "function":
        tasks = D.spawn_sequential(region)
    else:
        with D.sequential():
            tasks = region()
    assert all(t.istaskstarted() for t in tasks)
    for n in range(3):
        poll(lambda n=n: len(parked) > n)
        for _ in range(5):
            D.spawn(int, D.Options(occupancy={Any: 0})).fetch(timeout=DEADLINE_S)
        assert parked == list(range(n + 1))
        assert not tasks[n].isready()
        gates[n].set()
        D.wait(tasks[n])


def test_s11_sequential_order_without_data(cluster: D.Context) -> None:
    """§11: tasks of a sequential block run in spawn order even on several workers."""
    order: list[int] = []
    with D.sequential():
        tasks = [D.spawn(order.append, n) for n in range(20)]
    D.waitall(tasks)
    assert order == list(range(20))


@pytest.mark.parametrize("form", ["block", "function"])
def test_s11_wait_all(form: str) -> None:
    """§11: `wait_all` launches at once and is left when every task is done; it reveals no errors."""
    tasks: list[D.DTask] = []

    def region() -> None:
        tasks.extend([D.spawn(identity, 1), D.spawn(boom), D.spawn(identity, 2)])
        assert all(t.istaskstarted() for t in tasks)

    if form == "function":
        D.wait_all(region)
    else:
        with D.waiting():
            region()
    assert all(t.isready() for t in tasks)


@pytest.mark.parametrize("form", ["block", "function"])
def test_s11_wait_all_checks_errors_in_spawn_order(form: str, gate: threading.Event) -> None:
    """§11: with `check_errors` the first failure in spawn order is raised, after all are done."""
    tasks: list[D.DTask] = []

    def late() -> None:
        gate.wait(DEADLINE_S)
        raise KeyError("first")

    def early() -> None:
        gate.set()
        raise BoomError("second")

    def region() -> None:
        tasks.extend([D.spawn(late), D.spawn(early), D.spawn(int)])

    with D.Context(threads=2), pytest.raises(D.DTaskFailedError) as caught:
        if form == "function":
            D.wait_all(region, check_errors=True)
        else:
            with D.waiting(check_errors=True):
                region()
    assert caught.value.task.id == tasks[0].id
    assert all(t.isready() for t in tasks)


def test_s11_bulk_inside_sequential(cluster: D.Context) -> None:
    """§11: groups run in order, parallel within a group: every task of a group follows all of the one before."""
    order: list[int] = []
    tasks: list[D.DTask] = []
    with D.sequential():
        for group in range(4):
            with D.bulk():
                tasks += [D.spawn(order.append, group) for _ in range(5)]
    D.waitall(tasks)
    assert order == sorted(order) and len(order) == 20


def test_s11_bulk_inside_sequential_is_parallel_within_a_group(gate: threading.Event) -> None:
    """§11: two tasks of one group can run at the same time."""
    with D.Context(threads=2):
        meet = threading.Barrier(2)
        with D.sequential(), D.bulk():
            tasks = [D.spawn(meet.wait, DEADLINE_S) for _ in range(2)]
        # Fetching with a timeout leaves both bodies to the two slots.
        assert sorted(t.fetch(timeout=DEADLINE_S) for t in tasks) == [0, 1]


def test_s11_sequential_inside_bulk(cluster: D.Context) -> None:
    """§11: ordered, and launched together at the end."""
    order: list[int] = []
    with D.bulk():
        with D.sequential():
            tasks = [D.spawn(order.append, n) for n in range(10)]
        assert not any(t.istaskstarted() for t in tasks)
    D.waitall(tasks)
    assert order == list(range(10))


def test_s11_bulk_inside_bulk() -> None:
    """§11: an inner bulk hands its batch to the outer one, which launches it at its own end."""
    with D.bulk():
        with D.bulk():
            task = D.spawn(int, 7)
        assert not task.istaskstarted()
    assert D.fetch(task) == 7


def test_s11_bodies_start_with_the_default_queue() -> None:
    """§11, §4.2: the queue never propagates: a body spawned in bulk may fetch its own children."""

    def parent() -> int:
        return D.fetch(D.spawn(int, 5))

    with D.bulk():
        task = D.spawn(parent)
    assert D.fetch(task) == 5
    with D.sequential():
        nested = D.spawn(parent)
    assert D.fetch(nested) == 5
    assert "task_queue" not in (nested.options.propagates or ())


def test_s11_a_failure_in_a_sequence_fails_the_rest() -> None:
    """§11: each task waits for the previous one as an upstream, so its failure is theirs."""
    with D.sequential():
        a, b = D.spawn(boom), D.spawn(int)
    assert outcome(b) == (D.DTaskFailedError, BoomError)
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(b)
    assert caught.value.root.id == a.id


def test_s11_a_queue_of_ones_own() -> None:
    """§11: a `TaskQueue` with `enqueue(pairs)` decides when tasks are launched."""

    class Held(D.TaskQueue):
        def __init__(self, outer: Any) -> None:
            self.outer, self.pairs = outer, []

        def enqueue(self, pairs: Any) -> None:
            self.pairs.extend(pairs)

    held = Held(D.DefaultTaskQueue())
    with D.with_options(task_queue=held):
        task = D.spawn(int, 3)
    assert not task.istaskstarted() and len(held.pairs) == 1
    held.outer.enqueue(held.pairs)
    assert D.fetch(task) == 3


def test_s11_an_empty_block_is_fine() -> None:
    """§11: blocks without a task do nothing."""
    for block in (D.bulk, D.sequential, D.waiting):
        with block():
            pass
