"""What a waiting thread does meanwhile: it helps, or blocks; and where no thread can be started it runs what it must.

A thread in `fetch` borrows a slot and runs what its target needs, as long as that is brief (brief.py); a body does so
with the slot that it has. What is not brief, or must be left in time, is left to other threads; then it blocks, and a
body's slot goes back meanwhile. Two cases leave no choice, and it helps with whatever there is: very many bodies that
wait inside each other, as each takes a thread; and a system that gives no more threads (*starved*), where nobody
else would come.

See docs/architecture.md and docs/scheduling.md.
"""

from __future__ import annotations

import contextlib
import threading
import time
from _thread import get_ident
from abc import abstractmethod
from collections import deque
from types import FunctionType

from ...errors import NestingError
from ..bodies.ending import give_up
from ..bodies.run import run
from ..core.placement import Slot
from ..options.options import DEFAULT
from ..service.uninterrupted import uninterrupted
from ..tasks.atomics import GIL, claim_for
from ..tasks.dtask import DONE, DTask
from ..tasks.environment import here, running_task
from .brief import BRIEF_NS, Brief, code_of, is_ordinary_here
from .moves import give_back, hand_resuming, sweep, take_free, take_handed
from .pinned import Pinned
from .slots import Hold, Resumption, Seat

__all__ = ["Helping"]

MAX_SPARE_THREADS = 128
"""How many threads may be blocked in `fetch` inside bodies before nesting is an error."""

CROWDED = 32
"""With so many bodies blocked the others help with whatever they wait for, brief or not."""

MAX_HELP_DEPTH = 24
"""How many bodies a thread runs inside each other while it helps, before it hands on to another thread."""


class Own:
    """What is known of one thread."""

    __slots__ = ("depth", "frames", "helping", "hold", "listed", "performing")

    def __init__(self) -> None:
        self.hold: Hold | None = None
        """What it holds, None outside of bodies."""
        self.helping = Hold()
        """What it holds whenever it helps from outside of bodies."""
        self.listed: Hold | None = None
        """What stands for it in `Helping.holds`."""
        self.depth = 0
        """How many bodies it runs nested."""
        self.frames = 0
        """See `brief.is_ordinary_here`."""
        self.performing = False
        """Whether it is just performing effects."""


class Local(threading.local):
    """`own`: what is known of the calling thread; one look, as each takes as long as ten of a plain object's."""

    def __init__(self) -> None:
        self.own = Own()


