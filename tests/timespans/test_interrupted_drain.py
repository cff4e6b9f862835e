"""Ctrl-C in a drain that the main thread does itself: each event is in the log once, or counted as dropped."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.dagger import DTaskFailedError
from otel_timespan.timespans import drainer
from otel_timespan.timespans.rows import count_events
from tests.dagger.test_endings import MOST, Handler, Interrupt

STEP = 11
"""Each so many-th place is tried: they are some thousand."""

CONSUMERS: dict[str, dict[str, Callable[[], Any]]] = {
    "read later": {"core": E.CoreMetrics, "id": E.IDMetrics, "deps": E.TaskDependencies},
    "called": {
        "core": E.CoreMetrics, "id": E.IDMetrics, "mine": lambda: lambda event: event.timestamp, "live": E.BytesAllocd,
    },
}  # fmt: skip


def boom(x: int) -> None:
    """Fail."""
    raise ValueError(x)


def logged(consumers: dict[str, Callable[[], Any]]) -> T.MultiEventLog:
    """A log with what a few tasks and a program told it, none of which was looked at."""
    log = T.MultiEventLog()
    for name, consumer in consumers.items():
        log[name] = consumer()
    context = ts.eager_context()
    context.log_sink = log
    tasks = [ts.spawn(pow, n, 2) for n in range(3)]
    tasks += [ts.spawn(pow, tasks[0], 1), ts.spawn(boom, tasks[1])]
    for task in tasks:
        with contextlib.suppress(DTaskFailedError):
            ts.fetch(task)
    log.write_event(T.Event("start", "mine", 1, None, 1))
    context.log_sink = T.NoOpLog()
    return log


def refuse(*_: Any) -> None:
    """No thread can be started."""
    raise RuntimeError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a generator let go
@pytest.mark.parametrize("kind", CONSUMERS)
def test_a_drain_interrupted_anywhere_loses_and_doubles_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever Python could raise: streams have one length, and their entries and what was dropped are all events."""
    threads = types.SimpleNamespace(start_new_thread=refuse, allocate_lock=drainer._thread.allocate_lock)
    monkeypatch.setattr(drainer, "_thread", threads)
    tried = 0
    for wanted in range(1, MOST, STEP):
        log = logged(CONSUMERS[kind])
        total = count_events(log._journal.waiting())
        handler = Handler(wanted)
        with contextlib.suppress(Interrupt), handler:
            log.flush()
        streams = T.get_logs(log)[1]
        assert {len(stream) for stream in streams.values()} == {len(streams["id"])}, wanted
        assert len(streams["id"]) + log.dropped == total, wanted
        assert None not in list(streams["core"])
        log.close()
        tried += handler.raised
        if not handler.raised:
            break
    assert tried > 80


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a generator let go
@pytest.mark.parametrize("kind", CONSUMERS)
def test_a_fetch_interrupted_anywhere_leaves_a_log_that_goes_on(kind: str) -> None:
    """What it had not taken out is there at the next fetch, once, and what happens later is, too."""
    later = [T.Event("finish", "mine", 2, None, n) for n in range(5)]
    for wanted in range(1, MOST):
        log = logged(CONSUMERS[kind])
        log.flush()
        with log._lock:
            total = log._kept()
        handler = Handler(wanted)
        with contextlib.suppress(Interrupt), handler:
            log.get_logs()
        for event in later:
            log.write_event(event)
        streams = T.get_logs(log)[1]
        lengths = {name: len(stream) for name, stream in streams.items()}
        assert set(lengths.values()) == {len(streams["id"])}, (wanted, lengths)
        assert list(streams["id"])[-5:] == [2] * 5 and len(streams["id"]) in (5, total + 5), wanted
        log.close()
        if not handler.raised:
            break
    assert wanted > 50
