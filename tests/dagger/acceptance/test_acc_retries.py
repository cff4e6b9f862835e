"""What is tried again, after which delay, and what is given up: retries and time limits (spec/scheduler.md)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.stubs import Flaky
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    done,
    failure,
    identity,
    moment,
    of_task,
    outcome,
    poll,
    settled,
)


def test_issue5_12_retries(ctx: D.Context) -> None:
    """Issue 5.12: `retries=n` runs a failing body up to n times more; the value is that of the one that succeeds."""
    body = Flaky(2)
    task = D.spawn(body, D.Options(retries=2))
    assert D.fetch(D.spawn(add, task, 1)) == 4
    assert (D.fetch(task), body.ran) == (3, 3)


def test_issue5_12_retries_that_run_out(ctx: D.Context) -> None:
    """Issue 5.12: with retries used up the last error is the task's; dependents fail with it."""
    body = Flaky(10)
    task = D.spawn(body, D.Options(retries=3))
    down = D.spawn(identity, task)
    error = D.unwrap_exception(failure(done(task)))
    assert isinstance(error, BoomError) and error.args == (4,)
    assert body.ran == 4
    assert failure(done(down)).root.id == task.id


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_issue5_12_a_retry_of_a_task_that_waited_for_inputs(two: D.Context, gate: threading.Event, inputs: int) -> None:
    """Issue 5.12: a task that had to wait for its inputs is run again like any other, with the same inputs."""
    body = Flaky(2)
    ups = [D.spawn(gate.wait, DEADLINE_S) for _ in range(inputs)]
    task = D.spawn(lambda *x: (body(), x)[1], D.Options(retries=3), *ups)
    down = D.spawn(len, task)
    gate.set()
    assert task.fetch(timeout=DEADLINE_S) == (True,) * inputs
    assert down.fetch(timeout=DEADLINE_S) == inputs
    assert body.ran == 3
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    D.eager_context().wait_idle()
    D.check(D.eager_state())


def test_issue5_12_no_retries_by_default(ctx: D.Context) -> None:
    """Without the option, or with 0, a body that raised is never run again."""
    for options in (D.Options(), D.Options(retries=0)):
        body = Flaky(1)
        D.wait(D.spawn(body, options))
        assert body.ran == 1


def test_issue5_12_a_success_is_not_repeated(ctx: D.Context) -> None:
    """Issue 5.12: retries are for failures only."""
    body = Flaky(0)
    assert D.fetch(D.spawn(body, D.Options(retries=5))) == 1
    assert body.ran == 1


def test_issue5_12_a_skipped_task_is_not_retried(ctx: D.Context) -> None:
    """Issue 5.12: a task whose upstream failed has nothing to retry; nor has one without a place to run."""
    body = Flaky(0)
    task = done(D.spawn(body, D.Options(retries=5), D.spawn(boom)))
    assert isinstance(D.unwrap_exception(failure(task)), BoomError) and body.ran == 0
    nowhere = D.Options(retries=5, scope=D.ExactScope(D.ThreadProc(9, 9)))
    assert outcome(done(D.spawn(body, nowhere))) == (D.DTaskFailedError, D.SchedulingError)


