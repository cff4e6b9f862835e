"""A log that shows its picture in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from .critical_path import critical_path, where_time_went
from .gantt import gantt
from .rows import LogTable, read_logs
from .summary import summarize_logs

__all__ = ["LogView"]


class LogView:
    """Wraps a log of any kind: in a notebook it shows a gantt chart, where the time went and a summary.

    `view[worker]`, `len(view)` and iteration go to the log itself (`view.logs`), and every function of
    `viz` takes a view for a log; reading it twice costs nothing. Not for a log that still grows.
    """

    def __init__(self, logs: Any) -> None:
        self.logs = logs
        self._table: LogTable | None = None

    @property
    def table(self) -> LogTable:
        """The log, read (once)."""
        if self._table is None:
            self._table = read_logs(self.logs)
        return self._table

    def __getitem__(self, key: Any) -> Any:
        return self.logs[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.logs)

    def __len__(self) -> int:
        return len(self.logs)

    def __repr__(self) -> str:
        table = self.table
        return f"LogView({len(table.tasks)} tasks, {len(table.spans)} spans, workers {list(table.workers)})"

    def _repr_html_(self) -> str:
        table = self.table
        text = f"{where_time_went(table)}\n\n{critical_path(table)}"
        return (
            f"{gantt(table)._repr_html_()}<pre>{escape(text)}</pre>"
            f"<details><summary>all events</summary>{summarize_logs(table)._repr_html_()}</details>"
        )
