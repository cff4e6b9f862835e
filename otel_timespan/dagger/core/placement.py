"""Where a ready task goes: `place`, and the slots that it chooses from.

Placement yields a *spot*. A task that takes a whole processor and may run on every thread of a worker goes
to the shared queue of that worker: any of its thread slots may run it, and queues a slot bring nothing under
the GIL. All others go to the queue of one slot, ordered by occupancy, lowest first, from where the other slots
of that worker may steal them, as far as the task's scope allows (`steal`).

The spot with the least expected cost wins (costs.py); among equals chance decides. `Core.place` is the
seam: a policy is a function of (core, task).

See docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import NoWorkersError, SchedulingError
from ...timespans.model import attribute_of
from ...timespans.warn import warn_once
from ..data.chunks import scoped_chunks
from ..options.defaults import apply_defaults, signature_defaults
from ..options.options import DEFAULT, Options
from ..places.processors import OSProc, Processor, ThreadProc, get_processors, root
from ..places.scopes import AnyScope, DefaultScope, InvalidScope, Scope, constrain, proc_in_scope
from ..records.kinds import CORE_WORKER, code_of
from ..tasks.atomics import claim
from ..tasks.dtask import DONE, DTask
from .costs import (
    DEFAULT_TIME_COST,
    HOP_COST,
    Signature,
    bytes_by_worker,
    content_of,
    numbers_among,
    remote_bytes,
    type_of,
)

if TYPE_CHECKING:
    from .machine import Core

__all__ = [
    "Choice", "Pressure", "Slot", "Spot", "candidates_of", "choices_of", "cost_of", "execution_scope", "inputs_of",
    "may_leave", "occupancy_on", "place", "place_again", "share_on", "slots_of", "spots_of", "steal", "steal_from_afar",
]  # fmt: skip

_ANY = AnyScope()
_DEFAULT = DefaultScope()


class Pressure:
    """Expected nanoseconds of all that waits or runs in one place. Guarded by the core's lock."""

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 0.0


class Slot:
    """Room for one whole body at a time on one processor (several that take only a share of it).

    `heap` holds the tasks pinned to it as (occupancy, sequence, task, slots that may run it), `used` the
    share that pinned bodies take; both are guarded by the core's lock. `shares`: it is a thread of its
    worker and runs what is in the worker's shared queue, taking the slot whole, by taking it off the driver's
    list of free slots; a slot of a custom processor runs pinned tasks only.
    """

    __slots__ = ("code", "heap", "number", "pressure", "processor", "shares", "takes_default", "used", "worker")

    def __init__(self, processor: Processor, worker: int) -> None:
        self.processor = processor
        self.code = code_of(processor)
        """The processor in the log's records."""
        self.worker = worker
        self.shares = type(processor) is ThreadProc
        self.number: int = processor.tid if type(processor) is ThreadProc else 0
        """What it is called between a worker process and the head; those of custom processors come behind threads'."""
        self.takes_default = self.shares or processor.default_enabled()
        self.heap: list[tuple[float, int, Any, Sequence[Slot]]] = []
        self.used = 0.0
        self.pressure = Pressure()

    def __repr__(self) -> str:
        return f"Slot({self.processor!r}, used={self.used})"


def _order_of(processor: Processor) -> str:
    try:
        return repr(processor)
    except Exception:  # the user's own __repr__ raised
        return type(processor).__name__


def slots_of(worker: int) -> list[Slot]:
    """New slots for the processors of a worker: its threads in order, then what its callbacks report.

    A processor whose hooks `get_parent` or `default_enabled` raise is left out, with a warning.
    """
    found = get_processors(OSProc(worker))
    threads = [p for p in found if type(p) is ThreadProc]
    slots = [Slot(p, worker) for p in sorted(threads, key=lambda p: p.tid)]
    for processor in sorted(found.difference(threads), key=_order_of):
        try:
            root(processor)
            slots.append(Slot(processor, worker))
        except Exception:
            warn_once(processor, "a processor of type %s can't be used: a hook of it failed", type(processor).__name__)
    return slots


