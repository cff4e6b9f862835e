"""Which types mean something in this process only, and so are never written to a file.

A class of ours says so itself (`@process_bound`); those that stand below this room are listed here.
"""

from __future__ import annotations

from typing import TypeVar

from ..places.devices import Stored
from ..tasks.dtask import DTask

__all__ = ["bound_types", "process_bound"]

_T = TypeVar("_T", bound=type)
_bound: tuple[type, ...] = (DTask, Stored)


def process_bound(cls: _T) -> _T:
    """Class decorator: a value that holds one of these stays in memory."""
    global _bound
    _bound = (*_bound, cls)
    return cls


def bound_types() -> tuple[type, ...]:
    """All of them, for `isinstance`."""
    return _bound
