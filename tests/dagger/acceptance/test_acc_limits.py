"""Named concurrency limits: `set_limit`, the option `limit`."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.core import limits
from tests.dagger.acceptance.stubs import Meter
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    boom,
    failure,
    identity,
    moment,
    outcome,
    poll,
    settled,
)


@pytest.fixture(autouse=True)
def _no_limits_left() -> Iterator[None]:
    """Each test begins without limits, and ends without a task that has or wants a place."""
    yield
    poll(lambda: not limits._holds and not limits._waits, "the places")
    for name in list(limits._limits):
        assert limits._limits[name].taken == 0
        D.set_limit(name, None)


def test_issue5_12_limits() -> None:
    """Issue 5.12: of the tasks with `limit="db"` never more than `set_limit` says run at once; all of them run."""
    meter, barrier = Meter(), threading.Barrier(2)

    def body(n: int) -> int:
        with meter.inside():
            if n < 2:
                barrier.wait(DEADLINE_S)
            return n

    with D.Context(threads=4):
        D.set_limit("db", 2)
        tasks = [D.spawn(body, D.Options(limit="db"), n) for n in range(40)]
        poll(lambda: all(t.isready() for t in tasks))
        assert D.fetch_all(tasks) == list(range(40))
    assert meter.most == 2


def test_issue5_12_others_pass_by(gate: threading.Event) -> None:
    """Issue 5.12: tasks that wait for their limit hold no slot: tasks without it, or with another, go on."""
    with D.Context(threads=2):
        D.set_limit("narrow", 1)
        D.set_limit("wide", 5)
        begun = threading.Event()

        def body() -> None:
            begun.set()
            gate.wait(DEADLINE_S)

        holding = D.spawn(body, D.Options(limit="narrow"))
        assert begun.wait(DEADLINE_S)
        waiting = [D.spawn(int, D.Options(limit="narrow")) for _ in range(10)]
        assert D.spawn(int, "1").fetch(timeout=DEADLINE_S) == 1
        assert D.spawn(int, D.Options(limit="wide"), "2").fetch(timeout=DEADLINE_S) == 2
        assert not any(t.isready() for t in waiting)
        gate.set()
        poll(lambda: all(t.isready() for t in [holding, *waiting]))


def test_issue5_12_limits_come_back_after_every_end(gate: threading.Event) -> None:
    """Issue 5.12: failed, cancelled and timed out tasks give their place back."""
    with D.Context(threads=2):
        D.set_limit("db", 1)
        limited = D.Options(limit="db")
        for _ in range(3):
            bad = D.spawn(boom, limited)
            slow = D.spawn(gate.wait, D.Options(limit="db", timeout=0.01), DEADLINE_S)
            gone = D.spawn(gate.wait, limited, DEADLINE_S)
            D.cancel(gone)
            poll(lambda bad=bad, slow=slow, gone=gone: bad.isready() and slow.isready() and gone.isready())
        assert D.spawn(int, limited).fetch(timeout=DEADLINE_S) == 0


def test_issue5_12_a_limit_can_be_raised_meanwhile(gate: threading.Event) -> None:
    """Issue 5.12: raising a limit lets waiting tasks start."""
    begun = threading.Semaphore(0)

    def body() -> None:
        begun.release()
        gate.wait(DEADLINE_S)

    with D.Context(threads=3):
        D.set_limit("db", 1)
        tasks = [D.spawn(body, D.Options(limit="db")) for _ in range(3)]
        assert begun.acquire(timeout=DEADLINE_S)
        D.set_limit("db", 3)
        assert begun.acquire(timeout=DEADLINE_S) and begun.acquire(timeout=DEADLINE_S)
        gate.set()
        D.waitall(tasks)


def test_issue5_12_a_waiting_task_can_be_cancelled(gate: threading.Event) -> None:
    """§2: a task that waits for its limit is cancelled at once and never runs."""
    with D.Context(threads=2) as context:
        D.set_limit("db", 1)
        ran: list[int] = []
        holding = D.spawn(gate.wait, D.Options(limit="db"), DEADLINE_S)
        waiting = D.spawn(ran.append, D.Options(limit="db"), 1)
        D.cancel(waiting)
        assert waiting.isready() and outcome(waiting)[1] is D.TaskCancelled
        gate.set()
        holding.fetch(timeout=DEADLINE_S)
        context.wait_idle()
        D.check(D.eager_state())
    assert ran == []


def test_issue5_12_a_limit_for_a_block(gate: threading.Event) -> None:
    """§4.2: the limit may be given for a block of spawns."""
    meter = Meter()

    def body() -> None:
        with meter.inside():
            time.sleep(0)

    with D.Context(threads=4):
        D.set_limit("db", 1)
        with D.with_options(limit="db"):
            tasks = [D.spawn(body) for _ in range(50)]
        D.waitall(tasks)
    assert (meter.most, len(meter.order)) == (1, 50)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "two"], ids=repr)
def test_issue5_12_limits_that_cannot_work(bad: Any) -> None:
    """Issue 5: a limit below 1, or none, is refused at once, by us."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.set_limit("db", bad)
    assert isinstance(caught.value, D.TimespanError)


