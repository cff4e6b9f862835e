"""The trace context and the baggage of the code around a `spawn` go along to worker processes.

In the words of the propagators that the program configured (`OTEL_PROPAGATORS`, `set_global_textmap`), as to any other
service. `dagger/service/surroundings.py` loads this where OpenTelemetry is there already.
"""

from __future__ import annotations

from opentelemetry import context, propagate

from ..dagger.service.surroundings import Traveller, travellers

__all__: list[str] = []


def _leave() -> dict[str, str] | None:
    if not context.get_current():
        return None
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier or None


def _arrive(carrier: dict[str, str]) -> None:
    context.attach(propagate.extract(carrier))


travellers["opentelemetry"] = Traveller(_leave, _arrive)
