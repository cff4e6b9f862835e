"""spec/scheduler.md §10: checkpoint and restore, of a whole run and of single tasks."""

from __future__ import annotations

import operator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    BoomError,
    add,
    boom,
    done,
    failure,
    identity,
    mul,
    of_task,
    outcome,
    settled,
    timeline_of,
)

pytestmark = pytest.mark.usefixtures("legacy")


class Body:
    """A body that counts how often it ran."""

    __name__ = "Body"

    def __init__(self, value: Any = 1) -> None:
        self.value, self.ran = value, 0

    def __call__(self, *args: Any) -> Any:
        self.ran += 1
        return self.value


# --- scheduler level -------------------------------------------------------------------------------------


def test_s10_checkpoint_then_restore(ctx: D.Context) -> None:
    """§10 accept: 1 is stored; then the restored 2 is the answer, the body not run, checkpoint not called."""
    body, stored = Body(), []
    save = D.SchedulerOptions(checkpoint=lambda chunk: stored.append(D.collect(chunk)))
    assert D.collect(D.delayed(body)(), options=save) == 1
    assert (body.ran, stored) == (1, [1])
    both = D.SchedulerOptions(checkpoint=lambda chunk: stored.append("again"), restore=lambda: D.tochunk(2))
    assert D.collect(D.delayed(body)(), options=both) == 2
    assert (body.ran, stored) == (1, [1])


def test_s10_compute_gives_the_restored_chunk(ctx: D.Context) -> None:
    """§10: a Chunk that `restore` returns is the answer itself."""
    chunk = D.tochunk([1])
    restored = D.compute(D.delayed(Body())(), options=D.SchedulerOptions(restore=lambda: chunk))
    assert restored == chunk and restored.fetch() is chunk.fetch()


def test_s10_restore_comes_first_and_no_task_runs(ctx: D.Context) -> None:
    """§10: with a restored answer not one task of the graph runs."""
    first, second = Body(), Body()
    graph = D.delayed(second)(D.delayed(first)())
    assert D.collect(graph, options=D.SchedulerOptions(restore=lambda: D.tochunk("saved"))) == "saved"
    assert (first.ran, second.ran) == (0, 0)


