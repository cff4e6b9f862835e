"""Large values on worker processes: they stay where they were made, and move when somebody needs them."""

from __future__ import annotations

import array
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.pool import pool
from tests.backends import eventually

LARGE = 1_000_000
"""Numbers of 8 bytes."""


def numbers(value: float, count: int = LARGE) -> Any:
    """A large array."""
    return np.full(count, value)


def total(values: Any, *more: Any) -> float:
    """The sum."""
    return float(values.sum()) + sum(float(one.sum()) for one in more)


def on(worker: int, f: Any, *args: Any) -> D.DTask[Any]:
    """A task on one worker."""
    return D.spawn.opts(scope=D.scope(worker=worker))(f, *args)


def values() -> Any:
    """The head's table."""
    return pool._traffic.values


def blocks() -> int:
    """How many blocks somebody has."""
    return len(values()._blocks)


@pytest.fixture
def two(two_workers: list[int]) -> Iterator[list[int]]:
    """Two workers in a context without this process; no block is left when the test is over."""
    with D.Context(procs=two_workers):
        yield two_workers
    gc.collect()
    eventually(lambda: blocks() == 0, timeout=10)


def test_a_value_moves_from_worker_to_worker(two: list[int]) -> None:
    """Without the head reading it."""
    first, second = two
    made = on(first, numbers, 2.0)
    assert D.fetch(on(second, total, made)) == 2.0 * LARGE
    assert D.fetch(on(first, total, made)) == 2.0 * LARGE
    assert not isinstance(made._outcome.held, np.ndarray)


def test_a_value_is_fetched_once(two: list[int]) -> None:
    """It is writable here, and the same object for all who fetch."""
    made = on(two[0], numbers, 3.0)
    fetched = D.fetch(made)
    assert fetched.shape == (LARGE,) and fetched.sum() == 3.0 * LARGE
    assert D.fetch(made) is fetched
    fetched[0] = 5.0
    assert D.fetch(on(two[0], total, made)) == 3.0 * LARGE


def test_its_own_worker_has_the_value_itself(two: list[int]) -> None:
    """No copy: what a body gets there is the object that another one gave."""
    first, _ = two
    made = on(first, numbers, 1.0)
    assert D.fetch(on(first, id, made)) == D.fetch(on(first, id, made))
    D.fetch(on(first, np.ndarray.fill, made, 4.0))
    assert D.fetch(on(first, total, made)) == 4.0 * LARGE


def test_readers_have_copies_of_their_own(two: list[int]) -> None:
    """What one writes no other sees."""
    first, second = two
    made = on(first, numbers, 1.0)
    filled = on(second, filled_with, made, 9.0)
    assert D.fetch(on(second, total, made)) == 1.0 * LARGE
    assert D.fetch(on(first, total, made)) == 1.0 * LARGE
    assert D.fetch(on(first, total, filled)) == 9.0 * LARGE


def filled_with(values: Any, value: float) -> Any:
    """Change it, and give it back."""
    values.fill(value)
    return values


def test_large_arguments_go_by_a_block(two: list[int]) -> None:
    """Plain ones, and results of tasks here; each of these once, however many tasks get it."""
    given = numbers(2.0)
    assert [D.fetch(on(worker, total, given)) for worker in two] == [2.0 * LARGE] * 2
    eventually(lambda: values().sweep() or blocks() == 0)
    with D.Context(procs=[1, *two]):
        here = on(1, numbers, 3.0)
        chunk = D.tochunk(numbers(4.0))
        tasks = [on(worker, total, here, chunk) for worker in two for _ in range(4)]
        assert [D.fetch(task) for task in tasks] == [7.0 * LARGE] * 8
        assert blocks() == 2
        del here, chunk, tasks


