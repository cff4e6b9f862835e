"""What an `Executor` with processes has of its own: what is asked of it, groups of calls, errors as a pool's.

See docs/workers.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any

from ..errors import InvalidOptionError, RemoteTaskError, WorkerLostError, unwrap_exception

__all__ = ["Group", "as_raised", "broken", "check_settings"]


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
