"""What a delivered span costs: OTelLog against the stock way, the SDK's tracer with its batch processor.

Both deliver to the same counting receiver (collector.py). The stock way makes the very spans that the
workload makes under OTelLog: a first run, off the clock, records their names, attributes, links and
parents. It is spared everything else, scheduler and workload; ours is charged with both.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import systems
from .collector import Receiver, receiving
from .workloads import Workload

__all__ = ["SENDERS", "measure"]

SENDERS = ("otel", "otel-metrics", "sdk", "sdk-default-queue")
"""OTelLog without and with its metrics; the SDK with a queue for all spans, and with the queue it has."""

_FLUSH_S = 600
Runner = Callable[[Workload, int, systems.System], Callable[[], Any]]


class _Shape(NamedTuple):
    """One recorded span. `children` are the spans below it."""

    name: str
    id: int
    start: int | None
    end: int | None
    attributes: dict[str, Any]
    links: list[tuple[int, dict[str, Any]]]
    children: list[_Shape]


def measure(workload: Workload, sender: str, size: int, runner: Runner) -> dict[str, Any]:
    """CPU seconds of this process, spans made and spans that arrived."""
    with receiving() as receiver:
        os.environ.update(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        if sender.startswith("otel"):
            made, cpu_s = _ours(workload, size, runner, metrics=sender == "otel-metrics")
        elif sender in SENDERS:
            shapes = _record(workload, size, runner)
            made = sum(1 for _ in _all(shapes))
            cpu_s = _sdk(shapes, receiver, None if sender == "sdk-default-queue" else made + 1)
        else:
            raise ValueError(f"nothing is called {sender!r}; there are {', '.join(SENDERS)}")
        arrived = receiver.count()
    return {"cpu_s": cpu_s, "made": made, "arrived": arrived, "cpu_us_per_span": cpu_s / max(arrived, 1) * 1e6}


def _ours(workload: Workload, size: int, runner: Runner, metrics: bool) -> tuple[int, float]:
    import otel_timespan as ts

    with ts.Context(threads=systems.THREADS) as context:
        log = context.log_sink = ts.OTelLog(metrics=metrics, max_spans=None)
        run = runner(workload, size, systems.System(spawn=ts.spawn, submit=ts.spawn, fetch=ts.fetch))
        began = time.process_time()
        with ts.dag("bench"):
            run()
        log.flush(_FLUSH_S)
        log.close()
        cpu_s = time.process_time() - began
        made = log.stats()["recorded"]
        context.log_sink = ts.NoOpLog()
    return made, cpu_s


def _record(workload: Workload, size: int, runner: Runner) -> list[_Shape]:
    """The spans of one run, as trees, kept out of the garbage collector's sight."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import otel_timespan as ts

    memory = InMemorySpanExporter()
    with ts.Context(threads=systems.THREADS) as context:
        log = context.log_sink = ts.OTelLog(span_exporter=memory, metrics=False, max_spans=None)
        run = runner(workload, size, systems.System(spawn=ts.spawn, submit=ts.spawn, fetch=ts.fetch))
        with ts.dag("bench"):
            run()
        log.flush(_FLUSH_S)
        log.close()
        context.log_sink = ts.NoOpLog()
    shapes: dict[int, _Shape] = {}
    parents: dict[int, int] = {}
    for span in memory.get_finished_spans():
        links = [(link.context.span_id, dict(link.attributes or {})) for link in span.links]
        id = span.context.span_id
        shapes[id] = _Shape(span.name, id, span.start_time, span.end_time, dict(span.attributes or {}), links, [])
        parents[id] = span.parent.span_id if span.parent else 0
    memory.clear()
    for id, parent in parents.items():
        if parent in shapes:
            shapes[parent].children.append(shapes[id])
    for shape in shapes.values():
        shape.children.sort(key=lambda child: (child.start or 0, child.end or 0))
    roots = [shape for id, shape in shapes.items() if parents[id] not in shapes]
    gc.collect()
    gc.freeze()
    return roots


def _all(shapes: list[_Shape]) -> Iterator[_Shape]:
    for shape in shapes:
        yield shape
        yield from _all(shape.children)


def _sdk(shapes: list[_Shape], receiver: Receiver, queue: int | None) -> float:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=receiver.endpoint, insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=queue))
    tracer = provider.get_tracer("bench")
    began = time.process_time()
    contexts: dict[int, Any] = {}
    for shape in shapes:
        _emit(tracer, shape, None, contexts)
    provider.force_flush(_FLUSH_S * 1000)
    provider.shutdown()
    return time.process_time() - began


def _emit(tracer: Any, shape: _Shape, parent: Any, contexts: dict[int, Any]) -> None:
    from opentelemetry import trace

    links = [trace.Link(contexts[id], attributes) for id, attributes in shape.links if id in contexts]
    span = tracer.start_span(shape.name, parent, attributes=shape.attributes, links=links, start_time=shape.start)
    contexts[shape.id] = span.get_span_context()
    inside = trace.set_span_in_context(span) if shape.children else None
    for child in shape.children:
        _emit(tracer, child, inside, contexts)
    span.end(shape.end)
