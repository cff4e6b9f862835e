"""spec/scheduler.md §8.1 (storage), §8.3, §8.4, §9: chunks on devices, mutable, shard, files, spill."""

from __future__ import annotations

import gc
import operator
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    BoomError,
    add,
    boom,
    code_of,
    done,
    failure,
    identity,
    of_task,
    outcome,
    poll,
    run_program,
    settled,
    timeline_of,
    where,
)

HERE = [{"threads": 2}, {"driver": "inline"}]


def on(worker: int) -> D.Options:
    """Options that pin a task to a worker."""
    return D.Options(scope=D.ProcessScope(worker))


class Cell:
    """A place for a number, counting under a lock."""

    def __init__(self) -> None:
        self.n = 0
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Cell, ()


def set_to_myid(cell: Cell) -> int:
    """Write the number of the worker into the cell; it."""
    cell.n = D.myid()
    return cell.n


def increment(cell: Cell) -> None:
    """Count one up."""
    with cell.lock:
        cell.n += 1


def count_of(cell: Cell) -> int:
    """What the cell holds."""
    return cell.n


# --- 8.1 chunks ------------------------------------------------------------------------------------------


def test_s8_1_collect_of_a_chunk() -> None:
    """§8.1: `fetch(chunk)` and `collect(chunk)` bring the value here."""
    value = {"a": 1}
    chunk = D.tochunk(value)
    assert D.collect(chunk) is value is D.fetch(chunk)


def test_s8_1_rewrap_changes_place_and_scope_but_not_the_handle() -> None:
    """§8.1: a chunk passed in is returned unchanged unless `rewrap`, which makes another chunk of the same handle."""
    chunk = D.tochunk([1], D.ThreadProc(1, 1))
    assert D.tochunk(chunk, D.ThreadProc(1, 2), D.ProcessScope(1)) is chunk
    other = D.tochunk(chunk, D.ThreadProc(1, 2), D.ProcessScope(1), rewrap=True)
    assert other is not chunk and other == chunk and hash(other) == hash(chunk)
    assert (other.processor, other.scope) == (D.ThreadProc(1, 2), D.ProcessScope(1))
    assert other.fetch() is chunk.fetch()
    assert other.handle == chunk.handle


def test_s8_1_equal_chunks_are_one_key() -> None:
    """§8.1: equality and hash depend on the handle only, so chunks of one handle are one member of a set."""
    chunk = D.tochunk(5)
    assert len({chunk, D.tochunk(chunk, rewrap=True), D.tochunk(5)}) == 2


def test_s8_1_device_keeps_the_bytes_there(tmp_path: Path) -> None:
    """§8.1: `device` says where the bytes of a chunk are kept; its value comes back equal."""
    device = D.storage.PickleFileDevice(tmp_path)
    chunk = D.tochunk([1, 2, 3], device=device)
    assert len(list(tmp_path.iterdir())) == 1
    assert chunk.fetch() == [1, 2, 3] == D.collect(chunk)
    assert chunk.chunktype is list and D.datasize(chunk) == D.approx_size([1, 2, 3])
    with D.Context(threads=1):
        assert D.fetch(D.spawn(add, [0], chunk)) == [0, 1, 2, 3]


def test_s8_1_a_chunk_of_a_device_goes_with_its_last_reference(tmp_path: Path) -> None:
    """§8.1: reference counting frees the device's bytes too, once the last chunk of the handle is gone."""
    device = D.storage.PickleFileDevice(tmp_path)
    chunk = D.tochunk([1], device=device)
    twin = D.tochunk(chunk, rewrap=True)
    del chunk
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1 and twin.fetch() == [1]
    del twin

    def gone() -> bool:
        gc.collect()
        D.tochunk(0, device=device)
        D.storage.release_dead()
        return not list(tmp_path.iterdir())

    poll(gone)


def test_s8_1_tags_and_retain(tmp_path: Path) -> None:
    """§8.1: `tag` names the root device's entry, `retain` keeps the data when the chunk dies."""
    device = D.storage.PickleFileDevice(tmp_path)
    chunk = D.tochunk({"a": 1}, device=device, tag="kept.pkl", retain=True)
    del chunk
    gc.collect()
    D.storage.release_dead()
    assert [p.name for p in tmp_path.iterdir()] == ["kept.pkl"]
    assert pickle.loads((tmp_path / "kept.pkl").read_bytes()) == {"a": 1}


