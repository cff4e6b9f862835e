"""The buffer between the program and its log.

The problem: a scheduler that makes twenty events a task can't afford to run consumers and build spans
while it places tasks. So an emitter appends one *record* per phase of a task (submit, run, finish) to
a list, and a thread of ours turns records into events and hands them to the sink: within 100 ms, and
before `get_logs`, `flush` and each metric collection.

A record is a tuple whose first item is the number of its kind (`rows.record_kind`), so that this module knows
nothing of the scheduler. A number, and not the function that expands it: a tuple of numbers and texts alone is
none of the garbage collector's business, and it stops looking at it. A finished `Event` is a record too.

Why one list and not one per thread: `list.append` is atomic, so its order is a total order that
agrees with cause and effect as long as each record is appended *before* what it tells of becomes
visible to other threads. Buffers per thread would need sequence numbers and a watermark to merge
(see docs/decisions.md), and measured no faster.

Bounded: an emitter that finds the list longer than `HIGH_WATER` drains it itself. So a log that can't
keep up slows the program down, by what its own consumers cost, and never eats the memory.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

from .. import forks
from .model import Event
from .rows import expander_of
from .stacks import current_frames
from .warn import warn_once

__all__ = ["Journal", "drain_all"]

HIGH_WATER = 20_000
"""Records that may wait before emitters drain by themselves (about 10 MB)."""

DRAIN_INTERVAL_S = 0.05
"""The pause between two drains while records come in."""

STALL_S = 5.0
"""After so long in one drain a consumer counts as blocking, and is named in a warning."""

_SLICE = 16
"""Records expanded at once. Small, so that events die young: with 1,000 the garbage collector took a third more."""

_RAW_SLICE = 256
"""The same where records become rows, not events."""

_IDLE_ROUNDS = 20
"""After so many empty rounds the thread sleeps until the next record."""


class Journal:
    """Records wait here until `process(events)` takes them, in order, never two calls at once.

    `append` may be called from any thread, and from a finalizer too: it takes no lock that an emitter
    could hold. `process` isolates its consumers itself; what it raises all the same is warned about.
    Each journal has a thread of its own, so that a consumer that blocks holds up its own log only.
    `blame(frame)` names what is running there (the draining thread's innermost frame), for the warning.
    `after_fork()` is called in a forked child, where the journal is empty. With `raw` it is the records
    themselves that `process` takes, for those that know rows.py.
    """

    def __init__(
        self,
        process: Callable[[list[Event]], None],
        blame: Callable[[types.FrameType], str | None] | None = None,
        after_fork: Callable[[], None] | None = None,
        forwards: bool = False,
        raw: bool = False,
    ) -> None:
        self.forwards = forwards
        self._slice = _RAW_SLICE if raw else _SLICE
        self._prepare: Callable[[list[Any]], list[Any]] = list if raw else expand_all
        self._records: list[Any] = []
        self._process = process
        self._blame = blame
        self._on_fork = after_fork
        self._lock = forks.lock()
        self._draining_thread = 0
        self._draining_since = time.monotonic()
        self._drainer = _Drainer(self)
        with _live_lock:
            _live.add(self)

    def append(self, record: Any) -> None:
        """Take one record or event; wakes the drainer, and drains here when too much waits."""
        self._records.append(record)
        if self._drainer.asleep:
            self._drainer.wake()
        if len(self._records) > HIGH_WATER:
            self.drain(wait=False)

    def put(self, record: Any) -> None:
        """`append` without the bound, for finalizers, which may run while this thread drains."""
        self._records.append(record)
        if self._drainer.asleep:
            self._drainer.wake()

    def drain(self, wait: bool = True, timeout_s: float | None = None) -> bool:
        """Process all that was appended before this call. False if it could not.

        With `wait=False` it returns at once when another thread is at it, else it waits for that one,
        at most `timeout_s`, and says after `STALL_S` which consumer blocks. A consumer that, while it is
        being called, asks for a drain again gets none.
        """
        me = threading.get_ident()
        if self.is_draining_here or not self._acquire(wait, timeout_s):
            return False
        self._draining_thread = me
        try:
            # One pass: what is appended meanwhile is the next drain's, else this could go on for ever.
            count = len(self._records)
            batch, self._records[:count] = self._records[:count], []
            for start in range(0, count, self._slice):
                try:
                    self._process_slice(batch[start : start + self._slice])
                except BaseException:  # Ctrl-C in a consumer: the rest is for the next drain
                    self._records[:0] = batch[start + self._slice :]
                    raise
        finally:
            self._draining_thread = 0
            self._lock.release()
        return True

    @property
    def is_draining_here(self) -> bool:
        """Whether the calling thread is just draining this journal."""
        return self._draining_thread == threading.get_ident()

    def _acquire(self, wait: bool, timeout_s: float | None) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if not wait:
            self.warn_of_stall()
            return False
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            pause = STALL_S if deadline is None else min(STALL_S, deadline - time.monotonic())
            if self._lock.acquire(timeout=max(pause, 0)):
                return True
            self.warn_of_stall()
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _process_slice(self, batch: list[Any]) -> None:
        """What a slice raises costs that slice only: neither the caller nor the thread may die of it."""
        self._draining_since = time.monotonic()
        try:
            self._process(self._prepare(batch))
        except Exception:
            warn_once(self, "a log could not take %d of its records; they are lost", len(batch))

    @property
    def is_draining(self) -> bool:
        """Whether a thread is at it right now."""
        return self._draining_thread != 0

    def warn_of_stall(self) -> None:
        """Name the consumer that has blocked this log for `STALL_S`, once."""
        frame = None
        if time.monotonic() - self._draining_since >= STALL_S:
            frame = current_frames().get(self._draining_thread)
        if frame is not None:
            name = (self._blame and self._blame(frame)) or "a log sink"
            text = "%s has blocked for %.0f s; its log waits (it is at %s:%d)"
            where = (name, STALL_S, frame.f_code.co_filename, frame.f_lineno)
            warn_once((id(self), self._draining_since), text, *where)

    def __len__(self) -> int:
        return len(self._records)

    def _after_fork(self) -> None:
        self._records.clear()  # the parent's records are the parent's to process
        if self.is_draining_here:  # a consumer forked: its drain goes on here, too
            self._lock.acquire(blocking=False)
        else:
            self._draining_thread = 0
        self._drainer = _Drainer(self)
        if self._on_fork is not None:
            self._on_fork()


def expand_all(batch: list[Any]) -> list[Event]:
    """Records to events, in order. A record that can't be expanded is left out, with a warning."""
    events: list[Event] = []
    for record in batch:
        if type(record) is Event:
            events.append(record)
        else:
            try:
                expander_of(record)(record, events)
            except Exception:
                _warn_of_lost(record)
    return events


def _warn_of_lost(record: Any) -> None:
    try:
        expand: Any = expander_of(record)
    except Exception:
        expand = type(record)
    warn_once(expand, "a record of %s is lost", getattr(expand, "__name__", expand))


_live: weakref.WeakSet[Journal] = weakref.WeakSet()
_live_lock = forks.lock()


def _journals() -> list[Journal]:
    with _live_lock:
        return list(_live)


def drain_all(forwarding_only: bool = False, timeout_s: float | None = None) -> None:
    """Drain every journal of this process: after it, all that happened before it is in the sinks.

    A log whose consumer blocks is waited for, but not for ever (`timeout_s`, by default `STALL_S`).
    `forwarding_only`: just those that hand on to other sinks, which is what a fetch of one log needs besides its own
    journal.
    """
    for journal in _journals():
        if journal.forwards or not forwarding_only:
            journal.drain(timeout_s=STALL_S if timeout_s is None else timeout_s)
        elif journal.is_draining:
            journal.warn_of_stall()


class _Drainer:
    """The thread that drains one journal. It sleeps, at no cost, when nothing happens, and ends with it.

    Awake it keeps the journal alive: the last owner of a journal may be the very finalizer that writes into it.

    The bell is a bare lock, held while nobody rings: `threading.Event` would allocate under a lock of
    its own, and a finalizer that runs just there and logs would wait for itself.
    """

    def __init__(self, journal: Journal) -> None:
        self.asleep = True
        self._bell = _thread.allocate_lock()
        self._bell.acquire()
        self._journal = weakref.ref(journal, self._ring)
        self._held: Journal | None = None  # while awake: what a journal has been told outlives its last owner
        self._alive = False
        self._start_lock = _thread.allocate_lock()

    def wake(self) -> None:
        """Let the thread look again; start it the first time. A finalizer may do this, wherever it runs.

        So the thread is a bare one too: `threading.Thread` takes locks of its own when it starts. It has
        a context of its own, and holds on to nothing of whoever logged first.
        """
        self.asleep = False
        self._held = self._journal()
        if self._alive:
            self._ring()
        elif self._start_lock.acquire(blocking=False):
            try:
                if not self._alive:
                    _thread.start_new_thread(self._run, ())
                    self._alive = True
            except RuntimeError:  # the interpreter is going down: whoever flushes at exit drains
                pass
            finally:
                self._start_lock.release()

    def _ring(self, _: object = None) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(DRAIN_INTERVAL_S)
            journal = self._journal()
            if journal is None:
                return
            busy = bool(journal)
            if busy:
                journal.drain()
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


@forks.in_child("_live")
def _in_child() -> None:
    for journal in _journals():
        journal._after_fork()
