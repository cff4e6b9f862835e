"""design/otel-model.md §1.1: roots, runs, nesting, phases, waits and detail."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

import otel_timespan as ts
from otel_timespan.errors import InvalidOptionError
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    WAITS,
    Lab,
    check_tree,
    check_waits,
    children,
    one,
    parent,
    phase,
    sid,
    task_span,
    task_spans,
)

Make = Callable[..., Lab]


def double(x: int) -> int:
    """A body."""
    return 2 * x


def add(x: Any, y: Any) -> Any:
    """A body with two inputs."""
    return x + y


class AppError(Exception):
    """The program's own error."""


def boom(text: str = "it broke") -> None:
    """A body that raises."""
    raise AppError(text)


def held(gate: threading.Event, *_: Any) -> int:
    """A body that waits."""
    assert gate.wait(DEADLINE_S)
    return 1


# ---- roots ---------------------------------------------------------------------------------------------


def test_11_root_is_opened_by_the_log_from_idle_to_busy(lab: Lab) -> None:
    """Tasks spawned under no span join one root named dag, which has no parent."""
    tasks = [ts.spawn(double, i) for i in range(5)]
    ts.waitall(tasks)
    spans = lab.spans()
    check_tree(spans)
    root = one(spans, "dag")
    assert parent(root) is None
    assert {parent(task_span(spans, t)) for t in tasks} == {sid(root)}
    assert root.attributes["timespan.dag.tasks"] == 5
    assert root.attributes["timespan.dag.complete"] is True


def test_11_a_second_busy_time_is_a_second_run(lab: Lab) -> None:
    """After idle and quiet a new spawn opens a new root in a new trace."""
    ts.fetch(ts.spawn(double, 1))
    lab.spans()
    ts.fetch(ts.spawn(double, 1))
    roots = [s for s in lab.spans() if s.name == "dag"]
    assert len(roots) == 2
    assert roots[0].context.trace_id != roots[1].context.trace_id
    assert [r.attributes["timespan.dag.tasks"] for r in roots] == [1, 1]


