"""What a worker keeps: values that were made here, until the head says that nobody has a handle of them.

Here a value is what it was when its body gave it: who gets it on this worker gets that very object, as on threads. For
others it is exported, once, when it is first wanted (slabs.py). What others export is mapped here when the body that
gets it begins.

See docs/workers.md, and `dagger/processes/values.py` for the other end.
"""

from __future__ import annotations

import itertools
import socket
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .. import forks
from ..dagger.bodies.call import REFERENCES
from ..dagger.data.chunks import ArrayDomain, Chunk, DRef, UnitDomain
from ..dagger.data.read import read
from ..dagger.places.processors import OSProc
from ..dagger.processes.descriptors import DescriptorLane
from ..dagger.processes.handles import ReadDRef, domain_of, handle_of, shape_of
from ..dagger.processes.maps import Block, Maps
from ..dagger.processes.slabs import Exported, Slabs
from ..dagger.processes.wire import (
    EXPORTED,
    FORGET,
    FORGET_SLABS,
    FREE,
    HERE,
    INLINE_BYTES,
    NOT_EXPORTED,
    PACKED,
    RELEASED,
    RETIRED,
    WANT,
    dumps,
    dumps_apart,
    error_bytes,
    is_plain,
    loads,
    loads_apart,
    pack,
    packed,
    type_name,
)
from ..dagger.records.sizes import approx_size
from ..dagger.service.threads import start_bare
from ..dagger.tasks.dtask import DTask, Result
from ..errors import InvalidOptionError, StorageError

__all__ = ["Store"]

EXPORTERS = 4
"""So many threads at most write values for others at the same time; pickling may wait, for whatever the user's does."""

AT_ONCE = 1 << 20
"""Larger values are exported on a thread of their own: the one that reads has other things to do."""


class MappedDRef(ReadDRef):
    """The handle of a value that somebody else exported, read by the first who asks, and then the same for all.

    Its owner is told once that nothing is left of it here: by the map, or by the end of a handle that was never read.
    """

    __slots__ = ("_error", "_exported", "_is_begun", "_lock", "_owner", "_shape", "_store")

    may_spill = True

    def __init__(self, item: Any, store: Store) -> None:
        self._owner, place, self._type, self._nbytes, _, self._shape = item
        self.worker = self._owner
        self._exported = Exported(*place)
        self._store = store
        self._lock = allocate_lock()
        self._is_begun = False
        self._error = ""
        self._read = _NOT_READ

    @property
    def value(self) -> Any:
        """The value. Raises `StorageError` where it can't be read."""
        if self._read is _NOT_READ:
            with self._lock:
                if not self._is_begun:
                    self._load()
            if self._error:
                raise StorageError(self._error)
        return self._read

    def _load(self) -> None:
        try:
            self._store.lane.look_for(self._owner, self._exported.slab)
            self._is_begun = True
            self._read = self._store.maps.load(self._owner, self._exported, loads_apart)
        except StorageError as error:
            self._error = str(error)
        except Exception as error:
            self._error = f"the value, a {self.type.__name__} of worker {self._owner}, can't be read here: {error!r}"

    @property
    def domain(self) -> ArrayDomain | UnitDomain:
        """The index ranges of the value."""
        return domain_of(self._shape)

    def __del__(self) -> None:
        # May run at any allocation, on any thread: it only appends, and takes no lock.
        if not self._is_begun:
            self._store.released.append(Block(self._owner, self._exported.slab, self._exported.offset))


_NOT_READ: Any = object()


