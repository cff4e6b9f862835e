"""spec/scheduler.md, scoped options: blocks, threads, and what is handed down to the tasks of a body."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_timespan import dagger as D
from otel_timespan.dagger.options.options import DEFAULT, Options
from otel_timespan.dagger.options.scoped import (
    effective,
    enter_propagated,
    get_options,
    propagated,
    scoped,
    scoped_options,
    with_options,
)
from otel_timespan.dagger.service import threads
from otel_timespan.dagger.service.threads import carry, inherit_in_threads, start_bare
from otel_timespan.errors import ConcurrencyViolationError, InvalidOptionError, OptionNotSetError
from tests.dagger.acceptance.stubs import TaskLike
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    boom,
    outcome,
)


def test_s4_2_get_options() -> None:
    """§4.2: all scoped options as a dict, one by name, a default or an error where it is not set."""
    assert D.get_options() == {}
    assert D.get_options("meta", False) is False
    with pytest.raises(KeyError):
        D.get_options("meta")
    with D.with_options(meta=True):
        assert D.get_options("meta") is True
        assert D.get_options("meta", False) is True
        assert D.get_options()["meta"] is True


def test_s4_2_default_inside_a_task() -> None:
    """§4.2 accept: by default nothing is set inside a task either."""
    assert D.fetch(D.spawn(D.get_options, "meta", False)) is False


def test_s4_2_merges_nests_and_restores() -> None:
    """§4.2: blocks merge, the inner value wins, and leaving (by an exception too) restores."""
    s, t = D.scope(worker=1, thread=1), D.scope(worker=1, thread=2)
    with D.with_options(scope=s):
        with D.with_options(meta=True):
            assert {"scope", "meta"} <= set(D.get_options())
        with pytest.raises(ZeroDivisionError), D.with_options(scope=t):
            assert D.get_options("scope") == t
            raise ZeroDivisionError
        assert D.get_options("scope") == s and D.get_options("meta", None) is None
    assert D.get_options() == {}


def test_s4_2_helper_threads_inherit() -> None:
    """§4.2 accept: a helper thread started inside the block sees the scoped options."""
    seen: list[Any] = []
    with D.with_options(meta=True):
        thread = threading.Thread(target=lambda: seen.append(D.get_options("meta", False)))
        thread.start()
        thread.join(DEADLINE_S)
    assert seen == [True]


def test_s4_2_async_tasks_inherit() -> None:
    """§4.2: asyncio tasks and `to_thread` calls started inside the block see the scoped options."""

    async def ask() -> Any:
        return D.get_options("meta", False)

    async def main() -> list[Any]:
        with D.with_options(meta=True):
            job = asyncio.create_task(ask())
            threaded = asyncio.create_task(asyncio.to_thread(D.get_options, "meta", False))
        return [await job, await threaded, await ask()]

    assert asyncio.run(main()) == [True, True, False]


def test_s4_2_threads_do_not_share_blocks(gate: threading.Event) -> None:
    """§4.2: a block of one thread is invisible to a thread that was started before."""
    seen: list[Any] = []

    def other() -> None:
        gate.wait(DEADLINE_S)
        seen.append(D.get_options("meta", False))

    thread = threading.Thread(target=other)
    thread.start()
    with D.with_options(meta=True):
        gate.set()
        thread.join(DEADLINE_S)
    assert seen == [False]


def test_s4_2_options_propagate_to_any_depth(cluster: D.Context) -> None:
    """§4.2: what is scoped at the spawn holds for the children of the body, and theirs."""

    def body(depth: int) -> list[int]:
        here = [D.myid()]
        return here + (D.fetch(D.spawn(body, depth - 1)) if depth else [])

    for worker in (1, 2):
        with D.with_options(scope=D.ProcessScope(worker)):
            assert D.fetch(D.spawn(body, 4)) == [worker] * 5


def test_s4_2_accept_increment_by_the_worker(cluster: D.Context) -> None:
    """§4.2 accept: within `with_options(scope=ProcessScope(w))` both nested spawns run on w."""

    def inc_by_myid(x: int) -> int:
        return D.fetch(D.spawn(lambda a, b: a + b, x, D.spawn(D.myid)))

    for worker in (1, 2):
        with D.with_options(scope=D.ProcessScope(worker)):
            assert D.fetch(D.spawn(inc_by_myid, 1)) == 1 + worker


def test_s4_2_children_get_the_tasks_own_values(cluster: D.Context) -> None:
    """§4.2: with `scope=A` around and the task's own `scope=B`, children default to B."""

    def parent() -> tuple[int, int]:
        return D.myid(), D.fetch(D.spawn(D.myid))

    with D.with_options(scope=D.ProcessScope(1)):
        assert D.fetch(D.spawn(parent, D.Options(scope=D.ProcessScope(2)))) == (2, 2)


