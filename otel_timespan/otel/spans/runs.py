"""Runs: which root span a task belongs to, when that root ends, and what it counts.

A task spawned under an active span is a child of that span. Every other one joins a *run*: the one
opened with `dag(...)`, or one that the log opens when it goes from idle to busy and ends when all its
tasks are done and it was quiet for a while.

Two sides meet here. *Submitters* (`Runs.submit`, any thread, once a task) register with a run; the
*closer* (`Runs.tick`, the thread that drains the log) ends it. No lock: the submitter registers and then
looks whether the run is still open; the closer withdraws the run and then looks whether somebody
registered. At least one of them sees the other. A submitter that sees the withdrawal takes its
registration back and goes elsewhere; a closer that sees a registration keeps the run open until it is
finished or taken back.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry.context import get_current
from opentelemetry.trace import INVALID_SPAN, get_current_span

from ... import forks
from .. import semconv
from .bodyspan import BodySpan
from .failures import FirstFailure, is_cancellation
from .ids import Root, TraceParent, pack
from .paths import Path
from .values import plain_attributes

__all__ = ["Run", "Runs", "Sampled", "current_run"]

current_run: contextvars.ContextVar[Run | None] = contextvars.ContextVar("otel_timespan.run", default=None)
"""The run that tasks spawned in this context count in, whatever span is active there."""


class Sampled(NamedTuple):
    """The head sampler's word on a root: flags of its trace, and what it adds."""

    flags: int
    trace_state: str = ""
    attributes: Mapping[str, Any] = {}


class Adder:
    """A number that any thread may raise and one thread reads, without a lock."""

    __slots__ = ("_reads", "add")

    def __init__(self) -> None:
        self.add: Callable[[], int] = itertools.count().__next__  # one step under the GIL
        self._reads = 0

    def value(self) -> int:
        """How often `add` was called."""
        # Reading takes a number of the counter, too.
        value = self.add() - self._reads
        self._reads += 1
        return value


class Run:
    """One run: one root span. Counts are the draining thread's; `entered` and `retracted` anybody's."""

    def __init__(self, parent: TraceParent, span: Any) -> None:
        assert parent.root is not None
        self.parent = parent
        self.root = parent.root
        self.packed = pack(parent)
        self.span = span
        self.entered, self.retracted = Adder(), Adder()
        self.withdrawn = False
        """True while it is being closed, and after: registrations that see it are taken back."""
        self.left_ns: int | None = None
        """When the block of an explicit run was left."""
        self.error: BaseException | None = None
        self.finished = 0
        self.late = 0
        """Tasks that have their result although their bodies still run (cancelled ones)."""
        self.latest_ns = self.root.start_ns
        self.start_ns = self.root.start_ns
        self.failed = self.cancelled = self.skipped = self.retried = self.moved = self.workers_lost = 0
        self.first_failure: FirstFailure | None = None
        """None while no task failed, and none was skipped because one did."""
        self.path: Path | None = None
        self.whole = True
        self.lost_before = 0
        self.outer: Run | None = None
        """The run in whose block, or in whose task, this one was opened."""
        self.inner = 0
        """Runs of which this is the outer one, and that go on: it ends after them."""
        self.budget: Any = None
        """How many spans it may have, the mapper's affair (budget.py)."""

    def open_tasks(self) -> int:
        """Tasks that registered and have no result yet."""
        return self.entered.value() - self.retracted.value() - self.finished

    @property
    def tasks(self) -> int:
        """Tasks that have their result."""
        return self.finished

    @property
    def block_cancelled(self) -> bool:
        """Whether a cancellation ended the block of an explicit run: of a task, or of the coroutine it is in."""
        return isinstance(self.error, asyncio.CancelledError) or is_cancellation(self.error)

    @property
    def block_failed(self) -> bool:
        """Whether an exception ended the block. `sys.exit()` is an end like any other."""
        error = self.error
        left = isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and not error.code)
        return error is not None and not left and not self.block_cancelled

    @property
    def result(self) -> str:
        """success, failure or cancellation. What was cancelled, or skipped because of that, is no failure."""
        if self.failed or self.first_failure is not None or self.block_failed:
            return "failure"
        return "cancellation" if self.block_cancelled else "success"

    def cover(self, start_ns: int, end_ns: int) -> None:
        """The root spans all its descendants."""
        self.start_ns = min(self.start_ns, start_ns)
        self.latest_ns = max(self.latest_ns, end_ns)


