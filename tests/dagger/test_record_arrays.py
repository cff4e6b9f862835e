"""Arrays of the scheduler's records tell what their rows tell (timespans/arrays.py, records/arrays.py)."""

from __future__ import annotations

import random
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import events as E
from otel_timespan.timespans.arrays import ABSENT, FIELDS, ArrayReader
from otel_timespan.timespans.fetched import parts_together
from otel_timespan.timespans.segments import LogSegment
from tests.dagger.test_record_rows import random_program

pytest.importorskip("numpy")


def segments_of(seed: int) -> list[LogSegment]:
    """What a log keeps of a random program, of one or two workers."""
    log = ts.MultiEventLog()
    log["core"], log["id"] = E.CoreMetrics(), E.IDMetrics()
    with ts.Context(driver=D.InlineDriver({1: 2} if seed % 3 else {1: 2, 2: 1}, seed=seed)) as context:
        context.log_sink = log
        random_program(random.Random(seed), 60)
        context.log_sink = ts.NoOpLog()
    parts = [parts_together(streams["core"], streams["id"]) for streams in ts.get_logs(log).values()]
    assert len(parts) == (1 if seed % 3 else 2) and all(parts)
    return [segment for each in parts if each is not None for segment in each.segments]


def field(id: Any, name: str) -> Any:
    """A field of an id."""
    return id.get(name)


@pytest.mark.parametrize("seed", range(12))
def test_times_heads_and_ids_are_those_of_the_rows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the nanosecond; of ids each field that is told, and which of one category are the same."""
    monkeypatch.setattr(ArrayReader, "of_events", None)  # no segment is read event by event
    reader, same = ArrayReader(field), {}
    for segment in segments_of(seed):
        arrays, rows = reader.read(segment), segment.read()
        heads = list(reader.heads)
        assert arrays.times.tolist() == rows.times
        assert [heads[n] for n in arrays.heads] == list(zip(rows.categories, rows.phases, strict=True))
        for n, (id, category) in enumerate(zip(rows.ids, rows.categories, strict=True)):
            values = dict(zip(FIELDS, arrays.ids[:, n].tolist(), strict=True))
            told = {name: value for name, value in values.items() if value != ABSENT}
            if "processor" in told:
                told["processor"] = reader.processors[told["processor"]]
            assert told == {name: id[name] for name in told}
            assert told.get("thunk_id") == id.get("thunk_id")
            if arrays.layouts[n] != ABSENT:
                key = int(arrays.layouts[n]), *values.values()
                assert same.setdefault((category, id), key) == key
                assert same.setdefault((category, key), id) == id


def test_a_kind_that_is_not_told_by_arrays_is_read_event_by_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same times and ids."""
    segments = segments_of(3)
    whole = [ArrayReader(field).read(segment) for segment in segments]
    monkeypatch.setattr("otel_timespan.timespans.arrays._ways", {})
    for segment, before in zip(segments, whole, strict=True):
        again = ArrayReader(field).read(segment)
        assert again.times.tolist() == before.times.tolist()
        task = FIELDS.index("thunk_id")
        assert again.ids[task].tolist() == before.ids[task].tolist()
