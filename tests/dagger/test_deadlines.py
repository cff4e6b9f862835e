"""Times that programs give: one limit for all that a call waits for; any number is taken, or refused at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import math
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.timespans import durations
from otel_timespan.timespans.durations import LONGEST_S, Deadline, as_number
from tests.dagger.acceptance.support import DEADLINE_S

Waits = Callable[[D.DTask[Any], Any], Any]


async def _loop(task: D.DTask[Any], timeout: Any) -> None:
    async for _ in D.as_completed([task], timeout=timeout):
        pass


WAITS: dict[str, Waits] = {
    "fetch": lambda task, timeout: D.fetch(task, timeout=timeout),
    "wait": lambda task, timeout: D.wait(task, timeout=timeout),
    "method fetch": lambda task, timeout: task.fetch(timeout),
    "method wait": lambda task, timeout: task.wait(timeout),
    "fetch_all": lambda task, timeout: D.fetch_all({"one": [task]}, timeout=timeout),
    "waitany": lambda task, timeout: D.waitany([task], timeout=timeout),
    "waitall": lambda task, timeout: D.waitall([task], timeout=timeout),
    "as_completed": lambda task, timeout: list(D.as_completed([task], timeout=timeout)),
    "async as_completed": lambda task, timeout: asyncio.run(_loop(task, timeout)),
}


class OddError(Exception):
    """What a foreign number raises."""


class Odd:
    """A number that is none, and can't even be shown."""

    def __float__(self) -> float:
        raise OddError

    def __repr__(self) -> str:
        raise OddError


LATE = [10**400, 1e300, math.inf, LONGEST_S, np.float64(1e308), Fraction(10**400), Decimal("1e999"), 60, np.int8(60)]
OVER = [0, -0.0, -1, -(10**400), -math.inf, 1e-300, np.float32(1e-9), np.array(0.0), Fraction(1, 10**9), Decimal("0.0")]
NONE = [
    *[math.nan, np.float16("nan"), Decimal("nan"), Decimal("sNaN"), True, np.True_, "1", b"1", bytearray(b"1"), 1j],
    *[np.array([1.0]), np.array([1, 2]), [1], object(), Odd(), datetime.timedelta(seconds=1), int],
]


@pytest.fixture
def blocked() -> Iterator[D.DTask[Any]]:
    """A task that does not end meanwhile."""
    go = threading.Event()
    with D.Context(threads=2):
        yield D.spawn(go.wait, DEADLINE_S)
        go.set()


@pytest.mark.parametrize("name", WAITS)
def test_any_number_is_a_time(name: str, blocked: D.DTask[Any]) -> None:
    """However large, small, negative or foreign: a wait is over at once, or lasts as long as the task."""
    for timeout in OVER:
        with pytest.raises(D.FetchTimeoutError):
            WAITS[name](blocked, timeout)
    for timeout in [*LATE, None]:
        WAITS[name](D.spawn(int), timeout)


@pytest.mark.parametrize("name", WAITS)
def test_what_is_no_number_is_refused_at_once(name: str, blocked: D.DTask[Any]) -> None:
    """An error of ours names the argument, also where the task is done and nothing would be waited for."""
    ended = D.spawn(int)
    ended.wait()
    for timeout in NONE:
        for task in (blocked, ended):
            with pytest.raises(D.InvalidOptionError, match="timeout must be a number of seconds"):
                WAITS[name](task, timeout)


def test_other_times_are_refused_alike() -> None:
    """The same holds of `shutdown` and `flush`, which take times under another name."""
    for timeout in NONE:
        with pytest.raises(D.InvalidOptionError, match="timeout_s must be"):
            D.Context().shutdown(timeout_s=timeout)
        with pytest.raises(D.InvalidOptionError, match="timeout_s must be"):
            ts.MultiEventLog().flush(timeout)
    for timeout in [*LATE, *OVER]:
        D.Context().shutdown(timeout_s=timeout)
        ts.MultiEventLog().flush(timeout)


def test_futures_of_an_executor_take_the_same_times() -> None:
    """`result`, `exception` and `map` of an executor, whose errors of time are Python's."""
    go = threading.Event()
    with ts.Executor(1) as executor:
        future = executor.submit(go.wait, DEADLINE_S)
        waits: list[Callable[[Any], Any]] = [
            future.result,
            future.exception,
            lambda timeout: list(executor.map(int, "1", timeout=timeout)),
        ]
        for wait in waits:
            for timeout in NONE:
                with pytest.raises(D.InvalidOptionError):
                    wait(timeout)
            for timeout in OVER:
                with pytest.raises(concurrent.futures.TimeoutError):
                    wait(timeout)
        go.set()
        for wait in waits:
            for timeout in LATE:
                wait(timeout)


