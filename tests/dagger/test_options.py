"""Options: names and values, scoping over blocks and threads, propagation, defaults of signatures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_timespan import dagger as D
from otel_timespan.dagger.options import declaring, defaults
from otel_timespan.dagger.options.declaring import drop_removed
from otel_timespan.dagger.options.defaults import apply_defaults, default_option, set_default_option
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
from otel_timespan.dagger.places.processors import OSProc, ThreadProc
from otel_timespan.dagger.places.scopes import AnyScope, ExactScope, InvalidScope, ProcessScope
from otel_timespan.dagger.service import threads
from otel_timespan.dagger.service.threads import carry, inherit_in_threads, start_bare
from otel_timespan.errors import ConcurrencyViolationError, InvalidOptionError, NotCallableError, OptionNotSetError

A, B, C = ProcessScope(1), ProcessScope(2), ProcessScope(3)


def in_thread(fn: Callable[[], Any]) -> Any:
    """What `fn` returns in a thread started here."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fn()))
    thread.start()
    thread.join()
    return found[0]


class Task:
    """What is known of a task here: that it has an id. It can be indexed, but not iterated over."""

    def __init__(self, id: int) -> None:
        self.id = id

    def __getitem__(self, index: int) -> int:
        raise AssertionError("iterated over")


T1, T2 = Task(1), Task(2)


class Queue:
    def enqueue(self, pairs: Any) -> None:
        raise NotImplementedError


