"""Results that leave memory with the option `storage`: values, failures, many threads, any order of events."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.storage import (
    RAM,
    PickleFileDevice,
    RecencyAllocator,
    StorageDevice,
    StorageError,
    Stored,
    release_dead,
)
from otel_timespan.dagger.tasks.dtask import FAILED
from otel_timespan.errors import InvalidOptionError
from tests.dagger.acceptance.support import poll
from tests.dagger.spilling.blocks import KIB, MIB, block, file_size_limit, first, inner, read_only, run


class TestHandles:
    def test_values_come_back(self, context: D.Context, lru: RecencyAllocator) -> None:
        """Six blocks where two fit: each is right, for a fetch and for a body, again and again."""
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(6)]
        for _ in range(2):
            assert [D.fetch(task)[0] for task in tasks] == list(range(6))
            assert [D.fetch(D.spawn(first, task)) for task in tasks] == list(range(6))
        assert lru.stats.evictions >= 4
        assert lru.mem_used <= lru.mem_limit

    def test_known_without_reading(self, one: D.Context, tmp_path: Path) -> None:
        """Type, size, domain, description and defaults of signatures need no file."""
        np = pytest.importorskip("numpy")
        device = PickleFileDevice(tmp_path)
        task = D.spawn(np.zeros, D.Options(storage=device), (10, 20))
        chunk = D.fetch(task, raw=True)
        (path,) = tmp_path.iterdir()
        away = path.rename(tmp_path / "away")
        assert (chunk.chunktype, D.datasize(chunk), chunk.handle.info.type) == (np.ndarray, 1600, np.ndarray)
        assert chunk.domain == D.ArrayDomain((range(10), range(20)))
        D.set_default_option("name", np.sum, (np.ndarray,), "total")
        assert D.spawn(np.sum, D.Options(meta=True), task).fetch is not None
        waiting = D.spawn(np.sum, task)
        assert waiting.options.name == "total"
        away.rename(path)
        assert D.fetch(waiting) == 0

    def test_one_object_one_handle(self, one: D.Context, lru: RecencyAllocator) -> None:
        """A body that returns what it was given shares the handle while that is in memory."""
        given_ = D.spawn(block, D.Options(storage=lru), 1)
        same = D.spawn(lambda x: x, given_)
        assert D.fetch(same, raw=True) == D.fetch(given_, raw=True)
        assert lru.mem_used == 40 * KIB

    def test_tags_and_retention(self, one: D.Context, tmp_path: Path) -> None:
        """The file is named by the tag and stays if it is retained; else it goes with the last handle."""
        device = PickleFileDevice(tmp_path)
        options = D.Options(storage=device, storage_root_tag="root", storage_leaf_tag="kept", storage_retain=True)
        tasks = [D.spawn(block, options, 1), D.spawn(block, D.Options(storage=device, storage_root_tag="gone"), 2)]
        assert [D.fetch(task)[0] for task in tasks] == [1, 2]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["gone", "kept"]
        del tasks
        gc.collect()
        release_dead()
        assert [p.name for p in tmp_path.iterdir()] == ["kept"]

    def test_small_results_too(self, one: D.Context, tmp_path: Path) -> None:
        """A device that was asked for takes everything, an int too; memory asked for is plain memory."""
        device = PickleFileDevice(tmp_path)
        task = D.spawn(int, D.Options(storage=device), "7")
        assert D.fetch(task) == 7
        assert len(list(tmp_path.iterdir())) == 1
        assert type(D.fetch(D.spawn(int, D.Options(storage=RAM), "7"), raw=True).handle) is D.DRef

    def test_dropped_values_are_deleted_soon(self, context: D.Context, lru: RecencyAllocator, tmp_path: Path) -> None:
        """Nobody has to read or write for that: memory and files go by themselves."""
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(4)]
        D.waitall(tasks)
        D.fetch(tasks[0])
        assert list((tmp_path / "spill").iterdir())
        del tasks
        gc.collect()
        poll(lambda: (lru.mem_used, lru.device_used) == (0, 0))
        assert not list((tmp_path / "spill").iterdir())

    def test_chunks_made_by_hand(self, tmp_path: Path) -> None:
        """`tochunk` takes a device, tags and retention; a chunk stays what it is."""
        device = PickleFileDevice(tmp_path)
        chunk = D.tochunk(block(3), device=device, leaf_tag="mine", retain=True)
        assert [p.name for p in tmp_path.iterdir()] == ["mine"]
        assert chunk.fetch() == block(3)
        assert D.tochunk(chunk, device=RAM) is chunk
        assert type(D.tochunk(1, device=RAM).handle) is D.DRef
        with pytest.raises(InvalidOptionError, match="storage device"):
            D.tochunk(1, device="disk")
        with pytest.raises(InvalidOptionError, match="name of a file"):
            D.tochunk(1, device=device, tag="a/b")
        with pytest.raises(StorageError, match="pickle"):
            D.tochunk(threading.Lock(), device=device)

    def test_handles_stay_in_their_process(self) -> None:
        """A handle can't be pickled: what came back would be another one."""
        import pickle

        with pytest.raises(TypeError, match="belongs to its process"):
            pickle.dumps(D.tochunk(1))

    def test_mutable_data_is_never_spilled(self, one: D.Context, caching: Callable[..., bool]) -> None:
        """Neither `mutable` nor `shard` uses the global device: bodies get the very object."""
        caching(10)
        x, s = D.mutable(lambda: block(1)), D.shard(lambda: block(2))
        for chunk in (x, *s):
            assert type(chunk.handle) is D.DRef
        device = D.global_device()
        assert isinstance(device, RecencyAllocator)
        assert device.mem_used == 0


