"""What a failed task had is gone with its last handle, whoever ran it, without a collection of garbage."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.storage import PickleFileDevice
from tests.backends import eventually
from tests.dagger.acceptance.support import DEADLINE_S

Scenario = Callable[["Made"], None]


class Thing:
    """What must not live on."""


class LostError(ValueError):
    """What the bodies raise."""


class Made:
    """Notes, weakly, all that must go."""

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Any]] = []

    def __call__(self, thing: Any) -> Any:
        self._refs.append(weakref.ref(thing))
        return thing

    def alive(self) -> list[str]:
        return [type(thing).__name__ for ref in self._refs if (thing := ref()) is not None]

    def fail(self, *given: Any) -> None:
        """A body: it has a local variable, and raises."""
        mine = self(Thing())  # noqa: F841 - that is what may live on
        raise self(LostError("lost"))

    async def fail_async(self, given: Any) -> None:
        """`fail`, as a coroutine."""
        mine = self(Thing())  # noqa: F841
        await asyncio.sleep(0)
        raise self(LostError("lost"))

    def spawn(self, **options: Any) -> D.DTask[None]:
        """A task that fails."""
        task: D.DTask[None] = self(D.spawn.opts(**options)(self.fail, self(Thing())))
        return task


def fetched(made: Made) -> None:
    """The waiting thread runs it."""
    task = made.spawn()
    with contextlib.suppress(ts.DTaskFailedError):
        ts.fetch(task)


def fetched_in_except(made: Made) -> None:
    """... while it handles something else."""
    mine = made(Thing())  # noqa: F841
    try:
        raise KeyError
    except KeyError:
        fetched(made)


def run_by_a_worker(made: Made) -> None:
    """A worker runs it."""
    task = made.spawn()
    eventually(task.isready, DEADLINE_S)
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()


def probed(made: Made) -> None:
    """A worker runs it, and a helper wants to know how long that takes."""
    go = threading.Event()
    busy = [D.spawn(go.wait, DEADLINE_S) for _ in range(2)]
    task = made.spawn()
    core: Any = D.eager_context().core
    core.driver.probe = task.id
    go.set()
    D.waitall(busy)
    eventually(task.isready, DEADLINE_S)
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()


def pinned(made: Made) -> None:
    """It is pinned to a slot."""
    task = made.spawn(scope=D.scope(thread=1))
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()


def in_a_body(made: Made) -> None:
    """A body spawns and fetches it."""
    outer = made(D.spawn(fetched, made))
    ts.fetch(outer)
    outer = made(D.spawn(lambda: made.spawn().fetch()))
    with contextlib.suppress(ts.DTaskFailedError):
        ts.fetch(outer)


def blocked_in_a_body(made: Made) -> None:
    """A body blocks until it failed, and fails too."""
    outer = made(D.spawn(lambda: made.spawn().fetch(timeout=DEADLINE_S)))
    eventually(outer.isready, DEADLINE_S)
    with contextlib.suppress(ts.DTaskFailedError):
        ts.fetch(outer)


def skipped(made: Made) -> None:
    """Others depend on it."""
    last: Any = made.spawn()
    for _ in range(3):
        last = made(D.spawn(bool, last))
    with contextlib.suppress(ts.DTaskFailedError):
        last.fetch()


def retried(made: Made) -> None:
    """Each attempt fails."""
    task = made.spawn(retries=2)
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()


def chained(made: Made) -> None:
    """Its error has a cause."""

    def fail() -> None:
        try:
            made.fail()
        except LostError as error:
            raise KeyError(made(Thing())) from error

    task = made(D.spawn(fail))
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()


def not_stored(made: Made) -> None:
    """Its result can not be stored."""

    class Refuses:
        def __reduce__(self) -> Any:
            raise made(LostError("no"))

    with tempfile.TemporaryDirectory() as folder:
        task = made(D.spawn(lambda: made(Refuses()), D.Options(storage=PickleFileDevice(folder))))
        with contextlib.suppress(ts.DTaskFailedError):
            task.fetch()


def timed_out(made: Made) -> None:
    """It takes too long."""
    go = threading.Event()
    task = made(D.spawn(lambda given: go.wait(DEADLINE_S), D.Options(timeout=0.01), made(Thing())))
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()
    go.set()


def interrupted(made: Made) -> None:
    """It is interrupted."""
    began, end = threading.Event(), threading.Event()

    def body(given: Thing) -> None:
        began.set()
        while not end.is_set():
            end.wait(0.001)

    task = made(D.spawn(body, made(Thing())))
    assert began.wait(DEADLINE_S)
    task.cancel(force=True)
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()
    end.set()


def halted(made: Made) -> None:
    """Its scheduler goes down."""
    with D.Context(threads=1) as context:
        go = threading.Event()
        task = made(D.spawn(made.fail, D.spawn(go.wait, DEADLINE_S), made(Thing())))
        context.shutdown()
        for _ in range(2):
            with contextlib.suppress(ts.SchedulingError):
                ts.fetch(task)
        go.set()


def coroutine(made: Made) -> None:
    """It is a coroutine."""
    task = made(D.spawn(made.fail_async, made(Thing())))
    with contextlib.suppress(ts.DTaskFailedError):
        task.fetch()


def awaited(made: Made) -> None:
    """It is awaited."""

    async def main() -> None:
        task = made.spawn()
        with contextlib.suppress(ts.DTaskFailedError):
            await task

    asyncio.run(main())


def looped(made: Made) -> None:
    """It comes out of a loop."""
    for task in D.as_completed([made.spawn() for _ in range(3)]):
        with contextlib.suppress(ts.DTaskFailedError):
            task.fetch()
    for ordered in (True, False):
        with contextlib.suppress(ts.DTaskFailedError):
            list(D.map(made.fail, [made(Thing()) for _ in range(3)], ordered=ordered))


def waited_for_several(made: Made) -> None:
    """Several are waited for."""
    tasks = [made.spawn() for _ in range(3)]
    D.waitany(tasks)
    D.waitall(tasks)
    with contextlib.suppress(ts.DTaskFailedError):
        D.fetch_all(tasks)
    with contextlib.suppress(ts.DTaskFailedError), D.sync():
        made.spawn()
        made.spawn()


def never_fetched(made: Made) -> None:
    """Nobody fetches it."""
    made.spawn()


def of_an_executor(made: Made) -> None:
    """It is a call of an executor."""
    with ts.Executor(2) as executor:
        with contextlib.suppress(LostError):
            executor.submit(made.fail, made(Thing())).result()
        assert executor.submit(made.fail, made(Thing())).exception()
        concurrent.futures.wait([executor.submit(made.fail, made(Thing()))])


@pytest.mark.filterwarnings("ignore:delayed:DeprecationWarning")
def lazily(made: Made) -> None:
    """It is part of a graph."""
    with contextlib.suppress(LostError):
        D.collect(D.delayed(made.fail)(made(Thing())))
    with contextlib.suppress(ts.DTaskFailedError):
        graph = D.delayed(bool)(D.delayed(made.fail)(made(Thing())))
        D.collect(graph, options=D.SchedulerOptions(allow_errors=True))


BOTH = [
    fetched,
    fetched_in_except,
    in_a_body,
    skipped,
    retried,
    chained,
    not_stored,
    coroutine,
    awaited,
    looped,
    waited_for_several,
    lazily,
]
THREADS = [
    run_by_a_worker,
    probed,
    blocked_in_a_body,
    never_fetched,
    pinned,
    timed_out,
    interrupted,
    halted,
    of_an_executor,
]


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("otel_timespan"), "disabled", True)  # pytest keeps what is logged
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def gone(scenario: Scenario) -> None:
    """Whatever the scenario made is gone once it returned."""
    made = Made()
    scenario(made)
    eventually(lambda: not made.alive(), DEADLINE_S)


@pytest.mark.filterwarnings("ignore:delayed:DeprecationWarning")
@pytest.mark.parametrize("scenario", BOTH + THREADS, ids=lambda scenario: scenario.__name__)
def test_nothing_lives_on_with_threads(scenario: Scenario) -> None:
    """Locals, arguments, errors and tasks go with the last handle of a failed task, on threads."""
    with D.Context(threads=2):
        gone(scenario)


@pytest.mark.filterwarnings("ignore:delayed:DeprecationWarning")
@pytest.mark.parametrize("scenario", BOTH, ids=lambda scenario: scenario.__name__)
def test_nothing_lives_on_with_the_inline_driver(scenario: Scenario) -> None:
    """The same where the waiting thread runs all bodies."""
    with D.Context(driver=D.InlineDriver({1: 2})):
        gone(scenario)


@pytest.mark.parametrize("scenario", [fetched, in_a_body, pinned, retried, looped, waited_for_several])
def test_nothing_lives_on_where_no_thread_can_be_started(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where whoever waits runs whatever there is."""

    def refuse(*args: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with D.Context(threads=2), monkeypatch.context() as patch:
        for module in (_thread, threading):
            for name in ("start_new_thread", "_start_new_thread", "_start_joinable_thread", "start_joinable_thread"):
                patch.setattr(module, name, refuse, raising=False)
        gone(scenario)


@pytest.mark.parametrize("sink", [ts.LocalEventLog, ts.MultiEventLog])
@pytest.mark.parametrize("scenario", [fetched, run_by_a_worker, pinned, in_a_body, blocked_in_a_body, coroutine])
def test_nothing_lives_on_with_a_log(scenario: Scenario, sink: Callable[[], Any]) -> None:
    """The same with a log, once that was fetched."""
    log = sink()
    with D.Context(threads=2, log_sink=log):
        made = Made()
        scenario(made)
        log.get_logs()
        eventually(lambda: not made.alive(), DEADLINE_S)


def test_the_frames_of_a_failure_are_there_while_its_error_is() -> None:
    """Whoever holds the error can still look at the variables of the body that raised it."""
    made = Made()
    for body in (made.fail, made.fail_async):
        try:
            ts.fetch(D.spawn(body, 1))
        except ts.DTaskFailedError as error:
            trace = error.ex.__traceback__
            while trace is not None and "mine" not in trace.tb_frame.f_locals:
                trace = trace.tb_next
            assert trace is not None and isinstance(trace.tb_frame.f_locals["mine"], Thing)
