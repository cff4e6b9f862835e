"""Workers begin with what this process has, say why they can't, and are gone with it, whatever they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes import pool as pools
from tests.backends import eventually
from tests.dagger.processes.support import PATIENCE_S, is_alive, nothing_left, sleep_and_give

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield
        D.cluster.remove_workers([worker for worker in D.workers() if worker != 1])


# ---- the start ---------------------------------------------------------------------------------------------


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The end of what it wrote is in the error."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.exit('no licence for this machine')\n")
    with pytest.raises(D.SchedulingError, match="no licence for this machine"):
        D.cluster.add_workers(2, env={"PYTHONPATH": str(tmp_path)})
    assert D.workers() == [1]


def test_an_environment_that_is_none_is_an_error() -> None:
    """Of `add_workers`, and clear."""
    for name, value in (("A=B", "1"), ("A", "\0"), ("A", 1)):
        with pytest.raises(D.InvalidOptionError, match="no variable of an environment"):
            D.cluster.add_workers(1, env={name: value})  # type: ignore[dict-item]


def test_a_worker_that_hangs_at_its_start_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute; here a second."""
    monkeypatch.setattr(pools, "START_PATIENCE_S", 1.0)
    with pytest.raises(D.SchedulingError, match="it was not ready within 1 s"):
        D.cluster.add_workers(1, env={"OTEL_TIMESPAN_FAIL_AT": "starting:1:stop"})


def test_workers_have_the_environment_folder_and_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process; numerical libraries are told how many threads to use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THE_HEAD", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "random.py").write_text("raise RuntimeError('the wrong module')")
    [worker] = D.cluster.add_workers(1, env={"OF_THE_WORKER": "2"})
    environment = D.cluster.run(worker, lambda: dict(os.environ))
    assert environment["OF_THE_HEAD"] == "1" and environment["OF_THE_WORKER"] == "2"
    assert int(environment["OMP_NUM_THREADS"]) >= 1 and environment["MKL_NUM_THREADS"] == "7"
    assert "PYTHONPATH" not in environment or environment["PYTHONPATH"] == os.environ.get("PYTHONPATH")
    assert D.cluster.run(worker, os.getcwd) == str(tmp_path)
    assert D.cluster.run(worker, lambda: list(sys.path)) == sys.path
    assert D.cluster.run(worker, lambda: D.__file__) == D.__file__


# ---- what they print ---------------------------------------------------------------------------------------


def prints(line: str, times: int) -> None:
    """To both streams."""
    for _ in range(times):
        print(line)
    print(line, file=sys.stderr)
    sys.stdout.flush()


def test_what_workers_print_comes_with_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the streams of this process are not the system's."""
    [worker] = D.cluster.add_workers(1)
    with D.Context(procs=[worker]):
        D.fetch(D.spawn(prints, "hello", 2), timeout=PATIENCE_S)
    D.cluster.remove_workers([worker])
    out, err = capsys.readouterr()
    assert out == f"[worker {worker}] hello\n" * 2 and err == f"[worker {worker}] hello\n"


