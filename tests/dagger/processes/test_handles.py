"""Handles that travel: tasks and chunks in arguments and results, from process to process; and what is left of them."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.pool import pool
from tests.backends import eventually
from tests.dagger.processes.bodies import add, boom, fetch_each


def same(value: Any) -> Any:
    """What it was given."""
    return value


def is_chunk(value: Any) -> Any:
    """What a body sees with the option `meta`."""
    return type(value).__name__, value.fetch(), value.chunktype.__name__


def borrowed() -> int:
    """How many handles workers have."""
    gc.collect()
    for worker in pool.remotes:
        D.cluster.run(worker, gc.collect)
    return sum(len(remote.borrows.tasks) + len(remote.borrows.values) for remote in pool.remotes.values())


@pytest.fixture(autouse=True)
def nothing_is_left(on_workers: D.Context) -> Any:
    """No handle stays with a worker that has none any more."""
    yield
    on_workers.wait_idle()
    eventually(lambda: borrowed() == 0)


def test_tasks_in_lists(on_workers: D.Context) -> None:
    """Are fetched there, finished or not, failed ones too."""
    tasks = [D.spawn(add, n, 1) for n in range(20)]
    assert D.fetch(D.spawn(fetch_each, tasks)) == list(range(1, 21))
    D.waitall(tasks)
    assert D.fetch(D.spawn(fetch_each, tasks)) == list(range(1, 21))
    with pytest.raises(ValueError, match="boom"):
        D.fetch(D.spawn(fetch_each, [D.spawn(boom)]))


def test_tasks_as_results(on_workers: D.Context) -> None:
    """A body returns tasks that it spawned, or that it was given: they are the same here."""
    inner = D.fetch(D.spawn(lambda: D.spawn(add, 1, 2)))
    assert isinstance(inner, D.DTask) and D.fetch(inner) == 3
    several = D.fetch(D.spawn(lambda: {"a": [D.spawn(add, n) for n in range(3)]}))
    assert D.fetch_all(several) == {"a": [0, 1, 2]}
    known = D.spawn(add, 7)
    assert D.fetch(D.spawn(same, [known]))[0] is known


def test_tasks_go_from_worker_to_worker(on_workers: D.Context, two_workers: list[int]) -> None:
    """Both may fetch them, however often they go round."""
    first, second = (D.scope(worker=worker) for worker in two_workers)
    made = D.spawn.opts(scope=first)(lambda: [D.spawn(add, 1), D.spawn(add, 2)])
    passed = D.spawn.opts(scope=second)(same, made)
    back = D.spawn.opts(scope=first)(same, passed)
    assert D.fetch(D.spawn.opts(scope=second)(fetch_each, back)) == [1, 2]
    assert D.fetch(D.spawn.opts(scope=first)(fetch_each, passed)) == [1, 2]


def test_a_task_as_the_function(on_workers: D.Context) -> None:
    """Its result is called, here and there."""
    factory = D.spawn(lambda: add)
    assert D.fetch(D.spawn(factory, 1, 2)) == 3
    assert D.fetch(D.spawn(lambda: D.fetch(D.spawn(D.spawn(lambda: add), 3, 4)))) == 7


def test_tasks_to_wait_for(on_workers: D.Context) -> None:
    """The option `syncdeps`, of tasks here and in bodies."""
    before = D.spawn(add, 1)
    assert D.fetch(D.spawn(add, D.Options(syncdeps={before}), 2)) == 2

    def body() -> bool:
        first = D.spawn(add, 1)
        second = D.spawn(first.isready, D.Options(syncdeps={first}))
        D.wait(second)
        return first.isready()

    assert D.fetch(D.spawn(body)) is True


def test_chunks_as_arguments(on_workers: D.Context) -> None:
    """By their content; as chunks with `meta`, and in containers."""
    chunk = D.tochunk([1, 2, 3])
    assert D.fetch(D.spawn(len, chunk)) == 3
    meta = D.Options(meta=True)
    assert D.fetch(D.spawn(is_chunk, meta, D.tochunk("abc"))) == ("Chunk", "abc", "str")
    assert D.fetch(D.spawn(is_chunk, meta, D.spawn(same, "abc"))) == ("Chunk", "abc", "str")
    assert D.fetch(D.spawn(lambda chunks: chunks[0].fetch(), [chunk])) == [1, 2, 3]
    assert D.fetch(D.spawn(same, [chunk]))[0] == chunk


def test_chunks_as_results(on_workers: D.Context) -> None:
    """One that a body made is this process's as it comes here, and the same however often it goes round."""
    task = D.spawn(lambda: D.tochunk([1, 2, 3]))
    assert D.fetch(task) == [1, 2, 3]
    assert isinstance(D.fetch(task, raw=True), D.Chunk)

    def twice() -> list[Any]:
        chunk = D.tochunk({"a": 1})
        return [chunk, chunk]

    first, second = D.fetch(D.spawn(twice))
    assert first == second and first.fetch() == {"a": 1}
    assert D.fetch(D.spawn(same, [first]))[0] == first


