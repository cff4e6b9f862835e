"""Placement by cost, learned costs, stealing, custom processors with slots of their own. spec/scheduler.md §17."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, add, failure, identity, poll, where


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No scheduler before or after."""
    D.eager_context().shutdown()
    yield
    D.eager_context().shutdown()


@dataclass(frozen=True)
class Device(D.Processor):
    """A processor of a test: adds 100 to what ints become there."""

    owner: int = 1
    number: int = 1

    def get_parent(self) -> D.Processor:
        return D.OSProc(self.owner)

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        return argtype is int

    def execute(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return 100 + f(*args, **kwargs)


ON_DEVICE = D.Options(scope=D.ProcessorTypeScope(Device))


@pytest.fixture
def device() -> Iterator[Device]:
    """One device on this worker."""
    D.add_processor_callback(Device, "test-device")
    yield Device()
    D.delete_processor_callback("test-device")


# ---- custom processors ----------------------------------------------------------------------------------


def test_a_custom_processor_runs_its_tasks(device: Device) -> None:
    """A task that may run on devices only runs there, on threads, besides tasks on threads."""
    with D.Context(threads=2):
        tasks = [D.spawn(identity, ON_DEVICE, n) for n in range(20)]
        plain = [D.spawn(identity, n) for n in range(20)]
        assert D.fetch_all(tasks) == [100 + n for n in range(20)]
        assert D.fetch_all(plain) == list(range(20))
        assert D.fetch(tasks[0], raw=True).processor == device


def test_a_device_runs_one_whole_body_at_a_time(device: Device) -> None:
    """Bodies on one device exclude each other, however many threads there are."""
    inside: list[int] = []
    most: list[int] = []

    def body(n: int) -> int:
        inside.append(n)
        most.append(len(inside))
        time.sleep(0)
        inside.remove(n)
        return n

    with D.Context(threads=3):
        D.fetch_all([D.spawn(body, ON_DEVICE, n) for n in range(50)])
    assert max(most) == 1


def test_a_body_on_a_device_may_fetch_tasks_of_threads(device: Device) -> None:
    """A blocked body gives the device back, and gets it again."""
    with D.Context(threads=1):
        inner = lambda n: D.fetch(D.spawn(identity, n))  # noqa: E731
        assert D.fetch_all([D.spawn(inner, ON_DEVICE, n) for n in range(5)]) == [100 + n for n in range(5)]


def test_an_incompatible_argument_type_has_no_processor(device: Device) -> None:
    """A device that does not take the type of an argument is no candidate."""
    with D.Context(threads=1):
        error = D.unwrap_exception(failure(D.spawn(identity, ON_DEVICE, "text")))
        assert isinstance(error, D.SchedulingError) and error.code == "no_processors"


def test_a_processor_that_appears_later_is_used_and_one_that_goes_is_not() -> None:
    """Callbacks take effect on a running scheduler; tasks that waited for a lost device are placed again."""
    with D.Context(threads=1):
        assert D.fetch(D.spawn(add, 1, 2)) == 3
        D.add_processor_callback(Device, "late-device")
        try:
            assert D.fetch(D.spawn(identity, ON_DEVICE, 1)) == 101
            gate, begun = threading.Event(), threading.Event()
            blocker = D.spawn(lambda: begun.set() or (gate.wait(DEADLINE_S) and 0), ON_DEVICE)
            assert begun.wait(DEADLINE_S)
            waiting = D.spawn(identity, ON_DEVICE, 5)
        finally:
            D.delete_processor_callback("late-device")
        error = D.unwrap_exception(failure(waiting))
        assert isinstance(error, D.SchedulingError) and error.code == "no_processors"
        gate.set()
        assert D.fetch(blocker) == 100


def test_a_hook_that_raises_fails_its_task_only(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `iscompatible_func` raises is the failure of the task that was to be placed; others go on."""

    def broken(self: Device, opts: Any, f: Any) -> bool:
        raise RuntimeError("no idea")

    with D.Context(threads=1):
        monkeypatch.setattr(Device, "iscompatible_func", broken)
        assert "no idea" in str(failure(D.spawn(identity, ON_DEVICE, 1)))
        assert D.fetch(D.spawn(identity, 1)) == 1


# ---- stealing -------------------------------------------------------------------------------------------


def _half() -> D.Options:
    return D.Options(occupancy={Any: 0.6})


def test_an_idle_slot_steals_what_does_not_fit_elsewhere() -> None:
    """A pinned task that waits behind a blocked one runs on another slot of its scope, with a steal event."""
    log: list[Any] = []
    with D.Context(threads=2, log_sink=log) as context:
        gate, begun = threading.Event(), threading.Barrier(3)
        here = D.UnionScope(D.ExactScope(D.ThreadProc(1, 1)), D.ExactScope(D.ThreadProc(1, 2)))

        def hold() -> None:
            begun.wait(DEADLINE_S)
            gate.wait(DEADLINE_S)

        pins = [D.ExactScope(D.ThreadProc(1, n)) for n in (1, 2)]
        holders = [D.spawn(hold, D.Options(scope=pin, occupancy={Any: 0.6})) for pin in pins]
        begun.wait(DEADLINE_S)
        waiting = [D.spawn(where, D.Options(scope=here, occupancy={Any: 0.5})) for _ in range(4)]
        D.cancel(holders[0])  # its slot is free now, the other one is not
        found = {D.fetch(task, timeout=DEADLINE_S) for task in waiting}
        assert found == {D.ThreadProc(1, 1)}
        gate.set()
        context.wait_idle()
        D.check(D.eager_state())

        def steals() -> list[Any]:
            return [e for e in list(log) if e.category == "proc_steal_local" and e.phase == "finish" and e.timeline]

        poll(lambda: steals() or not any(t.id for t in waiting))
        for event in steals():
            assert event.timeline.from_proc == D.ThreadProc(1, 2) and event.id.processor == D.ThreadProc(1, 1)
            assert event.timeline.thunk_id in {task.id for task in waiting}


def test_a_task_of_one_slot_is_never_stolen() -> None:
    """Stealing respects scopes: what may run on one slot only waits for it, whoever is idle."""
    with D.Context(threads=2):
        gate, begun = threading.Event(), threading.Event()
        pin = D.Options(scope=D.ExactScope(D.ThreadProc(1, 2)))
        holder = D.spawn(lambda: begun.set() or gate.wait(DEADLINE_S), pin)
        assert begun.wait(DEADLINE_S)
        waiting = [D.spawn(where, pin) for _ in range(5)]
        assert D.fetch(D.spawn(identity, 3)) == 3
        assert not any(task.isready() for task in waiting)
        gate.set()
        assert {D.fetch(task) for task in waiting} == {D.ThreadProc(1, 2)}
        D.wait(holder)


@pytest.mark.parametrize("threads", [2, 3])
def test_pinned_and_stolen_work_all_runs_once(threads: int) -> None:
    """Thousands of small tasks of several shares and scopes run exactly once each, and all slots come back."""
    counts: dict[int, int] = {}

    def body(n: int) -> int:
        counts[n] = counts.get(n, 0) + 1
        return n

    exact = [D.ExactScope(D.ThreadProc(1, n + 1)) for n in range(threads)]
    with D.Context(threads=threads) as context:
        options = [
            D.Options(scope=D.UnionScope(*exact), occupancy={Any: 0.3}),
            D.Options(scope=exact[0]),
            D.Options(scope=D.UnionScope(exact[0], exact[-1])),
            D.Options(occupancy={Any: 0.0}),
            D.Options(),
        ]
        tasks = [D.spawn(body, options[n % len(options)], n) for n in range(3000)]
        assert D.fetch_all(tasks) == list(range(3000))
        context.wait_idle()
        D.check(D.eager_state())
        assert not D.eager_state().waiting and set(counts.values()) == {1}


# ---- costs ----------------------------------------------------------------------------------------------


def nap() -> None:
    """A body that takes time but no CPU."""
    time.sleep(0.02)


def test_run_times_are_learned_as_wall_time_first_sample_as_is() -> None:
    """A body that sleeps costs what it slept: the first sample is not halved, blocking counts."""
    D.fetch(D.spawn(nap))
    state = D.eager_state()
    learned = state.signature_time_cost[D.sch.signature(nap), D.ThreadProc]
    assert learned >= 20e6
    with D.Context(driver=D.InlineDriver()):
        waiting = D.spawn(nap)
        D.sch.set_time_cost(D.sch.signature(nap), D.ThreadProc, learned)
        assert D.sch.has_capacity(D.eager_state(), D.ThreadProc(1, 1), waiting).time_ns == learned


def test_lambdas_of_one_place_have_one_signature() -> None:
    """Functions made by the same code count as one, so that loops can learn; closures are not kept alive."""
    made = [lambda: n for n in range(2)]  # noqa: B023
    assert D.sch.signature(made[0]) == D.sch.signature(made[1])
    assert D.sch.signature(made[0]) != D.sch.signature(lambda: 0)


def test_the_tables_of_costs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that make functions at run time don't fill the tables: the oldest entries go."""
    from otel_timespan.dagger.core import costs

    monkeypatch.setattr(costs, "MAX_LEARNED", 5)
    table = costs.Costs()
    for n in range(20):
        table.learn_run(D.sch.signature(int, [(1, type(f"T{n}", (), {})())]), D.ThreadProc, n, 8)
    assert len(table.time) == 5


def test_pressure_spreads_equal_tasks_over_workers() -> None:
    """Equally good workers get equally many tasks, as what waits there counts; it ends at exactly 0."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1, 3: 1}, seed=4)):
        state = D.eager_context().start()
        for worker in (1, 2, 3):
            D.sch.set_transfer_rate(worker, 1e9)
        D.sch.set_time_cost(D.sch.signature(where), D.ThreadProc, 50e6)
        tasks = [D.spawn(where) for _ in range(30)]
        waiting = {worker: len(queue) for worker, queue in state.shared.items()}
        assert sorted(waiting.values()) == [10, 10, 10]
        D.waitall(tasks)
        assert all(ns == 0 for table in state.worker_time_pressure.values() for ns in table.values())


def test_cancelled_and_skipped_tasks_give_their_reservation_back() -> None:
    """Whatever way a placed task ends, its expected time leaves the pressure."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1}, seed=1)):
        state = D.eager_context().start()
        tasks = [D.spawn(identity, n) for n in range(10)]
        assert sum(ns for table in state.worker_time_pressure.values() for ns in table.values()) > 0
        for task in tasks:
            D.cancel(task)
        assert all(ns == 0 for table in state.worker_time_pressure.values() for ns in table.values())


def test_data_attracts_tasks() -> None:
    """A task goes where its large input is, as moving it costs more than waiting."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1}, seed=3)):
        make = D.spawn(bytes, D.Options(scope=D.scope(worker=2)), 10_000_000)
        D.wait(make)
        assert {D.fetch(D.spawn(lambda data: D.myid(), make)) for _ in range(5)} == {2}


def test_an_abandoned_body_gives_back_its_own_share() -> None:
    """Of two bodies that share a slot, cancelling one frees exactly what that one took."""
    with D.Context(threads=1) as context:
        gate = threading.Event()
        begun = {share: threading.Event() for share in (0.3, 0.6)}

        def body(share: float) -> None:
            begun[share].set()
            gate.wait(DEADLINE_S)

        def shared(share: float) -> D.Options:
            return D.Options(occupancy={Any: share})

        large = D.spawn(body, shared(0.6), 0.6)
        small = D.spawn(body, shared(0.3), 0.3)
        assert begun[0.3].wait(DEADLINE_S) and begun[0.6].wait(DEADLINE_S)
        (slot,) = D.eager_state().slots.values()
        D.cancel(small)
        poll(lambda: abs(slot.used - 0.6) < 1e-6)
        assert D.fetch(D.spawn(identity, shared(0.4), 1), timeout=DEADLINE_S) == 1
        wide = D.spawn(identity, shared(0.5), 2)
        assert not wide.isready()
        gate.set()
        assert D.fetch(wide, timeout=DEADLINE_S) == 2
        D.wait(large)
        context.wait_idle()
        assert slot.used == 0
