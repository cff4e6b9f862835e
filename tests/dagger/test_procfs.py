"""What is known of processes: real ones in each state, how they ended in words, how much memory they may have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otel_timespan.dagger.data.caching import total_memory
from otel_timespan.dagger.processes import procfs
from otel_timespan.dagger.processes.procfs import (
    DEAD,
    RUNNING,
    SLEEPING,
    STOPPED,
    ZOMBIE,
    ProcessFacts,
    exit_text,
    look,
    memory_limit,
)
from tests.backends import eventually
from tests.dagger.children import child, stop

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc on this system")

IDLE = 'print("ready", flush=True); input()'
BUSY = 'print("ready", flush=True)\nwhile True: pass'


@needs_proc
def test_the_states_of_a_process() -> None:
    """It waits, is stopped, goes on, is dead but not asked for, and gone."""
    with child("import time; print(1, flush=True); time.sleep(1000)") as process:
        eventually(lambda: look(process.pid).state == SLEEPING)
        stop(process)
        assert look(process.pid).state == STOPPED
        process.send_signal(signal.SIGCONT)
        eventually(lambda: look(process.pid).state == SLEEPING)
        process.kill()
        eventually(lambda: look(process.pid).state == ZOMBIE)
        process.wait()
        assert look(process.pid) == ProcessFacts(DEAD)


@needs_proc
def test_a_process_whose_first_thread_waits() -> None:
    """It runs as long as one of its threads does: the states of many looks, all of them."""
    program = """
        import threading, time
        def work():
            while True: sum(range(10 ** 7))  # the interpreter is its alone, most of the time
        threading.Thread(target=work, daemon=True).start()
        print("ready", flush=True)
        time.sleep(1000)
    """
    with child(program) as process:
        eventually(lambda: look(process.pid).state == RUNNING)
        assert {look(process.pid).state for _ in range(50)} == {RUNNING}


@needs_proc
def test_cpu_time_of_a_process() -> None:
    """It grows while the process computes, and stands still while the process is stopped."""
    with child(BUSY) as process:
        eventually(lambda: look(process.pid).state == RUNNING)
        eventually(lambda: (look(process.pid).cpu_ns or 0) > 300_000_000)
        stop(process)
        before = look(process.pid).cpu_ns
        begun_ns = time.process_time_ns()
        while time.process_time_ns() < begun_ns + 100_000_000:  # others use some meanwhile
            pass
        assert look(process.pid).cpu_ns == before


@needs_proc
def test_threads_count() -> None:
    """The CPU time of a process is that of all its threads, and of those that are over."""
    program = """
        import threading, time
        def work():
            while time.thread_time() < .2: pass
        threads = [threading.Thread(target=work) for _ in range(3)]
        for one in threads: one.start()
        for one in threads: one.join()
        print(time.process_time_ns(), flush=True)
        time.sleep(1000)
    """
    with child(program) as process:
        assert (look(process.pid).cpu_ns or 0) > 500_000_000


@needs_proc
def test_memory_of_a_process() -> None:
    """It has at least what it wrote to, and not a multiple."""
    with child('kept = b"x" * 100_000_000; print(1, flush=True); input()') as process:
        assert 100_000_000 < (look(process.pid).rss or 0) < 200_000_000


@needs_proc
def test_another_process_with_its_number() -> None:
    """One that was started at another time is not it: it is dead."""
    with child(IDLE) as process:
        facts = look(process.pid)
        assert facts.started is not None
        assert look(process.pid, facts.started).rss == facts.rss
        assert look(process.pid, facts.started - 1) == ProcessFacts(DEAD)


@needs_proc
@pytest.mark.parametrize("name", [") Z 1 (", "a b", "))", "(S)", "\N{GREEK SMALL LETTER LAMDA}", "tab\tnew\nline"])
def test_names_of_programs(tmp_path: Path, name: str) -> None:
    """What a program is called is not taken for what is said of it."""
    program = tmp_path / name
    program.symlink_to(sys.executable)
    process = subprocess.Popen([program, "-S", "-E", "-c", IDLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    try:
        facts = look(process.pid)
        assert facts.state in (SLEEPING, RUNNING)
        assert 1_000_000 < (facts.rss or 0) < 1_000_000_000
        assert look(process.pid, facts.started).state != DEAD
    finally:
        process.communicate(b"\n")


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the system has no such folder nothing is known, of the living and the dead."""
    monkeypatch.setattr(procfs, "_PROC", tmp_path / "proc")
    assert look(os.getpid()) == look(1 << 30) == look(os.getpid(), 5) == ProcessFacts(None, None, None, None)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("raise SystemExit(0)", "ended with exit code 0"),
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import os; os._exit(200)", "ended with exit code 200"),
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "was killed by SIGTERM"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL (perhaps out of memory)"),
    ],
)
def test_how_real_processes_ended(program: str, text: str) -> None:
    """Codes and signals have their names."""
    done = subprocess.run([sys.executable, "-S", "-c", program], stderr=subprocess.DEVNULL, timeout=60)
    assert exit_text(done.returncode) == text


def test_how_a_process_ended_in_words() -> None:
    """Memory is named where it may be the reason, and not where we did it ourselves."""
    had = 812_400_000
    memory = "(perhaps out of memory: it had 812 MB when seen last)"
    assert exit_text(-9, had) == f"was killed by SIGKILL {memory}"
    assert exit_text(137, had) == f"ended with exit code 137 {memory}"
    assert exit_text(-9, 12_345_678_901).endswith("it had 12,346 MB when seen last)")
    assert exit_text(-9, had, by_us=True) == "was killed by SIGKILL"
    assert exit_text(137, had, by_us=True) == "ended with exit code 137"
    assert exit_text(-11, had) == "crashed with SIGSEGV"
    assert exit_text(-15, had) == "was killed by SIGTERM"
    assert exit_text(-50) == "was killed by signal 50"
    assert exit_text(-1000) == "was killed by signal 1000"
    assert exit_text(None, had) == "is gone"


@pytest.mark.parametrize(
    ("groups", "limits", "found"),
    [
        ("0::/a/b", {"a/b/memory.max": "5000"}, 5000),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "4000"}, 4000),
        ("0::/a/b", {"a/b/memory.max": "5000", "a/memory.max": "4000", "memory.max": "6000"}, 4000),
        ("0::/", {"memory.max": "3000"}, 3000),
        ("0::/elsewhere", {"memory.max": "3000"}, 3000),
        ("5:cpu,memory:/a\n1:name=systemd:/a:b", {"memory/a/memory.limit_in_bytes": "2000"}, 2000),
        ("5:memory:/docker/1f", {"memory/memory.limit_in_bytes": "2000"}, 2000),
        ("5:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/a", {"a/memory.max": "max"}, None),
        ("0::/a", {"a/memory.max": "what?"}, None),
        ("0::/a", {}, None),
        ("", {}, None),
    ],
)
def test_the_limit_of_memory(tmp_path: Path, groups: str, limits: dict[str, str], found: int | None) -> None:
    """The tightest of the machine, the process's group and those above it, of either version of cgroups."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, limit in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit)
    assert memory_limit(tmp_path) == (found or total_memory())


def test_the_limit_of_memory_here(tmp_path: Path) -> None:
    """There is one on every system, without cgroups too."""
    assert 10_000_000 < memory_limit() <= total_memory()
    assert memory_limit(tmp_path) == total_memory()
