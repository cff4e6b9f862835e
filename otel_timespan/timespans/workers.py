"""Which worker this process is, and which others there are: asked by sinks, said by the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["known_workers", "set_workers", "this_worker"]

this_worker: Callable[[], int] = lambda: 1  # noqa: E731
"""The id of this process; 1 where nobody says otherwise. Ask for it as `workers.this_worker()`."""

known_workers: Callable[[], Iterable[int]] = lambda: (1,)  # noqa: E731
"""The ids of all workers there are. Ask for it as `workers.known_workers()`."""


def set_workers(this: Callable[[], int], known: Callable[[], Iterable[int]]) -> None:
    """Say how to find out the id of this process, and those of all workers. The last one to say it wins."""
    global this_worker, known_workers
    this_worker, known_workers = this, known
