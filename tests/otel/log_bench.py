"""A log at a provider of its own, bodies, and what the tests of `OTelLog` ask of spans."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.otel import OTelLog, semconv
from otel_timespan.otel.spans.redact import _LOGGERS, LineFilter

WAITS = (
    semconv.WAIT_DEPENDENCY,
    semconv.WAIT_SCHEDULE,
    semconv.WAIT_QUEUE,
    semconv.WAIT_MOVE,
    semconv.RUN_WALL,
    semconv.WAIT_FINISH,
)


class Bench:
    """A log at a provider of its own, the scheduler's sink meanwhile."""

    def __init__(self, **options: Any) -> None:
        sampler = options.pop("sampler", None)
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("user")
        options.setdefault("metrics", False)
        self.log = OTelLog(tracer_provider=self.provider, **options)
        self.context = D.eager_context()
        self.context.log_sink = self.log

    def spans(self) -> list[ReadableSpan]:
        """All spans so far, users' own too."""
        assert self.log.flush(), self.log.stats()
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of a name."""
        return [span for span in self.spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span of a name."""
        (span,) = self.named(name)
        return span

    def close(self) -> None:
        """Switch logging off and close. A task that still ran would end in the log of the next test."""
        self.context.log_sink = T.NoOpLog()
        self.log.close()
        forget_line_filters()
        idle = threading.Thread(target=self.context.wait_idle, daemon=True)
        idle.start()
        idle.join(20)
        assert not idle.is_alive(), D.status()


def forget_line_filters() -> None:
    """Logs that redact leave theirs on our loggers until they are collected."""
    for name in _LOGGERS:
        for one in [one for one in logging.getLogger(name).filters if isinstance(one, LineFilter)]:
            one.remove()


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("it never came true")


def parent_of(span: ReadableSpan) -> int:
    """The parent's span id, 0 for a root."""
    return span.parent.span_id if span.parent is not None else 0


def id_of(span: ReadableSpan) -> int:
    """The span id."""
    return span.get_span_context().span_id


def tasks_of(spans: list[ReadableSpan]) -> list[ReadableSpan]:
    """The spans of tasks."""
    return [span for span in spans if semconv.TASK_ATTEMPT in (span.attributes or {})]


def add(a: int, b: int) -> int:
    """A body."""
    return a + b


def boom(text: str) -> None:
    """A body that raises."""
    raise ValueError(text)


def counting() -> int:
    """A body that records on its span and spawns."""
    trace.get_current_span().set_attribute("rows", 3)
    return D.fetch(D.spawn(add, 1, 2))


SCRIPT = """
import otel_timespan.dagger as D
from otel_timespan.otel import OTelLog
ctx = D.eager_context()
ctx.log_sink = log = OTelLog(exit_timeout_s=1)
def add(a, b):
    return a + b
print("result", D.fetch(D.spawn(add, D.spawn(add, 1, 2), 3)))
"""


def run_script(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these variables on top of a clean OTEL environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env={**clean, "PYTHONPATH": path, **env}, capture_output=True, text=True, timeout=60)
