"""spec/scheduler.md §0, §1.1-1.7: spawn, handles, arguments, call forms."""

from __future__ import annotations

import functools
import gc
import threading
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    BoomError,
    add,
    boom,
    failure,
    finish,
    identity,
    mul,
    outcome,
    poll,
    program,
    where,
)


def test_s0_worker_numbering() -> None:
    """§0: alone, the main process is worker 1 and the only one, whichever way it is asked."""
    assert D.myid() == 1
    assert list(D.workers()) == [1]
    assert list(D.procs()) == [1]
    assert D.nprocs() == 1


def test_s0_no_scheduler_before_the_first_spawn() -> None:
    """§0, §18, ruling 18: `eager_context()` creates the context and starts nothing; the first spawn does."""
    context = D.eager_context()
    assert isinstance(context, D.Context)
    assert D.eager_state() is None
    D.fetch(D.spawn(int))
    assert D.eager_state() is not None
    assert D.eager_context() is context


def test_s0_scheduler_and_task_numbers() -> None:
    """§0: scheduler numbers count up from 1, task ids come from one counter across schedulers."""
    first = D.spawn(int)
    uid = D.eager_state().uid
    assert uid >= 1 and first.id >= 1
    D.cancel(halt_sch=True)
    second = D.spawn(int)
    assert D.eager_state().uid > uid
    assert second.id > first.id


def test_s0_exception_types_are_the_builtin_ones_too() -> None:
    """§0, ruling 17: the errors are of the types that the table of §0 names."""
    import concurrent.futures

    assert issubclass(D.ConcurrencyViolationError, RuntimeError)
    assert issubclass(D.TaskCancelled, concurrent.futures.CancelledError)
    assert D.SchedulingError("why", code="exited").code == "exited"
    assert D.DynamicThunkError("why", "self_fetch").code == "self_fetch"
    assert D.WorkerLostError(3).worker == 3


def test_s0_unwrap_exception_strips_all_layers() -> None:
    """§0: `unwrap_exception` gives the innermost exception through all wrappers."""
    inner = BoomError("x")
    wrapped = D.DTaskFailedError(None, None, D.RemoteTaskError(1, D.DTaskFailedError(None, None, inner), "text"))
    assert D.unwrap_exception(wrapped) is inner
    assert D.unwrap_exception(inner) is inner


# --- 1.1 spawn -------------------------------------------------------------------------------------------


def test_s1_1_spawn_and_fetch() -> None:
    """§1.1: tasks as arguments are followed, results come back."""
    a, b = D.spawn(add, 2, 2), D.spawn(sum, [2, 1, 2])
    c = D.spawn(mul, a, b)
    assert all(isinstance(t, D.DTask) for t in (a, b, c))
    assert [D.fetch(t) for t in (a, b, c)] == [4, 5, 20]


def test_s1_1_chain_keeps_only_last_handle() -> None:
    """§1.1: a chain of 100 tasks needs only its last handle."""
    t = D.spawn(identity, 0)
    for _ in range(100):
        t = D.spawn(add, t, 1)
    gc.collect()
    assert D.fetch(t) == 100


def test_s1_1_dropping_the_handle_never_loses_the_task(gate: threading.Event) -> None:
    """§1.1: the scheduler holds every submitted, unfinished task, waiting ones too."""
    ran = threading.Event()
    first = D.spawn(gate.wait, DEADLINE_S)
    D.spawn(lambda _: ran.set(), first)
    del first
    gc.collect()
    assert not ran.is_set()
    gate.set()
    assert ran.wait(DEADLINE_S)


def test_s1_1_options_are_copied(gate: threading.Event) -> None:
    """§1.1: the caller may reuse and change its own Options object after spawn."""
    options = D.Options(name="first")
    upstream = D.spawn(gate.wait, DEADLINE_S)
    task = D.spawn(lambda x: isinstance(x, D.Chunk), options, upstream)
    options.meta = True
    options.name = "second"
    gate.set()
    assert D.fetch(task) is False
    assert task.options.name == "first"


