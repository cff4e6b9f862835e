"""Where events go: the simple sinks. `MultiEventLog` has a file of its own, multi.py.

A sink accepts `write_event(sink, event)`; some keep a log, which `get_logs` fetches and clears. A plain
`list`, a queue, a writable file and any callable are sinks too. A sink with an attribute `recorder` (see
recorder.py) is fed through a journal, off the emitter's path.

Source: spec/timespans.md §4.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from ..errors import InvalidOptionError, LogNotKeptError, NotCallableError
from .journal import Journal, drain_all
from .matching import SpanBuilder
from .model import Event, Timespan
from .recorder import Recorder, recorder_for, tee_recorder

__all__ = [
    "FilterLog",
    "LocalEventLog",
    "NoOpLog",
    "QueueLog",
    "Sink",
    "TeeLog",
    "get_logs",
    "known_workers",
    "this_worker",
    "write_event",
]

this_worker: Callable[[], int] = lambda: 1  # noqa: E731
"""The id of this process. The worker processes of the scheduler replace it."""

known_workers: Callable[[], Iterable[int]] = lambda: (1,)  # noqa: E731
"""The ids of all workers there are. The scheduler replaces it."""


class Sink:
    """Base of our sinks. `write_event` takes one event; `get_logs` returns what was kept and clears it."""

    def write_event(self, event: Event) -> None:
        """Take one event. May be called from any thread."""
        raise NotImplementedError

    def get_logs(self, **options: Any) -> Any:
        """What was logged since the last call. Raises `LogNotKeptError` where nothing is kept."""
        raise LogNotKeptError(f"a {type(self).__name__} hands its events on and keeps none")


class NoOpLog(Sink):
    """Logging is off: nothing is built, `get_logs` is None whatever its keywords."""

    def write_event(self, event: Event) -> None:
        """Does nothing."""

    def get_logs(self, **options: Any) -> None:
        """None."""
        return None

    def __eq__(self, other: object) -> bool:
        return type(other) is NoOpLog

    def __hash__(self) -> int:
        return hash(NoOpLog)

    def __repr__(self) -> str:
        return "NoOpLog()"


class FilterLog(Sink):
    """Hands on to `inner` the events for which `fn(event)` is true.

    `fn` runs in the thread that emits and is not isolated: what it raises, `write_event` raises (the
    scheduler then warns once and drops the event). It may do all the work itself and return False.
    """

    def __init__(self, fn: Callable[[Event], Any], inner: Any = None) -> None:
        if not callable(fn):
            raise NotCallableError(f"FilterLog needs a function of one event, not {fn!r}")
        self.fn, self.inner = fn, NoOpLog() if inner is None else inner

    def write_event(self, event: Event) -> None:
        """Filter, then hand on."""
        if self.fn(event):
            write_event(self.inner, event)

    def get_logs(self, **options: Any) -> Any:
        """The inner sink's log."""
        return get_logs(self.inner, **options)


class QueueLog(Sink):
    """Puts each event into a queue (anything with `put`)."""

    def __init__(self, q: Any) -> None:
        if not callable(getattr(q, "put", None)):
            raise NotCallableError(f"QueueLog needs a queue with a method put, not {q!r}")
        self.queue = q

    def write_event(self, event: Event) -> None:
        """`queue.put(event)`: blocks as the queue does."""
        self.queue.put(event)


