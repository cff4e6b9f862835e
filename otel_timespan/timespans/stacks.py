"""What every thread executes right now.

The problem: before Python 3.12 a garbage collection can begin inside of `sys._current_frames()`, which holds a
lock of the interpreter; a finalizer that needs this lock (that of a `threading.local`, say) then waits for
ever, and everything with it. So no collection may begin there.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from types import FrameType

from .. import forks

__all__ = ["current_frames", "uncollected"]

_lock = forks.rlock()
_inside = 0
_was_on = False


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """A block in which no garbage collection begins; since Python 3.12 none can begin inside of a call anyway."""
    global _inside, _was_on
    if sys.version_info >= (3, 12):
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _was_on = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _was_on:
                gc.enable()


def current_frames() -> dict[int, FrameType]:
    """The topmost frame of each thread, by the thread's ident; the caller's own is among them."""
    with uncollected():
        return sys._current_frames()


@forks.in_child()
def _in_child() -> None:
    global _inside
    if _inside and _was_on:
        gc.enable()
    _inside = 0
