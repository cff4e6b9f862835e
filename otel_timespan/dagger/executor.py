"""`Executor`: the scheduler behind the interface of `concurrent.futures`.

Code written for a `ThreadPoolExecutor` gets tasks, events and traces when it makes one of these instead. The
futures are real `concurrent.futures.Future`s, so `wait`, `as_completed`, `asyncio.wrap_future` and
`loop.run_in_executor` work with them as with any.

What differs from a thread pool, and why, stands in docs/users.md.
"""

# One overload covers a part of the next: the first that fits is meant.
# mypy: disable-error-code="overload-overlap, overload-cannot-match"

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import inspect
import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, InvalidStateError
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from .. import exits, forks
from ..errors import (
    InvalidOptionError,
    NotCallableError,
    RemoteTaskError,
    StorageError,
    TaskCancelled,
    WorkerLostError,
)
from ..timespans.durations import seconds
from .api import current_core, launch
from .bodies import interrupts
from .bodies.ending import fail
from .context import Context, eager_context, ids
from .core.limits import set_limit
from .cycles import Wait
from .data.read import read
from .fetching import is_cancelled, note_failure, refuse_on_loop_thread, slot_given_back, step_until
from .options.options import Options
from .processpool import Group, Prepared, as_raised, broken, check_settings, drop, limited
from .service import head, janitor
from .service.guards import guard
from .service.timers import call_later
from .tasks.atomics import claim, subscribe
from .tasks.dtask import FAILED, DTask, summarize
from .tasks.environment import running_task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .core.machine import Core
    from .options.keywords import TaskKeywords
    from .signatures import Argument, Body
    from .tasks.references import Reference

__all__ = ["Executor", "TaskFuture"]

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
P = ParamSpec("P")

LOGGER = logging.getLogger("concurrent.futures")  # where those look who had a thread pool before

LOOK_AGAIN_S = 1.0
"""How often the context of a dropped executor is asked whether it is done."""

_PENDING, _RUNNING = "PENDING", "RUNNING"


