"""What `otel-timespan demo` and `otel-timespan run` print. Needs rich (the extra `[cli]`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .demo import TOP, Module, ModuleFailure, Report, analyse, find_modules
from .session import Session, check_writable, logged, workers
from .timespans.texts import for_file, printable
from .viz.critical_path import (
    NAMES,
    CriticalPath,
    FunctionTime,
    TimeAccount,
    critical_path,
    where_time_went,
    worth_telling,
)
from .viz.failed import failed_run
from .viz.rows import LogTable, id_field, length_of, read_logs
from .viz.units import pretty_bytes, pretty_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["category_rows", "print_failure", "print_session", "run_demo", "worker_rows"]

_PATH_ROWS = 12

MOMENT_NS = 1000
"""A category whose longest timespan is shorter tells when something happened, not how long it took."""


def run_demo(limit: int, source: Path | None, trace: Path, count: int) -> None:
    """The whole demo: measure, print, write the trace. Raises `InvalidOptionError` before it begins."""
    from rich.console import Console

    check_writable(trace)
    trace = trace.absolute()
    modules = find_modules(source, limit)
    console = Console()
    with workers(count) as ids, logged(f"demo {len(modules)} modules", **{"demo.modules": len(modules)}) as session:
        report, failures = _with_progress(modules, ids)
    _print_report(console, report, failures)
    print_session(console, session, trace)


def _with_progress(modules: list[Module], workers: list[int]) -> tuple[Report, list[ModuleFailure]]:
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

        return analyse(modules, settled, workers)


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

    words = ("function", "worker", "module", "package", "category", "phase", "task", "step", "error", "waited for")
    table = NamesTable(
        title=f"\n{title}" if title else None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", overflow="fold")
    return table


# ---- where the time went -----------------------------------------------------------------------


def print_session(console: Console, session: Session, trace: Path | None) -> None:
    """The tables about a logged block, then the trace file and the link. Nothing recorded is one line.

    What failed is not among them: `print_failure`.
    """
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


def print_failure(console: Console, logs: Any) -> None:
    """What failed first, with the user's own line, and how much else; nothing where nothing failed."""
    failed = failed_run(read_logs(logs))
    if failed is not None:
        text = "\n".join(map(printable, f"{failed}\n".split("\n")))
        console.print(text, soft_wrap=True, highlight=False, markup=False)


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
    """(category, count, total ns, longest ns) of the timespans that take time, the largest total first.

    "compute" are the bodies, in total what they took for themselves; "schedule" is as long as the phase of that
    name; "move" are the moves of a task's arguments, which go side by side, as one. What only marks a moment
    (fire, evict, ...) is left out.
    """
    taken: dict[str, list[int]] = {}
    moves: dict[Any, list[tuple[int, int]]] = {}
    for span in table.spans:
        if span.category == "move":
            moves.setdefault((span.worker, id_field(span.id, "thunk_id")), []).append((span.start, span.finish))
        else:
            taken.setdefault(span.category, []).append(span.finish - span.start)
    if "schedule" in taken:
        taken["schedule"] = [t.waits()["schedule"] for t in table.tasks.values() if t.ready_ns is not None] or [0]
    if moves:
        taken["move"] = [length_of(parts) for parts in moves.values()]
    rows = [(name, len(times), sum(times), max(times)) for name, times in taken.items()]
    own_ns = where_time_went(table).own_ns
    rows = [(name, count, own_ns if name == "compute" else total, most) for name, count, total, most in rows]
    return sorted((row for row in rows if row[3] >= MOMENT_NS), key=lambda row: (-row[2], row[0]))


def _categories(table: LogTable) -> Table:
    shown = _table("Timespans", "category", "count", "total", "mean", "max")
    for category, count, total, longest in category_rows(table):
        shown.add_row(category, f"{count:,}", *(pretty_time(ns) for ns in (total, total / count, longest)))
    return shown


def _print_time(console: Console, table: LogTable) -> None:
    account, path = where_time_went(table), critical_path(table)
    console.print(
        f"\n[bold]Where the time went[/]: {account.tasks:,} tasks in {pretty_time(account.wall_ns)} on "
        f"{account.slots} threads, {account.utilisation:.0%} busy",
        soft_wrap=True,
    )
    console.print(_phases(account, path))
    console.print(_functions(account))
    rows = worker_rows(table)
    if len(rows) > 1:
        console.print(_workers(rows, account.wall_ns))
    _print_path(console, path)


