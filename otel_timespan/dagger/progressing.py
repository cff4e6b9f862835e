"""`progress`: a loop over tasks as they finish that shows how far they are.

On a terminal and in a notebook it shows a bar of rich's (the extra `[cli]`), which keeps itself up to date;
anywhere else, such as in the log of a batch system, a line of text at every tenth of the tasks.

See docs/users.md.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from ..errors import InvalidOptionError, MissingExtraError
from ..timespans.texts import for_file, printable
from .fetching import as_tasks, unsubscribe
from .iterating import Finished, Loop, Source
from .service.guards import guard
from .tasks.atomics import subscribe
from .tasks.dtask import FAILED, DTask

__all__ = ["progress"]

T = TypeVar("T")

LINES = 10
"""Into how many parts the lines of text divide the tasks."""

QUIET_S = 60.0
"""After so long without a line of text there is one in any case."""


class Tally:
    """Counts of some tasks, at any moment."""

    def __init__(self, tasks: list[DTask]) -> None:
        self._tasks = set(tasks)
        self._entries: dict[DTask, Callable[[], None]] = {}
        self._lock = guard()
        self.total, self.done, self.failed = len(tasks), 0, 0
        for task in tasks:
            entry = self._entries[task] = self._entry(task)
            if not subscribe(task, entry):
                entry()

    def _entry(self, task: DTask) -> Callable[[], None]:
        def ended() -> None:
            with self._lock:
                self.done += 1
                self.failed += task._state == FAILED
            self._tasks.discard(task)  # a counted one is kept by nobody here
            self._entries.pop(task, None)

        return ended

    @property
    def running(self) -> int:
        """How many bodies run now."""
        left = set(self._tasks)  # other threads take theirs out
        cores = {task._core for task in left}
        return sum(task in left for core in cores for task in list(core.running))

    def text(self) -> str:
        """What a line says of them."""
        failed = f"{self.failed} failed, " if self.failed else ""
        return f"{self.done} of {self.total} done, {failed}{self.running} running"

    def close(self) -> None:
        """Stop counting."""
        for task, entry in list(self._entries.items()):
            unsubscribe(task, entry)


class _Lines:
    """Lines of text: at every tenth, at the end, and when nothing was said for a minute."""

    def __init__(self, tally: Tally, description: str, file: TextIO) -> None:
        self._tally, self._file = tally, file
        self._head = f"{for_file(printable(description), file)}: " if description else ""
        self._begun = self._last = time.monotonic()
        self._part = 0

    def update(self) -> None:
        """Something may have changed."""
        tally, now = self._tally, time.monotonic()
        part = LINES * tally.done // max(tally.total, 1)
        if part > self._part or now - self._last >= QUIET_S:
            self._part, self._last = part, now
            self._file.write(f"{self._head}{tally.text()}, {now - self._begun:.1f} s\n")
            self._file.flush()


@contextlib.contextmanager
def _shown(tally: Tally, description: str, file: TextIO | None) -> Iterator[Callable[[], None]]:
    """Show the tally within the block; what it gives is to be called when something may have changed."""
    target = sys.stderr if file is None else file
    if target is None:  # a program without a terminal may have no stderr at all
        yield _nothing
        return
    bar = _started_bar(tally, description, file) if _is_screen(target) or (file is None and _in_notebook()) else None
    if bar is None:
        yield _Lines(tally, description, target).update
        return
    try:
        yield _nothing  # a thread of the bar's keeps it up to date
    finally:
        bar.stop()


def _nothing() -> None:
    pass


def _is_screen(file: TextIO) -> bool:
    try:
        return file.isatty()
    except (AttributeError, ValueError):  # no real file, or closed
        return False


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _started_bar(tally: Tally, description: str, file: TextIO | None) -> Any:
    """A bar of rich's, on the screen; None where there is another one already."""
    try:
        from rich.console import Console
        from rich.errors import LiveError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column
        from rich.text import Text
    except ImportError:
        raise MissingExtraError("rich", "cli") from None

    class Counts(ProgressColumn):
        max_refresh = 0.1

        def render(self, task: Any) -> Text:
            text = Text(f"{tally.failed} failed", style="red") if tally.failed else Text()
            if tally.done < tally.total:
                text.append(f"{', ' if tally.failed else ''}{tally.running} running", style="default")
            return text

    class Bar(Progress):
        def get_renderables(self) -> Any:
            """Ten times a second: so the bar moves, too, while the loop is busy with one task."""
            for row in self.tasks:
                self.update(row.id, completed=tally.done)
            return super().get_renderables()

    console = Console(stderr=True) if file is None else Console(file=file)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    counts = Counts(table_column=Column(no_wrap=True))
    bar = Bar(*(columns if description else columns[1:]), counts, console=console)
    bar.add_task(for_file(printable(description), console.file), total=tally.total)
    try:
        bar.start()
    except LiveError:
        return None
    return bar


class _Progress(Source):
    """See `progress`."""

    def __init__(self, tasks: Iterable[DTask], description: str, file: TextIO | None) -> None:
        self._tasks = as_tasks("progress", tasks)
        self._description, self._file = description, file

    @contextlib.contextmanager
    def _on(self) -> Iterator[tuple[Finished, Callable[[], None], float | None]]:
        """What finishes, how to show it, and how long to wait for it before showing in any case."""
        tasks, self._tasks = self._tasks, []
        finished = Finished()
        for task in tasks:
            finished.add(task)
            del task
        stepped = any(each._core.driver.is_stepped for each in tasks)
        tally = Tally(tasks)
        del tasks  # who finished and was given back is the caller's alone
        try:
            with _shown(tally, self._description, self._file) as show:
                show()
                yield finished, show, None if stepped else QUIET_S
        finally:
            tally.close()
            finished.drop_all()

    def steps(self) -> Generator[DTask, None, None]:
        with self._on() as (finished, show, patience_s):
            while finished:
                taken = [finished.take(patience_s)]
                show()
                if taken[0] is not None:
                    yield taken.pop()  # type: ignore[misc]

    async def async_steps(self) -> AsyncGenerator[DTask, None]:
        with self._on() as (finished, show, patience_s):
            while finished:
                taken = [await finished.take_async(patience_s)]
                show()
                if taken[0] is not None:
                    yield taken.pop()  # type: ignore[misc]


class Progress(Loop[DTask[T]]):
    """What `progress` gives: `for` or `async for` over it, or `wait`."""

    def wait(self) -> None:
        """Wait until all of the tasks finished; never raises a task's error."""
        for _ in self:
            pass


def progress(tasks: Iterable[DTask[T]], *, description: str | None = None, file: TextIO | None = None) -> Progress[T]:
    """Loop over tasks in the order in which they finish, or wait for them, and show how far they are.

        for task in progress(tasks, description="loading"):
            ...
        progress(tasks).wait()

    On a terminal and in a notebook: a bar with the numbers of tasks that are done, failed and running (needs
    rich: `MissingExtraError`). Elsewhere: a line of text at every tenth of the tasks. `file` is where to write, by
    default the standard error. Otherwise as `as_completed`, `async for` included.
    """
    if description is not None and not isinstance(description, str):
        raise InvalidOptionError(f"description must be a string, not {description!r}")
    if file is not None and not callable(getattr(file, "write", None)):
        raise InvalidOptionError(f"file must be a text file to write to, not {file!r}")
    return Progress(_Progress(tasks, description or "", file))
