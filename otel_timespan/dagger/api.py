"""`spawn` and its kin: how programs make tasks.

See docs/concepts.md and docs/users.md; upstream: https://juliaparallel.org/Dagger.jl/dev/task-spawning/.
"""

# One overload covers a part of the next: the first that fits is meant.
# mypy: disable-error-code="overload-overlap, overload-cannot-match"

from __future__ import annotations

import contextvars
import functools
import inspect
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from ..errors import InvalidOptionError, NotCallableError, TaskCancelled
from . import context as _context
from .bodies import interrupts as _interrupts
from .bodies.ending import fail
from .core.limits import check_limits
from .data.chunks import Chunk
from .data.shards import Shard
from .fetching import fetch, note_failure, wait
from .options.declaring import TASK_OPTIONS, drop_removed
from .options.options import DEFAULT, Options
from .options.scoped import effective, scoped
from .queues import Spec
from .records.describe import callable_name
from .service.uninterrupted import uninterrupted
from .tasks.dtask import GIL, NOBODY, UNLAUNCHED, DTask, new_task
from .tasks.environment import SyncBlock, current, here, running_task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .core.machine import Core
    from .options.keywords import TaskKeywords
    from .signatures import Argument, Body, Missing, Spawn, SpawnCall
    from .tasks.references import Reference

__all__ = ["Task", "setitem", "spawn", "sync", "task"]

T = TypeVar("T")
U = TypeVar("U")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
G = TypeVar("G")
P = ParamSpec("P")
Function = TypeVar("Function", bound=Callable[..., Any])
Decorated = TypeVar("Decorated", bound=Callable[..., Any], covariant=True)

_copy_context = contextvars.copy_context
_next_id = _context.ids.next
_TASK_OR_CHUNK = frozenset((DTask, Chunk))


def _spawn(f: Any, /, *args: Any, **kwargs: Any) -> DTask:
    """Have `f(*args, **kwargs)` called, once its inputs are there: the `DTask` of that call, at once.

    If the first argument after `f` is an `Options`, it is taken (copied) as the task's options;
    `spawn.opts(scope=s)(f, 1)` says the same. An argument that is a `DTask` or a `Chunk` is replaced by its
    value before the call, and the task waits for it; one inside a list or dict is passed as it is.
    Thread-safe; may be called inside bodies.

    Raises `NotCallableError` (a TypeError) when `f` can't be called. What the body raises, `fetch`
    raises.
    """
    options = DEFAULT
    queue = None
    surroundings = scoped()
    if args and isinstance(args[0], Options):
        options = effective(args[0])
        args = args[1:]
    elif surroundings is not None:
        options = effective(None)
    if surroundings is not None:
        queue = surroundings.get("task_queue")
    if type(f) is not FunctionType and not callable(f):
        _check_function(f)
    around = here()
    block = None
    if around is None:
        eager = _context._eager
        core = eager.core if eager is not None else None
    else:
        if isinstance(around, SyncBlock):
            block, body = around, around.task
        else:
            body = around
        core = body._core if body is not None else _context.eager_context().core
        if _interrupts.used:
            _interrupts.check()
    if core is None or core.halted is not None:
        core = _context.eager_context().start()
    deps = args
    for a in args:
        if type(a) is not DTask:
            deps = tuple([a for a in args if type(a) is DTask]) if len(args) > 1 else ()
            break
    if refused:
        _refuse(f, args, kwargs)
    if kwargs or options is not DEFAULT or (type(f) is not FunctionType and type(f) in _TASK_OR_CHUNK):
        deps = all_dependencies(f, deps, kwargs, options)
    task: DTask = DTask()  # as `new_task`, without a call
    task.id = _next_id()
    task._f = f
    task._args = args
    task._kwargs = kwargs or None
    task._options = options
    task._deps = deps
    task._context = _copy_context()
    task._core = core
    task._subs = NOBODY if GIL else []
    task._tokens = None
    task._state = UNLAUNCHED
    task._open = True
    task._slot = None
    task._live = None
    task._reserved = None
    if block is not None:
        block.note(task)
    if queue is None:
        try:
            core.driver.submit(task)
        except BaseException:
            uninterrupted(_give_up, core, task)
            raise
    else:
        core.hold(task)
        queue.enqueue([(Spec(f, args, kwargs, options), task)])
    return task


def current_core() -> Core:
    """The scheduler that a `spawn` here would use; started if there is none."""
    body = running_task()
    core = body._core if body is not None else _context.eager_context().core
    return core if core is not None and core.halted is None else _context.eager_context().start()


