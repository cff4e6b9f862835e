"""One call of a function of the user's: with what its arguments stand for, in its context, on its processor.

It knows no scheduler: it takes a task (its options, its slot) and what is to be called, and gives a value or an
error. A worker in another process needs no more than this to run a body.

See docs/architecture.md.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from types import FunctionType
from typing import Any

from ...errors import TaskCancelled
from ..data.chunks import Chunk
from ..data.files import File
from ..data.read import read
from ..data.shards import Shard
from ..options.options import DEFAULT
from ..options.scoped import enter_propagated
from ..places.processors import ThreadProc, move
from ..tasks.dtask import DTask
from ..tasks.environment import enter
from . import interrupts
from .results import as_chunk

__all__ = ["REFERENCES", "arguments_of", "called", "resolve"]

REFERENCES = frozenset((DTask, Chunk, File, Shard))
"""Types of arguments that stand for something else."""

Outcome = tuple[Any, "BaseException | None"]
"""(value, None) or (None, what was raised)."""


@interrupts.see_through
def called(context: contextvars.Context, body: Callable[..., Any], *args: Any) -> Outcome:
    """`body(*args)` in the task's own context. Whatever it raises is its outcome; an interrupt is met by the end."""
    try:
        try:
            return context.run(body, *args), None
        except BaseException as raised:
            interrupts.deliver()
            return None, raised
    except TaskCancelled as late:
        return None, late


@interrupts.see_through
def plain_body(task: DTask, f: Any, args: tuple[Any, ...]) -> Any:
    """In the task's own context: resolve the arguments, then call."""
    enter(task)
    if (
        task._options is not DEFAULT
        or task._kwargs
        or move.custom
        or (type(f) is not FunctionType and type(f) in REFERENCES)
    ):
        return _body_with_options(task, f, args, task._kwargs)
    if not args:
        return f()
    if args is task._deps:  # tasks, all of them; `read`, without a call
        return f(*[a._outcome.value for a in args])
    for a in args:
        if type(a) in REFERENCES:
            return f(*[a._outcome.value if type(a) is DTask else resolve(a, task) for a in args])
    return f(*args)


@interrupts.see_through
def _body_with_options(task: DTask, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    enter_propagated(task._options)
    f, args, named = arguments_of(task, f, args, kwargs)
    return task._slot.processor.execute(f, *args, **named)


def arguments_of(
    task: DTask, f: Any, args: tuple[Any, ...], kwargs: Any
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function and arguments as the body sees them; with `meta` only the function is resolved."""
    take: Callable[[Any, DTask], Any] = as_chunk if task._options.meta else resolve
    f = resolve(f, task)
    positional = tuple([take(a, task) for a in args])
    return f, positional, {name: take(v, task) for name, v in (kwargs or {}).items()}


def resolve(value: Any, task: DTask) -> Any:
    """What the body sees for an argument. Containers are passed untouched. See docs/scheduling.md."""
    kind = type(value)
    if kind is DTask:
        inner = read(value._outcome)
        chunk = value._live.chunk if value._live is not None else None
        source = chunk.processor if chunk is not None else value._slot.processor if value._slot else None
    elif kind is Chunk:
        inner, source = read(value.handle), value.processor
    elif kind is File:
        inner, source = value.fetch(), value.processor
    elif kind is Shard:
        piece = value.piece(task._slot.processor)
        inner, source = read(piece.handle), piece.processor
    else:
        inner, source = value, None
    if move.custom:
        target = task._slot.processor
        return move(source or target, target, inner)
    return inner


interrupts.see_through(ThreadProc.execute)
