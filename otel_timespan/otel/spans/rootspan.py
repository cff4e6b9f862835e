"""The root span of a run that is over: what it counted, what failed first, and where its time went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import DTaskFailedError
from .. import semconv
from . import failures, tasks
from .bodyspan import BodySpan
from .runs import Run
from .spandata import ERROR, UNSET, EventData, LinkData, SpanData
from .tasks import Done, SpanConfig

__all__ = ["root_span"]

MAX_PATH_LINKS = 32


def root_span(run: Run, config: SpanConfig, known: Callable[[int], Done | None]) -> SpanData:
    """The root of a run that is over: what it counted, the first failure, and what the user recorded on it.

    An exception that ended the block is recorded here, unless it is a task's: that is told on the task's span.
    """
    path, first, offset_ns = run.path, run.first_failure, config.offset_ns
    attributes: dict[str, Any] = {
        **run.root.attributes,
        semconv.DAG_TASKS: run.finished,
        semconv.DAG_FAILED: run.failed,
        semconv.DAG_CANCELLED: run.cancelled,
        semconv.DAG_SKIPPED: run.skipped,
        semconv.DAG_RETRIED: run.retried,
        semconv.DAG_MOVED: run.moved,
        semconv.DAG_PATH_LENGTH: path.length_ns / 1e9 if path is not None else 0.0,
        semconv.DAG_PATH_TASKS: path.tasks() if path is not None else (),
        semconv.DAG_PATH_TRUNCATED: path is not None and path.truncated,
        semconv.DAG_COMPLETE: run.whole,
        semconv.DAG_RESULT: run.result,
        **({semconv.DAG_WORKERS_LOST: run.workers_lost} if run.workers_lost else {}),
        **(run.budget.told(run.finished) if run.budget is not None else {}),
    }
    status, message = UNSET, ""
    events: tuple[EventData, ...] = ()
    end_ns = max(run.latest_ns, run.left_ns or 0, run.start_ns + 1)
    if first is not None:
        attributes[semconv.ERROR_TYPE] = first.text.type
        attributes[semconv.DAG_FAILURE_TASK] = first.task_id
        attributes[semconv.DAG_FAILURE_FUNCTION] = first.function
        attributes[semconv.DAG_FAILURE_MESSAGE] = first.text.message
        attributes[semconv.DAG_FAILURE_SPAN] = f"{first.span_id:016x}"
        status, message = ERROR, str(first)
    told = first is not None and isinstance(run.error, DTaskFailedError)
    if run.error is not None and run.block_failed and not told:
        text = failures.describe(run.error)
        attributes[semconv.ERROR_TYPE] = text.type
        status, message = ERROR, text.message
        recorded = isinstance(run.span, BodySpan) and run.span.has_recorded(run.error)
        events = () if recorded else (failures.exception_event(text, (run.left_ns or end_ns) + offset_ns),)
    links = _links(run, known)
    root, parent, kept = run.root, run.parent, links[: config.link_limit]
    span = SpanData(
        root.name, parent.trace_id, root.span_id, root.parent_id, run.start_ns + offset_ns, end_ns + offset_ns,
        attributes, kept, events, status, message, parent.trace_state, len(links) - len(kept),
        flags=parent.flags,
    )  # fmt: skip
    return run.span.merged(span) if isinstance(run.span, BodySpan) else span


def _links(run: Run, known: Callable[[int], Done | None]) -> tuple[LinkData, ...]:
    """To the first failure, then to the last tasks of the critical path, in their order."""
    links = []
    first = run.first_failure
    if first is not None:
        cause = {semconv.LINK_TYPE: "cause"}
        links.append(LinkData(first.trace_id, first.span_id, cause, first.trace_state, first.flags))
    on_path = {semconv.LINK_TYPE: "critical_path"}
    told: set[int] = set()  # several of them may be in one roll-up
    for task in reversed(run.path.latest(MAX_PATH_LINKS) if run.path is not None else ()):
        done = known(task)
        if done is None and run.budget is not None and run.budget.may_be_gone(task):
            continue
        parent, span_id = tasks.span_of(run.parent, task, done)
        if span_id not in told:
            links.append(LinkData(parent.trace_id, span_id, on_path, parent.trace_state, parent.flags))
        told.add(span_id)
    return tuple(links)
