"""spec/scheduler.md §5 and §6: scopes, their algebra, and how they place a task."""

from __future__ import annotations

import itertools
import pickle
import uuid
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from tests.dagger.acceptance.support import code_of, identity, outcome, where

T11, T12, T21, T22 = (D.ThreadProc(w, t) for w in (1, 2) for t in (1, 2))
ALL = {T11, T12, T21, T22}
E11, E12 = D.ExactScope(T11), D.ExactScope(T12)


class OtherProc(D.Processor):
    """A processor that does not take part by default."""

    def __init__(self, number: int = 0) -> None:
        object.__setattr__(self, "number", number)

    def get_parent(self) -> D.Processor:
        return D.OSProc(1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OtherProc) and other.number == self.number

    def __hash__(self) -> int:
        return hash(("OtherProc", self.number))


@pytest.fixture
def running(cluster: D.Context) -> D.Context:
    """The two pretended workers, after a first task."""
    D.fetch(D.spawn(int))
    return cluster


def test_s5_1_parents(cluster: D.Context) -> None:
    """§5.1, ruling 5: an exact scope remembers its process, a process scope its worker and that worker's node."""
    exact = D.ExactScope(T21)
    assert exact.parent == D.ProcessScope(2)
    assert exact.parent.wid == 2
    assert isinstance(exact.parent.parent, D.NodeScope)
    assert D.ProcessScope().wid == 1
    assert D.ProcessScope(1).parent == D.NodeScope()


def test_s5_1_unions() -> None:
    """§5.1: unions take varargs, list or tuple, flatten, drop duplicates, and can't be empty."""
    union = D.UnionScope(E11, E12)
    assert union == D.UnionScope([E11, E12]) == D.UnionScope((E12, E11))
    assert union == D.UnionScope(D.UnionScope(E11), D.UnionScope(E12, E11), E11)
    assert len(union.scopes) == 2
    for empty in ((), ([],), ((),)):
        with pytest.raises(ValueError):
            D.UnionScope(*empty)


def test_s5_2_union_equality_is_of_sets() -> None:
    """§5.2 defect 4: unions of equal length with different members differ; equal ones have equal hashes."""
    a, b = D.UnionScope(E11, E12), D.UnionScope(E11, D.ExactScope(D.ThreadProc(1, 3)))
    assert a != b
    assert hash(a) == hash(D.UnionScope(E12, E11))
    assert D.ProcessorTypeScope(D.ThreadProc) == D.ProcessorTypeScope(D.ThreadProc)
    assert D.ProcessorTypeScope(D.ThreadProc) != D.ProcessorTypeScope(OtherProc)


def test_s5_1_scopes_are_values() -> None:
    """§5.1: scopes are hashable and survive pickling as equals."""
    for scope in (D.AnyScope(), D.DefaultScope(), D.NodeScope(), D.ProcessScope(1), E11, D.UnionScope(E11, E12)):
        assert pickle.loads(pickle.dumps(scope)) == scope
        assert hash(pickle.loads(pickle.dumps(scope))) == hash(scope)


def _samples() -> list[D.Scope]:
    return [
        D.AnyScope(),
        D.DefaultScope(),
        D.NodeScope(),
        D.ProcessScope(1),
        D.ProcessScope(2),
        E11,
        E12,
        D.ExactScope(T21),
        D.ExactScope(OtherProc()),
        D.UnionScope(E11, D.ExactScope(T21)),
        D.UnionScope(D.ProcessScope(1), D.ExactScope(T22)),
        D.ProcessorTypeScope(D.ThreadProc),
        D.ProcessorTypeScope(D.ThreadProc, D.ProcessScope(2)),
        D.ProcessorTypeScope(OtherProc),
    ]


def test_s5_2_constrain_is_symmetric_and_means_intersection(cluster: D.Context) -> None:
    """§5.2: in either order `constrain(x, y)` contains exactly the processors that are in both."""
    every = [*ALL, OtherProc(), D.OSProc(1)]
    for x, y in itertools.product(_samples(), repeat=2):
        both = {p for p in every if D.proc_in_scope(p, x) and D.proc_in_scope(p, y)}
        for result in (D.constrain(x, y), D.constrain(y, x)):
            got = {p for p in every if D.proc_in_scope(p, result)}
            assert got == both, (x, y, result)


def test_s5_2_any_is_the_identity(cluster: D.Context) -> None:
    """§5.2: Any ∩ X is X."""
    for scope in _samples():
        assert D.constrain(D.AnyScope(), scope) == scope == D.constrain(scope, D.AnyScope())


