"""spec/scheduler.md, processors: the tree of them, their discovery, movement and memory spaces."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.places import node
from otel_timespan.dagger.places.processors import (
    CPURAMMemorySpace,
    MemorySpace,
    OSProc,
    Processor,
    ThreadProc,
    add_processor_callback,
    default_threads,
    delete_processor_callback,
    execute,
    get_parent,
    get_processors,
    has_custom_moves,
    invalidate,
    invalidation_hooks,
    iscompatible,
    iscompatible_arg,
    iscompatible_func,
    memory_space,
    memory_spaces,
    move,
    myid,
    processors,
    root,
    short_name,
    topology,
)
from otel_timespan.errors import InvalidOptionError, NotCallableError
from tests.dagger.acceptance.support import add


def test_s7_1_hierarchy() -> None:
    """§7.1: a thread's parent is its worker's process; threads take part by default, processes don't compute."""
    thread, process = D.ThreadProc(1, 1), D.OSProc(1)
    assert D.get_parent(thread) == process
    assert D.get_parent(thread).pid == 1
    assert D.default_enabled(thread) is True
    assert D.default_enabled(process) is False
    assert D.get_processors(thread) == {thread}
    assert (thread.owner, thread.tid) == (1, 1)
    assert D.OSProc() == process


def test_s7_1_children_of_a_process(cluster: D.Context) -> None:
    """§7.1: the children of a process are the slots of that worker."""
    for worker in (1, 2):
        assert {D.ThreadProc(worker, 1), D.ThreadProc(worker, 2)} <= set(D.get_processors(D.OSProc(worker)))


def test_s7_1_processors_are_values() -> None:
    """§7.1: processors are equal when they denote the same device, hashable, immutable and serialisable."""
    for make in (lambda: D.OSProc(1), lambda: D.ThreadProc(1, 2)):
        assert make() == make() and hash(make()) == hash(make())
        assert pickle.loads(pickle.dumps(make())) == make()
    assert D.ThreadProc(1, 1) != D.ThreadProc(1, 2) != D.ThreadProc(2, 2)
    assert D.OSProc(1) != D.ThreadProc(1, 1)
    with pytest.raises((AttributeError, TypeError)):
        D.ThreadProc(1, 1).tid = 5


def test_s7_1_short_names() -> None:
    """§7.1: `W: <pid>`, `W: <owner>, TID: <tid>`, and `str` for anybody else's."""

    class Mine(D.Processor):
        def __str__(self) -> str:
            return "mine"

    assert D.short_name(D.OSProc(3)) == "W: 3"
    assert D.short_name(D.ThreadProc(2, 4)) == "W: 2, TID: 4"
    assert D.short_name(Mine()) == "mine"


def test_s7_1_bare_subclass() -> None:
    """§7.1: a bare subclass is not enabled, is its own only child, is compatible with nothing."""

    class Bare(D.Processor):
        pass

    bare = Bare()
    assert D.default_enabled(bare) is False
    assert D.get_processors(bare) == {bare}
    assert not D.iscompatible_func(bare, D.Options(), int)
    assert not D.iscompatible_arg(bare, D.Options(), int)
    with pytest.raises(Exception):  # noqa: B017 - only that it is required is specified
        D.get_parent(bare)


def test_s7_1_compatibility() -> None:
    """§7.1: threads run everything, a process what any child runs."""
    for processor in (D.ThreadProc(1, 1), D.OSProc(1)):
        assert D.iscompatible(processor, D.Options(), add, int, list)
        assert D.iscompatible_func(processor, D.Options(), add)
        assert D.iscompatible_arg(processor, D.Options(), list)


def test_s7_1_memory_spaces() -> None:
    """§7.5 accept: all threads of a worker share one memory; a value's memory is the caller's."""
    space = D.CPURAMMemorySpace(1)
    assert D.memory_spaces(D.ThreadProc(1, 1)) == {space} == D.memory_spaces(D.ThreadProc(1, 2))
    assert D.memory_space([1]) == space == D.memory_space(D.tochunk(1)) == D.memory_space(D.spawn(int))

    class Bare(D.Processor):
        pass

    with pytest.raises(ValueError):
        D.memory_spaces(Bare())