def test_s8_1_process_bound_values_stay_in_ram() -> None:
    """§8.1: with `device=None` tasks, thunks, chunks and lists of them go to plain RAM: the very object comes back."""
    out = run_program(
        """
        assert D.enable_disk_caching(1, 100) is True
        task = D.spawn(int, 5)
        inner = D.tochunk(7)
        for value in ([task], [inner], {"task": task}):
            assert D.tochunk(value).fetch() is value
            assert D.fetch(D.spawn(lambda v=value: v)) is value
        print("done")
        """
    )
    assert out.strip() == "done"


def test_s8_1_only_devices_are_devices() -> None:
    """§8.1: a device that is none is refused at once, with an error of ours."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.tochunk(1, device="disk")
    assert isinstance(caught.value, D.TimespanError)


def test_s8_1_datasize_is_estimated_at_creation() -> None:
    """§8.1: `datasize` is the estimate at creation, for results as for chunks; a size asked of no chunk is an error."""
    assert D.datasize(D.tochunk(b"x" * 1000)) == 1000
    assert D.datasize(D.fetch(D.spawn(bytes, 500), raw=True)) == 500
    with pytest.raises((ValueError, TypeError, AttributeError)):
        D.datasize("abc")


def test_s8_1_domains_of_arrays() -> None:
    """§8.1: arrays have index ranges, a chunk has the domain of its value."""
    numpy = pytest.importorskip("numpy")
    chunk = D.tochunk(numpy.zeros((4, 2)))
    assert isinstance(chunk.domain, D.ArrayDomain)
    assert chunk.domain == D.domain(numpy.ones((4, 2)))
    assert D.tochunk("text").domain == D.UnitDomain()


# --- 8.3 mutable -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [1, 2])
def test_s8_3_a_mutable_is_used_where_it_lives(cluster: D.Context, worker: int) -> None:
    """§8.3 accept: for w in (1, 2): a task that uses `mutable(Cell, worker=w)` runs on w and changes the one cell."""
    cell = D.mutable(Cell, worker=worker)
    assert isinstance(cell, D.Chunk)
    assert cell.scope == D.ProcessScope(worker)
    for _ in range(5):
        assert D.fetch(D.spawn(set_to_myid, cell)) == worker
    assert D.fetch(D.spawn(count_of, cell)) == worker
    assert D.fetch(cell).n == worker


@pytest.mark.parametrize("worker", [1, 2])
def test_s8_3_elsewhere_is_a_scheduling_error(cluster: D.Context, worker: int) -> None:
    """§8.3 accept: a task scoped to another worker than its mutable's fails with SchedulingError."""
    cell = D.mutable(Cell, worker=worker)
    task = D.spawn(set_to_myid, on(3 - worker), cell)
    assert outcome(done(task)) == (D.DTaskFailedError, D.SchedulingError)
    assert code_of(done(task)) == "arg_scope"


def test_s8_3_the_default_is_this_process(two: D.Context) -> None:
    """§8.3: the default processor is the local OSProc, with `ProcessScope`."""
    cell = D.mutable(Cell)
    assert cell.processor == D.OSProc(1)
    assert cell.scope == D.ProcessScope(1)


def test_s8_3_a_processor_means_exactly_there(cluster: D.Context) -> None:
    """§8.3: the default scope is `ExactScope` for a processor that is no OSProc; tasks run exactly there."""
    thread = D.ThreadProc(2, 2)
    cell = D.mutable(Cell, processor=thread)
    assert cell.processor == thread
    assert cell.scope == D.ExactScope(thread)
    for _ in range(4):
        assert D.fetch(D.spawn(where, cell)) == thread


def test_s8_3_processor_osproc(cluster: D.Context) -> None:
    """§8.3: `processor=OSProc(w)` is as `worker=w`."""
    cell = D.mutable(Cell, processor=D.OSProc(2))
    assert (cell.processor, cell.scope) == (D.OSProc(2), D.ProcessScope(2))


