"""spec/timespans.md §4: sinks, files, LocalEventLog, with rulings 23, 24, 27 and docs/consumers.md."""

from __future__ import annotations

import functools
import io
import queue
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import otel_timespan as ts
from otel_timespan import errors
from otel_timespan import events as E
from otel_timespan import timespans as T
from tests.acceptance_timespans.acc_ts_support import BoomError, Ctx, finish, line, pair, start

X = T.EventId(thunk_id=1)


class TestSimpleSinks:
    """§4, the table."""

    def test_4_noop(self) -> None:
        """NoOpLog writes nothing; its log is None, keywords or not (defect 3)."""
        T.write_event(T.NoOpLog(), start("c", 1))
        assert T.get_logs(T.NoOpLog()) is None
        assert T.get_logs(T.NoOpLog(), raw=True, only_local=True, anything=3) is None
        assert T.NoOpLog() == T.NoOpLog()

    def test_4_list(self) -> None:
        """A list is appended to; it is no log to be fetched."""
        sink: list[T.Event] = []
        with T.span(Ctx(sink), "c", X, "tl"):
            pass
        assert [(e.phase, e.category, e.id, e.timeline) for e in sink] == [
            ("start", "c", X, "tl"),
            ("finish", "c", X, "tl"),
        ]
        with pytest.raises(errors.LogNotKeptError):
            T.get_logs(sink)
        assert len(sink) == 2

    def test_4_queue(self) -> None:
        """QueueLog puts each event."""
        q: queue.Queue[T.Event] = queue.Queue()
        with T.span(Ctx(T.QueueLog(q)), "c", X):
            pass
        assert [q.get_nowait().phase for _ in range(2)] == ["start", "finish"]
        with pytest.raises(errors.LogNotKeptError):
            T.get_logs(T.QueueLog(q))

    def test_4_filter(self) -> None:
        """FilterLog forwards iff `fn(event)`; get_logs is the inner one's, keywords passed on."""
        inner = T.LocalEventLog()
        log = T.FilterLog(lambda e: e.category == "yes", inner)
        for category in ("yes", "no"):
            with T.span(Ctx(log), category, X):
                pass
        assert [e.category for e in T.get_logs(log, raw=True)[1]] == ["yes", "yes"]

    def test_4_filter_as_a_callback(self) -> None:
        """A filter that does the work itself and returns False forwards nothing."""
        seen: list[T.Event] = []
        inner: list[T.Event] = []
        log = T.FilterLog(lambda e: seen.append(e), inner)
        with T.span(Ctx(log), "c", X):
            pass
        assert (len(seen), len(inner)) == (2, 0)

    def test_4_filter_errors_propagate(self) -> None:
        """FilterLog has no isolation: the emitter gets what the filter raises."""

        def fn(event: T.Event) -> bool:
            raise BoomError

        with pytest.raises(BoomError):
            T.write_event(T.FilterLog(fn, []), start("c", 1))
        with pytest.raises(BoomError):
            T.timespan_start(Ctx(T.FilterLog(fn, [])), "c", 1, None)

    def test_4_filter_over_filter(self) -> None:
        """Filters nest."""
        inner: list[T.Event] = []
        log = T.FilterLog(lambda e: e.phase == "start", T.FilterLog(lambda e: e.id == 2, inner))
        for i in range(4):
            with T.span(Ctx(log), "c", i):
                pass
        assert [(e.phase, e.id) for e in inner] == [("start", 2)]

    def test_24_tee(self) -> None:
        """TeeLog takes any number of sinks, plain lists included; its log is the first one kept."""
        a: list[T.Event] = []
        b: list[T.Event] = []
        ml = T.MultiEventLog()
        ml["id"] = E.IDMetrics()
        tee = T.TeeLog(a, T.FilterLog(lambda e: e.phase == "start", b), ml)
        with T.span(Ctx(tee), "c", X):
            pass
        assert (len(a), len(b)) == (2, 1)
        assert T.get_logs(tee)[1]["id"] == [X, X]
        T.TeeLog()
        with pytest.raises(errors.LogNotKeptError):
            T.get_logs(T.TeeLog(a, b))

    def test_4_own_sink_by_registration(self) -> None:
        """`write_event.register` serves foreign sinks."""
        seen: list[T.Event] = []

        class Sink:
            pass

        T.write_event.register(Sink, lambda sink, event: seen.append(event))
        with T.span(Ctx(Sink()), "c", X):
            pass
        assert len(seen) == 2

    def test_4_what_is_no_sink(self) -> None:
        """Writing to something that is no sink is an error of ours that names it."""
        with pytest.raises(errors.TimespanError, match="5"):
            T.write_event(5, start("c", 1))

    def test_4_get_logs_takes_a_context_too(self) -> None:
        """`get_logs(ctx)` is that of its sink."""
        ml = T.MultiEventLog()
        ml["id"] = E.IDMetrics()
        T.write_event(ml, start("c", 1))
        assert T.get_logs(Ctx(ml)) == {1: {"id": [1]}}


