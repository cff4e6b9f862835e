"""The lazy API: `delayed` makes a graph without running it, `compute` and `collect` run it as a batch.

Each run has a scheduler of its own that ends with it; it shares nothing with the eager one. By default the
first error of a body ends the run and is raised as it is; with `allow_errors` it propagates as it does
for `spawn`.

See docs/concepts.md; upstream: https://juliaparallel.org/Dagger.jl/dev/task-spawning/#Lazy-API.
"""

# One overload covers a part of the next: the first that fits is meant.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import contextvars
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ..errors import (
    DynamicThunkError,
    InvalidOptionError,
    NotCallableError,
    NoWorkersError,
    RemoteTaskError,
    SchedulerHaltedError,
)
from . import api as _api
from . import context as _context
from .bodies.checkpoints import save, try_restore
from .bodies.ending import halt
from .context import Context
from .core.machine import Core
from .data.bound import process_bound
from .data.chunks import Chunk
from .data.shards import Shard
from .data.tochunk import tochunk
from .fetching import fetch, wait
from .options.declaring import drop_removed
from .options.options import DEFAULT, Options
from .options.scoped import effective
from .tasks.dtask import DTask, new_task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options.keywords import TaskKeywords
    from .signatures import Body

__all__ = ["SchedulerOptions", "Thunk", "collect", "compute", "delayed"]

T = TypeVar("T")
Result = TypeVar("Result", covariant=True)

_ids = itertools.count(1)
_warned = False


@dataclass(frozen=True)
class SchedulerOptions:
    """Options of one batch run.

    `single` (a worker) and `proclist` fill the same options of tasks where unset (deprecated). `restore()`
    may give the answer, `checkpoint(chunk)` is called after a successful run.
    """

    single: int | None = None
    proclist: Any = None
    allow_errors: bool = False
    checkpoint: Callable[[Chunk], Any] | None = None
    restore: Callable[[], Chunk | None] | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint", "restore"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise InvalidOptionError(f"{name}={hook!r}: it must be a function")