def test_s8_3_a_scope_of_ones_own(cluster: D.Context) -> None:
    """§8.3: `scope` replaces the default scope of the chunk."""
    cell = D.mutable(Cell, worker=1, scope=D.AnyScope())
    assert cell.scope == D.AnyScope()
    assert cell.processor == D.OSProc(1)


def test_s8_3_the_function_runs_as_a_task_there(cluster: D.Context) -> None:
    """§8.3: `f()` itself runs as a task on the worker."""
    assert D.fetch(D.mutable(D.myid, worker=2)) == 2
    assert D.fetch(D.mutable(D.in_task, worker=2)) is True


def test_s8_3_never_copied(two: D.Context) -> None:
    """§8.3: all tasks see and change the very same object."""
    items = D.mutable(list)
    for n in range(10):
        D.wait(D.spawn(list.append, items, n))
    assert D.fetch(items) == list(range(10))
    assert D.fetch(D.spawn(id, items)) == id(D.fetch(items))


def test_s8_3_wrong_uses(cluster: D.Context) -> None:
    """§8.3: worker with processor, a worker that is not there, no function: errors of ours, at once."""
    with pytest.raises(ValueError) as caught:
        D.mutable(Cell, worker=1, processor=D.OSProc(1))
    assert isinstance(caught.value, D.TimespanError)
    with pytest.raises(D.TimespanError):
        D.mutable(Cell, worker=99)
    with pytest.raises((ValueError, TypeError)):
        D.mutable(5)
    with pytest.raises((ValueError, TypeError)):
        D.mutable(Cell, processor="gpu")


def test_s8_3_a_function_that_raises(two: D.Context) -> None:
    """§8.3: what `f` raises comes out of `mutable`."""
    with pytest.raises((D.DTaskFailedError, BoomError)) as caught:
        D.mutable(boom)
    assert isinstance(D.unwrap_exception(caught.value), BoomError)


# --- 8.4 shard -------------------------------------------------------------------------------------------


def test_s8_4_the_default_is_a_piece_a_process(cluster: D.Context) -> None:
    """§8.4 accept: each key is an OSProc of the context; piece and key agree; the scope is that process."""
    shard = D.shard(Cell)
    assert isinstance(shard, D.Shard)
    assert set(shard.chunks) == {D.OSProc(1), D.OSProc(2)}
    for key, chunk in shard.chunks.items():
        assert isinstance(chunk, D.Chunk)
        assert chunk.processor == key
        assert isinstance(chunk.scope, D.ProcessScope)
        assert chunk.scope.wid == key.pid


def test_s8_4_on_threads(two: D.Context) -> None:
    """§8.4: with one process the default shard has one piece; per thread it has one a slot."""
    assert set(D.shard(Cell).chunks) == {D.OSProc(1)}
    per_thread = D.shard(Cell, per_thread=True)
    assert set(per_thread.chunks) == {D.ThreadProc(1, 1), D.ThreadProc(1, 2)}


def test_s8_4_workers(cluster: D.Context) -> None:
    """§8.4: `workers` chooses the processes."""
    assert set(D.shard(Cell, workers=[2]).chunks) == {D.OSProc(2)}
    assert set(D.shard(Cell, workers=[1, 2]).chunks) == {D.OSProc(1), D.OSProc(2)}


def test_s8_4_per_thread(cluster: D.Context) -> None:
    """§8.4: `per_thread` is every thread of the chosen workers, each scoped exactly."""
    threads = {w: {D.ThreadProc(w, 1), D.ThreadProc(w, 2)} for w in (1, 2)}
    assert set(D.shard(Cell, per_thread=True).chunks) == threads[1] | threads[2]
    shard = D.shard(Cell, workers=[2], per_thread=True)
    assert set(shard.chunks) == threads[2]
    for key, chunk in shard.chunks.items():
        assert chunk.processor == key
        assert chunk.scope == D.ExactScope(key)


