"""Rulings 28 and 31: sinks switched or combined mid-run, and programs without the scheduler."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from opentelemetry.trace import StatusCode

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    Lab,
    check_account,
    check_tree,
    check_waits,
    children,
    one,
    parent,
    sid,
    task_span,
)

Make = Callable[..., Lab]


def double(x: int) -> int:
    """A body."""
    return 2 * x


def held(gate: threading.Event, *_: Any) -> int:
    """A body that waits."""
    assert gate.wait(DEADLINE_S)
    return 1


# ---- switching sinks -------------------------------------------------------------------------------------


def test_14_switching_the_sink_off_mid_run(lab: Lab, gate: threading.Event) -> None:
    """NoOpLog while a task runs: the task's later halves are missing, yet nothing hangs and nothing is unaccounted."""
    started = threading.Event()

    def body() -> int:
        started.set()
        return held(gate)

    task = ts.spawn(body)
    assert started.wait(DEADLINE_S)
    lab.ctx.log_sink = ts.NoOpLog()
    gate.set()
    ts.wait(task)
    for _ in range(10):
        ts.fetch(ts.spawn(double, 1))
    assert lab.log.flush(DEADLINE_S)
    check_account(lab.log.stats())
    lab.log.close()
    stats = lab.log.stats()
    assert stats["pending"] == 0
    spans = list(lab.exporter.get_finished_spans())
    assert len([s for s in spans if s.name == "double"]) == 0
    check_tree(spans)


def test_14_switching_the_sink_on_mid_run(make_lab: Make, gate: threading.Event) -> None:
    """A log that comes in the middle sees whole tasks from then on and does not stumble over the halves before."""
    lab = make_lab(use=False)
    started = threading.Event()

    def body() -> int:
        started.set()
        return held(gate)

    old = ts.spawn(body)
    assert started.wait(DEADLINE_S)
    late = ts.spawn(double, old)
    lab.ctx.log_sink = lab.log
    new = ts.spawn(double, old)
    gate.set()
    ts.waitall([old, late, new])
    spans = lab.spans()
    check_tree(spans)
    check_waits(task_span(spans, new))
    check_account(lab.log.stats())
    assert {p.value for p in lab.points("timespan.task.active")} == {0}
    assert {p.value for p in lab.points("timespan.worker.saturation")} == {0}


def test_14_switching_between_two_logs(make_lab: Make, gate: threading.Event) -> None:
    """From one log to another while tasks run: each is closed cleanly, gauges of both end at 0 or are gone."""
    first, second = make_lab(), make_lab(use=False)
    tasks = [ts.spawn(held, gate) for _ in range(4)]
    tasks += [ts.spawn(double, t) for t in tasks]
    first.ctx.log_sink = second.log
    gate.set()
    ts.waitall(tasks)
    more = ts.spawn(double, 1)
    ts.wait(more)
    spans = second.spans()
    check_waits(task_span(spans, more))
    check_tree(spans)
    assert sum(p.value for p in second.points("timespan.task.active")) == 0
    assert sum(p.value for p in second.points("timespan.worker.saturation")) == 0
    first.log.close()
    check_account(first.log.stats())
    assert first.log.stats()["pending"] == 0
    check_tree(first.exporter.get_finished_spans())


def test_14_tee_with_lists_and_multi(lab: Lab) -> None:
    """TeeLog(ml, log, list): all of them see the same run, and the spans are as with the log alone."""
    ml, kept = ts.MultiEventLog(), []
    ml["core"] = ts.CoreMetrics()
    lab.ctx.log_sink = ts.TeeLog(ml, lab.log, kept)
    with ts.dag("tee"):
        a = ts.spawn(double, 1)
        b = ts.spawn(double, a)
        ts.waitall([a, b])
    spans = lab.spans()
    check_tree(spans)
    check_waits(task_span(spans, b))
    assert parent(task_span(spans, a)) == sid(one(spans, "dag tee"))
    assert len(ts.get_logs(ml)[1]["core"]) == len(kept) > 20
    ml.close()


def test_14_filter_log_around_the_bridge(lab: Lab) -> None:
    """FilterLog that lets everything through, around an OTelLog: the same spans."""
    lab.ctx.log_sink = ts.FilterLog(lambda e: e, lab.log)
    ts.fetch(ts.spawn(double, 1))
    lab.ctx.log_sink = ts.NoOpLog()
    spans = lab.spans()
    assert "double" in {s.name for s in spans}
    check_tree(spans)


