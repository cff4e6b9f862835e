"""What workers are told of spilling (data/caching.py), and the folders that they spill into.

Each has a folder of its own below one of this process, so that nothing stays behind of those that are killed.

See docs/data.md.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..data import caching
from ..service.guards import guard

__all__ = ["Folders"]


class Folders:
    """The folders of workers that spill, where the user chose none. Thread-safe."""

    def __init__(self) -> None:
        self._lock = guard()
        self._base: Path | None = None

    def settings_of(self, worker: int) -> Any:
        """What a worker is told: None, or what `caching.apply` takes."""
        settings = caching.settings_of(worker)
        if settings is None or settings[3] is not None:
            return settings
        with self._lock:
            if self._base is None:
                self._base = Path(tempfile.mkdtemp(prefix="otel-timespan-workers-"))
        return (*settings[:3], str(self._folder(worker)))

    def remove(self, worker: int) -> None:
        """A worker is over."""
        if self._base is not None:
            shutil.rmtree(self._folder(worker), ignore_errors=True)

    def close(self) -> None:
        """All are over, and so is the program."""
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self._base = None

    def _folder(self, worker: int) -> Path:
        assert self._base is not None
        return self._base / str(worker)
