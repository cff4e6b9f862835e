"""`dag`: the block in which a program opens a run by itself, and which of the open logs it opens it in."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span, set_span_in_context

from ..errors import InvalidOptionError
from ..timespans import scheduler
from ..timespans.sink import log_sink
from ..timespans.warn import warn_once
from .spans.runs import Run, current_run

__all__ = ["dag", "tracing_logs"]

tracing_logs: list[weakref.ref[Any]] = []
"""The OTelLogs of this process that are open, oldest first."""


def _active_log() -> Any:
    """The OTelLog of the scheduler's present context, else the newest that no scheduler used, else None."""
    logs = [log for log in (ref() for ref in tracing_logs) if log is not None]
    if not logs:
        return None
    found = _find_log(log_sink(scheduler.current_context()), logs)
    if found is None:
        # A program's own; one that a scheduler used was switched off, or is another context's.
        found = next((log for log in reversed(logs) if not log.serves_scheduler), None)
    return found


def _find_log(sink: Any, logs: list[Any]) -> Any:
    if any(sink is log for log in logs):
        return sink
    for inner in (*getattr(sink, "sinks", ()), getattr(sink, "inner", None)):
        found = _find_log(inner, logs) if inner is not None else None
        if found is not None:
            return found
    return None


class dag:  # noqa: N801 - used like a function
    """`with dag("nightly", team="blue"):` one run with one root span, "dag nightly".

    Tasks spawned in the block are children of the root (or of spans opened in the block); the root is
    the current span there, a child of the caller's where there is one. It ends when the block was left
    and its tasks are done. What ends the block by an exception is recorded on it. Without an open
    `OTelLog` this does nothing. Raises `InvalidOptionError` for a name that is no text or is empty.
    """

    def __init__(self, name: str, /, **attributes: Any) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidOptionError(f"the name of a dag is a text that is not empty, not {name!r}")
        self._name, self._attributes = name, attributes
        self._entered: list[tuple[Any, Run | None, Any, Any]] = []

    def __enter__(self) -> Span:
        """The root span; `set_attribute` and the like work on it."""
        log = None
        try:
            log = _active_log()
            run = log.open_run(self._name, self._attributes) if log is not None else None
        except Exception:
            warn_once(dag, "a dag could not open its root; its tasks have none")
            run = None
        if run is None:
            self._entered.append((None, None, None, None))
            return INVALID_SPAN
        before, run_before = otel_context.get_current(), current_run.get()
        otel_context.attach(set_span_in_context(run.span, before))
        current_run.set(run)
        self._entered.append((log, run, before, run_before))
        span: Span = run.span
        return span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log, run, before, run_before = self._entered.pop()
        if run is None:
            return
        # Not detach: that logs an error when the block is left in another context than it was entered in.
        if get_current_span() is run.span:
            otel_context.attach(before)
        if current_run.get() is run:
            current_run.set(run_before)
        try:
            log.leave_run(run, error)
        except Exception:
            warn_once(dag, "a dag could not end its root")
