"""The metrics of `OTelLog`: names, exact counts, units, exemplars, and one owner of each instrument."""

from __future__ import annotations

import ast
import gc
import re
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import DTaskFailedError
from otel_timespan.otel import OTelLog, catalogue, dag, semconv
from otel_timespan.otel.metrics.gauges import default_consumers
from tests.backends import eventually
from tests.otel.stories import MS, half, move, submit, whole

Points = dict[tuple[Any, ...], Any]


def add(a: int, b: int) -> int:
    """A body."""
    return a + b


def boom() -> None:
    """A body that raises."""
    raise ValueError("no")


def burn() -> None:
    """A body that computes."""
    begun = time.thread_time()
    while time.thread_time() - begun < 0.03:
        pass


class Meters:
    """A reader, and logs that report to it."""

    def __init__(self, **options: Any) -> None:
        self.reader = InMemoryMetricReader(**options.pop("reader", {}))
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False, views=options.pop("views", ()))
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False, sampler=options.pop("sampler", None))
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.logs: list[OTelLog] = []
        self.log = self.make(**options)
        D.eager_context().log_sink = self.log

    def make(self, **options: Any) -> OTelLog:
        """One more log."""
        self.logs.append(OTelLog(tracer_provider=self.tracers, meter_provider=self.provider, **options))
        return self.logs[-1]

    def collect(self) -> dict[str, Any]:
        """What a collection gives now: instrument → metric."""
        data = self.reader.get_metrics_data()
        assert data is not None
        found: dict[str, Any] = {}
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    assert metric.name not in found, f"{metric.name} is there twice"
                    found[metric.name] = metric
        return found

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """(attribute values in the catalogue's order) → value, or the histogram's point."""
        metric = self.collect()[name]
        return {values(name, p): getattr(p, "value", p) for p in metric.data.data_points}


def values(name: str, point: Any) -> tuple[Any, ...]:
    """The attribute values of a point, in the catalogue's order."""
    keys = semconv.instrument(name).attributes
    assert set(point.attributes) <= set(keys)
    return tuple(point.attributes[k] for k in keys if k in point.attributes)


@pytest.fixture
def meters() -> Iterator[Callable[..., Meters]]:
    """Makes meters and closes their logs."""
    made: list[Meters] = []

    def make(**options: Any) -> Meters:
        made.append(Meters(**options))
        return made[-1]

    yield make
    D.eager_context().log_sink = T.NoOpLog()
    for one in made:
        for log in one.logs:
            log.close()


def test_dropped_tasks_do_not_count_as_failures(meters: Callable[..., Meters]) -> None:
    """What the alert looks at counts the task that failed; those that the leaving program dropped are cancelled."""
    m = meters()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    running = D.spawn(stuck)
    assert started.wait(20)
    D.wait(D.spawn(boom))
    waiting = [D.spawn(add, running, n) for n in range(3)]
    D.eager_context().shutdown(timeout_s=0.1)
    go.set()
    del waiting
    counts = m.points("timespan.task.count")
    by_result: dict[str, int] = {}
    for (result, *_), count in counts.items():
        by_result[result] = by_result.get(result, 0) + count
    assert by_result == {"success": 0, "failure": 1, "cancellation": 4, "skip": 0}


def test_run_time_ranks_functions(meters: Callable[..., Meters]) -> None:
    """Run time and CPU are of the bodies, by function: a quick function that queued for long is quick."""
    m = meters()
    started, go = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        go.wait(20)

    with D.Context(threads=1, log_sink=m.logs[0]):
        first = D.spawn(slow)
        assert started.wait(20)
        quick = [D.spawn(add, n, 1) for n in range(5)]
        threading.Timer(0.05, go.set).start()
        D.waitall([first, *quick])
        D.fetch(D.spawn(burn))
    run, cpu = m.points("timespan.task.run"), m.points("timespan.task.cpu")
    durations = m.points("timespan.task.duration")
    name = f"{__name__}.add"
    assert run[name,].count == 5 and run[name,].sum < durations[name, "success"].sum / 5
    assert cpu[name,] < 0.02 <= cpu[f"{__name__}.burn",]


