"""What is red in a trace: what failed, and what was skipped because of it; the root names the first failure."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from otel_timespan import dagger as D
from otel_timespan.errors import DTaskFailedError
from otel_timespan.otel import dag, semconv
from tests.backends import eventually
from tests.otel.log_bench import Bench, add, id_of, tasks_of

ERROR, UNSET = StatusCode.ERROR, StatusCode.UNSET


def boom(what: str) -> None:
    """A body that raises."""
    raise OSError(f"no {what}")


def by_id(spans: list[Any]) -> dict[int, Any]:
    """The tasks' own spans by the numbers of the tasks."""
    return {span.attributes[semconv.TASK_ID]: span for span in tasks_of(spans)}


def red(spans: list[Any]) -> set[int]:
    """The tasks that are red, in their own spans or in one of their phases."""
    return {s.attributes[semconv.TASK_ID] for s in spans if s.status.status_code is ERROR and s.parent is not None}


def leave(bench: Bench, kind: str) -> None:
    """The program leaves, in one of the ways it has."""
    if kind == "shutdown":
        D.eager_context().shutdown(timeout_s=0.1)
    elif kind == "halted by a cancel":
        D.cancel(halt_sch=True)
    else:
        bench.log.close()


@pytest.mark.parametrize("kind", ["shutdown", "halted by a cancel", "the log is closed first"])
def test_only_what_failed_and_its_dependents_are_red(bench: Callable[..., Bench], kind: str) -> None:
    """Tasks that the leaving program dropped, waiting or running, and all that depend on them, are not failed."""
    b = bench()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)
        raise ValueError("too late")

    with pytest.raises(DTaskFailedError), dag("left"):
        running = D.spawn(stuck)
        assert started.wait(20)
        waiting = D.spawn(add, running, 1)
        beyond = D.spawn(add, waiting, 1)
        bad = D.spawn(boom, "disk")
        skipped = D.spawn(add, bad, 1)
        D.fetch(skipped)
    leave(b, kind)
    go.set()
    spans = eventually(lambda: found if len(by_id(found := b.spans())) == 5 else None)
    tasks = by_id(spans)
    assert red(spans) == {bad.id, skipped.id}
    states = {tasks[t.id].attributes[semconv.TASK_STATE] for t in (running, waiting, beyond)}
    assert states <= ({"abandoned"} if kind == "the log is closed first" else {"cancelled", "skipped"})


@pytest.mark.parametrize("explicit", [True, False])
def test_the_root_names_the_first_failure(bench: Callable[..., Bench], explicit: bool) -> None:
    """Function, type, message and number of the task that failed first stand on the root, with a link to its span."""
    b = bench()

    def work() -> None:
        first = D.spawn(boom, "disk")
        D.wait(first)
        D.wait(D.spawn(boom, "paper"))
        D.fetch(D.spawn(add, first, 1))

    with pytest.raises(DTaskFailedError):
        if explicit:
            with dag("nightly"):
                work()
        else:
            work()
    spans = b.spans()
    (root,) = [span for span in spans if span.parent is None]
    failed = next(span for span in tasks_of(spans) if span.name == "boom")
    assert root.status.status_code is ERROR
    assert root.attributes["error.type"] == "OSError"
    assert root.attributes[semconv.DAG_FAILURE_MESSAGE] == "no disk"
    assert root.attributes[semconv.DAG_FAILURE_FUNCTION] == f"{__name__}.boom"
    assert root.attributes[semconv.DAG_FAILURE_TASK] == failed.attributes[semconv.TASK_ID]
    assert root.attributes[semconv.DAG_FAILURE_SPAN] == f"{id_of(failed):016x}"
    assert str(root.attributes[semconv.DAG_FAILURE_TASK]) in root.status.description
    causes = [link for link in root.links if link.attributes[semconv.LINK_TYPE] == "cause"]
    assert [link.context.span_id for link in causes] == [id_of(failed)]
    exceptions = [span.name for span in spans for event in span.events if event.name == "exception"]
    assert exceptions == ["compute", "compute"]  # each once, where it was raised


