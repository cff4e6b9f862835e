"""What a `MultiEventLog` costs a program: CPU with its streams drained and fetched, bytes an event, reading it all.

`NoOpLog` and the log take turns within one process, so that what the machine does meanwhile meets both.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from typing import Any

from . import systems
from .run import Run, Table
from .workloads import Workload

__all__ = ["measure", "section"]

TURNS = 3


def section(run: Run) -> None:
    """CPU a task to NoOpLog, all threads; what is kept of an event, and what it takes to read all streams once."""
    table = Table(
        "Streams: CPU µs a task of MultiEventLog with draining and fetch_logs, to NoOpLog; what it keeps; reading it",
        ("workload", "NoOpLog", "MultiEventLog", "to NoOpLog", "recording alone", "bytes an event", "reading all once"),
    )
    rounds = 1 if run.quick else max(run.rounds, 5)
    for name in [name for name in ("W1", "W4") if name in run.workloads]:
        values = run.round_robin("streams", name, ("log",), run.size(name), rounds)["log"]
        median = {figure: statistics.median(each) for figure, each in values.items()}
        ratio, alone = median["log_us"] / median["noop_us"], median["recorded_us"] / median["noop_us"]
        run.figures |= {
            f"streams.{name}.to_noop": ratio,
            f"streams.{name}.recorded_to_noop": alone,
            f"streams.{name}.bytes_per_event": median["bytes"],
            f"streams.{name}.read_us": median["read_us"],
        }
        shown = [f"{median['noop_us']:.2f}", f"{median['log_us']:.2f}", f"{ratio:.2f}x", f"{alone:.2f}x"]
        table.rows.append((name, *shown, f"{median['bytes']:.1f}", f"{median['read_us']:.1f}"))
    run.tables.append(table)


def measure(workload: Workload, size: int) -> dict[str, Any]:
    """µs of CPU a task: without a log, with one, with one that gives its records up; of reading. Bytes an event."""
    import otel_timespan as ts

    found: dict[str, list[float]] = {"noop_us": [], "recorded_us": [], "log_us": [], "read_us": []}
    plan, per_task = workload.prepare(size), 1e6 / workload.tasks(size)

    def run(log: Any) -> tuple[float, Any]:
        context.log_sink = log
        gc.collect()
        began = time.process_time()
        workload.eager(plan, ts.spawn, ts.fetch)
        logs = None if isinstance(log, ts.NoOpLog) else ts.get_logs(log)
        return (time.process_time() - began) * per_task, logs

    with ts.Context(threads=systems.THREADS) as context:
        for turn in range(TURNS + 1):
            taken = [("noop_us", run(ts.NoOpLog())[0]), ("recorded_us", run(_recording())[0])]
            spent, logs = run(_log())
            began = time.process_time()
            for stream in logs[1].values():
                for _ in stream:
                    pass
            taken += [("log_us", spent), ("read_us", (time.process_time() - began) * per_task)]
            for figure, value in taken if turn else ():
                found[figure].append(value)
        del logs, stream
        tracemalloc.start()
        log = _log()
        before = tracemalloc.get_traced_memory()[0]
        _, logs = run(log)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        context.log_sink = ts.NoOpLog()
    return {**found, "bytes": kept / len(logs[1]["core"])}


def _log() -> Any:
    """A log with the streams of `enable_logging()`, which the context of the measurement gets."""
    import otel_timespan as ts

    log = ts.enable_logging(max_events=None)
    ts.disable_logging()
    return log


def _recording() -> Any:
    """The same log, whose records are drained and dropped: what no log can cost less than."""
    log = _log()
    log._journal._process = lambda records: None
    return log
