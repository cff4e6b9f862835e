"""Functions of the program's `__main__`, which no other process can import: they travel by value.

cloudpickle gives each such function globals of its own in the process that reads it. But a program's functions share
them: an initializer sets what tasks read. So all functions of `__main__` in a worker have the globals of one module
there, which takes its place. A global is set there when it is seen first, and again when it is another object in the
head by then, as in a notebook whose cells are run again: so what a worker put there itself stays. What a worker put
there is not sent on: it is that process's.

The values of globals that were sent are kept here until others took their place.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

from ..places.topology import topology

__all__ = ["is_main", "main_globals", "newer", "newest", "parts_of", "take", "take_main", "travelling"]

_known: dict[str, tuple[int, Any]] = {}
"""The globals of `__main__` that were sent, or received: (number, value). A larger number is newer."""
_numbers = itertools.count(1)
_newest = 0
"""The number of the last one that was found to be another object."""
_ABOUT = ("__package__", "__file__", "__path__")
"""What imports and tracebacks in its functions need."""


def travelling(function: types.FunctionType, reduced: Any) -> Any:
    """How a function is written, from what cloudpickle makes of it: that, where it goes by reference."""
    if type(reduced) is not tuple or len(reduced) != 6:
        return reduced
    make, (code, base, *rest), (attributes, slots), items, pairs, setstate = reduced
    shared: dict[str, tuple[int, Any]] = {}
    if is_main(function):
        base = _MAIN
        shared = _shared(function, slots["__globals__"])
        slots = {**slots, "__globals__": {}}
    state = (setstate, attributes, slots, shared, function.__code__.co_filename)
    return make, (code, base, *rest), state, items, pairs, _set_function


def _shared(function: types.FunctionType, wanted: dict[str, Any]) -> dict[str, tuple[int, Any]]:
    """The globals that it needs, and their numbers."""
    globals = function.__globals__
    names = [*wanted, *(name for name in (*_ABOUT, function.__name__) if name in globals)]
    if topology.me() != 1:
        return {name: _known[name] for name in names if name in _known}
    shared = {}
    for name in names:
        known = _known.get(name)
        if known is None or known[1] is not globals[name]:
            known = _known[name] = (next(_numbers), globals[name])
        shared[name] = known
    return shared


def is_main(function: Any) -> bool:
    """Whether it shares the globals of `__main__`."""
    return type(function) is types.FunctionType and function.__globals__.get("__name__") == "__main__"


def parts_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What goes along with a function by value: what it is, and the value."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is empty yet
            yield f"the variable {name!r}", cell.cell_contents
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    for name, value in (*zip(names, defaults, strict=True), *(function.__kwdefaults__ or {}).items()):
        yield f"the default of {name!r}", value
    for name in code.co_names:
        if name in function.__globals__:
            yield f"the global {name!r}", function.__globals__[name]


def newest() -> int:
    """In the head: the number of the newest global that is another object than when it was sent; looks for more."""
    global _newest
    globals = main_globals()
    for name, (_, value) in list(_known.items()):
        now = globals.get(name, value)
        if now is not value:
            _newest = next(_numbers)
            _known[name] = (_newest, now)
    return _newest


def newer(than: int) -> dict[str, tuple[int, Any]]:
    """The globals with larger numbers."""
    return {name: known for name, known in list(_known.items()) if known[0] > than}


class _Main:
    """Stands for the globals of `__main__`."""

    def __reduce__(self) -> Any:
        return main_globals, ()


_MAIN = _Main()


def main_globals() -> dict[str, Any]:
    """Those of the program in the head, those of its stand-in in a worker."""
    return vars(sys.modules["__main__"])


def take_main() -> None:
    """In a worker: from now on `__main__` is the stand-in of the program's."""
    sys.modules["__main__"] = types.ModuleType("__main__")


def _set_function(function: Any, state: Any) -> None:
    """What is to be done with a function once it is there."""
    setstate, attributes, slots, shared, filename = state
    setstate(function, (attributes, slots))
    function.__code__ = _located(function.__code__, filename)
    if topology.me() != 1:  # the head has the originals
        take(shared)


def take(shared: dict[str, tuple[int, Any]]) -> None:
    """In a worker: these globals came from the head, or from another worker."""
    globals = main_globals()
    for name, (number, value) in shared.items():
        if number > _known.get(name, (0, None))[0]:
            _known[name] = (number, value)
            globals[name] = value


def _located(code: types.CodeType, filename: str) -> types.CodeType:
    """With the file that it came from, for tracebacks."""
    inner = [_located(one, filename) if isinstance(one, types.CodeType) else one for one in code.co_consts]
    return code.replace(co_filename=filename, co_consts=tuple(inner))
