"""Frames on a byte stream: four bytes of length, then so many bytes. No socket in here.

A frame is the pickle of a list of messages.

See docs/workers.md.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

__all__ = ["MAX_FRAME", "Framer", "framed", "in_frames"]

_LENGTH = struct.Struct("<I")

MAX_FRAME = 1 << 31
"""A longer frame is none of ours: the stream is damaged."""


def framed(body: bytes) -> tuple[bytes, bytes]:
    """What is to be sent for one frame, in order. Raises `ValueError` for one that is too long."""
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes is longer than {MAX_FRAME}")
    return _LENGTH.pack(len(body)), body


def in_frames(messages: list[Any]) -> list[tuple[bytes, bytes]]:
    """The frames of these messages, each as `framed` gives it: one, unless that is too long."""
    try:
        return [framed(pickle.dumps(messages, 5))]
    except ValueError:
        if len(messages) < 2:
            raise
        half = len(messages) // 2
        return in_frames(messages[:half]) + in_frames(messages[half:])


class Framer:
    """Makes frames of what comes in, wherever that was cut. Not thread-safe."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """The frames that are whole with these bytes, in order. Raises `ValueError` where the stream is damaged."""
        if self._rest:
            self._rest += data
            with memoryview(self._rest) as view:
                frames, used = _split(view)
            if used:
                del self._rest[:used]
            return frames
        view = memoryview(data)
        frames, used = _split(view)
        if used < len(view):
            self._rest += view[used:]
        return frames


def _split(view: memoryview) -> tuple[list[bytes], int]:
    """The whole frames at the begin of it, and how many bytes these are."""
    frames, at, end = [], 0, len(view)
    while end - at >= 4:
        size = _LENGTH.unpack_from(view, at)[0]
        if size > MAX_FRAME:
            raise ValueError(f"a frame claims {size} bytes: the stream is damaged")
        if end - at - 4 < size:
            break
        frames.append(bytes(view[at + 4 : at + 4 + size]))
        at += 4 + size
    return frames, at
