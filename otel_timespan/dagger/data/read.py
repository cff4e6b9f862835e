"""Where a value is read: the one place, so that it may come to lie elsewhere. (The bodies' hot path reads in place what
this would give it: bodies/call.py, core/describe_task.py.)

A handle whose value is on a device reads it back here (spilling.py), and its reader waits meanwhile. Whoever must
not wait, as in an event loop, asks `may_wait` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..tasks.dtask import Result

if TYPE_CHECKING:
    from .chunks import DRef

__all__ = ["may_wait", "read"]


def read(ref: DRef | Result) -> Any:
    """The value behind the outcome of a task or the handle of a chunk; may wait for it.

    Raises `StorageError` where it was spilled and can't be read back. Thread-safe.
    """
    return ref.value


def may_wait(ref: DRef | Result) -> bool:
    """Whether reading it may take longer than looking at an attribute."""
    return type(ref) is not Result and ref.may_spill  # type: ignore[union-attr]
