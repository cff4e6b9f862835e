"""Data that stays where it was made: `mutable`, one piece on one worker; `shard`, one piece a processor.

Both run a function where the data is to live and wrap what it returns as a chunk with a scope. The
scheduler never copies it and never moves it to a storage device, so tasks may change it in place. Such
tasks may run at the same time: what they change together needs a lock, or a type that is thread-safe.

See docs/data.md; upstream: https://juliaparallel.org/Dagger.jl/dev/data-management/.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ..errors import InvalidOptionError, NotCallableError
from .api import spawn
from .context import eager_context
from .data.chunks import Chunk
from .data.shards import Shard
from .data.tochunk import tochunk
from .fetching import fetch, waitall
from .options.options import Options
from .options.scoped import scoped_options
from .places.devices import RAM
from .places.processors import OSProc, Processor, ThreadProc, get_processors
from .places.scopes import ExactScope, ProcessScope, Scope
from .places.topology import topology

__all__ = ["mutable", "shard"]

_T = TypeVar("_T")


def mutable(
    f: Callable[[], _T],
    *,
    worker: int | None = None,
    processor: Processor | None = None,
    scope: Scope | None = None,
) -> Chunk[_T]:
    """Run `f()` as a task on a worker or processor, wait for it, and keep what it returns there for good.

    Where: `worker` or `processor`, by default the worker that asks. `scope` is where tasks that use the chunk
    may run: by default that worker (`ProcessScope`), or exactly that processor (`ExactScope`). Bodies get
    the very object, each time, and may change it. Scoped options do not apply to the call.

    Raises `InvalidOptionError` for both `worker` and `processor`, or values that can't be;
    `DTaskFailedError` when `f` raised, or when `scope` does not contain the place (`SchedulingError`).
    Thread-safe; in a body the slot is given back meanwhile.
    """
    _check_function("mutable", f)
    if worker is not None and processor is not None:
        raise InvalidOptionError("mutable takes a worker or a processor, not both")
    if scope is not None and not isinstance(scope, Scope):
        raise InvalidOptionError(f"mutable: scope must be a Scope, such as ProcessScope(1), not {scope!r}")
    place = _known(OSProc(worker) if processor is None else processor)
    return _pieces(f, {place: scope or _own_scope(place)})[place]


def shard(
    f: Callable[[], _T],
    *,
    procs: Iterable[Processor] | None = None,
    workers: Iterable[int] | None = None,
    per_thread: bool = False,
) -> Shard[_T]:
    """Run `f()` once on each of several processors, wait, and keep each result there: a `Shard`.

    Where: on each of `procs`; or on each of `workers`, by default all of the context; with `per_thread`
    on each thread slot of those. Raises `InvalidOptionError` for `procs` together with `workers` or
    `per_thread`, for none at all, or for unknown workers; `DTaskFailedError` when a call raised.
    Thread-safe.
    """
    _check_function("shard", f)
    places = _places(procs, workers, per_thread)
    return Shard(_pieces(f, {place: _own_scope(place) for place in places}))


def _check_function(what: str, f: Any) -> None:
    if not callable(f):
        raise NotCallableError(f"{what} needs a function without arguments that makes the data, not {f!r}")


def _places(procs: Any, workers: Any, per_thread: bool) -> list[Processor]:
    if procs is not None:
        if workers is not None or per_thread:
            raise InvalidOptionError("shard takes procs, or workers and per_thread, not both")
        chosen = [_known(processor) for processor in _listed("procs", procs)]
    else:
        chosen = [_known(OSProc(worker)) for worker in _listed("workers", workers)] if workers is not None else _all()
        if per_thread:
            chosen = [thread for process in chosen for thread in _threads(process)]
    if not chosen:
        raise InvalidOptionError("shard: there is no processor to put a piece on; leave procs and workers out for all")
    return chosen


def _listed(name: str, given: Any) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise InvalidOptionError(f"shard: {name} must be a list, not {given!r}")
    return list(dict.fromkeys(given))


def _all() -> list[Processor]:
    return [*eager_context().procs]


def _threads(process: Processor) -> list[Processor]:
    found = [processor for processor in get_processors(process) if isinstance(processor, ThreadProc)]
    return [*sorted(found, key=lambda thread: thread.tid)]


def _known(processor: Any) -> Processor:
    """A place for data; that of a worker must be there now, as the function runs now."""
    if not isinstance(processor, Processor):
        raise InvalidOptionError(f"a Processor is needed here, such as OSProc(1), not {processor!r}")
    if isinstance(processor, OSProc) and processor.pid not in topology.workers():
        raise InvalidOptionError(f"there is no worker {processor.pid}, only {list(topology.workers())}")
    return processor


def _own_scope(processor: Processor) -> Scope:
    return ProcessScope(processor) if isinstance(processor, OSProc) else ExactScope(processor)


def _pieces(f: Callable[[], _T], scopes: dict[Processor, Scope]) -> dict[Processor, Chunk[_T]]:
    """`f()` at each place, as a chunk of that place and scope."""
    context = contextvars.copy_context()
    context.run(scoped_options.set, None)  # not in a queue, not kept plain, not elsewhere
    tasks = {place: context.run(_spawn_at, f, place, scope) for place, scope in scopes.items()}
    waitall(tasks.values())
    return {
        place: tochunk(fetch(task, raw=True), place, scopes[place], rewrap=True) for place, task in tasks.items()
    }  # fmt: skip


def _spawn_at(f: Callable[[], Any], place: Processor, scope: Scope) -> Any:
    return spawn(f, Options(compute_scope=_own_scope(place), result_scope=scope, storage=RAM))
