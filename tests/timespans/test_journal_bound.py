"""What waits in a journal is bounded in bytes: who waits, what is given up, and that it is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError
from otel_timespan.timespans import drainer, journal
from otel_timespan.timespans.adding import AnyThreadCount
from otel_timespan.timespans.sizing import nbytes_of, total_nbytes
from tests.backends import eventually


def event(n: int) -> T.Event:
    """An event that keeps a kilobyte alive."""
    return T.Event("start", "c", n, bytes(1024))


class Gated:
    """A journal whose drain stands still until `gate` is open."""

    def __init__(self, **options: Any) -> None:
        self.seen: list[int] = []
        self.gate, self.begun = threading.Event(), threading.Event()
        options.setdefault("max_bytes", 100_000)
        self.journal = T.Journal(self._process, **options)

    def _process(self, events: list[T.Event]) -> None:
        self.begun.set()
        self.gate.wait(60)
        self.seen += [event.id for event in events]


@pytest.fixture
def gated() -> Iterator[Callable[..., Gated]]:
    """Makes them, and opens their gates at the end."""
    made: list[Gated] = []

    def make(**options: Any) -> Gated:
        made.append(Gated(**options))
        return made[-1]

    yield make
    for one in made:
        one.gate.set()


def test_emitters_wait_for_a_drain_that_is_at_work(gated: Callable[..., Gated]) -> None:
    """While another thread drains, an emitter waits for room, and nothing is lost; the bound holds all the time."""
    one = gated(block_timeout_s=60)
    largest = 0

    def emit() -> None:
        nonlocal largest
        for n in range(1000):
            one.journal.append(event(n))
            largest = max(largest, one.journal.nbytes)

    emitter = threading.Thread(target=emit)
    emitter.start()
    eventually(lambda: one.journal.is_full)
    assert emitter.is_alive()
    one.gate.set()
    emitter.join(60)
    assert not emitter.is_alive()
    one.journal.drain()
    assert one.seen == list(range(1000))
    assert largest < 2 * 100_000
    assert one.journal.dropped_events == 0


@pytest.mark.parametrize("block_timeout_s", [0.0, 0.05])
def test_a_stuck_log_is_waited_for_once(
    gated: Callable[..., Gated], block_timeout_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """What finds no room in time is given up, counted and told once; what came before and comes later is there."""
    one = gated(block_timeout_s=block_timeout_s)
    for n in range(1000):
        one.journal.append(event(n))
    assert one.journal.nbytes < 2 * 100_000
    dropped = one.journal.dropped_events
    assert dropped > 800 and dropped + len(one.journal) == 1000
    one.gate.set()
    one.journal.drain()
    one.journal.append(event(1000))
    one.journal.drain()
    assert one.seen == sorted(one.seen) and len(one.seen) == 1001 - dropped
    assert one.seen[:50] == list(range(50)) and one.seen[-1] == 1000
    assert sum("can't keep up" in record.message for record in caplog.records) == 1


def test_finalizers_never_wait(gated: Callable[..., Gated]) -> None:
    """`put` takes up to twice the bound, and then gives up."""
    one = gated(block_timeout_s=60)
    for n in range(1000):
        one.journal.put(event(n))
    assert one.journal.nbytes < 3 * 100_000
    assert one.journal.dropped_events + len(one.journal) == 1000
    assert 100 < one.journal.dropped_events < 900


def test_a_consumer_that_logs_does_not_wait_for_itself() -> None:
    """What is emitted by the thread that drains finds its way in, or is counted."""
    emitted: list[T.Event] = []

    def process(events: list[T.Event]) -> None:
        while len(emitted) < 300:
            emitted.append(event(len(emitted)))
            log.append(emitted[-1])

    log = T.Journal(process, max_bytes=50_000, block_timeout_s=60)
    log.append(event(-1))
    eventually(lambda: len(emitted) == 300)
    log.drain()
    assert log.dropped_events > 0


def test_a_drain_keeps_its_deadline(gated: Callable[..., Gated]) -> None:
    """With a time limit a drain comes back although a consumer does not, and says that it could not."""
    one = gated()
    one.journal.append(event(0))
    assert one.begun.wait(60)
    one.journal.append(event(1))
    assert one.journal.drain(timeout_s=0.05) is False
    T.drain_all(timeout_s=0.05)
    assert one.seen == []
    one.gate.set()
    assert one.journal.drain(timeout_s=60) is True
    assert one.seen == [0, 1]


def test_closing_gives_back_what_was_not_looked_at(gated: Callable[..., Gated]) -> None:
    """All but what is being processed right now; nothing comes in any more."""
    one = gated()
    one.journal.append(event(0))
    assert one.begun.wait(60)
    for n in range(1, 50):
        one.journal.append(event(n))
    assert [left.id for left in one.journal.close()] == list(range(1, 50))
    one.journal.append(event(50))
    one.journal.put(event(51))
    one.gate.set()
    eventually(lambda: not len(one.journal))
    assert one.seen == [0]


def test_what_was_processed_is_let_go() -> None:
    """A journal keeps nothing alive that its log has taken."""
    log = T.Journal(lambda events: None)
    for n in range(100):
        log.append(event(n))
    log.drain()
    assert log.waiting() == [] and log._taken == [] and log.nbytes == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_an_interrupted_emitter_has_logged(gated: Callable[..., Gated]) -> None:
    """What a signal handler raises while an emitter waits comes out of it; what it was to log is there."""
    one = gated(block_timeout_s=60)

    class AlarmError(Exception):
        pass

    def handler(signum: int, frame: Any) -> None:
        if one.journal.is_full:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise AlarmError

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.01)
    n = 0
    try:
        with pytest.raises(AlarmError):
            for n in range(1000):
                one.journal.append(event(n))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    one.gate.set()
    one.journal.drain()
    assert one.seen == list(range(n + 1))


def test_the_size_of_a_record_is_estimated_without_the_users_code() -> None:
    """Large values show; nothing that a class of the program's defines is called, and many items cost no more."""

    class Sly(str):
        def __sizeof__(self) -> int:
            raise AssertionError

        def __len__(self) -> int:
            raise AssertionError

    class Mapped(dict[str, Any]):
        def values(self) -> Any:
            raise AssertionError

    assert nbytes_of(Sly("x" * 10_000)) > 10_000
    assert nbytes_of(Mapped(a="x" * 10_000)) > 10_000
    assert nbytes_of(ValueError("x" * 10_000)) > 10_000
    assert nbytes_of(T.EventId(blob=bytes(10_000))) > 10_000
    assert nbytes_of(T.Timeline(rows=["x" * 100] * 1000)) > 100_000
    assert total_nbytes([event(n) for n in range(10)])[0] > 10 * 1024
    large = "x" * 10_000, [bytes(10_000)]
    for one in large:
        for name in ("category", "id", "timeline", "gc_num", "profiler_samples", "samples"):
            assert total_nbytes([event(1)._replace(**{name: one})])[0] > 10_000
        assert total_nbytes([event(1)._replace(id=T.EventId(thunk_id=1, mine=one))])[0] > 10_000


