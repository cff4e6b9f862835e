"""What the scheduler has learned about tasks, and what it expects a task to cost on a processor.

A *signature* is a function with the types of its arguments. For each signature and type of processor the
run time and the bytes of the result are learned, for each worker the rate at which data reach it: the first
sample as it is, later ones as (old + new) / 2. Times are wall times of bodies, so that blocking counts too.

    cost(p) = run time + transfer(p) + hop(p) + pressure(p)          all in nanoseconds

`transfer`: bytes of chunks and results that lie on other workers over the rate of p's worker; `hop`: 1 ms
where p's worker is not the scheduler's; `pressure`: the expected time of what waits or runs there already,
which upstream reserves and never uses. A signature that was never run takes 1 s, a rate 1 MB/s.

Learning is nearly free: where nothing has to be chosen (one worker, no options) only the first 256 tasks of a
scheduler are timed, then every 256th (`Costs.skip`).

See docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from ...timespans.model import attribute_of
from ..data.chunks import Chunk, DRef
from ..data.read import read
from ..records.describe import describe_function
from ..records.sizes import FIXED
from ..service.guards import guard
from ..tasks.dtask import DTask

if TYPE_CHECKING:
    from ..places.processors import Processor

__all__ = [
    "DEFAULT_TIME_COST",
    "DEFAULT_TRANSFER_RATE",
    "HOP_COST",
    "Arg",
    "Costs",
    "Signature",
    "bytes_by_worker",
    "content_of",
    "impute_sum",
    "numbers_among",
    "remote_bytes",
    "signature",
    "signature_of",
    "type_of",
]

DEFAULT_TRANSFER_RATE = 1_000_000
"""Bytes per second to a worker where none were measured."""

DEFAULT_TIME_COST = 10**9
"""Nanoseconds of a body that was never run."""

HOP_COST = 10**6
"""Nanoseconds for sending a task to a worker that is not the scheduler's."""

REFERENCES = frozenset((Chunk, DTask))
"""Types of inputs that stand for others, which lie on some worker."""

MAX_LEARNED = 10_000
"""Entries a table; the oldest go first. Programs that make functions at run time would fill it for ever."""

_YOUNG = 256
"""So many bodies are timed in any case."""

_RARELY = 255
"""After that, those whose id has none of these bits."""


class Arg(NamedTuple):
    """One argument of a call: its position (1..n, or the keyword) and its value."""

    pos: int | str
    value: Any


