"""What the acceptance tests share: small bodies, polling with a deadline, programs, looking at events."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 60.0


class BoomError(Exception):
    """What the failing bodies raise."""


def add(x: Any, y: Any) -> Any:
    """x + y."""
    return x + y


def mul(x: Any, y: Any) -> Any:
    """x * y."""
    return x * y


def identity(x: Any) -> Any:
    """x."""
    return x


def boom(*args: Any, **kwargs: Any) -> None:
    """Fail."""
    raise BoomError("the fuse blew")


def where(*args: Any) -> D.Processor:
    """The processor that runs this body."""
    return D.task_processor()


def poll(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait until `condition()` is true; its value. Fails after the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come true within {DEADLINE_S:.0f} s")
        time.sleep(0.002)
    return value


def done(task: Any) -> Any:
    """The task, once it has ended: the inline driver steps only in a fetch or wait without a timeout."""
    D.wait(task)
    return task


def failure(task: Any, kind: type[BaseException] = D.DTaskFailedError) -> Any:
    """The exception that a fetch of `task` raises."""
    with pytest.raises(kind) as caught:
        D.fetch(task, timeout=DEADLINE_S)
    return caught.value


def outcome(task: Any) -> tuple[type[BaseException], type[BaseException]]:
    """(outer type, unwrapped type) of a failed task, as the specification compares them."""
    error = failure(task, BaseException)
    kinds = [kind for kind in (D.DTaskCancelledError, D.DTaskFailedError) if isinstance(error, kind)]
    return (kinds or [type(error)])[0], type(D.unwrap_exception(error))


def code_of(task: Any) -> str:
    """The code of the `SchedulingError` with which a task failed."""
    inner = D.unwrap_exception(failure(task))
    assert isinstance(inner, D.SchedulingError), inner
    return inner.code


def on(worker: int) -> D.Options:
    """Options that pin a task to a worker."""
    return D.Options(scope=D.ProcessScope(worker))


def slot(worker: int, tid: int, **options: Any) -> D.Options:
    """Options that pin a task to a slot."""
    return D.Options(scope=D.ExactScope(D.ThreadProc(worker, tid)), **options)


def costs(thunk: Any, *processors: D.Processor) -> tuple[list[D.Processor], dict[D.Processor, float]]:
    """What `estimate_task_costs` says of a task that nobody has spawned; by default for a slot here and one there."""
    slots = list(processors or (D.ThreadProc(1, 1), D.ThreadProc(2, 1)))
    order, found = D.sch.estimate_task_costs(D.eager_state(), slots, thunk)
    return list(order), dict(found)


def program(body: str) -> subprocess.Popen[str]:
    """Start a Python program that has `D`, `ts`, `threading`, `time`, `sys`, `os` at hand.

    Ctrl-C interrupts it, even where whoever started the tests ignores that signal, as shells do in the background.
    """
    head = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import otel_timespan as ts
from otel_timespan import dagger as D
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a program; a program that hangs fails the test."""
    try:
        out, err = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the program hangs; it said:\n{out}\n{err}")
    return process.returncode, out, err


def run_program(body: str) -> str:
    """The output of a program that must end well."""
    code, out, err = finish(program(body))
    assert code == 0, f"exit code {code}\n{out}\n{err}"
    return out


def of_task(events: Iterable[Any], task: Any, category: str | None = None) -> list[Any]:
    """The events of one task, in the order in which they were written."""
    return [
        e for e in list(events)
        if getattr(e.id, "thunk_id", None) == task.id and (category is None or e.category == category)
    ]  # fmt: skip


def timeline_of(events: Iterable[Any], task: Any, category: str, phase: str = "finish", **fields: Any) -> Any:
    """The timeline of the one event of that kind, whose id has those fields."""
    found = [
        e for e in of_task(events, task, category)
        if e.phase == phase and all(getattr(e.id, k) == v for k, v in fields.items())
    ]  # fmt: skip
    assert len(found) == 1, found
    return found[0].timeline


def settled(events: list[Any], *tasks: Any) -> list[Any]:
    """`events`, once the `finish` of each task and the end of each of its spans have arrived."""

    def complete() -> bool:
        for task in tasks:
            own = of_task(events, task)
            if not any(e.category == "finish" and e.phase == "finish" for e in own):
                return False
            if 2 * sum(e.phase == "start" for e in own) != len(own):
                return False
        return True

    poll(complete, "the log")
    return list(events)


def moment(events: Iterable[Any], task: Any, category: str, phase: str) -> list[int]:
    """The timestamps of the events of that kind."""
    found = [e.timestamp for e in of_task(events, task, category) if e.phase == phase]
    assert found, f"no {phase} of {category} for task {task.id}"
    return found
