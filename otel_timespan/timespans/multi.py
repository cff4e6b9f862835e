"""`MultiEventLog`: named consumers turn each event into one value each; aggregators look at the lists.

Events reach the log through a `Journal`, off the emitter's path, and are taken one by one: all
consumers in the order in which they were added, then all aggregators. Each worker has its own streams
(streams.py) and its own copies of consumers and aggregators; worker 1 uses the very objects that the user gave.
What these may say of themselves is in calling.py, how to write them in docs/consumers.md.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any

from .. import forks
from ..errors import ConcurrencyViolationError, InvalidOptionError, NotCallableError
from . import scheduler
from .bounds import MAX_BYTES, journal_bound
from .calling import attach, detach
from .durations import seconds
from .journal import Journal, expand_all
from .model import Event
from .recorder import Recorder
from .rows import count_events
from .segments import Batch
from .sink import Sink
from .streams import SLICE, WorkerStreams, blame
from .warn import warn_once

__all__ = ["Aggregators", "MultiEventLog"]


class Aggregators(dict[str, Any]):
    """The named aggregators of a log: a dict whose changes take effect between two events.

    An aggregator that declares `attach` meets the log before it is in place, and `detach` once it is not any more
    (see `calling.Aggregator`). Setting one raises `NotCallableError` where it can't be called, or where these two
    do not take (log, worker), and what its `attach` raises; then nothing changes.
    """

    def __init__(self, log: MultiEventLog) -> None:
        super().__init__()
        self._log = log

    def __setitem__(self, name: str, aggregator: Any) -> None:
        if not callable(aggregator) or isinstance(aggregator, type):
            raise NotCallableError(f"the aggregator {name!r} can't be called with the log's lists: {aggregator!r}")
        if not self._holds(aggregator):
            attach(aggregator, self._log, 1)
        with self._log._changing():
            before = self.get(name)
            super().__setitem__(name, aggregator)
        if before is not None:
            self._left(before)

    def __delitem__(self, name: str) -> None:
        with self._log._changing():
            before = self[name]
            super().__delitem__(name)
        self._left(before)

    def _holds(self, aggregator: Any) -> bool:
        return any(one is aggregator for one in self.values())

    def _left(self, *gone: Any) -> None:
        """These were taken out; one of them may still be here by another name."""
        for aggregator in {id(one): one for one in gone}.values():
            if not self._holds(aggregator):
                detach(aggregator, self._log, 1)

    def __ior__(self, other: Any) -> Aggregators:  # type: ignore[override,misc]
        self.update(other)
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As of a dict."""
        for name, aggregator in dict(*args, **kwargs).items():
            self[name] = aggregator

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """As of a dict."""
        with self._log._changing():
            there = name in self
            popped = super().pop(name, *default)
        if there:
            self._left(popped)
        return popped

    def popitem(self) -> tuple[str, Any]:
        """As of a dict."""
        with self._log._changing():
            name, popped = super().popitem()
        self._left(popped)
        return name, popped

    def clear(self) -> None:
        """As of a dict."""
        with self._log._changing():
            gone = list(self.values())
            super().clear()
        self._left(*gone)


