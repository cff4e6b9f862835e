"""What must hold of a core at any moment when nothing moves: checked after every step in tests.

`check(core)` raises `InvariantViolation` naming the first rule that is broken. Call it only while no
thread changes the core (the inline driver between steps, or after everything is idle).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dtask import DONE, FAILED, UNLAUNCHED, DTask, Failure

if TYPE_CHECKING:
    from .core import Core

__all__ = ["InvariantViolation", "check"]


class InvariantViolation(AssertionError):  # noqa: N818 - it says what it is
    """A rule of the scheduler's state is broken: a defect of ours."""


def check(core: Core) -> None:
    """Check the queues, the slots and every task that can be reached from them."""
    for worker, queue in core.shared.items():
        for task in list(queue):
            _rule(not hasattr(task, "_claim") or not task._tokens, task, f"queued on worker {worker}, but waits")
            _rule(task._state != UNLAUNCHED, task, "queued, but not launched")
    for slot in core.slots.values():
        if not -1e-9 <= slot.used <= 1.0 + 1e-9:
            raise InvariantViolation(f"{slot!r}: its share is out of bounds")
    for task in core.unfinished():
        _check_task(task)


def _check_task(task: DTask) -> None:
    done = task._state >= DONE
    _rule(done or hasattr(task, "_open"), task, "settled, but shows no outcome")
    if done:
        _rule(isinstance(task._outcome, Failure) == (task._state == FAILED), task, "outcome and state disagree")
        _rule(not any(type(sub) is DTask for sub in task._subs), task, "done, but dependents were not told")
        return
    if task._tokens:
        waiting_for = [up for up in task._deps if up._state < DONE]
        _rule(len(task._tokens) <= len(task._deps) + 1, task, "waits for more than its upstreams")
        _rule(bool(waiting_for), task, "waits, but for nobody")
        for up in waiting_for:
            _rule(any(sub is task for sub in up._subs), task, f"not known to its upstream {up.id}")


def _rule(holds: bool, task: DTask, text: str) -> None:
    if not holds:
        raise InvariantViolation(f"task {task.id}: {text}")
