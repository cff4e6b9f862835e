"""A thread of ours that fails is reported and begins anew; what it had to do is done."""

from __future__ import annotations

import ctypes
import threading
from _thread import get_ident

import pytest

from otel_timespan.dagger.service import janitor, timers
from otel_timespan.dagger.service.uninterrupted import soon, uninterrupted
from tests.backends import eventually


class BlowError(BaseException):
    """Ends a thread."""


def strike(ident: int | None) -> None:
    """Raise in a thread, at its next step."""
    assert ident is not None
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(BlowError)) == 1


def test_the_timer_thread(caplog: pytest.LogCaptureFixture) -> None:
    """A time limit is kept though the thread that keeps the time failed before."""
    timers.start()
    thread = timers._keeper._thread
    assert thread is not None
    later = threading.Event()
    timers.call_later(0.05, later.set)
    strike(thread.ident)
    now = threading.Event()
    timers.call_later(0, now.set)
    assert now.wait(60) and later.wait(60)
    eventually(lambda: "a thread of otel_timespan failed" in caplog.text)


def test_the_janitor(caplog: pytest.LogCaptureFixture) -> None:
    """What finalizers asked for is done though the janitor failed just before, and whatever a call raises."""
    janitor.start()
    thread = janitor._thread
    assert thread is not None

    def fail() -> None:
        raise BlowError

    janitor.ask(fail)
    strike(thread.ident)
    done = threading.Event()
    janitor.ask(done.set)
    assert done.wait(60)
    eventually(lambda: "a thread of otel_timespan failed" in caplog.text)


def test_the_threads_without_signals(caplog: pytest.LogCaptureFixture) -> None:
    """The main thread gets its answer though the thread that was to make the call failed when it took it."""
    strike(uninterrupted(get_ident))
    assert uninterrupted(lambda: 5) == 5
    done = threading.Event()
    soon(done.set)
    assert done.wait(60)
