"""spec/scheduler.md, defaults of options by signature, and whose value wins."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.options import defaults
from otel_timespan.dagger.options.defaults import apply_defaults, default_option, set_default_option
from otel_timespan.dagger.options.options import DEFAULT, Options
from otel_timespan.dagger.options.scoped import (
    effective,
    propagated,
    with_options,
)
from otel_timespan.dagger.places.processors import OSProc, ThreadProc
from otel_timespan.dagger.places.scopes import AnyScope, ExactScope, ProcessScope
from otel_timespan.errors import InvalidOptionError, NotCallableError
from tests.dagger.acceptance.stubs import TaskLike
from tests.dagger.acceptance.support import boom, identity

pytestmark = pytest.mark.usefixtures("legacy")


def test_s4_3_a_default_by_signature(cluster: D.Context) -> None:
    """§4.3 accept: the default holds for the types given, subclasses too; other calls are unaffected; options win."""

    def f(x: Any, **kwargs: Any) -> int:
        return D.myid()

    class Number(int):
        pass

    D.set_default_option("compute_scope", f, (int,), D.ProcessScope(2))
    assert {D.fetch(D.spawn(f, 3)) for _ in range(10)} == {2}
    assert {D.fetch(D.spawn(f, Number(3), key=1)) for _ in range(10)} == {2}
    assert set(D.fetch_all([D.spawn(f, "x") for _ in range(20)])) == {1, 2}
    assert {D.fetch(D.spawn(f, D.Options(scope=D.ProcessScope(1)), 3)) for _ in range(10)} == {1}
    with D.with_options(scope=D.ProcessScope(1)):
        assert D.fetch(D.spawn(f, 3)) == 1


def test_s4_3_the_decorator(cluster: D.Context) -> None:
    """§4.3: `@default_option(name, f, *types)` on a function of no arguments."""

    def f(x: Any) -> int:
        return D.myid()

    @D.default_option("compute_scope", f, int)
    def _scope() -> D.Scope:
        return D.ProcessScope(2)

    assert {D.fetch(D.spawn(f, 3)) for _ in range(10)} == {2}


def test_s4_3_in_batches_and_by_results(cluster: D.Context) -> None:
    """§4.3: in the lazy API too, and by the type of an upstream's result."""

    def f(x: Any) -> int:
        return D.myid()

    D.set_default_option("compute_scope", f, (int,), D.ProcessScope(2))
    assert D.collect(D.delayed(f)(3)) == 2
    assert {D.fetch(D.spawn(f, D.spawn(identity, 5))) for _ in range(10)} == {2}
    assert {D.fetch(D.spawn(f, D.tochunk(5))) for _ in range(10)} == {2}


def test_s4_3_an_error_in_a_default_falls_back(cluster: D.Context) -> None:
    """§4.3 defect 21: a default that raises counts as unset; a later registration is seen at once."""

    def f(x: Any) -> int:
        return D.myid()

    D.default_option("compute_scope", f, int)(boom)
    assert set(D.fetch_all([D.spawn(f, 3) for _ in range(20)])) == {1, 2}
    D.set_default_option("compute_scope", f, (int,), D.ProcessScope(2))
    assert {D.fetch(D.spawn(f, 3)) for _ in range(10)} == {2}


# --- edges ---------------------------------------------------------------------------------------------------

A, B = ProcessScope(1), ProcessScope(2)


T1, T2 = TaskLike(1), TaskLike(2)


def f(*args: Any) -> None:
    """A function to register defaults for."""


