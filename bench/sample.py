"""One measurement in a process of its own: `python -m bench.sample KIND WORKLOAD SYSTEM SIZE`, prints JSON.

A process of its own, because a heap that has seen a million tasks, a warm allocator and a garbage
collector with other people's objects make a difference of some ten per cent, in either direction.
"""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import systems
from .workloads import WORKLOADS, Workload, inc

__all__ = ["KINDS", "main"]

REPEATS = 3
WAITING = 10_000
_NO_DEPENDENCIES = ("W1", "W2r")


class Took(NamedTuple):
    """Seconds of something: what passed, and what all threads of this process worked."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: object) -> Took:
        assert isinstance(other, Took)
        return Took(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def _took(call: Callable[[], Any]) -> tuple[Any, Took]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Took(time.perf_counter() - wall, time.process_time() - cpu)


def _runner(workload: Workload, size: int, system: systems.System) -> Callable[[], Took]:
    """A function that runs the workload once, checks its result, and says what it took."""
    plan = workload.prepare(size)
    if system.get is not None:
        graph, get = workload.dask(plan), system.get

        def once() -> Any:
            return graph(get)
    else:
        spawn = system.submit if workload.name in _NO_DEPENDENCIES else system.spawn
        fetch = system.fetch
        assert spawn is not None and fetch is not None

        def once() -> Any:
            return workload.eager(plan, spawn, fetch)

    expected = workload.expected(plan)

    def timed() -> Took:
        gc.collect()
        result, took = _took(once)
        if result != expected:
            raise AssertionError(f"{workload.name} gave {result!r}, not {expected!r}")
        return took

    return timed


def sample_time(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """µs a task: until the last result is there, and with waiting for the log as well."""
    runs, settled = [], []
    with systems.opened(name) as system:
        run = _runner(workload, size, system)
        run()  # threads started, code paths specialised, lists grown
        system.settle()
        for _ in range(REPEATS):
            runs.append(run())
            settled.append(runs[-1] + _took(system.settle)[1])
    per_task = 1e6 / workload.tasks(size)
    return {
        "us": [took.wall_s * per_task for took in runs],
        "whole_us": [took.wall_s * per_task for took in settled],
        "whole_cpu_us": [took.cpu_s * per_task for took in settled],
    }


def sample_split(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """The hot path alone: the journal keeps its records until the run is over, then they are drained."""
    from otel_timespan.timespans import drainer, journal

    drainer.DRAIN_INTERVAL_S = 3600.0
    hot, drain, collecting, events = [], [], [], 0
    with systems.opened(name) as system, _collector_time() as collector:
        for one in journal.journals():
            one.max_bytes = sys.maxsize
        run = _runner(workload, size, system)
        run()
        system.settle()
        for _ in range(REPEATS):
            hot.append(run())
            collector.seconds = 0.0
            logs, took = _took(system.settle)
            drain.append(took)
            collecting.append(collector.seconds)
            events = len(logs[1]["core"]) if isinstance(logs, dict) else 0
            del logs
    per_task = 1e6 / workload.tasks(size)
    return {
        "events": events / workload.tasks(size),
        "drain_collector_us": [seconds * per_task for seconds in collecting],
        "hot_us": [took.wall_s * per_task for took in hot],
        "drain_us": [took.wall_s * per_task for took in drain],
        "hot_cpu_us": [took.cpu_s * per_task for took in hot],
        "drain_cpu_us": [took.cpu_s * per_task for took in drain],
    }


class _CollectorTime:
    """Seconds that the garbage collector ran, on whichever thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        else:
            self.seconds += now - self._began


@contextlib.contextmanager
def _collector_time() -> Iterator[_CollectorTime]:
    counted = _CollectorTime()
    gc.callbacks.append(counted)
    try:
        yield counted
    finally:
        gc.callbacks.remove(counted)


def sample_window(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """Memory of a log under `LogWindow(20 s)` while `size` events of 100 s come in: after a quarter, and at the end."""
    from otel_timespan import events, timespans

    clock = [0]
    with timespans.MultiEventLog() as log:
        log["core"], log["id"], log["wsat"] = events.CoreMetrics(), events.IDMetrics(), events.WorkerSaturation()
        log.aggregators["window"] = events.LogWindow(20 * 10**9, clock=lambda: clock[0])
        held: list[int] = []
        step = size // 20
        gc.collect()
        before = _resident_bytes()
        for block in range(20):
            for n in range(block * step, (block + 1) * step):
                clock[0] = n * 100 * 10**9 // size
                id = timespans.EventId(thunk_id=n // 2)
                log.write_event(timespans.Event("finish" if n % 2 else "start", "compute", id, None, clock[0]))
            log._journal.drain()
            gc.collect()
            held.append(_resident_bytes() - before)
        kept = len(timespans.get_logs(log)[1]["core"])
    return {"quarter_bytes": held[5], "end_bytes": held[-1], "kept_events": kept, "growth": held[-1] / held[5]}


def _resident_bytes() -> int:
    """Memory of this process that is in use; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def sample_memory(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """Bytes that a task holds while it waits for another one; the handle in the caller's list included."""
    gate = threading.Event()
    with systems.opened(name) as system:
        spawn, fetch = system.spawn, system.fetch
        assert spawn is not None and fetch is not None
        for task in [spawn(inc, spawn(inc, i)) for i in range(100)]:
            fetch(task)
        system.settle()
        blocker = spawn(gate.wait)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        waiting = [spawn(_after, blocker) for _ in range(size)]
        system.settle()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        gate.set()
        if not all(fetch(task) for task in waiting):
            raise AssertionError("a waiting task gave a wrong result")
    return {"bytes": held / size}


def _after(opened: bool) -> bool:
    return opened


def sample_spans(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """CPU of the whole process for each span that arrived at a counting receiver. See spans.py."""
    from . import spans

    return spans.measure(workload, name, size, _runner)


def sample_cancel(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """Times of cancellations while the body in the slot is `name`: waiting or busy. See cancelling.py."""
    from . import cancelling

    return cancelling.measure(name, size)


def sample_otel_cost(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """CPU of a log that sends. See telemetry.py."""
    from . import telemetry

    return telemetry.measure_cost(workload, name, size)


def sample_bodies(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """CPU and duration of bodies that compute. See telemetry.py."""
    from . import telemetry

    return telemetry.measure_bodies(workload, name, size)


def sample_streams(workload: Workload, name: str, size: int) -> dict[str, Any]:
    """CPU and memory of a log beside none. See streams.py."""
    from . import streams

    return streams.measure(workload, size)


KINDS = {
    "time": sample_time,
    "split": sample_split,
    "memory": sample_memory,
    "window": sample_window,
    "spans": sample_spans,
    "cancel": sample_cancel,
    "otel-cost": sample_otel_cost,
    "bodies": sample_bodies,
    "streams": sample_streams,
}
"""What can be measured."""


def main(arguments: list[str]) -> None:
    """Measure what the arguments say and print it as one line of JSON."""
    kind, workload, system, size = arguments
    print(json.dumps(KINDS[kind](WORKLOADS[workload], system, int(size))))


if __name__ == "__main__":
    main(sys.argv[1:])
