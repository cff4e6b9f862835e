"""A task that goes to an idle worker from the very thread that spawned it: a round trip without the pump on its way.

Whoever talks to workers has the *turn*: the pump while it is awake, else perhaps a thread that just made a task ready.
That may be the main thread, in which a signal handler may raise between two steps of ours (tasks/atomics.py). So only
what is simple goes this way: a function that the worker knows, plain arguments, no log, an empty socket. Then the
steps are: take the turn; claim the task and note that the worker has it, in one section; send, and note how much was
sent, in one call of C. Whatever breaks off in between, it can be told how far it came, and the pump does the rest.

See docs/workers.md.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from ..options.options import DEFAULT
from ..service import surroundings
from ..service.uninterrupted import uninterrupted
from ..tasks.atomics import GIL
from ..tasks.dtask import DTask
from .frames import framed
from .remote import Flight, Remote
from .wire import PLAIN, TASK

if TYPE_CHECKING:
    from ..core.machine import Core
    from .pump import Pump
    from .traffic import Traffic

__all__ = ["Direct"]


class Direct:
    """The way from one scheduler to one worker."""

    __slots__ = ("_core", "_pump", "_remote", "_traffic", "_turns")

    def __init__(self, traffic: Traffic, pump: Pump, core: Core, remote: Remote) -> None:
        self._traffic, self._pump, self._core, self._remote = traffic, pump, core, remote
        self._turns = pump.turns

    def send(self, task: DTask) -> bool:
        """Give a task that is about to be queued to the worker, if that is idle: whether it has it, or nobody needs it.

        On any thread. Raises only what a signal handler raised, after which the task is on its way.
        """
        remote, core = self._remote, self._core
        if (
            remote.flights
            or task._options is not DEFAULT
            or task._kwargs
            or task._live is not None
            or core.context.recorder is not None
            or remote.level.is_on
            or not GIL
        ):
            return False
        if surroundings.travel() and (task._context is None or task._context.run(surroundings.written, _refuse)):
            return False
        number = remote.functions.known(task._f)
        if number is None:
            return False
        args = _plain(task._args)
        if args is None:
            return False
        turns, left = self._turns, [True]
        sent: list[int] = []
        flight = frame = None
        try:
            del turns[-1]
        except IndexError:  # the pump is awake, or another thread is here
            return False
        try:
            if remote.flights or remote.said or not (remote.drained and remote.takes_tasks):
                turns += (True,)
                return False
            slots = remote.slots.get(core)
            if slots is None:  # the scheduler is just getting this worker
                turns += (True,)
                return False
            flight = Flight(task, 1, self._traffic.expected_of(task._f))
            message = (TASK, task.id, 1, None, number, args, None, None, None)
            frame = b"".join(framed(pickle.dumps([message], 5)))
            size = len(frame)
            core.running.add(task)
            flights, number = remote.flights, task.id
            try:
                del task._claim
                flights[number] = flight
            except AttributeError:  # it was cancelled
                core.running.discard(task)
                turns += (True,)
                return True
            task._slot = slots[1]
            remote.ahead_ns = flight.expected_ns
            sent += map(remote.socket.send, (frame,))
            if sent[0] == size:
                turns += (True,)
                return True
            uninterrupted(self._mend, task, left, flight, frame, sent)
        except OSError:  # it is full, or the worker is gone: the pump sends it, or sees that
            uninterrupted(self._mend, task, left, flight, frame, sent)
        except BaseException:
            uninterrupted(self._mend, task, left, flight, frame, sent)
            raise
        return True

    def _mend(
        self, task: DTask, left: list[bool], flight: Flight | None, frame: bytes | None, sent: list[int]
    ) -> None:
        """It broke off: have the pump do the rest, and give the turn back. A second time it does nothing."""
        try:
            del left[-1]
        except IndexError:
            return
        remote, core = self._remote, self._core
        if frame is not None and flight is not None and remote.flights.get(task.id) is flight:
            remote.leave_unsent(frame[sum(sent) :])
        else:
            core.running.discard(task)
            core.shared[remote.worker].appendleft(task)
        self._turns += (True,)
        self._pump.poke()


def _refuse(value: Any) -> bytes:
    """A carried variable has a value: that goes the other way."""
    return b"!"


def _plain(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The values of arguments that stand in messages as they are; None where one does not."""
    if not args:
        return args
    values = []
    for arg in args:
        if type(arg) is DTask:
            arg = getattr(arg._outcome, "held", None)
            if arg is None:  # a result that is None goes the other way, too
                return None
        if type(arg) not in PLAIN:
            return None
        values.append(arg)
    return tuple(values)
