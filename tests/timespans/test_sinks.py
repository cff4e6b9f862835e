"""spec/timespans.md §4, §4.1: the simple sinks."""

from __future__ import annotations

import io
import queue
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError, LogNotKeptError, NotCallableError

START, FINISH = T.Event("start", "c", 1, None, 1), T.Event("finish", "c", 1, None, 2)


@pytest.fixture
def local() -> T.LocalEventLog:
    """The process's log, emptied."""
    log = T.LocalEventLog()
    T.get_logs(log, raw=True)
    return log


def test_section_4_noop_takes_any_keyword() -> None:
    """There is no log, however it is asked for."""
    assert T.get_logs(T.NoOpLog(), raw=True, only_local=True) is None
    assert T.NoOpLog() == T.NoOpLog()


def test_section_4_a_filter_hands_on_what_passes() -> None:
    """Only events for which the function is true arrive; the log is the inner one's."""
    inner = T.MultiEventLog()
    inner["phase"] = lambda event: event.phase
    log = T.FilterLog(lambda event: event.phase == "start", inner)
    T.write_event(log, START)
    T.write_event(log, FINISH)
    assert T.get_logs(log) == {1: {"phase": ["start"]}}


def test_section_4_a_filter_s_error_is_the_emitter_s() -> None:
    """FilterLog isolates nothing."""

    def fn(event: T.Event) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        T.timespan_start(SimpleNamespace(log_sink=T.FilterLog(fn)), "c", 1)


def test_section_4_a_filter_without_an_inner_sink_is_a_callback() -> None:
    """The function may do all the work; there is no log then."""
    seen: list[T.Event] = []
    log = T.FilterLog(lambda event: seen.append(event))  # type: ignore[func-returns-value]
    T.write_event(log, START)
    assert seen == [START] and T.get_logs(log) is None


@pytest.mark.parametrize("sink", [[], queue.Queue(), T.QueueLog(queue.Queue()), io.StringIO()])
def test_section_4_sinks_without_a_log_say_so(sink: Any) -> None:
    """Lists, queues and files are read by their owner: get_logs raises, with or without a context."""
    T.write_event(sink, START)
    for source in (sink, SimpleNamespace(log_sink=sink)):
        with pytest.raises(LogNotKeptError):
            T.get_logs(source)


def test_section_4_a_callable_as_a_context_s_sink() -> None:
    """It gets every event and keeps none."""
    seen: list[T.Event] = []
    ctx = SimpleNamespace(log_sink=lambda event: seen.append(event))
    T.timespan_start(ctx, "c", 1)
    assert len(seen) == 1
    with pytest.raises(LogNotKeptError):
        T.get_logs(ctx)


def test_section_4_bad_sinks_are_refused() -> None:
    """What can't take an event is named, as early as possible."""
    with pytest.raises(NotCallableError):
        T.write_event(3, START)
    with pytest.raises(NotCallableError):
        T.FilterLog("no function")  # type: ignore[arg-type]
    with pytest.raises(NotCallableError):
        T.QueueLog(object())


def test_section_4_queue_puts() -> None:
    """QueueLog puts each event."""
    q: queue.Queue[T.Event] = queue.Queue()
    T.write_event(T.QueueLog(q), START)
    assert q.get_nowait() is START


def test_section_4_1_raw_events_of_a_profiled_span(local: T.LocalEventLog) -> None:
    """One start and one finish: two raw events of worker 1, once."""
    ctx = SimpleNamespace(log_sink=local, profile=True)
    T.timespan_start(ctx, "c", 1)
    T.timespan_finish(ctx, "c", 1)
    assert len(T.get_logs(local, raw=True)[1]) == 2
    assert T.get_logs(local, raw=True) == {1: []}


def test_section_4_1_an_open_span_waits_for_its_other_half(local: T.LocalEventLog) -> None:
    """A span that runs while the log is fetched is in the next fetch, not lost."""
    T.write_event(local, START)
    assert T.get_logs(local) == []
    T.write_event(local, FINISH)
    assert [(s.start, s.finish) for s in T.get_logs(local)] == [(1, 2)]
    assert T.get_logs(local) == []


def test_section_4_1_all_instances_share_one_list(local: T.LocalEventLog) -> None:
    """What one instance takes, another may fetch."""
    T.write_event(local, START)
    assert len(T.get_logs(T.LocalEventLog(), raw=True)[1]) == 1


def test_section_4_1_spans_match_across_workers(local: T.LocalEventLog) -> None:
    """Halves from two workers are one span; only_local fetches this worker's events alone."""
    T.write_event(local, START._replace(worker=2))
    T.write_event(local, FINISH)
    assert T.get_logs(local, raw=True, only_local=True) == {1: [FINISH]}
    T.write_event(local, FINISH)
    assert len(T.get_logs(local)) == 1


def test_section_4_1_concurrent_readers_get_disjoint_pieces(local: T.LocalEventLog) -> None:
    """Four readers and a writer: every event is read exactly once."""
    pieces: list[T.Event] = []
    written = threading.Event()

    def read() -> None:
        while True:
            last = written.is_set()
            pieces.extend(T.get_logs(local, raw=True)[1])
            if last:
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for n in range(2000):
        T.write_event(local, T.Event("start", "c", n))
    written.set()
    for reader in readers:
        reader.join()
    assert sorted(e.id for e in pieces) == list(range(2000))


def test_ruling_24_tee_takes_any_number_of_sinks() -> None:
    """All of them get every event; the log is that of the first that keeps one."""
    log, events = T.MultiEventLog(), []  # type: ignore[var-annotated]
    log["id"] = lambda event: event.id
    tee = T.TeeLog(events, T.NoOpLog(), log)
    ctx = SimpleNamespace(log_sink=tee)
    T.timespan_start(ctx, "c", 5)
    assert T.get_logs(ctx) == {1: {"id": [5]}}
    assert [e.id for e in events] == [5]
    with pytest.raises(LogNotKeptError):
        T.get_logs(T.TeeLog([], T.NoOpLog()))


def test_ruling_24_tee_samples_for_the_logs_within() -> None:
    """A consumer that samples the moment does so inside of a TeeLog, too."""

    class Sampler:
        def sample(self) -> int:
            return 7

        def record(self, event: T.Event, value: int) -> int:
            return value

        def __call__(self, event: T.Event) -> int:
            return 0

    log = T.MultiEventLog()
    log["n"] = Sampler()
    T.timespan_start(SimpleNamespace(log_sink=T.TeeLog([], log)), "c", 1)
    assert T.get_logs(log)[1]["n"] == [7]


def test_tee_takes_one_trace_context() -> None:
    """Two sinks that carry trace context would disagree about the current span."""

    class Tracing(T.Sink):
        def __init__(self) -> None:
            self.recorder = T.Recorder(print, on_submit=lambda: None)

    with pytest.raises(InvalidOptionError):
        T.TeeLog(Tracing(), Tracing())
