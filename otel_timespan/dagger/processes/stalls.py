"""When a worker process that says nothing is lost: the rule, without a clock or a process of its own.

A heartbeat that is late is no death: a body that computes in C may keep the interpreter to itself for minutes. Nor is a
long body, or one that sleeps: the heartbeat goes on. What neither beats nor uses any CPU time is stopped, or waits with
the interpreter held, and nothing will come of it: *silent*.

Silence is added up from look to look, and a look far from the last one adds little: a head that was stopped itself, or
kept from looking, has not heard a worker be silent meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple

from .procfs import RUNNING, ProcessFacts

__all__ = ["LONGEST_STEP_NS", "Silence", "listen", "stalled"]

LONGEST_STEP_NS = 500_000_000
"""What a look adds at most; the head looks five times as often."""


class Silence(NamedTuple):
    """What was seen of a worker at the look of `looked_ns` (monotonic), and for how long it was silent then."""

    looked_ns: int
    heartbeat_ns: int | None
    cpu_ns: int | None
    silent_ns: int = 0


def listen(before: Silence | None, now_ns: int, heartbeat_ns: int | None, facts: ProcessFacts) -> Silence:
    """The look of now, after the one `before`; None is the first one.

    `heartbeat_ns` is whatever changes with each heartbeat. Where nothing is known of the process it is never silent.
    """
    if (
        before is None
        or facts.state is None
        or facts.state == RUNNING  # waiting for a CPU that others use is no silence
        or (heartbeat_ns, facts.cpu_ns) != (before.heartbeat_ns, before.cpu_ns)
    ):
        return Silence(now_ns, heartbeat_ns, facts.cpu_ns)
    step = min(max(now_ns - before.looked_ns, 0), LONGEST_STEP_NS)
    return Silence(now_ns, heartbeat_ns, facts.cpu_ns, before.silent_ns + step)


def stalled(silence: Silence, stall_timeout_s: float) -> bool:
    """Whether the worker is lost: it was silent for so many seconds."""
    return silence.silent_ns >= stall_timeout_s * 1e9
