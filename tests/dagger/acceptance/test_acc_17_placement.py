"""spec/scheduler.md §17: signatures, costs, learned data, pressure, and where a task goes by them."""

from __future__ import annotations

import threading
import time
import warnings
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, add, boom, costs, identity, poll, slot, where

HALF = {Any: 0.5}

pytestmark = pytest.mark.usefixtures("legacy")


def arg(*pairs: tuple[Any, Any]) -> list[Any]:
    """Arguments for `signature`."""
    return [D.sch.Arg(position, value) for position, value in pairs]


class Sized:
    """A value that says its size."""

    def __init__(self, nbytes: int | None) -> None:
        self.size = nbytes

    @property
    def nbytes(self) -> int:
        if self.size is None:
            raise ValueError("unknown")
        return self.size


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


# --- signatures ------------------------------------------------------------------------------------------


def test_s17_5_signature() -> None:
    """§17.5 accept: function and positional argument types; with a keyword the full one has a part more."""
    plain = D.sch.signature(add, arg((1, 1), (2, 2)))
    assert list(plain.sig) == [add, int, int] == list(plain.sig_nokw)
    keyword = D.sch.signature(add, arg((1, 1), ("a", 2)))
    assert list(keyword.sig_nokw) == [add, int]
    assert list(keyword.sig) != list(keyword.sig_nokw)
    assert list(keyword.sig)[:2] == [add, int] and len(keyword.sig) > 2


def test_s17_5_signatures_are_values() -> None:
    """§17.5: signatures can be keys: equal for the same types whatever the values, different otherwise."""
    one, same = D.sch.signature(add, arg((1, 1), (2, 2))), D.sch.signature(add, arg((1, 10), (2, 20)))
    assert one == same and hash(one) == hash(same)
    others = [
        D.sch.signature(identity, arg((1, 1), (2, 2))),
        D.sch.signature(add, arg((1, 1), (2, 2.0))),
        D.sch.signature(add, arg((1, 1))),
        D.sch.signature(add, arg((1, 1), ("a", 2))),
        D.sch.signature(add, arg((1, 1), ("b", 2))),
        D.sch.signature(add, arg((1, 1), ("a", 2.0))),
    ]
    assert len({one, *others}) == 7


def test_s17_5_the_two_hashes() -> None:
    """§17.5 accept: with a keyword the hashes of the full signature and of the one without keywords differ."""
    keyword = D.sch.signature(add, arg((1, 1), ("a", 2)))
    assert keyword.hash != keyword.hash_nokw
    plain = D.sch.signature(add, arg((1, 1)))
    assert plain.hash_nokw == keyword.hash_nokw


def test_s17_5_the_order_of_keywords_does_not_matter() -> None:
    """§17.5: keywords take part with names and types; positional order does matter."""
    one = D.sch.signature(add, arg((1, 1), ("a", 2), ("b", "x")))
    two = D.sch.signature(add, arg((1, 1), ("b", "x"), ("a", 2)))
    assert one == two
    assert D.sch.signature(add, arg((1, 1), (2, "x"))) != D.sch.signature(add, arg((1, "x"), (2, 1)))


def test_s17_5_chunks_and_tasks_count_as_their_contents() -> None:
    """§17.5 accept: a chunk argument contributes its content type, a task its result type."""
    assert list(D.sch.signature(add, arg((1, D.tochunk(1)), (2, 2))).sig) == [add, int, int]
    task = D.spawn(identity, "text")
    D.wait(task)
    assert list(D.sch.signature(identity, arg((1, task))).sig) == [identity, str]
    declared = D.spawn(identity, D.Options(return_type=int), 5)
    assert list(D.sch.signature(identity, arg((1, declared))).sig) == [identity, int]


def test_s17_5_arguments_that_cannot_be_hashed() -> None:
    """§17.5: only types count: values that can't be hashed or compared do no harm."""
    signature = D.sch.signature(add, arg((1, [1]), (2, {"a": []})))
    assert list(signature.sig) == [add, list, dict]
    assert hash(signature) == hash(D.sch.signature(add, arg((1, [2]), (2, {}))))