class MultiEventLog(Sink):
    """A log of named streams: `log["bytes"] = BytesAllocd()`, `log.aggregators["window"] = LogWindow(...)`.

    `max_events` keeps only the newest so many events of each worker, all streams cut alike (default:
    no limit). `get_logs(log)` gives `{worker: {stream: list}}` and empties the log; all lists of a
    worker have the same length, and entry i of each belongs to the same event. A consumer added later
    finds None for the events before; `del log["name"]` drops the stream. `close()` frees everything.

    Consumers run off the program's path. What waits for them takes at most `max_waiting_bytes` (64 MiB): beyond it the
    program waits for them, at most one second for consumers that don't get on (`on_full="block"`), or not at all
    ("drop"); what is not logged then is counted in `dropped`, and warned about once.

    Thread-safe. Raises `InvalidOptionError` for a bad option or name, `NotCallableError` for
    something that can't be called.
    """

    def __init__(
        self, max_events: int | None = None, *, max_waiting_bytes: int = MAX_BYTES, on_full: str = "block"
    ) -> None:
        if max_events is not None and (isinstance(max_events, bool) or not isinstance(max_events, int)):
            raise InvalidOptionError(f"max_events is a number of events or None, not {max_events!r}")
        if max_events is not None and max_events < 1:
            raise InvalidOptionError(f"max_events must be at least 1, not {max_events}; None means no limit")
        self.uid = secrets.randbits(63)
        self.max_events = max_events
        self.consumers: dict[str, Any] = {}
        self.aggregators = Aggregators(self)
        self._lock = forks.rlock()
        self._states: dict[int, WorkerStreams] = {}
        self._stale = False
        self._closed = False
        self._unfetched = ""
        bound = journal_bound(max_waiting_bytes, on_full)
        self._journal = Journal(self._process, blame, self._after_fork, raw=True, at_once=_AT_ONCE, **bound)
        self.recorder = Recorder(self._journal.append, put=self._journal.put, again=self._journal.again)

    def __setitem__(self, name: str, consumer: Any) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidOptionError(f"the name of a stream is a string, not {name!r}")
        if not callable(consumer):
            raise NotCallableError(f"the consumer {name!r} can't be called with an event: {consumer!r}")
        if isinstance(consumer, type):
            raise NotCallableError(f"the consumer {name!r} is a class; give an instance: {consumer.__name__}()")
        if callable(getattr(consumer, "sample", None)) and type(consumer).__hash__ is None:
            raise InvalidOptionError(f"the consumer {name!r} samples, so it must be hashable: {consumer!r}")
        with self._changing():
            self.consumers.pop(name, None)
            self._refresh_now()  # a consumer set anew begins with an empty stream
            self.consumers[name] = consumer

    def __getitem__(self, name: str) -> Any:
        return self.consumers[name]

    def __delitem__(self, name: str) -> None:
        with self._changing():
            del self.consumers[name]

    def __contains__(self, name: object) -> bool:
        return name in self.consumers

    def __iter__(self) -> Iterator[str]:
        return iter(self.consumers)

    def __len__(self) -> int:
        return len(self.consumers)

    def __bool__(self) -> bool:
        return True  # an empty log is still a log: `if ctx.log_sink:` must hold

    def __enter__(self) -> MultiEventLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MultiEventLog({', '.join(self.consumers)})"

    def write_event(self, event: Event) -> None:
        """Take one event. Consumers that sample the moment do so now, all others later."""
        if self.recorder.samplers and event.samples is None:
            event = event._replace(samples=self.recorder.sample())
        self.recorder.append(event)

    def get_logs(self, *, only_local: bool = False, **options: Any) -> dict[int, dict[str, list[Any]]]:
        """`{worker: {stream: list}}` since the last call, for every known worker; empties the log.

        `only_local` fetches the calling process's streams only. The lists are the caller's to keep.
        """
        if self._journal.is_draining_here:
            raise ConcurrencyViolationError("a consumer or aggregator can't fetch the log that is just calling it")
        self._journal.drain()
        with self._lock:
            self._refresh()
            here = scheduler.this_worker()
            wanted = {here} if only_local else {here, *scheduler.known_workers(), *self._states}
            return {worker: self._take(worker) for worker in sorted(wanted)}

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return when consumers and aggregators have seen all events so far; False if that takes too long."""
        return self._journal.drain(timeout_s=None if timeout_s is None else seconds(timeout_s, "timeout_s"))

    @property
    def dropped(self) -> int:
        """Events that are not in the log because there was no room for what waits, or no time at `close`."""
        return self._journal.dropped_events

    def say_when_full(self, text: str) -> None:
        """Warn with this text (%d: `max_events`) when events are given up that nobody fetched; once."""
        self._unfetched = text

    def trimmed(self) -> None:
        """The oldest events were given up for `max_events`."""
        if self._unfetched:
            warn_once(self, self._unfetched, self.max_events)

    def close(self, timeout_s: float | None = None) -> None:
        """Free all streams and stop taking events. Consumers with a method `close` are closed.

        What happened before is given to the consumers first, for at most `timeout_s`; the rest counts as `dropped`.
        """
        if self._closed:
            return
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.recorder.append = self.recorder.put = self.recorder.event = _ignore
        self._journal.drain(timeout_s=timeout_s)
        self._journal.give_up(self._journal.close())
        if not self._lock.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic())):
            self._closed = True  # a consumer is at it for longer than we have
            return
        try:
            self._closed = True
            consumers = [*self.consumers.values(), *self.aggregators.values()]
            states = list(self._states.values())
            consumers += [copy for state in states for copy in state.copies]
            self._states.clear()
            self.recorder.samplers = ()
        finally:
            self._lock.release()
        for state in states:
            state.close()
        for aggregator in {id(a): a for a in self.aggregators.values()}.values():
            detach(aggregator, self, 1)
        for consumer in {id(c): c for c in consumers}.values():
            try:
                getattr(consumer, "close", _ignore)()
            except Exception:
                warn_once(consumer, "%s could not be closed", type(consumer).__name__)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Around a change: the events before it are the old consumers', so they are settled first."""
        self._journal.drain()
        with self._lock:
            yield
            self._stale = True
            if not self._closed:
                samplers = [c for c in self.consumers.values() if callable(getattr(c, "sample", None))]
                self.recorder.samplers = tuple(samplers)
            self._refresh_now()

    def _refresh_now(self) -> None:
        """Take the change over, unless a consumer makes it while it is called: then before the next batch."""
        if not self._journal.is_draining_here:
            self._stale = True
            self._refresh()

    def _refresh(self) -> None:
        if self._stale:
            self._stale = False
            try:
                for state in self._states.values():
                    state.configure(self.consumers, self.aggregators)
            except BaseException:  # a signal: not all of it was taken over
                self._stale = True
                raise

    def _state(self, worker: int) -> WorkerStreams:
        state = self._states.get(worker)
        if state is None:
            state = WorkerStreams(self, worker, self.max_events)
            state.configure(self.consumers, self.aggregators)
            self._states[worker] = state
        return state

    def _take(self, worker: int) -> dict[str, list[Any]]:
        state = self._states.get(worker)
        return {name: [] for name in self.consumers} if state is None else state.take()

    def _after_fork(self) -> None:
        """A child begins empty: what is logged so far is the parent's, and so was whoever held the lock."""
        self._lock = forks.rlock()
        self._states = {}

    def _process(self, records: list[Any]) -> None:
        with self._lock:
            if self._closed:
                return
            self._refresh()
            state = self._state(1)
            before = self._kept()
            try:
                if state.takes_records and state.calls_nobody:
                    batch = Batch(records)
                    found = [self._state(worker).feed_batch(batch) for worker in sorted(batch.workers())]
                elif state.takes_records:
                    found = [state.feed_records(records, lambda worker, events: self._state(worker).feed(events))]
                else:
                    found = list(self._feed_expanded(records))
                interrupts = list(filter(None, found))
                self._journal.settle()
            except BaseException:  # a signal, anywhere: what consumers raise is returned
                for state in self._states.values():
                    state.broken_off()
                self._journal.settle()
                self._journal.lose(count_events(records) - (self._kept() - before))
                raise
        if interrupts:
            raise interrupts[0]

    def _kept(self) -> int:
        """How many entries there ever were, of all workers."""
        return sum([state.kept for state in self._states.values()])

    def _feed_expanded(self, records: list[Any]) -> Iterator[KeyboardInterrupt | None]:
        for start in range(0, len(records), SLICE):
            for worker, some in groupby(expand_all(records[start : start + SLICE]), _worker_of):
                yield self._state(worker).feed(list(some))


_worker_of = attrgetter("worker")

_AT_ONCE = 1024
"""Records that become a segment at once, at most: it takes as many objects, whatever their number."""


def _ignore(*_: Any) -> None:
    """What a closed log does with records."""