def test_s1_1_spawn_leaves_the_callers_options_alone() -> None:
    """§1.1, §4: neither scoped options nor found dependencies are written into the caller's object."""
    options = D.Options(name="mine")
    up = D.spawn(int)
    with D.with_options(get_result=True):
        D.fetch(D.spawn(identity, options, up))
    assert options.name == "mine"
    assert options.get_result is None and options.propagates is None
    assert not options.syncdeps


def test_s1_1_submitted_when_spawn_returns(gate: threading.Event) -> None:
    """§1.1: with the default queue the task is submitted before spawn returns, even when it must wait."""
    up = D.spawn(gate.wait, DEADLINE_S)
    down = D.spawn(identity, up)
    assert up.istaskstarted() and down.istaskstarted()
    assert not down.isready()


def test_s1_1_sugar_opts() -> None:
    """§1.1: `spawn.opts(...)(f, ...)` is spawn with those options."""
    task = D.spawn.opts(name="label", get_result=True)(add, 1, 2)
    assert D.fetch(task, raw=True) == 3
    assert task.options.name == "label"


def test_s1_1_task_options_win_over_scoped_ones() -> None:
    """§1.1: a scoped option fills only what the task leaves unset; `task.options` are the effective ones."""
    with D.with_options(name="scoped", get_result=True):
        own, scoped = D.spawn(int, D.Options(name="own")), D.spawn(int)
    assert (own.options.name, own.options.get_result) == ("own", True)
    assert scoped.options.name == "scoped"
    assert {"name", "get_result"} <= set(scoped.options.propagates)
    assert "task_queue" not in scoped.options.propagates


def test_s1_1_ids_are_unique_and_rising() -> None:
    """§1.1, ruling 1: `id` is an int, `uid` the same number; the order of spawning is the order of ids."""
    tasks = [D.spawn(int) for _ in range(50)]
    ids = [t.id for t in tasks]
    assert ids == sorted(set(ids)) and all(type(i) is int for i in ids)
    assert [t.uid for t in tasks] == ids


def test_s1_1_the_decorator_spawns() -> None:
    """api.md: calling a `@task` function spawns, `.local()` calls plainly."""

    @D.task(name="doubling")
    def double(x: int) -> int:
        return 2 * x

    t = double(4)
    assert isinstance(t, D.DTask) and D.fetch(t) == 8
    assert t.options.name == "doubling"
    assert double.local(5) == 10


def test_api_the_face_re_exports_the_scheduler() -> None:
    """api.md: the commonest names are importable from the top, the very same objects."""
    for name in ("spawn", "fetch", "wait", "cancel", "Options", "with_options", "scope", "Context", "sync"):
        assert getattr(ts, name) is getattr(D, name), name


# --- 1.2 handles -----------------------------------------------------------------------------------------


def test_s1_2_not_launched() -> None:
    """§1.2: a task in a lazy queue is not started; wait, fetch and raw fetch raise at once."""
    with D.bulk():
        task = D.spawn(add, 1, 2)
        assert not task.istaskstarted() and not task.isready() and not task.istaskdone()
        assert repr(task) == f"DTask (not launched) {task.id}: add"
        raw = functools.partial(task.fetch, raw=True)
        for attempt in (task.wait, task.fetch, raw, lambda: D.fetch(task), lambda: D.wait(task)):
            with pytest.raises(D.ConcurrencyViolationError):
                attempt()
    assert D.fetch(task) == 3


def test_s1_2_running(gate: threading.Event) -> None:
    """§1.2: a submitted, unfinished task is started, not ready, and says `running`."""
    task = D.spawn(gate.wait, DEADLINE_S)
    assert task.istaskstarted() and not task.isready() and not task.istaskdone()
    assert repr(task) == f"DTask (running) {task.id}: wait"
    gate.set()
    assert task.wait() is None
    assert task.isready() and task.istaskdone() and task.istaskstarted()
    assert repr(task) == f"DTask (finished) {task.id}"


def test_s1_2_finished_with_error() -> None:
    """§1.2: a failed task is started, done and `finished`; only fetch tells."""
    task = D.spawn(boom)
    assert task.wait() is None
    assert task.istaskstarted() and task.isready() and task.istaskdone()
    assert repr(task) == f"DTask (finished) {task.id}: boom, failed"
    for raw in (False, True):
        with pytest.raises(D.DTaskFailedError):
            task.fetch(raw=raw)


