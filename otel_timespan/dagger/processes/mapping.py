"""Memory that has a descriptor, and maps of it that need none of their own."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from typing import TypeVar

from ... import forks

__all__ = ["PAGE", "map_file", "memory_file", "read_file"]

PAGE = mmap.ALLOCATIONGRANULARITY
"""Where a map may begin, and what its length is a multiple of, in bytes."""

_Map = TypeVar("_Map", bound=mmap.mmap)

_MAP_FIXED = 0x10  # the same on all systems that we know of, and in no module of Python's


def memory_file(nbytes: int) -> int:
    """A new descriptor of so many bytes of zeros, without a name. They take no memory before they are written.

    Where the system has no `memfd_create` it is a file of the temporary folder that is unlinked already. Raises
    `OSError`. The caller closes it.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("otel-timespan")
    else:
        with forks.held_off:  # `tempfile` takes locks at its first use
            fd, path = tempfile.mkstemp(prefix="otel-timespan-")
        os.unlink(path)
    try:
        os.ftruncate(fd, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


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


def map_file(kind: type[_Map], fd: int, offset: int, nbytes: int, *, private: bool) -> _Map:
    """Map a part of a file, to read and write; `private`: what is written stays in this map. Raises `OSError`.

    `kind` is a subclass of `mmap.mmap`. Before Python 3.13 such an object keeps a copy of the descriptor: a thousand
    values would be a thousand descriptors, which is where systems stop. So there it is made for memory without a file,
    and the file is mapped in its place.
    """
    flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):
        return kind(fd, nbytes, flags=flags, prot=access, offset=offset, trackfd=False)
    made = kind(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=access)
    where = ctypes.addressof(ctypes.c_char.from_buffer(made))
    if _libc_mmap(where, nbytes, access, flags | _MAP_FIXED, fd, offset) != where:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return made


if sys.version_info < (3, 13):
    _libc_mmap = ctypes.CDLL(None, use_errno=True).mmap
    _libc_mmap.restype = ctypes.c_void_p
    _libc_mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,  # `off_t`
    ]
