"""What an `Executor` with processes has of its own: what is asked of it, groups of calls, errors as a pool's.

See docs/workers.md.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any

from ..errors import InvalidOptionError, RemoteTaskError, TaskCancelled, WorkerLostError, unwrap_exception
from .bodies.ending import fail
from .control import cancel_task
from .core.limits import set_limit
from .options.options import Options
from .service import head
from .tasks.dtask import DTask

__all__ = ["Group", "Prepared", "as_raised", "broken", "check_settings", "drop", "limited"]


class Group(functools.partial):  # type: ignore[type-arg]
    """Calls a function once for each `width` arguments: several calls in one task. The list of results.

    A `partial`, so that everybody who describes functions sees the user's; `__spawned__` is what the user gave.
    """

    __spawned__: Callable[..., Any]
    width: int

    @classmethod
    def of(cls, f: Callable[..., Any], width: int) -> Group:
        """One for this function."""
        group = cls(f)
        group.__spawned__, group.width = f, width
        return group

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """The list of results."""
        f, width = self.__spawned__, self.width
        return [f(*args[n : n + width]) for n in range(0, len(args), width)]

    def __reduce__(self) -> Any:
        return Group.of, (self.__spawned__, self.width)


class Prepared(functools.partial):  # type: ignore[type-arg]
    """What an executor's call becomes that goes to a worker: the initializer, once a thread there, then the function.

    `number`: the executor's.
    """

    __spawned__: Callable[..., Any]
    number: int
    initializer: Callable[..., Any] | None
    initargs: tuple[Any, ...]

    @classmethod
    def of(cls, f: Any, width: int, number: int, initializer: Any, initargs: tuple[Any, ...]) -> Any:
        """One for this function; the function itself where there is no initializer."""
        called = Group.of(f, width) if width else f
        if initializer is None:
            return called
        made = cls(called)
        made.__spawned__, made.number, made.initializer, made.initargs = f, number, initializer, initargs
        return made

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Prepare this thread, if it is not; then call."""
        if self.number not in _prepared.of:
            assert self.initializer is not None
            try:
                self.initializer(*self.initargs)
            except BaseException as error:
                raise broken(f"the initializer failed: {type(error).__name__}: {error}") from error
            _prepared.of.add(self.number)
        return self.func(*args, **kwargs)


class _PreparedThread(threading.local):
    """For which executors a thread was prepared, by number."""

    def __init__(self) -> None:
        self.of: set[int] = set()


_prepared = _PreparedThread()


def drop(task: DTask) -> None:
    """The future of a task was cancelled, and its body has not begun."""
    if head.link is not None:
        cancel_task(task, graceful=True)
    else:
        fail(task._core, task, TaskCancelled(f"task {task.id} was cancelled"), "cancellation")


def limited(number: int, most: int, options: Options | None) -> tuple[str, Options]:
    """For an executor in a body on a worker: `most` of its bodies at once, wherever they run. The limit and options."""
    name = f"executor {number:x}"
    set_limit(name, most)
    made = Options() if options is None else options.copy()
    made.limit = (*(made.limit or ()), name)
    return name, made


def check_settings(processes: Any, max_workers: Any, context: Any, mp_context: Any, max_tasks: Any) -> None:
    """Raise `InvalidOptionError` for what an executor with, or without, processes can't do."""
    if processes is None:
        for name, value in (("mp_context", mp_context), ("max_tasks_per_child", max_tasks)):
            if value is not None:
                raise InvalidOptionError(f"{name} is for processes: give processes=, too; without it there are threads")
        return
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InvalidOptionError(f"processes or max_workers must be greater than 0: an int, or None, not {processes!r}")
    if max_workers not in (None, processes):
        raise InvalidOptionError(f"there are processes={processes} workers, and not max_workers={max_workers!r}")
    if context is not None:
        raise InvalidOptionError("give processes or context, not both: Context(workers=n) has workers of its own")
    method = None if mp_context is None else getattr(mp_context, "get_start_method", lambda: repr(mp_context))()
    if method not in (None, "spawn", "forkserver"):
        raise InvalidOptionError(
            f"mp_context says {method}: workers begin as fresh interpreters, like those of multiprocessing's "
            '"spawn", and are never forked'
        )
    if max_tasks is not None:
        raise InvalidOptionError("max_tasks_per_child: workers live as long as their executor; leave it out")


def as_raised(error: BaseException) -> BaseException:
    """What a body raised in a worker, with its stack there as the cause: as from a ProcessPoolExecutor.

    That its workers died again and again is said as a process pool says it, of this call only.
    """
    if isinstance(error, WorkerLostError):
        made = broken(str(error))
        made.__cause__ = error
        return made
    if not isinstance(error, RemoteTaskError):
        return error
    from concurrent.futures.process import _RemoteTraceback  # its name is what programs see in their logs

    raised = unwrap_exception(error)
    if raised.__cause__ is None:
        cause: Any = _RemoteTraceback
        raised.__cause__ = cause(f'\n"""\n{error.traceback_text}"""')
    return raised


def broken(reason: str) -> BrokenExecutor:
    """The error of a pool that has no workers."""
    from concurrent.futures.process import BrokenProcessPool

    return BrokenProcessPool(reason)
