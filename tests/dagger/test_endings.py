"""The one ending of tasks can't be split: an interrupt at each place where Python could deliver one loses nothing.

A signal handler runs in the main thread, where CPython looks for signals: after calls, at entries of functions and at
backward jumps. A trace function that raises there, once, at the first such place within our code, then at the second,
and so on, is such a handler; none of the places is left out. After each of them every task has an outcome, every slot
is free, and the next task runs.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.bodies import ending
from otel_timespan.dagger.core.invariants import check_idle
from otel_timespan.dagger.drivers import brief, helping, moves
from otel_timespan.dagger.tasks import atomics

PACKAGE = str(Path(ts.__file__).parent)
MOST = 6000
"""Places that a scenario may have: one that has more would not end."""


class Interrupt(KeyboardInterrupt):
    """What the handler raises."""


class Handler:
    """Profile and trace function that raises `Interrupt` at the `wanted`th place of our code; `places` counts them.

    As a profile function it is called at each entry of a function and after each call of a C function, and what it
    raises comes out just there, as from a signal handler. Backward jumps it sees as a trace function of opcodes.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted, self.places, self.raised = wanted, 0, False
        self._jumped: set[FrameType] = set()

    def profile(self, frame: FrameType, event: str, arg: Any) -> None:
        """An entry, or the end of a call of a C function."""
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE) and not is_finalizer(frame):
            self._pass()

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """The entry of a function: look at its opcodes."""
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            if frame in self._jumped:
                self._jumped.discard(frame)
                self._pass()
            if frame.f_code.co_code[frame.f_lasti] in JUMPS:
                self._jumped.add(frame)
        elif event == "return":
            self._jumped.discard(frame)
        return self._step

    def _pass(self) -> None:
        self.places += 1
        if self.places == self.wanted:
            self.raised = True
            self._jumped.clear()
            sys.settrace(None)
            sys.setprofile(None)
            raise Interrupt

    def __enter__(self) -> Handler:
        self._before = sys.gettrace()
        sys.settrace(self.trace)
        sys.setprofile(self.profile)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.setprofile(None)
        sys.settrace(self._before)
        self.wanted = 0  # frames that stay (service/apart.py) keep their trace function, and come here when next traced


def is_finalizer(frame: FrameType) -> bool:
    """Whether it is called as an object goes: what is raised there Python itself reports, and goes on."""
    below: FrameType | None = frame
    while below is not None and below.f_code.co_filename.startswith(PACKAGE):
        if below.f_code.co_name == "__del__":
            return True
        below = below.f_back
    return False


JUMPS = frozenset(code for name, code in dis.opmap.items() if "JUMP_BACKWARD" in name or name == "JUMP_ABSOLUTE")


def interrupted_everywhere(one_run: Callable[[], list[D.DTask]], act: Callable[[list[D.DTask]], Any]) -> int:
    """`act` on what `one_run` gives, interrupted at each place in turn; how many places there were."""
    core = ts.eager_context().start()
    most = missed = 0
    for wanted in range(1, MOST):
        tasks = one_run()
        handler = Handler(wanted)
        with contextlib.suppress(Interrupt, D.DTaskFailedError), handler:
            act(tasks)
        settle(core, tasks, handler.places)
        assert sys.exc_info() == (None, None, None)
        most = max(most, handler.places)
        missed = 0 if handler.raised else missed + 1
        if missed == 5:  # not only one at which another thread happened to be first
            return most
    raise AssertionError(f"more than {MOST} places")


def settle(core: Any, tasks: list[D.DTask], place: int) -> None:
    """All is done and free, and the next task runs."""
    for task in tasks:
        try:
            task.wait(timeout=10)
        except D.FetchTimeoutError:
            pytest.fail(f"task {task.id} never ends after an interrupt at place {place}")
    assert D.spawn(int).fetch(timeout=10) == 0
    end = time.monotonic() + 10
    while not (core.driver.is_idle() and not core.running and next(core.unfinished(), None) is None):
        assert time.monotonic() < end, f"something is left after an interrupt at place {place}: {core.driver.free}"
        time.sleep(0)
    check_idle(core)


