"""Emitting events: `timespan_start`, `timespan_finish`, `span`, and the hooks of a context.

Any object can be a context. What its sink is and whether a span is profiled is asked of two hooks,
`log_sink(ctx)` and `profile(ctx, category, id, timeline)`: register your type with them, or give it the
attributes `log_sink` and `profile`. The cost when disabled is one look at the sink's type.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .. import forks
from . import profiler, scheduler
from .model import NO_GC, NO_SAMPLES, Event, ProfilerResult
from .recorder import Recorder
from .sink import NO_LOG, NoOpLog, log_sink, write_event

__all__ = [
    "OpenSpan",
    "prof_task_put",
    "profile",
    "span",
    "timespan_finish",
    "timespan_start",
]

_LOOKUP: Any = object()


@functools.singledispatch
def profile(ctx: Any, category: str, id: Any, timeline: Any) -> bool:
    """Whether this span is to be profiled: the attribute `profile` (a bool or a callable), else False."""
    wanted = getattr(ctx, "profile", False)
    return bool(wanted(category, id, timeline)) if callable(wanted) else bool(wanted)


def timespan_start(ctx: Any, category: str, id: Any, timeline: Any = None) -> None:
    """Say that the span (`category`, `id`) begins now. Returns nothing; thread-safe.

    Nothing is built and `profile` is not asked when the sink is a `NoOpLog`.
    """
    sink = _sink_of(ctx)
    if type(sink) is NoOpLog:
        return
    if profile(ctx, category, id, timeline):
        profiler.begin((category, id))
    _emit(sink, "start", category, id, timeline, NO_SAMPLES)


def timespan_finish(ctx: Any, category: str, id: Any, timeline: Any = None, *, tasks: Any = _LOOKUP) -> None:
    """Say that the span (`category`, `id`) ends now; the same category and id as at its start.

    `tasks`: threads (idents) whose profiler samples belong to the span, None for all; by default those
    registered with `prof_task_put(id, thread)`, which this call forgets.
    """
    sink = _sink_of(ctx)
    if type(sink) is NoOpLog:
        return
    samples = NO_SAMPLES
    registered = _take_tasks(id) if _tasks else None
    if profile(ctx, category, id, timeline):
        samples = profiler.end(registered if tasks is _LOOKUP else tasks, (category, id))
    _emit(sink, "finish", category, id, timeline, samples)


_sink_hooks = log_sink.registry


def _sink_of(ctx: Any) -> Any:
    """`log_sink(ctx)`, without the dispatch (0.2 µs) while nobody has registered a hook."""
    if len(_sink_hooks) > 1:
        return log_sink(ctx)
    sink = getattr(ctx, "log_sink", None)
    return NO_LOG if sink is None else sink


class OpenSpan:
    """What `with span(...)` gives: set `timeline` to change what the finish event carries."""

    __slots__ = ("timeline",)

    def __init__(self, timeline: Any) -> None:
        self.timeline = timeline


@contextmanager
def span(ctx: Any, category: str, id: Any, timeline: Any = None) -> Iterator[OpenSpan]:
    """A timespan around a block. The finish is emitted when the block raises, too."""
    open_span = OpenSpan(timeline)
    timespan_start(ctx, category, id, timeline)
    try:
        yield open_span
    finally:
        timespan_finish(ctx, category, id, open_span.timeline)


def prof_task_put(id: Any, task: int | None = None) -> None:
    """Register a thread (by default this one) as doing the work of the span with this `id`.

    Forgotten when the span finishes; of spans that never do, the oldest beyond 10,000.
    """
    with _tasks_lock:
        if len(_tasks) >= _MAX_TASKS:
            _tasks.pop(next(iter(_tasks)))
        _tasks.setdefault(id, set()).add(task or threading.get_ident())


def _take_tasks(id: Any) -> Iterable[int] | None:
    with _tasks_lock:
        return _tasks.pop(id, None)


_MAX_TASKS = 10_000
_tasks: dict[Any, set[int]] = {}
_tasks_lock = forks.rlock()


@forks.in_child("_tasks")
def _in_child() -> None:
    _tasks.clear()


def _emit(sink: Any, phase: str, category: str, id: Any, timeline: Any, samples: ProfilerResult) -> None:
    recorder = getattr(sink, "recorder", None)
    if not isinstance(recorder, Recorder):
        # Nothing between the emitter and a plain sink: its errors are the emitter's.
        now = time.monotonic_ns()
        write_event(sink, Event(phase, category, id, timeline, now, NO_GC, samples, scheduler.this_worker()))
        return
    taken = recorder.sample()
    recorder.event(
        Event(phase, category, id, timeline, time.monotonic_ns(), NO_GC, samples, scheduler.this_worker(), taken)
    )
