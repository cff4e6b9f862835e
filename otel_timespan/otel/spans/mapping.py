"""From events to spans: a pure state machine, fed event by event.

`SpanMapper.feed(event)` gives the spans that this event completed. It keeps one `OpenTask` an
unfinished task and remembers the newest 65,536 finished ones (for links and the critical path), no
clock, no thread, no I/O. Child spans come out as they finish, a task's own span at its end.

What a task needs besides its own events, its run, is asked of `runs` (runs.py); what metrics need is
told to `observer`. A task that was cancelled while its body runs has its result at once, but its spans come when
the body ends, so that no child ends after its parent.

See docs/events.md for the events, docs/otel-catalogue.md for the spans.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from ...errors import DTaskFailedError, InvalidOptionError
from ...timespans.model import ChunkInfo, Event, EventId
from ...timespans.warn import warn_once
from .. import semconv
from . import failures, ids, tasks
from .bodyspan import SEEN, BodySpan
from .budget import CANDIDATE_BYTES, Budget, Budgets, Candidate
from .ids import Root, TraceParent
from .interest import Interest
from .paths import AnyPath, extend, length_of, path_of
from .plain import PlainSpans
from .rollup import RollUp
from .rootspan import root_span
from .runs import Run, Runs
from .spandata import SpanData
from .tasks import Done, OpenTask, SpanConfig
from .values import plain_text

__all__ = ["DETAILS", "SCHEDULER_CATEGORIES", "Observer", "SpanMapper"]

DETAILS = ("task", "phases", "scheduler")
ENDED = "otel_timespan.ended"
"""The category of a note that the rest of a task (its id), or a timespan (category, id), was given up (unmapped.py)."""

_new = tuple.__new__
MAX_DONE = 65_536
_SOME = 4096  # forgotten at once: one by one a dict takes ever longer
CLOCK_SLACK_NS = 60_000_000_000
"""How much older than its run a task may be: where the drain of the log opens the run, it may lag behind."""

MOVED_KINDS = frozenset(("chunk", "shard", "file", "custom"))
"""Moves of these kinds are spans; the others are instant: by kind, never by duration."""

SCHEDULER_CATEGORIES = frozenset(
    (
        "add_thunk", "assign_procs", "cleanup_proc", "compute", "data_annotation", "datadeps_copy",
        "datadeps_copy_skip", "datadeps_execute", "enqueue", "evict", "finish", "fire", "handle_fault",
        "init_proc", "move", "proc_run_fetch", "proc_run_wait", "proc_steal_local", "remove_procs", "schedule",
        "scheduler_exit", "scheduler_init", "storage_safe_scan", "storage_wait", "take",
    )
)  # fmt: skip
"""The scheduler's categories; with an `EventId` as id they are its own, else a program's."""

TASK_CATEGORIES = frozenset(("add_thunk", "schedule", "move", "compute", "finish"))
NEVER_SPANS = TASK_CATEGORIES | {"proc_run_wait", "proc_run_fetch", "data_annotation"}
"""What is a task's, and so is a span otherwise; idle waits, and what shows elsewhere."""

_Handler = Callable[[Event, Any, list[SpanData]], None]


class Observer(Protocol):
    """What metrics are told. Called by the thread that feeds, must not raise."""

    def task_opened(self, task: OpenTask) -> None:
        """A task was submitted."""

    def body_done(self, task: OpenTask) -> None:
        """A body ended, whatever becomes of its task."""

    def task_done(self, task: OpenTask, result: str, bounds: tuple[int, ...]) -> None:
        """A task has its result; `bounds` as `OpenTask.bounds` gives them."""

    def move_done(self, task: OpenTask, start_ns: int, end_ns: int, timeline: Any, nbytes: int | None) -> None:
        """An argument was moved (not: a plain value passed on)."""

    def task_retried(self, task: OpenTask) -> None:
        """An attempt was replaced by another one."""


