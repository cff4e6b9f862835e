"""The queue between the log and the collector, and the thread that empties it.

The problem: the SDK's batch processor holds 2,048 spans and drops the rest with a log line; a burst of 10,000
tasks fills it in a fraction of a second. And an exporter that retries by itself can't be interrupted.
Here the queue is bounded in bytes, a full one does what the user chose (`block`, `drop`, `spill`), and every
span is in exactly one of four states: pending, exported, or dropped for a reason that is counted.

Who puts spans may name himself as their `owner`, and ask what became of his (accounts.py). What an answer of the
receiver means for the spans of a request is delivery.py's.

One lock guards the queue and all counts, so `recorded == exported + pending + dropped` holds whenever it
is free. It is reentrant, for a span may end in a finalizer that runs while this thread holds it. Spans
are encoded before and requests built and sent outside of it.

An outage lasts from the first failed try to the moment that the queue is half empty again: one warning,
one info, and one second (`block_timeout_s`) of blocking in all, so that a program is never held up more than
that by a collector that is away, and is slowed down to its pace by one that is merely slow. And a program that ends
where no collector ever answered waits 1.3 seconds for it in all, whatever `exit_timeout_s` is.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ... import forks
from ...timespans.warn import warn_once
from ..spans.limits import Limits, limits_of
from ..spans.spandata import SpanData
from .accounts import Accounts, PipelineStats
from .delivery import Delivery
from .entries import (
    Entry,
    by_account,
    foreign_entry,
    own_entry,
    packed_entries,
    request_of,
    singles,
    spans_in,
    spillable,
)
from .settings import LONGEST_WAIT_S, MAX_BYTES, check_sending
from .shutdown import PIPELINES, call_within, on_exit
from .spill import Segment, Spill
from .telling import Telling
from .transport import ACCEPTED, Outcome, Transport, Wrapped, suppressed
from .wire import Envelope, envelope_of

__all__ = ["SpanPipeline", "close_all", "flush_all"]

_log = logging.getLogger("otel_timespan")

_CLOSING_BACKOFF_S = 0.25
_PATIENCE_S, _PATIENCE_IN_VAIN_S = 1.3, 0.6
"""How long the end of a program waits, in all, for a receiver that never answered; where tries failed already."""

_LEAST_CANCEL_S = 0.5
"""How long the shutdown of a user's exporter may take where all time is used up."""

_SMALL_BYTES = 64 << 10
"""A span of at most this size is taken into an empty queue, even where `max_bytes` is less."""

_PACKED_BYTES = 64 << 10
"""So many bytes of packed spans wait as one entry at most."""

_FOR_ROOTS = 1.25
"""How far beyond `max_bytes` root spans may go: a trace says nothing without its root."""

_TELL_AGAIN_S = 60.0
"""A refusal is not told again before so long."""


