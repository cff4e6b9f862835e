"""Logged values as JSON and back, safely: reading makes plain records, never runs code.

JSON has fewer types than a log, so all others are objects with the one key `"$"` (their kind) and their
content beside it. What can't be made again from text, such as a function, an exception or a processor,
comes back as a description: a `LoggedFunction`, `LoggedType` or `LoggedObject`, equal to itself when
it is written and read again.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .model import ChunkInfo, EventId, GCNum, ProfilerResult, TaskRef, Timeline, ValueInfo

__all__ = ["LoggedCode", "LoggedFunction", "LoggedObject", "LoggedType", "decode", "encode"]

MAX_TEXT = 10_000
"""Characters kept of the text form of an object that has no form of its own."""

_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class LoggedCode:
    """Where a function was defined: what a log file keeps of its `__code__`."""

    co_filename: str
    co_firstlineno: int


class LoggedFunction:
    """A function as a log file gives it back: `__name__`, `__qualname__`, `__module__`, `__code__` (or None)."""

    def __init__(self, name: str, qualname: str, module: str, code: LoggedCode | None = None) -> None:
        self.__name__, self.__qualname__, self.__module__, self.__code__ = name, qualname, module, code

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoggedFunction) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.__name__, self.__qualname__, self.__module__))

    def __repr__(self) -> str:
        return f"<function {self.__module__}.{self.__qualname__}>"


class LoggedType:
    """A class as a log file gives it back: `__name__`, `__qualname__`, `__module__`. Builtins are themselves."""

    def __init__(self, name: str, qualname: str, module: str) -> None:
        self.__name__, self.__qualname__, self.__module__ = name, qualname, module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoggedType) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.__name__, self.__qualname__, self.__module__))

    def __repr__(self) -> str:
        return f"<class '{self.__module__}.{self.__qualname__}'>"


@dataclass(frozen=True, slots=True, repr=False)
class LoggedObject:
    """Any other object as a log file gives it back: the qualified name of its type, and its text."""

    type: str
    text: str

    def __repr__(self) -> str:
        return self.text


def encode(value: Any, depth: int = 0) -> Any:
    """A value as something that `json.dumps` takes. Never raises for what a `repr` does wrong."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else {"$": "int", "hex": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"$": "float", "text": repr(value)}
    if depth > _MAX_DEPTH:
        return _describe(value)
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value, depth + 1)
    if isinstance(value, types.BuiltinFunctionType):
        return _function(value, depth)
    return _describe(value)


def _items(values: Any, depth: int) -> list[Any]:
    return [encode(v, depth) for v in values]


def _fields(fields: dict[str, Any], depth: int) -> dict[str, Any]:
    return {str(name): encode(v, depth) for name, v in fields.items()}


def _tagged(tag: str) -> Callable[[Any, int], Any]:
    return lambda value, depth: {"$": tag, "items": _items(value, depth)}


def _function(f: Any, depth: int) -> Any:
    code = getattr(f, "__code__", None)
    where = None if code is None else [str(code.co_filename), int(code.co_firstlineno)]
    module = getattr(f, "__module__", None) or ""
    return {"$": "function", "name": f.__name__, "qualname": f.__qualname__, "module": module, "code": where}


def _type(t: Any, depth: int) -> Any:
    return {"$": "type", "name": t.__name__, "qualname": t.__qualname__, "module": str(t.__module__)}


def _describe(value: Any) -> Any:
    if isinstance(value, type):
        return _type(value, 0)
    kind = type(value)
    if isinstance(getattr(value, "__qualname__", None), str) and hasattr(value, "__code__"):
        return _function(value, 0)  # a FunctionInfo of the scheduler
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{kind.__qualname__} whose repr raised {type(error).__name__}>"
    return {"$": "object", "type": f"{kind.__module__}.{kind.__qualname__}", "text": text[:MAX_TEXT]}


_ENCODERS: dict[type, Callable[[Any, int], Any]] = {
    tuple: _tagged("tuple"),
    set: _tagged("set"),
    frozenset: _tagged("frozenset"),
    list: _items,
    dict: lambda d, depth: {"$": "dict", "items": [[encode(k, depth), encode(v, depth)] for k, v in d.items()]},
    bytes: lambda b, depth: {"$": "bytes", "hex": b.hex()},
    complex: lambda c, depth: {"$": "complex", "parts": [encode(c.real), encode(c.imag)]},
    EventId: lambda i, depth: {"$": "id", "fields": _fields(dict(i), depth)},
    Timeline: lambda t, depth: {"$": "record", "fields": _fields(vars(t), depth)},
    ChunkInfo: _tagged("chunk"),
    ValueInfo: _tagged("value"),
    TaskRef: _tagged("task"),
    GCNum: lambda g, depth: {"$": "gc", "items": [getattr(g, name) for name in GCNum.__slots__]},
    ProfilerResult: lambda p, depth: {"$": "profile", "items": _items([p.samples, p.lineinfo, p.tasks], depth)},
    LoggedObject: lambda o, depth: {"$": "object", "type": o.type, "text": o.text},
    LoggedType: _type,
    LoggedFunction: _function,
    types.FunctionType: _function,
    type: _type,
}


def decode(value: Any) -> Any:
    """What `encode` made, as values; its lists are used for that.

    Raises `ValueError`, `TypeError` or `KeyError` for anything else.
    """
    kind = type(value)
    if kind is list:
        for index, item in enumerate(value):  # in place: a long one is not held twice
            if type(item) is list or type(item) is dict:
                value[index] = decode(item)
        return value
    if kind is not dict:
        return value
    tag = value["$"]
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise ValueError(f"unknown kind of value {tag!r}")
    return decoder(value)


def _record(make: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda v: make(*[decode(item) for item in v["items"]])


def _decode_fields(v: Any) -> dict[str, Any]:
    return {name: decode(item) for name, item in v["fields"].items()}


def _decode_function(v: Any) -> LoggedFunction:
    code = None if v["code"] is None else LoggedCode(str(v["code"][0]), int(v["code"][1]))
    return LoggedFunction(str(v["name"]), str(v["qualname"]), str(v["module"]), code)


def _decode_type(v: Any) -> Any:
    if v["module"] == "builtins":
        found = getattr(builtins, str(v["name"]), None)
        if isinstance(found, type):
            return found
    return LoggedType(str(v["name"]), str(v["qualname"]), str(v["module"]))


_DECODERS: dict[Any, Callable[[Any], Any]] = {
    "tuple": lambda v: tuple([decode(item) for item in v["items"]]),
    "set": lambda v: {decode(item) for item in v["items"]},
    "frozenset": lambda v: frozenset(decode(item) for item in v["items"]),
    "dict": lambda v: {decode(key): decode(item) for key, item in v["items"]},
    "bytes": lambda v: bytes.fromhex(v["hex"]),
    "int": lambda v: int(v["hex"], 16),
    "float": lambda v: float(v["text"]),
    "complex": lambda v: complex(*[decode(part) for part in v["parts"]]),
    "id": lambda v: EventId(**_decode_fields(v)),
    "record": lambda v: Timeline(**_decode_fields(v)),
    "chunk": _record(ChunkInfo),
    "value": _record(ValueInfo),
    "task": _record(TaskRef),
    "gc": _record(GCNum),
    "profile": _record(ProfilerResult),
    "function": _decode_function,
    "type": _decode_type,
    "object": lambda v: LoggedObject(str(v["type"]), str(v["text"])),
}