def test_every_attempt_counts_as_a_body(meters: Callable[..., Meters]) -> None:
    """A body that is tried again ran twice; one that raised took its time as well; what never ran took none."""
    m = meters()
    bad = D.spawn(boom, D.Options(retries=2, retry_delay=0))
    D.wait(D.spawn(add, bad, 1))
    run = m.points("timespan.task.run")
    assert {key: point.count for key, point in run.items()} == {(f"{__name__}.boom",): 3}


def test_live_bytes_by_function(meters: Callable[..., Meters]) -> None:
    """They are those of the results that are kept, and add up to the worker's."""
    m = meters()
    kept = [D.spawn(bytes, n * 1000) for n in (1, 2)]
    numbers = D.spawn(add, 1, 2)
    D.waitall([*kept, numbers])

    def both() -> tuple[dict[Any, Any], dict[Any, Any]]:
        return m.points("timespan.function.bytes_allocd"), m.points("timespan.bytes_allocd")

    by_function, by_worker = both()
    assert by_function["bytes",] == 3000 and by_function[f"{__name__}.add",] == 8
    assert sum(by_function.values()) == sum(by_worker.values())
    del kept[:]
    gc.collect()
    eventually(lambda: both()[0]["bytes",] == 0)
    by_function, by_worker = both()
    assert sum(by_function.values()) == sum(by_worker.values()) == 8


def test_live_bytes_of_many_functions_are_bounded(meters: Callable[..., Meters]) -> None:
    """Beyond 200 functions all others are "other", in bytes, runs and CPU; together the bytes are the worker's."""
    m = meters()
    kept = []
    for n in range(250):
        made = types.FunctionType((lambda: bytes(100)).__code__, globals(), f"made{n}")
        made.__qualname__ = f"made{n}"
        kept += [D.spawn(made), D.spawn(made)]
    D.waitall(kept)
    by_function, by_worker = (m.points(f"timespan.{name}bytes_allocd") for name in ("function.", ""))
    assert len(by_function) == 201 and by_function["other",] == 50 * 2 * 100
    assert sum(by_function.values()) == sum(by_worker.values()) == 250 * 2 * 100
    assert m.points("timespan.task.run")["other",].count == 100 and len(m.points("timespan.task.cpu")) == 201


def test_counts_are_exact(meters: Callable[..., Meters]) -> None:
    """Tasks are counted by result and function, failures by type; durations and waits have as many values."""
    m = meters()
    tasks = [D.spawn(add, n, 1) for n in range(50)]
    for task in tasks:
        D.fetch(task)
    failed = D.spawn(boom)
    with pytest.raises(DTaskFailedError):
        D.fetch(D.spawn(add, failed, 1))
    counts = m.points("timespan.task.count")
    name = f"{__name__}.add"
    assert counts["success", name] == 50
    assert counts["failure", f"{__name__}.boom", "ValueError"] == 1 and counts["skip", name] == 1
    assert counts[("cancellation",)] == 0
    durations = m.points("timespan.task.duration")
    assert durations[name, "success"].count == 50 and durations[name, "skip"].count == 1
    waits = m.points("timespan.task.wait")
    assert {phase: p.count for (phase,), p in waits.items()} == {
        "dependency": 52, "schedule": 51, "queue": 51, "move": 51,
    }  # fmt: skip
    assert all(level == 0 for level in m.points("timespan.task.active").values())


def test_unsampled_runs_count_all_the_same(meters: Callable[..., Meters]) -> None:
    """Metrics stay exact when no span is taken."""
    m = meters(sampler=ALWAYS_OFF)
    with dag("off"):
        for n in range(20):
            D.fetch(D.spawn(add, n, 1))
    m.log._drain_all(30)
    assert m.points("timespan.task.count")["success", f"{__name__}.add"] == 20
    assert m.points("timespan.dag.duration")[("success",)].count == 1
    outcomes = m.points("timespan.spans")
    assert outcomes[("exported",)] == 0 and outcomes[("sampled",)] == 20 * 3 + 1
    assert m.points("timespan.spans.recorded")[()] == 61


