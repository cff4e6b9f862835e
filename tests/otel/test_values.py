"""What users hand a span: plain values, made once; wrong types and values that misbehave cost themselves only."""

from __future__ import annotations

import array
import collections
import datetime
import enum
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState

from otel_timespan import dagger as D
from otel_timespan import otel
from otel_timespan import timespans as T
from otel_timespan.otel.export.wire import encode_span
from otel_timespan.otel.spans.bodyspan import BodySpan
from otel_timespan.otel.spans.spandata import SpanData
from otel_timespan.otel.spans.values import MAX_ITEMS, plain_attributes, plain_text, plain_value
from tests.acceptance_otel.acc_otel_support import Lab
from tests.otel.log_bench import Bench, add


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):
    A = "a"


class Gone(Sequence[int]):
    """A lazy sequence whose back end is away."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        raise RuntimeError("the back end is gone")


class Endless(Gone):
    """A sequence that never ends."""

    def __getitem__(self, index: Any) -> Any:
        return index


class GoneMapping(Mapping[str, int]):
    """A mapping that can't be read."""

    def __getitem__(self, key: str) -> int:
        raise RuntimeError("gone")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("gone")

    def __len__(self) -> int:
        raise RuntimeError("gone")


class Mute:
    """Nothing of it can be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Liar:
    """It raises when asked for its class."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class MuteText(str):
    """A text whose methods raise."""

    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def encode(self, *args: Any) -> bytes:
        raise RuntimeError("no bytes")


PLAIN = [
    (1, 1),
    (True, True),
    (Number.ONE, 1),
    (Word.A, "a"),
    (2**63 - 1, 2**63 - 1),
    (2**70, str(2**70)),
    (-(2**63), -(2**63)),
    (-(2**63) - 1, str(-(2**63) - 1)),
    (10**5000, hex(10**5000)),
    (1.5, 1.5),
    (math.nan, "nan"),
    (-math.inf, "-inf"),
    ([1, math.inf], (1, "inf")),
    (numpy.float32(1.5), 1.5),
    (numpy.int64(3), 3),
    (numpy.bool_(True), True),
    (numpy.array(3), 3),
    (numpy.str_("x"), "x"),
    ("caf\udce9", "caf?"),
    ("nul \x00", "nul \x00"),
    (MuteText("text"), "text"),
    (b"\xff", b"\xff"),
    (bytearray(b"y"), b"y"),
    (memoryview(b"z"), b"z"),
    ([1, "a", None], (1, "a", None)),
    ((["\udce9"], {"k": [1]}), (("?",), {"k": (1,)})),
    ({1: 2, "": 3, "\udce9": 4}, {"1": 2, "?": 4}),
    (range(3), (0, 1, 2)),
    (collections.deque([1]), (1,)),
    (array.array("i", [1]), (1,)),
    (pathlib.PurePosixPath("/x"), "/x"),
    ({1}, "{1}"),
    (1j, "1j"),
    (Gone(), "<unreadable Gone>"),
    ([Gone()], "<unreadable list>"),
    (GoneMapping(), "<unreadable GoneMapping>"),
    (Mute(), "<unreadable Mute>"),
    ([1, Mute()], (1, "<unreadable Mute>")),
    (Liar(), "<unreadable Liar>"),
]


@pytest.mark.parametrize(("value", "plain"), PLAIN, ids=[str(i) for i in range(len(PLAIN))])
def test_plain_values(value: Any, plain: Any) -> None:
    """Any object becomes a value of builtin types that every encoder takes."""
    found = plain_value(value)
    assert found == plain and type(found) is type(plain)
    encode_span(SpanData("s", 1, 1, 0, 0, 1, {"key": found}))


def test_endless_and_circular_values_end() -> None:
    """A sequence without an end is cut, a circle becomes text where it is too deep."""
    circle: list[Any] = []
    circle.append(circle)
    assert len(plain_value(Endless())) == MAX_ITEMS
    assert "..." in repr(plain_value(circle))


