"""Times and sizes for people."""

from __future__ import annotations

__all__ = ["pretty_bytes", "pretty_count", "pretty_time"]


def pretty_time(ns: float, digits: int = 3) -> str:
    """Nanoseconds as text: `"1000 ns"`, `"1.001 us"`, `"2.5 s"`.

    A unit is used from *more* than one of it on; the number is rounded to `digits` decimals.
    """
    size = abs(ns)
    for unit, factor in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if size > factor:
            return f"{_number(ns / factor, digits)} {unit}"
    return f"{_number(ns, digits)} ns"


def pretty_bytes(nbytes: float, digits: int = 3) -> str:
    """Bytes as text, by powers of 1024: `"512 B"`, `"1 KiB"`, `"1.5 MiB"`, `"2 GiB"`."""
    size = abs(nbytes)
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{_number(nbytes / factor, digits)} {unit}"
    return f"{_number(nbytes, digits)} B"


def pretty_count(count: float, digits: int = 3) -> str:
    """A plain number, rounded to a whole one: `"12,345"`."""
    return f"{round(count):,}"


def _number(value: float, digits: int) -> str:
    text = f"{value:.{max(0, digits)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