def test_values_of_all_kinds_move(two: list[int]) -> None:
    """Of every size around the bounds, with and without buffers of their own."""
    first, second = two
    made = [
        b"x" * 40_000,
        b"x" * 400_000,
        bytearray(5_000_000),
        list(range(50_000)),
        {n: str(n) for n in range(20_000)},
        "text" * 30_000,
        array.array("d", [1.0] * 100_000),
        [np.arange(100_000), np.arange(10), "z"],
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        np.array([{"a": 1}] * 9000, dtype=object),
    ]
    for value in made:
        task = on(first, same, value)
        there = on(second, same, task)
        back = on(first, same, there)
        for one in (task, there, back):
            assert repr(D.fetch(one)) == repr(value)
            assert type(D.fetch(one)) is type(value)


def same(value: Any) -> Any:
    """Give it back."""
    return value


def test_what_nobody_has_is_let_go(two: list[int]) -> None:
    """By the worker that made it, and its block."""
    first, second = two
    made = on(first, numbers, 1.0)
    assert D.fetch(on(second, total, made)) == LARGE
    assert D.cluster.run(first, kept) == 1 and blocks() == 1
    del made
    gc.collect()
    eventually(lambda: blocks() == 0 and D.cluster.run(first, kept) == 0)


def kept() -> int:
    """How many values this worker keeps."""
    from otel_timespan.dagger.context import eager_context

    return len(eager_context().core.driver._link.store._kept)


def used() -> int:
    """Bytes of its blocks."""
    from otel_timespan.dagger.context import eager_context

    return eager_context().core.driver._link.store._slabs.used


def test_a_block_stays_while_it_is_read(two: list[int]) -> None:
    """Somebody here holds a part of it, when all handles are gone; others don't get its memory."""
    first, second = two
    made = on(first, numbers, 1.0)
    part = D.fetch(made)[10:20]
    del made
    gc.collect()
    eventually(lambda: D.cluster.run(first, kept) == 0)
    others = [on(first, numbers, 7.0) for _ in range(3)]
    assert [D.fetch(on(second, total, one)) for one in others] == [7.0 * LARGE] * 3
    assert part.sum() == 10.0
    del part
    eventually(lambda: blocks() <= 3)


def test_what_a_reader_keeps_stays(two: list[int]) -> None:
    """A body that stores a view of its input has it after the input's handle is gone."""
    first, second = two
    D.fetch(on(second, keep_part, on(first, numbers, 1.0)))
    gc.collect()
    for _ in range(4):
        assert D.fetch(on(second, total, on(first, numbers, 8.0))) == 8.0 * LARGE
    assert D.cluster.run(second, part_of) == 100.0
    D.cluster.run(second, forget_parts)


_parts: list[Any] = []


def keep_part(values: Any) -> None:
    """Keep a view."""
    _parts.append(values[:100])


def part_of() -> float:
    """The sum of what is kept."""
    return float(_parts[0].sum())


def forget_parts() -> None:
    """Keep nothing."""
    _parts.clear()


def test_a_value_that_can_not_be_pickled_is_used_where_it_is(two: list[int]) -> None:
    """Whoever needs it elsewhere fails, with the reason; it stays what it is."""
    first, second = two
    made = on(first, unpicklable)
    assert D.fetch(on(first, len, made)) == 10_001
    with pytest.raises(D.InvalidOptionError, match=r"a list made by worker .* can't be sent.*lock"):
        D.fetch(on(second, len, made))
    with pytest.raises(D.InvalidOptionError, match="can't be sent"):
        D.fetch(made)
    assert D.fetch(on(first, len, made)) == 10_001


def unpicklable() -> list[Any]:
    """Large, with a lock in it."""
    return [*range(10_000), threading.Lock()]


class Hostile:
    """Fails where it is written, or read."""

    def __init__(self, how: str) -> None:
        self.how, self.data = how, bytes(100_000)

    def __reduce__(self) -> Any:
        if self.how == "write":
            raise SystemExit("not me")
        return _explode, (self.how, self.data)


def _explode(how: str, data: bytes) -> Any:
    raise KeyError(how)


