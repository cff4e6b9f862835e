"""spec/scheduler.md §17: priorities and shares of a slot, and who steals from whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import DEADLINE_S, costs, identity, poll, settled, slot, where

pytestmark = pytest.mark.usefixtures("legacy")


def owner(processor: Any) -> int:
    """The worker of a processor."""
    return processor.pid if isinstance(processor, D.OSProc) else processor.owner


LOCAL, OTHER = D.ThreadProc(1, 1), D.ThreadProc(1, 2)


# --- priorities ------------------------------------------------------------------------------------------


def test_s17_7_lowest_occupancy_first(one: D.Context, gate: threading.Event) -> None:
    """§17.7: a processor's queue is ordered by occupancy, lowest first, equal ones in the order they came."""
    begun, order = threading.Event(), []

    def blocker() -> None:
        begun.set()
        gate.wait(DEADLINE_S)

    holding = D.spawn(blocker, slot(1, 1))
    assert begun.wait(DEADLINE_S)
    wanted = [1.0, 0.6, 0.9, 0.55, 0.6, 0.8]
    tasks = [D.spawn(order.append, slot(1, 1, occupancy={Any: o}), (o, n)) for n, o in enumerate(wanted)]
    gate.set()
    poll(lambda: all(t.isready() for t in [holding, *tasks]))
    assert order == sorted((o, n) for n, o in enumerate(wanted))


def test_s17_7_several_bodies_at_once_while_they_fit(one: D.Context, gate: threading.Event) -> None:
    """§17.7: the runner never waits for a body: shares that fit run side by side, one that does not fit waits."""
    running: list[float] = []

    def body(share: float) -> None:
        running.append(share)
        gate.wait(DEADLINE_S)

    shares = [D.spawn(body, slot(1, 1, occupancy={Any: o}), o) for o in (0.5, 0.3, 0.2)]
    poll(lambda: len(running) == 3)
    late = D.spawn(body, slot(1, 1, occupancy={Any: 0.1}), 0.1)
    nothing = D.spawn(identity, slot(1, 1, occupancy={Any: 0}), 7)
    poll(nothing.isready)
    assert sorted(running) == [0.2, 0.3, 0.5] and not late.isready()
    gate.set()
    poll(lambda: all(t.isready() for t in [*shares, late]))
    assert running[-1] == 0.1


def test_s17_7_fetch_events_tell_the_occupancies() -> None:
    """§19: proc_run_fetch names task, the processor's occupancy before and the task's."""
    log: list[Event] = []
    gate = threading.Event()
    with D.Context(threads=1, log_sink=log):
        begun = threading.Event()

        def holder() -> None:
            begun.set()
            gate.wait(DEADLINE_S)

        first = D.spawn(holder, slot(1, 1, occupancy={Any: 0.25}))
        assert begun.wait(DEADLINE_S)
        second = D.spawn(int, slot(1, 1, occupancy={Any: 0.5}))
        poll(second.isready)
        gate.set()
        D.wait(first)
        events = settled(log, first, second)
    found = {
        e.timeline.thunk_id: (e.timeline.proc_occupancy, e.timeline.task_occupancy)
        for e in events
        if e.category == "proc_run_fetch" and getattr(e.timeline, "thunk_id", None) is not None
    }
    assert found[first.id] == (0, pytest.approx(0.25))
    assert found[second.id] == (pytest.approx(0.25), pytest.approx(0.5))


# --- stealing --------------------------------------------------------------------------------------------


def steals(log: list[Event]) -> list[Event]:
    """The ends of successful steals."""
    return [
        e for e in list(log)
        if e.category == "proc_steal_local" and e.phase == "finish" and e.timeline is not None
    ]  # fmt: skip


class Blockers:
    """Two slots, each held by a body until it is released."""

    def __init__(self) -> None:
        self.gates = {tid: threading.Event() for tid in (1, 2)}
        begun = {tid: threading.Event() for tid in (1, 2)}
        self.tasks = {}

        def body(tid: int) -> None:
            begun[tid].set()
            self.gates[tid].wait(DEADLINE_S)

        for tid in (1, 2):
            self.tasks[tid] = D.spawn(body, slot(1, tid), tid)
            assert begun[tid].wait(DEADLINE_S)

    def open(self, *tids: int) -> None:
        """Release them."""
        for tid in tids or (1, 2):
            self.gates[tid].set()


@pytest.fixture
def blocked(request: pytest.FixtureRequest) -> Iterator[tuple[list[Event], Blockers]]:
    """A context of two slots, both held, and its log."""
    log: list[Event] = []
    with D.Context(threads=2, log_sink=log):
        blockers = Blockers()
        try:
            yield log, blockers
        finally:
            blockers.open()


