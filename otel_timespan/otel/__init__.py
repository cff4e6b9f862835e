"""The OpenTelemetry bridge: events become spans and metrics. See docs/otel-catalogue.md for every name.

Where things live; each may import only what stands above it:

    semconv    the one catalogue of names
    spans/     from events to finished spans, without sending any
    export/    from finished spans to the wire, with an account of each; metrics by OTLP; the end of the process
    setup      which providers to use, or to set up
    metrics/   counts, durations and the consumers' gauges become instruments; `OTelAggregator`
    backend    what one log sends through
    dags       `dag`
    log        `OTelLog`, which joins all these
    replay     `replay`: spans of a saved log
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from .. import forks

if TYPE_CHECKING:
    from .dags import dag
    from .log import OTelLog
    from .metrics.aggregator import OTelAggregator
    from .replay import replay
    from .semconv import catalogue
    from .setup import setup

__all__ = ["OTelAggregator", "OTelLog", "catalogue", "dag", "replay", "setup"]

_HOMES = {
    "OTelAggregator": ".metrics.aggregator",
    "OTelLog": ".log",
    "catalogue": ".semconv",
    "dag": ".dags",
    "replay": ".replay",
    "setup": ".setup",
}


if not TYPE_CHECKING:  # to them it would mean that any name is there

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with forks.held_off:
            value = getattr(importlib.import_module(home, __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(types.ModuleType):
    """Importing the files setup.py and replay.py would hide the functions of these names: it does not."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