def test_s8_4_procs(cluster: D.Context) -> None:
    """§8.4: `procs` names the processors."""
    chosen = [D.ThreadProc(1, 2), D.OSProc(2)]
    shard = D.shard(Cell, procs=chosen)
    assert set(shard.chunks) == set(chosen)
    assert shard.chunks[chosen[0]].scope == D.ExactScope(chosen[0])
    assert shard.chunks[chosen[1]].scope == D.ProcessScope(2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"procs": []},
        {"workers": []},
        {"procs": [D.OSProc(1)], "workers": [1]},
        {"procs": [D.OSProc(1)], "per_thread": True},
        {"procs": [], "workers": [1]},
        {"procs": [], "per_thread": True},
        {"workers": [], "per_thread": True},
    ],
    ids=repr,
)
def test_s8_4_conflicts_and_empty_sets(cluster: D.Context, wrong: dict[str, Any]) -> None:
    """§8.4 accept: conflicts and empty sets are ValueErrors of ours."""
    with pytest.raises(ValueError) as caught:
        D.shard(Cell, **wrong)
    assert isinstance(caught.value, D.TimespanError)


def test_s8_4_the_piece_of_the_process(cluster: D.Context) -> None:
    """§8.4: as an argument the body gets the piece of its own processor's nearest ancestor."""
    shard = D.shard(D.myid)
    for worker in (1, 2):
        for tid in (1, 2):
            there = D.Options(scope=D.scope(worker=worker, thread=tid))
            assert D.fetch(D.spawn(identity, there, shard)) == worker
            assert D.fetch(D.spawn(lambda *, piece: piece, there, piece=shard)) == worker


def test_s8_4_the_piece_of_the_very_thread(cluster: D.Context) -> None:
    """§8.4: a piece of the executing processor itself comes before its ancestor's."""
    shard = D.shard(where, procs=[D.ThreadProc(2, 1), D.OSProc(2)])
    exact = D.fetch(D.spawn(identity, D.Options(scope=D.scope(worker=2, thread=1)), shard))
    assert exact == D.ThreadProc(2, 1)
    other = D.spawn(identity, D.Options(scope=D.scope(worker=2, thread=2)), shard)
    assert D.fetch(other) == D.fetch(shard.chunks[D.OSProc(2)])


def test_s8_4_pieces_stay_in_place(cluster: D.Context) -> None:
    """§8.4: pieces are mutable and not copied: each worker's tasks change that worker's piece."""
    shard = D.shard(Cell)
    for worker, times in ((1, 3), (2, 5)):
        for _ in range(times):
            D.wait(D.spawn(increment, on(worker), shard))
    counts = {key.pid: D.fetch(D.spawn(count_of, chunk)) for key, chunk in shard.chunks.items()}
    assert counts == {1: 3, 2: 5}


@pytest.mark.parametrize("kind", ["threads", "inline"])
def test_s8_4_a_thousand_increments(kind: str) -> None:
    """§8.4 accept: 1000 tasks incrementing a shard of counters: the pieces add up to 1000."""
    driver = "threads" if kind == "threads" else D.InlineDriver(workers={1: 2, 2: 2}, seed=1)
    with D.Context(driver=driver):
        for per_thread in (False, True):
            shard = D.shard(Cell, per_thread=per_thread)
            D.waitall([D.spawn(increment, shard) for _ in range(1000)])
            assert sum(D.fetch(D.spawn(count_of, chunk)) for chunk in shard) == 1000


def test_s8_4_no_piece_there_is_a_key_error(cluster: D.Context) -> None:
    """§8.4: a processor that has neither a piece nor an ancestor with one fails the task with KeyError."""
    shard = D.shard(Cell, workers=[1])
    bad = D.spawn(increment, on(2), shard)
    good = D.spawn(increment, on(1), shard)
    error = failure(done(bad))
    assert isinstance(error, D.DTaskFailedError)
    assert isinstance(D.unwrap_exception(error), KeyError)
    assert D.fetch(good) is None


def test_s8_4_a_collection_of_its_chunks(cluster: D.Context) -> None:
    """§8.4: iterating, len and map go over the chunks."""
    shard = D.shard(D.myid)
    assert len(shard) == 2
    assert set(shard) == set(shard.chunks.values())
    assert sorted(map(D.fetch, shard)) == [1, 2]


