"""References to stored values, and which values leave memory when it gets tight.

A `StorageRef` is what a program holds; its root device decides where the value is kept, down to leaf
devices (devices.py) that keep it in memory or in a file. `RecencyAllocator` is the device that spills: it
keeps what was used recently in memory and the rest on a device below.

Source: spec/scheduler.md §9.2.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidOptionError
from ..timespans.recorder import warn_once
from .devices import RAM, GenericFileDevice, PickleFileDevice, RAMDevice, StorageDevice, StorageError, Stored
from .sizes import approx_size

__all__ = [
    "RAM",
    "GenericFileDevice",
    "PickleFileDevice",
    "RAMDevice",
    "RecencyAllocator",
    "StorageDevice",
    "StorageError",
    "StorageRef",
    "StorageStats",
    "Stored",
    "mem_limit",
    "release_dead",
]


class StorageRef:
    """A value in storage. When the last reference is gone its device forgets it, at its next operation.

    `device` (default: memory) is the root device. `nbytes` is the size that counts against limits,
    estimated by default. `tag` and `leaf_tag` name the file, `retain` keeps it. Raises `StorageError`.
    """

    __slots__ = ("__weakref__", "device", "stored")

    def __init__(
        self,
        value: Any,
        device: StorageDevice | None = None,
        *,
        nbytes: int | None = None,
        tag: Any = None,
        leaf_tag: Any = None,
        retain: bool = False,
    ) -> None:
        self.device = RAM if device is None else device
        if not isinstance(self.device, StorageDevice):
            raise InvalidOptionError(f"a storage device is needed here, such as RAMDevice(), not {device!r}")
        self.stored = Stored(approx_size(value) or 0 if nbytes is None else nbytes, tag, leaf_tag, retain)
        release_dead()
        self.device.write(self.stored, value)
        weakref.finalize(self, _dead.append, (self.device, self.stored)).atexit = False

    @property
    def nbytes(self) -> int:
        """The size that counts against limits."""
        return self.stored.nbytes

    def read(self) -> Any:
        """The value, read back from a device if it was spilled. Raises `StorageError`."""
        release_dead()
        return self.device.read(self.stored)

    def retain(self, retain: bool = True) -> None:
        """Whether what is on a device stays there when this reference dies."""
        self.stored.retain = retain

    def delete(self) -> None:
        """Forget the value now; reading it is an error from then on."""
        self.device.delete(self.stored)


_dead: deque[tuple[StorageDevice, Stored]] = deque()
"""What died and is still to be deleted: a finalizer may run anywhere, so that it only appends."""


@atexit.register  # after devices.py, so before the devices are closed
def release_dead() -> None:
    """Delete what dead references left in their devices. Called by each write and read of a `StorageRef`."""
    while _dead:
        try:
            device, stored = _dead.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            device.delete(stored)
        except Exception:
            warn_once(device, "a %s could not delete what nobody refers to any more", type(device).__name__)


# --- spilling ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class StorageStats:
    """How a `RecencyAllocator` fared: reads from memory, reads from below, values moved below."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class RecencyAllocator(StorageDevice):
    """Keeps values in memory up to `mem_limit` bytes and moves others to `device`, up to `device_limit`.

    `policy`: "LRU" moves the least recently used first, "MRU" the most recently used. `retain`: a deleted
    value that is in memory is moved to the device instead (not at the end of the process). The sizes are
    those that the references state. `stats` counts. One lock serialises all operations, files included.
    """

    def __init__(
        self,
        mem_limit: int,
        device: StorageDevice,
        device_limit: int,
        policy: str = "LRU",
        retain: bool = False,
    ) -> None:
        for name, limit in (("mem_limit", mem_limit), ("device_limit", device_limit)):
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
                raise InvalidOptionError(f"{name}={limit!r}: it must be a number of bytes, more than 0")
        if policy not in ("LRU", "MRU"):
            raise InvalidOptionError(f'policy={policy!r}: it must be "LRU" or "MRU"')
        if not isinstance(device, StorageDevice) or device is self:
            raise InvalidOptionError(f"device={device!r}: it must be a storage device, such as PickleFileDevice()")
        self.mem_limit, self.device, self.device_limit = mem_limit, device, device_limit
        self.policy, self.retain = policy, retain
        self.stats = StorageStats()
        self._lock = threading.RLock()
        # Most recent first. A value is in exactly one of the two.
        self._in_memory: OrderedDict[Stored, Any] = OrderedDict()
        self._on_device: OrderedDict[Stored, None] = OrderedDict()
        self._mem_used = self._device_used = 0

    @property
    def mem_used(self) -> int:
        """Bytes of the values in memory."""
        return self._mem_used

    @property
    def device_used(self) -> int:
        """Bytes of the values on the device."""
        return self._device_used

    def holds(self, stored: Stored) -> bool:
        """Whether the value is in memory or on the device."""
        return stored in self._in_memory or stored in self._on_device

    def in_memory(self, stored: Stored) -> bool:
        """Whether the value is in memory."""
        return stored in self._in_memory

    def write(self, stored: Stored, value: Any) -> None:
        """Keep the value in memory, moving others down. Raises `StorageError` if it can't fit."""
        size = stored.nbytes
        if size > self.mem_limit or size > self.device_limit:
            limits = f"memory {self.mem_limit}, device {self.device_limit} bytes"
            raise StorageError(f"a value of {size} bytes is larger than a limit of its storage ({limits})")
        with self._lock:
            if stored not in self._in_memory:
                self._make_room(size)
                self._mem_used += size
            stored.retain = stored.retain or self.retain
            self._in_memory[stored] = value
            self._in_memory.move_to_end(stored, last=False)
            self._leave_device(stored)

    def read(self, stored: Stored) -> Any:
        """The value; one on the device comes back to memory if there is room to be made."""
        with self._lock:
            if stored in self._in_memory:
                self.stats.hits += 1
                self._in_memory.move_to_end(stored, last=False)
                return self._in_memory[stored]
            if stored not in self._on_device:
                raise StorageError("the value is not in this storage (any more)")
            self.stats.misses += 1
            value = self.device.read(stored)
            self._promote(stored, value)
            return value

    def delete(self, stored: Stored) -> None:
        """Forget the value. With `retain` (the allocator's or the reference's) it stays on, or goes to, the device."""
        with self._lock:
            if stored in self._in_memory:
                if stored.retain:
                    self.device.write(stored, self._in_memory[stored])
                del self._in_memory[stored]
                self._mem_used -= stored.nbytes
            elif stored in self._on_device:
                del self._on_device[stored]
                self._device_used -= stored.nbytes
            self.device.delete(stored)

    def _promote(self, stored: Stored, value: Any) -> None:
        try:
            self._make_room(stored.nbytes)
        except StorageError:
            # The device is too full to take anything in exchange: the value stays where it is and is
            # read from there again.
            self._on_device.move_to_end(stored, last=False)
            return
        self._in_memory[stored] = value
        self._in_memory.move_to_end(stored, last=False)
        self._mem_used += stored.nbytes
        self._leave_device(stored)

    def _leave_device(self, stored: Stored) -> None:
        """Drop the copy below of a value that is in memory now; its file is gone even if it is to be retained later."""
        if stored not in self._on_device:
            return
        del self._on_device[stored]
        self._device_used -= stored.nbytes
        retain, stored.retain = stored.retain, False
        try:
            self.device.delete(stored)
        finally:
            stored.retain = retain

    def _make_room(self, size: int) -> None:
        """Move values down until `size` more bytes fit. Raises `StorageError`; what was moved stays moved."""
        failure: StorageError | None = None
        candidates = iter(list(self._candidates()))
        while self._mem_used + size > self.mem_limit:
            victim = next(candidates, None)
            if victim is None:
                raise StorageError(
                    f"no room for {size} bytes: memory holds {self._mem_used} of {self.mem_limit}, "
                    f"the device {self._device_used} of {self.device_limit}"
                ) from failure
            if self._device_used + victim.nbytes > self.device_limit:
                continue
            try:
                self._demote(victim)
            except StorageError as error:
                failure = error

    def _candidates(self) -> Iterable[Stored]:
        return reversed(self._in_memory) if self.policy == "LRU" else self._in_memory

    def _demote(self, stored: Stored) -> None:
        self.device.write(stored, self._in_memory[stored])  # below before it is dropped above
        del self._in_memory[stored]
        self._mem_used -= stored.nbytes
        self._on_device[stored] = None
        self._on_device.move_to_end(stored, last=False)
        self._device_used += stored.nbytes
        self.stats.evictions += 1


def mem_limit(total: int, percent: float, processes: int) -> int:
    """The bytes that each of `processes` on a host with `total` bytes may keep in memory.

    Raises `InvalidOptionError` for a percentage outside of 1 to 100, or no process.
    """
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 1 <= percent <= 100:
        raise InvalidOptionError(f"a share of {percent!r} percent of the memory: it must be from 1 to 100")
    if processes < 1:
        raise InvalidOptionError(f"{processes!r} processes: there must be at least 1")
    return int(total * percent / 100 // processes)
