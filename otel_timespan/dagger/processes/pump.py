"""The thread that talks to all workers: it alone reads and writes their sockets, and starts their processes.

Whoever has something for a worker puts it where the pump looks, and calls `poke`: that costs a system call only
while the pump sleeps. One thread, because a batch of messages costs hardly more than one, and because Linux sends a
worker's death signal when the *thread* ends that started it: so this one lives as long as the process.

A poke that an interrupt of the main thread broke off is made up for by the next look, a tenth of a second later.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import SchedulingError
from ..service.callbacks import carriers, held_back
from ..service.threads import kept_up, start_service

if TYPE_CHECKING:
    from ..tasks.dtask import DTask
    from .remote import Remote

__all__ = ["Listener", "Pump", "RemoteQueue"]

LOOK_AGAIN_MS = 100
TURN_PAUSE_S = 0.0001

FRAME_TASKS = 256
"""So many tasks go out in one frame: the first of them begin while the others are written."""

LOGGER = logging.getLogger("otel_timespan")


class Listener(Protocol):
    """What messages mean: what the pump asks, on its thread."""

    def next_messages(self, remote: Remote) -> list[Any]:
        """What a worker is to be sent now; [] for nothing."""

    def take(self, remote: Remote, messages: list[Any]) -> None:
        """These came from a worker."""

    def gone(self, remote: Remote, reason: str) -> None:
        """The worker's socket ended, or is damaged."""

    def look(self, remotes: list[Remote]) -> None:
        """A tenth of a second went by: who does not answer?"""


class Pump:
    """One thread, started with the first worker. Thread-safe."""

    def __init__(self, traffic: Listener) -> None:
        self.remotes: list[Remote] = []
        self._traffic = traffic
        self._queue: deque[Callable[[], None]] = deque()
        self._poll = select.poll()
        self._by_fd: dict[int, Remote] = {}
        self._bell = Bell()
        self._asleep = False
        self.turns: list[bool] = []
        """One entry while nobody talks to workers: who takes it may (direct.py)."""
        self._ended = False
        self._look_at = 0.0
        self._poll.register(self._bell.fd, select.POLLIN)
        self._thread = threading.Thread(target=kept_up, args=(self._run,), name="dagger-pump", daemon=True)
        refusal = start_service(self._thread)
        if refusal is not None:
            raise SchedulingError(f"workers can't be started: {refusal}", "no_threads")

    def poke(self) -> None:
        """There is something to send or do. From any thread; takes no lock."""
        if self._asleep:
            self._asleep = False
            self._bell.ring()

    def call(self, call: Callable[[], None]) -> None:
        """Have `call()` called on the pump's thread, soon. It must not raise."""
        self._queue.append(call)
        self.poke()

    def is_me(self) -> bool:
        """Whether this is the pump's thread."""
        return threading.current_thread() is self._thread

    # ---- on the thread ---------------------------------------------------------------------------------

    def add(self, remote: Remote) -> None:
        """Begin to read a worker."""
        self.remotes.append(remote)
        self._by_fd[remote.socket.fileno()] = remote
        self._poll.register(remote.socket, select.POLLIN)

    def drop(self, remote: Remote) -> None:
        """Have no more to do with a worker."""
        if remote in self.remotes:
            self.remotes.remove(remote)
            self._poll.unregister(remote.socket)
            del self._by_fd[remote.socket.fileno()]

    def _run(self) -> None:
        me = threading.get_ident()
        carriers.add(me)
        woken = held_back[me] = []
        while not self._ended:
            self._asleep = True
            wait_ms = 0 if self._send_all() else LOOK_AGAIN_MS
            self.turns += (True,)
            while woken:
                woken.pop()()
            events = self._poll.poll(wait_ms)
            self._take_turn()
            self._asleep = False
            for fd, mask in events:
                remote = self._by_fd.get(fd)
                if remote is None:
                    self._bell.hear()
                elif mask & ~select.POLLOUT:
                    self._read(remote)
            while self._queue:
                self._queue.popleft()()
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + LOOK_AGAIN_MS / 1000
                self._traffic.look(self.remotes)

    def _take_turn(self) -> None:
        """Talking to workers is ours again; another thread has it for some microseconds at most."""
        while True:
            try:
                del self.turns[-1]
            except IndexError:
                time.sleep(TURN_PAUSE_S)
            else:
                return

    def _read(self, remote: Remote) -> None:
        messages: list[Any] = []
        damage: str | None = None
        try:
            messages = remote.receive()
        except (EOFError, OSError):
            damage = ""
        except (ValueError, pickle.UnpicklingError) as error:
            damage = str(error)
        if messages:
            self._traffic.take(remote, messages)
        elif damage is not None:  # not in the handler: what is warned of then has nothing to do with this error
            self._traffic.gone(remote, damage)

    def _send_all(self) -> bool:
        """Send what there is: whether there is more to be sent at once."""
        more = False
        for remote in list(self.remotes):
            messages = self._traffic.next_messages(remote)
            if messages:
                remote.queue(messages)
                more = more or len(messages) >= FRAME_TASKS
            elif remote.drained:
                continue
            everything: bool | None = None
            with contextlib.suppress(OSError):
                everything = remote.send()
            if everything is None:
                self._traffic.gone(remote, "")
                continue
            if everything is not remote.drained:
                remote.drained = everything
                self._poll.modify(remote.socket, select.POLLIN if everything else select.POLLIN | select.POLLOUT)
        return more

    def end(self) -> None:
        """The program ends, or this is a forked child: let the thread end, if there is one here."""
        self._ended = True
        self.poke()

    def forget(self) -> None:
        """In a forked child: the sockets are the parent's."""
        self._bell.close()


class Bell:
    """Ends a wait in `poll`: `ring` from any thread, `hear` by the one that waited."""

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, ...] = ()
        if hasattr(os, "eventfd"):
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)
            self.fd = self._pair[0].fileno()

    def ring(self) -> None:
        """Takes no lock."""
        try:
            if self._pair:
                self._pair[1].send(b"!")
            else:
                os.eventfd_write(self.fd, 1)
        except OSError:  # it rings as loud as it can already; or was closed
            return

    def hear(self) -> None:
        """It was rung, perhaps several times."""
        try:
            if self._pair:
                self._pair[0].recv(4096)
            else:
                os.eventfd_read(self.fd)
        except OSError:
            return

    def close(self) -> None:
        """Nobody rings it any more."""
        if self._pair:
            for end in self._pair:
                end.close()
        else:
            os.close(self.fd)


_append = deque.append


class RemoteQueue(deque[Any]):
    """The shared queue of a worker that is another process: whoever appends wakes the pump."""

    def __init__(self, pump: Pump, at_once: Callable[[DTask], bool]) -> None:
        super().__init__()
        self._pump = pump
        self._at_once = at_once
        self.left: Callable[[], None] | None = None
        """Called after each task that is put here, once the worker is gone."""

    def append(self, task: DTask) -> None:
        """Straight to the worker, if that waits for it (direct.py); else at the end, and wake the pump."""
        pump = self._pump
        if pump._asleep:
            if not self and self._at_once(task):
                return
            _append(self, task)
            pump.poke()
        else:
            _append(self, task)
        if self.left is not None:
            self.left()
