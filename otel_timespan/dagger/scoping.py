"""Scopes and the surroundings: `scope(...)` in short, and what a scope contains, of the eager context by default.

What a scope is, and how two intersect, is in `dagger/places/scopes.py`; here is what also needs the options in
force and the context that `spawn` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..errors import InvalidOptionError, NotCallableError
from .context import eager_procs
from .options.scoped import scoped
from .places.processors import OSProc, Processor, ThreadProc
from .places.scopes import (
    AnyScope,
    DefaultScope,
    ExactScope,
    ProcessorTypeScope,
    ProcessScope,
    Scope,
    UnionScope,
    processors_in,
)
from .places.topology import positive

__all__ = [
    "all_processors",
    "compatible_processors",
    "current_compute_scope",
    "issetequal",
    "issubset",
    "num_processors",
    "register_scope_key",
    "scope",
]


def current_compute_scope() -> Scope:
    """The scope that a task spawned here gets: scoped `compute_scope`, else `scope`, else `DefaultScope()`."""
    mapping = scoped() or {}
    found: Scope = mapping.get("compute_scope") or mapping.get("scope") or DefaultScope()
    return found


# --- queries -----------------------------------------------------------------------------------------


def compatible_processors(scope: Scope | None = None, ctx: Any = None) -> set[Processor]:
    """The processors inside a scope.

    `scope`: by default the current compute scope. `ctx`: a context, or a list of `OSProc`s or worker ids;
    by default the eager context.
    """
    return processors_in(current_compute_scope() if scope is None else scope, _roots(ctx))


def all_processors(ctx: Any = None) -> set[Processor]:
    """All processors of a context (by default the eager one), default-enabled or not."""
    return {p for root in _roots(ctx) for p in root.get_processors()}


def num_processors(scope: Scope | None = None, all: bool = False) -> int:
    """How many processors are inside a scope (by default the current compute scope), or exist (`all=True`)."""
    return len(all_processors() if all else compatible_processors(scope))


def issubset(a: Scope, b: Scope, ctx: Any = None) -> bool:
    """Whether all processors of a context (by default the eager one) that are in `a` are in `b`."""
    roots = _roots(ctx)
    return processors_in(a, roots) <= processors_in(b, roots)


def issetequal(a: Scope, b: Scope, *more: Scope, ctx: Any = None) -> bool:
    """Whether scopes contain the same processors of a context (by default the eager one)."""
    roots = _roots(ctx)
    first = processors_in(a, roots)
    return all(processors_in(other, roots) == first for other in (b, *more))


def _roots(ctx: Any) -> list[Processor]:
    """The `OSProc`s of a context: its attribute `procs` (a sequence or a method), or `ctx` listing them."""
    if ctx is None:
        return [*eager_procs()]
    given = getattr(ctx, "procs", ctx)
    given = given() if callable(given) else given
    if not isinstance(given, Iterable):
        raise InvalidOptionError(f"a context or a list of OSProcs is needed here, not {ctx!r}")
    return [one if isinstance(one, Processor) else OSProc(one) for one in given]


# --- scope(...) --------------------------------------------------------------------------------------

_KNOWN = frozenset(("worker", "workers", "thread", "threads"))
_SHAPES = 'scope("any"), scope("default"), scope(worker=1), scope(worker=1, threads=[1, 2]), scope(threads="all")'
_keys: dict[str, tuple[int, Callable[[dict[str, Any]], Scope]]] = {}


def register_scope_key(name: str, fn: Callable[[dict[str, Any]], Scope], precedence: int = 0) -> None:
    """Teach `scope(...)` the key `name`: `fn(spec)` gets the whole spec as a dict and returns a scope.

    Where a spec has several such keys that of the highest `precedence` decides. A second registration
    replaces the first.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidOptionError(f"a scope key must be a name, not {name!r}")
    if name in _KNOWN:
        raise InvalidOptionError(f"the scope key {name!r} has its own meaning already: take another name")
    if not callable(fn):
        raise NotCallableError(f"register_scope_key needs a function that makes a scope of a spec, not {fn!r}")
    _keys[name] = (precedence, fn)


