"""spec/timespans.md §4.2: MultiEventLog."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError, NotCallableError
from otel_timespan.timespans import journal, scheduler
from otel_timespan.timespans.streams import WorkerStreams


def write(log: T.MultiEventLog, n: int, first: int = 0, worker: int = 1, category: str = "c") -> None:
    """Write n events whose ids are first, first + 1, ..."""
    for i in range(first, first + n):
        log.write_event(T.Event("start", category, i, None, i, worker=worker))


def ids(event: T.Event) -> Any:
    """A consumer: the event's id."""
    return event.id


class Count:
    """A consumer with a state: how many events it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, event: T.Event) -> int:
        self.seen += 1
        return self.seen

    def init_similar(self) -> Count:
        return Count()


class Picky(Count):
    """Wants the category "a" only."""

    categories = frozenset({"a"})

    def init_similar(self) -> Picky:
        return Picky()


class Carrying(Picky):
    """As Picky, and its last value stays."""

    carries = True
    value = 0

    def __call__(self, event: T.Event) -> int:
        self.value = super().__call__(event)
        return self.value


class Attached:
    """An aggregator that notes which logs it was attached to and detached from."""

    def __init__(self, noted: list[Any] | None = None) -> None:
        self.noted: list[Any] = [] if noted is None else noted

    def attach(self, log: T.MultiEventLog, worker: int) -> None:
        self.noted.append(("attach", log, worker))

    def detach(self, log: T.MultiEventLog, worker: int) -> None:
        self.noted.append(("detach", log, worker))

    def __call__(self, lists: dict[str, list[Any]]) -> None:
        self.noted.append("call")

    def init_similar(self) -> Attached:
        return Attached(self.noted)


def test_section_4_2_lists_are_fetched_once() -> None:
    """All lists have one entry an event; a second fetch finds them empty."""
    log = T.MultiEventLog()
    log["id"], log["n"] = ids, Count()
    write(log, 3)
    assert T.get_logs(log) == {1: {"id": [0, 1, 2], "n": [1, 2, 3]}}
    assert T.get_logs(log) == {1: {"id": [], "n": []}}


def test_section_4_2_a_raising_consumer_costs_its_own_value_only(caplog: pytest.LogCaptureFixture) -> None:
    """It raises on the second event: [v1, None, v3]; the other list is whole; one warning names it."""

    class Fragile:
        def __call__(self, event: T.Event) -> int:
            return 10 // (event.id - 1)

    log = T.MultiEventLog()
    log["fragile"], log["id"] = Fragile(), ids
    with caplog.at_level(logging.WARNING, "otel_timespan"):
        write(log, 3)
        assert T.get_logs(log)[1] == {"fragile": [-10, None, 10], "id": [0, 1, 2]}
        write(log, 3, 1)
        T.get_logs(log)
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1 and "'fragile' (Fragile)" in warnings[0]


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, RecursionError, MemoryError])
def test_section_4_2_no_exception_ends_the_log(error: type[BaseException]) -> None:
    """Whatever a consumer or an aggregator raises, the program and the others go on."""

    def bad(_: Any) -> None:
        raise error

    log = T.MultiEventLog()
    log["bad"], log["id"] = bad, ids
    log.aggregators["bad"] = bad
    write(log, 2)
    assert T.get_logs(log)[1] == {"bad": [None, None], "id": [0, 1]}


def test_section_4_2_ctrl_c_in_a_consumer_is_kept_for_the_end() -> None:
    """KeyboardInterrupt reaches the thread that drains, when all events are taken."""

    def interrupted(event: T.Event) -> int:
        if event.id == 1:
            raise KeyboardInterrupt
        return 0

    log = T.MultiEventLog()
    log["bad"], log["id"] = interrupted, ids
    with pytest.raises(KeyboardInterrupt):
        log._process([T.Event("start", "c", i) for i in range(3)])
    assert T.get_logs(log)[1] == {"bad": [0, None, 0], "id": [0, 1, 2]}


def test_section_4_2_a_late_consumer_is_padded() -> None:
    """Added after three events: three times None, then its values."""
    log = T.MultiEventLog()
    log["id"] = ids
    write(log, 3)
    log["n"] = Count()
    write(log, 1, 3)
    assert T.get_logs(log)[1] == {"id": [0, 1, 2, 3], "n": [None, None, None, 1]}


def test_section_13_a_removed_consumer_is_gone() -> None:
    """Its stream disappears, it is called no more, and the others keep their entries."""
    log, n = T.MultiEventLog(), Count()
    log["n"], log["id"] = n, ids
    write(log, 2)
    del log["n"]
    write(log, 1, 2)
    assert T.get_logs(log)[1] == {"id": [0, 1, 2]}
    assert n.seen == 2
    with pytest.raises(KeyError):
        del log["n"]


def test_a_consumer_set_anew_begins_anew() -> None:
    """The stream of a name that is set again starts with None for what was before."""
    log = T.MultiEventLog()
    log["n"] = n = Count()
    write(log, 2)
    log["n"] = n
    write(log, 1)
    assert T.get_logs(log)[1] == {"n": [None, None, 3]}


def test_section_4_2_each_worker_has_its_own_copies() -> None:
    """Worker 1 has the user's objects, others have fresh twins; plain functions are shared."""
    log, n = T.MultiEventLog(), Count()
    log["n"], log["id"] = n, ids
    write(log, 2)
    write(log, 3, worker=2)
    assert T.get_logs(log) == {1: {"n": [1, 2], "id": [0, 1]}, 2: {"n": [1, 2, 3], "id": [0, 1, 2]}}
    assert n.seen == 2


