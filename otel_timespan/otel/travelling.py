"""The context of OpenTelemetry goes along to other processes, and back: the current span and the baggage.

By the propagators that the program configured. Loaded by `dagger/service/surroundings.py` once `opentelemetry` is.
Contexts never change, so that what was written of one is remembered, and so is what came of it: most tasks have the
context of the task before.

See docs/workers.md.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context

from .spans.bodyspan import BodySpan

__all__ = ["arrive", "leave"]

_MOST_KNOWN = 256

_left: tuple[Any, Any] = (None, None)
_arrived: dict[tuple[Any, ...], Any] = {}


def leave() -> dict[str, str] | None:
    """What the propagators write of the current context; None for nothing."""
    global _left
    context = otel_context.get_current()
    if not context:
        return None
    known, carrier = _left
    if known is not context:
        span = get_current_span(context)
        told = context
        if isinstance(span, BodySpan):  # not by its public method: nobody looks at it here
            told = set_span_in_context(NonRecordingSpan(span.own_context()), context)
        carrier = {}
        propagate.inject(carrier, told)
        _left = (context, carrier)
    return carrier or None


def arrive(carrier: dict[str, str]) -> None:
    """Make what came the current context, in the `contextvars` context that this is called in."""
    key = tuple(carrier.items())
    context = _arrived.get(key)
    if context is None:
        if len(_arrived) >= _MOST_KNOWN:
            _arrived.clear()
        context = _arrived[key] = propagate.extract(carrier, otel_context.Context())
    otel_context.attach(context)