class Spot(NamedTuple):
    """Where a task may go: a slot, or with `slot` None the shared queue of a worker.

    `slots`: those that may run it there, later thieves included.
    """

    slot: Slot | None
    worker: int
    slots: Sequence[Slot]

    @property
    def processor(self) -> Processor:
        """The processor that it would run on, or one of several alike."""
        return self.slots[0].processor


Policy = Callable[["Core", DTask], Spot]

Choice = tuple[Spot, Pressure, int, float]
"""The shared queue of a worker, as `place` compares it: spot, pressure, number of threads, hop."""


def choices_of(core: Core) -> list[Choice]:
    """What a task that may run anywhere has to choose from; none where that is all the same, or not so simple."""
    if core.is_alone or core.custom_defaults:
        return []
    return [
        (Spot(None, worker, threads), core.pressure[worker], len(threads), _hop_to(worker))
        for worker in core.active
        if (threads := core.threads[worker])
    ]


def _hop_to(worker: int) -> float:
    return 0.0 if worker == CORE_WORKER else HOP_COST


def place(core: Core, task: DTask) -> Spot:
    """The cheapest spot for a ready task, with its expected time reserved there.

    Raises `SchedulingError` with code arg_scope, compute_result_scope or no_processors, and whatever a hook
    of a custom processor or a predicate of the user raises.
    """
    choices = core.choices
    if choices and task._options is DEFAULT and not signature_defaults and not (scoped_chunks and _is_scoped(task)):
        spot = _place_anywhere(core, task, choices)
        if spot is not None:
            return spot
    spots = spots_of(core, task)
    if len(spots) == 1 and core.is_alone and spots[0].slot is None and task._options.compute_scope is None:
        return spots[0]  # nothing to choose, and nobody to compare with
    sig = core.costs.signature(task._f, task._args, task._kwargs)
    inputs = inputs_of(task)
    core.shuffle(spots)
    best = min(spots, key=lambda spot: cost_of(core, sig, spot, inputs, task._options))
    reserve(core, task, best, core.costs.run_ns(sig, best.processor, task._options))
    return best


def place_again(core: Core, task: DTask) -> Spot:
    """`place` for a task whose body ran on a worker that died: not in this process, if there is another one for it."""
    spots = spots_of(core, task)
    away = [spot for spot in spots if spot.worker != core.local] or spots
    core.shuffle(away)
    best = min(away, key=lambda spot: pressure_of(core, spot))
    sig = core.costs.signature(task._f, task._args, task._kwargs)
    reserve(core, task, best, core.costs.run_ns(sig, best.processor, task._options))
    return best


def _place_anywhere(core: Core, task: DTask, choices: list[Choice]) -> Spot | None:
    """`place` for a task that may run anywhere: every `cost_of` in one pass. None where sizes of inputs are unknown."""
    costs, f, sig = core.costs, task._f, None
    held: dict[int, int] | None = None
    if not task._kwargs and type(f) is FunctionType:
        if not task._deps:
            sig = costs.signatures.get((id(f.__code__), tuple(map(type, task._args))))
        else:
            known = numbers_among(task._args)
            if known is not None:
                held = known[1]
                whole = sum(held.values())
                sig = costs.signatures.get((id(f.__code__), known[0]))
    if sig is None:
        sig = costs.signature(f, task._args, task._kwargs)
        held = bytes_by_worker(inputs_of(task))
        if held is None:
            return None
        whole = sum(held.values())
    run_ns = costs.time.get((sig, ThreadProc), DEFAULT_TIME_COST)
    rng, least, equal, near = core.rng, inf, 0, core.near
    best, counter, _, _ = choices[0]
    for spot, pressure, threads, hop in choices:
        ns = run_ns + costs.transfer_ns(whole - held.get(spot.worker, 0), spot.worker) if held else run_ns
        cost = ns + hop + pressure.ns / threads
        if cost < least:
            least, equal, best, counter = cost, 1, spot, pressure
        elif cost == least and rng is not None and best.worker != near:
            equal += 1  # each of the equal ones with the same chance, but for the one that waits for work already
            if spot.worker == near or rng.random() * equal < 1.0:
                best, counter = spot, pressure
    _reserve(core, task, counter, run_ns)
    return best


def _is_scoped(task: DTask) -> bool:
    """Whether an input says where it may be used."""
    return any([scope_of(value) is not None for value in inputs_of(task)])


