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

import logging
import os
import secrets
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context

from ..errors import InvalidOptionError
from ..timespans import scheduler
from ..timespans.journal import STALL_S, Journal, drain_all
from ..timespans.model import Event
from ..timespans.recorder import Recorder
from ..timespans.rows import record_kind
from ..timespans.sink import Sink
from ..timespans.warn import warn_once
from . import semconv
from .backend import Backend, check_options, connect
from .dags import tracing_logs
from .export.shutdown import SOURCES, on_exit
from .metrics.gauges import ConsumerGauges, default_consumers
from .metrics.hub import PREPARE_S, hub_for
from .metrics.logmetrics import LogMetrics
from .spans import ids
from .spans.bodyspan import BodySpan, span_context
from .spans.ids import Root, TraceParent
from .spans.mapping import DETAILS, SCHEDULER_CATEGORIES, SpanMapper
from .spans.plain import Enclosing, is_program
from .spans.redact import Redact, redacted
from .spans.runs import Run, Runs, Sampled, current_run
from .spans.spandata import SpanData
from .spans.tasks import task_name
from .spans.unmapped import Unmapped

__all__ = ["OTelLog"]

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
    `root_quiet_s`: how long nothing must happen until a run that was not opened with `dag` ends.
    `redact(key, text) -> text or None`: asked about every text that leaves. `clock`: monotonic ns, the clock that
    the events are stamped with. Where that is simulated (`clock=lambda: driver.now`), the moment that the log
    is made is the present, and later ones lie that much in the future; only `flush` and `close` end implicit runs.

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
        redact: Redact | None = None,
        block_timeout_s: float = 1.0,
        exit_timeout_s: float = 5.0,
        root_quiet_s: float = 0.1,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
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
        if detail not in DETAILS:
            raise InvalidOptionError(f"detail is one of {', '.join(DETAILS)}, not {detail!r}")
        for name, function in (("redact", redact), ("clock", clock)):
            if function is not None and not callable(function):
                raise InvalidOptionError(f"{name} is a function, not {function!r}")
        self._gauges = None if consumers is None else ConsumerGauges(consumers)
        self._detail, self._redact, self._clock = detail, redact, clock
        self._offset_ns, self._real_time = time.time_ns() - clock(), clock is time.monotonic_ns
        self._body_phase = ids.TASK if detail == "task" else ids.COMPUTE
        self._backend: Backend | None = None
        self._connecting = threading.RLock()
        self._lock = threading.RLock()  # of the mapper and all counts
        self._closed = False
        self._metrics: LogMetrics | None = None
        self._unpacked: tuple[Any, TraceParent | None] = (None, None)  # the last parent: tasks of a run share it
        self._start_empty()
        self._enclosing = Enclosing(self._sample_plain)
        self._forcing: list[bool] = []  # one for each who flushes: while there is one, idle runs end at once
        self._handing: list[int] | None = None  # how many spans are being redacted; who pops it accounts for them
        self._stop_at: float | None = None  # the deadline of `close`
        self._journal = Journal(
            self._process,
            max_bytes=max(1 << 20, min(16 << 20, max_bytes // 4)),
            block_timeout_s=0.0 if on_full == "drop" else block_timeout_s,
            refuse=lambda record, hard: self._unmapped.refuse(record, hard),
            lost=self._lose,
        )
        self.recorder = Recorder(
            self._append,
            put=self._journal.put,
            again=self._journal.again,
            on_submit=self._on_submit,
            on_body=self._on_body,
            wants_cpu=True,
        )
        self._forget_exit: Callable[[], None] = _nothing
        tracing_logs.append(weakref.ref(self, _forget))

    def _start_empty(self) -> None:
        self._made = 0  # spans that came out of the mapper
        self._failed = 0  # events that could not be mapped
        self._lost = 0  # spans that could not be handed on
        self._late = 0  # spans that the end of the log came before
        self._never_made: Counter[str] = Counter()  # by reason: spans of records that were never looked at
        quiet_ns = int(self._options.root_quiet_s * 1e9)
        self._runs = Runs(self._open_root, secrets.randbits(62) | 1 << 62, quiet_ns, self._clock, self._losses)
        self._mapper = SpanMapper(self._runs, detail=self._detail, offset_ns=self._offset_ns)
        self._unmapped = Unmapped(self._runs, self._mapper, self._detail)
        self._mapper.observer = self._metrics
        if self._metrics is not None:
            self._metrics.mapper = self._mapper

    def _after_fork(self) -> None:
        """In a forked child: what was under way is the parent's."""
        self._lock, self._connecting = threading.RLock(), threading.RLock()
        self._handing = None
        self._forcing = []
        if self._gauges is not None:
            self._gauges.after_fork()
        self._start_empty()

    # ---- the sink ------------------------------------------------------------------------------

    def write_event(self, event: Event) -> None:
        """Take one event."""
        self.recorder.append(event)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send all that ended before this call, metrics too; True when it arrived (or was refused) in time.

        A run without tasks under way that was not opened with `dag` ends here.
        """
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
        seconds = self._options.exit_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + seconds
        try:
            self._drain_all(seconds * _DRAIN_SHARE)
            self._closed = True
            self.recorder.append = self.recorder.put = _ignore
            tracing_logs[:] = [ref for ref in tracing_logs if ref() is not self]
            self._stop_at = deadline
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
            handing = self._handing
            out: list[SpanData] = []
            out += self._mapper.abandon(self._clock())
            self._end_runs(self._runs.end_all(), out)
            self._count(out)
        finally:
            self._lock.release()
        if lost:
            _log.warning("%d spans are lost: the log could not look at what they tell of in time", lost)
        own = self._deliver_until(deadline, out)
        for one in (handing, own):  # whoever is at them may be so for ever
            while one and time.monotonic() < deadline:
                time.sleep(0.001)
            if one:
                self._account_for(one, 0)

    def _deliver_until(self, deadline: float, spans: list[SpanData]) -> list[int]:
        """Deliver the last spans, in another thread where that asks code of the user's, which may not come back."""
        handing = [len(spans)] if spans else []
        if self._redact is not None and spans:
            thread = threading.Thread(target=self._deliver, args=(spans, handing), name="timespan-close", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter goes down
                pass
            else:
                thread.join(max(0.0, deadline - time.monotonic()))
                return handing
        self._deliver(spans, handing)
        return handing

    def __enter__(self) -> OTelLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> dict[str, Any]:
        """The account of spans: `recorded` = `exported` + `sampled` + `pending` + the sum of `dropped`.

        It begins with what happened: what the log has not looked at yet is `pending`, as the spans that it will become.
        `sampled` were not built because their run is not sampled; `dropped` is {reason: count}. Events that
        could not be mapped count as recorded and as dropped for the reason "error".
        """
        with self._lock:
            account = self._account()
            waiting = self._journal.waiting() if self._counts else []
        unseen = self._unmapped.of(waiting)
        return {**account, "recorded": account["recorded"] + unseen, "pending": account["pending"] + unseen}

    def _account(self) -> dict[str, Any]:
        """`stats` without what was not looked at yet: that takes time, and a counter must not fall."""
        with self._lock:
            backend = self._backend
            exported, dropped = backend.account() if backend is not None else (0, {})
            sampled = self._mapper.sampled
            refused = self._unmapped.refused if self._counts else 0
            never_made = self._never_made + Counter(journal_full=refused)
            for reason, count in (*never_made.items(), ("error", self._lost + self._failed), ("shutdown", self._late)):
                if count:
                    dropped[reason] = dropped.get(reason, 0) + count
            pending = self._made + self._failed + sum(never_made.values()) - exported - sum(dropped.values())
        recorded = exported + sampled + pending + sum(dropped.values())
        return {
            "recorded": recorded, "exported": exported, "sampled": sampled, "pending": pending, "dropped": dropped,
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
            known, parent = self._unpacked
            if known is not packed:
                parent = ids.unpack(packed)
                self._unpacked = (packed, parent)
            if parent is None or self._closed:
                return None
            own = ids.span_id(parent.seed, task_id, self._body_phase, 0, attempt)
            run = self._runs.find(parent.root)
            if run is not None:
                current_run.set(run)
            if not parent.flags & 1:
                context = span_context(parent.trace_id, own, 0, parent.trace_state)
                otel_context.attach(set_span_in_context(NonRecordingSpan(context)))
                return None
            return self._enter_body(task_id, attempt, function, parent, own, start_ns)
        except Exception:
            warn_once(OTelLog._on_body, "a body runs without a current span")
            return None

    def _enter_body(
        self, task_id: int, attempt: int, function: Any, parent: TraceParent, own: int, start_ns: int
    ) -> BodySpan:
        backend = self._backend
        assert backend is not None
        task = self._detail == "task"
        name = task_name(function) if task else semconv.COMPUTE
        above = parent.span_id if task else ids.span_id(parent.seed, task_id, ids.TASK, 0, attempt)
        span = BodySpan(
            name, parent.trace_id, own, above, parent.flags, parent.trace_state, start_ns + self._offset_ns,
            backend.limits, backend.resource, backend.scope,
        )  # fmt: skip
        before = otel_context.get_current()
        otel_context.attach(set_span_in_context(span, before))
        if backend.on_start is not None:
            backend.on_start(span, before)
        return span

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

    def _append(self, record: Any) -> None:
        try:
            if self._backend is None and self._connect() is None:
                return
            if type(record) is Event and is_program(record, SCHEDULER_CATEGORIES):
                record = self._enclosing.place(record)
        except Exception:
            warn_once(self, "an event could not be placed in a trace")
        self._journal.append(record)

    def _process(self, events: list[Event]) -> None:
        """Called by the journal, never twice at once."""
        out: list[SpanData] = []
        if not self._real_time:
            events = list(map(self._restamped, events))
        with self._lock:
            if self._stop_at is not None:  # the log was closed before the drain came to these
                self._never_made["shutdown"] += self._unmapped.of_events(events) if self._counts else 0
                self._journal.settle()
                return
            events = self._map(self._unmapped.keep(events), out)
            self._end_runs(self._runs.tick(bool(self._forcing)), out)
            self._count(out)
            self._journal.settle()  # from here on they are spans
            waiting = self._runs.idle_but_open()
        interrupt = self._measure(events)
        self._deliver(out)
        if waiting and not self._closed:
            self._journal.put(_TICK)  # come back: a run ends when it has been quiet
        if interrupt is not None:
            raise interrupt

    def _map(self, events: list[Event], out: list[SpanData]) -> list[Event]:
        """Have the mapper look at events: those that it could make something of."""
        feed, metrics = self._mapper.feed_into, self._metrics
        if metrics is not None:
            metrics.begin_batch()
        bad: list[Event] = []
        for event in events:
            try:
                feed(event, out)
            except Exception:
                bad.append(event)
                warn_once(self._mapper, "an event could not be turned into spans: %.300r", event)
        if bad:
            self._failed += len(bad)
            events = [event for event in events if not any(event is one for one in bad)]
        return events

    def _lose(self, records: Sequence[Any]) -> None:
        """The journal gave up records: what was to take them failed, or they came while it was being closed."""
        with self._lock:
            reason = "error" if self._stop_at is None else "shutdown"
            self._never_made[reason] += self._unmapped.give_up(records) if self._counts else 0

    def _measure(self, events: list[Event]) -> KeyboardInterrupt | None:
        """Have the metrics look at events that the mapper had. Ctrl-C in a consumer comes back."""
        try:
            return self._metrics.feed(events) if self._metrics is not None else None
        except Exception:
            warn_once(self._metrics, "events could not be counted; the metrics of tasks are wrong")
            return None

    def _restamped(self, event: Event) -> Event:
        """With a clock of its own: what died says when by the real one, for a finalizer knows no other."""
        return event._replace(timestamp=self._clock()) if event.category == "evict" else event

    def _end_runs(self, runs: Iterable[Run], out: list[SpanData]) -> None:
        for run in runs:
            try:
                out += self._mapper.end_run(run)
                if self._metrics is not None:
                    self._metrics.run_done(run)
            except Exception:
                self._failed += 1
                warn_once(self._runs, "the root of a run could not be built")

    def _count(self, spans: list[SpanData]) -> None:
        """Spans were made; they are pending until the backend says more. Call with the lock."""
        backend = self._backend
        if backend is None or backend.takes_spans:
            self._made += len(spans)

    def _deliver(self, spans: list[SpanData], handing: list[int] | None = None) -> None:
        if not spans:
            return
        backend = self._backend
        handing = self._handing = handing or [len(spans)]
        try:
            ready = self._redacted(spans)
            if self._account_for(handing, len(ready)) and backend is not None:
                backend.put(ready)
        except BaseException as error:
            self._lost += len(spans)
            if not isinstance(error, Exception):
                raise
            warn_once(self, "spans could not be handed to the exporter")
        finally:
            self._handing = None

    def _redacted(self, spans: list[SpanData]) -> list[SpanData]:
        """The spans as they may leave; when the log is closed, those that it had the time to ask about."""
        redact = self._redact
        if redact is None:
            return spans
        ready = []
        for span in spans:
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                break
            ready.append(redacted(redact, span))
        return ready

    def _account_for(self, handing: list[int], ready: int) -> bool:
        """So many of the spans in hand can leave, the rest came too late; False if somebody else accounted for them."""
        try:
            count = handing.pop()
        except IndexError:
            return False
        if count > ready:
            with self._lock:
                self._late += count - ready
        return True

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
        unmade = self._lost + self._failed + self._late + sum(self._never_made.values()) + self._unmapped.refused
        return unmade + (sum(backend.account()[1].values()) if backend is not None else 0)

    # ---- where to send -------------------------------------------------------------------------

    def _connect(self) -> Backend | None:
        """Find out where to send; None when OpenTelemetry is switched off or that failed."""
        with self._connecting:
            if self._backend is not None or self._closed:
                return self._backend
            try:
                backend = connect(self._options)
                if backend is not None:
                    self._start_metrics(backend)
            except Exception:
                warn_once(self, "the OpenTelemetry log can't be set up; nothing is sent")
                backend = None
            if backend is None:
                self._closed = True
                self.recorder.append = self.recorder.put = _ignore
                return None
            self._backend = backend
            self._forget_exit = on_exit(self._close_at_exit, SOURCES, self._options.exit_timeout_s)
            return backend

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
            )
            self._metrics.mapper = self._mapper
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


def _nothing() -> None:
    """What a log that is not registered for the exit forgets."""


def _after_fork() -> None:
    for reference in tracing_logs:
        log = reference()
        if log is not None:
            log._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _forget(reference: weakref.ref[Any]) -> None:
    tracing_logs[:] = [ref for ref in tracing_logs if ref is not reference]
