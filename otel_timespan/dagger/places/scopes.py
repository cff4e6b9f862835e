"""Scopes: sets of processors, described without listing them.

A scope says where a task may run or a result may be used; `constrain` intersects two. Scopes are immutable,
hashable and picklable values. Naming a worker or processor that does not exist is no error here: the task
that gets there finds no processor (`SchedulingError`, code `no_processors`).

Upstream: https://juliaparallel.org/Dagger.jl/dev/scopes/; there the equality of unions looks at their
lengths only, here it is that of sets.
"""

from __future__ import annotations

import uuid as _uuid
from collections.abc import Iterable, Iterator
from typing import Any

from ...errors import InvalidOptionError
from .processors import OSProc, Processor, ThreadProc
from .processors import root as root_of
from .topology import positive, topology

__all__ = [
    "AnyScope",
    "DefaultEnabledTaint",
    "DefaultScope",
    "ExactScope",
    "InvalidScope",
    "NodeScope",
    "ProcessScope",
    "ProcessorTypeScope",
    "ProcessorTypeTaint",
    "Scope",
    "Taint",
    "TaintScope",
    "UnionScope",
    "constrain",
    "proc_in_scope",
    "processors_in",
]

_set = object.__setattr__


class Scope:
    """Base of all scopes. The kinds are fixed: intersecting needs to know each of them."""

    __slots__ = ("_hash",)
    _hash: int
    _rank = 0

    def _key(self) -> Any:
        """What makes two scopes of one kind equal."""
        return ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self._key() == other._key())

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            _set(self, "_hash", hash((type(self), self._key())))
            return self._hash

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class AnyScope(Scope):
    """Every processor. Intersecting with it changes nothing."""

    __slots__ = ()
    _rank = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return AnyScope, ()


class NodeScope(Scope):
    """The processors of all workers on one host. `uuid`: the host's identity, by default this host's."""

    __slots__ = ("uuid",)
    _rank = 4
    uuid: str

    def __init__(self, uuid: str | _uuid.UUID | None = None) -> None:
        if uuid is not None and not isinstance(uuid, (str, _uuid.UUID)):
            raise InvalidOptionError(f"NodeScope needs the identity of a host (a string or UUID), not {uuid!r}")
        _set(self, "uuid", topology.node(topology.me()) if uuid is None else str(uuid))

    def _key(self) -> str:
        return self.uuid

    def __reduce__(self) -> tuple[Any, ...]:
        return NodeScope, (self.uuid,)

    def __repr__(self) -> str:
        return f"NodeScope({self.uuid!r})"


class ProcessScope(Scope):
    """The processors of one worker, by default ours. `wid`: the worker's id; `parent`: its `NodeScope`.

    The node is that which is known when the scope is made; equality looks at the worker only.
    """

    __slots__ = ("parent", "wid")
    _rank = 5
    wid: int
    parent: NodeScope

    def __init__(self, worker: int | OSProc | None = None) -> None:
        if worker is None:
            worker = topology.me()
        wid = worker.pid if isinstance(worker, OSProc) else positive("worker", worker)
        _set(self, "wid", wid)
        _set(self, "parent", NodeScope(topology.node(wid)))

    def _key(self) -> int:
        return self.wid

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_process, (self.wid, self.parent)

    def __repr__(self) -> str:
        return f"ProcessScope({self.wid})"


class ExactScope(Scope):
    """Exactly one processor. `parent`: the `ProcessScope` of its worker."""

    __slots__ = ("parent", "processor")
    _rank = 6
    processor: Processor
    parent: ProcessScope

    def __init__(self, processor: Processor) -> None:
        if not isinstance(processor, Processor):
            raise InvalidOptionError(f"ExactScope needs a processor, such as ThreadProc(1, 1), not {processor!r}")
        _set(self, "processor", processor)
        _set(self, "parent", ProcessScope(root_of(processor)))

    def _key(self) -> Processor:
        return self.processor

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_exact, (self.processor, self.parent)

    def __repr__(self) -> str:
        return f"ExactScope({self.processor!r})"


class UnionScope(Scope):
    """The processors of any of several scopes, given one by one, or as lists or tuples.

    Unions inside are flattened, duplicates dropped; `scopes` keeps the order. Equal to a union of the same
    set of scopes. Raises `InvalidOptionError` if there is none.
    """

    __slots__ = ("scopes",)
    _rank = 2
    scopes: tuple[Scope, ...]

    def __init__(self, *scopes: Any) -> None:
        members = tuple(dict.fromkeys(_flatten(scopes)))
        if not members:
            raise InvalidOptionError("a UnionScope needs at least one scope: a union of none contains no processor")
        _set(self, "scopes", members)

    def _key(self) -> frozenset[Scope]:
        return frozenset(self.scopes)

    def __reduce__(self) -> tuple[Any, ...]:
        return UnionScope, self.scopes

    def __repr__(self) -> str:
        return f"UnionScope({', '.join(map(repr, self.scopes))})"


