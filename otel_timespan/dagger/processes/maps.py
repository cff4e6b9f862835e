"""The reader's side of large values: their blocks (slabs.py) are mapped, and Python's objects lie on the maps.

A map is private: what a reader writes is its own, from then on in memory of its own; of all else there is one copy on
the host. So arrays are writable, and stay what they are whatever becomes of their owner.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ... import forks
from ...errors import StorageError
from ..service.guards import guard
from .mapping import Descriptor, FileMap, map_file, read_file
from .slabs import Exported

__all__ = ["COPIED", "Block", "Loads", "Maps"]

COPIED = 256 << 10
"""Blocks of up to so many bytes are copied: a map costs more, and the block is free again at once."""

Loads = Callable[[Any, Sequence[memoryview]], Any]
"""`loads(header, buffers)`: an unpickler. The header is bytes or a memoryview."""


class Block(NamedTuple):
    """A block of anybody: `owner` is the process, by a number that is never used again."""

    owner: int
    slab: int
    offset: int


class Maps:
    """What a process reads of others. Thread-safe, in signal handlers too. Of it a forked child has its values only.

    `released`: what is to take the entries of `released()`, at any moment and on any thread.
    """

    def __init__(self, released: deque[Block] | None = None) -> None:
        self._lock = guard()
        self._files: dict[tuple[int, int], Descriptor] = {}  # by owner and slab
        self._released: deque[Block] = deque() if released is None else released
        self._maps: weakref.WeakSet[_Map] = weakref.WeakSet()
        _all.add(self)

    def add_slab(self, owner: int, slab: int, fd: int) -> None:
        """Take a slab's descriptor, which is ours from now on. One more of a slab that is known is closed."""
        with self._lock:
            self._files.setdefault((owner, slab), Descriptor(fd))

    def fd_of(self, owner: int, slab: int) -> int:
        """The descriptor of a slab; it stays ours. Raises `StorageError` if it is not known."""
        with self._lock:
            try:
                return self._files[owner, slab].number
            except (KeyError, OSError) as error:
                raise _unreadable(owner, slab, error) from error

    def is_mapped(self, block: Block) -> bool:
        """Whether something here lies on a map of a block."""
        return any(one.block == block for one in list(self._maps))

    def load(self, owner: int, exported: Exported, loads: Loads) -> Any:
        """The value: what is large in it lies on a map of its block.

        Raises what `loads` raises, and `StorageError` if the slab is not known. Each call, failed ones too, has one
        entry in `released`, unless the value has no block (slab 0).
        """
        if not exported.slab:
            return loads(exported.header, ())
        block = Block(owner, exported.slab, exported.offset)
        mapped = self._mapped(block, exported.nbytes)
        views: list[memoryview] = []
        try:
            views += [mapped[offset : offset + nbytes] for offset, nbytes in exported.buffers]
            return loads(views.pop(0) if exported.header is None else exported.header, views)
        finally:
            del mapped, views  # a traceback must not keep the map

    def released(self) -> list[Block]:
        """One entry for each `load` of which nothing is left, since the last call: in any order, blocks repeat.

        A block of which as many entries came as it was loaded has no reader in this process. Costs nothing if there
        are none.
        """
        gone = []
        while self._released:
            gone.append(self._released.popleft())
        return gone

    def forget(self, owner: int, slab: int | None = None) -> None:
        """Close the descriptors of an owner, or of one of its slabs. Values that were loaded stay."""
        with self._lock:
            for key in [key for key in self._files if key[0] == owner and slab in (None, key[1])]:
                self._files.pop(key, None)

    def close(self) -> None:
        """Forget all owners."""
        with self._lock:
            self._files.clear()

    def _mapped(self, block: Block, nbytes: int) -> memoryview:
        """The bytes of a block, this call's own; whatever holds them keeps the map."""
        with self._lock:
            is_mapped = False
            try:
                file = self._files[block[:2]]
                if nbytes > COPIED:
                    with contextlib.suppress(OSError):  # a process may have so many maps: a copy does as well
                        made = map_file(_Map, file.number, block.offset, nbytes, private=True)
                        made.block, made.released = block, self._released
                        is_mapped = True
                        self._maps.add(made)
                        return made.view()
                return memoryview(read_file(file.number, block.offset, nbytes))
            except (KeyError, OSError) as error:
                raise _unreadable(block.owner, block.slab, error) from error
            finally:
                if not is_mapped:
                    self._released.append(block)

    def _leave_to_parent(self) -> None:
        """In a forked child: the owners' memory is not kept for it."""
        for file in self._files.values():
            file.close()  # also where a thread that is not here had it in its hands
        self._files = {}
        self._released = deque()  # maps of the parent's loads say it to another


def _unreadable(owner: int, slab: int, error: Exception) -> StorageError:
    why = "it is not known here, or gone" if isinstance(error, KeyError) else str(error)
    return StorageError(f"slab {slab} of process {owner} can't be read: {why}")


class _Map(FileMap):
    """A map that says when the last of what lies on it is gone."""

    block: Block
    released: deque[Block] | None = None

    def __del__(self) -> None:
        if self.released is not None:
            self.released.append(self.block)


_all: weakref.WeakSet[Maps] = weakref.WeakSet()


@forks.in_child("_all")
def _leave_to_parent() -> None:
    for maps in list(_all):
        maps._leave_to_parent()
