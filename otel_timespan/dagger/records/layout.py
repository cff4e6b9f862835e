"""How values of a class lie in memory: learned once a class, by looking at it, never by asking it.

Everything here goes past what Python code of a user's could answer: classes are read through `type`'s own
descriptors, containers through the methods of the builtin class, fields through the garbage collector, which knows
what an object refers to without an attribute being asked for.
"""

from __future__ import annotations

import collections
import enum
import functools
import gc
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

__all__ = ["Layout", "Size", "forget_layouts", "layout_of", "layouts", "registered", "said_by_field", "spread"]

Size = Callable[[Any], "int | None"]
Inside = Callable[[Any, int, int], "list[tuple[Any, int]]"]
"""(value, how many to take at most, a seed): samples of what it refers to, each with the number that it stands for."""

registered: dict[type | str, Size] = {}
"""What says the size of values of a class, or of one named "library.Class"."""

_OPAQUE = {"asyncio", "concurrent", "logging", "multiprocessing", "opentelemetry", "otel_timespan", "threading"}
"""Libraries whose objects refer to the machinery of a program, not to data: they count without what they hold."""

_CODE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.CodeType)
_FREE: tuple[type, ...] = (
    *(*_CODE, type(None), bool, types.FrameType, types.TracebackType, types.GeneratorType, types.CoroutineType),
    *(types.AsyncGeneratorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodDescriptorType),
    *(types.WrapperDescriptorType, types.MappingProxyType, property, classmethod, staticmethod),
)
"""What an object refers to without holding it: code, and what belongs to a class or a running body."""

_mro: Callable[[type], tuple[type, ...]] = vars(type)["__mro__"].__get__
_members: Callable[[type], Any] = vars(type)["__dict__"].__get__
_flags: Callable[[type], int] = vars(type)["__flags__"].__get__
_name: Callable[[type], str] = vars(type)["__qualname__"].__get__
_fixed_part: Callable[[type], int] = vars(type)["__basicsize__"].__get__

_COLLECTED, _OWN_DICT = 1 << 14, 3 << 3  # of a type's flags; the latter since Python 3.11
_HEADER = 16
_FIELDS = 48
"""What the fields of an object take whose dictionary was never asked for: few are known only to the interpreter."""


class Layout:
    """What is known of a class. `whole`: says all; else `own` bytes, and `inside`, None where nothing is held.

    `free`: counts nothing as part of something else. `base`: what the object takes beside `whole`. `has_fields`:
    it may have a field `nbytes`. `plain`: `own` says all. `length`: where all that it holds is what the garbage
    collector sees, how much that is, as far as it may be much.
    """

    __slots__ = ("base", "free", "has_fields", "inside", "length", "own", "plain", "ref", "whole")

    def __init__(self, kind: type) -> None:
        number = id(kind)
        self.ref = weakref.ref(kind, lambda _: layouts.pop(number, None))  # by number: a class may have a hash
        self.free = issubclass(kind, _FREE) or issubclass(type(kind), enum.EnumMeta)
        self.base = _fixed_part(kind) + _header(kind)
        self.whole = _said(kind)
        self.own = _own(kind)
        self.has_fields = _static(kind, "__dict__") is not None
        self.inside = None if self.free or _is_opaque(kind) else _inside(kind)
        self.length = len if kind in _BUILTIN else _few if self.inside is _fields else None
        self.plain = self.whole is None and self.inside is None


layouts: dict[int, Layout] = {}
"""By the number (`id`) of the class; for `layout_of`, and who can't afford the call."""


def layout_of(kind: type) -> Layout:
    """The layout of a class. Thread-safe: made twice it is the same."""
    layout = layouts.get(id(kind))
    if layout is None:
        layout = layouts[id(kind)] = Layout(kind)
    return layout


def forget_layouts() -> None:
    """What is registered has changed."""
    layouts.clear()


def _static(kind: type, name: str) -> Any:
    """What the class or a base of it has under the name, as it stands there."""
    return next((members[name] for members in map(_members, _mro(kind)) if name in members), None)


def _module(cls: type) -> str:
    module = _members(cls).get("__module__")
    if type(module) is str:
        return module.partition(".")[0]
    return str(vars(type)["__module__"].__get__(cls)).partition(".")[0]  # a class made in C


def _is_opaque(kind: type) -> bool:
    return any(_module(cls) in _OPAQUE for cls in _mro(kind))


# ---- what a class says itself -------------------------------------------------------------------------------


def _said(kind: type) -> Size | None:
    for cls in _mro(kind):
        for key in (cls, f"{_module(cls)}.{_name(cls)}"):
            if key in registered:
                return functools.partial(_asked, registered[key])
    if issubclass(kind, int):
        return _eight if kind is not int else None
    declared = _static(kind, "nbytes")
    return _declared if declared is not None and not isinstance(declared, types.FunctionType) else None


def _eight(value: Any) -> int:
    return 8


def _asked(function: Size, value: Any) -> int | None:
    return _checked(function(value))