def test_s5_2_taints_are_decided_at_an_exact_processor() -> None:
    """§5.2, §5.4 accept: a taint vanishes at an exact processor that satisfies it, else the result is invalid."""
    assert D.constrain(D.DefaultScope(), E11) == E11 == D.constrain(E11, D.DefaultScope())
    for bad in (D.ExactScope(D.OSProc(1)), D.ExactScope(OtherProc())):
        assert isinstance(D.constrain(D.DefaultScope(), bad), D.InvalidScope)
        assert isinstance(D.constrain(bad, D.DefaultScope()), D.InvalidScope)


def test_s5_2_taints_join() -> None:
    """§5.2: two tainted scopes give one with all taints."""
    joined = D.constrain(D.DefaultScope(), D.ProcessorTypeScope(D.ThreadProc, D.ProcessScope(1)))
    assert isinstance(joined, D.TaintScope)
    assert joined.scope == D.ProcessScope(1)
    assert len(set(joined.taints)) == 2


def test_s5_2_unions_stay_unions() -> None:
    """§5.2: a union keeps its valid parts, stays a union with one member, and is invalid with none."""
    one = D.constrain(D.UnionScope(E11, E12), E11)
    assert isinstance(one, D.UnionScope) and set(one.scopes) == {E11}
    assert isinstance(D.constrain(D.UnionScope(E11), E12), D.InvalidScope)


def test_s5_2_nodes(cluster: D.Context) -> None:
    """§5.2: different nodes exclude each other; a node and something on it give the smaller one."""
    here, elsewhere = D.NodeScope(), D.NodeScope(uuid.uuid4())
    assert D.constrain(here, here) == here
    assert isinstance(D.constrain(here, elsewhere), D.InvalidScope)
    assert D.constrain(here, D.ProcessScope(1)) == D.ProcessScope(1)
    assert D.constrain(D.ExactScope(T11), here) == D.ExactScope(T11)
    assert isinstance(D.constrain(elsewhere, D.ProcessScope(1)), D.InvalidScope)
    assert isinstance(D.constrain(elsewhere, D.ExactScope(T11)), D.InvalidScope)


def test_s5_2_an_invalid_scope_remembers_both_sides() -> None:
    """§5.1: `InvalidScope` keeps what clashed, contains nothing, and a fold stops there."""
    bad = D.constrain(E11, E12)
    assert isinstance(bad, D.InvalidScope) and {bad.x, bad.y} == {E11, E12}
    assert not any(D.proc_in_scope(p, bad) for p in ALL)
    assert isinstance(D.constrain(E11, E12, D.AnyScope(), E11), D.InvalidScope)
    assert D.constrain(D.AnyScope(), D.ProcessScope(1), E11) == E11


def test_s5_2_subset_and_equality_by_effect(running: D.Context) -> None:
    """§5.2: `issubset` and `issetequal` compare the processors, whatever the scopes look like."""
    assert D.issubset(D.ProcessScope(1), D.AnyScope())
    assert not D.issubset(D.AnyScope(), D.ProcessScope(1))
    assert D.issetequal(D.scope(worker=1), D.ProcessScope(1), D.UnionScope(E11, E12))
    assert not D.issetequal(D.ProcessScope(1), D.ProcessScope(2))


# --- 5.3 the helper --------------------------------------------------------------------------------------


def test_s5_3_strings() -> None:
    """§5.3: "any" and "default" are known, other strings are a ValueError."""
    assert D.scope("any") == D.AnyScope()
    assert D.scope("default") == D.DefaultScope()
    with pytest.raises(ValueError):
        D.scope("everything")


def test_s5_3_exact() -> None:
    """§5.3: worker(s) and thread(s) give exact scopes, one or a union of all combinations."""
    assert D.scope(worker=1, thread=2) == E12
    assert D.scope({"worker": 1, "thread": 2}) == E12
    assert D.scope(workers=[1, 2], threads=[1, 2]) == D.UnionScope(*map(D.ExactScope, ALL))
    assert D.scope(worker=1, threads=[2, 1]) == D.UnionScope(E11, E12)


def test_s5_3_threads_only_means_on_every_worker(running: D.Context) -> None:
    """§5.3: thread(s) alone means these threads of each worker."""
    assert D.compatible_processors(D.scope(thread=1)) == {T11, T21}
    assert D.compatible_processors(D.scope(threads=[1, 2])) == ALL


def test_s5_3_workers_only(running: D.Context) -> None:
    """§5.3, §5.4 accept: worker(s) alone means all their threads and nobody else's, and only threads."""
    assert D.compatible_processors(D.scope(worker=2)) == {T21, T22}
    assert D.compatible_processors(D.scope(workers=[1, 2])) == ALL
    assert D.compatible_processors(D.scope(workers="all")) == ALL
    assert not D.proc_in_scope(OtherProc(), D.scope(worker=1))


