"""`Executor(processes=n)`: a process pool with one changed line."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.pool import pool
from tests.backends import eventually
from tests.dagger.processes.bodies import alive, pid

state = "as imported"


def set_state(value: str) -> None:
    """An initializer."""
    global state
    state = value


def get_state(_: Any = None) -> str:
    """What the initializer of this process left."""
    return state


def boom(n: int) -> None:
    """Fail."""
    raise RuntimeError(n)  # here


def fail_to_begin() -> None:
    """An initializer that fails."""
    raise ValueError("no database")


def wait_for(path: str) -> str:
    """Wait for a file."""
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


@pytest.fixture(scope="module")
def executor() -> Iterator[D.Executor]:
    """Two processes, with a state."""
    with D.Executor(processes=2, initializer=set_state, initargs=("ready",)) as made:
        yield made


def test_calls_run_in_processes_of_its_own(executor: D.Executor) -> None:
    """Their values come back; nobody else uses these processes."""
    assert executor.submit(pow, 2, 8).result() == 256
    seen = set(executor.map(pid, range(50)))
    assert os.getpid() not in seen and len(seen) <= 2
    assert D.fetch(D.spawn(pid)) == os.getpid()


def test_the_initializer_ran_in_each_before_any_call(executor: D.Executor) -> None:
    """And in this process not at all."""
    assert set(executor.map(get_state, range(50))) == {"ready"}
    assert state == "as imported"


@pytest.mark.parametrize("chunksize", [1, 6, 40, 50])
def test_map_keeps_the_order(executor: D.Executor, chunksize: int) -> None:
    """However many calls make one task."""
    assert list(executor.map(pow, range(40), range(40), chunksize=chunksize)) == list(map(pow, range(40), range(40)))


def test_what_a_call_raises_is_raised_as_it_is(executor: D.Executor) -> None:
    """With its stack in the process as the cause, from the user's own line on."""
    error = executor.submit(boom, 7).exception()
    assert type(error) is RuntimeError and error.args == (7,)
    text = str(error.__cause__)
    assert "raise RuntimeError(n)  # here" in text and "otel_timespan/dagger" not in text
    with pytest.raises(RuntimeError):
        list(executor.map(boom, [1, 2, 3], chunksize=2))


def test_what_can_not_be_sent_fails_its_own_call(executor: D.Executor) -> None:
    """With an error that says so; others go on."""
    bad, good = executor.submit(id, (n for n in "ab")), executor.submit(pow, 2, 3)
    assert good.result() == 8
    with pytest.raises(D.InvalidOptionError, match="can't be sent"):
        bad.result()


def test_it_works_with_waiters_of_the_standard_library(executor: D.Executor) -> None:
    """Its futures are real ones."""
    futures = [executor.submit(abs, -n) for n in range(5)]
    done, pending = concurrent.futures.wait(futures)
    assert not pending and sorted(f.result() for f in concurrent.futures.as_completed(done)) == list(range(5))


def test_a_task_can_be_an_argument(executor: D.Executor) -> None:
    """As for `spawn`; the result of a call, too."""
    assert executor.submit(abs, D.spawn(int, "-7")).result() == 7
    first = executor.submit(abs, -3)
    assert executor.submit(pow, first.task, 2).result() == 9


def test_a_call_that_began_is_not_cancelled_and_one_that_waits_is(tmp_path: Path) -> None:
    """And then it never runs."""
    go, ran = str(tmp_path / "go"), tmp_path / "ran"
    with D.Executor(processes=1) as executor:
        running = executor.submit(wait_for, go)
        assert eventually(running.running, 20)
        waiting = [executor.submit(wait_for, go) for _ in range(20)]
        last = executor.submit(ran.touch)
        assert last.cancel() and not running.cancel()
        Path(go).touch()
        assert running.result() == waiting[0].result() == go
    assert not ran.exists() and last.cancelled()


