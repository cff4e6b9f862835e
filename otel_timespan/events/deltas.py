"""Consumers of counters: how much a counter of the process rose between start and finish of a span.

Spans overlap, so the numbers are not exclusive: every open span sees the whole process's counter.
"""

from __future__ import annotations
import __future__

import builtins
import functools
import importlib
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

from .. import forks
from ..timespans.locks import contended_acquisitions
from ..timespans.model import Event
from .base import OpenSpans, Sampler

__all__ = ["CompileTimeMetrics", "GCStats", "LockContentionMetrics", "SpanDelta"]

_BYTES_PER_BLOCK = 64
"""What a small Python object takes on average; good enough to compare spans with each other."""


class SpanDelta(Sampler):
    """Base: None at the start, the counter's rise at the finish, None if no start is known."""

    def __init__(self) -> None:
        self._open = OpenSpans()

    def record(self, event: Event, value: Any) -> Any:
        """Remember the counter at the start, per (category, id); the difference at the finish."""
        key = (event.category, event.id)
        if event.phase == "start":
            self._open.remember(key, value)
            return None
        before = self._open.pop(key, None)
        return None if before is None or value is None else self.difference(before, value)

    def record_batch(self, events: list[Event], values: list[Any]) -> list[Any]:
        """The same for many events."""
        opened, finished = self._open, self._open.pop
        record: list[Any] = []
        for event, value in zip(events, values, strict=True):
            key = (event.category, event.id)
            if event.phase == "start":
                opened[key] = value
                record.append(None)
            else:
                before = finished(key, None)
                record.append(None if before is None or value is None else self.difference(before, value))
        opened.forget_oldest()
        return record

    def difference(self, before: Any, after: Any) -> Any:
        """What the stream shows."""
        return after - before

    def init_similar(self) -> Any:
        """A fresh one."""
        return type(self)()


class GCStats(SpanDelta):
    """Net bytes allocated during a span (below 0: more was freed).

    Exact, for Python's own allocations, while `tracemalloc` traces; else an estimate from the number of
    allocated blocks, which takes 20 to 200 µs an event.
    """

    def sample(self) -> int:
        """Bytes allocated now."""
        if tracemalloc.is_tracing():
            return tracemalloc.get_traced_memory()[0]
        return sys.getallocatedblocks() * _BYTES_PER_BLOCK


class LockContentionMetrics(SpanDelta):
    """How often a thread found a `CountingLock` taken during a span."""

    def sample(self) -> int:
        """The process's count."""
        return contended_acquisitions()


class CompileTimeMetrics(SpanDelta):
    """Nanoseconds that the process spent compiling and importing during a span, summed over threads.

    Counted in the builtins `compile` and `__import__` and in `importlib.import_module`, which are
    wrapped from the first event on until this consumer is closed or gone. Imports of modules that are
    there already are not timed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counting = False
        self._stop: Callable[[], Any] | None = None

    def sample(self) -> int:
        """Nanoseconds so far."""
        if not self._counting:
            self._start()
        return _compile_time.total_ns

    def close(self) -> None:
        """Stop counting; the builtins are as they were when the last consumer is closed."""
        if self._stop is not None:
            self._stop()
            self._stop = None
            self._counting = False

    def _start(self) -> None:
        with _compile_time.lock:
            if not self._counting:
                self._counting = True
                _compile_time.begin()
                self._stop = weakref.finalize(self, _compile_time.end)


class _CompileTime:
    """The process's counter; the wrappers are in place while there are users."""

    def __init__(self) -> None:
        self.total_ns = 0
        self.lock = forks.rlock()
        self._users = 0
        self._local = threading.local()
        self._replaced: list[tuple[Any, str, Any, Any]] = []  # (module, name, original, wrapper)

    def begin(self) -> None:
        with self.lock:
            self._users += 1
            if self._users == 1:
                self._replace(builtins, "__import__", self._timed_import)
                self._replace(importlib, "import_module", self._timed_import)
                self._replace(builtins, "compile", self._timed_compile)

    def end(self) -> None:
        with self.lock:
            self._users -= 1
            if self._users == 0:
                while self._replaced:
                    module, name, original, wrapper = self._replaced.pop()
                    if getattr(module, name) is wrapper:  # else somebody wrapped it after us: leave theirs
                        setattr(module, name, original)

    def _replace(self, module: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        original = getattr(module, name)
        wrapper = functools.wraps(original)(wrap(original))
        self._replaced.append((module, name, original, wrapper))
        setattr(module, name, wrapper)

    def _timed_import(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if args and args[0] in sys.modules:
                return original(*args, **kwargs)
            return self._timed(original, args, kwargs)

        return timed

    def _timed_compile(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(
            source: Any, filename: Any, mode: str, flags: int = 0, dont_inherit: bool = False, *rest: Any, **named: Any
        ) -> Any:
            if not dont_inherit:  # `compile` looks at its caller's __future__ flags, and that is us now
                flags |= sys._getframe(1).f_code.co_flags & _FUTURE_FLAGS
            return self._timed(original, (source, filename, mode, flags, True, *rest), named)

        return timed

    def _timed(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if getattr(self._local, "inside", False):  # an import inside an import is in the outer one's time
            return original(*args, **kwargs)
        self._local.inside = True
        start = time.perf_counter_ns()
        try:
            return original(*args, **kwargs)
        finally:
            self._local.inside = False
            with self.lock:
                self.total_ns += time.perf_counter_ns() - start


_FUTURE_FLAGS = 0
for _name in __future__.all_feature_names:
    _FUTURE_FLAGS |= getattr(__future__, _name).compiler_flag

_compile_time = _CompileTime()
