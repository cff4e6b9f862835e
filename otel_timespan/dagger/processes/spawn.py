"""Starting a worker: a fresh interpreter, never a fork, with one end of a socket pair.

It inherits the environment, the search path and the folder of this process; has a session of its own, so that Ctrl-C
in a terminal reaches this process only; and ends when this process does, as its socket ends then.

See docs/workers.md.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

__all__ = ["start_process"]

_SOCKET_BYTES = 1 << 20


def start_process(env: Mapping[str, str] | None, lane: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A worker's process and our end of the socket to it. It inherits the descriptor `lane`. Raises `OSError`."""
    ours, theirs = socket.socketpair()
    try:
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        command = [sys.executable, *_flags(), "-m", "otel_timespan.worker", str(theirs.fileno())]
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno(), lane],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return process, ours


def _flags() -> list[str]:
    """The flags of this interpreter that change what code means or says (-W, -X, -O, -E, ...)."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]
