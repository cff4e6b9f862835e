"""`LinuxPerfMetrics`: hardware and kernel counters of a span, through `perf_event_open`.

No library: the system call is made with ctypes and counters are read as plain files. Counters are opened
for every thread that exists then, and inherited by threads started later; a counter that the processor
had to share with others (multiplexing) is scaled to the whole time, as `perf stat` does.

Source: perf_event_open(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import struct
import sys

from .. import forks
from ..errors import InvalidOptionError
from .deltas import SpanDelta

__all__ = ["LinuxPerfMetrics"]

DEFAULT_SPEC = "cpu-clock, page-faults, context-switches, cpu-migrations, minor-faults, major-faults"

_HARDWARE, _SOFTWARE = 0, 1
EVENTS = {
    "cpu-cycles": (_HARDWARE, 0),
    "cycles": (_HARDWARE, 0),
    "instructions": (_HARDWARE, 1),
    "cache-references": (_HARDWARE, 2),
    "cache-misses": (_HARDWARE, 3),
    "branch-instructions": (_HARDWARE, 4),
    "branches": (_HARDWARE, 4),
    "branch-misses": (_HARDWARE, 5),
    "bus-cycles": (_HARDWARE, 6),
    "stalled-cycles-frontend": (_HARDWARE, 7),
    "stalled-cycles-backend": (_HARDWARE, 8),
    "ref-cycles": (_HARDWARE, 9),
    "cpu-clock": (_SOFTWARE, 0),
    "task-clock": (_SOFTWARE, 1),
    "page-faults": (_SOFTWARE, 2),
    "faults": (_SOFTWARE, 2),
    "context-switches": (_SOFTWARE, 3),
    "cs": (_SOFTWARE, 3),
    "cpu-migrations": (_SOFTWARE, 4),
    "migrations": (_SOFTWARE, 4),
    "minor-faults": (_SOFTWARE, 5),
    "major-faults": (_SOFTWARE, 6),
    "alignment-faults": (_SOFTWARE, 7),
    "emulation-faults": (_SOFTWARE, 8),
}
"""Name in a spec -> (type, config) of the kernel. Clocks are in nanoseconds, the rest are counts."""

_SYSCALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "armv7l": 364, "i686": 336, "ppc64le": 319, "s390x": 331}
_ATTR_SIZE = 112
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6
_TIMES = 1 | 2  # PERF_FORMAT_TOTAL_TIME_ENABLED, ..._RUNNING
_CLOEXEC = 8


class LinuxPerfMetrics(SpanDelta):
    """Counters of the process during a span: None at the start, `{event name: rise}` at the finish.

    `spec` is written as for `perf stat -e`: names separated by commas, groups that are to be counted at
    the same time in parentheses: "cpu-clock, (cpu-cycles, instructions)". Raises `InvalidOptionError`
    for a bad spec, and where the kernel does not allow the counters, saying what would.
    """

    def __init__(self, spec: str = DEFAULT_SPEC) -> None:
        super().__init__()
        self.spec = spec
        self._groups = parse_spec(spec)
        self._counters: list[tuple[str, int]] | None = None
        self._lock = forks.lock()
        for _, fd in _open_thread(self._groups, 0):  # as early as possible: does the kernel allow it?
            os.close(fd)

    def sample(self) -> dict[str, int]:
        """The counters now, summed over threads. Opens them if they are not open."""
        values = dict.fromkeys((name for group in self._groups for name in group), 0)
        with self._lock:  # a descriptor that is closed meanwhile may be another file's by the time it is read
            if self._counters is None:
                self._counters = self._open_all()
            for name, fd in self._counters:
                values[name] += _read(fd)
        return values

    def difference(self, before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
        """Counter by counter. Scaled counters can step back a little; that is 0."""
        return {name: max(0, count - before.get(name, 0)) for name, count in after.items()}

    def init_similar(self) -> LinuxPerfMetrics:
        """A fresh one."""
        return LinuxPerfMetrics(self.spec)

    def close(self) -> None:
        """Give the counters back to the kernel, until the next sample."""
        with self._lock:
            counters, self._counters = self._counters or [], None
        for _, fd in counters:
            os.close(fd)

    def __del__(self) -> None:
        for _, fd in getattr(self, "_counters", None) or ():
            with contextlib.suppress(OSError):
                os.close(fd)

    def _open_all(self) -> list[tuple[str, int]]:
        counters: list[tuple[str, int]] = []
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):
                counters += _open_thread(self._groups, int(thread))
        return counters


def parse_spec(spec: str) -> list[list[str]]:
    """A spec as groups of names. Raises `InvalidOptionError` saying where it is wrong."""
    if not isinstance(spec, str) or not spec.strip():
        raise InvalidOptionError(f"linuxperf needs the names of counters, such as {DEFAULT_SPEC!r}, not {spec!r}")
    groups: list[list[str]] = []
    rest = spec.strip()
    while rest:
        match = re.match(r"(?:\(([^()]*)\)|([^(),]+))\s*(?:,\s*|$)", rest)
        if match is None or (match.end() == len(rest) and rest.endswith(",")):
            raise InvalidOptionError(f"linuxperf={spec!r}: can't be read from {rest!r} on; write a, (b, c), d")
        names = [name.strip() for name in (match[1] if match[1] is not None else match[2]).split(",")]
        for name in names:
            if name not in EVENTS:
                raise InvalidOptionError(f"linuxperf={spec!r}: no counter {name!r}; known: {', '.join(sorted(EVENTS))}")
        groups.append(names)
        rest = rest[match.end() :]
    names = [name for group in groups for name in group]
    if len(set(names)) < len(names):
        raise InvalidOptionError(f"linuxperf={spec!r}: a counter is named twice")
    return groups


def _open_thread(groups: list[list[str]], thread: int) -> list[tuple[str, int]]:
    """Open all counters for one thread (0: this one). Raises `ProcessLookupError` if it is gone."""
    opened: list[tuple[str, int]] = []
    try:
        for group in groups:
            leader = -1
            for name in group:
                fd = _open(name, thread, leader)
                opened.append((name, fd))
                leader = fd if leader == -1 else leader
    except BaseException:
        for _, fd in opened:
            os.close(fd)
        raise
    return opened


def _open(name: str, thread: int, leader: int) -> int:
    """One counter; without the kernel's share where the kernel keeps that to itself."""
    error = 0
    for flags in (_INHERIT, _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HV):
        fd, error = _perf_event_open(*EVENTS[name], flags, thread, leader)
        if fd >= 0:
            return fd
        if error not in (errno.EACCES, errno.EPERM):
            break
    if error == errno.ESRCH:
        raise ProcessLookupError(thread)
    raise InvalidOptionError(f"linuxperf: the kernel does not give the counter {name!r}: {_cure(error)}")


