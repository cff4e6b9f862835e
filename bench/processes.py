"""Worker processes against other pools of processes: `python -m bench.processes [--quick] [--ray] [--rounds N]`.

Two processes with one thread each, all systems in one run, in turns; the ratio to `ProcessPoolExecutor(2)` counts.
Ray is not among our requirements: install it in an environment of its own for `--ray`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from otel_timespan.dagger.processes.procfs import look

from .workloads import WORKLOADS, inc, noop

__all__ = ["main"]

PROCESSES = 2
SIZES = {"W1": 4000, "W2": 300, "W2r": 300, "W3": 2**9, "W4": 10}
QUICK = {"W1": 500, "W2": 50, "W2r": 50, "W3": 2**5, "W4": 2}
GOALS = {"W1": 0.12, "W2": 0.45, "W2r": 0.50, "W3": 0.15, "W4": 0.15}


@dataclass
class Pool:
    """A system that runs: `spawn` takes futures of its own as arguments."""

    spawn: Callable[..., Any]
    fetch: Callable[[Any], Any]
    close: Callable[[], Any]
    pids: Callable[[], list[int]]


def ours() -> Pool:
    """Two workers, and none of the threads of this process."""
    import otel_timespan as ts
    from otel_timespan import dagger as D  # noqa: N812 - as in the documentation

    ids = D.cluster.add_workers(PROCESSES)
    context = ts.Context(procs=ids)
    context.__enter__()

    def close() -> None:
        context.__exit__(None, None, None)
        D.cluster.remove_workers(ids)

    from otel_timespan.dagger.processes.pool import pool

    return Pool(ts.spawn, ts.fetch, close, lambda: [pool.remotes[worker].pid for worker in ids])


def executor() -> Pool:
    """`ProcessPoolExecutor`, with dependencies as one adds them by hand: the last upstream submits."""
    pool = ProcessPoolExecutor(PROCESSES)

    def spawn(function: Callable[..., Any], *args: Any) -> Future[Any]:
        upstreams = [arg for arg in args if isinstance(arg, Future)]
        if not upstreams:
            return pool.submit(function, *args)
        done: Future[Any] = Future()
        arrived = itertools.count(1).__next__
        last = len(upstreams)

        def arrive(_: Future[Any]) -> None:
            if arrived() == last:
                values = [arg.result() if isinstance(arg, Future) else arg for arg in args]
                pool.submit(function, *values).add_done_callback(lambda ended: done.set_result(ended.result()))

        for upstream in upstreams:
            upstream.add_done_callback(arrive)
        return done

    return Pool(spawn, Future.result, pool.shutdown, lambda: list(pool._processes))


def ray() -> Pool:
    """Ray with as many processors."""
    import ray as library

    library.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False)
    remotes: dict[Any, Any] = {}

    def spawn(function: Callable[..., Any], *args: Any) -> Any:
        remote = remotes.get(function)
        if remote is None:
            remote = remotes[function] = library.remote(function)
        return remote.remote(*args)

    return Pool(spawn, library.get, library.shutdown, list)


SYSTEMS = {"ours": ours, "executor": executor, "ray": ray}


def cpu_of(pool: Pool) -> float:
    """CPU seconds of this process and of the pool's, so far; what the machine's other work changes least."""
    found = [look(pid).cpu_ns or 0 for pid in pool.pids()]
    return time.process_time() + sum(found) / 1e9


def nested(n: int) -> int:
    """A body that spawns and fetches `n` times."""
    import otel_timespan as ts

    x = 0
    for _ in range(n):
        x = ts.fetch(ts.spawn(inc, x))
    return x


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="W1,W2,W2r,W3,W4,nested")
    wanted = parser.parse_args()
    sizes = QUICK if wanted.quick else SIZES
    names = [name for name in SYSTEMS if name != "ray" or wanted.ray]
    pools = {name: SYSTEMS[name]() for name in names}
    took: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    try:
        for pool in pools.values():
            for task in [pool.spawn(noop) for _ in range(50)]:
                pool.fetch(task)
        for _ in range(wanted.rounds):
            for name in [one for one in sizes if one in wanted.only.split(",")]:
                workload = WORKLOADS[name]
                prepared = workload.prepare(sizes[name])
                for system, pool in pools.items():
                    gc.collect()
                    before, begun = cpu_of(pool), time.perf_counter()
                    value = workload.eager(prepared, pool.spawn, pool.fetch)
                    seconds, used = time.perf_counter() - begun, cpu_of(pool) - before
                    assert value == workload.expected(prepared), (name, system, value)
                    tasks = workload.tasks(sizes[name])
                    took.setdefault((name, system), []).append(seconds / tasks * 1e6)
                    cpu.setdefault((name, system), []).append(used / tasks * 1e6)
            if "nested" in wanted.only:
                n = sizes["W2r"]
                pool = pools["ours"]
                begun = time.perf_counter()
                assert pool.fetch(pool.spawn(nested, n)) == n
                took.setdefault(("nested", "ours"), []).append((time.perf_counter() - begun) / n * 1e6)
    finally:
        for pool in pools.values():
            pool.close()
    _show(took, cpu, names, wanted.rounds)


Figures = dict[tuple[str, str], list[float]]


def _show(took: Figures, cpu: Figures, systems: list[str], rounds: int) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"us a task: median (smallest..largest) of {rounds} rounds in turns, CPU of all processes; load {load}")
    for name in dict.fromkeys(workload for workload, _ in took):
        line = [f"{name:7}"]
        for system in systems:
            values = took.get((name, system))
            if values:
                line.append(f"{system} {statistics.median(values):7.1f} ({min(values):.1f}..{max(values):.1f})")
                if (name, system) in cpu:
                    line.append(f"CPU {statistics.median(cpu[name, system]):.1f}")
        peer, own = took.get((name, "executor")), took[name, "ours"]
        if peer:
            ratio = statistics.median(own) / statistics.median(peer)
            line.append(f"ratio {ratio:.3f} (goal {GOALS[name]}; of smallest {min(own) / min(peer):.3f})")
        elif name == "nested" and ("W2r", "ours") in took:
            line.append(f"to W2r {statistics.median(own) / statistics.median(took['W2r', 'ours']):.2f} (goal 2.2)")
        print("  ".join(line))


if __name__ == "__main__":
    main()