class LocalEventLog(Sink):
    """All events of the process in one list, shared by all instances; fetched as `Timespan`s.

    `get_logs(raw=False, only_local=False)`: `raw=True` gives `{worker: [Event]}`, else one list of
    timespans matched across workers; halves that are still alone stay for the next fetch. Concurrent
    readers get disjoint pieces.
    """

    _lock = threading.Lock()
    _events: ClassVar[list[Event]] = []
    _journal: Journal
    recorder: Recorder

    def write_event(self, event: Event) -> None:
        """Keep one event."""
        type(self)._journal.append(event)

    def get_logs(self, *, raw: bool = False, only_local: bool = False, **options: Any) -> Any:
        """See the class. `only_local` fetches the calling process's events only."""
        self._journal.drain()
        with self._lock:
            events = self._take(only_local)
            if raw:
                return _by_worker(events, [this_worker()] if only_local else sorted({this_worker(), *known_workers()}))
            builder = SpanBuilder()
            for event in events:
                builder.feed(event)
            LocalEventLog._events = [*builder.pending, *self._events]
        spans: list[Timespan] = builder.completed
        return spans

    def _take(self, only_local: bool) -> list[Event]:
        here = this_worker()
        events = [e for e in self._events if not only_local or e.worker == here]
        LocalEventLog._events = [e for e in self._events if only_local and e.worker != here]
        return events

    @classmethod
    def _process(cls, events: list[Event]) -> None:
        with LocalEventLog._lock:
            LocalEventLog._events.extend(events)

    @classmethod
    def _after_fork(cls) -> None:
        LocalEventLog._lock = threading.Lock()
        LocalEventLog._events = []


LocalEventLog._journal = Journal(LocalEventLog._process, after_fork=LocalEventLog._after_fork)
LocalEventLog.recorder = Recorder(LocalEventLog._journal.append, put=LocalEventLog._journal.put)


class TeeLog(Sink):
    """Writes every event to several sinks. `get_logs` is that of the first one that keeps a log.

    At most one of them may carry a trace context into bodies (`OTelLog`): two would disagree about
    which span is current there.
    """

    def __init__(self, *sinks: Any) -> None:
        self.sinks = sinks
        recorders = [r for r in map(recorder_for, sinks) if r is not None]
        if sum(r.on_submit is not None for r in recorders) > 1:
            raise InvalidOptionError(
                "a TeeLog takes one OTelLog; for two back ends give one OTelLog two span processors or exporters"
            )
        self.recorder = tee_recorder(recorders)

    def write_event(self, event: Event) -> None:
        """To every sink, in order."""
        for sink in self.sinks:
            write_event(sink, event)

    def get_logs(self, **options: Any) -> Any:
        """The log of the first sink that keeps one."""
        for sink in self.sinks:
            try:
                logs = get_logs(sink, **options)
            except LogNotKeptError:
                continue
            if logs is not None:
                return logs
        raise LogNotKeptError("none of the sinks of this TeeLog keeps a log")


def _by_worker(events: list[Event], workers: Iterable[int]) -> dict[int, list[Event]]:
    logs: dict[int, list[Event]] = {worker: [] for worker in workers}
    for event in events:
        logs.setdefault(event.worker, []).append(event)
    return logs


@functools.singledispatch
def write_event(sink: Any, event: Event) -> None:
    """Write one event to any kind of sink. Register your own sink types here."""
    if callable(getattr(sink, "write_event", None)):
        sink.write_event(event)
    elif callable(getattr(sink, "put", None)):
        sink.put(event)
    elif callable(getattr(sink, "write", None)):
        from .iolog import write_to_file

        write_to_file(sink, event)
    elif callable(sink):
        sink(event)
    else:
        raise NotCallableError(f"{sink!r} is no log sink: it needs a method write_event, put or write")


@write_event.register
def _(sink: list, event: Event) -> None:  # type: ignore[type-arg]
    sink.append(event)


@write_event.register
def _(sink: queue.Queue, event: Event) -> None:  # type: ignore[type-arg]
    sink.put(event)


def get_logs(source: Any, **options: Any) -> Any:
    """Fetch and clear the log of a sink, or of a context's sink. Thread-safe.

    None when logging is off. Raises `LogNotKeptError` for a sink that keeps none.
    """
    from .emit import log_sink

    sink = source if _is_sink(source) else log_sink(source)
    fetch = getattr(sink, "get_logs", None)
    if not callable(fetch):
        raise LogNotKeptError(f"a {type(sink).__name__} as a sink is read by yourself, not by get_logs")
    drain_all(forwarding_only=True)
    return fetch(**options)


def _is_sink(source: Any) -> bool:
    """Whether this is a sink and no context; a callable may be either, and counts as a context."""
    if isinstance(source, (Sink, list)):
        return True
    return any(callable(getattr(source, name, None)) for name in ("write_event", "put", "write"))
