"""spec/scheduler.md, dynamic control of the scheduler from within a body."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    done,
    failure,
    identity,
    of_task,
    poll,
    settled,
    where,
)

pytestmark = pytest.mark.usefixtures("legacy")


@pytest.fixture(params=["threads", "one slot", "inline"])
def ctx(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Both drivers; one slot shows whether a waiting body gives its slot back."""
    if request.param == "inline":
        context = D.Context(driver=D.InlineDriver(workers={1: 2, 2: 2}, seed=0))
    else:
        context = D.Context(threads=1 if request.param == "one slot" else 2)
    with context:
        yield context


def eagerly(f: Callable[..., Any], *args: Any) -> Any:
    """Run it as an eager task."""
    return D.fetch(D.spawn(f, *args))


def lazily(f: Callable[..., Any], *args: Any) -> Any:
    """Run it as a batch."""
    return D.collect(D.delayed(f)(*args))


@pytest.fixture(params=[eagerly, lazily], ids=["eager", "lazy"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """The same test with `spawn` and with `delayed`."""
    return request.param


def error_in(run: Callable[..., Any], f: Callable[..., Any]) -> BaseException:
    """The innermost exception of a body that fails."""
    with pytest.raises(Exception) as caught:
        run(f)
    return D.unwrap_exception(caught.value)


# --- the handle ------------------------------------------------------------------------------------------


def test_s12_outside_of_a_task() -> None:
    """§3: outside of a task `sch_handle` raises an error of ours."""
    with pytest.raises(D.TimespanError):
        D.sch_handle()


def test_s12_the_own_id(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: `h.thunk_id` is a ThunkID with the id of the task, hashable and equal by id."""

    def body() -> bool:
        first, second = D.sch_handle().thunk_id, D.sch_handle().thunk_id
        assert isinstance(first, D.ThunkID)
        assert first == second and hash(first) == hash(second) and len({first, second}) == 1
        assert first.id == D.task_id()
        return True

    assert run(body) is True


def test_s12_ids_are_values() -> None:
    """§12: thunk ids are equal when their number is, and differ otherwise."""
    assert D.ThunkID(3) == D.ThunkID(3) != D.ThunkID(4)
    assert len({D.ThunkID(3), D.ThunkID(3), D.ThunkID(4)}) == 2


# --- exec ------------------------------------------------------------------------------------------------


def test_s12_exec(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12 accept: the function sees context, state, task, caller and arguments; its value comes back."""
    seen: list[Any] = []

    def control(context: Any, state: Any, task: Any, caller: Any, args: Any) -> int:
        seen.append((isinstance(context, D.Context), state.uid, int(getattr(caller, "id", caller)), tuple(args)))
        assert state.running_count >= 1
        assert task is not None
        return 1

    def body() -> Any:
        seen.append(D.task_id())
        return D.sch_handle().exec(control, 2, "x")

    assert run(body) == 1
    number, (is_context, uid, caller, args) = seen
    assert is_context and isinstance(uid, int)
    assert (caller, args) == (number, (2, "x"))


def test_s12_exec_of_the_eager_scheduler_sees_its_state(ctx: D.Context) -> None:
    """§12, §18: the state is that of the scheduler that runs the task."""
    assert eagerly(lambda: D.sch_handle().exec(lambda ctx, state, *rest: state.uid)) == D.eager_state().uid
    assert eagerly(lambda: D.sch_handle().exec(lambda context, *rest: context is ctx)) is True


def test_s12_exec_that_raises_reaches_the_collector(ctx: D.Context) -> None:
    """§12 accept, ruling 3: a raising exec makes `collect` raise RemoteTaskError."""
    with pytest.raises(D.RemoteTaskError) as caught:
        lazily(lambda: D.sch_handle().exec(boom))
    assert isinstance(D.unwrap_exception(caught.value), BoomError)


def test_s12_exec_that_raises_can_be_caught(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: within the body the exception arrives as RemoteTaskError; the scheduler is unharmed."""

    def body() -> str:
        h = D.sch_handle()
        try:
            h.exec(boom)
        except D.RemoteTaskError as error:
            assert isinstance(D.unwrap_exception(error), BoomError)
            return f"caught, then {h.exec(lambda *a: 5)}"
        return "nothing raised"

    assert run(body) == "caught, then 5"


def test_s12_exec_may_use_the_scheduler(ctx: D.Context) -> None:
    """Ruling 11: what exec runs holds no lock: it may spawn."""
    assert D.fetch(eagerly(lambda: D.sch_handle().exec(lambda *a: D.spawn(add, 1, 2)))) == 3


def test_s12_exec_from_many_bodies(ctx: D.Context) -> None:
    """§12: requests from many bodies are all answered."""
    tasks = [D.spawn(lambda n=n: D.sch_handle().exec(lambda c, s, t, caller, args: args[0], n)) for n in range(50)]
    assert D.fetch_all(tasks) == list(range(50))


def test_s12_exec_needs_a_function(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: what can't be called is refused with an error."""
    assert isinstance(error_in(run, lambda: D.sch_handle().exec(5)), TypeError)


# --- add_thunk, fetch, wait ------------------------------------------------------------------------------


def test_s12_add_thunk_wait_fetch(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12 accept: a body adds `y + 1` on 1, waits and fetches: 2; repeatable."""

    def body(x: int) -> int:
        h = D.sch_handle()
        number = h.add_thunk(lambda y: y + 1, x)
        assert isinstance(number, D.ThunkID)
        assert h.wait(number) is None
        assert h.fetch(number) == 2 == h.fetch(number)
        assert h.wait(number) is None
        return h.fetch(number)

    assert run(body, 1) == 2


def test_s12_bare_values_and_keywords(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: arguments are bare values; keywords that are no option are the function's."""

    def body() -> list[Any]:
        h = D.sch_handle()
        return [h.fetch(i) for i in (h.add_thunk(int, "12"), h.add_thunk(int, "12", base=8))]

    assert run(body) == [12, 10]


def test_s12_a_thunk_id_is_a_dependency(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: a ThunkID as an argument is a dependency: the new task gets its value."""

    def body() -> int:
        h = D.sch_handle()
        first = h.add_thunk(add, 1, 2)
        second = h.add_thunk(add, first, 10)
        third = h.add_thunk(add, first, second)
        return h.fetch(third)

    assert run(body) == 16


def test_s12_options(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: `add_thunk` takes options of the task."""

    def body() -> D.Processor:
        h = D.sch_handle()
        return h.fetch(h.add_thunk(where, scope=D.scope(worker=1, thread=1)))

    assert run(body) == D.ThreadProc(1, 1)


def test_s12_a_future_is_attached(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: `future=` and `register_future` attach a future, before or after the task is done."""

    def body() -> list[int]:
        h = D.sch_handle()
        given, late = concurrent.futures.Future(), concurrent.futures.Future()
        number = h.add_thunk(add, 1, 2, future=given)
        h.wait(number)
        h.register_future(number, late)
        return [given.result(DEADLINE_S), late.result(DEADLINE_S)]

    assert run(body) == [3, 3]


def test_s12_a_failing_thunk(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: `fetch` of a failed id raises its error, `wait` does not... in the eager scheduler, which allows errors."""

    def body() -> str:
        h = D.sch_handle()
        number = h.add_thunk(boom)
        h.wait(number)
        for _ in range(2):
            with pytest.raises(Exception) as caught:
                h.fetch(number)
            assert isinstance(D.unwrap_exception(caught.value), BoomError)
        return "caught"

    assert eagerly(body) == "caught"


def test_s12_a_failing_thunk_fails_the_batch(ctx: D.Context) -> None:
    """§12, §1.8: in a batch without `allow_errors` the error of a dynamically added task aborts the run."""

    def body() -> int:
        h = D.sch_handle()
        return h.fetch(h.add_thunk(boom))

    with pytest.raises(Exception) as caught:
        lazily(body)
    assert isinstance(D.unwrap_exception(caught.value), BoomError)


def test_s12_added_thunks_add_thunks(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: added tasks have a handle of their own, to any depth."""

    def body(depth: int) -> int:
        if depth == 0:
            return D.task_id()
        h = D.sch_handle()
        return h.fetch(h.add_thunk(body, depth - 1))

    assert run(body, 5) > 0


def test_s12_dynamic_and_spawned_tasks_mix(ctx: D.Context) -> None:
    """§12: the id of a spawned task is an id of the handle, and an added task's value a spawn's argument."""

    def body() -> list[int]:
        h = D.sch_handle()
        task = D.spawn(add, 1, 2)
        return [h.fetch(D.ThunkID(task.id)), h.fetch(h.add_thunk(add, task, 1))]

    assert eagerly(body) == [3, 4]


def test_s12_an_unknown_id(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: an id that nobody has is an error, not a hang."""
    for ask in ("fetch", "wait"):
        error = error_in(run, lambda ask=ask: getattr(D.sch_handle(), ask)(D.ThunkID(10**12)))
        assert isinstance(error, (D.TimespanError, KeyError, ValueError)), error


def test_s12_add_thunk_needs_a_function(ctx: D.Context, run: Callable[..., Any]) -> None:
    """§12: what can't be called is refused with a TypeError."""
    assert isinstance(error_in(run, lambda: D.sch_handle().add_thunk(5)), TypeError)


def test_s12_added_thunks_are_in_the_log() -> None:
    """§19: dynamically added tasks have `add_thunk` and the other events, in the lazy API too."""
    log: list[Event] = []
    with D.Context(threads=2, log_sink=log):

        def body() -> D.ThunkID:
            h = D.sch_handle()
            number = h.add_thunk(add, 1, 2)
            h.wait(number)
            return number

        numbers = [eagerly(body), lazily(body)]
        for number in numbers:
            events = settled(log, number)
            for category in ("add_thunk", "schedule", "enqueue", "compute", "finish"):
                assert [e.phase for e in of_task(events, number, category)] == ["start", "finish"], category


# --- get_dag_ids -----------------------------------------------------------------------------------------


def test_s12_dag_ids_of_the_diamond(ctx: D.Context) -> None:
    """§12 accept: 4 keys; nobody waits for d; finished consumers of a don't count; b and c are awaited by d."""

    def last(*upstreams: Any) -> Any:
        h = D.sch_handle()
        return h.get_dag_ids(), h.thunk_id

    a = D.delayed(identity)(1)
    b, c = D.delayed(identity)(a), D.delayed(identity)(a)
    ids, own = D.collect(D.delayed(last)(b, c))
    assert len(ids) == 4
    assert all(isinstance(k, D.ThunkID) for k in ids) and all(isinstance(v, (set, frozenset)) for v in ids.values())
    assert ids[own] == set()
    assert sorted(map(len, ids.values())) == [0, 0, 1, 1]
    assert [v for v in ids.values() if v] == [{own}, {own}]


def test_s12_dag_ids_of_eager_tasks(ctx: D.Context) -> None:
    """§12, §18: waiting dependents of the running task are in the set of its id."""
    opened = threading.Event()

    def body() -> set[int]:
        poll(opened.is_set)
        h = D.sch_handle()
        return {i.id for i in h.get_dag_ids()[h.thunk_id]}

    a = D.spawn(body)
    downs = [D.spawn(identity, a), D.spawn(identity, a)]
    further = D.spawn(identity, downs[0])
    opened.set()
    assert D.fetch(a) == {t.id for t in downs}
    D.wait(further)


def test_s12_dag_ids_forget_finished_consumers(ctx: D.Context) -> None:
    """§18: dependents come from unfinished tasks only: once they ran, the sets are empty."""
    a = D.spawn(identity, 1)
    downs = [D.spawn(identity, a) for _ in range(3)]
    D.waitall(downs)
    ids = eagerly(lambda: D.sch_handle().get_dag_ids())
    assert ids.get(D.ThunkID(a.id), set()) == set()


# --- guards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["fetch", "wait"])
def test_s12_a_body_cannot_wait_for_itself(ctx: D.Context, run: Callable[..., Any], ask: str) -> None:
    """§12 accept: fetching or awaiting the own id is a DynamicThunkError with the code `self_fetch`."""

    def body() -> None:
        h = D.sch_handle()
        getattr(h, ask)(h.thunk_id)

    error = error_in(run, body)
    assert isinstance(error, D.DynamicThunkError)
    assert error.code == "self_fetch"


@pytest.mark.parametrize("ask", ["fetch", "wait"])
def test_s12_a_body_cannot_wait_for_its_dependents(ctx: D.Context, ask: str) -> None:
    """§12: waiting for a task that takes the caller as input, directly or not, has the code `dominated`."""
    ids: list[D.ThunkID] = []
    opened = threading.Event()

    def body() -> list[str]:
        poll(opened.is_set)
        h, codes = D.sch_handle(), []
        for number in ids:
            with pytest.raises(Exception) as caught:
                getattr(h, ask)(number)
            error = D.unwrap_exception(caught.value)
            assert isinstance(error, D.DynamicThunkError)
            codes.append(error.code)
        return codes

    a = D.spawn(body)
    b = D.spawn(identity, a)
    c = D.spawn(identity, b)
    ids += [D.ThunkID(b.id), D.ThunkID(c.id)]
    opened.set()
    assert D.fetch(a) == ["dominated"] * 2
    assert D.fetch(c) == ["dominated"] * 2


def test_s12_dominated_fails_a_batch_as_remote_task_error(ctx: D.Context) -> None:
    """§12: inside a failing batch the guards surface as RemoteTaskError around them."""

    def body() -> None:
        h = D.sch_handle()
        (dependent,) = h.get_dag_ids()[h.thunk_id]
        h.fetch(dependent)

    with pytest.raises(D.RemoteTaskError) as caught:
        D.collect(D.delayed(identity)(D.delayed(body)()))
    error = D.unwrap_exception(caught.value)
    assert isinstance(error, D.DynamicThunkError) and error.code == "dominated"


def test_s12_self_fetch_fails_a_batch_as_remote_task_error(ctx: D.Context) -> None:
    """§12: the same for a body that fetches itself."""
    with pytest.raises(D.RemoteTaskError):
        lazily(lambda: D.sch_handle().fetch(D.sch_handle().thunk_id))


def test_s12_the_error_is_the_bodys_in_the_eager_scheduler(ctx: D.Context) -> None:
    """§12: in the eager scheduler the guard's error fails the task like any other; others go on."""

    def body() -> None:
        h = D.sch_handle()
        h.fetch(h.thunk_id)

    task = done(D.spawn(body))
    assert isinstance(failure(task), D.DTaskFailedError)
    assert isinstance(D.unwrap_exception(failure(task)), D.DynamicThunkError)
    assert D.fetch(D.spawn(add, 1, 2)) == 3


# --- halt ------------------------------------------------------------------------------------------------


def test_s12_halt_of_a_batch(ctx: D.Context) -> None:
    """§12: `halt` makes the running batch raise SchedulerHaltedError; the next batch works."""

    def body() -> int:
        D.sch_handle().halt()
        return 1

    with pytest.raises(D.SchedulerHaltedError):
        D.collect(D.delayed(identity)(D.delayed(body)()))
    assert lazily(add, 1, 2) == 3


def test_s12_halt_of_a_batch_leaves_the_eager_scheduler(two: D.Context) -> None:
    """§0, §12: instances share nothing: halting a batch leaves eager tasks alone."""
    kept = D.spawn(identity, 5)
    with pytest.raises(D.SchedulerHaltedError):
        D.collect(D.delayed(identity)(D.delayed(lambda: D.sch_handle().halt())()))
    assert D.fetch(kept) == 5
    assert D.fetch(D.spawn(add, 1, 2)) == 3


def test_s12_halt_of_the_eager_scheduler(two: D.Context, gate: threading.Event) -> None:
    """§12, §1.8: halting ends the eager scheduler: pending fetches raise, and the next spawn starts a new one."""
    blocked = D.spawn(gate.wait, DEADLINE_S)
    waiting = D.spawn(identity, blocked)
    uid = D.eager_state().uid
    D.spawn(lambda: D.sch_handle().halt())
    poll(lambda: D.eager_state() is None or D.eager_state().uid != uid, "the halt")
    error = D.unwrap_exception(failure(waiting, BaseException))
    assert isinstance(error, (D.SchedulingError, D.SchedulerHaltedError, D.TaskCancelled))
    gate.set()
    assert D.spawn(add, 1, 2).fetch(timeout=DEADLINE_S) == 3
    assert D.eager_state().uid > uid


# --- edges ---------------------------------------------------------------------------------------------------


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
