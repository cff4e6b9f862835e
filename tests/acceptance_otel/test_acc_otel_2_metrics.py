"""design/otel-model.md §2: instruments, units, attributes and values after a run with everything in it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, View

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    Lab,
    metrics_of,
    one,
    sid,
    task_span,
)
from tests.backends import eventually

Make = Callable[..., Lab]

TABLE = {
    "timespan.bytes_allocd": (Gauge, "By"),
    "timespan.worker.saturation": (Gauge, "{task}"),
    "timespan.processor.saturation": (Gauge, "{task}"),
    "timespan.event.saturation": (Gauge, "{event}"),
    "timespan.system.load_average": (Gauge, "{thread}"),
    "timespan.system.memory.free": (Gauge, "1"),
    "timespan.task.count": (Sum, "{task}"),
    "timespan.task.active": (Sum, "{task}"),
    "timespan.task.oldest_age": (Gauge, "s"),
    "timespan.task.duration": (Histogram, "s"),
    "timespan.task.wait": (Histogram, "s"),
    "timespan.move.duration": (Histogram, "s"),
    "timespan.move.io": (Sum, "By"),
    "timespan.retry.count": (Sum, "{retry}"),
    "timespan.evict.count": (Sum, "{evict}"),
    "timespan.dag.duration": (Histogram, "s"),
    "timespan.dag.critical_path": (Histogram, "s"),
    "timespan.events": (Sum, "{event}"),
}
BOUNDED = {
    "timespan.worker.id", "timespan.processor", "timespan.event.category", "timespan.task.result", "error.type",
    "code.function.name", "timespan.task.state", "timespan.wait.phase", "timespan.move.source",
    "timespan.move.destination", "timespan.dag.result", "timespan.drop.reason", "timespan.span.outcome",
}  # fmt: skip


def double(x: int) -> int:
    """A body."""
    return 2 * x


def fail() -> None:
    """A body that raises."""
    raise ValueError("no")


def big(n: int) -> bytes:
    """A body with a result of n bytes."""
    return bytes(n)


def held(gate: threading.Event, *_: Any) -> int:
    """A body that waits."""
    assert gate.wait(DEADLINE_S)
    return 1


def everything(gate: threading.Event) -> dict[str, int]:
    """A run with 6 successes, 2 failures, 3 skips, 1 cancellation, 1 retry, 1 move of 1,000 bytes."""
    left = [1]

    def flaky() -> int:
        if left:
            left.pop()
            raise KeyError("once")
        return 1

    with ts.dag("everything"):
        good = [ts.spawn(double, i) for i in range(3)]
        bad = [ts.spawn(fail) for _ in range(2)]
        skipped = [ts.spawn(double, bad[0]) for _ in range(2)]
        skipped.append(ts.spawn(double, skipped[0]))
        again = ts.spawn(flaky, ts.Options(retries=1))
        moved = ts.spawn(len, ts.tochunk(bytes(1000)))
        block = ts.spawn(held, gate)
        cancelled = ts.spawn(double, block)
        ts.cancel(cancelled)
        gate.set()
        ts.waitall([*good, *bad, *skipped, again, moved, block, cancelled])
    return {"success": 6, "failure": 2, "skip": 3, "cancellation": 1}


def test_2_names_kinds_units_and_attributes(lab: Lab, gate: threading.Event) -> None:
    """Every instrument of the table is there with its kind and unit, and only bounded attributes."""
    everything(gate)
    lab.log.flush(DEADLINE_S)
    found = {m.name: m for m in metrics_of(lab.reader) if m.name.startswith("timespan.")}
    assert TABLE.keys() <= found.keys(), TABLE.keys() - found.keys()
    for name, (kind, unit) in TABLE.items():
        assert (type(found[name].data), found[name].unit) == (kind, unit), name
        assert found[name].description, name
    for m in found.values():
        for p in m.data.data_points:
            assert set(p.attributes) <= BOUNDED, (m.name, dict(p.attributes))
    assert found["timespan.task.count"].data.is_monotonic
    assert not found["timespan.task.active"].data.is_monotonic


def test_2_values_after_a_run(lab: Lab, gate: threading.Event) -> None:
    """Counts per result, waits, durations, moves, retries and runs are what happened."""
    expected = everything(gate)
    for result, count in expected.items():
        assert lab.value("timespan.task.count", timespan__task__result=result) == count, result
    counts = [p for p in lab.points("timespan.task.count") if p.value]
    failures = [p for p in counts if p.attributes["timespan.task.result"] == "failure"]
    assert [(p.attributes["error.type"], p.value) for p in failures] == [("ValueError", 2)]
    assert all("error.type" not in p.attributes for p in lab.points("timespan.task.count")
               if p.attributes["timespan.task.result"] in ("success", "cancellation"))  # fmt: skip
    durations = {}
    for p in lab.points("timespan.task.duration"):
        key = p.attributes["timespan.task.result"]
        durations[key] = durations.get(key, 0) + p.count
    assert durations == expected
    assert lab.value("timespan.retry.count") == 1
    assert lab.value("timespan.move.io") == 1000
    (move,) = lab.points("timespan.move.duration")
    assert move.count == 1
    assert dict(move.attributes) == {"timespan.move.source": 1, "timespan.move.destination": 1}
    (dag,) = lab.points("timespan.dag.duration")
    assert (dag.count, dag.attributes["timespan.dag.result"]) == (1, "failure")
    (path,) = lab.points("timespan.dag.critical_path")
    assert path.count == 1
    assert path.sum <= dag.sum
    assert lab.value("timespan.events") > 50


def test_2_wait_histogram_counts(lab: Lab) -> None:
    """Each task that ran gives one wait of each phase, and their sum is what the spans say."""
    a = ts.spawn(double, 1)
    tasks = [a, *[ts.spawn(double, a) for _ in range(9)]]
    ts.waitall(tasks)
    spans = lab.spans()
    points = {p.attributes["timespan.wait.phase"]: p for p in lab.points("timespan.task.wait")}
    assert {k: p.count for k, p in points.items()} == dict.fromkeys(("dependency", "schedule", "queue", "move"), 10)
    for name, p in points.items():
        total = sum(task_span(spans, t).attributes[f"timespan.wait.{name}"] for t in tasks)
        assert p.sum == pytest.approx(total, abs=1e-8)


def test_2_durations_are_those_of_the_spans(lab: Lab) -> None:
    """The histogram's sum is the sum of the span durations."""
    tasks = [ts.spawn(double, i) for i in range(10)]
    ts.waitall(tasks)
    spans = lab.spans()
    (p,) = lab.points("timespan.task.duration")
    total = sum(task_span(spans, t).end_time - task_span(spans, t).start_time for t in tasks) / 1e9
    assert p.sum == pytest.approx(total, abs=1e-7)
    assert p.attributes["code.function.name"].endswith("double")
    (d,) = lab.points("timespan.dag.duration")
    root = one(spans, "dag")
    assert d.sum == pytest.approx((root.end_time - root.start_time) / 1e9, abs=1e-7)


