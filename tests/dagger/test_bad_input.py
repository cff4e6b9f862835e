"""Issue 5, bad input: a clear error of ours on the task that it belongs to; others unharmed; nothing hangs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.options import defaults
from tests.dagger.acceptance.support import DEADLINE_S, identity, run_program

pytestmark = pytest.mark.filterwarnings("ignore:delayed, compute and collect are legacy:DeprecationWarning")


@pytest.fixture(params=["threads", "threads and a log", "inline"])
def context(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """A context of two slots; after the test it still works, and all its slots are free."""
    driver = D.InlineDriver({1: 2}, validate=False) if request.param == "inline" else "threads"
    log = [] if "log" in request.param else None
    with D.Context(threads=None if driver != "threads" else 2, driver=driver, log_sink=log) as entered:
        yield entered
        assert D.fetch_all([D.spawn(int, n) for n in range(20)]) == list(range(20))


def failure(task: D.DTask) -> BaseException:
    """What a task failed with, without our wrapping."""
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    assert str(caught.value)
    return D.unwrap_exception(caught.value)


# ---- graphs ------------------------------------------------------------------------------------------------


def test_cycles_in_lazy_graphs(context: D.Context) -> None:
    """A thunk that needs itself, in whatever way, is refused before anything runs."""
    ran: list[int] = []
    first = D.delayed(ran.append)(1)
    second = D.delayed(identity)(first)
    for close in (
        lambda: setattr(first, "args", (first,)),
        lambda: setattr(first, "args", (second,)),
        lambda: setattr(first, "kwargs", {"x": second}),
        lambda: setattr(first, "options", D.Options(syncdeps={second})),
        lambda: setattr(first, "f", second),
    ):
        close()
        with pytest.raises(D.InvalidOptionError, match="cycle"):
            D.collect(second)
        first.f, first.args, first.kwargs, first.options = ran.append, (1,), {}, D.Options()
    assert ran == []
    assert D.collect(second) is None
    assert ran == [1]


@pytest.mark.parametrize("how", ["finish", "fail", "cancel", "halt"])
def test_chains_of_ten_thousand_need_no_recursion(context: D.Context, how: str) -> None:
    """Ten thousand tasks, each waiting for the one before, end one way or another without recursion."""
    before = sys.getrecursionlimit()
    gate = threading.Event()

    def begin() -> int:
        if not isinstance(context.start().driver, D.InlineDriver):
            gate.wait(DEADLINE_S)
        if how == "fail":
            raise ValueError("first")
        return 0

    first = task = D.spawn(begin)
    for _ in range(10_000):
        task = D.spawn(int, task)
    if how == "cancel":
        first.cancel()
    elif how == "halt":
        D.cancel(halt_sch=True)
    gate.set()
    if how == "finish":
        assert D.fetch(task) == 0
    else:
        error = failure(task)
        assert isinstance(error, ValueError if how == "fail" else D.TaskCancelled)
    assert sys.getrecursionlimit() == before


# ---- recursion -----------------------------------------------------------------------------------------------


def nested(depth: int) -> int:
    """Spawn and fetch inside of each other."""
    return 0 if depth == 0 else 1 + int(D.fetch(D.spawn(nested, depth - 1)))


def test_ten_thousand_bodies_inside_each_other() -> None:
    """Nested spawn and fetch 10,000 deep is a `NestingError` that says what to do, on every task of it; no crash."""
    with D.Context(threads=2):
        assert D.fetch(D.spawn(nested, 200)) == 200
        error = failure(D.spawn(nested, 10_000))
        assert isinstance(error, D.NestingError)
        assert isinstance(error, RecursionError)
        assert "return tasks instead of fetching them" in str(error)
        assert D.fetch(D.spawn(nested, 200)) == 200


def test_a_body_that_recurses_without_end(context: D.Context) -> None:
    """A plain `RecursionError` in a body is its task's failure."""

    def endless(n: int) -> int:
        return endless(n + 1)

    assert isinstance(failure(D.spawn(endless, 0)), RecursionError)


# ---- bodies that never end ---------------------------------------------------------------------------------------


