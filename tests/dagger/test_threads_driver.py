"""The thread driver: slots, helping, blocking bodies, pinned tasks, cancellation, the end of everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.tasks import atomics
from tests.dagger.acceptance.stubs import Meter


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def two() -> Iterator[D.Context]:
    """A context of two slots."""
    with D.Context(threads=2) as context:
        yield context


def test_never_more_bodies_than_slots_while_a_thread_helps(two: D.Context) -> None:
    """A helping fetch borrows a slot, so two slots run two bodies, never three."""
    meter = Meter()

    def body() -> None:
        meter()
        time.sleep(0.0005)

    for _ in range(20):
        tasks = [D.spawn(body) for _ in range(20)]
        for task in tasks:
            task.fetch()
    assert 1 <= meter.most <= 2


def test_a_blocked_body_gives_its_slot_back() -> None:
    """With one slot, a body that waits for an outer task lets that task's body run."""
    with D.Context(threads=1):
        gate = threading.Event()
        inner = D.spawn(gate.wait, 10)
        outer = D.spawn(lambda: D.waitany([inner], timeout=10))
        free = D.spawn(gate.set)
        # `inner` holds the one slot: nothing else can run until the gate opens from outside.
        assert not free.isready()
        gate.set()
        assert D.fetch(inner) is True
        D.fetch(outer)
        D.fetch(free)


def test_many_bodies_block_and_all_go_on(two: D.Context) -> None:
    """Twenty bodies wait for one task in two slots; each gets a slot again and ends."""
    gate = threading.Event()
    target = D.spawn(D.Options(occupancy={D.ThreadProc: 0}) and gate.wait, 10)

    def waits(n: int) -> int:
        target.fetch(timeout=10)
        return n

    tasks = [D.spawn(waits, n) for n in range(20)]
    gate.set()
    assert D.fetch_all(tasks) == list(range(20))
    assert two.core is not None
    eventually(two.core.driver.is_idle)
    assert two.core.driver.blocked == 0


def test_zero_occupancy_starts_beside_a_full_task(two: D.Context) -> None:
    """spec §4.1: a task of occupancy 0 runs on a slot that a full task holds."""
    gate, ran = threading.Event(), threading.Event()
    here = D.ExactScope(D.ThreadProc(1, 1))
    full = D.spawn(gate.wait, D.Options(scope=here), 10)
    light = D.spawn(ran.set, D.Options(scope=here, occupancy={D.ThreadProc: 0}))
    D.fetch(light, timeout=10)
    assert ran.is_set()
    assert not full.isready()
    gate.set()
    assert D.fetch(full) is True


def test_shares_fit_side_by_side_and_no_more(two: D.Context) -> None:
    """Of three tasks that take half a slot each, two run at once."""
    meter, gate = Meter(), threading.Event()
    options = D.Options(scope=D.ExactScope(D.ThreadProc(1, 2)), occupancy={D.ThreadProc: 0.5})
    tasks = [D.spawn(meter, options, hold=gate) for _ in range(3)]
    eventually(lambda: meter.now == 2)
    gate.set()
    D.waitall(tasks)
    assert meter.most == 2


def test_pinned_and_shared_tasks_share_the_slots(two: D.Context) -> None:
    """Pinned tasks run on their slot and shared ones anywhere, none is lost."""

    def where() -> tuple[int, int]:
        processor = D.task_processor()
        return processor.owner, processor.tid

    pinned = [D.spawn(where, D.Options(scope=D.scope(worker=1, thread=n % 2 + 1))) for n in range(100)]
    shared = [D.spawn(where) for _ in range(100)]
    assert D.fetch_all(pinned) == [(1, n % 2 + 1) for n in range(100)]
    assert set(D.fetch_all(shared)) <= {(1, 1), (1, 2)}


def test_nested_fetch_under_an_exact_scope() -> None:
    """spec §1.2: spawn and fetch inside a body works on one thread only, pinned to it too."""
    with D.Context(threads=1), D.with_options(scope=D.ExactScope(D.ThreadProc(1, 1))):

        def inner(x: int) -> int:
            return x + 1

        def outer(x: int) -> int:
            return int(D.fetch(D.spawn(inner, x)))

        assert D.fetch(D.spawn(outer, 10)) == 11


def test_cancelled_running_body_gives_its_slot_back() -> None:
    """spec §2: after an abandoned body the only slot runs the next task at once."""
    gate = threading.Event()
    with D.Context(threads=1) as context:
        started = threading.Event()

        def body() -> bool:
            started.set()
            gate.wait(30)
            return D.task_cancelled()

        task = D.spawn(body)
        assert started.wait(10)
        D.cancel(task)
        with pytest.raises(D.DTaskFailedError) as caught:
            task.fetch(timeout=10)
        assert isinstance(D.unwrap_exception(caught.value), D.TaskCancelled)
        assert D.spawn(lambda: 5).fetch(timeout=10) == 5
        gate.set()
        assert context.core is not None
        eventually(lambda: not context.core.running)  # type: ignore[union-attr]
        assert D.spawn(lambda: 6).fetch(timeout=10) == 6
        eventually(context.core.driver.is_idle)
        assert len(context.core.driver.free) == 1


def test_ten_thousand_cancelled_tasks_leave_nothing(two: D.Context) -> None:
    """Cancelled tasks leave no entry in any queue, set or slot."""
    gate = threading.Event()
    blockers = [D.spawn(gate.wait, 30) for _ in range(2)]
    tasks = [D.spawn(int) for _ in range(10_000)]
    for task in tasks:
        task.cancel()
    gate.set()
    D.waitall(blockers)
    assert all(task.isready() for task in tasks)
    core = two.core
    assert core is not None
    eventually(lambda: core.driver.is_idle() and not core.queue and not core.running)
    D.check(core)