def _perf_event_open(kind: int, config: int, flags: int, thread: int, leader: int) -> tuple[int, int]:
    number = _SYSCALL.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise InvalidOptionError(f"linuxperf works on Linux only, not on {sys.platform} ({platform.machine()})")
    head = struct.pack("=IIQQQQQ", kind, _ATTR_SIZE, config, 0, 0, _TIMES, flags)
    attr = ctypes.create_string_buffer(head.ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    longs = [ctypes.c_long(n) for n in (thread, -1, leader, _CLOEXEC)]
    fd = call(ctypes.c_long(number), attr, *longs)
    return int(fd), ctypes.get_errno()


def _cure(error: int) -> str:
    if error in (errno.EACCES, errno.EPERM):
        try:
            with open("/proc/sys/kernel/perf_event_paranoid") as file:
                level = file.read().strip()
        except OSError:
            level = "unknown"
        return (
            f"permission denied; kernel.perf_event_paranoid is {level}, it must be 2 or less "
            "(sysctl kernel.perf_event_paranoid=2), and a container must allow the system call perf_event_open"
        )
    if error in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        return "this processor, or virtual machine, has no such counter; leave it out of the spec"
    if error == errno.ENOSYS:
        return "this kernel has no perf events"
    return os.strerror(error)


def _read(fd: int) -> int:
    value, enabled, running = struct.unpack("=QQQ", os.read(fd, 24))
    return int(value if running in (0, enabled) else value * enabled // running)
