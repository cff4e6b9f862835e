"""Large values between processes: exported once into slabs, mapped by readers, alive after their owner."""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import mmap
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from otel_timespan.dagger.processes import maps as maps_module
from otel_timespan.dagger.processes import slabs as slabs_module
from otel_timespan.dagger.processes.mapping import HUGE, PAGE, FileMap, map_file, memory_file
from otel_timespan.dagger.processes.maps import COPIED, Block, Maps
from otel_timespan.dagger.processes.slabs import HOT, OUT_OF_BAND, SLAB, Exported, Slabs
from otel_timespan.errors import StorageError
from tests.backends import ROOT, eventually

pytestmark = pytest.mark.skipif(os.name != "posix", reason="maps of files")

OWNER = 7


def dumps(value: Any, callback: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    """Protocol 5, large buffers apart."""
    return pickle.dumps(value, 5, buffer_callback=callback)


def loads(header: Any, buffers: Sequence[memoryview]) -> Any:
    """The other way."""
    return pickle.loads(header, buffers=buffers)


class Pair:
    """An owner and a reader in one process, with what the head does: each slab's descriptor is passed once."""

    def __init__(self, limit: int | None = None) -> None:
        self.slabs, self.maps = Slabs(limit), Maps()
        self._passed: set[int] = set()
        self._lock = threading.Lock()

    def export(self, value: Any) -> Exported:
        exported = self.slabs.export(value, dumps)
        with self._lock:
            if exported.slab not in self._passed | {0}:
                self._passed.add(exported.slab)
                self.maps.add_slab(OWNER, exported.slab, os.dup(self.slabs.fd_of(exported.slab)))
        return exported

    def load(self, exported: Exported) -> Any:
        return self.maps.load(OWNER, exported, loads)

    def forget_retired(self) -> list[int]:
        retired = self.slabs.retired()
        for slab in retired:
            self.maps.forget(OWNER, slab)
        return retired

    def close(self) -> None:
        self.slabs.close()
        self.maps.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Without a limit."""
    made = Pair()
    yield made
    made.close()


@pytest.fixture
def limited() -> Iterator[Callable[[int], Pair]]:
    """Makes pairs with a limit."""
    made: list[Pair] = []

    def make(limit: int) -> Pair:
        made.append(Pair(limit))
        return made[-1]

    yield make
    for one in made:
        one.close()


def same(one: Any, other: Any) -> bool:
    """Equal in type, shape, values and in what may be written."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        alike = (one.dtype, one.shape, one.flags.writeable) == (other.dtype, other.shape, other.flags.writeable)
        return alike and bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def block_of(exported: Exported) -> Block:
    """Which one a value lies in."""
    return Block(OWNER, exported.slab, exported.offset)


def descriptors() -> list[str]:
    """What this process has open."""
    gc.collect()
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # that of the listing
            continue
    return sorted(found)


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to count descriptors in")

BIG = np.arange(200_000.0)  # 1.6 MB


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy that can't be written."""
    array = array.copy()
    array.flags.writeable = False
    return array


RECORDS = np.zeros(30_000, dtype=[("name", "U3"), ("at", "i8"), ("xyz", "f4", 3)])
RECORDS["at"] = np.arange(30_000)

VALUES = {
    "array": BIG,
    "columns first": np.asfortranarray(BIG.reshape(400, 500)),
    "transposed": BIG.reshape(400, 500).T,
    "every other": BIG[::2],
    "backwards": BIG[::-1],
    "a part": BIG[1000:150_000],
    "one number": np.array(3.5),
    "empty": np.empty((0, 5)),
    "records": RECORDS,
    "read-only": read_only(np.arange(100_000)),
    "objects": np.array([{"a": i} for i in range(20_000)], dtype=object),
    "bytes": b"abc" * 100_000,
    "bytearray": bytearray(b"abc" * 100_000),
    "text": "äbc" * 100_000,
    "nested": {"a": BIG, "b": [BIG[:7], {"c": (BIG.astype("f4"), b"x" * OUT_OF_BAND, None)}], "d": np.empty(0)},
    "many small ones": [np.full(100, i) for i in range(2000)],
    "at the edge": [np.zeros(OUT_OF_BAND + k, "u1") for k in (-1, 0, 1)],
    "number": 12,
}


# ---- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_a_value_arrives_as_it_was(pair: Pair, name: str) -> None:
    """What is loaded equals what was exported, and may be written where that might; nothing is left of it later."""
    exported = pair.export(VALUES[name])
    loaded = pair.load(exported)
    assert same(loaded, VALUES[name])
    del loaded
    assert pair.maps.released() == ([block_of(exported)] if exported.slab else [])
    pair.slabs.free(exported)
    assert pair.slabs.used == 0


def test_what_is_large_is_not_in_the_header(pair: Pair) -> None:
    """Headers are small, as they travel otherwise: large text, bytes and many small arrays lie in the block, too."""
    exported = {name: pair.export(value) for name, value in VALUES.items()}
    assert max(len(one.header or b"") for one in exported.values()) < OUT_OF_BAND
    assert {name for name, one in exported.items() if not one.slab} == {"one number", "empty", "number"}


def test_buffers_begin_at_pages(pair: Pair) -> None:
    """Each large buffer has pages of its own."""
    exported = pair.export([np.ones(n, "u1") for n in (OUT_OF_BAND, OUT_OF_BAND + 1)])
    assert [offset % PAGE for offset, _ in exported.buffers] == [0, 0]
    assert exported.nbytes == pair.slabs.used == 2 * OUT_OF_BAND + PAGE


def test_a_value_larger_than_a_slab_has_its_own(pair: Pair) -> None:
    """Values beyond 64 MiB go, too; their slab is for the next one."""
    large = np.zeros(SLAB + 1, "u1")
    large[-1] = 7
    small, exported = pair.export(BIG), pair.export(large)
    assert small.slab != exported.slab
    assert pair.load(exported)[-1] == 7
    assert pair.slabs.used == exported.nbytes + small.nbytes
    pair.slabs.free(exported)
    large[:] = 5
    again = pair.export(large)
    assert again[:3] == exported[:3] and same(pair.load(again), large)


def test_readers_write_for_themselves(pair: Pair) -> None:
    """What one reader writes neither another one nor the owner sees, nor who loads it later."""
    original = BIG.copy()
    exported = pair.export(original)
    one, other = pair.load(exported), pair.load(exported)
    one += 1
    assert same(other, BIG) and same(original, BIG) and same(pair.load(exported), BIG)
    original[:] = 0
    assert same(other, BIG) and same(one, BIG + 1)


def test_values_stay_while_others_come_and_go(pair: Pair) -> None:
    """Blocks that are freed and used again belong to nobody else."""
    kept = [(i, pair.load(pair.export(BIG + i))) for i in range(0, 40, 2)]
    for i in range(40):
        exported = pair.export(BIG - i)
        assert same(pair.load(exported), BIG - i)
        pair.slabs.free(exported)
    assert all(same(value, BIG + i) for i, value in kept)


def test_a_block_is_used_again(pair: Pair) -> None:
    """What was freed is where the next value goes, so that memory stays warm."""
    exported = pair.export(BIG)
    pair.slabs.free(exported)
    assert [pair.export(BIG + 1)[:3], pair.slabs.held] == [exported[:3], exported.nbytes]


def test_blocks_stay_what_they_are_when_they_get_large_pages(pair: Pair) -> None:
    """A block that is used again and again changes its pages below its readers, and nothing else."""
    value = np.arange(600_000.0)  # 4.8 MB, which begins and ends amid large pages
    first = pair.export(value)
    kept = pair.load(first)
    kept[0] = 5
    blocks = set()
    for i in range(2 * HOT + 2):
        exported = pair.export(value + i)
        blocks.add(exported[:3])
        loaded = pair.load(exported)
        assert same(loaded, value + i)
        loaded += 1
        assert same(pair.load(exported), value + i)
        pair.slabs.free(exported)
    assert len(blocks) == 1
    assert kept[0] == 5 and same(kept[1:], value[1:]) and same(pair.load(first), value)
    pair.slabs.free(first)
    pair.slabs.trim()
    assert pair.slabs.used == 0


@pytest.mark.parametrize("offset", [0, PAGE, HUGE - PAGE, HUGE, 5 * PAGE])
def test_large_maps_begin_where_large_pages_can(offset: int) -> None:
    """A map lies to 2 MiB as its part of the file does, and is that part."""
    file, nbytes = memory_file(4 * HUGE), HUGE + PAGE
    os.pwrite(file.number, b"first", offset)
    os.pwrite(file.number, b"last", offset + nbytes - 4)
    with map_file(FileMap, file.number, offset, nbytes, private=True).view() as view:
        assert (ctypes.addressof(ctypes.c_char.from_buffer(view)) - offset) % HUGE == 0
        assert bytes(view[:5]) == b"first" and bytes(view[nbytes - 4 : nbytes]) == b"last"


def large_pages_mapped() -> int:
    """Bytes that this process maps by large pages of files in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("ShmemPmdMapped:"))


def test_what_is_used_again_and_again_is_mapped_by_large_pages(pair: Pair) -> None:
    """After `HOT` uses a reader of 8 MB has its pages in four steps, where the system can do that."""
    try:
        trial = memory_file(HUGE)
        mapped = map_file(FileMap, trial.number, 0, HUGE, private=False)
        mapped.view()[0] = 1
        mapped.advise(slabs_module._MADV_COLLAPSE, 0, HUGE)
        large_pages_mapped()
    except OSError as error:
        pytest.skip(f"no large pages for files in memory: {error}")
    value = np.arange(1_000_000.0)
    pair.export(BIG)  # so that the next place is not one for large pages by itself

    def used_often() -> int:
        for _ in range(HOT + 1):
            pair.slabs.free(pair.export(value))
        exported = pair.export(value)
        before = large_pages_mapped()
        loaded = pair.load(exported)
        assert same(loaded, value)
        found = large_pages_mapped() - before
        pair.slabs.free(exported)
        return found

    assert any(used_often() == 4 * HUGE for _ in range(20))  # the system may have none left just now


# ---- who still reads --------------------------------------------------------------------------------------------


def test_each_load_is_told_when_nothing_is_left_of_it(pair: Pair) -> None:
    """Slices and views of views count; so does every load of a block."""
    exported = pair.export({"a": BIG, "b": BIG + 1})
    first, second = pair.load(exported), pair.load(exported)
    view = memoryview(first["b"][3:].reshape(-1, 1))
    del first
    gc.collect()
    assert pair.maps.released() == []
    del second
    assert pair.maps.released() == [block_of(exported)]
    assert view[0, 0] == 4
    del view
    assert [pair.maps.released(), pair.maps.released()] == [[block_of(exported)], []]


def test_small_blocks_are_free_at_once(pair: Pair) -> None:
    """A block that is copied has no reader, though its value lives."""
    exported = pair.export(np.ones(COPIED, "u1"))
    value = pair.load(exported)
    assert pair.maps.released() == [block_of(exported)]
    value += 1
    assert value.sum() == 2 * COPIED and same(pair.load(exported), np.ones(COPIED, "u1"))


class Refuses:
    """What can be pickled and not be read."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __setstate__(self, state: Any) -> None:
        self.seen = state["array"]
        raise LookupError("not here")


def test_an_error_of_the_reader_passes_and_keeps_nothing(pair: Pair) -> None:
    """What `loads` raises comes out; the map goes with the error."""
    exported = pair.export(Refuses(BIG))
    with pytest.raises(LookupError, match="not here") as caught:
        pair.load(exported)
    caught.value.__traceback__ = None
    del caught
    gc.collect()
    assert pair.maps.released() == [block_of(exported)]


def test_an_error_does_not_keep_the_map_of_its_frames(pair: Pair) -> None:
    """The traceback of a failed load holds no map of ours."""
    exported = pair.export(BIG)

    def refuse(header: Any, buffers: Any) -> Any:
        del header, buffers
        raise LookupError("not here")

    with pytest.raises(LookupError) as caught:
        pair.maps.load(OWNER, exported, refuse)
    assert pair.maps.released() == [block_of(exported)]
    assert caught.value.__traceback__ is not None


def test_where_no_map_can_be_made_the_value_is_copied(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has a bound of maps: beyond it values are copied, and the block is free at once."""

    exported = pair.export(BIG)
    monkeypatch.setattr(maps_module, "map_file", full)
    value = pair.load(exported)
    assert same(value, BIG)
    assert pair.maps.released() == [block_of(exported)]


def test_forgotten_owners_leave_their_values(pair: Pair) -> None:
    """Values that are there stay; what is not known is a clear error, and is told as released, too."""
    exported = pair.export(BIG)
    value = pair.load(exported)
    pair.maps.forget(OWNER + 1)
    assert same(pair.load(exported), BIG)
    pair.maps.forget(OWNER)
    pair.maps.released()
    with pytest.raises(StorageError, match=f"slab {exported.slab} of process {OWNER} can't .* not known here"):
        pair.load(exported)
    assert pair.maps.released() == [block_of(exported)]
    pair.close()
    value += 1
    assert same(value, BIG + 1)


def test_a_slab_that_is_known_is_not_added_twice(pair: Pair) -> None:
    """A descriptor that comes again is closed."""
    exported = pair.export(BIG)
    again = os.dup(pair.slabs.fd_of(exported.slab))
    pair.maps.add_slab(OWNER, exported.slab, again)
    with pytest.raises(OSError):
        os.fstat(again)
    assert same(pair.load(exported), BIG)


# ---- memory -----------------------------------------------------------------------------------------------------


class Raises:
    """What can't be pickled."""

    def __reduce__(self) -> Any:
        raise LookupError("not this one")


class Buffer(bytearray):
    """A type that is pickled as its buffer. It can't change its size while others look at that."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytearray, (pickle.PickleBuffer(self),)


class Strided:
    """A type whose buffer is not contiguous, which pickle refuses."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(memoryview(bytearray(4 * OUT_OF_BAND))[::2]),)


@pytest.mark.parametrize(
    ("bad", "error"), [(Raises(), LookupError), (Strided(), pickle.PicklingError), (lambda: 0, Exception)]
)
def test_what_pickle_refuses_leaves_nothing(pair: Pair, bad: Any, error: type[Exception]) -> None:
    """The pickler's error comes out as it is; no memory is held, and no buffer of the value stays locked."""
    grows = Buffer(2 * OUT_OF_BAND)
    with pytest.raises(error) as caught:
        pair.export([BIG, grows, bad])
    grows += b"not locked"
    assert caught.value.__traceback__ is not None
    assert [pair.slabs.used, pair.slabs.held] == [0, 0]


def test_the_buffers_of_a_value_are_let_go(pair: Pair) -> None:
    """What was exported may change its size afterwards."""
    grows = Buffer(2 * OUT_OF_BAND)
    assert pair.export(grows).slab
    grows += b"not locked"


def test_what_does_not_fit_is_refused_before_memory_is_taken(limited: Callable[[int], Pair]) -> None:
    """Beyond the limit there is a clear error; what is there stays, and room that is made can be used."""
    pair = limited(4 << 20)
    one, two = pair.export(BIG), pair.export(BIG)
    before = pair.slabs.held
    with pytest.raises(StorageError, match=rf"1601536 bytes more don't fit .*: 3203072 of {4 << 20} are in use"):
        pair.export(BIG)
    assert pair.slabs.held == before == pair.slabs.used == 2 * one.nbytes
    pair.slabs.free(two)
    assert same(pair.load(pair.export(BIG + 1)), BIG + 1)
    assert same(pair.load(one), BIG)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only whole slabs are given back")
def test_free_memory_counts_only_until_it_is_needed(limited: Callable[[int], Pair]) -> None:
    """Scattered free pages are given back where a large value needs the room."""
    pair = limited(8 << 20)
    small = np.ones(1 << 20, "u1")
    held = [pair.export(small) for _ in range(8)]
    for exported in held[::2]:
        pair.slabs.free(exported)
    large = np.ones(3 << 20, "u1")
    assert pair.slabs.held == 8 << 20
    exported = pair.export(large)
    assert pair.slabs.used == 7 << 20 and pair.slabs.held <= 8 << 20
    assert same(pair.load(exported), large)
    assert all(same(pair.load(one), small) for one in held[1::2])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory goes with the last descriptor")
def test_memory_that_is_given_back_is_free_though_others_have_descriptors(pair: Pair) -> None:
    """A slab without blocks is retired by `trim`; those who still know it keep none of its memory."""
    exported = pair.export(BIG)
    kept = os.dup(pair.slabs.fd_of(exported.slab))
    try:
        pair.slabs.free(exported)
        assert os.fstat(kept).st_blocks * 512 >= exported.nbytes
        pair.slabs.trim()
        assert os.fstat(kept).st_blocks == 0
    finally:
        os.close(kept)
    assert [pair.slabs.held, pair.forget_retired(), pair.forget_retired()] == [0, [exported.slab], []]
    with pytest.raises(StorageError, match=f"slab {exported.slab} can't be sent: there is none"):
        pair.slabs.fd_of(exported.slab)
    assert pair.export(BIG).slab == exported.slab + 1


def test_free_memory_is_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond `SPARE` free bytes do not stay."""
    monkeypatch.setattr(slabs_module, "SPARE", 2 << 20)
    held = [pair.export(BIG) for _ in range(5)]
    for exported in held:
        pair.slabs.free(exported)
        assert pair.slabs.held - pair.slabs.used <= max(2 << 20, pair.slabs.used)
    assert pair.slabs.used == 0 and pair.slabs.held <= 2 << 20


def test_what_is_not_held_can_be_freed_again(pair: Pair) -> None:
    """A second `free`, and that of a value without a block, change nothing."""
    exported, kept = pair.export(BIG), pair.export(BIG + 1)
    for one in (exported, exported, pair.export(1)):
        pair.slabs.free(one)
    assert pair.slabs.used == kept.nbytes
    assert same(pair.load(kept), BIG + 1)


def full(*_: Any, **__: Any) -> NoReturn:
    """What a system says that has no memory left."""
    raise OSError(errno.ENOSPC, "no space left")


def test_a_system_that_gives_no_slab_is_our_error(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses is a `StorageError`; later it may have room."""
    with monkeypatch.context() as patch:
        patch.setattr(slabs_module, "memory_file", full)
        with pytest.raises(StorageError, match="no space left"):
            pair.export(BIG)
    assert [pair.slabs.used, pair.slabs.held] == [0, 0]
    assert same(pair.load(pair.export(BIG)), BIG)


@pytest.mark.parametrize("takes_back", [True, False])
def test_a_system_without_memory_is_our_error(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, takes_back: bool
) -> None:
    """Nothing is held of what can't be written; and as it was not written, it is not taken for warm."""
    if not takes_back:
        monkeypatch.delattr(mmap, "MADV_REMOVE", raising=False)
    kept, pwrite = pair.export(BIG), os.pwrite

    def half(fd: int, data: memoryview, offset: int) -> int:
        pwrite(fd, data[: data.nbytes // 2], offset)
        full()

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"1601536 bytes can't be written .*no space left"):
                pair.export(BIG)
            assert pair.slabs.used == pair.slabs.held == kept.nbytes
    if takes_back and sys.platform == "linux":
        assert os.fstat(pair.slabs.fd_of(kept.slab)).st_blocks * 512 == kept.nbytes
    assert same(pair.load(pair.export(BIG + 1)), BIG + 1) and same(pair.load(kept), BIG)


def test_without_memory_files_there_are_unlinked_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the system has no `memfd_create` all is the same, and no file can be seen."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pair = Pair()
    try:
        held = [pair.export(BIG + i) for i in range(5)]
        assert not list(tmp_path.iterdir())
        assert all(same(pair.load(one), BIG + i) for i, one in enumerate(held))
        for one in held:
            pair.slabs.free(one)
        pair.slabs.trim()
        assert pair.slabs.used == 0
    finally:
        pair.close()


@needs_proc
def test_no_descriptor_for_a_value_and_none_left() -> None:
    """A slab has one descriptor on each side, whatever number of maps there are; none stays after `close`."""
    before = descriptors()
    pair = Pair()
    values = [pair.load(pair.export(BIG)) for _ in range(30)]
    pair.export(np.zeros(SLAB + 1, "u1"))
    during = descriptors()
    assert len(during) == len(before) + 4
    pair.close()
    assert descriptors() == before
    assert all(same(value, BIG) for value in values)


# ---- threads and processes --------------------------------------------------------------------------------------


def test_threads_may_do_all_of_it_at_once(pair: Pair) -> None:
    """Whatever threads export, load and free at the same time, each reads its own, and nothing is left."""
    wrong = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for i in range(60):
            value = np.full(chance.randrange(9000, 120_000), number * 1000 + i)
            exported = pair.export(value)
            loaded = pair.load(exported)
            if not same(loaded, value):
                wrong.append((number, i))
            del loaded
            pair.slabs.free(exported)
            if i % 8 == number:
                pair.slabs.trim()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert pair.slabs.used == 0 and len(pair.maps.released()) == 4 * 60


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_signal_handlers_may_do_all_of_it(pair: Pair) -> None:
    """A handler that comes at any moment, of this very work too, exports and loads as if nothing were under way."""
    done, wrong = [0], []

    def move(number: int) -> None:
        value = np.full(40_000 + number % 7 * 1000, float(number))
        exported = pair.slabs.export(value, dumps)
        pair.maps.add_slab(OWNER, exported.slab, os.dup(pair.slabs.fd_of(exported.slab)))
        if not same(pair.load(exported), value):
            wrong.append(number)
        pair.slabs.free(exported)
        done[0] += 1

    def handler(*_: Any) -> None:
        move(-1 - done[0])

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        for number in range(300):
            move(number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not wrong and done[0] > 300
    assert pair.slabs.used == 0 and len(pair.maps.released()) == done[0]


def test_a_handler_that_comes_between_two_steps_takes_another_place(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a place was found and not yet taken, a handler that exports does not find it as well."""
    mark, exports = slabs_module._Slab.mark, []

    def interrupted(self: Any, *args: Any) -> None:
        monkeypatch.setattr(slabs_module._Slab, "mark", mark)
        os.kill(os.getpid(), signal.SIGUSR1)
        mark(self, *args)

    before = signal.signal(signal.SIGUSR1, lambda *_: exports.append(pair.export(BIG + 1)))
    try:
        pair.export(0 * BIG)
        monkeypatch.setattr(slabs_module._Slab, "mark", interrupted)
        exports.append(pair.export(BIG + 2))
        eventually(lambda: len(exports) == 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(pair.load(exported)[0] for exported in exports) == [1, 2]


PROGRAM = """
import pickle, socket, sys, time
import numpy as np
from otel_timespan.dagger.processes.slabs import Slabs
connection, slabs, known = socket.socket(fileno=int(sys.argv[1])), Slabs(), set()
for i in range(3):
    value = {"i": i, "a": np.full(500_000, float(i)), "b": b"x" * 300_000}
    exported = slabs.export(value, lambda value, callback: pickle.dumps(value, 5, buffer_callback=callback))
    fds = [slabs.fd_of(exported.slab)] if exported.slab not in known else []
    known.add(exported.slab)
    socket.send_fds(connection, [pickle.dumps(exported)], fds)
connection.recv(1)
"""


def test_values_outlive_their_owner() -> None:
    """After the owner was killed its values are there: those that were loaded, and those that are only then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT
    )
    theirs.close()
    maps, exports = Maps(), []
    try:
        for _ in range(3):
            said, fds, _, _ = socket.recv_fds(ours, 1 << 16, 1)
            exports.append(pickle.loads(said))
            for fd in fds:
                maps.add_slab(OWNER, exports[-1].slab, fd)
        early = maps.load(OWNER, exports[0], loads)
        early["a"][0] = 5
        os.kill(owner.pid, signal.SIGKILL)
        assert owner.wait(60) == -signal.SIGKILL
        late = [maps.load(OWNER, exported, loads) for exported in exports]
        for i, value in enumerate(late):
            assert same(value, {"i": i, "a": np.full(500_000, float(i)), "b": b"x" * 300_000})
        maps.forget(OWNER)
        assert late[2]["a"].sum() == 2 * 500_000 and early["a"].sum() == 5
    finally:
        owner.kill()
        owner.wait()
        ours.close()
        maps.close()


CLOSES = """
import os, pickle, sys
import numpy as np
from otel_timespan.dagger.processes.maps import Maps
from otel_timespan.dagger.processes.slabs import Slabs
from otel_timespan.errors import StorageError

def dumps(value, callback): return pickle.dumps(value, 5, buffer_callback=callback)
def loads(header, buffers): return pickle.loads(header, buffers=buffers)
def fails(call, *args):
    try: call(*args)
    except StorageError as error: return "closed our descriptor" in str(error) or "Bad file descriptor" in str(error)

big, slabs, maps = np.arange(200_000.0), Slabs(), Maps()
exported = slabs.export(big, dumps)
maps.add_slab(1, exported.slab, os.dup(slabs.fd_of(exported.slab)))
value = maps.load(1, exported, loads)
os.closerange(3, 100)
assert fails(slabs.fd_of, exported.slab) and fails(maps.load, 1, exported, loads)
theirs = [open(sys.argv[1], "w+b") for _ in range(50)]
assert fails(slabs.fd_of, exported.slab) and fails(maps.load, 1, exported, loads)
again = slabs.export(big + 1, dumps)
maps.add_slab(1, again.slab, os.dup(slabs.fd_of(again.slab)))
assert again.slab != exported.slab and np.array_equal(maps.load(1, again, loads), big + 1)
slabs.close()
maps.close()
assert np.array_equal(value, big)
for file in theirs:
    file.close()
assert os.path.getsize(sys.argv[1]) == 0
"""


def test_bodies_that_close_what_is_open_harm_no_other_file(tmp_path: Path) -> None:
    """Descriptors that were closed by others are an error of ours, whatever has their numbers then; values stay."""
    command = [sys.executable, "-c", CLOSES, str(tmp_path / "theirs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


FORKS = """
import gc, os, pickle, sys, threading, warnings
import numpy as np
from otel_timespan.dagger.processes.maps import Maps
from otel_timespan.dagger.processes.slabs import Slabs

def dumps(value, callback): return pickle.dumps(value, 5, buffer_callback=callback)
def loads(header, buffers): return pickle.loads(header, buffers=buffers)
def files(): return sum("otel-timespan" in os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
    if os.path.lexists(f"/proc/self/fd/{n}"))

big, slabs, maps = np.arange(200_000.0), Slabs(), Maps()
exported = slabs.export(big, dumps)
maps.add_slab(1, exported.slab, os.dup(slabs.fd_of(exported.slab)))
value, gone = maps.load(1, exported, loads), maps.load(1, exported, loads)
taken, go_on = threading.Event(), threading.Event()
def hold():
    with slabs._lock, maps._lock:
        taken.set()
        go_on.wait()
holder = threading.Thread(target=hold)
holder.start()
taken.wait()
in_hands_of_threads = [*slabs._slabs.values(), *maps._files.values()]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    child = os.fork()
if child == 0:
    assert files() == 0 and slabs.used == 0 and slabs.retired() == []
    slabs.free(exported)
    del gone
    assert maps.released() == []
    value += 1
    assert value[1] == 2
    own = slabs.export(big + 2, dumps)
    maps.add_slab(1, own.slab, os.dup(slabs.fd_of(own.slab)))
    assert maps.load(1, own, loads)[0] == 2
    slabs.free(own)
    slabs.trim()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
go_on.set()
holder.join()
assert files() == 2 and slabs.used == exported.nbytes and maps.released() == []
assert np.array_equal(value, big) and np.array_equal(maps.load(1, exported, loads), big)
"""


@needs_proc
def test_a_forked_child_leaves_all_to_its_parent() -> None:
    """It has the values that were loaded, no descriptor and no block of the parent's, and may begin anew."""
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# ---- whatever comes -----------------------------------------------------------------------------------------------

SIZES = st.one_of(st.integers(0, 200), st.integers(7000, 10_000), st.integers(30_000, 34_000), st.integers(0, 200_000))
KINDS = st.sampled_from(["array", "columns", "strided", "bytes", "bytearray", "nested", "read-only"])


def value_of(kind: str, size: int, seed: int) -> Any:
    """Some value of about 8 bytes times `size`."""
    array = np.random.default_rng(seed).integers(0, 255, size * 8, "u1")
    number = array.view("u8")
    return {
        "array": number,
        "columns": np.asfortranarray(number[: size // 3 * 3].reshape(-1, 3)),
        "strided": array[::2],
        "bytes": array.tobytes(),
        "bytearray": bytearray(array),
        "nested": {"a": [number, (array[: size // 2], size)], size: {"b": number.tobytes()}},
        "read-only": read_only(number),
    }[kind]


class Traffic(RuleBasedStateMachine):
    """Exports, loads, writes and frees in any order, beside what plain copies say. Slabs are of 1 MiB."""

    exports = Bundle("exports")
    loaded = Bundle("loaded")

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(slabs_module, "SLAB", 1 << 20)
        self.patch.setattr(slabs_module, "SPARE", 3 << 20)
        self.pair = Pair(limit=LIMIT)
        self.blocks: dict[Exported, Any] = {}
        self.reading: Counter[Block] = Counter()
        self.values: dict[int, list[Any]] = {}  # loaded, and what it should be
        self.doomed: set[Exported] = set()
        self.number = 0

    @rule(target=exports, kind=KINDS, size=SIZES, seed=st.integers(0, 5))
    def export(self, kind: str, size: int, seed: int) -> Exported | None:
        value = value_of(kind, size, seed)
        try:
            exported = self.pair.export(value)
        except StorageError:
            assert self.pair.slabs.used + OUT_OF_BAND + 3 * 8 * size > LIMIT, "it would have fitted"
            return None
        self.pair.forget_retired()
        assert not exported.slab or exported not in self.blocks
        if exported.slab:
            self.blocks[exported] = value
        return exported if exported.slab else None

    @rule(target=loaded, exported=exports)
    def load(self, exported: Exported | None) -> int:
        if exported not in self.blocks or exported in self.doomed:
            return 0
        self.number += 1
        self.values[self.number] = [self.pair.load(exported), pickle.loads(pickle.dumps(self.blocks[exported], 5))]
        self.reading[block_of(exported)] += 1
        return self.number

    @rule(number=loaded)
    def write(self, number: int) -> None:
        for value in self.values.get(number, ()):
            if isinstance(value, np.ndarray) and value.flags.writeable:
                value += 1
            elif isinstance(value, bytearray) and value:
                value[-1] ^= 1

    @rule(number=consumes(loaded))
    def drop(self, number: int) -> None:
        self.values.pop(number, None)

    @rule(exported=consumes(exports))
    def free(self, exported: Exported | None) -> None:
        if exported in self.blocks:
            self.doomed.add(exported)

    @rule()
    def trim(self) -> None:
        self.pair.slabs.trim()
        self.pair.forget_retired()
        if sys.platform == "linux":
            assert self.pair.slabs.held == self.pair.slabs.used

    @invariant()
    def blocks_without_readers_are_freed(self) -> None:
        self.reading.subtract(self.pair.maps.released())
        assert min(self.reading.values(), default=0) >= 0
        for exported in [one for one in self.doomed if not self.reading[block_of(one)]]:
            self.doomed.discard(exported)
            del self.blocks[exported]
            self.pair.slabs.free(exported)
        self.pair.forget_retired()

    @invariant()
    def the_account_is_exact(self) -> None:
        slabs = self.pair.slabs
        assert slabs.used == sum(one.nbytes for one in self.blocks)
        assert slabs.used <= slabs.held <= LIMIT
        assert all(one.nbytes == PAGE * math.ceil(one.nbytes / PAGE) for one in self.blocks)

    @invariant()
    def every_value_is_what_it_should_be(self) -> None:
        assert all(same(value, model) for value, model in self.values.values())

    def teardown(self) -> None:
        try:
            self.values.clear()
            self.doomed.update(self.blocks)
            self.blocks_without_readers_are_freed()
            assert self.pair.slabs.used == 0 and not any(self.reading.values())
        finally:
            self.patch.undo()
            self.pair.close()


LIMIT = 6 << 20

TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