def test_s1_2_raw_fetch() -> None:
    """§1.2: a raw fetch gives the chunk; the plain value for `get_result` and `meta` tasks."""
    task = D.spawn(add, 1, 2)
    chunk = task.fetch(raw=True)
    assert isinstance(chunk, D.Chunk)
    assert D.fetch(chunk) == 3 == chunk.fetch()
    assert D.fetch(D.spawn(add, D.Options(get_result=True), 1, 2), raw=True) == 3
    assert D.fetch(D.spawn(lambda: 5, D.Options(meta=True)), raw=True) == 5


def test_s1_2_every_fetch_has_the_same_outcome() -> None:
    """§1.2: fetching again, before or after completion, gives the same object and the same error."""
    value = D.spawn(lambda: ["x"])
    assert D.fetch(value) is D.fetch(value)
    bad = D.spawn(boom)
    first, second = failure(bad), failure(bad)
    assert D.unwrap_exception(first) is D.unwrap_exception(second)


def test_s1_2_concurrent_fetches() -> None:
    """§1.2: 16 threads fetch the same task, 20 rounds, and each gets 42."""
    for _ in range(20):
        start = threading.Barrier(17)
        task = D.spawn(lambda: 42)
        got: list[int] = []

        def fetch(task: D.DTask = task, got: list[int] = got, start: threading.Barrier = start) -> None:
            start.wait()
            got.append(D.fetch(task))

        threads = [threading.Thread(target=fetch) for _ in range(16)]
        for thread in threads:
            thread.start()
        start.wait()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert got == [42] * 16
        D.wait(task)
        assert D.fetch(task) == 42 == D.fetch(task)


def test_s1_2_waitany_returns_with_the_first(gate: threading.Event) -> None:
    """§1.2: `waitany` returns when one is done, and at once when there is none."""
    D.waitany([])
    blocked, quick = D.spawn(gate.wait, DEADLINE_S), D.spawn(boom)
    D.waitany([blocked, quick])
    assert quick.isready() and not blocked.isready()


def test_s1_2_waitall_never_raises() -> None:
    """§1.2: `waitall` waits for all and reveals no error; an empty list is done."""
    tasks = [D.spawn(boom), D.spawn(int), D.spawn(boom)]
    D.waitall(tasks)
    assert all(t.isready() for t in tasks)
    D.waitall([])


def test_s1_2_nested_fetch_on_one_slot(one: D.Context) -> None:
    """§1.2: spawn and fetch within a body does not deadlock on one slot, pinned to it or not."""
    pinned = D.ExactScope(D.ThreadProc(1, 1))

    def inner(x: int) -> int:
        return x + 1

    def outer(x: int, scope: Any) -> int:
        return D.fetch(D.spawn(inner, D.Options(scope=scope), x))

    assert D.fetch(D.spawn(outer, D.Options(scope=pinned), 10, pinned)) == 11
    assert D.fetch(D.spawn(outer, 10, None)) == 11


def test_s1_2_a_woken_body_waits_for_its_share(one: D.Context, gate: threading.Event) -> None:
    """§1.2: after a blocking fetch a body goes on only when its occupancy fits again."""
    order: list[str] = []
    occupied, release = threading.Event(), threading.Event()

    def target() -> None:
        gate.wait(DEADLINE_S)

    def outer() -> None:
        # With a timeout it does not help, so it must give the slot back.
        D.spawn(target, D.Options(occupancy={D.ThreadProc: 0})).fetch(timeout=DEADLINE_S)
        order.append("woken")

    def intruder() -> None:
        occupied.set()
        release.wait(DEADLINE_S)
        order.append("intruder done")

    first = D.spawn(outer)
    second = D.spawn(intruder)
    assert occupied.wait(DEADLINE_S)
    gate.set()
    for _ in range(20):
        D.spawn(int, D.Options(occupancy={D.ThreadProc: 0})).fetch(timeout=DEADLINE_S)
    assert order == []
    release.set()
    D.waitall([first, second])
    assert order == ["intruder done", "woken"]


