"""The realised path: what a run really waited for, from its beginning to its end.

It is found backwards, from the task that ended last. What a task waited for is the last thing that had to happen
before it could be queued: the end of an upstream task, or its own submission. A submission has causes, too. A body
that spawns must have begun. A program that throttles (`map`, a semaphore, a loop of `spawn` and `fetch`) submits
when another task has ended: that task is on the path then, and the time until the submission is the wait for the
submitter. No event says what a submitter waited for, so a pause between two of its submissions is taken for a wait,
for the last task that ended in it. Where it paused for none, it was busy all the time since the run began.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import LogFormatError
from .rows import LogTable, TaskRow

__all__ = ["PHASES_ON_PATH", "Leg", "legs", "realised_path"]

PAUSE_NS = 100_000
"""A submitter that submits nothing for so long waits for something; a loop of `spawn` takes some 10 µs a task."""

PHASES_ON_PATH = ("submit", "dependency", "schedule", "queue", "move", "retry", "compute", "finish")
"""The phases of a stretch, in order: "submit" is the wait for the submitter."""


class Leg(NamedTuple):
    """One task's part of the path: it begins where the one before ends. Times are monotonic ns."""

    task: TaskRow
    start_ns: int
    end_ns: int

    def waits(self) -> dict[str, int]:
        """Its phases; they add up to its length. What happened earlier was in the shadow of the task before."""
        marks = self.task.marks()
        waits, at = {}, self.start_ns
        for phase, mark in zip(PHASES_ON_PATH, marks, strict=True):
            reached = min(max(mark, at), self.end_ns)
            waits[phase], at = reached - at, reached
        if not waits["retry"]:
            del waits["retry"]
        return waits


def realised_path(log: LogTable) -> list[TaskRow]:
    """The tasks on the path, first task first."""
    return [leg.task for leg in legs(log)]


def legs(log: LogTable) -> list[Leg]:
    """The path, from the first submission to the end of the task that ended last."""
    submissions = _Submissions(log)
    ends = submissions.ends
    at = max(ends, key=lambda d: (ends[d], -d), default=None)
    path: list[Leg] = []
    until = ends[at] if at is not None else 0
    seen: set[int] = set()
    while at is not None:
        if at in seen:
            raise LogFormatError(f"the log is damaged: the dependencies of task {at} go in a circle")
        seen.add(at)
        task = log.tasks[at]
        cause = submissions.cause(task, seen)
        begin = cause[1] if cause is not None else min(submissions.first_ns, task.marks()[0], until)
        path.append(Leg(task, min(begin, until), until))
        at, until = cause if cause is not None else (None, 0)
        until = min(until, begin)
    return path[::-1]


class _Submissions:
    """Who submitted what, and when: a line of submissions for the program, and one for each body that spawned."""

    def __init__(self, log: LogTable) -> None:
        self.tasks = log.tasks
        self.ends = {task.task_id: marks[-1] for task in log.tasks.values() if (marks := task.marks())}
        self._ended = sorted((end, task_id) for task_id, end in self.ends.items())
        known = [task for task in log.tasks.values() if task.submitted_ns is not None]
        known.sort(key=lambda task: (task.submitted_ns, task.task_id))
        self.first_ns = known[0].submitted_ns if known and known[0].submitted_ns is not None else 0
        if not known:
            self.first_ns = min((marks[0] for task in log.tasks.values() if (marks := task.marks())), default=0)
        self._burst_ns: dict[int, int] = {}
        before: dict[int, TaskRow] = {}  # the newest of each line
        for task in known:
            self._burst_ns[task.task_id] = self._begin_of_burst(task, before.get(task.spawned_by))
            before[task.spawned_by] = task

    def cause(self, task: TaskRow, seen: set[int]) -> tuple[int, int] | None:
        """(task, moment) of what it waited for last; None for what the program did on its own account."""
        ends = self.ends
        upstream = max((d for d in task.dependencies if d in ends), key=lambda d: (ends[d], -d), default=None)
        after = None if upstream is None else (upstream, ends[upstream])
        if task.submitted_ns is None or (after is not None and after[1] >= task.submitted_ns):
            return after
        spawner = self.tasks.get(task.spawned_by)
        began = spawner.body_start_ns if spawner is not None and spawner.task_id not in seen else None
        for end, other in self._ended_before(self._burst_ns[task.task_id]):
            if (after is not None and end <= after[1]) or (began is not None and end <= began):
                break
            if other not in seen:
                return other, end
        if after is None and began is not None and spawner is not None and began <= task.submitted_ns:
            return spawner.task_id, task.submitted_ns
        return after

    def _begin_of_burst(self, task: TaskRow, before: TaskRow | None) -> int:
        """When its submitter, without a pause since then, began to submit; `before` is what it submitted before."""
        at = _submitted(task)
        if before is None or at - _submitted(before) >= PAUSE_NS:
            return at
        if self.ends[before.task_id] <= at:  # it fetched that very task
            return at
        return self._burst_ns[before.task_id]

    def _ended_before(self, moment: int) -> Iterator[tuple[int, int]]:
        """(end, task) of the tasks that ended until then, the last one first."""
        for n in range(bisect_right(self._ended, (moment, 1 << 63)) - 1, -1, -1):
            yield self._ended[n]


def _submitted(task: TaskRow) -> int:
    assert task.submitted_ns is not None
    return task.submitted_ns