def test_the_root_links_to_the_critical_path(bench: Callable[..., Bench]) -> None:
    """The spans of the last 32 tasks of the path are linked, in their order."""
    b = bench()
    with dag("chain"):
        task = D.spawn(add, 0, 1)
        for _ in range(40):
            task = D.spawn(add, task, 1)
        D.fetch(task)
    spans = b.spans()
    (root,) = [span for span in spans if span.parent is None]
    last = sorted(by_id(spans).items())[-32:]
    assert [link.context.span_id for link in root.links] == [id_of(span) for _, span in last]
    assert {link.attributes[semconv.LINK_TYPE] for link in root.links} == {"critical_path"}


def test_a_block_with_an_error_of_its_own_says_that(bench: Callable[..., Bench]) -> None:
    """The status is of what ended the block; the failed task is named beside it."""
    b = bench()
    with pytest.raises(KeyError), dag("own"):
        D.wait(D.spawn(boom, "disk"))
        raise KeyError("mine")
    root = b.one("dag own")
    assert root.attributes is not None and root.attributes["error.type"] == "KeyError"
    assert root.attributes[semconv.DAG_FAILURE_MESSAGE] == "no disk"
    assert [event.name for event in root.events] == ["exception"]


def test_a_cancelled_task_and_its_dependents_make_no_failed_run(bench: Callable[..., Bench]) -> None:
    """What never ran because its upstream was cancelled fails neither itself nor its run."""
    b = bench()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    with dag("cancelled"):
        running = D.spawn(stuck)
        assert started.wait(20)
        waiting = D.spawn(add, running, 1)
        beyond = D.spawn(add, waiting, 1)
        D.cancel(waiting)
        go.set()
        D.waitall([running, waiting, beyond])
    spans = b.spans()
    root = b.one("dag cancelled")
    assert red(spans) == set() and root.status.status_code is UNSET
    assert root.attributes is not None and root.attributes[semconv.DAG_RESULT] == "success"


def test_leaving_with_sys_exit_is_no_failure(bench: Callable[..., Bench]) -> None:
    """`sys.exit()` in a block ends it; `sys.exit(1)` says that it failed."""
    b = bench()
    for name, code in (("well", 0), ("badly", 1)):
        with pytest.raises(SystemExit), dag(name):
            sys.exit(code)
    assert b.one("dag well").status.status_code is UNSET and not b.one("dag well").events
    assert b.one("dag badly").status.status_code is ERROR


def test_a_body_that_passes_a_failure_on_tells_it_by_a_link(bench: Callable[..., Bench]) -> None:
    """It failed, too, and points at the task that raised; the exception stands there alone, and not on the roots."""
    b = bench()

    def outer() -> None:
        D.fetch(D.spawn(boom, "disk"))

    with pytest.raises(DTaskFailedError), dag("around"), dag("inside"):
        D.fetch(D.spawn(outer))
    spans = b.spans()
    inner, passed = (next(s for s in tasks_of(spans) if s.name == name) for name in ("boom", "outer"))
    assert [s.parent.span_id for s in spans for e in s.events if e.name == "exception"] == [id_of(inner)]
    assert passed.status.status_code is ERROR and passed.attributes["error.type"] == "OSError"
    causes = [link for link in passed.links if link.attributes[semconv.LINK_TYPE] == "cause"]
    assert [link.context.span_id for link in causes] == [id_of(inner)]
    for name in ("dag around", "dag inside"):
        root = b.one(name)
        assert root.status.status_code is ERROR and root.attributes is not None
        assert root.attributes[semconv.DAG_FAILURE_TASK] == inner.attributes[semconv.TASK_ID]
        assert next(iter(root.links)).context.span_id == id_of(inner)


def test_a_block_that_a_cancellation_ended_did_not_fail(bench: Callable[..., Bench]) -> None:
    """Its result says so; nothing is red."""
    b = bench()
    started, go = threading.Event(), threading.Event()

    def stuck() -> None:
        started.set()
        go.wait(20)

    with pytest.raises(DTaskFailedError), dag("cancelled"):
        running = D.spawn(stuck)
        assert started.wait(20)
        D.cancel(running)
        D.fetch(running)
    go.set()
    root = eventually(lambda: b.named("dag cancelled"))[0]
    assert root.status.status_code is UNSET and root.attributes[semconv.DAG_RESULT] == "cancellation"
