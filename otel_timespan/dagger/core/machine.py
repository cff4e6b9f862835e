"""The scheduler's core: a state machine of tasks without threads, clocks, sockets or user code.

The problem: the same rules must drive real threads, worker processes, a Dask cluster and a deterministic
test driver. So the core only moves tasks between states and puts ready ones into queues; a *driver*
(drivers/base.py) takes them out, has bodies run, and has them ended (bodies/ending.py).

The hot methods (`submit`, `enqueue`) take no lock: they are built on the atomic operations of
tasks/atomics.py, and the inline driver steps the very same methods. Rare changes (pinned tasks, removed workers)
use `lock`, which user code never runs under. What a driver has to do after a call stands in `effects`: slots
whose own queue got a task, tasks that can only fail, tasks whose option `restore` is to be asked. Waking
threads for the shared queues is the driver's own affair. The one thing of the user's that runs in here are the hooks
that choose a place: predicates, discovery, the compatibility of a processor of the user's own.

See docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import forks
from ...timespans.model import EventId, Timeline
from ...timespans.warn import warn_once
from ..data.bound import process_bound
from ..data.chunks import scoped_chunks
from ..options.defaults import signature_defaults
from ..options.options import DEFAULT
from ..places.processors import OSProc
from ..records import kinds as records
from ..records.kinds import code_of, code_of_worker, function_code, function_codes
from ..service.guards import guard
from ..tasks.atomics import BRANCHES, claim, count_down, subscribe, take_back
from ..tasks.dtask import DONE, FAILED, LAUNCHED, NOBODY, UNLAUNCHED, DTask, Failure, Live
from ..tasks.environment import here, running_task
from ..tasks.ids import new_run_id
from . import limits
from .costs import Costs
from .describe_task import describe_arguments, other_dependencies
from .placement import Choice, Policy, Pressure, Slot, Spot, choices_of, occupancy_on, place, place_again
from .views import Readable

if TYPE_CHECKING:
    from ..context import Context
    from ..drivers.base import Driver
    from ..places.devices import StorageDevice

__all__ = ["Core", "Doomed", "Restorable"]

_uids = itertools.count(1)


def _shown(spot: Spot | None) -> tuple[Any, int]:
    """(processor, worker) as records have them: a slot's, or the worker itself for its shared queue."""
    if spot is None:
        return None, records.CORE_WORKER
    return code_of_worker(spot.worker) if spot.slot is None else spot.slot.code, spot.worker


_ORDINARY = Live()
"""What a first attempt has whose caller nobody wants to remember."""


class Doomed(NamedTuple):
    """An effect: a task that can only fail, and why. `cause` is a `Failure` where that is an upstream's."""

    task: DTask
    cause: BaseException | Failure


class Restorable(NamedTuple):
    """An effect: a placed task whose option `restore` is to be asked for its result before it is queued."""

    task: DTask
    spot: Spot


