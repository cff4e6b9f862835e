"""The core under random interleavings: Hypothesis drives the inline driver, the invariants watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from otel_timespan import dagger as D
from otel_timespan.dagger.control import cancel_task
from otel_timespan.dagger.dtask import ALLOWED, state_name

_reached: set[tuple[str, str]] = set()


def work(number: int, *inputs: int) -> int:
    """The body of every task here: fails where the number says so."""
    if number % 7 == 3:
        raise ValueError(number)
    return number + sum(inputs)


class Machine(RuleBasedStateMachine):
    """Submit, step, cancel and fail in any order; a model in plain Python predicts every outcome."""

    tasks = Bundle("tasks")

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        """Two pretended workers and a seeded choice of what runs next."""
        self.context = D.Context(driver=D.InlineDriver({1: 2, 2: 1}, seed=seed), log_sink=[])
        self.context.__enter__()
        self.count = 0
        self.expected: dict[int, Any] = {}
        self.states: dict[int, str] = {}
        self.all: dict[int, D.DTask] = {}

    @rule(target=tasks, upstreams=st.lists(tasks, max_size=4), pinned=st.sampled_from([None, 1, 2]))
    def submit(self, upstreams: list[D.DTask], pinned: int | None) -> D.DTask:
        """A task on some upstreams, here and there pinned to a worker."""
        self.count += 1
        options = D.Options() if pinned is None else D.Options(scope=D.scope(worker=pinned))
        task = D.spawn(work, options, self.count, *upstreams)
        inputs = [self.expected[up.id] for up in upstreams]
        failed = any(isinstance(value, str) for value in inputs)
        self.expected[task.id] = "failed" if failed or self.count % 7 == 3 else self.count + sum(inputs)
        self.all[task.id] = task
        return task

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        """Run some ready tasks."""
        for _ in range(steps):
            self.context.start().driver.step()
            self._note()

    @rule(task=tasks)
    def cancel(self, task: D.DTask) -> None:
        """A cancellation fails what has not finished, and all that hangs on it."""
        if task.isready():
            cancel_task(task, graceful=True)
            return
        cancel_task(task, graceful=True)
        assert task.isready()
        for other in self.all.values():
            if other.isready() and state_name(other) == "failed":
                self.expected[other.id] = "failed"
        self._propagate()

    @rule(task=tasks)
    def fetch(self, task: D.DTask) -> None:
        """Fetching runs what is needed and gives what the model says."""
        wanted = self.expected[task.id]
        if wanted == "failed":
            with pytest.raises(D.DTaskFailedError):
                D.fetch(task)
        else:
            assert D.fetch(task) == wanted

    def _propagate(self) -> None:
        for task in self.all.values():
            if any(self.expected[up.id] == "failed" for up in task._deps):
                self.expected[task.id] = "failed"

    def _note(self) -> None:
        for task in self.all.values():
            state = state_name(task)
            before = self.states.get(task.id, "unlaunched")
            if before != state:
                _reached.add((before, state))
                self.states[task.id] = state

    @invariant()
    def holds(self) -> None:
        """No rule of the core's state is broken, whatever just happened."""
        if hasattr(self, "context") and self.context.core is not None:
            D.check(self.context.core)
            self._note()

    def teardown(self) -> None:
        """Everything left can still be finished."""
        if hasattr(self, "context"):
            for task in self.all.values():
                D.wait(task)
                assert (state_name(task) == "failed") == (self.expected[task.id] == "failed")
            self.context.__exit__(None, None, None)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture(autouse=True)
def fresh_topology() -> Iterator[None]:
    """Pretended workers leave no trace."""
    yield
    from otel_timespan.dagger.processors import topology

    topology.reset()


def test_transitions_are_allowed() -> None:
    """Whatever moves the machine saw between two looks, each is a path of allowed moves."""
    paths = set(ALLOWED)
    while True:
        longer = paths | {(a, d) for a, b in paths for c, d in paths if b == c}
        if longer == paths:
            break
        paths = longer
    assert _reached <= paths
