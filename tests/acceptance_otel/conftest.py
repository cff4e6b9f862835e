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
