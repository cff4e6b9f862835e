"""design/otel-model.md §1.1 and ruling 38: argument values never leave the process, of failures only what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

import otel_timespan as ts
from tests.acceptance_otel.acc_otel_support import DEADLINE_S, Ear, Lab, pairs, phase, run, task_span

SECRET = "hunter2-do-not-tell"


class Person:
    """Its repr tells all."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Person({self.name})"


def use(*args: Any, **kwargs: Any) -> int:
    """A body."""
    return len(args)


def crash(*args: Any, **kwargs: Any) -> None:
    """A body that says nothing of its arguments."""
    raise ValueError("plain")


def serialised(lab: Lab) -> bytes:
    """All that leaves, as bytes and as text of the metrics."""
    spans = lab.spans()
    data = lab.reader.get_metrics_data()
    return encode_spans(spans).SerializeToString() + (data.to_json().encode() if data else b"")


@pytest.mark.parametrize("detail", ["task", "phases", "scheduler"])
def test_38_no_argument_value_leaves(make_lab: Callable[..., Lab], detail: str) -> None:
    """Plain, nested, keyword, chunk and closure values, in success, failure, skip and cancellation."""
    lab = make_lab(detail=detail)
    hidden = SECRET

    def closure() -> str:
        return hidden

    values = [SECRET, [SECRET], {"k": SECRET}, Person(SECRET), SECRET.encode(), (SECRET, 1)]
    with ts.dag("private"):
        tasks = [ts.spawn(use, *values, password=SECRET), ts.spawn(closure), ts.spawn(crash, *values, password=SECRET)]
        tasks.append(ts.spawn(use, tasks[2], SECRET, password=SECRET))
        tasks.append(ts.spawn(use, ts.tochunk(SECRET), ts.tochunk(values)))
        never = ts.spawn(use, tasks[0], SECRET)
        ts.cancel(never)
        tasks.append(ts.spawn(Person(SECRET).__repr__))
        tasks.append(ts.spawn(ts.fetch, 3))
        tasks.append(ts.spawn(crash, ts.Options(retries=1), SECRET))
        ts.waitall([*tasks, never])
    assert SECRET.encode() not in serialised(lab)


def test_38_no_argument_value_leaves_on_the_wire(ear: Ear) -> None:
    """The same in a program of its own, looked for in the bytes that the collector gets."""
    run(
        f"""
        import functools
        import otel_timespan as ts
        ts.eager_context().log_sink = ts.OTelLog(detail="scheduler")
        def crash(*a, **k): raise ValueError("plain")
        def use(*a, **k): return a
        s = "{SECRET}"
        bad = ts.spawn(crash, s, k=s)
        ts.waitall([ts.spawn(use, s, [s], k=s), bad, ts.spawn(use, bad, s), ts.spawn(functools.partial(use, s), s)])
        """,
        ear.env(),
    )
    assert len(ear.spans()) > 10
    assert all(SECRET.encode() not in body for _, body in ear.requests)


def test_38_skip_says_nothing_of_arguments(lab: Lab) -> None:
    """The status text of a dependent that never ran holds neither our own text with arguments nor values."""
    bad = ts.spawn(crash, SECRET)
    skipped = ts.spawn(use, bad, SECRET)
    ts.waitall([bad, skipped])
    spans = lab.spans()
    for s in spans:
        assert SECRET not in (s.status.description or "")
        assert "This Task" not in (s.status.description or "")


def test_38_nested_failure_carries_no_summary(lab: Lab) -> None:
    """A body that lets the error of a failed task through: that text shows arguments, and must not leave."""

    def outer() -> Any:
        return ts.fetch(ts.spawn(crash, SECRET, Person(SECRET), key=SECRET))

    task = ts.spawn(outer)
    ts.wait(task)
    blob = serialised(lab)
    assert SECRET.encode() not in blob
    assert phase(lab.spans(), task, "compute").attributes["error.type"]


