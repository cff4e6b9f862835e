"""A log in numbers: per category (and function) how often, how long, and what else was measured.

See docs/pictures.md; the form is Dagger's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from ..errors import MissingExtraError
from ..timespans.texts import for_file, printable
from .output import write_output
from .rows import LogTable, Span, read_logs
from .units import pretty_bytes, pretty_count, pretty_time

__all__ = ["Metric", "Summary", "summarize_logs"]

TITLE = "Dagger Execution Summary"
_SCALARS = {"compile_time": "Compile Time", "lock_contend": "Lock Conflicts", "gc_stats": "Bytes Allocated"}
_TIMES = ("cpu-clock", "task-clock", "Compile Time", "Run Time")
_BY_FUNCTION = ("compute", "move")


class Metric:
    """Count, sum, minimum and maximum of one measured thing."""

    __slots__ = ("count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.minimum, self.maximum = float("inf"), float("-inf")

    def add(self, value: float) -> None:
        """Take one value."""
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return self.total / self.count if self.count else 0.0


Metrics = dict[str, Metric]


class Summary:
    """The numbers of a log. `str()` is plain text; rich tables in a terminal, HTML in a notebook.

    `blocks` is {(category, function or None): {metric name: Metric}}, "Run Time" (ns) always among them.
    """

    def __init__(self, log: LogTable) -> None:
        self.tasks = len(log.tasks)
        self.workers = len(log.workers)
        self.wall_ns = log.finish_ns - log.start_ns
        self.blocks: dict[tuple[str, str | None], Metrics] = {}
        for span in log.spans:
            if not span.open:
                self._add(log, span)

    def _add(self, log: LogTable, span: Span) -> None:
        measured = {"Run Time": float(span.finish - span.start), **_extras(log, span)}
        task = log.task_of(span) if span.category in _BY_FUNCTION else None
        keys = [(span.category, None)]
        if task is not None and task.function:
            keys.append((span.category, task.function))  # type: ignore[arg-type]
        for key in keys:
            metrics = self.blocks.setdefault(key, {})
            for name, value in measured.items():
                metric = metrics.get(name)
                if metric is None:
                    metric = metrics[name] = Metric()
                metric.add(value)

    def ordered(self) -> Iterator[tuple[str, str | None, Metrics]]:
        """The blocks: categories by name, each followed by its functions by name."""
        for category, function in sorted(self.blocks, key=lambda k: (k[0], k[1] is not None, k[1] or "")):
            yield category, function, self.blocks[category, function]

    def functions(self, category: str) -> int:
        """How many different functions a category has."""
        return sum(c == category and f is not None for c, f in self.blocks)

    def __str__(self) -> str:
        if not self.blocks:
            return "(no events recorded)\n"
        lines = [f"=== {TITLE} ==="]
        for category, function, metrics in self.ordered():
            indent = "  " if function is None else "    "
            count = metrics["Run Time"].count
            if function is not None:
                lines += ["", f"  [{category} :: {function}] {count} events"]
            else:
                distinct = self.functions(category)
                lines += ["", f"[{category}] {count} events" + (f", {distinct} unique task(s)" if distinct else "")]
            width = max(20 - len(indent), max(map(len, metrics)) + 2)
            for name in _metric_order(metrics):
                lines.append(f"{indent}{name:<{width}}{_stats(name, metrics[name])}")
        return "\n".join(lines) + "\n"

    def __rich__(self) -> Any:
        """A table for a terminal. Raises `MissingExtraError` without rich."""
        return self._rich_table(None)

    def _rich_table(self, file: Any) -> Any:
        """For a file that may not know all letters."""
        try:
            from rich.table import Table
            from rich.text import Text
        except ImportError as error:
            raise MissingExtraError("rich", "cli") from error
        if not self.blocks:
            return Text("(no events recorded)")
        caption = f"{self.tasks} tasks, {self.workers} worker(s), {pretty_time(self.wall_ns)}"
        table = Table(title=TITLE, caption=caption, header_style="bold", title_style="bold")
        table.add_column("event")
        table.add_column("metric")
        for name in ("events", "mean", "min", "max", "total"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.table():
            style = "dim" if row[0].startswith("  ") else ""
            table.add_row(*(Text(for_file(cell, file), style=style) for cell in row))
        return table

    def table(self) -> Iterator[tuple[str, ...]]:
        """Event (functions indented), metric, events, mean, min, max, total: as text, row by row."""
        for category, function, metrics in self.ordered():
            for i, name in enumerate(_metric_order(metrics)):
                metric, form = metrics[name], _format(name)
                event = "" if i else category if function is None else f"  {function}"
                values = (metric.mean, metric.minimum, metric.maximum, metric.total)
                yield (event, name, f"{metric.count:,}", *map(form, values))

    def write(self, io: Any) -> None:
        """To an open file: rich tables where it is a terminal (and rich is installed), else plain text."""
        if getattr(io, "isatty", lambda: False)():
            try:
                from rich.console import Console
            except ImportError:
                pass
            else:
                Console(file=io).print(self._rich_table(io))
                return
        write_output(io, str(self))

    def _repr_html_(self) -> str:
        if not self.blocks:
            return "<p>(no events recorded)</p>"
        head = "".join(f"<th>{name}</th>" for name in ("event", "metric", "events", "mean", "min", "max", "total"))
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell).replace('  ', '&emsp;')}</td>" for cell in row) + "</tr>"
            for row in self.table()
        )
        return f"<table><caption>{TITLE}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def summarize_logs(logs: Any) -> Summary:
    """The numbers of a log of any kind. Metrics beside the run time are read at each span's finish.

    They are: the counters of `linuxperf` under their own names, "Compile Time" (ns), "Lock Conflicts" and
    "Bytes Allocated". Raises `InvalidOptionError` for what is no log.
    """
    return Summary(read_logs(logs))


def _extras(log: LogTable, span: Span) -> dict[str, float]:
    if not log.streams:
        allocated = getattr(_timespan(log, span), "gc_diff", None)
        return {"Bytes Allocated": float(allocated.allocd)} if allocated is not None and allocated.allocd else {}
    streams = log.streams[span.worker]
    extras: dict[str, float] = {}
    for stream, name in _SCALARS.items():
        value = _at(streams, stream, span.at)
        if isinstance(value, (int, float)):
            extras[name] = float(value)
    counters = _at(streams, "linuxperf", span.at)
    if hasattr(counters, "keys"):
        extras.update({printable(name): float(counters[name]) for name in counters if counters[name] is not None})
    return extras


def _timespan(log: LogTable, span: Span) -> Any:
    return log.source[span.at] if isinstance(log.source, (list, tuple)) else None


def _at(streams: Any, name: str, index: int) -> Any:
    values = streams.get(name)
    return values[index] if values is not None and index < len(values) else None


def _metric_order(metrics: Metrics) -> list[str]:
    return ["Run Time", *sorted(name for name in metrics if name != "Run Time")]


def _format(name: str) -> Callable[[float], str]:
    return pretty_time if name in _TIMES else pretty_bytes if name == "Bytes Allocated" else pretty_count


def _stats(name: str, metric: Metric) -> str:
    form = _format(name)
    return f"mean={form(metric.mean)}, min={form(metric.minimum)}, max={form(metric.maximum)}"
