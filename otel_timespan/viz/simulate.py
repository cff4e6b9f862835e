"""What if there were n workers: a recorded run replayed on virtual ones.

List scheduling: whenever a virtual worker is free it takes a task whose dependencies are done. Every
task takes its recorded own time; moving, placing and queueing cost nothing but `overhead_ns`. All tasks
are known from the start, whenever they were submitted in the recorded run.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import InvalidOptionError
from .critical_path import topological
from .rows import TaskRow, read_logs
from .units import pretty_time

__all__ = ["Placement", "Simulation", "simulate"]


class Placement(NamedTuple):
    """Where and when the replay ran a task: worker 1..n, nanoseconds since its start."""

    task_id: int
    worker: int
    start_ns: int
    finish_ns: int


@dataclass(frozen=True)
class Simulation:
    """The result of a replay; times are nanoseconds. `placements` are in the order of their starts."""

    workers: int
    makespan_ns: int
    work_ns: int
    placements: tuple[Placement, ...]

    @property
    def utilisation(self) -> float:
        """The share (0..1) of the workers' time that was spent on tasks."""
        return self.work_ns / (self.workers * self.makespan_ns) if self.makespan_ns else 0.0

    @property
    def speedup(self) -> float:
        """How much faster than one worker."""
        return self.work_ns / self.makespan_ns if self.makespan_ns else 1.0

    def __str__(self) -> str:
        return (
            f"{len(self.placements)} tasks on {self.workers} workers: {pretty_time(self.makespan_ns)}, "
            f"{self.speedup:.2f} times as fast as one, {100 * self.utilisation:.0f} % busy"
        )


def simulate(logs: Any, workers: int, *, priority: str = "recorded", overhead_ns: int = 0) -> Simulation:
    """Replay a log of any kind on `workers` virtual workers; its `makespan_ns` is the answer.

    `priority` says which of several ready tasks goes first: "recorded" (default) the one that began
    first in the recorded run, "critical" the one with the longest way still to go, "id" the lowest id.
    `overhead_ns` is added to each task's own time. The makespan is at least the critical path and at
    least the work divided by the workers; at most their sum.

    Raises `InvalidOptionError` for other options, `LogFormatError` for circular dependencies.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise InvalidOptionError(f"simulate: workers is a number of at least 1, not {workers!r}")
    if priority not in ("recorded", "critical", "id"):
        raise InvalidOptionError(f"simulate: priority={priority!r} is not known; allowed are recorded, critical, id")
    if not isinstance(overhead_ns, int) or overhead_ns < 0:
        raise InvalidOptionError(f"simulate: overhead_ns is a number of nanoseconds from 0 on, not {overhead_ns!r}")
    ordered = topological(read_logs(logs).tasks)
    costs = {task.task_id: task.own_ns + overhead_ns for task in ordered}
    ranks = _ranks(ordered, costs, priority)
    placements = _replay(ordered, costs, ranks, workers)
    makespan = max((p.finish_ns for p in placements), default=0)
    return Simulation(workers, makespan, sum(costs.values()), tuple(placements))


def _ranks(ordered: list[TaskRow], costs: dict[int, int], priority: str) -> dict[int, int]:
    """The lower the earlier."""
    if priority == "id":
        return {task.task_id: task.task_id for task in ordered}
    if priority == "recorded":
        never = 1 << 63
        return {t.task_id: never if t.body_start_ns is None else t.body_start_ns for t in ordered}
    to_go = dict(costs)
    for task in reversed(ordered):
        for upstream in task.dependencies:
            if upstream in costs:
                to_go[upstream] = max(to_go[upstream], costs[upstream] + to_go[task.task_id])
    return {task_id: -length for task_id, length in to_go.items()}


def _replay(ordered: list[TaskRow], costs: dict[int, int], ranks: dict[int, int], workers: int) -> list[Placement]:
    waits_for = {t.task_id: sum(d in costs for d in t.dependencies) for t in ordered}
    dependents: dict[int, list[int]] = {}
    for task in ordered:
        for upstream in task.dependencies:
            dependents.setdefault(upstream, []).append(task.task_id)
    ready = [(ranks[task_id], task_id) for task_id, count in waits_for.items() if count == 0]
    heapq.heapify(ready)
    free = list(range(1, min(workers, max(1, len(ordered))) + 1))
    running: list[tuple[int, int, int]] = []
    placements: list[Placement] = []
    now = 0
    while ready or running:
        while ready and free:
            task_id = heapq.heappop(ready)[1]
            worker = heapq.heappop(free)
            placements.append(Placement(task_id, worker, now, now + costs[task_id]))
            heapq.heappush(running, (now + costs[task_id], task_id, worker))
        now = running[0][0]
        while running and running[0][0] == now:
            _, task_id, worker = heapq.heappop(running)
            heapq.heappush(free, worker)
            for dependent in dependents.get(task_id, ()):
                waits_for[dependent] -= 1
                if waits_for[dependent] == 0:
                    heapq.heappush(ready, (ranks[dependent], dependent))
    return placements
