"""spec/timespans.md §5 and §6: the consumers, one by one."""

from __future__ import annotations

import builtins
import importlib
import json
import logging
import os
import sys
import threading
import time
import tracemalloc
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError
from otel_timespan.events import base

PROC = ("thread", 1)


def half(phase: str, category: str, timeline: Any = None, worker: int = 1, /, **id: Any) -> T.Event:
    """One event."""
    return T.Event(phase, category, T.EventId(**id), timeline, time.monotonic_ns(), worker=worker)


def start(category: str, timeline: Any = None, /, **id: Any) -> T.Event:
    """A start event."""
    return half("start", category, timeline, **id)


def finish(category: str, timeline: Any = None, /, **id: Any) -> T.Event:
    """A finish event."""
    return half("finish", category, timeline, **id)


def born(handle: int, nbytes: int | None, worker: int = 1, category: str = "compute") -> T.Event:
    """A body has returned a chunk."""
    chunk = T.ChunkInfo(handle, nbytes, list, worker)
    return half("finish", category, T.Timeline(result=chunk), worker, thunk_id=handle, processor=PROC)


def gone(handle: int, nbytes: int | None = 0) -> list[T.Event]:
    """A chunk was evicted: both halves."""
    timeline = T.Timeline(data=T.ChunkInfo(handle, nbytes, list), reason="released")
    return [half(phase, "evict", timeline, worker=1, handle=handle) for phase in ("start", "finish")]


def both_ways(consumer: Any, events: list[T.Event]) -> list[Any]:
    """The stream of a consumer, and a check that a full log (with an aggregator) has the same."""
    streams = []
    for aggregated in (False, True):
        log = T.MultiEventLog()
        log["x"] = consumer()
        if aggregated:
            log.aggregators["nothing"] = lambda logs: None
        for event in events:
            log.write_event(event)
        streams.append(T.get_logs(log)[1]["x"])
    assert streams[0] == streams[1]
    direct = consumer()
    assert [direct(event) for event in events] == streams[0]
    return list(streams[0])


def test_section_5_core_rows_are_records() -> None:
    """Timestamp, category and kind; as attributes, keys, a tuple and a dict."""
    event = start("c", n=1)
    (row,) = both_ways(E.CoreMetrics, [event])
    assert (row.timestamp, row.category, row.kind) == (event.timestamp, "c", "start")
    assert row["kind"] == row[2] == "start"
    assert dict(row) == {"timestamp": event.timestamp, "category": "c", "kind": "start"}


def test_section_5_what_an_event_says() -> None:
    """IDMetrics, TimelineMetrics and FullMetrics hand out the event's parts, or all of it."""
    event = start("c", [1], n=1)
    assert both_ways(E.IDMetrics, [event]) == [event.id]
    assert both_ways(E.TimelineMetrics, [event]) == [[1]]
    assert both_ways(E.FullMetrics, [event]) == [event]


def test_section_5_event_saturation_counts_open_spans() -> None:
    """1, 2, 1, none; and a finish too many does not count below 0."""
    events = [start("compute"), start("compute"), *[finish("compute")] * 3, start("compute")]
    assert both_ways(E.EventSaturation, events) == [
        {"compute": 1},
        {"compute": 2},
        {"compute": 1},
        {},
        {},
        {"compute": 1},
    ]


def test_section_5_the_machine() -> None:
    """The load average is the system's; free memory is a fraction."""
    event = start("c")
    if hasattr(os, "getloadavg"):
        assert E.CPULoadAverages()(event) == pytest.approx(os.getloadavg()[0], abs=1)
    free = E.MemoryFree()(event)
    assert free is not None and 0 < free <= 1
    log = T.MultiEventLog()
    log["mem"], log["loadavg"] = E.MemoryFree(), E.CPULoadAverages()
    log.write_event(event)
    logs = T.get_logs(log)[1]
    assert 0 < logs["mem"][0] <= 1 and logs["loadavg"][0] >= 0


def test_section_5_init_similar() -> None:
    """Stateful consumers give fresh ones, the others themselves."""
    saturation = E.EventSaturation()
    saturation(start("c"))
    assert T.init_similar(saturation)(start("d")) == {"d": 1}
    core = E.CoreMetrics()
    assert T.init_similar(core) is core


