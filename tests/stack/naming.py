"""What Prometheus calls our metrics; test_names.py compares it with the real one, on both ways."""

from __future__ import annotations

from otel_timespan.otel.export.promnames import label_name
from otel_timespan.otel.export.promnames import metric_name as translated
from otel_timespan.otel.semconv import Instrument

__all__ = ["label_name", "metric_name", "series_names"]


def metric_name(instrument: Instrument) -> str:
    """The metric of an instrument, as its `# TYPE` line of a classic exposition calls it."""
    kind = "gauge" if instrument.kind == "updown" else instrument.kind
    return translated(instrument.name, instrument.unit, kind)


def series_names(instrument: Instrument) -> list[str]:
    """The names of its series."""
    name = metric_name(instrument)
    return [f"{name}_{part}" for part in ("bucket", "count", "sum")] if instrument.kind == "histogram" else [name]
