"""design/otel-model.md §1.1 and §2: what the scheduler does besides tasks, as spans (detail "scheduler") and counts."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.places.devices import PickleFileDevice
from otel_timespan.dagger.places.topology import topology
from otel_timespan.dagger.storage import RecencyAllocator
from otel_timespan.timespans import drain_all
from tests.acceptance_otel.acc_otel_support import (
    DEADLINE_S,
    Lab,
    check_tree,
    check_waits,
    children,
    one,
    phase,
    sid,
    task_span,
    task_spans,
)
from tests.backends import eventually
from tests.dagger.acceptance.stubs import Device

Make = Callable[..., Lab]
BLOCK = 60_000


@pytest.fixture(autouse=True)
def _fresh_topology() -> Iterator[None]:
    """Pretended workers leave no trace."""
    yield
    topology.reset()


class Logged:
    """A lab in a context of its own, all events beside it."""

    def __init__(self, make: Make, context: D.Context, **options: Any) -> None:
        self.lab = make(use=False, detail="scheduler", **options)
        self.events: list[ts.Event] = []
        self.context = context
        context.log_sink = ts.TeeLog(self.lab.log, self.events)

    def spans(self) -> list[ReadableSpan]:
        """All spans, of which those hold that hold for all: the tree, the waits, and no start without its end."""
        spans = self.lab.spans()
        drain_all()  # what finalizers say reaches the list a moment later
        check_tree(spans)
        for span in task_spans(spans).values():
            check_waits(span)
        halves = Counter((e.category, e.id) for e in self.events if e.phase == "start")
        halves.subtract(Counter((e.category, e.id) for e in self.events if e.phase == "finish"))
        assert {key for key, count in halves.items() if count} == set()
        return spans

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of a name, in order."""
        return sorted((s for s in self.spans() if s.name == name), key=lambda s: s.start_time or 0)


def block(n: int) -> bytes:
    """A body whose result is worth a file."""
    return bytes([n]) * BLOCK


def first(data: bytes) -> int:
    """A body that reads it."""
    return data[0]


def same(x: Any) -> Any:
    """A body."""
    return x


def held(began: threading.Event, gate: threading.Event) -> None:
    """A body that waits."""
    began.set()
    assert gate.wait(DEADLINE_S)


def test_11_spilled_data_shows_as_evict_and_storage_wait(make_lab: Make, tmp_path: Path) -> None:
    """What leaves memory is an `evict` with its reason, what waits for the device a `storage_wait`; both count."""
    device = RecencyAllocator(2 * BLOCK + 1000, PickleFileDevice(tmp_path / "spill"), 10 * BLOCK)
    with D.Context(driver=D.InlineDriver({1: 1}, clock=time.monotonic_ns)) as context:
        logged = Logged(make_lab, context)
        with ts.dag("spill"):
            tasks = [ts.spawn(block, D.Options(storage=device), n) for n in range(4)]
            assert [ts.fetch(ts.spawn(first, task)) for task in tasks] == [0, 1, 2, 3]
            del tasks
            gc.collect()
        spans = logged.spans()
    evicts = [s for s in spans if s.name == "evict"]
    spilled = sum(s.attributes["timespan.evict.reason"] == "spilled" for s in evicts)
    assert spilled >= 2 and {s.attributes["timespan.evict.reason"] for s in evicts} == {"spilled", "released"}
    waits = [s for s in spans if s.name == "storage_wait"]
    assert waits and {s.attributes["timespan.storage.device"] for s in waits} == {"RecencyAllocator"}
    assert {s.attributes["timespan.processor"] for s in waits} == {"ThreadProc(1, 1)"}
    root = one(spans, "dag spill")
    assert {s.parent.span_id for s in [*evicts, *waits] if s.parent} == {sid(root)}
    counted = [e for e in logged.events if (e.phase, e.category) == ("finish", "evict") and e.timeline.in_memory]
    assert logged.lab.value("timespan.evict.count", timespan__worker__id=1) == len(counted) >= spilled


def test_11_steals_say_what_was_taken_from_whom(make_lab: Make) -> None:
    """Of two slots that tasks are pinned to, one has a long body: the other steals from it; each success counts."""
    slots = [D.ThreadProc(1, 1), D.ThreadProc(1, 2)]
    pinned = D.Options(scope=D.UnionScope(*map(D.ExactScope, slots)))
    driver = D.SimulatedDriver({1: 3}, lambda task: task._args[0])
    with D.Context(driver=driver) as context:
        logged = Logged(make_lab, context, clock=lambda: driver.now)
        with ts.dag("steal"):
            tasks = [ts.spawn(same, pinned, seconds) for seconds in (100.0, *[1.0] * 10)]
            long = tasks[0]
            ts.waitall(tasks)
        spans = logged.spans()
    steals = [s for s in spans if s.name == "steal" and "timespan.steal.task" in s.attributes]
    busy = task_span(spans, long).attributes["timespan.processor"]
    assert steals
    for span in steals:
        stolen = task_spans(spans)[span.attributes["timespan.steal.task"]]
        assert stolen.attributes["timespan.processor"] == span.attributes["timespan.processor"]
        assert span.attributes["timespan.steal.source"] == busy != span.attributes["timespan.processor"]
    assert logged.lab.value("timespan.steal.count") == len(steals)


