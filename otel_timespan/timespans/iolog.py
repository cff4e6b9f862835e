"""`IOLog`: the sink that writes events into a file, off the emitter's path. The format is eventfile.py's."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from typing import IO, Any

from .. import exits, forks
from ..errors import InvalidOptionError, LogNotKeptError
from .bounds import MAX_BYTES, journal_bound
from .eventfile import FORK_WAIT_S, end_line, event_line, flush_file, header_line, is_binary, open_for_writing
from .journal import Journal
from .model import Event
from .recorder import Recorder
from .sink import Sink
from .warn import warn_once

__all__ = ["IOLog"]

EXIT_S = 5.0
"""How long writing at exit may take."""

_LAST_S = 0.5
"""How long the last line waits for an event that is being written."""


class IOLog(Sink):
    """Writes each event to a file: `IOLog("run.jsonl")`, `IOLog("run.jsonl.gz")`, or to an open file.

    A path is replaced if it exists. Events are written off the emitter's path; `flush` returns when all
    that happened before it is in the file, `close` (also at the end of a `with` block and at exit) writes
    the last line. An open file of yours is not closed. `written` and `lost` count events; what can't be
    written is warned about once. What waits takes at most `max_waiting_bytes` (64 MiB): beyond it the program waits for
    the file, at most one second for one that does not get on (`on_full="block"`), or not at all ("drop"); then
    events are `lost`. At exit, writing takes at most 5 s. In a forked child the file is still the parent's: the child's
    events are counted as lost, and that is warned about; give it a log of its own. Thread-safe. Raises `OSError` when
    the path can't be opened, and `InvalidOptionError` for something that is no file, or a bad option.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | IO[Any],
        *,
        max_waiting_bytes: int = MAX_BYTES,
        on_full: str = "block",
    ) -> None:
        bound = journal_bound(max_waiting_bytes, on_full)
        self._owned = isinstance(file, (str, os.PathLike))
        self._file: Any = open_for_writing(file) if isinstance(file, (str, os.PathLike)) else file
        if not callable(getattr(self._file, "write", None)):
            raise InvalidOptionError(f"IOLog needs a path or a file open for writing, not {file!r}")
        self._binary = is_binary(self._file)
        self._lock = forks.lock()
        self._closed = False
        self._is_parents = False
        """Whether this is a forked child, and the file its parent's."""
        self._held = False
        self.written = 0
        self._failed = 0
        self._write(header_line())
        self._journal = Journal(self._process, **bound)
        self.recorder = Recorder(self._journal.append, put=self._journal.put, again=self._journal.again)
        _open_logs.add(self)

    def write_event(self, event: Event) -> None:
        """Take one event; it is written within 100 ms."""
        self.recorder.append(event)

    def get_logs(self, **options: Any) -> Any:
        """Raises `LogNotKeptError`: the events are in the file."""
        raise LogNotKeptError("the events are in the file: close the IOLog, then read_events(path)")

    @property
    def lost(self) -> int:
        """Events that are not in the file."""
        return self._failed + self._journal.dropped_events

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return when all events so far are in the file; False if that takes too long."""
        drained = self._journal.drain(timeout_s=timeout_s)
        with self._hold(0.0 if not drained else None) as held:
            if held and not self._closed and callable(getattr(self._file, "flush", None)):
                self._file.flush()
        return drained

    def close(self, timeout_s: float | None = None) -> None:
        """Write what waits and the last line; later events are dropped. A second call does nothing.

        What can't be written within `timeout_s` is `lost`. Where the file itself does not get on it stays without its
        last line.
        """
        drained = self._journal.drain(timeout_s=timeout_s)
        with self._hold(None if drained else _LAST_S) as held:
            if self._closed:
                return
            self._closed = True
            self.recorder.append = self.recorder.put = self.recorder.event = _ignore
            _open_logs.discard(self)
            self._journal.give_up(self._journal.close())
            if self._is_parents:
                return
            if not drained:
                warn_once((id(self), "close"), "an IOLog was closed before all was written; see its attribute `lost`")
            if held:
                self._write(end_line(self.written))
                self._file.close() if self._owned else getattr(self._file, "flush", _ignore)()

    @contextlib.contextmanager
    def _hold(self, timeout_s: float | None) -> Iterator[bool]:
        """The file is ours, if it can be had in time."""
        held = self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s)
        try:
            yield held
        finally:
            if held:
                self._lock.release()

    def __enter__(self) -> IOLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _process(self, events: list[Event]) -> None:
        with self._lock:
            if self._is_parents:
                self._failed += len(events)
                warn_once(self, "an IOLog is its parent process's: give a forked process a log of its own; see `lost`")
                return
            for event in events:
                try:
                    self._write(event_line(event))
                    self.written += 1
                except Exception:
                    self._failed += 1
                    warn_once(self, "an IOLog could not write an event; see its attribute `lost`")

    def _write(self, line: str) -> None:
        self._file.write(line.encode() if self._binary else line)

    # ---- forks -----------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """Nobody writes while the process forks, and no buffer holds anything: else both processes would write it."""
        self._held = self._lock.acquire(timeout=FORK_WAIT_S)
        flush_file(self._file)

    def _after_fork(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()

    def _in_child(self) -> None:
        self._held, self._is_parents = False, True
        self.written = self._failed = 0
        if self._owned:  # whatever its end still makes this process write to the file must not arrive
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)


_open_logs: weakref.WeakSet[IOLog] = weakref.WeakSet()


def _close_all() -> None:
    for log in list(_open_logs):
        try:
            log.close(EXIT_S)
        except Exception:
            warn_once(log, "an IOLog could not be closed at exit")


exits.at_exit(_close_all)


def _before_fork() -> None:
    for log in list(_open_logs):
        log._before_fork()


def _after_fork() -> None:
    for log in list(_open_logs):
        log._after_fork()


@forks.in_child("_open_logs")
def _in_child() -> None:
    for log in list(_open_logs):
        log._in_child()


forks.around(_before_fork, _after_fork)


def _ignore(*_: Any) -> None:
    """What a closed log does with records."""
