"""One open task and the spans that it becomes: pure functions of its times.

A task's time is cut into contiguous phases: submitted, ready, placed, taken, body start, body
end, finished. A boundary that was never reached is where the task stopped, so the waits always add up
to the span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from ...errors import DTaskFailedError
from ...timespans.model import ChunkInfo
from .. import semconv
from . import failures, ids
from .bodyspan import BodySpan
from .failures import FirstFailure
from .ids import TraceParent
from .paths import AnyPath
from .spandata import ERROR, UNSET, EventData, LinkData, SpanData
from .values import plain_text

__all__ = [
    "BOUNDARIES",
    "OF_SHAPE",
    "SECONDS",
    "SPANS",
    "Done",
    "OpenTask",
    "code_attributes",
    "failure_behind",
    "first_failure",
    "processor_name",
    "qualified_name",
    "span_of",
    "task_name",
]

BOUNDARIES = ("submitted", "ready", "placed", "taken", "body_start", "body_end", "finished")
"""What cuts a task's time, in order: attributes of `OpenTask`, entries of its `bounds`."""

SECONDS = (
    (semconv.WAIT_DEPENDENCY, "submitted", "ready"),
    (semconv.WAIT_SCHEDULE, "ready", "placed"),
    (semconv.WAIT_QUEUE, "placed", "taken"),
    (semconv.WAIT_MOVE, "taken", "body_start"),
    (semconv.RUN_WALL, "body_start", "body_end"),
    (semconv.WAIT_FINISH, "body_end", "finished"),
)
"""The attributes that say how long a task took from one boundary to the next: together, its whole span."""


class Definition(NamedTuple):
    """A span of a task: its number for ids, and the boundaries from which to which it lasts."""

    phase: int
    start: str
    end: str


SPANS = {
    semconv.TASK_SPAN: Definition(ids.TASK, "submitted", "finished"),
    semconv.QUEUE: Definition(ids.QUEUE, "placed", "taken"),
    semconv.COMPUTE: Definition(ids.COMPUTE, "body_start", "body_end"),
    semconv.FINISH: Definition(ids.FINISH, "body_end", "finished"),
}
"""By name, the spans that each task has once at most and that last from boundary to boundary."""

OF_SHAPE = frozenset(
    (
        semconv.TASK_STATE, semconv.TASK_ATTEMPT, semconv.TASK_RESULT, semconv.FUNCTION_NAME, semconv.FILE_PATH,
        semconv.LINE_NUMBER, semconv.WORKER_ID, semconv.PROCESSOR, semconv.THREAD_ID, semconv.THREAD_NAME,
        semconv.MOVE_POSITION, semconv.MOVE_KIND, semconv.MOVE_SOURCE, semconv.MOVE_DESTINATION,
    )
)  # fmt: skip
"""Attributes that tasks of one shape share: same function, outcome, processor and thread, same ways of arguments."""

RESULTS = {"success": "finished", "failure": "failed", "skip": "skipped", "cancellation": "cancelled"}
"""`timespan.task.result` -> `timespan.task.state`."""

MAX_PROCESSOR = 256
_new = tuple.__new__


class Done(NamedTuple):
    """What is remembered of a finished task, for links and the critical path. `base`: what its ids are made of."""

    parent: TraceParent
    finished_ns: int
    attempt: int
    path: AnyPath
    base: int


