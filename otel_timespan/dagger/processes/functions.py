"""Functions cross once: what sends them gives each a number, by which they are called from then on.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import weakref
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

from ..places.topology import topology
from .byvalue import is_main, newer, newest, parts_of
from .wire import FUNCTION, GLOBALS, dumps, loads

__all__ = ["KnownFunctions", "NumberedFunctions"]

_NUMBERED = frozenset((FunctionType, BuiltinFunctionType, type))
"""Types of functions that are the same for each call; others may have changed meanwhile."""


class NumberedFunctions:
    """The numbers of the functions that the other side knows. One that goes here is forgotten there.

    `tell(message)` says that a function went: it may be called at any allocation, on any thread.
    """

    def __init__(self, handles: Mapping[type, Callable[[Any], Any]], tell: Callable[[Any], None]) -> None:
        self._handles, self._tell = handles, tell
        self._numbers: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._next = itertools.count()
        self._of_main: set[int] = set()
        """Those that share the globals of the head's `__main__`, by `id()`."""
        self._renewed = 0
        """How new those are that the other side knows."""

    def known(self, f: Any) -> int | None:
        """The number of a function that the other side knows already, and all that it needs."""
        key = id(f)
        number = self._numbers.get(key)
        if number is not None and key in self._of_main and newest() != self._renewed:
            return None
        return number

    def number_of(self, f: Any, put: Callable[[Any], None]) -> int | None:
        """The number that stands for a function; its definition is `put` before anybody else can see that number.

        None for what goes along with each call, as any value. Raises what its pickling raises.
        """
        if type(f) not in _NUMBERED:
            return None
        key = id(f)
        number = self._numbers.get(key)
        if number is None:
            data = self._definition(f)
            number = next(self._next)
            put((FUNCTION, number, data))
            self._watched[key] = weakref.ref(f, lambda _: self._went(key))
            self._numbers[key] = number
            if is_main(f) and topology.me() == 1:
                self._of_main.add(key)
        elif key in self._of_main:
            self._renew(put)
        return number

    def _definition(self, f: Any) -> bytes:
        """The function as bytes. Raises what its pickling raises, if possible with the part that is to blame."""
        try:
            return dumps(f, self._handles)[0]
        except Exception as error:
            for what, value in parts_of(f) if type(f) is FunctionType else ():
                try:
                    dumps(value, self._handles)
                except Exception as reason:
                    text = f"{what} of {f.__qualname__} can't be pickled: {reason}"
                    raise pickle.PicklingError(text) from error
            raise

    def _renew(self, put: Callable[[Any], None]) -> None:
        """Send globals of `__main__` that are other objects than when they were sent."""
        now = newest()
        if now == self._renewed:
            return
        changed, self._renewed = newer(self._renewed), now
        for name, known in changed.items():
            with contextlib.suppress(Exception):  # it can't be pickled: what is there stays
                put((GLOBALS, dumps({name: known}, self._handles)[0]))

    def _went(self, key: int) -> None:
        number = self._numbers.pop(key, None)
        self._watched.pop(key, None)
        self._of_main.discard(key)
        if number is not None:
            self._tell((FUNCTION, number, None))


class KnownFunctions:
    """The functions that the other side gave numbers. For one thread."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def learn(self, number: int, data: bytes | None) -> None:
        """It has this number from now on; None: the number is not used any more."""
        if data is None:
            self._known.pop(number, None)
        else:
            self._known[number] = data

    def get(self, number: int) -> Any:
        """The function, read at its first use. Raises what reading it raises."""
        f = self._known[number]
        if type(f) is bytes:
            f = self._known[number] = loads(f)
        return f
