"""Dynamic control from bodies (§12), readable state and debug traces (§18)."""

from __future__ import annotations

import concurrent.futures
import io
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, add, identity, poll

pytestmark = pytest.mark.filterwarnings("ignore:delayed, compute and collect:DeprecationWarning")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No scheduler before or after."""
    D.eager_context().shutdown()
    yield
    D.eager_context().shutdown()


def _handle() -> D.SchedulerHandle:
    return D.sch_handle()


def test_exec_runs_in_the_scheduler() -> None:
    """`exec` is given context, state, task, the caller's id and the arguments, and gives the value back."""

    def look(context: Any, state: Any, task: Any, caller: int, args: tuple[Any, ...]) -> Any:
        return state is D.eager_state(), context is D.eager_context(), task.id == caller == D.task_id(), args

    assert D.fetch(D.spawn(lambda: _handle().exec(look, 1, "x"))) == (True, True, True, (1, "x"))


def test_exec_that_raises_is_a_remote_error() -> None:
    """What `exec` raises arrives as `RemoteTaskError`, with its traceback."""

    def body() -> Any:
        with pytest.raises(D.RemoteTaskError) as caught:
            _handle().exec(lambda *_: 1 / 0)
        return type(caught.value.exc), "1 / 0" in caught.value.traceback_text

    assert D.fetch(D.spawn(body)) == (ZeroDivisionError, True)


def test_add_thunk_options_and_keywords() -> None:
    """Keywords that are options are options, others go to the function; ids are inputs, in any place."""

    def body() -> Any:
        h = _handle()
        first = h.add_thunk(identity, 2, name="first")
        second = h.add_thunk(lambda x, y=0: x * 10 + y, first, y=first)
        h.wait(second)
        return [h.fetch(second), h.fetch(second), first == D.ThunkID(first.id), len({first, D.ThunkID(first.id)})]

    assert D.fetch(D.spawn(body)) == [22, 22, True, 1]


def test_futures_get_the_outcome() -> None:
    """A future given to `add_thunk`, or registered before or after the end, is set to value or failure."""
    futures = [concurrent.futures.Future() for _ in range(3)]

    def body() -> None:
        h = _handle()
        id = h.add_thunk(identity, 7, future=futures[0])
        h.wait(id)
        h.register_future(id, futures[1])
        h.add_thunk(lambda: 1 / 0, future=futures[2])

    D.fetch(D.spawn(body))
    assert [f.result(DEADLINE_S) for f in futures[:2]] == [7, 7]
    assert isinstance(futures[2].exception(DEADLINE_S), D.DTaskFailedError)


def test_waiting_for_what_depends_on_the_caller_is_refused() -> None:
    """Waiting for oneself, or for a task that takes the caller as an input, near or far, would never end."""
    codes: list[str] = []
    downstream: list[D.DTask] = []

    def body() -> None:
        h = _handle()
        for target in (h.thunk_id, *downstream):
            with pytest.raises(D.DynamicThunkError) as caught:
                h.fetch(target)
            codes.append(caught.value.code)

    with D.Context(driver=D.InlineDriver()):
        task = D.spawn(body)
        near = D.spawn(identity, task)
        downstream += [near, D.spawn(identity, near)]
        D.fetch(task)
    assert codes == ["self_fetch", "dominated", "dominated"]


def test_halt_ends_a_batch() -> None:
    """`halt` makes `compute` raise `SchedulerHaltedError`; the next run is unaffected."""
    with pytest.raises(D.SchedulerHaltedError):
        D.collect(D.delayed(identity)(D.delayed(lambda: _handle().halt())()))
    assert D.collect(D.delayed(add)(1, 2)) == 3


def test_a_handle_of_an_ended_scheduler_says_so() -> None:
    """Requests after the end raise instead of waiting for ever; outside of bodies there is no handle."""
    handle = D.fetch(D.spawn(_handle))
    D.eager_context().shutdown()
    for ask in (lambda: handle.exec(identity), lambda: handle.add_thunk(int)):
        with pytest.raises(D.SchedulerHaltedError):
            ask()
    with pytest.raises(D.ConcurrencyViolationError):
        D.sch_handle()
    with pytest.raises(ValueError, match="ThunkID"):
        handle.fetch(10**12)


# ---- status ---------------------------------------------------------------------------------------------


def test_status_shows_the_graph_with_flags() -> None:
    """The running count, then the tree, five levels deep and three tasks wide; flags R, w, W."""
    seen: list[str] = []
    assert "no scheduler" in D.status()
    with D.Context(driver=D.InlineDriver()):
        top = D.spawn(lambda: seen.append(D.status()))
        below = top
        for _ in range(7):
            below = D.spawn(lambda _: None, below)
        others = [D.spawn(int) for _ in range(5)]
        out = io.StringIO()
        text = D.status(out)
        assert out.getvalue() == text
        lines = text.splitlines()
        assert "6 running or ready, 13 unfinished" in lines[0]
        assert lines[1].split() == ["w", f"{top.id}:", "<lambda>"]
        assert any(line.strip().startswith("W") for line in lines) and "... 1 dependent(s)" in text
        assert "... 3 more" in text
        D.waitall([below, *others])
    assert seen[0].splitlines()[1].split()[:2] == ["R", f"{top.id}:"]


def test_readable_state() -> None:
    """The fields of spec §18 are there before and after tasks ran, as copies."""
    assert D.eager_state() is None
    D.fetch(D.spawn(add, 1, 2))
    state = D.eager_state()
    assert state.uid > 0 and state.running_count == 0
    assert state.signature_time_cost[D.sch.signature(add, [(1, 1), (2, 2)]), D.ThreadProc] > 0
    assert state.signature_alloc_cost[D.sch.signature(add, [(1, 1), (2, 2)]), D.ThreadProc] == 8
    assert state.worker_transfer_rate == {} and set(state.worker_time_pressure) == {1}
    assert len(state.worker_loadavg[1]) == 3
    state.signature_time_cost.clear()
    assert state.signature_time_cost


def test_debug_categories(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The categories named by the environment are logged, the others not; unknown names are refused."""
    caplog.set_level(logging.DEBUG, logger="otel_timespan.debug")
    monkeypatch.setenv("OTEL_TIMESPAN_DEBUG", "submit, Finish,execute")
    task = D.spawn(add, 1, 2)
    D.fetch(task)
    poll(lambda: f"task {task.id} finished" in caplog.text)
    assert {record.name.rsplit(".", 1)[1] for record in caplog.records} == {"submit", "finish", "execute"}
    D.eager_context().shutdown()
    monkeypatch.setenv("OTEL_TIMESPAN_DEBUG", "everything")
    with pytest.raises(D.InvalidOptionError, match="everything"):
        D.spawn(int)
    monkeypatch.setenv("OTEL_TIMESPAN_DEBUG", "all")
    failed = D.spawn(lambda: 1 / 0)
    D.wait(failed)
    gate = threading.Event()
    D.cancel(D.spawn(gate.wait, DEADLINE_S))
    gate.set()
    D.eager_context().shutdown()
    told = {record.name.rsplit(".", 1)[1] for record in caplog.records}
    assert {"global", "schedule", "cancel"} <= told and f"task {failed.id} submitted" in caplog.text


def test_nothing_is_wrapped_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without categories a scheduler's methods are its class's own."""
    monkeypatch.delenv("OTEL_TIMESPAN_DEBUG", raising=False)
    D.fetch(D.spawn(int))
    assert not {"submit", "finish", "fail"} & set(vars(D.eager_state()))
