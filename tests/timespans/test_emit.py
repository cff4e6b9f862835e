"""spec/timespans.md §2: emitting, and the hooks of a context."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from otel_timespan import timespans as T
from otel_timespan.timespans import emit, profiler


def context(sink: Any, profile: Any = False) -> SimpleNamespace:
    """A context that is nothing but its two hooks."""
    return SimpleNamespace(log_sink=sink, profile=profile)


def test_section_2_a_context_without_hooks_logs_nothing() -> None:
    """The sink is a NoOpLog, nothing is profiled, there is no log."""

    class Bare:
        pass

    bare = Bare()
    assert T.log_sink(bare) == T.NoOpLog()
    assert T.profile(bare, 1, 2, 3) is False  # type: ignore[arg-type]
    assert T.timespan_start(bare, "c", 1) is None and T.timespan_finish(bare, "c", 1) is None
    assert T.get_logs(bare) == T.get_logs(T.NoOpLog())


def test_section_2_nobody_is_asked_to_profile_when_logging_is_off() -> None:
    """With a NoOpLog a profile hook that raises is never called."""

    def hook(*_: object) -> bool:
        raise AssertionError("asked")

    off = context(T.NoOpLog(), hook)
    T.timespan_start(off, "c", 1)
    T.timespan_finish(off, "c", 1)


def test_section_2_registered_hooks_win() -> None:
    """A type may register its hooks instead of having attributes."""

    class Mine:
        events: list[T.Event] = []  # noqa: RUF012

    T.log_sink.register(Mine, lambda ctx: ctx.events)
    T.timespan_start(Mine(), "c", 1)
    assert [e.phase for e in Mine.events] == ["start"]


def test_section_2_span_finishes_when_the_block_raises() -> None:
    """Both halves are there, and the finish has the timeline that the block set."""
    events: list[T.Event] = []
    with pytest.raises(KeyError), T.span(context(events), "c", 1, "before") as span:
        span.timeline = "after"
        raise KeyError
    assert [(e.phase, e.timeline) for e in events] == [("start", "before"), ("finish", "after")]
    assert events[0].timestamp <= events[1].timestamp


def test_section_2_halves_may_come_from_different_threads() -> None:
    """A span that begins here and ends there is one span."""
    log = T.LocalEventLog()
    T.get_logs(log)
    T.timespan_start(context(log), "c", "two threads")
    thread = threading.Thread(target=T.timespan_finish, args=(context(log), "c", "two threads"))
    thread.start()
    thread.join()
    assert [s.id for s in T.get_logs(log)] == ["two threads"]


def test_section_2_a_profiled_span_has_the_samples_of_its_threads() -> None:
    """Samples of the registered thread only, and the registration is gone afterwards."""
    events: list[T.Event] = []
    ctx = context(events, True)
    T.timespan_start(ctx, "c", "profiled")
    me = threading.get_ident()
    T.prof_task_put("profiled", me)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    deadline = threading.Event()
    while not any(s[0] == me for s in profiler._samples):
        assert not deadline.wait(0.001)
    T.timespan_finish(ctx, "c", "profiled")
    done.set()
    other.join()
    samples = events[1].profiler_samples
    assert samples and {s[0] for s in samples.samples} == {me}
    assert not events[0].profiler_samples
    assert "profiled" not in emit._tasks
    assert profiler._open == 0 and not profiler._samples


def test_section_13_registrations_without_profiling_do_not_leak() -> None:
    """A thread that was registered for a span that is not profiled is forgotten, too."""
    ctx = context([])
    T.timespan_start(ctx, "c", "unprofiled")
    T.prof_task_put("unprofiled")
    T.timespan_finish(ctx, "c", "unprofiled")
    assert "unprofiled" not in emit._tasks


def test_section_13_overlapping_profiles_do_not_share_a_past() -> None:
    """A span that begins while another is profiled has no samples from before its start."""
    profiler.begin("outer")
    while not profiler._samples:
        threading.Event().wait(0.001)
    profiler.begin("inner")
    started = profiler._begun["inner"]
    inner = profiler.end(None, "inner")
    assert all(s[2] >= started for s in inner.samples)
    assert profiler.end(None, "outer")
