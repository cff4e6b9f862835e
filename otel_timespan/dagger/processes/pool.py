"""The workers of this process: one table, and what is done to it.

A worker's life: started, *ready*, perhaps *leaving* (it gets nothing new), *stopped* (it was told to end), over. One
that is over and was not stopped is *lost*: what it had is done elsewhere (recovery.py).

See docs/workers.md.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ... import exits, forks
from ...errors import InvalidOptionError, SchedulingError, WorkerLostError
from ..core.placement import Slot
from ..data import caching
from ..places.processors import Processor
from ..places.topology import topology
from ..service.guards import guard
from ..tasks.dtask import DTask
from ..tasks.environment import token_of
from . import draining, recovery
from .descriptors import DescriptorLane
from .direct import Direct
from .output import Streams
from .procfs import exit_text, look
from .pump import Pump, RemoteQueue
from .remote import Remote
from .spawn import is_over, start_process, threads_of_libraries
from .spilling import Folders
from .stalls import listen, stalled
from .traffic import Traffic
from .wire import CALL, CANCEL, CONFIG, SPILL, STOP, WORKERS, dumps, error_bytes

if TYPE_CHECKING:
    from ..core.machine import Core

__all__ = ["Pool", "pool"]

START_PATIENCE_S = 60.0
SHARED_BYTES = caching.total_memory() // 2
"""Bytes of shared memory that each process may take for values that others read."""

STOP_PATIENCE_S = 1.0
"""So long a worker that was told to end may take; then it is killed, with what its bodies started."""

ADOPT_PATIENCE_S = 10.0
"""So long a worker that is to go has in any case to hand over the values that only it has."""

HEARTBEAT_S = 1.0
"""How often a worker says that its interpreter runs; oftener, where its silence is not borne for long."""

PUMP_PATIENCE_S = 10.0
"""So long the pump's thread may be busy with others before it is done without."""

EOF_PATIENCE_S = 0.02
"""So long a worker whose socket is at its end may take to be gone by itself: then it says how it ended."""


