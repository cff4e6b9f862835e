"""Handles of what the head has: a `DTask` that ends when the head says so, a chunk whose value is asked for.

They are ordinary `DTask`s and `Chunk`s, so that all the code that waits for tasks and reads values serves them
unchanged. A table has them by number, weakly: one handle a task, however often it comes; and when the last reference to
it goes the head is told. One that somebody waits for is held until it is done, as a task on threads is by its queue: a
future of it may be all that the program has.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Callable
from typing import Any

from ..dagger.bodies.ending import end
from ..dagger.context import ids
from ..dagger.core.machine import Core
from ..dagger.data.chunks import ArrayDomain, Chunk, DRef, UnitDomain, domain
from ..dagger.options.options import DEFAULT
from ..dagger.places.scopes import AnyScope
from ..dagger.processes.borrows import AS_ERROR, AS_ITEM, AS_VALUE
from ..dagger.processes.handles import ReadDRef, chunk_here, handle_of, new_chunk, task_here, type_of_name
from ..dagger.processes.wire import DROP, DROP_VALUE, error_of, type_name
from ..dagger.service import head
from ..dagger.service.surroundings import written_variable
from ..dagger.tasks.dtask import LAUNCHED, DTask, Failure, TaskSummary, new_task
from ..errors import StorageError

__all__ = ["LentDRef", "Proxies"]

_NOT_READ: Any = object()


class LentDRef(ReadDRef):
    """The handle of a value that the head has: asked for by the first who reads it, then kept.

    Raises `StorageError` where it can't be had.
    """

    __slots__ = ("key",)

    may_spill = True

    def __init__(self, key: int, nbytes: int | None, kind: str, worker: int) -> None:
        self.key, self.worker = key, worker
        self._nbytes, self._type, self._read = nbytes, kind, _NOT_READ

    @property
    def value(self) -> Any:
        """The value."""
        if self._read is _NOT_READ:
            assert head.link is not None
            made = head.link.ask("value", self.key)
            if self._read is _NOT_READ:  # several may have asked: all get the same
                self._read = made
        return self._read

    @property
    def domain(self) -> ArrayDomain | UnitDomain:
        """The index ranges of the value."""
        return domain(self.value)


class Subscribers(list[Any]):
    """Who waits for a task of the head. While there is any, the handle stays."""

    __slots__ = ("_id", "_proxies")

    def __init__(self, proxies: Proxies, id: int, known: list[Any]) -> None:
        super().__init__(known)
        self._proxies, self._id = proxies, id
        if known:
            proxies.hold(id)

    def append(self, one: Any) -> None:
        """Whoever appends has the handle now."""
        super().append(one)
        self._proxies.hold(self._id)

    def remove(self, one: Any) -> None:
        """It waits no more."""
        super().remove(one)
        if not self:
            self._proxies.let_go(self._id)


class _Entry(weakref.ref):  # type: ignore[type-arg]
    """A handle in the table: how often it came, and its failure, which may have been seen or not."""

    __slots__ = ("count", "failure", "key")

    count: int
    failure: Failure | None
    key: int


class Proxies:
    """The handles that this worker has of the head's tasks and values. `tell(message)` may be called anywhere.

    `item_of` is the store's.
    """

    def __init__(
        self,
        core: Core,
        handles: dict[type, Callable[[Any], Any]],
        tell: Callable[[Any], None],
        item_of: Callable[[DRef, bool], Any],
    ) -> None:
        self._core, self._tell, self._item_of = core, tell, item_of
        self._tasks: dict[int, _Entry] = {}
        self._held: dict[int, DTask] = {}
        self._values: dict[int, _Entry] = {}
        self._keys: weakref.WeakKeyDictionary[DRef, int] = weakref.WeakKeyDictionary()
        """Of the values that were made here and went to the head."""
        handles[DTask] = _write_task
        handles[Chunk] = self._write_chunk
        handles[contextvars.ContextVar] = written_variable

    # ---- tasks -------------------------------------------------------------------------------------------

    def adopt(self, task: DTask) -> None:
        """A task that was spawned here is the head's from now on."""
        subs = task._subs
        task._subs = Subscribers(self, task.id, [])
        self._enter(task)
        for one in list(subs):  # of one that a queue of tasks held back
            task._subs.append(one)

    def _enter(self, task: DTask) -> None:
        entry = _Entry(task, self._task_gone)
        entry.count, entry.failure, entry.key = 1, None, task.id
        self._tasks[task.id] = entry

    def task(self, id: int) -> DTask:
        """A handle came."""
        entry = self._tasks.get(id)
        known = None if entry is None else entry()
        if known is not None and entry is not None:
            entry.count += 1
            return known  # type: ignore[no-any-return]
        task = new_task(id, None, (), None, DEFAULT, (), contextvars.Context(), self._core)
        task._context = None
        task._state = LAUNCHED
        task._subs = Subscribers(self, id, [])
        self._enter(task)
        return task

    def _task_gone(self, entry: _Entry) -> None:
        # May run at any allocation, on any thread.
        if self._tasks.get(entry.key) is entry:
            del self._tasks[entry.key]
        seen = entry.failure is not None and entry.failure.retrieved
        if entry.failure is not None:
            entry.failure.retrieved = True  # the head is to tell of it
        self._tell((DROP, entry.key, entry.count, seen))

    def hold(self, id: int) -> None:
        """Somebody waits for it."""
        entry = self._tasks.get(id)
        task = None if entry is None else entry()
        if task is not None:
            self._held[id] = task

    def let_go(self, id: int) -> None:
        """Nobody does any more."""
        self._held.pop(id, None)

    def ended(self, id: int, how: int, what: Any) -> None:
        """A task ended in the head."""
        entry = self._tasks.get(id)
        task = None if entry is None else entry()
        if task is None or entry is None:
            self.let_go(id)
            if how == AS_VALUE:
                self._tell((DROP_VALUE, what[0], 1))
            elif how == AS_ITEM:  # handles in it are counted
                with contextlib.suppress(StorageError):
                    handle_of(what, None)
            return
        if how == AS_ERROR:
            data, text, root, direct, hint, summary = what
            task._summary = TaskSummary(*summary)
            failure = Failure(TaskSummary(*root), error_of(1, data, text), direct, hint)
            if hasattr(task, "_open"):
                entry.failure = failure
            else:
                failure.retrieved = True
            end(self._core, task, failure, ran=False, failed=True)
        else:
            try:
                outcome = self._value(*what) if how == AS_VALUE else handle_of(what, None)
            except StorageError as unreadable:
                end(self._core, task, Failure(TaskSummary(id, "a task", ()), unreadable), ran=False, failed=True)
            else:
                end(self._core, task, outcome, ran=False)
        self.let_go(id)

    # ---- values ------------------------------------------------------------------------------------------

    def _value(self, key: int, nbytes: int | None, kind: str, worker: int) -> DRef:
        """A handle of a value came."""
        entry = self._values.get(key)
        known = None if entry is None else entry()
        if known is not None and entry is not None:
            entry.count += 1
            return known  # type: ignore[no-any-return]
        return self._enter_value(LentDRef(key, nbytes, kind, worker), key)

    def _enter_value(self, handle: DRef, key: int) -> DRef:
        entry = _Entry(handle, self._value_gone)
        entry.count, entry.failure, entry.key = 1, None, key
        self._values[key] = entry
        return handle

    def _value_gone(self, entry: _Entry) -> None:
        # May run at any allocation, on any thread.
        if self._values.get(entry.key) is entry:
            del self._values[entry.key]
        self._tell((DROP_VALUE, entry.key, entry.count))

    def chunk(self, key: int, item: Any, nbytes: int | None, kind: str, worker: int, *rest: Any) -> Chunk:
        """A chunk came. `rest`: its processor, its scope, its domain."""
        processor, scope, content = rest
        return new_chunk(self._value(key, nbytes, kind, worker), processor, scope, type_of_name(kind), content)

    def _write_chunk(self, chunk: Chunk) -> Any:
        """Of a value that was made here the head gets a copy, once; from then on it is the head's, too."""
        handle = chunk.handle
        rest = (type_name(chunk.chunktype), handle.worker, chunk.processor, chunk.scope, chunk.domain)
        if type(handle) is LentDRef:
            return chunk_here, (handle.key, None, handle.nbytes, *rest)
        key = self._keys.get(handle)
        if key is not None:
            return chunk_here, (key, None, handle.nbytes, *rest)
        item = (self._item_of(handle, not isinstance(chunk.scope, AnyScope)),)
        key = -ids.next()
        self._keys[handle] = key
        self._enter_value(handle, key)
        return chunk_here, (key, item, handle.nbytes, *rest)


def _write_task(task: DTask) -> Any:
    return task_here, (task.id,)
