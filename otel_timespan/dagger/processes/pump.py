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
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import SchedulingError
from ..service.callbacks import carriers
from ..service.threads import kept_up, start_service

if TYPE_CHECKING:
    from ..tasks.dtask import DTask
    from .remote import Remote

__all__ = ["Listener", "Pump", "RemoteQueue"]

LOOK_AGAIN_S = 0.1
LOGGER = logging.getLogger("otel_timespan")


class Listener(Protocol):
    """What messages mean: what the pump asks, on its thread."""

    def next_messages(self, remote: Remote) -> list[Any]:
        """What a worker is to be sent now; [] for nothing."""

    def take(self, remote: Remote, messages: list[Any]) -> None:
        """These came from a worker."""

    def gone(self, remote: Remote, reason: str) -> None:
        """The worker's socket ended, or is damaged."""

    def look(self) -> None:
        """A tenth of a second went by: who does not answer?"""


class Pump:
    """One thread, started with the first worker. Thread-safe."""

    def __init__(self, traffic: Listener) -> None:
        self.remotes: list[Remote] = []
        self._traffic = traffic
        self._queue: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._bell, self._heard = socket.socketpair()
        self._asleep = False
        self._ended = False
        for end in (self._bell, self._heard):
            end.setblocking(False)
        self._selector.register(self._heard, selectors.EVENT_READ)
        self._thread = threading.Thread(target=kept_up, args=(self._run,), name="dagger-pump", daemon=True)
        refusal = start_service(self._thread)
        if refusal is not None:
            raise SchedulingError(f"workers can't be started: {refusal}", "no_threads")

    def poke(self) -> None:
        """There is something to send or do. From any thread; takes no lock."""
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(OSError):  # it is full of pokes already; or closed
                self._bell.send(b"!")

    def call(self, call: Callable[[], None]) -> None:
        """Have `call()` called on the pump's thread, soon. It must not raise."""
        self._queue.append(call)
        self.poke()

    # ---- on the thread ---------------------------------------------------------------------------------

    def add(self, remote: Remote) -> None:
        """Begin to read a worker."""
        self.remotes.append(remote)
        self._selector.register(remote.socket, selectors.EVENT_READ, remote)

    def drop(self, remote: Remote) -> None:
        """Have no more to do with a worker."""
        if remote in self.remotes:
            self.remotes.remove(remote)
            self._selector.unregister(remote.socket)
            remote.socket.close()

    def _run(self) -> None:
        carriers.add(threading.get_ident())
        while not self._ended:
            self._asleep = True
            wait_s = 0.0 if self._send_all() else LOOK_AGAIN_S
            events = self._selector.select(wait_s)
            self._asleep = False
            for key, mask in events:
                if key.data is None:
                    with contextlib.suppress(OSError):
                        self._heard.recv(4096)
                elif mask & selectors.EVENT_READ:
                    self._read(key.data)
            while self._queue:
                self._queue.popleft()()
            if not events:
                self._traffic.look()

    def _read(self, remote: Remote) -> None:
        try:
            messages = remote.receive()
        except EOFError:
            self._traffic.gone(remote, "")
        except (OSError, ValueError) as error:
            self._traffic.gone(remote, str(error))
        else:
            if messages:
                self._traffic.take(remote, messages)

    def _send_all(self) -> bool:
        """Send what there is: whether there is more to be sent at once."""
        more = False
        for remote in list(self.remotes):
            messages = self._traffic.next_messages(remote)
            if messages:
                remote.queue(messages)
                more = True
            try:
                everything = remote.send()
            except OSError as error:
                self._traffic.gone(remote, str(error))
                continue
            if everything is not remote.drained:
                remote.drained = everything
                mask = selectors.EVENT_READ if everything else selectors.EVENT_READ | selectors.EVENT_WRITE
                self._selector.modify(remote.socket, mask, remote)
        return more

    def end(self) -> None:
        """The program ends, or this is a forked child: let the thread end, if there is one here."""
        self._ended = True
        self.poke()

    def forget(self) -> None:
        """In a forked child: the sockets are the parent's."""
        for remote in self.remotes:
            remote.socket.close()
        self._bell.close()
        self._heard.close()
        self._selector.close()


class RemoteQueue(deque[Any]):
    """The shared queue of a worker that is another process: whoever appends wakes the pump."""

    def __init__(self, pump: Pump) -> None:
        super().__init__()
        self._pump = pump

    def append(self, task: DTask) -> None:
        """At the end, and wake the pump."""
        super().append(task)
        if self._pump._asleep:
            self._pump.poke()