class Store:
    """What this worker keeps, exported, and reads of others. `say` sends a message; thread-safe."""

    def __init__(
        self,
        worker: int,
        lane: socket.socket,
        limit: int,
        handles: Mapping[type, Callable[[Any], Any]],
        say: Callable[[Any], None],
        ring: Callable[[], None],
    ) -> None:
        self.released: deque[Block] = _Ringing(ring)
        """Blocks of which something here is gone, and the head was not told."""
        self.maps = Maps(self.released)
        self.lane = DescriptorLane(lane, self.maps)
        self._worker, self._handles, self._say = worker, handles, say
        self._slabs = Slabs(limit)
        self._lock = forks.lock()
        self._wanted: deque[tuple[int, DRef]] = deque()
        """Large values that are to be exported."""
        self._exporters = 0
        self._kept: dict[int, DRef] = {}
        self._keys: dict[int, int] = {}
        """Of what is kept, by `id()` of the handle."""
        self._next_key = itertools.count(1)
        self._exported: dict[tuple[int, int], Exported] = {}
        """By slab and offset."""
        self.kinds: dict[int, Callable[..., None]] = {
            WANT: self._want,
            FORGET: self._forget,
            FREE: self._free,
            FORGET_SLABS: self._forget_slabs,
        }
        """What to do for the messages that are about values."""

    # ---- what bodies get and give -------------------------------------------------------------------------

    def argument(self, item: Any) -> Any:
        """What stands in a message for an argument: the value, or a chunk of it, read when the body begins."""
        if type(item) is not tuple:
            return item
        if len(item) == PACKED:
            return loads(item[0])
        handle = self.handle(item)
        return Chunk(handle, OSProc(handle.worker))

    def handle(self, item: Any) -> DRef:
        """The handle of what stands in a message for a value."""
        kind = len(item) if type(item) is tuple else PACKED
        if kind == PACKED:
            return handle_of(item, None)
        if kind != HERE:
            return MappedDRef(item, self)
        handle = self._kept.get(item[0])
        if handle is None:
            raise StorageError(f"value {item[0]} is not kept by worker {self._worker}")
        return handle

    def result_item(self, task: DTask) -> Any:
        """What stands in a message for a task's result; what is large stays here. Raises what pickling raises."""
        outcome = task._outcome
        if type(outcome) is Result:
            return pack(outcome.value, self._handles)
        chunk = None if task._live is None else task._live.chunk
        if chunk is not None:
            return pack(chunk, self._handles)
        return self.item_of(outcome, task._options.result_scope is not None)

    def item_of(self, handle: DRef, changes: bool) -> Any:
        """What stands in a message for a value that was made here. What `changes` stays here, however small."""
        if handle.may_spill or id(handle) in self._keys:
            return self._keep(handle, changes)
        value = handle.value
        if is_plain(value):
            return value
        nbytes = handle.nbytes
        if changes or (nbytes is not None and nbytes > INLINE_BYTES):
            return self._keep(handle, changes)
        data, found = dumps(value, self._handles)
        if len(data) > INLINE_BYTES and not found:
            return self._keep(handle, changes)
        return data, type_name(type(value)), nbytes, found

    def chunk_item(self, handle: DRef, changes: bool) -> Any:
        """What stands in a message for the value of a chunk that was made here, by code of the user's.

        It is kept under another handle: the head is told when the chunk's is gone. (One that is on a device goes with
        its handle, so the head gets a copy.)
        """
        if handle.may_spill:
            return pack(handle.value, self._handles)
        inner = DRef()
        inner.value, inner.worker, inner._nbytes = handle.value, handle.worker, handle.nbytes
        return self.item_of(inner, changes)

    def kept_item(self, value: Any) -> Any:
        """What stands in a message for a large value that is an argument of a task spawned here; None for others."""
        nbytes = None if is_plain(value) or type(value) in REFERENCES else approx_size(value)
        if nbytes is None or nbytes <= INLINE_BYTES:
            return None
        handle = DRef()
        handle.value, handle.worker, handle._nbytes = value, self._worker, nbytes
        return self._keep(handle, False)

    def _keep(self, handle: DRef, changes: bool) -> tuple[Any, ...]:
        key = self._keys.get(id(handle))
        if key is None:
            key = next(self._next_key)
            self._kept[key] = handle
            self._keys[id(handle)] = key
        return key, type_name(handle.type), handle.nbytes, False, shape_of(handle), changes

    # ---- what the head says -------------------------------------------------------------------------------

    def _want(self, key: int) -> None:
        handle = self._kept.get(key)
        if handle is None:
            self._not_exported(key, StorageError(f"value {key} is not kept by worker {self._worker} (any more)"))
        elif (handle.nbytes or 0) <= AT_ONCE:
            self._export(key, handle)
        else:
            with self._lock:
                self._wanted.append((key, handle))
                if self._exporters == EXPORTERS:
                    return
                self._exporters += 1
            start_bare(threading.Thread(target=self._export_all, name=f"worker-export-{key}", daemon=True))

    def _export_all(self) -> None:
        """The life of a thread that exports."""
        while True:
            with self._lock:
                if not self._wanted:
                    self._exporters -= 1
                    return
                key, handle = self._wanted.popleft()
            self._export(key, handle)
            del handle

    def _export(self, key: int, handle: DRef) -> None:
        try:
            place, item = self._written(read(handle))
        except BaseException as error:  # of a user's pickling: whatever it is
            if not isinstance(error, StorageError):
                kind = handle.type.__name__
                error = InvalidOptionError(
                    f"a {kind} made by worker {self._worker} can't be sent: {type(error).__name__}: {error}"
                )
            self._not_exported(key, error)
        else:
            self._say((EXPORTED, key, place, item))

    def _written(self, value: Any) -> tuple[tuple[Any, ...] | None, Any]:
        """A value's place in a slab, or the value packed: where it is small then, or has handles in it."""
        found: list[bool] = []

        def dump(value: Any, apart: Any) -> bytes:
            header, has_handles = dumps_apart(value, self._handles, apart)
            found.append(has_handles)
            return header

        exported = self._slabs.export(value, dump)
        if exported.slab and not found[0]:
            self._exported[exported.slab, exported.offset] = exported
            if not self.lane.has_sent(self._worker, exported.slab):
                self.lane.send(self._worker, exported.slab, self._slabs.fd_of(exported.slab))
            return tuple(exported), None
        self._slabs.free(exported)
        if found[0]:
            return None, packed(value, self._handles, None)
        return None, (exported.header, type_name(type(value)), None, False)

    def _not_exported(self, key: int, error: BaseException) -> None:
        self._say((NOT_EXPORTED, key, *error_bytes(error, self._handles)))

    def _forget(self, keys: list[int]) -> None:
        for key in keys:
            handle = self._kept.pop(key, None)
            if handle is not None:
                del self._keys[id(handle)]

    def _free(self, places: list[tuple[int, int]]) -> None:
        for place in places:
            exported = self._exported.pop(place, None)
            if exported is not None:
                self._slabs.free(exported)
        gone = self._slabs.retired()
        if gone:
            self.lane.forget(self._worker, gone)
            self._say((RETIRED, gone))

    def _forget_slabs(self, owner: int, slabs: list[int]) -> None:
        self.lane.forget(owner, slabs)
        for slab in slabs:
            self.maps.forget(owner, slab)

    # ---- what the head is told ----------------------------------------------------------------------------

    def news(self) -> tuple[Any, ...] | None:
        """The message that tells what is not read here any more, if there is something."""
        gone = self.maps.released()
        return (RELEASED, [tuple(block) for block in gone]) if gone else None


class _Ringing(deque[Block]):
    """Tells that there is something in it. What it calls takes no lock."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def append(self, block: Block) -> None:
        """From finalizers, too."""
        super().append(block)
        self._ring()
