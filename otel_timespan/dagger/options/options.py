"""Options of tasks: given at `spawn`, scoped over a block with `with_options`, or set for a signature.

Who wins: the task's own option > the scoped option > the scheduler's option > the default of the signature
(`default_option`) > the global default. A body starts with exactly those scoped options that its task
`propagates`, with the task's own values, and so on to any depth.

Scoped options live in a context variable that the threads inherit which are started inside of a block or body,
from the first `with_options` on (see `dagger/service/threads.py`).

Source: spec/scheduler.md §4, §20.3, §20.21, §20.22.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from ...errors import ConcurrencyViolationError, InvalidOptionError, NotCallableError, OptionNotSetError
from ...timespans.recorder import warn_once
from ..places.processors import Processor, distance
from ..places.scopes import Scope
from ..service.threads import carry, inherit_in_threads
from .checks import CHECKS, REMOVED, check, is_option, unknown_option

__all__ = [
    "DEFAULT",
    "MISSING",
    "OptionNotSetError",
    "Options",
    "apply_defaults",
    "default_option",
    "drop_removed",
    "effective",
    "enter_propagated",
    "get_options",
    "propagated",
    "scoped",
    "scoped_options",
    "set_default_option",
    "with_options",
]

MISSING: Any = type("_Missing", (), {"__slots__": (), "__repr__": lambda self: "MISSING"})()
"""No value given."""

_SCOPES = frozenset(("scope", "compute_scope", "result_scope"))


class Options:
    """The options of a task; None means: not set. Not thread-safe: `spawn` takes a copy.

    Keywords only. Raises `InvalidOptionError` for names and values that can't work. Giving `scope` to the
    constructor sets `compute_scope` too, unless that is given. Assigning `scope`, `compute_scope` or
    `result_scope` clears `exec_scope`.
    """

    # Unset options are class attributes: making an Options costs as much as it sets, reading costs nothing.

    propagates: tuple[str, ...] | None = None
    """Names of the options that tasks spawned by this one get. Default: the scoped options in force."""
    processor: Processor | None = None
    """Ignored by the scheduler."""
    scope: Scope | None = None
    """Where the task may run. Default `DefaultScope()`."""
    compute_scope: Scope | None = None
    """Where the task may run; wins over `scope`, which is its default."""
    result_scope: Scope | None = None
    """Where the result may be used; narrows where the task may run, too. Default `AnyScope()`."""
    exec_scope: Scope | None = None
    """Where the task runs: skips the computation of scopes."""
    single: int | None = None
    """Deprecated: the only worker that may run the task."""
    proclist: tuple[type[Processor], ...] | Callable[[Processor], Any] | None = None
    """Deprecated: the types of processors that may run the task, or a predicate of a processor."""
    get_result: bool | None = None
    """Keep the result as it is instead of in a chunk. Default False."""
    meta: bool | None = None
    """Pass chunks instead of their values, and keep the result as it is. Default False."""
    syncdeps: set[Any] | None = None
    """Further tasks to wait for; their results are not passed."""
    time_util: dict[Any, float] | None = None
    """Expected run time in seconds by processor type. Default: learned, at first 1 s."""
    alloc_util: dict[Any, float] | None = None
    """Expected memory in bytes by processor type. Default: learned, at first 0."""
    occupancy: dict[Any, float] | None = None
    """Share of the processor by its type or `Any`, clamped to 0..1. Default 1."""
    checkpoint: Callable[..., Any] | None = None
    """`fn(thunk, result)`, called after success."""
    restore: Callable[..., Any] | None = None
    """`fn(thunk)`: a chunk that stands for the result, or None."""
    storage: Any = None
    """The storage device of the result. Default: the global one."""
    storage_root_tag: Any = None
    """Tag for the root device, such as a file name."""
    storage_leaf_tag: Any = None
    """Tag for the leaf devices."""
    storage_retain: bool | None = None
    """Keep what is on a device when the chunk dies. Default False."""
    name: str | None = None
    """A label for logs."""
    tag: int | None = None
    """Message tag of uniform execution; ignored."""
    stream_input_buffer_amount: int | None = None
    """Size of a stream's input buffers. Default 1."""
    stream_output_buffer_amount: int | None = None
    """Size of a stream's output buffers. Default 1."""
    stream_buffer_type: Any = None
    """What makes a stream's buffers. Default: a ring buffer in the process."""
    stream_max_evals: int | None = None
    """How often a streaming task runs; -1, the default: without end."""
    acceleration: Any = None
    """Filter of processor families."""
    return_type: Any = None
    """The type of the result before it exists. Default unknown."""
    retries: int | None = None
    """How often a body that raised is run again. Default 0."""
    retry_delay: float | Callable[[int], float] | None = None
    """Seconds to wait before each retry, or a function of the attempt that failed (1, 2, ...). Default 0."""
    retry_on: tuple[type[Exception], ...] | None = None
    """The exceptions after which a body is run again. Default: every `Exception`."""
    timeout: float | None = None
    """Seconds that a body may run. Default: no limit."""
    limit: tuple[str, ...] | None = None
    """Names of limits under which the body runs (`set_limit`); scoped, it holds for the block's own tasks only."""

    def __init__(self, **options: Any) -> None:
        if options:
            if options.get("scope") is not None and options.get("compute_scope") is None:
                options["compute_scope"] = options["scope"]
            given = self.__dict__
            for name, value in options.items():
                if name not in CHECKS:
                    raise unknown_option(name)
                if value is not None:
                    given[name] = check(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in CHECKS:
            raise unknown_option(name)
        if value is None:
            self.__dict__.pop(name, None)
        else:
            self.__dict__[name] = check(name, value)
        if name in _SCOPES:
            self.__dict__.pop("exec_scope", None)

    def __delattr__(self, name: str) -> None:
        setattr(self, name, None)

    def copy(self) -> Options:
        """An independent copy: its sets and mappings are its own."""
        return _made({name: _own(value) for name, value in self.__dict__.items()})

    def merge(self, other: Options | None) -> Options:
        """A copy of this one in which what `other` sets wins."""
        if other is None:
            return self.copy()
        layered = _layer(self.__dict__, other.__dict__)
        return _made({name: _own(value) for name, value in layered.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Options):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = self.__dict__
        return f"Options({', '.join(f'{name}={given[name]!r}' for name in CHECKS if name in given)})"


class _SharedOptions(Options):
    """What all tasks share that were spawned without options of their own, in a block or outside of any."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise ConcurrencyViolationError("these options are shared by all tasks without options: change a copy()")

    def __reduce__(self) -> Any:
        return "DEFAULT" if self is DEFAULT else (_made, (self.__dict__,))


def _made(values: dict[str, Any]) -> Options:
    """Options of values that were checked before."""
    made = Options.__new__(Options)
    made.__dict__.update(values)
    return made


def _own(value: Any) -> Any:
    return value.copy() if type(value) in (set, dict) else value


def _layer(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`; a scope above hides a final scope below."""
    layered = {**low, **high}
    if "exec_scope" in low and "exec_scope" not in high and not _SCOPES.isdisjoint(high):
        del layered["exec_scope"]
    return layered


DEFAULT: Options = _SharedOptions()
"""The options of a task for which nothing was set anywhere; immutable, so that it can be told by `is`."""


# --- scoped options ----------------------------------------------------------------------------------


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
    layered = _layer(scoped_options.get() or {}, changes)
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

    `propagates` gets the names of the scoped options (`task_queue` excepted) besides the task's own list.
    `DEFAULT` itself exactly where nothing is scoped and nothing was given.
    """
    mapping = scoped_options.get()
    own = options.__dict__ if options is not None else None
    if mapping is None:
        return _made({name: _own(value) for name, value in own.items()}) if own else DEFAULT
    if own:
        return _filled(mapping, own)
    try:
        return mapping.shared  # type: ignore[no-any-return,attr-defined]
    except AttributeError:
        filled = _filled(mapping, {})
        if type(mapping) is not _Scoped or "syncdeps" in mapping:  # a set, to which more may be added
            return filled
        shared = _SharedOptions.__new__(_SharedOptions)
        shared.__dict__.update(filled.__dict__)
        mapping.shared = shared
        return shared


def _filled(mapping: Mapping[str, Any], own: Mapping[str, Any]) -> Options:
    below = {name: value for name, value in mapping.items() if name != "task_queue"}
    layered = {name: _own(value) for name, value in _layer(below, own).items()}
    if below:
        names = (name for name in below if name != "limit")  # a body that waits for its children has its place
        layered["propagates"] = tuple(dict.fromkeys((*layered.get("propagates", ()), *names)))
    return _made(layered)


def propagated(options: Options) -> Mapping[str, Any] | None:
    """The scoped options that the body of a task starts with: what it propagates, with its own values."""
    if options.propagates is None:
        return None
    given = options.__dict__
    return {name: _own(given[name]) for name in options.propagates if name in given} or None


def enter_propagated(options: Options) -> None:
    """Make what a task propagates the scoped options of this context, and nothing else."""
    kept = propagated(options)
    scoped_options.set(None if kept is None else _Scoped(kept))


def drop_removed(opts: Mapping[str, Any]) -> dict[str, Any]:
    """The options without the names that are gone (`cache`, `persist`, `procutil`), each with a warning."""
    for name in opts:
        if name in REMOVED:
            warnings.warn(f"the option {name!r} does nothing any more: leave it out", DeprecationWarning, stacklevel=3)
    return {name: value for name, value in opts.items() if name not in REMOVED}


# --- defaults of signatures --------------------------------------------------------------------------

_Provider = Callable[[], Any]
_P = TypeVar("_P", bound=Callable[[], Any])

signature_defaults: dict[Any, list[tuple[str, tuple[type, ...], _Provider]]] = {}
_version = 0
_defaults_lock = threading.Lock()


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
        _register(name, f, argtypes, lambda: _own(kept))


def _register(name: str, f: Any, argtypes: Any, provider: _Provider) -> None:
    global _version
    if not is_option(name):
        raise unknown_option(name)
    if name == "limit":  # defaults are looked up when a task is placed, limits before
        raise InvalidOptionError("a limit can't be the default of a signature: give it to the task or a block")
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
    return _made({**{name: _own(value) for name, value in given.items()}, **added}) if added else options


def _hidden(name: str, given: Mapping[str, Any]) -> bool:
    if name == "exec_scope":
        return not _SCOPES.isdisjoint(given)
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
