"""Dynamic control: what a body may ask of the scheduler that runs it, through `sch_handle()`.

Requests are done at once, in the body's thread, one at a time for each scheduler, and never under its lock:
what `exec` is given may itself spawn, fetch or ask for more.

See docs/scheduling.md; upstream: https://juliaparallel.org/Dagger.jl/dev/dynamic/.
"""

from __future__ import annotations

import concurrent.futures
import gc
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import DynamicThunkError, InvalidOptionError, RemoteTaskError, SchedulerHaltedError
from . import api as _api
from .fetching import fetch, resolve_future, wait
from .options.declaring import is_option
from .options.options import Options
from .service import head
from .tasks.atomics import subscribe
from .tasks.dtask import DONE, DTask
from .tasks.environment import must_be_in_task

if TYPE_CHECKING:
    from .core.machine import Core

__all__ = ["SchedulerHandle", "ThunkID", "sch_handle"]


class ThunkID:
    """The number of a task, as dynamic control names it. Equal and hashable by number.

    One that came from the scheduler keeps its task, so that its result can be fetched as often as one likes.
    """

    __slots__ = ("_task", "id")

    def __init__(self, id: int, task: DTask | None = None) -> None:
        self.id = id
        self._task = task

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ThunkID) and self.id == other.id

    def __hash__(self) -> int:
        return hash((ThunkID, self.id))

    def __repr__(self) -> str:
        return f"ThunkID({self.id})"


class SchedulerHandle:
    """The scheduler, as seen from the body of one task. Usable from any thread, while the scheduler runs."""

    def __init__(self, task: DTask) -> None:
        self._task = task
        self._core: Core = task._core

    @property
    def thunk_id(self) -> ThunkID:
        """The task whose body this is."""
        return ThunkID(self._task.id, self._task)

    def exec(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(context, state, task, caller's task id, args)`, called by the scheduler; its value.

        `state` is what `eager_state()` gives. Calls of one scheduler exclude each other, so that `fn` must not
        wait for a task that makes such a call. What it raises comes back as `RemoteTaskError`.
        """
        if head.link is not None:
            return head.link.ask("exec", fn, args)
        with self._core.requests:
            self._check_running()
            try:
                return fn(self._core.context, self._core, self._task, self._task.id, args)
            except Exception as error:
                raise RemoteTaskError(1, error, traceback.format_exc()) from error

    def add_thunk(
        self, f: Any, *args: Any, future: concurrent.futures.Future[Any] | None = None, **options: Any
    ) -> ThunkID:
        """Add a task that calls `f(*args)`; its `ThunkID`. `ThunkID`s among the arguments are inputs.

        Keywords that are names of options are options, others are keyword arguments of `f`. `future` gets
        the outcome.
        """
        self._check_running()
        plain = tuple(self._known(value) for value in args)
        named = {name: self._known(v) for name, v in options.items() if not is_option(name)}
        given = {name: value for name, value in options.items() if is_option(name)}
        task = _api.launch(self._core, self._known(f), plain, named, Options(**given) if given else None)
        if future is not None:
            self.register_future(ThunkID(task.id, task), future, check=False)
        return ThunkID(task.id, task)

    def fetch(self, id: ThunkID) -> Any:
        """The value of a task, once it is done; raises what `fetch` raises, `DynamicThunkError` for a deadlock."""
        return fetch(self._checked(id))

    def wait(self, id: ThunkID) -> None:
        """Wait until a task is done; raises `DynamicThunkError` for a deadlock."""
        wait(self._checked(id))

    def register_future(self, id: ThunkID, future: concurrent.futures.Future[Any], check: bool = True) -> None:
        """Have a future set to the outcome of a task; `check`: refuse what waiting for would be a deadlock."""
        task = self._checked(id) if check else self._find(id)
        if not subscribe(task, lambda: resolve_future(task, future)):
            resolve_future(task, future)

    def get_dag_ids(self) -> dict[ThunkID, set[ThunkID]]:
        """Each known task of this scheduler and the unfinished tasks that still depend on it.

        Known are those that are unfinished, finished ones that somebody still refers to, and all of a batch run.
        """
        if head.link is not None:
            known: dict[ThunkID, set[ThunkID]] = head.link.ask("get_dag_ids")
            return known
        alive = _alive(self._core)
        found: dict[ThunkID, set[ThunkID]] = {ThunkID(id): set() for id in self._core.batch if id not in alive}
        found.update({ThunkID(task.id, task): set() for task in alive.values()})
        for task in alive.values():
            if task._state < DONE:
                for up in task._deps:
                    found[ThunkID(up.id)].add(ThunkID(task.id, task))
        return found

    def halt(self) -> None:
        """Stop the scheduler: a batch run raises `SchedulerHaltedError`, as do fetches of unfinished tasks."""
        if head.link is not None:
            head.link.ask("halt")
            return
        self._core.context.shutdown(SchedulerHaltedError("the scheduler was halted by a task"), timeout_s=0.0)

    # ---- who is meant ----------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._core.halted is not None:
            raise SchedulerHaltedError("the scheduler of this handle has ended")

    def _known(self, value: Any) -> Any:
        return self._find(value) if isinstance(value, ThunkID) else value

    def _find(self, id: Any) -> DTask:
        if isinstance(id, DTask):
            return id
        if not isinstance(id, ThunkID):
            raise InvalidOptionError(f"a ThunkID is needed here, not {id!r}")
        if head.link is not None and id._task is None:
            found: DTask = head.link.ask("find", id.id)
            return found
        task = id._task or (self._task if id.id == self._task.id else _alive(self._core).get(id.id))
        if task is None:
            raise InvalidOptionError(f"{id!r} is no task that is known here: keep the ThunkID that add_thunk returned")
        return task

    def _checked(self, id: Any) -> DTask:
        """The task, if waiting for it can end: it is neither the caller nor downstream of it."""
        task = self._find(id)
        if head.link is not None:
            head.link.ask("check", task)
            return task
        if task is self._task:
            raise DynamicThunkError(f"task {task.id} can't wait for itself", "self_fetch")
        if task._state < DONE and _depends_on(task, self._task):
            raise DynamicThunkError(f"task {task.id} waits for task {self._task.id}, which asks for it", "dominated")
        return task


def sch_handle() -> SchedulerHandle:
    """The scheduler that runs this body. Raises `ConcurrencyViolationError` outside of bodies."""
    return SchedulerHandle(must_be_in_task("sch_handle()"))


def _alive(core: Core) -> dict[int, DTask]:
    """The tasks of a scheduler that exist, by id. There is no table of tasks, and nobody pays for one: a search."""
    found = {task.id: task for task in gc.get_objects() if type(task) is DTask and task._core is core}
    found.update({task.id: task for task in core.unfinished()})
    return found


def _depends_on(task: DTask, upstream: DTask) -> bool:
    stack, seen = [task], {task.id}
    while stack:
        for up in stack.pop()._deps:
            if up is upstream:
                return True
            if up.id not in seen and up._state < DONE:
                seen.add(up.id)
                stack.append(up)
    return False
