"""spec/timespans.md §8 and §9, and the acceptance of §6, with the scheduler."""

from __future__ import annotations

import builtins
import inspect
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import otel_timespan.dagger as D
from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError, LogNotKeptError
from tests.backends import eventually

DEFAULT = {
    "core",
    "id",
    "tasknames",
    "taskfuncnames",
    "taskdeps",
    "taskargs",
    "taskargmoves",
    "taskresult",
    "taskuidtotid",
    "tasktochunk",
}
METRICS = {"wsat", "loadavg", "bytes", "mem", "esat", "psat"}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Each test begins and ends without logging."""
    D.disable_logging()
    yield
    D.disable_logging()


def add(a: int, b: int) -> int:
    """A body."""
    return a + b


def mul(a: int, b: int) -> int:
    """Another one."""
    return a * b


def two_tasks() -> tuple[D.DTask, D.DTask]:
    """(1 + 2) * 3, finished."""
    first = D.spawn(add, 1, 2)
    second = D.spawn(mul, first, 3)
    assert D.fetch(second) == 9
    return first, second


def until_quiet(streams: dict[str, list[Any]], name: str) -> list[Any]:
    """What a stream says, without the events that say nothing."""
    return [value for value in streams[name] if value is not None]


def test_section_8_default_streams() -> None:
    """A plain enable_logging has exactly the ten streams."""
    D.enable_logging()
    two_tasks()
    assert set(D.fetch_logs()[1]) == DEFAULT


def test_section_8_all_asked_streams_are_filled() -> None:
    """Metrics, names, dependencies, timelines: no stream is empty, all are equally long."""
    D.enable_logging(metrics=True, tasknames=True, taskdeps=True, timeline=True)
    two_tasks()
    streams = D.fetch_logs()[1]
    assert set(streams) == DEFAULT | METRICS | {"timeline"}
    assert all(streams.values()) and len({len(entries) for entries in streams.values()}) == 1
    assert not any(D.fetch_logs()[1].values())


def test_section_8_single_streams() -> None:
    """Without all_task_deps each keyword adds its own stream."""
    D.enable_logging(all_task_deps=False, tasknames=False, taskdeps=True)
    assert set(D.fetch_logs()[1]) == {"core", "id", "taskdeps"}


def test_section_8_disabled() -> None:
    """There is no log, whatever the keywords."""
    D.enable_logging()
    D.disable_logging()
    two_tasks()
    assert D.fetch_logs() is None and D.fetch_logs(only_local=True) is None


def test_section_8_a_new_log_replaces_the_old() -> None:
    """Earlier events are not in the new log; who kept the old one still has them."""
    old = D.enable_logging()
    two_tasks()
    new = D.enable_logging()
    assert D.fetch_logs()[1]["core"] == [] and new is not old
    assert T.get_logs(old)[1]["core"]


def test_section_8_logging_block() -> None:
    """The block is logged, and fetched within or after; then the sink is what it was."""
    before = D.eager_context().log_sink
    with D.logging(timeline=True) as log:
        two_tasks()
        assert log.fetch()[1]["timeline"]
        two_tasks()
    two_tasks()
    names = until_quiet(log.fetch()[1], "taskfuncnames")
    assert names == ["add", "mul"]
    assert D.eager_context().log_sink is before
    with pytest.raises(InvalidOptionError):
        D.logging().fetch()
    with pytest.raises(InvalidOptionError, match="metricks"):
        D.logging(metricks=True)


def test_section_8_a_bad_keyword_leaves_the_old_log_on() -> None:
    """An impossible counter is refused at once, and nothing changes."""
    log = D.enable_logging()
    with pytest.raises(InvalidOptionError):
        D.enable_logging(linuxperf="no-such-counter", profile=True)
    with pytest.raises(InvalidOptionError):
        D.enable_logging(max_events=0)
    assert D.eager_context().log_sink is log


def test_section_8_profile_switches_the_context_and_back() -> None:
    """profile=True profiles computes; the next switch without it restores what was."""
    ctx = D.eager_context()
    D.enable_logging(profile=True)
    assert ctx.profile("compute", 1, None) and not ctx.profile("move", 1, None)
    assert "profile" in D.fetch_logs()[1]
    D.enable_logging()
    assert not ctx.profile("compute", 1, None)


def test_section_8_other_sinks() -> None:
    """fetch_logs asks the context's sink, and says so when it keeps nothing."""
    events: list[T.Event] = []
    D.eager_context().log_sink = events
    D.fetch(D.spawn(add, 1, 2))
    with pytest.raises(LogNotKeptError):
        D.fetch_logs()
    assert any(event.category == "compute" for event in events)


