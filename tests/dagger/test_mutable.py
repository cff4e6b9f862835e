"""Data that stays where it was made: `mutable` and `shard`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.errors import InvalidOptionError, NoPieceError, NotCallableError, TimespanError

T11, T12, T21, T22 = (D.ThreadProc(w, n) for w in (1, 2) for n in (1, 2))


@pytest.fixture(params=["threads", "inline"])
def context(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Two slots on real threads, or two pretended workers of two."""
    inline = D.InlineDriver({1: 2, 2: 2}, seed=3)
    with D.Context(threads=2) if request.param == "threads" else D.Context(driver=inline) as entered:
        yield entered


@pytest.fixture
def cluster() -> Iterator[D.Context]:
    """Two pretended workers of two slots."""
    with D.Context(driver=D.InlineDriver({1: 2, 2: 2}, seed=3)) as entered:
        yield entered


def fails_with(task: D.DTask) -> BaseException:
    """What a task failed with, innermost."""
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    return D.unwrap_exception(caught.value)


class TestMutable:
    def test_the_very_object(self, context: D.Context) -> None:
        """Every body gets the object that the function returned, and what it changes stays."""
        x = D.mutable(list)
        for n in range(5):
            D.fetch(D.spawn(list.append, x, n))
        assert D.fetch(x) == [0, 1, 2, 3, 4]
        assert D.fetch(D.spawn(id, x)) == id(D.fetch(x))

    def test_where_it_is(self, cluster: D.Context) -> None:
        """The function runs where it is told, and so do the tasks that use it."""
        assert D.fetch(D.mutable(D.myid, worker=2)) == 2
        x = D.mutable(D.task_processor, processor=T22)
        assert (D.fetch(x), x.processor, x.scope) == (T22, T22, D.ExactScope(T22))
        assert {D.fetch(D.spawn(lambda x: D.task_processor(), x)) for _ in range(6)} == {T22}

    def test_a_scope_of_its_own(self, cluster: D.Context) -> None:
        """A wider scope lets other processors use it, one without the place is an error of the call."""
        x = D.mutable(lambda: [D.myid()], worker=2, scope=D.AnyScope())
        assert D.fetch(D.spawn(lambda x: (x, D.myid()), D.Options(scope=D.ProcessScope(1)), x)) == ([2], 1)
        with pytest.raises(D.DTaskFailedError) as caught:
            D.mutable(list, worker=2, scope=D.ProcessScope(1))
        assert isinstance(D.unwrap_exception(caught.value), D.SchedulingError)

    def test_in_a_body(self, context: D.Context) -> None:
        """A body makes its own on its worker, on the only slot too."""

        def body() -> Any:
            x = D.mutable(lambda: [D.myid()])
            return x.scope.wid, D.fetch(x)[0], D.myid()

        for worker in context.procs:
            there = D.spawn(body, D.Options(scope=D.ExactScope(D.ThreadProc(worker.pid, 1))))
            assert D.fetch(there) == (worker.pid,) * 3

    def test_options_around_do_not_apply(self, context: D.Context) -> None:
        """Neither a queue nor `meta` nor a scope of the block around keeps the call from happening."""
        with D.with_options(meta=True, get_result=True, scope=D.ExactScope(T12)):
            x = D.mutable(D.task_processor, processor=T11)
        assert isinstance(x, D.Chunk)
        assert D.fetch(x) == T11
        with D.sequential():
            assert D.fetch(D.mutable(list)) == []

    def test_a_raising_function(self, context: D.Context) -> None:
        """What it raises is the error of the call."""
        with pytest.raises(D.DTaskFailedError) as caught:
            D.mutable(lambda: 1 // 0)
        assert isinstance(D.unwrap_exception(caught.value), ZeroDivisionError)

    @pytest.mark.parametrize(
        "given",
        [
            {"worker": 1, "processor": D.OSProc(1)},
            {"worker": 99},
            {"worker": 0},
            {"worker": "1"},
            {"processor": 1},
            {"scope": 1},
        ],
        ids=str,
    )
    def test_bad_input(self, context: D.Context, given: dict[str, Any]) -> None:
        """Values that can't be are refused before anything runs."""
        with pytest.raises(InvalidOptionError):
            D.mutable(pytest.fail, **given)

    def test_something_to_call(self, context: D.Context) -> None:
        """Both need a function, not its value."""
        for make in (D.mutable, D.shard):
            with pytest.raises(NotCallableError, match="function without arguments"):
                make([])  # type: ignore[operator]


class TestShard:
    def test_default_places(self, context: D.Context) -> None:
        """One piece a worker, each made there and usable there."""
        s = D.shard(D.myid)
        assert list(s.chunks) == context.procs
        assert {p.pid: D.fetch(c) for p, c in s.chunks.items()} == {p.pid: p.pid for p in context.procs}
        assert all(c.processor == p and c.scope == D.ProcessScope(p) for p, c in s.chunks.items())

    def test_chosen_places(self, cluster: D.Context) -> None:
        """Workers, their threads, or any processors; each place once."""
        assert list(D.shard(list, workers=[2, 2]).chunks) == [D.OSProc(2)]
        assert list(D.shard(list, workers=[2], per_thread=True).chunks) == [T21, T22]
        assert list(D.shard(list, per_thread=True).chunks) == [T11, T12, T21, T22]
        mixed = D.shard(D.task_processor, procs=[T12, D.OSProc(2)])
        assert D.fetch(mixed.chunks[T12]) == T12
        assert mixed.chunks[T12].scope == D.ExactScope(T12)

    def test_a_task_gets_its_own_piece(self, cluster: D.Context) -> None:
        """By position, by keyword and as the function; the nearest one wins."""
        s = D.shard(D.task_processor, procs=[T11, D.OSProc(1), T21, T22])
        near = {t: t for t in (T11, T21, T22)}
        for t in (T11, T12, T21, T22):
            there = D.Options(scope=D.ExactScope(t))
            found = D.fetch(D.spawn(lambda a, b: (a, b), there, s, b=s))
            assert found == (near.get(t, D.fetch(s.chunks[D.OSProc(1)])),) * 2
        functions = D.shard(lambda: lambda: ("made for", D.task_processor()), per_thread=True)
        assert D.fetch(D.spawn(functions, D.Options(scope=D.ExactScope(T22)))) == ("made for", T22)

    def test_no_piece(self, cluster: D.Context) -> None:
        """A task on a processor without one fails with a `KeyError` of ours; others are unharmed."""
        s = D.shard(list, workers=[2])
        error = fails_with(D.spawn(len, D.Options(scope=D.ProcessScope(1)), s))
        assert isinstance(error, NoPieceError)
        assert isinstance(error, KeyError)
        assert isinstance(error, TimespanError)
        assert "no piece for ThreadProc(1" in str(error)
        assert D.fetch(D.spawn(len, D.Options(scope=D.ProcessScope(2)), s)) == 0

    def test_meta_passes_the_shard(self, context: D.Context) -> None:
        """With `meta` the body sees the shard itself."""
        s = D.shard(list)
        assert D.fetch(D.spawn(lambda s: s, D.Options(meta=True), s)) is s

    def test_going_over_the_pieces(self, cluster: D.Context) -> None:
        """Iteration, `len` and `map` see the chunks; the sum is over all."""
        s = D.shard(lambda: bytearray(D.myid()))
        assert len(s) == 2
        assert [c.processor for c in s] == [D.OSProc(1), D.OSProc(2)]
        assert list(map(D.fetch, s)) == s.map(D.fetch) == [bytearray(1), bytearray(2)]
        assert s.nbytes == 3
        assert repr(s) == "Shard(OSProc(1), OSProc(2))"

    def test_parallel_changes(self) -> None:
        """1000 increments on threads, each under the piece's own lock, add up."""

        class Counter:
            def __init__(self) -> None:
                self.lock, self.count = threading.Lock(), 0

            def add(self) -> None:
                with self.lock:
                    self.count += 1

        with D.Context(threads=2):
            s = D.shard(Counter, per_thread=True)
            D.waitall([D.spawn(Counter.add, s) for _ in range(1000)])
            assert sum(D.fetch(c).count for c in s) == 1000

    def test_moves_are_logged(self, cluster: D.Context) -> None:
        """The move of a shard has the kind "shard" and shows the piece that was taken."""
        log: list[Any] = []
        s = D.shard(list)
        cluster.log_sink = log
        task = D.spawn(len, D.Options(scope=D.ProcessScope(2)), s)
        D.fetch(task)
        start, finish = (e for e in log if e.category == "move" and e.id.thunk_id == task.id and e.id.position == 1)
        info = s.chunks[D.OSProc(2)].handle.info
        assert start.timeline.data == info
        assert (finish.timeline.kind, finish.timeline.source, finish.timeline.destination) == ("shard", 2, 2)

    @pytest.mark.parametrize(
        "given",
        [
            {"procs": []},
            {"workers": []},
            {"procs": [D.OSProc(1)], "workers": [1]},
            {"procs": [D.OSProc(1)], "per_thread": True},
            {"procs": [1]},
            {"procs": D.OSProc(1)},
            {"workers": 1},
            {"workers": "12"},
            {"workers": [99]},
            {"workers": [True]},
            {"procs": [D.OSProc(99)]},
        ],
        ids=str,
    )
    def test_bad_input(self, context: D.Context, given: dict[str, Any]) -> None:
        """What can't be is refused before anything runs."""
        with pytest.raises(InvalidOptionError):
            D.shard(pytest.fail, **given)

    def test_a_raising_function(self, context: D.Context) -> None:
        """What one call raises is the error of the whole; all calls have ended by then."""
        ended = []

        def make() -> int:
            ended.append(D.task_processor())
            raise OSError("no room")

        with pytest.raises(D.DTaskFailedError) as caught:
            D.shard(make, per_thread=True)
        assert isinstance(D.unwrap_exception(caught.value), OSError)
        assert len(ended) == 2 * len(context.procs)
