"""spec/scheduler.md §8.1, §8.2: chunks, the devices they lie on, and results."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import (
    add,
    identity,
    poll,
    run_program,
    where,
)

# --- 8.1 chunks ----------------------------------------------------------------------------------------------

T12 = D.ThreadProc(1, 2)


@pytest.fixture
def no_caching() -> Iterator[None]:
    """Off again at the end."""
    yield
    D.disable_disk_caching()


def test_s8_1_a_chunk_as_an_argument() -> None:
    """§8.1 accept: a chunk of another slot's data is an argument like any other."""
    assert D.fetch(D.spawn(add, 1, D.tochunk(2, D.ThreadProc(1, 2)))) == 3


def test_s8_1_fields() -> None:
    """§8.1: a chunk says its type, domain, handle, processor, scope and memory."""
    chunk = D.tochunk([1, 2])
    assert chunk.chunktype is list
    assert chunk.domain == D.UnitDomain()
    assert chunk.processor == D.OSProc(1)
    assert chunk.scope == D.AnyScope()
    assert chunk.space == D.CPURAMMemorySpace(1)
    there = D.tochunk(5, D.ThreadProc(1, 2), D.ProcessScope(1))
    assert (there.processor, there.scope) == (D.ThreadProc(1, 2), D.ProcessScope(1))


def test_s8_1_fetch_gives_the_very_value() -> None:
    """§8.1: fetching a chunk on its own worker gives the object itself, as often as one likes."""
    value = ["x"]
    chunk = D.tochunk(value)
    assert chunk.fetch() is value is D.fetch(chunk)


def test_s8_1_equality_is_of_handles() -> None:
    """§8.1: chunks are equal when they share the handle, whatever else differs; equal values don't matter."""
    chunk = D.tochunk([1])
    other = D.tochunk(chunk, scope=D.ProcessScope(1), rewrap=True)
    assert other.scope == D.ProcessScope(1)
    assert other == chunk and hash(other) == hash(chunk)
    assert D.tochunk([1]) != chunk


def test_s8_1_tochunk_of_a_chunk() -> None:
    """§8.1 accept: a chunk is returned unchanged unless `rewrap`."""
    chunk = D.tochunk(5)
    assert D.tochunk(chunk) is chunk
    assert D.tochunk(D.tochunk(5)).fetch() == 5


def test_s8_1_sizes() -> None:
    """§8.1 accept, ruling 15: ints and floats are 8 bytes, bytes are counted exactly, arrays by `nbytes`."""

    class Array:
        nbytes = 12345

    class Broken:
        @property
        def nbytes(self) -> int:
            raise ValueError("lazy")

    assert D.datasize(D.tochunk(1)) == D.approx_size(1) == 8
    assert D.datasize(D.tochunk(1.5)) == 8
    for data in (b"x" * 1000, bytearray(500), memoryview(b"y" * 77)):
        assert D.datasize(D.tochunk(data)) == len(data)
    assert D.datasize(D.tochunk(Array())) == 12345
    assert D.datasize(D.tochunk(Broken())) is None
    assert D.datasize(D.tochunk(list(range(100_000)))) >= 800_000 * 0.5


def test_s8_1_domains() -> None:
    """§8.1 accept: everything but arrays has the unit domain; arrays have index ranges."""
    numpy = pytest.importorskip("numpy")
    assert D.domain(1) == D.UnitDomain() == D.domain([1, 2])
    array = D.domain(numpy.zeros((2, 3)))
    assert isinstance(array, D.ArrayDomain)
    assert array == D.domain(numpy.ones((2, 3))) != D.domain(numpy.ones((3, 2)))


def test_s8_1_a_declared_type() -> None:
    """§8.1: the type may be declared; none at all for a real value is an error."""
    assert D.tochunk(5, type=object).chunktype is object
    with pytest.raises((ValueError, TypeError)):
        D.tochunk(5, type=type(None))


def test_s8_1_data_lives_as_long_as_a_chunk() -> None:
    """§8.1: the data is kept while any chunk exists and goes with the last one."""

    class Value:
        pass

    value = Value()
    alive = weakref.ref(value)
    chunk = D.tochunk(value)
    twin = D.tochunk(chunk, rewrap=True)
    del value, chunk
    gc.collect()
    assert alive() is not None and twin.fetch() is alive()
    del twin
    gc.collect()
    assert alive() is None


def test_s8_1_wrong_places_are_refused() -> None:
    """§8.1: a processor or scope that is none is refused early."""
    for bad in ({"proc": 5}, {"scope": "any"}):
        with pytest.raises((ValueError, TypeError)):
            D.tochunk(1, **bad)


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


# --- 8.2 results ---------------------------------------------------------------------------------------------


def test_s8_2_results_are_chunks_of_the_executing_processor(cluster: D.Context) -> None:
    """§8.2: a task's result is a chunk whose processor is the one that ran it."""
    for processor in (D.ThreadProc(1, 2), D.ThreadProc(2, 1)):
        task = D.spawn(where, D.Options(scope=D.ExactScope(processor)))
        chunk = D.fetch(task, raw=True)
        assert chunk.processor == processor == chunk.fetch()


def test_s8_2_the_same_chunk_twice() -> None:
    """§8.2: chunks that share a handle are the same upstream: the body sees one object twice."""
    chunk = D.tochunk(["x"])
    twin = D.tochunk(chunk, rewrap=True)
    assert D.fetch(D.spawn(lambda a, b: a is b, chunk, twin)) is True


def test_s8_2_none_is_a_result() -> None:
    """§8.2: None is a value like any other, as a result, an argument and a chunk."""
    task = D.spawn(lambda: None)
    assert D.fetch(task) is None
    assert D.fetch(D.spawn(identity, task)) is None
    assert isinstance(D.fetch(task, raw=True), D.Chunk)
    assert D.tochunk(None).fetch() is None


def test_s8_2_an_exception_returned_is_a_value() -> None:
    """§8.2: a body that returns an exception object succeeded with it."""
    value: Any = ValueError("just a value")
    task = D.spawn(lambda: value)
    assert D.fetch(task) is value
    assert D.fetch(D.spawn(identity, task)) is value


def test_s8_2_results_are_chunks_of_their_processor(cluster: D.Context) -> None:
    """§8.2: a result's chunk names the executing processor; chunks that share a handle are the same upstream."""
    task = D.spawn(list, D.Options(scope=D.ExactScope(D.ThreadProc(2, 1))), "ab")
    chunk = D.fetch(task, raw=True)
    assert chunk.processor == D.ThreadProc(2, 1)
    assert chunk.space == D.CPURAMMemorySpace(2)
    same = D.tochunk(chunk, scope=D.ProcessScope(2), rewrap=True)
    assert same == chunk
    assert D.fetch(D.spawn(lambda a, b: a is b, chunk, same)) is True