class Signature:
    """A function and the types of its arguments. Equal and hashable by value.

    `sig` is [function, type of the first positional argument, ...] and, where there are keywords, their
    (names, types) at the end; `sig_nokw` is the same without that. Two functions made by the same piece of
    code (a lambda in a loop) count as one. Holds no data of closures.
    """

    __slots__ = ("_hash", "_key", "kw", "sig_nokw")

    def __init__(self, f: Any, positional: Sequence[type], keywords: Sequence[tuple[str, type]] = ()) -> None:
        self.sig_nokw: list[Any] = [describe_function(f), *positional]
        self.kw = (tuple(n for n, _ in keywords), tuple(t for _, t in keywords)) if keywords else None
        code = getattr(self.sig_nokw[0], "__code__", None)
        self._key = (code if isinstance(code, CodeType) else self.sig_nokw[0], tuple(positional), self.kw)
        self._hash = hash(self._key)

    @property
    def anchor(self) -> Any:
        """What stands for the function in comparisons: its code, else what `sig` begins with."""
        return self._key[0]

    @property
    def sig(self) -> list[Any]:
        """See the class."""
        return self.sig_nokw if self.kw is None else [*self.sig_nokw, self.kw]

    @property
    def hash(self) -> int:
        """The hash of all of it."""
        return self._hash

    @property
    def hash_nokw(self) -> int:
        """The hash of function and positional arguments: that of `hash` where there are no keywords."""
        return hash((*self._key[:2], None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        names = [getattr(part, "__name__", str(part)) for part in self.sig]
        return f"Signature({', '.join(names)})"


def signature(f: Any, args: Iterable[Arg | tuple[int | str, Any]] = ()) -> Signature:
    """The signature of a call. A chunk counts by the type of its content, a task by that of its result."""
    given = [Arg(*arg) for arg in args]
    positional = sorted(((a.pos, type_of(a.value)) for a in given if isinstance(a.pos, int) and a.pos), key=_first)
    keywords = sorted(((a.pos, type_of(a.value)) for a in given if isinstance(a.pos, str)), key=_first)
    return Signature(content_of(f), [t for _, t in positional], keywords)


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def signature_of(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Signature:
    """The signature of a call as a task has it."""
    keywords = sorted((name, type_of(v)) for name, v in kwargs.items()) if kwargs else ()
    return Signature(content_of(f), [type_of(a) for a in args], keywords)


def type_of(value: Any) -> type:
    """The type that the body will see; `object` for the result of a task that is not there yet."""
    kind = type(value)
    if kind is DTask:
        outcome = getattr(value, "_outcome", None)
        if isinstance(outcome, DRef):
            return outcome.type
        wanted = value._options.return_type
        return wanted if isinstance(wanted, type) else object
    return value.chunktype if kind is Chunk else kind


def content_of(f: Any) -> Any:
    """The function behind a chunk or a task, if it is there."""
    if type(f) is Chunk:
        return f.handle.type if f.handle.may_spill else read(f.handle)
    if type(f) is DTask:
        outcome = getattr(f, "_outcome", None)
        return read(outcome) if isinstance(outcome, DRef) and not outcome.may_spill else type(f)
    return attribute_of(f, "__spawned__", f)


def impute_sum(sizes: Iterable[float | None]) -> float:
    """The sum, where unknown sizes count as the mean of the known ones; 0 where none is known."""
    listed = list(sizes)
    known = [size for size in listed if size is not None]
    return sum(known) + (len(listed) - len(known)) * (sum(known) / len(known)) if known else 0


def remote_bytes(values: Iterable[Any], worker: int) -> float:
    """Bytes of the chunks and results among `values` that lie on other workers than `worker`."""
    away = [ref.nbytes for ref in map(_ref_of, values) if ref is not None and ref.worker != worker]
    return impute_sum(away) if away else 0


def bytes_by_worker(values: Iterable[Any]) -> dict[int, int] | None:
    """Bytes of the chunks and results among `values`, by the worker that holds them; None where some are unknown.

    `remote_bytes` for all workers at once: what the others hold is remote.
    """
    found: dict[int, int] = {}
    for value in values:
        ref = _ref_of(value) if type(value) in REFERENCES else None
        if ref is not None:
            nbytes = ref.nbytes
            if type(nbytes) is not int:
                return None
            found[ref.worker] = found.get(ref.worker, 0) + nbytes
    return found


def numbers_among(args: tuple[Any, ...]) -> tuple[tuple[type, ...], dict[int, int]] | None:
    """What `type_of` and `bytes_by_worker` say, in one pass, where all that is a reference is a number's; else None."""
    types: list[type] = []
    found: dict[int, int] = {}
    for arg in args:
        kind = type(arg)
        if kind is DTask:
            ref = arg._outcome
            if type(ref) is not DRef:
                return None
            kind = type(ref.value)
            nbytes = FIXED.get(kind)
            if nbytes is None:
                return None
            found[ref.worker] = found.get(ref.worker, 0) + nbytes
        elif kind is Chunk:
            return None
        types.append(kind)
    return tuple(types), found


def _ref_of(value: Any) -> DRef | None:
    kind = type(value)
    ref = value.handle if kind is Chunk else getattr(value, "_outcome", None) if kind is DTask else None
    return ref if isinstance(ref, DRef) else None


class Costs:
    """The learned tables of one scheduler. Thread-safe."""

    def __init__(self) -> None:
        self.time: dict[tuple[Signature, type], float] = {}
        """(signature, type of processor): nanoseconds."""
        self.alloc: dict[tuple[Signature, type], float] = {}
        """(signature, type of processor): bytes of the result."""
        self.rate: dict[int, float] = {}
        """Worker: bytes per second that reach it."""
        self.skip = 0
        """Bodies of tasks whose id has any of these bits are not timed: none at first, later most."""
        self._samples = 0
        self._always = False
        self.signatures: dict[tuple[Any, ...], Signature] = {}
        """By what takes no time to find: the `id` of the function's code, or of what is no function (each signature
        keeps that alive), the types of the arguments, and (name, type) of each keyword. None of these is a reference.
        """
        self._lock = guard()

    def time_all(self, always: bool) -> None:
        """Whether something depends on every body's time, as there is a choice of workers."""
        with self._lock:
            self._always = always
            self.skip = 0 if always or self._samples < _YOUNG else _RARELY

    def signature(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Signature:
        """`signature_of` such a call, the same object each time: the tables find it by identity."""
        given = f if type(f) is FunctionType else content_of(f)
        anchor = given.__code__ if type(given) is FunctionType else given
        types = tuple(map(type, args))
        if not REFERENCES.isdisjoint(types):
            types = tuple([type_of(a) for a in args])
        key: tuple[Any, ...] = (id(anchor), types)
        if kwargs:
            key = (*key, *[(name, type_of(value)) for name, value in kwargs.items()])
        known = self.signatures.get(key)
        if known is None:
            known = signature_of(f, args, kwargs)
            if known.anchor is anchor and REFERENCES.isdisjoint(types):
                with self._lock:
                    _bounded(self.signatures, key, known)
        return known

    def learn_run(self, sig: Signature, kind: type, ns: int, nbytes: int | None) -> None:
        """A body ran to its end."""
        with self._lock:
            _average(self.time, (sig, kind), ns)
            if nbytes is not None:
                _average(self.alloc, (sig, kind), nbytes)
            self._samples += 1
            if self._samples == _YOUNG and not self._always:
                self.skip = _RARELY

    def learn_rate(self, worker: int, nbytes: int, ns: int) -> None:
        """So many bytes reached a worker in that time. What was too quick or too little to tell is left out."""
        if nbytes > 0 and ns > 0:
            with self._lock:
                _average(self.rate, worker, nbytes * 1e9 / ns)

    def run_ns(self, sig: Signature, processor: Processor, options: Any = None) -> float:
        """Expected run time: what the option `time_util` says, else what was learned, else 1 s."""
        given = options.time_util.get(type(processor)) if options is not None and options.time_util else None
        if given is not None:
            return float(given) * 1e9
        return self.time.get((sig, type(processor)), DEFAULT_TIME_COST)

    def alloc_bytes(self, sig: Signature, processor: Processor, options: Any = None) -> float:
        """Expected bytes: what the option `alloc_util` says, else what was learned, else 0."""
        given = options.alloc_util.get(type(processor)) if options is not None and options.alloc_util else None
        return float(given) if given is not None else self.alloc.get((sig, type(processor)), 0)

    def transfer_ns(self, nbytes: float, worker: int) -> float:
        """Expected time for that many bytes to reach a worker."""
        return nbytes * 1e9 / self.rate.get(worker, DEFAULT_TRANSFER_RATE)


def _average(table: dict[Any, float], key: Any, new: float) -> None:
    old = table.get(key)
    _bounded(table, key, new if old is None else (old + new) / 2)


def _bounded(table: dict[Any, Any], key: Any, value: Any) -> None:
    table[key] = value
    if len(table) > MAX_LEARNED:
        del table[next(iter(table))]
