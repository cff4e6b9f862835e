"""What can't travel, and bodies that do what they should not: an error where it belongs, and others unharmed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes import frames, wire
from otel_timespan.errors import UnpicklableError
from tests.dagger.processes.test_main_programs import run


def give(*args: Any, **kwargs: Any) -> Any:
    """The first of what it is given."""
    return next(iter((*args, *kwargs.values())), None)


def made_by(kind: Callable[[], Any]) -> Any:
    """What it makes."""
    return kind()


def append(found: Any, value: Any) -> None:
    """To a list, or what stands for one elsewhere."""
    found.append(value)


def raise_it(kind: Any, *args: Any) -> None:
    """Raise what it makes."""
    raise kind(*args)


class Unreducible:
    """Says how it is pickled by raising something."""

    def __init__(self, error: Any = KeyError) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("not me")


class Endless:
    """Its pickling never ends."""

    def __reduce__(self) -> Any:
        return Endless, (Endless(),)


class Unreadable:
    """Can be written, and not be read on one side."""

    def __init__(self, where: str, error: Any = ValueError) -> None:
        self.where, self.error = where, error

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.where == ("head" if D.myid() == 1 else "worker"):
            raise self.error("can't be read")


class NeedsTwoError(Exception):
    """Wants other arguments than it tells of."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")
        self.left = left


class HasLockError(Exception):
    """Has something that can't be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock, self.code = threading.Lock(), 7


class MuteError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raise_local() -> None:
    """Raise something whose class can neither be imported nor pickled."""

    class StubbornError(Exception):
        lock = threading.Lock()

    raise StubbornError("right")


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


LOCK = threading.Lock()


def with_default(lock: Any = LOCK) -> None:
    """Its default can't be pickled: it goes by reference, as it can be imported."""


@pytest.fixture(autouse=True)
def _others_are_unharmed(on_workers: D.Context) -> Any:
    """Tasks before, beside and after a bad one have their results, from the workers that were there before."""
    before = {D.cluster.run(p.pid, os.getpid) for p in on_workers.procs}
    beside = [D.spawn(give, n) for n in range(20)]
    yield
    assert [D.fetch(task, timeout=60) for task in beside] == list(range(20))
    assert {D.fetch(D.spawn(os.getpid), timeout=60) for _ in range(20)} <= before
    assert {D.cluster.run(p.pid, os.getpid) for p in on_workers.procs} == before


# ---- on the way to a worker -----------------------------------------------------------------------------------

UNSENDABLE: dict[str, Callable[[], Any]] = {
    "raises": Unreducible,
    "exits": lambda: Unreducible(SystemExit),
    "interrupts": lambda: Unreducible(KeyboardInterrupt),
    "endless": Endless,
    "deep": lambda: nested(100_000),
    "lock": threading.Lock,
    "generator": lambda: (n for n in "ab"),
    "frame": sys._getframe,
    "context": D.Context,
    "in a list": lambda: [1, {"a": Unreducible()}],
}


@pytest.mark.parametrize("make", UNSENDABLE.values(), ids=UNSENDABLE)
@pytest.mark.parametrize("how", ["argument", "keyword", "closure", "partial"])
def test_what_can_not_be_pickled_fails_its_task(make: Callable[[], Any], how: str) -> None:
    """Which says which task, which worker, and why; what depends on it fails as ever."""
    bad = make()
    task = {
        "argument": lambda: D.spawn(give, 1, bad),
        "keyword": lambda: D.spawn(give, a=1, b=bad),
        "closure": lambda: D.spawn(lambda: give(bad)),
        "partial": lambda: D.spawn(__import__("functools").partial(give, bad)),
    }[how]()
    below = D.spawn(give, task)
    with pytest.raises(D.InvalidOptionError, match=f"task {task.id} can't be sent to worker") as caught:
        D.fetch(below, timeout=60)
    assert caught.value.root.id == task.id


def test_a_lambda_s_default_that_can_not_be_pickled_fails_its_task() -> None:
    """A function that can be imported needs none of it."""
    assert D.fetch(D.spawn(with_default), timeout=60) is None
    with pytest.raises(D.InvalidOptionError, match=r"can't be sent to worker .*lock"):
        D.fetch(D.spawn(lambda lock=LOCK: lock), timeout=60)


