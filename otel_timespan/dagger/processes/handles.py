"""Handles of values that came out of a worker as bytes: read when somebody here wants them, passed on as they are.

So a chain of tasks on workers never unpickles in the head, and a value of a class that only workers know is a
result like any other.

See docs/workers.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from ...errors import StorageError
from ..data.chunks import ArrayDomain, DRef, UnitDomain, domain, new_logged_handle
from ..records import kinds as records
from ..records.sizes import FIXED
from .wire import loads

__all__ = ["PackedDRef", "handle_of", "type_of_name"]

HEAD = 1
"""The worker where inline values lie."""

_NOT_READ: Any = object()


class PackedDRef(DRef):
    """The handle of a value that is here as bytes. `value` reads it once; later readers get the same object.

    Raises `StorageError` where it can't be read in this process.
    """

    __slots__ = ("_put", "_read", "_type", "item")

    def __init__(self, item: Any, put: Callable[[Any], None] | None) -> None:
        self.item = item
        """(bytes, type's name, size, False), as it came: it goes to another worker like this."""
        self.worker = HEAD
        self._read = _NOT_READ
        self._type: type | None = None
        self._nbytes = item[2]
        self._put = put
        if put is not None:
            self._number = records.next_handle()

    @property
    def value(self) -> Any:
        """The value; read by the first who asks."""
        read = self._read
        if read is _NOT_READ:
            try:
                made = loads(self.item[0])
            except Exception as error:
                name = self.item[1].partition(":")[2]
                raise StorageError(f"the value, a {name} made by a worker, can't be read here: {error!r}") from error
            read = self._first(made)
        return read

    def _first(self, made: Any) -> Any:
        """All readers get what the first of them made: without the lock two may both be the first here, for once."""
        if self._read is _NOT_READ:
            self._read = made
        return self._read

    @property
    def held(self) -> Any:
        """The value where it was read, else something that no value is."""
        return self._read

    @property
    def type(self) -> type:
        """The type of the value; one that can't be had here is stood in for by a class of its name."""
        kind = self._type
        if kind is None:
            kind = self._type = type_of_name(self.item[1])
        return kind

    @property
    def domain(self) -> ArrayDomain | UnitDomain:
        """The index ranges of the value."""
        return domain(self.value)

    def __del__(self) -> None:
        # May run at any allocation, on any thread: it only appends, and takes no lock.
        put = getattr(self, "_put", None)
        if put is not None:
            put((records.EVICT, time.monotonic_ns(), self._number, self._nbytes, self.type, self.worker, "released"))


def handle_of(item: Any, put: Callable[[Any], None] | None) -> DRef:
    """The handle of what stands in a message (wire.py: `pack`). `put`: where the log is told of its end."""
    if type(item) is tuple:
        return PackedDRef(item, put)
    if put is not None:
        return new_logged_handle(item, put, HEAD)
    ref = DRef()  # as `new_handle`, without a call
    ref.value = item
    ref.worker = HEAD
    kind = type(item)
    if kind in FIXED:
        ref._nbytes = FIXED[kind]
    return ref


_types: dict[str, type] = {}
_MAX_TYPES = 10_000


def type_of_name(name: str) -> type:
    """The class called module:qualname where it is loaded, else a class that only has its name."""
    found = _types.get(name)
    if found is not None:
        return found
    module, _, qualname = name.partition(":")
    found = sys.modules.get(module)  # type: ignore[assignment]
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        return _stand_in(name, module, qualname)
    if len(_types) < _MAX_TYPES:
        _types[name] = found
    return found


def _stand_in(name: str, module: str, qualname: str) -> type:
    made = type(qualname.rpartition(".")[2] or "Unknown", (), {"__module__": module, "__qualname__": qualname})
    if len(_types) < _MAX_TYPES:
        _types[name] = made
    return made
