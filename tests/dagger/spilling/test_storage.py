"""Storage devices with real files, and what spills when memory gets tight."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import stat
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_timespan.dagger.options.options import Options
from otel_timespan.dagger.storage import (
    RAM,
    GenericFileDevice,
    PickleFileDevice,
    RAMDevice,
    RecencyAllocator,
    StorageDevice,
    StorageError,
    StorageRef,
    StorageStats,
    Stored,
    mem_limit,
    release_dead,
)
from otel_timespan.errors import InvalidOptionError, NotCallableError, TimespanError
from tests.dagger.spilling.blocks import file_size_limit, run


def forty(device: StorageDevice, text: str = "", **more: Any) -> StorageRef:
    """A value that counts as 40 bytes."""
    return StorageRef(text or object(), device, nbytes=40, **more)


class TestMemory:
    def test_values_stay_as_they_are(self) -> None:
        """Memory gives back the very object, until it is deleted."""
        value = object()
        ref = StorageRef(value)
        assert ref.read() is value
        ref.delete()
        ref.delete()
        with pytest.raises(StorageError, match="not in memory"):
            ref.read()

    def test_sizes(self) -> None:
        """The size is estimated unless given."""
        assert StorageRef(bytes(100)).nbytes == 100
        assert StorageRef(bytes(100), nbytes=5).nbytes == 5

    def test_only_devices_are_devices(self) -> None:
        """Anything else is refused, for an option too."""
        with pytest.raises(InvalidOptionError, match="storage device"):
            StorageRef(1, "disk")  # type: ignore[arg-type]
        assert Options(storage=RAM).storage is RAM

    def test_dead_references_are_released(self, tmp_path: Path) -> None:
        """What nobody refers to any more is deleted by the next operation."""
        device = PickleFileDevice(tmp_path)
        ref = StorageRef([1], device)
        assert len(list(tmp_path.iterdir())) == 1
        del ref
        gc.collect()
        release_dead()
        assert not list(tmp_path.iterdir())


class TestPickleFiles:
    @pytest.mark.parametrize("filters", [(), ((zlib.compress, zlib.decompress),)], ids=["plain", "zlib"])
    @pytest.mark.parametrize("value", [None, {"a": [1, 2]}, b"x" * 3_000_000, "ä"], ids=["none", "dict", "big", "text"])
    def test_round_trip(self, tmp_path: Path, value: Any, filters: Any) -> None:
        """Values come back equal, big ones and filtered ones too; deleting removes the file."""
        ref = StorageRef(value, PickleFileDevice(tmp_path, filters))
        assert ref.read() == value
        assert ref.read() == value
        ref.delete()
        assert not list(tmp_path.iterdir())
        with pytest.raises(StorageError, match="any more"):
            ref.read()

    def test_arrays(self, tmp_path: Path) -> None:
        """Out-of-band capable values such as arrays come back equal."""
        np = pytest.importorskip("numpy")
        array = np.arange(100_000).reshape(100, 1000)
        assert (StorageRef(array, PickleFileDevice(tmp_path)).read() == array).all()

    def test_filters_apply_in_order(self, tmp_path: Path) -> None:
        """The stages are undone in the reverse order."""
        stages = [(zlib.compress, zlib.decompress), (lambda b: b[::-1], lambda b: b[::-1])]
        ref = StorageRef("x" * 1000, PickleFileDevice(tmp_path, stages))
        assert ref.read() == "x" * 1000
        (path,) = tmp_path.iterdir()
        assert path.stat().st_size < 200
        with pytest.raises(NotCallableError, match="pair of functions"):
            PickleFileDevice(tmp_path, [zlib.compress])  # type: ignore[list-item]

    def test_files_are_private(self, tmp_path: Path) -> None:
        """Only the owner can read what is spilled."""
        ref = StorageRef(1, PickleFileDevice(tmp_path))
        (path,) = tmp_path.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ref.read() == 1

    def test_tags_name_files(self, tmp_path: Path) -> None:
        """A tag is the file's name; it can't lead elsewhere, and two values can't share it."""
        device = PickleFileDevice(tmp_path)
        ref = StorageRef(1, device, tag="root", leaf_tag="result.pkl")
        assert [p.name for p in tmp_path.iterdir()] == ["result.pkl"]
        with pytest.raises(InvalidOptionError, match="in use"):
            StorageRef(2, device, leaf_tag="result.pkl")
        for bad in ("../x", "a/b", "", "..", "."):
            with pytest.raises(InvalidOptionError, match="name of a file"):
                StorageRef(2, device, tag=bad)
        ref.delete()
        assert StorageRef(2, device, tag="result.pkl").read() == 2

    def test_retained_files_stay(self, tmp_path: Path) -> None:
        """With `retain` the file outlives the value, also when it is set later."""
        device = PickleFileDevice(tmp_path)
        StorageRef(1, device, tag="first", retain=True).delete()
        second = StorageRef(2, device, tag="second")
        second.retain()
        second.delete()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second"]
        assert pickle.loads((tmp_path / "first").read_bytes()) == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: data[:10],
            lambda data: data[:-1],
            lambda data: bytes([data[0] ^ 1]) + data[1:],
            lambda data: data[:50] + bytes([data[50] ^ 128]) + data[51:],
            lambda data: data + b"x",
            lambda data: os.urandom(len(data)),
        ],
        ids=["empty", "short", "cut", "first bit", "some bit", "longer", "noise"],
    )
    def test_damage_is_found(self, tmp_path: Path, damage: Any) -> None:
        """A damaged spill file is an error that names it, never a wrong value."""
        ref = StorageRef(list(range(100)), PickleFileDevice(tmp_path))
        (path,) = tmp_path.iterdir()
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(StorageError, match="damaged") as caught:
            ref.read()
        assert str(path) in str(caught.value)
        assert isinstance(caught.value, OSError)
        assert isinstance(caught.value, TimespanError)

    def test_a_missing_file_is_an_error(self, tmp_path: Path) -> None:
        """A file that somebody removed can't be read; deleting the value is no error."""
        ref = StorageRef(1, PickleFileDevice(tmp_path))
        next(tmp_path.iterdir()).unlink()
        with pytest.raises(StorageError, match="can't be read"):
            ref.read()
        ref.delete()

    def test_what_cant_be_read_back(self, tmp_path: Path) -> None:
        """A class that fails to unpickle is an error with that as its cause."""
        ref = StorageRef(Stubborn(), PickleFileDevice(tmp_path))
        with pytest.raises(StorageError, match="can't be made into a value") as caught:
            ref.read()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_what_cant_be_pickled(self, tmp_path: Path) -> None:
        """Such a value is refused, and nothing stays behind."""
        with pytest.raises(StorageError, match="a lock can't be pickled"):
            StorageRef(threading.Lock(), PickleFileDevice(tmp_path))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("filters", [(), ((bytes, bytes),)], ids=["streamed", "filtered"])
    def test_a_full_disk(self, tmp_path: Path, filters: Any) -> None:
        """A write that the system refuses half-way is a clear error and leaves nothing behind."""
        device = PickleFileDevice(tmp_path, filters)
        with file_size_limit(100_000), pytest.raises(StorageError, match=r"can't be written.*free space") as caught:
            StorageRef(os.urandom(1_000_000), device)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EFBIG
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_vanished(self, tmp_path: Path) -> None:
        """Writing to a folder that is gone is a clear error."""
        device = PickleFileDevice(tmp_path / "spill")
        (tmp_path / "spill").rmdir()
        with pytest.raises(StorageError, match="can't be written"):
            StorageRef(1, device)

    def test_a_read_only_folder(self, tmp_path: Path) -> None:
        """Writing to a folder without the right to is a clear error."""
        script = f"""
            import os
            from otel_timespan.dagger.storage import PickleFileDevice, StorageError, StorageRef
            device = PickleFileDevice({str(tmp_path)!r})
            os.chmod(device.directory, 0o500)
            if os.geteuid() == 0:
                os.setuid(65534)  # root may write everywhere
            try:
                StorageRef(1, device)
            except StorageError as error:
                print(error)
        """
        assert "can't be written ([Errno 13]" in run(script)
        tmp_path.chmod(0o700)

    def test_a_folder_that_cant_be(self, tmp_path: Path) -> None:
        """A file in the way, or no path at all, is refused when the device is made."""
        (tmp_path / "file").write_text("")
        for bad in (tmp_path / "file", tmp_path / "file" / "below", 3):
            with pytest.raises(InvalidOptionError, match="can't be a storage folder"):
                PickleFileDevice(bad)  # type: ignore[arg-type]

    def test_the_end_of_the_process_cleans_up(self, tmp_path: Path) -> None:
        """Files of living values, and the process's own folder, go at exit; retained files and a parent's stay."""
        script = f"""
            import os, sys
            from otel_timespan.dagger.storage import PickleFileDevice, StorageRef
            own, given = PickleFileDevice(), PickleFileDevice({str(tmp_path)!r})
            refs = [StorageRef(1, own), StorageRef(2, given), StorageRef(3, given, tag="kept", retain=True)]
            child = os.fork()
            if child == 0:
                extra = StorageRef(4, given, tag="child")
                refs.clear()
                sys.exit()
            assert os.waitpid(child, 0)[1] == 0
            assert [ref.read() for ref in refs] == [1, 2, 3]
            assert not (given.directory / "child").exists()
            print(own.directory)
        """
        assert not Path(run(script).strip()).exists()
        assert [p.name for p in tmp_path.iterdir()] == ["kept"]