class SpanMapper:
    """See the module. Not thread-safe. Raises `InvalidOptionError` for a wrong `detail`.

    `offset_ns` is wall clock minus monotonic clock, one pair a process. `active` counts open tasks:
    state → {task id: monotonic ns since when}, oldest first. `sampled` counts spans that were not built
    because their run was not sampled.
    """

    def __init__(
        self,
        runs: Runs,
        *,
        detail: str = "phases",
        offset_ns: int = 0,
        link_limit: int | None = 128,
        observer: Observer | None = None,
        max_spans: int | None = None,
        interest: Interest | None = None,
    ) -> None:
        if detail not in DETAILS:
            raise InvalidOptionError(f"detail is one of {', '.join(DETAILS)}, not {detail!r}")
        self._runs, self.detail = runs, detail
        self._phases, self._keeps_scheduler = detail != "task", detail == "scheduler"
        self.observer = observer
        self._tasks: dict[int, OpenTask] = {}
        self._late: dict[tuple[int, Any], OpenTask] = {}  # has a result, its body still runs
        self.done: dict[int, Done] = {}
        self.budgets = Budgets(max_spans, offset_ns, self.done, runs.at, interest)
        self.budgets.open_tasks.append(self._find_open)
        self._config = SpanConfig(offset_ns, link_limit, detail, self.budgets.is_sent)
        self.charged: tuple[Budget | None, bool] | None = None  # of a task that the lane hands over
        self.moves_charged = False  # whether its moves are, too
        self._plain = PlainSpans(runs, offset_ns)
        self.active: dict[str, dict[int, int]] = {name: {} for name in ("waiting", "queued", "moving", "running")}
        self.sampled = self.ended_runs = 0
        self._unpacked: tuple[Any, TraceParent | None] = (None, None)  # the last parent: tasks of a run share it
        self._starts: dict[str, _Handler] = {
            "add_thunk": self._add_thunk,
            "schedule": self._schedule_start,
            "move": self._move_start,
            "compute": self._compute_start,
            "finish": self._finish_start,
        }
        self._finishes: dict[str, _Handler] = {
            "schedule": self._schedule_finish,
            "proc_run_fetch": self._fetch_finish,
            "move": self._move_finish,
            "compute": self._compute_finish,
            "finish": self._finish_finish,
        }

    def limit_links(self, limit: int | None) -> None:
        """From now on a span has at most so many links; None is no limit."""
        self._config = self._config._replace(link_limit=limit)

    @property
    def saw_tasks(self) -> bool:
        """Whether any task was seen."""
        return bool(self._tasks or self.done)

    def feed(self, event: Event) -> list[SpanData]:
        """The spans that this event completed, in the order in which they ended."""
        out: list[SpanData] = []
        self.feed_into(event, out)
        return out

    def feed_into(self, event: Event, out: list[SpanData]) -> None:
        """As `feed`, appending to `out`."""
        category, id = event.category, event.id
        if type(id) is not EventId or category not in SCHEDULER_CATEGORIES:
            if category == ENDED:
                self.forget(id)
            else:
                self.sampled += self._plain.program(event, out)
            return
        handler = (self._starts if event.phase == "start" else self._finishes).get(category)
        if handler is not None:
            handler(event, id, out)
            return
        if category == "handle_fault" and event.phase == "finish":
            self._runs.worker_lost()
        if self._keeps_scheduler and category not in NEVER_SPANS:
            before = len(out)
            self.sampled += self._plain.scheduler(event, self._run_of(id.get("thunk_id")), out)
            if len(out) > before and self.budgets.limit is not None:
                self.budgets.roll_others(out, before)

    @property
    def spans_per_task(self) -> int:
        """How many spans an ordinary task has: its own, `queue` and `compute`."""
        return 3 if self._phases else 1

    def forget_oldest(self) -> None:
        """Keep the number of finished tasks that are remembered within its bound."""
        if len(self.done) > MAX_DONE + _SOME:
            for task in list(islice(self.done, _SOME)):
                del self.done[task]

    def settle_run(
        self, root: Root | None, count: int, first_ns: int, last_ns: int, task: int, path: AnyPath, moved: int = 0
    ) -> None:
        """`count` tasks of a run have their results, all within these times; `path`, the longest, ends with `task`.

        `moved`: bytes of their arguments, where nobody counted these yet.
        """
        run = self._runs.find(root)
        if run is None:
            return
        run.finished += count
        run.moved += moved
        if first_ns < run.root.start_ns - CLOCK_SLACK_NS and run.root.start_ns:
            warn_once(self, "tasks are stamped by another clock than the log's: give OTelLog(clock=...) that one")
        run.cover(first_ns, last_ns)
        self._runs.touch(run)
        known = run.path
        # Of equal ones, of a task and those that were skipped after it, the first, in whatever order they are told.
        if known is None or (length_of(path), -task) > (known.length_ns, -known.latest(1)[0]):
            run.path = path_of(task, path)

    def end_run(self, run: Run) -> list[SpanData]:
        """What was still to come of a run that is over, and its root; nothing where it is not sent."""
        self.ended_runs += 1
        if not run.parent.flags & 1:
            self.sampled += 1
            return []
        out: list[SpanData] = []
        unsent = self.budgets.finish(run, out)
        if unsent is not None:
            self.sampled += unsent + 1
            return out
        if run.first_failure is None:  # the task of another run, of a block inside of this one's
            run.first_failure = tasks.failure_behind(run.error, run.parent, self.done.get)
        out.append(root_span(run, self._config, self.done.get))
        return out

    def abandon(self, now_ns: int) -> list[SpanData]:
        """Close everything that is open, as abandoned: the log ends before it does."""
        out: list[SpanData] = []
        for task in [*self._late.values(), *self._tasks.values()]:
            task.latest = max(task.latest, now_ns)
            if task.body_start and not task.body_end:
                task.body_end = now_ns
                if self._phases:
                    self._put(task, tasks.compute_span, out, True)
            run = self._runs.find(task.parent.root)
            if run is not None:
                run.whole = False
                run.cover(task.submitted, now_ns)
            if not task.emitted:
                self._emit_task(task, task.ended_as or "abandoned", out)
        self._tasks.clear()
        self._late.clear()
        for state in self.active.values():
            state.clear()
        self.sampled += self._plain.abandon(now_ns, out)
        return out

    def knows(self, task_id: Any) -> bool:
        """Whether a task is open, or its end is still remembered."""
        return task_id in self._tasks or task_id in self.done

    def is_open(self, key: Any) -> bool:
        """Whether a program's timespan (category, id) has begun."""
        return self._plain.is_open(key)

    @property
    def late(self) -> int:
        """Spans of tasks that have their results, and are not made before their bodies end."""
        return sum([not task.emitted for task in self._late.values()]) * (1 + self._keeps_scheduler)

    def forget(self, key: Any) -> int:
        """The end of an open task (its id) or timespan (category, id) was given up, and is counted: it is no span.

        How many of its spans are lost that were over.
        """
        task = self._tasks.pop(key, None)
        if task is None:
            self._plain.forget(key)
            return 0
        self._leave(task)
        self.budgets.waiting -= len(task.held)
        run = self._runs.find(task.parent.root)
        if run is not None:
            run.finished += 1
            run.whole = False
            self._runs.touch(run)
        return len(task.held)

    # ---- one method a category -----------------------------------------------------------------

    def _add_thunk(self, event: Event, id: Any, out: list[SpanData]) -> None:
        timeline = event.timeline
        task_id: int = id.thunk_id
        attempt = getattr(timeline, "attempt", 1) or 1
        seen = self._tasks.get(task_id) or self.done.get(task_id)
        if seen is not None and seen.attempt >= attempt:
            return  # told twice: its span has its id already
        replaced = self._retry(task_id, attempt, event.timestamp, out)
        task = OpenTask(task_id, self._parent_of(timeline), event.timestamp, attempt)
        task.f, task.name = timeline.f, getattr(timeline, "name", None)
        task.deps = getattr(timeline, "deps", ())
        task.spawned_by = getattr(timeline, "spawned_by", 0)
        task.retries = replaced
        self._charge(task, out)
        self._tasks[task_id] = task
        self._enter(task, "waiting", event.timestamp)
        if self.observer is not None:
            self.observer.task_opened(task)

    def _schedule_start(self, event: Event, id: Any, out: list[SpanData]) -> None:
        task = self._task(id["thunk_id"], event)
        if task is not None:
            task.placing = event.timestamp
            if not task.ready:
                task.ready = task.placing = self._ready_at(task, event.timestamp)

    def _ready_at(self, task: OpenTask, now: int) -> int:
        """When its last upstream had finished: from then on it waits for a worker, or a place of its limit."""
        ready = task.submitted
        for _, up in task.deps:
            done = self.done.get(up)
            if done is None:  # forgotten, or of another log
                return now
            ready = max(ready, done.finished_ns)
        return min(ready, now) or now  # 0 is "not yet"

    def _schedule_finish(self, event: Event, id: Any, out: list[SpanData]) -> None:
        task = self._tasks.get(id["thunk_id"])
        if task is None:
            return
        task.placed = event.timestamp
        self._enter(task, "queued", event.timestamp)
        if self._keeps_scheduler:
            start = task.placing or task.placed
            self._phase(task, semconv.SCHEDULE, ids.SCHEDULE, start, task.placed, out, task.placements)
        task.placements += 1  # again when the processor goes away that it waits for

    def _fetch_finish(self, event: Event, id: Any, out: list[SpanData]) -> None:
        thunk_id = getattr(event.timeline, "thunk_id", None)
        task = self._tasks.get(thunk_id) if thunk_id is not None else None
        if task is not None and not task.taken:
            self._take(task, event.timestamp, out)

    def _take(self, task: OpenTask, at: int, out: list[SpanData]) -> None:
        task.taken = at
        self._enter(task, "moving", at)
        if self._phases and task.placed:
            task.latest = max(task.latest, at)
            self._put(task, tasks.defined, out, semconv.QUEUE)

    def _move_start(self, event: Event, id: Any, out: list[SpanData]) -> None:
        task_id = id["thunk_id"]
        task = self._tasks.get(task_id) or (self._task(task_id, event) if task_id else None)
        if task is not None:
            if not task.taken:
                self._take(task, event.timestamp, out)
            task.moves[id["position"]] = event.timestamp

    def _move_finish(self, event: Event, id: Any, out: list[SpanData]) -> None:
        task = self._tasks.get(id["thunk_id"])
        if task is None:
            return
        end, timeline = event.timestamp, event.timeline
        if end > task.latest:
            task.latest = end
        if getattr(timeline, "kind", "value") not in MOVED_KINDS:
            return
        position = id["position"]
        start = task.moves.pop(position, end)
        nbytes = getattr(timeline.data, "nbytes", None)
        task.moved += nbytes or 0
        if self.observer is not None:
            self.observer.move_done(task, start, end, timeline, nbytes)
        if self._phases:
            self._move_span(task, position, start, end, timeline, nbytes, out)

    def _move_span(
        self,
        task: OpenTask,
        position: Any,
        start: int,
        end: int,
        timeline: Any,
        nbytes: int | None,
        out: list[SpanData],
    ) -> None:
        if not task.parent.flags & 1:
            self.sampled += 1
            return
        attributes: dict[str, Any] = {
            semconv.TASK_ID: task.id,
            semconv.MOVE_POSITION: plain_text(position),
            semconv.MOVE_KIND: timeline.kind,
            semconv.MOVE_SOURCE: timeline.source,
            semconv.MOVE_DESTINATION: timeline.destination,
        }
        if nbytes is not None:
            attributes[semconv.MOVE_SIZE] = nbytes
        span = tasks.child(task, self._config, semconv.MOVE, ids.MOVE, start, end, attributes, str(position))
        if task.budget is None and not self.moves_charged and (budget := self.budget_of(task.parent)) is not None:
            budget.charge(1, out)
        self._child(task, span, out)

    def _compute_start(self, event: Event, id: Any, out: list[SpanData]) -> None:
        task = self._task(id["thunk_id"], event) or self._revive(id, event)
        if task is None:
            return
        if not task.taken:
            self._take(task, event.timestamp, out)
        task.body_start, task.worker = event.timestamp, event.worker
        task.where, task.processor = id["processor"], tasks.processor_name(id["processor"])
        task.f = task.f if task.f is not None else getattr(event.timeline, "f", None)
        self._enter(task, "running", event.timestamp)

    def _compute_finish(self, event: Event, id: Any, out: list[SpanData]) -> None:
        late = self._late.pop((id["thunk_id"], id["processor"]), None) if self._late else None
        task = late or self._tasks.get(id["thunk_id"])
        if task is None or not task.body_start:
            return
        self._end_body(task, event)
        if self.observer is not None:
            self.observer.body_done(task)
        if self._phases:
            self._put(task, tasks.compute_span, out)
        if late is not None:
            self._end_late(late, out)

    def _end_body(self, task: OpenTask, event: Event) -> None:
        timeline = event.timeline
        task.body_end = event.timestamp
        task.latest = max(task.latest, event.timestamp)
        task.cpu_ns = getattr(timeline, "cpu_ns", None)
        thread = getattr(timeline, "thread_id", None)
        if thread is not None:
            task.thread = (thread, plain_text(getattr(timeline, "thread_name", "")))
        span = getattr(timeline, "span", None)
        task.span = span if isinstance(span, BodySpan) else None
        task.must = task.must or task.span is not None or span == SEEN
        result: Any = getattr(timeline, "result", None)
        task.result_nbytes = getattr(result, "nbytes", None)
        if failures.is_failure(result) and not task.finished:
            self._enter(task, "waiting", event.timestamp)  # for its finish, or for its next attempt
            if task.parent.flags & 1:
                self._describe_failure(task, result)

    def _describe_failure(self, task: OpenTask, error: Any) -> None:
        text = failures.describe(error)
        told = isinstance(error, DTaskFailedError)  # on the task that it fetched
        if told or (task.span is not None and task.span.has_recorded(error)):
            text = text._replace(stack="")
        task.body_failure = None if failures.is_cancellation(error) else text

    def _end_late(self, task: OpenTask, out: list[SpanData]) -> None:
        """The body of a task that has its result already ended at last."""
        run = self._runs.find(task.parent.root)
        if run is not None:
            if not task.emitted:
                run.late -= 1
                self._runs.touch(run)
            run.cover(task.submitted, task.latest)
        if not task.emitted:
            self._emit_task(task, task.ended_as, out)

    def _finish_start(self, event: Event, id: Any, out: list[SpanData]) -> None:
        task = self._task(id["thunk_id"], event)
        if task is not None:
            task.finish_start = event.timestamp

    def _finish_finish(self, event: Event, id: Any, out: list[SpanData]) -> None:
        task = self._tasks.get(id["thunk_id"])
        if task is None:
            return
        timeline = event.timeline
        task.finished = event.timestamp
        task.latest = max(task.latest, event.timestamp)
        task.result = timeline.result
        if isinstance(timeline.result, ChunkInfo):
            task.result_nbytes = timeline.result.nbytes
        task.ended_as = result = getattr(timeline, "state", None) or failures.state_of(timeline.result)
        del self._tasks[task.id]
        self._leave(task)
        bounds = task.bounds()
        self._settle(task, result, bounds)
        if self.observer is not None:
            self.observer.task_done(task, result, bounds)
        if task.body_start and not task.body_end:
            self._late[task.id, task.where] = task
        else:
            self._emit_task(task, result, out, bounds)

    # ---- a task's beginning and end ------------------------------------------------------------

    def _parent_of(self, timeline: Any) -> TraceParent:
        packed = getattr(timeline, "trace", None)
        if packed is not None:
            known, parent = self._unpacked
            if known is not packed:
                parent = ids.unpack(packed)
                self._unpacked = (packed, parent)
            if parent is not None:
                self._runs.arrived(parent)
                return parent
        spawner = self._tasks.get(getattr(timeline, "spawned_by", 0))
        if spawner is None:
            return self._runs.adopt(getattr(timeline, "run_id", 0))
        run = self._runs.find(spawner.parent.root)
        if run is not None:
            run.entered.add()
        phase = ids.COMPUTE if self._phases else ids.TASK
        return spawner.parent._replace(span_id=ids.span_id(spawner.seed, spawner.id, phase, 0, spawner.attempt))

    def _task(self, task_id: int, event: Event) -> OpenTask | None:
        """The open task of a start; one whose submission this log did not see is opened with what is known."""
        task = self._tasks.get(task_id)
        if task is None and task_id not in self.done:
            task = OpenTask(task_id, self._parent_of(event.timeline), event.timestamp)
            self._tasks[task_id] = task
            self._enter(task, "waiting", event.timestamp)
        return task

    def _revive(self, id: Any, event: Event) -> OpenTask | None:
        """A body that begins although its task has a result: it was cancelled on the way there."""
        done = self.done.get(id.thunk_id)
        if done is None:
            return None
        task = OpenTask(id.thunk_id, done.parent, event.timestamp, done.attempt)
        task.emitted, task.taken, task.finished = True, event.timestamp, done.finished_ns
        task.ended_as = "cancellation"
        self._late[id.thunk_id, id.processor] = task
        return task

    def _retry(self, task_id: int, attempt: int, now: int, out: list[SpanData]) -> tuple[int, int, bool] | None:
        """Close the attempt that a new one replaces: (trace id, span id, whether it lost its worker), if any."""
        before = self._tasks.pop(task_id, None)
        if before is None:
            done = self.done.get(task_id) if attempt > 1 else None
            if done is None:
                return None
            return done.parent.trace_id, ids.of(done.base, ids.TASK, 0, done.attempt), False
        if before.body_end:  # it ended then: the delay until the next attempt is nobody's time
            now = before.body_end
        before.finished = before.latest = max(before.latest, now)
        self._leave(before)
        if before.body_start and not before.body_end:
            before.body_end = before.finished
            if self._phases:
                self._put(before, tasks.compute_span, out)
        run = self._runs.find(before.parent.root)
        if run is not None:
            run.retried += 1
            run.cover(before.submitted, before.latest)
        if self.observer is not None:
            self.observer.task_retried(before)
        self._emit_task(before, "retried", out)
        lost = before.body_failure is None or before.body_failure.type == failures.LOST
        return before.parent.trace_id, before.span_id, lost

    def _settle(self, task: OpenTask, result: str, bounds: tuple[int, ...]) -> None:
        """Account for a result: the run's counts, the critical path, what later links need."""
        root = task.parent.root
        run = self._runs.find(root)
        upstreams = []
        for _, up in task.deps:
            done = self.done.get(up)
            if done is not None and (done.parent.root is root or done.parent.root == root):
                upstreams.append((up, done.path))
            elif done is not None:
                self.budgets.settle(up, done)
        path = extend(task.id, bounds[5] - bounds[3] if task.taken else 0, upstreams)
        base = ids.mixed(task.seed, task.id)
        if task.budget is not None:
            task.rollup = self._rollup(task, result)
            base = task.rollup.base if task.rollup is not None and task.budget.over else base
        self.done[task.id] = Done(task.parent, task.finished, task.attempt, path, base)
        self.forget_oldest()
        if run is None:
            return
        run.moved += task.moved
        run.failed += result == "failure"
        run.skipped += result == "skip"
        run.cancelled += result == "cancellation"
        if run.first_failure is None and result in ("failure", "skip"):
            run.first_failure = tasks.first_failure(task, result, self.done.get)
        run.late += bool(task.body_start and not task.body_end)
        self.settle_run(root, 1, bounds[0], bounds[6], task.id, path)

    def _emit_task(
        self, task: OpenTask, result: str, out: list[SpanData], bounds: tuple[int, ...] | None = None
    ) -> None:
        sampled = task.parent.flags & 1
        if not sampled:
            self.sampled += 1 + (self._keeps_scheduler and result in tasks.RESULTS)
            return
        bounds = bounds or task.bounds()
        if self._keeps_scheduler and result in tasks.RESULTS:
            self._child(task, tasks.finish_span(task, self._config, bounds), out)
        if task.budget is None:
            out.append(tasks.task_span(task, self._config, bounds, result, self.done.get))
            return
        done = self.done.get(task.id)
        ups: list[Any] = []
        for _, up in task.deps:
            if up in self.done:
                ups += up, self.done[up]
            else:  # forgotten, or it did not wait for it
                self.budgets.must_be_sent(up)
        nbytes = CANDIDATE_BYTES * (2 + 3 * len(task.held) // 2)
        if task.span is not None and self.budgets.interest is not None:
            nbytes += self.budgets.interest.weigh(task.span.content)
        one = _new(
            Candidate,
            (
                task.id, task.parent, task.spawned_by, task.rollup, len(task.held) + 1, bounds[0],
                bounds[5] - bounds[4], bounds[6], 0 if done is None else done.path, tuple(ups), None, nbytes,
                self._spans_of, task, bounds, result,
            ),
        )  # fmt: skip
        self.budgets.waiting -= len(task.held)
        task.budget.end(one, out)

    def _spans_of(self, one: Candidate) -> list[SpanData]:
        return self.spans_of(one, *one.facts)

    def spans_of(self, one: Candidate, task: OpenTask, bounds: tuple[int, ...], result: str) -> list[SpanData]:
        """The spans of a candidate that is sent after all, its own last."""
        then = dict(one.dependencies)
        span = tasks.task_span(task, self._config, bounds, result, lambda up: self.done.get(up) or then.get(up))
        return [*task.held, span]

    def ordinary_spans(self, task: OpenTask) -> list[SpanData]:
        """Those of a task that succeeded, but its own."""
        if not self._phases:
            return []
        return [tasks.defined(task, self._config, semconv.QUEUE), tasks.compute_span(task, self._config)]

    def _rollup(self, task: OpenTask, result: str) -> RollUp | None:
        """Where a candidate goes that is rolled up; None where it has to be sent one by one."""
        if result != "success" or task.must or task.attempt != 1:
            return None
        function = tasks.qualified_name(task.f)
        rollup: RollUp = task.budget.rollup(function, lambda: task.f)
        task.f = tasks.named(task.f)  # it may wait for long
        return rollup

    def _charge(self, task: OpenTask, out: list[SpanData]) -> None:
        """A task was submitted: is it beyond the bound of its run?"""
        if self.charged is not None:
            (task.budget, task.must), self.charged = self.charged, None
            return
        budget = self.budget_of(task.parent)
        if budget is not None and budget.charge(self.spans_per_task + 2 * self._keeps_scheduler, out):
            task.budget = budget

    def budget_of(self, parent: TraceParent) -> Budget | None:
        """The budget of the tasks with this parent."""
        return self.budgets.of(self._runs.find(parent.root), parent)

    def waiting_spans(self, parent: TraceParent, task: int) -> list[SpanData]:
        """The spans of a task with this parent, if it is a candidate."""
        budget = self.budget_of(parent)
        told = budget.candidates.get(task) if budget is not None else None
        return told.make(told) if told is not None else []

    def _find_open(self, task_id: int, must: bool) -> bool:
        task = self._tasks.get(task_id)
        if task is not None:
            task.must = task.must or must
        return task is not None

    def _phase(
        self, task: OpenTask, name: str, phase: int, start: int, end: int, out: list[SpanData], position: int = 0
    ) -> None:
        task.latest = max(task.latest, end)
        if task.parent.flags & 1:
            span = tasks.child(task, self._config, name, phase, start, end, {semconv.TASK_ID: task.id}, position)
            self._child(task, span, out)
        else:
            self.sampled += 1

    def _child(self, task: OpenTask, span: SpanData, out: list[SpanData]) -> None:
        """A span of a task that is under way: that of a candidate waits for its end."""
        if task.budget is None or task.emitted:
            out.append(span)
        else:
            task.held.append(span)
            self.budgets.waiting += 1

    def _put(self, task: OpenTask, build: Callable[..., SpanData], out: list[SpanData], *more: Any) -> None:
        if task.parent.flags & 1:
            self._child(task, build(task, self._config, *more), out)
        else:
            self.sampled += 1

    def _run_of(self, thunk_id: Any) -> Run | None:
        task = self._tasks.get(thunk_id) if thunk_id is not None else None
        return self._runs.find(task.parent.root) if task is not None else None

    def _enter(self, task: OpenTask, state: str, since: int) -> None:
        if task.active:
            self.active[task.active].pop(task.id, None)
        task.active = state
        if not task.emitted:
            self.active[state][task.id] = since

    def _leave(self, task: OpenTask) -> None:
        if task.active:
            self.active[task.active].pop(task.id, None)
            task.active = ""
