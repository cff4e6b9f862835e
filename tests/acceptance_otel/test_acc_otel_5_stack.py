"""design/otel-model.md §4 and §5 with the real collector, Jaeger and Prometheus."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance_otel.acc_otel_support import last_json, run
from tests.backends import Stack, eventually
from tests.stack.running import environment, new_service

SECRET = "hunter2-on-the-wire"


def program(body: str) -> str:
    """A program that logs, with its account in the last line."""
    return f'''
import json
import otel_timespan as ts
ctx = ts.eager_context()
ctx.log_sink = log = ts.OTelLog()
def double(x, *more, **other): return 2 * x
def fail(*a): raise ValueError("no")
def seen(tasks):
    """Wait, and look at what failed: a failure that nobody fetches is told on stderr."""
    ts.waitall(tasks)
    for task in tasks:
        try: ts.fetch(task)
        except ts.DTaskFailedError: pass
{body}
assert log.flush(60)
print(json.dumps(log.stats()))
'''


def send(stack: Stack, body: str, protocol: str = "grpc") -> tuple[str, dict[str, Any]]:
    """Run it; its service and account."""
    service = new_service()
    done = run(program(body), environment(stack, service, protocol), timeout=120)
    assert done.stderr == ""
    return service, last_json(done)


@pytest.mark.stack
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_5_short_run_is_whole_in_jaeger(stack: Stack, protocol: str) -> None:
    """Every span of the account is in Jaeger, in one trace, and no argument value with it."""
    service, stats = send(stack, f"""
with ts.dag("short"):
    first = [ts.spawn(double, i, "{SECRET}", key="{SECRET}") for i in range(50)]
    bad = ts.spawn(fail, "{SECRET}")
    seen([ts.spawn(double, t) for t in first] + [bad, ts.spawn(double, bad)])
""", protocol)  # fmt: skip
    assert stats["exported"] == stats["recorded"]
    assert eventually(lambda: len(stack.span_ids(service)) == stats["recorded"])
    (trace,) = stack.traces(service)
    assert SECRET not in repr(trace)
    roots = [s for s in trace["spans"] if not [r for r in s["references"] if r["refType"] == "CHILD_OF"]]
    assert [s["operationName"] for s in roots] == ["dag short"]
    assert [s for s in trace["spans"] if s.get("warnings")] == []


@pytest.mark.stack
def test_5_short_run_shows_a_rise_in_prometheus(stack: Stack) -> None:
    """Counters and histograms of a short program: their values are right, increase() and rate() see all of it."""
    service, _ = send(stack, """
seen([ts.spawn(double, i) for i in range(40)] + [ts.spawn(fail) for _ in range(3)])
""")  # fmt: skip
    mine = f'{{job=~".*{service}.*"}}'

    def total(query: str) -> float:
        found = stack.query(f"sum({query})")
        return float(found[0]["value"][1]) if found else 0.0

    for series in ("timespan_task_count_total", "timespan_task_duration_seconds_count"):
        assert eventually(lambda series=series: total(f"{series}{mine}") == 43)
        value = eventually(lambda series=series: total(f"increase({series}{mine}[5m])"))
        assert value > 42, f"43 tasks ran; increase({series}) over five minutes says {value}"
        assert total(f"rate({series}{mine}[5m])") > 0
    assert total(f'increase(timespan_task_duration_seconds_bucket{{job=~".*{service}.*",le="+Inf"}}[5m])') > 42


@pytest.mark.stack
def test_5_steals_evictions_and_retries_in_prometheus(stack: Stack) -> None:
    """Each counter has the number of the events that the program itself saw."""
    service = new_service()
    said = last_json(run("""
import json, tempfile
import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.places.devices import PickleFileDevice
from otel_timespan.dagger.storage import RecencyAllocator
from otel_timespan.timespans import drain_all

def same(x): return x
def block(n): return bytes(50_000)
def flaky(left=[1, 2]):
    if left:
        raise KeyError(left.pop())
seen = []
driver = D.SimulatedDriver({1: 3}, lambda task: task._args[0])
with D.Context(driver=driver) as ctx:
    ctx.log_sink = ts.TeeLog(ts.OTelLog(clock=lambda: driver.now, detail="scheduler"), seen)
    pinned = D.Options(scope=D.UnionScope(D.ExactScope(D.ThreadProc(1, 1)), D.ExactScope(D.ThreadProc(1, 2))))
    ts.waitall([ts.spawn(same, pinned, seconds) for seconds in (100.0, *[1.0] * 10)])
with D.Context(threads=1) as ctx, tempfile.TemporaryDirectory() as folder:
    ctx.log_sink = ts.TeeLog(log := ts.OTelLog(detail="scheduler"), seen)
    device = RecencyAllocator(110_000, PickleFileDevice(folder), 1_000_000)
    blocks = [ts.spawn(block, ts.Options(storage=device), n) for n in range(5)]
    ts.waitall([*blocks, ts.spawn(flaky, ts.Options(retries=2))])
    assert log.flush(60)
    drain_all()
    ends = [e for e in seen if e.phase == "finish"]
    print(json.dumps({
        "steal": sum(e.category == "proc_steal_local" and e.timeline is not None for e in ends),
        "evict": sum(e.category == "evict" and e.timeline.in_memory for e in ends),
        "retry": sum(e.category == "add_thunk" and e.timeline.attempt > 1 for e in ends),
    }))
    del blocks
""", environment(stack, service), timeout=120))  # fmt: skip
    assert said["retry"] == 2 and said["evict"] >= 3 and said["steal"] >= 1

    def counted(what: str) -> float:
        found = stack.query(f'sum(timespan_{what}_count_total{{job=~".*{service}.*"}})')
        return float(found[0]["value"][1]) if found else -1.0

    for what in ("steal", "retry"):
        assert eventually(lambda what=what: counted(what) == said[what])
    assert eventually(lambda: counted("evict") >= said["evict"])
    spans = [span for trace in stack.traces(service) for span in trace["spans"]]
    assert {"evict", "steal", "storage_wait"} <= {span["operationName"] for span in spans}
    assert [span for span in spans if span.get("warnings")] == []


@pytest.mark.stack
def test_5_exemplars_lead_to_traces(stack: Stack) -> None:
    """An exemplar of timespan_task_duration_seconds has a trace id that Jaeger knows."""
    service, _ = send(stack, "ts.waitall([ts.spawn(double, i) for i in range(20)])")
    selector = f'timespan_task_duration_seconds_bucket{{job=~".*{service}.*"}}'
    found = eventually(lambda: stack.exemplars(selector))
    traces = {e["labels"]["trace_id"] for e in found}
    assert eventually(lambda: all(stack.trace(t) for t in traces))


@pytest.mark.stack
def test_5_burst_of_10000_tasks_in_jaeger(stack: Stack) -> None:
    """10,000 tasks through the real collector: every span id arrives."""
    service, stats = send(stack, """
for part in range(10):
    with ts.dag("burst"):
        ts.waitall([ts.spawn(double, i) for i in range(1000)])
""")  # fmt: skip
    assert stats["exported"] == stats["recorded"] == 10 * 3001
    assert eventually(lambda: len(stack.span_ids(service)) == stats["recorded"], 120)
