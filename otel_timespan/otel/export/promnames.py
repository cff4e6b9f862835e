"""How Prometheus calls metrics and labels, whichever way they come: one translation, the collector's.

The pull endpoint (pull.py) translates by it, the collector's Prometheus exporter does the same in Go, and dashboards,
alerts and tests are written in the names that come out (tests/stack compares both ways with the real programs).
"""

from __future__ import annotations

import re

__all__ = ["label_name", "metric_name"]

_UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius",
    "Hz": "hertz", "%": "percent",
}  # fmt: skip
_PER = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


def label_name(attribute: str) -> str:
    """The label of an attribute: service.name becomes service_name."""
    name = re.sub(r"\W", "_", attribute, flags=re.ASCII) or "_"
    return f"key_{name}" if name[0].isdigit() else name


def metric_name(name: str, unit: str, kind: str) -> str:
    """The metric of an instrument; `kind` is "counter", "gauge" (also for sums that may fall) or "histogram"."""
    words = [word for word in re.split(r"[^a-zA-Z0-9:]+", name) if word]
    main, _, per = re.sub(r"\{[^}]*\}", "", unit).partition("/")
    for word in (_UNITS.get(main, main), f"per_{_PER.get(per, per)}" if per else ""):
        if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", word) and word not in words:
            words.append(word)
    ending = {"counter": "total", "gauge": "ratio" if unit == "1" else ""}.get(kind, "")
    words = [*(word for word in words if word != ending), ending] if ending else words
    translated = "_".join(words)
    return f"_{translated}" if translated[:1].isdigit() else translated