def test_s8_4_a_move_event_of_kind_shard() -> None:
    """§8.4, docs/events.md: the log names the move of a shard's piece `shard`."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        task = D.spawn(identity, D.shard(D.myid))
        assert D.fetch(task) == 1
        events = settled(log, task)
    assert timeline_of(events, task, "move", position=1).kind == "shard"


def test_s8_4_functions_are_checked(cluster: D.Context) -> None:
    """§8.4: no function, workers that are not there: refused with an error of ours; f's error comes out."""
    with pytest.raises((ValueError, TypeError)):
        D.shard(5)
    with pytest.raises(D.TimespanError):
        D.shard(Cell, workers=[77])
    with pytest.raises((D.DTaskFailedError, BoomError)) as caught:
        D.shard(boom)
    assert isinstance(D.unwrap_exception(caught.value), BoomError)


# --- 9.1 files -------------------------------------------------------------------------------------------


def pickled(path: Path, value: Any) -> Path:
    """Write a pickle to the path; it."""
    path.write_bytes(pickle.dumps(value))
    return path


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_s9_1_a_file_is_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """§9.1 accept: `fetch(File(path))` and a task's argument give the contents, and the file still exists."""
    monkeypatch.chdir(tmp_path)
    path = pickled(tmp_path / "data.pkl", [1, 2, 3])
    name = "data.pkl" if relative else str(path)
    assert D.fetch(D.File(name)) == [1, 2, 3]
    assert D.fetch(D.spawn(identity, D.File(name))) == [1, 2, 3]
    assert D.fetch(D.spawn(lambda *, data: data, data=D.File(name))) == [1, 2, 3]
    gc.collect()
    assert path.exists()


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_s9_1_tofile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """§9.1 accept: `tofile` writes the default format and gives a File; the file outlives the reference."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out.pkl"
    file = D.tofile([1, 2, 3], "out.pkl" if relative else path)
    assert isinstance(file, D.File)
    assert pickle.loads(path.read_bytes()) == [1, 2, 3] == D.fetch(file) == D.fetch(D.spawn(identity, file))
    del file
    gc.collect()
    assert path.exists()


def test_s9_1_a_missing_file_raises_at_once() -> None:
    """§9.1 accept: `File` of a path that is not there is a ValueError of ours, at once."""
    with pytest.raises(ValueError) as caught:
        D.File("/nope")
    assert isinstance(caught.value, D.TimespanError)


def test_s9_1_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """§9.1: a File is lazy: what the file holds when it is used counts."""
    path = pickled(tmp_path / "data", "old")
    file = D.File(path)
    pickled(path, "new")
    assert D.fetch(D.spawn(identity, file)) == "new"


def test_s9_1_functions_of_ones_own(tmp_path: Path) -> None:
    """§9.1: `use_io` says whether the functions take a stream or a path."""

    def save(data: str, path: Any) -> None:
        Path(path).write_text(data.upper())

    file = D.tofile("hello", tmp_path / "t", serialize=save, deserialize=lambda p: Path(p).read_text(), use_io=False)
    assert D.fetch(D.spawn(identity, file)) == "HELLO"
    streamed = D.File(tmp_path / "t", deserialize=lambda stream: stream.read())
    assert D.fetch(D.spawn(identity, streamed)) == b"HELLO"


def test_s9_1_the_scope_is_this_process(cluster: D.Context, tmp_path: Path) -> None:
    """§9.1: a task that uses a File runs in the process that made it, and is refused elsewhere."""
    file = D.File(pickled(tmp_path / "data", 5))
    for _ in range(10):
        assert D.fetch(D.spawn(lambda x: D.myid(), file)) == 1
    assert code_of(done(D.spawn(identity, on(2), file))) == "arg_scope"


def test_s9_1_a_broken_file_fails_its_task_only(tmp_path: Path) -> None:
    """§9.1, issue 5: contents that can't be read are the error of the task that wanted them; others go on."""
    path = tmp_path / "data"
    path.write_bytes(b"nonsense")
    bad, good = D.spawn(identity, D.File(path)), D.spawn(int)
    error = failure(done(bad))
    assert isinstance(error, D.DTaskFailedError)
    assert str(path) in str(error)
    assert D.fetch(good) == 0


def test_s9_1_meta_passes_no_contents(tmp_path: Path) -> None:
    """§1.3, §9.1: with `meta` the contents are not read."""
    path = tmp_path / "data"
    path.write_bytes(b"nonsense")
    assert D.fetch(D.spawn(lambda f: type(f).__name__, D.Options(meta=True), D.File(path))) in ("File", "Chunk")


