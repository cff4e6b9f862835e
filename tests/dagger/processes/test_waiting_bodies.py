"""Bodies on one worker that wait for bodies on the same worker, in great numbers: none waits for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_timespan import dagger as D


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def worker(request: pytest.FixtureRequest) -> Iterator[int]:
    """A worker."""
    [one] = D.cluster.add_workers(1, threads=request.param)
    yield one
    D.cluster.remove_workers([one])


def add(*values: int) -> int:
    """Their sum."""
    return sum(values)


def rounds(n: int) -> int:
    """A body that waits again and again, for one and for several."""
    total = 0
    for _i in range(n):
        total = D.fetch(D.spawn(add, total, 1))
        first, second = D.spawn(add, 1), D.spawn(add, total, 1)
        total = D.fetch(D.spawn(add, first, second)) - 1
    return total


def test_bodies_that_wait_for_each_others_kind(worker: int) -> None:
    """What ends a wait and what is to run next come in one message, or not: both are seen."""
    with D.Context(procs=[worker]):
        tasks = [D.spawn(rounds, 20) for _ in range(12)]
        assert [D.fetch(task, timeout=120) for task in tasks] == [40] * 12