def test_raw_results_in_bodies(on_workers: D.Context) -> None:
    """`fetch(raw=True)` gives a chunk, which can be read, passed on and returned."""

    def body() -> tuple[Any, Any, Any]:
        chunk = D.spawn(same, [1, 2, 3]).fetch(raw=True)
        return chunk, chunk.fetch(), D.fetch(D.spawn(len, chunk))

    chunk, value, length = D.fetch(D.spawn(body))
    assert isinstance(chunk, D.Chunk) and chunk.fetch() == value == [1, 2, 3] and length == 3


def test_large_values_are_sent_when_they_are_wanted(on_workers: D.Context) -> None:
    """By whoever fetches, once."""
    large = D.spawn(bytes, 1_000_000)
    assert D.fetch(D.spawn(lambda tasks: [len(D.fetch(tasks[0])) for _ in range(2)], [large])) == [1_000_000] * 2
    assert D.fetch(D.spawn(lambda: len(D.fetch(D.spawn(bytes, 1_000_000))))) == 1_000_000


def test_handles_that_are_dropped_end_nothing(on_workers: D.Context) -> None:
    """A task that a body spawned and forgot runs."""

    def body() -> None:
        for n in range(200):
            D.spawn(add, n)

    D.fetch(D.spawn(body))
    on_workers.wait_idle()


def test_nobody_else_pickles_a_handle(on_workers: D.Context) -> None:
    """Neither here nor there: a file of handles would mean nothing."""
    task = D.spawn(add, 1)
    for handle in (task, D.tochunk(1)):
        with pytest.raises(TypeError, match="belongs to its process"):
            pickle.dumps(handle)

    def body() -> str:
        with pytest.raises(TypeError, match="belongs to its process"):
            pickle.dumps(D.spawn(add, 1))
        return "refused"

    assert D.fetch(D.spawn(body)) == "refused"


@pytest.mark.parametrize("where", ["argument", "function"])
def test_what_a_body_can_not_send_fails_its_task(on_workers: D.Context, where: str) -> None:
    """A nested task with a lock in it; the body and all others go on."""

    def body() -> tuple[str, int]:
        import threading

        lock = threading.Lock()
        task = D.spawn(id, lock) if where == "argument" else D.spawn(lambda: lock)
        try:
            D.fetch(task)
        except D.InvalidOptionError as error:
            return str(error), D.fetch(D.spawn(add, 1))
        raise AssertionError

    text, value = D.fetch(D.spawn(body))
    assert "can't be sent to the head" in text and value == 1


class OnlyOnce:
    """Can be read in the process that `there` names only."""

    def __init__(self, there: int, task: Any) -> None:
        self.there, self.task = there, task

    def __reduce__(self) -> Any:
        return _read_there, (self.there, self.task)


def _read_there(there: int, task: Any) -> OnlyOnce:
    if D.myid() != there:
        raise KeyError("not here")
    return OnlyOnce(there, task)


def test_a_value_with_handles_that_can_not_be_read(on_workers: D.Context, two_workers: list[int]) -> None:
    """Is the failure of its task, here and there; others go on."""
    bad = D.spawn(lambda: OnlyOnce(D.myid(), D.spawn(add, 1)))
    with pytest.raises(D.StorageError, match=r"OnlyOnce made by a worker, can't be read here: KeyError\('not here'\)"):
        D.fetch(bad)

    def body() -> str:
        there = D.spawn(lambda: OnlyOnce(1, D.spawn(add, 1)))
        with pytest.raises(D.StorageError, match="can't be read here"):
            D.fetch(there)
        return "refused"

    assert D.fetch(D.spawn(body)) == "refused"
    assert D.fetch(D.spawn(add, 1, 2)) == 3