@pytest.mark.parametrize(("how", "text"), [("write", "not me"), ("read", "can't be read here: KeyError")])
def test_a_hostile_value_fails_who_needs_it(two: list[int], how: str, text: str) -> None:
    """With a clear error; the workers go on."""
    first, second = two
    made = on(first, Hostile, how)
    with pytest.raises(D.TimespanError, match=text):
        D.fetch(on(second, same, made))
    with pytest.raises(D.TimespanError, match=text):
        D.fetch(made)
    assert D.fetch(on(second, os.getpid)) and D.fetch(on(first, os.getpid))


def test_mutable_data_is_changed_where_it_is(two: list[int]) -> None:
    """However small; a fetch sees what it is now; others can't use it."""
    first, second = two
    data = D.mutable(list, worker=second)
    assert data.handle.worker == second
    for n in range(5):
        D.fetch(D.spawn(list.append, data, n))
    assert data.fetch() == [0, 1, 2, 3, 4] and D.fetch(D.spawn(D.myid)) in two
    D.fetch(D.spawn(list.clear, data))
    assert data.fetch() == [] and D.fetch(D.spawn(len, data)) == 0
    big = D.mutable(lambda: numbers(1.0), worker=first)
    D.fetch(D.spawn(np.ndarray.fill, big, 2.0))
    assert big.fetch().sum() == 2.0 * LARGE
    D.fetch(D.spawn(np.ndarray.fill, big, 3.0))
    assert big.fetch().sum() == 3.0 * LARGE
    with pytest.raises(D.SchedulingError):
        D.fetch(on(first, len, data))


def test_unpicklable_mutable_data(two: list[int]) -> None:
    """A lock, a connection: it never travels."""
    lock = D.mutable(threading.Lock, worker=two[1])
    assert D.fetch(D.spawn(locked, lock)) == two[1]


def locked(lock: Any) -> int:
    """Take it."""
    with lock:
        return D.myid()


def test_a_shard_has_a_piece_a_worker(two: list[int]) -> None:
    """Each task gets that of its own."""
    shard = D.shard(list, workers=two)
    for worker in two:
        D.fetch(on(worker, note, shard))
        D.fetch(on(worker, note, shard))
    assert [D.fetch(D.spawn(list, piece)) for piece in shard] == [[worker] * 2 for worker in two]
    assert shard.map(D.fetch) == [[worker] * 2 for worker in two]


def note(piece: list[int]) -> None:
    """Say who was here."""
    piece.append(D.myid())


def test_chunks_made_in_bodies_stay_there(two: list[int]) -> None:
    """A body's `tochunk` gives a chunk of its worker; a body elsewhere, and the head, can read it."""
    first, second = two
    made = on(first, make_chunk, 5.0)
    chunk = D.fetch(made, raw=True)
    assert chunk.handle.worker == first and chunk.handle.nbytes == 8 * LARGE
    assert D.fetch(on(second, total, made)) == D.fetch(on(first, total, made)) == 5.0 * LARGE
    assert D.fetch(on(second, total, chunk)) == 5.0 * LARGE
    assert D.fetch(on(first, id, chunk)) == D.fetch(on(first, id, made))
    assert D.fetch(on(second, total_inside, [chunk])) == D.fetch(on(first, total_inside, [chunk])) == 5.0 * LARGE
    meta = D.Options(scope=D.scope(worker=second), meta=True)
    assert D.fetch(D.spawn(total_of_chunk, meta, made)) == 5.0 * LARGE
    assert D.fetch(chunk).sum() == 5.0 * LARGE


def make_chunk(value: float) -> Any:
    """A chunk."""
    return D.tochunk(numbers(value))


def total_inside(chunks: list[Any]) -> float:
    """Of chunks in a list."""
    return sum(total(chunk.fetch()) for chunk in chunks)


def total_of_chunk(chunk: Any) -> float:
    """Of one chunk."""
    return total(chunk.fetch())


