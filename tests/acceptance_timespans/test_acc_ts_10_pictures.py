"""spec/timespans.md §10 (show_logs, render_logs), with ruling 26 and docs/pictures.md."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import errors, viz
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import add, boom, fetch, logged, mul, numbers

MODES = ["graphviz", "chrome_trace", "gantt", "plots_gantt", "summary", "dataframe"]


@pytest.fixture
def run() -> dict[str, Any]:
    """A reduction of four tasks, one named, one failed with its dependent; the log, complete."""
    D.enable_logging(metrics=True, gc_stats=True)
    t = D.spawn(add, 1, 2)
    u = D.spawn(mul, t, 3)
    n = D.spawn(numbers, D.Options(name='my "N"'), 4)
    s = D.spawn(sum, n)
    b = D.spawn(boom)
    c = D.spawn(mul, b, 1)
    assert (fetch(u), fetch(s)) == (9, 6)
    D.wait(c)
    tasks = {"t": t, "u": u, "n": n, "s": s, "b": b, "c": c}
    return {"logs": {1: logged(*tasks.values())}, **{name: task.id for name, task in tasks.items()}}


def rows(*events: tuple[str, str, Any, int], worker: int = 1, **streams: list[Any]) -> dict[int, dict[str, list[Any]]]:
    """A log of (kind, category, id, timestamp) and further streams."""
    core = [E.CoreRecord(t, c, k) for k, c, _, t in events]
    return {worker: {"core": core, "id": [i for _, _, i, _ in events], **streams}}


def made(tid: int, t0: int, t1: int, name: str = "f", deps: tuple[int, ...] = (), worker: int = 1, tz: int = 0,
         proc: Any = None) -> dict[int, Any]:  # fmt: skip
    """A log of one task: submitted at tz, computed from t0 to t1."""
    proc = proc or D.ThreadProc(worker, 1)
    add_id, compute_id = T.EventId(thunk_id=tid), T.EventId(thunk_id=tid, processor=proc)
    return rows(
        ("start", "add_thunk", add_id, tz), ("finish", "add_thunk", add_id, tz),
        ("start", "compute", compute_id, t0), ("finish", "compute", compute_id, t1), worker=worker,
        taskfuncnames=[name, None, None, None], tasknames=[f"{name} [{tid}]", None, None, None],
        taskdeps=[None, (tid, list(deps)), None, None],
    )  # fmt: skip


def merged(*logs: dict[int, Any]) -> dict[int, Any]:
    """Logs of one worker each, put one after another."""
    out: dict[int, Any] = {}
    for log in logs:
        for worker, streams in log.items():
            for name, values in streams.items():
                out.setdefault(worker, {}).setdefault(name, []).extend(values)
    return out


def statements(dot: str, kind: str) -> list[str]:
    """The lines of one kind: box, oval, or an edge's label."""
    if kind in ("box", "oval"):
        return [s for s in dot.splitlines() if f"shape={kind}" in s]
    return [s for s in dot.splitlines() if "->" in s and re.search(rf'label="{kind}"', s)]


