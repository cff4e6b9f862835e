"""What bodies on workers want of the head: tasks that they spawn, waits that could never end, and what they ask for.

All on the pump's thread, except for `_find_out`.

See docs/workers.md.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from typing import TYPE_CHECKING, Any

from ...errors import InvalidOptionError
from ..bodies.ending import fail
from ..data.chunks import DRef, UnitDomain
from ..data.read import may_wait, read
from ..options.options import DEFAULT, Options, made
from ..options.scoped import scoped_options
from ..places.processors import OSProc
from ..service import surroundings
from ..service.threads import start_service
from ..tasks.dtask import DTask, new_task
from ..tasks.environment import enter
from . import telling
from .borrows import AS_ERROR
from .handles import PackedDRef, RemoteDRef, new_chunk
from .upstairs import UPSTAIRS
from .wire import ENDED, INPUT, KEPT, REFUSED, error_bytes, loads

if TYPE_CHECKING:
    from ..core.machine import Core
    from .remote import Remote

__all__ = ["answer", "paused", "resumed", "spawn", "waited", "waits"]

LOGGER = logging.getLogger("otel_timespan")


# ---- spawn -----------------------------------------------------------------------------------------------


def spawn(
    remote: Remote, id: int, body: int, function: Any, args: Any, kwargs: Any, options: Any, after: Any, around: Any
) -> None:
    """A task was spawned there: it is made here, in the scheduler of its parent, and submitted."""
    flight = remote.flights.get(body)
    parent = None if flight is None else flight.task
    try:
        core = _core_of(parent)
    except Exception as none:  # it can't be started: its settings are wrong, there are no threads
        summary = (id, "a task", ())
        failure = (*error_bytes(none, remote.handles), summary, True, "", summary)
        remote.say((ENDED, id, AS_ERROR, failure))
        return
    context = _context_of(parent)
    error: BaseException | None = None
    task: DTask
    try:
        f, values, named, wanted, deps = _read(remote, function, args, kwargs, options, after)
        context.run(surroundings.enter, around)
        context.run(telling.enter, parent)
        task = new_task(id, f, values, named, wanted, deps, context.copy(), core)
    except BaseException as unreadable:  # of a user's pickling: whatever it is, this task's alone
        task = new_task(id, _unreadable, (), None, DEFAULT, (), context.copy(), core)
        text = f"task {id} of worker {remote.worker} can't be read here: {type(unreadable).__name__}: {unreadable}"
        error = unreadable if isinstance(unreadable, InvalidOptionError) else InvalidOptionError(text)
    remote.borrows.lend(task)
    if error is None:
        try:
            context.run(core.driver.submit, task)
        except BaseException as refused:  # a hook of the log
            error = refused
    if error is not None:
        fail(core, task, error)
    elif core.halted is not None:  # it went down meanwhile, perhaps without seeing this one
        fail(core, task, core.halted, direct=True)


def _unreadable() -> None:
    """Stands for the function of a task that could not be read."""


def _core_of(parent: DTask | None) -> Core:
    if parent is not None and parent._core.halted is None:
        return parent._core
    return UPSTAIRS.eager()


def _context_of(parent: DTask | None) -> contextvars.Context:
    """What the submission, and a body here, see around them: what the parent would have given it on a thread."""
    inherited = None if parent is None else parent._context
    context = contextvars.Context() if inherited is None else inherited.copy()
    if parent is not None:
        context.run(enter, parent)
        context.run(scoped_options.set, None)
    return context


def _read(remote: Remote, function: Any, args: Any, kwargs: Any, options: Any, after: Any) -> tuple[Any, ...]:
    deps: list[DTask] = []
    wanted: Options = DEFAULT if options is None else made(loads(options))
    as_they_are = bool(wanted.meta)

    def value_of(item: Any) -> Any:
        if type(item) is not tuple:
            return item
        if len(item) == INPUT:
            task = remote.borrows.task(item[0])
            deps.append(task)
            return task
        if len(item) != KEPT and (item[3] or as_they_are):
            return loads(item[0])
        is_kept = len(item) == KEPT
        handle: DRef = remote.values.handle(remote, item, None) if is_kept else PackedDRef(item, None)
        return new_chunk(handle, OSProc(remote.worker), None, handle.type, UnitDomain())

    positional = tuple([value_of(item) for item in args])
    f = value_of(function[0]) if type(function) is tuple else remote.their_functions.get(function)
    named = None if kwargs is None else {name: value_of(item) for name, item in kwargs.items()}
    deps += [remote.borrows.task(id) for id in after]
    return f, positional, named, wanted, tuple(deps)


# ---- waits -----------------------------------------------------------------------------------------------


def waits(remote: Remote, body: int, wanted: int) -> None:
    """A body waits for a task: it is told where that could never end."""
    flight = remote.flights.get(body)
    if flight is None:
        return
    try:
        flight.waits = True
        remote.borrows.waiting.add(flight.task)
        UPSTAIRS.begin_wait(flight.task, remote.borrows.task(wanted))
    except BaseException as error:
        remote.say((REFUSED, body, wanted, *error_bytes(error, remote.handles)))


def waited(remote: Remote, body: int, wanted: int) -> None:
    """It stopped waiting for it before it was done."""
    flight = remote.flights.get(body)
    lent = remote.borrows.tasks.get(wanted)
    if flight is not None and lent is not None:
        UPSTAIRS.end_wait(flight.task, lent.thing)


def paused(remote: Remote, body: int) -> None:
    """A body needs no slot for now: others may be given in its place."""
    flight = remote.flights.get(body)
    if flight is not None and not flight.paused:
        remote.ahead_ns -= flight.expected_ns
        flight.expected_ns = 0.0
        flight.paused = True
        remote.paused += 1


def resumed(remote: Remote, body: int) -> None:
    """It goes on."""
    flight = remote.flights.get(body)
    if flight is not None and flight.paused:
        flight.paused = False
        remote.paused -= 1


# ---- questions -------------------------------------------------------------------------------------------


def answer(remote: Remote, number: int, what: str, body: int, data: bytes) -> None:
    """A body, or other code there, asks for something: at once where that can't take long, else on a thread."""
    flight = remote.flights.get(body)
    task = None if flight is None else flight.task
    borrows = remote.borrows
    try:
        given = loads(data)
        if what == "value":
            handle = borrows.value_of(*given)
            if type(handle) is RemoteDRef or not may_wait(handle):
                remote.values.want_for(remote, handle, lambda: _answer_value(remote, number, handle))
                return
            what, given = "read", (handle,)
        elif what == "chunk":
            borrows.answered.append((number, borrows.chunk_of(*given), None))
            return
    except BaseException as unreadable:  # of a user's pickling: whatever it is
        borrows.answered.append((number, None, unreadable))
        return
    name = f"dagger-answer-{number}"
    asked = (remote, number, what, task, given)
    refusal = start_service(threading.Thread(target=_find_out, args=asked, name=name, daemon=True))
    if refusal is not None:
        borrows.answered.append((number, None, InvalidOptionError(f"the head can't answer: {refusal}")))


def _answer_value(remote: Remote, number: int, handle: DRef) -> None:
    remote.borrows.answered.append((number, handle, None))
    remote.borrows.poke()


def _find_out(remote: Remote, number: int, what: str, task: DTask | None, given: tuple[Any, ...]) -> None:
    borrows = remote.borrows
    try:
        value: Any = _read_value(*given) if what == "read" else UPSTAIRS.answers[what](task, *given)
        borrows.answered.append((number, value, None))
    except BaseException as error:  # whatever it is, who asked gets it
        borrows.answered.append((number, None, error))
    borrows.poke()


def _read_value(handle: DRef) -> Any:
    return read(handle)