def test_whatever_a_text_raises_stays_there() -> None:
    """A __str__ that leaves by a BaseException costs the value only; Ctrl-C goes on."""
    raised: list[type[BaseException]] = [SystemExit, GeneratorExit, KeyboardInterrupt]

    class Leaving:
        def __str__(self) -> str:
            raise raised.pop(0)

    assert plain_value(Leaving()) == plain_text(Leaving()) == "<unreadable Leaving>"
    with pytest.raises(KeyboardInterrupt):
        plain_value(Leaving())


_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
)


@given(_values)
def test_plain_values_are_plain(value: Any) -> None:
    """What comes out holds exact builtin types only, and making it plain again changes nothing."""
    plain = plain_value(value)

    def check(value: Any) -> None:
        assert type(value) in (type(None), bool, int, float, str, bytes, tuple, dict)
        if type(value) is str:
            value.encode()
        if type(value) is float:
            assert math.isfinite(value)
        for item in value if isinstance(value, tuple) else value.items() if isinstance(value, dict) else ():
            check(item)

    check(plain)
    assert plain_value(plain) == plain


def test_attributes_are_refused_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """A key that is no text or empty is refused and counted; the others stay; what is no mapping is nothing."""
    kept, refused = plain_attributes({1: "a", "": "b", "c": None, Word.A: "d", "e": Mute()})
    assert kept == {"a": "d", "e": "<unreadable Mute>"} and refused == 2
    for wrong in ("text", [("a", 1)], 5, GoneMapping(), Liar()):
        assert plain_attributes(wrong) == ({}, 0)
    assert plain_attributes(None) == ({}, 0)
    assert caplog.records


def span(**options: Any) -> BodySpan:
    """One that is open."""
    return BodySpan("compute", 1, 2, 3, 1, "", 0, **options)


CONTEXT = SpanContext(5, 6, False, TraceFlags(1), TraceState([("a", "1")]))