# --- edges ---------------------------------------------------------------------------------------------------


class BareProc(Processor):
    """Overrides nothing."""


class FakeProc(Processor):
    """One on each worker, for integers only."""

    def __init__(self, owner: int = 1) -> None:
        self.owner = owner

    def get_parent(self) -> Processor:
        return OSProc(self.owner)

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        return issubclass(argtype, int)

    def execute(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs) + 42


class SpecialFakeProc(FakeProc):
    """A subclass."""


@dataclass(frozen=True)
class DeviceProc(Processor):
    """A processor as a dataclass."""

    device: str

    def get_parent(self) -> Processor:
        return FakeProc(2)


@pytest.fixture
def workers() -> Iterator[None]:
    """Worker 1 with two threads and worker 2 with three, which are pretended."""
    before = topology.remote
    topology.reset(threads=2)
    topology.add_worker(2, 3)
    yield
    for worker in (1, 2):
        with topology.acting_as(worker):
            for name in ("fake", "other"):
                delete_processor_callback(name)
    topology.remote = before
    topology.reset()


@pytest.mark.usefixtures("workers")
class TestProcessors:
    def test_thread_and_worker_form_a_tree(self) -> None:
        """A thread's parent is its worker, which is its own parent and the root."""
        assert get_parent(ThreadProc(1, 1)) == OSProc(1)
        assert get_parent(OSProc(1)) == OSProc(1)
        assert root(DeviceProc("a")) == OSProc(2)

    def test_they_are_equal_by_value(self) -> None:
        """Processors are equal, and hash alike, when class and attributes are."""
        assert FakeProc(1) == FakeProc(1) != FakeProc(2)
        assert hash(FakeProc(1)) == hash(FakeProc(1))
        assert FakeProc(1) != SpecialFakeProc(1)
        assert BareProc() == BareProc()
        assert DeviceProc("a") == DeviceProc("a") != DeviceProc("b")
        assert {ThreadProc(1, 1), ThreadProc(1, 1)} == {ThreadProc(1, 1)}

    def test_they_are_immutable_and_small(self) -> None:
        """Ours can't be changed and have no dict."""
        with pytest.raises(AttributeError):
            ThreadProc(1, 1).tid = 2  # type: ignore[misc]
        assert not hasattr(ThreadProc(1, 1), "__dict__")

    @pytest.mark.parametrize("proc", [OSProc(2), ThreadProc(2, 3), FakeProc(1), DeviceProc("x"), CPURAMMemorySpace(2)])
    def test_they_survive_pickling(self, proc: object) -> None:
        """A pickled processor or space comes back equal."""
        assert pickle.loads(pickle.dumps(proc)) == proc

    @pytest.mark.parametrize("bad", [0, -1, "1", 1.5, True, None])
    def test_bad_ids_are_refused(self, bad: Any) -> None:
        """Ids are integers from 1."""
        with pytest.raises(InvalidOptionError):
            ThreadProc(bad, 1)
        with pytest.raises(InvalidOptionError):
            ThreadProc(1, bad)

    def test_short_names(self) -> None:
        """Short names are those of the spec, by default the text."""
        assert short_name(OSProc(3)) == "W: 3"
        assert short_name(ThreadProc(1, 2)) == "W: 1, TID: 2"
        assert short_name(BareProc()) == "BareProc()"

    def test_undefined_hooks_say_so(self) -> None:
        """A hook that a type lacks is a clear ValueError."""
        for call in (get_parent, memory_spaces, lambda p: execute(p, int)):
            with pytest.raises(ValueError, match="BareProc has no"):
                call(BareProc())
        with pytest.raises(InvalidOptionError, match="a Processor is needed"):
            get_parent(3)  # type: ignore[arg-type]

    def test_a_circle_of_parents_is_found(self) -> None:
        """Parents that never reach a worker are an error, not a hang."""

        class Loop(Processor):
            def get_parent(self) -> Processor:
                return self

        with pytest.raises(InvalidOptionError, match="circle"):
            root(Loop())

    def test_compatibility(self) -> None:
        """Threads take everything, others what they say, workers what any child takes."""
        assert iscompatible(ThreadProc(1, 1), None, print, int, str)
        assert not iscompatible(BareProc(), None, print)
        assert iscompatible(FakeProc(), None, print, int)
        assert not iscompatible(FakeProc(), None, print, int, str)
        assert iscompatible(OSProc(1), None, print, str)
        assert not iscompatible(OSProc(99), None, print)
        assert iscompatible_func(OSProc(1), None, print)
        assert iscompatible_arg(OSProc(1), None, str)

    def test_execute(self) -> None:
        """Executing calls the function, as the processor sees fit."""
        assert execute(ThreadProc(1, 1), divmod, 7, 2) == (3, 1)
        assert execute(FakeProc(), int, "5") == 47
        assert execute(ThreadProc(1, 1), lambda **kw: kw, f=1, self=2, processor=3) == {
            "f": 1,
            "self": 2,
            "processor": 3,
        }
        with pytest.raises(ZeroDivisionError):
            execute(ThreadProc(1, 1), divmod, 1, 0)


