"""Runs that end in each of the ways that there are: well, with a failure, given up. One argument is moved."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import CancelledError

import otel_timespan as ts
from otel_timespan import dagger as D


def load(number: int) -> bytes:
    """Some bytes."""
    return bytes(100_000 * number)


def count(data: bytes) -> int:
    """Their number."""
    time.sleep(0.002)
    return len(data)


def fail() -> None:
    """Raises."""
    raise LookupError("nothing there")


def main() -> None:
    """A run of each kind."""
    ts.eager_context().log_sink = log = ts.OTelLog()
    with ts.dag("good"):
        held = [ts.spawn(load, number) for number in range(1, 20)]
        ts.waitall([ts.spawn(count, task) for task in held])
        assert ts.fetch(ts.spawn(count, D.shard(lambda: bytes(1000), per_thread=True))) == 1000
    with ts.dag("bad"):
        failed = ts.spawn(fail, D.Options(retries=1, retry_delay=0))
        D.wait(ts.spawn(count, failed))
    with contextlib.suppress(CancelledError), ts.dag("given up"):
        ts.fetch(ts.spawn(count, b""))
        raise CancelledError
    assert log.flush(60)


if __name__ == "__main__":
    main()
