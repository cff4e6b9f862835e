"""Results that leave memory: with the option `storage`, with `enable_disk_caching`, with real files and limits."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import itertools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.data import caching as module
from otel_timespan.dagger.data import spilling
from otel_timespan.dagger.data.safety import storage_safe
from otel_timespan.dagger.storage import (
    RAM,
    PickleFileDevice,
    RecencyAllocator,
    StorageDevice,
    StorageError,
    Stored,
    mem_limit,
    release_dead,
)
from otel_timespan.dagger.tasks.dtask import FAILED
from otel_timespan.errors import InvalidOptionError
from tests.dagger.acceptance.support import poll
from tests.dagger.test_storage import file_size_limit, run

KIB = 1024
MIB = 1024 * KIB


def block(n: int, size: int = 40 * KIB) -> bytearray:
    """`size` bytes of value n."""
    return bytearray([n]) * size


def first(data: Any) -> int:
    """What the data begins with."""
    return int(data[0])


@pytest.fixture(params=["threads", "inline"])
def context(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Two slots on threads, or two pretended workers."""
    inline = D.InlineDriver({1: 2, 2: 2}, seed=1)
    with D.Context(threads=2) if request.param == "threads" else D.Context(driver=inline) as entered:
        yield entered


@pytest.fixture
def one() -> Iterator[D.Context]:
    """One slot, the same way every time."""
    with D.Context(driver=D.InlineDriver({1: 1})) as entered:
        yield entered


@pytest.fixture
def lru(tmp_path: Path) -> RecencyAllocator:
    """Room for two blocks in memory."""
    return RecencyAllocator(100 * KIB, PickleFileDevice(tmp_path / "spill"), 10 * MIB)


@pytest.fixture
def caching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., bool]]:
    """`enable_disk_caching` for a machine of 1 MiB; off again at the end."""
    monkeypatch.setattr(module, "total_memory", lambda: 1 * MIB)
    yield functools.partial(D.enable_disk_caching, directory=tmp_path / "global")
    forget_settings()


def forget_settings() -> None:
    """As if nobody had ever called anything."""
    D.disable_disk_caching()
    module._was_chosen = False


def inner(task: D.DTask) -> BaseException:
    """What a task failed with, innermost."""
    D.wait(task)
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    return D.unwrap_exception(caught.value)


