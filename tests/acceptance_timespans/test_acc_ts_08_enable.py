"""spec/timespans.md §8 (enable, disable, fetch) and §9 (helpers on logs), with ruling 28 and defects 12, 15."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import errors
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import BoomError, add, boom, collected, fetch, joined, logged, mul, poll

PLAIN = {"core", "id", "tasknames", "taskfuncnames", "taskdeps", "taskargs", "taskargmoves", "taskresult",
         "taskuidtotid", "tasktochunk"}  # fmt: skip
METRICS = {"wsat", "loadavg", "bytes", "mem", "esat", "psat"}
FORCED = PLAIN - {"core", "id", "tasknames"}


def names(**keywords: Any) -> set[str]:
    """The streams of a log that is enabled with these keywords."""
    D.enable_logging(**keywords)
    try:
        return set(D.fetch_logs()[1])
    finally:
        D.disable_logging()


class TestEnable:
    """§8."""

    def test_8_plain(self) -> None:
        """Exactly the ten streams."""
        assert names() == PLAIN

    def test_8_all_task_deps_off(self) -> None:
        """Without it: core, id, tasknames."""
        assert names(all_task_deps=False) == {"core", "id", "tasknames"}
        assert names(all_task_deps=False, tasknames=False) == {"core", "id"}

    @pytest.mark.parametrize("stream", sorted(FORCED))
    def test_8_forced(self, stream: str) -> None:
        """all_task_deps forces each of the seven on, even when it is given as False."""
        assert stream in names(**{stream: False})

    @pytest.mark.parametrize(
        "stream", sorted(FORCED | {"timeline", "gc_stats", "lock_contend", "compile_time", "profile"})
    )
    def test_8_each_keyword_one_stream(self, stream: str) -> None:
        """A keyword alone adds its stream alone."""
        assert names(all_task_deps=False, tasknames=False, **{stream: True}) == {"core", "id", stream}

    def test_8_all_task_deps_is_not_tasknames_nor_timeline(self) -> None:
        """It does not force tasknames or timeline."""
        assert names(tasknames=False) == PLAIN - {"tasknames"}

    def test_8_metrics(self) -> None:
        """The six metrics."""
        assert names(metrics=True, all_task_deps=False) == {"core", "id", "tasknames"} | METRICS

    def test_8_accept_metrics_run(self) -> None:
        """Two dependent tasks: the eleven streams are non-empty and equally long."""
        D.enable_logging(metrics=True, tasknames=True, taskdeps=True, timeline=True)
        t = D.spawn(add, 1, 2)
        u = D.spawn(mul, t, 3)
        fetch(u)
        log = logged(t, u)
        wanted = METRICS | {"core", "id", "timeline", "tasknames", "taskdeps"}
        assert all(log[name] for name in wanted)
        assert {len(values) for values in log.values()} == {len(log["core"])}
        assert all(0 < v <= 1 for v in log["mem"])
        assert all(v >= 0 for v in log["loadavg"])

    @pytest.mark.parametrize("keywords", [{"nonsense": True}, {"linuxperf": 5}, {"max_events": -1}])
    def test_8_bad_keywords(self, keywords: dict[str, Any]) -> None:
        """Bad keywords are an InvalidOptionError, in the context manager too; the former sink stays."""
        sink: list[T.Event] = []
        D.eager_context().log_sink = sink
        with pytest.raises((errors.InvalidOptionError, TypeError)):  # Python's own for an unknown name
            D.enable_logging(**keywords)
        with pytest.raises(errors.InvalidOptionError), D.logging(**keywords):
            pass
        assert D.eager_context().log_sink is sink

    def test_8_perf(self) -> None:
        """linuxperf: the stream, or an InvalidOptionError where there are no counters."""
        try:
            got = names(linuxperf="cpu-clock")
        except errors.InvalidOptionError:
            assert isinstance(D.eager_context().log_sink, T.NoOpLog)
        else:
            assert got == PLAIN | {"linuxperf"}

    def test_8_a_new_log_each_time(self) -> None:
        """Each enable_logging builds a new MultiEventLog; the earlier log is unreachable through fetch_logs."""
        one = D.enable_logging()
        t = D.spawn(add, 1, 2)
        fetch(t)
        two = D.enable_logging()
        assert isinstance(one, T.MultiEventLog)
        assert one is not two
        assert D.eager_context().log_sink is two
        ids = joined([D.fetch_logs()])["id"]
        assert not any(getattr(i, "thunk_id", None) == t.id and "position" in i for i in ids)

    def test_8_disable(self) -> None:
        """A NoOpLog is installed; fetch_logs is None."""
        D.enable_logging()
        D.disable_logging()
        assert isinstance(D.eager_context().log_sink, T.NoOpLog)
        assert D.fetch_logs() is None
        D.disable_logging()

    def test_8_never_enabled(self) -> None:
        """Without logging: None."""
        assert D.fetch_logs() is None

    def test_8_fetch_clears(self) -> None:
        """A fetch empties the log, names stay."""
        D.enable_logging()
        t = D.spawn(add, 1, 2)
        fetch(t)
        logged(t)
        poll(lambda: not any(D.fetch_logs()[1].values()), "an empty log")
        assert set(D.fetch_logs()[1]) == PLAIN

    def test_8_context_manager(self) -> None:
        """`with D.logging(...) as log: ...; log.fetch()`, then or later; afterwards the sink is what it was."""
        sink: list[T.Event] = []
        D.eager_context().log_sink = sink
        with D.logging(all_task_deps=False) as log:
            t = D.spawn(add, 1, 2)
            fetch(t)
        assert D.eager_context().log_sink is sink
        got = joined(collected(log.fetch, lambda p: any(c.category == "compute" for c in joined(p)["core"])))
        assert set(got) == {"core", "id", "tasknames"}
        assert f"add [{t.id}]" in got["tasknames"]

    def test_8_context_manager_restores_after_an_error(self) -> None:
        """The block's own exception passes through, and the sink is restored."""
        with pytest.raises(BoomError), D.logging() as log:
            raise BoomError
        assert isinstance(D.eager_context().log_sink, T.NoOpLog)
        assert set(log.fetch()[1]) == PLAIN

    def test_8_nested_context_managers(self) -> None:
        """They nest."""
        with D.logging() as outer:
            with D.logging() as inner:
                t = D.spawn(add, 1, 2)
                fetch(t)
            u = D.spawn(mul, 1, 2)
            fetch(u)
        a = joined(collected(inner.fetch, lambda p: any(joined(p)["tasknames"])))["tasknames"]
        b = joined(collected(outer.fetch, lambda p: f"mul [{u.id}]" in joined(p)["tasknames"]))["tasknames"]
        assert f"add [{t.id}]" in a
        assert f"mul [{u.id}]" not in a
        assert f"add [{t.id}]" not in b

    def test_28_a_switch_does_not_split_a_span(self, gate: threading.Event) -> None:
        """Ruling 28: a body that runs during a switch has both halves of its compute in the old log."""
        begun = threading.Event()

        def body() -> int:
            begun.set()
            gate.wait()
            return 1

        old: list[T.Event] = []
        new: list[T.Event] = []
        context = D.eager_context()
        context.log_sink = old
        t = D.spawn(body)
        assert begun.wait(60)
        context.log_sink = new
        gate.set()
        fetch(t)

        def halves(events: list[T.Event]) -> list[str]:
            return [e.phase for e in list(events) if e.category == "compute" and e.id.thunk_id == t.id]

        poll(lambda: len(halves(old)) + len(halves(new)) == 2, "the compute")
        assert halves(old) == ["start", "finish"]

    def test_13_15_warm_processors_log_too(self) -> None:
        """Defect 15: switching on later shows what warm processors do; switching off ends it."""
        for _ in range(5):
            fetch(D.spawn(add, 1, 2))
        events: list[T.Event] = []
        context = D.eager_context()
        context.log_sink = events
        t = D.spawn(add, 1, 2)
        fetch(t)
        poll(lambda: any(e.category == "proc_run_fetch" for e in list(events)), "proc_run_fetch")
        context.log_sink = T.NoOpLog()
        u = D.spawn(add, 1, 2)
        fetch(u)
        assert not [e for e in list(events) if getattr(e.id, "thunk_id", None) == u.id]

    def test_8_logs_survive_a_halt(self) -> None:
        """Ruling 18: the context's log survives the end of the scheduler, and has its exit."""
        D.enable_logging()
        t = D.spawn(add, 1, 2)
        fetch(t)
        D.eager_context().shutdown()
        core = joined([D.fetch_logs()])["core"]
        assert {"scheduler_init", "scheduler_exit"} <= {c.category for c in core}
        assert fetch(D.spawn(add, 2, 2)) == 4

    def test_8_the_face(self) -> None:
        """api.md: the face has them."""
        for name in ("enable_logging", "disable_logging", "fetch_logs", "logs_annotate"):
            assert getattr(ts, name) is getattr(D, name)
        assert ts.get_logs is T.get_logs


