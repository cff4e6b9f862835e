"""spec/timespans.md §5 (core consumers) and §6 (scheduler consumers), with rulings 20, 25, 27, 29."""

from __future__ import annotations

import enum
import gc
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import (
    Proc,
    add,
    boom,
    eid,
    feed,
    fetch,
    finish,
    line,
    logged,
    mul,
    numbers,
    pair,
    poll,
    start,
    submission,
    zeros,
)

X = T.EventId(thunk_id=1)
STATELESS = [E.CoreMetrics, E.IDMetrics, E.TimelineMetrics, E.FullMetrics, E.TaskNames, E.TaskFunctionNames,
             E.TaskArguments, E.TaskResult, E.TaskDependencies, E.TaskUIDtoTID, E.TaskToChunk]  # fmt: skip
STATEFUL = [E.BytesAllocd, E.ProcessorSaturation, E.WorkerSaturation, E.EventSaturation, E.TaskArgumentMoves,
            E.GCStats, E.LockContentionMetrics, E.CompileTimeMetrics]  # fmt: skip


class TestCore:
    """§5."""

    def test_5_core(self) -> None:
        """record(timestamp, category, kind), dict-convertible with attribute access (ruling 20)."""
        a, b = feed(E.CoreMetrics(), pair("c", X, 10, 25))
        assert dict(a) == {"timestamp": 10, "category": "c", "kind": "start"}
        assert (b.timestamp, b.category, b.kind) == (25, "c", "finish")

    def test_5_id_timeline_full(self) -> None:
        """The event's id, timeline, the event itself, for both halves."""
        events = [start("c", X, 1, "a"), finish("c", X, 2, "b")]
        assert feed(E.IDMetrics(), events) == [X, X]
        assert feed(E.TimelineMetrics(), events) == ["a", "b"]
        assert feed(E.FullMetrics(), events) == events

    def test_5_load(self) -> None:
        """The one-minute load average of the system."""
        consumer = E.CPULoadAverages()
        poll(lambda: consumer(start("c", X)) == os.getloadavg()[0], "the load average")

    def test_5_memory(self) -> None:
        """Free memory is a fraction in (0, 1]."""
        value = E.MemoryFree()(finish("c", X))
        assert isinstance(value, float)
        assert 0 < value <= 1

    def test_5_saturation(self) -> None:
        """{compute:1}, {compute:2}, {compute:1}, {}; each value stays as it was handed out."""
        events = [start("compute", 1), start("compute", 2), finish("compute", 1), finish("compute", 2)]
        assert list(map(dict, feed(E.EventSaturation(), events))) == [
            {"compute": 1},
            {"compute": 2},
            {"compute": 1},
            {},
        ]

    def test_5_saturation_is_clamped(self) -> None:
        """Defect 9: a finish without start counts nothing below 0."""
        events = [finish("compute", 1), finish("compute", 2), start("compute", 3), start("move", 3)]
        assert list(map(dict, feed(E.EventSaturation(), events))) == [{}, {}, {"compute": 1}, {"compute": 1, "move": 1}]

    def test_5_saturation_init_similar(self) -> None:
        """A twin starts empty."""
        consumer = E.EventSaturation()
        feed(consumer, [start("compute", 1)])
        assert dict(T.init_similar(consumer)(start("move", 1))) == {"move": 1}
        assert dict(consumer(start("compute", 2))) == {"compute": 2}

    @pytest.mark.parametrize("cls", STATELESS)
    def test_5_init_similar_of_the_stateless(self, cls: Any) -> None:
        """A stateless consumer is its own twin."""
        consumer = cls()
        assert T.init_similar(consumer) is consumer

    @pytest.mark.parametrize("cls", STATEFUL)
    def test_5_init_similar_of_the_stateful(self, cls: Any) -> None:
        """A stateful one makes a fresh twin of the same kind."""
        consumer = cls()
        twin = T.init_similar(consumer)
        assert twin is not consumer
        assert type(twin) is cls

    def test_5_debug(self, caplog: pytest.LogCaptureFixture) -> None:
        """One debug line an event, "category, kind, (cat ⇒ n)"; the value is None."""
        with caplog.at_level("DEBUG", "otel_timespan.events"):
            values = feed(E.DebugMetrics(), [start("compute", 1), start("compute", 2), finish("compute", 1)])
        assert values == [None] * 3
        lines = [r.getMessage() for r in caplog.records if r.name == "otel_timespan.events"]
        assert len(lines) == 3
        assert all("compute" in text for text in lines)
        assert "start" in lines[0]
        assert "finish" in lines[2]
        assert "2" in lines[1]

    @pytest.mark.parametrize(
        "cls", [*STATELESS, *STATEFUL, E.CPULoadAverages, E.MemoryFree, E.DebugMetrics, E.ProfileMetrics]
    )
    def test_5_foreign_events(self, cls: Any) -> None:
        """Any id, timeline and category: a program that logs without the scheduler breaks no consumer."""
        consumer = cls()
        for category in ("mine", "compute", "move", "add_thunk", "finish", "evict"):
            for id in (None, 5, "x", T.EventId(n=1)):
                for timeline in (None, "text", 5):
                    feed(consumer, pair(category, id, 1, 2, timeline))


