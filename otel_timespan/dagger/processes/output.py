"""What workers print: into the very streams of this process, where these are the system's.

Where `sys.stdout` or `sys.stderr` is something else (a notebook, a test that looks at it), what workers write comes
over a pipe, and each line is written there with the worker's number in front. One thread a pipe does that, so that a
slow stream makes those wait who print, and nobody else.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any

from ..service.threads import start_service

__all__ = ["Streams"]

_CHUNK = 1 << 16


class Streams:
    """Where one worker's output goes: `stdout` and `stderr` are the descriptors that it is to inherit."""

    def __init__(self, worker: int) -> None:
        self._threads: list[threading.Thread] = []
        self._worker = worker
        self.stdout = self._stream("stdout", 1)
        self.stderr = self._stream("stderr", 2)

    def _stream(self, name: str, number: int) -> int:
        if not _is_real(name, number):
            ours, theirs = os.pipe()
            thread = threading.Thread(
                target=_forward, args=(ours, name, self._worker), name=f"dagger-{name}-{self._worker}", daemon=True
            )
            if start_service(thread) is None:
                self._threads.append(thread)
                return theirs
            os.close(ours)
            os.close(theirs)
        try:
            return os.dup(number)
        except OSError:  # this process has none
            return os.open(os.devnull, os.O_WRONLY)

    def started(self) -> None:
        """The worker has inherited them, or never will."""
        for number in (self.stdout, self.stderr):
            os.close(number)

    def finish(self, timeout_s: float) -> None:
        """The worker is over: wait until what it printed was written, unless others that it started still print."""
        for thread in self._threads:
            thread.join(timeout_s)


def _is_real(name: str, number: int) -> bool:
    try:
        return bool(getattr(sys, name).fileno() == number)
    except (AttributeError, OSError, ValueError):  # None; none of its own; closed
        return getattr(sys, name) is None


def _forward(source: int, name: str, worker: int) -> None:
    prefix = f"[worker {worker}] "
    rest = b""
    with open(source, "rb", buffering=0) as pipe:
        while data := pipe.read(_CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) >= _CHUNK:  # a line without end
                lines, rest = [*lines, rest], b""
            if lines:
                _write(name, "".join([f"{prefix}{line.decode('utf-8', 'replace')}\n" for line in lines]))
    if rest:
        _write(name, f"{prefix}{rest.decode('utf-8', 'replace')}\n")


def _write(name: str, text: str) -> None:
    """To the stream of that name now; to the one that the interpreter began with, if that was closed."""
    stream: Any
    for stream in (getattr(sys, name), getattr(sys, f"__{name}__")):
        with contextlib.suppress(Exception):  # of the user's own stream: whatever it raises, others go on printing
            stream.write(text)
            stream.flush()
            return