def test_bodies_spawn_with_large_arguments(two: list[int]) -> None:
    """What they give, and what they fetch, does not go through the head."""
    first, second = two

    def body(other: int) -> tuple[float, float, float]:
        mine = numbers(2.0)
        there = D.spawn.opts(scope=D.scope(worker=other))
        made = there(numbers, 3.0)
        back = D.spawn.opts(scope=D.scope(worker=D.myid()))(same, made)
        return D.fetch(there(total, mine)), total(D.fetch(made)), total(D.fetch(back))

    assert D.fetch(on(first, body, second)) == (2.0 * LARGE, 3.0 * LARGE, 3.0 * LARGE)


def test_results_kept_plain(two: list[int]) -> None:
    """`get_result` gives the value itself, whatever its size."""
    plain = D.Options(scope=D.scope(worker=two[0]), get_result=True)
    made = D.spawn(numbers, plain, 2.0)
    assert D.fetch(made).sum() == 2.0 * LARGE
    assert D.fetch(on(two[1], total, made)) == 2.0 * LARGE


def test_a_checkpoint_gets_a_value_that_lies_on_a_worker(two: list[int]) -> None:
    """It may read it; the task is done when it was saved."""
    saved: list[float] = []

    def save(task: Any, chunk: Any) -> None:
        saved.append(total(chunk.fetch()))

    options = D.Options(scope=D.scope(worker=two[0]), checkpoint=save)
    assert D.fetch(D.spawn(numbers, options, 2.0)).sum() == 2.0 * LARGE
    assert saved == [2.0 * LARGE]


@pytest.fixture
def spilling(tmp_path: Any) -> Iterator[Any]:
    """Results go to files beyond a limit that the tests of a file reach, in a folder of the test."""
    D.enable_disk_caching(1, directory=tmp_path)
    yield tmp_path
    D.disable_disk_caching()


def test_workers_spill(two: list[int], spilling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond the memory of a worker goes to its files; it is read back for whoever needs it."""
    first, second = two
    eventually(lambda: D.cluster.run(first, memory_limit) is not None)
    D.cluster.run(first, limit_memory, 20_000_000)
    made = [on(first, numbers, float(n)) for n in range(8)]
    D.waitall(made)
    assert D.cluster.run(first, files, str(spilling)) >= 5
    assert [D.fetch(on(second, total, one)) for one in made] == [n * float(LARGE) for n in range(8)]
    assert [D.fetch(on(first, total, one)) for one in made] == [n * float(LARGE) for n in range(8)]
    assert [total(D.fetch(one)) for one in made] == [n * float(LARGE) for n in range(8)]
    del made
    gc.collect()
    eventually(lambda: D.cluster.run(first, files, str(spilling)) == 0)


def memory_limit() -> Any:
    """What this worker keeps in memory."""
    from otel_timespan.dagger.data.caching import global_device

    device = global_device()
    return None if device is None else device.mem_limit


def limit_memory(nbytes: int) -> None:
    """Keep less."""
    from otel_timespan.dagger.data.caching import global_device

    global_device().mem_limit = nbytes


def files(folder: str) -> int:
    """How many spill files there are."""
    return sum(name.endswith(".spill") for _, _, names in os.walk(folder) for name in names)


def test_shared_memory_is_bounded(two: list[int]) -> None:
    """Beyond that a value can't move, which is the error of who needs it; there is room again when others are gone."""
    first, second = two
    limit = D.cluster.run(first, limit_shared, 12_000_000)
    one, other = on(first, numbers, 1.0), on(first, numbers, 2.0)
    assert D.fetch(on(second, total, one)) == 1.0 * LARGE
    with pytest.raises(D.StorageError, match="don't fit into shared memory"):
        D.fetch(on(second, total, other))
    assert D.fetch(on(first, total, other)) == 2.0 * LARGE
    del one
    gc.collect()
    third = on(first, numbers, 3.0)
    eventually(lambda: blocks() == 0)
    assert D.fetch(on(second, total, third)) == 3.0 * LARGE
    D.cluster.run(first, limit_shared, limit)


def limit_shared(nbytes: int) -> int:
    """Have this worker take no more shared memory; what it might take before."""
    from otel_timespan.dagger.context import eager_context

    slabs = eager_context().core.driver._link.store._slabs
    before, slabs._limit = slabs._limit, nbytes
    return before