def test_s4_2_task_options_alone_do_not_propagate() -> None:
    """§4.2: only names of scoped options propagate; an option given to one task is that task's alone."""
    task = D.spawn(D.get_options, D.Options(name="mine", get_result=True))
    assert D.fetch(task) == {}


def test_s4_2_an_explicit_propagates_list() -> None:
    """§4.2, §4.1: `propagates` names what is handed down, with the task's values; the list is not changed."""
    names = ["name"]
    options = D.Options(name="down", propagates=names)
    with D.with_options(get_result=True):
        assert D.fetch(D.spawn(lambda: D.get_options("name"), options)) == "down"
    assert names == ["name"] and list(options.propagates) == ["name"]


def test_s4_2_a_name_that_is_no_option_cannot_propagate() -> None:
    """§4.2: a propagated name that is no option is a ValueError, at once or as the task's failure."""
    with pytest.raises((ValueError, D.DTaskFailedError)) as caught:
        D.fetch(D.spawn(int, D.Options(propagates=["nope"])))
    assert isinstance(D.unwrap_exception(caught.value), ValueError)


def test_s4_2_bodies_start_from_exactly_the_propagated_set() -> None:
    """§4.2: neither the options of the block that first started the threads nor another body's leak into a body."""
    with D.Context(threads=1):
        with D.with_options(meta=True, name="starter"):
            D.spawn(int).fetch(timeout=DEADLINE_S)

        def leak() -> None:
            D.with_options(get_result=True).__enter__()

        D.spawn(leak).fetch(timeout=DEADLINE_S)
        for _ in range(5):
            assert D.spawn(D.get_options).fetch(timeout=DEADLINE_S) == {}
            with D.with_options(name="caller"):
                assert D.fetch(D.spawn(D.get_options)) == {"name": "caller"}
            assert D.fetch(D.spawn(D.get_options)) == {}


def test_s4_2_a_helped_body_does_not_see_or_change_the_fetchers_options() -> None:
    """§4.2, ruling 13: a body that runs in the fetching thread has its own scoped options, and takes them away."""
    with D.Context(driver=D.InlineDriver()):

        def body() -> dict[str, Any]:
            found = D.get_options()
            D.with_options(get_result=True).__enter__()
            return found

        task = D.spawn(body)
        with D.with_options(meta=True):
            assert D.fetch(task) == {}
            assert D.get_options() == {"meta": True}


def test_s4_2_user_context_variables_are_seen_as_at_the_spawn() -> None:
    """§4.2: a block that ended before the body ran still holds for it: options are read at spawn time."""
    with D.Context(driver=D.InlineDriver()):
        with D.with_options(name="then"):
            task = D.spawn(D.get_options)
        assert D.fetch(task) == {"name": "then"}


def test_s4_2_wrong_values_are_refused_by_with_options() -> None:
    """§4.2: `with_options` refuses what can't work before the block begins."""
    with pytest.raises(ValueError), D.with_options(scope="everywhere"):
        pytest.fail("the block ran")
    assert outcome(D.spawn(boom))[0] is D.DTaskFailedError


# --- edges of blocks and threads -----------------------------------------------------------------------------

A, B = D.ProcessScope(1), D.ProcessScope(2)
T1, T2 = TaskLike(1), TaskLike(2)