def test_2_boundaries_fit_seconds(lab: Lab) -> None:
    """10 µs to 1 h, not the SDK's milliseconds."""
    ts.fetch(ts.spawn(double, 1))
    for name in ("timespan.task.duration", "timespan.task.wait", "timespan.dag.duration"):
        bounds = lab.points(name)[0].explicit_bounds
        assert bounds[0] == 1e-5
        assert bounds[-1] == 3600


def test_2_exemplars_carry_the_ids_of_their_spans(lab: Lab) -> None:
    """Exemplars of task, wait and dag durations point at spans that exist."""
    ts.fetch(ts.spawn(double, ts.tochunk(1)))
    deadline_points: dict[str, list[Any]] = {}
    lab.ctx.log_sink = ts.NoOpLog()
    names = ("timespan.task.duration", "timespan.task.wait", "timespan.move.duration")
    for m in metrics_of(lab.reader):  # the first collection: later ones have exemplars of their own interval only
        if m.name in names:
            deadline_points[m.name] = list(m.data.data_points)
    spans = lab.spans()
    known = {(s.context.trace_id, sid(s)) for s in spans}
    for name in names:
        exemplars = [(e.trace_id, e.span_id) for p in deadline_points[name] for e in p.exemplars]
        assert exemplars, name
        assert set(exemplars) <= known, name