# ---- programs without the scheduler ----------------------------------------------------------------------


class Program:
    """A context of a program of its own."""

    def __init__(self, sink: Any) -> None:
        self.log_sink = sink


def test_14_plain_timespans_become_spans(make_lab: Make) -> None:
    """timespan_start/finish without the scheduler: a span by category, nested under the enclosing open one."""
    from otel_timespan import timespans as T

    lab = make_lab(use=False)
    program = Program(lab.log)
    T.timespan_start(program, "outer", 1)
    T.timespan_start(program, "inner", T.EventId(step=1, part="a"), {"secret": 1})
    T.timespan_finish(program, "inner", T.EventId(step=1, part="a"))
    with T.span(program, "inner", 2):
        pass
    T.timespan_finish(program, "outer", 1)
    T.timespan_start(program, "alone", "x")
    T.timespan_finish(program, "alone", "x")
    spans = lab.spans()
    check_tree(spans)
    outer, alone = one(spans, "outer"), one(spans, "alone")
    assert [parent(s) for s in spans if s.name == "inner"] == [sid(outer)] * 2
    assert parent(outer) is parent(alone) is None
    assert outer.context.trace_id != alone.context.trace_id
    assert outer.attributes["timespan.event.category"] == "outer"
    assert outer.attributes["timespan.event.id"] == "1"
    assert lab.log.stats()["exported"] == 4


def test_14_plain_timespans_on_two_threads_do_not_nest_into_each_other(make_lab: Make) -> None:
    """An open timespan of one thread is not the parent of another thread's."""
    from otel_timespan import timespans as T

    lab = make_lab(use=False)
    program = Program(lab.log)
    T.timespan_start(program, "main", 0)

    def other() -> None:
        with T.span(program, "other", 1):
            pass

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(DEADLINE_S)
    T.timespan_finish(program, "main", 0)
    spans = lab.spans()
    check_tree(spans)
    assert len(spans) == 2


def test_14_plain_timespans_never_finished_or_never_started(make_lab: Make) -> None:
    """A start without a finish ends as abandoned at close; a finish without a start breaks nothing."""
    from otel_timespan import timespans as T

    lab = make_lab(use=False)
    program = Program(lab.log)
    T.timespan_finish(program, "ghost", 1)
    T.timespan_start(program, "open", 1)
    with T.span(program, "fine", 2):
        pass
    lab.log.close()
    spans = list(lab.exporter.get_finished_spans())
    check_tree(spans)
    assert one(spans, "open").status.status_code is StatusCode.ERROR
    assert "fine" in {s.name for s in spans}
    check_account(lab.log.stats())
    assert lab.log.stats()["pending"] == 0


def test_14_plain_timespans_interleaved_with_same_ids(make_lab: Make) -> None:
    """Two categories with one id, and one id used again after its end, are spans of their own."""
    from otel_timespan import timespans as T

    lab = make_lab(use=False)
    program = Program(lab.log)
    for _ in range(3):
        T.timespan_start(program, "a", 1)
        T.timespan_start(program, "b", 1)
        T.timespan_finish(program, "a", 1)
        T.timespan_finish(program, "b", 1)
    spans = lab.spans()
    assert Counter(s.name for s in spans) == {"a": 3, "b": 3}
    assert len({sid(s) for s in spans}) == 6


def test_14_plain_timespans_under_a_span_of_the_user(make_lab: Make) -> None:
    """A plain timespan inside the user's active span belongs to the user's trace."""
    from otel_timespan import timespans as T

    lab = make_lab(use=False)
    program = Program(lab.log)
    with lab.tracer.start_as_current_span("mine") as mine, T.span(program, "step", 1):
        pass
    assert parent(one(lab.spans(), "step")) == mine.get_span_context().span_id


def test_14_timespans_inside_bodies(lab: Lab) -> None:
    """A body's own timespans through the same context are children of its compute span."""
    from otel_timespan import timespans as T

    def body() -> int:
        with T.span(lab.ctx, "step", 7):
            return 1

    task = ts.spawn(body)
    ts.fetch(task)
    spans = lab.spans()
    check_tree(spans)
    (compute,) = [s for s in children(spans, task_span(spans, task)) if s.name == "compute"]
    assert parent(one(spans, "step")) == sid(compute)
