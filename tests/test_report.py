"""What the report of `demo` and `run` says: its numbers add up, and none of its rows is about nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import report, session, viz
from otel_timespan.viz.units import pretty_time
from tests.viz.viz_logs import Proc, Run, count, load


@pytest.fixture(autouse=True)
def _no_collector(monkeypatch: pytest.MonkeyPatch, isolated: None) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")


def burn(n: int) -> bytes:
    """A body that computes."""
    return bytes(10_000 + sum(range(20_000 + n)) % 2)


def total(*parts: bytes) -> int:
    """A body that takes results of others."""
    return sum(map(len, parts))


def outer(n: int) -> int:
    """A body that waits for others."""
    return ts.fetch(ts.spawn(total, ts.spawn(burn, n), ts.spawn(burn, n + 1)))


def told(work: Callable[[], Any]) -> tuple[session.Session, str]:
    """What is printed about this work."""
    from rich.console import Console

    with session.logged("work") as one:
        work()
    out = io.StringIO()
    report.print_session(Console(file=out, width=160), one, None)
    return one, out.getvalue()


def work() -> None:
    """Bodies of three kinds, some of which wait in a fetch."""
    ts.fetch_all([ts.spawn(outer, n) for n in range(8)])
    assert [n for n in ts.map(burn, range(20), max_pending=3)]


def column(text: str, table: str, *, rows: str = "") -> dict[str, list[str]]:
    """The rows of a table, by their first cell: the table whose head begins so."""
    lines = text.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(table))
    found: dict[str, list[str]] = {}
    for line in lines[begin + 1 :]:
        if not line.strip() or not re.match(r"[\w(]", line) or line.startswith(("function", "Slowest", "Where")):
            break
        first, *rest = re.split(r"  +", line.strip())
        found[first] = rest
    return found


def test_functions_phases_and_categories_agree() -> None:
    """Compute is one number, wherever it stands: bodies that wait in a fetch are not counted twice."""
    one, text = told(work)
    account = viz.where_time_went(one.logs)
    compute = pretty_time(account.own_ns)
    assert column(text, "category")["compute"][:2] == ["52", compute]
    assert column(text, "phase")["compute"][0] == compute
    totals = {name: total for name, _, total, _ in report.category_rows(viz.read_logs(one.logs))}
    assert totals["compute"] == account.waits["compute"]
    assert totals.get("schedule", account.waits["schedule"]) == account.waits["schedule"]
    assert column(text, "function")["in all"][:2] == ["52", compute]
    assert sum(account.functions.values()) == account.own_ns
    assert account.utilisation <= 1 and f"{account.utilisation:.0%} busy" in text
    assert f"on {len(ts.eager_context().core.slots)} threads" in text  # type: ignore[union-attr]


def test_cpu_and_bytes_stand_beside_each_function() -> None:
    """CPU time of a function is at most its compute, but for the clocks; its results are in bytes."""
    one, text = told(work)
    for name, found in viz.where_time_went(one.logs).by_function.items():
        assert found.cpu_ns is not None and found.cpu_ns <= found.own_ns * 1.5 + 1_000_000, name
    head = next(line for line in text.splitlines() if line.startswith("function"))
    assert head.split() == ["function", "tasks", "compute", "CPU", "results"]
    assert column(text, "function")["burn"][-1] == "351.6 KiB"  # 36 of 10,000 bytes


def test_the_path_is_as_long_as_the_run() -> None:
    """Its phases and its steps add up to its length, from the first submission on."""
    one, text = told(work)
    path = viz.critical_path(one.logs)
    assert column(text, "phase")["in all"][-1] == pretty_time(path.duration_ns)
    assert f"{len(path.steps)} tasks, {pretty_time(path.duration_ns)}" in text
    assert path.duration_ns == sum(path.waits.values()) == sum(step.duration_ns for step in path.steps)


def test_no_row_is_about_some_nanoseconds() -> None:
    """What only marks a moment is left out, and so is a phase without time."""
    _, text = told(work)
    rows = {**column(text, "category"), **column(text, "phase"), **column(text, "function")}
    assert {"fire", "enqueue", "evict", "finish"}.isdisjoint(rows)
    assert not [row for row, cells in rows.items() if cells and re.fullmatch(r"[\d.]+ ns", cells[0])]


def test_moves_of_one_task_count_once() -> None:
    """The arguments of a task move side by side: that is the time of one move, as its phase has it."""
    run = Run()
    run.task(1, 0, 10_000, 100_000, 200_000)
    run.task(2, 0, 210_000, 300_000, 400_000, f=count, deps=[1])
    run.begin(3, 400_000, 450_000, Proc(1, 1), (101, "t"), load, deps=[1, 2])
    table = viz.read_logs(run.raw())
    moves = {name: (number, total, longest) for name, number, total, longest in report.category_rows(table)}["move"]
    assert moves == (3, 50_000 + 20 + 20, 50_000)