def test_section_4_2_known_workers_appear_without_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker is a key; only_local gives this one's streams and leaves the others."""
    monkeypatch.setattr(scheduler, "known_workers", lambda: (1, 2, 3))
    log = T.MultiEventLog()
    log["id"] = ids
    write(log, 1, worker=2)
    assert T.get_logs(log, only_local=True) == {1: {"id": []}}
    assert T.get_logs(log) == {1: {"id": []}, 2: {"id": [0]}, 3: {"id": []}}


def test_section_4_2_fetched_lists_are_the_caller_s() -> None:
    """Neither later events nor later fetches change a list that was handed out."""
    log = T.MultiEventLog()
    log["id"] = ids
    write(log, 2)
    first = T.get_logs(log)[1]["id"]
    write(log, 2, 2)
    second = T.get_logs(log)[1]["id"]
    assert first == [0, 1] and second == [2, 3]


def test_section_4_2_all_consumers_then_all_aggregators_event_by_event() -> None:
    """The order of calls is that of insertion, for each event in turn."""
    calls: list[str] = []
    log = T.MultiEventLog()
    for name in "zab":
        log[name] = lambda event, name=name: calls.append(f"{name}{event.id}")
    log.aggregators["late"] = lambda logs: calls.append("late")
    log.aggregators["early"] = lambda logs: calls.append("early")
    write(log, 2)
    T.get_logs(log)
    assert calls == ["z0", "a0", "b0", "late", "early", "z1", "a1", "b1", "late", "early"]


def test_consumers_without_aggregators_are_called_event_by_event_too() -> None:
    """Without aggregators as well: all consumers for one event, then for the next."""
    calls: list[str] = []
    log = T.MultiEventLog()
    for name in "zab":
        log[name] = lambda event, name=name: calls.append(f"{name}{event.id}")
    write(log, 2)
    T.get_logs(log)
    assert calls == ["z0", "a0", "b0", "z1", "a1", "b1"]


def test_aggregators_see_whole_lists_and_may_change_them() -> None:
    """After each event all lists are equally long; what an aggregator cuts is cut."""
    seen: list[dict[str, list[Any]]] = []
    log = T.MultiEventLog()
    log["id"], log["picky"], log["carrying"] = ids, Picky(), Carrying()
    log.aggregators["look"] = lambda logs: seen.append({name: list(entries) for name, entries in logs.items()})

    def newest_two(logs: dict[str, list[Any]]) -> None:
        for entries in logs.values():
            del entries[:-2]

    log.aggregators["cut"] = newest_two
    for i, category in enumerate("abab"):
        write(log, 1, i, category=category)
    assert T.get_logs(log)[1] == {"id": [2, 3], "picky": [2, None], "carrying": [2, 2]}
    assert seen[1] == {"id": [0, 1], "picky": [1, None], "carrying": [1, 1]}
    assert seen[3]["id"] == [1, 2, 3]