# --- the parts of the cost -------------------------------------------------------------------------------


def test_s17_5_impute_sum() -> None:
    """§17.5 accept: unknown sizes count as the mean of the known ones."""
    assert D.sch.impute_sum([1, None, 3]) == 6
    assert D.sch.impute_sum([None]) == 0
    assert D.sch.impute_sum([]) == 0
    assert D.sch.impute_sum([4, 6]) == 10
    assert D.sch.impute_sum(iter([None, None, 2])) == 6


def test_s17_5_constants() -> None:
    """§17 python shape: 1 MB a second, 1 s a task, 8 freed tasks placed inline."""
    assert D.sch.DEFAULT_TRANSFER_RATE == 1_000_000
    assert D.sch.DEFAULT_TIME_COST == 10**9
    assert D.sch.INLINE_FANOUT == 8


LOCAL, OTHER, REMOTE = D.ThreadProc(1, 1), D.ThreadProc(1, 2), D.ThreadProc(2, 1)


@pytest.fixture
def idle(cluster: D.Context) -> D.Context:
    """Two simulated workers with a scheduler that has nothing to do."""
    D.fetch(D.spawn(int))
    return cluster


def test_s17_5_cost_of_a_local_chunk(idle: D.Context) -> None:
    """§17.5 accept: one second here; there the hop and the transfer on top, in ns; the local one sorts first."""
    for _ in range(10):
        order, found = costs(D.delayed(add)(D.tochunk(1), 2))
        assert order == [LOCAL, REMOTE]
        assert found[LOCAL] == 10**9
        assert found[REMOTE] == pytest.approx(10**9 + 10**6 + 8 / D.sch.DEFAULT_TRANSFER_RATE * 1e9, rel=1e-9)


def test_s17_5_cost_of_plain_values(idle: D.Context) -> None:
    """§17.5: plain values have no transfer: only the hop tells the workers apart."""
    _, found = costs(D.delayed(add)(1, 2))
    assert found == {LOCAL: 10**9, REMOTE: 10**9 + 10**6}


def test_s17_5_cost_of_a_remote_chunk(idle: D.Context) -> None:
    """§17.5: big data elsewhere: moving it costs more than the hop, so its worker sorts first."""
    data = D.fetch(D.spawn(Sized, D.Options(scope=D.ProcessScope(2)), 5_000_000), raw=True)
    assert data.processor.owner == 2
    order, found = costs(D.delayed(identity)(data))
    assert order == [REMOTE, LOCAL]
    assert found[LOCAL] == pytest.approx(10**9 + 5 * 10**9)
    assert found[REMOTE] == pytest.approx(10**9 + 10**6)


def test_s17_5_several_chunks_add_up(idle: D.Context) -> None:
    """§17.5: bytes of all chunk arguments that are elsewhere count, keywords too, unknown ones as the mean."""
    here = [D.tochunk(Sized(n)) for n in (1000, None, 3000)]
    assert D.datasize(here[1]) is None
    _, found = costs(D.delayed(identity)(here[0], here[1], x=here[2]))
    assert found[REMOTE] == pytest.approx(10**9 + 10**6 + 6000 / 1e6 * 1e9)
    assert found[LOCAL] == 10**9


def test_s17_5_results_of_tasks_count(idle: D.Context) -> None:
    """§17.5: inputs that are tasks count by their results."""
    up = D.spawn(Sized, D.Options(scope=D.ProcessScope(1)), 2_000_000)
    D.wait(up)
    _, found = costs(D.delayed(identity)(D.fetch(up, raw=True)))
    assert found[REMOTE] == pytest.approx(10**9 + 10**6 + 2 * 10**9)


