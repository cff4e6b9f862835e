"""A run with more spans than `max_spans`: what is rolled up, what is kept, and what is told of it."""

from __future__ import annotations

import contextvars
import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel import OTelLog, dag, replay, semconv
from otel_timespan.otel.spans import budget, rollup
from otel_timespan.otel.spans.limits import NO_LIMITS
from otel_timespan.timespans.taskrecords import END, RETURN, START
from tests.otel.log_bench import Bench, add, boom, counting, eventually, id_of, parent_of, tasks_of
from tests.otel.test_lane import Program, Way, leaf, records_of


def rolled(spans: list[ReadableSpan]) -> dict[str, ReadableSpan]:
    """The roll-ups, by name."""
    return {s.name: s for s in spans if semconv.ROLLUP_COUNT in (s.attributes or {})}


def root_of(spans: list[ReadableSpan]) -> ReadableSpan:
    """The only root."""
    (root,) = [s for s in spans if s.parent is None]
    return root


def check(spans: list[ReadableSpan], log: OTelLog) -> None:
    """Parents and links lead to spans that are there, children lie within the roots, and the account balances."""
    known = {id_of(s): s for s in spans}
    assert len(known) == len(spans)
    for span in spans:
        assert not parent_of(span) or parent_of(span) in known, span.name
        assert all(link.context.span_id in known for link in span.links), span.name
    stats = log.stats()
    total = sum(stats[key] for key in ("exported", "sampled", "rolled_up", "pending")) + sum(stats["dropped"].values())
    assert stats["recorded"] == total and stats["pending"] == 0 and stats["dropped"] == {}
    told = sum(s.attributes.get(semconv.DAG_TASKS, 0) for s in spans)
    assert told == len(tasks_of(spans)) + sum(s.attributes.get(semconv.ROLLUP_COUNT, 0) for s in spans)


def test_a_run_within_its_bound_is_whole(bench: Callable[..., Bench]) -> None:
    """As many spans as allowed are all sent, and nothing is said of a bound."""
    b = bench(max_spans=100)
    with dag("run"):
        D.waitall([D.spawn(add, n, 1) for n in range(33)])
    spans = b.spans()
    assert len(spans) == 100 and not rolled(spans)
    assert not {semconv.DAG_KEPT, semconv.DAG_ROLLED_UP} & root_of(spans).attributes.keys()
    assert b.log.stats()["rolled_up"] == 0
    check(spans, b.log)


@pytest.mark.parametrize("detail", ["task", "phases", "scheduler"])
@pytest.mark.parametrize("count", [100, 1000])
def test_a_run_beyond_its_bound_is_rolled_up(bench: Callable[..., Bench], detail: str, count: int) -> None:
    """Never more spans than allowed; the ordinary tasks of a function are one span, and the root counts them."""
    b = bench(max_spans=60, detail=detail)
    with dag("run"):
        D.waitall([D.spawn(add, n, 1) for n in range(count)])
    spans = b.spans()
    assert len(spans) <= 60
    check_sums(spans, count)
    if detail != "scheduler":
        check(spans, b.log)


def check_sums(spans: list[ReadableSpan], count: int) -> None:
    """What a roll-up of `add` and the root say."""
    root, told = root_of(spans).attributes, rolled(spans)["add (rolled up)"].attributes
    assert root[semconv.DAG_TASKS] == count == root[semconv.DAG_KEPT] + root[semconv.DAG_ROLLED_UP]
    assert root[semconv.DAG_KEPT] == len(tasks_of(spans)) and root[semconv.DAG_EXCEEDED] is False
    assert told[semconv.ROLLUP_COUNT] == root[semconv.DAG_ROLLED_UP]
    names = semconv.ROLLUP_MIN, semconv.ROLLUP_P50, semconv.ROLLUP_P99, semconv.ROLLUP_MAX, semconv.ROLLUP_TOTAL
    values = [told[name] for name in names]
    assert values == sorted(values) and values[0] > 0
    assert told[semconv.ROLLUP_TOTAL] == pytest.approx(told[semconv.ROLLUP_MEAN] * told[semconv.ROLLUP_COUNT])
    assert told[semconv.FUNCTION_NAME].endswith("add")


