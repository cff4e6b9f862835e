"""What waits in the queue: how a finished span is encoded and measured, and how many become one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from ..spans.spandata import SpanData
from .accounts import Account
from .sizes import ENTRY_BYTES, readable_nbytes, span_nbytes
from .transport import Item, Request, Wrapped
from .wire import Envelope, enclose, encode_readable, encode_span, envelope_of

__all__ = ["Entry", "foreign_entry", "own_entry", "request_of", "spillable"]


class Entry(NamedTuple):
    """One span that waits, whose it is, and the memory that it takes."""

    item: Item
    nbytes: int
    account: Account
    is_root: bool = False


def own_entry(span: SpanData, account: Account, wire: bool) -> Entry:
    """Of a span of ours: as bytes where the transport takes these."""
    if wire:
        body = encode_span(span)
        return Entry(body, len(body) + ENTRY_BYTES, account, not span.parent_id)
    return Entry(span, span_nbytes(span), account, not span.parent_id)


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
    bodies: dict[Envelope, list[bytes]] = {}
    requests: list[bytes] = []
    for item in items:
        if isinstance(item, Request):
            requests.append(item)
        elif isinstance(item, Wrapped):
            bodies.setdefault(item.envelope, []).append(item.body)
        else:
            bodies.setdefault(envelope, []).append(item)
    # Requests that follow each other are one request to protobuf.
    return b"".join([enclose(group, one) for one, group in bodies.items()] + requests)


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
