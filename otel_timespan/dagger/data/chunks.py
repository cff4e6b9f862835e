"""Chunks: references to data that some worker holds.

A `DRef` is the handle behind a chunk: who holds the data, how many bytes, of what type. The value itself
sits in the handle on the worker that holds it, so that Python's own reference count frees it the moment the
last handle goes, with no table to clean. The scheduler's core looks at a handle's description only, never at
the value.

See docs/data.md; upstream: https://juliaparallel.org/Dagger.jl/dev/data-management/#Chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import GenericAlias
from typing import TYPE_CHECKING, Any, NoReturn

from ...timespans.model import ChunkInfo
from ..places.processors import CPURAMMemorySpace, Processor, memory_space
from ..places.scopes import AnyScope, Scope
from ..records import kinds as records
from ..records.sizes import FIXED, approx_size
from ..tasks.references import Reference, Value
from .bound import process_bound
from .read import read

__all__ = ["ArrayDomain", "Chunk", "DRef", "UnitDomain", "datasize", "domain"]

_ANY = AnyScope()


@process_bound
class DRef:
    """The handle of one piece of data, equal only to itself. Its size is estimated when first asked for.

    `held` is the value where it is in memory, else something that no value is: for comparisons, which must
    not read anything back. (A `StoredDRef`, spilling.py, may have its value on a device.)
    """

    __slots__ = ("__weakref__", "_info", "_nbytes", "_number", "value", "worker")
    _info: ChunkInfo
    _number: int
    _nbytes: int | None
    held: Any
    may_spill = False
    """Whether the value may be on a device, so that each read gives another object."""

    value: Any
    worker: int

    @property
    def type(self) -> type:
        """The type of the value."""
        return type(self.value)

    @property
    def domain(self) -> ArrayDomain | UnitDomain:
        """The index ranges of the value."""
        return domain(self.value)

    @property
    def nbytes(self) -> int | None:
        """Estimated bytes, None where unknown; once estimated it stays."""
        try:
            return self._nbytes
        except AttributeError:
            self._nbytes = approx_size(self.value)
            return self._nbytes

    @property
    def number(self) -> int:
        """What the log calls it: a number that is never used twice."""
        try:
            return self._number
        except AttributeError:
            self._number = records.next_handle()
            return self._number

    @property
    def info(self) -> ChunkInfo:
        """The description that goes into the log."""
        try:
            info = self._info
        except AttributeError:
            self._info = info = ChunkInfo(self.number, self.nbytes, self.type, self.worker)
        return info

    def __reduce__(self) -> Any:
        raise TypeError("a chunk belongs to its process: pass it as an argument of spawn, or pass its fetched value")


def new_handle(value: Any, worker: int = 1) -> DRef:
    """The handle of a value that is in memory. A function, because it takes less time than a call of `__init__`."""
    ref = DRef()
    ref.value = value
    ref.worker = worker
    return ref


DRef.held = vars(DRef)["value"]  # the very slot: as fast to read


class LoggedDRef(DRef):
    """A handle whose end is an `evict` event. A class of its own: a finalizer costs 0.2 µs a handle."""

    __slots__ = ("_put",)
    _put: Callable[[Any], None]

    def __del__(self) -> None:
        # May run at any allocation, on any thread: it only appends, and takes no lock.
        now = time.monotonic_ns()
        try:
            put = self._put
        except AttributeError:  # making it was interrupted
            return
        put((records.EVICT, now, self._number, self._nbytes, type(self.value), self.worker, "released"))


scoped_chunks: list[bool] = []
"""Empty until any chunk or result of this process has a scope: until then placement need not look."""


def new_logged_handle(value: Any, put: Callable[[Any], None], worker: int) -> LoggedDRef:
    """`new_handle`, where there is a log."""
    ref = LoggedDRef()
    ref.value = value
    ref.worker = worker
    kind = type(value)
    ref._nbytes = FIXED[kind] if kind in FIXED else approx_size(value)
    ref._number = records.next_handle()
    ref._put = put
    return ref


@process_bound
class Chunk(Reference[Value, NoReturn]):
    """A reference to data held by some worker. Immutable; thread-safe; equal when the handle is the same.

    `chunktype` is the type of the content, `domain` its index ranges, `processor` where it was made,
    `scope` where it may be used, `space` the memory it lies in.
    """

    __slots__ = ("__weakref__", "chunktype", "domain", "handle", "processor", "scope")

    if not TYPE_CHECKING:
        __class_getitem__ = classmethod(GenericAlias)

    def __init__(self, handle: DRef, processor: Processor, scope: Scope = _ANY, chunktype: type | None = None) -> None:
        if scope is not _ANY and not isinstance(scope, AnyScope):
            scoped_chunks[:] = [True]
        self.handle = handle
        self.processor = processor
        self.scope = scope
        self.chunktype = handle.type if chunktype is None else chunktype
        self.domain = handle.domain

    @property
    def space(self) -> CPURAMMemorySpace:
        """The memory space of the worker that holds the data."""
        return CPURAMMemorySpace(self.handle.worker)

    def fetch(self, unwrap: bool = False) -> Value:
        """The content, here. `unwrap` follows nested chunks."""
        value: Value = read(self.handle)
        while unwrap and isinstance(value, Chunk):
            value = read(value.handle)
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chunk) and self.handle is other.handle

    def __hash__(self) -> int:
        return hash(self.handle)

    def __repr__(self) -> str:
        return f"Chunk({self.chunktype.__name__}, {self.handle.nbytes} bytes on worker {self.handle.worker})"


@dataclass(frozen=True)
class UnitDomain:
    """The domain of everything that is not an array."""


@dataclass(frozen=True)
class ArrayDomain:
    """The index ranges of an array, one a dimension."""

    indexes: tuple[range, ...]


def domain(x: Any) -> ArrayDomain | UnitDomain:
    """Arrays (anything with a `shape` tuple of ints) have index ranges, all else is `UnitDomain`."""
    if isinstance(x, Chunk):
        return x.domain
    shape = getattr(x, "shape", None)
    if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape):
        return ArrayDomain(tuple(range(n) for n in shape))
    return _UNIT


_UNIT = UnitDomain()


def datasize(chunk: Chunk) -> int | None:
    """Estimated bytes of a chunk's content when it was made; None where it is unknown."""
    return chunk.handle.nbytes


@memory_space.register
def _(x: Chunk) -> CPURAMMemorySpace:
    return x.space
