"""Calls on a stack of their own: what stays of them does not refer to the caller.

The problem: a frame that outlives its call, in the traceback of what a body raised, refers to the frame it was called
from, that one to the next, down to the bottom, and each keeps its variables. Where the waiting thread ran the body
itself, these are the frames of the code that waits. That has the task in a variable, the task has the error, and the
error the frames: a circle, which stays until the next collection of garbage.

So whoever waits runs bodies in here. A generator that has stopped at its `yield` refers to nobody; our own frames
between it and the body are emptied when they are over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

__all__ = ["apart", "empty_later"]

_Call = tuple[Callable[[Any], Any], Any]

_idle: list[Generator[None, _Call, None]] = []
"""Stacks that nobody uses: as many as were in use at once, ever."""

_left: list[FrameType] = []
"""Frames that called a body which failed, apart from its waiter, and may still run."""


def apart(call: Callable[[Any], object], arg: Any) -> None:
    """`call(arg)`, on a stack of its own. Thread-safe; may be nested."""
    try:
        stack = _idle.pop()
    except IndexError:
        stack = _stack()
        next(stack)
    stack.send((call, arg))
    _idle.append(stack)  # not if it raised: then it is over


def _stack() -> Generator[None, _Call, None]:
    call: Any = None
    arg: Any = None
    while True:
        call, arg = yield
        try:
            call(arg)
        finally:
            call = arg = None
            if _left:
                _empty()


def empty_later(frame: FrameType | None) -> None:
    """Empty this frame, and those below it, when they are over: if they are apart. Else they are not ours to empty."""
    below = frame
    while below is not None:
        if below.f_code is _stack.__code__:
            _left.append(frame)  # type: ignore[arg-type]
            return
        below = below.f_back


def _empty() -> None:
    for frame in list(_left):
        below: FrameType | None = frame
        try:
            while below is not None and below.f_code is not _stack.__code__:
                below.clear()
                below = below.f_back
            _left.remove(frame)
        except RuntimeError:  # it still runs, in another thread, which will come here
            continue
        except ValueError:  # another thread did the same
            continue