def test_issue5_12_names_of_limits() -> None:
    """Issue 5: the option is a name."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.Options(limit=5)
    assert isinstance(caught.value, D.TimespanError)


# --- edges ------------------------------------------------------------------------------------------------


@pytest.fixture
def many() -> Iterator[D.Context]:
    """A context of six slots."""
    with D.Context(threads=6) as context:
        yield context


DB = D.Options(limit="db")


def test_at_most_so_many_at_once_in_submission_order(many: D.Context, gate: threading.Event) -> None:
    """With a limit of two, two of ten bodies run in six slots; the others begin in their order as places come free."""
    D.set_limit("db", 2)
    meter = Meter()
    tasks = [D.spawn(meter, DB, n, gate) for n in range(10)]
    poll(lambda: meter.now == 2)
    assert D.fetch_all([D.spawn(identity, n) for n in range(20)]) == list(range(20))  # slots are free for others
    assert meter.most == 2 and sorted(meter.order) == [0, 1]
    gate.set()
    assert D.fetch_all(tasks) == list(range(10))
    assert meter.most == 2 and sorted(meter.order[:2]) == [0, 1]


def test_one_at_a_time_begins_in_order(many: D.Context, gate: threading.Event) -> None:
    """A limit of one is a queue: bodies begin exactly in the order of their submission."""
    D.set_limit("db", 1)
    meter = Meter()
    blocker = D.spawn(meter, DB, -1, gate)
    tasks = [D.spawn(meter, DB, n) for n in range(50)]
    gate.set()
    assert D.fetch_all([blocker, *tasks]) == [-1, *range(50)]
    assert meter.order == [-1, *range(50)] and meter.most == 1


def test_places_come_back_however_a_task_ends(many: D.Context, gate: threading.Event) -> None:
    """After results, failures, cancellations queued and running, timeouts and skipped ones, the limit is whole."""
    D.set_limit("db", 1)
    assert D.spawn(int, DB, 5).fetch() == 5
    failure(D.spawn(boom, DB))
    running = D.spawn(gate.wait, DB, DEADLINE_S)
    waiting = [D.spawn(int, DB, n) for n in range(100)]
    for task in waiting[::2]:
        task.cancel()
    assert len(limits._waits) == 50
    running.cancel()
    assert D.fetch_all(waiting[1::2]) == list(range(1, 100, 2))
    slow = D.spawn(gate.wait, D.Options(limit="db", timeout=0.02), DEADLINE_S)
    after = D.spawn(int, DB, 7)
    assert isinstance(D.unwrap_exception(failure(slow)), D.TaskTimeoutError)
    assert after.fetch() == 7
    unplaceable = D.spawn(int, D.Options(limit="db", scope=D.ProcessScope(99)))
    failure(unplaceable)
    failure(D.spawn(identity, DB, unplaceable))
    assert D.spawn(int, DB, 8).fetch() == 8


def test_a_retry_gives_its_place_back(many: D.Context) -> None:
    """Between two attempts the place is free for others: they run while the next attempt waits its time."""
    D.set_limit("db", 1)
    tries: list[int] = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise BoomError
        return len(tries)

    task = D.spawn(flaky, D.Options(limit="db", retries=1, retry_delay=0.2))
    poll(lambda: tries)
    assert D.spawn(lambda: len(tries), DB).fetch() == 1
    assert task.fetch() == 2


def test_several_limits_at_once(many: D.Context, gate: threading.Event) -> None:
    """A task with two names needs a place under both, takes them together, and keeps the order under each."""
    D.set_limit("a", 1)
    D.set_limit("b", 2)
    meter = Meter()
    both = D.Options(limit=("a", "b"))
    first = D.spawn(meter, both, 1, gate)
    second = D.spawn(meter, both, 2)
    third = D.spawn(meter, D.Options(limit="b"), 3)  # there is a place, but the second one came first
    poll(lambda: meter.order == [1])
    assert len(limits._waits) == 2
    gate.set()
    assert D.fetch_all([first, second, third]) == [1, 2, 3]
    assert meter.order[0] == 1 and meter.most <= 2


def test_changing_a_limit(many: D.Context, gate: threading.Event) -> None:
    """A higher limit lets waiting ones begin at once, a lower one holds back; taking it away lets all begin."""
    D.set_limit("db", 1)
    assert D.get_limit("db") == 1
    meter = Meter()
    tasks = [D.spawn(meter, DB, n, gate) for n in range(6)]
    poll(lambda: meter.now == 1)
    D.set_limit("db", 3)
    poll(lambda: meter.now == 3)
    D.set_limit("db", 2)
    tasks[0].cancel()
    assert D.get_limit("db") == 2 and len(limits._waits) == 3
    D.set_limit("db", None)
    poll(lambda: not limits._waits)
    gate.set()
    D.waitall(tasks)
    with pytest.raises(D.InvalidOptionError, match="no limit 'db'"):
        D.get_limit("db")
    with pytest.raises(D.InvalidOptionError):
        D.spawn(int, DB)


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, b"many"])
def test_bad_limits_are_refused(bad: Any) -> None:
    """A limit is a positive integer, its name a string."""
    with pytest.raises(D.InvalidOptionError, match="limit"):
        D.set_limit("db", bad)
    with pytest.raises(D.InvalidOptionError, match="name"):
        D.set_limit(bad, 1)


@pytest.mark.parametrize("bad", [5, (), ("db", 5), "", b"db", {"db": 1}])
def test_bad_names_are_refused(bad: Any) -> None:
    """The option takes a name or a list of names."""
    with pytest.raises(D.InvalidOptionError, match="limit"):
        D.Options(limit=bad)


def test_an_unknown_name_is_told_at_spawn(many: D.Context) -> None:
    """A limit that was never set raises where the task is spawned, also from a block, an executor and a map."""
    D.set_limit("db", 1)
    with pytest.raises(D.InvalidOptionError, match="no limit 'bd', but db"):
        D.spawn(int, D.Options(limit="bd"))
    with D.with_options(limit=("db", "other")), pytest.raises(D.InvalidOptionError, match="other"):
        D.spawn(int)
    with D.Executor(limit="other") as executor, pytest.raises(D.InvalidOptionError):
        executor.submit(int)
    with pytest.raises(D.InvalidOptionError):
        list(D.map(int, [1], limit="other"))
    with pytest.raises(D.InvalidOptionError, match="default of a signature"):
        D.set_default_option("limit", int, (), "db")


def test_scoped_it_holds_for_the_block_s_own_tasks(gate: threading.Event) -> None:
    """A block's limit is not handed on to what its bodies spawn: those would wait for the body's own place."""
    D.set_limit("db", 1)
    with D.Context(threads=1), D.with_options(limit="db", tag=3):

        def outer() -> Any:
            inner = D.spawn(lambda: D.get_options("tag"))
            return inner.options.limit, inner.fetch()

        task = D.spawn(outer)
        assert task.options.limit == ("db",) and task.fetch(timeout=DEADLINE_S) == (None, 3)


def test_waiting_for_one_s_own_place_is_refused(many: D.Context) -> None:
    """A body that has the only place and fetches a task that waits for it gets an error and does not hang."""
    D.set_limit("db", 1)

    def outer() -> Any:
        with pytest.raises(D.NestingError, match="db"):
            D.spawn(int, DB).fetch()
        return 5

    async def awaits() -> Any:
        with pytest.raises(D.NestingError, match="db"):
            await D.spawn(int, DB)
        return 6

    assert D.spawn(outer, DB).fetch(timeout=DEADLINE_S) == 5
    assert D.spawn(awaits, DB).fetch(timeout=DEADLINE_S) == 6


def test_one_name_for_all_contexts(gate: threading.Event) -> None:
    """Tasks of different contexts, an executor's among them, share the places of a name."""
    D.set_limit("db", 1)
    meter = Meter()
    with D.Context(threads=2), D.Executor(2, limit="db") as executor:
        future = executor.submit(meter, 1, gate)
        poll(lambda: meter.now == 1)
        task = D.spawn(meter, DB, 2)
        assert not task.isready()
        gate.set()
        assert task.fetch(timeout=DEADLINE_S) == 2 and future.result() == 1
    assert meter.most == 1


