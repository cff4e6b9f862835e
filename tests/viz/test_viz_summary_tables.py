"""Summaries, data frames, CSV, units and colours."""

from __future__ import annotations

import csv
import io
import sys

import pytest

from otel_timespan.errors import InvalidOptionError, MissingExtraError
from otel_timespan.timespans.model import Event, GCNum
from otel_timespan.viz import (
    PALETTE,
    logs_to_rows,
    name_to_color,
    pretty_bytes,
    pretty_time,
    render_logs,
    show_logs,
    summarize_logs,
)
from otel_timespan.viz.colors import assign_colors, text_color
from tests.viz.viz_logs import Run, diamond, layered

SUMMARY = """\
=== Dagger Execution Summary ===

[compute] 4 events, 3 unique task(s)
  Run Time          mean=19.5 us, min=8 us, max=40 us

  [compute :: count] 2 events
    Run Time        mean=30 us, min=20 us, max=40 us
"""


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def only(run: Run, category: str) -> Run:
    """The events of one category (and the submissions, which name the tasks)."""
    kept = Run()
    kept.events = [e for e in run.events if e.category == category]
    return kept


def test_the_summary_has_a_block_a_category_and_a_function() -> None:
    """In Dagger's form: values at column 20, the categories by name."""
    assert show_logs(only(diamond(), "compute").raw(), "summary").startswith(SUMMARY)  # type: ignore[union-attr]
    text = show_logs(diamond().streams(), "summary")
    assert text is not None
    blocks = [line for line in text.splitlines() if line.startswith("[")]
    assert blocks == sorted(blocks)
    assert "[move] 8 events, 3 unique task(s)" in blocks and "  [move :: merge] 3 events" in text.splitlines()


def test_other_metrics_are_read_at_the_finish() -> None:
    """Counters, compile time, lock conflicts, bytes: sorted by name, each in its own unit."""

    def at_finish(value: object) -> object:
        return lambda e: value if e.phase == "finish" and e.category == "compute" else None

    logs = diamond().streams(
        gc_stats=at_finish(2048),
        compile_time=at_finish(1_500),
        lock_contend=at_finish(3),
        linuxperf=at_finish({"cpu-clock": 2_000_000, "page-faults": 12_345}),
    )
    block = show_logs(logs, "summary").split("[compute :: ")[0].split("\n\n")[2]  # type: ignore[union-attr]
    assert block.splitlines() == [
        "[compute] 4 events, 3 unique task(s)",
        "  Run Time          mean=19.5 us, min=8 us, max=40 us",
        "  Bytes Allocated   mean=2 KiB, min=2 KiB, max=2 KiB",
        "  Compile Time      mean=1.5 us, min=1.5 us, max=1.5 us",
        "  Lock Conflicts    mean=3, min=3, max=3",
        "  cpu-clock         mean=2 ms, min=2 ms, max=2 ms",
        "  page-faults       mean=12,345, min=12,345, max=12,345",
    ]


def test_timespans_bring_their_own_allocations() -> None:
    """Where the events sampled them."""
    events = [Event("start", "x", 1, None, 5, GCNum(allocd=10)), Event("finish", "x", 1, None, 9, GCNum(allocd=90))]
    run = Run()
    run.events = events
    assert "Bytes Allocated   mean=80 B" in str(summarize_logs(run.timespans()))


def test_a_terminal_gets_tables_and_a_file_plain_text() -> None:
    """Both name the summary and the run time."""
    terminal, file = Terminal(), io.StringIO()
    assert show_logs(diamond().streams(), "summary", io=terminal) is None
    assert show_logs(diamond().streams(), "summary", io=file) is None
    assert file.getvalue() == show_logs(diamond().streams(), "summary")
    for text in (terminal.getvalue(), file.getvalue()):
        assert "Dagger Execution Summary" in text and "Run Time" in text
    assert terminal.getvalue() != file.getvalue()


def test_without_rich_a_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the table itself names the extra."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    terminal = Terminal()
    show_logs(diamond().streams(), "summary", io=terminal)
    assert terminal.getvalue() == show_logs(diamond().streams(), "summary")
    with pytest.raises(MissingExtraError, match=r"otel-timespan\[cli\]"):
        summarize_logs(diamond().streams()).__rich__()


@pytest.mark.parametrize("logs", [{}, [], {1: []}])
def test_nothing_recorded_is_one_line(logs: object) -> None:
    """It says so."""
    assert show_logs(logs, "summary") == "(no events recorded)\n"
    terminal = Terminal()
    show_logs(logs, "summary", io=terminal)
    assert terminal.getvalue().strip() == "(no events recorded)"
    assert "no events" in summarize_logs(logs)._repr_html_()


def test_a_summary_shows_itself_in_a_notebook() -> None:
    """As a table."""
    assert "<td>compute</td>" in summarize_logs(diamond().raw())._repr_html_()


