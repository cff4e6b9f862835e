"""Worker processes: `add_workers`, `remove_workers`, `run`.

See docs/workers.md.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ..errors import ConcurrencyViolationError, InvalidOptionError
from ..timespans.durations import seconds
from . import answers
from . import context as _context
from .data.read import read
from .fetching import Once, slot_given_back
from .places.topology import positive, topology
from .processes.owned import before_start
from .service import head

__all__ = ["add_workers", "remove_workers", "run"]

T = TypeVar("T")


def add_workers(
    n: int,
    threads: int = 1,
    *,
    env: Mapping[str, str] | None = None,
    host_uuid: str | None = None,
    stall_timeout_s: float = 30.0,
) -> list[int]:
    """Start `n` worker processes with `threads` threads each, and wait until they can take tasks: their ids.

    The running schedulers that use all workers have them from then on, the eager one among them. They inherit the
    environment (`env` goes on top of it), the search path and the folder of this process. `host_uuid` stands for the
    identity of their host. A worker that uses no CPU time and says nothing for `stall_timeout_s` seconds (it was
    stopped, or hangs with the interpreter held) is given up and killed.

    Raises `InvalidOptionError` for counts below 1, `ConcurrencyViolationError` in a worker, and `SchedulingError` where
    one of them could not be started: then none is. Thread-safe.
    """
    count, each = positive("n", n), positive("threads", threads)
    patience_s = seconds(stall_timeout_s, "stall_timeout_s")
    for name, value in (env or {}).items():
        if not (isinstance(name, str) and isinstance(value, str)) or "=" in name or "\0" in name + value:
            raise InvalidOptionError(f"env has {name!r}: {value!r}, which is no variable of an environment")
    if topology.me() != 1:
        raise ConcurrencyViolationError("add_workers was called in a worker: only the head process starts workers")
    from .processes.pool import pool

    _answer()
    with slot_given_back():
        ids = pool.start(count, each, env, host_uuid, patience_s)
    _follow()
    return ids


def remove_workers(ids: Iterable[int], *, timeout_s: float = 30.0) -> None:
    """End worker processes. Those that are gone already change nothing.

    They get no more tasks, and `timeout_s` seconds for those that they have. Raises `InvalidOptionError` for ids that
    never were a worker's, `ConcurrencyViolationError` in a worker. Thread-safe.
    """
    if topology.me() != 1:
        raise ConcurrencyViolationError("remove_workers was called in a worker: only the head process ends workers")
    from .processes.pool import pool

    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InvalidOptionError(f"remove_workers needs a list of workers, not {ids!r}")
    wanted = [positive("worker", worker) for worker in ids]
    unknown = [worker for worker in wanted if worker not in pool.given]
    if unknown:
        raise InvalidOptionError(f"there never was a worker {unknown[0]}: remove_workers ends what add_workers started")
    with slot_given_back():
        pool.leave(wanted, seconds(timeout_s, "timeout_s"), lambda: _leave(wanted))


def run(worker: int, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """`f(*args, **kwargs)` on a worker, apart from all tasks: its value. Raises what it raised.

    Raises `InvalidOptionError` where there is no such worker, `WorkerLostError` where it ends meanwhile.
    """
    if positive("worker", worker) == topology.me():
        return f(*args, **kwargs)
    if head.link is not None:
        answer: T = head.link.ask("run", worker, f, args, kwargs)
        return answer
    from .processes.handles import handle_of
    from .processes.pool import pool
    from .processes.wire import error_of

    done = allocate_lock()
    done.acquire()
    told: list[Any] = []

    def tell(ok: bool, what: Any) -> None:
        try:
            told[:] = [ok, handle_of(what, None) if ok else what]
        except BaseException as unreadable:
            told[:] = [None, unreadable]
        done.release()

    pool.call(worker, (f, args, kwargs), tell)
    with slot_given_back(Once(done.release)):
        done.acquire()
    ok, what = told
    if ok is None:
        raise what
    if not ok:
        raise error_of(worker, *what)
    value: T = read(what)
    return value


def _leave(workers: list[int]) -> None:
    for context in list(_context._running):
        if context._procs is not None:
            context.remove_procs(workers)
    _follow()


def _answer() -> None:
    answers.install(run)


before_start.append(_answer)


def _follow() -> None:
    for context in list(_context._running):
        context.follow_workers()
