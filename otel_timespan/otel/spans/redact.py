"""Taking secrets out of what leaves the process.

`redact(key, text)` is asked about every text in the attributes of a span, its events and links, and about
the status message (key `status.description`) and the span's name (key `span.name`): it returns the text
to send, or None to leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...timespans.warn import warn_once
from .spandata import SpanData

__all__ = ["Redact", "redacted"]

Redact = Callable[[str, str], str | None]
FAILED = "[redact failed]"
REDACTED = "[redacted]"
"""A span must have a name."""


def redacted(redact: Redact, span: SpanData) -> SpanData:
    """The span as it may leave. Where `redact` raises, a mark stands instead of the text."""
    message = _ask(redact, "status.description", span.status_message) if span.status_message else ""
    return span._replace(
        name=_ask(redact, "span.name", span.name) or REDACTED,
        attributes=_attributes(redact, span.attributes),
        events=tuple(e._replace(attributes=_attributes(redact, e.attributes)) for e in span.events),
        links=tuple(link._replace(attributes=_attributes(redact, link.attributes)) for link in span.links),
        status_message=message or "",
    )


def _attributes(redact: Redact, attributes: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in attributes.items():
        if isinstance(value, str):
            text = _ask(redact, key, value)
            if text is not None:
                kept[key] = text
        elif isinstance(value, (list, tuple)) and any(isinstance(item, str) for item in value):
            texts = [_ask(redact, key, item) if isinstance(item, str) else item for item in value]
            kept[key] = [text for text in texts if text is not None]
        else:
            kept[key] = value
    return kept


def _ask(redact: Redact, key: str, text: str) -> str | None:
    try:
        answer = redact(key, text)
    except Exception:
        warn_once(redact, "redact(%r, ...) raised; the text is not sent", key)
        return FAILED
    return answer if answer is None or isinstance(answer, str) else FAILED
