"""A task that goes to an idle worker from the thread that spawned it: interrupted anywhere, none is lost."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.direct import Direct
from tests.dagger.test_endings import interrupted_everywhere


@pytest.fixture
def one_worker(two_workers: list[int]) -> Iterator[list[bool]]:
    """A context of one worker that knows `int`; what becomes of each try to send directly."""
    went: list[bool] = []
    send = Direct.send

    def noted(self: Direct, task: D.DTask) -> bool:
        went.append(send(self, task))
        return went[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Direct, "send", noted)
        with D.Context(procs=two_workers[:1]):
            for _ in range(50):
                D.fetch(D.spawn(int))
            yield went


def test_an_idle_worker_is_sent_to_at_once(one_worker: list[bool]) -> None:
    """A function that it knows, plain arguments: without the pump; all else goes the other way."""
    D.fetch(D.spawn(int, 3.0))
    assert one_worker[-1]
    D.fetch(D.spawn(len, [3]))
    assert not one_worker[-1]


def test_threads_send_at_the_same_time(one_worker: list[bool]) -> None:
    """Each of many threads gets what it asked for."""
    wrong: list[object] = []

    def rounds(n: int) -> None:
        for i in range(200):
            value = D.fetch(D.spawn(int, float(n * 1000 + i)))
            if value != n * 1000 + i:
                wrong.append((n, i, value))

    threads = [threading.Thread(target=rounds, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and any(one_worker)


def test_an_interrupt_anywhere_loses_nothing(two_workers: list[int]) -> None:
    """At each place where Python looks for signals, in `spawn` and in the wait: the next task runs, none is left."""
    with D.Context(procs=two_workers[:1]):
        for _ in range(50):
            D.fetch(D.spawn(int))
        gc.collect()
        gc.disable()
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(60)  # as in tests/dagger/test_endings.py
        try:
            places = interrupted_everywhere(list, lambda _: D.spawn(int, 3.0).fetch())
        finally:
            sys.setswitchinterval(interval_s)
            gc.enable()
        assert places > 50