@pytest.mark.usefixtures("workers")
class TestTopology:
    def test_starts_alone(self) -> None:
        """At first there is worker 1 with the default number of threads."""
        topology.reset()
        assert topology.workers() == (1,)
        assert topology.threads(1) == default_threads()
        assert topology.me() == myid() == 1

    def test_changes_show_at_once(self) -> None:
        """Added and removed workers, and other slot counts, show in `get_processors` immediately."""
        assert len(get_processors(OSProc(2))) == 3
        topology.add_worker(2, 5)
        assert len(get_processors(OSProc(2))) == 5
        topology.remove_worker(2)
        assert get_processors(OSProc(2)) == frozenset()
        assert topology.threads(2) == 0

    def test_acting_as_another_worker(self) -> None:
        """Code that acts as a worker sees itself as that worker, and only there."""
        with topology.acting_as(2):
            assert OSProc() == OSProc(2)
            assert CPURAMMemorySpace() == CPURAMMemorySpace(2)
        assert OSProc() == OSProc(1)

    def test_nodes(self) -> None:
        """Workers are on this host unless said otherwise."""
        topology.add_worker(3, 1, node="elsewhere")
        assert topology.node(3) == "elsewhere"
        assert topology.node(2) == topology.node(1) == node.node_uuid()

    def test_threads_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The variable decides the default number of slots; nonsense in it is refused."""
        monkeypatch.setenv("OTEL_TIMESPAN_THREADS", "7")
        assert default_threads() == 7
        monkeypatch.setenv("OTEL_TIMESPAN_THREADS", "none")
        with pytest.raises(InvalidOptionError, match="OTEL_TIMESPAN_THREADS"):
            default_threads()
        monkeypatch.delenv("OTEL_TIMESPAN_THREADS")
        assert default_threads() >= 2


@pytest.mark.usefixtures("workers")
class TestDiscovery:
    def test_callbacks_take_effect_at_once(self) -> None:
        """What a callback reports appears in its worker only, and goes with it."""
        before = get_processors(OSProc())
        add_processor_callback(FakeProc, "fake")
        assert get_processors(OSProc()) == before | {FakeProc()}
        assert FakeProc() not in get_processors(OSProc(2))
        delete_processor_callback("fake")
        assert get_processors(OSProc()) == before

    def test_callbacks_of_simulated_workers(self) -> None:
        """A callback belongs to the worker that added it, and runs as that worker."""
        with topology.acting_as(2):
            add_processor_callback(lambda: FakeProc(myid()), "fake")
        assert FakeProc(2) in get_processors(OSProc(2))
        assert FakeProc(2) not in get_processors(OSProc(1))

    def test_shapes_of_a_report(self) -> None:
        """A callback may report none, one, or several; a second one of a name replaces the first."""
        threads = get_processors(OSProc())
        for report, found in [(None, set()), ([FakeProc(1), FakeProc(2)], {FakeProc(1), FakeProc(2)}), ((), set())]:
            add_processor_callback(lambda report=report: report, "fake")
            assert get_processors(OSProc()) == threads | found

    def test_a_bad_callback_is_logged_and_skipped(self, caplog: pytest.LogCaptureFixture) -> None:
        """What raises, or reports nonsense, is left out with a warning; the others count."""

        def boom() -> None:
            raise RuntimeError("no driver")

        add_processor_callback(boom, "fake")
        add_processor_callback(FakeProc, "other")
        assert FakeProc() in get_processors(OSProc())
        assert "no driver" in caplog.text
        add_processor_callback(lambda: 3, "fake")
        assert FakeProc() in get_processors(OSProc())
        assert "a Processor is needed" in caplog.text

    def test_only_functions_can_be_callbacks(self) -> None:
        """Anything else is refused at once."""
        with pytest.raises(NotCallableError):
            add_processor_callback(3, "fake")  # type: ignore[arg-type]

    def test_results_are_kept_until_something_changes(self) -> None:
        """A callback runs once, and again after `invalidate`."""
        calls: list[int] = []
        add_processor_callback(lambda: calls.append(1), "fake")
        for _ in range(3):
            get_processors(OSProc())
        assert len(calls) == 1
        invalidate(1)
        get_processors(OSProc())
        assert len(calls) == 2

    def test_others_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        """The hooks hear of each change; one that raises does not hurt the others."""
        heard: list[int] = []

        def deaf(worker: int) -> None:
            raise OSError("connection lost")

        before, invalidation_hooks[:] = list(invalidation_hooks), [deaf, heard.append]
        try:
            add_processor_callback(FakeProc, "fake")
            delete_processor_callback("fake")
        finally:
            invalidation_hooks[:] = before
        assert heard == [1, 1]
        assert "connection lost" in caplog.text

    def test_a_change_during_discovery_is_not_lost(self) -> None:
        """What was found before a change is not kept after it."""

        def adds_another() -> None:
            add_processor_callback(FakeProc, "other")

        add_processor_callback(adds_another, "fake")
        get_processors(OSProc())
        assert FakeProc() in get_processors(OSProc())

    def test_workers_of_other_processes_are_asked(self, caplog: pytest.LogCaptureFixture) -> None:
        """The driver's hook says what a remote worker has besides threads; failing that, threads."""
        topology.add_worker(4, 1, local=False)
        assert get_processors(OSProc(4)) == {ThreadProc(4, 1)}
        topology.remote = lambda worker: [FakeProc(worker)]
        invalidate(4)
        assert get_processors(OSProc(4)) == {ThreadProc(4, 1), FakeProc(4)}

        def fails(worker: int) -> list[Processor]:
            raise ConnectionError("gone")

        topology.remote = fails
        invalidate()
        assert get_processors(OSProc(4)) == {ThreadProc(4, 1)}
        assert "gone" in caplog.text


