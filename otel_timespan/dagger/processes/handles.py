"""Handles of values that came out of a worker as bytes: read when somebody here wants them, passed on as they are.

So a chain of tasks on workers never unpickles in the head, and a value of a class that only workers know is a
result like any other.

See docs/workers.md.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ...errors import InvalidOptionError, StorageError
from ..data.chunks import ArrayDomain, Chunk, DRef, UnitDomain, domain, new_logged_handle, scoped_chunks
from ..places.processors import Processor
from ..places.scopes import AnyScope, Scope
from ..records import kinds as records
from ..records.sizes import FIXED
from ..tasks.dtask import DTask
from .wire import loads

__all__ = [
    "HEAD",
    "HandleReader",
    "PackedDRef",
    "ReadDRef",
    "RemoteDRef",
    "chunk_here",
    "domain_of",
    "handle_of",
    "new_chunk",
    "reading",
    "shape_of",
    "task_here",
    "type_of_name",
]

HEAD = 1
"""The worker where inline values lie."""

_NOT_READ: Any = object()


class ReadDRef(DRef):
    """A handle of a value that was made elsewhere: read here by the first who asks, and then the same for all."""

    __slots__ = ("_read", "_type")
    _read: Any
    _type: str
    """The name of the value's type (wire.py: `type_name`)."""

    @property
    def held(self) -> Any:
        """The value where it was read, else something that no value is."""
        return self._read

    @property
    def type(self) -> type:
        """The type of the value; one that can't be had here is stood in for by a class of its name."""
        return type_of_name(self._type)


class PackedDRef(ReadDRef):
    """The handle of a value that is here as bytes. `value` reads it once; later readers get the same object.

    Raises `StorageError` where it can't be read in this process.
    """

    __slots__ = ("_put", "item")

    def __init__(self, item: Any, put: Callable[[Any], None] | None) -> None:
        self.item = item
        """(bytes, type's name, size, False), as it came: it goes to another worker like this."""
        self.worker = HEAD
        self._read = _NOT_READ
        self._type, self._nbytes = item[1], item[2]
        self._put = put
        if put is not None:
            self._number = records.next_handle()

    @property
    def value(self) -> Any:
        """The value; read by the first who asks."""
        read = self._read
        if read is _NOT_READ:
            read = self._first(_read(self.item))
        return read

    def _first(self, made: Any) -> Any:
        """All readers get what the first of them made: without the lock two may both be the first here, for once."""
        if self._read is _NOT_READ:
            self._read = made
        return self._read

    @property
    def domain(self) -> ArrayDomain | UnitDomain:
        """The index ranges of the value."""
        return domain(self.value)

    def __del__(self) -> None:
        # May run at any allocation, on any thread: it only appends, and takes no lock.
        put = getattr(self, "_put", None)
        if put is not None:
            put((records.EVICT, time.monotonic_ns(), self._number, self._nbytes, self.type, self.worker, "released"))