def test_a_body_that_never_ends_does_not_keep_the_program() -> None:
    """A program with an endless body, in Python or in C, ends in a bounded time."""
    out = run_program(
        """
        def forever():
            while True:
                pass
        lock = threading.Lock()
        lock.acquire()
        tasks = [D.spawn(forever), D.spawn(lock.acquire)]
        other = D.spawn(int, 5)
        for task in tasks:
            task.cancel()
        assert other.fetch(timeout=30) == 5
        try:
            with D.Context(threads=1):
                D.spawn(forever)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print("over")
        """
    )
    assert out.split() == ["over"]


def test_a_body_that_never_ends_hits_its_limit() -> None:
    """With the option `timeout` the task fails, its slot is free for others, and a forced cancel would end the body."""
    over: list[bool] = []

    def forever() -> None:
        while not over:
            pass

    with D.Context(threads=1):
        task = D.spawn(forever, D.Options(timeout=0.01))
        assert isinstance(failure(task), D.TaskTimeoutError)
        assert D.spawn(int, 7).fetch(timeout=DEADLINE_S) == 7
        over.append(True)


# ---- values -----------------------------------------------------------------------------------------------------


class Stuck:
    """A value that can't be moved."""


class Rude:
    """A value whose texts can't be had."""

    def __repr__(self) -> str:
        raise OSError("no text")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise OSError("no comparison")

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        raise OSError("no length")

    def __sizeof__(self) -> int:
        raise OSError("no size")

    def __bool__(self) -> bool:
        raise OSError("neither true nor false")


def test_an_argument_that_cant_be_moved(context: D.Context) -> None:
    """What a move rule raises fails the task whose argument it was, and those that depend on it."""

    @D.move.register(D.Processor, D.Processor, Stuck)
    def rule(source: D.Processor, target: D.Processor, x: Stuck) -> Stuck:
        raise OSError("cannot move this")

    try:
        task = D.spawn(identity, Stuck())
        down = D.spawn(identity, task)
        named = D.spawn(identity, x=Stuck())
        assert isinstance(failure(task), OSError)
        assert isinstance(failure(down), OSError)
        assert isinstance(failure(named), OSError)
        assert D.fetch(D.spawn(int, 3)) == 3
    finally:
        D.move.unregister(D.Processor, D.Processor, Stuck)


def test_values_that_refuse_everything(context: D.Context) -> None:
    """Values without texts, comparison, length or size go in and out, and appear in error texts by their type."""
    value = Rude()
    assert D.fetch(D.spawn(identity, D.spawn(identity, value))) is value

    def boom(x: Any) -> None:
        raise ValueError("boom")

    task = D.spawn(boom, value)
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    assert "boom(<Rude" in str(caught.value)
    cancelled = D.spawn(identity, value)
    cancelled.cancel()
    D.wait(cancelled)