def in_thread(fn: Callable[[], Any]) -> Any:
    """What `fn` returns in a thread started here."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fn()))
    thread.start()
    thread.join()
    return found[0]


class TestScoped:
    def test_nothing_is_scoped_at_first(self) -> None:
        """Outside of blocks there are no options, and asking for one without default is an error."""
        assert scoped() is None
        assert get_options() == {}
        assert get_options("meta", False) is False
        with pytest.raises(KeyError, match="not set here"):
            get_options("meta")
        with pytest.raises(OptionNotSetError, match=r"^the option 'meta' is not set here"):
            get_options("meta")

    def test_blocks_nest(self) -> None:
        """An inner block adds, replaces and unsets; leaving restores, errors too."""
        with with_options(scope=A):
            with with_options(meta=True):
                assert get_options() == {"scope": A, "meta": True}
                with with_options(meta=None, scope=B):
                    assert get_options() == {"scope": B}
            with pytest.raises(RuntimeError), with_options(meta=True):
                raise RuntimeError
            assert get_options() == {"scope": A}
        assert scoped() is None

    def test_a_scope_hides_the_final_scope_around(self) -> None:
        """A scope in an inner block clears the `exec_scope` of the outer one."""
        with with_options(exec_scope=A), with_options(name="x"):
            assert get_options("exec_scope") == A
            with with_options(scope=B):
                assert get_options() == {"scope": B, "name": "x"}

    def test_values_are_checked_at_the_call(self) -> None:
        """A wrong value is refused before the block begins."""
        with pytest.raises(InvalidOptionError, match="meta"):
            with_options(meta=3)
        with pytest.raises(InvalidOptionError, match="task_queue"):
            with_options(task_queue=3)

    def test_usable_as_a_decorator(self) -> None:
        """Each call of a decorated function has the options."""

        @with_options(name="x")  # type: ignore[operator]
        def ask() -> Any:
            return get_options("name", None)

        assert [ask(), ask()] == ["x", "x"]
        assert scoped() is None

    def test_what_is_returned_is_a_copy(self) -> None:
        """Changing the answer of `get_options` changes nothing."""
        with with_options(name="x"):
            get_options()["name"] = "y"
            assert get_options("name") == "x"


class TestThreads:
    def test_helper_threads_see_the_options(self) -> None:
        """A thread started inside a block has its options, and threads of threads."""
        with with_options(meta=True):
            assert in_thread(lambda: get_options("meta")) is True
            assert in_thread(lambda: in_thread(lambda: get_options("meta"))) is True
        assert in_thread(scoped) is None

    def test_they_keep_them(self) -> None:
        """The thread's options are those of its start, whatever the starter does later."""
        go, found = threading.Event(), []

        def wait_and_ask() -> None:
            go.wait()
            found.append(get_options())

        with with_options(name="x"):
            thread = threading.Thread(target=wait_and_ask)
            thread.start()
        with with_options(name="y"):
            go.set()
            thread.join()
        assert found == [{"name": "x"}]

    def test_their_changes_are_their_own(self) -> None:
        """What a thread scopes does not show in the thread that started it."""

        def change() -> Any:
            with with_options(name="y"):
                return get_options("name")

        with with_options(name="x"):
            assert in_thread(change) == "y"
            assert get_options("name") == "x"

    def test_only_our_variables_are_carried(self) -> None:
        """Other people's context variables are not touched; registered ones are, None not."""
        ours: contextvars.ContextVar[Any] = contextvars.ContextVar("ours", default=None)
        theirs: contextvars.ContextVar[Any] = contextvars.ContextVar("theirs", default=None)
        carry(ours)
        carry(ours)
        try:
            inherit_in_threads()
            ours.set(1)
            theirs.set(2)
            assert in_thread(ours.get) == 1
            inherits = getattr(__import__("sys").flags, "thread_inherit_context", False)
            assert in_thread(theirs.get) == (2 if inherits else None)
        finally:
            ours.set(None)
            threads._carried.remove(ours)
        assert threads._carried.count(ours) == 0

    def test_subclasses_pools_and_timers(self) -> None:
        """Threads with a `run` of their own, pools started inside, and timers inherit, too."""

        class Asking(threading.Thread):
            found: Any = None

            def run(self) -> None:
                self.found = get_options()

        with with_options(name="x"):
            thread = Asking()
            thread.start()
            thread.join()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                pooled = pool.submit(get_options).result()
            found: list[Any] = []
            timer = threading.Timer(0, lambda: found.append(get_options()))
            timer.start()
            timer.join()
        assert thread.found == pooled == found[0] == {"name": "x"}

    def test_asyncio_tasks_inherit_by_themselves(self) -> None:
        """Coroutines and threads started by them have the options."""

        async def ask() -> Any:
            return get_options("name"), await asyncio.to_thread(get_options, "name")

        async def run() -> Any:
            with with_options(name="x"):
                return await asyncio.create_task(ask())

        assert asyncio.run(run()) == ("x", "x")

    def test_bare_threads_inherit_nothing(self) -> None:
        """A thread that is to outlive the block can be started without."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(scoped()))
        with with_options(name="x"):
            start_bare(thread)
            thread.join()
        assert found == [None]

    def test_installing_twice_wraps_once(self) -> None:
        """The wrapper is installed once and keeps the name and text of the original."""
        inherit_in_threads()
        wrapped = threading.Thread.start
        inherit_in_threads()
        assert threading.Thread.start is wrapped
        assert wrapped.__name__ == "start"

    def test_a_thread_that_cant_start_is_left_as_it_was(self) -> None:
        """A failing start raises as ever, and nothing stays behind on the thread."""
        with with_options(name="x"):
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            with pytest.raises(RuntimeError, match="once"):
                thread.start()
        assert "run" not in vars(thread)

    def test_a_finished_thread_keeps_nothing_alive(self) -> None:
        """The values that a thread inherited go with it, even if its object stays."""

        class Name(str):
            pass

        name = Name("x")
        gone = weakref.ref(name)
        with with_options(name=name):
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
        del name
        gc.collect()
        assert gone() is None


# --- edges of propagation ------------------------------------------------------------------------------------


class Queue:
    def enqueue(self, pairs: Any) -> None:
        raise NotImplementedError


class TestPropagation:
    def test_nothing_set_is_the_shared_default(self) -> None:
        """Neither options nor a block: one shared object, without a copy."""
        assert effective(None) is DEFAULT
        assert effective(Options()) is DEFAULT
        assert propagated(DEFAULT) is None

    def test_a_block_shares_one_object(self) -> None:
        """Tasks without options of their own share what their block gives; it can't be changed, but copied."""
        with with_options(name="x", scope=A):
            first, second = effective(None), effective(Options())
            assert first is second
            with pytest.raises(ConcurrencyViolationError):
                first.name = "y"
            assert pickle.loads(pickle.dumps(first)) == first == first.copy()
            assert effective(first) == first
            assert scoped() == {"name": "x", "scope": A}
        with with_options(syncdeps={T1}):
            effective(None).syncdeps.add(T2)  # type: ignore[union-attr]
            assert effective(None).syncdeps == {T1}

    def test_options_are_copied(self) -> None:
        """The caller may change its own object after the spawn."""
        own = Options(syncdeps={T1})
        taken = effective(own)
        own.syncdeps.add(T2)  # type: ignore[union-attr]
        own.name = "x"
        assert taken == Options(syncdeps={T1})
        assert taken.propagates is None

    def test_unset_options_are_filled(self) -> None:
        """The task's own options win; the scoped names are what it propagates."""
        with with_options(scope=A, name="outer", meta=True):
            taken = effective(Options(name="own", tag=1, meta=False))
        assert (taken.scope, taken.name, taken.meta, taken.tag) == (A, "own", False, 1)
        assert set(taken.propagates or ()) == {"scope", "name", "meta"}
        assert propagated(taken) == {"scope": A, "name": "own", "meta": False}

    def test_children_get_the_tasks_own_values(self) -> None:
        """`with_options(scope=A): spawn(Options(scope=B), f)` makes children of `f` default to B, at any depth."""
        with with_options(scope=A):
            task = effective(Options(scope=B))
        for _ in range(3):
            context = contextvars.Context()
            context.run(enter_propagated, task)
            task = context.run(effective, None)
            assert task.scope == B
            assert task.propagates == ("scope",)

    def test_own_lists_are_extended_on_a_copy(self) -> None:
        """A task's `propagates` is kept and joined with the scoped names; the given object stays as it was."""
        own = Options(propagates=["tag"], tag=3)
        with with_options(name="x"):
            taken = effective(own)
        assert taken.propagates == ("tag", "name")
        assert propagated(taken) == {"tag": 3, "name": "x"}
        assert own.propagates == ("tag",)

    def test_names_without_a_value_propagate_nothing(self) -> None:
        """Naming an unset option in `propagates` is no error."""
        assert propagated(Options(propagates=["tag"])) is None

    def test_the_queue_never_propagates(self) -> None:
        """A body starts with the default queue, even if nothing else is scoped."""
        with with_options(task_queue=Queue()):
            taken = effective(None)
            assert taken is not DEFAULT
            assert taken == Options()
            context = contextvars.copy_context()
            context.run(enter_propagated, taken)
            assert context.run(scoped) is None
            with with_options(name="x"):
                assert propagated(effective(None)) == {"name": "x"}

    def test_a_body_starts_with_exactly_that(self) -> None:
        """What the thread had scoped before is gone in the body."""
        context = contextvars.Context()
        context.run(scoped_options.set, {"meta": True})
        context.run(enter_propagated, Options(propagates=["name"], name="x"))
        assert context.run(scoped) == {"name": "x"}

    def test_final_scopes(self) -> None:
        """A task's scope beats a scoped final scope; a task's final scope survives a scoped scope."""
        with with_options(exec_scope=A):
            assert effective(Options(scope=B)).exec_scope is None
            assert effective(Options(name="x")).exec_scope == A
        with with_options(scope=A):
            taken = effective(Options(exec_scope=B))
            assert (taken.exec_scope, taken.scope) == (B, A)

    @given(
        st.dictionaries(st.sampled_from(["name", "tag", "meta", "timeout"]), st.none(), max_size=4),
        st.dictionaries(st.sampled_from(["name", "tag", "meta", "timeout"]), st.none(), max_size=4),
    )
    def test_merging_is_field_by_field(self, low: dict[str, Any], high: dict[str, Any]) -> None:
        """Each option is the task's own, else the scoped one, else unset."""
        values = {"name": ("a", "b"), "tag": (1, 2), "meta": (True, False), "timeout": (1.0, 2.0)}
        below = {name: values[name][0] for name in low}
        own = {name: values[name][1] for name in high}
        with with_options(**below):
            taken = effective(Options(**own))
        for name in values:
            assert getattr(taken, name) == own.get(name, below.get(name))
        assert set(taken.propagates or ()) == set(below)


