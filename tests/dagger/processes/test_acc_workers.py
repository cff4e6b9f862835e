"""Facts of the specification that need two workers, on real ones: spawning there, scopes, data that stays, pools."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D


def add(left: int, right: int) -> int:
    """Their sum."""
    return left + right


def where(*_: Any) -> int:
    """The worker that runs it."""
    return D.myid()


def nested(n: int) -> int:
    """Spawns where it is, and one more task that adds that up."""
    return D.fetch(D.spawn(add, n, D.spawn(where)))


class Ref:
    """Something that can be changed."""

    def __init__(self, value: int = 0) -> None:
        self.value = value


def set_to_worker(ref: Ref) -> int:
    """Change it, and say to what."""
    ref.value = D.myid()
    return ref.value


def value_of(ref: Ref) -> int:
    """What it is."""
    return ref.value


def count_up(ref: Ref) -> None:
    """Change it."""
    ref.value += 1


@pytest.fixture
def everywhere(two_workers: list[int]) -> Iterator[list[int]]:
    """A context with this process and two workers; their ids."""
    with D.Context(procs=[1, *two_workers], threads=2):
        yield [1, *two_workers]


def at(worker: int, f: Any, *args: Any) -> Any:
    """The value of a task that is bound to a worker."""
    return D.fetch(D.spawn.opts(scope=D.scope(worker=worker))(f, *args), timeout=60)


# ---- spawning from other workers ------------------------------------------------------------------------------


def test_a_worker_spawns_and_the_head_fetches(everywhere: list[int]) -> None:
    """The handle is shipped; that worker has no scheduler of its own."""
    for worker in everywhere[1:]:
        task = D.cluster.run(worker, D.spawn, add, 1, 2)
        assert isinstance(task, D.DTask) and D.fetch(task, timeout=60) == 3
    assert D.eager_state() is not None


def test_options_hand_down_through_processes(everywhere: list[int]) -> None:
    """A task bound to a worker spawns others, which are bound there."""
    for worker in everywhere:
        with D.with_options(scope=D.ProcessScope(worker)):
            assert D.fetch(D.spawn(nested, 1), timeout=60) == 1 + worker


def test_an_error_that_crosses_holds_no_live_tasks(everywhere: list[int]) -> None:
    """What travels is a summary: it can be pickled, and tells the true origin."""
    a = D.spawn.opts(scope=D.scope(worker=everywhere[1]))(divmod, 1, 0)
    b = D.spawn.opts(scope=D.scope(worker=everywhere[2]))(add, a, 1)
    c = D.spawn(add, b, 1)
    with pytest.raises(ZeroDivisionError) as caught:
        D.fetch(c, timeout=60)
    assert isinstance(caught.value, D.DTaskFailedError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.root.id == a.id and again.task.id == c.id
    assert type(D.unwrap_exception(again)) is ZeroDivisionError


# ---- scopes ---------------------------------------------------------------------------------------------------


def test_scopes_of_workers(everywhere: list[int]) -> None:
    """A task runs where its scope says: one worker, several, one thread, the host of one."""
    first, second = everywhere[1:]
    assert {at(w, where) for w in everywhere for _ in range(5)} == set(everywhere)
    both = D.scope(workers=[first, second])
    assert {D.fetch(D.spawn.opts(scope=both)(where), timeout=60) for _ in range(20)} <= {first, second}
    exact = D.ExactScope(D.ThreadProc(second, 1))
    assert D.fetch(D.spawn.opts(scope=exact)(D.task_processor), timeout=60) == D.ThreadProc(second, 1)
    assert D.fetch(D.spawn.opts(scope=D.ProcessScope(first).parent)(where), timeout=60) in everywhere
    assert {p.owner for p in D.compatible_processors(D.scope(worker=first))} == {first}


@pytest.mark.filterwarnings("ignore:.*(single|proclist|legacy)")
def test_the_older_ways_to_bind(everywhere: list[int]) -> None:
    """`single` and `proclist`, of a task and of a batch run."""
    first = everywhere[1]
    assert D.fetch(D.spawn.opts(single=first)(where), timeout=60) == first
    assert D.fetch(D.spawn.opts(proclist=lambda p: p.owner == first)(where), timeout=60) == first
    assert D.collect(D.delayed(where)(), options=D.SchedulerOptions(single=first)) == first


def test_everybody_knows_the_workers_and_their_threads(everywhere: list[int]) -> None:
    """A worker as well as the head."""
    assert {p.owner for p in D.all_processors()} == set(everywhere) and D.num_processors() == 4
    for worker in everywhere[1:]:
        assert D.cluster.run(worker, D.workers) == everywhere[1:] and D.cluster.run(worker, D.nprocs) == 3
        for other in everywhere:
            threads = {D.ThreadProc(other, n + 1) for n in range(2 if other == 1 else 1)}
            assert D.cluster.run(worker, D.get_processors, D.OSProc(other)) == threads
            assert D.get_processors(D.OSProc(other)) == threads


def test_chunks_of_two_workers_have_no_place_in_common(everywhere: list[int]) -> None:
    """A task of both is an error; one of a worker's and its host's runs on the worker."""
    first, second = everywhere[1:]
    one, two = (D.tochunk(n, scope=D.ProcessScope(n)) for n in (first, second))
    with pytest.raises(D.SchedulingError) as caught:
        D.fetch(D.spawn(add, one, two), timeout=60)
    assert D.unwrap_exception(caught.value).code == "arg_scope"
    node = D.tochunk(0, scope=D.ProcessScope(first).parent)
    assert D.fetch(D.spawn(where, one, node), timeout=60) == first


def test_results_may_be_bound_too(everywhere: list[int]) -> None:
    """`result_scope` narrows where the task runs and where its result may be used."""
    first, second = everywhere[1:]
    task = D.spawn.opts(result_scope=D.ProcessScope(first))(where)
    assert D.fetch(task, timeout=60) == first
    assert D.fetch(task, raw=True).scope == D.ProcessScope(first)
    with pytest.raises(D.SchedulingError):
        D.fetch(D.spawn.opts(scope=D.ProcessScope(second))(where, task), timeout=60)


def test_a_worker_may_be_said_to_be_on_another_host() -> None:
    """Then scopes of hosts tell it from the others."""
    [worker] = D.cluster.add_workers(1, host_uuid="elsewhere")
    try:
        with D.Context(procs=[1, worker], threads=1):
            assert D.ProcessScope(worker).parent == D.NodeScope("elsewhere")
            assert D.NodeScope() != D.NodeScope("elsewhere")
            assert D.fetch(D.spawn.opts(scope=D.NodeScope("elsewhere"))(where), timeout=60) == worker
            assert {D.fetch(D.spawn.opts(scope=D.NodeScope())(where), timeout=60) for _ in range(10)} == {1}
            there = D.cluster.run(worker, lambda: D.NodeScope() == D.NodeScope("elsewhere"))
            assert there
    finally:
        D.cluster.remove_workers([worker])


# ---- data that stays ------------------------------------------------------------------------------------------


def test_mutable_data_stays_on_its_worker(everywhere: list[int]) -> None:
    """Tasks that use it run there, and see what others did to it; elsewhere is an error."""
    first, second = everywhere[1:]
    for worker in (1, first):
        ref = D.mutable(Ref, worker=worker)
        assert D.fetch(D.spawn(set_to_worker, ref), timeout=60) == worker
        assert D.fetch(D.spawn(value_of, ref), timeout=60) == worker
        with pytest.raises(D.SchedulingError):
            D.fetch(D.spawn.opts(scope=D.ProcessScope(second))(set_to_worker, ref), timeout=60)


def test_mutable_data_can_be_brought_here(everywhere: list[int]) -> None:
    """`fetch` gives a copy as it is now."""
    ref = D.mutable(Ref, worker=everywhere[1])
    for n in range(1, 4):
        D.fetch(D.spawn(count_up, ref), timeout=60)
        assert D.fetch(ref).value == n


def test_a_shard_has_a_piece_on_each_worker(everywhere: list[int]) -> None:
    """Each with its place and its scope; a task has the piece of where it runs."""
    shard = D.shard(Ref)
    assert set(shard.chunks) == {D.OSProc(worker) for worker in everywhere}
    for process, chunk in shard.chunks.items():
        assert chunk.processor == process and chunk.scope == D.ProcessScope(process)
    D.waitall([D.spawn(count_up, shard) for _ in range(200)])
    for worker in everywhere:
        at(worker, count_up, shard)
    counts = [at(process.pid, value_of, shard) for process in shard.chunks]
    assert sum(counts) == 200 + len(everywhere) and all(counts)


def test_a_shard_of_some_workers(everywhere: list[int]) -> None:
    """Tasks elsewhere find no piece."""
    first, second = everywhere[1:]
    shard = D.shard(where, workers=[first, second])
    assert [D.fetch(chunk) for chunk in shard] == [first, second]
    assert at(second, int, shard) == second
    with pytest.raises(KeyError):
        at(1, int, shard)


def test_files_are_read_where_they_are(everywhere: list[int], tmp_path: Path) -> None:
    """A file belongs to the process that names it."""
    (tmp_path / "numbers").write_bytes(pickle.dumps([1, 2, 3]))
    file = D.File(tmp_path / "numbers")
    assert D.fetch(file) == D.fetch(D.spawn(sorted, file), timeout=60) == [1, 2, 3]
    assert D.fetch(D.spawn(where, file), timeout=60) == 1


def test_data_that_bodies_make_stays_as_well(everywhere: list[int]) -> None:
    """On whatever worker, made by a body on whatever other."""

    def make(worker: int) -> Any:
        ref = D.mutable(Ref, worker=worker)
        D.fetch(D.spawn(set_to_worker, ref))
        return ref

    def make_shard() -> Any:
        shard = D.shard(Ref)
        D.waitall([D.spawn(count_up, shard) for _ in range(30)])
        return shard

    for worker in everywhere:
        for maker in everywhere:
            ref = at(maker, make, worker)
            D.fetch(D.spawn(count_up, ref), timeout=60)
            assert D.fetch(D.spawn(value_of, ref), timeout=60) == worker + 1
    assert sum(D.fetch(chunk).value for chunk in at(everywhere[1], make_shard)) == 30


def test_data_on_one_thread_of_a_worker(everywhere: list[int]) -> None:
    """A piece a thread, or one of a thread's alone."""
    first, second = everywhere[1:]
    pieces = D.shard(where, per_thread=True, workers=[1, first])
    assert sorted(D.fetch(chunk) for chunk in pieces) == [1, 1, first]
    thread = D.ThreadProc(second, 1)
    ref = D.mutable(Ref, processor=thread)
    assert ref.scope == D.ExactScope(thread) and D.fetch(D.spawn(set_to_worker, ref), timeout=60) == second
    for wrong in ({"processor": thread, "worker": 1}, {"worker": 99_999}):
        with pytest.raises(ValueError, match="worker"):
            D.mutable(Ref, **wrong)


