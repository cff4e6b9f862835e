"""spec/timespans.md §7: LogWindow and TableStorage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError, LogFormatError, MissingExtraError
from otel_timespan.events import table as table_module


class Handler:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.deleted: list[int] = []

    def creation_hook(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def deletion_hook(self, count: int) -> None:
        self.deleted.append(count)


def row(t: int) -> E.CoreRecord:
    """A row of the core stream."""
    return E.CoreRecord(t, "c", "start")


def log_with(window: E.LogWindow, **more: Any) -> T.MultiEventLog:
    """A log with `core`, `id` and a window."""
    log = T.MultiEventLog(**more)
    log["core"], log["id"] = E.CoreMetrics(), E.IDMetrics()
    log.aggregators["window"] = window
    return log


def write(log: T.MultiEventLog, *times: int) -> None:
    """One event at each time."""
    for t in times:
        log.write_event(T.Event("start", "c", t, None, t))


def test_section_7_1_creation_handlers_get_each_row() -> None:
    """Three events, a large window: three rows with all stream names, no deletion."""
    handler, seen = Handler(), []  # type: ignore[var-annotated]
    log = log_with(E.LogWindow(10**12, creation_handlers=[handler, seen.append], clock=lambda: 100))
    log.aggregators["window"].deletion_handlers.append(handler)
    write(log, 1, 2, 3)
    log._journal.drain()
    assert [set(r) for r in handler.rows] == [{"core", "id"}] * 3 and seen == handler.rows
    assert [r["id"] for r in handler.rows] == [1, 2, 3]
    assert handler.deleted == []


def test_section_7_1_drops_exactly_what_is_older() -> None:
    """At 100 with a window of 30: 0 and 50 go, 90 stays."""
    handler = Handler()
    logs = {"core": [row(0), row(50), row(90)], "id": ["a", "b", "c"]}
    E.LogWindow(30, deletion_handlers=[handler], clock=lambda: 100)(logs)
    assert handler.deleted == [2]
    assert logs == {"core": [row(90)], "id": ["c"]}


def test_section_7_1_an_entry_on_the_edge_stays_and_all_may_go() -> None:
    """The window's start is inside; where nothing is inside, nothing stays."""
    logs = {"core": [row(69), row(70)]}
    E.LogWindow(30, clock=lambda: 100)(logs)
    assert logs["core"] == [row(70)]
    E.LogWindow(30, clock=lambda: 1000)(logs)
    assert logs["core"] == []
    E.LogWindow(30, clock=lambda: 1000)(logs)


def test_section_7_1_padding_is_tolerated() -> None:
    """Entries without a timestamp are as old as the next one that has one."""
    logs: dict[str, list[Any]] = {"core": [None, row(1), None, row(90)], "x": [1, 2, 3, 4]}
    E.LogWindow(30, clock=lambda: 100)(logs)
    assert logs == {"core": [None, row(90)], "x": [3, 4]}


def test_section_7_1_a_raising_handler_is_isolated(caplog: pytest.LogCaptureFixture) -> None:
    """The other handlers are called, the lists are cut, one warning."""

    def bad(_: Any) -> None:
        raise ValueError

    handler = Handler()
    window = E.LogWindow(30, creation_handlers=[bad, handler], deletion_handlers=[bad, handler], clock=lambda: 100)
    logs = {"core": [row(0), row(90)]}
    window(logs)
    window(logs)
    assert logs["core"] == [row(90)] and handler.deleted == [1] and len(handler.rows) == 2
    assert len(caplog.records) == 1


def test_section_7_1_hooks_default_to_nothing() -> None:
    """A handler that knows only one of the hooks is left alone by the other."""

    class OnlyRows:
        rows: list[Any] = []  # noqa: RUF012

        def creation_hook(self, row: Any) -> None:
            self.rows.append(row)

        def __call__(self, _: Any) -> None:
            raise AssertionError

    handler = OnlyRows()
    E.LogWindow(1, creation_handlers=[handler], deletion_handlers=[handler], clock=lambda: 100)({"core": [row(1)]})
    assert len(handler.rows) == 1


