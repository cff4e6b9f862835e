"""One thread that does what finalizers ask for.

A finalizer runs wherever an object happens to go, perhaps in a thread that holds the very lock it would
need. So finalizers only append a call here (`ask`), and this thread makes the calls. Whoever sets up such a
finalizer calls `start` first: a finalizer must not start threads either.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ... import forks
from .calls import Calls
from .guards import guard
from .threads import kept_up, start_service

__all__ = ["ask", "start"]

EXIT_JOIN_S = 1.0
"""How long the end of the program waits for the calls that are left."""

_calls = Calls()
_lock = guard()
_thread: threading.Thread | None = None
_ended = False


def ask(call: Callable[[], Any]) -> None:
    """Have `call()` called soon, on the janitor's thread. Only appends: for finalizers."""
    if not _ended:
        _calls.put(call)


def start() -> None:
    """See to it that the thread is there. Not from a finalizer."""
    global _thread
    if _thread is not None or _ended:
        return
    with _lock:
        if _thread is None:
            thread = threading.Thread(target=kept_up, args=(_run,), name="dagger-janitor", daemon=True)
            if start_service(thread) is None:  # else the next one tries again: the calls wait
                _thread = thread


class _End(BaseException):
    """The last call of all."""


def _run() -> None:
    _calls.begin()
    while True:
        call = _calls.take()
        if call is None:
            continue
        try:
            call()
        except _End:
            return
        except BaseException:  # the calls to come are others'
            logging.getLogger("otel_timespan").exception("something could not be tidied up")
        del call


def _end() -> None:
    raise _End


def finish() -> None:
    """The program ends: make the calls that are left, within a moment."""
    global _ended
    _ended = True
    thread = _thread
    if thread is not None and thread is not threading.current_thread():
        _calls.put(_end)
        thread.join(EXIT_JOIN_S)


@forks.in_child("_calls")
def _in_child() -> None:
    global _calls, _thread
    _calls, _thread = Calls(), None
