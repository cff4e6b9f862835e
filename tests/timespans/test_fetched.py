"""A fetched stream is a list: whatever is done with it, its rows being made when they are read makes no difference."""

from __future__ import annotations

import copy
import functools
import heapq
import json
import operator
import os
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import events as E
from otel_timespan import timespans as T
from otel_timespan.errors import UnreadRowsError
from otel_timespan.timespans.fetched import UNREAD, LoggedList
from otel_timespan.timespans.reading import StreamView


@functools.cache
def rows_of(events: int, segments: int) -> StreamView:
    """The ids of so many events, not read yet."""
    log = T.MultiEventLog()
    log["id"] = E.IDMetrics()
    for n in range(segments * events):
        log.write_event(T.Event("start", "c", n % 100))
        if n % events == events - 1:
            log.flush()
    stream = T.get_logs(log)[1]["id"]
    assert type(stream) is LoggedList and stream.view is not None
    return stream.view


def fetched(events: int = 3000, segments: int = 5) -> tuple[LoggedList, list[Any]]:
    """The ids of many events, as they are fetched, and the list that they should be."""
    return LoggedList(rows_of(events, segments)), [n % 100 for n in range(segments * events)]


def is_unread(stream: LoggedList) -> bool:
    """Whether its rows are still to be made."""
    return list.__len__(stream) == 3 and list.__getitem__(stream, 0) is UNREAD


READS: dict[str, Callable[[Any], Any]] = {
    "len": len,
    "bool": bool,
    "list": list,
    "tuple": tuple,
    "copy": lambda s: s.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "sorted": sorted,
    "sum": sum,
    "max": max,
    "repr": repr,
    "str": str,
    "json": json.dumps,
    "json, indented": lambda s: json.dumps({"a": s}, indent=1),
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "old pickle": lambda s: pickle.loads(pickle.dumps(s, 0)),
    "reversed": lambda s: list(reversed(s)),
    "plus": lambda s: s.__add__([1]),
    "from the right": lambda s: operator.add([1], s),
    "plus itself": lambda s: s + s,
    "times": lambda s: (s * 2, 2 * s),
    "count": lambda s: s.count(3),
    "index": lambda s: s.index(7, 50),
    "in": lambda s: (5 in s, "x" in s),
    "unpacked": lambda s: [*s, *s],
    "first": lambda s: s[0],
    "last": lambda s: s[-1],
    "slice": lambda s: s[2990:6010],
    "steps": lambda s: s[::-997],
    "zip": lambda s: list(zip(s, s, strict=True)),
    "extended": lambda s: operator.iadd([0], s),
    "less": lambda s: (s < [5], s > [5], s <= [0], s >= [0]),
    "match": lambda s: (lambda a, *rest, b: (a, b, len(rest)))(s[0], *s[1:-1], b=s[-1]),
    "join": lambda s: "".join(map(str, s)),
    "isinstance": lambda s: isinstance(s, list),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_gives_what_a_list_gives(read: Callable[[Any], Any]) -> None:
    """Values and types are a list's, and the rows are made again the next time."""
    stream, rows = fetched(300)
    assert read(stream) == read(rows) and type(read(stream)) is type(read(rows))
    assert is_unread(stream)


@pytest.mark.parametrize(
    "wrong", [lambda s: s[len(s)], lambda s: s[-len(s) - 1], lambda s: s["a"], hash, lambda s: s + 1]
)
def test_errors_are_a_list_s(wrong: Callable[[Any], Any]) -> None:
    """The same type of error."""
    stream, rows = fetched(10, 1)
    with pytest.raises(Exception) as theirs:
        wrong(rows)
    with pytest.raises(theirs.type):
        wrong(stream)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "append": lambda s: s.append(-1),
    "extend": lambda s: s.extend([1, 2]),
    "extend by itself": lambda s: s.extend(s),
    "insert": lambda s: s.insert(3, -1),
    "pop": lambda s: (s.pop(), s.pop(0)),
    "remove": lambda s: s.remove(7),
    "clear": lambda s: s.clear(),
    "reverse": lambda s: s.reverse(),
    "sort": lambda s: s.sort(key=lambda n: -n),
    "set": lambda s: s.__setitem__(5, -1),
    "set slice": lambda s: s.__setitem__(slice(2, 900), [-1]),
    "del": lambda s: s.__delitem__(slice(None, 700)),
    "iadd": lambda s: operator.iadd(s, [1]),
    "imul": lambda s: operator.imul(s, 2),
    "shuffle": lambda s: random.Random(1).shuffle(s),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_a_list_s(change: Callable[[Any], Any]) -> None:
    """It is the caller's: afterwards it is a list with its rows in place."""
    stream, rows = fetched(300)
    assert change(stream) == change(rows)
    assert stream == rows and list.__eq__(stream, rows) and not is_unread(stream)
    for read in READS.values() if rows else ():
        assert read(stream) == read(rows)


_places = st.integers(-15_100, 15_100)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(_places, _places, st.sampled_from([1, -1, 3, -7])), max_size=9))
def test_slices_are_a_list_s(keys: list[tuple[int, int, int]]) -> None:
    """Any start, end and step, within a segment and across."""
    stream, rows = fetched()
    for start, end, step in keys:
        assert stream[start:end:step] == rows[start:end:step]
        assert stream[start::step] == rows[start::step] and stream[:end:step] == rows[:end:step]


