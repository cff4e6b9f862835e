"""Each acceptance test begins and ends without a scheduler, without a sink and without kept events."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D


def _clean() -> None:
    context = D.eager_context()
    context.shutdown()
    context.log_sink = ts.NoOpLog()
    ts.LocalEventLog().get_logs(raw=True)


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    _clean()
    yield
    _clean()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that bodies and consumers wait for; opened at the end, so that none stays blocked."""
    event = threading.Event()
    yield event
    event.set()
