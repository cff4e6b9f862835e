"""The queue between the log and the collector, and the thread that empties it.

The problem: the SDK's batch processor holds 2,048 spans and drops the rest with a log line; a burst of 10,000
tasks fills it in a fraction of a second. And an exporter that retries by itself can't be interrupted.
Here the queue is bounded in bytes, a full one does what the user chose (`block`, `drop`, `spill`), and every
span is in exactly one of four states: pending, exported, or dropped for a reason that is counted.

Who puts spans may name himself as their `owner`, and ask what became of his (accounts.py).

One lock guards the queue and all counts, so `recorded == exported + pending + dropped` holds whenever it
is free. It is reentrant, for a span may end in a finalizer that runs while this thread holds it. Spans
are encoded before and requests built and sent outside of it.

An outage lasts from the first failed try to the moment that the queue is half empty again: one warning,
one info, and one second (`block_timeout_s`) of blocking in all, so that a program is never held up more than
that by a collector that is away, and is slowed down to its pace by one that is merely slow.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ... import forks
from ...errors import InvalidOptionError
from ...timespans.warn import warn_once
from ..spans.limits import Limits, clip, limits_of
from ..spans.spandata import SpanData
from .accounts import Account, Accounts, PipelineStats
from .shutdown import PIPELINES, on_exit
from .spill import Segment, Spill
from .transport import ACCEPTED, RETRY, TOO_LARGE, Item, Outcome, Request, Transport, suppressed
from .wire import encode_request, encode_span

__all__ = ["ON_FULL", "SpanPipeline"]

_log = logging.getLogger("otel_timespan")

ON_FULL = ("block", "drop", "spill")

MAX_BYTES = 64 << 20
"""About 150,000 task spans."""

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, _LONGEST_RETRY_AFTER_S = 0.1, 5.0, 60.0
_CLOSING_BACKOFF_S = 0.25


class _Entry(NamedTuple):
    item: Item
    nbytes: int
    is_root: bool = False


class SpanPipeline:
    """Takes finished spans, sends them by `transport`. All methods are thread-safe.

    `max_bytes`: of spans in memory; root spans that find no room may take as much again. `on_full`: "block" waits
    for room, at most `block_timeout_s` in all per outage, and drops then; "drop" drops at once; "spill" writes to
    files under `spill_dir` (default: the system's place for temporary files), at most `max_spill_bytes`, which are
    sent later, in order.
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
        _check(locals())
        self.transport, self.resource, self.scope = transport, resource, scope
        self.limits = limits or limits_of()
        self.on_full, self.max_bytes = on_full, max_bytes
        self.block_timeout_s, self.exit_timeout_s, self.linger_s = block_timeout_s, exit_timeout_s, linger_s
        self.max_batch_spans, self.max_batch_bytes = max_batch_spans, min(max_batch_bytes, max_bytes)
        self._spill = Spill(max_spill_bytes, self.max_batch_bytes, spill_dir)
        self._reset()
        self._forget_exit = on_exit(self.close, PIPELINES, exit_timeout_s)
        _live.add(self)

    def _reset(self) -> None:
        self._cond = forks.condition()
        self._thread: threading.Thread | None = None
        self._queue: deque[_Entry] = deque()
        self._nbytes = 0  # of the queue and of what is in flight
        self._in_flight = 0  # spans taken from the queue or from disk and not settled yet
        self._accounts = Accounts()
        self._accepted = self._settled = 0  # spans that entered and that left the queue, for `flush`
        self._oldest_s = 0.0  # when the oldest of the queue came
        self._urgent = 0  # who waits: callers of `flush`, and of `put` for room
        self._kick = False  # a back-off is to be cut short, once
        self._closing_at: float | None = None  # the deadline of `close`
        self._closed = False
        self._block_left_s = self.block_timeout_s
        self._outage = self._full = self._refused = False  # for one warning each

    # --- in ----------------------------------------------------------------------------------------------

    def put(self, spans: Sequence[SpanData], owner: Any = None) -> None:
        """Take finished spans, clipped to the span limits. Never raises; may block, as the class says."""
        try:
            entries = [self._entry(clip(span, self.limits)) for span in spans]
        except Exception:
            warn_once(self, "spans could not be encoded; they are dropped")
            with self._cond:
                self._accounts.refuse(len(spans), "unencodable", self._accounts.of(owner))
            return
        self._put(entries, owner)

    def put_readable(self, span: ReadableSpan) -> None:
        """Take a finished span that the SDK made (the user's own). Never raises; may block."""
        self._put([_Entry(span, 400 + 80 * len(span.attributes or ()))])

    def _entry(self, span: SpanData) -> _Entry:
        if self.transport.wire:
            body = encode_span(span)
            return _Entry(body, len(body), not span.parent_id)
        return _Entry(span, 400 + 80 * len(span.attributes), not span.parent_id)

    def _put(self, entries: list[_Entry], owner: Any = None) -> None:
        # A span that ends in a finalizer, run while this thread is in here: waiting would let others in.
        nested = self._cond._is_owned()  # type: ignore[attr-defined]
        with self._cond:
            account = self._accounts.of(owner)
            if self._closed:
                self._accounts.refuse(len(entries), "shutdown", account)
                return
            start = self._enqueue(entries, 0, account)
            while start < len(entries) and not nested and self._wait_for_room():
                start = self._enqueue(entries, start, account)
            if start < len(entries):
                self._overflow(entries[start:], account)
            self._start_thread()
            self._cond.notify_all()

    def _enqueue(self, entries: list[_Entry], start: int, account: Account) -> int:
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
        self._accept(start - first, account)
        return start

    def _accept(self, count: int, account: Account) -> None:
        """Count spans that entered the queue, or the disk behind it."""
        self._accepted += count
        self._accounts.accept(count, account)

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

    def _overflow(self, entries: list[_Entry], account: Account) -> None:
        if self._closed:
            self._accounts.refuse(len(entries), "shutdown", account)
            return
        kept = self._spill_out(entries, account) if self.on_full == "spill" else self._keep_roots(entries, account)
        if kept < len(entries):
            self._accounts.refuse(len(entries) - kept, "queue_full", account)
            if not self._full:
                self._full = True
                _log.warning("the queue for %s is full: spans are being dropped", self.transport.target)

    def _keep_roots(self, entries: list[_Entry], account: Account) -> int:
        """Queue the root spans among what did not fit, for a trace says nothing without its root; how many."""
        kept = 0
        for entry in entries:
            # Roots are few; where they are not, they are bounded too.
            if entry.is_root and self._nbytes + entry.nbytes <= 2 * self.max_bytes:
                self._queue.append(entry)
                self._nbytes += entry.nbytes
                kept += 1
        self._accept(kept, account)
        return kept

    def _spill_out(self, entries: list[_Entry], account: Account) -> int:
        """Write to disk; how many of the entries are accounted for."""
        encoded = [self._encoded(entry.item) for entry in entries]
        spans = [span for span in encoded if span is not None]
        self._accounts.refuse(len(encoded) - len(spans), "unencodable", account)
        before = self._spill.count
        try:
            self._spill.append(spans)
        except OSError as error:
            warn_once(self._spill, "spans can't be spilled to disk (%s)", error)
        written = self._spill.count - before
        self._accept(written, account)
        return written + len(encoded) - len(spans)

    def _encoded(self, item: Item) -> bytes | None:
        if isinstance(item, bytes):
            return item
        if isinstance(item, SpanData):
            return encode_span(item)
        body, bad = _encode_foreign([item])
        return None if bad else Request(body)

    # --- counts ------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called and is done: what is put now is dropped."""
        return self._closed

    def stats(self, owner: Any = None) -> PipelineStats:
        """The counts at this moment, of all spans or of those that `owner` put."""
        with self._cond:
            if owner is not None:
                return self._accounts.of(owner).stats()
            pending = len(self._queue) + self._in_flight + self._spill.count
            return self._accounts.stats(pending)

    # --- out ---------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send all that was put before this call, and flush what lies behind the transport.

        True when none of it waits any more (sent, or refused by the receiver); False after `timeout_s` or on the
        exporter's own thread. A collector that is away is tried at once, not after the back-off.
        """
        deadline = time.monotonic() + timeout_s
        if threading.current_thread() is self._thread:
            return False
        with self._cond:
            target, self._kick = self._accepted, True
            self._urgent += 1
            self._cond.notify_all()
            try:
                while self._settled < target:
                    left = deadline - time.monotonic()
                    if left <= 0 or self._closed:
                        return False
                    self._cond.wait(left)
            finally:
                self._urgent -= 1
        try:
            return self.transport.flush(max(deadline - time.monotonic(), 0.001))
        except Exception:
            warn_once(self.transport, "%s could not be flushed", self.transport.target)
            return False

    def close(self, timeout_s: float | None = None) -> None:
        """Flush for at most `timeout_s` (default `exit_timeout_s`), drop the rest as "shutdown", end the thread.

        Called again, does nothing. Runs by itself at interpreter exit and at SIGTERM.
        """
        self._forget_exit()
        deadline = time.monotonic() + (self.exit_timeout_s if timeout_s is None else timeout_s)
        with self._cond:
            if self._closed or self._closing_at is not None:
                return
            self._closing_at, self._kick = deadline, True
            running = self._start_thread()
            self._cond.notify_all()
            while running and self.stats().pending and time.monotonic() < deadline:
                self._cond.wait(deadline - time.monotonic())
        if not running:
            self._send_here()
        self._finish_close()

    def _finish_close(self) -> None:
        with self._cond:
            lost = self.stats().pending
            if lost:
                self._accounts.lose(lost, "shutdown")
                _log.warning("%d spans are lost: they could not be sent to %s in time", lost, self.transport.target)
            self._closed = True
            self._queue.clear()
            self._nbytes = self._in_flight = 0
            self._spill.close()
            self._cond.notify_all()
        try:
            self.transport.cancel()
        except Exception:
            warn_once(self.transport, "%s could not be shut down", self.transport.target)

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
        try:
            batch = self._next_batch()
            if batch is None:
                return False
            self._deliver(batch)
        except Exception:
            warn_once(self, "exporting to %s failed; spans are lost", self.transport.target)
            with self._cond:
                self._settle(self._in_flight, None, dropped="failed")
        return True

    def _next_batch(self) -> list[_Entry] | None:
        """Wait for spans and take a batch of them; None when closed."""
        with self._cond:
            while not self._closed and not self._expired():
                if self._queue:
                    wait_s = self._linger_left_s()
                    if wait_s <= 0:
                        return self._take()
                    self._cond.wait(wait_s)
                elif self._spill.count:
                    segment = self._spill.next_segment()
                    if segment is not None:
                        self._in_flight += segment.spans
                        break
                elif self._closing_at is not None:
                    return None
                else:
                    self._cond.wait()
            else:
                return None
        return self._read(segment)

    def _linger_left_s(self) -> float:
        full = len(self._queue) >= self.max_batch_spans or self._nbytes >= self.max_batch_bytes
        if full or self._urgent or self._closing_at is not None:
            return 0.0
        return self._oldest_s + self.linger_s - time.monotonic()

    def _take(self) -> list[_Entry]:
        batch: list[_Entry] = []
        nbytes = 0
        while self._queue and len(batch) < self.max_batch_spans:
            nbytes += self._queue[0].nbytes
            if batch and nbytes > self.max_batch_bytes:
                break
            batch.append(self._queue.popleft())
        self._in_flight += len(batch)
        return batch

    def _read(self, segment: Segment) -> list[_Entry]:
        """The spans of a segment, which count as in flight already. Their bytes are no part of the bound."""
        try:
            spans = segment.read()
        except Exception:
            warn_once(self._spill, "spilled spans can't be read back; they are lost")
            spans = []
        segment.remove()
        lost = segment.spans - len(spans)
        if lost > 0:
            with self._cond:
                self._settle(lost, None, dropped="spill_failed")
        return [_Entry(span, 0) for span in spans]

    def _deliver(self, batch: list[_Entry]) -> None:
        """Send a batch, in smaller pieces where the receiver wants them, until all of it is settled."""
        parts = [batch] if batch else []
        while parts:
            part = parts.pop()
            body, part = self._build(part)
            if not part:
                continue
            outcome = self._send(part, body)
            if outcome is None:
                return  # closed meanwhile: `close` has counted it
            if outcome.status == TOO_LARGE and len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            self._account(part, outcome)

    def _build(self, part: list[_Entry]) -> tuple[bytes, list[_Entry]]:
        """The request of these entries, and the entries that are in it."""
        if not self.transport.wire:
            return b"", part
        readable = [entry for entry in part if not isinstance(entry.item, bytes)]
        foreign, bad = _encode_foreign([entry.item for entry in readable])
        if bad:
            lost = [entry for entry in part if id(entry.item) in bad]
            part = [entry for entry in part if id(entry.item) not in bad]
            with self._cond:
                self._settle(len(lost), lost, dropped="unencodable")
        ours = [entry.item for entry in part if type(entry.item) is bytes]
        requests = [entry.item for entry in part if isinstance(entry.item, Request)]
        # Requests that follow each other are one request to protobuf.
        own = encode_request(ours, self.resource, self.scope) if ours else b""
        return b"".join([own, foreign, *requests]), part

    def _send(self, part: list[_Entry], body: bytes) -> Outcome | None:
        """Try until there is an outcome other than "later"; None when the pipeline was closed meanwhile."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            timeout_s = self._try_timeout_s()
            if self.transport.wire:
                outcome = self.transport.send(body, len(part), timeout_s)
            else:
                outcome = self.transport.send_spans([entry.item for entry in part], timeout_s)
            if outcome.status != RETRY:
                return outcome
            self._warn_of_outage(outcome)
            # Half of it is chance, so that many programs don't come back all at once.
            wait_s = backoff_s * random.uniform(0.5, 1.0)
            if outcome.retry_after_s is not None:
                wait_s = max(wait_s, min(outcome.retry_after_s, _LONGEST_RETRY_AFTER_S))
            if not self._pause(wait_s):
                return None
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)

    def _try_timeout_s(self) -> float:
        if self._closing_at is None:
            return self.transport.timeout_s
        return max(min(self.transport.timeout_s, self._closing_at - time.monotonic()), 0.001)

    def _pause(self, wait_s: float) -> bool:
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

    def _account(self, part: list[_Entry], outcome: Outcome) -> None:
        refused = min(outcome.rejected, len(part)) if outcome.status == ACCEPTED else len(part)
        with self._cond:
            if self._closed:
                return
            new_refusal = refused > 0 and not self._refused
            self._refused = refused > 0
        if new_refusal:  # said before it is settled: who flushes finds it said
            _log.warning("%s refused %d spans: %s", self.transport.target, refused, outcome.message)
        with self._cond:
            if self._closed:
                return
            self._accounts.lose(refused, "rejected")
            self._accounts.export(len(part) - refused)
            self._settle(len(part), part)
            caught_up = self._nbytes <= self.max_bytes // 2 and not self._spill.count
            recovered, self._outage = self._outage and outcome.status == ACCEPTED, False
            if caught_up:
                self._block_left_s, self._full = self.block_timeout_s, False
        if recovered:
            _log.info("%s takes spans again", self.transport.target)

    def _settle(self, count: int, part: list[_Entry] | None, dropped: str | None = None) -> None:
        """Spans in flight have come to an end. Call with the lock; does nothing once closed."""
        if self._closed:
            return
        if dropped:
            # What only shows when a request is built are spans that the SDK made: ours are encoded by then.
            self._accounts.lose(count, dropped, self._accounts.foreign if dropped == "unencodable" else None)
        self._in_flight -= count
        self._settled += count
        self._nbytes -= sum(entry.nbytes for entry in part or ())
        if part is None and not self._in_flight:
            # A whole batch was lost to an error: what is left in the queue is all that takes memory.
            self._nbytes = sum(entry.nbytes for entry in self._queue)
        self._cond.notify_all()

    def _warn_of_outage(self, outcome: Outcome) -> None:
        with self._cond:
            known, self._outage = self._outage, True
        if not known and not self._closed:
            _log.warning(
                "spans can't be sent to %s (%s); up to %d MiB of them are kept and sent later",
                self.transport.target,
                outcome.message,
                self.max_bytes >> 20,
            )

    def _after_fork(self) -> None:
        spill, self._spill = self._spill, Spill(self._spill.max_bytes, self.max_batch_bytes, self._spill._parent)
        _parents_spills.append(spill)  # its files are the parent's; closing them here would remove them
        closed = self._closed
        self._reset()
        self._closed = closed
        self.transport.after_fork()