@contextlib.contextmanager
def read_only(folder: Path, aside: Path) -> Iterator[None]:
    """The folder takes no files. For root, whom no permission stops, a file system that takes none stands in."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    folder.rename(aside)
    folder.symlink_to("/sys")
    yield
    folder.unlink()
    aside.rename(folder)


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


class TestGlobalDevice:
    def test_off_by_default(self, one: D.Context) -> None:
        """Nothing is configured, and results are plain handles."""
        assert D.global_device() is None
        task = D.spawn(block, 1)
        D.wait(task)
        assert type(task._outcome) is D.DRef
        assert task._core.devices is None

    def test_limits(self, caching: Callable[..., bool]) -> None:
        """Each worker gets its share of the percentage, those that come later change the shares."""
        assert caching() is True
        device = D.global_device()
        assert isinstance(device, RecencyAllocator)
        assert (device.mem_limit, device.device_limit) == (mem_limit(MIB, 30, 1), 16384 * MIB)
        with D.Context(driver=D.InlineDriver({1: 1, 2: 1, 3: 1})) as context:
            D.fetch(D.spawn(int))
            devices = [D.global_device(p.pid) for p in context.procs]
            assert {d.mem_limit for d in devices} == {mem_limit(MIB, 30, 3)}  # type: ignore[union-attr]
            assert len(set(devices)) == 3
        assert caching(50, 1) is True
        again = D.global_device()
        assert isinstance(again, RecencyAllocator)
        assert again is not device
        assert (again.mem_limit, again.device_limit, again.policy) == (MIB // 2, MIB, "MRU")

    def test_some_workers_only(self, caching: Callable[..., bool]) -> None:
        """`processes` names those that spill."""
        with D.Context(driver=D.InlineDriver({1: 1, 2: 1})):
            assert caching(30, processes=[2]) is True
            assert D.global_device(1) is None
            assert isinstance(D.global_device(2), RecencyAllocator)
            for bad in ([], [3], "12", 1):
                with pytest.raises(InvalidOptionError, match="processes"):
                    caching(30, processes=bad)

    def test_results_spill(self, context: D.Context, caching: Callable[..., bool]) -> None:
        """Without any option on a task, in contexts that run already; values are right, memory stays in its limit."""
        D.fetch(D.spawn(int))
        assert caching(20, policy="LRU") is True
        tasks = [D.spawn(block, n) for n in range(20)]
        for _ in range(2):
            assert [D.fetch(D.spawn(first, task)) for task in tasks] == list(range(20))
        devices = [D.global_device(p.pid) for p in context.procs]
        for device in devices:
            assert isinstance(device, RecencyAllocator)
            assert device.mem_used <= device.mem_limit
        assert sum(d.stats.evictions for d in devices) > 0  # type: ignore[union-attr]

    def test_what_stays_in_memory(self, one: D.Context, caching: Callable[..., bool]) -> None:
        """Numbers, small values, and what refers to something of this process."""
        caching(30)
        chunk = D.tochunk(1)
        for value in (1, None, "short", b"x" * 1023, [chunk] * 1000, {"a": chunk, "b": block(1)}):
            kept = D.fetch(D.spawn(lambda v=value: v), raw=True).handle
            assert type(kept) is D.DRef, value
        assert type(D.fetch(D.spawn(block, 1), raw=True).handle) is spilling.StoredDRef
        assert type(D.tochunk(block(1)).handle) is spilling.StoredDRef
        assert type(D.tochunk([chunk] * 1000).handle) is D.DRef

    def test_switching_off(self, one: D.Context, caching: Callable[..., bool]) -> None:
        """New results stay in memory, what was spilled can still be read."""
        caching(10)
        tasks = [D.spawn(block, n) for n in range(6)]
        D.waitall(tasks)
        D.disable_disk_caching()
        assert D.global_device() is None
        assert type(D.fetch(D.spawn(block, 1), raw=True).handle) is D.DRef
        assert [D.fetch(task)[0] for task in tasks] == list(range(6))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"ram_percentage_limit": 0},
            {"ram_percentage_limit": 101},
            {"ram_percentage_limit": "30"},
            {"ram_percentage_limit": True},
            {"disk_limit_mb": 0},
            {"disk_limit_mb": -1},
            {"disk_limit_mb": "1"},
            {"policy": "FIFO"},
        ],
        ids=str,
    )
    def test_bad_settings(self, caching: Callable[..., bool], arguments: dict[str, Any]) -> None:
        """They are refused, and nothing is switched on."""
        with pytest.raises(ValueError, match="must be"):
            caching(**arguments)
        assert D.global_device() is None

    def test_a_folder_that_cant_be(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A file in its place is an error at once."""
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidOptionError, match="storage folder"):
            D.enable_disk_caching(directory=tmp_path / "file")
        assert D.global_device() is None
        forget_settings()

    def test_total_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """psutil's number where it is installed, else the system's: the same."""
        psutil = pytest.importorskip("psutil")
        there = psutil.virtual_memory().total
        assert module.total_memory() == there
        monkeypatch.setitem(sys.modules, "psutil", None)
        assert module.total_memory() == pytest.approx(there, rel=0.01)


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def _off(self) -> Iterator[None]:
        forget_settings()
        yield
        forget_settings()

    def test_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On: 8 GiB in memory, 32 GiB on disk, MRU."""
        monkeypatch.setenv("OTEL_TIMESPAN_SPILL", "on")
        device = D.global_device()
        assert isinstance(device, RecencyAllocator)
        assert (device.mem_limit, device.device_limit, device.policy) == (8 * 1024 * MIB, 32 * 1024 * MIB, "MRU")
        monkeypatch.setenv("OTEL_TIMESPAN_SPILL", "off")
        assert D.global_device() is None

    def test_all_of_them(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Sizes with units, the policy, the folder; a call wins over them."""
        for name, value in {"": "1", "_MEMORY": "100KiB", "_DISK": "1.5mb", "_POLICY": "lru", "_DIR": tmp_path}.items():
            monkeypatch.setenv(f"OTEL_TIMESPAN_SPILL{name}", str(value))
        with D.Context(threads=1):
            tasks = [D.spawn(block, n) for n in range(4)]
            assert [D.fetch(task)[0] for task in tasks] == [0, 1, 2, 3]
            device = D.global_device()
            assert isinstance(device, RecencyAllocator)
            assert (device.mem_limit, device.device_limit, device.policy) == (100 * KIB, 1_500_000, "LRU")
            assert list((tmp_path / "worker-1").iterdir())
            D.disable_disk_caching()
            assert D.global_device() is None

    @pytest.mark.parametrize(
        ("name", "value"),
        [("", "maybe"), ("_MEMORY", "lots"), ("_MEMORY", "0"), ("_DISK", "-1"), ("_DISK", "1 XB"), ("_POLICY", "FIFO")],
    )
    def test_wrong_values(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        """They are named before any task runs."""
        monkeypatch.setenv("OTEL_TIMESPAN_SPILL", "on")
        monkeypatch.setenv(f"OTEL_TIMESPAN_SPILL{name}", value)
        with (
            D.Context(threads=1),
            pytest.raises(InvalidOptionError, match=f"OTEL_TIMESPAN_SPILL{name}='{value}'"),
        ):
            D.spawn(pytest.fail)

    def test_files_go_with_the_process(self, tmp_path: Path) -> None:
        """At the end of a program that spilled nothing is left of it, and it ends well."""
        said = run(
            f"""
            import os
            os.environ |= {{"OTEL_TIMESPAN_SPILL": "on", "OTEL_TIMESPAN_SPILL_MEMORY": "100KiB"}}
            os.environ["TMPDIR"] = {str(tmp_path)!r}
            from otel_timespan import dagger as D
            tasks = [D.spawn(bytearray, 40_000) for _ in range(6)]
            print(sum(len(D.fetch(task)) for task in tasks), len(os.listdir({str(tmp_path)!r})))
            """
        )
        assert said.split() == ["240000", "1"]
        assert not list(tmp_path.iterdir())


@dataclass
class Holder:
    """Something with a field."""

    inside: Any


@dataclass(slots=True)
class Slotted:
    """Something with a slot."""

    inside: Any


class TestSafety:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: x,
            lambda x: [x],
            lambda x: {"a": [x]},
            lambda x: {1: (2, {3: x})},
            lambda x: Holder([Slotted(x)]),
            lambda x: functools.partial(len, x),
            lambda x: [0] * 5000 + [x],
        ],
    )
    def test_what_refers_to_this_process(self, one: D.Context, wrap: Callable[[Any], Any]) -> None:
        """Tasks, thunks, chunks, handles, shards and pointers, at the top, in containers and in fields."""
        chunk = D.tochunk(1)
        with pytest.warns(DeprecationWarning) if not D.lazy._warned else _nothing():  # type: ignore[attr-defined]
            thunk = D.delayed(len)()
        pointer = ctypes.POINTER(ctypes.c_int)
        for bound in (D.spawn(int), thunk, chunk, chunk.handle, D.shard(int), pointer(), ctypes.c_void_p(1)):
            assert not storage_safe(wrap(bound)), bound
        assert not storage_safe(wrap((pointer * 2)()))

    def test_arrays_of_objects(self) -> None:
        """The elements count, of records too; plain arrays are not looked into."""
        np = pytest.importorskip("numpy")
        array = np.empty(3, object)
        assert storage_safe(array)
        array[1] = D.tochunk(1)
        assert not storage_safe(array)
        records = np.zeros(2, dtype=[("a", int), ("b", object)])
        records[1]["b"] = D.tochunk(1)
        assert not storage_safe(records)
        assert storage_safe(np.zeros(1000))

    def test_what_is_safe(self) -> None:
        """Plain values of any depth, cycles, large ones, functions and classes."""
        cycle: list[Any] = []
        cycle.append(cycle)
        for value in (1, "a", None, [{}], cycle, [1] * 1_000_000, Holder(Slotted(1)), len, Holder, ctypes.c_int(1)):
            assert storage_safe(value)

    def test_objects_that_cant_be_looked_at(self) -> None:
        """Nothing is raised: they stay in memory."""

        class Hostile(list[Any]):
            def __iter__(self) -> Any:
                raise RuntimeError

        assert not storage_safe(Hostile())


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


