"""One run with everything in it: dependencies, a failure, a skipped task, tasks spawned by a body, links.

Prints what the log recorded, in a form that test_runs.py compares with Jaeger.
"""

from __future__ import annotations

import json
from typing import Any

import otel_timespan as ts
from otel_timespan.errors import DTaskFailedError


def load(number: int) -> bytes:
    """Some bytes."""
    return bytes(1000 * number)


def count(data: bytes, scale: int = 1) -> int:
    """Their number."""
    return len(data) * scale


def merge(*counts: int) -> int:
    """The sum."""
    return sum(counts)


def fail(number: int) -> int:
    """Raises."""
    raise ValueError(f"number {number} is bad")


def outer(number: int) -> int:
    """Spawns two tasks and waits for them."""
    first = ts.spawn(count, b"x" * number)
    second = ts.spawn(count, b"y" * number, scale=2)
    return ts.fetch(first) + ts.fetch(second)


def run() -> None:
    """The run."""
    with ts.dag("mixed", purpose="test"):
        counts = [ts.spawn(count, ts.spawn(load, n), scale=n) for n in range(1, 5)]
        nested = ts.spawn(outer, 7)
        failed = ts.spawn(fail, 3)
        skipped = ts.spawn(merge, counts[0], failed)
        assert ts.fetch(ts.spawn(merge, *counts, nested)) == 1000 * (1 + 4 + 9 + 16) + 21
        for task in (failed, skipped):
            try:
                ts.fetch(task)
            except DTaskFailedError:
                continue
            raise AssertionError("a task that should have failed did not")


def plain(span: Any) -> dict[str, Any]:
    """A recorded timespan as plain data; of the timeline only what the test needs."""
    timeline, row = span.timeline, {"category": span.category, "id": {}, "start": span.start, "finish": span.finish}
    row["id"] = {key: value for key, value in dict(span.id).items() if isinstance(value, int | str)}
    if span.category == "add_thunk":
        row["function"] = timeline.f.__qualname__
        row["deps"] = [upstream for _, upstream in timeline.deps]
        row["spawned_by"] = timeline.spawned_by
    elif span.category == "finish":
        row["state"] = timeline.state
    elif span.category == "move":
        row["kind"] = timeline.kind
    return row


if __name__ == "__main__":
    kept = ts.LocalEventLog()
    log = ts.OTelLog()
    ts.eager_context().log_sink = ts.TeeLog(kept, log)
    run()
    flushed = log.flush()
    print(json.dumps({"flushed": flushed, "stats": log.stats(), "spans": [plain(s) for s in ts.get_logs(kept)]}))
