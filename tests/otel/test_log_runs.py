"""`OTelLog` with the real scheduler: the trees of runs, with `dag` and without."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel import OTelLog, dag, semconv
from tests.otel.log_bench import WAITS, Bench, add, eventually, id_of, parent_of, tasks_of


def test_tree_of_a_run(bench: Callable[..., Bench]) -> None:
    """Every span but the root has its parent in the trace, and lies within it; waits add up."""
    b = bench()
    total = D.spawn(add, D.spawn(add, 1, 2), D.spawn(add, 3, 4))
    assert D.fetch(total) == 10
    spans = b.spans()
    by_id = {id_of(span): span for span in spans}
    (root,) = (span for span in spans if span.parent is None)
    assert root.name == "dag" and len({s.get_span_context().trace_id for s in spans}) == 1
    for span in spans:
        parent = by_id.get(parent_of(span))
        if parent is not None:
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time  # type: ignore[operator]
    tasks = tasks_of(spans)
    assert [parent_of(t) for t in tasks] == [id_of(root)] * 3
    for task in tasks:
        assert sum(task.attributes[k] for k in WAITS) == pytest.approx((task.end_time - task.start_time) / 1e9)  # type: ignore
    last = next(t for t in tasks if t.links)
    assert {link.context.span_id for link in last.links} == {id_of(t) for t in tasks if not t.links}
    assert root.attributes is not None and root.attributes[semconv.DAG_TASKS] == 3


def test_explicit_run(bench: Callable[..., Bench]) -> None:
    """Tasks of a `with dag` block are children of its root, which has the given attributes."""
    b = bench()
    with dag("nightly", team="blue") as root:
        assert trace.get_current_span() is root
        root.set_attribute("rows", 12)
        task = D.spawn(add, 1, 2)
    assert not trace.get_current_span().get_span_context().is_valid
    D.fetch(task)
    span, of_task = b.one("dag nightly"), tasks_of(b.spans())[0]
    assert span.attributes is not None and span.attributes["team"] == "blue" and span.attributes["rows"] == 12
    assert parent_of(of_task) == id_of(span) and span.attributes[semconv.DAG_NAME] == "nightly"
    assert b.named("dag") == []


def test_explicit_root_waits_for_its_tasks(bench: Callable[..., Bench]) -> None:
    """A root ends after its block was left and its last task is done, tasks spawned by tasks included."""
    b = bench()
    go = threading.Event()

    def inner() -> int:
        return 1

    def outer() -> int:
        go.wait(20)
        return D.fetch(D.spawn(inner))

    with dag("slow"):
        task = D.spawn(outer)
    b.log.flush()
    assert b.named("dag slow") == []
    go.set()
    D.fetch(task)
    root = eventually(lambda: b.named("dag slow"))[0]
    tasks = tasks_of(b.spans())
    assert len(tasks) == 2 and all(t.end_time <= root.end_time for t in tasks)
    assert root.attributes[semconv.DAG_TASKS] == 2


def test_block_that_raises(bench: Callable[..., Bench]) -> None:
    """What ends a block by an exception stands on its root; the exception goes on."""
    b = bench()
    with pytest.raises(KeyError), dag("broken"):
        raise KeyError("gone")
    root = b.one("dag broken")
    assert root.status.status_code is StatusCode.ERROR and [e.name for e in root.events] == ["exception"]


def test_dag_without_a_log() -> None:
    """`dag` does nothing where nothing is logged."""
    with dag("alone") as root:
        assert not root.is_recording()
        assert D.fetch(D.spawn(add, 1, 1)) == 2


def test_dag_after_logging_was_switched_off(bench: Callable[..., Bench]) -> None:
    """A log that the scheduler used and no longer does gets no root."""
    b = bench()
    D.fetch(D.spawn(add, 1, 2))
    b.log.flush()
    b.context.log_sink = T.NoOpLog()
    with dag("unseen") as root:
        assert not root.is_recording()
    assert b.named("dag unseen") == []


def test_dag_needs_a_name() -> None:
    """A dag without a name is refused at once."""
    for wrong in ("", None, 5):
        with pytest.raises(InvalidOptionError, match="name of a dag"):
            dag(wrong)  # type: ignore[arg-type]


def test_dag_left_in_another_context(bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    """Leaving a block in another context than it was entered in logs no detach error."""
    b = bench()
    block = dag("moved")
    contextvars.copy_context().run(block.__enter__)
    contextvars.copy_context().run(block.__exit__, None, None, None)
    assert b.one("dag moved") and not caplog.records


def test_implicit_root_ends_when_quiet() -> None:
    """A run that nobody opened ends once it was quiet for long enough, by the given clock, without any call."""
    now = [1_000_000_000]
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with OTelLog(tracer_provider=provider, metrics=False, root_quiet_s=5, clock=lambda: now[0]) as log:
        parent = log.recorder.on_submit()  # type: ignore[misc]
        from tests.otel.stories import whole

        for event in whole(2, 1_000_000_000, trace=parent):
            log.write_event(event)
        eventually(lambda: any(s.name == "len" for s in exporter.get_finished_spans()))
        assert not any(s.name == "dag" for s in exporter.get_finished_spans())
        now[0] += 6_000_000_000
        eventually(lambda: any(s.name == "dag" for s in exporter.get_finished_spans()))


def test_two_runs_are_two_traces(bench: Callable[..., Bench]) -> None:
    """After a quiet time the next task opens a new trace."""
    b = bench(root_quiet_s=0)
    D.fetch(D.spawn(add, 1, 2))
    eventually(lambda: len(b.named("dag")) == 1)
    D.fetch(D.spawn(add, 1, 2))
    eventually(lambda: len(b.named("dag")) == 2)
    assert len({s.get_span_context().trace_id for s in b.spans()}) == 2


def test_cancelled_while_running_arrives(bench: Callable[..., Bench]) -> None:
    """A task cancelled in its body is sent once, when the body ends, and its root after it."""
    b = bench()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    task = D.spawn(stuck)
    assert started.wait(20)
    task.cancel()
    b.log.flush()
    assert b.named("stuck") == []
    D.fetch(D.spawn(add, 1, 2))
    go.set()
    eventually(lambda: b.named("stuck"))
    stuck_span = b.one("stuck")
    assert stuck_span.attributes is not None and stuck_span.attributes[semconv.TASK_STATE] == "cancelled"
    assert stuck_span.status.status_code is StatusCode.UNSET
    root = eventually(lambda: [s for s in b.named("dag") if id_of(s) == parent_of(stuck_span)])[0]
    assert root.end_time >= stuck_span.end_time


def test_close_abandons_what_is_open(bench: Callable[..., Bench]) -> None:
    """Closing the log closes what still runs as abandoned, ends roots, and takes no more events."""
    b = bench()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    with dag("cut short"):
        task = D.spawn(stuck)
        assert started.wait(20)
        b.log.close()
    go.set()
    D.wait(task)
    D.fetch(D.spawn(add, 1, 2))
    spans = list(b.exporter.get_finished_spans())
    assert sorted(s.name for s in spans) == ["compute", "dag cut short", "queue", "stuck"]
    (task_span,) = tasks_of(spans)
    assert task_span.attributes is not None and task_span.attributes[semconv.TASK_STATE] == "abandoned"
    root = next(s for s in spans if s.name.startswith("dag"))
    assert root.attributes is not None and root.attributes[semconv.DAG_COMPLETE] is False
    assert b.log.stats()["pending"] == 0
