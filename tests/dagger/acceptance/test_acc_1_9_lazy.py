"""spec/scheduler.md §0, §1.8, §1.9, §17.4, §17.10: the lazy API and its batch runs."""

from __future__ import annotations

import gc
import operator
import pickle
import threading
import weakref
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    identity,
    mul,
    poll,
    run_program,
    where,
)

pytestmark = pytest.mark.usefixtures("legacy")


def total(*xs: int) -> int:
    """Their sum."""
    return sum(xs)


def test_s1_9_the_documented_graph(ctx: D.Context) -> None:
    """§1.9 accept: add1(4), add2 of it, add1(3): together 16."""
    p = D.delayed(lambda x: x + 1)(4)
    q = D.delayed(lambda x: x + 2)(p)
    r = D.delayed(lambda x: x + 1)(3)
    s = D.delayed(total)(p, q, r)
    assert isinstance(s, D.Thunk)
    assert D.collect(s) == 16


def test_s1_9_compute_is_a_chunk(ctx: D.Context) -> None:
    """§1.9 accept: `compute` gives a Chunk whose value is 3; of a chunk it gives the chunk."""
    cx = D.compute(D.delayed(add)(1, 2))
    assert isinstance(cx, D.Chunk) and D.collect(cx) == 3
    assert D.compute(cx) is cx
    assert D.collect(D.delayed(add)(cx, 10)) == 13


def test_s1_9_five_times_in_a_row(ctx: D.Context) -> None:
    """§1.9 accept: nested sums, five times in a row, each terminating; the same thunk again gives the same."""
    thunk = D.delayed(add)(D.delayed(add)(D.delayed(identity)(1), 2), 3)
    for _ in range(5):
        assert D.collect(D.delayed(add)(D.delayed(add)(D.delayed(identity)(1), 2), 3)) == 6
        assert D.collect(thunk) == 6


def test_s1_9_nothing_runs_before() -> None:
    """§1.9: a thunk has an id, inputs and options, and no execution; making one starts no scheduler."""
    ran: list[int] = []
    thunk = D.delayed(ran.append, name="label")(1)
    assert type(thunk.id) is int
    assert thunk.options.name == "label"
    assert ran == [] and D.eager_state() is None


def test_s1_9_a_context_may_be_given() -> None:
    """§1.9: `compute(ctx, thunk)` runs there, whatever the current context is."""
    other = D.Context(driver=D.InlineDriver(workers={1: 1, 2: 1}))
    with D.Context(threads=1), other:
        pass
    with D.Context(threads=1) as mine:
        assert D.collect(mine, D.delayed(add)(1, 2)) == 3
        assert D.compute(mine, D.delayed(add)(1, 2)).fetch() == 3


def test_s1_9_a_shared_thunk_runs_once(ctx: D.Context) -> None:
    """§1.9: what several tasks depend on runs once a computation."""
    ran: list[int] = []

    def source() -> int:
        ran.append(1)
        return 7

    a = D.delayed(source)()
    assert D.collect(D.delayed(total)(D.delayed(add)(a, 1), D.delayed(mul)(a, 2), a)) == 29
    assert ran == [1]


def test_s1_9_keywords_and_syncdeps(ctx: D.Context) -> None:
    """§1.4, §1.9: keyword values are resolved; syncdeps run before, their results are not passed."""
    order: list[str] = []
    before = D.delayed(order.append)("before")
    thunk = D.delayed(lambda *, x: (order.append("after"), x)[1], syncdeps={before})(x=D.delayed(identity)(5))
    assert D.collect(thunk) == 5
    assert order == ["before", "after"]


def test_s1_9_options_are_copied_per_thunk() -> None:
    """§1.9 defect 3: thunks made of one `delayed(f, options=o)` share nothing."""
    options = D.Options(name="n")
    make = D.delayed(identity, options)
    a, b = make(1), make(D.delayed(identity)(2))
    assert a.options is not b.options is not options
    assert (a.options.name, b.options.name) == ("n", "n")
    assert not a.options.syncdeps and not options.syncdeps


def test_s1_9_a_thunk_cannot_be_serialised() -> None:
    """§1.9: a Thunk cannot be serialised."""
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(D.delayed(add)(1, 2))


