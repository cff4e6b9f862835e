"""What the collector's Prometheus exporter makes of our names; test_names.py compares it with the real one."""

from __future__ import annotations

from otel_timespan.otel.semconv import Instrument

_UNITS = {"By": "bytes", "s": "seconds"}


def label_name(attribute: str) -> str:
    """The label of an attribute."""
    return attribute.replace(".", "_")


def metric_name(instrument: Instrument) -> str:
    """The metric of an instrument, as its `# TYPE` line of a classic exposition calls it."""
    name = label_name(instrument.name)
    unit = _UNITS.get(instrument.unit, "")
    if unit and not _says(name, unit):
        name += f"_{unit}"
    if instrument.unit == "1" and instrument.kind == "gauge":
        name += "_ratio"
    return name + ("_total" if instrument.kind == "counter" else "")


def series_names(instrument: Instrument) -> list[str]:
    """The names of its series."""
    name = metric_name(instrument)
    return [f"{name}_{part}" for part in ("bucket", "count", "sum")] if instrument.kind == "histogram" else [name]


def _says(name: str, unit: str) -> bool:
    return unit in name.split("_")
