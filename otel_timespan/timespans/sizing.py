"""How much memory waits in a journal: an estimate that never calls a user's code.

Objects of types that are made in C say their size themselves. Of all others, only what they are made of is looked
at (as a tuple, a dict, ...), by the methods of those bases: a `__sizeof__`, `__len__` or `__iter__` of a program's own
could block, raise or log.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

from .model import NO_GC, NO_SAMPLES, Event, EventId, IdLayout

__all__ = ["nbytes_of", "total_nbytes"]

_flags_of = type.__dict__["__flags__"].__get__
_HEAP_TYPE, _LIST, _TUPLE, _BYTES, _TEXT, _DICT, _ERROR = 1 << 9, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
"""Bits of a type's flags: made in Python, or derived from one of these."""

_BASES = ((_TUPLE, tuple), (_LIST, list), (_BYTES, bytes), (_TEXT, str), (_DICT, dict))

_KNOWN: dict[type, int] = {int: 32, float: 24}
_KNOWN |= dict.fromkeys((bool, type(None), type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType), 0)
"""What is not looked at: most of a record. What lives elsewhere anyway counts nothing."""

_OBJECT = 64
_DEPTH, _WIDTH = 4, 16
"""How deep, and at how many items of each container, it looks; others are as large as those."""

def total_nbytes(records: Sequence[Any], seed: int = 0) -> tuple[int, bool]:
    """Estimated bytes of these records, and whether there are events among them.

    Every event is looked at, for a program may put anything into it. Of the others, which are of few kinds and describe
    the data instead of keeping it, two are, at places that depend on `seed`.
    """
    if Event in set(map(type, records)):
        others = [record for record in records if type(record) is not Event]
        nbytes = sum([_of_event(record) for record in records if type(record) is Event])
        return nbytes + _sampled(others, seed), True
    return _sampled(records, seed), False


_OF_EVENT = sys.getsizeof(Event("", "", None)) + 3 * _KNOWN[int]
"""An event itself, its time and what is small in it."""


def _of_event(event: Event) -> int:
    """`nbytes_of` an event, for which what most events share is not looked at again and again."""
    _, category, id, timeline, _, gc_num, profiled, _, taken = event
    nbytes = _OF_EVENT
    if type(id) is EventId:
        for value in tuple.__iter__(id):
            kind = type(value)
            if kind is not int and kind is not IdLayout:
                nbytes += nbytes_of(value, _DEPTH - 2)
        nbytes += tuple.__sizeof__(id) + _KNOWN[int] * tuple.__len__(id)
    elif type(id) is not int:
        nbytes += nbytes_of(id, _DEPTH - 1)
    for value in (category, timeline, gc_num, profiled, taken):
        if value is not None and value is not NO_SAMPLES and value is not NO_GC:
            nbytes += sys.getsizeof(value) if type(value) is str else nbytes_of(value, _DEPTH - 1)
    return nbytes


def _sampled(records: Sequence[Any], seed: int) -> int:
    count = len(records)
    if not count:
        return 0
    first = seed % count
    return (nbytes_of(records[first]) + nbytes_of(records[first - count // 2])) * count // 2


def nbytes_of(one: Any, depth: int = _DEPTH) -> int:
    """Estimated bytes of an object and of what it contains."""
    kind = type(one)
    known = _KNOWN.get(kind)
    if known is not None:
        return known
    flags = _flags_of(kind)
    if flags & _HEAP_TYPE:
        nbytes = _OBJECT
        for bit, base in _BASES:
            if flags & bit:
                nbytes = base.__sizeof__(one)
    else:
        nbytes = sys.getsizeof(one, _OBJECT)
    if not depth:
        return nbytes
    if flags & _TUPLE:
        return nbytes + _of_items(tuple.__len__(one), tuple.__iter__(one), depth)
    if flags & _LIST:
        return nbytes + _of_items(list.__len__(one), iter(list.__getitem__(one, slice(_WIDTH))), depth)
    if flags & _DICT:
        return nbytes + _of_dict(one, depth)
    if flags & _ERROR:
        return nbytes + nbytes_of(BaseException.args.__get__(one), depth - 1)  # type: ignore[attr-defined]
    if kind is types.SimpleNamespace:
        return nbytes + _of_dict(one.__dict__, depth)
    return nbytes


def _of_items(count: int, items: Iterable[Any], depth: int) -> int:
    looked = total = 0
    for item in items:
        known = _KNOWN.get(type(item))
        total += nbytes_of(item, depth - 1) if known is None else known
        looked += 1
        if looked == _WIDTH:
            break
    return total * count // looked if looked else 0


def _of_dict(one: dict[Any, Any], depth: int) -> int:
    try:
        return _of_items(dict.__len__(one), dict.values(one), depth)
    except RuntimeError:  # it grew meanwhile
        return 0
