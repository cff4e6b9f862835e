"""Every exception of the package, in one place.

    TimespanError
     ├─ InvalidOptionError(ValueError)          an option, keyword or setting has a value that can't work
     │   └─ OptionNotSetError(KeyError)         get_options of an option that is not set
     ├─ NotCallableError(TypeError)             something that can't be called was given to be called
     ├─ MissingExtraError(ImportError)          an optional library is not installed
     ├─ LogNotKeptError                         events were asked of a sink that keeps none
     ├─ LogFormatError(ValueError)              a log file is damaged, truncated or not ours
     ├─ UnreadRowsError(TypeError)              rows of a fetched log were read past the methods of a list
     ├─ ConcurrencyViolationError(RuntimeError) an operation in a state that does not allow it
     ├─ FetchTimeoutError(TimeoutError)         a wait ended before the task did; the task goes on
     ├─ TaskTimeoutError(TimeoutError)          a body ran longer than its option `timeout` allows
     ├─ SchedulingError(reason, code)           a task has no place to run
     │   ├─ NestingError(RecursionError)        too many bodies blocked inside each other
     │   └─ NoWorkersError(AssertionError)      a batch run lost its last worker
     ├─ SchedulerHaltedError                    the scheduler was halted
     ├─ DynamicThunkError(reason, code)         dynamic control would deadlock
     ├─ DTaskFailedError(task, root, ex)        what a fetch of a failed task raises; of the body's class, too
     │   └─ DTaskCancelledError(CancelledError) ... when the root was cancelled
     ├─ RemoteTaskError(worker, exc, text)      an exception that crossed a process
     ├─ UnpicklableError(type_name, text)       stands for an exception that can't be pickled
     ├─ WorkerLostError(worker)                 a worker process died
     │   └─ SingleWorkerLostError(AssertionError)
     ├─ StorageError(OSError)                   a value can't be stored or read back
     ├─ NoPieceError(KeyError)                  a shard has no piece for the processor that runs a task
     ├─ StreamClosed                            put or take on a closed stream
     └─ TaskCancelled(CancelledError)           what a cancelled task carries

All of them survive copying and pickling: the arguments of the constructor are the `args` of the exception, and what a
body raised comes out of it as nearly as can be.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

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
    "UnpicklableError",
    "UnreadRowsError",
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


class UnreadRowsError(TimespanError, TypeError):
    """A function in C took a stream of a fetched log for a plain list; give it `list(stream)`."""


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
    """A worker process died, and what it held or ran can't be had again.

    `worker`: its id; `task`: the id of the task that was lost with it, or None; `losses`: of that task, (worker,
    attempt, how it ended) for each worker that died while it ran the body, this one last; `reason`: the text.
    """

    def __init__(
        self,
        worker: int,
        reason: str = "",
        task: int | None = None,
        losses: tuple[tuple[int, int, str], ...] = (),
    ) -> None:
        super().__init__(worker, reason, task, losses)
        self.worker, self.reason, self.task, self.losses = worker, reason, task, losses

    def __str__(self) -> str:
        return self.reason or f"worker {self.worker} died"


class SingleWorkerLostError(WorkerLostError, AssertionError):
    """The one worker that the run was bound to died."""


class UnpicklableError(TimespanError):
    """Stands, after pickling, for an exception that can't be pickled: `type_name` and `text` were its."""

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(type_name, text)
        self.type_name, self.text = type_name, text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}"


class _CarrierError(TimespanError):
    """Holds, among its arguments, an exception of a program, which may be one that can't be copied or pickled."""

    def _like(self) -> type[_CarrierError]:
        """What makes another one."""
        return type(self)

    def __reduce__(self) -> Any:
        args = tuple(_packed(one) if isinstance(one, BaseException) else one for one in self.args)
        return _unpacked, (self._like(), args, self._said())

    def __copy__(self) -> Any:
        return _unpacked(self._like(), self.args, self._said())

    def _said(self) -> dict[str, Any]:
        """What it says beyond its arguments."""
        return {name: said for name in ("hint", "__notes__") if (said := self.__dict__.get(name))}

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__copy__()


class RemoteTaskError(_CarrierError):
    """An exception that was raised in another process; `traceback_text` is its stack there."""

    def __init__(self, worker: int, exc: BaseException, traceback_text: str = "") -> None:
        super().__init__(worker, exc, traceback_text)
        self.worker, self.exc, self.traceback_text = worker, exc, traceback_text

    def __str__(self) -> str:
        return f"on worker {self.worker}: {type(self.exc).__name__}: {self.exc}"


