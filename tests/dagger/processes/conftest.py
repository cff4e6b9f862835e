"""Real worker processes: two for the tests of each file that don't kill theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_timespan import dagger as D


@pytest.fixture(scope="module")
def two_workers() -> Iterator[list[int]]:
    """Two workers with one thread each, which no test may harm; gone when the tests of a file are over."""
    ids = D.cluster.add_workers(2)
    yield ids
    D.cluster.remove_workers(ids)


@pytest.fixture
def on_workers(two_workers: list[int]) -> Iterator[D.Context]:
    """A context that uses the two workers, and not this process."""
    with D.Context(procs=two_workers) as context:
        yield context