class TestEvents:
    def test_spilled_and_back(self, one: D.Context, lru: RecencyAllocator) -> None:
        """A result that makes others go, and one that comes back, are waits; what goes is an evict, in that order."""
        log = ts.LocalEventLog()
        one.log_sink = log
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
        D.waitall(tasks)
        infos = [D.fetch(task, raw=True).handle.info for task in tasks]
        reader = D.spawn(first, tasks[0])
        D.fetch(reader)
        events = [e for e in log.get_logs(raw=True)[1] if e.category in ("evict", "storage_wait")]
        seen = [(e.category, e.phase, getattr(e.timeline, "data", None)) for e in events]
        a, b, _ = infos
        assert seen == [
            ("evict", "start", a),
            ("evict", "finish", a),
            ("storage_wait", "start", None),
            ("storage_wait", "finish", None),
            ("evict", "start", b),
            ("evict", "finish", b),
            ("storage_wait", "start", None),
            ("storage_wait", "finish", a),
        ]
        assert {e.timeline.reason for e in events if e.category == "evict"} == {"spilled"}
        written, read = (e for e in events if e.category == "storage_wait" and e.phase == "finish")
        assert (written.id.thunk_id, read.id.thunk_id) == (tasks[2].id, reader.id)
        assert (written.id.processor, written.timeline.f) == (D.ThreadProc(1, 1), block)
        assert read.timeline.device_type is RecencyAllocator

    def test_a_fetch_that_waits(self, one: D.Context, tmp_path: Path) -> None:
        """Outside of bodies the waiting task is number 0."""
        log = ts.LocalEventLog()
        one.log_sink = log
        task = D.spawn(block, D.Options(storage=PickleFileDevice(tmp_path)), 1)
        D.fetch(task)
        waits = [e for e in log.get_logs(raw=True)[1] if e.category == "storage_wait" and e.phase == "finish"]
        assert [(e.id.thunk_id, e.id.processor, e.timeline.data) for e in waits] == [
            (task.id, D.ThreadProc(1, 1), None),
            (0, D.OSProc(1), None),
        ]

    def test_each_end_counts_once(self, one: D.Context, lru: RecencyAllocator) -> None:
        """What dies in memory leaves it then, what dies on the device left it before."""
        log = ts.LocalEventLog()
        one.log_sink = log
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
        handles = {D.fetch(task, raw=True).handle.number for task in tasks}
        del tasks
        gc.collect()
        evicts = [e.timeline for e in log.get_logs(raw=True)[1] if e.category == "evict" and e.phase == "finish"]
        assert sorted((t.reason, t.in_memory) for t in evicts if t.data.handle in handles) == [
            ("released", False),
            ("released", True),
            ("released", True),
            ("spilled", True),
        ]

    def test_opentelemetry(self, one: D.Context, lru: RecencyAllocator) -> None:
        """The counter counts what left memory; at detail "scheduler" waits and evicts are spans."""
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        meters = MeterProvider([reader], shutdown_on_exit=False)
        with ts.OTelLog(tracer_provider=tracers, meter_provider=meters, detail="scheduler", root_quiet_s=0.01) as log:
            one.log_sink = log
            with ts.dag("spilling"):
                tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
                assert D.fetch(D.spawn(first, tasks[0])) == 0
                del tasks
                gc.collect()
            log.flush()
            points = {
                metric.name: metric.data.data_points
                for resource in reader.get_metrics_data().resource_metrics  # type: ignore[union-attr]
                for scope in resource.scope_metrics
                for metric in scope.metrics
            }
            one.log_sink = ts.NoOpLog()
        (count,) = points["timespan.evict.count"]
        assert count.value == 2 + 2 + 1  # two spilled, two died in memory, and the int of `first`
        spans = [span for span in exporter.get_finished_spans() if span.name in ("storage_wait", "evict")]
        assert sum(span.name == "storage_wait" for span in spans) == 2
        assert {(span.attributes or {}).get("timespan.evict.reason") for span in spans if span.name == "evict"} == {
            "spilled",
            "released",
        }
        root = next(span for span in exporter.get_finished_spans() if span.name == "dag spilling")
        assert all(span.parent and span.parent.span_id == root.context.span_id for span in spans)

    def test_moves(self, one: D.Context, tmp_path: Path) -> None:
        """An argument that was read from a device was moved, one that was in memory was not."""
        log = ts.LocalEventLog()
        one.log_sink = log
        tight = RecencyAllocator(50 * KIB, PickleFileDevice(tmp_path), MIB)
        tasks = [D.spawn(block, D.Options(storage=tight), n) for n in range(2)]
        both = D.spawn(lambda a, b: None, *tasks)
        D.fetch(both)
        moves = [e for e in log.get_logs(raw=True)[1] if e.category == "move" and e.phase == "finish"]
        kinds = [e.timeline.kind for e in moves if e.id.thunk_id == both.id]
        assert kinds == ["value", "chunk", "task"]  # the second one's coming drove the first one out again

    @pytest.mark.parametrize("how", ["returned", "restored", "given"])
    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "device"])
    def test_data_that_no_body_made(
        self, one: D.Context, lru: RecencyAllocator, tmp_path: Path, how: str, stored: bool
    ) -> None:
        """A chunk of `tochunk` that becomes a result counts while it is in memory, and its end is in the log."""
        total = ts.BytesAllocd()
        log = ts.MultiEventLog()
        log["bytes"] = total
        one.log_sink = log
        chunk = D.tochunk(block(1), device=lru if stored else None)
        tasks = [passes_on(chunk, how) for _ in range(2)]
        D.waitall(tasks)
        ts.get_logs(log)
        assert total.value == 40 * KIB
        if stored:
            others = [D.tochunk(block(2), device=lru) for _ in range(2)]  # made by hand: not a result
            ts.get_logs(log)
            assert total.value == 0
            assert D.fetch(chunk) == block(1)
            ts.get_logs(log)
            assert total.value == 40 * KIB
            del others
        del tasks, chunk
        gc.collect()
        ts.get_logs(log)
        assert total.value == 0
        one.log_sink = ts.NoOpLog()

    def test_pictures(self, one: D.Context, lru: RecencyAllocator) -> None:
        """The Chrome trace shows the waits by default."""
        from otel_timespan import viz

        log = ts.LocalEventLog()
        one.log_sink = log
        tasks = [D.spawn(block, D.Options(storage=lru), n) for n in range(3)]
        D.waitall(tasks)
        assert '"storage_wait' in str(viz.show_logs(log.get_logs(raw=True), "chrome_trace"))


