"""Where ready tasks go: the quick way of `place` against the general one, signatures, and what is reserved."""

from __future__ import annotations

import functools
import gc
import operator
import weakref
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import dagger as D
from otel_timespan.dagger.core import costs
from otel_timespan.dagger.core.costs import signature_of
from otel_timespan.dagger.core.machine import Core
from otel_timespan.dagger.core.placement import Spot, cost_of, inputs_of, place, spots_of, steal_from_afar
from otel_timespan.dagger.tasks.atomics import claim
from otel_timespan.dagger.tasks.dtask import DTask


class Sized:
    """A value that says its size, None where nobody knows it."""

    def __init__(self, size: int | None) -> None:
        self.size = size

    @property
    def nbytes(self) -> int:
        if self.size is None:
            raise ValueError("unknown")
        return self.size


def first(*args: Any, **kwargs: Any) -> int:
    """A body."""
    return 1


def second(*args: Any, **kwargs: Any) -> str:
    """Another."""
    return "2"


class Method:
    """A callable, and one that has a method."""

    def __call__(self, *args: Any) -> int:
        return 3

    def method(self, *args: Any) -> int:
        """Bound to its object."""
        return 4


# --- the quick way ----------------------------------------------------------------------------------------

SIZES = st.sampled_from([0, 8, 1000, 5_000_000, None])
INPUTS = st.one_of(
    st.sampled_from([1, "text", 2.0, None]).map(lambda value: ("value", value, 0)),
    st.tuples(st.just("result"), SIZES, st.integers(1, 5)),
    st.tuples(st.just("chunk"), SIZES, st.just(1)),
)
CALLS = st.tuples(st.integers(0, 3), st.lists(INPUTS, max_size=3), st.booleans(), st.booleans())


def checked(wrong: list[Any]) -> Any:
    """The scheduler's policy, beside what the general way says; what disagrees goes to `wrong`."""

    def policy(core: Core, task: DTask) -> Spot:
        spots, sig = spots_of(core, task), signature_of(task._f, task._args, task._kwargs)
        found = [cost_of(core, sig, spot, inputs_of(task), task._options) for spot in spots]
        chosen = place(core, task)
        n = [(spot.slot, spot.worker) for spot in spots].index((chosen.slot, chosen.worker))
        if found[n] != min(found) or (core.rng is None and n != found.index(min(found))):
            wrong.append((task, found, n))
        if task._reserved != (core.pressure[chosen.worker], core.costs.run_ns(sig, chosen.processor)):
            wrong.append((task, task._reserved))
        return chosen

    return policy


@settings(max_examples=80, deadline=None)
@given(
    threads=st.lists(st.integers(1, 3), min_size=2, max_size=5),
    seed=st.none() | st.integers(0, 5),
    rates=st.dictionaries(st.integers(1, 5), st.sampled_from([1e3, 1e6, 1e9]), max_size=3),
    times=st.dictionaries(st.integers(0, 1), st.sampled_from([0, 5000, 3.5e9]), max_size=2),
    calls=st.lists(CALLS, max_size=12),
)
def test_the_quick_way_chooses_what_the_general_one_could(
    threads: list[int], seed: int | None, rates: dict[int, float], times: dict[int, float], calls: list[Any]
) -> None:
    """Whatever a task is given and wherever that lies: of the least cost, the first one where no chance decides."""
    wrong: list[Any] = []
    workers = dict(enumerate(threads, 1))
    with D.Context(driver=D.InlineDriver(workers, seed=seed)) as context:
        core = context.start()
        for worker, rate in rates.items():
            D.sch.set_transfer_rate(worker, rate)
        for f, ns in times.items():
            D.sch.set_time_cost(D.sch.signature((first, second)[f]), D.ThreadProc, ns)
        core.place = checked(wrong)
        functions = [first, second, D.tochunk(first), D.spawn(lambda: second)]
        D.wait(functions[-1])
        for f, inputs, named, runs in calls:
            values: list[Any] = []
            for kind, value, worker in inputs:
                if kind == "result":
                    there = D.Options(scope=D.ProcessScope(min(worker, len(threads))))
                    values.append(D.spawn(Sized, there, value))
                else:
                    values.append(D.tochunk(Sized(value)) if kind == "chunk" else value)
            keywords = {"x": values.pop()} if named and values else {}
            task = D.spawn(functions[f], *values, **keywords)
            if runs:
                D.wait(task)
    assert not wrong


