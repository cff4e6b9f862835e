"""Callbacks of tasks that may take long, or wait for other tasks, where the thread that ends tasks must not.

All outcomes from another process come in on one thread: a callback there that waits for a further one would wait for
ever. So that thread is a *carrier*, and has callbacks called on threads that are started for them, as many as there are
callbacks that wait; an idle one ends soon.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from ... import forks
from .guards import guard
from .threads import start_service

__all__ = ["call_apart", "carriers", "held_back"]

IDLE_S = 5.0

carriers: set[int] = set()
"""Idents of the threads that must not wait."""

held_back: dict[int, list[Callable[[], object]]] = {}
"""By ident of a carrier: locks to be released when it is about to wait, and not before: whom they wake wants the
interpreter at once, which it has until then."""

_calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
_lock = guard()
_free = 0
"""How many threads wait for a call, less the calls that wait for a thread. Guarded by `_lock`."""


def call_apart(call: Callable[[], None]) -> None:
    """Have `call()` called on another thread, soon; here where no thread can be started. It must not raise."""
    global _free
    with _lock:
        start = _free <= 0
        if not start:
            _free -= 1
    _calls.put(call)
    if start:
        refusal = start_service(threading.Thread(target=_serve, name="dagger-callbacks", daemon=True))
        if refusal is not None:
            try:
                late = _calls.get_nowait()
            except queue.Empty:
                return
            late()


def _serve() -> None:
    global _free
    while True:
        try:
            call = _calls.get(timeout=IDLE_S)
        except queue.Empty:
            with _lock:
                if _free <= 0:  # a call is on its way to this one
                    continue
                _free -= 1
                return
        call()
        del call
        with _lock:
            _free += 1


@forks.in_child("_calls", "carriers", "held_back")
def _in_child() -> None:
    global _calls, _free
    _calls, _free = queue.SimpleQueue(), 0
    carriers.clear()
    held_back.clear()
