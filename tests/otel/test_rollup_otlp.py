"""Bounded and held runs as OTLP: the fast way from records to bytes, to a receiver, with the account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan.otel import semconv
from tests.acceptance_otel.acc_otel_support import Ear, last_json, pairs, run

PROGRAM = """
import json
import otel_timespan as ts

def add(a, b):
    return a + b

def nest(n):
    return ts.fetch(ts.spawn(add, n, 1))

def bad(n):
    raise ValueError(n)

log = ts.OTelLog(metrics=False, **OPTIONS)
with ts.Context(threads=2, log_sink=log) as context:
    for count, fails in RUNS:
        with ts.dag(f"run {count}"):
            tasks = [ts.spawn(add, ts.spawn(nest, n), n) for n in range(count)]
            tasks += [ts.spawn(bad, tasks[-1]) for _ in range(fails)]
            for task in tasks:
                task.wait()
        if FLUSHES:
            assert log.flush()
    context.log_sink = ts.NoOpLog()
log.close()
print(json.dumps(log.stats()))
"""


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A collector of our own."""
    one = Ear()
    yield one
    one.close()


def stats_of(ear: Ear, runs: list[tuple[int, int]], *, flushes: bool = True, **options: Any) -> dict[str, Any]:
    """The account of these runs: (how many times three tasks, how many failures)."""
    values = {"OPTIONS": options, "RUNS": runs, "FLUSHES": flushes}
    text = PROGRAM
    for name, value in values.items():
        text = text.replace(name, repr(value))
    stats: dict[str, Any] = last_json(run(text, ear.env()))
    parts = [stats[key] for key in ("exported", "sampled", "rolled_up", "pending")]
    assert stats["recorded"] == sum(parts) and stats["pending"] == 0 and stats["dropped"] == {}
    assert stats["exported"] == len(ear.spans())
    return stats


def check(ear: Ear) -> None:
    """Each span once, parents and links lead to spans that came."""
    known = {span.span_id for span in ear.spans()}
    assert len(known) == len(ear.spans())
    for span in ear.spans():
        assert not span.parent_span_id or span.parent_span_id in known, span.name
        assert all(link.span_id in known for link in span.links), span.name


@pytest.mark.parametrize("flushes", [True, False])
def test_a_run_within_its_bound_is_whole(ear: Ear, flushes: bool) -> None:
    """Runs that fill their bound to the last span: those that waited come as well."""
    stats = stats_of(ear, [(100, 0), (99, 1), (10, 0)], flushes=flushes, max_spans=901)
    assert stats["exported"] == 901 + 99 * 9 + 4 + 91 and stats["rolled_up"] == 0
    check(ear)


def test_a_run_beyond_its_bound_is_rolled_up(ear: Ear) -> None:
    """The same of one span more: roll-ups, the failure with the tasks before it, and no more than allowed."""
    stats = stats_of(ear, [(1000, 1)], max_spans=900)
    spans = ear.spans()
    check(ear)
    assert len(spans) <= 900 and stats["recorded"] == 9004 + 2  # of what was rolled up two spans were made
    told = {span.name: pairs(span.attributes) for span in spans if semconv.ROLLUP_COUNT in pairs(span.attributes)}
    (root,) = [pairs(span.attributes) for span in spans if not span.parent_span_id]
    assert told.keys() == {"add (rolled up)", "nest (rolled up)"}
    assert sum(one[semconv.ROLLUP_COUNT] for one in told.values()) == root[semconv.DAG_ROLLED_UP]
    assert root[semconv.DAG_KEPT] + root[semconv.DAG_ROLLED_UP] == root[semconv.DAG_TASKS] == 3001
    names = Counter(span.name for span in spans)
    assert names["bad"] == 1 and names["add"] + names["nest"] + 1 == root[semconv.DAG_KEPT]
    (failed,) = [span for span in spans if span.name == "bad"]
    (before,) = [span for span in spans if span.span_id == failed.links[0].span_id]
    assert before.name == "add"


def test_of_held_runs_those_that_failed_come(ear: Ear) -> None:
    """What is held as bytes is sent whole, or not at all."""
    stats = stats_of(ear, [(50, 0), (60, 1), (50, 0), (400, 0)], keep="interesting", max_spans=901)
    check(ear)
    assert {span.name for span in ear.spans() if not span.parent_span_id} == {"dag run 60"}
    assert stats["exported"] == 60 * 9 + 4 and stats["sampled"] == 2 * 451 + 3601