def test_chance_decides_among_equals() -> None:
    """Each of several equally good workers is chosen about as often, by the seed; none where others are better."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1, 3: 1, 4: 1}, seed=2)) as context:
        core = context.start()
        core.pressure[1].ns = 1e9
        task = D.spawn(first)

        def choose() -> int:
            core.unreserve(task)
            return place(core, task).worker

        chosen = Counter(choose() for _ in range(300))
        assert set(chosen) == {2, 3, 4} and all(60 < count < 140 for count in chosen.values())
        core.rng = None
        assert {choose() for _ in range(5)} == {2}
        core.pressure[1].ns = 0
        D.wait(task)


def test_workers_that_come_and_go_are_chosen_from() -> None:
    """A task without options goes to the workers that there are now."""
    with D.Context([1, 2], driver=D.InlineDriver({1: 1, 2: 1, 3: 1}, seed=0)) as context:
        assert set(D.fetch_all([D.spawn(D.myid) for _ in range(20)])) == {1, 2}
        D.addprocs(context, [3])
        assert set(D.fetch_all([D.spawn(D.myid) for _ in range(30)])) == {1, 2, 3}
        D.rmprocs(context, [1])
        assert set(D.fetch_all([D.spawn(D.myid) for _ in range(20)])) == {2, 3}
        D.rmprocs(context, [2])
        assert set(D.fetch_all([D.spawn(D.myid) for _ in range(20)])) == {3}


def test_an_argument_of_a_scope_is_followed() -> None:
    """A task without options that is given a chunk of a scope runs there, others anywhere, as before."""
    with D.Context(driver=D.InlineDriver({1: 2, 2: 2, 3: 2}, seed=1)):
        bound = D.tochunk(5, scope=D.ProcessScope(3))
        assert {D.fetch(D.spawn(lambda x: D.myid(), bound)) for _ in range(10)} == {3}
        assert len({D.fetch(task) for task in [D.spawn(D.myid) for _ in range(20)]}) == 3


# --- signatures -------------------------------------------------------------------------------------------


def test_signatures_that_are_remembered_are_those_of_the_calls() -> None:
    """Of every sort of callable and input: equal to the signature made anew, and the same object for functions."""
    n = 3
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1})) as context:
        core = context.start()
        result = D.spawn(str)
        D.wait(result)
        one = Method()
        functions = [
            first, second, lambda: n, lambda n=n: n, len, operator.add, int, Method, one, one.method, [].append,
            functools.partial(first, 1), D.tochunk(first), D.tochunk(functools.partial(second)),
            functools.lru_cache(first),
        ]  # fmt: skip
        calls: list[tuple[tuple[Any, ...], Any]] = [
            ((), None), ((1,), None), ((1.0,), None), ((1, "a"), None), ((result,), None), ((D.tochunk(2.5), 1), None),
            ((), {"a": 1}), ((), {"b": 1}), ((), {"a": 1, "b": ""}), ((), {"b": "", "a": 1}), ((1,), {"a": result}),
        ]  # fmt: skip
        for _ in range(2):
            for f in functions:
                for args, kwargs in calls:
                    assert core.costs.signature(f, args, kwargs) == signature_of(f, args, kwargs)
        for f in (first, len, int):
            assert core.costs.signature(f, (1,), None) is core.costs.signature(f, (2,), None)
        for f in (first, second) * 10:  # at the same address, one after the other
            assert core.costs.signature(functools.partial(f), (), None) == signature_of(f, (), None)
        made = [lambda: n for _ in range(2)]
        assert core.costs.signature(made[0], (), None) is core.costs.signature(made[1], (), None)


def test_a_function_of_new_code_is_another_one() -> None:
    """What is remembered of a function is by its code: after that was replaced nothing old is found."""

    def changed() -> int:
        return 1

    table = costs.Costs()
    before = table.signature(changed, (), None)
    changed.__code__ = (lambda: 2).__code__
    assert table.signature(changed, (), None) != before
    assert table.signature(changed, (), None) == signature_of(changed, (), None)


def test_remembered_signatures_keep_no_data() -> None:
    """Neither what a function closes over, nor an object whose method is called, nor its arguments live on."""

    def closing(data: Any) -> Any:
        return lambda x: data is x

    with D.Context(driver=D.InlineDriver({1: 1, 2: 1})):
        one, other = Method(), Sized(5)
        D.waitall([D.spawn(closing(other), 1), D.spawn(one.method, other), D.spawn(one, 1), D.spawn([one].append, 1)])
        left = [weakref.ref(one), weakref.ref(other)]
        del one, other
        gc.collect()
        assert [ref() for ref in left] == [None, None]


def test_remembered_signatures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes functions at run time fills no table."""
    monkeypatch.setattr(costs, "MAX_LEARNED", 5)
    table = costs.Costs()
    for _ in range(20):
        made: dict[str, Any] = {}
        exec("def f(): pass", made)
        table.signature(made["f"], (), None)
    assert len(table.signatures) == 5


# --- what is reserved -------------------------------------------------------------------------------------


def pressures(core: Core) -> list[float]:
    """The expected time at each worker."""
    return [pressure.ns for pressure in core.pressure.values()]


def test_a_task_that_ends_while_it_is_placed_reserves_nothing() -> None:
    """A cancellation between the choice of a worker and its reservation leaves no expected time behind."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1}, seed=0)) as context:
        core = context.start()

        def policy(core: Core, task: DTask) -> Spot:
            task.cancel()
            return place(core, task)

        core.place = policy
        task = D.spawn(first)
        assert task.isready() and pressures(core) == [0, 0]
        while core.driver.step():
            pass


def test_a_task_that_somebody_else_has_is_not_reserved_for_a_thief() -> None:
    """What was claimed before a thief from afar could have it stays counted where it was placed."""
    with D.Context(driver=D.InlineDriver({1: 1, 2: 1}, seed=0)) as context:
        core = context.start()
        tasks = [D.spawn(first) for _ in range(4)]
        taken = core.shared[2][-1]
        assert claim(taken)
        before = pressures(core)
        thief = next(slot for slot in core.slots.values() if slot.worker == 1)
        assert steal_from_afar(core, thief) is None
        assert pressures(core) == before
        taken._claim = True  # it is queued again
        stolen = steal_from_afar(core, thief)
        assert stolen == (taken, 2)
        assert pressures(core) == [before[0] + 1e9, before[1] - 1e9]
        taken._claim = True
        core.shared[1].append(taken)
        D.waitall(tasks)
        assert pressures(core) == [0, 0]
