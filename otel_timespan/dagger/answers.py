"""What bodies on workers ask the head for, besides tasks and values: each answer is the call that a thread would make.

See docs/workers.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import context as _context
from . import control as _control
from .core import limits as _limits
from .cycles import begin_elsewhere, end_elsewhere
from .dynamic import SchedulerHandle, ThunkID
from .monitoring import status
from .tasks.dtask import DTask
from .tasks.environment import enter

if TYPE_CHECKING:
    from .core.machine import Core

__all__ = ["install"]


def install(run: Callable[..., Any]) -> None:
    """From now on workers may ask; `run` calls a function on a worker. May be called again."""
    from .processes.upstairs import UPSTAIRS

    UPSTAIRS.eager = _eager
    UPSTAIRS.begin_wait, UPSTAIRS.end_wait = _begin_wait, end_elsewhere
    UPSTAIRS.answers = {**_ANSWERS, "run": lambda body, worker, f, args, kwargs: run(worker, f, *args, **kwargs)}


def _eager() -> Core:
    return _context.eager_context().start()


def _begin_wait(body: DTask, task: DTask) -> None:
    _limits.refuse_deadlock(body, task)
    begin_elsewhere(body, task)


def _cancel(body: DTask | None, task: DTask, graceful: bool, give_back: bool, force: bool) -> None:
    _control.cancel_here(task, graceful=graceful, give_back=give_back, force=force)


def _cancel_all(body: DTask | None, target: Any, force: bool, graceful: bool, halt_sch: bool) -> None:
    enter(body)
    _control.cancel(target, force=force, graceful=graceful, halt_sch=halt_sch)


def _handle(body: DTask | None) -> SchedulerHandle:
    assert body is not None
    return SchedulerHandle(body)


def _exec(body: DTask | None, f: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return _handle(body).exec(f, *args)


def _find(body: DTask | None, id: int) -> DTask:
    return _handle(body)._find(ThunkID(id))


def _check(body: DTask | None, task: DTask) -> None:
    _handle(body)._checked(task)


_ANSWERS: dict[str, Callable[..., Any]] = {
    "cancel": _cancel,
    "cancel_all": _cancel_all,
    "check": _check,
    "check_limits": lambda body, names: _limits.check_limits(names),
    "exec": _exec,
    "find": _find,
    "get_dag_ids": lambda body: _handle(body).get_dag_ids(),
    "get_limit": lambda body, name: _limits.get_limit(name),
    "halt": lambda body: _handle(body).halt(),
    "status": lambda body: status(),
    "set_limit": lambda body, name, most: _limits.set_limit(name, most),
}