class TestFailures:
    def test_too_large(self, context: D.Context, lru: RecencyAllocator) -> None:
        """A result beyond a limit is the task's `StorageError`, is freed, and harms nobody else."""

        class Big(bytearray):
            pass

        made: list[weakref.ref[Any]] = []

        def big() -> Any:
            value = Big(200 * KIB)
            made.append(weakref.ref(value))
            return value

        other, task = D.spawn(block, D.Options(storage=lru), 1), D.spawn(big, D.Options(storage=lru))
        after = D.spawn(len, task)
        error = inner(task)
        assert isinstance(error, StorageError)
        assert "larger than a limit" in str(error)
        assert isinstance(inner(after), StorageError)
        del error
        gc.collect()
        assert made[0]() is None
        assert D.fetch(other)[0] == 1

    def test_what_cant_be_pickled(self, context: D.Context, tmp_path: Path, lru: RecencyAllocator) -> None:
        """For a file an error of the task; in an allocator it stays in memory, and others make room."""
        files = PickleFileDevice(tmp_path / "files")
        error = inner(D.spawn(threading.Lock, D.Options(storage=files)))
        assert isinstance(error, StorageError)
        assert "can't be pickled" in str(error)

        class Local:
            nbytes = 60 * KIB

        stays = D.spawn(Local, D.Options(storage=lru))
        D.fetch(stays)
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(4)]
        assert [D.fetch(task)[0] for task in tasks] == [0, 1, 2, 3]
        assert isinstance(D.fetch(stays), Local)

    def test_a_bad_tag(self, context: D.Context, lru: RecencyAllocator) -> None:
        """It is the error of the task that has it, not of the one that later needs the room."""
        error = inner(D.spawn(block, D.Options(storage=lru, storage_leaf_tag="../x"), 1))
        assert isinstance(error, InvalidOptionError)
        assert lru.mem_used == 0

    def test_a_device_that_raises(self, context: D.Context) -> None:
        """Whatever a device of your own raises is the error of the task."""

        class Broken(StorageDevice):
            def write(self, stored: Stored, value: Any) -> None:
                raise ZeroDivisionError("no room in this town")

            def read(self, stored: Stored) -> Any:
                raise AssertionError

            def delete(self, stored: Stored) -> None:
                raise AssertionError

        assert isinstance(inner(D.spawn(block, D.Options(storage=Broken()), 1)), ZeroDivisionError)
        assert D.fetch(D.spawn(int)) == 0

    def test_retries(self, one: D.Context, tmp_path: Path) -> None:
        """A result that could not be kept is a failed attempt like any other."""
        device = PickleFileDevice(tmp_path / "d")
        away, attempts = tmp_path / "away", []

        def body() -> bytearray:
            attempts.append(1)
            if len(attempts) == 1:
                (tmp_path / "d").rename(away)
            else:
                away.rename(tmp_path / "d")
            return block(len(attempts))

        assert D.fetch(D.spawn(body, D.Options(storage=device, retries=1)))[0] == 2

    @pytest.mark.parametrize("trouble", ["gone", "full", "read-only"])
    def test_a_failing_folder(self, context: D.Context, tmp_path: Path, trouble: str) -> None:
        """With a hard limit the newcomer's task fails; nothing in memory is lost, and all works again afterwards."""
        folder = tmp_path / "spill"
        lru = RecencyAllocator(100 * KIB, PickleFileDevice(folder), 10 * MIB)
        options = D.Options(storage=lru)
        kept = [D.spawn(block, options, n) for n in range(2)]
        D.waitall(kept)
        if trouble == "full":
            with file_size_limit(10 * KIB):
                error = inner(D.spawn(block, options, 9))
        elif trouble == "gone":
            folder.rename(tmp_path / "away")
            error = inner(D.spawn(block, options, 9))
            (tmp_path / "away").rename(folder)
        else:
            with read_only(folder, tmp_path / "aside"):
                error = inner(D.spawn(block, options, 9))
        assert isinstance(error, StorageError)
        assert "no room" in str(error)
        assert isinstance(error.__cause__, StorageError)
        assert [D.fetch(task)[0] for task in kept] == [0, 1]
        assert D.fetch(D.spawn(block, options, 9))[0] == 9

    def test_the_global_device_goes_over_its_limit(
        self, context: D.Context, caching: Callable[..., bool], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where files can't be written the run goes on in memory, with one warning a device; later it spills again."""
        caching(20)
        folder = tmp_path / "global"
        folder.rename(tmp_path / "away")
        with caplog.at_level(logging.WARNING, "otel_timespan"):
            tasks = [D.spawn(block, D.Options(scope=D.ProcessScope(1)), n) for n in range(12)]
            assert [D.fetch(task)[0] for task in tasks] == list(range(12))
        device = D.global_device(1)
        assert isinstance(device, RecencyAllocator)
        assert device.mem_used == 12 * 40 * KIB > device.mem_limit
        assert len([r for r in caplog.records if "more in memory than its limit" in r.getMessage()]) == 1
        (tmp_path / "away").rename(folder)
        device._pause_until = 0.0
        tasks.append(D.spawn(block, D.Options(scope=D.ProcessScope(1)), 12))
        assert [D.fetch(task)[0] for task in tasks] == list(range(13))
        assert device.mem_used <= device.mem_limit

    @pytest.mark.parametrize("damage", [b"", b"nonsense" * 10, None], ids=["empty", "other", "missing"])
    def test_a_corrupt_file(self, context: D.Context, lru: RecencyAllocator, tmp_path: Path, damage: Any) -> None:
        """Who reads it gets the `StorageError`: a body, a fetch, a future, an await; the others are fine."""
        options = D.Options(storage=lru)
        lost = D.spawn(block, options, 0)
        D.wait(lost)
        others = [D.spawn(block, options, n) for n in (1, 2)]
        D.waitall(others)
        (path,) = (tmp_path / "spill").iterdir()
        path.unlink() if damage is None else path.write_bytes(damage)
        assert isinstance(inner(D.spawn(first, lost)), StorageError)
        assert isinstance(inner(D.spawn(lambda *, data: first(data), data=lost)), StorageError)
        with pytest.raises(StorageError, match=r"damaged|can't be read"):
            D.fetch(lost)
        with pytest.raises(StorageError):
            lost.future().result(10)

        async def wait_for_it() -> Any:
            return await lost

        with pytest.raises(StorageError):
            asyncio.run(wait_for_it())
        assert [D.fetch(D.spawn(first, task)) for task in others] == [1, 2]

    def test_a_future_of_what_is_lost_later(self, tmp_path: Path) -> None:
        """A future that waits for the task is resolved on the thread of the body: it must not break that."""
        device = PickleFileDevice(tmp_path)
        gate = threading.Event()

        def body() -> Any:
            gate.wait(30)
            return Gone()

        with D.Context(threads=2):
            task = D.spawn(body, D.Options(storage=device))
            future = task.future()
            gate.set()
            assert isinstance(future.exception(30), StorageError)
            assert D.fetch(D.spawn(int)) == 0


class Gone:
    """It can be written, but not read back."""

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> Any:
    raise RuntimeError("nothing is left of it")


def test_an_await_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    """A value that is read back for an `await` is read on another thread."""
    threads: list[threading.Thread] = []

    class Slow(StorageDevice):
        def write(self, stored: Stored, value: Any) -> None:
            stored.places[self] = value

        def read(self, stored: Stored) -> Any:
            threads.append(threading.current_thread())
            return stored.places[self]

        def delete(self, stored: Stored) -> None:
            stored.places.pop(self, None)

    async def main() -> Any:
        return await D.spawn(block, D.Options(storage=Slow()), 5)

    with D.Context(threads=2):
        assert asyncio.run(main()) == block(5)
    assert threading.main_thread() not in threads
    assert threads


def test_many_threads(tmp_path: Path) -> None:
    """A graph of blocks on real threads, eight times the limit: values right, nothing left, BytesAllocd back at 0."""
    device = RecencyAllocator(200 * KIB, PickleFileDevice(tmp_path), 100 * MIB)
    total = ts.BytesAllocd()
    with D.Context(threads=4) as context:
        log = ts.MultiEventLog()
        log["bytes"] = total
        context.log_sink = log
        options = D.Options(storage=device)
        made = [D.spawn(block, options, n % 250) for n in range(40)]
        joined = [
            D.spawn(lambda a, b: bytearray((a[0], b[0])) * (20 * KIB), options, *pair)
            for pair in itertools.pairwise(made)
        ]
        for _ in range(2):
            assert [bytes(D.fetch(task)[:2]) for task in joined] == [bytes((n, n + 1)) for n in range(39)]
        readers = [D.spawn(first, task) for task in made * 3]
        assert [D.fetch(task) for task in readers] == list(range(40)) * 3
        assert device.mem_used <= device.mem_limit
        ts.get_logs(log)
        assert total.value >= 0
        del made, joined, readers
        gc.collect()
        poll(lambda: (device.mem_used, device.device_used) == (0, 0))
        context.wait_idle()
        gc.collect()
        ts.get_logs(log)
        assert total.value == 0
        context.log_sink = ts.NoOpLog()
    assert not list(tmp_path.iterdir())


def test_forked_children_leave_the_files_alone() -> None:
    """A child can read what was spilled, and its end deletes nothing of its parent's."""
    said = run(
        """
        import os
        from otel_timespan import dagger as D
        from otel_timespan.dagger.storage import PickleFileDevice, RecencyAllocator

        device = RecencyAllocator(100_000, PickleFileDevice(), 10_000_000)
        chunks = [D.tochunk(bytearray([n]) * 40_000, device=device) for n in range(5)]
        child = os.fork()
        if child == 0:
            print("child", [c.fetch()[0] for c in chunks], flush=True)
            chunks.clear()
            raise SystemExit
        print("parent", os.waitpid(child, 0)[1], [c.fetch()[0] for c in chunks])
        """
    )
    assert said.splitlines() == ["child [0, 1, 2, 3, 4]", "parent 0 [0, 1, 2, 3, 4]"]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["make", "make", "fetch", "use", "same", "drop"]), st.integers(0, 9), st.integers(2, 60)),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS, st.sampled_from(["LRU", "MRU"]), st.booleans())