class TestModes:
    """§10: the registry."""

    @pytest.mark.parametrize("mode", MODES)
    def test_10_show_returns_or_writes(self, run: dict[str, Any], mode: str, tmp_path: Path) -> None:
        """Without io the text; with io it is written there and nothing returned (ruling 26); a path too."""
        text = viz.show_logs(run["logs"], mode)
        assert isinstance(text, str)
        assert text.strip()
        out = io.StringIO()
        assert viz.show_logs(run["logs"], mode, out) is None
        assert out.getvalue().strip() == text.strip()
        assert viz.show_logs(run["logs"], mode, io=str(tmp_path / "x")) is None
        assert (tmp_path / "x").read_text(encoding="utf-8").strip() == text.strip()

    @pytest.mark.parametrize("mode", MODES)
    def test_10_render(self, run: dict[str, Any], mode: str) -> None:
        """render_logs gives a displayable object."""
        if mode == "dataframe":
            pytest.importorskip("pandas")
        assert viz.render_logs(run["logs"], mode) is not None

    @pytest.mark.parametrize("call", [viz.show_logs, viz.render_logs])
    def test_10_unknown_mode(self, call: Any) -> None:
        """A ValueError that names the mode and the log's type."""
        with pytest.raises(ValueError, match="nope") as caught:
            call({1: {"core": [], "id": []}}, "nope")
        assert "dict" in str(caught.value)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("log", [5, "text", object(), {1: 5}, {"core": [E.CoreRecord(1, "c", "start")], "id": [1]}])
    def test_10_no_log(self, mode: str, log: Any) -> None:
        """What is no log is a ValueError naming the mode."""
        with pytest.raises(ValueError) as caught:
            viz.show_logs(log, mode)
        assert mode.removeprefix("plots_") in str(caught.value)

    @pytest.mark.parametrize("mode", MODES)
    def test_10_unknown_option(self, run: dict[str, Any], mode: str) -> None:
        """An unknown option is an InvalidOptionError that names it."""
        with pytest.raises(errors.InvalidOptionError, match="nonsense"):
            viz.show_logs(run["logs"], mode, nonsense=1)

    def test_10_open_registry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`register(mode, show=, render=, log_type=)`; a mode for one log type refuses others, naming both."""

        class Mine:
            pass

        # The registry is the process's, and other tests go through all modes.
        monkeypatch.setattr(sys.modules["otel_timespan.viz.modes"], "_modes", {})
        viz.register("acc_ts", show=lambda log, n=1: "x" * n, render=lambda log: {"a": log}, log_type=Mine)
        log = Mine()
        assert viz.show_logs(log, "acc_ts", n=3) == "xxx"
        assert viz.render_logs(log, "acc_ts") == {"a": log}
        assert "acc_ts" in viz.modes()
        with pytest.raises(ValueError, match="acc_ts") as caught:
            viz.show_logs([], "acc_ts")
        assert "list" in str(caught.value)
        with pytest.raises(errors.InvalidOptionError):
            viz.register("acc_ts2")
        with pytest.raises(errors.NotCallableError):
            viz.register("acc_ts2", show=5)  # type: ignore[arg-type]

    def test_26_modes(self) -> None:
        """All modes are there; `plots_gantt` is the alias of `gantt`."""
        assert set(MODES) <= set(viz.modes())

    def test_10_bad_path(self, run: dict[str, Any], tmp_path: Path) -> None:
        """A file that can't be written is an error of ours naming it."""
        with pytest.raises(errors.InvalidOptionError, match="missing"):
            viz.show_logs(run["logs"], "summary", io=str(tmp_path / "missing" / "x"))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("log", [{}, {1: {"core": [], "id": []}}, []])
    def test_10_empty_logs(self, mode: str, log: Any) -> None:
        """An empty log is shown, by every mode."""
        assert isinstance(viz.show_logs(log, mode), str)

    @pytest.mark.parametrize("mode", MODES)
    def test_10_ids_that_are_none(self, mode: str) -> None:
        """§1.1: renderers skip events whose id is None, and bear ids without fields."""
        log = rows(
            ("start", "c", None, 0), ("finish", "c", None, 5), ("start", "compute", 7, 0), ("finish", "compute", 7, 5)
        )
        assert isinstance(viz.show_logs(log, mode), str)

    @pytest.mark.parametrize("mode", MODES)
    def test_10_other_kinds_of_logs(self, mode: str) -> None:
        """Raw events and timespans of a LocalEventLog, and a list as a sink, are logs too."""
        context = D.eager_context()
        context.log_sink = events = []
        fetch(D.spawn(mul, D.spawn(add, 1, 2), 3))
        raw = list(events)
        for log in (raw, {1: raw}, list(T.build_timespans(raw).completed)):
            text = viz.show_logs(log, mode)
            assert text
            if mode == "summary":
                assert "[compute" in text

    def test_10_the_face(self) -> None:
        """api.md: `ts.show_logs`, `ts.render_logs`."""
        assert ts.show_logs is viz.show_logs
        assert ts.render_logs is viz.render_logs


