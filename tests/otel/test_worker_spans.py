"""Spans of what runs on worker processes: those of tasks, of bodies, and of what bodies make themselves."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_timespan import dagger as D
from otel_timespan.events import WorkerSaturation
from otel_timespan.otel import OTelAggregator, OTelLog, dag, replay, semconv
from otel_timespan.timespans import IOLog, MultiEventLog, TeeLog
from tests.acceptance_otel.acc_otel_support import Ear, last_json, metrics_of, pairs, run
from tests.backends import eventually


def add(*values: int) -> int:
    """Their sum."""
    return sum(values)


def telling() -> tuple[int, int, int]:
    """Puts all kinds of things on its span: its ids, and the process."""
    span = trace.get_current_span()
    span.set_attribute("mine", "yes")
    span.add_event("noted", {"n": 1})
    context = span.get_span_context()
    assert span.is_recording()
    return context.trace_id, context.span_id, os.getpid()


def making(names: list[str]) -> tuple[int, int]:
    """Makes spans of its own: the ids of its process and of its span."""
    tracer = trace.get_tracer("users")
    for name in names:
        with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT) as span:
            span.set_attribute("user", True)
    return os.getpid(), trace.get_current_span().get_span_context().span_id


def failing(record: bool) -> None:
    """Raises, and may record that itself."""
    try:
        raise ValueError("no")
    except ValueError as error:
        if record:
            trace.get_current_span().record_exception(error, {"by": "user"})
        raise


@pytest.fixture(scope="module")
def workers() -> Iterator[list[int]]:
    """Two workers."""
    ids = D.cluster.add_workers(2)
    yield ids
    D.cluster.remove_workers(ids)


class Spans:
    """A log on two workers, and what it exported."""

    def __init__(self, workers: list[int], **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.log = OTelLog(span_exporter=self.exporter, metrics=False, **options)
        self.context = D.Context(procs=workers, log_sink=self.log)

    def all(self) -> list[Any]:
        """All spans so far."""
        assert self.log.flush(10)
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[Any]:
        """Those of that name."""
        return [span for span in self.all() if span.name == name]


@pytest.fixture
def spans(workers: list[int]) -> Iterator[Spans]:
    """See `Spans`."""
    made = Spans(workers)
    with made.context, made.log:
        yield made


def balance(log: OTelLog) -> dict[str, Any]:
    """The account, which adds up."""
    stats = log.stats()
    parts = sum(stats[name] for name in ("exported", "sampled", "rolled_up", "pending"))
    assert stats["recorded"] == parts + sum(stats["dropped"].values())
    return stats


def test_tasks_on_workers_are_in_the_trace(spans: Spans, workers: list[int]) -> None:
    """Task, queue, move and compute spans, which say where they were; one trace, no parent is missing."""
    with dag("run"):
        total = D.spawn(add, *[D.spawn(add, n) for n in range(6)])
        assert D.fetch(total) == 15
    found = spans.all()
    assert len({span.context.trace_id for span in found}) == 1
    known = {span.context.span_id for span in found}
    assert [span.name for span in found if span.parent and span.parent.span_id not in known] == []
    bodies = [span for span in found if span.name == semconv.COMPUTE]
    assert len(bodies) == 7 and {span.attributes[semconv.WORKER_ID] for span in bodies} <= set(workers)
    moves = [span for span in found if span.name == semconv.MOVE]
    assert len(moves) == 6
    assert {(m.attributes[semconv.MOVE_SOURCE], m.attributes[semconv.MOVE_KIND]) for m in moves} == {(1, "chunk")}
    assert len([span for span in found if span.name == semconv.QUEUE]) == 7
    assert balance(spans.log)["exported"] == len(found)


def test_a_body_on_a_worker_has_its_span(spans: Spans) -> None:
    """It is recording, has the ids that the span will have, and what is put on it is sent."""
    trace_id, span_id, pid = D.fetch(D.spawn(telling))
    assert pid != os.getpid()
    (body,) = spans.named(semconv.COMPUTE)
    assert (body.context.trace_id, body.context.span_id) == (trace_id, span_id)
    assert body.attributes["mine"] == "yes"
    assert [(event.name, dict(event.attributes)) for event in body.events] == [("noted", {"n": 1})]


def test_spans_made_in_a_body_arrive(spans: Spans, workers: list[int]) -> None:
    """Under the span of the body, with what was put on them, and with the worker's resource; they are accounted for."""
    with dag("run"):
        pid, span_id = D.fetch(D.spawn(making, ["one", "two"]))
    found = spans.all()
    mine = [span for span in found if span.name in ("one", "two")]
    (body,) = [span for span in found if span.name == semconv.COMPUTE]
    assert [span.name for span in mine] == ["one", "two"]
    for span in mine:
        assert span.parent.span_id == span_id == body.context.span_id
        assert span.context.trace_id == body.context.trace_id
        assert span.kind is trace.SpanKind.CLIENT and span.attributes["user"] is True
        assert span.instrumentation_scope.name == "users"
        assert span.resource.attributes["process.pid"] == pid
        assert span.resource.attributes[semconv.WORKER_ID] == body.attributes[semconv.WORKER_ID]
        assert span.resource.attributes["service.name"] == body.resource.attributes["service.name"]
        assert span.resource.attributes["service.instance.id"] != body.resource.attributes["service.instance.id"]
    assert balance(spans.log)["exported"] == len(found)


