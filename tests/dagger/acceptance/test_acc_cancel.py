"""spec/scheduler.md §2 and §3: cancellation and the environment of a body."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import time
import warnings
import weakref
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, BoomError, failure, identity, outcome, poll

CANCELLED = (D.DTaskFailedError, D.TaskCancelled)


def cancelled(task: Any) -> bool:
    """Whether a fetch of the task fails as §2 says: our outer type, TaskCancelled inside."""
    error = failure(task)
    return isinstance(error, D.DTaskFailedError) and isinstance(D.unwrap_exception(error), D.TaskCancelled)


def test_s2_running_is_abandoned_at_once(one: D.Context, gate: threading.Event) -> None:
    """§2: cancelling a running task posts the result and gives the slot back at once; the body's result is void."""
    begun, ended = threading.Event(), threading.Event()

    def body() -> int:
        begun.set()
        gate.wait(DEADLINE_S)
        ended.set()
        return 5

    pinned = D.Options(scope=D.scope(worker=1, thread=1))
    task = D.spawn(body, pinned)
    assert begun.wait(DEADLINE_S)
    D.cancel(task)
    assert task.isready() and cancelled(task)
    assert failure(task).root.id == task.id
    assert D.spawn(int, pinned).fetch(timeout=DEADLINE_S) == 0
    gate.set()
    assert ended.wait(DEADLINE_S)
    assert cancelled(task)


def test_s2_cancel_right_after_spawn() -> None:
    """§2 accept: a pinned task cancelled at once is done, and the slot is free for the next one."""
    release = threading.Event()
    pinned = D.Options(scope=D.scope(worker=1, thread=1))
    task = D.spawn(release.wait, pinned, DEADLINE_S)
    D.cancel(task)
    assert cancelled(task)
    assert D.spawn(int, pinned).fetch(timeout=DEADLINE_S) == 0
    release.set()


def test_s2_waiting_fails_with_its_dependents(one: D.Context, gate: threading.Event) -> None:
    """§2: a task that waits for inputs fails at once, and its dependents with it; its upstream goes on."""
    up = D.spawn(gate.wait, DEADLINE_S)
    mid = D.spawn(identity, up)
    down = D.spawn(identity, mid)
    D.cancel(mid)
    assert mid.isready() and down.isready() and not up.isready()
    assert cancelled(mid) and cancelled(down)
    assert failure(down).root.id == mid.id == failure(mid).root.id
    gate.set()
    assert up.fetch(timeout=DEADLINE_S) is True


def test_s2_queued_never_runs(one: D.Context, gate: threading.Event) -> None:
    """§2: a task that sits in a queue is removed from it and never runs."""
    ran: list[int] = []
    blocker = D.spawn(gate.wait, DEADLINE_S)
    queued = D.spawn(ran.append, 1)
    after = D.spawn(ran.append, 2)
    queued.cancel()
    assert cancelled(queued) and not blocker.isready()
    gate.set()
    after.fetch(timeout=DEADLINE_S)
    assert ran == [2]


def test_s2_finished_keeps_its_result() -> None:
    """§2: cancelling a finished task does nothing, to results as to errors."""
    good = D.spawn(int, 5)
    bad = D.spawn(lambda: 1 / 0)
    D.waitall([good, bad])
    D.cancel(good)
    D.cancel(bad)
    assert D.fetch(good) == 5
    assert outcome(bad) == (D.DTaskFailedError, ZeroDivisionError)


