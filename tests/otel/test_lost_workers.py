"""What is told of bodies whose worker went away, and of the run meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_timespan import dagger as D
from otel_timespan.errors import WorkerLostError
from otel_timespan.otel import OTelLog, dag, replay, semconv
from otel_timespan.otel.metrics.logmetrics import _Occurrences
from tests.acceptance_otel.acc_otel_support import metrics_of
from tests.backends import eventually
from tests.otel.stories import MS, body, half, schedule, submit, taken, whole


def lost_once() -> list[Any]:
    """The events of a task whose first attempt lost its worker."""
    fault = [half(phase, "handle_fault", 7 * MS, uid=1, worker=2) for phase in ("start", "finish")]
    first = [*submit(7, 0), *schedule(7, MS, 2 * MS), *taken(7, 3 * MS), *body(7, 4 * MS, 6 * MS, lost())]
    return [*first, *fault, *whole(7, 8 * MS, attempt=2)]


def lost() -> WorkerLostError:
    """The error of a body whose worker went away."""
    return WorkerLostError(2)


def test_a_body_whose_worker_went_away_is_abandoned() -> None:
    """Its span says so, the attempt is retried, and the next one's span links to it with the reason."""
    spans = list(replay(lost_once(), offset_ns=0))
    first, second = [span for span in spans if span.name == "len"]
    bodies = [span for span in spans if span.name == semconv.COMPUTE]
    assert bodies[0].attributes[semconv.TASK_STATE] == "abandoned" and bodies[0].parent_id == first.span_id
    assert bodies[0].attributes[semconv.ERROR_TYPE] == "WorkerLostError" and bodies[0].status == 2
    assert semconv.TASK_STATE not in bodies[1].attributes
    assert first.attributes[semconv.TASK_STATE] == "retried"
    assert first.attributes[semconv.ERROR_TYPE] == "WorkerLostError"
    (link,) = second.links
    assert link.span_id == first.span_id and second.attributes[semconv.TASK_ATTEMPT] == 2
    assert dict(link.attributes) == {semconv.LINK_TYPE: "retry", semconv.RETRY_REASON: "worker_lost"}


def test_the_root_counts_the_workers_that_went_away() -> None:
    """While it was open; a run without losses says nothing of them."""
    root = [span for span in replay(lost_once(), offset_ns=0) if not span.parent_id][-1]
    assert root.attributes[semconv.DAG_WORKERS_LOST] == 1 and root.attributes[semconv.DAG_RETRIED] == 1
    calm = [span for span in replay(whole(7), offset_ns=0) if not span.parent_id][-1]
    assert semconv.DAG_WORKERS_LOST not in calm.attributes


def test_faults_are_counted_for_the_worker_that_went_away() -> None:
    """The event is the core's, and names the worker."""
    counted: list[Any] = []
    count = _Occurrences(lambda name, key, amount: counted.append((name, key, amount)))
    count(half("finish", "handle_fault", 1, uid=1, worker=3))
    assert counted == [(semconv.FAULT_COUNT, (3,), 1)]


def dying(marker: str, waits: bool) -> int:
    """Makes two spans and kills its process; the second time it only makes one."""
    tracer = trace.get_tracer("users")
    with tracer.start_as_current_span("mine"):
        pass
    if os.path.exists(marker):
        return 1
    Path(marker).write_text(str(os.getpid()))
    with tracer.start_as_current_span("mine"):
        pass
    if waits:
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize("waits", [False, True])
def test_a_worker_that_is_killed_in_a_body(tmp_path: Path, waits: bool) -> None:
    """An abandoned body, a next attempt that links to the first; what did not arrive is counted, the account balances.

    `waits`: what it made before arrives, as it has been running for a while.
    """
    workers = D.cluster.add_workers(2)
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    log = OTelLog(span_exporter=exporter, meter_provider=MeterProvider([reader]))
    with D.Context(procs=workers, log_sink=log), log:
        with dag("run"):
            task = D.spawn(dying, str(tmp_path / "marker"), waits)
            if waits:
                eventually(lambda: log.flush(10) and [s for s in exporter.get_finished_spans() if s.name == "mine"])
                os.kill(int((tmp_path / "marker").read_text()), signal.SIGKILL)
            assert D.fetch(task) == 1
        assert log.flush(10)
        spans, stats = exporter.get_finished_spans(), log.stats()
        faults = [p for m in metrics_of(reader) if m.name == semconv.FAULT_COUNT for p in m.data.data_points]
    D.cluster.remove_workers(workers)
    first, second = sorted((s for s in spans if s.name == "dying"), key=lambda s: s.attributes[semconv.TASK_ATTEMPT])
    bodies = {span.parent.span_id: span for span in spans if span.name == semconv.COMPUTE}
    assert bodies[first.context.span_id].attributes[semconv.TASK_STATE] == "abandoned"
    assert bodies[first.context.span_id].attributes[semconv.ERROR_TYPE] == "WorkerLostError"
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert second.links[0].attributes[semconv.RETRY_REASON] == "worker_lost"
    (root,) = [span for span in spans if span.parent is None]
    assert root.attributes[semconv.DAG_WORKERS_LOST] == 1
    assert root.attributes[semconv.DAG_COMPLETE] is waits
    assert stats["dropped"] == ({} if waits else {"worker_lost": 2})
    assert stats["recorded"] == stats["exported"] + sum(stats["dropped"].values()) and stats["pending"] == 0
    (fault,) = [point for point in faults if point.value]
    assert fault.value == 1 and fault.attributes[semconv.WORKER_ID] in workers
    mine = [span for span in spans if span.name == "mine"]
    assert len(mine) == (3 if waits else 1)
    known = {span.context.span_id for span in spans}
    assert all(span.parent.span_id in known for span in mine)