def test_s17_5_set_transfer_rate(idle: D.Context) -> None:
    """Ruling 6: a worker's rate is bytes per second: 8 bytes at 8 bytes a second are one second."""
    D.sch.set_transfer_rate(2, 8)
    assert D.eager_state().worker_transfer_rate[2] == 8
    _, found = costs(D.delayed(add)(D.tochunk(1), 2))
    assert found[REMOTE] == pytest.approx(2 * 10**9 + 10**6)
    for bad in (0, -1, "fast"):
        with pytest.raises((ValueError, TypeError)):
            D.sch.set_transfer_rate(2, bad)


def test_s17_5_set_time_cost(idle: D.Context) -> None:
    """Ruling 6: the time of a signature on a processor type is in ns, and only that signature's."""
    signature = D.sch.signature(add, arg((1, 1), (2, 2)))
    D.sch.set_time_cost(signature, D.ThreadProc, 5000)
    assert D.eager_state().signature_time_cost[signature, D.ThreadProc] == 5000
    assert costs(D.delayed(add)(3, 4))[1] == {LOCAL: 5000, REMOTE: 5000 + 10**6}
    assert costs(D.delayed(add)(3, 4.0))[1][LOCAL] == 10**9
    assert costs(D.delayed(add)(D.tochunk(3), 4))[1][LOCAL] == 5000


def test_s17_5_sorted_by_cost(idle: D.Context) -> None:
    """§17.5: the candidates come sorted by cost, each once, whatever the order in which they were given."""
    slots = [D.ThreadProc(w, t) for w in (2, 1) for t in (1, 2)]
    order, found = costs(D.delayed(add)(1, 2), *slots)
    assert sorted(map(str, order)) == sorted(map(str, slots))
    assert [found[p] for p in order] == sorted(found.values())
    assert {p.owner for p in order[:2]} == {1}


def test_s17_5_pressure_is_part_of_the_cost(idle: D.Context) -> None:
    """§17.5 defect 12: what is queued on a processor adds its expected time, and goes when it is done."""
    task = D.spawn(add, slot(1, 1, time_util={D.ThreadProc: 3}), 1, 2)
    order, found = costs(D.delayed(identity)(5), LOCAL, OTHER)
    assert found[LOCAL] - found[OTHER] == pytest.approx(3 * 10**9)
    assert order == [OTHER, LOCAL]
    D.wait(task)
    _, found = costs(D.delayed(identity)(5), LOCAL, OTHER)
    assert found[LOCAL] == found[OTHER] == 10**9


def test_s17_5_the_default_pressure_is_a_second(idle: D.Context) -> None:
    """§17.5: a task of unknown duration reserves one second, a cancelled one gives it back."""
    task = D.spawn(lambda: None, slot(1, 1))
    _, found = costs(D.delayed(identity)(5), LOCAL, OTHER)
    assert found[LOCAL] - found[OTHER] == pytest.approx(10**9)
    D.cancel(task)
    _, found = costs(D.delayed(identity)(5), LOCAL, OTHER)
    assert found[LOCAL] == found[OTHER]


def test_s17_5_pressure_returns_after_every_end(idle: D.Context) -> None:
    """§17.5: success, failure and skips all give the reserved pressure back."""
    bad = D.spawn(boom, slot(1, 1))
    tasks = [bad, D.spawn(identity, slot(1, 1), bad), D.spawn(int, slot(1, 1)), D.spawn(int, slot(2, 1))]
    D.waitall(tasks)
    slots = [D.ThreadProc(w, t) for w in (1, 2) for t in (1, 2)]
    _, found = costs(D.delayed(identity)(5), *slots)
    assert found == {s: 10**9 + (s.owner - 1) * 10**6 for s in slots}


# --- placement -------------------------------------------------------------------------------------------


def test_s17_5_work_goes_to_its_data(idle: D.Context) -> None:
    """§17.5: a task of default scope runs where its big inputs are, on either worker."""
    for worker in (1, 2):
        data = D.spawn(Sized, D.Options(scope=D.ProcessScope(worker)), 10**12)
        D.wait(data)
        tasks = [D.spawn(lambda x: D.myid(), data) for _ in range(10)]
        assert D.fetch_all(tasks) == [worker] * 10


