"""spec/scheduler.md §17.11, §19 and docs/events.md: the events of a task, their order, ids and payloads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.timespans import ChunkInfo, Event, EventId, TaskRef, ValueInfo
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    failure,
    identity,
    moment,
    of_task,
    poll,
    settled,
    timeline_of,
    where,
)

ID_FIELDS = {
    "scheduler_init": {"uid"},
    "scheduler_exit": {"uid"},
    "init_proc": {"uid", "worker"},
    "cleanup_proc": {"uid", "worker"},
    "assign_procs": {"uid"},
    "remove_procs": {"uid", "worker"},
    "handle_fault": {"uid", "worker"},
    "add_thunk": {"thunk_id"},
    "schedule": {"uid", "thunk_id"},
    "fire": {"uid", "worker", "thunk_id"},
    "enqueue": {"uid", "processor", "thunk_id"},
    "take": {"uid", "seq"},
    "proc_run_wait": {"uid", "worker", "processor", "seq"},
    "proc_run_fetch": {"uid", "worker", "processor", "seq"},
    "proc_steal_local": {"uid", "worker", "processor", "seq"},
    "move": {"thunk_id", "position", "processor"},
    "compute": {"thunk_id", "processor"},
    "storage_safe_scan": {"thunk_id", "processor"},
    "evict": {"worker", "handle"},
    "finish": {"uid", "thunk_id"},
    "data_annotation": {"objectid", "name"},
}
CORE_ONLY = {"scheduler_init", "scheduler_exit", "schedule", "fire", "take", "finish", "add_thunk"}


def logged(body: Any, **context: Any) -> tuple[list[Event], Any]:
    """All events of a context in which `body` runs, and what `body` returned."""
    log: list[Event] = []
    with D.Context(log_sink=log, **(context or {"threads": 2})) as here:
        result = body()
        here.wait_idle()
    poll(lambda: any(e.category == "scheduler_exit" and e.phase == "finish" for e in log), "the end of the log")
    return log, result


def run_to_end(*tasks: D.DTask) -> tuple[D.DTask, ...]:
    """Wait for the tasks; hand them on."""
    D.waitall(tasks)
    return tasks


def test_s19_one_task_has_one_span_of_each_kind() -> None:
    """§19 accept: one pair each of add_thunk, schedule, fire, enqueue, compute, finish; moves of positions 0, 1, 2."""
    log, (task,) = logged(lambda: run_to_end(D.spawn(add, 1, 2)))
    pairs = Counter((e.category, e.phase) for e in of_task(log, task))
    for category in ("add_thunk", "schedule", "fire", "enqueue", "compute", "storage_safe_scan", "finish"):
        assert pairs[category, "start"] == pairs[category, "finish"] == 1, category
    for phase in ("start", "finish"):
        assert [e.id.position for e in of_task(log, task, "move") if e.phase == phase] == [0, 1, 2]
    assert pairs["take", "start"] == 0


def assert_order(log: list[Event], task: D.DTask) -> None:
    """The order of docs/events.md for one successful task, by timestamp."""

    def at(category: str, phase: str) -> list[int]:
        return moment(log, task, category, phase)

    chain = [
        max(at("add_thunk", "start")),
        max(at("schedule", "start")),
        max(at("schedule", "finish")),
        max(at("enqueue", "start")),
        max(at("enqueue", "finish")),
        min(at("move", "start")),
        max(at("move", "finish")),
        max(at("compute", "start")),
        max(at("compute", "finish")),
        max(at("finish", "start")),
        max(at("finish", "finish")),
    ]
    assert chain == sorted(chain), chain
    scan = at("storage_safe_scan", "start")[0], at("storage_safe_scan", "finish")[0]
    assert at("compute", "start")[0] <= scan[0] <= scan[1] <= at("compute", "finish")[0]
    own = [(e.category, e.phase) for e in of_task(log, task)]
    for earlier, later in [
        (("add_thunk", "start"), ("schedule", "start")),
        (("schedule", "start"), ("schedule", "finish")),
        (("schedule", "start"), ("enqueue", "start")),
        (("enqueue", "finish"), ("compute", "start")),
        (("compute", "start"), ("compute", "finish")),
        (("compute", "finish"), ("finish", "start")),
    ]:
        assert own.index(earlier) < own.index(later), (earlier, later)


@pytest.mark.parametrize("context", [{"threads": 1}, {"threads": 2}], ids=["1", "2"])
def test_s17_11_order_of_one_task(context: dict[str, Any]) -> None:
    """§17.11: the guaranteed order of the events of a task holds for every one of many."""

    def body() -> tuple[D.DTask, ...]:
        layer = [D.spawn(add, n, 1) for n in range(20)]
        return run_to_end(*layer, *(D.spawn(add, a, b) for a, b in pairwise(layer)))

    log, tasks = logged(body, **context)
    for task in tasks:
        assert_order(log, task)


def test_s17_11_a_dependent_is_scheduled_after_its_last_upstream_finished() -> None:
    """§17.11: a dependent's schedule start comes after every upstream's finish finish."""

    def body() -> tuple[D.DTask, ...]:
        a, b = D.spawn(identity, 1), D.spawn(identity, 2)
        return run_to_end(a, b, D.spawn(add, a, b))

    for _ in range(20):
        log, (a, b, c) = logged(body)
        started = moment(log, c, "schedule", "start")[0]
        for up in (a, b):
            assert moment(log, up, "finish", "finish")[0] <= started
        position = {id(e): n for n, e in enumerate(log)}
        first = min(position[id(e)] for e in of_task(log, c, "schedule"))
        assert all(position[id(e)] < first for up in (a, b) for e in of_task(log, up, "finish"))


def test_s17_11_waiting_tasks_are_scheduled_after_their_submission(gate: threading.Event) -> None:
    """§17.11: with unfinished dependencies `schedule` comes after add_thunk finish."""

    def body() -> tuple[D.DTask, ...]:
        up = D.spawn(gate.wait, DEADLINE_S)
        down = D.spawn(identity, up)
        gate.set()
        return run_to_end(up, down)

    log, (_, down) = logged(body)
    assert moment(log, down, "add_thunk", "finish")[0] <= moment(log, down, "schedule", "start")[0]


@pytest.mark.parametrize(
    "context",
    [{"threads": 2}, {"driver": D.InlineDriver(workers={1: 2, 2: 2}, seed=0)}],
    ids=["threads", "inline"],
)
def test_s19_ids_pairs_and_categories(context: dict[str, Any]) -> None:
    """§19: ids have exactly the fields of the table, categories are known, every start has one finish, none overlap."""

    def body() -> None:
        a = D.spawn(add, D.Options(name="a"), 1, 2)
        parts = [D.spawn(identity, a) for _ in range(20)]
        bad = D.spawn(boom)
        skipped = D.spawn(identity, bad)
        pinned = D.spawn(identity, D.Options(scope=D.scope(worker=1, thread=1)), 3)
        nested = D.spawn(lambda: D.fetch(D.spawn(identity, 5)))
        blocked = D.spawn(identity, D.spawn(identity, 1))
        D.cancel(blocked)
        D.waitall([*parts, bad, skipped, pinned, nested, blocked])

    log, _ = logged(body, **context)
    open_spans: set[tuple[str, EventId]] = set()
    for event in log:
        assert event.category in D.EVENT_CATEGORIES
        assert isinstance(event.id, EventId)
        assert set(event.id.keys()) == ID_FIELDS[event.category], event
        assert type(event.timestamp) is int
        for name in ("uid", "thunk_id", "worker", "seq"):
            assert name not in event.id or type(event.id[name]) is int, event
        assert "processor" not in event.id or isinstance(event.id.processor, D.Processor)
        key = (event.category, event.id)
        if event.phase == "start":
            assert key not in open_spans, f"opened twice: {key}"
            open_spans.add(key)
        else:
            assert event.phase == "finish"
            assert key in open_spans, f"finished without a start: {key}"
            open_spans.remove(key)
    assert open_spans == set()


def test_s19_categories_are_those_of_the_table() -> None:
    """§19: `EVENT_CATEGORIES` holds every category that this stage emits."""
    assert set(ID_FIELDS) <= set(D.EVENT_CATEGORIES)


def test_s19_the_life_of_a_scheduler() -> None:
    """§19: scheduler_init and init_proc begin a log, cleanup_proc and scheduler_exit end it, `OSProc(1)` in both."""
    log, _ = logged(lambda: run_to_end(D.spawn(int)))
    found = [(e.category, e.phase) for e in log]
    assert found[0] == ("scheduler_init", "start") and found[-1] == ("scheduler_exit", "finish")
    for category in ("scheduler_init", "scheduler_exit", "init_proc", "cleanup_proc"):
        assert found.count((category, "start")) == found.count((category, "finish")) == 1
    assert {e.timeline for e in log if e.category.startswith("scheduler_")} == {D.OSProc(1)}
    assert {e.id.worker for e in log if e.category.endswith("_proc")} == {1}
    assert len({e.id.uid for e in log if "uid" in e.id}) == 1


def test_s19_same_seed_same_events() -> None:
    """architecture §2: with the inline driver the same seed gives the same trace, another one need not."""

    def body() -> None:
        layer = [D.spawn(identity, n) for n in range(12)]
        D.waitall([D.spawn(add, a, b) for a, b in zip(layer, layer[3:], strict=False)])

    def trace(seed: int) -> list[Any]:
        log, _ = logged(body, driver=D.InlineDriver(workers={1: 2, 2: 2}, seed=seed))
        base = min(e.id.thunk_id for e in log if "thunk_id" in e.id)
        return [
            (e.phase, e.category, e.worker, e.id.get("thunk_id", base) - base, e.id.get("processor"), e.timestamp)
            for e in log
        ]

    first = trace(0)
    assert first == trace(0)
    assert any(trace(seed) != first for seed in range(1, 6))


# --- payloads --------------------------------------------------------------------------------------------


def test_s19_add_thunk_tells_the_task() -> None:
    """events.md: add_thunk carries function, arguments by position, dependencies, options, and whose child it is."""

    def body() -> tuple[Any, ...]:
        up, chunk = D.spawn(identity, 5), D.tochunk([1, 2])
        task = D.spawn(dict, D.Options(name="label", syncdeps={up}), [], k=up, c=chunk, n=7)
        child = D.spawn(lambda: D.spawn(int))
        grandchild = D.fetch(child)
        run_to_end(up, task, child, grandchild)
        return up, chunk, task, child, grandchild

    log, (up, chunk, task, child, grandchild) = logged(body)
    for phase in ("start", "finish"):
        told = timeline_of(log, task, "add_thunk", phase)
        assert told.f is dict and told.uid == task.id and told.name == "label"
        assert told.attempt == 1 and told.spawned_by == 0
        assert isinstance(told.options, D.Options)
        args = dict(told.args)
        assert list(args) == [1, "k", "c", "n"]
        assert args["k"] == TaskRef(up.id)
        assert isinstance(args["c"], ChunkInfo) and args["c"].type is list and args["c"].worker == 1
        assert args["n"] == ValueInfo(int, 8, 0)
        assert isinstance(args[1], ValueInfo) and args[1].type is list and args[1].objid != 0
        assert ("k", up.id) in told.deps
    assert timeline_of(log, grandchild, "add_thunk").spawned_by == child.id
    assert {timeline_of(log, t, "add_thunk").run_id for t in (up, task, child)} == {
        timeline_of(log, grandchild, "add_thunk").run_id
    }
    assert chunk.fetch() == [1, 2]


def test_s19_finished_upstreams_are_dependencies_too() -> None:
    """events.md: `deps` includes upstreams that were finished already."""

    def body() -> tuple[D.DTask, ...]:
        up = D.spawn(int)
        D.wait(up)
        return run_to_end(up, D.spawn(identity, up))

    log, (up, down) = logged(body)
    assert timeline_of(log, down, "add_thunk", "start").deps == ((1, up.id),)
    assert timeline_of(log, down, "add_thunk", "finish").deps == ((1, up.id),)


def test_s19_runs_have_different_ids() -> None:
    """events.md: `run_id` is a random number of this scheduler instance; it fits 63 bits."""
    runs = set()
    for _ in range(2):
        log, (task,) = logged(lambda: run_to_end(D.spawn(int)))
        runs.add(timeline_of(log, task, "add_thunk").run_id)
    assert len(runs) == 2 and all(0 <= r < 2**63 for r in runs)


def test_s19_moves_tell_the_kind() -> None:
    """events.md: position 0 is the function; value, task's result, chunk and custom move are told apart."""

    class Special:
        pass

    @D.move.register(D.Processor, D.ThreadProc, Special)
    def _(source: Any, target: Any, x: Any) -> Any:
        return "moved"

    def body() -> tuple[Any, ...]:
        up = D.spawn(lambda: [1])
        task = D.spawn(lambda *a, **k: a, 5, up, D.tochunk([2]), D.tochunk(Special()), k=6)
        return run_to_end(up, task)

    log, (_, task) = logged(body)
    kinds = {e.id.position: e.timeline.kind for e in of_task(log, task, "move") if e.phase == "finish"}
    assert kinds == {0: "value", 1: "value", 2: "task", 3: "chunk", 4: "custom", "k": "value"}
    for event in of_task(log, task, "move"):
        if event.phase == "finish":
            assert (event.timeline.source, event.timeline.destination) == (1, 1)
    before = timeline_of(log, task, "move", "start", position=2)
    assert isinstance(before.data, ChunkInfo) and before.data.type is list
    assert timeline_of(log, task, "move", "finish", position=2).data.type is list
    assert timeline_of(log, task, "move", "finish", position=4).data.type is str