@pytest.mark.parametrize("record", [False, True])
def test_an_exception_is_on_the_span_once(spans: Spans, record: bool) -> None:
    """With its type and its stack in the worker; not again where the body recorded it itself."""
    with pytest.raises(ValueError):
        D.fetch(D.spawn(failing, record))
    (body,) = spans.named(semconv.COMPUTE)
    (event,) = body.events
    assert event.name == "exception" and event.attributes["exception.type"] == "ValueError"
    assert "in failing" in event.attributes["exception.stacktrace"]
    assert ("by" in event.attributes) == record
    assert body.attributes[semconv.ERROR_TYPE] == "ValueError" and not body.status.is_ok


def test_runs_that_are_not_sampled_have_no_spans(workers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither their tasks nor what their bodies make."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    made = Spans(workers)
    with made.context, made.log:
        D.fetch(D.spawn(making, ["one"]))
        assert made.all() == []
        assert balance(made.log)["sampled"] > 0


def test_several_logs_share_workers(workers: list[int]) -> None:
    """Each has the spans of its own tasks, with ids of its own."""
    one, two = Spans(workers), Spans(workers, detail="task")
    with one.log, two.log:
        with one.context:
            _, first, _ = D.fetch(D.spawn(telling))
        with two.context:
            _, second, _ = D.fetch(D.spawn(telling))
        assert [s.context.span_id for s in one.all() if "mine" in s.attributes] == [first]
        assert [s.context.span_id for s in two.all() if "mine" in s.attributes] == [second]
        assert len(two.all()) == 2


def test_a_log_beside_others_has_its_part_too(workers: list[int]) -> None:
    """In a `TeeLog`."""
    events: list[Any] = []
    made = Spans(workers)
    with made.context, made.log:
        made.context.log_sink = TeeLog(events, made.log)
        D.fetch(D.spawn(making, ["one"]))
        assert len(made.named("one")) == 1 and events


def outer(n: int) -> int:
    """Spawns, under a span of its own and not."""
    with trace.get_tracer("users").start_as_current_span("around"):
        first = D.spawn(add, n, 1)
    return D.fetch(D.spawn(add, first, 1))


def test_what_bodies_spawn_is_under_them(spans: Spans) -> None:
    """Or under the span that was current there; it counts in the same run, which ends after it."""
    with dag("run"):
        assert D.fetch(D.spawn(outer, 1)) == 3
    found = spans.all()
    by_id = {span.context.span_id: span for span in found}
    assert len({span.context.trace_id for span in found}) == 1
    (around,) = [span for span in found if span.name == "around"]
    inner = sorted((s for s in found if s.name == "add"), key=lambda s: s.attributes[semconv.TASK_ID])
    assert inner[0].parent.span_id == around.context.span_id
    assert by_id[inner[1].parent.span_id].name == semconv.COMPUTE
    assert by_id[around.parent.span_id] is by_id[inner[1].parent.span_id]
    (root,) = [span for span in found if span.parent is None]
    assert root.attributes[semconv.DAG_TASKS] == 3 and root.attributes[semconv.DAG_COMPLETE]


def test_runs_that_nobody_opened_hold_what_bodies_spawn(spans: Spans) -> None:
    """One root for all of them."""
    assert D.fetch(D.spawn(outer, 1)) == 3
    (root,) = [span for span in spans.all() if span.parent is None]
    assert root.attributes[semconv.DAG_TASKS] == 3


def carried() -> object:
    """What came along."""
    return baggage.get_baggage("user")


def test_baggage_comes_along(spans: Spans) -> None:
    """To bodies on workers."""
    token = context.attach(baggage.set_baggage("user", "ann"))
    try:
        assert D.fetch(D.spawn(carried)) == "ann"
    finally:
        context.detach(token)
    assert D.fetch(D.spawn(carried)) is None


def current_span() -> tuple[int, int]:
    """The ids of the current span."""
    found = trace.get_current_span().get_span_context()
    return found.trace_id, found.span_id


def test_without_a_log_bodies_are_under_the_callers_span(workers: list[int]) -> None:
    """As on threads."""
    with D.Context(procs=workers), TracerProvider().get_tracer("users").start_as_current_span("mine") as span:
        mine = span.get_span_context()
        assert D.fetch(D.spawn(current_span)) == (mine.trace_id, mine.span_id)


MEASURING = """
import otel_timespan as ts
from otel_timespan import dagger as D
from opentelemetry import metrics

def measuring():
    counter = metrics.get_meter("users").create_counter("user.count")
    counter.add(3, {"kind": "mine"})
    return 1

(worker,) = D.cluster.add_workers(1)
ts.eager_context().log_sink = log = ts.OTelLog()
bound = D.scope(worker=worker)
print(ts.fetch(ts.spawn.opts(scope=bound)(measuring)) + ts.fetch(ts.spawn.opts(scope=bound)(measuring)))
D.cluster.remove_workers([worker])
log.flush()
"""


def test_metrics_of_bodies_leave_with_the_heads() -> None:
    """With the resource of the worker, beside the head's own."""
    ear = Ear()
    try:
        assert run(MEASURING, {**ear.env(), "OTEL_SERVICE_NAME": "mine"}).stdout == "2\n"
        count = ear.metrics()["user.count"].sum
        assert count.data_points[-1].as_int == 6 and pairs(count.data_points[-1].attributes) == {"kind": "mine"}
        assert "timespan.task.count" in ear.metrics()
        of_worker = {
            (attributes["service.name"], attributes.get(semconv.WORKER_ID))
            for path, body in ear.requests
            if path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            if "user.count" in {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
            for attributes in [pairs(resource.resource.attributes)]
        }
        assert of_worker == {("mine", 2)}
    finally:
        ear.close()


def test_spans_of_the_scheduler_say_which_process_a_worker_is(workers: list[int]) -> None:
    """Its id, its host, its version."""
    pids = {worker: D.cluster.run(worker, os.getpid) for worker in workers}
    made = Spans(workers, detail="scheduler")
    with made.context, made.log:
        D.fetch(D.spawn(add, 1))
        found = made.named("init_proc")
    assert {span.attributes["process.pid"] for span in found} == set(pids.values())
    assert {span.attributes["process.runtime.version"] for span in found} == {platform.python_version()}
    assert all(span.attributes["host.name"] for span in found)


MOVING = """
import json
import otel_timespan as ts
from otel_timespan import dagger as D

def part(*given):
    return len(given)

workers = D.cluster.add_workers(2)
with D.Context(procs=workers, log_sink=ts.OTelLog(metrics=False)) as context:
    first = [D.spawn(part, n) for n in range(300)]
    D.waitall([D.spawn(part, first[n], first[n - 1], n) for n in range(300)])
    log = context.log_sink
assert log.flush()
D.cluster.remove_workers(workers)
print(json.dumps(log.stats()))
"""


def test_the_account_balances_over_otlp() -> None:
    """Tasks that move different numbers of arguments: each span is recorded, exported and received once."""
    ear = Ear()
    try:
        stats = last_json(run(MOVING, ear.env()))
        ids = [span.span_id for span in ear.spans()]
        assert stats["recorded"] == stats["exported"] == len(ids) == len(set(ids)) == 1 + 600 * 3 + 600
    finally:
        ear.close()


def forking() -> int:
    """Forks, and makes spans on both sides."""
    pid = os.fork()
    if not pid:
        making(["of a child"])
        os._exit(0)
    os.waitpid(pid, 0)
    return making(["of the parent"])[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_of_a_body_leaves_the_way_to_the_head_alone(spans: Spans) -> None:
    """Its spans are nobody's; those of the worker arrive."""
    assert D.fetch(D.spawn(forking)) != os.getpid()
    assert D.fetch(D.spawn(add, 1)) == 1
    names = {span.name for span in spans.all()}
    assert "of the parent" in names and "of a child" not in names


def test_metrics_of_streams_are_by_worker(workers: list[int]) -> None:
    """`OTelAggregator` and the gauges of `OTelLog` have a series for each worker."""
    reader, other = InMemoryMetricReader(), InMemoryMetricReader()
    multi = MultiEventLog()
    multi["wsat"] = WorkerSaturation()
    multi.aggregators["otel"] = OTelAggregator(meter_provider=MeterProvider([reader]))
    log = OTelLog(span_exporter=InMemorySpanExporter(), meter_provider=MeterProvider([other]))
    with D.Context(procs=workers, log_sink=TeeLog(multi, log)), log:
        D.waitall([D.spawn.opts(scope=D.scope(worker=worker))(add, 1) for worker in workers for _ in range(3)])
        multi.flush()
        assert log.flush(10)
        for one in (reader, other):
            points = [p for m in metrics_of(one) if m.name == semconv.WORKER_SATURATION for p in m.data.data_points]
            assert set(workers) <= {point.attributes[semconv.WORKER_ID] for point in points}
    multi.close()


def test_spans_made_without_a_log_are_nobodys(workers: list[int]) -> None:
    """Once the log is gone, workers keep and send nothing; the next log has what is made from then on."""
    made = Spans(workers)
    with made.context, made.log:
        D.fetch(D.spawn(making, ["one"]))
    with D.Context(procs=workers):
        D.fetch(D.spawn(making, ["two"]))
    later = Spans(workers)
    with later.context, later.log:
        D.fetch(D.spawn(making, ["three"]))
        assert {span.name for span in later.all()} >= {"three"} and later.named("two") == []
    assert {span.name for span in made.exporter.get_finished_spans()} & {"one", "two", "three"} == {"one"}


def until(gate: str) -> None:
    """Runs until there is such a file."""
    while not os.path.exists(gate):
        time.sleep(0.005)


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_a_body_that_nobody_waits_for_any_more(spans: Spans, tmp_path: Path, how: str) -> None:
    """Its task has its end, its run is over when that is known, and nothing stays open."""
    gate = tmp_path / "gate"
    with dag("run"):
        task = D.spawn(until, D.Options(timeout=0.3 if how == "timeout" else None), str(gate))
        if how == "cancel":
            eventually(lambda: spans.log.flush(10) and spans.named(semconv.QUEUE))
            D.cancel(task)
        with pytest.raises(D.DTaskFailedError):
            D.fetch(task)
    gate.touch()
    eventually(lambda: [span for span in spans.all() if span.parent is None])
    (own,) = spans.named("until")
    (body,) = spans.named(semconv.COMPUTE)
    assert body.parent.span_id == own.context.span_id
    assert own.attributes[semconv.TASK_STATE] == ("failed" if how == "timeout" else "cancelled")
    assert balance(spans.log)["pending"] == 0


def second_time(marker: str) -> tuple[int, int]:
    """Raises, the first time; then the ids of its span."""
    if not os.path.exists(marker):
        Path(marker).touch()
        raise ValueError("once")
    return current_span()


def test_each_attempt_has_a_span_of_its_own(spans: Spans, tmp_path: Path) -> None:
    """The body of the second one is in it, and its task links to the first."""
    task = D.spawn(second_time, D.Options(retries=1), str(tmp_path / "marker"))
    trace_id, span_id = D.fetch(task)
    first, second = sorted(spans.named("second_time"), key=lambda span: span.attributes[semconv.TASK_ATTEMPT])
    body = next(span for span in spans.named(semconv.COMPUTE) if span.context.span_id == span_id)
    assert body.context.trace_id == trace_id and body.parent.span_id == second.context.span_id
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert second.links[0].attributes[semconv.RETRY_REASON] == "failure"


async def waiting(n: int) -> tuple[int, int]:
    """A coroutine that puts something on its span after a while."""
    await asyncio.sleep(0.01)
    trace.get_current_span().set_attribute("n", n)
    return current_span()


def test_bodies_that_are_coroutines_have_their_spans(spans: Spans) -> None:
    """Many at once, each its own."""
    ids = [D.fetch(task)[1] for task in [D.spawn(waiting, n) for n in range(5)]]
    bodies = {span.context.span_id: span for span in spans.named(semconv.COMPUTE)}
    assert [bodies[span_id].attributes["n"] for span_id in ids] == list(range(5))


def test_a_saved_log_of_workers_gives_the_same_spans(workers: list[int], tmp_path: Path) -> None:
    """Names, ids and parents of the live ones; what bodies made themselves is in no log."""
    made, file = Spans(workers), tmp_path / "run.jsonl"
    with made.log:
        saved = IOLog(file)
        with D.Context(procs=workers, log_sink=TeeLog(saved, made.log)), dag("run"):
            D.fetch(D.spawn(add, *[D.spawn(add, n) for n in range(6)]))
        live = {(span.name, span.context.span_id, span.parent and span.parent.span_id) for span in made.all()}
        saved.close()
    again = {(span.name, span.span_id, span.parent_id or None) for span in replay(file)}
    assert {one for one in again if one[2]} == {one for one in live if one[2]}