def test_s1_1_a_thunk_cannot_be_spawned() -> None:
    """§1.1 accept: `spawn(identity, delayed(add)(1, 2))` raises."""
    for call in (
        lambda: D.spawn(identity, D.delayed(add)(1, 2)),
        lambda: D.spawn(identity, x=D.delayed(add)(1, 2)),
        lambda: D.spawn(D.delayed(add)(1, 2)),
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        assert isinstance(caught.value, D.TimespanError)


def test_s1_9_delayed_warns_once() -> None:
    """§1.9: `delayed` warns once a process that it is the legacy API."""
    out = run_program(
        """
        import warnings
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(3):
                D.delayed(int)(5)
        print([w.category.__name__ for w in seen])
        """
    )
    assert out.strip() == "['DeprecationWarning']"


@pytest.mark.parametrize("name", ["single", "proclist"])
def test_s1_9_scheduler_options_fill_the_tasks(cluster: D.Context, name: str) -> None:
    """§1.9, §4.1: `single` and `proclist` of the run fill the task options that are unset; the task's own win."""
    target = D.ThreadProc(2, 1)
    value = 2 if name == "single" else lambda p: p == target
    own = 1 if name == "single" else lambda p: p == D.ThreadProc(1, 1)
    options = D.SchedulerOptions(**{name: value})
    graph = D.delayed(lambda *p: set(p))(*[D.delayed(where)() for _ in range(10)])
    places = D.collect(graph, options=options)
    assert {p.owner for p in places} == {2}
    if name == "proclist":
        assert places == {target}
    kept = D.delayed(lambda p: p)(D.delayed(where, **{name: own})())
    assert D.collect(kept, options=options).owner == 1


def test_s1_9_single_must_be_alive(ctx: D.Context) -> None:
    """§1.9: `single` must name a live worker."""
    with pytest.raises(Exception) as caught:
        D.collect(D.delayed(int)(), options=D.SchedulerOptions(single=55))
    assert isinstance(D.unwrap_exception(caught.value), (D.TimespanError, AssertionError, ValueError))


def test_s1_8_the_first_error_aborts_the_run(ctx: D.Context) -> None:
    """§1.8, ruling 3: without `allow_errors` the body's own exception comes out of collect and compute."""
    for run in (D.collect, D.compute):
        with pytest.raises(BoomError) as caught:
            run(D.delayed(identity)(D.delayed(boom)()))
        assert str(caught.value).startswith("the fuse blew")
    assert D.collect(D.delayed(add)(1, 2)) == 3


def test_s1_8_allow_errors_propagates(ctx: D.Context) -> None:
    """§1.8: with `allow_errors=True` the error propagates as in the eager scheduler: the root's DTaskFailedError."""
    graph = D.delayed(add)(D.delayed(identity)(D.delayed(boom)()), D.delayed(int)())
    with pytest.raises(D.DTaskFailedError) as caught:
        D.collect(graph, options=D.SchedulerOptions(allow_errors=True))
    assert isinstance(D.unwrap_exception(caught.value), BoomError)
    assert caught.value.root.id != caught.value.task.id


def test_s1_8_the_bodys_own_exception_every_time(two: D.Context) -> None:
    """§1.8, ruling 3: whatever the timing, the first error itself comes out, never its propagation."""
    for _ in range(300):
        graph = D.delayed(add)(D.delayed(identity)(D.delayed(boom)()), D.delayed(int)())
        with pytest.raises(BoomError):
            D.collect(graph)


def test_s1_8_a_failure_beside_the_root_is_no_failure(ctx: D.Context) -> None:
    """§1.8: with `allow_errors` a body that fetches a failing child may go on, and the run succeeds."""

    def body() -> str:
        child = D.spawn(boom)
        D.wait(child)
        return "went on"

    assert D.collect(D.delayed(body)(), options=D.SchedulerOptions(allow_errors=True)) == "went on"


def test_s1_8_the_eager_scheduler_survives_a_failed_batch(ctx: D.Context) -> None:
    """§0: instances share nothing: a batch that fails leaves eager tasks alone."""
    task = D.spawn(identity, 1)
    with pytest.raises(BoomError):
        D.collect(D.delayed(boom)())
    assert D.fetch(D.spawn(add, task, 1)) == 2


def test_s0_batches_are_instances_of_their_own() -> None:
    """§0, §19: each batch has a uid of its own, with scheduler_init and scheduler_exit around it."""
    log: list[Event] = []
    with D.Context(threads=2, log_sink=log):
        D.fetch(D.spawn(int))
        eager = D.eager_state().uid
        assert D.collect(D.delayed(add)(1, 2)) == 3 == D.collect(D.delayed(add)(1, 2))
        inits = [e.id.uid for e in log if (e.category, e.phase) == ("scheduler_init", "finish")]
        ends = poll(
            lambda: (
                [e.id.uid for e in list(log) if (e.category, e.phase) == ("scheduler_exit", "finish")][1:]
                and [e.id.uid for e in list(log) if (e.category, e.phase) == ("scheduler_exit", "finish")]
            )
        )
    assert inits[0] == eager and len(set(inits)) == 3
    assert ends == inits[1:]


def test_s19_lazy_tasks_have_add_thunk() -> None:
    """§19: the tasks of the initial graph have `add_thunk` too, with their names and dependencies."""
    log: list[Event] = []
    with D.Context(threads=2, log_sink=log):
        a = D.delayed(identity, name="source")(1)
        D.collect(D.delayed(add)(a, a))
    added = [e.timeline for e in log if (e.category, e.phase) == ("add_thunk", "start")]
    assert [t.name for t in added].count("source") == 1 and len(added) == 2
    (source,) = [t for t in added if t.name == "source"]
    (root,) = [t for t in added if t.name != "source"]
    assert {d[1] for d in root.deps} == {source.uid}
    finished = {e.id.thunk_id for e in log if (e.category, e.phase) == ("finish", "finish")}
    assert finished == {source.uid, root.uid}


def test_s17_4_batch_order() -> None:
    """§17.4: the order is root first, breadth-first over upstreams; initially ready tasks start deepest first."""
    order: list[str] = []

    def note(name: str, *inputs: Any) -> str:
        order.append(name)
        return name

    chain = D.delayed(note)("deep")
    for n in range(3):
        chain = D.delayed(note)(f"chain{n}", chain)
    shallow = D.delayed(note)("shallow")
    with D.Context(driver=D.InlineDriver(workers={1: 1})):
        D.collect(D.delayed(note)("root", shallow, chain))
    assert order[0] == "deep" and order[-1] == "root"
    assert sorted(order) == sorted(["deep", "chain0", "chain1", "chain2", "shallow", "root"])


def test_s1_9_cycles_are_refused(ctx: D.Context) -> None:
    """Issue 5: a cycle in a lazy graph is a clear error of ours, not a hang."""
    a = D.delayed(identity)(1)
    b = D.delayed(identity)(a)
    try:
        a.args = (b,)
    except AttributeError:
        pytest.skip("a thunk can't be changed, so there are no cycles")
    with pytest.raises(ValueError) as caught:
        D.collect(b)
    assert isinstance(caught.value, D.TimespanError) and "cycle" in str(caught.value)


def test_s1_9_a_deep_graph(two: D.Context) -> None:
    """Issue 5: a chain of 10,000 thunks needs no recursion."""
    thunk = D.delayed(identity)(0)
    for _ in range(10_000):
        thunk = D.delayed(add)(thunk, 1)
    assert D.collect(thunk) == 10_000


def test_s1_9_a_wide_graph(two: D.Context) -> None:
    """§17.4: a fan of 3,000 into one."""
    assert D.collect(D.delayed(total)(*[D.delayed(identity)(1) for _ in range(3000)])) == 3000


def test_s1_7_a_lazy_body_spawns(ctx: D.Context) -> None:
    """§1.7: tasks that a lazily computed body spawns go to its scheduler, and may be nested."""

    def body(depth: int) -> int:
        return 1 if depth == 0 else 1 + D.fetch(D.spawn(body, depth - 1))

    assert D.collect(D.delayed(body)(5)) == 6


def test_s1_9_computations_at_once(two: D.Context) -> None:
    """§0: several batches may run at once, from several threads."""
    got: list[int] = []

    def run(n: int) -> None:
        got.append(D.collect(D.delayed(total)(*[D.delayed(identity)(n) for _ in range(50)])))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(got) == [50 * n for n in range(6)]


def test_s1_9_a_batch_within_a_body(one: D.Context) -> None:
    """§0, §1.9: a body may compute a batch of its own on the one slot there is."""
    assert D.spawn(lambda: D.collect(D.delayed(add)(D.delayed(identity)(1), 2))).fetch(timeout=DEADLINE_S) == 3


def test_s1_9_a_finished_batch_keeps_nothing(ctx: D.Context) -> None:
    """§17.10: after the run the scheduler keeps neither results nor thunks."""

    class Value:
        pass

    alive: list[Any] = []

    def make() -> Value:
        value = Value()
        alive.append(weakref.ref(value))
        return value

    assert D.collect(D.delayed(lambda *v: len(v))(*[D.delayed(make)() for _ in range(10)])) == 10

    def gone() -> bool:
        gc.collect()
        return not any(ref() is not None for ref in alive)

    poll(gone)


def test_s1_9_bad_input(ctx: D.Context) -> None:
    """Issue 5: what is no thunk, no options or no function is refused at once."""
    for call in (
        lambda: D.collect(5),
        lambda: D.compute(None),
        lambda: D.delayed(5),
        lambda: D.delayed(add, nope=1),
        lambda: D.collect(D.delayed(int)(), options=5),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()


# --- edges ---------------------------------------------------------------------------------------------------


class TestEdges:
    """The same from nearer by (§1.9, §17.4)."""

    def test_s1_9_a_graph_of_delayed_calls(self, ctx: D.Context) -> None:
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

    def test_s1_9_compute_gives_a_chunk(self, ctx: D.Context) -> None:
        """§1.9: `compute` gives a chunk, `collect` of a chunk its value, `compute` of a chunk itself."""
        chunk = D.compute(D.delayed(operator.add)(1, 2))
        assert isinstance(chunk, D.Chunk)
        assert D.collect(chunk) == 3
        assert D.compute(chunk) is chunk
        assert D.collect(ctx, D.delayed(identity)(4)) == 4

    def test_s1_9_in_process_termination(self, ctx: D.Context) -> None:
        """§1.9: five runs in a row, each ends."""
        for _ in range(5):
            inner = D.delayed(operator.add)(D.delayed(identity)(1), 2)
            assert D.collect(D.delayed(operator.add)(inner, 3)) == 6

    def test_s1_9_options_are_not_shared(self) -> None:
        """§1.9 defect: each thunk has its own copy of the options."""
        make = D.delayed(identity, D.Options(name="n"))
        a, b = make(1), make(2)
        assert a.options is not b.options and a.options.name == "n"
        assert a.f is identity and a.options.scope is None

    def test_s1_9_the_first_error_is_raised_as_it_is(self, ctx: D.Context) -> None:
        """Ruling 3: the body's own exception with a note; with allow_errors a DTaskFailedError."""
        bad = D.delayed(identity)(D.delayed(boom)())
        with pytest.raises(BoomError, match="fuse") as caught:
            D.collect(bad)
        assert any("boom" in note for note in getattr(caught.value, "__notes__", ["boom"]))
        with pytest.raises(D.DTaskFailedError) as wrapped:
            D.collect(bad, options=D.SchedulerOptions(allow_errors=True))
        assert isinstance(D.unwrap_exception(wrapped.value), BoomError)

    def test_s1_9_placement_errors_propagate(self, ctx: D.Context) -> None:
        """§1.8: no place to run is a DTaskFailedError, in batch mode too."""
        for bad in ({"proclist": lambda p: False}, {"scope": D.ProcessScope(99)}):
            with pytest.raises(D.DTaskFailedError) as caught:
                D.collect(D.delayed(identity, **bad)(1))
            error = D.unwrap_exception(caught.value)
            assert isinstance(error, D.SchedulingError) and error.code == "no_processors"

    def test_s1_9_bad_input(self, ctx: D.Context) -> None:
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

    def test_s1_9_deep_graphs_need_no_recursion(self, ctx: D.Context) -> None:
        """A chain of 3,000 calls."""
        thunk = D.delayed(identity)(0)
        for _ in range(3000):
            thunk = D.delayed(operator.add)(thunk, 1)
        assert D.collect(thunk) == 3000

    def test_s17_4_deepest_ready_tasks_start_first(self) -> None:
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

    def test_s1_9_a_body_spawns_into_its_own_run(self, ctx: D.Context) -> None:
        """§1.7: tasks spawned by a lazily computed body go to the same scheduler."""
        assert D.collect(D.delayed(lambda: D.fetch(D.spawn(operator.add, 1, 2)))()) == 3

    def test_s1_9_errors_in_pickling_say_why(self) -> None:
        """§1.9: a thunk can't be serialised."""
        with pytest.raises(TypeError, match="compute it"):
            pickle.dumps(D.delayed(identity)(1))