def test_whatever_happens(tmp_path: Path, steps: list[tuple[str, int, int]], policy: str, hard: bool) -> None:
    """Values stay right, the accounts exact, and BytesAllocd is the bytes in memory, whoever makes, reads and drops."""
    device = RecencyAllocator(100 * KIB, PickleFileDevice(tmp_path), 150 * KIB, policy, hard=hard)
    total = ts.BytesAllocd()
    with D.Context(driver=D.InlineDriver({1: 2}, seed=len(steps))) as context:
        log = ts.MultiEventLog()
        log["bytes"] = total
        context.log_sink = log
        options = D.Options(storage=device)
        tasks: dict[int, tuple[D.DTask, bytes]] = {}
        for step, (operation, key, kib) in enumerate(steps):
            if operation == "make" and key not in tasks:
                data = bytes([step]) * (kib * KIB)
                task = D.spawn(bytes, options, data)
                D.wait(task)
                if task._state == FAILED:
                    assert hard
                    assert isinstance(inner(task), StorageError)
                else:
                    tasks[key] = task, data
                del task
            elif key in tasks:
                task, data = tasks[key]
                if operation == "fetch":
                    assert D.fetch(task) == data
                elif operation == "use":
                    assert D.fetch(D.spawn(lambda x: (len(x), x[:1]), task)) == (len(data), data[:1])
                elif operation == "same":
                    assert D.fetch(D.spawn(lambda x: x, D.Options(storage=device, get_result=True), task)) == data
                elif operation == "drop":
                    del tasks[key]
                del task
            release_dead()
            sizes = sum(len(data) for _, data in tasks.values())
            assert device.mem_used + device.device_used == sizes
            assert device.device_used <= 150 * KIB
            assert device.mem_used <= 100 * KIB or not hard
            ts.get_logs(log)
            assert total.value == device.mem_used
        assert all(D.fetch(task) == data for task, data in tasks.values())
        tasks.clear()
        gc.collect()
        release_dead()
        ts.get_logs(log)
        assert total.value == device.mem_used == device.device_used == 0
        context.log_sink = ts.NoOpLog()
    assert not list(tmp_path.iterdir())
