"""One thread that does what finalizers ask for.

A finalizer runs wherever an object happens to go, perhaps in a thread that holds the very lock it would
need. So finalizers only append a call here (`ask`), and this thread makes the calls. Whoever sets up such a
finalizer calls `start` first: a finalizer must not start threads either.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from ... import forks
from .threads import start_bare

__all__ = ["ask", "start"]

EXIT_JOIN_S = 1.0
"""How long the end of the program waits for the calls that are left."""

_calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
_lock = forks.lock()
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
            thread = threading.Thread(target=_run, name="dagger-janitor", daemon=True)
            try:
                start_bare(thread)
            except RuntimeError:  # the interpreter is shutting down
                return
            _thread = thread


def _run() -> None:
    while True:
        call = _calls.get()
        if call is None:
            return
        try:
            call()
        except Exception:
            logging.getLogger("otel_timespan").exception("something could not be tidied up")
        del call


def finish() -> None:
    """The program ends: make the calls that are left, within a moment."""
    global _ended
    _ended = True
    thread = _thread
    if thread is not None and thread is not threading.current_thread():
        _calls.put(None)
        thread.join(EXIT_JOIN_S)


@forks.in_child("_calls")
def _in_child() -> None:
    global _calls, _thread
    _calls, _thread = queue.SimpleQueue(), None
