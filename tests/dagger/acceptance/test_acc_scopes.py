"""spec/scheduler.md, scopes: what they contain, how they intersect, and who asks which processors there are."""

from __future__ import annotations

import itertools
import pickle
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_timespan import dagger as D
from otel_timespan.dagger import context
from otel_timespan.dagger.options.scoped import with_options
from otel_timespan.dagger.places import scopes as module
from otel_timespan.dagger.places.processors import (
    OSProc,
    Processor,
    ThreadProc,
    get_processors,
)
from otel_timespan.dagger.places.scopes import (
    AnyScope,
    DefaultEnabledTaint,
    DefaultScope,
    ExactScope,
    InvalidScope,
    NodeScope,
    ProcessorTypeScope,
    ProcessorTypeTaint,
    ProcessScope,
    Scope,
    TaintScope,
    UnionScope,
    constrain,
    proc_in_scope,
)
from otel_timespan.dagger.scoping import (
    all_processors,
    compatible_processors,
    current_compute_scope,
    issetequal,
    issubset,
    num_processors,
    scope,
)
from otel_timespan.errors import InvalidOptionError
from tests.dagger.acceptance.stubs import WORKERS, FakeProc, SubFakeProc

T11, T12, T21, T22 = (D.ThreadProc(w, t) for w in (1, 2) for t in (1, 2))

ALL = {T11, T12, T21, T22}

E11, E12 = D.ExactScope(T11), D.ExactScope(T12)


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


def test_s5_1_scopes_are_values() -> None:
    """§5.1: scopes are hashable and survive pickling as equals."""
    for each in (D.AnyScope(), D.DefaultScope(), D.NodeScope(), D.ProcessScope(1), E11, D.UnionScope(E11, E12)):
        assert pickle.loads(pickle.dumps(each)) == each
        assert hash(pickle.loads(pickle.dumps(each))) == hash(each)


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
        D.ExactScope(FakeProc(1)),
        D.UnionScope(E11, D.ExactScope(T21)),
        D.UnionScope(D.ProcessScope(1), D.ExactScope(T22)),
        D.ProcessorTypeScope(D.ThreadProc),
        D.ProcessorTypeScope(D.ThreadProc, D.ProcessScope(2)),
        D.ProcessorTypeScope(FakeProc),
    ]


def test_s5_2_union_equality_is_of_sets() -> None:
    """§5.2 defect 4: unions of equal length with different members differ; equal ones have equal hashes."""
    a, b = D.UnionScope(E11, E12), D.UnionScope(E11, D.ExactScope(D.ThreadProc(1, 3)))
    assert a != b
    assert hash(a) == hash(D.UnionScope(E12, E11))
    assert D.ProcessorTypeScope(D.ThreadProc) == D.ProcessorTypeScope(D.ThreadProc)
    assert D.ProcessorTypeScope(D.ThreadProc) != D.ProcessorTypeScope(FakeProc)


def test_s5_2_constrain_is_symmetric_and_means_intersection(cluster: D.Context) -> None:
    """§5.2: in either order `constrain(x, y)` contains exactly the processors that are in both."""
    every = [*ALL, FakeProc(1), D.OSProc(1)]
    for x, y in itertools.product(_samples(), repeat=2):
        both = {p for p in every if D.proc_in_scope(p, x) and D.proc_in_scope(p, y)}
        for result in (D.constrain(x, y), D.constrain(y, x)):
            got = {p for p in every if D.proc_in_scope(p, result)}
            assert got == both, (x, y, result)


def test_s5_2_any_is_the_identity(cluster: D.Context) -> None:
    """§5.2: Any ∩ X is X."""
    for each in _samples():
        assert D.constrain(D.AnyScope(), each) == each == D.constrain(each, D.AnyScope())


def test_s5_2_taints_are_decided_at_an_exact_processor() -> None:
    """§5.2, §5.4 accept: a taint vanishes at an exact processor that satisfies it, else the result is invalid."""
    assert D.constrain(D.DefaultScope(), E11) == E11 == D.constrain(E11, D.DefaultScope())
    for bad in (D.ExactScope(D.OSProc(1)), D.ExactScope(FakeProc(1))):
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


