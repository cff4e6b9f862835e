"""design/otel-model.md §1.4 and §4: nothing lost silently, whatever the exporter does; rulings 33 and 42."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import otel_timespan as ts
from otel_timespan.errors import LogNotKeptError
from otel_timespan.otel.spans import mapping
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    Lab,
    check_account,
    check_tree,
    children,
    last_json,
    one,
    run,
    sid,
    task_span,
    task_spans,
)
from tests.backends import eventually

Make = Callable[..., Lab]


def double(x: int) -> int:
    """A body."""
    return 2 * x


def held(gate: threading.Event, *_: Any) -> int:
    """A body that waits."""
    assert gate.wait(DEADLINE_S)
    return 1


class Blocking(SpanExporter):
    """An exporter that hangs until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.got: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.gate.wait(DEADLINE_S)
        self.got.extend(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class Watch:
    """Checks the account over and over from another thread, while the block runs."""

    def __init__(self, log: Any) -> None:
        self._log, self._stop = log, threading.Event()
        self.errors: list[BaseException] = []
        self.looks = 0
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.is_set():
            try:
                check_account(self._log.stats())
                self.looks += 1
            except BaseException as error:
                self.errors.append(error)
                return
            time.sleep(0.0002)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self.errors, self.errors
        assert self.looks > 0


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    """A hanging exporter, let go at the end."""
    exporter = Blocking()
    yield exporter
    exporter.gate.set()


def tree(n: int) -> list[int]:
    """n tasks, each with a dependency."""
    first = [ts.spawn(double, i) for i in range(n // 2)]
    return ts.fetch_all([ts.spawn(double, t) for t in first])


# ---- accounts under load ---------------------------------------------------------------------------------


def test_14_account_holds_at_any_moment_at_a_provider(lab: Lab) -> None:
    """recorded == exported + sampled + pending + dropped, looked at thousands of times during a load."""
    with Watch(lab.log):
        for _ in range(5):
            tree(400)
            lab.log.flush(DEADLINE_S)
    stats = lab.log.stats()
    assert stats["exported"] == stats["recorded"] == len(lab.exporter.get_finished_spans())
    assert stats["dropped"] == {} or not any(stats["dropped"].values())


@pytest.mark.parametrize("on_full", ["drop", "block", "spill"])
def test_14_account_with_a_hanging_exporter(on_full: str, blocking: Blocking) -> None:
    """A tiny queue and an exporter that hangs: results right, the account holds, then all that is kept comes out."""
    log = ts.OTelLog(span_exporter=blocking, metrics=False, on_full=on_full, max_bytes=20_000, block_timeout_s=0.2)
    ctx = ts.eager_context()
    ctx.log_sink = log
    with Watch(log):
        with ts.dag("full"):
            assert tree(1000) == [4 * i for i in range(500)]
            assert blocking.entered.wait(DEADLINE_S)
            assert log.flush(0.05) is False
            check_account(log.stats())
            blocking.gate.set()
            assert log.flush(DEADLINE_S)
        assert log.flush(DEADLINE_S)
    stats = log.stats()
    ctx.log_sink = ts.NoOpLog()
    log.close()
    assert stats["recorded"] == 1 + 3 * 1000
    assert stats["exported"] == len(blocking.got) == len({sid(s) for s in blocking.got})
    dropped = sum(stats["dropped"].values())
    assert stats["exported"] + dropped == stats["recorded"]
    if on_full == "spill":
        assert dropped == 0
    else:
        # Whether `block` loses any depends on who was first, its 0.2 s or the gate.
        assert dropped > 0 or on_full == "block"
        root = one(blocking.got, "dag full")
        assert root.attributes["timespan.dag.complete"] is (dropped == 0)


def test_14_root_of_a_run_that_ends_while_the_queue_is_full(blocking: Blocking) -> None:
    """The root says that the run is not complete: it has to arrive, or nobody ever learns it."""
    log = ts.OTelLog(span_exporter=blocking, metrics=False, on_full="drop", max_bytes=20_000)
    ctx = ts.eager_context()
    ctx.log_sink = log
    with ts.dag("full"):
        tree(1000)
        assert blocking.entered.wait(DEADLINE_S)
    assert log.flush(0.05) is False
    blocking.gate.set()
    assert log.flush(DEADLINE_S)
    ctx.log_sink = ts.NoOpLog()
    log.close()
    assert one(blocking.got, "dag full").attributes["timespan.dag.complete"] is False


def test_14_block_really_waits_and_loses_nothing() -> None:
    """on_full=block with an exporter that is slow but works: back-pressure, and not one span lost."""

    class Slow(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            threading.Event().wait(0.002)
            return super().export(spans)

    exporter = Slow()
    log = ts.OTelLog(span_exporter=exporter, metrics=False, on_full="block", max_bytes=50_000, block_timeout_s=60)
    ts.eager_context().log_sink = log
    tree(1000)
    assert log.flush(DEADLINE_S)
    stats = log.stats()
    ts.eager_context().log_sink = ts.NoOpLog()
    log.close()
    assert stats["exported"] == stats["recorded"] == len(exporter.get_finished_spans()) == 1 + 3 * 1000


@pytest.mark.parametrize("how", ["raises", "fails"])
def test_14_exporter_that_fails(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """An exporter that raises or says FAILURE: results right, spans dropped by reason, one warning, no loop."""

    class Bad(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if how == "raises":
                raise RuntimeError("exporter")
            return SpanExportResult.FAILURE

    log = ts.OTelLog(span_exporter=Bad(), metrics=False, exit_timeout_s=0.2)
    ts.eager_context().log_sink = log
    assert len(tree(100)) == 50
    log.flush(0.2)
    ts.eager_context().log_sink = ts.NoOpLog()
    log.close()
    stats = log.stats()
    check_account(stats)
    assert stats["exported"] == 0
    assert stats["pending"] == 0
    assert sum(stats["dropped"].values()) == stats["recorded"] == 301
    assert 1 <= len([r for r in caplog.records if r.name.startswith("otel_timespan")]) <= 2


def test_14_burst_of_10000_tasks_loses_no_span(lab: Lab) -> None:
    """10,000 tasks as fast as they go: each has its spans, once, in one whole trace."""
    with ts.dag("burst"):
        tasks = [ts.spawn(double, i) for i in range(10_000)]
        ts.waitall(tasks)
    spans = lab.spans()
    names = Counter(s.name for s in spans)
    assert names["double"] == names["compute"] == names["queue"] == 10_000
    check_tree(spans)
    root = one(spans, "dag burst")
    assert root.attributes["timespan.dag.tasks"] == 10_000
    assert root.attributes["timespan.dag.complete"] is True
    assert set(task_spans(spans)) == {t.id for t in tasks}
    assert lab.value("timespan.task.count") == 10_000
    stats = lab.log.stats()
    assert stats["exported"] == stats["recorded"] == 30_001
    assert stats["pending"] == 0


def test_14_burst_through_our_own_pipeline() -> None:
    """The same through span_exporter, with the default queue: nothing is dropped."""
    exporter = InMemorySpanExporter()
    log = ts.OTelLog(span_exporter=exporter, metrics=False)
    ts.eager_context().log_sink = log
    ts.waitall([ts.spawn(double, i) for i in range(10_000)])
    assert log.flush(DEADLINE_S)
    stats = log.stats()
    ts.eager_context().log_sink = ts.NoOpLog()
    log.close()
    assert stats["exported"] == stats["recorded"] == len(exporter.get_finished_spans()) == 30_001
    check_tree(exporter.get_finished_spans())


@pytest.mark.timeout(30)  # a healthy exporter takes this in a second
def test_14_block_is_no_brake_with_a_healthy_exporter() -> None:
    """A small queue and an exporter that answers at once: nothing is dropped, and nobody waits for a linger time."""
    exporter = InMemorySpanExporter()
    log = ts.OTelLog(span_exporter=exporter, metrics=False, max_bytes=20_000, block_timeout_s=30)
    ts.eager_context().log_sink = log
    try:
        tree(1000)
        assert log.flush(DEADLINE_S)
        stats = log.stats()
    finally:
        ts.eager_context().log_sink = ts.NoOpLog()
        log.close()
    assert stats["dropped"] == {}
    assert stats["exported"] == 3001


# ---- flush, close, stats ---------------------------------------------------------------------------------


def test_14_flush_close_stats_in_any_order(lab: Lab) -> None:
    """Before the first event, twice, and after close: never an error, and the account stays readable."""
    assert lab.log.flush(5) is True
    check_account(lab.log.stats())
    ts.fetch(ts.spawn(double, 1))
    lab.log.close()
    lab.log.close()
    stats = lab.log.stats()
    check_account(stats)
    assert stats["pending"] == 0
    assert isinstance(lab.log.flush(1), bool)
    assert ts.fetch(ts.spawn(double, 2)) == 4
    with ts.dag("after close"):
        assert ts.fetch(ts.spawn(double, 2)) == 4
    assert lab.log.stats()["recorded"] == stats["recorded"]


def test_14_close_abandons_what_is_open(lab: Lab, gate: threading.Event) -> None:
    """close() with a running, a waiting task and an open dag: all are abandoned, none failed, in a whole tree."""
    started = threading.Event()

    def body() -> None:
        started.set()
        held(gate)

    with ts.dag("cut"):
        done = ts.spawn(double, 1)
        ts.wait(done)
        running = ts.spawn(body)
        waiting = ts.spawn(double, running)
        assert started.wait(DEADLINE_S)
        lab.log.close()
        gate.set()
        ts.waitall([running, waiting])
    spans = list(lab.exporter.get_finished_spans())
    check_tree(spans)
    for task in (running, waiting):
        span = task_span(spans, task)
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes["timespan.task.state"] == "abandoned"
    assert task_span(spans, done).status.status_code is StatusCode.UNSET
    (compute,) = [s for s in children(spans, task_span(spans, running)) if s.name == "compute"]
    assert compute.attributes["timespan.task.state"] == "abandoned"
    one(spans, "dag cut")
    stats = lab.log.stats()
    check_account(stats)
    assert stats["pending"] == 0


def test_14_close_under_load(make_lab: Make) -> None:
    """close() in the middle of spawns from several threads: no error, no hang, the account is closed."""
    lab = make_lab(exit_timeout_s=1)
    stop = threading.Event()
    errors: list[BaseException] = []

    def program() -> None:
        try:
            while not stop.is_set():
                with ts.dag("loop"):
                    assert ts.fetch(ts.spawn(double, 1)) == 2
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=program) for _ in range(3)]
    for t in threads:
        t.start()
    eventually(lambda: lab.log.stats()["recorded"] > 200, DEADLINE_S, 0.005)
    with Watch(lab.log):
        lab.log.close()
        stats = lab.log.stats()
    stop.set()
    for t in threads:
        t.join(DEADLINE_S)
    assert not errors
    assert stats["pending"] == 0
    check_account(lab.log.stats())
    # What was in flight when the time was up may have been delivered, and counts as dropped.
    assert lab.log.stats()["exported"] == stats["exported"] <= len(lab.exporter.get_finished_spans())


def test_14_flush_under_load_never_loses(lab: Lab) -> None:
    """flush() from several threads while tasks run: each True means that what ended before is out."""
    for _ in range(20):
        task = ts.spawn(double, 1)
        ts.wait(task)
        flushers = [threading.Thread(target=lab.log.flush, args=(DEADLINE_S,)) for _ in range(3)]
        for t in flushers:
            t.start()
        assert lab.log.flush(DEADLINE_S)
        assert task.id in task_spans(lab.exporter.get_finished_spans())
        for t in flushers:
            t.join(DEADLINE_S)


def test_14_get_logs_says_that_none_is_kept(lab: Lab) -> None:
    """A sink that keeps no events says so with an error of ours."""
    with pytest.raises(LogNotKeptError):
        ts.get_logs(lab.log)


def test_14_bodies_may_flush_and_close(lab: Lab) -> None:
    """flush() and stats() from inside of a body do not deadlock."""

    def body() -> bool:
        check_account(lab.log.stats())
        return lab.log.flush(DEADLINE_S)

    assert ts.fetch(ts.spawn(body), timeout=DEADLINE_S) is True


# ---- in flight -------------------------------------------------------------------------------------------


def test_14_children_come_out_before_the_run_ends(lab: Lab, gate: threading.Event) -> None:
    """Finished tasks are exported while a long one of the same run still runs."""
    with ts.Context(threads=2, log_sink=lab.log), ts.dag("long"):
        block = ts.spawn(held, gate)
        done = ts.spawn(double, 1)
        ts.wait(done)
        assert eventually(lambda: done.id in task_spans(lab.exporter.get_finished_spans()), DEADLINE_S)
        assert not [s for s in lab.exporter.get_finished_spans() if s.name == "dag long"]
        gate.set()
        ts.wait(block)


def test_14_memory_of_the_log_is_bounded_over_many_runs(make_lab: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log remembers of finished tasks (for later links) is bounded: beyond the bound nothing grows."""
    import gc
    import tracemalloc

    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    assert mapping.MAX_DONE <= 65_536
    monkeypatch.setattr(mapping, "MAX_DONE", 1000)
    monkeypatch.setattr(mapping, "_SOME", 10)
    lab = make_lab(provider_options={"sampler": ALWAYS_OFF}, metrics=False)

    def runs(n: int) -> None:
        for _ in range(n):
            with ts.dag("r"):
                ts.waitall([ts.spawn(double, i) for i in range(100)])
        lab.log.flush(DEADLINE_S)
        gc.collect()

    runs(15)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        runs(30)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # What is traced replaces what came before the tracing: the 1,000 tasks that are remembered, at 0.6 KB each.
    assert grown < 900_000, grown


def test_14_open_plain_program_at_exit(ear: Any) -> None:
    """A plain program that exits with an open timespan sends it as abandoned."""
    run(
        """
        import otel_timespan as ts
        from otel_timespan import timespans as T
        class Program: log_sink = ts.OTelLog()
        T.timespan_start(Program, "open", 1)
        with T.span(Program, "whole", 2):
            pass
        """,
        ear.env(),
    )
    spans = {s.name: s for s in ear.spans()}
    assert spans["whole"].parent_span_id == spans["open"].span_id
    assert spans["open"].status.code == 2


def test_14_two_logs_at_the_global_provider_count_their_own_spans(ear: Any) -> None:
    """Logs one after the other at the provider that the first set up: nobody's spans count twice, nor the user's."""
    done = run(
        """
        import json
        import otel_timespan as ts
        from opentelemetry import trace
        stats = []
        for _ in range(2):
            ts.eager_context().log_sink = log = ts.OTelLog()
            ts.waitall([ts.spawn(pow, i, 2) for i in range(10)])
            assert log.flush(30)
            stats.append(log.stats())
            log.close()
        with trace.get_tracer("user").start_as_current_span("the user's"):
            pass
        print(json.dumps(stats))
        """,
        ear.env(),
    )
    assert len([s for s in ear.spans() if s.name != "the user's"]) == 62
    recorded = ear.metrics()["timespan.spans.recorded"].sum.data_points
    assert sum(p.as_int for p in recorded) == 62
    assert [s["recorded"] for s in last_json(done)] == [31, 31]


def test_14_users_spans_in_bodies_are_not_the_logs(ear: Any) -> None:
    """The account is that of the log's spans: the same whether or not bodies make spans of their own."""
    done = run(
        """
        import json
        import otel_timespan as ts
        from opentelemetry import trace
        ts.eager_context().log_sink = log = ts.OTelLog()
        def body():
            for _ in range(10):
                with trace.get_tracer("user").start_as_current_span("the user's"):
                    pass
        ts.fetch(ts.spawn(body))
        assert log.flush(30)
        print(json.dumps(log.stats()))
        """,
        ear.env(),
    )
    assert len(ear.spans()) == 14
    assert last_json(done)["recorded"] == 4
