"""The worker processes that belong to one context: started with its scheduler, ended with it, nobody else's.

One that dies is replaced, so that a context has as many as it was made with.

See docs/workers.md.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ... import forks
from ...errors import ConcurrencyViolationError, WorkerLostError
from ..places.topology import topology
from ..service import janitor

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["OwnedWorkers", "before_start"]

LOGGER = logging.getLogger("otel_timespan")

LOOK_AGAIN_S = 0.2
"""How often one that has not answered is looked after."""

before_start: list[Callable[[], None]] = []
"""Called before workers are started: what programs call, above, answers what bodies there ask."""

Prepare = tuple[Callable[..., Any], tuple[Any, ...]]


class OwnedWorkers:
    """`count` workers with one thread each.

    `on_change(gone, new)` is called, on a thread of ours, when one that died was replaced; `on_failure(error)` when
    that could not be done. Thread-safe.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.ids: list[int] = []
        """Those that there are now: empty before `start` and after `stop`."""
        self.on_change: Callable[[list[int], list[int]], None] = _ignore_change
        self.on_failure: Callable[[BaseException], None] = _ignore_failure
        self.prepare: Prepare | None = None
        """(f, args): called in each of them before its first task."""
        self._lock = forks.rlock()
        janitor.start()
        weakref.finalize(self, janitor.ask, functools.partial(_stop_forgotten, self.ids)).atexit = False
        _all.add(self)

    def start(self) -> list[int]:
        """Start them unless they are there: those that were started now.

        Raises `ConcurrencyViolationError` in a worker, `SchedulingError` where one could not be started, and what
        `prepare` raised in one: then none is left.
        """
        if topology.me() != 1:
            raise ConcurrencyViolationError("only the head process starts workers, and this is a worker")
        with self._lock:
            if self.ids:
                return []
            self.ids += self._begin(self.count)
            return list(self.ids)

    def stop(self, tell: Callable[[list[int]], None]) -> None:
        """End them. `tell(ids)` is called when they are to get no more tasks."""
        with self._lock:
            ids = self.ids[:]
            self.ids.clear()
        if ids:
            _pool().leave(ids, 0.0, lambda: tell(ids))

    def lost(self, worker: int, wanted: bool) -> None:
        """One is gone; `wanted`: it was to be removed. On any thread; only notes it."""
        if worker not in self.ids:
            return
        if wanted:
            self.ids.remove(worker)
        else:
            janitor.ask(lambda: self._replace(worker))

    def _replace(self, worker: int) -> None:
        with self._lock:
            if worker not in self.ids:  # all were ended meanwhile
                return
            self.ids.remove(worker)
            try:
                new = self._begin(1)
            except BaseException as error:
                LOGGER.error("worker %d died, and no other could be started in its place: %s", worker, error)
                self.on_failure(error)
                return
            self.ids += new
        self.on_change([worker], new)

    def _begin(self, count: int) -> list[int]:
        for call in before_start:
            call()
        pool = _pool()
        ids = pool.start(count, 1, None, None, private=True)
        try:
            if self.prepare is not None:
                _call_in_all(ids, *self.prepare)
        except BaseException:
            pool.stop(ids)
            raise
        return ids


def _call_in_all(workers: list[int], f: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Call `f(*args)` in all of them at once. Raises what one of them raised, or that it ended."""
    from .wire import error_of

    answers: SimpleQueue[tuple[int, bool, Any]] = SimpleQueue()
    waiting = set(workers)
    for worker in workers:
        tell = functools.partial(_answer, answers, worker)
        _pool().call(worker, (_call_for_nothing, (f, args), {}), tell)
    while waiting:
        try:
            worker, ok, data = answers.get(timeout=LOOK_AGAIN_S)
        except Empty:
            ended = [worker for worker in waiting if not _pool().has(worker)]
            if ended:
                raise WorkerLostError(ended[0]) from None
            continue
        if not ok:
            raise error_of(worker, *data)
        waiting.discard(worker)


def _answer(answers: SimpleQueue[tuple[int, bool, Any]], worker: int, ok: bool, data: Any) -> None:
    answers.put((worker, ok, data))


def _call_for_nothing(f: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """What it gives need not be one that can be sent."""
    f(*args)


def _stop_forgotten(ids: list[int]) -> None:
    """Nobody has the owner of these any more."""
    if ids:
        _pool().stop(ids[:])


def _pool() -> Pool:
    """The workers of this process; not loaded before a context has some."""
    from .pool import pool

    return pool


def _ignore_change(gone: list[int], new: list[int]) -> None:
    """Nobody uses them."""


def _ignore_failure(error: BaseException) -> None:
    """Nobody uses them."""


_all: weakref.WeakSet[OwnedWorkers] = weakref.WeakSet()


def _changed(worker: int | None) -> None:
    """Workers came or went: one that is gone, and still was ours, died."""
    if worker is None or worker in topology.workers():
        return
    for owned in list(_all):
        owned.lost(worker, wanted=_pool().has(worker))


topology.listeners.append(_changed)


@forks.in_child("_all")
def _in_child() -> None:
    """After a fork: they are the parent's."""
    for owned in list(_all):
        owned.ids.clear()