class TaskFuture(concurrent.futures.Future[T]):
    """The future of a call given to an `Executor`; `task` is its `DTask`, None only while it is being submitted.

    Differs from others in what it can do more: waiting for it in the body of a task gives that body's slot
    back meanwhile. `unfinished`: a set that it leaves when it is done. It does not refer to its executor, whose
    threads may end while somebody keeps the result. `elsewhere`: another process has the body, and calls no `begin`.
    """

    def __init__(self, unfinished: set[TaskFuture[Any]] | None = None, elsewhere: bool = False) -> None:
        super().__init__()
        self.task: DTask[T] | None = None
        self._unfinished = set() if unfinished is None else unfinished
        self._elsewhere = elsewhere

    def begin(self) -> bool:
        """The body is about to run, perhaps once more: False if the future was cancelled."""
        with self._condition:
            if self._state == _PENDING:
                self._state = _RUNNING
            return self._state == _RUNNING

    def cancel(self) -> bool:
        """Cancel it if its body has not begun: then it never will, and the task is cancelled as well."""
        if self._elsewhere and self.task is not None and not claim(self.task):
            self.running()
        if not super().cancel():
            return False
        task = self.task
        if task is not None:
            drop(task)
        return True

    def running(self) -> bool:
        """Whether its body runs, or has been handed to a worker."""
        task = self.task
        if self._elsewhere and task is not None and task in task._core.running:
            self.begin()
        return super().running()

    def follow(self, task: DTask) -> None:
        """Take the task's outcome when it has one."""
        self.task = task
        if not subscribe(task, self._take_outcome):
            self._take_outcome()
        elif self.cancelled():
            self.cancel()  # it was cancelled before we knew the task

    def _take_outcome(self) -> None:
        """Called by whoever ends the task.

        That may be a thread that the main thread waits for, in a signal handler which cancels the task and has
        interrupted who holds the future's lock: then the lock is another thread's to wait for.
        """
        if self._condition.acquire(blocking=False):
            self._condition.release()
        else:
            with contextlib.suppress(RuntimeError):  # no thread can be started
                threading.Thread(target=self._take_now, name="dagger-future", daemon=True).start()
                return
        self._take_now()

    def _take_now(self) -> None:
        try:
            self._resolve()
        except BaseException:  # of a callback: it must not stop the thread that finishes tasks
            LOGGER.exception("a callback of a future failed")
        finally:
            self._unfinished.discard(self)

    def _resolve(self) -> None:
        task = self.task
        assert task is not None
        if is_cancelled(task):
            super().cancel()  # does nothing to a body that has begun: that one gets the exception
        try:
            if task._state != FAILED:
                self.set_result(read(task._outcome))
            elif task._outcome.direct or task._outcome.root.id == task.id:
                error = task._outcome.ex
                self.set_exception(as_raised(error) if self._elsewhere else error)
            else:
                self.set_exception(task._outcome.error_for(summarize(task)))
        except StorageError as lost:  # it was spilled, and can't be read back
            self.set_exception(lost)
        except InvalidStateError:  # it was cancelled
            self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> T:
        """The value; raises what the body raised, as it is. See `concurrent.futures.Future.result`."""
        patience_s = None if timeout is None else seconds(timeout)
        try:
            with self._patiently(timeout):
                return super().result(patience_s)
        finally:
            self._note_failure()
            del self  # the error is this future's, and its traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the body raised, None if nothing. See `concurrent.futures.Future.exception`."""
        patience_s = None if timeout is None else seconds(timeout)
        with self._patiently(timeout):
            try:
                return super().exception(patience_s)
            finally:
                self._note_failure()

    def _end_waits(self) -> None:
        """Have those go on that wait for it, as one of them waits for what can't be."""
        with self._condition:
            self._condition.notify_all()

    def _note_failure(self) -> None:
        if self.task is not None:
            note_failure(self.task)

    def _patiently(self, timeout: float | None) -> contextlib.AbstractContextManager[Any]:
        task = self.task
        if self.done() or task is None:
            return contextlib.nullcontext()
        refuse_on_loop_thread("the future is not done, and waiting for it here")
        if timeout is None or task._core.driver.is_starved:
            step_until(task._core, self.done)
        body = running_task()
        if body is None:
            return contextlib.nullcontext()
        block = contextlib.ExitStack()
        block.enter_context(Wait(body, task, self._end_waits))
        block.enter_context(slot_given_back())
        return block


class Call(functools.partial):  # type: ignore[type-arg]
    """What a task of an `Executor` calls: the function, once its future says that it may run.

    A `partial`, so that everybody who describes functions sees the user's. What it calls is `__spawned__`, what
    the user gave and whose default options hold: of a user's partial, `func` is only the function in it.
    `width`: how many arguments each call takes where several calls make one task; 0 for a single call.
    """

    __spawned__: Callable[..., Any]
    executor: Executor
    future: TaskFuture[Any]
    width: int

    @interrupts.see_through
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if not self.future.begin():
            raise TaskCancelled("the future was cancelled")
        self.executor._prepare_thread()
        f, width = self.__spawned__, self.width
        if not width:
            return f(*args, **kwargs)
        return [f(*args[n : n + width]) for n in range(0, len(args), width)]

    def __reduce__(self) -> Any:
        self.future._elsewhere = True  # it goes to another process
        one = self.executor
        return Prepared.of, (self.__spawned__, self.width, one._number, one._initializer, one._initargs)


