"""Span limits: how many attributes, events and links a span may have, and `clip`, which keeps it within them.

Applied here for every way out of the process, on the plain span. See the OpenTelemetry specification,
common/README.md "Attribute Limits" and trace/sdk.md "Span Limits".
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from opentelemetry.sdk.trace import SpanLimits

from .spandata import EventData, LinkData, SpanData

__all__ = ["NO_LIMITS", "Limits", "clip", "limits_of"]


class Limits(NamedTuple):
    """Span limits; None is no limit. Lengths are characters, of bytes bytes; of a list or a mapping they are those of
    its texts, each by itself, the keys of a mapping included. Keys of attributes have no limit."""

    attributes: int | None
    events: int | None
    links: int | None
    event_attributes: int | None
    link_attributes: int | None
    attribute_length: int | None
    """Of the values of a span's attributes."""
    inner_length: int | None
    """Of the values of its events' and links' attributes."""


NO_LIMITS = Limits(None, None, None, None, None, None, None)


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
    return _clip_inner(event, limits.event_attributes, limits.inner_length)


def _clip_link(link: LinkData, limits: Limits) -> LinkData:
    return _clip_inner(link, limits.link_attributes, limits.inner_length)


_Inner = TypeVar("_Inner", EventData, LinkData)


def _clip_inner(part: _Inner, count: int | None, length: int | None) -> _Inner:
    kept, dropped = _clip_attributes(part.attributes, count, length)
    if kept is part.attributes:
        return part
    return part._replace(attributes=kept, dropped_attributes=part.dropped_attributes + dropped)


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
    if isinstance(value, (str, bytes)):
        return value[:length]
    if isinstance(value, (tuple, list)):
        return [_cut(item, length) for item in value]
    if isinstance(value, dict):
        return {key[:length]: _cut(item, length) for key, item in value.items()}
    return value
