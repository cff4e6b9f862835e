"""spec/timespans.md §1 and §3: events, timespans, matching, sums."""

from __future__ import annotations

import io
import pickle

import pytest

from otel_timespan import timespans as T


def event(phase: str, id: object, t: int, timeline: object = None, **more: object) -> T.Event:
    """An event of the category "c"."""
    return T.Event(phase, "c", id, timeline, t, **more)  # type: ignore[arg-type]


def test_section_1_a_timespan_has_the_finish_s_timeline() -> None:
    """Start at 10 with "a", finish at 25 with "b": one timespan from 10 to 25 with "b"."""
    span = T.make_timespan(event("start", 1, 10, "a"), event("finish", 1, 25, "b"))
    assert (span.start, span.finish, span.timeline) == (10, 25, "b")


def test_section_1_halves_of_different_spans_do_not_pair() -> None:
    """Joining two ids is a programming error."""
    with pytest.raises(AssertionError):
        T.make_timespan(event("start", 1, 10), event("finish", 2, 25))


def test_section_1_gc_counters_are_subtracted() -> None:
    """100 allocated before, 180 after: a difference of 80."""
    start = event("start", 1, 0, gc_num=T.GCNum(allocd=100))
    finish = event("finish", 1, 1, gc_num=T.GCNum(allocd=180))
    assert T.make_timespan(start, finish).gc_diff.allocd == 80


def test_section_1_profiler_samples_merge_with_the_start_s_first() -> None:
    """Samples are concatenated, threads are named once."""
    start = event("start", 1, 0, profiler_samples=T.ProfilerResult((1,), {"a": 1}, (7,)))
    finish = event("finish", 1, 1, profiler_samples=T.ProfilerResult((2,), {"b": 2}, (7, 8)))
    merged = T.make_timespan(start, finish).profiler_samples
    assert merged == T.ProfilerResult((1, 2), {"a": 1, "b": 2}, (7, 8))


def test_event_ids_are_values() -> None:
    """Ids are equal by fields, in whatever order, hash alike, and survive pickling."""
    id = T.EventId(uid=1, thunk_id=2)
    assert id == T.EventId(thunk_id=2, uid=1)
    assert hash(id) == hash(T.EventId(thunk_id=2, uid=1))
    assert id != T.EventId(uid=2, thunk_id=1)
    assert pickle.loads(pickle.dumps(id)) == id
    assert id.thunk_id == id["thunk_id"] == 2 and "thunk_id" in id and dict(id) == {"uid": 1, "thunk_id": 2}


def test_section_3_a_finish_may_come_first() -> None:
    """Finish at 5, then start at 2: one span (2, 5)."""
    builder = T.build_timespans([event("finish", "x", 5), event("start", "x", 2)])
    assert [(s.start, s.finish) for s in builder.completed] == [(2, 5)]
    assert not builder.pending


def test_section_3_spans_complete_in_the_order_of_their_ends() -> None:
    """Nested spans: b completes before a; the overall times are the extremes."""
    halves = [event("start", "a", 1), event("start", "b", 2), event("finish", "b", 3), event("finish", "a", 9)]
    builder = T.build_timespans(halves)
    assert [s.id for s in builder.completed] == ["b", "a"]
    assert (builder.start_time, builder.finish_time) == (1, 9)


def test_section_3_a_second_start_replaces_the_first() -> None:
    """The span begins at the later start; nothing stays behind."""
    builder = T.build_timespans([event("start", "a", 1), event("start", "a", 4), event("finish", "a", 6)])
    assert [(s.start, s.finish) for s in builder.completed] == [(4, 6)]
    assert len(builder.pending) == 0


def test_section_3_spans_add_up() -> None:
    """Spans of 3 and 4 ns are 7 ns together, and the summary is one line."""
    halves = [event("start", 1, 0), event("finish", 1, 3), event("start", 2, 10), event("finish", 2, 14)]
    spans = T.build_timespans(halves).completed
    assert T.aggregate_events(spans)[0] == 7
    text = io.StringIO()
    assert T.summarize_events(spans, text) == text.getvalue().rstrip("\n")
    assert "seconds" in text.getvalue() and text.getvalue().count("\n") == 1
