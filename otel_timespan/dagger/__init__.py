"""The Dagger-style scheduler: `spawn` calls as a DAG of tasks. See docs/concepts.md.

docs/architecture.md says where things are in here. Upstream: https://juliaparallel.org/Dagger.jl/dev/.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .. import forks
from ..errors import (
    ConcurrencyViolationError,
    DTaskCancelledError,
    DTaskFailedError,
    DynamicThunkError,
    FetchTimeoutError,
    InvalidOptionError,
    NestingError,
    NoPieceError,
    NotCallableError,
    NoWorkersError,
    OptionNotSetError,
    RemoteTaskError,
    SchedulerHaltedError,
    SchedulingError,
    SingleWorkerLostError,
    StorageError,
    StreamClosed,
    TaskCancelled,
    TaskTimeoutError,
    TimespanError,
    WorkerLostError,
    unwrap_exception,
)
from . import cluster as cluster
from . import handle as handle  # fills in the verbs of `DTask`
from . import sch as sch
from . import storage as storage
from .api import setitem, spawn, sync, task
from .context import Context, addprocs, eager_context, eager_state, nprocs, procs, rmprocs, workers
from .control import cancel
from .core.invariants import InvariantViolation, check
from .core.limits import get_limit, set_limit
from .data.caching import disable_disk_caching, enable_disk_caching, global_device
from .data.chunks import ArrayDomain, Chunk, DRef, UnitDomain, datasize, domain
from .data.files import File, tofile
from .data.shards import Shard
from .data.tochunk import tochunk
from .drivers.inline import InlineDriver
from .drivers.simulated import SimulatedDriver
from .dynamic import SchedulerHandle, ThunkID, sch_handle
from .executor import Executor
from .fetching import fetch, fetch_all, wait, waitall, waitany
from .iterating import as_completed, map
from .lazy import SchedulerOptions, Thunk, collect, compute, delayed
from .monitoring import status
from .mutable import mutable, shard
from .options.defaults import default_option, set_default_option
from .options.options import Options
from .options.scoped import get_options, with_options
from .places.processors import (
    CPURAMMemorySpace,
    OSProc,
    Processor,
    ThreadProc,
    add_processor_callback,
    default_enabled,
    delete_processor_callback,
    execute,
    get_parent,
    get_processors,
    iscompatible,
    iscompatible_arg,
    iscompatible_func,
    memory_space,
    memory_spaces,
    move,
    myid,
    processors,
    short_name,
)
from .places.scopes import (
    AnyScope,
    DefaultScope,
    ExactScope,
    InvalidScope,
    NodeScope,
    ProcessorTypeScope,
    ProcessScope,
    Scope,
    TaintScope,
    UnionScope,
    constrain,
    proc_in_scope,
)
from .progressing import progress
from .queues import (
    DefaultTaskQueue,
    TaskQueue,
    bulk,
    in_queue,
    sequential,
    spawn_bulk,
    spawn_sequential,
    wait_all,
    waiting,
)
from .records.kinds import EVENT_CATEGORIES
from .records.sizes import approx_size, register_size, unregister_size
from .scoping import (
    all_processors,
    compatible_processors,
    issetequal,
    issubset,
    num_processors,
    register_scope_key,
    scope,
)
from .service.surroundings import carry
from .tasks.dtask import DTask, TaskSummary
from .tasks.environment import (
    CancelToken,
    get_tls,
    in_task,
    set_tls,
    task_cancel,
    task_cancelled,
    task_id,
    task_logging_enabled,
    task_may_cancel,
    task_processor,
)

if TYPE_CHECKING:
    from .logging import disable_logging, enable_logging, fetch_logs, logging, logs_annotate, logs_event_pairs

_LOGGING = frozenset(
    (
        "disable_logging",
        "enable_logging",
        "fetch_logs",
        "logging",
        "logs_annotate",
        "logs_event_pairs",
    )
)
"""They join scheduler and consumers: loaded at their first use."""

__all__ = [
    "EVENT_CATEGORIES",
    "AnyScope",
    "ArrayDomain",
    "CPURAMMemorySpace",
    "CancelToken",
    "Chunk",
    "ConcurrencyViolationError",
    "Context",
    "DRef",
    "DTask",
    "DTaskCancelledError",
    "DTaskFailedError",
    "DefaultScope",
    "DefaultTaskQueue",
    "DynamicThunkError",
    "ExactScope",
    "Executor",
    "FetchTimeoutError",
    "File",
    "InlineDriver",
    "InvalidOptionError",
    "InvalidScope",
    "InvariantViolation",
    "NestingError",
    "NoPieceError",
    "NoWorkersError",
    "NodeScope",
    "NotCallableError",
    "OSProc",
    "OptionNotSetError",
    "Options",
    "ProcessScope",
    "Processor",
    "ProcessorTypeScope",
    "RemoteTaskError",
    "SchedulerHaltedError",
    "SchedulerHandle",
    "SchedulerOptions",
    "SchedulingError",
    "Scope",
    "Shard",
    "SimulatedDriver",
    "SingleWorkerLostError",
    "StorageError",
    "StreamClosed",
    "TaintScope",
    "TaskCancelled",
    "TaskQueue",
    "TaskSummary",
    "TaskTimeoutError",
    "ThreadProc",
    "Thunk",
    "ThunkID",
    "TimespanError",
    "UnionScope",
    "UnitDomain",
    "WorkerLostError",
    "add_processor_callback",
    "addprocs",
    "all_processors",
    "approx_size",
    "as_completed",
    "bulk",
    "cancel",
    "carry",
    "check",
    "cluster",
    "collect",
    "compatible_processors",
    "compute",
    "constrain",
    "datasize",
    "default_enabled",
    "default_option",
    "delayed",
    "delete_processor_callback",
    "disable_disk_caching",
    "disable_logging",
    "domain",
    "eager_context",
    "eager_state",
    "enable_disk_caching",
    "enable_logging",
    "execute",
    "fetch",
    "fetch_all",
    "fetch_logs",
    "get_limit",
    "get_options",
    "get_parent",
    "get_processors",
    "get_tls",
    "global_device",
    "in_queue",
    "in_task",
    "iscompatible",
    "iscompatible_arg",
    "iscompatible_func",
    "issetequal",
    "issubset",
    "logging",
    "logs_annotate",
    "logs_event_pairs",
    "map",
    "memory_space",
    "memory_spaces",
    "move",
    "mutable",
    "myid",
    "nprocs",
    "num_processors",
    "proc_in_scope",
    "processors",
    "procs",
    "progress",
    "register_scope_key",
    "register_size",
    "rmprocs",
    "sch",
    "sch_handle",
    "scope",
    "sequential",
    "set_default_option",
    "set_limit",
    "set_tls",
    "setitem",
    "shard",
    "short_name",
    "spawn",
    "spawn_bulk",
    "spawn_sequential",
    "status",
    "sync",
    "task",
    "task_cancel",
    "task_cancelled",
    "task_id",
    "task_logging_enabled",
    "task_may_cancel",
    "task_processor",
    "tochunk",
    "tofile",
    "unregister_size",
    "unwrap_exception",
    "wait",
    "wait_all",
    "waitall",
    "waitany",
    "waiting",
    "with_options",
    "workers",
]


if not TYPE_CHECKING:  # to them it would mean that any name is there

    def __getattr__(name: str) -> Any:
        if name in _LOGGING:
            with forks.held_off:
                module = importlib.import_module(f"{__name__}.logging")
            # All at once: importing the module put it under its own name, where the function `logging` belongs.
            globals().update({each: getattr(module, each) for each in _LOGGING})
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
