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

Everything hot is one operation on a list or deque, atomic under the GIL (and locked by the object itself
without it); pinned tasks take the core's lock.

Sources: design/architecture.md §2; design/rulings.md 7, 12-14.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...errors import NestingError
from ..bodies.run import UserInterrupt, restore, run
from ..core.machine import Core
from ..core.placement import Slot, steal
from ..records import kinds as records
from ..service.threads import start_bare
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, DTask
from ..tasks.environment import running_task

__all__ = ["ThreadsDriver"]

MAX_SPARE_THREADS = 128
"""How many threads may be blocked in `fetch` inside bodies before nesting is an error."""

MAX_HELP_DEPTH = 24
"""How many bodies a thread runs inside each other while it helps, before it hands on to another thread."""

EXIT_JOIN_S = 1.0
"""How long running bodies are waited for when the scheduler goes down."""

_PARKED_SINCE_NEVER = 0

_tickets = itertools.count(1)


class Seat:
    """One thread: its lock to park on, and the cell in which it is handed a slot or a pinned task."""

    __slots__ = ("cell", "lock", "thread")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.lock.acquire()
        self.cell: list[Any] = []
        self.thread: threading.Thread | None = None


class Hold:
    """What a thread holds while it runs bodies: a slot, whole (`share` None) or a share of it.

    It belongs to the thread and not to a task: a body that blocks inside another one on the same thread
    gives back, and gets again, what the thread holds. `task` is the one that it was taken for, where that was
    pinned. The slot lies in `cell`; whoever takes it out, the thread itself or a cancellation of its body, gives it
    back.
    """

    __slots__ = ("cell", "share", "task")

    def __init__(self, slot: Slot, share: float | None, task: DTask | None = None) -> None:
        self.cell = [slot]
        self.share = share
        self.task = task

    def slot(self) -> Slot | None:
        """What it holds now, None after it was taken away."""
        try:
            return self.cell[0]
        except IndexError:
            return None


class Resumption(NamedTuple):
    """What `pause` gives and `resume` takes: the thread's hold and the slot it had, None where it had none."""

    hold: Hold | None
    slot: Slot | None


class _Pinned(NamedTuple):
    """A task that was pinned to a slot and begins there now, with the share that it takes."""

    slot: Slot
    task: DTask
    share: float


