"""What a scheduler tells the log of itself: which worker this process is, which there are, which context is current.

The log is below the scheduler and asks it for nothing; a scheduler that is loaded says it by `set_scheduler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["current_context", "known_workers", "set_scheduler", "this_worker"]

this_worker: Callable[[], int] = lambda: 1  # noqa: E731
"""The id of this process; 1 where nobody says otherwise. Ask for it as `scheduler.this_worker()`."""

known_workers: Callable[[], Iterable[int]] = lambda: (1,)  # noqa: E731
"""The ids of all workers there are. Ask for it as `scheduler.known_workers()`."""

current_context: Callable[[], Any] = lambda: None  # noqa: E731
"""The context in which `spawn` would submit now; None without a scheduler. Ask as `scheduler.current_context()`."""


def set_scheduler(*, this: Callable[[], int], known: Callable[[], Iterable[int]], context: Callable[[], Any]) -> None:
    """Say how to find out the id of this process, those of all workers, and the current context. The last one wins."""
    global this_worker, known_workers, current_context
    this_worker, known_workers, current_context = this, known, context
