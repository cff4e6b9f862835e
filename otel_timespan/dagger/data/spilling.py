"""Results that may leave memory: which device keeps them, and the handle for them.

What a body got from a spilled chunk is an object of its own: a change to it may or may not be there for the
next reader. Data that is to be changed is made by `mutable`, which is never spilled. The option `storage` of a task
names a device for its result, whatever is configured for all (caching.py).

See docs/data.md.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError
from ...timespans.model import ChunkInfo
from ..places.devices import RAMDevice, StorageDevice, Stored
from ..places.processors import OSProc
from ..places.topology import topology
from ..records import kinds as records
from ..records.describe import describe_function
from ..records.sizes import FIXED, approx_size
from ..service import janitor
from ..service.guards import guard
from ..tasks.environment import running_task
from .caching import global_device
from .chunks import ArrayDomain, DRef, LoggedDRef, UnitDomain, domain
from .recency import RecencyAllocator, bury, release_dead
from .safety import storage_safe

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..tasks.dtask import DTask

__all__ = ["SMALL", "StoredDRef", "Watch", "keep_chunk", "keep_result", "watch_handle"]

SMALL = 1024
"""Bytes below which a value is not worth a file: it stays in memory and counts against no limit."""


# --- handles -----------------------------------------------------------------------------------------


class Watch:
    """Tells a log when one value leaves memory. Whoever takes the mark out of `_held` says so: it counts once."""

    __slots__ = ("_held", "clock", "info", "put")

    def __init__(self, put: Callable[[Any], None], clock: Callable[[], int], info: ChunkInfo) -> None:
        self.put, self.clock, self.info = put, clock, info
        self._held = [True]

    def spilled(self) -> None:
        """It was moved to a device."""
        if self._left():
            self.put((records.EVICT, self.clock(), *self.info, "spilled"))

    def returned(self) -> None:
        """It is in memory again."""
        self._held.append(True)

    def released(self) -> None:
        """The last reference died. Called by a finalizer: it only appends."""
        now = time.monotonic_ns()
        self.put((records.EVICT, now, *self.info, "released") if self._left() else (records.BURIED, now, *self.info))

    def _left(self) -> bool:
        try:
            return self._held.pop()
        except IndexError:
            return False


class StoredDRef(DRef):
    """A handle whose value is kept by a storage device; `value` reads it there. Raises `StorageError`.

    Type, size, domain and description are known without reading.
    """

    __slots__ = ("_device", "_domain", "_stored", "_type", "_watch")

    may_spill = True

    def __init__(self, value: Any, worker: int, device: StorageDevice, stored: Stored, watch: Watch | None) -> None:
        self.worker = worker
        self._device, self._stored, self._watch = device, stored, watch
        self._type, self._domain, self._nbytes = type(value), domain(value), stored.nbytes
        if watch is not None:
            self._info, self._number = watch.info, watch.info.handle

    @property
    def value(self) -> Any:
        """The value, read back where it was spilled."""
        release_dead()
        if self._watch is None:
            return self._device.read(self._stored)
        return self._read_logged(self._watch)

    @property
    def held(self) -> Any:
        """The value if it is in memory, else something that no value is."""
        return self._device.peek(self._stored)

    @property
    def type(self) -> type:
        """The type of the value."""
        return self._type

    @property
    def domain(self) -> ArrayDomain | UnitDomain:
        """The index ranges of the value."""
        return self._domain

    def _read_logged(self, watch: Watch) -> Any:
        device, stored = self._device, self._stored
        t0 = watch.clock()
        with device.ordered():  # so that the log is told of comings and goings in their order
            if device.in_memory(stored):
                return device.read(stored)
            value = device.read(stored)
            back = None
            if device.in_memory(stored):
                watch.returned()
                back = watch.info
            task = running_task()
            of_task = (0, OSProc(), None)
            if task is not None and task._slot is not None:
                of_task = (task.id, task._slot.processor, describe_function(task._f))
            _put_wait(watch, t0, *of_task, device, back)
        return value

    def __del__(self) -> None:
        # May run at any allocation, on any thread: it only appends, and takes no lock.
        if self._watch is not None:
            self._watch.released()
        bury(self._device, self._stored)


def _put_wait(
    watch: Watch, t0: int, task_id: int, processor: Any, f: Any, device: StorageDevice, back: ChunkInfo | None
) -> None:
    worker = watch.info.worker
    t1, seq = watch.clock(), records.next_seq()
    watch.put((records.STORAGE_WAIT, t0, t1, task_id, processor, worker, f, type(device), back, seq))


def keep_result(core: Core, task: DTask, value: Any, recorder: Any) -> DRef | None:
    """The handle of a body's value on the device of the task, or on the global one; None: in plain memory.

    Raises `StorageError` where the device can't keep it, `InvalidOptionError` for a bad storage tag.
    """
    options, worker = task._options, task._slot.worker
    device, size = options.storage, approx_size(value)
    if device is None:
        device = (core.devices or {}).get(worker)
        if device is None or not _worthwhile(value, size):
            return None
    if isinstance(device, RAMDevice):
        return None
    stored = Stored(size or 0, options.storage_root_tag, options.storage_leaf_tag, bool(options.storage_retain))
    watch = None
    if recorder is not None:
        watch = Watch(recorder.put, core.clock, ChunkInfo(records.next_handle(), size, type(value), worker))
    t0 = core.clock() if watch is not None else 0
    janitor.start()
    release_dead()
    device.check(stored)
    stored.watch = watch
    with device.ordered():
        before = _moves(device)
        device.write(stored, value)
        if watch is not None:
            if not device.in_memory(stored):
                watch.spilled()
            elif _moves(device) == before:  # nothing else had to go for it: nobody waited
                return StoredDRef(value, worker, device, stored, watch)
            _put_wait(watch, t0, task.id, task._slot.processor, describe_function(task._f), device, None)
    return StoredDRef(value, worker, device, stored, watch)


def _moves(device: StorageDevice) -> int:
    return device.stats.evictions if isinstance(device, RecencyAllocator) else 0


def _worthwhile(value: Any, size: int | None) -> bool:
    """Whether the global device takes it: of known size, not small, and with a meaning in a file."""
    return size is not None and size >= SMALL and type(value) not in FIXED and storage_safe(value)


def keep_chunk(value: Any, device: Any, tag: Any, leaf_tag: Any, retain: bool) -> DRef | None:
    """The handle of a value for `tochunk`, on `device` or the global one; None: in plain memory."""
    if device is not None and not isinstance(device, StorageDevice):
        raise InvalidOptionError(f"tochunk: device must be a storage device, such as RAMDevice(), not {device!r}")
    worker, size = topology.me(), approx_size(value)
    if device is None:
        device = global_device(worker)
        if device is None or not _worthwhile(value, size):
            return None
    if isinstance(device, RAMDevice):
        return None
    stored = Stored(size or 0, tag, leaf_tag, retain)
    janitor.start()
    release_dead()
    device.check(stored)
    device.write(stored, value)
    return StoredDRef(value, worker, device, stored, None)


_watched: weakref.WeakSet[DRef] = weakref.WeakSet()
_watching = guard()


def watch_handle(handle: DRef, recorder: Any, clock: Callable[[], int]) -> None:
    """A result turned out to be data that the log did not see being made (`tochunk`): tell it of their end, too."""
    if type(handle) is LoggedDRef:
        return
    if isinstance(handle, StoredDRef):
        with handle._device.ordered():
            if handle._watch is None:
                handle._watch = watch = Watch(recorder.put, clock, handle.info)
                handle._stored.watch = watch
                if not handle._device.in_memory(handle._stored):
                    watch.spilled()
        return
    with _watching:
        if handle in _watched:
            return
        _watched.add(handle)
    weakref.finalize(handle, _say_released, recorder.put, tuple(handle.info)).atexit = False


def _say_released(put: Callable[[Any], None], info: tuple[Any, ...]) -> None:
    put((records.EVICT, time.monotonic_ns(), *info, "released"))
