"""What people write who know other libraries is told what was meant; objects say what they are."""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.otel import OTelLog
from tests.dagger.acceptance.support import DEADLINE_S, add, boom, failure


def one(value: Any) -> Any:
    """A function without keywords of the names of options."""
    return value


def with_timeout(value: Any, timeout: float = 1.0) -> float:
    """One that takes such a keyword itself."""
    return timeout


@functools.wraps(one)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    """A wrapper that takes more than what it wraps."""
    return kwargs


class Callee:
    """Something that can be called."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __call__(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    "call",
    [
        lambda: D.spawn(one, 1, retries=3),
        lambda: D.spawn(Callee, 1, retries=3),
        lambda: D.spawn(Callee(), 1, retries=3),
        lambda: D.spawn(functools.partial(one, 1), retries=3),
        lambda: D.spawn(lambda value: value, 1, retries=3),
        lambda: D.spawn(one, D.Options(timeout=1), 1, retries=3),
        lambda: D.task(one)(1, retries=3),
        lambda: ts.Executor().submit(one, 1, retries=3),
    ],
)
def test_an_option_among_the_arguments_is_told_at_spawn(call: Callable[[], Any]) -> None:
    """An option as a keyword of the call, of a function without it, names `Options` with the value."""
    with pytest.raises(D.InvalidOptionError, match=r"no argument 'retries'.*Options\(retries=3\)"):
        call()


def test_a_keyword_of_the_function_s_own_stays_one() -> None:
    """What the function takes is passed on, be it called like an option; what is neither fails in the body."""
    assert D.fetch(D.spawn(with_timeout, 1, timeout=2.0)) == 2.0
    assert D.fetch(D.spawn(wrapped, 1, retries=3)) == {"retries": 3}
    assert D.fetch(D.spawn(dict, name="x", scope=1)) == {"name": "x", "scope": 1}
    assert D.fetch(D.spawn(D.spawn(lambda: with_timeout), 1, timeout=3.0)) == 3.0
    assert isinstance(failure(D.spawn(one, 1, retrys=3)), TypeError)


@pytest.mark.parametrize("make", [list, tuple, set, frozenset, lambda tasks: dict(enumerate(tasks))])
def test_a_list_of_tasks_is_told_where_the_body_fails_at_it(make: Callable[[Any], Any]) -> None:
    """A body that fails because it was given tasks in a container: the error says how they become values."""
    tasks = make([D.spawn(int), D.spawn(int)])
    error = failure(D.spawn(lambda given: sum(given.values() if isinstance(given, dict) else given), tasks))
    assert "Hint" in str(error) and type(tasks).__name__ in str(error) and "fetch_all" in str(error)
    assert str(failure(D.spawn(len, D.spawn(lambda given: sum(map(int, given)), given=list(tasks))))).count("Hint") <= 1
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_other_failures_have_no_such_hint() -> None:
    """Not where no task is in a container, nor where the body raised something else."""
    assert "Hint" not in str(failure(D.spawn(sum, ["a"])))
    assert "Hint" not in str(failure(D.spawn(lambda tasks: 1 // 0, [D.spawn(int)])))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"endpoint": "http://x"}, "OTEL_EXPORTER_OTLP_ENDPOINT.*OTLPSpanExporter"),
        ({"headers": {}}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"service_name": "x"}, "OTEL_SERVICE_NAME"),
        ({"detial": "task"}, "did you mean detail"),
        ({"nothing": 1}, "there are block_timeout_s"),
    ],
)
def test_keywords_that_are_an_exporter_s(given: dict[str, Any], text: str) -> None:
    """`OTelLog` says how an endpoint is set, and corrects names."""
    with pytest.raises(D.InvalidOptionError, match=text):
        OTelLog(**given)


@pytest.mark.parametrize("kind", [OTelLog, ts.LocalEventLog, ts.NoOpLog, list])
def test_a_class_is_no_sink(kind: Any) -> None:
    """The class in place of the object is refused wherever a sink is given, and the sink stays what it was."""
    context = D.Context()
    before = context.log_sink
    with pytest.raises(D.InvalidOptionError, match=rf"{kind.__name__}\(\), not {kind.__name__}"):
        context.log_sink = kind
    assert context.log_sink is before
    for make in (lambda: D.Context(log_sink=kind), lambda: ts.TeeLog(kind), lambda: ts.FilterLog(print, kind)):
        with pytest.raises(D.InvalidOptionError):
            make()


def test_a_worker_that_is_not_there_is_told_those_that_are() -> None:
    """A task for a worker or thread that there is not says which there are."""
    with D.Context(threads=2):
        for scope in (D.scope(worker=7), D.scope(thread=70)):
            assert "worker 1 (2 threads)" in str(failure(D.spawn(one, D.Options(scope=scope), 1)))


def test_representations() -> None:
    """A task, a context and a log say which they are, and how far."""
    go = threading.Event()
    context = D.Context(threads=1)
    assert "not started" in repr(context) and "NoOpLog" in repr(context)
    with context:
        running = D.spawn(go.wait, DEADLINE_S)
        named = D.spawn(add, D.Options(name="sum up"), 1, 2)
        failed = D.spawn(boom)
        assert repr(running) == f"DTask (running) {running.id}: wait"
        assert "1 slots" in repr(context) and "3 unfinished tasks" in repr(context)
        go.set()
        for task in (named, failed):
            task.wait()
        assert repr(named) == f"DTask (finished) {named.id}: sum up"
        assert repr(failed) == f"DTask (finished) {failed.id}: boom, failed"
    log = OTelLog()
    assert "not used yet" in repr(log) and "phases" in repr(log)
