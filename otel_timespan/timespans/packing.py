"""How the columns of many records are kept: in few objects, of which the garbage collector walks next to none.

`packed(values)` keeps what all share once, integers in an array, texts as indexes into a table, tuples as columns in
their turn. Iterating over the result gives the values back, in order, equal in value and type. All else is kept as it
is. No method of a value is called: what a program gave may do anything when it is compared.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import is_
from typing import Any

from .model import ChunkInfo, EventId, TaskRef, ValueInfo

__all__ = ["ints_of", "packed", "packed_by", "packed_ints", "packed_ours"]

_SMALL = 256
"""So many different texts, or shapes of tuples, fit a table whose indexes are bytes."""

_KINDS = frozenset({tuple, ChunkInfo, EventId, TaskRef, ValueInfo})
"""Tuples that can be made again from their items."""


class _Constant:
    """The same value for all."""

    __slots__ = ("count", "value")

    def __init__(self, value: Any, count: int) -> None:
        self.value, self.count = value, count

    def __iter__(self) -> Iterator[Any]:
        return repeat(self.value, self.count)


class _Table:
    """Few different texts: which of them each is."""

    __slots__ = ("indexes", "values")

    def __init__(self, values: Sequence[Any], indexes: bytes) -> None:
        self.values, self.indexes = values, indexes

    def __iter__(self) -> Iterator[Any]:
        return map(self.values.__getitem__, self.indexes)


class _Tuples:
    """Tuples of one class and length, by columns."""

    __slots__ = ("columns", "kind")

    def __init__(self, kind: type, values: Sequence[Any], pack: Callable[[Sequence[Any]], Any]) -> None:
        self.kind = kind
        self.columns = tuple(map(pack, zip(*map(tuple.__iter__, values), strict=True)))

    def __iter__(self) -> Iterator[Any]:
        rows: Iterator[Any] = zip(*self.columns, strict=True)
        return rows if self.kind is tuple else map(_new, repeat(self.kind), rows)


class _Mixed:
    """Tuples of a few classes and lengths: which of these each is."""

    __slots__ = ("groups", "indexes")

    def __init__(self, groups: Sequence[Any], indexes: bytes) -> None:
        self.groups, self.indexes = groups, indexes

    def __iter__(self) -> Iterator[Any]:
        return map(next, map([iter(group) for group in self.groups].__getitem__, self.indexes))


_new, _length = tuple.__new__, tuple.__len__
_ALL_INTS, _ALL_TEXTS = {int}, {str}


def packed_ints(values: Sequence[Any]) -> Any:
    """As `packed`, of integers of ours: no look at the type of each."""
    first = values[0]
    if first == values[-1] and values.count(first) == len(values):
        return _Constant(first, len(values))
    try:
        return array("q", values)
    except (TypeError, OverflowError):  # others after all
        return tuple(values)


def ints_of(column: Any, count: int) -> Any:
    """What is kept of `count` integers as a numpy array. `TypeError` where one is no integer."""
    import numpy as np

    if type(column) is array:
        return np.frombuffer(column, "int64")
    if type(column) is _Constant and type(column.value) is int:
        return np.full(count, column.value, "int64")
    values = list(column)
    if not _ALL_INTS.issuperset(map(type, values)):
        raise TypeError("these are not integers alone")
    return np.array(values, "int64")


def packed(values: Sequence[Any]) -> Any:
    """What keeps these values, of which there is at least one."""
    first = values[0]
    if first is values[-1] and all(map(is_, values, repeat(first))):
        return _Constant(first, len(values))
    kinds = set(map(type, values))
    if kinds == _ALL_INTS:
        return packed_ints(values)
    if kinds == _ALL_TEXTS:
        return _packed_texts(values)
    return _packed_tuples(values, kinds, packed) if kinds <= _KINDS else tuple(values)


def packed_ours(values: Sequence[Any]) -> Any:
    """As `packed`, of what we made ourselves: where there are integers, no bool stands for one."""
    first = values[0]
    if type(first) is int:
        column = packed_ints(values)
        return packed(values) if type(column) is tuple else column
    if first is values[-1] and all(map(is_, values, repeat(first))):
        return _Constant(first, len(values))
    kinds = set(map(type, values))
    return _packed_tuples(values, kinds, packed_ours) if kinds <= _KINDS else packed(values)


def _packed_texts(values: Sequence[str]) -> Any:
    indexes = {text: n for n, text in enumerate(dict.fromkeys(values))}
    if len(indexes) > min(_SMALL, len(values) // 2):
        return tuple(values)
    return _Table(tuple(indexes), bytes(map(indexes.__getitem__, values)))


def packed_by(values: Sequence[Any], made: Callable[[Any], Any]) -> Any:
    """What keeps `made(value)` of each value, of which few differ; called once for values that are one object."""
    if values[0] is values[-1] and all(map(is_, values, repeat(values[0]))):
        return _Constant(made(values[0]), len(values))
    numbers = values if set(map(type, values)) == _ALL_INTS else list(map(id, values))
    each = {number: made(value) for number, value in dict(zip(numbers, values, strict=True)).items()}
    objects = {id(one): one for one in each.values()}
    if len(objects) > _SMALL:
        return tuple([each[number] for number in numbers])
    places = {number: place for place, number in enumerate(objects)}
    index = {number: places[id(one)] for number, one in each.items()}
    return _Table(tuple(objects.values()), bytes(map(index.__getitem__, numbers)))


def _packed_tuples(values: Sequence[Any], kinds: set[type], pack: Callable[[Sequence[Any]], Any]) -> Any:
    lengths = set(map(_length, values))
    if len(kinds) == len(lengths) == 1 and 0 not in lengths:
        return _Tuples(type(values[0]), values, pack)
    keys = list(zip(map(type, values), map(_length, values), strict=True))
    numbers = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    if len(numbers) > min(_SMALL, len(values) // 2):
        return tuple(values)
    indexes = bytes(map(numbers.__getitem__, keys))
    groups: list[Any] = []
    for number, (kind, length) in enumerate(numbers):
        members = [value for value, index in zip(values, indexes, strict=True) if index == number]
        groups.append(_Tuples(kind, members, pack) if length else tuple(members))
    return _Mixed(groups, indexes)
