"""The simple sinks: `LocalEventLog`, `QueueLog`, `FilterLog`, `TeeLog`.

`MultiEventLog` (multi.py) and `IOLog` (iolog.py) have files of their own. A sink with an attribute `recorder`
(see recorder.py) is fed through a journal, off the emitter's path. See docs/consumers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from .. import forks
from ..errors import InvalidOptionError, LogNotKeptError, NotCallableError
from . import scheduler
from .journal import Journal
from .matching import SpanBuilder
from .model import Event, Timespan
from .recorder import Recorder, recorder_for, refuse_class, tee_recorder
from .sink import NO_LOG, Sink, get_logs, write_event

__all__ = ["FilterLog", "LocalEventLog", "QueueLog", "TeeLog"]


class FilterLog(Sink):
    """Hands on to `inner` the events for which `fn(event)` is true.

    `fn` runs in the thread that emits and is not isolated: what it raises, `write_event` raises (the
    scheduler then warns once and drops the event). It may do all the work itself and return False.
    """

    def __init__(self, fn: Callable[[Event], Any], inner: Any = None) -> None:
        if not callable(fn):
            raise NotCallableError(f"FilterLog needs a function of one event, not {fn!r}")
        refuse_class(inner)
        self.fn, self.inner = fn, NO_LOG if inner is None else inner

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
    readers get disjoint pieces. `dropped()`: events given up because more than 64 MiB waited for being listed.
    """

    _lock = forks.lock()
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
                here = scheduler.this_worker()
                return _by_worker(events, [here] if only_local else sorted({here, *scheduler.known_workers()}))
            builder = SpanBuilder()
            for event in events:
                builder.feed(event)
            LocalEventLog._events = [*builder.pending, *self._events]
        spans: list[Timespan] = builder.completed
        return spans

    @classmethod
    def dropped(cls) -> int:
        """See the class."""
        return cls._journal.dropped_events

    def _take(self, only_local: bool) -> list[Event]:
        here = scheduler.this_worker()
        events = [e for e in self._events if not only_local or e.worker == here]
        LocalEventLog._events = [e for e in self._events if only_local and e.worker != here]
        return events

    @classmethod
    def _process(cls, events: list[Event]) -> None:
        with LocalEventLog._lock:
            LocalEventLog._events.extend(events)

    @classmethod
    def _after_fork(cls) -> None:
        LocalEventLog._events = []


LocalEventLog._journal = Journal(LocalEventLog._process, after_fork=LocalEventLog._after_fork)
LocalEventLog.recorder = Recorder(
    LocalEventLog._journal.append, put=LocalEventLog._journal.put, again=LocalEventLog._journal.again
)


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


def _by_worker(events: list[Event], ids: Iterable[int]) -> dict[int, list[Event]]:
    logs: dict[int, list[Event]] = {worker: [] for worker in ids}
    for event in events:
        logs.setdefault(event.worker, []).append(event)
    return logs
