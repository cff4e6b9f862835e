"""What bodies in a worker want of the head: tasks that they spawn, waits, and all that they ask for.

See docs/workers.md, and `dagger/processes/requests.py` for the other end.
"""

from __future__ import annotations

import itertools
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from ..dagger.bodies.ending import fail, release_inputs
from ..dagger.fetching import Once, slot_given_back
from ..dagger.options.options import DEFAULT
from ..dagger.processes.functions import NumberedFunctions
from ..dagger.processes.wire import ASK, SPAWN, WAITED, WAITS, dumps, error_of, pack
from ..dagger.service import surroundings
from ..dagger.service.head import Refusable
from ..dagger.tasks.dtask import LAUNCHED, DTask
from ..dagger.tasks.environment import running_task
from ..errors import InvalidOptionError
from .proxies import Proxies

if TYPE_CHECKING:
    from .link import Link

__all__ = ["Requests"]

FLUSH_AT = 64
"""So many messages of bodies wait at most for others to leave with."""


class _Question:
    """Somebody waits for an answer."""

    __slots__ = ("end", "lock", "ok", "what")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.lock.acquire()
        self.end = Once(self.lock.release)
        """Ends the wait: called by the answer, and by an interrupt of the body."""
        self.ok: bool | None = None
        self.what: Any = None


class Requests:
    """The head, as bodies see it (`service/head.py`). Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.proxies = Proxies(link.core, link.handles, link.say_along, link.store.chunk_item)
        self._functions = NumberedFunctions(link.handles, link.say_along)
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._waits: dict[tuple[int, int], list[Refusable]] = {}

    # ---- spawn -------------------------------------------------------------------------------------------

    def spawn(self, task: DTask) -> None:
        """The head is to run this. A task that can't be sent fails."""
        link, body = self._link, running_task()
        task._state = LAUNCHED
        try:
            message = self._spawn_message(task, 0 if body is None else body.id)
        except BaseException as error:  # of a user's pickling: whatever it is, this task's alone
            text = f"task {task.id} can't be sent to the head: {type(error).__name__}: {error}"
            fail(link.core, task, error if isinstance(error, InvalidOptionError) else InvalidOptionError(text))
            return
        self.proxies.adopt(task)
        link.say_soon(message)
        f = task._f
        release_inputs(task)  # not before that was said: the head is told when handles go
        task._f = f  # for its repr
        if len(link._out) >= FLUSH_AT:
            link.flush()

    def _spawn_message(self, task: DTask, body: int) -> Any:
        link = self._link
        function: Any = self._functions.number_of(task._f, link.say_along)
        if function is None:
            function = (self._item(task._f),)
        args = tuple([self._item(value) for value in task._args])
        kwargs = None
        if task._kwargs:
            kwargs = {name: self._item(value) for name, value in task._kwargs.items()}
        options: Any = None
        after: tuple[int, ...] = ()
        if task._deps:
            given = {id(value) for value in (task._f, *task._args, *(task._kwargs or {}).values())}
            after = tuple([one.id for one in task._deps if id(one) not in given])
        if task._options is not DEFAULT:
            kept = {name: value for name, value in task._options.__dict__.items() if name != "syncdeps"}
            options = dumps(kept, link.handles)[0] if kept else None
        around = surroundings.written(lambda value: dumps(value, link.handles)[0]) if surroundings.travel() else None
        return (SPAWN, task.id, body, function, args, kwargs, options, after, around)

    def _item(self, value: Any) -> Any:
        if type(value) is DTask:
            return (value.id,)
        return self._link.store.kept_item(value) or pack(value, self._link.handles)

    def ended(self, id: int, how: int, what: Any) -> None:
        """A task ended in the head."""
        self.proxies.ended(id, how, what)

    # ---- waits -------------------------------------------------------------------------------------------

    def begin_wait(self, body: int, task: int, wait: Refusable) -> None:
        """As `Head` says."""
        self._waits.setdefault((body, task), []).append(wait)
        self._link.say_soon((WAITS, body, task))

    def end_wait(self, body: int, task: int, wait: Refusable, done: bool) -> None:
        """As `Head` says."""
        waits = self._waits.get((body, task), [])
        if wait in waits:
            waits.remove(wait)
        if not waits:
            self._waits.pop((body, task), None)
        if not done:
            self._link.say_soon((WAITED, body, task))
            self._link.flush()

    def refused(self, body: int, task: int, data: bytes, text: str) -> None:
        """The head refuses a wait."""
        for wait in list(self._waits.get((body, task), ())):
            wait.refused = error_of(1, data, text)
            wait.notify()

    # ---- questions ---------------------------------------------------------------------------------------

    def ask(self, what: str, *given: Any) -> Any:
        """As `Head` says."""
        link, body = self._link, running_task()
        if link.core.halted is not None:  # in a process that a body forked
            raise link.core.halted
        try:
            data, _ = dumps(given, link.handles)
        except Exception as error:
            text = f"what the head is asked can't be sent: {type(error).__name__}: {error}"
            raise InvalidOptionError(text) from error
        number, question = next(self._numbers), _Question()
        self._questions[number] = question
        try:
            link._out.append((ASK, number, what, 0 if body is None else body.id, data))
            with slot_given_back(question.end):
                link.flush()
                question.lock.acquire()
        finally:
            self._questions.pop(number, None)
        if question.ok is None:
            raise AssertionError("a question was ended and its body was not")
        if not question.ok:
            raise error_of(1, *question.what)
        return question.what.value

    def answered(self, number: int, ok: bool, what: Any) -> None:
        """The answer is here. Handles in it are read now: the head may take back what nobody has."""
        question = self._questions.get(number)
        try:
            if ok:
                what = self._link.store.handle(what)
        except BaseException as error:
            ok, what = False, (dumps(InvalidOptionError(f"an answer can't be read: {error}"), {})[0], "")
        if question is not None:
            question.ok, question.what = ok, what
            question.end()