class RemoteDRef(ReadDRef):
    """The handle of a value that is kept by the worker that made it. `value` has it sent here once, and waits for it.

    Data that tasks may change where it is (`mutable`) is sent each time: what its reader gets is a copy.

    Raises `WorkerLostError` where that worker is gone with it, `InvalidOptionError` where it can't be pickled,
    `StorageError` where there is no memory for it, or it can't be read in this process.
    """

    __slots__ = (
        *("_gone", "_pull", "_put", "_shape"),
        *("changes", "error", "home", "item", "key", "shared"),
    )

    may_spill = True

    def __init__(
        self,
        home: Any,
        item: Any,
        put: Callable[[Any], None] | None,
        pull: Callable[[RemoteDRef], Any],
        gone: Callable[[Any], None],
    ) -> None:
        self.home = home
        """The worker, as the head sees it (remote.py)."""
        self.worker = home.worker
        self.key, self._type, self._nbytes, _, self._shape, self.changes = item
        self._pull, self._put, self._gone = pull, put, gone
        self._read = _NOT_READ
        self.shared: Any = None
        """The block that it was written into, when somebody else wanted it (values.py)."""
        self.item: Any = None
        """The value packed, where it has no block."""
        self.error: Callable[[], BaseException] | None = None
        """Why it can't be had from its worker."""
        if put is not None:
            self._number = records.next_handle()

    @property
    def value(self) -> Any:
        """The value, here."""
        if self.changes:
            return self._pull(self)
        if self._read is _NOT_READ:
            made = self._pull(self)
            if self._read is _NOT_READ:
                self._read = made
        return self._read

    @property
    def is_elsewhere(self) -> bool:
        """Whether others can't find it but at its worker: nothing was exported, or it may have changed since."""
        return self.error is None and (self.changes or (self.shared is None and self.item is None))

    @property
    def description(self) -> tuple[Any, ...]:
        """(type's name, size, False, shape): what stands behind where it is (wire.py: LOCATED)."""
        return self._type, self._nbytes, False, self._shape

    @property
    def domain(self) -> ArrayDomain | UnitDomain:
        """The index ranges of the value."""
        return domain_of(self._shape)

    def __del__(self) -> None:
        # May run at any allocation, on any thread: it only appends, and takes no lock.
        put = getattr(self, "_put", None)
        if put is not None:
            put((records.EVICT, time.monotonic_ns(), self._number, self._nbytes, self.type, self.worker, "released"))
        gone = getattr(self, "_gone", None)
        if gone is not None:
            gone((self.home, self.key, self.shared))


def shape_of(x: DRef | Chunk) -> tuple[int, ...] | None:
    """What `domain_of` makes the index ranges of."""
    found = x.domain
    return tuple(map(len, found.indexes)) if isinstance(found, ArrayDomain) else None


def domain_of(shape: tuple[int, ...] | None) -> ArrayDomain | UnitDomain:
    """The index ranges of a value of this shape; None: no array."""
    return UnitDomain() if shape is None else ArrayDomain(tuple(map(range, shape)))


def _read(item: Any) -> Any:
    try:
        return loads(item[0])
    except (Exception, SystemExit, GeneratorExit) as error:
        name = item[1].partition(":")[2]
        raise StorageError(f"the value, a {name} made by a worker, can't be read here: {error!r}") from error


def handle_of(item: Any, put: Callable[[Any], None] | None) -> DRef:
    """The handle of what stands in a message (wire.py: `pack`). `put`: where the log is told of its end.

    One with handles in it is read at once, as the sender counts them: `StorageError` where it can't be.
    """
    if type(item) is tuple:
        if not item[3]:
            return PackedDRef(item, put)
        item = _read(item)
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


def new_chunk(handle: DRef, processor: Processor, scope: Scope | None, kind: type, content: Any) -> Chunk:
    """A chunk of which everything is known, so that its value need not be read. `content`: its domain."""
    chunk: Chunk = Chunk.__new__(Chunk)
    chunk.handle, chunk.processor, chunk.chunktype, chunk.domain = handle, processor, kind, content
    chunk.scope = AnyScope() if scope is None else scope
    if scope is not None and not isinstance(scope, AnyScope):
        scoped_chunks[:] = [True]
    return chunk


# ---- handles in values -----------------------------------------------------------------------------------


class HandleReader(Protocol):
    """Who makes handles of what stands in values for them: borrows.py in the head, `worker/proxies.py` in a worker."""

    def task(self, id: int) -> DTask:
        """The handle of a task."""

    def chunk(self, key: int, item: Any, nbytes: int | None, kind: str, worker: int, *rest: Any) -> Chunk:
        """A chunk: what its value is called between the two, the value where it goes along, and what is known of it."""


class _Reading(threading.local):
    reader: HandleReader | None = None
    """Of the values that this thread reads; in a worker one for all threads."""


reading = _Reading()


def task_here(id: int) -> DTask:
    """What a pickled `DTask` is read by."""
    if reading.reader is None:
        raise InvalidOptionError(f"task {id} is a handle, which means something only where the scheduler reads it")
    return reading.reader.task(id)


def chunk_here(key: int, *what: Any) -> Chunk:
    """What a pickled `Chunk` is read by."""
    if reading.reader is None:
        raise InvalidOptionError("a chunk is a handle, which means something only where the scheduler reads it")
    return reading.reader.chunk(key, *what)