class Helping(Pinned):
    """The part of the driver of threads that serves those who wait."""

    queue: deque[DTask]
    handed: list[Seat]
    limbo: list[Seat]
    seats: list[Seat]
    resuming: deque[Seat]
    paused: set[Hold]
    holds: dict[int, Hold]
    is_starved: bool
    _local: Local

    def __init__(self) -> None:
        self.brief = Brief()
        """Which bodies may be helped with."""
        self.probe = 0
        """The id of a task whose time is wanted, as nobody knows how long its function takes."""

    @abstractmethod
    def wake(self) -> None:
        """There may be work for one more body."""

    @abstractmethod
    def perform_effects(self) -> None:
        """Do what the core asked for."""

    @abstractmethod
    def _let_go(self, hold: Hold) -> None:
        """Give back what a thread holds."""

    # ---- helping -----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Run one task, whichever, where there is no thread for it and none can be started: whether there was one.

        Raises `NestingError` where this thread is in too many bodies already.
        """
        if not self.is_starved or len(self.seats) > len(self.paused):
            return False
        if self._local.own.depth >= MAX_HELP_DEPTH:
            raise NestingError("bodies wait inside each other, and no thread can be started to go on with", "nesting")
        return self.help(None)

    def help(self, target: DTask | None) -> bool:
        """See `Driver.help`; without a target one task, whichever."""
        own = self._local.own
        depth, before = own.depth, own.hold
        in_body = here() is not None and running_task() is not None
        mine = before is not None and before.slot is not None
        # A callback of a task that finished here can't give back the slot below it, which may be the only one.
        must = self.is_starved or (mine and not in_body) or len(self.paused) >= CROWDED
        if depth >= MAX_HELP_DEPTH or not (must or is_ordinary_here(own)):
            return False
        if not (depth or mine or in_body):
            return self._help_out(own, own.helping, target, must)
        if must and before in self.paused:  # a body, which gave its slot back
            return self._help_out(own, Hold(), target, must)
        if before is None:
            return False
        if before.share is not None and (before.share < 1.0 or before.slot is None or not before.slot.shares):
            return False  # a body that takes a share only, or no thread, must not run one that takes a thread
        outer = before.claimed
        try:
            own.depth = depth + 1
            ran = self._run_any(before, False) if target is None else self._help(target, before, must)
            sweep(self.queue)
        except BaseException:
            uninterrupted(self._mend, before, outer, False)
            raise
        finally:
            own.depth = depth
        return ran

    def _help_out(self, own: Own, hold: Hold, target: DTask | None, must: bool) -> bool:
        """Help, with a slot that is borrowed for it."""
        depth, before, outer = own.depth, own.hold, hold.claimed
        ran = False
        try:
            own.hold, own.depth = hold, depth + 1
            if own.listed is not hold:
                self._list(own, hold)
            if target is None:
                ran = self._run_any(hold, True)
            elif take_free(self.free, hold) or take_handed(self.handed, hold, self.limbo):
                ran = self._help(target, hold, must)
            if self.queue:
                sweep(self.queue)
            if hold.share is not None:
                uninterrupted(self._let_go, hold)
                hold.share = None
            else:  # `_let_go`, without a call
                slot = give_back(hold, self.free)
                if slot is not None and (self.queue or self.resuming or self.core.waiting):
                    self._use(slot)
        except BaseException:
            uninterrupted(self._mend, hold, outer, True)
            raise
        finally:
            own.hold, own.depth = before, depth
            if before is not None:  # where a callback of a finished task fetches
                self._list(own, before)
        return ran

    def _list(self, own: Own, hold: Hold) -> None:
        """From now on this stands for the calling thread, for those who want to take a slot away from it."""
        self.holds[get_ident()] = own.listed = hold

    def _help(self, target: DTask, hold: Hold, must: bool) -> bool:
        core, queue, clock, known = self.core, self.queue, self.core.clock, self.brief.known
        task, outer, ran = target, hold.claimed, False
        below: list[DTask] = []  # which need `task`, each of them the next
        begun, last = 0, None  # when the last body ended, and its function
        while target._state < DONE:
            if task._tokens:
                for upstream in task._deps:
                    if upstream._state < DONE:
                        below.append(task)
                        task, begun = upstream, 0
                        break
                else:
                    if task._state < DONE or not below:  # another thread is just making it ready
                        return ran
                    task = below.pop()
                continue
            slot, f = hold.slot, task._f
            try:
                if slot is None or task._claim is not True:  # a pinned task belongs to its own slot
                    return ran
            except AttributeError:  # somebody else has it, or it is done
                if task._state < DONE or not below:
                    return ran
                task = below.pop()
                continue
            if not must:
                if f is not last:
                    code = f.__code__ if type(f) is FunctionType and f.__closure__ is None else code_of(f)
                    if id(code) not in known:
                        self.probe = task.id
                        return ran
                    last = f
                if task._options is not DEFAULT and task._options.timeout is not None:
                    return ran
            if GIL:  # `claim_for`, without a call
                try:
                    del task._claim
                except AttributeError:
                    return ran
                hold.claimed = task
                if queue and queue[-1] is task:  # `sweep`, without an error
                    del queue[-1]
            elif not claim_for(task, hold):
                return ran
            if not begun:
                begun = clock()
            queued = run(core, task, slot, True)
            hold.claimed = outer
            ran = True
            ended = clock()
            if ended - begun >= BRIEF_NS:
                self.brief.learn(f, ended - begun)
                last = None
            begun = ended
            if queued and self.free:
                self.wake()
            if not below:
                return True
            task = below.pop()
        return ran

    def _run_any(self, hold: Hold, borrowed: bool) -> bool:
        """Run the oldest task that waits for a thread, with a slot or with the share that it asked for."""
        outer = hold.claimed
        if self.queue and (not borrowed or take_free(self.free, hold)):
            any(getattr(one, "_claim", None) is True and claim_for(one, hold) for one in list(self.queue))
        if hold.claimed is outer and borrowed:
            self._let_go(hold)
            start = uninterrupted(self.begin_pinned)
            if start is not None:
                hold.slot, hold.share, hold.task, hold.claimed = start.slot, start.share, start.task, start.task
        task, slot = hold.claimed, hold.slot
        if task is outer or task is None or slot is None:
            return False
        queued = run(self.core, task, slot, True)
        hold.claimed, hold.task = outer, None
        if queued and self.free:
            self.wake()
        return True

    def _run_probed(self, task: DTask, slot: Slot) -> int:
        """`run`, on a worker's thread, for one whose time a helper would like to know."""
        f, begun = task._f, time.monotonic_ns()
        try:
            return run(self.core, task, slot)
        finally:
            self.brief.learn(f, time.monotonic_ns() - begun)
            del task, f  # its failure refers to this frame

    def _mend(self, hold: Hold, outer: DTask | None, borrowed: bool) -> None:
        """A helper was interrupted between its steps: end, or queue again, what it had in hand; free its slot."""
        task, hold.claimed = hold.claimed, outer
        if task is not None and task is not outer:
            if task._slot is None and task._state < DONE and hold.share is None:  # its body had not begun
                task._claim = True
                self.queue.appendleft(task)
            else:
                give_up(self.core, task)
        if borrowed:
            self.paused.discard(hold)
            self._let_go(hold)
            hold.share = None
        sweep(self.queue)
        self._use(None)
        self.perform_effects()

    # ---- blocking ----------------------------------------------------------------------------------------

    def pause(self) -> Resumption:
        """The body on this thread is about to block: give its slot back until `resume`.

        Raises `NestingError` when too many bodies wait inside each other already.
        """
        hold = self._local.own.hold
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
