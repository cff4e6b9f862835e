"""Real runs through OTelLog, looked for at the other end: in Jaeger and in Prometheus."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest

from tests.backends import Stack, eventually
from tests.stack.running import PROGRAMS, Conversation, environment, finished, new_service, report

ROUNDING_NS = 1_000
"""Times go from one pair of clocks to another, and a child is kept inside of its parent."""

UNSET, ERROR = 0, 2


class Span(NamedTuple):
    """A span as Jaeger gives it back in OTLP's JSON."""

    name: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    links: list[tuple[str, dict[str, Any]]]
    status: int
    events: list[str]


def attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """OTLP's list of keys and values as a dict."""
    found = {}
    for pair in pairs:
        ((kind, value),) = pair["value"].items()
        found[pair["key"]] = int(value) if kind == "intValue" else value
    return found


def spans_of(stack: Stack, trace_id: str) -> list[Span]:
    """All distinct spans of a trace."""
    found = {}
    for resource in stack.otlp_trace(trace_id):
        for scope in resource["scopeSpans"]:
            for s in scope["spans"]:
                links = [(link["spanId"], attributes(link.get("attributes", []))) for link in s.get("links", [])]
                found[s["spanId"]] = Span(
                    s["name"], s["spanId"], s.get("parentSpanId", ""), int(s["startTimeUnixNano"]),
                    int(s["endTimeUnixNano"]), attributes(s.get("attributes", [])), links,
                    s.get("status", {}).get("code", UNSET), [event["name"] for event in s.get("events", [])],
                )  # fmt: skip
    return list(found.values())


class Mixed(NamedTuple):
    """What programs/mixed.py recorded, by task, and what Jaeger holds of it."""

    recorded: dict[tuple[str, int], list[dict[str, Any]]]
    spans: list[Span]
    stats: dict[str, Any]
    on_page: list[dict[str, Any]]
    """The spans as Jaeger's page gets them."""

    def one(self, category: str, task: int) -> dict[str, Any]:
        """The only timespan of a category and task."""
        (row,) = self.recorded[category, task]
        return row

    def tasks(self) -> list[int]:
        """The ids of all tasks."""
        return sorted(task for category, task in self.recorded if category == "add_thunk")

    def span_of(self, task: int) -> Span:
        """The task's own span."""
        (span,) = [s for s in self.spans if s.attributes.get("timespan.task.id") == task and s.name not in PHASES]
        return span

    def phase(self, name: str, task: int) -> list[Span]:
        """The task's spans of one phase."""
        parent = self.span_of(task).span_id
        return [s for s in self.spans if s.parent_id == parent and s.name == name]

    def root(self) -> Span:
        """The only span without a parent."""
        (root,) = [s for s in self.spans if not s.parent_id]
        return root


PHASES = {"queue", "move", "compute"}


@pytest.fixture(scope="module", params=["grpc", "http/protobuf"])
def mixed(_running_stack: Stack | None, request: pytest.FixtureRequest) -> Mixed | None:
    """programs/mixed.py, run once over each protocol."""
    stack = _running_stack
    if stack is None:
        return None
    service = new_service()
    said = report(finished([str(PROGRAMS / "mixed.py")], environment(stack, service, request.param)))
    assert said["flushed"] is True
    eventually(lambda: len(stack.span_ids(service)) >= said["stats"]["recorded"])
    (trace,) = stack.traces(service)
    recorded: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in said["spans"]:
        recorded.setdefault((row["category"], row["id"].get("thunk_id", 0)), []).append(row)
    return Mixed(recorded, spans_of(stack, trace["traceID"]), said["stats"], trace["spans"])


def test_account_balances(stack: Stack, mixed: Mixed) -> None:
    """What the log says it recorded was exported, all of it, and Jaeger has that many spans."""
    stats = mixed.stats
    assert stats["recorded"] == stats["exported"] == len(mixed.spans)
    assert stats["pending"] == stats["sampled"] == sum(stats["dropped"].values()) == 0


def test_every_task_is_a_span(stack: Stack, mixed: Mixed) -> None:
    """Names, counts and nothing else: each task once, in one tree under the run's root."""
    names = Counter(mixed.one("add_thunk", task)["function"] for task in mixed.tasks())
    assert names == {"load": 4, "count": 6, "merge": 2, "fail": 1, "outer": 1}
    assert Counter(mixed.span_of(task).name for task in mixed.tasks()) == names
    assert mixed.root().name == "dag mixed"
    assert {s.name for s in mixed.spans} == {*names, *PHASES, "dag mixed"} - ({"move"} - {s.name for s in mixed.spans})


def test_parents(stack: Stack, mixed: Mixed) -> None:
    """A task hangs under the run, or under the body that spawned it; its phases hang under the task."""
    for task in mixed.tasks():
        spawned_by = mixed.one("add_thunk", task)["spawned_by"]
        expected = mixed.phase("compute", spawned_by)[0] if spawned_by else mixed.root()
        assert mixed.span_of(task).parent_id == expected.span_id
    known = {s.span_id for s in mixed.spans}
    assert all(s.parent_id in known for s in mixed.spans if s.parent_id)


def test_jaegers_page_finds_each_span_under_the_root(stack: Stack, mixed: Mixed) -> None:
    """It takes a span's first reference, of whatever kind, for its parent; where the root has one it shows nothing."""
    parents = {s["spanID"]: s["references"][0]["spanID"] if s["references"] else "" for s in mixed.on_page}
    for span in parents:
        seen = [span]
        while seen[-1] in parents and len(seen) <= len(parents):
            seen.append(parents[seen[-1]])
        assert seen[-1] == "", "the page does not find this span from the root"


