"""spec/scheduler.md §9.2 and the storage events of §19: where results are kept, and what spills."""

from __future__ import annotations

import gc
import operator
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events
from otel_timespan.dagger.storage import PickleFileDevice, RecencyAllocator, mem_limit, release_dead
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    done,
    identity,
    of_task,
    outcome,
    poll,
    run_program,
    settled,
    timeline_of,
)

# --- 9.2 storage ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_caching() -> Iterator[None]:
    """Off again at the end."""
    yield
    D.disable_disk_caching()


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


def test_s9_2_storage_options(two: D.Context, tmp_path: Path) -> None:
    """§9.2, §4.1: a task's own device, its tags and retention."""
    options = D.Options(storage=PickleFileDevice(tmp_path), storage_leaf_tag="result", storage_retain=True)
    task = D.spawn(identity, options, [1, 2])
    assert D.fetch(D.spawn(len, task)) == 2
    del task
    gc.collect()
    release_dead()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


# --- 19 events -----------------------------------------------------------------------------------------------


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
