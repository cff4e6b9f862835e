"""A file of events: its format, reading it, and open files as sinks. The sink `IOLog` is in iolog.py.

    {"format": "otel-timespan-log", "version": 1, "wall_ns": ..., "monotonic_ns": ..., ...}
    ["start", "compute", {"$": "id", ...}, {"$": "record", ...}, 123, 1]
    {"end": 1}

One JSON line an event. The header's pair of clocks turns the monotonic timestamps into dates. The last line
counts the events, so that a file that was cut off is told from a whole one. No pickle: a file from anywhere may
be read. See docs/consumers.md.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import sys
import time
import weakref
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from .. import forks
from ..errors import LogFormatError
from .codec import decode, encode
from .model import NO_GC, NO_SAMPLES, Event
from .warn import warn_once

__all__ = [
    "FORK_WAIT_S",
    "FORMAT",
    "VERSION",
    "end_line",
    "event_line",
    "flush_file",
    "header_line",
    "is_binary",
    "open_for_writing",
    "read_events",
    "write_to_file",
]

_log = logging.getLogger("otel_timespan")

FORMAT = "otel-timespan-log"
VERSION = 1

MAX_LINE = 16 << 20
"""Characters of one line; what needs a longer one is not written, and what has a longer one is no event."""

MAX_EXPANSION = 100
"""How many times its size an archive may hold: logs of ours reach some 30, what is made to fill memories 1,000."""

_LEAST_EXPANSION = 1 << 20
_PART = 1 << 16
_SHOWN = 200
_INT64 = range(-(1 << 63), 1 << 63)


def header_line() -> str:
    """The first line: the format's name and version, the two clocks at one moment, the process and its Python."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "wall_ns": time.time_ns(),
        "monotonic_ns": time.monotonic_ns(),
        "pid": os.getpid(),
        "python": sys.version.split()[0],
    }
    return json.dumps(header) + "\n"


_compact = json.JSONEncoder(separators=(",", ":")).encode


def event_line(event: Event) -> str:
    """One event as a line of the file, without samplers' values: their consumers are not in the file.

    Raises `ValueError` for what could not be read back.
    """
    values = [event.phase, encode(event.category), encode(event.id), encode(event.timeline), event.timestamp]
    values.append(event.worker)
    if event.gc_num is not NO_GC or event.profiler_samples:
        values += [encode(event.gc_num), encode(event.profiler_samples)]
    if event.timestamp not in _INT64 or event.worker not in _INT64:
        raise ValueError("timestamp and worker must be integers of 64 bits")
    line = _compact(values) + "\n"
    if len(line) >= MAX_LINE:
        raise ValueError(f"an event takes more than {MAX_LINE} characters")
    return line


def end_line(count: int) -> str:
    """The last line of a file of so many events."""
    return json.dumps({"end": count}) + "\n"


def open_for_writing(path: str | os.PathLike[str]) -> IO[Any]:
    """Open a text file of lines, compressed where its name ends in .gz. What is there is replaced."""
    if os.fspath(path).endswith(".gz"):
        return gzip.open(path, "wt", encoding="utf-8", newline="\n")
    return open(path, "w", encoding="utf-8", newline="\n")


def is_binary(file: Any) -> bool:
    """Whether an open file takes bytes and no text."""
    if isinstance(file, io.TextIOBase):
        return False
    return isinstance(file, (io.RawIOBase, io.BufferedIOBase)) or "b" in str(getattr(file, "mode", ""))


def write_to_file(file: Any, event: Event) -> None:
    """A plain open file as a sink: a header at first, then a line an event, at once; never a last line.

    In a forked child nothing is written to a file that its parent writes to: that is warned about once.
    """
    with _plain_lock:
        lines = event_line(event)
        key = id(file)
        if key in _parents_files:
            warn_once(write_to_file, "a file is its parent process's log: events of this process are not written to it")
            return
        if key not in _plain_files:
            _plain_files[key] = weakref.ref(file, lambda _: _forget(key))
            lines = header_line() + lines
        file.write(lines.encode() if is_binary(file) else lines)


