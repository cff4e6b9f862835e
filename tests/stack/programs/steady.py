"""Runs a batch of tasks for each line `go`, holds memory for `hold`, lets it go for `release`.

Answers each line with one of its own; at the end of the input it flushes and prints the log's account.
"""

from __future__ import annotations

import gc
import json
import sys

import otel_timespan as ts
from otel_timespan.dagger import DTask

TASKS = 300
HELD = 8
NBYTES = 5_000_000


def step(number: int) -> int:
    """Next to nothing."""
    return number + 1


def allocate(number: int) -> bytearray:
    """A large result."""
    return bytearray(NBYTES)


def wait_for(tasks: list[DTask]) -> None:
    """Until all have finished; no name keeps one of them alive afterwards."""
    for task in tasks:
        task.wait()


def main() -> None:
    """Obey the lines of the standard input."""
    log = ts.OTelLog()
    ts.eager_context().log_sink = log
    held: list[DTask] = []
    for line in sys.stdin:
        command = line.strip()
        if command == "go":
            tasks = [ts.spawn(step, ts.spawn(step, n)) for n in range(TASKS)]
            assert [ts.fetch(task) for task in tasks] == list(range(2, TASKS + 2))
            del tasks
        elif command == "hold":
            held = [ts.spawn(allocate, n) for n in range(HELD)]
            wait_for(held)
        elif command == "release":
            held.clear()
            gc.collect()
        print(command, flush=True)
    flushed = log.flush(timeout_s=60)
    print(json.dumps({"flushed": flushed, "stats": log.stats()}), flush=True)


if __name__ == "__main__":
    main()
