"""References to stored values, and which values leave memory when it gets tight.

A `StorageRef` is what a program holds; its root device decides where the value is kept, down to leaf
devices (places/devices.py) that keep it in memory or in a file. `RecencyAllocator` is the device that spills: it
keeps what was used recently in memory and the rest on a device below.

See docs/data.md.
"""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ... import exits, forks
from ...errors import InvalidOptionError
from ...timespans.warn import warn_once
from ..places.devices import ABSENT, RAM, StorageDevice, StorageError, Stored
from ..records.sizes import approx_size
from ..service import janitor
from ..service.guards import guard
from .bound import process_bound

__all__ = ["POLICIES", "RecencyAllocator", "StorageRef", "StorageStats", "bury", "mem_limit", "release_dead"]


@process_bound
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
        self.device.check(self.stored)
        release_dead()
        janitor.start()
        self.device.write(self.stored, value)
        weakref.finalize(self, bury, self.device, self.stored).atexit = False

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


# --- what died ---------------------------------------------------------------------------------------

_dead: deque[tuple[StorageDevice, Stored]] = deque()
"""What died and is still to be deleted: a finalizer may run anywhere, so that it only appends."""

_releasing = guard()
_under_way = False
_RELEASE_WAIT_S = 1.0


def bury(device: StorageDevice, stored: Stored) -> None:
    """What a finalizer says of a value that nobody refers to any more: to be deleted soon, by somebody else."""
    _dead.append((device, stored))
    janitor.ask(release_dead)


def release_dead() -> None:
    """Delete what dead references left in their devices. Called by each write and read of a reference."""
    global _under_way
    if not _dead and not _under_way:
        return
    # Not for ever: who reads a value while it pickles another one holds a device that we may be waiting for.
    if not _releasing.acquire(timeout=_RELEASE_WAIT_S):
        return
    try:
        while _dead:
            _under_way = True
            try:
                device, stored = _dead.popleft()
            except IndexError:  # a reentrant call was faster
                return
            try:
                device.delete(stored)
            except Exception:
                warn_once(device, "a %s could not delete what nobody refers to any more", type(device).__name__)
    finally:
        _under_way = False
        _releasing.release()


exits.at_exit(release_dead)  # after places/devices.py, so before the devices are closed


