"""`DTask`: the handle of a task and, at the same time, the scheduler's record of it.

One object serves as both, because the strong references that the graph needs are there anyway: an
unfinished task is held by its queue, by the thread that runs it, or by the list of subscribers of an
upstream it waits for. So dropping the handle never loses a task, and when a finished task is dropped its
result goes with it, without any table (10,000 waiting tasks take under 1 KB each).

The states are those of docs/concepts.md; who may write which slot is said at `DTask.__slots__`, and in
docs/architecture.md. Upstream: https://juliaparallel.org/Dagger.jl/dev/task-spawning/.
"""

from __future__ import annotations

import contextvars
import itertools
import operator
import reprlib
import sys
from collections.abc import Callable, Coroutine, Generator
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, overload

from ..options.options import Options
from ..records.describe import callable_name
from ..service.guards import guard
from .failures import Failure
from .references import Reference, Value

if TYPE_CHECKING:
    import concurrent.futures

    from ..bodies.coroutines import CoroutineBody
    from ..core.machine import Core
    from ..data.chunks import Chunk

__all__ = [
    "ALLOWED",
    "DONE",
    "GIL",
    "NOBODY",
    "DTask",
    "Failure",
    "Loss",
    "Result",
    "TaskSummary",
    "hint_for",
    "new_task",
    "state_name",
    "summarize",
]

GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether this interpreter has a global lock, so that sections hold (atomics.py)."""

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
"""The moves of a task between its states (the picture in docs/concepts.md), as data: for checks and pictures."""


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


class DTask(Reference[Value, NoReturn]):
    """A task that was spawned. All methods may be called from any thread.

    `id` (also `uid`) is its number, `options` its effective `Options`. Dropping the handle never stops
    the task. For type checkers `DTask[int]` is one whose result is an int.
    """

    # What each slot means, and who may write it when; the table of docs/architecture.md says the same. The *submitter*
    # is the thread in `spawn`, at the end of a block that held the task back, or about to begin its next attempt; the
    # *queuer* the one that made it ready: the submitter, who ended its last upstream, gave it its place of a limit, or
    # changed the workers; the *runner* the one that claimed it: a worker's thread, one that helps, one that steps; the
    # *ender* the one that deleted `_open`. A task changes hands by deleted slots and tokens (atomics.py), each of
    # which one thread gets. For the main thread one without signals may stand in (service/uninterrupted.py).
    __slots__ = (
        "__weakref__",
        # Positional arguments as given. Submitter, before anybody else has the task; () when let go (see `_f`).
        "_args",
        # There while the task can be had from a queue; deleting it is the right to have it (atomics.claim). Queuer,
        # just before it is in the queue: True in a worker's shared one, False in that of a slot, where helpers must
        # not take it. Deleted by the runner, a thief, the ender, or who takes the slot away; there again when it is
        # queued again.
        "_claim",
        # The caller's contextvars at spawn; the body runs in them. Submitter; None when let go. Between claim and
        # body the simulated driver's runner puts one of its own around it.
        "_context",
        # The scheduler that it belongs to. Submitter; never written again.
        "_core",
        # Upstream tasks; one that is used twice comes twice. Submitter; a sequential queue of tasks adds some before
        # it is submitted; () when let go.
        "_deps",
        # The function as given. Submitter. *Let go*, all five in one section, when it will not run (again): by the
        # ender, after everybody was told, unless its body still runs; then by the runner, when that is over. A runner
        # that finds the task done before the body lets go, too.
        "_f",
        # Keyword arguments as given, None when there are none. Submitter; None when let go.
        "_kwargs",
        # What only few tasks have (a `Live`), else None. Made once, by the submitter where a log wants it, else by
        # whoever needs it first, under `_live_lock`; it stays.
        "_live",
        # There until the task has its one outcome; deleting it is the right to set that, and the duty to end the task
        # (bodies/ending.py). Submitter; deleted once, by the ender, which may be any thread; never there again.
        "_open",
        # Effective options; the shared `DEFAULT` where nothing was set. Submitter; the queuer, who places the task,
        # fills in defaults of its signature before it is in a queue.
        "_options",
        # DRef or `Result` of a success, else `Failure`. Ender, in one section with deleting `_open`; not there
        # before. Others read it from `_state` DONE or FAILED on.
        "_outcome",
        # (`Pressure`, nanoseconds): where its expected time counts, and how much. None where it does not: not placed
        # yet, nothing to choose from, or it runs no more. Queuer, thief, ender; under `Core.lock`.
        "_reserved",
        # The `Slot` in which it runs or ran. Runner, when the body is about to begin: who mends a broken-off run tells
        # by it that it has. None before, and again from the end of an attempt until the next one begins.
        "_slot",
        # UNLAUNCHED .. FAILED. Submitter: LAUNCHED, before it is wired or queued (and FAILED, if a task that was held
        # back is cancelled at that moment). Ender: DONE or FAILED, after the record is in the log and before anybody
        # is told; from then on it is never written again.
        "_state",
        # Dependents (DTask) and waiters (callables) to tell at the end, each exactly once. Appended to by submitters
        # of dependents and by waiters, who then look at `_state` and, if it is done, try to take their entry back;
        # taken out by waiters that give up, and by who cancels a dependent. Emptied by the ender, who puts `TOLD` here.
        # `NOBODY` before the first, who puts a list of its own there, in one section with looking at `_state`.
        "_subs",
        # TaskSummary of a task that fails; not there else. Whoever is about to end it with an error, while its inputs
        # are there: of several all say the same. None from then on if there is a next attempt instead.
        "_summary",
        # What was taken out of `_subs` at the end and is being told: there from before the first is taken until the
        # last was told, so that a broken-off ending can be completed. Ender.
        "_taken",
        # While it waits, a number: 1, which is the submitter's own, and 1 for each unfinished upstream. Submitter
        # (`Core.wire`), who takes 1 off for each that is done after all, and 1 at last; the ender of each upstream that
        # succeeded takes 1 off. Who takes the last is the queuer. 0 from then until it is queued, parked, or left to
        # the driver to restore or fail; None, by the queuer, just before that. None also where no upstream was
        # unfinished at submission.
        "_tokens",
        # Its number. Submitter; never written again.
        "id",
    )

    if not TYPE_CHECKING:
        __class_getitem__ = classmethod(GenericAlias)

    id: int
    _f: Any
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any] | None
    _options: Options
    _reserved: tuple[Any, float] | None
    _deps: tuple[DTask, ...]
    _context: contextvars.Context | None
    _core: Core
    _subs: list[Any]
    _tokens: int | None
    _state: int
    _slot: Any
    _open: bool
    _claim: bool
    _outcome: Any
    _live: Live | None
    _taken: list[Any]
    _summary: TaskSummary | None

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

    @overload
    def fetch(self, timeout: float | None = None, raw: Literal[False] = False) -> Value: ...
    @overload
    def fetch(self, timeout: float | None = None, *, raw: Literal[True]) -> Chunk[Value]: ...
    @overload
    def fetch(self, timeout: float | None = None, raw: bool = False) -> Value | Chunk[Value]: ...
    def fetch(self, timeout: float | None = None, raw: bool = False) -> Any:
        """Wait for the result and return it; see `otel_timespan.dagger.fetch`."""
        return VERBS.fetch(self, timeout=timeout, raw=raw)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it finished; never raises the task's error. See `otel_timespan.dagger.wait`."""
        VERBS.wait(self, timeout=timeout)

    def cancel(self, *, force: bool = False, graceful: bool = True) -> None:
        """Cancel it; see `otel_timespan.dagger.cancel`."""
        VERBS.cancel(self, force=force, graceful=graceful)

    def future(self) -> concurrent.futures.Future[Value]:
        """A `concurrent.futures.Future` of the result: for code written for those."""
        return VERBS.future(self)

    def __await__(self) -> Generator[Any, None, Value]:
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
        """State, id and name; the function's is forgotten with a success, a name given to it stays."""
        summary, f = getattr(self, "_summary", None), self._f
        name = self._options.name or (summary.function if summary else callable_name(f) if f is not None else "")
        state = "finished" if self._state >= DONE else "not launched" if self._state == UNLAUNCHED else "running"
        failed = ", failed" if self._state == FAILED else ""
        return f"DTask ({state}) {self.id}{name and f': {name}'}{failed}"

    def __reduce__(self) -> Any:
        raise TypeError("a DTask belongs to its process: pass it as an argument of spawn, or pass its fetched value")


