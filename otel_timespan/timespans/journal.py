"""The buffer between the program and its log.

The problem: a scheduler that makes twenty events a task can't afford to run consumers and build spans
while it places tasks. So an emitter appends one *record* per phase of a task (submit, run, finish) to
a list, and a thread of ours (drainer.py) turns records into events and hands them to the sink: within 100 ms, and
before `get_logs`, `flush` and each metric collection.

A record is a tuple whose first item is the number of its kind (`rows.record_kind`), so that this module knows
nothing of the scheduler. A number, and not the function that expands it: a tuple of numbers and texts alone is
none of the garbage collector's business, and it stops looking at it. A finished `Event` is a record too.

Why one list and not one per thread: `list.append` is atomic, so its order is a total order that
agrees with cause and effect as long as each record is appended *before* what it tells of becomes
visible to other threads. Buffers per thread would need sequence numbers and a watermark to merge
(see docs/decisions.md), and measured no faster.

**Bounded in bytes.** What waits is measured each `_STRIDE` records (sizing.py). An emitter that finds no room waits for
the drain, so that a log that can't keep up slows the program down to its pace; but it never waits for a log that is
stuck: where fewer than `_PACE` records were done in `block_timeout_s`, records are given up at once until there is
room. What is given up is counted, by `refuse` and `lost`. Emitters look for room again and again instead of waiting for
a bell: no lock that an interrupt, a signal handler, a finalizer or a fork could find held.

**Sections.** Steps without a call between them happen as a whole or not at all under the GIL, whatever other threads
and signal handlers do (dagger/tasks/atomics.py says why); those marked "one section" here are such.
"""

from __future__ import annotations

import threading
import time
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .. import forks
from .adding import AnyThreadCount
from .drainer import Drainer
from .model import Event
from .rows import count_events, expander_of
from .sizing import total_nbytes
from .stacks import current_frames
from .warn import warn_once

__all__ = ["MAX_BYTES", "Journal", "drain_all"]

MAX_BYTES = 64 << 20
"""How much may wait, by default: the records of some 40,000 tasks."""

BLOCK_TIMEOUT_S = 1.0
"""How long an emitter waits for a drain that does not get on, by default."""

STALL_S = 5.0
"""After so long in one drain a consumer counts as blocking, and is named in a warning."""

_STRIDE, _STRIDE_OF_EVENTS = 1024, 32
"""Records after which what waits is measured, where there are a program's own events, which may hold anything; fewer
where they are large."""

_STEP = 32 << 10
"""Bytes, at most half of the bound: emitters that wait go on when these were freed."""

_KEPT = 1024
"""Records that were processed and are still kept, at most: letting go costs a look at all that wait."""

_PACE = 128
"""Records, those of some 30 tasks: a drain that does fewer in `block_timeout_s` does not get on."""

_LOOK_S = 0.001
"""How often somebody who waits looks again."""

_LONGEST_LOOK_S = 0.005
"""A look that comes later counts as one after so long: where this thread gets no turn, the drain gets none either."""

_SLICE, _RAW_SLICE = 16, 256
"""Records expanded at once at most; raw: where they are not. Small, so that events die young: with 1,000 the garbage
collector took a third more."""

_FULL = "a log can't keep up with the program: some of what happens is not logged; what is not is counted"

_SLICE_S = 0.1
"""A slice that takes longer is followed by a smaller one: between two of them a drain looks at its deadline."""


