"""design/otel-model.md §1.3: the head sampler decides once a run; metrics stay exact."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import DEADLINE_S, Lab, check_account, check_tree, one, task_spans

Make = Callable[..., Lab]


def double(x: int) -> int:
    """A body."""
    return 2 * x


def fail() -> None:
    """A body that raises."""
    raise ValueError("no")


def test_13_always_off_keeps_metrics_exact(make_lab: Make) -> None:
    """No span is exported, stats says they were sampled out, and every metric counts all the same."""
    lab = make_lab(provider_options={"sampler": ALWAYS_OFF})
    tasks = [ts.spawn(double, i) for i in range(20)] + [ts.spawn(fail) for _ in range(3)]
    ts.waitall(tasks)
    assert lab.spans() == []
    stats = lab.log.stats()
    check_account(stats)
    assert stats["exported"] == 0
    assert stats["sampled"] == stats["recorded"] > 0
    assert lab.value("timespan.task.count", timespan__task__result="success") == 20
    assert lab.value("timespan.task.count", timespan__task__result="failure") == 3
    assert sum(p.count for p in lab.points("timespan.task.duration")) == 23
    assert sum(p.count for p in lab.points("timespan.dag.duration")) == 1


def test_13_unsampled_counts_what_would_have_been_recorded(make_lab: Make) -> None:
    """The account of an unsampled run counts the spans that a sampled one exports."""
    counts = []
    for sampler in (ALWAYS_ON, ALWAYS_OFF):
        lab = make_lab(provider_options={"sampler": sampler})
        a = ts.spawn(double, 1)
        ts.waitall([ts.spawn(double, a), ts.spawn(fail), ts.spawn(len, ts.tochunk([1]))])
        lab.spans()
        counts.append(lab.log.stats()["recorded"])
        lab.close()
    assert counts[0] == counts[1]


def test_13_unsampled_body_has_an_unsampled_current_span(make_lab: Make) -> None:
    """Inside an unsampled body the current span is valid, records nothing, and its children are dropped with it."""
    lab = make_lab(provider_options={"sampler": ParentBased(ALWAYS_OFF)})
    seen: list[Any] = []

    def body() -> None:
        span = trace.get_current_span()
        seen.append((span.is_recording(), span.get_span_context()))
        with lab.tracer.start_as_current_span("user's"):
            ts.fetch(ts.spawn(double, 1))

    ts.fetch(ts.spawn(body))
    assert lab.spans() == []
    recording, where = seen[0]
    assert not recording
    assert where.is_valid
    assert not where.trace_flags.sampled


def test_13_ratio_takes_whole_runs(make_lab: Make) -> None:
    """With a ratio some runs are whole and the others are not there at all; metrics count all of them."""
    lab = make_lab(provider_options={"sampler": TraceIdRatioBased(0.5)})
    for _ in range(40):
        with ts.dag("r"):
            a = ts.spawn(double, 1)
            ts.fetch(ts.spawn(double, a))
    spans = lab.spans()
    check_tree(spans)
    traces = Counter(s.context.trace_id for s in spans)
    assert 5 <= len(traces) <= 35
    assert set(traces.values()) == {7}
    assert len(task_spans(spans)) == 2 * len(traces)
    assert lab.value("timespan.task.count") == 80
    stats = lab.log.stats()
    assert stats["exported"] == len(spans)
    assert stats["recorded"] == 7 * 40
    check_account(stats)


@pytest.mark.parametrize("sampled", [True, False])
def test_13_parent_based_follows_a_remote_parent(make_lab: Make, sampled: bool) -> None:
    """A remote parent's flag decides, for dag() and for bare spawns."""
    lab = make_lab(provider_options={"sampler": ParentBased(ALWAYS_OFF if sampled else ALWAYS_ON)})
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else 0)
    remote = SpanContext(0x1234 << 64 | 0x5678, 0x9ABC, is_remote=True, trace_flags=flags)
    with trace.use_span(NonRecordingSpan(remote)):
        with ts.dag("remote"):
            ts.fetch(ts.spawn(double, 1))
        ts.fetch(ts.spawn(double, 2))
    spans = lab.spans()
    assert len([s for s in spans if s.name == "double"]) == (2 if sampled else 0)
    assert {s.context.trace_id for s in spans} == ({remote.trace_id} if sampled else set())
    if sampled:
        assert one(spans, "dag remote").parent.span_id == remote.span_id
    check_account(lab.log.stats())


