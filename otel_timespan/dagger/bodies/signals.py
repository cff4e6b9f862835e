"""Whose an exception is that comes out of a body which the main thread runs while it waits.

A signal handler runs in the main thread, in the middle of whatever that executes. What it raises there (Ctrl-C, a
watchdog's alarm, `sys.exit` at SIGTERM) is meant for the program that waits, not for the task whose body happens to
be under way. It can be told by its traceback: a handler of the user's has a frame in it; Python's own, for Ctrl-C, has
none, and its `KeyboardInterrupt` comes where no `raise` stands. Everything else is the body's, as on any other thread.
"""

from __future__ import annotations

import dis
import functools
import signal
from types import CodeType
from typing import Any

__all__ = ["is_of_a_handler"]

_RAISE = dis.opmap["RAISE_VARARGS"]


def is_of_a_handler(error: BaseException) -> bool:
    """Whether a signal handler raised it. Only on the way of errors: it looks at every handler there is."""
    codes = _codes_of_handlers()
    trace, innermost = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        innermost, trace = trace, trace.tb_next
    if not isinstance(error, KeyboardInterrupt) or innermost is None:
        return False
    return innermost.tb_frame.f_code.co_code[innermost.tb_lasti] != _RAISE


def _codes_of_handlers() -> set[CodeType]:
    found = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    return {code for code in found if code is not None}


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)
    code = getattr(handler, "__code__", None)
    if code is None and not isinstance(handler, int):  # SIG_DFL and SIG_IGN are numbers
        code = getattr(getattr(type(handler), "__call__", None), "__code__", None)  # noqa: B004
    return code if isinstance(code, CodeType) else None
