"""`Runs`: when a run that was opened with `dag` is over, and what it costs to find out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import pytest

from otel_timespan.otel.spans.ids import Root, TraceParent
from otel_timespan.otel.spans.runs import Run, Runs


@pytest.fixture
def runs() -> Iterator[Runs]:
    """Runs whose roots are numbered."""
    numbers = count(1)

    def open_root(name: str, start_ns: int, attributes: Mapping[str, Any], explicit: bool) -> tuple[TraceParent, Any]:
        number = next(numbers)
        return TraceParent(number, number, 1, "", 7, Root(number, name, start_ns, explicit=explicit)), object()

    yield Runs(open_root, 7, 0, lambda: 0)


def leave(runs: Runs, run: Run) -> None:
    """The block of a run is left."""
    run.left_ns = 1
    runs.touch(run)


def finish(runs: Runs, run: Run) -> None:
    """A task of a run has its result."""
    run.finished += 1
    runs.touch(run)


def test_a_run_ends_when_it_was_left_and_its_tasks_are_done(runs: Runs) -> None:
    """Whichever comes last: the end of the block or that of the last task."""
    first, second = runs.open_explicit("a", {}), runs.open_explicit("b", {})
    for run in (first, second):
        assert runs._register(run)
    leave(runs, first)
    finish(runs, second)
    assert runs.tick() == []
    finish(runs, first)
    assert runs.tick() == [first]
    leave(runs, second)
    assert runs.tick() == [second] and runs.current() is None


def test_a_task_that_goes_elsewhere_lets_the_run_end(runs: Runs) -> None:
    """One that registers while the run is being closed holds it up until it took that back."""
    run = runs.open_explicit("a", {})
    entered = run.entered

    class Slow:
        """The counter of a thread that is held up between its two looks at `withdrawn`."""

        value = entered.value

        def add(self) -> int:
            number = entered.add()
            leave(runs, run)
            assert runs.tick() == []
            run.withdrawn = True  # the next try to close it
            return number

    run.entered = Slow()  # type: ignore[assignment]
    assert not runs._register(run)
    assert runs.tick() == [run]


def test_only_what_changed_is_looked_at(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that wait for their tasks cost nothing, however many there are."""
    open_runs = [runs.open_explicit("a", {}) for _ in range(1000)]
    for run in open_runs:
        runs._register(run)
        leave(runs, run)
    assert runs.tick() == []
    looks: list[Run] = []
    open_tasks = Run.open_tasks
    monkeypatch.setattr(Run, "open_tasks", lambda run: looks.append(run) or open_tasks(run))
    assert runs.tick() == [] and not runs.idle_but_open() and looks == []
    finish(runs, open_runs[500])
    assert runs.tick() == [open_runs[500]] and set(looks) == {open_runs[500]}