# --- properties ----------------------------------------------------------------------------------------------

PROCS = [p for w in WORKERS for p in (ThreadProc(w, 1), ThreadProc(w, 2), FakeProc(w), SubFakeProc(w))]


def contents(x: Scope) -> set[Processor]:
    """Which of all processors are in the scope, by the definition."""
    return {p for p in PROCS if proc_in_scope(p, x)}


_simple = st.one_of(
    st.builds(AnyScope),
    st.sampled_from(["here", "there", "nowhere"]).map(NodeScope),
    st.sampled_from([1, 2, 3]).map(lambda w: (w, WORKERS[w])).map(lambda w: _process(*w)),
    st.sampled_from(PROCS).map(lambda p: module._restore_exact(p, _process(p.owner, WORKERS[p.owner]))),
)

_taints = st.sets(
    st.sampled_from([DefaultEnabledTaint(), ProcessorTypeTaint(FakeProc), ProcessorTypeTaint(ThreadProc)]), min_size=1
)


def _process(worker: int, host: str) -> ProcessScope:
    return module._restore_process(worker, NodeScope(host))


def _grow(inner: st.SearchStrategy[Scope]) -> st.SearchStrategy[Scope]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda members: UnionScope(*members)),
        st.builds(TaintScope, inner, _taints),
    )


SCOPES = st.recursive(_simple, _grow, max_leaves=4)


@pytest.mark.usefixtures("three_workers")
class TestProperties:
    @given(SCOPES, SCOPES)
    def test_the_intersection_contains_what_both_contain(self, x: Scope, y: Scope) -> None:
        """`constrain` means intersection: a processor is in it exactly when it is in both."""
        assert contents(constrain(x, y)) == contents(x) & contents(y)

    @given(SCOPES, SCOPES)
    def test_commutative(self, x: Scope, y: Scope) -> None:
        """The order of two scopes does not matter, not even in the form of the result."""
        assert constrain(x, y) == constrain(y, x)
        assert hash(constrain(x, y)) == hash(constrain(y, x))

    @given(SCOPES, SCOPES, SCOPES)
    def test_associative(self, x: Scope, y: Scope, z: Scope) -> None:
        """Neither does grouping, as far as processors tell."""
        assert contents(constrain(constrain(x, y), z)) == contents(constrain(x, constrain(y, z)))
        assert contents(constrain(x, y, z)) == contents(constrain(z, x, y))

    @given(_simple, _simple, _simple)
    def test_associative_in_form(self, x: Scope, y: Scope, z: Scope) -> None:
        """Without unions and taints grouping does not even change the form."""
        left, right = constrain(constrain(x, y), z), constrain(x, constrain(y, z))
        assert left == right or (isinstance(left, InvalidScope) and isinstance(right, InvalidScope))

    @given(SCOPES)
    def test_idempotent_with_an_identity(self, x: Scope) -> None:
        """A scope intersected with itself, or with everything, is itself."""
        assert constrain(x, x) == x
        assert constrain(AnyScope(), x) == x == constrain(x, AnyScope())

    @given(SCOPES, SCOPES)
    def test_invalid_means_empty(self, x: Scope, y: Scope) -> None:
        """Nothing is in an invalid intersection, and it stays invalid."""
        met = constrain(x, y)
        if isinstance(met, InvalidScope):
            assert not contents(x) & contents(y)
            assert isinstance(constrain(met, x), InvalidScope)
            assert isinstance(constrain(met, y, AnyScope()), InvalidScope)

    @given(SCOPES, SCOPES)
    def test_a_union_contains_what_any_contains(self, x: Scope, y: Scope) -> None:
        """A union's contents are the members' contents, whatever their order."""
        assert contents(UnionScope(x, y)) == contents(x) | contents(y)
        assert UnionScope(x, y) == UnionScope([y, x])
        assert hash(UnionScope(x, y)) == hash(UnionScope(y, x))

    @given(SCOPES)
    def test_in_scope_is_a_valid_intersection(self, x: Scope) -> None:
        """`proc_in_scope(p, s)` says whether `s` and the exact scope of `p` intersect."""
        for p in PROCS:
            exact = constrain(x, ExactScope(p))
            assert proc_in_scope(p, x) == (not isinstance(exact, InvalidScope))

    @given(SCOPES)
    def test_copies_are_equal(self, x: Scope) -> None:
        """Scopes survive pickling as equal values with equal hashes."""
        copied = pickle.loads(pickle.dumps(x))
        assert copied == x
        assert hash(copied) == hash(x)
        assert contents(copied) == contents(x)

    @given(SCOPES, SCOPES)
    def test_comparison_by_effect(self, x: Scope, y: Scope) -> None:
        """`issubset` and `issetequal` compare the processors of the context."""
        assert compatible_processors(x) == contents(x)
        assert issubset(x, y) == (contents(x) <= contents(y))
        assert issetequal(x, y) == (contents(x) == contents(y))
        assert issetequal(x, UnionScope(x, x), constrain(x, x))


