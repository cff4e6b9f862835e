"""Each acceptance test of the bridge begins and ends without a scheduler and without a sink."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import Ear, Lab


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    context = ts.eager_context()
    context.shutdown()
    context.log_sink = ts.NoOpLog()
    yield
    context = ts.eager_context()
    context.shutdown()
    context.log_sink = ts.NoOpLog()


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs and closes them."""
    made: list[Lab] = []

    def make(**options: Any) -> Lab:
        made.append(Lab(**options))
        return made[-1]

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A log with the defaults."""
    return make_lab()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Bodies wait for it; opened at the end in any case."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A listening collector."""
    listening = Ear()
    yield listening
    listening.close()


KNOWN_DEFECTS = {
    "test_acc_otel_5_stack.py::test_5_short_run_shows_a_rise_in_prometheus": "series begin at their first value",
}
"""What is known to be wrong, each with the test that shows it. Strict: who mends one must take it off this list."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the known defects, and only those, to fail."""
    for item in items:
        reason = KNOWN_DEFECTS.get(item.nodeid.rpartition("/")[2])
        if reason is not None and "acceptance_otel" in item.nodeid:
            item.add_marker(pytest.mark.xfail(reason=f"known defect: {reason}", strict=True))