def test_issue5_12_attempts_in_the_log() -> None:
    """Issue 5.12: a retry is a new attempt in the events, with the same task id and one finish."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        task = D.spawn(Flaky(2), D.Options(retries=5))
        assert D.fetch(task) == 3
        events = settled(log, task)
    submitted = [e.timeline.attempt for e in of_task(events, task, "add_thunk") if e.phase == "start"]
    assert submitted == [1, 2, 3]
    for category in ("compute", "schedule", "enqueue"):
        assert [e.phase for e in of_task(events, task, category)] == ["start", "finish"] * 3
    assert [e.phase for e in of_task(events, task, "finish")] == ["start", "finish"]


def test_issue5_12_a_cancelled_task_is_not_retried(one: D.Context, gate: threading.Event) -> None:
    """Issue 5.12: cancelling ends a task with retries, while it runs and between two attempts."""
    ran = []

    def body() -> None:
        ran.append(1)
        raise BoomError("again")

    task = D.spawn(body, D.Options(retries=5, retry_delay=DEADLINE_S * 2))
    poll(lambda: ran)
    assert not task.isready()
    D.cancel(task)
    assert task.isready() and outcome(task)[1] is D.TaskCancelled
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    assert ran == [1]
    D.check(D.eager_state())


def test_issue5_12_other_tasks_run_during_the_delay(one: D.Context) -> None:
    """Issue 5.12: between two attempts the slot is free."""
    body = Flaky(1)
    task = D.spawn(body, D.Options(retries=1, retry_delay=DEADLINE_S * 2))
    poll(lambda: body.ran == 1)
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0
    assert not task.isready() and D.eager_state().running_count >= 1
    D.cancel(task)


def test_issue5_12_timeout(one: D.Context, gate: threading.Event) -> None:
    """Issue 5.12, ruling 17: a body over its `timeout` fails with a builtin TimeoutError; its slot is free."""
    task = D.spawn(gate.wait, D.Options(timeout=0.01), DEADLINE_S)
    down = D.spawn(identity, task)
    error = failure(task)
    assert isinstance(error, D.DTaskFailedError)
    inner = D.unwrap_exception(error)
    assert isinstance(inner, TimeoutError) and isinstance(inner, D.TimespanError)
    assert failure(down).root.id == task.id
    assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0


def test_issue5_12_in_time_is_no_timeout(two: D.Context) -> None:
    """Issue 5.12: a body within its limit is not touched; time spent waiting for inputs does not count."""
    up = D.spawn(time.sleep, 0.05)
    task = D.spawn(lambda x: "in time", D.Options(timeout=30), up)
    assert task.fetch(timeout=DEADLINE_S) == "in time"


@pytest.mark.parametrize(
    "bad",
    [{"retries": -1}, {"retries": 1.5}, {"retry_delay": -1}, {"timeout": 0}, {"timeout": -1}, {"timeout": "1s"}],
    ids=repr,
)
def test_issue5_12_values_that_cannot_work(bad: dict[str, Any]) -> None:
    """Issue 5: options that can't work are refused at once, by us."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.Options(**bad)
    assert isinstance(caught.value, D.TimespanError)


class TestAttempts:
    """Attempts and time limits (§1.9, §10, §17.4)."""

    def test_retries_run_the_body_again(self, ctx: D.Context) -> None:
        """A task with retries succeeds with the attempt that does, and fails with the last error."""
        assert D.fetch(D.spawn(Flaky(2), D.Options(retries=2))) == 3
        task = D.spawn(Flaky(5), D.Options(retries=1))
        with pytest.raises(D.DTaskFailedError) as caught:
            D.fetch(task)
        assert D.unwrap_exception(caught.value).args == (2,)

    def test_retries_are_attempts_in_the_log(self, ctx: D.Context) -> None:
        """Each attempt is submitted, scheduled and computed anew; the task finishes once."""
        log: list[Any] = []
        ctx.log_sink = log
        task = D.spawn(Flaky(1), D.Options(retries=3))
        assert D.fetch(task) == 2
        mine = [e for e in log if getattr(e.id, "get", dict().get)("thunk_id") == task.id]
        submitted = [e.timeline.attempt for e in mine if (e.category, e.phase) == ("add_thunk", "start")]
        assert submitted == [1, 2]
        assert sum((e.category, e.phase) == ("compute", "finish") for e in mine) == 2
        assert sum((e.category, e.phase) == ("finish", "finish") for e in mine) == 1

    def test_a_retry_waits_its_delay(self) -> None:
        """The delay lies between two attempts, and the task counts as unfinished meanwhile."""
        with D.Context(threads=1) as context:
            began = time.monotonic()
            task = D.spawn(Flaky(1), D.Options(retries=1, retry_delay=0.05))
            assert D.fetch(task, timeout=20) == 2
            assert time.monotonic() - began >= 0.05
            assert context.core is not None and not context.core.delayed

    def test_a_body_over_its_timeout_is_abandoned(self) -> None:
        """The task fails with a TimeoutError of ours, its slot runs others, its body is told."""
        with D.Context(threads=1):
            gate, told = threading.Event(), threading.Event()

            def body() -> None:
                while not gate.is_set() and not D.task_cancelled():
                    time.sleep(0.002)
                told.set()

            task = D.spawn(body, D.Options(timeout=0.05))
            with pytest.raises(D.DTaskFailedError) as caught:
                D.fetch(task, timeout=20)
            assert isinstance(D.unwrap_exception(caught.value), D.TaskTimeoutError)
            assert isinstance(D.unwrap_exception(caught.value), TimeoutError)
            assert D.spawn(int).fetch(timeout=20) == 0
            assert told.wait(20)
            assert D.fetch(D.spawn(int, D.Options(timeout=30))) == 0


# --- which exceptions, how long between, and what the log says ----------------------------------------------


def test_retry_on_chooses(ctx: D.Context) -> None:
    """Only the exceptions of `retry_on`, and their subclasses, are worth another attempt."""
    options = D.Options(retries=5, retry_on=(OSError, KeyError))
    assert D.fetch(D.spawn(Flaky(FileNotFoundError(), KeyError(), OSError()), options)) == 4
    task = done(D.spawn(Flaky(OSError(), ValueError("other"), OSError()), options))
    assert isinstance(D.unwrap_exception(failure(task)), ValueError)
    one = D.Options(retries=1, retry_on=BoomError)
    assert one.retry_on == (BoomError,)
    assert D.fetch(D.spawn(Flaky(BoomError()), one)) == 2