# --- 1.3 arguments ---------------------------------------------------------------------------------------


def test_s1_3_tasks_and_chunks_are_resolved() -> None:
    """§1.3: a task gives its result, a chunk its content, positional, keyword and function alike."""
    task, chunk = D.spawn(identity, 5), D.tochunk(7)
    assert D.fetch(D.spawn(lambda *a, **k: (a, k), task, chunk, 9, t=task, c=chunk)) == (
        (5, 7, 9),
        {"t": 5, "c": 7},
    )


def test_s1_3_containers_pass_untouched() -> None:
    """§1.3, ruling 2: a list, tuple or dict that merely contains tasks is passed as it is."""
    task = D.spawn(identity, 5)
    for holder in ([task], (task,), {"k": task}):
        assert D.fetch(D.spawn(identity, holder)) is holder


def test_s1_3_a_plain_value_is_the_same_object() -> None:
    """§1.3: anything else arrives as itself."""
    value = object()
    assert D.fetch(D.spawn(lambda x: x is value, value)) is True


def test_s1_3_meta_passes_chunks() -> None:
    """§1.3: with `meta` chunks and task results arrive as chunks, positional and keyword; the function resolves."""
    a, c = D.spawn(identity, 1), D.tochunk(2)
    assert D.fetch(D.spawn(lambda c: isinstance(c, D.Chunk), D.Options(meta=True), a)) is True

    def kinds(*args: Any, **kwargs: Any) -> list[bool]:
        return [isinstance(x, D.Chunk) for x in (*args, *kwargs.values())]

    function = D.tochunk(kinds)
    assert D.fetch(D.spawn(function, D.Options(meta=True), a, c, 3, k=a)) == [True, True, False, True]


def test_s1_3_fetch_all_keeps_the_structure() -> None:
    """§1.3: `fetch_all` replaces tasks and chunks and keeps the structure around them."""
    assert D.fetch_all([D.spawn(add, 1, 1) for _ in range(4)]) == [2, 2, 2, 2]
    task, chunk = D.spawn(add, 1, 1), D.tochunk("c")
    assert D.fetch_all(task) == 2 and D.fetch_all(chunk) == "c"
    assert D.fetch_all((task, [chunk, (task,)], 5)) == (2, ["c", (2,)], 5)


def test_s1_3_fetch_all_raises_what_a_fetch_raises() -> None:
    """§1.3, §1.8: a failed task within the structure raises its error."""
    with pytest.raises(D.DTaskFailedError):
        D.fetch_all([D.spawn(int), D.spawn(boom)])


def test_s1_3_the_documented_graph() -> None:
    """§1.3: p = add1(4), q = add2(p), r = add1(3), combine(p, q, r) is 16."""
    p = D.spawn(lambda x: x + 1, 4)
    q = D.spawn(lambda x: x + 2, p)
    r = D.spawn(lambda x: x + 1, 3)
    assert D.fetch(D.spawn(lambda *x: sum(x), p, q, r)) == 16


def test_s1_3_the_same_task_twice() -> None:
    """§1.3: one task may appear several times among the arguments."""
    a = D.spawn(identity, 3)
    assert D.fetch(D.spawn(add, a, a)) == 6


def test_ruling_2_what_a_body_returns_is_not_followed() -> None:
    """Ruling 2: a body that returns a DTask gives that DTask; a returned Chunk is the result itself."""
    inner = D.spawn(identity, 5)
    got = D.fetch(D.spawn(lambda: inner))
    assert isinstance(got, D.DTask) and got.id == inner.id and D.fetch(got) == 5
    chunk = D.tochunk(7)
    task = D.spawn(lambda: chunk)
    assert D.fetch(task) == 7
    assert D.fetch(task, raw=True) == chunk
    assert D.fetch(D.spawn(add, task, 1)) == 8


# --- 1.4 keywords, 1.5 call forms, 1.6 functions ---------------------------------------------------------