@pytest.mark.parametrize("logged", [False, True])
def test_a_callable_that_raises_for_its_attributes(context: D.Context, logged: bool) -> None:
    """The `__getattr__` of a proxy may raise anything: its tasks run all the same, with a log and without one."""

    class Proxy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"unbound proxy {name}")

        def __call__(self, *args: int) -> int:
            return sum(args)

    class Failing(Proxy):
        def __call__(self, *args: int) -> int:
            raise ValueError("its own")

    class Nameless(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise RuntimeError("no name")

    class Called(metaclass=Nameless):
        def __call__(self, *args: int) -> int:
            return len(args)

    if logged:
        D.enable_logging(metrics=True, timeline=True)
    assert D.fetch(D.spawn(Called(), 1)) == 1 and type(D.fetch(D.spawn(Called))) is Called
    scoped = D.tochunk(1, scope=D.scope(worker=1))  # from now on the scopes of arguments are looked at
    assert D.fetch(D.spawn(lambda proxy, one: proxy(one), Proxy(), scoped)) == 1
    assert [D.fetch(D.spawn(Proxy(), n, 1)) for n in range(300)] == list(range(1, 301))
    with pytest.raises(D.DTaskFailedError, match="its own"):
        D.fetch(D.spawn(Failing()))
    if logged:
        assert "Proxy" in str(D.fetch_logs())


def test_exceptions_whose_texts_cant_be_had(context: D.Context) -> None:
    """An exception that raises when it is printed is still its task's failure."""

    class Unprintable(Exception):  # noqa: N818 - it says what it is
        def __str__(self) -> str:
            raise OSError("no text")

    def boom() -> None:
        raise Unprintable

    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(D.spawn(boom))
    assert isinstance(D.unwrap_exception(caught.value), Unprintable)
    assert "Unprintable" in str(caught.value)


# ---- processors and hooks ------------------------------------------------------------------------------------------


class Broken(D.Processor):
    """A processor one of whose hooks raises."""

    __slots__ = ("hook",)

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def _maybe(self, hook: str) -> None:
        if self.hook == hook:
            raise OSError(f"{hook} is broken")

    def get_parent(self) -> D.Processor:
        self._maybe("get_parent")
        return D.OSProc(1)

    def get_processors(self) -> frozenset[D.Processor]:
        self._maybe("get_processors")
        return frozenset((self,))

    def default_enabled(self) -> bool:
        self._maybe("default_enabled")
        return False

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        self._maybe("iscompatible_func")
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        self._maybe("iscompatible_arg")
        return True

    def execute(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._maybe("execute")
        return f(*args, **kwargs)

    def memory_spaces(self) -> frozenset[Any]:
        self._maybe("memory_spaces")
        return frozenset()

    def short_name(self) -> str:
        self._maybe("short_name")
        return "broken"

    def __repr__(self) -> str:
        self._maybe("repr")
        return f"Broken({self.hook})"


HOOKS = (
    "get_parent",
    "get_processors",
    "default_enabled",
    "iscompatible_func",
    "iscompatible_arg",
    "execute",
    "memory_spaces",
    "short_name",
    "repr",
    "callback",
)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_processor_whose_hook_raises(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever hook of a processor raises: its own tasks fail or do not notice, all others run, nothing hangs."""

    def callback() -> D.Processor:
        if hook == "callback":
            raise OSError("callback is broken")
        return Broken(hook)

    caplog.set_level(logging.CRITICAL, "otel_timespan")
    D.add_processor_callback(callback, "broken")
    try:
        with D.Context(threads=2, log_sink=[]):
            there = D.Options(scope=D.ProcessorTypeScope(Broken))
            tasks = [D.spawn(max, there, 3, 5) for _ in range(3)]
            others = [D.spawn(int, n) for n in range(20)]
            assert D.fetch_all(others, timeout=DEADLINE_S) == list(range(20))
            D.waitall(tasks, timeout=DEADLINE_S)
            if hook in ("memory_spaces", "short_name", "repr"):
                assert D.fetch_all(tasks) == [5, 5, 5]
            else:
                assert {type(failure(task)) for task in tasks} <= {OSError, D.SchedulingError}
    finally:
        D.delete_processor_callback("broken")


def test_a_default_option_whose_provider_raises(context: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """A provider of a default that raises is logged once, and the option stays unset."""

    def f(n: int) -> int:
        return n

    @D.default_option("name", f, int)
    def provide() -> str:
        raise OSError("no name today")

    try:
        assert D.fetch_all([D.spawn(f, n) for n in range(5)]) == list(range(5))
        assert sum("default of the option" in record.getMessage() for record in caplog.records) == 1
    finally:
        defaults.signature_defaults.pop(f, None)


@pytest.mark.parametrize("option", ["checkpoint", "restore"])
def test_a_checkpoint_that_raises(context: D.Context, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """§10: what `checkpoint` or `restore` raise is reported on stderr; the task has its result all the same."""

    def broken(*given: Any) -> None:
        raise OSError("disk on fire")

    assert D.fetch(D.spawn(int, D.Options(**{option: broken}), 5)) == 5
    assert f"Thunk {option} failed" in capsys.readouterr().err


def test_a_subscriber_that_raises_stops_nobody(context: D.Context, caplog: pytest.LogCaptureFixture) -> None:
    """A callback of a future that raises is logged by the future, and others are told."""
    caplog.set_level(logging.CRITICAL)
    task = D.spawn(int, 5)
    first, second = task.future(), task.future()
    told: list[int] = []
    first.add_done_callback(lambda future: 1 / 0)
    second.add_done_callback(lambda future: told.append(future.result()))
    down = D.spawn(int, task)
    assert D.fetch(down) == 5
    assert told == [5]
