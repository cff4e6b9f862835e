"""Ids that are derived, not drawn, and what a task remembers of its caller.

A span's id follows from (seed, task, phase, position, attempt): the first two are mixed, once a task, the others
are a mask over that. So both ends of a link are known before either span exists, a body knows the id of its compute
span before there is one, and a replay of a saved log gives the same ids.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "COMPUTE",
    "FINISH",
    "MOVE",
    "QUEUE",
    "SCHEDULE",
    "TASK",
    "Root",
    "TraceParent",
    "digest",
    "mask",
    "mixed",
    "of",
    "pack",
    "span_id",
    "swapped",
    "unpack",
]

TASK, SCHEDULE, QUEUE, MOVE, COMPUTE, FINISH = range(1, 7)
"""Phases, as numbers for `span_id`."""

_MASK = (1 << 64) - 1


class Root(NamedTuple):
    """The root span of a run. `start_ns` is monotonic; `parent_id` is 0 unless it was opened under a span."""

    span_id: int
    name: str
    start_ns: int
    parent_id: int = 0
    attributes: Mapping[str, Any] = {}
    explicit: bool = False


class TraceParent(NamedTuple):
    """The caller of `spawn` as a task remembers it.

    `span_id` is the parent of the task's span, `seed` what its ids are derived from, `root` the run whose
    counts the task enters, or None for a task under a span of the user's outside of any run.
    """

    trace_id: int
    span_id: int
    flags: int
    trace_state: str
    seed: int
    root: Root | None


def pack(parent: TraceParent) -> tuple[Any, ...]:
    """As the timeline of `add_thunk` carries it: builtin types only, so that any log can be saved and read.

    Attributes as pairs: the garbage collector visits what waits with a dict in it again and again.
    """
    root = parent.root
    if root is None:
        return (*parent[:5], None)
    return (*parent[:5], tuple(root._replace(attributes=tuple(root.attributes.items()))))  # type: ignore[arg-type]


def unpack(value: Any) -> TraceParent | None:
    """What `pack` made; None for anything else."""
    if type(value) is not tuple or len(value) != len(TraceParent._fields):
        return None
    root = value[5]
    if root is not None and (type(root) is not tuple or len(root) != len(Root._fields)):
        return None
    if root is None:
        return TraceParent._make(value)
    try:
        found = Root._make(root)
        return TraceParent._make((*value[:5], found._replace(attributes=dict(found.attributes))))
    except (TypeError, ValueError):  # pairs, or a dict in older logs
        return None


def mixed(seed: int, task: int) -> int:
    """What the ids of all spans of a task are made of: splitmix64's mix of (seed, task)."""
    bits = (seed + task * 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & _MASK
    return bits ^ bits >> 31


def mask(phase: int, position: Any = 0, attempt: int = 1) -> int:
    """What tells the spans of one task apart, by exclusive or. 0 for the task's own."""
    if position.__class__ is not int:
        position = 0x80000000 | zlib.crc32(str(position).encode("utf-8", "surrogatepass"))
    number = phase - TASK | (attempt - 1) << 4 | position << 20
    return mixed(_MASKS, number) if number else 0


_MASKS = 0xD1342543DE82EF95
_PHASE_MASKS = tuple([mask(phase) if phase else 0 for phase in range(FINISH + 1)])


def swapped(number: int) -> int:
    """The bytes of an id the other way round: what is `mixed` is little-endian, as `struct` writes it best."""
    return int.from_bytes(number.to_bytes(8, "little"), "big")


def span_id(seed: int, task: int, phase: int, position: Any = 0, attempt: int = 1) -> int:
    """The id of a span, never 0. `position` is an argument's number or name."""
    return of(mixed(seed, task), phase, position, attempt)


def of(base: int, phase: int, position: Any = 0, attempt: int = 1) -> int:
    """The same, of what was `mixed`."""
    simple = attempt == 1 and position == 0
    own = _PHASE_MASKS[phase] if simple else mask(phase, position, attempt)
    return swapped(base ^ own) or 1


def digest(bits: int, *parts: Any) -> int:
    """A uniform number of so many bits made from the text of `parts`, never 0: ids of spans without a task."""
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=bits // 8).digest(), "big") or 1
