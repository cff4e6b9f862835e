"""Cancelling tasks and halting the scheduler. See spec/scheduler.md §2.

A queued or waiting task fails at once. A running one is *abandoned*: its outcome is posted and its body
goes on in the background, its result thrown away; a body in Python code may look at `task_cancelled()`.
First result wins: a cancellation that comes too late does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidOptionError, TaskCancelled
from . import context as _context
from .dtask import DTask
from .environment import token_of

if TYPE_CHECKING:
    from .core import Core

__all__ = ["cancel"]


def cancel(target: Any = None, *, force: bool = False, graceful: bool = True, halt_sch: bool = False) -> None:
    """Cancel a task (a `DTask` or its id), or with None every unfinished task of the current context.

    Fetchers get `DTaskFailedError` with a `TaskCancelled` in it (a `CancelledError`, too), at once.
    `graceful=False` marks the tokens as forced. `force=True` (an interrupt inside the body) is not there
    yet and raises `InvalidOptionError`. `halt_sch=True` shuts the scheduler down afterwards; the next
    `spawn` starts a new one. Idempotent and thread-safe; does nothing where nothing runs.
    """
    if force:
        raise InvalidOptionError("cancel(force=True) is not there yet: a running body is abandoned, not interrupted")
    if target is None:
        core = _context.eager_state()
        targets = list(core.unfinished()) if core is not None else []
    else:
        task = _find(target)
        targets = [] if task is None else [task]
    for task in targets:
        # When all goes down anyway, a slot that is given back would only start what waits for it.
        cancel_task(task, graceful=graceful, give_back=not halt_sch)
    if halt_sch and _context._eager is not None:
        _context._eager.shutdown(TaskCancelled("the scheduler was halted by a cancellation"))


def _find(target: Any) -> DTask | None:
    if isinstance(target, DTask):
        return target
    if isinstance(target, int) and not isinstance(target, bool):
        return _context.unfinished_by_id(target)
    raise InvalidOptionError(f"cancel takes a task, a task id or None, not {target!r}")


def cancel_task(task: DTask, *, graceful: bool, give_back: bool = True) -> None:
    """Cancel one task."""
    core: Core = task._core
    running = task in core.running
    if running:
        token_of(task).cancel(graceful)
    if core.fail(task, TaskCancelled(f"task {task.id} was cancelled"), "cancellation") and running and give_back:
        core.abandon(task)
