"""Where a ready task goes: `place`, and the slots that it chooses from.

A task of default scope that takes a whole processor goes to the shared queue of a worker: any of its
slots may run it, and per-slot queues bring nothing under the GIL (design/rulings.md 12). All others, the
pinned ones, go to the queue of one slot, ordered by occupancy, lowest first (spec/scheduler.md §17.7).

`place` is the seam for costs and stealing (spec §17.5): today it takes the candidate with the least work
queued, ties in the order of the processors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import SchedulingError
from .chunks import Chunk
from .dtask import DTask
from .options import DEFAULT, Options, apply_defaults, signature_defaults
from .processors import Processor
from .records import code_of
from .scopes import AnyScope, DefaultScope, InvalidScope, Scope, constrain, proc_in_scope

if TYPE_CHECKING:
    from .core import Core

__all__ = ["Slot", "execution_scope", "occupancy_on", "place"]

_ANY = AnyScope()
_DEFAULT = DefaultScope()


class Slot:
    """Room for one whole body at a time on one processor (several that take only a share of it).

    `heap` holds the tasks pinned to it as (occupancy, sequence, task), `used` the share that pinned
    bodies take; both are guarded by the core's lock. A body from the shared queue takes the slot whole,
    by taking it off the driver's list of free slots.
    """

    __slots__ = ("code", "heap", "processor", "used", "worker")

    def __init__(self, processor: Processor, worker: int) -> None:
        self.processor = processor
        self.code = code_of(processor)
        """The processor in the log's records."""
        self.worker = worker
        self.heap: list[tuple[float, int, Any]] = []
        self.used = 0.0

    def __repr__(self) -> str:
        return f"Slot({self.processor!r}, used={self.used})"


def place(core: Core, task: DTask) -> tuple[Slot | None, int]:
    """(slot, worker) for a ready task; slot None means the shared queue of that worker.

    Raises `SchedulingError` with code arg_scope, compute_result_scope or no_processors.
    """
    if signature_defaults:
        task._options = apply_defaults(task._options, *_signature(task))
    options = task._options
    if options is DEFAULT and not (Chunk.scoped_exist and _has_scoped_arguments(task)):
        return None, _least_loaded(core, list(core.shared))
    scope = execution_scope(task)
    candidates = [slot for slot in core.slots.values() if _allowed(slot.processor, scope, options)]
    if not candidates:
        raise SchedulingError(f"no processor lies in {scope!r} (task {task.id})", "no_processors")
    workers = _whole_workers(core, candidates)
    if workers and all(occupancy_on(task, slot.processor) == 1.0 for slot in candidates):
        return None, _least_loaded(core, workers)
    slot = min(candidates, key=lambda s: len(s.heap) + s.used + len(core.shared[s.worker]))
    return slot, slot.worker


def execution_scope(task: DTask) -> Scope:
    """Compute scope ∩ result scope ∩ scopes of all chunks given (spec/scheduler.md §6)."""
    options = task._options
    if options.exec_scope is not None:
        return options.exec_scope
    wanted = options.compute_scope or options.scope or _DEFAULT
    scope = constrain(wanted, options.result_scope or _ANY)
    if isinstance(scope, InvalidScope):
        raise SchedulingError(
            f"compute scope {wanted!r} and result scope {options.result_scope!r} have nothing in common",
            "compute_result_scope",
        )
    for value in (task._f, *task._args, *(task._kwargs or {}).values()):
        given = scope_of(value)
        if given is not None:
            narrower = constrain(scope, given)
            if isinstance(narrower, InvalidScope):
                raise SchedulingError(f"an argument may be used in {given!r} only, not in {scope!r}", "arg_scope")
            scope = narrower
    return scope


def scope_of(value: Any) -> Scope | None:
    """The scope that an argument brings along, None for any."""
    if type(value) is DTask:
        chunk = value._live.chunk if value._live is not None else None
        scope = chunk.scope if chunk is not None else value._options.result_scope
    else:
        scope = getattr(value, "scope", None)
    return scope if isinstance(scope, Scope) and not isinstance(scope, AnyScope) else None


def _signature(task: DTask) -> tuple[Any, tuple[type, ...]]:
    """The function and the types of the positional arguments, by the content of chunks and results."""
    types: list[type] = []
    for value in task._args:
        if type(value) is DTask:
            types.append(type(value._outcome.value))
        else:
            types.append(value.chunktype if type(value) is Chunk else type(value))
    return getattr(task._f, "__spawned__", task._f), tuple(types)


def _has_scoped_arguments(task: DTask) -> bool:
    return any(scope_of(v) is not None for v in (task._f, *task._args, *(task._kwargs or {}).values()))


def _allowed(processor: Processor, scope: Scope, options: Options) -> bool:
    if not proc_in_scope(processor, scope):
        return False
    if options.single is not None and getattr(processor, "owner", None) != options.single:
        return False
    wanted = options.proclist
    if wanted is None:
        return True
    if isinstance(wanted, type):
        return isinstance(processor, wanted)
    return bool(wanted(processor)) if callable(wanted) else isinstance(processor, tuple(wanted))


def occupancy_on(task: DTask, processor: Processor) -> float:
    """The share of a processor that the task takes: exact type first, then `Any`, else all of it."""
    shares = task._options.occupancy
    if not shares:
        return 1.0
    share = shares.get(type(processor))
    if share is None:
        share = shares.get(Any, 1.0)
    return float(share)


def _whole_workers(core: Core, candidates: list[Slot]) -> list[int]:
    """The workers of which every slot is a candidate."""
    counts: dict[int, int] = {}
    for slot in candidates:
        counts[slot.worker] = counts.get(slot.worker, 0) + 1
    full: dict[int, int] = {}
    for slot in core.slots.values():
        full[slot.worker] = full.get(slot.worker, 0) + 1
    whole = [worker for worker, count in counts.items() if count == full[worker]]
    return whole if sum(counts[w] for w in whole) == len(candidates) else []


def _least_loaded(core: Core, workers: list[int]) -> int:
    return workers[0] if len(workers) == 1 else min(workers, key=lambda w: len(core.shared[w]))