def test_what_of_a_function_can_not_be_pickled_is_named() -> None:
    """A variable, a default, a global."""
    lock = threading.Lock()
    made: dict[str, Any] = {"__name__": "__main__", "shared": lock}
    exec("def user():\n    return shared\n", made)
    for body, says in (
        (lambda: lock, "the variable 'lock' of"),
        (lambda a, *, b=lock: b, "the default of 'b' of"),
        (lambda a=lock: a, "the default of 'a' of"),
        (made["user"], "the global 'shared' of user"),
    ):
        with pytest.raises(D.InvalidOptionError, match=f"can't be sent to worker .*{says}.*: cannot pickle"):
            D.fetch(D.spawn(body), timeout=60)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_the_worker_can_not_read_fails_its_task(error: Any) -> None:
    """With what its class raised there."""
    task = D.spawn(give, Unreadable("worker", error))
    with pytest.raises(D.InvalidOptionError, match=f"task {task.id} can't be read by worker .*{error.__name__}"):
        D.fetch(task, timeout=60)


def test_a_function_that_only_the_head_can_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module was found on a path that came later."""
    (tmp_path / "found_late.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import found_late  # type: ignore[import-not-found]

    with pytest.raises(D.InvalidOptionError, match=r"can't be read by worker .*No module named 'found_late'"):
        D.fetch(D.spawn(found_late.f, 1), timeout=60)
    with pytest.raises(D.InvalidOptionError, match=r"can't be read by worker .*No module named 'found_late'"):
        D.fetch(D.spawn(give, found_late.f), timeout=60)


def test_a_module_that_is_nowhere_goes_by_value_if_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cloudpickle.register_pickle_by_value` is heard."""
    import types

    import cloudpickle

    module = types.ModuleType("nowhere")
    exec("def f(x):\n    return x + 1\n", vars(module))
    monkeypatch.setitem(sys.modules, "nowhere", module)
    cloudpickle.register_pickle_by_value(module)
    try:
        assert D.fetch(D.spawn(module.f, 1), timeout=60) == 2
    finally:
        cloudpickle.unregister_pickle_by_value(module)


# ---- on the way back ------------------------------------------------------------------------------------------

UNRETURNABLE: dict[str, Callable[[], Any]] = {
    "raises": Unreducible,
    "exits": lambda: Unreducible(SystemExit),
    "interrupts": lambda: Unreducible(KeyboardInterrupt),
    "deep": lambda: nested(100_000),
    "lock": threading.Lock,
    "generator": lambda: (n for n in "ab"),
}


@pytest.mark.parametrize("make", UNRETURNABLE.values(), ids=UNRETURNABLE)
def test_a_result_that_can_not_be_pickled_fails_its_task(make: Callable[[], Any]) -> None:
    """Which says of which type it was. (A large one stays with its worker: who needs it elsewhere is told.)"""
    task = D.spawn(made_by, make)
    said = f"the result of task {task.id}, a .*, can't be sent|a list made by worker .* can't be sent"
    with pytest.raises(D.InvalidOptionError, match=said):
        D.fetch(task, timeout=60)


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
def test_a_result_that_the_head_can_not_read_is_an_error_where_it_is_wanted(error: Any) -> None:
    """A task on a worker has it, though."""
    task = D.spawn(Unreadable, "head", error)
    for _ in range(2):
        with pytest.raises(D.StorageError, match="a Unreadable made by a worker, can't be read here"):
            D.fetch(task, timeout=60)
    assert D.fetch(D.spawn(isinstance, task, Unreadable), timeout=60)


def test_a_class_that_only_workers_know(tmp_path: Path) -> None:
    """Its values pass from worker to worker; here they are an error that names it."""
    (tmp_path / "only_there.py").write_text("class Thing:\n    x = 5\n")

    def learn(folder: str) -> None:
        if folder not in sys.path:
            sys.path.append(folder)

    def thing() -> Any:
        import only_there  # type: ignore[import-not-found]

        return only_there.Thing()

    for worker in D.workers():
        D.cluster.run(worker, learn, str(tmp_path))
    task = D.spawn(thing)
    assert D.fetch(D.spawn(getattr, task, "x"), timeout=60) == 5
    with pytest.raises(D.StorageError, match=r"a Thing made by a worker, can't be read here: .*only_there"):
        D.fetch(task, timeout=60)


# ---- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "args", "holds"),
    [
        (NeedsTwoError, (1, 2), lambda error: (error.args, error.left) == (("1 and 2",), 1)),
        (HasLockError, (), lambda error: (error.args, error.code) == (("locked",), 7)),
        (MuteError, ("a",), lambda error: error.args == ("a",)),
        (FileNotFoundError, (2, "gone", "file"), lambda error: (error.errno, error.filename) == (2, "file")),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "why"), lambda error: error.start == 0),
        (StopIteration, (3,), lambda error: error.value == 3),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_error_crosses_as_what_it_is(kind: Any, args: Any, holds: Callable[[Any], bool]) -> None:
    """Also one that its own class could not make again."""
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(D.spawn(raise_it, kind, *args), timeout=60)
    error = D.unwrap_exception(caught.value)
    assert type(error) is kind and holds(error)


