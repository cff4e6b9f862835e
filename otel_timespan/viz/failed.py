"""What failed in a log: the first failure, the line of the user's code that raised it, and how many more there are."""

from __future__ import annotations

import os
import sysconfig
import traceback
from typing import NamedTuple

from ..errors import unwrap_exception
from .rows import LogTable, TaskRow

__all__ = ["FailedRun", "failed_run", "user_line"]

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(
    os.path.normpath(path) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)


class FailedRun(NamedTuple):
    """The task that failed first, where (None where the log does not say), and the numbers of all."""

    first: TaskRow
    line: traceback.FrameSummary | None
    tasks: int
    failed: int
    skipped: int
    cancelled: int

    def __str__(self) -> str:
        first, line = self.first, self.line
        label = f' "{first.label}"' if first.label else ""
        lines = [f"failed: {first.function or first.name}{label} (task {first.task_id}) raised {first.error}"]
        if line is not None:
            lines.append(f'  File "{line.filename}", line {line.lineno}, in {line.name}')
            lines += [f"    {line.line}"] if line.line else []
        parts = [f"{self.failed:,} of {self.tasks:,} tasks failed"]
        parts += [f"{self.skipped:,} were skipped because of that"] if self.skipped else []
        parts += [f"{self.cancelled:,} were cancelled, or dropped when the program left"] if self.cancelled else []
        return "\n".join([*lines, ", ".join(parts)])


def failed_run(log: LogTable) -> FailedRun | None:
    """What failed, None where nothing did. Needs the timelines of the log."""
    by_state: dict[str, list[TaskRow]] = {}
    for task in log.tasks.values():
        by_state.setdefault(task.state or "", []).append(task)
    failed = by_state.get("failure")
    if not failed:
        return None
    first = min(failed, key=lambda task: (task.finished_ns or 0, task.task_id))
    line = user_line(first.failure) if first.failure is not None else None
    skipped, cancelled = (len(by_state.get(state, ())) for state in ("skip", "cancellation"))
    return FailedRun(first, line, len(log.tasks), len(failed), skipped, cancelled)


def user_line(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line of the user's own code in a traceback: of no library, nor of ours; else the innermost one."""
    frames = traceback.extract_tb(unwrap_exception(error).__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return own[-1] if own else frames[-1] if frames else None


def _is_library(filename: str) -> bool:
    path = os.path.abspath(filename)
    return filename.startswith("<frozen ") or path.startswith((_OURS + os.sep, *_LIBRARIES))
