"""`cancel(force=True)`: an exception that is raised inside a running body, and never in the scheduler.

CPython can have an exception raised in another thread (`PyThreadState_SetAsyncExc`), wherever that thread
happens to be. In the middle of `spawn` or of a completion that would wreck the scheduler. So the thread is
looked at first, and interrupted only while it executes the user's code: every frame between the body's
`run` and the top is the user's. Otherwise the body is looked at again a little later, on the timer thread.

Looking and interrupting must be one step. CPython switches threads (and delivers such exceptions) at
calls and at backward jumps only, so `_raise_in` does both without either; and the thread looked at, which
has not got the GIL, meets the exception at its first such point: in the user's code, or at the latest
where `run` called the body (see `deliver`). So nothing is registered, locked or checked where tasks run.

A body that waits in `fetch` is woken and raises there; one that is a coroutine is cancelled as asyncio does it.
Once asked for, the task ends as cancelled whatever its body makes of the exception. Each body is interrupted
once at most.

See docs/concepts.md and docs/decisions.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import TaskCancelled
from ...timespans.stacks import current_frames, uncollected
from ..service.guards import guard
from ..service.timers import call_later
from ..tasks.dtask import DONE, DTask, live
from ..tasks.environment import running_task

if TYPE_CHECKING:
    from ..core.machine import Core

__all__ = ["bodies_here", "check", "deliver", "force", "forced_error", "is_forced", "see_through", "wakeable"]

WANTED, SENT = 1, 2
"""`Live.forced`: an interrupt is to be raised in the body; it was. 0 without a forced cancellation."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05
"""Between two looks at a body that could not be interrupted: doubled from the first to the longest."""

used = False
"""Whether any body was ever to be interrupted: until then nobody needs to `check`."""

looked = False
"""Whether anybody ever looked at the variables of an `entry`: until then nobody needs to `forget_look`."""

_lock = guard()
"""Guards the marks: one interrupt a body."""

_transparent: set[CodeType] = set()
_entry: CodeType | None = None
_PACKAGE = __name__.partition(".")[0]


_F = TypeVar("_F", bound=Callable[..., Any])


def see_through(f: _F) -> _F:
    """Decorator of our own functions that call bodies: an interrupt may pass through them."""
    _transparent.add(f.__code__)
    _transparent.update(const for const in f.__code__.co_consts if isinstance(const, CodeType))  # comprehensions
    return f


def entry(f: _F) -> _F:
    """Decorator of the one function that runs tasks, its local `task`: the bottom of each body's frames."""
    global _entry
    _entry = f.__code__
    return f


# --- the canceller's side -------------------------------------------------------------------------------


def force(core: Core, task: DTask) -> bool:
    """Interrupt the body of a running task, now or as soon as that is safe; False if it does not run."""
    global looked, used
    looked = used = True
    extra = live(task)
    with _lock:
        if task._state >= DONE or task not in core.running:
            return False
        if extra.forced:
            return True
        extra.forced = WANTED
    for wake in extra.wakes:
        wake()
    _pursue(core, task, FIRST_PAUSE_S)
    return True


def _pursue(core: Core, task: DTask, pause_s: float) -> None:
    """Interrupt the body if that is safe now, else look again later, until it ended."""
    with _lock:
        extra = live(task)
        if extra.forced != WANTED or task not in core.running:
            return
        coroutine = extra.coroutine
        if core.driver.interrupt(task) or (coroutine is None and supported and _interrupt(task)):
            extra.forced = SENT
    if coroutine is not None and coroutine.cancel():
        extra.forced = SENT
    if extra.forced == WANTED:
        call_later(pause_s, functools.partial(_pursue, core, task, min(2 * pause_s, LONGEST_PAUSE_S)))


def _interrupt(task: DTask) -> bool:
    frames = current_frames()
    frames.pop(threading.get_ident(), None)
    try:
        for ident, top in frames.items():
            line = _users_frames(task, top)
            if line:
                return _raise_in(ident, line)
        return False
    finally:
        frames.clear()


