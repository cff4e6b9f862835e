"""What must hold of a core at any moment when nothing moves: checked after every step in tests.

`check(core)` raises `InvariantViolation` naming the first rule that is broken. Call it only while no
thread changes the core (the inline driver between steps, or after everything is idle).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..tasks.dtask import DONE, FAILED, UNLAUNCHED, DTask, Failure

if TYPE_CHECKING:
    from .machine import Core

__all__ = ["InvariantViolation", "check"]


ROUNDING_NS = 1000.0
"""What may be left of sums of nanoseconds that were added and taken off again."""


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


def check_idle(core: Core) -> None:
    """`check`, and what must hold besides when all tasks are done and nothing runs: nothing is left taken."""
    check(core)
    for task in [*core.running, *core.delayed, *core.unfinished()]:
        _rule(False, task, "is left where all is done")
    for worker, queue in core.shared.items():
        for task in list(queue):
            _rule(not hasattr(task, "_claim"), task, f"done, but can be taken from the queue of worker {worker}")
    with core.lock:
        left = [f"{slot!r} is taken" for slot in core.slots.values() if slot.used]
        left += [f"{slot!r} has tasks waiting" for slot in core.slots.values() if slot.heap]
        places: list[tuple[object, float]] = [(f"worker {worker}", p.ns) for worker, p in core.pressure.items()]
        places += [(slot, slot.pressure.ns) for slot in core.slots.values()]
        left += [f"{place} has pressure {ns}" for place, ns in places if abs(ns) > ROUNDING_NS]
    if left:
        raise InvariantViolation(f"all is done, but {', '.join(left)}")


def _check_task(task: DTask) -> None:
    done = task._state >= DONE
    _rule(done or hasattr(task, "_open"), task, "settled, but shows no outcome")
    if done:
        _rule(isinstance(task._outcome, Failure) == (task._state == FAILED), task, "outcome and state disagree")
        _rule(not any(type(sub) is DTask for sub in task._subs), task, "done, but dependents were not told")
        return
    if task._tokens:
        waiting_for = [up for up in task._deps if up._state < DONE]
        _rule(task._tokens <= len(task._deps) + 1, task, "waits for more than its upstreams")
        _rule(bool(waiting_for), task, "waits, but for nobody")
        for up in waiting_for:
            _rule(any(sub is task for sub in up._subs), task, f"not known to its upstream {up.id}")


def _rule(holds: bool, task: DTask, text: str) -> None:
    if not holds:
        raise InvariantViolation(f"task {task.id}: {text}")
