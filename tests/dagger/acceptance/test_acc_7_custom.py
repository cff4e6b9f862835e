"""spec/scheduler.md §4.3, §7.2-7.5: custom processors, their discovery, moves, compatibility and hooks."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.stubs import Device
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    code_of,
    done,
    failure,
    identity,
    of_task,
    outcome,
    settled,
    timeline_of,
    where,
)


@dataclass(frozen=True)
class FakeVal:
    """What an integer is on a FakeProc."""

    n: int


@dataclass(frozen=True)
class FakeProc(D.Processor):
    """A processor of one worker whose results are 42 too high."""

    owner: int = 1

    def get_parent(self) -> D.Processor:
        return D.OSProc(self.owner)

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        return issubclass(argtype, (int, FakeVal))

    def execute(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return FakeVal(f(*args, **kwargs).n + 42)


class OptOutProc(Device):
    """Nobody reports one."""


@D.move.register(D.Processor, FakeProc, int)
def _to_fake(source: D.Processor, target: FakeProc, x: int) -> FakeVal:
    return FakeVal(x)


def fakesum(*values: FakeVal) -> FakeVal:
    """The sum on a FakeProc."""
    return FakeVal(sum(v.n for v in values))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    for name in ("acc fake", "acc plain", "acc bad", "acc hundred"):
        D.delete_processor_callback(name)


@pytest.fixture
def fake() -> FakeProc:
    """A FakeProc on this worker."""
    D.add_processor_callback(FakeProc, "acc fake")
    return FakeProc(1)


@pytest.fixture
def plain() -> Device:
    """A Device on this worker."""
    D.add_processor_callback(Device, "acc plain")
    return Device(1)


ONLY_FAKE = {"proclist": [FakeProc], "compute_scope": D.AnyScope()}


def test_s7_4_values_are_moved_to_a_custom_processor(fake: FakeProc) -> None:
    """§7.4 accept: integers arrive as FakeVal, execute adds 42: 1 + ... + 5 + 42 = 57."""
    parts = [D.delayed(identity)(n) for n in range(1, 6)]
    assert D.collect(D.delayed(fakesum, **ONLY_FAKE)(*parts)) == FakeVal(57)


def test_s7_4_the_same_with_spawn(fake: FakeProc) -> None:
    """§7.4: the same for eager tasks, with plain values, chunks and tasks as arguments."""
    with D.Context(threads=2):
        task = D.spawn(fakesum, D.Options(**ONLY_FAKE), 1, D.tochunk(2), D.spawn(identity, 3))
        assert D.fetch(task) == FakeVal(48)
        assert D.fetch(task, raw=True).processor == fake
        again = D.spawn(fakesum, D.Options(scope=D.ExactScope(fake)), task, 1)
        assert D.fetch(again) == FakeVal(91)


@pytest.mark.parametrize("proclist", [[OptOutProc], lambda p: False], ids=["type", "predicate"])
def test_s7_4_no_such_processor(proclist: Any) -> None:
    """§7.4 accept: a `proclist` that no processor fits fails with SchedulingError `no_processors`."""
    with pytest.raises(D.DTaskFailedError) as caught:
        D.collect(D.delayed(identity, proclist=proclist)(1))
    error = D.unwrap_exception(caught.value)
    assert isinstance(error, D.SchedulingError) and error.code == "no_processors"
    assert code_of(done(D.spawn(identity, D.Options(proclist=proclist), 1))) == "no_processors"


def test_s7_4_no_proclist_is_normal() -> None:
    """§7.4 accept: `proclist=None` changes nothing."""
    assert D.collect(D.delayed(identity, proclist=None)(5)) == 5


@pytest.mark.parametrize("bad", [5, "threads", [1, 2]], ids=repr)
def test_s4_1_proclist_of_something_else(bad: Any) -> None:
    """§4.1: a proclist that is neither a list of types nor a predicate is an error of ours."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.Options(proclist=bad)
    assert isinstance(caught.value, D.TimespanError)


def test_s7_2_callbacks_show_at_once(fake: FakeProc) -> None:
    """§7.2, §7.4 accept: a reported processor appears in `get_processors(OSProc())` immediately, and goes again."""
    assert fake in D.get_processors(D.OSProc())
    D.delete_processor_callback("acc fake")
    assert fake not in D.get_processors(D.OSProc())