def annotations(log: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    """The data annotations of a log, (kind, id)."""
    return [(c.kind, i) for c, i in zip(log["core"], log["id"], strict=True) if c.category == "data_annotation"]


def objid(id: Any) -> Any:
    """The identity that an annotation names."""
    return getattr(id.objectid, "objid", id.objectid)


class TestAnnotate:
    """§9: logs_annotate."""

    def test_9_accept_immutable(self) -> None:
        """An immutable object is a ValueError."""
        with pytest.raises(ValueError, match="5"):
            D.logs_annotate(5, "x")

    @pytest.mark.parametrize("value", [1.5, 1j, True, "s", b"b", None, (1, 2), frozenset({1}), int, add])
    def test_9_all_immutables(self, value: Any) -> None:
        """Whatever is immutable, logging on or off."""
        with pytest.raises(ValueError):
            D.logs_annotate(value, "x")
        D.enable_logging()
        with pytest.raises(ValueError):
            D.logs_annotate(value, "x")

    def test_9_objects(self) -> None:
        """A mutable object: an instantaneous span with objectid and name."""
        D.enable_logging()
        data = [1, 2]
        D.logs_annotate(data, "mine")
        got = annotations(joined([D.fetch_logs()]))
        assert [k for k, _ in got] == ["start", "finish"]
        assert [i.name for _, i in got] == ["mine", "mine"]
        assert objid(got[0][1]) == id(data)

    def test_9_chunks_and_tasks(self) -> None:
        """Chunks and tasks have identities of their own; a context may come first."""
        D.enable_logging()
        chunk = ts.tochunk([1])
        t = D.spawn(add, 1, 2)
        D.logs_annotate(D.eager_context(), chunk, "piece")
        D.logs_annotate(t, "job")
        fetch(t)
        got = {i.name: objid(i) for _, i in annotations(logged(t))}
        assert got["job"] == t.uid
        assert "piece" in got

    def test_9_accept_option_name(self) -> None:
        """`Options(name="N")`: an annotation (task uid, "N")."""
        D.enable_logging()
        t = D.spawn(add, D.Options(name="N"), 1, 2)
        fetch(t)
        got = annotations(logged(t))
        assert [k for k, _ in got] == ["start", "finish"]
        assert (objid(got[0][1]), got[0][1].name) == (t.uid, "N")

    def test_9_off(self) -> None:
        """With logging off nothing happens."""
        D.logs_annotate([1], "x")

    @pytest.mark.parametrize("arguments", [(), ([1],), ([1], 5), (1, 2, 3, 4)])
    def test_9_bad_arguments(self, arguments: Any) -> None:
        """A wrong number of arguments or a name that is no text is an error of ours (or a TypeError)."""
        with pytest.raises((errors.TimespanError, TypeError)):
            D.logs_annotate(*arguments)


def by_hand(*rows: tuple[str, str, Any], worker: int = 1) -> dict[int, dict[str, list[Any]]]:
    """A log of (kind, category, id)."""
    return {worker: {"core": [E.CoreRecord(t, c, k) for t, (k, c, _) in enumerate(rows)], "id": [i for *_, i in rows]}}


class TestPairs:
    """§9: logs_event_pairs."""

    def test_9_accept_pairs(self) -> None:
        """[start a, start b, finish a, finish b] → (0,2), (1,3)."""
        logs = by_hand(("start", "c", "a"), ("start", "c", "b"), ("finish", "c", "a"), ("finish", "c", "b"))
        assert list(D.logs_event_pairs(logs)) == [(1, 0, 2), (1, 1, 3)]

    def test_9_a_start_pairs_once(self) -> None:
        """Defect 12: a second finish does not pair again."""
        logs = by_hand(
            ("start", "c", "a"), ("finish", "c", "a"), ("finish", "c", "a"), ("start", "c", "a"), ("finish", "c", "a")
        )
        assert list(D.logs_event_pairs(logs)) == [(1, 0, 1), (1, 3, 4)]

    def test_9_no_pairs_across_workers(self) -> None:
        """Defect 12: a start on worker 1 does not meet a finish on worker 2."""
        logs = by_hand(("start", "c", "a")) | by_hand(("finish", "c", "a"), worker=2)
        assert list(D.logs_event_pairs(logs)) == []

    def test_9_skipped(self) -> None:
        """Ids None, unmatched halves and other categories make no pair."""
        logs = by_hand(
            ("start", "c", None), ("finish", "c", None), ("start", "c", 1), ("finish", "d", 1), ("finish", "e", 2)
        )
        assert list(D.logs_event_pairs(logs)) == []

    def test_9_in_a_real_log(self) -> None:
        """Every pair of a run is a start and a later finish with one key; a failed task's too."""
        D.enable_logging()
        t = D.spawn(boom)
        u = D.spawn(add, 1, 2)
        D.wait(t)
        fetch(u)
        log = logged(t, u)
        pairs = list(D.logs_event_pairs({1: log}))
        assert pairs
        for worker, i, j in pairs:
            a, b = log["core"][i], log["core"][j]
            assert (worker, a.kind, b.kind, a.category, log["id"][i]) == (
                1,
                "start",
                "finish",
                b.category,
                log["id"][j],
            )
            assert i < j
            assert a.timestamp <= b.timestamp
        assert len({i for _, i, _ in pairs}) == len(pairs)

    def test_9_missing_streams(self) -> None:
        """A log without core or id is an error of ours."""
        with pytest.raises(errors.InvalidOptionError):
            list(D.logs_event_pairs({1: {"core": []}}))