def new_task(
    task_id: int,
    f: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    options: Options,
    deps: tuple[DTask, ...],
    context: contextvars.Context,
    core: Core,
) -> DTask:
    """A task that nobody else has yet. A function, because it takes half the time of a call of `__init__`."""
    task: DTask = DTask()
    task.id = task_id
    task._f = f
    task._args = args
    task._kwargs = kwargs
    task._options = options
    task._deps = deps
    task._context = context
    task._core = core
    task._subs = NOBODY if GIL else []
    task._tokens = None
    task._state = UNLAUNCHED
    task._open = True
    task._slot = None
    task._live = None
    task._reserved = None
    return task


class _Nobody(list):  # type: ignore[type-arg]
    """Stands for the subscribers of every task that has none yet: one shared list, which stays empty."""

    __slots__ = ()

    def append(self, subscriber: Any) -> None:
        """Nobody subscribes here: see `atomics.subscribe`."""
        raise TypeError("this list is shared by all tasks without subscribers")


NOBODY = _Nobody()


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


class Loss(NamedTuple):
    """A worker that died while it ran the body of a task.

    `how` is the end of a sentence ("was killed by SIGKILL"); `with_others`: it was not the only body there, so that
    another one may be to blame.
    """

    worker: int
    attempt: int
    how: str
    with_others: bool


class Live:
    """What only some tasks have: kept apart so that the others stay small."""

    __slots__ = (
        "attempt",
        "chunk",
        "coroutine",
        "failures",
        "forced",
        "losses",
        "measured",
        "spawned_by",
        "timer",
        "token",
        "trace",
        "wakes",
    )

    def __init__(self) -> None:
        # Who writes what: see `DTask.__slots__`.
        self.attempt = 1  # by who has the outcome of an attempt, before the next one is submitted
        self.failures = 0  # how many bodies raised and were followed by another attempt; as `attempt`
        self.losses: tuple[Loss, ...] = ()  # workers that died while they ran the body; as `attempt`
        self.trace: Any = None  # what the log's recorder remembered of the caller; submitter of the first attempt
        self.coroutine: CoroutineBody | None = None  # what runs on the event loop; runner, None by the loop at its end
        self.chunk: Chunk | None = None  # of the result, where one was handed out; runner, or who asks for it later
        self.token: Any = None  # the cancel token; whoever needs it first, under a lock (environment.token_of)
        self.measured: Any = None  # descriptions of plain arguments, by their `id()`; submitter of the first attempt
        self.spawned_by = 0  # the id of the task whose body spawned it; submitter of the first attempt
        self.timer: Any = None  # what ends the body (option `timeout`) or begins the next attempt; runner
        self.forced = 0  # how far a forced cancellation is; canceller, timer thread or body (bodies/interrupts.py)
        self.wakes: Any = ()  # what ends the waits of the body; the body's threads, under the lock there


def live(task: DTask) -> Live:
    """The task's `Live`, made at the first need."""
    extra = task._live
    if extra is None:
        made = Live()
        with _live_lock:
            extra = task._live
            if extra is None:
                extra = task._live = made
    return extra


_live_lock = guard()


def state_name(task: DTask) -> str:
    """The state, by the names of docs/concepts.md."""
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
    return TaskSummary(task.id, callable_name(task._f), inputs)


FEW = 100
"""So many items of a list are looked at for tasks."""


def hint_for(task: DTask, error: BaseException) -> str:
    """What was perhaps meant with arguments at which a body failed, while they are still there; "" for nothing."""
    if not isinstance(error, (TypeError, AttributeError, ValueError)):
        return ""
    for given in (*task._args, *(task._kwargs or {}).values()):
        if type(given) in (list, tuple, set, frozenset, dict):
            items = given.values() if type(given) is dict else given
            if any(isinstance(item, DTask) for item in itertools.islice(items, FEW)):
                return (
                    f"Hint: a {type(given).__name__} of tasks is passed as it is, with tasks in it: give them as "
                    "arguments of their own, spawn(f, *tasks), or fetch_all in the body"
                )
    return ""


def _show(value: Any) -> str:
    if isinstance(value, DTask):
        return f"DTask {value.id}"
    try:
        return reprlib.repr(value)
    except Exception:  # the user's own __repr__ raised: an error text must not fail over it
        return f"<{type(value).__name__}>"