def test_a_window_without_timestamps_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The core stream is missing: the warning says what to add, the log goes on."""
    log = T.MultiEventLog()
    log["id"] = E.IDMetrics()
    log.aggregators["window"] = E.LogWindow(10)
    write(log, 1, 2)
    assert T.get_logs(log)[1] == {"id": [1, 2]}
    assert "CoreMetrics" in caplog.text


@pytest.mark.parametrize("length", [-1, "20s", None, True])
def test_bad_lengths_are_refused(length: Any) -> None:
    """The length is a number of nanoseconds."""
    with pytest.raises(InvalidOptionError):
        E.LogWindow(length)


def test_a_mirror_stays_equal_to_the_lists() -> None:
    """Rows minus deletions are the lists' entries, through windows, max_events and fetches."""
    now = [0]
    handler = Handler()
    window = E.LogWindow(50, creation_handlers=[handler], deletion_handlers=[handler], clock=lambda: now[0])
    log = log_with(window, max_events=20)
    for t in range(0, 300, 3):
        now[0] = t
        write(log, t)
        log._journal.drain()
        if t % 90 == 0:
            T.get_logs(log)
        mirror = [r["id"] for r in handler.rows][sum(handler.deleted) :]
        state = log._states[1]
        assert mirror == state.so_far()["id"]


def test_other_workers_have_windows_of_their_own() -> None:
    """Worker 1 has the user's window and table, worker 2 empty twins (design/rulings.md 23)."""
    table = E.TableStorage()
    log = log_with(E.LogWindow(10**12, creation_handlers=[table], clock=lambda: 100))
    write(log, 1)
    log.write_event(T.Event("start", "c", 2, None, 2, worker=2))
    T.get_logs(log)
    assert [r["id"] for r in table.table] == [1]
    twin = log._states[2]._aggregators["window"][1]
    assert twin is not log.aggregators["window"]
    assert [r["id"] for r in twin.creation_handlers[0].table] == [2]


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.integers(0, 40), min_size=1, max_size=60), window=st.integers(0, 100))
def test_the_window_is_what_a_filter_says(steps: list[int], window: int) -> None:
    """At every event the lists are the entries that are not older than the window."""
    now, times = 0, []
    clock = [0]
    aggregator = E.LogWindow(window, clock=lambda: clock[0])
    logs: dict[str, list[Any]] = {"core": [], "t": []}
    for step in steps:
        now += step
        clock[0] = now
        times.append(now)
        logs["core"].append(row(now))
        logs["t"].append(now)
        aggregator(logs)
        assert logs["t"] == [t for t in times if t >= now - window]


def test_long_lists_are_cut_in_blocks_and_exact_at_a_fetch() -> None:
    """Ten thousand entries: at most a 64th too many between fetches, none in a fetched list."""
    clock = [0]
    log = log_with(E.LogWindow(8000, clock=lambda: clock[0]))
    state = None
    for t in range(20_000):
        clock[0] = t
        write(log, t)
        if t % 1000 == 999:
            log._journal.drain()
            state = log._states[1]
    assert state is not None and len(state.so_far()["id"]) <= 8001 * 65 // 64
    clock[0] = 19_999
    write(log, 20_000)
    assert T.get_logs(log)[1]["id"] == list(range(11_999, 20_001))


def test_a_million_events_take_flat_memory() -> None:
    """Under a window of 20 s, fed with 100 s of events, memory does not grow after the window is full."""
    clock = [0]
    log = log_with(E.LogWindow(20 * 10**9, clock=lambda: clock[0]))
    log["wsat"], log["tasknames"] = E.WorkerSaturation(), E.TaskNames()
    per_second, blocks = 10_000, []
    for second in range(100):
        clock[0] = second * 10**9
        log._process([T.Event("start", "c", None, None, clock[0]) for _ in range(per_second)])
        blocks.append(sys.getallocatedblocks())
    assert max(blocks[25:]) < blocks[24] * 1.2
    assert 20 * per_second <= len(T.get_logs(log)[1]["core"]) <= 21 * per_second


def rows(*times: int) -> list[dict[str, Any]]:
    """Rows as a LogWindow hands them out."""
    return [{"core": row(t), "id": T.EventId(n=t), "timeline": T.Timeline(a=[t])} for t in times]


def table(kind: str) -> Any:
    """An empty inner table of a kind."""
    if kind == "list":
        return []
    if kind == "pandas":
        return pytest.importorskip("pandas").DataFrame()
    arrow = pytest.importorskip("pyarrow")
    return arrow.schema([("core", arrow.string()), ("id", arrow.string()), ("timeline", arrow.string())])


KINDS = ["list", "pandas", "pyarrow"]