class TestDefaults:
    @pytest.fixture(autouse=True)
    def _registry(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(defaults, "signature_defaults", {})
        yield
        defaults._matching.cache_clear()

    def test_values_by_signature(self) -> None:
        """A default holds for its function and argument types, subclasses included."""
        set_default_option("compute_scope", f, (int,), B)
        assert apply_defaults(DEFAULT, f, (int,)).compute_scope == B
        assert apply_defaults(DEFAULT, f, (bool,)).compute_scope == B
        for types in [(str,), (), (int, int)]:
            assert apply_defaults(DEFAULT, f, types) is DEFAULT
        assert apply_defaults(DEFAULT, print, (int,)) is DEFAULT

    def test_explicit_options_win(self) -> None:
        """An option that is set is not replaced, and an explicit scope keeps default scopes out."""
        set_default_option("compute_scope", f, (int,), B)
        set_default_option("exec_scope", f, (int,), B)
        set_default_option("name", f, (int,), "default")
        taken = apply_defaults(Options(scope=A, name="own"), f, (int,))
        assert (taken.compute_scope, taken.exec_scope, taken.name) == (A, None, "own")
        with with_options(scope=A):
            scoped_one = apply_defaults(effective(None), f, (int,))
        assert (scoped_one.scope, scoped_one.compute_scope, scoped_one.exec_scope) == (A, None, None)
        assert apply_defaults(Options(result_scope=AnyScope()), f, (int,)).exec_scope is None

    def test_given_options_are_not_changed(self) -> None:
        """Filling up makes a copy; the sets in it are its own."""
        set_default_option("syncdeps", f, (), {T1})
        own = Options(name="x")
        first, second = apply_defaults(own, f, ()), apply_defaults(own, f, ())
        first.syncdeps.add(T2)  # type: ignore[union-attr]
        assert second.syncdeps == {T1}
        assert own == Options(name="x")

    def test_the_most_specific_signature_wins(self) -> None:
        """Whatever the order of registration; `Any` matches all."""
        set_default_option("name", f, (bool,), "bool")
        set_default_option("name", f, (Any,), "any")
        set_default_option("name", f, (int,), "int")
        assert [apply_defaults(DEFAULT, f, (t,)).name for t in (bool, int, str)] == ["bool", "int", "any"]

    def test_registering_again_takes_effect_at_once(self) -> None:
        """The memo does not outlive a registration."""
        set_default_option("name", f, (int,), "old")
        assert apply_defaults(DEFAULT, f, (int,)).name == "old"
        set_default_option("name", f, (int,), "new")
        assert apply_defaults(DEFAULT, f, (int,)).name == "new"
        set_default_option("name", f, (bool,), "newest")
        assert apply_defaults(DEFAULT, f, (bool,)).name == "newest"

    def test_providers(self) -> None:
        """A provider is asked each time; None means no default."""
        answers = iter([A, None, B])

        @default_option("compute_scope", f, int)
        def where() -> Any:
            return next(answers)

        assert [apply_defaults(DEFAULT, f, (int,)).compute_scope for _ in range(3)] == [A, None, B]
        set_default_option("name", f, (), lambda: "provided")
        assert apply_defaults(DEFAULT, f, ()).name == "provided"

    def test_callable_values_are_values(self) -> None:
        """Where the option itself is a function, `set_default_option` takes it as such."""
        set_default_option("restore", f, (), f)
        assert apply_defaults(DEFAULT, f, ()).restore is f

    def test_errors_fall_back(self, caplog: pytest.LogCaptureFixture) -> None:
        """A provider that raises, or answers nonsense, leaves the option unset, with one warning."""

        @default_option("name", f)
        def boom() -> str:
            raise RuntimeError("no idea")

        @default_option("meta", f)
        def odd() -> int:
            return 3

        for _ in range(2):
            assert apply_defaults(DEFAULT, f, ()) is DEFAULT
        assert caplog.text.count("RuntimeError: no idea") == 1
        assert "option meta=3" in caplog.text

    def test_asking_keeps_no_function_alive(self) -> None:
        """A function without defaults can die after it was asked about."""

        def closure() -> None: ...

        gone = weakref.ref(closure)
        set_default_option("name", f, (), "x")
        assert apply_defaults(DEFAULT, closure, ()) is DEFAULT
        del closure
        gc.collect()
        assert gone() is None

    def test_unhashable_callables(self) -> None:
        """They have no defaults: asking finds none, registering is refused."""

        class Unhashable:
            __hash__ = None  # type: ignore[assignment]

            def __call__(self) -> None:
                raise NotImplementedError

        set_default_option("name", f, (), "x")
        assert apply_defaults(DEFAULT, Unhashable(), ()) is DEFAULT
        with pytest.raises(InvalidOptionError, match="hashable"):
            set_default_option("name", Unhashable(), (), "x")

    def test_bad_registrations_are_refused(self) -> None:
        """Names, functions, types and values are checked at registration."""
        with pytest.raises(InvalidOptionError, match="did you mean 'single'"):
            set_default_option("singel", f, (), 1)
        with pytest.raises(InvalidOptionError, match="no option"):
            default_option("nope", f)(lambda: 1)
        with pytest.raises(InvalidOptionError, match="meta"):
            set_default_option("meta", f, (), 3)
        with pytest.raises(NotCallableError, match="belongs to a function"):
            set_default_option("meta", 3, (), True)
        with pytest.raises(NotCallableError, match="without arguments"):
            default_option("meta", f)(3)  # type: ignore[type-var]
        for types in (int, 3, "int"):
            with pytest.raises(InvalidOptionError, match="tuple of types"):
                set_default_option("meta", f, types, True)  # type: ignore[arg-type]
        with pytest.raises(InvalidOptionError, match="is no type"):
            set_default_option("meta", f, (1,), True)

    def test_exact_scopes_as_defaults(self) -> None:
        """A default exec scope is used where no scope is set."""
        exact = ExactScope(ThreadProc(1, 1))
        set_default_option("exec_scope", f, (), exact)
        assert apply_defaults(Options(name="x"), f, ()).exec_scope == exact


def _f(n: int) -> int:
    return n


PAIRS: dict[str, tuple[Any, Any, Any]] = {
    "scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "compute_scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "result_scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "exec_scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "processor": (OSProc(1), OSProc(2), OSProc(3)),
    "single": (1, 2, 3),
    "get_result": (True, False, True),
    "meta": (True, False, True),
    "time_util": ({ThreadProc: 1.0}, {ThreadProc: 2.0}, {ThreadProc: 3.0}),
    "alloc_util": ({ThreadProc: 1}, {ThreadProc: 2}, {ThreadProc: 3}),
    "occupancy": ({ThreadProc: 0.1}, {ThreadProc: 0.2}, {ThreadProc: 0.3}),
    "checkpoint": (print, max, min),
    "restore": (print, max, min),
    "storage_root_tag": ("a", "b", "c"),
    "storage_leaf_tag": ("a", "b", "c"),
    "storage_retain": (True, False, True),
    "name": ("a", "b", "c"),
    "tag": (1, 2, 3),
    "stream_input_buffer_amount": (1, 2, 3),
    "stream_output_buffer_amount": (1, 2, 3),
    "stream_max_evals": (1, 2, 3),
    "return_type": (int, str, float),
    "retries": (1, 2, 3),
    "retry_delay": (0.1, 0.2, 0.3),
    "timeout": (1.0, 2.0, 3.0),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_precedence_of_every_option(name: str) -> None:
    """The task's own option wins over the scoped one, that over the default of the signature, that over none."""
    own, scoped_value, default = PAIRS[name]
    try:
        set_default_option(name, _f, (int,), default)
        assert getattr(apply_defaults(effective(None), _f, (int,)), name) == default
        with with_options(**{name: scoped_value}):
            assert getattr(apply_defaults(effective(None), _f, (int,)), name) == scoped_value
            given = apply_defaults(effective(Options(**{name: own})), _f, (int,))
            assert getattr(given, name) == own
            assert propagated(given)[name] == own  # type: ignore[index]
        assert getattr(effective(None), name) is None
    finally:
        defaults.signature_defaults.pop(_f, None)
