"""Options, contexts, logs and pictures: names that are not there are errors."""

from typing import Any

from opentelemetry.trace import Span
from typing_extensions import assert_type

import otel_timespan as ts
from otel_timespan import dagger
from otel_timespan.otel import setup
from otel_timespan.timespans import Event

options = ts.Options(retries=3, scope=ts.scope(worker=1), retry_on=ValueError)
assert_type(options.retries, int | None)
assert_type(options.retry_on, tuple[type[Exception], ...] | None)
ts.Options(retires=3)  # error
ts.Options(retries="three")  # error
ts.Options(3)  # error
options.retires  # noqa: B018  # error

with ts.with_options(retries=3, task_queue=dagger.DefaultTaskQueue()):
    pass
ts.with_options(retires=3)  # error

context = ts.Context(threads=2, log_sink=ts.OTelLog(metrics=False))
with context:
    assert_type(ts.eager_context(), ts.Context)
ts.Context(thread=2)  # error
ts.OTelLog(endpont=1)  # error
ts.OTelLog("localhost")  # error

with ts.dag("nightly", team="blue") as span:
    assert_type(span, Span)
ts.dag()  # error
ts.dag(1)  # error
ts.dag("nightly", 1)  # error

log = ts.enable_logging(metrics=True, timeline=True)
assert_type(log, ts.MultiEventLog)
assert_type(ts.fetch_logs(), Any)
assert_type(ts.show_logs(ts.fetch_logs(), "summary"), str | None)
ts.enable_logging(metrix=True)  # error
ts.show_logs(ts.fetch_logs())  # error
ts.get_logs(Event)

ts.spwan  # noqa: B018  # error
dagger.spwan  # noqa: B018  # error
from otel_timespan import fecth  # noqa: E402, F401  # error
from otel_timespan.otel import OtelLog  # noqa: E402, F401  # error

setup()