@pytest.mark.usefixtures("workers")
class TestMove:
    @pytest.fixture(autouse=True)
    def _rules(self) -> Iterator[None]:
        """Only the rules of the test: others may have registered theirs for the whole process."""
        before = move._rules
        move._change({})
        yield
        move._change(before)

    def test_a_value_stays_itself(self) -> None:
        """Without a rule moving is the identity, and there is nothing custom."""
        value = object()
        assert move(OSProc(1), ThreadProc(2, 1), value) is value
        assert not has_custom_moves()

    def test_rules_fit_by_all_three_types(self) -> None:
        """A rule holds for its source, target and value types and their subclasses."""

        @move.register(ThreadProc, FakeProc, int)
        def boxed(source: Processor, target: Processor, x: int) -> str:
            return f"box{x}"

        assert has_custom_moves()
        assert move(ThreadProc(1, 1), FakeProc(), 3) == "box3"
        assert move(ThreadProc(1, 1), SpecialFakeProc(), True) == "boxTrue"
        assert move(ThreadProc(1, 1), FakeProc(), "3") == "3"
        assert move(OSProc(1), FakeProc(), 3) == 3
        move.unregister(ThreadProc, FakeProc, int)
        assert move(ThreadProc(1, 1), FakeProc(), 3) == 3
        assert not has_custom_moves()

    def test_the_most_specific_rule_wins(self) -> None:
        """Value type first, then target, then source; registration order does not matter."""
        rules = {
            (Processor, Processor, object): "any",
            (Processor, FakeProc, object): "to fake",
            (OSProc, Processor, object): "from worker",
            (Processor, Processor, int): "int",
            (Processor, FakeProc, int): "int to fake",
        }
        for kinds, answer in rules.items():
            move.register(*kinds)(lambda *_, answer=answer: answer)
        assert move(ThreadProc(1, 1), ThreadProc(1, 1), "x") == "any"
        assert move(OSProc(1), ThreadProc(1, 1), "x") == "from worker"
        assert move(OSProc(1), SpecialFakeProc(), "x") == "to fake"
        assert move(OSProc(1), ThreadProc(1, 1), True) == "int"
        assert move(OSProc(1), FakeProc(), 1) == "int to fake"

    def test_abstract_types_rank_below_real_ones(self) -> None:
        """A virtual base fits, behind every real base but `object`."""
        move.register(Processor, Processor)(lambda *_: "object")
        move.register(Processor, Processor, Callable)(lambda *_: "callable")
        assert move(OSProc(1), OSProc(1), len) == "callable"
        assert move(OSProc(1), OSProc(1), 3) == "object"
        move.register(Processor, Processor, type(len))(lambda *_: "builtin")
        assert move(OSProc(1), OSProc(1), len) == "builtin"
        move.unregister(Processor, Processor, type(len))

    def test_our_own_rules_are_not_custom(self) -> None:
        """A rule of the package itself leaves the short cut open."""
        move.register(Processor, Processor, str, builtin=True)(lambda *_: "ours")
        assert not has_custom_moves()
        assert move(OSProc(1), OSProc(1), "x") == "ours"

    def test_bad_registrations_are_refused(self) -> None:
        """Rules are between processor types, for types of values, by functions."""
        with pytest.raises(InvalidOptionError, match="processor types"):
            move.register(int, OSProc, int)
        with pytest.raises(InvalidOptionError, match="type of the values"):
            move.register(OSProc, OSProc, 3)
        with pytest.raises(NotCallableError):
            move.register(OSProc, OSProc, int)(3)  # type: ignore[type-var]


