"""Where a value is read: the one place, so that it may come to lie elsewhere.

A handle whose value is on a device reads it back here (spilling.py), and its reader waits meanwhile. Whoever must
not wait, as in an event loop, asks `may_wait` first.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

from ..tasks.dtask import DTask, Result

if TYPE_CHECKING:
    from .chunks import DRef

__all__ = ["may_wait", "read", "read_results"]


def read(ref: DRef | Result) -> Any:
    """The value behind the outcome of a task or the handle of a chunk; may wait for it.

    Raises `StorageError` where it was spilled and can't be read back. Thread-safe.
    """
    return ref.value


def may_wait(ref: DRef | Result) -> bool:
    """Whether reading it may take longer than looking at an attribute."""
    return type(ref) is not Result and ref.may_spill  # type: ignore[union-attr]


def read_results(args: tuple[Any, ...], stand_ins: Set[type]) -> list[Any] | None:
    """`read` of each task's result among the arguments, the others as they are: all that most calls take.

    None where one is of a type that stands for something else. On the hot path.
    """
    values: list[Any] = []
    for arg in args:
        kind = type(arg)
        if kind is DTask:
            values += (arg._outcome.value,)
        elif kind in stand_ins:
            return None
        else:
            values += (arg,)
    return values