def test_aggregators_that_cut_unevenly_or_swap_lists_can_t_break_the_log() -> None:
    """The lists that are handed out are equally long: the newest entries belong together."""
    log = T.MultiEventLog()
    log["id"], log["n"] = ids, Count()

    def meddle(logs: dict[str, list[Any]]) -> None:
        logs["id"] = logs["id"][-1:]

    log.aggregators["meddle"] = meddle
    write(log, 3)
    assert T.get_logs(log)[1] == {"id": [None, None, 2], "n": [1, 2, 3]}
    log.aggregators["meddle"] = lambda logs: logs.pop("id", None)
    write(log, 2)
    assert T.get_logs(log)[1] == {"id": [None, None], "n": [4, 5]}


def test_aggregators_come_and_go() -> None:
    """One that is added late looks at the lists so far; one that is removed is called no more."""
    lengths: list[int] = []
    log = T.MultiEventLog()
    log["id"], log["picky"] = ids, Picky()
    write(log, 2, category="a")
    log.aggregators["n"] = lambda logs: lengths.append(len(logs["picky"]))
    write(log, 1, 2)
    del log.aggregators["n"]
    write(log, 1, 3, category="a")
    assert T.get_logs(log)[1] == {"id": [0, 1, 2, 3], "picky": [1, 2, None, 3]}
    assert lengths == [3]


def test_picky_and_carrying_consumers() -> None:
    """Called for their categories only; between the calls a stream is None, or the last value."""
    log = T.MultiEventLog()
    log["picky"], log["carrying"] = Picky(), Carrying()
    for category in "xaxxa":
        write(log, 1, category=category)
    assert T.get_logs(log)[1] == {"picky": [None, 1, None, None, 2], "carrying": [0, 1, 1, 1, 2]}
    write(log, 2, category="x")
    assert T.get_logs(log)[1] == {"picky": [None, None], "carrying": [2, 2]}


def test_a_carrying_consumer_that_raises_shows_none_once() -> None:
    """The entry of the call is None, the next ones the consumer's value again."""

    class Fragile(Carrying):
        def __call__(self, event: T.Event) -> int:
            if event.id == 1:
                raise ValueError
            return super().__call__(event)

    log = T.MultiEventLog()
    log["x"] = Fragile()
    write(log, 2, category="a")
    write(log, 2, 2, category="b")
    assert T.get_logs(log)[1]["x"] == [1, None, 1, 1]


def test_categories_that_can_t_be_looked_up() -> None:
    """An unhashable category is nobody's, and does no harm."""
    log = T.MultiEventLog()
    log["id"], log["picky"] = ids, Picky()
    log.write_event(T.Event("start", ["a"], 0))  # type: ignore[arg-type]
    write(log, 1, 1, category="a")
    assert T.get_logs(log)[1] == {"id": [0, 1], "picky": [None, 1]}


def test_samplers_are_called_at_once_on_the_emitting_thread() -> None:
    """`sample` runs where and when the event happens; `record` gives the stream's value later."""

    class Sampler:
        def sample(self) -> int:
            return threading.get_ident()

        def record(self, event: T.Event, value: int) -> tuple[Any, int]:
            return event.id, value

        def __call__(self, event: T.Event) -> Any:
            return self.record(event, self.sample())

    log, late = T.MultiEventLog(), Sampler()
    ctx = SimpleNamespace(log_sink=log)
    T.timespan_start(ctx, "c", 0)
    log["thread"] = late
    thread = threading.Thread(target=T.timespan_start, args=(ctx, "c", 1))
    thread.start()
    thread.join()
    log.write_event(T.Event("start", "c", 2))
    assert T.get_logs(log)[1]["thread"] == [None, (1, thread.ident), (2, threading.get_ident())]
    assert log.recorder.samplers == (late,)
    del log["thread"]
    assert log.recorder.samplers == ()


