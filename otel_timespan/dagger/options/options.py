"""`Options`: what can be asked of a task. Each attribute is the declaration of one option, all that it is.

Who wins: the task's own option > the scoped option (`dagger/options/scoped.py`) > the scheduler's option > the
default of the signature (`dagger/options/defaults.py`) > the global default.

docs/options.md is the table of all, made of these declarations.
Upstream: https://juliaparallel.org/Dagger.jl/dev/task-spawning/.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ...errors import ConcurrencyViolationError
from ..places.devices import StorageDevice
from ..places.processors import Processor
from ..places.scopes import Scope
from . import checks
from .checks import Check, RefusedError, listed
from .declaring import (
    BLOCK_OPTIONS,
    TASK_OPTIONS,
    Declaration,
    Kept,
    dataclass_transform,
    declare,
    is_option,
    option,
    unknown_option,
)

__all__ = [
    "DEFAULT",
    "SCOPES",
    "BlockOptions",
    "Options",
    "SharedOptions",
    "ShippedOptions",
    "copied",
    "layer",
    "made",
]

SCOPES = frozenset(("scope", "compute_scope", "result_scope"))
"""Setting one of them clears `exec_scope`."""


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(option,))
class _Settable:
    """How options are set and read, whichever there are.

    An unset one is a class attribute: making an `Options` costs as much as it sets, and reading costs nothing.
    """

    __slots__ = ()  # with a dict of its own its subclass would find that of an instance more slowly

    def __init_subclass__(cls, into: dict[str, Declaration] | None = None) -> None:
        super().__init_subclass__()
        if into is not None:
            declare(cls, into)

    def __init__(self, **options: Any) -> None:
        if options:
            if options.get("scope") is not None and options.get("compute_scope") is None:
                options["compute_scope"] = options["scope"]
            given = self.__dict__
            for name, value in options.items():
                declared = TASK_OPTIONS.get(name)
                if declared is None:
                    raise unknown_option(name)
                if value is not None:
                    keep = declared.keep  # apart from the call: a method that is none is found more slowly
                    try:
                        given[name] = keep(value)
                    except RefusedError as refused:
                        raise declared.refusal(value, refused) from None

    def __setattr__(self, name: str, value: Any) -> None:
        declared = TASK_OPTIONS.get(name)
        if declared is None:
            raise unknown_option(name)
        if value is None:
            self.__dict__.pop(name, None)
        else:
            keep = declared.keep
            try:
                self.__dict__[name] = keep(value)
            except RefusedError as refused:
                raise declared.refusal(value, refused) from None
        if name in SCOPES:
            self.__dict__.pop("exec_scope", None)

    def __delattr__(self, name: str) -> None:
        setattr(self, name, None)

    def copy(self) -> Options:
        """An independent copy: its sets and mappings are its own."""
        return made(self.__dict__)

    def merge(self, other: Options | None) -> Options:
        """A copy of this one in which what `other` sets wins."""
        return self.copy() if other is None else made(layer(self.__dict__, other.__dict__))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Settable):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = self.__dict__
        return f"Options({', '.join(f'{name}={given[name]!r}' for name in TASK_OPTIONS if name in given)})"


def _names_of_options(value: Any) -> tuple[str, ...]:
    names = listed(value)
    for one in names:
        if not isinstance(one, str):
            raise RefusedError
        if not is_option(one):
            raise unknown_option(one)
    return tuple(dict.fromkeys(names))


NAMES = Check("a list of names of options", _names_of_options)

_INSTEAD = "use scope, such as scope(worker=1) or scope(threads='all')"
_NO_STREAMS = "streaming is to come"


class Options(_Settable, into=TASK_OPTIONS):
    """The options of a task; None means: not set. Not thread-safe: `spawn` takes a copy.

    Keywords only. Raises `InvalidOptionError` for names and values that can't work. Giving `scope` to the
    constructor sets `compute_scope` too, unless that is given. Assigning `scope`, `compute_scope` or
    `result_scope` clears `exec_scope`. docs/options.md has a table of all options.
    """

    propagates: Kept[Iterable[str], tuple[str, ...]] = option(
        NAMES,
        "Names of the options that tasks spawned by this one get, with this one's values.",
        default="the scoped options in force",
        when="body",
    )
    processor: Processor | None = option(checks.PROCESSOR, "Ignored by the scheduler.", default="none", when="never")
    scope: Scope | None = option(
        checks.SCOPE,
        "Where the task may run; given to the constructor it sets `compute_scope` too.",
        default="`DefaultScope()`",
        when="placement",
    )
    compute_scope: Scope | None = option(
        checks.SCOPE, "Where the task may run; wins over `scope`.", default="`scope`", when="placement"
    )
    result_scope: Scope | None = option(
        checks.SCOPE,
        "Where the result may be used; narrows where the task may run, too.",
        default="`AnyScope()`",
        when="placement",
    )
    exec_scope: Scope | None = option(
        checks.SCOPE,
        "Where the task runs: skips the computation of scopes. Setting one of the other three scopes clears it.",
        default="none",
        when="placement",
    )
    single: int | None = option(
        checks.at_least(1),
        "The only worker that may run the task.",
        default="none",
        when="placement",
        deprecated=_INSTEAD,
    )
    proclist: Kept[
        Iterable[type[Processor]] | Callable[[Processor], Any],
        tuple[type[Processor], ...] | Callable[[Processor], Any],
    ] = option(
        checks.PROCESSORS,
        "The types of processors that may run the task, or a predicate of a processor.",
        default="none",
        when="placement",
        deprecated=_INSTEAD,
    )
    get_result: bool | None = option(
        checks.FLAG, "Keep the result as it is instead of in a chunk.", default="False", when="result"
    )
    meta: bool | None = option(
        checks.FLAG, "Pass chunks instead of their values, and keep the result as it is.", default="False", when="body"
    )
    syncdeps: Kept[Collection[Any], set[Any]] = option(
        checks.TASKS, "Further tasks to wait for; their results are not passed.", default="none", when="spawn"
    )
    time_util: Kept[Mapping[Any, float], dict[Any, float]] = option(
        checks.SECONDS_BY_TYPE,
        "Expected run time in seconds by processor type.",
        default="learned, at first 1 s",
        when="placement",
    )
    alloc_util: Kept[Mapping[Any, float], dict[Any, float]] = option(
        checks.BYTES_BY_TYPE,
        "Expected memory in bytes by processor type.",
        default="learned, at first 0",
        when="placement",
    )
    occupancy: Kept[Mapping[Any, float], dict[Any, float]] = option(
        checks.SHARES_BY_TYPE,
        "Share of the processor by its type or `Any`, clamped to 0..1.",
        default="1",
        when="placement",
    )
    checkpoint: Callable[..., Any] | None = option(
        checks.FUNCTION, "`fn(thunk, result)`, called after success.", default="none", when="result"
    )
    restore: Callable[..., Any] | None = option(
        checks.FUNCTION, "`fn(thunk)`: a chunk that stands for the result, or None.", default="none", when="ready"
    )
    storage: StorageDevice | None = option(
        checks.STORAGE, "The storage device of the result.", default="the global one", when="result"
    )
    storage_root_tag: Any = option(
        checks.ANYTHING, "Tag for the root device, such as a file name.", default="none", when="result"
    )
    storage_leaf_tag: Any = option(checks.ANYTHING, "Tag for the leaf devices.", default="none", when="result")
    storage_retain: bool | None = option(
        checks.FLAG, "Keep what is on a device when the chunk dies.", default="False", when="result"
    )
    name: str | None = option(checks.TEXT, "A label for logs.", default="none", when="log")
    tag: int | None = option(checks.INTEGER, "Message tag of uniform execution; ignored.", default="none", when="never")
    stream_input_buffer_amount: int | None = option(
        checks.at_least(1), "Size of a stream's input buffers.", default="1", when="never", inert=_NO_STREAMS
    )
    stream_output_buffer_amount: int | None = option(
        checks.at_least(1), "Size of a stream's output buffers.", default="1", when="never", inert=_NO_STREAMS
    )
    stream_buffer_type: Callable[..., Any] | None = option(
        checks.BUFFER_TYPE,
        "What makes a stream's buffers.",
        default="a ring buffer in the process",
        when="never",
        inert=_NO_STREAMS,
    )
    stream_max_evals: int | None = option(
        checks.EVALUATIONS,
        "How often a streaming task runs; -1: without end.",
        default="-1",
        when="never",
        inert=_NO_STREAMS,
    )
    acceleration: Any = option(checks.ANYTHING, "Filter of processor families; ignored.", default="none", when="never")
    return_type: Any = option(
        checks.TYPE, "The type of the result before it exists.", default="unknown", when="placement"
    )
    retries: int | None = option(
        checks.at_least(0), "How often a body that raised is run again.", default="0", when="body"
    )
    retry_delay: float | Callable[[int], float] | None = option(
        checks.DELAY,
        "Seconds to wait before each retry, or a function of the attempt that failed (1, 2, ...).",
        default="0",
        when="body",
    )
    retry_on: Kept[type[Exception] | Collection[type[Exception]], tuple[type[Exception], ...]] = option(
        checks.EXCEPTIONS, "The exceptions after which a body is run again.", default="every `Exception`", when="body"
    )
    worker_losses: int | None = option(
        checks.at_least(1),
        "How many workers may die while they run the body; then the task fails with `WorkerLostError`.",
        default="3",
        when="body",
    )
    timeout: float | None = option(
        checks.POSITIVE_SECONDS, "Seconds that a body may run.", default="no limit", when="body"
    )
    limit: Kept[str | Iterable[str], tuple[str, ...]] = option(
        checks.LIMITS,
        "Names of limits under which the body runs (`set_limit`).",
        default="none",
        when="ready",
        propagates=False,  # a body that waits for its children has its place
        by_signature=False,  # defaults are looked up when a task is placed, limits before
    )


class BlockOptions(Options, into=BLOCK_OPTIONS):
    """What `with_options` takes: the options of tasks, and these. Only declared, never made."""

    task_queue: Any = option(
        checks.QUEUE,
        "The queue that tasks are submitted to.",
        default="the default queue",
        when="spawn",
        propagates=False,
    )


class SharedOptions(Options):
    """What all tasks share that were spawned without options of their own, in a block or outside of any."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise ConcurrencyViolationError("these options are shared by all tasks without options: change a copy()")

    def __reduce__(self) -> Any:
        return "DEFAULT" if self is DEFAULT else (made, (self.__dict__,))