def test_s10_restore_of_none_is_silent(ctx: D.Context, capfd: pytest.CaptureFixture[str]) -> None:
    """§10: `None` means: run normally, silently; the checkpoint is called afterwards."""
    body, stored = Body(), []
    options = D.SchedulerOptions(restore=lambda: None, checkpoint=lambda chunk: stored.append(D.collect(chunk)))
    assert D.collect(D.delayed(body)(), options=options) == 1
    assert (body.ran, stored) == (1, [1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("restore", [lambda: 5, lambda: "text", lambda: [D.tochunk(1)], boom], ids=list("abcd"))
def test_s10_a_bad_restore_is_reported(ctx: D.Context, capfd: pytest.CaptureFixture[str], restore: Any) -> None:
    """§10: anything else, or an exception, is reported on stderr and the run goes on normally."""
    body, stored = Body(), []
    options = D.SchedulerOptions(restore=restore, checkpoint=lambda chunk: stored.append(D.collect(chunk)))
    assert D.collect(D.delayed(body)(), options=options) == 1
    out, err = capfd.readouterr()
    assert "Scheduler restore failed" in err and out == ""
    if restore is boom:
        assert "the fuse blew" in err
    assert (body.ran, stored) == (1, [1])


def test_s10_a_bad_checkpoint_is_reported(ctx: D.Context, capfd: pytest.CaptureFixture[str]) -> None:
    """§10: errors of checkpoint are reported with their text and ignored."""
    body = Body()
    assert D.collect(D.delayed(body)(), options=D.SchedulerOptions(checkpoint=boom)) == 1
    err = capfd.readouterr().err
    assert "Scheduler checkpoint failed" in err and "the fuse blew" in err
    assert body.ran == 1


@pytest.mark.parametrize("allow_errors", [False, True])
def test_s10_no_checkpoint_of_a_failed_run(ctx: D.Context, allow_errors: bool) -> None:
    """§10: the checkpoint is called after a successful run only."""
    stored: list[Any] = []
    options = D.SchedulerOptions(checkpoint=stored.append, allow_errors=allow_errors)
    with pytest.raises(Exception) as caught:
        D.collect(D.delayed(identity)(D.delayed(boom)()), options=options)
    assert isinstance(D.unwrap_exception(caught.value), BoomError)
    assert stored == []


def test_s10_checkpoint_is_called_once_with_the_roots_chunk(ctx: D.Context) -> None:
    """§10: `checkpoint(chunk)` gets the chunk of the root, once a run."""
    stored: list[Any] = []
    options = D.SchedulerOptions(checkpoint=stored.append)
    chunk = D.compute(D.delayed(add)(D.delayed(add)(1, 2), 3), options=options)
    assert stored == [chunk] and isinstance(stored[0], D.Chunk) and stored[0].fetch() == 6


# --- task level ------------------------------------------------------------------------------------------


def test_s10_task_level_lazy(ctx: D.Context) -> None:
    """§10 accept: `a` restored as 2, `b = mul(a, 2)` runs: 4; the body of `a` did not run."""
    body = Body()
    a = D.delayed(body, restore=lambda thunk: D.tochunk(2))()
    assert D.collect(D.delayed(mul)(a, 2)) == 4
    assert body.ran == 0


def test_s10_task_level_eager(ctx: D.Context) -> None:
    """§10: the same with `spawn`: the restored task completes with the chunk, dependents proceed."""
    body, saved = Body(), []
    both = D.Options(restore=lambda thunk: D.tochunk(2), checkpoint=lambda thunk, chunk: saved.append(chunk))
    a = D.spawn(body, both)
    b = D.spawn(mul, a, 2)
    assert (D.fetch(b), D.fetch(a)) == (4, 2)
    assert isinstance(D.fetch(a, raw=True), D.Chunk)
    assert (body.ran, saved) == (0, [])


def test_s10_restore_sees_the_task(ctx: D.Context) -> None:
    """§10: `restore(thunk)` and `checkpoint(thunk, chunk)` get a thunk whose `f` is the function."""
    seen: list[Any] = []

    def restore(thunk: Any) -> None:
        seen.append(thunk.f)

    def checkpoint(thunk: Any, chunk: D.Chunk) -> None:
        seen.append((thunk.f, D.collect(chunk)))

    assert D.fetch(D.spawn(add, D.Options(restore=restore, checkpoint=checkpoint), 1, 2)) == 3
    assert D.collect(D.delayed(mul, restore=restore, checkpoint=checkpoint)(2, 3)) == 6
    assert seen == [add, (add, 3), mul, (mul, 6)]


def test_s10_restore_of_none_runs_the_task(ctx: D.Context, capfd: pytest.CaptureFixture[str]) -> None:
    """§10: `None` runs the task normally, silently."""
    body = Body(7)
    assert D.fetch(D.spawn(body, D.Options(restore=lambda thunk: None))) == 7
    assert body.ran == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("restore", [lambda thunk: 5, lambda thunk: [], boom], ids=list("abc"))
def test_s10_a_bad_task_restore_is_reported(ctx: D.Context, capfd: pytest.CaptureFixture[str], restore: Any) -> None:
    """§10: anything else, or an exception, is reported on stderr before the fetch returns; the task runs."""
    body = Body(7)
    assert D.fetch(D.spawn(body, D.Options(restore=restore))) == 7
    err = capfd.readouterr().err
    assert "Thunk restore failed" in err
    if restore is boom:
        assert "the fuse blew" in err
    assert body.ran == 1


def test_s10_a_bad_task_checkpoint_is_reported(ctx: D.Context, capfd: pytest.CaptureFixture[str]) -> None:
    """§10: errors of a task's checkpoint are reported and ignored; dependents get the value."""
    task = D.spawn(Body(7), D.Options(checkpoint=boom))
    assert D.fetch(D.spawn(identity, task)) == 7
    err = capfd.readouterr().err
    assert "Thunk checkpoint failed" in err and "the fuse blew" in err


def test_s10_no_checkpoint_of_a_failed_task(ctx: D.Context) -> None:
    """§10 defect: a failed or skipped task is not checkpointed, with `allow_errors` neither."""
    saved: list[Any] = []
    keep = D.Options(checkpoint=lambda *a: saved.append(a))
    bad = D.spawn(boom, keep)
    D.waitall([bad, D.spawn(identity, keep, bad)])
    with pytest.raises(D.DTaskFailedError):
        D.collect(D.delayed(boom, keep)(), options=D.SchedulerOptions(allow_errors=True))
    assert saved == []


def test_s10_a_skipped_task_is_not_restored(ctx: D.Context) -> None:
    """§10: restore is asked when the task is about to be fired: not for one whose upstream failed."""
    asked: list[Any] = []
    skipped = D.spawn(identity, D.Options(restore=asked.append), D.spawn(boom))
    assert isinstance(D.unwrap_exception(failure(done(skipped))), BoomError)
    assert asked == []


def test_s10_restore_is_asked_after_placement(ctx: D.Context) -> None:
    """§10: a task with no place to run fails as it does without restore."""
    asked: list[Any] = []
    nowhere = D.Options(scope=D.ExactScope(D.ThreadProc(9, 9)), restore=asked.append)
    assert outcome(done(D.spawn(identity, nowhere, 1))) == (D.DTaskFailedError, D.SchedulingError)
    assert asked == []


def test_s10_restored_tasks_in_the_log() -> None:
    """§10, §19 defect 7: a restored task has no compute and no move, but a finish whose result is the chunk."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        a = D.spawn(boom, D.Options(restore=lambda thunk: D.tochunk([1, 2])))
        b = D.spawn(identity, a)
        assert D.fetch(b) == [1, 2]
        events = settled(log, a, b)
    assert of_task(events, a, "compute") == [] == of_task(events, a, "move")
    ended = timeline_of(events, a, "finish")
    assert ended.state == "success"
    assert ended.result.type is list or ended.result.type == "list"
    order = [(e.category, e.phase, e.id.thunk_id) for e in events if e.category in ("finish", "schedule")]
    assert order.index(("finish", "finish", a.id)) < order.index(("schedule", "start", b.id))


def test_s10_checkpoint_comes_before_the_finish_event() -> None:
    """§10: `checkpoint` is called after the result is stored and before the `finish` event."""
    log: list[Event] = []
    seen: list[Any] = []

    def checkpoint(thunk: Any, chunk: D.Chunk) -> None:
        seen.append((D.collect(chunk), [e.phase for e in list(log) if e.category == "finish"]))

    with D.Context(driver=D.InlineDriver(), log_sink=log):
        task = D.spawn(add, D.Options(checkpoint=checkpoint), 1, 2)
        assert D.fetch(task) == 3
        settled(log, task)
    assert seen == [(3, [])]


def test_s10_a_long_chain_of_restored_tasks(ctx: D.Context) -> None:
    """§10: tasks completed by restore release their dependents one after the other, 5,000 of them."""
    body = Body()
    task: Any = D.spawn(identity, 0)
    for n in range(5000):
        task = D.spawn(body, D.Options(restore=lambda thunk, n=n: D.tochunk(n)), task)
    assert D.fetch(task) == 4999
    assert body.ran == 0


def test_s10_nothing_is_retried(ctx: D.Context) -> None:
    """§10: neither level retries anything: a body that fails after a failed restore failed once."""
    ran: list[int] = []

    def body() -> None:
        ran.append(1)
        raise BoomError("once")

    task = D.spawn(body, D.Options(restore=lambda thunk: None, checkpoint=lambda *a: None))
    assert outcome(done(task)) == (D.DTaskFailedError, BoomError)
    assert ran == [1]


def test_s10_scoped_checkpoints_propagate(ctx: D.Context) -> None:
    """§4.2, §10: `checkpoint` given for a block holds for the block's tasks and their children."""
    saved: list[Any] = []

    def parent() -> int:
        return D.fetch(D.spawn(add, 20, 1)) * 2

    with D.with_options(checkpoint=lambda thunk, chunk: saved.append(D.collect(chunk))):
        assert D.fetch(D.spawn(parent)) == 42
    assert saved == [21, 42]


def test_s10_hooks_may_use_the_scheduler(ctx: D.Context) -> None:
    """Ruling 11: hooks run under no lock: they may spawn tasks of their own."""
    spawned: list[D.DTask] = []

    def checkpoint(thunk: Any, chunk: D.Chunk) -> None:
        spawned.append(D.spawn(add, chunk, 1))

    def restore(thunk: Any) -> None:
        spawned.append(D.spawn(add, 1, 1))

    assert D.fetch(D.spawn(add, D.Options(checkpoint=checkpoint, restore=restore), 1, 2)) == 3
    assert D.fetch_all(spawned) == [2, 4]


@pytest.mark.parametrize("bad", [{"checkpoint": 5}, {"restore": "x"}], ids=repr)
def test_s10_hooks_must_be_callable(bad: dict[str, Any]) -> None:
    """§10: a hook that can't be called is refused at once."""
    for make in (D.Options, D.SchedulerOptions):
        with pytest.raises((ValueError, TypeError)) as caught:
            make(**bad)
        assert isinstance(caught.value, D.TimespanError)


# --- all at once ---------------------------------------------------------------------------------------------


def test_s10_scheduler_level(ctx: D.Context, capsys: pytest.CaptureFixture[str]) -> None:
    """§10: checkpoint after a success; restore gives the answer, runs nothing and saves nothing."""
    ran: list[int] = []
    saved: list[Any] = []

    def body() -> int:
        ran.append(1)
        return 1

    save = D.SchedulerOptions(checkpoint=lambda chunk: saved.append(chunk.fetch()))
    assert D.collect(D.delayed(body)(), options=save) == 1
    assert (ran, saved) == ([1], [1])
    both = D.SchedulerOptions(checkpoint=saved.append, restore=lambda: D.tochunk(2))
    assert D.collect(D.delayed(body)(), options=both) == 2
    assert (ran, saved) == ([1], [1])
    for bad in (lambda: 5, boom):
        assert D.collect(D.delayed(body)(), options=D.SchedulerOptions(restore=bad)) == 1
        assert "Scheduler restore failed" in capsys.readouterr().err
    assert D.collect(D.delayed(body)(), options=D.SchedulerOptions(checkpoint=lambda c: boom())) == 1
    assert "Scheduler checkpoint failed" in capsys.readouterr().err


def test_s10_task_level(ctx: D.Context, capsys: pytest.CaptureFixture[str]) -> None:
    """§10: a restored task does not run, its dependents do; checkpoint is for successes only."""
    ran: list[str] = []
    saved: list[Any] = []

    def body() -> int:
        ran.append("body")
        return 1

    a = D.delayed(body, restore=lambda thunk: D.tochunk(2))()
    assert D.collect(D.delayed(operator.mul)(a, 2)) == 4
    assert not ran
    keep = D.Options(checkpoint=lambda task, chunk: saved.append((task.f.__name__, chunk.fetch())))
    assert D.fetch(D.spawn(body, keep)) == 1
    D.wait(D.spawn(boom, keep))
    assert saved == [("body", 1)]
    assert D.fetch(D.spawn(body, D.Options(restore=lambda task: boom()))) == 1
    assert "Thunk restore failed" in capsys.readouterr().err
    assert D.fetch(D.spawn(body, D.Options(checkpoint=lambda task, chunk: boom()))) == 1
    assert "Thunk checkpoint failed" in capsys.readouterr().err
