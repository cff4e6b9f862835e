"""Columns give back what they keep, and keep it in few objects."""

from __future__ import annotations

import gc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from otel_timespan.timespans.model import ChunkInfo, EventId, TaskRef, ValueInfo
from otel_timespan.timespans.packing import packed, packed_by, packed_ints


class Odd(tuple[Any, ...]):
    """A tuple of a program's own."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise AssertionError("nobody compares what a program gave")

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Any:
        raise AssertionError("nor looks into it")


_plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-9, 9), st.floats(), st.text(max_size=3), st.just(int),
    st.sampled_from(["a", "b"]), st.just(0.0), st.just(-0.0), st.builds(Odd, st.tuples(st.integers())),
)  # fmt: skip
_tuples = st.recursive(
    _plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.builds(ChunkInfo, inner, inner, inner, inner),
        st.builds(ValueInfo, inner, inner, inner),
        st.builds(TaskRef, inner),
        st.builds(lambda a, b: EventId(thunk_id=a, position=b), inner, inner),
        st.builds(lambda a: EventId(uid=a), inner),
    ),
    max_leaves=6,
)


def shown(value: Any) -> Any:
    """A value with the types of all that is in it."""
    if isinstance(value, tuple) and type(value) is not Odd:
        return type(value), [shown(item) for item in tuple.__iter__(value)]
    return (type(value), repr(value)) if type(value) is not Odd else id(value)


@given(st.one_of(st.lists(_tuples, min_size=1), st.lists(_plain, min_size=1), st.lists(st.integers(), min_size=1)))
def test_what_is_packed_comes_back(values: list[Any]) -> None:
    """In order, equal in value and type, as often as it is asked for."""
    for column in (packed(values), packed(tuple(values))):
        for _ in range(2):
            assert list(map(shown, column)) == list(map(shown, values))


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1))
def test_integers_come_back(values: list[int]) -> None:
    """Those beyond 64 bits, too."""
    assert list(packed_ints(values)) == values


@given(st.lists(st.one_of(st.integers(0, 400), st.sampled_from(["a", "b"])), min_size=1))
def test_what_stands_for_values_comes_back(values: list[Any]) -> None:
    """However many different ones there are."""
    assert list(packed_by(values, str)) == list(map(str, values))


def test_columns_are_few_objects() -> None:
    """The garbage collector finds next to nothing in the descriptions of a thousand moves."""
    values = [("results", n, 28, int, 0, 2**40 + n, None, ValueInfo(list, 64 + n, n), "task") for n in range(1000)]
    column, found, waiting = packed(values), set[int](), []
    waiting.append(column)
    while waiting:
        one = waiting.pop()
        if id(one) not in found and gc.is_tracked(one) and not isinstance(one, type):
            found.add(id(one))
            waiting += gc.get_referents(one)
    assert len(found) < 40
