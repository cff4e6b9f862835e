"""`OTelAggregator`: the streams of a MultiEventLog as metrics."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel import OTelAggregator, OTelLog
from otel_timespan.otel.metrics.aggregator import StreamSpec
from otel_timespan.otel.metrics.gauges import READINGS
from tests.otel.stories import whole


@pytest.fixture
def reader() -> InMemoryMetricReader:
    """A reader."""
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    """Its provider."""
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


@pytest.fixture
def log() -> Iterator[T.MultiEventLog]:
    """A log of streams."""
    with T.MultiEventLog() as log:
        yield log


def points(reader: InMemoryMetricReader) -> dict[str, dict[Any, Any]]:
    """Instrument → {attribute values: value}."""
    data = reader.get_metrics_data()
    found: dict[str, dict[Any, Any]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                assert metric.name not in found
                found[metric.name] = {
                    tuple(p.attributes.values()): getattr(p, "value", p) for p in metric.data.data_points
                }
    return found


def test_known_consumers_under_any_name(reader: Any, provider: MeterProvider, log: T.MultiEventLog) -> None:
    """A consumer that has a gauge is known by its type, whatever its stream is called."""
    log["held"], log["busy"], log["who"] = E.BytesAllocd(), E.WorkerSaturation(), E.ProcessorSaturation()
    log["open"], log["free"], log["load"] = E.EventSaturation(), E.MemoryFree(), E.CPULoadAverages()
    log["mem"] = E.CoreMetrics()  # named like another one's stream
    log.aggregators["otel"] = OTelAggregator(meter_provider=provider)
    context = D.eager_context()
    context.log_sink = log
    try:
        task = D.spawn(bytes, 1000)
        D.fetch(task)
        found = points(reader)
    finally:
        context.log_sink = T.NoOpLog()
    assert found["timespan.bytes_allocd"][(1,)] >= 1000
    assert found["timespan.worker.saturation"] == {(1,): 0}
    assert set(found["timespan.processor.saturation"].values()) == {0}
    assert 0 < found["timespan.system.memory.free"][(1,)] <= 1
    assert "timespan.system.load_average" in found and "timespan.event.saturation" in found
    assert "timespan.task.count" not in found


def test_gauges_of_each_worker(reader: Any, provider: MeterProvider, log: T.MultiEventLog) -> None:
    """Each worker's stream is a point of its own; what was seen falls to 0 rather than stay."""
    log["wsat"], log["psat"] = E.WorkerSaturation(), E.ProcessorSaturation()
    log.aggregators["otel"] = OTelAggregator(meter_provider=provider)
    starts = [T.Event("start", "compute", T.EventId(thunk_id=n, processor=f"p{n}"), None, n, worker=n) for n in (1, 3)]
    for event in starts:
        log.write_event(event)
    found = points(reader)
    assert found["timespan.worker.saturation"] == {(1,): 1, (3,): 1}
    assert found["timespan.processor.saturation"] == {(1, "p1"): 1, (3, "p3"): 1}
    log.write_event(starts[1]._replace(phase="finish"))
    found = points(reader)
    assert found["timespan.worker.saturation"] == {(1,): 1, (3,): 0}
    assert found["timespan.processor.saturation"] == {(1, "p1"): 1, (3, "p3"): 0}


def test_declared_streams(reader: Any, provider: MeterProvider, log: T.MultiEventLog) -> None:
    """Streams of numbers become the gauge, counter or histogram that was declared; the rest is passed over."""
    numbers = iter([3, None, 5, "x", 7, True, float("nan"), 2])
    log["n"] = lambda event: next(numbers)
    log["m"] = lambda event: 2
    log["h"] = lambda event: 0.5
    log["undeclared"] = lambda event: 1
    log.aggregators["otel"] = OTelAggregator(
        meter_provider=provider,
        streams={
            "n": "app.level",
            "m": {"name": "app.total", "kind": "counter", "unit": "By"},
            "h": StreamSpec("app.size", "histogram"),
        },
    )
    for n in range(8):
        log.write_event(T.Event("start", "mine", n, None, n))
    found = points(reader)
    assert found["app.level"] == {(1,): 2} and found["app.total"] == {(1,): 16}
    assert found["app.size"][(1,)].count == 8 and len(found) == 3


def test_beside_an_otel_log(reader: Any, provider: MeterProvider, log: T.MultiEventLog) -> None:
    """Where an OTelLog reports to the same provider the known instruments are its own: nothing counts twice."""
    log["bytes"] = E.BytesAllocd()
    log.aggregators["otel"] = OTelAggregator(meter_provider=provider)
    tracers = TracerProvider(shutdown_on_exit=False)
    with OTelLog(tracer_provider=tracers, meter_provider=provider) as otel:
        tee = T.TeeLog(log, otel)
        chunk = T.ChunkInfo("h", 1000, bytes, 1)
        for event in whole(900, 0):
            if event.category == "compute" and event.phase == "finish":
                event = event._replace(timeline=T.Timeline(**{**vars(event.timeline), "result": chunk}))
            tee.write_event(event)
        assert points(reader)["timespan.bytes_allocd"] == {(1,): 1000}
    assert points(reader)["timespan.bytes_allocd"] == {(1,): 1000}