def test_s5_3_all_threads() -> None:
    """§5.3: "all" threads is a processor type scope, inside the worker where one is given."""
    assert D.scope(threads="all") == D.ProcessorTypeScope(D.ThreadProc)
    assert D.scope(workers="all", threads="all") == D.ProcessorTypeScope(D.ThreadProc)
    assert D.scope(worker=1, threads="all") == D.ProcessorTypeScope(D.ThreadProc, D.ProcessScope(1))


def test_s5_3_several_specs_unite() -> None:
    """§5.3: several specs, or a tuple of specs, make a union; tuples flatten; one is that scope itself."""
    a, b = {"worker": 1, "thread": 1}, {"worker": 1, "thread": 2}
    union = D.UnionScope(E11, E12)
    assert D.scope(a, b) == D.scope((a, b)) == D.scope((a, (b, (a,)))) == union
    assert D.scope((a,)) == E11 == D.scope(a)


@pytest.mark.parametrize(
    "call",
    [
        lambda: D.scope(),
        lambda: D.scope(()),
        lambda: D.scope(workers=[]),
        lambda: D.scope(threads=[]),
        lambda: D.scope(blah=1),
        lambda: D.scope(thread=1, blah=1),
        lambda: D.scope(worker=1, threads=[]),
        lambda: D.scope(worker="one"),
        lambda: D.scope(thread=0),
        lambda: D.scope(5),
    ],
)
def test_s5_3_specs_that_cannot_work(call: Any) -> None:
    """§5.3, §5.4 accept: no spec, empty lists, unknown keys and wrong kinds raise an error of ours."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert isinstance(caught.value, ts.TimespanError)


def test_s5_3_custom_keys() -> None:
    """§5.3 accept: the custom key of highest precedence decides, in whatever order; a tie is a ValueError."""
    calls: list[str] = []

    def handler(name: str, scope: D.Scope) -> Any:
        def to_scope(spec: dict[str, Any]) -> D.Scope:
            calls.append(name)
            assert spec[name] is not None
            return scope

        return to_scope

    D.register_scope_key("acc_gpu", handler("acc_gpu", D.AnyScope()), 1)
    D.register_scope_key("acc_rocm", handler("acc_rocm", E11), 2)
    D.register_scope_key("acc_cuda", handler("acc_cuda", E12), 2)
    assert D.scope(acc_rocm=1, acc_gpu=2) == D.scope(acc_gpu=2, acc_rocm=1) == E11
    assert D.scope(acc_cuda=1, worker=1, thread=1) == E12
    assert calls == ["acc_rocm", "acc_rocm", "acc_cuda"]
    with pytest.raises(ValueError):
        D.scope(acc_rocm=1, acc_cuda=1)
    with pytest.raises(ValueError):
        D.scope(blah=1, worker=1, also_blah=2)


# --- 5.4 queries -----------------------------------------------------------------------------------------


def test_s5_4_before_the_first_spawn(cluster: D.Context) -> None:
    """§5.3, §5.4: the queries know all workers of the context before anything was spawned."""
    assert D.compatible_processors() == ALL
    assert D.compatible_processors(D.scope(thread=1)) == {T11, T21}


def test_s5_4_queries(running: D.Context) -> None:
    """§5.4: processors of the current compute scope, their number, and all there are."""
    assert D.compatible_processors() == ALL and D.num_processors() == 4
    assert D.num_processors(D.ProcessScope(2)) == 2
    assert set(D.all_processors()) >= ALL
    with D.with_options(scope=D.ProcessScope(2)):
        assert D.compatible_processors() == {T21, T22}
        assert D.num_processors() == 2 and D.num_processors(all=True) >= 4
        with D.with_options(compute_scope=E11):
            assert D.compatible_processors() == {T11}
    assert D.compatible_processors(D.constrain(E11, E12)) == set()


# --- 6 placement -----------------------------------------------------------------------------------------


def test_s6_scope_and_compute_scope(cluster: D.Context) -> None:
    """§6 accept: with both scopes it runs within the compute scope, and the result may go anywhere."""
    task = D.spawn(where, D.Options(scope=D.ProcessScope(1), compute_scope=D.ProcessScope(2)), 10)
    assert D.fetch(task).owner == 2
    assert D.fetch(task, raw=True).scope == D.AnyScope()


def test_s6_only_a_result_scope(cluster: D.Context) -> None:
    """§6 accept: a result scope alone narrows execution and becomes the result chunk's scope."""
    for worker in (1, 2):
        scope = D.ProcessScope(worker)
        task = D.spawn(where, D.Options(result_scope=scope))
        assert D.fetch(task).owner == worker
        assert D.fetch(task, raw=True).scope == scope


