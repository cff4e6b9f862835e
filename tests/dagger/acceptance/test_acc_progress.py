"""`progress`: how far tasks are, on a terminal and elsewhere."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import sys
import threading
from typing import Any, TextIO

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.errors import MissingExtraError
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    boom,
    failure,
    identity,
    run_program,
)


def test_issue5_11_progress(two: D.Context, capfd: pytest.CaptureFixture[str]) -> None:
    """Issue 5.11: `progress(tasks)` goes over the tasks as they finish, and raises for none of them."""
    tasks = [D.spawn(identity, n) for n in range(20)] + [D.spawn(boom)]
    seen = list(D.progress(tasks))
    assert sorted(t.id for t in seen) == [t.id for t in tasks]
    assert all(t.isready() for t in tasks)
    assert isinstance(D.unwrap_exception(failure(tasks[-1])), BoomError)


# --- edges ------------------------------------------------------------------------------------------------


class Screen:
    """A terminal of our own: `file` to write to, `text()` what was written until it is closed."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self._read: list[bytes] = []
        self._reader = threading.Thread(target=self._run)
        self._reader.start()

    def _run(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self._read.append(data)

    def text(self) -> str:
        """Everything; the terminal is closed afterwards."""
        self.file.close()
        self._reader.join(DEADLINE_S)
        os.close(self._master)
        return b"".join(self._read).decode()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    return Screen()


def test_lines_where_there_is_no_terminal(two: D.Context) -> None:
    """In a file: a line at each tenth with what is done and failed; the last one says all."""
    file = io.StringIO()
    tasks = [D.spawn(boom if n == 3 else identity, n) for n in range(100)]
    seen = list(D.progress(tasks, description="loading", file=file))
    assert sorted(task.id for task in seen) == [task.id for task in tasks]
    lines = file.getvalue().splitlines()
    assert 1 <= len(lines) <= 10
    assert lines[-1].startswith("loading: 100 of 100 done, 1 failed, 0 running, ")


def test_a_bar_on_a_terminal(two: D.Context, screen: Screen) -> None:
    """On a terminal: a bar in one line, with description and counts, that stays when all is done."""
    tasks = [D.spawn(boom if n == 3 else identity, n) for n in range(20)]
    for task in D.progress(tasks, description="loading", file=screen.file):
        assert task.isready()
    last = screen.text().rsplit("loading", 1)[1]
    assert "20/20" in last and "1 failed" in last and "running" not in last and "━" in last


def test_the_bar_counts_what_is_done_while_the_loop_is_busy(two: D.Context, screen: Screen) -> None:
    """The bar does not wait for the loop: it counts tasks that are done and were not looked at yet."""
    tasks = [D.spawn(int, n) for n in range(8)]
    D.waitall(tasks)
    gate = threading.Event()
    last = D.spawn(gate.wait, DEADLINE_S)
    for task in D.progress([*tasks, last], file=screen.file):
        if task is not last:
            # The first picture of the bar has them all, whichever task the loop is at.
            break
    gate.set()
    text = screen.text()
    assert "8/9" in text and "1 running" in text


def test_wait(two: D.Context) -> None:
    """`wait` loops to the end by itself, raises no task's error, and says so in the lines."""
    file = io.StringIO()
    tasks = [D.spawn(boom), D.spawn(int)]
    assert D.progress(tasks, file=file).wait() is None  # type: ignore[func-returns-value]
    assert all(task.isready() for task in tasks)
    assert file.getvalue().splitlines()[-1].startswith("2 of 2 done, 1 failed, 0 running, ")


def test_async_for(two: D.Context) -> None:
    """`async for` works as well; a `for` in an event loop is refused."""

    async def main() -> list[int]:
        tasks = [D.spawn(int, n) for n in range(20)]
        with pytest.raises(D.ConcurrencyViolationError, match="async for"):
            D.progress(tasks, file=io.StringIO()).wait()
        return [await task async for task in D.progress(tasks, file=io.StringIO())]

    assert sorted(asyncio.run(main())) == list(range(20))


def test_it_leaves_nothing_behind(two: D.Context) -> None:
    """A loop that is left takes its entries back and its bar off; nothing and no tasks are fine too."""
    gate = threading.Event()
    slow, quick = D.spawn(gate.wait, DEADLINE_S), D.spawn(int)
    for _ in D.progress([slow, quick, quick], file=io.StringIO()):
        break
    assert slow._subs == []
    assert list(D.progress([], file=io.StringIO())) == []
    gate.set()


def test_where_another_bar_is_on(two: D.Context, screen: Screen) -> None:
    """Inside of a display of rich's that can't hold two, lines are written instead: no error."""
    from rich.console import Console
    from rich.live import Live

    with Live("outer", console=Console(file=screen.file)):
        D.progress([D.spawn(int) for _ in range(3)], file=screen.file).wait()
    assert "3" in screen.text()


def test_on_the_inline_driver() -> None:
    """There the loop runs the tasks."""
    file = io.StringIO()
    with D.Context(driver=D.InlineDriver()):
        D.progress([D.spawn(int, n) for n in range(10)], file=file).wait()
    assert file.getvalue().splitlines()[-1].startswith("10 of 10 done, 0 running, ")


def test_no_stderr_no_display(two: D.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a standard error shows nothing and works."""
    monkeypatch.setattr(sys, "stderr", None)
    assert len(list(D.progress([D.spawn(int)]))) == 1


def test_without_rich(two: D.Context, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra a terminal gets our error that names it; a file needs no rich."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(MissingExtraError, match=r"otel-timespan\[cli\]"):
        D.progress([D.spawn(int)], file=screen.file).wait()
    D.progress([D.spawn(int)], file=io.StringIO()).wait()
    screen.text()


@pytest.mark.parametrize("bad", [{"file": 5}, {"file": "out.txt"}, {"description": 5}])
def test_bad_arguments(bad: dict[str, Any]) -> None:
    """What is no text file and no text is told at once, as is what is no task."""
    with pytest.raises(D.InvalidOptionError):
        D.progress([], **bad)
    for wrong in ([5], ["a"]):
        with pytest.raises(D.InvalidOptionError, match="progress needs tasks"):
            D.progress(wrong)  # type: ignore[arg-type]


def test_one_task_is_not_several(two: D.Context) -> None:
    """A task alone, which Python could not iterate over, gets an error that says what to write."""
    task = D.spawn(int)
    for loop in (D.progress, D.as_completed):
        with pytest.raises(D.InvalidOptionError, match=r"\[task\]"):
            loop(task)  # type: ignore[arg-type]


def test_by_default_on_the_standard_error() -> None:
    """Without a file it goes to the standard error, so that the program's output stays clean; rich is not loaded."""
    out = run_program(
        """
        ts.progress([ts.spawn(int, n) for n in range(10)]).wait()
        print("rich" in sys.modules)
        """
    )
    assert out == "False\n"
    assert ts.progress is D.progress
