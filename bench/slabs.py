"""8 MB between two processes by way of slabs: `python -m bench.slabs [--rounds 7]`. GB/s beside copying in memory.

The owner is a process of its own. A *first move* is asking for a value that was never exported, its copy into a slab,
the answer, the map, and reading one number of each page. A *second reader* has the place of the block already: it maps
and reads. The bound is what it takes to copy the same values into an array that is warm. Values take turns, so that the
caches of the processor have not seen the next one. Each round has all of them; medians, smallest and largest are shown.
"By CPU" is by the processor time of both processes: where others compute on all processors, a move is mostly waiting.
"""

from __future__ import annotations

import argparse
import array
import pickle
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otel_timespan.dagger.processes.maps import Maps
from otel_timespan.dagger.processes.slabs import Exported, Slabs

__all__ = ["Reader", "main", "measure"]

NUMBERS = 1_000_000
NBYTES = 8 * NUMBERS
VALUES = 8
"""Different values: 64 MB in all, more than caches hold."""

WARM = 4 * VALUES
"""Moves before the first round: enough for large pages (`HOT`)."""

MOVES = 24
"""Of each kind in a round."""


GOALS = (("first move", "memcpy", 0.5), ("by CPU", "memcpy", 0.5), ("second reader", "first move", 3))


def dumps(value: Any, callback: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    """Protocol 5, large buffers apart."""
    return pickle.dumps(value, 5, buffer_callback=callback)


def loads(header: Any, buffers: Sequence[memoryview]) -> Any:
    """The other way."""
    return pickle.loads(header, buffers=buffers)


def owner(connection: socket.socket) -> None:
    """Export one of the values for each byte that comes, after freeing the one before."""
    values = [np.full(NUMBERS, float(i + 1)) for i in range(VALUES)]
    slabs, known, last = Slabs(), set(), None
    for i in range(sys.maxsize):
        if not connection.recv(1):
            return
        began = time.thread_time()
        if last is not None:
            slabs.free(last)
        last = slabs.export(values[i % VALUES], dumps)
        fds = [] if last.slab in known else [slabs.fd_of(last.slab)]
        known.add(last.slab)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        connection.sendmsg([pickle.dumps((last, time.thread_time() - began))], ancillary)


class Reader:
    """The process that reads, and its owner."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "bench.slabs", "--owner", str(theirs.fileno())]
        self._owner = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=Path(__file__).parent.parent)
        theirs.close()
        self._maps = Maps()
        self.exported = Exported(0, 0, 0, b"", ())
        self.owner_s = 0.0
        """The owner's processor time for the last first move."""

    def first(self) -> float:
        """Have a value exported, and read it."""
        self._connection.send(b"e")
        said, fds, _, _ = socket.recv_fds(self._connection, 1 << 16, 1)
        self.exported, self.owner_s = pickle.loads(said)
        for fd in fds:
            self._maps.add_slab(2, self.exported.slab, fd)
        return self.again()

    def again(self) -> float:
        """Read what was exported last."""
        value = self._maps.load(2, self.exported, loads)
        return float(value[::512].sum())

    def close(self) -> None:
        """End the owner."""
        self._connection.close()
        self._owner.wait()
        self._maps.close()


def measure(rounds: int) -> dict[str, list[float]]:
    """GB/s of each round."""
    found: dict[str, list[float]] = {name: [] for name in ("memcpy", "first move", "by CPU", "second reader")}
    sources, target = [np.full(NUMBERS, float(i + 1)) for i in range(VALUES)], np.zeros(NUMBERS)
    reader = Reader()
    try:
        for i in range(WARM):
            assert reader.first() == (i % VALUES + 1) * len(target[::512])
        for _ in range(rounds):
            copies = [_timed(np.copyto, target, sources[i % VALUES]) for i in range(MOVES)]
            firsts = [(*_timed(reader.first), reader.owner_s) for _ in range(MOVES)]
            seconds = [_timed(reader.again) for _ in range(MOVES)]
            found["memcpy"].append(_speed([wall for wall, _ in copies]))
            found["first move"].append(_speed([wall for wall, _, _ in firsts]))
            found["by CPU"].append(_speed([mine + owners for _, mine, owners in firsts]))
            found["second reader"].append(_speed([wall for wall, _ in seconds]))
    finally:
        reader.close()
    return found


def _timed(call: Callable[..., object], *args: Any) -> tuple[float, float]:
    """Seconds, and those of processor time."""
    began, began_cpu = time.perf_counter(), time.thread_time()
    call(*args)
    return time.perf_counter() - began, time.thread_time() - began_cpu


def _speed(seconds: list[float]) -> float:
    """GB/s of the median move."""
    return NBYTES / statistics.median(seconds) / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.slabs", description="8 MB between processes, in GB/s.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--owner", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.owner is not None:
        serving = threading.Thread(target=owner, args=(socket.socket(fileno=options.owner),))  # as in a worker
        serving.start()
        serving.join()
        return 0
    found = measure(options.rounds)
    median = {name: statistics.median(speeds) for name, speeds in found.items()}
    for name, speeds in found.items():
        print(f"{name:15s} {median[name]:7.2f} GB/s  ({min(speeds):.2f} to {max(speeds):.2f})")
    for name, of, goal in GOALS:
        ratio = statistics.median(a / b for a, b in zip(found[name], found[of], strict=True))
        print(f"{name} to {of}: {ratio:.2f}  (goal: {goal} or more)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
