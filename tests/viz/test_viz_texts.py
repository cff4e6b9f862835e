"""Whatever is in a name, an error or a label: every picture and table of it is valid and harmless."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import report, viz
from otel_timespan.events.flame import flame_svg, speedscope
from otel_timespan.session import Session
from otel_timespan.timespans.texts import for_file, printable
from tests.viz.viz_logs import Proc, Run

EVIL = [
    "<script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    '"];x [label="pwn',
    'a\\"];b',
    "ends with \\",
    "a\nb\r\nc\u2028d",
    "\x1b[31mRED\x1b[0m\x1b]0;title\x07",
    "\x00nul\x08\x7f\x9b31m",
    '=cmd|"/c calc"!A1',
    "@SUM(1)",
    "-1+1",
    "\t=1",
    "[red]x[/blue]",
    "[/]",
    "&lt;",
    "&amp; & &#60;",
    "\u202eRTL\u2066",
    os.fsdecode(b"caf\xe9.txt"),
    "\ufffe\uffff\ufeff",
    "$x^$ _a_",
    "_private",
    "]]>",
    "--><!--",
    "",
    "x" * 5000,
    "9" * 5000,
    "\u2076\u0663 12",
]
HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


class OddError(Exception):
    """An error with a name and a text from outside."""


def log_of(name: str, kind: str) -> Any:
    """A log in which everything is called so: functions, labels, errors, threads, processors, annotations."""

    class Place(Proc):
        def short_name(self) -> str:
            return name

    def f() -> None: ...

    f.__name__ = f.__qualname__ = name
    run, place, thread = Run(), Place(1, 1), (101, name)
    for task, deps in ((1, []), (2, [1])):
        at = 100 * task
        run.submit(task, at, f, deps, name=name if task == 1 else None)
        run.begin(task, at + 10, at + 20, place, thread, f, deps)
        run.end(task, at + 40, place, thread, f)
        run.finish(task, at + 40, at + 50)
    error = OddError(name)
    run.submit(3, 500, f)
    run.begin(3, 510, 520, place, thread, f)
    run.end(3, 540, place, thread, f, error)
    run.finish(3, 540, 550, error, "failure")
    run.span(name or "own", 7, 600, 700)  # a timespan of a program
    return {"raw": run.raw, "spans": run.timespans, "streams": run.streams}[kind]()


class Page(HTMLParser):
    """What a browser would find: elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, Any]]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.found.append((tag, attrs))


def check_html(text: str) -> None:
    """Nothing that runs, nothing that is loaded, nothing that can't be written."""
    assert not HARMFUL.search(text)
    text.encode()
    for tag, attrs in Page(text).found:
        assert tag not in ("script", "img", "iframe", "object", "link", "style"), tag
        assert not any(name.startswith("on") for name, _ in attrs)


def check_text(text: str) -> None:
    """A terminal obeys nothing in it."""
    assert not HARMFUL.search(text.replace("\n", ""))
    text.encode()


_STRING = r'"(?:[^"\\]|\\.)*"'
_WORD = r"[A-Za-z_\x80-\uffff][A-Za-z0-9_\x80-\uffff]*|-?[0-9.]+"
_ITEM = rf"(?:{_WORD})=(?:{_STRING}|{_WORD})"
_LINE = re.compile(rf"(?:{_WORD})(?: -> (?:{_WORD}))? \[{_ITEM}(?:, {_ITEM})*\];")


def check_dot(text: str) -> None:
    """Each line is one statement, as the language of Graphviz has them; and Graphviz itself draws it, where it is."""
    check_text(text)
    first, *lines, last, end = text.split("\n")
    assert (first, last, end) == ("strict digraph {", "}", "")
    assert all(_LINE.fullmatch(line) for line in lines), next(line for line in lines if not _LINE.fullmatch(line))
    if shutil.which("dot"):
        drawn = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, timeout=60)
        assert drawn.returncode == 0 and not drawn.stderr, drawn.stderr
        ElementTree.fromstring(drawn.stdout)


@pytest.fixture(params=range(len(EVIL)), ids=str)
def name(request: pytest.FixtureRequest) -> str:
    """One of them."""
    return EVIL[request.param]


LOGS = [(number, "streams") for number in range(len(EVIL))]
LOGS += [(number, kind) for number in (0, 5, 6, 17) for kind in ("raw", "spans")]


@pytest.fixture(params=LOGS, ids=lambda pair: f"{pair[1]}-{pair[0]}")
def log(request: pytest.FixtureRequest) -> Any:
    """A log of each name, in the forms that logs have."""
    number, kind = request.param
    return log_of(EVIL[number], kind)