EVENTS = [
    start("compute", T.EventId(thunk_id=7, uid=3), 10, {"a": [1, 2.5, None, "ü"]}),
    finish("compute", T.EventId(thunk_id=7, uid=3), 25, "done", gc_num=T.GCNum(allocd=180, pause=2)),
    start("other", "plain id", 30, None, worker=2),
    finish("move", T.EventId(thunk_id=1, position="key"), 2**62, True),
]


def same(a: T.Event, b: T.Event) -> bool:
    """Whether two events tell the same."""
    names = ("phase", "category", "id", "timeline", "timestamp", "gc_num", "worker")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def written(path: Path, events: list[T.Event] = EVENTS) -> Path:
    """A file of these events."""
    with T.IOLog(path) as log:
        for event in events:
            T.write_event(log, event)
    return path


class TestFiles:
    """§4: the file-like sink (defect 2)."""

    @pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
    def test_4_read_back(self, tmp_path: Path, name: str) -> None:
        """What was written is read back equal, in order."""
        path = written(tmp_path / name)
        back = T.read_events(path)
        assert len(back) == len(EVENTS)
        assert all(map(same, EVENTS, back))
        assert all(map(same, EVENTS, T.read_events(str(path))))

    @pytest.mark.parametrize("make", [io.StringIO, io.BytesIO])
    def test_4_open_files(self, make: Any) -> None:
        """An open file, text or binary, is written to and left open."""
        file = make()
        log = T.IOLog(file)
        for event in EVENTS:
            T.write_event(log, event)
        log.close()
        assert not file.closed
        file.seek(0)
        assert all(map(same, EVENTS, T.read_events(file)))

    def test_4_as_a_context_sink(self, tmp_path: Path) -> None:
        """A context writes into it; spans match when read."""
        with T.IOLog(tmp_path / "a.jsonl") as log:
            for i in range(50):
                with T.span(Ctx(log), "c", T.EventId(thunk_id=i), i):
                    pass
            log.flush()
            assert len(T.read_events(tmp_path / "a.jsonl", partial=True)) == 100
        builder = T.build_timespans(T.read_events(tmp_path / "a.jsonl"))
        assert [s.timeline for s in builder.completed] == list(range(50))
        assert not builder.pending
        assert (log.written, log.lost) == (100, 0)

    def test_4_concurrent_writers(self, tmp_path: Path) -> None:
        """Writers in several threads lose nothing and mix no lines."""
        log = T.IOLog(tmp_path / "a.jsonl")

        def work(k: int) -> None:
            for i in range(300):
                with T.span(Ctx(log), "c", T.EventId(thread=k, n=i), None):
                    pass

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log.close()
        builder = T.build_timespans(T.read_events(tmp_path / "a.jsonl"))
        assert len(builder.completed) == 1200
        assert not builder.pending

    def test_4_no_fetch(self, tmp_path: Path) -> None:
        """`get_logs` is not supported; the error is ours."""
        with T.IOLog(tmp_path / "a.jsonl") as log, pytest.raises(errors.LogNotKeptError):
            T.get_logs(log)

    def test_4_close_is_idempotent_and_final(self, tmp_path: Path) -> None:
        """A second close does nothing; later events are dropped, not raised."""
        log = T.IOLog(tmp_path / "a.jsonl")
        T.write_event(log, EVENTS[0])
        log.close()
        log.close()
        T.write_event(log, EVENTS[1])
        assert len(T.read_events(tmp_path / "a.jsonl")) == 1

    def test_4_bad_files(self, tmp_path: Path) -> None:
        """No file: InvalidOptionError; a path that can't be opened: OSError."""
        with pytest.raises(errors.InvalidOptionError):
            T.IOLog(5)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="missing"):
            T.IOLog(tmp_path / "missing" / "a.jsonl")
        with pytest.raises(OSError, match="nothing"):
            T.read_events(tmp_path / "nothing.jsonl")

    def test_4_any_payload_is_described(self, tmp_path: Path) -> None:
        """Functions, exceptions and odd objects come back as descriptions, never as code; nothing raises."""

        class Odd:
            def __repr__(self) -> str:
                raise BoomError

        timeline = line(
            f=boom_named, error=ValueError("x"), odd=Odd(), part=functools.partial(print), data=b"\x00\xff", s={1, 2}
        )
        with T.IOLog(tmp_path / "a.jsonl") as log:
            T.write_event(log, start("c", X, 1, timeline))
            T.write_event(log, finish("c", X, 2, {"nan": float("nan"), "inf": float("inf"), "t": (1, 2)}))
        a, b = T.read_events(tmp_path / "a.jsonl")
        assert (a.id, b.id) == (X, X)
        assert "boom_named" in str(a.timeline.f)
        assert not callable(a.timeline.f) or a.timeline.f is not boom_named
        assert log.lost == 0
        assert log.written == 2

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize(
        "content", [b"", b"hello\n", b"{}\n", b"[1,2]\n", b'{"version": 99}\n', b"\x00\x01\x02", b"\x1f\x8bxx"]
    )
    def test_4_foreign_files(self, tmp_path: Path, content: bytes, partial: bool) -> None:
        """A file that is not ours is a LogFormatError, also with partial=True."""
        path = tmp_path / "a.jsonl"
        path.write_bytes(content)
        if partial and content == b"":
            return  # an empty beginning of a file of ours is "what is intact": nothing
        with pytest.raises(errors.LogFormatError):
            T.read_events(path, partial=partial)

    def test_4_truncated_gz(self, tmp_path: Path) -> None:
        """A cut-off gz file is a LogFormatError that names partial reading; partial=True gives a prefix."""
        path = written(tmp_path / "a.jsonl.gz", EVENTS * 200)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(errors.LogFormatError, match="partial"):
            T.read_events(path)
        back = T.read_events(path, partial=True)
        assert all(map(same, EVENTS * 200, back))

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_4_truncation_anywhere(self, tmp_path: Path, data: st.DataObject) -> None:
        """Cut at any byte: LogFormatError, and partial=True gives exactly the events of the whole lines, a prefix."""
        path = written(tmp_path / "whole.jsonl")
        whole = path.read_bytes()
        cut = data.draw(st.integers(1, len(whole) - 1))
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:cut])
        if cut < len(whole) - 1:  # without the last newline nothing is missing
            with pytest.raises(errors.LogFormatError):
                T.read_events(path)
        try:
            back = T.read_events(path, partial=True)
        except errors.LogFormatError:
            assert b"\n" not in whole[:cut]  # not even the header is whole
            return
        assert len(back) >= whole[:cut].count(b"\n") - 1 - 1
        assert all(map(same, EVENTS, back))

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_4_damage_anywhere(self, tmp_path: Path, data: st.DataObject) -> None:
        """One changed byte: events or LogFormatError with its line, never another exception."""
        raw = bytearray(written(tmp_path / "whole.jsonl").read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path / "bad.jsonl"
        path.write_bytes(raw)
        for partial in (False, True):
            try:
                assert all(isinstance(e, T.Event) for e in T.read_events(path, partial=partial))
            except errors.LogFormatError as error:
                assert str(error)

    def test_4_a_damaged_line_is_named(self, tmp_path: Path) -> None:
        """The error says which line is damaged."""
        path = written(tmp_path / "a.jsonl")
        lines = path.read_text().splitlines(keepends=True)
        lines[2] = lines[2][:10] + "\n"
        path.write_text("".join(lines))
        with pytest.raises(errors.LogFormatError, match="3"):
            T.read_events(path)


def boom_named() -> None:
    """A function to be described."""
    raise BoomError


class TestLocalEventLog:
    """§4.1."""

    def test_4_accept_profiled_pair(self) -> None:
        """A profiled start and finish: two raw events of worker 1."""
        log = T.LocalEventLog()
        ctx = Ctx(log, True)
        T.timespan_start(ctx, 1, 2, 3)  # type: ignore[arg-type]
        T.timespan_finish(ctx, 1, 2, 3)  # type: ignore[arg-type]
        assert len(T.get_logs(log, raw=True)[1]) == 2

    def test_4_1_timespans_and_clearing(self) -> None:
        """Without raw: Timespans; a fetch clears."""
        log = T.LocalEventLog()
        with T.span(Ctx(log), "c", X, "tl"):
            pass
        (span,) = T.get_logs(log)
        assert isinstance(span, T.Timespan)
        assert (span.category, span.id, span.timeline) == ("c", X, "tl")
        assert T.get_logs(log) == []
        assert not any(T.get_logs(log, raw=True).values())

    def test_4_1_one_list_for_all_instances(self) -> None:
        """All instances of a process share one list."""
        T.write_event(T.LocalEventLog(), start("c", 1))
        T.write_event(T.LocalEventLog(), finish("c", 1))
        assert len(T.get_logs(T.LocalEventLog())) == 1
        assert T.LocalEventLog().get_logs() == []

    @pytest.mark.parametrize("first", [start, finish])
    def test_4_1_unmatched_halves_are_kept(self, first: Any) -> None:
        """Defect 1: halves still alone stay for the next fetch."""
        log = T.LocalEventLog()
        second = finish if first is start else start
        T.write_event(log, first("c", X, 5))
        for i in range(3):
            for event in pair("c", i):
                T.write_event(log, event)
            assert [s.id for s in T.get_logs(log)] == [i]
        T.write_event(log, second("c", X, 5))
        assert [s.id for s in T.get_logs(log)] == [X]

    def test_4_1_kept_halves_show_in_a_raw_fetch(self) -> None:
        """A half that a fetch of spans left is still there for a raw fetch."""
        log = T.LocalEventLog()
        T.write_event(log, start("c", X))
        assert T.get_logs(log) == []
        assert [e.id for e in T.get_logs(log, raw=True).get(1, [])] == [X]
        assert not any(T.get_logs(log, raw=True).values())

    def test_4_1_matched_across_workers(self) -> None:
        """raw: by worker; else matched across workers together."""
        log = T.LocalEventLog()
        T.write_event(log, start("c", X, 1, worker=1))
        T.write_event(log, finish("c", X, 2, worker=2))
        assert {w: len(v) for w, v in T.get_logs(log, raw=True).items()} == {1: 1, 2: 1}
        T.write_event(log, start("c", X, 1, worker=1))
        T.write_event(log, finish("c", X, 2, worker=2))
        assert [(s.start, s.finish) for s in T.get_logs(log)] == [(1, 2)]

    def test_4_1_only_local(self) -> None:
        """only_local fetches the caller's events."""
        log = T.LocalEventLog()
        for event in pair("c", X):
            T.write_event(log, event)
        assert len(T.get_logs(log, raw=True, only_local=True)[1]) == 2
        for event in pair("c", X):
            T.write_event(log, event)
        assert len(T.get_logs(log, only_local=True)) == 1

    def test_4_1_readers_get_disjoint_pieces(self) -> None:
        """Several readers together get each event once."""
        log, ctx, n = T.LocalEventLog(), Ctx(T.LocalEventLog()), 400
        pieces: list[list[T.Event]] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                pieces.append(T.get_logs(log, raw=True).get(1, []))

        def write(k: int) -> None:
            for i in range(n):
                T.timespan_start(ctx, "c", (k, i), None)

        readers = [threading.Thread(target=read) for _ in range(2)]
        writers = [threading.Thread(target=write, args=(k,)) for k in range(3)]
        for thread in (*readers, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
        pieces.append(T.get_logs(log, raw=True).get(1, []))
        ids = [e.id for piece in pieces for e in piece]
        assert sorted(ids) == sorted((k, i) for k in range(3) for i in range(n))


def test_api_the_face_names_them() -> None:
    """api.md: the sinks are to be had from the face."""
    for name in ("NoOpLog", "LocalEventLog", "MultiEventLog", "FilterLog", "TeeLog"):
        assert getattr(ts, name) is getattr(T, name)