def test_links(stack: Stack, mixed: Mixed) -> None:
    """Each dependency is a link to the upstream's span; the last one to finish comes first and says so."""
    for task in mixed.tasks():
        upstreams = mixed.one("add_thunk", task)["deps"]
        links = [x for x in mixed.span_of(task).links if x[1]["timespan.link.type"] == "dependency"]
        assert Counter(span_id for span_id, _ in links) == Counter(mixed.span_of(u).span_id for u in upstreams)
        if upstreams:
            blocking = max(upstreams, key=lambda u: mixed.one("finish", u)["finish"])
            assert links[0][0] == mixed.span_of(blocking).span_id
            assert [x[1].get("timespan.link.blocking", False) for x in links] == [True] + [False] * (len(links) - 1)


def test_statuses(stack: Stack, mixed: Mixed) -> None:
    """A body that raised is an error with its exception; what never ran is an error that points at the cause."""
    for task in mixed.tasks():
        state, span = mixed.one("finish", task)["state"], mixed.span_of(task)
        assert span.attributes["timespan.task.result"] == state
        assert span.status == (UNSET if state == "success" else ERROR)
        if state == "failure":
            assert span.attributes["error.type"] == "ValueError"
            assert mixed.phase("compute", task)[0].events == ["exception"]
            failure = span
        elif state == "skip":
            assert span.attributes["error.type"] == "DTaskFailedError"
            assert not mixed.phase("compute", task)
            skipped = span
    causes = [span_id for span_id, link in skipped.links if link["timespan.link.type"] == "cause"]
    assert causes == [failure.span_id]


def test_times(stack: Stack, mixed: Mixed) -> None:
    """Every time in Jaeger is the time in the log: the distance between the two clocks is one and the same."""
    first = mixed.tasks()[0]
    offset = mixed.span_of(first).start - mixed.one("add_thunk", first)["start"]

    def same(wall: int, monotonic: int) -> bool:
        return abs(wall - offset - monotonic) <= ROUNDING_NS

    for task in mixed.tasks():
        span = mixed.span_of(task)
        assert same(span.start, mixed.one("add_thunk", task)["start"]), span
        assert same(span.end, mixed.one("finish", task)["finish"]), span
        for phase in mixed.phase("compute", task):
            assert same(phase.start, mixed.one("compute", task)["start"]), phase
            assert same(phase.end, mixed.one("compute", task)["finish"]), phase
    by_id = {s.span_id: s for s in mixed.spans}
    for span in mixed.spans:
        parent = by_id.get(span.parent_id, span)
        assert parent.start <= span.start <= span.end <= parent.end


def test_waits_add_up(stack: Stack, mixed: Mixed) -> None:
    """The waits and the run of a task are its span, without a gap."""
    parts = ("wait.dependency", "wait.schedule", "wait.queue", "wait.move", "run.wall", "wait.finish")
    for task in mixed.tasks():
        if mixed.one("finish", task)["state"] != "skip":
            span = mixed.span_of(task)
            total = sum(span.attributes[f"timespan.{part}"] for part in parts)
            assert total == pytest.approx((span.end - span.start) / 1e9, abs=1e-6)


def test_root_counts(stack: Stack, mixed: Mixed) -> None:
    """The root sums up its run, and carries what the caller gave to dag()."""
    counts = mixed.root().attributes
    states = Counter(mixed.one("finish", task)["state"] for task in mixed.tasks())
    assert counts["timespan.dag.tasks"] == len(mixed.tasks()) == 14
    assert counts["timespan.dag.tasks.failed"] == states["failure"] == 1
    assert counts["timespan.dag.tasks.skipped"] == states["skip"] == 1
    assert counts["timespan.dag.complete"] is True
    assert counts["purpose"] == "test"


def test_collector_restart_loses_nothing(stack: Stack) -> None:
    """The collector is killed in the middle of a run and comes back later: Jaeger gets every span recorded."""
    service = new_service()
    with Conversation("steady.py", environment(stack, service)) as program:
        program.ask("go")
        eventually(lambda: stack.span_ids(service))
        program.tell("go")
        stack.kill("otelcol")
        program.answered("go")
        program.ask("go")
        stack.start("otelcol")
        program.ask("go")
        said = program.end()
    stats = said["stats"]
    assert said["flushed"] is True
    assert sum(stats["dropped"].values()) == 0
    assert stats["recorded"] == stats["exported"] >= 4 * 600 * 2
    eventually(lambda: len(stack.span_ids(service)) == stats["recorded"])


def test_bytes_rise_and_fall(stack: Stack) -> None:
    """BytesAllocd in Prometheus goes up with the results that a run holds, and down when they are released."""
    service = new_service()
    series = f'sum(timespan_bytes_allocd{{job="{service}"}})'
    with Conversation("steady.py", environment(stack, service)) as program:

        def value() -> float:
            found = stack.query(series)
            return float(found[0]["value"][1]) if found else -1.0

        program.ask("go")
        eventually(lambda: value() >= 0)
        low = value()
        program.ask("hold")
        eventually(lambda: value() >= low + 8 * 5_000_000)
        program.ask("release")
        eventually(lambda: value() < 5_000_000)
        program.end()
    ((_, values),) = [(one["metric"], one["values"]) for one in stack.query_range(series)]
    peak = max(float(v) for _, v in values)
    assert peak >= 8 * 5_000_000 and float(values[-1][1]) < 5_000_000
