"""What several suites use: bodies that count who is inside, that fail at first, that wait; a device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, BoomError


class Meter:
    """How many bodies are inside at once, the most there were, and in which order they came."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.order: list[Any] = []

    @contextlib.contextmanager
    def inside(self, who: Any = None) -> Iterator[None]:
        """Whoever is in the block counts."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(who)
        try:
            yield
        finally:
            with self.lock:
                self.now -= 1

    def __call__(self, who: Any = None, hold: threading.Event | None = None) -> Any:
        """A body: inside until `hold`; gives `who`."""
        with self.inside(who):
            if hold is not None:
                hold.wait(DEADLINE_S)
        return who


class Flaky:
    """A body that fails so often, or with these errors one after the other; then it gives the number of its attempt."""

    __name__ = "Flaky"

    def __init__(self, fail: int | BaseException = 0, *more: BaseException) -> None:
        self.errors = [BoomError(n + 1) for n in range(fail)] if isinstance(fail, int) else [fail, *more]
        self.ran = 0

    def __call__(self, *args: Any) -> int:
        self.ran += 1
        if self.ran <= len(self.errors):
            raise self.errors[self.ran - 1]
        return self.ran


@dataclass(frozen=True)
class Device(D.Processor):
    """A processor that takes and runs everything; not enabled by default."""

    owner: int = 1

    def get_parent(self) -> D.Processor:
        return D.OSProc(self.owner)

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        return True

    def execute(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)


def held(executor: Any, gate: threading.Event, bodies: int = 1) -> list[Any]:
    """Futures of bodies that run and wait for the gate, one a worker."""
    begun = [threading.Event() for _ in range(bodies)]

    def body(own: threading.Event) -> bool:
        own.set()
        return gate.wait(DEADLINE_S)

    futures = [executor.submit(body, own) for own in begun]
    for own in begun:
        assert own.wait(DEADLINE_S)
    return futures


class TaskLike:
    """What options know of a task: that it has an id. It can be indexed, but not iterated over."""

    def __init__(self, id: int) -> None:
        self.id = id

    def __getitem__(self, index: int) -> int:
        raise AssertionError("iterated over")


class FakeProc(D.Processor):
    """A processor that is not enabled by default."""

    def __init__(self, owner: int) -> None:
        self.owner = owner

    def get_parent(self) -> D.Processor:
        return D.OSProc(self.owner)


class SubFakeProc(FakeProc):
    """A subclass."""


WORKERS = {1: "here", 2: "here", 3: "there"}
"""The pretended workers of the fixture `three_workers`, and the hosts they are on."""