def test_every_name_is_in_the_catalogue(meters: Callable[..., Meters]) -> None:
    """All that a run emits has the catalogue's kind, unit, description and attributes."""
    m = meters(detail="scheduler")
    with dag("all", extra=1):
        task = D.spawn(add, D.spawn(add, 1, 2), 3)
        with pytest.raises(DTaskFailedError):
            D.fetch(D.spawn(boom))
        assert D.fetch(task) == 6
    for event in [*submit(900, 0), *move(900, 1, 5, 9)]:
        m.log.write_event(event)
    m.log._drain_all(30)
    kinds = {"Gauge": "gauge", "Sum": "counter", "Histogram": "histogram"}
    for name, metric in m.collect().items():
        item = semconv.instrument(name)
        kind = kinds[type(metric.data).__name__]
        if kind == "counter" and not metric.data.is_monotonic:
            kind = "updown"
        assert (kind, metric.unit, metric.description) == (item.kind, item.unit, item.description)
        for point in metric.data.data_points:
            assert set(point.attributes) <= set(item.attributes)
    m.log.flush()
    known = {a.key for a in catalogue()["attributes"]} | {"extra"}  # type: ignore[attr-defined]
    for span in m.exporter.get_finished_spans():
        keys = set(span.attributes or ()) | {k for link in span.links for k in link.attributes or ()}
        keys |= {k for event in span.events for k in event.attributes or ()}
        assert keys <= known, keys - known


def test_catalogue_page() -> None:
    """docs/otel-catalogue.md is what the catalogue says."""
    page = Path(__file__).parents[2] / "docs" / "otel-catalogue.md"
    assert page.read_text(encoding="utf-8") == semconv.catalogue_markdown()


def test_names_are_ours_or_official() -> None:
    """Our attributes and instruments live under `timespan.`; no key is there twice."""
    keys = [a.key for a in semconv.ATTRIBUTES]
    assert len(keys) == len(set(keys))
    official = ("code.", "thread.", "error.type", "exception.", "host.", "process.")
    assert all(key.startswith(("timespan.", *official)) for key in keys)
    names = [i.name for i in semconv.INSTRUMENTS]
    assert len(names) == len(set(names)) and all(name.startswith("timespan.") for name in names)
    assert all(set(i.attributes) <= set(keys) for i in semconv.INSTRUMENTS)


def test_names_are_written_once() -> None:
    """Nothing in otel/ but the catalogue has the name of an instrument or of an attribute of ours as a literal."""
    folder = Path(semconv.__file__).parent
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if path.name != "semconv.py" and re.fullmatch(r"timespan\.[a-z_.]*", text):
                found.append(f"{path.relative_to(folder)}:{node.lineno}: {text}")
    assert found == []


def test_histograms_are_in_seconds(meters: Callable[..., Meters]) -> None:
    """Boundaries reach from 10 µs to 1 h, and the sum is in seconds."""
    m = meters()
    for event in whole(900, 0):
        m.log.write_event(event)
    (point,) = m.points("timespan.task.duration").values()
    assert tuple(point.explicit_bounds) == semconv.BOUNDARIES_S
    assert point.sum == pytest.approx(0.006)


def test_exemplars_carry_the_tasks_span(meters: Callable[..., Meters]) -> None:
    """A duration's exemplar is its task's span, although it is recorded after the fact."""
    m = meters()
    for _ in range(5):
        D.fetch(D.spawn(add, 1, 2))
    (point,) = m.points("timespan.task.duration").values()
    assert point.exemplars
    m.log.flush()
    spans = {s.get_span_context().span_id: s for s in m.exporter.get_finished_spans()}
    for exemplar in point.exemplars:
        span = spans[exemplar.span_id]
        assert span.name == "add" and exemplar.trace_id == span.get_span_context().trace_id
        assert exemplar.value == pytest.approx((span.end_time - span.start_time) / 1e9)


