"""Cancelling tasks and halting the scheduler. See docs/concepts.md.

A queued or waiting task fails at once. A running one is *abandoned*: its outcome is posted and its body
goes on in the background, its result thrown away; a body in Python code may look at `task_cancelled()`.
With `force=True` it is interrupted instead, and done when its body is (interrupts.py). First result wins: a
cancellation that comes too late does nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ..errors import FetchTimeoutError, InvalidOptionError, TaskCancelled
from . import context as _context
from .bodies import interrupts
from .bodies.ending import abandon, fail
from .fetching import waitall
from .service import head
from .service.uninterrupted import uninterrupted
from .tasks.dtask import UNLAUNCHED, DTask
from .tasks.environment import running_task, token_of

if TYPE_CHECKING:
    from .core.machine import Core

__all__ = ["cancel", "cancel_here", "cancel_task"]

HALT_PATIENCE_S = 5.0
"""How long a halt waits for bodies that are interrupted."""


def cancel(
    target: DTask | int | None = None, *, force: bool = False, graceful: bool = True, halt_sch: bool = False
) -> None:
    """Cancel a task (a `DTask` or its id), or with None every unfinished task of the current scheduler.

    Fetchers get `DTaskFailedError` with a `TaskCancelled` in it (a `CancelledError`, too), at once.
    `graceful=False` marks the tokens as forced. `halt_sch=True` shuts the scheduler down afterwards (and waits
    up to 5 s for bodies that are interrupted); the next `spawn` starts a new one. Idempotent and thread-safe;
    does nothing where nothing runs.

    `force=True` raises `TaskCancelled` inside a body that runs, once, as soon as it executes Python code of the
    user's, or waits in `fetch`; what is half done in there stays half done. Fetchers get their error when the
    body has ended, whatever it made of that exception. A body in C code or in a long sleep ends when that
    returns: cancel it again without `force` to abandon it. Without the GIL, and elsewhere than on CPython,
    only a body that waits in `fetch` is interrupted. In a body that it cancels, this call itself raises.
    """
    if head.link is not None and not isinstance(target, DTask):
        head.link.ask("cancel_all", target, force, graceful, halt_sch)
        return
    targets = _targets(target)
    # When all goes down anyway, a slot that is given back would only start what waits for it.
    uninterrupted(_cancel_all, targets, graceful, not halt_sch, force)
    if halt_sch and _context._eager is not None:
        _await_interrupted(targets)
        _context._eager.shutdown(TaskCancelled("the scheduler was halted by a cancellation"))
    if force:
        interrupts.check()


def _cancel_all(tasks: list[DTask], graceful: bool, give_back: bool, force: bool) -> None:
    for task in tasks:
        cancel_task(task, graceful=graceful, give_back=give_back, force=force)


def _targets(target: Any) -> list[DTask]:
    if target is None:
        body = running_task()
        core = body._core if body is not None else _started()
        if core is None:
            return []
        # Running ones last: their slots would start others. The oldest first: they are found first in queues.
        running = core.running
        return sorted(core.unfinished(), key=lambda task: (task in running, task.id))
    if isinstance(target, DTask):
        return [target]
    if isinstance(target, int) and not isinstance(target, bool):
        found = _context.unfinished_by_id(target)
        return [] if found is None else [found]
    raise InvalidOptionError(f"cancel takes a task, a task id or None, not {target!r}")


def _started() -> Core | None:
    """The current scheduler; one that is just starting is waited for."""
    context = _context._eager
    if context is None:
        return None
    with context._lock:
        return context.core


def _await_interrupted(tasks: list[DTask]) -> None:
    body = running_task()
    with contextlib.suppress(FetchTimeoutError):
        waitall([t for t in tasks if not t.isready() and t is not body], timeout=HALT_PATIENCE_S)


def cancel_task(task: DTask, *, graceful: bool, give_back: bool = True, force: bool = False) -> None:
    """Cancel one task, wherever it is. When this returns the task is done, unless its body is to be interrupted."""
    if head.link is not None and task._state != UNLAUNCHED:
        head.link.ask("cancel", task, graceful, give_back, force)
    else:
        cancel_here(task, graceful=graceful, give_back=give_back, force=force)


def cancel_here(task: DTask, *, graceful: bool, give_back: bool = True, force: bool = False) -> None:
    """Cancel a task that this process has: in the head any; in a worker one that was given to it."""
    core: Core = task._core
    running = task in core.running
    if running:
        token_of(task).cancel(graceful)
        if force and interrupts.force(core, task):
            return
    queued, upstreams = getattr(task, "_claim", None), task._deps
    if not fail(core, task, TaskCancelled(f"task {task.id} was cancelled"), "cancellation"):
        return
    if not running:
        _forget(core, task, queued, upstreams)
    elif give_back:
        abandon(core, task)


def _forget(core: Core, task: DTask, queued: bool | None, upstreams: tuple[DTask, ...]) -> None:
    """Take a cancelled task out of wherever it waits: a busy slot or upstream may come by late, or never."""
    if queued is True:
        for queue in list(core.shared.values()):
            if _take_out(queue, task):
                return
    elif queued is False:
        core.take_out(task)
    else:
        for up in upstreams:
            _take_out(up._subs, task)
        _take_out(core.parked, task)
        core.delayed.discard(task)
        timer = task._live.timer if task._live is not None else None
        if timer is not None:
            timer.cancel()


def _take_out(these: Any, task: DTask) -> bool:
    """Remove a task from a list or deque that other threads use, too: one step. Whether it was there."""
    try:
        these.remove(task)
    except ValueError:
        return False
    return True