class TestGraphviz:
    """§10.1."""

    def test_10_1_accept_two_dependent_tasks(self) -> None:
        """Two boxes and one syncdep edge."""
        D.enable_logging()
        t = D.spawn(add, 1, 2)
        u = D.spawn(mul, t, 3)
        fetch(u)
        dot = viz.show_logs({1: logged(t, u)}, "graphviz")
        assert dot is not None
        assert len(statements(dot, "box")) == 2
        assert [s.split("[")[0].strip() for s in statements(dot, "syncdep")] == [f"v{t.id} -> v{u.id}"]
        assert dot.lstrip().removeprefix("strict ").startswith("digraph")

    def test_10_1_boxes(self, run: dict[str, Any]) -> None:
        """v<id>: a box of pen width 2; name, "Task:" line if renamed, processor, times."""
        dot = viz.logs_to_dot(run["logs"])
        boxes = {s.split()[0]: s for s in statements(dot, "box")}
        assert list(boxes) == [f"v{run[name]}" for name in "tunsbc"]  # sorted by id
        assert all(re.search(r"penwidth=\"?2", s) for s in boxes.values())
        named = boxes[f"v{run['n']}"]
        assert r'label="my \"N\"\nTask: numbers\n(' in named
        assert re.search(r"\[\+[\d.]+ \w+ -> \+[\d.]+ \w+ \(diff: [\d.]+ \w+\)\]", boxes[f"v{run['t']}"])
        assert 'label="add\\n(' in boxes[f"v{run['t']}"]
        assert "Task:" not in boxes[f"v{run['t']}"]

    def test_10_1_tasks_without_compute(self, run: dict[str, Any]) -> None:
        """Defect 13: a task that never ran is drawn without processor and times."""
        dot = viz.logs_to_dot(run["logs"])
        (box,) = [s for s in statements(dot, "box") if s.startswith(f"v{run['c']} ")]
        assert 'label="mul"' in box

    def test_10_1_edges(self, run: dict[str, Any]) -> None:
        """syncdep, arg <n>, result and move edges."""
        dot = viz.logs_to_dot(run["logs"])
        pairs = {s.split("[")[0].strip() for s in statements(dot, "syncdep")}
        assert pairs == {f"v{run[a]} -> v{run[b]}" for a, b in ("tu", "ns", "bc")}
        assert [s.split("->")[1].split()[0] for s in statements(dot, "arg 1")] == [f"v{run['s']}"]
        assert any(s.startswith(f"v{run['n']} -> a") for s in statements(dot, "result"))
        assert all(re.match(r"a\w+ -> a\w+", s.strip()) for s in statements(dot, "move"))
        assert len(statements(dot, "move")) == len(set(statements(dot, "move"))) >= 1

    def test_10_1_kwargs(self) -> None:
        """A keyword argument's edge is `kwarg <name>`; a data name shows in its oval."""
        D.enable_logging()
        data = [3, 1, 2]
        D.logs_annotate(data, "my data")
        t = D.spawn(dict, values=data)
        fetch(t)
        dot = viz.logs_to_dot({1: logged(t)})
        assert len(statements(dot, "kwarg values")) == 1
        assert any("my data" in s and "Data: 0x" in s for s in statements(dot, "oval"))

    def test_10_1_show_data_off(self, run: dict[str, Any]) -> None:
        """No ovals, and no edges of data."""
        dot = viz.logs_to_dot(run["logs"], show_data=False)
        assert not statements(dot, "oval")
        assert not re.search(r"\ba\d", dot)
        assert len(statements(dot, "syncdep")) == 3

    def test_10_1_times(self, run: dict[str, Any]) -> None:
        """times=False: no times; times_digits rounds."""
        assert "diff:" not in viz.logs_to_dot(run["logs"], times=False)
        log = merged(made(1, 1000, 5123, tz=0), made(2, 2_234_567, 2_334_567, deps=(1,), tz=1))
        dot = viz.logs_to_dot(log, times_digits=1)
        assert "[+0 ns -> +4.1 us (diff: 4.1 us)]" in dot
        assert "[+2.2 ms -> +2.3 ms (diff: 100" in dot

    def test_10_1_times_are_of_each_worker(self) -> None:
        """Relative to the first compute start of that worker."""
        log = merged(made(1, 1000, 2000), made(2, 501_000, 503_000, deps=(1,), worker=2))
        dot = viz.logs_to_dot(log)
        (two,) = [s for s in statements(dot, "box") if s.startswith("v2 ")]
        assert "[+0 ns -> +2 us (diff: 2 us)]" in two

    def test_10_1_disconnected(self) -> None:
        """A node without edges is dropped, unless disconnected=True."""
        log = merged(made(1, 10, 20), made(2, 30, 40, deps=(1,)), made(3, 50, 60))
        assert [s.split()[0] for s in statements(viz.logs_to_dot(log), "box")] == ["v1", "v2"]
        assert [s.split()[0] for s in statements(viz.logs_to_dot(log, disconnected=True), "box")] == ["v1", "v2", "v3"]

    @pytest.mark.parametrize("bad", ["x", None, 5, "FN"])
    def test_10_1_color_by(self, run: dict[str, Any], bad: Any) -> None:
        """ "fn" or "proc"; else a ValueError."""
        assert viz.logs_to_dot(run["logs"], color_by="proc")
        with pytest.raises(ValueError):
            viz.logs_to_dot(run["logs"], color_by=bad)
        with pytest.raises(ValueError):
            viz.show_logs(run["logs"], "graphviz", color_by=bad)

    def test_10_1_colors(self, run: dict[str, Any]) -> None:
        """20 colours by default; None: black; name_to_color decides; equal names have equal colours."""
        assert len(viz.PALETTE) == 20
        assert all("black" in s or "#000000" in s for s in statements(viz.logs_to_dot(run["logs"], colors=None), "box"))
        dot = viz.logs_to_dot(run["logs"], colors=["#123456"], name_to_color=lambda name, colors: colors[0])
        assert all("#123456" in s for s in statements(dot, "box"))
        log = merged(made(1, 10, 20, "f"), made(2, 30, 40, "f", deps=(1,)))
        assert len({re.search(r'color="([^"]+)"', s)[1] for s in statements(viz.logs_to_dot(log), "box")}) == 1  # type: ignore[index]

    def test_10_1_same_text(self, run: dict[str, Any]) -> None:
        """The same log gives the same text."""
        assert viz.logs_to_dot(run["logs"]) == viz.logs_to_dot(run["logs"])

    def test_10_1_names_are_escaped(self) -> None:
        """Quotes, backslashes and line breaks in names leave the DOT valid."""
        log = merged(made(1, 10, 20, 'a"b'), made(2, 30, 40, "c\\d\ne", deps=(1,)))
        dot = viz.logs_to_dot(log)
        for text in dot.splitlines():
            assert len(re.findall(r'(?<!\\)(?:\\\\)*"', text)) % 2 == 0, text
        if shutil.which("dot"):
            assert "<svg" in viz.render_logs(log, "graphviz").svg()

    def test_10_1_render(self, run: dict[str, Any]) -> None:
        """An object with `.dot` and `.svg()`; the engine is an option of rendering."""
        picture = viz.render_logs(run["logs"], "graphviz", layout_engine="dot")
        assert picture.dot == viz.show_logs(run["logs"], "graphviz")
        if shutil.which("dot"):
            assert "<svg" in picture.svg()
        with pytest.raises(errors.InvalidOptionError):
            viz.show_logs(run["logs"], "graphviz", layout_engine="dot")


