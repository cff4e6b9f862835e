"""Spilling: a working set of four times the memory limit. `python -m bench.spill KIND LIMIT_MIB BLOCK_MIB`.

In a process of its own: blocks are made by tasks, then all are read twice by others, with
`OTEL_TIMESPAN_SPILL_MEMORY` as the limit. What counts is how far resident memory rises above what it was
before, at its highest, to the limit; and that every block still has its value.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .run import ROOT, BenchError, Run, Table

__all__ = ["KINDS", "TIMES", "section"]

TIMES = 4
"""The working set, in limits."""

_LIMIT_MIB, _BLOCK_MIB = 256, 16
_QUICK = (16, 1)
_MIB = 1 << 20


def _bytes(number: int, size: int) -> Any:
    return bytes([number]) * size


def _bytearray(number: int, size: int) -> Any:
    return bytearray([number]) * size


def _numpy(number: int, size: int) -> Any:
    import numpy as np

    return np.full(size // 8, number, dtype=np.int64)


KINDS: dict[str, Callable[[int, int], Any]] = {"numpy": _numpy, "bytearray": _bytearray, "bytes": _bytes}
POLICIES = ("MRU", "LRU")


def _ends(block: Any, other: Any = None) -> tuple[int, int]:
    """What a block begins and ends with."""
    return int(block[0]), int(block[-1])


def _resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _child(kind: str, limit_mib: int, block_mib: int) -> dict[str, float]:
    from otel_timespan import dagger as D  # noqa: N812 - its usual short name

    make, size, count = KINDS[kind], block_mib * _MIB, TIMES * limit_mib // block_mib
    device: Any = D.global_device()
    with D.Context(threads=2):
        D.fetch(D.spawn(_ends, D.spawn(make, 0, 1024)))  # threads and imports
        before, begun = _resident(), time.perf_counter()
        blocks = [D.spawn(make, number, size) for number in range(count)]
        for _ in range(2):
            found = [D.fetch(task) for task in [D.spawn(_ends, block) for block in blocks]]
            if found != [(number, number) for number in range(count)]:
                raise AssertionError(f"the blocks changed: {found}")
        took = time.perf_counter() - begun
        # ru_maxrss is in KiB on Linux; nothing before this run came near its peak.
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "growth_mib": growth / _MIB,
        "to_limit": growth / (limit_mib * _MIB),
        "seconds": took,
        "spilled_mib": device.stats.evictions * block_mib if device is not None else 0.0,
    }


def _sample(kind: str, policy: str, limit_mib: int, block_mib: int) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    if policy:
        environment |= {
            "OTEL_TIMESPAN_SPILL": "on",
            "OTEL_TIMESPAN_SPILL_MEMORY": f"{limit_mib}MiB",
            "OTEL_TIMESPAN_SPILL_POLICY": policy,
        }
    command = [sys.executable, "-m", "bench.spill", kind, str(limit_mib), str(block_mib)]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "timeout": 600}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def section(run: Run) -> None:
    """Growth of resident memory to the limit, by kind of data and policy; without a limit for comparison."""
    if not Path("/proc/self/statm").exists():
        run.say("  spill is left out: this system does not say how much memory is resident")
        return
    limit_mib, block_mib = _QUICK if run.quick else (_LIMIT_MIB, _BLOCK_MIB)
    table = Table(
        f"Spilling: {TIMES * limit_mib} MiB in blocks of {block_mib} MiB, made, then read twice; limit {limit_mib} MiB",
        ("data", "policy", "memory grows by (MiB)", "to the limit", "written (MiB)", "seconds"),
    )
    worst = 0.0
    kinds = [kind for kind in KINDS if kind != "numpy" or importlib.util.find_spec("numpy") is not None]
    for kind in kinds[-1:] if run.quick else kinds:
        for policy in (*POLICIES, ""):
            run.say(f"  spill {kind} {policy or 'no limit'}")
            found = _sample(kind, policy, limit_mib, block_mib)
            run.samples[f"spill.{kind}.{policy or 'off'}"] = found
            ratio = ""
            if policy:
                worst = max(worst, found["to_limit"])
                run.figures[f"spill.{kind}.{policy}.to_limit"] = found["to_limit"]
                ratio = f"{found['to_limit']:.2f}"
            cells = (f"{found['growth_mib']:,.0f}", ratio, f"{found['spilled_mib']:,.0f}", f"{found['seconds']:.1f}")
            table.rows.append((kind, policy or "no limit", *cells))
    run.figures["spill.to_limit"] = worst
    run.tables.append(table)


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