def test_section_6_what_a_run_says_of_its_tasks() -> None:
    """Names, ids and dependencies of two dependent tasks."""
    D.enable_logging(metrics=True)
    first, second = two_tasks()
    streams = D.fetch_logs()[1]
    assert until_quiet(streams, "tasknames") == [f"add [{first.id}]", f"mul [{second.id}]"]
    assert until_quiet(streams, "taskfuncnames") == ["add", "mul"]
    assert until_quiet(streams, "taskdeps") == [(first.id, []), (second.id, [first.id])]
    assert until_quiet(streams, "taskuidtotid") == [(first.uid, first.id), (second.uid, second.id)]
    assert min(streams["wsat"]) == 0 and streams["wsat"][-1] == 0
    assert streams["psat"][-1] == []


def test_section_6_counters_have_values() -> None:
    """GC, locks and compile time: each stream has at least one entry that is not None."""
    D.enable_logging(gc_stats=True, lock_contend=True, compile_time=True)
    two_tasks()
    streams = D.fetch_logs()[1]
    assert all(until_quiet(streams, name) for name in ("gc_stats", "lock_contend", "compile_time"))


def test_a_replaced_log_leaves_no_counting_on() -> None:
    """The builtins that compile_time wraps are the original ones as soon as logging is off."""
    original = builtins.__import__
    D.enable_logging(compile_time=True)
    two_tasks()
    assert builtins.__import__ is not original
    D.disable_logging()
    assert builtins.__import__ is original
    with D.logging(compile_time=True):
        two_tasks()
    assert builtins.__import__ is original


def test_section_6_linuxperf_has_values() -> None:
    """Counters of the kernel, where it gives them."""
    try:
        D.enable_logging(linuxperf="page-faults, cpu-clock")
    except InvalidOptionError as error:
        pytest.skip(str(error))
    two_tasks()
    values = until_quiet(D.fetch_logs()[1], "linuxperf")
    assert values and all(set(value) == {"page-faults", "cpu-clock"} for value in values)


def test_ruling_25_bytes_rise_with_results_and_fall_with_their_release() -> None:
    """Two results are alive, then one, then none."""
    log = T.MultiEventLog()
    log["bytes"] = consumer = E.BytesAllocd()
    D.eager_context().log_sink = log

    def total() -> int:
        T.get_logs(log)
        return consumer.value

    tasks = [D.spawn(bytearray, 100_000), D.spawn(bytearray, 200_000)]
    for task in tasks:
        D.wait(task)
    both = total()
    assert both >= 300_000
    del tasks[0], task
    wait_for(lambda: total() < 250_000)
    assert total() >= 200_000
    del tasks
    wait_for(lambda: total() == 0)


def wait_for(condition: Any) -> None:
    """Until the condition holds; the test's own time limit ends a vain wait."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.005)


def test_ruling_27_events_of_the_scheduler_reach_aggregators_without_a_fetch() -> None:
    """A window's creation handler sees the finish of a task by itself."""
    seen = threading.Event()
    log = D.enable_logging()

    def look(row: dict[str, Any]) -> None:
        if row["core"].category == "finish" and row["core"].kind == "finish":
            seen.set()

    log.aggregators["window"] = E.LogWindow(10**10, creation_handlers=[look])
    two_tasks()
    assert seen.wait(60)


def test_section_9_pairs() -> None:
    """Starts at 0 and 1, finishes at 2 and 3."""
    core = [E.CoreRecord(n, "c", kind) for n, kind in enumerate(("start", "start", "finish", "finish"))]
    assert list(D.logs_event_pairs({1: {"core": core, "id": ["a", "b", "a", "b"]}})) == [(1, 0, 2), (1, 1, 3)]


def test_section_13_pairs_are_used_once_and_never_across_workers() -> None:
    """A second finish pairs with nothing, a pending start does not leak, ids of None are left out."""
    start, finish = E.CoreRecord(1, "c", "start"), E.CoreRecord(2, "c", "finish")
    logs = {
        1: {"core": [start, finish, finish, start], "id": ["a", "a", "a", "b"]},
        2: {"core": [finish, None, start, finish], "id": ["b", "b", None, None]},
    }
    assert list(D.logs_event_pairs(logs)) == [(1, 0, 1)]
    with pytest.raises(InvalidOptionError):
        list(D.logs_event_pairs({1: {"core": []}}))


def test_section_9_every_span_of_a_run_pairs() -> None:
    """In the log of two tasks there are compute pairs for both, start before finish."""
    D.enable_logging()
    first, second = two_tasks()
    logs = D.fetch_logs()
    streams = logs[1]
    computes = [
        streams["id"][i].thunk_id
        for w, i, j in D.logs_event_pairs(logs)
        if i < j and streams["core"][i].category == "compute"
    ]
    assert computes == [first.id, second.id]


