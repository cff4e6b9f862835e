"""spec/scheduler.md §1.8, §1.10: errors, their text, sync blocks."""

from __future__ import annotations

import pickle
import threading
import traceback
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan import errors
from tests.dagger.acceptance.support import DEADLINE_S, BoomError, add, boom, failure, identity, outcome


def test_s1_8_fetch_raises_and_the_rest_goes_on() -> None:
    """§1.8: wait and isready never reveal the error, fetch does, other tasks are unaffected."""
    a = D.spawn(boom)
    assert a.wait() is None and D.wait(a) is None and a.isready()
    assert outcome(a) == (D.DTaskFailedError, BoomError)
    assert D.fetch(D.spawn(add, 1, 2)) == 3


def test_s1_8_the_failing_task_is_its_own_root() -> None:
    """§1.8: for the failing task `task.id == root.id`; `ex` leads to the body's exception."""
    a = D.spawn(boom)
    error = failure(a)
    assert error.task.id == error.root.id == a.id
    assert isinstance(D.unwrap_exception(error.ex), BoomError)


def test_s1_8_layout_of_the_message() -> None:
    """§1.8: header with our name, root type, root text; then, only for dependents, Root Task; then This Task."""
    a = D.spawn(boom)
    own = str(failure(a))
    assert own.startswith("DTaskFailedError")
    assert "Root Task" not in own
    b = D.spawn(add, a, 1)
    text = str(failure(b))
    assert text.startswith("DTaskFailedError")
    places = [text.index(part) for part in ("BoomError", "the fuse blew", "Root Task", "This Task")]
    assert places == sorted(places)
    root_line, this_line = text[places[2] : places[3]], text[places[3] :]
    assert "boom" in root_line and str(a.id) in root_line
    assert "add" in this_line and str(b.id) in this_line


def test_s1_8_up_to_four_arguments_are_listed() -> None:
    """§1.8: a task is rendered as id and call signature; more than four arguments are only counted."""
    few = str(failure(D.spawn(boom, 1111, 2222, 3333, 4444)))
    assert all(str(n) in few for n in (1111, 2222, 3333, 4444))
    many = str(failure(D.spawn(boom, 1111, 2222, 3333, 4444, 5555)))
    assert not any(str(n) in many.split("This Task")[1] for n in (1111, 2222, 3333, 4444, 5555))
    assert "5" in many.split("This Task")[1].split("boom")[1]


def test_s1_8_a_repr_that_fails_or_is_huge_does_no_harm() -> None:
    """§1.8: telling of a failure never fails itself, nor drowns the reader."""

    class Bad:
        def __repr__(self) -> str:
            raise ValueError("no repr")

    error = failure(D.spawn(boom, Bad(), "x" * 1_000_000))
    assert isinstance(D.unwrap_exception(error), BoomError)
    assert len(str(error)) < 20_000


def test_s1_8_dependents_carry_the_originator() -> None:
    """§1.8 defect 2: in a -> b -> c the root of c is a, and so it is thirty steps on."""
    a = D.spawn(boom)
    b = D.spawn(add, a, 1)
    c = D.spawn(add, b, 1)
    assert (failure(b).root.id, failure(b).task.id) == (a.id, b.id)
    assert (failure(c).root.id, failure(c).task.id) == (a.id, c.id)
    end = c
    for _ in range(30):
        end = D.spawn(identity, end)
    assert (failure(end).root.id, failure(end).task.id) == (a.id, end.id)


def test_s1_8_originator_when_wired_before_the_failure(gate: threading.Event) -> None:
    """§1.8: the originator is the root too when the chain existed before it failed."""

    def fail() -> None:
        gate.wait(DEADLINE_S)
        boom()

    a = D.spawn(fail)
    b = D.spawn(identity, a)
    c = D.spawn(identity, b)
    gate.set()
    assert [failure(t).root.id for t in (a, b, c)] == [a.id] * 3
    assert [failure(t).task.id for t in (a, b, c)] == [a.id, b.id, c.id]


def test_s1_8_each_dependent_has_its_own_error() -> None:
    """§1.8: each dependent gets its own `DTaskFailedError`; the exception below is the same one."""
    a = D.spawn(boom)
    errs = [failure(D.spawn(identity, a)) for _ in range(3)]
    assert len({id(e) for e in errs}) == 3
    assert len({e.task.id for e in errs}) == 3
    assert len({id(D.unwrap_exception(e)) for e in errs}) == 1