def _flatten(scopes: Iterable[Any]) -> Iterator[Scope]:
    for member in scopes:
        if isinstance(member, UnionScope):
            yield from member.scopes
        elif isinstance(member, (list, tuple, set, frozenset)):
            yield from _flatten(member)
        else:
            yield _checked(member)


class Taint:
    """A condition on single processors, by which a `TaintScope` filters. Immutable and hashable."""

    __slots__ = ()

    def allows(self, processor: Processor) -> bool:
        """Whether the processor meets the condition."""
        raise NotImplementedError


class DefaultEnabledTaint(Taint):
    """Lets the default-enabled processors through."""

    __slots__ = ()

    def allows(self, processor: Processor) -> bool:
        """`default_enabled(processor)`."""
        return processor.default_enabled()

    def __eq__(self, other: object) -> bool:
        return type(other) is DefaultEnabledTaint

    def __hash__(self) -> int:
        return hash(DefaultEnabledTaint)

    def __repr__(self) -> str:
        return "DefaultEnabledTaint()"


class ProcessorTypeTaint(Taint):
    """Lets the processors of one type through, subclasses included."""

    __slots__ = ("type",)

    def __init__(self, type: type) -> None:
        self.type = _processor_type(type)

    def allows(self, processor: Processor) -> bool:
        """`isinstance(processor, type)`."""
        return isinstance(processor, self.type)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProcessorTypeTaint) and self.type is other.type

    def __hash__(self) -> int:
        return hash((ProcessorTypeTaint, self.type))

    def __repr__(self) -> str:
        return f"ProcessorTypeTaint({self.type.__name__})"


class TaintScope(Scope):
    """The processors of `scope` that pass all of `taints`. They are only asked once a processor is known."""

    __slots__ = ("scope", "taints")
    _rank = 3
    scope: Scope
    taints: frozenset[Taint]

    def __init__(self, scope: Scope, taints: Iterable[Taint]) -> None:
        inner: Any = _checked(scope)
        wanted = frozenset(taints)
        odd = [taint for taint in wanted if not isinstance(taint, Taint)]
        if odd:
            raise InvalidOptionError(f"a TaintScope needs taints, such as DefaultEnabledTaint(), not {odd[0]!r}")
        if isinstance(inner, TaintScope):
            inner, wanted = inner.scope, wanted | inner.taints
        _set(self, "scope", inner)
        _set(self, "taints", wanted)

    def _key(self) -> tuple[Scope, frozenset[Taint]]:
        return self.scope, self.taints

    def __reduce__(self) -> tuple[Any, ...]:
        return TaintScope, (self.scope, self.taints)

    def __repr__(self) -> str:
        inner = "" if isinstance(self.scope, AnyScope) else repr(self.scope)
        if self.taints == {DefaultEnabledTaint()} and not inner:
            return "DefaultScope()"
        taints = sorted(self.taints, key=repr)
        if len(taints) == 1 and isinstance(taints[0], ProcessorTypeTaint):
            return f"ProcessorTypeScope({taints[0].type.__name__}{', ' + inner if inner else ''})"
        return f"TaintScope({self.scope!r}, {{{', '.join(map(repr, taints))}}})"


class InvalidScope(Scope):
    """Nothing: the intersection of `x` and `y`, which have no processor in common."""

    __slots__ = ("x", "y")
    x: Scope
    y: Scope

    def __init__(self, x: Scope, y: Scope) -> None:
        _set(self, "x", _checked(x))
        _set(self, "y", _checked(y))

    def _key(self) -> frozenset[Scope]:
        return frozenset((self.x, self.y))

    def __reduce__(self) -> tuple[Any, ...]:
        return InvalidScope, (self.x, self.y)

    def __repr__(self) -> str:
        return f"InvalidScope({self.x!r}, {self.y!r})"


def _restore_process(wid: int, parent: NodeScope) -> ProcessScope:
    """With the node that its maker knew: the reader may not have heard of the worker yet."""
    restored = ProcessScope.__new__(ProcessScope)
    _set(restored, "wid", wid)
    _set(restored, "parent", parent)
    return restored


def _restore_exact(processor: Processor, parent: ProcessScope) -> ExactScope:
    restored = ExactScope.__new__(ExactScope)
    _set(restored, "processor", processor)
    _set(restored, "parent", parent)
    return restored


def _checked(value: Any) -> Scope:
    if isinstance(value, Scope):
        return value
    raise InvalidOptionError(
        f"a scope is needed here, such as ProcessScope(1) or scope(worker=1, thread=2), not {value!r}"
    )


