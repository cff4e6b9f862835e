"""The flight recorder: what the head reads of a worker, whenever that is killed and whatever its bodies do."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from otel_timespan.dagger.processes.flight import (
    BLOCKED,
    ENDED,
    FREE,
    IN_BODY,
    MOVING,
    ROWS,
    FlightReader,
    FlightRecorder,
    FlightRow,
)
from otel_timespan.errors import InvalidOptionError
from tests.dagger.children import ROOT, child, stop

needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd on this system")


@pytest.fixture
def reader() -> Iterator[FlightReader]:
    """One that is closed after the test."""
    made = FlightReader()
    yield made
    made.close()


def opened(reader: FlightReader) -> FlightRecorder:
    """Its other side, in this process."""
    return FlightRecorder(os.dup(reader.fd))


# ---- rows --------------------------------------------------------------------------------------------------


def test_a_body_from_its_begin_to_its_end(reader: FlightReader) -> None:
    """Each phase of a body is seen with its task, attempt, slot and begin; afterwards nothing is."""
    recorder = opened(reader)
    assert reader.rows() == []
    row = recorder.begin(1 << 60, 3, 7, 1_000, MOVING)
    assert reader.rows() == [FlightRow(id=1 << 60, attempt=3, slot=7, phase=MOVING, since_ns=1_000)]
    recorder.start(row, 2_000)
    assert reader.rows() == [FlightRow(1 << 60, 3, 7, IN_BODY, 2_000)]
    for phase in (BLOCKED, IN_BODY, ENDED):
        recorder.phase(row, phase)
        assert reader.rows() == [FlightRow(1 << 60, 3, 7, phase, 2_000)]
    recorder.end(row)
    assert reader.rows() == []


def test_bodies_of_one_slot_have_rows_of_their_own(reader: FlightReader) -> None:
    """A blocked body, the one in its slot, and one whose result waits are all seen."""
    recorder = opened(reader)
    blocked, over = recorder.begin(1, 1, 1, 10), recorder.begin(2, 1, 1, 20)
    recorder.phase(blocked, BLOCKED)
    recorder.phase(over, ENDED)
    recorder.begin(3, 1, 1, 30)
    assert {(one.id, one.phase) for one in reader.rows()} == {(1, BLOCKED), (2, ENDED), (3, IN_BODY)}
    recorder.end(blocked)
    assert {one.id for one in reader.rows()} == {2, 3}


def test_a_row_that_is_ended_twice_is_free_once(reader: FlightReader) -> None:
    """No two bodies share a row, also where one was ended by two who thought it theirs."""
    recorder = opened(reader)
    row = recorder.begin(1, 1, 1, 10)
    recorder.end(row)
    recorder.end(row)
    recorder.begin(2, 1, 1, 20)
    recorder.begin(3, 1, 1, 30)
    assert sorted(one.id for one in reader.rows()) == [2, 3]


def test_a_table_that_is_full() -> None:
    """Bodies beyond it harm nobody else's row, and the head is told that there were such."""
    reader = FlightReader(rows=3)
    recorder = opened(reader)
    rows = [recorder.begin(id, 1, 1, id) for id in (1, 2, 3)]
    assert not reader.is_overfull
    beyond = [recorder.begin(id, 1, 1, id) for id in (4, 5)]
    assert sorted(one.id for one in reader.rows()) == [1, 2, 3]
    assert reader.is_overfull
    recorder.end(rows[1])
    for row in beyond:
        recorder.phase(row, ENDED)
        recorder.end(row)
    recorder.begin(6, 1, 1, 6)
    assert sorted(one.id for one in reader.rows()) == [1, 3, 6]
    reader.close()


def test_threads_share_a_table(reader: FlightReader) -> None:
    """Rows that eight threads begin and end at the same time are nobody else's; in the end all are free again."""
    recorder = opened(reader)

    def work(slot: int) -> None:
        for number in range(300):
            row = recorder.begin(slot * 1_000 + number, 1, slot, 1)
            recorder.phase(row, BLOCKED)
            recorder.end(row)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reader.rows() == []
    assert len({recorder.begin(id, 1, 1, 1) for id in range(ROWS)}) == ROWS
    assert not reader.is_overfull


