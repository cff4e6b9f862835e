"""What is said between the head and a worker, and how values are written.

A frame is the pickle of a list of messages: tuples of plain values, so that a frame can always be read. What users
made is pickled on its own, and stands in there as bytes: a value that can't be written or read is the failure of the
one task whose it is.

Functions and classes go by reference where the other process can import them, by value otherwise (`__main__`,
lambdas, closures): cloudpickle does that. Handles (tasks, chunks) mean something in one process only; each side gives
the pickler a table of how it writes them.

See docs/workers.md.
"""

from __future__ import annotations

import io
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any

import cloudpickle

from ...errors import RemoteTaskError, StorageError, TimespanError, UnpicklableError, bare_error
from ..records.sizes import approx_size
from .byvalue import travelling

__all__ = [
    "EXPORTED",
    "FORGET",
    "FORGET_SLABS",
    "FREE",
    "HERE",
    "INLINE_BYTES",
    "KEPT",
    "LOCATED",
    "NOT_EXPORTED",
    "PACKED",
    "PLAIN",
    "RELEASED",
    "RETIRED",
    "WANT",
    "Pickler",
    "dumps",
    "dumps_apart",
    "error_bytes",
    "error_of",
    "is_plain",
    "loads",
    "loads_apart",
    "pack",
    "packed",
    "type_name",
]

# --- head to worker ------------------------------------------------------------------------------------

CONFIG, TASK, FUNCTION, CANCEL, ENDED, CALL, STOP, LEVEL = range(8)
ANSWER, REFUSED, WORKERS, GLOBALS, UNDER, RECALL = range(8, 14)
"""(CONFIG, {name: value}): what a worker is, before anything else.

(FUNCTION, number, bytes or None): a function that tasks name by this number from now on; None: it went. Both ways.
(TASK, id, attempt, slot or 0, share, slots, function, args, kwargs or None, options or None, surroundings or None).
(CANCEL, id, graceful, force).
(ENDED, id, how, what): a task that the worker spawned, or has a handle of, ended (borrows.py says how).
(CALL, number, bytes): run a function apart from all tasks.
(STOP,): nothing more comes; end.
(LEVEL, None) or (LEVEL, (number, whether CPU time is wanted, samplers or None, {number: part of a log})): what is to
be noted of bodies from now on, for the head's logs, and comes with outcomes; None is nothing.
(RECALL, [id, ...]): give back those of these tasks that have not begun.
(ANSWER, number, ok, item): what ASK asked for, or (bytes, text) of an error.
(REFUSED, body's id, task's id, bytes, text): that body must not wait for that task.
(RECALL, [id, ...]): those of them that have not begun are not to.
(WORKERS, {worker: (threads, node, private)}): which workers there are.
(GLOBALS, bytes): globals of the program's `__main__` are other objects now (byvalue.py).
(UNDER, (number of the log, caller) or None): who called the tasks that follow.
"""

# --- worker to head ------------------------------------------------------------------------------------

READY, RESULT, ERROR, SPAWN, DROP, CALLED, RECALLED = range(20, 27)
EXPIRED, DROP_VALUE, WAITS, WAITED, PAUSED, RESUMED, ASK, STARTED, SIGNALS, PROCESSORS = range(27, 37)
"""(READY, {name: value}): it can take tasks.

(RESULT, id, attempt, slot, item, ns, log): a body gave a value; `log` is what the head's log is to be told, or None.
(ERROR, id, attempt, slot, bytes, text, log): a body raised.
(SPAWN, id, body's id or 0, function, args, kwargs, options, ids of further inputs, surroundings): a task was spawned.
(CALLED, number, ok, bytes): what CALL gave.
(RECALLED, [id, ...]): these had not begun, and won't here.
(EXPIRED, as ERROR): the body ran too long; it goes on.
(DROP, id, count, retrieved): nobody there has a handle of this task any more, which came so often; whether its failure
was seen. (DROP_VALUE, key, count): the same for a value.
(WAITS, body's id, task's id), (WAITED, ...): a body begins to wait for a task; it stops before that is done.
(PAUSED, body's id), (RESUMED, ...): a body needs no slot, as it waits; it goes on.
(ASK, number, what, body's id or 0, bytes): something that only the head can do (requests.py).
(RECALLED, [id, ...]): these have not begun, and never will.
(STARTED, id, attempt, slot, log): a body has been running for a while; `log` as far as it is known.
(PROCESSORS, bytes): the custom processors that it has now, {processor: number of its slot}.
(SIGNALS, number of the log, signal, how many, bytes or None, how many were given up): what bodies told OpenTelemetry.

A `log` is [shares, taken, begun, ended, packed, (ident, name) of the thread, CPU ns, span, samples], times in monotonic
ns; `span` is (bytes, whether it has what the body raised), a text or None; `samples` (number of the level, bytes of the
begin, of the end) or None.
"""

