"""spec/timespans.md §1 (model), §2 (emitting) and §3 (matching), with rulings 20 and 21."""

from __future__ import annotations

import dataclasses
import gc
import io
import itertools
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import otel_timespan as ts
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import BoomError, Ctx, finish, pair, poll, spin, start, streams

X = T.EventId(thunk_id=1)


class TestEvents:
    """§1.1 to §1.4."""

    def test_1_1_fields_by_name_and_position(self) -> None:
        """Event(phase, category, id, timeline, timestamp, gc_num, profiler_samples)."""
        event = T.Event("start", "compute", X, "a", 10, T.GCNum(allocd=3), T.ProfilerResult())
        assert (event.phase, event.category, event.id, event.timeline, event.timestamp) == (
            "start",
            "compute",
            X,
            "a",
            10,
        )
        assert event.gc_num.allocd == 3
        assert not event.profiler_samples.samples

    @pytest.mark.parametrize("record", [start("c", X), T.GCNum(), T.GCDiff(), T.ProfilerResult(), X])
    def test_1_records_are_frozen(self, record: Any) -> None:
        """The records are frozen."""
        name = (
            "phase"
            if isinstance(record, T.Event)
            else "thunk_id"
            if record is X
            else dataclasses.fields(record)[0].name
        )
        with pytest.raises((AttributeError, TypeError)):
            setattr(record, name, 5)

    def test_1_1_event_id_is_a_record_hashable_by_value(self) -> None:
        """`id.thunk_id`, `"thunk_id" in id`; equal fields make equal ids, in any order."""
        a, b = T.EventId(thunk_id=1, worker=2), T.EventId(worker=2, thunk_id=1)
        assert a == b
        assert hash(a) == hash(b)
        assert a != T.EventId(thunk_id=1, worker=3)
        assert a != T.EventId(thunk_id=1)
        assert a.thunk_id == a["thunk_id"] == 1
        assert "thunk_id" in a
        assert "nothing" not in a
        with pytest.raises(AttributeError):
            _ = a.nothing

    @pytest.mark.parametrize("id", [5, "s", (1, "a"), None, 2.5, frozenset({1}), X])
    def test_1_1_any_hashable_id(self, id: Any) -> None:
        """The id is any hashable value."""
        (span,) = T.build_timespans(pair("c", id)).completed
        assert span.id == id

    def test_1_2_make_timespan(self) -> None:
        """The timeline is the finish's."""
        span = T.make_timespan(start("c", X, 10, "a"), finish("c", X, 25, "b"))
        assert (span.start, span.finish, span.timeline, span.category, span.id) == (10, 25, "b", "c", X)

    @pytest.mark.parametrize("other", [finish("c", 2, 25), finish("d", X, 25)])
    def test_1_2_other_key_is_a_programming_error(self, other: T.Event) -> None:
        """Pairing two events of different category or id raises."""
        with pytest.raises(AssertionError):
            T.make_timespan(start("c", X, 10), other)

    def test_1_3_gc_diff(self) -> None:
        """Start 100, finish 180 → 80."""
        span = T.make_timespan(start("c", X, gc_num=T.GCNum(allocd=100)), finish("c", X, gc_num=T.GCNum(allocd=180)))
        assert span.gc_diff.allocd == 80

    def test_1_3_every_field_is_differenced_and_summed(self) -> None:
        """Difference and sum are field-wise over all nine counters."""
        names = [f.name for f in dataclasses.fields(T.GCNum)]
        assert set(names) == {"allocd", "malloc", "realloc", "poolalloc", "bigalloc", "freecall", "total_time", "pause",
                              "full_sweep"}  # fmt: skip
        low = T.GCNum(**{name: i for i, name in enumerate(names)})
        high = T.GCNum(**{name: 3 * i + 1 for i, name in enumerate(names)})
        span = T.make_timespan(start("c", X, gc_num=low), finish("c", X, gc_num=high))
        assert [getattr(span.gc_diff, name) for name in names] == [2 * i + 1 for i in range(9)]
        _, total, _ = T.aggregate_events([span, span, span])
        assert [getattr(total, name) for name in names] == [3 * (2 * i + 1) for i in range(9)]

    def test_1_4_samples_are_merged_start_first(self) -> None:
        """Samples concatenate, lineinfo unites, tasks are unique."""
        a = T.ProfilerResult((1, 2), {1: "x"}, (7, 8))
        b = T.ProfilerResult((2, 3), {2: "y"}, (8, 9))
        span = T.make_timespan(start("c", X, profiler_samples=a), finish("c", X, profiler_samples=b))
        assert tuple(span.profiler_samples.samples) == (1, 2, 2, 3)
        assert dict(span.profiler_samples.lineinfo) == {1: "x", 2: "y"}
        assert sorted(span.profiler_samples.tasks) == [7, 8, 9]

    def test_1_3_allocd_with_tracemalloc(self) -> None:
        """`allocd` is tracemalloc's current bytes while it traces."""
        tracemalloc.start()
        try:
            log, ctx = (ml := T.MultiEventLog()), Ctx(ml)
            log["gc"] = E.GCStats()
            with T.span(ctx, "c", X):
                keep = bytearray(3_000_000)
            ((before, rise),) = [T.get_logs(log)[1]["gc"]]
        finally:
            tracemalloc.stop()
        assert before is None
        assert 3_000_000 <= rise < 3_300_000
        assert len(keep) == 3_000_000