def test_a_sampler_that_raises_gives_none(caplog: pytest.LogCaptureFixture) -> None:
    """It is warned about once, the program goes on."""

    class Bad:
        def sample(self) -> int:
            raise OSError("no such thing")

        def record(self, event: T.Event, value: int | None) -> int | None:
            return value

        def __call__(self, event: T.Event) -> None:
            return None

    log = T.MultiEventLog()
    log["bad"] = Bad()
    write(log, 2)
    assert T.get_logs(log)[1]["bad"] == [None, None]
    assert len(caplog.records) == 1


def test_ruling_24_max_events_keeps_the_newest_of_all_streams_alike() -> None:
    """Of a thousand events the last ten are there, in every stream."""
    log = T.MultiEventLog(max_events=10)
    log["id"], log["picky"], log["carrying"] = ids, Picky(), Carrying()
    for i in range(1000):
        write(log, 1, i, category="ab"[i % 2])
        if i % 37 == 0:
            log._journal.drain()
    logs = T.get_logs(log)[1]
    assert logs["id"] == list(range(990, 1000))
    assert logs["picky"] == [v for n in range(496, 501) for v in (n, None)]
    assert logs["carrying"] == [v for n in range(496, 501) for v in (n, n)]


def test_section_13_close_frees_everything() -> None:
    """After close no event is taken, no list is kept, samplers rest, and consumers were closed once."""

    class Closing(Count):
        closed = 0

        def sample(self) -> int:
            return 1

        def record(self, event: T.Event, value: int) -> int:
            return value

        def close(self) -> None:
            self.closed += 1

    with T.MultiEventLog() as log:
        log["n"] = log["again"] = closing = Closing()
        write(log, 3)
    log.close()
    write(log, 3)
    assert closing.closed >= 1
    assert T.get_logs(log) == {1: {"n": [], "again": []}}
    assert log.recorder.samplers == ()


def test_section_13_a_log_that_nobody_holds_is_freed() -> None:
    """Neither the journal nor its thread keeps a replaced log alive."""
    log = T.MultiEventLog()
    log["id"] = ids
    write(log, 3)
    log._journal.drain()
    gone = weakref.ref(log)
    del log
    pause = threading.Event()
    while gone() is not None:  # the drainer may just be looking at it
        gc.collect()
        pause.wait(0.001)


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.__setitem__("x", 3),
        lambda log: log.__setitem__("x", Count),
        lambda log: log.aggregators.__setitem__("x", 3),
    ],
)
def test_what_can_t_be_called_is_refused_at_once(change: Callable[[T.MultiEventLog], None]) -> None:
    """Not when the first event comes."""
    with pytest.raises(NotCallableError):
        change(T.MultiEventLog())


def test_an_aggregator_meets_its_log_before_it_is_called() -> None:
    """`attach(log, worker)` comes when it is put in, and for a worker's copy when that is made."""
    log, aggregator = T.MultiEventLog(), Attached()
    log["id"] = ids
    log.aggregators["a"] = aggregator
    assert aggregator.noted == [("attach", log, 1)]
    write(log, 1)
    write(log, 1, worker=3)
    T.get_logs(log)
    assert aggregator.noted == [("attach", log, 1), "call", ("attach", log, 3), "call"]


@pytest.mark.parametrize(
    "remove",
    [
        lambda log: log.aggregators.__delitem__("a"),
        lambda log: log.aggregators.pop("a"),
        lambda log: log.aggregators.popitem(),
        lambda log: log.aggregators.clear(),
        lambda log: log.aggregators.__setitem__("a", lambda lists: None),
        lambda log: log.aggregators.update(a=lambda lists: None),
        lambda log: log.close(),
    ],
    ids=["del", "pop", "popitem", "clear", "replace", "update", "close"],
)
def test_an_aggregator_that_goes_is_detached_once(remove: Callable[[T.MultiEventLog], object]) -> None:
    """Whatever way it goes, it and the copies of other workers hear of it, once."""
    log, aggregator = T.MultiEventLog(), Attached()
    log.aggregators["a"] = aggregator
    write(log, 1, worker=2)
    T.get_logs(log)
    aggregator.noted.clear()
    remove(log)
    log.close()
    assert sorted(note[2] for note in aggregator.noted if note[:2] == ("detach", log)) == [1, 2]
    assert len(aggregator.noted) == 2


