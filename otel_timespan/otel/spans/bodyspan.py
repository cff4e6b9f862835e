"""The span that is current while a body runs, and around a `with dag(...)` block.

It records what the user adds (attributes, events, links, a status, a name), made plain at once (values.py), so
that what the user does to a list afterwards isn't sent; `merged` joins that with our own span when the log builds
it. No call raises: what has the wrong type is left out and warned of, as by the SDK. It is a `ReadableSpan` too,
so that span processors take it in `on_start`. That of a body is a `LazySpan`, for nearly no body looks at it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from ... import forks
from ...timespans.warn import warn_once
from . import failures
from .limits import NO_LIMITS, Limits
from .spandata import ERROR, OK, UNSET, EventData, LinkData, SpanData
from .values import plain_attributes, plain_int, plain_pairs, plain_text, plain_value

__all__ = ["SEEN", "BodySpan", "LazySpan", "span_context"]

SEEN = "seen"
"""What the log is told instead of the span of a body that left it empty, and that gave its ids away."""

_log = logging.getLogger("otel_timespan")
_CODES = {StatusCode.UNSET: UNSET, StatusCode.OK: OK, StatusCode.ERROR: ERROR}


def span_context(trace_id: int, span_id: int, flags: int, trace_state: str, is_remote: bool = False) -> SpanContext:
    """The API's context of a span of ours."""
    state = TraceState.from_header([trace_state]) if trace_state else None
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags), state)


