"""Logging of the scheduler: switch it on and off, fetch the log, name things in it.

See docs/consumers.md; upstream: https://juliaparallel.org/Dagger.jl/dev/logging/.
"""

from __future__ import annotations

import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from .. import events as consumers
from ..errors import InvalidOptionError
from ..timespans.emit import timespan_finish, timespan_start
from ..timespans.fetched import read_together
from ..timespans.model import EventId
from ..timespans.multi import MultiEventLog
from ..timespans.sink import NoOpLog, get_logs, log_sink
from .context import eager_context
from .data.chunks import Chunk
from .records.describe import is_mutable
from .service.guards import guard
from .tasks.dtask import DTask

__all__ = ["disable_logging", "enable_logging", "fetch_logs", "logging", "logs_annotate", "logs_event_pairs"]


MAX_EVENTS = 500_000
"""How many events of each worker a log keeps that nobody fetches."""

_NOBODY_FETCHES = (
    "the log that enable_logging switched on holds %d events that nobody fetched: the oldest are given up. "
    "fetch_logs() takes them, disable_logging() ends it, enable_logging(max_events=...) keeps more (None: all), "
    "or fewer without this warning"
)


def enable_logging(
    *,
    timeline: bool = False,
    tasknames: bool = True,
    taskfuncnames: bool = False,
    taskdeps: bool = False,
    taskargs: bool = False,
    taskargmoves: bool = False,
    taskresult: bool = False,
    taskuidtotid: bool = False,
    tasktochunk: bool = False,
    all_task_deps: bool = True,
    metrics: bool = False,
    profile: bool = False,
    linuxperf: str = "",
    gc_stats: bool = False,
    lock_contend: bool = False,
    compile_time: bool = False,
    max_events: int | None = MAX_EVENTS,
) -> MultiEventLog:
    """Log into a new `MultiEventLog`, which is returned too, from now on. Earlier logs are left behind.

    The streams `core` and `id` are always there; every other keyword adds the stream of its name, with:

    * `all_task_deps`: `taskfuncnames`, `taskdeps`, `taskargs`, `taskargmoves`, `taskresult`,
      `taskuidtotid` and `tasktochunk` (what the graph pictures need);
    * `metrics`: `wsat`, `loadavg`, `bytes`, `mem`, `esat` and `psat`;
    * `profile`: bodies are sampled, each gets a flame graph;
    * `linuxperf`: a list of counters as for `perf stat -e`, such as "cpu-clock, page-faults".

    `max_events` keeps only the newest so many events of each worker (by default 500,000, of some 20,000 tasks: a
    few MB; None: all). That the default gives up events which nobody fetched is warned about once.

    Raises `InvalidOptionError` for a bad
    keyword, and where the system has no such counters: the log that was on before then stays on.
    Thread-safe.
    """
    if not isinstance(linuxperf, str):
        raise InvalidOptionError(f"linuxperf is a list of counters as text, such as 'cpu-clock', not {linuxperf!r}")
    asked_task_streams = {
        "taskfuncnames": taskfuncnames,
        "taskdeps": taskdeps,
        "taskargs": taskargs,
        "taskargmoves": taskargmoves,
        "taskresult": taskresult,
        "taskuidtotid": taskuidtotid,
        "tasktochunk": tasktochunk,
    }
    wanted: dict[str, tuple[bool, Callable[[], Any]]] = {
        "core": (True, consumers.CoreMetrics),
        "id": (True, consumers.IDMetrics),
        "timeline": (timeline, consumers.TimelineMetrics),
        "tasknames": (tasknames, consumers.TaskNames),
        **{name: (asked or all_task_deps, _TASK_STREAMS[name]) for name, asked in asked_task_streams.items()},
        **{name: (metrics, kind) for name, kind in _METRICS.items()},
        "profile": (profile, consumers.ProfileMetrics),
        "linuxperf": (bool(linuxperf), lambda: consumers.LinuxPerfMetrics(linuxperf)),
        "gc_stats": (gc_stats, consumers.GCStats),
        "lock_contend": (lock_contend, consumers.LockContentionMetrics),
        "compile_time": (compile_time, consumers.CompileTimeMetrics),
    }
    return _start_log(wanted, max_events, profile)


_TASK_STREAMS: dict[str, Callable[[], Any]] = {
    "taskfuncnames": consumers.TaskFunctionNames,
    "taskdeps": consumers.TaskDependencies,
    "taskargs": consumers.TaskArguments,
    "taskargmoves": consumers.TaskArgumentMoves,
    "taskresult": consumers.TaskResult,
    "taskuidtotid": consumers.TaskUIDtoTID,
    "tasktochunk": consumers.TaskToChunk,
}

_METRICS: dict[str, Callable[[], Any]] = {
    "wsat": consumers.WorkerSaturation,
    "loadavg": consumers.CPULoadAverages,
    "bytes": consumers.BytesAllocd,
    "mem": consumers.MemoryFree,
    "esat": consumers.EventSaturation,
    "psat": consumers.ProcessorSaturation,
}


def _start_log(
    wanted: dict[str, tuple[bool, Callable[[], Any]]], max_events: int | None, profile: bool
) -> MultiEventLog:
    log = MultiEventLog(max_events)
    if max_events == MAX_EVENTS:
        log.say_when_full(_NOBODY_FETCHES)
    for name, (asked, make) in wanted.items():
        if asked:
            log[name] = make()
    _install(log, profile)
    return log


def disable_logging() -> None:
    """Log nothing from now on. What was logged is gone, unless you keep the log."""
    _install(NoOpLog(), False)