@pytest.mark.parametrize("kind", ["streams", "raw", "timespans"])
def test_a_data_frame_has_one_row_a_task_and_integer_times(kind: str) -> None:
    """task_id is the task, thread_id the thread, every *_ns an integer; the phases add up."""
    frame = render_logs(getattr(diamond(), kind)(), "dataframe")
    assert list(frame.task_id) == [1, 2, 3, 4] and list(frame.thread_id) == [101, 101, 102, 101]
    times = [column for column in frame.columns if column.endswith("_ns")]
    assert {str(frame[column].dtype) for column in [*times, "task_id", "thread_id"]} == {"Int64"}
    assert frame.start_ns[1] == 12_100 and frame.end_ns[1] == 32_100
    phases = ["dependency_ns", "schedule_ns", "queue_ns", "move_ns", "compute_ns", "finish_ns"]
    assert list(frame[phases].sum(axis=1)) == list(frame.finished_ns - frame.submitted_ns)
    assert frame.dependencies[3] == [2, 3]


def test_what_the_log_does_not_say_is_missing_not_zero() -> None:
    """A task that never ran has no start, and its column stays one of integers."""
    run = diamond()
    run.submit(5, 2_000, deps=[4])
    run.finish(5, 70_000, 70_010, ValueError("bad"), "skip")
    frame = render_logs(run.raw(), "dataframe")
    assert frame.start_ns.isna().tolist() == [False] * 4 + [True]
    assert (frame.state[4], frame.error[4]) == ("skip", "ValueError: bad")


@pytest.mark.parametrize("target", ["execution", "processor", "scheduler", "tasks"])
def test_frames_of_every_target_even_without_rows(target: str) -> None:
    """An empty log has the same columns as a full one."""
    full = render_logs(diamond().raw(), "dataframe", target=target)
    empty = render_logs({}, "dataframe", target=target)
    assert list(full.columns) == list(empty.columns) and len(empty) == 0 and len(full) > 0


def test_the_text_of_a_data_frame_is_csv() -> None:
    """It can be read back and needs no pandas."""
    text = show_logs(diamond().streams(), "dataframe")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["task_id"] for row in rows] == ["1", "2", "3", "4"] and rows[3]["dependencies"] == "2 3"


def test_without_pandas_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rows are there all the same."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"otel-timespan\[viz\]"):
        render_logs(diamond().raw(), "dataframe")
    assert len(logs_to_rows(diamond().raw(), "tasks")) == 4


def test_unknown_targets_are_refused() -> None:
    """With what is allowed."""
    with pytest.raises(InvalidOptionError, match="target='x' is not known; allowed are execution"):
        logs_to_rows(diamond().raw(), "x")
    with pytest.raises(InvalidOptionError, match="target='x'"):
        render_logs(diamond().raw(), "dataframe", target="x")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (1000, "1000 ns"),
        (1001, "1.001 us"),
        (1_000_000, "1000 us"),
        (1_500_000, "1.5 ms"),
        (10**9, "1000 ms"),
        (10**9 + 10**7, "1.01 s"),
        (-2_500, "-2.5 us"),
        (1.25, "1.25 ns"),
    ],
)
def test_times_change_their_unit_when_there_is_more_than_one(ns: float, text: str) -> None:
    """Strictly more than 1000 of the smaller one."""
    assert pretty_time(ns) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 20, "1 MiB"), (3 << 30, "3 GiB")],
)
def test_bytes_are_counted_by_1024(nbytes: float, text: str) -> None:
    """With at most three decimals."""
    assert pretty_bytes(nbytes) == text
    assert pretty_time(1_234_567, digits=1) == "1.2 ms"


def test_colors_are_told_apart_while_there_are_enough() -> None:
    """Twenty names, twenty colours; the same for the same names in whatever order."""
    names = [f"f{i}" for i in range(20)]
    colors = assign_colors(names)
    assert len(set(colors.values())) == 20 and colors == assign_colors(reversed(names))
    assert len(assign_colors(f"f{i}" for i in range(50))) == 50
    assert set(assign_colors(names[:5]).values()) <= set(PALETTE[:10])
    assert name_to_color("f", PALETTE) in PALETTE and name_to_color("f", None) == "#000000"


def test_labels_can_be_read_on_their_color() -> None:
    """Dark on light, light on dark."""
    assert text_color("#ffffff") == "#111111" and text_color("#000000") == "#ffffff"
    assert text_color("hsl(4 50% 50%)") == text_color("#gggggg") == "#111111"


def test_summaries_of_large_logs_count_everything() -> None:
    """Nothing is left out of the numbers."""
    summary = summarize_logs(layered(30, 10).raw())
    assert summary.blocks["compute", None]["Run Time"].count == 300
