"""`DTask`: the handle of a task and, at the same time, the scheduler's record of it.

One object serves as both, because the strong references that the graph needs are there anyway: an
unfinished task is held by its queue, by the thread that runs it, or by the list of subscribers of an
upstream it waits for. So dropping the handle never loses a task, and when a finished task is dropped its
result goes with it, without any table (10,000 waiting tasks take under 1 KB each).

Source: spec/scheduler.md §1.2, §17.2; design/rulings.md 1, 14, 16.
"""

from __future__ import annotations

import contextvars
import operator
import reprlib
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..options.options import Options
from ..records.describe import function_name
from .failures import Failure

if TYPE_CHECKING:
    import concurrent.futures

    from ..bodies.coroutines import CoroutineBody
    from ..core.machine import Core
    from ..data.chunks import Chunk

__all__ = ["ALLOWED", "DONE", "DTask", "Failure", "Result", "TaskSummary", "state_name", "summarize"]

UNLAUNCHED, LAUNCHED, DONE, FAILED = 0, 1, 2, 3
"""`DTask._state`. From DONE on the outcome is there; it never changes again. What lies between LAUNCHED
and DONE is told by where the task is (`state_name`): storing it would race with cancellation."""

ALLOWED = {
    ("unlaunched", "waiting"),
    ("unlaunched", "ready"),
    ("unlaunched", "failed"),
    ("waiting", "ready"),
    ("waiting", "failed"),
    ("ready", "queued"),
    ("ready", "failed"),
    ("ready", "finished"),  # by its option `restore`
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "ready"),  # its slot is gone: it is placed again
    ("running", "finished"),
    ("running", "failed"),
    ("running", "ready"),  # its next attempt
}
"""The moves of a task between its states (spec/scheduler.md §17.2), as data: for checks and pictures."""


class TaskSummary(NamedTuple):
    """What is said of a task in errors: its id and its inputs as text, never live objects."""

    id: int
    function: str
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        count = len(self.inputs)
        shown = ", ".join(self.inputs) if count <= 4 else f"{count} arguments"
        return f"DTask {self.id}: {self.function}({shown})"


class Verbs:
    """What a handle can be asked to do, which is made far above it: `handle.py` fills this in, once."""

    fetch: Callable[..., Any]
    wait: Callable[..., None]
    cancel: Callable[..., None]
    future: Callable[[DTask], concurrent.futures.Future[Any]]
    awaitable: Callable[[DTask], Coroutine[Any, Any, Any]]
    spawn: Callable[..., DTask]


VERBS = Verbs()


class Result:
    """A result kept plain, without a chunk (options `get_result` and `meta`)."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class DTask:
    """A task that was spawned. All methods may be called from any thread.

    `id` (also `uid`) is its number, `options` its effective `Options`. Dropping the handle never stops
    the task.
    """

    __slots__ = (
        "__weakref__",
        "_args",  # positional arguments as given; () once finished
        "_claim",  # there while the task sits in a queue: deleting it takes the task (atomics.claim)
        "_context",  # the caller's contextvars at spawn, run once; None once finished
        "_core",  # the scheduler that it belongs to
        "_deps",  # upstream tasks, one that is used twice comes twice; () once finished
        "_f",  # the function as given; None once finished
        "_kwargs",  # keyword arguments as given, None when there are none
        "_live",  # attempt, label, span parent, ...: only what few tasks have (a `Live`), else None
        "_open",  # there until the task has its one result: deleting it is the right to set it (settle)
        "_options",  # effective options; the shared default where nothing was set
        "_outcome",  # DRef or Result of a success, Failure otherwise; set before `_state` says so
        "_slot",  # where it runs or ran, None before
        "_state",  # UNLAUNCHED .. FAILED
        "_subs",  # dependents (DTask) and waiters (callables) to tell at the end, each exactly once
        "_summary",  # TaskSummary of a task that failed; absent else
        "_taken",  # there while what was taken out of `_subs` at the end is being told: that
        "_tokens",  # one a pending upstream, True at the bottom; None when there were none (countdown)
        "id",
    )

    id: int
    _open: bool
    _claim: bool
    _outcome: Any
    _live: Live | None
    _taken: list[Any]
    _summary: TaskSummary | None

    def __init__(
        self,
        task_id: int,
        f: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        options: Options,
        deps: tuple[DTask, ...],
        context: contextvars.Context,
        core: Core,
    ) -> None:
        self.id = task_id
        self._f = f
        self._args = args
        self._kwargs = kwargs
        self._options = options
        self._deps = deps
        self._context: contextvars.Context | None = context
        self._core = core
        self._subs: list[Any] = []
        self._tokens: list[bool] | None = None
        self._state = UNLAUNCHED
        self._open = True
        self._slot: Any = None
        self._live = None

    @property
    def uid(self) -> int:
        """The same number as `id`, under Dagger's name."""
        return self.id

    @property
    def options(self) -> Options:
        """The effective options: the task's own, filled up with those in force at `spawn`."""
        return self._options

    @property
    def f(self) -> Any:
        """The function, while the task has not finished; None afterwards."""
        return self._f

    def istaskstarted(self) -> bool:
        """Whether it was submitted (not: whether its body has begun)."""
        return self._state != UNLAUNCHED

    def istaskdone(self) -> bool:
        """Whether it finished, with a result or an error."""
        return self._state >= DONE

    isready = istaskdone

    def fetch(self, timeout: float | None = None, raw: bool = False) -> Any:
        """Wait for the result and return it; see `otel_timespan.dagger.fetch`."""
        return VERBS.fetch(self, timeout=timeout, raw=raw)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it finished; never raises the task's error. See `otel_timespan.dagger.wait`."""
        VERBS.wait(self, timeout=timeout)

    def cancel(self, *, force: bool = False, graceful: bool = True) -> None:
        """Cancel it; see `otel_timespan.dagger.cancel`."""
        VERBS.cancel(self, force=force, graceful=graceful)

    def future(self) -> concurrent.futures.Future[Any]:
        """A `concurrent.futures.Future` of the result: for code written for those."""
        return VERBS.future(self)

    def __await__(self) -> Generator[Any, None, Any]:
        return VERBS.awaitable(self).__await__()

    def __getitem__(self, key: Any) -> DTask:
        """Spawn `result[key]`."""
        return VERBS.spawn(operator.getitem, self, key)

    # `t[i]` above would otherwise make a task iterable, for ever
    __iter__ = None

    def getattr(self, name: str) -> DTask:
        """Spawn `result.name`."""
        return VERBS.spawn(getattr, self, name)

    def __repr__(self) -> str:
        if self._state >= DONE:
            return "DTask (finished)"
        return "DTask (not launched)" if self._state == UNLAUNCHED else "DTask (running)"

    def __reduce__(self) -> Any:
        raise TypeError("a DTask belongs to its process: pass it as an argument of spawn, or pass its fetched value")


