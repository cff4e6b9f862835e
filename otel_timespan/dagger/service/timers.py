"""Calls at a later time, all from one daemon thread: delays before a retry, time limits of bodies."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from ... import forks
from ...errors import SchedulingError
from .threads import kept_up, start_service

__all__ = ["Timer", "call_later", "start"]

LOGGER = logging.getLogger("otel_timespan")

LONGEST_PAUSE_S = 1e6
"""How long the thread sleeps at most: a lock can't wait for ever. Whatever is later is looked at again."""

FEW = 64
"""So many timers that were cancelled may stay in the list of those to come."""


class Timer:
    """A call to come. `cancel()` drops it, and what it refers to, unless it has begun."""

    __slots__ = ("_keeper", "call")

    def __init__(self, keeper: _Timekeeper, call: Callable[[], None]) -> None:
        self._keeper = keeper
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """From any thread, any number of times."""
        self._keeper.drop(self)


class _Timekeeper:
    def __init__(self) -> None:
        self._due: list[tuple[float, int, Timer]] = []
        self._dropped = 0
        self._seq = itertools.count()
        self._changed = forks.condition()
        self._thread: threading.Thread | None = None

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self, call)
        with self._changed:
            self.start()
            heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._seq), timer))
            self._changed.notify()
        return timer

    def start(self) -> None:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=kept_up, args=(self._run,), name="dagger-timer", daemon=True)
                refusal = start_service(thread)
                if refusal is not None:
                    raise SchedulingError(f"{refusal} to keep the time of timeouts and delays", "no_threads")
                self._thread = thread

    def drop(self, timer: Timer) -> None:
        with self._changed:
            if timer.call is None:
                return
            timer.call = None
            self._dropped += 1
            if self._dropped > FEW and 2 * self._dropped > len(self._due):
                self._due = [entry for entry in self._due if entry[2].call is not None]
                heapq.heapify(self._due)
                self._dropped = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    pause = self._due[0][0] - time.monotonic() if self._due else LONGEST_PAUSE_S
                    self._changed.wait(min(pause, LONGEST_PAUSE_S))
                timer = heapq.heappop(self._due)[2]
                call, timer.call = timer.call, None
                if call is None:
                    self._dropped -= 1
            if call is not None:
                try:
                    call()
                except BaseException:  # the calls to come are others'
                    LOGGER.exception("a timed call failed")
            call = None  # nor may this thread keep a task alive


_keeper = _Timekeeper()


def call_later(delay_s: float, call: Callable[[], None]) -> Timer:
    """Have `call()` called after `delay_s` seconds, on the timer thread: it must be quick and never raise.

    Raises `SchedulingError` (code no_threads) where that thread can't be started.
    """
    return _keeper.call_later(delay_s, call)


def start() -> None:
    """See to it that the timer thread is there. Raises as `call_later` does."""
    _keeper.start()


@forks.in_child("_keeper")
def _in_child() -> None:
    global _keeper
    _keeper = _Timekeeper()
