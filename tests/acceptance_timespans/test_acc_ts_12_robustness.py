"""Properties over interleavings, and failure injection: a bad consumer, aggregator or sink never changes a program."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import DEADLINE_S, BoomError, Ctx, add, boom, fetch, mul, poll, start


def in_threads(*works: Callable[[], None]) -> None:
    """Run all of them at once, to their ends."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "a thread hangs"


def writer(ctx: Any, k: int, n: int) -> Callable[[], None]:
    """n spans of writer k."""

    def work() -> None:
        for i in range(n):
            with T.span(ctx, "c", (k, i)):
                pass

    return work


class TestNothingLostOrRepeated:
    """Each event is in exactly one fetch."""

    @settings(max_examples=12, deadline=None)
    @given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 300), st.booleans())
    def test_multi_event_log(self, writers: int, readers: int, n: int, aggregated: bool) -> None:
        """MultiEventLog with concurrent writers and fetchers, with and without an aggregator."""
        log = T.MultiEventLog()
        log["id"], log["core"], log["rare"] = E.IDMetrics(), E.CoreMetrics(), E.TaskNames()
        if aggregated:
            log.aggregators["window"] = E.LogWindow(10**15)
        pieces: list[dict[str, list[Any]]] = []
        left = threading.Semaphore(0)

        def write(k: int) -> Callable[[], None]:
            def work() -> None:
                writer(Ctx(log), k, n)()
                left.release()

            return work

        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                pieces.append(T.get_logs(log)[1])

        def end() -> None:
            for _ in range(writers):
                left.acquire()
            stop.set()

        in_threads(*(write(k) for k in range(writers)), *(read for _ in range(readers)), end)
        pieces.append(T.get_logs(log)[1])
        assert all(len({len(v) for v in piece.values()}) == 1 for piece in pieces)
        seen = Counter((i, c.kind) for piece in pieces for i, c in zip(piece["id"], piece["core"], strict=True))
        assert seen == Counter(
            {((k, i), kind): 1 for k in range(writers) for i in range(n) for kind in ("start", "finish")}
        )

    @settings(max_examples=10, deadline=None)
    @given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 300))
    def test_local_event_log(self, writers: int, readers: int, n: int) -> None:
        """LocalEventLog fetched as spans: each span exactly once, though halves straddle fetches."""
        log = T.LocalEventLog()
        T.get_logs(log, raw=True)
        spans: list[T.Timespan] = []
        stop, left = threading.Event(), threading.Semaphore(0)

        def write(k: int) -> Callable[[], None]:
            def work() -> None:
                writer(Ctx(log), k, n)()
                left.release()

            return work

        def read() -> None:
            while not stop.is_set():
                spans.extend(T.get_logs(log))

        def end() -> None:
            for _ in range(writers):
                left.acquire()
            stop.set()

        in_threads(*(write(k) for k in range(writers)), *(read for _ in range(readers)), end)
        spans.extend(T.get_logs(log))
        assert Counter(s.id for s in spans) == Counter((k, i) for k in range(writers) for i in range(n))
        assert all(s.start <= s.finish for s in spans)
        assert not any(T.get_logs(log, raw=True).values())

    def test_scheduler_with_fetchers(self) -> None:
        """A run whose log is fetched all the time: each task has each of its events once."""
        D.enable_logging()
        pieces: list[Any] = []
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                pieces.append(D.fetch_logs())

        ids: list[int] = []

        def work() -> None:
            tasks = [D.spawn(add, i, 1) for i in range(150)]
            ids.extend(t.id for t in tasks)
            assert [fetch(t) for t in tasks] == list(range(1, 151))
            stop.set()

        in_threads(read, read, work)

        def seen() -> Counter[Any]:
            pieces.append(D.fetch_logs())
            return Counter(
                (i.thunk_id, c.category, c.kind)
                for piece in pieces
                for c, i in zip(piece[1]["core"], piece[1]["id"], strict=True)
                if c.category in ("add_thunk", "compute", "finish", "schedule") and i.thunk_id in set(ids)
            )

        poll(lambda: len(seen()) == 150 * 8, "all events")
        assert set(seen().values()) == {1}

    def test_saturation_never_drifts(self) -> None:
        """§5, defect 9: after a busy run with failures and cancellations, nothing is open and nothing was negative."""
        log = T.MultiEventLog()
        log["esat"], log["wsat"], log["core"] = E.EventSaturation(), E.WorkerSaturation(), E.CoreMetrics()
        context = D.eager_context()
        context.log_sink = log
        tasks = [D.spawn(boom if i % 7 == 3 else add, i, 1) for i in range(100)]
        more = [D.spawn(mul, t, 2) for t in tasks]
        for t in more:
            D.wait(t)
        context.shutdown()
        last: list[Any] = []

        def closed() -> bool:
            last.extend(T.get_logs(log)[1]["esat"])
            return bool(last) and not {k: v for k, v in dict(last[-1]).items() if v}

        poll(closed, "the end of all spans")
        assert all(v > 0 for record in last for v in dict(record).values())


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 9)),
        st.tuples(st.just("add"), st.sampled_from("abc")),
        st.tuples(st.just("del"), st.sampled_from("abc")),
        st.tuples(st.just("get"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, st.booleans(), st.sampled_from([None, 1, 3, 8]))
def test_4_2_streams_follow_a_model(operations: list[tuple[str, Any]], aggregated: bool, limit: int | None) -> None:
    """Whatever is written, added, removed and fetched in whatever order: each stream says what the model says."""
    log = T.MultiEventLog(max_events=limit)
    log["always"] = E.IDMetrics()
    if aggregated:
        log.aggregators["x"] = lambda lists: None
    consumers, entries = {"always"}, []  # type: ignore[var-annotated]
    for what, x in [*operations, ("write", 99), ("get", None)]:
        if what == "write":
            T.write_event(log, start("c", x))
            entries.append(dict.fromkeys(consumers, x))
        elif what == "add" and x not in consumers:
            log[x] = E.IDMetrics()
            consumers.add(x)
        elif what == "del" and x in consumers:
            del log[x]
            consumers.discard(x)
            for entry in entries:
                entry.pop(x, None)
        elif what == "get":
            kept = entries[-limit:] if limit else entries
            got = T.get_logs(log)[1]
            assert got == {name: [entry.get(name) for entry in kept] for name in consumers}
            entries = []


class Blocks:
    """Blocks at its first event."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate

    def __call__(self, x: Any) -> int:
        self.gate.wait(DEADLINE_S)
        return 1


class RaisesOnce:
    """Raises at the first event only."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, x: Any) -> int:
        self.n += 1
        if self.n == 1:
            raise BoomError
        return self.n


class UglyError(Exception):
    """Can't even be shown."""

    def __str__(self) -> str:
        raise BoomError

    __repr__ = __str__


def raising(error: type[BaseException]) -> Callable[[Any], None]:
    """Always raises."""

    def fn(x: Any) -> None:
        raise error

    return fn


class BadTwin:
    """Can't make a twin for another worker, and can't be closed."""

    def __call__(self, x: Any) -> int:
        return 1

    def init_similar(self) -> Any:
        """Fail."""
        raise BoomError

    def close(self) -> None:
        """Fail."""
        raise BoomError


FAULTS = {
    "once": lambda gate: RaisesOnce(),
    "always": lambda gate: raising(BoomError),
    "exit": lambda gate: raising(SystemExit),
    "memory": lambda gate: raising(MemoryError),
    "ugly": lambda gate: raising(UglyError),
    "recursion": lambda gate: lambda x: FAULTS["recursion"](gate)(x),
    "huge": lambda gate: lambda x: bytes(1_000_000),
    "blocks": Blocks,
    "twin": lambda gate: BadTwin(),
}


def program() -> list[Any]:
    """A small program: results of tasks, a failure included."""
    tasks = [D.spawn(add, i, 1) for i in range(20)]
    products = [D.spawn(mul, t, 2) for t in tasks]
    bad = D.spawn(boom)
    with pytest.raises(D.DTaskFailedError) as caught:
        fetch(bad)
    return [*(fetch(t) for t in products), type(D.unwrap_exception(caught.value))]


EXPECTED = [*(2 * (i + 1) for i in range(20)), BoomError]


class TestFailureInjection:
    """§4.2 and architecture §3: a bad consumer or aggregator never hurts a run."""

    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize("role", ["consumer", "aggregator"])
    def test_the_program_is_unchanged(self, fault: str, role: str, gate: threading.Event) -> None:
        """Results are those without logging, and the other streams are complete."""
        log = T.MultiEventLog()
        log["core"] = E.CoreMetrics()
        log["id"] = E.IDMetrics()
        if role == "consumer":
            log["bad"] = FAULTS[fault](gate)
        else:
            log.aggregators["bad"] = FAULTS[fault](gate)
        D.eager_context().log_sink = log
        assert program() == EXPECTED
        gate.set()
        computes = Counter()  # type: ignore[var-annotated]

        def complete() -> bool:
            got = T.get_logs(log)[1]
            assert len({len(v) for v in got.values()}) == 1
            computes.update(c.kind for c in got["core"] if c.category == "compute")
            return computes["finish"] == 41

        poll(complete, "41 computes")
        assert computes == {"start": 41, "finish": 41}
        log.close()

    @pytest.mark.parametrize("fault", ["always", "ugly", "once"])
    def test_a_bad_twin_or_consumer_on_worker_2(self, fault: str, gate: threading.Event) -> None:
        """The streams of a second worker bear bad consumers, and one that can't make a twin."""
        log = T.MultiEventLog()
        log["id"], log["bad"], log["twin"] = E.IDMetrics(), FAULTS[fault](gate), BadTwin()
        log.aggregators["twin"] = BadTwin()
        for worker in (1, 2, 2):
            T.write_event(log, start("c", worker, worker=worker))
        logs = T.get_logs(log)
        assert logs[2]["id"] == [2, 2]
        assert len({len(v) for v in logs[2].values()}) == 1

    def test_a_sink_that_raises(self) -> None:
        """A filter that raises at every event does not change the scheduler's results."""

        def fn(event: T.Event) -> bool:
            raise BoomError

        D.eager_context().log_sink = T.FilterLog(fn, [])
        assert program() == EXPECTED

    def test_one_bad_sink_of_a_tee(self) -> None:
        """In the scheduler, a tee's good sink gets its events although the other raises."""

        def fn(event: T.Event) -> bool:
            raise BoomError

        good: list[T.Event] = []
        D.eager_context().log_sink = T.TeeLog(good, T.FilterLog(fn, []))
        assert program() == EXPECTED
        poll(lambda: sum(e.category == "compute" for e in list(good)) == 82, "the good sink's events")

    @pytest.mark.parametrize("wreck", ["clear", "pop", "junk", "uneven"])
    def test_an_aggregator_that_wrecks_the_lists(self, wreck: str) -> None:
        """Aggregators may mutate the lists: whatever they do, the program and later fetches go on."""

        def aggregator(lists: dict[str, list[Any]]) -> None:
            if wreck == "clear":
                lists.clear()
            elif wreck == "pop":
                lists.pop("id", None)
            elif wreck == "junk":
                lists["id"] = 5  # type: ignore[assignment]
            else:
                lists["id"].append("more")

        log = T.MultiEventLog()
        log["core"], log["id"] = E.CoreMetrics(), E.IDMetrics()
        log.aggregators["bad"] = aggregator
        D.eager_context().log_sink = log
        assert program() == EXPECTED
        T.get_logs(log)
        del log.aggregators["bad"]
        T.get_logs(log)
        T.write_event(log, start("c", 1))
        got = T.get_logs(log)[1]
        assert got["id"][-1] == 1
        assert len({len(v) for v in got.values()}) == 1

    def test_a_consumer_that_fetches_its_own_log(self) -> None:
        """Re-entrance does not deadlock."""
        log = T.MultiEventLog()

        def greedy(event: T.Event) -> int:
            T.get_logs(log)
            return 1

        log["id"], log["greedy"] = E.IDMetrics(), greedy
        ctx = Ctx(log)
        in_threads(writer(ctx, 0, 20), lambda: [T.get_logs(log) for _ in range(5)] and None)
        assert set(T.get_logs(log)[1]) == {"id", "greedy"}

    def test_a_blocked_log_does_not_stop_another(self, gate: threading.Event) -> None:
        """docs/consumers.md: one log's blocking consumer holds up its own log only; a fetch of another one returns."""
        blocked, other = T.MultiEventLog(), T.MultiEventLog()
        blocked["bad"], other["id"] = Blocks(gate), E.IDMetrics()
        T.write_event(blocked, start("c", 1))
        T.write_event(other, start("c", 2))
        got: list[Any] = []
        reader = threading.Thread(target=lambda: got.append(T.get_logs(other)), daemon=True)
        reader.start()
        try:
            reader.join(DEADLINE_S / 2)
            assert got == [{1: {"id": [2]}}], "the fetch of another log waits for the blocked one"
        finally:
            gate.set()
            reader.join(DEADLINE_S)
        seen: list[Any] = []
        poll(lambda: seen.extend(T.get_logs(blocked)[1]["bad"]) or seen, "the blocked log")
        assert seen == [1]

    def test_emitters_never_wait_for_a_blocked_log(self, gate: threading.Event) -> None:
        """docs/consumers.md: a slow consumer delays the log, not the program: 50,000 spans, 2,000 tasks meanwhile."""
        log = T.MultiEventLog()
        begun = threading.Event()

        def consumer(event: T.Event) -> int:
            begun.set()
            gate.wait(4 * DEADLINE_S)
            return 1

        log["bad"] = consumer
        context = D.eager_context()
        context.log_sink = log

        def work() -> None:
            T.timespan_start(context, "first", 0, None)
            assert begun.wait(DEADLINE_S)
            for i in range(50_000):
                T.timespan_start(context, "c", i, None)
            tasks = [D.spawn(add, i, 1) for i in range(2_000)]
            assert [fetch(t) for t in tasks] == list(range(1, 2_001))

        in_threads(work)
        assert not gate.is_set()
        gate.set()
        total = 0

        def complete() -> bool:
            nonlocal total
            total += len(T.get_logs(log)[1]["bad"])
            return total > 50_001 + 2_000 * 8

        poll(complete, "all entries, after the consumer came back")