def test_a_halt_and_a_general_cancel_reach_those_that_wait(gate: threading.Event) -> None:
    """`cancel()` of everything, and going down, end the tasks that wait for places."""
    D.set_limit("db", 1)
    with D.Context(threads=2) as context:
        tasks = [D.spawn(gate.wait, DB, DEADLINE_S) for _ in range(20)]
        D.cancel()
        assert all(task.isready() for task in tasks)
        D.spawn(gate.wait, DB, DEADLINE_S)
        tasks = [D.spawn(int, DB) for _ in range(20)]
        assert set(tasks) < set(context.core.unfinished())  # type: ignore[union-attr]
        D.cancel(halt_sch=True)
        assert all(task.isready() for task in tasks)
        gate.set()
        assert D.spawn(int, DB, 3).fetch(timeout=DEADLINE_S) == 3


def test_ten_thousand_that_can_t_be_placed(many: D.Context, gate: threading.Event) -> None:
    """Each gives its place to the next without recursion, and none keeps anything."""
    D.set_limit("db", 1)
    D.spawn(gate.wait, DB, DEADLINE_S)
    options = D.Options(limit="db", scope=D.ProcessScope(99))
    tasks = [D.spawn(int, options) for _ in range(10_000)]
    gate.set()
    D.waitall(tasks)
    assert isinstance(D.unwrap_exception(failure(tasks[-1])), D.SchedulingError)


