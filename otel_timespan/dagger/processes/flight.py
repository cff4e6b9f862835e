"""The flight recorder: what a worker process is doing, in memory that outlives it.

The problem: a worker that is killed can say nothing, and the head must know which bodies ran in it: those may be to
blame and are tried again as a new attempt; whatever only waited there is given to another worker and nobody's fault. So
the worker notes each body in a small file without a name that the head made and maps, too: `FlightRecorder` writes,
`FlightReader` reads.

A kill may come between any two stores, and what was stored before it is there. So no lock and no log is needed, only an
order: a row's phase is one byte by itself, and says last that the row is one.

* `begin` fills a row whose phase is FREE, and then sets the phase. Killed between the two, the body has not begun, and
  the row is not seen.
* `phase`, `end` and the counts of the header are one aligned store each: there, or not.
* `start` writes the time, then the phase: killed between the two, a body that was still moving its arguments.

A reader of a worker that is alive can meet a row while it is written, by chance for another body: it looks twice, and
reports what was the same. Nothing that a body scribbles over the file makes it raise: rows that make no sense are none.

One begin, one change of the phase and one end take about 0.5 µs in all.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
import weakref
from typing import Final, NamedTuple

from ... import forks
from ...errors import InvalidOptionError
from .nameless import nameless_file
from .procfs import look

__all__ = [
    "BLOCKED",
    "ENDED",
    "FREE",
    "IN_BODY",
    "MOVING",
    "PHASES",
    "ROWS",
    "SIGNALS",
    "FlightReader",
    "FlightRecorder",
    "FlightRow",
]

# Plain numbers, not an enumeration: a member of one costs more to look up than the store.
FREE: Final = 0
MOVING: Final = 1
IN_BODY: Final = 2
BLOCKED: Final = 3
ENDED: Final = 4

PHASES = ("free", "moving", "in body", "blocked", "ended")
"""What the phases are called in texts: nobody's row; arguments are on their way; the body runs; it waits for another
task while its slot is another one's; it is over, and what it gave was not handed to the socket yet."""

ROWS = 2048
"""Rows of a table: more than a worker is ever sent ahead (1,024), and bodies may wait inside each other (128)."""

SIGNALS = ("traces", "logs", "metrics")
"""What telemetry of users is counted by."""

# The file: a header of 16 numbers of 8 bytes; the phases, a byte a row; the rows, 32 bytes each. Behind the last row is
# a spare one, which all share who found no free one.
_MAGIC = int.from_bytes(b"flight01", sys.byteorder)
_WORDS = 16
_IS_OURS, _COUNT, _PID, _HEARTBEAT, _RSS, _MADE, _OVERFULL = 0, 1, 2, 3, 4, 5, 5 + len(SIGNALS)
_PHASES_AT = _WORDS * 8
_ROW = struct.Struct("=QqIII4x")  # id, since_ns, attempt, slot, mark
_SIZE = _ROW.size
_MARK = 0x5AFEF1E5
"""Stands in each row: what else is written there is hardly one."""

_pack_row = _ROW.pack_into


def _rows_at(count: int) -> int:
    """Where the rows begin: on a multiple of their size."""
    return -(-(_PHASES_AT + count + 1) // _SIZE) * _SIZE


class FlightRow(NamedTuple):
    """A body that a worker was at: task `id`, `attempt`, `slot`; its `phase`, see `PHASES`.

    `since_ns` (monotonic) is when the body began; while the phase is MOVING, when its arguments were asked for.
    """

    id: int
    attempt: int
    slot: int
    phase: int
    since_ns: int


class FlightReader:
    """The head's side: makes the file, hands its descriptor to one worker, and reads. Its methods never raise.

    `rows`: how many bodies can be noted at a time. Raises `OSError` where no memory or descriptor is to be had. Threads
    may read at the same time.
    """

    def __init__(self, rows: int = ROWS) -> None:
        self._count, self._rows_at = rows, _rows_at(rows)
        self.fd = nameless_file("otel_timespan flight recorder", self._rows_at + (rows + 1) * _SIZE)
        """To be inherited by the worker; -1 once it was closed."""
        os.pwrite(self.fd, struct.pack("=QQ", _MAGIC, rows), 0)
        self._map = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)

    def close_fd(self) -> None:
        """Close the descriptor, when the worker was started. Reading goes on."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give the memory back. From then on there are no rows, and nothing is known."""
        self.close_fd()
        self._map.close()

    @property
    def is_sound(self) -> bool:
        """Whether the header is one of ours: nobody wrote over it, and it is not closed."""
        return self._word(_IS_OURS) == _MAGIC and self._word(_COUNT) == self._count

    def rows(self) -> list[FlightRow]:
        """The bodies that the worker is at, or was when it died. What is just being written is left out.

        After a body that wrote over the file some may be missing, or made up: trust no id that was not sent there.
        """
        if not self.is_sound:
            return []
        first, found = self._look(), self._look()
        flights = []
        for row, (phase, raw) in found.items():
            id, since_ns, attempt, slot, mark = _ROW.unpack(raw)
            if mark == _MARK and first.get(row) == (phase, raw):
                flights.append(FlightRow(id, attempt, slot, phase, since_ns))
        return flights

    @property
    def pid(self) -> int | None:
        """The worker's process id; None until it has opened its side."""
        return self._word(_PID) if self.is_sound else None

    @property
    def heartbeat_ns(self) -> int | None:
        """When (monotonic) the worker's last heartbeat was; None before the first one."""
        return self._word(_HEARTBEAT) if self.is_sound else None

    @property
    def rss(self) -> int | None:
        """Bytes of memory that the worker had in use at its last heartbeat; None where that is unknown."""
        return self._word(_RSS) if self.is_sound else None

    @property
    def made(self) -> dict[str, int]:
        """How many items of telemetry users' code made in the worker, by `SIGNALS`; all 0 where that is unknown."""
        return {name: (self.is_sound and self._word(_MADE + n)) or 0 for n, name in enumerate(SIGNALS)}

    @property
    def is_overfull(self) -> bool:
        """Whether a body ever found no free row: then bodies may have run that are in none."""
        return self.is_sound and self._word(_OVERFULL) is not None

    def _word(self, index: int) -> int | None:
        return int.from_bytes(self._bytes(index * 8, 8), sys.byteorder) or None

    def _look(self) -> dict[int, tuple[int, bytes]]:
        """Phase and content of each row that is in use."""
        phases = self._bytes(_PHASES_AT, self._count).rstrip(b"\0")
        return {
            row: (phase, self._bytes(self._rows_at + row * _SIZE, _SIZE))
            for row, phase in enumerate(phases)
            if FREE < phase <= ENDED
        }

    def _bytes(self, start: int, count: int) -> bytes:
        try:
            return self._map[start : start + count]
        except ValueError:  # closed, perhaps by another thread just now
            return bytes(count)