def chunk(handle: Any, nbytes: int | None, worker: int = 1) -> T.ChunkInfo:
    """A chunk as the log shows it."""
    return T.ChunkInfo(handle, nbytes, list, worker)


def result_of(tid: int, info: Any, **more: Any) -> T.Event:
    """The finish of a compute."""
    return finish("compute", eid(tid, processor="p"), 0, line(f=add, result=info, cpu_ns=None, span=None, thread_id=1,
                                                              thread_name="t"), **more)  # fmt: skip


def finish_of(tid: int, info: Any) -> list[T.Event]:
    """Both halves of a `finish`."""
    return pair("finish", eid(tid, uid=1), 0, 0, line(thunk_id=tid, result=info, state="success"))


def evict(handle: Any, nbytes: int | None, reason: str = "released") -> list[T.Event]:
    """Both halves of an `evict`."""
    return pair("evict", T.EventId(worker=1, handle=handle), 0, 0, line(data=chunk(handle, nbytes), reason=reason))


class TestBytes:
    """§6 and ruling 25: BytesAllocd."""

    def test_6_bytes_rise_and_fall(self) -> None:
        """The total for every event: up once a chunk, down when it is evicted."""
        consumer = E.BytesAllocd()
        feed(consumer, [result_of(1, chunk("a", 100)), *finish_of(1, chunk("a", 100))])
        assert consumer(start("c", 1)) == 100
        feed(consumer, [result_of(2, chunk("b", 50)), *finish_of(2, chunk("b", 50))])
        assert consumer(start("c", 2)) == 150
        feed(consumer, [result_of(3, chunk("a", 100)), *finish_of(3, chunk("a", 100))])
        assert consumer(finish("c", 1)) == 150
        feed(consumer, evict("a", 100))
        assert consumer(finish("c", 2)) == 50
        feed(consumer, evict("a", 100))
        assert consumer(finish("c", 2)) == 50
        feed(consumer, evict("b", 50, "spilled"))
        assert consumer(start("c", 3)) == 0

    def test_6_bytes_of_unknown_size(self) -> None:
        """Unknown sizes are ignored, going up and down."""
        consumer = E.BytesAllocd()
        feed(consumer, [result_of(1, chunk("a", None)), *finish_of(1, chunk("a", None))])
        assert consumer(start("c", 1)) == 0
        feed(consumer, evict("a", None))
        assert consumer(start("c", 1)) == 0

    def test_25_bytes_of_inputs_do_not_count(self) -> None:
        """Inputs given by value are not counted, nor do moves count."""
        consumer = E.BytesAllocd()
        moved = line(f=add, data=T.ValueInfo(bytes, 500, 0), kind="value", source=1, destination=1)
        feed(consumer, pair("move", eid(1, position=1, processor="p"), 0, 0, moved))
        assert consumer(start("c", 1)) == 0

    def test_25_bytes_of_other_workers(self) -> None:
        """A chunk counts on the worker that holds it."""
        log = T.MultiEventLog()
        log["bytes"] = E.BytesAllocd()
        T.write_event(log, result_of(1, chunk("a", 100, worker=2), worker=2))
        for event in finish_of(1, chunk("a", 100, worker=2)):
            T.write_event(log, event)
        for worker in (1, 2):
            T.write_event(log, start("c", 1, worker=worker))
        logs = T.get_logs(log)
        assert (logs[1]["bytes"][-1], logs[2]["bytes"][-1]) == (0, 100)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), min_size=1, max_size=12))
    def test_25_bytes_equal_the_live_results(self, steps: list[tuple[bool, int]]) -> None:
        """In a run: after each spawn or drop, the stream's value is the sum of the sizes of live results."""
        with D.Context(threads=1) as context:
            log = T.MultiEventLog()
            log["bytes"] = E.BytesAllocd()
            context.log_sink = log
            live: list[tuple[Any, int]] = []
            for keep, n in steps:
                if keep or not live:
                    task = D.spawn(zeros, n)
                    fetch(task)
                    live.append((task, n))
                    del task
                else:
                    del live[n % len(live)]

                def settled(expected: int = sum(n for _, n in live)) -> bool:
                    gc.collect()
                    with T.span(context, "probe", X):
                        pass
                    return T.get_logs(log)[1]["bytes"][-1] == expected

                poll(settled, "the live bytes")

    def test_6_bytes_in_a_graph(self) -> None:
        """Ruling 25: a result counts once, however often it is passed on; never negative; int and float 8."""
        context = D.eager_context()
        log = T.MultiEventLog()
        log["bytes"] = E.BytesAllocd()
        context.log_sink = log
        a = D.spawn(zeros, 10_000)
        lengths = [D.spawn(len, a) for _ in range(5)]
        assert [fetch(t) for t in lengths] == [10_000] * 5
        seen: list[int] = []

        def settled() -> bool:
            with T.span(context, "probe", X):
                pass
            seen.extend(T.get_logs(log)[1]["bytes"])
            return seen[-1] == 10_000 + 5 * 8

        poll(settled, "10,040 bytes")
        assert max(seen) == 10_040
        assert min(seen) >= 0
        del a, lengths

        def gone() -> bool:
            gc.collect()
            with T.span(context, "probe", X):
                pass
            return T.get_logs(log)[1]["bytes"][-1] == 0

        poll(gone, "the release")


