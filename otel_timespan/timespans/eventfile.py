"""A file of events: its format, reading it, and open files as sinks. The sink `IOLog` is in iolog.py.

    {"format": "otel-timespan-log", "version": 1, "wall_ns": ..., "monotonic_ns": ..., ...}
    ["start", "compute", {"$": "id", ...}, {"$": "record", ...}, 123, 1]
    {"end": 1}

One JSON line an event. The header's pair of clocks turns the monotonic timestamps into dates. The last line
counts the events, so that a file that was cut off is told from a whole one. No pickle: a file from anywhere may
be read. See docs/consumers.md.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from typing import IO, Any

from ..errors import LogFormatError
from .codec import decode, encode
from .model import NO_GC, NO_SAMPLES, Event

__all__ = [
    "FORMAT",
    "VERSION",
    "end_line",
    "event_line",
    "header_line",
    "is_binary",
    "open_for_writing",
    "read_events",
    "write_to_file",
]

FORMAT = "otel-timespan-log"
VERSION = 1

MAX_LINE = 64 * 1024 * 1024
"""Characters of one line; a longer one is no event."""


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


def event_line(event: Event) -> str:
    """One event as a line of the file. Samplers' values are not kept: their consumers are not in the file."""
    values = [event.phase, encode(event.category), encode(event.id), encode(event.timeline), event.timestamp]
    values.append(event.worker)
    if event.gc_num is not NO_GC or event.profiler_samples:
        values += [encode(event.gc_num), encode(event.profiler_samples)]
    return json.dumps(values, separators=(",", ":")) + "\n"


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
    """A plain open file as a sink: a header at first, then a line an event, at once; never a last line."""
    with _plain_lock:
        lines = event_line(event)
        key = id(file)
        if key not in _plain_files:
            _plain_files[key] = weakref.ref(file, lambda _: _plain_files.pop(key, None))
            lines = header_line() + lines
        file.write(lines.encode() if is_binary(file) else lines)


_plain_files: dict[int, Any] = {}
_plain_lock = threading.RLock()


def read_events(file: str | os.PathLike[str] | IO[Any], *, partial: bool = False) -> list[Event]:
    """The events of a file that an `IOLog` wrote, in its order.

    With `partial=True` a file that ends early (a program that was killed, a file still being written)
    gives what is intact. Raises `LogFormatError`, naming the line and what to do, for a file that is
    damaged, cut off, of a version that we don't know, or not ours; `OSError` if it can't be opened.
    """
    if isinstance(file, (str, os.PathLike)):
        with _open_for_reading(file) as opened:
            return list(_read(opened, os.fspath(file), partial))
    return list(_read(file, getattr(file, "name", "the file"), partial))


def _open_for_reading(path: str | os.PathLike[str]) -> IO[Any]:
    if os.fspath(path).endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return open(path, "rb")


_CUT_OFF = "the file was cut off, or is still being written; read what is there with partial=True"


def _read(file: IO[Any], name: str, partial: bool) -> Iterator[Event]:
    count, number = 0, 0
    for number, line in _lines(file, name, partial):
        if number == 1:
            _check_header(line, name)
            continue
        try:
            item = json.loads(line)
            if isinstance(item, dict) and set(item) == {"end"}:
                return _check_end(item["end"], count, name, number)
            event = _event(item)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            if isinstance(error, LogFormatError):
                raise
            if not line.endswith("\n"):
                if partial:
                    return
                raise LogFormatError(f"{name}, line {number}: {_CUT_OFF}") from None
            raise LogFormatError(
                f"{name}, line {number}: this is no event ({_reason(error)}); "
                "the file is damaged: delete the line, or write the log anew"
            ) from error
        count += 1
        yield event
    if number == 0:
        raise LogFormatError(f"{name}, line 1: the file is empty; an IOLog writes its header at once")
    if not partial:
        raise LogFormatError(f"{name}, line {number + 1}: the last line is missing: {_CUT_OFF}")


def _lines(file: IO[Any], name: str, partial: bool) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        number += 1
        try:
            raw = file.readline(MAX_LINE)
            line = raw.decode() if isinstance(raw, bytes) else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if partial and number > 1:
                return
            raise LogFormatError(f"{name}, line {number}: the compressed data ends early; {_CUT_OFF}") from error
        except UnicodeDecodeError as error:
            raise LogFormatError(f"{name}, line {number}: this is no text: {_not_ours(number)}") from error
        if not line:
            return
        if len(raw) >= MAX_LINE:
            raise LogFormatError(f"{name}, line {number}: longer than {MAX_LINE} characters: {_not_ours(number)}")
        yield number, line


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


def _check_end(told: Any, count: int, name: str, number: int) -> None:
    if told != count:
        raise LogFormatError(
            f"{name}, line {number}: {told} events were written but {count} are there; lines are missing or "
            "doubled: get the file again from where it was written"
        )


def _event(item: Any) -> Event:
    if not isinstance(item, list) or len(item) not in (6, 8):
        raise ValueError("not a list of 6 or 8 values")
    phase, category, id, timeline, timestamp, worker, *rest = item
    if phase not in ("start", "finish"):
        raise ValueError(f"the phase is {phase!r}")
    if type(timestamp) is not int or type(worker) is not int:
        raise ValueError("timestamp and worker must be integers")
    gc_num, samples = [decode(v) for v in rest] or (NO_GC, NO_SAMPLES)
    event = Event(phase, decode(category), decode(id), decode(timeline), timestamp, gc_num, samples, worker)
    hash(event.id), hash(event.category)
    return event


def _reason(error: Exception) -> str:
    return f"missing key {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
