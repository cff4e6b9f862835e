"""spec/scheduler.md §7.1, §8.1, §8.2: processors, chunks, results."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import add, identity, where


def test_s7_1_hierarchy() -> None:
    """§7.1: a thread's parent is its worker's process; threads take part by default, processes don't compute."""
    thread, process = D.ThreadProc(1, 1), D.OSProc(1)
    assert D.get_parent(thread) == process
    assert D.get_parent(thread).pid == 1
    assert D.default_enabled(thread) is True
    assert D.default_enabled(process) is False
    assert D.get_processors(thread) == {thread}
    assert (thread.owner, thread.tid) == (1, 1)
    assert D.OSProc() == process


def test_s7_1_children_of_a_process(cluster: D.Context) -> None:
    """§7.1: the children of a process are the slots of that worker."""
    for worker in (1, 2):
        assert {D.ThreadProc(worker, 1), D.ThreadProc(worker, 2)} <= set(D.get_processors(D.OSProc(worker)))


def test_s7_1_processors_are_values() -> None:
    """§7.1: processors are equal when they denote the same device, hashable, immutable and serialisable."""
    for make in (lambda: D.OSProc(1), lambda: D.ThreadProc(1, 2)):
        assert make() == make() and hash(make()) == hash(make())
        assert pickle.loads(pickle.dumps(make())) == make()
    assert D.ThreadProc(1, 1) != D.ThreadProc(1, 2) != D.ThreadProc(2, 2)
    assert D.OSProc(1) != D.ThreadProc(1, 1)
    with pytest.raises((AttributeError, TypeError)):
        D.ThreadProc(1, 1).tid = 5


def test_s7_1_short_names() -> None:
    """§7.1: `W: <pid>`, `W: <owner>, TID: <tid>`, and `str` for anybody else's."""

    class Mine(D.Processor):
        def __str__(self) -> str:
            return "mine"

    assert D.short_name(D.OSProc(3)) == "W: 3"
    assert D.short_name(D.ThreadProc(2, 4)) == "W: 2, TID: 4"
    assert D.short_name(Mine()) == "mine"


def test_s7_1_bare_subclass() -> None:
    """§7.1: a bare subclass is not enabled, is its own only child, is compatible with nothing."""

    class Bare(D.Processor):
        pass

    bare = Bare()
    assert D.default_enabled(bare) is False
    assert D.get_processors(bare) == {bare}
    assert not D.iscompatible_func(bare, D.Options(), int)
    assert not D.iscompatible_arg(bare, D.Options(), int)
    with pytest.raises(Exception):  # noqa: B017 - only that it is required is specified
        D.get_parent(bare)


def test_s7_1_compatibility() -> None:
    """§7.1: threads run everything, a process what any child runs."""
    for processor in (D.ThreadProc(1, 1), D.OSProc(1)):
        assert D.iscompatible(processor, D.Options(), add, int, list)
        assert D.iscompatible_func(processor, D.Options(), add)
        assert D.iscompatible_arg(processor, D.Options(), list)


def test_s7_1_memory_spaces() -> None:
    """§7.5 accept: all threads of a worker share one memory; a value's memory is the caller's."""
    space = D.CPURAMMemorySpace(1)
    assert D.memory_spaces(D.ThreadProc(1, 1)) == {space} == D.memory_spaces(D.ThreadProc(1, 2))
    assert D.memory_space([1]) == space == D.memory_space(D.tochunk(1)) == D.memory_space(D.spawn(int))

    class Bare(D.Processor):
        pass

    with pytest.raises(ValueError):
        D.memory_spaces(Bare())


# --- 8.1 chunks ------------------------------------------------------------------------------------------


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


# --- 8.2 results -----------------------------------------------------------------------------------------


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