def add(*values: int) -> int:
    """Their sum."""
    return sum(values)


def boom() -> None:
    """Fail."""
    raise ValueError("boom")


@pytest.fixture(params=[1, 2], ids=["one slot", "two slots"])
def context(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[D.Context]:
    """A context, warm: its threads are there, and the main thread helps, though it is traced and slow."""
    monkeypatch.setattr(helping, "is_ordinary_here", lambda stack: True)
    monkeypatch.setattr(helping, "BRIEF_NS", 10**12)
    monkeypatch.setattr(brief, "BRIEF_NS", 10**12)
    with D.Context(threads=request.param) as context:
        gate = threading.Barrier(request.param + 1)
        tasks = [D.spawn(gate.wait, 10) for _ in range(request.param)]
        gate.wait(10)
        D.waitall(tasks)
        for _ in range(300):
            D.spawn(int).fetch()
        assert context.core is not None
        for f in (add, boom):
            context.core.driver.brief.learn(f, 1)
        gc.collect()
        gc.disable()
        # A trace function is between two steps of a section: there no thread is to be made to let the GIL go.
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(60)
        yield context
        sys.setswitchinterval(interval_s)
        gc.enable()


def diamond() -> list[D.DTask]:
    """One task, two that need it, one that needs both."""
    top = D.spawn(add, 1)
    left, right = D.spawn(add, top, 2), D.spawn(add, top, 3)
    return [top, left, right, D.spawn(add, left, right)]


def test_an_end_is_logged_wherever_the_interrupt_comes(context: D.Context) -> None:
    """Whoever fetches may be interrupted anywhere, at the entry of the log too: each task has its end in it."""
    context.log_sink = log = ts.enable_logging()
    ids: list[int] = []

    def graph() -> list[D.DTask]:
        tasks = diamond()
        ids.extend(task.id for task in tasks)
        return tasks

    interrupted_everywhere(graph, lambda tasks: tasks[-1].fetch())
    streams = log.get_logs()[1]
    ended = {
        id.thunk_id
        for core, id in zip(streams["core"], streams["id"], strict=True)
        if (core.category, core.kind) == ("finish", "finish")
    }
    assert set(ids) <= ended


@pytest.mark.parametrize("logged", [False, True], ids=["no log", "log"])
def test_a_fetch_that_helps(context: D.Context, logged: bool) -> None:
    """Whoever fetches a small graph may be interrupted anywhere: its tasks end, its slot is free."""
    if logged:
        context.log_sink = ts.enable_logging()
    assert interrupted_everywhere(diamond, lambda tasks: tasks[-1].fetch()) > 50


def test_a_spawn(context: D.Context) -> None:
    """An interrupted spawn leaves no task that never ends, and no slot in nobody's hands."""
    assert interrupted_everywhere(list, lambda tasks: diamond()) > 50


@pytest.mark.parametrize(
    "options",
    [
        {"limit": "endings"},
        {"retries": 2},
        {"checkpoint": lambda task, chunk: None},
        {"restore": lambda task: None},
        {"scope": D.ExactScope(D.ThreadProc(1, 1))},
        {"timeout": 60},
    ],
    ids=lambda options: next(iter(options)),
)
def test_tasks_with_options(context: D.Context, options: dict[str, Any]) -> None:
    """Limits, retries, checkpoints, restored and pinned tasks, time limits: none is an exception."""
    D.set_limit("endings", 1)

    def once() -> list[D.DTask]:
        first = D.spawn(add, D.Options(**options), 1)
        return [first, D.spawn(add, D.Options(**options), first), D.spawn(add, first, 1)]

    try:
        interrupted_everywhere(once, lambda tasks: D.fetch_all(tasks))
    finally:
        D.set_limit("endings", None)


def test_failures(context: D.Context) -> None:
    """A body that raises, and all that depends on it, end whatever comes between."""

    def once() -> list[D.DTask]:
        broken = D.spawn(boom)
        return [broken, D.spawn(add, broken), D.spawn(add, broken, 2)]

    interrupted_everywhere(once, lambda tasks: tasks[1].fetch())


def test_waiters(context: D.Context) -> None:
    """Futures and other waiters of a task are told, each once, whoever was interrupted while it told them."""
    futures: list[Any] = []

    def once() -> list[D.DTask]:
        futures.clear()
        tasks = diamond()
        futures.extend(task.future() for task in tasks)
        return tasks

    def act(tasks: list[D.DTask]) -> None:
        try:
            tasks[-1].fetch()
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            for future in futures:
                future.exception(timeout=10) if not future.cancelled() else None

    interrupted_everywhere(once, act)


def test_cancellations(context: D.Context) -> None:
    """What was to be cancelled is: an interrupt comes after it."""

    def act(tasks: list[D.DTask]) -> None:
        D.cancel(tasks[0])

    interrupted_everywhere(diamond, act)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
@pytest.mark.parametrize("hook", ["callback", "checkpoint", "restore", "as_completed"])
def test_hooks_may_raise_anything(hook: str, error: type[BaseException]) -> None:
    """What a callback or a hook raises, of any class, leaves no dependent unqueued and no slot taken."""

    def fail(*given: Any) -> Any:
        raise error("of the user's")

    with D.Context(threads=2) as context:
        gate = threading.Event()
        first = D.spawn(gate.wait, 10)
        options = D.Options(**({hook: fail} if hook in ("checkpoint", "restore") else {}))
        middle = D.spawn(add, options, first, 1)
        if hook == "callback":
            first.future().add_done_callback(fail)
        sibling = D.spawn(add, first, 9)
        last = D.spawn(add, middle, 1)
        gate.set()
        assert sibling.fetch(timeout=10) == 10
        assert last.fetch(timeout=10) == 3
        core = context.core
        assert core is not None
        settle(core, [first, middle, sibling, last], 0)


SECTIONS = {
    atomics.claim_gil: 0,
    atomics.claim_for_gil: 0,
    atomics.settle_gil: 0,
    atomics.count_down_gil: 0,
    moves.take_free_gil: 0,
    moves.take_away_gil: 0,
    moves.take_handed_gil: 0,
    moves.give_back_gil: 0,
    moves.sweep_gil: 0,
    moves.hand_free_gil: 1,
    moves.hand_resuming_gil: 1,
}
"""Each section, and how many calls it makes: one at most, and then as its last step, of a C function."""


@pytest.mark.parametrize("section", SECTIONS, ids=lambda f: f.__name__)
def test_sections_make_no_calls(section: Any) -> None:
    """Nothing stands in a section at which CPython would look for signals or let another thread run."""
    calls = [one for one in dis.get_instructions(section) if one.opname.startswith("CALL")]
    calls = [one for one in calls if not one.opname.startswith("CALL_INTRINSIC")]
    assert len(calls) == SECTIONS[section]


IN_PLACE = [
    (ending.succeed, "STORE_ATTR _outcome", "STORE_ATTR _state"),
    (ending._hand_on, "BINARY_SUBSCR None", "LOAD_ATTR _tokens"),
    (ending._hand_on, "STORE_ATTR _tokens", "STORE_ATTR _claim"),
    (helping.Helping._help, "DELETE_ATTR _claim", "STORE_ATTR claimed"),
    (atomics.subscribe, "LOAD_ATTR _state", "STORE_ATTR _subs"),
]
"""Sections that are written out where they are needed: function, first and last step."""


@pytest.mark.parametrize(("function", "first", "last"), IN_PLACE)
def test_sections_in_place_make_no_calls(function: Any, first: str, last: str) -> None:
    """Nor in one that is a part of a longer function: no call, no backward jump from its first step to its last."""
    steps = [f"{one.opname} {one.argval}" for one in dis.get_instructions(function)]
    begin = steps.index(first)
    section = list(dis.get_instructions(function))[begin : steps.index(last, begin)]
    assert not [one for one in section if "CALL" in one.opname or one.opcode in JUMPS]
