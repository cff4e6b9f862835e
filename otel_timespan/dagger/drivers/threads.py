"""The driver of real threads: slots, seats, parking, and bodies that block.

The problem: a thread a slot that waits on a condition variable costs 10 µs a task in wake-ups. Here a
task costs one append and, mostly, no wake-up:

* A **slot** is the right to run a body. Free slots lie on the list `free`; whoever holds none runs
  nothing, so never more than `threads` bodies run at once, whoever runs them.
* A **seat** is a thread. It parks on a raw lock of its own when there is nothing to do. Waking one means
  handing it a slot, so that a busy spawner wakes each thread once and not once a task.
* The thread in `fetch` **helps**: it borrows a slot and runs what its target needs. If the slots were
  just handed to seats that have not come up yet, it takes one of them back; that seat is then *in limbo*
  and gets the next slot without being woken again. So a chain of spawn and fetch switches no threads.
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
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import NestingError
from ...timespans.model import EventId
from ..bodies.coroutines import CoroutineBody, Coroutines
from ..bodies.ending import give_up, perform, report_defect
from ..bodies.forked import end_forked
from ..bodies.run import run
from ..core.machine import Core
from ..core.placement import Slot, slots_of
from ..places.processors import OSProc
from ..records import kinds as records
from ..service.threads import start_bare
from ..service.uninterrupted import on_main_thread, soon, uninterrupted
from ..tasks.atomics import GIL, claim, claim_for
from ..tasks.dtask import DONE, DTask
from ..tasks.environment import current, running_task
from .base import Driver
from .pinned import Pinned
from .slots import (
    Hold,
    PinnedStart,
    Resumption,
    Seat,
    give_back_locked,
    hand_free_locked,
    hand_resuming_locked,
    sweep_locked,
    take_away_locked,
    take_free_locked,
    take_handed_locked,
)

if TYPE_CHECKING:
    from ..context import Context

__all__ = ["ThreadsDriver"]

MAX_SPARE_THREADS = 128
"""How many threads may be blocked in `fetch` inside bodies before nesting is an error."""

MAX_HELP_DEPTH = 24
"""How many bodies a thread runs inside each other while it helps, before it hands on to another thread."""

EXIT_JOIN_S = 1.0
"""How long running bodies are waited for when the scheduler goes down."""

_PARKED_SINCE_NEVER = 0


# ---- moves of slots, each a section (tasks/atomics.py); slots.py has them for builds without the GIL ----------


def take_free_gil(free: list[Slot], hold: Hold) -> bool:
    """Take the first free slot into the hold; False if there is none."""
    try:
        slot = free[-1]
    except IndexError:
        return False
    del free[-1]
    hold.slot = slot
    return True


def give_back_gil(hold: Hold, free: list[Slot]) -> Slot | None:
    """Put what the hold has on the list of free slots: that slot; None if it has none (any more)."""
    slot = hold.slot
    if slot is not None:
        hold.slot = None
        free += (slot,)
    return slot


def take_away_gil(hold: Hold) -> Slot | None:
    """Take the slot out of a hold, to put it elsewhere at once; None if it has none (any more)."""
    slot = hold.slot
    hold.slot = None
    return slot


def take_handed_gil(handed: list[Seat], hold: Hold, limbo: list[Seat]) -> bool:
    """Take a slot back from a seat that was handed it and has not come up; the seat is in limbo then."""
    while True:
        try:
            seat = handed[-1]
        except IndexError:
            return False
        del handed[-1]
        cell = seat.cell
        if cell and cell[-1].__class__ is Slot:  # `type` would be a call
            hold.slot = cell[-1]
            del cell[-1]
            limbo += (seat,)
            return True


def hand_free_gil(free: list[Slot], limbo: list[Seat], idle: list[Seat], handed: list[Seat]) -> bool:
    """Hand the first free slot to a seat: one in limbo, else a parked one, which is woken; False without either."""
    try:
        slot = free[-1]
        if limbo:
            seat = limbo[-1]
            del limbo[-1], free[-1]
            seat.cell += (slot,)
            handed += (seat,)
            return True
        seat = idle[-1]
    except IndexError:
        return False
    del idle[-1], free[-1]
    seat.cell += (slot,)
    handed += (seat,)
    seat.lock.release()
    return True


def hand_resuming_gil(free: list[Slot], resuming: deque[Seat]) -> bool:
    """Hand the first free slot to the body that waits longest for one; False without either."""
    try:
        slot, seat = free[-1], resuming[0]
    except IndexError:
        return False
    del free[-1], resuming[0]
    seat.cell += (slot,)
    seat.lock.release()
    return True


def sweep_gil(queue: deque[DTask]) -> None:
    """Drop claimed tasks from the ends of a queue: they would keep their results alive there."""
    try:
        while True:
            task = queue[-1]
            try:
                task._claim  # noqa: B018 - to look, without a call
                break
            except AttributeError:  # another thread may have come, as the error was made
                if queue[-1] is task:
                    del queue[-1]
        while True:
            task = queue[0]
            try:
                task._claim  # noqa: B018
                return
            except AttributeError:
                if queue[0] is task:
                    del queue[0]
    except IndexError:
        return


if GIL:
    take_free, take_handed, take_away, give_back = take_free_gil, take_handed_gil, take_away_gil, give_back_gil
    hand_free, hand_resuming, sweep = hand_free_gil, hand_resuming_gil, sweep_gil
else:
    take_free, take_handed, take_away = take_free_locked, take_handed_locked, take_away_locked
    give_back, sweep = give_back_locked, sweep_locked
    hand_free, hand_resuming = hand_free_locked, hand_resuming_locked


class _Local(threading.local):
    """Per thread: `hold`, what it holds, None outside of bodies; `depth`, how many bodies it runs nested."""

    hold: Hold | None = None
    helping: Hold | None = None
    """What this thread holds whenever it helps from outside of bodies."""
    depth = 0
    performing = False
    """Whether it is just performing effects."""


class ThreadsDriver(Pinned, Driver):
    """Runs the bodies of one core on threads of this process. All methods may be called from any thread."""

    is_stepped = False

    def __init__(self, worker: int = 1) -> None:
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
        self._local = _Local()

    @property
    def blocked(self) -> int:
        """How many bodies wait in `fetch` right now."""
        return len(self.paused)

    def attach(self, context: Context) -> Core:
        """A core with the threads of its worker as slots, if the context uses that."""
        used = OSProc(self.worker) in context.procs
        core = self.core = Core(context, slots_of(self.worker) if used else [], rng=random.Random())
        self.queue = core.shared.setdefault(self.worker, self.queue)
        core.driver = self
        self.add_slots(core.slots.values())
        return core

    def can_use(self, worker: int) -> bool:
        """Whether this driver has the threads of such a worker."""
        return worker == self.worker

    def add_slots(self, slots: Iterable[Slot]) -> None:
        """Slots are new: whatever waits may begin in them."""
        self.free[:0] = [slot for slot in slots if slot.shares][::-1]
        self.perform_effects()
        self.wake()

    def step(self) -> bool:
        """Nobody needs to: bodies run on threads."""
        return False

    # ---- tasks come in ---------------------------------------------------------------------------

    def submit(self, task: DTask) -> None:
        """Submit a task and see to it that somebody runs it."""
        self.core.submit(task)
        if self.free:
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
        effects, local = self.core.effects, self._local
        if not effects or local.performing:
            return
        if on_main_thread():
            # Pinned tasks begin when they can; what can only fail is to have failed when `spawn` returns.
            pinned_only = all([type(effect) is Slot for effect in list(effects)])
            soon(self.perform_effects) if pinned_only else uninterrupted(self.perform_effects)
            return
        local.performing = True
        try:
            while effects:
                try:
                    effect = effects.popleft()
                except IndexError:
                    return
                if type(effect) is Slot:
                    self.dispatch(effect)
                else:
                    perform(self.core, effect)  # type: ignore[arg-type]
        finally:
            local.performing = False

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
        try:
            seat = self.limbo.pop()
        except IndexError:
            try:
                seat = self.idle.pop()
            except IndexError:
                self._start_thread(start, start.slot)
                return
            seat.cell.append(start)
            seat.lock.release()
            return
        seat.cell.append(start)

    def _start_thread(self, item: Any, slot: Any) -> None:
        seat = Seat()
        seat.cell.append(item)
        seat.lock.release()
        number = len(self.seats) + 1
        seat.thread = threading.Thread(target=self._sit, args=(seat,), name=f"dagger-{number}", daemon=True)
        self.seats.append(seat)
        try:
            # Bare: a worker thread must not inherit the options of whoever came first.
            start_bare(seat.thread)
        except RuntimeError:  # the interpreter is shutting down, or the system has no thread left
            self.seats.remove(seat)
            self._put_back(item, slot)

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
            if self.queue and self.free:
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
            if claim(task):
                try:
                    queued = run(core, task, mine)
                except BaseException as error:  # of ours: bodies' own are outcomes. A dead thread would be a hang.
                    report_defect(core, task, error)
                    queued = 0
                if queued > 1 and self.free:  # the first of them is for this thread
                    self.wake()
                mine = hold.slot  # another one, if the body blocked; None, if it was abandoned
            del task
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
        self._local.hold = self.holds[get_ident()] = hold
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
            for one in (slot,) if slot is not None else list(self.core.waiting):
                soon(self.dispatch, one)
        if self.free and self.queue:
            self.wake()

    # ---- helping and blocking ------------------------------------------------------------------------

    def help(self, target: DTask) -> None:
        """Run what `target` needs, on this thread, until it is done or others are at it."""
        local = self._local
        depth, before = local.depth, local.hold
        if depth >= MAX_HELP_DEPTH:
            return
        mine = before is not None and before.slot is not None  # a callback of a task that finished here
        borrowed = not (depth or mine or (current.get() is not None and running_task() is not None))
        hold = before if not borrowed else local.helping or Hold()
        if hold is None:
            return
        if not borrowed and hold.share is not None and (hold.share < 1.0 or hold.slot is None or not hold.slot.shares):
            return  # a body that takes a share only, or no thread, must not run one that takes a thread
        outer = hold.claimed
        try:
            local.hold, local.depth = hold, depth + 1
            try:
                if borrowed:
                    local.helping = self.holds[get_ident()] = hold
                if not borrowed or take_free(self.free, hold) or take_handed(self.handed, hold, self.limbo):
                    self._help(target, hold)
            finally:
                local.depth = depth
                sweep(self.queue)
                if borrowed:
                    self._let_go(hold)
                    local.hold = before
                    if before is not None:
                        self._take_up(before)
        except BaseException:
            uninterrupted(self._mend, hold, outer, borrowed)
            local.depth = depth
            self._take_up(before)
            raise

    def _take_up(self, before: Hold | None) -> None:
        """This thread holds what it held before it helped: something where a callback of a finished task fetches."""
        self._local.hold = before
        if before is not None:
            self.holds[get_ident()] = before

    def _help(self, target: DTask, hold: Hold) -> None:
        core, stack, outer = self.core, [target], hold.claimed
        on_main = get_ident() == threading.main_thread().ident
        while stack:
            task = stack[-1]
            if task._state >= DONE:
                stack.pop()
                continue
            if task._tokens:
                for upstream in task._deps:
                    if upstream._state < DONE:
                        stack.append(upstream)
                        break
                else:  # another thread is just making it ready
                    return
                continue
            slot = hold.slot
            # Only what sits in the shared queue: a pinned task belongs to its own slot.
            if slot is None or getattr(task, "_claim", None) is not True:
                return
            if GIL:  # `claim_for`, without a call
                try:
                    del task._claim
                except AttributeError:
                    return
                hold.claimed = task
            elif not claim_for(task, hold):
                return
            stack.pop()
            queued = run(core, task, slot, helping=on_main)
            hold.claimed = outer
            if queued and self.free:
                self.wake()

    def _mend(self, hold: Hold, outer: DTask | None, borrowed: bool) -> None:
        """A helper was interrupted between its steps: end, or queue again, what it had in hand; free its slot."""
        task, hold.claimed = hold.claimed, outer
        if task is not None and task is not outer:
            if task._slot is None and task._state < DONE:  # its body had not begun
                task._claim = True
                self.queue.appendleft(task)
            else:
                give_up(self.core, task)
        if borrowed:
            self.paused.discard(hold)
            self._let_go(hold)
        self._use(None)
        self.perform_effects()

    def pause(self) -> Resumption:
        """The body on this thread is about to block: give its slot back until `resume`.

        Raises `NestingError` when too many bodies wait inside each other already.
        """
        hold = self._local.hold
        if hold is None:  # a thread that the body started: it holds nothing
            return Resumption(None, None)
        if len(self.paused) >= MAX_SPARE_THREADS:
            raise NestingError(
                f"{len(self.paused)} bodies already wait inside each other: return tasks instead of fetching them "
                "in bodies, or spawn what depends on them with them as arguments",
                "nesting",
            )
        self.paused.add(hold)
        slot = hold.slot
        self._let_go(hold)
        return Resumption(hold, slot)

    def resume(self, paused: Resumption) -> None:
        """The body goes on: wait until it has a slot, or its share of its slot, again."""
        hold, slot = paused
        if hold is None:
            return
        self.paused.discard(hold)
        if slot is None:  # the body was abandoned: it goes on without
            return
        if hold.share is None:
            self._retake(hold)
        elif hold.share:
            self._retake_share(hold, slot, hold.share)
        else:
            hold.slot = slot

    def _retake(self, hold: Hold) -> None:
        """Wait for a slot. An interrupted body goes on without."""
        if take_free(self.free, hold):
            return
        seat = Seat()  # a place to be handed a slot, for this once
        try:
            self.resuming.append(seat)
            while self.resuming and hand_resuming(self.free, self.resuming):  # one was freed before it saw us
                pass
            seat.lock.acquire()
            hold.slot = seat.cell[-1]
            del seat.cell[-1]
        except BaseException:
            uninterrupted(self._stop_resuming, seat)
            raise

    def _stop_resuming(self, seat: Seat) -> None:
        with contextlib.suppress(ValueError):  # it was handed one
            self.resuming.remove(seat)
        while seat.cell:
            slot = seat.cell.pop()
            self.free.append(slot)
            self._use(slot)

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
        for hold in list(self.holds.values()):
            # Several bodies may have shares of one slot; one that has all of it may run others inside of it.
            its_own = hold.share is None or hold.share >= 1.0 or hold.task is task
            if its_own and hold.slot is task._slot and task in self.core.running:
                self._let_go(hold)
                return

    def is_idle(self) -> bool:
        """Whether no thread has a slot, and so no task, in hand."""
        return len(self.free) == len(self.core.threads[self.worker]) and not any(
            slot.used for slot in self.core.slots.values()
        )

    # ---- the end ---------------------------------------------------------------------------------------

    def close(self, timeout_s: float = EXIT_JOIN_S) -> None:
        """Let the threads end; those whose bodies run are daemons and get `timeout_s` in all."""
        self.closed = True
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