def test_s6_compute_and_result_scope_meet(cluster: D.Context) -> None:
    """§6 accept: it runs in the intersection; the result scope is the full one given."""
    compute = D.UnionScope(D.ExactScope(T12), D.ExactScope(T21))
    task = D.spawn(where, D.Options(compute_scope=compute, result_scope=D.ProcessScope(2)))
    assert D.fetch(task) == T21
    assert D.fetch(task, raw=True).scope == D.ProcessScope(2)


def test_s6_compute_and_result_scope_clash(cluster: D.Context) -> None:
    """§6: when the first two clash the code is `compute_result_scope`."""
    task = D.spawn(int, D.Options(compute_scope=D.ProcessScope(1), result_scope=D.ProcessScope(2)))
    assert outcome(task) == (D.DTaskFailedError, D.SchedulingError)
    assert code_of(task) == "compute_result_scope"


def test_s6_argument_scopes(cluster: D.Context) -> None:
    """§5.4 accept: a chunk's scope places the task; two that exclude each other fail with `arg_scope`."""
    on1, on2 = (D.tochunk(w, scope=D.ProcessScope(w)) for w in (1, 2))
    node = D.tochunk(0, scope=D.ProcessScope(2).parent)
    assert D.fetch(D.spawn(where, on2)).owner == 2
    assert D.fetch(D.spawn(where, on2, node)).owner == 2
    assert D.fetch(D.spawn(lambda *, k: where(), k=on2)).owner == 2
    assert code_of(D.spawn(where, on1, on2)) == "arg_scope"
    assert code_of(D.spawn(where, D.Options(scope=D.ProcessScope(1)), on2)) == "arg_scope"


def test_s6_results_of_upstreams_count(cluster: D.Context) -> None:
    """§6: the result scope of an upstream task binds its consumers, for they take its chunk."""
    up = D.spawn(identity, D.Options(result_scope=D.ProcessScope(2)), 5)
    down = D.spawn(where, up)
    assert D.fetch(down).owner == 2
    assert D.fetch(down, raw=True).scope == D.AnyScope()
    assert code_of(D.spawn(where, D.Options(scope=D.ProcessScope(1)), up)) == "arg_scope"


def test_s6_the_function_counts(cluster: D.Context) -> None:
    """§6: a function that is a chunk binds its tasks too; their results may go anywhere."""
    f = D.tochunk(where, scope=D.ProcessScope(2))
    task = D.spawn(f)
    assert D.fetch(task).owner == 2
    assert D.fetch(task, raw=True).scope == D.AnyScope()
    assert code_of(D.spawn(f, D.Options(scope=D.ProcessScope(1)))) == "arg_scope"


def test_s6_nobody_there() -> None:
    """§6: a scope that is not empty but has no live processor fails with `no_processors`."""
    assert code_of(D.spawn(int, D.Options(scope=D.ExactScope(D.ThreadProc(1, 99))))) == "no_processors"
    assert code_of(D.spawn(int, D.Options(scope=D.ExactScope(OtherProc())))) == "no_processors"


def test_s6_exec_scope_skips_the_checks(cluster: D.Context) -> None:
    """§6: with `exec_scope` nothing else is looked at."""
    options = D.Options(compute_scope=D.ProcessScope(1), result_scope=D.ProcessScope(2))
    options.exec_scope = D.ExactScope(T22)
    assert D.fetch(D.spawn(where, options)) == T22


def test_s6_a_returned_chunk_is_the_result_unchanged(cluster: D.Context) -> None:
    """§6: a chunk that the body returns keeps its own scope, whatever the task's result scope."""
    chunk = D.tochunk(5, scope=D.ProcessScope(2))
    task = D.spawn(lambda: chunk, D.Options(result_scope=D.ProcessScope(1)))
    assert D.fetch(task, raw=True) == chunk
    assert D.fetch(task, raw=True).scope == D.ProcessScope(2)


def test_s6_errors_say_what_clashed(cluster: D.Context) -> None:
    """§6: the error of a task without a place names the scopes, so that one can see why."""
    task = D.spawn(where, D.tochunk(1, scope=D.ProcessScope(1)), D.tochunk(2, scope=D.ProcessScope(2)))
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    assert "ProcessScope" in str(D.unwrap_exception(caught.value))


def test_s6_default_scope_spreads_over_all_workers(cluster: D.Context) -> None:
    """§6: without any scope all default processors of all workers are used."""
    assert {p.owner for p in D.fetch_all([D.spawn(where) for _ in range(40)])} == {1, 2}