def fetch_logs(**options: Any) -> Any:
    """`{worker: {stream: list}}` since the last call, None when logging is off; empties the log.

    `options` are those of the sink's `get_logs`. Raises `LogNotKeptError` where the context's sink is one
    that keeps no log.
    """
    return get_logs(_context(), **options)


class logging:  # noqa: N801 - a public name, used as a function
    """`with logging(**keywords) as log:` logs the block; `log.fetch()` gives the log, then or later.

    The keywords are those of `enable_logging`; an unknown one raises `InvalidOptionError`. After the block
    the sink is again what it was.
    """

    def __init__(self, **keywords: Any) -> None:
        unknown = sorted(set(keywords) - set(inspect.signature(enable_logging).parameters))
        if unknown:
            raise InvalidOptionError(f"enable_logging has no keyword {', '.join(unknown)}; see its documentation")
        self._keywords = keywords
        self._log: MultiEventLog | None = None

    def __enter__(self) -> logging:
        context = _context()
        self._before = (context.log_sink, context.profile_computes, _own_profile.get(context))
        self._log = enable_logging(**self._keywords)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        context = _context()
        if context.log_sink is self._log:  # else somebody switched it within the block, and meant it
            context.log_sink, context.profile_computes, own = self._before
            with _install_lock:
                _own_profile.pop(context, None)
                if own is not None:
                    _own_profile[context] = own
            _rest(self._log)

    def fetch(self, **options: Any) -> dict[int, dict[str, list[Any]]]:
        """`{worker: {stream: list}}` since the last call. Raises `InvalidOptionError` before the block."""
        if self._log is None:
            raise InvalidOptionError("nothing is logged yet: `with logging() as log: ...`, then log.fetch()")
        return self._log.get_logs(**options)


def logs_annotate(*args: Any) -> None:
    """`logs_annotate(obj, name)`, or with a context `(ctx, obj, name)`: show `obj` as `name` in pictures.

    `obj` is a task, a chunk or a mutable object. Emits an instantaneous `data_annotation`. Raises
    `InvalidOptionError` (a `ValueError`) for an immutable object, which has no identity.
    """
    if len(args) not in (2, 3):
        raise InvalidOptionError(f"logs_annotate takes (obj, name) or (ctx, obj, name), not {len(args)} arguments")
    context, (obj, name) = (args[0] if len(args) == 3 else _context()), args[-2:]
    if not isinstance(name, str) or not name:
        raise InvalidOptionError(f"logs_annotate: the name is a string, not {name!r}")
    identity = _identity(obj)
    if type(log_sink(context)) is NoOpLog:
        return
    id = EventId(objectid=identity, name=name)
    timespan_start(context, "data_annotation", id)
    timespan_finish(context, "data_annotation", id)


def logs_event_pairs(logs: Mapping[int, Mapping[str, list[Any]]]) -> Iterator[tuple[int, int, int]]:
    """(worker, index of the start, index of the finish) of each span, by worker, in the order of finishes.

    A finish belongs to the last start before it with the same category and id. Events without an id and
    halves that are alone are left out. Raises `InvalidOptionError` where the streams `core` and `id` miss.
    """
    for worker, streams in logs.items():
        if "core" not in streams or "id" not in streams:
            raise InvalidOptionError(f"the log of worker {worker} has no streams `core` and `id`")
        starts: dict[Any, int] = {}
        for index, (kind, category, id) in enumerate(_heads(streams["core"], streams["id"])):
            if id is None:
                continue
            if kind == "start":
                starts[category, id] = index
            else:
                start = starts.pop((category, id), None)
                if start is not None:
                    yield worker, start, index


def _heads(core: list[Any], ids: list[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Kind, category and id of each event; no id where there is no row of the event."""
    columns = read_together(core, ids)
    if columns is None:
        for row, id in zip(core, ids, strict=True):
            yield (None, None, None) if row is None else (row.kind, row.category, id)
    else:
        for some in columns:
            yield from zip(some.phases, some.categories, some.ids, strict=True)


def _context() -> Any:
    return eager_context()


_install_lock = guard()
_own_profile: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""Contexts whose `profile_computes` we switched on, with what it was."""


def _install(log: Any, profile: bool) -> None:
    context = _context()
    with _install_lock:
        before = context.log_sink
        if profile:
            _own_profile.setdefault(context, context.profile_computes)
            context.profile_computes = True
        elif context in _own_profile:
            context.profile_computes = _own_profile.pop(context)
        context.log_sink = log
    _rest(before)


def _rest(log: Any) -> None:
    """A log that nothing is written to any more holds no counters open; they open again if it is."""
    if isinstance(log, MultiEventLog):
        for consumer in log.consumers.values():
            if isinstance(consumer, (consumers.CompileTimeMetrics, consumers.LinuxPerfMetrics)):
                consumer.close()


def _identity(obj: Any) -> Any:
    if isinstance(obj, DTask):
        return obj.id
    if isinstance(obj, Chunk):
        return consumers.LoggedMutableObject(obj.handle.info.handle, "chunk")
    if not is_mutable(obj):
        raise InvalidOptionError(f"logs_annotate: {obj!r} is immutable, so the log can't tell it from its equals")
    return consumers.LoggedMutableObject(id(obj), "object")


class _Module(types.ModuleType):
    """Importing this module binds it to the package's name `logging`; so calling it must work too."""

    def __call__(self, **keywords: Any) -> logging:
        return logging(**keywords)


sys.modules[__name__].__class__ = _Module
