"""Where the time of a run went: critical path, realised path, waits.

Two different questions have two answers here. "How fast could this graph be, with any number of
workers?" is answered by the *critical path*: the longest chain of dependencies, each task weighted with
its own time. "Why did this run take as long as it did?" is answered by the *realised path* (realised.py): from
the task that finished last, back to what it waited for, a dependency or the program that submitted it, and so on;
its stretches, waits included, add up to what really passed.

See docs/pictures.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import LogFormatError
from .realised import legs
from .rows import PHASES, LogTable, TaskRow, read_logs
from .units import pretty_bytes, pretty_time

__all__ = [
    "NAMES",
    "CriticalPath",
    "FunctionTime",
    "Step",
    "TimeAccount",
    "critical_path",
    "where_time_went",
    "worth_telling",
]


class Step(NamedTuple):
    """One task on a path. `own_ns`: time in its bodies; `waits`: its stretch of the path, phase by phase."""

    task_id: int
    name: str
    own_ns: int
    waits: dict[str, int]

    @property
    def duration_ns(self) -> int:
        """The length of its stretch."""
        return sum(self.waits.values())


@dataclass(frozen=True)
class CriticalPath:
    """Both paths of a run, first task first. Times are nanoseconds.

    `tasks`, `length_ns`: the critical path and the sum of its tasks' own times. `steps`, `duration_ns`,
    `waits`: the realised path; `waits` adds up to `duration_ns`, from the first submission of the run to
    the finish of the task that finished last. "submit" in it is the wait for the submitter: time in which
    the path's next task was not submitted yet.
    """

    tasks: tuple[int, ...]
    length_ns: int
    critical_steps: tuple[Step, ...]
    steps: tuple[Step, ...]
    duration_ns: int
    waits: dict[str, int]

    @property
    def realised_tasks(self) -> tuple[int, ...]:
        """The ids of the tasks on the realised path."""
        return tuple(step.task_id for step in self.steps)

    def __str__(self) -> str:
        if not self.steps:
            return "no task finished in this log"
        share = 100 * self.length_ns / self.duration_ns if self.duration_ns else 100.0
        lines = [
            f"critical path: {len(self.tasks)} tasks, {pretty_time(self.length_ns)} "
            f"({share:.0f} % of the realised path)",
            f"realised path: {len(self.steps)} tasks, {pretty_time(self.duration_ns)}",
            "  " + ", ".join(f"{NAMES[p]} {pretty_time(ns)}" for p, ns in worth_telling(self.waits).items()),
            "",
            *_table(self.steps),
        ]
        return "\n".join(lines)


class FunctionTime(NamedTuple):
    """What the tasks of one function took: their number, own time of the bodies, its CPU time, bytes of results.

    `cpu_ns` and `nbytes` are None where the log does not say them of any task.
    """

    tasks: int = 0
    own_ns: int = 0
    cpu_ns: int | None = None
    nbytes: int | None = None

    def cells(self, with_cpu: bool) -> str:
        """As columns of a text."""
        cpu = "" if self.cpu_ns is None else pretty_time(self.cpu_ns)
        nbytes = "" if self.nbytes is None else pretty_bytes(self.nbytes, 1)
        return f"{self.tasks:>9,}{pretty_time(self.own_ns):>14}{cpu:>{14 if with_cpu else 0}}{nbytes:>14}".rstrip()

    def plus(self, task: TaskRow, own_ns: int) -> FunctionTime:
        """With one more task."""
        cpu_ns, nbytes = task.own_cpu_ns, task.result_bytes
        return FunctionTime(
            self.tasks + 1,
            self.own_ns + own_ns,
            self.cpu_ns if cpu_ns is None else (self.cpu_ns or 0) + cpu_ns,
            self.nbytes if nbytes is None else (self.nbytes or 0) + nbytes,
        )


@dataclass(frozen=True)
class TimeAccount:
    """What all tasks together spent their time on (nanoseconds); see `where_time_went`."""

    waits: dict[str, int]
    tasks: int
    wall_ns: int
    slots: int
    own_ns: int
    functions: dict[str, int]
    by_function: dict[str, FunctionTime]

    @property
    def total_ns(self) -> int:
        """The sum of all phases of all tasks."""
        return sum(self.waits.values())

    @property
    def utilisation(self) -> float:
        """The share (0..1) of the time of all slots in which they worked: `own_ns / (slots * wall_ns)`."""
        return min(1.0, self.own_ns / (self.slots * self.wall_ns)) if self.slots and self.wall_ns else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.tasks} tasks in {pretty_time(self.wall_ns)} on {self.slots} threads, "
            f"{100 * self.utilisation:.0f} % busy"
        ]
        total = self.total_ns or 1
        for phase, ns in worth_telling(self.waits).items():
            bar = "█" * round(30 * ns / total)
            lines.append(f"  {NAMES[phase]:<12}{pretty_time(ns):>14}  {100 * ns / total:5.1f} %  {bar}".rstrip())
        with_cpu = any(found.cpu_ns is not None for found in self.by_function.values())
        if self.by_function:
            cpu = f"{'CPU':>14}" if with_cpu else ""
            lines += ["", f"  {'function':<32}{'tasks':>9}{'compute':>14}{cpu}{'results':>14}"]
        for name, found in list(self.by_function.items())[:_MOST_FUNCTIONS]:
            lines.append(f"  {name[:31]:<32}{found.cells(with_cpu)}")
        if len(self.by_function) > _MOST_FUNCTIONS:
            lines.append(f"  (the {_MOST_FUNCTIONS} largest of {len(self.by_function):,} functions)")
        return "\n".join(lines)


_MOST_FUNCTIONS = 10


SHARE_WORTH_TELLING = 0.0005
"""What takes less of the whole reads as 0.0 %."""

NAMES = {
    "submit": "submit (waiting for the submitter)",
    **{phase: phase for phase in ("dependency", "schedule", "queue", "move", "retry", "compute")},
    "nested": "nested (its slot ran others)",
    "finish": "finish",
}
"""How phases are called in texts for people, in their order."""


def worth_telling(waits: dict[str, int]) -> dict[str, int]:
    """The phases that took time; the others are there for the sum, and would be rows of some nanoseconds."""
    total = sum(waits.values())
    return {phase: ns for phase, ns in waits.items() if ns >= max(1, SHARE_WORTH_TELLING * total)}


def critical_path(logs: Any) -> CriticalPath:
    """Both paths of a log of any kind (see the module).

    Tasks that the log does not know are taken as no dependencies; tasks that never ran have no own time.
    Raises `LogFormatError` when the dependencies go in a circle.
    """
    log = read_logs(logs)
    critical = longest_path(log)
    steps = tuple(Step(s.task.task_id, s.task.name, s.task.own_ns, s.waits()) for s in legs(log))
    waits = dict.fromkeys(("submit", *PHASES), 0)
    for step in steps:
        for phase, ns in step.waits.items():
            waits[phase] = waits.get(phase, 0) + ns
    return CriticalPath(
        tasks=tuple(task.task_id for task in critical),
        length_ns=sum(task.own_ns for task in critical),
        critical_steps=tuple(Step(t.task_id, t.name, t.own_ns, t.waits()) for t in critical),
        steps=steps,
        duration_ns=sum(waits.values()),
        waits=waits,
    )


def where_time_went(logs: Any) -> TimeAccount:
    """The phases of all tasks, added up; what each function took; how busy the slots were.

    `waits` has each of `PHASES`, in nanoseconds, and where there is some: "nested", time of a body in which its
    slot or its thread ran others (it waited for them in a fetch), and "retry", the time between two attempts.
    "compute" is what bodies took for themselves, all attempts: `own_ns`, and the sum over the functions. A body
    that waits while its slot has nothing else to run is in it. `functions` is {name: own time}, largest first;
    `by_function` says more, in the same order. `slots`: of all workers, as they said when they were set up; where
    the log begins later, those that ran a body in it. A thread that helps works in a slot of these. `wall_ns`: from
    the first submission to the end of the last task, as long as the realised path.
    """
    log = read_logs(logs)
    waits = dict.fromkeys(PHASES, 0)
    functions: dict[str, FunctionTime] = {}
    for task in log.tasks.values():
        spent = task.spent()
        for phase, ns in spent.items():
            waits[phase] = waits.get(phase, 0) + ns
        if task.computes:
            name = task.function or task.name
            functions[name] = functions.get(name, FunctionTime()).plus(task, spent["compute"])
    marks = [marks for task in log.tasks.values() if (marks := task.marks())]
    ordered = dict(sorted(functions.items(), key=lambda item: (-item[1].own_ns, item[0])))
    return TimeAccount(
        waits=waits,
        tasks=len(log.tasks),
        wall_ns=max(m[-1] for m in marks) - min(m[0] for m in marks) if marks else 0,
        slots=sum(log.slots.values()),
        own_ns=waits["compute"],
        functions={name: found.own_ns for name, found in ordered.items()},
        by_function=ordered,
    )


def topological(tasks: dict[int, TaskRow]) -> list[TaskRow]:
    """The tasks, each after its dependencies, otherwise by id. Raises `LogFormatError` for a circle."""
    import heapq

    missing = {t.task_id: sum(d in tasks for d in t.dependencies) for t in tasks.values()}
    dependents: dict[int, list[int]] = {}
    for task in tasks.values():
        for upstream in task.dependencies:
            dependents.setdefault(upstream, []).append(task.task_id)
    ready = [task_id for task_id, count in missing.items() if count == 0]
    heapq.heapify(ready)
    ordered = []
    while ready:
        task_id = heapq.heappop(ready)
        ordered.append(tasks[task_id])
        for dependent in dependents.get(task_id, ()):
            missing[dependent] -= 1
            if missing[dependent] == 0:
                heapq.heappush(ready, dependent)
    if len(ordered) < len(tasks):
        circle = sorted(task_id for task_id, count in missing.items() if count > 0)[:10]
        raise LogFormatError(f"the log is damaged: the dependencies of tasks {circle} go in a circle")
    return ordered


def longest_path(log: LogTable) -> list[TaskRow]:
    """The chain of dependencies with the largest sum of own times, first task first."""
    lengths: dict[int, int] = {}
    behind: dict[int, int | None] = {}
    for task in topological(log.tasks):
        known = [d for d in task.dependencies if d in lengths]
        best = max(known, key=lambda d: (lengths[d], -d), default=None)
        lengths[task.task_id] = task.own_ns + (lengths[best] if best is not None else 0)
        behind[task.task_id] = best
    at = max(lengths, key=lambda d: (lengths[d], -d), default=None)
    path = []
    while at is not None:
        path.append(log.tasks[at])
        at = behind[at]
    return path[::-1]


def _table(steps: tuple[Step, ...], most: int = 30) -> list[str]:
    """The steps as text; of a long path the longest stretches, in their order."""
    shown = set(sorted(range(len(steps)), key=lambda i: (-steps[i].duration_ns, i))[:most])
    lines = [f"{'task':>8}  {'name':<32}{'took':>14}{'compute':>14}  waited for"]
    for i, step in enumerate(steps):
        if i in shown:
            waits = {p: ns for p, ns in step.waits.items() if p != "compute" and ns}
            longest = max(waits, key=lambda p: waits[p], default="")
            waited = f"{longest} {pretty_time(waits[longest])}" if longest else ""
            lines.append(
                f"{step.task_id:>8}  {step.name[:31]:<32}{pretty_time(step.duration_ns):>14}"
                f"{pretty_time(step.waits['compute']):>14}  {waited}".rstrip()
            )
    if len(steps) > most:
        lines.append(f"  (the {most} longest of {len(steps)} steps)")
    return lines
