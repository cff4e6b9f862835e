"""spec/timespans.md §4.2: MultiEventLog, with rulings 23, 24, 27 and docs/consumers.md."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from otel_timespan import errors
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import BoomError, Ctx, poll, start, streams

X = T.EventId(thunk_id=1)


class Counting:
    """Counts its calls; its state is its own per worker."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, event: Any) -> int:
        self.n += 1
        return self.n

    def init_similar(self) -> Counting:
        """A fresh one."""
        return Counting()


class FailsAt:
    """Raises at the calls whose numbers are given (all: None)."""

    def __init__(self, *at: int) -> None:
        self.at, self.n = at, 0

    def __call__(self, event: Any) -> str:
        self.n += 1
        if not self.at or self.n in self.at:
            raise BoomError
        return f"v{self.n}"


class TestMultiEventLog:
    """§4.2."""

    def test_4_2_uid(self) -> None:
        """Each log has a random uid of its own."""
        assert len({T.MultiEventLog().uid for _ in range(10)}) == 10

    def test_4_2_consumer_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """It raises on the 2nd event: [v1, None, v3]; others unaffected; it is logged."""
        got = streams([start("c", i) for i in range(3)], a=Counting(), bad=FailsAt(2), z=Counting())
        assert got == {"a": [1, 2, 3], "bad": ["v1", None, "v3"], "z": [1, 2, 3]}
        assert "bad" in caplog.text or "FailsAt" in caplog.text

    def test_4_2_consumer_that_always_raises(self) -> None:
        """Only None in its stream."""
        got = streams([start("c", i) for i in range(3)], bad=FailsAt(), good=E.IDMetrics())
        assert got == {"bad": [None] * 3, "good": [0, 1, 2]}

    def test_4_2_late_consumer(self) -> None:
        """Added after 3 events: [None]*3 + [v4]."""
        log = T.MultiEventLog()
        log["id"] = E.IDMetrics()
        for i in range(3):
            T.write_event(log, start("c", i))
        log["late"] = E.IDMetrics()
        T.write_event(log, start("c", 3))
        assert T.get_logs(log)[1] == {"id": [0, 1, 2, 3], "late": [None, None, None, 3]}

    def test_4_2_removed_consumer(self) -> None:
        """Defect 4: a removed consumer's stream is gone, and it is not called any more."""
        log, gone = T.MultiEventLog(), Counting()
        log["id"], log["gone"] = E.IDMetrics(), gone
        T.write_event(log, start("c", 0))
        T.get_logs(log)
        del log["gone"]
        T.write_event(log, start("c", 1))
        assert T.get_logs(log)[1] == {"id": [1]}
        assert gone.n == 1
        with pytest.raises(KeyError):
            del log["gone"]

    def test_4_2_replaced_consumer(self) -> None:
        """A consumer set again under its name takes over."""
        log = T.MultiEventLog()
        log["v"] = lambda event: "old"
        T.write_event(log, start("c", 0))
        log["v"] = lambda event: "new"
        T.write_event(log, start("c", 1))
        assert T.get_logs(log)[1]["v"] in (["old", "new"], [None, "new"])

    def test_4_2_order_is_that_of_insertion(self) -> None:
        """Consumers run, and streams appear, in the order in which they were added."""
        calls: list[str] = []
        names = ["z", "a", "m", "b"]
        got = streams([start("c", 0)], **{n: functools.partial(lambda n, e: calls.append(n), n) for n in names})
        assert calls == names
        assert list(got) == names

    def test_4_2_second_fetch_is_empty(self) -> None:
        """A second fetch has the same streams, empty; a fetch before any event too."""
        log = T.MultiEventLog()
        log["a"], log["b"] = E.IDMetrics(), E.CoreMetrics()
        assert T.get_logs(log) == {1: {"a": [], "b": []}}
        T.write_event(log, start("c", 0))
        first = T.get_logs(log)
        assert T.get_logs(log) == {1: {"a": [], "b": []}}
        assert first[1]["a"] == [0]

    def test_4_2_fetched_lists_are_not_mutated(self) -> None:
        """Lists handed out stay as they are."""
        log = T.MultiEventLog()
        log["id"] = E.IDMetrics()
        T.write_event(log, start("c", 0))
        first = T.get_logs(log)
        T.write_event(log, start("c", 1))
        second = T.get_logs(log)
        first[1]["id"].append("mine")
        T.write_event(log, start("c", 2))
        assert (first[1]["id"], second[1]["id"], T.get_logs(log)[1]["id"]) == ([0, "mine"], [1], [2])

    def test_4_2_a_state_per_worker(self) -> None:
        """Each worker has streams and consumer copies of its own; worker 1 uses the given objects."""
        log, mine = T.MultiEventLog(), Counting()
        log["n"], log["id"] = mine, E.IDMetrics()
        for worker in (1, 2, 2, 1, 2, 3):
            T.write_event(log, start("c", worker, worker=worker))
        logs = T.get_logs(log)
        assert {w: s["n"] for w, s in logs.items()} == {1: [1, 2], 2: [1, 2, 3], 3: [1]}
        assert mine.n == 2
        again = T.get_logs(log)
        assert {w: s["n"] for w, s in again.items()} == {1: [], 2: [], 3: []}

    def test_4_2_aggregators_get_the_lists(self) -> None:
        """Called after the consumers, per event, with the dict of lists of that worker."""
        log = T.MultiEventLog()
        seen: list[Any] = []
        log["a"], log["b"] = E.IDMetrics(), Counting()
        log.aggregators["x"] = lambda lists: seen.append({name: list(values)[-1] for name, values in lists.items()})
        for i in range(3):
            T.write_event(log, start("c", i))
        T.get_logs(log)
        assert seen == [{"a": i, "b": i + 1} for i in range(3)]

    def test_4_2_aggregator_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged and ignored; the others are called."""
        log = T.MultiEventLog()
        calls = []
        log["id"] = E.IDMetrics()
        log.aggregators["bad"] = FailsAt()
        log.aggregators["good"] = lambda lists: calls.append(1)
        for i in range(3):
            T.write_event(log, start("c", i))
        assert T.get_logs(log)[1]["id"] == [0, 1, 2]
        assert len(calls) == 3
        assert "bad" in caplog.text or "FailsAt" in caplog.text

    def test_4_2_aggregators_are_copied_per_worker(self) -> None:
        """`init_similar` makes the aggregators of other workers, too."""
        log, mine = T.MultiEventLog(), Counting()
        log["id"] = E.IDMetrics()
        log.aggregators["n"] = mine
        for worker in (1, 2, 2):
            T.write_event(log, start("c", 0, worker=worker))
        T.get_logs(log)
        assert mine.n == 1

    def test_4_2_equal_lengths(self) -> None:
        """All lists of a worker have the same length, whatever the consumers do."""
        log = T.MultiEventLog(max_events=7)
        log["a"], log["bad"], log["b"] = E.IDMetrics(), FailsAt(1, 3, 5), E.EventSaturation()
        for i in range(20):
            T.write_event(log, start("c", i))
            if i == 10:
                log["late"] = Counting()
        got = T.get_logs(log)[1]
        assert {name: len(v) for name, v in got.items()} == dict.fromkeys(got, 7)
        assert got["a"] == list(range(13, 20))

    @pytest.mark.parametrize("aggregated", [False, True])
    def test_24_max_events(self, aggregated: bool) -> None:
        """The newest n events of each worker, all streams cut alike."""
        log = T.MultiEventLog(max_events=3)
        log["id"], log["n"], log["sparse"] = E.IDMetrics(), Counting(), E.TaskNames()
        if aggregated:
            log.aggregators["x"] = lambda lists: None
        for i in range(10):
            T.write_event(log, start("c", i))
        assert T.get_logs(log)[1] == {"id": [7, 8, 9], "n": [8, 9, 10], "sparse": [None] * 3}
        T.write_event(log, start("c", 10))
        assert T.get_logs(log)[1]["id"] == [10]

    @pytest.mark.parametrize("bad", [0, -1, 1.5, "3", True])
    def test_24_bad_max_events(self, bad: Any) -> None:
        """A bad limit is an InvalidOptionError."""
        with pytest.raises(errors.InvalidOptionError):
            T.MultiEventLog(max_events=bad)

    def test_4_2_bad_consumers(self) -> None:
        """What can't be called, and names that are no text, are refused at once."""
        log = T.MultiEventLog()
        with pytest.raises(errors.NotCallableError):
            log["x"] = 5
        with pytest.raises(errors.NotCallableError):
            log.aggregators["x"] = 5  # type: ignore[assignment]
        with pytest.raises(errors.InvalidOptionError):
            log[5] = E.IDMetrics()  # type: ignore[index]

    def test_4_2_close(self) -> None:
        """`close` frees, closes the consumers, and takes no more events; it may be called twice."""
        closed = []

        class Closing(Counting):
            def close(self) -> None:
                closed.append(1)

        log, c = T.MultiEventLog(), Closing()
        log["n"] = c
        T.write_event(log, start("c", 0))
        log.close()
        log.close()
        T.write_event(log, start("c", 1))
        assert c.n <= 1
        assert closed == [1]
        assert not any(v for s in (T.get_logs(log) or {}).values() for v in s.values())

    def test_4_2_init_similar(self) -> None:
        """By default the same object; the method where there is one; registrations."""

        def fn(event: T.Event) -> None: ...

        assert T.init_similar(fn) is fn
        c = Counting()
        c(None)
        assert T.init_similar(c).n == 0

        class Foreign:
            pass

        T.init_similar.register(Foreign, lambda obj: "twin")
        assert T.init_similar(Foreign()) == "twin"

    def test_4_2_categories_of_a_consumer(self) -> None:
        """docs/consumers.md: a consumer with `categories` is called for these only; with `carries` it shows `value`."""

        class Slow:
            categories = frozenset({"compute"})

            def __init__(self) -> None:
                self.value = 0

            def __call__(self, event: T.Event) -> int:
                assert event.category == "compute"
                self.value += 1
                return self.value

        class Carrying(Slow):
            carries = True

        got = streams([start(c, 0) for c in ("x", "compute", "y", "compute", "z")], plain=Slow(), carried=Carrying())
        assert got == {"plain": [None, 1, None, 2, None], "carried": [0, 1, 1, 2, 2]}

    def test_4_2_a_consumer_may_log_itself(self) -> None:
        """A consumer that emits into its own log neither deadlocks nor recurses without end."""
        log = T.MultiEventLog()

        def echo(event: T.Event) -> None:
            if event.category == "c":
                T.write_event(log, start("echo", event.id))

        log["id"], log["echo"] = E.IDMetrics(), echo
        T.write_event(log, start("c", 1))
        seen: list[Any] = []
        poll(lambda: seen.extend(T.get_logs(log)[1]["id"]) or len(seen) == 2, "the echo")
        assert seen == [1, 1]

    def test_4_2_as_a_context_sink_in_threads(self) -> None:
        """Within each thread the order is kept, and no finish is seen before its start (ruling 27)."""
        log = T.MultiEventLog()
        log["core"], log["id"] = E.CoreMetrics(), E.IDMetrics()
        ctx = Ctx(log)

        def work(k: int) -> None:
            for i in range(300):
                with T.span(ctx, "c", (k, i)):
                    pass

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        got = T.get_logs(log)[1]
        rows = [(id, c.kind) for id, c in zip(got["id"], got["core"], strict=True)]
        for k in range(4):
            assert [r for r in rows if r[0][0] == k] == [((k, i), p) for i in range(300) for p in ("start", "finish")]