def test_2_exemplar_of_the_task_is_the_task_span(lab: Lab) -> None:
    """timespan.task.duration's exemplar is the task's own span, its value its duration."""
    task = ts.spawn(double, 1)
    ts.fetch(task)
    (point,) = lab.points("timespan.task.duration", flush=False)
    span = task_span(lab.spans(), task)
    (e,) = point.exemplars
    assert (e.trace_id, e.span_id) == (span.context.trace_id, sid(span))
    assert e.value == pytest.approx((span.end_time - span.start_time) / 1e9)


def test_2_no_exemplars_of_unsampled_runs(make_lab: Make) -> None:
    """With the SDK's trace-based filter, an unsampled run leaves none (its span can't be found)."""
    from opentelemetry.sdk.metrics import TraceBasedExemplarFilter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], exemplar_filter=TraceBasedExemplarFilter(), shutdown_on_exit=False)
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    log = ts.OTelLog(tracer_provider=provider, meter_provider=meters)
    ts.eager_context().log_sink = log
    ts.fetch(ts.spawn(double, 1))
    points = [p for m in metrics_of(reader) if m.name == "timespan.task.duration" for p in m.data.data_points]
    ts.eager_context().log_sink = ts.NoOpLog()
    log.close()
    meters.shutdown()
    assert points[0].count == 1
    assert not points[0].exemplars


# ---- gauges ----------------------------------------------------------------------------------------------


def test_2_bytes_allocd_up_and_down(lab: Lab) -> None:
    """The gauge rises by a result's bytes and falls to zero when the last handle is gone."""
    a, b = ts.spawn(big, 100_000), ts.spawn(big, 50_000)
    ts.waitall([a, b])
    assert lab.value("timespan.bytes_allocd", timespan__worker__id=1) == 150_000
    del a
    gc.collect()
    assert eventually(lambda: lab.value("timespan.bytes_allocd") == 50_000, DEADLINE_S)
    del b
    gc.collect()
    assert eventually(lambda: lab.value("timespan.bytes_allocd") == 0, DEADLINE_S)
    assert lab.points("timespan.bytes_allocd"), "a gauge that fell to 0 still shows"
    assert lab.value("timespan.evict.count") >= 2


def test_2_saturation_while_running_and_after(lab: Lab, gate: threading.Event) -> None:
    """Two bodies that run show as 2 on the worker and on processors; at the end everything is 0."""
    with ts.Context(threads=2, log_sink=lab.log):
        started = threading.Barrier(3)

        def body() -> None:
            started.wait(DEADLINE_S)
            held(gate)

        tasks = [ts.spawn(body) for _ in range(2)]
        waiting = ts.spawn(double, tasks[0])
        started.wait(DEADLINE_S)
        value = lambda name, **a: sum(  # noqa: E731
            p.value for p in lab.points(name, flush=False) if a.items() <= dict(p.attributes).items()
        )
        assert value("timespan.worker.saturation") == 2
        assert value("timespan.processor.saturation") == 2
        assert value("timespan.event.saturation", **{"timespan.event.category": "compute"}) == 2
        assert value("timespan.task.active", **{"timespan.task.state": "running"}) == 2
        assert value("timespan.task.active", **{"timespan.task.state": "waiting"}) == 1
        assert value("timespan.task.active") == 3
        ages = {p.attributes["timespan.task.state"]: p.value for p in lab.points("timespan.task.oldest_age", False)}
        assert ages["running"] > 0
        assert ages["waiting"] > 0
        first = ages["running"]
        ages = {p.attributes["timespan.task.state"]: p.value for p in lab.points("timespan.task.oldest_age", False)}
        assert ages["running"] > first
        gate.set()
        ts.waitall([*tasks, waiting])
    for name in ("timespan.worker.saturation", "timespan.processor.saturation", "timespan.task.active"):
        points = lab.points(name)
        assert points
        assert {p.value for p in points} == {0}, name
    esat = {p.attributes["timespan.event.category"]: p.value for p in lab.points("timespan.event.saturation")}
    assert set(esat.values()) == {0}, esat
    assert sum(p.value for p in lab.points("timespan.task.oldest_age")) == 0


