"""What a worker has handles of: the head owns all tasks and values, and counts what it lent to each worker.

A handle goes to a worker as a number, inside of a value (a list of tasks, a chunk for `meta`), and comes back as one.
The worker counts how often each came, and says so when the last object there that stands for it is gone (`DROP`). As
one may just be on its way again, the head subtracts that count from how often it sent it: at zero nobody there has it.
When a worker is lost, all that it borrowed is given back.

A worker that has a handle of a task is told of its end (`ENDED`): the value if it is small, else a handle of it, which
it asks for when it needs it.

All on the pump's thread, except for `ended` and `answered`.

See docs/workers.md.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from ...errors import InvalidOptionError
from ..bodies.results import as_chunk
from ..data.chunks import Chunk, DRef
from ..data.read import may_wait
from ..places.processors import Processor
from ..places.scopes import Scope
from ..service.surroundings import written_variable
from ..tasks.atomics import subscribe
from ..tasks.dtask import FAILED, DTask, Failure, Result, summarize
from .handles import PackedDRef, chunk_here, handle_of, new_chunk, task_here, type_of_name
from .upstairs import UPSTAIRS
from .wire import ANSWER, ENDED, INLINE_BYTES, KEPT, error_bytes, pack, type_name

__all__ = ["AS_ERROR", "AS_ITEM", "AS_VALUE", "Borrows"]

AS_ERROR, AS_ITEM, AS_VALUE = range(3)
"""How a task ended, in ENDED: (error, stack, root, direct, hint, summary), an item, or (key, size, type, worker)."""


class _Lent:
    """What a worker has: how often it was sent, and for a task who waits here for its end."""

    __slots__ = ("count", "thing", "watch")

    def __init__(self, thing: Any, count: int) -> None:
        self.thing, self.count = thing, count
        self.watch: _Watch | None = None


class _Watch:
    """Subscribes to a task for a worker."""

    __slots__ = ("borrows", "lent")

    is_brief = True
    """See bodies/ending.py."""

    def __init__(self, borrows: Borrows, lent: _Lent) -> None:
        self.borrows, self.lent = borrows, lent

    def __call__(self) -> None:
        """The task ended."""
        self.borrows.ended.append(self.lent)
        self.borrows.poke()


class Borrows:
    """What one worker has handles of. `handles` gets how they are written for it.

    `item_of` gives what stands in a message to it for a value, `kept` the handle of what it keeps (values.py).
    """

    def __init__(
        self,
        worker: int,
        handles: dict[type, Callable[[Any], Any]],
        item_of: Callable[[DRef | Result], Any],
        kept: Callable[[Any], DRef],
    ) -> None:
        self.item_of = item_of
        self._kept = kept
        self.tasks: dict[int, _Lent] = {}
        self.values: dict[int, _Lent] = {}
        """By key: the handle's number, or a negative number that the worker gave."""
        self.ended: deque[_Lent] = deque()
        """Tasks whose end is to be told. From any thread."""
        self.answered: deque[tuple[int, Any, BaseException | None]] = deque()
        """Answers that are to be told: (number, value, error). From any thread."""
        self.waiting: set[DTask] = set()
        """Tasks of bodies there that said what they wait for."""
        self.poke: Callable[[], None] = _nobody
        self.running: Callable[[int], DTask | None] = _unknown
        """The task with this id whose body runs there."""
        self._worker = worker
        self._keys: dict[int, int] = {}
        """Keys that the worker gave, by `id()` of the handle."""
        self._fresh: list[_Lent] = []
        """Tasks that were lent just now."""
        self._handles = handles
        handles[DTask] = self._write_task
        handles[Chunk] = self._write_chunk
        handles[ContextVar] = written_variable

    def has_news(self) -> bool:
        """Whether `messages` gives any."""
        return bool(self._fresh or self.ended or self.answered)

    def messages(self) -> list[Any]:
        """What is to be told: after what was said before, which has the handles that this is about."""
        fresh, self._fresh = self._fresh, []
        for lent in fresh:
            self._watch(lent)
        told: list[Any] = []
        while self.ended:
            lent = self.ended.popleft()
            if lent.count > 0:
                told.append(self._end_message(lent.thing))
        while self.answered:
            told.append(self._answer(*self.answered.popleft()))
        return told

    # ---- tasks -------------------------------------------------------------------------------------------

    def lend(self, task: DTask) -> None:
        """A handle of this task is there, or on its way."""
        lent = self.tasks.get(task.id)
        if lent is None:
            lent = self.tasks[task.id] = _Lent(task, 0)
        lent.count += 1
        self._fresh.append(lent)

    def _write_task(self, task: DTask) -> Any:
        self.lend(task)
        return task_here, (task.id,)

    def _watch(self, lent: _Lent) -> None:
        """Wait for its end; one that was told of already is told again: who was told may be gone."""
        if lent.watch is not None:
            if lent.thing.istaskdone():
                self.ended.append(lent)
            return
        lent.watch = _Watch(self, lent)
        if not subscribe(lent.thing, lent.watch):
            self.ended.append(lent)

    def drop(self, id: int, count: int, retrieved: bool) -> None:
        """The worker has no handle of a task any more, of so many that came."""
        lent = self.tasks.get(id)
        if lent is None:
            return
        if retrieved and lent.thing._state == FAILED:
            lent.thing._outcome.retrieved = True
        lent.count -= count
        if lent.count <= 0:
            del self.tasks[id]
            self._forget(lent)

    def _forget(self, lent: _Lent) -> None:
        if lent.watch is not None:
            with contextlib.suppress(ValueError):
                lent.thing._subs.remove(lent.watch)
            lent.watch = None  # they refer to each other, and the task goes now

    def task(self, id: int) -> DTask:
        """The task that the worker means; one of its own, or one that it has a handle of."""
        lent = self.tasks.get(id)
        task = self.running(id) if lent is None else lent.thing
        if task is None:
            raise InvalidOptionError(f"worker {self._worker} means task {id}, which is not known here (any more)")
        return task

    def _end_message(self, task: DTask) -> Any:
        outcome = task._outcome
        if task._state == FAILED:
            return (ENDED, task.id, AS_ERROR, self._failure(task, outcome))
        try:
            if isinstance(outcome, DRef) and _is_large(outcome):
                return (ENDED, task.id, AS_VALUE, self._lend_value(outcome))
            return (ENDED, task.id, AS_ITEM, self.item_of(outcome))
        except BaseException as error:  # of a user's pickling: whatever it is
            text = (
                f"the result of task {task.id} can't be sent to worker {self._worker}: {type(error).__name__}: {error}"
            )
            refused = Failure(summarize(task), InvalidOptionError(text))
            refused.retrieved = True
            return (ENDED, task.id, AS_ERROR, self._failure(task, refused))

    def _failure(self, task: DTask, failure: Failure) -> Any:
        data, text = error_bytes(failure.ex, self._handles)
        return data, text, tuple(failure.root), failure.direct, failure.hint, tuple(summarize(task))

    # ---- values ------------------------------------------------------------------------------------------

    def _lend_value(self, handle: DRef) -> tuple[Any, ...]:
        key = self._keys.get(id(handle))
        if key is None:
            key = handle.number
        lent = self.values.get(key)
        if lent is None:
            lent = self.values[key] = _Lent(handle, 0)
        lent.count += 1
        return key, handle.nbytes, type_name(handle.type), handle.worker

    def _write_chunk(self, chunk: Chunk) -> Any:
        key, nbytes, _, worker = self._lend_value(chunk.handle)
        kind, content = type_name(chunk.chunktype), chunk.domain
        return chunk_here, (key, None, nbytes, kind, worker, chunk.processor, chunk.scope, content)

    def chunk(self, key: int, item: Any, nbytes: int | None, kind: str, worker: int, *rest: Any) -> Chunk:
        """A chunk that the worker means; with `item` one that it made, whose value comes along."""
        processor, scope, content = _known(*rest)
        lent = self.values.get(key)
        if lent is None:
            if item is None:
                raise InvalidOptionError(f"worker {self._worker} means a chunk that is not known here (any more)")
            made = item[0]
            handle = self._kept(made) if type(made) is tuple and len(made) == KEPT else handle_of(made, None)
            handle._nbytes = nbytes
            lent = self.values[key] = _Lent(handle, 1)
            self._keys[id(handle)] = key
        return new_chunk(lent.thing, processor, scope, type_of_name(kind), content)

    def drop_value(self, key: int, count: int) -> None:
        """The worker has no handle of a value any more, of so many that came."""
        lent = self.values.get(key)
        if lent is not None:
            lent.count -= count
            if lent.count <= 0:
                del self.values[key]
                self._keys.pop(id(lent.thing), None)

    # ---- answers -----------------------------------------------------------------------------------------

    def value_of(self, key: int) -> DRef:
        """The handle behind a key."""
        lent = self.values.get(key)
        if lent is None:
            raise InvalidOptionError("the value of a chunk is not known here (any more)")
        handle: DRef = lent.thing
        return handle

    def chunk_of(self, id: int) -> Any:
        """The result of a task as `fetch(raw=True)` gives it."""
        return as_chunk(self.task(id))

    def _answer(self, number: int, value: Any, error: BaseException | None) -> Any:
        if error is None:
            try:
                item = self.item_of(value) if isinstance(value, DRef) else pack(value, self._handles)
                return (ANSWER, number, True, item)
            except BaseException as unpicklable:  # of a user's pickling: whatever it is
                kind = type(value).__name__
                error = InvalidOptionError(f"a {kind} can't be sent to worker {self._worker}: {unpicklable}")
        return (ANSWER, number, False, error_bytes(error, self._handles))

    # ---- waits -------------------------------------------------------------------------------------------

    def end_waits(self, body: DTask) -> None:
        """The body of a task has ended there: it waits for nothing."""
        self.waiting.discard(body)
        UPSTAIRS.end_wait(body, None)

    # ---- the end -----------------------------------------------------------------------------------------

    def give_back(self) -> None:
        """The worker is gone, with all that it had."""
        tasks, self.tasks, self.values, self._keys = self.tasks, {}, {}, {}
        for lent in tasks.values():
            self._forget(lent)
        for body in list(self.waiting):
            self.end_waits(body)
        for queue in (self._fresh, self.ended, self.answered):
            queue.clear()


def _known(processor: Processor, scope: Scope, content: Any) -> tuple[Processor, Scope, Any]:
    return processor, scope, content


def _is_large(handle: DRef) -> bool:
    """Whether a value goes only when it is wanted."""
    if type(handle) is PackedDRef:
        return len(handle.item[0]) > INLINE_BYTES if type(handle.item) is tuple else False
    return may_wait(handle) or (handle.nbytes or 0) > INLINE_BYTES


def _nobody() -> None:
    """There is no pump yet."""


def _unknown(id: int) -> DTask | None:
    return None