class Runs:
    """The open runs of one log.

    `open_root(name, start_ns, attributes, explicit) -> (TraceParent, span)` draws ids and asks the sampler;
    the span is a `BodySpan`, or a `NonRecordingSpan` where the run is not sampled. `clock` gives
    monotonic ns; `lost` says how many spans were lost so far.
    """

    def __init__(
        self,
        open_root: Callable[[str, int, Mapping[str, Any], bool], tuple[TraceParent, Any]],
        seed: int,
        quiet_ns: int,
        clock: Callable[[], int],
        lost: Callable[[], int] = lambda: 0,
    ) -> None:
        self.seed = seed
        self._open_root = open_root
        self._quiet_ns = quiet_ns
        self._clock = clock
        self._lost = lost
        self._lock = forks.rlock()  # a sampler or span processor of the user's may spawn
        self._current: Run | None = None  # the implicit run that new tasks join
        self._open: dict[int, Run] = {}  # by the root's span id
        self._implicit: dict[int, Run] = {}  # of these the ones that end by themselves
        self._touched: deque[Run] = deque()  # explicit ones that may be over; a `tick` looks at these only
        self._cached: tuple[Any, Any, Any] = (None, None, None)
        self._last: tuple[Any, Run | None, Run | None, Any] = (None, None, None, ())  # what the last `submit` found

    # ---- submitters ----------------------------------------------------------------------------

    def submit(self) -> tuple[Any, ...]:
        """What a task that is spawned here and now has to remember, packed. Registers it with its run."""
        context, run = get_current(), current_run.get()
        known, known_run, of, packed = self._last
        # Contexts never change: the same one leads where it led, as long as that run is open.
        if known is context and known_run is run and (of is None or self._open.get(of.root.span_id) is of):
            if of is None:
                return packed  # type: ignore[no-any-return]
            if (of.root.explicit or of is self._current) and self._register(of):
                return packed  # type: ignore[no-any-return]
        packed, of = self._submit(run)
        self._last = (context, run, of, packed)
        return packed

    def _submit(self, run: Run | None) -> tuple[tuple[Any, ...], Run | None]:
        """The same, and the run that it was registered with, if any."""
        span = get_current_span()
        if span is INVALID_SPAN or not _context_of(span).is_valid:
            return _joined(self.join())
        if run is not None and not (self._open.get(run.root.span_id) is run and self._register(run)):
            if span is run.span:  # a context that outlived its run: nobody is there to be a child of
                return _joined(self.join())
            run = None
        if run is not None and span is run.span:
            return run.packed, run
        cached_span, cached_run, packed = self._cached
        if cached_span is not span or cached_run is not run:
            packed = pack(self._under(span, run))
            self._cached = (span, run, packed)
        return packed, run

    def join(self) -> Run:
        """Register with the implicit run; opens one where there is none."""
        while True:
            run = self._current
            if run is None:
                with self._lock:
                    run = self._current or self._open_implicit()
            if self._register(run):
                return run

    def open_explicit(self, name: str, attributes: Mapping[str, Any]) -> Run:
        """A run for a `with dag(...)` block."""
        with self._lock:
            kept, _ = plain_attributes({**attributes, semconv.DAG_NAME: name})
            run = self._start(f"dag {kept[semconv.DAG_NAME]}", kept, True)
            outer = current_run.get()
            if outer is not None and self._open.get(outer.root.span_id) is outer:
                run.outer = outer
                outer.inner += 1
            return run

    def find(self, root: Root | None) -> Run | None:
        """The open run with this root."""
        return self._open.get(root.span_id) if root is not None else None

    def at(self, span_id: int) -> Run | None:
        """The open run whose root has this id."""
        return self._open.get(span_id)

    def worker_lost(self) -> None:
        """A worker went away while these runs were open."""
        for run in list(self._open.values()):
            run.workers_lost += 1

    def arrived(self, parent: TraceParent) -> None:
        """A task with this parent was seen in the log. Nothing to do: `submit` registered it."""

    def adopt(self, run_id: int) -> TraceParent:
        """The parent of a task that came without one (a sink between us and the scheduler hid our hooks)."""
        return self.join().parent

    def _register(self, run: Run) -> bool:
        if run.withdrawn:
            return False
        run.entered.add()
        if run.withdrawn:
            run.retracted.add()
            self.touch(run)
            return False
        return True

    def _under(self, span: Any, run: Run | None) -> TraceParent:
        context = _context_of(span)
        state = context.trace_state.to_header() if context.trace_state else ""
        root = run.root if run is not None else None
        return TraceParent(context.trace_id, context.span_id, int(context.trace_flags) & 1, state, self.seed, root)

    def _open_implicit(self) -> Run:
        self._current = run = self._start("dag", {}, False)
        return run

    def _start(self, name: str, attributes: Mapping[str, Any], explicit: bool) -> Run:
        run = Run(*self._open_root(name, self._clock(), attributes, explicit))
        run.lost_before = self._lost()
        self._open[run.root.span_id] = run
        if not explicit:
            self._implicit[run.root.span_id] = run
        return run

    # ---- the closer ----------------------------------------------------------------------------

    def tick(self, force: bool = False) -> list[Run]:
        """End the runs that are over. `force` doesn't wait until they have been quiet."""
        looked_at = {id(run): run for run in list(self._implicit.values())}
        ended: list[Run] = []
        while looked_at or self._touched:
            for _ in range(len(self._touched)):
                run = self._touched.popleft()
                looked_at[id(run)] = run
            ended += [
                run
                for run in looked_at.values()
                if self._open.get(run.root.span_id) is run and self._over(run, force) and self._close(run)
            ]
            looked_at = {}  # once more those that only waited for one of these
        for run in ended:
            run.whole = run.whole and self._lost() == run.lost_before
        return ended

    def touch(self, run: Run) -> None:
        """Something changed that may end an explicit run: it was left, a task of it ended or took itself back.

        Called by any thread, after the change.
        """
        if run.left_ns is not None:
            self._touched.append(run)

    def idle_but_open(self) -> bool:
        """Whether a run only waits until it has been quiet for long enough: `tick` again soon."""
        return any(not run.open_tasks() for run in list(self._implicit.values()))

    def end_all(self) -> list[Run]:
        """End every run, finished or not, the inner ones first."""
        runs = list(self._open.values())[::-1]
        for run in runs:
            run.withdrawn = True
            run.whole = run.whole and not run.open_tasks() and self._lost() == run.lost_before
        self._current = None
        self._open.clear()
        self._implicit.clear()
        return runs

    def current(self) -> Run | None:
        """The newest run that is open."""
        while True:
            try:
                return next(reversed(self._open.values()), None)
            except RuntimeError:  # another one was opened just now
                continue

    def _over(self, run: Run, force: bool) -> bool:
        if run.root.explicit:
            return run.left_ns is not None and not run.late and not run.inner and not run.open_tasks()
        if run.open_tasks():
            return False
        quiet = force or self._clock() - run.latest_ns >= self._quiet_ns
        waits = run.late or run.inner
        if quiet and waits and self._current is run:
            # A cancelled body that never ends must not pull all later tasks into its trace.
            self._current = None
        return bool(quiet and not waits)

    def _close(self, run: Run) -> bool:
        run.withdrawn = True
        if self._current is run:
            self._current = None
        if run.open_tasks():
            run.withdrawn = False
            return False
        del self._open[run.root.span_id]
        outer = run.outer
        if outer is not None:
            with self._lock:
                outer.inner -= 1
            outer.cover(run.start_ns, max(run.latest_ns, run.left_ns or 0))
            self._touched.append(outer)
        self._implicit.pop(run.root.span_id, None)
        return True


def _context_of(span: Any) -> Any:
    """The ids of a span, for ourselves: what is spawned under a body does not keep the body from being rolled up."""
    return span.own_context() if isinstance(span, BodySpan) else span.get_span_context()


def _joined(run: Run) -> tuple[tuple[Any, ...], Run]:
    return run.packed, run