def _forget(key: int) -> None:
    _plain_files.pop(key, None)
    _parents_files.discard(key)


_plain_files: dict[int, Any] = {}
_parents_files: set[int] = set()
_plain_lock = forks.rlock()

FORK_WAIT_S = 1.0
"""How long a fork waits for who is just writing to a log's file."""


_is_held = False


def _before_fork() -> None:
    """What is in buffers is written now: else both processes would write it."""
    global _is_held
    _is_held = _plain_lock.acquire(timeout=FORK_WAIT_S)
    for reference in list(_plain_files.values()):
        flush_file(reference())


def _after_fork() -> None:
    global _is_held
    if _is_held:
        _is_held = False
        _plain_lock.release()


@forks.in_child("_plain_files", "_parents_files")
def _in_child() -> None:
    _parents_files.update(_plain_files)
    _after_fork()  # the thread that forked holds it here, too


forks.around(_before_fork, _after_fork)


def flush_file(file: Any) -> None:
    """Have a file write what is in its buffers; a file that can't is passed over."""
    with contextlib.suppress(Exception):
        file.flush()


def read_events(file: str | os.PathLike[str] | IO[Any], *, partial: bool = False) -> list[Event]:
    """The events of a file that an `IOLog` wrote, in its order.

    With `partial=True` a file that ends early (a program that was killed, a file still being written)
    gives what is intact; how much that is, and what follows it, is logged. Raises `LogFormatError`, naming the line
    and what to do, for a file that is damaged, cut off, goes on after its last line, is of a version that we don't
    know, or not ours; and for a .gz that expands more than `MAX_EXPANSION` times, so that reading takes memory
    and time in proportion to the file. `OSError` if it can't be opened.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            source: IO[Any] = opened
            if os.fspath(file).endswith(".gz"):
                source = gzip.GzipFile(fileobj=opened)  # type: ignore[assignment]
            return list(_read(source, os.fspath(file), partial))
    return list(_read(file, getattr(file, "name", "the file"), partial))


_CUT_OFF = "the file was cut off, or is still being written; read what is there with partial=True"


def _read(file: IO[Any], name: str, partial: bool) -> Iterator[Event]:
    count = number = 0
    lines = _Lines(file, name)
    while True:
        number += 1
        try:
            line = lines.next_line(number)
            if line == "" and number == 1:
                raise LogFormatError(f"{name}, line 1: the file is empty; an IOLog writes its header at once")
            if line == "":
                raise _CutOffError(f"{name}, line {number}: the last line is missing: {_CUT_OFF}")
            if number == 1:
                _check_header(line, name)
                continue
            event = _parse(line, name, number)
        except _CutOffError as error:
            if not partial or number == 1:
                raise LogFormatError(*error.args) from error.__cause__
            text = "%s: %d events were read; what follows, from line %d on, is not whole"
            _log.log(error.level, text, name, count, number)
            return
        if isinstance(event, _End):
            _check_end(event, count, name, number)
            if lines.next_line(number + 1):
                raise LogFormatError(f"{name}, line {number + 1}: it goes on after its last line: {_TWO_WRITERS}")
            return
        count += 1
        yield event


_TWO_WRITERS = "two processes wrote to it, or files were joined; write each log to a file of its own"


class _CutOffError(LogFormatError):
    """What is before is whole: with `partial=True` it is given."""

    level = logging.INFO


class _DamagedArchiveError(_CutOffError):
    level = logging.WARNING


class _End(NamedTuple):
    events: int


def _parse(line: str, name: str, number: int) -> Event | _End:
    """One line but the first. Raises `LogFormatError`."""
    try:
        item = json.loads(line)
        if isinstance(item, dict) and set(item) == {"end"} and type(item["end"]) is int:
            return _End(item["end"])
        return _event(item)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        if not line.endswith("\n"):
            raise _CutOffError(f"{name}, line {number}: {_CUT_OFF}") from None
        raise LogFormatError(
            f"{name}, line {number}: this is no event ({_reason(error)}); "
            "the file is damaged: delete the line, or write the log anew"
        ) from error


class _Lines:
    """The lines of a file, none longer than `MAX_LINE`, of an archive not more than it can honestly hold."""

    def __init__(self, file: IO[Any], name: str) -> None:
        self._file, self._name = file, name
        archive = getattr(file, "buffer", file)
        self._packed: Any = archive.fileobj if isinstance(archive, gzip.GzipFile) else None
        self._read = 0

    def next_line(self, number: int) -> str:
        """The next line with its end, "" after the last one. Raises `LogFormatError`."""
        where = f"{self._name}, line {number}"
        try:
            parts = [self._part()]
            while len(parts[-1]) == _PART and not parts[-1].endswith(_line_end(parts[-1])):
                parts.append(self._part())
                if len(parts) * _PART > MAX_LINE:
                    raise LogFormatError(f"{where}: longer than {MAX_LINE} characters: {_not_ours(number)}")
            line = parts[0][:0].join(parts)
            return line.decode() if isinstance(line, bytes) else line
        except _ExpandedError:
            raise LogFormatError(
                f"{where}: the archive holds more than {MAX_EXPANSION} times its own size, which no log of ours does; "
                "if you trust it, unpack it (gunzip) and read what comes out"
            ) from None
        except EOFError as error:
            raise _CutOffError(f"{where}: the compressed data ends early; {_CUT_OFF}") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            damaged = f"{where}: the compressed data is damaged ({error}): get the file again from where it was written"
            raise _DamagedArchiveError(damaged) from error
        except UnicodeDecodeError as error:
            raise LogFormatError(f"{where}: this is no text: {_not_ours(number)}") from error

    def _part(self) -> Any:
        part = self._file.readline(_PART)
        self._read += len(part)
        if self._read > _LEAST_EXPANSION and self._packed is not None:
            with contextlib.suppress(OSError):  # a pipe knows no position
                if self._read > _LEAST_EXPANSION + MAX_EXPANSION * self._packed.tell():
                    raise _ExpandedError
        return part


class _ExpandedError(Exception):
    """An archive is a bomb."""


def _line_end(text: Any) -> Any:
    return b"\n" if isinstance(text, bytes) else "\n"


def _not_ours(number: int) -> str:
    return "no log of ours; give a file that an IOLog wrote" if number == 1 else "the file is damaged; write it anew"


def _check_header(line: str, name: str) -> None:
    try:
        header = json.loads(line)
        ours = isinstance(header, dict) and header.get("format") == FORMAT
    except (ValueError, RecursionError):
        ours = False
    if not ours:
        raise LogFormatError(f"{name}, line 1: {_not_ours(1)}")
    if header.get("version") != VERSION:
        raise LogFormatError(
            f"{name}, line 1: version {header.get('version')!r} of the format; this release reads version "
            f"{VERSION}: read it with the release of otel-timespan that wrote it"
        )


def _check_end(end: _End, count: int, name: str, number: int) -> None:
    if end.events != count:
        raise LogFormatError(
            f"{name}, line {number}: {end.events} events were written but {count} are there; lines are missing or "
            "doubled: get the file again from where it was written"
        )


def _event(item: Any) -> Event:
    if not isinstance(item, list) or len(item) not in (6, 8):
        raise ValueError("not a list of 6 or 8 values")
    phase, category, id, timeline, timestamp, worker, *rest = item
    if phase not in ("start", "finish"):
        raise ValueError(f"the phase is {str(phase)[:_SHOWN]!r}")
    if type(timestamp) is not int or type(worker) is not int or timestamp not in _INT64 or worker not in _INT64:
        raise ValueError("timestamp and worker must be integers of 64 bits")
    gc_num, samples = [decode(v) for v in rest] or (NO_GC, NO_SAMPLES)
    event = Event(phase, decode(category), decode(id), decode(timeline), timestamp, gc_num, samples, worker)
    hash(event.id), hash(event.category)
    return event


def _reason(error: Exception) -> str:
    text = f"missing key {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return text[:_SHOWN]
