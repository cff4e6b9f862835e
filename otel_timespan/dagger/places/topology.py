"""Which workers there are: their thread slots, their hosts, and which of them we are.

The scheduler's drivers keep it up to date; scopes and processors read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InvalidOptionError
from ..service.guards import guard
from ..service.threads import carry
from .node import node_uuid

__all__ = ["THREADS_VARIABLE", "Topology", "default_threads", "positive", "topology"]

THREADS_VARIABLE = "OTEL_TIMESPAN_THREADS"
"""Environment variable: the number of thread slots of a worker that was not told any."""


def default_threads() -> int:
    """The thread slots of a worker that was not told any: at least 2, else one a usable CPU.

    The environment variable `OTEL_TIMESPAN_THREADS` wins. Raises `InvalidOptionError` if it is no
    positive integer.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(2, cpus)
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 1:
        raise InvalidOptionError(f"{THREADS_VARIABLE}={text[:60]!a}: it must be a positive integer, or unset")
    return int(text)


@dataclass(frozen=True, slots=True)
class _Worker:
    """None means: this machine's default, asked when it is needed."""

    threads: int | None = None
    node: str | None = None
    local: bool = True
    private: bool = False


class Topology:
    """Which workers there are, how many thread slots each has, on which host it is, and who we are.

    Begins as worker 1 alone with `default_threads()` slots. The drivers change it with `add_worker`,
    `remove_worker` and `set_me`; every change drops what was cached about the workers' processors.
    Thread-safe: readers see one consistent state, never a half-made change.

    `remote(worker)` is asked for what the discovery callbacks of a worker in another process report;
    None (the default) where there is no such worker.
    """

    def __init__(self) -> None:
        self._lock = guard()
        self.acting: ContextVar[int | None] = ContextVar("otel_timespan_worker", default=None)
        self.listeners: list[Callable[[int | None], None]] = []
        """Called with the id of a worker that changed, None when all may have."""
        self.remote: Callable[[int], Iterable[Any]] | None = None
        self._workers: dict[int, _Worker] = {1: _Worker()}
        self._own = 1

    def reset(self, threads: int | None = None, node: str | None = None) -> None:
        """Back to worker 1 alone, in this process."""
        entry = _Worker(positive("threads", threads) if threads is not None else None, node)
        with self._lock:
            self._workers = {1: entry}
            self._own = 1
        self._tell(None)

    def add_worker(
        self,
        worker: int,
        threads: int | None = None,
        node: str | None = None,
        local: bool = True,
        private: bool = False,
    ) -> None:
        """Add a worker, or replace what is known of it.

        `threads`: its slots (default `default_threads()`); `node`: its host's identity (default this
        host's); `local`: it lives in this process; `private`: it is one context's, and not for all.
        """
        worker = positive("worker", worker)
        entry = _Worker(positive("threads", threads) if threads is not None else None, node, local, private)
        with self._lock:
            self._workers = dict(sorted({**self._workers, worker: entry}.items()))
        self._tell(worker)

    def remove_worker(self, worker: int) -> None:
        """Forget a worker; does nothing if it is not there."""
        with self._lock:
            self._workers = {w: entry for w, entry in self._workers.items() if w != worker}
        self._tell(worker)

    def set_me(self, worker: int) -> None:
        """Say which worker this process is."""
        self._own = positive("worker", worker)

    @contextmanager
    def acting_as(self, worker: int) -> Iterator[None]:
        """Within the block (and its context) `me()` is `worker`: for several workers in one process."""
        token = self.acting.set(worker)
        try:
            yield
        finally:
            self.acting.reset(token)

    def workers(self) -> tuple[int, ...]:
        """The ids of all workers, ascending, worker 1 included."""
        return tuple(self._workers)

    def common(self) -> tuple[int, ...]:
        """The ids of those that any context may use, ascending."""
        return tuple([worker for worker, entry in self._workers.items() if not entry.private])

    def threads(self, worker: int) -> int:
        """The number of thread slots of a worker, 0 if there is no such worker."""
        entry = self._workers.get(worker)
        if entry is None:
            return 0
        return default_threads() if entry.threads is None else entry.threads

    def node(self, worker: int) -> str:
        """The identity of a worker's host; this host's if nothing is known of the worker."""
        entry = self._workers.get(worker)
        return node_uuid() if entry is None or entry.node is None else entry.node

    def known(self) -> dict[int, tuple[int, str, bool]]:
        """What another process is told: by worker its threads, its host, and whether it is one context's."""
        found = self._workers
        return {worker: (self.threads(worker), self.node(worker), entry.private) for worker, entry in found.items()}

    def learn(self, known: dict[int, tuple[int, str, bool]]) -> None:
        """What another process knows of the workers, and of our host: `known()` of there."""
        own = self._own
        mine = self._workers[own]
        if own in known:
            mine = replace(mine, node=known[own][1])
        others = {
            worker: _Worker(threads, node, False, private)
            for worker, (threads, node, private) in known.items()
            if worker != own
        }
        with self._lock:
            self._workers = dict(sorted({**others, own: mine}.items()))
        self._tell(None)

    def me(self) -> int:
        """The id of the worker that asks."""
        return self.acting.get() or self._own

    def is_local(self, worker: int) -> bool:
        """Whether the worker lives in this process."""
        entry = self._workers.get(worker)
        return entry is not None and entry.local

    def _tell(self, worker: int | None) -> None:
        for listener in tuple(self.listeners):
            listener(worker)


topology = Topology()
"""The workers that there are. One object for the whole process, never replaced."""
carry(topology.acting)


def positive(what: str, value: object) -> int:
    """`value` as an integer of at least 1, else an `InvalidOptionError` that calls it `what`."""
    if type(value) is int and value >= 1:
        return value
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise InvalidOptionError(f"{what}={value!r}: it must be an integer, counted from 1")
    number = value.__index__()  # type: ignore[attr-defined]
    if number < 1:
        raise InvalidOptionError(f"{what}={value!r}: it must be at least 1")
    return int(number)