def inputs_of(task: DTask) -> tuple[Any, ...]:
    """Everything that a task is given: its function, positional and keyword arguments."""
    return (task._f, *task._args, *(task._kwargs.values() if task._kwargs else ()))


def spots_of(core: Core, task: DTask) -> list[Spot]:
    """All spots where a task may go. Raises `SchedulingError` where there is none."""
    if signature_defaults:
        types = tuple(type_of(a) for a in task._args)
        task._options = apply_defaults(task._options, attribute_of(task._f, "__spawned__", task._f), types)
    options = task._options
    if options is DEFAULT and not core.custom_defaults and not (scoped_chunks and _is_scoped(task)):
        return [Spot(None, worker, core.threads[worker]) for worker in core.active]
    slots = candidates_of(core, task)
    if not slots:
        _refuse(core, task, options)
    return _grouped(core, task, slots)


def _refuse(core: Core, task: DTask, options: Options) -> None:
    if not core.active:
        raise NoWorkersError("no remaining workers", "no_processors")
    scope = options.exec_scope or execution_scope(task)
    there = ", ".join(f"worker {worker} ({len(core.threads[worker])} threads)" for worker in core.active)
    reason = f"no processor lies in {scope!r}, and fits task {task.id}; there are {there}"
    raise SchedulingError(reason, "no_processors")


def candidates_of(core: Core, task: DTask) -> list[Slot]:
    """The slots of the core's present workers that may run the task."""
    scope = execution_scope(task)
    active, options = core.active, task._options
    slots = [s for s in core.slots.values() if s.worker in active and _allowed(s.processor, scope, options)]
    if all(s.shares for s in slots):  # threads are compatible with everything
        return slots
    f = content_of(task._f)
    types = [type_of(value) for value in inputs_of(task)[1:]]
    return [s for s in slots if s.shares or s.processor.iscompatible(options, f, *types)]


def _grouped(core: Core, task: DTask, slots: list[Slot]) -> list[Spot]:
    """Workers of which all threads are candidates become one spot, all else a spot a slot."""
    by_worker: dict[int, list[Slot]] = {}
    for slot in slots:
        by_worker.setdefault(slot.worker, []).append(slot)
    spots: list[Spot] = []
    for worker, own in by_worker.items():
        threads = [slot for slot in own if slot.shares]
        whole = len(threads) == len(core.threads[worker]) and all(
            occupancy_on(task, slot.processor) == 1.0 for slot in threads
        )
        if threads and whole:
            spots.append(Spot(None, worker, threads))
            own = [slot for slot in own if not slot.shares]
        spots += [Spot(slot, worker, own) for slot in own]
    return spots


def cost_of(core: Core, sig: Signature, spot: Spot, inputs: Iterable[Any], options: Options) -> float:
    """Expected nanoseconds until a call with these inputs would be done there, pressure included."""
    costs, worker = core.costs, spot.worker
    cost = costs.run_ns(sig, spot.processor if spot.slot is None else spot.slot.processor, options)
    if not core.is_alone:
        nbytes = remote_bytes(inputs, worker)
        if nbytes:
            cost += costs.transfer_ns(nbytes, worker)
        cost += _hop_to(worker)
    return cost + pressure_of(core, spot)


def pressure_of(core: Core, spot: Spot) -> float:
    """Expected time until the spot is free: what is reserved there, spread over the threads that share it."""
    shared = core.pressure[spot.worker].ns / max(1, len(core.threads[spot.worker]))
    return shared if spot.slot is None else spot.slot.pressure.ns + (shared if spot.slot.shares else 0.0)


def reserve(core: Core, task: DTask, spot: Spot, ns: float) -> None:
    """Count the task's expected time where it was placed; `Core.unreserve` takes it off again."""
    _reserve(core, task, core.pressure[spot.worker] if spot.slot is None else spot.slot.pressure, ns)


def _reserve(core: Core, task: DTask, pressure: Pressure, ns: float) -> None:
    if task._reserved is not None:
        core.unreserve(task)  # it is placed again: a retry, a theft
    reserved = (pressure, ns)
    with core.lock:
        task._reserved = reserved
        pressure.ns += ns
    if not hasattr(task, "_open"):  # ended meanwhile, perhaps before that
        core.unreserve(task)


