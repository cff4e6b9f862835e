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
def one() -> Iterator[D.Context]:
    """A context of one slot."""
    with D.Context(threads=1) as context:
        yield context


@pytest.fixture
def two() -> Iterator[D.Context]:
    """A context of two slots."""
    with D.Context(threads=2) as context:
        yield context


@pytest.fixture
def cluster() -> Iterator[D.Context]:
    """Two pretended workers of two slots each, stepped in this thread, the same way every time."""
    with D.Context(driver=D.InlineDriver(workers={1: 2, 2: 2}, seed=0)) as context:
        yield context


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that bodies wait for; opened at the end, so that no test leaves a blocked body behind."""
    event = threading.Event()
    yield event
    event.set()