@pytest.mark.filterwarnings("ignore:worker ")
def test_a_process_that_dies_breaks_nothing(tmp_path: Path) -> None:
    """Its calls run in another one; the one that ends its process again and again is broken, and that alone."""
    with D.Executor(processes=1, initializer=set_state, initargs=("ready",)) as executor:
        first = executor.submit(pid).result()
        running = executor.submit(wait_for, str(tmp_path / "go"))
        assert eventually(running.running, 20)
        os.kill(first, signal.SIGKILL)
        waiting = executor.submit(get_state)
        (tmp_path / "go").touch()
        assert running.result(timeout=30) == str(tmp_path / "go") and waiting.result(timeout=30) == "ready"
        with pytest.raises(BrokenProcessPool):
            executor.submit(os._exit, 3).result(timeout=60)
        assert executor.submit(get_state).result(timeout=30) == "ready"


def test_shutdown_without_waiting_lets_calls_end(tmp_path: Path) -> None:
    """What has not begun can be cancelled; the processes end when the last call did."""
    executor = D.Executor(processes=1)
    process = executor.submit(pid).result()
    running = executor.submit(wait_for, str(tmp_path / "go"))
    assert eventually(running.running, 20)
    waiting = [executor.submit(time.sleep, 0) for _ in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(pid)
    (tmp_path / "go").touch()
    assert running.result() == str(tmp_path / "go") and waiting[-1].cancelled()
    assert eventually(lambda: not alive(process), 20)


def test_one_that_nobody_has_any_more_ends() -> None:
    """With its processes."""
    executor = D.Executor(processes=1)
    process = executor.submit(pid).result()
    del executor
    gc.collect()
    assert eventually(lambda: not alive(process), 20)


def test_making_one_starts_nothing() -> None:
    """Its processes begin with the first call."""
    given = set(pool.given)
    D.Executor(processes=3).shutdown()
    assert pool.given == given


def test_an_initializer_that_fails_breaks_it(caplog: pytest.LogCaptureFixture) -> None:
    """In the words of a process pool; no process is left."""
    before, executor = D.procs(), D.Executor(processes=2, initializer=fail_to_begin)
    for _ in range(2):
        with pytest.raises(BrokenProcessPool, match="initializer failed: ValueError: no database"):
            executor.submit(pid)
    assert any("Exception in initializer" in line for line in caplog.messages)
    executor.shutdown()
    assert D.procs() == before


def test_what_an_initializer_gives_need_not_be_one_that_can_be_sent() -> None:
    """It is not wanted."""
    with D.Executor(processes=1, initializer=iter, initargs=([],)) as executor:
        assert executor.submit(pow, 2, 3).result() == 8


def test_start_methods_that_do_not_fork_are_accepted() -> None:
    """As workers are fresh interpreters; also the number of workers under its other name."""
    for context in (None, multiprocessing.get_context("spawn")):
        assert D.Executor(2, processes=2, mp_context=context)._max_workers == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"processes": 0}, "must be greater than 0"),
        ({"processes": -1}, "must be greater than 0"),
        ({"processes": True}, "must be greater than 0"),
        ({"processes": "2"}, "must be greater than 0"),
        ({"processes": 2.5}, "must be greater than 0"),
        ({"processes": 2, "max_workers": 3}, "processes=2 workers, and not max_workers=3"),
        ({"processes": 2, "context": D.Context()}, "processes or context, not both"),
        ({"processes": 2, "mp_context": multiprocessing.get_context("fork")}, "mp_context says fork"),
        ({"processes": 2, "mp_context": "spawn"}, "mp_context says 'spawn'"),
        ({"processes": 2, "max_tasks_per_child": 5}, "max_tasks_per_child: workers live as long"),
        ({"max_tasks_per_child": 5}, "max_tasks_per_child is for processes: give processes="),
        ({"mp_context": multiprocessing.get_context("spawn")}, "mp_context is for processes"),
    ],
    ids=str,
)
def test_settings_that_can_not_work_are_refused_at_once(given: dict[str, Any], says: str) -> None:
    """Each says what to do."""
    with pytest.raises(D.InvalidOptionError, match=says):
        D.Executor(**given)
