"""What a sink is, and the calls that take any kind of one: `write_event`, `get_logs`, `log_sink`.

A sink accepts `write_event(sink, event)`; some keep a log, which `get_logs` fetches and clears. A plain
`list`, a queue, a writable file and any callable are sinks too. The sinks themselves are in sinks.py, multi.py
and iolog.py. See docs/consumers.md.
"""

from __future__ import annotations

import functools
import queue
from typing import Any

from ..errors import LogNotKeptError, NotCallableError
from .eventfile import write_to_file
from .journal import drain_all
from .model import Event

__all__ = ["NO_LOG", "NoOpLog", "Sink", "get_logs", "log_sink", "write_event"]


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


NO_LOG = NoOpLog()
"""The sink of whoever has none."""


@functools.singledispatch
def write_event(sink: Any, event: Event) -> None:
    """Write one event to any kind of sink. Register your own sink types here."""
    if callable(getattr(sink, "write_event", None)):
        sink.write_event(event)
    elif callable(getattr(sink, "put", None)):
        sink.put(event)
    elif callable(getattr(sink, "write", None)):
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


@functools.singledispatch
def log_sink(ctx: Any) -> Any:
    """The sink of a context: its attribute `log_sink`, else a `NoOpLog`. Register other types here."""
    sink = getattr(ctx, "log_sink", None)
    return NO_LOG if sink is None else sink


def get_logs(source: Any, **options: Any) -> Any:
    """Fetch and clear the log of a sink, or of a context's sink. Thread-safe.

    None when logging is off. Raises `LogNotKeptError` for a sink that keeps none.
    """
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