def test_the_wait_shows_before_the_placement(gate: threading.Event) -> None:
    """In the events a task that waits for its place is submitted and not scheduled; `schedule` comes with the place."""
    D.set_limit("db", 1)
    log: list[Any] = []
    with D.Context(threads=2, log_sink=log):
        first, second = D.spawn(gate.wait, DB, DEADLINE_S), D.spawn(int, DB)
        gate.set()
        D.waitall([first, second])
        settled(log, first, second)
    (submitted,) = moment(log, second, "add_thunk", "finish")
    (placed,) = moment(log, second, "schedule", "start")
    assert submitted <= moment(log, first, "finish", "start")[0] <= placed


def test_coroutines_keep_their_place_until_they_end(many: D.Context) -> None:
    """A coroutine has its place while it waits: of 50 never more than three are under way."""
    D.set_limit("db", 3)
    now, most = 0, 0

    async def body() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(3):
            await asyncio.sleep(0)
        now -= 1

    D.fetch_all([D.spawn(body, DB) for _ in range(50)])
    assert most == 3


def test_any_order_of_events(many: D.Context) -> None:
    """Random spawns, cancels and changes from four threads: no more than the limit at once, and nothing is left."""
    D.set_limit("a", 2)
    D.set_limit("b", 3)
    meter = Meter()

    def stir(seed: int) -> None:
        rng = random.Random(seed)
        tasks: list[D.DTask] = []
        for n in range(150):
            names = rng.choice([("a",), ("b",), ("a", "b"), ("b", "a")])
            tasks.append(D.spawn(meter if "a" in names else int, D.Options(limit=names), n))
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
            if rng.random() < 0.1:
                D.set_limit("b", rng.randint(1, 4))
        D.waitall(tasks)

    threads = [threading.Thread(target=stir, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads)
    poll(lambda: not many.core.running)  # type: ignore[union-attr]
    gc.collect()
    D.check(many.core)  # type: ignore[arg-type]


def test_on_the_inline_driver() -> None:
    """There, too, they run in submission order, one place or several."""
    for most in (1, 3):
        D.set_limit("db", most)
        meter = Meter()
        with D.Context(driver=D.InlineDriver()):
            assert D.fetch_all([D.spawn(meter, DB, n) for n in range(10)]) == list(range(10))
        assert meter.order == list(range(10))