class TestSummary:
    """§10.2."""

    def test_10_2_accept(self, run: dict[str, Any]) -> None:
        """Header and Run Time, to io."""
        out = io.StringIO()
        viz.show_logs(run["logs"], "summary", out)
        assert "Dagger Execution Summary" in out.getvalue()
        assert "Run Time" in out.getvalue()

    @pytest.mark.parametrize("log", [{}, {1: {"core": [], "id": []}}])
    def test_10_2_nothing_recorded(self, log: Any) -> None:
        """One line saying so."""
        assert len((viz.show_logs(log, "summary") or "").strip().splitlines()) == 1

    def test_10_2_blocks(self) -> None:
        """`[category] N events`, mean, min, max; per function for compute and move; sorted by category."""
        log = merged(made(1, 0, 1000, "f"), made(2, 0, 3000, "f"), made(3, 0, 2000, "g"))
        text = viz.show_logs(log, "summary") or ""
        lines = text.splitlines()
        heads = [s.strip() for s in lines if s.strip().startswith("[") and "::" not in s]
        assert [s.split("]")[0] for s in heads] == ["[add_thunk", "[compute"]
        assert heads[1].startswith("[compute] 3 events")
        assert "2" in heads[1].removeprefix("[compute] 3 events")  # two distinct functions
        assert [s.strip() for s in lines if "::" in s] == ["[compute :: f] 2 events", "[compute :: g] 1 events"]
        values = [s for s in lines if s.strip().startswith("Run Time")]
        assert [re.findall(r"(?:mean|min|max)\W+([\d.]+ \w+)", s) for s in values[1:]] == [
            ["2 us", "1000 ns", "3 us"], ["2 us", "1000 ns", "3 us"], ["2 us", "2 us", "2 us"],
        ]  # fmt: skip

    def test_10_2_columns(self, run: dict[str, Any]) -> None:
        """In the category blocks values start at column 20, with at least two blanks before."""
        text = viz.show_logs(run["logs"], "summary") or ""
        block = text.split("[add_thunk]")[1].split("[")[0].splitlines()[1:]
        values = [s for s in block if s.strip()]
        assert values
        assert all(s[18:20] == "  " and s[20] != " " for s in values)

    def test_10_2_metrics(self) -> None:
        """Bytes Allocated, Compile Time and Lock Conflicts are read at the finish entries, and formatted."""
        log = made(1, 0, 1000)
        log[1] |= {"gc_stats": [None, 1, None, 2048], "compile_time": [None, 1, None, 2_500_000],
                   "lock_contend": [None, 0, None, 7],
                   "linuxperf": [None, None, None, {"page-faults": 41}]}  # fmt: skip
        text = viz.show_logs(log, "summary") or ""
        block = text.split("[compute]")[1].split("[compute ::")[0]
        found = {s.split("  ")[1].strip(): s for s in block.splitlines() if s.startswith("  ")}
        assert "2 KiB" in found["Bytes Allocated"]
        assert "2.5 ms" in found["Compile Time"]
        assert "7" in found["Lock Conflicts"]
        assert "41" in found["page-faults"]

    def test_10_2_on_a_terminal_or_not(self, run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        """Ruling 26: without io nothing is printed; the text is returned."""
        viz.show_logs(run["logs"], "summary")
        assert capsys.readouterr().out == ""


def trace(logs: Any, **options: Any) -> list[dict[str, Any]]:
    """The events of a Chrome trace."""
    return json.loads(viz.show_logs(logs, "chrome_trace", **options) or "")["traceEvents"]  # type: ignore[no-any-return]


class TestChrome:
    """§10.3."""

    @pytest.mark.parametrize("detail", ["tasks", "phases", "scheduler"])
    def test_10_3_fields(self, run: dict[str, Any], detail: str) -> None:
        """Every event has name, ph, ts, pid, tid."""
        for event in trace(run["logs"], detail=detail):
            assert {"name", "ph", "ts", "pid", "tid"} <= set(event), event
            assert isinstance(event["pid"], int)

    def test_10_3_one_complete_event_a_task(self, run: dict[str, Any]) -> None:
        """One X of cat compute per computed task; the annotation's name wins; none for tasks that never ran."""
        bodies = [e for e in trace(run["logs"]) if e["ph"] == "X" and e["cat"] == "compute"]
        assert sorted(e["name"] for e in bodies) == sorted(["add", "mul", 'my "N"', "sum", "boom"])
        assert {e["pid"] for e in bodies} == {1}
        assert all(isinstance(e["tid"], int) for e in bodies)

    def test_10_3_microseconds(self) -> None:
        """ts and dur are in microseconds."""
        (body,) = [e for e in trace(made(1, 5_000, 12_500)) if e["ph"] == "X" and e["cat"] == "compute"]
        assert (body["ts"], body["dur"], body["name"]) == (5, 7.5, "f")

    def test_26_dependencies(self, run: dict[str, Any]) -> None:
        """One s/f pair a dependency between computed tasks, matched by cat and id, s never after f."""
        events = trace(run["logs"])
        starts = {(e["cat"], e["id"]): e for e in events if e["ph"] == "s"}
        ends = {(e["cat"], e["id"]): e for e in events if e["ph"] == "f"}
        assert starts.keys() == ends.keys()
        assert len(starts) == sum(e["ph"] == "s" for e in events) == sum(e["ph"] == "f" for e in events) == 2
        assert all(starts[k]["ts"] <= ends[k]["ts"] for k in starts)

    def test_10_3_other_processors(self) -> None:
        """Computes of an unknown processor kind do not break it; every body is there."""
        log = merged(made(1, 0, 10, proc="gpu"), made(2, 20, 30))
        assert len([e for e in trace(log) if e["ph"] == "X" and e["cat"] == "compute"]) == 2

    def test_10_3_render(self, run: dict[str, Any], tmp_path: Path) -> None:
        """`.events`, `.write(path)`, `.left_out`; write_chrome_trace."""
        picture = viz.render_logs(run["logs"], "chrome_trace")
        picture.write(tmp_path / "a.json")
        viz.write_chrome_trace(run["logs"], tmp_path / "b.json")
        a, b = (json.loads((tmp_path / name).read_text())["traceEvents"] for name in ("a.json", "b.json"))
        assert a == b == list(picture.events)
        assert not picture.left_out

    @pytest.mark.parametrize("options", [{"detail": "all"}, {"max_events": 0}, {"max_events": "x"}])
    def test_10_3_bad_options(self, run: dict[str, Any], options: dict[str, Any]) -> None:
        """Bad values are an InvalidOptionError."""
        with pytest.raises(errors.InvalidOptionError):
            viz.show_logs(run["logs"], "chrome_trace", **options)


class TestGantt:
    """§10.4."""

    COLUMNS = {  # noqa: RUF012
        "execution": {"proc", "proc_name", "fn_name", "tid", "t_start", "t_end", "color"},
        "processor": {"proc", "proc_name", "category", "t_start", "t_end", "color"},
        "scheduler": {"category", "t_start", "t_end", "color"},
    }

    @pytest.mark.parametrize("target", sorted(COLUMNS))
    def test_10_4_tables(self, run: dict[str, Any], target: str) -> None:
        """The columns of the table step; times in seconds from the first event."""
        got = viz.logs_to_rows(run["logs"], target)
        assert got
        assert all(self.COLUMNS[target] <= set(row) for row in got)
        assert all(0 <= row["t_start"] <= row["t_end"] < 60 for row in got)

    def test_10_4_what_the_targets_show(self, run: dict[str, Any]) -> None:
        """execution: bodies by function; processor and scheduler: their categories."""
        names = sorted(row["fn_name"] for row in viz.logs_to_rows(run["logs"], "execution"))
        assert names == sorted(["add", "mul", "numbers", "sum", "boom"])
        processor = {row["category"] for row in viz.logs_to_rows(run["logs"], "processor")}
        assert {"compute", "proc_run_fetch", "storage_safe_scan"} <= processor
        assert processor <= {"compute", "storage_wait", "storage_safe_scan", "proc_run_fetch", "proc_steal_local"}
        scheduler = {row["category"] for row in viz.logs_to_rows(run["logs"], "scheduler")}
        assert {"scheduler_init", "add_thunk", "schedule", "finish"} <= scheduler
        assert not scheduler & {"compute", "move"}

    def test_10_4_fault_rows(self) -> None:
        """Defect 13: handle_fault and remove_procs have rows."""
        id = T.EventId(uid=1, worker=2)
        log = rows(*((k, c, id, t) for c in ("handle_fault", "remove_procs") for k, t in (("start", 1), ("finish", 2))))
        assert {row["category"] for row in viz.logs_to_rows(log, "scheduler")} == {"handle_fault", "remove_procs"}

    def test_10_4_all_workers_count(self) -> None:
        """Defect 13: the time range is that of all workers, not of worker 1."""
        log = merged(
            made(1, 3_000_000_000, 4_000_000_000, tz=2_000_000_000), made(2, 10**9, 9 * 10**9, worker=2, tz=10**9)
        )
        got = {row["tid"]: (row["t_start"], row["t_end"]) for row in viz.logs_to_rows(log, "execution")}
        assert got == {1: (2.0, 3.0), 2: (0.0, 8.0)}
        assert viz.render_logs(log, "gantt")
        assert viz.render_logs({2: log[2]}, "gantt")

    @pytest.mark.parametrize("target", sorted(COLUMNS))
    def test_10_4_figures(self, run: dict[str, Any], target: str) -> None:
        """Each target is drawn; the figure too."""
        chart = viz.render_logs(run["logs"], "gantt", target=target)
        assert "<svg" in chart
        assert viz.show_logs(run["logs"], "plots_gantt", target=target) == str(chart)
        pytest.importorskip("matplotlib")
        figure = viz.render_logs(run["logs"], "plots_gantt", target=target).figure()
        assert figure.axes
        legend = figure.axes[0].get_legend() or (figure.legends[0] if figure.legends else None)
        if legend is not None:
            labels = [text.get_text() for text in legend.get_texts()]
            assert len(labels) == len(set(labels))

    @pytest.mark.parametrize(
        "options", [{"target": "x"}, {"target": None}, {"color_by": "x"}, {"limit": 0}, {"width": -5}]
    )
    def test_10_4_bad_options(self, run: dict[str, Any], options: dict[str, Any]) -> None:
        """Other values are a ValueError."""
        with pytest.raises(ValueError):
            viz.show_logs(run["logs"], "gantt", **options)

    def test_10_4_names_are_escaped(self) -> None:
        """Markup in names stays text: the SVG parses."""
        import xml.etree.ElementTree as ET

        svg = viz.show_logs(made(1, 0, 10**6, '<b>&"x"'), "gantt") or ""
        ET.fromstring(svg)
        assert "<b>" not in svg

    def test_10_4_colors(self, run: dict[str, Any]) -> None:
        """colors, name_to_color and color_by decide the rows' colours."""
        got = viz.logs_to_rows(run["logs"], "execution", name_to_color=lambda name, colors: "#" + f"{len(name):06d}")
        assert {row["color"] for row in got if row["fn_name"] == "boom"} == {"#000004"}
        assert {row["color"] for row in viz.logs_to_rows(run["logs"], "execution", colors=None)} <= {"black", "#000000"}
        by_proc = viz.logs_to_rows(run["logs"], "execution", color_by="proc")
        assert len({(row["proc_name"], row["color"]) for row in by_proc}) == len({row["proc_name"] for row in by_proc})


class TestDataFrame:
    """Ruling 26 and docs/pictures.md."""

    def test_26_rows(self, run: dict[str, Any]) -> None:
        """task_id is the task; times are integers `*_ns`; one row a task, whether it ran or not."""
        got = {row["task_id"]: row for row in viz.logs_to_rows(run["logs"], "tasks")}
        assert set(got) == {run[name] for name in "tunsbc"}
        row = got[run["u"]]
        assert row["function"] == "mul"
        assert list(row["dependencies"]) == [run["t"]]
        assert isinstance(row["start_ns"], int)
        assert row["submitted_ns"] <= row["start_ns"] <= row["end_ns"] <= row["finished_ns"]
        phases = ["dependency_ns", "schedule_ns", "queue_ns", "move_ns", "compute_ns", "finish_ns"]
        assert sum(row[name] for name in phases) == row["finished_ns"] - row["submitted_ns"]
        assert got[run["c"]]["start_ns"] is None
        assert got[run["n"]]["name"] == 'my "N"'

    def test_26_frame(self, run: dict[str, Any]) -> None:
        """The frame has those rows."""
        pytest.importorskip("pandas")
        frame = viz.render_logs(run["logs"], "dataframe")
        assert list(frame["task_id"]) == sorted(run[name] for name in "tunsbc")


class TestUnits:
    """§10.5 and §10.2's bytes."""

    @pytest.mark.parametrize(
        ("ns", "text"),
        [(0, "0 ns"), (1, "1 ns"), (1000, "1000 ns"), (1001, "1.001 us"),
         (10**6, "1000 us"), (1_500_000, "1.5 ms"), (10**9, "1000 ms"),
         (2_500_000_000, "2.5 s"), (10**13, "10000 s")],
    )  # fmt: skip
    def test_10_5_durations(self, ns: int, text: str) -> None:
        """Strictly greater than a unit: the unit."""
        assert viz.pretty_time(ns) == text

    def test_10_5_digits(self) -> None:
        """Rounded to `digits`."""
        assert viz.pretty_time(1_234_567, digits=1) == "1.2 ms"
        assert viz.pretty_time(1_234_567, 2) == "1.23 ms"

    @given(st.integers(0, 10**15))
    def test_10_5_value_and_unit(self, ns: int) -> None:
        """The number times its unit is the duration, within rounding."""
        number, unit = viz.pretty_time(ns).split()
        scale = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[unit]
        assert abs(float(number) * scale - ns) <= scale / 1000
        assert unit == "ns" or ns > scale
        assert unit == "s" or ns <= 1000 * scale

    @pytest.mark.parametrize(
        ("n", "text"),
        [
            (0, "0 B"),
            (512, "512 B"),
            (1536, "1.5 KiB"),
            (2**20, "1 MiB"),
            (5 * 2**29, "2.5 GiB"),
            (1234567, "1.177 MiB"),
        ],
    )
    def test_10_2_bytes(self, n: int, text: str) -> None:
        """B, KiB, MiB, GiB with three digits."""
        assert viz.pretty_bytes(n) == text