def test_2_active_after_failures_cancels_and_halts(lab: Lab, gate: threading.Event) -> None:
    """Whatever way tasks end, none stays active, not even when the scheduler is halted with some waiting."""
    started = threading.Event()

    def body() -> None:
        started.set()
        held(gate)

    tasks = [ts.spawn(body), ts.spawn(fail)]
    tasks += [ts.spawn(double, tasks[0]), ts.spawn(double, tasks[1])]
    assert started.wait(DEADLINE_S)
    ts.cancel(halt_sch=True)
    gate.set()
    assert eventually(lambda: not any(p.value for p in lab.points("timespan.task.active")), DEADLINE_S)
    assert lab.value("timespan.task.count") == 4
    assert eventually(lambda: lab.value("timespan.worker.saturation") == 0, DEADLINE_S)


def test_2_system_gauges(lab: Lab) -> None:
    """Free memory is a fraction, load average a number, both with the worker."""
    ts.fetch(ts.spawn(double, 1))
    (mem,) = lab.points("timespan.system.memory.free")
    assert 0 < mem.value < 1
    assert dict(mem.attributes) == {"timespan.worker.id": 1}
    (load,) = lab.points("timespan.system.load_average")
    assert load.value >= 0


def test_2_function_names_are_capped(lab: Lab) -> None:
    """More than 200 function names: the rest counts as other, and nothing is lost."""
    functions: list[Any] = []
    for i in range(250):
        space: dict[str, Any] = {}
        exec(f"def f{i}(): return {i}", space)
        functions.append(space[f"f{i}"])
    ts.waitall([ts.spawn(f) for f in functions])
    points = [p for p in lab.points("timespan.task.count") if p.value]
    names = {p.attributes["code.function.name"] for p in points}
    assert len(names) == 201
    assert "other" in names
    assert sum(p.value for p in points) == 250
    assert lab.value("timespan.task.count", code__function__name="other") == 50


def test_2_error_types_are_bounded(lab: Lab) -> None:
    """A program that makes a new exception class for each failure does not make a series for each."""

    def body(i: int) -> None:
        raise type(f"Error{i}", (Exception,), {})

    ts.waitall([ts.spawn(body, i) for i in range(1000)])
    assert lab.value("timespan.task.count", timespan__task__result="failure") == 1000
    assert len([p for p in lab.points("timespan.task.count") if p.value]) < 500


def test_2_span_metrics_keep_the_account(lab: Lab) -> None:
    """timespan.spans.recorded is the sum of timespan.spans and timespan.spans.pending, and equals stats()."""
    ts.waitall([ts.spawn(double, i) for i in range(50)])
    lab.spans()
    stats = lab.log.stats()
    assert lab.value("timespan.spans.recorded") == stats["recorded"]
    assert lab.value("timespan.spans", timespan__span__outcome="exported") == stats["exported"]
    assert lab.value("timespan.spans") + lab.value("timespan.spans.pending") == stats["recorded"]


def test_2_two_logs_at_one_provider_add_up(make_lab: Make) -> None:
    """Closing a log and opening the next at the same provider goes on counting, without warnings or doubles."""
    lab = make_lab()
    ts.fetch(ts.spawn(double, 1))
    lab.spans()
    lab.log.close()
    second = ts.OTelLog(tracer_provider=lab.provider, meter_provider=lab.meters)
    lab.ctx.log_sink = second
    ts.fetch(ts.spawn(double, 1))
    assert second.flush(DEADLINE_S)
    counts = [p.value for m in metrics_of(lab.reader) if m.name == "timespan.task.count" for p in m.data.data_points]
    second.close()
    assert sum(counts) == 2


def test_2_metrics_false_emits_none(make_lab: Make) -> None:
    """metrics=False: no instrument of ours at the provider, spans as ever."""
    lab = make_lab(metrics=False)
    ts.fetch(ts.spawn(double, 1))
    assert lab.spans()
    assert not [m for m in metrics_of(lab.reader) if m.name.startswith("timespan.")]


def test_2_consumers_choose_the_gauges(make_lab: Make) -> None:
    """consumers=[BytesAllocd()] leaves only that gauge."""
    lab = make_lab(consumers=[ts.BytesAllocd()])
    kept = ts.spawn(big, 1000)
    ts.wait(kept)
    assert lab.value("timespan.bytes_allocd") == 1000
    names = {m.name for m in metrics_of(lab.reader)}
    assert "timespan.worker.saturation" not in names
    assert "timespan.task.count" in names


