"""`D.sch`: the scheduler's estimates, to look at, to test, and to set for a warm start.

See docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InvalidOptionError
from . import context as _context
from .core.costs import DEFAULT_TIME_COST, DEFAULT_TRANSFER_RATE, HOP_COST, Arg, Signature, impute_sum, signature
from .core.costs import signature_of as _signature_of
from .core.placement import Spot, cost_of, share_on
from .places.processors import Processor, root
from .tasks.dtask import DTask

if TYPE_CHECKING:
    from .core.machine import Core

__all__ = [
    "DEFAULT_TIME_COST",
    "DEFAULT_TRANSFER_RATE",
    "FULL_OCCUPANCY",
    "HOP_COST",
    "INLINE_FANOUT",
    "Arg",
    "Capacity",
    "Signature",
    "estimate_task_costs",
    "has_capacity",
    "impute_sum",
    "set_time_cost",
    "set_transfer_rate",
    "signature",
]

FULL_OCCUPANCY = 2**32 - 1
"""All of a processor, in the whole numbers of `has_capacity`."""

INLINE_FANOUT = 8
"""Upstream places up to so many freed tasks in the finishing thread. Here it places all of them: one costs
less than waking a thread."""


class Capacity(NamedTuple):
    """Whether a processor has room for a task, and what it is expected to take of it."""

    ok: bool
    time_ns: float
    alloc_bytes: float
    occupancy: int


def estimate_task_costs(
    state: Core, procs: Iterable[Processor], task: Any
) -> tuple[list[Processor], dict[Processor, float]]:
    """(processors sorted by cost, {processor: expected nanoseconds until the task would be done there}).

    `state` is `eager_state()`; `task` a `DTask` that has not finished, or a `Thunk`. Among equals the
    order is that of `procs`.
    """
    f, args, kwargs = _parts(task)
    sig = _signature_of(f, args, kwargs)
    costs: dict[Processor, float] = {}
    for processor in procs:
        worker = root(processor).pid
        slot = state.slots.get(processor)
        if slot is None:
            raise InvalidOptionError(f"{processor!r} is no processor of this scheduler")
        costs[processor] = cost_of(state, sig, Spot(slot, worker, [slot]), (f, *args, *kwargs.values()), task.options)
    return sorted(costs, key=costs.__getitem__), costs


def has_capacity(state: Core, processor: Processor, task: Any) -> Capacity:
    """What a task is expected to take of a processor. `ok` is always True: storage spills, it never refuses."""
    f, args, kwargs = _parts(task)
    sig = _signature_of(f, args, kwargs)
    time_ns = state.costs.run_ns(sig, processor, task.options)
    nbytes = state.costs.alloc_bytes(sig, processor, task.options)
    return Capacity(True, time_ns, nbytes, round(share_on(task.options, processor) * FULL_OCCUPANCY))


def _parts(task: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Function, positional and keyword arguments of a task or thunk."""
    if isinstance(task, DTask):
        return task._f, task._args, task._kwargs or {}
    return task.f, task.args, task.kwargs


def set_transfer_rate(worker: int, bytes_per_s: float) -> None:
    """Say how fast data reach a worker, until it is measured. Starts the scheduler of the current context."""
    if not bytes_per_s > 0:
        raise InvalidOptionError(f"bytes_per_s={bytes_per_s!r}: it must be more than 0")
    _context.eager_context().start().costs.rate[worker] = bytes_per_s


def set_time_cost(sig: Signature, processor_type: type, ns: float) -> None:
    """Say how long calls of a signature take on a type of processor; what is measured later is averaged in."""
    if not isinstance(sig, Signature):
        raise InvalidOptionError(f"a signature is needed here (see sch.signature), not {sig!r}")
    if not ns >= 0:
        raise InvalidOptionError(f"ns={ns!r}: it must be a number of nanoseconds")
    _context.eager_context().start().costs.time[sig, processor_type] = ns