class TestOptions:
    def test_nothing_is_set_at_first(self) -> None:
        """All options are None, shown as nothing, and equal."""
        options = Options()
        assert all(getattr(options, name) is None for name in declaring.TASK_OPTIONS)
        assert options == Options() == DEFAULT
        assert repr(options) == "Options()"

    def test_fields_and_checks_are_the_same_names(self) -> None:
        """Every documented option has a check, and the other way round."""
        assert list(Options.__annotations__) == list(declaring.TASK_OPTIONS)

    def test_scope_sets_compute_scope(self) -> None:
        """In the constructor, unless that is given too."""
        assert Options(scope=A).compute_scope == A
        assert Options(scope=A, compute_scope=B).compute_scope == B
        options = Options()
        options.scope = A
        assert options.compute_scope is None

    def test_a_new_scope_clears_the_final_one(self) -> None:
        """Assigning any scope clears `exec_scope`; other options leave it."""
        for name in ("scope", "compute_scope", "result_scope"):
            options = Options(exec_scope=A)
            options.name = "x"
            assert options.exec_scope == A
            setattr(options, name, B)
            assert options.exec_scope is None

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("nope", "there is no option 'nope'"),
            ("scop", "did you mean 'scope'"),
            ("occupency", "did you mean 'occupancy'"),
            ("task_queue", "use with_options"),
            ("cache", "does not exist any more"),
        ],
    )
    def test_unknown_names_are_refused(self, name: str, hint: str) -> None:
        """In the constructor, in assignments and in `with_options`, with a hint."""
        with pytest.raises(InvalidOptionError, match=hint):
            Options(**{name: 1})
        with pytest.raises(ValueError, match=hint):
            setattr(Options(), name, 1)
        if name != "task_queue":
            with pytest.raises(InvalidOptionError, match=hint):
                with_options(**{name: 1})
            with pytest.raises(InvalidOptionError, match=hint):
                get_options(name, 1)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("propagates", "scope"),
            ("propagates", ["nope"]),
            ("propagates", 3),
            ("processor", ThreadProc),
            ("scope", "any"),
            ("scope", ThreadProc(1, 1)),
            ("compute_scope", InvalidScope(A, B)),
            ("single", "1"),
            ("single", 0),
            ("single", True),
            ("proclist", ThreadProc),
            ("proclist", [ThreadProc(1, 1)]),
            ("proclist", 3),
            ("get_result", 1),
            ("meta", "yes"),
            ("syncdeps", "task"),
            ("syncdeps", 3),
            ("syncdeps", [[]]),
            ("syncdeps", [None]),
            ("syncdeps", {1, 2}),
            ("syncdeps", ["task"]),
            ("time_util", 1),
            ("time_util", {ThreadProc: -1}),
            ("time_util", {"cpu": 1}),
            ("time_util", {ThreadProc: float("inf")}),
            ("alloc_util", {ThreadProc: "1"}),
            ("occupancy", 0.5),
            ("occupancy", {ThreadProc: float("nan")}),
            ("checkpoint", 3),
            ("restore", "x"),
            ("storage", "disk"),
            ("storage_retain", None.__class__),
            ("name", 3),
            ("tag", 1.5),
            ("stream_input_buffer_amount", 0),
            ("stream_output_buffer_amount", -1),
            ("stream_buffer_type", 3),
            ("stream_max_evals", 0),
            ("return_type", 3),
            ("retries", -1),
            ("retry_delay", -0.1),
            ("retry_delay", float("nan")),
            ("timeout", 0),
            ("timeout", "1"),
        ],
    )
    def test_bad_values_are_refused(self, name: str, value: Any) -> None:
        """The error names the option, the value and what is wanted."""
        with pytest.raises(InvalidOptionError, match=name if value != ["nope"] else "nope"):
            Options(**{name: value})

    def test_a_task_like_sequence_is_not_iterated(self) -> None:
        """A single task given as `syncdeps` is refused, not read item by item for ever."""
        with pytest.raises(InvalidOptionError, match="set or list of tasks"):
            Options(syncdeps=T1)

    def test_good_values_are_kept(self) -> None:
        """Values are normalised: sets, tuples, clamped shares."""
        options = Options(
            propagates=["name", "meta", "name"],
            syncdeps=[T1, T2, T2],
            occupancy={ThreadProc: 1.5, Any: -3},
            time_util={ThreadProc: 2},
            return_type=list[int],
            stream_max_evals=-1,
            retry_delay=1,
            timeout=float("inf"),
        )
        assert options.propagates == ("name", "meta")
        assert options.syncdeps == {T1, T2}
        assert options.occupancy == {ThreadProc: 1, Any: 0}
        assert options.time_util == {ThreadProc: 2.0}
        assert options.timeout == float("inf")

    def test_the_givers_objects_are_copied(self) -> None:
        """Changing a list or set given before does not change the options."""
        deps, names = {T1}, ["name"]
        options = Options(syncdeps=deps, propagates=names)
        deps.add(T2)
        names.append("meta")
        assert options.syncdeps == {T1}
        assert options.propagates == ("name",)

    def test_copies_are_independent(self) -> None:
        """Neither assignments nor changed sets of a copy show in the original."""
        original = Options(syncdeps={T1}, occupancy={Any: 1}, scope=A)
        copied = original.copy()
        assert copied == original
        copied.syncdeps.add(T2)  # type: ignore[union-attr]
        copied.occupancy[ThreadProc] = 0  # type: ignore[index]
        copied.name = "x"
        assert original == Options(syncdeps={T1}, occupancy={Any: 1}, scope=A)

    def test_merge(self) -> None:
        """What the other sets wins; a scope of the other hides our final scope."""
        assert Options(name="a", meta=True).merge(Options(name="b", tag=1)) == Options(name="b", meta=True, tag=1)
        assert Options(exec_scope=A).merge(Options(scope=B)) == Options(scope=B)
        assert Options(exec_scope=A).merge(Options(name="x")).exec_scope == A
        assert Options(scope=A).merge(Options(scope=B)).compute_scope == B
        assert Options(name="a").merge(None) == Options(name="a")
        assert DEFAULT.merge(Options(tag=1)) == Options(tag=1)

    def test_unsetting(self) -> None:
        """None, or deleting, unsets."""
        options = Options(name="a", tag=1)
        options.name = None
        del options.tag
        assert options == Options()
        assert Options(name=None) == Options()

    def test_text_and_pickle(self) -> None:
        """The text shows what is set; pickling keeps it, and nothing else."""
        options = Options(name="a", meta=False, scope=A)
        assert repr(options) == "Options(scope=ProcessScope(1), compute_scope=ProcessScope(1), meta=False, name='a')"
        assert pickle.loads(pickle.dumps(options)) == options
        assert pickle.loads(pickle.dumps(DEFAULT)) is DEFAULT
        assert options != Options(name="a")
        assert options != "a"

    def test_the_shared_default_cant_be_changed(self) -> None:
        """Nobody can set an option of all tasks by mistake."""
        with pytest.raises(ConcurrencyViolationError, match="copy"):
            DEFAULT.name = "x"
        with pytest.raises(ConcurrencyViolationError):
            del DEFAULT.name
        DEFAULT.copy().name = "x"
        assert Options() == DEFAULT

    def test_deprecated_options_warn_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`single` and `proclist` warn, the first time only; a refused value does not."""
        monkeypatch.setattr(declaring, "_deprecated", set())
        with pytest.raises(InvalidOptionError):
            Options(single=0)
        with pytest.warns(DeprecationWarning, match="single"):
            assert Options(single=2).single == 2
        with pytest.warns(DeprecationWarning, match="proclist"):
            assert Options(proclist=[ThreadProc, OSProc]).proclist == (ThreadProc, OSProc)
        Options(single=1, proclist=lambda p: False)
        assert Options(proclist=None).proclist is None

    def test_removed_options_are_dropped_with_a_warning(self) -> None:
        """`cache`, `persist` and `procutil` mean nothing any more; other names stay."""
        with pytest.warns(DeprecationWarning) as caught:
            assert drop_removed({"cache": True, "persist": 1, "procutil": {}, "name": "x"}) == {"name": "x"}
        assert len(caught) == 3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert drop_removed({"name": "x"}) == {"name": "x"}


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


def f(*args: Any) -> None:
    """A function to register defaults for."""


class TestDefaults:
    @pytest.fixture(autouse=True)
    def _registry(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(defaults, "signature_defaults", {})
        yield
        defaults._matching.cache_clear()

    def test_values_by_signature(self) -> None:
        """A default holds for its function and argument types, subclasses included."""
        set_default_option("compute_scope", f, (int,), B)
        assert apply_defaults(DEFAULT, f, (int,)).compute_scope == B
        assert apply_defaults(DEFAULT, f, (bool,)).compute_scope == B
        for types in [(str,), (), (int, int)]:
            assert apply_defaults(DEFAULT, f, types) is DEFAULT
        assert apply_defaults(DEFAULT, print, (int,)) is DEFAULT

    def test_explicit_options_win(self) -> None:
        """An option that is set is not replaced, and an explicit scope keeps default scopes out."""
        set_default_option("compute_scope", f, (int,), B)
        set_default_option("exec_scope", f, (int,), B)
        set_default_option("name", f, (int,), "default")
        taken = apply_defaults(Options(scope=A, name="own"), f, (int,))
        assert (taken.compute_scope, taken.exec_scope, taken.name) == (A, None, "own")
        with with_options(scope=A):
            scoped_one = apply_defaults(effective(None), f, (int,))
        assert (scoped_one.scope, scoped_one.compute_scope, scoped_one.exec_scope) == (A, None, None)
        assert apply_defaults(Options(result_scope=AnyScope()), f, (int,)).exec_scope is None

    def test_given_options_are_not_changed(self) -> None:
        """Filling up makes a copy; the sets in it are its own."""
        set_default_option("syncdeps", f, (), {T1})
        own = Options(name="x")
        first, second = apply_defaults(own, f, ()), apply_defaults(own, f, ())
        first.syncdeps.add(T2)  # type: ignore[union-attr]
        assert second.syncdeps == {T1}
        assert own == Options(name="x")

    def test_the_most_specific_signature_wins(self) -> None:
        """Whatever the order of registration; `Any` matches all."""
        set_default_option("name", f, (bool,), "bool")
        set_default_option("name", f, (Any,), "any")
        set_default_option("name", f, (int,), "int")
        assert [apply_defaults(DEFAULT, f, (t,)).name for t in (bool, int, str)] == ["bool", "int", "any"]

    def test_registering_again_takes_effect_at_once(self) -> None:
        """The memo does not outlive a registration."""
        set_default_option("name", f, (int,), "old")
        assert apply_defaults(DEFAULT, f, (int,)).name == "old"
        set_default_option("name", f, (int,), "new")
        assert apply_defaults(DEFAULT, f, (int,)).name == "new"
        set_default_option("name", f, (bool,), "newest")
        assert apply_defaults(DEFAULT, f, (bool,)).name == "newest"

    def test_providers(self) -> None:
        """A provider is asked each time; None means no default."""
        answers = iter([A, None, B])

        @default_option("compute_scope", f, int)
        def where() -> Any:
            return next(answers)

        assert [apply_defaults(DEFAULT, f, (int,)).compute_scope for _ in range(3)] == [A, None, B]
        set_default_option("name", f, (), lambda: "provided")
        assert apply_defaults(DEFAULT, f, ()).name == "provided"

    def test_callable_values_are_values(self) -> None:
        """Where the option itself is a function, `set_default_option` takes it as such."""
        set_default_option("restore", f, (), f)
        assert apply_defaults(DEFAULT, f, ()).restore is f

    def test_errors_fall_back(self, caplog: pytest.LogCaptureFixture) -> None:
        """A provider that raises, or answers nonsense, leaves the option unset, with one warning."""

        @default_option("name", f)
        def boom() -> str:
            raise RuntimeError("no idea")

        @default_option("meta", f)
        def odd() -> int:
            return 3

        for _ in range(2):
            assert apply_defaults(DEFAULT, f, ()) is DEFAULT
        assert caplog.text.count("RuntimeError: no idea") == 1
        assert "option meta=3" in caplog.text

    def test_asking_keeps_no_function_alive(self) -> None:
        """A function without defaults can die after it was asked about."""

        def closure() -> None: ...

        gone = weakref.ref(closure)
        set_default_option("name", f, (), "x")
        assert apply_defaults(DEFAULT, closure, ()) is DEFAULT
        del closure
        gc.collect()
        assert gone() is None

    def test_unhashable_callables(self) -> None:
        """They have no defaults: asking finds none, registering is refused."""

        class Unhashable:
            __hash__ = None  # type: ignore[assignment]

            def __call__(self) -> None:
                raise NotImplementedError

        set_default_option("name", f, (), "x")
        assert apply_defaults(DEFAULT, Unhashable(), ()) is DEFAULT
        with pytest.raises(InvalidOptionError, match="hashable"):
            set_default_option("name", Unhashable(), (), "x")

    def test_bad_registrations_are_refused(self) -> None:
        """Names, functions, types and values are checked at registration."""
        with pytest.raises(InvalidOptionError, match="did you mean 'single'"):
            set_default_option("singel", f, (), 1)
        with pytest.raises(InvalidOptionError, match="no option"):
            default_option("nope", f)(lambda: 1)
        with pytest.raises(InvalidOptionError, match="meta"):
            set_default_option("meta", f, (), 3)
        with pytest.raises(NotCallableError, match="belongs to a function"):
            set_default_option("meta", 3, (), True)
        with pytest.raises(NotCallableError, match="without arguments"):
            default_option("meta", f)(3)  # type: ignore[type-var]
        for types in (int, 3, "int"):
            with pytest.raises(InvalidOptionError, match="tuple of types"):
                set_default_option("meta", f, types, True)  # type: ignore[arg-type]
        with pytest.raises(InvalidOptionError, match="is no type"):
            set_default_option("meta", f, (1,), True)

    def test_exact_scopes_as_defaults(self) -> None:
        """A default exec scope is used where no scope is set."""
        exact = ExactScope(ThreadProc(1, 1))
        set_default_option("exec_scope", f, (), exact)
        assert apply_defaults(Options(name="x"), f, ()).exec_scope == exact


class TestPropagationThroughEverything:
    """spec §4.2: options reach spawns in whatever a body starts, and at any depth."""

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


def _f(n: int) -> int:
    return n


PAIRS: dict[str, tuple[Any, Any, Any]] = {
    "scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "compute_scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "result_scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "exec_scope": (ProcessScope(1), ProcessScope(2), AnyScope()),
    "processor": (OSProc(1), OSProc(2), OSProc(3)),
    "single": (1, 2, 3),
    "get_result": (True, False, True),
    "meta": (True, False, True),
    "time_util": ({ThreadProc: 1.0}, {ThreadProc: 2.0}, {ThreadProc: 3.0}),
    "alloc_util": ({ThreadProc: 1}, {ThreadProc: 2}, {ThreadProc: 3}),
    "occupancy": ({ThreadProc: 0.1}, {ThreadProc: 0.2}, {ThreadProc: 0.3}),
    "checkpoint": (print, max, min),
    "restore": (print, max, min),
    "storage_root_tag": ("a", "b", "c"),
    "storage_leaf_tag": ("a", "b", "c"),
    "storage_retain": (True, False, True),
    "name": ("a", "b", "c"),
    "tag": (1, 2, 3),
    "stream_input_buffer_amount": (1, 2, 3),
    "stream_output_buffer_amount": (1, 2, 3),
    "stream_max_evals": (1, 2, 3),
    "return_type": (int, str, float),
    "retries": (1, 2, 3),
    "retry_delay": (0.1, 0.2, 0.3),
    "timeout": (1.0, 2.0, 3.0),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_s4_precedence_of_every_option(name: str) -> None:
    """§4: the task's own option wins over the scoped one, that over the default of the signature, that over none."""
    own, scoped_value, default = PAIRS[name]
    try:
        set_default_option(name, _f, (int,), default)
        assert getattr(apply_defaults(effective(None), _f, (int,)), name) == default
        with with_options(**{name: scoped_value}):
            assert getattr(apply_defaults(effective(None), _f, (int,)), name) == scoped_value
            given = apply_defaults(effective(Options(**{name: own})), _f, (int,))
            assert getattr(given, name) == own
            assert propagated(given)[name] == own  # type: ignore[index]
        assert getattr(effective(None), name) is None
    finally:
        defaults.signature_defaults.pop(_f, None)
