"""The trace context and the baggage of the code around a `spawn` go along to worker processes.

In the words of the propagators that the program configured (`OTEL_PROPAGATORS`, `set_global_textmap`), as to any other
service. `dagger/service/surroundings.py` loads this where OpenTelemetry is there already.
"""

from __future__ import annotations

from opentelemetry import context, propagate

__all__ = ["arrive", "leave"]


def leave() -> dict[str, str] | None:
    """What goes along from the code that spawns; None for nothing."""
    if not context.get_current():
        return None
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier or None


def arrive(carrier: dict[str, str]) -> None:
    """Make it the context of the code that this is called in."""
    context.attach(propagate.extract(carrier))