@pytest.mark.parametrize("bad", [5, "OSError", (), (OSError, 5), KeyboardInterrupt, BaseException, OSError()])
def test_retry_on_takes_types_of_exceptions(bad: Any) -> None:
    """What is no type of `Exception` is refused."""
    with pytest.raises(D.InvalidOptionError, match="retry_on"):
        D.Options(retry_on=bad)


def test_a_delay_that_grows() -> None:
    """`retry_delay` may be a function: it gets the number of the attempt that failed, and is asked once each."""
    asked: list[int] = []

    def delay(attempt: int) -> float:
        asked.append(attempt)
        return 0.001 * attempt

    with D.Context(threads=1):
        task = D.spawn(Flaky(3), D.Options(retries=5, retry_delay=delay))
        assert task.fetch() == 4
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("bad", ["soon", -1, float("nan"), float("inf"), None])
def test_a_delay_that_is_none(ctx: D.Context, bad: Any) -> None:
    """A function that gives no delay fails its task, with the body's error as the cause; others go on."""
    task = done(D.spawn(Flaky(BoomError("first")), D.Options(retries=5, retry_delay=lambda attempt: bad)))
    error = D.unwrap_exception(failure(task))
    assert isinstance(error, D.InvalidOptionError) and "attempt 1" in str(error) and "retry_delay" in str(error)
    assert isinstance(error.__cause__, BoomError)
    assert D.fetch(D.spawn(identity, 5)) == 5


@pytest.mark.parametrize("raised", [ZeroDivisionError, SystemExit])
def test_a_delay_that_raises(ctx: D.Context, raised: type[BaseException]) -> None:
    """So does a function that raises, whatever it raises."""

    def delay(attempt: int) -> float:
        raise raised

    task = done(D.spawn(Flaky(BoomError("first")), D.Options(retries=5, retry_delay=delay)))
    error = D.unwrap_exception(failure(task))
    assert isinstance(error, D.InvalidOptionError) and raised.__name__ in str(error)
    assert D.fetch(D.spawn(identity, 5)) == 5


@pytest.mark.parametrize("bad", ["soon", -1, True, int, float("inf")])
def test_bad_delays(bad: Any) -> None:
    """What is neither a number of seconds nor a function is refused at once."""
    with pytest.raises(D.InvalidOptionError, match="retry_delay"):
        D.Options(retry_delay=bad)


def test_each_attempt_in_the_log() -> None:
    """Each attempt is submitted, placed and computed anew under the same id; the last one finishes the task."""
    log: list[Any] = []
    with D.Context(threads=1, log_sink=log):
        up = D.spawn(int, 5)
        calls: list[int] = []

        def body(x: int) -> int:
            calls.append(x)
            if len(calls) < 3:
                raise BoomError(len(calls))
            return x

        task = D.spawn(body, D.Options(retries=5, retry_delay=0.001), up)
        assert task.fetch() == 5 and calls == [5, 5, 5]
        settled(log, task)
    added = [e.timeline for e in of_task(log, task, "add_thunk") if e.phase == "start"]
    assert [t.attempt for t in added] == [1, 2, 3]
    assert all(t.deps == ((1, up.id),) for t in added)
    results = [e.timeline.result for e in of_task(log, task, "compute") if e.phase == "finish"]
    assert [type(r) for r in results[:2]] == [BoomError, BoomError]
    ended, begun = moment(log, task, "compute", "finish"), moment(log, task, "add_thunk", "start")
    assert ended[0] <= begun[1] and ended[1] <= begun[2]
    assert [e.timeline.state for e in of_task(log, task, "finish") if e.phase == "finish"] == ["success"]


def test_cancelled_between_attempts_it_stays_so() -> None:
    """A task that is cancelled while it waits for its next attempt never runs again, when the time has come."""
    with D.Context(threads=1) as context:
        ran: list[int] = []

        def body() -> None:
            ran.append(1)
            raise BoomError

        task = D.spawn(body, D.Options(retries=5, retry_delay=0.02))
        poll(lambda: context.core is not None and context.core.delayed)
        task.cancel()
        assert isinstance(failure(task), D.DTaskCancelledError)
        later = D.spawn(Flaky(BoomError()), D.Options(retries=1, retry_delay=0.05))
        assert later.fetch() == 2  # the time of the other one is over, too
        assert ran == [1] and isinstance(failure(task), D.DTaskCancelledError)
        D.check(context.core)  # type: ignore[arg-type]
