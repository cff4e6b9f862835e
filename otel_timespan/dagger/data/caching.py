"""The device that keeps every worker's results where nothing else is said: `enable_disk_caching`, or the environment.

Each worker gets a `RecencyAllocator` of its own: results stay in memory up to a limit, what goes beyond it is written
to files and read back where it is used.

OTEL_TIMESPAN_SPILL          on or off; the default is off
OTEL_TIMESPAN_SPILL_MEMORY   bytes that a worker keeps in memory, such as 2GiB; default 8GiB
OTEL_TIMESPAN_SPILL_DISK     bytes that a worker may write; default 32GiB
OTEL_TIMESPAN_SPILL_POLICY   MRU, the default, or LRU
OTEL_TIMESPAN_SPILL_DIR      the folder; default a random one, which goes with the process

See docs/data.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import forks
from ...errors import InvalidOptionError
from ..places.devices import PickleFileDevice, StorageDevice
from ..places.processors import OSProc
from ..places.topology import topology
from ..service.guards import guard
from .recency import POLICIES, RecencyAllocator, mem_limit

__all__ = [
    "apply",
    "devices_for",
    "disable_disk_caching",
    "enable_disk_caching",
    "global_device",
    "listeners",
    "settings_of",
    "total_memory",
]

listeners: list[Callable[[], None]] = []
"""Called after another device was chosen: running schedulers take theirs from `devices_for`."""


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


_lock = guard()
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
    Raises `InvalidOptionError`. Thread-safe.
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


def settings_of(worker: int) -> tuple[int, int, str, str | None] | None:
    """What the process of a worker is to `apply`, None for plain memory: bytes of memory, of files, policy, folder."""
    with _lock:
        settings = _chosen if _was_chosen else _from_environment()
    if settings is None or not settings.covers(worker):
        return None
    return settings.memory_limit(worker), settings.disk, settings.policy, settings.directory


def apply(given: tuple[int, int, str, str | None] | None) -> None:
    """In a worker's process: what the head chose for it (`settings_of`). Devices stay where only the limit changed."""
    global _chosen, _made_for
    settings = None if given is None else Settings(None, *given, None)
    with _lock:
        is_same = _was_chosen and (settings is None) is (_chosen is None)
        if is_same and settings is not None and _chosen is not None:
            is_same = settings == replace(_chosen, memory=settings.memory)
            if is_same:
                _chosen = _made_for = settings
                for device in _devices.values():
                    if isinstance(device, RecencyAllocator):
                        device.mem_limit = settings.memory or 0
    if not is_same:
        _choose(settings)


def _choose(settings: Settings | None) -> None:
    global _chosen, _was_chosen, _made_for, _devices
    workers = [] if settings is None else [w for w in topology.workers() if settings.covers(w)]
    made: dict[int, StorageDevice] = {w: settings.make(w) for w in workers}  # type: ignore[union-attr]
    with _lock:
        _chosen, _was_chosen = settings, True
        _made_for, _devices = settings, made  # new ones, even for the same settings
    for listener in tuple(listeners):
        listener()


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
        with forks.held_off:
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
        raise InvalidOptionError(f"{VARIABLE}={switch[:60]!a}: it must be on or off")
    policy = _policy(f"{VARIABLE}_POLICY", _variable("_POLICY").upper() or "MRU")
    memory, disk = _bytes("_MEMORY", _MEMORY), _bytes("_DISK", _DISK)
    return Settings(None, memory, disk, policy, _variable("_DIR") or None, None)


def _variable(name: str) -> str:
    return os.environ.get(VARIABLE + name, "").strip()


def _bytes(name: str, default: str) -> int:
    text = _variable(name) or default
    match = _SIZE.fullmatch(text)
    step = 1024 if match and match[3] else 1000
    size = float(match[1]) * step ** " kmgt".index(match[2].lower() or " ") if match else 0.0
    if not 1 <= size < 1 << 63:
        shown = ascii(text[:60])
        raise InvalidOptionError(f"{VARIABLE}{name}={shown}: it must be a number of bytes, such as 2GiB or 500MB")
    return int(size)