def test_an_error_that_can_not_cross_at_all_is_stood_in_for() -> None:
    """By its name and its text."""
    with pytest.raises(UnpicklableError) as caught:
        D.fetch(D.spawn(raise_local), timeout=60)
    error = D.unwrap_exception(caught.value)
    assert isinstance(error, UnpicklableError) and (error.type_name, error.text) == ("StubbornError", "right")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_what_would_end_a_program_ends_a_body(error: BaseException) -> None:
    """It is the failure of its task, as on threads."""
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(D.spawn(raise_it, type(error), *error.args), timeout=60)
    found = D.unwrap_exception(caught.value)
    assert type(found) is type(error) and found.args == error.args


def test_a_recursion_without_an_end_is_an_error_of_its_task() -> None:
    """Not of the process."""

    def down(n: int) -> int:
        return down(n + 1)

    with pytest.raises(RecursionError):
        D.fetch(D.spawn(down, 0), timeout=60)


# ---- much -----------------------------------------------------------------------------------------------------


def test_what_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch, two_workers: list[int]) -> None:
    """In neither direction; it says how long it is."""

    def limit(nbytes: int) -> int:
        before, wire.MAX_BYTES = wire.MAX_BYTES, nbytes
        return before

    monkeypatch.setattr(wire, "MAX_BYTES", 10_000)
    with pytest.raises(D.InvalidOptionError, match=r"can't be sent to worker .*20,0.. bytes.*at most 10,000"):
        D.fetch(D.spawn(len, b"x" * 20_000), timeout=60)
    before = [D.cluster.run(worker, limit, 10_000) for worker in two_workers]
    try:
        with pytest.raises(D.InvalidOptionError, match=r"a bytes, can't be sent: .*20,0.. bytes"):
            D.fetch(D.spawn(bytes, 20_000), timeout=60)
    finally:
        for worker, was in zip(two_workers, before, strict=True):
            D.cluster.run(worker, limit, was)


def test_frames_that_would_be_too_long_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages stay in order; one that is too long alone is an error."""
    monkeypatch.setattr(frames, "MAX_FRAME", 1000)
    messages = [(n, b"x" * 300) for n in range(10)]
    framer, read = frames.Framer(), []
    for pieces in frames.in_frames(messages):
        assert len(pieces[1]) <= 1000
        for frame in framer.feed(b"".join(pieces)):
            read += pickle.loads(frame)
    assert read == messages
    with pytest.raises(ValueError, match="longer than 1000"):
        frames.in_frames([b"x" * 2000])


def test_very_many_results() -> None:
    """None is lost."""
    tasks = [D.spawn(give, n) for n in range(20_000)]
    assert sum(map(D.fetch, tasks)) == sum(range(20_000))


# ---- bodies that do what they should not ----------------------------------------------------------------------


def forked(what: Callable[[], Any]) -> tuple[int, str]:
    """Fork: how the child ended, and what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = what()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, str(said).encode())
        os._exit(7)
    os.close(writing)
    with open(reading) as stream:
        return os.waitpid(child, 0)[1] >> 8, stream.read()


def test_a_body_may_fork() -> None:
    """Its child has nothing of the worker's: no scheduler, and not its way to the head."""
    assert D.fetch(D.spawn(forked, os.getppid), timeout=60)[0] == 7
    assert "it has no scheduler" in D.fetch(D.spawn(forked, lambda: D.fetch(D.spawn(give, 1))), timeout=60)[1]
    assert "only the head" in D.fetch(D.spawn(forked, lambda: D.cluster.add_workers(1)), timeout=60)[1]


@pytest.mark.parametrize(("ending", "status"), [("return 'child'", 0), ("sys.exit(5)", 5), ("os._exit(6)", 6)])
def test_a_child_that_leaves_the_body_ends(ending: str, status: int) -> None:
    """As if the body had been its program; the task has the parent's value."""
    found: dict[str, Any] = {}
    source = f"def body():\n    import os, sys\n    child = os.fork()\n    if child == 0:\n        {ending}\n"
    exec(source + "    return os.waitpid(child, 0)[1] >> 8\n", found)
    assert D.fetch(D.spawn(found["body"]), timeout=60) == status


