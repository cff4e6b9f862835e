"""Workers die with whom started them, whatever their bodies do: real processes."""

from __future__ import annotations

import os
import signal
import sys
import textwrap

import pytest

from otel_timespan.dagger.processes import orphans
from otel_timespan.dagger.processes.orphans import watch_parent
from otel_timespan.dagger.processes.procfs import DEAD, SLEEPING, ZOMBIE, look
from tests.backends import eventually
from tests.dagger.children import child, said

needs_signal = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only; elsewhere sockets tell")

WORKER = """
import os, sys, time
from otel_timespan.dagger.processes.orphans import watch_parent
assert watch_parent()
print("armed", flush=True)
exec(sys.argv[1])
"""

HEAD = f"""
import os, subprocess, sys, threading
def start():
    command = [sys.executable, "-c", {WORKER!r}, sys.argv[1]]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # in our group: gone with us after the test
    assert worker.stdout.readline() == "armed\\n"
    return worker
"""

LOOP_IN_C = "sum(range(10 ** 15))"
BODIES = [LOOP_IN_C, "time.sleep(1000)", "while True: pass"]


def is_gone(pid: int, started: int | None) -> bool:
    """Whether a process runs no more, be it that nobody asked how it ended."""
    return look(pid, started).state in (DEAD, ZOMBIE)


@needs_signal
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("ending", ["kill", "exit"])
def test_a_worker_dies_with_its_parent(body: str, ending: str) -> None:
    """Be the parent killed or ended in any other way, and the body one that holds the interpreter."""
    program = HEAD + "worker = start(); print(worker.pid, flush=True); sys.stdin.readline(); os._exit(0)"
    with child(program, body) as head:
        worker = int(said(head))
        started = look(worker).started
        assert not is_gone(worker, started)
        if ending == "kill":
            head.kill()
            head.wait()
        else:
            head.communicate("\n")
        eventually(lambda: is_gone(worker, started), timeout=20)


@needs_signal
def test_the_thread_that_starts_a_worker_has_to_stay() -> None:
    """The trap: the worker goes with the thread that started it, and stays when another one ends."""
    program = HEAD + textwrap.dedent("""
        def start_it():
            workers.append(start())
            told.set()
            go.wait()
        workers, told, go = [start()], threading.Event(), threading.Event()
        thread = threading.Thread(target=start_it)
        thread.start()
        told.wait()
        print(*(one.pid for one in workers), flush=True)
        sys.stdin.readline()
        go.set()
        thread.join()
        workers[1].wait()
        print(workers[0].poll(), workers[1].returncode, flush=True)
        sys.stdin.readline()
    """)
    with child(program, LOOP_IN_C) as head:
        stays, goes = (int(pid) for pid in said(head).split())
        started = look(stays).started
        assert not is_gone(stays, started) and look(goes).state not in (DEAD, ZOMBIE)
        assert head.stdin is not None and head.stdout is not None
        head.stdin.write("\n")
        head.stdin.flush()
        assert head.stdout.readline() == f"None {-signal.SIGKILL}\n"
        head.kill()
        head.wait()
        eventually(lambda: is_gone(stays, started), timeout=20)


@needs_signal
def test_a_parent_that_dies_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that died just before the kernel was asked is seen by the number of who adopted the worker."""
    parents, killed = iter([100, 1]), []
    monkeypatch.setattr(orphans, "_arm", lambda: True)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))
    watch_parent()
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_where_there_is_no_such_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems, and for a Python without ctypes, nothing happens, and that is said."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ctypes", None)
        assert not watch_parent()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not watch_parent()


@needs_signal
def test_a_worker_sleeps_on_while_its_parent_lives() -> None:
    """To be watched costs it nothing: it is there, and waits."""
    with child(WORKER, "input()") as worker:
        assert said(worker) == "armed"
        eventually(lambda: look(worker.pid).state == SLEEPING)
