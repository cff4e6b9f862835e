"""Which data objects the tasks of a log read and made: the second half of a task graph.

Taken from the streams `taskargs`, `taskargmoves`, `taskresult`, `tasktochunk` where the log has them,
else from the timelines of `move`, `compute` and `finish`. Objects that are really tasks are skipped.

See docs/consumers.md and docs/pictures.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..timespans.model import ChunkInfo, ValueInfo
from .rows import LogTable, id_field

__all__ = ["DataFlow", "DataKey", "read_dataflow"]


class DataKey(NamedTuple):
    """The identity of a data object: what kind it is ("object", "chunk") and its number or address."""

    kind: str
    objid: Any


class DataFlow:
    """Edges between tasks and data, each once, in the order of the log."""

    def __init__(self) -> None:
        self.arguments: dict[tuple[int, Any, DataKey], None] = {}
        self.results: dict[tuple[int, DataKey], None] = {}
        self.moves: dict[tuple[DataKey, DataKey], None] = {}
        self.chunks: dict[tuple[int, DataKey], None] = {}
        """Results that are only known as chunks: a connection, but no edge of its own."""

    def objects(self) -> list[DataKey]:
        """Every object of an edge, sorted."""
        found = {key for _, _, key in self.arguments} | {key for _, key in self.results}
        found |= {key for pair in self.moves for key in pair} | {key for _, key in self.chunks}
        return sorted(found, key=lambda key: (key.kind, str(type(key.objid)), key.objid))


_STREAMS = ("taskargs", "taskargmoves", "taskresult", "tasktochunk")


def read_dataflow(log: LogTable) -> DataFlow:
    """Read the data edges of a log; empty where the log says nothing of data."""
    flow = DataFlow()
    if any(name in streams for streams in log.streams.values() for name in _STREAMS):
        for worker in sorted(log.streams):
            _from_streams(flow, log.streams[worker])
    else:
        _from_timelines(flow, log)
    return flow


def _from_streams(flow: DataFlow, streams: Any) -> None:
    for task_id, arguments in _entries(streams, "taskargs"):
        for position, thing in arguments:
            if key := _key(thing):
                flow.arguments[task_id, position, key] = None
    for _, _, before, after in _entries(streams, "taskargmoves"):
        _note_move(flow, _key(before), _key(after))
    for task_id, thing in _entries(streams, "taskresult"):
        if key := _key(thing):
            flow.results[task_id, key] = None
    for task_id, thing in _entries(streams, "tasktochunk"):
        if key := _key(thing):
            flow.chunks[task_id, key] = None


def _entries(streams: Any, name: str) -> Iterator[Any]:
    return (entry for entry in streams.get(name) or () if entry is not None)


def _from_timelines(flow: DataFlow, log: LogTable) -> None:
    before: dict[Any, Any] = {}
    for half in log.halves():
        task_id = id_field(half.id, "thunk_id")
        if half.timeline is None or not task_id:
            continue
        if half.category == "move":
            position = id_field(half.id, "position")
            key = _key(getattr(half.timeline, "data", None))
            if half.is_start:
                before[half.worker, half.id] = key
            elif key is not None and position != 0:
                flow.arguments[task_id, position, key] = None
                _note_move(flow, before.pop((half.worker, half.id), None), key)
        elif half.category in ("compute", "finish") and not half.is_start:
            key = _key(getattr(half.timeline, "result", None))
            if key is not None:
                (flow.results if half.category == "compute" else flow.chunks)[task_id, key] = None


def _note_move(flow: DataFlow, before: DataKey | None, after: DataKey | None) -> None:
    if before is not None and after is not None and before != after:
        flow.moves[before, after] = None


def _key(thing: Any) -> DataKey | None:
    """The identity of what a log shows of a value; None for what has none, and for tasks."""
    if isinstance(thing, ChunkInfo):
        return DataKey("chunk", thing.handle)
    if isinstance(thing, ValueInfo):
        return DataKey("object", thing.objid) if thing.objid else None
    objid, kind = getattr(thing, "objid", None), str(getattr(thing, "kind", "object"))
    return None if objid is None or kind == "task" else DataKey(kind, objid)
