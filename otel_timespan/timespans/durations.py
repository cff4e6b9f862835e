"""Times that programs give: what counts as a number of seconds, said in one place; and one limit for several waits."""

from __future__ import annotations

import math
import reprlib
import time

from ..errors import InvalidOptionError

__all__ = ["LONGEST_S", "Deadline", "as_number", "seconds"]

LONGEST_S = 1e9
"""What a lock can wait at most, about 30 years: whoever wants more waits so long."""


def as_number(value: object) -> float | None:
    """Any real number as a float, beyond its range as infinite; None for all else: nan, texts, flags, arrays, ...

    A number is what its type says: Python's, numpy's of any width, `Fraction`, `Decimal`, an array without axes.
    """
    if isinstance(value, (str, bytes, bytearray)) or type(value).__name__ in ("bool", "bool_"):
        return None
    try:
        found = float(value) if getattr(value, "ndim", 0) == 0 else math.nan  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except Exception:  # whatever a foreign type makes of it
        return None
    return None if math.isnan(found) else found


def seconds(value: object, name: str = "timeout") -> float:
    """How long to wait, between 0 and `LONGEST_S`; below zero is at once, as everywhere in Python.

    Raises `InvalidOptionError` for what is no number.
    """
    number = as_number(value)
    if number is None:
        raise InvalidOptionError(f"{name} must be a number of seconds or None, not {reprlib.repr(value)}")
    return min(max(number, 0.0), LONGEST_S)


class Deadline:
    """The end of a time limit that begins now. Raises `InvalidOptionError` for what is no number of seconds."""

    __slots__ = ("_end", "seconds")

    def __init__(self, limit: object, name: str = "timeout") -> None:
        self.seconds = seconds(limit, name)
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds that are left, 0 when it is over."""
        return max(0.0, self._end - time.monotonic())
