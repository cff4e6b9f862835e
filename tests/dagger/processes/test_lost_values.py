"""Large values when their owner, or who reads them, dies or is removed."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.pool import pool
from tests.backends import eventually

pytestmark = pytest.mark.filterwarnings("ignore:worker .* while:RuntimeWarning")

LARGE = 1_000_000


def numbers(value: float) -> Any:
    """A large array."""
    return np.full(LARGE, value)


def total(values: Any) -> float:
    """The sum."""
    return float(values.sum())


def spin(path: str) -> None:
    """Compute in Python until a file is there."""
    while not os.path.exists(path):
        sum(range(1000))


def hold(values: Any) -> None:
    """Keep a map until the process ends."""
    _held.append(values)


_held: list[Any] = []


def on(worker: int, f: Any, *args: Any) -> D.DTask[Any]:
    """A task on one worker."""
    return D.spawn.opts(scope=D.scope(worker=worker))(f, *args)


def kill(worker: int) -> None:
    """As the system does it when memory is short."""
    os.kill(D.cluster.run(worker, os.getpid), signal.SIGKILL)
    eventually(lambda: worker not in D.workers(), timeout=20)


@pytest.fixture
def pair() -> Iterator[list[int]]:
    """Two workers that may be killed; nothing of them is left afterwards."""
    ids = D.cluster.add_workers(2)
    with D.Context(procs=ids):
        yield ids
    D.cluster.remove_workers(ids)
    gc.collect()
    values = pool._traffic.values
    eventually(lambda: not values._blocks and not values._handles, timeout=10)
    assert not values.maps._files


def test_an_exported_value_outlives_its_owner(pair: list[int]) -> None:
    """Readers that come later have it from the head's descriptor."""
    owner, reader = pair
    made = on(owner, numbers, 2.0)
    assert D.fetch(on(reader, total, made)) == 2.0 * LARGE
    kill(owner)
    assert D.fetch(on(reader, total, made)) == 2.0 * LARGE
    assert total(D.fetch(made)) == 2.0 * LARGE
    del made


def test_what_was_fetched_is_there(pair: list[int]) -> None:
    """It goes to workers that never read it."""
    owner, reader = pair
    made = on(owner, numbers, 2.0)
    fetched = D.fetch(made)
    kill(owner)
    assert D.fetch(on(reader, total, made)) == 2.0 * LARGE
    assert D.fetch(on(reader, total, fetched)) == total(fetched)


def test_a_value_that_was_not_exported_is_lost(pair: list[int]) -> None:
    """Who needs it fails, by name; nobody else, and nobody waits."""
    owner, reader = pair
    made = on(owner, numbers, 2.0)
    D.wait(made)
    kill(owner)
    with pytest.raises(D.WorkerLostError, match=f"worker {owner}"):
        D.fetch(made)
    with pytest.raises(D.WorkerLostError, match=f"worker {owner}"):
        D.fetch(on(reader, total, made))
    assert D.fetch(on(reader, total, np.ones(3))) == 3.0


def test_a_dead_reader_keeps_nothing(pair: list[int]) -> None:
    """What it had mapped is free again."""
    owner, reader = pair
    made = on(owner, numbers, 2.0)
    D.fetch(on(reader, hold, made))
    assert len(pool._traffic.values._blocks) == 1
    kill(reader)
    del made
    gc.collect()
    eventually(lambda: not pool._traffic.values._blocks, timeout=10)


def test_values_of_a_removed_worker_stay(pair: list[int]) -> None:
    """They are written where they outlive it, if somebody has a handle of them."""
    owner, reader = pair
    made = [on(owner, numbers, float(n)) for n in range(6)]
    data = D.mutable(list, worker=owner)
    D.fetch(D.spawn(list.append, data, 7))
    D.cluster.remove_workers([owner])
    assert [D.fetch(on(reader, total, one)) for one in made] == [n * float(LARGE) for n in range(6)]
    assert data.fetch() == [7]


def test_an_owner_that_computes_exports(pair: list[int], tmp_path: Any) -> None:
    """In pure Python, for long."""
    owner, reader = pair
    made = on(owner, numbers, 2.0)
    D.wait(made)
    busy = on(owner, spin, str(tmp_path / "end"))
    assert total(D.fetch(made)) == 2.0 * LARGE
    assert D.fetch(on(reader, total, made)) == 2.0 * LARGE
    (tmp_path / "end").touch()
    D.fetch(busy)


def test_closed_descriptors_are_a_clear_error(pair: list[int]) -> None:
    """A body that closes those of slabs loses what it has not read yet, and says so; others read it."""
    owner, reader = pair
    made = on(owner, numbers, 2.0)
    assert D.fetch(on(reader, total, made)) == 2.0 * LARGE
    D.fetch(on(reader, close_memory))
    with pytest.raises(D.StorageError, match="slab"):
        D.fetch(on(reader, total, made))
    assert total(D.fetch(made)) == 2.0 * LARGE


def close_memory() -> None:
    """Close all memory files."""
    for name in os.listdir("/proc/self/fd"):
        if os.path.islink(f"/proc/self/fd/{name}") and "otel-timespan" in os.readlink(f"/proc/self/fd/{name}"):
            os.close(int(name))