def test_a_count_of_many_threads_is_exact() -> None:
    """Each addition counts, while others read and the list is folded."""
    count = AnyThreadCount()
    threads = [threading.Thread(target=lambda: [count.add(2) for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert count.value % 2 == 0
    assert count.value == 4 * 5000 * 2


# ---- the logs ------------------------------------------------------------------------------------------


def test_a_log_says_what_it_dropped() -> None:
    """`MultiEventLog.dropped` counts what a stuck consumer cost, and `close` comes back in its time."""
    gate, begun = threading.Event(), threading.Event()

    def stuck(event: T.Event) -> None:
        begun.set()
        gate.wait(60)

    log = T.MultiEventLog(max_waiting_bytes=50_000, on_full="drop")
    log["stuck"] = stuck
    for n in range(500):
        log.write_event(event(n))
    assert begun.wait(60)
    assert log.dropped > 300
    log.close(timeout_s=0.05)
    assert 450 < log.dropped < 500
    gate.set()


def test_a_file_log_says_what_it_lost(tmp_path: Any) -> None:
    """The events of an `IOLog` are written or lost, whatever the file does; `close` comes back in its time."""
    gate, begun = threading.Event(), threading.Event()

    class Slow:
        """A file that takes nothing but the header."""

        mode = "w"

        def write(self, text: str) -> None:
            if not text.startswith("{"):
                begun.set()
                gate.wait(60)

    log = T.IOLog(Slow(), max_waiting_bytes=50_000, on_full="drop")  # type: ignore[arg-type]
    for n in range(500):
        log.write_event(event(n))
    assert begun.wait(60)
    assert log.flush(timeout_s=0.05) is False
    log.close(timeout_s=0.05)
    gate.set()
    eventually(lambda: log.written + log.lost == 500)


def test_bad_bounds_are_refused(tmp_path: Any) -> None:
    """A bound that can't work is an error at once, and no file is made."""
    for options in ({"max_waiting_bytes": 0}, {"max_waiting_bytes": True}, {"on_full": "spill"}):
        with pytest.raises(InvalidOptionError):
            T.MultiEventLog(**options)  # type: ignore[arg-type]
        with pytest.raises(InvalidOptionError):
            T.IOLog(tmp_path / "log.jsonl", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_of_a_full_log_has_room() -> None:
    """What waits in the parent is not in the child, nobody is at it there, and the child can log and fetch."""
    program = """
import os, threading
from otel_timespan import timespans as T
gate = threading.Event()
log = T.MultiEventLog(max_waiting_bytes=50_000, on_full="drop")
log["id"] = lambda event: gate.wait(60) and event.id
for n in range(500):
    log.write_event(T.Event("start", "c", n, bytes(1024)))
assert log.dropped
pid = os.fork()
if pid == 0:
    gate.set()
    log.write_event(T.Event("start", "c", "child"))
    os._exit(0 if T.get_logs(log) == {1: {"id": ["child"]}} and not log.dropped else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
gate.set()
log.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=Path(__file__).parents[2])


def test_a_starved_emitter_is_patient(gated: Callable[..., Gated], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a machine gives no turn to those who look, it gives none to the drain: their seconds are not counted."""
    one = gated(block_timeout_s=1.0, max_bytes=20_000)
    looks: list[float] = []

    class Starved:
        """A clock that goes on by a second while an emitter sleeps for a millisecond."""

        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + len(looks)

        @staticmethod
        def sleep(pause_s: float) -> None:
            looks.append(pause_s)
            time.sleep(pause_s)
            if len(looks) == 50:
                one.gate.set()

    monkeypatch.setattr(journal, "time", Starved)
    for n in range(40):
        one.journal.append(event(n))
    assert len(looks) >= 50 and one.journal.dropped_events == 0
    assert one.journal.drain(timeout_s=1000) and one.seen == list(range(40))


def test_a_drain_comes_when_half_of_the_room_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for its turn until emitters have to."""
    monkeypatch.setattr(drainer, "DRAIN_INTERVAL_S", 60.0)
    seen: list[int] = []
    one = T.Journal(lambda events: seen.extend(event.id for event in events), max_bytes=100_000)
    one.append(event(0))
    for n in range(1, 80):
        one.append(event(n))
    assert eventually(lambda: len(seen) >= 40)
