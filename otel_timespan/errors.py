"""Every exception of the package, in one place.

    TimespanError
     ├─ InvalidOptionError(ValueError)          an option, keyword or setting has a value that can't work
     │   └─ OptionNotSetError(KeyError)         get_options of an option that is not set
     ├─ NotCallableError(TypeError)             something that can't be called was given to be called
     ├─ MissingExtraError(ImportError)          an optional library is not installed
     ├─ LogNotKeptError                         events were asked of a sink that keeps none
     ├─ LogFormatError(ValueError)              a log file is damaged, truncated or not ours
     ├─ ConcurrencyViolationError(RuntimeError) an operation in a state that does not allow it
     ├─ FetchTimeoutError(TimeoutError)         a wait ended before the task did; the task goes on
     ├─ TaskTimeoutError(TimeoutError)          a body ran longer than its option `timeout` allows
     ├─ SchedulingError(reason, code)           a task has no place to run
     │   ├─ NestingError(RecursionError)        too many bodies blocked inside each other
     │   └─ NoWorkersError(AssertionError)      a batch run lost its last worker
     ├─ SchedulerHaltedError                    the scheduler was halted
     ├─ DynamicThunkError(reason, code)         dynamic control would deadlock
     ├─ DTaskFailedError(task, root, ex)        what a fetch of a failed task raises
     │   └─ DTaskCancelledError(CancelledError) ... when the root was cancelled
     ├─ RemoteTaskError(worker, exc, text)      an exception that crossed a process
     ├─ WorkerLostError(worker)                 a worker process died
     │   └─ SingleWorkerLostError(AssertionError)
     ├─ StorageError(OSError)                   a value can't be stored or read back
     ├─ NoPieceError(KeyError)                  a shard has no piece for the processor that runs a task
     ├─ StreamClosed                            put or take on a closed stream
     └─ TaskCancelled(CancelledError)           what a cancelled task carries

All of them survive pickling: the arguments of the constructor are the `args` of the exception.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

__all__ = [
    "ConcurrencyViolationError",
    "DTaskCancelledError",
    "DTaskFailedError",
    "DynamicThunkError",
    "FetchTimeoutError",
    "InvalidOptionError",
    "LogFormatError",
    "LogNotKeptError",
    "MissingExtraError",
    "NestingError",
    "NoPieceError",
    "NoWorkersError",
    "NotCallableError",
    "OptionNotSetError",
    "RemoteTaskError",
    "SchedulerHaltedError",
    "SchedulingError",
    "SingleWorkerLostError",
    "StorageError",
    "StreamClosed",
    "TaskCancelled",
    "TaskTimeoutError",
    "TimespanError",
    "WorkerLostError",
    "unwrap_exception",
]


class TimespanError(Exception):
    """Base of every error that this package raises by itself."""


class InvalidOptionError(TimespanError, ValueError):
    """An option, keyword or setting has a name or a value that can't work."""


class OptionNotSetError(InvalidOptionError, KeyError):
    """`get_options(key)` of an option that no `with_options` set."""

    __str__ = Exception.__str__  # a KeyError's would put the text in quotes


class NotCallableError(TimespanError, TypeError):
    """Something that can't be called was given to be called."""


class MissingExtraError(TimespanError, ImportError):
    """An optional library is not installed; the text names the extra that brings it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(library, extra)
        self.library, self.extra = library, extra

    def __str__(self) -> str:
        return f"{self.library} is not installed: pip install 'otel-timespan[{self.extra}]'"


class LogNotKeptError(TimespanError):
    """Events were asked of a sink that hands them on and keeps none."""


class LogFormatError(TimespanError, ValueError):
    """A log file is damaged, truncated, of an unknown version or not ours."""


class ConcurrencyViolationError(TimespanError, RuntimeError):
    """An operation that the object's present state does not allow."""


# One class since Python 3.11.
_TIMEOUTS: tuple[type[Exception], ...] = tuple(dict.fromkeys((TimeoutError, concurrent.futures.TimeoutError)))


class FetchTimeoutError(TimespanError, *_TIMEOUTS):  # type: ignore[misc]
    """A wait with a timeout ended before the task did. The task goes on; fetch it again."""