@pytest.mark.usefixtures("workers")
class TestMemorySpaces:
    def test_all_threads_of_a_worker_share_one(self) -> None:
        """A worker has one main memory, which its threads reach."""
        assert memory_spaces(ThreadProc(1, 1)) == {CPURAMMemorySpace(1)} == memory_spaces(ThreadProc(1, 2))
        assert memory_spaces(OSProc(2)) == {CPURAMMemorySpace(2)}
        assert processors(CPURAMMemorySpace(2)) == {ThreadProc(2, t) for t in (1, 2, 3)}

    def test_a_plain_value_lives_here(self) -> None:
        """A value that says nothing else is in the memory of the worker that asks."""
        assert memory_space([1]) == CPURAMMemorySpace(1)
        with topology.acting_as(2):
            assert memory_space([1]) == CPURAMMemorySpace(2)

    def test_undefined_is_an_error(self) -> None:
        """A processor without memory spaces raises, and reaches none."""
        with pytest.raises(ValueError, match="memory_spaces"):
            memory_spaces(FakeProc())
        add_processor_callback(FakeProc, "fake")
        assert FakeProc() not in processors(CPURAMMemorySpace(1))
        with pytest.raises(InvalidOptionError):
            processors(MemorySpace())
        with pytest.raises(InvalidOptionError):
            processors(1)  # type: ignore[arg-type]