def test_section_9_names() -> None:
    """A task, a chunk and a mutable object get a name; an immutable one raises."""
    D.enable_logging()
    thing: list[int] = []
    first, _ = two_tasks()
    chunk = D.fetch(first, raw=True)
    D.fetch_logs()
    D.logs_annotate(first, "task")
    D.logs_annotate(chunk, "chunk")
    D.logs_annotate(D.eager_context(), thing, "thing")
    ids = [id for id in D.fetch_logs()[1]["id"] if "objectid" in id]
    assert ids[0] == ids[1] == T.EventId(objectid=first.id, name="task")
    assert (ids[2].objectid.kind, ids[2].name) == ("chunk", "chunk")
    assert ids[4] == T.EventId(objectid=E.LoggedMutableObject(id(thing), "object"), name="thing")
    for bad in (5, "text", (1, 2), None, len):
        with pytest.raises(ValueError, match="immutable"):
            D.logs_annotate(bad, "x")
    for arguments in ((thing,), (thing, 3), (thing, ""), (1, 2, 3, 4)):
        with pytest.raises(InvalidOptionError):
            D.logs_annotate(*arguments)


def test_section_9_the_option_name_annotates() -> None:
    """spawn with Options(name=...) writes the annotation of (task uid, name)."""
    D.enable_logging()
    task = D.spawn(add, D.Options(name="N"), 1, 2)
    D.fetch(task)
    streams = D.fetch_logs()[1]
    names = [id for core, id in zip(streams["core"], streams["id"], strict=True) if core.category == "data_annotation"]
    assert names == [T.EventId(objectid=task.uid, name="N")] * 2


def test_section_9_nothing_is_annotated_when_logging_is_off() -> None:
    """No sink, no event, no error; an immutable object is still refused."""
    D.logs_annotate([], "x")
    with pytest.raises(InvalidOptionError):
        D.logs_annotate(3, "x")


def test_logs_survive_switches_while_tasks_run() -> None:
    """Tasks that run while the log is switched on and off finish as ever."""
    stop = threading.Event()

    def switch() -> None:
        while not stop.is_set():
            D.enable_logging(metrics=True)
            D.fetch_logs()
            D.disable_logging()

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        assert D.fetch(D.spawn(sum, [D.fetch(D.spawn(add, n, 1)) for n in range(300)])) == sum(range(1, 301))
    finally:
        stop.set()
        thread.join()


def test_a_log_that_nobody_fetches_is_bounded_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By default the newest events are kept, and one warning says what to do; a bound of one's own is silent."""
    module = sys.modules["otel_timespan.dagger.logging"]  # its name is that of a function, too
    assert inspect.signature(D.enable_logging).parameters["max_events"].default == module.MAX_EVENTS
    for own in (False, True):
        caplog.clear()
        monkeypatch.setattr(module, "MAX_EVENTS", 0 if own else 1000)
        log = D.enable_logging(max_events=1000)
        for n in range(3000):
            log.write_event(T.Event("start", "c", n))
        log.flush()
        log.write_event(T.Event("start", "c", 3000))
        assert T.get_logs(log)[1]["id"][-1] == 3000
        assert sum("nobody fetched" in record.message for record in caplog.records) == (not own)
    D.disable_logging()


def test_all_logs_of_a_tee_agree_in_every_field() -> None:
    """Each log expands the records by itself, and yet all have the same events: sequence numbers, times, timelines."""
    kept: list[T.Event] = []
    logs = [T.MultiEventLog(), T.MultiEventLog(), T.LocalEventLog()]
    for log in logs[:2]:
        log["event"] = lambda event: event  # type: ignore[index]
    context = D.eager_context()
    before, context.log_sink = context.log_sink, T.TeeLog(*logs, kept)
    T.get_logs(logs[2], raw=True)

    def inner(n: int) -> int:
        return D.fetch(D.spawn(abs, n))

    tasks = [D.spawn(inner, n) for n in range(20)] + [D.spawn.opts(name="named")(abs, n) for n in range(20)]
    failing = D.spawn(lambda: 1 // 0)
    assert sum(map(D.fetch, tasks)) == 2 * sum(range(20))
    with pytest.raises(D.DTaskFailedError):
        D.fetch(failing)
    context.log_sink = before
    found: list[list[T.Event]] = [[], [], [], kept]

    def agree() -> bool:
        """Threads may still say what they were at."""
        for log, events in zip(logs[:2], found, strict=False):
            events += T.get_logs(log)[1]["event"]
        found[2] += T.get_logs(logs[2], raw=True)[1]
        texts = [sorted(map(repr, events)) for events in found]
        return len(texts[0]) > 800 and texts[0] == texts[1] == texts[2] == texts[3]

    eventually(agree)
    assert len(tasks) == 40  # until here nothing died that a log is told of