def test_s17_5_work_spreads_by_pressure(idle: D.Context) -> None:
    """§17.5: equal tasks with a place on four slots are spread over all of them."""
    partial = D.Options(occupancy=HALF)
    places = D.fetch_all([D.spawn(where, partial) for _ in range(40)])
    assert len(set(places)) == 4


def test_s17_5_scopes_are_respected(idle: D.Context) -> None:
    """§17.5: whatever the costs say, only processors of the scope are used."""
    data = D.spawn(Sized, D.Options(scope=D.ProcessScope(1)), 10**12)
    D.wait(data)
    there = D.Options(scope=D.ProcessScope(2))
    for occupancy in (None, HALF):
        options = D.Options(scope=there.scope, occupancy=occupancy)
        assert {D.fetch(D.spawn(lambda x: D.myid(), options, data)) for _ in range(10)} == {2}


def test_s17_5_proclist_and_single(idle: D.Context) -> None:
    """§17.5: candidates must pass `proclist` and `single`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            assert D.fetch(D.spawn(where, D.Options(single=2))).owner == 2
            assert D.fetch(D.spawn(where, D.Options(proclist=lambda p: p == OTHER))) == OTHER


# --- learning --------------------------------------------------------------------------------------------


def learned(name: str, f: Any, *args: Any) -> Any:
    """What the scheduler knows of calls of `f` with such arguments on threads."""
    signature = D.sch.signature(f, [D.sch.Arg(n, a) for n, a in enumerate(args, 1)])
    return getattr(D.eager_state(), name).get((signature, D.ThreadProc))


def timed(clock: Clock) -> D.Context:
    """A context whose time is the clock's."""
    return D.Context(driver=D.InlineDriver(workers={1: 1}, seed=0, clock=clock))


def test_s17_5_the_first_sample_is_taken_as_it_is() -> None:
    """§17.5 defect 11: run time per signature is the body's wall time; the first sample whole, then (new + old) / 2."""
    clock = Clock()

    def work(ms: int) -> None:
        clock.now += ms * 1_000_000

    with timed(clock):
        assert learned("signature_time_cost", work, 10) is None
        D.fetch(D.spawn(work, 10))
        assert learned("signature_time_cost", work, 10) == pytest.approx(10e6, rel=1e-3)
        D.fetch(D.spawn(work, 30))
        assert learned("signature_time_cost", work, 10) == pytest.approx(20e6, rel=1e-3)
        D.fetch(D.spawn(work, 100))
        assert learned("signature_time_cost", work, 10) == pytest.approx(60e6, rel=1e-3)
        assert learned("signature_time_cost", work, "x") is None


def test_s17_5_learned_time_is_the_next_estimate() -> None:
    """§17.5: a learned run time takes the place of the default second in the cost."""
    clock = Clock()

    def work(ms: int) -> None:
        clock.now += ms * 1_000_000

    with timed(clock):
        D.fetch(D.spawn(work, 7))
        assert costs(D.delayed(work)(1), LOCAL)[1][LOCAL] == pytest.approx(7e6, rel=1e-3)


def test_s17_5_blocking_counts() -> None:
    """§17.5 defect 11: time spent blocked counts (wall time, not CPU time)."""
    with D.Context(threads=1):
        D.fetch(D.spawn(time.sleep, 0.03))
        assert poll(lambda: learned("signature_time_cost", time.sleep, 0.03)) >= 30e6


def test_s17_5_failures_teach_nothing_wrong() -> None:
    """§17.5: a body that raised at once does not spoil what is known, or counts by its own time: never below it."""
    clock = Clock()

    def work(ms: int) -> None:
        clock.now += ms * 1_000_000
        if ms == 20:
            raise ValueError(ms)

    with timed(clock):
        D.fetch(D.spawn(work, 20 - 10))
        D.wait(D.spawn(work, 20))
        assert 10e6 * 0.99 <= learned("signature_time_cost", work, 1) <= 15e6 * 1.01


