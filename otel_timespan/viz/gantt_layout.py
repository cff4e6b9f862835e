"""Where the bars of a gantt chart go, whoever draws them.

Bars that overlap in one row get lanes. Of more bars than a picture can show, the longest are drawn one
by one; the rest is drawn together, as stretches of time coloured by what took most of it and the paler
the less of the time was used. So nothing is lost, and the picture's size does not grow with the log.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import InvalidOptionError
from .colors import PALETTE, NameToColor
from .critical_path import realised_path
from .rows import LogTable
from .tables import check_target, logs_to_rows
from .units import pretty_time

__all__ = ["Bar", "Chart", "ChartRow", "Stretch", "lay_out"]

GANTT_TARGETS = ("execution", "processor", "scheduler")
MAX_LANES = 8
MAX_ROWS = 60
COLUMNS = 1000
"""Into so many columns the time is cut where bars are drawn together."""


class Bar(NamedTuple):
    """One span. Times are seconds since the log's first event; `group` is what its colour stands for."""

    start: float
    end: float
    lane: int
    group: str
    color: str
    text: str
    hint: str
    failed: bool = False
    on_path: bool = False


class Stretch(NamedTuple):
    """Many short bars of a lane together; `share` (0..1] of the time between is used."""

    start: float
    end: float
    lane: int
    color: str
    share: float


@dataclass
class ChartRow:
    """A row with its bars, in the order of time."""

    name: str
    lanes: int = 1
    bars: list[Bar] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)


@dataclass
class Chart:
    """A chart, laid out. `note` says what is shown and what is not."""

    title: str
    note: str
    rows: list[ChartRow]
    start: float
    end: float
    legend: dict[str, str]
    """group -> colour, the one with the most time first"""


def lay_out(
    log: LogTable,
    *,
    target: str,
    colors: Sequence[str] | None = PALETTE,
    name_to_color: NameToColor | None = None,
    color_by: str = "fn",
    limit: int = 5000,
    path: bool = True,
    title: str | None = None,
) -> Chart:
    """Lay out a chart. Options as for `viz.gantt`; raises `InvalidOptionError` for other values."""
    check_target(target, GANTT_TARGETS)
    if not isinstance(limit, int) or limit < 1:
        raise InvalidOptionError(f"gantt: limit is a number of bars of at least 1, not {limit!r}")
    rows = logs_to_rows(log, target, colors=colors, name_to_color=name_to_color, color_by=color_by)
    on_path = {t.task_id for t in realised_path(log)} if path and target == "execution" else set()
    group = "category" if target != "execution" else "proc_name" if color_by == "proc" else "fn_name"
    by_row: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_row.setdefault(row["category" if target == "scheduler" else "proc_name"], []).append(row)
    names, hidden = _rows_shown(by_row)
    shown = [row for name in names for row in by_row[name]]
    start = min((row["t_start"] for row in shown), default=0.0)
    end = max((row["t_end"] for row in shown), default=0.0)
    apart = _drawn_apart(shown, limit, (end - start) / COLUMNS)
    chart_rows = [_chart_row(name, by_row[name], apart, group, on_path, (start, end)) for name in names]
    return Chart(
        title=title or {"execution": "Tasks", "processor": "Processors", "scheduler": "Scheduler"}[target],
        note=_note(len(shown), len(apart), hidden, start, end),
        rows=chart_rows,
        start=start,
        end=end if end > start else start + 1e-9,
        legend=_legend(shown, group),
    )


def _rows_shown(by_row: dict[str, list[dict[str, Any]]]) -> tuple[list[str], int]:
    """The busiest rows, in natural order of their names; how many are left out."""
    busy = {name: sum(r["end_ns"] - r["start_ns"] for r in rows) for name, rows in by_row.items()}
    kept = sorted(busy, key=lambda name: (-busy[name], name))[:MAX_ROWS]
    return sorted(kept, key=_natural), len(by_row) - len(kept)


def _natural(name: str) -> list[Any]:
    import re

    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() and len(part) < 20 else (1, 0, part) for part in parts]