@process_bound
class Core(Readable):
    """One scheduler instance. Methods may be called from any thread unless they say otherwise."""

    # Slots, as an object with more than 30 attributes in a dict is slow to read (a tenth of a task's time). The dict
    # is for debug.py, which wraps methods.
    __slots__ = (
        "__dict__", "__weakref__",
        "_pinned_seq", "active", "batch", "choices", "clock", "context", "costs", "custom_defaults",
        "delayed", "devices", "driver", "effects", "halted", "held", "home", "home_code", "is_alone",
        "is_batch", "is_plain", "is_quick", "is_watched", "local", "lock", "near", "on_body_error", "on_end", "parked",
        "place", "pressure", "queue", "requests", "rng", "run_id", "running", "shared", "slots", "threads", "uid",
        "waiting",
    )  # fmt: skip

    def __init__(
        self,
        context: Context,
        slots: Iterable[Slot],
        clock: Callable[[], int] = time.monotonic_ns,
        rng: random.Random | None = None,
    ) -> None:
        self.context = context
        self.clock = clock
        self.uid = next(_uids)
        self.run_id = new_run_id()
        self.slots: dict[Any, Slot] = {}
        """Where bodies can run, by processor; those of workers that were removed stay, for what they have."""
        self.shared: dict[int, deque[DTask]] = {}
        """Per worker: ready tasks that any of its threads may run, whole (default scope, full occupancy)."""
        self.active: tuple[int, ...] = ()
        """The workers that get new tasks, ascending."""
        self.parked: deque[DTask] = deque()
        """Ready tasks that wait because there is no worker; those cancelled meanwhile too."""
        self.costs = Costs()
        """What was learned of run times, sizes and transfer rates."""
        self.pressure: dict[int, Pressure] = {}
        """Per worker: the expected time of what was placed into its shared queue and is not done."""
        self.choices: list[Choice] = []
        """What a task that may run anywhere has to choose from, see `placement.choices_of`."""
        self.place: Policy = place
        """Chooses the spot of each ready task."""
        self.rng = rng
        """Decides among equally good spots; None takes them in their order."""
        self.home = OSProc(1)
        """What `enqueue` names for `queue`; `home_code` stands for it in records."""
        self.home_code = code_of(self.home)
        self.queue: deque[DTask] = deque()
        """The shared queue of the only worker."""
        self.is_alone = False
        """Whether there is exactly one worker, so that `queue` is the one shared queue."""
        self.custom_defaults = False
        """Whether a slot that is no thread takes tasks of default scope."""
        self.is_plain = False
        """Both: a task without options has nowhere to go but `queue`."""
        self.is_watched = False
        """See `watch`."""
        self.is_quick = False
        """`is_plain`, and steps may be made in place: sections may branch (tasks/atomics.py), and nobody watches."""
        self.threads: dict[int, list[Slot]] = {}
        """Per worker: the slots that run what is in its shared queue."""
        self.running: set[DTask] = set()
        """Tasks whose bodies run, abandoned ones included until they end."""
        self.effects: deque[Slot | Doomed | Restorable] = deque()
        """What the driver has to do, and takes out (`Driver.perform_effects`)."""
        self.near, self.local = 0, 1
        """The worker that ended a task last: of equal ones it is awake; and the one that this process is."""
        self.waiting: set[Slot] = set()
        """Slots with tasks in their own queue: where others may steal. Guarded by `lock`."""
        self.halted: BaseException | None = None
        """Set when the scheduler went down: what unfinished tasks fail with."""
        self.delayed: set[DTask] = set()
        """Tasks that wait for the time of their next attempt."""
        self.held: dict[int, weakref.ref[DTask]] = {}
        """Tasks that a queue of tasks holds back, by id: others may wait for them."""
        self.batch: list[int] = []
        """The ids of all tasks of one `compute`."""
        self.is_batch = False
        """Whether this is the run of one `compute`: it fails where an eager scheduler would wait for workers."""
        self.devices: dict[int, StorageDevice] | None = None
        """By worker: what keeps results where spilling is on (spilling.py), else None."""
        self.on_body_error: Callable[[DTask, BaseException], None] | None = None
        """Told of each body that raised: how a batch run aborts."""
        self.on_end: Callable[[DTask, Any], None] | None = None
        """Told of each task that ended, and its outcome: for debug traces. Whoever sets it calls `watch`."""
        self.lock = guard()
        """Guards the slots' own queues, their occupancy, and the pressure."""
        self.requests = forks.rlock()
        """Held by one request of dynamic control at a time, while it runs code of the user's; never with `lock`."""
        self._pinned_seq = itertools.count()
        self.driver: Driver
        """Who performs: set by the context, before anything else."""
        self._set_active(set())
        for worker, own in itertools.groupby(slots, key=lambda slot: slot.worker):
            self.add_worker(worker, own)

    def watch(self) -> None:
        """From now on each step is a call: of methods that may have been replaced on this core, of `on_end`."""
        self.is_watched, self.is_quick = True, False

    # ---- submission ----------------------------------------------------------------------------

    def submit(self, task: DTask) -> None:
        """Take a new task: wire it to its upstreams, queue it if it is ready, fail it if one failed."""
        recorder = self.context.recorder
        if recorder is not None:
            self._submit_logged(task, recorder)
            return
        task._state = LAUNCHED
        if task._deps:
            failed = self.wire(task)
            if failed is not None:
                self.effects.append(Doomed(task, failed._outcome))
            elif task._tokens is None or count_down(task, 1):
                self.enqueue(task)
        elif task._options is DEFAULT and self.is_quick and not scoped_chunks and not signature_defaults:
            task._claim = True  # as `enqueue`, without a call
            self.queue.append(task)
        else:
            self.enqueue(task)

    def hold(self, task: DTask) -> None:
        """A task goes to a queue that may hold it back, or forget it."""
        self.held[task.id] = weakref.ref(task, functools.partial(self.held.pop, task.id))

    def submit_known(self, task: DTask) -> None:
        """Submit a task that others can have cancelled: a queue held it back, or its body is to run again."""
        self.held.pop(task.id, None)
        if task._state == UNLAUNCHED:
            task._state = LAUNCHED
            if not hasattr(task, "_open") and hasattr(task, "_outcome"):  # cancelled at this very moment
                task._state = FAILED
        if task._state >= DONE:
            return
        task._tokens = None  # those of an attempt before are all gone
        recorder = self.context.recorder
        if recorder is not None:
            self._submit_logged(task, recorder)
        else:
            self._submit_waiting(task)
        if self.halted is not None:  # it went down meanwhile, perhaps without seeing this one
            self.effects.append(Doomed(task, self.halted))
        self.driver.enqueue_ready(())
        self.driver.wake()

    def _submit_waiting(self, task: DTask) -> None:
        failed = self.wire(task)
        if failed is not None:
            self.effects.append(Doomed(task, failed._outcome))
        elif task._tokens is None or count_down(task, 1):
            self.enqueue(task)

    def wire(self, task: DTask) -> DTask | None:
        """Subscribe to each unfinished upstream, keeping one token; an upstream that failed, if any."""
        failed, deps, waits, over = None, task._deps, False, 0
        for up in deps:
            if up._state < DONE:
                if not waits:
                    waits = True
                    task._tokens = 1 + len(deps)
                subs = up._subs
                if subs is NOBODY:
                    if subscribe(up, task):
                        continue
                else:  # as there, without a call
                    subs.append(task)
                    if up._state < DONE or not take_back(subs, task):
                        continue
            if up._state == FAILED:
                failed = up
            over += 1
        if waits and over:
            count_down(task, over)
        return failed

    def _submit_logged(self, task: DTask, recorder: Any) -> None:
        """`submit` with a log: the record goes out before the task can be seen by anybody else."""
        t0 = self.clock()
        extra = task._live
        if extra is None or extra.attempt == 1:  # a retry keeps the caller of the first attempt
            trace = recorder.on_submit() if recorder.on_submit is not None else None
            around = here()
            parent = around if around is None or type(around) is DTask else running_task()
            if trace is not None or parent is not None:
                extra = task._live = extra or Live()
                extra.trace = trace
                extra.spawned_by = parent.id if parent is not None else 0
        extra = extra or _ORDINARY
        f = task._f
        code = function_codes.get(f) if type(f) is FunctionType else None
        submission = (
            records.SUBMIT,
            t0,
            self.uid,
            task.id,
            function_code(f) if code is None else code,
            describe_arguments(task) if task._args or task._kwargs else (),
            None if task._options is DEFAULT else task._options,
            # Without options, and with a plain function, all of them are arguments.
            other_dependencies(task) if task._deps and (task._options is not DEFAULT or code is None) else (),
            extra.spawned_by,
            self.run_id,
            extra.attempt,
            extra.trace,
        )
        if task._state == UNLAUNCHED:
            task._state = LAUNCHED
        failed = self.wire(task) if task._deps else None
        if failed is None and task._tokens is None:
            self.enqueue(task, submission)
            return
        samples = recorder.sample() if recorder.samplers else None
        recorder.append((*submission, self.clock(), None, samples))
        if failed is not None:
            self.effects.append(Doomed(task, failed._outcome))
        elif task._tokens is None or count_down(task, 1):
            self.enqueue(task)

    # ---- placement -----------------------------------------------------------------------------

    def enqueue(self, task: DTask, submission: Any = None) -> None:
        """Place a ready task and queue it. A task that can't be placed fails."""
        recorder = self.context.recorder
        if task._options is DEFAULT and self.is_plain and not scoped_chunks and not signature_defaults:
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
            task._tokens = None
            task._claim = True
            self.queue.append(task)
            return
        self._place(task, recorder, submission)

    def _place(self, task: DTask, recorder: Any, submission: Any) -> None:
        """`enqueue` for tasks that have a choice."""
        if task._state >= DONE:
            return
        if not self.active and not self.is_batch:
            self._park(task, recorder, submission)
            return
        if task._options.limit is not None:
            self._record_submission(submission, recorder)  # it may not be placed for long
            submission = None
            if not limits.enter(task):
                return
        t0 = self.clock() if recorder is not None else 0
        error: BaseException | None = None
        spot: Spot | None = None
        try:
            extra = task._live
            spot = self.place(self, task) if extra is None or not extra.losses else place_again(self, task)
        except BaseException as unplaceable:  # of ours, or of a hook of the user's: whatever it is, this task's alone
            error = unplaceable
        if recorder is not None:
            t1 = self.clock()
            samples = recorder.sample() if recorder.samplers else None
            placement = (records.SCHEDULE, t0, t1, t1, self.uid, task.id, *_shown(spot), samples)
            recorder.append(placement if submission is None else (*submission, t1, placement, samples))
        if spot is None:
            self._leave_to_driver(task, Doomed(task, error))  # type: ignore[arg-type]
        elif task._options.restore is not None:
            self._leave_to_driver(task, Restorable(task, spot))
        else:
            self.queue_at(task, spot)

    def _leave_to_driver(self, task: DTask, effect: Doomed | Restorable) -> None:
        task._tokens = None  # from here on it is no more among those to be queued, see `DTask._tokens`
        self.effects.append(effect)

    def queue_at(self, task: DTask, spot: Spot) -> None:
        """Put a placed task into the queue of its spot; with a slot of its own, tell the driver by `effects`."""
        slot = spot.slot
        if slot is None:
            task._tokens = None
            task._claim = spot.worker == self.local  # False says: not by helpers, see below
            self.shared[spot.worker].append(task)
            return
        entry = (occupancy_on(task, slot.processor), next(self._pinned_seq), task, spot.slots)
        push, heap = heapq.heappush, slot.heap
        with self.lock:  # a section: a signal handler may take it out again at once
            task._tokens = None
            task._claim = False  # claimed like any other; False says: by slots only, not by helpers
            self.waiting |= {slot}
            push(heap, entry)
        self.effects.append(slot)

    def unqueue(self, slot: Slot) -> Any:
        """Take the head out of a slot's own queue; the caller holds `lock`."""
        entry = heapq.heappop(slot.heap)
        if not slot.heap:
            self.waiting.discard(slot)
        return entry

    def take_out(self, task: DTask) -> None:
        """Take a task out of the own queue of a slot, if it is in one."""
        with self.lock:
            for slot in list(self.waiting):
                for number, entry in enumerate(slot.heap):
                    if entry[2] is task:
                        del slot.heap[number]
                        heapq.heapify(slot.heap)
                        if not slot.heap:
                            self.waiting.discard(slot)
                        return

    def _park(self, task: DTask, recorder: Any, submission: Any) -> None:
        """No worker is there: the task waits until one is added."""
        self._record_submission(submission, recorder)
        task._tokens = None
        self.parked.append(task)
        warn_once(self, "task %d is ready, but the context has no worker: it waits until addprocs adds one", task.id)
        if self.active:  # it came meanwhile
            self.unpark()

    def _record_submission(self, submission: Any, recorder: Any) -> None:
        """Record a submission without a placement, which comes later."""
        if recorder is not None and submission is not None:
            recorder.append((*submission, self.clock(), None, recorder.sample()))

    def unpark(self) -> None:
        """Place what waits for a worker."""
        for _ in range(len(self.parked)):
            try:
                task = self.parked.popleft()
            except IndexError:
                return
            self.enqueue(task)

    def unreserve(self, task: DTask) -> None:
        """The task takes no (more) time where it was placed."""
        with self.lock:
            reserved, task._reserved = task._reserved, None
            if reserved is not None:
                pressure, ns = reserved
                pressure.ns -= ns

    def shuffle(self, spots: list[Spot]) -> None:
        """Into random order, where the driver is not to be deterministic by order."""
        if self.rng is not None:
            self.rng.shuffle(spots)

    def hand_on(self, ready: Sequence[DTask]) -> None:
        """Queue tasks that became ready outside of any slot, and see to it that somebody runs them."""
        if ready:
            self.driver.enqueue_ready(ready)
            for _ in ready:
                self.driver.wake()

    def record_steal(self, thief: Slot, victim: Any, task_id: int) -> None:
        """One attempt to steal; `victim` is the processor whose queue gave a task, None where none did."""
        recorder = self.context.recorder
        if recorder is not None:
            id = EventId(uid=self.uid, worker=thief.worker, processor=thief.processor, seq=records.next_seq())
            took = None if victim is None else Timeline(from_proc=victim, thunk_id=task_id)
            t = self.clock()
            recorder.append((records.STEAL, id, took, t, t, thief.worker, recorder.sample()))

    # ---- the whole graph -----------------------------------------------------------------------

    def unfinished(self) -> Iterator[DTask]:
        """Every submitted task without a result, in no order: all are reachable from queues and bodies."""
        stack: list[DTask] = [*list(self.running), *list(self.delayed), *list(self.parked), *limits.waiting_of(self)]
        stack += [task for ref in list(self.held.values()) if (task := ref()) is not None]
        for queue in self.shared.values():
            stack += list(queue)
        with self.lock:
            entries = [entry[2] for slot in list(self.slots.values()) for entry in list(slot.heap)]
        stack += [entry for entry in entries if type(entry) is DTask]
        seen: set[int] = set()
        while stack:
            task = stack.pop()
            if task.id in seen:
                continue
            seen.add(task.id)
            stack += [sub for sub in list(task._subs) if type(sub) is DTask]
            if UNLAUNCHED != task._state < DONE:
                yield task

    def clear(self) -> None:
        """It went down, and all its tasks have their outcomes: empty the queues."""
        self.parked.clear()
        for queue in self.shared.values():
            queue.clear()
        with self.lock:
            self.waiting.clear()
            for slot in self.slots.values():
                slot.heap[:] = [entry for entry in slot.heap if type(entry[2]) is not DTask]

    # ---- workers ---------------------------------------------------------------------------------

    def add_worker(self, worker: int, slots: Iterable[Slot]) -> list[Slot]:
        """From now on a worker gets tasks; the slots that were not known before. Places what was parked."""
        with self.lock:
            new = [slot for slot in slots if slot.processor not in self.slots]
            self.slots.update({slot.processor: slot for slot in new})
            self.shared.setdefault(worker, deque())
            self.pressure.setdefault(worker, Pressure())
            self._set_active({*self.active, worker})
        self.unpark()
        return new

    def remove_worker(self, worker: int) -> None:
        """A worker gets no more tasks; it finishes those that it has."""
        with self.lock:
            self._set_active({w for w in self.active if w != worker})

    def remove_slots(self, processors: Iterable[Any]) -> list[DTask]:
        """Processors are gone: their slots go, and what waited for them is to be placed again (`enqueue`)."""
        orphans: list[DTask] = []
        with self.lock:
            for processor in processors:
                slot = self.slots.pop(processor, None)
                if slot is None:
                    continue
                self.waiting.discard(slot)
                orphans += [entry[2] for entry in slot.heap if type(entry[2]) is DTask]
                slot.heap[:] = [entry for entry in slot.heap if type(entry[2]) is not DTask]
            self._set_active(set(self.active))
        return [task for task in orphans if claim(task)]

    def _set_active(self, workers: set[int]) -> None:
        """Set what follows from the workers and slots that there are."""
        self.active = tuple(sorted(workers))
        self.is_alone = len(self.active) == 1
        first = self.active[0] if self.active else 1
        self.queue = self.shared.setdefault(first, deque())
        self.home = OSProc(first)
        self.home_code = code_of(self.home)
        self.threads = {w: [s for s in self.slots.values() if s.worker == w and s.shares] for w in self.shared}
        self.custom_defaults = any(slot.takes_default and not slot.shares for slot in self.slots.values())
        self.is_plain = self.is_alone and not self.custom_defaults
        self.is_quick = self.is_plain and BRANCHES and not self.is_watched
        self.choices = choices_of(self)
        self.costs.time_all(not self.is_alone)

    def worker_lost(self, worker: int) -> list[DTask]:
        """A worker process is gone: what waited for it here, claimed, to be placed again (`Core.hand_on`).

        Nothing that was learned of it is kept. Its queue and its pressure stay, for those who placed a task there at
        this very moment; who reads that queue places what still comes again. May be called again.
        """
        with self.lock:
            for processor in [p for p, slot in self.slots.items() if slot.worker == worker]:
                del self.slots[processor]
            self._set_active({w for w in self.active if w != worker})
        self.costs.rate.pop(worker, None)
        return self.take_back(worker)

    def take_back(self, worker: int) -> list[DTask]:
        """What waits here for a worker that gets nothing more, claimed."""
        found: list[DTask] = []
        queue = self.shared.get(worker)
        while queue:
            with contextlib.suppress(IndexError):  # cancelled at this moment, and taken out
                found.append(queue.popleft())
        with self.lock:
            for slot in [slot for slot in self.waiting if slot.worker == worker]:
                self.waiting.discard(slot)
                found += [entry[2] for entry in slot.heap if type(entry[2]) is DTask]
                slot.heap.clear()
        return [task for task in found if claim(task)]