# --- large values (values.py) -----------------------------------------------------------------------------

WANT, FORGET, FREE, FORGET_SLABS, SPILL = range(40, 45)
"""(WANT, key): export a value that is kept there.

(FORGET, [key, ...]): nobody has a handle of these values any more.
(FREE, [(slab, offset), ...]): nobody reads what is in these blocks any more.
(FORGET_SLABS, owner, [slab, ...]): they are gone.
(SPILL, settings): how results are kept from now on, as `caching.apply` takes it.
"""

EXPORTED, NOT_EXPORTED, RELEASED, RETIRED = range(50, 54)
"""(EXPORTED, key, place, item): where the value lies, as in `slabs.Exported`; or None, and the value packed.

(NOT_EXPORTED, key, bytes, text): it can't be written, for this error.
(RELEASED, [(owner, slab, offset), ...]): one map of each of these blocks is gone.
(RETIRED, [slab, ...]): slabs of the worker that are gone.
"""

HERE, PACKED, LOCATED, KEPT = 1, 4, 6, 6
"""What stands in messages for a value that does not stand there as it is: tuples, told apart by their length.

PACKED: (bytes, type, size, whether there are handles in it).
HERE: (key,), an argument that is kept by the worker that gets it.
LOCATED: (owner, place, type, size, False, shape or None), an argument in a block; `place` as in `slabs.Exported`.
KEPT: (key, type, size, False, shape or None, whether it may change), a result that stays with the worker.
"""

INPUT = 1
"""An argument in a SPAWN that is a tuple of so many items is (id,): the result of that task."""

PLAIN = frozenset((int, float, bool, complex, type(None)))
"""Types whose values stand in messages as they are. A short str does, too."""

_SHORT = 256

INLINE_BYTES = 32 * 1024
"""Results up to this size live in the head."""

MOST_INLINE = 1 << 28
"""Nothing larger goes in a message, even where there is no other way."""
MAX_BYTES = 1 << 30
"""What is longer when it was pickled is not sent."""

_PROTOCOL = 5

