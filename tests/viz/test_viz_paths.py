"""Critical path, realised path, the account of time, and replays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan.errors import InvalidOptionError, LogFormatError
from otel_timespan.viz import PHASES, critical_path, read_logs, simulate, where_time_went
from tests.viz.viz_logs import Proc, Run, count, diamond, layered


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Random graphs, really scheduled on one to four threads (in the order of their ids)."""
    threads = draw(st.integers(1, 4))
    run, free, ends = Run(), [100] * threads, {}
    for task_id in range(1, draw(st.integers(1, 25)) + 1):
        deps = draw(st.sets(st.integers(1, task_id - 1), max_size=3)) if task_id > 1 else set()
        submitted = draw(st.integers(0, 500))
        ready = max([submitted + 2, *(ends[d] + 1 for d in deps)])
        slot = min(range(threads), key=free.__getitem__)
        start = max(ready + 40, free[slot] + 25)
        end = start + draw(st.integers(0, 1_000))
        run.task(task_id, submitted, ready, start, end, deps=sorted(deps), proc=Proc(1, slot + 1), thread=(slot, ""))
        ends[task_id] = free[slot] = end + 5
    return run


@pytest.mark.parametrize("kind", ["streams", "raw", "timespans"])
def test_both_paths_of_a_diamond(kind: str) -> None:
    """The slower branch is on both; the sum of bodies is one, the time that passed the other."""
    path = critical_path(getattr(diamond(), kind)())
    assert path.tasks == path.realised_tasks == (1, 3, 4)
    assert path.length_ns == 10_000 + 40_000 + 8_000
    assert path.duration_ns == 60_305 - 1_000
    assert path.waits["compute"] == 58_000 and sum(path.waits.values()) == path.duration_ns
    assert [step.waits["queue"] for step in path.steps] == [960, 150, 60]


def test_the_paths_differ_where_a_short_task_finished_last() -> None:
    """The critical path weighs bodies; the realised one follows what was really waited for."""
    run = Run()
    run.task(1, 0, 10, 100, 10_100)  # long, but early
    run.task(2, 0, 10, 20_000, 20_100, proc=Proc(1, 2))  # short, but it waited for a thread
    run.task(3, 0, 20_120, 20_200, 20_300, f=count, deps=[1, 2])
    path = critical_path(run.raw())
    assert path.tasks == (1, 3) and path.realised_tasks == (2, 3)
    assert path.waits["queue"] > 19_000
    assert "queue" in str(path) and "critical path: 2 tasks" in str(path)


def test_time_before_a_task_was_submitted_is_told_apart() -> None:
    """The program itself took its time between two spawns."""
    run = Run()
    run.task(1, 0, 10, 100, 200)
    run.task(2, 5_000, 5_010, 5_100, 5_200, deps=[1])
    path = critical_path(run.raw())
    assert path.waits["submit"] == 5_000 - 205 and sum(path.waits.values()) == 5_205 == path.duration_ns


@settings(max_examples=60, deadline=None)
@given(runs())
def test_paths_are_consistent_for_any_run(run: Run) -> None:
    """Each task on a path depends on the one before, or was submitted after it; stretches add up to all that passed."""
    table = read_logs(run.raw())
    path = critical_path(table)
    for upstream, task in pairwise(path.tasks):
        assert upstream in table.tasks[task].dependencies
    for before, after in pairwise(path.realised_tasks):
        ended, submitted = table.tasks[before].finished_ns, table.tasks[after].submitted_ns
        assert before in table.tasks[after].dependencies or ended <= submitted  # type: ignore[operator]
    last = table.tasks[path.realised_tasks[-1]]
    began = min(t.submitted_ns for t in table.tasks.values())  # type: ignore[type-var]
    assert last.finished_ns == max(t.finished_ns for t in table.tasks.values())  # type: ignore[type-var]
    assert path.duration_ns == sum(path.waits.values()) == last.finished_ns - began  # type: ignore[operator]
    assert path.length_ns <= table.finish_ns - table.start_ns
    assert path.length_ns >= max(t.own_ns for t in table.tasks.values())


