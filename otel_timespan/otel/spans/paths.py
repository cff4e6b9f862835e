"""The critical path of a run, found while it runs, in bounded memory.

The longest path over dependencies, each task weighted by its own time (moves and compute). A path is a
chain of nodes that successors share. Every `SEGMENT` nodes the chain before is flattened to a tuple of ids
and what was before that is forgotten, so a path keeps its last 500 to 1,000 tasks, however long it is.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["AnyPath", "Path", "extend", "length_of", "path_of"]

SEGMENT = 500


class Path:
    """The heaviest path that ends with one task: `length_ns` in all, and the ids of its tasks."""

    __slots__ = ("_before", "_count", "_earlier", "_task", "length_ns", "truncated")

    def __init__(self, task: int, length_ns: int, before: Path | None) -> None:
        self.length_ns = length_ns
        self._task = task
        self._before: Path | None = before
        self._count = 1
        self._earlier: tuple[int, ...] = ()
        self.truncated = False
        if before is None:
            return
        self._earlier, self.truncated, self._count = before._earlier, before.truncated, before._count + 1
        if before._count == SEGMENT:
            self.truncated = self.truncated or bool(before._earlier)
            self._earlier, self._before, self._count = tuple(before._segment()[::-1]), None, 1

    def tasks(self) -> tuple[int, ...]:
        """The ids in order, the last one being that of the task that it ends with."""
        return tuple(reversed(self.latest()))

    def latest(self, most: int | None = None) -> list[int]:
        """The ids from the last one back, so many at most."""
        ids = self._segment(most)
        left = None if most is None else most - len(ids)
        return [*ids, *self._earlier[::-1][:left]]

    def _segment(self, most: int | None = None) -> list[int]:
        ids: list[int] = []
        node: Path | None = self
        while node is not None and len(ids) != most:
            ids.append(node._task)
            node = node._before
        return ids


AnyPath = Path | int
"""A path; one of a single task, of which there are most, is just that task's time in ns."""


def length_of(path: AnyPath) -> int:
    """The time of a path in ns."""
    return path if type(path) is int else path.length_ns  # type: ignore[union-attr]


def path_of(task: int, path: AnyPath) -> Path:
    """The path that ends with `task`."""
    return Path(task, path, None) if isinstance(path, int) else path


def extend(task: int, own_ns: int, upstreams: Iterable[tuple[int, AnyPath]]) -> AnyPath:
    """The heaviest path that ends with `task`, given its upstreams and theirs."""
    longest = max(upstreams, key=lambda upstream: length_of(upstream[1]), default=None)
    if longest is None:
        return own_ns
    return Path(task, own_ns + length_of(longest[1]), path_of(*longest))
