"""What a fetch of a failed task raises: of the body's class, too; printed once; copied and pickled as it is."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan import errors
from otel_timespan.dagger.tasks.dtask import TaskSummary
from otel_timespan.otel.spans.failures import describe

TASK = TaskSummary(1, "f", ("2",))


class AnswerError(Exception):
    """Its constructor takes other arguments than those that it hands on."""

    def __init__(self, code: int, body: str) -> None:
        super().__init__(f"answer {code}")
        self.code, self.body = code, body

    def doubled(self) -> int:
        """A method that reads attributes."""
        return 2 * self.code


class SlotError(Exception):
    """Attributes without a `__dict__`."""

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class NewError(Exception):
    """A `__new__` of its own."""

    def __new__(cls, what: str) -> NewError:
        return super().__new__(cls)


class StrictError(Exception):
    """It wants something of those that derive from it."""

    def __init_subclass__(cls, wanted: int) -> None:
        raise TypeError("no")


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Nothing can be set, and it equals others."""

    code: int


class MutePickleError(Exception):
    """Neither text nor pickle."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class LockedError(Exception):
    """Holds what can't be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class Meta(type):
    """A metaclass."""


class MetaError(Exception, metaclass=Meta):
    """Classes of it are made in another way."""


def raised_by(act: Callable[[], Any]) -> BaseException:
    """What it raises."""
    with pytest.raises(BaseException) as caught:
        act()
    return caught.value


def fetched(error: BaseException) -> Any:
    """What a fetch raises where the body raised this."""

    def body() -> None:
        raise error

    return raised_by(lambda: ts.fetch(D.spawn(body)))


def no_file() -> BaseException:
    """One with attributes that are no arguments."""
    return raised_by(lambda: open("/there/is/none"))


BOTH: list[Callable[[], BaseException]] = [
    lambda: ZeroDivisionError("by zero"),
    lambda: KeyError("key"),
    lambda: TimeoutError("late"),
    lambda: MemoryError("full"),
    lambda: ImportError("none", name="module"),
    lambda: UserWarning("warned"),
    no_file,
    lambda: raised_by(b"\xff".decode),
    lambda: raised_by(lambda: compile("a b", "x", "exec")),
    lambda: raised_by(lambda: object().nothing),  # type: ignore[attr-defined]
    lambda: AnswerError(404, "none"),
    lambda: SlotError(3),
    lambda: NewError("x"),
    lambda: StrictError("x"),
    lambda: FrozenError(1),
    lambda: MutePickleError(),
    lambda: LockedError(),
    lambda: D.SchedulingError("why", "code"),
]

PLAIN: list[Callable[[], BaseException]] = [
    lambda: KeyboardInterrupt(),
    lambda: SystemExit(3),
    lambda: GeneratorExit(),
    lambda: StopIteration(1),
    lambda: StopAsyncIteration(),
    lambda: MetaError("meta"),
]
if sys.version_info >= (3, 11):
    PLAIN.append(lambda: ExceptionGroup("several", [ValueError(1)]))  # noqa: F821


@pytest.mark.parametrize("make", BOTH)
def test_the_error_is_of_the_body_s_class_too(make: Callable[[], BaseException]) -> None:
    """`except ZeroDivisionError` catches what a fetch raises, and so does `except DTaskFailedError`."""
    root = make()
    error = fetched(root)
    assert isinstance(error, type(root)) and isinstance(error, D.DTaskFailedError)
    assert type(error).__name__ == f"DTaskFailedError({type(root).__name__})"
    assert error.ex is root and error.__cause__ is root
    assert {error: 1}[error] and error == error and error != fetched(root)
    assert type(fetched(root)) is type(error)


@pytest.mark.parametrize("make", PLAIN)
def test_some_classes_have_no_such_error(make: Callable[[], BaseException]) -> None:
    """What ends loops or programs, or can't be derived from, is in the error and not its class."""
    root = make()
    error = fetched(root)
    assert type(error) is D.DTaskFailedError and error.__cause__ is root


@pytest.mark.parametrize("make", [*BOTH, *PLAIN])
def test_the_error_is_copied_and_pickled(make: Callable[[], BaseException]) -> None:
    """A copy, and what comes out of pickle, is caught and reads as the error, whatever the body raised."""
    error = fetched(make())
    for same in (copy.copy(error), copy.deepcopy(error), copy.copy(fetched(error))):
        assert type(same) is type(error) and D.unwrap_exception(same) is error.ex
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, D.DTaskFailedError) and back.task == error.task and back.root == error.root
    assert str(back) == str(error) and type(back.ex) is type(error.ex) and back.__cause__ is back.ex


