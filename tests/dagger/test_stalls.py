"""When a worker that says nothing is lost, and when it only computes: a table, and real processes."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from otel_timespan.dagger.processes.flight import FlightReader
from otel_timespan.dagger.processes.procfs import DEAD, RUNNING, SLEEPING, STOPPED, ZOMBIE, ProcessFacts, look
from otel_timespan.dagger.processes.stalls import LONGEST_STEP_NS, Silence, listen, stalled
from tests.backends import eventually
from tests.dagger.children import child, stop

MS = 1_000_000
UNKNOWN = ProcessFacts()


def facts(state: str, cpu_ms: int | None = 0) -> ProcessFacts:
    """Of a process."""
    return ProcessFacts(state, None if cpu_ms is None else cpu_ms * MS)


def silence_of(looks: list[tuple[int, int | None, ProcessFacts]]) -> float:
    """Milliseconds of silence after looks of (milliseconds, heartbeat, facts)."""
    heard = None
    for ms, heartbeat, seen in looks:
        heard = listen(heard, ms * MS, heartbeat, seen)
    assert heard is not None
    return heard.silent_ns / MS


ASLEEP, AT_WORK, STILL = facts(SLEEPING), facts(RUNNING), facts(STOPPED)


@pytest.mark.parametrize(
    ("looks", "silent_ms"),
    [
        # Nothing is heard: since the first look that heard nothing new.
        ([(0, 1, ASLEEP)], 0),
        ([(0, 1, ASLEEP), (100, 1, ASLEEP)], 100),
        ([(0, 1, STILL), (100, 1, STILL), (250, 1, STILL)], 250),
        ([(0, 1, STILL), (100, 2, STILL), (250, 2, STILL)], 150),
        ([(0, None, ASLEEP), (100, None, ASLEEP)], 100),
        ([(0, 1, facts(ZOMBIE)), (100, 1, facts(ZOMBIE))], 100),
        ([(0, 1, facts(DEAD, None)), (100, 1, facts(DEAD, None))], 100),
        # A late heartbeat alone: it computes, or waits for its turn to.
        ([(0, 1, facts(SLEEPING, 10)), (100, 1, facts(SLEEPING, 20))], 0),
        ([(0, 1, ASLEEP), (100, 1, ASLEEP), (200, 1, facts(SLEEPING, 10))], 0),
        ([(0, 1, AT_WORK), (100, 1, AT_WORK)], 0),
        # No CPU time alone: it sleeps, and its heartbeat goes on (less often than the head looks).
        ([(0, 1, ASLEEP), (100, 1, ASLEEP), (200, 2, ASLEEP)], 0),
        # Whatever was written over the heartbeat: only that it is another one counts.
        ([(0, 1, ASLEEP), (100, 1 << 63, ASLEEP), (200, 1 << 63, ASLEEP)], 100),
        # The head did not look: it was stopped itself, or kept from it.
        ([(0, 1, ASLEEP), (3_600_000, 1, ASLEEP)], LONGEST_STEP_NS / MS),
        ([(1000, 1, ASLEEP), (900, 1, ASLEEP)], 0),
        # Nothing is known of processes here.
        ([(0, 1, UNKNOWN), (100, 1, UNKNOWN), (200, 1, UNKNOWN)], 0),
        ([(0, 1, ASLEEP), (100, 1, UNKNOWN), (200, 1, ASLEEP), (300, 1, ASLEEP)], 100),
    ],
)
def test_how_long_a_worker_is_silent(looks: list[tuple[int, int | None, ProcessFacts]], silent_ms: float) -> None:
    """Silent is what neither beats nor uses CPU time, for as long as somebody listened."""
    assert silence_of(looks) == silent_ms


def test_a_worker_is_lost_at_its_limit() -> None:
    """Not a moment before it."""
    assert not stalled(Silence(0, 1, 0, 29_999 * MS), 30)
    assert stalled(Silence(0, 1, 0, 30_000 * MS), 30)
    assert not stalled(Silence(0, 1, 0, 0), 0.5)
    assert stalled(Silence(0, 1, 0, 500 * MS), 0.5)


WORKER = """
    import ctypes, sys, threading, time
    from otel_timespan.dagger.processes.flight import FlightRecorder
    recorder = FlightRecorder(int(sys.argv[1]))
    def beat():
        while True:
            recorder.heartbeat()
            time.sleep(.05)
    threading.Thread(target=beat, daemon=True).start()
    print("ready", flush=True)
    exec(sys.argv[2])
"""

SLEEP = "time.sleep(1000)"
LOOP = "while True: pass"
LOOP_IN_C = "sum(range(10 ** 15))"  # the interpreter is its alone
SLEEP_IN_C = "ctypes.PyDLL(None).sleep(1000)"

TIMEOUT_S = 1.5

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc on this system")


class Head:
    """Looks at a worker, as often as it is asked."""

    def __init__(self, reader: FlightReader, pid: int) -> None:
        self.reader, self.pid = reader, pid
        self.started = look(pid).started
        self.heard: Silence | None = None
        self.beats: set[int | None] = set()

    def finds_it_lost(self) -> bool:
        """One look."""
        beat = self.reader.heartbeat_ns
        self.beats.add(beat)
        self.heard = listen(self.heard, time.monotonic_ns(), beat, look(self.pid, self.started))
        return stalled(self.heard, TIMEOUT_S)

    def cpu_ms(self) -> int:
        """What the worker used until now."""
        return (look(self.pid).cpu_ns or 0) // MS


@pytest.mark.parametrize("body", [SLEEP, LOOP])
def test_a_body_that_takes_long_is_not_lost(body: str) -> None:
    """It sleeps, or computes, while the heartbeat goes on."""
    reader = FlightReader()
    with child(WORKER, reader.fd, body, pass_fds=[reader.fd]) as process:
        head = Head(reader, process.pid)

        def long_enough() -> bool:
            if head.finds_it_lost():
                pytest.fail("it was lost")
            return len(head.beats) > 20

        eventually(long_enough)
    reader.close()


def test_a_body_that_holds_the_interpreter_is_not_lost() -> None:
    """It computes in C without a heartbeat, for longer than the limit."""
    reader = FlightReader()
    with child(WORKER, reader.fd, LOOP_IN_C, pass_fds=[reader.fd]) as process:
        head = Head(reader, process.pid)
        begun_ms = head.cpu_ms()

        def long_enough() -> bool:
            if head.finds_it_lost():
                pytest.fail("it was lost")
            return head.cpu_ms() > begun_ms + 1.2 * TIMEOUT_S * 1000

        eventually(long_enough)
        assert len(head.beats) < 5, "the body let others run"
    reader.close()


@pytest.mark.parametrize("body", [SLEEP, LOOP, LOOP_IN_C])
def test_a_stopped_worker_is_lost(body: str) -> None:
    """Whatever it does when it is stopped; one that goes on in time is not lost."""
    reader = FlightReader()
    with child(WORKER, reader.fd, body, pass_fds=[reader.fd]) as process:
        head = Head(reader, process.pid)
        head.finds_it_lost()
        stop(process)
        eventually(head.finds_it_lost)
        assert look(process.pid).state == STOPPED
        process.send_signal(signal.SIGCONT)
        eventually(lambda: not head.finds_it_lost())
    reader.close()


def test_a_body_that_sleeps_with_the_interpreter_is_lost() -> None:
    """Nothing will come of a worker that waits in C and lets nobody run."""
    reader = FlightReader()
    with child(WORKER, reader.fd, SLEEP_IN_C, pass_fds=[reader.fd]) as process:
        eventually(Head(reader, process.pid).finds_it_lost)
    reader.close()
