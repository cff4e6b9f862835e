"""How many series short runs leave in Prometheus, and what is on each."""

from __future__ import annotations

import time
from typing import Any

from otel_timespan.otel.export.promnames import label_name
from otel_timespan.otel.semconv import INSTRUMENTS
from tests.backends import Stack, eventually, get_json
from tests.stack.running import environment, finished, new_service

RUN = """
import os, sys
import otel_timespan as ts
from otel_timespan import dagger as D
def load(number): return number
with D.Context(threads=1) as ctx:
    ctx.log_sink = log = ts.OTelLog()
    ts.waitall([ts.spawn(load, number) for number in range(int(sys.argv[1]))])
    log.close(60)
print(os.getpid())
"""
COMMON = {"__name__", "job", "instance", "le"}
SCOPE = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}


def run(stack: Stack, service: str, resource: str = "", tasks: int = 5) -> None:
    """Run it, until Prometheus has all that it left at the collector."""
    env = {**environment(stack, service), "OTEL_RESOURCE_ATTRIBUTES": resource}
    pid = finished(["-c", RUN, str(tasks)], env).strip()
    query = f'timestamp(target_info{{job="{service}", process_pid="{pid}"}}) > {time.time()}'
    eventually(lambda: stack.query(query))


def labels(stack: Stack, service: str, metric: str) -> list[dict[str, Any]]:
    """The labels of each series of a service whose name fits."""
    match = f'{{job="{service}", __name__=~"{metric}"}}'
    found: list[dict[str, Any]] = get_json(f"{stack.prometheus}/api/v1/series", **{"match[]": match})["data"]
    return found


def test_processes_are_described_once(stack: Stack) -> None:
    """A series has service, instance, scope and its own attributes; target_info has the rest, once a process."""
    service = new_service()
    for _ in range(3):
        run(stack, service)
    series, processes = (labels(stack, service, metric) for metric in ("timespan_.+", "target_info"))
    own = {label_name(key) for instrument in INSTRUMENTS for key in instrument.attributes}
    assert {"job", "instance"} < {label for one in series for label in one} - SCOPE - own <= COMMON
    assert len(processes) == len({one["process_pid"] for one in processes}) == 3
    assert all({"host_arch", "host_name", "process_runtime_version"} <= one.keys() for one in processes)
    joined = f'timespan_events_total{{job="{service}"}} * on (job, instance) group_left (host_name) target_info'
    assert {one["metric"]["host_name"] for one in stack.query(joined)} == {one["host_name"] for one in processes}


def test_runs_of_a_named_instance_share_their_series(stack: Stack) -> None:
    """More runs of an instance with a name make no series anew, each run counts, and what is joined stays one."""
    service, resource = new_service(), "service.instance.id=nightly"
    run(stack, service, resource)
    first = labels(stack, service, "timespan_.+")
    # Fewer each time: a counter that comes back as it was is taken for the same one where Prometheus asked meanwhile.
    for tasks in (4, 3):
        run(stack, service, resource, tasks)
    assert len(labels(stack, service, "target_info")) == 3
    assert len(labels(stack, service, "timespan_.+")) == len(first) > 50
    (found,) = stack.query(f'sum(increase(timespan_task_count_total{{job="{service}"}}[10m]))')
    assert float(found["value"][1]) > 11
    joined = f'timespan_events_total{{job="{service}"}} * on (job, instance) group_left (host_name) target_info'
    assert len(stack.query(joined)) == 1


HUNDRED = """
from opentelemetry.sdk.metrics import MeterProvider
import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.otel.export.metrics import OtlpMetricExporter, OtlpMetricReader
from otel_timespan.otel.export.resources import default_resource
from otel_timespan.otel.export.settings import read_settings
def load(number): return number
def run(number):
    reader = OtlpMetricReader(OtlpMetricExporter(read_settings("metrics")), export_interval_millis=3_600_000)
    meters = MeterProvider([reader], resource=default_resource({"process.pid": number}), shutdown_on_exit=False)
    with D.Context(threads=1) as ctx:
        ctx.log_sink = log = ts.OTelLog(meter_provider=meters)
        ts.waitall([ts.spawn(load, number) for number in range(3)])
        log.close(60)
    meters.shutdown()
for number in range(100):
    run(number)
"""


def test_a_hundred_runs_have_the_series_of_one(stack: Stack) -> None:
    """A hundred short runs of an instance with a name, each as if in a process of its own, make the series of one."""
    service, one = new_service(), new_service()
    for name, program in ((one, HUNDRED.replace("range(100)", "range(1)")), (service, HUNDRED)):
        env = {**environment(stack, name), "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=nightly"}
        finished(["-c", program], env)
    eventually(lambda: labels(stack, service, "target_info")[-1:] and labels(stack, one, "target_info"))

    def series(name: str) -> int:
        return len(labels(stack, name, "timespan_.+"))

    eventually(lambda: series(one) > 50 and series(service) >= series(one))
    assert series(service) == series(one)