def test_attributes_of_the_body_s_error_are_there() -> None:
    """Attributes and methods of the exception work on the error, before and after pickling."""
    for error in (fetched(AnswerError(404, "none")), pickle.loads(pickle.dumps(fetched(AnswerError(404, "none"))))):
        assert (error.code, error.body, error.doubled()) == (404, "none", 808)
    assert fetched(no_file()).filename == "/there/is/none" and fetched(no_file()).errno
    assert fetched(SlotError(3)).place == 3
    assert fetched(D.SchedulingError("why", "code")).code == "code"
    assert not hasattr(fetched(KeyError("k")), "nothing")


def test_what_can_not_be_pickled_at_all_is_told() -> None:
    """An exception of a class that nobody can import comes back as its type and text."""

    class HiddenError(ValueError):
        pass

    back = pickle.loads(pickle.dumps(fetched(HiddenError("hidden"))))
    assert isinstance(back.ex, errors.UnpicklableError)
    assert back.ex.type_name.endswith("HiddenError") and "hidden" in str(back)
    again = pickle.loads(pickle.dumps(back))
    assert str(again) == str(back)


def test_nested_errors_are_pickled_in_reasonable_time() -> None:
    """Each error around another one asks pickle once."""

    def nest(depth: int) -> Any:
        return ts.fetch(D.spawn(nest, depth - 1)) if depth else 1 // 0

    error = raised_by(lambda: ts.fetch(D.spawn(nest, 15)))
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, ZeroDivisionError) and str(back) == str(error)


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name[0].isupper()])
def test_every_error_is_copied_and_pickled(name: str) -> None:
    """Each error of ours comes back with its type, its arguments and its text."""
    kind = getattr(errors, name)
    args: dict[str, tuple[Any, ...]] = {
        "DTaskFailedError": (TASK, TASK, ValueError("x")),
        "DTaskCancelledError": (TASK, TASK, errors.TaskCancelled("x")),
        "RemoteTaskError": (1, AnswerError(1, "x"), "text"),
        "MissingExtraError": ("lib", "extra"),
        "DynamicThunkError": ("why", "code"),
        "UnpicklableError": ("kind", "text"),
        "WorkerLostError": (1,),
        "SingleWorkerLostError": (1,),
    }
    error = kind(*args.get(name, ("why",)))
    for same in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(same) is type(error) and str(same) == str(error) and len(same.args) == len(error.args)


@pytest.mark.parametrize("depth", [0, 5])
def test_the_text_is_said_once(depth: int) -> None:
    """Through dependents, and through bodies that fetch each other, the text is in the root's error and in ours."""

    def nest(left: int) -> Any:
        if left:
            return ts.fetch(D.spawn(nest, left - 1))
        raise ValueError("the" + "text")

    task = D.spawn(nest, depth)
    for _ in range(5):
        task = D.spawn(bool, task)
    error = raised_by(lambda: ts.fetch(task))
    assert "".join(traceback.format_exception(error)).count("thetext") == 2
    assert str(error).count("thetext") == 1 and "Root Task" in str(error) and "nest(0)" in str(error)


def test_circles_of_causes_end() -> None:
    """Causes and contexts that go round are cut off, printed, pickled and described for a span."""
    for link in ("__cause__", "__context__"):
        first, second = ValueError("first"), KeyError("second")
        setattr(first, link, second)
        setattr(second, link, first)
        try:
            raise RuntimeError("handled")
        except RuntimeError:
            error = fetched(first)
        text = "".join(traceback.format_exception(error))
        assert "first" in text and "handled" not in text
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert "first" in describe(error).stack


def test_classes_that_are_both_keep_no_class_alive() -> None:
    """A class of exceptions that is gone is not kept by the one that was made of it."""

    class PassingError(ValueError):
        pass

    kind = weakref.ref(PassingError)
    assert isinstance(fetched(PassingError()), PassingError)
    del PassingError
    ts.fetch(D.spawn(int))
    gc.collect()
    assert kind() is None


def test_the_innermost_error_is_found_at_once() -> None:
    """However deep bodies fetched each other's failures: what one more level costs does not grow with the depth."""

    def calls_of_one_more(error: BaseException) -> int:
        calls: list[str] = []
        sys.setprofile(lambda frame, event, arg: calls.append(event))
        try:
            D.DTaskFailedError(TASK, TASK, error)
        finally:
            sys.setprofile(None)
        return len(calls)

    shallow = deep = D.DTaskFailedError(TASK, TASK, ValueError("x"))
    for _ in range(2000):
        deep = D.DTaskFailedError(TASK, TASK, deep)
    assert D.unwrap_exception(deep) is shallow.ex
    assert calls_of_one_more(deep) == calls_of_one_more(shallow)