def test_section_5_debug_metrics_writes_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Category, kind and what is open, at debug level; the stream is None."""
    with caplog.at_level(logging.DEBUG, "otel_timespan.events"):
        assert both_ways(E.DebugMetrics, [start("c")]) == [None]
    assert caplog.records[0].getMessage() == "c, start, (c => 1)"


def test_section_6_bytes_allocd_rises_and_falls() -> None:
    """Each new result chunk once, until it is evicted; the total stands for every event."""
    events = [
        start("add_thunk"),
        born(1, 100),
        born(1, 100, category="finish"),
        born(2, 50),
        *gone(1),
        start("x"),
        *gone(2),
    ]
    assert both_ways(E.BytesAllocd, events) == [0, 100, 100, 150, 50, 50, 50, 0, 0]


def test_section_6_bytes_allocd_leaves_out_what_it_can_t_know() -> None:
    """Unknown sizes, other workers' chunks, plain results, chunks that were never here, and late news."""
    failure = finish("compute", T.Timeline(result=ValueError()), thunk_id=1)
    events = [
        born(1, None),
        half("finish", "finish", born(2, 9, worker=2).timeline),
        failure,
        *gone(7),
        born(7, 10),
        *gone(1),
    ]
    assert set(both_ways(E.BytesAllocd, events)) == {0}


def test_ruling_29_restored_tasks_count() -> None:
    """A task that never computed but has a chunk counts with its `finish`."""
    assert both_ways(E.BytesAllocd, [born(1, 8, category="finish")]) == [8]


def test_section_6_saturation_of_worker_and_processors() -> None:
    """Running bodies after each event; never negative, nothing at the end."""
    events = [
        start("compute", thunk_id=1, processor="p"),
        start("move", thunk_id=2, processor="p"),
        start("compute", thunk_id=2, processor="q"),
        start("compute", thunk_id=3, processor="p"),
        finish("compute", thunk_id=1, processor="p"),
        finish("compute", thunk_id=2, processor="q"),
        finish("compute", thunk_id=3, processor="p"),
        finish("compute", thunk_id=3, processor="p"),
    ]
    assert both_ways(E.WorkerSaturation, events) == [1, 1, 2, 3, 2, 1, 0, 0]
    assert both_ways(E.ProcessorSaturation, events) == [
        [("p", 1)],
        [("p", 1)],
        [("p", 1), ("q", 1)],
        [("p", 2), ("q", 1)],
        [("p", 1), ("q", 1)],
        [("p", 1)],
        [],
        [],
    ]


def test_section_6_names_and_dependencies() -> None:
    """What a submission says: names and uid at the start, dependencies (each once) at the finish."""
    timeline = T.Timeline(f=half, uid=4, deps=((1, 2), ("key", 2), (None, 3)))
    events = [
        start("add_thunk", timeline, thunk_id=4),
        finish("add_thunk", timeline, thunk_id=4),
        start("move", thunk_id=4),
    ]
    assert both_ways(E.TaskNames, events) == ["half [4]", None, None]
    assert both_ways(E.TaskFunctionNames, events) == ["half", None, None]
    assert both_ways(E.TaskUIDtoTID, events) == [(4, 4), None, None]
    assert both_ways(E.TaskDependencies, events) == [None, (4, [2, 3]), None]


@pytest.mark.parametrize(
    ("f", "name"), [(len, "len"), (dict, "dict"), (T.ChunkInfo(1, 2, E.TaskNames), "TaskNames"), (3, "int")]
)
def test_section_6_function_names(f: Any, name: str) -> None:
    """Plain names for functions and classes, the type's for the rest."""
    assert E.TaskFunctionNames()(start("add_thunk", T.Timeline(f=f))) == name


def test_section_6_arguments() -> None:
    """At the finish of a move: the object by identity, an empty list where it is immutable."""
    mutable, immutable = T.Timeline(data=T.ValueInfo(list, 80, 55)), T.Timeline(data=T.ValueInfo(int, 8, 0))
    events = [start("move", mutable, thunk_id=1, position=1), finish("move", mutable, thunk_id=1, position=1)]
    events += [finish("move", immutable, thunk_id=1, position="key"), finish("compute", mutable, thunk_id=1)]
    assert both_ways(E.TaskArguments, events) == [None, (1, [(1, E.LoggedMutableObject(55, "object"))]), (1, []), None]


def test_section_6_argument_moves() -> None:
    """Before and after of each mutable argument; task 0 is left out."""
    before, after = T.Timeline(data=T.ChunkInfo(9, 80, list)), T.Timeline(data=T.ValueInfo(list, 80, 55))
    number = T.Timeline(data=T.ValueInfo(int, 8, 0))
    events = [
        start("move", before, thunk_id=1, position=1),
        start("move", number, thunk_id=1, position=2),
        start("move", before, thunk_id=0, position=1),
        finish("move", after, thunk_id=1, position=1),
        finish("move", number, thunk_id=1, position=2),
        finish("move", after, thunk_id=0, position=1),
    ]
    chunk, plain = E.LoggedMutableObject(9, "chunk"), E.LoggedMutableObject(55, "object")
    assert both_ways(E.TaskArgumentMoves, events) == [None, None, None, (1, 1, chunk, plain), None, None]


