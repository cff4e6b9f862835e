"""`SpanData` and OTLP bytes to the SDK's `ReadableSpan`, for exporters and processors that the user gave.

What the stock encoders can't write (a lone surrogate, a number beyond 64 bits) is made writable as in wire.py: one
such value costs an exporter its whole batch, the user's own spans in it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from ..spans.spandata import EventData, LinkData, SpanData
from .wire import digits, text_of

__all__ = ["readable_from_request", "to_readable"]

_STATUS = (StatusCode.UNSET, StatusCode.OK, StatusCode.ERROR)


def to_readable(span: SpanData, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """The SDK's view of a span, which every encoder can write. Apply `limits.clip` before. About 20 µs."""
    flags = TraceFlags(span.flags & 0xFF)
    parent = None
    if span.parent_id:
        parent = SpanContext(span.trace_id, span.parent_id, span.parent_is_remote, flags)
    return ReadableSpan(
        name=_text(span.name),
        context=SpanContext(span.trace_id, span.span_id, False, flags, _trace_state(span.trace_state)),
        parent=parent,
        resource=resource,
        attributes=_attributes(span.attributes, span.dropped_attributes),
        events=_bounded([_event(e) for e in span.events], span.dropped_events),
        links=_bounded([_link(link) for link in span.links], span.dropped_links),
        kind=SpanKind.INTERNAL,
        status=_status(span.status, span.status_message),
        start_time=min(max(span.start_ns, 0), _U64),
        end_time=min(max(span.end_ns, 0), _U64),
        instrumentation_scope=scope,
    )


_U64 = (1 << 64) - 1
_DEEPEST = 8


def _text(text: Any) -> str:
    if not isinstance(text, str):
        text = str(text)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()  # type: ignore[no-any-return]


def _writable(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (bool, float, bytes)) or value is None:
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else digits(value)
    if depth < _DEEPEST and isinstance(value, Sequence):
        return tuple([_writable(item, depth + 1) for item in value])
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_text(key): _writable(item, depth + 1) for key, item in value.items()}
    return _text(text_of(value))


def _status(code: int, message: str) -> Status:
    # A message is for errors only: the SDK logs a warning about any other.
    return Status(_STATUS[code], _text(message) if message else None) if code == 2 else Status(_STATUS[code])


def _attributes(attributes: Mapping[str, Any], dropped: int = 0) -> BoundedAttributes:
    writable = {_text(key): _writable(value) for key, value in attributes.items()}
    bounded = BoundedAttributes(None, writable, immutable=True)
    bounded.dropped += dropped
    return bounded


def _bounded(items: list[Any], dropped: int) -> BoundedList[Any]:
    bounded: BoundedList[Any] = BoundedList.from_seq(None, items)
    bounded.dropped += dropped
    return bounded


def _event(event: EventData) -> Event:
    attributes = _attributes(event.attributes, event.dropped_attributes)
    return Event(_text(event.name), attributes, min(max(event.time_ns, 0), _U64))


def _link(link: LinkData) -> Link:
    state = _trace_state(link.trace_state)
    context = SpanContext(link.trace_id, link.span_id, False, TraceFlags(link.flags & 0xFF), state)
    return Link(context, _attributes(link.attributes, link.dropped_attributes))


@lru_cache(maxsize=256)
def _trace_state(header: str) -> TraceState:
    return TraceState.from_header([header]) if header else TraceState()


def readable_from_request(body: bytes) -> list[ReadableSpan]:
    """The spans of an `ExportTraceServiceRequest`: what was spilled to disk, for an exporter of objects."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = Resource(_plain_attributes(group.resource.attributes), group.schema_url)
        for part in group.scope_spans:
            attributes = _plain_attributes(part.scope.attributes)
            scope = InstrumentationScope(part.scope.name, part.scope.version, part.schema_url, attributes)
            spans += [_readable_from_proto(span, resource, scope) for span in part.spans]
    return spans


def _readable_from_proto(span: Any, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    plain = SpanData(
        name=span.name,
        trace_id=int.from_bytes(span.trace_id, "big"),
        span_id=int.from_bytes(span.span_id, "big"),
        parent_id=int.from_bytes(span.parent_span_id, "big"),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_plain_attributes(span.attributes),
        links=[_plain_link(link) for link in span.links],
        events=[_plain_event(event) for event in span.events],
        status=span.status.code,
        status_message=span.status.message,
        trace_state=span.trace_state,
        dropped_links=span.dropped_links_count,
        dropped_attributes=span.dropped_attributes_count,
        dropped_events=span.dropped_events_count,
        flags=span.flags & 0xFF or 1,  # the stock encoder leaves the flags out; only sampled spans get here
        parent_is_remote=bool(span.flags & 0x200),
    )
    readable = to_readable(plain, resource, scope)
    # OTLP's kinds are the SDK's plus one, with 0 for "unspecified".
    readable._kind = SpanKind(span.kind - 1) if span.kind else SpanKind.INTERNAL
    return readable


def _plain_link(link: Any) -> LinkData:
    trace_id, span_id = int.from_bytes(link.trace_id, "big"), int.from_bytes(link.span_id, "big")
    attributes, dropped = _plain_attributes(link.attributes), link.dropped_attributes_count
    return LinkData(trace_id, span_id, attributes, link.trace_state, link.flags & 0xFF, dropped)


def _plain_event(event: Any) -> EventData:
    attributes = _plain_attributes(event.attributes)
    return EventData(event.name, event.time_unix_nano, attributes, event.dropped_attributes_count)


def _plain_attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if which == "kvlist_value":
        return _plain_attributes(value.kvlist_value.values)
    return getattr(value, which)
