"""Telemetry never raises into the program: what goes wrong in it is logged, once."""

from __future__ import annotations

import logging
import sys
import weakref
from typing import Any

__all__ = ["warn_once"]

_log = logging.getLogger("otel_timespan")

_MAX_WARNED = 10_000

_warned: dict[Any, Any] = {}


def warn_once(culprit: object, message: str, *args: object) -> None:
    """Log the message, with the exception in hand if there is one, once per culprit and process.

    Culprits are told apart by identity, strings and tuples by value. Thread-safe; never raises.
    """
    key = culprit if isinstance(culprit, (str, tuple)) else id(culprit)
    if key in _warned:
        return
    if len(_warned) >= _MAX_WARNED:
        _warned.pop(next(iter(_warned)), None)
    # A new object may get the address of a dead one: an entry dies with its culprit where that is possible.
    try:
        _warned[key] = weakref.ref(culprit, lambda _: _warned.pop(key, None))
    except TypeError:
        _warned[key] = None
    _log.warning(message, *args, exc_info=sys.exc_info()[0] is not None)