def test_s19_compute_and_finish_carry_the_result() -> None:
    """events.md: the result is a ChunkInfo of the very chunk; a ValueInfo where it is kept plain."""

    def body() -> tuple[Any, ...]:
        task, plain = D.spawn(lambda: b"x" * 100), D.spawn(lambda: b"y" * 50, D.Options(get_result=True))
        run_to_end(task, plain)
        return task, plain, task.fetch(raw=True)

    log, (task, plain, chunk) = logged(body)
    for category in ("compute", "finish"):
        result = timeline_of(log, task, category).result
        assert isinstance(result, ChunkInfo)
        assert (result.nbytes, result.type, result.worker) == (100, bytes, 1)
        kept = timeline_of(log, plain, category).result
        assert isinstance(kept, ValueInfo) and (kept.type, kept.nbytes) == (bytes, 50)
    assert timeline_of(log, task, "finish").state == "success"
    assert timeline_of(log, task, "finish").thunk_id == task.id
    compute = timeline_of(log, task, "compute")
    assert type(compute.thread_id) is int and isinstance(compute.thread_name, str)
    assert timeline_of(log, task, "storage_safe_scan", "start").T is bytes
    assert chunk.fetch() == b"x" * 100


def test_s19_a_chunk_has_one_handle_in_the_log() -> None:
    """events.md: a result's handle is the same in compute, finish and its consumers' moves, and its own."""

    def body() -> tuple[D.DTask, ...]:
        up, other = D.spawn(lambda: [1]), D.spawn(lambda: [2])
        return run_to_end(up, other, D.spawn(identity, up))

    log, (up, other, down) = logged(body)
    handles = {
        timeline_of(log, up, "compute").result.handle,
        timeline_of(log, up, "finish").result.handle,
        timeline_of(log, down, "move", "start", position=1).data.handle,
    }
    assert len(handles) == 1
    assert timeline_of(log, other, "finish").result.handle not in handles