class BodySpan(Span, ReadableSpan):
    """A recording span whose end is the log's affair. Thread-safe as far as appending and setting are.

    `end()` does nothing: the span ends with the body (or the block).
    """

    def __init__(
        self,
        name: str,
        trace_id: int,
        span_id: int,
        parent_id: int,
        flags: int,
        trace_state: str,
        start_ns: int,
        limits: Limits = NO_LIMITS,
        resource: Any = None,
        scope: InstrumentationScope | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.trace_id, self.span_id, self.parent_id = trace_id, span_id, parent_id
        self.flags, self.trace_state = flags, trace_state
        self.limits = limits
        self._name, self._renamed = name, False
        self._start_ns, self._end_ns = start_ns, 0
        self._span_context: SpanContext | None = None
        self._set: dict[str, Any] = dict(attributes) if attributes else {}
        self._added: list[EventData] = []
        self._linked: list[LinkData] = []
        self._lost_attributes = self._lost_events = self._lost_links = 0  # beyond the limits
        self._status_code, self._status_text = UNSET, ""
        # The exceptions that the user recorded, held: the address of one that is gone is used again.
        self._recorded: tuple[BaseException, ...] = ()
        self._resource, self._scope = resource, scope
        self._ended = False

    # ---- what the user calls -------------------------------------------------------------------

    def get_span_context(self) -> SpanContext:
        """The ids of this span."""
        return self.own_context()

    def own_context(self) -> SpanContext:
        """The same, for the log itself."""
        context = self._span_context
        if context is None:
            context = span_context(self.trace_id, self.span_id, self.flags, self.trace_state)
            self._span_context = context
        return context

    def is_recording(self) -> bool:
        """True until the log has built the span."""
        return not self._ended

    def end(self, end_time: int | None = None) -> None:
        """Does nothing: the span ends with the body."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Add or replace one attribute. A value of None is left out."""
        if not self._open():
            return
        if type(key) is str and key.isascii() and key:  # nearly always
            if value is not None:
                self._keep(key, plain_value(value))
        else:
            self._put(*plain_pairs([(key, value)]))

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Add or replace several."""
        if self._open():
            self._put(*plain_attributes(attributes))

    def _put(self, kept: Mapping[str, Any], refused: int) -> None:
        self._lost_attributes += refused
        for key, value in kept.items():
            self._keep(key, value)

    def _keep(self, key: str, value: Any) -> None:
        limit = self.limits.attributes
        if limit is not None and len(self._set) >= limit and key not in self._set:
            self._lost_attributes += 1
        else:
            self._set[key] = value

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event; `timestamp` is wall-clock ns, now by default and for what is no such number."""
        if self._open():
            self._add_event(name, attributes, timestamp)

    def _add_event(self, name: Any, attributes: Any, timestamp: Any, ours: Mapping[str, Any] | None = None) -> None:
        kept, refused = plain_attributes(attributes)
        if ours:
            kept = {**ours, **kept}
        limit = self.limits.events
        if limit is not None and len(self._added) >= limit:  # the newest stay, as in the SDK
            self._lost_events += 1
            if not limit:
                return
            self._added[:1] = ()
        self._added.append(EventData(plain_text(name), _moment(timestamp), kept, refused))

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Link to another span. As in the SDK one that leads nowhere needs attributes or a trace state."""
        if not self._open():
            return
        link = _link(context, attributes)
        if link is None:
            text = "a link needs a valid SpanContext; one to a %s is left out"
            warn_once(("link", type(context)), text, _kind(context))
            return
        limit = self.limits.links
        if limit is not None and len(self._linked) >= limit:
            self._lost_links += 1
            return
        self._linked.append(link)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an `exception` event. If the same exception then ends the body it isn't recorded again."""
        if not self._open():
            return
        if not isinstance(exception, BaseException):
            text = "a %s is no exception to record; it is left out"
            warn_once(("exception", type(exception)), text, _kind(exception))
            return
        self._recorded += (exception,)
        event = failures.exception_event(failures.describe(exception), 0)
        self._add_event("exception", attributes, timestamp, event.attributes)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """The SDK's rules: OK is final, UNSET is ignored, a description is a text, for errors only."""
        if not self._open() or self._status_code == OK:
            return
        code, text = (status.status_code, status.description) if isinstance(status, Status) else (status, description)
        if not isinstance(code, StatusCode):
            warn_once(("status", type(status)), "a status is a Status or a StatusCode, not a %s", _kind(status))
        elif code is not StatusCode.UNSET:
            self._status_code = _CODES[code]
            self._status_text = plain_text(text) if code is StatusCode.ERROR and isinstance(text, str) else ""

    def update_name(self, name: str) -> None:
        """Another name for the span."""
        if not isinstance(name, str):
            warn_once(("name", type(name)), "the name of a span is a text, not a %s", _kind(name))
        elif self._open():
            self._name, self._renamed = plain_text(name), True

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if exc_val is not None and self.is_recording():
            self.record_exception(exc_val)
            self.set_status(StatusCode.ERROR, f"{exc_type.__name__}: {plain_text(exc_val)}")

    # ---- what the log calls --------------------------------------------------------------------

    @property
    def content(self) -> SpanData:
        """What the user put on it, as a span of its own."""
        name, status = (self._name if self._renamed else ""), self._status_text
        return SpanData(name, 0, 0, 0, 0, 0, self._set, self._linked, self._added, status_message=status)

    def has_recorded(self, error: BaseException) -> bool:
        """Whether the user recorded this very exception."""
        return any(error is recorded for recorded in self._recorded)

    def remember(self, error: BaseException) -> None:
        """The user recorded this exception, in the process where the body ran."""
        self._recorded += (error,)

    def merged(self, span: SpanData) -> SpanData:
        """Our span with what the user added; ends this one."""
        self._ended, self._end_ns, self._recorded = True, span.end_ns, ()
        if not self.is_touched:
            return span
        status, text = span.status, span.status_message
        if self._status_code == OK or (self._status_code == ERROR and status != ERROR):
            status, text = self._status_code, self._status_text
        return span._replace(
            name=self._name if self._renamed else span.name,
            attributes={**span.attributes, **self._set},
            events=(*self._added, *span.events),
            links=(*span.links, *self._linked),
            status=status,
            status_message=text,
            dropped_attributes=span.dropped_attributes + self._lost_attributes,
            dropped_events=span.dropped_events + self._lost_events,
            dropped_links=span.dropped_links + self._lost_links,
        )

    @property
    def is_touched(self) -> bool:
        """Whether the user put anything on it, beyond a limit too."""
        kept = self._set or self._added or self._linked or self._status_code or self._renamed
        return bool(kept or self._lost_attributes or self._lost_events or self._lost_links)

    def _open(self) -> bool:
        if self._ended:
            _log.warning("a span was changed after its end")
        return not self._ended

    def __reduce__(self) -> tuple[Any, ...]:
        made = (self._name, self.trace_id, self.span_id, self.parent_id, self.flags, self.trace_state, self._start_ns)
        lost = (self._lost_attributes, self._lost_events, self._lost_links)
        kept = (self._set, self._added, self._linked, lost, self._status_code, self._status_text, self._renamed)
        return _restore, (made, kept)

    # ---- what a span processor reads -----------------------------------------------------------

    @property
    def name(self) -> str:
        """The present name."""
        return self._name

    @property
    def context(self) -> SpanContext:
        """As `get_span_context`."""
        return self.get_span_context()

    @property
    def parent(self) -> SpanContext | None:
        """The parent's ids."""
        if not self.parent_id:
            return None
        return span_context(self.trace_id, self.parent_id, self.flags, self.trace_state)

    @property
    def kind(self) -> SpanKind:
        """INTERNAL, always."""
        return SpanKind.INTERNAL

    @property
    def start_time(self) -> int:
        """Wall-clock ns."""
        return self._start_ns

    @property
    def end_time(self) -> int | None:
        """Wall-clock ns, None while it is open."""
        return self._end_ns or None

    @property
    def status(self) -> Status:
        """What the user set."""
        codes = {number: code for code, number in _CODES.items()}
        return Status(codes[self._status_code], self._status_text or None)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What the user set."""
        return dict(self._set)

    @property
    def events(self) -> Sequence[Event]:
        """What the user added."""
        return tuple(Event(e.name, dict(e.attributes), e.time_ns) for e in self._added)

    @property
    def links(self) -> Sequence[Link]:
        """What the user added."""
        return tuple(
            Link(span_context(link.trace_id, link.span_id, link.flags, link.trace_state), dict(link.attributes))
            for link in self._linked
        )

    @property
    def resource(self) -> Any:
        """The provider's resource."""
        return self._resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope | None:
        """Ours."""
        return self._scope

    @property
    def dropped_attributes(self) -> int:
        """Beyond the limit."""
        return self._lost_attributes

    @property
    def dropped_events(self) -> int:
        """Beyond the limit."""
        return self._lost_events

    @property
    def dropped_links(self) -> int:
        """Beyond the limit."""
        return self._lost_links


class LazySpan(BodySpan):
    """The span of a body, made when somebody looks at it: until then it is no more than what to make it of.

    `make(span)` fills it in, by `BodySpan.__init__`; `told(span)` is called when its body ended and it is not empty.
    """

    _seen = False

    def __init__(self, make: Callable[[LazySpan], None], told: Callable[[LazySpan], None], *of: Any) -> None:
        self._make, self._told, self.of = make, told, of

    def get_span_context(self) -> SpanContext:
        """The ids of this span. From now on it has to be sent: somebody may have a child or a link of it."""
        self._seen = True
        return self.own_context()

    def __getattr__(self, name: str) -> Any:
        if name not in _FILLED_IN:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _filling:
            if name not in self.__dict__:
                ended = self.__dict__.get("_ended", False)
                self._make(self)
                self._ended = ended
        return self.__dict__[name]

    @property
    def is_touched(self) -> bool:
        """Whether the user put anything on it."""
        return "_set" in self.__dict__ and super().is_touched

    def ended(self) -> LazySpan | str | None:
        """The body ended: the span if there is anything on it, else no more changes: `SEEN`, or None for nearly all."""
        if self.is_touched:
            self._told(self)
            return self
        self._ended = True
        return SEEN if self._seen else None


_FILLED_IN = frozenset(
    (
        "trace_id", "span_id", "parent_id", "flags", "trace_state", "limits", "_name", "_renamed", "_start_ns",
        "_end_ns", "_span_context", "_set", "_added", "_linked", "_lost_attributes", "_lost_events", "_lost_links",
        "_status_code", "_status_text", "_recorded", "_resource", "_scope", "_ended",
    )
)  # fmt: skip
_filling = forks.rlock()


def _moment(timestamp: Any) -> int:
    """Wall-clock ns: those given, or now."""
    if timestamp is None:
        return time.time_ns()
    given = plain_int(timestamp)
    if given is not None and 0 <= given < 1 << 64:
        return given
    warn_once(("timestamp", type(timestamp)), "a timestamp is a number of ns since 1970, not a %s", _kind(timestamp))
    return time.time_ns()


def _link(context: Any, attributes: Any) -> LinkData | None:
    """The link, None for what is no context, or one that leads nowhere and says nothing."""
    kept, refused = plain_attributes(attributes)
    try:
        trace_id, span_id = plain_int(context.trace_id) or 0, plain_int(context.span_id) or 0
        state = plain_text(context.trace_state.to_header()) if context.trace_state else ""
        flags = (plain_int(context.trace_flags) or 0) & 0xFF
    except Exception:  # not a SpanContext
        return None
    if not ((trace_id and span_id) or kept or state) or trace_id >> 128 or span_id >> 64:
        return None
    return LinkData(trace_id, span_id, kept, state, flags, refused)


def _kind(value: Any) -> str:
    return type(value).__name__


def _restore(made: tuple[Any, ...], kept: tuple[Any, ...]) -> BodySpan:
    span = BodySpan(*made)
    span._set, span._added, span._linked, lost, span._status_code, span._status_text, span._renamed = kept
    span._lost_attributes, span._lost_events, span._lost_links = lost
    return span