def test_exemplars_lead_to_traces_that_are_sent(meters: Callable[..., Meters]) -> None:
    """Of a run that is held until somebody is interested there are none; all tasks count all the same."""
    m = meters(keep="interesting")

    def traces(*names: str) -> set[int]:
        m.log._drain_all(30)
        found = m.collect()
        points = [p for name in names for p in found[f"timespan.{name}"].data.data_points]
        return {exemplar.trace_id for point in points for exemplar in point.exemplars}

    with dag("dull"):
        D.waitall([D.spawn(add, n, 1) for n in range(50)])
    assert traces("task.duration", "task.run", "task.wait", "dag.duration", "dag.critical_path") == set()
    with dag("bad"):
        D.wait(D.spawn(boom))
    found = traces("dag.duration", "dag.critical_path")
    m.log.flush()
    assert found == {span.get_span_context().trace_id for span in m.exporter.get_finished_spans()}
    assert m.points("timespan.task.count")["success", f"{__name__}.add"] == 50


def test_exponential_histograms_are_honoured(meters: Callable[..., Meters]) -> None:
    """A view or variable that asks for exponential histograms gets them."""
    view = View(instrument_type=Histogram, aggregation=ExponentialBucketHistogramAggregation())
    m = meters(views=[view])
    for n in range(30):
        D.fetch(D.spawn(add, n, 1))
    (point,) = m.points("timespan.task.duration").values()
    assert point.count == 30 and hasattr(point, "scale")


def test_delta_temporality(meters: Callable[..., Meters]) -> None:
    """With delta temporality each collection has only what is new, and nothing is lost between two."""
    m = meters(reader={"preferred_temporality": {Histogram: AggregationTemporality.DELTA}})
    counted = 0
    for _ in range(3):
        for n in range(10):
            D.fetch(D.spawn(add, n, 1))
        (point,) = m.points("timespan.task.duration").values()
        counted += point.count
    assert counted == 30


def test_views_that_drop_labels(meters: Callable[..., Meters]) -> None:
    """A view that keeps one label of a histogram still gets every value."""
    m = meters(views=[View(instrument_name="timespan.task.duration", attribute_keys={semconv.TASK_RESULT})])
    for n in range(10):
        D.fetch(D.spawn(add, n, 1))
    (point,) = m.points("timespan.task.duration").values()
    assert point.count == 10


def test_active_tasks_and_age(meters: Callable[..., Meters]) -> None:
    """A task that runs is active, and its age is that since its body began."""
    m = meters()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    task = D.spawn(stuck)
    waiting = D.spawn(add, task, 1)
    assert started.wait(20)
    assert m.points("timespan.task.active") == {("waiting",): 1, ("queued",): 0, ("moving",): 0, ("running",): 1}
    ages = m.points("timespan.task.oldest_age")
    assert ages[("running",)] > 0 and ages[("queued",)] == 0
    assert m.points("timespan.worker.saturation")[(1,)] == 1
    go.set()
    with pytest.raises(DTaskFailedError):
        D.fetch(waiting)
    assert set(m.points("timespan.task.active").values()) == {0}
    assert m.points("timespan.worker.saturation")[(1,)] == 0
    assert set(m.points("timespan.processor.saturation").values()) == {0}


def test_bytes_rise_and_fall(meters: Callable[..., Meters]) -> None:
    """The bytes of live results rise with a result and fall when it is released."""
    m = meters()
    task = D.spawn(bytes, 1_000_000)
    D.fetch(task)
    assert m.points("timespan.bytes_allocd")[(1,)] >= 1_000_000
    del task
    gc.collect()
    assert m.points("timespan.bytes_allocd")[(1,)] < 1_000_000
    assert m.points("timespan.evict.count")[(1,)] >= 1


def test_system_gauges(meters: Callable[..., Meters]) -> None:
    """Load and free memory are read when they are collected."""
    m = meters()
    D.fetch(D.spawn(add, 1, 2))
    assert 0 < m.points("timespan.system.memory.free")[(1,)] <= 1
    assert m.points("timespan.system.load_average")[(1,)] >= 0


def test_chosen_consumers(meters: Callable[..., Meters]) -> None:
    """`consumers` says which gauges there are."""
    names = [type(c).__name__ for c in default_consumers()]
    assert len(names) == 6
    chosen = next(c for c in default_consumers() if type(c).__name__ == "MemoryFree")
    m = meters(consumers=[chosen])
    D.fetch(D.spawn(add, 1, 2))
    found = m.collect()
    assert "timespan.system.memory.free" in found and "timespan.worker.saturation" not in found


