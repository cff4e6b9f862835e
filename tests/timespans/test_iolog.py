"""spec/timespans.md §4: events in a file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import timespans as T
from otel_timespan.errors import InvalidOptionError, LogFormatError, LogNotKeptError
from otel_timespan.timespans.codec import LoggedFunction, LoggedObject, LoggedType, decode, encode
from otel_timespan.timespans.eventfile import FORMAT

EVENTS = [
    T.Event("start", "add_thunk", T.EventId(thunk_id=1), T.Timeline(f=len, args=((1, T.TaskRef(0)),)), 10),
    T.Event("finish", "compute", T.EventId(thunk_id=1, processor=("p", 1)), T.Timeline(result=[1, None]), 20, worker=2),
    T.Event("finish", "c", 1, T.ChunkInfo(5, None, list, 2), 30, T.GCNum(allocd=3), T.ProfilerResult((1,), {}, (2,))),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole file with EVENTS."""
    path = tmp_path / "log.jsonl"
    with T.IOLog(path) as log:
        for event in EVENTS:
            T.write_event(log, event)
    return path


def spoil(path: Path, old: str, new: str) -> None:
    """Replace something in the file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_section_4_events_are_read_back(path: Path) -> None:
    """All fields come back, functions as descriptions."""
    first, second, third = T.read_events(path)
    assert first.timeline.f.__name__ == "len" and isinstance(first.timeline.f, LoggedFunction)
    assert first._replace(timeline=None) == EVENTS[0]._replace(timeline=None)
    assert (second, third) == (EVENTS[1], EVENTS[2])


def test_section_4_a_context_may_log_into_a_file(tmp_path: Path) -> None:
    """timespan_start and finish through an IOLog, compressed."""
    path = tmp_path / "log.jsonl.gz"
    with T.IOLog(path) as log:
        with T.span(SimpleNamespace(log_sink=log), "c", T.EventId(n=1), {"k": (1, 2)}):
            pass
        log.flush()
        assert log.written == 2
        with pytest.raises(LogNotKeptError):
            T.get_logs(log)
    assert [(e.phase, e.timeline) for e in T.read_events(path)] == [("start", {"k": (1, 2)}), ("finish", {"k": (1, 2)})]


def test_section_13_a_plain_file_is_a_sink() -> None:
    """An open file gets a header and lines; it ends early, since nobody closed the log."""
    file = io.StringIO()
    for event in EVENTS:
        T.write_event(file, event)
    file.seek(0)
    assert len(T.read_events(file, partial=True)) == 3
    file.seek(0)
    with pytest.raises(LogFormatError, match="line 5: the last line is missing"):
        T.read_events(file)


def test_a_file_of_the_caller_s_is_not_closed() -> None:
    """Text and binary files both work and stay open."""
    for file in (io.StringIO(), io.BytesIO()):
        log = T.IOLog(file)  # type: ignore[arg-type]
        log.write_event(EVENTS[1])
        log.close()
        log.close()
        log.write_event(EVENTS[1])
        file.seek(0)
        assert T.read_events(file) == [EVENTS[1]]  # type: ignore[arg-type]


@pytest.mark.parametrize("file", [3, None, object()])
def test_no_file_is_refused(file: Any) -> None:
    """At once."""
    with pytest.raises(InvalidOptionError):
        T.IOLog(file)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_truncated_file_names_the_line(path: Path, size: int) -> None:
    """Cut off anywhere in the last lines: an error with line and cure, or what is intact with partial=True."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-size])
    if size == 1:  # only the newline is missing: all is there
        assert len(T.read_events(path)) == 3
        return
    with pytest.raises(LogFormatError, match=r"log\.jsonl, line [45]: .*partial=True"):
        T.read_events(path)
    assert len(T.read_events(path, partial=True)) in (2, 3)


