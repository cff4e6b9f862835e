"""The thread that drains one journal (journal.py)."""

from __future__ import annotations

import _thread
import contextlib
import weakref
from typing import TYPE_CHECKING

from .warn import warn_once

if TYPE_CHECKING:
    from .journal import Journal

__all__ = ["Drainer"]

DRAIN_INTERVAL_S = 0.09
"""The pause between two drains while records come in and half of the room is left.

What is told within 100 ms is soon enough, and each drain takes caches and the GIL from bodies: with
half of the pause bodies of 0.6 ms took 2 % more CPU.
"""

_IDLE_ROUNDS = 20
"""After so many empty rounds the thread sleeps until the next record."""


class Drainer:
    """The thread that drains one journal. It sleeps, at no cost, when nothing happens, and ends with it.

    Awake it keeps the journal alive: the last owner of a journal may be the very finalizer that writes into it.

    The bell is a bare lock, held while nobody rings: `threading.Event` would allocate under a lock of
    its own, and a finalizer that runs just there and logs would wait for itself.
    """

    def __init__(self, journal: Journal) -> None:
        self.asleep = True
        self.started = False
        """Whether there is a thread at all: none can be started when the interpreter goes down."""
        self._bell = _thread.allocate_lock()
        self._bell.acquire()
        self._journal = weakref.ref(journal, self._ring)
        self._held: Journal | None = None  # while awake: what a journal has been told outlives its last owner
        self._start_lock = _thread.allocate_lock()

    def wake(self) -> None:
        """Let the thread look again; start it the first time. A finalizer may do this, wherever it runs.

        So the thread is a bare one too: `threading.Thread` takes locks of its own when it starts. It has
        a context of its own, and holds on to nothing of whoever logged first.
        """
        self.asleep = False
        self._held = self._journal()
        if self.started:
            self._ring()
        elif self._start_lock.acquire(blocking=False):
            try:
                if not self.started:
                    _thread.start_new_thread(self._run, ())
                    self.started = True
            except RuntimeError:  # no thread can be had: whoever finds no room, fetches or flushes drains
                self.asleep, self._held = True, None
            finally:
                self._start_lock.release()

    def hurry(self) -> None:
        """Drain now, not after the pause: somebody waits, or half of the room is used up."""
        self._ring()

    def _ring(self, _: object = None) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def _run(self) -> None:
        idle = 0
        pause = DRAIN_INTERVAL_S
        while True:
            if pause:
                self._bell.acquire(timeout=pause)
            journal = self._journal()
            if journal is None:
                return
            busy = bool(journal)
            if busy:
                try:
                    journal.drain()
                except BaseException:  # SystemExit, say, out of a consumer: the program's end is not its business
                    warn_once((id(journal), "drain"), "a log's consumer raised what ends a thread; the log goes on")
            pause = 0.0 if journal.is_full else DRAIN_INTERVAL_S
            idle = 0 if busy else idle + 1
            if idle > _IDLE_ROUNDS:
                self._held = None
                self.asleep = True
                empty = not journal  # look again: a record may have come before we said so
                if empty:
                    del journal
                    self._bell.acquire()
                else:
                    self._held = journal
                self.asleep = False
                idle = 0
