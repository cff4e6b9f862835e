"""What the system says of a process of ours: whether it runs, what it uses, and how it ended.

All of it comes from Linux's /proc, in one read. Where there is no such folder (macOS) it is *unknown*, None: nothing is
concluded from that.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple

from ..data.caching import total_memory

__all__ = ["DEAD", "RUNNING", "SLEEPING", "STOPPED", "ZOMBIE", "ProcessFacts", "exit_text", "look", "memory_limit"]

RUNNING = "running"
SLEEPING = "sleeping"
"""It waits for something, be it for a disk."""
STOPPED = "stopped"
"""By SIGSTOP and the like, or by a debugger."""
ZOMBIE = "zombie"
"""It is dead, and its parent has not asked how it ended."""
DEAD = "dead"
"""There is no such process (any more)."""

_STATES = {"R": RUNNING, "T": STOPPED, "t": STOPPED, "Z": ZOMBIE, "X": DEAD, "x": DEAD}
"""Of the letters of /proc/PID/stat; all others are ways to wait."""

_PROC = Path("/proc")


class ProcessFacts(NamedTuple):
    """What is known of a process at a moment; None is unknown.

    `state` is one of the constants above (RUNNING: any of its threads has a CPU, or waits for one), `cpu_ns` the CPU
    time that all its threads have used (in steps of 10 ms), `rss` the bytes of memory it has in use. `started` tells it
    from others that had its number: in ticks since the system's start.
    """

    state: str | None = None
    cpu_ns: int | None = None
    rss: int | None = None
    started: int | None = None


def look(pid: int, started: int | None = None) -> ProcessFacts:
    """The facts of a process; with `started`, only if it is the one that was started then, DEAD otherwise.

    Never raises. Takes some 20 µs, and as much for each thread of a process that sleeps.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        is_known = (_PROC / "self" / "stat").exists()
        return ProcessFacts(DEAD) if is_known else ProcessFacts()
    except OSError:  # hidden from us
        return ProcessFacts()
    # The name, in parentheses, may hold anything; what follows it are fields 3 and on of proc(5).
    fields = text[text.rfind(")") + 2 :].split()
    if started not in (None, int(fields[19])):
        return ProcessFacts(DEAD)
    return ProcessFacts(
        state=_STATES.get(fields[0]) or (RUNNING if _any_thread_runs(pid) else SLEEPING),
        cpu_ns=(int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK"),
        rss=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        started=int(fields[19]),
    )


def _any_thread_runs(pid: int) -> bool:
    """Whether a thread of the process has a CPU, or waits for one; the process's own state is its first thread's."""
    tasks = _PROC / str(pid) / "task"
    try:
        names = os.listdir(tasks)
    except OSError:
        return False
    for name in names:
        try:
            text = (tasks / name / "stat").read_text("utf-8", "replace")
        except OSError:  # it ended meanwhile
            continue
        if text[text.rfind(")") + 2 :].startswith("R"):
            return True
    return False


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its children may have: what the machine has, or their cgroup.

    `root` is for tests: where proc/ and sys/ are.
    """
    return min([total_memory(), *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    """The limits of the cgroup of this process and of those above it, of either version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inner = Path(path.lstrip("/"))
        below = [inner, *inner.parents]
        if not controllers:
            files += [root / "sys/fs/cgroup" / one / "memory.max" for one in below]
        elif "memory" in controllers.split(","):
            files += [root / "sys/fs/cgroup/memory" / one / "memory.limit_in_bytes" for one in below]
    limits = []
    for file in files:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # not to be seen from here; "max"
            continue
    return limits


_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
"""What a process does to itself."""


def exit_text(returncode: int | None, rss: int | None = None, *, by_us: bool = False) -> str:
    """How a process ended, as the end of a sentence: "was killed by SIGKILL (...)", "ended with exit code 3".

    `returncode` is that of `subprocess.Popen`, None where it is not known; `rss` the bytes of memory that it had when
    seen last; `by_us`: it was us who killed it.
    """
    if returncode is None:
        return "is gone"
    if returncode >= 0:
        said = f"ended with exit code {returncode}"
        return said + _perhaps_memory(rss) if returncode == 128 + signal.SIGKILL and not by_us else said
    number = -returncode
    name = _signal_name(number)
    if number in _CRASHES:
        return f"crashed with {name}"
    said = f"was killed by {name}"
    return said + _perhaps_memory(rss) if number == signal.SIGKILL and not by_us else said


def _perhaps_memory(rss: int | None) -> str:
    had = "" if rss is None else f": it had {rss / 1e6:,.0f} MB when seen last"
    return f" (perhaps out of memory{had})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # SIGRTMIN + 3
        return f"signal {number}"
