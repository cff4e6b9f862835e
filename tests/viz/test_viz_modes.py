"""`show_logs`, `render_logs`, the registry, notebooks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import viz
from otel_timespan.errors import InvalidOptionError, NotCallableError
from otel_timespan.viz import LogView, modes, register, render_logs, show_logs
from otel_timespan.viz import modes as _modes_function
from otel_timespan.viz.modes import _modes
from tests.viz.viz_logs import diamond

BUILT_IN = ("chrome_trace", "dataframe", "gantt", "graphviz", "plots_gantt", "summary")


@pytest.fixture(autouse=True)
def _same_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, known in list(_modes.items()):
        monkeypatch.setitem(_modes, name, list(known))


@pytest.mark.parametrize("mode", BUILT_IN)
@pytest.mark.parametrize("kind", ["streams", "raw", "timespans"])
def test_every_mode_shows_and_renders_every_kind_of_log(mode: str, kind: str) -> None:
    """Text without io; the same text into io, and then nothing is returned."""
    logs = getattr(diamond(), kind)()
    text, file = show_logs(logs, mode), io.StringIO()
    assert isinstance(text, str) and text
    assert show_logs(logs, mode, file) is None and file.getvalue() == text
    rendered = render_logs(logs, mode)
    assert rendered is not None and rendered._repr_html_()


def test_io_may_be_a_path(tmp_path: Path) -> None:
    """A path that can't be written, or what is no file, is a clear error."""
    show_logs(diamond().streams(), "graphviz", io=tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text() == show_logs(diamond().streams(), "graphviz")
    with pytest.raises(InvalidOptionError, match="nowhere"):
        show_logs(diamond().streams(), "graphviz", io=str(tmp_path / "nowhere" / "x.dot"))
    with pytest.raises(InvalidOptionError, match="io is an open text file or a path, not 5"):
        show_logs(diamond().streams(), "graphviz", io=5)


def test_dagger_s_order_of_arguments_works_too() -> None:
    """There the file comes first."""
    first, last = io.StringIO(), io.StringIO()
    show_logs(first, diamond().streams(), "summary")  # type: ignore[arg-type]
    show_logs(diamond().streams(), "summary", io=last)
    assert "Dagger Execution Summary" in first.getvalue() == last.getvalue()


@pytest.mark.parametrize("call", [show_logs, render_logs])
def test_an_unknown_mode_names_the_mode_the_log_and_what_is_allowed(call: Any) -> None:
    """It is a ValueError too."""
    with pytest.raises(
        ValueError, match=r"mode 'pie' \(for a log of type dict\) is not known; allowed are chrome_trace"
    ):
        call(diamond().streams(), "pie")


@pytest.mark.parametrize("call", [show_logs, render_logs])
@pytest.mark.parametrize("mode", BUILT_IN)
def test_an_unsupported_log_names_the_mode_and_the_type(call: Any, mode: str) -> None:
    """Whatever the mode."""
    with pytest.raises(InvalidOptionError, match=rf"mode '{mode}': a int is no log"):
        call(7, mode)


@pytest.mark.parametrize("mode", BUILT_IN)
def test_an_unknown_option_names_the_mode_and_what_is_allowed(mode: str) -> None:
    """Before any work is done."""
    for call in (show_logs, render_logs):
        with pytest.raises(InvalidOptionError, match=r"has no option colour[;,].* allowed are"):
            call(diamond().streams(), mode, colour="red")


def test_a_mode_may_be_added_for_a_type_of_log() -> None:
    """The last one registered wins for logs of its type; others keep theirs."""

    class Counted(dict):  # type: ignore[type-arg]
        pass

    register("count", show=lambda logs, unit="events": f"{len(logs[1]['core'])} {unit}")
    assert show_logs(diamond().streams(), "count", unit="rows") == f"{len(diamond().events)} rows"
    register("count", show=lambda logs: "counted", render=lambda logs: 7, log_type=Counted)
    assert show_logs(Counted(), "count") == "counted" and render_logs(Counted(), "count") == 7
    with pytest.raises(InvalidOptionError, match="mode 'count' can't render a log of type dict; it can render Counted"):
        render_logs(diamond().streams(), "count")
    assert "count" in modes()
    _modes.pop("count")


def test_a_registered_function_is_checked() -> None:
    """At registration, not at first use."""
    with pytest.raises(InvalidOptionError, match="needs show= or render="):
        register("x")
    with pytest.raises(NotCallableError, match="5 can't be called"):
        register("x", show=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="log_type is a type"):
        register("x", show=str, log_type="dict")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="named by a text"):
        register("", show=str)


def test_the_built_in_modes() -> None:
    """They are all there."""
    assert _modes_function() == BUILT_IN


def test_a_log_shows_its_picture_in_a_notebook() -> None:
    """A chart, where the time went, both paths, all events."""
    view = LogView(diamond().streams())
    html = view._repr_html_()
    for part in ("<svg", "critical path: 3 tasks", "% busy", "<table>"):
        assert part in html
    assert repr(view) == "LogView(4 tasks, 28 spans, workers [1])"
    assert LogView({})._repr_html_()
    assert show_logs(view, "graphviz") == show_logs(view.logs, "graphviz")


def test_the_names_of_the_package_are_sorted_and_there() -> None:
    """`__all__` is complete."""
    assert all(hasattr(viz, name) for name in viz.__all__)
    assert {"show_logs", "render_logs", "register", "logs_to_dot", "logs_to_rows", "critical_path", "simulate"} <= set(
        viz.__all__
    )