def test_s9_1_a_move_event_of_kind_file(tmp_path: Path) -> None:
    """§9.1, docs/events.md: the log names the move of a file's contents `file`."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        task = D.spawn(identity, D.File(pickled(tmp_path / "data", 5)))
        assert D.fetch(task) == 5
        events = settled(log, task)
    assert timeline_of(events, task, "move", position=1).kind == "file"


# --- 9.2 storage -----------------------------------------------------------------------------------------


class Block:
    """Some data that counts as 40 bytes."""

    nbytes = 40

    def __init__(self, name: str) -> None:
        self.name = name


def name_of(block: Block) -> str:
    """The block's name."""
    return block.name


@pytest.fixture
def lru(tmp_path: Path) -> Any:
    """An allocator of 100 bytes of memory over files."""
    return D.storage.RecencyAllocator(100, D.storage.PickleFileDevice(tmp_path), 10_000)


@pytest.mark.parametrize(
    "wrong",
    [(0, 100, "LRU"), (-5, 100, "LRU"), (100, 0, "LRU"), (100, -1, "LRU"), (100, 100, "FIFO"), (100, 100, "lru ")],
    ids=repr,
)
def test_s9_2_limits_and_policies(tmp_path: Path, wrong: tuple[int, int, str]) -> None:
    """§9.2 accept: limits must be above 0 and the policy one of the two."""
    device = D.storage.PickleFileDevice(tmp_path)
    with pytest.raises(ValueError) as caught:
        D.storage.RecencyAllocator(wrong[0], device, wrong[1], policy=wrong[2])
    assert isinstance(caught.value, D.TimespanError)


def test_s9_2_lru_with_chunks(lru: Any) -> None:
    """§9.2 accept: of three chunks of 40 in 100 the third demotes the first; reading it is a miss, demotes the 2nd."""
    a, b, c = (D.tochunk(Block(n), device=lru) for n in "abc")
    assert (lru.stats.hits, lru.stats.misses, lru.stats.evictions) == (0, 0, 1)
    assert a.fetch().name == "a"
    assert (lru.stats.misses, lru.stats.evictions) == (1, 2)
    assert (c.fetch().name, a.fetch().name) == ("c", "a")
    assert (lru.stats.hits, lru.stats.misses) == (2, 1)
    assert b.fetch().name == "b"
    assert lru.stats.misses == 2


def test_s9_2_mru_with_chunks(tmp_path: Path) -> None:
    """§9.2: MRU demotes from the front: the newest one that was there before."""
    mru = D.storage.RecencyAllocator(100, D.storage.PickleFileDevice(tmp_path), 10_000, policy="MRU")
    a, b, c = (D.tochunk(Block(n), device=mru) for n in "abc")
    assert (a.fetch().name, c.fetch().name) == ("a", "c")
    assert (mru.stats.hits, mru.stats.misses) == (2, 0)
    assert b.fetch().name == "b"
    assert mru.stats.misses == 1


def test_s9_2_the_option_storage(lru: Any) -> None:
    """§4.1, §9.2: `storage` says where a result is kept; what spilled arrives as an argument all the same."""
    with D.Context(threads=1):
        tasks = [D.spawn(Block, D.Options(storage=lru), str(n)) for n in range(6)]
        D.waitall(tasks)
        assert lru.stats.evictions == 4
        assert D.fetch_all([D.spawn(name_of, t) for t in tasks]) == [str(n) for n in range(6)]
        assert [D.fetch(t).name for t in tasks] == [str(n) for n in range(6)]
        assert lru.stats.misses > 0


def test_s9_2_scoped_storage_option(tmp_path: Path) -> None:
    """§4.2: `storage` may be given for a block; results are written to that device."""
    device = D.storage.PickleFileDevice(tmp_path)
    with D.Context(threads=1), D.with_options(storage=device):
        task = D.spawn(list, "abc")
        assert D.fetch(task) == ["a", "b", "c"]
        assert len(list(tmp_path.iterdir())) == 1


