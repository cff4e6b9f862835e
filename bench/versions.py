"""Two versions of this project against each other, in turns: `python -m bench.versions OTHER [--rounds N]`.

OTHER is another checkout (`git worktree add ../before REVISION`). Each round runs every workload once in a fresh
process of each version, in alternating order, so that a slow minute of the machine hits both. What counts is the CPU
time of the process, all threads, a task. Printed are the ratios of this version to the other: of the medians, and of
the smallest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

__all__ = ["main"]

HERE = Path(__file__).parents[1]
LOGS = ("noop", "log")

CHILD = """
import gc, json, sys, time
import otel_timespan as ts
from bench.workloads import WORKLOADS
found = {}
log, names, scale = sys.argv[1], sys.argv[2].split(","), float(sys.argv[3])
for name in names:
    workload = WORKLOADS[name]
    size = max(workload.quick, int(workload.size * scale))
    if name == "W3":
        size = 1 << (size.bit_length() - 1)
    given, best = workload.prepare(size), float("inf")
    with ts.Context(threads=2):
        if log == "log":
            kept = ts.enable_logging()
        for _ in range(int(sys.argv[4])):
            gc.collect()
            begun = time.process_time()
            workload.eager(given, ts.spawn, ts.fetch)
            best = min(best, time.process_time() - begun)
            if log == "log":
                ts.get_logs(kept)
    found[name] = best / workload.tasks(size)
print(json.dumps(found))
"""
"""What one process does: the smallest CPU time of a few runs, a task; without the draining of a log in between."""


def _sample(checkout: Path, log: str, names: str, scale: float, repeats: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", CHILD, log, names, str(scale), str(repeats)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(prog="python -m bench.versions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5, help="runs a process")
    parser.add_argument("--scale", type=float, default=0.5, help="of the workloads' full size")
    parser.add_argument("--workloads", default="W1,W2,W2r,W3,W4")
    options = parser.parse_args(arguments)
    for log in LOGS:
        taken: dict[str, list[dict[str, float]]] = {"this": [], "other": []}
        for number in range(options.rounds):
            pair = [("this", HERE), ("other", options.other.resolve())]
            for name, checkout in pair if number % 2 else pair[::-1]:
                taken[name].append(_sample(checkout, log, options.workloads, options.scale, options.repeats))
        for workload in options.workloads.split(","):
            this = [one[workload] * 1e6 for one in taken["this"]]
            other = [one[workload] * 1e6 for one in taken["other"]]
            middle, least = statistics.median(this) / statistics.median(other), min(this) / min(other)
            print(
                f"{log:<5} {workload:<4} medians {middle:.3f}  smallest {least:.3f}   "
                f"this {min(this):.2f} to {max(this):.2f} us a task, other {min(other):.2f} to {max(other):.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