@pytest.mark.parametrize("kind", KINDS)
def test_section_7_2_slices_have_both_ends(kind: str) -> None:
    """Rows at 10, 20, 30: [10:20] are two rows of the same kind of table; open ends work."""
    storage = E.TableStorage(table(kind))
    for each in rows(10, 20, 30):
        storage.creation_hook(each)
    part = storage[10:20]
    assert type(part) is type(storage.table) and len(part) == 2
    assert len(storage[:20]) == 2 and len(storage.range(21)) == 1 and len(storage[:]) == len(storage) == 3
    assert len(storage[25:5]) == 0
    assert list(storage) == rows(10, 20, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_section_7_2_init_similar_is_empty_with_the_same_columns(kind: str) -> None:
    """A twin has the kind and the columns, and no rows."""
    storage = E.TableStorage(table(kind))
    for each in rows(10):
        storage.creation_hook(each)
    twin = T.init_similar(storage)
    assert len(twin) == 0 and type(twin.table) is type(storage.table)
    if kind != "list":
        assert twin.columns == storage.columns == ["core", "id", "timeline"]
    twin.creation_hook(rows(5)[0])
    assert len(twin) == 1 and len(storage) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_section_7_2_other_columns_are_refused(kind: str) -> None:
    """A consumer that was added later breaks appends; the message says what to do."""
    storage = E.TableStorage(table(kind))
    storage.creation_hook(rows(1)[0])
    with pytest.raises(InvalidOptionError, match="add all consumers before"):
        storage.creation_hook({**rows(2)[0], "late": 1})
    assert len(storage) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_section_7_2_saved_and_read_back(kind: str, tmp_path: Path) -> None:
    """A Parquet file gives back the rows, and other tools can read its times."""
    parquet = pytest.importorskip("pyarrow.parquet")
    storage = E.TableStorage(table(kind))
    for each in rows(10, 20):
        storage.creation_hook(each)
    storage.save(tmp_path / "log.parquet")
    assert list(E.TableStorage.load(tmp_path / "log.parquet")) == rows(10, 20)
    core = parquet.read_table(tmp_path / "log.parquet")["core"].to_pylist()
    assert [r["timestamp"] for r in core] == [10, 20]


def test_a_category_that_is_no_utf8_is_saved(tmp_path: Path) -> None:
    """Parquet knows no lone surrogates: one in a category is kept as its escape, in other streams as it is."""
    pytest.importorskip("pyarrow.parquet")
    storage = E.TableStorage()
    storage.creation_hook({"core": E.CoreRecord(1, "caf\udce9", "start"), "id": "caf\udce9"})
    storage.save(tmp_path / "log.parquet")
    (read,) = E.TableStorage.load(tmp_path / "log.parquet")
    assert read["core"].category == r"caf\udce9" and read["id"] == "caf\udce9"


def test_section_7_2_foreign_files_are_refused(tmp_path: Path) -> None:
    """Neither other bytes nor another Parquet file is a table of ours."""
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (tmp_path / "bytes").write_bytes(b"no parquet")
    parquet.write_table(arrow.table({"a": [1]}), tmp_path / "other")
    for name in ("bytes", "other"):
        with pytest.raises(LogFormatError, match=name):
            E.TableStorage.load(tmp_path / name)


def test_section_7_2_bad_tables_and_slices_are_refused() -> None:
    """What is no table, and what is no slice of times."""
    for bad in ({}, "x", 3):
        with pytest.raises(InvalidOptionError):
            E.TableStorage(bad)
    storage = E.TableStorage()
    for bad_slice in (3, slice(1, 2, 3)):
        with pytest.raises(InvalidOptionError):
            storage[bad_slice]  # type: ignore[index]


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without pyarrow, saving says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"otel-timespan\[viz\]"):
        E.TableStorage().save(tmp_path / "x")
    assert table_module._EXTRA == "viz"


def test_section_7_2_as_a_handler_of_a_window() -> None:
    """The table keeps what the window has dropped."""
    clock = [0]
    storage = E.TableStorage()
    log = log_with(E.LogWindow(10, creation_handlers=[storage], clock=lambda: clock[0]))
    for t in (0, 5, 50):
        clock[0] = t
        write(log, t)
        log._journal.drain()
    assert T.get_logs(log)[1]["id"] == [50]
    assert [r["id"] for r in storage[0:5]] == [0, 5]
