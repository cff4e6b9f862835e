"""Encoded spans on disk, first in, first out: what does not fit into memory while the collector is away.

Segments of about one batch each, in a directory of our own (mode 0700) that is removed on `close`. Each record has a
mark, a number and a checksum: what is damaged costs itself, is found, and nothing is read twice. The first record of
a segment is the envelope of its spans, so that another process can send what a killed one left (`adopt`): its
directory has the same key in its name, and its lock is free.

Not thread-safe: the pipeline's lock is held around everything but `Segment.read` and `Segment.remove`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ... import forks
from .transport import Item, Request, Wrapped
from .wire import Envelope

__all__ = ["Segment", "Spill"]

_log = logging.getLogger("otel_timespan")

_MARK = b"\xf5tsp"
_BODY, _REQUEST, _ENVELOPE = 0, 1, 2
_head = struct.Struct("<BII")  # kind, number (1 is the first span), length
_checksum = struct.Struct("<I")
_HEAD_BYTES = len(_MARK) + _head.size + _checksum.size
_lengths = struct.Struct("<4I")  # of the parts of an envelope

_PREFIX = "otel-timespan-"
_LOCK = ".lock"


class Segment(NamedTuple):
    """A finished file of `spans` records; `owners` says whose they are, in order."""

    path: str
    spans: int
    nbytes: int
    owners: list[tuple[Any, int]]
    adopted: bool = False

    def read(self) -> dict[int, Item]:
        """Its spans by their number from 1 on, without those that are damaged or gone. Never raises OSError."""
        data = b""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            data = file.read()
        envelope: Envelope | None = None
        read: dict[int, Item] = {}
        last = 0
        for kind, number, body in _records(data):
            if kind == _ENVELOPE:
                envelope = _unpacked(body)
            elif last < number <= self.spans:  # else somebody appended what was there before
                last = number
                item: Item = Request(body) if kind == _REQUEST else body
                if self.adopted and kind == _BODY and envelope is not None:
                    item = Wrapped(body, envelope)
                read[number] = item
        return read

    def remove(self) -> None:
        """Delete the file; one that is gone already is fine."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


class Spill:
    """`count` spans of `nbytes` wait on disk, at most `max_bytes`, in a directory below `directory` (default: the
    system's for temporary files) whose name holds `key`. `envelope`: who sends the spans that are only bodies."""

    def __init__(
        self,
        max_bytes: int,
        segment_bytes: int,
        directory: str | None = None,
        key: str = "",
        envelope: Envelope | None = None,
    ) -> None:
        self.max_bytes, self._segment_bytes, self.directory = max_bytes, segment_bytes, directory
        self.key, self.envelope = key, envelope
        self._forget()

    def _forget(self) -> None:
        self.count = self.nbytes = 0
        self._segments: deque[Segment] = deque()
        self._own: str | None = None  # our directory
        self._lock_fd: int | None = None
        self._fd: int | None = None  # the segment that is being written
        self._path = ""
        self._number = 0
        self._open_owners: list[tuple[Any, int]] = []
        self._open_count = self._open_bytes = 0

    # --- in ----------------------------------------------------------------------------------------------

    def append(self, spans: Sequence[bytes], owner: Any = None) -> int:
        """Write as many as fit, from the first on; how many were. Raises OSError as the disk does: see `count`."""
        written = 0
        while written < len(spans):
            chunk: list[bytes] = []
            nbytes = 0
            for span in spans[written:]:
                full = chunk and self._open_bytes + nbytes >= self._segment_bytes
                if full or self.nbytes + nbytes + len(span) > self.max_bytes:
                    break
                chunk.append(span)
                nbytes += len(span)
            if not chunk:
                break
            self._write(chunk, owner)
            written += len(chunk)
        return written

    def _write(self, spans: list[bytes], owner: Any) -> None:
        if self._fd is not None and not os.fstat(self._fd).st_nlink:
            self._finish()  # the folder vanished under us: no more spans into a file that nobody can open
        fd = self._fd if self._fd is not None else self._open()
        records = [
            _packed(_REQUEST if isinstance(span, Request) else _BODY, self._open_count + number, span)
            for number, span in enumerate(spans, 1)
        ]
        try:
            _write_all(fd, b"".join(records))
        except _TornError as torn:
            whole, position = 0, 0
            for record in records:
                position += len(record)
                if position > torn.done:
                    break
                whole += 1
            self._note(spans[:whole], owner)
            self._finish()  # a torn record may only be the last one of a segment
            raise torn.error from None
        self._note(spans, owner)
        if self._open_bytes >= self._segment_bytes:
            self._finish()

    def _note(self, spans: Sequence[bytes], owner: Any) -> None:
        count, nbytes = len(spans), sum(map(len, spans))
        self.count += count
        self.nbytes += nbytes
        self._open_count += count
        self._open_bytes += nbytes
        if count:
            if self._open_owners and self._open_owners[-1][0] is owner:
                count += self._open_owners.pop()[1]
            self._open_owners.append((owner, count))

    def _open(self) -> int:
        try:
            fd = self._create()
        except FileNotFoundError:
            if self._own is None:
                raise
            _log.warning("the folder of spilled spans is gone: %s; another one is made", self._own)
            self._unlock()
            self._own = None
            fd = self._create()
        self._fd = fd
        if self.envelope is not None:
            try:
                _write_all(fd, _packed(_ENVELOPE, 0, _flat(self.envelope)))
            except _TornError as torn:
                self._finish()
                raise torn.error from None
        return fd

    def _create(self) -> int:
        self._number += 1
        self._path = os.path.join(self._ours(), f"{self._number:08d}")
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def _ours(self) -> str:
        if self._own is None:
            if self.directory is not None:
                os.makedirs(self.directory, exist_ok=True)
            with forks.held_off:
                self._own = tempfile.mkdtemp(prefix=f"{_PREFIX}{self.key}-", dir=self.directory)
            self._lock_fd = _lock(os.path.join(self._own, _LOCK), create=True)
        return self._own

    # --- out ---------------------------------------------------------------------------------------------

    def next_segment(self) -> Segment | None:
        """Take the oldest segment; its spans are the caller's from now on. None when nothing waits."""
        if not self._segments:
            self._finish()
        if not self._segments:
            return None
        segment = self._segments.popleft()
        self.count -= segment.spans
        self.nbytes -= segment.nbytes
        return segment

    def _finish(self) -> None:
        if self._fd is None:
            return
        fd, path = self._fd, self._path
        segment = Segment(path, self._open_count, self._open_bytes, self._open_owners)
        self._fd, self._open_owners, self._open_count, self._open_bytes = None, [], 0, 0
        with contextlib.suppress(OSError):  # then the name does not say how many they are; reading finds out
            named = f"{path}-{segment.spans}"
            os.rename(path, named)
            segment = segment._replace(path=named)
        try:
            os.close(fd)
        finally:
            # Also when closing fails (a full disk): these spans are accounted for with the segment.
            if segment.spans:
                self._segments.append(segment)
            else:
                segment.remove()

    def close(self) -> None:
        """Forget and remove all."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
        self._unlock()
        self._forget()

    def leave(self) -> None:
        """Forget all without touching it: it is the parent's. For a forked child."""
        if self._fd is not None:
            os.close(self._fd)
        self._unlock()  # the parent's own descriptor still holds it
        self._forget()

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # --- what a killed process left -----------------------------------------------------------------------

    def adopt(self, owner: Any) -> int:
        """Take over what dead processes with our key left, as `owner`'s; how many spans. Never raises OSError."""
        if self.envelope is None or not hasattr(os, "getuid"):
            return 0
        before = self.count
        with contextlib.suppress(OSError):
            for place in sorted(_left_behind(self.directory or tempfile.gettempdir(), self.key)):
                fd = _lock(os.path.join(place, _LOCK), create=False)
                if fd is None:
                    continue  # its process is alive, or it was taken over by another
                try:
                    self._take_over(place, owner)
                finally:
                    os.close(fd)
        return self.count - before

    def _take_over(self, place: str, owner: Any) -> None:
        for name in sorted(os.listdir(place)):
            number, _, count = name.partition("-")
            path = os.path.join(place, name)
            if not number.isdigit() or not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            spans = int(count) if count.isdigit() and len(count) < 9 else _count(path)
            if not spans:
                continue
            self._number += 1
            moved = os.path.join(self._ours(), f"{self._number:08d}-{spans}")
            os.rename(path, moved)
            nbytes = os.path.getsize(moved)
            self._segments.append(Segment(moved, spans, nbytes, [(owner, spans)], adopted=True))
            self.count += spans
            self.nbytes += nbytes
        shutil.rmtree(place, ignore_errors=True)


