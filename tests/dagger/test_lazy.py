"""The lazy API, checkpoints, retries and time limits (spec/scheduler.md §1.9, §10, §17.4)."""

from __future__ import annotations

import operator
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D


@pytest.fixture(autouse=True)
def legacy() -> Iterator[None]:
    """`delayed` warns once a process that it is legacy: not the subject here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(params=["threads", "inline"])
def ctx(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Both drivers."""
    driver = "threads" if request.param == "threads" else D.InlineDriver({1: 2}, seed=1)
    with D.Context(threads=None if request.param == "inline" else 2, driver=driver) as context:
        yield context


def identity(x: Any) -> Any:
    """Its argument."""
    return x


def boom() -> None:
    """Always fails."""
    raise ValueError("the fuse blew")


def test_s1_9_a_graph_of_delayed_calls(ctx: D.Context) -> None:
    """§1.9: nothing runs before `collect`, and computing again gives the same."""
    ran: list[int] = []

    def add(a: int, b: int) -> int:
        ran.append(a)
        return a + b

    p = D.delayed(add)(4, 1)
    q = D.delayed(add)(p, 2)
    r = D.delayed(add)(3, 1)
    whole = D.delayed(lambda *parts: sum(parts))(p, q, r)
    assert not ran
    assert D.collect(whole) == 16
    assert D.collect(whole) == 16


def test_s1_9_compute_gives_a_chunk(ctx: D.Context) -> None:
    """§1.9: `compute` gives a chunk, `collect` of a chunk its value, `compute` of a chunk itself."""
    chunk = D.compute(D.delayed(operator.add)(1, 2))
    assert isinstance(chunk, D.Chunk)
    assert D.collect(chunk) == 3
    assert D.compute(chunk) is chunk
    assert D.collect(ctx, D.delayed(identity)(4)) == 4


def test_s1_9_in_process_termination(ctx: D.Context) -> None:
    """§1.9: five runs in a row, each ends."""
    for _ in range(5):
        inner = D.delayed(operator.add)(D.delayed(identity)(1), 2)
        assert D.collect(D.delayed(operator.add)(inner, 3)) == 6


def test_s1_9_options_are_not_shared() -> None:
    """§1.9 defect: each thunk has its own copy of the options."""
    make = D.delayed(identity, D.Options(name="n"))
    a, b = make(1), make(2)
    assert a.options is not b.options and a.options.name == "n"
    assert a.f is identity and a.options.scope is None


def test_s1_9_the_first_error_is_raised_as_it_is(ctx: D.Context) -> None:
    """Ruling 3: the body's own exception with a note; with allow_errors a DTaskFailedError."""
    bad = D.delayed(identity)(D.delayed(boom)())
    with pytest.raises(ValueError, match="fuse") as caught:
        D.collect(bad)
    assert any("boom" in note for note in getattr(caught.value, "__notes__", ["boom"]))
    with pytest.raises(D.DTaskFailedError) as wrapped:
        D.collect(bad, options=D.SchedulerOptions(allow_errors=True))
    assert isinstance(D.unwrap_exception(wrapped.value), ValueError)


def test_s1_9_placement_errors_propagate(ctx: D.Context) -> None:
    """§1.8: no place to run is a DTaskFailedError, in batch mode too."""
    for bad in ({"proclist": lambda p: False}, {"scope": D.ProcessScope(99)}):
        with pytest.raises(D.DTaskFailedError) as caught:
            D.collect(D.delayed(identity, **bad)(1))
        error = D.unwrap_exception(caught.value)
        assert isinstance(error, D.SchedulingError) and error.code == "no_processors"


def test_s1_9_bad_input(ctx: D.Context) -> None:
    """A cycle, a thunk for `spawn`, a dead single worker, what is no thunk: each refused at once."""
    a = D.delayed(identity)(1)
    b = D.delayed(identity)(a)
    a.args = (b,)
    with pytest.raises(D.InvalidOptionError, match="cycle"):
        D.collect(b)
    with pytest.raises(D.InvalidOptionError):
        D.spawn(identity, b)
    with pytest.raises(D.InvalidOptionError):
        D.collect(D.delayed(identity)(1), options=D.SchedulerOptions(single=7))
    with pytest.raises(D.InvalidOptionError):
        D.compute(5)
    with pytest.raises(TypeError):
        D.delayed(5)


def test_s1_9_deep_graphs_need_no_recursion(ctx: D.Context) -> None:
    """A chain of 3,000 calls."""
    thunk = D.delayed(identity)(0)
    for _ in range(3000):
        thunk = D.delayed(operator.add)(thunk, 1)
    assert D.collect(thunk) == 3000


def test_s17_4_deepest_ready_tasks_start_first() -> None:
    """§17.4: initially ready tasks begin with the one farthest from the root."""
    ran: list[str] = []

    def note(name: str, *inputs: Any) -> None:
        ran.append(name)

    far = D.delayed(note)("far")
    near = D.delayed(note)("near")
    root = D.delayed(note)("root", near, D.delayed(note)("middle", far))
    with D.Context(driver=D.InlineDriver({1: 1})):
        D.collect(root)
    assert ran.index("far") < ran.index("near") or ran[0] == "far"
    assert ran[-1] == "root"


def test_s1_9_a_body_spawns_into_its_own_run(ctx: D.Context) -> None:
    """§1.7: tasks spawned by a lazily computed body go to the same scheduler."""
    assert D.collect(D.delayed(lambda: D.fetch(D.spawn(operator.add, 1, 2)))()) == 3


