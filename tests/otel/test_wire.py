"""The hand-made OTLP bytes say what the span says, and what the stock encoder would have said."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_timespan.otel.export import wire
from otel_timespan.otel.export.readable import readable_from_request, to_readable
from otel_timespan.otel.export.wire import encode_request, encode_span
from otel_timespan.otel.spans.spandata import ERROR, OK, UNSET, EventData, LinkData, SpanData

RESOURCE = Resource({"service.name": "test", "process.pid": 7}, "https://example.org/resource")
SCOPE = InstrumentationScope("otel_timespan", "1.2", "https://example.org/scope", {"flag": True})

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
_scalar = st.one_of(
    _text,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)
_array = st.one_of(*(st.lists(kind, max_size=3) for kind in (_text, st.booleans(), st.integers(-9, 9))))
_attributes = st.dictionaries(_text.filter(bool), st.one_of(_scalar, _array), max_size=6)
_u64, _id = st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1)
_trace_id, _count = st.integers(1, 2**128 - 1), st.integers(0, 2**32 - 1)
_state = st.sampled_from(["", "a=1", "a=1,b=2"])
_flags = st.integers(0, 3)

_spans = st.builds(
    SpanData,
    name=_text,
    trace_id=_trace_id,
    span_id=_id,
    parent_id=st.one_of(st.just(0), _id),
    start_ns=_u64,
    end_ns=_u64,
    attributes=_attributes,
    links=st.lists(st.builds(LinkData, _trace_id, _id, _attributes, _state, _flags, _count), max_size=2),
    events=st.lists(st.builds(EventData, _text, _u64, _attributes, _count), max_size=2),
    status=st.sampled_from([UNSET, OK, ERROR]),
    status_message=_text,
    trace_state=_state,
    dropped_links=_count,
    dropped_attributes=_count,
    dropped_events=_count,
    flags=_flags,
    parent_is_remote=st.booleans(),
).map(lambda span: span if span.status == ERROR else span._replace(status_message=""))


def _span(**fields: Any) -> SpanData:
    return SpanData("name", 1, 2, 0, 10, 20, fields.pop("attributes", {}), **fields)


def _parsed(span: SpanData) -> Span:
    return Span.FromString(encode_span(span))


@settings(max_examples=150, deadline=None)
@given(_spans)
@example(_span(attributes={"one": 1, "true": True, "float": 1.0}))
@example(_span(attributes={"one": True, "true": 1.0, "float": 1}))
def test_the_stock_encoder_says_the_same(span: SpanData) -> None:
    """Parsed back, a span equals what the stock encoder makes of its ReadableSpan, but for flags and link state."""
    stock = encode_spans([to_readable(span, RESOURCE, SCOPE)])
    ours = ExportTraceServiceRequest.FromString(encode_request([encode_span(span)], RESOURCE, SCOPE))
    made = ours.resource_spans[0].scope_spans[0].spans[0]
    assert made.flags & 0xFF == span.flags
    assert [link.trace_state for link in made.links] == [link.trace_state for link in span.links]
    made.flags &= ~0xFF
    for link in made.links:
        link.flags &= ~0xFF
        link.ClearField("trace_state")
    # Older encoders forget the scope's attributes and schema URL; the next test looks at ours.
    stock_part, our_part = stock.resource_spans[0].scope_spans[0], ours.resource_spans[0].scope_spans[0]
    stock_part.scope.CopyFrom(our_part.scope)
    stock_part.schema_url = our_part.schema_url
    assert ours == stock


@settings(max_examples=100, deadline=None)
@given(_spans)
def test_a_span_comes_back(span: SpanData) -> None:
    """What was encoded is read back as the same ReadableSpan: nothing is lost on the way to disk and back."""
    [back] = readable_from_request(encode_request([encode_span(span)], RESOURCE, SCOPE))
    there = to_readable(span, RESOURCE, SCOPE)
    assert back.to_json() == there.to_json()
    assert (back.dropped_attributes, back.dropped_events, back.dropped_links) == (
        there.dropped_attributes,
        there.dropped_events,
        there.dropped_links,
    )
    assert back.instrumentation_scope == there.instrumentation_scope


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.text() | st.integers() | st.floats() | st.binary() | st.complex_numbers(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
    )
)
def test_odd_values_do_not_raise(attributes: dict[str, Any]) -> None:
    """Any attribute value gives bytes that parse, with every key there."""
    assert len(_parsed(_span(attributes=attributes)).attributes) == len(attributes)


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\ud800b", "a?b"),
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (2j, "2j"),
        (_Broken(), "<unprintable _Broken>"),
        (10**5000, hex(10**5000)),
    ],
    ids=["surrogate", "large", "small", "complex", "broken", "huge"],
)
def test_what_otlp_can_not_hold_becomes_text(value: object, expected: str) -> None:
    """Surrogates are replaced, too large numbers and other types become their text."""
    [attribute] = _parsed(_span(attributes={"key": value})).attributes
    assert attribute.value.string_value == expected


def test_odd_names_do_not_raise() -> None:
    """A name, key or message with surrogates, or that is no text, is made one."""
    span = _span(status=ERROR, status_message="\udcff", events=[EventData("\ud800", 1, {"\ud800": 1})])
    made = _parsed(span._replace(name=3))  # type: ignore[arg-type]
    assert (made.name, made.status.message, made.events[0].name) == ("3", "?", "?")


def test_a_cycle_ends() -> None:
    """A list that contains itself is cut where it is too deep."""
    cycle: list[Any] = []
    cycle.append(cycle)
    assert "[...]" in str(_parsed(_span(attributes={"key": cycle})))


def test_equal_values_of_other_types_are_kept_apart() -> None:
    """1, 1.0 and True are equal to a dict, but not to OTLP: the caches keep them apart."""
    kinds = [
        _parsed(_span(attributes={"key": value})).attributes[0].value.WhichOneof("value")
        for value in (1, 1.0, True, 1, 1.0, True)
    ]
    assert kinds == ["int_value", "double_value", "bool_value"] * 2


def test_special_doubles() -> None:
    """NaN and the infinities travel as they are."""
    values = [math.nan, math.inf, -math.inf]
    made = [_parsed(_span(attributes={"key": value})).attributes[0].value.double_value for value in values]
    assert str(made) == str(values)


def test_ids_and_times_out_of_range_are_cut() -> None:
    """What has more bits than its field is cut to them."""
    made = _parsed(_span()._replace(span_id=2**64 + 5, start_ns=-1, parent_id=2**64 + 6))
    assert made.span_id == (5).to_bytes(8, "big")
    assert made.parent_span_id == (6).to_bytes(8, "big")
    assert made.start_time_unix_nano == 2**64 - 1


def test_the_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and values that never come twice do not stay."""
    monkeypatch.setattr(wire, "_CACHE_ENTRIES", 10)
    wire._names.clear()
    for number in range(1000):
        encode_span(_span()._replace(name=f"name {number}"))
        assert len(wire._names) <= 10


def test_requests_can_be_joined() -> None:
    """Two requests one after the other are one request with the parts of both."""
    one = encode_request([encode_span(_span())], RESOURCE, SCOPE)
    both = ExportTraceServiceRequest.FromString(one + one)
    assert [len(group.scope_spans[0].spans) for group in both.resource_spans] == [1, 1]
