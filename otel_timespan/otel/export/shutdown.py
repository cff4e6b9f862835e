"""The last moments of the process: what is still unsent goes out, within a bound.

Callbacks registered with `on_exit` run once, sources before pipelines before metrics (`order`), at
interpreter exit and at SIGTERM. None may outlive the common deadline; what a callback raises is logged.

At exit they run in the main thread, for Python 3.12 and later start no threads any more then. At SIGTERM they
run in a thread that is waited for, for the signal may have interrupted the holder of a lock that a
callback needs: then the process still dies in time. SIGTERM is taken over only from the main thread and only
while its handler is the default one; afterwards the process dies of the signal, as it would have.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from ... import exits, forks
from ...timespans.warn import warn_once

__all__ = ["METRICS", "PIPELINES", "SOURCES", "call_within", "on_exit", "run_exit_callbacks"]

SOURCES, PIPELINES, METRICS = 0, 10, 20
"""Values for `order`: logs hand over what they have, pipelines send it, metrics tell of both."""

_SHARE = 0.8
"""How much of the time that is left one callback may take while others come after it."""

_callbacks: dict[int, tuple[int, float, Callable[[float], Any]]] = {}
_numbers = itertools.count()


class _Exit:
    """`running` callbacks; `signalled` by SIGTERM meanwhile; `sigterm_taken` over, or found to be the user's."""

    running = False
    signalled = 0
    sigterm_taken = False


def on_exit(callback: Callable[[float], Any], order: int, timeout_s: float = 5.0) -> Callable[[], None]:
    """Call `callback(seconds left)` before the process ends; the result takes it back.

    The common deadline is the longest `timeout_s` that is registered. Thread-safe.
    """
    # Anew each time: exit handlers run last in, first out, and a provider that the user made since the last time has
    # one that ends its processors. Ours has to come before it.
    exits.at_exit(run_exit_callbacks)
    _take_sigterm()
    number = next(_numbers)
    _callbacks[number] = (order, timeout_s, callback)

    def cancel() -> None:
        _callbacks.pop(number, None)

    return cancel


def call_within(function: Callable[[], Any], timeout_s: float) -> bool:
    """Call what may hang, and leave it alone after `timeout_s`; whether it came back. It raises what that raises.

    Where no thread can be started any more (Python 3.12 and later, at exit) it is called here, without a bound.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, name="timespan-shutdown", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        call()
    else:
        thread.join(timeout_s)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def run_exit_callbacks() -> None:
    """Run and forget all callbacks. Never raises; ends the process if SIGTERM came while they ran."""
    _Exit.running = True
    try:
        _run_all()
    finally:
        _Exit.running = False
        if _Exit.signalled:
            _die(_Exit.signalled)


def _run_all() -> None:
    pending = sorted(_callbacks.copy().items(), key=lambda item: (item[1][0], item[0]))
    deadline = time.monotonic() + max((timeout_s for _, (_, timeout_s, _) in pending), default=0.0)
    for position, (number, (_, timeout_s, callback)) in enumerate(pending, 1):
        if _callbacks.pop(number, None) is None:
            continue  # taken back, or run by the other of exit and SIGTERM
        left_s = max(deadline - time.monotonic(), 0.0)
        try:
            callback(min(timeout_s, left_s if position == len(pending) else left_s * _SHARE))
        except Exception:
            warn_once(callback, "telemetry could not be flushed at exit")


@forks.in_child("_callbacks")
def _in_child() -> None:
    """The callbacks of what a child goes on to use are its own, too. It is not ending, even if its parent is."""
    _Exit.running, _Exit.signalled = False, 0


def _take_sigterm() -> None:
    if _Exit.sigterm_taken or threading.current_thread() is not threading.main_thread():
        return
    _Exit.sigterm_taken = True
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:  # the main thread of a subinterpreter
        return


def _on_sigterm(signum: int, frame: Any) -> None:
    if _Exit.running:
        _Exit.signalled = signum  # let the flush under way finish: it is bounded
        return
    budget = max((timeout_s for _, timeout_s, _ in list(_callbacks.values())), default=0.0)
    flusher = threading.Thread(target=run_exit_callbacks, name="timespan-sigterm", daemon=True)
    try:
        flusher.start()
        flusher.join(budget + 0.5)
    finally:
        _die(signum)


def _die(signum: int) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