def launch(core: Core, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options | None) -> DTask:
    """Submit a call to this scheduler, whichever is the current one; task queues and `sync` blocks are passed by."""
    if not callable(f):
        _check_function(f)
    given = effective(options)
    deps = tuple([a for a in args if type(a) is DTask])
    if refused:
        _refuse(f, args, kwargs)
    if kwargs or given is not DEFAULT or type(f) is DTask or type(f) is Chunk:
        deps = all_dependencies(f, deps, kwargs, given)
    task = new_task(_next_id(), f, args, kwargs or None, given, deps, _copy_context(), core)
    try:
        core.driver.submit(task)
    except BaseException:
        uninterrupted(_give_up, core, task)
        raise
    if core.halted is not None:  # it went down meanwhile, perhaps without seeing this one
        fail(core, task, core.halted, direct=True)
    return task


def _give_up(core: Core, task: DTask) -> None:
    """Submitting it broke off (by a signal handler, a hook of the log), and nobody has its handle: it is cancelled."""
    fail(core, task, TaskCancelled(f"the spawn of task {task.id} was interrupted"), "cancellation")
    core.driver.wake()
    core.driver.perform_effects()


def _opts(**options: Unpack[TaskKeywords]) -> SpawnCall:
    """`spawn` with these options: `spawn.opts(scope=s)(f, 1, 2)`."""
    given = Options(**drop_removed(options))

    def call(f: Any, /, *args: Any, **kwargs: Any) -> DTask:
        return _spawn(f, given, *args, **kwargs)

    return call  # type: ignore[return-value]


_spawn.__name__ = _spawn.__qualname__ = "spawn"
_spawn.opts = _opts  # type: ignore[attr-defined]
spawn: Spawn = _spawn  # type: ignore[assignment]
"""See `_spawn`: a plain function, because calling an object costs 0.1 µs more."""


refused: list[type] = []
"""Types that `spawn` does not take. The lazy API adds its own at its first use: until then nothing needs a look."""


