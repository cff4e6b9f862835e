"""`keep="interesting"`: which runs are sent, what is held of the others meanwhile, and what the account says."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel import OTelLog, dag, semconv
from otel_timespan.otel.spans.interest import LEAST
from tests.otel.log_bench import Bench, add, boom, eventually, id_of, parent_of, tasks_of


def account(log: OTelLog) -> dict[str, Any]:
    """The account, which balances."""
    stats = log.stats()
    parts = [stats[key] for key in ("exported", "sampled", "rolled_up", "pending")]
    assert stats["recorded"] == sum(parts) + sum(stats["dropped"].values()) and min(parts) >= 0, stats
    return stats


def run(name: str, *functions: Callable[..., Any]) -> None:
    """A run whose tasks are these and three that add."""
    with dag(name):
        tasks = [D.spawn(add, 1, 1) for _ in range(3)] + [D.spawn(f, 1) for f in functions]
        for task in tasks:
            task.wait()


def test_only_runs_that_failed_are_sent(bench: Callable[..., Bench]) -> None:
    """A failed run is sent whole and says why; of the others nothing is, and their spans count as sampled."""
    b = bench(keep="interesting")
    run("fine")
    run("bad", boom)
    run("fine")
    spans = b.spans()
    assert {s.name for s in spans if s.parent is None} == {"dag bad"}
    assert len(spans) == 4 * 3 + 1
    (root,) = [s for s in spans if s.parent is None]
    assert root.attributes[semconv.DAG_KEPT_FOR] == "failure"
    stats = account(b.log)
    assert stats["sampled"] == 2 * (3 * 3 + 1) and stats["exported"] == len(spans) and stats["pending"] == 0


def test_an_error_of_the_block_is_a_failure(bench: Callable[..., Bench]) -> None:
    """A block that ends by an exception of its own makes its run interesting."""
    b = bench(keep="interesting")
    with pytest.raises(KeyError), dag("own"):
        D.fetch(D.spawn(add, 1, 1))
        raise KeyError
    assert [s.name for s in b.spans() if s.parent is None] == ["dag own"]


def test_all_is_the_default(bench: Callable[..., Bench]) -> None:
    """Nothing is held where nobody asked for it."""
    b = bench()
    run("fine")
    assert len(b.spans()) == 10 and account(b.log)["sampled"] == 0


def slow_run(log_runs: Any, name: str, seconds: float) -> None:
    """A run that seems to have begun so long ago."""
    with dag(name) as span:
        (current,) = [r for r in log_runs._open.values() if r.span is span]
        current.start_ns -= int(seconds * 1e9)
        D.fetch(D.spawn(add, 1, 1))


def test_longer_than_the_threshold(bench: Callable[..., Bench]) -> None:
    """A run that took longer than `slow_s` is sent, one that did not is not."""
    b = bench(keep="interesting", slow_s=30.0)
    slow_run(b.log._runs, "long", 31)
    slow_run(b.log._runs, "short", 1)
    roots = [s for s in b.spans() if s.parent is None]
    assert [(s.name, s.attributes[semconv.DAG_KEPT_FOR]) for s in roots] == [("dag long", "slow")]


def test_longer_than_its_like(bench: Callable[..., Bench]) -> None:
    """A run is compared with the last ones of its name, once there are some; others of other names do not count."""
    b = bench(keep="interesting", slow_factor=3.0)
    for _ in range(LEAST):
        slow_run(b.log._runs, "often", 10)
        slow_run(b.log._runs, "other", 1000)
    assert b.spans() == []
    slow_run(b.log._runs, "often", 29)
    assert b.spans() == []
    slow_run(b.log._runs, "often", 40)
    roots = [s for s in b.spans() if s.parent is None]
    assert [(s.name, s.attributes[semconv.DAG_KEPT_FOR]) for s in roots] == [("dag often", "slower")]
    account(b.log)


def test_implicit_runs_are_alike_by_their_functions(bench: Callable[..., Bench]) -> None:
    """Runs that the log opened by itself are held too, and decided about when they end."""
    b = bench(keep="interesting")
    D.fetch(D.spawn(add, 1, 1))
    assert b.spans() == []
    task = D.spawn(boom, 1)
    task.wait()
    assert {s.name for s in b.spans()} >= {"dag", "boom"}
    assert account(b.log)["sampled"] == 4


def test_a_failure_sends_what_was_held_at_once(bench: Callable[..., Bench]) -> None:
    """From the first failure on a run is sent as any other, while it goes on."""
    b = bench(keep="interesting")
    with dag("bad"):
        D.waitall([D.spawn(add, n, 1) for n in range(5)])
        assert b.spans() == []
        D.spawn(boom, 1).wait()
        assert len(tasks_of(b.spans())) == 6
    assert len(tasks_of(b.spans())) == 6


def test_a_run_beyond_its_bound_is_rolled_up_while_it_is_held(bench: Callable[..., Bench]) -> None:
    """A large run is rolled up: dropped as a whole, or sent with its roll-ups."""
    b = bench(keep="interesting", max_spans=60)
    for last in ([], [boom]):
        with dag("large"):
            for task in [D.spawn(add, n, 1) for n in range(100)] + [D.spawn(f, 1) for f in last]:
                task.wait()
    spans = b.spans()
    assert len(spans) <= 60 and {s.name for s in spans} >= {"boom", "add (rolled up)", "dag large"}
    known = {id_of(s) for s in spans}
    assert all(parent_of(s) in known for s in spans if s.parent is not None)
    stats = account(b.log)
    assert stats["sampled"] == 301 and stats["pending"] == 0
    assert stats["rolled_up"] == (101 - len(tasks_of(spans))) * 3


def test_more_than_may_be_held_is_sent(bench: Callable[..., Bench]) -> None:
    """Where too much is held the largest run is sent, and says so."""
    b = bench(keep="interesting", max_bytes=400_000)
    with dag("small"):
        D.fetch(D.spawn(add, 1, 1))
        with dag("large"):
            D.waitall([D.spawn(saying, n) for n in range(40)])
            assert b.log.flush()
            eventually(lambda: len(b.spans()) > 20)
    roots = {s.name: s.attributes for s in b.spans() if s.parent is None or s.name.startswith("dag")}
    assert roots["dag large"][semconv.DAG_KEPT_FOR] == "full"
    account(b.log)


def saying(n: int) -> None:
    """A body that puts much on its span."""
    trace.get_current_span().set_attribute("text", f"{n} " * 2000)


def test_what_is_held_is_bounded() -> None:
    """However many runs are under way at once, no more is held than a quarter of the queue's bound."""
    exporter = InMemorySpanExporter()
    log = OTelLog(span_exporter=exporter, metrics=False, keep="interesting", max_bytes=4 << 20)
    with D.Context(threads=2, log_sink=log) as context:
        blocks = [(dag(f"run {n}"), contextvars.copy_context()) for n in range(20)]
        for block, around in blocks:
            around.run(block.__enter__)
            D.waitall([around.run(D.spawn, add, n, 1) for n in range(100)])
            assert log.flush()
            held = sum(one.nbytes for one in log._mapper.budgets._open.values() if one.holding)
            assert held <= 1 << 20
        for block, around in blocks:
            around.run(block.__exit__, None, None, None)
        context.log_sink = T.NoOpLog()
    log.close()
    stats = account(log)
    assert stats["exported"] > 0 and stats["sampled"] > 0 and stats["pending"] == 0 and stats["dropped"] == {}


