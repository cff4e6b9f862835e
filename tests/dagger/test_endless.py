"""What went on for ever: bodies that wait for themselves, chains of causes that go round, times without end, forks."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger import cycles
from otel_timespan.dagger.service import timers
from otel_timespan.dagger.storage import PickleFileDevice
from tests.dagger.acceptance.support import DEADLINE_S, poll, run_program


def reason(wait: Callable[[], Any]) -> BaseException:
    """The root of what a wait raises."""
    with pytest.raises((D.DTaskFailedError, D.DynamicThunkError)) as caught:
        wait()
    return D.unwrap_exception(caught.value)


class TestCycles:
    """A body that waits for what waits for it is told so, and by which way."""

    def test_for_itself(self) -> None:
        """A body can't fetch its own task."""
        own: list[D.DTask] = []
        gate = threading.Event()
        with D.Context(threads=2):
            own.append(D.spawn(lambda: gate.wait(DEADLINE_S) and D.fetch(own[0])))
            gate.set()
            error = reason(lambda: own[0].fetch(timeout=DEADLINE_S))
        assert isinstance(error, D.DynamicThunkError) and error.code == "self_fetch"

    def test_for_a_dependent(self) -> None:
        """Nor one that depends on it, however far."""
        late: list[D.DTask] = []
        gate = threading.Event()
        with D.Context(threads=2):
            first = D.spawn(lambda: gate.wait(DEADLINE_S) and late[0].fetch(timeout=DEADLINE_S))
            chain = first
            for _ in range(50):
                chain = D.spawn(lambda x: x, chain)
            late.append(chain)
            gate.set()
            error = reason(lambda: first.fetch(timeout=DEADLINE_S))
        assert isinstance(error, D.DynamicThunkError) and error.code == "dominated"
        assert str(first.id) in str(error) and str(chain.id) in str(error)

    @pytest.mark.parametrize("threads", [1, 3])
    def test_round_several_bodies(self, threads: int) -> None:
        """Three bodies that wait for each other in a circle: one of them is refused, and so all end."""
        tasks: list[D.DTask] = []
        gate = threading.Event()

        def body(n: int) -> Any:
            gate.wait(DEADLINE_S)
            return tasks[(n + 1) % 3].fetch()

        with D.Context(threads=threads):
            tasks += [D.spawn(body, n) for n in range(3)]
            gate.set()
            errors = [reason(lambda task=task: task.fetch(timeout=DEADLINE_S)) for task in tasks]
        assert all(isinstance(error, D.DynamicThunkError) for error in errors)
        assert not cycles._waits

    def test_through_an_executor(self) -> None:
        """The result of a future counts as the task behind it."""
        own: dict[str, Any] = {}
        gate = threading.Event()
        with D.Executor(2) as executor:
            own["future"] = executor.submit(lambda: gate.wait(DEADLINE_S) and own["future"].result())
            gate.set()
            with pytest.raises(D.DynamicThunkError):
                own["future"].result(timeout=DEADLINE_S)

    def test_in_coroutines(self) -> None:
        """`await` of one's own task is refused, too."""
        own: list[D.DTask] = []
        gate = threading.Event()

        async def body() -> Any:
            gate.wait(DEADLINE_S)
            return await own[0]

        with D.Context(threads=2):
            own.append(D.spawn(body))
            gate.set()
            assert isinstance(reason(lambda: own[0].fetch(timeout=DEADLINE_S)), D.DynamicThunkError)

    def test_what_a_body_started_may_wait_for_it(self) -> None:
        """Threads and asyncio tasks that a body started outlive it, and may wait for its task."""
        own: list[D.DTask] = []
        gate, found = threading.Event(), []

        async def coroutine() -> int:
            gate.wait(DEADLINE_S)
            later.append(asyncio.create_task(wait()))
            return 1

        async def wait() -> None:
            found.append(await own[0])

        def function() -> int:
            gate.wait(DEADLINE_S)
            tls = D.get_tls()

            def beside() -> None:
                D.set_tls(tls)
                found.append(D.fetch(own[1]))

            threads.append(threading.Thread(target=beside))
            threads[0].start()
            return 2

        later: list[Any] = []
        threads: list[threading.Thread] = []
        with D.Context(threads=2):
            own += [D.spawn(coroutine), D.spawn(function)]
            gate.set()
            assert D.fetch_all(own) == [1, 2]
            poll(lambda: sorted(found) == [1, 2])
            threads[0].join(DEADLINE_S)
        assert not cycles._waits

    def test_waits_that_end_are_none(self) -> None:
        """Bodies that wait for many tasks, and those for others, are let be."""

        def tree(depth: int) -> int:
            if depth == 0:
                return 1
            return sum(D.fetch_all([D.spawn(tree, depth - 1) for _ in range(3)]))

        with D.Context(threads=2):
            assert D.fetch(D.spawn(tree, 5)) == 3**5
        assert not cycles._waits


