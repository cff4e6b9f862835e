"""The options that bound what waits in a log's journal (journal.py), checked."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidOptionError
from .journal import BLOCK_TIMEOUT_S, MAX_BYTES

__all__ = ["MAX_BYTES", "journal_bound"]


def journal_bound(max_waiting_bytes: Any, on_full: Any) -> dict[str, Any]:
    """The keywords of a `Journal`. Raises `InvalidOptionError` naming the option that can't work."""
    if isinstance(max_waiting_bytes, bool) or not isinstance(max_waiting_bytes, int) or max_waiting_bytes < 1:
        raise InvalidOptionError(f"max_waiting_bytes is a number of bytes greater than 0, not {max_waiting_bytes!r}")
    if on_full not in ("block", "drop"):
        raise InvalidOptionError(f"on_full is block or drop, not {on_full!r}")
    return {"max_bytes": max_waiting_bytes, "block_timeout_s": BLOCK_TIMEOUT_S if on_full == "block" else 0.0}
