"""An option is one declaration: what follows from it, and that nothing else is needed to add one."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import otel_timespan
from otel_timespan import dagger as D
from otel_timespan.dagger.options import checks, declaring
from otel_timespan.dagger.options.__main__ import keywords_python, options_markdown
from otel_timespan.dagger.options.declaring import BLOCK_OPTIONS, TASK_OPTIONS, declare, option
from otel_timespan.dagger.options.options import Options
from otel_timespan.errors import InvalidOptionError
from otel_timespan.timespans import warn

PACKAGE = Path(otel_timespan.__file__).parent

ADDED = """
    colour: str | None = option(checks.TEXT, "What it is painted in.", default="unpainted", when="log")


class BlockOptions("""

USED = """
import otel_timespan, sys
from otel_timespan import dagger as D
from otel_timespan.dagger.options.__main__ import options_markdown

def refused(call, text):
    try:
        call()
    except D.InvalidOptionError as error:
        assert text in str(error), error
    else:
        raise AssertionError("not refused")

assert otel_timespan.__file__.startswith(sys.argv[1])
assert D.Options().colour is None and D.Options(colour="red").colour == "red"
assert repr(D.Options(colour="red", name="x")) == "Options(name='x', colour='red')"
refused(lambda: D.Options(colour=3), "option colour=3: it must be a string")
refused(lambda: D.Options(color="red"), "did you mean 'colour'")
refused(lambda: D.with_options(colour=3), "option colour=3: it must be a string")
refused(lambda: D.set_default_option("colour", int, (), 3), "option colour=3: it must be a string")
with D.Context(threads=1):
    with D.with_options(colour="red"):
        assert D.fetch(D.spawn(lambda: D.fetch(D.spawn(D.get_options, "colour")))) == "red"
        assert D.fetch(D.spawn(D.get_options, D.Options(colour="blue"), "colour")) == "blue"
    assert D.spawn.opts(colour="red")(int).options.colour == "red"
    D.set_default_option("colour", int, (), "green")
    task = D.spawn(int)
    D.fetch(task)
    assert task.options.colour == "green"
assert "| `colour` | a string | unpainted | log | What it is painted in. |" in options_markdown()
"""


def test_one_line_in_one_file_adds_an_option(tmp_path: Path) -> None:
    """It is an attribute, a keyword, checked, scoped, handed down, a default, suggested and documented."""
    shutil.copytree(PACKAGE, tmp_path / "otel_timespan")
    declared = tmp_path / "otel_timespan" / "dagger" / "options" / "options.py"
    text = declared.read_text(encoding="utf-8")
    assert text.count("\n\nclass BlockOptions(") == 1
    declared.write_text(text.replace("\n\nclass BlockOptions(", ADDED), encoding="utf-8")
    command = [sys.executable, "-c", USED, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_page_of_options() -> None:
    """docs/options.md is what the declarations say."""
    page = Path(__file__).parents[2] / "docs" / "options.md"
    assert page.read_text(encoding="utf-8") == options_markdown()


def test_the_keywords_for_type_checkers() -> None:
    """options/keywords.py is what the declarations say."""
    assert (PACKAGE / "dagger" / "options" / "keywords.py").read_text(encoding="utf-8") == keywords_python()


@pytest.mark.parametrize("name", [name for name, one in TASK_OPTIONS.items() if one.check is not checks.ANYTHING])
def test_what_is_refused_is_told_in_the_words_of_the_check(name: str) -> None:
    """In the constructor, in assignments, in blocks and as a default the text is the same, and the table's."""
    bad = object()
    text = f"option {name}={bad!r}: it must be {TASK_OPTIONS[name].check.wanted}"
    calls: list[Callable[[], Any]] = [
        lambda: Options(**{name: bad}),
        lambda: setattr(Options(), name, bad),
        lambda: D.with_options(**{name: bad}),
        lambda: declaring.check(name, bad),
    ]
    for call in calls:
        with pytest.raises(InvalidOptionError) as caught:
            call()
        assert str(caught.value) == text
    assert f"| `{name}` | {TASK_OPTIONS[name].check.wanted} |" in options_markdown()


@pytest.mark.parametrize("name", ["propagates", "limit"])
def test_names_that_are_none_are_refused(name: str) -> None:
    """What can't even be looked up is refused as any other wrong value."""
    with pytest.raises(InvalidOptionError, match=f"option {name}="):
        Options(**{name: [["x"]]})


def test_options_can_be_looked_at() -> None:
    """Each is annotated with types that exist, and reads as None where it is not set."""
    hints = typing.get_type_hints(Options)
    assert list(hints) == list(TASK_OPTIONS)
    assert all(getattr(Options, name) is None for name in hints)
    assert not hasattr(Options, "task_queue") and "task_queue" in BLOCK_OPTIONS


@pytest.mark.parametrize(("wrong", "near"), [("retires", "retries"), ("task_quue", "task_queue")])
def test_an_unknown_name_is_told_the_nearest(wrong: str, near: str) -> None:
    """Of all that a task or a block can be given."""
    for call in (lambda: Options(**{wrong: 1}), lambda: D.with_options(**{wrong: 1}), lambda: D.get_options(wrong)):
        with pytest.raises(InvalidOptionError, match=f"did you mean '{near}'"):
            call()


@pytest.mark.parametrize("name", [name for name in TASK_OPTIONS if name.startswith("stream_")])
def test_streams_are_said_to_do_nothing_yet(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An option of streams is checked and kept; that it does nothing yet is logged once, and on the page."""
    monkeypatch.setattr(warn, "_warned", {})
    value: Any = list if name == "stream_buffer_type" else 2
    assert getattr(Options(**{name: value}), name) == value
    with D.with_options(**{name: value}):
        assert D.fetch(D.spawn(D.get_options, name)) == value
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert said == [f"the option {name} does nothing yet: streaming is to come"]
    line = next(line for line in options_markdown().splitlines() if line.startswith(f"| `{name}` "))
    assert "| never |" in line and "Does nothing yet: streaming is to come." in line


def test_a_deprecation_points_at_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep in the package the option is looked at."""
    for call in (
        lambda: Options(single=1),
        lambda: setattr(Options(), "single", 1),
        lambda: D.with_options(single=1),
        lambda: D.spawn.opts(single=1),
        lambda: D.spawn.opts(cache=True),
        lambda: D.task(persist=True)(int),
    ):
        monkeypatch.setattr(declaring, "_deprecated", set())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [(one.category, one.filename) for one in caught] == [(DeprecationWarning, __file__)]
        assert caught[0].lineno == inspect.getsourcelines(call)[1]


def test_slips_in_a_declaration_are_found_at_once() -> None:
    """An unknown moment, or an option that type checkers would not see."""

    class Unseen:
        colour = option(checks.TEXT, "Not annotated.", default="none", when="log")

    class Untimely:
        colour: str | None = option(checks.TEXT, "At no moment.", default="none", when="later")

    names: dict[str, Any] = {}
    with pytest.raises(TypeError, match="colour needs an annotation"):
        declare(Unseen, names)
    with pytest.raises(ValueError, match="when='later'"):
        declare(Untimely, names)
    assert names == {} and "colour" not in BLOCK_OPTIONS
