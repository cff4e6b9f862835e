"""design/otel-model.md §1.1: names, attributes, statuses, links, ids and clock of spans."""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.trace import StatusCode

import otel_timespan as ts
from otel_timespan.otel import replay
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    PHASES,
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

    class BadError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def body() -> None:
        raise BadError

    def chained() -> None:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as e:
            raise AppError("on top") from e

    tasks = [ts.spawn(body), ts.spawn(chained)]
    ts.waitall(tasks)
    spans = lab.spans()
    assert task_span(spans, tasks[0]).attributes["error.type"].endswith("BadError")
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
    for before, after in itertools.pairwise(attempts):
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
    assert b"python" in resource and b"unknown_service" not in resource
