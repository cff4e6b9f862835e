"""`Executor` in the place of `ThreadPoolExecutor` and `ProcessPoolExecutor`, for who imports them from then on."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import os
from pathlib import Path
from typing import Any

import otel_timespan as ts

ROOT = Path(__file__).resolve().parents[2]


class ThreadPoolExecutor(ts.Executor):
    """Ours under the name that tests write into programs, with a thread pool's default number of workers."""

    def __init__(self, max_workers: int | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(min(32, (os.cpu_count() or 1) + 4) if max_workers is None else max_workers, *args, **kwargs)


class ProcessPoolExecutor(ts.Executor):
    """Ours under the name that tests write into programs, with a process pool's default number of workers."""

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Any = None,
        initargs: Any = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        super().__init__(
            processes=(os.cpu_count() or 1) if max_workers is None else max_workers,
            mp_context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_child=max_tasks_per_child,
        )


def install(processes: bool = False) -> None:
    """From here on the pools of `concurrent.futures` are ours; those of `processes` if that is asked for."""
    if processes:
        concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[misc]
        concurrent.futures.process.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[misc]
    concurrent.futures.ThreadPoolExecutor = ThreadPoolExecutor  # type: ignore[misc]
    concurrent.futures.thread.ThreadPoolExecutor = ThreadPoolExecutor  # type: ignore[misc]


def log_to_memory(kind: type[ts.Executor] = ThreadPoolExecutor) -> None:
    """Log as a user would, and start our service threads, before a test counts threads."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    log = ts.OTelLog(span_exporter=InMemorySpanExporter(), metrics=False)
    ts.eager_context().log_sink = log
    with kind(1) as executor:
        executor.submit(int).result()
    ts.fetch(ts.spawn(int))
    log.flush()
