"""Functions that the tests of this folder run on workers: importable there, as this process finds them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from otel_timespan import dagger as D


def add(*values: Any) -> Any:
    """Their sum."""
    return sum(values)


def boom(text: str = "boom") -> None:
    """Fail."""
    raise ValueError(text)


def down(depth: int) -> int:
    """So many bodies that wait inside each other."""
    return 0 if depth == 0 else 1 + int(D.fetch(D.spawn(down, depth - 1)))


def fib(n: int) -> int:
    """As a tree of tasks."""
    return n if n < 2 else sum(D.fetch_all([D.spawn(fib, n - 1), D.spawn(fib, n - 2)]))


def fetch_each(tasks: list[Any]) -> list[Any]:
    """A list of tasks arrives as it is."""
    return [task.fetch() for task in tasks]


def until(path: str, seconds: float = 20.0) -> bool:
    """Wait for a file."""
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def note(path: str) -> None:
    """Make a file: how a test sees that a body came here."""
    Path(path).touch()


def stay(begun: str, path: str) -> str:
    """Say that we are here, and wait for a file."""
    note(begun)
    until(path)
    return "went on"


def spin(begun: str, ended: str) -> None:
    """Run Python code until somebody stops it; say how it ended."""
    how = "not stopped"
    try:
        note(begun)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            pass
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        Path(ended).write_text(how)


@contextmanager
def thread(target: Any) -> Iterator[None]:
    """A thread for a block."""
    one = threading.Thread(target=target)
    one.start()
    yield
    one.join()


def pid(_: Any = None) -> int:
    """Of the process that runs it."""
    return os.getpid()


def alive(process: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


REQUEST: ContextVar[Any] = ContextVar("request", default="none")
"""Registered by the tests."""


def current() -> Any:
    """What the context variable is."""
    return REQUEST.get()


def request() -> Any:
    """What it is in a body, and in one that it spawns."""
    return current(), D.fetch(D.spawn(current))


def trace() -> tuple[int, Any, int]:
    """The trace that a body is in, the baggage, and the trace of a body that it spawns."""
    from opentelemetry import baggage, trace

    def inner() -> int:
        return trace.get_current_span().get_span_context().trace_id

    return inner(), baggage.get_baggage("user"), D.fetch(D.spawn(inner))
