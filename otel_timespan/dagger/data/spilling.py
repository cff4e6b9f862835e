"""Results that may leave memory: which device keeps them, the handle for them, and the global device.

With `enable_disk_caching`, or the environment variables below, each worker gets a `RecencyAllocator` of its
own: results stay in memory up to a limit, what goes beyond it is written to files and read back where it is
used. The option `storage` of a task names a device for its result, whatever is configured globally.

What a body got from a spilled chunk is an object of its own: a change to it may or may not be there for the
next reader. Data that is to be changed is made by `mutable`, which is never spilled.

OTEL_TIMESPAN_SPILL          on or off; the default is off
OTEL_TIMESPAN_SPILL_MEMORY   bytes that a worker keeps in memory, such as 2GiB; default 8GiB
OTEL_TIMESPAN_SPILL_DISK     bytes that a worker may write; default 32GiB
OTEL_TIMESPAN_SPILL_POLICY   MRU, the default, or LRU
OTEL_TIMESPAN_SPILL_DIR      the folder; default a random one, which goes with the process

Source: spec/scheduler.md §8.1, §9.2, §19.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError
from ...timespans.model import ChunkInfo
from ..places.devices import PickleFileDevice, RAMDevice, StorageDevice, Stored
from ..places.processors import OSProc
from ..places.topology import topology
from ..records import kinds as records
from ..records.describe import describe_function
from ..records.sizes import FIXED, approx_size
from ..service import janitor
from ..storage import POLICIES, RecencyAllocator, bury, mem_limit, release_dead
from ..tasks.environment import running_task
from .chunks import ArrayDomain, DRef, LoggedDRef, UnitDomain, domain
from .safety import storage_safe

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..tasks.dtask import DTask

__all__ = [
    "SMALL",
    "StoredDRef",
    "disable_disk_caching",
    "enable_disk_caching",
    "global_device",
    "keep_chunk",
    "keep_result",
    "total_memory",
    "watch_handle",
]

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
        # May run at any allocation, on any thread: it only appends (design/rulings.md 11).
        if self._watch is not None:
            self._watch.released()
        bury(self._device, self._stored)


def _put_wait(
    watch: Watch, t0: int, task_id: int, processor: Any, f: Any, device: StorageDevice, back: ChunkInfo | None
) -> None:
    worker = watch.info.worker
    watch.put((records.STORAGE_WAIT, t0, watch.clock(), task_id, processor, worker, f, type(device), back))


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
_watching = threading.Lock()


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


# --- the global device -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What was asked for: `percent` of the memory or `memory` bytes, for `workers` (None: all)."""

    percent: float | None
    memory: int | None
    disk: int
    policy: str
    directory: str | None
    workers: tuple[int, ...] | None

    def covers(self, worker: int) -> bool:
        """Whether they are for this worker."""
        return self.workers is None or worker in self.workers

    def memory_limit(self, worker: int) -> int:
        """Bytes that the worker keeps in memory: its share of what all on its host may."""
        if self.percent is None:
            return self.memory or 0
        node = topology.node(worker)
        there = [w for w in topology.workers() if self.covers(w) and topology.node(w) == node]
        return max(1, mem_limit(total_memory(), self.percent, max(1, len(there))))

    def make(self, worker: int) -> RecencyAllocator:
        """The device of a worker."""
        folder = None if self.directory is None else Path(self.directory) / f"worker-{worker}"
        below = PickleFileDevice(folder)
        return RecencyAllocator(self.memory_limit(worker), below, self.disk, self.policy, hard=False)


_lock = threading.Lock()
_chosen: Settings | None = None
_was_chosen = False
"""Whether a call decided: then the environment says nothing."""
_made_for: Settings | None = None
_devices: dict[int, StorageDevice] = {}


def enable_disk_caching(
    ram_percentage_limit: float = 30,
    disk_limit_mb: float = 16384,
    processes: Iterable[int] | None = None,
    *,
    policy: str = "MRU",
    directory: str | os.PathLike[str] | None = None,
) -> bool:
    """From now on results go to files where they take more than a share of the memory. True when all is set up.

    `ram_percentage_limit`: percent of the machine's memory, from 1 to 100, that all workers of a host
    together keep results in; each gets the same share. `disk_limit_mb`: MiB of files a worker. `processes`:
    ids of workers, by default all, those that come later included. `policy`: "MRU" moves what was used last
    first, which suits data that is gone through again and again; "LRU" what was not used for longest.
    `directory`: by default a random one, which goes with the process.

    Values under 1 KiB, of unknown size, and those that refer to tasks, chunks or raw pointers stay in memory.
    A result larger than a limit is a `StorageError` of its task. Where files can't be written the run goes
    on over the limit, with one warning. Applies to running contexts too; what is there stays where it is.
    Raises `InvalidOptionError`. Thread-safe. Source: spec/scheduler.md §9.2.
    """
    mem_limit(1, ram_percentage_limit, 1)
    if isinstance(disk_limit_mb, bool) or not isinstance(disk_limit_mb, (int, float)) or not disk_limit_mb > 0:
        raise InvalidOptionError(f"disk_limit_mb={disk_limit_mb!r}: it must be a number of MiB, more than 0")
    workers = _chosen_workers(processes)
    text = None if directory is None else os.fspath(directory)
    settings = Settings(
        ram_percentage_limit, None, int(disk_limit_mb * 2**20), _policy("policy", policy), text, workers
    )
    _choose(settings)
    return all(isinstance(global_device(w), RecencyAllocator) for w in workers or topology.workers())


