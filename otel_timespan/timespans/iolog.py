"""`IOLog`: the sink that writes events into a file, off the emitter's path. The format is eventfile.py's."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import IO, Any

from ..errors import InvalidOptionError, LogNotKeptError
from .eventfile import end_line, event_line, header_line, is_binary, open_for_writing
from .journal import Journal
from .model import Event
from .recorder import Recorder
from .sink import Sink
from .warn import warn_once

__all__ = ["IOLog"]


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
        self._file: Any = open_for_writing(file) if isinstance(file, (str, os.PathLike)) else file
        if not callable(getattr(self._file, "write", None)):
            raise InvalidOptionError(f"IOLog needs a path or a file open for writing, not {file!r}")
        self._binary = is_binary(self._file)
        self._lock = threading.Lock()
        self._closed = False
        self.written = 0
        self.lost = 0
        self._write(header_line())
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
            self._write(end_line(self.written))
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
