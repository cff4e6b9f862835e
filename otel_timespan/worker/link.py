"""A worker's end of the socket: tasks come in, outcomes and what bodies ask for go out.

One thread reads. Whoever has something to say puts it into the outbox; it leaves at once where nothing else is
waiting to run here, else with what comes within a millisecond.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import logging
import os
import pickle
import platform
import select
import socket
import sys
import threading
import time
import traceback
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import __version__, forks
from ..dagger import context as _context
from ..dagger.bodies.ending import release_inputs
from ..dagger.bodies.forked import end_forked
from ..dagger.context import Context
from ..dagger.control import cancel_here
from ..dagger.core.placement import Slot, Spot, slots_of
from ..dagger.data import caching
from ..dagger.data.read import read
from ..dagger.options.options import DEFAULT, Options, ShippedOptions
from ..dagger.places.processors import ThreadProc, invalidation_hooks
from ..dagger.places.topology import topology
from ..dagger.processes.byvalue import take
from ..dagger.processes.failpoints import fail_at, reach
from ..dagger.processes.flight import BLOCKED, IN_BODY, MOVING, FlightRecorder
from ..dagger.processes.frames import Framer, in_frames
from ..dagger.processes.functions import KnownFunctions
from ..dagger.processes.handles import reading
from ..dagger.processes.wire import (
    ANSWER,
    CALL,
    CALLED,
    CANCEL,
    ENDED,
    ERROR,
    EXPIRED,
    FUNCTION,
    GLOBALS,
    LEVEL,
    PAUSED,
    PROCESSORS,
    READY,
    RECALL,
    RECALLED,
    REFUSED,
    RESULT,
    RESUMED,
    SPILL,
    STOP,
    TASK,
    UNDER,
    WORKERS,
    dumps,
    error_bytes,
    loads,
    pack,
)
from ..dagger.service import head, surroundings
from ..dagger.service.callbacks import carriers
from ..dagger.service.threads import start_bare
from ..dagger.tasks.atomics import claim
from ..dagger.tasks.dtask import FAILED, LAUNCHED, DTask, Failure, live, new_task
from ..errors import InvalidOptionError, SchedulingError, TaskTimeoutError
from .driver import TimedContext, WorkerDriver
from .ending import end_with_head
from .notes import Notes
from .requests import Requests
from .store import Store

__all__ = ["Link"]

LOGGER = logging.getLogger("otel_timespan")
GATHER_S = 0.001
"""So long an outcome may wait for others to leave with."""

AWAY_S = 0.001
"""A body that takes longer is no reason not to read: the other thread does."""

LOOK_AGAIN_S = 0.05
"""So often a body that waits, and reads, looks whether its wait was ended by something in this process."""

DOZE_AFTER = 50
"""So many looks without anything to see, and who stands by goes to sleep."""


class Link:
    """One worker process, as it sees itself."""

    def __init__(self, sock: socket.socket, framer: Framer, config: dict[str, Any], flight: FlightRecorder) -> None:
        global _here
        _here = self
        self.worker = config["worker"]
        self.is_forked = False
        self._heartbeat_s: float = config["heartbeat_s"]
        self.flight = flight
        """What outlives us: which bodies run."""
        self._rows_done: deque[int] = deque()
        """Rows of bodies whose outcome is in the outbox, or was sent."""
        self.handles: dict[type, Callable[[Any], Any]] = {}
        lane = socket.socket(fileno=config["lane"])
        lane.set_inheritable(False)
        self.store = Store(self.worker, lane, config["memory"], self.handles, self.say_now, self._ring)
        self._socket, self._framer = sock, framer
        self._functions = KnownFunctions()
        self._tasks: dict[int, DTask] = {}
        """What runs or waits here, by id."""
        self._out: deque[Any] = deque()
        self._since = 0.0
        """Since when the oldest message waits."""
        self._sending = forks.lock()
        self._into = bytearray(1 << 18)
        self._view = memoryview(self._into)
        self._baton = allocate_lock()
        """Whoever has it reads."""
        self._away_since = 0.0
        """Since when the one who had it runs a body; 0.0 while somebody reads."""
        self._standing: list[bool] = []
        """One entry for each thread that stands by, or is about to."""
        self._bell = allocate_lock()
        self._bell.acquire()
        self._woke = False
        """Whether something ended that a body may wait for, since somebody looked."""
        self._dozing = False
        """Whether the one who stands by sleeps until the bell is rung."""
        self._ended = threading.Event()
        context = self.context = Context()
        self.driver = WorkerDriver(self.worker, self)
        self.core = self.driver.attach(context)
        context.core = self.core
        self._notes = Notes(self)
        self._caller: tuple[int, Any] | None = None
        """Who called the tasks that come now: the number of the log, and what it remembers."""
        _context._eager = context
        self._requests = head.link = Requests(self)
        type(reading).reader = self._requests.proxies
        self._spill(config["spill"])
        self._slots: dict[int, Slot] = {
            slot.number: slot for slot in self.core.slots.values() if type(slot.processor) is ThreadProc
        }
        invalidation_hooks.append(self._tell_processors)

    # ---- the life of a worker ------------------------------------------------------------------------------

    def serve(self, messages: list[Any]) -> None:
        """Serve until STOP. The main thread only waits: bodies, and we, run on others."""
        start_bare(threading.Thread(target=self._beat, name="worker-heart", daemon=True))
        self._take(messages)
        for _ in range(2):
            self._start_thread()
        self.say((READY, _facts()))
        self.flush()
        self._ended.wait()
        self._notes.close()
        self.flush()

    def _beat(self) -> None:
        while True:
            self.flight.heartbeat()
            time.sleep(self._heartbeat_s)

    def _start_thread(self) -> None:
        self._standing.append(True)
        start_bare(threading.Thread(target=self._lead, name="worker-link", daemon=True))

    def _lead(self) -> None:
        """The life of our threads: one reads, and runs what it read; one stands by; others are in bodies that wait."""
        carriers.add(threading.get_ident())
        try:
            while self._stand_by():
                while True:
                    self._read()
                    if self._woke:
                        self._woke = False
                        if self.driver.blocked:  # which soon waits for the next, and can read it itself
                            self._go_away()
                            self.driver.wake()  # a task that came along is not for this thread then
                            break
                    if not self.core.queue or not self.driver.free:
                        continue
                    if not self._standing:
                        self._start_thread()
                    self._go_away()
                    self.driver.work_here()
                    if self.is_forked:
                        end_forked()
                    self.flush()
                    if not self._baton.acquire(False):
                        break
                    self._away_since = 0.0
                if self._standing:  # one is enough
                    return
                self._standing.append(True)
        except OSError:
            pass
        except BaseException:
            traceback.print_exc()
        if not self._ended.is_set():
            end_with_head()

    def _go_away(self) -> None:
        """Who reads has something else to do: another thread may, and will if that takes longer."""
        self._away_since = time.monotonic()
        self._baton.release()
        self._ring()

    def wait(self, lock: Any, timeout_s: float) -> bool:
        """`lock.acquire(timeout=...)`, reading meanwhile: what releases it comes from the head, mostly."""
        if not self._baton.acquire(False):
            acquired: bool = lock.acquire(timeout=timeout_s)
            return acquired
        self._away_since = 0.0
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        try:
            while not lock.acquire(False):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                if poll.poll(min(left_s, LOOK_AGAIN_S) * 1000):
                    self._read()
                    if self.core.queue and self.driver.free:
                        self.driver.wake()
            return True
        except OSError:
            end_with_head()
        finally:
            self._woke = False
            self._go_away()

    def _stand_by(self) -> bool:
        """Wait until the other thread is away for longer; send meanwhile what it left behind. False at the end."""
        quiet = 0
        while not self._ended.is_set():
            since = self._away_since
            if (not since or time.monotonic() - since > AWAY_S) and self._baton.acquire(False):
                self._away_since = 0.0
                self._standing.pop()
                if since and not self._standing:  # who runs bodies needs somebody to send what they leave
                    self._start_thread()
                return True
            released = self.store.released
            if released or (self._out and time.monotonic() - self._since > GATHER_S):
                self.flush()
            quiet = 0 if since or self._out else quiet + 1
            if quiet < DOZE_AFTER:
                time.sleep(GATHER_S)
                continue
            self._dozing = True
            if not (self._out or released):
                self._bell.acquire()
            self._dozing = False
            quiet = 0
        return False

    def _read(self) -> None:
        """Take what came. Raises `OSError` when the head is gone."""
        got = self._socket.recv_into(self._into)
        if not got:
            raise OSError("the head is gone")
        for frame in self._framer.feed(self._view[:got]):
            self._take(pickle.loads(frame))

    def _take(self, messages: list[Any]) -> None:
        new = 0
        for message in messages:
            kind = message[0]
            if kind == TASK:
                new += self._begin(*message[1:])
            elif kind == FUNCTION:
                self._functions.learn(message[1], message[2])
            elif kind == ENDED:
                self._requests.ended(*message[1:])
                self._woke = True
            elif kind == ANSWER:
                self._requests.answered(*message[1:])
            elif kind == REFUSED:
                self._requests.refused(*message[1:])
            elif kind == GLOBALS:
                self._renew(message[1])
            elif kind == CANCEL:
                task = self._tasks.get(message[1])
                if task is not None:
                    cancel_here(task, graceful=message[2], force=message[3])
            elif kind == UNDER:
                self._caller = message[1]
            elif kind == LEVEL:
                self._notes.set_level(message[1])
            elif kind == CALL:
                self._call(*message[1:])
            elif kind == WORKERS:
                topology.learn(message[1])
            elif kind == RECALL:
                self._withdraw(message[1])
            elif kind == STOP:
                self._ended.set()
            elif kind == SPILL:
                self._spill(message[1])
            elif kind in self.store.kinds:
                self.store.kinds[kind](*message[1:])
        for _ in range(min(new, len(self.driver.free)) - 1):  # one of them is for this thread
            self.driver.wake()
        if self.core.effects:
            self.driver.perform_effects()

    # ---- tasks -----------------------------------------------------------------------------------------------

    def _begin(
        self, id: int, attempt: int, pinned: Any, function: Any, args: Any, kwargs: Any, options: Any, around: Any
    ) -> int:
        """Queue a task: 1 if it is one that any thread may run."""
        context = contextvars.Context()
        row = self.flight.begin(id, attempt, 0, time.monotonic_ns(), MOVING)  # what is read here may end us, too
        try:
            if around is not None:
                context.run(surroundings.enter, around)
            f = self._function(function)
            argument = self.store.argument
            values = tuple([argument(item) for item in args])
            named = None if kwargs is None else {name: argument(item) for name, item in kwargs.items()}
            wanted: Options = DEFAULT
            if options is not None or pinned is not None:
                own, handed_down = ({}, None) if options is None else loads(options)
                if pinned is not None:
                    own["occupancy"] = {Any: pinned[1]}
                wanted = ShippedOptions.of(own, handed_down)
        except BaseException as error:
            self._refuse(id, attempt, error)
            return 0
        finally:
            self.flight.end(row)
        timed = TimedContext(context, self.flight, id, attempt)
        task = new_task(id, f, values, named, wanted, (), timed, self.core)  # type: ignore[arg-type]
        timed.task = task
        task._subs = [_Landing(self, task, attempt, timed)]
        if attempt != 1 or self._caller is not None:
            extra = live(task)
            extra.attempt, extra.trace = attempt, self._caller
        task._state = LAUNCHED
        self._tasks[id] = task
        if fail_at is not None:
            reach("before_take")
        if pinned is None:
            task._claim = True
            self.core.queue.append(task)
            return 1
        slot = self._slots[pinned[0]]
        self.core.queue_at(task, Spot(slot, self.worker, [self._slots[tid] for tid in pinned[2]]))
        return 0

    def _withdraw(self, ids: list[int]) -> None:
        """Give back what has not begun."""
        if fail_at is not None:
            reach("draining")
        back = [id for id in ids if (task := self._tasks.get(id)) is not None and claim(task)]
        for id in back:
            task = self._tasks.pop(id)
            task._subs = []
            release_inputs(task)
            with contextlib.suppress(ValueError):
                self.core.queue.remove(task)
            self.core.take_out(task)
        if back:
            self.say((RECALLED, back))
            self.flush()

    def _spill(self, settings: Any) -> None:
        """Keep results like this from now on."""
        caching.apply(settings)
        self.core.devices = caching.devices_for((self.worker,))

    def _renew(self, data: bytes) -> None:
        try:
            take(loads(data))
        except Exception:
            LOGGER.warning("a global of the program's __main__ could not be renewed", exc_info=True)

    def _function(self, function: Any) -> Any:
        return self.store.argument(function[0]) if type(function) is tuple else self._functions.get(function)

    def _refuse(self, id: int, attempt: int, error: BaseException) -> None:
        text = f"task {id} can't be read by worker {self.worker}: {type(error).__name__}: {error}"
        data, stack = error_bytes(InvalidOptionError(text), self.handles)
        self.say((ERROR, id, attempt, 0, data, stack, None))

    def forget(self) -> None:
        """In a child that a body forked: the head is the parent's."""
        self.is_forked = True
        self._socket.close()
        self._out.clear()
        self.driver.forget()
        self.core.halted = self._no_head()

    def _no_head(self) -> SchedulingError:
        return SchedulingError(f"this process was forked in worker {self.worker}: it has no scheduler", "exited")

    def landed(self, task: DTask, attempt: int, timed: TimedContext) -> None:
        """A task has its outcome: tell the head."""
        if self.is_forked:
            return  # the thread that ran the body sees to it
        self._tasks.pop(task.id, None)
        if fail_at is not None:
            reach("before_report")
        self._tell(task, attempt, timed.ns)
        row = timed.told()
        if row is not None:
            self._rows_done.append(row)  # after the message: see `flush`

    def _tell(self, task: DTask, attempt: int, ns: int) -> None:
        notes = self._notes.take(task)
        slot = task._slot
        tid = 0 if slot is None else slot.number
        outcome = task._outcome
        if task._state != FAILED:
            try:
                item = self.store.result_item(task)
                self.say((RESULT, task.id, attempt, tid, item, ns, notes))
                return
            except BaseException as error:
                kind = type(read(outcome)).__name__
                refused = InvalidOptionError(
                    f"the result of task {task.id}, a {kind}, can't be sent: {type(error).__name__}: {error}"
                )
                data, stack = error_bytes(refused, self.handles)
        else:
            failure: Failure = outcome
            failure.retrieved = True  # the head is to tell
            data, stack = error_bytes(failure.ex, self.handles)
            if type(failure.ex) is TaskTimeoutError and task in self.core.running:  # the body goes on
                self.say((EXPIRED, task.id, attempt, tid, data, stack, notes))
                return
        self.say((ERROR, task.id, attempt, tid, data, stack, notes))

    def running(self, id: int) -> DTask | None:
        """The task of that id, if it is here."""
        return self._tasks.get(id)

    def _tell_processors(self, worker: int) -> None:
        """The program added a custom processor here, or took one out."""
        if worker != self.worker:
            return
        known = {slot.processor: slot for slot in self._slots.values()}
        now: dict[Any, int] = {}
        for slot in slots_of(worker):
            if slot.shares:
                continue
            if slot.processor not in known:
                slot.number = len(self._slots) + 1
                self._slots[slot.number] = slot
                self.driver.add_slots(self.core.add_worker(worker, [slot]))
            now[slot.processor] = known.get(slot.processor, slot).number
        self.say((PROCESSORS, dumps(now, self.handles)[0]))

    # ---- what bodies want of the head --------------------------------------------------------------------------

    def spawned(self, task: DTask) -> None:
        """A task was spawned here."""
        if self.is_forked:
            raise self._no_head()
        self._requests.spawn(task)
        if fail_at is not None:
            reach("spawning")

    def pauses(self, body: DTask | None, begins: bool) -> None:
        """A body needs no slot while it waits; or it goes on."""
        if body is not None:
            if isinstance(body._context, TimedContext):
                body._context.phase(BLOCKED if begins else IN_BODY)
            self._out.append((PAUSED if begins else RESUMED, body.id))
            if fail_at is not None:
                reach("waiting")

    # ---- apart from tasks --------------------------------------------------------------------------------------

    def _call(self, number: int, data: bytes) -> None:
        thread = threading.Thread(target=self._run_call, args=(number, data), name=f"worker-call-{number}", daemon=True)
        start_bare(thread)

    def _run_call(self, number: int, data: bytes) -> None:
        try:
            f, args, kwargs = loads(data)
            value = f(*args, **kwargs)  # handles in it stay until this is said
            self.say((CALLED, number, True, pack(value, self.handles)))
        except BaseException as error:
            self.say((CALLED, number, False, error_bytes(error, self.handles)))
        self.flush()

    # ---- out ---------------------------------------------------------------------------------------------------

    def say(self, message: Any) -> None:
        """Send a message: now, or soon with others. From any thread.

        Raises `SchedulingError` in a process that a body forked.
        """
        if self.is_forked:
            raise self._no_head()
        out = self._out
        now = time.monotonic()
        if not out:
            self._since = now
        out.append(message)
        if not self.core.queue or now - self._since > GATHER_S:
            self.flush()
        else:
            self._ring()

    def say_now(self, message: Any) -> None:
        """Send a message with all that waits. From any thread."""
        self._out.append(message)
        self.flush()

    def _ring(self) -> None:
        """Wake the thread that sends, if it sleeps."""
        if self._dozing:
            self._dozing = False
            with contextlib.suppress(RuntimeError):  # woken just now
                self._bell.release()

    def _cut_off(self, error: OSError) -> None:
        """What we say reaches nobody: the head is gone, or a body closed our socket, which our reader would not see."""
        if self._ended.is_set():
            return
        if error.errno == errno.EBADF:
            print("otel_timespan worker: somebody closed the socket to the head", file=sys.stderr, flush=True)
            os._exit(1)
        end_with_head()

    def say_soon(self, message: Any) -> None:
        """Send a message with what comes within some milliseconds. From any thread."""
        if not self._standing:  # nobody would send it
            self._start_thread()
        self.say_along(message)

    def say_along(self, message: Any) -> None:
        """Send a message when there is something else to be sent, or soon. At any allocation; takes no lock."""
        self._out.append(message)
        if self._dozing:
            self._dozing = False
            with contextlib.suppress(RuntimeError):  # woken just now
                self._bell.release()

    def flush(self) -> None:
        """Send what waits."""
        if self.store.released:
            news = self.store.news()
            if news is not None:
                self._out.append(news)
        if not self._out:
            return
        with self._sending:
            # Their outcomes are in the outbox, before what follows: when that was sent they were. (A row whose outcome
            # is sent by this very call may come too late for it: the next one ends it.)
            done = [self._rows_done.popleft() for _ in range(len(self._rows_done))]
            out = []
            while self._out:
                out.append(self._out.popleft())
            if not out:
                return
            for head, body in in_frames(out):
                try:
                    self._socket.sendall(head + body if len(body) < 65_536 else head)
                    if len(body) >= 65_536:
                        self._socket.sendall(body)
                except OSError as error:
                    self._cut_off(error)
                    return
            for row in done:
                self.flight.end(row)
            if fail_at is not None and any(message[0] in (RESULT, ERROR) for message in out):
                reach("reported")


_here: Link | None = None


@forks.in_child("_here")
def _in_child() -> None:
    if _here is not None:
        _here.forget()


class _Landing:
    """Waits in a task for its outcome."""

    is_brief = True
    """See bodies/ending.py."""

    __slots__ = ("_attempt", "_link", "_task", "_timed")

    def __init__(self, link: Link, task: DTask, attempt: int, timed: TimedContext) -> None:
        self._link, self._task, self._attempt, self._timed = link, task, attempt, timed

    def __call__(self) -> None:
        """It is there."""
        self._link.landed(self._task, self._attempt, self._timed)


def _facts() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "version": __version__}
    return {"pid": os.getpid(), "host": socket.gethostname(), "executable": sys.executable, **versions}
