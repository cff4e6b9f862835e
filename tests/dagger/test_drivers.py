"""What every driver must do: one suite over threads, worker processes, the inline driver and one of a simulated clock.

Bodies may run in another process: what a test wants to see of them comes back as a value, or as a file.

The contract stands in drivers/base.py. A new driver joins by one line in `DRIVERS`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.core.invariants import check_idle
from otel_timespan.dagger.drivers.base import METHODS, Driver, methods_missing
from otel_timespan.dagger.drivers.threads import ThreadsDriver
from tests.backends import eventually

WORKERS: list[int] = []
"""Two worker processes for the tests of this file, from the first that needs them on."""


@pytest.fixture(scope="module", autouse=True)
def _workers_end() -> Iterator[None]:
    yield
    D.cluster.remove_workers(WORKERS)
    WORKERS.clear()


def on_workers() -> D.Context:
    """A context that uses them, and not this process."""
    WORKERS[:] = WORKERS or D.cluster.add_workers(2)
    return D.Context(procs=WORKERS)


DRIVERS: dict[str, Callable[[], D.Context]] = {
    "threads": lambda: D.Context(threads=2),
    "processes": on_workers,
    "inline": lambda: D.Context(driver=D.InlineDriver({1: 2})),
    "inline, by chance": lambda: D.Context(driver=D.InlineDriver({1: 2}, seed=5)),
    "simulated": lambda: D.Context(driver=D.SimulatedDriver({1: 2}, duration=lambda task: 0.01)),
}


@pytest.fixture(params=DRIVERS, ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def context(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """A context with the driver; when the test is over nothing is left of its tasks."""
    with DRIVERS[request.param]() as context:
        yield context
        context.wait_idle()
        if context.core is not None:
            eventually(lambda: context.core is None or context.core.driver.is_idle())
            check_idle(context.core)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dagger-loop")]


def add(*values: int) -> int:
    """Their sum."""
    return sum(values)


def boom() -> None:
    """Fail."""
    raise ValueError("boom")


def write(path: Path, text: str) -> None:
    """Add to a file, at once."""
    with path.open("a") as file:
        file.write(text)


def test_a_graph_runs(context: D.Context, tmp_path: Path) -> None:
    """Dependents get the results of their upstreams, each body runs once."""
    ran = tmp_path / "ran"

    def body(number: int, *inputs: int) -> int:
        write(ran, str(number))
        return number + sum(inputs)

    top = D.spawn(body, 1)
    left, right = D.spawn(body, 2, top), D.spawn(body, 3, top)
    assert D.fetch(D.spawn(body, 4, left, right)) == 4 + (2 + 1) + (3 + 1)
    assert ran.read_text() in ("1234", "1324")


def test_nothing_runs_unless_stepped(context: D.Context) -> None:
    """A stepped driver runs nothing by itself, one task a step, and says when nothing is left."""
    driver = context.start().driver
    if not driver.is_stepped:
        assert driver.step() is False
        return
    first = D.spawn(add, 1)
    second = D.spawn(add, first)
    assert not first.isready()
    assert driver.step() is True
    assert first.isready() and not second.isready()
    assert driver.step() is True
    assert second.isready()
    assert driver.step() is False


def test_a_failure_ends_all_that_depends_on_it(context: D.Context) -> None:
    """A body that raises fails its task and, however far, its dependents; siblings go on."""
    broken = D.spawn(boom)
    chain = D.spawn(add, broken)
    for _ in range(300):
        chain = D.spawn(add, chain)
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(chain)
    assert isinstance(D.unwrap_exception(caught.value), ValueError)
    assert D.fetch(D.spawn(add, 2)) == 2
    with pytest.raises(D.DTaskFailedError):
        D.fetch(D.spawn(add, broken))  # it failed before this one came


def test_effects_are_performed(context: D.Context) -> None:
    """What has no place to run fails; what can be restored does not run, in chains too; what is pinned runs there."""
    lost = D.spawn(add, D.Options(scope=D.ProcessScope(77)), 1)
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(lost)
    assert isinstance(D.unwrap_exception(caught.value), D.SchedulingError)
    restored = D.spawn(boom, D.Options(restore=lambda task: D.tochunk(5)))
    for _ in range(200):
        restored = D.spawn(boom, D.Options(restore=lambda task: D.tochunk(5), syncdeps={restored}))
    assert D.fetch(restored) == 5
    here = list(context.start().slots)[-1]
    assert D.fetch(D.spawn(D.task_processor, D.Options(scope=D.ExactScope(here)))) == here
    assert not context.start().effects


def test_retries_and_limits(context: D.Context, tmp_path: Path) -> None:
    """A body is tried again, and gives back its place of a limit in between."""
    attempts = tmp_path / "attempts"

    def flaky() -> int:
        write(attempts, "x")
        count = len(attempts.read_text())
        if count < 3:
            raise ValueError("again")
        return count

    D.set_limit("drivers", 1)
    try:
        tasks = [D.spawn(add, D.Options(limit="drivers"), n) for n in range(5)]
        assert D.fetch(D.spawn(flaky, D.Options(retries=2, limit="drivers"))) == 3
        assert D.fetch_all(tasks) == [0, 1, 2, 3, 4]
    finally:
        D.set_limit("drivers", None)


def until(path: Path) -> None:
    """Wait for a file."""
    eventually(path.exists)


def test_cancellations(context: D.Context, tmp_path: Path) -> None:
    """What has not begun never runs once it is cancelled, nor what depends on it."""
    ran, opened = tmp_path / "ran", tmp_path / "opened"
    gate = D.spawn(add, 1) if context.start().driver.is_stepped else D.spawn(until, opened)
    late = D.spawn(lambda x: write(ran, "x"), gate)
    after = D.spawn(add, late)
    D.cancel(late)
    for task in (late, after):
        with pytest.raises(D.DTaskCancelledError):
            D.fetch(task)
    opened.touch()
    D.fetch(gate)
    D.fetch(D.spawn(add, 1))
    assert not ran.exists()


def test_bodies_that_fetch(context: D.Context) -> None:
    """A body may spawn and fetch, five deep."""

    def down(depth: int) -> int:
        return 0 if depth == 0 else 1 + int(D.fetch(D.spawn(down, depth - 1)))

    assert D.fetch(D.spawn(down, 5)) == 5


def test_coroutines_go_on(context: D.Context) -> None:
    """A body that gives a coroutine ends with it: value, error, and `await` of another task in it."""

    async def twice(task: Any) -> int:
        return 2 * int(await task)

    async def fails() -> None:
        raise ValueError("boom")

    inner = [D.spawn(add, 21)]
    assert D.fetch(D.spawn(lambda tasks: twice(tasks[0]), inner)) == 42
    with pytest.raises(D.DTaskFailedError):
        D.fetch(D.spawn(fails))


def test_the_users_own_exit_is_the_tasks(context: D.Context) -> None:
    """Whatever class a body raises, its task ends and the driver goes on."""

    def leaves() -> None:
        raise GeneratorExit("of the body's")

    with pytest.raises(D.DTaskFailedError):
        D.fetch(D.spawn(leaves))
    assert D.fetch(D.spawn(add, 3)) == 3


def test_a_halt_ends_everything(context: D.Context, tmp_path: Path) -> None:
    """What is not done fails with the halt; the next spawn starts anew on the same driver or a new one."""
    first = context.start()
    opened = tmp_path / "opened"
    running = D.spawn(until, opened) if not first.driver.is_stepped else D.spawn(add, 1)
    waiting = D.spawn(add, running)
    D.cancel(halt_sch=True)
    opened.touch()
    assert waiting.isready()
    assert D.fetch(D.spawn(add, 4)) == 4
    assert context.core is not first


def test_the_driver_is_idle_when_all_is_done(context: D.Context) -> None:
    """After the last task no slot is in anybody's hands, and the same task order gives the same results."""
    assert D.fetch_all([D.spawn(add, n) for n in range(50)]) == list(range(50))
    context.wait_idle()
    end = time.monotonic() + 10
    while not context.start().driver.is_idle():
        assert time.monotonic() < end
        time.sleep(0)


# ---- bad drivers -------------------------------------------------------------------------------------------


def test_a_driver_that_lacks_a_method_cannot_be_made() -> None:
    """A class that derives from the contract and lacks a method fails when it is made, by the name of the method."""
    body = {name: getattr(ThreadsDriver, name) for name in METHODS if name != "help"}
    half = type("Half", (Driver,), body)
    with pytest.raises(TypeError, match="help"):
        half()


def test_a_context_names_what_a_driver_lacks() -> None:
    """Any object may be a driver; what it lacks is named when it is given to a context."""
    body = {name: getattr(ThreadsDriver, name) for name in METHODS if name not in ("pause", "resume")}
    loose = type("Loose", (), body)()
    assert methods_missing(loose) == ["pause", "resume"]
    with pytest.raises(D.InvalidOptionError, match="pause, resume"):
        D.Context(driver=loose)
    with pytest.raises(D.InvalidOptionError, match="InlineDriver"):
        D.Context(driver="fast")


def test_the_contract_says_how_each_method_is_called() -> None:
    """Each method of the contract has a text of its own."""
    for name in METHODS:
        assert (getattr(Driver, name).__doc__ or "").strip(), name
