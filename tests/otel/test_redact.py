"""`redact` is asked about every text that leaves, by every way out, and nothing gets by that it holds back."""

from __future__ import annotations

import logging
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_timespan import dagger as D
from otel_timespan import otel
from otel_timespan.otel import replay
from otel_timespan.otel.spans.redact import _LOGGERS, LineFilter, redacted, redacted_attributes
from otel_timespan.otel.spans.spandata import EventData, LinkData, SpanData
from otel_timespan.otel.spans.values import plain_value
from otel_timespan.timespans.warn import warn_once
from tests.acceptance_otel.acc_otel_support import Ear, run
from tests.backends import ROOT
from tests.otel.log_bench import Bench, add, forget_line_filters
from tests.otel.stories import failed, raised, whole

SECRET = "hunter2"


def hide(key: str, text: str) -> str | None:
    """Holds back what has the secret in it."""
    return None if SECRET in text else text


def star(key: str, text: str) -> str | None:
    """Puts something else for the secret."""
    return text.replace(SECRET, "***")


def broken(key: str, text: str) -> str | None:
    """Raises, and tells."""
    raise ValueError(f"{key} {text}")


def leaving(key: str, text: str) -> str | None:
    """Raises what is no Exception."""
    raise SystemExit(text)


def wrong(key: str, text: str) -> str | None:
    """Hands on what is no text."""
    return [text]  # type: ignore[return-value]


ALL = [hide, star, broken, leaving, wrong]

ATTRIBUTES = {
    "text": SECRET,
    f"{SECRET} key": 1,
    "bytes": SECRET.encode() + b"\xff",
    "list": (SECRET, 1, ("deep", SECRET.encode())),
    "mapping": {SECRET: 1, "inner": {"deep": SECRET}},
    "exception.message": SECRET,
}


def filled(kind: type) -> Any:
    """A NamedTuple of spandata.py with the secret in each field that can hold a text."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in kind._fields:  # type: ignore[attr-defined]
        if hints[name] is str:
            values[name] = f"a={SECRET}" if name == "trace_state" else f"{name} {SECRET}"
        elif hints[name] in (int, bool):
            values[name] = 1
        elif name == "attributes":
            values[name] = ATTRIBUTES
        else:
            values[name] = (filled({"links": LinkData, "events": EventData}[name]),)
    return kind(**values)


@pytest.mark.parametrize("redact", ALL)
def test_every_field_of_a_span_is_asked_about(redact: Any) -> None:
    """Whatever field a text is in, those that are added later included."""
    span = filled(SpanData)
    assert repr(span).count(SECRET) > 10
    assert SECRET not in repr(redacted(redact, span))


def test_what_is_let_through_is_unchanged() -> None:
    """Types, order and numbers stay; so does what is asked about and given back."""
    span = filled(SpanData)
    assert redacted(lambda key, text: text, span) == span


def test_each_text_goes_by_its_key() -> None:
    """The keys that `redact` is asked with, so that a rule may go by them."""
    asked = []

    def listen(key: str, text: str) -> str | None:
        asked.append((key, text))
        return text

    event = EventData("name of an event", 1, {"e": "1"})
    link = LinkData(1, 2, {"l": "2"}, "b=2")
    attributes = {"form": {"password": ("x", b"y")}, "timespan.task.name": "label"}
    redacted(listen, SpanData("span", 1, 1, 0, 0, 1, attributes, (link,), (event,), 2, "bad", "a=1"))
    assert set(asked) == {
        ("span.name", "span"), ("status.description", "bad"), ("trace.state", "a=1"), ("trace.state", "b=2"),
        ("event.name", "name of an event"), ("attribute.key", "e"), ("attribute.key", "l"), ("attribute.key", "form"),
        ("attribute.key", "password"), ("form.password", "x"), ("form.password", "y"), ("timespan.task.name", "label"),
        ("e", "1"), ("l", "2"),
    }  # fmt: skip


def test_what_has_to_be_there_is_a_mark() -> None:
    """A span and an event have a name; a trace state goes as it is or not at all; a lone surrogate goes nowhere."""
    span = redacted(hide, filled(SpanData))
    assert span.name == span.events[0].name == "[redacted]" and span.trace_state == span.links[0].trace_state == ""
    assert redacted(star, filled(SpanData)).trace_state == ""
    assert redacted_attributes(lambda key, text: "\udce9", {"a": "b"}) == {"?": "?"}


_values = st.recursive(
    st.one_of(st.none(), st.integers(), st.just(SECRET), st.just(SECRET.encode()), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.just(SECRET), st.text()), inner, max_size=3)
    ),
)


@given(st.sampled_from(ALL), _values)
def test_no_nesting_hides_a_text(redact: Any, value: Any) -> None:
    """Any value, at any depth, with any redact."""
    assert SECRET not in repr(redacted_attributes(redact, {"key": plain_value(value)}))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of our logger as a handler writes them."""
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler = Handler()
    logging.getLogger("otel_timespan").addHandler(handler)
    yield written
    logging.getLogger("otel_timespan").removeHandler(handler)


