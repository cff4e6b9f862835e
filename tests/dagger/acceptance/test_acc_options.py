"""spec/scheduler.md §4: options, scoped options, propagation."""

from __future__ import annotations

import asyncio
import threading
import warnings
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    boom,
    failure,
    identity,
    outcome,
    poll,
    settled,
    timeline_of,
    where,
)


@pytest.mark.parametrize(
    "make",
    [
        lambda: D.Options(nope=1),
        lambda: D.spawn.opts(nope=1),
        lambda: D.with_options(nope=1).__enter__(),
        lambda: D.task(nope=1)(int),
        lambda: D.get_options("nope"),
    ],
    ids=["Options", "spawn.opts", "with_options", "task", "get_options"],
)
def test_s4_1_unknown_names_are_an_error(make: Any) -> None:
    """§4.1: an unknown option is a ValueError that names it, wherever it is given."""
    with pytest.raises(ValueError, match="nope"):
        make()


@pytest.mark.parametrize(
    "bad",
    [
        {"scope": "everywhere"},
        {"occupancy": {D.ThreadProc: "much"}},
        {"occupancy": 0.5},
        {"syncdeps": {1, 2}},
        {"result_scope": 3},
        {"compute_scope": D.ThreadProc(1, 1)},
    ],
    ids=str,
)
def test_s4_1_values_that_cannot_work_are_refused_early(bad: dict[str, Any]) -> None:
    """§4.1: a value of the wrong kind is an error of ours that names the option, at the latest from spawn."""
    with pytest.raises((ValueError, TypeError)) as caught:
        D.spawn(int, D.Options(**bad))
    assert isinstance(caught.value, ts.TimespanError)
    assert next(iter(bad)) in str(caught.value)


def test_s4_1_all_default_to_unset() -> None:
    """§4.1: all options of the table exist and are None by default."""
    names = [
        "propagates", "processor", "scope", "compute_scope", "result_scope", "exec_scope", "single", "proclist",
        "get_result", "meta", "syncdeps", "time_util", "alloc_util", "occupancy", "checkpoint", "restore", "storage",
        "storage_root_tag", "storage_leaf_tag", "storage_retain", "name", "tag", "stream_input_buffer_amount",
        "stream_output_buffer_amount", "stream_buffer_type", "stream_max_evals", "acceleration", "return_type",
    ]  # fmt: skip
    options = D.Options()
    assert {n: getattr(options, n) for n in names} == dict.fromkeys(names)


def test_s4_1_scope_sets_compute_scope() -> None:
    """§4.1 accept: `scope` in the constructor sets `compute_scope` too."""
    a, b = D.scope(worker=1, thread=1), D.scope(worker=1, thread=2)
    assert D.Options(scope=a).compute_scope == a
    both = D.Options(scope=a, compute_scope=b)
    assert (both.scope, both.compute_scope) == (a, b)


@pytest.mark.parametrize("name", ["scope", "compute_scope", "result_scope"])
def test_s4_1_setting_a_scope_clears_exec_scope(name: str) -> None:
    """§4.1: setting one of the three scopes clears `exec_scope`."""
    a = D.scope(worker=1, thread=1)
    options = D.Options(exec_scope=a)
    assert options.exec_scope == a
    setattr(options, name, a)
    assert options.exec_scope is None


def test_s4_1_scope_and_compute_scope_place_the_task(two: D.Context) -> None:
    """§4.1: `scope` says where it may run, `compute_scope` wins over it."""
    one, other = D.scope(worker=1, thread=1), D.scope(worker=1, thread=2)
    assert D.fetch(D.spawn(where, D.Options(scope=other))) == D.ThreadProc(1, 2)
    assert D.fetch(D.spawn(where, D.Options(scope=one, compute_scope=other))) == D.ThreadProc(1, 2)
    assert D.fetch(D.spawn(where, D.Options(compute_scope=other))) == D.ThreadProc(1, 2)


def test_s4_1_exec_scope_skips_the_computation(cluster: D.Context) -> None:
    """§4.1: `exec_scope` is the final scope; argument scopes are not even looked at."""
    chunk = D.tochunk(5, scope=D.ProcessScope(1))
    options = D.Options(exec_scope=D.ExactScope(D.ThreadProc(2, 1)))
    assert D.fetch(D.spawn(lambda x: (where(), x), options, chunk)) == (D.ThreadProc(2, 1), 5)


