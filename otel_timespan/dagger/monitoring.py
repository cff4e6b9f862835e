"""`status()`: what the scheduler is doing, as text.

See docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from ..timespans.texts import printable
from .context import eager_state
from .core.machine import Core
from .records.describe import callable_name
from .service import head
from .tasks.dtask import DONE, FAILED, LAUNCHED, DTask, Result

__all__ = ["status"]

DEPTH, WIDTH = 5, 3
"""How much of the graph `status` shows: levels of dependents, and tasks a level."""


def status(io: TextIO | None = None) -> str:
    """What the scheduler is doing, as text: the running count, then unfinished tasks with their dependents.

    Flags: E failed, R running, C has its result, w waits for a slot, W waits for inputs, f somebody waits for
    it, ? unknown. At most 5 levels deep and 3 tasks wide; what is left out is counted. Written to `io`, if
    given; returned either way.
    """
    core = eager_state()
    if head.link is not None:
        text = str(head.link.ask("status"))
    else:
        text = "no scheduler is running\n" if core is None else "".join(_lines(core))
    if io is not None:
        io.write(text)
    return text


def _lines(core: Core) -> Iterator[str]:
    tasks = sorted(core.unfinished(), key=lambda task: task.id)
    count = sum(not task._tokens for task in tasks)
    yield f"scheduler {core.uid}: {count} running or ready, {len(tasks)} unfinished, {len(core.active)} worker(s)\n"
    roots = [task for task in tasks if not task._tokens]
    shown: set[int] = set()
    yield from _level(core, roots, 1, shown)


def _level(core: Core, tasks: list[DTask], depth: int, shown: set[int]) -> Iterator[str]:
    new = [task for task in tasks if task.id not in shown]
    indent = "  " * depth
    for task in new[:WIDTH]:
        shown.add(task.id)
        yield f"{indent}{flags(core, task):<3} {task.id}: {printable(callable_name(task._f)) if task._f else 'done'}\n"
        below = [sub for sub in list(task._subs) if type(sub) is DTask]
        if below and depth < DEPTH:
            yield from _level(core, below, depth + 1, shown)
        elif below:
            yield f"{indent}    ... {len(below)} dependent(s)\n"
    if len(new) > WIDTH:
        yield f"{indent}... {len(new) - WIDTH} more\n"


def flags(core: Core, task: DTask) -> str:
    """The flags of one task, see `status`."""
    state = task._state
    if state == FAILED:
        text = "E"
    elif state == DONE:
        text = "" if isinstance(task._outcome, Result) else "C"
    elif task in core.running:
        text = "R"
    elif state == LAUNCHED:
        text = "W" if task._tokens else "w"
    else:
        text = "?"
    waiters = [sub for sub in list(task._subs) if type(sub) is not DTask]
    return text + "f" * bool(waiters)
