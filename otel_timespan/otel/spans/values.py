"""Whatever users hand a span, made plain once, when it is handed over: `plain_value`, `plain_attributes`, `plain_text`.

The problem: an attribute may be any object, and whoever reads it later (redaction, limits, three encoders, the user's
own exporters) meets what its methods do: a list changes, a lazy sequence raises, a `str()` differs. So all values are
copied here to None, bool, int, float, str, bytes, tuples and dicts of these, of exactly these types. Nothing raises:
what can't be read becomes a text that says so, and costs itself only.

What becomes what is the SDK's choice (`opentelemetry.attributes`), with these exceptions: an int that 64 bits don't
hold becomes its digits (the SDK's encoder refuses the span), a float that isn't finite its text (Jaeger's page answers
with an error for a whole trace with a NaN in it), lone surrogates become "?" (texts travel as UTF-8), numbers of numpy
are numbers, and bytearrays and memoryviews are bytes.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ...timespans.texts import text_of
from ...timespans.warn import warn_once

__all__ = ["plain_attributes", "plain_int", "plain_pairs", "plain_text", "plain_value"]

MAX_ITEMS = 100_000
"""Items that are kept of one value, nested ones included: a sequence may have no end."""

MAX_DEPTH = 8
"""Nesting that is kept; what lies deeper (a cycle?) becomes text."""
_BAD_KEY = "the key of an attribute is a text that isn't empty; one of type %s is refused"


def plain_text(value: Any) -> str:
    """Any object as a text that UTF-8 can hold, of exactly the type `str`. Never raises."""
    text = text_of(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def plain_value(value: Any) -> Any:
    """The value of an attribute as a copy that nobody changes any more. Never raises; see the module."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else plain_text(value)
    if kind is bool or (kind is int and -(1 << 63) <= value < 1 << 63):
        return value
    try:
        return _Copy().of(value, 0)
    except KeyboardInterrupt:
        raise
    except BaseException:  # its __iter__, __len__, items(), __class__, ...
        return _unreadable(value)


def plain_attributes(attributes: Any) -> tuple[dict[str, Any], int]:
    """The attributes of a mapping (or None) with plain values, and how many were refused. Never raises."""
    if attributes is None:
        return {}, 0
    try:
        pairs = _pairs(attributes) if isinstance(attributes, Mapping) else None
    except Exception:  # its items(), or what it says of its class
        pairs = None
    if pairs is None:
        warn_once(("attributes", type(attributes)), "attributes are a mapping, not a %s", type(attributes).__name__)
        return {}, 0
    return plain_pairs(pairs)


def plain_pairs(pairs: Iterable[tuple[Any, Any]]) -> tuple[dict[str, Any], int]:
    """As `plain_attributes`, of (key, value).

    As in the SDK a key is a text that isn't empty, others are refused with a warning; a value of None is left out.
    """
    kept: dict[str, Any] = {}
    refused = 0
    for key, value in pairs:
        text = plain_text(key) if isinstance(key, str) else ""
        if not text:
            refused += 1
            warn_once(("key", type(key)), _BAD_KEY, type(key).__name__)
        elif value is not None:
            kept[text] = plain_value(value)
    return kept, refused


def plain_int(value: Any) -> int | None:
    """A whole number, of exactly the type int; None for anything else, and for what isn't finite. Never raises."""
    try:
        if isinstance(value, numbers.Integral):
            return int.__index__(int(value))
        if isinstance(value, numbers.Real):
            return int(float(value))
    except Exception:  # an infinity, or a number of the user's
        return None
    return None


class _Copy:
    """One value on its way: counts what was copied of it."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def of(self, value: Any, depth: int) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return plain_text(value)
        if isinstance(value, int):
            return _in_64_bits(int.__index__(value))
        if isinstance(value, float):
            return float.__float__(value) if math.isfinite(value) else float.__repr__(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if _is_number_of_numpy(value):
            return self.of(value.item(), depth)
        if depth < MAX_DEPTH and isinstance(value, Sequence):
            return self._items(value, depth)
        if depth < MAX_DEPTH and isinstance(value, Mapping):
            return self._entries(value, depth)
        return plain_text(value)

    def _items(self, value: Any, depth: int) -> tuple[Any, ...]:
        kept = []
        for item in value:
            if not self._has_room():
                break
            kept.append(self.of(item, depth + 1))
        return tuple(kept)

    def _entries(self, value: Any, depth: int) -> dict[str, Any]:
        kept = {}
        for key, item in _pairs(value):
            if not self._has_room():
                break
            text = plain_text(key)
            if text:
                kept[text] = self.of(item, depth + 1)
        return kept

    def _has_room(self) -> bool:
        self._left -= 1
        if self._left < 0:
            warn_once(("items", MAX_ITEMS), "of the value of an attribute the first %d items are kept", MAX_ITEMS)
        return self._left >= 0


def _pairs(mapping: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return list(mapping.items() if type(mapping) is dict else islice(mapping.items(), MAX_ITEMS))


def _in_64_bits(value: int) -> int | str:
    if -(1 << 63) <= value < 1 << 63:
        return value
    try:
        return str(value)
    except ValueError:  # more digits than sys.set_int_max_str_digits allows
        return hex(value)


def _is_number_of_numpy(value: Any) -> bool:
    """A scalar (or an array without dimensions) of numpy that is a bool, an int or a float; numpy isn't loaded."""
    if type(value).__module__.partition(".")[0] != "numpy":
        return False
    return getattr(value, "shape", None) == () and getattr(value.dtype, "kind", "") in "biuf"


def _unreadable(value: Any) -> str:
    return f"<unreadable {type(value).__name__}>"