class _Resume:
    """A body that blocked and wants its share of a slot again; sits in the slot's heap like a task."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.lock.acquire()


class ThreadsDriver:
    """Runs the bodies of one core on threads of this process. All methods may be called from any thread."""

    step = None
    """Nobody needs to be made to run tasks here (the inline driver has a method of this name)."""

    def __init__(self, core: Core, worker: int = 1) -> None:
        self.core = core
        self.worker = worker
        self.queue = core.shared.setdefault(worker, deque())
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
        self.blocked = 0
        """Bodies that wait in `fetch` right now; guarded by `_blocked_lock`."""
        self._blocked_lock = threading.Lock()
        self._local = threading.local()
        """Per thread: `hold`, what it holds, None outside of bodies; `depth`, how many it runs nested."""
        self.holds: dict[int, Hold] = {}
        """What each thread held last, by its ident: empty cells once it let go."""
        self.closed = False
        self.add_slots(core.slots.values())

    def can_use(self, worker: int) -> bool:
        """Whether this driver has the threads of such a worker."""
        return worker == self.worker

    def add_slots(self, slots: Iterable[Slot]) -> None:
        """Slots are new: whatever waits may begin in them."""
        self.free[:0] = [slot for slot in slots if slot.shares][::-1]
        self.perform_effects()
        self.wake()

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

    def restore(self, task: DTask) -> Sequence[DTask] | None:
        """Finish a placed task by its option `restore`: what became ready; None if that gives no result."""
        return restore(self.core, task)

    def wake(self) -> None:
        """Hand a free slot to a seat if there is work in the shared queue."""
        if not self.queue:
            return
        try:
            slot = self.free.pop()
        except IndexError:
            return
        self._hand(slot, slot)

    def _hand(self, item: Any, slot: Slot) -> None:
        """Give a slot (or a pinned task with its slot) to a seat; start a thread if all are busy."""
        plain = item is slot
        try:
            seat = self.limbo.pop()
        except IndexError:
            try:
                seat = self.idle.pop()
            except IndexError:
                self._start_seat(item, slot)
                return
            seat.cell.append(item)
            if plain:
                self.handed.append(seat)
            seat.lock.release()
            return
        seat.cell.append(item)
        if plain:
            self.handed.append(seat)

    def _start_seat(self, item: Any, slot: Slot) -> None:
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
            self._give_back(item, slot)

    def _give_back(self, item: Any, slot: Slot) -> None:
        if item is slot:
            self.free.append(slot)
        else:
            _, task, share = item
            task._claim = False
            with self.core.lock:
                heapq.heappush(slot.heap, (share, -next(_tickets), task, (slot,)))
                self.core.waiting.add(slot)
            self._leave_share(slot, share)

    # ---- a seat's life ---------------------------------------------------------------------------

    def _sit(self, seat: Seat) -> None:
        """The loop of a worker thread: take what was handed, work, park."""
        while True:
            item = self._next_item(seat)
            if item is None:
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
        current: Slot | None = slot
        while current is not None:
            try:
                task = queue.popleft()
            except IndexError:
                if not self._linger(seat, hold):
                    return
                current = hold.slot()
                continue
            if claim(task):
                try:
                    ready = run(core, task, current)
                except BaseException as error:  # of ours: bodies' own are outcomes. A dead thread would be a hang.
                    core.report_defect(task, error)
                    ready = ()
                if ready:
                    self.enqueue_ready(ready)
                    if len(ready) > 1 and self.free:
                        self.wake()
                    del ready
                current = hold.slot()  # another one, if the body blocked; None, if it was abandoned
            del task
            if self.resuming or (current is not None and current.heap):
                break
        # Park first: a slot that is let go while no seat is idle would start a thread.
        self.idle.append(seat)
        self._let_go(hold)

    def _linger(self, seat: Seat, hold: Hold) -> bool:
        """Nothing is queued: let the spawner have the GIL once before parking. True to go on working.

        Without this a spawner that is as fast as its tasks wakes a thread for each of them. The slot lies
        where a helper can take it meanwhile. False when this seat is parked.
        """
        try:
            slot = hold.cell.pop()
        except IndexError:  # taken away with its body
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
        hold.cell.append(taken)
        if self.queue:
            return True
        self.idle.append(seat)
        self._let_go(hold)
        return False

    def _work_pinned(self, seat: Seat, slot: Slot, task: DTask, share: float) -> None:
        """Run one task that was pinned to a slot."""
        hold = self._take_hold(slot, share, task)
        try:
            ready = run(self.core, task, slot)
        except BaseException as error:  # see `_work`
            self.core.report_defect(task, error)
            ready = ()
        hold.task = None  # it must not live on in `holds`
        if ready:
            self.enqueue_ready(ready)
            if self.free:
                self.wake()
        self.idle.append(seat)
        self._let_go(hold)

    def _take_hold(self, slot: Slot, share: float | None, task: DTask | None = None) -> Hold:
        hold = Hold(slot, share, task)
        self._local.hold = self.holds[threading.get_ident()] = hold
        return hold

    def _let_go(self, hold: Hold) -> None:
        """Give back what a thread holds, unless it was taken away already."""
        try:
            slot = hold.cell.pop()
        except IndexError:
            return
        if hold.share is None:
            self.release(slot)
        elif hold.share:
            self._leave_share(slot, hold.share)

    def release(self, slot: Slot) -> None:
        """Let go of a whole slot: to a body that resumes, a pinned task, a queued one, or to nobody."""
        while True:
            try:
                seat = self.resuming.popleft()
            except IndexError:
                pass
            else:
                seat.cell.append(slot)
                seat.lock.release()
                return
            self.free.append(slot)
            if self.core.waiting:
                self._dispatch(slot)
            if self.resuming:  # it came before it could see the slot: look again
                try:
                    slot = self.free.pop()
                except IndexError:
                    return
                continue
            if self.queue and self.free:
                self.wake()
            return

    # ---- pinned tasks ------------------------------------------------------------------------------

    def perform_effects(self) -> None:
        """Start what was pinned to slots, as far as it fits."""
        effects = self.core.effects
        while effects:
            try:
                slot = effects.popleft()
            except IndexError:
                return
            self._dispatch(slot)

    def _dispatch(self, slot: Slot) -> None:
        """Start what waits for a slot and fits (spec §17.7), lowest share first; then see to stealing.

        An idle slot without work of its own steals from the others; what does not fit here may fit there.
        """
        starts: list[_Pinned] = []
        steals: list[tuple[Slot, Any, int]] = []
        with self.core.lock:
            self._take_own(slot, starts)
            if not self.core.waiting:
                thieves: list[Slot] = []
            elif slot.heap:
                thieves = [*self.free, *(s for s in self.core.slots.values() if not s.shares and not s.used)]
            else:
                thieves = [slot]
            for thief in thieves:
                self._steal(thief, starts, steals)
        for item in starts:
            self._hand(item, item.slot)
        for steal_attempt in steals:
            self.core.record_steal(*steal_attempt)

    def _take_own(self, slot: Slot, starts: list[_Pinned]) -> None:
        while slot.heap:
            share, _, entry, _ = slot.heap[0]
            if type(entry) is DTask and entry._state >= DONE:
                self.core.unqueue(slot)
                continue
            if not self._fits(slot, share):
                return
            self.core.unqueue(slot)
            if type(entry) is _Resume:
                slot.used += share
                entry.lock.release()
            else:
                self._start(slot, entry, share, starts)

    def _start(self, slot: Slot, task: DTask, share: float, starts: list[_Pinned]) -> bool:
        """Begin a pinned task that fits: False if somebody else has it, and the slot is as it was."""
        if claim(task):
            slot.used += share
            starts.append(_Pinned(slot, task, share))
            return True
        if slot.used == 0 and share and slot.shares:
            self.free.append(slot)
        return False

    def _steal(self, thief: Slot, starts: list[_Pinned], steals: list[tuple[Slot, Any, int]]) -> None:
        """Take from other slots' queues what fits (spec §17.7), one task an attempt; the core's lock is held."""
        while not thief.heap and any(s is not thief and s.worker == thief.worker for s in self.core.waiting):
            found = steal(self.core, thief, self._fits)
            if found is None:
                steals.append((thief, None, 0))
                return
            victim, task, share = found
            if self._start(thief, task, share, starts):
                steals.append((thief, victim.processor, task.id))

    def _fits(self, slot: Slot, share: float) -> bool:
        """Whether a pinned body may start; takes a thread slot off the free list for the first one."""
        if share == 0:
            return True
        if slot.used or not slot.shares:
            return slot.used + share <= 1.0 + 1e-9
        try:
            self.free.remove(slot)
        except ValueError:  # a body of the shared queue has it, and looks here when it is done
            return False
        return True

    def _leave_share(self, slot: Slot, share: float) -> None:
        with self.core.lock:
            slot.used = max(0.0, slot.used - share)
            if slot.used < 1e-9:
                slot.used = 0.0
            vacant = slot.used == 0
        if vacant and slot.shares:
            self.release(slot)
        elif self.core.waiting:
            self._dispatch(slot)

    # ---- helping and blocking ------------------------------------------------------------------------

    def help(self, target: DTask) -> None:
        """Run what `target` needs, on this thread, until it is done or others are at it."""
        local = self._local
        depth = getattr(local, "depth", 0)
        if depth >= MAX_HELP_DEPTH:
            return
        before: Hold | None = getattr(local, "hold", None)
        mine = before is not None and before.slot() is not None  # a callback of a task that finished here
        hold = before if depth or mine or running_task() is not None else None
        borrowed = hold is None
        if hold is None:
            slot = self._borrow()
            if slot is None:
                return
            hold = self._take_hold(slot, None)
        elif hold.share is not None and (hold.share < 1.0 or (slot := hold.slot()) is None or not slot.shares):
            return  # a body that takes a share only, or no thread, must not run one that takes a thread
        local.hold, local.depth = hold, depth + 1
        try:
            self._help(target, hold)
        finally:
            local.depth = depth
            self._sweep()
            if borrowed:
                self._let_go(hold)
                self._local.hold = before  # not None where a callback of a finished task fetches
                if before is not None:
                    self.holds[threading.get_ident()] = before

    def _help(self, target: DTask, hold: Hold) -> None:
        core, stack = self.core, [target]
        on_main = threading.current_thread() is threading.main_thread()
        while stack:
            task = stack[-1]
            if task._state >= DONE:
                stack.pop()
                continue
            if task._tokens:
                upstream = next((up for up in task._deps if up._state < DONE), None)
                if upstream is None:  # another thread is just making it ready
                    return
                stack.append(upstream)
                continue
            slot = hold.slot()
            # Only what sits in the shared queue: a pinned task belongs to its own slot.
            if slot is None or getattr(task, "_claim", None) is not True or not claim(task):
                return
            stack.pop()
            try:
                ready = run(core, task, slot, helping=on_main)
            except UserInterrupt:
                core.give_up(task)  # it may have come in our own code, before the body or after it
                raise
            if ready:
                self.enqueue_ready(ready)
                if self.free:
                    self.wake()

    def _sweep(self) -> None:
        """Drop claimed tasks from the ends of the queue: they would keep their results alive there."""
        queue = self.queue
        if not queue:
            return
        for pop, put in ((queue.pop, queue.append), (queue.popleft, queue.appendleft)):
            while True:
                try:
                    last = pop()
                except IndexError:
                    return
                if hasattr(last, "_claim"):
                    put(last)
                    break

    def _borrow(self) -> Slot | None:
        """A free slot, or one that was handed to a seat which has not taken it yet."""
        try:
            return self.free.pop()
        except IndexError:
            pass
        while True:
            try:
                seat = self.handed.pop()
            except IndexError:
                return None
            try:
                item: Slot = seat.cell.pop()
            except IndexError:
                continue
            if type(item) is not Slot:
                seat.cell.append(item)
                continue
            self.limbo.append(seat)
            return item

    def pause(self) -> Resumption:
        """The body on this thread is about to block: give its slot back until `resume`.

        Raises `NestingError` when too many bodies wait inside each other already.
        """
        hold: Hold | None = getattr(self._local, "hold", None)
        if hold is None:  # a thread that the body started: it holds nothing
            return Resumption(None, None)
        with self._blocked_lock:
            if self.blocked >= MAX_SPARE_THREADS:
                raise NestingError(
                    f"{self.blocked} bodies already wait inside each other: return tasks instead of fetching them "
                    "in bodies, or spawn what depends on them with them as arguments",
                    "nesting",
                )
            self.blocked += 1
        slot = hold.slot()
        self._let_go(hold)
        return Resumption(hold, slot)

    def resume(self, resumption: Resumption) -> None:
        """The body goes on: wait until it has a slot, or its share of its slot, again."""
        hold, slot = resumption
        if hold is None:
            return
        with self._blocked_lock:
            self.blocked -= 1
        if slot is None:  # the body was abandoned: it goes on without
            return
        if hold.share is None:
            slot = self._retake()
        elif hold.share:
            ticket = _Resume()
            with self.core.lock:
                heapq.heappush(slot.heap, (hold.share, -next(_tickets), ticket, ()))
                self.core.waiting.add(slot)
            self._dispatch(slot)
            ticket.lock.acquire()
        hold.cell.append(slot)

    def abandon(self, task: DTask) -> None:
        """A running body was cancelled: take its slot away from its thread, so that others may run."""
        for hold in list(self.holds.values()):
            # Several bodies may have shares of one slot; one that has all of it may run others inside of it.
            its_own = hold.share is None or hold.share >= 1.0 or hold.task is task
            if its_own and hold.slot() is task._slot and task in self.core.running:
                self._let_go(hold)
                return

    def is_idle(self) -> bool:
        """Whether no thread has a slot, and so no task, in hand."""
        return len(self.free) == len(self.core.threads[self.worker]) and not any(
            slot.used for slot in self.core.slots.values()
        )

    def _retake(self) -> Slot:
        try:
            return self.free.pop()
        except IndexError:
            pass
        seat = Seat()  # a place to be handed a slot, for this once
        self.resuming.append(seat)
        try:
            slot = self.free.pop()
        except IndexError:
            pass
        else:
            try:
                self.resuming.remove(seat)
            except ValueError:  # one was handed meanwhile, too: keep that, return this
                self.release(slot)
            else:
                return slot
        seat.lock.acquire()
        handed: Slot = seat.cell.pop()
        return handed

    # ---- the end ---------------------------------------------------------------------------------------

    def close(self, timeout_s: float = EXIT_JOIN_S) -> None:
        """Let the threads end; those whose bodies run are daemons and get `timeout_s` in all."""
        self.closed = True
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

    def _record_wait(self, recorder: Any, slot: Slot, since: int) -> None:
        from ...timespans.model import EventId

        id = EventId(uid=self.core.uid, worker=self.worker, processor=slot.processor, seq=records.next_seq())
        now = self.core.clock()
        record = (records.SPAN, "proc_run_wait", id, None, since, now, self.worker, recorder.sample())
        recorder.append(record)
