"""The driver of real threads: slots, seats, parking, and bodies that block.

The problem: a thread a slot that waits on a condition variable costs 10 µs a task in wake-ups. Here a
task costs one append and, mostly, no wake-up:

* A **slot** is the right to run a body. Free slots lie on the list `free`; whoever holds none runs
  nothing, so never more than `threads` bodies run at once, whoever runs them.
* A **seat** is a thread. It parks on a raw lock of its own when there is nothing to do. Waking one means
  handing it a slot, so that a busy spawner wakes each thread once and not once a task.
* The thread in `fetch` **helps** (helping.py): it borrows a slot and runs what its target needs. If the slots were
  just handed to seats that have not come up yet, it takes one of them back; that seat is then *in limbo*
  and gets the next slot without being woken again. While one is in limbo a spawn wakes nobody: that seat looks
  for work when it comes up, and wakes others for the rest. So a chain of spawn and fetch switches no threads.
* A body that **blocks** in `fetch` gives its slot back and takes one again before it goes on; those who
  wait for that go before new tasks. Spare threads are started for the slots it frees, up to a limit.

Everything hot is one operation on a list or deque, or one section (slots.py); pinned tasks take the core's lock.

The main thread may be interrupted between any two steps, by whatever a signal handler raises. So it does only what is
made of sections: it takes and hands slots, claims, runs and ends plain tasks; and what it has in hand stands in its
hold, so that `_mend` finds it. All else (threads to be started, pinned tasks, tasks that fail) it leaves to a thread
that gets no signals (service/uninterrupted.py).

See docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import contextvars
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...timespans.model import EventId
from ...timespans.warn import warn_once
from ..bodies.coroutines import CoroutineBody, Coroutines
from ..bodies.ending import perform, report_defect
from ..bodies.forked import end_forked
from ..bodies.run import run
from ..core.machine import Core
from ..core.placement import Slot, slots_of
from ..places.processors import OSProc
from ..records import kinds as records
from ..service.threads import start_service
from ..service.uninterrupted import on_main_thread, soon, uninterrupted
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, GIL, DTask
from .base import Driver
from .helping import Helping, Local
from .moves import give_back, hand_free, hand_resuming, take_away, take_free
from .slots import Hold, PinnedStart, Seat

if TYPE_CHECKING:
    from ..context import Context
    from ..processes.pool import Pool

__all__ = ["ThreadsDriver"]

EXIT_JOIN_S = 1.0
"""How long running bodies are waited for when the scheduler goes down."""

_PARKED_SINCE_NEVER = 0


def _pool() -> Pool:
    """The workers of this process; not loaded before somebody asks for one."""
    from ..processes.pool import pool

    return pool


class ThreadsDriver(Helping, Driver):
    """Runs the bodies of one core on threads of this process. All methods may be called from any thread."""

    is_stepped = False
    core_type = Core

    def __init__(self, worker: int = 1) -> None:
        super().__init__()
        self.core: Core
        self.worker = worker
        self.queue: deque[DTask] = deque()
        self.free: list[Slot] = []
        """Thread slots that nobody holds; the first processor is taken first."""
        self.idle: list[Seat] = []
        """Parked seats."""
        self.handed: list[Seat] = []
        """Seats that were handed a slot and may not have taken it yet (stale entries do no harm)."""
        self.limbo: list[Seat] = []
        """Seats that were woken for a slot that a helper took back."""
        self.resuming: deque[Seat] = deque()
        """Bodies that want a slot again."""
        self.seats: list[Seat] = []
        self.paused: set[Hold] = set()
        """What the threads hold (nothing) whose bodies wait in `fetch` right now."""
        self.holds: dict[int, Hold] = {}
        """What each thread held last, by its ident: empty once it let go."""
        self.coroutines = Coroutines()
        """Where bodies go on that gave a coroutine."""
        self.closed = False
        self.remote: Pool | None = None
        """The workers that are other processes; None until one is used."""
        self.is_starved = False
        """Whether the system gave no thread when one was wanted: whoever waits runs tasks itself."""
        self._local = Local()

    @property
    def blocked(self) -> int:
        """How many bodies wait in `fetch` right now."""
        return len(self.paused)

    def attach(self, context: Context) -> Core:
        """A core with the threads of its worker as slots, if the context uses that."""
        used = OSProc(self.worker) in context.procs
        core = self.core = self.core_type(context, slots_of(self.worker) if used else [], rng=random.Random())
        self.queue = core.shared.setdefault(self.worker, self.queue)
        core.driver = self
        core.local = self.worker
        self.add_slots(core.slots.values())
        return core

    def can_use(self, worker: int) -> bool:
        """Whether it is this process, or one that was started (cluster.py)."""
        return worker == self.worker or _pool().has(worker)

    def expect(self, worker: int) -> None:
        """Another process: tasks for it go to the pump."""
        if worker != self.worker:
            self.remote = _pool()
            self.remote.serve(self.core, worker)

    def add_slots(self, slots: Iterable[Slot]) -> None:
        """Slots are new: whatever waits may begin in them."""
        slots = list(slots)
        self.free[:0] = [slot for slot in slots if slot.shares and slot.worker == self.worker][::-1]
        if self.remote is not None:
            self.remote.add_slots(self.core, [slot for slot in slots if slot.worker != self.worker])
        self.perform_effects()
        for _ in list(self.free):  # also those that a worker had before, which is back
            self.wake()

    # ---- tasks come in ---------------------------------------------------------------------------

    def submit(self, task: DTask) -> None:
        """Submit a task and see to it that somebody runs it."""
        self.core.submit(task)
        if self.free and not self.limbo:  # who is in limbo comes up soon, and looks for work
            self.wake()
        if self.core.effects:
            self.perform_effects()

    def enqueue_ready(self, ready: Sequence[DTask]) -> None:
        """Queue tasks that became ready."""
        enqueue = self.core.enqueue
        for task in ready:
            enqueue(task)
        if self.core.effects:
            self.perform_effects()

    def perform_effects(self) -> None:
        """Start what was pinned to slots, as far as it fits; end what can only fail, or can be restored."""
        effects, own = self.core.effects, self._local.own
        if not effects or own.performing:
            return
        if on_main_thread():
            # Pinned tasks begin when they can; what can only fail is to have failed when `spawn` returns.
            pinned_only = all([type(effect) is Slot for effect in list(effects)])
            soon(self.perform_effects) if pinned_only else uninterrupted(self.perform_effects)
            return
        own.performing = True
        try:
            while effects:
                try:
                    effect = effects.popleft()
                except IndexError:
                    return
                if type(effect) is Slot:
                    self.dispatch(effect) if effect.worker == self.worker else _pool().dispatch(self.core, effect)
                else:
                    perform(self.core, effect)  # type: ignore[arg-type]
        finally:
            own.performing = False
        if effects:  # left by a signal handler just when we had looked
            self.perform_effects()

    def wake(self) -> None:
        """Hand a free slot to a seat if there is work in the shared queue."""
        free = self.free
        if free and self.queue and not hand_free(free, self.limbo, self.idle, self.handed) and free:
            uninterrupted(self._start_seat)

    def _start_seat(self) -> None:
        """All threads are busy, and a slot is free: one more thread."""
        hold = Hold()
        if take_free(self.free, hold):
            self._start_thread(hold.slot, hold.slot)

    def _hand(self, start: PinnedStart) -> None:
        """Give a pinned task with its slot to a seat; start a thread if all are busy. Not in the main thread."""
        for seats in (self.limbo, self.idle):
            with contextlib.suppress(IndexError):
                seat = seats.pop()
                seat.cell.append(start)
                if seats is self.idle:
                    seat.lock.release()
                return
        self._start_thread(start, start.slot)

    def _start_thread(self, item: Any, slot: Any) -> None:
        seat = Seat()
        seat.cell.append(item)
        seat.lock.release()
        number = len(self.seats) + 1
        seat.thread = threading.Thread(target=self._sit, args=(seat,), name=f"dagger-{number}", daemon=True)
        self.seats.append(seat)
        refusal = start_service(seat.thread)
        self.is_starved = refusal is not None
        if refusal is not None:
            self.seats.remove(seat)
            seat.thread = None  # which refers to the seat, and that to what it was to begin with
            self._put_back(item, slot)
            warn_once(self, "%s: tasks run in the threads that wait for them", refusal)

    def help(self, target: DTask | None) -> bool:
        """See `Driver.help`. What other processes have, or are to have, is theirs."""
        if self.remote is not None and target is not None and not target._tokens:
            try:
                if target._claim is not True:
                    return False
            except AttributeError:  # somebody has it
                return False
        return super().help(target)

    # ---- a seat's life ---------------------------------------------------------------------------

    def _sit(self, seat: Seat) -> None:
        """The loop of a worker thread: take what was handed, work, park."""
        while True:
            item = self._next_item(seat)
            if item is None:
                end_forked()
                return
            if type(item) is Slot:
                self._work(seat, item)
            else:
                self._work_pinned(seat, *item)
            item = None  # a finished task must not live on in a parked thread

    def _next_item(self, seat: Seat) -> Any:
        """Park until something is handed; None when the scheduler went down."""
        if self.closed:
            return None
        parked_at = self.core.clock() if self.core.context.recorder is not None else _PARKED_SINCE_NEVER
        while True:
            seat.lock.acquire()
            item = self._take_handed(seat)
            if item is not None:
                recorder = self.core.context.recorder
                if recorder is not None and parked_at and item != "halt":
                    self._record_wait(recorder, item if type(item) is Slot else item[0], parked_at)
                return None if item == "halt" else item

    def _take_handed(self, seat: Seat) -> Any:
        """What is in the cell; None after parking again, because a helper took it back."""
        while True:
            try:
                item = seat.cell.pop()
            except IndexError:
                pass
            else:
                with contextlib.suppress(ValueError):
                    self.handed.remove(seat)
                return item
            try:
                self.limbo.remove(seat)
            except ValueError:
                time.sleep(0)  # the helper is between its two steps, or somebody hands us a slot right now
                continue
            self.idle.append(seat)
            for _ in range(min(len(self.queue), len(self.free))):  # who spawned them left it to us
                self.wake()
            return None

    def _work(self, seat: Seat, slot: Slot) -> None:
        """Run tasks of the shared queue until it is empty, or the slot is wanted elsewhere."""
        queue, core = self.queue, self.core
        hold = self._take_hold(slot, None)
        mine: Slot | None = slot
        while mine is not None:
            try:
                task = queue.popleft()
            except IndexError:
                if not self._linger(seat, hold):
                    return
                mine = hold.slot
                continue
            try:
                if GIL:
                    del task._claim  # `claim`, without a call
                elif not claim(task):
                    raise AttributeError
            except AttributeError:  # somebody else has it, or it is done
                del task
                continue
            try:
                queued = run(core, task, mine) if task.id != self.probe else self._run_probed(task, mine)
            except BaseException as error:  # of ours: bodies' own are outcomes. A dead thread would be a hang.
                report_defect(core, task, error)
                queued = 0
            del task
            if queued > 1 and self.free:  # the first of them is for this thread
                self.wake()
            mine = hold.slot  # another one, if the body blocked; None, if it was abandoned
            if self.resuming or (mine is not None and mine.heap):
                break
        # Park first: a slot that is let go while no seat is idle would start a thread.
        self.idle.append(seat)
        self._let_go(hold)

    def _linger(self, seat: Seat, hold: Hold) -> bool:
        """Nothing is queued: let the spawner have the GIL once before parking. True to go on working.

        Without this a spawner that is as fast as its tasks wakes a thread for each of them. The slot lies
        where a helper can take it meanwhile. False when this seat is parked.
        """
        slot = take_away(hold)
        if slot is None:  # taken away with its body
            self.idle.append(seat)
            return False
        seat.cell.append(slot)
        self.handed.append(seat)
        time.sleep(0)
        taken = self._take_handed(seat)
        if type(taken) is not Slot:
            if taken is not None:  # it was taken back, and a pinned task given instead
                self._work_pinned(seat, *taken)
            return False
        hold.slot = taken
        if self.queue:
            return True
        self.idle.append(seat)
        self._let_go(hold)
        return False

    def _work_pinned(self, seat: Seat, slot: Slot, task: DTask, share: float) -> None:
        """Run one task that was pinned to a slot."""
        hold = self._take_hold(slot, share, task)
        try:
            queued = run(self.core, task, slot)
        except BaseException as error:  # see `_work`
            report_defect(self.core, task, error)
            queued = 0
        hold.task = None  # it must not live on in `holds`
        del task  # nor in this frame, which its failure refers to
        if queued and self.free:
            self.wake()
        self.idle.append(seat)
        self._let_go(hold)

    def _take_hold(self, slot: Slot, share: float | None, task: DTask | None = None) -> Hold:
        hold = Hold(slot, share, task)
        own = self._local.own
        own.hold = hold
        self._list(own, hold)
        return hold

    def _let_go(self, hold: Hold) -> None:
        """Give back what a thread holds, unless it was taken away already."""
        if hold.share is None:
            slot = give_back(hold, self.free)
            if slot is not None:
                self._use(slot)
            return
        slot = take_away(hold)
        if slot is not None and hold.share:
            self._leave_share(slot, hold.share)

    def _use(self, slot: Slot | None) -> None:
        """A whole slot (None: any) was freed: it is for a body that resumes, a pinned task, or a queued one."""
        while self.resuming and hand_resuming(self.free, self.resuming):
            pass
        if self.core.waiting:
            for one in (slot,) if slot is not None and not self.is_starved else list(self.core.waiting):
                soon(self.dispatch, one)
        if self.free and self.queue:
            self.wake()

    def go_on(self, task: DTask, coroutine: Any, context: contextvars.Context, over: Callable[..., int]) -> int:
        """On the event loop of this scheduler."""

        def handed(value: Any, error: BaseException | None) -> None:
            for _ in range(over(value, error)):
                self.wake()

        uninterrupted(self._start_coroutine, CoroutineBody(task, coroutine, context, handed), task)
        return 0

    def _start_coroutine(self, body: CoroutineBody, task: DTask) -> None:
        body.drop() if task._state >= DONE else self.coroutines.start(body)

    def abandon(self, task: DTask) -> None:
        """A running body was cancelled: take its slot away from its thread, so that others may run."""
        if self.remote is not None and self.remote.cancel(task, False):
            return
        for hold in list(self.holds.values()):
            # Several bodies may have shares of one slot; one that has all of it may run others inside of it.
            its_own = hold.share is None or hold.share >= 1.0 or hold.task is task
            if its_own and hold.slot is task._slot and task in self.core.running:
                self._let_go(hold)
                return

    def interrupt(self, task: DTask) -> bool:
        """A body on a worker is interrupted there."""
        return self.remote is not None and self.remote.cancel(task, True)

    def is_idle(self) -> bool:
        """Whether no thread has a slot, and so no task, in hand."""
        return len(self.free) == len(self.core.threads[self.worker]) and not any(
            slot.used for slot in self.core.slots.values()
        ) and (self.remote is None or self.remote.is_idle(self.core))

    # ---- the end ---------------------------------------------------------------------------------------

    def close(self, timeout_s: float = EXIT_JOIN_S) -> None:
        """Let the threads end; those whose bodies run are daemons and get `timeout_s` in all."""
        self.closed = True
        if self.remote is not None:
            self.remote.drop(self.core)
        self.coroutines.close(timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                seat = self.idle.pop()
            except IndexError:
                busy = [s for s in self.seats if s.thread is not None and s.thread.is_alive()]
                if not busy or time.monotonic() > deadline or all(s.thread is threading.current_thread() for s in busy):
                    return
                time.sleep(0.001)
                continue
            seat.cell.append("halt")
            seat.lock.release()
            if seat.thread is not None:
                seat.thread.join(max(0.0, deadline - time.monotonic()))

    def forget(self) -> None:
        """In a forked child: what waits is the parent's to run."""
        self.closed = True
        self.queue.clear()

    def _record_wait(self, recorder: Any, slot: Slot, since: int) -> None:
        id = EventId(uid=self.core.uid, worker=self.worker, processor=slot.processor, seq=records.next_seq())
        now = self.core.clock()
        record = (records.SPAN, "proc_run_wait", id, None, since, now, self.worker, recorder.sample())
        recorder.append(record)
