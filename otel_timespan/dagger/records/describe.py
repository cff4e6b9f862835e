"""How functions and values appear in the log: by description, so that a log keeps no data alive.

See docs/events.md.
"""

from __future__ import annotations

import enum
import functools
import types
from typing import Any

from ...timespans.model import ChunkInfo, ValueInfo, attribute_of, function_name, name_of_type
from .sizes import FIXED, approx_size

__all__ = [
    "FIXED_INFO",
    "FunctionInfo",
    "callable_name",
    "describe_function",
    "describe_value",
    "is_mutable",
    "without_data",
]


class FunctionInfo:
    """A callable that carries data (a closure, a method, a partial, an object), or is made again and again, without it.

    Has the attributes `__name__`, `__qualname__`, `__module__` and `__code__` (None where there is none).
    """

    def __init__(self, name: str, qualname: str, module: str, code: types.CodeType | None) -> None:
        self.__name__ = name
        self.__qualname__ = qualname
        self.__module__ = module
        self.__code__ = code

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionInfo) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.__name__, self.__qualname__, self.__module__))

    def __repr__(self) -> str:
        return f"<function {self.__module__}.{self.__qualname__}>"


_PLAIN = (types.BuiltinFunctionType, type)


def describe_function(f: Any) -> Any:
    """The function itself where it is plain, a `FunctionInfo` where it carries data."""
    kind = type(f)
    if (kind is types.FunctionType and f.__closure__ is None) or kind is type:
        return f
    if issubclass(kind, _PLAIN) and not _bound_to_data(f):
        return f
    inner = f
    while issubclass(type(inner), functools.partial):
        inner = inner.func
    code = attribute_of(inner, "__code__")
    if code is None and not issubclass(type(inner), type):
        code = attribute_of(attribute_of(type(inner), "__call__"), "__code__")
    named, name = inner, attribute_of(inner, "__name__")
    if not isinstance(name, str):
        named, name = type(inner), name_of_type(type(inner))
    qualname, module = attribute_of(named, "__qualname__"), attribute_of(named, "__module__")
    return FunctionInfo(
        name,
        qualname if isinstance(qualname, str) else name,
        module if isinstance(module, str) else "",
        code if isinstance(code, types.CodeType) else None,
    )


def without_data(f: types.FunctionType) -> FunctionInfo:
    """A function without its defaults, attributes and surroundings."""
    return FunctionInfo(f.__name__, f.__qualname__, str(f.__module__), f.__code__)


def _bound_to_data(f: Any) -> bool:
    """A builtin method (`[].append`) holds its object; a builtin function holds its module or nothing."""
    owner = getattr(f, "__self__", None)
    return not (owner is None or isinstance(owner, (types.ModuleType, type)))


def callable_name(f: Any) -> str:
    """`function_name` of what `spawn` was given, as the log will show it."""
    return function_name(f if type(f) is ChunkInfo else describe_function(f))


_IMMUTABLE = (int, float, complex, bool, str, bytes, type(None), type, enum.Enum, types.FunctionType)
FIXED_INFO: dict[type, ValueInfo] = {kind: ValueInfo(kind, size, 0) for kind, size in FIXED.items()}
"""How the log shows values whose type says all."""


def is_mutable(value: Any) -> bool:
    """Whether the value has an identity worth tracing."""
    if type(value) in FIXED_INFO or type(value) is str:
        return False
    if isinstance(value, (*_IMMUTABLE, types.BuiltinFunctionType)):
        return False
    if isinstance(value, (tuple, frozenset)):
        return any(is_mutable(v) for v in value)
    return True


def describe_value(value: Any) -> ValueInfo:
    """A plain value as the log shows it."""
    info = FIXED_INFO.get(type(value))
    if info is not None:
        return info
    return ValueInfo(type(value), approx_size(value), id(value) if is_mutable(value) else 0)