# --- edges ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("three_workers")
class TestKinds:
    def test_parents(self) -> None:
        """An exact scope knows its process, and that its node."""
        exact = ExactScope(ThreadProc(3, 1))
        assert exact.parent == ProcessScope(3)
        assert exact.parent.wid == 3
        assert exact.parent.parent == NodeScope("there")
        assert ProcessScope().wid == 1
        assert ProcessScope(OSProc(2)) == ProcessScope(2)

    def test_nodes(self) -> None:
        """A node scope is this host's by default; UUID objects and their text are the same."""
        assert NodeScope() == NodeScope("here")
        identity = uuid.uuid4()
        assert NodeScope(identity) == NodeScope(str(identity))

    def test_the_default_scope_is_a_taint(self) -> None:
        """`DefaultScope()` equals the tainted scope it stands for."""
        assert DefaultScope() == TaintScope(AnyScope(), {DefaultEnabledTaint()})
        assert ProcessorTypeScope(FakeProc) == TaintScope(AnyScope(), {ProcessorTypeTaint(FakeProc)})

    def test_taints_add_up(self) -> None:
        """Taints are kept through nodes and processes, joined, and gone where a processor is known."""
        tainted = constrain(DefaultScope(), ProcessScope(2))
        assert tainted == TaintScope(ProcessScope(2), {DefaultEnabledTaint()})
        both = constrain(tainted, ProcessorTypeScope(ThreadProc))
        assert both == TaintScope(ProcessScope(2), {DefaultEnabledTaint(), ProcessorTypeTaint(ThreadProc)})
        assert constrain(both, ExactScope(ThreadProc(2, 2))) == ExactScope(ThreadProc(2, 2))
        assert isinstance(constrain(both, NodeScope("there")), InvalidScope)
        assert TaintScope(DefaultScope(), {ProcessorTypeTaint(ThreadProc)}).scope == AnyScope()

    def test_subclasses_are_of_a_type(self) -> None:
        """A type scope takes subclasses in."""
        assert contents(ProcessorTypeScope(FakeProc, ProcessScope(1))) == {FakeProc(1), SubFakeProc(1)}

    def test_unions(self) -> None:
        """A union flattens, drops duplicates, stays a union, and can't be empty."""
        a, b, c = (ExactScope(ThreadProc(1, 1)), ProcessScope(2), NodeScope("there"))
        assert UnionScope(a, [b, (c,)]).scopes == (a, b, c)
        assert UnionScope(UnionScope(a, b), b, a).scopes == (a, b)
        assert constrain(UnionScope(a, a), a) == UnionScope(a)
        assert UnionScope(a, b) != UnionScope(a, c)
        assert isinstance(constrain(UnionScope(a, b), c), InvalidScope)
        for empty in ((), ([],), ((),)):
            with pytest.raises(ValueError, match="at least one"):
                UnionScope(*empty)

    def test_an_invalid_scope_remembers(self) -> None:
        """An empty intersection says of what; the fold stops at the first one."""
        a, b = ProcessScope(1), ProcessScope(2)
        nothing = constrain(a, b, NodeScope("there"))
        assert isinstance(nothing, InvalidScope)
        assert {nothing.x, nothing.y} == {a, b}
        assert nothing == InvalidScope(b, a)
        assert not contents(nothing)

    def test_scopes_are_immutable(self) -> None:
        """No attribute can be set or deleted."""
        with pytest.raises(AttributeError):
            ProcessScope(1).wid = 2
        with pytest.raises(AttributeError):
            del ProcessScope(1).wid

    @pytest.mark.parametrize(
        "make",
        [
            lambda: ProcessScope("1"),
            lambda: ProcessScope(0),
            lambda: ProcessScope(True),
            lambda: NodeScope(3),
            lambda: ExactScope(1),
            lambda: UnionScope(1),
            lambda: TaintScope(1, ()),
            lambda: TaintScope(AnyScope(), (1,)),
            lambda: ProcessorTypeScope(int),
            lambda: constrain(AnyScope(), 1),
            lambda: constrain(AnyScope(), AnyScope(), 1),
            lambda: proc_in_scope(ThreadProc(1, 1), 1),
            lambda: compatible_processors(1),
            lambda: compatible_processors(AnyScope(), 1),
        ],
    )
    def test_nonsense_is_refused(self, make: Any) -> None:
        """What can't be a scope is an InvalidOptionError at once."""
        with pytest.raises(InvalidOptionError):
            make()

    def test_texts_can_be_read(self) -> None:
        """The text of a scope is the call that makes it."""
        for text in (
            "AnyScope()",
            "DefaultScope()",
            "ProcessScope(2)",
            "NodeScope('here')",
            "ExactScope(ThreadProc(1, 2))",
            "ProcessorTypeScope(ThreadProc, ProcessScope(1))",
            "ProcessorTypeScope(FakeProc)",
            "UnionScope(ProcessScope(1), ProcessScope(2))",
            "TaintScope(ProcessScope(1), {DefaultEnabledTaint()})",
            "InvalidScope(ProcessScope(1), ProcessScope(2))",
        ):
            assert repr(eval(text)) == text
        assert eval(repr(constrain(DefaultScope(), ProcessorTypeScope(ThreadProc)))) == constrain(
            DefaultScope(), ProcessorTypeScope(ThreadProc)
        )