class OpenTask:
    """A task that is under way, as its events told. Times are monotonic ns, 0 for not yet."""

    __slots__ = (
        "active",
        "attempt",
        "body_end",
        "body_failure",
        "body_start",
        "budget",
        "cpu_ns",
        "deps",
        "emitted",
        "ended_as",
        "f",
        "finish_start",
        "finished",
        "held",
        "id",
        "latest",
        "moved",
        "moves",
        "must",
        "name",
        "parent",
        "placed",
        "placements",
        "placing",
        "processor",
        "ready",
        "result",
        "result_nbytes",
        "retries",
        "rollup",
        "seed",
        "span",
        "span_id",
        "spawned_by",
        "submitted",
        "taken",
        "thread",
        "where",
        "worker",
    )

    def __init__(self, id: int, parent: TraceParent, submitted: int, attempt: int = 1) -> None:
        self.id, self.parent, self.seed, self.attempt = id, parent, parent.seed, attempt
        self.span_id = ids.span_id(parent.seed, id, ids.TASK, 0, attempt)
        self.submitted = self.latest = submitted
        self.ready = self.placed = self.taken = self.body_start = self.body_end = 0
        self.placing = self.placements = 0  # since when it is being placed, and how often it was before
        self.finish_start = self.finished = 0
        self.f: Any = None
        self.name: str | None = None
        self.deps: Sequence[tuple[Any, int]] = ()
        self.spawned_by = 0
        self.active = ""
        self.worker, self.where, self.processor = 1, None, ""
        self.thread: tuple[int, str] | None = None
        self.moves: dict[Any, int] = {}
        self.moved = 0
        self.span: BodySpan | None = None
        self.body_failure: failures.FailureText | None = None
        self.cpu_ns: int | None = None
        self.result: Any = None
        self.result_nbytes: int | None = None
        # (trace id, span id) of the attempt that it replaces, and whether that lost its worker.
        self.retries: tuple[int, int, bool] | None = None
        self.emitted = False
        self.ended_as = ""  # its result, from its finish on
        self.budget: Any = None  # of a candidate (budget.py) its run's
        self.must = False  # whether it is to be sent one by one, all the same
        self.held: list[SpanData] = []  # of a candidate: the spans that are over
        self.rollup: Any = None  # of one that may be rolled up

    def bounds(self) -> tuple[int, ...]:
        """The seven boundaries, never falling, the last one behind the first: submitted ... finished."""
        end = max(self.finished, self.latest, self.submitted + 1)
        stop = self.finish_start or end
        at = self.submitted
        found = [at]
        for boundary in (self.ready, self.placed, self.taken, self.body_start, self.body_end):
            at = min(max(boundary or stop, at), end)
            found.append(at)
        found.append(end)
        return tuple(found)


class SpanConfig(NamedTuple):
    """How spans are built: `offset_ns` is wall minus monotonic clock, `link_limit` bounds the links of one.

    `is_sent(parent)`: whether the run of a task is sent; None where that is not known yet.
    """

    offset_ns: int
    link_limit: int | None
    detail: str
    is_sent: Callable[[TraceParent], bool | None]


def child(
    task: OpenTask,
    config: SpanConfig,
    name: str,
    phase: int,
    start: int,
    end: int,
    attributes: Mapping[str, Any],
    position: Any = 0,
) -> SpanData:
    """A phase of a task as a span, kept within the task. `position` tells several of one phase apart."""
    start = max(start, task.submitted)
    if end <= start:  # Jaeger warns of a span without a duration
        start, end = (start - 1, start) if start > task.submitted else (start, start + 1)
    offset, parent = config.offset_ns, task.parent
    own = ids.span_id(task.seed, task.id, phase, position, task.attempt)
    return _new(
        SpanData,
        (
            name, parent.trace_id, own, task.span_id, start + offset, end + offset, attributes,
            (), (), UNSET, "", parent.trace_state, 0, 0, 0, parent.flags, False,
        ),
    )  # fmt: skip


def defined(task: OpenTask, config: SpanConfig, name: str, attributes: Mapping[str, Any] | None = None) -> SpanData:
    """One of `SPANS` that is a phase; by default it says whose."""
    phase, start, end = SPANS[name]
    attributes = {semconv.TASK_ID: task.id} if attributes is None else attributes
    return child(task, config, name, phase, getattr(task, start), getattr(task, end), attributes)


def compute_span(task: OpenTask, config: SpanConfig, abandoned: bool = False) -> SpanData:
    """The body's span, with its exception and what the user recorded on it.

    What a body raises whose task was cancelled, or dropped when the program left, is told, and is no failure.
    """
    attributes: dict[str, Any] = {semconv.TASK_ID: task.id, semconv.WORKER_ID: task.worker}
    attributes[semconv.PROCESSOR] = task.processor
    if task.thread is not None:
        attributes[semconv.THREAD_ID], attributes[semconv.THREAD_NAME] = task.thread
    if task.cpu_ns is not None:
        attributes[semconv.RUN_CPU] = task.cpu_ns / 1e9
    if abandoned or (task.body_failure is not None and task.body_failure.type == failures.LOST):
        attributes[semconv.TASK_STATE] = "abandoned"
    span = defined(task, config, semconv.COMPUTE, attributes)
    body = task.span
    if body is not None:
        span = span._replace(span_id=body.span_id)
    span = _failed(span, task.body_failure, task.body_end + config.offset_ns)
    if task.ended_as == "cancellation":
        span = span._replace(status=UNSET, status_message="")
    return body.merged(span) if body is not None else span


