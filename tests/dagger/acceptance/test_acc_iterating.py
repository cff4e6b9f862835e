"""Loops over tasks, `map` and `as_completed`, in `for` and `async for`; tasks in asyncio."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    identity,
    poll,
    run_program,
)


def test_issue5_12_map_in_order(ctx: D.Context) -> None:
    """Issue 5.12: `D.map` gives the results in order."""
    assert list(D.map(lambda n: n * n, range(500), max_pending=7)) == [n * n for n in range(500)]
    assert list(D.map(identity, [])) == []


def test_issue5_12_map_is_lazy(ctx: D.Context) -> None:
    """Issue 5.12: of an endless iterator no more is taken than the bound on what is pending."""
    taken = itertools.count()
    source = (next(taken) for _ in itertools.repeat(None))
    results = D.map(identity, source, max_pending=10)
    assert [next(results) for _ in range(25)] == list(range(25))
    assert next(taken) <= 25 + 10 + 1
    results.close() if hasattr(results, "close") else None


def test_issue5_12_map_bounds_what_is_pending(two: D.Context) -> None:
    """Issue 5.12: at no time are more than `max_pending` tasks submitted and unfetched."""
    most = 0
    for n, _ in enumerate(D.map(identity, range(2000), max_pending=16)):
        if n % 50 == 0:
            most = max(most, D.eager_state().running_count)
    assert most <= 16 + 2


def test_issue5_12_map_raises_at_the_failing_element(ctx: D.Context) -> None:
    """Issue 5.12: the failing element raises when its turn comes; those before it arrived."""
    results = D.map(lambda n: 10 // n, [5, 2, 0, 1], max_pending=4)
    assert [next(results), next(results)] == [2, 5]
    with pytest.raises(D.DTaskFailedError) as caught:
        next(results)
    assert isinstance(D.unwrap_exception(caught.value), ZeroDivisionError)


def test_issue5_12_map_with_an_iterator_that_raises(ctx: D.Context) -> None:
    """Issue 5: what the iterator raises comes out, after the results of what it gave before."""

    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise BoomError("no more")

    got = []
    with pytest.raises(BoomError):
        got.extend(D.map(identity, source(), max_pending=1))
    results = D.map(identity, source(), max_pending=10)
    with pytest.raises(BoomError):
        for value in results:
            got.append(value)
    assert set(got) <= {1, 2}


@pytest.mark.parametrize("bad", [0, -1, 1.5, "many"], ids=repr)
def test_issue5_12_map_bounds_that_cannot_work(bad: Any) -> None:
    """Issue 5: a bound below 1, or none, is refused at once, not at the first element."""
    with pytest.raises((ValueError, TypeError)) as caught:
        list(D.map(identity, [1], max_pending=bad))
    assert isinstance(caught.value, D.TimespanError)


def test_issue5_12_map_refuses_what_cannot_be_used() -> None:
    """Issue 5: no function, or nothing to iterate over, is a TypeError."""
    for f, items in ((5, [1]), (identity, 5)):
        with pytest.raises(TypeError):
            list(D.map(f, items))


def test_issue5_11_await_many(two: D.Context) -> None:
    """Issue 5.11: `await` and `asyncio.gather` take tasks; the loop is not blocked meanwhile."""
    gate = threading.Event()

    async def main() -> list[Any]:
        tasks = [D.spawn(gate.wait, DEADLINE_S), D.spawn(add, 1, 2)]

        async def wait_for(task: D.DTask) -> Any:
            return await task

        waiting = [asyncio.ensure_future(wait_for(t)) for t in tasks]
        assert await waiting[1] == 3
        gate.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [True, 3]


def test_issue5_11_async_for(two: D.Context) -> None:
    """Issue 5.11: `async for` over `as_completed` gives tasks as they finish, with an open loop."""

    async def main() -> list[Any]:
        gates = [threading.Event() for _ in range(2)]
        tasks = [D.spawn(lambda g=g, n=n: (g.wait(DEADLINE_S), n)[1]) for n, g in enumerate(gates)]
        seen = []
        gates[1].set()
        async for task in D.as_completed(tasks):
            assert isinstance(task, D.DTask)
            seen.append(await task)
            gates[0].set()
        return seen

    assert asyncio.run(main()) == [1, 0]


def test_issue5_11_async_for_over_failures(two: D.Context) -> None:
    """Issue 5.11: failed tasks arrive as well; awaiting them raises."""

    async def main() -> list[str]:
        seen = []
        async for task in D.as_completed([D.spawn(boom), D.spawn(int)]):
            try:
                seen.append(str(await task))
            except D.DTaskFailedError as error:
                seen.append(type(D.unwrap_exception(error)).__name__)
        return seen

    assert sorted(asyncio.run(main())) == ["0", "BoomError"]


def test_issue5_11_async_for_over_nothing_and_much(two: D.Context) -> None:
    """Issue 5.11: no tasks end the loop at once; a thousand arrive each once."""

    async def main(count: int) -> list[int]:
        return [await t async for t in D.as_completed([D.spawn(identity, n) for n in range(count)])]

    assert asyncio.run(main(0)) == []
    assert sorted(asyncio.run(main(1000))) == list(range(1000))


def test_issue5_11_async_for_with_a_timeout(one: D.Context, gate: threading.Event) -> None:
    """Issue 5.11, ruling 17: the timeout of as_completed is a TimeoutError in `async for` too."""

    async def main() -> None:
        async for _ in D.as_completed([D.spawn(gate.wait, DEADLINE_S)], timeout=0.01):
            raise AssertionError("not reached")

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(main())
    assert isinstance(caught.value, D.TimespanError)


# --- edges of map -----------------------------------------------------------------------------------------


def run(coroutine: Any) -> Any:
    """The result of a coroutine, within the deadline."""
    return asyncio.run(asyncio.wait_for(coroutine, DEADLINE_S))


async def collected(items: Any) -> list[Any]:
    """Everything of an `async for`."""
    return [item async for item in items]


def double(n: int) -> int:
    """2 n, but not for 13."""
    if n == 13:
        raise BoomError(n)
    return 2 * n


def test_map_in_order(two: D.Context) -> None:
    """Results come in the order of the inputs, as many as the shortest input has."""
    assert list(D.map(pow, range(50), itertools.repeat(2))) == [n * n for n in range(50)]
    assert list(D.map(identity, [])) == [] and list(D.map(max, [1, 2], [3])) == [3]
    assert list(D.map(identity, range(10), max_pending=1)) == list(range(10))
    assert ts.map is D.map


def test_map_as_they_finish(two: D.Context, gate: threading.Event) -> None:
    """With `ordered=False` a slow call does not hold up the others."""
    results = D.map(lambda n: gate.wait(DEADLINE_S) if n == 0 else n, range(10), ordered=False)
    assert sorted(itertools.islice(results, 9)) == list(range(1, 10))
    gate.set()
    assert list(results) == [True]


def test_map_reads_its_inputs_as_results_are_taken(two: D.Context) -> None:
    """Inputs may have no end; never more than `max_pending` results lie untaken; nothing begins before the loop."""
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    results = D.map(identity, inputs(), max_pending=7)
    assert taken == []
    for n in range(100):
        assert next(results) == n
        assert len(taken) <= n + 1 + 7
    results.close()
    assert next(results, None) is None and len(taken) <= 107


def test_map_keeps_few_tasks_whatever_the_inputs(two: D.Context) -> None:
    """200,000 inputs: the tasks that are there at any moment stay within the bound and a few."""
    most = 0
    for n, value in enumerate(D.map(identity, range(200_000))):
        assert value == n
        if n % 20_000 == 0:
            there = [thing for thing in gc.get_objects() if type(thing) is D.DTask and thing._core is two.core]
            most = max(most, len(there))
            del there
    assert 0 < most <= 16 + 10


def test_map_raises_the_first_failure_and_cancels_the_rest(gate: threading.Event) -> None:
    """The failure comes where its result would have; what was pending is cancelled, the loop is over."""
    with D.Context(threads=1) as context:
        results = D.map(double, range(100), max_pending=20)
        got = []
        with pytest.raises(D.DTaskFailedError) as caught:
            for value in results:
                got.append(value)
        assert isinstance(D.unwrap_exception(caught.value), BoomError) and got == [2 * n for n in range(13)]
        assert list(results) == [] and context.core is not None
        poll(lambda: not list(context.core.unfinished()))  # type: ignore[union-attr]


def test_map_left_early_cancels_what_is_pending(gate: threading.Event) -> None:
    """A `break`, and a `close`, cancel what has not begun; the slots are free afterwards."""
    ran: list[int] = []

    def body(n: int) -> int:
        ran.append(n)
        return n if n == 0 else gate.wait(DEADLINE_S)

    with D.Context(threads=1) as context:
        for _ in D.map(body, itertools.count(), max_pending=10):
            break
        poll(lambda: context.core is not None and not list(context.core.unfinished()))
        results = D.map(body, itertools.count(), max_pending=10)
        next(results)
        results.close()
        assert context.core is not None and not list(context.core.unfinished())
        assert D.spawn(int, 5).fetch(timeout=DEADLINE_S) == 5
        gate.set()
    assert len(ran) <= 4


def test_map_in_a_body(gate: threading.Event) -> None:
    """In a body the loop gives the slot back, to any depth, with one slot."""

    def sums(depth: int) -> int:
        return depth if depth == 0 else sum(D.map(sums, [depth - 1] * 3, ordered=depth % 2 == 0))

    with D.Context(threads=1):
        assert D.spawn(sums, 4).fetch(timeout=DEADLINE_S) == 0
        assert list(D.map(identity, [D.spawn(int, n) for n in range(5)])) == list(range(5))


def test_map_takes_options_and_those_in_force_when_it_is_called(two: D.Context) -> None:
    """Options hold for its tasks, as do the scoped ones around the call, not around the loop."""

    def told() -> Any:
        return D.get_options("tag", None)

    with D.with_options(tag=3):
        results = D.map(lambda _: told(), range(3), name="told")
    with D.with_options(tag=4):
        assert list(results) == [3, 3, 3]
    tries: list[int] = []

    def flaky(n: int) -> int:
        tries.append(n)
        if len(tries) < 3:
            raise BoomError
        return n

    assert list(D.map(flaky, [7], retries=2)) == [7]


@pytest.mark.parametrize(
    ("args", "options", "kind"),
    [
        ((5, []), {}, D.NotCallableError),
        ((int,), {}, D.InvalidOptionError),
        ((int, []), {"max_pending": 0}, D.InvalidOptionError),
        ((int, []), {"max_pending": 2.5}, D.InvalidOptionError),
        ((int, []), {"colour": 1}, D.InvalidOptionError),
        ((int, 5), {}, TypeError),
    ],
)
def test_map_refuses_what_can_t_work_at_once(args: Any, options: Any, kind: type[Exception]) -> None:
    """Wrong arguments raise when `map` is called, not in the loop."""
    with pytest.raises(kind):
        D.map(*args, **options)


def test_map_when_the_inputs_raise(two: D.Context) -> None:
    """What the inputs raise comes out, and what was pending is cancelled."""

    def inputs() -> Iterator[int]:
        yield from range(5)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(D.map(identity, inputs(), max_pending=3))
    assert list(D.map(identity, range(3))) == [0, 1, 2]


def test_map_async(two: D.Context) -> None:
    """`async for` gives the same results, ordered or not, and the loop runs meanwhile."""

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        assert await collected(D.map(identity, range(100))) == list(range(100))
        assert sorted(await collected(D.map(identity, range(100), ordered=False))) == list(range(100))
        with pytest.raises(D.DTaskFailedError):
            await collected(D.map(double, range(100)))
        results = D.map(identity, itertools.count())
        assert await results.__anext__() == 0
        await results.aclose()
        assert await collected(results) == []
        ticking.cancel()
        assert ticks > 0

    run(main())


# --- edges of as_completed --------------------------------------------------------------------------------


def test_as_completed_async(two: D.Context, gate: threading.Event) -> None:
    """`async for` gives each task once, finished ones first, failures without raising, and blocks no loop."""

    async def main() -> None:
        slow, quick, bad = D.spawn(gate.wait, DEADLINE_S), D.spawn(int), D.spawn(boom)
        order = []
        async for task in D.as_completed([slow, quick, bad, quick]):
            assert task.isready()
            order.append(task)
            if len(order) == 2:
                asyncio.get_running_loop().call_soon(gate.set)  # the loop itself goes on
        assert set(order[:2]) == {quick, bad} and order[2:] == [slow]
        assert await collected(D.as_completed([])) == []
        many = [D.spawn(identity, n) for n in range(500)]
        assert {task.id for task in await collected(D.as_completed(many))} == {task.id for task in many}

    run(main())


def test_as_completed_async_with_a_timeout(two: D.Context, gate: threading.Event) -> None:
    """The timeout raises in `async for` as it does in `for`; the tasks go on and keep no entry of the loop."""

    async def main() -> None:
        slow = D.spawn(gate.wait, DEADLINE_S)
        with pytest.raises(D.FetchTimeoutError, match="1 tasks"):
            await collected(D.as_completed([slow], timeout=0.02))
        assert not slow.isready() and slow._subs == []
        gate.set()
        assert await slow is True

    run(main())


def test_as_completed_in_a_loop_is_refused(two: D.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `for` in an event loop, which it would stop, raises and says what to write; a notebook's cell may."""

    async def main() -> None:
        task = D.spawn(int)
        for loop in (D.as_completed([task]), D.map(int, [1])):
            with pytest.raises(D.ConcurrencyViolationError, match="async for"):
                list(loop)
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
        assert list(D.as_completed([task])) == [task]

    run(main())


