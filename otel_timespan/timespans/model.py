"""What a log is made of: events (half spans), timespans (matched pairs) and what they carry.

An `Event` is a plain named tuple because a busy log makes twenty of them a task: building one costs
0.2 µs, a frozen dataclass 1 µs. Everything an event carries is a copy or a description, so that a log
never keeps a program's data alive: a chunk appears as `ChunkInfo`, another
value as `ValueInfo`, a task as `TaskRef`. See docs/events.md.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

__all__ = [
    "NO_SAMPLES",
    "ChunkInfo",
    "Event",
    "EventId",
    "GCDiff",
    "GCNum",
    "ProfilerResult",
    "TaskRef",
    "Timeline",
    "Timespan",
    "ValueInfo",
    "attribute_of",
    "function_name",
    "make_timespan",
    "name_of_type",
]

Timeline = types.SimpleNamespace
"""The payload of a scheduler event: named fields, compared by value. Any other object is allowed too."""


class EventId(tuple):  # type: ignore[type-arg]
    """The identity of a span within its category: named fields, immutable, hashable by value.

    `id.thunk_id`, `id["thunk_id"]` and `"thunk_id" in id` all work. Two ids are equal when they have
    the same fields with equal values, in whatever order. Iterating gives the names, as of a dict.
    """

    # A tuple of its layout and its values: the cheapest object there is, and hashed and compared in C.
    __slots__ = ()

    def __new__(cls, **fields: Any) -> EventId:  # noqa: D102 - see the class
        layout = id_layout(*fields)
        return _new(cls, (layout, *map(fields.__getitem__, layout.names)))

    def __getattr__(self, name: str) -> Any:
        layout: IdLayout = _item(self, 0)
        try:
            return _item(self, layout.places[name])
        except KeyError:
            raise AttributeError(f"this id has no field {name!r}: {self!r}") from None

    # Methods of tuples whose names a field may have.
    count = property(lambda self: self.__getattr__("count"))
    index = property(lambda self: self.__getattr__("index"))

    def __getitem__(self, name: Any) -> Any:
        return _item(self, _item(self, 0).places[name])

    def __contains__(self, name: object) -> bool:
        return name in _item(self, 0).places

    def __iter__(self) -> Iterator[str]:
        return iter(_item(self, 0).names)

    def __len__(self) -> int:
        return len(_item(self, 0).names)

    def __bool__(self) -> bool:
        return len(self) > 0

    def keys(self) -> Iterator[str]:
        """The names of the fields (so that `dict(id)` works)."""
        return iter(self)

    def get(self, name: str, default: Any = None) -> Any:
        """The field called `name`, or `default` where there is none."""
        place = _item(self, 0).places.get(name)
        return default if place is None else _item(self, place)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("an EventId is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_id, (dict(self),)

    def __repr__(self) -> str:
        return f"EventId({', '.join(f'{name}={self[name]!r}' for name in self)})"


_new = tuple.__new__
_item = tuple.__getitem__


class IdLayout:
    """The names of an id's fields, one object for each set of names: compared by identity.

    `_new(EventId, (layout, *values))` with the values in the order of `names` is the fast way to an id.
    """

    __slots__ = ("names", "places")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.places = {name: place for place, name in enumerate(names, 1)}

    def __repr__(self) -> str:
        return f"<{', '.join(self.names)}>"


_layouts: dict[Any, IdLayout] = {}


def id_layout(*names: str) -> IdLayout:
    """The layout of ids with these fields; its order is that in which they were first named."""
    found = _layouts.get(names)
    if found is None:
        found = _layouts.setdefault(frozenset(names), IdLayout(names))  # atomic: one for each set
        _layouts[names] = found
    return found


def _restore_id(fields: dict[str, Any]) -> EventId:
    return EventId(**fields)


@dataclass(frozen=True, slots=True)
class GCNum:
    """A snapshot of allocator and collector counters; upstream's names, what Python can't know is 0.

    `allocd` is in bytes, `total_time` in nanoseconds, the rest are counts.
    """

    allocd: int = 0
    malloc: int = 0
    realloc: int = 0
    poolalloc: int = 0
    bigalloc: int = 0
    freecall: int = 0
    total_time: int = 0
    pause: int = 0
    full_sweep: int = 0

    def __sub__(self, other: GCNum) -> GCDiff:
        return GCDiff(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class GCDiff(GCNum):
    """The field-wise difference of two snapshots; differences add up field by field."""

    def __add__(self, other: GCDiff) -> GCDiff:
        return GCDiff(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class ProfilerResult:
    """Samples of a profiler: a flat buffer, the frames behind it, the threads it belongs to."""

    samples: tuple[Any, ...] = ()
    lineinfo: dict[Any, Any] = field(default_factory=dict)
    tasks: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.samples)

    def __add__(self, other: ProfilerResult) -> ProfilerResult:
        tasks = tuple(dict.fromkeys(self.tasks + other.tasks))
        return ProfilerResult(self.samples + other.samples, {**self.lineinfo, **other.lineinfo}, tasks)


NO_SAMPLES = ProfilerResult()
NO_GC = GCNum()


class Event(NamedTuple):
    """One half of a span.

    `phase` is "start" or "finish", `category` a short name, `id` any hashable value (with the
    category it names the span), `timeline` any payload, `timestamp` monotonic nanoseconds.
    `gc_num` is a real snapshot only where a consumer asked for one, else all zero. `worker` is the
    worker in whose stream the event appears. `samples` holds what consumers that sample the moment
    itself took when the event happened (consumer -> value), else None.
    """

    phase: str
    category: str
    id: Any
    timeline: Any = None
    timestamp: int = 0
    gc_num: GCNum = NO_GC
    profiler_samples: ProfilerResult = NO_SAMPLES
    worker: int = 1
    samples: Mapping[Any, Any] | None = None


class Timespan(NamedTuple):
    """A matched pair of events. Times are monotonic nanoseconds; the timeline is the finish's."""

    category: str
    id: Any
    timeline: Any
    start: int
    finish: int
    gc_diff: GCDiff
    profiler_samples: ProfilerResult