def test_s2_idempotent(one: D.Context, gate: threading.Event) -> None:
    """§2: cancelling twice, from many threads, is the same as once."""
    blocker, task = D.spawn(gate.wait, DEADLINE_S), D.spawn(int)
    threads = [threading.Thread(target=D.cancel, args=(task,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert cancelled(task) and not blocker.isready()


def test_s2_by_id(one: D.Context, gate: threading.Event) -> None:
    """§2: the target may be a task id."""
    task = D.spawn(gate.wait, DEADLINE_S)
    D.cancel(task.id)
    assert cancelled(task)


def test_s2_everything(two: D.Context, gate: threading.Event) -> None:
    """§2: without a target every task is cancelled, whatever its state; the scheduler stays up (defect 6)."""
    done = D.spawn(int)
    D.wait(done)
    tasks = [D.spawn(gate.wait, DEADLINE_S) for _ in range(5)]
    tasks.append(D.spawn(identity, tasks[0]))
    uid = D.eager_state().uid
    D.cancel()
    assert all(cancelled(t) for t in tasks)
    assert D.fetch(done) == 0
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    assert D.eager_state().uid == uid


def test_s2_nothing_runs() -> None:
    """§2: with no scheduler running cancel does nothing, and starts none."""
    D.cancel()
    D.cancel(halt_sch=True)
    assert D.eager_state() is None


def test_s2_the_error_is_a_cancelled_error_too(one: D.Context, gate: threading.Event) -> None:
    """Ruling 17: what fetch raises for a cancelled task is a CancelledError; the future says `cancelled()`."""
    task = D.spawn(gate.wait, DEADLINE_S)
    future = task.future()
    D.cancel(task)
    assert isinstance(failure(task), concurrent.futures.CancelledError)
    poll(future.cancelled)
    assert task.future().cancelled()


def test_s2_a_body_that_fails_after_it_was_cancelled_is_silent(one: D.Context, gate: threading.Event) -> None:
    """§2: the first result wins; what an abandoned body raises later is dropped silently."""
    begun, ended = threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        gate.wait(DEADLINE_S)
        ended.set()
        raise BoomError("late")

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    D.cancel(task)
    gate.set()
    assert ended.wait(DEADLINE_S)
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    assert cancelled(task)


def test_s2_halt(gate: threading.Event) -> None:
    """§2: `halt_sch` returns when the scheduler is down; others' futures get TaskCancelled directly; then anew."""
    log: list[Any] = []
    with D.Context(threads=1, log_sink=log) as context:
        begun = threading.Event()

        def body() -> None:
            begun.set()
            gate.wait(DEADLINE_S)

        target = D.spawn(body)
        other = D.spawn(gate.wait, DEADLINE_S)
        assert begun.wait(DEADLINE_S)
        uid = D.eager_state().uid
        D.cancel(target, halt_sch=True)
        assert D.eager_state() is None
        assert outcome(other) == (D.TaskCancelled, D.TaskCancelled)
        assert cancelled(target)
        assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
        assert D.eager_state().uid > uid
        assert D.eager_context() is context and context.log_sink is log
        gate.set()


def test_s2_halt_wakes_every_fetcher(gate: threading.Event) -> None:
    """§2: threads that are blocked in fetch when the scheduler is halted all return with an error."""
    with D.Context(threads=1):
        first = D.spawn(gate.wait, DEADLINE_S)
        tasks = [first, *(D.spawn(identity, first) for _ in range(3))]
        got: list[BaseException] = []
        entered = threading.Barrier(5)

        def fetch(task: D.DTask) -> None:
            entered.wait()
            try:
                task.fetch(timeout=DEADLINE_S)
            except BaseException as error:
                got.append(error)

        threads = [threading.Thread(target=fetch, args=(t,)) for t in tasks]
        for thread in threads:
            thread.start()
        entered.wait()
        D.cancel(halt_sch=True)
        for thread in threads:
            thread.join(DEADLINE_S)
        assert len(got) == 4
        assert all(isinstance(D.unwrap_exception(e), D.TaskCancelled) for e in got), got
        gate.set()


def test_s2_a_body_sees_that_it_was_cancelled(one: D.Context) -> None:
    """§2: in the body `task_cancelled()` turns true, forced only after `graceful=False`; task_may_cancel raises."""
    begun = threading.Event()
    seen: list[Any] = []
    done = threading.Event()

    def body() -> None:
        assert not D.task_cancelled()
        D.task_may_cancel()
        begun.set()
        poll(D.task_cancelled)
        seen.append(D.task_cancelled(must_force=True))
        D.task_may_cancel(must_force=True)
        poll(lambda: D.task_cancelled(must_force=True))
        try:
            D.task_may_cancel()
        except D.TaskCancelled:
            seen.append("raised")
        done.set()

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel()
    poll(lambda: len(seen) == 1)
    task.cancel(graceful=False)
    assert done.wait(DEADLINE_S)
    assert seen == [False, "raised"]


def test_s2_a_body_cancels_itself(one: D.Context) -> None:
    """§2: `task_cancel` sets the body's own token; leaving by `task_may_cancel` ends the task as cancelled."""

    def body(graceful: bool) -> None:
        D.task_cancel(graceful=graceful)
        assert D.task_cancelled()
        D.task_may_cancel(must_force=True)
        D.task_may_cancel()
        raise AssertionError("not reached")

    assert cancelled(D.spawn(body, True))
    assert cancelled(D.spawn(body, False))


def test_s2_tokens() -> None:
    """§2 accept: the two flags of a token."""
    token = D.CancelToken()
    assert not token.is_cancelled() and not token.is_cancelled(must_force=True)
    token.cancel(graceful=True)
    assert token.is_cancelled() and not token.is_cancelled(must_force=True)
    token.cancel(graceful=False)
    assert token.is_cancelled() and token.is_cancelled(must_force=True)
    assert (token.cancelled, token.graceful) == (True, False)


def test_s2_the_end_of_a_task_cancels_its_token_gracefully(one: D.Context) -> None:
    """§2: when a task ends its own token is cancelled gracefully, so that helper threads it started stop."""
    stopped: list[bool] = []

    def body() -> threading.Thread:
        tls = D.get_tls()

        def helper() -> None:
            D.set_tls(tls)
            poll(D.task_cancelled)
            stopped.append(D.task_cancelled(must_force=True))

        thread = threading.Thread(target=helper)
        thread.start()
        return thread

    D.fetch(D.spawn(body)).join(DEADLINE_S)
    assert stopped == [False]


def test_s2_cancel_races_completion(two: D.Context) -> None:
    """§2: a cancel that races the end of a task leaves either the result or the cancellation, never neither."""
    for n in range(300):
        task = D.spawn(identity, n)
        down = D.spawn(identity, task)
        D.cancel(task)
        try:
            assert task.fetch(timeout=DEADLINE_S) == n
        except D.DTaskFailedError as error:
            assert isinstance(D.unwrap_exception(error), D.TaskCancelled)
            assert cancelled(down)
        else:
            assert down.fetch(timeout=DEADLINE_S) == n
    D.check(D.eager_state())


def test_s2_worker_2_and_queued_in_the_model(cluster: D.Context) -> None:
    """§2: with pretended workers a queued task of worker 2 is cancelled before it ever runs."""
    ran: list[int] = []
    there = D.Options(scope=D.ProcessScope(2))
    keep, drop = D.spawn(ran.append, there, 1), D.spawn(ran.append, there, 2)
    D.cancel(drop)
    assert cancelled(drop)
    D.fetch(keep)
    assert ran == [1]


def test_s2_bad_targets_are_refused() -> None:
    """§2: a target that is neither a task nor an id is an error of ours, and a ValueError or TypeError."""
    D.fetch(D.spawn(int))
    with pytest.raises((ValueError, TypeError)) as caught:
        D.cancel("task 5")
    assert isinstance(caught.value, ts.TimespanError)


# --- force -----------------------------------------------------------------------------------------------


class Loop:
    """A body that runs until it is interrupted, and says when it began and ended."""

    __name__ = "Loop"

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        try:
            while True:
                time.sleep(0.0005)
        finally:
            self.ended.set()


def test_s2_force_interrupts_the_body(one: D.Context) -> None:
    """§2: `force=True` injects an interrupt: the body dies, its `finally` runs, the fetcher sees TaskCancelled."""
    body = Loop()
    task = D.spawn(body)
    assert body.begun.wait(DEADLINE_S)
    D.cancel(task, force=True)
    assert body.ended.wait(DEADLINE_S)
    assert cancelled(task)
    assert failure(task).root.id == task.id
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    D.check(D.eager_state())


def test_s2_force_of_a_pinned_task_frees_its_slot(two: D.Context) -> None:
    """§2: after a forced cancel the slot runs the next task, on the same slot, and so for many in a row."""
    pinned = D.Options(scope=D.scope(worker=1, thread=1))
    for _ in range(20):
        body = Loop()
        task = D.spawn(body, pinned)
        assert body.begun.wait(DEADLINE_S)
        task.cancel(force=True)
        assert cancelled(task)
        assert D.spawn(D.task_processor, pinned).fetch(timeout=DEADLINE_S) == D.ThreadProc(1, 1)


def test_s2_force_fails_dependents_too(one: D.Context) -> None:
    """§2: dependents of a task that was interrupted fail with it as their root."""
    body = Loop()
    task = D.spawn(body)
    down = D.spawn(identity, D.spawn(identity, task))
    assert body.begun.wait(DEADLINE_S)
    D.cancel(task, force=True)
    assert cancelled(down) and failure(down).root.id == task.id


def test_s2_force_of_what_does_not_run(one: D.Context, gate: threading.Event) -> None:
    """§2: for waiting, queued and finished targets force makes no difference."""
    done = D.spawn(int, 5)
    D.wait(done)
    ran: list[int] = []
    blocker = D.spawn(gate.wait, DEADLINE_S)
    waiting, queued = D.spawn(identity, blocker), D.spawn(ran.append, 1)
    for task in (waiting, queued, done):
        D.cancel(task, force=True)
    assert cancelled(waiting) and cancelled(queued) and D.fetch(done) == 5
    gate.set()
    assert blocker.fetch(timeout=DEADLINE_S) is True
    assert ran == []


def test_s2_force_hits_nobody_else(two: D.Context) -> None:
    """§2: an interrupt that races the end of its body never hits the scheduler or another body."""
    bystanders = [D.spawn(identity, n) for n in range(50)]
    for n in range(200):
        task = D.spawn(identity, n)
        D.cancel(task, force=True)
        bystanders.append(D.spawn(identity, n))
        try:
            assert task.fetch(timeout=DEADLINE_S) == n
        except D.DTaskFailedError as error:
            assert isinstance(D.unwrap_exception(error), D.TaskCancelled)
    assert [t.fetch(timeout=DEADLINE_S) for t in bystanders] == [*range(50), *range(200)]
    D.eager_context().wait_idle()
    D.check(D.eager_state())


def test_s2_force_a_body_that_blocks_in_fetch(two: D.Context, gate: threading.Event) -> None:
    """§2: a body that waits in `fetch` for another task is interrupted there; the other task goes on."""
    child = D.spawn(gate.wait, DEADLINE_S)
    begun = threading.Event()

    def body() -> Any:
        begun.set()
        return D.fetch(child)

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    D.cancel(task, force=True)
    assert cancelled(task)
    assert not child.isready()
    gate.set()
    assert child.fetch(timeout=DEADLINE_S) is True


def test_s2_force_everything(two: D.Context) -> None:
    """§2: without a target force interrupts every running body."""
    bodies = [Loop(), Loop()]
    tasks = [D.spawn(b) for b in bodies]
    assert all(b.begun.wait(DEADLINE_S) for b in bodies)
    tasks.append(D.spawn(int))
    D.cancel(force=True)
    assert all(b.ended.wait(DEADLINE_S) for b in bodies)
    assert all(cancelled(t) for t in tasks)
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0


def test_s2_force_and_halt() -> None:
    """§2: force with `halt_sch`: bodies die, the scheduler is down on return, the next spawn starts anew."""
    with D.Context(threads=1):
        body = Loop()
        task = D.spawn(body)
        assert body.begun.wait(DEADLINE_S)
        uid = D.eager_state().uid
        D.cancel(task, force=True, halt_sch=True)
        assert D.eager_state() is None
        assert body.ended.wait(DEADLINE_S)
        assert outcome(task)[1] is D.TaskCancelled
        assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
        assert D.eager_state().uid > uid


def test_s2_force_reaches_the_token(one: D.Context) -> None:
    """§2: `graceful=False` of the handle's own cancel marks the token as forced."""
    begun, seen = threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        poll(lambda: D.task_cancelled(must_force=True))
        seen.set()

    task = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    task.cancel(graceful=False)
    assert cancelled(task) and seen.wait(DEADLINE_S)


# --- more forms ------------------------------------------------------------------------------------------


def test_s2_cancel_while_arguments_are_moved(one: D.Context, gate: threading.Event, tmp_path: Any) -> None:
    """§2, §17.2: a task whose arguments are being moved is abandoned like a running one; its body never runs."""
    (tmp_path / "data").write_bytes(b"x")
    begun, ran = threading.Event(), []

    def slow(stream: Any) -> bytes:
        begun.set()
        gate.wait(DEADLINE_S)
        return stream.read()

    task = D.spawn(ran.append, D.File(tmp_path / "data", deserialize=slow))
    assert begun.wait(DEADLINE_S)
    D.cancel(task)
    assert task.isready() and cancelled(task)
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    gate.set()
    D.eager_context().wait_idle()
    D.check(D.eager_state())


def test_s2_cancel_in_a_sequence(one: D.Context, gate: threading.Event) -> None:
    """§2, §11: cancelling one task of a sequence fails those that wait for it; nothing hangs."""
    with D.sequential():
        first = D.spawn(gate.wait, DEADLINE_S)
        second = D.spawn(int)
        third = D.spawn(int)
    D.cancel(second)
    assert cancelled(second) and cancelled(third) and not first.isready()
    gate.set()
    assert first.fetch(timeout=DEADLINE_S) is True


def test_s2_from_within_a_body(two: D.Context, gate: threading.Event) -> None:
    """§2: a body may cancel another task, and its own."""
    other = D.spawn(gate.wait, DEADLINE_S)

    def body() -> str:
        D.cancel(other)
        return "done"

    assert D.spawn(body).fetch(timeout=DEADLINE_S) == "done"
    assert cancelled(other)
    assert cancelled(D.spawn(lambda: D.cancel(D.task_id())))


def test_s2_ten_thousand_cancelled_tasks_leave_nothing(one: D.Context, gate: threading.Event) -> None:
    """Issue 5, §2 defect 6: 10,000 cancelled tasks leave no task, no argument and no id behind."""

    class Argument:
        pass

    holding = D.spawn(gate.wait, DEADLINE_S)
    arguments: list[Any] = []
    tasks: list[Any] = []
    for n in range(10_000):
        argument = Argument()
        task = D.spawn(identity, argument) if n % 2 else D.spawn(lambda a, b: a, argument, holding)
        arguments.append(weakref.ref(argument))
        tasks.append(weakref.ref(task))
        D.cancel(task)
        assert task.isready()
    del argument, task
    gc.collect()
    assert not any(ref() is not None for ref in arguments)
    gate.set()
    assert holding.fetch(timeout=DEADLINE_S) is True
    D.spawn(int).fetch(timeout=DEADLINE_S)

    def gone() -> bool:
        gc.collect()
        return not any(ref() is not None for ref in tasks)

    poll(gone)
    D.check(D.eager_state())


def test_s2_a_lazy_run_is_cancelled_with_everything(two: D.Context, gate: threading.Event) -> None:
    """§2: cancelling within a batch: a task that cancels its sibling makes the run fail as cancelled, not hang."""
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        gate.wait(DEADLINE_S)

    def killer() -> None:
        begun.wait(DEADLINE_S)
        for number, waiting in D.sch_handle().get_dag_ids().items():
            if waiting and number != D.sch_handle().thunk_id:
                D.cancel(number.id)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = D.delayed(lambda *a: 5)(D.delayed(slow)(), D.delayed(killer)())
    with pytest.raises((D.TaskCancelled, D.DTaskFailedError)) as caught:
        D.collect(graph)
    assert isinstance(D.unwrap_exception(caught.value), D.TaskCancelled)


# --- 3 environment ---------------------------------------------------------------------------------------


def test_s3_inside() -> None:
    """§3: a body knows its task, its processor and whether logging is on."""

    def body() -> tuple[Any, ...]:
        return D.in_task(), D.task_id(), D.task_processor(), D.task_logging_enabled()

    task = D.spawn(body)
    inside, number, processor, logging = D.fetch(task)
    assert inside is True and number == task.id and logging is False
    assert type(processor) is D.ThreadProc and processor.owner == 1
    D.eager_context().log_sink = []
    assert D.fetch(D.spawn(body))[3] is True


def test_s3_outside() -> None:
    """§3: outside of a task `in_task` is False and all the others raise an error of ours."""
    assert D.in_task() is False
    for ask in (D.task_id, D.task_processor, D.task_logging_enabled, D.get_tls, D.task_cancelled, D.task_may_cancel):
        with pytest.raises(ts.TimespanError):
            ask()


def test_s3_the_environment_ends_with_the_body() -> None:
    """§3: a fetching thread that ran the body itself is outside of a task again."""
    D.fetch(D.spawn(D.task_id))
    assert D.in_task() is False


def test_s3_helper_threads_are_outside_until_given_the_environment() -> None:
    """§3: `get_tls`/`set_tls` copy the environment to helper threads."""

    def body() -> list[Any]:
        tls, found = D.get_tls(), []

        def helper() -> None:
            D.set_tls(tls)
            found.extend([D.in_task(), D.task_id(), D.task_processor() == processor])

        processor = D.task_processor()
        thread = threading.Thread(target=helper)
        thread.start()
        thread.join(DEADLINE_S)
        return found

    task = D.spawn(body)
    assert D.fetch(task) == [True, task.id, True]


def test_s3_nested_bodies_know_themselves(one: D.Context) -> None:
    """§3: after a nested fetch, which may have run the child on the same thread, a body is itself again."""

    def body() -> tuple[int, int, int]:
        before, child = D.task_id(), D.fetch(D.spawn(D.task_id))
        return before, child, D.task_id()

    task = D.spawn(body)
    before, child, after = D.fetch(task)
    assert before == after == task.id != child


def test_s3_ruling_14_threadproc_is_a_slot(two: D.Context) -> None:
    """Ruling 14: the processor of a body is one of the slots 1..threads of its worker."""
    assert {D.fetch(D.spawn(D.task_processor)) for _ in range(40)} <= {D.ThreadProc(1, 1), D.ThreadProc(1, 2)}
