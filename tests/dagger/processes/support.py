"""Bodies for worker processes, and what must not be left of those."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.pool import pool
from tests.backends import eventually

PATIENCE_S = 20.0


def add(*values: int) -> int:
    """Their sum, a little later."""
    time.sleep(0.002)
    return sum(values)


def sleep_and_give(seconds: float, value: Any) -> Any:
    """The value, later."""
    time.sleep(seconds)
    return value


def diamond() -> tuple[D.DTask[int], int]:
    """a; b(a); c(a); d(b, c)."""
    a = D.spawn(add, 1, 1)
    b, c = D.spawn(add, a, 1), D.spawn(add, a, 1)
    return D.spawn(add, b, c), 6


def chain() -> tuple[D.DTask[int], int]:
    """Each of the one before."""
    task = D.spawn(add, 0)
    for _ in range(20):
        task = D.spawn(add, task, 1)
    return task, 20


def tree() -> tuple[D.DTask[int], int]:
    """Sums of sums."""
    tasks = [D.spawn(add, n) for n in range(16)]
    while len(tasks) > 1:
        tasks = [D.spawn(add, *tasks[n : n + 2]) for n in range(0, len(tasks), 2)]
    return tasks[0], sum(range(16))


def nested(depth: int) -> int:
    """Bodies that spawn bodies, and wait for them: how many there are."""
    time.sleep(0.002)
    return 1 if not depth else 1 + sum(D.fetch_all([D.spawn(nested, depth - 1) for _ in range(2)]))


GRAPHS = (diamond, chain, tree)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def children() -> set[int]:
    """The processes that this one has started and not asked how they ended, zombies too."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def descriptors() -> set[str]:
    """What the descriptors of this process are: numbers with their files."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Processes and descriptors that there were not before must be gone."""
    pool._pump_now()  # what is made once stays
    with D.Context(procs=[1]):
        processes, before = children(), descriptors()
    yield
    eventually(lambda: children() <= processes, PATIENCE_S)
    eventually(lambda: len(descriptors()) <= len(before), PATIENCE_S)
