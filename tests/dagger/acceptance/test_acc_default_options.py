"""spec/scheduler.md §4.3: defaults of options by signature."""

from __future__ import annotations

from typing import Any

import pytest

from otel_timespan import dagger as D
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