def test_s19_an_error_is_the_result() -> None:
    """§19 accept: compute finish is there, its result is the error, so is finish's; the state is failure."""
    log, (task,) = logged(lambda: run_to_end(D.spawn(boom)))
    assert isinstance(D.unwrap_exception(timeline_of(log, task, "compute").result), BoomError)
    ended = timeline_of(log, task, "finish")
    assert isinstance(D.unwrap_exception(ended.result), BoomError) and ended.state == "failure"
    assert of_task(log, task, "storage_safe_scan") == []


def test_s19_skipped_tasks_finish_without_compute() -> None:
    """§19 defect 7: a task failed by its upstream has a finish (state skip, the originator as root), no compute."""

    def body() -> tuple[D.DTask, ...]:
        a = D.spawn(boom)
        b = D.spawn(identity, a)
        c = D.spawn(identity, b)
        run_to_end(a, b, c)
        return a, b, c, *run_to_end(D.spawn(identity, a))

    log, (a, *rest) = logged(body)
    for task in rest:
        ended = timeline_of(log, task, "finish")
        assert ended.state == "skip"
        assert isinstance(ended.result, D.DTaskFailedError) and ended.result.root.id == a.id
        categories = {e.category for e in of_task(log, task)}
        assert "add_thunk" in categories and not categories & {"compute", "move", "enqueue", "fire"}


