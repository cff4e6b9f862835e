"""The walk of one task through the files of the package: `python -m bench.walk [--steps]`.

How far a reader has to walk who follows one task from `spawn` to its value: the calls that cross from one file of
the package to another, and how many of them lead back to a file that was left before. Counted with
`sys.setprofile` over a task with one upstream, spawned and fetched by this thread, without and with the default
log. The task is the last of a warm scheduler with one slot, so that no other thread takes part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import otel_timespan as ts

__all__ = ["Walk", "main", "walk_of"]

WARM = 2000
"""Tasks before the count: a young scheduler times every body."""

ROUNDS = 51

PACKAGE = str(Path(ts.__file__).parent)


class Walk(NamedTuple):
    """`crossings`: calls from one file to another; `returns`: those into a file that was left before."""

    files: int
    crossings: int
    returns: int
    steps: list[str]


class _Walker:
    """A profile function that follows the calls of this thread through the package."""

    def __init__(self) -> None:
        self.here: list[str] = []
        self.left: set[str] = set()
        self.crossings = self.returns = 0
        self.steps: list[str] = []

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE):
            return
        if event == "call":
            file = name[len(PACKAGE) + 1 :]
            before = self.here[-1] if self.here else ""
            if file != before:
                self.crossings += 1
                self.returns += file in self.left
                self.left.add(before)
                self.steps.append(f"{'  ' * len(self.here)}{file}: {frame.f_code.co_name}")
            self.here.append(file)
        elif event == "return" and self.here:
            file = self.here.pop()
            if self.here and self.here[-1] != file:
                self.left.add(file)


def walk_of(one_task: Callable[[], Any]) -> Walk:
    """The walk of whatever the call does on this thread."""
    walker = _Walker()
    sys.setprofile(walker)
    try:
        one_task()
    finally:
        sys.setprofile(None)
    return Walk(len(walker.left - {""}), walker.crossings, walker.returns, walker.steps)


def _add(a: int, b: int) -> int:
    return a + b


def _one_task() -> int:
    upstream = ts.spawn(_add, 1, 2)
    value: int = ts.fetch(ts.spawn(_add, upstream, 3))
    return value


def main(arguments: list[str] | None = None) -> int:
    """Print the walks; with `--steps` each crossing."""
    parser = argparse.ArgumentParser(prog="python -m bench.walk", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", action="store_true", help="print each call that crosses files")
    options = parser.parse_args(arguments)
    for name in ("NoOpLog", "default log"):
        with ts.Context(threads=1):
            if name != "NoOpLog":
                ts.enable_logging()
            for _ in range(WARM):
                _one_task()
            walks = sorted((walk_of(_one_task) for _ in range(ROUNDS)), key=lambda one: one.crossings)
            walk = walks[ROUNDS // 2]  # in a few of them another thread was quicker, or a finalizer ran
        print(f"{name}: {walk.files} files, {walk.crossings} calls cross files, {walk.returns} lead back")
        if options.steps:
            print("\n".join(walk.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
