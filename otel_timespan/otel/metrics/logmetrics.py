"""`LogMetrics`: what one `OTelLog` counts and measures, fed as it turns events into spans.

Counts are plain numbers that the hub's instruments read; durations are recorded into histograms, with the task's
span as their exemplar, on the thread that drains the log.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from ...timespans.model import ChunkInfo, Event
from ...timespans.taskrecords import Steps
from .. import semconv
from ..packing.lane import FIRST_BOUNDARY, Lane, Taken
from ..spans import failures, ids
from ..spans.bodyspan import span_context
from ..spans.mapping import SpanMapper
from ..spans.redact import REDACTED, Redact, redacted_text
from ..spans.runs import Run
from ..spans.tasks import OpenTask, qualified_name
from .gauges import ConsumerGauges
from .hub import MeterHub, Points
from .recording import HistogramRecorder, buckets_of

__all__ = ["LogMetrics"]

EXEMPLARS_S = 0.1
NAN = float("nan")
MAX_ANSWERS = 10_000
"""Of `redact`, kept: a collection asks about the same texts each time."""
MAX_GONE = 10_000


class LogMetrics:
    """The metrics of one `OTelLog`: an `Observer` of its mapper and a `MetricSource` of its hub.

    `prepare` drains the log; `account` gives its stats; `redact` is asked about the texts among the attributes. Fed by
    one thread at a time, under the log's lock.
    """

    is_log = True

    def __init__(
        self,
        hub: MeterHub,
        gauges: ConsumerGauges,
        *,
        clock: Callable[[], int],
        lock: Any,
        prepare: Callable[[], object],
        account: Callable[[], Mapping[str, Any]],
        worker: Callable[[], int],
        redact: Redact | None = None,
    ) -> None:
        self._hub, self._gauges = hub, gauges
        self._bytes = _FunctionBytes()
        gauges.listen(_Occurrences(self._count))
        gauges.listen(self._bytes)
        self._clock, self._lock, self._worker = clock, lock, worker
        self._prepare, self._account = prepare, account
        self.mapper: SpanMapper | None = None
        self.lane: Lane | None = None
        self._count_nothing()
        self._record = {
            item.name: HistogramRecorder(hub.histogram(item.name))
            for item in semconv.INSTRUMENTS
            if item.kind == "histogram"
        }
        self._exemplars: set[Any] = set()
        self._renewed_s = 0.0
        self._labels: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._redact = redact
        self._answers: dict[tuple[str, str], str] = {}

    def _count_nothing(self) -> None:
        self.events = 0
        self._counts: dict[str, dict[tuple[Any, ...], float]] = {
            item.name: {} for item in semconv.INSTRUMENTS if item.kind == "counter"
        }
        self._functions: dict[str, str] = {}
        self._error_types: set[str] = set()

    def start_empty(self) -> None:
        """In a forked child: what was counted and measured so far is told by the parent."""
        self._count_nothing()
        self._gauges.start_empty()
        for recorder in self._record.values():
            recorder.start_empty()

    # ---- fed by the log ------------------------------------------------------------------------

    def begin_batch(self) -> None:
        """Events are about to be mapped. Each 100 ms a bucket may get one exemplar again: only the last one stays."""
        now = time.monotonic()
        if now - self._renewed_s >= EXEMPLARS_S:
            self._renewed_s = now
            self._exemplars.clear()

    def feed(self, taken: Taken) -> KeyboardInterrupt | None:
        """What the log took, for the gauges, without its lock: these consumers may block. Ctrl-C in one is returned."""
        self.events += taken.quiet + len(taken.events)
        for steps in taken.steps():
            self._gauges.take_steps(steps)
        return self._gauges.feed(taken.events)

    def task_opened(self, task: OpenTask) -> None:
        """A new task: its function's series begin at 0."""
        self._begin(self._function(task))

    def _begin(self, name: str) -> None:
        self._counts[semconv.TASK_COUNT].setdefault(("success", name), 0)
        self._counts[semconv.TASK_CPU].setdefault((name,), 0)

    def body_done(self, task: OpenTask) -> None:
        """A body ended: what ranks functions, as a task's duration is mostly what it waited for."""
        key = (self._function(task),)
        run_ns = max(0, task.body_end - task.body_start)  # the clock may go back
        self._observe(semconv.TASK_RUN, key, run_ns, task, task.span_id)
        if task.cpu_ns is not None:
            self._count(semconv.TASK_CPU, key, task.cpu_ns / 1e9)

    def task_done(self, task: OpenTask, result: str, bounds: tuple[int, ...]) -> None:
        """A task has its result."""
        name = self._function(task)
        key: tuple[Any, ...] = (result, name)
        if result == "failure" and failures.is_failure(task.result):
            key = (result, name, self._error_type(task))
        elif isinstance(task.result, ChunkInfo):
            self._bytes.made(task.result, name)
        self._count(semconv.TASK_COUNT, key, 1)
        self._observe(semconv.TASK_DURATION, (name, result), bounds[6] - bounds[0], task, task.span_id)
        reached = 1 + sum(1 for b in (task.ready, task.placed, task.taken) if b)
        for i, phase in enumerate(_WAITS[: max(1, reached)]):
            self._observe(semconv.TASK_WAIT, (phase,), bounds[i + 1] - bounds[i], task, task.span_id)

    def tasks_packed(self, taken: Taken) -> None:
        """What the fast lane took: ordinary tasks, all of which succeeded. Must not raise."""
        for name in taken.functions:
            self._begin(self._capped(name))
        self._bytes.all_made(taken.ended, [self._capped(task[0]) for task in taken.tasks])
        tasks = taken.tasks
        if not tasks:
            return
        by_function: dict[str, list[tuple[Any, ...]]] = {}
        if all(task[0] == tasks[0][0] for task in tasks):
            by_function[self._capped(tasks[0][0])] = tasks
        else:
            for task in tasks:
                by_function.setdefault(self._capped(task[0]), []).append(task)
        for name, some in by_function.items():
            self._count(semconv.TASK_COUNT, ("success", name), len(some))
            self._observe_all(semconv.TASK_DURATION, (name, "success"), some, 0, 6)
            self._observe_all(semconv.TASK_RUN, (name,), some, 4, 5)
            self._count(semconv.TASK_CPU, (name,), sum([task[3] or 0 for task in some]) / 1e9)
        for n, phase in enumerate(_WAITS):
            self._observe_all(semconv.TASK_WAIT, (phase,), tasks, n, n + 1)
        for way, moves in taken.moves.items():
            self._observe_all(semconv.MOVE_DURATION, way, moves, 0, 1)
            nbytes = sum([move[3] or 0 for move in moves])
            if nbytes:
                self._count(semconv.MOVE_IO, way, nbytes)

    def _observe_all(
        self, name: str, key: tuple[Any, ...], tasks: Sequence[tuple[Any, ...]], start: int, end: int
    ) -> None:
        """The times between two boundaries of packed tasks. A bucket that may get an exemplar gets one of them."""
        first, last = FIRST_BOUNDARY + start, FIRST_BOUNDARY + end
        values = [(task[last] - task[first]) / 1e9 for task in tasks]
        ordered = sorted(values)
        for bucket, at in buckets_of(ordered, semconv.BOUNDARIES_S):
            task = tasks[values.index(ordered[at])]
            if (name, key, bucket) not in self._exemplars and self._leads_somewhere(task[1]):
                self._observe(name, key, task[last] - task[first], task[1], ids.swapped(task[2]))
                ordered[at] = NAN
        self._record[name].record_all([value for value in ordered if value is not NAN], key, self._labels_of(name, key))

    def move_done(self, task: OpenTask, start_ns: int, end_ns: int, timeline: Any, nbytes: int | None) -> None:
        """An argument was moved."""
        key = (timeline.source, timeline.destination)
        self._observe(semconv.MOVE_DURATION, key, end_ns - start_ns, task, task.span_id)
        if nbytes:
            self._count(semconv.MOVE_IO, key, nbytes)

    def task_retried(self, task: OpenTask) -> None:
        """An attempt was replaced."""
        self._count(semconv.RETRY_COUNT, (task.worker,), 1)

    def run_done(self, run: Run) -> None:
        """A run is over."""
        end_ns = max(run.latest_ns, run.left_ns or 0)
        key = (run.result,)
        self._observe(semconv.DAG_DURATION, key, end_ns - run.start_ns, run, run.root.span_id)
        length = run.path.length_ns if run.path is not None else 0
        self._observe(semconv.DAG_CRITICAL_PATH, key, length, run, run.root.span_id)

    def _count(self, name: str, key: tuple[Any, ...], amount: float) -> None:
        counts = self._counts[name]
        counts[key] = counts.get(key, 0) + amount

    def _function(self, task: OpenTask) -> str:
        return self._capped(qualified_name(task.f))

    def _capped(self, name: str) -> str:
        """What a function's series goes by: beyond so many names they share one."""
        found = self._functions.get(name)
        if found is None:
            found = name if len(self._functions) < semconv.MAX_FUNCTION_NAMES else semconv.OTHER
            if found is name:
                self._functions[name] = name
        return found

    def _error_type(self, task: OpenTask) -> str:
        name = failures.error_type(task.result)
        if name not in self._error_types:
            if len(self._error_types) >= semconv.MAX_ERROR_TYPES:
                return semconv.OTHER
            self._error_types.add(name)
        return name

    def _observe(self, name: str, key: tuple[Any, ...], ns: int, owner: Any, own_id: int) -> None:
        seconds = ns / 1e9
        parent = owner.parent
        context = None
        bucket = (name, key, bisect.bisect_left(semconv.BOUNDARIES_S, seconds))
        if bucket not in self._exemplars and self._leads_somewhere(owner):
            self._exemplars.add(bucket)
            of_span = span_context(parent.trace_id, own_id, parent.flags, parent.trace_state)
            context = set_span_in_context(NonRecordingSpan(of_span), Context())
        self._record[name].record(seconds, key, self._labels_of(name, key), context)

    def _leads_somewhere(self, owner: Any) -> bool:
        """Whether the trace of a task, or of a run, may be shown as an exemplar: it is sampled, and is sent.

        Of a run that is held nobody knows that yet.
        """
        if not owner.parent.flags & 1:
            return False
        if isinstance(owner, Run):
            return owner.budget is None or not owner.budget.holding
        return self.mapper is None or not self.mapper.budgets.is_held(owner.parent)

    def _labels_of(self, name: str, key: tuple[Any, ...]) -> dict[str, Any]:
        labels = self._labels.get((name, key))
        if labels is None:
            labels = dict(zip(semconv.instrument(name).attributes, self._shown(name, key)))  # noqa: B905
            if len(self._labels) < 10_000:
                self._labels[name, key] = labels
        return labels

    # ---- read by the hub -----------------------------------------------------------------------

    def prepare(self) -> None:
        """Drain the log, unless that takes too long."""
        self._prepare()

    def observe(self, instrument: str) -> Points:
        """The present points of one instrument."""
        with self._lock:
            points = self._counters(instrument) if instrument in self._counts else self._levels(instrument)
            return points if self._redact is None else [(self._shown(instrument, key), n) for key, n in points]

    def _shown(self, instrument: str, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """The values of an instrument's attributes as they may leave."""
        if self._redact is None:
            return key
        names = semconv.instrument(instrument).attributes
        return tuple(self._answer(name, value) for name, value in zip(names, key, strict=False))

    def _answer(self, name: str, value: Any) -> Any:
        if self._redact is None or not isinstance(value, str):
            return value
        answer = self._answers.get((name, value))
        if answer is None:
            answer = redacted_text(self._redact, name, value) or REDACTED
            if len(self._answers) < MAX_ANSWERS:
                self._answers[name, value] = answer
        return answer

    def _counters(self, instrument: str) -> Points:
        if instrument == semconv.EVENTS:
            return [((), self.events)]
        if instrument in (semconv.SPANS_BY_OUTCOME, semconv.SPANS_RECORDED, semconv.EVENTS_DROPPED):
            account = self._account()
            dropped = account["dropped"]
            if instrument == semconv.EVENTS_DROPPED:
                return [((reason,), count) for reason, count in dropped.items()]
            if instrument == semconv.SPANS_RECORDED:
                return [((), account["recorded"])]
            lost = sum(dropped.values())
            outcomes = [((outcome,), account.get(outcome, 0)) for outcome in ("exported", "sampled", "rolled_up")]
            return [*outcomes, (("dropped",), lost)]
        return list(self._counts[instrument].items())

    def _levels(self, instrument: str) -> Points:
        if instrument == semconv.TASK_ACTIVE:
            return [((state,), count) for state, (count, _) in self._active().items()]
        if instrument == semconv.TASK_OLDEST_AGE:
            now = self._clock()
            ages = {state: now if since is None else since for state, (_, since) in self._active().items()}
            return [((state,), max(0, now - since) / 1e9) for state, since in ages.items()]
        if instrument == semconv.FUNCTION_BYTES:
            return [((name,), nbytes) for name, nbytes in self._bytes.live.items()]
        if instrument == semconv.SPANS_PENDING:
            return [((), self._account()["pending"])]
        return self._gauges.read(instrument, self._worker())

    def _active(self) -> dict[str, tuple[int, int | None]]:
        """State → (how many tasks, since when the oldest one)."""
        generally = self.mapper.active if self.mapper is not None else {}
        ordinary = self.lane.active() if self.lane is not None else {}
        found: dict[str, tuple[int, int | None]] = {}
        for state, tasks in generally.items():
            count, since = ordinary.get(state, (0, None))
            times = [time for time in (since, next(iter(tasks.values()), None)) if time is not None]
            found[state] = len(tasks) + count, min(times, default=None)
        return found

    def close(self) -> None:
        """Leave the hub."""
        self._hub.remove(self)


_WAITS = ("dependency", "schedule", "queue", "move")


class _Occurrences:
    """A consumer that counts what happens to workers and chunks."""

    categories = frozenset(("proc_steal_local", "handle_fault", "evict"))
    phase = "finish"

    def __init__(self, count: Callable[[str, tuple[Any, ...], float], None]) -> None:
        self._count = count

    def __call__(self, event: Event) -> None:
        if event.category == "handle_fault":
            self._count(semconv.FAULT_COUNT, (event.id.get("worker", event.worker),), 1)  # the event is the core's
        elif event.category == "proc_steal_local":
            if event.timeline is not None:  # an attempt may bring nothing
                self._count(semconv.STEAL_COUNT, (event.worker,), 1)
        elif getattr(event.timeline, "in_memory", True) is not False:  # a spilled chunk dies in no memory
            self._count(semconv.EVICT_COUNT, (event.worker,), 1)

    def take_steps(self, steps: Steps) -> None:
        """The same for records."""
        if steps.evicted:
            self._count(semconv.EVICT_COUNT, (steps.worker,), len(steps.evicted))


class _FunctionBytes:
    """Live bytes of results by the function that made them: of the chunks that `BytesAllocd` counts in all.

    Told of each result by the log (`made`), and as a consumer of what becomes of it.
    """

    categories = frozenset(("evict", "storage_wait"))
    phase = "finish"

    def __init__(self) -> None:
        self.live: dict[str, int] = {}
        self._held: dict[Any, tuple[str, int]] = {}
        self._spilled: dict[Any, tuple[str, int]] = {}
        self._gone: dict[Any, None] = {}  # the last that died: news of their birth may come late

    def made(self, chunk: ChunkInfo, function: str) -> None:
        """A task has this result. A chunk that several tasks have counts for the first."""
        handle = chunk.handle
        known = handle in self._held or handle in self._spilled or handle in self._gone
        if chunk.nbytes is not None and not known:
            self._keep(handle, (function, chunk.nbytes))

    def all_made(self, returned: Sequence[Any], functions: Sequence[str]) -> None:
        """The same of many results, as their records tell."""
        held, spilled, gone = self._held, self._spilled, self._gone
        for record, function in zip(returned, functions, strict=True):
            handle, nbytes = record[7], record[8]
            if nbytes is not None and handle not in held and handle not in spilled and handle not in gone:
                self._keep(handle, (function, nbytes))

    def __call__(self, event: Event) -> None:
        chunk = getattr(event.timeline, "data", None)
        if not isinstance(chunk, ChunkInfo):
            return
        handle = chunk.handle
        if event.category == "storage_wait":
            if handle in self._spilled:
                self._keep(handle, self._spilled.pop(handle))
            return
        self._let_go(handle, getattr(event.timeline, "reason", ""))

    def take_steps(self, steps: Steps) -> None:
        """The same for records."""
        for record in steps.evicted:
            self._let_go(record[2], record[6])

    def _let_go(self, handle: Any, reason: str) -> None:
        made = self._held.pop(handle, None)
        if made is not None:
            self.live[made[0]] -= made[1]
        if reason == "spilled":
            if made is not None:
                self._spilled[handle] = made
            return
        self._spilled.pop(handle, None)
        self._gone[handle] = None
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def _keep(self, handle: Any, made: tuple[str, int]) -> None:
        self._held[handle] = made
        self.live[made[0]] = self.live.get(made[0], 0) + made[1]