class TestSaturation:
    """§6: ProcessorSaturation and WorkerSaturation."""

    def events(self) -> list[T.Event]:
        """Two bodies on p, one on q."""
        p, q = Proc("p"), Proc("q")
        ids = [eid(1, processor=p), eid(2, processor=p), eid(3, processor=q)]
        starts = [start("compute", id) for id in ids]
        return [*starts, start("move", eid(9)), *(finish("compute", id) for id in ids)]

    def test_6_processors(self) -> None:
        """Pairs (processor, count > 0) for every event; an entry at 0 is removed."""
        values = feed(E.ProcessorSaturation(), self.events())
        assert [[(str(p), n) for p, n in v] for v in values] == [
            [("p", 1)], [("p", 2)], [("p", 2), ("q", 1)], [("p", 2), ("q", 1)], [("p", 1), ("q", 1)], [("q", 1)], [],
        ]  # fmt: skip
        assert all(isinstance(v, list) for v in values)

    def test_6_worker(self) -> None:
        """Running compute spans after counting the event."""
        assert feed(E.WorkerSaturation(), self.events()) == [1, 2, 3, 3, 2, 1, 0]

    def test_6_never_negative(self) -> None:
        """A finish without its start counts nothing below 0."""
        events = [finish("compute", eid(1, processor="p")), start("compute", eid(2, processor="p"))]
        assert feed(E.WorkerSaturation(), events) == [0, 1]
        assert [list(v) for v in feed(E.ProcessorSaturation(), events)] == [[], [("p", 1)]]


class Callable_:  # noqa: N801 - shows in task names
    """A callable object."""

    def __call__(self) -> int:
        return 1


