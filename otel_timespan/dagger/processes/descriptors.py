"""The second socket between the head and a worker: descriptors of slabs go over it, and nothing else.

So the reads of the first one need no room for what almost never comes. A descriptor is sent before whatever tells of
its slab, so it is there by then: who reads looks for it when a slab is new to it.

See docs/workers.md.
"""

from __future__ import annotations

import socket
import struct

from ..service.guards import guard
from .maps import Maps

__all__ = ["DescriptorLane"]

_NAME = struct.Struct("<qq")  # owner, slab


class DescriptorLane:
    """One end. Thread-safe."""

    def __init__(self, sock: socket.socket, maps: Maps) -> None:
        sock.setblocking(False)
        self._socket, self._maps = sock, maps
        self._lock = guard()
        self._sent: set[tuple[int, int]] = set()
        self._come: set[tuple[int, int]] = set()

    def send(self, owner: int, slab: int, fd: int) -> None:
        """Send a slab's descriptor. Raises `OSError`."""
        socket.send_fds(self._socket, [_NAME.pack(owner, slab)], [fd])
        self._sent.add((owner, slab))

    def has_sent(self, owner: int, slab: int) -> bool:
        """Whether the other side has this one."""
        return (owner, slab) in self._sent

    def look_for(self, owner: int, slab: int) -> None:
        """Give the maps a slab's descriptor, if they have not got it: it is there, unless its sender had none."""
        if (owner, slab) in self._come:
            return
        with self._lock:
            try:
                while (owner, slab) not in self._come:
                    name, fds, _, _ = socket.recv_fds(self._socket, _NAME.size, 1, _FLAGS)
                    if not fds:
                        return
                    owner, slab = _NAME.unpack(name)
                    self._maps.add_slab(owner, slab, fds[0])
                    self._come.add((owner, slab))
            except OSError:  # there is no more; or the socket is gone
                return

    def come_of(self, owner: int) -> list[int]:
        """The slabs of an owner that came from the other side."""
        return [slab for of, slab in self._come if of == owner]

    def forget(self, owner: int, slabs: list[int]) -> list[int]:
        """Slabs of an owner are gone: which of these the other side had."""
        mine = {(owner, slab) for slab in slabs}
        had = [slab for _, slab in mine & self._sent]
        self._sent -= mine
        self._come -= mine
        return had

    def close(self) -> None:
        """The other side is gone."""
        self._socket.close()


_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