@settings(max_examples=60, deadline=None)
@given(runs(), st.integers(1, 5), st.sampled_from(["recorded", "critical", "id"]))
def test_a_replay_keeps_the_bounds_of_list_scheduling(run: Run, workers: int, priority: str) -> None:
    """At least the critical path and the work per worker, at most their sum; dependencies and workers hold."""
    table = read_logs(run.raw())
    replay = simulate(table, workers, priority=priority)
    length = critical_path(table).length_ns
    assert max(length, -(-replay.work_ns // workers)) <= replay.makespan_ns <= length + replay.work_ns / workers
    ends = {p.task_id: p.finish_ns for p in replay.placements}
    assert ends.keys() == table.tasks.keys()
    busy = [0] * (workers + 1)
    for placement in replay.placements:
        assert placement.start_ns >= max((ends[d] for d in table.tasks[placement.task_id].dependencies), default=0)
        assert placement.start_ns >= busy[placement.worker]
        busy[placement.worker] = placement.finish_ns


def test_one_worker_does_everything_one_after_the_other() -> None:
    """And endless workers need the critical path."""
    logs = diamond().streams()
    one, many = simulate(logs, 1), simulate(logs, workers=100)
    assert (one.makespan_ns, one.utilisation, one.speedup) == (78_000, 1.0, 1.0)
    assert many.makespan_ns == critical_path(logs).length_ns
    assert simulate(logs, 1, overhead_ns=10).makespan_ns == 78_040
    assert "on 1 workers: 78 us" in str(one)


def test_the_account_adds_up() -> None:
    """All phases of all tasks; functions by their own time; how busy the threads were."""
    account = where_time_went(diamond().raw())
    assert tuple(account.waits) == PHASES
    assert account.total_ns == sum(305 + end for end in (10_700, 30_700, 50_700, 58_700)) == sum(account.waits.values())
    assert account.functions == {"count": 60_000, "load": 10_000, "merge": 8_000}
    assert (account.tasks, account.slots, account.wall_ns) == (4, 2, 59_305)
    assert account.utilisation == pytest.approx(78_000 / (2 * 59_305))
    assert "4 tasks in 59.305 us on 2 threads, 66 % busy" in str(account)


def test_tasks_that_never_ran_are_tolerated() -> None:
    """A skipped task may be the last on the path; it costs no time of its own."""
    run = diamond()
    run.submit(5, 2_000, deps=[4, 77])
    run.finish(5, 70_000, 70_010, ValueError("x"), "skip")
    path = critical_path(run.raw())
    assert path.tasks == (1, 3, 4) and path.realised_tasks == (1, 3, 4, 5)
    assert path.steps[-1].own_ns == 0 and path.waits["dependency"] > 9_000
    assert simulate(run.raw(), 2).makespan_ns == 58_000


@pytest.mark.parametrize("logs", [{}, [], {1: []}])
def test_an_empty_log_has_no_paths(logs: Any) -> None:
    """And takes no time."""
    path = critical_path(logs)
    assert (path.tasks, path.steps, path.length_ns, path.duration_ns) == ((), (), 0, 0)
    assert str(path) == "no task finished in this log"
    assert simulate(logs, 3).makespan_ns == 0 and where_time_went(logs).total_ns == 0
    assert "0 tasks" in str(where_time_went(logs)) and "0 tasks" in str(simulate(logs, 1))


def test_circular_dependencies_are_a_damaged_log() -> None:
    """The error names the tasks."""
    run = Run()
    run.task(1, 0, 10, 100, 200, deps=[2])
    run.task(2, 0, 10, 100, 200, deps=[1])
    for account in (critical_path, lambda logs: simulate(logs, 1)):
        with pytest.raises(LogFormatError, match=r"\[1, 2\]"):
            account(run.raw())


def test_the_text_of_a_long_path_is_bounded() -> None:
    """The longest steps, in their order; it says how many there are."""
    text = str(critical_path(layered(60, 2, [1_000, 30_000]).raw()))
    assert "the 30 longest of 60 steps" in text and len(text.splitlines()) < 40


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": "2"}, {"workers": True}, {"workers": 1, "priority": "x"},
                {"workers": 1, "overhead_ns": -1}]
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    """The error names the option."""
    with pytest.raises(InvalidOptionError, match=list(options)[-1]):
        simulate(diamond().raw(), **options)
