"""One run over three processes: this one, and two workers, in whose bodies the program makes spans of its own."""

from __future__ import annotations

import json
import os
import time

from opentelemetry import trace

import otel_timespan as ts
from otel_timespan import dagger as D


def load(number: int) -> bytes:
    """Some bytes, from afar."""
    with trace.get_tracer("program").start_as_current_span("read", kind=trace.SpanKind.CLIENT) as span:
        span.set_attribute("part", number)
        time.sleep(0.02)
    return bytes(2000 * number)


def clean(data: bytes) -> bytes:
    """The same, cleaner."""
    trace.get_current_span().set_attribute("removed", 7)
    time.sleep(0.03)
    return data[7:]


def merge(*parts: bytes) -> tuple[int, int]:
    """How much there is, and where it was counted."""
    time.sleep(0.01)
    return sum(map(len, parts)), os.getpid()


def main() -> None:
    """The run, and what became of its spans."""
    workers = D.cluster.add_workers(2)
    with D.Context(procs=workers, log_sink=ts.OTelLog()) as context:
        with ts.dag("imports"):
            D.waitall([D.spawn.opts(scope=D.scope(worker=worker))(len, "") for worker in workers])
        context.log_sink.flush()
        with ts.dag("report"):
            parts = [D.spawn(clean, D.spawn(load, number)) for number in range(1, 7)]
            total, pid = D.fetch(D.spawn(merge, *parts))
        held = D.spawn(bytes, 20_000)
        D.wait(held)
        log = context.log_sink
    flushed = log.flush(60)
    time.sleep(float(os.environ.get("STAY_S", "0")))
    print(json.dumps({
        "flushed": flushed, "stats": log.stats(), "workers": workers, "total": total, "away": pid != os.getpid(),
    }))  # fmt: skip
    D.cluster.remove_workers(workers)


if __name__ == "__main__":
    main()