def test_11_root_ends_by_itself_when_quiet(make_lab: Make) -> None:
    """Nobody has to flush: the root comes out once all is idle for root_quiet_s."""
    lab = make_lab(root_quiet_s=0.02)
    ts.fetch(ts.spawn(double, 1))
    deadline = time.monotonic() + DEADLINE_S
    while not any(s.name == "dag" for s in lab.exporter.get_finished_spans()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_11_spawns_under_an_active_span_are_its_children(lab: Lab) -> None:
    """A user's span is the parent, in its trace, and the log opens no root there."""
    with lab.tracer.start_as_current_span("mine") as mine:
        task = ts.spawn(double, 1)
        ts.fetch(task)
    spans = lab.spans()
    span = task_span(spans, task)
    assert parent(span) == mine.get_span_context().span_id
    assert span.context.trace_id == mine.get_span_context().trace_id
    assert not [s for s in spans if s.name == "dag"]


def test_11_dag_opens_a_root_with_name_and_attributes(lab: Lab) -> None:
    """with dag(name, **attributes) is one run; the root is current in the block."""
    with ts.dag("nightly", team="blue", size=3):
        current = trace.get_current_span().get_span_context()
        task = ts.spawn(double, 1)
        with lab.tracer.start_as_current_span("step"):
            under = ts.spawn(double, 2)
            ts.waitall([task, under])
    spans = lab.spans()
    check_tree(spans)
    root = one(spans, "dag nightly")
    assert sid(root) == current.span_id
    assert root.attributes["team"] == "blue"
    assert root.attributes["size"] == 3
    assert root.attributes["timespan.dag.name"] == "nightly"
    assert root.attributes["timespan.dag.tasks"] == 2
    assert root.attributes["timespan.dag.result"] == "success"
    assert parent(task_span(spans, task)) == sid(root)
    assert parent(task_span(spans, under)) == sid(one(spans, "step"))
    assert parent(one(spans, "step")) == sid(root)
    assert not [s for s in spans if s.name == "dag"]


def test_11_dag_waits_for_its_tasks_after_the_block(lab: Lab, gate: threading.Event) -> None:
    """A block that is left with tasks under way: the root ends with the last of them, not before."""
    with ts.dag("late"):
        task = ts.spawn(held, gate)
    assert not [s for s in lab.exporter.get_finished_spans() if s.name == "dag late"]
    gate.set()
    ts.wait(task)
    spans = lab.spans()
    check_tree(spans)
    assert one(spans, "dag late").end_time >= task_span(spans, task).end_time


def test_11_dag_under_a_span_is_its_child(lab: Lab) -> None:
    """A run inside a user's span belongs to the user's trace."""
    with lab.tracer.start_as_current_span("request") as request, ts.dag("inner"):
        ts.fetch(ts.spawn(double, 1))
    root = one(lab.spans(), "dag inner")
    assert parent(root) == request.get_span_context().span_id


def test_11_dags_nest(lab: Lab) -> None:
    """A dag in a dag is a child span, and each task belongs to the innermost one."""
    with ts.dag("outer"):
        a = ts.spawn(double, 1)
        with ts.dag("inner"):
            b = ts.spawn(double, 2)
        c = ts.spawn(double, 3)
        ts.waitall([a, b, c])
    spans = lab.spans()
    check_tree(spans)
    outer, inner = one(spans, "dag outer"), one(spans, "dag inner")
    assert parent(inner) == sid(outer)
    assert parent(outer) is None
    assert [parent(task_span(spans, t)) for t in (a, b, c)] == [sid(outer), sid(inner), sid(outer)]
    assert inner.attributes["timespan.dag.tasks"] == 1


def test_11_two_dags_in_two_threads_do_not_mix(lab: Lab) -> None:
    """Runs opened at the same time in different threads keep their tasks apart."""
    ready = threading.Barrier(2)
    ids: dict[str, list[int]] = {}

    def program(name: str) -> None:
        with ts.dag(name):
            ready.wait(DEADLINE_S)
            tasks = [ts.spawn(double, i) for i in range(20)]
            ts.waitall(tasks)
            ids[name] = [t.id for t in tasks]

    threads = [threading.Thread(target=program, args=(n,)) for n in ("left", "right")]
    for t in threads:
        t.start()
    for t in threads:
        t.join(DEADLINE_S)
    spans = lab.spans()
    for name, numbers in ids.items():
        root = one(spans, f"dag {name}")
        mine = {n for n, s in task_spans(spans).items() if parent(s) == sid(root)}
        assert mine == set(numbers)
        assert root.attributes["timespan.dag.tasks"] == 20


def test_11_exception_inside_dag_is_recorded_and_raised(lab: Lab) -> None:
    """The block's own exception goes through; the root is an error with that exception."""
    with pytest.raises(AppError, match="outside"), ts.dag("bad"):
        ts.fetch(ts.spawn(double, 1))
        raise AppError("outside")
    root = one(lab.spans(), "dag bad")
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["timespan.dag.result"] == "failure"
    (event,) = [e for e in root.events if e.name == "exception"]
    assert event.attributes["exception.message"] == "outside"


def test_11_dag_after_a_failed_dag_is_clean(lab: Lab) -> None:
    """What failed in one run does not show in the next."""
    with ts.dag("first"):
        ts.wait(ts.spawn(boom))
    with ts.dag("second"):
        ts.fetch(ts.spawn(double, 1))
    spans = lab.spans()
    first, second = one(spans, "dag first"), one(spans, "dag second")
    assert first.attributes["timespan.dag.tasks.failed"] == 1
    assert first.attributes["timespan.dag.result"] == "failure"
    assert second.attributes["timespan.dag.tasks.failed"] == 0
    assert second.status.status_code is StatusCode.UNSET
    assert first.context.trace_id != second.context.trace_id


def test_11_dag_without_a_log_does_nothing() -> None:
    """dag() is harmless where no OTelLog is open, and the block's exception still goes through."""
    with ts.dag("nothing", team="x"):
        assert ts.fetch(ts.spawn(double, 4)) == 8
        assert not trace.get_current_span().get_span_context().is_valid
    with pytest.raises(AppError), ts.dag("nothing"):
        boom()


@pytest.mark.parametrize("name", ["", None, 3])
def test_11_dag_refuses_a_name_that_is_none(name: Any) -> None:
    """An empty or non-text name is an error at once, with or without a log."""
    with pytest.raises(InvalidOptionError), ts.dag(name):
        pass


def test_11_dag_used_as_decorator_or_twice_never_corrupts(lab: Lab) -> None:
    """Entering the same name twice in a row gives two runs."""
    for _ in range(2):
        with ts.dag("again"):
            ts.fetch(ts.spawn(double, 1))
    roots = [s for s in lab.spans() if s.name == "dag again"]
    assert len(roots) == 2
    assert len({r.context.trace_id for r in roots}) == 2


def test_11_nested_spawn_is_a_child_of_the_compute(lab: Lab) -> None:
    """A task spawned by a body is a child of that body's compute span, as deep as it goes."""

    def middle() -> int:
        return ts.fetch(ts.spawn(double, 7))

    def top() -> int:
        return ts.fetch(ts.spawn(middle))

    task = ts.spawn(top)
    assert ts.fetch(task) == 14
    spans = lab.spans()
    check_tree(spans)
    for s in task_spans(spans).values():
        by = s.attributes.get("timespan.task.spawned_by")
        if by is not None:
            (compute,) = [c for c in children(spans, task_spans(spans)[by]) if c.name == "compute"]
            assert parent(s) == sid(compute)
    assert one(spans, "dag").attributes["timespan.dag.tasks"] == 3


def test_11_a_child_task_that_outlives_its_body_stays_inside_its_parent(lab: Lab, gate: threading.Event) -> None:
    """Fire and forget inside a body: whatever the tree does, no child ends after its parent."""
    left: list[Any] = []

    def body() -> None:
        left.append(ts.spawn(held, gate))

    outer = ts.spawn(body)
    ts.wait(outer)
    gate.set()
    ts.waitall(left)
    spans = lab.spans()
    inside = task_span(spans, left[0])
    compute = phase(spans, outer, "compute")
    assert parent(inside) == sid(compute)


def test_11_root_counts(lab: Lab) -> None:
    """The root lists tasks, failed, skipped, cancelled, retried, moved bytes and the critical path."""
    left = [1]

    def flaky() -> int:
        if left:
            left.pop()
            raise AppError("once")
        return 1

    with ts.dag("counts"):
        good = ts.spawn(double, 1)
        bad = ts.spawn(boom)
        never = ts.spawn(double, bad)
        again = ts.spawn(flaky, ts.Options(retries=2))
        moved = ts.spawn(len, ts.tochunk(bytes(1000)))
        ts.waitall([good, bad, never, again, moved])
    root = one(lab.spans(), "dag counts")
    got = {k: root.attributes[f"timespan.dag.{k}"] for k in (
        "tasks", "tasks.failed", "tasks.skipped", "tasks.cancelled", "tasks.retried", "moved",
    )}  # fmt: skip
    assert got == {
        "tasks": 5, "tasks.failed": 1, "tasks.skipped": 1, "tasks.cancelled": 0, "tasks.retried": 1, "moved": 1000,
    }  # fmt: skip
    assert root.attributes["timespan.dag.result"] == "failure"
    assert root.attributes["timespan.dag.critical_path.length"] > 0


def test_11_critical_path_follows_the_dependencies(lab: Lab) -> None:
    """The ids of the path are a chain of dependencies, and the long chain is the one."""

    def work(ms: int, *_: Any) -> int:
        end = time.perf_counter() + ms / 1000
        while time.perf_counter() < end:
            pass
        return ms

    with ts.dag("path"):
        a = ts.spawn(work, 30)
        b = ts.spawn(work, 30, a)
        short = ts.spawn(work, 1, a)
        c = ts.spawn(work, 30, b, short)
        ts.fetch(c)
    root = one(lab.spans(), "dag path")
    assert list(root.attributes["timespan.dag.critical_path.tasks"]) == [a.id, b.id, c.id]
    assert 0.09 <= root.attributes["timespan.dag.critical_path.length"] <= (root.end_time - root.start_time) / 1e9


# ---- phases and detail -----------------------------------------------------------------------------------


def test_11_phases_of_a_task(lab: Lab) -> None:
    """queue and compute are children of the task span, in this order, without overlap."""
    a = ts.spawn(double, 1)
    b = ts.spawn(add, a, 1)
    assert ts.fetch(b) == 3
    spans = lab.spans()
    check_tree(spans)
    for task in (a, b):
        span = task_span(spans, task)
        steps = [s for s in children(spans, span)]
        names = [s.name for s in steps]
        assert [n for n in names if n != "move"] == ["queue", "compute"]
        assert all(x.end_time <= y.start_time for x, y in itertools.pairwise(steps))
        assert {s.kind for s in steps} | {span.kind} == {SpanKind.INTERNAL}


def test_11_waits_and_run_add_up_to_the_span(lab: Lab) -> None:
    """Six numbers partition each task's span, whatever it waited for."""
    a = ts.spawn(time.sleep, 0.01)
    tasks = [a, *[ts.spawn(add, i, i) for i in range(200)], ts.spawn(held, _opened(), a), ts.spawn(boom)]
    tasks.append(ts.spawn(len, ts.tochunk(bytes(100))))
    ts.waitall(tasks)
    spans = lab.spans()
    for task in tasks:
        check_waits(task_span(spans, task))
        compute = phase(spans, task, "compute")
        wall = task_span(spans, task).attributes["timespan.run.wall"]
        assert abs(round(wall * 1e9) - (compute.end_time - compute.start_time)) <= 2
    waited, upstream = task_span(spans, tasks[201]), task_span(spans, a)
    left = max(0, upstream.end_time - waited.start_time)  # nothing, where the upstream was quicker
    assert waited.attributes["timespan.wait.dependency"] * 1e9 == pytest.approx(left, abs=1)


def _opened() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_11_waits_of_tasks_that_never_ran_add_up(lab: Lab, gate: threading.Event) -> None:
    """A skipped and a cancelled task too: what they waited for adds up, and run.wall is 0 or absent."""
    block = ts.spawn(held, gate)
    waiting = ts.spawn(double, block)
    ts.cancel(waiting)
    bad = ts.spawn(boom)
    skipped = ts.spawn(double, bad)
    ts.waitall([bad, skipped, waiting])
    gate.set()
    ts.wait(block)
    spans = lab.spans()
    for task in (waiting, skipped):
        span = task_span(spans, task)
        total = sum(span.attributes.get(name, 0) for name in WAITS)
        assert abs(round(total * 1e9) - (span.end_time - span.start_time)) <= 6
        assert not span.attributes.get("timespan.run.wall")


def test_11_moves_are_spans_by_kind(lab: Lab) -> None:
    """A chunk given as argument has a move span with position, size, source and destination; a plain value has none."""
    task = ts.spawn(add, 1, ts.tochunk(2))
    keyword = ts.spawn(add, x=1, y=ts.tochunk(2))
    ts.waitall([task, keyword])
    spans = lab.spans()
    move = phase(spans, task, "move")
    assert move.attributes["timespan.move.position"] == "2"
    assert move.attributes["timespan.move.size"] == 8
    assert move.attributes["timespan.move.kind"] == "chunk"
    assert (move.attributes["timespan.move.source"], move.attributes["timespan.move.destination"]) == (1, 1)
    assert phase(spans, keyword, "move").attributes["timespan.move.position"] == "y"


@pytest.mark.parametrize("detail", ["task", "phases", "scheduler"])
def test_11_detail(make_lab: Make, detail: str) -> None:
    """task: root and tasks only, waits as attributes; phases: the tree; scheduler: more under the root."""
    lab = make_lab(detail=detail)
    with ts.dag("d"):
        a = ts.spawn(double, 1)
        b = ts.spawn(double, a)
        bad = ts.spawn(boom)
        ts.waitall([a, b, bad])
    spans = lab.spans()
    check_tree(spans)
    root = one(spans, "dag d")
    for task in (a, b, bad):
        check_waits(task_span(spans, task))
        below = {s.name for s in children(spans, task_span(spans, task))}
        always = set() if detail == "task" else {"queue", "compute"}
        assert below == always | ({"schedule", "finish"} if detail == "scheduler" else set())
    under_root = {s.name for s in children(spans, root)} - {"double", "boom"}
    assert bool(under_root) is (detail == "scheduler"), under_root
    assert task_span(spans, bad).status.status_code is StatusCode.ERROR
    recorded = [e for s in spans for e in s.events if e.name == "exception"]
    assert len(recorded) == 1


def test_11_detail_task_has_a_recording_span_in_bodies(make_lab: Make) -> None:
    """With detail task there is no compute span: the task span is current, and what is set on it survives."""
    lab = make_lab(detail="task")

    def body() -> int:
        trace.get_current_span().set_attribute("mine", 1)
        with lab.tracer.start_as_current_span("inside"):
            return ts.fetch(ts.spawn(double, 4))

    task = ts.spawn(body)
    assert ts.fetch(task) == 8
    spans = lab.spans()
    check_tree(spans)
    assert parent(one(spans, "inside")) == sid(task_span(spans, task))
    assert parent(one(spans, "double")) == sid(one(spans, "inside"))
    assert task_span(spans, task).attributes["mine"] == 1


@pytest.mark.parametrize("detail", ["", "tasks", None, 1])
def test_11_detail_that_does_not_exist(detail: Any) -> None:
    """A wrong detail is an error of ours at once, which says what there is."""
    with pytest.raises(InvalidOptionError, match=r"phases"):
        ts.OTelLog(detail=detail)
