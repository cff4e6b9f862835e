"""What the head has of one worker: its process, the socket to it, what it was given and has not answered.

A worker belongs to the pump's thread (pump.py): only `say` may be called elsewhere.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import pickle
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ... import forks
from .borrows import Borrows
from .frames import Framer, in_frames
from .functions import KnownFunctions, NumberedFunctions
from .outgoing import outcome_item
from .spawn import end_group
from .telling import Level
from .wire import error_bytes

if TYPE_CHECKING:
    from ...errors import WorkerLostError
    from ..core.machine import Core
    from ..core.placement import Slot
    from ..tasks.dtask import DTask
    from .descriptors import DescriptorLane
    from .output import Streams
    from .spawn import Started
    from .stalls import Silence
    from .values import Values

__all__ = ["Flight", "Remote", "Solitary"]

_READ_SIZE = 1 << 18
_SEND_AT_ONCE = 64
"""So many pieces are given to the system in one call."""


class Flight:
    """A task that a worker was given."""

    __slots__ = ("attempt", "expected_ns", "is_recalled", "paused", "pinned", "task", "waits")

    def __init__(self, task: DTask, attempt: int, expected_ns: float) -> None:
        self.task, self.attempt, self.expected_ns = task, attempt, expected_ns
        self.is_recalled = False
        """Whether the worker was asked to give it back, if it has not begun."""
        self.paused = False
        """Whether its body waits, and needs no slot."""
        self.pinned = False
        """Whether it is bound to slots of this worker."""
        self.waits = False
        """Whether its body ever said what it waits for."""


class Solitary:
    """A task that is to run alone on a worker. `pinned` as in outgoing.py; `is_given`: it is its turn."""

    __slots__ = ("flight", "is_given", "pinned")

    def __init__(self, flight: Flight, pinned: Any) -> None:
        self.flight, self.pinned = flight, pinned
        self.is_given = False


class Remote:
    """One worker, seen from the head."""

    def __init__(
        self,
        worker: int,
        threads: int,
        started: Started,
        streams: Streams,
        stall_timeout_s: float,
        values: Values,
        lane: DescriptorLane,
    ) -> None:
        self.worker, self.threads = worker, threads
        self.streams, self.stall_timeout_s = streams, stall_timeout_s
        self.process, self.socket, self.reader = started.process, started.socket, started.reader
        self.pid = started.process.pid
        self.started = started
        self.values, self.lane = values, lane
        self.processors: dict[Any, int] = {}
        """The numbers of its custom processors."""
        self.ready: dict[str, Any] | None = None
        """What the worker said of itself; None until it can take tasks."""
        self.lost = ""
        """Why it is not there any more; "" while it is."""
        self.leaving = False
        """Whether it gets no new tasks."""
        self.stopped = False
        """Whether it was told to end, so that its end is no loss."""
        self.silence: Silence | None = None
        """How long nothing was seen of it."""
        self.solitary: deque[Solitary] = deque()
        """Tasks that are to run alone there; the first one may run (traffic.py)."""
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
        self.error_text = ""
        """What it wrote, if it ended before it was ready."""
        self._end: tuple[int | None, bool] | None = None
        self._ending = forks.rlock()
        self.drained = True
        """Whether the socket took all that there was."""
        self.borrows.running = self._task_there
        self._framer = Framer()
        self._into = bytearray(_READ_SIZE)
        self._unsent: deque[memoryview] = deque()

    @property
    def takes_tasks(self) -> bool:
        """Whether it is there; one that is to go still takes what nobody else can do."""
        return self.ready is not None and not self.lost and not self.stopped

    def say(self, message: Any) -> None:
        """A message, to be sent with the next frame. From any thread; then poke the pump."""
        self.said.append(message)

    def lose_calls(self, error: WorkerLostError) -> None:
        """It is gone: who waits for a call apart from tasks is told. On the pump's thread."""
        calls, self.calls = self.calls, {}
        for tell in calls.values():
            tell(False, error_bytes(error, {}))

    def _task_there(self, id: int) -> DTask | None:
        flight = self.flights.get(id)
        return None if flight is None else flight.task

    # ---- the end -------------------------------------------------------------------------------------

    def end(self, patience_s: float) -> tuple[int | None, bool]:
        """See to it that its process is over, and what that started: see `spawn.end_group`. The same a second time."""
        with self._ending:
            if self._end is None:
                self._end = end_group(self.process, patience_s)
            return self._end

    def close(self) -> None:
        """It is over, and what it said was heard: let go of descriptors and memory."""
        self.error_text = "" if self.ready is not None else self.started.error_text()
        self.started.close()

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self.lane.close()
        self.process.returncode = 0  # so that nobody here waits for it, or says that it still runs
        self.started.close()

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

    def last_words(self) -> list[Any]:
        """What a worker that is dead said before, as far as it is whole."""
        messages: list[Any] = []
        with contextlib.suppress(OSError, ValueError, pickle.UnpicklingError):
            while got := self.socket.recv_into(self._into):
                for frame in self._framer.feed(memoryview(self._into)[:got]):
                    messages += pickle.loads(frame)
        return messages
