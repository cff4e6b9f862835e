"""Which bodies a waiting thread may run itself: those known to be brief, where it makes no difference who runs them.

The problem: a thread in `fetch` that runs a body can't leave it. A body of 2 s that is cancelled after 0.3 s, or runs
out of its time, would keep the waiter for 2 s; run by another thread it lets the waiter go at once. Yet helping is
what makes loops of `spawn` and `fetch` fast, where a switch of threads costs as much as several tasks. So a waiter
helps with bodies that took less than a millisecond so far, and leaves to other threads what it does not know, or what
has a time limit. And a body has less stack on top of a deep one, and a debugger or profiler of the waiting thread
would see some bodies and not others: then it does not help at all.

What is learned is the wall time of a function's bodies, as (old + new) / 2, by its code: functions made anew for each
task are one. Nothing of the user's is called or compared.

See docs/scheduling.md.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol

from ..data.chunks import Chunk
from ..data.shards import Shard
from ..tasks.dtask import DTask

__all__ = ["Brief", "is_ordinary_here"]

BRIEF_NS = 1_000_000
"""What a body may be expected to take where a waiting thread runs it: so long a cancellation of it may be late."""

DEEP = 100
"""Frames on the stack of a thread from which on it does not help."""

MAX_KNOWN = 4096
"""Functions that are known; the oldest is forgotten first."""

FEW = 8
"""So many frames are walked to the bottom of a stack each time, before it is remembered that it is there."""

_LAYERS = 8
"""So many decorators are looked through."""

_OPAQUE = frozenset((DTask, Chunk, Shard))
"""Types that stand for a function which is not looked at."""


class Brief:
    """What is known of the run times of functions. Thread-safe: what two threads learn at once, one may forget."""

    __slots__ = ("_expected", "known")

    def __init__(self) -> None:
        self.known: set[int] = set()
        """The ids of the codes (`code_of`) of functions whose bodies are brief, as far as one knows."""
        self._expected: dict[int, tuple[Any, float]] = {id(time.sleep): (time.sleep, math.inf)}
        """By id of the code: the code, so that it stays, and expected nanoseconds. Some are never brief."""

    def learn(self, f: Any, ns: float) -> None:
        """A body of this function took that long."""
        code, expected = code_of(f), self._expected
        if code is None:
            return
        before = expected.get(id(code))
        mean = ns if before is None else (before[1] + ns) / 2
        expected[id(code)] = (code, mean)
        self.known.add(id(code)) if mean < BRIEF_NS else self.known.discard(id(code))
        if len(expected) > MAX_KNOWN:
            oldest = list(expected)[1]  # what is never brief stands first
            self.known.discard(oldest)
            expected.pop(oldest, None)


def code_of(f: Any) -> Any:
    """What all calls of a function have in common and nobody makes anew: its code, or itself; None if unknown.

    A function around another one, by `functools.wraps`, is as long as that.
    """
    kind = type(f)
    if kind is FunctionType:
        for _ in range(_LAYERS):
            inner = f.__dict__.get("__wrapped__") if f.__closure__ is not None else None
            if type(inner) is not FunctionType:
                break
            f = inner
        return f.__code__
    if kind is MethodType:
        return code_of(f.__func__)
    if kind is BuiltinFunctionType:
        owner = f.__self__
        if owner is None or type(owner) is ModuleType:
            return f
        of = owner if type in type(owner).__mro__ else type(owner)
        return next((found for base in of.__mro__ if (found := base.__dict__.get(f.__name__)) is not None), None)
    if functools.partial in kind.__mro__:
        return code_of(f.func)
    if type in kind.__mro__:  # a class
        return f
    return None if kind in _OPAQUE else kind


_module_of = getattr(sys, "_getframemodulename", None)
"""What looks at a frame without making an error where there is none; from Python 3.12 on. The error takes 0.2 µs."""


class Stack(Protocol):
    """What is remembered of a thread's stack: `frames`, a number of frames at which its bottom is, or near which."""

    frames: int


def is_ordinary_here(stack: Stack) -> bool:
    """Whether a body that this thread runs now does what it would do on any other: shallow, and nobody traces it."""
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return False
    if _module_of is not None:
        return _module_of(DEEP) is None
    frames = stack.frames
    try:
        frame = sys._getframe(frames).f_back
    except ValueError:  # it is less deep than it was, or it is not yet known how deep
        stack.frames = frames // 2
        return True
    while frame is not None:
        frames += 1
        if frames == DEEP:
            return False
        frame = frame.f_back
    if frames - stack.frames > FEW or not stack.frames:
        stack.frames = frames
    return True
