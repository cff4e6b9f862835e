"""Bodies that several suites run in worker processes."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["alive", "pid"]


def pid(_: Any = None) -> int:
    """Of the process that runs it."""
    return os.getpid()


def alive(process: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
