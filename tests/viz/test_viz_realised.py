"""The path of a run whose tasks were submitted one after the other, and the account of all its time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import viz
from otel_timespan.timespans.model import EventId, Timeline
from tests.viz.viz_logs import Proc, Run, count, load, merge

US = 1000
MS = 1000 * US
WIDE = 2
"""Slots of the real runs here."""


def throttled(tasks: int, at_once: int, body_ns: int = 20 * MS) -> Run:
    """Each task is submitted when the one `at_once` before it has ended; as many threads run them; then a merge."""
    run, ends = Run(), [0] * at_once
    for task_id in range(1, tasks + 1):
        slot = (task_id - 1) % at_once
        at = ends[slot] + 10 * US + task_id * US
        run.task(task_id, at, at + US, at + 50 * US, at + body_ns, proc=Proc(1, slot + 1), thread=(slot, ""))
        ends[slot] = at + body_ns + 5
    at = max(ends) + 2 * MS
    run.task(tasks + 1, at, at + US, at + 50 * US, at + MS, f=merge)
    return run


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_throttled_run_is_on_the_path_from_its_beginning(at_once: int) -> None:
    """The tasks for whose end the program waited are on it, and so is the time until it went on, by its name."""
    run = throttled(12, at_once)
    path = viz.critical_path(run.raw())
    assert path.realised_tasks == (*range(at_once, 12, at_once), 12, 13)
    table = viz.read_logs(run.raw())
    whole = table.tasks[13].finished_ns - table.tasks[1].submitted_ns  # type: ignore[operator]
    assert path.duration_ns == sum(path.waits.values()) == whole
    assert path.steps[-1].waits["submit"] == 2 * MS
    assert "submit (waiting for the submitter)" in str(path)


def test_a_program_that_only_submits_is_what_was_waited_for() -> None:
    """Tasks that end while a loop of spawn goes on are not on the path: the program waited for none of them."""
    run = Run()
    for task_id in range(1, 201):
        at = task_id * 30 * US
        run.task(task_id, at, at + US, at + 50 * US, at + 60 * US, proc=Proc(1, 1 + task_id % 3))
    path = viz.critical_path(run.raw())
    assert path.realised_tasks == (200,)
    assert path.waits["submit"] == 199 * 30 * US and path.duration_ns == 199 * 30 * US + 60 * US + 5


def test_a_loop_of_fetch_over_short_tasks_is_on_the_path() -> None:
    """Where each task ends before the next one is submitted, the program waited for it, however short it was."""
    run = Run()
    for task_id in range(1, 51):
        at = task_id * 30 * US
        run.task(task_id, at, at + US, at + 15 * US, at + 25 * US)
    path = viz.critical_path(run.raw())
    assert path.realised_tasks == tuple(range(1, 51))
    assert path.duration_ns == sum(path.waits.values()) == 49 * 30 * US + 25 * US + 5


def test_what_a_body_submits_waits_for_that_body() -> None:
    """The body is on the path until it submitted, with what it had waited for itself."""
    run, thread = Run(), (101, "t")
    run.task(1, 0, US, 10 * US, 5 * MS)
    run.submit(2, 2 * US, count, deps=[1])
    run.place(2, 5 * MS + US, 5 * MS + 2 * US)
    run.begin(2, 5 * MS + 3 * US, 5 * MS + 10 * US, Proc(1, 1), thread, count, deps=[1])
    run.task(3, 8 * MS, 8 * MS + US, 8 * MS + 40 * US, 20 * MS, proc=Proc(1, 2), thread=(102, "u"), spawned_by=2)
    run.end(2, 9 * MS, Proc(1, 1), thread, count)
    run.finish(2, 9 * MS, 9 * MS + US)
    path = viz.critical_path(run.raw())
    assert path.realised_tasks == (1, 2, 3)
    assert path.steps[1].waits["compute"] == 8 * MS - (5 * MS + 10 * US)
    assert path.duration_ns == sum(path.waits.values()) == 20 * MS + 5


def by_map(work: Callable[[int], int], ends: list[Any]) -> None:
    """A map that is throttled."""
    for _ in ts.map(work, range(12), max_pending=2):
        pass


def by_fetching(work: Callable[[int], int], ends: list[Any]) -> None:
    """A loop of spawn and fetch."""
    for n in range(6):
        ts.fetch(ts.spawn(work, n))


def by_semaphore(work: Callable[[int], int], ends: list[Any]) -> None:
    """A semaphore that the bodies release."""
    free = threading.Semaphore(2)

    def released(n: int) -> int:
        try:
            return work(n)
        finally:
            free.release()

    tasks = []
    for n in range(12):
        free.acquire()
        tasks.append(ts.spawn(released, n))
    ts.waitall(tasks)


@pytest.mark.parametrize("way", [by_map, by_fetching, by_semaphore])
def test_the_path_of_a_real_run_is_as_long_as_the_run(way: Callable[..., None]) -> None:
    """However the program throttles: from the first submission to the end, over tasks that it waited for."""
    pause = threading.Event()

    def work(n: int) -> int:
        pause.wait(0.01)
        return n

    with ts.Context(threads=WIDE) as ctx:
        ctx.log_sink = log = ts.MultiEventLog()
        fill(log)
        way(work, [])
    table = viz.read_logs(log.get_logs())
    path = viz.critical_path(table)
    ends = [t.finished_ns for t in table.tasks.values() if t.finished_ns is not None]
    starts = [t.submitted_ns for t in table.tasks.values() if t.submitted_ns is not None]
    assert path.duration_ns == sum(path.waits.values()) == max(ends) - min(starts)
    assert len(path.steps) > 1  # how many depends on who runs when


def fill(log: ts.MultiEventLog) -> None:
    """The streams that pictures need."""
    from otel_timespan import events

    log["core"], log["id"], log["timeline"] = events.CoreMetrics(), events.IDMetrics(), events.TimelineMetrics()


# ---- the account -----------------------------------------------------------------------------------------


def test_helpers_count_in_their_slot() -> None:
    """Three threads worked in two slots: busy is what they computed, over two slots."""
    run = Run()
    run.task(1, 0, 10, 100, 1100, proc=Proc(1, 1), thread=(101, "dagger-1"))
    run.task(2, 0, 10, 100, 1100, proc=Proc(1, 2), thread=(102, "dagger-2"))
    run.task(3, 0, 10, 1200, 2200, proc=Proc(1, 2), thread=(100, "MainThread"))
    account = viz.where_time_went(run.raw())
    assert account.slots == 2
    assert account.utilisation == account.waits["compute"] / (2 * account.wall_ns) == 3000 / (2 * account.wall_ns)


def test_slots_that_had_nothing_to_do_count() -> None:
    """The scheduler said how many there are: a program that uses one of four leaves three idle."""
    run = Run()
    run.span("init_proc", EventId(uid=1, worker=1), 0, 1, Timeline(slots=4))
    run.task(1, 0, 10, 100, 1100)
    for logs in (run.raw(), run.streams()):
        account = viz.where_time_went(logs)
        assert account.slots == 4 and account.utilisation == pytest.approx(1000 / (4 * account.wall_ns))
    assert viz.where_time_went(run.streams(timeline=False)).slots == 1


def nested_runs() -> Iterator[tuple[str, Run, dict[str, int]]]:
    """(what, run, own time of each function)"""
    first, second = Proc(1, 1), Proc(1, 2)
    helping = Run()
    helping.begin(1, 0, 10, first, (101, "t"), load)
    helping.begin(2, 20, 30, second, (101, "t"), count)
    helping.end(2, 80, second, (101, "t"), count)
    helping.end(1, 100, first, (101, "t"), load)
    yield "a fetch runs the other body itself", helping, {"load": 40, "count": 50}
    lent = Run()
    lent.begin(1, 0, 10, first, (101, "t"), load)
    lent.begin(2, 20, 30, first, (102, "u"), count)
    lent.end(2, 80, first, (102, "u"), count)
    lent.end(1, 100, first, (101, "t"), load)
    yield "a fetch gives its slot away", lent, {"load": 40, "count": 50}
    outlived = Run()
    outlived.begin(1, 0, 10, first, (101, "t"), load)
    outlived.begin(2, 20, 30, first, (102, "u"), count)
    outlived.end(1, 100, first, (101, "t"), load)
    outlived.end(2, 150, first, (102, "u"), count)
    yield "what got the slot keeps it", outlived, {"load": 20, "count": 120}


@pytest.mark.parametrize(("what", "run", "own"), list(nested_runs()))
def test_a_moment_of_a_slot_counts_once(what: str, run: Run, own: dict[str, int]) -> None:
    """Functions and compute agree, and no slot is busy for longer than it was there."""
    for task_id, f in ((1, load), (2, count)):
        run.submit(task_id, 0, f)
        run.finish(task_id, 200, 201)
    account = viz.where_time_went(run.raw())
    assert account.functions == own
    assert account.waits["compute"] == sum(own.values()) == account.own_ns
    assert account.waits["nested"] == (70 if "keeps" in what else 50)
    assert account.total_ns == 2 * 201


def test_attempts_bodies_and_the_end_of_the_log_are_in_the_account() -> None:
    """Earlier attempts are compute of their function, waiting for the next one is not; an open body lasts until now."""
    run, proc = Run(), Proc(1, 1)
    run.task(1, 0, 10, 100, 200)
    run.begin(1, 300, 310, proc, (101, "t"))
    run.end(1, 350, proc, (101, "t"))
    run.finish(1, 350, 360)
    run.submit(2, 0, count)
    run.begin(2, 500, 510, proc, (101, "t"), count)
    run.submit(3, 900, merge)
    account = viz.where_time_went(run.raw())
    assert account.functions == {"count": 901 - 510, "load": 140}
    assert account.waits["compute"] == 140 + 901 - 510 and account.waits["retry"] == 110
    assert "count" in viz.critical_path(run.raw()).steps[-1].name


def test_a_body_that_goes_on_after_its_task_was_cancelled_is_not_in_it() -> None:
    """Nobody waited for that: it is in no phase, and so in no function."""
    run, proc = Run(), Proc(1, 1)
    run.submit(1, 0)
    run.begin(1, 30, 40, proc, (101, "t"))
    run.finish(1, 100, 105, ValueError("cancelled"), "cancellation")
    run.end(1, 900, proc, (101, "t"))
    account, path = viz.where_time_went(run.raw()), viz.critical_path(run.raw())
    assert account.functions == {"load": 65} and account.waits["compute"] == 65
    assert path.length_ns == 65 <= path.duration_ns == 105


def test_cpu_and_bytes_stand_beside_the_time_of_a_function() -> None:
    """CPU time of what a thread ran for others is theirs; sizes of results add up; unknown is None."""
    run, proc = Run(), Proc(1, 1)
    run.begin(1, 0, 10, proc, (101, "t"), load)
    run.begin(2, 20, 30, proc, (101, "t"), count)
    run.end(2, 80, proc, (101, "t"), count)
    run.end(1, 100, proc, (101, "t"), load)
    for event in run.events:
        if event.category == "compute" and event.phase == "finish":
            event.timeline.cpu_ns = 60 if event.timeline.f is load else 45
    account = viz.where_time_went(run.raw())
    assert "count                                   1         50 ns         45 ns          80 B" in str(account)
    by_function = account.by_function
    assert (by_function["load"].cpu_ns, by_function["count"].cpu_ns) == (15, 45)
    assert by_function["load"].nbytes == 80 and by_function["load"].tasks == 1
    bare = viz.where_time_went(run.streams(timeline=False)).by_function
    assert bare and all(found.cpu_ns is None for found in bare.values())


def test_phases_without_time_are_not_in_the_text() -> None:
    """Some made-up nanoseconds a task are no row."""
    text = str(viz.where_time_went(throttled(12, 2).raw()))
    assert "compute" in text and "finish" not in text and "0.0 %" not in text


def test_waiting_for_a_place_is_not_waiting_for_a_dependency() -> None:
    """Once its upstreams have finished, a task that is not placed yet waits for a worker, or a place of its limit."""
    run = Run()
    run.task(1, 0, 10, 100, 1_000)
    run.task(2, 0, 9_000, 9_100, 9_200, deps=[1])
    run.task(3, 500, 9_000, 9_100, 9_200)
    tasks = viz.read_logs(run.raw()).tasks
    assert (tasks[2].waits()["dependency"], tasks[2].waits()["schedule"]) == (1_005, 9_010 - 1_005)
    assert (tasks[3].waits()["dependency"], tasks[3].waits()["schedule"]) == (0, 9_010 - 500)


def test_the_wall_is_that_of_the_tasks() -> None:
    """What the log has from before, such as the idle wait of a thread, makes a run neither longer nor lazier."""
    run = Run()
    run.span("proc_run_wait", EventId(uid=1, worker=1, processor=Proc(1, 1), seq=1), 0, 50_000)
    run.task(1, 50_000, 50_010, 50_100, 51_100)
    account = viz.where_time_went(run.raw())
    assert account.wall_ns == viz.critical_path(run.raw()).duration_ns == 1_105
    assert account.utilisation == pytest.approx(1000 / 1105)