def test_s4_1_get_result_and_meta_keep_the_plain_result() -> None:
    """§4.1: with `get_result` or `meta` the result is not wrapped; dependents work all the same."""
    value = ["plain"]
    for options in (D.Options(get_result=True), D.Options(meta=True)):
        task = D.spawn(lambda: value, options)
        assert D.fetch(task, raw=True) is value
        assert D.fetch(D.spawn(identity, task)) is value


def test_s4_1_syncdeps_are_waited_for_and_not_passed(two: D.Context, gate: threading.Event) -> None:
    """§4.1: `syncdeps` delay a task without becoming arguments."""
    up = D.spawn(gate.wait, DEADLINE_S)
    down = D.spawn(lambda *a: a, D.Options(syncdeps={up}))
    assert not down.isready()
    gate.set()
    assert D.fetch(down) == ()
    assert up.isready()


def test_s4_1_a_failed_syncdep_fails_the_task() -> None:
    """§4.1, §1.8: an upstream that failed fails the task, also where it is no argument."""
    up = D.spawn(boom)
    assert failure(D.spawn(int, D.Options(syncdeps={up}))).root.id == up.id


def test_s4_1_arguments_count_as_syncdeps_too() -> None:
    """§1.1: upstream tasks among the arguments, function included, join the explicit ones; all are in `deps`."""
    log: list[Any] = []
    with D.Context(threads=1, log_sink=log):
        f, a, s = D.spawn(lambda: identity), D.spawn(int), D.spawn(int)
        task = D.spawn(f, D.Options(syncdeps={s}), a)
        D.fetch(task)
    events = settled(log, task)
    deps = timeline_of(events, task, "add_thunk", "start").deps
    assert set(deps) == {(0, f.id), (1, a.id), (None, s.id)}


def test_s4_1_zero_occupancy_starts_beside_a_full_task(one: D.Context, gate: threading.Event) -> None:
    """§4.1 accept: an occupancy of 0 starts while a full task holds the slot."""
    full = D.spawn(gate.wait, DEADLINE_S)
    for occupancy in ({D.ThreadProc: 0}, {Any: 0}, {D.ThreadProc: -3}):
        assert D.spawn(int, D.Options(occupancy=occupancy)).fetch(timeout=DEADLINE_S) == 0
    assert not full.isready()


def test_s4_1_shares_fit_side_by_side(one: D.Context, gate: threading.Event) -> None:
    """§4.1: two halves run at once on a slot; a third waits for one of them."""
    running: list[int] = []

    def body(n: int) -> None:
        running.append(n)
        gate.wait(DEADLINE_S)

    half = D.Options(occupancy={Any: 0.5})
    tasks = [D.spawn(body, half, n) for n in range(3)]
    poll(lambda: len(running) == 2)
    for _ in range(10):
        D.spawn(int, D.Options(occupancy={Any: 0})).fetch(timeout=DEADLINE_S)
    assert len(running) == 2
    gate.set()
    D.waitall(tasks)
    assert sorted(running) == [0, 1, 2]


def test_s4_1_occupancy_exact_type_first(one: D.Context, gate: threading.Event) -> None:
    """§4.1: the exact processor type is looked up before `Any`; values are clamped to 0..1."""
    full = D.spawn(gate.wait, DEADLINE_S)
    light = D.spawn(int, D.Options(occupancy={Any: 1, D.ThreadProc: 0}))
    assert light.fetch(timeout=DEADLINE_S) == 0
    over = D.spawn(int, D.Options(occupancy={Any: 7}))
    assert not over.isready() and not full.isready()
    gate.set()
    assert over.fetch(timeout=DEADLINE_S) == 0


def test_s4_1_name_labels_the_task_in_the_log() -> None:
    """§4.1: `name` is the label in the log, with one `data_annotation` at submission."""
    log: list[Any] = []
    with D.Context(threads=1, log_sink=log):
        task, plain = D.spawn(int, D.Options(name="counting")), D.spawn(int)
        D.waitall([task, plain])
    events = settled(log, task, plain)
    assert timeline_of(events, task, "add_thunk", "start").name == "counting"
    assert timeline_of(events, plain, "add_thunk", "start").name is None
    notes = [e for e in events if e.category == "data_annotation"]
    assert {(e.id.objectid, e.id.name) for e in notes} == {(task.id, "counting")}


def test_s4_1_cache_is_a_no_op() -> None:
    """§4.1: the old option `cache` does nothing but warn; the task computes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert D.fetch(D.spawn.opts(cache=True)(identity, 10)) == 10


# --- 4.2 scoped options ----------------------------------------------------------------------------------


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
