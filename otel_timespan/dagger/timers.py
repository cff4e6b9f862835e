"""Calls at a later time, all from one daemon thread: delays before a retry, time limits of bodies."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable

from .options import start_bare

__all__ = ["call_later"]


class _Timekeeper:
    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._seq = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._seq), call))
            self._changed.notify()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="dagger-timer", daemon=True)
                start_bare(self._thread)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    pause = self._due[0][0] - time.monotonic() if self._due else None
                    self._changed.wait(pause)
                _, _, call = heapq.heappop(self._due)
            call()


_keeper = _Timekeeper()


def call_later(delay_s: float, call: Callable[[], None]) -> None:
    """Have `call()` called after `delay_s` seconds, on the timer thread: it must be quick and never raise."""
    _keeper.call_later(delay_s, call)


def _in_child() -> None:
    global _keeper
    _keeper = _Timekeeper()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