def _declared(value: Any) -> int | None:
    return _checked(object.__getattribute__(value, "nbytes"))


def _checked(nbytes: Any) -> int | None:
    if nbytes is None:
        return None
    number = int(nbytes) if isinstance(nbytes, float) else operator.index(nbytes)
    return number if number >= 0 else None


def said_by_field(value: Any) -> int | None:
    """The field `nbytes` of an object whose class has none."""
    try:
        return _checked(object.__getattribute__(value, "nbytes"))
    except (AttributeError, TypeError, ValueError):
        return None


# ---- the object itself --------------------------------------------------------------------------------------


def _header(kind: type) -> int:
    """What lies before the object: for the garbage collector, and for its fields."""
    flags = _flags(kind)
    own_dict = sys.version_info >= (3, 11) and flags & _OWN_DICT
    return (_HEADER if flags & _COLLECTED else 0) + (_HEADER + _FIELDS if own_dict else 0)


def _own(kind: type) -> Callable[[Any], int]:
    if kind is int:
        return _int_size
    found = (_members(cls).get("__sizeof__") for cls in _mro(kind))
    sizeof: Any = next(each for each in found if type(each) is types.MethodDescriptorType)
    header = _header(kind)
    return (lambda value: sizeof(value) + header) if header else sizeof


def _int_size(value: int) -> int:
    return 0 if -6 < value < 257 else value.__sizeof__()  # the small ones are there once


# ---- what it refers to --------------------------------------------------------------------------------------

_GOLDEN = 0.6180339887498949


def spread(count: int, seed: int) -> list[float]:
    """A number from each of 0..1, 1..2, ... to `count`; where in it differs, so that no period of theirs meets ours."""
    return [n + (n + seed) * _GOLDEN % 1.0 for n in range(count)]


def _positions(count: int, most: int, seed: int) -> list[int]:
    part = count / most
    return [int(n * part) for n in spread(most, seed)]


def _indexed(cls: Any) -> Inside:
    length, item = cls.__len__, cls.__getitem__

    def inside(value: Any, most: int, seed: int) -> list[tuple[Any, int]]:
        count = length(value)
        positions: Iterable[int] = range(count) if count <= most else _positions(count, most, seed)
        return [([item(value, n) for n in positions], count)]

    return inside


def _hashed(cls: Any) -> Inside:
    length, iterator = cls.__len__, cls.__iter__

    def inside(value: Any, most: int, seed: int) -> list[tuple[Any, int]]:
        return [(list(islice(iterator(value), most)), length(value))]

    return inside


_NEAR = 8
"""Entries of a dictionary are taken from the first and last so many times as many: others can't be reached at once."""


def _mapped(value: dict[Any, Any], most: int, seed: int) -> list[tuple[Any, int]]:
    count = dict.__len__(value)
    items = dict.items(value)
    if count <= most:
        entries = list(items)
    else:
        near = most * _NEAR // 2
        ends = list(items) if count <= 2 * near else [*islice(items, near), *islice(reversed(items), near)]
        entries = [ends[n] for n in _positions(len(ends), most, seed)]
    return [([each for entry in entries for each in entry], 2 * count)]


def _fields(value: Any, most: int, seed: int) -> list[tuple[Any, int]]:
    referents = gc.get_referents(value)
    count = len(referents)
    return [(referents if count <= most else [referents[n] for n in _positions(count, most, seed)], count)]


_CONTAINERS: tuple[tuple[type, Inside], ...] = (
    (list, _indexed(list)),
    (tuple, _indexed(tuple)),
    (collections.deque, _indexed(collections.deque)),
    (dict, _mapped),
    (set, _hashed(set)),
    (frozenset, _hashed(frozenset)),
)


_BUILTIN = frozenset({kind for kind, _ in _CONTAINERS})


def _few(value: Any) -> int:
    """Of an object of a class: as many as it has fields."""
    return 0


def _inside(kind: type) -> Inside | None:
    if not _flags(kind) & _COLLECTED:
        return None
    for builtin, inside in _CONTAINERS:
        if issubclass(kind, builtin):
            state = _state(kind) if kind is not builtin else ()
            return functools.partial(_with_state, inside, state) if state else inside
    return _fields


def _state(kind: type) -> tuple[Any, ...]:
    """The descriptors of the fields that a class has beside those of the builtin it derives from."""
    found = [each for cls in _mro(kind) if "__slots__" in _members(cls) for each in _members(cls).values()]
    slots = [each for each in found if type(each) is types.MemberDescriptorType]
    fields = _static(kind, "__dict__")
    return (*slots, fields) if type(fields) is types.GetSetDescriptorType else tuple(slots)


def _with_state(inside: Inside, state: tuple[Any, ...], value: Any, most: int, seed: int) -> list[tuple[Any, int]]:
    groups = inside(value, most, seed)
    held = []
    for descriptor in state:
        try:
            held.append(descriptor.__get__(value))
        except AttributeError:  # not set
            continue
    return [*groups, (held, len(held))]