class _TornError(Exception):
    """Only `done` bytes could be written."""

    def __init__(self, done: int, error: OSError) -> None:
        self.done, self.error = done, error


def _write_all(fd: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        try:
            done += os.write(fd, memoryview(data)[done:])
        except OSError as error:
            raise _TornError(done, error) from error


def _packed(kind: int, number: int, body: bytes) -> bytes:
    head = _head.pack(kind, number, len(body))
    return _MARK + head + _checksum.pack(zlib.crc32(body, zlib.crc32(head))) + body


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, number, body) of each intact record; after a damaged one it goes on at the next mark."""
    position = data.find(_MARK)
    while 0 <= position <= len(data) - _HEAD_BYTES:
        head = data[position + len(_MARK) : position + len(_MARK) + _head.size]
        kind, number, length = _head.unpack(head)
        [checksum] = _checksum.unpack_from(data, position + len(_MARK) + _head.size)
        start = position + _HEAD_BYTES
        body = data[start : start + length]
        intact = len(body) == length and zlib.crc32(body, zlib.crc32(head)) == checksum
        if intact:
            yield kind, number, body
        position = data.find(_MARK, start + length if intact else position + 1)


def _count(path: str) -> int:
    """How many spans a segment holds whose writer was killed: the highest number, damaged ones before it too."""
    with open(path, "rb") as file:
        return max((number for kind, number, _ in _records(file.read()) if kind != _ENVELOPE), default=0)


def _flat(envelope: Envelope) -> bytes:
    return _lengths.pack(*map(len, envelope)) + b"".join(envelope)


def _unpacked(body: bytes) -> Envelope:
    parts, position = [], _lengths.size
    for length in _lengths.unpack_from(body):
        parts.append(body[position : position + length])
        position += length
    return Envelope(*parts)


def _left_behind(directory: str, key: str) -> Iterator[str]:
    """Directories of ours, nobody else's: names in a place for temporary files can be anybody's."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(f"{_PREFIX}{key}-") and entry.is_dir(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid == os.getuid() and not found.st_mode & 0o077:
                    yield entry.path


def _lock(path: str, create: bool) -> int | None:
    """A descriptor that holds the lock of a directory, for as long as it is open; None where that can't be had."""
    try:
        import fcntl
    except ImportError:  # another system: nothing is locked, and nothing adopted
        return None
    try:
        fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