def _failed(span: SpanData, text: failures.FailureText | None, time_ns: int) -> SpanData:
    """The span of something that raised. Without a stack the user has recorded the exception already."""
    if text is None:
        return span
    events: tuple[EventData, ...] = ()
    if text.stack:
        events = (failures.exception_event(text, time_ns),)
    attributes = {**span.attributes, semconv.ERROR_TYPE: text.type}
    return span._replace(attributes=attributes, events=events, status=ERROR, status_message=text.message)


def finish_span(task: OpenTask, config: SpanConfig, bounds: tuple[int, ...]) -> SpanData:
    """From the end of the body to the end of the task."""
    return child(task, config, semconv.FINISH, ids.FINISH, bounds[5], bounds[6], {semconv.TASK_ID: task.id})


def task_span(
    task: OpenTask, config: SpanConfig, bounds: tuple[int, ...], result: str, upstreams: Callable[[int], Done | None]
) -> SpanData:
    """The task's own span. `result` is success, failure, cancellation, skip, or retried or abandoned."""
    parent, offset = task.parent, config.offset_ns
    attributes = _attributes(task, bounds, result)
    status, message, error_type, events, causes = _outcome(task, config, result, upstreams)
    if error_type:
        attributes[semconv.ERROR_TYPE] = error_type
    links, dropped = _links(task, config, upstreams, causes)
    span: SpanData = _new(
        SpanData,
        (
            task_name(task.f), parent.trace_id, task.span_id, parent.span_id, bounds[0] + offset,
            bounds[6] + offset, attributes, links, events, status, message, parent.trace_state,
            dropped, 0, 0, parent.flags, False,
        ),
    )  # fmt: skip
    if config.detail == "task" and task.span is not None:
        return task.span.merged(span)
    return span


def _attributes(task: OpenTask, bounds: tuple[int, ...], result: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        semconv.TASK_ID: task.id,
        semconv.TASK_STATE: RESULTS.get(result, result),
        semconv.TASK_ATTEMPT: task.attempt,
        **{key: (bounds[n + 1] - bounds[n]) / 1e9 for n, (key, _, _) in enumerate(SECONDS)},
        **code_attributes(task.f),
    }
    if result in RESULTS:
        attributes[semconv.TASK_RESULT] = result
    if task.name is not None:
        attributes[semconv.TASK_NAME] = plain_text(task.name)
    if task.spawned_by:
        attributes[semconv.TASK_SPAWNED_BY] = task.spawned_by
    if task.body_start:
        attributes[semconv.WORKER_ID] = task.worker
        attributes[semconv.PROCESSOR] = task.processor
    if task.thread is not None:
        attributes[semconv.THREAD_ID], attributes[semconv.THREAD_NAME] = task.thread
    if task.cpu_ns is not None:
        attributes[semconv.RUN_CPU] = task.cpu_ns / 1e9
    if task.result_nbytes is not None and result == "success":
        attributes[semconv.RESULT_SIZE] = task.result_nbytes
    return attributes


_Outcome = tuple[int, str, str, tuple[EventData, ...], tuple[LinkData | None, ...]]