@forks.in_child("_dead", "_allocators")
def _in_child() -> None:
    global _under_way
    _under_way = False
    _dead.clear()  # the parent's to delete


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

    A value larger than a limit is refused. Where no room can be made, because the device is full or fails,
    nothing is lost: `hard` (the default) refuses the newcomer, otherwise it is kept over the limit, with one
    warning, and the device is left alone for a second. What can't be serialized stays in memory for good.
    """

    def __init__(
        self,
        mem_limit: int,
        device: StorageDevice,
        device_limit: int,
        policy: str = "LRU",
        retain: bool = False,
        *,
        hard: bool = True,
    ) -> None:
        for name, limit in (("mem_limit", mem_limit), ("device_limit", device_limit)):
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
                raise InvalidOptionError(f"{name}={limit!r}: it must be a number of bytes, more than 0")
        if policy not in POLICIES:
            raise InvalidOptionError(f'policy={policy!r}: it must be "LRU" or "MRU"')
        if not isinstance(device, StorageDevice) or device is self:
            raise InvalidOptionError(f"device={device!r}: it must be a storage device, such as PickleFileDevice()")
        self.mem_limit, self.device, self.device_limit = mem_limit, device, device_limit
        self.policy, self.retain, self.hard = policy, retain, hard
        self.stats = StorageStats()
        self._lock = guard()
        # Most recent first. A value is in exactly one of the three.
        self._in_memory: OrderedDict[Stored, Any] = OrderedDict()
        self._stuck: dict[Stored, Any] = {}  # in memory, too: the device can't take them
        self._on_device: OrderedDict[Stored, None] = OrderedDict()
        self._mem_used = self._device_used = 0
        self._pause_until = 0.0
        self._freed = 0  # since memory was last given back to the system
        _allocators.add(self)

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
        return self.in_memory(stored) or stored in self._on_device

    def in_memory(self, stored: Stored) -> bool:
        """Whether the value is in memory."""
        return stored in self._in_memory or stored in self._stuck

    def peek(self, stored: Stored) -> Any:
        """The value if it is in memory; that does not count as a use."""
        value = self._in_memory.get(stored, ABSENT)
        return self._stuck.get(stored, ABSENT) if value is ABSENT else value

    def check(self, stored: Stored) -> None:
        """Refuse what the device below would refuse."""
        self.device.check(stored)

    def ordered(self) -> contextlib.AbstractContextManager[Any]:
        """Its lock: no value moves up or down on another thread meanwhile."""
        return self._lock

    def write(self, stored: Stored, value: Any) -> None:
        """Keep the value in memory, moving others down. Raises `StorageError` if it can't fit."""
        size = stored.nbytes
        if size > self.mem_limit or size > self.device_limit:
            limits = f"memory {self.mem_limit}, device {self.device_limit} bytes"
            raise StorageError(f"a value of {size} bytes is larger than a limit of its storage ({limits})")
        with self._lock:
            if not self.in_memory(stored):
                self._make_room_or_go_over(size)
                self._mem_used += size
            self._stuck.pop(stored, None)
            stored.retain = stored.retain or self.retain
            self._in_memory[stored] = value
            self._in_memory.move_to_end(stored, last=False)
            self._leave_device(stored)

    def read(self, stored: Stored) -> Any:
        """The value; one on the device comes back to memory if there is room to be made."""
        with self._lock:
            if stored in self._in_memory:
                self._in_memory.move_to_end(stored, last=False)
            elif stored in self._on_device:
                return self._read_back(stored)
            elif stored not in self._stuck:
                raise StorageError("the value is not in this storage (any more)")
            self.stats.hits += 1
            return self.peek(stored)

    def delete(self, stored: Stored) -> None:
        """Forget the value. With `retain` (the allocator's or the reference's) it stays on, or goes to, the device."""
        with self._lock:
            if self.in_memory(stored):
                if stored.retain:
                    self.device.write(stored, self.peek(stored))
                self._in_memory.pop(stored, None)
                self._stuck.pop(stored, None)
                self._mem_used -= stored.nbytes
            elif stored in self._on_device:
                del self._on_device[stored]
                self._device_used -= stored.nbytes
            self.device.delete(stored)

    def _read_back(self, stored: Stored) -> Any:
        self.stats.misses += 1
        try:
            self._make_room(stored.nbytes)  # first: the value and what goes for it are never in memory together
        except StorageError:
            # The device is too full to take anything in exchange: the value stays where it is and is
            # read from there again.
            self._on_device.move_to_end(stored, last=False)
            return self.device.read(stored)
        value = self.device.read(stored)
        self._in_memory[stored] = value
        self._in_memory.move_to_end(stored, last=False)
        self._mem_used += stored.nbytes
        self._leave_device(stored)
        return value

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

    # ---- room ------------------------------------------------------------------------------------

    def _make_room_or_go_over(self, size: int) -> None:
        try:
            self._make_room(size)
        except StorageError as full:
            if self.hard:
                raise
            why = f"{full} ({full.__cause__})" if full.__cause__ is not None else str(full)
        else:
            return
        # Without the exception in hand: whoever keeps log records must not keep the value.
        warn_once(self, "a storage keeps more in memory than its limit: %s", why)

    def _make_room(self, size: int) -> None:
        """Move values down until `size` more bytes fit. Raises `StorageError`; what was moved stays moved."""
        failure: Exception | None = None
        skipped: set[Stored] = set()
        try:
            while self._mem_used + size > self.mem_limit:
                victim = None if self._paused() else next((s for s in self._candidates() if s not in skipped), None)
                if victim is None:
                    self._pause()
                    raise StorageError(
                        f"no room for {size} bytes: memory holds {self._mem_used} of {self.mem_limit}, "
                        f"the device {self._device_used} of {self.device_limit}"
                    ) from failure
                if self._device_used + victim.nbytes > self.device_limit:
                    skipped.add(victim)
                    continue
                try:
                    self._demote(victim)
                except Exception as error:
                    failure = error
                    skipped.add(victim)
                    self._blame(victim, error)
        finally:
            failure = None  # its traceback refers to this frame

    def _blame(self, victim: Stored, error: Exception) -> None:
        """A value could not be moved down: was it the device's fault, or is the value to blame?"""
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if cause is None or isinstance(cause, OSError):
            self._pause()
        else:
            self._stuck[victim] = self._in_memory.pop(victim)

    def _paused(self) -> bool:
        return self._pause_until > 0 and time.monotonic() < self._pause_until

    def _pause(self) -> None:
        """Full, read-only, gone: where we may go over the limit, trying again with every value would take for ever."""
        if not self.hard and not self._paused():
            self._pause_until = time.monotonic() + _PAUSE_S

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
        self._freed += stored.nbytes
        if self._freed >= max(_TRIM_BYTES, self.mem_limit / 32):
            self._freed = 0
            give_back_memory()
        if stored.watch is not None:
            stored.watch.spilled()


POLICIES = ("LRU", "MRU")
_TRIM_BYTES = 1 << 20
_PAUSE_S = 1.0
"""How long a device that failed is left alone where values may be kept over the limit."""

_allocators: weakref.WeakSet[RecencyAllocator] = weakref.WeakSet()


@functools.lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's function of that name, where it has one (glibc)."""
    try:
        with forks.held_off:
            import ctypes

        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    return found


def give_back_memory() -> None:
    """Have the C library give the system what was freed: it would keep a few large blocks of each thread for later."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def mem_limit(total: int, percent: float, processes: int) -> int:
    """The bytes that each of `processes` on a host with `total` bytes may keep in memory.

    Raises `InvalidOptionError` for a percentage outside of 1 to 100, or no process.
    """
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 1 <= percent <= 100:
        raise InvalidOptionError(f"a share of {percent!r} percent of the memory: it must be from 1 to 100")
    if processes < 1:
        raise InvalidOptionError(f"{processes!r} processes: there must be at least 1")
    return int(total * percent / 100 // processes)
