"""Reading logs of every kind into spans and tasks."""

from __future__ import annotations

import pytest

from otel_timespan.errors import InvalidOptionError
from otel_timespan.timespans.model import Event, EventId, Timeline
from otel_timespan.viz import LogView, read_logs
from tests.viz.viz_logs import Proc, Run, Tally, count, diamond, layered, load, merge

WAITS_OF_2 = {"dependency": 10_905, "schedule": 15, "queue": 60, "move": 20, "compute": 20_000, "finish": 5}


def every_kind(run: Run) -> list[object]:
    """The same run as each kind of log."""
    flat = sorted(run.events, key=lambda e: e.timestamp)
    full = {w: {"full": events} for w, events in run.raw().items()}
    return [run.streams(), run.streams(timeline=False), run.raw(), run.timespans(), flat, full]


@pytest.mark.parametrize("kind", range(6), ids=["streams", "no timeline", "raw", "timespans", "flat", "full"])
def test_every_kind_of_log_says_the_same_of_its_tasks(kind: int) -> None:
    """Times, dependencies, names and waits do not depend on how the log was kept."""
    table = read_logs(every_kind(diamond())[kind])
    assert list(table.tasks) == [1, 2, 3, 4]
    task = table.tasks[2]
    assert (task.function, task.dependencies, task.worker) == ("count", (1,), 1)
    assert (task.body_start_ns, task.body_end_ns, task.finished_ns) == (12_100, 32_100, 32_105)
    assert task.waits() == WAITS_OF_2
    assert table.tasks[4].dependencies == (2, 3)
    assert table.workers == (1,)


def test_the_waits_add_up_to_the_time_from_submission_to_finish() -> None:
    """No phase is counted twice, none is missing."""
    for task in read_logs(layered(5, 6, [100, 5_000, 300]).streams()).tasks.values():
        assert sum(task.waits().values()) == task.finished_ns - task.submitted_ns  # type: ignore[operator]


def test_a_view_and_a_table_are_logs_too() -> None:
    """What was read is not read again."""
    view = LogView(diamond().streams())
    assert read_logs(view) is view.table
    assert read_logs(view.table) is view.table
    assert view[1]["core"] and len(view) == 1 and list(view) == [1]


def test_pairs_do_not_leak_between_workers_and_are_used_once() -> None:
    """A finish takes the earlier start of its own worker, and only once."""
    id = EventId(thunk_id=1)
    logs = {
        1: [Event("start", "x", id, None, 1), Event("finish", "x", id, None, 3), Event("finish", "x", id, None, 4)],
        2: [Event("finish", "x", id, None, 9, worker=2)],
    }
    assert [(s.worker, s.start, s.finish) for s in read_logs(logs).spans] == [(1, 1, 3)]


def test_padding_and_events_without_id_are_tolerated() -> None:
    """None in `core` is padding of a late consumer; None as id names no span."""
    logs = {1: {"core": [None, Tally(5, "x", "start"), Tally(6, "x", "finish")], "id": [None, None, None]}}
    table = read_logs(logs)
    assert (table.spans, table.start_ns, table.finish_ns) == ([], 5, 6)


def test_rows_of_core_may_be_dicts() -> None:
    """A log that was saved as JSON has dicts where the live one has records."""
    id = EventId(thunk_id=4)
    rows = [{"timestamp": t, "category": "compute", "kind": k} for t, k in ((3, "start"), (8, "finish"))]
    assert read_logs({1: {"core": rows, "id": [id, id]}}).tasks[4].compute_ns == 5


def test_a_task_that_never_ran_spent_its_time_where_it_got_to() -> None:
    """Skipped: waiting for dependencies; cancelled in the queue: queueing; failed moving: moving."""
    run = Run()
    run.submit(1, 100)
    run.finish(1, 500, 510, ValueError("no"), "skip")
    run.submit(2, 100)
    run.place(2, 200, 210)
    run.finish(2, 500, 510, ValueError("no"), "cancellation")
    run.submit(3, 100)
    run.place(3, 200, 210)
    fetch = EventId(uid=1, worker=1, processor=Proc(1, 1), seq=1)
    run.emit("start", "proc_run_fetch", fetch, 300)
    run.emit("finish", "proc_run_fetch", fetch, 300, Timeline(thunk_id=3))
    run.finish(3, 500, 510, ValueError("no"), "failure")
    tasks = read_logs(run.raw()).tasks
    largest = {task_id: max(task.waits(), key=task.waits().__getitem__) for task_id, task in tasks.items()}
    assert largest == {1: "dependency", 2: "queue", 3: "move"}
    assert not any(task.computed for task in tasks.values())
    assert tasks[3].error == "ValueError: no"
    assert all(sum(task.waits().values()) == 410 for task in tasks.values())


