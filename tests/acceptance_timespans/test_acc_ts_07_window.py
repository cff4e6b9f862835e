"""spec/timespans.md §7: LogWindow and TableStorage, with rulings 22 and 23."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import errors
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import BoomError, Ctx, start


def core(*times: int) -> list[Any]:
    """A core stream."""
    return [E.CoreRecord(t, "c", "start") for t in times]


class Handler:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.gone: list[int] = []

    def creation_hook(self, row: Any) -> None:
        """A new row."""
        self.rows.append(row)

    def deletion_hook(self, n: int) -> None:
        """The first n entries go."""
        self.gone.append(n)


def window(now: Any, length: int, **more: Any) -> tuple[E.LogWindow, Handler]:
    """A window with a fixed clock, and its handler."""
    handler = Handler()
    clock = now if callable(now) else lambda: now
    return E.LogWindow(length, creation_handlers=[handler], deletion_handlers=[handler], clock=clock, **more), handler


class TestDirect:
    """§7.1, called with lists."""

    def test_7_1_accept_fixed_clock(self) -> None:
        """0, 50, 90, now 100, window 30: the deletion hook gets 2, one entry (90) stays (defect 5)."""
        lw, handler = window(100, 30)
        logs = {"core": core(0, 50, 90), "id": ["a", "b", "c"]}
        lw(logs)
        assert handler.gone == [2]
        assert (list(logs["core"]), list(logs["id"])) == (core(90), ["c"])

    def test_7_1_row_is_the_last_entries(self) -> None:
        """One row a call: {stream: last value}."""
        lw, handler = window(100, 1000)
        lw({"core": core(0, 50), "id": ["a", "b"]})
        assert [dict(r) for r in handler.rows] == [{"core": core(50)[0], "id": "b"}]
        assert handler.gone == []

    def test_7_1_all_outside(self) -> None:
        """None inside: all go, and the lists are empty."""
        lw, handler = window(1000, 30)
        logs = {"core": core(0, 50, 90), "id": [1, 2, 3]}
        lw(logs)
        assert handler.gone == [3]
        assert (list(logs["core"]), list(logs["id"])) == ([], [])

    def test_7_1_the_edge_stays(self) -> None:
        """Only what is older than the start of the window goes."""
        lw, handler = window(100, 30)
        logs = {"core": core(69, 70, 71)}
        lw(logs)
        assert handler.gone == [1]
        assert list(logs["core"]) == core(70, 71)

    def test_7_1_empty(self) -> None:
        """No entries: no row, nothing dropped."""
        lw, handler = window(100, 30)
        lw({"core": [], "id": []})
        assert (handler.rows, handler.gone) == ([], [])

    def test_7_1_none_padding(self) -> None:
        """None in the core stream is tolerated; lists stay equal in length and what is inside stays."""
        lw, handler = window(100, 30)
        logs = {"core": [None, *core(0), None, *core(90)], "id": [1, 2, 3, 4]}
        lw(logs)
        assert len(logs["core"]) == len(logs["id"]) == 4 - sum(handler.gone)
        assert list(logs["id"])[-1] == 4
        assert sum(handler.gone) >= 2
        logs = {"core": [None, None], "id": [1, 2]}
        lw(logs)
        assert len(logs["core"]) == len(logs["id"])

    def test_7_1_other_core_name(self) -> None:
        """`core_name` says which stream has the timestamps."""
        lw, handler = window(100, 30, core_name="when")
        logs = {"when": core(0, 90), "id": [1, 2]}
        lw(logs)
        assert handler.gone == [1]

    def test_7_1_hook_before_the_drop(self) -> None:
        """Creation, then deletion hook, then the entries go."""
        order: list[Any] = []
        logs = {"core": core(0, 90)}
        lw = E.LogWindow(
            30,
            creation_handlers=[lambda row: order.append("row")],
            deletion_handlers=[lambda n: order.append((n, len(logs["core"])))],
            clock=lambda: 100,
        )
        lw(logs)
        assert order == ["row", (1, 2)]

    def test_7_1_several_handlers(self) -> None:
        """All handlers are called, objects and functions; attributes may be appended to."""
        rows: list[Any] = []
        lw, handler = window(100, 30)
        lw.creation_handlers.append(rows.append)
        lw({"core": core(90)})
        assert len(rows) == len(handler.rows) == 1

    def test_7_1_a_handler_without_hooks(self) -> None:
        """Hooks default to no-ops."""

        class Half:
            def creation_hook(self, row: Any) -> None: ...

        lw = E.LogWindow(30, creation_handlers=[Half()], deletion_handlers=[Half()], clock=lambda: 100)
        logs = {"core": core(0, 90)}
        lw(logs)
        assert len(logs["core"]) == 1

    def test_7_1_a_handler_that_raises(self) -> None:
        """It breaks neither the window nor the other handlers."""

        def bad(x: Any) -> None:
            raise BoomError

        handler = Handler()
        lw = E.LogWindow(30, creation_handlers=[bad, handler], deletion_handlers=[bad, handler], clock=lambda: 100)
        logs = {"core": core(0, 90)}
        lw(logs)
        assert (len(handler.rows), handler.gone, len(logs["core"])) == (1, [1], 1)

    @pytest.mark.parametrize("bad", [-1, "20", None, float("nan")])
    def test_7_1_bad_length(self, bad: Any) -> None:
        """A bad length is an InvalidOptionError."""
        with pytest.raises(errors.InvalidOptionError):
            E.LogWindow(bad)

    def test_7_1_bad_handler(self) -> None:
        """A handler that can't be called is refused at once."""
        with pytest.raises(errors.TimespanError):
            E.LogWindow(30, creation_handlers=[5])

    def test_7_1_init_similar(self) -> None:
        """Ruling 23: a twin has the same length; a state of its own."""
        lw, _ = window(100, 30)
        twin = T.init_similar(lw)
        assert isinstance(twin, E.LogWindow)
        assert twin is not lw
        logs = {"core": core(0, 50, 90)}
        twin(logs)
        assert list(logs["core"]) == core(90)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(0, 100))
    def test_7_1_drops_exactly_the_older_ones(self, steps: list[int], length: int) -> None:
        """With ascending times, after each event the lists hold exactly what is not older; hooks account for all."""
        now, all_times = 0, []
        lw, handler = window(lambda: now, length)
        logs: dict[str, list[Any]] = {"core": [], "id": []}
        for i, step in enumerate(steps):
            now += step
            all_times.append(now)
            logs["core"].append(core(now)[0])
            logs["id"].append(i)
            lw(logs)
            kept = [t for t in all_times if t >= now - length]
            assert [c.timestamp for c in logs["core"]] == kept
            assert sum(handler.gone) == len(all_times) - len(kept)
            assert list(logs["id"]) == list(range(len(all_times) - len(kept), len(all_times)))
        assert [r["id"] for r in handler.rows] == list(range(len(steps)))


