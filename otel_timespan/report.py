"""What `otel-timespan demo` and `otel-timespan run` print. Needs rich (the extra `[cli]`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .demo import TOP, Module, ModuleFailure, Report, analyse, find_modules
from .session import Session, check_writable, logged
from .timespans.texts import for_file, printable
from .viz.critical_path import CriticalPath, critical_path, where_time_went
from .viz.rows import LogTable, read_logs
from .viz.units import pretty_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["category_rows", "print_session", "run_demo"]

_PATH_ROWS = 12


def run_demo(limit: int, source: Path | None, trace: Path) -> None:
    """The whole demo: measure, print, write the trace. Raises `InvalidOptionError` before it begins."""
    from rich.console import Console

    check_writable(trace)
    trace = trace.absolute()
    modules = find_modules(source, limit)
    console = Console()
    with logged(f"demo {len(modules)} modules", **{"demo.modules": len(modules)}) as session:
        report, failures = _with_progress(modules)
    _print_report(console, report, failures)
    print_session(console, session, trace)


def _with_progress(modules: list[Module]) -> tuple[Report, list[ModuleFailure]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(modules))

        def settled(module: Module, failure: ModuleFailure | None) -> None:
            progress.update(bar, advance=1, description=printable(module.name))
            if failure is not None:
                text = printable(f"failed: {failure.module} ({failure.step}): {failure.error}")
                progress.console.print(text, markup=False)

        return analyse(modules, settled)


# ---- the report of the job ---------------------------------------------------------------------


def _print_report(console: Console, report: Report, failures: list[ModuleFailure]) -> None:
    mean = report.complexity / report.functions if report.functions else 0.0
    console.print(
        f"\n[bold]{report.modules:,} modules[/], {report.lines:,} lines, {report.classes:,} classes, "
        f"{report.functions:,} functions, mean complexity {mean:.1f}\n"
    )
    hardest = _table("Hardest functions", "function", "complexity", "lines")
    for function in report.hardest:
        hardest.add_row(f"{function.module}.{function.name}", f"{function.complexity}", f"{function.lines:,}")
    console.print(hardest)
    console.print(_named_numbers("Largest modules", "module", "lines", ((name, n) for n, name in report.largest)))
    ranked = sorted(report.imports.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    console.print(_named_numbers("Most imported", "package", "importing modules", ranked))
    if failures:
        table = _table(f"Failed: {len(failures)}", "module", "step", "error")
        for failure in failures:
            table.add_row(*failure)
        console.print(table)


def _named_numbers(title: str, name: str, number: str, rows: Iterable[tuple[str, int]]) -> Table:
    table = _table(title, name, number)
    for label, value in rows:
        table.add_row(label, f"{value:,}")
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    class NamesTable(Table):
        """Its cells are names: no markup, and nothing that a terminal would obey."""

        def add_row(self, *cells: Any, **style: Any) -> None:
            super().add_row(*(Text(for_file(printable(cell), sys.stdout)) for cell in cells), **style)

    words = ("function", "module", "package", "category", "phase", "task", "step", "error", "waited for")
    table = NamesTable(
        title=f"\n{title}" if title else None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", overflow="fold")
    return table


# ---- where the time went -----------------------------------------------------------------------


def print_session(console: Console, session: Session, trace: Path | None) -> None:
    """The tables about a logged block, then the trace file and the link. Nothing recorded is one line."""
    table = read_logs(session.logs)
    if not table.spans:
        console.print("nothing was recorded: no task was spawned in the eager context" + _replaced(session))
        return
    console.print(_categories(table))
    _print_time(console, table)
    if trace is not None:
        from .viz import write_chrome_trace

        write_chrome_trace(session.logs, trace)
        text = printable(f"trace: {trace} (open it in https://ui.perfetto.dev)")
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    console.print(printable(_exported(session)), soft_wrap=True, highlight=False, markup=False)


def _replaced(session: Session) -> str:
    return " under this log (the script set a log sink of its own)" if session.replaced else ""


def _exported(session: Session) -> str:
    if session.not_exported is not None:
        return f"not exported: {session.not_exported}"
    stats = session.stats
    text = f"exported {stats['exported']:,} of {stats['recorded']:,} spans"
    if stats["sampled"]:
        text += f", {stats['sampled']:,} sampled out"
    for reason, count in stats["dropped"].items():
        text += f", {count:,} dropped ({reason})"
    if not session.delivered:
        text += ", not all in time"
    return f"{text}: {session.link}" if session.link else text


def category_rows(table: LogTable) -> list[tuple[str, int, int, int]]:
    """(category, count, total ns, longest ns) of all finished spans, the largest total first."""
    sums: dict[str, list[int]] = {}
    for span in table.spans:
        if not span.open:
            took = span.finish - span.start
            entry = sums.setdefault(span.category, [0, 0, 0])
            entry[0], entry[1], entry[2] = entry[0] + 1, entry[1] + took, max(entry[2], took)
    rows = [(name, count, total, longest) for name, (count, total, longest) in sums.items()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def _categories(table: LogTable) -> Table:
    shown = _table("Timespans", "category", "count", "total", "mean", "max")
    for category, count, total, longest in category_rows(table):
        shown.add_row(category, f"{count:,}", *(pretty_time(ns) for ns in (total, total / count, longest)))
    return shown


def _print_time(console: Console, table: LogTable) -> None:
    account, path = where_time_went(table), critical_path(table)
    console.print(
        f"\n[bold]Where the time went[/]: {account.tasks:,} tasks in {pretty_time(account.wall_ns)} on "
        f"{account.slots} threads, {account.utilisation:.0%} busy"
    )
    total = account.total_ns or 1
    phases = _table("", "phase", "all tasks", "share", "slowest path")
    for phase in dict.fromkeys([*path.waits, *account.waits]):
        spent, on_path = account.waits.get(phase), path.waits.get(phase, 0)
        whole = ("", "") if spent is None else (pretty_time(spent), f"{spent / total:.1%}")
        phases.add_row(phase, *whole, pretty_time(on_path))
    console.print(phases)
    functions = _table("", "function", "in bodies")
    for name, spent in list(account.functions.items())[:TOP]:
        functions.add_row(name, pretty_time(spent))
    console.print(functions)
    _print_path(console, path)


def _print_path(console: Console, path: CriticalPath) -> None:
    console.print(
        f"\n[bold]Slowest path[/]: {len(path.steps)} tasks, {pretty_time(path.duration_ns)}; "
        f"with any number of workers at least {pretty_time(path.length_ns)}"
    )
    longest = sorted(path.steps, key=lambda step: -step.duration_ns)[:_PATH_ROWS]
    shown = _table("", "task", "took", "in its body", "waited for")
    for step in (step for step in path.steps if step in longest):
        waits = {phase: spent for phase, spent in step.waits.items() if phase != "compute" and spent}
        worst = max(waits, key=lambda phase: waits[phase], default=None)
        shown.add_row(
            step.name,
            pretty_time(step.duration_ns),
            pretty_time(step.waits["compute"]),
            f"{worst} {pretty_time(waits[worst])}" if worst else "",
        )
    console.print(shown)
    if len(path.steps) > len(longest):
        console.print(f"(the {len(longest)} longest of {len(path.steps)} steps)")
