"""A sampling profiler of Python threads, on while at least one profiled span is open.

A thread takes what all threads execute every 5 ms. Samples are kept with the thread they belong to,
so that a finished span gets those of its own threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

from .. import forks
from .model import ProfilerResult
from .stacks import current_frames

__all__ = ["begin", "end"]

INTERVAL_S = 0.005
_MAX_SAMPLES = 200_000
_MAX_OPEN = 10_000

_lock = forks.rlock()
_open = 0
_samples: list[tuple[int, tuple[str, ...], int]] = []  # (thread, frames from the root, monotonic ns)
_begun: dict[Any, int] = {}  # open span -> monotonic ns of its start
_stop: threading.Event | None = None


def begin(key: Any = None) -> None:
    """One more profiled span, named `key`, is open; the first one starts the sampler."""
    global _open, _stop
    with _lock:
        _open += 1
        if len(_begun) >= _MAX_OPEN:
            _begun.pop(next(iter(_begun)))
        _begun[key] = time.monotonic_ns()
        if _open == 1:
            _stop = threading.Event()
            threading.Thread(target=_run, args=(_stop,), name="timespan-profile", daemon=True).start()


def end(threads: Iterable[int] | None = None, key: Any = None) -> ProfilerResult:
    """One span less; the samples of its threads (None: of all) since it began. The last one stops and clears."""
    global _open, _stop
    wanted = None if threads is None else set(threads)
    with _lock:
        _open = max(0, _open - 1)
        since = _begun.pop(key, 0)
        mine = tuple(s for s in _samples if s[2] >= since and (wanted is None or s[0] in wanted))
        if _open == 0:
            if _stop is not None:
                _stop.set()
                _stop = None
            _samples.clear()
            _begun.clear()
    frames = {frame: _place(frame) for sample in mine for frame in sample[1]}
    return ProfilerResult(mine, frames, tuple(dict.fromkeys(s[0] for s in mine)))


@forks.in_child("_samples", "_begun")
def _in_child() -> None:
    global _open, _stop
    _open, _stop = 0, None
    _samples.clear()
    _begun.clear()


def _run(stop: threading.Event) -> None:
    me = threading.get_ident()
    while not stop.wait(INTERVAL_S):
        now = time.monotonic_ns()
        taken = [(ident, _stack(frame), now) for ident, frame in current_frames().items() if ident != me]
        with _lock:
            if not stop.is_set() and len(_samples) < _MAX_SAMPLES:
                _samples.extend(taken)


def _place(frame: str) -> tuple[str, str]:
    """(function, file and line) of a frame of a sample."""
    name, _, place = frame.partition(" (")
    return name, place.rstrip(")")


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{code.co_name} ({code.co_filename}:{frame.f_lineno})")
        frame = frame.f_back
    return tuple(reversed(names))
