"""spec/scheduler.md, the options of a task: their names, values and checks."""

from __future__ import annotations

import pickle
import threading
import warnings
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.options import declaring
from otel_timespan.dagger.options.declaring import drop_removed
from otel_timespan.dagger.options.options import DEFAULT, Options
from otel_timespan.dagger.options.scoped import (
    get_options,
    with_options,
)
from otel_timespan.dagger.places.processors import OSProc, ThreadProc
from otel_timespan.dagger.places.scopes import InvalidScope
from otel_timespan.errors import ConcurrencyViolationError, InvalidOptionError
from tests.dagger.acceptance.stubs import TaskLike
from tests.dagger.acceptance.support import (
    DEADLINE_S,
    boom,
    failure,
    identity,
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


# --- edges ---------------------------------------------------------------------------------------------------

A, B = D.ProcessScope(1), D.ProcessScope(2)


T1, T2 = TaskLike(1), TaskLike(2)


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
