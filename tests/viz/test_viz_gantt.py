"""Gantt charts and the rows they are drawn from."""

from __future__ import annotations

import re
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from otel_timespan.errors import InvalidOptionError, MissingExtraError
from otel_timespan.timespans.model import EventId
from otel_timespan.viz import gantt, logs_to_rows, render_logs, show_logs
from otel_timespan.viz.gantt_layout import COLUMNS, MAX_LANES, MAX_ROWS
from tests.viz.viz_logs import Proc, Run, diamond, layered

SVG = "{http://www.w3.org/2000/svg}"


def bars(svg: str) -> list[str]:
    """The tooltips of the bars."""
    return [e.text or "" for e in ElementTree.fromstring(svg).iter(f"{SVG}title")]


@pytest.mark.parametrize("kind", ["streams", "raw", "timespans"])
def test_execution_rows_have_the_documented_columns(kind: str) -> None:
    """One row a body, times in seconds since the first event and in nanoseconds."""
    rows = logs_to_rows(getattr(diamond(), kind)(), "execution")
    assert [row["task_id"] for row in rows] == [row["tid"] for row in rows] == [1, 2, 3, 4]
    assert rows[0].keys() >= {"proc", "proc_name", "fn_name", "tid", "t_start", "t_end", "color", "thread_id"}
    assert (rows[1]["start_ns"], rows[1]["end_ns"]) == (12_100, 32_100)
    assert rows[1]["t_start"] == pytest.approx(11.1e-6)
    assert rows[1]["proc_name"] == "W: 1, TID: 1" and rows[3]["fn_name"] == "merge"


def test_processor_and_scheduler_rows_have_categories() -> None:
    """What processors did, and what the scheduler did."""
    run = diamond()
    run.span("handle_fault", EventId(uid=1, worker=2), 70_000, 70_100)
    run.span("remove_procs", EventId(uid=1, worker=2), 69_000, 69_100)
    assert {r["category"] for r in logs_to_rows(run.raw(), "processor")} == {"compute", "proc_run_fetch"}
    scheduler = {r["category"] for r in logs_to_rows(run.raw(), "scheduler")}
    assert scheduler == {"add_thunk", "schedule", "finish", "handle_fault", "remove_procs"}


def test_the_text_is_a_standalone_svg_with_a_bar_a_body() -> None:
    """Well-formed XML; each bar tells its task, its time and when; the slowest path is outlined."""
    svg = show_logs(diamond().streams(), "gantt")
    assert isinstance(svg, str)
    assert bars(svg) == [
        "load (task 1): 10 us at 1000 ns",
        "count (task 2): 20 us at 11.1 us",
        "the end (task 4): 8 us at 51.3 us",
        "count (task 3): 40 us at 11.2 us",
    ]
    assert svg.count("stroke-width='1.6'") == 3 + 1  # and the legend
    assert "slowest path" in svg and "slowest path" not in gantt(diamond().streams(), path=False)


def test_plots_gantt_is_the_same_mode() -> None:
    """Dagger's name for it."""
    assert show_logs(diamond().streams(), "plots_gantt") == str(render_logs(diamond().streams(), "gantt"))


def test_a_matplotlib_figure_of_the_same_chart() -> None:
    """A row a processor; options go to the figure."""
    figure = render_logs(diamond().streams(), "plots_gantt", figsize=(5, 2), dpi=50).figure()
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["W: 1, TID: 1", "W: 1, TID: 2"]
    assert tuple(figure.get_size_inches()) == (5, 2)
    figure.canvas.draw()


def test_without_matplotlib_the_svg_is_there_and_the_figure_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported before it is needed."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    chart = gantt(diamond().streams())
    assert "<svg" in chart
    with pytest.raises(MissingExtraError, match=r"otel-timespan\[viz\]"):
        chart.figure()


@pytest.mark.parametrize("target", ["processor", "scheduler"])
def test_the_other_targets(target: str) -> None:
    """They are drawn and their rows are named."""
    chart = gantt(diamond().raw(), target=target)
    names = [row.name for row in chart.chart.rows]
    expected = ["W: 1, TID: 1", "W: 1, TID: 2"] if target == "processor" else ["add_thunk", "finish", "schedule"]
    assert names == expected
    ElementTree.fromstring(chart.svg())


