"""Starting a worker: a fresh interpreter, never a fork, with one end of a socket pair.

It inherits the environment, the search path and the folder of this process; has a session of its own, so that Ctrl-C
in a terminal reaches this process only; and ends when this process does, as its socket ends then.

Until it is ready what it writes to its standard error goes into a file without a name: if it never is, that says why.

The search path is handed over as an argument, not by `PYTHONPATH`, which the programs that bodies start would inherit;
and `-m` would put the current folder first, where any file may be called like a module of Python's.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ... import forks
from .flight import FlightReader
from .output import Streams

__all__ = ["Started", "end_group", "is_over", "start_process", "threads_of_libraries"]

_SOCKET_BYTES = 1 << 20
_TAIL = 2000
"""So many bytes of a worker's last words are shown."""

_BEGIN = """\
import sys
sys.path[:] = eval(sys.argv.pop())
from otel_timespan.worker.start import main
sys.exit(main(sys.argv))
"""

_LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Started(NamedTuple):
    """A worker's process, our end of the socket to it, its flight recorder, and what it writes before it is ready.

    `life`: our end of a pipe; when it is closed, the worker and what it started are killed (orphans.py).
    """

    process: subprocess.Popen[bytes]
    socket: socket.socket
    reader: FlightReader
    errors: int
    life: int

    def error_text(self) -> str:
        """The end of what it wrote to its standard error before it was ready; "" for nothing."""
        try:
            size = os.fstat(self.errors).st_size
            data = os.pread(self.errors, _TAIL, max(0, size - _TAIL))
        except OSError:
            return ""
        return data.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Close what is left of it; the process is over."""
        self.socket.close()
        self.reader.close()
        for fd in (self.errors, self.life):
            with contextlib.suppress(OSError):
                os.close(fd)


def start_process(env: Mapping[str, str], streams: Streams, lane: int) -> Started:
    """Start a worker's process, with these variables on top of the environment; it inherits the descriptor `lane`.

    Raises `OSError`.
    """
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
        ours, their_socket = socket.socketpair()
        undo.callback(ours.close)
        theirs.callback(their_socket.close)
        for end in (ours, their_socket):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        reader = FlightReader()
        undo.callback(reader.close)
        theirs.callback(reader.close_fd)
        errors = _nameless()
        undo.callback(os.close, errors)
        their_life, life = os.pipe()
        undo.callback(os.close, life)
        theirs.callback(os.close, their_life)
        numbers = [their_socket.fileno(), reader.fd, streams.stderr, their_life]
        process = subprocess.Popen(
            [sys.executable, *_flags(), "-c", _BEGIN, *map(str, numbers), repr(_search_path())],
            pass_fds=[*numbers, lane],
            stdin=subprocess.DEVNULL,
            stdout=streams.stdout,
            stderr=errors,
            env={**os.environ, **env},
            start_new_session=True,
        )
        ours.setblocking(False)
        undo.pop_all()
    return Started(process, ours, reader, errors, life)


def _nameless() -> int:
    with forks.held_off, tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())


def _search_path() -> list[str]:
    """Where this process finds modules, this package among them."""
    here = str(Path(__file__).parents[3])
    path = [entry for entry in sys.path if isinstance(entry, str)]
    return path if here in path else [*path, here]


def _flags() -> list[str]:
    """The flags of this interpreter that change what code means or says (-W, -X, -O, -E, ...)."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]


def threads_of_libraries(slots: int, env: Mapping[str, str] | None) -> dict[str, str]:
    """`env`, and how many threads numerical libraries are to use in each of `slots` slots, where nobody said that."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = str(max(1, cpus // max(1, slots)))
    return {**{name: each for name in _LIBRARIES if name not in os.environ}, **(env or {})}


# ---- the end ------------------------------------------------------------------------------------------------


def is_over(process: subprocess.Popen[bytes], patience_s: float = 0.0) -> bool:
    """Whether a process has ended, at the latest after so many seconds. It stays to be asked how."""
    if process.returncode is not None:
        return True
    deadline, pause_s = time.monotonic() + patience_s, 0.0005
    while True:
        if not hasattr(os, "waitid"):
            if process.poll() is not None:
                return True
        else:
            try:
                if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                    return True
            except ChildProcessError:  # somebody else asked how it ended
                return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause_s, left))
        pause_s = min(2 * pause_s, 0.02)


def end_group(process: subprocess.Popen[bytes], patience_s: float) -> tuple[int | None, bool]:
    """End a worker's process, which gets so many seconds to do so itself, and then all that it started.

    Its exit code (None: not known), and whether it was us who killed it. Done once a process: afterwards its number
    may be that of others.
    """
    by_us = not is_over(process, patience_s)
    if process.returncode is None:  # so its number is still its own, dead or alive, and its group's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.wait(1.0), by_us
    except subprocess.TimeoutExpired:  # it is in a call to the system that nothing breaks off
        return None, by_us
