"""Consumers about tasks: names, dependencies, arguments, results.

The streams have an entry for every event, None for those that say nothing. Values appear by identity
(`LoggedMutableObject`), immutable ones not at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..timespans.model import ChunkInfo, Event, TaskRef, ValueInfo, function_name
from ..timespans.warn import warn_once
from .base import OpenSpans, id_field, thunk_id

__all__ = [
    "LoggedMutableObject",
    "TaskArgumentMoves",
    "TaskArguments",
    "TaskDependencies",
    "TaskFunctionNames",
    "TaskNames",
    "TaskResult",
    "TaskToChunk",
    "TaskUIDtoTID",
    "logged_object",
]

_SUBMIT = frozenset({"add_thunk"})
_MOVE = frozenset({"move"})


class LoggedMutableObject(NamedTuple):
    """The identity of a value. `kind`: "object" (`objid` is its `id()`), "chunk" (its handle), "task" (its uid)."""

    objid: Any
    kind: str


def logged_object(described: Any) -> LoggedMutableObject | None:
    """The identity of a value as the log describes it; None where it has none worth tracing."""
    kind = type(described)
    if kind is ValueInfo:
        objid = described[2]
        return _new(LoggedMutableObject, (objid, "object")) if objid else None
    if kind is ChunkInfo:
        return _new(LoggedMutableObject, (described[0], "chunk"))
    return _new(LoggedMutableObject, (described[0], "task")) if kind is TaskRef else None


_new = tuple.__new__


def _field(event: Event, name: str) -> Any:
    return getattr(event.timeline, name, None)


def _result(task: Any, result: Any) -> tuple[Any, LoggedMutableObject] | None:
    shown = logged_object(result)
    return None if shown is None else (task, shown)


class TaskFunctionNames:
    """At the submission of a task: its function's name."""

    categories, phase = _SUBMIT, "start"

    def __call__(self, event: Event) -> str | None:
        """See the class."""
        if event.category != "add_thunk" or event.phase != "start":
            return None
        return function_name(_field(event, "f"))

    lazy = True
    fields = ("f",)
    of = staticmethod(function_name)


class TaskNames:
    """At the submission of a task: "<function name> [<task id>]"."""

    categories, phase = _SUBMIT, "start"

    def __call__(self, event: Event) -> str | None:
        """See the class."""
        if event.category != "add_thunk" or event.phase != "start":
            return None
        return self.of(_field(event, "f"), thunk_id(event))

    lazy = True
    fields = ("f", "thunk_id")

    def of(self, f: Any, task: Any) -> str:
        """The name."""
        return f"{function_name(f)} [{task}]"


class TaskUIDtoTID:
    """At the submission of a task: (its uid, its task id)."""

    categories, phase = _SUBMIT, "start"

    def __call__(self, event: Event) -> tuple[Any, Any] | None:
        """See the class."""
        if event.category != "add_thunk" or event.phase != "start":
            return None
        return _field(event, "uid"), thunk_id(event)

    lazy = True
    fields = ("uid", "thunk_id")

    def of(self, uid: Any, task: Any) -> tuple[Any, Any]:
        """The pair."""
        return uid, task


class TaskDependencies:
    """When a task was submitted: (its id, [ids of the tasks it depends on]), each once, by any kind of edge."""

    categories, phase = _SUBMIT, "finish"

    def __call__(self, event: Event) -> tuple[Any, list[Any]] | None:
        """See the class."""
        if event.category != "add_thunk" or event.phase != "finish":
            return None
        return self.of(thunk_id(event), _field(event, "deps"))

    lazy = True
    fields = ("thunk_id", "deps")

    def of(self, task: Any, deps: Any) -> tuple[Any, list[Any]]:
        """The pair."""
        return task, list(dict.fromkeys([upstream for _, upstream in deps])) if deps else []


class TaskArguments:
    """When an argument is in place: (task id, [(position, object)]), an empty list if it is immutable."""

    categories, phase = _MOVE, "finish"

    def __call__(self, event: Event) -> tuple[Any, list[tuple[Any, LoggedMutableObject]]] | None:
        """See the class."""
        if event.category != "move" or event.phase != "finish":
            return None
        return self.of(thunk_id(event), id_field(event, "position"), _field(event, "data"))

    lazy = True
    fields = ("thunk_id", "position", "data")

    def of(self, task: Any, position: Any, data: Any) -> tuple[Any, list[tuple[Any, LoggedMutableObject]]]:
        """The pair."""
        value = logged_object(data)
        return task, [] if value is None else [(position, value)]


class TaskArgumentMoves:
    """When an argument is in place: (task id, position, object before, object after), of mutable ones."""

    categories = _MOVE

    def __init__(self) -> None:
        self._before = OpenSpans()

    def __call__(self, event: Event) -> tuple[Any, Any, LoggedMutableObject, LoggedMutableObject] | None:
        """See the class. Task id 0 (moves of no task) is left out; a move that never began is warned about."""
        if event.category != "move":
            return None
        task, position, value = thunk_id(event), id_field(event, "position"), logged_object(_field(event, "data"))
        if not task:
            return None
        if event.phase == "start":
            if value is not None:
                self._before.remember((task, position), value)
            return None
        before = self._before.pop((task, position), None)
        if value is None:
            return None
        if before is None:
            warn_once(self, "task %s: the move of argument %r finished but never started", task, position)
            return None
        return task, position, before, value

    lazy, of_phase = True, "finish"
    fields = ("thunk_id", "position", "before", "data")

    def of(
        self, task: Any, position: Any, before: Any, data: Any
    ) -> tuple[Any, Any, LoggedMutableObject, LoggedMutableObject] | None:
        """The same at the finish of a move, where what it began with is at hand."""
        value, known = logged_object(data), logged_object(before)
        return None if not task or value is None or known is None else (task, position, known, value)

    def init_similar(self) -> TaskArgumentMoves:
        """A fresh one."""
        return TaskArgumentMoves()


class TaskResult:
    """When a body has returned something mutable: (task id, object)."""

    categories, phase = frozenset({"compute"}), "finish"

    def __call__(self, event: Event) -> tuple[Any, LoggedMutableObject] | None:
        """See the class."""
        if event.category != "compute" or event.phase != "finish":
            return None
        return _result(thunk_id(event), _field(event, "result"))

    lazy = True
    fields = ("thunk_id", "result")
    of = staticmethod(_result)


class TaskToChunk:
    """When a task has its result, and that is mutable: (task id, object)."""

    categories, phase = frozenset({"finish"}), "finish"

    def __call__(self, event: Event) -> tuple[Any, LoggedMutableObject] | None:
        """See the class."""
        if event.category != "finish" or event.phase != "finish":
            return None
        return _result(thunk_id(event), _field(event, "result"))

    lazy = True
    fields = ("thunk_id", "result")
    of = staticmethod(_result)
