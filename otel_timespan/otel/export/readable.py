"""`SpanData` and OTLP bytes to the SDK's `ReadableSpan`, for exporters and processors that the user gave.

Span limits are applied here for every way out: `clip` on the plain span. Source: the OpenTelemetry
specification, common/README.md "Attribute Limits" and trace/sdk.md "Span Limits".
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from ..spans.spandata import EventData, LinkData, SpanData

__all__ = ["Limits", "clip", "limits_of", "readable_from_request", "to_readable"]

_STATUS = (StatusCode.UNSET, StatusCode.OK, StatusCode.ERROR)


class Limits(NamedTuple):
    """Span limits; None is no limit. Lengths are characters."""

    attributes: int | None
    events: int | None
    links: int | None
    event_attributes: int | None
    link_attributes: int | None
    attribute_length: int | None
    """Of the texts in a span's attributes."""
    inner_length: int | None
    """Of the texts in the attributes of its events and links."""


def limits_of(limits: SpanLimits | None = None) -> Limits:
    """The limits of a provider, by default those of the OTEL_*_LIMIT variables."""
    limits = limits or SpanLimits()
    return Limits(
        limits.max_span_attributes,
        limits.max_events,
        limits.max_links,
        limits.max_event_attributes,
        limits.max_link_attributes,
        limits.max_span_attribute_length,
        limits.max_attribute_length,
    )


def clip(span: SpanData, limits: Limits) -> SpanData:
    """The span within the limits, with what went counted; the very same object where nothing is beyond them.

    The first attributes and links stay, for the mapping puts the telling ones first; of the events the newest, as
    the SDK does: the exception that ended a body comes last.
    """
    few = limits.attributes is None or len(span.attributes) <= limits.attributes
    if few and not span.events and not span.links and limits.attribute_length is None:
        return span  # nearly all of them
    changed: dict[str, Any] = {}
    attributes, dropped = _clip_attributes(span.attributes, limits.attributes, limits.attribute_length)
    if attributes is not span.attributes:
        changed.update(attributes=attributes, dropped_attributes=span.dropped_attributes + dropped)
    events = [_clip_event(event, limits) for event in _newest(span.events, limits.events)]
    if not _same(events, span.events):
        changed.update(events=events, dropped_events=span.dropped_events + len(span.events) - len(events))
    links = [_clip_link(link, limits) for link in span.links[: limits.links]]
    if not _same(links, span.links):
        changed.update(links=links, dropped_links=span.dropped_links + len(span.links) - len(links))
    return span._replace(**changed) if changed else span


def _newest(events: Sequence[EventData], most: int | None) -> Sequence[EventData]:
    return events if most is None or len(events) <= most else events[len(events) - most :]


def _same(kept: Sequence[Any], given: Sequence[Any]) -> bool:
    return len(kept) == len(given) and all(map(operator.is_, kept, given))


def _clip_event(event: EventData, limits: Limits) -> EventData:
    kept, _ = _clip_attributes(event.attributes, limits.event_attributes, limits.inner_length)
    return event if kept is event.attributes else event._replace(attributes=kept)


def _clip_link(link: LinkData, limits: Limits) -> LinkData:
    kept, _ = _clip_attributes(link.attributes, limits.link_attributes, limits.inner_length)
    return link if kept is link.attributes else link._replace(attributes=kept)


def _clip_attributes(
    attributes: Mapping[str, Any], count: int | None, length: int | None
) -> tuple[Mapping[str, Any], int]:
    dropped = 0
    if count is not None and len(attributes) > count:
        dropped = len(attributes) - count
        attributes = dict(list(attributes.items())[:count])
    if length is not None:
        attributes = {key: _cut(value, length) for key, value in attributes.items()}
    return attributes, dropped


def _cut(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_cut(item, length) for item in value]
    return value


def to_readable(span: SpanData, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """The SDK's view of a span. Apply `clip` before. About 15 µs."""
    flags = TraceFlags(span.flags & 0xFF)
    parent = None
    if span.parent_id:
        parent = SpanContext(span.trace_id, span.parent_id, span.parent_is_remote, flags)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(span.trace_id, span.span_id, False, flags, _trace_state(span.trace_state)),
        parent=parent,
        resource=resource,
        attributes=_attributes(span.attributes, span.dropped_attributes),
        events=_bounded([_event(e) for e in span.events], span.dropped_events),
        links=_bounded([_link(link) for link in span.links], span.dropped_links),
        kind=SpanKind.INTERNAL,
        status=_status(span.status, span.status_message),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=scope,
    )


def _status(code: int, message: str) -> Status:
    # A message is for errors only: the SDK logs a warning about any other.
    return Status(_STATUS[code], message or None) if code == 2 else Status(_STATUS[code])


def _attributes(attributes: Mapping[str, Any], dropped: int = 0) -> BoundedAttributes:
    bounded = BoundedAttributes(None, attributes, immutable=True)
    bounded.dropped += dropped
    return bounded


def _bounded(items: list[Any], dropped: int) -> BoundedList[Any]:
    bounded: BoundedList[Any] = BoundedList.from_seq(None, items)
    bounded.dropped += dropped
    return bounded


def _event(event: EventData) -> Event:
    return Event(event.name, _attributes(event.attributes), event.time_ns)


def _link(link: LinkData) -> Link:
    state = _trace_state(link.trace_state)
    context = SpanContext(link.trace_id, link.span_id, False, TraceFlags(link.flags & 0xFF), state)
    return Link(context, _attributes(link.attributes))


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
        events=[EventData(e.name, e.time_unix_nano, _plain_attributes(e.attributes)) for e in span.events],
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
    return LinkData(trace_id, span_id, _plain_attributes(link.attributes), link.trace_state, link.flags & 0xFF)


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
