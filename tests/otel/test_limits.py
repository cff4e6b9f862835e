"""Span limits hold for what is sent: lengths of every type, counts of links, events and attributes, told where cut."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.otel import OTelLog
from otel_timespan.otel.export.wire import encode_span
from otel_timespan.otel.spans.bodyspan import BodySpan
from otel_timespan.otel.spans.limits import NO_LIMITS, clip, limits_of
from otel_timespan.otel.spans.spandata import EventData, LinkData, SpanData
from otel_timespan.otel.spans.values import plain_attributes

LONG = "a" * 100
VALUES: dict[str, Any] = {
    "text": LONG,
    "bytes": LONG.encode(),
    "path": pathlib.PurePosixPath(LONG),
    "number": 10**100,
    "list": [LONG, [LONG], LONG.encode()],
    "mapping": {LONG: {"k": LONG}},
    "set": {LONG},
    "error": ValueError(LONG),
}
PLAIN, _ = plain_attributes(VALUES)


def longest(value: Any) -> int:
    """The longest text or bytes in a value, keys of mappings included."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return max(longest(part) for item in value.items() for part in item)
    return max(map(longest, value))


def test_lengths_hold_for_every_type() -> None:
    """Text, bytes, what became text, and all of these inside of lists and mappings."""
    events, links = [EventData("e", 1, PLAIN)], [LinkData(1, 2, PLAIN)]
    limits = NO_LIMITS._replace(attribute_length=16, inner_length=8)
    span = clip(SpanData("s", 1, 1, 0, 0, 1, PLAIN, links, events), limits)
    assert {key: longest(value) for key, value in span.attributes.items()} == dict.fromkeys(VALUES, 16)
    for part in (*span.events, *span.links):
        assert {key: longest(value) for key, value in part.attributes.items()} == dict.fromkeys(VALUES, 8)


def test_what_is_cut_off_events_and_links_is_counted() -> None:
    """Attributes beyond the limits, and those that were refused before, are told in OTLP."""
    attributes = {"a": 1, "b": 2, "c": 3}
    limits = NO_LIMITS._replace(event_attributes=1, link_attributes=2)
    span = clip(
        SpanData("s", 1, 1, 0, 0, 1, {}, [LinkData(1, 2, attributes)], [EventData("e", 1, attributes, 1)]), limits
    )
    sent = Span.FromString(encode_span(span))
    assert [event.dropped_attributes_count for event in sent.events] == [3]
    assert [link.dropped_attributes_count for link in sent.links] == [1]


def test_the_newest_events_of_the_user_stay() -> None:
    """As in the SDK; of links and attributes the first."""
    limits = NO_LIMITS._replace(events=2, links=1, attributes=1)
    body = BodySpan("compute", 1, 2, 3, 1, "", 0, limits)
    for i in range(5):
        body.add_event(f"e{i}")
        body.add_link(SpanContext(1, i + 1, False, TraceFlags(1)))
        body.set_attribute(f"k{i}", i)
    span = body.merged(SpanData("s", 1, 2, 3, 0, 1, {}))
    assert [event.name for event in span.events] == ["e3", "e4"] and span.dropped_events == 3
    assert [link.span_id for link in span.links] == [1] and span.dropped_links == 4
    assert span.attributes == {"k0": 0} and span.dropped_attributes == 4


def odd() -> None:
    """A body that hands its span much."""
    current = trace.get_current_span()
    current.set_attributes(VALUES)
    for i in range(5):
        current.add_event(f"e{i}", VALUES)


def many(*upstreams: int) -> int:
    """A body with upstreams."""
    return len(upstreams)


def spans_of_a_run(**options: Any) -> dict[str, Any]:
    """Body and dependents under these options: the spans by name."""
    context = D.eager_context()
    context.log_sink = log = OTelLog(metrics=False, **options)
    try:
        D.fetch(D.spawn(odd))
        assert D.fetch(D.spawn(many, *[D.spawn(len, "abc") for _ in range(150)])) == 150
        assert log.flush()
    finally:
        context.log_sink = T.NoOpLog()
        log.close()
    exporter = options.get("span_exporter")
    if exporter is None:
        (processor,) = options["tracer_provider"]._active_span_processor._span_processors
        exporter = processor.span_exporter
    spans = exporter.get_finished_spans()
    body = next(span for span in spans if span.name == "compute" and span.events)
    return {"odd": body, "many": next(span for span in spans if span.name == "many")}


def test_limits_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """All OTEL_*_LIMIT variables hold, above the defaults too."""
    for name, limit in (
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", 32),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", 16),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", 1000),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", 2),
        ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", 3),
        ("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", 1),
    ):
        monkeypatch.setenv(name, str(limit))
    spans = spans_of_a_run(span_exporter=InMemorySpanExporter())
    assert max(longest(spans["odd"].attributes[key]) for key in VALUES) == 16
    assert [event.name for event in spans["odd"].events] == ["e3", "e4"]
    assert all(len(event.attributes) == 3 and event.dropped_attributes == 5 for event in spans["odd"].events)
    assert max(longest(value) for event in spans["odd"].events for value in event.attributes.values()) == 32
    assert len(spans["many"].links) == 150 and not spans["many"].dropped_links
    assert all(len(link.attributes) == 1 for link in spans["many"].links)


@pytest.mark.parametrize(("links", "kept"), [(3, 3), (SpanLimits.UNSET, 150), (0, 0)])
def test_limits_of_a_provider(links: int, kept: int) -> None:
    """Those of a provider's `SpanLimits` go before the variables and our defaults; UNSET is none."""
    limits = SpanLimits(max_links=links, max_events=1, max_attribute_length=4)
    provider = TracerProvider(shutdown_on_exit=False, span_limits=limits)
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    spans = spans_of_a_run(tracer_provider=provider)
    assert len(spans["many"].links) == kept and spans["many"].dropped_links == 150 - kept
    assert [event.name for event in spans["odd"].events] == ["e4"]
    assert max(longest(spans["odd"].attributes[key]) for key in VALUES) == 4
    assert limits_of(limits).links == (None if links == SpanLimits.UNSET else links)
