"""`Shard`: one piece of data a processor; as an argument it stands for the piece of the processor that runs the task.

See docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import GenericAlias
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ...errors import NoPieceError
from ..places.processors import Processor, get_parent
from ..tasks.references import Reference, Value
from .bound import process_bound
from .chunks import Chunk

__all__ = ["Shard"]

_T = TypeVar("_T")


@process_bound
class Shard(Reference[Value, NoReturn]):
    """One piece of data a processor. Immutable; thread-safe; equal only to itself.

    As an argument of a task (or as its function) it stands for the piece of the processor that runs the
    task, else of the nearest ancestor of that (a thread finds the piece of its worker); without one the
    task fails with `NoPieceError`, a `KeyError`. The scope of the piece plays no part, and the other pieces
    stay where they are. `chunks` are the pieces by processor; iterating, `len` and `map` go over them.
    """

    __slots__ = ("__weakref__", "chunks")

    if not TYPE_CHECKING:
        __class_getitem__ = classmethod(GenericAlias)

    def __init__(self, chunks: dict[Processor, Chunk[Value]]) -> None:
        self.chunks = dict(chunks)

    def piece(self, processor: Processor) -> Chunk[Value]:
        """The chunk of a processor or of its nearest ancestor. Raises `NoPieceError`."""
        here, seen = processor, []
        while here not in seen:  # the root is its own parent
            found = self.chunks.get(here)
            if found is not None:
                return found
            seen.append(here)
            here = get_parent(here)
        raise NoPieceError(f"the shard has no piece for {processor!r}, only for {', '.join(map(repr, self.chunks))}")

    @property
    def nbytes(self) -> int:
        """Estimated bytes of all pieces; unknown sizes do not count."""
        return sum(chunk.handle.nbytes or 0 for chunk in self)

    def map(self, f: Callable[[Chunk[Value]], _T]) -> list[_T]:
        """`f(chunk)` for each piece: `shard.map(fetch)`, or `shard.map(lambda c: spawn(total, c))`."""
        return [f(chunk) for chunk in self]

    def __iter__(self) -> Iterator[Chunk[Value]]:
        return iter(self.chunks.values())

    def __len__(self) -> int:
        return len(self.chunks)

    def __repr__(self) -> str:
        return f"Shard({', '.join(map(repr, self.chunks))})"
