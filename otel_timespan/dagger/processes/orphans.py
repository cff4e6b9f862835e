"""A worker that dies with its parent, whatever its body does.

The rule for all systems is another one: the end of the worker's socket. A body that holds the interpreter in C keeps
the worker from reading that, so on Linux the kernel is asked for a signal as well.

**The trap**: the kernel sends that signal when the *thread* that started the worker ends, not when its process does. So
workers are started by a thread that lives as long as they may.

The signal kills the worker alone. Programs that a body started go with its process group, which whoever sees the end of
the socket kills; those of a body that held the interpreter then are left.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["watch_parent"]

_PR_SET_PDEATHSIG = 1


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