def test_moves_steals_faults_retries(meters: Callable[..., Meters]) -> None:
    """What the scheduler tells of moves, steals, lost workers and retries is counted."""
    m = meters()
    steal = {"uid": 1, "worker": 2, "processor": "p"}
    stolen = T.Timeline(from_proc="q", thunk_id=900)
    events = [
        *submit(900, 0),
        *move(900, 1, 5 * MS, 9 * MS, nbytes=100),
        half("start", "proc_steal_local", 1, worker=2, seq=1, **{k: v for k, v in steal.items() if k != "worker"}),
        T.Event("finish", "proc_steal_local", T.EventId(**steal, seq=1), stolen, 2, worker=2),
        T.Event("finish", "proc_steal_local", T.EventId(**steal, seq=2), None, 3, worker=2),
        half("finish", "handle_fault", 4, uid=1),
        *whole(900, 10 * MS, attempt=2),
    ]
    for event in events:
        m.log.write_event(event)
    assert m.points("timespan.move.io")[2, 1] == 100
    assert m.points("timespan.move.duration")[2, 1].sum == pytest.approx(0.004)
    assert m.points("timespan.steal.count")[(2,)] == 1
    assert m.points("timespan.fault.count")[(1,)] == 1
    assert m.points("timespan.retry.count")[(1,)] == 1


def test_function_names_are_bounded(meters: Callable[..., Meters]) -> None:
    """After 200 function names all others are "other"."""
    m = meters()
    for n in range(250):
        function = type(f"Made{n}", (), {})
        for event in whole(1000 + n, 0, f=function):
            m.log.write_event(event)
    counts = m.points("timespan.task.count")
    assert counts["success", "other"] == 50
    assert len([key for key in counts if len(key) == 2 and key[0] == "success"]) == 201


def test_counters_begin_at_zero(meters: Callable[..., Meters]) -> None:
    """Counters are there, at zero, before anything was counted; a function's with its first task."""
    m = meters()
    m.log.write_event(T.Event("start", "mine", 1, None, 1))
    found = m.collect()
    for name in ("timespan.task.count", "timespan.events.dropped", "timespan.steal.count", "timespan.evict.count"):
        assert {p.value for p in found[name].data.data_points} == {0}
    assert found["timespan.events"].data.data_points[0].value == 1
    for event in submit(900, 0):
        m.log.write_event(event)
    assert m.points("timespan.task.count")["success", "len"] == 0


def test_two_logs_add_up(meters: Callable[..., Meters]) -> None:
    """Two logs at one provider make each instrument once; their counts add up, and stay when one leaves."""
    m = meters()
    other = m.make()
    for log, task in ((m.log, 900), (other, 901)):
        for event in whole(task, 0):
            log.write_event(event)
    assert m.points("timespan.task.count")["success", "len"] == 2
    other.close()
    assert m.points("timespan.task.count")["success", "len"] == 2
    m.log.close()
    assert m.points("timespan.task.count")["success", "len"] == 2
    assert set(m.points("timespan.task.active").values()) == {0}


def test_without_metrics(meters: Callable[..., Meters]) -> None:
    """`metrics=False` makes none."""
    m = meters(metrics=False)
    D.fetch(D.spawn(add, 1, 2))
    m.log.flush()
    assert m.reader.get_metrics_data() is None


def test_collection_while_tasks_run(meters: Callable[..., Meters]) -> None:
    """Collecting all the time, while tasks run, neither fails nor blocks nor loses a count."""
    m = meters()
    stop = threading.Event()
    errors: list[BaseException] = []

    def collect() -> None:
        try:
            while not stop.is_set():
                m.reader.get_metrics_data()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        tasks = [D.spawn(add, n, 1) for n in range(1000)]
        for task in tasks:
            D.fetch(task)
        m.log.flush()
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert m.points("timespan.task.count")["success", f"{__name__}.add"] == 1000
