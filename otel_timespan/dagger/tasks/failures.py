"""A failure that nobody asked for: logged once, when the last handle that could tell of it goes.

The problem: `spawn` without `fetch` hides errors. So a failure notes whether somebody was told of it, by
a fetch of its task or of one that depends on it, and a finalizer reports those that nobody was told of. The
finalizer only appends; the janitor's thread logs. What is still there when the program ends is logged then.

See docs/users.md.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from ... import forks
from ...errors import (
    DTaskCancelledError,
    DTaskFailedError,
    TaskCancelled,
    TimespanError,
    unwrap_exception,
)
from ..service import janitor
from ..service.apart import empty_later
from ..service.guards import guard

if TYPE_CHECKING:
    from .dtask import TaskSummary

__all__ = ["Failure", "again", "flush", "forget_frames", "forget_handled"]

LOGGER = logging.getLogger("otel_timespan")

PER_MINUTE = 10
"""How many failures of one function with one type of error are logged a minute; the others are counted."""

MINUTE_S = 60.0
MAX_KINDS = 1000

_any = False
"""Whether there ever was a failure that somebody should be told of."""


class Failure:
    """How a task failed: `root` is the task that really raised, `ex` what it raised; shared by its dependents.

    `direct` errors, raised as they are, are those of a scheduler that went down: nobody's task failed.
    `retrieved`: somebody was told, or need not be: that a task was cancelled is known to who cancelled it.
    """

    __slots__ = ("__weakref__", "direct", "ex", "hint", "retrieved", "root")

    def __init__(self, root: TaskSummary, ex: BaseException, direct: bool = False, hint: str = "") -> None:
        global _any
        self.root, self.ex, self.direct, self.hint = root, ex, direct, hint
        self.retrieved = direct or isinstance(unwrap_exception(ex), TaskCancelled)
        if not self.retrieved:
            _any = True
            janitor.start()

    def error_for(self, task: TaskSummary) -> BaseException:
        """The exception that a fetch of `task` raises; a new one each time, as several may fetch."""
        if self.direct:
            return again(self.ex)
        cancelled = isinstance(unwrap_exception(self.ex), TaskCancelled)
        error = (DTaskCancelledError if cancelled else DTaskFailedError)(task, self.root, self.ex)
        if self.hint:
            error.hint = self.hint
        return error

    def __del__(self) -> None:
        if not self.retrieved:
            janitor.ask(functools.partial(_log, self.root, self.ex))


def again(error: BaseException) -> BaseException:
    """An error of ours that several raise, anew: each has a traceback of its own, and keeps no others' frames."""
    if not isinstance(error, TimespanError):
        return error
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made


class _Flood:
    """Lets a few reports of a kind through a minute and counts the others: a thousand tasks may fail alike."""

    def __init__(self) -> None:
        self._lock = guard()
        self._kinds: dict[Any, list[float]] = {}  # [begin of its minute, reports in it, reports held back]

    def admits(self, kind: Any) -> int | None:
        """None to hold a report of this kind back; else how many were held back since the last one."""
        now = time.monotonic()
        with self._lock:
            if len(self._kinds) >= MAX_KINDS:
                self._kinds.clear()
            entry = self._kinds.setdefault(kind, [now, 0, 0])
            if now - entry[0] > MINUTE_S:
                entry[:2] = [now, 0]
            if entry[1] >= PER_MINUTE:
                entry[2] += 1
                return None
            entry[1] += 1
            held, entry[2] = int(entry[2]), 0
            return held

    def held_back(self) -> list[tuple[Any, int]]:
        """What was held back and not told of yet: (kind, count); from now on told of."""
        with self._lock:
            held = [(kind, int(entry[2])) for kind, entry in self._kinds.items() if entry[2]]
            for entry in self._kinds.values():
                entry[2] = 0
        return held


_flood = _Flood()


def _log(root: TaskSummary, ex: BaseException) -> None:
    held = _flood.admits((root.function, type(ex).__name__))
    if held is None:
        return
    text = "a task failed and nobody fetched it: %s" + (f" (and {held} more like it before)" if held else "")
    LOGGER.error(text, root, exc_info=(type(ex), ex, ex.__traceback__))


def flush() -> None:
    """The program ends: log the failures whose handles are still there, and what was held back. Once."""
    global _any
    found = [thing for thing in gc.get_objects() if type(thing) is Failure and not thing.retrieved] if _any else []
    _any = False
    for failure in sorted(found, key=lambda one: one.root.id):
        failure.retrieved = True
        with contextlib.suppress(Exception):
            _log(failure.root, failure.ex)
    for (function, error), count in _flood.held_back():
        LOGGER.error("%d more tasks of %s failed with %s, and nobody fetched them", count, function, error)


@forks.in_child("_flood")
def _in_child() -> None:
    """What failed before is the parent's to report."""
    global _any, _flood
    _any, _flood = False, _Flood()


def forget_handled(error: BaseException) -> None:
    """Cut off, in the chain of a body's error, what this thread was just handling when it ran the body.

    The code that waits in an `except` block has no part in the body's failure, and that must not keep its frames.
    """
    handled = sys.exc_info()[1]
    if handled is None:
        return
    left, seen = [error], {id(handled)}
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.__context__ is handled:
            one.__context__ = None
        left += [chained for chained in (one.__context__, one.__cause__) if chained is not None]


_HERE = os.path.dirname(os.path.dirname(__file__))


def forget_frames(error: BaseException) -> None:
    """Empty our own frames in the traceback of a body's error: they hold the task, and it the error.

    Without that cycle a failure goes with its last handle, and not at the next garbage collection.
    """
    trace = error.__traceback__
    if trace is not None:
        empty_later(trace.tb_frame)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_HERE):
        with contextlib.suppress(RuntimeError):  # it still runs
            trace.tb_frame.clear()
        trace = trace.tb_next
