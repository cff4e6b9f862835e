"""`LogWindow`: an aggregator that keeps the last seconds of a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import InvalidOptionError, NotCallableError
from ..timespans.calling import init_similar
from ..timespans.fetched import LoggedList
from ..timespans.warn import warn_once

__all__ = ["LogWindow"]

_EXACT = 1024
"""Lists up to this long are cut at every event; longer ones in blocks, since each cut moves the whole list."""

_BLOCKS = 64


_HOOKS = ("creation_hook", "deletion_hook")


class LogWindow:
    """Drops the entries that are older than `window_length_ns`, from the front of all lists alike.

    Older is what `core_name`'s timestamp (monotonic ns) says; `clock` gives the present (default
    `time.monotonic_ns`). For each event every creation handler gets the row `{stream: value}`, and
    before entries go every deletion handler gets their number. A handler is an object with
    `creation_hook(row)` or `deletion_hook(n)`, or a function. Entries that the log itself gives up (a fetch,
    `max_events`) are told to the deletion handlers too, so that a mirror stays equal to the lists.

    A handler that raises is warned about once. Lists of more than 1,024 entries are cut when at least one
    64th of them is too old, and before each fetch. An entry without a timestamp counts as old as the
    next one that has one.

    Raises `InvalidOptionError` for a length that is no number of nanoseconds. Not thread-safe: the log calls it.
    """

    def __init__(
        self,
        window_length_ns: int,
        core_name: str = "core",
        *,
        creation_handlers: Iterable[Any] = (),
        deletion_handlers: Iterable[Any] = (),
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if (
            isinstance(window_length_ns, bool)
            or not isinstance(window_length_ns, (int, float))
            or not (0 <= window_length_ns < math.inf)
        ):
            raise InvalidOptionError(f"a LogWindow's length is in nanoseconds, at least 0, not {window_length_ns!r}")
        if not callable(clock):
            raise NotCallableError(f"clock= is a function that gives nanoseconds, not {clock!r}")
        self.window_length_ns, self.core_name, self.clock = int(window_length_ns), core_name, clock
        self.creation_handlers = list(creation_handlers)
        self.deletion_handlers = list(deletion_handlers)
        for handler in (*self.creation_handlers, *self.deletion_handlers):
            if not callable(handler) and not any(hasattr(handler, hook) for hook in _HOOKS):
                raise NotCallableError(f"a handler is a function or has a method of {_HOOKS}, unlike {handler!r}")
        self._start = 0  # where the window began at the last call

    def __call__(self, logs: dict[str, list[Any]]) -> None:
        """After each event: hand out its row, drop what is too old."""
        core = self._core(logs)
        if core and self.creation_handlers:
            row = {name: entries[-1] for name, entries in logs.items() if entries}
            for handler in self.creation_handlers:
                _call(handler, "creation_hook", row)
        self._start = self.clock() - self.window_length_ns
        if core and self._is_due(core):
            self._cut(logs, core)

    def batch(self, streams: dict[str, list[Any]], new: int) -> int:
        """The same for many events: those of the last `new` entries; 0 before a fetch. How many entries go."""
        core = self._core(streams)
        if new:
            if self.creation_handlers:
                for values in zip(*[entries[-new:] for entries in streams.values()], strict=True):
                    row = dict(zip(streams, values, strict=True))
                    for handler in self.creation_handlers:
                        _call(handler, "creation_hook", row)
            self._start = self.clock() - self.window_length_ns
        excess = self._excess(core, exact=not new or len(core) <= _EXACT)
        if excess:
            self.dropped(excess)
        return excess

    def _excess(self, core: list[Any], exact: bool) -> int:
        """How many entries at the front are too old, or fewer, where it need not be exact."""
        view = core.view if type(core) is LoggedList else None
        before = None if view is None else view.count_before(self._start)
        if before is None:
            return self._too_old(core) if exact or self._is_due(core) else 0
        return before if exact or before > len(core) // _BLOCKS else 0

    def settle(self, logs: dict[str, list[Any]]) -> None:
        """Before a fetch: drop what was too old at the last event and still waits."""
        self._cut(logs, self._core(logs))

    def dropped(self, count: int) -> None:
        """The log gave up the first `count` entries of every list."""
        for handler in self.deletion_handlers:
            _call(handler, "deletion_hook", count)

    def init_similar(self) -> LogWindow:
        """A fresh one with copies of the handlers (`init_similar` of each)."""
        return LogWindow(
            self.window_length_ns,
            self.core_name,
            creation_handlers=map(init_similar, self.creation_handlers),
            deletion_handlers=map(init_similar, self.deletion_handlers),
            clock=self.clock,
        )

    def _core(self, logs: dict[str, list[Any]]) -> list[Any]:
        try:
            return logs[self.core_name]
        except KeyError:
            raise InvalidOptionError(
                f"a LogWindow needs the timestamps of a stream {self.core_name!r}: add CoreMetrics() under that name"
            ) from None

    def _is_due(self, core: list[Any]) -> bool:
        """Whether enough entries are too old; a wrong yes costs a look at the first entries only."""
        if not core:
            return False
        probe = core[0] if len(core) <= _EXACT else core[len(core) // _BLOCKS]
        return probe is None or _timestamp(probe) < self._start

    def _too_old(self, core: list[Any]) -> int:
        excess = 0
        for index, row in enumerate(core):
            if row is not None:
                if _timestamp(row) >= self._start:
                    break
                excess = index + 1
        return excess

    def _cut(self, logs: dict[str, list[Any]], core: list[Any]) -> None:
        excess = self._too_old(core)
        if excess:
            self.dropped(excess)
            for entries in logs.values():
                del entries[:excess]


def _timestamp(row: Any) -> int:
    timestamp: int = row["timestamp"] if isinstance(row, dict) else row.timestamp
    return timestamp


_HOOKS = ("creation_hook", "deletion_hook")


def _call(handler: Any, hook: str, argument: Any) -> None:
    """One handler, isolated: what it raises must keep neither the others nor the window from their work."""
    function = getattr(handler, hook, None)
    if function is None and callable(handler) and not any(hasattr(handler, name) for name in _HOOKS):
        function = handler
    if function is not None:
        try:
            function(argument)
        except Exception:
            warn_once(handler, "the handler %s of a LogWindow raised in %s", type(handler).__name__, hook)
