"""Moves of a task's arguments between workers, as its START tells them: a span each, all of the same times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...timespans.taskrecords import OWNER_BITS, RESULTS
from ..export.wire import varint
from ..spans.mapping import MOVED_KINDS

__all__ = ["Moved", "moved_of", "shape_of", "sizes_of"]


class Moved(NamedTuple):
    """An argument that came from elsewhere."""

    position: int | str
    kind: str
    source: int
    destination: int
    nbytes: int | None


def moved_of(start: Any) -> tuple[Moved, ...] | None:
    """The moves of a START that are spans; None where a size is none that a message has room for."""
    moves, worker = start[2], start[6] >> OWNER_BITS
    if moves[0] is RESULTS:
        return ()
    found = []
    for position, data, kind, after in moves:
        if kind in MOVED_KINDS:
            nbytes = data.nbytes if after is None or type(after) is int else after.nbytes
            if nbytes is not None and (type(nbytes) is not int or nbytes < 0):
                return None
            found.append(Moved(position, kind, getattr(data, "worker", worker), worker, nbytes))
    return tuple(found)


def sizes_of(moved: Sequence[Moved]) -> tuple[bytes, ...]:
    """Their sizes as a message has them, empty where unknown."""
    return tuple([b"" if each.nbytes is None else varint(each.nbytes) for each in moved])


def shape_of(moved: Sequence[Moved], sizes: Sequence[bytes]) -> tuple[Any, ...]:
    """What tasks share whose moves a packer can write alike."""
    return tuple([(*each[:4], len(size)) for each, size in zip(moved, sizes, strict=True)])