def passes_on(chunk: D.Chunk, how: str) -> D.DTask:
    """A task whose result is that chunk."""
    if how == "returned":
        return D.spawn(lambda: chunk)
    if how == "restored":
        return D.spawn(pytest.fail, D.Options(restore=lambda task: chunk))
    return D.spawn(lambda x: x, chunk)


def test_readable_state(one: D.Context, caching: Callable[..., bool]) -> None:
    """`eager_state()` says how full the devices are."""
    D.fetch(D.spawn(int))
    state = D.eager_state()
    assert state is not None
    assert state.worker_storage_pressure == state.worker_storage_capacity == {}
    caching(50)
    task = D.spawn(block, 1)
    D.wait(task)
    device = D.global_device()
    assert state.worker_storage_pressure == {1: {device: 40 * KIB}}
    assert state.worker_storage_capacity == {1: {device: MIB // 2}}
    assert D.fetch(task)[0] == 1


def test_sizes_of_objects() -> None:
    """An object counts what its attributes take; so spilling sees it."""
    np = pytest.importorskip("numpy")
    held = Holder(np.zeros(10_000))
    assert 80_000 <= D.approx_size(held) <= 81_000  # type: ignore[operator]
    assert 800_000 <= D.approx_size([held] * 10) <= 810_000  # type: ignore[operator]
    round_ = Holder(None)
    round_.inside = round_
    assert D.approx_size(round_) is not None


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