class ShippedOptions(Options):
    """What another process gets of a task's options: those that mean something where the body runs.

    `handed_down`: the scoped options of the body, which are options of the tasks that it spawns, not its own.
    """

    __slots__ = ("handed_down",)
    handed_down: Mapping[str, Any] | None

    @classmethod
    def of(cls, own: Mapping[str, Any], handed_down: Mapping[str, Any] | None) -> ShippedOptions:
        """From values that were checked before."""
        new = cls.__new__(cls)
        new.__dict__.update(own)
        object.__setattr__(new, "handed_down", handed_down)
        return new


_MUTABLE = frozenset((set, dict))


def copied(value: Any) -> Any:
    """The value of an option, independent of this one."""
    return value.copy() if type(value) in _MUTABLE else value


def made(values: Mapping[str, Any]) -> Options:
    """Options of copies of values that were checked before."""
    new = Options.__new__(Options)
    given = new.__dict__
    for name, value in values.items():
        given[name] = value.copy() if type(value) in _MUTABLE else value
    return new


def layer(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`; a scope above hides a final scope below."""
    layered = {**low, **high}
    if "exec_scope" in low and "exec_scope" not in high and not SCOPES.isdisjoint(high):
        del layered["exec_scope"]
    return layered


DEFAULT: Options = SharedOptions()
"""The options of a task for which nothing was set anywhere; immutable, so that it can be told by `is`."""