def test_s9_2_tags_and_retain_of_a_task(tmp_path: Path) -> None:
    """§4.1: `storage_root_tag` names the file, `storage_retain` keeps it when the result dies."""
    device = D.storage.PickleFileDevice(tmp_path)
    with D.Context(threads=1):
        kept = D.Options(storage=device, storage_root_tag="kept.pkl", storage_retain=True)
        dropped = D.Options(storage=device, storage_root_tag="dropped.pkl")
        tasks = [D.spawn(list, kept, "ab"), D.spawn(list, dropped, "cd")]
        assert D.fetch_all(tasks) == [["a", "b"], ["c", "d"]]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["dropped.pkl", "kept.pkl"]
        tasks.clear()

        def only_kept() -> bool:
            gc.collect()
            D.fetch(D.spawn(int))
            D.storage.release_dead()
            return [p.name for p in tmp_path.iterdir()] == ["kept.pkl"]

        poll(only_kept)
    assert pickle.loads((tmp_path / "kept.pkl").read_bytes()) == ["a", "b"]


def test_s9_2_results_that_die_leave_the_allocator(lru: Any) -> None:
    """§9.2: *delete* removes from wherever the data is: room and files come back when handles go."""
    with D.Context(threads=1):
        tasks = [D.spawn(Block, D.Options(storage=lru), str(n)) for n in range(6)]
        D.waitall(tasks)
        tasks.clear()

        def empty() -> bool:
            gc.collect()
            D.fetch(D.spawn(int))
            D.storage.release_dead()
            return lru.mem_used == 0 == lru.device_used

        poll(empty)


def test_s9_2_too_large_is_the_error_of_its_task(lru: Any) -> None:
    """§9.2: a result larger than a limit fails its own task with StorageError; the next one is fine."""

    class Big:
        nbytes = 500

    with D.Context(threads=1):
        assert outcome(D.spawn(Big, D.Options(storage=lru))) == (D.DTaskFailedError, D.StorageError)
        assert D.fetch(D.spawn(Block, D.Options(storage=lru), "a")).name == "a"


def test_s9_2_a_result_that_cannot_be_stored(tmp_path: Path) -> None:
    """§9.2, issue 5: a result that can't be serialized fails its own task with a clear error; others are unharmed."""
    device = D.storage.PickleFileDevice(tmp_path)
    with D.Context(threads=1):
        bad = D.spawn(threading.Lock, D.Options(storage=device))
        assert outcome(done(bad)) == (D.DTaskFailedError, D.StorageError)
        assert D.fetch(D.spawn(list, D.Options(storage=device), "a")) == ["a"]


def test_s9_2_a_corrupt_spill_file(lru: Any, tmp_path: Path) -> None:
    """Issue 5: a spill file that was damaged fails the task that needs it with StorageError, others go on."""
    with D.Context(threads=1):
        tasks = [D.spawn(Block, D.Options(storage=lru), str(n)) for n in range(3)]
        D.waitall(tasks)
        (path,) = [p for p in tmp_path.iterdir() if p.is_file()]
        path.write_bytes(b"nonsense")
        bad, good = D.spawn(name_of, tasks[0]), D.spawn(name_of, tasks[2])
        assert outcome(done(bad)) == (D.DTaskFailedError, D.StorageError)
        assert D.fetch(good) == "2"


def test_s9_2_a_storage_folder_that_vanished(tmp_path: Path) -> None:
    """Issue 5: a folder that can't be written to is a StorageError of the task; nothing hangs."""
    device = D.storage.PickleFileDevice(tmp_path / "spill")
    with D.Context(threads=1):
        os.rename(tmp_path / "spill", tmp_path / "away")
        assert outcome(D.spawn(list, D.Options(storage=device), "a")) == (D.DTaskFailedError, D.StorageError)
        os.rename(tmp_path / "away", tmp_path / "spill")
        assert D.fetch(D.spawn(list, D.Options(storage=device), "a")) == ["a"]


