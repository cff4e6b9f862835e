"""A worker that dies with its head, whatever its body does, and all that its bodies started.

The rule for all systems is another one: the end of the worker's socket. A body that holds the interpreter in C keeps
the worker from reading that, so on Linux the kernel does it:

* `tie_group`: a pipe of which the head has the only other end, and on which nothing is ever written. When the head
  ends, however it does, the pipe is closed, and that is an event for which a program may ask for a signal, of any
  number, to a whole process group: SIGKILL.
* `watch_parent`, where that is not to be had: the kernel sends a signal when the parent dies, to the worker alone.
  **The trap**: it does so when the *thread* that started the worker ends, not when its process does. So workers are
  started by a thread that lives as long as they may.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys

__all__ = ["tie_group", "watch_parent"]

_PR_SET_PDEATHSIG = 1


def tie_group(fd: int) -> bool:
    """Have the process group that this process leads killed when nobody has the other end of the pipe `fd`.

    Whether the system does that; then `fd` must stay open. An end that was closed before the call is noticed.
    """
    if not hasattr(fcntl, "F_SETSIG") or os.getpgid(0) != os.getpid():
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgid(0))
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError:
        return False
    ended = select.poll()
    ended.register(fd, 0)  # the end of a pipe is told of in any case
    if ended.poll(0):
        os.killpg(0, signal.SIGKILL)
    return True


def watch_parent() -> bool:
    """Have this process killed when the thread that started it ends; whether the system does that.

    Called by a worker before it runs anything of others. A parent that was gone before the call is not noticed: the
    worker's socket is at its end then, and the worker about to read it.
    """
    parent = os.getppid()
    is_armed = _arm()
    # Who ends from now on is told of by the kernel; who did between these lines is seen here.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return is_armed


def _arm() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes
    except ImportError:  # a Python that was built without
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0)
