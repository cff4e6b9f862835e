"""The workers of this process: one table, and what is done to it.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ... import exits, forks
from ...errors import InvalidOptionError, SchedulingError, WorkerLostError
from ..core.placement import Slot
from ..places.processors import Processor
from ..places.topology import topology
from ..tasks.dtask import DTask
from ..tasks.environment import token_of
from .descriptors import DescriptorLane
from .direct import Direct
from .pump import Pump, RemoteQueue
from .remote import Remote
from .spawn import start_process
from .traffic import Traffic
from .wire import CALL, CANCEL, CONFIG, STOP, WORKERS, dumps, error_bytes

if TYPE_CHECKING:
    from ..core.machine import Core

__all__ = ["Pool", "pool"]

START_PATIENCE_S = 60.0
STOP_PATIENCE_S = 2.0


class Pool:
    """The workers that are processes of ours. Thread-safe."""

    def __init__(self) -> None:
        self.remotes: dict[int, Remote] = {}
        self.given: set[int] = set()
        """The ids of all workers that there ever were."""
        self._lock = forks.lock()
        self._pump: Pump | None = None
        self._traffic = Traffic()
        self._traffic.on_ready = self._on_ready
        self._traffic.on_gone = self._on_gone
        self._ids = itertools.count(2)
        self._numbers = itertools.count(1)
        self._changed = forks.condition()
        self.on_loss: Callable[[Remote, list[Core]], None] = _nobody

    # ---- workers come and go ---------------------------------------------------------------------------

    def start(
        self, count: int, threads: int, env: Mapping[str, str] | None, node: str | None, private: bool = False
    ) -> list[int]:
        """Start workers and wait until they can take tasks: their ids. Raises `SchedulingError` where one can't.

        `private`: for one context only, which says so.
        """
        pump = self._pump_now()
        ids = [next(self._ids) for _ in range(count)]
        self.given.update(ids)
        started: list[Remote] = []
        failed: list[BaseException] = []

        def begin() -> None:  # on the pump's thread: a worker is told of the end of the thread that started it
            for worker in ids:
                ours, theirs = socket.socketpair()
                lane, number = DescriptorLane(ours, self._traffic.values.maps), theirs.fileno()
                try:
                    process, sock = start_process(env, number)
                except BaseException as error:
                    lane.close()
                    failed.append(error)
                    break
                finally:
                    theirs.close()
                remote = Remote(worker, threads, process, sock, self._traffic.values, lane)
                self._traffic.values.join(remote)
                remote.borrows.poke = pump.poke
                remote.say((CONFIG, {**_config(worker, threads), "lane": number}))
                started.append(remote)
                self.remotes[worker] = remote
                pump.add(remote)
            with self._changed:
                begun.append(True)
                self._changed.notify_all()

        begun: list[bool] = []
        pump.call(begin)
        deadline = time.monotonic() + START_PATIENCE_S
        with self._changed:
            while not begun or any(remote.ready is None and not remote.lost for remote in started):
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    break
        bad = [remote for remote in started if remote.ready is None]
        if failed or bad:
            self.stop([remote.worker for remote in started])
            why = str(failed[0]) if failed else bad[0].lost or f"it was not ready within {START_PATIENCE_S:g} s"
            raise SchedulingError(f"a worker could not be started: {why}", "no_processors")
        for worker in ids:
            topology.add_worker(worker, threads, node, local=False, private=private)
        return ids

    def stop(self, workers: list[int]) -> None:
        """End workers: they are told to, and killed if they don't in time."""
        remotes = [remote for worker in workers if (remote := self.remotes.pop(worker, None)) is not None]
        for remote in remotes:
            remote.leaving = True
            remote.say((STOP,))
            topology.remove_worker(remote.worker)
        if self._pump is not None:
            self._pump.poke()
        deadline = time.monotonic() + STOP_PATIENCE_S
        for remote in remotes:
            try:
                remote.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(remote)
                remote.process.wait()
            if self._pump is not None:
                self._pump.call(lambda remote=remote: self._forget(remote))  # type: ignore[misc]

    def _forget(self, remote: Remote) -> None:
        assert self._pump is not None
        self._pump.drop(remote)
        self._traffic.values.left(remote)

    def leave(self, workers: list[int], timeout_s: float, tell: Callable[[], None]) -> None:
        """End workers when what they have is done, or after a time. `tell()` is called when they get no more."""
        remotes = [remote for worker in workers if (remote := self.remotes.get(worker)) is not None]
        for remote in remotes:
            topology.remove_worker(remote.worker)
        tell()
        deadline = time.monotonic() + timeout_s
        while any(remote.flights for remote in remotes) and time.monotonic() < deadline:
            time.sleep(0.005)
        self.stop([remote.worker for remote in remotes])

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
                tell(False, error_bytes(WorkerLostError(worker), {}))
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

    def _on_ready(self, remote: Remote) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_gone(self, remote: Remote, reason: str) -> None:
        assert self._pump is not None
        self._pump.drop(remote)
        _kill(remote)
        code = remote.process.wait()
        self._traffic.values.left(remote)
        if remote.leaving:
            return
        remote.lost = reason or f"it ended with {code}"
        self.remotes.pop(remote.worker, None)
        topology.remove_worker(remote.worker)
        cores, remote.cores = remote.cores, []
        self.on_loss(remote, cores)
        self._traffic.fail_all(remote, lambda: WorkerLostError(remote.worker))
        remote.lose_calls()
        remote.borrows.give_back()
        with self._changed:
            self._changed.notify_all()

    # ---- schedulers that use them ------------------------------------------------------------------------

    def has(self, worker: int) -> bool:
        """Whether there is such a worker."""
        remote = self.remotes.get(worker)
        return remote is not None and remote.ready is not None and not remote.lost

    def about(self, worker: int) -> dict[str, Any]:
        """What a worker said of itself: `pid`, `host`, `python`, `version` (of this package). {} where it is none."""
        remote = self.remotes.get(worker)
        return {} if remote is None or remote.ready is None else dict(remote.ready)

    def serve(self, core: Core, worker: int) -> None:
        """From now on a worker takes what a scheduler has in its queue."""
        assert self._pump is not None
        direct = Direct(self._traffic, self._pump, core, self.remotes[worker])
        core.shared[worker] = RemoteQueue(self._pump, direct.send)

    def add_slots(self, core: Core, slots: list[Slot]) -> None:
        """A scheduler has slots of a worker."""
        for slot in slots:
            remote = self.remotes.get(slot.worker)
            if remote is not None:
                slot.number = slot.number or remote.processors.get(slot.processor, 0)
                remote.slots.setdefault(core, {})[slot.number] = slot
                if core not in remote.cores:
                    remote.cores.append(core)
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


def _config(worker: int, threads: int) -> dict[str, Any]:
    return {"worker": worker, "threads": threads, "path": list(sys.path), "head": os.getpid(), **_family()}


def _family() -> dict[str, bytes]:
    """What makes a worker one of this program's processes to `multiprocessing`: a manager's proxies work there."""
    process = sys.modules.get("multiprocessing.process")
    return {} if process is None else {"authkey": bytes(process.current_process().authkey)}


def _kill(remote: Remote) -> None:
    """End its process and what that started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(remote.pid, signal.SIGKILL)


def _nobody(remote: Remote, cores: list[Core]) -> None:
    """Nobody uses it."""


pool = Pool()
"""The workers of this process."""

topology.listeners.append(pool.tell_workers)
topology.remote = pool.processors


def _at_exit() -> None:
    pool.stop(list(pool.remotes))


exits.at_exit(_at_exit)


@forks.in_child("pool")
def _in_child() -> None:
    if pool._pump is not None:
        pool._pump.forget()
    for remote in pool.remotes.values():
        remote.lane.close()
    pool._pump = None
    pool.remotes.clear()