class Asked(Sampler):
    """A sampler that remembers what it was asked."""

    def __init__(self, decide: Callable[[str], Decision]) -> None:
        self.names: list[str] = []
        self.attributes: list[Any] = []
        self._decide = decide

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, kind: Any = None, attributes: Any = None,
        links: Any = None, trace_state: Any = None,
    ) -> SamplingResult:  # fmt: skip
        self.names.append(name)
        self.attributes.append(dict(attributes or {}))
        return SamplingResult(self._decide(name), {"sampler.says": "hi"})

    def get_description(self) -> str:
        return "Asked"


def test_13_sampler_is_asked_once_a_run(make_lab: Make) -> None:
    """The root's name and attributes are what the sampler sees, once a run, and its attributes land on the root."""
    sampler = Asked(lambda name: Decision.DROP if "secret" in name else Decision.RECORD_AND_SAMPLE)
    lab = make_lab(provider_options={"sampler": sampler})
    with ts.dag("open", team="blue"):
        ts.waitall([ts.spawn(double, i) for i in range(10)])
    with ts.dag("secret"):
        ts.waitall([ts.spawn(double, i) for i in range(10)])
    spans = lab.spans()
    assert sampler.names == ["dag open", "dag secret"]
    assert sampler.attributes[0]["team"] == "blue"
    assert one(spans, "dag open").attributes["sampler.says"] == "hi"
    assert len(task_spans(spans)) == 10


def test_13_record_only_is_not_exported(make_lab: Make) -> None:
    """A decision to record but not to sample exports nothing and keeps the account."""
    lab = make_lab(provider_options={"sampler": Asked(lambda _: Decision.RECORD_ONLY)})
    ts.waitall([ts.spawn(double, i) for i in range(5)])
    lab.log.flush(DEADLINE_S)
    assert not [s for s in lab.exporter.get_finished_spans() if s.context.trace_flags.sampled]
    check_account(lab.log.stats())


def test_13_a_sampler_that_raises_hurts_nothing(make_lab: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The program goes on and is warned once; metrics are exact."""

    def bad(_: str) -> Decision:
        raise RuntimeError("sampler")

    lab = make_lab(provider_options={"sampler": Asked(bad)})
    assert ts.fetch_all([ts.spawn(double, i) for i in range(5)]) == [0, 2, 4, 6, 8]
    with ts.dag("x"):
        assert ts.fetch(ts.spawn(double, 1)) == 2
    assert lab.value("timespan.task.count") == 6
    check_account(lab.log.stats())
    assert 1 <= len([r for r in caplog.records if r.name == "otel_timespan"]) <= 2


def test_13_unsampled_user_span_hides_its_tasks(make_lab: Make) -> None:
    """Tasks under a user's span that was not sampled are not exported; beside it they are."""
    sampler = Asked(lambda name: Decision.DROP if name == "hidden" else Decision.RECORD_AND_SAMPLE)
    lab = make_lab(provider_options={"sampler": ParentBased(sampler)})
    with lab.tracer.start_as_current_span("hidden"):
        hidden = ts.spawn(double, 1)
        ts.fetch(hidden)
    with lab.tracer.start_as_current_span("shown"):
        shown = ts.spawn(double, hidden)
        ts.fetch(shown)
    spans = lab.spans()
    assert set(task_spans(spans)) == {shown.id}
    (link,) = task_spans(spans)[shown.id].links
    assert not link.context.trace_flags.sampled


def test_13_mixed_runs_at_once_keep_the_account(make_lab: Make) -> None:
    """Sampled and unsampled runs interleaved on four threads: every span is accounted for."""
    lab = make_lab(provider_options={"sampler": Asked(
        lambda name: Decision.DROP if name.endswith("odd") else Decision.RECORD_AND_SAMPLE
    )})  # fmt: skip

    def program(i: int) -> None:
        for _ in range(10):
            with ts.dag("odd" if i % 2 else "even"):
                ts.waitall([ts.spawn(double, k) for k in range(5)])

    threads = [threading.Thread(target=program, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(DEADLINE_S)
    spans = lab.spans()
    assert len(task_spans(spans)) == 100
    assert lab.value("timespan.task.count") == 200
    stats = lab.log.stats()
    check_account(stats)
    assert stats["exported"] == len(spans) == stats["sampled"]