def test_11_a_task_without_a_worker_waits_and_the_worker_s_coming_shows(make_lab: Make) -> None:
    """A parked task is placed once, when there is somewhere; workers that come and go are spans of the run."""
    with D.Context([], driver=D.InlineDriver({1: 2, 2: 2}, clock=time.monotonic_ns)) as context:
        logged = Logged(make_lab, context)
        with ts.dag("parked"):
            task = ts.spawn(same, 1)
            assert logged.lab.value("timespan.task.active", timespan__task__state="waiting") == 1
            D.addprocs(context, [1, 2])
            assert ts.fetch(ts.spawn(same, task)) == 1
            D.rmprocs(context, [2])
        spans = logged.spans()
    assert Counter(s.name for s in spans if s.name.endswith(("_proc", "_procs"))) >= Counter(
        init_proc=2, cleanup_proc=1, assign_procs=2
    )
    came = next(s for s in spans if s.name == "assign_procs")
    waited = task_span(spans, task)
    assert waited.start_time < came.start_time <= phase(spans, task, "schedule").end_time
    assert waited.attributes["timespan.wait.schedule"] >= (came.start_time - waited.start_time) / 1e9 - 1e-6
    assert waited.attributes["timespan.wait.dependency"] == 0


def test_11_a_wait_for_a_place_of_a_limit_is_in_schedule(make_lab: Make, gate: threading.Event) -> None:
    """Of two tasks with a limit of one the second waits in `schedule`, not for a dependency, whatever it depends on."""
    D.set_limit("acc-otel", 1)
    limited = D.Options(limit="acc-otel")
    began = threading.Event()
    try:
        with D.Context(threads=2) as context:
            logged = Logged(make_lab, context)
            with ts.dag("limited"):
                holder = ts.spawn(held, limited, began, gate)
                assert began.wait(DEADLINE_S)
                upstream = ts.spawn(same, 1)
                second = ts.spawn(same, limited, upstream)
                ts.wait(upstream)
                gate.set()
                ts.waitall([holder, second])
            spans = logged.spans()
    finally:
        D.set_limit("acc-otel", None)
    waits, held_up = task_span(spans, second), phase(spans, second, "schedule")
    assert held_up.start_time <= task_span(spans, holder).end_time <= held_up.end_time
    assert held_up.start_time == max(waits.start_time, task_span(spans, upstream).end_time)
    assert waits.attributes["timespan.wait.schedule"] * 1e9 == pytest.approx(held_up.end_time - held_up.start_time)


def test_11_a_task_whose_processor_goes_away_is_placed_again(make_lab: Make, gate: threading.Event) -> None:
    """Two `schedule` spans, ids of their own; the body's processor is the custom one, by its text."""
    D.add_processor_callback(Device, "acc-device")
    here = D.Options(scope=D.ProcessorTypeScope(Device))
    began = threading.Event()
    try:
        with D.Context(threads=2) as context:
            logged = Logged(make_lab, context)
            with ts.dag("devices"):
                busy = ts.spawn(held, here, began, gate)
                assert began.wait(DEADLINE_S)
                lost = ts.spawn(same, here, 1)
                D.delete_processor_callback("acc-device")
                ts.wait(lost)
                gate.set()
                ts.wait(busy)
            spans = logged.spans()
    finally:
        D.delete_processor_callback("acc-device")
    for span in (task_span(spans, busy), phase(spans, busy, "compute")):
        assert span.attributes["timespan.processor"] == "Device(owner=1)"
    again = task_span(spans, lost)
    assert [s.name for s in children(spans, again) if s.name == "schedule"] == ["schedule"] * 2
    assert again.status.status_code is StatusCode.ERROR and "SchedulingError" in again.attributes["error.type"]
    assert again.attributes["timespan.wait.dependency"] < again.attributes["timespan.wait.schedule"]