def test_an_aggregator_under_two_names_stays_attached_until_the_last_one_goes() -> None:
    """It is attached once; setting it anew, or dropping one name, changes nothing."""
    log, aggregator = T.MultiEventLog(), Attached()
    log.aggregators["a"] = log.aggregators["b"] = aggregator
    log.aggregators["a"] = aggregator
    del log.aggregators["a"]
    assert log.aggregators.pop("a", None) is None
    assert aggregator.noted == [("attach", log, 1)]
    del log.aggregators["b"]
    assert aggregator.noted[1:] == [("detach", log, 1)]


@pytest.mark.parametrize("method", ["attach", "detach"])
def test_an_aggregator_whose_attach_takes_something_else_is_refused(method: str) -> None:
    """The error is ours, comes at once, and says what is taken and what should be; nothing changes."""
    log, before = T.MultiEventLog(), Attached()
    log.aggregators["a"] = before
    wrong = type("Wrong", (Attached,), {method: lambda self, log: None})()
    with pytest.raises(NotCallableError, match=rf"{method} takes \(log, worker\); that of Wrong takes \(log\)"):
        log.aggregators["a"] = wrong
    assert log.aggregators == {"a": before} and before.noted == [("attach", log, 1)]


def test_what_attach_raises_is_the_users_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """At the moment of setting it is raised; of a worker's copy it is a warning, and the copy is called."""

    class Choosy(Attached):
        def attach(self, log: T.MultiEventLog, worker: int) -> None:
            super().attach(log, worker)
            if worker == refused:
                raise ValueError("not this one")

        def init_similar(self) -> Choosy:
            return Choosy(self.noted)

    log, refused = T.MultiEventLog(), 1
    with pytest.raises(ValueError, match="not this one"):
        log.aggregators["a"] = Choosy()
    assert not log.aggregators
    aggregator, refused = Choosy(), 2
    log.aggregators["a"] = aggregator
    write(log, 1, worker=2)
    T.get_logs(log)
    assert aggregator.noted[-1] == "call"
    assert "Choosy could not take the log" in caplog.text


def test_flush_settles_what_was_written() -> None:
    """After it consumers have seen all events; nothing was fetched."""
    log, count = T.MultiEventLog(), Count()
    log["n"] = count
    write(log, 3)
    assert log.flush() and count.seen == 3
    assert T.get_logs(log)[1]["n"] == [1, 2, 3]


@pytest.mark.parametrize("max_events", [0, -1, 1.5, "10", True])
def test_bad_limits_are_refused(max_events: Any) -> None:
    """max_events is a positive integer or None."""
    with pytest.raises(InvalidOptionError):
        T.MultiEventLog(max_events=max_events)


def test_a_consumer_can_t_fetch_the_log_that_calls_it() -> None:
    """It is an error of that consumer; nothing is lost."""
    log = T.MultiEventLog()
    log["bad"], log["id"] = (lambda event: T.get_logs(log)), ids
    write(log, 2)
    assert T.get_logs(log)[1] == {"bad": [None, None], "id": [0, 1]}


def test_a_consumer_may_change_its_log() -> None:
    """A consumer that adds another one while it is called: the other begins with the next batch."""
    log = T.MultiEventLog()

    def add(event: T.Event) -> None:
        if "id" not in log:
            log["id"] = ids

    log["add"] = add
    write(log, 2)
    log._journal.drain()
    write(log, 1, 2)
    assert T.get_logs(log)[1] == {"add": [None] * 3, "id": [None, None, 2]}


