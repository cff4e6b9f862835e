"""What is there for type checkers costs nothing at run time, and annotations with it can be evaluated."""

from __future__ import annotations

import subprocess
import sys
import typing
from typing import Any

import pytest

from otel_timespan import dagger as D


def plus(task: D.DTask[int] | None, chunk: D.Chunk[str], pieces: D.Shard[float]) -> D.DTask[list[int]]:
    """A function of a user."""
    raise NotImplementedError


@pytest.mark.parametrize("kind", [D.DTask, D.Chunk, D.Shard, D.File])
def test_what_stands_for_a_value_has_no_base_class(kind: type) -> None:
    """A base class would be walked each time that one of them goes."""
    assert kind.__mro__ == (kind, object)


def test_a_task_has_no_dict_and_is_just_that() -> None:
    """Subscribing the class changes nothing about its tasks."""
    task = D.spawn(len, "ab")
    assert type(task) is D.DTask and isinstance(task, D.DTask) and not hasattr(task, "__dict__")
    assert D.fetch(task) == 2


@pytest.mark.parametrize("kind", [D.DTask, D.Chunk, D.Shard, D.Thunk])
def test_the_classes_can_be_subscribed(kind: Any) -> None:
    """`DTask[int]` is an alias of the class with its argument."""
    assert typing.get_origin(kind[int]) is kind and typing.get_args(kind[int]) == (int,)


def test_annotations_can_be_evaluated() -> None:
    """`typing.get_type_hints` finds all of them."""
    hints = typing.get_type_hints(plus)
    assert hints["return"] == D.DTask[list[int]]
    assert hints["task"] == D.DTask[int] | None


def test_a_task_of_a_function_still_has_its_names() -> None:
    """`task` keeps name and docstring, and hands on any keyword, `self` too."""

    @D.task(name="plus")
    def plus(self: int, other: int) -> int:
        """Adds."""
        return self + other

    assert (plus.__name__, plus.__doc__) == ("plus", "Adds.")
    assert plus.local(1, 2) == 3
    assert D.fetch(plus(self=1, other=2)) == 3


def test_nothing_for_type_checkers_is_loaded() -> None:
    """Neither the signatures nor what they need is imported by a program that spawns."""
    code = (
        "import sys, otel_timespan as ts; ts.fetch(ts.spawn(len, 'ab')); "
        "bad = {'typing_extensions', 'otel_timespan.dagger.signatures', 'otel_timespan.dagger.options.keywords'}; "
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