def scope(*specs: Any, **spec: Any) -> Scope:
    """A scope in short: `scope(worker=1)`, `scope(worker=1, thread=2)`, `scope("any")`, and unions of such.

    Keywords (or a dict) name workers and threads, each by an int, several ints, or "all":

    * worker(s) and thread(s): those `ThreadProc`s
    * worker(s) only: those workers, restricted to `ThreadProc`; `workers="all"`: every worker, unrestricted
    * thread(s) only: that thread of every worker of the eager context
    * `threads="all"`: every `ThreadProc`, of the workers given if any
    * any other key: what `register_scope_key` said

    Strings: "any", "default". Several specs, or a tuple or list of them, give their union; a `Scope` stands
    for itself. Raises `InvalidOptionError` for no spec, empty lists, and keys or values that are not known.
    """
    given = [*specs, spec] if spec else list(specs)
    scopes = [made for one in given for made in _make(one)]
    if not scopes:
        raise InvalidOptionError(f"scope() needs at least one spec, such as {_SHAPES}")
    return _union(scopes)


def _union(scopes: list[Scope]) -> Scope:
    return scopes[0] if len(scopes) == 1 else UnionScope(scopes)


def _make(spec: Any) -> Iterator[Scope]:
    if isinstance(spec, Scope):
        yield spec
    elif isinstance(spec, (tuple, list)):
        for one in spec:
            yield from _make(one)
    elif isinstance(spec, Mapping):
        yield _from_mapping(dict(spec))
    elif spec in ("any", "default"):
        yield AnyScope() if spec == "any" else DefaultScope()
    else:
        raise InvalidOptionError(f"scope() does not know {spec!r}; it takes {_SHAPES}")


def _from_mapping(spec: dict[str, Any]) -> Scope:
    unknown = [key for key in spec if key not in _KNOWN]
    if unknown:
        return _from_custom(unknown, spec)
    workers, threads = _numbers(spec, "worker"), _numbers(spec, "thread")
    if workers is None and threads is None:
        raise InvalidOptionError(f"scope() needs at least one key; it takes {_SHAPES}")
    if threads is None:
        return _of_workers(workers)
    if threads == "all":
        if workers in (None, "all"):
            return ProcessorTypeScope(ThreadProc)
        return _union([ProcessorTypeScope(ThreadProc, ProcessScope(w)) for w in workers or ()])
    owners = _worker_ids() if workers in (None, "all") else workers
    return _union([ExactScope(ThreadProc(w, t)) for w in owners or () for t in threads])


def _of_workers(workers: Any) -> Scope:
    if workers == "all":
        return UnionScope([ProcessScope(w) for w in _worker_ids()])
    return _union([ProcessorTypeScope(ThreadProc, ProcessScope(w)) for w in workers])


def _worker_ids() -> list[int]:
    return [one.pid for one in eager_procs()]


def _numbers(spec: dict[str, Any], name: str) -> Any:
    """The ids under `name` or its plural: a list, "all", or None where neither was given."""
    given = [key for key in (name, f"{name}s") if key in spec]
    if not given:
        return None
    if len(given) == 2:
        raise InvalidOptionError(f"scope() takes {name} or {name}s, not both")
    value = spec[given[0]]
    if isinstance(value, str):
        if value == "all":
            return value
        raise InvalidOptionError(f'{given[0]}={value!r}: it must be an int, several ints, or "all"')
    numbers = list(dict.fromkeys(value if isinstance(value, Iterable) else (value,)))
    if not numbers:
        raise InvalidOptionError(f"{given[0]} is empty: no processor would be left")
    return [positive(given[0], number) for number in numbers]


def _from_custom(unknown: list[str], spec: dict[str, Any]) -> Scope:
    ranked = {key: _keys[key][0] if key in _keys else 0 for key in unknown}
    top = max(ranked.values())
    deciding = [key for key in unknown if ranked[key] == top]
    missing = [key for key in deciding if key not in _keys]
    if missing:
        known = ", ".join(sorted(_KNOWN | _keys.keys()))
        raise InvalidOptionError(f"scope() does not know the key {missing[0]!r}; it knows {known}")
    if len(deciding) > 1:
        raise InvalidOptionError(f"scope() can't tell which of {', '.join(deciding)} decides: same precedence {top}")
    made = _keys[deciding[0]][1](dict(spec))
    if not isinstance(made, Scope):
        raise InvalidOptionError(f"the function of the scope key {deciding[0]!r} returned {made!r}, not a scope")
    return made