def _users_frames(task: DTask, top: FrameType) -> list[FrameType]:
    """The frames from the top of a thread down to `run`; none where that thread is not in the task's own code."""
    line: list[FrameType] = []
    frame: FrameType | None = top
    while frame is not None:
        line.append(frame)
        if frame.f_code is _entry:
            return line if len(line) > 1 and frame.f_locals.get("task") is task else []
        if _is_ours(frame) and (frame is top or frame.f_code not in _transparent):
            return []
        frame = frame.f_back
    return []


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == _PACKAGE


class _Executing:
    """What every thread executes: an attribute, since CPython may switch threads after a call."""

    current = staticmethod(sys._current_frames)
    frames = property(operator.methodcaller("current"))


_executing = _Executing()


def _raise_in(ident: int, line: list[FrameType]) -> bool:
    """Raise `TaskCancelled` in a thread if it still executes exactly these frames.

    From the first look to the call of `interrupt` there is no call, no backward jump and no collection: one step.
    """
    interrupt, threads, error = _set_async_exc, _executing, TaskCancelled
    again = itertools.accumulate(itertools.repeat("f_back", len(line) - 1), getattr, initial=line[0])
    with uncollected(), contextlib.suppress(KeyError):  # no such thread any more
        if threads.frames[ident] is line[0] and [*again] == line:
            return bool(interrupt(ident, error))
    return False


def _load() -> Any:
    """The function of CPython, None where an interrupt can't be aimed: elsewhere, and without the GIL."""
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    function = ctypes.pythonapi.PyThreadState_SetAsyncExc
    function.argtypes, function.restype = (ctypes.c_ulong, ctypes.py_object), ctypes.c_int
    return function


_set_async_exc = _load()
supported = _set_async_exc is not None
"""Whether bodies can be interrupted here. Where not, they are only asked to stop (token, `fetch`)."""


# --- the body's side ------------------------------------------------------------------------------------


def deliver() -> None:
    """Does nothing: an interrupt that is under way is raised at this call, so that none comes later.

    For where a body ended by an exception: only then its last code may not have met the interrupt yet.
    """


def forget_look() -> None:
    """Whoever looked at the caller's variables from outside left a copy there, up to Python 3.12: renew that."""
    sys._getframe(1).f_locals  # noqa: B018


def bodies_here() -> list[DTask]:
    """The tasks whose bodies this thread is in, innermost first: several where it helps from within a body."""
    global looked
    looked = True
    found: list[DTask] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _entry:
            task = frame.f_locals.get("task")
            if task is not None:
                found.append(task)
        frame = frame.f_back
    return found


def check() -> None:
    """Raise the interrupt that the body around is to get, here and now; nothing outside of such bodies."""
    body = running_task()
    if body is not None and body._live is not None and body._live.forced == WANTED and _taken(body):
        raise TaskCancelled(f"task {body.id} was cancelled")


def _taken(body: DTask) -> bool:
    with _lock:
        if live(body).forced != WANTED:
            return False
        live(body).forced = SENT
        return True


class _Wake:
    """Ends one wait of a body; `called` says that it did."""

    __slots__ = ("called", "notify")

    def __init__(self, notify: Callable[[], Any]) -> None:
        self.called = False
        self.notify = notify

    def __call__(self) -> None:
        self.called = True
        self.notify()


@contextlib.contextmanager
def wakeable(body: DTask, notify: Callable[[], Any] | None) -> Iterator[None]:
    """Around a wait of a body: an interrupt calls `notify()`, which must end the wait, and is raised after it."""
    check()
    if notify is None:
        yield
        check()
        return
    extra, wake = live(body), _Wake(notify)
    with _lock:
        extra.wakes = (*extra.wakes, wake)
        if extra.forced == WANTED:
            wake()
    try:
        yield
    finally:
        with _lock:
            extra.wakes = tuple(w for w in extra.wakes if w is not wake)
    if wake.called:
        _taken(body)
        raise TaskCancelled(f"task {body.id} was cancelled")


def is_forced(task: DTask) -> bool:
    """Whether the body that just ended was to be interrupted. From its removal from `running` on this is final."""
    with _lock:
        return task._live is not None and task._live.forced != 0


def forced_error(task: DTask, raised: BaseException | None) -> BaseException:
    """What a task fails with whose body was to be interrupted, by what the body made of it."""
    text = f"task {task.id} was cancelled"
    if isinstance(raised, TaskCancelled):
        raised.args = (text,)
        return raised
    error = TaskCancelled(text)
    error.__cause__ = raised
    return error
