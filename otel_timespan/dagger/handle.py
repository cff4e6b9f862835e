"""What the handle of a task can be asked to do: fills in the verbs of `DTask`, which stands below all of this."""

from __future__ import annotations

from .api import spawn
from .control import cancel
from .fetching import awaitable, fetch, future, wait
from .tasks.dtask import VERBS

__all__: list[str] = []

VERBS.fetch, VERBS.wait, VERBS.future, VERBS.awaitable = fetch, wait, future, awaitable
VERBS.cancel, VERBS.spawn = cancel, spawn
