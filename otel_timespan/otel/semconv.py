"""The one catalogue of names: every span, attribute and instrument that the bridge emits.

Code takes its names from here; docs/otel-catalogue.md is `catalogue_markdown()`, and a test compares the
two. Names are a contract: add to them, never rename.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ATTRIBUTES", "BOUNDARIES_S", "INSTRUMENTS", "SPANS", "Attribute", "Instrument", "SpanName", "catalogue"]

SCOPE_NAME = "otel_timespan"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"


class SpanName(NamedTuple):
    """A kind of span: its name (`<function>` and `<name>` are filled in), when it is made, what it covers."""

    name: str
    detail: str
    description: str


class Attribute(NamedTuple):
    """An attribute: its key, type, unit ("" where there is none), where it appears, and what it says."""

    key: str
    type: str
    unit: str
    on: str
    description: str


class Instrument(NamedTuple):
    """An instrument: kind is counter, updown, gauge or histogram; `attributes` are keys of `ATTRIBUTES`.

    `zero` holds the values of the first attribute that are reported as 0 from the beginning, so that even
    the first rise shows as a rate; `None` for an instrument that starts without any series.
    """

    name: str
    kind: str
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    zero: tuple[str, ...] | None = None


DAG = "dag"
TASK_SPAN = "<function>"
SCHEDULE = "schedule"
QUEUE = "queue"
MOVE = "move"
COMPUTE = "compute"
FINISH = "finish"

SPANS = (
    SpanName("dag", "task", "one run that the log opened by itself, from busy to idle"),
    SpanName("dag <name>", "task", "one run opened with dag(name)"),
    SpanName(TASK_SPAN, "task", "a task, from submission to finish"),
    SpanName(
        "<function> (rolled up)",
        "task",
        "of a run with more than max_spans spans, the ordinary tasks of a function: first submission to last finish",
    ),
    SpanName("other (rolled up)", "task", "the same of functions beyond the first 500 (max_spans / 8 if fewer)"),
    SpanName(
        SCHEDULE,
        "scheduler",
        "ready until placed, by waiting for a worker or a place of a limit too; one more a placement anew",
    ),
    SpanName(QUEUE, "phases", "ready and placed, until a processor took it"),
    SpanName(MOVE, "phases", "one argument that was moved (a chunk, shard or file, or by a custom move)"),
    SpanName(COMPUTE, "phases", "the body and packing its result; current while the body runs"),
    SpanName(FINISH, "scheduler", "from the end of the body until the result was handed on"),
    SpanName("steal", "scheduler", "one attempt to take a task from another processor's queue"),
    SpanName(
        "evict", "scheduler", "a chunk's data left its worker's memory: the last reference died, or it was spilled"
    ),
    SpanName(
        "storage_wait", "scheduler", "a body or fetch waited for a storage device: for room, or to read data back"
    ),
    SpanName("<category>", "scheduler", "any other timespan of the scheduler, while a run is open, under its root"),
    SpanName("<category>", "task", "a timespan of a program that uses the log by itself"),
)

TASK_ID = "timespan.task.id"
TASK_NAME = "timespan.task.name"
TASK_STATE = "timespan.task.state"
TASK_RESULT = "timespan.task.result"
TASK_ATTEMPT = "timespan.task.attempt"
TASK_SPAWNED_BY = "timespan.task.spawned_by"
WORKER_ID = "timespan.worker.id"
PROCESSOR = "timespan.processor"
RESULT_SIZE = "timespan.result.size"
WAIT_DEPENDENCY = "timespan.wait.dependency"
WAIT_SCHEDULE = "timespan.wait.schedule"
WAIT_QUEUE = "timespan.wait.queue"
WAIT_MOVE = "timespan.wait.move"
WAIT_FINISH = "timespan.wait.finish"
WAIT_PHASE = "timespan.wait.phase"
RUN_WALL = "timespan.run.wall"
RUN_CPU = "timespan.run.cpu"
MOVE_POSITION = "timespan.move.position"
MOVE_SIZE = "timespan.move.size"
MOVE_KIND = "timespan.move.kind"
MOVE_SOURCE = "timespan.move.source"
MOVE_DESTINATION = "timespan.move.destination"
LINK_TYPE = "timespan.link.type"
LINK_POSITION = "timespan.link.position"
LINK_BLOCKING = "timespan.link.blocking"
RETRY_REASON = "timespan.retry.reason"
EVENT_CATEGORY = "timespan.event.category"
EVENT_ID = "timespan.event.id"
EVICT_REASON = "timespan.evict.reason"
STEAL_TASK = "timespan.steal.task"
STEAL_SOURCE = "timespan.steal.source"
STORAGE_DEVICE = "timespan.storage.device"
DAG_NAME = "timespan.dag.name"
DAG_TASKS = "timespan.dag.tasks"
DAG_FAILED = "timespan.dag.tasks.failed"
DAG_CANCELLED = "timespan.dag.tasks.cancelled"
DAG_SKIPPED = "timespan.dag.tasks.skipped"
DAG_RETRIED = "timespan.dag.tasks.retried"
DAG_MOVED = "timespan.dag.moved"
DAG_WORKERS_LOST = "timespan.dag.workers_lost"
DAG_PATH_LENGTH = "timespan.dag.critical_path.length"
DAG_PATH_TASKS = "timespan.dag.critical_path.tasks"
DAG_PATH_TRUNCATED = "timespan.dag.critical_path.truncated"
DAG_COMPLETE = "timespan.dag.complete"
DAG_RESULT = "timespan.dag.result"
DAG_FAILURE_TASK = "timespan.dag.failure.task"
DAG_FAILURE_FUNCTION = "timespan.dag.failure.function"
DAG_FAILURE_MESSAGE = "timespan.dag.failure.message"
DAG_FAILURE_SPAN = "timespan.dag.failure.span_id"
DAG_KEPT = "timespan.dag.tasks.kept"
DAG_ROLLED_UP = "timespan.dag.tasks.rolled_up"
DAG_KEPT_FOR = "timespan.dag.kept_for"
DAG_EXCEEDED = "timespan.dag.max_spans.exceeded"
ROLLUP_COUNT = "timespan.rollup.count"
ROLLUP_MIN = "timespan.rollup.min"
ROLLUP_MEAN = "timespan.rollup.mean"
ROLLUP_P50 = "timespan.rollup.p50"
ROLLUP_P99 = "timespan.rollup.p99"
ROLLUP_MAX = "timespan.rollup.max"
ROLLUP_TOTAL = "timespan.rollup.total"
DROP_REASON = "timespan.drop.reason"
SPAN_OUTCOME = "timespan.span.outcome"
FUNCTION_NAME = "code.function.name"
FILE_PATH = "code.file.path"
LINE_NUMBER = "code.line.number"
THREAD_ID = "thread.id"
THREAD_NAME = "thread.name"
PROCESS_ID = "process.pid"
HOST_NAME = "host.name"
RUNTIME_VERSION = "process.runtime.version"
ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"

ATTRIBUTES = (
    Attribute(TASK_ID, "int", "", "task", "the scheduler's number of the task"),
    Attribute(TASK_NAME, "string", "", "task", "the label given with the option name"),
    Attribute(
        TASK_STATE,
        "string",
        "",
        "task, compute; metrics",
        "finished, failed, skipped, cancelled, retried, abandoned; on metrics waiting, queued, moving, running",
    ),
    Attribute(
        TASK_RESULT, "string", "", "task; metrics", "success, failure, cancellation, skip; absent on a replaced attempt"
    ),
    Attribute(TASK_ATTEMPT, "int", "", "task", "1 for the first try"),
    Attribute(TASK_SPAWNED_BY, "int", "", "task", "the task whose body spawned it; absent outside of bodies"),
    Attribute(WORKER_ID, "int", "", "task, compute, scheduler spans; metrics", "the worker"),
    Attribute(
        PROCESSOR,
        "string",
        "",
        "task, compute, scheduler spans; metrics",
        "the processor that ran the body, or that the scheduler's timespan is about, as text, cut at 256",
    ),
    Attribute(RESULT_SIZE, "int", "By", "task", "estimated size of the result; absent where unknown"),
    Attribute(
        WAIT_DEPENDENCY,
        "double",
        "s",
        "task",
        "submitted until all upstreams had finished",
    ),
    Attribute(
        WAIT_SCHEDULE,
        "double",
        "s",
        "task",
        "ready until placed (finally, where it was placed again): waits for a worker or a place of a limit, placement",
    ),
    Attribute(WAIT_QUEUE, "double", "s", "task", "placed until a processor took it"),
    Attribute(WAIT_MOVE, "double", "s", "task", "taken until the body began; all moves together"),
    Attribute(WAIT_PHASE, "string", "", "metrics", "dependency, schedule, queue or move"),
    Attribute(RUN_WALL, "double", "s", "task", "the body and packing its result, blocking inside it included"),
    Attribute(WAIT_FINISH, "double", "s", "task", "body ended until the result was handed on"),
    Attribute(RUN_CPU, "double", "s", "task, compute", "CPU time of the body's thread; absent for coroutines"),
    Attribute(MOVE_POSITION, "string", "", "move", "position of the argument: 0 the function, 1.. or a keyword"),
    Attribute(MOVE_SIZE, "int", "By", "move", "size of what was moved; absent where unknown"),
    Attribute(MOVE_KIND, "string", "", "move", "chunk, shard, file or custom"),
    Attribute(MOVE_SOURCE, "int", "", "move; metrics", "the worker that it came from"),
    Attribute(MOVE_DESTINATION, "int", "", "move; metrics", "the worker that it went to"),
    Attribute(LINK_TYPE, "string", "", "links", "dependency, retry, cause, critical_path (last 32; decisions.md)"),
    Attribute(LINK_POSITION, "string", "", "links", "the argument that the upstream is; absent for a syncdep"),
    Attribute(LINK_BLOCKING, "boolean", "", "links", "true on the dependency that finished last"),
    Attribute(RETRY_REASON, "string", "", "links", "on retry: failure (the body raised) or worker_lost"),
    Attribute(EVENT_CATEGORY, "string", "", "spans named by a category; metrics", "the category of the events"),
    Attribute(EVENT_ID, "string", "", "spans named by a category", "the id of the timespan as text, cut at 256"),
    Attribute(EVICT_REASON, "string", "", "evict", "released or spilled"),
    Attribute(STEAL_TASK, "int", "", "steal", "the task that was taken; absent where there was nothing to take"),
    Attribute(STEAL_SOURCE, "string", "", "steal", "the processor from whose queue it was taken"),
    Attribute(STORAGE_DEVICE, "string", "", "storage_wait", "type of the storage device that was waited for"),
    Attribute(DAG_NAME, "string", "", "dag", "the name given to dag()"),
    Attribute(DAG_TASKS, "int", "{task}", "dag", "tasks in all"),
    Attribute(DAG_FAILED, "int", "{task}", "dag", "tasks whose body or arguments raised"),
    Attribute(DAG_CANCELLED, "int", "{task}", "dag", "tasks that were cancelled, or dropped when the program left"),
    Attribute(DAG_SKIPPED, "int", "{task}", "dag", "tasks that never ran because an upstream failed or was cancelled"),
    Attribute(DAG_RETRIED, "int", "{task}", "dag", "attempts that were replaced by another one"),
    Attribute(DAG_MOVED, "int", "By", "dag", "bytes moved for arguments"),
    Attribute(DAG_WORKERS_LOST, "int", "", "dag", "workers that went away meanwhile; absent for none"),
    Attribute(DAG_PATH_LENGTH, "double", "s", "dag", "longest path over dependencies, by moves and compute"),
    Attribute(DAG_PATH_TASKS, "int[]", "", "dag", "the task ids of that path, in order; at most its last 1000"),
    Attribute(DAG_PATH_TRUNCATED, "boolean", "", "dag", "true when the list of the path is not whole"),
    Attribute(DAG_COMPLETE, "boolean", "", "dag", "false when spans were lost while the run was open"),
    Attribute(DAG_KEPT, "int", "{task}", "dag", "of a run beyond max_spans: tasks with spans of their own"),
    Attribute(DAG_ROLLED_UP, "int", "{task}", "dag", "of a run beyond max_spans: tasks that were rolled up"),
    Attribute(
        DAG_EXCEEDED, "boolean", "", "dag", "true where the tasks that are kept in any case needed more than max_spans"
    ),
    Attribute(
        DAG_KEPT_FOR, "string", "", "dag", "with keep=\"interesting\": failure, slow, slower (than its like) or full"
    ),
    Attribute(DAG_RESULT, "string", "", "dag; metrics", "success, failure, or cancellation of what its block did"),
    Attribute(DAG_FAILURE_TASK, "int", "", "dag", "the task that failed first, of which error.type is; absent without"),
    Attribute(DAG_FAILURE_FUNCTION, "string", "", "dag", "its function, qualified"),
    Attribute(DAG_FAILURE_MESSAGE, "string", "", "dag", "the text of its exception, cut at 4096 characters"),
    Attribute(DAG_FAILURE_SPAN, "string", "", "dag", "the id of its span, in hexadecimal digits"),
    Attribute(ROLLUP_COUNT, "int", "{task}", "rolled up", "tasks in it (of the scheduler's own: timespans)"),
    Attribute(ROLLUP_MIN, "double", "s", "rolled up", "shortest run of a body (timespan.run.wall)"),
    Attribute(ROLLUP_MEAN, "double", "s", "rolled up", "mean run of a body"),
    Attribute(ROLLUP_P50, "double", "s", "rolled up", "median run of a body, to 1.6 %"),
    Attribute(ROLLUP_P99, "double", "s", "rolled up", "99th percentile of the runs of bodies, to 1.6 %"),
    Attribute(ROLLUP_MAX, "double", "s", "rolled up", "longest run of a body; slower ones are kept"),
    Attribute(ROLLUP_TOTAL, "double", "s", "rolled up", "all runs of bodies together"),
    Attribute(DROP_REASON, "string", "", "metrics", "queue_full, journal_full, rejected, shutdown, error, worker_lost"),
    Attribute(SPAN_OUTCOME, "string", "", "metrics", "exported, sampled (not taken), rolled_up or dropped"),
    Attribute(FUNCTION_NAME, "string", "", "task; metrics", "qualified name; on metrics at most 200, then other"),
    Attribute(FILE_PATH, "string", "", "task", "file of the function"),
    Attribute(LINE_NUMBER, "int", "", "task", "line of the function"),
    Attribute(
        THREAD_ID, "int", "", "task, compute", "identity of the thread that ran the body, or called the coroutine"
    ),
    Attribute(THREAD_NAME, "string", "", "task, compute", "its name"),
    Attribute(PROCESS_ID, "int", "", "init_proc", "the process that a worker is; absent for worker 1"),
    Attribute(HOST_NAME, "string", "", "init_proc", "its host"),
    Attribute(RUNTIME_VERSION, "string", "", "init_proc", "its version of Python"),
    Attribute(
        ERROR_TYPE,
        "string",
        "",
        "task, compute, dag; metrics",
        "type of the exception, DTaskFailedError, or WorkerLostError; on metrics at most 200, then other",
    ),
    Attribute(EXCEPTION_TYPE, "string", "", "exception event", "type of the exception, qualified"),
    Attribute(EXCEPTION_MESSAGE, "string", "", "exception event", "its text, cut at 4096 characters"),
    Attribute(EXCEPTION_STACKTRACE, "string", "", "exception event", "its stack, cut at 16384 characters"),
)

BYTES_ALLOCD = "timespan.bytes_allocd"
FUNCTION_BYTES = "timespan.function.bytes_allocd"
WORKER_SATURATION = "timespan.worker.saturation"
PROCESSOR_SATURATION = "timespan.processor.saturation"
EVENT_SATURATION = "timespan.event.saturation"
LOAD_AVERAGE = "timespan.system.load_average"
MEMORY_FREE = "timespan.system.memory.free"
TASK_COUNT = "timespan.task.count"
TASK_ACTIVE = "timespan.task.active"
TASK_OLDEST_AGE = "timespan.task.oldest_age"
TASK_DURATION = "timespan.task.duration"
TASK_RUN = "timespan.task.run"
TASK_CPU = "timespan.task.cpu"
TASK_WAIT = "timespan.task.wait"
MOVE_DURATION = "timespan.move.duration"
MOVE_IO = "timespan.move.io"
STEAL_COUNT = "timespan.steal.count"
FAULT_COUNT = "timespan.fault.count"
RETRY_COUNT = "timespan.retry.count"
EVICT_COUNT = "timespan.evict.count"
DAG_DURATION = "timespan.dag.duration"
DAG_CRITICAL_PATH = "timespan.dag.critical_path"
EVENTS = "timespan.events"
EVENTS_DROPPED = "timespan.events.dropped"
SPANS_BY_OUTCOME = "timespan.spans"
SPANS_RECORDED = "timespan.spans.recorded"
SPANS_PENDING = "timespan.spans.pending"

_WORKER = (WORKER_ID,)
INSTRUMENTS = (
    Instrument(BYTES_ALLOCD, "gauge", "By", "Live bytes of task results.", _WORKER),
    Instrument(FUNCTION_BYTES, "gauge", "By", "Live bytes of a function's results.", (FUNCTION_NAME,)),
    Instrument(WORKER_SATURATION, "gauge", "{task}", "Running bodies.", _WORKER),
    Instrument(PROCESSOR_SATURATION, "gauge", "{task}", "Running bodies of a processor.", (WORKER_ID, PROCESSOR)),
    Instrument(EVENT_SATURATION, "gauge", "{event}", "Open timespans.", (WORKER_ID, EVENT_CATEGORY)),
    Instrument(LOAD_AVERAGE, "gauge", "{thread}", "System load, mean of a minute.", _WORKER),
    Instrument(MEMORY_FREE, "gauge", "1", "Free memory, as a fraction.", _WORKER),
    Instrument(
        TASK_COUNT,
        "counter",
        "{task}",
        "Tasks that ended.",
        (TASK_RESULT, FUNCTION_NAME, ERROR_TYPE),
        ("success", "failure", "cancellation", "skip"),
    ),
    Instrument(
        TASK_ACTIVE,
        "updown",
        "{task}",
        "Tasks that did not end yet.",
        (TASK_STATE,),
        ("waiting", "queued", "moving", "running"),
    ),
    Instrument(TASK_OLDEST_AGE, "gauge", "s", "How long the oldest task has been in a state.", (TASK_STATE,)),
    Instrument(TASK_DURATION, "histogram", "s", "A task from submission to finish.", (FUNCTION_NAME, TASK_RESULT)),
    Instrument(TASK_RUN, "histogram", "s", "A body, every attempt; waits inside it included.", (FUNCTION_NAME,)),
    Instrument(
        TASK_CPU, "counter", "s", "CPU time of the threads of bodies, while these ran there.", (FUNCTION_NAME,), ()
    ),
    Instrument(TASK_WAIT, "histogram", "s", "What a task waited for.", (WAIT_PHASE,)),
    Instrument(MOVE_DURATION, "histogram", "s", "Moving one argument.", (MOVE_SOURCE, MOVE_DESTINATION)),
    Instrument(MOVE_IO, "counter", "By", "Bytes moved for arguments.", (MOVE_SOURCE, MOVE_DESTINATION), ()),
    Instrument(STEAL_COUNT, "counter", "{steal}", "Tasks taken from another processor.", _WORKER, ()),
    Instrument(FAULT_COUNT, "counter", "{fault}", "Workers that were lost.", _WORKER, ()),
    Instrument(RETRY_COUNT, "counter", "{retry}", "Attempts replaced by another one.", _WORKER, ()),
    Instrument(EVICT_COUNT, "counter", "{evict}", "Chunks whose data left memory.", _WORKER, ()),
    Instrument(DAG_DURATION, "histogram", "s", "A run, from opening to end.", (DAG_RESULT,)),
    Instrument(DAG_CRITICAL_PATH, "histogram", "s", "Length of a run's critical path.", (DAG_RESULT,)),
    Instrument(EVENTS, "counter", "{event}", "Events that the log took.", (), ()),
    Instrument(
        EVENTS_DROPPED,
        "counter",
        "{event}",
        "Spans and events that were lost, by reason.",
        (DROP_REASON,),
        ("queue_full", "error"),
    ),
    Instrument(
        SPANS_BY_OUTCOME,
        "counter",
        "{span}",
        "Spans by what became of them.",
        (SPAN_OUTCOME,),
        ("exported", "sampled", "rolled_up", "dropped"),
    ),
    Instrument(
        SPANS_RECORDED,
        "counter",
        "{span}",
        "Spans that the log recorded: the sum of timespan.spans and timespan.spans.pending.",
        (),
        (),
    ),
    Instrument(SPANS_PENDING, "updown", "{span}", "Spans that wait for their export.", (), ()),
)

BOUNDARIES_S = (
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05,
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
)  # fmt: skip
"""Advised histogram boundaries in seconds: 10 µs to 1 h (the SDK's own are meant for milliseconds)."""

MAX_FUNCTION_NAMES = MAX_ERROR_TYPES = 200
OTHER = "other"


def instrument(name: str) -> Instrument:
    """The instrument of that name. Raises `KeyError` for one that is not in the catalogue."""
    return _BY_NAME[name]


_BY_NAME = {item.name: item for item in INSTRUMENTS}


def catalogue() -> dict[str, tuple[NamedTuple, ...]]:
    """The whole catalogue: {"spans": ..., "attributes": ..., "instruments": ...}."""
    return {"spans": SPANS, "attributes": ATTRIBUTES, "instruments": INSTRUMENTS}


def catalogue_markdown() -> str:
    """The text of docs/otel-catalogue.md."""
    spans = _table(("span", "from detail", "covers"), ((f"`{s.name}`", s.detail, s.description) for s in SPANS))
    attributes = _table(
        ("attribute", "type", "unit", "on", "says"),
        ((f"`{a.key}`", a.type, f"`{a.unit}`" if a.unit else "", a.on, a.description) for a in ATTRIBUTES),
    )
    instruments = _table(
        ("instrument", "kind", "unit", "attributes", "says"),
        (
            (f"`{i.name}`", i.kind, f"`{i.unit}`", ", ".join(f"`{a}`" for a in i.attributes), i.description)
            for i in INSTRUMENTS
        ),
    )
    boundaries = ", ".join(f"{b:g}" for b in BOUNDARIES_S)
    return (
        "# What the bridge emits\n\n"
        "Made from `otel_timespan/otel/semconv.py` by `python -m otel_timespan.otel.semconv`; a test compares.\n\n"
        f"## Spans\n\n{spans}\n## Attributes\n\n{attributes}\n## Instruments\n\n{instruments}\n"
        f"Histograms advise these boundaries (s): {boundaries}.\n"
        "With OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION=base2_exponential_bucket_histogram "
        "they are exponential.\n"
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(catalogue_markdown(), end="")
