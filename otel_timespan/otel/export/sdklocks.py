"""The locks of the SDK's objects in a forked child.

The problem: a metric reader collects every second on a thread of its own, with a dozen locks, in views, aggregations
and reservoirs. A fork in such a moment leaves them taken for ever in the child, where the last collection at its exit
waits for them. Newer SDKs renew the locks of providers only.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from ... import forks

__all__ = ["renew_locks"]

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_PACKAGES = ("opentelemetry.", __name__.partition(".")[0] + ".")

MOST_OBJECTS = 100_000
"""A child begins without delay, however many series its parent has."""


def renew_locks(*roots: Any) -> None:
    """Free the locks of these objects, and of all objects of OpenTelemetry's classes and ours that they lead to.

    To be called in a child only. Objects of other classes, such as a user's exporter, are left alone. Who waits for a
    condition or an event may be a thread that the SDK has started anew: it goes on waiting.
    """
    seen: set[int] = set()
    waiting = deque(roots)
    while waiting and len(seen) < MOST_OBJECTS:
        one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, forks.LOCK_TYPES):
            forks.renew(one)
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, _CONTAINERS):
            waiting.extend(one)
        elif isinstance(one, threading.Event):
            waiting.append(getattr(one, "_cond", None))
        elif isinstance(one, threading.Condition):
            waiting.append(getattr(one, "_lock", None))
        elif type(one).__module__.startswith(_PACKAGES):
            waiting.extend(_parts(one))


def _parts(one: Any) -> Iterable[Any]:
    """What an object holds, and the locks of its class."""
    yield from list(getattr(one, "__dict__", {}).values())
    for kind in type(one).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(one, name, None)
        yield from (value for value in list(kind.__dict__.values()) if isinstance(value, forks.LOCK_TYPES))