def test_halt_and_restart() -> None:
    """spec §2: a halt fails what waits, directly; the next spawn starts a new scheduler, the sink stays."""
    log: list[Any] = []
    with D.Context(threads=1, log_sink=log) as context:
        gate = threading.Event()
        running = D.spawn(gate.wait, 30)
        waiting = D.spawn(lambda x: x, running)
        first = context.core
        D.cancel(halt_sch=True)
        gate.set()
        assert D.eager_state() is None
        with pytest.raises(D.DTaskFailedError):
            waiting.fetch(timeout=10)
        assert D.spawn(int).fetch(timeout=10) == 0
        assert context.core is not first
        assert context.log_sink is log


def test_fetch_in_a_helper_thread_of_a_body(two: D.Context) -> None:
    """A thread that a body starts belongs to the body and may fetch, though it holds no slot."""

    def body() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(D.fetch(D.spawn(int, 7), timeout=10)))
        thread.start()
        thread.join(10)
        return found[0]

    assert D.fetch(D.spawn(body)) == 7


def test_results_go_with_their_handles(two: D.Context) -> None:
    """A finished task whose handle is dropped keeps nothing alive, in no queue and on no parked thread."""
    import gc
    import weakref

    class Value:
        """Something with weak references."""

    task = D.spawn(Value)
    value = weakref.ref(task.fetch())
    dependent = D.spawn(lambda v: None, task)
    dependent.fetch()
    del task
    for _ in range(50):
        D.spawn(int).fetch()
    eventually(lambda: gc.collect() is not None and value() is None)


@pytest.mark.parametrize("claim", [atomics.claim_gil, atomics.claim_locked])
def test_claim_has_one_winner(claim: Callable[[D.DTask], bool]) -> None:
    """Of many threads that claim a queued task one gets it, with and without the GIL's help."""
    with D.Context(driver=D.InlineDriver()):
        for _ in range(50):
            task = D.spawn(int)
            wins: list[bool] = []
            barrier = threading.Barrier(4)

            def contend(task: D.DTask = task, wins: list[bool] = wins, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                wins.append(claim(task))

            threads = [threading.Thread(target=contend) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(wins) == [False, False, False, True]
            D.cancel(task)


def test_bad_contexts() -> None:
    """Values that can't work are refused where they are given."""
    for bad in ({"threads": 0}, {"threads": "two"}, {"workers": -1}, {"driver": "fibers"}, {"log_sink": 5}):
        with pytest.raises(D.InvalidOptionError):
            D.Context(**bad)  # type: ignore[arg-type]
    with pytest.raises(D.InvalidOptionError):
        D.cancel("task 5")
    with pytest.raises(D.InvalidOptionError):
        D.fetch(5)
    with pytest.raises(D.InvalidOptionError):
        D.wait(5)  # type: ignore[arg-type]


def test_profiled_bodies_get_their_own_samples(two: D.Context) -> None:
    """With `profile` on, the compute's finish carries the samples of its own thread, nothing else does."""
    log: list[Any] = []
    two.log_sink, two.profile_computes = log, True

    def spin() -> None:
        end = time.monotonic() + 0.08
        while time.monotonic() < end:
            sum(range(100))

    D.fetch(D.spawn(spin))
    sampled = [e for e in log if e.profiler_samples]
    assert {(e.category, e.phase) for e in sampled} == {("compute", "finish")}
    samples = sampled[0].profiler_samples
    assert samples.tasks == (sampled[0].timeline.thread_id,)
    assert any("spin" in frame for sample in samples.samples for frame in sample[1])


def test_a_retry_of_a_task_that_waited_for_inputs() -> None:
    """A body that fails once runs again, also where its task had to wait for its inputs; with a log and without."""
    for sink in (None, []):
        with D.Context(threads=2, log_sink=sink):
            for _ in range(200):
                tries: list[int] = []

                def body(x: int, tries: list[int] = tries) -> int:
                    tries.append(x)
                    if len(tries) == 1:
                        raise ValueError(x)
                    return x

                gate = threading.Event()
                up = D.spawn(lambda gate=gate: gate.wait(60) and 5)
                task = D.spawn(body, D.Options(retries=1), up)
                gate.set()
                assert D.fetch(task, timeout=60) == 5 and tries == [5, 5]


def test_a_defect_of_ours_fails_the_task_and_not_the_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Should the scheduler itself raise while it runs a task, that task fails, loudly, and the thread goes on."""
    from otel_timespan.dagger.drivers import threads as module

    real = module.run

    def broken(core: Any, task: Any, slot: Any, **more: Any) -> Any:
        if task.options.name == "cursed":
            raise ZeroDivisionError("ours")
        return real(core, task, slot, **more)

    monkeypatch.setattr(module, "run", broken)
    with D.Context(threads=1) as context:
        for options in (D.Options(name="cursed"), D.Options(name="cursed", occupancy={Any: 0.5})):
            task = D.spawn(int, options)
            with pytest.raises(D.DTaskFailedError, match="defect of otel_timespan"):
                D.fetch(task, timeout=60)
            assert D.fetch(D.spawn(int), timeout=60) == 0
        context.wait_idle()
        D.check(D.eager_state())
    assert "defect of otel_timespan" in caplog.text