class Pool:
    """The workers that are processes of ours. Thread-safe."""

    def __init__(self) -> None:
        self.remotes: dict[int, Remote] = {}
        self.given: set[int] = set()
        """The ids of all workers that there ever were."""
        self._lock = guard()
        self._pump: Pump | None = None
        self._traffic = Traffic(SHARED_BYTES)
        self._traffic.on_ready = self._on_ready
        self._traffic.on_gone = self._on_gone
        self._traffic.on_look = self._look
        self._ids = itertools.count(2)
        self._numbers = itertools.count(1)
        self._changed = forks.condition()
        self._folders = Folders()

    # ---- workers come and go ---------------------------------------------------------------------------

    def start(
        self,
        count: int,
        threads: int,
        env: Mapping[str, str] | None = None,
        node: str | None = None,
        stall_timeout_s: float = 30.0,
        private: bool = False,
    ) -> list[int]:
        """Start workers and wait until they can take tasks: their ids.

        Raises `SchedulingError` where one can't, with the end of what it wrote; the others of them are ended then.
        `private`: for one context only, which says so.
        """
        pump = self._pump_now()
        ids = [next(self._ids) for _ in range(count)]
        self.given.update(ids)
        started: list[Remote] = []
        failed: list[BaseException] = []
        begun: list[bool] = []
        slots = threads * (count + len(self.remotes))
        variables = threads_of_libraries(slots, env)

        def begin() -> None:  # on the pump's thread: a worker is told of the end of the thread that started it
            for worker in ids:
                try:
                    started.append(self._begin(pump, worker, threads, variables, stall_timeout_s))
                except Exception as error:  # the system gives no process, memory or descriptor; the path is no text
                    failed.append(error)
                    break
            with self._changed:
                begun.append(True)
                self._changed.notify_all()

        pump.call(begin)
        deadline = time.monotonic() + START_PATIENCE_S
        with self._changed:
            while not begun or (not failed and any(one.ready is None and not one.lost for one in started)):
                left = deadline - time.monotonic()
                if left <= 0 or any(one.lost for one in started):
                    break
                self._changed.wait(left)
        bad = [one for one in started if one.lost] or [one for one in started if one.ready is None]
        if failed or bad:
            why = f"{type(failed[0]).__name__}: {failed[0]}" if failed else _why_not(bad[0])
            self.stop(ids)
            raise SchedulingError(f"a worker could not be started: {why}", "no_processors")
        for worker in ids:
            topology.add_worker(worker, threads, node, local=False, private=private)
            if worker not in self.remotes:  # lost at this very moment
                topology.remove_worker(worker)
        self.tell_of_spilling()
        return ids

    def tell_of_spilling(self) -> None:
        """Other settings were chosen, or workers share the memory with others."""
        for remote in list(self.remotes.values()):
            remote.say((SPILL, self._folders.settings_of(remote.worker)))
        self.poke()

    def _begin(
        self, pump: Pump, worker: int, threads: int, env: Mapping[str, str], stall_timeout_s: float
    ) -> Remote:
        values = self._traffic.values
        ours, theirs = socket.socketpair()
        lane, streams = DescriptorLane(ours, values.maps), Streams(worker)
        try:
            with theirs:
                number = theirs.fileno()
                begun = start_process(env, streams, number)
        except BaseException:
            lane.close()
            raise
        finally:
            streams.started()
        remote = Remote(worker, threads, begun, streams, stall_timeout_s, values, lane)
        values.join(remote)
        remote.borrows.poke = pump.poke
        config = _config(worker, threads, min(HEARTBEAT_S, stall_timeout_s / 4))
        spill = self._folders.settings_of(worker)
        remote.say((CONFIG, {**config, "lane": number, "memory": SHARED_BYTES, "spill": spill}))
        self.remotes[worker] = remote
        pump.add(remote)
        return remote

    def stop(self, workers: Iterable[int], patience_s: float = STOP_PATIENCE_S) -> None:
        """End workers: they are told to, and killed if they don't in time."""
        remotes = [remote for worker in workers if (remote := self.remotes.get(worker)) is not None]
        for remote in remotes:
            remote.leaving = remote.stopped = True
            topology.remove_worker(remote.worker)
            remote.say((STOP,))
        self.poke()
        deadline = time.monotonic() + patience_s
        for remote in remotes:
            is_over(remote.process, max(0.0, deadline - time.monotonic()))
            if not self._on_pump(functools.partial(self._finish, remote)):
                remote.end(0.0)
        for remote in remotes:
            remote.streams.finish(0.5)

    def _finish(self, remote: Remote) -> None:
        """On the pump's thread: a worker that was told to end is over, or ends now. What it had left is requeued."""
        if self.remotes.get(remote.worker) is remote:
            remote.end(0.0)
            self._forget(remote, "was removed")

    def leave(self, workers: list[int], timeout_s: float, tell: Callable[[], None]) -> None:
        """End workers when what they have is done, or after a time. `tell()` is called when they get no more."""
        remotes = [remote for worker in workers if (remote := self.remotes.get(worker)) is not None]
        for remote in remotes:
            remote.leaving = True
            topology.remove_worker(remote.worker)
        tell()
        self._on_pump(lambda: draining.begin(remotes))
        deadline = time.monotonic() + timeout_s
        while not all(draining.is_done(remote) for remote in remotes) and time.monotonic() < deadline:
            time.sleep(0.005)
        self._adopt_values(remotes, max(deadline, time.monotonic() + ADOPT_PATIENCE_S))
        self.stop([remote.worker for remote in remotes])

    def _adopt_values(self, remotes: list[Remote], deadline: float) -> None:
        """Have what only these workers have where it outlives them."""
        adopted: list[int] = []

        def begin() -> None:
            for remote in remotes:
                self._traffic.values.adopt(remote, functools.partial(adopted.append, remote.worker))

        self._on_pump(begin)
        while len(adopted) < sum(not remote.lost for remote in remotes) and time.monotonic() < deadline:
            time.sleep(0.005)

    def call(self, worker: int, what: Any, tell: Callable[[bool, Any], None]) -> None:
        """Have a worker call (f, args, kwargs), apart from all tasks.

        `tell(True, item)` or `tell(False, (bytes, text))` on the pump's thread, once.
        """
        remote = self.remotes.get(worker)
        if remote is None or remote.ready is None:
            raise InvalidOptionError(f"there is no worker {worker}, only {sorted(self.remotes)}")
        number = next(self._numbers)

        def begin() -> None:  # on the pump's thread, which alone writes handles
            try:
                data, _ = dumps(what, remote.handles)
            except BaseException as error:  # of a user's pickling: whatever it is
                text = f"what worker {worker} is to call can't be sent: {type(error).__name__}: {error}"
                tell(False, error_bytes(InvalidOptionError(text), {}))
                return
            if remote.lost or self.remotes.get(worker) is not remote:
                tell(False, error_bytes(_lost_call(remote), {}))
                return
            remote.calls[number] = tell
            remote.say((CALL, number, data))

        assert self._pump is not None
        self._pump.call(begin)

    def _pump_now(self) -> Pump:
        with self._lock:
            if self._pump is None:
                self._pump = Pump(self._traffic)
                self._traffic.values.call, self._traffic.values.poke = self._pump.call, self._pump.poke
                self._traffic.values.is_pump = self._pump.is_me
            return self._pump

    def _on_pump(self, call: Callable[[], Any]) -> bool:
        """Have something done on the pump's thread, and wait for it; False where there is no such thread any more."""
        pump = self._pump
        if pump is None:
            return False
        if pump.is_me():
            call()
            return True
        done: list[bool] = []

        def called() -> None:
            try:
                call()
            finally:
                with self._changed:
                    done.append(True)
                    self._changed.notify_all()

        pump.call(called)
        with self._changed:
            return self._changed.wait_for(lambda: bool(done), PUMP_PATIENCE_S)

    # ---- on the pump's thread: what became of them -----------------------------------------------------------

    def _on_ready(self, remote: Remote) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_gone(self, remote: Remote, reason: str) -> None:
        """The socket of a worker is at its end, or damaged; or it is silent. See to it that it is over."""
        code, by_us = remote.end(EOF_PATIENCE_S if not reason else 0.0)
        how = exit_text(code, remote.reader.rss, by_us=by_us)
        self._forget(remote, f"{how} ({reason})" if reason else how)

    def _forget(self, remote: Remote, how: str) -> None:
        """A worker is over: hear what it said last, and have done elsewhere what it had."""
        assert self._pump is not None
        remote.lost = how
        self._traffic.take(remote, remote.last_words())
        self._pump.drop(remote)
        topology.remove_worker(remote.worker)
        self.remotes.pop(remote.worker, None)
        cores, remote.cores = remote.cores, []
        for core in cores:
            self._leave_queue(core, remote.worker)
        self._traffic.values.left(remote, functools.partial(_lost_value, remote))
        self._folders.remove(remote.worker)
        recovery.lost(remote, cores, how, blame=not remote.stopped)
        remote.lose_calls(_lost_call(remote))
        remote.borrows.give_back()
        remote.close()
        with self._changed:
            self._changed.notify_all()

    def _look(self) -> None:
        """Ten times a second: who has ended without a word, or is silent?"""
        now = time.monotonic_ns()
        for remote in list(self.remotes.values()):
            if is_over(remote.process):
                self._traffic.gone(remote, "")
            elif remote.ready is not None:
                remote.silence = listen(remote.silence, now, remote.reader.heartbeat_ns, look(remote.pid))
                if stalled(remote.silence, remote.stall_timeout_s):
                    self._traffic.gone(remote, f"it neither ran nor said anything for {remote.stall_timeout_s:g} s")

    # ---- schedulers that use them ------------------------------------------------------------------------

    def has(self, worker: int) -> bool:
        """Whether there is such a worker."""
        remote = self.remotes.get(worker)
        return remote is not None and remote.ready is not None and not remote.lost and not remote.leaving

    def about(self, worker: int) -> dict[str, Any]:
        """What a worker said of itself: `pid`, `host`, `python`, `version` (of this package). {} where it is none."""
        remote = self.remotes.get(worker)
        return {} if remote is None or remote.ready is None else dict(remote.ready)

    def serve(self, core: Core, worker: int) -> None:
        """From now on a worker takes what a scheduler has in its queue."""
        assert self._pump is not None
        remote = self.remotes.get(worker)
        at_once = _never if remote is None else Direct(self._traffic, self._pump, core, remote).send
        core.shared[worker] = RemoteQueue(self._pump, at_once)

    def add_slots(self, core: Core, slots: list[Slot]) -> None:
        """A scheduler has slots of a worker."""
        for slot in slots:
            remote = self.remotes.get(slot.worker)
            if remote is not None:
                slot.number = slot.number or remote.processors.get(slot.processor, 0)
                remote.slots.setdefault(core, {})[slot.number] = slot
                if core not in remote.cores:
                    remote.cores.append(core)
            if remote is None or remote.lost:  # at this very moment: nobody told this scheduler
                self._leave_queue(core, slot.worker)
        self.poke()

    def _leave_queue(self, core: Core, worker: int) -> None:
        """Whatever is in the queue of a worker, or still comes there, is placed again."""
        queue = core.shared.get(worker)
        if isinstance(queue, RemoteQueue):
            queue.left = functools.partial(self._place_left, core, worker)
            queue.left()

    def _place_left(self, core: Core, worker: int) -> None:
        if self._pump is not None:
            self._pump.call(lambda: recovery.place_left(core, worker, core.worker_lost(worker)))

    def dispatch(self, core: Core, slot: Slot) -> None:
        """A task was put into the own queue of a slot."""
        if slot.worker not in self.remotes:
            self._place_left(core, slot.worker)
        self.poke()

    def processors(self, worker: int) -> Iterable[Processor]:
        """The custom processors of a worker."""
        remote = self.remotes.get(worker)
        return () if remote is None else tuple(remote.processors)

    def tell_workers(self, _: int | None = None) -> None:
        """Workers came or went: the others are told."""
        known = topology.known() if self.remotes else {}
        for remote in list(self.remotes.values()):
            remote.say((WORKERS, known))
        self.poke()

    def poke(self) -> None:
        """There is something in a queue."""
        if self._pump is not None:
            self._pump.poke()

    def drop(self, core: Core) -> None:
        """A scheduler went down."""
        for remote in list(self.remotes.values()):
            if core in remote.cores:
                remote.cores.remove(core)
            remote.slots.pop(core, None)
            for flight in list(remote.flights.values()):
                if flight.task._core is core:
                    remote.say((CANCEL, flight.task.id, False, False))
            self.poke()

    def cancel(self, task: DTask, force: bool) -> bool:
        """A task was given up, or (`force`) its body is to be interrupted: whether a worker has it."""
        for remote in list(self.remotes.values()):
            if task.id in remote.flights:
                remote.say((CANCEL, task.id, token_of(task).graceful, force))
                self.poke()
                return True
        return False

    def is_idle(self, core: Core) -> bool:
        """Whether no worker has a task of this scheduler."""
        given = [flight.task for remote in list(self.remotes.values()) for flight in list(remote.flights.values())]
        return all(task._core is not core for task in given)

    def forget(self) -> None:
        """In a forked child: the workers are the parent's."""
        remotes = list(self.remotes.values())
        for remote in remotes:
            remote.forget()
            topology.remove_worker(remote.worker)
        if self._pump is not None:
            self._pump.forget()
        self._pump = None
        self.remotes.clear()