class TestEmitting:
    """§2."""

    def test_2_a_context_without_hooks(self) -> None:
        """No hooks: NoOpLog, never profiled, start and finish do nothing, no log."""
        ctx = object()
        assert isinstance(T.log_sink(ctx), T.NoOpLog)
        assert T.log_sink(ctx) == T.NoOpLog()
        assert T.profile(ctx, 1, 2, 3) is False  # type: ignore[arg-type]
        assert T.timespan_start(ctx, "c", 1, None) is None  # type: ignore[func-returns-value]
        assert T.timespan_finish(ctx, "c", 1, None) is None  # type: ignore[func-returns-value]
        assert T.get_logs(ctx) == T.get_logs(T.NoOpLog())
        assert T.get_logs(ctx) is None

    @pytest.mark.parametrize("ctx", [5, "text", None, (), [], {}, int])
    def test_2_contexts_of_any_type(self, ctx: Any) -> None:
        """Anything may be a context."""
        assert isinstance(T.log_sink(ctx), T.NoOpLog)
        assert T.profile(ctx, "c", 1, None) is False
        T.timespan_start(ctx, "c", 1, None)
        T.timespan_finish(ctx, "c", 1, None)

    def test_2_noop_never_asks_profile(self) -> None:
        """With a NoOpLog the hook `profile` is never called."""

        def profile(*args: Any) -> bool:
            raise BoomError

        ctx = Ctx(T.NoOpLog(), profile)
        T.timespan_start(ctx, "compute", 1, None)
        T.timespan_finish(ctx, "compute", 1, None)
        with T.span(ctx, "compute", 1, None):
            pass

    def test_2_attributes_are_the_fallback(self) -> None:
        """The attributes `log_sink` and `profile` of a context are used."""
        sink: list[T.Event] = []
        assert T.log_sink(Ctx(sink)) is sink
        assert T.profile(Ctx(sink, True), "compute", 1, None) is True
        asked: list[Any] = []
        ctx = Ctx(sink, lambda *args: bool(asked.append(args)))
        T.timespan_start(ctx, "cat", X, "tl")
        assert asked[0][-3:] == ("cat", X, "tl")
        T.timespan_finish(ctx, "cat", X, "tl")
        assert [e.phase for e in sink] == ["start", "finish"]

    def test_2_registered_hooks_win(self) -> None:
        """`log_sink.register` and `profile.register` serve foreign context types."""
        sink: list[T.Event] = []

        class Foreign:
            pass

        T.log_sink.register(Foreign, lambda ctx: sink)
        T.profile.register(Foreign, lambda ctx, category, id, timeline: False)
        with T.span(Foreign(), "c", X, "a"):
            pass
        assert [(e.phase, e.timeline) for e in sink] == [("start", "a"), ("finish", "a")]

    def test_2_events_carry_monotonic_time_and_empty_samples(self) -> None:
        """Start and finish have ascending monotonic timestamps; a start never has samples."""
        import time

        sink: list[T.Event] = []
        before = time.monotonic_ns()
        with T.span(Ctx(sink, True), "c", X):
            pass
        a, b = sink
        assert before <= a.timestamp <= b.timestamp <= time.monotonic_ns()
        assert not a.profiler_samples.samples

    def test_2_span_lets_the_timeline_change(self) -> None:
        """`with span(...) as s: s.timeline = ...` sets the finish's timeline."""
        sink: list[T.Event] = []
        with T.span(Ctx(sink), "c", X, "a") as s:
            s.timeline = "b"
        assert [e.timeline for e in sink] == ["a", "b"]

    def test_2_span_finishes_when_the_block_raises(self) -> None:
        """The block's exception passes through, and the finish is there."""
        sink: list[T.Event] = []
        with pytest.raises(BoomError), T.span(Ctx(sink), "c", X):
            raise BoomError
        assert [e.phase for e in sink] == ["start", "finish"]

    def test_2_profiled_span_has_samples_of_its_task(self) -> None:
        """While profiled, the finish carries samples; the start none; other threads' are filtered by `tasks`."""
        sink: list[T.Event] = []
        ctx = Ctx(sink, True)
        ids = itertools.count()

        def sampled() -> bool:
            sink.clear()
            n = next(ids)
            T.prof_task_put(("own", n))
            for name in ("all", "own", "foreign"):
                T.timespan_start(ctx, "compute", (name, n), None)
            spin(0.1)
            T.timespan_finish(ctx, "compute", ("foreign", n), None, tasks=[-1])
            T.timespan_finish(ctx, "compute", ("own", n), None)
            T.timespan_finish(ctx, "compute", ("all", n), None, tasks=None)
            return bool(sink[5].profiler_samples.samples)

        poll(sampled, "a sample")
        *starts, foreign, own, everything = sink
        assert not any(e.profiler_samples.samples for e in starts)
        assert not foreign.profiler_samples.samples
        assert own.profiler_samples.samples
        assert everything.profiler_samples.samples

    def test_1_4_lineinfo_holds_the_frames(self) -> None:
        """ProfilerResult.lineinfo maps what the samples hold to frames: with samples it is not empty."""
        sink: list[T.Event] = []

        def sampled() -> bool:
            sink.clear()
            with T.span(Ctx(sink, True), "compute", X):
                spin(0.1)
            return bool(sink[1].profiler_samples.samples)

        poll(sampled, "a sample")
        assert "spin" in str(dict(sink[1].profiler_samples.lineinfo))

    def test_2_profiling_stops(self) -> None:
        """The sampler's count goes back to 0: afterwards an unprofiled span has no samples."""
        sink: list[T.Event] = []
        with T.span(Ctx(sink, True), "c", 1):
            spin(0.02)
        with T.span(Ctx(sink, False), "c", 2):
            spin(0.02)
        assert not sink[-1].profiler_samples.samples

    def test_2_profile_hook_that_raises(self) -> None:
        """A `profile` hook that raises is isolated or loud: the block runs, or the error is the hook's own."""
        sink: list[T.Event] = []

        def profile(*args: Any) -> bool:
            raise BoomError

        done = False
        try:
            with T.span(Ctx(sink, profile), "c", 1):
                done = True
        except BoomError:
            return
        assert done