def test_s19_no_place_finishes_as_failure() -> None:
    """§19: schedule finishes on failure too; the task's finish carries the scheduling error."""
    log, (task,) = logged(lambda: run_to_end(D.spawn(int, D.Options(scope=D.ExactScope(D.ThreadProc(9, 9))))))
    assert [e.phase for e in of_task(log, task, "schedule")] == ["start", "finish"]
    ended = timeline_of(log, task, "finish")
    assert ended.state == "failure"
    assert isinstance(D.unwrap_exception(ended.result), D.SchedulingError)
    assert of_task(log, task, "compute") == []


def test_s19_cancelled_tasks_finish_at_once(gate: threading.Event) -> None:
    """events.md: cancelled while running, finish (cancellation) comes at once, compute ends with the body."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        begun = threading.Event()

        def body() -> None:
            begun.set()
            gate.wait(DEADLINE_S)

        running = D.spawn(body)
        waiting = D.spawn(identity, running)
        queued = D.spawn(int)
        assert begun.wait(DEADLINE_S)
        for task in (queued, waiting, running):
            D.cancel(task)
        for task in (queued, waiting, running):
            poll(lambda task=task: [e.phase for e in of_task(log, task, "finish")] == ["start", "finish"])
            ended = timeline_of(log, task, "finish")
            assert ended.state == "cancellation"
            assert isinstance(D.unwrap_exception(ended.result), D.TaskCancelled)
        assert [e.phase for e in of_task(log, running, "compute")] in ([], ["start"])
        gate.set()
        events = settled(log, running, waiting, queued)
    assert [e.phase for e in of_task(events, running, "compute")] == ["start", "finish"]
    assert of_task(events, waiting, "compute") == of_task(events, queued, "compute") == []


def test_ruling_12_the_queue_that_enqueue_names() -> None:
    """Ruling 12: default scope and full occupancy share the worker's queue; others name their slot."""

    def body() -> tuple[D.DTask, ...]:
        return run_to_end(D.spawn(where), D.spawn(where, D.Options(scope=D.scope(worker=1, thread=2))))

    log, (shared, pinned) = logged(body)
    assert of_task(log, shared, "enqueue")[0].id.processor == D.OSProc(1)
    assert of_task(log, pinned, "enqueue")[0].id.processor == D.ThreadProc(1, 2)
    for task in (shared, pinned):
        processors = {e.id.processor for c in ("move", "compute", "storage_safe_scan") for e in of_task(log, task, c)}
        assert len(processors) == 1 and type(processors.pop()) is D.ThreadProc


