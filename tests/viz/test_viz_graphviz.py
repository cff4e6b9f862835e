"""Task graphs: DOT text and its drawing."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

import pytest

from otel_timespan.errors import InvalidOptionError, MissingExtraError, TimespanError
from otel_timespan.timespans.model import EventId
from otel_timespan.viz import GraphPicture, logs_to_dot, render_logs
from tests.viz.viz_logs import Run, diamond, layered

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not installed")


def boxes(dot: str) -> list[int]:
    """The ids of the tasks drawn."""
    return [int(n) for n in re.findall(r"^v(\d+) \[", dot, re.M)]


def edges(dot: str, label: str) -> list[tuple[str, str]]:
    """The (from, to) of the edges with this label."""
    return re.findall(rf'^(\w+) -> (\w+) \[label="{label}"', dot, re.M)


@pytest.mark.parametrize("kind", ["streams", "raw", "timespans"])
def test_a_box_a_task_and_a_syncdep_edge_a_dependency(kind: str) -> None:
    """Sorted by id, whatever the log."""
    dot = logs_to_dot(getattr(diamond(), kind)())
    assert boxes(dot) == [1, 2, 3, 4]
    assert edges(dot, "syncdep") == [("v1", "v2"), ("v1", "v3"), ("v2", "v4"), ("v3", "v4")]


def test_a_label_says_name_function_processor_and_times() -> None:
    """Times count from the first body of the worker; a renamed task tells its function too."""
    dot = logs_to_dot(diamond().streams())
    assert r'v4 [label="the end\nTask: merge\n(W: 1, TID: 1)\n[+50.3 us -> +58.3 us (diff: 8 us)]", shape=box' in dot
    assert r'v1 [label="load\n(W: 1, TID: 1)\n[+0 ns -> +10 us (diff: 10 us)]"' in dot
    assert "penwidth=2.0" in dot
    assert "diff" not in logs_to_dot(diamond().streams(), times=False)
    assert "+50 us" in logs_to_dot(diamond().streams(), times_digits=0)


@pytest.mark.parametrize("kind", ["streams", "raw"])
def test_data_objects_are_ovals_with_what_was_done_to_them(kind: str) -> None:
    """Arguments, results and moves, from the streams or else from the timelines."""
    dot = logs_to_dot(getattr(diamond(), kind)())
    assert edges(dot, "arg 1") == [("a5001", "v2"), ("a5001", "v3"), ("a5002", "v4")]
    assert edges(dot, "arg 2") == [("a5003", "v4")]
    assert edges(dot, "result") == [("v1", "a1"), ("v2", "a2"), ("v3", "a3"), ("v4", "a4")]
    assert edges(dot, "move") == [("a1", "a5001"), ("a2", "a5002"), ("a3", "a5003")]
    assert 'a5001 [label="Data: 0x1389", shape=oval' in dot
    assert "oval" not in logs_to_dot(diamond().streams(), show_data=False)


def test_annotated_data_shows_its_name() -> None:
    """`logs_annotate` gave it one."""
    run = diamond()
    run.span("data_annotation", EventId(objectid=5001, name='the "table"'), 5, 5)
    assert r'a5001 [label="the \"table\"\nData: 0x1389"' in logs_to_dot(run.streams())


def test_tasks_without_edges_are_left_out_unless_asked_for() -> None:
    """And the picture says so."""
    run = diamond()
    run.submit(9, 2_000)
    dot = logs_to_dot(run.raw())
    assert boxes(dot) == [1, 2, 3, 4] and "1 tasks without edges left out" in dot
    assert boxes(logs_to_dot(run.raw(), disconnected=True)) == [1, 2, 3, 4, 9]


def test_tasks_that_never_computed_have_no_processor_and_no_time() -> None:
    """They are boxes like the others, with what became of them."""
    run = diamond()
    run.submit(5, 2_000, deps=[4])
    run.finish(5, 70_000, 70_010, ValueError("x"), "skip")
    assert r'v5 [label="load\nskip", shape=box' in logs_to_dot(run.raw())


def test_colors_follow_the_function_or_the_processor() -> None:
    """Same group, same colour; None draws in black; a function may decide."""

    def colors(**options: Any) -> list[str]:
        return re.findall(r'shape=box, color="([^"]*)"', logs_to_dot(diamond().streams(), **options))

    one, two, three, four = colors()
    assert two == three and len({one, two, four}) == 3
    one, two, three, four = colors(color_by="proc")
    assert one == two == four != three
    assert set(colors(colors=None)) == {"#000000"}
    assert colors(name_to_color=lambda name, palette: name)[:2] == ["load", "count"]
    assert set(colors(colors=["red"])) == {"red"}


@pytest.mark.parametrize(
    "options",
    [{"color_by": "x"}, {"limit": 0}, {"times_digits": -1}, {"colors": "red"}, {"name_to_color": 3}],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    """The error names the option."""
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        logs_to_dot(diamond().streams(), **options)


def test_a_large_graph_is_bounded_and_says_what_is_shown() -> None:
    """The slowest path stays in the picture."""
    dot = logs_to_dot(layered(50, 10, [10, 5_000, 20]).raw(), limit=100)
    assert len(boxes(dot)) == 100 and "100 of 500 tasks shown" in dot
    assert max(boxes(dot)) > 490
    assert len(boxes(logs_to_dot(layered(50, 10).raw(), limit=None))) == 500


def test_the_text_is_the_same_each_time() -> None:
    """Nothing in it depends on hashes or addresses."""
    assert logs_to_dot(layered(4, 5).streams()) == logs_to_dot(layered(4, 5).streams())


def test_an_empty_log_is_an_empty_graph() -> None:
    """Valid DOT without a node."""
    dot = logs_to_dot({})
    assert dot.startswith("strict digraph {") and boxes(dot) == []


@needs_dot
@pytest.mark.parametrize("run", [diamond(), layered(5, 4), Run()], ids=["diamond", "layered", "empty"])
def test_graphviz_draws_it(run: Run) -> None:
    """`svg()` is the laid-out graph, with every box."""
    picture = render_logs(run.streams(), "graphviz")
    svg = picture.svg()
    assert "<svg" in svg and svg.count("<polygon") >= len(boxes(picture.dot))
    assert picture._repr_html_().startswith("<div")


@needs_dot
def test_labels_with_quotes_newlines_and_backslashes_survive_graphviz() -> None:
    """They are escaped in the text."""
    run = diamond()
    run.span("data_annotation", EventId(objectid=1, name='a "b" \\n c\nd <e>'), 5, 5)
    svg = render_logs(run.streams(), "graphviz", show_data=False).svg()
    assert "&quot;b&quot;" in svg and "&lt;e&gt;" in svg


def test_without_the_program_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python library alone draws nothing; a notebook shows the text instead."""
    monkeypatch.setenv("PATH", "")
    picture = render_logs(diamond().streams(), "graphviz")
    with pytest.raises(TimespanError, match="install the system package graphviz"):
        picture.svg()
    assert "<pre>strict digraph" in picture._repr_html_()


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is there all the same."""
    monkeypatch.setitem(sys.modules, "graphviz", None)
    picture = render_logs(diamond().streams(), "graphviz")
    assert boxes(picture.dot) == [1, 2, 3, 4]
    with pytest.raises(MissingExtraError, match=r"otel-timespan\[viz\]"):
        picture.svg()


def test_an_unknown_layout_engine_is_refused() -> None:
    """With its name."""
    with pytest.raises(InvalidOptionError, match="layout_engine='nonsense'"):
        GraphPicture("digraph {}", "nonsense").svg()
