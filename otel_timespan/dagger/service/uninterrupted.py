"""Calls that no signal breaks off: made by a thread that gets none.

Python runs signal handlers in the main thread, between any two steps of whatever that executes, and what they raise
(Ctrl-C) comes out there. What must not stop half way, and is too long to be one step (tasks/atomics.py), is called
here: in another thread the call is simply made, in the main thread a thread of ours makes it, and the main thread
waits. An interrupt of that wait leaves the call alone. It costs the main thread two switches (beside threads that
compute, 5 ms each), so that it is for what happens seldom.

Two cases leave no choice, and the main thread makes the call itself: no thread can be started; or a signal handler is
at work on top of code of ours that holds a lock, which that thread might want (guards.py).
"""

from __future__ import annotations

import _thread
import logging
import sys
import threading
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from typing import Any, TypeVar

from ... import forks
from .calls import Calls
from .guards import any_held
from .threads import kept_up

__all__ = ["on_main_thread", "soon", "uninterrupted"]

LOGGER = logging.getLogger("otel_timespan")

_T = TypeVar("_T")

_calls = Calls()
_ready: list[bool] = []
"""One entry a thread that waits for a call. A call may block, in a callback of the user's: then there is one more."""
_main = threading.main_thread().ident
_alone = False
"""Whether the main thread makes such a call itself just now."""


def on_main_thread() -> bool:
    """Whether this thread must leave to others what no signal may break off."""
    return get_ident() == _main and not _alone


def uninterrupted(call: Callable[..., _T], *args: Any) -> _T:
    """`call(*args)`, made to its end whatever signals come; its value, or what it raised.

    In the main thread an interrupt is raised here at once; the call, which has begun or will, goes on without us.
    """
    if not on_main_thread():
        return call(*args)
    if any_held() or not _thread_is_there():
        return _make_here(call, *args)
    done = allocate_lock()
    done.acquire()
    found: list[_T] = []
    raised: list[BaseException] = []

    def make() -> None:
        try:
            found.append(call(*args))
        except BaseException as error:
            raised.append(error)
        finally:
            done.release()

    _calls.put(make)
    done.acquire()
    if raised:
        raise raised.pop()
    return found.pop()


def soon(call: Callable[..., object], *args: Any) -> None:
    """`uninterrupted`, but the main thread does not wait for it. What the call raises there is logged."""
    if not on_main_thread():
        call(*args)
        return
    if not _thread_is_there():
        _make_here(call, *args)
        return

    def make() -> None:
        try:
            call(*args)
        except BaseException:
            LOGGER.exception("something that was left to another thread failed")

    _calls.put(make)


def _make_here(call: Callable[..., _T], *args: Any) -> _T:
    """As if the main thread were another one."""
    global _alone
    before = _alone
    try:
        _alone = True
        return call(*args)
    finally:
        _alone = before


def _thread_is_there() -> bool:
    """Whether a thread waits for our call, started now if all are busy. Not where none can be started any more.

    A bare one: `threading.Thread` takes locks of its own when it starts, on top of which a signal handler may be.
    """
    if sys.is_finalizing():  # those that are there never run again
        return False
    try:
        _ready.pop()
    except IndexError:
        try:
            _thread.start_new_thread(_serve, ())
        except (RuntimeError, MemoryError):  # the interpreter is going down, or the system has no thread left
            return False
    return True


def _serve() -> None:
    kept_up(_run)


def _run() -> None:
    _calls.begin()
    while True:
        make = _calls.take()
        if make is None:
            continue
        make()
        del make  # this thread must keep nothing alive
        _ready.append(True)


@forks.in_child("_calls", "_ready")
def _in_child() -> None:
    global _calls, _main, _alone
    _calls, _alone = Calls(), False
    _main = threading.main_thread().ident
    _ready.clear()
