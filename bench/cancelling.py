"""Cancelling: how soon a fetch knows, and what ten thousand cancelled tasks leave behind.

The time is that from `cancel()` of a queued task to the moment at which another thread's fetch of it raises,
once with a slot whose body waits, once with one whose body keeps the interpreter busy: there the fetching
thread gets its turn after one switch interval of CPython, which is taken off.
"""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import time
import tracemalloc
from typing import Any

from otel_timespan import dagger

from .run import Run, Table

__all__ = ["measure", "section"]

BODIES = ("waiting", "busy")


def measure(bodies: str, size: int) -> dict[str, Any]:
    """Milliseconds of `size` cancellations, and bytes and tasks left behind by ten times as many others."""
    gate, begun = threading.Event(), threading.Event()

    def blocker() -> None:
        begun.set()
        while bodies == "busy" and not gate.is_set():
            pass
        gate.wait()

    with dagger.Context(threads=1) as context:
        dagger.spawn(blocker)
        begun.wait()
        try:
            times = [_one() for _ in range(size)]
            bytes_left, tasks_left = _left_behind(context, 10 * size)
        finally:
            gate.set()
    return {"ms": times, "left_bytes": bytes_left / (10 * size), "left_tasks": tasks_left}


def _one() -> float:
    task, raised = dagger.spawn(int), []

    def fetch() -> None:
        try:
            task.fetch(timeout=3600.0)
        except dagger.DTaskFailedError:
            raised.append(time.perf_counter())

    thread = threading.Thread(target=fetch)
    thread.start()
    while not task._subs:  # until it waits
        time.sleep(0.0005)
    begin = time.perf_counter()
    task.cancel()
    thread.join()
    return (raised[0] - begin) * 1e3


def _left_behind(context: dagger.Context, size: int) -> tuple[int, int]:
    _cancel_many(size // 10)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    _cancel_many(size)
    gc.collect()
    left = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    core = context.start()
    return max(0, left), sum(len(queue) for queue in core.shared.values()) + len(core.running) - 1


def _cancel_many(size: int) -> None:
    queued = [dagger.spawn(int) for _ in range(size // 2)]
    waiting = [dagger.spawn(int, task) for task in queued]
    for task in queued + waiting:
        task.cancel()


def section(run: Run) -> None:
    """Milliseconds from `cancel()` to a fetch that raises; what is left of the cancelled."""
    size = 100 if run.quick else 1_000
    interval_ms = sys.getswitchinterval() * 1e3
    table = Table(
        f"Cancelling a queued task: ms until its fetch raises (CPython's switch interval: {interval_ms:g} ms)",
        ("body in the slot", "tasks", "median", "95th percentile", "longest", "bytes left a task", "tasks left"),
    )
    for bodies in BODIES:
        found = run.samples[f"cancel.{bodies}"] = run.sample("cancel", "W1", bodies, size)
        times = sorted(found["ms"])
        median, late = statistics.median(times), times[int(0.95 * len(times))]
        allowed = interval_ms if bodies == "busy" else 0.0
        run.figures[f"cancel.{bodies}.beyond_ms"] = max(0.0, late - allowed)
        run.figures[f"cancel.{bodies}.left_bytes"] = found["left_bytes"]
        run.figures[f"cancel.{bodies}.left_tasks"] = found["left_tasks"]
        cells = [f"{value:.3f}" for value in (median, late, times[-1])]
        table.rows.append((bodies, f"{size:,}", *cells, f"{found['left_bytes']:.1f}", f"{found['left_tasks']:,}"))
    run.tables.append(table)