class TestTasks:
    """§6: what is known of tasks."""

    def test_6_names(self) -> None:
        """`"add [7]"`, `"add"`, (uid, tid) at add_thunk's start; None elsewhere."""
        events = [*submission(7, add), *pair("compute", eid(7, processor="p"), 0, 1, line(f=add, result=None))]
        assert feed(E.TaskNames(), events) == ["add [7]", None, None, None]
        assert feed(E.TaskFunctionNames(), events) == ["add", None, None, None]
        assert feed(E.TaskUIDtoTID(), events) == [(7, 7), None, None, None]

    def test_6_names_of_callable_objects(self) -> None:
        """A textual form of the type for callable objects."""
        D.enable_logging()
        task = D.spawn(Callable_())
        fetch(task)
        log = logged(task)
        assert any(name and "Callable_" in name for name in log["taskfuncnames"])
        assert any(name and "Callable_" in name and name.endswith(f"[{task.id}]") for name in log["tasknames"])

    def test_6_dependencies(self) -> None:
        """add_thunk's finish: (tid, upstream tids), possibly empty, explicit and argument ones, each once."""
        events = submission(7, add, [(1, 3), (2, 4), (None, 3)])
        first, (tid, deps) = feed(E.TaskDependencies(), events)
        assert first is None
        assert tid == 7
        assert sorted(deps) == [3, 4]
        assert [tuple(map(lambda x: x, v)) for v in feed(E.TaskDependencies(), submission(8, add))[1:]] == [(8, [])]

    def moves(self, before: Any, after: Any, tid: int = 7, position: Any = 1) -> list[T.Event]:
        """Both halves of a move."""
        id = eid(tid, position=position, processor="p")
        extra = {"kind": "chunk", "source": 1, "destination": 1}
        return [start("move", id, 0, line(f=add, data=before)), finish("move", id, 1, line(f=add, data=after, **extra))]

    def test_6_arguments(self) -> None:
        """move's finish: (tid, [(position, object)]); immutable: an empty list."""
        mutable, immutable = T.ValueInfo(list, 8, 1234), T.ValueInfo(int, 8, 0)
        a, b = feed(E.TaskArguments(), self.moves(mutable, mutable))
        assert a is None
        tid, [(position, obj)] = b
        assert (tid, position, obj.objid, obj.kind) == (7, 1, 1234, "object")
        assert feed(E.TaskArguments(), self.moves(immutable, immutable, position="key"))[1] == (7, [])
        _, [(position, obj)] = feed(E.TaskArguments(), self.moves(chunk("h", 3), chunk("h", 3), position="key"))[1]
        assert (position, obj.objid, obj.kind) == ("key", "h", "chunk")

    def test_6_argument_moves(self) -> None:
        """(tid, position, before, after) of mutable values; forgotten afterwards."""
        consumer = E.TaskArgumentMoves()
        first, (tid, position, before, after) = feed(consumer, self.moves(chunk("h", 3), T.ValueInfo(list, 8, 99)))
        assert first is None
        assert (tid, position, before.kind, before.objid, after.kind, after.objid) == (7, 1, "chunk", "h", "object", 99)

    def test_6_argument_moves_tid_0(self, caplog: pytest.LogCaptureFixture) -> None:
        """Task 0 is silently ignored."""
        value = T.ValueInfo(list, 8, 1)
        assert feed(E.TaskArgumentMoves(), self.moves(value, value, tid=0)) == [None, None]
        assert not caplog.records

    def test_6_argument_moves_unknown(self, caplog: pytest.LogCaptureFixture) -> None:
        """A finish whose start is unknown: a warning, and None."""
        value = T.ValueInfo(list, 8, 1)
        assert E.TaskArgumentMoves()(self.moves(value, value)[1]) is None
        assert [r.levelname for r in caplog.records] == ["WARNING"]

    def test_6_argument_moves_immutable(self, caplog: pytest.LogCaptureFixture) -> None:
        """Immutable values: None, and no warning."""
        value = T.ValueInfo(int, 8, 0)
        assert feed(E.TaskArgumentMoves(), self.moves(value, value)) == [None, None]
        assert not caplog.records

    def test_6_results(self) -> None:
        """compute's finish and finish's finish: (tid, object) where mutable, else None."""
        tid, obj = E.TaskResult()(result_of(7, chunk("h", 3)))
        assert (tid, obj.objid, obj.kind) == (7, "h", "chunk")
        assert E.TaskResult()(result_of(7, T.ValueInfo(int, 8, 0))) is None
        assert E.TaskResult()(start("compute", eid(7, processor="p"), 0, line(f=add))) is None
        first, (tid, obj) = feed(E.TaskToChunk(), finish_of(7, chunk("h", 3)))
        assert first is None
        assert (tid, obj.objid, obj.kind) == (7, "h", "chunk")
        assert feed(E.TaskToChunk(), finish_of(7, T.ValueInfo(int, 8, 0)))[1] is None

    def test_6_accept_two_dependent_tasks(self) -> None:
        """The acceptance run of §6: dependencies, uids, names, saturations."""
        D.enable_logging(metrics=True)
        t = D.spawn(add, 1, 2)
        u = D.spawn(mul, t, 3)
        assert fetch(u) == 9
        log = logged(t, u)
        assert (u.id, [t.id]) in [(v[0], list(v[1])) for v in log["taskdeps"] if v]
        assert (t.id, []) in [(v[0], list(v[1])) for v in log["taskdeps"] if v]
        assert (t.uid, t.id) in log["taskuidtotid"]
        assert f"add [{t.id}]" in log["tasknames"]
        assert "add" in log["taskfuncnames"]
        assert min(log["wsat"]) >= 0
        assert max(log["wsat"]) >= 1
        assert log["wsat"][-1] == 0
        assert list(log["psat"][-1]) == []
        assert any(len(v) == 1 and v[0][1] == 1 and isinstance(v[0][0], D.Processor) for v in log["psat"])

    def test_6_accept_counters(self) -> None:
        """gc_stats, lock_contend, compile_time: each non-empty with at least one value."""
        D.enable_logging(gc_stats=True, lock_contend=True, compile_time=True)
        t = D.spawn(add, 1, 2)
        u = D.spawn(mul, t, 3)
        fetch(u)
        log = logged(t, u)
        for name in ("gc_stats", "lock_contend", "compile_time"):
            assert log[name], name
            assert any(v is not None for v in log[name]), name
            kinds = {c.kind for c, v in zip(log["core"], log[name], strict=True) if v is not None}
            assert kinds == {"finish"}, name

    def test_6_identities_join_tasks(self) -> None:
        """The result of one task and the argument of the next are one object; kinds as the spec notes."""
        D.enable_logging()
        t = D.spawn(numbers, 10)
        u = D.spawn(sum, t)
        assert fetch(u) == 45
        log = logged(t, u)
        results = {v[0]: v[1] for v in log["taskresult"] if v}
        moves = [v for v in log["taskargmoves"] if v and v[0] == u.id and v[1] == 1]
        assert results[t.id].kind == "chunk"
        assert [m[2].kind for m in moves] in ([["chunk"], ["task"]])
        assert [m[3].kind for m in moves] == ["object"]
        arguments = [v for v in log["taskargs"] if v and v[0] == u.id and v[1]]
        assert [(p, o.kind) for v in arguments for p, o in v[1]] == [(1, "object")]
        assert {v[0]: v[1] for v in log["tasktochunk"] if v}[t.id] == results[t.id]

    def test_6_logged_object_has_no_values(self) -> None:
        """LoggedMutableObject(objid, kind) is a record."""
        assert E.LoggedMutableObject(5, "task") == E.LoggedMutableObject(5, "task")
        assert E.LoggedMutableObject(objid=5, kind="task").kind == "task"

    def test_29_timelines_keep_nothing_alive(self) -> None:
        """Ruling 29: a result dies with its task, though the log still has its events."""
        import weakref

        class Big:
            pass

        refs: list[Any] = []

        def make() -> Big:
            value = Big()
            refs.append(weakref.ref(value))
            return value

        D.enable_logging(timeline=True)
        context = D.eager_context()
        log = context.log_sink
        log["full"] = E.FullMetrics()
        t = D.spawn(make)
        D.wait(t)
        kept = logged(t)
        assert kept["full"]
        del t
        poll(lambda: gc.collect() >= 0 and refs[0]() is None, "the end of the result")
        assert kept["timeline"]