@pytest.mark.usefixtures("three_workers")
class TestQueries:
    def test_the_default_is_what_is_enabled(self) -> None:
        """Without options the compatible processors are the threads."""
        assert compatible_processors() == {ThreadProc(w, t) for w in WORKERS for t in (1, 2)}
        assert num_processors() == 6
        assert num_processors(all=True) == len(all_processors()) == 12
        assert num_processors(ProcessScope(1)) == 4

    def test_the_current_compute_scope(self) -> None:
        """Scoped `compute_scope` wins over scoped `scope`, and that over the default."""
        one, two = ProcessScope(1), ProcessScope(2)
        assert current_compute_scope() == DefaultScope()
        with with_options(scope=one):
            assert current_compute_scope() == one
            with with_options(compute_scope=two):
                assert current_compute_scope() == two
                assert {p.owner for p in compatible_processors()} == {2}

    def test_of_a_context(self) -> None:
        """A context is an object with `procs`, or a list of workers."""

        class Context:
            procs = (OSProc(2),)

        assert compatible_processors(DefaultScope(), Context()) == {ThreadProc(2, 1), ThreadProc(2, 2)}
        assert compatible_processors(DefaultScope(), [3]) == {ThreadProc(3, 1), ThreadProc(3, 2)}
        assert all_processors([1]) == get_processors(OSProc(1))

    def test_of_the_eager_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a context named, the workers of the one that `spawn` uses count."""
        monkeypatch.setattr(context, "_eager", context.Context([2]))
        assert num_processors() == 2
        assert scope(threads=1) == ExactScope(ThreadProc(2, 1))