def _encode_foreign(spans: Sequence[ReadableSpan]) -> tuple[bytes, set[int]]:
    """The stock encoder's request of spans that the SDK made, and the ids of those that it can't encode."""
    if not spans:
        return b"", set()
    with forks.held_off:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    try:
        return encode_spans(spans).SerializeToString(), set()
    except Exception:
        if len(spans) > 1:
            parts = [_encode_foreign([span]) for span in spans]
            return b"".join([body for body, _ in parts]), set().union(*(bad for _, bad in parts))
        warn_once(_encode_foreign, "the span %r can't be encoded; it is dropped", spans[0].name)
        return b"", {id(spans[0])}


def _check(options: dict[str, Any]) -> None:
    if options["on_full"] not in ON_FULL:
        raise InvalidOptionError(f"on_full={options['on_full']!r}: allowed are {', '.join(ON_FULL)}")
    for name in ("max_bytes", "max_batch_spans", "max_batch_bytes", "max_spill_bytes"):
        if isinstance(options[name], bool) or not isinstance(options[name], int) or options[name] < 1:
            raise InvalidOptionError(f"{name}={options[name]!r}: give a whole number greater than 0")
    for name in ("block_timeout_s", "exit_timeout_s", "linger_s"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise InvalidOptionError(f"{name}={value!r}: give a number of seconds, 0 or more")


_parents_spills: list[Spill] = []
_live: weakref.WeakSet[SpanPipeline] = weakref.WeakSet()


@forks.in_child("_live", "_parents_spills")
def _in_child() -> None:
    for pipeline in list(_live):
        pipeline._after_fork()