def test_section_6_a_move_that_never_began(caplog: pytest.LogCaptureFixture) -> None:
    """A finish without a start: None, and one warning."""
    moves = E.TaskArgumentMoves()
    event = finish("move", T.Timeline(data=T.ValueInfo(list, 80, 55)), thunk_id=1, position=1)
    assert moves(event) is None and moves(event) is None
    assert len(caplog.records) == 1 and "never started" in caplog.text


def test_section_13_open_spans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of moves and spans that never finish only the newest are remembered."""
    monkeypatch.setattr(base, "MAX_OPEN", 3)
    moves, stats = E.TaskArgumentMoves(), E.LockContentionMetrics()
    events = [start("move", T.Timeline(data=T.TaskRef(1)), thunk_id=n, position=1) for n in range(1, 10)]
    for event in events:
        moves(event)
        stats(event)
    stats.record_batch(events, [0] * len(events))
    assert len(moves._before) == len(stats._open) == 3


def test_section_6_results() -> None:
    """TaskResult at the end of the body, TaskToChunk at the end of the task; failures and numbers have none."""
    chunk, number = T.Timeline(result=T.ChunkInfo(9, 80, list)), T.Timeline(result=T.ValueInfo(int, 8, 0))
    error, ref = T.Timeline(result=ValueError("x")), T.Timeline(result=T.TaskRef(3))
    events = [start("compute", thunk_id=1)] + [finish("compute", t, thunk_id=1) for t in (chunk, number, error, ref)]
    expected = [(1, E.LoggedMutableObject(9, "chunk")), None, None, (1, E.LoggedMutableObject(3, "task"))]
    assert both_ways(E.TaskResult, events) == [None, *expected]
    assert both_ways(E.TaskToChunk, [e._replace(category="finish") for e in events]) == [None, *expected]


def test_other_programs_events_are_tolerated(caplog: pytest.LogCaptureFixture) -> None:
    """Categories of ours with ids and timelines that are not: no consumer raises."""
    log = T.MultiEventLog()
    for name in E.__all__:
        if name.startswith(("Task", "Bytes", "Worker", "Processor", "Event")):
            log[name] = getattr(E, name)()
    for category in ("compute", "move", "add_thunk", "finish", "evict"):
        for id in (1, None, "x", T.EventId()):
            log.write_event(T.Event("start", category, id, None, 1))
            log.write_event(T.Event("finish", category, id, {"a": 1}, 2))
    T.get_logs(log)
    assert caplog.records == []


def delta(consumer: Any, between: Any) -> Any:
    """The value at the finish of a span around a call."""
    assert consumer(start("c", n=1)) is None
    between()
    return consumer(finish("c", n=1))


def test_section_6_gc_stats() -> None:
    """Net bytes allocated in between; exact while tracemalloc traces; None without a start."""
    kept: list[Any] = []
    assert delta(E.GCStats(), lambda: kept.extend([object() for _ in range(10_000)])) > 10_000
    tracemalloc.start()
    try:
        assert 1_000_000 <= delta(E.GCStats(), lambda: kept.append(bytearray(1_000_000))) < 1_100_000
    finally:
        tracemalloc.stop()
    assert E.GCStats()(finish("c", n=2)) is None


def test_section_6_lock_contention() -> None:
    """Contended acquisitions of CountingLocks in between."""
    lock = T.CountingLock()

    def contend() -> None:
        with lock:
            thread = threading.Thread(target=lock.acquire, kwargs={"blocking": False})
            thread.start()
            thread.join()

    assert delta(E.LockContentionMetrics(), contend) == 1
    assert delta(E.LockContentionMetrics(), lambda: None) == 0


def test_section_6_compile_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time in imports and compile, until close; then the builtins are the original ones."""
    originals = builtins.__import__, builtins.compile, importlib.import_module
    (tmp_path / "a_module_of_the_test.py").write_text("x = [\n" + "1,\n" * 1000 + "]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = E.CompileTimeMetrics(), E.CompileTimeMetrics()
    assert delta(first, lambda: importlib.import_module("a_module_of_the_test")) > 0
    assert delta(second, lambda: compile("1 + 1", "x", "eval")) > 0
    assert delta(first, lambda: importlib.import_module("json")) == 0
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
    first.close()
    first.close()
    assert builtins.compile is not originals[1]
    second.close()
    assert (builtins.__import__, builtins.compile, importlib.import_module) == originals
    del sys.modules["a_module_of_the_test"]


def test_section_6_compile_keeps_its_meaning() -> None:
    """While counted, `compile` still inherits the __future__ flags of its real caller only."""
    counting = E.CompileTimeMetrics()
    counting.sample()
    try:
        scope: dict[str, Any] = {}
        exec(compile("code = compile('def f(x: nowhere): pass', 'x', 'exec')", "x", "exec", dont_inherit=True), scope)
        assert not scope["code"].co_flags & __import__("__future__").annotations.compiler_flag
        inherited = compile("def f(x: nowhere): pass", "x", "exec")
        assert inherited.co_flags & __import__("__future__").annotations.compiler_flag
    finally:
        counting.close()


def test_section_13_a_second_start_leaves_nothing_on() -> None:
    """The later start counts, and closing the span leaves no open one."""
    stats = E.LockContentionMetrics()
    stats(start("c", n=1))
    stats(start("c", n=1))
    assert stats(finish("c", n=1)) == 0
    assert not stats._open


def perf(spec: str) -> E.LinuxPerfMetrics:
    """The consumer, or a skip where this kernel allows no counters."""
    try:
        return E.LinuxPerfMetrics(spec)
    except InvalidOptionError as error:
        pytest.skip(str(error))


def test_section_6_linux_perf_counts() -> None:
    """Clock and faults of this process and of threads started later; None at the start."""
    counters = perf("page-faults, (cpu-clock, task-clock)")

    def work() -> None:
        thread = threading.Thread(target=lambda: bytearray(50_000_000).count(1))
        thread.start()
        thread.join()

    rise = delta(counters, work)
    assert set(rise) == {"page-faults", "cpu-clock", "task-clock"}
    assert rise["page-faults"] > 0 and rise["cpu-clock"] > 0
    assert counters(finish("c", n=2)) is None
    counters.close()
    counters.close()
    assert set(counters.sample()) == {"page-faults", "cpu-clock", "task-clock"}
    counters.close()


def test_section_6_linux_perf_default_spec() -> None:
    """The six counters of the kernel that need no hardware."""
    counters = perf(E.perf.DEFAULT_SPEC)
    assert set(counters.sample()) == set(E.perf.DEFAULT_SPEC.split(", "))
    counters.close()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("", "needs the names"),
        ("no-such-thing", "known: "),
        ("(a", "can't be read"),
        ("cs, cs", "twice"),
        ("cs,", "read"),
    ],
)
def test_section_6_linux_perf_bad_specs(spec: str, match: str) -> None:
    """A bad spec is refused when the consumer is made, saying what is wrong."""
    with pytest.raises(InvalidOptionError, match=match):
        E.LinuxPerfMetrics(spec)