def test_s7_2_callbacks_show_in_a_running_scheduler() -> None:
    """§7.2 defect 7: one that appears while the scheduler runs is used, one that goes is not."""
    with D.Context(threads=1):
        D.fetch(D.spawn(int))
        there = D.Options(scope=D.ExactScope(Device(1)))
        assert code_of(D.spawn(int, there)) == "no_processors"
        D.add_processor_callback(Device, "acc plain")
        assert D.fetch(D.spawn(where, there)) == Device(1)
        D.delete_processor_callback("acc plain")
        assert code_of(D.spawn(int, there)) == "no_processors"
        assert D.fetch(D.spawn(int)) == 0


def test_s7_2_a_callback_that_raises_is_skipped(plain: Device, caplog: pytest.LogCaptureFixture) -> None:
    """§7.2: exceptions of a callback are logged and skipped; the others' processors are there."""
    D.add_processor_callback(boom, "acc bad")
    assert plain in D.get_processors(D.OSProc())
    assert D.fetch(D.spawn(int)) == 0
    assert any("fuse" in r.getMessage() or (r.exc_info and "fuse" in str(r.exc_info[1])) for r in caplog.records)


def test_s7_1_not_enabled_means_not_without_being_asked_for(plain: Device) -> None:
    """§7.1: a processor that is not `default_enabled` runs only what its scope or proclist asks for."""
    with D.Context(threads=2):
        assert plain not in set(D.fetch_all([D.spawn(where) for _ in range(50)]))
        assert plain not in D.compatible_processors(D.DefaultScope())
        assert plain in D.compatible_processors(D.AnyScope())
        assert D.fetch(D.spawn(where, D.Options(scope=D.ProcessorTypeScope(Device)))) == plain


def test_s7_1_default_enabled_ones_take_part() -> None:
    """§7.1: a `default_enabled` processor takes part by default."""

    @dataclass(frozen=True)
    class Eager(Device):
        def default_enabled(self) -> bool:
            return True

    D.add_processor_callback(Eager, "acc plain")
    with D.Context(threads=1):
        assert Eager(1) in D.compatible_processors(D.DefaultScope())
        found = set(D.fetch_all([D.spawn(where, D.Options(occupancy={Any: 1})) for _ in range(100)]))
        assert found <= {Eager(1), D.ThreadProc(1, 1)}


def test_s7_1_incompatible_arguments_exclude_a_processor(fake: FakeProc) -> None:
    """§7.1, §17.5: a processor that does not accept an argument's type is passed over."""
    with D.Context(threads=1):
        both = D.Options(scope=D.UnionScope(D.ExactScope(fake), D.ExactScope(D.ThreadProc(1, 1))))
        for _ in range(5):
            assert D.fetch(D.spawn(where, both, "text")) == D.ThreadProc(1, 1)
        assert code_of(D.spawn(fakesum, D.Options(scope=D.ExactScope(fake)), "text")) == "no_processors"


def test_s7_3_the_environment_on_a_custom_processor(plain: Device) -> None:
    """§7.3, §3: a body there has its environment: processor, task id, options; children may run on threads."""

    def body() -> tuple[Any, ...]:
        child = D.fetch(D.spawn(where))
        return D.task_processor(), D.task_id(), child

    with D.Context(threads=1):
        task = D.spawn(body, D.Options(scope=D.ExactScope(plain)))
        processor, number, child = D.fetch(task)
    assert (processor, number) == (plain, task.id)
    assert child == D.ThreadProc(1, 1)


def test_s7_3_failures_on_a_custom_processor(plain: Device) -> None:
    """§7.3: the exception of the body is the task's; the processor goes on."""
    with D.Context(threads=1):
        there = D.Options(scope=D.ExactScope(plain))
        assert outcome(D.spawn(boom, there)) == (D.DTaskFailedError, BoomError)
        assert D.fetch(D.spawn(add, there, 1, 2)) == 3


