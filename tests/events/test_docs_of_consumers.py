"""docs/consumers.md: what it says is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import otel_timespan.dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T

TEXT = (Path(__file__).parents[2] / "docs" / "consumers.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_every_name_is_documented() -> None:
    """Each consumer, aggregator and record of `events` is named in the page."""
    assert [name for name in E.__all__ if name not in TEXT and name != "ProfileHandle"] == []


def test_every_keyword_has_its_stream_in_the_table() -> None:
    """The table's streams are what enable_logging can make."""
    documented = set(re.findall(r"^\| `\w+(?:\(\w+\))?` \| `(\w+)` \|", TEXT, re.MULTILINE))
    keywords = set(inspect.signature(D.enable_logging).parameters) - {"all_task_deps", "metrics", "max_events"}
    assert documented == keywords | {"core", "id", "wsat", "loadavg", "bytes", "mem", "esat", "psat"}


def test_the_first_example_runs() -> None:
    """As printed."""
    try:
        exec(EXAMPLES[0], {})
    finally:
        D.disable_logging()


def test_the_consumer_of_the_page_works() -> None:
    """The longest compute, carried from event to event."""
    scope: dict[str, type] = {}
    exec(EXAMPLES[1], scope)
    log = T.MultiEventLog()
    log["slowest"] = scope["Slowest"]()
    for phase, category, t in (
        ("start", "x", 0),
        ("start", "compute", 1),
        ("finish", "compute", 8),
        ("finish", "x", 9),
    ):
        log.write_event(T.Event(phase, category, 1, None, t))
    assert T.get_logs(log)[1]["slowest"] == [0, 0, 7, 7]


def test_a_program_of_its_own_may_use_all_consumers(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Spans around a program's own work: names, saturation and a profile, without the scheduler."""
    log = T.MultiEventLog()
    log["esat"], log["wsat"], log["profile"] = E.EventSaturation(), E.WorkerSaturation(), E.ProfileMetrics(tmp_path)
    log["gc"], log["core"] = E.GCStats(), E.CoreMetrics()
    ctx = SimpleNamespace(log_sink=log, profile=lambda category, id, timeline: category == "compute")
    with T.span(ctx, "job", "outer"), T.span(ctx, "compute", T.EventId(n=1)):
        from otel_timespan.timespans import profiler

        while not profiler._samples:
            sum(range(1000))
    streams = T.get_logs(log)[1]
    assert [row.category for row in streams["core"]] == ["job", "compute", "compute", "job"]
    assert streams["esat"] == [{"job": 1}, {"job": 1, "compute": 1}, {"job": 1}, {}]
    assert streams["wsat"] == [0, 1, 0, 0]
    assert Path(str(streams["profile"][2])).read_text().startswith("<svg")
    assert streams["gc"][:2] == [None, None] and None not in streams["gc"][2:]
    assert caplog.records == []


def test_a_run_of_the_scheduler_survives_a_file(tmp_path: Path) -> None:
    """The events of two tasks, written and read: same ids, phases and times, with functions and processors."""
    raw: list[T.Event] = []
    path = tmp_path / "run.jsonl"
    context = D.eager_context()
    with T.IOLog(path) as log:
        context.log_sink = T.TeeLog(raw, log)
        try:
            D.fetch(D.spawn(sum, D.spawn(sorted, [3, 1, 2])))
        finally:
            D.disable_logging()
    T.drain_all()  # what finalizers said waits for the drainer
    read = T.read_events(path)
    key = [(e.phase, e.category, e.timestamp, e.worker) for e in raw]
    assert sorted((e.phase, e.category, e.timestamp, e.worker) for e in read) == sorted(key)
    submitted = [e.timeline for e in read if e.category == "add_thunk" and e.phase == "start"]
    assert [t.f.__name__ for t in submitted] == ["sorted", "sum"]
    assert submitted[1].deps == ((1, submitted[0].uid),)
    log2 = T.MultiEventLog()
    log2["names"], log2["psat"] = E.TaskNames(), E.ProcessorSaturation()
    for event in read:
        log2.write_event(event)
    streams = T.get_logs(log2)[1]
    assert len([n for n in streams["names"] if n]) == 2 and streams["psat"][-1] == []