def test_2_views_are_honoured() -> None:
    """The user's views win: exponential histograms, and an instrument dropped."""
    reader = InMemoryMetricReader()
    views = [
        View(instrument_name="timespan.task.duration", aggregation=ExponentialBucketHistogramAggregation()),
        View(instrument_name="timespan.task.wait", aggregation=DropAggregation()),
    ]
    meters = MeterProvider([reader], views=views, shutdown_on_exit=False)
    from opentelemetry.sdk.trace import TracerProvider

    log = ts.OTelLog(tracer_provider=TracerProvider(shutdown_on_exit=False), meter_provider=meters)
    ts.eager_context().log_sink = log
    ts.fetch(ts.spawn(double, 1))
    log.flush(DEADLINE_S)
    found = {m.name: m for m in metrics_of(reader)}
    ts.eager_context().log_sink = ts.NoOpLog()
    log.close()
    meters.shutdown()
    assert type(found["timespan.task.duration"].data).__name__ == "ExponentialHistogram"
    assert "timespan.task.wait" not in found


# ---- OTelAggregator --------------------------------------------------------------------------------------


class Meters:
    """A meter provider with one reader."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def points(self, name: str) -> list[Any]:
        """Data points now."""
        return [p for m in metrics_of(self.reader) if m.name == name for p in m.data.data_points]


@pytest.fixture
def meters() -> Any:
    """One, shut down at the end."""
    made = Meters()
    yield made
    made.provider.shutdown()


def test_2_aggregator_makes_gauges_of_streams(meters: Meters) -> None:
    """A MultiEventLog's bytes and saturations become the gauges of the table, whatever the streams are called."""
    ml = ts.MultiEventLog()
    ml["some name"] = ts.BytesAllocd()
    ml["w"] = ts.WorkerSaturation()
    ml["p"] = ts.ProcessorSaturation()
    ml["e"] = ts.EventSaturation()
    ml.aggregators["otel"] = ts.OTelAggregator(meter_provider=meters.provider)
    with ts.Context(threads=2, log_sink=ml):
        kept = ts.spawn(big, 1000)
        ts.wait(kept)
        ts.get_logs(ml)
        (p,) = meters.points("timespan.bytes_allocd")
        assert (p.value, dict(p.attributes)) == (1000, {"timespan.worker.id": 1})
        del kept
        gc.collect()
        assert eventually(lambda: [p.value for p in meters.points("timespan.bytes_allocd")] == [0], DEADLINE_S)
    assert {p.value for p in meters.points("timespan.worker.saturation")} == {0}
    assert {p.value for p in meters.points("timespan.processor.saturation")} == {0}
    ml.close()


def test_2_aggregator_drains_at_each_collection(meters: Meters) -> None:
    """A collection alone, without get_logs, shows the present value."""
    ml = ts.MultiEventLog()
    ml["bytes"] = ts.BytesAllocd()
    ml.aggregators["otel"] = ts.OTelAggregator(meter_provider=meters.provider)
    ts.eager_context().log_sink = ml
    kept = ts.spawn(big, 4321)
    ts.wait(kept)
    assert [p.value for p in meters.points("timespan.bytes_allocd")] == [4321]
    ml.close()


def test_2_aggregator_takes_streams_of_the_user(meters: Meters) -> None:
    """A stream of numbers with a spec is a gauge under the user's name; what is no number is passed over."""
    ml = ts.MultiEventLog()
    values: list[Any] = [1, None, "text", 2.5]

    class Mine:
        categories = frozenset({"compute"})
        phase = "finish"

        def __call__(self, event: Any) -> Any:
            return values.pop(0)

    ml["mine"] = Mine()
    ml.aggregators["otel"] = ts.OTelAggregator(meter_provider=meters.provider, streams={"mine": "app.rows"})
    ts.eager_context().log_sink = ml
    for i in range(4):
        ts.fetch(ts.spawn(double, i))
    ts.get_logs(ml)
    (p,) = meters.points("app.rows")
    assert p.value == 2.5
    assert p.attributes["timespan.worker.id"] == 1
    ml.close()


@pytest.mark.parametrize("spec", [3, {"nmae": "x"}, "", "1 bad name!", {"name": "ok", "kind": "pie"}])
def test_2_aggregator_refuses_wrong_specs(meters: Meters, spec: Any) -> None:
    """A spec that can't work is an error of ours at once that names the stream."""
    with pytest.raises(ts.TimespanError, match="mine"):
        ts.OTelAggregator(meter_provider=meters.provider, streams={"mine": spec})


