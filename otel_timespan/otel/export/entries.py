"""What waits in the queue: how a finished span is encoded and measured, and how many become one request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from ..spans.limits import NO_LIMITS, Limits, clip
from ..spans.spandata import SpanData
from .accounts import Account
from .sizes import ENTRY_BYTES, readable_nbytes, span_nbytes
from .transport import Item, Request, Wrapped
from .wire import SPAN_TAG, Envelope, enclose, encode_readable, encode_span, envelope_of, framed, unframed

__all__ = [
    "Entry",
    "Packed",
    "by_account",
    "foreign_entry",
    "own_entry",
    "packed_entries",
    "request_of",
    "singles",
    "spans_in",
    "spillable",
]


class Packed(NamedTuple):
    """Spans of ours that were encoded together, as fields of a ScopeSpans message."""

    fields: bytes


class Entry(NamedTuple):
    """One span that waits (of `Packed` several), whose it is, and the memory that it takes."""

    item: Item
    nbytes: int
    account: Account
    is_root: bool = False
    spans: int = 1


_ORDINARY = 3
"""Spans of most tasks, with detail "phases"; those that moved something have more, and none has fewer."""


def packed_entries(packed: Sequence[bytes], count: int, account: Account, most: int) -> list[Entry]:
    """Of tasks' spans, `count` in all: some together, of no more than `most` bytes each."""
    each, rest = divmod(count, len(packed))
    alike = not rest and each in (1, _ORDINARY)
    entries = []
    step = max(1, most // (max(map(len, packed)) + 1))
    for start in range(0, len(packed), step):
        some = packed[start : start + step]
        fields = b"".join(some)
        spans = each * len(some) if alike else sum([1 for _ in unframed(fields)])
        entries.append(Entry(Packed(fields), len(fields) + ENTRY_BYTES, account, False, spans))
    return entries


def singles(entries: Sequence[Entry]) -> list[Entry]:
    """The same spans, one an entry."""
    apart: list[Entry] = []
    for entry in entries:
        if not isinstance(entry.item, Packed):
            apart.append(entry)
            continue
        left = entry.nbytes - len(entry.item.fields)
        for body, nbytes in unframed(entry.item.fields):
            apart.append(Entry(body, nbytes + left, entry.account))
            left = 0
    return apart


def own_entry(span: SpanData | Wrapped, account: Account, wire: bool, limits: Limits = NO_LIMITS) -> Entry:
    """Of a span of ours within the limits: as bytes where the transport takes these. A worker's come so."""
    if isinstance(span, Wrapped):
        return Entry(span, len(span.body) + ENTRY_BYTES, account)
    span = clip(span, limits)
    if wire:
        body = encode_span(span if span.parent_id else _without_own_links(span))
        return Entry(body, len(body) + ENTRY_BYTES, account, not span.parent_id)
    return Entry(span, span_nbytes(span), account, not span.parent_id)


def _without_own_links(root: SpanData) -> SpanData:
    """A root without links to its own trace: Jaeger's page, up to 2.13, takes a span's first reference for its parent.

    With such a root it shows nothing at all. The attributes of the root name the tasks that it links to.
    """
    links = tuple([link for link in root.links if link.trace_id != root.trace_id])
    return root._replace(links=links) if len(links) < len(root.links) else root


def foreign_entry(span: ReadableSpan, account: Account, wire: bool) -> Entry:
    """The same of a span that the SDK made. Raises what the span's own properties do."""
    if wire:
        body = encode_readable(span)
        return Entry(Wrapped(body, _envelope(span)), len(body) + ENTRY_BYTES, account)
    return Entry(span, readable_nbytes(span), account)


def spillable(item: Item) -> bytes:
    """What goes to disk of it: a body, or a `Request` where it has an envelope of its own."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, SpanData):
        return encode_span(item)
    wrapped = item if isinstance(item, Wrapped) else Wrapped(encode_readable(item), _envelope(item))
    return wrapped.request()


def request_of(items: Sequence[Item], envelope: Envelope) -> bytes:
    """The request of these; `envelope` is that of the bodies that have none."""
    fields: dict[Envelope, list[bytes]] = {}
    requests: list[bytes] = []
    for item in items:
        if isinstance(item, Request):
            requests.append(item)
        elif isinstance(item, Packed):
            fields.setdefault(envelope, []).append(item.fields)
        elif isinstance(item, Wrapped):
            fields.setdefault(item.envelope, []).append(framed(SPAN_TAG, item.body))
        else:
            fields.setdefault(envelope, []).append(framed(SPAN_TAG, item))
    # Requests that follow each other are one request to protobuf.
    return b"".join([enclose(group, one) for one, group in fields.items()] + requests)


_MOST_KNOWN = 64
_known: dict[tuple[int, int], tuple[Any, Any, Envelope]] = {}
"""By the identity of resource and scope, which are held here so that it stays theirs. Comparing them takes longer."""


def _envelope(span: ReadableSpan) -> Envelope:
    resource, scope = span.resource, span.instrumentation_scope
    known = _known.get((id(resource), id(scope)))
    if known is not None:
        return known[2]
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    envelope = envelope_of(resource, scope)
    _known[id(resource), id(scope)] = (resource, scope, envelope)
    return envelope


def by_account(entries: Sequence[Entry]) -> list[tuple[Account, int]]:
    """(account, number of its spans), for runs of the same."""
    runs: list[tuple[Account, int]] = []
    for account, group in groupby(entries, lambda entry: entry.account):
        runs.append((account, spans_in(group)))
    return runs


def spans_in(entries: Iterable[Entry]) -> int:
    """How many spans these entries are."""
    return sum([entry.spans for entry in entries])