@pytest.mark.parametrize("hook", ["execute", "iscompatible_func", "iscompatible_arg"])
def test_issue5_a_hook_that_raises(hook: str) -> None:
    """Issue 5: a hook that raises fails the task that asked for it; others are unharmed."""

    class Broken(Device):
        pass

    def raises(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise BoomError("the hook broke")

    setattr(Broken, hook, raises)
    D.add_processor_callback(Broken, "acc bad")
    with D.Context(threads=1):
        bad = D.spawn(identity, D.Options(scope=D.ProcessorTypeScope(Broken)), 1)
        assert isinstance(D.unwrap_exception(failure(bad)), (BoomError, D.TimespanError))
        assert D.fetch(D.spawn(add, 1, 2)) == 3
        D.check(D.eager_state())


@pytest.mark.parametrize("hook", ["default_enabled", "get_parent"])
def test_issue5_a_hook_of_discovery_that_raises(hook: str) -> None:
    """Issue 5: a broken processor that nobody asks for does not keep others' tasks from running."""

    class Broken(Device):
        pass

    def raises(self: Any) -> Any:
        raise BoomError("the hook broke")

    setattr(Broken, hook, raises)
    D.add_processor_callback(Broken, "acc bad")
    with D.Context(threads=2):
        pinned = D.Options(scope=D.ProcessScope(1))
        partial = D.Options(occupancy={Any: 0.5})
        assert D.fetch_all([D.spawn(int), D.spawn(int, pinned), D.spawn(int, partial)]) == [0, 0, 0]
        D.check(D.eager_state())


def test_issue5_a_move_that_raises_is_the_failure_of_its_task(plain: Device) -> None:
    """§17.8, issue 5: an argument that can't be moved fails the task; its body never runs; others are unharmed."""

    class Stuck:
        pass

    @D.move.register(D.Processor, Device, Stuck)
    def _stuck(source: Any, target: Any, x: Any) -> Any:
        raise BoomError("too heavy")

    ran: list[int] = []
    with D.Context(threads=1):
        there = D.Options(scope=D.ExactScope(plain))
        assert outcome(D.spawn(lambda x: ran.append(1), there, Stuck())) == (D.DTaskFailedError, BoomError)
        assert D.fetch(D.spawn(identity, there, 1)) == 1
    assert ran == []


def test_s7_4_moves_of_ones_own_are_in_the_log(fake: FakeProc) -> None:
    """§19, docs/events.md: a move by a custom hook has the kind `custom` and names the processor."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        task = D.spawn(fakesum, D.Options(**ONLY_FAKE), 1)
        assert D.fetch(task) == FakeVal(43)
        events = settled(log, task)
    assert timeline_of(events, task, "move", position=1).kind == "custom"
    for category in ("move", "compute"):
        assert {e.id.processor for e in of_task(events, task, category)} == {fake}


def test_s17_7_one_body_at_a_time(plain: Device) -> None:
    """§17.7: a custom processor's occupancy counts as a thread's does: full ones run one after the other."""
    lock, now, most = threading.Lock(), [0], [0]

    def body() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        with lock:
            now[0] -= 1

    with D.Context(threads=4):
        D.waitall([D.spawn(body, D.Options(scope=D.ExactScope(plain))) for _ in range(200)])
    assert most == [1]


def test_s4_1_occupancy_of_a_type(plain: Device) -> None:
    """§4.1: occupancy is looked up by the processor's exact type first, then `Any`."""
    barrier = threading.Barrier(2)
    half = {Device: 0.5, Any: 1}
    with D.Context(threads=2):
        tasks = [
            D.spawn(barrier.wait, D.Options(scope=D.ExactScope(plain), occupancy=half), DEADLINE_S) for _ in range(2)
        ]
        assert sorted(t.fetch(timeout=DEADLINE_S) for t in tasks) == [0, 1]


def test_s7_5_memory_of_a_custom_processor(plain: Device) -> None:
    """§7.5 accept: memory spaces are not defined for a processor type unless it does: ValueError."""
    with pytest.raises(ValueError):
        D.memory_spaces(plain)

    class WithMemory(Device):
        def memory_spaces(self) -> set[Any]:
            return {D.CPURAMMemorySpace(self.owner)}

    assert D.memory_spaces(WithMemory(1)) == {D.CPURAMMemorySpace(1)}


def test_s1_6_callable_objects_in_a_batch() -> None:
    """§1.6 accept: an instance with `__call__` is a body; a plain function stays itself, without a scope."""

    class Plus:
        def __call__(self, x: int) -> int:
            return x + 1

    assert D.collect(D.delayed(Plus())(1)) == 2
    thunk = D.delayed(add)(1, 2)
    assert thunk.f is add and not isinstance(thunk.f, D.Chunk)
    assert thunk.options.scope is None


# --- with slots of their own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hundred(Device):
    """A device that takes integers only, and adds 100 to its results."""

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        return argtype is int

    def execute(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return 100 + f(*args, **kwargs)


ON_HUNDRED = D.Options(scope=D.ProcessorTypeScope(Hundred))


@pytest.fixture
def hundred() -> Hundred:
    """One on this worker."""
    D.add_processor_callback(Hundred, "acc hundred")
    return Hundred()


class TestInTheScheduler:
    """A processor with slots of its own among the threads (§17)."""

    def test_a_custom_processor_runs_its_tasks(self, hundred: Hundred) -> None:
        """A task that may run on devices only runs there, on threads, besides tasks on threads."""
        with D.Context(threads=2):
            tasks = [D.spawn(identity, ON_HUNDRED, n) for n in range(20)]
            plain = [D.spawn(identity, n) for n in range(20)]
            assert D.fetch_all(tasks) == [100 + n for n in range(20)]
            assert D.fetch_all(plain) == list(range(20))
            assert D.fetch(tasks[0], raw=True).processor == hundred

    def test_a_device_runs_one_whole_body_at_a_time(self, hundred: Hundred) -> None:
        """Bodies on one device exclude each other, however many threads there are."""
        inside: list[int] = []
        most: list[int] = []

        def body(n: int) -> int:
            inside.append(n)
            most.append(len(inside))
            time.sleep(0)
            inside.remove(n)
            return n

        with D.Context(threads=3):
            D.fetch_all([D.spawn(body, ON_HUNDRED, n) for n in range(50)])
        assert max(most) == 1

    def test_a_body_on_a_device_may_fetch_tasks_of_threads(self, hundred: Hundred) -> None:
        """A blocked body gives the device back, and gets it again."""
        with D.Context(threads=1):
            inner = lambda n: D.fetch(D.spawn(identity, n))  # noqa: E731
            assert D.fetch_all([D.spawn(inner, ON_HUNDRED, n) for n in range(5)]) == [100 + n for n in range(5)]

    def test_an_incompatible_argument_type_has_no_processor(self, hundred: Hundred) -> None:
        """A device that does not take the type of an argument is no candidate."""
        with D.Context(threads=1):
            error = D.unwrap_exception(failure(D.spawn(identity, ON_HUNDRED, "text")))
            assert isinstance(error, D.SchedulingError) and error.code == "no_processors"

    def test_a_processor_that_appears_later_is_used_and_one_that_goes_is_not(self) -> None:
        """Callbacks take effect on a running scheduler; tasks that waited for a lost device are placed again."""
        with D.Context(threads=1):
            assert D.fetch(D.spawn(add, 1, 2)) == 3
            D.add_processor_callback(Hundred, "late-device")
            try:
                assert D.fetch(D.spawn(identity, ON_HUNDRED, 1)) == 101
                gate, begun = threading.Event(), threading.Event()
                blocker = D.spawn(lambda: begun.set() or (gate.wait(DEADLINE_S) and 0), ON_HUNDRED)
                assert begun.wait(DEADLINE_S)
                waiting = D.spawn(identity, ON_HUNDRED, 5)
            finally:
                D.delete_processor_callback("late-device")
            error = D.unwrap_exception(failure(waiting))
            assert isinstance(error, D.SchedulingError) and error.code == "no_processors"
            gate.set()
            assert D.fetch(blocker) == 100

    def test_a_hook_that_raises_fails_its_task_only(self, hundred: Hundred, monkeypatch: pytest.MonkeyPatch) -> None:
        """What `iscompatible_func` raises is the failure of the task that was to be placed; others go on."""

        def broken(self: Hundred, opts: Any, f: Any) -> bool:
            raise RuntimeError("no idea")

        with D.Context(threads=1):
            monkeypatch.setattr(Hundred, "iscompatible_func", broken)
            assert "no idea" in str(failure(D.spawn(identity, ON_HUNDRED, 1)))
            assert D.fetch(D.spawn(identity, 1)) == 1
