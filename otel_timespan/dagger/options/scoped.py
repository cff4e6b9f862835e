"""Options scoped over a block with `with_options`, and how tasks hand them down.

A body starts with exactly those scoped options that its task `propagates`, with the task's own values, and so on
to any depth. Scoped options live in a context variable that the threads inherit which are started inside of a
block or body, from the first `with_options` on (see `dagger/service/threads.py`).
Upstream: https://juliaparallel.org/Dagger.jl/dev/propagation/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from ...errors import OptionNotSetError
from ..service.threads import carry, inherit_in_threads
from .declaring import BLOCK_OPTIONS, TASK_OPTIONS, check, is_option, takes, unknown_option
from .options import DEFAULT, BlockOptions, Options, SharedOptions, ShippedOptions, copied, layer, made

__all__ = [
    "MISSING",
    "effective",
    "enter_propagated",
    "get_options",
    "propagated",
    "scoped",
    "scoped_options",
    "with_options",
]

MISSING: Any = type("_Missing", (), {"__slots__": (), "__repr__": lambda self: "MISSING"})()
"""No value given."""

_OF_BLOCKS = frozenset(BLOCK_OPTIONS.keys() - TASK_OPTIONS.keys())
_HANDED_DOWN = frozenset(name for name, declared in TASK_OPTIONS.items() if declared.propagates)


class _Scoped(dict[str, Any]):
    """The options of a block. Never changed once made, so that `shared` can be kept."""

    __slots__ = ("shared",)
    shared: Options
    """The effective options of all tasks that have none of their own; unset until the first one."""


scoped_options: ContextVar[Mapping[str, Any] | None] = ContextVar("otel_timespan.options", default=None)
"""The scoped options in force. Whoever starts a body sets it to what its task propagates."""
carry(scoped_options)

scoped: Callable[[], Mapping[str, Any] | None] = scoped_options.get
"""The scoped options in force, None where there are none. Not to be changed."""


@takes(BlockOptions)
def with_options(**options: Any) -> AbstractContextManager[None]:
    """Within the block these options hold for every spawn, in threads started inside of it too.

    Merges into the options of the block around; None unsets one. Takes the names of `Options` and
    `task_queue`. Raises `InvalidOptionError` at once for names and values that can't work.
    """
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if not is_option(name, scoped=True):
            raise unknown_option(name)
        changes[name] = None if value is None else check(name, value, scoped=True)
    inherit_in_threads()
    return _block(changes)


@contextmanager
def _block(changes: dict[str, Any]) -> Iterator[None]:
    layered = layer(scoped_options.get() or {}, changes)
    kept = {name: value for name, value in layered.items() if value is not None}
    token = scoped_options.set(_Scoped(kept) if kept else None)
    try:
        yield
    finally:
        scoped_options.reset(token)


def get_options(key: str = MISSING, default: Any = MISSING) -> Any:
    """The scoped options in force: all as a dict, or the one called `key`.

    Where `key` is not set: `default`, without one `OptionNotSetError` (a `KeyError`). `InvalidOptionError`
    for a name that is no option.
    """
    mapping = scoped_options.get() or {}
    if key is MISSING:
        return dict(mapping)
    if key in mapping:
        return mapping[key]
    if not is_option(key, scoped=True):
        raise unknown_option(key)
    if default is MISSING:
        raise OptionNotSetError(f"the option {key!r} is not set here: give a default, or with_options({key}=...)")
    return default


def effective(options: Options | None) -> Options:
    """The options of a task spawned here: a copy of its own, filled up with the scoped ones.

    Without own ones all tasks of a block share one object, which can't be changed.

    `propagates` gets the names of the scoped options that are handed down, besides the task's own list.
    `DEFAULT` itself exactly where nothing is scoped and nothing was given.
    """
    mapping = scoped_options.get()
    own = options.__dict__ if options is not None else None
    if mapping is None:
        return made(own) if own else DEFAULT
    if own:
        return _filled(mapping, own)
    try:
        return mapping.shared  # type: ignore[no-any-return,attr-defined]
    except AttributeError:
        filled = _filled(mapping, {})
        if type(mapping) is not _Scoped or "syncdeps" in mapping:  # a set, to which more may be added
            return filled
        shared = SharedOptions.__new__(SharedOptions)
        shared.__dict__.update(filled.__dict__)
        mapping.shared = shared
        return shared


def _filled(mapping: Mapping[str, Any], own: Mapping[str, Any]) -> Options:
    below = {name: value for name, value in mapping.items() if name not in _OF_BLOCKS}
    layered = layer(below, own)
    if below:
        names = (name for name in below if name in _HANDED_DOWN)
        layered["propagates"] = tuple(dict.fromkeys((*layered.get("propagates", ()), *names)))
    return made(layered)


def propagated(options: Options) -> Mapping[str, Any] | None:
    """The scoped options that the body of a task starts with: what it propagates, with its own values."""
    if type(options) is ShippedOptions:
        return options.handed_down
    if options.propagates is None:
        return None
    given = options.__dict__
    return {name: copied(given[name]) for name in options.propagates if name in given} or None


def enter_propagated(options: Options) -> None:
    """Make what a task propagates the scoped options of this context, and nothing else."""
    kept = propagated(options)
    scoped_options.set(None if kept is None else _Scoped(kept))