def _never(task: DTask) -> bool:
    """The worker is gone."""
    return False


def _lost_call(remote: Remote) -> WorkerLostError:
    how = remote.lost or "was removed"
    return WorkerLostError(remote.worker, f"worker {remote.worker} {how} while it was to call a function")


def _lost_value(remote: Remote) -> WorkerLostError:
    return WorkerLostError(remote.worker, f"the value was on worker {remote.worker}, which {remote.lost}")


def _why_not(remote: Remote) -> str:
    text = remote.error_text or remote.started.error_text()
    why = f"it {remote.lost}" if remote.lost else f"it was not ready within {START_PATIENCE_S:g} s"
    return f"{why}; it wrote:\n{text}" if text else why


def _config(worker: int, threads: int, heartbeat_s: float) -> dict[str, Any]:
    return {
        "worker": worker,
        "threads": threads,
        "path": list(sys.path),
        "head": os.getpid(),
        "heartbeat_s": heartbeat_s,
        **_family(),
    }


def _family() -> dict[str, bytes]:
    """What makes a worker one of this program's processes to `multiprocessing`: a manager's proxies work there."""
    process = sys.modules.get("multiprocessing.process")
    return {} if process is None else {"authkey": bytes(process.current_process().authkey)}


pool = Pool()
"""The workers of this process."""

topology.listeners.append(pool.tell_workers)
topology.remote = pool.processors


def _at_exit() -> None:
    pool.stop(list(pool.remotes))
    pool._folders.close()


caching.listeners.append(pool.tell_of_spilling)


exits.at_exit(_at_exit)


@forks.in_child("pool")
def _in_child() -> None:
    pool.forget()
    pool._folders.forget()
