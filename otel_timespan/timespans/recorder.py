"""What the scheduler sees of a sink: a `Recorder`, or None when there is nothing to record.

The scheduler asks once per phase of a task (`context.recorder`), so that switching a sink takes effect
with the next phase, on warm threads too, and a disabled log costs one attribute check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..errors import InvalidOptionError
from .journal import Journal, expand_all
from .model import Event
from .sink import NoOpLog, write_event
from .warn import warn_once

__all__ = ["Recorder", "TraceParent", "WorkerSide", "recorder_for", "samplers_of", "tee_recorder"]

TraceParent = Any
"""What a sink wants to remember of the caller of `spawn` (OpenTelemetry: the parent span). Opaque here."""


class WorkerSide(Protocol):
    """What a sink does about worker processes. Called on the thread that talks to them; must neither raise nor wait."""

    @property
    def is_ready(self) -> bool:
        """Whether `part` can be asked, again and again until then."""

    def part(self, worker: int) -> Any:
        """What the sink is in that worker; it can be pickled. None: nothing.

        There its method `begin(worker, send, made)` is called; it gives an object with the methods `on_body`, as
        `Recorder` has it, `hand_over()` and `close()`. `send(signal, count, data, given_up)` brings to `take` here what
        bodies told there; `made(signal, count)` notes how much they did in all, where a kill of the process leaves it.
        """

    def enter(self, caller: TraceParent) -> None:
        """In the context in which is submitted what a body spawned in a worker; `caller`: that of the body's task."""

    def take(self, worker: int, signal: str, count: int, data: bytes | None, given_up: int) -> None:
        """What came from the part in a worker."""

    def lost(self, worker: int, missing: int) -> None:
        """A worker is gone, and with it so much that bodies told there."""


class Recorder:
    """The hooks of one sink. A hook that is None costs nothing.

    `append(record)` takes a record (see `journal`), from any thread; `event(event)` an `Event`, of a program's own say.
    `again(record)` appends once more after an `append` of that very record was broken off, unless it had come in (of a
    sink that writes at once: it had).
    `on_submit() -> TraceParent` is called in the spawning thread and context, once a task.
    `on_body(task_id, attempt, function, label, trace_parent, start_ns) -> span` is called on the
    thread of a body, in the body's own `contextvars` context, just before it. What its method `ended()` gives
    afterwards (the span, or None where it holds nothing) goes into the record of the finished compute. Neither may
    raise.
    `samplers` are the consumers that sample the moment itself: each has `sample() -> value`. While it is
    empty, `sample()` is None and need not be called.
    `workers`: what a scheduler with worker processes needs of a sink that has a part in each of them.
    `wants_cpu` asks for the CPU time of each body (a system call, 0.3 to 1 µs, twice a body).
    """

    __slots__ = ("again", "append", "event", "on_body", "on_submit", "put", "samplers", "wants_cpu", "workers")

    def __init__(
        self,
        append: Callable[[Any], None],
        *,
        put: Callable[[Any], None] | None = None,
        event: Callable[[Event], None] | None = None,
        again: Callable[[Any], None] | None = None,
        on_submit: Callable[[], TraceParent] | None = None,
        on_body: Callable[..., Any] | None = None,
        wants_cpu: bool = False,
        workers: WorkerSide | None = None,
    ) -> None:
        self.append = append
        self.put = put or append
        self.event = event or append
        self.again = again or _nothing
        self.on_submit = on_submit
        self.on_body = on_body
        self.wants_cpu = wants_cpu
        self.workers = workers
        self.samplers: tuple[Any, ...] = ()

    def sample(self) -> dict[Any, Any] | None:
        """The present values of all samplers, None where there is none. Never raises."""
        if not self.samplers:
            return None
        taken = {}
        for sampler in self.samplers:
            try:
                taken[sampler] = sampler.sample()
            except Exception:
                warn_once(sampler, "%s could not sample; its values are None", type(sampler).__name__)
                taken[sampler] = None
        return taken


def refuse_class(sink: Any) -> None:
    """Raise `InvalidOptionError` where a class was given for a sink of that class."""
    if isinstance(sink, type):
        raise InvalidOptionError(f"a sink is an object, not a class: {sink.__name__}(), not {sink.__name__}")


def recorder_for(sink: Any) -> Recorder | None:
    """The recorder of a sink: its own `recorder` where it has one, else one that writes at once.

    Raises `InvalidOptionError` for a class, which is no sink yet.
    """
    refuse_class(sink)
    if sink is None or isinstance(sink, NoOpLog):
        return None
    own = getattr(sink, "recorder", None)
    if isinstance(own, Recorder):
        return own
    write = _write_through(sink)

    def write_all(events: list[Event]) -> None:
        for event in events:
            write(event)

    # Finalizers must not call into a foreign sink: what they say waits for the drainer.
    return Recorder(write, put=Journal(write_all, forwards=True).put)


def tee_recorder(recorders: Sequence[Recorder]) -> Recorder:
    """One recorder that feeds several. At most one may have an `on_submit` (checked by `TeeLog`)."""
    tracing = next((r for r in recorders if r.on_submit is not None), None)

    def append(record: Any) -> None:
        for recorder in recorders:
            recorder.append(record)

    def put(record: Any) -> None:
        for recorder in recorders:
            recorder.put(record)

    def event(event: Event) -> None:
        for recorder in recorders:
            recorder.event(event)
    def again(record: Any) -> None:
        for recorder in recorders:
            recorder.again(record)

    joined = _Joined(
        append,
        put=put,
        event=event,
        again=again,
        on_submit=tracing.on_submit if tracing else None,
        on_body=tracing.on_body if tracing else None,
        wants_cpu=any(r.wants_cpu for r in recorders),
        workers=tracing.workers if tracing else None,
    )
    joined.known = ()
    joined.parts = joined.samplers = tuple(recorders)  # not empty: ask `sample`
    return joined


class _Joined(Recorder):
    """Consumers may be added to an inner sink at any time: ask the parts, each time."""

    __slots__ = ("known", "parts")
    parts: tuple[Recorder, ...]
    known: tuple[Any, ...]

    def sample(self) -> dict[Any, Any] | None:
        taken = {}
        for part in self.parts:
            taken.update(part.sample() or {})
        return taken or None


def samplers_of(recorder: Recorder) -> tuple[Any, ...]:
    """The consumers that sample the moment, of all sinks whose recorder it is: the same tuple while none changes."""
    if not isinstance(recorder, _Joined):
        return recorder.samplers
    found = tuple([sampler for part in recorder.parts for sampler in samplers_of(part)])
    if len(found) != len(recorder.known) or any(one is not two for one, two in zip(found, recorder.known, strict=True)):
        recorder.known = found
    return recorder.known


def _nothing(record: Any) -> None:
    """What is taken as written."""


def _write_through(sink: Any) -> Callable[[Any], None]:
    def append(record: Any) -> None:
        for event in [record] if type(record) is Event else expand_all([record]):
            try:
                write_event(sink, event)
            except Exception:
                warn_once(sink, "the log sink %s failed; its events are lost", type(sink).__name__)

    return append
