"""Retries: which exceptions, how long between, and what the log says of each attempt (issue 5, point 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import BoomError, done, failure, identity, moment, of_task, poll, settled


@pytest.fixture(params=["threads", "inline"])
def ctx(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Both drivers."""
    with D.Context(driver="threads" if request.param == "threads" else D.InlineDriver()) as context:
        yield context


def failing(*errors: BaseException) -> Callable[[], int]:
    """A body that raises these one after the other, then gives the number of its attempt."""
    left, ran = list(errors), [0]

    def body() -> int:
        ran[0] += 1
        if left:
            raise left.pop(0)
        return ran[0]

    return body


def test_retry_on_chooses(ctx: D.Context) -> None:
    """Only the exceptions of `retry_on`, and their subclasses, are worth another attempt."""
    options = D.Options(retries=5, retry_on=(OSError, KeyError))
    assert D.fetch(D.spawn(failing(FileNotFoundError(), KeyError(), OSError()), options)) == 4
    task = done(D.spawn(failing(OSError(), ValueError("other"), OSError()), options))
    assert isinstance(D.unwrap_exception(failure(task)), ValueError)
    one = D.Options(retries=1, retry_on=BoomError)
    assert one.retry_on == (BoomError,)
    assert D.fetch(D.spawn(failing(BoomError()), one)) == 2


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
        task = D.spawn(failing(*[BoomError()] * 3), D.Options(retries=5, retry_delay=delay))
        assert task.fetch() == 4
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("bad", ["soon", -1, float("nan"), float("inf"), None])
def test_a_delay_that_is_none(ctx: D.Context, bad: Any) -> None:
    """A function that gives no delay fails its task, with the body's error as the cause; others go on."""
    task = done(D.spawn(failing(BoomError("first")), D.Options(retries=5, retry_delay=lambda attempt: bad)))
    error = D.unwrap_exception(failure(task))
    assert isinstance(error, D.InvalidOptionError) and "attempt 1" in str(error) and "retry_delay" in str(error)
    assert isinstance(error.__cause__, BoomError)
    assert D.fetch(D.spawn(identity, 5)) == 5


@pytest.mark.parametrize("raised", [ZeroDivisionError, SystemExit])
def test_a_delay_that_raises(ctx: D.Context, raised: type[BaseException]) -> None:
    """So does a function that raises, whatever it raises."""

    def delay(attempt: int) -> float:
        raise raised

    task = done(D.spawn(failing(BoomError("first")), D.Options(retries=5, retry_delay=delay)))
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
        later = D.spawn(failing(BoomError()), D.Options(retries=1, retry_delay=0.05))
        assert later.fetch() == 2  # the time of the other one is over, too
        assert ran == [1] and isinstance(failure(task), D.DTaskCancelledError)
        D.check(context.core)  # type: ignore[arg-type]
