"""Memory that has a descriptor, and maps of it that need none of their own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
from typing import TypeVar

from ... import forks

__all__ = ["HUGE", "PAGE", "Descriptor", "FileMap", "map_file", "memory_file", "read_file"]

PAGE = mmap.ALLOCATIONGRANULARITY
"""Where a map may begin, and what its length is a multiple of, in bytes."""

HUGE = 2 << 20
"""Bytes of a large page, as most systems have them."""


class Descriptor:
    """An open file of ours, closed with the last reference.

    A body may close whatever it finds open, and the number then is of another file: it is looked at before each use.
    """

    _fd = -1

    def __init__(self, fd: int) -> None:
        self._file = _identity(fd)
        self._fd = fd

    @property
    def number(self) -> int:
        """What the system calls it. Raises `OSError` if others have closed it."""
        if _identity(self._fd) != self._file:
            raise OSError(errno.EBADF, "somebody else closed our descriptor")
        return self._fd

    def is_open(self) -> bool:
        """Whether it is ours still."""
        try:
            return self.number >= 0
        except OSError:
            return False

    def close(self) -> None:
        """Close it, unless it is another's by now. Safe to call again."""
        if self._fd >= 0 and self.is_open():
            os.close(self._fd)
        self._fd = -1

    __del__ = close


def memory_file(nbytes: int) -> Descriptor:
    """A new file of so many bytes of zeros, without a name. They take no memory before they are written.

    Where the system has no `memfd_create` it is one of the temporary folder that is unlinked already. Raises `OSError`.
    """
    if hasattr(os, "memfd_create"):
        made = Descriptor(os.memfd_create("otel-timespan"))
    else:
        with forks.held_off:  # `tempfile` takes locks at its first use
            fd, path = tempfile.mkstemp(prefix="otel-timespan-")
        made = Descriptor(fd)
        os.unlink(path)
    os.ftruncate(made.number, nbytes)
    return made


def read_file(fd: int, offset: int, nbytes: int) -> bytearray:
    """A copy of a part of a file. Raises `OSError`."""
    copied = bytearray(nbytes)
    at = 0
    while at < nbytes:
        part = os.pread(fd, min(nbytes - at, 1 << 20), offset + at)
        if not part:
            raise OSError(f"a file in memory ends at {offset + at}, before {offset + nbytes}")
        copied[at : at + len(part)] = part
        at += len(part)
    return copied


class FileMap(mmap.mmap):
    """A part of a file as memory; made by `map_file`. It is unmapped with its last view."""

    _skipped = 0  # bytes before it, so that it begins where a large page can

    def view(self) -> memoryview:
        """The bytes, to read and write."""
        return memoryview(self)[self._skipped :]

    def advise(self, option: int, offset: int, nbytes: int) -> None:
        """`madvise` for a part. Raises `OSError`. Others run meanwhile, which `mmap.madvise` does not let them."""
        _check(_libc.madvise(_address(self) + self._skipped + offset, nbytes, option))


_Map = TypeVar("_Map", bound=FileMap)


def map_file(kind: type[_Map], fd: int, offset: int, nbytes: int, *, private: bool) -> _Map:
    """Map a part of a file; `private`: what is written stays in this map. Raises `OSError`.

    The `mmap.mmap` of such a part would keep a copy of the descriptor (before Python 3.13): a thousand values would be
    a thousand descriptors, which is where systems stop. So the object is made for memory without a file, and the file
    is mapped in its place, where large pages of it can be told by one entry in the tables of the processor.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    spare = HUGE if nbytes >= HUGE else 0
    made = kind(-1, nbytes + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=access)
    begin = _address(made)
    made._skipped = (offset - begin) % HUGE if spare else 0
    flags = _MAP_FIXED | (mmap.MAP_PRIVATE if private else mmap.MAP_SHARED)
    _check(_libc.mmap(begin + made._skipped, nbytes, access, flags, fd, offset))
    return made


_MAP_FIXED = 0x10  # the same on all systems that we know of, and in no module of Python's

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_ssize_t
_libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _address(of: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(of))


def _check(result: int) -> None:
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
