"""`OTelLog`: every span is accounted for, nothing is lost, and what leaves can be redacted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.errors import DTaskFailedError
from otel_timespan.otel import dag, semconv
from tests.otel.log_bench import Bench, add, boom, id_of, parent_of, tasks_of


def test_ten_thousand_tasks(bench: Callable[..., Bench]) -> None:
    """Of a run of 10,000 tasks every span arrives, once, and the account says so at any moment."""
    b = bench()
    stop = threading.Event()
    wrong: list[Any] = []

    def watch() -> None:
        while not stop.wait(0.002):
            s = b.log.stats()
            if s["recorded"] != s["exported"] + s["sampled"] + s["pending"] + sum(s["dropped"].values()):
                wrong.append(s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with dag("burst"):
        tasks = [D.spawn(add, n, 1) for n in range(10_000)]
        assert sum(D.fetch(t) for t in tasks) == sum(range(1, 10_001))
    spans = b.spans()
    stop.set()
    watcher.join()
    assert wrong == []
    assert len(spans) == len({id_of(s) for s in spans}) == 10_000 * 3 + 1
    stats = b.log.stats()
    assert stats == {"recorded": 50_001, "exported": 50_001, "sampled": 0, "pending": 0, "dropped": {}}
    root = b.one("dag burst")
    assert root.attributes is not None and root.attributes[semconv.DAG_COMPLETE] is True


def test_threads_that_spawn_at_once(bench: Callable[..., Bench]) -> None:
    """However threads and the closing of roots interleave, every task has a root that outlives it."""
    b = bench(root_quiet_s=0)
    done: list[int] = []

    def work() -> None:
        for n in range(60):
            done.append(D.fetch(D.spawn(add, n, 1)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = b.spans()
    roots = {id_of(s): s for s in spans if s.parent is None}
    tasks = tasks_of(spans)
    assert len(tasks) == 240 and all(parent_of(t) in roots for t in tasks)
    for task in tasks:
        root = roots[parent_of(task)]
        assert root.start_time <= task.start_time and task.end_time <= root.end_time  # type: ignore[operator]
    assert sum(r.attributes[semconv.DAG_TASKS] for r in roots.values()) == 240  # type: ignore[index, misc]


def test_redact(bench: Callable[..., Bench]) -> None:
    """`redact` sees every text that leaves; None leaves an attribute out; a redact that raises sends a mark."""

    def redact(key: str, text: str) -> str | None:
        if key == semconv.FILE_PATH:
            return None
        if key == semconv.THREAD_NAME:
            raise RuntimeError("bad redactor")
        return text.replace("secret", "***")

    b = bench(redact=redact)
    with pytest.raises(DTaskFailedError):
        D.fetch(D.spawn(boom, "the secret word"))
    spans = b.spans()
    assert "secret word" not in "".join(s.to_json() for s in spans if s.name != "x")
    task = b.one("boom")
    assert task.attributes is not None and semconv.FILE_PATH not in task.attributes
    assert task.attributes[semconv.THREAD_NAME] == "[redact failed]"
    assert task.status.description == "the *** word"


def test_broken_event_is_counted(bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    """An event that can't be mapped is counted, warned of once, and the next ones still arrive."""
    b = bench()
    for _ in range(3):
        b.log.write_event(T.Event("finish", "finish", T.EventId(uid=1), None, 1))
    D.fetch(D.spawn(add, 1, 2))
    assert len(tasks_of(b.spans())) == 1
    assert b.log.stats()["dropped"] == {"error": 3}
    assert sum("could not be turned into spans" in r.message for r in caplog.records) == 1
