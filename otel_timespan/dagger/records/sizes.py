"""How many bytes a value takes: exactly where it says so, else a cheap estimate.

int and float count 8, bytes-like exactly, arrays and frames by their own `nbytes` (unknown when that raises),
containers by sampling, objects with their attributes (not: slots). Never raises, never walks a large value.
See docs/data.md.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

__all__ = ["FIXED", "approx_size"]

FIXED: dict[type, int] = {int: 8, float: 8, bool: 8, complex: 16, type(None): 8}
"""Types whose size is the same for each value."""

_SAMPLE = 16
_DEPTH = 3
_NO_DATA = (type, types.ModuleType, types.FunctionType, types.MethodType, functools.partial)


def approx_size(value: Any, _depth: int = _DEPTH) -> int | None:
    """Estimated bytes of `value`, None where it is unknown."""
    kind = type(value)
    fixed = FIXED.get(kind)
    if fixed is not None:
        return fixed
    sizer = _SIZERS.get(kind)
    try:
        if sizer is not None:
            return sizer(value, _depth)
        return _other(value, _depth)
    except Exception:  # a property of the user's class raised: the size is unknown, the value is fine
        return None


def _other(value: Any, depth: int) -> int | None:
    nbytes = getattr(value, "nbytes", None)
    if nbytes is not None:
        return int(nbytes)
    usage = getattr(type(value), "memory_usage", None)  # pandas; deep would walk every string
    if usage is not None:
        used = value.memory_usage()
        return int(used.sum() if hasattr(used, "sum") else used)
    if isinstance(value, int):
        return 8
    own = sys.getsizeof(value)
    fields = getattr(value, "__dict__", None) if type(value).__dictoffset__ and depth else None
    if type(fields) is not dict or isinstance(value, _NO_DATA):
        return own
    if len(fields) > _SAMPLE:
        return own + _elements(fields.values(), len(fields), depth)
    return own + sum(approx_size(field, depth - 1) or 0 for field in fields.values())


def _sequence(value: Any, depth: int) -> int:
    return sys.getsizeof(value) + _elements(value, len(value), depth)


def _mapping(value: Any, depth: int) -> int:
    return sys.getsizeof(value) + _elements(value, len(value), depth) + _elements(value.values(), len(value), depth)


def _elements(values: Iterable[Any], count: int, depth: int) -> int:
    """The mean of the first few, times their number."""
    if not count or not depth:
        return 0
    sizes = [approx_size(v, depth - 1) for v in islice(values, _SAMPLE)]
    known = [s for s in sizes if s is not None]
    return int(sum(known) / len(known) * count) if known else 0


def _length(value: Any, depth: int) -> int:
    return len(value)


def _text(value: Any, depth: int) -> int:
    return sys.getsizeof(value)


_SIZERS: dict[type, Callable[[Any, int], int]] = {
    bytes: _length,
    bytearray: _length,
    str: _text,
    list: _sequence,
    tuple: _sequence,
    set: _sequence,
    frozenset: _sequence,
    dict: _mapping,
}
