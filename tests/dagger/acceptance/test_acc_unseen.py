"""A failure that nobody asked for is logged once, when the last handle that could tell of it goes."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.tasks import failures as unseen
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    boom,
    failure,
    finish,
    identity,
    poll,
    program,
)


def logged_errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The texts of the errors that the library logged, with their exceptions."""
    found = [r for r in list(caplog.records) if r.name == "otel_timespan" and r.levelno == logging.ERROR]
    return [logging.Formatter().format(r) for r in found]


def test_issue5_12_an_unfetched_failure_is_logged_once(one: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 5.12: a failed task that nobody fetched is logged once, when its handle is dropped."""

    def lonely() -> None:
        raise BoomError("nobody looked")

    task = D.spawn(lonely)
    D.wait(task)
    number = task.id
    assert logged_errors(caplog) == []
    del task

    def told() -> list[str]:
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
        return logged_errors(caplog)

    (text,) = poll(told)
    assert "nobody looked" in text and "lonely" in text and str(number) in text
    for _ in range(5):
        told()
    assert len(told()) == 1


def test_issue5_12_fetched_failures_are_not_logged(one: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 5.12: a failure that somebody saw (fetch, future, await) is not logged."""

    async def wait_for(task: D.DTask) -> None:
        with pytest.raises(D.DTaskFailedError):
            await task

    tasks = [D.spawn(boom) for _ in range(3)]
    failure(tasks[0])
    assert tasks[1].future().exception(DEADLINE_S) is not None
    asyncio.run(wait_for(tasks[2]))
    tasks.clear()
    for _ in range(5):
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
    D.eager_context().wait_idle()
    assert logged_errors(caplog) == []


def test_issue5_12_cancellations_are_not_logged(
    one: D.Context, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 5.12: a task that was cancelled has not failed: nothing is logged."""
    task = D.spawn(gate.wait, DEADLINE_S)
    down = D.spawn(identity, task)
    D.cancel(task)
    D.waitall([task, down])
    del task, down
    for _ in range(5):
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
    assert logged_errors(caplog) == []


def test_issue5_12_a_failure_seen_downstream_is_not_logged(one: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 5.12: whoever fetched a dependent saw the failure: its originator is not logged again."""
    task = D.spawn(identity, D.spawn(boom))
    assert isinstance(D.unwrap_exception(failure(task)), BoomError)
    del task
    for _ in range(5):
        gc.collect()
        D.spawn(int).fetch(timeout=DEADLINE_S)
    assert logged_errors(caplog) == []


# --- edges ------------------------------------------------------------------------------------------------


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Any]]]:
    """The records of failures that nobody fetched, so far; with a flood guard of its own."""
    gc.collect()
    monkeypatch.setattr(unseen, "_flood", unseen._Flood())
    caplog.set_level(logging.ERROR, "otel_timespan")

    def records() -> list[Any]:
        return [r for r in list(caplog.records) if "nobody fetched" in r.getMessage()]

    yield records


@pytest.mark.parametrize("sink", [None, []], ids=["no_log", "log"])
@pytest.mark.parametrize("options", [None, D.Options(name="named")], ids=["plain", "options"])
def test_logged_once_when_the_handle_goes(
    one: D.Context, told: Callable[[], list[Any]], sink: Any, options: Any
) -> None:
    """While there is a handle nothing is said; when it goes, one error with the task and the traceback."""
    one.log_sink = sink
    gc.disable()  # it does not take a collection
    try:
        task = D.spawn(boom, options or D.Options(), 7)
        D.wait(task)
        D.spawn(int).fetch(timeout=DEADLINE_S)
        assert told() == []
        number = task.id
        del task
        poll(told)
    finally:
        gc.enable()
    gc.collect()
    D.spawn(int).fetch()
    (record,) = told()
    assert record.levelno == logging.ERROR and f"DTask {number}: boom(7)" in record.getMessage()
    kind, error, trace = record.exc_info
    assert kind is BoomError and str(error) == "the fuse blew"
    while trace.tb_next is not None:
        trace = trace.tb_next
    assert trace.tb_frame.f_code.co_name == "boom"


def test_a_spawn_without_a_handle(one: D.Context, told: Callable[[], list[Any]]) -> None:
    """Fire and forget: the failure is logged as soon as the task is over."""
    D.spawn(boom)
    (record,) = poll(told)
    assert "boom()" in record.getMessage()


def test_a_coroutine_that_fails_unseen(one: D.Context, told: Callable[[], list[Any]]) -> None:
    """The failure of a coroutine body is reported like any."""

    async def body() -> None:
        raise BoomError

    D.spawn(body)
    poll(lambda: gc.collect() is not None and told())


def test_dependents_are_one_failure(one: D.Context, told: Callable[[], list[Any]]) -> None:
    """A task and all that failed with it are reported once, when the last of their handles is gone."""
    root = D.spawn(boom)
    down = [D.spawn(identity, root) for _ in range(20)]
    D.waitall(down)
    del root
    kept = down.pop()
    down.clear()
    gc.collect()
    assert told() == []
    D.wait(kept)
    del kept
    poll(lambda: gc.collect() is not None and told())
    assert len(told()) == 1


def _fetch(task: D.DTask) -> None:
    with pytest.raises(D.DTaskFailedError):
        task.fetch()


