"""`OTelLog`: the sink whose events become OpenTelemetry spans and metrics.

    hot path                         drain thread                              exporter thread
    on_submit ─▶ Runs.submit         Journal ─▶ process(events)
    on_body   ─▶ BodySpan            ├▶ SpanMapper ─▶ SpanData ─▶ redact ─▶ SpanPipeline ─▶ OTLP
    append    ─▶ Journal             └▶ LogMetrics ─▶ instruments

Nothing here raises into user code: what goes wrong is logged once, counted, and the program goes on.
Where to send is found out at the first event , so that a provider that is configured after
the sink is still used. What is emitted is in docs/otel-catalogue.md, what happens when in docs/events.md.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import math
import secrets
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from opentelemetry import context as otel_context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, get_current_span, set_span_in_context

from .. import forks
from ..errors import InvalidOptionError
from ..timespans import scheduler
from ..timespans.journal import STALL_S, Journal, drain_all
from ..timespans.model import Event
from ..timespans.recorder import Recorder
from ..timespans.rows import record_kind
from ..timespans.sink import Sink
from ..timespans.warn import warn_once
from .backend import FROM_ENVIRONMENT, Backend, check_options, checked_max_spans, connect, interest_of
from .dags import tracing_logs
from .export.settings import shown, waitable
from .export.shutdown import SOURCES, on_exit
from .export.sizes import span_nbytes
from .handover import Handover
from .metrics.gauges import ConsumerGauges, default_consumers
from .metrics.hub import PREPARE_S, hub_for
from .metrics.logmetrics import LogMetrics
from .packing.lane import Lane, Taken
from .setup import metrics_of
from .spans import ids
from .spans.bodyspan import BodySpan, LazySpan, span_context
from .spans.ids import Root, TraceParent
from .spans.mapping import DETAILS, SCHEDULER_CATEGORIES, SpanMapper
from .spans.plain import Enclosing, is_program
from .spans.redact import LineFilter, Redact
from .spans.runs import Run, Runs, Sampled, current_run
from .spans.unmapped import Unmapped
from .workers import Forwarded, Part, body_phase, fill_body

__all__ = ["OTelLog"]

(_SPAN_KEY,) = set_span_in_context(NonRecordingSpan(INVALID_SPAN_CONTEXT), otel_context.Context())
"""Where a context has its span: writing it ourselves saves two copies a task."""

_log = logging.getLogger("otel_timespan")

_DRAIN_SHARE = 0.8
"""How much of the time of `close` is for turning what waits into spans."""

_LOCK_S = 0.2
"""How long `close` waits for a drain that is in the middle of something, however late it is."""


class OTelLog(Sink):
    """A sink that sends every task as spans, and the metrics of the scheduler, to OpenTelemetry.

    `tracer_provider`, `meter_provider`: SDK providers to use; by default the global ones where configured,
    else OTLP as the `OTEL_*` variables say. `span_exporter`: an SDK exporter to use instead for spans.
    `detail`: "task", "phases" or "scheduler" (docs/otel-catalogue.md). `metrics`: whether to emit any.
    `consumers`: which consumers feed gauges (default: all that have one). `on_full`: what a full queue
    does, "block", "drop" or "spill"; `max_bytes` bounds it. What is not spans yet takes up to a quarter more (1 to 16
    MiB); where that is full the program waits for the log ("drop": it does not), or is not logged. `block_timeout_s`:
    how long a full queue may hold the program up, in all per outage, and a log that does not get on. `exit_timeout_s`:
    how long the last flush may take.
    `max_spans`: how many spans a run may have until its ordinary tasks are rolled up by function (docs/exporting.md);
    None: no bound; by default what OTEL_TIMESPAN_MAX_SPANS says, else 32,000.
    `keep`: "all", or "interesting": only runs that failed, took longer than `slow_s` or longer than `slow_factor` times
    the median of the last 20 of their name (docs/exporting.md); by default what OTEL_TIMESPAN_KEEP says, else "all".
    `root_quiet_s`: how long nothing must happen until a run that was not opened with `dag` ends.
    `redact(key, text) -> text or None`: asked about every text that leaves (otel/spans/redact.py).
    `clock`: monotonic ns, the clock that the events are stamped with. Where that is simulated
    (`clock=lambda: driver.now`), the moment that the log is made is the present, and later ones lie that much in the
    future; only `flush` and `close` end implicit runs.

    Raises `InvalidOptionError` for options and `OTEL_*` variables that can't work. Thread-safe. It keeps no
    log: `get_logs` raises `LogNotKeptError`.
    """

    def __init__(
        self,
        *,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        span_exporter: Any = None,
        detail: str = "phases",
        metrics: bool = True,
        consumers: Iterable[Any] | None = None,
        on_full: str = "block",
        max_bytes: int = 64 << 20,
        max_spans: int | None = FROM_ENVIRONMENT,
        keep: str | None = None,
        slow_s: float | None = None,
        slow_factor: float = 2.0,
        redact: Redact | None = None,
        block_timeout_s: float = 1.0,
        exit_timeout_s: float = 5.0,
        root_quiet_s: float = 0.1,
        clock: Callable[[], int] = time.monotonic_ns,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise _unknown(unknown)
        self._options = check_options(
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            span_exporter=span_exporter,
            metrics=metrics,
            on_full=on_full,
            max_bytes=max_bytes,
            block_timeout_s=block_timeout_s,
            exit_timeout_s=exit_timeout_s,
            root_quiet_s=root_quiet_s,
        )
        if not isinstance(detail, str) or detail not in DETAILS:
            raise InvalidOptionError(f"detail is one of {', '.join(DETAILS)}, not {shown(detail)}")
        for name, function in (("redact", redact), ("clock", clock)):
            if not callable(function) and (function is not None or name == "clock"):
                raise InvalidOptionError(f"{name} is a function, not {shown(function)}")
        self._max_spans = checked_max_spans(max_spans)
        self._interest = interest_of(keep, slow_s, slow_factor, max_bytes)
        self._gauges = None if consumers is None else ConsumerGauges(consumers)
        self._detail, self._redact, self._clock = detail, redact, clock
        self._offset_ns, self._real_time = time.time_ns() - clock(), clock is time.monotonic_ns
        self._body_phase = body_phase(detail)
        self._backend: Backend | None = None
        self._connecting = forks.rlock()
        self._lock = forks.rlock()  # of the mapper and all counts
        self._closed = False
        self._metrics: LogMetrics | None = None
        self._unpacked: tuple[Any, TraceParent | None, Run | None] = (None, None, None)  # the last parent, and its run
        self._start_empty()
        self._enclosing = Enclosing(self._sample_plain)
        self._forcing: list[bool] = []  # one for each who flushes: while there is one, idle runs end at once
        self._journal = Journal(
            self._process,
            raw=True,
            max_bytes=max(1 << 20, min(16 << 20, max_bytes // 4)),
            block_timeout_s=0.0 if on_full == "drop" else block_timeout_s,
            refuse=lambda record, hard: self._unmapped.refuse(record, hard),
            lost=self._lose,
        )
        self._forwarded = Forwarded(
            lambda: self._backend is not None, self._part, lambda: self._runs, lambda: self._journal.put(_TICK)
        )
        self.recorder = Recorder(
            self._journal.append,
            workers=self._forwarded,
            put=self._journal.put,
            event=self._append_event,
            again=self._journal.again,
            on_submit=self._on_submit,
            on_body=self._on_body,
            wants_cpu=True,
        )
        self._forget_exit: Callable[[], None] = _nothing
        if redact is not None:
            _filter_lines(self, redact)
        tracing_logs.append(weakref.ref(self, _forget))

    def _start_empty(self) -> None:
        self._made = 0  # spans that came out of the mapper
        self._failed = 0  # events that could not be mapped
        self._handover = Handover(lambda: self._backend, self._redact, self._lock)
        self._never_made: Counter[str] = Counter()  # by reason: spans of records that were never looked at
        quiet_ns = int(self._options.root_quiet_s * 1e9)
        self._runs = Runs(self._open_root, secrets.randbits(62) | 1 << 62, quiet_ns, self._clock, self._losses)
        self._mapper = SpanMapper(
            self._runs, detail=self._detail, offset_ns=self._offset_ns, max_spans=self._max_spans,
            interest=self._interest,
        )  # fmt: skip
        self._unmapped = Unmapped(self._runs, self._mapper, self._detail)
        self._lane = Lane(
            self._mapper, self._offset_ns, None, None if self._real_time else self._restamped, self._unmapped.keep
        )
        self._unmapped.lane = self._lane
        if self._backend is not None:
            self._take_limits(self._backend)
        self._mapper.observer = self._metrics
        if self._metrics is not None:
            self._metrics.mapper, self._metrics.lane = self._mapper, self._lane

    def _after_fork(self) -> None:
        """In a forked child: what was under way is the parent's, and so is what was counted."""
        self._forcing = []
        self._forwarded.start_empty()
        if self._metrics is not None:
            self._metrics.start_empty()
        self._start_empty()

    # ---- the sink ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._backend is not None else "not used yet"
        return f"<OTelLog: {state}, detail={self._detail!r}, {self._made} spans>"

    def write_event(self, event: Event) -> None:
        """Take one event."""
        self.recorder.event(event)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send all that ended before this call, metrics too; True when it arrived (or was refused) in time.

        A run without tasks under way that was not opened with `dag` ends here.
        """
        timeout_s = waitable("timeout_s", timeout_s)
        deadline = time.monotonic() + timeout_s
        try:
            drained = self._drain_all(timeout_s)
            backend = self._backend
            if backend is None:
                return drained
            sent = drained and backend.flush(max(0.0, deadline - time.monotonic()))
            return sent
        except Exception:
            warn_once(self, "flushing the OpenTelemetry log failed")
            return False

    def close(self, timeout_s: float | None = None) -> None:
        """Close what is open as abandoned, send everything within `exit_timeout_s`, and take no more events.

        What is not spans yet has four fifths of the time to become some; what is left is dropped ("shutdown").
        """
        self._forget_exit()
        if self._closed:
            return
        seconds = self._options.exit_timeout_s if timeout_s is None else waitable("timeout_s", timeout_s)
        deadline = time.monotonic() + seconds
        try:
            self._drain_all(seconds * _DRAIN_SHARE)
            self._closed = True
            self.recorder.append = self.recorder.put = self.recorder.event = _ignore
            self._forwarded.close()
            tracing_logs[:] = [ref for ref in tracing_logs if ref() is not self]
            self._handover.stop_at = deadline
            self._end(deadline)
            backend = self._backend
            if backend is not None:
                try:
                    backend.close(max(0.0, deadline - time.monotonic()))
                finally:
                    if self._metrics is not None:
                        self._metrics.close()  # its counters stay as they are now, for the collections to come
        except Exception:
            warn_once(self, "closing the OpenTelemetry log failed")

    def _end(self, deadline: float) -> None:
        """Account for what was never looked at, and for what is open."""
        if not self._lock.acquire(timeout=max(_LOCK_S, deadline - time.monotonic())):
            self._journal.close()
            warn_once(self, "the OpenTelemetry log is closed while it is at work; its account stays open")
            return
        try:
            left = self._journal.close()
            lost = self._unmapped.give_up(left) if self._counts else 0
            self._never_made["shutdown"] += lost
            in_hand = self._handover.in_hand
            last = Taken()
            last.spans += self._lane.hand_over()
            last.spans += self._mapper.abandon(self._clock())
            self._end_runs(self._runs.end_all(), last)
            self._mapper.budgets.end_strays(math.inf, last.spans)
            self._take_packed(last)
            forwarded = self._forwarded.collect()
            self._count(len(last.spans) + last.count + len(forwarded))
        finally:
            self._lock.release()
        if lost:
            _log.warning("%d spans are lost: the log could not look at what they tell of in time", lost)
        self._handover.packed(last.packed, last.count)
        self._handover.forwarded(forwarded)
        self._handover.last(last.spans, deadline, in_hand)

    def __enter__(self) -> OTelLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> dict[str, Any]:
        """The account of spans: `recorded` = `exported` + `sampled` + `rolled_up` + `pending` + the sum of `dropped`.

        It begins with what happened: what the log has not looked at yet is `pending`, as the spans that it will become.
        `sampled` were not built because their run is not sampled, or not sent because it is not interesting;
        `rolled_up` were not built because their run has more than `max_spans`; as long as that is not decided they are
        `pending`. `recorded` never falls. `dropped` is {reason: count}. Events that could not be mapped count as
        recorded and as dropped for the reason "error".
        """
        with self._lock:
            account = self._account()
            waiting = self._journal.waiting() if self._counts else []
            begun = self._unmapped.begun(waiting)
        unseen = self._unmapped.surely(waiting, begun) + self._forwarded.waiting
        return {**account, "recorded": account["recorded"] + unseen, "pending": account["pending"] + unseen}

    def _account(self) -> dict[str, Any]:
        """`stats` without what was not looked at yet: that takes time, and a counter must not fall."""
        with self._lock:
            backend = self._backend
            exported, dropped = backend.account() if backend is not None else (0, {})
            handover, (held_unsampled, held) = self._handover, self._lane.held
            sampled = self._mapper.sampled + held_unsampled
            refused = self._unmapped.refused if self._counts else 0
            never_made = self._never_made + Counter(journal_full=refused) + Counter(self._forwarded.dropped)
            unmade = (("error", handover.lost + self._failed), ("shutdown", handover.late))
            for reason, count in (*never_made.items(), *unmade):
                if count:
                    dropped[reason] = dropped.get(reason, 0) + count
            pending = self._made + held + self._failed + sum(never_made.values()) - exported - sum(dropped.values())
            pending += self._mapper.budgets.waiting + self._mapper.late
            rolled_up = self._mapper.budgets.rolled_up
        recorded = exported + sampled + rolled_up + pending + sum(dropped.values())
        return {
            "recorded": recorded, "exported": exported, "sampled": sampled, "rolled_up": rolled_up,
            "pending": pending, "dropped": dropped,
        }  # fmt: skip

    @property
    def _counts(self) -> bool:
        """Whether spans go anywhere: else nothing is counted but what is sampled away."""
        backend = self._backend
        return backend is None or backend.takes_spans

    # ---- hooks of the scheduler ----------------------------------------------------------------

    def _on_submit(self) -> tuple[Any, ...] | None:
        try:
            backend = self._backend or self._connect()
            return self._runs.submit() if backend is not None and not self._closed else None
        except Exception:
            warn_once(OTelLog._on_submit, "the caller of a task could not be noted; the task joins no trace")
            return None

    def _on_body(
        self, task_id: int, attempt: int, function: Any, label: str | None, packed: Any, start_ns: int
    ) -> BodySpan | None:
        """Make the body's span current in the body's own context, which is thrown away after it."""
        try:
            known, parent, run = self._unpacked
            if known is not packed:
                parent = ids.unpack(packed)
                run = self._runs.find(parent.root) if parent is not None else None
                self._unpacked = (packed, parent, run)
            if parent is None or self._closed:
                return None
            if run is not None and current_run.get() is not run:
                current_run.set(run)
            backend, before = self._backend, otel_context.get_current()
            if not parent.flags & 1:
                own = ids.span_id(parent.seed, task_id, self._body_phase, 0, attempt)
                context = span_context(parent.trace_id, own, 0, parent.trace_state)
                otel_context.attach(set_span_in_context(NonRecordingSpan(context), before))
                return None
            span = LazySpan(self._fill, self._weigh, parent, task_id, attempt, function, start_ns)
            otel_context.attach(otel_context.Context({**before, _SPAN_KEY: span}))
            if backend is not None and backend.on_start is not None:
                backend.on_start(span, before)
            return span
        except Exception:
            warn_once(OTelLog._on_body, "a body runs without a current span")
            return None

    def _weigh(self, span: LazySpan) -> None:
        """A body put something on its span, which will wait in the journal."""
        self._journal.weigh(span_nbytes(span.content))

    def _fill(self, span: LazySpan) -> None:
        """Somebody looks at the span of a body."""
        backend = self._backend
        assert backend is not None
        fill_body(span, self._detail, self._offset_ns, backend.limits, backend.resource, backend.scope)

    def _part(self) -> Part | None:
        """What this log is in a worker process."""
        backend = self._backend
        if backend is None or not backend.takes_spans or self._closed:
            return None
        resource = dict(backend.resource.attributes) if backend.resource is not None else {}
        waits, metrics = self._options.on_full == "block", metrics_of(backend.meter_provider)
        return Part(self._detail, self._offset_ns, backend.limits, resource, waits, metrics)

    @property
    def serves_scheduler(self) -> bool:
        """Whether any task was seen."""
        return self._mapper.saw_tasks

    # ---- runs ----------------------------------------------------------------------------------

    def open_run(self, name: str, attributes: Mapping[str, Any]) -> Run | None:
        """A run for `with dag(...)`; None when nothing is to be sent."""
        if self._closed or (self._backend or self._connect()) is None:
            return None
        return self._runs.open_explicit(name, attributes)

    def leave_run(self, run: Run, error: BaseException | None) -> None:
        """The block was left; the root ends when its tasks are done."""
        run.error = error
        run.left_ns = self._clock()
        self._runs.touch(run)
        self._journal.put(_TICK)

    def _open_root(self, name: str, start_ns: int, attributes: Mapping[str, Any], explicit: bool) -> Any:
        backend = self._backend
        assert backend is not None
        above = otel_context.get_current() if explicit else otel_context.Context()
        outer = get_current_span(above).get_span_context()
        trace_id = outer.trace_id if outer.is_valid else backend.new_trace_id()
        sampled = backend.sample(above, trace_id, name, attributes)
        span_id = backend.new_span_id()
        attributes = {**attributes, **sampled.attributes}
        root = Root(span_id, name, start_ns, outer.span_id if outer.is_valid else 0, attributes, explicit)
        parent = TraceParent(trace_id, span_id, sampled.flags, sampled.trace_state, self._runs.seed, root)
        if not sampled.flags & 1:
            return parent, NonRecordingSpan(span_context(trace_id, span_id, 0, sampled.trace_state))
        span = BodySpan(
            name, trace_id, span_id, root.parent_id, sampled.flags, sampled.trace_state, start_ns + self._offset_ns,
            backend.limits, backend.resource, backend.scope,
        )  # fmt: skip
        if explicit and backend.on_start is not None:
            backend.on_start(span, above)
        return parent, span

    def _sample_plain(self, trace_id: int, name: str) -> Sampled:
        backend = self._backend
        assert backend is not None
        return backend.sample(otel_context.Context(), trace_id, name, {})

    # ---- the drain -----------------------------------------------------------------------------

    def _append_event(self, event: Event) -> None:
        """An event: a program's own has to be placed on the thread that emits it."""
        try:
            if (self._backend or self._connect()) is None:
                return
            if is_program(event, SCHEDULER_CATEGORIES):
                event = self._enclosing.place(event)
        except Exception:
            warn_once(self, "an event could not be placed in a trace")
        self._journal.append(event)

    def _process(self, records: list[Any]) -> None:
        """Called by the journal, never twice at once."""
        # Where to send is found out for what happened: a log that is only flushed and closed sets nothing up.
        if self._backend is None and (all(one is _TICK for one in records) or self._connect() is None):
            return
        with self._lock:
            if self._handover.stop_at is not None:  # the log was closed before the drain came to these
                self._never_made["shutdown"] += self._unmapped.of(records) if self._counts else 0
                self._journal.settle()
                return
            taken = self._take(records)
            forwarded = self._forwarded.collect()
            self._end_runs(self._runs.tick(bool(self._forcing)), taken)
            quiet_since = math.inf if self._forcing else self._clock() - self._options.root_quiet_s * 1e9
            waits = self._mapper.budgets.end_strays(quiet_since, taken.spans)
            self._take_packed(taken)
            self._count(len(taken.spans) + taken.count + len(forwarded))
            self._journal.settle()  # from here on they are spans
            waiting = waits or self._runs.idle_but_open()
        interrupt = self._measure(taken)
        self._handover.packed(taken.packed, taken.count)
        self._handover.spans(taken.spans)
        self._handover.forwarded(forwarded)
        if waiting and not self._closed:
            self._journal.put(_TICK)  # come back: a run ends when it has been quiet
        if interrupt is not None:
            raise interrupt

    def _take(self, records: list[Any]) -> Taken:
        """Have the lane, and the mapper behind it, look at records."""
        metrics = self._metrics
        if metrics is not None:
            metrics.begin_batch()
        taken = self._lane.take(records)
        if self._forcing:
            taken.spans += self._lane.hand_over(begun=True)  # the `queue` of what runs is over
            self._mapper.budgets.release(taken.spans)
        self._failed += taken.failed
        if metrics is not None:
            metrics.tasks_packed(taken)
        return taken

    def _lose(self, records: Sequence[Any]) -> None:
        """The journal gave up records: what was to take them failed, or they came while it was being closed."""
        with self._lock:
            reason = "error" if self._handover.stop_at is None else "shutdown"
            self._never_made[reason] += self._unmapped.give_up(records) if self._counts else 0

    def _measure(self, taken: Taken) -> KeyboardInterrupt | None:
        """Have the consumers of gauges look at what was taken. Ctrl-C in one comes back."""
        try:
            return self._metrics.feed(taken) if self._metrics is not None else None
        except Exception:
            warn_once(self._metrics, "events could not be counted; the metrics of tasks are wrong")
            return None

    def _restamped(self, event: Event) -> Event:
        """With a clock of its own: what died says when by the real one, for a finalizer knows no other."""
        return event._replace(timestamp=self._clock()) if event.category == "evict" else event

    def _end_runs(self, runs: Iterable[Run], taken: Taken) -> None:
        for run in runs:
            try:
                taken.spans += self._mapper.end_run(run)
                if self._metrics is not None:
                    self._metrics.run_done(run)
            except Exception:
                self._failed += 1
                warn_once(self._runs, "the root of a run could not be built")

    def _take_packed(self, taken: Taken) -> None:
        """What waited as bytes, and is sent."""
        packed = self._mapper.budgets.take_packed()
        taken.packed += packed
        taken.count += len(packed) * self._mapper.spans_per_task

    def _count(self, count: int) -> None:
        """Spans were made; they are pending until the backend says more. Call with the lock."""
        backend = self._backend
        if backend is None or backend.takes_spans:
            self._made += count

    def _drain_all(self, timeout_s: float) -> bool:
        """Process what happened so far, and end the runs that are idle; False if that took too long."""
        deadline = time.monotonic() + timeout_s
        drain_all(forwarding_only=True, timeout_s=min(timeout_s, STALL_S))  # what finalizers told a sink before us
        self._journal.drain(timeout_s=max(0.0, deadline - time.monotonic()))
        self._forcing.append(True)
        try:
            self._journal.put(_TICK)
            return self._journal.drain(timeout_s=max(0.0, deadline - time.monotonic()))
        finally:
            self._forcing.pop()

    def _losses(self) -> int:
        backend = self._backend
        unmade = self._handover.lost + self._failed + self._handover.late
        unmade += sum(self._never_made.values()) + self._unmapped.refused
        unmade += sum(self._forwarded.dropped.values())
        return unmade + (sum(backend.account()[1].values()) if backend is not None else 0)

    # ---- where to send -------------------------------------------------------------------------

    def _connect(self) -> Backend | None:
        """Find out where to send; None when OpenTelemetry is switched off or that failed."""
        with self._connecting, forks.held_off:
            if self._backend is not None or self._closed:
                return self._backend
            try:
                backend = connect(self._options, self._redact)
                if backend is not None:
                    self._start_metrics(backend)
            except Exception:
                warn_once(self, "the OpenTelemetry log can't be set up; nothing is sent")
                backend = None
            if backend is None:
                self._closed = True
                self.recorder.append = self.recorder.put = self.recorder.event = _ignore
                return None
            self._take_limits(backend)
            self._backend = backend
            self._forget_exit = on_exit(self._close_at_exit, SOURCES, self._options.exit_timeout_s)
            return backend

    def _take_limits(self, backend: Backend) -> None:
        self._mapper.limit_links(backend.limits.links)
        # Who redacts is asked about every text of every span, and so sees every span.
        self._lane.limits = backend.packing_limits if self._redact is None else None

    def _start_metrics(self, backend: Backend) -> None:
        if backend.meter_provider is None:
            return
        try:
            hub = hub_for(backend.meter_provider)
            self._gauges = self._gauges or ConsumerGauges(default_consumers())
            self._metrics = LogMetrics(
                hub,
                self._gauges,
                clock=self._clock,
                lock=self._lock,
                prepare=lambda: self._journal.drain(timeout_s=PREPARE_S),
                account=self._account,
                worker=lambda: scheduler.this_worker(),
                redact=self._redact,
            )
            self._metrics.mapper, self._metrics.lane = self._mapper, self._lane
            self._mapper.observer = self._metrics
            hub.add(self._metrics)
        except Exception:
            warn_once(hub_for, "metrics can't be set up; spans are sent all the same")

    def _close_at_exit(self, seconds: float) -> None:
        self.close(seconds)


