"""What threads inherit: our own context variables go along into every thread that code inside of a block starts.

Threads do not inherit context variables before Python 3.14. So the modules that have one which should hold in
helper threads too register it with `carry`, and the first that needs it calls `inherit_in_threads`, which wraps
`threading.Thread.start`: a thread started from then on gets these variables (nobody else's) and keeps them. A
thread of ours that is to outlive the block or body that starts it is started with `start_bare`.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from .guards import guard

__all__ = ["carry", "inherit_in_threads", "kept_up", "start_bare", "start_service"]

LOGGER = logging.getLogger("otel_timespan")

_carried: list[ContextVar[Any]] = []
_lock = guard()
_inheriting = False


def carry(var: ContextVar[Any]) -> None:
    """Register a context variable of ours that started threads inherit (its value, unless that is None)."""
    if var not in _carried:
        _carried.append(var)


def inherit_in_threads() -> None:
    """From now on threads inherit the carried context variables from the code that starts them.

    Wraps `threading.Thread.start`, once. A thread that starts where nothing is set is not touched.
    Thread-safe.
    """
    global _inheriting
    with _lock:
        if _inheriting:
            return
        _inheriting = True
        original = threading.Thread.start

        @functools.wraps(original)
        def start(self: threading.Thread) -> None:
            values = [(var, value) for var in _carried if (value := var.get(None)) is not None]
            restore = _lend(self, values) if values else None
            try:
                original(self)
            except BaseException:
                if restore is not None:
                    restore()
                raise

        threading.Thread.start = start  # type: ignore[method-assign]


def _lend(thread: threading.Thread, values: list[tuple[ContextVar[Any], Any]]) -> Callable[[], None]:
    """Have the thread set the variables before it runs. The wrapper goes before the body begins."""
    own_run = thread.__dict__.get("run")

    def restore() -> None:
        if own_run is None:
            thread.__dict__.pop("run", None)
        else:
            thread.__dict__["run"] = own_run

    def run() -> None:
        restore()
        for var, value in values:
            var.set(value)
        values.clear()
        thread.run()

    thread.__dict__["run"] = run
    return restore


def start_service(thread: threading.Thread) -> str | None:
    """`start_bare`, for threads that one can do without: None, or why the system gives none now."""
    try:
        start_bare(thread)
    except (RuntimeError, MemoryError) as error:  # the interpreter is going down, or there are too many
        return f"no thread can be started ({error or type(error).__name__})"
    return None


def kept_up(loop: Callable[[], None]) -> None:
    """The life of a thread of ours: `loop()`, which takes its work from where the next round finds it.

    It should never raise. If it does, whatever it is, that is reported, and the thread goes on with what is left.
    """
    failed = 0
    while True:
        try:
            loop()
            return
        except BaseException:
            LOGGER.exception("a thread of otel_timespan failed, and begins anew (%s)", loop.__module__)
        failed += 1
        time.sleep(min(1.0, 0.001 * 2 ** min(failed, 10)))  # what fails for ever must not take a processor


def start_bare(thread: threading.Thread) -> None:
    """Start a thread that inherits nothing: for those that outlive the block or body that starts them."""
    contextvars.Context().run(thread.start)