def test_s17_5_allocation_is_learned() -> None:
    """§17.5 defect 10: allocation per signature is in bytes, of the same kind: first as is, then the mean."""
    with D.Context(threads=1):
        D.fetch(D.spawn(bytes, 100_000))
        first = poll(lambda: learned("signature_alloc_cost", bytes, 1))
        assert first == pytest.approx(100_000, rel=0.1)
        D.fetch(D.spawn(bytes, 300_000))
        poll(lambda: learned("signature_alloc_cost", bytes, 1) != first)
        assert learned("signature_alloc_cost", bytes, 1) == pytest.approx(200_000, rel=0.1)


def test_s0_batches_share_no_learned_costs() -> None:
    """§0: scheduler instances share nothing: what a batch learned the eager scheduler does not know."""
    with D.Context(threads=1):
        D.fetch(D.spawn(int))
        D.collect(D.delayed(bytes)(10))
        assert learned("signature_time_cost", bytes, 10) is None


def test_s17_5_learning_is_bounded() -> None:
    """§17.5: a program that spawns lambdas without end does not fill the tables without end."""
    with D.Context(threads=1):
        for n in range(20_000):
            D.spawn(lambda n=n: n)
        D.fetch(D.spawn(int))
        D.eager_context().wait_idle()
        assert len(D.eager_state().signature_time_cost) < 20_000


# --- firing and the seam ---------------------------------------------------------------------------------


def test_s17_4_more_dependents_than_are_placed_inline(two: D.Context) -> None:
    """§17.4: more than INLINE_FANOUT dependents freed by one finish all run."""
    up = D.spawn(identity, 1)
    downs = [D.spawn(add, up, n) for n in range(10 * D.sch.INLINE_FANOUT)]
    assert [d.fetch(timeout=DEADLINE_S) for d in downs] == [n + 1 for n in range(len(downs))]


def test_s17_5_the_same_seed_places_alike() -> None:
    """§17 python shape: the random source can be injected: the same seed gives the same placement."""

    def run() -> list[D.Processor]:
        with D.Context(driver=D.InlineDriver(workers={1: 2, 2: 2, 3: 2}, seed=11)):
            return D.fetch_all([D.spawn(where, D.Options(occupancy=HALF)) for _ in range(50)])

    assert run() == run()


def test_s17_5_has_capacity(idle: D.Context) -> None:
    """§17.5: it always says yes, with the expected time in ns, bytes and the occupancy in 0..2**32-1."""
    state = D.eager_state()
    plain = D.spawn(lambda: None)
    full = D.sch.has_capacity(state, LOCAL, plain)
    assert (full.ok, full.time_ns, full.alloc_bytes, full.occupancy) == (True, 10**9, 0, 2**32 - 1)
    uses = {"time_util": {D.ThreadProc: 3}, "alloc_util": {D.ThreadProc: 100}, "occupancy": {D.ThreadProc: 0.5}}
    told = D.sch.has_capacity(state, LOCAL, D.spawn(lambda: None, slot(1, 1, **uses)))
    assert (told.ok, told.time_ns, told.alloc_bytes) == (True, 3 * 10**9, 100)
    assert told.occupancy == pytest.approx(2**31, rel=1e-6)


# --- edges of the costs --------------------------------------------------------------------------------------


def nap() -> None:
    """A body that takes time but no CPU."""
    time.sleep(0.02)


def test_run_times_are_learned_as_wall_time_first_sample_as_is() -> None:
    """A body that sleeps costs what it slept: the first sample is not halved, blocking counts."""
    D.fetch(D.spawn(nap))
    state = D.eager_state()
    learned = state.signature_time_cost[D.sch.signature(nap), D.ThreadProc]
    assert learned >= 20e6
    with D.Context(driver=D.InlineDriver()):
        waiting = D.spawn(nap)
        D.sch.set_time_cost(D.sch.signature(nap), D.ThreadProc, learned)
        assert D.sch.has_capacity(D.eager_state(), D.ThreadProc(1, 1), waiting).time_ns == learned