def test_one_value_by_either_way(reader: Any, provider: MeterProvider, log: T.MultiEventLog) -> None:
    """The same events give the same gauges, series by series, through an OTelLog or the aggregator of a log."""
    chunk = T.ChunkInfo("h", 1000, bytes, 1)
    events = []
    for task, worker in ((900, 1), (901, 1), (902, 3)):
        for event in whole(task, task):
            if event.category == "compute" and event.phase == "finish":
                result = chunk._replace(handle=task, worker=worker)
                event = event._replace(timeline=T.Timeline(**{**vars(event.timeline), "result": result}))
            events.append(event._replace(worker=worker))
    gone = T.Timeline(data=chunk._replace(handle=900), reason="released", in_memory=True)
    events += [T.Event(phase, "evict", T.EventId(handle=900), gone, 9) for phase in ("start", "finish")]
    events.append(T.Event("start", "compute", T.EventId(thunk_id=903, processor="p9"), T.Timeline(f=len), 10, worker=3))
    kinds = [E.BytesAllocd, E.WorkerSaturation, E.ProcessorSaturation, E.EventSaturation]
    for n, kind in enumerate(kinds):
        log[f"s{n}"] = kind()
    log.aggregators["otel"] = OTelAggregator(meter_provider=provider)
    other = InMemoryMetricReader()
    meters = MeterProvider([other], shutdown_on_exit=False)
    tracers = TracerProvider(shutdown_on_exit=False)
    with OTelLog(tracer_provider=tracers, meter_provider=meters, consumers=[kind() for kind in kinds]) as otel:
        for event in events:
            log.write_event(event)
            otel.write_event(event)
        direct = points(other)
    streamed = points(reader)
    names = [READINGS[kind].instrument for kind in kinds]
    assert {name: direct[name] for name in names} == {name: streamed[name] for name in names}
    assert streamed["timespan.bytes_allocd"] == {(1,): 1000, (3,): 1000}
    assert streamed["timespan.processor.saturation"] == {(1, "p1"): 0, (3, "p1"): 0, (3, "p9"): 1}
    assert streamed["timespan.event.saturation"][3, "compute"] == 1
    meters.shutdown()


def test_it_moves_with_its_log(reader: Any, provider: MeterProvider, log: T.MultiEventLog) -> None:
    """A collection settles the log that it is in now; one that it left is left alone, and its numbers stay."""
    aggregator = OTelAggregator(meter_provider=provider)
    log["w"] = E.WorkerSaturation()
    log.aggregators["otel"] = aggregator
    log.write_event(T.Event("start", "compute", T.EventId(thunk_id=1, processor="p"), None, 1))
    assert points(reader)["timespan.worker.saturation"] == {(1,): 1}
    del log.aggregators["otel"]
    log.write_event(T.Event("finish", "compute", T.EventId(thunk_id=1, processor="p"), None, 2))
    assert points(reader)["timespan.worker.saturation"] == {(1,): 1}
    with T.MultiEventLog() as second:
        second["anything"] = E.WorkerSaturation()
        second.aggregators["mine"] = aggregator
        for n in (1, 2):
            second.write_event(T.Event("start", "compute", T.EventId(thunk_id=n, processor="p"), None, n))
        assert points(reader)["timespan.worker.saturation"] == {(1,): 2}


def test_a_log_that_is_forgotten_is_not_kept(provider: MeterProvider) -> None:
    """The aggregator, which the provider's instruments hold, does not hold its log."""
    log = T.MultiEventLog()
    log.aggregators["otel"] = aggregator = OTelAggregator(meter_provider=provider)
    there = weakref.ref(log)
    del log
    gc.collect()
    assert there() is None and aggregator is not None


def test_consumer_that_comes_and_goes(reader: Any, provider: MeterProvider, log: T.MultiEventLog) -> None:
    """Streams that are added or removed later are noticed."""
    log.aggregators["otel"] = OTelAggregator(meter_provider=provider)
    log["core"] = E.CoreMetrics()
    log.write_event(T.Event("start", "mine", 1, None, 1))
    log["w"] = E.WorkerSaturation()
    log.write_event(T.Event("start", "compute", T.EventId(thunk_id=1, processor="p"), None, 2))
    assert points(reader)["timespan.worker.saturation"] == {(1,): 1}
    del log["w"]
    log.write_event(T.Event("start", "mine", 2, None, 3))
    assert points(reader)["timespan.worker.saturation"] == {(1,): 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"meter_provider": 5}, "meter_provider"),
        ({"streams": [1]}, "streams maps"),
        ({"streams": {"n": 5}}, "StreamSpec"),
        ({"streams": {"n": {"kind": "gauge"}}}, "needs a name"),
        ({"streams": {"n": {"name": "x", "colour": 1}}}, "colour"),
        ({"streams": {"n": StreamSpec("x", "summary")}}, "gauge, counter, histogram"),
        ({"streams": {"n": ""}}, "name of an instrument"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    """A wrong option is refused at once, by name."""
    with pytest.raises(InvalidOptionError, match=says):
        OTelAggregator(**options)
