"""What is told of bodies whose worker went away, and of the run meanwhile."""

from __future__ import annotations

from typing import Any

from otel_timespan.errors import WorkerLostError
from otel_timespan.otel import replay, semconv
from otel_timespan.otel.metrics.logmetrics import _Occurrences
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
