"""What `opentelemetry-instrument python program.py` calls: the log of the eager context, with no code change.

Found by the entry point `opentelemetry_instrumentor`. It has the interface of a `BaseInstrumentor`
and is none: that class is in a library which only this command needs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..dagger import eager_context
from ..otel.log import OTelLog
from ..timespans.sink import NoOpLog
from ..timespans.warn import warn_once

__all__ = ["OTelTimespanInstrumentor"]


class OTelTimespanInstrumentor:
    """Switches an `OTelLog` on where no sink was chosen, and off again. A sink that the program sets later wins.

    Idempotent. Never raises: what keeps the log from starting, such as a wrong variable, is logged.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """What has to be installed for it: nothing."""
        return ()

    def instrument(self, **options: Any) -> None:
        """Log the eager context to OpenTelemetry. The options are OpenTelemetry's and mean nothing here."""
        try:
            context = eager_context()
            if type(context.log_sink) is NoOpLog:
                context.log_sink = OTelLog()
        except Exception as error:
            warn_once(OTelTimespanInstrumentor, "the log of tasks is off: %s", error)

    def uninstrument(self, **options: Any) -> None:
        """Close that log."""
        context = eager_context()
        log = context.log_sink
        if type(log) is OTelLog:
            context.log_sink = NoOpLog()
            log.close()