def test_s1_8_a_dependent_fails_without_waiting_for_other_inputs(gate: threading.Event) -> None:
    """§1.8: one failed input is enough, however many others are pending; the body never runs."""
    ran: list[Any] = []
    blocked = D.spawn(gate.wait, DEADLINE_S)
    down = D.spawn(lambda *a: ran.append(a), blocked, D.spawn(boom))
    assert outcome(down) == (D.DTaskFailedError, BoomError)
    assert not blocked.isready()
    gate.set()
    D.wait(blocked)
    assert ran == []


def test_s1_8_spawned_onto_a_failed_task_fails_at_submission() -> None:
    """§1.8: a task spawned with a failed input is done when spawn returns, by argument, keyword or function."""
    a = D.spawn(boom)
    D.wait(a)
    for late in (D.spawn(identity, a), D.spawn(dict, k=a), D.spawn(a), D.spawn(int, D.Options(syncdeps={a}))):
        assert late.isready()
        assert failure(late).root.id == a.id


def test_s1_8_the_cause_is_the_body_s_exception_with_its_stack() -> None:
    """§1.8: `__cause__` is the root exception, and the printed error shows the line that raised."""
    error = failure(D.spawn(identity, D.spawn(boom)))
    assert isinstance(D.unwrap_exception(error.__cause__), BoomError)
    text = "".join(traceback.format_exception(error))
    assert "in boom" in text and "the fuse blew" in text


def test_s1_8_fetching_often_does_not_grow_the_stack() -> None:
    """§1.8: the exception's traceback stays that of the body, however often it is fetched."""
    task = D.spawn(boom)
    lengths = set()
    for _ in range(5):
        cause = D.unwrap_exception(failure(task))
        lengths.add(len(traceback.extract_tb(cause.__traceback__)))
    assert len(lengths) == 1


def test_s1_8_errors_of_argument_movement_are_the_task_s() -> None:
    """§1.8: what raises while arguments are moved finishes the task with that error."""

    class Cargo:
        pass

    @D.move.register(D.Processor, D.ThreadProc, Cargo)
    def _(source: Any, target: Any, x: Any) -> Any:
        raise BoomError("lost at sea")

    ran: list[Any] = []
    assert outcome(D.spawn(ran.append, D.tochunk(Cargo()))) == (D.DTaskFailedError, BoomError)
    assert ran == []


def test_s1_8_no_place_is_a_scheduling_error_under_the_task_s() -> None:
    """§1.8: a task without a place fails as `DTaskFailedError` over `SchedulingError`; dependents inherit."""
    a = D.spawn(int, D.Options(scope=D.ExactScope(D.ThreadProc(99, 1))))
    b = D.spawn(identity, a)
    assert outcome(a) == outcome(b) == (D.DTaskFailedError, D.SchedulingError)
    assert failure(b).root.id == a.id


def test_s1_8_after_teardown_pending_tasks_say_exited(gate: threading.Event) -> None:
    """§1.8: after teardown pending futures raise `SchedulingError(code="exited")` directly."""
    with D.Context(threads=1) as context:
        running = D.spawn(gate.wait, DEADLINE_S)
        waiting = D.spawn(identity, running)
        context.shutdown()
        for task in (running, waiting):
            assert failure(task, BaseException).code == "exited"
            assert type(failure(task, BaseException)) is D.SchedulingError


def test_s1_8_finished_results_survive_teardown() -> None:
    """§1.8: teardown resolves what is pending; a result that was there stays."""
    with D.Context(threads=1) as context:
        good, bad = D.spawn(int, 5), D.spawn(boom)
        D.waitall([good, bad])
        context.shutdown()
        assert D.fetch(good) == 5
        assert outcome(bad) == (D.DTaskFailedError, BoomError)


def test_s1_8_a_diamond_of_failures_names_the_one_root() -> None:
    """§1.8: whichever path an error takes, it names the originator."""
    a = D.spawn(boom)
    join = D.spawn(add, D.spawn(identity, a), D.spawn(identity, a))
    assert failure(join).root.id == a.id