def test_no_bound(bench: Callable[..., Bench]) -> None:
    """`None` bounds nothing."""
    b = bench(max_spans=None)
    with dag("run"):
        D.waitall([D.spawn(add, n, 1) for n in range(200)])
    assert len(b.spans()) == 601


def test_failures_win(bench: Callable[..., Bench]) -> None:
    """Failures and skips are sent however many they are, with what they refer to; the root tells."""
    b = bench(max_spans=20)
    with dag("run"):
        fine = [D.spawn(add, n, 1) for n in range(50)]
        failed = [D.spawn(boom, n) for n in fine[:30]]
        after = [D.spawn(add, task, 1) for task in failed]
        D.waitall(fine)
        for task in [*failed, *after]:
            with pytest.raises(D.DTaskFailedError):
                D.fetch(task)
    spans = b.spans()
    check(spans, b.log)
    states = Counter(s.attributes[semconv.TASK_RESULT] for s in tasks_of(spans))
    assert states["failure"] == states["skip"] == 30
    assert root_of(spans).attributes[semconv.DAG_EXCEEDED] is True


def test_the_chain_before_a_failure_is_kept(bench: Callable[..., Bench]) -> None:
    """A task that fails late links to the span of the very task that it waited for, and so does that one."""
    b = bench(max_spans=100)
    with dag("run"):
        D.waitall([D.spawn(add, n, 1) for n in range(200)])
        first = D.spawn(add, 1, 1)
        second = D.spawn(add, first, 1)
        failed = D.spawn(boom, second)
        with pytest.raises(D.DTaskFailedError):
            D.fetch(failed)
        D.waitall([D.spawn(add, n, 1) for n in range(200)])
    spans = b.spans()
    check(spans, b.log)
    by_id = {s.attributes[semconv.TASK_ID]: s for s in tasks_of(spans)}
    assert by_id[failed.id].links[0].context.span_id == id_of(by_id[second.id])
    assert by_id[second.id].links[0].context.span_id == id_of(by_id[first.id])