class Executor(concurrent.futures.Executor):
    """Calls functions as tasks: a drop-in for `concurrent.futures.ThreadPoolExecutor`, and `ProcessPoolExecutor`.

    `max_workers`: how many bodies run at once, in a private `Context` with as many threads, which lives from
    the first call to `shutdown` and logs where the current context logs. Without it the calls go to
    `context`, or else to wherever a `spawn` at that place would: they share its slots with all other tasks.
    `processes`: so many worker processes, with one thread each, run the bodies instead of threads; they are started by
    the first call and end with `shutdown`. `**options` are the options of all its tasks (`retries=3`, `timeout=10`,
    ...).

    `thread_name_prefix` is accepted and ignored; `initializer(*initargs)` is called once in each thread, or process,
    before that runs the first of this executor's bodies. `mp_context`, `max_tasks_per_child`: as a process pool has
    them; start methods that don't fork are accepted, others and a number of tasks refused.

    A `DTask` or `Chunk` as an argument is an input, as for `spawn`; the contextvars of the caller hold in the body,
    where that runs in this process. A body that is a coroutine function is awaited.

    Thread-safe. Raises `InvalidOptionError` (a ValueError) for arguments that can't work.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        context: Context | None = None,
        processes: int | None = None,
        mp_context: Any = None,
        max_tasks_per_child: int | None = None,
        **options: Unpack[TaskKeywords],
    ) -> None:
        check_settings(processes, max_workers, context, mp_context, max_tasks_per_child)
        if max_workers is not None and context is not None:
            raise InvalidOptionError("give max_workers or context, not both: a context has its own threads")
        if context is not None and not isinstance(context, Context):
            raise InvalidOptionError(f"context must be a Context, not {context!r}")
        if initializer is not None and not callable(initializer):
            raise NotCallableError(f"initializer must be callable, not {initializer!r}")
        self._options = Options(**options) if options else None
        self._workers = processes or max_workers
        self._process_count = processes
        self._context = context
        self._origin: Context | None = None
        self._number, self._limit = ids.next(), ""
        if head.link is not None and max_workers is not None and processes is None:  # the head has the slots
            self._limit, self._options = limited(self._number, max_workers, self._options)
            max_workers = None
        self._initializer, self._initargs = initializer, tuple(initargs)
        self._local = threading.local()
        self._broken: str | None = None
        if processes is not None or max_workers is not None:
            if isinstance(max_workers, bool) or not isinstance(self._workers, int) or self._workers < 1:
                raise InvalidOptionError(f"max_workers must be greater than 0: an int, or None, not {max_workers!r}")
            self._origin = eager_context()
            self._context = Context(threads=max_workers) if processes is None else self._with_processes(processes)
            janitor.start()
            weakref.finalize(self, janitor.ask, functools.partial(_end_forgotten, self._context)).atexit = False
        self._closed = False
        self._lock = guard()
        self._pending: set[TaskFuture[Any]] = set()
        _live.add(self)

    def _with_processes(self, count: int) -> Context:
        """The context that has them; they start with the first call."""
        context = Context(procs=[], workers=count)
        owned = context.owned
        if self._initializer is not None:
            owned.prepare = (self._initializer, self._initargs)
        owned.on_failure = functools.partial(_break, weakref.ref(self))
        return context

    @overload
    def submit(self, fn: Callable[[], Body[T]], /, **kwargs: Reference) -> TaskFuture[T]: ...
    @overload
    def submit(self, fn: Callable[[], T], /, **kwargs: Reference) -> TaskFuture[T]: ...
    @overload
    def submit(self, fn: Callable[[A], Body[T]], a: Argument[A], /, **kwargs: Reference) -> TaskFuture[T]: ...
    @overload
    def submit(self, fn: Callable[[A], T], a: Argument[A], /, **kwargs: Reference) -> TaskFuture[T]: ...
    @overload
    def submit(
        self, fn: Callable[[A, B], Body[T]], a: Argument[A], b: Argument[B], /, **kwargs: Reference
    ) -> TaskFuture[T]: ...
    @overload
    def submit(
        self, fn: Callable[[A, B], T], a: Argument[A], b: Argument[B], /, **kwargs: Reference
    ) -> TaskFuture[T]: ...
    @overload
    def submit(
        self, fn: Callable[[A, B, C], Body[T]], a: Argument[A], b: Argument[B], c: Argument[C], /, **kwargs: Reference
    ) -> TaskFuture[T]: ...
    @overload
    def submit(
        self, fn: Callable[[A, B, C], T], a: Argument[A], b: Argument[B], c: Argument[C], /, **kwargs: Reference
    ) -> TaskFuture[T]: ...
    @overload
    def submit(self, fn: Callable[P, Body[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, B, C, ...], Body[T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> TaskFuture[T]: ...
    @overload
    def submit(
        self,
        fn: Callable[Concatenate[A, B, C, ...], T],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> TaskFuture[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Have `fn(*args, **kwargs)` called; its future, at once.

        Raises RuntimeError after `shutdown`, `NotCallableError` (a TypeError) when `fn` can't be called.
        """
        return self._submit(fn, args, kwargs, 0)

    def _submit(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], width: int) -> TaskFuture[Any]:
        if not callable(fn):
            raise NotCallableError(f"submit needs something to call, not {fn!r}: submit(f, 1), not submit(f(1))")
        elsewhere = self._process_count is not None
        future: TaskFuture[Any] = TaskFuture(self._pending, elsewhere)
        call = fn
        if elsewhere:
            if width:
                call = Group.of(fn, width)
        else:
            call = Call(fn)
            call.__spawned__, call.executor, call.future, call.width = fn, self, future, width
        with self._lock:
            if self._broken is not None:
                raise self._error(self._broken)
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._pending.add(future)
        try:
            future.follow(launch(self._core(), call, args, kwargs, self._options))
        except BaseException:
            self._pending.discard(future)
            raise
        return future

    def _error(self, reason: str) -> BrokenExecutor:
        return BrokenThreadPool(reason) if self._process_count is None else broken(reason)

    @property
    def _max_workers(self) -> int:
        """How many bodies run at once: libraries ask a thread pool for it under this name."""
        return self._workers or len(self._core().slots)

    def _core(self) -> Core:
        context, origin = self._context, self._origin
        if context is None:
            return current_core()
        if origin is not None and context.log_sink is not origin.log_sink:
            context.log_sink = origin.log_sink
            context.profile_computes = origin.profile_computes
        core = context.core
        if core is None or core.halted is not None:
            core = context.start() if self._process_count is None else self._start_processes(context)
            if origin is not None:
                origin._announce()  # the scopes of the program go by its own context's slots, not by ours
        return core

    def _start_processes(self, context: Context) -> Core:
        try:
            return context.start()
        except (RemoteTaskError, WorkerLostError) as error:  # of the initializer
            raised = as_raised(error)
            LOGGER.critical("Exception in initializer:", exc_info=raised)  # in the words of a process pool
            self._broken = f"the initializer failed: {type(raised).__name__}: {raised}"
            raise broken(self._broken) from raised

    def _prepare_thread(self) -> None:
        """Call the initializer, once a thread."""
        if self._initializer is None or getattr(self._local, "ready", False):
            return
        if self._broken is not None:
            raise BrokenThreadPool(self._broken)
        try:
            self._initializer(*self._initargs)
        except BaseException as error:
            LOGGER.critical("Exception in initializer:", exc_info=True)  # in the words of a thread pool
            self._broken = f"the initializer failed: {type(error).__name__}: {error}"
            raise BrokenThreadPool(self._broken) from error
        self._local.ready = True

    @overload  # type: ignore[override]  # of four inputs and more only the number is not looked at
    def map(
        self,
        fn: Callable[[A], Body[T]],
        a: Iterable[Argument[A]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[A], T],
        a: Iterable[Argument[A]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[A, B], Body[T]],
        a: Iterable[Argument[A]],
        b: Iterable[Argument[B]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[A, B], T],
        a: Iterable[Argument[A]],
        b: Iterable[Argument[B]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[A, B, C], Body[T]],
        a: Iterable[Argument[A]],
        b: Iterable[Argument[B]],
        c: Iterable[Argument[C]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[A, B, C], T],
        a: Iterable[Argument[A]],
        b: Iterable[Argument[B]],
        c: Iterable[Argument[C]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., Body[T]],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        d: Iterable[Any],
        /,
        *more: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        d: Iterable[Any],
        /,
        *more: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """`fn` of each item (of several iterables: of the items side by side), the results in order.

        `timeout`: seconds from now for all results, then TimeoutError. `chunksize`: how many calls make one
        task (1 for coroutine functions). `buffersize`: at most so many tasks without their result taken, the
        inputs being read as results are taken; None reads all inputs now. When a call fails or the iterator
        is closed, what has not begun is cancelled.
        """
        if isinstance(chunksize, bool) or not isinstance(chunksize, int) or chunksize < 1:
            raise InvalidOptionError(f"chunksize must be a positive int, not {chunksize!r}")
        if buffersize is not None and (isinstance(buffersize, bool) or not isinstance(buffersize, int)):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise InvalidOptionError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        calls = items
        batched = chunksize > 1 and not inspect.iscoroutinefunction(fn)
        if batched:
            groups = iter(lambda: tuple(itertools.islice(items, chunksize)), ())
            calls = (tuple(itertools.chain.from_iterable(group)) for group in groups)
        width = len(iterables) if batched else 0
        futures: deque[TaskFuture[Any]] = deque()
        try:
            for args in itertools.islice(calls, buffersize):
                futures.append(self._submit(fn, args, {}, width))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        more = calls if buffersize is not None else iter(())
        return self._results(futures, (lambda args: self._submit(fn, args, {}, width)), more, deadline, batched)

    @staticmethod
    def _results(
        futures: deque[TaskFuture[Any]],
        submit: Callable[[tuple[Any, ...]], TaskFuture[Any]],
        more: Iterator[tuple[Any, ...]],
        deadline: float | None,
        batched: bool,
    ) -> Iterator[Any]:
        try:
            while futures:
                result = [_take_result(futures, deadline)]
                for args in itertools.islice(more, 1):
                    futures.append(submit(args))
                if batched:
                    result = result.pop()
                result.reverse()
                while result:  # what was yielded is the caller's alone
                    yield result.pop()
        finally:
            for left in futures:
                left.cancel()
                left._note_failure()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. `cancel_futures` cancels what has not begun, `wait` waits for the rest.

        A private context ends with its last task. Idempotent.
        """
        with self._lock:
            first, self._closed = not self._closed, True
        if cancel_futures:
            for future in list(self._pending):
                future.cancel()
        if wait:
            self._wait()
            if self._limit:
                set_limit(self._limit, None)
        if self._origin is None or self._context is None:
            return
        body = running_task()
        if wait and (body is None or body._core.context is not self._context):
            self._context.wait_idle()
            self._context.shutdown()
        elif first:
            # Its last task ends whenever it does, and a body of the context can't wait for itself.
            threading.Thread(target=_end_later, args=(self._context,), name="dagger-executor-end", daemon=True).start()

    def _wait(self) -> None:
        """Until every future is done, but that of the body that asks."""
        own = running_task()
        while left := [future for future in list(self._pending) if future.task is None or future.task is not own]:
            for future in left:
                if future.task is None:  # another thread is just submitting it
                    time.sleep(0)
                    continue
                if not future.done():  # else its thread just has not taken it out of `_pending` yet
                    refuse_on_loop_thread("the executor is not done, and waiting for it here")
                    step_until(future.task._core, future.done)
                    with slot_given_back():
                        concurrent.futures.wait([future])
                self._pending.discard(future)


def _take_result(futures: deque[TaskFuture[Any]], deadline: float | None) -> Any:
    future = futures.popleft()
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()  # after a timeout; a done one stays as it is
        del future  # else an error's traceback, which shows this frame, would refer to its future


def _end_later(context: Context) -> None:
    context.wait_idle()
    context.shutdown()


def _break(executor: weakref.ref[Executor], error: BaseException) -> None:
    """A worker died, and no other could be started in its place: what waits for one would wait for ever."""
    found = executor()
    if found is None or found._context is None or found._context.owned.ids:
        return
    reason = found._broken = f"no worker is left, and none can be started: {error}"
    for future in list(found._pending):
        if future.task is not None:
            fail(future.task._core, future.task, broken(reason))


def _end_forgotten(context: Context) -> None:
    """An executor was dropped without a shutdown: end its threads once what its bodies spawned is done."""
    core = context.core
    if core is not None and (next(core.unfinished(), None) is not None or not core.driver.is_idle()):
        call_later(LOOK_AGAIN_S, functools.partial(janitor.ask, functools.partial(_end_forgotten, context)))
    else:
        context.shutdown(timeout_s=0.0)


_live: weakref.WeakSet[Executor] = weakref.WeakSet()


def _at_exit() -> None:
    """The interpreter ends: what was submitted is waited for, as `concurrent.futures` does, or until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):  # what else is to be done at the end is done then, too
        for executor in list(_live):
            executor._closed = True
            executor._wait()


@forks.in_child("_live")
def _in_child() -> None:
    """After a fork: what was submitted belongs to the parent."""
    for executor in list(_live):
        executor._pending = set()


exits.before_exit(_at_exit)  # runs before the scheduler's own, which was registered earlier