def test_as_completed_is_let_go(two: D.Context, gate: threading.Event) -> None:
    """A loop that is left, or that timed out, leaves no entry behind in the tasks."""
    slow, quick = D.spawn(gate.wait, DEADLINE_S), D.spawn(int)
    for _ in range(100):
        for _task in D.as_completed([slow, quick]):
            break
        with pytest.raises(D.FetchTimeoutError):
            list(D.as_completed([slow], timeout=0))
    assert slow._subs == []


def test_as_completed_takes_tasks_only(two: D.Context) -> None:
    """What is no task, and what was not launched, raises at once."""
    with pytest.raises(D.InvalidOptionError, match="needs tasks"):
        D.as_completed([5])  # type: ignore[list-item]
    with pytest.raises(D.InvalidOptionError, match="timeout"):
        D.as_completed([], timeout="soon")  # type: ignore[arg-type]
    with D.bulk():
        held = D.spawn(int)
        with pytest.raises(D.ConcurrencyViolationError):
            next(D.as_completed([held]))
    assert next(D.as_completed([held])) is held


def test_in_a_body_the_slot_is_given_back() -> None:
    """With one slot, a body that loops over its tasks lets them run."""

    def body() -> int:
        return sum(task.fetch() for task in D.as_completed([D.spawn(int, n) for n in range(10)]))

    with D.Context(threads=1):
        assert D.spawn(body).fetch(timeout=DEADLINE_S) == 45


