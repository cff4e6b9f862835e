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

from . import forks

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


if not TYPE_CHECKING:  # to them it would mean that any name is there

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with forks.held_off:
            value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:  # the same names for type checkers, which take `a as a` for an export; a test compares
    from .dagger import (
        Chunk as Chunk,
        Context as Context,
        DTask as DTask,
        Executor as Executor,
        Options as Options,
        as_completed as as_completed,
        cancel as cancel,
        collect as collect,
        compute as compute,
        delayed as delayed,
        disable_logging as disable_logging,
        eager_context as eager_context,
        enable_logging as enable_logging,
        fetch as fetch,
        fetch_all as fetch_all,
        fetch_logs as fetch_logs,
        logs_annotate as logs_annotate,
        map as map,
        progress as progress,
        scope as scope,
        spawn as spawn,
        sync as sync,
        task as task,
        tochunk as tochunk,
        wait as wait,
        waitall as waitall,
        waitany as waitany,
        with_options as with_options,
    )
    from .errors import (
        DTaskFailedError as DTaskFailedError,
        SchedulingError as SchedulingError,
        TaskCancelled as TaskCancelled,
        TimespanError as TimespanError,
        unwrap_exception as unwrap_exception,
    )
    from .events import (
        BytesAllocd as BytesAllocd,
        CoreMetrics as CoreMetrics,
        CPULoadAverages as CPULoadAverages,
        EventSaturation as EventSaturation,
        IDMetrics as IDMetrics,
        LogWindow as LogWindow,
        MemoryFree as MemoryFree,
        ProcessorSaturation as ProcessorSaturation,
        TaskArgumentMoves as TaskArgumentMoves,
        TaskArguments as TaskArguments,
        TaskDependencies as TaskDependencies,
        TaskFunctionNames as TaskFunctionNames,
        TaskNames as TaskNames,
        TaskResult as TaskResult,
        TaskToChunk as TaskToChunk,
        TaskUIDtoTID as TaskUIDtoTID,
        TimelineMetrics as TimelineMetrics,
        WorkerSaturation as WorkerSaturation,
    )
    from .otel import OTelAggregator as OTelAggregator, OTelLog as OTelLog, dag as dag
    from .timespans import (
        FilterLog as FilterLog,
        LocalEventLog as LocalEventLog,
        MultiEventLog as MultiEventLog,
        NoOpLog as NoOpLog,
        TeeLog as TeeLog,
        get_logs as get_logs,
    )
    from .viz import render_logs as render_logs, show_logs as show_logs