@process_bound
class Thunk(Generic[Result]):
    """A call that has not been made: `f`, `inputs` (args and kwargs), `options`. Compared by identity."""

    __slots__ = ("__weakref__", "args", "f", "id", "kwargs", "options")

    def __init__(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> None:
        self.id = next(_ids)
        self.f, self.args, self.kwargs = f, args, kwargs
        self.options = options

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The arguments, positional ones first."""
        return (*self.args, *self.kwargs.values())

    def upstreams(self) -> list[Thunk[Any]]:
        """The thunks among the function, the arguments and the syncdeps."""
        given = [self.f, *self.args, *self.kwargs.values(), *(self.options.syncdeps or ())]
        return [value for value in given if isinstance(value, Thunk)]

    def __reduce__(self) -> Any:
        raise TypeError("a Thunk can't be serialised: compute it and pass its value")

    def __repr__(self) -> str:
        return f"Thunk({self.id}, {getattr(self.f, '__name__', self.f)})"


@overload
def delayed(
    f: Callable[..., Body[T]], options: Options | None = None, /, **opts: Unpack[TaskKeywords]
) -> Callable[..., Thunk[T]]: ...
@overload
def delayed(
    f: Callable[..., T], options: Options | None = None, /, **opts: Unpack[TaskKeywords]
) -> Callable[..., Thunk[T]]: ...
@overload
def delayed(
    f: Chunk | Shard | Thunk[Any], options: Options | None = None, /, **opts: Unpack[TaskKeywords]
) -> Callable[..., Thunk[Any]]: ...
def delayed(f: Any, options: Options | None = None, /, **opts: Any) -> Callable[..., Thunk[Any]]:
    """`delayed(f, **options)(*args)`: the call as a `Thunk`, not made. Thunks as arguments are inputs.

    Legacy, as upstream: prefer `spawn`. Warns once. Raises `NotCallableError` for what can't be called.
    """
    global _warned
    if not (callable(f) or isinstance(f, (Chunk, Thunk, Shard))):
        raise NotCallableError(f"delayed needs something to call, not {f!r}")
    if not _warned:
        _warned = True
        warnings.warn(
            "delayed, compute and collect are legacy: prefer spawn and fetch", DeprecationWarning, stacklevel=2
        )
    if Thunk not in _api.refused:
        _api.refused.append(Thunk)
    given = Options(**drop_removed(opts))
    if options is not None:
        given = options.merge(given)

    def call(*args: Any, **kwargs: Any) -> Thunk[Any]:
        return Thunk(f, args, kwargs, given.copy())  # a copy each: dependency sets must not be shared

    return call


@overload
def compute(ctx: Thunk[T] | Chunk[T], *, options: SchedulerOptions | None = None) -> Chunk[T]: ...
@overload
def compute(ctx: Context, thunk: Thunk[T] | Chunk[T], *, options: SchedulerOptions | None = None) -> Chunk[T]: ...
def compute(ctx: Any, thunk: Any = None, *, options: SchedulerOptions | None = None) -> Chunk:
    """Run everything that `thunk` needs in a scheduler of its own; the `Chunk` of its result.

    `compute(thunk)` or `compute(context, thunk)`. A chunk is returned unchanged. Raises what a body
    raised, with a note that names the task; `DTaskFailedError` with `allow_errors` and for tasks that had
    no place to run; `SchedulerHaltedError` when the run was halted.
    """
    if not isinstance(ctx, Context):
        ctx, thunk = _context.eager_context(), ctx
    if isinstance(thunk, Chunk):
        return thunk
    if not isinstance(thunk, Thunk):
        raise InvalidOptionError(f"compute takes a Thunk or a Chunk, not a {type(thunk).__name__}")
    if not isinstance(options, (SchedulerOptions, type(None))):
        raise InvalidOptionError(f"options must be SchedulerOptions, not {options!r}")
    wanted = options or SchedulerOptions()
    if wanted.single is not None and wanted.single not in [p.pid for p in ctx.procs]:
        raise InvalidOptionError(f"single={wanted.single}: there is no such worker")
    restored = try_restore(wanted.restore, "Scheduler")
    if restored is not None:
        return restored
    chunk = _run(ctx, thunk, wanted)
    save(wanted.checkpoint, "Scheduler", chunk)
    return chunk


@overload
def collect(ctx: Thunk[T] | Chunk[T], *, options: SchedulerOptions | None = None) -> T: ...
@overload
def collect(ctx: Context, thunk: Thunk[T] | Chunk[T], *, options: SchedulerOptions | None = None) -> T: ...
def collect(ctx: Any, thunk: Any = None, *, options: SchedulerOptions | None = None) -> Any:
    """`compute`, then the value. A chunk is just retrieved."""
    return compute(ctx, thunk, options=options).fetch(unwrap=True)


def _run(ctx: Context, thunk: Thunk[Any], options: SchedulerOptions) -> Chunk:
    batch = ctx.for_batch()
    core = batch.start()
    core.is_batch = True
    first_error: list[tuple[DTask, BaseException]] = []
    root: DTask | None = None
    if not options.allow_errors:

        def abort(task: DTask, error: BaseException) -> None:
            first_error.append((task, error))
            halt(core, error)

        core.on_body_error = abort
    try:
        if not core.active:
            raise NoWorkersError("no remaining workers", "no_processors")
        root = _instantiate(core, thunk, options)
        try:
            wait(root)
            batch.wait_idle()  # a run ends when all of it did: siblings of what failed, and what was added on the way
        except BaseException:
            if not first_error:
                raise
        if first_error:
            raise _noted(*first_error.pop())  # out of this frame, which its traceback refers to
        if not root.isready() or isinstance(core.halted, SchedulerHaltedError):
            raise core.halted or SchedulerHaltedError("the run was halted")
        result = fetch(root, raw=True)
        return result if isinstance(result, Chunk) else tochunk(result)
    finally:
        batch.shutdown()
        del root  # its failure refers to this frame


def _noted(task: DTask, error: BaseException) -> BaseException:
    """The error as the collector gets it: with a note that names the task; errors of dynamic control as remote."""
    if isinstance(error, DynamicThunkError):
        return RemoteTaskError(1, error)
    if hasattr(error, "add_note"):
        error.add_note(f"raised by {task._summary}")
    return error


def _instantiate(core: Core, root: Thunk[Any], options: SchedulerOptions) -> DTask:
    """Make tasks of all that `root` needs and submit them, deepest first."""
    order = _order(root)
    tasks: dict[Thunk[Any], DTask] = {}
    for thunk in _topological(root):
        tasks[thunk] = _task_of(core, thunk, tasks, options)
    core.batch += [task.id for task in tasks.values()]
    # Those that wait go first: the ready ones may finish while the others are still being submitted.
    ready = [t for t in tasks if not t.upstreams()]
    for thunk in [t for t in tasks if t.upstreams()]:
        core.driver.submit(tasks[thunk])
    for thunk in sorted(ready, key=lambda t: -order[t]):
        core.driver.submit(tasks[thunk])
    return tasks[root]


def _task_of(core: Core, thunk: Thunk[Any], tasks: dict[Thunk[Any], DTask], run: SchedulerOptions) -> DTask:
    def swap(value: Any) -> Any:
        return tasks[value] if isinstance(value, Thunk) else value

    filled = {name: getattr(run, name) for name in ("single", "proclist") if getattr(run, name) is not None}
    own = thunk.options if not filled else Options(**filled).merge(thunk.options)
    if own.syncdeps:
        own = own.copy()
        own.syncdeps = {swap(dep) for dep in thunk.options.syncdeps or ()}
    options = DEFAULT if own == DEFAULT else effective(own)
    args = tuple(swap(a) for a in thunk.args)
    kwargs = {name: swap(v) for name, v in thunk.kwargs.items()}
    deps = tuple(a for a in args if type(a) is DTask)
    deps = _api.all_dependencies(swap(thunk.f), deps, kwargs, options)
    context = contextvars.copy_context()
    return new_task(_context.ids.next(), swap(thunk.f), args, kwargs or None, options, deps, context, core)


def _topological(root: Thunk[Any]) -> list[Thunk[Any]]:
    """Upstreams before downstreams, without recursion. Raises `InvalidOptionError` for a cycle."""
    done: dict[Thunk[Any], bool] = {}  # False while on the way down
    ordered: list[Thunk[Any]] = []
    stack = [(root, iter(root.upstreams()))]
    done[root] = False
    while stack:
        thunk, rest = stack[-1]
        for up in rest:
            if up not in done:
                done[up] = False
                stack.append((up, iter(up.upstreams())))
                break
            if not done[up]:
                raise InvalidOptionError(f"the graph has a cycle through {up!r}: a task can't wait for itself")
        else:
            done[thunk] = True
            ordered.append(thunk)
            stack.pop()
    return ordered


def _order(root: Thunk[Any]) -> dict[Thunk[Any], int]:
    """Root 1, then breadth-first, upstreams with fewer (transitive) downstream tasks first."""
    downstream: dict[Thunk[Any], int] = {}
    bit = {thunk: 1 << n for n, thunk in enumerate(_topological(root))}
    for thunk in reversed(list(bit)):
        mine = downstream.setdefault(thunk, 0) | bit[thunk]
        for up in thunk.upstreams():
            downstream[up] = downstream.get(up, 0) | mine
    count = {thunk: mask.bit_count() for thunk, mask in downstream.items()}
    order: dict[Thunk[Any], int] = {}
    level = [root]
    while level:
        below: list[Thunk[Any]] = []
        for thunk in level:
            if thunk not in order:
                order[thunk] = len(order) + 1
                below += sorted(thunk.upstreams(), key=lambda t: count[t])
        level = below
    return order
