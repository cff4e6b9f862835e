"""What a body gave, as the outcome of its task: a handle, a plain `Result`, or the chunk that it returned.

See docs/data.md.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from ..data.chunks import Chunk, DRef, new_handle, new_logged_handle, scoped_chunks
from ..data.read import read
from ..data.spilling import keep_result, watch_handle
from ..options.options import DEFAULT
from ..places.scopes import AnyScope
from ..records.sizes import FIXED
from ..service import head
from ..tasks.dtask import DTask, Result, live

if TYPE_CHECKING:
    from ..core.machine import Core
    from ..core.placement import Slot

__all__ = ["as_chunk", "given_as", "learn", "pack_or_fail", "saved_chunk"]


def pack_or_fail(core: Core, task: DTask, value: Any, recorder: Any) -> tuple[Any, BaseException | None]:
    """`_pack`; a value that its storage does not take fails the task, and is not kept alive by the error."""
    try:
        return _pack(core, task, value, recorder), None
    except Exception as refused:
        value = None
        inner: BaseException | None = refused
        seen: set[int] = set()  # chains of causes may go round
        while inner is not None and id(inner) not in seen:
            seen.add(id(inner))
            traceback.clear_frames(inner.__traceback__)
            inner = inner.__cause__ or inner.__context__
        return None, refused


def _pack(core: Core, task: DTask, value: Any, recorder: Any) -> Any:
    options = task._options
    if options is not DEFAULT:
        if options.result_scope is not None:
            scoped_chunks[:] = [True]
        if options.get_result or options.meta:
            return Result(read(value) if isinstance(value, DRef) else value)
    if isinstance(value, DRef):  # made of what another process gave
        return value
    if type(value) is Chunk:
        live(task).chunk = value
        if recorder is not None:
            watch_handle(value.handle, recorder, core.clock)
        return value.handle
    if options.storage is not None:
        kept = keep_result(core, task, value, recorder)
        if kept is not None:
            return kept
    ref = None if type(value) in FIXED else given_as(value, task._args)
    if ref is not None:
        if recorder is not None:
            watch_handle(ref, recorder, core.clock)
        return ref
    if core.devices is not None and options.storage is None:
        kept = keep_result(core, task, value, recorder)
        if kept is not None:
            return kept
    worker = task._slot.worker
    return new_handle(value, worker) if recorder is None else new_logged_handle(value, recorder.put, worker)


def given_as(value: Any, args: tuple[Any, ...]) -> DRef | None:
    """The handle under which a body was given what it returned: one object must not count twice."""
    for arg in args:
        ref = arg._outcome if type(arg) is DTask else arg.handle if type(arg) is Chunk else None
        if isinstance(ref, DRef) and ref.held is value:
            return ref
    return None


def as_chunk(value: Any, task: DTask | None = None) -> Any:
    """For `meta` and `fetch(raw=True)`: the result of a task as the `Chunk` that holds it; all else as it is."""
    if type(value) is not DTask:
        return value
    outcome = value._outcome
    if not isinstance(outcome, DRef):
        return read(outcome)
    extra = live(value)
    if extra.chunk is None and head.link is not None:
        extra.chunk = head.link.ask("chunk", value.id)
    if extra.chunk is None:
        scope = value._options.result_scope
        processor = value._slot.processor
        extra.chunk = Chunk(outcome, processor) if scope is None else Chunk(outcome, processor, scope)
    return extra.chunk


def saved_chunk(task: DTask, outcome: Any) -> Any:
    """What a checkpoint is given: the chunk of the result, or the plain value of `get_result` and `meta`."""
    if not isinstance(outcome, DRef):
        return read(outcome)
    chunk = task._live.chunk if task._live is not None else None
    return chunk or Chunk(outcome, task._slot.processor, task._options.result_scope or AnyScope())


def learn(core: Core, slot: Slot, f: Any, args: tuple[Any, ...], kwargs: Any, ns: int, outcome: Any) -> None:
    """Remember how long a body took, and how large its result is."""
    nbytes = outcome.nbytes if isinstance(outcome, DRef) else None
    core.costs.learn_run(core.costs.signature(f, args, kwargs), type(slot.processor), ns, nbytes)
