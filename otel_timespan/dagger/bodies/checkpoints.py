"""Checkpoint and restore, of single tasks and of whole batch runs. See docs/concepts.md.

`restore` may give the result without running anything, `checkpoint` may save it. What they raise is
reported on stderr and otherwise ignored: a broken cache must not break the run. Neither retries anything.
Upstream: https://juliaparallel.org/Dagger.jl/dev/checkpointing/.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..data.chunks import Chunk

__all__ = ["save", "try_restore"]


def try_restore(restore: Callable[..., Any] | None, what: str, *given: Any) -> Chunk | None:
    """What `restore(*given)` gives if it is a chunk; None to run normally."""
    if restore is None:
        return None
    try:
        found = restore(*given)
    except BaseException:  # the user's, whatever it is: it must not end the thread, nor another task
        _report(f"{what} restore failed", traceback.format_exc())
        return None
    if found is None or isinstance(found, Chunk):
        return found
    _report(f"{what} restore failed", f"it returned a {type(found).__name__}, not a Chunk or None")
    return None


def save(checkpoint: Callable[..., Any] | None, what: str, *given: Any) -> None:
    """Call `checkpoint(*given)`; what it raises is reported."""
    if checkpoint is None:
        return
    try:
        checkpoint(*given)
    except BaseException:
        _report(f"{what} checkpoint failed", traceback.format_exc())


def _report(headline: str, detail: str) -> None:
    print(f"{headline}: {detail}", file=sys.stderr, flush=True)