def test_every_cut_is_noticed(path: Path) -> None:
    """Whatever length is left, a cut file is an error and never an exception of another type."""
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LogFormatError):
            T.read_events(path)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('["start"', '["begin"', "line 2: this is no event .*begin.*damaged"),
        ('["start"', "[[[[", "line 2: .*damaged"),
        ('"$":"id"', '"$":"os.system"', "line 2: .*unknown kind"),
        ('"$":"id","fields"', '"$":"id","felds"', "line 2: .*missing key"),
        ('{"end": 3}', '{"end": 4}', "line 5: 4 events were written but 3"),
        ('"version": 1', '"version": 2', "line 1: version 2 .*release"),
        (FORMAT, "something-else", "line 1: no log of ours"),
    ],
)
def test_damage_is_named(path: Path, old: str, new: str, match: str) -> None:
    """The message has the file, the line and what to do."""
    spoil(path, old, new)
    with pytest.raises(LogFormatError, match=match):
        T.read_events(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"PAR1", b"{}\n", b"[]\n", b"[" * 200_000, b'"x"\n'])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, pickled, binary or other JSON: line 1 is no header of ours."""
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(LogFormatError, match="line 1"):
        T.read_events(path)


def test_a_damaged_archive_is_refused(path: Path, tmp_path: Path) -> None:
    """A .gz that is none, or that is cut off."""
    import gzip

    plain, cut = tmp_path / "a.gz", tmp_path / "b.gz"
    plain.write_bytes(path.read_bytes())
    cut.write_bytes(gzip.compress(path.read_bytes())[:-12])
    for damaged in (plain, cut):
        with pytest.raises(LogFormatError):
            T.read_events(damaged)


LINE = '["start","compute",{"$":"id","fields":{"task_id":1}},null,5,1]\n'


HEADER = '{"format":"otel-timespan-log","version":1}\n'


@pytest.mark.parametrize("more", [LINE, '{"end": 3}\n', "\n", "x", HEADER])
@pytest.mark.parametrize("partial", [True, False])
def test_nothing_may_follow_the_last_line(path: Path, more: str, partial: bool) -> None:
    """Two logs in one file, or two writers of it, are told, and not read as the first of them."""
    with path.open("a") as file:
        file.write(more)
    with pytest.raises(LogFormatError, match="line 6: it goes on after its last line"):
        T.read_events(path, partial=partial)


@pytest.mark.parametrize(
    "old_new",
    [('"end": 3', '"end": true'), ('"end": 3', '"end": 3.0'), (",1]", ",1e3]"), (",1]", f",{1 << 63}]")],
)
def test_odd_numbers_are_refused(path: Path, old_new: tuple[str, str]) -> None:
    """Counts, times and workers are integers, of 64 bits."""
    spoil(path, *old_new)
    with pytest.raises(LogFormatError, match="this is no event"):
        T.read_events(path)


@pytest.mark.parametrize("kind", ["list", "lines", "text", "blank"])
def test_an_archive_that_expands_beyond_measure_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """Some 15 KB that hold 15 MB (and 300 MB as values) cost a few MB to refuse."""
    import gzip
    import tracemalloc

    made = {
        "list": '["start","compute",null,[' + "[]," * 5_000_000 + "[]],5,1]\n",
        "lines": LINE * 250_000,
        "text": f'["start","{"x" * 15_000_000}",null,null,5,1]\n',
        "blank": " " * 15_000_000,
    }
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(HEADER.encode() + made.pop(kind).encode() + b'{"end": 1}\n')
    tracemalloc.start()
    try:
        with gzip.open(path, "rt") as opened:
            for source in (path, opened):
                with pytest.raises(LogFormatError, match=r"the archive holds more than 100 times its own size"):
                    T.read_events(source)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_log_of_many_equal_events_is_no_bomb(tmp_path: Path) -> None:
    """What an `IOLog` wrote is read, however well it could be packed."""
    path = tmp_path / "log.jsonl.gz"
    with T.IOLog(path) as log:
        for moment in range(50_000):
            log.write_event(T.Event("start", "compute", T.EventId(task_id=1), None, moment))
    assert len(T.read_events(path)) == 50_000


@pytest.mark.parametrize("size", [1, 30])
def test_a_partly_read_archive_says_how_much(tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int) -> None:
    """With `partial=True` what is whole is given, and the log line has its number and where it ends."""
    import gzip

    text = HEADER + LINE * 100
    packed = bytearray(gzip.compress(text.encode()))
    (cut := tmp_path / "cut.gz").write_bytes(packed[:-size])
    packed[-6] ^= 0xFF  # in the checksum
    (damaged := tmp_path / "damaged.gz").write_bytes(packed)
    with caplog.at_level("INFO", "otel_timespan"):
        assert len(T.read_events(cut, partial=True)) <= 100
        assert len(T.read_events(damaged, partial=True)) == 100
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "damaged.gz: 100 events were read; what follows, from line 102 on" in caplog.text
    with pytest.raises(LogFormatError, match="compressed data is damaged"):
        T.read_events(damaged)
    with pytest.raises(LogFormatError, match="cut off"):
        T.read_events(cut)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    """It costs itself, and is counted."""
    path = tmp_path / "log.jsonl"
    with T.IOLog(path) as log:
        log.write_event(T.Event("start", "compute", T.EventId(a=1), None, 1 << 70))
        log.write_event(T.Event("start", "compute", T.EventId(a=1), ["x" * (17 << 20)], 1))
        log.write_event(T.Event("start", "compute", T.EventId(a=1), None, 1))
        log.flush()
        assert (log.written, log.lost) == (1, 2)
    assert len(T.read_events(path)) == 1


def test_deep_nesting_is_refused(path: Path) -> None:
    """A hostile file can't exhaust the stack."""
    deep = '{"$":"tuple","items":[' * 100_000
    with path.open("a") as file:
        file.write(f'["start","c",{deep}\n')
    spoil(path, '{"end": 3}\n', "")
    with pytest.raises(LogFormatError, match="line 5"):
        T.read_events(path)


def test_a_disk_that_is_full_costs_events_and_not_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """Writing fails: one warning, the count of lost events, no exception."""

    class Full(io.StringIO):
        full = False

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    file = Full()
    log = T.IOLog(file)
    file.full = True
    for event in EVENTS:
        log.write_event(event)
    log.flush()
    assert (log.written, log.lost) == (0, 3)
    assert len(caplog.records) == 1
    file.full = False
    log.close()


def test_what_can_t_be_made_again_is_described() -> None:
    """Objects, classes and exceptions come back as descriptions; a repr that raises does no harm."""

    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    assert decode(encode(int)) is int
    assert isinstance(decode(encode(Bad)), LoggedType) and decode(encode(Bad)).__name__ == "Bad"
    assert repr(decode(encode(ValueError("x")))) == "ValueError('x')"
    described = decode(encode(Bad()))
    assert isinstance(described, LoggedObject) and "repr raised RuntimeError" in described.text
    function = decode(encode(spoil))
    assert function.__qualname__ == "spoil" and function.__code__.co_filename.endswith("test_iolog.py")
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    assert json.dumps(encode(cyclic))


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
HASHABLE = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
        | st.builds(lambda v: T.EventId(a=v), HASHABLE)
        | st.builds(lambda v: T.Timeline(a=v), inner)
        | st.builds(T.ValueInfo, st.just(list), st.integers(), st.integers())
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_values_survive_the_file(value: Any) -> None:
    """What is written comes back equal and of the same type (NaN, equal to nothing, as NaN)."""
    back = decode(json.loads(json.dumps(encode(value))))
    assert type(back) is type(value)
    if "nan" in repr(value):
        assert "nan" in repr(back)
    else:
        assert back == value