class TaskTimeoutError(TimespanError, TimeoutError):
    """A body ran longer than the option `timeout` of its task allows; it was abandoned."""


class SchedulingError(TimespanError):
    """A task has no place to run.

    `code` is stable: no_processors, arg_scope, compute_result_scope, datadeps_scope, exited,
    inconsistent, nesting, no_threads.
    """

    def __init__(self, reason: str, code: str = "inconsistent") -> None:
        super().__init__(reason, code)
        self.reason, self.code = reason, code

    def __str__(self) -> str:
        return f"{self.reason} [{self.code}]"


class NestingError(SchedulingError, RecursionError):
    """Too many bodies wait inside each other; restructure, or raise the limit."""


class NoWorkersError(SchedulingError, AssertionError):
    """No worker is left that could run the tasks of a batch run."""


class SchedulerHaltedError(TimespanError):
    """The scheduler was halted while the operation was under way."""


class DynamicThunkError(TimespanError):
    """A fetch from inside the scheduler that could never end; `code`: self_fetch, dominated."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(reason, code)
        self.reason, self.code = reason, code

    def __str__(self) -> str:
        return f"{self.reason} [{self.code}]"


class TaskCancelled(TimespanError, concurrent.futures.CancelledError):  # noqa: N818 - a public name
    """What a cancelled task carries."""


class StorageError(TimespanError, OSError):
    """A value can't be stored or read back; the text says which and why. Nothing in memory was lost."""


class NoPieceError(TimespanError, KeyError):
    """A `Shard` has no piece for the processor that runs a task, nor for one above it."""

    __str__ = Exception.__str__  # a KeyError's would put the text in quotes


class StreamClosed(TimespanError):  # noqa: N818 - a public name
    """`put` on a closed or `take` on a closed and empty stream."""


class WorkerLostError(TimespanError):
    """A worker process died and what it held can't be had again."""

    def __init__(self, worker: int) -> None:
        super().__init__(worker)
        self.worker = worker

    def __str__(self) -> str:
        return f"worker {self.worker} died"


class SingleWorkerLostError(WorkerLostError, AssertionError):
    """The one worker that the run was bound to died."""


class RemoteTaskError(TimespanError):
    """An exception that was raised in another process; `traceback_text` is its stack there."""

    def __init__(self, worker: int, exc: BaseException, traceback_text: str = "") -> None:
        super().__init__(worker, exc, traceback_text)
        self.worker, self.exc, self.traceback_text = worker, exc, traceback_text

    def __str__(self) -> str:
        return f"on worker {self.worker}: {type(self.exc).__name__}: {self.exc}"


class DTaskFailedError(TimespanError):
    """A task failed: `task` is the one that was asked for, `root` the one that raised, `ex` what it raised.

    `task` and `root` are summaries (`TaskSummary`): they hold text, never live objects.
    """

    def __init__(self, task: Any, root: Any, ex: BaseException) -> None:
        super().__init__(task, root, ex)
        self.task, self.root, self.ex = task, root, ex

    def __str__(self) -> str:
        inner = unwrap_exception(self.ex)
        lines = [f"DTaskFailedError: root exception {type(inner).__name__}:", f"  {_text_of(inner)}"]
        if self.root.id != self.task.id:
            lines.append(f"Root Task:  {self.root}")
        lines.append(f"This Task:  {self.task}")
        notes = getattr(self, "notes_text", "")
        return "\n".join(lines) + (f"\n{notes}" if notes else "")


class DTaskCancelledError(DTaskFailedError, concurrent.futures.CancelledError):
    """The `DTaskFailedError` of a task whose root was cancelled; a `CancelledError` too."""


def _text_of(error: BaseException) -> str:
    """The text of the user's exception, which may be one that can't be printed."""
    try:
        return str(error)
    except Exception as broken:
        return f"<its text raised {type(broken).__name__}>"


def unwrap_exception(error: BaseException) -> BaseException:
    """The innermost exception: without `DTaskFailedError` and `RemoteTaskError` around it."""
    while True:
        if isinstance(error, DTaskFailedError):
            error = error.ex
        elif isinstance(error, RemoteTaskError):
            error = error.exc
        else:
            return error
