"""How many bytes a value takes: exactly where it says so, else a cheap estimate. Never raises.

int and float count 8, bytes-like exactly, arrays and frames by their own account (unknown where that raises), all
else with what it holds, which is sampled (sampling.py): a bounded number of objects is looked at, however many
there are. No code of a user's runs, but a function given to `register_size` and the attribute `nbytes`, by which
classes say how large they are: `__sizeof__`, `__len__`, `__iter__` and `__getattr__` are never called.

See docs/data.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ...errors import InvalidOptionError, NotCallableError
from .layout import forget_layouts, layout_of, registered
from .sampling import sampled_size

__all__ = ["AT_ONCE", "FIXED", "approx_size", "register_size", "unregister_size"]

FIXED: dict[type, int] = {int: 8, float: 8, bool: 8, complex: 16, type(None): 8}
"""Types whose size is the same for each value."""

_EXACT: dict[type, Callable[[Any], int]] = {bytes: len, bytearray: len, str: sys.getsizeof}
AT_ONCE = frozenset({*FIXED, *_EXACT})
"""Types whose values are measured faster than the result could be looked up."""

_F = TypeVar("_F", bound=Callable[[Any], Any])


def approx_size(value: Any) -> int | None:
    """Estimated bytes of `value` and what it holds, None where it is unknown."""
    kind = type(value)
    try:
        if kind in FIXED:
            return FIXED[kind]
        if kind in _EXACT:
            return _EXACT[kind](value)
        layout = layout_of(kind)
        if layout.whole is not None:
            return layout.whole(value)
        return layout.own(value) if layout.inside is None else sampled_size(value, layout)
    except Exception:  # what says its size raised: the size is unknown, the value is fine
        return None


def register_size(kind: type | str) -> Callable[[_F], _F]:
    """Decorator: the function says how many bytes a value of the class takes, with all that it holds.

    `kind`: a class, or "library.Class" for one that need not be imported now. Holds for subclasses that have none of
    their own, and instead of what was registered before. The function gets the value, and gives a number, or None
    where it is unknown, as it is when it raises. It is called on any thread, so it must be quick and take no lock.
    Raises `InvalidOptionError` for what is no class, `NotCallableError` for what can't be called. Thread-safe.
    """
    if not isinstance(kind, (type, str)):
        raise InvalidOptionError(f'register_size needs a class or "library.Class", not {kind!r}')
    if isinstance(kind, str) and ("." not in kind or kind.startswith(".") or kind.endswith(".")):
        raise InvalidOptionError(f'register_size needs a class or "library.Class", not {kind!r}')

    def register(function: _F) -> _F:
        if not callable(function):
            raise NotCallableError(f"register_size needs a function of the value, not {function!r}")
        registered[kind] = function
        forget_layouts()
        return function

    return register


def unregister_size(kind: type | str) -> None:
    """Undo `register_size` for this class or name. Raises `KeyError` where there is nothing to undo."""
    del registered[kind]
    forget_layouts()


# ---- libraries that don't say all in `nbytes` ---------------------------------------------------------------

_OBJECTS = 16
"""How many elements, or columns, of objects of an array or frame are looked at."""


def _mean_times(sample: list[Any], count: int) -> int:
    known = [size for size in map(approx_size, sample) if size is not None]
    return int(sum(known) / len(known) * count) if known else 0


def _spread(count: int) -> list[int]:
    return [n * count // _OBJECTS for n in range(_OBJECTS)] if count > _OBJECTS else list(range(count))


def _array_size(array: Any) -> int:
    """What is repeated (`broadcast_to`) counts once; objects that are referred to count."""
    nbytes = int(array.itemsize)
    for length, stride in zip(array.shape, array.strides, strict=True):
        nbytes *= length if stride else min(length, 1)
    if array.dtype.kind != "O":
        return nbytes
    return nbytes + _mean_times([array.flat[n] for n in _spread(array.size)], array.size)


def _column_size(column: Any) -> int:
    used = int(column.memory_usage())
    if column.dtype.kind != "O":
        return used
    return used + _mean_times([column.array[n] for n in _spread(len(column))], len(column))


def _frame_size(frame: Any) -> int:
    used = int(frame.memory_usage().sum())
    objects = [n for n, dtype in enumerate(frame.dtypes) if dtype.kind == "O"]
    taken = [frame.iloc[:, objects[n]].array for n in _spread(len(objects))]
    means = [_mean_times([column[n] for n in _spread(len(column))], len(column)) for column in taken]
    return used + (int(sum(means) / len(means) * len(objects)) if means else 0)


registered.update(
    {
        "numpy.ndarray": _array_size,
        "pandas.DataFrame": _frame_size,
        "pandas.Series": _column_size,
        "pandas.Index": _column_size,
        "polars.DataFrame": lambda frame: int(frame.estimated_size()),
        "polars.Series": lambda series: int(series.estimated_size()),
    }
)