class TestInALog:
    """§7.1 in a MultiEventLog."""

    def log(self, lw: Any, **more: Any) -> T.MultiEventLog:
        """With core and id."""
        log = T.MultiEventLog(**more)
        log["core"], log["id"] = E.CoreMetrics(), E.IDMetrics()
        log.aggregators["lw"] = lw
        return log

    def test_7_1_accept_large_window(self) -> None:
        """Three events: three rows with all stream names, no deletion before the fetch."""
        lw, handler = window(100, 1000)
        log = self.log(lw)
        for i in range(3):
            T.write_event(log, start("c", i, i))
        got = T.get_logs(log)
        assert [set(r) for r in handler.rows] == [{"core", "id"}] * 3
        assert [r["id"] for r in handler.rows] == [0, 1, 2]
        assert got[1]["id"] == [0, 1, 2]
        assert sum(handler.gone) in (0, 3)  # 3: told of the fetch itself, as LogWindow's docstring says

    def test_7_1_accept_fixed_clock(self) -> None:
        """Timestamps 0, 50, 90 in a log."""
        lw, _ = window(100, 30)
        log = self.log(lw)
        for i, t in enumerate((0, 50, 90)):
            T.write_event(log, start("c", i, t))
        assert T.get_logs(log)[1]["id"] == [2]

    def test_7_1_late_consumer(self) -> None:
        """A consumer that comes late is padded, and the rows have it."""
        lw, handler = window(100, 1000)
        log = self.log(lw)
        T.write_event(log, start("c", 0, 1))
        log["late"] = E.IDMetrics()
        T.write_event(log, start("c", 1, 2))
        assert T.get_logs(log)[1] == {"core": core(1, 2), "id": [0, 1], "late": [None, 1]}
        assert set(handler.rows[-1]) == {"core", "id", "late"}

    def test_7_1_late_core(self) -> None:
        """The core stream may itself be late: None padding breaks nothing."""
        lw, handler = window(100, 30)
        log = T.MultiEventLog()
        log["id"] = E.IDMetrics()
        log.aggregators["lw"] = lw
        T.write_event(log, start("c", 0, 1))
        log["core"] = E.CoreMetrics()
        for i in (1, 2, 3):
            T.write_event(log, start("c", i, 30 * i))
        got = T.get_logs(log)[1]
        assert got["id"][-1] == 3
        assert len(got["id"]) == len(got["core"]) <= 3
        assert [r["id"] for r in handler.rows] in ([0, 1, 2, 3], [1, 2, 3])

    def test_7_1_memory_is_flat(self) -> None:
        """300,000 events through a window of 1,000: the lists never hold much more than the window."""
        n, inside, longest = 300_000, 1_000, 0
        lw, handler = window(lambda: now, inside)
        log = self.log(lw)

        def watch(lists: dict[str, list[Any]]) -> None:
            nonlocal longest
            longest = max(longest, *(len(v) for v in lists.values()))

        log.aggregators["watch"] = watch
        now = 0
        for i in range(n):
            now = i
            T.write_event(log, start("c", i, i))
        got = T.get_logs(log)[1]
        assert longest <= 2 * inside
        assert got["id"] == list(range(n - inside - 1, n))
        assert len(handler.rows) == n
        assert sum(handler.gone) in (n - inside - 1, n)

    def test_7_1_mirror_under_threads(self) -> None:
        """A mirror built by the hooks equals the lists at the end, with several writers, fetches and max_events."""
        mirror: list[Any] = []
        lw = E.LogWindow(
            10**15,
            creation_handlers=[lambda r: mirror.append(r["id"])],
            deletion_handlers=[lambda n: mirror.__delitem__(slice(n))],
        )
        log = self.log(lw, max_events=100)
        ctx = Ctx(log)

        def work(k: int) -> None:
            for i in range(500):
                T.timespan_start(ctx, "c", (k, i), None)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        got = T.get_logs(log)[1]["id"]
        assert len(got) == 100
        assert mirror in ([], got)