def test_gantt_is_xml_and_safe_html(log: Any) -> None:
    """The document parses, and the name is in it as text; in a page it runs nothing."""
    name = next(viz.read_logs(log).computes).timeline.f.__name__
    chart = viz.gantt(log, title=name or None)
    root = ElementTree.fromstring(str(chart))
    if name and len(name) < 100:
        titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
        assert any(title.startswith(printable(name)) for title in titles)
    check_html(chart._repr_html_())
    ElementTree.fromstring(str(viz.gantt(log, target="scheduler")))
    ElementTree.fromstring(str(viz.gantt(log, color_by="proc", limit=1)))


def test_gantt_is_drawn_by_matplotlib(name: str) -> None:
    """Dollars are no formulas, and every name is in the legend."""
    figure = viz.gantt(log_of(name, "raw")).figure()
    figure.canvas.draw()
    assert len(figure.legends[0].get_texts()) == len(viz.gantt(log_of(name, "raw")).chart.legend)


def test_dot_is_dot(log: Any) -> None:
    """As text, and its page without Graphviz."""
    for options in ({}, {"disconnected": True, "color_by": "proc"}):
        text = viz.logs_to_dot(log, **options)
        check_dot(text)
    check_html(viz.GraphPicture(text, "no such engine")._repr_html_())


def test_chrome_trace_is_json(log: Any, tmp_path: Path) -> None:
    """As text, page and file: strict JSON whose texts can be written."""
    name = next(viz.read_logs(log).computes).timeline.f.__name__
    trace = viz.chrome_trace(log, detail="scheduler")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    parsed = json.loads(str(trace), parse_constant=refuse)
    json.dumps(parsed, ensure_ascii=False).encode()
    bodies = [event for event in parsed["traceEvents"] if event.get("cat") == "compute"]
    assert len(bodies) == 3
    assert bodies[0]["name"] == (printable(name) or "task 1")
    check_html(trace._repr_html_())
    trace.write(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == parsed


def test_tables_are_csv_without_formulas(log: Any) -> None:
    """Each target gives one row a line with all columns; no cell of text begins like a formula."""
    for target in viz.tables.TARGETS:
        text = viz.logs_to_csv(log, target)
        rows = list(csv.reader(io.StringIO(text), strict=True))
        assert len({len(row) for row in rows}) == 1 and len(rows) == 1 + len(viz.logs_to_rows(log, target))
        check_text(text)
        for row in rows:
            assert not any(cell.startswith(tuple("=+-@\t\r")) for cell in row if not cell.lstrip("-").isdigit())


def test_data_frames_can_be_stored(name: str, tmp_path: Path) -> None:
    """Parquet takes the frame, and gives the same back."""
    frame = viz.logs_to_dataframe(log_of(name, "raw"))
    frame.to_parquet(tmp_path / "x.parquet")
    import pandas

    assert list(pandas.read_parquet(tmp_path / "x.parquet")["function"]) == list(frame["function"])


def test_texts_command_no_terminal(log: Any) -> None:
    """Summary, paths and accounts, plain and as tables of rich; their pages run nothing."""
    from rich.console import Console

    summary = viz.summarize_logs(log)
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=200, color_system=None).print(summary)
    for text in (str(summary), str(viz.critical_path(log)), str(viz.where_time_went(log)), repr(viz.LogView(log))):
        check_text(text)
    assert not HARMFUL.search(re.sub("\x1b\\[[0-9;]*m|\n", "", out.getvalue()))
    check_html(summary._repr_html_())
    check_html(viz.LogView(log)._repr_html_())


def test_every_mode_writes_files(name: str, tmp_path: Path) -> None:
    """To a path, to a file of UTF-8 and to one that knows ASCII only."""
    log = viz.read_logs(log_of(name, "raw"))
    for mode in ("chrome_trace", "dataframe", "gantt", "graphviz", "summary"):
        viz.show_logs(log, mode, str(tmp_path / "a"))
        (tmp_path / "a").read_text(encoding="utf-8")
        for encoding in ("utf-8", "ascii"):
            with open(tmp_path / encoding, "w", encoding=encoding) as file:
                viz.show_logs(log, mode, file)