class Stubborn:
    """Pickles, but does not unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return divmod, (1, 0)


class TestGenericFiles:
    def test_streams_and_paths(self, tmp_path: Path) -> None:
        """The functions get an open file, or a path."""
        streamed = GenericFileDevice(lambda v, f: f.write(v.encode()), lambda f: f.read().decode(), True, tmp_path)
        named = GenericFileDevice(lambda v, p: Path(p).write_text(v), lambda p: Path(p).read_text(), False, tmp_path)
        one, two = StorageRef("one", streamed, tag="one.txt"), StorageRef("two", named, tag="two.txt")
        assert (one.read(), two.read()) == ("one", "two")
        assert (tmp_path / "one.txt").read_text() == "one"
        assert (tmp_path / "two.txt").read_text() == "two"

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        """What the functions raise arrives as the cause, and a failed write leaves nothing."""

        def fails(*_: Any) -> None:
            raise ValueError("bad format")

        with pytest.raises(StorageError, match="can't be serialized") as caught:
            StorageRef(1, GenericFileDevice(fails, pickle.load, True, tmp_path))
        assert isinstance(caught.value.__cause__, ValueError)
        assert not list(tmp_path.iterdir())
        ref = StorageRef(1, GenericFileDevice(pickle.dump, fails, True, tmp_path))
        with pytest.raises(StorageError, match="can't be deserialized: ValueError"):
            ref.read()
        with pytest.raises(StorageError, match="can't be written"):
            StorageRef(1, GenericFileDevice(lambda v, p: None, pickle.load, False, tmp_path))

    def test_bad_functions_are_refused(self, tmp_path: Path) -> None:
        """Functions must be callable, and a mapped file needs the stream form."""
        with pytest.raises(NotCallableError, match="deserialize"):
            GenericFileDevice(pickle.dump, 3)  # type: ignore[arg-type]
        with pytest.raises(InvalidOptionError, match="mmap needs use_io"):
            GenericFileDevice(pickle.dump, pickle.load, False, tmp_path, mmap=True)


class TestRecency:
    @pytest.fixture
    def lru(self, tmp_path: Path) -> RecencyAllocator:
        return RecencyAllocator(100, PickleFileDevice(tmp_path), 1000)

    def test_the_least_recently_used_goes_first(self, lru: RecencyAllocator) -> None:
        """Three of 40 in 100: the third demotes the first; reading that is a miss and demotes the second."""
        a, b, c = (forty(lru, text) for text in "abc")
        assert [lru.in_memory(r.stored) for r in (a, b, c)] == [False, True, True]
        assert lru.stats == StorageStats(hits=0, misses=0, evictions=1)
        assert a.read() == "a"
        assert [lru.in_memory(r.stored) for r in (a, b, c)] == [True, False, True]
        assert lru.stats == StorageStats(hits=0, misses=1, evictions=2)
        assert (a.read(), c.read()) == ("a", "c")
        assert lru.stats.hits == 2
        assert (lru.mem_used, lru.device_used) == (80, 40)

    def test_reading_makes_recent(self, lru: RecencyAllocator) -> None:
        """A hit saves a value from being the next to go."""
        a, b = forty(lru, "a"), forty(lru, "b")
        a.read()
        c = forty(lru, "c")
        assert [lru.in_memory(r.stored) for r in (a, b, c)] == [True, False, True]

    def test_the_most_recently_used_goes_first(self, tmp_path: Path) -> None:
        """With MRU the one before the newcomer goes."""
        mru = RecencyAllocator(100, PickleFileDevice(tmp_path), 1000, policy="MRU")
        refs = [forty(mru, text) for text in "abc"]
        assert [mru.in_memory(r.stored) for r in refs] == [True, False, True]
        assert [r.read() for r in refs] == ["a", "b", "c"]

    def test_files_follow_values(self, lru: RecencyAllocator, tmp_path: Path) -> None:
        """There is a file exactly for what is not in memory."""
        refs = [forty(lru, text) for text in "abcd"]
        assert len(list(tmp_path.iterdir())) == 2
        for ref in refs:
            ref.delete()
        assert not list(tmp_path.iterdir())
        assert (lru.mem_used, lru.device_used) == (0, 0)
        with pytest.raises(StorageError, match="not in this storage"):
            refs[0].read()

    def test_too_large(self, tmp_path: Path) -> None:
        """A value larger than either limit is refused, and nothing moves."""
        small = RecencyAllocator(100, PickleFileDevice(tmp_path), 50)
        kept = forty(small, "a")
        for size in (60, 101):
            with pytest.raises(StorageError, match="larger than a limit"):
                StorageRef("x", small, nbytes=size)
        assert small.in_memory(kept.stored)

    def test_when_both_are_full(self, tmp_path: Path) -> None:
        """No room above or below is an error; what is there can still be read, without being promoted."""
        full = RecencyAllocator(100, PickleFileDevice(tmp_path), 40)
        a, b, c = (forty(full, text) for text in "abc")
        with pytest.raises(StorageError, match=r"no room for 40 bytes: memory holds 80 of 100, the device 40 of 40"):
            forty(full, "d")
        assert [r.read() for r in (a, b, c, a)] == ["a", "b", "c", "a"]
        assert not full.in_memory(a.stored)
        assert full.stats == StorageStats(hits=2, misses=2, evictions=1)

    def test_what_does_not_fit_below_is_skipped(self, tmp_path: Path) -> None:
        """The oldest stays in memory where the device can't take it; the next oldest goes."""
        tight = RecencyAllocator(100, PickleFileDevice(tmp_path), 60)
        big = StorageRef("big", tight, nbytes=60)
        small = StorageRef("small", tight, nbytes=30)
        first = StorageRef("first", tight, nbytes=20)
        assert [tight.in_memory(r.stored) for r in (big, small, first)] == [False, True, True]
        second = StorageRef("second", tight, nbytes=50)
        assert tight.in_memory(second.stored)
        with pytest.raises(StorageError, match="no room"):
            StorageRef("third", tight, nbytes=20)
        big.delete()
        assert StorageRef("third", tight, nbytes=20).read() == "third"
        assert [tight.in_memory(r.stored) for r in (small, first, second)] == [False, True, True]

    def test_a_failing_device_loses_nothing(self, tmp_path: Path) -> None:
        """Data is written below before it is dropped above: when that fails it is still in memory."""
        lru = RecencyAllocator(100, PickleFileDevice(tmp_path), 1000)
        lock = threading.Lock()
        unpicklable, plain = StorageRef(lock, lru, nbytes=60), forty(lru, "plain")
        third = forty(lru, "third")  # the device refuses the oldest, so the next oldest goes
        assert [lru.in_memory(r.stored) for r in (unpicklable, plain, third)] == [True, False, True]
        os.rename(tmp_path, tmp_path.with_name("away"))
        with pytest.raises(StorageError, match="no room") as caught:
            forty(lru, "fourth")
        assert isinstance(caught.value.__cause__, StorageError)
        assert unpicklable.read() is lock
        assert third.read() == "third"
        os.rename(tmp_path.with_name("away"), tmp_path)
        assert plain.read() == "plain"

    def test_a_damaged_spill_file_is_reported_again_and_again(self, lru: RecencyAllocator, tmp_path: Path) -> None:
        """The value stays lost, the others fine, and the accounts right."""
        a, b, c = (forty(lru, text) for text in "abc")
        (path,) = tmp_path.iterdir()
        path.write_bytes(b"nonsense")
        for _ in range(2):
            with pytest.raises(StorageError, match="damaged"):
                a.read()
        assert (b.read(), c.read()) == ("b", "c")
        a.delete()
        assert (lru.mem_used, lru.device_used) == (80, 0)

    def test_retained_values_go_below(self, tmp_path: Path) -> None:
        """With `retain`, of the allocator or a reference, a deleted value is kept on the device."""
        keeping = RecencyAllocator(100, PickleFileDevice(tmp_path), 1000, retain=True)
        a, b = forty(keeping, "a", leaf_tag="a"), forty(keeping, "b", leaf_tag="b")
        c = forty(keeping, "c", leaf_tag="c")
        for ref in (a, b, c):
            ref.delete()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]
        assert pickle.loads((tmp_path / "c").read_bytes()) == "c"
        lru = RecencyAllocator(100, PickleFileDevice(tmp_path), 1000)
        forty(lru, "d", leaf_tag="d", retain=True).delete()
        forty(lru, "e", leaf_tag="e").delete()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "d"]

    def test_writing_again(self, lru: RecencyAllocator, tmp_path: Path) -> None:
        """A reference can be overwritten, in memory and on the device, without counting twice."""
        a, b, c = (forty(lru, text) for text in "abc")
        lru.write(a.stored, "A")
        lru.write(c.stored, "C")
        assert (lru.mem_used, lru.device_used) == (80, 40)
        assert [r.read() for r in (c, a, b)] == ["C", "A", "b"]
        assert len(list(tmp_path.iterdir())) == 1

    def test_dead_references_make_room(self, lru: RecencyAllocator) -> None:
        """A value that nobody refers to is not spilled but forgotten."""
        for text in "abcdef":
            forty(lru, text)
            gc.collect()
        release_dead()
        assert (lru.mem_used, lru.device_used) == (0, 0)
        assert lru.stats.evictions == 0

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ((0, RAM, 1), "mem_limit"),
            ((1, RAM, 0), "device_limit"),
            ((-1, RAM, 1), "mem_limit"),
            ((True, RAM, 1), "mem_limit"),
            (("1", RAM, 1), "mem_limit"),
            ((float("nan"), RAM, 1), "mem_limit"),
            ((1, "disk", 1), "device"),
            ((1, RAM, 1, "FIFO"), "policy"),
        ],
    )
    def test_bad_settings_are_refused(self, arguments: tuple[Any, ...], match: str) -> None:
        """Limits are more than 0, the policy is one of two, the device is one."""
        with pytest.raises(ValueError, match=match):
            RecencyAllocator(*arguments)

    def test_from_many_threads(self, tmp_path: Path) -> None:
        """Concurrent reads, writes and deletions keep values and accounts right."""
        lru = RecencyAllocator(200, PickleFileDevice(tmp_path), 100_000)
        errors: list[BaseException] = []

        def work(base: int) -> None:
            try:
                for n in range(20):
                    refs = [StorageRef((base, n, i), lru, nbytes=40) for i in range(4)]
                    assert [r.read() for r in refs] == [(base, n, i) for i in range(4)]
                    for ref in refs:
                        ref.delete()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(base,)) for base in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert (lru.mem_used, lru.device_used) == (0, 0)
        assert not list(tmp_path.iterdir())

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(st.tuples(st.sampled_from(["write", "read", "delete"]), st.integers(0, 7), st.integers(1, 60))),
        st.sampled_from(["LRU", "MRU"]),
    )
    def test_it_behaves_like_a_dict_with_limits(self, steps: list[tuple[str, int, int]], policy: str) -> None:
        """Whatever the operations: no value is lost or changed, no limit exceeded, the accounts agree."""
        allocator = RecencyAllocator(100, RAMDevice(), 150, policy)
        model: dict[int, tuple[Stored, Any]] = {}
        for step, (operation, key, size) in enumerate(steps):
            if operation == "write" and key not in model:
                stored = Stored(size)
                try:
                    allocator.write(stored, step)
                except StorageError:
                    assert not allocator.holds(stored)
                else:
                    model[key] = stored, step
            elif operation == "read" and key in model:
                assert allocator.read(model[key][0]) == model[key][1]
            elif operation == "delete" and key in model:
                allocator.delete(model.pop(key)[0])
            assert allocator.mem_used <= 100
            assert allocator.device_used <= 150
            sizes = [stored.nbytes for stored, _ in model.values()]
            assert allocator.mem_used + allocator.device_used == sum(sizes)
        for stored, value in model.values():
            assert allocator.read(stored) == value


class TestMemLimit:
    @pytest.mark.parametrize("total", [1, 16 << 30, 12_345_678_901])
    @pytest.mark.parametrize("processes", [1, 2, 3, 4])
    def test_the_share_of_a_process(self, total: int, processes: int) -> None:
        """A percentage of the memory, divided by the processes on the host."""
        limit = mem_limit(total, 30, processes)
        assert limit == total * 30 / 100 // processes
        assert isinstance(limit, int)

    @pytest.mark.parametrize(("percent", "processes"), [(0, 1), (101, 1), (-5, 1), (True, 1), ("30", 1), (30, 0)])
    def test_nonsense_is_refused(self, percent: Any, processes: int) -> None:
        """Percentages are from 1 to 100, of at least one process."""
        with pytest.raises(ValueError, match="must be"):
            mem_limit(1000, percent, processes)