def test_38_messages_and_stacks_are_cut(lab: Lab) -> None:
    """An exception with a message of a megabyte leaves at the limits of the catalogue."""

    def body() -> None:
        raise ValueError("x" * 1_000_000)

    task = ts.spawn(body)
    ts.wait(task)
    spans = lab.spans()
    (event,) = phase(spans, task, "compute").events
    assert len(event.attributes["exception.message"]) <= 4096
    assert len(event.attributes["exception.stacktrace"]) <= 16384
    for s in (task_span(spans, task), phase(spans, task, "compute")):
        assert len(s.status.description or "") <= 4096


def test_38_redact_sees_every_text(make_lab: Callable[..., Lab]) -> None:
    """redact(key, text) is asked about messages and stacks; what it returns leaves; None leaves nothing."""
    asked: set[str] = set()

    def redact(key: str, text: str) -> str | None:
        asked.add(key)
        return None if key == "exception.stacktrace" else text.replace(SECRET, "***")

    lab = make_lab(redact=redact)

    def body() -> None:
        raise ValueError(f"password {SECRET} is wrong")

    with ts.dag("run", note=SECRET):
        task = ts.spawn(body, ts.Options(name=f"label {SECRET}"))
        ts.wait(task)
    assert SECRET.encode() not in serialised(lab)
    compute = phase(lab.spans(), task, "compute")
    (event,) = compute.events
    assert event.attributes["exception.message"] == "password *** is wrong"
    assert "exception.stacktrace" not in event.attributes
    assert task_span(lab.spans(), task).status.description == "ValueError: password *** is wrong" or "***" in (
        task_span(lab.spans(), task).status.description or ""
    )
    assert {"exception.message", "exception.stacktrace"} <= asked


def test_38_redact_sees_the_name_of_a_dag(make_lab: Callable[..., Lab]) -> None:
    """A run's name is the user's text: redact is asked about it wherever it appears."""
    lab = make_lab(redact=lambda key, text: text.replace(SECRET, "***"))
    with ts.dag(f"customer {SECRET}"):
        ts.fetch(ts.spawn(use, 1))
    assert SECRET.encode() not in serialised(lab)


def test_38_redact_that_raises_lets_nothing_out(make_lab: Callable[..., Lab], caplog: pytest.LogCaptureFixture) -> None:
    """A redact that raises: the text does not leave, the run goes on, and there is one warning."""

    def redact(key: str, text: str) -> str:
        raise RuntimeError("redact")

    lab = make_lab(redact=redact)

    def body() -> None:
        raise ValueError(SECRET)

    task = ts.spawn(body)
    ts.wait(task)
    assert ts.fetch(ts.spawn(use, 1)) == 1
    assert SECRET.encode() not in serialised(lab)
    assert len([r for r in caplog.records if r.name.startswith("otel_timespan")]) == 1


def test_38_ids_of_plain_timespans_are_cut(make_lab: Callable[..., Lab]) -> None:
    """The id of a plain timespan leaves as text, cut at 256; its timeline never."""
    from otel_timespan import timespans as T

    lab = make_lab(use=False)

    class Program:
        log_sink = lab.log

    with T.span(Program, "step", "i" * 5000, {"secret": SECRET}):
        pass
    assert lab.log.flush(DEADLINE_S)
    (span,) = lab.exporter.get_finished_spans()
    assert len(span.attributes["timespan.event.id"]) <= 256
    assert SECRET.encode() not in serialised(lab)


def test_38_wire_has_no_surrogates_problem(ear: Ear) -> None:
    """Texts that are no valid UTF-8, or hold NUL, neither lose the batch nor the program."""
    done = run(
        """
        import otel_timespan as ts
        ts.eager_context().log_sink = ts.OTelLog()
        def body(): raise ValueError("bad \\udcff and \\x00 text")
        ts.spawn(body, ts.Options(name="label \\udc80")).future().exception()
        with ts.dag("r \\udcff", **{"key \\udcff": "v \\udcff"}):
            ts.fetch(ts.spawn(len, [1]))
        """,
        ear.env(),
    )
    assert done.stderr == ""
    names = [s.name for s in ear.spans()]
    assert "body" in names
    assert "len" in names
    (compute,) = [s for s in ear.spans() if s.name == "compute" and s.events]
    assert "bad" in pairs(compute.events[0].attributes)["exception.message"]
