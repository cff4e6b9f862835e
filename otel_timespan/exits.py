"""The end of a process: who has something to finish then, in which order.

The problem: `atexit` does not run in a child of `multiprocessing`, which ends by `os._exit` after finalizers of its
own; and what threads still do must be over before logs are closed. So who has something to finish says so here:

1. `before_exit`: while threads can still be waited for; schedulers end their tasks.
2. `at_exit`: after that; logs are closed and sent, folders removed.

Of each kind the last one that was registered runs first. A process that is killed, or calls `os._exit` by itself, runs
none of them: flush what matters before.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from . import forks

__all__ = ["at_exit", "before_exit", "end_process"]

_AFTER_OTHERS = -100
"""Priority among the finalizers of multiprocessing: they run from high to low; those of users are above."""

_before: list[Callable[[], None]] = []
_last: list[Callable[[], None]] = []


class _Child:
    """The process in which multiprocessing promised to call us, and whether it knows us at all."""

    promised_by = 0
    is_watching = False


def before_exit(call: Callable[[], None]) -> None:
    """Call `call()` when the program is over and before threads are joined. It must bear to be called twice."""
    _before.append(call)
    # Before threads are joined, so that they can end; where that is not to be had, a moment later.
    getattr(threading, "_register_atexit", atexit.register)(call)


def at_exit(call: Callable[[], None]) -> None:
    """Call `call()` at the end of the process, also of one of multiprocessing; it must bear to be called twice.

    Registered again, it moves to the front.
    """
    atexit.unregister(call)
    atexit.register(call)
    _last[:] = [*(one for one in _last if one is not call), call]
    _watch_multiprocessing()


def _watch_multiprocessing() -> None:
    """Have the process end by us, too, if it is one of multiprocessing.

    Such a process forgets at its begin what finalizers its parent had, and maybe us, where it had to import us first.
    """
    # Not imported for this: where it is not there, or not whole yet, this process is not one of its.
    if not hasattr(sys.modules.get("multiprocessing.util"), "_exit_function"):
        return
    from multiprocessing import process, util

    if not _Child.is_watching:
        _Child.is_watching = True
        util.register_after_fork(_Child, _promise)
    if process.parent_process() is not None and _Child.promised_by != os.getpid():
        _promise()


def _promise(_: object = None) -> None:
    from multiprocessing import util

    _Child.promised_by = os.getpid()
    util.Finalize(None, _end_child, exitpriority=_AFTER_OTHERS)


def _end_child() -> None:
    _run(_before)
    _run(_last)


def _run(calls: list[Callable[[], None]]) -> None:
    for call in reversed(calls):
        try:
            call()
        except Exception:
            logging.getLogger("otel_timespan").exception("something could not be finished at the end of a process")


def end_process(error: BaseException | None) -> NoReturn:
    """End this process as the interpreter does after its program, which raised `error` or came to its end.

    For a child whose only thread is not the interpreter's main one: when that thread ends nothing of this would happen.
    """
    status = 0
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = error.code or 0
    elif isinstance(error, SystemExit):
        status = 1
        print(error.code, file=sys.stderr)
    elif error is not None:
        status = 1
        traceback.print_exception(error)
    _run(_before)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


@forks.in_child("_before", "_last")
def _in_child() -> None:
    """Perhaps multiprocessing forked; or one of its processes did, and the fork ends by the same finalizers."""
    _watch_multiprocessing()
