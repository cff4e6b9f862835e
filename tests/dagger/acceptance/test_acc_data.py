"""spec/scheduler.md §8: chunks, mutable, shard."""

from __future__ import annotations

from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import add, code_of, outcome

T12 = D.ThreadProc(1, 2)


class Ref:
    """A cell."""

    def __init__(self, value: int = 0) -> None:
        self.value = value


def set_to_myid(ref: Ref) -> int:
    """Put the worker's id into the cell."""
    ref.value = D.myid()
    return ref.value


def test_s8_1_a_chunk_of_a_value_is_an_argument(two: D.Context) -> None:
    """§8.1: a chunk made for a processor and a plain value add up; the chunk's scope is where it may be used."""
    chunk = D.tochunk(2, T12)
    assert D.fetch(D.spawn(add, 1, chunk)) == 3
    assert (chunk.processor, chunk.scope, chunk.chunktype) == (T12, D.AnyScope(), int)
    assert chunk.space == D.CPURAMMemorySpace(1)


def test_s8_1_equality_is_the_handle(two: D.Context) -> None:
    """§8.1: wrapping a chunk again gives the same object; with `rewrap` an equal one of the same handle."""
    chunk = D.tochunk(5)
    assert D.tochunk(chunk) is chunk
    again = D.tochunk(chunk, T12, D.ExactScope(T12), rewrap=True)
    assert again is not chunk
    assert again == chunk
    assert hash(again) == hash(chunk)
    assert again.handle is chunk.handle
    assert D.tochunk(5) != chunk


def test_s8_1_sizes_and_domains() -> None:
    """§8.1: an int counts 8 bytes; what is no array has a `UnitDomain`, an array its index ranges."""
    np = pytest.importorskip("numpy")
    assert D.datasize(D.tochunk(1)) == D.approx_size(1) == 8
    assert D.domain(1) == D.UnitDomain()
    array = D.tochunk(np.zeros((3, 4)))
    assert array.domain == D.ArrayDomain((range(3), range(4)))
    assert D.datasize(array) == 96


def test_s8_1_nested_chunks() -> None:
    """§8.1: `unwrap` follows nested references."""
    nested = D.tochunk([D.tochunk(7)])
    assert D.fetch(D.tochunk(nested)) == nested.fetch()
    inner = D.tochunk(D.tochunk(7), rewrap=True)
    assert inner.fetch(unwrap=True) == 7


def test_s8_1_a_type_of_nothing_is_refused() -> None:
    """§8.1: declaring that there is no value where there is one is an error."""
    with pytest.raises(ValueError, match="NoneType"):
        D.tochunk(1, type=type(None))
    assert D.tochunk(None, type=type(None)).fetch() is None


def test_s8_2_results_are_chunks_of_their_processor(cluster: D.Context) -> None:
    """§8.2: a result's chunk names the executing processor; chunks that share a handle are the same upstream."""
    task = D.spawn(list, D.Options(scope=D.ExactScope(D.ThreadProc(2, 1))), "ab")
    chunk = D.fetch(task, raw=True)
    assert chunk.processor == D.ThreadProc(2, 1)
    assert chunk.space == D.CPURAMMemorySpace(2)
    same = D.tochunk(chunk, scope=D.ProcessScope(2), rewrap=True)
    assert same == chunk
    assert D.fetch(D.spawn(lambda a, b: a is b, chunk, same)) is True


@pytest.mark.parametrize("worker", [1, 2])
def test_s8_3_mutable_lives_on_its_worker(cluster: D.Context, worker: int) -> None:
    """§8.3: tasks that use it run on its worker and change the very object; elsewhere they can't run."""
    x = D.mutable(Ref, worker=worker)
    assert D.fetch(D.spawn(set_to_myid, x)) == worker
    assert D.fetch(x).value == worker
    other = D.Options(scope=D.ProcessScope(3 - worker))
    assert outcome(D.spawn(set_to_myid, other, x)) == (D.DTaskFailedError, D.SchedulingError)
    assert code_of(D.spawn(set_to_myid, other, x)) == "arg_scope"


def test_s8_3_default_scopes(cluster: D.Context) -> None:
    """§8.3: by default on the local process; an exact processor gives an exact scope."""
    here = D.mutable(Ref)
    assert (here.processor, here.scope) == (D.OSProc(1), D.ProcessScope(1))
    exact = D.mutable(Ref, processor=D.ThreadProc(2, 2))
    assert (exact.processor, exact.scope) == (D.ThreadProc(2, 2), D.ExactScope(D.ThreadProc(2, 2)))
    with pytest.raises(ValueError, match="not both"):
        D.mutable(Ref, worker=1, processor=D.OSProc(1))


def test_s8_4_default_pieces(cluster: D.Context) -> None:
    """§8.4: one piece for each OSProc of the context, of that processor and process scope."""
    shard = D.shard(Ref)
    assert set(shard.chunks) == {D.OSProc(1), D.OSProc(2)}
    for key, chunk in shard.chunks.items():
        assert isinstance(key, D.OSProc)
        assert chunk.processor == key
        assert isinstance(chunk.scope, D.ProcessScope)
        assert chunk.scope.wid == key.pid


@pytest.mark.parametrize(
    "given",
    [
        {"procs": []},
        {"procs": [], "per_thread": True},
        {"workers": []},
        {"procs": [D.OSProc(1)], "workers": [1]},
        {"procs": [D.OSProc(1)], "per_thread": True},
    ],
    ids=str,
)
def test_s8_4_conflicts(cluster: D.Context, given: dict[str, Any]) -> None:
    """§8.4: empty sets, and `procs` with `workers` or `per_thread`, are errors."""
    with pytest.raises(ValueError):
        D.shard(Ref, **given)


def test_s8_4_counters(cluster: D.Context) -> None:
    """§8.4: 1000 tasks that increment a shard of counters leave 1000 in all, some on each worker."""

    def increment(ref: Ref) -> None:
        ref.value += 1

    counters = D.shard(Ref)
    for task in [D.spawn(increment, counters) for _ in range(1000)]:
        D.fetch(task)
    counts = [D.fetch(chunk).value for chunk in counters]
    assert sum(counts) == 1000
    assert all(counts)


def test_s8_4_no_piece_is_a_key_error(cluster: D.Context) -> None:
    """§8.4: a processor without a piece of its own or of an ancestor is a `KeyError` of the task."""
    there = D.shard(Ref, procs=[D.ThreadProc(2, 1)])
    task = D.spawn(set_to_myid, D.Options(scope=D.ExactScope(D.ThreadProc(2, 2))), there)
    D.wait(task)
    error = outcome(task)
    assert error[0] is D.DTaskFailedError
    assert issubclass(error[1], KeyError)
