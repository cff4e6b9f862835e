"""Which values may be written to a file and read back: not those that refer to something of this process.

A task, a chunk or a raw pointer means nothing, or something else, once it was pickled: a value that holds
one stays in memory. The walk looks into containers, arrays of objects and the fields of objects, as far as
`LIMIT` values; what it does not reach is refused by pickle later, and then stays in memory, too.

See docs/data.md.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import types
from _ctypes import CFuncPtr
from collections.abc import Iterator
from itertools import islice
from typing import Any

from .bound import bound_types

__all__ = ["LIMIT", "storage_safe"]

LIMIT = 10_000
"""How many values the walk looks at."""

_LEAVES = frozenset(
    (int, float, complex, bool, str, bytes, bytearray, type(None), range, slice, type, types.ModuleType)
) | {types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType}
_CONTAINERS = (list, tuple, set, frozenset, collections.deque)


def storage_safe(value: Any) -> bool:
    """Whether a value may leave memory, as far as can be told. Never raises."""
    try:
        return _safe(value)
    except Exception:  # an object of the user's that can't be looked at
        return False


def _safe(value: Any) -> bool:
    bound = bound_types()
    stack, seen, budget = [value], set(), LIMIT
    while stack and budget > 0:
        one = stack.pop()
        budget -= 1
        if type(one) in _LEAVES or isinstance(one, type) or id(one) in seen:
            continue
        if isinstance(one, bound) or _is_raw_pointer(one):
            return False
        seen.add(id(one))
        stack += islice(_inside(one), budget)
    return True


def _inside(value: Any) -> Iterator[Any]:
    """What a value consists of."""
    if isinstance(value, _CONTAINERS):
        yield from value
    elif isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif hasattr(type(value), "dtype") and getattr(value.dtype, "hasobject", False) and hasattr(value, "flat"):
        yield from _objects_of(value)
    fields = getattr(value, "__dict__", None) if type(value).__dictoffset__ else None
    if isinstance(fields, dict):
        yield from fields.values()
    for slot in _slots(type(value)):  # type: ignore[arg-type]
        try:
            yield slot.__get__(value)
        except AttributeError:  # not set
            continue


def _objects_of(array: Any) -> Iterator[Any]:
    names = array.dtype.names
    if not names:
        yield from array.flat
    else:
        for element in array.flat:
            yield from (element[name] for name in names)


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[Any, ...]:
    """The slots of the classes that Python code made; what C made has no fields of ours."""
    return tuple(
        member
        for cls in kind.__mro__
        if "__slots__" in vars(cls) or cls is functools.partial
        for member in vars(cls).values()
        if isinstance(member, types.MemberDescriptorType)
    )


def _is_raw_pointer(value: Any) -> bool:
    kind = type(value)
    if kind.__name__ == "PyCapsule" or kind.__module__ == "_cffi_backend":
        return True
    pointers: Any = (ctypes._Pointer, CFuncPtr, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_wchar_p, ctypes.CDLL)
    if isinstance(value, ctypes.Array):
        element: Any = value._type_
        while issubclass(element, ctypes.Array):
            element = element._type_
        return issubclass(element, pointers)
    return isinstance(value, pointers)