def disable_disk_caching() -> None:
    """From now on results stay in memory. What was spilled can still be read."""
    _choose(None)


def global_device(worker: int | None = None) -> StorageDevice | None:
    """The device that keeps the results of a worker (by default ours) unless a task says otherwise.

    None, the default, is plain memory. Raises `InvalidOptionError` for wrong environment variables.
    """
    worker = topology.me() if worker is None else worker
    devices = devices_for((worker,))
    return None if devices is None else devices.get(worker)


def devices_for(workers: Iterable[int]) -> dict[int, StorageDevice] | None:
    """The devices by worker, with those of `workers` among them; None where nothing is configured."""
    global _made_for, _devices
    with _lock:
        settings = _chosen if _was_chosen else _from_environment()
        if settings != _made_for:
            _made_for, _devices = settings, {}
        if settings is None:
            return None
        for worker in workers:
            if worker not in _devices and settings.covers(worker):
                _devices[worker] = settings.make(worker)
        if settings.percent is not None:  # others came or went: the shares changed
            for worker, device in _devices.items():
                if isinstance(device, RecencyAllocator):
                    device.mem_limit = settings.memory_limit(worker)
        return _devices


def _choose(settings: Settings | None) -> None:
    global _chosen, _was_chosen, _made_for, _devices
    from ..context import running_cores

    workers = [] if settings is None else [w for w in topology.workers() if settings.covers(w)]
    made: dict[int, StorageDevice] = {w: settings.make(w) for w in workers}  # type: ignore[union-attr]
    with _lock:
        _chosen, _was_chosen = settings, True
        _made_for, _devices = settings, made  # new ones, even for the same settings
    for core in running_cores():
        core.devices = devices_for(core.shared)


def _chosen_workers(processes: Any) -> tuple[int, ...] | None:
    if processes is None:
        return None
    if isinstance(processes, (str, bytes)) or not isinstance(processes, Iterable):
        raise InvalidOptionError(f"processes={processes!r}: it must be a list of worker ids, or None for all")
    chosen = tuple(p.pid if isinstance(p, OSProc) else p for p in processes)
    known = topology.workers()
    if not chosen or any(worker not in known for worker in chosen):
        raise InvalidOptionError(f"processes={list(chosen)!r}: they must be some of the workers {list(known)}")
    return chosen


def _policy(name: str, value: Any) -> str:
    if value not in POLICIES:
        raise InvalidOptionError(f"{name}={value!r}: it must be one of {', '.join(POLICIES)}")
    return str(value)


def total_memory() -> int:
    """Bytes of memory that this machine has."""
    try:
        import psutil
    except ImportError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(psutil.virtual_memory().total)


# --- the environment ---------------------------------------------------------------------------------

VARIABLE = "OTEL_TIMESPAN_SPILL"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_MEMORY, _DISK = "8GiB", "32GiB"


def _from_environment() -> Settings | None:
    switch = _variable("").lower()
    if switch in ("", "0", "false", "off", "no"):
        return None
    if switch not in ("1", "true", "on", "yes"):
        raise InvalidOptionError(f"{VARIABLE}={switch!r}: it must be on or off")
    policy = _policy(f"{VARIABLE}_POLICY", _variable("_POLICY").upper() or "MRU")
    memory, disk = _bytes("_MEMORY", _MEMORY), _bytes("_DISK", _DISK)
    return Settings(None, memory, disk, policy, _variable("_DIR") or None, None)


def _variable(name: str) -> str:
    return os.environ.get(VARIABLE + name, "").strip()


def _bytes(name: str, default: str) -> int:
    text = _variable(name) or default
    match = _SIZE.fullmatch(text)
    step = 1024 if match and match[3] else 1000
    count = int(float(match[1]) * step ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if count < 1:
        raise InvalidOptionError(f"{VARIABLE}{name}={text!r}: it must be a number of bytes, such as 2GiB or 500MB")
    return count