def test_s1_9_errors_in_pickling_say_why() -> None:
    """§1.9: a thunk can't be serialised."""
    import pickle

    with pytest.raises(TypeError, match="compute it"):
        pickle.dumps(D.delayed(identity)(1))


# ---- checkpoints -------------------------------------------------------------------------------------


def test_s10_scheduler_level(ctx: D.Context, capsys: pytest.CaptureFixture[str]) -> None:
    """§10: checkpoint after a success; restore gives the answer, runs nothing and saves nothing."""
    ran: list[int] = []
    saved: list[Any] = []

    def body() -> int:
        ran.append(1)
        return 1

    save = D.SchedulerOptions(checkpoint=lambda chunk: saved.append(chunk.fetch()))
    assert D.collect(D.delayed(body)(), options=save) == 1
    assert (ran, saved) == ([1], [1])
    both = D.SchedulerOptions(checkpoint=saved.append, restore=lambda: D.tochunk(2))
    assert D.collect(D.delayed(body)(), options=both) == 2
    assert (ran, saved) == ([1], [1])
    for bad in (lambda: 5, boom):
        assert D.collect(D.delayed(body)(), options=D.SchedulerOptions(restore=bad)) == 1
        assert "Scheduler restore failed" in capsys.readouterr().err
    assert D.collect(D.delayed(body)(), options=D.SchedulerOptions(checkpoint=lambda c: boom())) == 1
    assert "Scheduler checkpoint failed" in capsys.readouterr().err


def test_s10_task_level(ctx: D.Context, capsys: pytest.CaptureFixture[str]) -> None:
    """§10: a restored task does not run, its dependents do; checkpoint is for successes only."""
    ran: list[str] = []
    saved: list[Any] = []

    def body() -> int:
        ran.append("body")
        return 1

    a = D.delayed(body, restore=lambda thunk: D.tochunk(2))()
    assert D.collect(D.delayed(operator.mul)(a, 2)) == 4
    assert not ran
    keep = D.Options(checkpoint=lambda task, chunk: saved.append((task.f.__name__, chunk.fetch())))
    assert D.fetch(D.spawn(body, keep)) == 1
    D.wait(D.spawn(boom, keep))
    assert saved == [("body", 1)]
    assert D.fetch(D.spawn(body, D.Options(restore=lambda task: boom()))) == 1
    assert "Thunk restore failed" in capsys.readouterr().err
    assert D.fetch(D.spawn(body, D.Options(checkpoint=lambda task, chunk: boom()))) == 1
    assert "Thunk checkpoint failed" in capsys.readouterr().err


# ---- retries and time limits -----------------------------------------------------------------------------


def flaky(fail: int) -> Callable[[], int]:
    """A body that fails so often, then gives the number of its attempt."""
    attempts = iter(range(1, 100))

    def body() -> int:
        attempt = next(attempts)
        if attempt <= fail:
            raise ValueError(attempt)
        return attempt

    return body


def test_retries_run_the_body_again(ctx: D.Context) -> None:
    """A task with retries succeeds with the attempt that does, and fails with the last error."""
    assert D.fetch(D.spawn(flaky(2), D.Options(retries=2))) == 3
    task = D.spawn(flaky(5), D.Options(retries=1))
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    assert D.unwrap_exception(caught.value).args == (2,)


def test_retries_are_attempts_in_the_log(ctx: D.Context) -> None:
    """Each attempt is submitted, scheduled and computed anew; the task finishes once."""
    log: list[Any] = []
    ctx.log_sink = log
    task = D.spawn(flaky(1), D.Options(retries=3))
    assert D.fetch(task) == 2
    mine = [e for e in log if getattr(e.id, "get", dict().get)("thunk_id") == task.id]
    submitted = [e.timeline.attempt for e in mine if (e.category, e.phase) == ("add_thunk", "start")]
    assert submitted == [1, 2]
    assert sum((e.category, e.phase) == ("compute", "finish") for e in mine) == 2
    assert sum((e.category, e.phase) == ("finish", "finish") for e in mine) == 1


def test_a_retry_waits_its_delay() -> None:
    """The delay lies between two attempts, and the task counts as unfinished meanwhile."""
    with D.Context(threads=1) as context:
        began = time.monotonic()
        task = D.spawn(flaky(1), D.Options(retries=1, retry_delay=0.05))
        assert D.fetch(task, timeout=20) == 2
        assert time.monotonic() - began >= 0.05
        assert context.core is not None and not context.core.delayed


def test_a_body_over_its_timeout_is_abandoned() -> None:
    """The task fails with a TimeoutError of ours, its slot runs others, its body is told."""
    with D.Context(threads=1):
        gate, told = threading.Event(), threading.Event()

        def body() -> None:
            while not gate.is_set() and not D.task_cancelled():
                time.sleep(0.002)
            told.set()

        task = D.spawn(body, D.Options(timeout=0.05))
        with pytest.raises(D.DTaskFailedError) as caught:
            D.fetch(task, timeout=20)
        assert isinstance(D.unwrap_exception(caught.value), D.TaskTimeoutError)
        assert isinstance(D.unwrap_exception(caught.value), TimeoutError)
        assert D.spawn(int).fetch(timeout=20) == 0
        assert told.wait(20)
        assert D.fetch(D.spawn(int, D.Options(timeout=30))) == 0
