"""Around every scheduler test: invariants after each step of the inline driver, and of each core that comes to rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.core.invariants import check_idle
from otel_timespan.dagger.core.machine import Core


def at_rest(core: Core) -> bool:
    """Whether nothing runs, waits or is to come."""
    return not core.running and core.driver.is_idle() and next(core.unfinished(), None) is None


@pytest.fixture(autouse=True)
def invariants(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`check` after every step of an inline driver; `check_idle` of each core that is at rest when it goes down.

    Of those that the test leaves running, too: they are checked, and left as they are.
    """
    monkeypatch.setitem(D.InlineDriver.__init__.__kwdefaults__, "validate", True)
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
