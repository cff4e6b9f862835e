"""Pictures of what the scheduler really logs, and the examples of docs/pictures.md."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otel_timespan.dagger as D
from otel_timespan import viz
from otel_timespan.timespans import LocalEventLog, NoOpLog, get_logs
from tests.viz.trace_rules import check_trace

DOCS = Path(__file__).parents[2] / "docs" / "pictures.md"


def load(n: int) -> list[int]:
    """A small body."""
    return list(range(n))


def total(*parts: Any) -> int:
    """Sums up lists and numbers."""
    return sum(sum(p) if isinstance(p, list) else p for p in parts)


def boom(n: int) -> None:
    """A body that fails."""
    raise ValueError(f"boom {n}")


def outer(n: int) -> int:
    """A body that spawns."""
    return sum(D.fetch(D.spawn(total, i)) for i in range(n))


def work() -> dict[str, int]:
    """A graph with results, a failure, a skipped task and a nested spawn: {what: task id}."""
    parts = [D.spawn(load, 50 * n) for n in range(1, 7)]
    last = D.spawn(total, *[D.spawn(total, part) for part in parts])
    failed = D.spawn(boom, last)
    skipped = D.spawn(total, failed)
    nested = D.spawn(outer, 3)
    assert D.fetch(last) == sum(sum(range(50 * n)) for n in range(1, 7))
    assert D.fetch(nested) == 3
    for task in (failed, skipped):
        with pytest.raises(D.DTaskFailedError):
            D.fetch(task)
    return {"last": last.id, "failed": failed.id, "skipped": skipped.id, "nested": nested.id}


@pytest.fixture(params=["streams and timeline", "streams", "raw", "timespans"])
def run(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any, dict[str, int]]]:
    """(kind, logs, ids) of one run logged in each way."""
    kind, context = request.param, D.eager_context()
    before = context.log_sink
    try:
        if kind.startswith("streams"):
            D.enable_logging(metrics=True, timeline="timeline" in kind)
            ids = work()
            D.sync()
            logs = D.fetch_logs()
        else:
            sink = context.log_sink = LocalEventLog()
            get_logs(sink)
            ids = work()
            D.sync()
            logs = get_logs(sink, raw=kind == "raw")
        yield kind, logs, ids
    finally:
        context.log_sink = before if before is not None else NoOpLog()


def test_every_task_is_there_with_its_dependencies_and_phases(run: tuple[str, Any, dict[str, int]]) -> None:
    """All 19; the waits add up; the skipped one never computed."""
    _, logs, ids = run
    tasks = viz.read_logs(logs).tasks
    ours = [t for t in tasks.values() if t.function in ("load", "total", "boom", "outer")]
    assert len(ours) == 19
    assert len(tasks[ids["last"]].dependencies) == 6
    assert tasks[ids["skipped"]].dependencies == (ids["failed"],)
    assert not tasks[ids["skipped"]].computed and tasks[ids["nested"]].computed
    for task in ours:
        assert task.submitted_ns is not None and task.finished_ns is not None
        assert sum(task.waits().values()) == task.finished_ns - task.submitted_ns
    assert tasks[ids["last"]].waits()["dependency"] > 0


def test_states_and_errors_are_known_where_timelines_are(run: tuple[str, Any, dict[str, int]]) -> None:
    """Without timelines nothing is made up."""
    kind, logs, ids = run
    tasks = viz.read_logs(logs).tasks
    states = tuple(tasks[ids[name]].state for name in ("last", "failed", "skipped"))
    assert states == ((None,) * 3 if kind == "streams" else ("success", "failure", "skip"))
    if kind != "streams":
        assert tasks[ids["failed"]].error == "ValueError: boom " + str(sum(sum(range(50 * n)) for n in range(1, 7)))
        assert all(t.spawned_by == ids["nested"] for t in tasks.values() if t.task_id > ids["nested"])


@pytest.mark.parametrize("detail", ["tasks", "phases", "scheduler"])
def test_the_trace_follows_the_format(run: tuple[str, Any, dict[str, int]], detail: str) -> None:
    """One compute a task that ran, one pair of arrow ends a dependency between two that ran."""
    _, logs, _ = run
    table = viz.read_logs(logs)
    events = check_trace(json.loads(str(viz.chrome_trace(table, detail=detail))))
    computed = {t.task_id for t in table.tasks.values() if t.computed}
    drawn = [e["args"]["task_id"] for e in events if e.get("cat") == "compute"]
    assert sorted(drawn) == sorted(computed)
    arrows = sum(d in computed for t in computed for d in table.tasks[t].dependencies)
    assert sum(e["ph"] == "s" for e in events) == arrows > 0


def test_every_mode_draws_a_real_run(run: tuple[str, Any, dict[str, int]]) -> None:
    """Text and picture, whatever the log."""
    _, logs, ids = run
    for mode in viz.modes():
        assert viz.show_logs(logs, mode)
        assert viz.render_logs(logs, mode) is not None
    dot = viz.logs_to_dot(logs)
    assert f'v{ids["failed"]} -> v{ids["skipped"]} [label="syncdep"' in dot
    assert viz.LogView(logs)._repr_html_()


def test_the_bytes_of_results_are_a_counter() -> None:
    """BytesAllocd's stream rises with the results."""
    context = D.eager_context()
    before = context.log_sink
    try:
        D.enable_logging(metrics=True)
        kept = D.spawn(load, 5_000)
        D.fetch(kept)
        logs = D.fetch_logs()
    finally:
        context.log_sink = before
    values = [e["args"]["value"] for e in viz.chrome_trace(logs).events if e["name"] == "bytes allocated"]
    assert max(values) > 5_000


def test_paths_and_replays_of_a_real_run_are_consistent(run: tuple[str, Any, dict[str, int]]) -> None:
    """The critical path is a lower bound of the time that passed, one virtual worker an upper one of work."""
    _, logs, _ = run
    table = viz.read_logs(logs)
    path = viz.critical_path(table)
    assert path.length_ns <= table.finish_ns - table.start_ns
    assert sum(path.waits.values()) == path.duration_ns <= table.finish_ns - table.start_ns
    assert viz.simulate(table, 1).makespan_ns >= viz.simulate(table, 2).makespan_ns >= path.length_ns
    assert 0 < viz.where_time_went(table).utilisation <= 1


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its code, in its order."""
    monkeypatch.chdir(tmp_path)
    before = D.eager_context().log_sink
    names: dict[str, Any] = {}
    try:
        for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S):
            exec(compile(code, "pictures.md", "exec"), names)
    finally:
        D.eager_context().log_sink = before
    assert check_trace(json.loads((tmp_path / "trace.json").read_text()))
    assert "<svg" in (tmp_path / "run.svg").read_text()


def test_the_page_names_every_mode_and_option() -> None:
    """What exists is documented."""
    text = DOCS.read_text()
    for mode in ("graphviz", "chrome_trace", "gantt", "plots_gantt", "summary", "dataframe"):
        assert f"`{mode}`" in text
    for function in (viz.logs_to_dot, viz.chrome_trace, viz.gantt, viz.simulate, viz.logs_to_dataframe):
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            if parameter.kind is not parameter.VAR_KEYWORD:
                assert re.search(rf"\b{parameter.name}\b", text), parameter.name
    for column in viz.logs_to_dataframe({}).columns:
        assert f"`{column}`" in text, column