def test_2_aggregator_and_log_together_count_nothing_twice(make_lab: Make) -> None:
    """TeeLog(ml, OTelLog()) at one provider: one point per attribute set, with the right value."""
    lab = make_lab(use=False)
    ml = ts.MultiEventLog()
    ml["bytes"] = ts.BytesAllocd()
    ml["wsat"] = ts.WorkerSaturation()
    ml["core"] = ts.CoreMetrics()
    ml.aggregators["otel"] = ts.OTelAggregator(meter_provider=lab.meters)
    lab.ctx.log_sink = ts.TeeLog(ml, lab.log)
    kept = [ts.spawn(big, 1000) for _ in range(5)]
    ts.waitall(kept)
    for name, value in (("timespan.bytes_allocd", 5000), ("timespan.worker.saturation", 0)):
        (p,) = lab.points(name)
        assert p.value == value, name
    assert lab.value("timespan.task.count") == 5
    names = [m.name for m in metrics_of(lab.reader)]
    assert len(names) == len(set(names)), [n for n in names if names.count(n) > 1]
    logs = ts.get_logs(ml)
    assert len(logs[1]["bytes"]) == len(logs[1]["core"]) > 0
    assert len([s for s in lab.spans() if s.name == "big"]) == 5
    ml.close()


def test_2_aggregator_takes_over_when_the_log_goes(make_lab: Make) -> None:
    """When the OTelLog beside it is closed, the aggregator's gauge goes on and is right."""
    lab = make_lab(use=False)
    ml = ts.MultiEventLog()
    ml["bytes"] = ts.BytesAllocd()
    ml.aggregators["otel"] = ts.OTelAggregator(meter_provider=lab.meters)
    lab.ctx.log_sink = ts.TeeLog(ml, lab.log)
    kept = [ts.spawn(big, 1000)]
    ts.waitall(kept)
    assert lab.log.flush(DEADLINE_S)
    lab.ctx.log_sink = ml
    lab.log.close()
    kept.append(ts.spawn(big, 1000))
    ts.waitall(kept)
    ts.get_logs(ml)
    values = [p.value for m in metrics_of(lab.reader) if m.name == "timespan.bytes_allocd" for p in m.data.data_points]
    assert values == [2000]
    ml.close()


def test_2_two_contexts_at_once(make_lab: Make, gate: threading.Event) -> None:
    """Two contexts with two logs at two providers: each counts its own tasks only."""
    one_lab, two_lab = make_lab(use=False), make_lab(use=False)
    with ts.Context(threads=1, log_sink=one_lab.log):
        ts.waitall([ts.spawn(double, i) for i in range(3)])
        with ts.Context(threads=1, log_sink=two_lab.log):
            ts.waitall([ts.spawn(double, i) for i in range(5)])
        ts.waitall([ts.spawn(double, i) for i in range(4)])
    assert one_lab.value("timespan.task.count") == 7
    assert two_lab.value("timespan.task.count") == 5
    assert len([s for s in one_lab.spans() if s.name == "double"]) == 7
    assert len([s for s in two_lab.spans() if s.name == "double"]) == 5


def test_2_two_contexts_share_one_log(make_lab: Make) -> None:
    """One log as the sink of two contexts counts both, and all waits are right."""
    lab = make_lab()
    with ts.Context(threads=1, log_sink=lab.log):
        ts.waitall([ts.spawn(double, i) for i in range(5)])
    lab.ctx.log_sink = lab.log
    tasks = [ts.spawn(double, i) for i in range(5)]
    ts.waitall(tasks)
    assert lab.value("timespan.task.count") == 10
    assert lab.value("timespan.task.active") == 0


def test_2_gauges_of_a_phase_span_exist_only_once_per_series(lab: Lab) -> None:
    """No instrument of ours gives two points with the same attributes."""
    ts.waitall([ts.spawn(double, i) for i in range(20)])
    lab.log.flush(DEADLINE_S)
    for m in metrics_of(lab.reader):
        keys = [tuple(sorted(p.attributes.items())) for p in m.data.data_points]
        assert len(keys) == len(set(keys)), m.name
