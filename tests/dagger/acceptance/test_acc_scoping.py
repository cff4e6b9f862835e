"""spec/scheduler.md, `scope(...)`, and where scopes place a task."""

from __future__ import annotations

from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger import scoping
from otel_timespan.dagger.places.scopes import (
    AnyScope,
    DefaultScope,
    ExactScope,
    ProcessScope,
    UnionScope,
)
from otel_timespan.dagger.scoping import (
    register_scope_key,
    scope,
)
from otel_timespan.errors import InvalidOptionError, NotCallableError
from tests.dagger.acceptance.stubs import FakeProc
from tests.dagger.acceptance.support import code_of, identity, outcome, where

T11, T12, T21, T22 = (D.ThreadProc(w, t) for w in (1, 2) for t in (1, 2))

ALL = {T11, T12, T21, T22}

E11, E12 = D.ExactScope(T11), D.ExactScope(T12)


@pytest.fixture
def running(cluster: D.Context) -> D.Context:
    """The two pretended workers, after a first task."""
    D.fetch(D.spawn(int))
    return cluster


# --- the helper ----------------------------------------------------------------------------------------------


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
    assert not D.proc_in_scope(FakeProc(1), D.scope(worker=1))


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


# --- placement -----------------------------------------------------------------------------------------------


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
    assert code_of(D.spawn(int, D.Options(scope=D.ExactScope(FakeProc(1))))) == "no_processors"


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


# --- edges of the helper -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("three_workers")
class TestShorthand:
    @pytest.mark.parametrize(
        ("spec", "wanted"),
        [
            ({"worker": 1, "thread": 2}, "ExactScope(ThreadProc(1, 2))"),
            (
                {"workers": [1, 2], "threads": [1]},
                "UnionScope(ExactScope(ThreadProc(1, 1)), ExactScope(ThreadProc(2, 1)))",
            ),
            ({"worker": 1}, "ProcessorTypeScope(ThreadProc, ProcessScope(1))"),
            (
                {"workers": (1, 3)},
                "UnionScope(ProcessorTypeScope(ThreadProc, ProcessScope(1)), "
                "ProcessorTypeScope(ThreadProc, ProcessScope(3)))",
            ),
            ({"thread": 1}, "UnionScope(*[ExactScope(ThreadProc(w, 1)) for w in (1, 2, 3)])"),
            ({"workers": "all", "threads": [1]}, "UnionScope(*[ExactScope(ThreadProc(w, 1)) for w in (1, 2, 3)])"),
            ({"threads": "all"}, "ProcessorTypeScope(ThreadProc)"),
            ({"workers": "all", "threads": "all"}, "ProcessorTypeScope(ThreadProc)"),
            ({"worker": 2, "threads": "all"}, "ProcessorTypeScope(ThreadProc, ProcessScope(2))"),
            ({"workers": "all"}, "UnionScope(*[ProcessScope(w) for w in (1, 2, 3)])"),
            ({"workers": range(1, 2), "threads": {2}}, "ExactScope(ThreadProc(1, 2))"),
        ],
    )
    def test_the_table(self, spec: dict[str, Any], wanted: str) -> None:
        """Each row of the spec's table gives that scope, by keywords and as a dict."""
        names = {name: getattr(D, name) for name in D.__all__}
        assert scope(**spec) == eval(wanted, names) == scope(spec)

    def test_words_and_unions(self) -> None:
        """Two words are known; several specs, tuples and lists, nested too, give one union."""
        assert scope("any") == AnyScope()
        assert scope("default") == DefaultScope()
        assert scope(ProcessScope(2)) == ProcessScope(2)
        one, two = scope(worker=1), scope(worker=2)
        assert scope({"worker": 1}, {"worker": 2}) == UnionScope(one, two)
        assert scope(({"worker": 1}, ({"worker": 2},))) == UnionScope(one, two)
        assert scope([{"worker": 1}], worker=2) == UnionScope(one, two)
        assert scope(({"worker": 1},)) == one

    @pytest.mark.parametrize(
        ("specs", "spec"),
        [
            ((), {}),
            (((),), {}),
            (({},), {}),
            ((), {"workers": []}),
            ((), {"threads": []}),
            ((), {"workers": 1, "threads": ()}),
            ((), {"blah": 1}),
            ((), {"thread": 1, "blah": 1}),
            (("all",), {}),
            ((3,), {}),
            ((None,), {}),
            ((), {"worker": "first"}),
            ((), {"worker": 0}),
            ((), {"worker": None}),
            ((), {"threads": [1, "2"]}),
            ((), {"worker": 1, "workers": [1]}),
        ],
    )
    def test_nonsense_is_refused(self, specs: tuple[Any, ...], spec: dict[str, Any]) -> None:
        """Empty, unknown and contradictory specs are ValueErrors."""
        with pytest.raises(ValueError, match=r"scope\(\)|must be|empty"):
            scope(*specs, **spec)


@pytest.mark.usefixtures("three_workers")
class TestCustomKeys:
    @pytest.fixture(autouse=True)
    def _keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scoping, "_keys", {})
        register_scope_key("gpu", lambda spec: ExactScope(FakeProc(1)), precedence=1)
        register_scope_key("rocm", lambda spec: ExactScope(FakeProc(2)), precedence=2)
        register_scope_key("cuda", lambda spec: ExactScope(FakeProc(spec["worker"])), precedence=2)

    def test_the_highest_precedence_decides(self) -> None:
        """Whatever the order of the keys; known keys do not count but are passed on."""
        assert scope(rocm=1, gpu=2) == scope(gpu=2, rocm=1) == ExactScope(FakeProc(2))
        assert scope(gpu=1) == ExactScope(FakeProc(1))
        assert scope(cuda=1, worker=3, gpu=1) == ExactScope(FakeProc(3))

    def test_a_tie_is_refused(self) -> None:
        """Two keys of the highest precedence can't both decide."""
        with pytest.raises(ValueError, match="same precedence"):
            scope(rocm=1, cuda=1)

    def test_bad_registrations(self) -> None:
        """Names must be new, functions callable, and what they return a scope."""
        with pytest.raises(InvalidOptionError, match="meaning already"):
            register_scope_key("worker", lambda spec: AnyScope())
        with pytest.raises(InvalidOptionError, match="must be a name"):
            register_scope_key("a b", lambda spec: AnyScope())
        with pytest.raises(NotCallableError):
            register_scope_key("tpu", 3)  # type: ignore[arg-type]
        register_scope_key("tpu", lambda spec: 3)  # type: ignore[arg-type,return-value]
        with pytest.raises(InvalidOptionError, match="not a scope"):
            scope(tpu=1)
