"""What of the code around a `spawn` goes along to another process, where the body runs or the task is made.

A context variable does not cross by itself: its value may mean something here only. So these do: those that the
program registered (`carry`), and what other floors of ours have a hook for (`travellers`: the trace context and the
baggage of OpenTelemetry).

See docs/workers.md.
"""

from __future__ import annotations

import contextvars
import importlib
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ...errors import InvalidOptionError
from ...timespans.warn import warn_once

__all__ = ["Traveller", "carry", "enter", "travel", "travellers", "written", "written_variable"]


class Traveller(NamedTuple):
    """Something that travels: `leave()` gives what is sent, None for nothing; `arrive(that)` sets it in the context.

    Both are called in the context of the code that spawns, or that the body will have.
    """

    leave: Callable[[], Any]
    arrive: Callable[[Any], None]


travellers: dict[str, Traveller] = {}
"""By name, the same on both sides."""

HOMES = {"opentelemetry": ("opentelemetry.context", "otel_timespan.otel.travelling")}
"""By name of a traveller: the module that must be there before it has anything to do; the one with `leave`, `arrive`.

That one stands on a floor that this one does not know: it is loaded by its name.
"""

_carried: dict[tuple[str, str], contextvars.ContextVar[Any]] = {}


def carry(var: contextvars.ContextVar[Any]) -> None:
    """Let the value of a context variable go along with tasks to worker processes, as it does to threads.

    It is named by its module and the name that it has there: so it must be a global variable of a module, and its
    values must be picklable; a body gets a copy. Registered once, for good; a variable that is registered already
    changes nothing. Thread-safe.

    Raises `InvalidOptionError` for what is no such variable.
    """
    if not isinstance(var, contextvars.ContextVar):
        raise InvalidOptionError(f"carry takes a ContextVar, not {var!r}")
    if any(known is var for known in _carried.values()):
        return
    _carried[_place_of(var)] = var


def _place_of(var: contextvars.ContextVar[Any]) -> tuple[str, str]:
    """(module, name) of a variable: where it is a global; in `__main__` only if it is nowhere else."""
    caller = sys._getframe(2).f_globals.get("__name__")
    names = dict.fromkeys(name for name in (caller, *sys.modules) if name not in (None, "__main__"))
    for module in (*names, "__main__"):
        for name, value in list(vars(sys.modules.get(module) or object).items()):
            if value is var:
                return module, name
    raise InvalidOptionError(
        f"the context variable {var.name!r} can't be carried to workers: it must be a global variable of a module"
    )


def written_variable(var: contextvars.ContextVar[Any]) -> Any:
    """How a variable itself is pickled, where a function that travels by value uses it: by its place."""
    for place, known in list(_carried.items()):
        if known is var:
            try:
                return variable_here, (place, var.name, True, contextvars.Context().run(var.get))
            except LookupError:
                return variable_here, (place, var.name, False, None)
    raise InvalidOptionError(f"the context variable {var.name!r} does not go to other processes unless D.carry is told")


def variable_here(place: tuple[str, str], name: str, has_default: bool, default: Any) -> contextvars.ContextVar[Any]:
    """The variable of that place; for one of `__main__`, which no other process can import, one that stands for it."""
    if place[0] != "__main__":
        return _variable(place)
    var = _carried.get(place)
    if var is None:
        made = contextvars.ContextVar(name, default=default) if has_default else contextvars.ContextVar(name)
        var = _carried.setdefault(place, made)
    return var


def travel() -> bool:
    """Whether anything does, so that `written` is to be asked."""
    return bool(_carried or travellers or _found_travellers())


def written(dumps: Callable[[Any], bytes]) -> Any:
    """What goes along from here, called in the context that spawned: None for nothing. Raises what pickling raises."""
    found: dict[Any, Any] = {}
    for place, var in list(_carried.items()):
        value = var.get(_UNSET)
        if value is not _UNSET:
            try:
                found[place] = dumps(value)
            except Exception as error:
                raise InvalidOptionError(
                    f"the value of the context variable {place[1]} can't be sent: {error}"
                ) from error
    for name, traveller in list(travellers.items()):
        try:
            left = traveller.leave()
        except Exception as error:
            warn_once(traveller.leave, "%s does not travel to other processes: %r", name, error)
            continue
        if left is not None:
            found[name] = left
    return found or None


def enter(around: Any) -> None:
    """Set what came along, in the context that this is called in. Raises where a carried variable can't be had."""
    if around is None:
        return
    for place, left in around.items():
        if type(place) is tuple:
            _variable(place).set(pickle.loads(left))
        else:
            try:
                if place not in travellers:
                    _load(place)
                travellers[place].arrive(left)
            except Exception as error:
                warn_once(enter, "%s did not arrive in this process: %r", place, error)


def _variable(place: tuple[str, str]) -> contextvars.ContextVar[Any]:
    if place[0] == "__main__":
        return variable_here(place, place[1], False, None)
    var = _carried.get(place)
    if var is None:
        found = getattr(importlib.import_module(place[0]), place[1], None)
        if not isinstance(found, contextvars.ContextVar):
            raise InvalidOptionError(f"there is no context variable {place[1]} in module {place[0]} here")
        var = _carried.setdefault(place, found)  # what is spawned from here takes it along, too
    return var


def _found_travellers() -> bool:
    """Load those that have something to do by now."""
    for name, (needed, _) in HOMES.items():
        if needed in sys.modules and name not in travellers:
            try:
                _load(name)
            except Exception as error:
                warn_once(written, "%s does not travel to other processes: %r", name, error)
                return False
    return bool(travellers)


def _load(name: str) -> None:
    module = importlib.import_module(HOMES[name][1])
    travellers[name] = Traveller(module.leave, module.arrive)


_UNSET: Any = object()