def test_11_each_attempt_is_a_span_linked_to_the_one_before(make_lab: Make) -> None:
    """Attempts end with their bodies and say what they failed with; the delay between them is in none of them."""
    tries: list[float] = []

    def flaky() -> int:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise ValueError(f"try {len(tries)}")
        return len(tries)

    with D.Context(threads=1) as context:
        logged = Logged(make_lab, context)
        with ts.dag("retry"):
            assert ts.fetch(ts.spawn(flaky, ts.Options(retries=3, retry_delay=0.05))) == 3
        attempts = logged.named("flaky")
        root = one(logged.spans(), "dag retry")
    assert [s.attributes["timespan.task.attempt"] for s in attempts] == [1, 2, 3]
    assert [s.attributes["timespan.task.state"] for s in attempts] == ["retried", "retried", "finished"]
    assert [s.status.description for s in attempts] == ["try 1", "try 2", None]
    assert [s.attributes.get("error.type") for s in attempts] == ["ValueError", "ValueError", None]
    for before, after in itertools.pairwise(attempts):
        (link,) = after.links
        assert (link.context.span_id, link.attributes["timespan.link.type"]) == (sid(before), "retry")
        assert after.start_time - before.end_time >= 50_000_000 * 0.9
    assert root.attributes["timespan.dag.tasks.retried"] == 2 and root.status.status_code is StatusCode.UNSET
    assert logged.lab.value("timespan.retry.count") == 2
    assert logged.lab.value("timespan.task.count", timespan__task__result="failure") == 0


def test_11_the_compute_span_of_a_coroutine_lasts_until_its_end(make_lab: Make) -> None:
    """It covers the awaits, fails with what was raised after one, and is closed when the task was cancelled."""
    began = threading.Event()

    async def late(n: int) -> int:
        await asyncio.sleep(0.02)
        return 10 // n

    async def endless() -> None:
        began.set()
        await asyncio.sleep(3600)

    with D.Context(threads=1) as context:
        logged = Logged(make_lab, context)
        with ts.dag("coroutines"):
            good, bad, never = ts.spawn(late, 1), ts.spawn(late, 0), ts.spawn(endless)
            ts.waitall([good, bad])
            assert began.wait(DEADLINE_S)
            ts.cancel(never)
        assert eventually(lambda: [s for s in logged.lab.spans() if s.name == "endless"], DEADLINE_S)
        spans = logged.spans()
    for task in (good, bad):
        compute = phase(spans, task, "compute")
        assert compute.end_time - compute.start_time >= 20_000_000 * 0.9
    assert phase(spans, bad, "compute").status.status_code is StatusCode.ERROR
    assert [e.name for e in phase(spans, bad, "compute").events] == ["exception"]
    assert task_span(spans, never).attributes["timespan.task.state"] == "cancelled"
    assert phase(spans, never, "compute").status.status_code is StatusCode.UNSET


def test_11_moves_of_shards_and_chunks(make_lab: Make) -> None:
    """A piece of a shard is moved from its worker to itself, a chunk from worker to worker, each by its kind."""
    with D.Context([1, 2], driver=D.InlineDriver({1: 1, 2: 1}, clock=time.monotonic_ns)) as context:
        logged = Logged(make_lab, context)
        with ts.dag("moves"):
            pieces = D.shard(lambda: bytearray(1000), workers=[1, 2])
            on = {worker: D.Options(scope=D.scope(worker=worker)) for worker in (1, 2)}
            tasks = [ts.spawn(len, on[worker], pieces) for worker in (1, 2)]
            assert ts.fetch_all(tasks) == [1000, 1000]
            far = ts.spawn(first, on[2], ts.spawn(block, on[1], 7))
            assert ts.fetch(far) == 7
        spans = logged.spans()

    def move(task: Any) -> tuple[Any, ...]:
        keys = ("kind", "source", "destination", "size")
        return tuple(phase(spans, task, "move").attributes[f"timespan.move.{key}"] for key in keys)

    assert [move(task) for task in tasks] == [("shard", 1, 1, 1000), ("shard", 2, 2, 1000)]
    assert move(far) == ("chunk", 1, 2, BLOCK)


@pytest.mark.parametrize("scheduler_clock", [True, False])
def test_11_a_simulated_run(make_lab: Make, caplog: pytest.LogCaptureFixture, scheduler_clock: bool) -> None:
    """With the simulation's clock its hours begin when the log was made; without it, a warning says what to give."""
    driver = D.SimulatedDriver({1: 1, 2: 1}, lambda task: 3600.0)
    options = {"clock": lambda: driver.now} if scheduler_clock else {}
    before = time.time_ns()
    with D.Context(driver=driver) as context:
        logged = Logged(make_lab, context, **options)
        upstream = ts.spawn(same, 1)
        assert ts.fetch(ts.spawn(same, upstream)) == 1
        del upstream
        gc.collect()
        spans = logged.spans()
    bodies = sorted((s for s in spans if s.name == "compute"), key=lambda s: s.start_time)
    assert [round((s.end_time - s.start_time) / 1e9) for s in bodies] == [3600, 3600]
    said = [r for r in caplog.records if "another clock" in r.getMessage()]
    assert len(said) == (not scheduler_clock)
    if scheduler_clock:
        root = one(spans, "dag")
        assert before <= root.start_time <= time.time_ns()
        assert root.end_time - root.start_time == pytest.approx(7200e9, abs=1e9)
