"""Debug traces of the scheduler, by category, off by default.

`OTEL_TIMESPAN_DEBUG=schedule,finish` (or `all`) makes each scheduler that starts say what it does, at level
DEBUG, to the loggers `otel_timespan.debug.<category>`. A scheduler that is to be traced gets its methods
wrapped; one that is not pays nothing, and no message is ever formatted for it.

`take` and `stream` are known and say nothing yet: with one process there are no messages to take, and there are
no streams. `validate` checks all invariants after each step of the inline driver.

See docs/scheduling.md.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOptionError, TaskCancelled, unwrap_exception
from .core.placement import execution_scope
from .tasks.failures import Failure

if TYPE_CHECKING:
    from .core.machine import Core
    from .tasks.dtask import DTask

__all__ = ["CATEGORIES", "VARIABLE", "attach", "wanted"]

VARIABLE = "OTEL_TIMESPAN_DEBUG"
"""Environment variable: the categories wanted, separated by commas."""

CATEGORIES = (
    "global", "submit", "schedule", "scope", "take", "execute", "move", "processor", "finish", "cancel", "stream",
    "validate",
)  # fmt: skip


def wanted() -> frozenset[str]:
    """The categories that the environment asks for. Raises `InvalidOptionError` for a name that is none."""
    names = [name.strip().lower() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name != "all" and name not in CATEGORIES:
            raise InvalidOptionError(f"{VARIABLE} names {name[:60]!a}: it knows all, {', '.join(CATEGORIES)}")
    return frozenset(CATEGORIES if "all" in names else names)


def attach(core: Core, categories: frozenset[str]) -> None:
    """Have a scheduler say what it does in these categories."""
    core.watch()
    for name in categories.intersection(_TRACES):
        log = logging.getLogger(f"otel_timespan.debug.{name}")
        for method, tell in _TRACES[name]:
            setattr(core, method, _traced(log, getattr(core, method), tell))
    if categories & {"finish", "cancel"}:
        core.on_end = functools.partial(_ended, categories)
    if categories & {"execute", "move"}:
        core.running = _TracedRunning(categories)
    if "validate" in categories:
        core.driver.validate = True  # type: ignore[attr-defined]
    if "global" in categories:
        logging.getLogger("otel_timespan.debug.global").debug("scheduler %d started: workers %s", core.uid, core.active)


Tell = Callable[[logging.Logger, Any, "tuple[Any, ...]"], None]


def _traced(log: logging.Logger, method: Callable[..., Any], tell: Tell) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        tell(log, result, args)
        return result

    return call


def _submitted(log: logging.Logger, result: Any, args: tuple[Any, ...]) -> None:
    task: DTask = args[0]
    log.debug("task %d submitted, waits for %d", task.id, task._tokens or 0)


def _placed(log: logging.Logger, spot: Any, args: tuple[Any, ...]) -> None:
    log.debug("task %d placed: %s of worker %d", args[1].id, spot.slot or "the shared queue", spot.worker)


def _queued(log: logging.Logger, result: Any, args: tuple[Any, ...]) -> None:
    log.debug("task %d is ready", args[0].id)


def _scoped(log: logging.Logger, spot: Any, args: tuple[Any, ...]) -> None:
    log.debug("task %d may run in %r", args[1].id, execution_scope(args[1]))


def _ended(categories: frozenset[str], task: DTask, outcome: Any) -> None:
    failed = isinstance(outcome, Failure)
    if "cancel" in categories and failed and isinstance(unwrap_exception(outcome.ex), TaskCancelled):
        logging.getLogger("otel_timespan.debug.cancel").debug("task %d cancelled", task.id)
    if "finish" in categories:
        log = logging.getLogger("otel_timespan.debug.finish")
        log.debug("task %d failed: %r", task.id, outcome.ex) if failed else log.debug(
            "task %d finished, %d subscribed", task.id, len(task._subs)
        )


def _workers(log: logging.Logger, result: Any, args: tuple[Any, ...]) -> None:
    log.debug("processors changed: %s", args[0])


def _halted(log: logging.Logger, result: Any, args: tuple[Any, ...]) -> None:
    log.debug("scheduler halted")


_TRACES: dict[str, list[tuple[str, Tell]]] = {
    "submit": [("submit", _submitted)],
    "schedule": [("enqueue", _queued), ("place", _placed)],
    "scope": [("place", _scoped)],
    "processor": [("add_worker", _workers), ("remove_worker", _workers), ("remove_slots", _workers)],
    "global": [("clear", _halted)],
}
"""Category: the methods of a core that it wraps, and what to say of a call."""


class _TracedRunning(set["DTask"]):
    """The set of running tasks, which says who enters and leaves, and what moves there first."""

    def __init__(self, categories: frozenset[str]) -> None:
        super().__init__()
        self._categories = categories

    def _tell(self, category: str, text: str, *values: Any) -> None:
        if category in self._categories:
            logging.getLogger(f"otel_timespan.debug.{category}").debug(text, *values)

    def add(self, task: DTask) -> None:
        self._tell("execute", "task %d runs on %r", task.id, task._slot)
        self._tell("move", "task %d: function and %d arguments to %r", task.id, len(task._args), task._slot)
        super().add(task)

    def discard(self, task: DTask) -> None:  # type: ignore[override]
        self._tell("execute", "task %d left its body", task.id)
        super().discard(task)