@pytest.mark.parametrize("redact", ALL)
def test_our_lines_are_asked_about(redact: Any, lines: list[str]) -> None:
    """Message and traceback of what this package logs, as long as the filter is installed."""
    log, line_filter = logging.getLogger("otel_timespan"), LineFilter(redact)
    line_filter.install()
    try:
        log.warning("the text %r", SECRET)
        try:
            raise ValueError(SECRET)
        except ValueError:
            warn_once(object(), "something failed")
    finally:
        line_filter.remove()
    assert len(lines) >= 2 and SECRET not in "".join(lines)
    log.warning("the text %r", SECRET)
    assert SECRET in lines[-1]


def test_a_redact_that_fails_says_so_once(lines: list[str], bench: Callable[..., Bench]) -> None:
    """By one line, which says what it raised and tells nothing of what it was asked about."""

    def fresh(key: str, text: str) -> str | None:
        raise ValueError(text)

    b = bench(redact=fresh)
    with otel.dag(SECRET):
        D.fetch(D.spawn(add, 1, 2))
    b.spans()
    assert len(lines) == 1 and "ValueError" in lines[0] and SECRET not in lines[0] and "Traceback" not in lines[0]


def test_a_log_asks_about_lines_while_it_is_there(lines: list[str], bench: Callable[..., Bench]) -> None:
    """From its construction on, after its close too; one without a redact doesn't."""
    log = logging.getLogger("otel_timespan")
    bench()
    log.warning("%s", SECRET)
    closed = otel.OTelLog(redact=hide, metrics=False)
    log.warning("%s", SECRET)
    closed.close()
    log.warning("%s", SECRET)
    assert lines == [SECRET, "[redacted]", "[redacted]"]
    forget_line_filters()


def test_every_logger_of_the_package_is_known() -> None:
    """The filter sits on all loggers there are, but for the debug traces."""
    named = set()
    for path in (ROOT / "otel_timespan").rglob("*.py"):
        named |= set(re.findall(r'getLogger\(f?"(otel_timespan[^"]*)"', path.read_text()))
    assert {name for name in named if not name.startswith("otel_timespan.debug")} == set(_LOGGERS)


def test_a_replay_asks_too() -> None:
    """Spans of a saved log go the same way."""
    error = raised(ValueError(SECRET))
    events = [*whole(1, name=SECRET), *failed(2, 10, error)]
    assert SECRET in repr(list(replay(events, offset_ns=0)))
    assert SECRET not in repr(list(replay(events, offset_ns=0, redact=hide)))


PROGRAM = """
    import pathlib
    import otel_timespan as ts
    from opentelemetry import trace
    from opentelemetry.trace import SpanContext, TraceFlags, TraceState
    SECRET = "hunter2"
    def redact(key, text):
        if REDACT == "hide":
            return None if SECRET in text else text
        if REDACT == "star":
            return text.replace(SECRET, "***")
        raise ValueError(key + text)
    class Token:
        def __str__(self): return SECRET
    class Odd(Exception): pass
    Odd.__qualname__ = SECRET + "Error"
    log = ts.OTelLog(redact=redact)
    ts.eager_context().log_sink = log
    def body():
        s = trace.get_current_span()
        s.set_attributes({"plain": SECRET, "path": pathlib.PurePosixPath(SECRET), "dict": {"k": SECRET, SECRET: 1},
                          "nested": [[SECRET]], "bytes": SECRET.encode(), "obj": Token(), "objects": [Token()],
                          "set": {SECRET}, SECRET: 1})
        s.add_event(SECRET, {"p": Token(), SECRET: 2})
        s.add_link(SpanContext(1, 2, False, TraceFlags(1), TraceState([("a", SECRET)])), {"l": SECRET})
        s.set_status(SECRET)
        s.record_exception(Odd(SECRET), {"note": SECRET})
        s.update_name(SECRET)
    body.__name__ = body.__qualname__ = SECRET
    def crash(): raise Odd(SECRET)
    class Program:
        log_sink = log
    with ts.dag("run " + SECRET, **{"note": SECRET, "list": [SECRET], SECRET: 1}) as root:
        root.add_event(SECRET)
        ts.fetch(ts.spawn(body, ts.Options(name=SECRET)))
        ts.wait(ts.spawn(crash))
        from otel_timespan import timespans
        with timespans.span(Program, SECRET, SECRET, SECRET):
            pass
    log.flush()
    log.close()
"""


@pytest.mark.parametrize("redact", ["hide", "star", "raise"])
def test_nothing_leaves_a_program(redact: str) -> None:
    """Spans, metrics and resource in the bytes that a collector gets: names, labels, errors, values, keys."""
    ear = Ear()
    try:
        env = {**ear.env(), "OTEL_RESOURCE_ATTRIBUTES": f"team={SECRET},{SECRET}=1", "OTEL_SERVICE_NAME": SECRET}
        run(PROGRAM.replace("REDACT", repr(redact)), env)
    finally:
        ear.close()
    assert len(ear.spans()) > 8 and ear.metrics()
    assert all(SECRET.encode() not in body for _, body in ear.requests)
