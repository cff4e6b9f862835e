"""Worker processes that are killed at random while tasks run: `python -m bench.chaos [tasks] [kills] [seed]`.

100,000 tasks and 100 kills by default: chains, fan-ins and single tasks of 0 to 10 ms, under a log. Says what became
of each: results, attempts, computes. Fails loudly where anything is wrong.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import sys
import threading
import time
import warnings
from typing import Any

from otel_timespan import dagger as D  # noqa: N812 - its usual short name
from otel_timespan.events import CoreMetrics, IDMetrics
from otel_timespan.timespans import MultiEventLog

WORKERS = 4
PAYLOAD = 10_000


def work(seed: int, *values: Any) -> int:
    """A number that depends on all that it was given."""
    time.sleep(seed % 11 * 0.001)
    return (seed + sum(value if isinstance(value, int) else len(value) for value in values)) % 1_000_003


def text(seed: int) -> str:
    """A value of some size."""
    return "x" * (PAYLOAD + seed % 100)


def graph(tasks: int, rng: random.Random) -> tuple[list[D.DTask[Any]], list[Any]]:
    """Tasks, each of up to three earlier ones; and what must come out."""
    made: list[D.DTask[Any]] = []
    wanted: list[Any] = []
    for n in range(tasks):
        if n % 10 == 0:
            made.append(D.spawn(text, n))
            wanted.append(text(n))
            continue
        given = [rng.randrange(max(0, n - 50), n) for _ in range(rng.randrange(min(3, n) + 1))]
        made.append(D.spawn(work, n, *(made[one] for one in given)))
        values = [wanted[one] for one in given]
        wanted.append((n + sum(v if isinstance(v, int) else len(v) for v in values)) % 1_000_003)
    return made, wanted


class Killer:
    """Kills a worker now and then, and starts others where fewer than two are left."""

    def __init__(self, context: D.Context, kills: int, span_s: float, rng: random.Random) -> None:
        self.context, self.kills, self.span_s, self.rng = context, kills, span_s, rng
        self.ids: list[int] = []
        self.pids: dict[int, int] = {}
        self.done = 0
        self.add(WORKERS)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Until all are done, or the tasks are."""
        while self.done < self.kills and not self.stop.wait(self.rng.random() * 2 * self.span_s / self.kills):
            victim = self.ids.pop(self.rng.randrange(len(self.ids)))
            os.kill(self.pids[victim], signal.SIGKILL)
            self.done += 1
            if len(self.ids) < 2:
                self.add(WORKERS - len(self.ids))

    def add(self, count: int) -> None:
        """More workers."""
        new = D.cluster.add_workers(count)
        self.pids.update((worker, D.cluster.run(worker, os.getpid)) for worker in new)
        D.addprocs(self.context, new)
        self.ids += new


def chaos(tasks: int, kills: int, seed: int, span_s: float) -> dict[str, Any]:
    """Run it: figures. Raises `AssertionError` where something is wrong."""
    rng = random.Random(seed)
    log = MultiEventLog()
    log["core"], log["id"] = CoreMetrics(), IDMetrics()
    with D.Context(procs=[], log_sink=log) as context:
        killer = Killer(context, kills, span_s, random.Random(seed + 1))
        begun = time.monotonic()
        made, wanted = graph(tasks, rng)
        results = [D.fetch(task) for task in made]
        took_s = time.monotonic() - begun
        killer.stop.set()
        killer.thread.join(60)
        wrong = [n for n, (got, want) in enumerate(zip(results, wanted, strict=True)) if got != want]
        assert not wrong, f"seed {seed}: {len(wrong)} results are wrong, {wrong[:5]}"
        assert not killer.thread.is_alive(), "a worker could not be started anew"
        losses = sum(len(task._live.losses) for task in made if task._live is not None)
        attempts = sum(1 if task._live is None else task._live.attempt for task in made)
    D.cluster.remove_workers(killer.ids)
    return {
        "seed": seed, "tasks": tasks, "kills": killer.done, "seconds": round(took_s, 1),
        "attempts": attempts, "attempts lost": losses, "log": log,
    }  # fmt: skip


def computes(log: MultiEventLog) -> collections.Counter[tuple[str, int]]:
    """How often each task's compute began, and ended."""
    found: collections.Counter[tuple[str, int]] = collections.Counter()
    for streams in log.get_logs().values():
        for event, id in zip(streams["core"], streams["id"], strict=True):
            if event.category == "compute":
                found[event.kind, id.thunk_id] += 1
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="?", type=int, default=100_000)
    parser.add_argument("kills", nargs="?", type=int, default=100)
    parser.add_argument("seed", nargs="?", type=int, default=random.SystemRandom().randrange(1 << 30))
    given = parser.parse_args()
    tasks, kills, seed = given.tasks, given.kills, given.seed
    warnings.simplefilter("ignore", RuntimeWarning)
    print(f"{tasks} tasks, {kills} kills, seed {seed}", flush=True)
    figures = chaos(tasks, kills, seed, span_s=tasks * 0.005 / WORKERS)
    log = figures.pop("log")
    found = computes(log)
    begun = sum(n for (kind, _), n in found.items() if kind == "start")
    ended = sum(n for (kind, _), n in found.items() if kind == "finish")
    print({**figures, "computes begun": begun, "computes ended": ended})
    assert begun == ended == figures["attempts"], f"seed {seed}: not each attempt has one compute"
    return 0


if __name__ == "__main__":
    sys.exit(main())