@pytest.mark.parametrize("option", ["timeout", "retry_delay", "time_util", "alloc_util", "occupancy"])
def test_options_take_numbers_or_refuse_them(option: str) -> None:
    """An option that is a number takes any, or says what it must be."""
    by_type = option in ("time_util", "alloc_util", "occupancy")
    for value in [*LATE, *OVER, *NONE]:
        try:
            kept = getattr(D.Options(**{option: {D.ThreadProc: value} if by_type else value}), option)
        except D.InvalidOptionError as error:
            assert option in str(error) or isinstance(value, Odd)
            continue
        except OddError:
            assert isinstance(value, Odd)  # its text can't be had
            continue
        number = kept[D.ThreadProc] if by_type else kept
        assert callable(number) or (type(number) is float and number >= 0)


def test_one_limit_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of one call share one limit: what an earlier one took is gone for the next."""
    now = [0.0]
    monkeypatch.setattr(durations.time, "monotonic", lambda: now[0])
    deadline = Deadline(0.6)
    assert deadline.left() == 0.6
    now[0] = 0.4
    assert deadline.left() == pytest.approx(0.2)
    now[0] = 5.0
    assert deadline.left() == 0.0 and deadline.seconds == 0.6


@pytest.mark.parametrize(
    "act", [D.fetch_all, D.waitall, lambda tasks, timeout: list(D.as_completed(tasks, timeout=timeout))]
)
def test_tasks_one_after_the_other_pass_a_limit_together(act: Any) -> None:
    """Tasks each of which ends in time do not do so together: as long as one is not done at the end, it raises."""
    with D.Context(threads=1):
        ends = [threading.Event() for _ in range(4)]

        def body(n: int) -> None:
            ends[n].wait(0.2)  # nobody sets it: each of them takes this long, so all of them more than the limit

        tasks = [D.spawn(body, n) for n in range(4)]
        with pytest.raises(D.FetchTimeoutError, match=r"within 0\.3 s"):
            act(tasks, timeout=0.3)
        for end in ends:
            end.set()


def test_what_is_done_is_fetched_when_the_time_is_over(blocked: D.DTask[Any]) -> None:
    """A limit that is over refuses only what is not done."""
    ended = [D.spawn(int) for _ in range(3)]
    D.waitall(ended)
    assert D.fetch_all(ended, timeout=0) == [0, 0, 0]
    with pytest.raises(D.FetchTimeoutError, match=f"task {blocked.id} "):
        D.fetch_all([*ended, blocked], timeout=-1)
    with pytest.raises(D.FetchTimeoutError, match="none of 2 tasks"):
        D.waitany([blocked, D.spawn(bool, blocked)], timeout=0)


def test_numbers() -> None:
    """What counts as a number."""
    assert [as_number(value) for value in (1, 1.5, np.float32(0.5), Fraction(1, 2), Decimal("0.5"), np.array(3))] == [
        *[1.0, 1.5, 0.5, 0.5, 0.5, 3.0]
    ]
    assert as_number(10**400) == math.inf and as_number(-(10**400)) == -math.inf
    assert [value for value in NONE if as_number(value) is not None] == []


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: D.fetch([D.spawn(int)]), "use fetch_all"),  # type: ignore[call-overload]
        (lambda: D.fetch({"a": D.spawn(int)}), "use fetch_all"),  # type: ignore[call-overload]
        (lambda: D.fetch(int), "spawn"),
        (lambda: D.wait([D.spawn(int)]), "use waitall"),  # type: ignore[arg-type]
        (lambda: D.fetch_all(D.spawn(int) for _ in range(2)), "not into a generator"),
        (lambda: D.fetch_all([map(D.spawn, [int])]), "not into a map"),
        (lambda: D.waitall(D.spawn(int)), r"waitall\(\[task\]\)"),
        (lambda: D.waitany(3), "waitany needs tasks"),  # type: ignore[arg-type]
        (lambda: D.waitany([3]), "waitany needs tasks, not a int"),  # type: ignore[list-item]
    ],
)
def test_wrong_waits_are_told_the_right_one(call: Callable[[], Any], hint: str) -> None:
    """Whoever waits for the wrong thing is told what to call."""
    with pytest.raises(D.InvalidOptionError, match=hint):
        call()
