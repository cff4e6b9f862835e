"""Placement: our policy against random and round-robin placement, on simulated workers. The makespans; what it takes.

The simulation is exact (no machine noise): what varies is the seed, of the workloads and of the choices among
equals. All policies steal alike, so that the difference is the placement's.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from otel_timespan import dagger as D  # noqa: N812 - its usual short name
from otel_timespan.dagger.core.placement import Policy, Spot, place, reserve, spots_of

from .run import Run, Table

__all__ = ["POLICIES", "SHAPES", "makespan", "place_us", "placing", "section"]

WORKERS = {1: 2, 2: 2, 3: 2, 4: 2}
BANDWIDTH = 1e9
MB = 1_000_000


class Blob(NamedTuple):
    """A result of so many bytes, pretended."""

    nbytes: int


def work(seconds: float, nbytes: int, *inputs: Any) -> Blob:
    """The body of every task: its duration is its first argument, its result as large as the second says."""
    return Blob(nbytes)


KINDS = [type(f"Kind{k}", (float,), {}) for k in range(10)]
"""Ten types of arguments, that is ten signatures: run times are learned by signature."""


# ---- shapes: (speeds of the workers, graph) -----------------------------------------------------------


def _speeds(rng: random.Random) -> list[D.DTask]:
    """400 tasks of 5 to 15 ms that wait for one, on workers of which two are slow and one is fast."""
    first = D.spawn(work, 0.001, 8)
    return [D.spawn(work, rng.uniform(0.005, 0.015), 8, first) for _ in range(400)]


def _skewed(rng: random.Random) -> list[D.DTask]:
    """60 chains of 8 steps of ten kinds, from 2 to 300 ms: what is learned in the first steps pays later."""
    seconds = [0.002 * 1.75**k for k in range(10)]
    ends = []
    for _ in range(60):
        task = D.spawn(work, 0.001, 8)
        for _ in range(8):
            k = rng.randrange(10)
            task = D.spawn(work, KINDS[k](seconds[k]), 8, task)
        ends.append(task)
    return ends


def _chains(rng: random.Random) -> list[D.DTask]:
    """16 chains of 12 steps of 20 to 40 ms on 100 MB each: to stay with the data is to save 100 ms a step."""
    ends = []
    for _ in range(16):
        task = D.spawn(work, 0.02, 100 * MB)
        for _ in range(12):
            task = D.spawn(work, rng.uniform(0.02, 0.04), 100 * MB, task)
        ends.append(task)
    return ends


def _source(rng: random.Random) -> list[D.DTask]:
    """One result of 50 MB that 200 tasks of 40 to 60 ms take: to stay with the data is to use one worker."""
    data = D.spawn(work, 0.05, 50 * MB)
    return [D.spawn(work, rng.uniform(0.04, 0.06), 8, data) for _ in range(200)]


def _reduction(rng: random.Random) -> list[D.DTask]:
    """A tree of 256 leaves of 10 to 20 ms and 20 MB, merged pairwise."""
    level = [D.spawn(work, rng.uniform(0.01, 0.02), 20 * MB) for _ in range(256)]
    while len(level) > 1:
        level = [D.spawn(work, 0.01, 20 * MB, a, b) for a, b in itertools.pairwise(level[:])][::2]
    return level


Shape = Callable[[random.Random], list[D.DTask]]
SHAPES: dict[str, tuple[dict[int, float], Shape]] = {
    "speeds": ({1: 0.5, 2: 0.5, 3: 1.0, 4: 3.0}, _speeds),
    "skewed": ({}, _skewed),
    "chains": ({}, _chains),
    "source": ({}, _source),
    "reduction": ({}, _reduction),
}


# ---- policies ------------------------------------------------------------------------------------------


def _by(choose: Callable[[list[Spot]], Spot]) -> Policy:
    def policy(core: Any, task: D.DTask) -> Spot:
        spot = choose(spots_of(core, task))
        sig = D.sch.signature(task._f, list(enumerate(task._args, 1)))
        reserve(core, task, spot, core.costs.run_ns(sig, spot.processor))
        return spot

    return policy


def _round_robin(seed: int) -> Policy:
    turns = itertools.count(seed)
    return _by(lambda spots: spots[next(turns) % len(spots)])


POLICIES: dict[str, Callable[[int], Policy]] = {
    "cost": lambda seed: place,
    "random": lambda seed: _by(random.Random(seed).choice),
    "round robin": _round_robin,
}


def makespan(shape: str, policy: str, seed: int) -> float:
    """Simulated seconds that a shape takes under a policy."""
    speeds, build = SHAPES[shape]
    driver = D.SimulatedDriver(WORKERS, lambda task: task._args[0], speeds=speeds, bandwidth=BANDWIDTH, seed=seed)
    with D.Context(driver=driver) as context:
        context.start().place = POLICIES[policy](seed)
        ends = build(random.Random(seed))
        D.waitall(ends)
        return driver.now / 1e9


# ---- what it takes -------------------------------------------------------------------------------------

COUNTS = (1, 2, 3, 9)
"""So many workers."""


def _same(*args: Any, **kwargs: Any) -> int:
    return 1


GIVEN: dict[str, Callable[[D.DTask], D.DTask]] = {
    "a value": lambda done: D.spawn(_same, 1),
    "a result": lambda done: D.spawn(_same, done),
    "a keyword": lambda done: D.spawn(_same, x=1),
    "a scope": lambda done: D.spawn(_same, D.Options(scope=D.ProcessScope(1)), 1),
}
"""Tasks by what they are given; the last one has to look at each slot."""


def place_us(workers: int, given: str, tasks: int) -> list[float]:
    """CPU µs of `place` for a ready task, with its reservation: of some rounds."""
    with D.Context(driver=D.InlineDriver(dict.fromkeys(range(1, workers + 1), 1), seed=0)) as context:
        core = context.start()
        done = D.spawn(_same)
        D.wait(done)
        ready = [GIVEN[given](done) for _ in range(tasks)]
        rounds = []
        for _ in range(7):
            for task in ready:
                core.unreserve(task)
            begun = time.process_time_ns()
            for task in ready:
                place(core, task)
            rounds.append((time.process_time_ns() - begun) / tasks / 1e3)
        D.waitall(ready)
    return rounds


def placing(run: Run) -> None:
    """CPU of one placement by the number of workers, and to one worker, where nothing is chosen or reserved."""
    header = ("a task given", *(f"{n} workers" if n > 1 else "1 worker" for n in COUNTS), f"{COUNTS[-1]} to 1")
    table = Table("Placing: CPU µs of one task, its reservation included, median (min … max)", header)
    for given in GIVEN:
        found = {n: place_us(n, given, 50 if run.quick else 2000) for n in COUNTS}
        medians = {n: statistics.median(rounds) for n, rounds in found.items()}
        run.figures |= {f"placing.{given}.{n}.us": us for n, us in medians.items()}
        ratio = run.figures[f"placing.{given}.to_one"] = medians[COUNTS[-1]] / medians[1]
        run.samples[f"placing.{given}"] = found
        cells = [f"{medians[n]:.2f} ({min(rounds):.2f} … {max(rounds):.2f})" for n, rounds in found.items()]
        table.rows.append((given, *cells, f"{ratio:.1f}"))
    run.tables.append(table)


def section(run: Run, seeds: int = 9) -> None:
    """Each shape's median makespans, and ours to the best of the three."""
    seeds = 1 if run.quick else seeds
    header = ("shape", *(f"{policy} (s)" for policy in POLICIES), "cost to best")
    table = Table("Placement: simulated makespans, median (min … max) over the seeds", header)
    for shape in SHAPES:
        spans = {policy: [makespan(shape, policy, seed) for seed in range(seeds)] for policy in POLICIES}
        medians = {policy: statistics.median(found) for policy, found in spans.items()}
        ratio = run.figures[f"placement.{shape}.to_best"] = medians["cost"] / min(medians.values())
        run.samples[f"placement.{shape}"] = spans
        cells = [f"{medians[p]:.3f} ({min(spans[p]):.3f} … {max(spans[p]):.3f})" for p in POLICIES]
        table.rows.append((shape, *cells, f"{ratio:.2f}"))
    run.tables.append(table)
