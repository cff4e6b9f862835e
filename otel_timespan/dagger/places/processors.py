"""Processors: where a task can run, how values move there, and which workers there are.

A processor is a small immutable value. Each worker is the root of a tree: `OSProc(pid)`, which does not
compute, with a `ThreadProc(owner, tid)` for each of its thread slots, and whatever else the discovery
callbacks of that worker report. A processor of your own subclasses `Processor` and overrides its hooks;
values of your own move between processors as said with `@move.register(From, To, Type)`.

Which workers exist is read from `topology` (topology.py), which the drivers keep up to date.

See docs/processors.md; upstream: https://juliaparallel.org/Dagger.jl/dev/processors/.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import InvalidOptionError, NotCallableError
from ...timespans.warn import warn_once
from ..service.guards import guard
from .node import node_uuid
from .topology import Topology, default_threads, positive, topology

__all__ = [
    "CPURAMMemorySpace",
    "MemorySpace",
    "OSProc",
    "Processor",
    "ThreadProc",
    "Topology",
    "add_processor_callback",
    "default_enabled",
    "default_threads",
    "delete_processor_callback",
    "execute",
    "get_parent",
    "get_processors",
    "has_custom_moves",
    "invalidate",
    "invalidation_hooks",
    "iscompatible",
    "iscompatible_arg",
    "iscompatible_func",
    "memory_space",
    "memory_spaces",
    "move",
    "myid",
    "node_uuid",
    "processors",
    "root",
    "short_name",
    "topology",
]

# --- processors --------------------------------------------------------------------------------------


class Processor:
    """Base of all processors: an immutable, hashable, picklable value that denotes one device.

    Two processors of one class with equal attributes are equal; a frozen dataclass does as well. Override
    `get_parent` and `execute`, and of the rest what differs from the default. All hooks may be called from
    any thread at any time and must not block, `execute` excepted. (Nothing is abstract in Python's sense,
    so that a processor which is only ever named, in a scope or in `proclist`, needs no body.)
    """

    __slots__ = ()

    def get_parent(self) -> Processor:
        """The next processor towards the `OSProc`."""
        raise self._undefined("get_parent")

    def get_processors(self) -> frozenset[Processor]:
        """The processors below this one that can run tasks; by default itself alone."""
        return frozenset((self,))

    def default_enabled(self) -> bool:
        """Whether it takes part without being asked for; by default not."""
        return False

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        """Whether it may run `f` (the function itself: its Python type would say nothing)."""
        return False

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        """Whether it accepts arguments of the type `argtype`."""
        return False

    def iscompatible(self, opts: Any, f: Any, *argtypes: type) -> bool:
        """Whether it may run `f` with arguments of these types."""
        return self.iscompatible_func(opts, f) and all(self.iscompatible_arg(opts, t) for t in argtypes)

    def execute(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `f(*args, **kwargs)` here, in the calling thread, and return or raise what it does.

        Keep `self` and `f` positional-only (`/`) when you override it: `kwargs` may hold these names.
        """
        raise self._undefined("execute")

    def memory_spaces(self) -> frozenset[MemorySpace]:
        """The memory that it can reach. Needed for datadeps only."""
        raise self._undefined("memory_spaces")

    def short_name(self) -> str:
        """A few characters for logs and pictures."""
        return str(self)

    def _undefined(self, hook: str) -> InvalidOptionError:
        name = type(self).__name__
        return InvalidOptionError(f"{name} has no {hook}: define {name}.{hook} to use it so")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(self) is type(other) and _state(self) == _state(other)

    def __hash__(self) -> int:
        return hash((type(self), _state(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in _state(self))})"


def _state(processor: Processor) -> tuple[tuple[str, Any], ...]:
    names = {s for c in type(processor).__mro__ for s in _slots(c)} | getattr(processor, "__dict__", {}).keys()
    return tuple((name, getattr(processor, name)) for name in sorted(names) if hasattr(processor, name))


def _slots(cls: type) -> Iterable[str]:
    slots = cls.__dict__.get("__slots__", ())
    named = (slots,) if isinstance(slots, str) else slots
    return (name for name in named if name not in ("__dict__", "__weakref__"))


