"""Where a worker is to fail, for tests: `OTEL_TIMESPAN_FAIL_AT=point[:n[:how]]` in its environment.

The n-th time (default 1) that the process comes to that point it fails as `how` says: `signal` (SIGKILL, the default),
`exit` (with code 3), `stop` (SIGSTOP), `segv`, or `slow` (it sleeps 0.2 s there, this and every later time). Code that
has a point looks at `fail_at` first, which is None where the variable is not set.
"""

from __future__ import annotations

import itertools
import os
import signal
import time

__all__ = ["VARIABLE", "fail_at", "reach"]

VARIABLE = "OTEL_TIMESPAN_FAIL_AT"

fail_at: tuple[str, int, str] | None = None
"""(point, how often it is passed unharmed and once more, how)."""

_HOWS = ("signal", "exit", "stop", "slow", "segv")
_count = itertools.count(1)


def _read(text: str) -> tuple[str, int, str] | None:
    if not text:
        return None
    point, _, rest = text.partition(":")
    number, _, how = rest.partition(":")
    how = how or "signal"
    if how not in _HOWS or not (number or "1").isdecimal():
        raise ValueError(f"{VARIABLE}={text!r}: it must be point[:n[:{'|'.join(_HOWS)}]]")
    return point, int(number or 1), how


def reach(point: str) -> None:
    """The process is at this point."""
    if fail_at is None or fail_at[0] != point:
        return
    number = next(_count)
    how = fail_at[2]
    if how == "slow" and number >= fail_at[1]:
        time.sleep(0.2)
    elif number == fail_at[1]:
        _fail(how)


def _fail(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), {"stop": signal.SIGSTOP, "segv": signal.SIGSEGV}.get(how, signal.SIGKILL))


fail_at = _read(os.environ.get(VARIABLE, ""))
