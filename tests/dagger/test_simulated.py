"""The driver of a simulated clock: makespans are exact, policies can be compared. design/architecture.md §2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from bench.placement import POLICIES, SHAPES, makespan
from otel_timespan import dagger as D
from otel_timespan.dagger.places.topology import topology


class Blob(NamedTuple):
    """A result of a pretended size."""

    nbytes: int


def work(seconds: float, nbytes: int = 8, *inputs: Any) -> Blob:
    """Takes as long as it says."""
    return Blob(nbytes)


@pytest.fixture(autouse=True)
def fresh_topology() -> Iterator[None]:
    """Pretended workers leave no trace."""
    yield
    topology.reset()


def _driver(workers: dict[int, int], **more: Any) -> D.SimulatedDriver:
    return D.SimulatedDriver(workers, lambda task: task._args[0], **more)


def test_equal_tasks_take_their_number_over_the_slots() -> None:
    """40 tasks of 10 ms on 4 slots of one worker take 100 ms, to the nanosecond."""
    driver = _driver({1: 4})
    with D.Context(driver=driver):
        D.waitall([D.spawn(work, 0.01) for _ in range(40)])
        assert driver.now == 1 + 100_000_000


def test_a_chain_takes_the_sum_of_its_steps() -> None:
    """A chain goes no faster with more slots, and slower workers take longer by their speed."""
    driver = _driver({1: 8}, speeds={1: 0.5})
    with D.Context(driver=driver):
        task = D.spawn(work, 0.01)
        for _ in range(9):
            task = D.spawn(work, 0.01, 8, task)
        assert D.fetch(task) == Blob(8)
        assert driver.now == 1 + 200_000_000


def test_data_on_another_worker_takes_time_to_move() -> None:
    """A task bound to another worker than its input waits for the transfer, which teaches the rate."""
    driver = _driver({1: 1, 2: 1}, bandwidth=1e8)
    with D.Context(driver=driver):
        data = D.spawn(work, D.Options(scope=D.scope(worker=1)), 0.01, 10_000_000)
        end = D.spawn(work, D.Options(scope=D.scope(worker=2)), 0.01, 8, data)
        D.wait(end)
        assert driver.now == 1 + 120_000_000 and driver.moved_bytes == 10_000_000
        assert D.eager_state().worker_transfer_rate == {2: 1e8}


def test_idle_workers_take_from_busy_ones() -> None:
    """One large result does not tie 100 tasks to its worker: the others take their share, and steals are events."""
    log: list[Any] = []
    driver = _driver({1: 1, 2: 1, 3: 1, 4: 1}, bandwidth=1e9)
    with D.Context(driver=driver, log_sink=log):
        data = D.spawn(work, 0.01, 1_000_000)
        D.waitall([D.spawn(work, 0.01, 8, data) for _ in range(100)])
        seconds = driver.now / 1e9
    assert seconds < 0.5  # alone: 1.01
    took = [e.timeline for e in log if e.category == "proc_steal_local" and e.phase == "finish"]
    assert took and all(isinstance(t.from_proc, D.OSProc) for t in took)


def test_a_pinned_task_is_never_taken_from_afar() -> None:
    """Whatever is idle: what is bound to one worker runs there."""
    driver = _driver({1: 1, 2: 1})
    with D.Context(driver=driver):
        tasks = [D.spawn(work, D.Options(scope=D.scope(worker=1)), 0.01) for _ in range(10)]
        D.waitall(tasks)
        assert {D.fetch(t, raw=True).processor for t in tasks} == {D.ThreadProc(1, 1)}
        assert driver.now == 1 + 100_000_000


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_policy_runs_every_shape_the_same_way_twice(shape: str, policy: str) -> None:
    """The same seed gives the same makespan; no policy loses a task or leaves pressure behind."""
    assert makespan(shape, policy, 3) == makespan(shape, policy, 3) > 0


def test_run_times_are_learned_in_simulated_time() -> None:
    """The learned cost of a signature is the simulated duration."""
    with D.Context(driver=_driver({1: 1})):
        D.wait(D.spawn(work, 0.25))
        (learned,) = D.eager_state().signature_time_cost.values()
        assert learned == 250_000_000