KINDS = ["list", "pandas", "pyarrow"]


def table(kind: str) -> Any:
    """An empty inner table."""
    if kind == "list":
        return []
    if kind == "pandas":
        return pytest.importorskip("pandas").DataFrame()
    pa = pytest.importorskip("pyarrow")
    fields = [("timestamp", pa.int64()), ("category", pa.string()), ("kind", pa.string())]
    return pa.schema([("core", pa.struct(fields)), ("v", pa.int64())])


def filled(kind: str) -> E.TableStorage:
    """Rows at 10, 20, 30."""
    storage = E.TableStorage(table(kind))
    for i, record in enumerate(core(10, 20, 30)):
        storage.creation_hook({"core": record, "v": i})
    return storage


def values(rows: Any) -> list[int]:
    """Column v of a table of any kind."""
    if isinstance(rows, list):
        return [row["v"] for row in rows]
    column = rows["v"]
    return [int(v) for v in (column.to_pylist() if hasattr(column, "to_pylist") else column)]


class TestTableStorage:
    """§7.2."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_7_2_accept_range(self, kind: str) -> None:
        """10, 20, 30: `[10:20]` has two rows; both ends included; `range` is the same."""
        storage = filled(kind)
        assert values(storage[10:20]) == [0, 1]
        assert values(storage.range(10, 20)) == [0, 1]
        assert values(storage[11:19]) == []
        assert values(storage[30:30]) == [2]
        assert values(storage[0:100]) == values(storage.table) == [0, 1, 2]
        assert type(storage[10:20]) is type(storage.table)

    @pytest.mark.parametrize("kind", KINDS)
    def test_7_2_open_ends(self, kind: str) -> None:
        """A missing end of the slice is no bound."""
        storage = filled(kind)
        assert values(storage[20:]) == [1, 2]
        assert values(storage[:20]) == [0, 1]

    @pytest.mark.parametrize("kind", KINDS)
    def test_7_2_init_similar(self, kind: str) -> None:
        """Empty, with the same columns."""
        storage = filled(kind)
        twin = T.init_similar(storage)
        assert len(twin.table) == 0
        if kind != "list":
            names = getattr(twin.table, "column_names", None) or list(twin.table.columns)
            assert list(names) == ["core", "v"]
        twin.creation_hook({"core": core(5)[0], "v": 7})
        assert values(twin.table) == [7]
        assert values(storage.table) == [0, 1, 2]

    @pytest.mark.parametrize("kind", KINDS)
    def test_7_2_other_columns(self, kind: str) -> None:
        """A row whose streams are not the columns is an error of ours, and the table stays as it was."""
        storage = filled(kind)
        with pytest.raises(errors.InvalidOptionError):
            storage.creation_hook({"core": core(40)[0], "v": 4, "late": 1})
        assert values(storage.table) == [0, 1, 2]

    @pytest.mark.parametrize("bad", [5, "table", {"a": 1}, object()])
    def test_7_2_bad_table(self, bad: Any) -> None:
        """Another kind of table is refused at once."""
        with pytest.raises(errors.InvalidOptionError):
            E.TableStorage(bad)

    @pytest.mark.parametrize("kind", KINDS)
    def test_7_2_as_a_handler(self, kind: str) -> None:
        """In a log worker 1's object is filled; a consumer added later only stops the table, not the log."""
        storage = E.TableStorage(table(kind))
        log = T.MultiEventLog()
        log["core"], log["v"] = E.CoreMetrics(), E.IDMetrics()
        log.aggregators["lw"] = E.LogWindow(50, creation_handlers=[storage], clock=lambda: 100)
        for i, t in enumerate((10, 60, 100)):
            T.write_event(log, start("c", i, t))
        T.write_event(log, start("c", 9, 100, worker=2))
        got = T.get_logs(log)
        assert got[1]["v"] == [1, 2]
        assert values(storage.table) == [0, 1, 2]
        log["late"] = E.IDMetrics()
        T.write_event(log, start("c", 3, 100))
        assert T.get_logs(log)[1]["v"] == [3]
        assert values(storage.table)[:3] == [0, 1, 2]

    @pytest.mark.parametrize("kind", KINDS)
    def test_7_2_save_and_load(self, kind: str, tmp_path: Path) -> None:
        """A stored table can be saved and used later."""
        pytest.importorskip("pyarrow")
        filled(kind).save(tmp_path / "run.parquet")
        back = E.TableStorage.load(tmp_path / "run.parquet")
        assert values(back.table) == [0, 1, 2]
        assert values(back[10:20]) == [0, 1]

    def test_api_home_is_webdash(self) -> None:
        """api.md: `W.TableStorage`."""
        from otel_timespan import webdash as W

        assert W.TableStorage is E.TableStorage
