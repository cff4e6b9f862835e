"""What a span takes in memory while it waits as an object, about: its contents count, whatever users put in.

Measured with CPython 3.11: what surrounds the contents is the same for all spans, so that it is a constant here. No
code of users runs: sizes of their own classes are those of what they derive from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from ..spans.spandata import SpanData

__all__ = ["ENTRY_BYTES", "readable_nbytes", "span_nbytes"]

ENTRY_BYTES = 160
"""What the queue adds to the bytes of an encoded span: the entry, its place, the object around the bytes."""

_SPAN, _READABLE, _ATTRIBUTE, _EVENT, _LINK = 450, 2800, 90, 550, 650
_DEEPEST = 8


def span_nbytes(span: SpanData) -> int:
    """Of a span that was not encoded."""
    size = ENTRY_BYTES + _SPAN + _held(span.name) + _held(span.status_message) + _attributes(span.attributes)
    for event in span.events:
        size += _EVENT + _held(event.name) + _attributes(event.attributes)
    for link in span.links:
        size += _LINK + _held(link.trace_state) + _attributes(link.attributes)
    return size


def readable_nbytes(span: ReadableSpan) -> int:
    """Of a span that the SDK made."""
    size = ENTRY_BYTES + _READABLE + _held(span.name) + _held(span.status.description)
    size += _attributes(span.attributes or {})
    for event in span.events:
        size += _EVENT + _held(event.name) + _attributes(event.attributes or {})
    for link in span.links:
        size += _LINK + _attributes(link.attributes or {})
    return size


def _attributes(attributes: Mapping[str, Any]) -> int:
    size = 0
    for key, value in attributes.items():
        size += _ATTRIBUTE + _held(value)
        if len(key) > 64:  # shorter ones are rarely made for one span
            size += _held(key)
    return size


def _held(value: Any, depth: int = 0) -> int:
    kind = type(value)
    if kind is float or kind is bool or value is None:
        return 0  # counted with the attribute
    if isinstance(value, str):
        return str.__sizeof__(value)
    if isinstance(value, int):
        return int.__sizeof__(value)
    if isinstance(value, (bytes, bytearray)):
        return len(value) + 50
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return 64 + sum([32 + _held(item, depth + 1) for item in tuple(value)])
    if depth < _DEEPEST and isinstance(value, dict):
        pairs = dict.items(value)
        return 232 + sum([100 + _held(key, depth + 1) + _held(item, depth + 1) for key, item in pairs])
    return 1000