CALLS: list[Callable[[BodySpan], Any]] = [
    lambda s: s.set_attribute(1, "x"),  # type: ignore[arg-type]
    lambda s: s.set_attribute(["a"], 1),  # type: ignore[arg-type]
    lambda s: s.set_attribute("", 1),
    lambda s: s.set_attribute(None, None),  # type: ignore[arg-type]
    lambda s: s.set_attributes(None),  # type: ignore[arg-type]
    lambda s: s.set_attributes("oops"),  # type: ignore[arg-type]
    lambda s: s.set_attributes(GoneMapping()),
    lambda s: s.add_link(None),  # type: ignore[arg-type]
    lambda s: s.add_link(s),  # type: ignore[arg-type]
    lambda s: s.add_link("trace"),  # type: ignore[arg-type]
    lambda s: s.add_link(SpanContext(0, 0, False)),
    lambda s: s.add_link(SpanContext(1 << 200, 1 << 100, False), {"a": 1}),
    lambda s: s.set_status("ERROR"),  # type: ignore[arg-type]
    lambda s: s.set_status(1),  # type: ignore[arg-type]
    lambda s: s.set_status(None),  # type: ignore[arg-type]
    lambda s: s.set_status(Status("ERROR")),  # type: ignore[arg-type]
    lambda s: s.update_name(3),  # type: ignore[arg-type]
    lambda s: s.update_name(["a"]),  # type: ignore[arg-type]
    lambda s: s.update_name(None),  # type: ignore[arg-type]
    lambda s: s.record_exception("no exception"),  # type: ignore[arg-type]
    lambda s: s.record_exception(ValueError),  # type: ignore[arg-type]
    lambda s: s.record_exception(None),  # type: ignore[arg-type]
    lambda s: s.end("x"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_call_with_wrong_types_is_left_out(number: int) -> None:
    """It raises nothing and changes nothing."""
    body = span()
    CALLS[number](body)
    plain = SpanData("compute", 1, 2, 3, 0, 9, {"ours": 1})
    merged = body.merged(plain)
    assert merged._replace(dropped_attributes=0) == plain
    assert merged.dropped_attributes in (0, 1)


@pytest.mark.parametrize(
    ("name", "attributes", "shown"),
    [
        (None, None, ("None", {})),
        (["a"], None, ("['a']", {})),
        ("e", [("a", 1)], ("e", {})),
        ("e", "oops", ("e", {})),
        ("e", {1: 2, "a": Gone()}, ("e", {"a": "<unreadable Gone>"})),
        (Mute(), {"a": 1}, ("<unreadable Mute>", {"a": 1})),
    ],
)
def test_an_event_survives_its_odd_parts(name: Any, attributes: Any, shown: Any) -> None:
    """An event is kept with what can be kept of it."""
    body = span()
    body.add_event(name, attributes)
    (event,) = body.merged(SpanData("compute", 1, 2, 3, 0, 9, {})).events
    assert (event.name, event.attributes) == shown


@pytest.mark.parametrize(
    ("timestamp", "kept"),
    [
        (5, 5),
        (5.9e9, 5_900_000_000),
        (numpy.int64(7), 7),
        (numpy.float64(7), 7),
        (0, 0),
        (datetime.datetime(2024, 1, 1), None),
        ("5", None),
        (-1, None),
        (1 << 64, None),
        (math.nan, None),
        (math.inf, None),
        (Mute(), None),
    ],
)
def test_odd_timestamps(timestamp: Any, kept: int | None) -> None:
    """A timestamp is any whole or finite number of nanoseconds; for anything else the event is now."""
    body, before = span(), time.time_ns()
    body.add_event("e", None, timestamp)
    body.record_exception(ValueError("x"), None, timestamp)
    for event in body.merged(SpanData("compute", 1, 2, 3, 0, 9, {})).events:
        assert event.time_ns == kept if kept is not None else before <= event.time_ns <= time.time_ns()


def test_status_follows_the_sdk() -> None:
    """OK is final; a description belongs to an error and is a text."""
    body = span()
    body.set_status(StatusCode.ERROR, 5)  # type: ignore[arg-type]
    assert (body.status.status_code, body.status.description) == (StatusCode.ERROR, None)
    body.set_status(StatusCode.ERROR, "bad \udce9")
    assert body.status.description == "bad ?"
    body.set_status(StatusCode.OK, "fine")
    body.set_status(StatusCode.ERROR, "late")
    assert (body.status.status_code, body.status.description) == (StatusCode.OK, None)


def test_links_keep_what_they_lead_to() -> None:
    """A context, its trace state and flags, plain attributes, and what was refused of these."""
    body = span()
    body.add_link(CONTEXT, {"a": [1], 2: 3})  # type: ignore[dict-item]
    (link,) = body.merged(SpanData("compute", 1, 2, 3, 0, 9, {})).links
    assert link == (5, 6, {"a": (1,)}, "a=1", 1, 1)


def test_a_later_change_is_not_sent(bench: Callable[..., Bench]) -> None:
    """Values are those of the moment when they were set: on spans, events, links and runs."""
    b = bench()
    rows, entry = [1, 2], {"k": [1]}

    def body() -> None:
        current = trace.get_current_span()
        current.set_attribute("rows", rows)
        current.add_event("e", {"entry": entry})
        current.add_link(CONTEXT, {"rows": rows})
        rows.append(3)
        entry["k"].append(2)

    with otel.dag("run", rows=rows):
        D.fetch(D.spawn(body))
    compute, root = b.one("compute"), b.one("dag run")
    assert compute.attributes["rows"] == root.attributes["rows"] == compute.links[0].attributes["rows"] == (1, 2)  # type: ignore[index]
    assert compute.events[0].attributes["entry"] == {"k": (1,)}  # type: ignore[index]


class OddSampler(Sampler):
    """It takes all, and says odd things about them."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {"odd": Gone(), "rows": [1], 5: 6, "nan": math.nan})  # type: ignore[dict-item]

    def get_description(self) -> str:
        return "odd"


def test_what_a_sampler_says_is_made_plain_too(bench: Callable[..., Bench]) -> None:
    """Its attributes go onto the root like those of the user."""
    b = bench(sampler=OddSampler())
    with otel.dag("run"):
        D.fetch(D.spawn(add, 1, 2))
    attributes = b.one("dag run").attributes or {}
    assert (attributes["odd"], attributes["rows"], attributes["nan"]) == ("<unreadable Gone>", (1,), "nan")


def odd_body() -> int:
    """A body that hands its span everything that is odd."""
    current: Any = trace.get_current_span()
    for call in CALLS:
        call(current)
    for number, (value, _) in enumerate(PLAIN):
        current.set_attribute(f"odd {number}", value)
        current.add_event(value, {"odd": value}, value)
        current.record_exception(ValueError(value), {"odd": value}, value)
    with current:
        current.set_attribute("last", 1)
    return 7


@pytest.mark.parametrize("detail", ["task", "phases", "scheduler"])
def test_odd_calls_cost_no_task_and_no_span(bench: Callable[..., Bench], detail: str) -> None:
    """The task has its result, and its span and those of all others arrive."""
    b = bench(detail=detail)
    with otel.dag("run \udce9", odd=Gone(), name2=MuteText("x")):
        tasks = [D.spawn(add, i, 1) for i in range(20)]
        odd = D.spawn(odd_body, D.Options(name="label \udce9"))
        assert D.fetch(odd) == 7 and [D.fetch(t) for t in tasks] == list(range(1, 21))
    spans: list[ReadableSpan] = b.spans()
    assert len([s for s in spans if s.name == "add"]) == 20
    (body,) = [s for s in spans if (s.attributes or {}).get("last") == 1]
    assert body.attributes["odd 0"] == 1  # type: ignore[index]
    stats = b.log.stats()
    assert stats["recorded"] == stats["exported"] and not stats["dropped"]
    assert b.one("dag run ?").attributes["odd"] == "<unreadable Gone>"  # type: ignore[index]


class Leaver:
    """It can't be shown, and says so by what is no Exception."""

    def __repr__(self) -> str:
        raise SystemExit("no repr")


def test_odd_timespans_of_a_program_are_spans(bench: Callable[..., Bench]) -> None:
    """Whatever a program calls its timespans, if it can be hashed."""
    b = bench()
    categories: list[Any] = ["own", "\udce9", MuteText("mute"), Mute(), 5, None, ("a",), ""]
    ids: list[Any] = [1, "\udce9", Leaver(), Mute(), None]

    class Program:
        log_sink = b.log

    for category in categories:
        for id in ids:
            with T.span(Program, category, id, Mute()):
                pass
    names = [span.name for span in b.spans()]
    assert len(names) == len(categories) * len(ids) and {type(name) for name in names} == {str}


class Proxy:
    """Its attributes are away."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("unbound")

    def __call__(self) -> int:
        trace.get_current_span().set_attribute("ran", 1)
        return 1


@pytest.mark.parametrize("detail", ["task", "phases"])
def test_a_callable_without_attributes_has_spans(bench: Callable[..., Bench], detail: str) -> None:
    """It goes by its type."""
    b = bench(detail=detail)
    assert D.fetch(D.spawn(Proxy())) == 1
    assert b.one("Proxy").attributes["timespan.task.state"] == "finished"  # type: ignore[index]
    assert [s for s in b.spans() if (s.attributes or {}).get("ran") == 1]


class OddFunction:
    """A callable whose names are no texts."""

    def __init__(self) -> None:
        self.__qualname__, self.__module__, self.__name__ = Mute(), Mute(), "odd \udce9"  # type: ignore[assignment]

    def __call__(self) -> int:
        raise OddError(1)


class OddError(Exception):
    """An exception that can't be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_odd_functions_and_errors_cost_no_span(bench: Callable[..., Bench]) -> None:
    """Names that are no texts, and an error whose text raises, are described as well as can be."""
    b = bench()
    task = D.spawn(OddFunction())
    D.wait(task)
    assert b.one("compute").attributes["error.type"].endswith("OddError")  # type: ignore[index, union-attr]
    stats = b.log.stats()
    assert stats["recorded"] == stats["exported"] and not stats["dropped"]


def test_odd_names_are_labels_that_can_be_sent() -> None:
    """Functions and categories whose names are no UTF-8, or no texts, have their points like others."""
    lab = Lab()

    def odd() -> int:
        return 1

    odd.__name__ = odd.__qualname__ = "caf\udce9"
    try:
        with T.span(lab.ctx, "\udce9", 1), T.span(lab.ctx, Mute(), 1):
            D.fetch(D.spawn(odd))
            shown = {point.attributes["timespan.event.category"] for point in lab.points("timespan.event.saturation")}
            assert {"?", "<unreadable Mute>"} <= shown
        data = lab.reader.get_metrics_data()
        assert data is not None and b"caf?" in encode_metrics(data).SerializeToString()
    finally:
        lab.close()
