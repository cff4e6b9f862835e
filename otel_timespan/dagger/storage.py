"""`D.storage`: where the bytes of values are kept, and how to say so. See docs/data.md.

A public module: the devices that keep values in memory or in files (places/devices.py), and the one that moves them
from memory to files when it gets tight (data/recency.py).
"""

from __future__ import annotations

from ..errors import StorageError
from .data.recency import RecencyAllocator, StorageRef, StorageStats, bury, mem_limit, release_dead
from .places.devices import RAM, GenericFileDevice, PickleFileDevice, RAMDevice, StorageDevice, Stored

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
    "bury",
    "mem_limit",
    "release_dead",
]
