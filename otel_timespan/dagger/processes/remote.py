"""What the head has of one worker: its process, the socket to it, what it was given and has not answered.

A worker belongs to the pump's thread (pump.py): only `say` may be called elsewhere.

See docs/workers.md.
"""

from __future__ import annotations

import pickle
import socket
import subprocess
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import WorkerLostError
from .borrows import Borrows
from .frames import Framer, in_frames
from .functions import KnownFunctions, NumberedFunctions
from .outgoing import outcome_item
from .telling import Level
from .wire import error_bytes

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..core.placement import Slot
    from ..tasks.dtask import DTask
    from .descriptors import DescriptorLane
    from .values import Values

__all__ = ["Flight", "Remote"]

_READ_SIZE = 1 << 18
_SEND_AT_ONCE = 64
"""So many pieces are given to the system in one call."""


class Flight:
    """A task that a worker was given."""

    __slots__ = ("attempt", "expected_ns", "paused", "pinned", "task", "waits")

    def __init__(self, task: DTask, attempt: int, expected_ns: float) -> None:
        self.task, self.attempt, self.expected_ns = task, attempt, expected_ns
        self.paused = False
        """Whether its body waits, and needs no slot."""
        self.pinned = False
        """Whether it is bound to slots of this worker."""
        self.waits = False
        """Whether its body ever said what it waits for."""


class Remote:
    """One worker, seen from the head."""

    def __init__(
        self,
        worker: int,
        threads: int,
        process: subprocess.Popen[bytes],
        sock: socket.socket,
        values: Values,
        lane: DescriptorLane,
    ) -> None:
        self.worker, self.threads, self.process, self.socket = worker, threads, process, sock
        self.values, self.lane = values, lane
        self.pid = process.pid
        self.processors: dict[Any, int] = {}
        """The numbers of its custom processors."""
        self.ready: dict[str, Any] | None = None
        """What the worker said of itself; None until it can take tasks."""
        self.lost = ""
        """Why it is not there any more; "" while it is."""
        self.leaving = False
        """Whether it gets no new tasks."""
        self.cores: list[Core] = []
        """The schedulers that use it."""
        self.slots: dict[Core, dict[int, Slot]] = {}
        """The slots that it is for each of them, by number of the thread."""
        self.ahead_ns = 0.0
        """Expected time of what it was given and has not answered."""
        self.flights: dict[int, Flight] = {}
        """What it was given and has not answered, by task id."""
        self.calls: dict[int, Callable[[bool, Any], None]] = {}
        """Who waits for a function that runs apart from tasks."""
        self.handles: dict[type, Callable[[Any], Any]] = {}
        """How handles are written for it (wire.py: `Pickler`)."""
        self.borrows = Borrows(
            worker,
            self.handles,
            lambda outcome: outcome_item(self, outcome),
            lambda item: values.handle(self, item, None),
        )
        """What it has handles of."""
        self.paused = 0
        """How many of its bodies wait, and need no slot."""
        self.landed = self.landed_before = 0
        """How many outcomes came, now and at the last look (balance.py)."""
        self.level = Level()
        """What it was told to note."""
        self.begun: set[int] = set()
        """Of which tasks the log was told that their bodies run."""
        self.said: deque[Any] = deque()
        """Messages from any thread that are not sent yet."""
        self.functions = NumberedFunctions(self.handles, self.say)
        """The numbers of the functions that it knows."""
        self.their_functions = KnownFunctions()
        """Those that it gave numbers."""
        self.drained = True
        """Whether the socket took all that there was."""
        self.borrows.running = self._task_there
        self._framer = Framer()
        self._into = bytearray(_READ_SIZE)
        self._unsent: deque[memoryview] = deque()

    @property
    def takes_tasks(self) -> bool:
        """Whether it is there, and to stay."""
        return self.ready is not None and not self.lost and not self.leaving

    def say(self, message: Any) -> None:
        """A message, to be sent with the next frame. From any thread; then poke the pump."""
        self.said.append(message)

    def lose_calls(self) -> None:
        """It is gone: who waits for a call apart from tasks is told. On the pump's thread."""
        calls, self.calls = self.calls, {}
        for tell in calls.values():
            tell(False, error_bytes(WorkerLostError(self.worker), {}))

    def _task_there(self, id: int) -> DTask | None:
        flight = self.flights.get(id)
        return None if flight is None else flight.task

    # ---- bytes ---------------------------------------------------------------------------------------

    def receive(self) -> list[Any]:
        """The messages that are there. Raises `EOFError` when the worker is gone, `OSError`, `ValueError`."""
        try:
            got = self.socket.recv_into(self._into)
        except (BlockingIOError, InterruptedError):
            return []
        if not got:
            raise EOFError
        messages: list[Any] = []
        for frame in self._framer.feed(memoryview(self._into)[:got]):
            messages += pickle.loads(frame)
        return messages

    def queue(self, messages: list[Any]) -> None:
        """Put a frame of these messages behind what is not sent yet."""
        for pieces in in_frames(messages):
            self._unsent += map(memoryview, pieces)

    def leave_unsent(self, rest: bytes) -> None:
        """Put what is left of a frame, of which the socket did not take all, where `send` begins."""
        if rest:
            self._unsent.appendleft(memoryview(rest))
            self.drained = False

    def send(self) -> bool:
        """Send what the socket takes now: whether that was all. Raises `OSError`."""
        unsent = self._unsent
        while unsent:
            pieces = [unsent[n] for n in range(min(len(unsent), _SEND_AT_ONCE))]
            try:
                sent = self.socket.sendmsg(pieces)
            except (BlockingIOError, InterruptedError):
                return False
            while sent:
                first = unsent[0]
                if sent < len(first):
                    unsent[0] = first[sent:]
                    break
                sent -= len(first)
                unsent.popleft()
        return True