def _phases(account: TimeAccount, path: CriticalPath) -> Table:
    """The phases of all tasks beside those of the slowest path: both columns add up."""
    shown = _table("", "phase", "all tasks", "share", "slowest path", "share of it")
    told = {**worth_telling(path.waits), **worth_telling(account.waits)}
    for phase in (phase for phase in NAMES if phase in told):
        cells = []
        for waits in (account.waits, path.waits):
            spent = waits.get(phase)
            cells += ["", ""] if spent is None else [pretty_time(spent), f"{spent / (sum(waits.values()) or 1):.1%}"]
        shown.add_row(NAMES[phase], *cells)
    shown.add_row("in all", pretty_time(account.total_ns), "", pretty_time(path.duration_ns), "")
    return shown


def _functions(account: TimeAccount) -> Table:
    """Compute of all tasks by function, with its CPU time and the bytes of the results."""
    found = account.by_function
    shown = _table("", "function", "tasks", "compute", "CPU", "results")
    for name, of in list(found.items())[:TOP]:
        shown.add_row(name, f"{of.tasks:,}", pretty_time(of.own_ns), *_cpu_and_bytes([of]))
    rest = list(found.values())[TOP:]
    for name, some in ((f"{len(rest):,} more", rest), ("in all", list(found.values()) if len(found) > 1 else [])):
        if some:
            tasks, own_ns = sum(of.tasks for of in some), sum(of.own_ns for of in some)
            shown.add_row(name, f"{tasks:,}", pretty_time(own_ns), *_cpu_and_bytes(some))
    return shown


def worker_rows(table: LogTable) -> list[tuple[int, int, int, int]]:
    """(worker, threads, tasks, ns that their bodies took for themselves) of each worker that had threads."""
    rows = {worker: [0, 0] for worker, slots in table.slots.items() if slots}
    for task in table.tasks.values():
        if task.worker in rows and task.computed:
            rows[task.worker][0] += 1
            rows[task.worker][1] += task.own_ns
    return [(worker, table.slots[worker], tasks, ns) for worker, (tasks, ns) in sorted(rows.items())]


def _workers(rows: list[tuple[int, int, int, int]], wall_ns: int) -> Table:
    """What each worker did. Worker 1 is this process."""
    shown = _table("", "worker", "threads", "tasks", "compute", "busy")
    for worker, threads, tasks, ns in rows:
        name = f"{worker} (this process)" if worker == 1 else f"{worker}"
        busy = min(1.0, ns / (threads * wall_ns)) if wall_ns else 0.0
        shown.add_row(name, f"{threads}", f"{tasks:,}", pretty_time(ns), f"{busy:.0%}")
    return shown


def _cpu_and_bytes(functions: list[FunctionTime]) -> tuple[str, str]:
    cpu = [of.cpu_ns for of in functions if of.cpu_ns is not None]
    nbytes = [of.nbytes for of in functions if of.nbytes is not None]
    return pretty_time(sum(cpu)) if cpu else "", pretty_bytes(sum(nbytes), 1) if nbytes else ""


def _print_path(console: Console, path: CriticalPath) -> None:
    console.print(
        f"\n[bold]Slowest path[/]: {len(path.steps):,} tasks, {pretty_time(path.duration_ns)}; "
        f"with any number of workers at least {pretty_time(path.length_ns)}",
        soft_wrap=True,
    )
    longest = sorted(path.steps, key=lambda step: -step.duration_ns)[:_PATH_ROWS]
    shown = _table("", "task", "took", "in its body", "waited for")
    for step in (step for step in path.steps if step in longest):
        spent, worst = max((spent, phase) for phase, spent in step.waits.items() if phase != "compute")
        shown.add_row(
            step.name,
            pretty_time(step.duration_ns),
            pretty_time(step.waits["compute"]),
            f"{NAMES[worst]} {pretty_time(spent)}" if spent >= MOMENT_NS else "",
        )
    console.print(shown)
    if len(path.steps) > len(longest):
        console.print(f"(the {len(longest)} longest of {len(path.steps):,} steps)")