# ---- a worker of its own -----------------------------------------------------------------------------------

WINDOW = 5

WRITER = f"""
    import sys
    from otel_timespan.dagger.processes.flight import *
    recorder = FlightRecorder(int(sys.argv[1]))
    recorder.heartbeat()
    recorder.made("logs", 12)
    recorder.made("traces", 1 << 40)
    open_ones, id = [], 0
    while True:
        id += 1
        row = recorder.begin(id, id % 1000, id % 17, id * 3, MOVING)
        recorder.start(row, id * 5)
        recorder.phase(row, BLOCKED)
        open_ones.append(row)
        if len(open_ones) > {WINDOW}:
            recorder.phase(open_ones[0], ENDED)
            recorder.end(open_ones.pop(0))
        if id == 100:
            print("ready", flush=True)
"""


def is_one(flight: FlightRow) -> bool:
    """Whether the program wrote just this."""
    id, attempt, slot, phase, since_ns = flight
    times = {id * 3, id * 5} if phase == MOVING else {id * 5}
    return attempt == id % 1000 and slot == id % 17 and since_ns in times and phase != FREE


def test_a_worker_stopped_at_any_point(reader: FlightReader) -> None:
    """Wherever it stands, between any two stores, just the bodies that it is at are read, and each as it is."""
    with child(WRITER, reader.fd, pass_fds=[reader.fd]) as process:
        reader.close_fd()
        for _ in range(300):
            stop(process)
            rows = reader.rows()
            process.send_signal(signal.SIGCONT)
            assert [one for one in rows if not is_one(one)] == []
            ids = sorted(one.id for one in rows)
            assert WINDOW <= len(ids) <= WINDOW + 1
            assert ids == list(range(ids[0], ids[0] + len(ids)))
            assert [one.id for one in rows if one.phase == MOVING] in ([], ids[-1:])


def test_a_worker_that_was_killed(reader: FlightReader) -> None:
    """All of it can be read when the process is gone."""
    with child(WRITER, reader.fd, pass_fds=[reader.fd]) as process:
        process.kill()
        process.wait()
        assert reader.pid == process.pid
        assert WINDOW <= len(reader.rows()) <= WINDOW + 1
        assert all(map(is_one, reader.rows()))
        assert reader.made == {"traces": 1 << 40, "logs": 12, "metrics": 0}
        assert reader.heartbeat_ns is not None
        if sys.platform.startswith("linux"):
            assert reader.rss is not None and 5_000_000 < reader.rss < 1_000_000_000


def test_rows_that_are_written_meanwhile(reader: FlightReader) -> None:
    """Of a worker that runs no row is read half, or with the phase of another body."""
    with child(WRITER, reader.fd, pass_fds=[reader.fd]):
        for _ in range(5_000):
            assert [one for one in reader.rows() if not is_one(one)] == []