class Colour(enum.Enum):
    """An immutable thing."""

    RED = 1


@pytest.mark.parametrize(
    "value", [5, 1.5, 1j, True, "s", b"b", None, (1, "a"), frozenset({1}), (), ((1,), "x"), Colour.RED, int, add, len]
)
def test_6_what_is_immutable(value: Any) -> None:
    """As argument of a task it makes an empty TaskArguments entry."""
    D.enable_logging()
    task = D.spawn(type, value)
    fetch(task)
    log = logged(task)
    moved = [v for v, id in zip(log["taskargs"], log["id"], strict=True) if v and id.position == 1]
    assert moved == [(task.id, [])]


@pytest.mark.parametrize(
    "value", [[1], {1: 2}, {1}, bytearray(b"x"), ([1], 2), Proc("p")], ids=lambda v: type(v).__name__
)
def test_6_what_is_mutable(value: Any) -> None:
    """As argument of a task it appears with its identity."""
    D.enable_logging()
    task = D.spawn(type, value)
    fetch(task)
    log = logged(task)
    ((tid, [(position, obj)]),) = [
        v for v, id in zip(log["taskargs"], log["id"], strict=True) if v and id.position == 1
    ]
    assert (tid, position, obj.objid, obj.kind) == (task.id, 1, id(value), "object")


def test_6_failing_tasks_break_no_consumer() -> None:
    """All consumers bear failed and skipped tasks; no stream of theirs loses an entry."""
    D.enable_logging(metrics=True, timeline=True, gc_stats=True, lock_contend=True, compile_time=True)
    t = D.spawn(boom)
    u = D.spawn(add, t, 1)
    D.wait(u)
    log = logged(t, u)
    assert len({len(v) for v in log.values()}) == 1
    assert log["wsat"][-1] == 0
    assert f"add [{u.id}]" in log["tasknames"]


def test_api_the_face_names_the_common_consumers() -> None:
    """api.md: the common consumers are to be had from the face."""
    for name in (
        "BytesAllocd",
        "CoreMetrics",
        "IDMetrics",
        "TimelineMetrics",
        "WorkerSaturation",
        "LogWindow",
        "TaskNames",
    ):
        assert getattr(ts, name) is getattr(E, name)
