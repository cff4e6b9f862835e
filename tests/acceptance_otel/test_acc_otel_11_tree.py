"""design/otel-model.md §1.1: the span tree, names, kinds, statuses, links, ids, clock and attributes."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.trace import SpanKind, StatusCode

import otel_timespan as ts
from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel import replay
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    PHASES,
    WAITS,
    Lab,
    check_tree,
    check_waits,
    children,
    one,
    parent,
    phase,
    run,
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
    """schedule, queue, compute and finish are children of the task span, in this order, without overlap."""
    a = ts.spawn(double, 1)
    b = ts.spawn(add, a, 1)
    assert ts.fetch(b) == 3
    spans = lab.spans()
    check_tree(spans)
    for task in (a, b):
        span = task_span(spans, task)
        steps = [s for s in children(spans, span)]
        names = [s.name for s in steps]
        assert [n for n in names if n != "move"] == ["schedule", "queue", "compute", "finish"]
        assert all(x.end_time <= y.start_time for x, y in zip(steps, steps[1:], strict=False))
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
    waited = task_span(spans, tasks[201]).attributes["timespan.wait.dependency"]
    assert waited > 0


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
        assert below == (set() if detail == "task" else {"schedule", "queue", "compute", "finish"})
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


# ---- names and attributes --------------------------------------------------------------------------------


def test_11_names_and_attributes_of_a_task(lab: Lab) -> None:
    """The span is named by the function; code.*, thread.*, worker, processor, label, size are attributes."""
    seen: list[tuple[int, str]] = []

    def body(n: int) -> bytes:
        seen.append((threading.get_ident(), threading.current_thread().name))
        return bytes(n)

    task = ts.spawn(body, ts.Options(name="label 7"), 1000)
    ts.wait(task)
    span = task_span(lab.spans(), task)
    a = span.attributes
    assert span.name == "body"
    assert a["timespan.task.name"] == "label 7"
    assert a["code.function.name"].endswith("test_11_names_and_attributes_of_a_task.<locals>.body")
    assert a["code.file.path"] == __file__
    assert a["code.line.number"] == inspect.getsourcelines(body)[1]
    assert (a["thread.id"], a["thread.name"]) == seen[0]
    assert a["timespan.result.size"] == 1000
    assert a["timespan.worker.id"] == 1
    assert a["timespan.task.state"] == "finished"
    assert a["timespan.task.result"] == "success"
    assert a["timespan.task.attempt"] == 1
    assert isinstance(a["timespan.processor"], str)
    assert a["timespan.run.cpu"] >= 0
    assert span.instrumentation_scope.name
    assert span.instrumentation_scope.version == ts.__version__
    assert span.instrumentation_scope.schema_url


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: len, "len"),
        (lambda: "x".join, "join"),
        (lambda: __import__("functools").partial(double, 1), "double"),
        (lambda: lambda *_: 1, "<lambda>"),
        (lambda: dict, "dict"),
        (lambda: _Callable(), "_Callable"),
    ],
    ids=["builtin", "bound", "partial", "lambda", "class", "object"],
)
def test_11_names_are_low_cardinality_for_every_callable(lab: Lab, make: Any, name: str) -> None:
    """Whatever can be called has a short name without addresses."""
    args = {"dict": (), "double": ()}.get(name, (["a"],))
    task = ts.spawn(make(), *args)
    ts.wait(task)
    assert task_span(lab.spans(), task).name == name


class _Callable:
    def __call__(self, *_: Any) -> int:
        return 1


# ---- status ----------------------------------------------------------------------------------------------


def test_11_status_success_is_unset(lab: Lab) -> None:
    """Nothing of ours says OK: success leaves the status alone."""
    ts.fetch(ts.spawn(double, 1))
    assert {s.status.status_code for s in lab.spans()} == {StatusCode.UNSET}


def test_11_status_failure(lab: Lab) -> None:
    """A raising body: error on task and compute, error.type on both, the exception once, on compute."""
    task = ts.spawn(boom, "no more beans")
    ts.wait(task)
    spans = lab.spans()
    span, compute = task_span(spans, task), phase(spans, task, "compute")
    for s in (span, compute):
        assert s.status.status_code is StatusCode.ERROR
        assert s.attributes["error.type"].endswith("AppError")
        assert "no more beans" in (s.status.description or "")
    assert span.attributes["timespan.task.result"] == "failure"
    assert span.attributes["timespan.task.state"] == "failed"
    (event,) = [e for s in spans for e in s.events if e.name == "exception"]
    assert event in list(compute.events)
    assert event.attributes["exception.type"].endswith("AppError")
    assert event.attributes["exception.message"] == "no more beans"
    assert "in boom" in event.attributes["exception.stacktrace"]
    assert compute.start_time <= event.timestamp <= compute.end_time


def test_11_status_of_a_dependent_that_never_ran(lab: Lab) -> None:
    """Skip: ERROR, error.type DTaskFailedError, a link of type cause to the root failure, no compute."""
    bad = ts.spawn(boom)
    first = ts.spawn(double, bad)
    second = ts.spawn(add, first, 1)
    ts.waitall([bad, first, second])
    spans = lab.spans()
    check_tree(spans)
    root_failure = {sid(task_span(spans, bad)), sid(phase(spans, bad, "compute"))}
    for task in (first, second):
        span = task_span(spans, task)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "DTaskFailedError"
        assert span.attributes["timespan.task.result"] == "skip"
        assert span.attributes["timespan.task.state"] == "skipped"
        (cause,) = [x for x in span.links if x.attributes["timespan.link.type"] == "cause"]
        assert cause.context.span_id in root_failure
        assert "compute" not in {s.name for s in children(spans, span)}
    assert len([e for s in spans for e in s.events if e.name == "exception"]) == 1


def test_11_status_cancelled(lab: Lab, gate: threading.Event) -> None:
    """Cancelled while waiting: UNSET, state cancelled, nothing recorded as error; its dependents are skipped."""
    block = ts.spawn(held, gate)
    waiting = ts.spawn(double, block)
    below = ts.spawn(double, waiting)
    ts.cancel(waiting)
    ts.waitall([waiting, below])
    gate.set()
    ts.wait(block)
    spans = lab.spans()
    span = task_span(spans, waiting)
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["timespan.task.state"] == "cancelled"
    assert span.attributes["timespan.task.result"] == "cancellation"
    assert "error.type" not in span.attributes
    assert not span.events


def test_11_status_cancelled_while_running(lab: Lab, gate: threading.Event) -> None:
    """A running body that is cancelled: the task ends cancelled; the late end of its body spoils nothing."""
    started = threading.Event()

    def body() -> None:
        started.set()
        held(gate)
        raise AppError("too late")

    task = ts.spawn(body)
    assert started.wait(DEADLINE_S)
    ts.cancel(task)
    ts.wait(task)
    gate.set()
    ts.fetch(ts.spawn(double, 1))
    spans = lab.spans()
    span = task_span(spans, task)
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["timespan.task.state"] == "cancelled"
    check_tree(spans)


def test_11_status_of_base_exceptions(lab: Lab) -> None:
    """SystemExit in a body is a failure as any other, and the log survives it."""

    def leave() -> None:
        raise SystemExit(3)

    task = ts.spawn(leave)
    ts.wait(task)
    span = task_span(lab.spans(), task)
    assert span.attributes["error.type"].endswith("SystemExit")
    assert span.status.status_code is StatusCode.ERROR


def test_11_exceptions_that_misbehave(lab: Lab) -> None:
    """An exception whose str raises, and one with a cause and a context, are exported all the same."""

    class Bad(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def body() -> None:
        raise Bad

    def chained() -> None:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as e:
            raise AppError("on top") from e

    tasks = [ts.spawn(body), ts.spawn(chained)]
    ts.waitall(tasks)
    spans = lab.spans()
    assert task_span(spans, tasks[0]).attributes["error.type"].endswith("Bad")
    (event,) = phase(spans, tasks[1], "compute").events
    assert "ZeroDivisionError" in event.attributes["exception.stacktrace"]


def test_11_retries(lab: Lab) -> None:
    """Each attempt shows; a retry links to the attempt that it replaces; the last one counts."""
    left = [1, 2]

    def flaky() -> int:
        if left:
            raise AppError(f"try {left.pop()}")
        return 1

    task = ts.spawn(flaky, ts.Options(retries=3))
    assert ts.fetch(task) == 1
    spans = lab.spans()
    check_tree(spans)
    attempts = sorted((s for s in spans if s.name == "flaky"), key=lambda s: s.attributes["timespan.task.attempt"])
    assert [s.attributes["timespan.task.attempt"] for s in attempts] == [1, 2, 3]
    assert len({sid(s) for s in attempts}) == 3
    assert [s.attributes["timespan.task.state"] for s in attempts] == ["retried", "retried", "finished"]
    for before, after in zip(attempts, attempts[1:], strict=False):
        (link,) = [x for x in after.links if x.attributes["timespan.link.type"] == "retry"]
        assert link.context.span_id == sid(before)
    for s in attempts:
        check_waits(s)
    assert attempts[-1].status.status_code is StatusCode.UNSET
    assert one(spans, "dag").attributes["timespan.dag.tasks"] == 1
    assert lab.value("timespan.retry.count") == 2
    assert lab.value("timespan.task.count") == 1


# ---- links -----------------------------------------------------------------------------------------------


def test_11_links_dependencies_with_positions_blocking_first(lab: Lab) -> None:
    """Each upstream is a link with its position; the one that finished last comes first and says so."""
    gates = [threading.Event() for _ in range(3)]
    with ts.Context(threads=4) as ctx:
        ctx.log_sink = lab.log
        ups = [ts.spawn(held, g) for g in gates]

        def three(a: int, b: int, c: int) -> int:
            return a + b + c

        task = ts.spawn(three, ups[0], ups[1], c=ups[2])
        extra = ts.spawn(double, ts.Options(syncdeps={ups[0]}), 1)
        for i in (2, 1, 0):
            gates[i].set()
            ts.wait(ups[i])
        ts.waitall([task, extra])
    spans = lab.spans()
    links = [x for x in task_span(spans, task).links if x.attributes["timespan.link.type"] == "dependency"]
    by_span = {sid(task_span(spans, u)): i for i, u in enumerate(ups)}
    assert sorted(by_span[x.context.span_id] for x in links) == [0, 1, 2]
    assert links[0].context.span_id == sid(task_span(spans, ups[0]))
    assert [bool(x.attributes.get("timespan.link.blocking")) for x in links] == [True, False, False]
    positions = {by_span[x.context.span_id]: x.attributes["timespan.link.position"] for x in links}
    assert positions == {0: "1", 1: "2", 2: "c"}
    assert {x.context.trace_id for x in links} == {task_span(spans, task).context.trace_id}
    (link,) = task_span(spans, extra).links
    assert link.context.span_id == sid(task_span(spans, ups[0]))
    assert "timespan.link.position" not in link.attributes


def test_11_links_to_tasks_that_were_finished_before(lab: Lab) -> None:
    """An upstream that was done at the spawn is a link too."""
    a = ts.spawn(double, 1)
    ts.fetch(a)
    b = ts.spawn(double, a)
    ts.fetch(b)
    spans = lab.spans()
    assert [x.context.span_id for x in task_span(spans, b).links] == [sid(task_span(spans, a))]


def test_11_links_across_runs(lab: Lab) -> None:
    """An upstream of an earlier run is linked with that run's trace id."""
    with ts.dag("one"):
        a = ts.spawn(double, 1)
        ts.fetch(a)
    with ts.dag("two"):
        b = ts.spawn(double, a)
        ts.fetch(b)
    spans = lab.spans()
    (link,) = task_span(spans, b).links
    assert link.context.span_id == sid(task_span(spans, a))
    assert link.context.trace_id == task_span(spans, a).context.trace_id != task_span(spans, b).context.trace_id


