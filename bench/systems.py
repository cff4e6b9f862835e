"""Our scheduler under each sink, and the peers, behind one pair (spawn, fetch)."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ASIDE", "OURS", "PEERS", "SYSTEMS", "System", "discarding_exporter", "opened"]

THREADS = 2
"""Worker threads of every system."""

OURS = ("noop", "log", "otel-discard", "otel-collector")
ASIDE = ("noop-stripped", "log-all")
"""Only in sections of their own: NoOpLog with the event sites removed, MultiEventLog with all consumers."""
PEERS = ("tpe", "dask")
SYSTEMS = (*OURS, *PEERS)
"""NoOpLog; MultiEventLog with the streams of `enable_logging()`; OTelLog to nothing and to a collector."""

_FETCH_RESULT = operator.methodcaller("result")


@dataclass
class System:
    """A system that runs. `get` is Dask's; `settle` waits for its log; `log` is its sink, if any."""

    spawn: Callable[..., Any] | None = None
    submit: Callable[..., Any] | None = None
    fetch: Callable[[Any], Any] | None = None
    get: Callable[[Any, Any], Any] | None = None
    log: Any = None
    settle: Callable[[], Any] = field(default=lambda: None)


@contextlib.contextmanager
def opened(name: str) -> Iterator[System]:
    """One system by name, with `THREADS` threads; closed at the end of the block."""
    if name == "tpe":
        from .peers import CountingPool

        pool = CountingPool(THREADS)
        try:
            yield System(spawn=pool.spawn, submit=pool.submit, fetch=_FETCH_RESULT)
        finally:
            pool.close()
    elif name == "dask":
        from .peers import dask_get

        yield System(get=dask_get(THREADS))
    else:
        with _ours(name) as system:
            yield system


@contextlib.contextmanager
def _ours(name: str) -> Iterator[System]:
    if name == "noop-stripped":
        from . import stripped

        stripped.install()
    import otel_timespan as ts

    with ts.Context(threads=THREADS) as context:
        system = System(spawn=ts.spawn, submit=ts.spawn, fetch=ts.fetch)
        if name in ("log", "log-all"):
            system.log = default_log() if name == "log" else default_log(**ALL_STREAMS)
            system.settle = lambda: ts.get_logs(system.log)
        elif name.startswith("otel"):
            exporter = discarding_exporter() if name == "otel-discard" else None
            system.log = ts.OTelLog(span_exporter=exporter, max_spans=None)  # all tasks are sent, not rolled up
            system.settle = system.log.flush
        elif name not in ("noop", "noop-stripped"):
            raise ValueError(f"no system is called {name!r}; there are {', '.join(SYSTEMS)}")
        context.log_sink = system.log or ts.NoOpLog()
        try:
            yield system
        finally:
            context.log_sink = ts.NoOpLog()
            if system.log is not None:
                system.log.close()


ALL_STREAMS = {"timeline": True, "metrics": True, "lock_contend": True, "compile_time": True}
"""Every stream of `enable_logging` but three whose readings cost what they cost: the profiler, the kernel's counters
and `gc_stats`, which counts all blocks of the allocator (20 to 200 µs)."""


def default_log(**keywords: bool) -> Any:
    """A MultiEventLog as `enable_logging()` makes it, without installing it."""
    import otel_timespan as ts

    before = ts.eager_context().log_sink
    ts.enable_logging(**keywords)
    log = ts.eager_context().log_sink
    ts.eager_context().log_sink = before
    return log


def discarding_exporter() -> Any:
    """A span exporter that takes everything and keeps nothing."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Discarding(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return True

    return Discarding()