def test_a_terminal_that_knows_ascii_only() -> None:
    """The tables of the summary go there too, with escapes for what it lacks."""

    class Narrow(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    file = Narrow(io.BytesIO(), encoding="ascii")
    viz.summarize_logs(log_of("é", "raw")).write(file)
    file.seek(0)
    assert r"\xe9" in file.read()


def test_a_processor_without_a_name_goes_by_its_type() -> None:
    """A custom processor that can't be shown costs no picture."""

    class Shy(Proc):
        def short_name(self) -> str:
            raise RuntimeError("no name")

    run = Run()
    run.task(1, 0, 10, 100, 200, proc=Shy(1, 1))
    assert "Shy" in viz.logs_to_csv(run.raw()) and "Shy" in str(viz.gantt(run.raw()))


def test_a_registered_mode_may_say_anything(tmp_path: Path) -> None:
    """What is no UTF-8 is escaped in the file."""
    viz.register("odd", show=lambda logs: "caf\udce9")
    viz.show_logs(log_of("f", "raw"), "odd", tmp_path / "a")
    assert (tmp_path / "a").read_text() == r"caf\udce9"


def test_counters_that_are_no_numbers_are_left_out() -> None:
    """JSON knows neither NaN nor infinities; names of streams are texts from outside, too."""
    log = log_of("f", "streams")
    for streams in log.values():
        values = [float("nan"), float("inf"), 1.0]
        streams["odd \x1b\udce9"] = [values[i % 3] for i in range(len(streams["core"]))]
    text = str(viz.chrome_trace(log))
    assert "NaN" not in text and "Infinity" not in text and "odd \\\\x1b\\\\udce9" in text


def test_colors_of_any_name(name: str) -> None:
    """A name has a colour, whatever is in it."""
    assert viz.name_to_color(name) in viz.PALETTE


def test_profiles_are_xml_and_json(name: str) -> None:
    """Flame graph and speedscope file of frames with such names."""
    samples = [(1, (name, "main"), 10), (1, (name,), 20)]
    ElementTree.fromstring(flame_svg(samples, name))
    json.dumps(json.loads(speedscope(samples, name)), ensure_ascii=False).encode()


def test_the_report_shows_names_as_they_are(name: str) -> None:
    """Tables of `otel-timespan run` and `demo`: markup in names is text, and controls nothing."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=6000)
    session = Session(name or "s", not_exported=name or "no", logs=log_of(name, "raw"))
    report.print_session(console, session, None)
    table = report._table("Hardest", "function", "lines")
    table.add_row(name, "1")
    console.print(table)
    check_text(out.getvalue())
    if name.strip() and len(name) < 100:
        assert printable(name) in out.getvalue()


class Screen(io.StringIO):
    """A terminal, as far as `progress` can tell."""

    def isatty(self) -> bool:
        return True


def test_progress_takes_any_text(name: str) -> None:
    """On a terminal and in lines, in a file of any encoding."""
    for make in (Screen, io.StringIO):
        file = make()
        ts.progress([ts.spawn(abs, 1)], description=name, file=file).wait()
        assert not HARMFUL.search(re.sub("\x1b\\[[0-9;?]*[A-Za-z]|[\r\n]", "", file.getvalue()))
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    ts.progress([ts.spawn(abs, 1)], description=name + "é", file=narrow).wait()
    narrow.seek(0)
    assert r"\xe9" in narrow.read()


def test_a_real_run_of_odd_names(tmp_path: Path) -> None:
    """Everything that a program may name, through the scheduler: all modes give what is valid."""
    context = D.eager_context()
    before = context.log_sink
    ts.enable_logging(metrics=True, timeline=True, taskargs=True)
    try:
        for evil in EVIL:

            def f(*args: Any, **kwargs: Any) -> int:
                return 1

            f.__name__ = f.__qualname__ = evil
            first = ts.spawn(f, D.Options(name=evil or None), [1])
            D.logs_annotate(first, evil or "none")
            ts.fetch(ts.spawn(f, first, **{evil: first}))
        assert not HARMFUL.search(ts.dagger.status().replace("\n", ""))
        logs = ts.fetch_logs()
    finally:
        context.log_sink = before
    check_dot(viz.logs_to_dot(logs))
    ElementTree.fromstring(str(viz.gantt(logs)))
    check_html(viz.LogView(logs)._repr_html_())
    json.dumps(json.loads(str(viz.chrome_trace(logs, detail="scheduler"))), ensure_ascii=False).encode()
    viz.logs_to_dataframe(logs).to_parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 👩‍👩‍👧 \xa0", "plain é 日本 👩‍👩‍👧 \xa0"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[0m\x9b\udce9\u202e", r"\x1b[0m\x9b\udce9\u202e"),
        (7, "7"),
    ],
)
def test_printable_keeps_what_is_harmless(text: Any, shown: str) -> None:
    """Letters of all scripts stay; what could harm is shown by its escape."""
    assert printable(text) == shown


def test_printable_never_raises() -> None:
    """Nor does a file without or with an unknown encoding."""

    class Mute(str):
        __slots__ = ()

        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert printable(Mute("a\n")) == r"a\n"
    for encoding in (None, 5, "no such encoding", "latin-1"):
        assert for_file("é", type("File", (), {"encoding": encoding})()) == "é"