@pytest.mark.parametrize("fast", [True, False])
def test_the_slowest_of_each_function_are_kept(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many tasks those whose bodies took longest have spans of their own, however long ago they ended."""
    monkeypatch.setattr(budget, "CANDIDATES", 16)
    records = records_of(Program(["leaf"] * 60 + ["sized"] * 60, 1))
    tasks = [record[5] for record in records if record[0] == START]
    slow = {tasks[30]: 3, tasks[40]: 2, tasks[41]: 1, tasks[80]: 5}
    for n, record in enumerate(records):
        if record[0] in (RETURN, END) and record[4] in slow:
            by = slow[record[4]] * 10**9
            records[n] = (record[0], record[1] + by, record[2] + by, *record[3:])
    way = Way(records, fast, 16, max_spans=100)
    kept = {a.value.int_value for span in way.spans.values() for a in span.attributes if a.key == semconv.TASK_ID}
    assert slow.keys() <= kept and len(way.spans) <= 100


def test_candidates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long run no more tasks wait than the bound of candidates and one batch."""
    monkeypatch.setattr(budget, "CANDIDATES", 64)
    waiting: list[int] = []
    sweep = budget.Budgets.sweep
    monkeypatch.setattr(budget.Budgets, "sweep", lambda self, out: (sweep(self, out), waiting.append(self.waiting))[0])
    Way(records_of(Program(["leaf", "labelled", "join"] * 300, 1)), True, 32, max_spans=60)
    assert max(waiting) <= 3 * 64 + 9 and waiting[-1] > 0


def nest(n: int) -> int:
    """A body that spawns."""
    return D.fetch(D.spawn(add, n, 1))


def spawning_under_a_span(n: int) -> int:
    """A body that opens a span of the user's, in which it spawns."""
    with trace.get_tracer("user").start_as_current_span("inner"):
        return D.fetch(D.spawn(add, n, 1))


def failing_inside(n: int) -> int:
    """A body whose nested task fails."""
    task = D.spawn(boom, n)
    with pytest.raises(D.DTaskFailedError):
        D.fetch(task)
    return n


def test_nested_tasks(bench: Callable[..., Bench]) -> None:
    """A body that spawns is rolled up as any other; one whose nested task is kept is kept, too."""
    b = bench(max_spans=60)
    with dag("run"):
        for n in range(60):
            D.fetch(D.spawn(nest, n))
        D.fetch(D.spawn(failing_inside, 1))
    spans = b.spans()
    check(spans, b.log)
    assert rolled(spans)["nest (rolled up)"].attributes[semconv.ROLLUP_COUNT] > 40
    assert [s.name for s in tasks_of(spans)].count("failing_inside") == 1


def test_bodies_with_spans_of_the_users_are_kept(bench: Callable[..., Bench]) -> None:
    """A span that a body opened, or what it put on its own, has the body's span to be in."""
    b = bench(max_spans=60)
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = b.provider
    try:
        with dag("run"):
            D.waitall([D.spawn(add, n, 1) for n in range(100)])
            D.waitall([D.spawn(spawning_under_a_span, n) for n in range(5)])
            D.waitall([D.spawn(counting) for n in range(5)])
            D.waitall([D.spawn(add, n, 1) for n in range(100)])
        spans = b.spans()
    finally:
        trace._TRACER_PROVIDER = before
    known = {id_of(s) for s in spans}
    assert all(parent_of(s) in known for s in spans if s.parent is not None)
    names = Counter(s.name for s in spans)
    assert names["inner"] == names["spawning_under_a_span"] == names["counting"] == 5


def test_a_log_closed_in_the_middle_of_a_run() -> None:
    """Roll-ups are sent all the same, and the account is closed."""
    b = Bench(max_spans=60)
    block = dag("run")
    block.__enter__()
    D.waitall([D.spawn(add, n, 1) for n in range(200)])
    b.close()
    spans = list(b.exporter.get_finished_spans())
    block.__exit__(None, None, None)
    check(spans, b.log)
    assert "add (rolled up)" in rolled(spans)


def slow_add(n: int) -> int:
    """A body that takes longer than others."""
    return n + sum(range(500_000)) % 2


def test_a_flush_in_the_middle_sends_what_ended(bench: Callable[..., Bench]) -> None:
    """Within its bound a run's spans are sent by a flush though the run goes on; beyond it there are few more."""
    b = bench(max_spans=100)
    with dag("run"):
        D.waitall([D.spawn(add, n, 1) for n in range(30)])
        assert b.log.flush() and len(tasks_of(list(b.exporter.get_finished_spans()))) == 30
        D.waitall([D.spawn(add, n, 1) for n in range(300)])
        path = [D.spawn(add, 1, 1)]
        path += [D.spawn(slow_add, path[-1])]
        D.waitall(path)
    spans = b.spans()
    check(spans, b.log)
    assert len(spans) <= 125
    assert path[-1].id in [s.attributes[semconv.TASK_ID] for s in tasks_of(spans)]


def test_runs_at_once(bench: Callable[..., Bench]) -> None:
    """Each run has a bound of its own, implicit ones as well; links across runs lead to spans that are there."""
    b = bench(max_spans=60)
    with dag("one"):
        first = [D.spawn(add, n, 1) for n in range(100)]
        D.waitall(first)
        with dag("other"):
            D.waitall([D.spawn(add, task, 1) for task in first])
    D.waitall([D.spawn(add, n, 1) for n in range(100)])
    spans = b.spans()
    check(spans, b.log)
    assert len([s for s in spans if semconv.DAG_ROLLED_UP in s.attributes]) == 3


def test_tasks_under_a_span_of_the_users_outside_of_any_run(bench: Callable[..., Bench]) -> None:
    """They have a bound, too: what is beyond it is rolled up under that span, each time that it has been quiet."""
    b = bench(max_spans=60)
    with b.tracer.start_as_current_span("request"):
        D.waitall([D.spawn(add, n, 1) for n in range(200)])
        assert b.log.flush()
        D.waitall([D.spawn(add, n, 1) for n in range(200)])
    spans = b.spans()
    known = {id_of(s) for s in spans}
    assert len(known) == len(spans) <= 61
    assert all(parent_of(s) in known for s in spans if s.parent is not None)
    parts = [s for s in spans if s.name == "add (rolled up)"]
    assert len(parts) >= 2
    assert sum(s.attributes[semconv.ROLLUP_COUNT] for s in parts) + len(tasks_of(spans)) == 400
    stats = b.log.stats()
    assert stats["pending"] == 0 and stats["recorded"] == stats["exported"] + stats["rolled_up"]


def test_few_tasks_under_a_span_are_all_sent_in_a_while(bench: Callable[..., Bench]) -> None:
    """Those within the bound come without a flush when it has been quiet."""
    b = bench(max_spans=60)
    with b.tracer.start_as_current_span("request"):
        D.waitall([D.spawn(add, n, 1) for n in range(18)])
    eventually(lambda: len(tasks_of(list(b.exporter.get_finished_spans()))) == 18)


def test_many_functions(bench: Callable[..., Bench]) -> None:
    """Beyond an eighth of the bound roll-ups are one named other."""
    b = bench(max_spans=80)
    functions: list[Any] = []
    for n in range(50):
        exec(f"def f{n}(): return {n}", scope := {})
        functions.append(scope[f"f{n}"])
    with dag("run"):
        D.waitall([D.spawn(f) for f in functions * 5])
    spans = b.spans()
    check(spans, b.log)
    assert 1 < len(rolled(spans)) <= 11 and "other (rolled up)" in rolled(spans) and len(spans) <= 80


def test_redaction_is_asked_about_roll_ups(bench: Callable[..., Bench]) -> None:
    """Names of functions in roll-ups are texts as all others."""
    b = bench(max_spans=60, redact=lambda key, text: text.replace("add", "***"))
    with dag("run"):
        D.waitall([D.spawn(add, n, 1) for n in range(100)])
    spans = b.spans()
    assert "*** (rolled up)" in rolled(spans)
    assert rolled(spans)["*** (rolled up)"].attributes[semconv.FUNCTION_NAME].endswith(".***")


def test_metrics_stay_exact() -> None:
    """Every task counts, and the spans that were rolled up are an outcome of their own."""
    reader = InMemoryMetricReader()
    b = Bench(max_spans=60, metrics=True, meter_provider=MeterProvider([reader]))
    try:
        with dag("run"):
            D.waitall([D.spawn(add, n, 1) for n in range(100)])
        assert b.log.flush()
        stats = b.log.stats()
        found = {}
        data = reader.get_metrics_data()
        for metric in [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]:  # type: ignore[union-attr]
            found[metric.name] = {tuple(p.attributes.values()): p for p in metric.data.data_points}
    finally:
        b.close()
    assert sum(p.value for p in found[semconv.TASK_COUNT].values()) == 100
    assert sum(p.count for p in found[semconv.TASK_RUN].values()) == 100
    assert found[semconv.SPANS_BY_OUTCOME][("rolled_up",)].value == stats["rolled_up"] > 0
    assert found[semconv.SPANS_RECORDED][()].value == stats["recorded"]


def test_a_replay_is_rolled_up_the_same() -> None:
    """A saved run gives the spans that the log gave, with the same ids."""
    kept = T.LocalEventLog()
    b = Bench(max_spans=60)
    b.context.log_sink = T.TeeLog(b.log, kept)
    try:
        with dag("run"):
            D.waitall([D.spawn(add, D.spawn(leaf), 1) for n in range(100)])
        live = {id_of(s) for s in b.spans()}
        events = kept.get_logs(raw=True)
    finally:
        b.close()
    again = list(replay(events, max_spans=60))
    assert {s.span_id for s in again} == live
    assert len(list(replay(events))) == 601
    with pytest.raises(InvalidOptionError, match="max_spans"):
        replay(events, max_spans=0)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "20", 1 << 70, object()])
