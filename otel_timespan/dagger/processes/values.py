"""Where large values are, and who reads them: the head's table, and what it says to workers about them.

A result that is larger than some KiB stays with the worker that made it; the head has a handle (`RemoteDRef`). When
somebody else needs it its worker *exports* it, once: into a block of memory (slabs.py) whose descriptor the head
keeps, so that the value outlives its owner. Readers map that block. Values of the head are exported by itself.

The head counts readers: one more with each message that names a block, one less when the reader says that a map is
gone (`RELEASED`). A block is free for others when its value has no handle, no reader and no map in the head. What dead
workers read is forgotten; blocks of a dead owner live on in the head as long as they are used.

All on the pump's thread, except for `pull`, and for the ends of handles, which only append.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import pickle
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import StorageError, WorkerLostError
from ..data.chunks import Chunk, DRef
from ..data.read import read
from ..tasks.dtask import DTask
from .handles import HEAD, RemoteDRef, shape_of
from .maps import Block, Maps
from .slabs import Exported, Slabs
from .wire import FORGET, FORGET_SLABS, FREE, WANT, dumps_apart, error_of, loads, loads_apart, type_name

if TYPE_CHECKING:
    from .remote import Remote

__all__ = ["LARGE", "Values"]

LARGE = 128 << 10
"""Values of the head from so many bytes on go by a block; smaller ones are part of the message."""


class Shared:
    """A block, and who reads it."""

    __slots__ = ("exported", "is_wanted", "owner", "readers")

    def __init__(self, owner: int, exported: Exported) -> None:
        self.owner, self.exported = owner, exported
        self.is_wanted = True
        """Whether the value has a handle."""
        self.readers: dict[int, int] = {}
        """How many maps other processes have, or are about to make, by worker."""

    @property
    def block(self) -> Block:
        """What it is called."""
        return Block(self.owner, self.exported.slab, self.exported.offset)


class _HandlesInsideError(Exception):
    """A value has handles in it, which are written for one reader only."""


class Values:
    """See the module. `call`, `poke` and `is_pump` are the pump's; `limit`: bytes of shared memory for our values."""

    def __init__(self, limit: int) -> None:
        self.maps = Maps()
        self.slabs = Slabs(limit)
        self.call: Callable[[Callable[[], None]], None] = _no_pump
        self.poke: Callable[[], None] = _no_pump
        self.is_pump: Callable[[], bool] = bool
        self.gone: deque[Any] = deque()
        """What came to an end: (worker, key, block) for a handle, (None, id of the handle, block) for one of the head's
        own, and (None, None, block) for a block that the head has read. The block may be None.
        """
        self._homes: dict[int, Remote] = {}
        self._handles: weakref.WeakValueDictionary[tuple[int, int], RemoteDRef] = weakref.WeakValueDictionary()
        self._waits: dict[tuple[int, int], list[Callable[[], None]]] = {}
        self._blocks: dict[Block, Shared] = {}
        self._ours: dict[int, tuple[weakref.ref[DRef], Shared | None]] = {}
        """Of values of the head, by `id()` of the handle. None: it has no block, and goes with each message."""
        self._told: list[tuple[Shared, int]] = []
        """The readers that the message that is being made has counted."""

    def say(self, remote: Remote, message: Any) -> None:
        """Send a message to a worker, which the pump may have looked at already in this round."""
        remote.say(message)
        self.poke()

    # ---- workers ------------------------------------------------------------------------------------------

    def join(self, remote: Remote) -> None:
        """There is one more worker."""
        self._homes[remote.worker] = remote

    def left(self, remote: Remote, error: Callable[[], BaseException] | None = None) -> None:
        """A worker is gone, with what it had not exported: `error()` is why that can't be had."""
        worker = remote.worker
        if self._homes.pop(worker, None) is None:
            return
        why = error or (lambda: WorkerLostError(worker))
        for (home, _), handle in list(self._handles.items()):
            if home == worker and handle.is_elsewhere:
                handle.error = why
        for key in [key for key in self._waits if key[0] == worker]:
            self._tell(key)
        for shared in list(self._blocks.values()):
            shared.readers.pop(worker, None)
            self._settle(shared)
        used = {block.slab for block in self._blocks if block.owner == worker}
        self._forget_slabs(worker, [slab for slab in remote.lane.come_of(worker) if slab not in used])
        remote.lane.close()

    # ---- what workers say ---------------------------------------------------------------------------------

    def handle(self, remote: Remote, item: Any, put: Callable[[Any], None] | None) -> RemoteDRef:
        """The handle of a result that is kept there: the same one for a value that was kept before."""
        key = (remote.worker, item[0])
        known = self._handles.get(key)
        if known is None:
            known = self._handles[key] = RemoteDRef(remote, item, put, self.pull, self.gone.append)
        return known

    def drop(self, remote: Remote, item: Any) -> None:
        """Nobody waits for a result that is kept there."""
        if (remote.worker, item[0]) not in self._handles:
            self.say(remote, (FORGET, [item[0]]))

    def exported(self, remote: Remote, key: int, place: Any, item: Any) -> None:
        """A value is where others find it: in a block, or here, packed."""
        handle = self._handles.get((remote.worker, key))
        if place is not None:
            shared = Shared(remote.worker, Exported(*place))
            self._blocks[shared.block] = shared
            remote.lane.look_for(remote.worker, shared.exported.slab)
            if handle is None:
                shared.is_wanted = False
                self._settle(shared)
            else:
                self._replace(handle, shared, None)
        elif handle is not None:
            self._replace(handle, None, item)
            if item[3]:  # handles in it mean something while it is here
                with contextlib.suppress(Exception):  # whoever wants it meets the error
                    _ = handle.value
        self._tell((remote.worker, key))

    def _replace(self, handle: RemoteDRef, shared: Shared | None, item: Any) -> None:
        """Where a value is now. What there was before was of a value that may have changed."""
        old = handle.shared
        handle.shared, handle.item = shared, item
        if old is not None:
            old.is_wanted = False
            self._settle(old)

    def not_exported(self, remote: Remote, key: int, data: bytes, text: str) -> None:
        """A value can't be written, or there is no room for it."""
        handle = self._handles.get((remote.worker, key))
        if handle is not None:
            handle.error = lambda: error_of(remote.worker, data, text)
        self._tell((remote.worker, key))
        if handle is not None and isinstance(error_of(remote.worker, data, text), StorageError):
            handle.error = None  # there may be room for it later

    def released(self, remote: Remote, blocks: Sequence[Any]) -> None:
        """Maps there are gone."""
        for name in blocks:
            shared = self._blocks.get(Block(*name))
            if shared is not None:
                _count_down(shared, remote.worker)
                self._settle(shared)

    def retired(self, remote: Remote, slabs: list[int]) -> None:
        """Slabs of that worker are gone."""
        self._forget_slabs(remote.worker, slabs)

    # ---- what is wanted -----------------------------------------------------------------------------------

    def missing(self, remote: Remote, task: Any) -> list[RemoteDRef]:
        """What a task on this worker needs and is at another one only."""
        if not self._handles or task._options.meta:
            return []
        given = (task._f, *task._args, *(task._kwargs or {}).values())
        refs = [one._outcome if type(one) is DTask else one.handle if type(one) is Chunk else None for one in given]
        return [ref for ref in refs if type(ref) is RemoteDRef and ref.home is not remote and ref.is_elsewhere]

    def want(self, handles: Sequence[RemoteDRef], tell: Callable[[], None]) -> None:
        """Have values exported; `tell()` when they are, or can't be."""
        left = len(handles)
        if not left:
            tell()

        def one_is_there() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                tell()

        for handle in handles:
            key = (handle.worker, handle.key)
            if not handle.is_elsewhere:
                one_is_there()
            elif key in self._waits:
                self._waits[key].append(one_is_there)
            else:
                self._waits[key] = [one_is_there]
                self.say(handle.home, (WANT, handle.key))

    def adopt(self, remote: Remote, tell: Callable[[], None]) -> None:
        """Have all that only this worker has where it outlives it; `tell()` when that is so, or can't be."""
        kept = [one for one in list(self._handles.values()) if one.home is remote and one.is_elsewhere]

        def there() -> None:
            for handle in kept:
                handle.changes = False  # nobody can change it any more
            tell()

        self.want(kept, there)

    def want_for(self, remote: Remote, handle: DRef, tell: Callable[[], None]) -> None:
        """Have a value where this worker can have it; `tell()` when it is, or can't be."""
        if type(handle) is RemoteDRef and handle.home is not remote and handle.is_elsewhere:
            self.want([handle], tell)
        else:
            tell()

    def pull(self, handle: RemoteDRef) -> Any:
        """The value behind a handle, in this process. Waits for it. See `RemoteDRef` for what it raises."""
        if handle.is_elsewhere:
            if self.is_pump():
                raise StorageError("a value of a worker was wanted where nobody may wait for it")
            return self._waited_for(handle)
        return self._read(handle, handle.shared, handle.item, handle.error)

    def _waited_for(self, handle: RemoteDRef) -> Any:
        found: list[Any] = []
        done = allocate_lock()
        done.acquire()
        is_over: list[bool] = []

        def there() -> None:
            if not is_over:
                if handle.shared is not None:  # another one may take its place while this is read
                    _count(handle.shared, HEAD)
                found.extend((handle.shared, handle.item, handle.error))
            done.release()

        self.call(lambda: self.want([handle], there))
        try:
            done.acquire()
            return self._read(handle, *found)
        finally:
            is_over.append(True)
            if found:
                self.gone.append((None, None, found[0]))

    def _read(self, handle: RemoteDRef, shared: Shared | None, item: Any, error: Any) -> Any:
        if shared is None and item is None:
            raise error()
        try:
            if shared is None:
                return loads(item[0])
            return self.maps.load(shared.owner, shared.exported, loads_apart)
        except StorageError:
            raise
        except Exception as unreadable:
            name = handle.type.__name__
            text = f"the value, a {name} made by a worker, can't be read here: {unreadable!r}"
            raise StorageError(text) from unreadable

    def _tell(self, key: tuple[int, int]) -> None:
        for tell in self._waits.pop(key, ()):
            tell()

    # ---- messages that name values ------------------------------------------------------------------------

    def begin_message(self) -> None:
        """A message is made whose readers count when it is sent."""
        self._told.clear()

    def undo_message(self) -> None:
        """It is not sent after all."""
        for shared, worker in self._told:
            _count_down(shared, worker)
            self._settle(shared)
        self._told.clear()

    def item_of(self, remote: Remote, handle: RemoteDRef) -> Any:
        """What stands in a message to this worker for a value that a worker made. Raises why it can't be had."""
        if handle.home is remote:
            return (handle.key,)
        if handle.shared is not None:
            return self._located(remote, handle.shared, handle.description)
        if handle.item is not None and not handle.item[3]:
            return handle.item
        if handle.error is not None:
            raise handle.error()
        return None

    def our_item(self, remote: Remote, handle: DRef) -> Any:
        """What stands there for a large value of the head, exported once for all readers; None: it has no block."""
        known = self._ours.get(id(handle))
        if known is None or known[0]() is not handle:
            shared = self._export(read(handle))
            number = id(handle)
            known = weakref.ref(handle, lambda _: self.gone.append((None, number, shared))), shared
            self._ours[number] = known
        shared = known[1]
        return None if shared is None else self._located(remote, shared, _describe(handle))

    def given_item(self, remote: Remote, value: Any, nbytes: int) -> Any:
        """What stands there for a large argument, in a block of its own; None: it has none."""
        shared = self._export(value)
        if shared is None:
            return None
        shared.is_wanted = False
        handle = DRef()
        handle.value, handle._nbytes, handle.worker = value, nbytes, HEAD
        return self._located(remote, shared, _describe(handle))

    def _located(self, remote: Remote, shared: Shared, description: tuple[Any, ...]) -> Any:
        owner, exported = shared.owner, shared.exported
        if not remote.lane.has_sent(owner, exported.slab):
            fd = self.slabs.fd_of(exported.slab) if owner == HEAD else self.maps.fd_of(owner, exported.slab)
            try:
                remote.lane.send(owner, exported.slab, fd)
            except OSError as error:
                raise StorageError(f"slab {exported.slab} can't be sent to worker {remote.worker}: {error}") from error
        _count(shared, remote.worker)
        self._told.append((shared, remote.worker))
        return (owner, tuple(exported), *description)

    def _export(self, value: Any) -> Shared | None:
        try:
            exported = self.slabs.export(value, _dumps)
        except (_HandlesInsideError, StorageError):  # without room it goes the long way
            return None
        if not exported.slab:
            return None
        shared = Shared(HEAD, exported)
        self._blocks[shared.block] = shared
        return shared

    # ---- the end of values ----------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Let go of what nobody has any more."""
        forgotten: dict[Remote, list[int]] = {}
        while self.gone:
            home, key, shared = self.gone.popleft()
            if key is None:  # it was read in the head
                if shared is not None:
                    _count_down(shared, HEAD)
                    self._settle(shared)
                continue
            if home is None:
                known = self._ours.get(key)
                if known is not None and known[0]() is None:  # else the number is another handle's by now
                    del self._ours[key]
            elif home.worker in self._homes:
                forgotten.setdefault(home, []).append(key)
            if shared is not None:
                shared.is_wanted = False
                self._settle(shared)
        for remote, keys in forgotten.items():
            self.say(remote, (FORGET, keys))
        for block in self.maps.released():
            shared = self._blocks.get(block)
            if shared is not None:
                self._settle(shared)

    def _settle(self, shared: Shared) -> None:
        """Free a block that nobody needs."""
        block = shared.block
        if shared.is_wanted or shared.readers or self.maps.is_mapped(block) or self._blocks.pop(block, None) is None:
            return
        if shared.owner == HEAD:
            self.slabs.free(shared.exported)
            self._forget_slabs(HEAD, self.slabs.retired())
            return
        home = self._homes.get(shared.owner)
        if home is not None:
            self.say(home, (FREE, [tuple(block[1:])]))
        elif not any(one[:2] == block[:2] for one in self._blocks):
            self._forget_slabs(shared.owner, [block.slab])

    def _forget_slabs(self, owner: int, slabs: list[int]) -> None:
        if not slabs:
            return
        for slab in slabs:
            self.maps.forget(owner, slab)
        for remote in list(self._homes.values()):
            had = remote.lane.forget(owner, slabs)
            if had:
                self.say(remote, (FORGET_SLABS, owner, had))


def _count(shared: Shared, worker: int) -> None:
    shared.readers[worker] = shared.readers.get(worker, 0) + 1


def _count_down(shared: Shared, worker: int) -> None:
    left = shared.readers.get(worker, 0) - 1
    if left > 0:
        shared.readers[worker] = left
    else:
        shared.readers.pop(worker, None)


def _describe(handle: DRef) -> tuple[Any, ...]:
    return type_name(handle.type), handle.nbytes, False, shape_of(handle)


def _refuse(handle: Any) -> Any:
    raise _HandlesInsideError


def _dumps(value: Any, apart: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    return dumps_apart(value, {DTask: _refuse, Chunk: _refuse}, apart)[0]


def _no_pump(*given: Any) -> None:
    raise AssertionError("a value of a worker before there was one")