loads = pickle.loads


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes one value. `handles` says how handles are written: {type: function of one that gives its reduction}."""

    def __init__(
        self,
        file: io.BytesIO,
        handles: Mapping[type, Callable[[Any], Any]],
        buffer_callback: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(file, _PROTOCOL, buffer_callback=buffer_callback)
        self.handles = handles
        self.found = 0
        """How many handles were written."""

    def reducer_override(self, obj: Any) -> Any:
        """As the base class asks."""
        how = self.handles.get(type(obj))
        if how is not None:
            self.found += 1
            return how(obj)
        reduced = super().reducer_override(obj)
        return travelling(obj, reduced) if type(obj) is FunctionType else reduced


_SIMPLE = frozenset((str, bytes, bytearray))


def dumps(value: Any, handles: Mapping[type, Callable[[Any], Any]]) -> tuple[bytes, bool]:
    """A value as bytes, and whether there are handles in it. Raises whatever its pickling raises."""
    if type(value) in _SIMPLE:
        return _not_too_long(pickle.dumps(value, _PROTOCOL)), False
    data, found = dumps_apart(value, handles, None)
    return _not_too_long(data), found


def dumps_apart(
    value: Any, handles: Mapping[type, Callable[[Any], Any]], apart: Callable[[pickle.PickleBuffer], bool] | None
) -> tuple[bytes, bool]:
    """`dumps`, with large buffers given to `apart`, if that is not None, as `buffer_callback` of picklers."""
    file = io.BytesIO()
    pickler = Pickler(file, handles, apart)
    try:
        pickler.dump(value)
    except RecursionError as deep:
        raise pickle.PicklingError("it is nested too deep to be pickled") from deep
    return file.getvalue(), pickler.found > 0


def _not_too_long(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise pickle.PicklingError(f"it takes {len(data):,} bytes, and what is sent at once at most {MAX_BYTES:,}")
    return data


def loads_apart(header: Any, buffers: Sequence[memoryview]) -> Any:
    """The value that `dumps_apart` wrote."""
    return pickle.loads(header, buffers=buffers)


def is_plain(value: Any) -> bool:
    """Whether a value stands in messages as it is."""
    kind = type(value)
    return kind in PLAIN or (kind is str and len(value) <= _SHORT)


def pack(value: Any, handles: Mapping[type, Callable[[Any], Any]]) -> Any:
    """A value as it stands in a message: itself, or a tuple (bytes, type, size, whether there are handles in it)."""
    return value if is_plain(value) else packed(value, handles, approx_size(value))


def packed(value: Any, handles: Mapping[type, Callable[[Any], Any]], nbytes: int | None) -> tuple[Any, ...]:
    """`pack` for what is not plain, and of known size."""
    kind = type(value)
    data, found = dumps(value, handles)
    if len(data) > MOST_INLINE:
        raise StorageError(f"a {kind.__name__} of {len(data)} bytes is too large for a message")
    return data, type_name(kind), nbytes, found


def type_name(kind: type) -> str:
    """module:qualname."""
    return f"{kind.__module__}:{kind.__qualname__}"


# --- errors ---------------------------------------------------------------------------------------------


def error_bytes(error: BaseException, handles: Mapping[type, Callable[[Any], Any]]) -> tuple[bytes, str]:
    """An error as bytes, and its stack as text. One that can't be pickled, or not be read again, is stood in for.

    Before that it is tried without what of it can't be pickled, and without its constructor, which may want other
    arguments than the error tells of.
    """
    try:
        text = "".join(traceback.format_exception(type(error), error, _without_ours(error.__traceback__)))
    except BaseException:  # its own __str__ raised
        text = f"{type(error).__name__} (its text can't be had)"
    for way in (_as_it_is, _Bare):
        try:
            data, _ = dumps(way(error, handles), handles)
            if type(loads(data)) is type(error):
                return data, text
        except BaseException:  # of a user's pickling: whatever it is
            continue
    return pickle.dumps(stand_in(error), _PROTOCOL), text


def _as_it_is(error: BaseException, handles: Any) -> BaseException:
    return error


class _Bare:
    """An error with what of it can be pickled; comes out of pickle as the error, made without its constructor."""

    def __init__(self, error: BaseException, handles: Mapping[type, Callable[[Any], Any]]) -> None:
        self._kind = type(error)
        self._args = error.args if _travels(error.args, handles) else (stand_in(error).text,)
        self._state = {name: value for name, value in vars(error).items() if _travels(value, handles)}

    def __reduce__(self) -> Any:
        return bare_error, (self._kind, self._args, self._state)


def _travels(value: Any, handles: Mapping[type, Callable[[Any], Any]]) -> bool:
    try:
        loads(dumps(value, handles)[0])
    except BaseException:  # of a user's pickling: whatever it is
        return False
    return True


_OURS = str(Path(__file__).resolve().parents[2])


def _without_ours(frames: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame on that is not the scheduler's; all of it where there is none."""
    found = frames
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_OURS):
        found = found.tb_next
    return found or frames


def stand_in(error: BaseException) -> UnpicklableError:
    """What is said instead of an error that can't travel."""
    try:
        text = str(error)
    except BaseException:
        text = "(its text can't be had)"
    return UnpicklableError(type(error).__name__, text)


def error_of(worker: int, data: bytes, text: str) -> BaseException:
    """The error that a worker told of: one of ours as it is, others with where they were raised."""
    try:
        error = loads(data)
    except BaseException as unreadable:  # of a user's pickling: whatever it is
        last = text.strip().rpartition("\n")[2] or "an exception"
        error = UnpicklableError(last.partition(":")[0], f"{last} (it can't be read here: {unreadable})")
    if isinstance(error, TimespanError) and not isinstance(error, UnpicklableError):
        return error
    return RemoteTaskError(worker, error, text)