class Knotted:
    """Can't be pickled, by an error whose causes go round."""

    def __reduce__(self) -> Any:
        error = ValueError("no")
        raise error from error


def test_a_circle_of_causes_ends(tmp_path: Path) -> None:
    """A value that its storage refuses with a circle of causes fails its task, and gives its slot back."""
    with D.Context(threads=1):
        task = D.spawn(Knotted, D.Options(storage=PickleFileDevice(tmp_path)))
        assert isinstance(reason(lambda: task.fetch(timeout=DEADLINE_S)), D.StorageError)
        assert D.spawn(int).fetch(timeout=DEADLINE_S) == 0


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 1e300])
def test_a_limit_without_end_stops_no_other(timeout: float) -> None:
    """The time limits of other tasks hold beside one that is as good as none."""
    gate = threading.Event()
    with D.Context(threads=2):
        endless = D.spawn(gate.wait, D.Options(timeout=timeout), DEADLINE_S)
        short = D.spawn(gate.wait, D.Options(timeout=0.05), DEADLINE_S)
        assert isinstance(reason(lambda: short.fetch(timeout=DEADLINE_S)), D.TaskTimeoutError)
        gate.set()
        assert endless.fetch(timeout=DEADLINE_S) is True


def test_a_timed_call_that_raises_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a timed call raises is logged; the calls after it are made."""
    made = threading.Event()

    def leave() -> None:
        raise SystemExit(3)

    timers.call_later(0.0, leave)
    timers.call_later(0.01, made.set)
    assert made.wait(DEADLINE_S)
    poll(lambda: "a timed call failed" in caplog.text)


def test_a_child_has_the_limits_and_none_of_the_places() -> None:
    """After a fork nobody holds a place of a limit: whoever did is in the parent."""
    run_program(
        """
        import os, threading
        from otel_timespan import dagger as D

        D.set_limit("db", 1)
        begun, gate = threading.Event(), threading.Event()
        task = D.spawn(lambda: (begun.set(), gate.wait(30)), D.Options(limit="db"))
        assert begun.wait(30)
        child = os.fork()
        if child == 0:
            fine = D.spawn(int, D.Options(limit="db")).fetch(timeout=20) == 0 and D.get_limit("db") == 1
            os._exit(0 if fine else 1)
        _, status = os.waitpid(child, 0)
        gate.set()
        task.wait(30)
        assert status == 0, status
        """
    )


def test_a_wait_is_declared_while_it_lasts() -> None:
    """What a body waits for is known from before it blocks until it goes on."""
    gate = threading.Event()
    with D.Context(threads=2):
        inner = D.spawn(gate.wait, DEADLINE_S)
        outer = D.spawn(lambda: inner.fetch(timeout=DEADLINE_S))
        poll(lambda: cycles.is_declared(outer, inner))
        gate.set()
        outer.fetch(timeout=DEADLINE_S)
        end = time.monotonic() + DEADLINE_S
        while cycles.is_declared(outer, inner):
            assert time.monotonic() < end


@pytest.mark.parametrize("module", ["asyncio", "ipykernel", "ctypes"])
def test_modules_that_are_just_imported_are_let_be(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that another thread is still importing, and that has no names yet, stops no fetch."""
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    with D.Context(threads=2):
        task = D.spawn(lambda: [ctypes.c_void_p(1)])
        assert len(D.fetch(D.spawn(lambda x: x, task))) == 1
        assert D.fetch(D.spawn(int), timeout=DEADLINE_S) == 0
        D.waitall([D.spawn(int)])
