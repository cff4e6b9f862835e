"""`AnyThreadCount`: a count that any thread, a signal handler and a finalizer may raise, without a lock."""

from __future__ import annotations

__all__ = ["AnyThreadCount"]

_MOST = 1000


class AnyThreadCount:
    """A count that loses nothing, as `+=` does where threads meet; and no finalizer can find a lock of it held."""

    __slots__ = ("_counts", "_may_fold")

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._may_fold = True  # deleted by who folds

    def add(self, count: int) -> None:
        """So many more."""
        self._counts.append(count)  # one step
        if len(self._counts) > _MOST:
            self._fold()

    @property
    def value(self) -> int:
        """How many, of one moment."""
        return sum(self._counts[:])

    def _fold(self) -> None:
        try:
            del self._may_fold
        except AttributeError:
            return
        try:
            together = sum(self._counts[:_MOST])
            self._counts[:_MOST] = [together]
        finally:
            self._may_fold = True