class DTaskFailedError(_CarrierError):
    """A task failed: `task` is the one that was asked for, `root` the one that raised, `ex` what it raised.

    `task` and `root` are summaries (`TaskSummary`): they hold text, never live objects. `__cause__` is the exception at
    the bottom of `ex`.

    It is one of that exception's class, too, so that `except ZeroDivisionError` catches what a body's division by zero
    made of its task; attributes of it can be read here. Not where that class is no `Exception`, can't be derived
    from, or ends loops (`StopIteration`).
    """

    def __new__(cls, task: Any, root: Any, ex: BaseException) -> DTaskFailedError:
        """Of the class that is both, if there is one."""
        kind = _both(type(unwrap_exception(ex))) if cls is DTaskFailedError else cls
        made: DTaskFailedError = _new(kind)
        return made

    def __init__(self, task: Any, root: Any, ex: BaseException) -> None:
        # Not by `super`: what comes next may be the constructor of a body's exception.
        BaseException.__init__(self, task, root, ex)
        self.task, self.root, self.ex = task, root, ex
        inner = unwrap_exception(ex)
        if inner is not ex:
            self._innermost = inner
        self.__cause__ = inner
        for name in self._fields:
            with contextlib.suppress(Exception):  # read-only, or not set there
                setattr(self, name, getattr(inner, name))

    def __init_subclass__(cls) -> None:
        """Not that of the body's exception, which is not to know."""

    hint = ""
    """What was perhaps meant."""

    _innermost: BaseException | None = None
    """Of `ex`, where that holds another one: bodies that fetch each other's failures may be thousands deep."""

    _fields: ClassVar[tuple[str, ...]] = ()
    """Attributes of the body's exception that are not in a `__dict__`, and so are copied."""

    def _like(self) -> type[_CarrierError]:
        return DTaskFailedError if isinstance(self, _BothError) else type(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.task}: {type(unwrap_exception(self)).__name__}>"

    def __str__(self) -> str:
        error: BaseException = self
        while isinstance(error, (DTaskFailedError, RemoteTaskError)):
            if isinstance(error, DTaskFailedError):
                root = error.root  # a body that fetches hands on what the fetched one raised
            error = error.ex if isinstance(error, DTaskFailedError) else error.exc
        lines = [f"DTaskFailedError: root exception {type(error).__name__}:", f"  {_text_of(error)}"]
        if root.id != self.task.id:
            lines.append(f"Root Task:  {root}")
        lines.append(f"This Task:  {self.task}")
        return "\n".join([*lines, self.hint] if self.hint else lines)


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
    while isinstance(error, RemoteTaskError):
        error = error.exc
    if isinstance(error, DTaskFailedError):
        return error.ex if error._innermost is None else error._innermost
    return error


# ---- a class that is both --------------------------------------------------------------------------------

_NEVER_BOTH = (StopIteration, StopAsyncIteration, concurrent.futures.CancelledError)
"""They tell whoever asks something: that a loop is over, that the waiting was cancelled."""

_classes: weakref.WeakValueDictionary[int, type[DTaskFailedError]] = weakref.WeakValueDictionary()
"""By the id of the body's class, which lives as long as the one that derives from it."""

_C_FIELDS = (types.MemberDescriptorType, types.GetSetDescriptorType)


class _BothError(DTaskFailedError):
    """Base of the classes that `_both` makes."""

    # The body's class may have its own; what is raised must behave as any exception.
    __eq__, __hash__, __bool__ = object.__eq__, object.__hash__, lambda self: True
    __setattr__, __delattr__, __getattribute__ = object.__setattr__, object.__delattr__, object.__getattribute__

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("ex")
        if inner is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(unwrap_exception(inner), name)


def _both(kind: type[BaseException]) -> type[DTaskFailedError]:
    """The class of the errors for bodies that raise a `kind`: of both classes, where there can be such a one."""
    found = _classes.get(id(kind))
    if found is not None:
        return found
    if type(kind) is not type or not issubclass(kind, Exception) or issubclass(kind, _NEVER_BOTH):
        return DTaskFailedError
    name = f"DTaskFailedError({kind.__name__})"
    foreign = [base for base in kind.__mro__ if base not in (BaseException, object)]
    fields = {name for base in foreign for name, value in vars(base).items() if isinstance(value, _C_FIELDS)}
    namespace = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": DTaskFailedError.__doc__,
        "_fields": tuple(sorted(name for name in fields if not name.startswith("__"))),
    }
    try:
        made: type[DTaskFailedError] = type(name, (_BothError, kind), namespace)
        _new(made)
    except Exception:  # final, of another layout, or made in a way of its own
        return DTaskFailedError
    return _classes.setdefault(id(kind), made)


def _new(kind: type[BaseException]) -> Any:
    """An instance on which no constructor in Python was called."""
    for base in kind.__mro__:
        new = vars(base).get("__new__")
        if isinstance(new, types.BuiltinFunctionType):
            with contextlib.suppress(TypeError):  # another one fits its layout
                return new(kind)
    raise TypeError(f"{kind.__name__} can't be made without its constructor")


# ---- pickling --------------------------------------------------------------------------------------------


class _Packed(NamedTuple):
    """An exception on its way through pickle."""

    make: Callable[..., BaseException]
    args: tuple[Any, ...]


def _packed(error: BaseException) -> Any:
    """What comes out of pickle as this exception, as nearly as can be."""
    if isinstance(error, _CarrierError):  # it sees to what it holds
        return error
    kind, text = type(error), _text_of(error)
    state = {name: value for name, value in error.__dict__.items() if _travels(value) is not None}
    args = error.args if _travels(error.args) is not None else (text,)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    for way in (_Packed(_as_it_is, (error,)), _Packed(bare_error, (kind, args, state))):
        try:
            back = way.make(*pickle.loads(pickle.dumps(way.args)))
        except Exception:  # whatever a class of the user's does about it
            continue
        plain = all(isinstance(arg, (str, bytes, int, float, type(None))) for arg in error.args)
        if type(back) is kind and (not plain or (back.args == error.args and _text_of(back) == text)):
            return way
    return _Packed(UnpicklableError, (name, text))


def _travels(value: Any) -> bytes | None:
    """The value pickled, None where that can't be done or undone."""
    try:
        written = pickle.dumps(value)
        pickle.loads(written)
    except Exception:
        return None
    return written


def _as_it_is(error: BaseException) -> BaseException:
    return error


def bare_error(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """One whose constructor is not called: it takes other arguments than those that it hands on."""
    made: BaseException = _new(kind)
    object.__setattr__(made, "args", args)
    made.__dict__.update(state)
    return made


def _unpacked(kind: type[_CarrierError], args: tuple[Any, ...], said: dict[str, Any]) -> _CarrierError:
    made = kind(*(one.make(*one.args) if type(one) is _Packed else one for one in args))
    made.__dict__.update(said)
    return made