def test_a_forked_child_writes_for_itself() -> None:
    """What a body's fork does with the row of that body changes nothing of what the worker is seen to do."""
    program = """
        import os
        from otel_timespan.dagger.processes.flight import FlightReader, FlightRecorder
        reader = FlightReader()
        recorder = FlightRecorder(os.dup(reader.fd))
        row = recorder.begin(1, 1, 1, 10)
        pid = os.fork()
        if not pid:
            recorder.end(row)
            recorder.begin(2, 1, 1, 20)
            recorder.made("logs", 5)
            recorder.heartbeat()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print([one.id for one in reader.rows()], reader.made["logs"], reader.heartbeat_ns)
        recorder.end(row)
        print(reader.rows())
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines())],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[1] 0 None", "[]"]


# ---- what bodies may do to it --------------------------------------------------------------------------------


def everything(reader: FlightReader) -> list[FlightRow]:
    """Ask for all that there is."""
    assert reader.is_sound in (True, False) and reader.is_overfull in (True, False)
    for number in (reader.pid, reader.rss, reader.heartbeat_ns):
        assert number is None or number > 0
    assert all(count >= 0 for count in reader.made.values())
    return reader.rows()


@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_read_as_nothing(reader: FlightReader, seed: int) -> None:
    """A body that scribbles over the whole file leaves no rows and no numbers."""
    opened(reader).begin(1, 1, 1, 10)
    os.pwrite(reader.fd, random.Random(seed).randbytes(os.fstat(reader.fd).st_size), 0)
    assert everything(reader) == []
    assert (reader.is_sound, reader.pid, reader.rss, reader.heartbeat_ns) == (False, None, None, None)


@pytest.mark.parametrize("seed", range(20))
def test_garbage_behind_the_header(reader: FlightReader, seed: int) -> None:
    """Rows that no recorder wrote are none; those that the worker writes afterwards are read."""
    recorder = opened(reader)
    size = os.fstat(reader.fd).st_size
    os.pwrite(reader.fd, random.Random(seed).randbytes(size - 128), 128)
    assert everything(reader) == []
    recorder.begin(1, 1, 1, 10)
    assert everything(reader) == [FlightRow(1, 1, 1, IN_BODY, 10)]


@needs_memfd
def test_the_file_keeps_its_size(reader: FlightReader) -> None:
    """A body can't cut it off, which would kill the head at its next look."""
    for size in (0, 100, 1 << 20):
        with pytest.raises(OSError):
            os.ftruncate(reader.fd, size)
    assert everything(reader) == []


def test_descriptors_that_are_closed(reader: FlightReader) -> None:
    """A worker whose bodies close all descriptors goes on writing."""
    program = f"""
        import os, sys
        from otel_timespan.dagger.processes.flight import FlightRecorder
        recorder = FlightRecorder(int(sys.argv[1]))
        os.closerange(3, 1000)
        recorder.begin(5, 1, {WINDOW}, 50)
        print("ready", flush=True)
        input()
    """
    with child(program, reader.fd, pass_fds=[reader.fd]):
        assert reader.rows() == [FlightRow(5, 1, WINDOW, IN_BODY, 50)]


# ---- descriptors and memory ----------------------------------------------------------------------------------


def test_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has none a temporary file without a name does the same."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    reader = FlightReader()
    assert os.fstat(reader.fd).st_nlink == 0
    opened(reader).begin(1, 2, 3, 4)
    assert reader.rows() == [FlightRow(1, 2, 3, IN_BODY, 4)]
    reader.close()


def test_no_child_inherits_it_unasked(reader: FlightReader) -> None:
    """The descriptor is one worker's."""
    assert not os.get_inheritable(reader.fd)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not say what is open")
def test_nothing_is_left() -> None:
    """A hundred workers later no descriptor is open that was not before, and no memory mapped."""

    def left() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), maps.read().count("flight recorder")

    before = left()
    for _ in range(100):
        reader = FlightReader()
        reader.close_fd()
        reader.close_fd()
        reader.close()
        reader.close()
    assert left() == before


def test_after_the_close(reader: FlightReader) -> None:
    """Nothing is known any more, and nobody is told so by an exception, a thread that reads meanwhile included."""
    opened(reader).begin(1, 1, 1, 10)
    failed: list[BaseException] = []
    begun = threading.Event()

    def read() -> None:
        try:
            while reader.is_sound:
                reader.rows()
                begun.set()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(60)
    reader.close()
    thread.join()
    assert failed == [] and everything(reader) == [] and reader.fd == -1


@needs_memfd
def test_other_descriptors(reader: FlightReader) -> None:
    """A descriptor that is no recorder's is refused with its number, and left open."""
    ours, theirs = socket.socketpair()
    empty, other, older = (os.memfd_create(name) for name in ("empty", "other", "older"))
    os.ftruncate(other, 67_776)
    os.ftruncate(older, os.fstat(reader.fd).st_size)
    os.pwrite(older, b"flight00" + (ROWS).to_bytes(8, sys.byteorder), 0)
    with ours, theirs:
        for fd in (ours.fileno(), empty, other, older, 100_000):
            with pytest.raises(InvalidOptionError, match=f"descriptor {fd} "):
                FlightRecorder(fd)
    for fd in (empty, other, older):
        os.close(fd)