def test_s1_4_keywords_pass_through() -> None:
    """§1.4: keyword arguments arrive unchanged, task values resolved."""
    assert D.fetch(D.spawn(sorted, [2, 3, 1], reverse=True)) == [3, 2, 1]
    assert D.fetch(D.spawn(lambda *, a, b: a - b, a=D.spawn(int, 5), b=3)) == 2


def test_s1_4_a_bad_keyword_fails_the_task() -> None:
    """§1.4: a keyword that the function does not take fails the task, not the spawn."""
    task = D.spawn(sum, [1, 2], fakearg=2)
    assert outcome(task) == (D.DTaskFailedError, TypeError)


@pytest.mark.parametrize("name", ["f", "self", "options", "name", "scope", "args", "timeout", "fn", "func"])
def test_s1_4_any_keyword_name_belongs_to_the_function(name: str) -> None:
    """§1.4: keyword arguments pass through unchanged, whatever they are called."""
    assert D.fetch(D.spawn(lambda **k: k, **{name: 5})) == {name: 5}


def test_s1_5_items_and_attributes() -> None:
    """§1.5: `task[i]` and `task.getattr(name)` spawn; `setitem` spawns an assignment and gives the value."""
    b = D.spawn(lambda: [10, 20])
    assert isinstance(b[0], D.DTask)
    assert D.fetch(b[0]) == D.fetch(b)[0] == 10
    assert D.fetch(D.spawn(lambda: 3 + 4j).getattr("imag")) == 4.0
    data = [1, 2]
    assert D.fetch(D.setitem(data, 0, 9)) == 9
    assert data == [9, 2]


def test_s1_5_a_task_is_not_iterable() -> None:
    """§1.5: `task[i]` spawns for every i, so iterating a task would never end and must be refused."""
    task = D.spawn(lambda: [1, 2])
    with pytest.raises(TypeError):
        iter(task)


def test_s1_5_a_function_without_arguments() -> None:
    """§1.5: an anonymous function without arguments is a single call."""
    assert D.fetch(D.spawn(lambda: 42)) == 42


@pytest.mark.parametrize("bad", [1, None, "text", [1]])
def test_s1_5_not_callable_raises_at_once(bad: Any) -> None:
    """§1.5: spawning something that can't be called raises TypeError immediately."""
    with pytest.raises(TypeError):
        D.spawn(bad)


def test_s1_6_the_function_may_be_a_chunk_or_a_result() -> None:
    """§1.6: the function may be a chunk or another task's result."""
    assert D.fetch(D.spawn(D.tochunk(add), 1, 2)) == 3
    assert D.fetch(D.spawn(D.spawn(lambda: mul), 3, 4)) == 12


def test_s1_6_a_result_that_is_not_callable_fails_the_task() -> None:
    """§1.6: whether a task's result can be called shows only at run time, as the task's TypeError."""
    assert outcome(D.spawn(D.spawn(identity, 1), 2)) == (D.DTaskFailedError, TypeError)


def test_s1_6_callable_objects() -> None:
    """§1.6: any callable object works: instances, bound methods, partials, classes, builtins."""

    class AddOne:
        def __call__(self, x: int) -> int:
            return x + 1

        def method(self, x: int) -> int:
            return x + 2

    calls = [AddOne(), AddOne().method, functools.partial(add, 3), complex, abs]
    assert D.fetch_all([D.spawn(f, 1) for f in calls]) == [2, 3, 4, 1 + 0j, 1]


def test_s1_6_a_functions_chunk_is_moved_from_its_processor() -> None:
    """§1.6: `move` from a custom processor may replace the function: plus becomes mul there."""

    class MulProc(D.Processor):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, MulProc)

        def __hash__(self) -> int:
            return 1

    @D.move.register(MulProc, D.ThreadProc, type(add))
    def _(source: Any, target: Any, f: Any) -> Any:
        return mul

    plus = D.tochunk(add, MulProc())
    assert D.fetch(D.spawn(plus, 3, 4)) == 12