def _processor_type(cls: Any) -> type[Processor]:
    if isinstance(cls, type) and issubclass(cls, Processor):
        return cls
    raise InvalidOptionError(f"a type of processors is needed here, such as ThreadProc, not {cls!r}")


_ANY = AnyScope()
_DEFAULT = TaintScope(_ANY, (DefaultEnabledTaint(),))


def DefaultScope() -> TaintScope:  # noqa: N802 - the field's name; a function as the scope is an ordinary TaintScope
    """Every default-enabled processor. Always the same object."""
    return _DEFAULT


def ProcessorTypeScope(type: type, inner: Scope = _ANY) -> TaintScope:  # noqa: N802
    """The processors of one type, subclasses included, inside `inner`."""
    return TaintScope(inner, (ProcessorTypeTaint(type),))


# --- intersection ------------------------------------------------------------------------------------


def constrain(x: Scope, y: Scope, *more: Scope) -> Scope:
    """The intersection of scopes: an `InvalidScope` where no processor can be in all of them.

    The order does not matter. With more than two, folds from the left and stops at the first that is
    invalid. Whether a taint lets any processor through is only found out where an exact one is known.
    """
    result = _meet(_checked(x), _checked(y))
    for scope_ in map(_checked, more):
        if isinstance(result, InvalidScope):
            break
        result = _meet(result, scope_)
    return result


def _meet(x: Scope, y: Scope) -> Scope:
    for side in (x, y):
        if isinstance(side, InvalidScope):
            return side
    wide, narrow = (x, y) if x._rank <= y._rank else (y, x)
    if isinstance(wide, AnyScope) or wide == narrow:
        return narrow
    if isinstance(wide, UnionScope):
        met = _meet_union(wide, narrow)
    elif isinstance(wide, TaintScope):
        met = _meet_taint(wide, narrow)
    else:
        met = narrow if _contains(wide, narrow) else None
    return InvalidScope(x, y) if met is None else met


def _meet_union(union: UnionScope, other: Scope) -> Scope | None:
    others = other.scopes if isinstance(other, UnionScope) else (other,)
    pairs = [_meet(member, one) for member in union.scopes for one in others]
    valid = [pair for pair in pairs if not isinstance(pair, InvalidScope)]
    return UnionScope(valid) if valid else None


def _meet_taint(tainted: TaintScope, other: Scope) -> Scope | None:
    if isinstance(other, ExactScope):
        if not all(taint.allows(other.processor) for taint in tainted.taints):
            return None
        inner, taints = _meet(tainted.scope, other), frozenset[Taint]()
    elif isinstance(other, TaintScope):
        inner, taints = _meet(tainted.scope, other.scope), tainted.taints | other.taints
    else:
        inner, taints = _meet(tainted.scope, other), tainted.taints
    if isinstance(inner, InvalidScope):
        return None
    return TaintScope(inner, taints) if taints else inner


def _contains(wide: Scope, narrow: Scope) -> bool:
    """For a node, process or exact scope and one of the same or a narrower kind."""
    inside: Scope = narrow
    while inside._rank > wide._rank and isinstance(inside, (ProcessScope, ExactScope)):
        inside = inside.parent
    return inside == wide


def proc_in_scope(processor: Processor, scope: Scope) -> bool:
    """Whether a processor is in a scope. Never builds a scope where the kind alone decides."""
    kind = type(scope)
    if kind is AnyScope:
        return True
    if kind is InvalidScope:
        return False
    if isinstance(scope, ExactScope):
        return scope.processor == processor
    if isinstance(scope, ProcessScope):
        worker = processor.owner if type(processor) is ThreadProc else root_of(processor).pid
        return worker == scope.wid
    if isinstance(scope, UnionScope):
        return any(proc_in_scope(processor, member) for member in scope.scopes)
    if isinstance(scope, TaintScope):
        for taint in scope.taints:
            if not taint.allows(processor):
                return False
        return proc_in_scope(processor, scope.scope)
    return not isinstance(_meet(_checked(scope), ExactScope(processor)), InvalidScope)


def processors_in(scope: Scope, roots: Iterable[Processor]) -> set[Processor]:
    """The processors of these trees, default-enabled or not, that are in a scope. `roots`: usually `OSProc`s."""
    wanted = _checked(scope)
    found: set[Processor] = set()
    for root in roots:
        if isinstance(root, OSProc) and isinstance(_meet(wanted, ProcessScope(root)), InvalidScope):
            continue  # nothing of this worker can be inside: spare asking each
        found.update(p for p in root.get_processors() if proc_in_scope(p, wanted))
    return found