def test_11_links_beyond_the_limit(make_lab: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SPAN_LINK_COUNT_LIMIT: the blocking link is kept, the rest is a dropped count."""
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "2")
    lab = make_lab(provider_options={"span_limits": SpanLimits()})
    gate = threading.Event()
    ups = [ts.spawn(double, i) for i in range(4)]
    ts.waitall(ups)
    last = ts.spawn(held, gate)
    task = ts.spawn(lambda *_: None, *ups, last)
    gate.set()
    ts.wait(task)
    spans = lab.spans()
    span = task_span(spans, task)
    assert len(span.links) == 2
    assert span.dropped_links == 3
    assert span.links[0].context.span_id == sid(task_span(spans, last))


def test_11_same_upstream_twice(lab: Lab) -> None:
    """One upstream in two positions: both positions are told, and nothing breaks."""
    a = ts.spawn(double, 1)
    b = ts.spawn(add, a, a)
    assert ts.fetch(b) == 4
    spans = lab.spans()
    links = task_span(spans, b).links
    assert {x.context.span_id for x in links} == {sid(task_span(spans, a))}
    assert {x.attributes["timespan.link.position"] for x in links} == {"1", "2"}


# ---- ids and replay --------------------------------------------------------------------------------------


def test_11_ids_are_the_same_in_a_replay(make_lab: Make) -> None:
    """A saved log gives the same spans with the same ids, parents and links, again and again."""
    lab = make_lab()
    kept: list[Any] = []
    lab.ctx.log_sink = ts.TeeLog(kept, lab.log)
    with ts.dag("replayed"):
        a = ts.spawn(double, 1)
        bad = ts.spawn(boom)
        ts.waitall([ts.spawn(add, a, ts.tochunk(1)), ts.spawn(double, bad)])
    live = lab.spans()
    assert kept
    first, second = list(replay(list(kept))), list(replay({1: list(kept)}))
    shape = lambda s: (s.name, s.span_id, s.trace_id, s.parent_id)  # noqa: E731
    assert [shape(s) for s in first] == [shape(s) for s in second]
    mine = {(s.name, sid(s)): s for s in live if not s.name.startswith("dag")}
    again = {(s.name, s.span_id): s for s in first if not s.name.startswith("dag")}
    assert again.keys() == mine.keys()
    for key, s in mine.items():
        assert again[key].trace_id == s.context.trace_id
        assert again[key].parent_id == parent(s)
    assert {s.span_id for s in first} == {sid(s) for s in live}


def test_11_trace_ids_keep_random_bits(lab: Lab) -> None:
    """The low 56 bits of our trace ids differ from run to run, and in their upper half too."""
    for _ in range(8):
        with ts.dag("r"):
            ts.fetch(ts.spawn(double, 1))
    low = [s.context.trace_id & (1 << 56) - 1 for s in lab.spans() if s.name == "dag r"]
    assert len({x >> 28 for x in low}) == 8
    assert len({x & (1 << 28) - 1 for x in low}) == 8


def test_11_ids_do_not_collide_between_contexts_and_restarts(lab: Lab) -> None:
    """Two schedulers one after the other, or at once, never give one span id twice."""
    for _ in range(3):
        ts.fetch(ts.spawn(double, 1))
        ts.cancel(halt_sch=True)
    with ts.Context(threads=1, log_sink=lab.log):
        ts.fetch(ts.spawn(double, 1))
    spans = lab.spans()
    assert len({sid(s) for s in spans}) == len(spans)
    assert len([s for s in spans if s.name == "double"]) == 4


def test_11_clock_children_inside_parents_under_load(lab: Lab) -> None:
    """A few hundred tasks with nested spawns: no child starts before or ends after its parent."""

    def outer(i: int) -> int:
        return sum(ts.fetch_all([ts.spawn(double, i + k) for k in range(3)]))

    before = time.time_ns()
    with ts.dag("load"):
        ts.waitall([ts.spawn(outer, i) for i in range(100)])
    spans = lab.spans()
    after = time.time_ns()
    check_tree(spans)
    assert all(before - 10**9 <= s.start_time <= s.end_time <= after + 10**9 for s in spans)
    assert len(task_spans(spans)) == 400
    for s in task_spans(spans).values():
        check_waits(s)


def test_11_spans_without_the_scheduler_being_there(ear: Any) -> None:
    """A single import line and one task is a whole program: the wire holds root, task and phases."""
    done = run(
        """
        import otel_timespan as ts
        ctx = ts.eager_context()
        ctx.log_sink = ts.OTelLog()
        print(ts.fetch(ts.spawn(len, [1, 2, 3])))
        """,
        ear.env(),
    )
    assert done.stdout.strip() == "3"
    assert done.stderr == ""
    names = [s.name for s in ear.spans()]
    assert sorted(names) == sorted(["dag", "len", *(PHASES - {"move"})])
    (resource,) = {r.resource.SerializeToString() for r in ear.resource_spans()}
    assert b"otel-timespan" in resource
