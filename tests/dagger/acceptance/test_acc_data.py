"""spec/scheduler.md §8, §9 and the storage events of §19: chunks, mutable, shard, files, spilling."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events
from otel_timespan.dagger.storage import PickleFileDevice, RecencyAllocator, mem_limit, release_dead
from tests.dagger.acceptance.support import add, code_of, identity, outcome

T12 = D.ThreadProc(1, 2)


@pytest.fixture
def no_caching() -> Iterator[None]:
    """Off again at the end."""
    yield
    D.disable_disk_caching()


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


# ---- §9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_s9_1_files(two: D.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """§9.1: a pickled file is read by a fetch and as an argument, and still exists; a missing one is refused."""
    monkeypatch.chdir(tmp_path)
    path: Any = "data.pickle" if relative else tmp_path / "data.pickle"
    with open(path, "wb") as file:
        pickle.dump([1, 2, 3], file)
    assert D.fetch(D.File(path)) == [1, 2, 3]
    assert D.fetch(D.spawn(identity, D.File(path))) == [1, 2, 3]
    made = D.tofile({"a": 1}, "other.pickle" if relative else tmp_path / "other.pickle")
    assert D.fetch(made) == {"a": 1}
    del made
    gc.collect()
    assert (tmp_path / "data.pickle").is_file()
    assert (tmp_path / "other.pickle").is_file()
    with pytest.raises(ValueError, match="no file"):
        D.File("/nope")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_s9_2_each_process_gets_its_share(count: int, no_caching: None) -> None:
    """§9.2: after `enable_disk_caching()` the limit of every process is its share of 30 percent of the memory."""
    total = psutil.virtual_memory().total
    with D.Context(driver=D.InlineDriver({worker: 1 for worker in range(1, count + 1)})) as context:
        assert D.enable_disk_caching() is True
        for process in context.procs:
            device = D.global_device(process.pid)
            assert isinstance(device, RecencyAllocator)
            assert device.mem_limit == total * 30 / 100 // count == mem_limit(total, 30, count)
            assert device.device_limit == 16384 * 2**20


@pytest.mark.parametrize("percent", [0, 101, -1])
def test_s9_2_percentages(percent: int, no_caching: None) -> None:
    """§9.2: outside of 1 to 100 is an error."""
    with pytest.raises(ValueError, match="1 to 100"):
        D.enable_disk_caching(percent)


def test_s9_2_least_recently_used(two: D.Context, tmp_path: Path) -> None:
    """§9.2: LRU, 100 bytes: the third of 40 demotes the first; reading that is a miss and demotes the second."""
    lru = RecencyAllocator(100, PickleFileDevice(tmp_path), 1000)
    tasks = []
    for letter in "abc":
        tasks.append(D.spawn(bytes, D.Options(storage=lru), letter.encode() * 40))
        D.wait(tasks[-1])
    assert (lru.stats.evictions, lru.stats.misses) == (1, 0)
    assert D.fetch(tasks[0]) == b"a" * 40
    assert (lru.stats.evictions, lru.stats.misses) == (2, 1)
    assert D.fetch(tasks[2]) == b"c" * 40
    assert lru.stats.misses == 1
    for wrong in (lambda: RecencyAllocator(0, lru, 1), lambda: RecencyAllocator(1, lru, 1, "FIFO")):
        with pytest.raises(ValueError):
            wrong()


def test_s8_1_process_bound_values_stay_in_memory(two: D.Context, no_caching: None) -> None:
    """§8.1, §20.23: what holds a task or chunk, in a field too, is kept in plain memory; other values are not."""

    class Box:
        def __init__(self, inside: Any) -> None:
            self.inside, self.nbytes = inside, 10_000

    D.enable_disk_caching()
    for value in (Box([D.tochunk(1)]), Box(D.spawn(int)), [D.tochunk(1)] * 2000):
        for chunk in (D.tochunk(value), D.fetch(D.spawn(lambda v=value: v), raw=True)):
            assert type(chunk.handle) is D.DRef
    assert type(D.tochunk(bytes(10_000)).handle) is not D.DRef


def test_s9_2_storage_options(two: D.Context, tmp_path: Path) -> None:
    """§9.2, §4.1: a task's own device, its tags and retention."""
    options = D.Options(storage=PickleFileDevice(tmp_path), storage_leaf_tag="result", storage_retain=True)
    task = D.spawn(identity, options, [1, 2])
    assert D.fetch(D.spawn(len, task)) == 2
    del task
    gc.collect()
    release_dead()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_s19_evict_and_storage_wait(cluster: D.Context, tmp_path: Path) -> None:
    """§19: ids and fields of both, in the stream of the worker that holds the data; BytesAllocd follows."""
    lru = RecencyAllocator(100, PickleFileDevice(tmp_path), 1000)
    options = D.Options(storage=lru, scope=D.ProcessScope(2))
    log = ts.MultiEventLog()
    log["event"], log["bytes"] = events.FullMetrics(), ts.BytesAllocd()
    cluster.log_sink = log
    tasks = []
    for _ in range(3):
        tasks.append(D.spawn(bytes, options, bytes(40)))
        D.wait(tasks[-1])
    reader = D.spawn(len, D.Options(scope=D.ProcessScope(2), get_result=True), tasks[0])
    D.fetch(reader)
    streams = ts.get_logs(log)
    assert {e.category for e in streams[1]["event"]}.isdisjoint({"evict", "storage_wait"})
    seen = streams[2]["event"]
    evicts = [e for e in seen if e.category == "evict"]
    assert all(e.id.worker == 2 and e.timeline.reason == "spilled" for e in evicts)
    assert len(evicts) == 4
    waits = [e for e in seen if e.category == "storage_wait"]
    assert [e.id.thunk_id for e in waits] == [tasks[2].id] * 2 + [reader.id] * 2
    assert all(e.id.processor in (D.ThreadProc(2, 1), D.ThreadProc(2, 2)) for e in waits)
    assert all(e.timeline.device_type is RecencyAllocator for e in waits)
    assert (max(streams[2]["bytes"]), streams[2]["bytes"][-1]) == (80, 80)
    del tasks, reader
    gc.collect()
    assert ts.get_logs(log)[2]["bytes"][-1] == 0