def test_a_task_that_was_tried_again_counts_its_earlier_attempts_apart() -> None:
    """The last body is its compute; everything from the first body's start on is "retry"."""
    run, proc = Run(), Proc(1, 1)
    run.task(1, 0, 10, 100, 200)
    run.begin(1, 300, 310, proc, (101, "t"))
    run.end(1, 350, proc, (101, "t"))
    run.finish(1, 350, 360)
    task = read_logs(run.raw()).tasks[1]
    assert task.computes == 2 and task.compute_ns == 140
    assert task.waits()["retry"] == 210 and task.waits()["compute"] == 40
    assert sum(task.waits().values()) == 360


def test_a_cancelled_task_is_finished_while_its_body_still_runs() -> None:
    """What the abandoned body takes after the finish is not the task's time."""
    run, proc = Run(), Proc(1, 1)
    run.submit(1, 0)
    run.place(1, 10, 20)
    run.begin(1, 30, 40, proc, (101, "t"))
    run.finish(1, 100, 105, ValueError("cancelled"), "cancellation")
    run.end(1, 900, proc, (101, "t"))
    waits = read_logs(run.raw()).tasks[1].waits()
    assert sum(waits.values()) == 105 and waits["compute"] == 65


def test_a_body_that_still_runs_lasts_until_the_end_of_the_log() -> None:
    """It is a span, marked as open, and its task has not computed."""
    run = Run()
    run.begin(1, 30, 40, Proc(1, 1), (101, "t"))
    run.submit(2, 700)
    table = read_logs(run.raw())
    assert [(s.start, s.finish, s.open) for s in table.computes] == [(40, 701, True)]
    assert not table.tasks[1].computed


def test_what_a_thread_ran_for_others_is_not_the_outer_task_s_own_time() -> None:
    """A fetch that helps runs other bodies inside of its own one."""
    run, proc = Run(), Proc(1, 1)
    run.begin(1, 0, 10, proc, (101, "t"), load)
    run.begin(2, 20, 30, proc, (101, "t"), count)
    run.begin(3, 40, 50, proc, (101, "t"), merge)
    run.end(3, 60, proc, (101, "t"))
    run.end(2, 80, proc, (101, "t"))
    run.end(1, 100, proc, (101, "t"))
    tasks = read_logs(run.raw()).tasks
    assert [tasks[i].own_ns for i in (1, 2, 3)] == [90 - 50, 50 - 10, 10]
    assert sum(task.own_ns for task in tasks.values()) == 90


def test_annotations_name_tasks() -> None:
    """`logs_annotate` wins over the function's name."""
    run = diamond()
    run.span("data_annotation", EventId(objectid=1, name="the start"), 5, 5)
    assert read_logs(run.streams()).tasks[1].name == "the start"


@pytest.mark.parametrize(
    ("logs", "said"),
    [
        (None, "logging is off"),
        (7, "a int is no log"),
        ([1, 2], "a list is no log"),
        ({1: 5}, "worker 1 is a int"),
        ({1: {"core": []}}, "no stream 'id'"),
        ({1: {"bytes": []}}, "no stream 'core' and no stream 'id'"),
    ],
)
def test_what_is_no_log_is_refused_with_what_is_allowed(logs: object, said: str) -> None:
    """The error says what was given and what to do."""
    with pytest.raises(InvalidOptionError, match=said):
        read_logs(logs)


@pytest.mark.parametrize("logs", [{}, [], {1: []}, {1: {"core": [], "id": []}}])
def test_an_empty_log_is_a_log(logs: object) -> None:
    """Nothing happened: nothing to show, and no error."""
    assert read_logs(logs).tasks == {}