def test_ruling_7_a_helped_task_has_the_same_events() -> None:
    """Ruling 7, 28: a task that the fetching thread runs has the same events as one that a slot's thread runs."""
    shapes = set()
    for helping in (True, False):
        for _ in range(20):

            def body(helping: bool = helping) -> D.DTask:
                task = D.spawn(add, 1, 2)
                if helping:
                    D.fetch(task)
                else:
                    poll(task.isready)
                return task

            log, task = logged(body, threads=1)
            fetched = [
                e for e in log
                if e.category == "proc_run_fetch" and getattr(e.timeline, "thunk_id", None) == task.id
            ]  # fmt: skip
            assert len(fetched) == 1
            assert (fetched[0].timeline.proc_occupancy, fetched[0].timeline.task_occupancy) == (0, 1)
            assert_order(log, task)
            shapes.add(tuple(sorted(Counter((e.category, e.phase) for e in of_task(log, task)).items())))
    assert len(shapes) == 1


def test_ruling_18_the_internal_root_task_shows_nowhere() -> None:
    """Ruling 18: only tasks that somebody spawned appear in the log."""
    log, tasks = logged(lambda: run_to_end(D.spawn(int), D.spawn(int)))
    assert {e.id.thunk_id for e in log if "thunk_id" in e.id} == {t.id for t in tasks}


# --- life of data and sinks ------------------------------------------------------------------------------


