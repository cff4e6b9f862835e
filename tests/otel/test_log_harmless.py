"""`OTelLog` never harms the program: bad exporters and hooks, nobody there, forks, and wrong options told early."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel import OTelLog
from otel_timespan.otel.spans.mapping import SpanMapper
from tests.otel.log_bench import SCRIPT, Bench, add, run_script


class Raising(SpanExporter):
    """An exporter that always raises."""

    def export(self, spans: Any) -> SpanExportResult:
        """Raise."""
        raise OSError("disk on fire")

    def shutdown(self) -> None:
        """Raise."""
        raise OSError("still on fire")


def test_bad_exporter_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exporter that raises the program's result is the same and all spans are accounted for."""
    log = OTelLog(span_exporter=Raising(), metrics=False, exit_timeout_s=0.2)
    context = D.eager_context()
    context.log_sink = log
    try:
        assert D.fetch(D.spawn(add, 1, 2)) == 3
        log.close()
        stats = log.stats()
        assert stats["recorded"] == 4 == sum(stats["dropped"].values()) and stats["pending"] == 0
    finally:
        context.log_sink = T.NoOpLog()


def test_bad_hooks_do_no_harm(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails inside of the log stays there."""
    b = bench()

    def broken(*args: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(b.log._runs, "submit", broken)
    monkeypatch.setattr(SpanMapper, "end_run", broken)
    assert D.fetch(D.spawn(add, 1, 2)) == 3
    b.log.flush()
    assert b.log.stats()["dropped"] == {"error": 1}


def test_unreachable_endpoint() -> None:
    """With no collector there the program gives its result, ends in time, and warns, briefly."""
    done = run_script(SCRIPT, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0 and done.stdout == "result 6\n", done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 6 and "Traceback" not in done.stderr, done.stderr


def test_sdk_disabled() -> None:
    """OTEL_SDK_DISABLED: no spans, no metrics, no threads, no word."""
    script = SCRIPT + "\nimport threading\nprint(log.flush(), log.stats()['recorded'])\n"
    script += "print([t.name for t in threading.enumerate() if 'export' in t.name or 'Otel' in t.name])\n"
    done = run_script(script, OTEL_SDK_DISABLED="true")
    assert done.stdout == "result 6\nTrue 0\n[]\n" and done.stderr == "", done.stderr


def test_spans_written_at_exit() -> None:
    """A program that ends at once has sent its spans, root included."""
    done = run_script(SCRIPT, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"name": "add"') == 2 and '"name": "dag"' in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"detail": "all"}, "task, phases, scheduler"),
        ({"on_full": "panic"}, "block, drop, spill"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 1.5}, "max_bytes"),
        ({"root_quiet_s": -1}, "root_quiet_s"),
        ({"exit_timeout_s": "5"}, "exit_timeout_s"),
        ({"block_timeout_s": float("nan")}, "block_timeout_s"),
        ({"redact": "x"}, "redact"),
        ({"clock": 5}, "clock"),
        ({"metrics": "yes"}, "metrics"),
        ({"tracer_provider": object()}, "tracer_provider"),
        ({"meter_provider": object()}, "meter_provider"),
        ({"span_exporter": object()}, "span_exporter"),
        ({"consumers": [object()]}, "consumers"),
        ({"tracer_provider": TracerProvider(shutdown_on_exit=False), "span_exporter": Raising()}, "not both"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    """A wrong option is refused at construction, by name, with what is allowed."""
    with pytest.raises(InvalidOptionError, match=says):
        OTelLog(**options)


def test_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong OTEL_* value is refused at construction where it would be used."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(InvalidOptionError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        OTelLog()
    OTelLog(tracer_provider=TracerProvider(shutdown_on_exit=False), metrics=False).close()
    OTelLog(span_exporter=InMemorySpanExporter(), metrics=False).close()


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_TRACES_SAMPLER", "sometimes"), ("OTEL_SPAN_LINK_COUNT_LIMIT", "many")]
)
def test_wrong_variable_beside_an_exporter(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """With `span_exporter=` the sampler and the limits are still the variables': they are refused at construction."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidOptionError, match=variable):
        OTelLog(span_exporter=InMemorySpanExporter(), metrics=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_starts_empty() -> None:
    """A child that is forked in the middle of a run sends nothing of its parent's."""
    script = """
import os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_timespan import timespans as T
from otel_timespan.otel import OTelLog
exporter = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
class Program:
    log_sink = OTelLog(tracer_provider=provider, metrics=False)
T.timespan_start(Program, "outer", 1)
with T.span(Program, "before", 1):
    pass
pid = os.fork()
if not pid:
    with T.span(Program, "child", 1):
        pass
else:
    os.waitpid(pid, 0)
Program.log_sink.close()
print(sorted(s.name for s in exporter.get_finished_spans()), flush=True)
os._exit(0)
"""
    done = run_script(script)
    child, parent = done.stdout.splitlines()
    assert child == "['child']" and parent == "['before', 'outer']", done.stderr


def test_a_log_that_saw_nothing_sets_nothing_up() -> None:
    """Flushing and closing it finds nothing to send, and so does not ask where to."""
    log = OTelLog()
    assert log.flush(10)
    log.close()
    assert log._backend is None