BOTH: Callable[[], D.Options] = lambda: D.Options(scope=D.scope(worker=1, threads=[1, 2]), occupancy={Any: 0.75})  # noqa: E731


def test_s17_7_idle_processors_steal(blocked: tuple[list[Event], Blockers]) -> None:
    """§17.7: a free processor takes what is queued at a busy one of its worker, with a `proc_steal_local` span."""
    log, blockers = blocked
    tasks = [D.spawn(where, BOTH()) for _ in range(12)]
    assert not any(t.isready() for t in tasks)
    blockers.open(2)
    poll(lambda: all(t.isready() for t in tasks))
    assert {t.fetch(timeout=DEADLINE_S) for t in tasks} == {D.ThreadProc(1, 2)}
    settled(log, *tasks)
    found = steals(log)
    placed = {
        e.id.thunk_id for e in list(log) if e.category == "enqueue" and e.phase == "start" and e.id.processor == LOCAL
    }
    stolen = [e.timeline.thunk_id for e in found]
    assert placed & {t.id for t in tasks}
    assert sorted(stolen) == sorted(placed & {t.id for t in tasks})
    for event in found:
        assert event.timeline.from_proc == LOCAL
        assert event.id.processor == D.ThreadProc(1, 2)
        assert event.id.worker == 1


def test_s17_7_steal_spans_are_paired(blocked: tuple[list[Event], Blockers]) -> None:
    """§19 defect 2: each fetch and each steal has one start and one finish."""
    log, blockers = blocked
    tasks = [D.spawn(where, BOTH()) for _ in range(12)]
    blockers.open(2)
    poll(lambda: all(t.isready() for t in tasks))
    blockers.open()
    settled(log, *tasks, *blockers.tasks.values())
    D.eager_context().wait_idle()
    for category in ("proc_steal_local", "proc_run_fetch"):
        starts = [e.id for e in list(log) if e.category == category and e.phase == "start"]
        assert len(starts) == len(set(starts))
        ends = [e.id for e in list(log) if e.category == category and e.phase == "finish"]
        assert set(ends) <= set(starts) and len(ends) == len(set(ends))


def test_s17_7_every_slot_steals(blocked: tuple[list[Event], Blockers]) -> None:
    """§17.7, docs/decisions.md: the first slot, too, takes what is queued at a busy one."""
    log, blockers = blocked
    tasks = [D.spawn(where, BOTH()) for _ in range(12)]
    blockers.open(1)
    poll(lambda: all(t.isready() for t in tasks))
    assert {t.fetch(timeout=DEADLINE_S) for t in tasks} == {LOCAL}
    settled(log, *tasks)
    assert {(e.timeline.from_proc, e.id.processor) for e in steals(log)} == {(OTHER, LOCAL)}


def test_s17_7_scopes_hold_for_thieves(blocked: tuple[list[Event], Blockers]) -> None:
    """§17.7: a thief takes a head only if it is itself in the task's scope."""
    log, blockers = blocked
    pinned = D.spawn(where, slot(1, 1, occupancy={Any: 0.75}))
    free = [D.spawn(where, BOTH()) for _ in range(6)]
    blockers.open(2)
    poll(lambda: any(t.isready() for t in free))
    assert not pinned.isready()
    blockers.open(1)
    poll(lambda: all(t.isready() for t in [pinned, *free]))
    assert pinned.fetch(timeout=DEADLINE_S) == LOCAL
    assert pinned.id not in {e.timeline.thunk_id for e in steals(log)}


def test_s17_7_only_what_fits_is_stolen(blocked: tuple[list[Event], Blockers]) -> None:
    """§17.7: the head's occupancy must fit the thief's free share."""
    _, blockers = blocked
    begun, release = threading.Event(), threading.Event()

    def holder() -> None:
        begun.set()
        release.wait(DEADLINE_S)

    small = D.spawn(holder, slot(1, 2, occupancy={Any: 0.5}))
    big = [D.spawn(where, BOTH()) for _ in range(6)]
    blockers.open(2)
    assert begun.wait(DEADLINE_S)
    assert not any(t.isready() for t in big)
    release.set()
    poll(lambda: all(t.isready() for t in big))
    D.wait(small)
    assert {t.fetch(timeout=DEADLINE_S) for t in big} == {OTHER}


def test_s17_7_nobody_steals_from_another_worker() -> None:
    """§17.7: no remote stealing: thief and victim are of one worker."""
    log: list[Event] = []
    with D.Context(driver=D.InlineDriver(workers={1: 2, 2: 3}, seed=3), log_sink=log):
        tasks = [D.spawn(where, D.Options(occupancy={Any: 0.6})) for _ in range(100)]
        D.waitall(tasks)
        placed = {e.id.thunk_id: e.id.processor for e in list(log) if e.category == "enqueue" and e.phase == "start"}
        for task in tasks:
            assert owner(placed[task.id]) == owner(D.fetch(task))
    assert all(e.timeline.from_proc.owner == e.id.processor.owner == e.id.worker for e in steals(log))