def _fetch_with_timeout(task: D.DTask) -> None:
    with pytest.raises(D.DTaskFailedError):
        task.fetch(timeout=DEADLINE_S)


def _fetch_dependent(task: D.DTask) -> None:
    _fetch(D.spawn(identity, task))


def _future(task: D.DTask) -> None:
    assert isinstance(task.future().exception(DEADLINE_S), D.DTaskFailedError)


def _await(task: D.DTask) -> None:
    async def main() -> None:
        with pytest.raises(D.DTaskFailedError):
            await task

    asyncio.run(main())


def _gather(task: D.DTask) -> None:
    async def main() -> None:
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("look", [_fetch, _fetch_with_timeout, _fetch_dependent, _future, _await, _gather])
def test_whoever_was_told_is_not_told_again(
    one: D.Context, told: Callable[[], list[Any]], look: Callable[[D.DTask], None]
) -> None:
    """Fetching it or a dependent, a future, an await: nothing is logged."""
    task = D.spawn(boom)
    look(task)
    del task
    gc.collect()
    D.spawn(boom, "marker")
    (record,) = poll(told)
    assert "marker" in record.getMessage()


def test_blocks_know_of_all_their_failures(one: D.Context, told: Callable[[], list[Any]]) -> None:
    """`sync` and `waiting(check_errors=True)` raise the first failure; the others need no report."""
    with pytest.raises(D.DTaskFailedError), D.sync():
        for _ in range(5):
            D.spawn(boom)
    with pytest.raises(D.DTaskFailedError), D.waiting(check_errors=True):
        for _ in range(5):
            D.spawn(boom)
    with D.waiting():
        D.spawn(boom, "marker")
    gc.collect()
    (record,) = poll(told)
    assert "marker" in record.getMessage()


def test_executors(told: Callable[[], list[Any]]) -> None:
    """A future whose result or exception was asked for is no news; one that was dropped is."""
    with D.Executor(1) as executor:
        with pytest.raises(BoomError):
            executor.submit(boom).result(DEADLINE_S)
        assert executor.submit(boom).exception(DEADLINE_S) is not None
        with pytest.raises(BoomError):
            list(executor.map(boom, range(20)))

        async def main() -> None:
            with pytest.raises(BoomError):
                await asyncio.get_running_loop().run_in_executor(executor, boom)

        asyncio.run(main())
        executor.submit(boom, "dropped")
    poll(lambda: gc.collect() is not None and told())
    (record,) = told()
    assert "dropped" in record.getMessage()


def test_cancelled_halted_and_retried(told: Callable[[], list[Any]]) -> None:
    """Cancelled tasks, those of a scheduler that went down, late results and earlier attempts are not reported."""
    gate = threading.Event()
    tries: list[int] = []

    def flaky() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise BoomError

    def late() -> None:
        gate.wait(DEADLINE_S)
        raise BoomError

    with D.Context(threads=2) as context:
        D.spawn(flaky, D.Options(retries=5)).fetch()
        running, queued = D.spawn(late), [D.spawn(identity, n) for n in range(5)]
        poll(lambda: context.core is not None and context.core.running)
        D.cancel(running)
        for task in queued:
            task.cancel()
        gate.set()
        poll(lambda: context.core is not None and not context.core.running)
        blocked = D.spawn(threading.Event().wait, 0.2)
        D.spawn(identity, blocked)
        context.shutdown()
        del running, queued, task, blocked
        gc.collect()
        D.spawn(boom, "marker")
        (record,) = poll(told)
    assert "marker" in record.getMessage()


def test_a_lazy_run_reports_by_raising(legacy: None, told: Callable[[], list[Any]]) -> None:
    """The failure of a `compute` is raised by it and not reported besides."""
    with D.Context(threads=1):
        with pytest.raises(BoomError):
            D.collect(D.delayed(boom)(1))
        gc.collect()
        D.spawn(boom, "marker")
        (record,) = poll(told)
    assert "marker" in record.getMessage()


def test_a_flood_is_dammed(one: D.Context, told: Callable[[], list[Any]]) -> None:
    """Of a thousand failures of one kind ten are logged; another kind is not held back; the rest are counted."""
    D.waitall([D.spawn(boom) for _ in range(1000)])
    poll(lambda: gc.collect() is not None and len(told()) >= 10)

    def other() -> None:
        raise KeyError("other")

    D.spawn(other)
    poll(lambda: gc.collect() is not None and any("other" in r.getMessage() for r in told()))
    assert sum("boom" in r.getMessage() for r in told()) == 10
    poll(lambda: unseen._flood._kinds["boom", "BoomError"][2] == 990)
    assert unseen._flood.held_back() == [(("boom", "BoomError"), 990)]


def test_at_the_end_of_the_program() -> None:
    """What is still held when the program ends is logged then, once each; the program ends well and in time."""
    code, out, err = finish(
        program(
            """
            def fails(n):
                raise ValueError(n)
            kept = [D.spawn(fails, n) for n in range(3)]
            D.waitall(kept)
            D.wait(D.spawn(fails, 99))
            seen = D.spawn(fails, 50)
            try:
                seen.fetch()
            except D.DTaskFailedError:
                print("seen")
            """
        )
    )
    assert (code, out) == (0, "seen\n")
    assert err.count("nobody fetched it") == 4 and err.count("Traceback") == 4
    assert all(f"ValueError: {n}" in err for n in (0, 1, 2, 99)) and "ValueError: 50" not in err