def test_section_6_linux_perf_says_what_the_kernel_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel refuses, the error names the setting."""
    import errno

    monkeypatch.setattr(E.perf, "_perf_event_open", lambda *_: (-1, errno.EACCES))
    with pytest.raises(InvalidOptionError, match="perf_event_paranoid"):
        E.LinuxPerfMetrics("cpu-clock")


SAMPLES = T.ProfilerResult(
    ((1, ("root", "a<b>"), 100), (1, ("root", "a<b>"), 200), (2, ("root", "c"), 150)), {}, (1, 2)
)


def test_section_6_profiles_are_files(tmp_path: Path) -> None:
    """A finished compute with samples: an SVG and a speedscope file, gone with the handle; else ""."""
    event = finish("compute", T.Timeline(f=half), thunk_id=3)._replace(profiler_samples=SAMPLES)
    log = T.MultiEventLog()
    log["profile"] = E.ProfileMetrics(tmp_path)
    for each in (start("compute", thunk_id=3), event, finish("compute", thunk_id=4), start("move", thunk_id=5)):
        log.write_event(each)
    stream = T.get_logs(log)[1]["profile"]
    handle = stream[1]
    assert [stream[0], *stream[2:]] == ["", "", ""]
    svg = xml.etree.ElementTree.parse(str(handle))
    titles = [title.text or "" for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("a<b>: 2 samples") for title in titles)
    profile = json.loads(Path(handle.speedscope).read_text())
    assert {f["name"] for f in profile["shared"]["frames"]} == {"root", "a<b>", "c"}
    assert [len(p["samples"]) for p in profile["profiles"]] == [2, 1]
    assert len(list(tmp_path.iterdir())) == 2
    del handle, stream
    assert list(tmp_path.iterdir()) == []
