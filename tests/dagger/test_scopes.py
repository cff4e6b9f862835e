"""Scopes: what they contain, how they intersect, and the `scope(...)` shorthand."""

from __future__ import annotations

import itertools
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_timespan.dagger import context, scoping
from otel_timespan.dagger.options.scoped import with_options
from otel_timespan.dagger.places import scopes as module
from otel_timespan.dagger.places.processors import (
    OSProc,
    Processor,
    ThreadProc,
    add_processor_callback,
    delete_processor_callback,
    get_processors,
    topology,
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
    register_scope_key,
    scope,
)
from otel_timespan.errors import InvalidOptionError, NotCallableError


class FakeProc(Processor):
    """One on each worker, not enabled by default."""

    def __init__(self, owner: int) -> None:
        self.owner = owner

    def get_parent(self) -> Processor:
        return OSProc(self.owner)


class SubFakeProc(FakeProc):
    """A subclass."""


WORKERS = {1: "here", 2: "here", 3: "there"}
"""Three workers on two hosts, with two threads each."""
PROCS = [p for w in WORKERS for p in (ThreadProc(w, 1), ThreadProc(w, 2), FakeProc(w), SubFakeProc(w))]


@pytest.fixture(autouse=True, scope="module")
def _workers() -> Iterator[None]:
    topology.reset(threads=2, node="here")
    for worker, host in WORKERS.items():
        topology.add_worker(worker, 2, node=host)
        with topology.acting_as(worker):
            add_processor_callback(lambda worker=worker: [FakeProc(worker), SubFakeProc(worker)], "scopes")
    yield
    for worker in WORKERS:
        with topology.acting_as(worker):
            delete_processor_callback("scopes")
    topology.reset()


def contents(x: Scope) -> set[Processor]:
    """Which of all processors are in the scope, by the definition."""
    return {p for p in PROCS if proc_in_scope(p, x)}


# --- properties --------------------------------------------------------------------------------------

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

    def test_the_default_scope_meets_exact_ones(self) -> None:
        """Default ∩ an enabled processor is that processor; ∩ another is nothing, in both orders."""
        exact, worker = ExactScope(ThreadProc(2, 1)), ExactScope(OSProc(1))
        for order in itertools.permutations((DefaultScope(), exact)):
            assert constrain(*order) == exact
        for order in itertools.permutations((DefaultScope(), worker)):
            assert isinstance(constrain(*order), InvalidScope)

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
        assert scope(**spec) == eval(wanted) == scope(spec)

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

    def test_a_worker_is_its_threads(self) -> None:
        """`scope(worker=w)` has all default processors of the worker and no other's."""
        assert compatible_processors(scope(worker=2)) == {ThreadProc(2, 1), ThreadProc(2, 2)}


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