class FlightRecorder:
    """The worker's side, over the descriptor that it inherited, which it closes. Any thread may call any method.

    Raises `InvalidOptionError` where the descriptor is none of a `FlightReader` of the same version.

    A forked child of the worker writes into memory of its own: what it does is not what the worker does.
    """

    def __init__(self, fd: int) -> None:
        try:
            # Kept for ever, as the head reads until the process is gone.
            self._map = mmap.mmap(fd, 0)
        except (OSError, ValueError) as error:  # closed; a socket; empty
            raise InvalidOptionError(f"descriptor {fd} is no flight recorder's: {error}") from error
        self._spare = count = self._check(fd)
        os.close(fd)
        self._free = list(range(count - 1, -1, -1))  # low ones first: a reader looks as far as the last one in use
        self._use(memoryview(self._map))
        self._words[_PID] = os.getpid()
        _recorders.add(self)

    def _check(self, fd: int) -> int:
        """How many rows the file has, if it is one of ours."""
        nbytes = len(self._map)
        magic, count = struct.unpack_from("=QQ", self._map) if nbytes > _PHASES_AT else (0, 0)
        if magic != _MAGIC or nbytes != _rows_at(count) + (count + 1) * _SIZE:
            raise InvalidOptionError(f"descriptor {fd} is no flight recorder's of this version of otel_timespan")
        return int(count)

    def _use(self, memory: memoryview) -> None:
        rows_at = _rows_at(self._spare)
        self._words = memory[:_PHASES_AT].cast("Q")
        self._phases = memory[_PHASES_AT:rows_at]
        self._rows = memory[rows_at:]
        self._times = self._rows.cast("q")

    def begin(self, id: int, attempt: int, slot: int, since_ns: int, phase: int = IN_BODY) -> int:
        """A body begins, or with MOVING the way of its arguments; returns its row, for the other methods.

        `since_ns` is the monotonic time of that.
        """
        try:
            row = self._free.pop()
        except IndexError:
            row = self._spare
            self._words[_OVERFULL] = 1
        _pack_row(self._rows, row * _SIZE, id, since_ns, attempt, slot, _MARK)
        self._phases[row] = phase
        return row

    def start(self, row: int, since_ns: int) -> None:
        """The arguments are there, the body begins."""
        self._times[row * (_SIZE // 8) + 1] = since_ns  # not by `struct`, which stores byte after byte
        self._phases[row] = IN_BODY

    def phase(self, row: int, phase: int) -> None:
        """The body waits for another task (BLOCKED), goes on (IN_BODY), or is over (ENDED)."""
        self._phases[row] = phase

    def end(self, row: int) -> None:
        """What the body gave is the socket's: the row is free. Once a `begin`; more than that does nothing."""
        if self._phases[row]:
            self._phases[row] = FREE
            if row != self._spare:
                self._free.append(row)

    def heartbeat(self) -> None:
        """Note that the interpreter runs, and how much memory the process has."""
        self._words[_RSS] = look(os.getpid()).rss or 0
        self._words[_HEARTBEAT] = time.monotonic_ns()

    def made(self, signal: str, total: int) -> None:
        """So many items of a signal, one of `SIGNALS`, were made in all until now."""
        self._words[_MADE + SIGNALS.index(signal)] = total


_recorders: weakref.WeakSet[FlightRecorder] = weakref.WeakSet()


@forks.in_child("_recorders")
def _in_child() -> None:
    """A body that forks, and both of them end it: the row is the worker's, which may still be at it."""
    for recorder in _recorders:
        recorder._use(memoryview(bytearray(len(recorder._map))))