def _refuse(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (f, *args, *kwargs.values()):
        if isinstance(value, tuple(refused)):
            raise InvalidOptionError(f"spawn takes no {value!r}: spawn its function, or compute it first")


def _check_function(f: Any) -> None:
    if not isinstance(f, (DTask, Chunk, Shard)):
        raise NotCallableError(f"spawn needs something to call, not {f!r}: spawn(f, *args), not spawn(f(*args))")


def all_dependencies(f: Any, deps: tuple[DTask, ...], kwargs: dict[str, Any], options: Options) -> tuple[DTask, ...]:
    """Function and keyword arguments count as inputs too, and what `syncdeps` names.

    Raises `InvalidOptionError` for a `limit` that was never set, and for options among the keywords of the call.
    """
    if not TASK_OPTIONS.keys().isdisjoint(kwargs):
        _refuse_options(f, kwargs)
    if options.limit is not None:
        check_limits(options.limit)
    more = [f, *kwargs.values()]
    found = [*deps, *(value for value in more if type(value) is DTask)]
    if options.syncdeps:
        known = {task.id for task in found}
        found += sorted((t for t in options.syncdeps if t.id not in known), key=lambda t: t.id)
    return tuple(found)


def _refuse_options(f: Any, kwargs: dict[str, Any]) -> None:
    """Raise `InvalidOptionError` for keywords that are options of a task where the function does not take them."""
    if not callable(f):
        return  # a task or a chunk: what it will be is not known
    try:
        taken = inspect.signature(f, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # of a builtin, that does not say
        return
    keywords = {name for name, one in taken.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    if any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        return
    for name in kwargs.keys() & TASK_OPTIONS.keys() - keywords:
        raise InvalidOptionError(
            f"{callable_name(f)} takes no argument {name!r}; the option of that name goes before the arguments: "
            f"spawn(f, Options({name}={reprlib.repr(kwargs[name])}), ...)"
        )


class Task(Generic[Decorated]):
    """A function whose calls are tasks; made by the decorator `task`. `.local()` calls it plainly."""

    def __init__(self, f: Decorated, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, f)
        self._f = f
        self._options = Options(**drop_removed(options)) if options else None

    @overload
    def __call__(self: Task[Callable[[], Body[T]]], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self: Task[Callable[[], T]], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self: Task[Callable[[A], Body[T]]], a: Argument[A], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self: Task[Callable[[A], T]], a: Argument[A], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B], Body[T]]], a: Argument[A], b: Argument[B], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B], T]], a: Argument[A], b: Argument[B], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C], Body[T]]], a: Argument[A], b: Argument[B], c: Argument[C], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C], T]], a: Argument[A], b: Argument[B], c: Argument[C], /, **kwargs: Reference
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C, D], Body[T]]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C, D], T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C, D, E], Body[T]]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C, D, E], T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C, D, E, G], Body[T]]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[[A, B, C, D, E, G], T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        /,
        **kwargs: Reference,
    ) -> DTask[T]: ...
    @overload
    def __call__(self: Task[Callable[P, Body[T]]], /, *args: P.args, **kwargs: P.kwargs) -> DTask[T]: ...
    @overload
    def __call__(self: Task[Callable[P, T]], /, *args: P.args, **kwargs: P.kwargs) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, P], Body[T]]], a: Argument[A], /, *args: P.args, **kwargs: P.kwargs
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, P], T]], a: Argument[A], /, *args: P.args, **kwargs: P.kwargs
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, B, P], Body[T]]],
        a: Argument[A],
        b: Argument[B],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, B, P], T]],
        a: Argument[A],
        b: Argument[B],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, B, C, P], Body[T]]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, B, C, P], T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> DTask[T]: ...
    @overload
    def __call__(self: Task[Callable[Concatenate[NoReturn, ...], object]], /) -> Missing[U]: ...
    @overload
    def __call__(self: Task[Callable[..., Body[T]]], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(self: Task[Callable[..., T]], /, **kwargs: Reference) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, B, C, D, E, G, ...], Body[T]]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> DTask[T]: ...
    @overload
    def __call__(
        self: Task[Callable[Concatenate[A, B, C, D, E, G, ...], T]],
        a: Argument[A],
        b: Argument[B],
        c: Argument[C],
        d: Argument[D],
        e: Argument[E],
        g: Argument[G],
        more: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> DTask[T]: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Spawn a call of the function."""
        if self._options is None:
            return spawn(self._f, *args, **kwargs)
        return spawn(self._f, self._options, *args, **kwargs)

    @overload  # of a class method
    def __get__(
        self: Task[Callable[Concatenate[type[A], P], T]], instance: object, owner: type[A]
    ) -> Task[Callable[P, T]]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> Task[Decorated]: ...
    @overload
    def __get__(self: Task[Callable[Concatenate[A, P], T]], instance: A, owner: Any = None) -> Task[Callable[P, T]]: ...
    @overload  # of a static method
    def __get__(self, instance: object, owner: Any = None) -> Task[Decorated]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """In a class: the method of an instance (or of the class) whose calls are tasks."""
        bind = getattr(self._f, "__get__", None)
        bound = self._f if bind is None else bind(instance, owner)
        if bound is self._f:
            return self
        made = Task(bound, {})
        made._options = self._options
        return made

    if TYPE_CHECKING:

        @property
        def local(self) -> Decorated:
            """The function itself."""

    else:

        def local(self, *args: Any, **kwargs: Any) -> Any:
            """Call the function itself, here and now."""
            return self._f(*args, **kwargs)


class _Decorator(Protocol):
    def __call__(self, f: Function, /) -> Task[Function]: ...


@overload
def task(f: Function, /, **options: Unpack[TaskKeywords]) -> Task[Function]: ...
@overload
def task(f: None = None, /, **options: Unpack[TaskKeywords]) -> _Decorator: ...
def task(f: Any = None, /, **options: Any) -> Any:
    """Decorator: calling the function spawns it. `@task` or `@task(name="load", scope=s)`; of methods, too."""
    if f is None:
        return lambda g: task(g, **options)
    if not callable(f) and not isinstance(f, classmethod):
        raise NotCallableError(f"@task decorates functions, not {f!r}")
    return Task(f, options)


def setitem(obj: Any, index: Any, value: Argument[T]) -> DTask[T]:
    """Spawn `obj[index] = value`; the task's value is `value`."""
    return spawn(_setitem, obj, index, value)


def _setitem(obj: Any, index: Any, value: Any) -> Any:
    obj[index] = value
    return value


@contextmanager
def sync() -> Iterator[None]:
    """Wait, at the end of the block, for every task that this thread spawned in it.

    Raises the first failure in spawn order; an exception of the block itself wins. Tasks spawned inside
    bodies do not count.
    """
    block = SyncBlock()
    token = current.set(block)
    try:
        yield
    finally:
        current.reset(token)
        for one in block.tasks:
            wait(one)
    try:
        for one in block.tasks:
            fetch(one)
    finally:  # the first failure is raised, the others are known to be there
        for one in block.tasks:
            note_failure(one)
