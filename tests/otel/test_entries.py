"""What waits for an exporter: a span of ours, as bytes or as it is."""

from __future__ import annotations

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_timespan.otel.export.accounts import Account
from otel_timespan.otel.export.entries import own_entry, packed_entries, singles
from otel_timespan.otel.export.wire import encode_span, framed
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


def test_packed_spans_are_counted_where_tasks_have_different_numbers_of_them() -> None:
    """Each entry knows how many spans it is, together they are all."""
    span = framed(b"\x12", encode_span(SpanData("name", 1, 3, 2, 1, 2, {})))
    packed = [span * 3, span * 5, span * 3, span * 4]
    entries = packed_entries(packed, 15, Account(), 2 * max(map(len, packed)))
    assert len(entries) > 1 and [entry.spans for entry in entries] == [len(singles([entry])) for entry in entries]
    assert sum(entry.spans for entry in entries) == 15
    assert [entry.spans for entry in packed_entries([span * 3] * 4, 12, Account(), 1 << 20)] == [12]