def test_what_is_no_bound(wrong: Any) -> None:
    """A bound is a whole number from 1 on, or None."""
    with pytest.raises(InvalidOptionError, match="max_spans"):
        OTelLog(max_spans=wrong)


def test_the_variable(monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Bench]) -> None:
    """OTEL_TIMESPAN_MAX_SPANS holds where the option is not given; what is wrong with it is said at once."""
    monkeypatch.setenv("OTEL_TIMESPAN_MAX_SPANS", "60")
    b = bench()
    with dag("run"):
        D.waitall([D.spawn(add, n, 1) for n in range(100)])
    assert len(b.spans()) <= 60
    monkeypatch.setenv("OTEL_TIMESPAN_MAX_SPANS", "None")
    assert OTelLog()._max_spans is None
    assert OTelLog(max_spans=7)._max_spans == 7
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("OTEL_TIMESPAN_MAX_SPANS", wrong)
        with pytest.raises(InvalidOptionError, match="OTEL_TIMESPAN_MAX_SPANS"):
            OTelLog()


def test_quantiles_are_right_to_two_percent() -> None:
    """Of any durations, however many, in few numbers."""
    choose = random.Random(1)
    runs = [int(10 ** choose.uniform(0, 12)) for _ in range(20_000)]
    one = rollup.RollUp(1, 0, "f", "f", {})
    for start in range(0, len(runs), 1000):
        some = runs[start : start + 1000]
        one.add([0] * len(some), some, [1] * len(some))
    for share in (0.01, 0.5, 0.99, 1.0):
        exact = sorted(runs)[max(0, int(share * len(runs)) - 1)]
        assert one.quantile(share) == pytest.approx(exact, rel=0.02, abs=1)
    assert len(one._buckets) < 2048