class TestMatching:
    """§3."""

    def test_3_finish_first(self) -> None:
        """[finish@5, start@2] → one span (2, 5)."""
        builder = T.build_timespans([finish("c", X, 5), start("c", X, 2)])
        (span,) = builder.completed
        assert (span.start, span.finish) == (2, 5)
        assert not builder.pending

    def test_3_completion_order_and_extremes(self) -> None:
        """a@1 b@2 b@3 a@9 → b, a; start_time 1, finish_time 9."""
        builder = T.build_timespans([start("c", "a", 1), start("c", "b", 2), finish("c", "b", 3), finish("c", "a", 9)])
        assert [span.id for span in builder.completed] == ["b", "a"]
        assert (builder.start_time, builder.finish_time) == (1, 9)

    def test_3_nothing_yet(self) -> None:
        """Without spans: times 0, nothing completed, `pending` falsy and sized 0."""
        builder = T.SpanBuilder()
        assert (builder.start_time, builder.finish_time, list(builder.completed)) == (0, 0, [])
        assert not builder.pending
        assert len(builder.pending) == 0

    def test_3_unmatched_halves_make_no_span(self) -> None:
        """Unmatched halves stay pending and count in no extreme."""
        builder = T.build_timespans([start("c", 1, 1), finish("c", 2, 50), *pair("c", 3, 10, 20)])
        assert len(builder.completed) == 1
        assert len(builder.pending) == 2
        assert bool(builder.pending)
        assert (builder.start_time, builder.finish_time) == (10, 20)

    def test_3_second_half_replaces_the_first(self) -> None:
        """A second start (or finish) with one key replaces the first."""
        builder = T.build_timespans([start("c", X, 1), start("c", X, 4), finish("c", X, 9)])
        assert [(s.start, s.finish) for s in builder.completed] == [(4, 9)]
        assert not builder.pending
        builder = T.build_timespans([finish("c", X, 7, "old"), finish("c", X, 9, "new"), start("c", X, 1)])
        assert [(s.start, s.finish, s.timeline) for s in builder.completed] == [(1, 9, "new")]

    def test_3_key_is_category_and_id(self) -> None:
        """Equal ids of different categories do not meet."""
        assert len(T.build_timespans([start("a", X), finish("b", X)]).pending) == 2

    def test_3_same_key_again(self) -> None:
        """A key may be used again after its span is complete."""
        builder = T.build_timespans([*pair("c", X, 1, 2), *pair("c", X, 3, 5)])
        assert [(s.start, s.finish) for s in builder.completed] == [(1, 2), (3, 5)]

    def test_3_feed_one_by_one_equals_fold(self) -> None:
        """`feed` and `build_timespans` agree."""
        events = [start("c", 1, 1), finish("c", 2, 2), finish("c", 1, 3), start("c", 2, 0)]
        builder = T.SpanBuilder()
        for event in events:
            builder.feed(event)
        assert list(builder.completed) == list(T.build_timespans(events).completed)

    @given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=12, unique=True), st.data())
    def test_3_order_does_not_matter(self, times: list[tuple[int, int]], data: st.DataObject) -> None:
        """With distinct keys, every order of the halves gives the same spans, extremes and nothing pending."""
        events = [half for i, (a, d) in enumerate(times) for half in pair("c", i, a, a + d)]
        shuffled = data.draw(st.permutations(events))
        one, two = T.build_timespans(events), T.build_timespans(shuffled)
        assert sorted((s.id, s.start, s.finish) for s in one.completed) == sorted(
            (s.id, s.start, s.finish) for s in two.completed
        )
        assert (one.start_time, one.finish_time) == (two.start_time, two.finish_time)
        assert not two.pending

    def test_3_aggregate(self) -> None:
        """3 ns and 4 ns → 7 ns; samples merge."""
        spans = T.build_timespans([*pair("c", 1, 0, 3), *pair("c", 2, 10, 14)]).completed
        total, diff, samples = T.aggregate_events(spans)
        assert total == 7
        assert diff == T.GCDiff()
        assert not samples.samples
        assert T.aggregate_events([])[0] == 0

    def test_3_summarize(self) -> None:
        """One line "time, bytes, GC time, allocations", printed to `io` too."""
        spans = T.build_timespans(
            [
                start("c", 1, 0),
                finish("c", 1, 2_500_000_000, gc_num=T.GCNum(allocd=2048, pause=1, total_time=10, malloc=3)),
            ]
        ).completed
        out = io.StringIO()
        text = T.summarize_events(spans, out)
        assert out.getvalue().strip() == text.strip()
        assert len(text.strip().splitlines()) == 1
        assert "2.5" in text
        assert "2048" in text or "2 KiB" in text

    def test_3_summarize_shows_the_profile(self) -> None:
        """With samples there is more than the one line."""
        sink: list[T.Event] = []

        def sampled() -> bool:
            sink.clear()
            with T.span(Ctx(sink, True), "c", 1):
                spin(0.1)
            return bool(sink[1].profiler_samples.samples)

        poll(sampled, "a sample")
        assert len(T.summarize_events(T.build_timespans(sink).completed).strip().splitlines()) > 1


def test_1_5_order_in_a_worker_is_the_write_order() -> None:
    """Timestamps may be out of order; a stream keeps the order in which one thread wrote."""
    events = [start("c", i, t) for i, t in enumerate([5, 3, 9, 1])]
    assert [c.timestamp for c in streams(events, core=E.CoreMetrics())["core"]] == [5, 3, 9, 1]


def test_2_no_garbage_is_kept_by_prof_task_put() -> None:
    """§2 defect: registrations of tasks are removed at the finish, so ids are not kept alive."""

    class Id:
        def __hash__(self) -> int:
            return 1

    import weakref

    id = Id()
    ref = weakref.ref(id)
    ctx = Ctx(T.LocalEventLog(), False)
    T.prof_task_put(id)
    T.timespan_start(ctx, "compute", id, None)
    T.timespan_finish(ctx, "compute", id, None)
    ts.LocalEventLog().get_logs(raw=True)
    del id
    poll(lambda: gc.collect() >= 0 and ref() is None, "the end of the registration")
