"""A finished span as the bridge hands it to its exporters: plain data, cheap to build.

`mapping.py` makes these from events, `wire.py` turns them into OTLP bytes, `readable.py` into the SDK's
`ReadableSpan` for exporters and processors that the user gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["ERROR", "OK", "UNSET", "AttributeValue", "EventData", "LinkData", "SpanData"]

AttributeValue = Any
"""None, bool, int, float, str, bytes, or a tuple or dict of these, as `values.plain_value` makes it."""

UNSET, OK, ERROR = 0, 1, 2
"""Status codes, OTLP's numbers."""


class LinkData(NamedTuple):
    """A link to another span. Ids are integers."""

    trace_id: int
    span_id: int
    attributes: Mapping[str, AttributeValue]
    trace_state: str = ""
    flags: int = 1
    dropped_attributes: int = 0


class EventData(NamedTuple):
    """A span event; `time_ns` is wall-clock nanoseconds since the epoch."""

    name: str
    time_ns: int
    attributes: Mapping[str, AttributeValue]
    dropped_attributes: int = 0


class SpanData(NamedTuple):
    """One finished span. Ids are integers (`parent_id` 0 for a root), times nanoseconds since the epoch."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    links: Sequence[LinkData] = ()
    events: Sequence[EventData] = ()
    status: int = UNSET
    status_message: str = ""
    trace_state: str = ""
    dropped_links: int = 0
    dropped_attributes: int = 0
    dropped_events: int = 0
    flags: int = 1
    parent_is_remote: bool = False