def _expand_nothing(record: Any, out: list[Event]) -> None:
    """A record that only makes the drain come by."""


_TICK = (record_kind(_expand_nothing),)


def _ignore(record: Any) -> None:
    """What a closed log does with records."""


_OF_EXPORTERS = {"endpoint", "url", "host", "headers", "protocol", "insecure", "certificate", "compression", "timeout"}


def _unknown(given: Mapping[str, object]) -> InvalidOptionError:
    """The error for keywords that there are not: most of them are an exporter's."""
    name = next(iter(given))
    if name in _OF_EXPORTERS:
        where = f"OTEL_EXPORTER_OTLP_{'ENDPOINT' if name in ('url', 'host') else name.upper()}"
        return InvalidOptionError(
            f"OTelLog takes no {name}: set the variable {where}, as for any program with OpenTelemetry, or give it "
            f"an exporter, OTelLog(span_exporter=OTLPSpanExporter({name}=...))"
        )
    if name.startswith(("service", "resource")):
        return InvalidOptionError(f"OTelLog takes no {name}: set OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES")
    known = inspect.signature(OTelLog).parameters.keys() - {"unknown"}
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
    return InvalidOptionError(f"OTelLog takes no {name}: {hint}")


def _nothing() -> None:
    """What a log that is not registered for the exit forgets."""


def _filter_lines(log: OTelLog, redact: Redact) -> None:
    """Have `redact` asked about the lines that this package logs while the log is there, closed or not.

    For some come after its close: failures that nobody fetched are told when the program ends.
    """
    lines = LineFilter(redact)
    lines.install()
    weakref.finalize(log, lines.remove).atexit = False


@forks.in_child()  # `tracing_logs` holds weak references
def _in_child() -> None:
    for reference in tracing_logs:
        log = reference()
        if log is not None:
            log._after_fork()


def _forget(reference: weakref.ref[Any]) -> None:
    tracing_logs[:] = [ref for ref in tracing_logs if ref is not reference]