def _drawn_apart(rows: list[dict[str, Any]], limit: int, shortest: float) -> set[int]:
    """The `id()`s of the rows that are drawn one by one."""
    if len(rows) <= limit:
        return {id(row) for row in rows}
    long = [row for row in rows if row["t_end"] - row["t_start"] >= shortest]
    kept = heapq.nlargest(limit, long, key=lambda row: (row["end_ns"] - row["start_ns"], -row["start_ns"]))
    return {id(row) for row in kept}


def _chart_row(
    name: str,
    rows: list[dict[str, Any]],
    apart: set[int],
    group: str,
    on_path: set[int],
    window: tuple[float, float],
) -> ChartRow:
    chart_row = ChartRow(name)
    ends: list[float] = []
    together: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["start_ns"], -r["end_ns"], str(r["task_id"]))):
        lane = _free_lane(ends, row["t_start"], row["t_end"])
        if id(row) in apart:
            chart_row.bars.append(_bar(row, lane, group, on_path))
        else:
            together.setdefault(lane, []).append(row)
    chart_row.lanes = max(1, len(ends))
    for lane, lane_rows in sorted(together.items()):
        chart_row.stretches += _stretches(lane_rows, lane, window)
    return chart_row


def _free_lane(ends: list[float], start: float, end: float) -> int:
    for lane, busy_until in enumerate(ends):
        if busy_until <= start:
            ends[lane] = end
            return lane
    if len(ends) < MAX_LANES:
        ends.append(end)
        return len(ends) - 1
    lane = min(range(MAX_LANES), key=ends.__getitem__)
    ends[lane] = max(end, ends[lane])
    return lane


def _bar(row: dict[str, Any], lane: int, group: str, on_path: set[int]) -> Bar:
    text = row.get("name") or row["category"]
    task_id = row["task_id"]
    took = pretty_time(row["end_ns"] - row["start_ns"])
    hint = f"{text}{f' (task {task_id})' if task_id else ''}: {took} at {pretty_time(row['t_start'] * 1e9)}"
    state = row.get("state")
    if state not in (None, "success"):
        hint += f", {state}"
    return Bar(
        row["t_start"],
        row["t_end"],
        lane,
        row[group],
        row["color"],
        text,
        hint,
        failed=state in ("failure", "cancellation"),
        on_path=task_id in on_path,
    )


def _stretches(rows: Iterable[dict[str, Any]], lane: int, window: tuple[float, float]) -> list[Stretch]:
    start, end = window
    width = (end - start) / COLUMNS or 1e-9
    used: dict[int, dict[str, float]] = {}
    for row in rows:
        first = min(COLUMNS - 1, int((row["t_start"] - start) / width))
        last = min(COLUMNS - 1, int((row["t_end"] - start) / width))
        for column in range(first, last + 1):
            left = start + column * width
            time = min(row["t_end"], left + width) - max(row["t_start"], left)
            colors = used.setdefault(column, {})
            colors[row["color"]] = colors.get(row["color"], 0.0) + max(time, width / 1000)
    stretches: list[Stretch] = []
    for column, colors in sorted(used.items()):
        color = max(sorted(colors), key=colors.__getitem__)
        share = max(0.25, round(4 * min(1.0, sum(colors.values()) / width)) / 4)
        left = start + column * width
        before = stretches[-1] if stretches else None
        if before and before.color == color and before.share == share and left - before.end < width / 2:
            stretches[-1] = before._replace(end=left + width)
        else:
            stretches.append(Stretch(left, left + width, lane, color, share))
    return stretches


def _legend(rows: list[dict[str, Any]], group: str) -> dict[str, str]:
    time: dict[str, int] = {}
    color: dict[str, str] = {}
    for row in rows:
        time[row[group]] = time.get(row[group], 0) + row["end_ns"] - row["start_ns"]
        color[row[group]] = row["color"]
    return {name: color[name] for name in sorted(time, key=lambda n: (-time[n], n))}


def _note(bars: int, apart: int, hidden: int, start: float, end: float) -> str:
    if not bars:
        return "nothing recorded"
    note = f"{bars:,} bars in {pretty_time((end - start) * 1e9)}"
    if 0 < apart < bars:
        note += f"; the {apart:,} longest are drawn one by one, {bars - apart:,} shorter ones together (limit=)"
    elif apart < bars:
        note += "; too short to be told apart, drawn together: the paler, the less of the time was used"
    if hidden:
        note += f"; {hidden:,} less busy rows left out"
    return note
