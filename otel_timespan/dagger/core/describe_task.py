"""How a task's function, arguments and dependencies appear in its records. On the hot path of a log.

See docs/events.md.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

from ...timespans.model import ChunkInfo, ValueInfo
from ..data.chunks import Chunk, DRef, LoggedDRef
from ..data.files import File
from ..data.shards import Shard
from ..places.processors import Processor, move
from ..records.describe import FIXED_INFO, describe_value, is_mutable
from ..records.kinds import RESULTS
from ..records.sizes import AT_ONCE, FIXED
from ..tasks.dtask import DTask, live

__all__ = [
    "describe_arguments",
    "describe_moves",
    "other_dependencies",
    "take_arguments",
]


def describe_arguments(task: DTask) -> tuple[Any, ...]:
    """The arguments as given to `spawn`, flat: an int for a task, else a description; keywords as a dict, last.

    Flat, because a waiting record is an object for the garbage collector to visit; records/kinds.py makes of it
    what the event shows.
    """
    fixed = FIXED_INFO
    flat = [value.id if type(value) is DTask else fixed.get(type(value)) or _info(value, task) for value in task._args]
    if task._kwargs:
        named = task._kwargs.items()
        flat.append({name: value.id if type(value) is DTask else _info(value, task) for name, value in named})
    return tuple(flat)


def _info(value: Any, task: DTask) -> Any:
    if type(value) is Chunk:
        return value.handle.info
    if type(value) in AT_ONCE:
        return describe_value(value)
    extra = live(task)
    if extra.measured is None:
        extra.measured = {}
    info = extra.measured[id(value)] = described(task, value)
    return info


def described(task: DTask, value: Any) -> ValueInfo:
    """The description of a plain argument of a task: what takes time to measure is measured once a task."""
    extra = task._live
    measured = None if extra is None or extra.measured is None else extra.measured.get(id(value))
    return measured or describe_value(value)


def other_dependencies(task: DTask) -> tuple[tuple[Any, int], ...]:
    """(0 or None, task id) of the upstreams that are no argument: the function, and explicit syncdeps (None)."""
    given = [value for value in (*task._args, *(task._kwargs or {}).values()) if type(value) is DTask]
    if len(given) == len(task._deps):
        return ()
    known = {up.id for up in given}
    first = [(0, task._f.id)] if type(task._f) is DTask else []
    known |= {up for _, up in first}
    return (*first, *((None, up.id) for up in task._deps if up.id not in known))


def take_arguments(args: tuple[Any, ...], worker: int) -> tuple[list[Any], tuple[Any, ...]] | None:
    """The values of arguments that are logged results on this worker or numbers, and their moves; None for others.

    Moves flat where all are results: handle, size, type and `id()` of each. Else as `describe_moves` has them.
    """
    values: list[Any] = []
    moves: list[Any] = [RESULTS]
    for arg in args:
        ref = arg._outcome if type(arg) is DTask else None
        if type(ref) is not LoggedDRef or ref.worker != worker:
            return _take_mixed(args, worker)
        value = ref.value  # of this very type: in memory, `read` has nothing to add
        kind = type(value)
        values.append(value)
        moves += (ref._number, ref._nbytes, kind, 0 if kind in FIXED or not is_mutable(value) else id(value))
    return values, tuple(moves)


def _take_mixed(args: tuple[Any, ...], worker: int) -> tuple[list[Any], tuple[Any, ...]] | None:
    values: list[Any] = []
    moves: list[Any] = []
    for position, arg in enumerate(args, 1):
        info = FIXED_INFO.get(type(arg))
        if info is not None:
            values.append(arg)
            moves.append((position, info, "value", None))
            continue
        ref = arg._outcome if type(arg) is DTask else None
        if type(ref) is not LoggedDRef or ref.worker != worker:
            return None
        value = ref.value
        kind = type(value)
        values.append(value)
        identity = 0 if kind in FIXED or not is_mutable(value) else id(value)
        moves.append((position, ChunkInfo(ref._number, ref._nbytes, kind, worker), "task", identity))
    return values, tuple(moves)


def describe_moves(task: DTask, values: Any, named: Any, processor: Processor, worker: int) -> tuple[Any, ...]:
    """The moves of a task's arguments to `processor` of `worker`; `values` and `named` are what they became.

    Flat as in `take_arguments` where all arguments are logged results on this worker. Else (position, before,
    kind, after) of each; `after` is None for a value that stayed what it was, and just the `id()` where type
    and size did.
    """
    if not task._kwargs and not move.custom:
        taken = take_arguments(task._args, worker)
        if taken is not None and all(map(operator.is_, taken[0], values)):
            return taken[1]
    moves: list[Any] = []
    pairs: Any = zip(itertools.count(1), task._args, values, strict=False)
    if task._kwargs:
        pairs = [*pairs, *((name, given, named[name]) for name, given in task._kwargs.items())]
    for position, given, value in pairs:
        kind = type(given)
        if kind is Shard and not task._options.meta:
            given = given.piece(processor)
        ref = given._outcome if kind is DTask else given.handle if type(given) is Chunk else None
        if isinstance(ref, DRef):
            if value is not ref.held and not ref.may_spill:
                moves.append((position, ref.info, "custom", describe_value(value)))
            else:
                stayed = kind is DTask and ref.worker == worker and value is ref.held
                how = "shard" if kind is Shard else "task" if stayed else "chunk"
                moves.append((position, ref.info, how, id(value) if is_mutable(value) else 0))
        elif value is given:
            moves.append((position, described(task, value), "value", None))
        else:
            how = "file" if kind is File else "custom"
            moves.append((position, described(task, given), how, describe_value(value)))
    return tuple(moves)