class _Told(list):  # type: ignore[type-arg]
    """Stands for the subscribers of every finished task: one shared object instead of a list each.

    Whoever subscribes now looks at the task's state next, finds it done, and takes its entry back: both
    steps succeed and do nothing.
    """

    __slots__ = ()

    def append(self, subscriber: Any) -> None:
        """Forget it at once."""

    def remove(self, subscriber: Any) -> None:
        """It is not here: taken back."""


TOLD = _Told()


class Live:
    """What only some tasks have: kept apart so that the others stay small."""

    __slots__ = (
        "attempt",
        "chunk",
        "coroutine",
        "forced",
        "reserved",
        "spawned_by",
        "timer",
        "token",
        "trace",
        "wakes",
    )

    def __init__(self) -> None:
        self.attempt = 1
        self.trace: Any = None  # what the log's recorder remembered of the caller
        self.coroutine: CoroutineBody | None = None  # what runs on the event loop
        self.chunk: Chunk | None = None  # the chunk handed out for the result
        self.token: Any = None  # the cancel token while it runs
        self.reserved: Any = None  # its expected time where it was placed (a `Reservation`)
        self.spawned_by = 0  # the id of the task whose body spawned it
        self.timer: Any = None  # what ends the body (option `timeout`) or begins the next attempt
        self.forced = 0  # how far a forced cancellation is (interrupts.py)
        self.wakes: Any = ()  # what ends the waits of the body


def live(task: DTask) -> Live:
    """The task's `Live`, made at the first need."""
    extra = task._live
    if extra is None:
        with _live_lock:
            extra = task._live
            if extra is None:
                extra = task._live = Live()
    return extra


_live_lock = threading.Lock()


def state_name(task: DTask) -> str:
    """The state as spec/scheduler.md §17.2 calls it."""
    state = task._state
    if state == DONE:
        return "finished"
    if state == FAILED:
        return "failed"
    if state == UNLAUNCHED:
        return "unlaunched"
    if hasattr(task, "_claim"):
        return "queued"
    if task in task._core.running:
        return "running"
    return "waiting" if task._tokens else "ready"


def summarize(task: DTask) -> TaskSummary:
    """The summary of a task, made while its arguments are still there."""
    made: TaskSummary | None = getattr(task, "_summary", None)
    if made is not None:
        return made
    count = len(task._args) + len(task._kwargs or ())
    inputs: tuple[str, ...] = ("",) * count
    if count <= 4:
        inputs = tuple(_show(a) for a in task._args)
        inputs += tuple(f"{name}={_show(a)}" for name, a in (task._kwargs or {}).items())
    return TaskSummary(task.id, function_name(task._f), inputs)


def _show(value: Any) -> str:
    if isinstance(value, DTask):
        return f"DTask {value.id}"
    try:
        return reprlib.repr(value)
    except Exception:  # the user's own __repr__ raised: an error text must not fail over it
        return f"<{type(value).__name__}>"