@dataclass(frozen=True, slots=True, init=False, repr=False)
class OSProc(Processor):
    """A worker: the root of its tree. Does not compute. `pid` is the worker's id, by default ours."""

    pid: int

    def __init__(self, pid: int | None = None) -> None:
        object.__setattr__(self, "pid", topology.me() if pid is None else positive("pid", pid))

    def get_parent(self) -> OSProc:
        """Itself: it is the root."""
        return self

    def get_processors(self) -> frozenset[Processor]:
        """Its thread slots and what its discovery callbacks report; empty if there is no such worker."""
        return _discovered(self.pid)

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        """True if it is for any child."""
        return any(p.iscompatible_func(opts, f) for p in self.get_processors())

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        """True if it is for any child."""
        return any(p.iscompatible_arg(opts, argtype) for p in self.get_processors())

    def iscompatible(self, opts: Any, f: Any, *argtypes: type) -> bool:
        """True if one child is for the function and all the types."""
        return any(p.iscompatible(opts, f, *argtypes) for p in self.get_processors())

    def memory_spaces(self) -> frozenset[MemorySpace]:
        """The main memory of the worker."""
        return frozenset((CPURAMMemorySpace(self.pid),))

    def short_name(self) -> str:
        """`W: <pid>`."""
        return f"W: {self.pid}"

    def __repr__(self) -> str:
        return f"OSProc({self.pid})"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ThreadProc(Processor):
    """One thread slot of a worker: runs Python functions of any kind. `tid` counts from 1."""

    owner: int
    tid: int

    def __init__(self, owner: int, tid: int) -> None:
        object.__setattr__(self, "owner", positive("owner", owner))
        object.__setattr__(self, "tid", positive("tid", tid))

    def get_parent(self) -> OSProc:
        """Its worker."""
        return OSProc(self.owner)

    def default_enabled(self) -> bool:
        """True."""
        return True

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        """True: everything."""
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        """True: everything."""
        return True

    def iscompatible(self, opts: Any, f: Any, *argtypes: type) -> bool:
        """True: everything."""
        return True

    def execute(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call the function; the thread that holds the slot is already the one that calls this."""
        return f(*args, **kwargs)

    def memory_spaces(self) -> frozenset[MemorySpace]:
        """The main memory of its worker, shared by all its threads."""
        return frozenset((CPURAMMemorySpace(self.owner),))

    def short_name(self) -> str:
        """`W: <owner>, TID: <tid>`."""
        return f"W: {self.owner}, TID: {self.tid}"

    def __repr__(self) -> str:
        return f"ThreadProc({self.owner}, {self.tid})"


# --- memory spaces -----------------------------------------------------------------------------------


class MemorySpace:
    """Base of memory spaces: an immutable, hashable, picklable value that denotes one memory."""

    __slots__ = ()

    def processors(self) -> frozenset[Processor]:
        """The processors that can reach it."""
        name = type(self).__name__
        raise InvalidOptionError(f"{name} has no processors: define {name}.processors to use it so")


@dataclass(frozen=True, slots=True, init=False, repr=False)
class CPURAMMemorySpace(MemorySpace):
    """The main memory of one worker, by default ours."""

    owner: int

    def __init__(self, owner: int | None = None) -> None:
        object.__setattr__(self, "owner", topology.me() if owner is None else positive("owner", owner))

    def processors(self) -> frozenset[Processor]:
        """Those of the worker that name this space among their `memory_spaces`."""
        return frozenset(p for p in OSProc(self.owner).get_processors() if self in _spaces_or_none(p))

    def __repr__(self) -> str:
        return f"CPURAMMemorySpace({self.owner})"


def _spaces_or_none(processor: Processor) -> frozenset[MemorySpace]:
    """A processor that was never meant for datadeps defines no spaces: it reaches none."""
    if type(processor).memory_spaces is Processor.memory_spaces:
        return frozenset()
    return processor.memory_spaces()


@functools.singledispatch
def memory_space(x: Any) -> MemorySpace:
    """Where a value lives: a plain value in the caller's worker. Chunks and tasks register their own."""
    return CPURAMMemorySpace()


def memory_spaces(processor: Processor) -> frozenset[MemorySpace]:
    """The memory spaces that a processor reaches. Raises `InvalidOptionError` if its type defines none."""
    return _checked(processor).memory_spaces()


def processors(space: MemorySpace) -> frozenset[Processor]:
    """The processors that reach a memory space."""
    if not isinstance(space, MemorySpace):
        raise InvalidOptionError(f"processors() needs a memory space, not {space!r}")
    return space.processors()


# --- the hooks as functions --------------------------------------------------------------------------


def _checked(processor: Processor) -> Processor:
    if not isinstance(processor, Processor):
        raise InvalidOptionError(f"a Processor is needed here, not {processor!r}")
    return processor


def myid() -> int:
    """The id of the worker that asks; 1 is the main process."""
    return topology.me()


def get_parent(processor: Processor) -> Processor:
    """The next processor towards the `OSProc`, which is its own parent."""
    return _checked(processor).get_parent()


def root(processor: Processor) -> OSProc:
    """The `OSProc` at the top of a processor's tree.

    Raises `InvalidOptionError` where `get_parent` is undefined or never gets there.
    """
    seen: list[Processor] = []
    while not isinstance(processor, OSProc):
        seen.append(processor)
        processor = get_parent(processor)
        if processor in seen:
            raise InvalidOptionError(f"the parents of {seen[0]!r} go round in a circle at {processor!r}")
    return processor


def get_processors(processor: Processor) -> frozenset[Processor]:
    """The processors at or below this one that can run tasks; for an `OSProc` all of its worker's."""
    return _checked(processor).get_processors()


def default_enabled(processor: Processor) -> bool:
    """Whether a processor takes part without being asked for."""
    return _checked(processor).default_enabled()


def iscompatible(processor: Processor, opts: Any, f: Any, *argtypes: type) -> bool:
    """Whether a processor may run `f` with arguments of these types."""
    return _checked(processor).iscompatible(opts, f, *argtypes)


def iscompatible_func(processor: Processor, opts: Any, f: Any) -> bool:
    """Whether a processor may run `f`."""
    return _checked(processor).iscompatible_func(opts, f)


def iscompatible_arg(processor: Processor, opts: Any, argtype: type) -> bool:
    """Whether a processor accepts arguments of this type."""
    return _checked(processor).iscompatible_arg(opts, argtype)


def execute(processor: Processor, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a function on a processor, in the calling thread."""
    return _checked(processor).execute(f, *args, **kwargs)


def short_name(processor: Processor) -> str:
    """A few characters for logs and pictures."""
    return _checked(processor).short_name()


# --- discovery ---------------------------------------------------------------------------------------

Discovery = Callable[[], Any]

invalidation_hooks: list[Callable[[int], None]] = []
"""Called with a worker's id after its callbacks changed, so that drivers can tell the other processes,
which then call `invalidate(worker)`."""

_callbacks: dict[int, dict[Any, Discovery]] = {}
_known: dict[int, frozenset[Processor]] = {}
_changes = 0
_discovery_lock = guard()


def add_processor_callback(fn: Discovery, name: Any) -> None:
    """From now on `fn()` reports further processors of this worker: one, a list or tuple of them, or None.

    `name` identifies it; a second callback of the same name replaces the first. What it raises is
    logged once and skipped. It is called rarely (results are kept until callbacks or workers change),
    from any thread, outside of locks. Takes effect at once, in all processes.
    """
    if not callable(fn):
        raise NotCallableError(f"a processor callback must be a function without arguments, not {fn!r}")
    worker = topology.me()
    with _discovery_lock:
        _callbacks[worker] = {**_callbacks.get(worker, {}), name: fn}
    _announce(worker)


def delete_processor_callback(name: Any) -> None:
    """Forget this worker's callback called `name`; does nothing if there is none."""
    worker = topology.me()
    with _discovery_lock:
        _callbacks[worker] = {n: f for n, f in _callbacks.get(worker, {}).items() if n != name}
    _announce(worker)


def _announce(worker: int) -> None:
    invalidate(worker)
    for hook in tuple(invalidation_hooks):
        try:
            hook(worker)
        except Exception:
            warn_once(hook, "other processes were not told that the processors of worker %d changed", worker)


def changed_elsewhere(worker: int) -> None:
    """A worker that is another process says that its processors changed."""
    _announce(worker)


def invalidate(worker: int | None = None) -> None:
    """Drop what is cached about the processors of a worker, or of all."""
    global _changes
    with _discovery_lock:
        _changes += 1
        if worker is None:
            _known.clear()
        else:
            _known.pop(worker, None)


topology.listeners.append(invalidate)


def _discovered(worker: int) -> frozenset[Processor]:
    known = _known.get(worker)
    if known is not None:
        return known
    before = _changes
    found: set[Processor] = {ThreadProc(worker, tid) for tid in range(1, topology.threads(worker) + 1)}
    if topology.is_local(worker):
        found.update(_ask_callbacks(worker))
    elif topology.remote is not None and worker in topology.workers():
        found.update(_ask_remote(topology.remote, worker))
    result = frozenset(found)
    with _discovery_lock:
        if before == _changes:  # else what was found may be stale already
            _known[worker] = result
    return result


def _ask_callbacks(worker: int) -> Iterator[Processor]:
    with topology.acting_as(worker):
        for name, fn in _callbacks.get(worker, {}).items():
            try:
                yield from _leaves(fn())
            except Exception:
                warn_once(fn, "the processor callback %r failed; what it reports is left out", name)


def _ask_remote(ask: Callable[[int], Iterable[Processor]], worker: int) -> Iterable[Processor]:
    try:
        return frozenset(ask(worker))
    except Exception:
        warn_once(ask, "worker %d did not say which processors it has; only its threads are used", worker)
        return ()


def _leaves(reported: Any) -> set[Processor]:
    listed = () if reported is None else reported if isinstance(reported, (list, tuple)) else (reported,)
    return {leaf for processor in listed for leaf in get_processors(processor)}


# --- movement ----------------------------------------------------------------------------------------

Mover = Callable[[Processor, Processor, Any], Any]
_M = TypeVar("_M", bound=Callable[..., Any])


class Move:
    """`move(from_proc, to_proc, x)`: what arrives when `x` moves; `x` itself unless a rule says otherwise.

    `@move.register(From, To, Type)` adds a rule `fn(from_proc, to_proc, x)`. Of the rules that fit by
    `isinstance` the one with the most specific value type is taken, then the most specific `To`, then
    `From`. A rule may call `move` again with other processors. Rules run concurrently, on the worker
    that executes the task; what one raises fails the task. Thread-safe.
    """

    __slots__ = ("_found", "_lock", "_rules", "custom")

    def __init__(self) -> None:
        self._rules: dict[tuple[type, type, type], tuple[Mover, bool]] = {}
        self._found: dict[tuple[type, type, type], Mover] = {}
        self._lock = guard()
        self.custom = False
        """Whether there is any rule that the package did not bring itself."""

    def __call__(self, from_proc: Processor, to_proc: Processor, x: Any) -> Any:
        key = (type(from_proc), type(to_proc), type(x))
        rule = self._found.get(key) or self._find(key)
        return rule(from_proc, to_proc, x)

    def register(
        self, from_type: type, to_type: type, value_type: Any = object, *, builtin: bool = False
    ) -> Callable[[_M], _M]:
        """Decorator: the function moves values of `value_type` between processors of these types.

        A second rule for the same three types replaces the first. `builtin`: for the package's own rules,
        which do not count in `custom`.
        """
        kinds = (_processor_type(from_type), _processor_type(to_type), _value_type(value_type))

        def add(fn: _M) -> _M:
            if not callable(fn):
                raise NotCallableError(f"move.register needs a function of (from, to, value), not {fn!r}")
            self._change({**self._rules, kinds: (fn, builtin)})
            return fn

        return add

    def unregister(self, from_type: type, to_type: type, value_type: Any = object) -> None:
        """Forget the rule for exactly these types; does nothing if there is none."""
        gone = (from_type, to_type, _value_type(value_type))
        self._change({kinds: rule for kinds, rule in self._rules.items() if kinds != gone})

    def _change(self, rules: dict[tuple[type, type, type], tuple[Mover, bool]]) -> None:
        with self._lock:
            self._rules = rules
            self._found = {}
            self.custom = not all(builtin for _, builtin in rules.values())

    def _find(self, key: tuple[type, type, type]) -> Mover:
        rules, found = self._rules, self._found
        fitting = [kinds for kinds in rules if all(map(issubclass, key, kinds))]
        rule: Mover = _identity
        if fitting:
            best = min(fitting, key=lambda kinds: tuple(distance(key[i], kinds[i]) for i in (2, 1, 0)))
            rule = rules[best][0]
        if len(found) >= 4096:
            found.clear()
        found[key] = rule
        return rule


def _identity(from_proc: Processor, to_proc: Processor, x: Any) -> Any:
    return x


def distance(cls: type, base: type) -> float:
    """How far up `base` is; a virtual base (an ABC) lies between the real ones and `object`."""
    mro = cls.__mro__
    return mro.index(base) if base in mro else len(mro) - 1.5


def _processor_type(cls: Any) -> type:
    if isinstance(cls, type) and issubclass(cls, Processor):
        return cls
    raise InvalidOptionError(f"move.register needs processor types, not {cls!r}")


def _value_type(cls: Any) -> type:
    if cls is Any:
        return object
    if isinstance(cls, type):
        return cls
    raise InvalidOptionError(f"move.register needs the type of the values, not {cls!r}")


move = Move()


def has_custom_moves() -> bool:
    """Whether any rule was registered that the package did not bring itself; False: `move` can be skipped."""
    return move.custom
