"""The journal (design/rulings.md 27), warnings, and T.CountingLock (spec/timespans.md §6)."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import timespans as T
from otel_timespan.timespans import locks
from otel_timespan.timespans.rows import record_kind
from otel_timespan.timespans.warn import warn_once


def test_ruling_27_events_arrive_without_a_fetch() -> None:
    """The drainer takes what waits, by itself, also after it has slept."""
    seen: list[T.Event] = []
    arrived = threading.Event()

    def process(events: list[T.Event]) -> None:
        seen.extend(events)
        arrived.set()

    log = T.Journal(process)
    for n in range(3):
        arrived.clear()
        log.append(T.Event("start", "c", n))
        assert arrived.wait(60)
        pause = threading.Event()
        while n == 1 and not log._drainer.asleep:
            pause.wait(0.01)
    assert [e.id for e in seen] == [0, 1, 2]


def test_a_finalizer_may_wake_a_sleeping_drainer() -> None:
    """What a dying object says arrives, though no thread was started before."""
    arrived = threading.Event()
    log = T.Journal(lambda events: arrived.set())

    class Dying:
        def __del__(self) -> None:
            log.put(T.Event("start", "c", 1))

    Dying()
    gc.collect()
    assert arrived.wait(60)


def test_a_record_that_can_t_be_expanded_costs_itself_only(caplog: pytest.LogCaptureFixture) -> None:
    """The others of the batch are processed, in order; a log that raises does not end its thread."""

    def good(record: Any, out: list[T.Event]) -> None:
        out.append(T.Event("start", "c", record[1]))

    def bad(record: Any, out: list[T.Event]) -> None:
        raise ValueError

    seen: list[T.Event] = []
    log = T.Journal(seen.extend)
    good_kind, bad_kind = record_kind(good), record_kind(bad)
    for record in ((good_kind, 1), (bad_kind, 2), (good_kind, 3)):
        log.append(record)
    log.drain()
    assert [e.id for e in seen] == [1, 3]

    def broken(events: list[T.Event]) -> None:
        raise OSError

    log = T.Journal(broken)
    log.append((good_kind, 1))
    log.drain()
    assert len(caplog.records) == 2


def test_drains_never_overlap_and_keep_the_order() -> None:
    """Threads append and drain at the same time: one call at once, each thread's order kept."""
    seen: list[T.Event] = []
    inside = threading.Lock()

    def process(events: list[T.Event]) -> None:
        assert inside.acquire(blocking=False)
        seen.extend(events)
        inside.release()

    log = T.Journal(process)

    def run(n: int) -> None:
        for i in range(500):
            log.append(T.Event("start", "c", (n, i)))
            if i % 50 == 0:
                log.drain()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.drain()
    assert all([e.id[1] for e in seen if e.id[0] == n] == list(range(500)) for n in range(4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_begins_with_an_empty_log() -> None:
    """The parent's events stay the parent's; the child can log and fetch."""
    program = """
import os
from otel_timespan import timespans as T
log = T.MultiEventLog()
log["id"] = lambda event: event.id
log.write_event(T.Event("start", "c", "parent"))
pid = os.fork()
if pid == 0:
    log.write_event(T.Event("start", "c", "child"))
    os._exit(0 if T.get_logs(log) == {1: {"id": ["child"]}} else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert T.get_logs(log) == {1: {"id": ["parent"]}}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=Path(__file__).parents[2])


def test_warnings_come_once_per_culprit(caplog: pytest.LogCaptureFixture) -> None:
    """Once for an object, again for a new object at the same address, with a traceback only in an except block."""

    class Culprit:
        pass

    with caplog.at_level(logging.WARNING, "otel_timespan"):
        for _ in range(3):
            culprit = Culprit()
            warn_once(culprit, "message of %s", "x")
            warn_once(culprit, "message of %s", "x")
            del culprit
    assert [r.getMessage() for r in caplog.records] == ["message of x"] * 3
    assert all(not r.exc_info for r in caplog.records)


@pytest.mark.parametrize("reentrant", [False, True])
def test_section_6_counting_lock_counts_contention(reentrant: bool) -> None:
    """Only an acquisition that finds the lock taken by somebody else counts."""
    lock = T.CountingLock(reentrant=reentrant)
    before = locks.contended_acquisitions()
    with lock:
        results: list[bool] = []
        thread = threading.Thread(target=lambda: results.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        assert results == [False]
    with lock:
        pass
    assert lock.contended == 1
    assert locks.contended_acquisitions() == before + 1
    assert not lock.locked()


def test_section_6_counting_lock_excludes() -> None:
    """Ten thousand unprotected-looking increments from four threads add up; waiting with a timeout ends."""
    lock, total = T.CountingLock(), 0

    def run() -> None:
        nonlocal total
        for _ in range(2500):
            with lock:
                total += 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == 10_000
    with lock:
        assert lock.acquire(timeout=0.001) is False


def test_a_journal_outlives_its_last_owner_until_it_is_drained() -> None:
    """What a finalizer, the last one to know the journal, says is not lost."""
    seen: list[T.Event] = []
    arrived = threading.Event()

    def process(events: list[T.Event]) -> None:
        seen.extend(events)
        arrived.set()

    put = T.Journal(process).put
    for n in range(2):
        put(T.Event("start", "c", n))
    del put
    gc.collect()
    T.drain_all()
    assert arrived.wait(60)
    assert [e.id for e in seen] == [0, 1]


def test_a_drain_waits_for_what_is_accounted_for_but_still_at_work() -> None:
    """A sink may settle records before it is done with them: until it returns they have not reached anybody."""
    settled, go = threading.Event(), threading.Event()
    seen: list[T.Event] = []

    def process(events: list[T.Event]) -> None:
        log.settle()
        settled.set()
        go.wait(60)
        seen.extend(events)

    log = T.Journal(process)
    log.append(T.Event("start", "c", 1))
    assert settled.wait(60)
    assert len(log) == 0 and log.drain(timeout_s=0.01) is False
    go.set()
    assert log.drain(timeout_s=60) and len(seen) == 1