def test_a_log_closed_with_held_runs() -> None:
    """They are decided about by the same rule, at once."""
    b = Bench(keep="interesting")
    fine, bad = dag("fine"), dag("bad")
    with fine:
        D.fetch(D.spawn(add, 1, 1))
        b.log.close()
    stats = account(b.log)
    b.close()
    assert stats["sampled"] == 4 and stats["pending"] == stats["exported"] == 0
    b = Bench(keep="interesting")
    with bad:
        D.spawn(boom, 1).wait()
        b.log.close()
    stats = account(b.log)
    b.close()
    assert stats["exported"] == 4 and stats["pending"] == stats["sampled"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_holds_nothing_of_its_parent(bench: Callable[..., Bench]) -> None:
    """What is held at a fork is the parent's, and is sent there."""
    b = bench(keep="interesting")
    with dag("run"):
        D.fetch(D.spawn(add, 1, 1))
        assert b.log.flush()
        child = os.fork()
        if not child:
            os._exit(b.log.stats()["pending"])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        D.spawn(boom, 1).wait()
    assert len(tasks_of(b.spans())) == 2


def test_metrics_of_all_runs() -> None:
    """Metrics count every run, sent or not."""
    reader = InMemoryMetricReader()
    b = Bench(keep="interesting", metrics=True, meter_provider=MeterProvider([reader]))
    try:
        for n in range(4):
            run(f"run {n}", *[boom] * (n == 2))
        assert b.log.flush()
        found = {}
        data = reader.get_metrics_data()
        for metric in [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]:  # type: ignore[union-attr]
            found[metric.name] = list(metric.data.data_points)
    finally:
        b.close()
    assert sum(p.value for p in found[semconv.TASK_COUNT]) == 13
    assert sum(p.count for p in found[semconv.TASK_DURATION]) == 13
    assert sum(p.count for p in found[semconv.DAG_DURATION]) == 4
    outcomes = {p.attributes[semconv.SPAN_OUTCOME]: p.value for p in found[semconv.SPANS_BY_OUTCOME]}
    assert outcomes == {"exported": 13, "sampled": 30, "rolled_up": 0, "dropped": 0}


def test_an_inner_run_takes_the_outer_one_with_it(bench: Callable[..., Bench]) -> None:
    """A run that failed inside of another one is sent with it: its root has its parent there."""
    b = bench(keep="interesting")
    with dag("outer"):
        D.fetch(D.spawn(add, 1, 1))
        with dag("inner"):
            D.spawn(boom, 1).wait()
    spans = b.spans()
    known = {id_of(s) for s in spans}
    assert {s.name for s in spans} >= {"dag outer", "dag inner"}
    assert all(parent_of(s) in known for s in spans if s.parent is not None)


def test_an_inner_run_takes_one_without_tasks_with_it(bench: Callable[..., Bench]) -> None:
    """The outer run is sent even if it had no task of its own until the inner one failed, or has none at all."""
    b = bench(keep="interesting")
    with dag("outermost"), dag("outer"), dag("inner"):
        D.spawn(boom, 1).wait()
    spans = b.spans()
    known = {id_of(s) for s in spans}
    assert {s.name for s in spans} >= {"dag outermost", "dag outer", "dag inner"}
    assert all(parent_of(s) in known for s in spans if s.parent is not None)


def test_what_a_kept_run_held_is_sent(bench: Callable[..., Bench]) -> None:
    """A run that turned out to be interesting holds nothing any more: that may be much, and it may never end."""
    b = bench(keep="interesting", max_spans=None)
    with dag("endless"):
        D.waitall([D.spawn(add, n, 1) for n in range(50)])
        D.spawn(boom, 1).wait()
        assert eventually(lambda: account(b.log)["exported"] == 51 * 3)


def test_an_outer_run_ends_after_the_inner_one(bench: Callable[..., Bench]) -> None:
    """A block inside of another one may leave tasks behind that fail: the outer run waits for it, and covers it."""
    b = bench(keep="interesting")
    gate = threading.Event()

    def late() -> None:
        gate.wait(20)
        raise ValueError

    with dag("outer"):
        D.fetch(D.spawn(add, 1, 1))
        with dag("inner"):
            task = D.spawn(late)
    assert b.spans() == []
    gate.set()
    task.wait()
    spans = {s.name: s for s in b.spans()}
    assert spans["dag inner"].parent.span_id == id_of(spans["dag outer"])
    assert spans["dag inner"].end_time <= spans["dag outer"].end_time


def test_a_run_that_the_log_opened_ends_after_the_inner_one(bench: Callable[..., Bench]) -> None:
    """What a block in a body turned out to be is known when it is decided about the run of that body."""
    b = bench(keep="interesting", root_quiet_s=0)

    def body() -> None:
        with contextlib.suppress(KeyError), dag("inner"):
            D.fetch(D.spawn(add, 1, 1))
            raise KeyError

    D.fetch(D.spawn(body))
    b.context.wait_idle()
    inner, outer = b.one("dag inner"), b.one("dag")
    assert inner.parent is not None and inner.parent.span_id in [id_of(s) for s in b.spans()]
    assert [(s.attributes or {})[semconv.DAG_KEPT_FOR] for s in (inner, outer)] == ["failure", "failure"]


def test_the_schedulers_own_spans_are_held(bench: Callable[..., Bench]) -> None:
    """With detail "scheduler" nothing of a run is sent that nobody is interested in."""
    b = bench(keep="interesting", detail="scheduler")
    run("fine")
    assert b.spans() == []
    run("bad", boom)
    spans = b.spans()
    known = {id_of(s) for s in spans}
    assert all(parent_of(s) in known for s in spans if s.parent is not None)
    assert account(b.log)["pending"] == 0


def test_runs_at_once_from_many_threads(bench: Callable[..., Bench]) -> None:
    """Each run is decided about by itself."""
    b = bench(keep="interesting")

    def work(n: int) -> None:
        for k in range(5):
            run(f"run {n}", *[boom] * (k == n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(s.name for s in b.spans() if s.parent is None) == [f"dag run {n}" for n in range(4)]
    stats = account(b.log)
    assert stats["exported"] == 4 * 13 and stats["sampled"] == 16 * 10


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"keep": "some"}, "keep"), ({"keep": 1}, "keep"), ({"keep": ""}, "keep"), ({"slow_s": -1}, "slow_s"),
     ({"slow_s": "1"}, "slow_s"), ({"slow_s": float("nan")}, "slow_s"), ({"slow_factor": 0.5}, "slow_factor"),
     ({"slow_factor": True}, "slow_factor"), ({"slow_factor": float("inf")}, "slow_factor"),
     ({"slow_factor": 10**400}, "slow_factor")],
)  # fmt: skip
def test_wrong_options(wrong: dict[str, Any], name: str) -> None:
    """What can't work is said when the log is made."""
    with pytest.raises(InvalidOptionError, match=name):
        OTelLog(**wrong)


