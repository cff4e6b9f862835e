"""Around every scheduler test: invariants after each step of the inline driver, and of each core that comes to rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.core.invariants import check, check_idle
from otel_timespan.dagger.core.machine import Core
from otel_timespan.dagger.drivers import inline
from otel_timespan.dagger.drivers.threads import ThreadsDriver

EVERY_STEP, THEN_EVERY = 200, 50
"""The first so many steps of a driver are checked, then one in so many: a check looks at all that is unfinished."""

BUSY_S = 0.2
"""How long a scheduler that goes down waits for bodies that run; a second, otherwise."""


def at_rest(core: Core) -> bool:
    """Whether nothing runs, waits or is to come."""
    return not core.running and core.driver.is_idle() and next(core.unfinished(), None) is None


@pytest.fixture(autouse=True)
def _short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that goes down does not wait long for bodies: those of the tests wait for a gate, in vain."""
    close = ThreadsDriver.close
    monkeypatch.setattr(ThreadsDriver, "close", lambda self, timeout_s=BUSY_S: close(self, timeout_s))


def bounded_check(core: Core) -> None:
    """`check` after the first steps of a run and some of those that follow."""
    steps = core.driver._steps
    if steps <= EVERY_STEP or steps % THEN_EVERY == 0:
        check(core)


@pytest.fixture(autouse=True)
def invariants(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`check` after the steps of an inline driver; `check_idle` of each core that is at rest when it goes down.

    Of those that the test leaves running, too: they are checked, and left as they are.
    """
    monkeypatch.setitem(D.InlineDriver.__init__.__kwdefaults__, "validate", True)
    monkeypatch.setattr(inline, "check", bounded_check)
    shutdown = D.Context.shutdown

    def checked_shutdown(self: D.Context, *args: Any, **kwargs: Any) -> None:
        core = self.core
        if core is not None and core.halted is None and at_rest(core):
            check_idle(core)
        shutdown(self, *args, **kwargs)

    monkeypatch.setattr(D.Context, "shutdown", checked_shutdown)
    yield
    left = D.eager_state()
    if left is not None and left.halted is None and at_rest(left):
        check_idle(left)