def test_a_body_may_start_threads_and_processes() -> None:
    """Nothing of ours is in their way."""

    def threads() -> int:
        found: list[int] = []
        started = [threading.Thread(target=found.append, args=(n,)) for n in range(5)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        return sum(found)

    def child() -> str:
        return subprocess.run(["echo", "here"], capture_output=True, text=True).stdout

    def pool() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as made:
            return made.map(abs, [-1, -2])

    assert D.fetch(D.spawn(threads), timeout=60) == 10
    assert D.fetch(D.spawn(child), timeout=60) == "here\n"
    assert D.fetch(D.spawn(pool), timeout=60) == [1, 2]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_proxies_of_a_manager_may_be_arguments() -> None:
    """As to `multiprocessing` a worker is one of the program's processes."""
    import multiprocessing

    with multiprocessing.Manager() as manager:
        found = manager.list()
        [worker] = D.cluster.add_workers(1)  # knows the key if `multiprocessing` was there when it began
        try:
            D.cluster.run(worker, append, found, 7)
            assert list(found) == [7]
        finally:
            D.cluster.remove_workers([worker])


def test_what_a_body_changes_is_its_worker_s(two_workers: list[int], tmp_path: Path) -> None:
    """Folder, environment and search path; not the head's, and no other worker's."""

    def state() -> tuple[str, str | None, bool]:
        return os.getcwd(), os.environ.get("CHANGED"), "changed" in sys.path

    def change(folder: str) -> None:
        os.chdir(folder)
        os.environ["CHANGED"] = "yes"
        sys.path.append("changed")

    def restore(folder: str) -> None:
        os.chdir(folder)
        del os.environ["CHANGED"]
        sys.path.remove("changed")

    first, second = two_workers
    before = state()
    there = D.spawn.opts(scope=D.scope(worker=first))
    D.fetch(there(change, str(tmp_path)), timeout=60)
    assert D.fetch(there(state), timeout=60) == (str(tmp_path), "yes", True)
    assert D.cluster.run(second, state) == state() == before
    D.fetch(there(restore, before[0]), timeout=60)


def test_a_body_that_prints_very_much(tmp_path: Path) -> None:
    """It is printed where the program prints, all of it, and kept nowhere."""
    (tmp_path / "script.py").write_text(
        "import sys\nfrom otel_timespan import dagger as D\n"
        "def talk():\n"
        "    for _ in range(2000):\n"
        "        sys.stdout.write('x' * 9999 + chr(10))\n"
        "    sys.stdout.flush()\n"
        "with D.Context(procs=[], workers=1):\n"
        "    D.fetch(D.spawn(talk))\n"
    )
    done = run("script.py", folder=tmp_path)
    assert done.stdout.count("x") == 2000 * 9999 and done.stderr == ""


# ---- calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, True, "2", 2.5, None], ids=repr)
def test_wrong_counts_of_workers(bad: Any) -> None:
    """By name, and at once."""
    for given in ({"n": bad}, {"n": 1, "threads": bad}):
        with pytest.raises(D.InvalidOptionError, match="must be"):
            D.cluster.add_workers(**given)


@pytest.mark.parametrize("bad", [2, "2", [0], [True], [2.5], ["2"], None], ids=repr)
def test_wrong_workers_to_remove(bad: Any) -> None:
    """By name, and none is removed."""
    before = D.workers()
    with pytest.raises(D.InvalidOptionError):
        D.cluster.remove_workers(bad)
    assert D.workers() == before


def test_a_worker_that_never_was_can_not_be_removed_and_not_be_called() -> None:
    """It says which there are."""
    with pytest.raises(D.InvalidOptionError, match="99"):
        D.cluster.remove_workers([99_999])
    with pytest.raises(D.InvalidOptionError, match="there is no worker 99999, only"):
        D.cluster.run(99_999, os.getpid)


def test_a_call_apart_from_tasks_that_can_not_be_sent(two_workers: list[int]) -> None:
    """Neither there nor back."""
    with pytest.raises(D.InvalidOptionError, match="can't be sent"):
        D.cluster.run(two_workers[0], give, threading.Lock())
    with pytest.raises((D.InvalidOptionError, D.RemoteTaskError), match="cannot pickle"):
        D.cluster.run(two_workers[0], threading.Lock)


def test_workers_do_not_start_workers() -> None:
    """Neither by a task nor by a call."""
    for start in (
        D.spawn(D.cluster.add_workers, 1).fetch,
        lambda: D.cluster.run(D.workers()[0], D.cluster.add_workers, 1),
    ):
        with pytest.raises(
            (D.ConcurrencyViolationError, D.RemoteTaskError), match="only the head process starts workers"
        ):
            start()


def test_an_environment_in_which_no_worker_can_start() -> None:
    """An error of `add_workers`; none is there afterwards."""
    before = D.workers()
    with pytest.raises(D.SchedulingError, match="a worker could not be started"):
        D.cluster.add_workers(1, env={"PYTHONHOME": "/nowhere"})
    assert D.workers() == before
