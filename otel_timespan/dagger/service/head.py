"""Where this process is a worker: how it asks the head, which has the only scheduler.

See docs/workers.md.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Head", "Refusable", "link"]


class Refusable(Protocol):
    """A wait that the head may refuse."""

    refused: BaseException | None

    def notify(self) -> Any:
        """End it."""


class Head(Protocol):
    """The head, seen from a worker (`worker/link.py`). Thread-safe."""

    def ask(self, what: str, *given: Any) -> Any:
        """What the head says to this; waits for it, while a body's slot is given back. Raises what it raised there.

        What there is to ask stands in `dagger/answers.py`.
        """

    def begin_wait(self, body: int, task: int, wait: Refusable) -> None:
        """A body begins to wait for a task: the head may refuse that."""

    def end_wait(self, body: int, task: int, wait: Refusable, done: bool) -> None:
        """It waits no more; `done`: as that task is done."""


link: Head | None = None
"""None in the head. Set once, before anything runs."""