def test_nothing_is_kept_of_runs_that_are_over(bench: Callable[..., Bench]) -> None:
    """What a run was rolled up in goes with it, however many runs there are."""
    b = bench(max_spans=1)
    b.log._connect()
    b.log._lane.limits = NO_LIMITS  # the fast way, which packs nothing of such runs
    seen = []
    for name in ("one", "two", "three", "last"):
        with dag(name):
            D.waitall([D.spawn(add, n, 1) for n in range(100)])
            assert b.log.flush()
            seen += [weakref.ref(one) for one in b.log._mapper.budgets._open.values()]
        assert b.log.flush()
    gc.collect()
    assert sum(one() is not None for one in seen[:-1]) <= 1


def test_many_open_runs_hold_little_together(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that never end, each within its bound: what waits of all of them is bounded."""
    monkeypatch.setattr(budget, "WAITING", 300)
    b = bench(max_spans=100)
    blocks = [(contextvars.copy_context(), dag(f"run {n}")) for n in range(20)]
    for context, block in blocks:
        context.run(block.__enter__)
        context.run(lambda: D.waitall([D.spawn(add, n, 1) for n in range(30)]))
        assert eventually(lambda: b.log.stats()["pending"] <= 300)
    for context, block in blocks:
        context.run(block.__exit__, None, None, None)
    spans = b.spans()
    assert len(spans) == 20 * 91
    check(spans, b.log)