def test_s1_6_the_scope_of_a_functions_chunk_counts(two: D.Context) -> None:
    """§1.6: the scope of a function that is a chunk takes part in placement."""
    there = D.ThreadProc(1, 2)
    function = D.tochunk(where, scope=D.ExactScope(there))
    assert {D.fetch(D.spawn(function)) for _ in range(10)} == {there}


# --- 1.7 nested spawn ------------------------------------------------------------------------------------


def test_s1_7_nested_spawns_share_the_scheduler(one: D.Context) -> None:
    """§1.7: a body's tasks go to the scheduler of their parent."""

    def body(depth: int) -> tuple[int, int]:
        if depth:
            return D.fetch(D.spawn(body, depth - 1))
        return D.eager_state().uid, D.task_id()

    task = D.spawn(body, 5)
    uid, leaf = D.fetch(task)
    assert uid == D.eager_state().uid and leaf > task.id


def test_s1_7_a_handle_made_in_a_body_can_be_returned() -> None:
    """§1.7: a task spawned within a body can be handed out and fetched outside, unwaited-for there."""

    def parent() -> D.DTask:
        return D.spawn(add, 1, 2)

    assert D.fetch(D.fetch(D.spawn(parent))) == 3


def test_s1_7_spawn_from_worker_2(cluster: D.Context) -> None:
    """§1.7: a body on worker 2 spawns into the same scheduler; the result is fetched by the main program."""

    def parent() -> tuple[int, int]:
        return D.myid(), D.fetch(D.spawn(add, 1, 2))

    assert D.fetch(D.spawn(parent, D.Options(scope=D.ProcessScope(2)))) == (2, 3)


def test_s1_7_fire_and_forget_children_run(two: D.Context) -> None:
    """§1.7: children that a body neither waits for nor keeps still run."""
    ran: list[int] = []

    def parent() -> None:
        for n in range(20):
            D.spawn(ran.append, n)

    D.fetch(D.spawn(parent))
    poll(lambda: len(ran) == 20)
    assert sorted(ran) == list(range(20))


class Store:
    """Methods of all kinds whose calls are tasks."""

    base = 10

    @D.task(name="add to base", retries=1)
    def plus(self, x: int, /, *, f: int = 0) -> int:
        """Of an instance."""
        return self.base + x + f

    @classmethod
    @D.task
    def of_class(cls, x: int) -> int:
        """Of the class, the task inside."""
        return cls.base + x

    @D.task
    @classmethod
    def of_class_too(cls, x: int) -> int:
        """Of the class, the task outside."""
        return cls.base + x

    @D.task
    @staticmethod
    def of_nobody(x: int) -> int:
        """Of neither."""
        return x


def test_tasks_that_are_methods() -> None:
    """`@task` works in a class: on methods, class methods and static methods, with its options, called either way."""
    store = Store()
    tasks = [store.plus(1), Store.plus(store, 2), Store.of_class(3), store.of_class_too(4), store.of_nobody(5)]
    assert D.fetch_all(tasks) == [11, 12, 13, 14, 5]
    assert tasks[0].options.name == tasks[1].options.name == "add to base"
    assert store.plus.local(3) == 13


def test_names_of_keywords_are_the_functions() -> None:
    """No keyword of a call collides with a name of ours, whichever way it is spawned."""
    names = {"f": 1, "self": 2, "options": 3, "args": 4, "task": 5}
    assert D.fetch(D.spawn(dict, **names)) == names
    assert D.fetch(D.spawn.opts(name="all")(dict, **names)) == names
    assert D.fetch(D.task(dict)(**names)) == names
    with D.Executor(1) as executor:
        assert executor.submit(dict, **names).result() == names


def test_a_program_that_ends_says_what_it_drops() -> None:
    """Tasks that had not begun when the program ended are told of, in one line; where all did, nothing is said."""
    drops = """
        import time
        from otel_timespan import dagger as D
        for _ in range(10):
            D.spawn(time.sleep, 0.2)
        """
    code, _, err = finish(program(drops))
    assert code == 0
    assert "of the tasks it spawned have not begun" in err and err.count("\n") == 1
    code, _, err = finish(program("from otel_timespan import dagger as D\nD.fetch(D.spawn(int))"))
    assert (code, err) == (0, "")