# ---- scopes ------------------------------------------------------------------------------------------


def execution_scope(task: DTask) -> Scope:
    """Compute scope ∩ result scope ∩ scopes of all chunks given."""
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
    for value in inputs_of(task):
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
        scope = attribute_of(value, "scope")
    return scope if isinstance(scope, Scope) and not isinstance(scope, AnyScope) else None


def _allowed(processor: Processor, scope: Scope, options: Options) -> bool:
    if not proc_in_scope(processor, scope):
        return False
    if options.single is not None and root(processor).pid != options.single:
        return False
    wanted = options.proclist
    if wanted is None:
        return True
    if isinstance(wanted, type):
        return isinstance(processor, wanted)
    return bool(wanted(processor)) if callable(wanted) else isinstance(processor, tuple(wanted))


def occupancy_on(task: DTask, processor: Processor) -> float:
    """The share of a processor that the task takes."""
    return share_on(task._options, processor)


def share_on(options: Options, processor: Processor) -> float:
    """The share of a processor that these options ask for: exact type first, then `Any`, else all of it."""
    shares = options.occupancy
    if not shares:
        return 1.0
    share = shares.get(type(processor))
    if share is None:
        share = shares.get(Any, 1.0)
    return float(share)


# ---- stealing ----------------------------------------------------------------------------------------


def steal(core: Core, thief: Slot, fits: Callable[[Slot, float], bool]) -> tuple[Slot, DTask, float] | None:
    """(victim, task, share) from the queue of another slot of the same worker, for `thief`; the lock is held.

    Heads of queues only, as they are the next to run there; it is out of the queue then, and still to be claimed.
    Any slot steals: upstream spares `ThreadProc(1,1)`, whose thread runs the scheduler there; ours has none.
    """
    for victim in [s for s in core.waiting if s.worker == thief.worker and s is not thief]:
        while victim.heap and type(victim.heap[0][2]) is DTask and victim.heap[0][2]._state >= DONE:
            core.unqueue(victim)  # cancelled meanwhile
        if not victim.heap:
            continue
        _, _, task, slots = victim.heap[0]
        if type(task) is DTask and thief in slots:
            share = occupancy_on(task, thief.processor)
            if fits(thief, share):
                core.unqueue(victim)
                return victim, task, share
    return None


def steal_from_afar(core: Core, thief: Slot) -> tuple[DTask, int] | None:
    """(task, worker) from the shared queue of the busiest other worker, claimed, for a slot that is idle.

    Taken from the end, where it would have waited longest, if it is expected to be done here before its turn
    comes there; or if nothing ever moved to the thief's worker: the default rate is a guess, and one move
    teaches the real one. Upstream knows no such thing; without it one large result ties all work to its worker.
    """
    others = [w for w in core.active if w != thief.worker and core.shared[w]]
    if not others or not thief.shares:
        return None
    victim = max(others, key=lambda w: (core.pressure[w].ns / max(1, len(core.threads[w])), w))
    try:
        task = core.shared[victim].pop()
    except IndexError:
        return None
    spot = Spot(None, thief.worker, core.threads[thief.worker])
    ns = _gaining(core, task, victim, spot)
    if ns is not None and claim(task):
        reserve(core, task, spot, ns)
        return task, victim
    core.shared[victim].append(task)
    return None


def _gaining(core: Core, task: DTask, victim: int, spot: Spot) -> float | None:
    """The expected run time of a task that should be stolen from `victim`; None for others."""
    if task._state >= DONE or not may_leave(core, task, spot):
        return None
    sig = core.costs.signature(task._f, task._args, task._kwargs)
    here = cost_of(core, sig, spot, inputs_of(task), task._options) - pressure_of(core, spot)
    there = core.pressure[victim].ns / max(1, len(core.threads[victim]))
    if here >= there and spot.worker in core.costs.rate:
        return None
    return core.costs.run_ns(sig, spot.processor, task._options)


def may_leave(core: Core, task: DTask, spot: Spot) -> bool:
    """Whether a task that was placed elsewhere may run there instead."""
    if task._options is DEFAULT and not (scoped_chunks and _is_scoped(task)):
        return True
    return set(spot.slots) <= set(candidates_of(core, task))
