"""What waits for an exporter: a span of ours, as bytes or as it is."""

from __future__ import annotations

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_timespan.otel.export.accounts import Account
from otel_timespan.otel.export.entries import own_entry
from otel_timespan.otel.spans.spandata import LinkData, SpanData

LINKS = (LinkData(1, 5, {"to": "its own trace"}), LinkData(2, 6, {"to": "another"}))


def links_of(parent_id: int) -> list[int]:
    """The spans that a span of trace 1 links to over OTLP."""
    body = own_entry(SpanData("name", 1, 3, parent_id, 1, 2, {}, LINKS), Account(), True).item
    assert isinstance(body, bytes)
    return [int.from_bytes(link.span_id, "big") for link in Span.FromString(body).links]


def test_the_root_of_a_trace_has_no_links_to_it_over_otlp() -> None:
    """Jaeger's page would take the first of them for its parent, and stay blank; others have all of theirs."""
    assert links_of(0) == [6]
    assert links_of(4) == [5, 6]
    root = SpanData("name", 1, 3, 0, 1, 2, {}, LINKS)
    assert own_entry(root, Account(), False).item is root