def test_a_blocking_consumer_holds_up_its_own_log_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emitters and other logs go on; the warning names the consumer; nothing is lost when it goes on."""
    monkeypatch.setattr(journal, "STALL_S", 0.05)
    entered, release = threading.Event(), threading.Event()

    def block(event: T.Event) -> int:
        entered.set()
        release.wait()
        return 1

    blocked, free = T.MultiEventLog(), T.MultiEventLog()
    blocked["block"], free["id"] = block, ids
    write(blocked, 1)
    assert entered.wait(60)
    write(blocked, 1)
    write(free, 3)
    assert T.get_logs(free)[1]["id"] == [0, 1, 2]
    deadline = time.monotonic() + 60
    while not any("'block'" in r.getMessage() for r in caplog.records):
        assert time.monotonic() < deadline, "nobody named the consumer that blocks"
        T.get_logs(free)
    release.set()
    assert T.get_logs(blocked)[1]["block"] == [1, 1]


@settings(max_examples=15, deadline=None)
@given(
    threads=st.integers(1, 4),
    events=st.integers(1, 300),
    fetches=st.integers(0, 5),
    full=st.booleans(),
    changes=st.booleans(),
)
def test_get_logs_never_loses_or_repeats_an_event(
    threads: int, events: int, fetches: int, full: bool, changes: bool
) -> None:
    """While threads write, others fetch and change consumers: every event is fetched once, lists are level."""
    log = T.MultiEventLog()
    log["id"], log["picky"], log["carrying"] = ids, Picky(), Carrying()
    if full:
        log.aggregators["nothing"] = lambda logs: None
    fetched: list[dict[str, list[Any]]] = []

    def writer(n: int) -> None:
        for i in range(events):
            log.write_event(T.Event("start", "ab"[i % 2], (n, i)))

    def fetcher() -> None:
        for i in range(fetches):
            fetched.append(T.get_logs(log)[1])
            if changes:
                log[f"late{i}"] = Count()
                log.aggregators[f"late{i}"] = lambda logs: None

    workers = [threading.Thread(target=writer, args=(n,)) for n in range(threads)] + [
        threading.Thread(target=fetcher) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    fetched.append(T.get_logs(log)[1])
    assert all(len({len(entries) for entries in logs.values()}) == 1 for logs in fetched)
    assert sorted(id for logs in fetched for id in logs["id"]) == [
        (n, i) for n in range(threads) for i in range(events)
    ]
    by_thread = [id for logs in fetched[-1:] for id in logs["id"]]
    assert all(
        [i for n, i in by_thread if n == thread] == sorted(i for n, i in by_thread if n == thread)
        for thread in range(threads)
    )


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["_call", "_call_all_of", "_keep", "_aggregate", "_bound"])
def test_a_signal_half_way_leaves_streams_of_one_length(
    monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    """Ctrl-C at any place of a drain: entry i of each stream still belongs to the same event."""
    log = T.MultiEventLog()
    log["id"], log["called"], log["some"] = E.IDMetrics(), ids, E.TaskNames()
    log["bytes"], log["core"] = E.BytesAllocd(), E.CoreMetrics()
    whole = getattr(WorkerStreams, step)

    def interrupted(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return whole(*args)
        if after:
            whole(*args)
        raise KeyboardInterrupt

    write(log, 10, category="compute")
    log.flush()
    with monkeypatch.context() as patch:
        patch.setattr(WorkerStreams, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            while True:  # until it is not the log's thread that takes them
                write(log, 10, first=10, category="compute")
                log.flush()
    write(log, 10, first=20, category="compute")
    logs = T.get_logs(log)[1]
    assert {len(stream) for stream in logs.values()} == {len(logs["id"])}
    assert logs["id"] == logs["called"] and {*range(10), *range(20, 30)} <= set(logs["id"])
    assert [core.timestamp for core in logs["core"]] == logs["id"]


@pytest.mark.parametrize("max_events", [None, 20])
@pytest.mark.parametrize("lazy_before", [False, True])
def test_a_lazy_consumer_added_to_others_finds_none_before(max_events: int | None, lazy_before: bool) -> None:
    """Also where no stream was kept by columns before, or none any more: all lists have one length."""
    log = T.MultiEventLog(max_events)
    log["called"] = ids
    if lazy_before:
        log["id"] = E.IDMetrics()
        write(log, 10, first=-10)
        log.flush()
        del log["id"]
    write(log, 40)
    log.flush()
    log["id"], log["core"], log["names"] = E.IDMetrics(), E.CoreMetrics(), E.TaskNames()
    write(log, 5, first=40)
    logs = T.get_logs(log)[1]
    before = len(logs["called"]) - 5
    assert before == (15 if max_events else 50 if lazy_before else 40)
    assert logs["id"] == [None] * before + [*range(40, 45)]
    assert [core and core.timestamp for core in logs["core"]] == logs["id"] and logs["names"] == [None] * (before + 5)
    write(log, 5)
    assert T.get_logs(log)[1]["id"] == [*range(5)]
