"""spec/timespans.md §6: GC, locks, compile time, perf counters, profiles, with ruling 27."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan import errors
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import (
    Ctx,
    eid,
    feed,
    fetch,
    finish,
    logged,
    pair,
    poll,
    spin,
    start,
    streams,
)


class TestCounters:
    """§6: GC, locks, compilation, perf, profiles."""

    @pytest.mark.parametrize("cls", [E.GCStats, E.LockContentionMetrics, E.CompileTimeMetrics])
    def test_6_none_without_a_start(self, cls: Any) -> None:
        """A finish whose start is unknown: None; a start: None."""
        consumer = cls()
        got = streams([finish("c", 1), start("c", 2), finish("c", 2), finish("c", 2)], v=consumer)["v"]
        if cls is E.CompileTimeMetrics:
            consumer.close()  # or it counts until it is collected
        assert got[0] is None
        assert got[1] is None
        assert isinstance(got[2], int)
        assert got[3] is None

    def test_6_lock_contention(self) -> None:
        """Contended acquisitions during the span are counted, uncontended ones not."""
        log, lock = T.MultiEventLog(), T.CountingLock()
        log["v"] = E.LockContentionMetrics()
        ctx = Ctx(log)
        with T.span(ctx, "quiet", 1), lock:
            pass
        with T.span(ctx, "loud", 1), lock:
            got = []
            thread = threading.Thread(target=lambda: got.extend(lock.acquire(blocking=False) for _ in range(3)))
            thread.start()
            thread.join()
        assert T.get_logs(log)[1]["v"] == [None, 0, None, 3]
        assert got == [False] * 3

    def test_6_lock_contention_after_a_duplicate_start(self) -> None:
        """Defect 10: a second start with the same key leaves the counting right afterwards."""
        log, lock = T.MultiEventLog(), T.CountingLock()
        log["v"] = E.LockContentionMetrics()
        for event in (start("c", 1), start("c", 1), finish("c", 1)):
            T.write_event(log, event)
        T.write_event(log, start("c", 2))
        with lock:
            thread = threading.Thread(target=lambda: lock.acquire(blocking=False))
            thread.start()
            thread.join()
        T.write_event(log, finish("c", 2))
        assert T.get_logs(log)[1]["v"] == [None, None, 0, None, 1]

    def test_6_compile_time(self) -> None:
        """ns inside `compile` and the import machinery; 0 where nothing was compiled."""
        log = T.MultiEventLog()
        log["v"] = E.CompileTimeMetrics()
        ctx = Ctx(log)
        T.write_event(log, start("warm", 0))
        T.get_logs(log)
        with T.span(ctx, "none", 1):
            pass
        with T.span(ctx, "some", 1):
            compile("\n".join(f"x{i} = {i} + y" for i in range(2000)), "<test>", "exec")
        _, none, _, some = T.get_logs(log)[1]["v"]
        log.close()
        assert none == 0
        assert some > 0

    def test_6_perf(self) -> None:
        """None at the start, {event: rise} at the finish; a refusal by the system is an InvalidOptionError."""
        try:
            consumer = E.LinuxPerfMetrics("cpu-clock, (page-faults, context-switches)")
        except errors.InvalidOptionError as error:
            pytest.skip(f"no perf counters here: {error}")
        log = T.MultiEventLog()
        log["v"] = consumer
        with T.span(Ctx(log), "c", 1):
            spin(0.01)
        a, b = T.get_logs(log)[1]["v"]
        log.close()
        assert a is None
        assert set(b) == {"cpu-clock", "page-faults", "context-switches"}
        assert b["cpu-clock"] > 0
        assert all(isinstance(n, int) for n in b.values())

    @pytest.mark.parametrize(
        "spec", ["no-such-event", "(cpu-clock", "cpu-clock,,page-faults", ")", "()", "((cpu-clock))"]
    )
    def test_6_perf_bad_spec(self, spec: str) -> None:
        """A bad spec is an InvalidOptionError at once."""
        with pytest.raises(errors.InvalidOptionError):
            E.LinuxPerfMetrics(spec)

    def test_6_profiles(self) -> None:
        """`profile=True`: computes with samples have a handle of an SVG file, which goes with the handle; else ""."""
        D.enable_logging(profile=True)
        handles: list[Any] = []
        others: list[Any] = []

        def found() -> bool:
            task = D.spawn(spin, 0.1)
            fetch(task)
            log = logged(task)
            for core, value in zip(log["core"], log["profile"], strict=True):
                (handles if value != "" else others).append((core.category, core.kind, value))
            return bool(handles)

        assert any(found() for _ in range(20)), "no profile of 20 bodies that computed 0.1 s each"
        assert {(category, kind) for category, kind, _ in handles} == {("compute", "finish")}
        path = Path(str(handles[0][2]))
        assert "<svg" in path.read_text()
        assert "spin" in path.read_text()
        handles.clear()
        poll(lambda: gc.collect() >= 0 and not path.exists(), "the file's removal")
        D.disable_logging()


def test_6_profile_stream_shows_a_handle_once() -> None:
    """ProfileMetrics: "" for every event but the finish of a profiled compute, in a stream as in a direct call."""
    samples = T.ProfilerResult(((1, ("f (x.py:1)",), 1),), {}, (1,))
    compute = eid(1, processor="p")
    events = [start("compute", compute), finish("compute", compute, 1, None, profiler_samples=samples)]
    events += [*pair("finish", eid(1)), start("c", 1), start("compute", eid(2)), finish("compute", eid(2))]
    for values in (feed(E.ProfileMetrics(), events), streams(events, profile=E.ProfileMetrics())["profile"]):
        assert [i for i, value in enumerate(values) if value != ""] == [1]
