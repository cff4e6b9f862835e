"""What the log says of results that leave memory and come back."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.storage import (
    PickleFileDevice,
    RecencyAllocator,
)
from tests.dagger.spilling.blocks import KIB, MIB, block, first


class TestEvents:
    def test_spilled_and_back(self, one: D.Context, lru: RecencyAllocator) -> None:
        """A result that makes others go, and one that comes back, are waits; what goes is an evict, in that order."""
        log = ts.LocalEventLog()
        one.log_sink = log
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
        D.waitall(tasks)
        infos = [D.fetch(task, raw=True).handle.info for task in tasks]
        reader = D.spawn(first, tasks[0])
        D.fetch(reader)
        events = [e for e in log.get_logs(raw=True)[1] if e.category in ("evict", "storage_wait")]
        seen = [(e.category, e.phase, getattr(e.timeline, "data", None)) for e in events]
        a, b, _ = infos
        assert seen == [
            ("evict", "start", a),
            ("evict", "finish", a),
            ("storage_wait", "start", None),
            ("storage_wait", "finish", None),
            ("evict", "start", b),
            ("evict", "finish", b),
            ("storage_wait", "start", None),
            ("storage_wait", "finish", a),
        ]
        assert {e.timeline.reason for e in events if e.category == "evict"} == {"spilled"}
        written, read = (e for e in events if e.category == "storage_wait" and e.phase == "finish")
        assert (written.id.thunk_id, read.id.thunk_id) == (tasks[2].id, reader.id)
        assert (written.id.processor, written.timeline.f) == (D.ThreadProc(1, 1), block)
        assert read.timeline.device_type is RecencyAllocator

    def test_a_fetch_that_waits(self, one: D.Context, tmp_path: Path) -> None:
        """Outside of bodies the waiting task is number 0."""
        log = ts.LocalEventLog()
        one.log_sink = log
        task = D.spawn(block, D.Options(storage=PickleFileDevice(tmp_path)), 1)
        D.fetch(task)
        waits = [e for e in log.get_logs(raw=True)[1] if e.category == "storage_wait" and e.phase == "finish"]
        assert [(e.id.thunk_id, e.id.processor, e.timeline.data) for e in waits] == [
            (task.id, D.ThreadProc(1, 1), None),
            (0, D.OSProc(1), None),
        ]

    def test_each_end_counts_once(self, one: D.Context, lru: RecencyAllocator) -> None:
        """What dies in memory leaves it then, what dies on the device left it before."""
        log = ts.LocalEventLog()
        one.log_sink = log
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
        handles = {D.fetch(task, raw=True).handle.number for task in tasks}
        del tasks
        gc.collect()
        evicts = [e.timeline for e in log.get_logs(raw=True)[1] if e.category == "evict" and e.phase == "finish"]
        assert sorted((t.reason, t.in_memory) for t in evicts if t.data.handle in handles) == [
            ("released", False),
            ("released", True),
            ("released", True),
            ("spilled", True),
        ]

    def test_opentelemetry(self, one: D.Context, lru: RecencyAllocator) -> None:
        """The counter counts what left memory; at detail "scheduler" waits and evicts are spans."""
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        meters = MeterProvider([reader], shutdown_on_exit=False)
        with ts.OTelLog(tracer_provider=tracers, meter_provider=meters, detail="scheduler", root_quiet_s=0.01) as log:
            one.log_sink = log
            with ts.dag("spilling"):
                tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
                assert D.fetch(D.spawn(first, tasks[0])) == 0
                del tasks
                gc.collect()
            log.flush()
            points = {
                metric.name: metric.data.data_points
                for resource in reader.get_metrics_data().resource_metrics  # type: ignore[union-attr]
                for scope in resource.scope_metrics
                for metric in scope.metrics
            }
            one.log_sink = ts.NoOpLog()
        (count,) = points["timespan.evict.count"]
        assert count.value == 2 + 2 + 1  # two spilled, two died in memory, and the int of `first`
        spans = [span for span in exporter.get_finished_spans() if span.name in ("storage_wait", "evict")]
        assert sum(span.name == "storage_wait" for span in spans) == 2
        assert {(span.attributes or {}).get("timespan.evict.reason") for span in spans if span.name == "evict"} == {
            "spilled",
            "released",
        }
        root = next(span for span in exporter.get_finished_spans() if span.name == "dag spilling")
        assert all(span.parent and span.parent.span_id == root.context.span_id for span in spans)

    def test_moves(self, one: D.Context, tmp_path: Path) -> None:
        """An argument that was read from a device was moved, one that was in memory was not."""
        log = ts.LocalEventLog()
        one.log_sink = log
        tight = RecencyAllocator(50 * KIB, PickleFileDevice(tmp_path), MIB)
        tasks = [D.spawn(block, D.Options(storage=tight), n) for n in range(2)]
        both = D.spawn(lambda a, b: None, *tasks)
        D.fetch(both)
        moves = [e for e in log.get_logs(raw=True)[1] if e.category == "move" and e.phase == "finish"]
        kinds = [e.timeline.kind for e in moves if e.id.thunk_id == both.id]
        assert kinds == ["value", "chunk", "task"]  # the second one's coming drove the first one out again

    @pytest.mark.parametrize("how", ["returned", "restored", "given"])
    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "device"])
    def test_data_that_no_body_made(
        self, one: D.Context, lru: RecencyAllocator, tmp_path: Path, how: str, stored: bool
    ) -> None:
        """A chunk of `tochunk` that becomes a result counts while it is in memory, and its end is in the log."""
        total = ts.BytesAllocd()
        log = ts.MultiEventLog()
        log["bytes"] = total
        one.log_sink = log
        chunk = D.tochunk(block(1), device=lru if stored else None)
        tasks = [passes_on(chunk, how) for _ in range(2)]
        D.waitall(tasks)
        ts.get_logs(log)
        assert total.value == 40 * KIB
        if stored:
            others = [D.tochunk(block(2), device=lru) for _ in range(2)]  # made by hand: not a result
            ts.get_logs(log)
            assert total.value == 0
            assert D.fetch(chunk) == block(1)
            ts.get_logs(log)
            assert total.value == 40 * KIB
            del others
        del tasks, chunk
        gc.collect()
        ts.get_logs(log)
        assert total.value == 0
        one.log_sink = ts.NoOpLog()

    def test_pictures(self, one: D.Context, lru: RecencyAllocator) -> None:
        """The Chrome trace shows the waits by default."""
        from otel_timespan import viz

        log = ts.LocalEventLog()
        one.log_sink = log
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
        D.waitall(tasks)
        assert '"storage_wait' in str(viz.show_logs(log.get_logs(raw=True), "chrome_trace"))


def passes_on(chunk: D.Chunk, how: str) -> D.DTask:
    """A task whose result is that chunk."""
    if how == "returned":
        return D.spawn(lambda: chunk)
    if how == "restored":
        return D.spawn(pytest.fail, D.Options(restore=lambda task: chunk))
    return D.spawn(lambda x: x, chunk)
