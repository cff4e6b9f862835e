"""The owner's side of large values: each is written once into memory that other processes map (maps.py).

That memory is *slabs*: files in memory of 64 MiB, or of one value that is larger. A value has one *block* of a slab:
its large buffers, each at the begin of a page. Their pickle (the *header*) goes to the reader by another way, with the
place of the block; the descriptor of a slab is sent once. What is freed stays warm for the next value, as memory that
the kernel has just given takes ten times as long to write.

Nothing here knows of workers or sockets. Who decides when a block is free must know that no map of it is left: a
private map shows what is written into pages that its reader has not touched.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import weakref
from collections import Counter, deque
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any, NamedTuple

from ... import forks
from ...errors import StorageError
from ..service.guards import guard
from ..service.uninterrupted import uninterrupted
from .mapping import HUGE, PAGE, FileMap, map_file, memory_file

__all__ = ["HOT", "OUT_OF_BAND", "SLAB", "SPARE", "Dumps", "Exported", "Slabs"]

SLAB = 64 << 20
"""Bytes of a slab for many values."""

OUT_OF_BAND = 64 << 10
"""Buffers of so many bytes have a place of their own in the block; smaller ones are part of the header."""

SPARE = 256 << 20
"""Free bytes that stay warm, if no more than those are in use; what is freed beyond goes back to the system."""

HOT = 16
"""Uses of a warm block until it gets large pages: to make them takes about as long as readers lose in so many."""

Dumps = Callable[[Any, Callable[[PickleBuffer], bool]], bytes]
"""`dumps(value, buffer_callback)`: a pickler of protocol 5."""

_HAS_HUGE = hasattr(os, "memfd_create")  # what files elsewhere have none of: large pages
_MADV_COLLAPSE = 25  # of Linux 6.1, in no module of Python's
_STEP = 1 << 20  # bytes copied at once, under the interpreter's lock: others get it every 0.1 ms


class Exported(NamedTuple):
    """Where a value lies; `Maps.load` reads it.

    `slab` (0: all of it is in `header`), `offset` and `nbytes` are the block. `buffers` are (offset in the block,
    length), in the order of the pickle. A `header` that is None is large itself: the first of `buffers`.
    """

    slab: int
    offset: int
    nbytes: int
    header: bytes | None
    buffers: tuple[tuple[int, int], ...]


class Slabs:
    """What a process has exported. Thread-safe, in signal handlers too. A forked child has none of it.

    `limit`: most bytes of memory to take for it, free ones that are warm included; None: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = guard()
        self._slabs: dict[int, _Slab] = {}
        self._numbers = 0
        self._retired: deque[int] = deque()
        _all.add(self)

    @property
    def used(self) -> int:
        """Bytes in blocks."""
        with self._lock:
            return self._total(_USED)

    @property
    def held(self) -> int:
        """Bytes that the system has given: those in blocks and the warm ones."""
        with self._lock:
            return self._held()

    def export(self, value: Any, dumps: Dumps) -> Exported:
        """Write a value into a block, which is the caller's to `free`.

        Raises what `dumps` raises, and `StorageError` where the limit or the system leaves no room: nothing is held.
        """
        views: list[memoryview] = []

        def is_in_band(buffer: PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes < OUT_OF_BAND:
                view.release()
                return True
            views.append(view)
            return False

        try:
            header = dumps(value, is_in_band)
            if len(header) < OUT_OF_BAND:
                return self._written(header, views)
            views.insert(0, memoryview(header))
            return self._written(None, views)
        finally:
            for view in views:
                view.release()

    def free(self, exported: Exported) -> None:
        """Let others have the block. Nobody may have a map of it, nor make one. One that is not held is left alone."""
        uninterrupted(self._free, exported)

    def fd_of(self, slab: int) -> int:
        """The descriptor of a slab; it stays ours. Raises `StorageError` if there is no such slab."""
        with self._lock:
            try:
                return self._slabs[slab].file.number
            except (KeyError, OSError) as error:
                why = "there is none in this process" if isinstance(error, KeyError) else str(error)
                raise StorageError(f"slab {slab} can't be sent: {why}") from error

    def retired(self) -> list[int]:
        """The slabs that are gone, since the last call. Readers may forget them."""
        gone = []
        while self._retired:
            gone.append(self._retired.popleft())
        return gone

    def trim(self) -> None:
        """Give all that is free back to the system. What is exported then is slower to write."""
        uninterrupted(self._give_back)

    def close(self) -> None:
        """Let go of all slabs. What others have mapped stays there."""
        with self._lock:
            while self._slabs:
                self._retired.append(self._slabs.popitem()[0])

    # ---- blocks ---------------------------------------------------------------------------------------------

    def _written(self, header: bytes | None, views: list[memoryview]) -> Exported:
        """A block with these in it."""
        places, end = [], 0
        for view in views:
            places.append((end, view.nbytes))
            end += _up(view.nbytes, PAGE)
        if not end:
            return Exported(0, 0, 0, header, ())
        if _HAS_HUGE and _up(end, HUGE) <= end + end // 8:
            end = _up(end, HUGE)
        slab, first, is_warm = uninterrupted(self._take, end // PAGE)
        exported = Exported(slab.number, first * PAGE, end, header, tuple(places))
        try:
            if is_warm and end >= HUGE and slab.is_now_hot(first):
                slab.make_huge(first * PAGE, end)
            for view, (offset, _) in zip(views, places, strict=True):
                slab.write(first * PAGE + offset, view, is_warm)
        except BaseException as error:
            uninterrupted(self._free, exported, is_warm)
            if isinstance(error, OSError):
                raise StorageError(f"{end} bytes can't be written into shared memory: {error}") from error
            raise
        return exported

    def _take(self, count: int) -> tuple[_Slab, int, bool]:
        """So many pages in a row, now used: the slab, the first of them, whether all are warm."""
        with self._lock:
            found, is_warm = self._find(count)
            slab, first = found or (self._new(count), 0)
            slab.mark(first, count, _USED)
            slab.blocks[first] = count
            return slab, first, is_warm

    def _free(self, exported: Exported, is_warm: bool = True) -> None:
        """`is_warm`: all of it was written once, so that the system has given all of its pages."""
        with self._lock:
            slab, first = self._slabs.get(exported.slab), exported.offset // PAGE
            if slab is None or (count := slab.blocks.pop(first, 0)) == 0:
                return
            slab.mark(first, count, _WARM)
            if not is_warm or self._total(_WARM) > max(SPARE, self._total(_USED)):
                self._cool(slab)
            if not is_warm:
                slab.mark(first, count, _COLD)

    def _find(self, count: int) -> tuple[tuple[_Slab, int] | None, bool]:
        """The place for a block: slab and page, or None if it needs a new slab; and whether it is warm."""
        needed = count * PAGE
        if self._limit is not None and self._total(_USED) + needed > self._limit:
            raise StorageError(
                f"{needed} bytes more don't fit into shared memory: {self._total(_USED)} of {self._limit} are in use"
            )
        slabs = [slab for slab in self._slabs.values() if slab.suits(count) and slab.file.is_open()]
        if (found := _first_place(slabs, count, _IS_WARM)) is not None:
            return found, True
        if not self._grows(needed):
            self._give_back()
            slabs = [slab for slab in slabs if slab.number in self._slabs]
            if not self._grows(needed):
                raise StorageError(
                    f"{needed} bytes more don't fit into shared memory: {self._held()} of {self._limit} are taken,"
                    f" {self._total(_USED)} of them in use; this system takes back whole slabs only"
                )
        return _first_place(slabs, count, _IS_FREE), False

    def _grows(self, nbytes: int) -> bool:
        """Whether the limit lets us take so many bytes from the system."""
        return self._limit is None or self._held() + nbytes <= self._limit

    def _new(self, count: int) -> _Slab:
        try:
            made = _Slab(self._numbers + 1, max(count, SLAB // PAGE))
        except OSError as error:
            raise StorageError(f"the system gives no shared memory for {count * PAGE} bytes: {error}") from error
        self._numbers += 1
        self._slabs[made.number] = made
        return made

    def _give_back(self) -> None:
        """All free pages go back to the system."""
        with self._lock:
            for slab in list(self._slabs.values()):
                self._cool(slab)

    def _cool(self, slab: _Slab) -> None:
        """What is free in a slab goes back to the system; one without blocks goes as a whole."""
        slab.give_back()
        if not slab.blocks:
            del self._slabs[slab.number]
            self._retired.append(slab.number)

    def _total(self, state: int) -> int:
        return PAGE * sum(slab.counts[state] for slab in self._slabs.values())

    def _held(self) -> int:
        return self._total(_USED) + self._total(_WARM)

    def _leave_to_parent(self) -> None:
        """In a forked child: the memory is the parent's; only the descriptors are closed."""
        for slab in self._slabs.values():
            slab.file.close()  # also where a thread that is not here had it in its hands
        self._slabs, self._retired = {}, deque()


_COLD, _WARM, _USED = range(3)
"""States of a page: the system has not given it yet, or has it back; it is free; it is part of a block."""

_IS_WARM = bytes([0, 1, 0]).ljust(256, b"\0")
_IS_FREE = bytes([1, 1, 0]).ljust(256, b"\0")


class _Slab:
    """One file in memory, with the state of each of its pages. Not thread-safe."""

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.pages = bytearray(count)
        self.counts = [count, 0, 0]  # pages by state
        self.blocks: dict[int, int] = {}  # first page: how many
        self._uses: Counter[int] = Counter()  # of warm blocks, by their first page
        self.file = memory_file(count * PAGE)
        self._map = map_file(FileMap, self.file.number, 0, count * PAGE, private=False)

    def suits(self, count: int) -> bool:
        """Whether a block of so many pages may go here. One that is much smaller would keep out large ones."""
        return count <= len(self.pages) and (len(self.pages) * PAGE <= SLAB or len(self.pages) < 2 * count)

    def find(self, count: int, which: bytes) -> int:
        """The first of so many pages in a row that `which` translates to 1; -1: there are none.

        What has room for a large page begins where one can.
        """
        pages, row = self.pages.translate(which), b"\1" * count
        step = HUGE // PAGE if _HAS_HUGE and count * PAGE >= HUGE else 1
        first = pages.find(row)
        while first >= 0 and first % step:
            first = pages.find(row, first + step - first % step)
        return first

    def mark(self, first: int, count: int, state: int) -> None:
        """Put pages into a state."""
        for before in range(3):
            self.counts[before] -= self.pages.count(before, first, first + count)
        self.counts[state] += count
        self.pages[first : first + count] = bytes([state]) * count

    def give_back(self) -> None:
        """Have the system take the free pages, if it can: elsewhere they stay warm."""
        if not hasattr(mmap, "MADV_REMOVE"):
            return
        for run in re.finditer(bytes([_WARM]) + b"+", bytes(self.pages)):
            first, count = run.start(), run.end() - run.start()
            try:
                self._map.advise(mmap.MADV_REMOVE, first * PAGE, count * PAGE)
            except OSError:  # not in this file system
                return
            self.mark(first, count, _COLD)
        self._uses.clear()

    def is_now_hot(self, first: int) -> bool:
        """Count one more use of a warm block; whether it is time to see to large pages for it."""
        self._uses[first] += 1
        return self._uses[first] % HOT == 0

    def make_huge(self, offset: int, nbytes: int) -> None:
        """Have the system replace small pages by large ones, where it can. What readers have mapped stays the same."""
        if _HAS_HUGE:
            with contextlib.suppress(OSError):  # an older kernel, or no such memory just now
                self._map.advise(_MADV_COLLAPSE, offset, nbytes - nbytes % HUGE)

    def write(self, offset: int, view: memoryview, is_warm: bool) -> None:
        """Copy bytes to an offset. Raises `OSError` where the system has no memory for them."""
        if is_warm:
            with self._map.view() as target:
                for at in range(0, view.nbytes, _STEP):
                    part = view[at : at + _STEP]
                    target[offset + at : offset + at + part.nbytes] = part
            return
        # By a call: it is faster than page after page on demand, and a full disk is an error there, no signal.
        at = 0
        while at < view.nbytes:
            at += os.pwrite(self.file.number, view[at : at + SLAB], offset + at)


def _first_place(slabs: list[_Slab], count: int, which: bytes) -> tuple[_Slab, int] | None:
    return next(((slab, first) for slab in slabs if (first := slab.find(count, which)) >= 0), None)


def _up(nbytes: int, to: int) -> int:
    """The next multiple."""
    return -(-nbytes // to) * to


_all: weakref.WeakSet[Slabs] = weakref.WeakSet()


@forks.in_child("_all")
def _leave_to_parent() -> None:
    for slabs in list(_all):
        slabs._leave_to_parent()
