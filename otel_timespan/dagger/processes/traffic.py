"""What the head and its workers tell each other: tasks go out, outcomes come in.

All of it runs on the pump's thread, except where it says otherwise.

See docs/workers.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError, StorageError, WorkerLostError
from ..bodies.ending import fail, release_inputs, report_defect, succeed
from ..bodies.results import learn
from ..bodies.run import conclude
from ..data.chunks import Chunk
from ..options.options import DEFAULT
from ..places.processors import changed_elsewhere
from ..service.threads import start_service
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, DTask
from . import balance, requests
from .draining import let_alone
from .handles import PackedDRef, handle_of, reading
from .outgoing import pinned_to, task_message
from .pump import FRAME_TASKS
from .remote import Flight, Remote, Solitary
from .telling import expired, is_well, run_log, signals, started, under, well
from .values import Values
from .wire import (
    ASK,
    CALLED,
    DROP,
    DROP_VALUE,
    ERROR,
    EXPIRED,
    EXPORTED,
    FUNCTION,
    KEPT,
    NOT_EXPORTED,
    PAUSED,
    PROCESSORS,
    READY,
    RECALLED,
    RELEASED,
    RESULT,
    RESUMED,
    RETIRED,
    SIGNALS,
    SPAWN,
    STARTED,
    WAITED,
    WAITS,
    error_of,
    loads,
)

if TYPE_CHECKING:
    from ..core.machine import Core

__all__ = ["Traffic"]

LOGGER = logging.getLogger("otel_timespan")

AHEAD_NS = 10_000_000
"""A worker is given tasks for so long in advance: a busy spawner has the interpreter for 5 ms at a time."""

AHEAD_TASKS = 1024
BRIEF_NS, RARELY = 100_000, 15
"""Of bodies that are known to be this brief one in 16 is learned from: learning takes as long as they do."""

MAX_KNOWN = 10_000
"""Functions whose time is known; a program that makes more begins anew."""

UNKNOWN_NS = AHEAD_NS / 2
"""What a function counts that never ran: two of them a thread go out."""


class Traffic:
    """See the module."""

    def __init__(self, shared_bytes: int) -> None:
        self.values = values = Values(shared_bytes)
        self._of_values: dict[int, Callable[..., None]] = {
            EXPORTED: values.exported,
            NOT_EXPORTED: values.not_exported,
            RELEASED: values.released,
            RETIRED: values.retired,
        }
        self.expected: dict[int, float] = {}
        """How long bodies take, by `id()` of their code: the mean of the last ones, in nanoseconds."""
        self.on_ready: Callable[[Remote], None] = _ignore
        self.on_gone: Callable[[Remote, str], None] = _ignore_reason
        self.on_look: Callable[[], None] = _nothing
        self._remotes: list[Remote] = []
        self._others: dict[int, Callable[..., None]] = {
            SPAWN: requests.spawn,
            DROP: _drop,
            WAITS: requests.waits,
            PAUSED: requests.paused,
            RESUMED: requests.resumed,
            FUNCTION: _learn_function,
            ASK: requests.answer,
            WAITED: requests.waited,
            DROP_VALUE: _drop_value,
            EXPIRED: self._expired,
            RECALLED: self._recalled,
            STARTED: self._started,
            SIGNALS: signals,
            PROCESSORS: self._processors,
        }

    # ---- out -------------------------------------------------------------------------------------------

    def next_messages(self, remote: Remote) -> list[Any]:
        """What a worker is to be sent now; [] for nothing."""
        messages: list[Any] = []
        if self.values.gone:
            self.values.sweep()
        news = remote.borrows.messages() if remote.borrows.has_news() else ()
        while remote.said:
            messages.append(remote.said.popleft())
        messages += news
        if not remote.takes_tasks:
            return messages
        remote.level.tell(remote, messages)
        if remote.solitary:
            let_alone(remote, lambda one: self._provide(remote, one.flight, one.pinned, messages))
            if remote.solitary:
                return messages
        for core in list(remote.cores):
            self._pinned(remote, core, messages)
            self._shared(remote, core, messages)
        return messages

    def _shared(self, remote: Remote, core: Core, messages: list[Any]) -> None:
        queue = core.shared[remote.worker]
        flights, least, most = remote.flights, 2 * remote.threads + remote.paused, AHEAD_NS * remote.threads
        given = 0
        while queue and given < FRAME_TASKS:
            if len(flights) >= least and (remote.ahead_ns >= most or len(flights) >= AHEAD_TASKS + remote.paused):
                return
            try:
                task = queue.popleft()
            except IndexError:
                return
            if claim(task):
                self._give(remote, core, task, None, messages)
                given += 1

    def _pinned(self, remote: Remote, core: Core, messages: list[Any]) -> None:
        """What is bound to slots of this worker goes there at once, and waits there."""
        while core.waiting:
            with core.lock:
                slot = next((one for one in core.waiting if one.worker == remote.worker), None)
                if slot is None:
                    return
                _, _, task, slots = core.unqueue(slot)
            if claim(task):
                self._give(remote, core, task, pinned_to(task, slot, slots), messages)

    def _give(self, remote: Remote, core: Core, task: DTask, pinned: Any, messages: list[Any]) -> None:
        if task._context is None or task._state >= DONE:  # settled between its claim and here
            release_inputs(task)
            return
        extra = task._live
        attempt = 1 if extra is None else extra.attempt
        slots = remote.slots[core]
        task._slot = slots[1] if pinned is None else slots[pinned[0]]
        flight = Flight(task, attempt, self.expected_of(task._f))
        flight.pinned = pinned is not None
        core.running.add(task)
        remote.flights[task.id] = flight
        remote.ahead_ns += flight.expected_ns
        if extra is not None and extra.losses and extra.losses[-1].with_others:
            remote.solitary.append(Solitary(flight, pinned))
        else:
            self._provide(remote, flight, pinned, messages)

    def _provide(self, remote: Remote, flight: Flight, pinned: Any, messages: list[Any]) -> None:
        """Send a task when what it needs is where it can be had from."""
        missing = self.values.missing(remote, flight.task)
        if missing:
            self.values.want(missing, lambda: self._give_late(remote, flight, pinned))
        else:
            self._send(remote, flight, pinned, messages)

    def _give_late(self, remote: Remote, flight: Flight, pinned: Any) -> None:
        """What a task needs is where it can be had from."""
        task = flight.task
        if remote.flights.get(task.id) is not flight:  # that worker is gone
            return
        if task._context is None or task._state >= DONE:  # cancelled meanwhile
            self._take_back(remote, flight)
            release_inputs(task)
            return
        missing = [one for one in self.values.missing(remote, task) if not one.changes]
        if missing:  # there was no room for it, and we waited for another one still
            self.values.want(missing, lambda: self._give_late(remote, flight, pinned))
            return
        messages: list[Any] = []
        self._send(remote, flight, pinned, messages)
        for message in messages:
            self.values.say(remote, message)

    def _send(self, remote: Remote, flight: Flight, pinned: Any, messages: list[Any]) -> None:
        task = flight.task
        if task._live is not None or remote.level.under is not None:
            under(remote, task, messages)
        try:
            message = task_message(remote, task, flight.attempt, pinned, messages)
        except BaseException as error:  # of a user's pickling: whatever it is, this task's alone
            self._take_back(remote, flight)
            self._wake(task._core, conclude(task._core, task, None, _unsendable(remote, task, error), None, False, 0))
            return
        messages.append(message)

    def _take_back(self, remote: Remote, flight: Flight) -> None:
        """It was not given after all."""
        task = flight.task
        task._core.running.discard(task)
        del remote.flights[task.id]
        remote.ahead_ns -= flight.expected_ns

    def expected_of(self, f: Any) -> float:
        """Nanoseconds that a body is expected to take."""
        return self.expected.get(id(f.__code__) if type(f) is FunctionType else id(f), UNKNOWN_NS)

    # ---- in --------------------------------------------------------------------------------------------

    def take(self, remote: Remote, messages: list[Any]) -> None:
        """These came from a worker."""
        reading.reader = remote.borrows
        for message in messages:
            kind = message[0]
            if kind == RESULT:
                self._result(remote, *message[1:])
            elif kind == ERROR:
                self._error(remote, *message[1:])
            elif kind in self._others:
                try:
                    self._others[kind](remote, *message[1:])
                except Exception:  # of ours: the messages behind it must not be lost
                    LOGGER.exception("a message of worker %d could not be dealt with", remote.worker)
            elif kind == READY:
                remote.ready = message[1]
                self.on_ready(remote)
            elif kind == CALLED:
                tell = remote.calls.pop(message[1], None)
                if tell is not None:
                    tell(*message[2:])
            elif kind in self._of_values:
                self._of_values[kind](remote, *message[1:])

    def _processors(self, remote: Remote, data: bytes) -> None:
        """The custom processors of a worker are others now."""
        try:
            remote.processors = loads(data)
        except BaseException as error:  # of a user's pickling: whatever it is
            text = "the custom processors of worker %d can't be read here, and are not used: %s: %s"
            LOGGER.warning(text, remote.worker, type(error).__name__, error)
            remote.processors = {}
        changed_elsewhere(remote.worker)

    def _landed(self, remote: Remote, id: int, attempt: int, tid: int) -> DTask | None:
        """The task that this is the outcome of; None where nobody waits for it any more."""
        flight = remote.flights.pop(id, None)
        if flight is None:
            return None
        remote.ahead_ns -= flight.expected_ns
        remote.landed += 1
        task = flight.task
        core = task._core
        core.running.discard(task)
        if flight.paused:
            remote.paused -= 1
        if flight.waits:
            remote.borrows.end_waits(task)
        if flight.attempt != attempt:
            return None
        if tid != 1:
            slots = remote.slots.get(core)
            if slots is not None:  # else its scheduler went down
                task._slot = slots.get(tid, task._slot)
        return task

    def _result(self, remote: Remote, id: int, attempt: int, tid: int, item: Any, ns: int, log: Any) -> None:
        task = self._landed(remote, id, attempt, tid)
        is_kept = type(item) is tuple and len(item) == KEPT
        if task is None:
            if is_kept:
                self.values.drop(remote, item)
            return
        core = task._core
        core.near = remote.worker
        try:
            if ns:
                self._learn(core, task, ns)
            recorder = core.context.recorder
            plain = recorder is None and task._options is DEFAULT and task._live is None and core.devices is None
            if plain and not (type(item) is tuple and item[3]):
                outcome: Any = self.values.handle(remote, item, None) if is_kept else handle_of(item, None)
                queued = succeed(core, task, outcome)
            elif recorder is not None and not is_kept and is_well(core, task, recorder, item, log):
                queued = well(remote, core, task, recorder, item, log)
            else:
                told = None if recorder is None else run_log(remote, recorder, task, log)
                put = None if recorder is None else recorder.put
                outcome = self.values.handle(remote, item, put) if is_kept else handle_of(item, put)
                if not outcome.may_spill and type(outcome) is not PackedDRef and type(outcome.value) is Chunk:
                    outcome = outcome.value
                if task._options.checkpoint is not None and self._concluded_apart(task, outcome, told):
                    return
                queued = conclude(core, task, outcome, None, told, False, 0)
        except StorageError as unreadable:  # a value with handles in it, which are read here
            queued = conclude(core, task, None, unreadable, None, False, 0)
        except BaseException as error:
            report_defect(core, task, error)
            return
        self._wake(core, queued)

    def _concluded_apart(self, task: DTask, outcome: Any, told: Any) -> bool:
        """A checkpoint is the user's: it may take its time, and read the value. False where no thread can be had."""

        def run() -> None:
            try:
                queued = conclude(task._core, task, outcome, None, told, False, 0)
            except BaseException as error:
                report_defect(task._core, task, error)
                return
            self._wake(task._core, queued)

        thread = threading.Thread(target=run, name=f"dagger-checkpoint-{task.id}", daemon=True)
        return start_service(thread) is None

    def _error(self, remote: Remote, id: int, attempt: int, tid: int, data: bytes, text: str, log: Any) -> None:
        task = self._landed(remote, id, attempt, tid)
        if task is None:
            return
        core = task._core
        try:
            recorder = core.context.recorder
            error = error_of(remote.worker, data, text)
            told = None if recorder is None else run_log(remote, recorder, task, log, error)
            queued = conclude(core, task, None, error, told, False, 0)
        except BaseException as error:
            report_defect(core, task, error)
            return
        self._wake(core, queued)

    def _started(self, remote: Remote, id: int, attempt: int, tid: int, log: Any) -> None:
        flight = remote.flights.get(id)
        if flight is not None and flight.attempt == attempt and flight.task._state < DONE:
            slot = remote.slots[flight.task._core].get(tid, flight.task._slot)
            started(remote, flight.task, slot.code, log)

    def _expired(self, remote: Remote, id: int, attempt: int, tid: int, data: bytes, text: str, log: Any) -> None:
        """The option `timeout`: the task ends without another attempt, whatever its body does."""
        task = self._landed(remote, id, attempt, tid)
        if task is None:
            return
        expired(remote, task, log)
        fail(task._core, task, error_of(remote.worker, data, text))
        release_inputs(task)

    def _learn(self, core: Core, task: DTask, ns: int) -> None:
        """A body took so long: a mean that forgets; the costs by which tasks are placed are told of few brief ones."""
        f = task._f
        key = id(f.__code__) if type(f) is FunctionType else id(f)
        old = self.expected.get(key)
        if old is None:
            if len(self.expected) > MAX_KNOWN:
                self.expected.clear()
            self.expected[key] = ns
        else:
            self.expected[key] = old + (ns - old) / 8
            if ns < BRIEF_NS > old and task.id & RARELY:
                return
        learn(core, task._slot, f, task._args, task._kwargs, ns, None)

    def _wake(self, core: Core, queued: int) -> None:
        for _ in range(queued):
            core.driver.wake()

    # ---- the end -----------------------------------------------------------------------------------------

    def gone(self, remote: Remote, reason: str) -> None:
        """The worker's socket ended, or is damaged."""
        self.on_gone(remote, reason)

    def look(self, remotes: list[Remote]) -> None:
        """A tenth of a second went by."""
        self._remotes = remotes
        self.values.sweep()
        balance.look(remotes)
        self.on_look()

    def _recalled(self, remote: Remote, ids: list[int]) -> None:
        balance.recalled(remote, self._remotes, ids)


def _drop(remote: Remote, id: int, count: int, retrieved: bool) -> None:
    remote.borrows.drop(id, count, retrieved)


def _drop_value(remote: Remote, key: int, count: int) -> None:
    remote.borrows.drop_value(key, count)


def _learn_function(remote: Remote, number: int, data: bytes | None) -> None:
    remote.their_functions.learn(number, data)


def _unsendable(remote: Remote, task: DTask, error: BaseException) -> BaseException:
    if isinstance(error, WorkerLostError):
        return error
    is_full = isinstance(error, StorageError)
    reason = str(error) if is_full else f"{type(error).__name__}: {error}"
    text = f"task {task.id} can't be sent to worker {remote.worker}: {reason}"
    made = StorageError(text) if is_full else InvalidOptionError(text)
    made.__cause__ = error
    return made


def _ignore(remote: Remote) -> None:
    """Nobody wants to know."""


def _ignore_reason(remote: Remote, reason: str) -> None:
    """Nobody wants to know."""


def _nothing() -> None:
    """Nobody looks."""
