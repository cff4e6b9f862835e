"""8 MB from task to task: `python -m bench.moves [--rounds 7] [--ray]`. One process makes it, another one reads it.

All systems in one run, in turns. *Ours* are two worker processes; `ProcessPoolExecutor(2)` takes the value through the
program, which is what its futures are for; *Ray* is asked for with `--ray`, in an environment that has it. A *first
move* is asking for the task that reads a value that is made already, until its answer is here; a *second reader* is one
more such task. What is read is one number of each page. The bound is copying the same bytes into warm memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

__all__ = ["main"]

NUMBERS = 1_000_000
PAGE = 512
"""Numbers a page."""

MOVES = 10

GOALS = (
    ("first move", "memcpy", 0.5),
    ("second reader", "first move", 3.0),
    ("produce and consume", "Ray, produce and consume", 4.0),
)
"""What is to be so many times as fast as what."""


def make(value: float) -> Any:
    """The value."""
    return np.full(NUMBERS, value)


def read(values: Any) -> float:
    """Touch all of its pages."""
    return float(values[::PAGE].sum())


Measured = dict[str, list[float]]
"""Seconds of each move, by what it is."""


def timed(into: Measured, what: str, call: Callable[[], Any]) -> Any:
    """What the call gives."""
    began = time.perf_counter()
    found = call()
    into.setdefault(what, []).append(time.perf_counter() - began)
    return found


def ours() -> tuple[Callable[[Measured, int], None], Callable[[], None]]:
    """Two workers; what makes a value and who reads it are bound to one each."""
    from otel_timespan import dagger as D  # noqa: N812 - as in the documentation

    ids = D.cluster.add_workers(2)
    context = D.Context(procs=ids)
    context.__enter__()
    there, here = [D.spawn.opts(scope=D.scope(worker=worker)) for worker in ids]

    def move(into: Measured, n: int) -> None:
        made = there(make, float(n))
        D.wait(made)
        timed(into, "first move", lambda: D.fetch(here(read, made)))
        timed(into, "second reader", lambda: D.fetch(here(read, made)))
        timed(into, "produce and consume", lambda: D.fetch(here(read, there(make, float(n)))))

    def close() -> None:
        context.__exit__(None, None, None)
        D.cluster.remove_workers(ids)

    return move, close


def executor() -> tuple[Callable[[Measured, int], None], Callable[[], None]]:
    """Two processes; the value comes here and goes there."""
    pool = ProcessPoolExecutor(2)

    def move(into: Measured, n: int) -> None:
        made = pool.submit(make, float(n))
        timed(into, "ProcessPoolExecutor, two hops", lambda: pool.submit(read, made.result()).result())

    return move, pool.shutdown


def ray() -> tuple[Callable[[Measured, int], None], Callable[[], None]]:
    """Two workers; Ray writes a result into its store when it is made, so that belongs to the move."""
    import ray as library

    library.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    makes, reads = library.remote(make), library.remote(read)

    def move(into: Measured, n: int) -> None:
        timed(into, "Ray, produce and consume", lambda: library.get(reads.remote(makes.remote(float(n)))))

    return move, library.shutdown


def copying() -> tuple[Callable[[Measured, int], None], Callable[[], None]]:
    """The bound."""
    values = [make(float(n)) for n in range(MOVES)]
    target = make(0.0)

    def move(into: Measured, n: int) -> None:
        def copy() -> float:
            np.copyto(target, values[n % MOVES])
            return read(target)

        timed(into, "memcpy", copy)

    return move, values.clear


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    systems = [ours(), executor(), copying(), *([ray()] if given.ray else [])]
    medians: Measured = {}
    for n in range(given.rounds + 1):
        for move, _ in systems:
            seen: Measured = {}
            for k in range(MOVES):
                move(seen, n * MOVES + k)
            if n:  # the first round warms up
                for what, found in seen.items():
                    medians.setdefault(what, []).append(statistics.median(found))
    for _, close in systems:
        close()
    for what, found in medians.items():
        each = 8e-9 * NUMBERS / statistics.median(found)
        print(f"{what:32} {statistics.median(found) * 1e3:8.2f} ms {each:6.2f} GB/s  (best {min(found) * 1e3:.2f} ms)")
    for what, against, goal in GOALS:
        if against not in medians:
            continue
        ratio = statistics.median(a / b for a, b in zip(medians[against], medians[what], strict=True))
        print(f"{what}: {ratio:.2f} of {against}, goal at least {goal:g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