def test_bars_that_overlap_get_lanes_up_to_a_bound() -> None:
    """None hides another one, and a row does not grow without end."""
    run, proc = Run(), Proc(1, 1)
    for task_id in range(1, 21):
        run.begin(task_id, task_id, task_id, proc, None)
    for task_id in range(1, 21):
        run.end(task_id, 1_000 + task_id, proc, None)
    (row,) = gantt(run.raw()).chart.rows
    assert row.lanes == MAX_LANES and {bar.lane for bar in row.bars[:MAX_LANES]} == set(range(MAX_LANES))


def test_the_time_of_all_workers_is_shown() -> None:
    """Not only that of worker 1."""
    run = Run()
    run.task(1, 1_000, 1_010, 2_000, 3_000)
    run.task(2, 1_000, 1_010, 5_000, 9_000, proc=Proc(2, 1), thread=(9, "t"))
    chart = gantt(run.raw()).chart
    assert (chart.start, chart.end) == (pytest.approx(1e-6), pytest.approx(8e-6))


def test_failed_and_unfinished_bodies_look_different() -> None:
    """The failure's outline is explained in the legend."""
    run = diamond()
    run.finish(2, 32_100, 32_105, ValueError("x"), "failure")
    svg = gantt(run.raw())
    assert "count (task 2): 20 us at 11.1 us, failure" in bars(svg)
    assert "failed or cancelled" in svg


def test_many_bars_are_bounded_and_nothing_disappears_unsaid() -> None:
    """The longest are drawn one by one, the rest together; the note counts both."""
    run = layered(100, 20, [50, 40_000, 70])
    svg = gantt(run.raw(), limit=50)
    note = svg.chart.note
    assert len(bars(svg)) == 50 and "2,000 bars" in note and "50 longest" in note and "1,950 shorter" in note
    assert note.replace("<", "&lt;") in svg
    assert sum(len(row.stretches) for row in svg.chart.rows) > 0
    assert all(len(row.stretches) <= COLUMNS * row.lanes for row in svg.chart.rows)


def test_stretches_are_where_the_short_bars_were() -> None:
    """Their total length is about the time that was used."""
    run = layered(200, 10, [1_000])
    chart = gantt(run.raw(), limit=1).chart
    used = sum(1_000 for _ in range(1_999)) / 1e9
    drawn = sum((s.end - s.start) * s.share for row in chart.rows for s in row.stretches)
    assert drawn == pytest.approx(used, rel=0.15)


def test_too_many_rows_keep_the_busiest() -> None:
    """And the note says how many are not shown."""
    run = Run()
    for number in range(1, MAX_ROWS + 11):
        run.task(number, 0, 10, 100, 100 + number, proc=Proc(1, number), thread=(number, ""))
    chart = gantt(run.raw()).chart
    assert len(chart.rows) == MAX_ROWS and "10 less busy rows left out" in chart.note
    assert chart.rows[0].name == "W: 1, TID: 11" and chart.rows[-1].name == f"W: 1, TID: {MAX_ROWS + 10}"


def test_colors_follow_the_options() -> None:
    """By function or processor, in black, or as a function says."""
    assert list(gantt(diamond().raw(), color_by="proc").chart.legend) == ["W: 1, TID: 2", "W: 1, TID: 1"]
    assert set(gantt(diamond().raw(), colors=None).chart.legend.values()) == {"#000000"}
    chosen = gantt(diamond().raw(), name_to_color=lambda name, colors: f"hsl({len(name)} 50% 50%)")
    assert chosen.chart.legend["load"] == "hsl(4 50% 50%)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "x"}, "target='x' is not known; allowed are execution, processor, scheduler"),
        ({"target": "tasks"}, "target='tasks'"),
        ({"color_by": "x"}, "color_by='x'"),
        ({"limit": 0}, "limit"),
        ({"width": 3}, "width"),
        ({"bins": 3}, "no option bins; allowed are target"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    """The error names what is allowed."""
    with pytest.raises(InvalidOptionError, match=re.escape(said)):
        gantt(diamond().streams(), **options)


@pytest.mark.parametrize("target", ["execution", "processor", "scheduler"])
def test_an_empty_log_is_an_empty_chart(target: str) -> None:
    """It says so."""
    chart = gantt({1: []}, target=target)
    assert "nothing recorded" in chart
    ElementTree.fromstring(chart.svg())
    chart.figure().canvas.draw()


def test_texts_are_escaped() -> None:
    """A label may hold markup."""
    run = Run()
    run.task(1, 0, 10, 1_000, 900_000, name="<b>&'\"")
    assert bars(gantt(run.raw()))[0].startswith("<b>&'\"")


def test_a_chart_shows_itself_in_a_notebook() -> None:
    """As the SVG it is."""
    assert "<svg" in gantt(diamond().raw())._repr_html_()