class TestPropagationThroughEverything:
    """Options reach spawns in whatever a body starts, and at any depth."""

    @staticmethod
    def names(depth: int) -> list[str]:
        """The option `name` as each of a line of nested bodies sees it."""
        here = [get_options("name")]
        return here if depth == 0 else here + D.fetch(D.spawn(TestPropagationThroughEverything.names, depth - 1))

    def test_to_any_depth(self) -> None:
        """Twenty bodies inside each other all see what holds around the first."""
        with D.Context(threads=2), with_options(name="deep"):
            assert D.fetch(D.spawn(self.names, 20)) == ["deep"] * 21

    def test_own_values_replace_scoped_ones_from_there_on(self) -> None:
        """A task's own value is what its children see, and theirs."""
        with D.Context(threads=2), with_options(name="outer"):
            assert D.fetch(D.spawn(self.names, Options(name="own"), 3)) == ["own"] * 4

    def test_through_threads_pools_and_asyncio_in_a_body(self) -> None:
        """Threads, executors and asyncio tasks that a body starts spawn with the options of that body."""

        def child() -> Any:
            return get_options("name")

        def spawned() -> Any:
            return D.fetch(D.spawn(child), timeout=60)

        async def in_asyncio() -> list[Any]:
            tasks = [asyncio.ensure_future(one()) for _ in range(2)]
            return [await task for task in tasks]

        async def one() -> Any:
            return await D.spawn(child)

        def body() -> list[Any]:
            found: list[Any] = []
            thread = threading.Thread(target=lambda: found.append(spawned()))
            thread.start()
            thread.join(60)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                found.append(pool.submit(spawned).result(60))
            found += asyncio.run(in_asyncio())
            return found

        with D.Context(threads=2), with_options(name="body"):
            assert D.fetch(D.spawn(body), timeout=60) == ["body"] * 4
            assert D.fetch(D.spawn(body, Options(name="own")), timeout=60) == ["own"] * 4