def test_ruling_29_a_released_result_is_an_evict_event() -> None:
    """Ruling 29: when a result's last reference dies an evict (handle, nbytes, released) is logged."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        task = D.spawn(lambda: b"x" * 1000)
        D.wait(task)
        settled(log, task)
        handle = timeline_of(log, task, "finish").result.handle
        assert not [e for e in log if e.category == "evict"]
        del task
        gc.collect()
        D.fetch(D.spawn(int))
        evicted = lambda: [e for e in log if e.category == "evict" and e.phase == "finish" and e.id.handle == handle]  # noqa: E731
        found = poll(evicted)
    assert found[0].timeline.reason == "released"
    assert found[0].timeline.data.nbytes == 1000
    assert found[0].id.worker == 1


def test_ruling_29_the_log_keeps_no_data_alive() -> None:
    """Ruling 29: arguments, results and moved values are described, never held by their events."""

    class Value:
        pass

    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        argument, chunk = Value(), D.tochunk(Value())
        task = D.spawn(lambda *a: Value(), argument, chunk)
        alive = [weakref.ref(argument), weakref.ref(chunk.fetch()), weakref.ref(D.fetch(task))]
        settled(log, task)
        del argument, chunk, task
        D.spawn(int).fetch(timeout=DEADLINE_S)

        def gone() -> bool:
            gc.collect()
            return not any(ref() is not None for ref in alive)

        poll(gone)
    assert len(log) > 20


def test_ruling_15_a_size_counts_once_per_object() -> None:
    """Ruling 15, 25: a value passed through a second task counts once in BytesAllocd, until it is released."""
    log = ts.MultiEventLog()
    log["bytes"] = ts.BytesAllocd()
    with D.Context(threads=1, log_sink=log):
        first = D.spawn(bytes, 100_000)
        second = D.spawn(identity, first)
        D.waitall([first, second])
        levels = poll(lambda: [x for x in ts.get_logs(log)[1]["bytes"] if x is not None])
        assert max(levels) == levels[-1] == 100_000
        del first, second
        gc.collect()
        D.spawn(lambda: None).wait()
        poll(lambda: [x for x in ts.get_logs(log)[1]["bytes"] if x is not None and x < 1000])


def test_s19_nothing_is_built_without_a_sink() -> None:
    """§19: with NoOpLog payloads are not even built: nobody asks an argument for its size."""
    asked: list[int] = []

    class Argument:
        @property
        def nbytes(self) -> int:
            asked.append(1)
            return 5

        def __sizeof__(self) -> int:
            asked.append(1)
            return 5

    with D.Context(threads=1, log_sink=ts.NoOpLog()):
        D.fetch(D.spawn(lambda x: None, Argument()))
    assert asked == []


def test_s19_defect_4_the_sink_is_read_per_event() -> None:
    """§19 defect 4: switching logging on or off holds for warm processors too."""
    with D.Context(threads=1) as context:
        quiet = D.spawn(int)
        D.wait(quiet)
        log: list[Event] = []
        context.log_sink = log
        loud = D.spawn(int)
        D.wait(loud)
        events = settled(log, loud)
        context.log_sink = ts.NoOpLog()
        hushed = D.spawn(int)
        D.wait(hushed)
    assert any(e.category == "proc_run_fetch" for e in events)
    assert {e.id.thunk_id for e in log if "thunk_id" in e.id} == {loud.id}


@pytest.mark.filterwarnings("ignore")
def test_s19_a_sink_that_raises_never_hurts_a_task() -> None:
    """architecture §3: whatever a sink does, tasks run on."""

    def bad(event: Event) -> None:
        raise BoomError("bad sink")

    with D.Context(threads=2, log_sink=bad):
        assert D.fetch_all([D.spawn(identity, n) for n in range(50)]) == list(range(50))
        assert failure(D.spawn(boom)).root.id > 0


def test_s19_local_event_log() -> None:
    """§19: the same spans arrive, matched, in a LocalEventLog."""
    log = ts.LocalEventLog()
    with D.Context(threads=2, log_sink=log):
        task = D.spawn(add, 1, 2)
        D.wait(task)
        spans: list[Any] = []

        def complete() -> bool:
            spans.extend(ts.get_logs(log))
            own = [s for s in spans if getattr(s.id, "thunk_id", None) == task.id]
            return {"add_thunk", "schedule", "compute", "finish"} <= {s.category for s in own}

        poll(complete)
    own = Counter(s.category for s in spans if getattr(s.id, "thunk_id", None) == task.id)
    assert own["move"] == 3 and own["compute"] == own["finish"] == own["add_thunk"] == 1
    assert all(s.start <= s.finish for s in spans)


def test_s19_enable_and_disable_logging() -> None:
    """timespans §4: `enable_logging` logs from now on, `fetch_logs` empties, `disable_logging` ends it."""
    D.enable_logging()
    task = D.spawn(add, 1, 2)
    D.wait(task)
    logs = D.fetch_logs()
    assert logs[1]["id"] and len(logs[1]["core"]) == len(logs[1]["id"])
    assert any(getattr(i, "thunk_id", None) == task.id for i in map(lambda e: getattr(e, "id", e), logs[1]["id"]) if i)
    D.disable_logging()
    assert D.fetch_logs() is None
