"""spec/scheduler.md, data that stays where it was made: `mutable` and `shard`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.errors import InvalidOptionError, NoPieceError, NotCallableError, TimespanError
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    BoomError,
    boom,
    code_of,
    done,
    failure,
    identity,
    on,
    outcome,
    settled,
    timeline_of,
    where,
)


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


# --- 8.3 mutable ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("worker", [1, 2])
def test_s8_3_mutable_lives_on_its_worker(cluster: D.Context, worker: int) -> None:
    """§8.3: tasks that use it run on its worker and change the very object; elsewhere they can't run."""
    x = D.mutable(Cell, worker=worker)
    assert D.fetch(D.spawn(set_to_myid, x)) == worker
    assert D.fetch(x).n == worker
    other = D.Options(scope=D.ProcessScope(3 - worker))
    assert outcome(D.spawn(set_to_myid, other, x)) == (D.DTaskFailedError, D.SchedulingError)
    assert code_of(D.spawn(set_to_myid, other, x)) == "arg_scope"


def test_s8_3_default_scopes(cluster: D.Context) -> None:
    """§8.3: by default on the local process; an exact processor gives an exact scope."""
    here = D.mutable(Cell)
    assert (here.processor, here.scope) == (D.OSProc(1), D.ProcessScope(1))
    exact = D.mutable(Cell, processor=D.ThreadProc(2, 2))
    assert (exact.processor, exact.scope) == (D.ThreadProc(2, 2), D.ExactScope(D.ThreadProc(2, 2)))
    with pytest.raises(ValueError, match="not both"):
        D.mutable(Cell, worker=1, processor=D.OSProc(1))


# --- 8.4 shard -----------------------------------------------------------------------------------------------


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


def test_s8_4_default_pieces(cluster: D.Context) -> None:
    """§8.4: one piece for each OSProc of the context, of that processor and process scope."""
    shard = D.shard(Cell)
    assert set(shard.chunks) == {D.OSProc(1), D.OSProc(2)}
    for key, chunk in shard.chunks.items():
        assert isinstance(key, D.OSProc)
        assert chunk.processor == key
        assert isinstance(chunk.scope, D.ProcessScope)
        assert chunk.scope.wid == key.pid


@pytest.mark.parametrize(
    "given",
    [
        {"procs": []},
        {"procs": [], "per_thread": True},
        {"workers": []},
        {"procs": [D.OSProc(1)], "workers": [1]},
        {"procs": [D.OSProc(1)], "per_thread": True},
    ],
    ids=str,
)
def test_s8_4_conflicts(cluster: D.Context, given: dict[str, Any]) -> None:
    """§8.4: empty sets, and `procs` with `workers` or `per_thread`, are errors."""
    with pytest.raises(ValueError):
        D.shard(Cell, **given)


def test_s8_4_counters(cluster: D.Context) -> None:
    """§8.4: 1000 tasks that increment a shard of counters leave 1000 in all, some on each worker."""

    def increment(cell: Cell) -> None:
        cell.n += 1

    counters = D.shard(Cell)
    for task in [D.spawn(increment, counters) for _ in range(1000)]:
        D.fetch(task)
    counts = [D.fetch(chunk).n for chunk in counters]
    assert sum(counts) == 1000
    assert all(counts)


def test_s8_4_no_piece_is_a_key_error(cluster: D.Context) -> None:
    """§8.4: a processor without a piece of its own or of an ancestor is a `KeyError` of the task."""
    there = D.shard(Cell, procs=[D.ThreadProc(2, 1)])
    task = D.spawn(set_to_myid, D.Options(scope=D.ExactScope(D.ThreadProc(2, 2))), there)
    D.wait(task)
    error = outcome(task)
    assert error[0] is D.DTaskFailedError
    assert issubclass(error[1], KeyError)


# --- edges ---------------------------------------------------------------------------------------------------

T11, T12, T21, T22 = (D.ThreadProc(w, n) for w in (1, 2) for n in (1, 2))


@pytest.fixture(params=["threads", "inline"])
def context(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Two slots on real threads, or two pretended workers of two."""
    inline = D.InlineDriver({1: 2, 2: 2}, seed=3)
    with D.Context(threads=2) if request.param == "threads" else D.Context(driver=inline) as entered:
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
