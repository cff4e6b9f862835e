"""Encoded spans on disk, first in, first out: what does not fit into memory while the collector is away.

Segments of about one batch each, in a directory of our own (mode 0700) that is removed on `close`. A record
is a kind (0: a `Span` body, 1: a whole request), a length and the bytes. Not thread-safe: the pipeline's lock
is held around `append` and `next_segment`; reading a segment needs no lock.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import IO, NamedTuple

from ... import forks
from .transport import Request

__all__ = ["Segment", "Spill"]

_record = struct.Struct("<BI")


class Segment(NamedTuple):
    """A finished file of records."""

    path: str
    spans: int
    nbytes: int

    def read(self) -> list[bytes]:
        """Its spans in order, each a body or a `Request`; fewer than `spans` if the disk was full."""
        with open(self.path, "rb") as file:
            data = file.read()
        read: list[bytes] = []
        position = 0
        while position + _record.size <= len(data):
            kind, length = _record.unpack_from(data, position)
            position += _record.size + length
            if position > len(data):
                break  # cut off by a full disk
            body = data[position - length : position]
            read.append(Request(body) if kind else body)
        return read

    def remove(self) -> None:
        """Delete the file; one that is gone already is fine."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return


class Spill:
    """`count` spans of `nbytes` wait on disk, at most `max_bytes`."""

    def __init__(self, max_bytes: int, segment_bytes: int, directory: str | None = None) -> None:
        self.max_bytes, self._segment_bytes, self._parent = max_bytes, segment_bytes, directory
        self.count = self.nbytes = 0
        self._segments: deque[Segment] = deque()
        self._directory: str | None = None
        self._file: IO[bytes] | None = None
        self._number = self._open_count = self._open_bytes = 0

    def append(self, spans: Sequence[bytes]) -> int:
        """Write as many as fit, from the first on; how many were. Raises OSError as the disk does."""
        written = 0
        for span in spans:
            if self.nbytes + len(span) > self.max_bytes:
                break
            file = self._file or self._open()
            try:
                file.write(_record.pack(isinstance(span, Request), len(span)) + span)
            except OSError:
                self._finish()  # a torn record may only be the last one of a segment
                raise
            written += 1
            self.count += 1
            self.nbytes += len(span)
            self._open_count += 1
            self._open_bytes += len(span)
            if self._open_bytes >= self._segment_bytes:
                self._finish()
        return written

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

    def close(self) -> None:
        """Forget and remove all."""
        if self._file is not None:
            self._file.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self.__init__(self.max_bytes, self._segment_bytes, self._parent)  # type: ignore[misc]

    def _open(self) -> IO[bytes]:
        if self._directory is None:
            with forks.held_off:
                self._directory = tempfile.mkdtemp(prefix="otel-timespan-", dir=self._parent)
        self._number += 1
        self._file = open(os.path.join(self._directory, f"{self._number:08d}"), "wb")  # noqa: SIM115
        return self._file

    def _finish(self) -> None:
        if self._file is None:
            return
        path = self._file.name
        try:
            self._file.close()
        finally:
            # Also when closing fails (a full disk): these spans are accounted for with the segment.
            self._segments.append(Segment(path, self._open_count, self._open_bytes))
            self._file, self._open_count, self._open_bytes = None, 0, 0
