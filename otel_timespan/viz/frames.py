"""Logs as columns of a data frame, straight from arrays (arrays.py): what `logs_to_rows` gives, row by row.

A column is an `Integers`, an array of numbers, or a list of objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .arrays import NONE, LogArrays, SpanArrays, TaskArrays, UntoldError, read_arrays
from .colors import assign_colors
from .counters import short_processor

__all__ = ["Integers", "frame_columns"]


class Integers(NamedTuple):
    """Integers of which some may be missing."""

    values: Any
    missing: Any


def _integers(values: Any) -> Integers:
    return Integers(values, values == NONE)


Columns = dict[str, Any]


def frame_columns(logs: Any, target: str, categories: tuple[str, ...], colored: str | None) -> Columns | None:
    """The columns of a target; None where the log has to be read by rows.

    `categories`: of the spans that it shows. `colored`: by which column the rows get their colours.
    """
    try:
        log = read_arrays(logs, categories)
        columns = _MADE[target](log, categories)
    except (UntoldError, LookupError, TypeError, ValueError, OverflowError):  # of a user's events or rows
        return None
    if not len(columns["worker"].values):  # without rows pandas has types of its own
        return None
    if colored is not None:
        palette = assign_colors(columns[colored])
        columns["color"] = [palette[name] for name in columns[colored]]
    return columns


def _task_columns(log: LogArrays, categories: tuple[str, ...]) -> Columns:
    import numpy as np

    tasks = log.tasks(log.spans(["compute"]))
    processors = {number: short_processor(one) or None for number, one in log.processors.items()}
    none = [None] * len(tasks.task_id)
    missing = _integers(np.full(len(none), NONE))
    phases, taken, own = _phases(tasks)
    computed = (tasks.body_start != NONE) & (tasks.body_end != NONE)
    return {
        "task_id": _integers(tasks.task_id),
        "name": tasks.names(),
        "function": tasks.function,
        "label": tasks.label,
        "state": none,
        "worker": _integers(tasks.worker),
        "processor": [processors.get(number) for number in tasks.processor.tolist()],
        "thread_id": missing,
        "thread_name": none,
        "submitted_ns": _integers(tasks.submitted),
        "ready_ns": _integers(tasks.ready),
        "placed_ns": _integers(tasks.placed),
        "taken_ns": _integers(np.where(computed, taken, NONE)),
        "start_ns": _integers(tasks.body_start),
        "end_ns": _integers(tasks.body_end),
        "finished_ns": _integers(tasks.finished),
        **{f"{phase}_ns": _integers(ns) for phase, ns in phases.items()},
        "own_ns": _integers(own),
        "cpu_ns": missing,
        "attempts": _integers(tasks.computes),
        "result_bytes": missing,
        "spawned_by": _integers(np.zeros(len(none), "int64")),
        "dependencies": [list(deps) for deps in tasks.deps],
        "error": none,
    }


def _phases(tasks: TaskArrays) -> tuple[dict[str, Any], Any, Any]:
    """`TaskRow.waits` without retries, the third of `TaskRow.marks`, and `TaskRow.own_ns`."""
    import numpy as np

    ends = np.where(tasks.body_end == NONE, tasks.running_until, tasks.body_end)
    known = [tasks.submitted, tasks.ready, tasks.placed, tasks.first_move]
    known += [tasks.first_body, tasks.body_start, ends, tasks.finished]
    last = np.full(len(tasks.task_id), NONE)
    for times in known:
        last = np.where(times != NONE, times, last)
    following, filled = last, []
    for times in reversed(known):
        following = np.where(times != NONE, times, following)
        filled.append(following)
    filled.reverse()
    floor = np.minimum(filled[0], last)
    marks = []
    for times in filled:
        floor = np.minimum(np.maximum(times, floor), last)
        marks.append(floor)
    submitted, ready, placed, taken, first_body, body, body_end, finished = marks
    phases = {
        "dependency": ready - submitted,
        "schedule": placed - ready,
        "queue": taken - placed,
        "move": first_body - taken,
        "compute": body_end - body,
        "finish": finished - body_end,
    }
    last_body = np.where((ends == NONE) | (tasks.body_start == NONE), 0, ends - tasks.body_start)
    earlier = np.minimum(body - first_body, np.maximum(0, tasks.compute_ns - last_body))
    compute = phases["compute"] + earlier
    return phases, taken, compute - np.minimum(tasks.nested_ns, compute)


def _times(log: LogArrays, spans: SpanArrays) -> Columns:
    return {
        "t_start": (spans.start - log.start_ns) / 1e9,
        "t_end": (spans.finish - log.start_ns) / 1e9,
        "start_ns": _integers(spans.start),
        "end_ns": _integers(spans.finish),
        "worker": _integers(spans.worker),
    }


def _processors(log: LogArrays, spans: SpanArrays) -> Columns:
    shown = {number: short_processor(one) for number, one in log.processors.items()}
    pairs = list(zip(spans.processor.tolist(), spans.worker.tolist(), strict=True))
    return {
        "proc": [log.processors.get(number) for number, _ in pairs],
        "proc_name": [shown.get(number) or f"worker {worker}" for number, worker in pairs],
    }


def _execution_columns(log: LogArrays, categories: tuple[str, ...]) -> Columns:
    import numpy as np

    spans = log.spans(["compute"])
    tasks = log.tasks(spans)
    ids = np.where(spans.task > 0, spans.task, NONE)
    at = np.where(ids == NONE, -1, tasks.at(ids)).tolist()
    names, functions = [*tasks.names(), "compute"], tasks.function
    called = [function or name for function, name in zip([*functions, None], names, strict=True)]
    return {
        **_processors(log, spans),
        "fn_name": [called[n] for n in at],
        "name": [names[n] for n in at],
        "tid": _integers(ids),
        "task_id": _integers(ids),
        "thread_id": _integers(np.full(len(at), NONE)),
        "state": ["running" if open else None for open in spans.open.tolist()],
        **_times(log, spans),
    }


def _processor_columns(log: LogArrays, categories: tuple[str, ...]) -> Columns:
    spans = log.spans(categories)
    return {
        **_processors(log, spans),
        "category": [log.categories[number] for number in spans.category.tolist()],
        "task_id": _integers(spans.task),
        **_times(log, spans),
    }


def _scheduler_columns(log: LogArrays, categories: tuple[str, ...]) -> Columns:
    spans = log.spans(categories)
    return {
        "category": [log.categories[number] for number in spans.category.tolist()],
        "task_id": _integers(spans.task),
        **_times(log, spans),
    }


_MADE: Mapping[str, Callable[[LogArrays, tuple[str, ...]], Columns]] = {
    "tasks": _task_columns,
    "execution": _execution_columns,
    "processor": _processor_columns,
    "scheduler": _scheduler_columns,
}
