"""`OTelLog.stats()`: what was recorded once stays recorded, whatever becomes of it."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import DTaskFailedError
from otel_timespan.otel import OTelLog, dag
from tests.backends import eventually
from tests.otel.log_bench import Bench, add, boom, counting, run_script


def program(b: Bench) -> None:
    """What makes accounts hard: bodies that outlast their tasks, no run around, ends without a start, retries."""
    open, begun = threading.Event(), threading.Event()
    with dag("run"):
        cancelled = D.spawn(lambda: (begun.set(), open.wait(60)))
        assert begun.wait(60)
        cancelled.cancel()
        with pytest.raises(DTaskFailedError):
            D.fetch(cancelled)
        for n in range(3):
            D.wait(D.spawn.opts(retries=1)(boom, "again"))
            D.fetch(D.spawn(add, D.spawn(add, n, 1), D.tochunk(2)))
        b.log.flush()
        open.set()
    with b.tracer.start_as_current_span("the user's"):
        D.fetch(D.spawn(counting))
    for n in range(3):
        b.log.write_event(T.Event("finish", "never began", n, None, n + 1))
        b.log.write_event(T.Event("start", "a program's", n, None, n + 1))
        b.log.write_event(T.Event("finish", "a program's", n, None, n + 2))
    b.context.wait_idle()
    b.log.flush()
    D.fetch(D.spawn(list, [1]))  # what it held goes when no run is open any more


@pytest.mark.parametrize("keep", ["all", "interesting"])
@pytest.mark.parametrize("max_spans", [5, None])
@pytest.mark.parametrize("detail", ["task", "phases", "scheduler"])
def test_what_was_recorded_stays(
    detail: str, max_spans: int | None, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each record is looked at: nothing of what waited is less afterwards."""
    process, fell = OTelLog._process, []  # type: tuple[Any, list[Any]]

    def one_by_one(self: OTelLog, records: list[Any]) -> None:
        for number, record in enumerate(records):
            left = records[number:]
            before = self._account()["recorded"] + self._unmapped.surely(left, self._unmapped.begun(left))
            process(self, [record])
            left = records[number + 1 :]
            after = self._account()["recorded"] + self._unmapped.surely(left, self._unmapped.begun(left))
            if after < before:
                fell.append((before, after, record))

    monkeypatch.setattr(OTelLog, "_process", one_by_one)
    b = Bench(detail=detail, max_spans=max_spans, keep=keep)
    try:
        program(b)
        assert b.log.flush() and eventually(lambda: b.log.stats()["pending"] == 0)
    finally:
        b.close()
    assert fell == []


DEAD = """
import json, logging, sys
import otel_timespan as ts
from opentelemetry import trace

def logged(count):
    log = ts.OTelLog(metrics=False, exit_timeout_s=1.0)
    ts.eager_context().log_sink = log
    for task in [ts.spawn(abs, n) for n in range(count)]:
        ts.fetch(task)
    ts.eager_context().log_sink = ts.NoOpLog()
    return log

first, second = logged(20), logged(30)
first.close()
told = [first.stats(), second.stats()]
second.close()
print(json.dumps([*told, second.stats()]))
"""


def test_a_closed_log_leaves_nothing_pending_where_no_collector_is() -> None:
    """Each span is dropped, for the shutdown, of that log alone; the queue, which is the program's, goes on."""
    done = run_script(DEAD, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    first, open_still, second = json.loads(done.stdout)
    assert first["pending"] == second["pending"] == 0, done.stderr
    assert first["dropped"] == {"shutdown": 61} and second["dropped"] == {"shutdown": 91}
    assert open_still["pending"] == open_still["recorded"] and not open_still["dropped"]
    assert "61 spans are lost" in done.stderr and "91 spans are lost" in done.stderr
