"""Which states tasks go through: recorded move by move. `python -m tests.transitions` prints the statistics.

States are told by where a task is and are not stored, so that the recorder looks wherever the core moves one.
It is meant for the inline driver; with threads it sees the same, but may mix up moves of the same moment.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from otel_timespan import dagger as D
from otel_timespan.dagger.core.machine import Core
from otel_timespan.dagger.tasks.dtask import ALLOWED, DONE, state_name

__all__ = ["Transitions", "recording"]


class Transitions:
    """How often each move was made, and by what kinds of steps."""

    def __init__(self) -> None:
        self.moves: Counter[tuple[str, str]] = Counter()
        self._at: weakref.WeakKeyDictionary[D.DTask, str] = weakref.WeakKeyDictionary()

    def note(self, task: D.DTask, state: str | None = None) -> None:
        """A task is where it is now."""
        now = state or state_name(task)
        before = self._at.get(task, "unlaunched")
        self._at[task] = now
        if before != now:
            self.moves[before, now] += 1

    def add(self, other: Transitions) -> None:
        """Count what another one saw, too."""
        self.moves.update(other.moves)

    def note_ends(self) -> None:
        """Some tasks may have their outcomes now."""
        for task, state in list(self._at.items()):
            if task._state >= DONE and state not in ("finished", "failed"):
                self.note(task)

    @property
    def missing(self) -> set[tuple[str, str]]:
        """Moves that are allowed and were never made."""
        return ALLOWED - set(self.moves)

    @property
    def forbidden(self) -> set[tuple[str, str]]:
        """Moves that were made and are not allowed."""
        return set(self.moves) - ALLOWED


class _Running(set[D.DTask]):
    """A core's set of running tasks that tells of each that comes."""

    def __init__(self, seen: Transitions) -> None:
        super().__init__()
        self._seen = seen

    def add(self, task: D.DTask) -> None:
        super().add(task)
        if task._state < DONE:
            self._seen.note(task, "running")


@contextlib.contextmanager
def recording(seen: Transitions) -> Iterator[None]:
    """Record the moves of all tasks of the cores that are made in this block."""
    kept = {name: getattr(Core, name) for name in ("__init__", "wire", "enqueue", "_place")}

    def ended(task: D.DTask, outcome: Any) -> None:
        seen.note(task)
        seen.note_ends()

    def init(core: Core, *args: Any, **kwargs: Any) -> None:
        kept["__init__"](core, *args, **kwargs)
        core.running = _Running(seen)
        core.on_end = ended
        core.watch()

    def wire(core: Core, task: D.DTask) -> Any:
        failed = kept["wire"](core, task)
        if task._tokens and task._tokens > 1 and task._state < DONE:  # more than its own
            seen.note(task, "waiting")
        return failed

    def placing(name: str) -> Callable[..., Any]:
        @functools.wraps(kept[name])
        def call(core: Core, task: D.DTask, *args: Any) -> Any:
            if task._state < DONE:
                seen.note(task, "ready")
            ready = kept[name](core, task, *args)
            seen.note(task)
            return ready

        return call

    patched = {"__init__": init, "wire": wire}
    patched |= {name: placing(name) for name in ("enqueue", "_place")}
    for name, function in patched.items():
        setattr(Core, name, function)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(Core, name, function)


def main() -> None:
    """Run the state machine and the scenarios, and print what they did."""
    from hypothesis import Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    from otel_timespan.dagger.places.processors import topology
    from tests.dagger import test_core_machine as machine

    logging.getLogger("otel_timespan").setLevel(logging.CRITICAL)  # most of those that fail nobody fetches
    statistics, seen = machine.statistics, machine.seen
    given = machine.Machine.TestCase.settings
    profile = settings(given, phases=(Phase.generate,), print_blob=False, max_examples=200)
    run_state_machine_as_test(machine.Machine, settings=profile)
    topology.reset()
    print("The core under random steps (Hypothesis, inline driver, invariants after every step)\n")
    print(f"  examples run  {statistics['examples']:>8,}")
    print(f"  tasks         {statistics['tasks']:>8,}")
    print(f"  steps         {sum(n for name, n in statistics.items() if name.startswith('rule ')):>8,}")
    for name, count in sorted(statistics.items()):
        if name.startswith(("rule ", "kind ")):
            print(f"    {name:<24}{count:>8,}")
    reached = len(ALLOWED) - len(seen.missing)
    print(f"\n  allowed moves reached: {reached} of {len(ALLOWED)}; others: {len(seen.forbidden)}\n")
    for (before, after), count in sorted(seen.moves.items(), key=lambda item: -item[1]):
        print(f"    {before:>10} → {after:<10}{count:>10,}")
    for before, after in sorted(seen.missing):
        print(f"    {before:>10} → {after:<10}     never")


if __name__ == "__main__":
    main()