def test_lambdas_of_one_place_have_one_signature() -> None:
    """Functions made by the same code count as one, so that loops can learn; closures are not kept alive."""
    made = [lambda: n for n in range(2)]  # noqa: B023
    assert D.sch.signature(made[0]) == D.sch.signature(made[1])
    assert D.sch.signature(made[0]) != D.sch.signature(lambda: 0)


def test_the_tables_of_costs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that make functions at run time don't fill the tables: the oldest entries go."""
    from otel_timespan.dagger.core import costs

    monkeypatch.setattr(costs, "MAX_LEARNED", 5)
    table = costs.Costs()
    for n in range(20):
        table.learn_run(D.sch.signature(int, [(1, type(f"T{n}", (), {})())]), D.ThreadProc, n, 8)
    assert len(table.time) == 5


def test_pressure_spreads_equal_tasks_over_workers() -> None:
    """Equally good workers get equally many tasks, as what waits there counts; it ends at exactly 0."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1, 3: 1}, seed=4)):
        state = D.eager_context().start()
        for worker in (1, 2, 3):
            D.sch.set_transfer_rate(worker, 1e9)
        D.sch.set_time_cost(D.sch.signature(where), D.ThreadProc, 50e6)
        tasks = [D.spawn(where) for _ in range(30)]
        waiting = {worker: len(queue) for worker, queue in state.shared.items()}
        assert sorted(waiting.values()) == [10, 10, 10]
        D.waitall(tasks)
        assert all(ns == 0 for table in state.worker_time_pressure.values() for ns in table.values())


def test_cancelled_and_skipped_tasks_give_their_reservation_back() -> None:
    """Whatever way a placed task ends, its expected time leaves the pressure."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1}, seed=1)):
        state = D.eager_context().start()
        tasks = [D.spawn(identity, n) for n in range(10)]
        assert sum(ns for table in state.worker_time_pressure.values() for ns in table.values()) > 0
        for task in tasks:
            D.cancel(task)
        assert all(ns == 0 for table in state.worker_time_pressure.values() for ns in table.values())


def test_data_attracts_tasks() -> None:
    """A task goes where its large input is, as moving it costs more than waiting."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1}, seed=3)):
        make = D.spawn(bytes, D.Options(scope=D.scope(worker=2)), 10_000_000)
        D.wait(make)
        assert {D.fetch(D.spawn(lambda data: D.myid(), make)) for _ in range(5)} == {2}


def test_an_abandoned_body_gives_back_its_own_share() -> None:
    """Of two bodies that share a slot, cancelling one frees exactly what that one took."""
    with D.Context(threads=1) as context:
        gate = threading.Event()
        begun = {share: threading.Event() for share in (0.3, 0.6)}

        def body(share: float) -> None:
            begun[share].set()
            gate.wait(DEADLINE_S)

        def shared(share: float) -> D.Options:
            return D.Options(occupancy={Any: share})

        large = D.spawn(body, shared(0.6), 0.6)
        small = D.spawn(body, shared(0.3), 0.3)
        assert begun[0.3].wait(DEADLINE_S) and begun[0.6].wait(DEADLINE_S)
        (slot,) = D.eager_state().slots.values()
        D.cancel(small)
        poll(lambda: abs(slot.used - 0.6) < 1e-6)
        assert D.fetch(D.spawn(identity, shared(0.4), 1), timeout=DEADLINE_S) == 1
        wide = D.spawn(identity, shared(0.5), 2)
        assert not wide.isready()
        gate.set()
        assert D.fetch(wide, timeout=DEADLINE_S) == 2
        D.wait(large)
        context.wait_idle()
        assert slot.used == 0
