"""Logs as rows: one dict a bar for gantt charts, one dict a task for data frames.

See docs/pictures.md.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import InvalidOptionError, MissingExtraError
from ..timespans.texts import cell
from .colors import PALETTE, NameToColor, assign_colors
from .counters import short_processor
from .frames import Integers, frame_columns
from .rows import LogTable, Span, id_field, read_logs

__all__ = ["TARGETS", "logs_to_csv", "logs_to_dataframe", "logs_to_rows"]

TARGETS = ("execution", "processor", "scheduler", "tasks")
"""What `logs_to_rows` can list."""

_PROCESSOR = ("compute", "storage_wait", "storage_safe_scan", "proc_run_fetch", "proc_steal_local")
_SCHEDULER = (
    "scheduler_init",
    "scheduler_exit",
    "init_proc",
    "cleanup_proc",
    "assign_procs",
    "remove_procs",
    "add_thunk",
    "handle_fault",
    "schedule",
    "fire",
    "enqueue",
    "take",
    "finish",
)

Row = dict[str, Any]


def logs_to_rows(
    logs: Any,
    target: str = "execution",
    *,
    colors: Sequence[str] | None = PALETTE,
    name_to_color: NameToColor | None = None,
    color_by: str = "fn",
) -> list[Row]:
    """The rows of a log of any kind, as dicts, in the order of time (then of ids).

    * `"execution"`: one row a body: proc, proc_name, fn_name, tid (the task's id), t_start, t_end, color,
      and task_id, thread_id, worker, start_ns, end_ns.
    * `"processor"`: one row a span of a processor: proc, proc_name, category, t_start, t_end, color, ...
    * `"scheduler"`: one row a span of the scheduler: category, t_start, t_end, color, ...
    * `"tasks"`: one row a task, whether it ran or not (see `logs_to_dataframe`).

    `t_*` are seconds since the log's first event, `*_ns` monotonic nanoseconds. `color_by` is "fn" or
    "proc" (for "execution"). Raises `InvalidOptionError` for anything else.
    """
    check_target(target)
    check_color_by(color_by, "logs_to_rows")
    log = read_logs(logs)
    if target == "tasks":
        return list(_task_rows(log))
    rows = list(_ROWS[target](log))
    key = "proc_name" if target == "execution" and color_by == "proc" else _COLORED[target]
    palette = assign_colors((row[key] for row in rows), colors, name_to_color)
    for row in rows:
        row["color"] = palette[row[key]]
    return rows


def check_target(target: str, allowed: Sequence[str] = TARGETS) -> None:
    """Raises `InvalidOptionError` unless the target is an allowed one."""
    if target not in allowed:
        raise InvalidOptionError(f"target={target!r} is not known; allowed are {', '.join(allowed)}")


def check_color_by(color_by: str, mode: str) -> None:
    """Raises `InvalidOptionError` unless it is "fn" or "proc"."""
    if color_by not in ("fn", "proc"):
        raise InvalidOptionError(f"{mode}: color_by={color_by!r} is not known; allowed are fn, proc")


def _times(log: LogTable, span: Span) -> Row:
    return {
        "t_start": (span.start - log.start_ns) / 1e9,
        "t_end": (span.finish - log.start_ns) / 1e9,
        "start_ns": span.start,
        "end_ns": span.finish,
        "worker": span.worker,
    }


def _execution_rows(log: LogTable) -> Iterator[Row]:
    for span in log.computes:
        task = log.task_of(span)
        processor = id_field(span.id, "processor")
        yield {
            "proc": processor,
            "proc_name": short_processor(processor) or f"worker {span.worker}",
            "fn_name": (task.function or task.name) if task else "compute",
            "name": task.name if task else "compute",
            "tid": task.task_id if task else None,
            "task_id": task.task_id if task else None,
            "thread_id": getattr(span.timeline, "thread_id", None),
            "state": "running" if span.open else task.state if task else None,
            **_times(log, span),
        }


def _processor_rows(log: LogTable) -> Iterator[Row]:
    for span in log.spans:
        if span.category in _PROCESSOR:
            processor = id_field(span.id, "processor")
            yield {
                "proc": processor,
                "proc_name": short_processor(processor) or f"worker {span.worker}",
                "category": span.category,
                "task_id": id_field(span.id, "thunk_id"),
                **_times(log, span),
            }


def _scheduler_rows(log: LogTable) -> Iterator[Row]:
    for span in log.spans:
        if span.category in _SCHEDULER:
            yield {"category": span.category, "task_id": id_field(span.id, "thunk_id"), **_times(log, span)}


_ROWS: dict[str, Callable[[LogTable], Iterator[Row]]] = {
    "execution": _execution_rows,
    "processor": _processor_rows,
    "scheduler": _scheduler_rows,
}
_SHOWN = {"tasks": (), "execution": ("compute",), "processor": _PROCESSOR, "scheduler": _SCHEDULER}
_COLORED = {"execution": "fn_name", "processor": "category", "scheduler": "category"}


def _task_rows(log: LogTable) -> Iterator[Row]:
    for task in log.tasks.values():
        waits = task.waits()
        yield {
            "task_id": task.task_id,
            "name": task.name,
            "function": task.function,
            "label": task.label,
            "state": task.state,
            "worker": task.worker,
            "processor": short_processor(task.processor) or None,
            "thread_id": task.thread_id,
            "thread_name": task.thread_name,
            "submitted_ns": task.submitted_ns,
            "ready_ns": task.ready_ns,
            "placed_ns": task.placed_ns,
            "taken_ns": task.marks()[3] if task.computed else task.taken_ns,
            "start_ns": task.body_start_ns,
            "end_ns": task.body_end_ns,
            "finished_ns": task.finished_ns,
            **{f"{phase}_ns": ns for phase, ns in waits.items() if phase != "retry"},
            "own_ns": task.own_ns,
            "cpu_ns": task.cpu_ns,
            "attempts": task.computes,
            "result_bytes": task.result_bytes,
            "spawned_by": task.spawned_by,
            "dependencies": list(task.dependencies),
            "error": task.error,
        }


_INTEGERS = ("task_id", "tid", "thread_id", "worker", "attempts", "result_bytes", "spawned_by")


def logs_to_dataframe(logs: Any, target: str = "tasks") -> Any:
    """The rows as a `pandas.DataFrame`; what the log does not say is `<NA>`.

    By default one row a task: task_id, name, function, state, worker, processor, thread_id, the boundaries
    submitted_ns ... finished_ns (body: start_ns, end_ns), the phases dependency_ns ... finish_ns that add
    up, own_ns, cpu_ns, attempts, result_bytes, spawned_by, dependencies, error. Times and counts are
    integers (`Int64`). Other targets as for `logs_to_rows`.

    Raises `MissingExtraError` without pandas, `InvalidOptionError` for another target.
    """
    check_target(target)
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("pandas", "viz") from error
    columns = frame_columns(logs, target, _SHOWN[target], _COLORED.get(target))
    return _frame_of_rows(pandas, logs, target) if columns is None else _frame_of_columns(pandas, columns)


def _frame_of_rows(pandas: Any, logs: Any, target: str) -> Any:
    """The frame of a log that no arrays tell."""
    rows = logs_to_rows(logs, target)
    frame = pandas.DataFrame(rows, columns=list(rows[0]) if rows else columns_of(target))
    for column in frame.columns:
        if column in _INTEGERS or column.endswith("_ns"):
            frame[column] = pandas.array([row[column] for row in rows], dtype="Int64")
    return frame


def _frame_of_columns(pandas: Any, columns: dict[str, Any]) -> Any:
    def made(column: Any) -> Any:
        return pandas.arrays.IntegerArray(*column) if type(column) is Integers else column

    return pandas.DataFrame({name: made(column) for name, column in columns.items()})


def columns_of(target: str) -> list[str]:
    """The columns of a target, for a log without any row."""
    from .rows import TaskRow

    if target == "tasks":
        return list(next(_task_rows(LogTable(tasks={1: TaskRow(1)}))))
    span = Span(1, {"execution": "compute", "processor": "compute", "scheduler": "take"}[target], None, 0, 0, None, 0)
    return [*next(_ROWS[target](LogTable(spans=[span]))), "color"]


def logs_to_csv(logs: Any, target: str = "tasks") -> str:
    """The rows as CSV text with a header line; lists are joined by blanks. Needs no library.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    rows = logs_to_rows(logs, target)
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0] if rows else columns_of(target), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({column: _cell(value) for column, value in row.items()})
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, (int, float)) else cell(value)
