"""`IOLog`: events in a file, one JSON line each, and `read_events` that gets them back.

    {"format": "otel-timespan-log", "version": 1, "wall_ns": ..., "monotonic_ns": ..., ...}
    ["start", "compute", {"$": "id", ...}, {"$": "record", ...}, 123, 1]
    {"end": 1}

The header's pair of clocks turns the monotonic timestamps into dates. The last line counts the events, so
that a file that was cut off is told from a whole one. No pickle: a file from anywhere may be read.

Source: spec/timespans.md §4.
"""

from __future__ import annotations

import atexit
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

from ..errors import InvalidOptionError, LogFormatError, LogNotKeptError
from .codec import decode, encode
from .journal import Journal
from .model import NO_GC, NO_SAMPLES, Event
from .recorder import Recorder
from .sinks import Sink
from .warn import warn_once

__all__ = ["FORMAT", "VERSION", "IOLog", "read_events"]

FORMAT = "otel-timespan-log"
VERSION = 1

MAX_LINE = 64 * 1024 * 1024
"""Characters of one line; a longer one is no event."""


class IOLog(Sink):
    """Writes each event to a file: `IOLog("run.jsonl")`, `IOLog("run.jsonl.gz")`, or to an open file.

    A path is replaced if it exists. Events are written off the emitter's path; `flush` returns when all
    that happened before it is in the file, `close` (also at the end of a `with` block and at exit) writes
    the last line. An open file of yours is not closed. `written` and `lost` count events; what can't be
    written is warned about once. Thread-safe. Raises `OSError` when the path can't be opened, and
    `InvalidOptionError` for something that is no file.
    """

    def __init__(self, file: str | os.PathLike[str] | IO[Any]) -> None:
        self._owned = isinstance(file, (str, os.PathLike))
        self._file: Any = _open_for_writing(file) if isinstance(file, (str, os.PathLike)) else file
        if not callable(getattr(self._file, "write", None)):
            raise InvalidOptionError(f"IOLog needs a path or a file open for writing, not {file!r}")
        self._binary = _is_binary(self._file)
        self._lock = threading.Lock()
        self._closed = False
        self.written = 0
        self.lost = 0
        self._write(json.dumps(_header()) + "\n")
        self._journal = Journal(self._process)
        self.recorder = Recorder(self._journal.append, put=self._journal.put)
        _open_logs.add(self)

    def write_event(self, event: Event) -> None:
        """Take one event; it is written within 100 ms."""
        self.recorder.append(event)

    def get_logs(self, **options: Any) -> Any:
        """Raises `LogNotKeptError`: the events are in the file."""
        raise LogNotKeptError("the events are in the file: close the IOLog, then read_events(path)")

    def flush(self) -> None:
        """Return when all events so far are in the file."""
        self._journal.drain()
        with self._lock:
            if not self._closed and callable(getattr(self._file, "flush", None)):
                self._file.flush()

    def close(self) -> None:
        """Write what waits and the last line; later events are dropped. A second call does nothing."""
        self._journal.drain()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.recorder.append = self.recorder.put = _ignore
            _open_logs.discard(self)
            self._write(json.dumps({"end": self.written}) + "\n")
            self._file.close() if self._owned else getattr(self._file, "flush", _ignore)()

    def __enter__(self) -> IOLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _process(self, events: list[Event]) -> None:
        with self._lock:
            for event in events:
                try:
                    self._write(event_line(event))
                    self.written += 1
                except Exception:
                    self.lost += 1
                    warn_once(self, "an IOLog could not write an event; see its attribute `lost`")

    def _write(self, line: str) -> None:
        self._file.write(line.encode() if self._binary else line)


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


def event_line(event: Event) -> str:
    """One event as a line of the file. Samplers' values are not kept: their consumers are not in the file."""
    values = [event.phase, encode(event.category), encode(event.id), encode(event.timeline), event.timestamp]
    values.append(event.worker)
    if event.gc_num is not NO_GC or event.profiler_samples:
        values += [encode(event.gc_num), encode(event.profiler_samples)]
    return json.dumps(values, separators=(",", ":")) + "\n"


def write_to_file(file: Any, event: Event) -> None:
    """A plain open file as a sink: a header at first, then a line an event, at once; never a last line."""
    with _plain_lock:
        lines = event_line(event)
        key = id(file)
        if key not in _plain_files:
            _plain_files[key] = weakref.ref(file, lambda _: _plain_files.pop(key, None))
            lines = json.dumps(_header()) + "\n" + lines
        file.write(lines.encode() if _is_binary(file) else lines)


_plain_files: dict[int, Any] = {}
_plain_lock = threading.RLock()
_open_logs: weakref.WeakSet[IOLog] = weakref.WeakSet()


def _close_all() -> None:
    for log in list(_open_logs):
        try:
            log.close()
        except Exception:
            warn_once(log, "an IOLog could not be closed at exit")


atexit.register(_close_all)


def _ignore(*_: Any) -> None:
    """What a closed log does with records."""


def _header() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "wall_ns": time.time_ns(),
        "monotonic_ns": time.monotonic_ns(),
        "pid": os.getpid(),
        "python": sys.version.split()[0],
    }


def _is_binary(file: Any) -> bool:
    if isinstance(file, io.TextIOBase):
        return False
    return isinstance(file, (io.RawIOBase, io.BufferedIOBase)) or "b" in str(getattr(file, "mode", ""))


def _open_for_writing(path: str | os.PathLike[str]) -> IO[Any]:
    if os.fspath(path).endswith(".gz"):
        return gzip.open(path, "wt", encoding="utf-8", newline="\n")
    return open(path, "w", encoding="utf-8", newline="\n")


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