def test_s9_2_spills_are_evict_events(lru: Any) -> None:
    """Ruling 29, issue 5: a chunk that spills emits `evict` with handle, size and the reason `spilled`."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        tasks = []
        for n in range(4):
            tasks.append(D.spawn(Block, D.Options(storage=lru), str(n)))
            D.wait(tasks[-1])
        events = settled(log, *tasks)
        handles = [timeline_of(events, t, "finish").result.handle for t in tasks]
        evicts = poll(lambda: [e for e in list(log) if e.category == "evict" and e.phase == "finish"])
        assert [e.id.handle for e in evicts] == handles[:2]
        for event in evicts:
            assert event.timeline.reason == "spilled"
            assert event.timeline.data.nbytes == 40
            assert event.id.worker == 1
        starts = [e.id.handle for e in list(log) if e.category == "evict" and e.phase == "start"]
        assert starts == handles[:2]


def test_s9_2_waiting_for_room_is_a_storage_wait_event(lru: Any) -> None:
    """§19, issue 5: a result that must wait for room has a `storage_wait` span of its task and processor."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        tasks = []
        for n in range(3):
            tasks.append(D.spawn(Block, D.Options(storage=lru), str(n)))
            D.wait(tasks[-1])
        poll(lambda: len(of_task(log, tasks[2], "storage_wait")) == 2)
        events = settled(log, *tasks)
    waits = of_task(events, tasks[2], "storage_wait")
    assert [e.phase for e in waits] == ["start", "finish"]
    assert waits[0].id == waits[1].id
    start, finish = of_task(events, tasks[2], "compute")
    assert start.timestamp <= waits[0].timestamp <= waits[1].timestamp <= finish.timestamp
    assert waits[0].id.processor == D.ThreadProc(1, 1)
    assert waits[0].timeline.f is Block
    assert of_task(events, tasks[0], "storage_wait") == []


def test_s9_2_bytes_allocd_follows_spills(lru: Any) -> None:
    """Ruling 25, issue 5: BytesAllocd falls when a chunk spills: no more than what fits in memory is counted."""
    log = ts.MultiEventLog()
    log["bytes"] = ts.BytesAllocd()
    with D.Context(threads=1, log_sink=log):
        tasks = []
        for n in range(6):
            tasks.append(D.spawn(Block, D.Options(storage=lru), str(n)))
            D.wait(tasks[-1])
        seen: list[int] = []

        def level() -> bool:
            seen.extend(x for x in ts.get_logs(log)[1]["bytes"] if x is not None)
            return bool(seen) and seen[-1] == 80

        poll(level)
    assert max(seen) <= 120


def test_s9_2_mem_limit() -> None:
    """§9.2 accept: the limit of a process is its share of the percentage, in whole bytes."""
    for total in (10**9, 16 * 2**30 + 7):
        for n in (1, 2, 3, 4):
            assert D.storage.mem_limit(total, 30, n) == total * 30 / 100 // n


@pytest.mark.parametrize("percent", [0, -1, 101, 1000, "30"], ids=repr)
def test_s9_2_percentages_out_of_range(percent: Any) -> None:
    """§9.2: a percentage outside of 1..100 is a ValueError (or a TypeError, when it is no number) of ours."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.enable_disk_caching(percent)
    assert isinstance(caught.value, D.TimespanError)


def test_s9_2_enable_disk_caching() -> None:
    """§9.2 accept: `enable_disk_caching()` gives True, and everything works as before."""
    out = run_program(
        """
        import operator
        assert D.enable_disk_caching() is True
        assert D.enable_disk_caching(50, 1024) is True
        a = D.spawn(operator.add, 2, 2)
        print(D.fetch(D.spawn(operator.mul, a, 5)), D.collect(D.tochunk([1])))
        """
    )
    assert out.split() == ["20", "[1]"]


def test_s9_2_a_working_set_of_four_times_the_limit(tmp_path: Path) -> None:
    """Issue 5: results of four times the memory limit are all there, in memory never more than the limit."""
    size, count = 1_000_000, 64
    device = D.storage.PickleFileDevice(tmp_path)
    lru = D.storage.RecencyAllocator(size * count // 4, device, size * count * 2)
    with D.Context(threads=2):
        parts = [D.spawn(operator.mul, D.Options(storage=lru), bytes([n]), size) for n in range(count)]
        heads = [D.spawn(lambda part: part[0], part) for part in parts]
        assert D.fetch_all(heads) == list(range(count))
        assert lru.mem_used <= size * count // 4
        assert lru.stats.evictions >= count - count // 4
        assert [D.fetch(p)[-1] for p in parts] == list(range(count))