def test_the_variable(monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Bench]) -> None:
    """OTEL_TIMESPAN_KEEP says it where the option does not."""
    monkeypatch.setenv("OTEL_TIMESPAN_KEEP", "interesting")
    b = bench()
    run("fine")
    assert b.spans() == []
    assert OTelLog(keep="all")._interest is None
    monkeypatch.setenv("OTEL_TIMESPAN_KEEP", "some")
    with pytest.raises(InvalidOptionError, match="OTEL_TIMESPAN_KEEP"):
        OTelLog()


def dependency_links(spans: list[Any]) -> list[Any]:
    """The links of tasks to those that they depend on."""
    return [link for s in spans for link in s.links if (link.attributes or {})[semconv.LINK_TYPE] == "dependency"]


@pytest.mark.parametrize("nested", [False, True], ids=["another trace", "the same trace"])
def test_no_link_leads_to_a_run_that_was_not_sent(nested: bool, bench: Callable[..., Bench]) -> None:
    """It is left out, and counted as such; links within the run are there."""
    b = bench(keep="interesting")

    def both() -> None:
        with dag("fine"):
            before = [D.spawn(add, n, 1) for n in range(4)]
            D.waitall(before)
        assert b.spans() == []
        if not nested:
            b.context.wait_idle()
        with dag("bad"):
            own = D.spawn(add, 1, 1)
            for _ in range(5):  # the fifth is of a shape that is known by then
                D.fetch(D.spawn(add, before[0], own))
            D.spawn(boom, before[1]).wait()

    if nested:
        with dag("outer"):
            both()
    else:
        both()
    spans = b.spans()
    known = {id_of(s) for s in spans}
    links = dependency_links(spans)
    assert len(links) == 5 and all(link.context.span_id in known for link in links)
    assert sum(s.dropped_links for s in spans) == 6
    assert account(b.log)["pending"] == 0


def test_a_link_to_a_run_of_which_it_is_not_known_says_so(bench: Callable[..., Bench]) -> None:
    """It does not claim that its target was sampled: it may be sent, or not."""
    b = bench(keep="interesting")
    with dag("open"):
        before = D.spawn(add, 1, 1)
        D.fetch(before)
        context = contextvars.Context()

        def bad() -> None:
            with dag("bad"):
                D.spawn(boom, before).wait()

        context.run(bad)
        (link,) = dependency_links(eventually(lambda: [s for s in b.spans() if s.name == "boom"]))
        assert not link.context.trace_flags.sampled
    assert {s.name for s in b.spans() if s.parent is None} == {"dag bad"}