def test_a_body_may_print_much(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is hurt, and all of it comes."""
    [worker] = D.cluster.add_workers(1)
    with D.Context(procs=[worker]):
        D.fetch(D.spawn(prints, "x" * 10_000, 1_000), timeout=60)
    D.cluster.remove_workers([worker])
    assert capsys.readouterr().out.count("x") == 10_000_000


# ---- the end -----------------------------------------------------------------------------------------------

PROGRAM = """
    import json, os, signal, subprocess, sys, threading, time
    from otel_timespan import dagger as D

    def body():
        child = subprocess.Popen(["sleep", "100"])
        return os.getpid(), child.pid

    def long():
        time.sleep(100)

    def greedy():
        return sum(range(10**12))  # holds the interpreter

    if __name__ == "__main__":
        ids = D.cluster.add_workers(2)
        with D.Context(procs=ids) as context:
            pids = [D.fetch(D.spawn.opts(scope=D.scope(worker=worker))(body)) for worker in ids]
            print(json.dumps(sum(map(list, pids), [])), flush=True)
            busy = D.spawn(BODY)
            time.sleep(0.2)
            END
"""

ENDS = {
    "normal": "D.cancel(busy)",
    "exception": "raise KeyError('end')",
    "_exit": "os._exit(0)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "sys.exit": "sys.exit(0)",
    "thread": "threading.Thread(target=lambda: os._exit(0)).start(); time.sleep(100)",
}


@pytest.mark.parametrize("how", ENDS)
def test_workers_end_with_their_head(how: str, tmp_path: Path) -> None:
    """And what their bodies started, while others run."""
    _run_program(how, "long", tmp_path)


def test_a_body_that_holds_the_interpreter_ends_with_the_head(tmp_path: Path) -> None:
    """As the system kills its worker."""
    _run_program("SIGKILL", "greedy", tmp_path)


def _run_program(how: str, body: str, tmp_path: Path) -> None:
    end = ENDS[how]
    if how in ("exception", "sys.exit"):  # else the context waits for the body
        end = f"D.cancel(busy); {end}"
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).replace("BODY", body).replace("END", end))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    head = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, env=environment, text=True)
    assert head.stdout is not None
    with head.stdout:
        pids: list[int] = json.loads(head.stdout.readline())
    head.wait(30)
    eventually(lambda: not any(map(is_alive, pids)), 10.0)


# ---- forks -------------------------------------------------------------------------------------------------


def in_child(f: Any) -> Any:
    """What a function gives in a forked child of this process."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            answer = f()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(theirs, json.dumps(answer).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_of_the_head_has_no_workers() -> None:
    """It holds nothing of them, may start its own, and leaves those of its parent alone."""
    [worker] = D.cluster.add_workers(1)
    assert in_child(D.workers) == [1]
    assert "there is no worker" in in_child(lambda: D.cluster.run(worker, os.getpid))

    def start_own() -> list[int]:
        [own] = D.cluster.add_workers(1)
        pids = [D.cluster.run(own, os.getppid), os.getpid()]
        D.cluster.remove_workers([own])
        return pids

    parent, child = in_child(start_own)
    assert parent == child
    assert D.cluster.run(worker, D.myid) == worker


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_workers_alive() -> None:
    """They end when told, and their sockets with them."""
    [worker] = D.cluster.add_workers(1)
    pid = D.cluster.run(worker, os.getpid)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    D.cluster.remove_workers([worker])
    assert not is_alive(pid)
    os.close(theirs)
    os.close(ours)
    os.waitpid(child, 0)


def forks_and_gives(value: int) -> int:
    """A body with a child that does not know better than to return, too."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return value


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_body_may_fork() -> None:
    """Its child says nothing to the head, whatever it returns."""
    [worker] = D.cluster.add_workers(1)
    with D.Context(procs=[worker]):
        tasks = [D.spawn(forks_and_gives, n) for n in range(3)]
        assert D.fetch_all(tasks, timeout=PATIENCE_S) == [0, 1, 2]
    assert D.cluster.run(worker, D.myid) == worker


# ---- removal -----------------------------------------------------------------------------------------------


def test_removed_workers_finish_what_runs_and_give_back_the_rest() -> None:
    """Each task runs once."""
    first, second = D.cluster.add_workers(2)
    with D.Context(procs=[first, second]):
        tasks = [D.spawn(sleep_and_give, 0.2, n) for n in range(8)]
        eventually(lambda: pools.pool.remotes[first].reader.rows())
        D.cluster.remove_workers([first])
        assert first not in D.workers()
        assert D.fetch_all(tasks, timeout=PATIENCE_S) == list(range(8))
        assert all(task._live is None or task._live.attempt == 1 for task in tasks)


def test_the_last_worker_finishes_all_that_it_has() -> None:
    """Where nobody else could."""
    [worker] = D.cluster.add_workers(1)
    with D.Context(procs=[worker]):
        tasks = [D.spawn(sleep_and_give, 0.05, n) for n in range(8)]
        D.cluster.remove_workers([worker])
        assert D.fetch_all(tasks, timeout=1.0) == list(range(8))


def test_what_is_bound_to_a_worker_is_done_before_it_goes() -> None:
    """As it could run nowhere else."""
    first, second = D.cluster.add_workers(2)
    with D.Context(procs=[first, second]):
        bound = [D.spawn.opts(scope=D.scope(worker=first))(D.myid) for _ in range(4)]
        slow = [D.spawn(sleep_and_give, 0.05, n) for n in range(8)]
        D.cluster.remove_workers([first])
        assert D.fetch_all(bound, timeout=PATIENCE_S) == [first] * 4
        assert D.fetch_all(slow, timeout=PATIENCE_S) == list(range(8))


def test_values_of_a_removed_worker_stay() -> None:
    """In memory that outlives it, for readers here and on other workers."""
    first, second = D.cluster.add_workers(2)
    with D.Context(procs=[first, second]):
        large = D.spawn.opts(scope=D.scope(worker=first))(bytes, 5_000_000)
        D.wait(large, timeout=PATIENCE_S)
        D.cluster.remove_workers([first])
        assert D.fetch(D.spawn(len, large), timeout=PATIENCE_S) == 5_000_000
        assert D.fetch(large, timeout=PATIENCE_S) == bytes(5_000_000)


def once_slow(folder: str) -> int:
    """Long, the first time."""
    try:
        os.close(os.open(f"{folder}/begun", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return D.myid()
    return sleep_and_give(60, 0)


def test_a_body_that_is_too_slow_for_a_removal_runs_again(tmp_path: Path) -> None:
    """Elsewhere, and nobody is blamed."""
    [first] = D.cluster.add_workers(1)
    with D.Context(procs=[first]) as context:
        task = D.spawn.opts(worker_losses=1)(once_slow, str(tmp_path))
        eventually(lambda: (tmp_path / "begun").exists())
        [second] = D.cluster.add_workers(1)
        D.addprocs(context, [second])
        D.cluster.remove_workers([first], timeout_s=0.1)
        assert D.fetch(task, timeout=PATIENCE_S) == second
        assert task._live is not None and (task._live.attempt, task._live.losses) == (2, ())


def test_a_pool_may_grow_and_shrink_while_tasks_run() -> None:
    """Nothing is lost."""
    [first] = D.cluster.add_workers(1)
    with D.Context(procs=[first]) as context:
        tasks = [D.spawn(sleep_and_give, 0.02, n) for n in range(150)]
        for _ in range(2):
            [new] = D.cluster.add_workers(1)
            D.addprocs(context, [new])
            D.rmprocs(context, [first])
            D.cluster.remove_workers([first])
            first = new
        assert D.fetch_all(tasks, timeout=PATIENCE_S) == list(range(150))


def test_an_idle_worker_gets_what_waits_at_a_busy_one() -> None:
    """Also what was sent there already, if it has not begun."""
    first, second = D.cluster.add_workers(2)
    with D.Context(procs=[first]) as context:
        slow = D.spawn(sleep_and_give, 30, 0)
        waiting = [D.spawn(D.myid) for _ in range(3)]
        eventually(lambda: len(pools.pool.remotes[first].flights) > 1)
        D.addprocs(context, [second])
        assert D.fetch_all(waiting, timeout=PATIENCE_S) == [second] * 3
        D.cancel(slow)