def test_on_the_inline_driver() -> None:
    """Where nobody else runs tasks the loops and the awaits do, the same way each time."""

    def order() -> list[int]:
        with D.Context(driver=D.InlineDriver(seed=3)):
            tasks = {D.spawn(int, n): n for n in range(20)}
            finished = [tasks[task] for task in D.as_completed(tasks)]
            finished += list(D.map(identity, range(20), ordered=False))
            first, second = D.spawn(int, 1), D.spawn(int, 2)
            D.waitany([first, second])
            assert first.isready() != second.isready()

            async def main() -> Any:
                assert await D.spawn(identity, 5) == 5
                return await collected(D.map(identity, range(5))), await collected(D.as_completed([first, second]))

            assert run(main())[0] == list(range(5))
            return finished

    assert order() == order()
    assert sorted(order()[:20]) == list(range(20))


# --- asyncio's own functions ------------------------------------------------------------------------------


def test_gather_wait_for_and_shield(two: D.Context, gate: threading.Event) -> None:
    """asyncio's own functions take tasks: gather (with errors as results), wait_for, shield, as_completed."""

    async def main() -> None:
        good, bad = D.spawn(int, 5), D.spawn(boom)
        results = await asyncio.gather(good, bad, return_exceptions=True)
        assert results[0] == 5 and isinstance(results[1], D.DTaskFailedError)
        assert await asyncio.wait_for(good, DEADLINE_S) == 5
        assert await asyncio.shield(good) == 5
        assert sorted([await one for one in asyncio.as_completed([D.spawn(int, n) for n in range(5)])]) == [*range(5)]
        slow = D.spawn(gate.wait, DEADLINE_S)
        with pytest.raises((asyncio.TimeoutError, TimeoutError)):
            await asyncio.wait_for(slow, 0.02)
        assert slow._subs == [] and not slow.isready()
        done, pending = await asyncio.wait([asyncio.ensure_future(good), asyncio.ensure_future(slow)],
                                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        assert len(done) == len(pending) == 1
        gate.set()
        await asyncio.wait(pending)
        with pytest.raises(D.DTaskFailedError):
            await asyncio.wait_for(bad, DEADLINE_S)

    run(main())


def test_a_loop_that_is_dropped_at_the_end_of_the_program() -> None:
    """A program that ends in the middle of a `map` ends, and says nothing."""
    out = run_program(
        """
        import itertools
        results = ts.map(lambda n: n, itertools.count())
        print(next(results), next(results))
        """
    )
    assert out == "0 1\n"


class Thing:
    """Something that can be referred to weakly."""


@pytest.mark.parametrize(
    "loop",
    [
        lambda: D.map(lambda _: Thing(), range(12)),
        lambda: D.map(lambda _: Thing(), range(12), ordered=False),
        lambda: D.as_completed([D.spawn(Thing) for _ in range(12)]),
        lambda: D.progress([D.spawn(Thing) for _ in range(12)]),
    ],
    ids=["map", "unordered", "as_completed", "progress"],
)
@pytest.mark.parametrize("in_a_coroutine", [False, True])
def test_a_loop_keeps_nothing_that_it_gave(ctx: D.Context, loop: Any, in_a_coroutine: bool) -> None:
    """What a loop gave lives as long as its taker keeps it, also while the loop goes on."""

    def gone(ref: weakref.ref[Any]) -> bool:
        return gc.collect() is not None and ref() is None

    async def each() -> int:
        count = 0
        async for thing in loop():
            ref = weakref.ref(thing)
            del thing
            poll(lambda ref=ref: gone(ref))
            count += 1
        return count

    if in_a_coroutine:
        assert asyncio.run(each()) == 12
        return
    for thing in loop():
        ref = weakref.ref(thing)
        del thing
        poll(lambda ref=ref: gone(ref))
