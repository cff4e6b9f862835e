"""`LoggedList`: a stream of a fetched log, a list whose rows are made when they are read.

Why it is a list and not just a sequence: a fetched stream always was one, `json.dumps` takes nothing else, and it is
the caller's, to append to and sort. It reads like one with its rows in place; the first change puts them there, and it
is an ordinary list from then on.

What goes past its methods, as some libraries in C do with what they take for a plain list, finds three times one item,
`UNREAD`, that can't be encoded, compared or made a text: an error, not an empty log. (Three, for what sorts or keeps a
heap compares no single item, and `heapq.heappop` none of two.) `list(stream)` is what such a library can be given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import forks
from ..errors import UnreadRowsError
from .reading import Parts, StreamView
from .rows import Columns

__all__ = ["UNREAD", "LoggedList", "parts_together", "read_together"]


def _refuse(*_: Any) -> Any:
    raise UnreadRowsError("rows that are not read yet: give list(stream) to what reads lists past their methods")


class _Unread:
    __slots__ = ()

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __bool__ = _refuse
    __str__ = __format__ = __reduce_ex__ = _refuse

    def __repr__(self) -> str:
        return "<rows that are not read yet: give list(stream) to what reads lists past their methods>"


UNREAD = _Unread()

_RECENT = 4
"""Segments whose rows are remembered, for who jumps to and fro."""


def _of_rows(name: str) -> Any:
    """The list's method of that name, of a list with the rows."""
    method: Callable[..., Any] = getattr(list, name)

    def read(self: LoggedList, *args: Any, **named: Any) -> Any:
        return method(list(self), *map(_plain, args), **named)

    read.__name__, read.__doc__ = name, method.__doc__
    return read


def _in_place(name: str) -> Any:
    """The list's method of that name, once the rows are in place."""
    method: Callable[..., Any] = getattr(list, name)

    def change(self: LoggedList, *args: Any, **named: Any) -> Any:
        return method(self.filled(), *args, **named)

    change.__name__, change.__doc__ = name, method.__doc__
    return change


def _plain(value: Any) -> Any:
    return list(value) if type(value) is LoggedList else value


class LoggedList(list[Any]):
    """See the module. Thread-safe as a list is."""

    __slots__ = ("_made", "_recent", "_view")

    __hash__ = None

    def __init__(self, view: StreamView) -> None:
        super().__init__((UNREAD,) * 3)
        self._view: StreamView | None = view
        self._recent: dict[int, Sequence[Any]] = {}
        self._made = 0  # how often the rows of a segment were made for some of them only

    @property
    def view(self) -> StreamView | None:
        """The rows that are not made; None once they are in place."""
        return self._view

    def filled(self) -> LoggedList:
        """This very list, with its rows in place."""
        view = self._view
        if view is not None:
            rows = list(view)
            with _lock:
                if self._view is not None:
                    list.__setitem__(self, slice(None), rows)
                    self._view, self._recent = None, {}
        return self

    # ---- reading -------------------------------------------------------------------------------

    def __len__(self) -> int:
        view = self._view
        return list.__len__(self) if view is None else len(view)

    def __iter__(self) -> Iterator[Any]:
        view = self._view
        return list.__iter__(self) if view is None else iter(view)

    def __getitem__(self, key: Any) -> Any:
        view = self._view
        if view is None:
            return list.__getitem__(self, key)
        if isinstance(key, slice):
            return self._slice(view, key)
        index = range(len(view))[key]
        number = bisect_right(view.parts.bounds, index)
        return self._segment(view, number)[index - (view.parts.bounds[number - 1] if number else 0)]

    def _slice(self, view: StreamView, key: slice) -> list[Any]:
        wanted = range(len(view))[key]
        if not wanted:
            return []
        first, last = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
        bounds = view.parts.bounds
        numbers = range(bisect_right(bounds, first), bisect_right(bounds, last) + 1)
        rows: list[Any] = []
        for number in numbers:
            rows += self._segment(view, number) if len(numbers) <= _RECENT else view.rows_of(number)
        base = bounds[numbers[0] - 1] if numbers[0] else 0
        until = wanted.stop - base
        return rows[wanted.start - base : until if until >= 0 else None : wanted.step]

    def _segment(self, view: StreamView, number: int) -> Sequence[Any]:
        """The rows of a segment. Who jumps to and fro for long gets all of them put in place."""
        rows = self._recent.get(number)
        if rows is None:
            rows = view.rows_of(number)
            recent = {**self._recent, number: rows}
            if len(recent) > _RECENT:
                del recent[next(iter(recent))]
            self._recent = recent
            self._made += 1
            if self._made > 2 * len(view.parts.bounds):
                self.filled()
        return rows

    def __reversed__(self) -> Iterator[Any]:
        view = self._view
        if view is None:
            yield from list.__reversed__(self)
        else:
            for number in reversed(range(len(view.parts.bounds))):
                yield from reversed(view.rows_of(number))

    def __contains__(self, value: object) -> bool:
        view = self._view
        if view is None:
            return list.__contains__(self, value)
        return any(value in view.rows_of(number) for number in range(len(view.parts.bounds)))

    def __radd__(self, other: Any) -> Any:
        return [*other, *self] if isinstance(other, list) else NotImplemented

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (), None, iter(self)

    def __arrow_array__(self, type: Any = None) -> Any:
        import pyarrow  # only pyarrow asks

        told = self._view.arrow() if self._view is not None else None
        if told is None:
            rows = [dict(row) if hasattr(row, "keys") else row for row in self]
            return pyarrow.array(rows, type)
        return told if type is None else told.cast(type)

    __eq__ = _of_rows("__eq__")
    __ne__ = _of_rows("__ne__")
    __lt__ = _of_rows("__lt__")
    __le__ = _of_rows("__le__")
    __gt__ = _of_rows("__gt__")
    __ge__ = _of_rows("__ge__")
    __add__ = _of_rows("__add__")
    __mul__ = _of_rows("__mul__")
    __rmul__ = _of_rows("__rmul__")
    __repr__ = _of_rows("__repr__")
    copy = _of_rows("copy")
    count = _of_rows("count")
    index = _of_rows("index")

    # ---- changes -------------------------------------------------------------------------------

    __setitem__ = _in_place("__setitem__")
    __delitem__ = _in_place("__delitem__")
    __iadd__ = _in_place("__iadd__")
    __imul__ = _in_place("__imul__")
    append = _in_place("append")
    clear = _in_place("clear")
    extend = _in_place("extend")
    insert = _in_place("insert")
    pop = _in_place("pop")
    remove = _in_place("remove")
    reverse = _in_place("reverse")
    sort = _in_place("sort")


_lock = forks.lock()


def read_together(*streams: Any) -> Iterator[Columns] | None:
    """The events of these streams of one fetch by columns, from the first on; None where they have rows of their own.

    For those who need times, ids, categories or phases, and no row of a consumer that says just that.
    """
    parts = parts_together(*streams)
    return None if parts is None else parts.read_all()


def parts_together(*streams: Any) -> Parts | None:
    """The segments that `read_together` reads."""
    views = [stream.view if type(stream) is LoggedList else None for stream in streams]
    first = views[0] if views else None
    if first is None or not all(view is not None and view.says_columns(first.parts) for view in views):
        return None
    return first.parts
