"""Taking secrets out of what leaves the process.

`redact(key, text)` is asked about every text that an `OTelLog` sends: it returns the text to send, or None to leave it
out. The key says what the text is:

* the key of the attribute, on spans, their events and links, on metrics and on the resource of a provider of ours; a
  value in a mapping goes by `key.inner`, bytes are asked about as text;
* `attribute.key`: a key itself, unless it is one of the catalogue's;
* `span.name`, `event.name`, `status.description`, `trace.state`;
* `log.message`, `log.exception`: a line, and the traceback below it, that this package logs.

Numbers aren't texts. Where `redact` raises or returns anything else, a mark stands instead of the text. Every way out
goes through `redacted` (spans), `redacted_attributes` (the resource), `redacted_text` (metrics) or `LineFilter`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ...timespans.warn import warn_once
from .. import semconv
from .spandata import SpanData
from .values import plain_text, plain_value

__all__ = ["REDACTED", "LineFilter", "Redact", "redacted", "redacted_attributes", "redacted_text"]

Redact = Callable[[str, str], str | None]
FAILED = "[redact failed]"
REDACTED = "[redacted]"
"""What has to be there, such as the name of a span."""

_OUR_KEYS = frozenset(attribute.key for attribute in semconv.ATTRIBUTES)
_LOGGERS = ("otel_timespan", "otel_timespan.events")


def redacted(redact: Redact, span: SpanData) -> SpanData:
    """The span as it may leave. Never raises, whatever `redact` does."""
    return span._replace(
        name=redacted_text(redact, "span.name", span.name) or REDACTED,
        attributes=redacted_attributes(redact, span.attributes),
        events=tuple(
            event._replace(
                name=redacted_text(redact, "event.name", event.name) or REDACTED,
                attributes=redacted_attributes(redact, event.attributes),
            )
            for event in span.events
        ),
        links=tuple(
            link._replace(
                attributes=redacted_attributes(redact, link.attributes),
                trace_state=_state(redact, link.trace_state),
            )
            for link in span.links
        ),
        status_message=redacted_text(redact, "status.description", span.status_message) or "",
        trace_state=_state(redact, span.trace_state),
    )


def redacted_attributes(redact: Redact, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes as they may leave. Never raises."""
    kept: dict[str, Any] = {}
    for key, value in attributes.items():
        shown = key if key in _OUR_KEYS else redacted_text(redact, "attribute.key", key)
        answer = _value(redact, key, value)
        if shown and answer is not None:
            kept[shown] = answer
    return kept


def redacted_text(redact: Redact, key: str, text: str) -> str | None:
    """What is to be sent instead of a text; None for nothing. Never raises."""
    if not text:
        return text
    try:
        answer = redact(key, text)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"raised {type(error).__name__}"
    else:
        if answer is None:
            return None
        if isinstance(answer, str):
            return plain_text(answer)
        reason = f"returned a {type(answer).__name__}, neither a text nor None"
    # One text without arguments, and no traceback: these would hold what must not be told.
    warn_once(redact, f"redact {reason}: what it is asked about then is not sent")
    return FAILED


def _value(redact: Redact, key: str, value: Any) -> Any:
    """A value as `values.plain_value` makes it; None to leave it out."""
    if isinstance(value, str):
        return redacted_text(redact, key, value)
    if isinstance(value, bytes):
        text = value.decode("utf-8", "backslashreplace")
        answer = redacted_text(redact, key, text)
        return value if answer == text else answer if answer is None else answer.encode()
    if isinstance(value, (tuple, list)):
        answers = [(item, _value(redact, key, item)) for item in value]
        return tuple(answer for item, answer in answers if answer is not None or item is None)
    if isinstance(value, dict):
        kept = {}
        for inner, item in value.items():
            shown, answer = redacted_text(redact, "attribute.key", inner), _value(redact, f"{key}.{inner}", item)
            if shown and (answer is not None or item is None):
                kept[shown] = answer
        return kept
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _value(redact, key, plain_value(value))  # nothing else should be here; its text is asked about all the same


def _state(redact: Redact, header: str) -> str:
    """A trace state has a grammar: it goes as it is, or not at all."""
    return header if not header or redacted_text(redact, "trace.state", header) == header else ""


class LineFilter(logging.Filter):
    """Asks `redact` about the lines of this package while it is installed. What is constant text is ours, and isn't."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def install(self) -> None:
        """On the loggers of this package; but not those of its debug traces, which are switched on by hand."""
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def remove(self) -> None:
        """The log is gone."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Never holds a line back; replaces its texts."""
        if record.args:
            try:
                text = record.getMessage()
            except Exception:  # an argument that can't be shown
                text = FAILED
            record.msg, record.args = redacted_text(self._redact, "log.message", text) or REDACTED, ()
        if record.exc_info or record.exc_text:
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
            record.exc_info, record.exc_text = None, redacted_text(self._redact, "log.exception", text) or REDACTED
        return True
