"""Consumers and aggregators for `MultiEventLog`. See docs/consumers.md."""

from .core import (
    CoreMetrics,
    CoreRecord,
    CPULoadAverages,
    DebugMetrics,
    EventSaturation,
    FullMetrics,
    IDMetrics,
    MemoryFree,
    TimelineMetrics,
)
from .deltas import CompileTimeMetrics, GCStats, LockContentionMetrics
from .load import BytesAllocd, ProcessorSaturation, WorkerSaturation
from .perf import LinuxPerfMetrics
from .profiles import ProfileHandle, ProfileMetrics
from .table import TableStorage
from .tasks import (
    LoggedMutableObject,
    TaskArgumentMoves,
    TaskArguments,
    TaskDependencies,
    TaskFunctionNames,
    TaskNames,
    TaskResult,
    TaskToChunk,
    TaskUIDtoTID,
)
from .window import LogWindow

__all__ = [
    "BytesAllocd",
    "CPULoadAverages",
    "CompileTimeMetrics",
    "CoreMetrics",
    "CoreRecord",
    "DebugMetrics",
    "EventSaturation",
    "FullMetrics",
    "GCStats",
    "IDMetrics",
    "LinuxPerfMetrics",
    "LockContentionMetrics",
    "LogWindow",
    "LoggedMutableObject",
    "MemoryFree",
    "ProcessorSaturation",
    "ProfileHandle",
    "ProfileMetrics",
    "TableStorage",
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
]
