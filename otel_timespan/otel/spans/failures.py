"""What leaves the process of a failure: the exception's type, message and stack, cut at a limit.

Never our own text with a task's arguments in it.
"""

from __future__ import annotations

import traceback
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from ...errors import DTaskFailedError, RemoteTaskError, WorkerLostError, unwrap_exception
from ...timespans.codec import LoggedObject
from .. import semconv
from .spandata import EventData
from .values import plain_text

__all__ = [
    "LOST",
    "FailureText",
    "FirstFailure",
    "describe",
    "error_type",
    "exception_event",
    "is_cancellation",
    "is_failure",
    "skip_message",
    "state_of",
]

MAX_MESSAGE = 4096
MAX_STACK = 16384
LOST = "WorkerLostError"
"""The type of the error of a body whose worker went away, and of a task that was given up for that."""


class FailureText(NamedTuple):
    """Type (qualified), message and stack of an exception as text."""

    type: str
    message: str
    stack: str


class FirstFailure(NamedTuple):
    """The task that failed first in a run: what its root says of it, and the task's span."""

    task_id: int
    function: str
    text: FailureText
    trace_id: int
    span_id: int
    trace_state: str
    flags: int

    def __str__(self) -> str:
        said = f": {self.text.message}" if self.text.message else ""
        return f"{self.function} (task {self.task_id}) raised {self.text.type}{said}"


def is_failure(result: Any) -> bool:
    """Whether a result is an exception, or what a log file kept of one."""
    return isinstance(result, (BaseException, LoggedObject))


def is_cancellation(error: Any) -> bool:
    """Whether a task, or the one it depends on, was cancelled."""
    if isinstance(error, LoggedObject):
        return error.type.rpartition(".")[2] in ("TaskCancelled", "CancelledError", "DTaskCancelledError")
    return isinstance(error, CancelledError)


def state_of(result: Any) -> str:
    """What became of a task with that result: success, failure or cancellation."""
    if not is_failure(result):
        return "success"
    return "cancellation" if is_cancellation(result) else "failure"


def error_type(error: Any) -> str:
    """The qualified name of the innermost exception's type, as the SDK writes it."""
    if isinstance(error, LoggedObject):
        name = plain_text(error.type).removeprefix("builtins.")
        return LOST if name.endswith("WorkerLostError") else name
    kind = type(unwrap_exception(error))
    if issubclass(kind, WorkerLostError):  # nobody raised it: what happened has this name
        return LOST
    name, module = plain_text(kind.__qualname__), plain_text(kind.__module__)
    return name if module == "builtins" else f"{module}.{name}"


def describe(error: Any) -> FailureText:
    """Of an exception, or of what a log file kept of one (no stack). Never raises, whatever its methods do."""
    if isinstance(error, LoggedObject):
        return FailureText(error_type(error), cut(plain_text(error.text), MAX_MESSAGE), "")
    inner = unwrap_exception(error)
    if isinstance(inner, WorkerLostError):
        return FailureText(LOST, cut(_message(inner), MAX_MESSAGE), "")
    return FailureText(error_type(error), cut(_message(inner), MAX_MESSAGE), cut(_stack(error, inner), MAX_STACK))


def exception_event(text: FailureText, time_ns: int) -> EventData:
    """The span event `exception` of the semantic conventions."""
    return EventData(
        "exception",
        time_ns,
        {
            semconv.EXCEPTION_TYPE: text.type,
            semconv.EXCEPTION_MESSAGE: text.message,
            semconv.EXCEPTION_STACKTRACE: text.stack,
        },
    )


def skip_message(error: Any) -> str:
    """Why a task never ran."""
    root = getattr(error, "root", None) if isinstance(error, DTaskFailedError) else None
    return f"upstream task {root.id} failed" if root is not None else "an upstream task failed"


def cut(text: str, limit: int) -> str:
    """At most `limit` characters: the beginning, a mark, and the end, which says most."""
    if len(text) <= limit:
        return text
    head = limit // 4
    mark = "\n... [cut] ...\n"
    return text[:head] + mark + text[head + len(mark) - limit :]


def _message(error: BaseException) -> str:
    try:
        return plain_text(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # a __str__ of the user's may raise anything
        return f"<no message: str() raised {type(broken).__name__}>"


def _stack(error: BaseException, inner: BaseException) -> str:
    if isinstance(error, DTaskFailedError):
        error = error.ex
    if isinstance(error, RemoteTaskError) and error.traceback_text:
        return plain_text(error.traceback_text)
    try:
        return plain_text("".join(traceback.format_exception(type(inner), inner, inner.__traceback__)))
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # of a __str__, a __notes__, a chain of causes
        return f"<no stack: formatting raised {type(broken).__name__}>"
