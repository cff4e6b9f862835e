"""otel-timespan: a Dagger-style task scheduler whose every expensive step is a timespan.

    import otel_timespan as ts

    ctx = ts.eager_context()
    ctx.log_sink = ts.OTelLog()                  # traces and metrics over OTLP
    parts = [ts.spawn(load, path) for path in paths]
    print(ts.fetch(ts.spawn(merge, *parts)))

`otel_timespan.dagger` is the scheduler, `.timespans` the log, `.events` its consumers, `.otel` the
OpenTelemetry bridge, `.viz` the pictures. This module re-exports the commonest names, each loaded at its
first use, so that a program pays only for what it uses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "dagger": [
        "Chunk",
        "Context",
        "DTask",
        "Executor",
        "Options",
        "as_completed",
        "cancel",
        "collect",
        "compute",
        "delayed",
        "disable_logging",
        "eager_context",
        "enable_logging",
        "fetch",
        "fetch_all",
        "fetch_logs",
        "logs_annotate",
        "map",
        "progress",
        "scope",
        "spawn",
        "sync",
        "task",
        "tochunk",
        "wait",
        "waitall",
        "waitany",
        "with_options",
    ],
    "errors": ["DTaskFailedError", "SchedulingError", "TaskCancelled", "TimespanError", "unwrap_exception"],
    "events": [
        "BytesAllocd",
        "CPULoadAverages",
        "CoreMetrics",
        "EventSaturation",
        "IDMetrics",
        "LogWindow",
        "MemoryFree",
        "ProcessorSaturation",
        "TaskArgumentMoves",
        "TaskArguments",
        "TaskDependencies",
        "TaskFunctionNames",
        "TaskNames",
        "TaskResult",
        "TaskToChunk",
        "TaskUIDtoTID",
        "TimelineMetrics",
        "WorkerSaturation",
    ],
    "otel": ["OTelAggregator", "OTelLog", "dag"],
    "timespans": ["FilterLog", "LocalEventLog", "MultiEventLog", "NoOpLog", "TeeLog", "get_logs"],
    "viz": ["render_logs", "show_logs"],
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from .dagger import (
        Chunk,
        Context,
        DTask,
        Executor,
        Options,
        as_completed,
        cancel,
        eager_context,
        fetch,
        fetch_all,
        map,
        progress,
        spawn,
        sync,
        task,
        tochunk,
        wait,
        waitall,
        waitany,
        with_options,
    )
    from .errors import DTaskFailedError, SchedulingError, TaskCancelled, TimespanError, unwrap_exception
    from .timespans import FilterLog, LocalEventLog, MultiEventLog, NoOpLog, TeeLog, get_logs
