"""What a worker may want of the head that is made in rooms above this one.

`dagger/answers.py` fills it in, when the first worker is started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..tasks.dtask import DTask

__all__ = ["UPSTAIRS"]


class Upstairs:
    """See the module."""

    eager: Callable[[], Core]
    """The scheduler for what is spawned outside of tasks; started if there is none. May raise."""

    begin_wait: Callable[[DTask, DTask], None]
    """A body is about to wait for a task. Raises where that could never end."""

    end_wait: Callable[[DTask, DTask | None], None]
    """It does not wait for it any more; None: for any."""

    answers: dict[str, Callable[..., Any]]
    """What can be asked for, by name: each is called on a thread of its own with
    (the task of the body that asks, or None; what is asked for ...)."""


UPSTAIRS = Upstairs()
