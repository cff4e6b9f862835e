"""spec/scheduler.md §17.2-17.4, §17.9: states, edges, order, finishing."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    failure,
    identity,
    of_task,
    outcome,
    poll,
    settled,
)


def test_s17_11_diamond_with_invariants(cluster: D.Context) -> None:
    """§17.11 accept: 7 -> +1, *2 -> sum is 22, and the invariants hold before and after."""
    source = D.spawn(identity, 7)
    left, right = D.spawn(lambda x: x + 1, source), D.spawn(lambda x: x * 2, source)
    total = D.spawn(add, left, right)
    D.check(D.eager_state())
    assert D.fetch(total) == 22
    D.check(D.eager_state())


def test_s17_2_late_subscribers_are_answered_from_the_result() -> None:
    """§17.2: the lists are sealed at finish: whoever comes later is answered from the stored result."""
    task = D.spawn(identity, 5)
    D.wait(task)
    for _ in range(3):
        assert D.fetch(task) == 5 == task.future().result(DEADLINE_S)
        assert D.fetch(D.spawn(identity, task)) == 5


def test_s17_2_registering_races_finishing(two: D.Context) -> None:
    """§17.2, §17.3: dependents wired while their upstream finishes are neither lost nor run early."""
    for n in range(2000):
        up = D.spawn(identity, n)
        downs = [D.spawn(add, up, 1) for _ in range(3)]
        assert [d.fetch(timeout=DEADLINE_S) for d in downs] == [n + 1] * 3
    D.check(D.eager_state())


def test_s17_3_results_are_pushed_before_the_upstream_goes() -> None:
    """§17.3: an upstream whose handle was dropped hands its result on to a dependent that runs much later."""
    with D.Context(driver=D.InlineDriver()):
        up = D.spawn(lambda: ["x"])
        other = D.spawn(int)
        down = D.spawn(lambda a, b: a, up, other)
        del up
        gc.collect()
        assert D.fetch(down) == ["x"]


def test_s17_2_a_dependent_does_not_keep_its_inputs() -> None:
    """§17.2: a finished task with no handle is deleted: its value goes although its consumer is still held."""

    class Value:
        pass

    with D.Context(threads=1):
        up = D.spawn(Value)
        down = D.spawn(lambda v: None, up)
        D.wait(down)
        alive = weakref.ref(D.fetch(up))
        del up
        D.spawn(int).fetch(timeout=DEADLINE_S)

        def gone() -> bool:
            gc.collect()
            return alive() is None

        poll(gone)
        assert down.isready()


def _schedule_order(log: list[Any]) -> list[int]:
    return [e.id.thunk_id for e in log if e.category == "schedule" and e.phase == "start"]


def test_s17_4_submission_order() -> None:
    """§17.4: independent tasks are scheduled in the order of their submission."""
    log: list[Any] = []
    with D.Context(driver=D.InlineDriver(workers={1: 1}), log_sink=log):
        tasks = [D.spawn(int) for _ in range(20)]
        D.waitall(tasks)
        events = settled(log, *tasks)
    assert _schedule_order(events) == [t.id for t in tasks]


def test_s17_4_freed_dependents_most_recent_first() -> None:
    """§17.4: dependents freed by one finish are taken most-recently-registered first."""
    log: list[Any] = []
    with D.Context(driver=D.InlineDriver(workers={1: 1}), log_sink=log):
        up = D.spawn(identity, 1)
        downs = [D.spawn(identity, up) for _ in range(5)]
        D.waitall(downs)
        events = settled(log, up, *downs)
    assert _schedule_order(events) == [up.id, *(t.id for t in reversed(downs))]


def test_s17_9_failures_go_depth_first() -> None:
    """§17.9: on failure the futures come first, then the dependents depth-first."""
    log: list[Any] = []
    with D.Context(driver=D.InlineDriver(workers={1: 1}), log_sink=log):
        a = D.spawn(boom)
        b1, b2 = D.spawn(identity, a), D.spawn(identity, a)
        c1, c2 = D.spawn(identity, b1), D.spawn(identity, b2)
        D.waitall([a, b1, b2, c1, c2])
        events = settled(log, a, b1, b2, c1, c2)
    order = [e.id.thunk_id for e in events if e.category == "finish" and e.phase == "start"]
    assert order[0] == a.id and sorted(order) == [a.id, b1.id, b2.id, c1.id, c2.id]
    assert order.index(c1.id) == order.index(b1.id) + 1
    assert order.index(c2.id) == order.index(b2.id) + 1


def test_s17_9_a_failure_reaches_a_deep_chain() -> None:
    """§17.9: failing dependents depth-first works for a chain of 50,000, without recursion limits."""
    with D.Context(driver=D.InlineDriver(workers={1: 1})):
        first = D.spawn(boom)
        last = first
        for _ in range(50_000):
            last = D.spawn(identity, last)
        error = failure_inline(last)
        assert error.root.id == first.id and error.task.id == last.id


def failure_inline(task: D.DTask) -> Any:
    """The error of a task of the inline driver."""
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    return caught.value


def test_s17_9_a_failed_task_fails_a_shared_dependent_once() -> None:
    """§17.9: a dependent of two failing upstreams has one finish; the first failure wins."""
    log: list[Any] = []
    with D.Context(driver=D.InlineDriver(workers={1: 1}), log_sink=log):
        a, b = D.spawn(boom), D.spawn(boom)
        join = D.spawn(add, a, b)
        D.waitall([a, b, join])
        events = settled(log, a, b, join)
    assert [e.phase for e in of_task(events, join, "finish")] == ["start", "finish"]
    assert failure(join).root.id in (a.id, b.id)


def test_s17_2_the_scheduler_stays_clean_after_every_way_to_end() -> None:
    """§17.2: successes, failures, skips, scope errors and cancellations leave no credit and no entry behind."""
    with D.Context(threads=2) as context:
        gate = threading.Event()
        nowhere = D.Options(scope=D.ExactScope(D.ThreadProc(9, 9)))
        for _ in range(50):
            blocked = D.spawn(gate.wait, D.Options(occupancy={Any: 0}), DEADLINE_S)
            bad, lost = D.spawn(boom), D.spawn(int, nowhere)
            tasks = [D.spawn(identity, t) for t in (bad, lost, blocked, D.spawn(int))]
            D.cancel(blocked)
            D.waitall([*tasks, bad, lost, blocked])
        gate.set()
        context.wait_idle()
        D.check(D.eager_state())


@pytest.mark.parametrize("seed", range(5))
def test_s17_3_random_graphs_give_the_sequential_result(seed: int) -> None:
    """§17.3: whatever the graph, and whatever the driver, results are those of running it in order."""
    rng = random.Random(seed)
    shape = [sorted(rng.sample(range(n), min(n, rng.randrange(4)))) for n in range(300)]
    want: list[int] = []
    for n, ups in enumerate(shape):
        want.append((n + sum(want[u] for u in ups)) % 1_000_003)
    driver = D.InlineDriver(workers={1: 2, 2: 2}, seed=seed) if seed % 2 else "threads"
    with D.Context(driver=driver):
        tasks: list[D.DTask] = []
        for n, ups in enumerate(shape):
            tasks.append(D.spawn(lambda n, *x: (n + sum(x)) % 1_000_003, n, *(tasks[u] for u in ups)))
        assert D.fetch_all(tasks) == want
        D.check(D.eager_state())


def test_s17_2_unlaunched_tasks_of_a_dead_queue_hold_nothing() -> None:
    """§17.2: an unlaunched upstream is refused or awaited, never silently taken as finished."""
    with D.bulk():
        up = D.spawn(identity, 5)
        down = D.spawn(identity, up)
    assert D.fetch(down) == 5
    assert outcome(D.spawn(boom)) == (D.DTaskFailedError, BoomError)