def test_who_jumps_to_and_fro_gets_the_rows_in_place() -> None:
    """Reading one row makes those of its segment; who does so again and again doesn't pay for it each time."""
    stream, rows = fetched(segments=12)
    pick = random.Random(1)
    places = [pick.randrange(len(rows)) for _ in range(500)]
    assert [stream[n] for n in places] == [rows[n] for n in places]
    assert not is_unread(stream) and stream == rows


def test_past_its_methods_there_is_no_empty_list() -> None:
    """What C code finds that takes it for a plain list says what to do."""
    stream, _ = fetched(10, 1)
    assert list.__len__(stream) > 0 and "list(stream)" in repr(list.__getitem__(stream, 0))
    with pytest.raises(TypeError):
        json.dumps(list.__getitem__(stream, 0))


PAST: dict[str, Callable[[Any], Any]] = {
    "heapify": heapq.heapify,
    "heappush": lambda s: heapq.heappush(s, 1),
    "heappop": heapq.heappop,
    "heapreplace": lambda s: heapq.heapreplace(s, 1),
    "heappushpop": lambda s: heapq.heappushpop(s, 1),
    "sort": lambda s: list.sort(s),
    "sort by texts": lambda s: list.sort(s, key=str),
    "count": lambda s: list.count(s, 3),
    "index": lambda s: list.index(s, 3),
    "encoded as text": lambda s: json.dumps(list.copy(s), default=str),
    "pickled": lambda s: pickle.dumps(list.copy(s)),
    "joined": lambda s: ", ".join(f"{row}" for row in list.copy(s)),
}


@pytest.mark.parametrize("use", PAST.values(), ids=PAST)
def test_what_goes_past_its_methods_fails_with_a_clear_text(use: Callable[[Any], Any]) -> None:
    """Not one wrong value, and the rows are still there."""
    stream, rows = fetched(10, 1)
    with pytest.raises(UnreadRowsError, match=r"list\(stream\)"):
        use(stream)
    assert stream == rows


def test_numpy_pandas_and_pyarrow_take_streams() -> None:
    """Whichever way they look at lists, they see the rows."""
    numpy, pandas, pyarrow = map(pytest.importorskip, ("numpy", "pandas", "pyarrow"))
    stream, rows = fetched(300)
    assert numpy.array(stream).tolist() == rows and numpy.asarray(stream, dtype=object).tolist() == rows
    assert pandas.Series(stream).tolist() == rows
    assert pandas.DataFrame({"id": stream, "n": range(len(rows))})["id"].tolist() == rows
    assert pyarrow.array(stream).to_pylist() == rows and pyarrow.table({"id": stream})["id"].to_pylist() == rows
    assert pyarrow.array(stream, pyarrow.float32()).type == pyarrow.float32()
    assert is_unread(stream)


def test_pyarrow_takes_core_records_by_columns() -> None:
    """As structs, the same before and after the rows are in place, in a type that is asked for, and in Parquet."""
    pyarrow = pytest.importorskip("pyarrow")
    stream = T.MultiEventLog()
    stream["core"] = E.CoreMetrics()
    for n in range(100):
        stream.write_event(T.Event("start" if n % 3 else "finish", f"c{n % 7}", n, None, n))
    core = T.get_logs(stream)[1]["core"]
    rows = [dict(row) for row in core]
    made = pyarrow.array(core)
    assert is_unread(core) and made.to_pylist() == rows and made.equals(pyarrow.array(rows))
    kind = pyarrow.struct([(name, pyarrow.string()) for name in ("timestamp", "category", "kind")])
    assert pyarrow.array(core, kind).to_pylist() == [{**row, "timestamp": str(row["timestamp"])} for row in rows]
    assert made.equals(pyarrow.array(core.filled()))


@pytest.mark.parametrize("category", [7, None, "a\udce9b"])
def test_pyarrow_is_told_by_rows_where_a_category_is_no_text(category: Any) -> None:
    """It takes, or refuses, what it would of the rows."""
    pyarrow = pytest.importorskip("pyarrow")
    log = T.MultiEventLog()
    log["core"] = E.CoreMetrics()
    log.write_event(T.Event("start", category, 1, None, 1))
    core = T.get_logs(log)[1]["core"]
    results = []
    for rows in (core, [dict(row) for row in core]):
        try:
            results.append(pyarrow.array(rows).to_pylist())
        except (TypeError, ValueError) as error:
            results.append(type(error))
    assert results[0] == results[1]


def test_streams_are_read_and_changed_by_many_threads() -> None:
    """Readers see the rows whatever moment another thread puts them in place."""
    stream, rows = fetched(300)
    start, wrong = threading.Barrier(5), []

    def read(n: int) -> None:
        start.wait()
        for at in range(n, len(rows), 97):
            if stream[at] != rows[at] or len(stream) < len(rows):
                wrong.append(at)
        if list(stream)[: len(rows)] != rows:
            wrong.append("all")

    def change() -> None:
        start.wait()
        stream.extend([1, 2, 3])

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)] + [threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and stream == [*rows, 1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_reads_what_was_fetched_before() -> None:
    """A fetched stream is the child's, too; what the log held is not."""
    log = T.MultiEventLog()
    log["id"] = E.IDMetrics()
    for n in range(100):
        log.write_event(T.Event("start", "c", n))
    stream = T.get_logs(log)[1]["id"]
    log.write_event(T.Event("start", "c", 100))
    log.flush()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        good = stream == list(range(100)) and T.get_logs(log)[1]["id"] == []
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert T.get_logs(log)[1]["id"] == [100]