def _outcome(task: OpenTask, config: SpanConfig, result: str, upstreams: Callable[[int], Done | None]) -> _Outcome:
    """Status, its message, the error's type, events, and the link to the cause."""
    error = task.result
    if result == "failure" and failures.is_failure(error):
        text = task.body_failure or failures.describe(error)
        alone = config.detail == "task" or not task.body_start  # no compute span to record it on
        events: tuple[EventData, ...] = ()
        if alone and text.stack:
            events = (failures.exception_event(text, (task.body_end or task.finish_start) + config.offset_ns),)
        return ERROR, text.message, text.type, events, _cause(task, config, upstreams)
    if result == "failure":
        return ERROR, "", "_OTHER", (), ()
    if result == "skip":
        cause = _cause(task, config, upstreams)
        if failures.is_cancellation(error):
            return UNSET, "", "", (), cause
        return ERROR, failures.skip_message(error), "DTaskFailedError", (), cause
    if result == "retried":
        raised = task.body_failure
        if raised is None:  # its worker went away
            return ERROR, "replaced by another attempt", "WorkerLostError", (), ()
        events = ()
        if config.detail == "task" and raised.stack:
            events = (failures.exception_event(raised, task.body_end + config.offset_ns),)
        return ERROR, raised.message, raised.type, events, ()
    return UNSET, "", "", (), ()


def _cause(
    task: OpenTask, config: SpanConfig, upstreams: Callable[[int], Done | None]
) -> tuple[LinkData | None, ...]:
    error = task.result
    root = getattr(error, "root", None) if isinstance(error, DTaskFailedError) else None
    if root is None:
        return ()
    return (_link(task, config, root.id, upstreams(root.id), {semconv.LINK_TYPE: "cause"}),)


def _link(
    task: OpenTask, config: SpanConfig, up: int, done: Done | None, attributes: Mapping[str, Any]
) -> LinkData | None:
    """None where the other task is not sent; where that is not known yet the link does not claim that it is."""
    parent, span_id = span_of(task.parent, up, done)
    is_own = parent.root is task.parent.root or parent.root == task.parent.root
    is_sent = is_own or config.is_sent(parent)
    flags = parent.flags if is_sent else parent.flags & ~1
    return None if is_sent is False else LinkData(parent.trace_id, span_id, attributes, parent.trace_state, flags)


def span_of(near: TraceParent, task_id: int, done: Done | None) -> tuple[TraceParent, int]:
    """The trace and the span id of a finished task; of one that is forgotten, or another log's, by what is `near`."""
    if done is None:
        return near, ids.span_id(near.seed, task_id, ids.TASK)
    return done.parent, ids.of(done.base, ids.TASK, 0, done.attempt)


def first_failure(task: OpenTask, result: str, upstreams: Callable[[int], Done | None]) -> FirstFailure | None:
    """What there is to tell of a task that failed, or of the one because of which it was skipped; else None."""
    error, parent = task.result, task.parent
    if result == "skip":
        return failure_behind(error, parent, upstreams)
    if result != "failure":
        return None
    text = task.body_failure
    if text is None:
        known = failures.is_failure(error)
        text = failures.describe(error) if known else failures.FailureText("_OTHER", "", "")
    function = qualified_name(task.f)
    return FirstFailure(task.id, function, text, parent.trace_id, task.span_id, parent.trace_state, parent.flags)


def failure_behind(error: Any, near: TraceParent, upstreams: Callable[[int], Done | None]) -> FirstFailure | None:
    """The failure of a task that an error tells of; None where it tells of none, or of a cancellation."""
    while isinstance(error, DTaskFailedError) and isinstance(error.ex, DTaskFailedError):
        error = error.ex  # a body that fetched it passed it on
    root = getattr(error, "root", None) if isinstance(error, DTaskFailedError) else None
    if root is None or failures.is_cancellation(error):
        return None
    text, function = failures.describe(error), getattr(root, "function", "a task")
    parent, span_id = span_of(near, root.id, upstreams(root.id))
    return FirstFailure(root.id, function, text, parent.trace_id, span_id, parent.trace_state, parent.flags)


def _links(
    task: OpenTask, config: SpanConfig, upstreams: Callable[[int], Done | None], causes: tuple[LinkData | None, ...]
) -> tuple[tuple[LinkData, ...], int]:
    """Cause and retry, then the dependencies: the blocking one first; beyond the limit the latest ones win.

    And how many there are besides.
    """
    links, limit = list(causes), config.link_limit
    if task.retries is not None:
        trace_id, span_id, lost = task.retries
        about = {semconv.LINK_TYPE: "retry", semconv.RETRY_REASON: "worker_lost" if lost else "failure"}
        links.append(LinkData(trace_id, span_id, about, "", task.parent.flags))
    if task.deps:
        known = [(up, position, upstreams(up)) for position, up in task.deps]
        finished = [done.finished_ns if done is not None else 0 for _, _, done in known]
        blocking = finished.index(max(finished))
        order = list(range(len(known)))
        if limit is not None and len(known) > limit:
            order.sort(key=lambda i: -finished[i])
        order.remove(blocking)
        for i in [blocking, *order]:
            up, position, done = known[i]
            told = _link_attributes(position, i == blocking and bool(finished[i]))
            links.append(_link(task, config, up, done, told))
    kept = tuple([link for link in links if link is not None][:limit])
    return kept, len(links) - len(kept)