class Journal:
    """Records wait here until `process(events)` takes them, in order, never two calls at once.

    `append` may be called from any thread, and `put` from a finalizer too. `process` isolates its consumers itself;
    what it raises all the same is warned about. Each journal has a thread of its own, so that a consumer that blocks
    holds up its own log only. `blame(frame)` names what is running there (the draining thread's innermost frame), for
    the warning. `after_fork()` is called in a forked child, where the journal is empty. With `raw` it is the records
    themselves that `process` takes, for those that know rows.py; `at_once` of them at most.

    `max_bytes`: how much may wait; an emitter then waits `block_timeout_s`, as the module says (0: not at all).
    `refuse(record, hard) -> record or None`: asked about a record that finds no room, by any thread, finalizers too, so
    that it must take no lock: what is to be kept all the same, None if it is given up (to be counted there then);
    `hard`: twice the bound is used up.
    `lost(records)`: these were given up otherwise, because `process` raised. By default both count `dropped_events`.
    """

    def __init__(
        self,
        process: Callable[[list[Event]], None],
        blame: Callable[[types.FrameType], str | None] | None = None,
        after_fork: Callable[[], None] | None = None,
        forwards: bool = False,
        raw: bool = False,
        *,
        at_once: int | None = None,
        max_bytes: int = MAX_BYTES,
        block_timeout_s: float = BLOCK_TIMEOUT_S,
        refuse: Callable[[Any, bool], Any] | None = None,
        lost: Callable[[Sequence[Any]], None] | None = None,
    ) -> None:
        self.forwards = forwards
        self.max_bytes, self.block_timeout_s = max_bytes, block_timeout_s
        self._low = max_bytes - min(_STEP, max_bytes // 2)
        self._longest = at_once or (_RAW_SLICE if raw else _SLICE)
        self._prepare: Callable[[list[Any]], list[Any]] = list if raw else expand_all
        self._process, self._blame, self._on_fork = process, blame, after_fork
        self._refuse, self._lost = refuse or self._refuse_any, lost or self.give_up
        self._records: list[Any] = []  # the same list for ever: an append needs no more than it
        self._reset()
        with _live_lock:
            _live.add(self)

    def _reset(self) -> None:
        self._records.clear()
        self._taken: list[Any] = []  # what the drain took out of `_records`: older than all that is there
        self._at = self._in_hand = 0  # of these are done, and are being processed
        self._settled = 0  # records that were ever processed or given up, after they came in
        self._done = 0  # `_settled` when `process` last returned: it may settle records and be at them still
        self._taken_nbytes = 0
        self._measured = self._measured_nbytes = 0  # of `_records`: how many were measured, and their size
        self._average = 0
        self._takes = 0  # how often the drain took
        self._mark = 1  # as many records in `_records` are to be measured
        self._full_at: int | None = None  # `_settled` when emitters began to wait for the drain to get on
        self._waited_s = self._looked = 0.0  # how long they have since then, and when one of them looked last
        self._closed = False
        self._idle = self._may_measure = True  # deleted by who drains, and measures
        self._draining_thread = 0
        self._draining_since = time.monotonic()
        self._stall_told = 0.0  # the drain of which it was told that it blocks
        self._slice = self._longest // 4
        self._dropped = AnyThreadCount()
        self._drainer = Drainer(self)

    # ---- in ------------------------------------------------------------------------------------

    def append(self, record: Any) -> None:
        """Take one record or event; wakes the drainer, and waits where there is no room."""
        if len(self._records) >= self._mark:
            record = self._admitted(record)
            if record is None:
                return
        self._records.append(record)
        if self._drainer.asleep:
            self._drainer.wake()

    def put(self, record: Any) -> None:
        """`append` without waiting, for finalizers, which may run while this thread drains."""
        if len(self._records) >= self._mark:
            record = self._admitted(record, False)
            if record is None:
                return
        self._records.append(record)
        if self._drainer.asleep:
            self._drainer.wake()

    def again(self, record: Any) -> None:
        """`append` of a record whose `append` was broken off, unless it is here: an interrupt may come at its entry.

        Where it came in and was drained meanwhile it comes twice; a task's second end is passed over by `OTelLog`.
        """
        if not any(one is record for one in [*self._taken, *self._records]):
            self.append(record)

    def weigh(self, nbytes: int) -> None:
        """The record that comes next holds so much more than it looks like."""
        self._measured_nbytes += nbytes
        if self.nbytes >= self.max_bytes:
            self._mark = 0  # look each time

    @property
    def nbytes(self) -> int:
        """Estimated bytes of what waits."""
        taken, at, records = self._taken, self._at, self._records
        ours = self._taken_nbytes * (len(taken) - at) // len(taken) if len(taken) > at else 0
        return ours + self._measured_nbytes + max(0, len(records) - self._measured) * self._average

    @property
    def is_full(self) -> bool:
        """Whether an emitter found no room, and there is none yet."""
        return self._full_at is not None and self.nbytes > self._low

    def _measure(self) -> None:
        try:
            del self._may_measure  # who deletes it has it; put back below
        except AttributeError:
            return
        try:
            takes, first = self._takes, self._measured
            new = self._records[first:]
            nbytes, events = total_nbytes(new, first // 7)
            average = nbytes // len(new) if new else self._average
            until = first + len(new)
            stride = min(_STRIDE_OF_EVENTS if events else _STRIDE, 4 * until, self.max_bytes // 64 // max(average, 1))
            mark = until + max(1, stride)
            waiting = self.nbytes + nbytes
            if waiting >= self.max_bytes // 2:
                self._drainer.hurry()
            if self._closed or waiting >= self.max_bytes:
                mark = 0  # look each time
            if self._takes == takes:  # one section
                self._measured = until
                self._measured_nbytes += nbytes
                self._average = average
                self._mark = mark
        finally:
            self._may_measure = True

    def _admitted(self, record: Any, may_wait: bool = True) -> Any:
        """What may come in, after waiting if need be; None where it was given up."""
        try:
            self._measure()
            if self._closed:
                return None
            if self.nbytes < (self.max_bytes if may_wait else 2 * self.max_bytes):
                return record
            if not may_wait or self.is_draining_here:  # a consumer that logs: it can't wait for itself
                return self._refused(record)
            if not self._drainer.started:
                self.drain(wait=False, timeout_s=self.block_timeout_s or BLOCK_TIMEOUT_S)
            return record if self._wait_for_room() else self._refused(record)
        except BaseException:  # a signal handler's: what it tells of has happened all the same
            self._records.append(record)
            raise

    def _wait_for_room(self) -> bool:
        if not self.block_timeout_s:
            return False
        while self.nbytes > self._low:
            since, now = self._full_at, time.monotonic()
            if since is None or self._settled - since >= _PACE:
                self._full_at, self._waited_s = self._settled, 0.0
            else:
                self._waited_s += min(now - self._looked, _LONGEST_LOOK_S)
            self._looked = now
            if self._waited_s >= self.block_timeout_s:
                self.warn_of_stall()
                return False
            time.sleep(_LOOK_S)
        self._full_at = None
        return True

    def _refused(self, record: Any) -> Any:
        try:
            kept = self._refuse(record, self.nbytes >= 2 * self.max_bytes)
        except Exception:
            warn_once((id(self), "refuse"), "records that a log gave up could not be counted")
            return None
        if kept is not record:
            warn_once((id(self), "full"), _FULL)
        return kept

    # ---- what was given up ---------------------------------------------------------------------

    @property
    def dropped_events(self) -> int:
        """Events given up, as far as nobody else counts them."""
        return self._dropped.value

    def _refuse_any(self, record: Any, hard: bool) -> None:
        self.give_up((record,))

    def give_up(self, records: Sequence[Any]) -> None:
        """Count the events of these records as dropped."""
        self.lose(count_events(records))

    def lose(self, events: int) -> None:
        """Count so many events as dropped."""
        self._dropped.add(events)

    # ---- out -----------------------------------------------------------------------------------

    def drain(self, wait: bool = True, timeout_s: float | None = None) -> bool:
        """Process all that was appended before this call. False if it could not, or not within `timeout_s`.

        With `timeout_s` the drainer does it, and this thread only waits: nobody can break off a consumer that takes
        long. Without, this thread does it itself, after whoever is at it (`wait=False`: not if somebody is); that a
        consumer blocks is said after `STALL_S`. A consumer that, while it is being called, asks for a drain again gets
        none.
        """
        if self.is_draining_here:
            return False
        if timeout_s is not None and wait and self._drainer.started:
            return self._leave_to_drainer(time.monotonic() + timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                del self._idle  # who deletes it drains; the next step sees to it that it is put back
            except AttributeError:
                if not (wait and self._wait_for(lambda: hasattr(self, "_idle"), deadline)):
                    self.warn_of_stall()
                    return False
                continue
            try:
                self._draining_thread = threading.get_ident()
                return self._pass(deadline)
            finally:
                self._draining_thread = 0
                self._idle = True

    def _leave_to_drainer(self, deadline: float) -> bool:
        target = self._settled + len(self)

        def is_done() -> bool:
            return self._done >= target or (self._settled >= target and not self.is_draining)

        if is_done():
            return True
        self._drainer.hurry()
        return self._wait_for(is_done, deadline)

    def _wait_for(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        pause = _LOOK_S / 16
        while not condition():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_S)
            self.warn_of_stall()
        return True

    def _pass(self, deadline: float | None) -> bool:
        """Process what is here now. What is appended meanwhile is the next drain's, else this could go on for ever."""
        records, nbytes = self._records, self.nbytes
        count = len(records)
        taken = [*self._taken[self._at :], *records[:count]]
        if not self._closed:  # one section
            self._taken = taken
            self._taken_nbytes = nbytes
            self._at = self._measured = self._measured_nbytes = 0
            self._takes += 1
            self._mark = 1
            del records[:count]
        elif count:  # they came while it was being closed
            late = records[:count]
            del records[:count]
            self._settled += count
            self._lost(late)
        while len(self._taken) > self._at:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self._process_slice()
            if self._full_at is not None and self.nbytes <= self._low:
                self._full_at = None
        return True

    def _process_slice(self) -> None:
        """What a slice raises costs that slice only: neither the caller nor the thread may die of it."""
        began = self._draining_since = time.monotonic()
        count = min(self._slice, len(self._taken) - self._at)
        if self._closed:  # one section from here
            return
        batch = self._taken[self._at : self._at + count]
        self._in_hand = count
        try:
            self._process(self._prepare(batch))
        except Exception:
            warn_once(self, "a log could not take %d of its records; they are lost", len(batch))
            self._lost(batch)
        except BaseException:  # Ctrl-C in a consumer: the rest is for the next drain
            if self._in_hand:
                self._lost(batch)
            raise
        finally:
            self._at += self._in_hand  # one section: as `settle`, whose call might be broken off
            self._settled += self._in_hand
            self._in_hand = 0
            self._done = self._settled
            self._let_go()
            took = time.monotonic() - began
            if took > _SLICE_S:
                self._slice = max(1, self._slice // 2)
            elif took < _SLICE_S / 2:
                self._slice = min(self._longest, self._slice * 2)

    def settle(self) -> None:
        """`process` has accounted for the records that it was given: they don't wait any more."""
        self._at += self._in_hand
        self._settled += self._in_hand
        self._in_hand = 0

    def _let_go(self) -> None:
        """Keep nothing of what was processed alive for long."""
        at, count = self._at, len(self._taken)
        left = self._taken_nbytes * (count - at) // count if count else 0
        if at == count or at >= _KEPT:  # one section
            self._taken_nbytes = left
            self._at = 0
            del self._taken[:at]

    def waiting(self) -> list[Any]:
        """The records that wait, of one moment."""
        return [*self._taken[self._at :], *self._records]

    def close(self) -> list[Any]:
        """Take no more records, give up all but those that are being processed: these."""
        keep = self._at + self._in_hand
        self._closed = True  # one section from here
        left = [*self._taken[keep:], *self._records]
        self._taken = self._taken[self._at : keep]
        self._at = 0
        self._takes += 1
        self._mark = 0
        del self._records[:]
        self._settled += len(left)
        return left

    @property
    def is_draining(self) -> bool:
        """Whether a thread is at it right now."""
        return self._draining_thread != 0

    @property
    def is_draining_here(self) -> bool:
        """Whether the calling thread is just draining this journal."""
        return self._draining_thread == threading.get_ident()

    def warn_of_stall(self) -> None:
        """Name the consumer that has blocked this log for `STALL_S`, once."""
        frame = None
        if self._stall_told != self._draining_since and time.monotonic() - self._draining_since >= STALL_S:
            frame = current_frames().get(self._draining_thread)
        if frame is not None:
            self._stall_told = self._draining_since
            name = (self._blame and self._blame(frame)) or "a log sink"
            text = "%s has blocked for %.0f s; its log waits (it is at %s:%d)"
            where = (name, STALL_S, frame.f_code.co_filename, frame.f_lineno)
            warn_once((id(self), self._draining_since), text, *where)

    def __len__(self) -> int:
        return len(self._taken) - self._at + len(self._records)

    def _after_fork(self) -> None:
        here = self._draining_thread
        self._reset()  # the parent's records are the parent's to process
        if here == threading.get_ident():  # a consumer forked: its drain goes on here, too
            self._draining_thread = here
            del self._idle
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


def journals() -> list[Journal]:
    """Every journal of this process."""
    with _live_lock:
        return list(_live)


def drain_all(forwarding_only: bool = False, timeout_s: float | None = None) -> None:
    """Drain every journal of this process: after it, all that happened before it is in the sinks.

    A log whose consumer blocks is waited for, but not for ever (`timeout_s`, by default `STALL_S`, for all together).
    `forwarding_only`: just those that hand on to other sinks, which is what a fetch of one log needs besides its own
    journal.
    """
    deadline = time.monotonic() + (STALL_S if timeout_s is None else timeout_s)
    for journal in journals():
        if journal.forwards or not forwarding_only:
            journal.drain(timeout_s=max(0.0, deadline - time.monotonic()))
        elif journal.is_draining:
            journal.warn_of_stall()


@forks.in_child("_live")
def _in_child() -> None:
    for journal in journals():
        journal._after_fork()
