"""A run over three processes, looked for at the other end: one trace in Jaeger, series by worker in Prometheus."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.backends import Stack, eventually
from tests.stack.running import PROGRAMS, environment, finished, new_service, report
from tests.stack.test_runs import attributes


class Run(NamedTuple):
    """What programs/processes.py said of itself, and the spans that Jaeger holds of it."""

    service: str
    said: dict[str, Any]
    spans: list[dict[str, Any]]

    def named(self, name: str) -> list[dict[str, Any]]:
        """The spans of that name."""
        return [span for span in self.spans if span["name"] == name]


@pytest.fixture(scope="module")
def run(_running_stack: Stack | None) -> Run | None:
    """programs/processes.py, run once."""
    stack = _running_stack
    if stack is None:
        return None
    service = new_service()
    said = report(finished([str(PROGRAMS / "processes.py")], {**environment(stack, service), "STAY_S": "3"}))
    assert said["flushed"] is True and said["away"] is True
    eventually(lambda: len(stack.span_ids(service)) >= said["stats"]["recorded"])
    trace = max(stack.traces(service), key=lambda trace: len(trace["spans"]))
    spans = []
    for resource in stack.otlp_trace(trace["traceID"]):
        of_whom = attributes(resource["resource"]["attributes"])
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                spans.append({**span, "process": of_whom, "attributes": attributes(span.get("attributes", []))})
    return Run(service, said, spans)


def test_three_processes_are_one_trace(stack: Stack, run: Run) -> None:
    """Each span that was recorded is there, once, under a parent that is there, in one service."""
    stats = run.said["stats"]
    assert stats["recorded"] == stats["exported"] == len(stack.span_ids(run.service))
    known = {span["spanId"] for span in run.spans}
    assert len(known) == len(run.spans) == 1 + 13 * 3 + 12 + 6
    assert [span["name"] for span in run.spans if span.get("parentSpanId") not in (*known, None, "")] == []
    assert {span["process"]["service.name"] for span in run.spans} == {run.service}


def test_bodies_say_on_which_worker_they_were(stack: Stack, run: Run) -> None:
    """Both had some; what moved there came from the head."""
    bodies = run.named("compute")
    assert len(bodies) == 13
    assert {span["attributes"]["timespan.worker.id"] for span in bodies} == set(run.said["workers"])
    assert {span["attributes"]["timespan.move.source"] for span in run.named("move")} == {1}
    assert {span["attributes"]["removed"] for span in bodies if "removed" in span["attributes"]} == {7}


def test_spans_made_in_bodies_are_of_their_processes(stack: Stack, run: Run) -> None:
    """Under their bodies, with resources that name worker and process, which are none of the head's."""
    bodies = {span["spanId"]: span for span in run.named("compute")}
    mine = run.named("read")
    assert sorted(span["attributes"]["part"] for span in mine) == [1, 2, 3, 4, 5, 6]
    for span in mine:
        worker = bodies[span["parentSpanId"]]["attributes"]["timespan.worker.id"]
        assert span["process"]["timespan.worker.id"] == worker
    (head,) = {span["process"]["process.pid"] for span in bodies.values()}
    pids = {(span["process"]["timespan.worker.id"], span["process"]["process.pid"]) for span in mine}
    assert head not in {pid for _, pid in pids} and len(pids) == len({worker for worker, _ in pids})


def test_series_are_by_worker(stack: Stack, run: Run) -> None:
    """How busy each worker is, and where results are: small ones in the head."""
    about = f'{{job=~".*{run.service}"}}'

    def by_worker(name: str) -> dict[str, float]:
        found = stack.query_range(f"max by (timespan_worker_id) (max_over_time({name}{about}[1m]))")
        return {row["metric"]["timespan_worker_id"]: max(float(v) for _, v in row["values"]) for row in found}

    workers = {str(worker) for worker in run.said["workers"]}
    eventually(lambda: workers <= by_worker("timespan_worker_saturation").keys())
    eventually(lambda: by_worker("timespan_bytes_allocd").get("1", 0) > 10_000)