class SpanPipeline:
    """Takes finished spans, sends them by `transport`. All methods are thread-safe.

    `max_bytes`: of spans in memory, with what they hold; root spans that find no room may take a quarter more. What a
    request is built of them comes on top, another quarter at most. `on_full`: "block" waits for room, at most
    `block_timeout_s` in all per outage, and drops then; "drop" drops at once; "spill" writes to files under
    `spill_dir` (default: the system's place for temporary files), at most `max_spill_bytes`, which are sent later, in
    order; those that a killed program left are sent too.
    `exit_timeout_s` bounds the flush at interpreter exit and at SIGTERM. `linger_s` is how long spans wait
    for others to share their request. `limits`: span limits, by default those of the OTEL_*_LIMIT variables.
    Raises `InvalidOptionError` for values that can't work.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        resource: Resource,
        scope: InstrumentationScope,
        limits: Limits | None = None,
        max_bytes: int = MAX_BYTES,
        on_full: str = "block",
        block_timeout_s: float = 1.0,
        exit_timeout_s: float = 5.0,
        max_batch_spans: int = 4096,
        max_batch_bytes: int = 2 << 20,
        linger_s: float = 0.2,
        max_spill_bytes: int = 1 << 30,
        spill_dir: str | None = None,
    ) -> None:
        check_sending(locals())
        self.transport, self._resource, self.scope = transport, resource, scope
        self.limits = limits or limits_of()
        self.on_full, self.max_bytes = on_full, max_bytes
        self.block_timeout_s = min(block_timeout_s, LONGEST_WAIT_S)
        self.exit_timeout_s, self.linger_s = min(exit_timeout_s, LONGEST_WAIT_S), min(linger_s, LONGEST_WAIT_S)
        self.max_batch_spans, self.max_batch_bytes = max_batch_spans, min(max_batch_bytes, max(max_bytes // 4, 1))
        self._envelope: Envelope = envelope_of(resource, scope)
        key = hashlib.sha256(transport.target.encode("utf-8", "replace")).hexdigest()[:8]
        self._spill = Spill(max_spill_bytes, self.max_batch_bytes, spill_dir, key, self._envelope)
        self._reset()
        if on_full == "spill":
            self._adopt()
        self._forget_exit = on_exit(self.close, PIPELINES, self.exit_timeout_s)
        _live.add(self)

    def _reset(self) -> None:
        self._cond = forks.condition()
        self._thread: threading.Thread | None = None
        self._queue: deque[Entry] = deque()
        self._nbytes = 0  # of the queue and of what is in flight
        self._accounts = Accounts()
        self._delivery = Delivery(self)
        self._accepted = self._settled = 0  # spans that entered and that left the queue, for `flush`
        self._behind_asked = self._behind_done = 0  # flushes of what lies behind the transport
        self._behind_ok, self._behind_until = True, 0.0
        self._oldest_s = 0.0  # when the oldest of the queue came
        self._urgent = 0  # who waits: callers of `flush`, and of `put` for room
        self._kick = False  # a back-off is to be cut short, once
        self._closing_at: float | None = None  # the deadline of `close`
        self._closing_since = math.inf  # see `_ending_since`
        self._closed = False
        self._block_left_s, self._waited_s = self.block_timeout_s, 0.0
        self._answered = False  # the receiver did, ever
        self._outage = self._full = False  # for one warning each
        self._refusal_told_s = -math.inf
        self._telling = Telling(self.transport, self.max_bytes)

    @property
    def resource(self) -> Resource:
        """Whose the spans are that we make. May be set: a forked child is another."""
        return self._resource

    @resource.setter
    def resource(self, resource: Resource) -> None:
        self._resource, self._envelope = resource, envelope_of(resource, self.scope)
        self._spill.envelope = self._envelope

    # --- in ----------------------------------------------------------------------------------------------

    def put(self, spans: Sequence[SpanData | Wrapped], owner: Any = None) -> None:
        """Take finished spans, clipped to the span limits. Never raises; may block, as the class says."""
        with self._cond:
            account = self._accounts.of(owner)
        wire = self.transport.wire
        try:
            entries = [own_entry(span, account, wire, self.limits) for span in spans]
        except Exception:
            warn_once(self, "spans could not be encoded; they are dropped")
            with self._cond:
                self._accounts.refuse(len(spans), "unencodable", account)
            return
        self._put(entries)

    def put_packed(self, packed: Sequence[bytes], count: int, owner: Any = None) -> None:
        """The same of `count` spans that are bytes already: of each of some tasks the fields that a packer made."""
        with self._cond:
            account = self._accounts.of(owner)
        self._put(packed_entries(packed, count, account, min(_PACKED_BYTES, self.max_bytes // 8)))

    def put_readable(self, span: ReadableSpan) -> None:
        """Take a finished span that the SDK made (the user's own). Never raises; may block."""
        account = self._accounts.foreign
        try:
            entry = foreign_entry(span, account, self.transport.wire)
        except Exception:
            warn_once(foreign_entry, "the span %.200r can't be encoded; it is dropped", span.name)
            with self._cond:
                self._accounts.refuse(1, "unencodable", account)
            return
        self._put([entry])

    def _put(self, entries: list[Entry]) -> None:
        # A span that ends in a finalizer, run while this thread is in here: waiting would let others in.
        nested = self._cond._is_owned()  # type: ignore[attr-defined]
        with self._cond:
            if self._closed:
                self._refuse(entries, "shutdown")
                return
            most = max(self.max_bytes, _SMALL_BYTES)
            if any(entry.nbytes > most and entry.spans > 1 for entry in entries):
                entries = singles(entries)
            if any(entry.nbytes > most for entry in entries):
                self._refuse([entry for entry in entries if entry.nbytes > most], "queue_full")
                entries = [entry for entry in entries if entry.nbytes <= most]
                warn_once((id(self), "larger"), "a span is larger than max_bytes=%d; it is dropped", self.max_bytes)
            start = self._enqueue(entries, 0)
            while start < len(entries) and not nested and self._wait_for_room():
                start = self._enqueue(entries, start)
            if start < len(entries):
                self._overflow(entries[start:])
            self._start_thread()
            self._cond.notify_all()

    def _enqueue(self, entries: list[Entry], start: int) -> int:
        """Queue as many as there is room for, counting each; where it stopped."""
        if self._spill.count:
            return start  # what came before is on disk: order goes before memory
        if not self._queue:
            self._oldest_s = time.monotonic()
        first = start
        for entry in entries[start:]:
            if self._nbytes and self._nbytes + entry.nbytes > self.max_bytes:
                break
            self._queue.append(entry)
            self._nbytes += entry.nbytes
            start += 1
        self._accept(entries[first:start])
        return start

    def _accept(self, entries: Sequence[Entry]) -> None:
        """Count spans that entered the queue, or the disk behind it."""
        self._accepted += spans_in(entries)
        for account, count in by_account(entries):
            self._accounts.accept(count, account)

    def _refuse(self, entries: Sequence[Entry], reason: str) -> None:
        for account, count in by_account(entries):
            self._accounts.refuse(count, reason, account)

    def _wait_for_room(self) -> bool:
        """Wait a part of what is left of the block timeout; False when there is nothing left to wait."""
        if self.on_full != "block" or self._closed or threading.current_thread() is self._thread:
            return False
        if self._block_left_s <= 0:
            return False
        self._start_thread()
        self._cond.notify_all()
        began = time.monotonic()
        self._urgent += 1  # no lingering while somebody waits for room
        try:
            self._cond.wait(self._block_left_s)
        finally:
            self._urgent -= 1
        self._block_left_s -= time.monotonic() - began
        return not self._closed

    def _overflow(self, entries: list[Entry]) -> None:
        if self._closed:
            self._refuse(entries, "shutdown")
            return
        left = self._spill_out(entries) if self.on_full == "spill" else self._keep_roots(entries)
        if left:
            self._refuse(left, "queue_full")
            if not self._full:
                self._full = True
                _log.warning("the queue for %s is full: spans are being dropped", self.transport.target)

    def _keep_roots(self, entries: list[Entry]) -> list[Entry]:
        """Queue the root spans among what did not fit; what is left."""
        left = []
        for entry in entries:
            # Roots are few; where they are not, they are bounded too.
            if entry.is_root and self._nbytes + entry.nbytes <= max(_FOR_ROOTS * self.max_bytes, _SMALL_BYTES):
                self._queue.append(entry)
                self._nbytes += entry.nbytes
                self._accept([entry])
            else:
                left.append(entry)
        return left

    def _spill_out(self, entries: list[Entry]) -> list[Entry]:
        """Write to disk; what found no place there."""
        entries = singles(entries)
        pairs: list[tuple[Entry, bytes]] = []
        for entry in entries:
            try:
                pairs.append((entry, spillable(entry.item)))
            except Exception:
                warn_once(spillable, "spans could not be encoded; they are dropped")
                self._refuse([entry], "unencodable")
        start = 0
        try:
            for account, group in groupby(pairs, lambda pair: pair[0].account):
                bodies = [body for _, body in group]
                before = self._spill.count
                try:
                    done = self._spill.append(bodies, account) == len(bodies)
                finally:
                    written = self._spill.count - before
                    self._accept([entry for entry, _ in pairs[start : start + written]])
                    start += written
                if not done:
                    break
        except OSError as error:
            reason = str(error)
        else:
            reason = ""
        if reason:  # outside: what the disk says is enough
            warn_once(self._spill, "spans can't be spilled to disk (%s)", reason)
        return [entry for entry, _ in pairs[start:]]

    def _adopt(self) -> None:
        """Take over what a killed program with the same settings left on disk."""
        try:
            count = self._spill.adopt(self._accounts.foreign)
        except Exception:
            warn_once(self._spill, "what an earlier program left on disk can't be taken over")
            return
        if count:
            self._accounts.accept(count, self._accounts.foreign)
            self._accepted += count
            _log.warning(
                "%d spans that an earlier program left on disk are sent to %s now", count, self.transport.target
            )
            with self._cond:
                self._start_thread()

    # --- counts ------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called and is done: what is put now is dropped."""
        return self._closed

    def stats(self, owner: Any = None) -> PipelineStats:
        """The counts at this moment, of all spans or of those that `owner` put."""
        with self._cond:
            return self._accounts.stats() if owner is None else self._accounts.of(owner).stats()

    # --- flush and close ---------------------------------------------------------------------------------

    def flush(self, timeout_s: float = 30.0, *, ending: bool = False) -> bool:
        """Send all that was put before this call, and flush what lies behind the transport.

        True when none of it waits any more (sent, or refused by the receiver); False after `timeout_s` or on the
        exporter's own thread. A collector that is away is tried at once, not after the back-off. `ending`: the program
        ends, so that one that never answered is not waited for that long.
        """
        return flush_all([self], timeout_s, ending=ending)

    def _ask(self) -> int:
        """Be in a hurry, until `_unask`; what has to be settled for the flush to be done."""
        with self._cond:
            self._kick = True
            self._urgent += 1
            self._start_thread()
            self._cond.notify_all()
            return self._accepted

    def _unask(self) -> None:
        with self._cond:
            self._urgent -= 1

    def _flushed(self, target: int, until: float, ending_since: float) -> bool:
        if threading.current_thread() is self._thread:
            return False
        with self._cond:
            if not self._wait(lambda: self._settled >= target, until, ending_since):
                return False
            if self.transport.wire or self._closed:
                return True  # nothing lies behind it, or nothing any more
            # On the exporter's own thread: what users' exporters do can't be bounded, only left alone.
            self._behind_asked += 1
            mine, self._behind_until = self._behind_asked, max(until, self._behind_until)
            self._cond.notify_all()
            return self._wait(lambda: self._behind_done >= mine, until, ending_since) and self._behind_ok

    def _ending_since(self) -> float:
        """Since when the end of the program waits for a receiver, with what it waited before."""
        return time.monotonic() - self._waited_s

    def _wait(self, done: Callable[[], bool], until: float, ending_since: float = math.inf) -> bool:
        """Whether it is done by then, or while the end of the program has patience. Call with the lock."""
        while not done():
            patience_s = _PATIENCE_IN_VAIN_S if self._outage else _PATIENCE_S
            left_s = (until if self._answered else min(until, ending_since + patience_s)) - time.monotonic()
            if left_s <= 0 or self._closed or self._thread is None:
                return False
            self._cond.wait(left_s)
            if ending_since < math.inf:
                self._waited_s = time.monotonic() - ending_since
        return True

    def close(self, timeout_s: float | None = None) -> None:
        """Flush for at most `timeout_s` (default `exit_timeout_s`), drop the rest as "shutdown", end the thread.

        A receiver that never answered is not waited for longer than 1.3 s. Called again, does nothing. Runs by
        itself at interpreter exit and at SIGTERM.
        """
        close_all([self], timeout_s)

    def _begin_close(self, timeout_s: float | None) -> bool:
        """Have everything sent; False when it is closed or being closed already."""
        self._forget_exit()
        with self._cond:
            if self._closed or self._closing_at is not None:
                return False
            seconds = self.exit_timeout_s if timeout_s is None else timeout_s
            self._closing_at, self._closing_since, self._kick = _until(seconds), self._ending_since(), True
            self._start_thread()
            self._cond.notify_all()
            return True

    def _end_close(self) -> None:
        with self._cond:
            assert self._closing_at is not None
            deadline, running = self._closing_at, self._start_thread()
            if running:
                self._wait(lambda: not self.stats().pending, deadline, self._closing_since)
        if not running:
            self._send_here()
        with self._cond:
            lost = self.stats().pending
            self._accounts.end_all("shutdown")
            self._closed = True
            self._queue.clear()
            self._nbytes = 0
            self._spill.close()
            self._cond.notify_all()
        self._telling.left()
        if lost:
            self._telling.lost(lost, self._answered)
        try:
            if self.transport.wire:
                self.transport.cancel()
            else:
                until = deadline if self._answered else min(deadline, self._closing_since + _PATIENCE_S)
                call_within(self.transport.cancel, max(until - time.monotonic(), _LEAST_CANCEL_S))
        except Exception:
            warn_once(self.transport, "%s could not be shut down", self.transport.target)

    def give_up(self, owner: Any) -> None:
        """What still waits of this owner is dropped as "shutdown": it is closed, the pipeline goes on for others."""
        with self._cond:
            account = self._accounts.of(owner)
            lost = self._accounts.give_up(account, "shutdown")
            queued = [entry for entry in self._queue if entry.account is account]
            self._queue = deque([entry for entry in self._queue if entry.account is not account])
            self._end(queued, "shutdown")
        if lost:
            self._telling.lost(lost, self._answered)

    # --- out ---------------------------------------------------------------------------------------------

    def _start_thread(self) -> bool:
        """Whether the exporter thread runs, after starting it where needed. Call with the lock."""
        if self._thread is not None and self._thread.is_alive():
            return True
        thread = threading.Thread(target=self._run, name="timespan-export", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is going down: `close` sends by itself
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        with suppressed():
            while self._step():
                pass

    def _send_here(self) -> None:
        """Empty the queue on the calling thread, where no thread can be started any more."""
        self._thread = threading.current_thread()
        with suppressed():
            while self.stats().pending and self._step():
                pass

    def _step(self) -> bool:
        """Send one batch; False when the pipeline is closed."""
        if self._behind_asked > self._behind_done:
            self._flush_behind()
        batch = self._next_batch()
        if batch:
            self._delivery.deliver(batch)
        return batch is not None

    def _flush_behind(self) -> None:
        with self._cond:
            asked, left_s = self._behind_asked, max(self._behind_until - time.monotonic(), 0.001)
        ok = False
        try:
            ok = self.transport.flush(left_s)
        except Exception:
            warn_once(self.transport, "%s could not be flushed", self.transport.target)
        with self._cond:
            self._behind_done, self._behind_ok = asked, ok
            self._answered = self._answered or ok
            self._cond.notify_all()

    def _next_batch(self) -> list[Entry] | None:
        """Wait for spans and take a batch of them; [] when there is something else to do, None when closed."""
        with self._cond:
            while not self._closed and not self._expired():
                if self._behind_asked > self._behind_done:
                    return []
                if self._queue:
                    wait_s = self._linger_left_s()
                    if wait_s <= 0:
                        return self._take()
                    self._cond.wait(wait_s)
                elif self._spill.count:
                    segment = self._spill.next_segment()
                    if segment is not None:
                        break
                elif self._closing_at is not None:
                    return None
                else:
                    self._cond.wait()
            else:
                return None
        return self._read(segment)

    def more(self) -> list[Entry]:
        """Another batch, without waiting for one. For `Delivery`, as all public methods from here on."""
        with self._cond:
            if self._closed or self._expired():
                return []
            if self._queue:
                return self._take()
            segment = self._spill.next_segment()
        return self._read(segment) if segment is not None else []

    def _linger_left_s(self) -> float:
        full = len(self._queue) >= self.max_batch_spans or self._nbytes >= self.max_batch_bytes
        if full or self._urgent or self._closing_at is not None:
            return 0.0
        return self._oldest_s + self.linger_s - time.monotonic()

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        nbytes = count = 0
        while self._queue and count < self.max_batch_spans:
            count += self._queue[0].spans
            nbytes += self._queue[0].nbytes
            if batch and nbytes > self.max_batch_bytes:
                break
            batch.append(self._queue.popleft())
        return batch

    def _read(self, segment: Segment) -> list[Entry]:
        """The spans of a segment. Their bytes are no part of the bound."""
        found = segment.read()
        segment.remove()
        whose = [account for account, count in segment.owners for _ in range(count)]
        lost = [Entry(b"", 0, account) for number, account in enumerate(whose, 1) if number not in found]
        if lost:
            warn_once((id(self), "damaged"), "%d spilled spans are damaged or gone; they are lost", len(lost))
            with self._cond:
                self._end(lost, "spill_failed")
        return [Entry(item, 0, whose[number - 1]) for number, item in found.items()]

    def attempt(self, entries: list[Entry]) -> Outcome | None:
        """One try; None when nothing came of it but a loss that is counted."""
        items = [entry.item for entry in entries if not entry.account.given_up]
        if not items:
            with self._cond:
                self._end(entries, "shutdown")
            return None
        try:
            if self.transport.wire:
                body = request_of(items, self._envelope)
                outcome = self.transport.send(body, spans_in(entries), self._try_timeout_s())
            else:
                outcome = self.transport.send_spans(items, self._try_timeout_s())
        except Exception:
            warn_once(self, "exporting to %s failed; spans are lost", self.transport.target)
            with self._cond:
                self._end(entries, "failed")
            return None
        if outcome.reached:
            with self._cond:
                self._answered = True
        return outcome

    def _try_timeout_s(self) -> float:
        if self._closing_at is None:
            return self.transport.timeout_s
        return max(min(self.transport.timeout_s, self._closing_at - time.monotonic()), 0.001)

    def pause(self, wait_s: float) -> bool:
        """Wait before the next try, shorter when somebody is in a hurry; False when closed."""
        with self._cond:
            until = time.monotonic() + wait_s
            while not self._closed and not self._kick:
                if self._closing_at is not None:
                    until = min(until, time.monotonic() + _CLOSING_BACKOFF_S, self._closing_at)
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._cond.wait(left)
            self._kick = False
            return not self._closed and not self._expired()

    def _expired(self) -> bool:
        return self._closing_at is not None and time.monotonic() >= self._closing_at

    def settle(self, entries: list[Entry], outcome: Outcome) -> None:
        """These came to an end: they were taken (but for `rejected`), or refused for good."""
        if outcome.status == ACCEPTED and outcome.rejected:
            entries = singles(entries)
        refused = min(outcome.rejected, len(entries)) if outcome.status == ACCEPTED else len(entries)
        with self._cond:
            if self._closed:
                return
            now_s = time.monotonic()
            new_refusal = refused > 0 and now_s - self._refusal_told_s > _TELL_AGAIN_S
            if new_refusal:
                self._refusal_told_s = now_s
        if new_refusal:  # said before it is settled: who flushes finds it said
            self._telling.refused(spans_in(entries[:refused]), outcome.message)
        with self._cond:
            if self._closed:
                return
            self._end(entries[:refused], "rejected")
            self._end(entries[refused:], None)
            caught_up = self._nbytes <= self.max_bytes // 2 and not self._spill.count
            recovered, self._outage = self._outage and outcome.status == ACCEPTED, False
            if caught_up:
                self._block_left_s, self._full = self.block_timeout_s, False
        if recovered:
            self._telling.over()

    def _end(self, entries: Sequence[Entry], dropped: str | None) -> None:
        """Spans in flight have come to an end. Call with the lock; does nothing once closed."""
        if self._closed or not entries:
            return
        for account, count in by_account(entries):
            self._accounts.end(count, account, dropped)
        self._settled += spans_in(entries)
        self._nbytes -= sum(entry.nbytes for entry in entries)
        self._cond.notify_all()

    def note_outage(self, outcome: Outcome) -> None:
        """A try failed that will be made again: said once per outage."""
        with self._cond:
            known, self._outage = self._outage, True
            self._cond.notify_all()  # whoever waits may lose patience
        if not known and not self._closed:
            self._telling.outage(outcome.message, self._answered)

    def _after_fork(self) -> None:
        parents = self._spill
        self._spill = Spill(parents.max_bytes, self.max_batch_bytes, parents.directory, parents.key, self._envelope)
        parents.leave()
        closed = self._closed
        self._reset()
        self._closed = closed
        self.transport.after_fork()


def flush_all(pipelines: Sequence[SpanPipeline], timeout_s: float, *, ending: bool = False) -> bool:
    """Flush several at once, within one deadline; True when all are."""
    until = _until(timeout_s)
    asked = [(one, one._ask(), one._ending_since() if ending else math.inf) for one in pipelines]
    try:
        return all([one._flushed(target, until, since) for one, target, since in asked])
    finally:
        for pipeline in pipelines:
            pipeline._unask()


def close_all(pipelines: Sequence[SpanPipeline], timeout_s: float | None = None) -> None:
    """Close several at once, within one deadline."""
    for pipeline in [pipeline for pipeline in pipelines if pipeline._begin_close(timeout_s)]:
        pipeline._end_close()


def _until(timeout_s: float) -> float:
    return time.monotonic() + min(timeout_s, LONGEST_WAIT_S)


_live: weakref.WeakSet[SpanPipeline] = weakref.WeakSet()


@forks.in_child("_live")
def _in_child() -> None:
    for pipeline in list(_live):
        pipeline._after_fork()