def test_errors_pickle_round_trip() -> None:
    """errors.py: a fetched failure survives pickling: types, ids and text."""
    error = failure(D.spawn(identity, D.spawn(boom)))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.task.id, copy.root.id) == (error.task.id, error.root.id)
    assert isinstance(D.unwrap_exception(copy), BoomError)
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.SchedulingError("why", "exited"),
        errors.NestingError("deep", "nesting"),
        errors.DynamicThunkError("why", "dominated"),
        errors.RemoteTaskError(2, BoomError("x"), "text"),
        errors.WorkerLostError(2),
        errors.SingleWorkerLostError(2),
        errors.MissingExtraError("dask", "dask"),
        errors.TaskCancelled("gone"),
        errors.FetchTimeoutError("late"),
        errors.ConcurrencyViolationError("no"),
        errors.StreamClosed("shut"),
        errors.DTaskCancelledError(None, None, errors.TaskCancelled()),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_all_pickle(error: Exception) -> None:
    """errors.py: all errors survive pickling with their arguments."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert {k: v for k, v in vars(copy).items() if k != "ex" and k != "exc"} == {
        k: v for k, v in vars(error).items() if k != "ex" and k != "exc"
    }
    assert len(copy.args) == len(error.args)


# --- 1.10 sync blocks ------------------------------------------------------------------------------------


def test_s1_10_the_block_waits_for_all() -> None:
    """§1.10: all tasks spawned in the block are done when it ends."""
    with D.sync():
        tasks = [D.spawn(identity, n) for n in range(20)]
    assert all(t.isready() for t in tasks)


def test_s1_10_a_failing_spawn_makes_the_block_raise() -> None:
    """§1.10: leaving the block raises the failure of a task that nobody fetched, after all are done."""
    with pytest.raises(D.DTaskFailedError) as caught, D.sync():
        D.spawn(boom)
        last = D.spawn(identity, 5)
    assert isinstance(D.unwrap_exception(caught.value), BoomError)
    assert last.isready()


def test_ruling_18_first_failure_in_spawn_order(gate: threading.Event) -> None:
    """Ruling 18: `sync` raises the first failure in spawn order, not in time."""

    def late() -> None:
        gate.wait(DEADLINE_S)
        raise KeyError("first spawned")

    def early() -> None:
        try:
            raise BoomError("second spawned")
        finally:
            gate.set()

    with D.Context(threads=2), pytest.raises(D.DTaskFailedError) as caught, D.sync():
        first = D.spawn(late)
        D.spawn(early)
    assert caught.value.task.id == first.id
    assert isinstance(D.unwrap_exception(caught.value), KeyError)


def test_ruling_18_the_blocks_own_exception_wins() -> None:
    """Ruling 18: an exception raised in the block itself wins over its tasks' failures."""
    with pytest.raises(ZeroDivisionError), D.sync():
        D.spawn(boom)
        raise ZeroDivisionError


def test_s1_10_bodies_do_not_inherit_the_block() -> None:
    """§1.10: only spawns of this thread inside the block count; a body's own spawns don't."""
    children: list[D.DTask] = []
    with D.sync():
        D.spawn(lambda: children.append(D.spawn(boom)))
    assert outcome(children[0]) == (D.DTaskFailedError, BoomError)


def test_s1_10_other_threads_do_not_count(gate: threading.Event) -> None:
    """§1.10: tasks of another thread are neither awaited nor reported."""
    others: list[D.DTask] = []
    with D.Context(threads=2):
        with D.sync():
            thread = threading.Thread(target=lambda: others.extend([D.spawn(boom), D.spawn(gate.wait, DEADLINE_S)]))
            thread.start()
            thread.join(DEADLINE_S)
            D.spawn(int)
        assert not others[1].isready()
        gate.set()


def test_s1_10_blocks_nest() -> None:
    """§1.10: an inner block awaits its own tasks when it ends, the outer one the rest."""
    with D.sync():
        outer = D.spawn(int)
        with D.sync():
            inner = D.spawn(int)
        assert inner.isready()
        last = D.spawn(int)
    assert outer.isready() and last.isready()


def test_s1_10_a_block_within_a_body(one: D.Context) -> None:
    """§1.10: a sync block works within a body on a single slot."""

    def body() -> bool:
        with D.sync():
            tasks = [D.spawn(identity, n) for n in range(5)]
        return all(t.isready() for t in tasks)

    assert D.fetch(D.spawn(body)) is True
