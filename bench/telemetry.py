"""What an `OTelLog` costs a program: CPU of tasks that do nothing, and of bodies that compute, beside peers.

Every sample sends to the counting receiver of collector.py, a process of its own, and counts until everything arrived.
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import systems
from .collector import receiving
from .run import Run, Table
from .workloads import Workload

__all__ = ["measure_bodies", "measure_cost", "section"]

LOGS = ("noop", "otel", "otel-spans")
"""NoOpLog; OTelLog as it comes; OTelLog(metrics=False)."""

BODIES = ("noop", "otel", "tpe", "tpe-sdk")
"""The same two; a thread pool; that with one span of the SDK a task, made by hand."""

REPEATS = 3
_FLUSH_S = 120.0


def section(run: Run) -> None:
    """CPU a task of OTelLog to NoOpLog, and what bodies of 0.6 ms and 5 ms feel of it."""
    table = Table(
        "Telemetry: CPU of the process a task until all spans arrived, to NoOpLog",
        ("workload", "system", "CPU µs a task", "to NoOpLog"),
    )
    rounds = 1 if run.quick else max(run.rounds, 5)
    for name in [name for name in ("W1", "W4") if name in run.workloads]:
        gathered = run.round_robin("otel-cost", name, LOGS, run.size(name), rounds)
        base = statistics.median(gathered["noop"]["cpu_us"])
        for system, values in gathered.items():
            cpu = statistics.median(values["cpu_us"])
            run.figures[f"telemetry.{name}.{system}.to_noop"] = cpu / base
            spread = f"{cpu:.1f} ({min(values['cpu_us']):.1f} … {max(values['cpu_us']):.1f})"
            table.rows.append((name, system, spread, f"{cpu / base:.1f}x"))
    run.tables.append(table)
    table = Table(
        "Bodies of pure Python: CPU a task, and how long a body takes, to NoOpLog",
        ("body", "system", "CPU", "median of a body", "99th percentile"),
    )
    for micros, count in ((600, 1000), (5000, 200)):
        gathered = run.round_robin("bodies", "W1", BODIES, micros * 10_000 + (30 if run.quick else count), rounds)
        base = {figure: statistics.median(values) for figure, values in gathered["noop"].items()}
        for system, values in gathered.items():
            ratio = {figure: statistics.median(values[figure]) / base[figure] for figure in base}
            run.figures[f"bodies.{micros}.{system}.cpu"] = ratio["cpu_us"]
            run.figures[f"bodies.{micros}.{system}.p99"] = ratio["p99_ms"]
            shown = [f"{statistics.median(values[f]):.2f} ms ({ratio[f]:.2f}x)" for f in ("p50_ms", "p99_ms")]
            table.rows.append((f"{micros / 1000:g} ms", system, f"{ratio['cpu_us']:.3f}x", *shown))
    run.tables.append(table)


@contextmanager
def _sending() -> Iterator[Any]:
    with receiving() as receiver:
        os.environ.update(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        os.environ.pop("OTEL_METRICS_EXPORTER", None)
        yield receiver


@contextmanager
def _logged(name: str) -> Iterator[Callable[[], Any]]:
    """A context with this log; gives what waits until it sent everything."""
    import otel_timespan as ts

    with ts.Context(threads=systems.THREADS) as context:
        log: Any = ts.NoOpLog() if name == "noop" else ts.OTelLog(metrics=name == "otel", max_spans=None)
        context.log_sink = log
        try:
            yield (lambda: None) if name == "noop" else lambda: log.flush(_FLUSH_S)
        finally:
            context.log_sink = ts.NoOpLog()
            if name != "noop":
                log.close()


def measure_cost(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """CPU µs a task, all threads, until everything arrived."""
    import otel_timespan as ts

    cpu = []
    with _sending() as receiver:
        for turn in range(REPEATS + 1):
            with _logged(name) as settle:
                plan = workload.prepare(size)
                gc.collect()
                before, began = receiver.count(), time.process_time()
                workload.eager(plan, ts.spawn, ts.fetch)
                settle()
                spent = time.process_time() - began
                arrived, tasks = receiver.count() - before, workload.tasks(size)
            if name != "noop" and arrived < 3 * tasks:
                raise AssertionError(f"{arrived} spans of {tasks} tasks arrived")
            if turn:
                cpu.append(spent / tasks * 1e6)
    return {"cpu_us": cpu}


def measure_bodies(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """CPU µs a task, median and 99th percentile of a body in ms. `size`: 10,000 times a body's µs, and their number."""
    micros, count = divmod(size, 10_000)
    steps = _steps_of(micros)
    took: list[int] = []

    def body(n: int) -> int:
        began, total = time.perf_counter_ns(), 0
        for k in range(steps):
            total += k
        took.append(time.perf_counter_ns() - began)
        return total

    run = _pooled if name.startswith("tpe") else _spawned
    with _sending():
        cpu = run(name, body, count)
    took.sort()
    return {"cpu_us": cpu, "p50_ms": took[len(took) // 2] / 1e6, "p99_ms": took[int(len(took) * 0.99)] / 1e6}


def _steps_of(micros: int) -> int:
    """How many steps of the body's loop take so long here."""
    best = float("inf")
    for _ in range(5):
        began = time.thread_time_ns()
        total = 0
        for k in range(20_000):
            total += k
        best = min(best, time.thread_time_ns() - began)
    return max(1, int(20_000 * micros * 1000 / best))


def _spawned(name: str, body: Callable[[int], int], count: int) -> float:
    import otel_timespan as ts

    with _logged(name) as settle:
        ts.fetch(ts.spawn(int))  # what is loaded and connected at the first task is no cost of a body
        settle()
        began = time.process_time()
        for task in [ts.spawn(body, n) for n in range(count)]:
            ts.fetch(task)
        settle()
        return (time.process_time() - began) / count * 1e6


def _pooled(name: str, body: Callable[[int], int], count: int) -> float:
    from concurrent.futures import ThreadPoolExecutor

    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True), max_queue_size=20_000))
    tracer = provider.get_tracer("bench")
    above = trace.set_span_in_context(tracer.start_span("root"))

    def traced(n: int) -> int:
        attributes = {"n": n, "thread.name": threading.current_thread().name}
        with tracer.start_as_current_span("body", above, attributes=attributes):
            return body(n)

    with ThreadPoolExecutor(systems.THREADS) as pool:
        pool.submit(traced if name == "tpe-sdk" else body, 0).result()
        provider.force_flush()
        began = time.process_time()
        for future in [pool.submit(traced if name == "tpe-sdk" else body, n) for n in range(count)]:
            future.result()
        provider.force_flush()
        spent = time.process_time() - began
    provider.shutdown()
    return spent / count * 1e6
