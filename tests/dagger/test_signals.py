"""What a signal handler raises while the main thread runs a body belongs to the code that waits, not to the task."""

from __future__ import annotations

import functools
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.bodies.signals import is_of_a_handler
from otel_timespan.dagger.drivers import helping


class WatchdogError(Exception):
    """What a handler of the user's raises."""


class Handlers:
    """Handlers of all kinds."""

    def method(self, number: int, frame: Any) -> None:
        """Of an instance."""
        raise WatchdogError

    def __call__(self, number: int, frame: Any) -> None:
        raise WatchdogError


def handle(number: int, frame: Any, reason: str = "") -> None:
    """A function."""
    raise WatchdogError(reason)


def leave(number: int, frame: Any) -> None:
    """As programs do at SIGTERM."""
    sys.exit(7)


HANDLERS: dict[str, tuple[Any, type[BaseException]]] = {
    "function": (handle, WatchdogError),
    "method": (Handlers().method, WatchdogError),
    "object": (Handlers(), WatchdogError),
    "partial": (functools.partial(handle, reason="late"), WatchdogError),
    "sys.exit": (leave, SystemExit),
    "Ctrl-C": (signal.default_int_handler, KeyboardInterrupt),
}


class All(set):  # type: ignore[type-arg]
    """Has everything."""

    def __contains__(self, one: object) -> bool:
        return True


@pytest.fixture(autouse=True)
def helpful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread runs whatever it waits for, as if it were known to be brief."""
    real = helping.Brief.__init__

    def known(brief: Any) -> None:
        real(brief)
        brief.known = All()

    monkeypatch.setattr(helping.Brief, "__init__", known)


@pytest.fixture(autouse=True)
def _no_callbacks_of_collections() -> Iterator[None]:
    """Python drops what a handler raises in a callback of the garbage collector; hypothesis has one."""
    before, gc.callbacks[:] = list(gc.callbacks), []
    yield
    gc.callbacks[:] = before


@pytest.fixture(params=HANDLERS)
def alarm(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[[], None], type[BaseException]]]:
    """(what sets the alarm off in a moment, what its handler raises)."""
    handler, error = HANDLERS[request.param]
    before = signal.signal(signal.SIGALRM, handler)
    yield (lambda: signal.setitimer(signal.ITIMER_REAL, 0.02) and None), error
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def busy() -> None:
    """A body in Python code."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("body", [busy, functools.partial(time.sleep, 30)], ids=["python", "sleep"])
@pytest.mark.parametrize("wait", [D.fetch, D.wait], ids=["fetch", "wait"])
def test_it_is_raised_where_one_waits(
    alarm: tuple[Callable[[], None], type[BaseException]], body: Callable[[], None], wait: Callable[[Any], Any]
) -> None:
    """Whatever a handler raises comes out of the wait; the task ends cancelled, and is not tried again."""
    set_off, error = alarm
    with D.Context(threads=1):
        D.fetch(D.spawn(int))
        task = D.spawn(body, D.Options(retries=3))
        set_off()
        with pytest.raises(error):
            wait(task)
        with pytest.raises(D.DTaskCancelledError):
            task.fetch(timeout=10)
        assert D.spawn(int).fetch(timeout=10) == 0


@pytest.mark.parametrize("own", [SystemExit, KeyboardInterrupt, GeneratorExit, WatchdogError])
@pytest.mark.parametrize("helped", [True, False])
def test_what_a_body_raises_is_its_tasks(own: type[BaseException], helped: bool) -> None:
    """Whatever a body raises by itself fails its task, whichever thread ran it."""

    def body() -> None:
        raise own("of the body's")

    with D.Context(threads=1):
        task = D.spawn(body)
        if not helped:
            task.wait(timeout=10)
        with pytest.raises(D.DTaskFailedError) as caught:
            D.fetch(task)
        assert isinstance(D.unwrap_exception(caught.value), own)


def test_sys_exit_in_a_body_means_one_thing() -> None:
    """`sys.exit` in a body fails its task, on a worker's thread and where the main thread helps."""
    with D.Context(threads=1):
        for helped in (True, False):
            task = D.spawn(sys.exit, 3)
            if not helped:
                task.wait(timeout=10)
            with pytest.raises(D.DTaskFailedError) as caught:
                D.fetch(task)
            assert isinstance(D.unwrap_exception(caught.value), SystemExit)


def test_an_exception_without_a_past_is_nobodys() -> None:
    """One that was never raised came from no handler."""
    assert not is_of_a_handler(ValueError())
    assert not is_of_a_handler(KeyboardInterrupt())