def test_s17_7_stolen_tasks_are_cancelled_and_counted_like_others(blocked: tuple[list[Event], Blockers]) -> None:
    """§2, §17.5: what was queued at a busy processor can be cancelled; pressure is back to nothing in the end."""
    _, blockers = blocked
    tasks = [D.spawn(where, BOTH()) for _ in range(10)]
    for task in tasks[::2]:
        D.cancel(task)
    blockers.open(2)
    poll(lambda: all(t.isready() for t in tasks))
    blockers.open()
    D.eager_context().wait_idle()
    D.check(D.eager_state())
    _, found = costs(D.delayed(identity)(5), LOCAL, OTHER)
    assert found[LOCAL] == found[OTHER]


# --- edges ---------------------------------------------------------------------------------------------------


def test_an_idle_slot_steals_what_does_not_fit_elsewhere() -> None:
    """A pinned task that waits behind a blocked one runs on another slot of its scope, with a steal event."""
    log: list[Any] = []
    with D.Context(threads=2, log_sink=log) as context:
        gate, begun = threading.Event(), threading.Barrier(3)
        here = D.UnionScope(D.ExactScope(D.ThreadProc(1, 1)), D.ExactScope(D.ThreadProc(1, 2)))

        def hold() -> None:
            begun.wait(DEADLINE_S)
            gate.wait(DEADLINE_S)

        pins = [D.ExactScope(D.ThreadProc(1, n)) for n in (1, 2)]
        holders = [D.spawn(hold, D.Options(scope=pin, occupancy={Any: 0.6})) for pin in pins]
        begun.wait(DEADLINE_S)
        waiting = [D.spawn(where, D.Options(scope=here, occupancy={Any: 0.5})) for _ in range(4)]
        D.cancel(holders[0])  # its slot is free now, the other one is not
        found = {D.fetch(task, timeout=DEADLINE_S) for task in waiting}
        assert found == {D.ThreadProc(1, 1)}
        gate.set()
        context.wait_idle()
        D.check(D.eager_state())

        def steals() -> list[Any]:
            return [e for e in list(log) if e.category == "proc_steal_local" and e.phase == "finish" and e.timeline]

        poll(lambda: steals() or not any(t.id for t in waiting))
        for event in steals():
            assert event.timeline.from_proc == D.ThreadProc(1, 2) and event.id.processor == D.ThreadProc(1, 1)
            assert event.timeline.thunk_id in {task.id for task in waiting}


def test_a_task_of_one_slot_is_never_stolen() -> None:
    """Stealing respects scopes: what may run on one slot only waits for it, whoever is idle."""
    with D.Context(threads=2):
        gate, begun = threading.Event(), threading.Event()
        pin = D.Options(scope=D.ExactScope(D.ThreadProc(1, 2)))
        holder = D.spawn(lambda: begun.set() or gate.wait(DEADLINE_S), pin)
        assert begun.wait(DEADLINE_S)
        waiting = [D.spawn(where, pin) for _ in range(5)]
        assert D.fetch(D.spawn(identity, 3)) == 3
        assert not any(task.isready() for task in waiting)
        gate.set()
        assert {D.fetch(task) for task in waiting} == {D.ThreadProc(1, 2)}
        D.wait(holder)


@pytest.mark.parametrize("threads", [2, 3])
def test_pinned_and_stolen_work_all_runs_once(threads: int) -> None:
    """Thousands of small tasks of several shares and scopes run exactly once each, and all slots come back."""
    counts: dict[int, int] = {}

    def body(n: int) -> int:
        counts[n] = counts.get(n, 0) + 1
        return n

    exact = [D.ExactScope(D.ThreadProc(1, n + 1)) for n in range(threads)]
    with D.Context(threads=threads) as context:
        options = [
            D.Options(scope=D.UnionScope(*exact), occupancy={Any: 0.3}),
            D.Options(scope=exact[0]),
            D.Options(scope=D.UnionScope(exact[0], exact[-1])),
            D.Options(occupancy={Any: 0.0}),
            D.Options(),
        ]
        tasks = [D.spawn(body, options[n % len(options)], n) for n in range(3000)]
        assert D.fetch_all(tasks) == list(range(3000))
        context.wait_idle()
        D.check(D.eager_state())
        assert not D.eager_state().waiting and set(counts.values()) == {1}
