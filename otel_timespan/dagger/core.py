"""The scheduler's core: a state machine of tasks without threads, clocks, sockets or user code.

The problem: the same rules must drive real threads, worker processes, a Dask cluster and a deterministic
test driver. So the core only moves tasks between states and puts ready ones into queues; a *driver*
(drivers/) takes them out, runs bodies, and tells the core how they ended.

The hot methods (`submit`, `enqueue`, `finish`) take no lock: they are built on the atomic operations of
atomics.py, and the inline driver steps the very same methods. Rare changes (pinned tasks, halting) use
`lock`, which user code never runs under. What a driver has to do after a call stands in `effects`: slots
whose own queue got a task. Waking threads for the shared queues is the driver's own affair.

Order of a completion, which rulings and events depend on: win `settle` → store the outcome → append the
record → make the state visible → hand over subscribers. So whoever sees a task done finds its events.

Sources: spec/scheduler.md §17; design/architecture.md §2; design/rulings.md 11, 12, 15.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import SchedulingError, TaskCancelled, WorkerLostError
from . import records
from .atomics import claim, settle
from .chunks import Chunk
from .describe_task import describe_arguments, other_dependencies
from .dtask import DONE, FAILED, LAUNCHED, TOLD, DTask, Failure, Live, summarize
from .environment import current, running_task
from .ids import new_run_id
from .options import DEFAULT, signature_defaults
from .placement import Slot, occupancy_on, place
from .processors import OSProc
from .records import code_of

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Core"]

_uids = itertools.count(1)


_ORDINARY = Live()
"""What a first attempt has whose caller nobody wants to remember."""


class Core:
    """One scheduler instance. Methods may be called from any thread unless they say otherwise."""

    def __init__(self, context: Context, slots: Iterable[Slot], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.context = context
        self.clock = clock
        self.uid = next(_uids)
        self.run_id = new_run_id()
        self.slots: dict[Any, Slot] = {slot.processor: slot for slot in slots}
        """Where bodies can run, by processor."""
        self.shared: dict[int, deque[DTask]] = {slot.worker: deque() for slot in self.slots.values()}
        """Per worker: ready tasks that any of its slots may run, whole (default scope, full occupancy)."""
        self.queue = self.shared[min(self.shared)]
        """The shared queue of the first worker: the only one where there is one worker."""
        self.one_worker = len(self.shared) == 1
        self.home = OSProc(min(self.shared))
        """What `enqueue` names for that queue."""
        self.home_code = code_of(self.home)
        self.running: set[DTask] = set()
        """Tasks whose bodies run, abandoned ones included until they end."""
        self.effects: deque[Slot] = deque()
        """Slots whose own queue changed: the driver dispatches and removes them."""
        self.halted: BaseException | None = None
        """Set when the scheduler went down: what unfinished tasks fail with."""
        self.delayed: set[DTask] = set()
        """Tasks that wait for the time of their next attempt."""
        self.on_body_error: Callable[[DTask, BaseException], None] | None = None
        """Told of each body that raised: how a batch run aborts."""
        self.lock = threading.Lock()
        """Guards the slots' own queues and their occupancy."""
        self._pinned_seq = itertools.count()
        self.driver: Any = None
        """Who performs: set by the context."""

    # ---- submission ----------------------------------------------------------------------------

    def submit(self, task: DTask) -> None:
        """Take a new task: wire it to its upstreams, queue it if it is ready, fail it if one failed."""
        recorder = self.context.recorder
        if recorder is not None:
            self._submit_logged(task, recorder)
            return
        task._state = LAUNCHED
        if not task._deps:
            self.enqueue(task)
            return
        failed = self.wire(task)
        if failed is not None:
            self.skip([task], failed._outcome)
        elif task._tokens is None or task._tokens.pop():
            self.enqueue(task)

    def wire(self, task: DTask) -> DTask | None:
        """Subscribe to each unfinished upstream, keeping the guard token; an upstream that failed, if any."""
        failed = tokens = None
        for up in task._deps:
            if up._state < DONE:
                if tokens is None:
                    tokens = task._tokens = [True]
                tokens.append(False)
                subs = up._subs
                subs.append(task)
                if up._state < DONE:
                    continue
                try:
                    subs.remove(task)
                except ValueError:  # the finisher took the entry, and counts it
                    continue
                tokens.pop()
            if up._state == FAILED:
                failed = up
        return failed

    def _submit_logged(self, task: DTask, recorder: Any) -> None:
        """`submit` with a log: the record goes out before the task can be seen by anybody else."""
        t0 = self.clock()
        extra = task._live
        if extra is None or extra.attempt == 1:  # a retry keeps the caller of the first attempt
            trace = recorder.on_submit() if recorder.on_submit is not None else None
            here = current.get()
            parent = here if here is None or type(here) is DTask else running_task()
            if trace is not None or parent is not None:
                extra = task._live = extra or Live()
                extra.trace = trace
                extra.spawned_by = parent.id if parent is not None else 0
        extra = extra or _ORDINARY
        submission = (
            records.SUBMIT,
            t0,
            self.uid,
            task.id,
            records.function_code(task._f),
            describe_arguments(task._args, task._kwargs) if task._args or task._kwargs else (),
            None if task._options is DEFAULT else task._options,
            other_dependencies(task) if task._deps else (),
            extra.spawned_by,
            self.run_id,
            extra.attempt,
            extra.trace,
        )
        task._state = LAUNCHED
        failed = self.wire(task) if task._deps else None
        if failed is None and task._tokens is None:
            self.enqueue(task, submission)
            return
        samples = recorder.sample() if recorder.samplers else None
        recorder.append((*submission, self.clock(), None, samples))
        if failed is not None:
            self.skip([task], failed._outcome)
        elif task._tokens.pop():  # type: ignore[union-attr]
            self.enqueue(task)

    # ---- placement -----------------------------------------------------------------------------

    def enqueue(self, task: DTask, submission: Any = None) -> None:
        """Place a ready task and queue it. A task that can't be placed fails."""
        recorder = self.context.recorder
        if task._options is DEFAULT and self.one_worker and not Chunk.scoped_exist and not signature_defaults:
            if task._state >= DONE:  # cancelled, or failed through another upstream
                return
            if recorder is not None:
                t = self.clock()
                samples = recorder.sample() if recorder.samplers else None
                home = self.home_code
                if submission is not None:
                    recorder.append((*submission, t, home, samples))
                else:
                    worker = self.home.pid
                    recorder.append((records.SCHEDULE, t, t, t, self.uid, task.id, home, worker, samples))
            task._claim = True
            self.queue.append(task)
            return
        self._enqueue_placed(task, recorder, submission)

    def _enqueue_placed(self, task: DTask, recorder: Any, submission: Any) -> None:
        if task._state >= DONE:
            return
        t0 = self.clock() if recorder is not None else 0
        error: SchedulingError | None = None
        slot: Slot | None = None
        worker = 1
        try:
            slot, worker = place(self, task)
        except SchedulingError as unplaceable:
            error = unplaceable
        if recorder is not None:
            processor = None if error is not None else slot.code if slot is not None else code_of(OSProc(worker))
            t1 = self.clock()
            samples = recorder.sample() if recorder.samplers else None
            placement = (records.SCHEDULE, t0, t1, t1, self.uid, task.id, processor, worker, samples)
            recorder.append(placement if submission is None else (*submission, t1, placement, samples))
        if error is not None:
            self.fail(task, error)
        elif task._options.restore is not None and self.driver.restore(task):
            return
        elif slot is None:
            task._claim = True
            self.shared[worker].append(task)
        else:
            task._claim = False  # claimed like any other; False says: by its slot only, not by helpers
            with self.lock:
                heapq.heappush(slot.heap, (occupancy_on(task, slot.processor), next(self._pinned_seq), task))
            self.effects.append(slot)

    # ---- completion ----------------------------------------------------------------------------

    def finish(self, task: DTask, outcome: Any, state: int) -> Sequence[DTask]:
        """Make the outcome of a task visible, after `settle`: the dependents that became ready.

        Call `enqueue` for each of them. On failure the dependents are failed here, however many.
        """
        task._outcome = outcome
        task._state = state
        subs = task._subs
        if not subs:
            task._subs = TOLD
            return ()
        ready: list[DTask] = []
        others: list[Any] = []  # waiters, and after a failure dependents
        while subs:
            try:
                sub = subs.pop()
            except IndexError:  # a subscriber took its entry back
                break
            if type(sub) is not DTask or state != DONE:
                others.append(sub)
            elif sub._tokens.pop():  # type: ignore[union-attr]
                ready.append(sub)
        task._subs = TOLD
        if others:
            for sub in others:
                if type(sub) is not DTask:
                    sub()
            self.skip([sub for sub in others if type(sub) is DTask], outcome)
        return ready

    def fail(self, task: DTask, error: BaseException, state: str = "failure", direct: bool = False) -> bool:
        """Finish a task that does not run (any more) with an error; False if it has a result already."""
        if not settle(task):
            return False
        task._summary = summarize(task)
        self.record_finish(task, error, state)
        self.finish(task, Failure(task._summary, error, direct), FAILED)
        if claim(task) or task not in self.running:
            release_inputs(task)
        return True

    def give_up(self, task: DTask) -> None:
        """A helper was interrupted somewhere in running this task: see to it that the task has an outcome."""
        error = TaskCancelled("interrupted by the user")
        if not self.fail(task, error, "cancellation") and task._state < DONE:
            self.finish(task, Failure(summarize(task), error), FAILED)

    def skip(self, tasks: list[DTask], failure: Failure) -> None:
        """Fail tasks whose upstream failed, and all that depends on them; without recursion."""
        stack = list(tasks)
        while stack:
            task = stack.pop()
            if not settle(task):
                continue
            task._summary = summarize(task)
            self.record_finish(task, failure.error_for(task._summary), "skip")
            task._outcome = failure
            task._state = FAILED
            waiters: list[Callable[[], None]] = []
            while task._subs:
                try:
                    sub = task._subs.pop()
                except IndexError:
                    break
                if type(sub) is DTask:
                    stack.append(sub)
                else:
                    waiters.append(sub)
            task._subs = TOLD
            for notify in waiters:
                notify()
            release_inputs(task)

    def record_finish(self, task: DTask, result: Any, state: str) -> None:
        """The `finish` of a task whose body did not run to its end here."""
        recorder = self.context.recorder
        if recorder is not None:
            t = self.clock()
            record = (records.FINISH, t, self.clock(), self.uid, task.id, result, state, recorder.sample())
            recorder.append(record)

    # ---- the whole graph -----------------------------------------------------------------------

    def unfinished(self) -> Iterator[DTask]:
        """Every submitted task without a result, in no order: all are reachable from queues and bodies."""
        stack: list[DTask] = [*list(self.running), *list(self.delayed)]
        for queue in self.shared.values():
            stack += list(queue)
        with self.lock:
            stack += [entry[2] for slot in self.slots.values() for entry in slot.heap if type(entry[2]) is DTask]
        seen: set[int] = set()
        while stack:
            task = stack.pop()
            if task.id in seen:
                continue
            seen.add(task.id)
            stack += [sub for sub in list(task._subs) if type(sub) is DTask]
            if task._state < DONE:
                yield task

    def halt(self, error: BaseException) -> None:
        """Go down: every unfinished task fails with `error`, directly. Bodies that run are abandoned."""
        self.halted = error
        cancelled = not isinstance(error, SchedulingError)
        for task in list(self.unfinished()):
            self.fail(task, error, "cancellation" if cancelled else "failure", direct=True)
        for queue in self.shared.values():
            queue.clear()
        with self.lock:
            for slot in self.slots.values():
                slot.heap[:] = [entry for entry in slot.heap if type(entry[2]) is not DTask]

    def worker_lost(self, worker: int) -> None:
        """A worker process died. Reserved: the workers of this core are threads, none can be lost alone."""
        raise WorkerLostError(worker)


def release_inputs(task: DTask) -> None:
    """Let go of what the task was given: it will not run (again)."""
    task._f = None
    task._args = ()
    task._kwargs = None
    task._deps = ()
    task._context = None
