"""Defaults of signatures: what an option is for calls of a function with arguments of certain types.

Who wins: the task's own option > the scoped option > the scheduler's option > the default of the signature
(`default_option`) > the global default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ...errors import InvalidOptionError, NotCallableError
from ...timespans.warn import warn_once
from ..places.processors import distance
from ..service.guards import guard
from .declaring import TASK_OPTIONS, check, is_option, unknown_option
from .options import SCOPES, Options, made

__all__ = ["apply_defaults", "default_option", "set_default_option", "signature_defaults"]

_Provider = Callable[[], Any]
_P = TypeVar("_P", bound=Callable[[], Any])

signature_defaults: dict[Any, list[tuple[str, tuple[type, ...], _Provider]]] = {}
_version = 0
_defaults_lock = guard()


def default_option(name: str, f: Any, *argtypes: Any) -> Callable[[_P], _P]:
    """Decorator: the function (without arguments) provides the option `name` for calls of `f`.

    Used where neither the task nor a block sets the option, when the task is placed, for positional
    arguments of exactly as many `argtypes` (subclasses match; the most specific match is taken; `Any`
    matches all). What it raises is logged once, and the option stays unset. It may run on any thread.
    """

    def add(provider: _P) -> _P:
        if not callable(provider):
            raise NotCallableError(f"default_option needs a function without arguments, not {provider!r}")
        _register(name, f, argtypes, provider)
        return provider

    return add


def set_default_option(name: str, f: Any, argtypes: tuple[Any, ...], value: Any) -> None:
    """The option `name` for calls of `f` with arguments of these types; see `default_option`.

    `value`: the option's value (checked now), or else a function without arguments that provides it.
    """
    if not is_option(name):
        raise unknown_option(name)
    try:
        kept = check(name, value)
    except InvalidOptionError:
        if not callable(value):
            raise
        _register(name, f, argtypes, value)
    else:
        _register(name, f, argtypes, lambda: kept)


def _register(name: str, f: Any, argtypes: Any, provider: _Provider) -> None:
    global _version
    if not is_option(name):
        raise unknown_option(name)
    if not TASK_OPTIONS[name].by_signature:
        raise InvalidOptionError(f"{name} can't be the default of a signature: give it to the task or a block")
    if not callable(f):
        raise NotCallableError(f"a default of {name!r} belongs to a function, not to {f!r}")
    if isinstance(argtypes, type) or not isinstance(argtypes, (tuple, list)):
        raise InvalidOptionError(f"argtypes={argtypes!r}: it must be a tuple of types, such as (int,)")
    types = tuple(object if t is Any else t for t in argtypes)
    odd = [t for t in types if not isinstance(t, type)]
    if odd:
        raise InvalidOptionError(f"argtypes={argtypes!r}: {odd[0]!r} is no type")
    try:
        hash(f)
    except TypeError:
        raise InvalidOptionError(f"a default of {name!r} needs a hashable function, not {f!r}") from None
    with _defaults_lock:
        kept = [entry for entry in signature_defaults.get(f, ()) if entry[:2] != (name, types)]
        signature_defaults[f] = [*kept, (name, types, provider)]
        _version += 1


def apply_defaults(options: Options, f: Any, argtypes: tuple[type, ...]) -> Options:
    """The options filled up with the defaults of the signature `(f, argtypes)`; a copy if any was used.

    An explicit scope of any kind keeps default scopes out that would win over it.
    """
    if not signature_defaults:
        return options
    try:
        if f not in signature_defaults:  # nor may the memo keep a function alive that nobody registered
            return options
        found = _matching(_version, f, argtypes)
    except TypeError:  # an unhashable callable: it can't have been registered
        return options
    given = options.__dict__
    added: dict[str, Any] = {}
    for name, provider in found:
        if name not in given and not _hidden(name, given):
            value = _provide(name, provider)
            if value is not None:
                added[name] = value
    return made({**given, **added}) if added else options


def _hidden(name: str, given: Mapping[str, Any]) -> bool:
    if name == "exec_scope":
        return not SCOPES.isdisjoint(given)
    return name in ("scope", "compute_scope") and ("scope" in given or "compute_scope" in given)


def _provide(name: str, provider: _Provider) -> Any:
    try:
        value = provider()
        return None if value is None else check(name, value)
    except Exception:
        warn_once(provider, "the default of the option %r failed; it stays unset", name)
        return None


@functools.lru_cache(maxsize=256)
def _matching(version: int, f: Any, argtypes: tuple[type, ...]) -> tuple[tuple[str, _Provider], ...]:
    """The most specific provider of each option. `version` is the memo's key to the registrations."""
    best: dict[str, tuple[tuple[float, ...], _Provider]] = {}
    for name, types, provider in signature_defaults.get(f, ()):
        if len(types) == len(argtypes) and all(map(issubclass, argtypes, types)):
            rank = tuple(map(distance, argtypes, types))
            if name not in best or rank < best[name][0]:
                best[name] = (rank, provider)
    return tuple((name, provider) for name, (_, provider) in best.items())
