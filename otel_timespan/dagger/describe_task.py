"""How a task's function, arguments and dependencies appear in its records. On the hot path of a log.

Source: docs/events.md; design/rulings.md 29.
"""

from __future__ import annotations

import itertools
from typing import Any

from ..timespans.model import TaskRef, ValueInfo
from .chunks import Chunk, DRef
from .describe import describe_value, is_mutable
from .dtask import DTask
from .files import File

__all__ = ["NO_ARGUMENT_MOVES", "describe_arguments", "describe_moves", "positions"]

_FUNCTION = (0, ValueInfo(type(lambda: None), None, 0), "value", None)
NO_ARGUMENT_MOVES = (_FUNCTION,)
"""The moves of a task without arguments."""


def describe_arguments(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[Any, ...]:
    """(position, description) of each argument as given to `spawn`."""
    described: list[Any] = [(n, _describe(value)) for n, value in enumerate(args, 1)]
    if kwargs:
        described += [(name, _describe(value)) for name, value in kwargs.items()]
    return tuple(described)


def _describe(value: Any) -> Any:
    kind = type(value)
    if kind is DTask:
        return TaskRef(value.id)
    return value.handle.info if kind is Chunk else describe_value(value)


def positions(task: DTask) -> tuple[tuple[Any, int], ...]:
    """(position or None, task id) of each upstream, None for explicit syncdeps."""
    found: list[tuple[Any, int]] = [(n, value.id) for n, value in enumerate(task._args, 1) if type(value) is DTask]
    if len(found) < len(task._deps):
        named = [(0, task._f), *(task._kwargs or {}).items()]
        found += [(position, value.id) for position, value in named if type(value) is DTask]
        known = {up for _, up in found}
        found += [(None, up.id) for up in task._deps if up.id not in known]
    return tuple(found)


def describe_moves(task: DTask, values: Any, named: Any, worker: int) -> list[Any]:
    """The moves of a task's function and arguments to `worker`; `values` and `named` are what they became."""
    moves: list[Any] = [_FUNCTION]
    pairs: Any = zip(itertools.count(1), task._args, values, strict=False)
    if task._kwargs:
        pairs = [*pairs, *((name, given, named[name]) for name, given in task._kwargs.items())]
    for position, given, value in pairs:
        kind = type(given)
        ref = given._outcome if kind is DTask else given.handle if kind is Chunk else None
        if isinstance(ref, DRef):
            if value is not ref.value:
                moves.append((position, ref.info, "custom", describe_value(value)))
            else:
                how = "task" if kind is DTask and ref.worker == worker else "chunk"
                moves.append((position, ref.info, how, id(value) if is_mutable(value) else 0))
        elif value is given:
            moves.append((position, describe_value(value), "value", None))
        else:
            how = "file" if kind is File else "custom"
            moves.append((position, describe_value(given), how, describe_value(value)))
    return moves
