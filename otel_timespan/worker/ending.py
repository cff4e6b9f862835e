"""The end of a worker whose head is gone."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

__all__ = ["end_with_head"]


def end_with_head() -> NoReturn:
    """End this process, and what its bodies started, whatever they do."""
    try:
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(1)