def make_timespan(start: Event, finish: Event) -> Timespan:
    """Join two halves. Raises `AssertionError` when they are not of one span: a programming error."""
    if start.category != finish.category or start.id != finish.id:
        raise AssertionError(f"not two halves of one span: {start[:3]} and {finish[:3]}")
    gc_diff = GCDiff() if start.gc_num is NO_GC and finish.gc_num is NO_GC else finish.gc_num - start.gc_num
    samples = start.profiler_samples + finish.profiler_samples
    return Timespan(start.category, start.id, finish.timeline, start.timestamp, finish.timestamp, gc_diff, samples)


class ChunkInfo(NamedTuple):
    """A chunk as the log shows it: never the data. `nbytes` is None where the size is unknown."""

    handle: Any
    nbytes: int | None
    type: type
    worker: int = 1


class ValueInfo(NamedTuple):
    """A plain value as the log shows it: its type, estimated bytes, `id()` if it is mutable, else 0."""

    type: type
    nbytes: int | None
    objid: int = 0


class TaskRef(NamedTuple):
    """A task as the log shows it."""

    id: int


def attribute_of(thing: Any, name: str, default: Any = None) -> Any:
    """`getattr` of what a user gave: the `__getattr__` of a proxy may raise anything, and has nothing to tell then."""
    try:
        return getattr(thing, name, default)
    except Exception:
        return default


def function_name(f: Any) -> str:
    """The plain name of a function as the log shows it; of other callables, and of chunks, the name of their type."""
    if type(f) is ChunkInfo:
        return name_of_type(f.type)
    name = attribute_of(f, "__name__")
    return name if isinstance(name, str) else name_of_type(type(f))


name_of_type: Callable[[type], str] = type.__dict__["__name__"].__get__
"""The name of a class, whatever a metaclass of the user's makes of that attribute."""