def test_a_result_says_where_it_was_made(everywhere: list[int]) -> None:
    """Its processor, its type, its size, however large it is."""
    first = everywhere[1]
    for n in (10, 100_000):
        task = D.spawn.opts(scope=D.scope(worker=first))(bytes, n)
        chunk = D.fetch(task, raw=True, timeout=60)
        assert (chunk.processor, chunk.chunktype) == (D.ThreadProc(first, 1), bytes)
        assert n <= D.datasize(chunk) <= n + 100


# ---- custom processors --------------------------------------------------------------------------------------------


class Doubler(D.Processor):
    """Runs functions, and doubles what they give."""

    __slots__ = ("owner",)

    def __init__(self, owner: int) -> None:
        object.__setattr__(self, "owner", owner)

    def __eq__(self, other: object) -> bool:
        return type(other) is Doubler and other.owner == self.owner

    def __hash__(self) -> int:
        return hash(("doubler", self.owner))

    def __reduce__(self) -> Any:
        return Doubler, (self.owner,)

    def get_parent(self) -> D.Processor:
        return D.OSProc(self.owner)

    def iscompatible_func(self, options: Any, f: Any) -> bool:
        return True

    def iscompatible_arg(self, options: Any, kind: Any) -> bool:
        return True

    def execute(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        return 2 * f(*args, **kwargs)


def add_doubler() -> None:
    """Here."""
    D.add_processor_callback(lambda: Doubler(D.myid()), "doubler")


def test_custom_processors_of_a_worker(everywhere: list[int]) -> None:
    """They are known here at once, run what is bound to them, and are gone when their callback is."""
    first, second = everywhere[1:]
    for worker in (first, second):
        D.cluster.run(worker, add_doubler)
        assert Doubler(worker) in D.get_processors(D.OSProc(worker))
        assert Doubler(worker) in D.cluster.run(worker, lambda: D.get_processors(D.OSProc()))
    try:
        there = D.ExactScope(Doubler(second))
        tasks = [D.spawn.opts(scope=there)(where) for _ in range(5)]
        assert [D.fetch(task, timeout=60) for task in tasks] == [2 * second] * 5
        assert D.fetch(tasks[0], raw=True).processor == Doubler(second)
        either = D.ProcessorTypeScope(Doubler)
        assert D.fetch(D.spawn.opts(scope=either)(add, 20, 1), timeout=60) == 42
        with pytest.raises(ZeroDivisionError):
            D.fetch(D.spawn.opts(scope=there)(divmod, 1, 0), timeout=60)
        assert D.fetch(D.spawn(add, 20, 1), timeout=60) == 21  # by default it runs nothing
    finally:
        for worker in (first, second):
            D.cluster.run(worker, D.delete_processor_callback, "doubler")
    assert D.get_processors(D.OSProc(second)) == {D.ThreadProc(second, 1)}
    with pytest.raises(D.SchedulingError):
        D.fetch(D.spawn.opts(scope=there)(where), timeout=60)


def test_custom_processors_that_were_there_before_the_context(two_workers: list[int]) -> None:
    """A context that begins later has them as well."""
    first = two_workers[0]
    D.cluster.run(first, add_doubler)
    try:
        with D.Context(procs=two_workers):
            assert D.fetch(D.spawn.opts(scope=D.ExactScope(Doubler(first)))(add, 20, 1), timeout=60) == 42
    finally:
        D.cluster.run(first, D.delete_processor_callback, "doubler")


# ---- pools that grow and shrink -------------------------------------------------------------------------------


def test_a_worker_that_is_not_in_the_context_is_never_used(two_workers: list[int]) -> None:
    """Nor one that was taken out; one that was put in is."""
    first, second = two_workers
    with D.Context(procs=[first]) as context:
        assert {D.fetch(D.spawn(where), timeout=60) for _ in range(20)} == {first}
        D.addprocs(context, [second])
        assert [p.pid for p in D.procs(context)] == [first, second]
        assert at(second, where) == second
        D.rmprocs(context, [first])
        assert {D.fetch(D.spawn(where), timeout=60) for _ in range(20)} == {second}


def test_a_pool_that_loses_its_last_worker(two_workers: list[int]) -> None:
    """Its tasks wait until there is one."""
    with D.Context(procs=[two_workers[0]]) as context:
        D.rmprocs(context, [two_workers[0]])
        task = D.spawn(where)
        D.addprocs(context, [two_workers[1]])
        assert D.fetch(task, timeout=60) == two_workers[1]


def test_workers_that_come_are_used_by_contexts_without_a_list() -> None:
    """At once, and no more when they have gone."""
    with D.Context(threads=1):
        assert D.fetch(D.spawn(where), timeout=60) == 1
        [worker] = D.cluster.add_workers(1)
        assert at(worker, os.getpid) != os.getpid()
        D.cluster.remove_workers([worker])
        with pytest.raises(D.SchedulingError):
            at(worker, where)
        assert D.fetch(D.spawn(where), timeout=60) == 1


# ---- checkpoints ----------------------------------------------------------------------------------------------


def test_checkpoints_are_the_heads(everywhere: list[int]) -> None:
    """`restore` and `checkpoint` are called here; what was restored does not run."""
    kept: list[Any] = []
    scope = D.scope(worker=everywhere[1])
    saved = D.spawn.opts(scope=scope, checkpoint=lambda task, chunk: kept.append(chunk.fetch()))(where)
    assert D.fetch(saved, timeout=60) == everywhere[1] and kept == [everywhere[1]]
    restored = D.spawn.opts(scope=scope, restore=lambda task: D.tochunk(2))(where)
    assert D.fetch(D.spawn(add, restored, 2), timeout=60) == 4