_link_cache: dict[tuple[Any, bool], Mapping[str, Any]] = {}


def _link_attributes(position: Any, blocking: bool) -> Mapping[str, Any]:
    found = _link_cache.get((position, blocking))
    if found is None:
        found = {semconv.LINK_TYPE: "dependency"}
        if position is not None:
            found[semconv.LINK_POSITION] = plain_text(position)
        if blocking:
            found[semconv.LINK_BLOCKING] = True
        if len(_link_cache) < 1024:
            _link_cache[position, blocking] = found
    return found


_code_cache: dict[Any, tuple[str, dict[str, Any]]] = {}


def _code(f: Any) -> tuple[str, dict[str, Any]]:
    """(plain name, code.* attributes) of a function, described by itself, a `FunctionInfo` or a `ChunkInfo`."""
    try:
        code = getattr(f, "__code__", None)
        # Not the function: it may hold data. Not its code alone: what a decorator returns shares one.
        key = (code, f.__name__, f.__qualname__) if code is not None else f
    except Exception:  # a callable of the user's whose __getattr__ raises
        return type(f).__name__, {semconv.FUNCTION_NAME: type(f).__name__}
    try:
        found = _code_cache.get(key)
    except TypeError:  # not hashable
        key, found = None, None
    if found is None:
        found = _describe_code(f, code)
        if key is not None and len(_code_cache) < 4096:
            _code_cache[key] = found
    return found


def _describe_code(f: Any, code: Any) -> tuple[str, dict[str, Any]]:
    if f is None:
        return "task", {}
    if isinstance(f, ChunkInfo):
        f = f.type
    named = f if isinstance(getattr(f, "__name__", None), str) else type(f)
    name = plain_text(named.__name__)
    qualified = plain_text(getattr(named, "__qualname__", name))
    module = getattr(named, "__module__", None)
    if isinstance(module, str) and module and module != "builtins":
        qualified = f"{plain_text(module)}.{qualified}"
    attributes: dict[str, Any] = {semconv.FUNCTION_NAME: qualified}
    path = getattr(code, "co_filename", None)
    if path is not None:
        attributes[semconv.FILE_PATH] = plain_text(path)
        attributes[semconv.LINE_NUMBER] = code.co_firstlineno
    return name, attributes


def task_name(f: Any) -> str:
    """The plain name of a task's function: the name of its span."""
    return _code(f)[0]


def code_attributes(f: Any) -> dict[str, Any]:
    """The code.* attributes of a task's function. Not to be changed."""
    return _code(f)[1]


def qualified_name(f: Any) -> str:
    """What failures, metrics and roll-ups call a function: its qualified name, or its plain one where it has none."""
    name: str = code_attributes(f).get(semconv.FUNCTION_NAME) or task_name(f)
    return name


def named(f: Any) -> Any:
    """What `task_name` and `code_attributes` want of a function, which may hold data."""
    code = getattr(f, "__code__", None)
    if code is None:
        return f
    return SimpleNamespace(__code__=code, __name__=f.__name__, __qualname__=f.__qualname__, __module__=f.__module__)


_processors: dict[Any, str] = {}


def processor_name(processor: Any) -> str:
    """A processor as text, the same for each equal one."""
    try:
        found = _processors.get(processor)
    except TypeError:
        return _text_of(processor)
    if found is None:
        found = _text_of(processor)
        if len(_processors) < 4096:
            _processors[processor] = found
    return found


def _text_of(processor: Any) -> str:
    try:
        return plain_text(str(processor))[:MAX_PROCESSOR]
    except Exception:  # a custom processor's own
        return type(processor).__name__
