"""The core under random steps: Hypothesis drives the inline driver, a model predicts, the invariants watch.

`python -m tests.transitions` prints what it did.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from otel_timespan import dagger as D
from otel_timespan.dagger.bodies import run as execution
from otel_timespan.dagger.control import cancel_task
from otel_timespan.dagger.core import limits
from otel_timespan.dagger.core.invariants import check_idle
from otel_timespan.dagger.places.processors import topology
from otel_timespan.dagger.queues import BulkQueue
from otel_timespan.dagger.storage import PickleFileDevice, RecencyAllocator
from otel_timespan.dagger.tasks.dtask import ALLOWED, live, state_name
from tests.transitions import Transitions, recording

FAILED = "failed"
LARGE = 4096
ROOM = 3 * LARGE

seen = Transitions()
statistics: Counter[str] = Counter()


def number(value: Any) -> int:
    """The number that a result stands for, be it large or not."""
    return int(value) if isinstance(value, int) else int.from_bytes(value[:8], "little")


def work(kind: str, own: int, attempts: dict[int, int], *inputs: Any) -> Any:
    """The body of every task here."""
    attempts[own] = attempts.get(own, 0) + 1
    total = own + sum(number(value) for value in inputs)
    if kind == "boom" or (kind == "flaky" and attempts[own] == 1):
        raise ValueError(own)
    if kind == "large":
        return total.to_bytes(8, "little") + bytes(LARGE)
    task = D.get_tls() if kind in ("expires", "abandoned") else None
    if kind == "expires":
        execution._expire(task._core, task, 1.0, live(task).attempt)
    elif kind == "abandoned":
        D.cancel(task)
    elif kind == "forced":
        D.cancel(D.task_id(), force=True)
    elif kind == "gives up":
        D.task_cancel()
        D.task_may_cancel()
    return total


FAILING = frozenset(("boom", "expires", "abandoned", "forced", "gives up"))
KINDS = ("plain", "plain", "plain", "limited", "large", "flaky", "restored", *sorted(FAILING))


PLACES = st.sampled_from([None, None, None, 1, 2, "shared", "half"])

MANY_ENOUGH = 6
"""So many tasks there are before anything drastic happens."""


def seldom(machine: Machine) -> bool:
    """Not while there is little that could break."""
    return len(machine.expected) - machine.drastic >= MANY_ENOUGH


class Machine(RuleBasedStateMachine):
    """Submit, hold back, step, cancel, halt, add and remove workers in any order."""

    tasks = Bundle("tasks")

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        """Three pretended workers, of which two are used at first, and a seeded choice of what runs next."""
        statistics["examples"] += 1
        self.seen = Transitions()
        self._recording = recording(self.seen)
        self._recording.__enter__()
        driver = D.InlineDriver({1: 2, 2: 1, 3: 2}, seed=seed, validate=True)
        self.context = D.Context([1, 2], driver=driver, log_sink=[])
        self.context.__enter__()
        self.folder = tempfile.mkdtemp(prefix="machine-")
        self.storage = RecencyAllocator(ROOM, PickleFileDevice(self.folder), 1 << 30, "LRU")
        self.held = BulkQueue()
        D.set_limit("machine", 1)
        self.count = 0
        self.attempts: dict[int, int] = {}
        self.expected: dict[D.DTask, Any] = {}
        self.workers = {1, 2}
        self.drastic = 0

    # ---- tasks come ------------------------------------------------------------------------------

    def _options(self, kind: str, where: Any, own: int, total: int) -> D.Options:
        options = D.Options()
        if where == "shared":
            options.scope = D.UnionScope(D.ExactScope(D.ThreadProc(1, 1)), D.ExactScope(D.ThreadProc(1, 2)))
        elif where == "half":
            options.scope, options.occupancy = D.ExactScope(D.ThreadProc(1, 2)), {D.ThreadProc: 0.5}
        elif where is not None:
            options.scope = D.ProcessScope(where)
        if kind == "flaky":
            options.retries = 1
        elif kind == "large":
            options.storage = self.storage
        elif kind == "limited":
            options.limit = ("machine",)
        elif kind == "expires":
            options.timeout = 3600.0
        elif kind == "restored":
            options.restore = lambda task: D.tochunk(total)
        return options

    def _spawn(self, kind: str, where: Any, upstreams: list[D.DTask]) -> D.DTask:
        statistics["tasks"] += 1
        statistics[f"kind {kind}"] += 1
        self.count += 1
        if where == 2 and (upstreams or kind == "flaky"):
            where = None  # when it is placed (again), its worker may be gone or not
        inputs = [self.expected[up] for up in upstreams]
        failed = kind in FAILING or FAILED in inputs
        total = 0 if failed else self.count + sum(inputs)
        options = self._options(kind, where, self.count, total)
        task = D.spawn(work, options, kind, self.count, self.attempts, *upstreams)
        gone = where == 2 and 2 not in self.workers  # no processor lies in its scope
        self.expected[task] = FAILED if failed or gone else total
        return task

    @rule(target=tasks, kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), where=PLACES)
    def submit_first(self, kinds: list[str], where: Any) -> Any:
        """Tasks without upstreams."""
        statistics["rule submit first"] += 1
        return multiple(*[self._spawn(kind, where, []) for kind in kinds])

    @rule(target=tasks, kind=st.sampled_from(KINDS), upstreams=st.lists(tasks, min_size=1, max_size=4), where=PLACES)
    def submit(self, kind: str, upstreams: list[D.DTask], where: Any) -> D.DTask:
        """A task on some upstreams, here and there bound to a worker or to slots."""
        statistics["rule submit"] += 1
        return self._spawn(kind, where, upstreams)

    @rule(
        target=tasks,
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
        upstreams=st.lists(tasks, max_size=2),
    )
    def hold(self, kinds: list[str], upstreams: list[D.DTask]) -> Any:
        """Tasks that a queue holds back."""
        statistics["rule hold"] += 1
        with D.in_queue(self.held):
            return multiple(*[self._spawn(kind, None, upstreams) for kind in kinds])

    @precondition(lambda self: self.held._held)
    @rule()
    def launch(self) -> None:
        """What is held back is launched."""
        statistics["rule launch"] += 1
        self.held.launch()

    # ---- tasks go on -----------------------------------------------------------------------------

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        """Run some ready tasks; random choices among queues are steals."""
        statistics["rule step"] += 1
        for _ in range(steps):
            self.context.start().driver.step()

    @rule(task=tasks)
    def fetch(self, task: D.DTask) -> None:
        """Fetching runs what is needed and gives what the model says."""
        statistics["rule fetch"] += 1
        if state_name(task) == "unlaunched":
            with pytest.raises(D.ConcurrencyViolationError):
                D.fetch(task)
        elif any(state_name(up) == "unlaunched" for up in self._upstreams(task)):
            with pytest.raises((D.SchedulingError, D.DTaskFailedError)):
                D.fetch(task)
        else:
            self._compare(task)

    def _upstreams(self, task: D.DTask) -> set[D.DTask]:
        found: set[D.DTask] = set()
        stack = [task]
        while stack:
            for up in stack.pop()._deps:
                if up not in found:
                    found.add(up)
                    stack.append(up)
        return found

    def _compare(self, task: D.DTask) -> None:
        wanted = self.expected[task]
        if wanted == FAILED:
            with pytest.raises((D.DTaskFailedError, D.TaskCancelled)):
                D.fetch(task)
        else:
            assert number(D.fetch(task)) == wanted

    # ---- cancellation ----------------------------------------------------------------------------

    @rule(task=tasks, how=st.sampled_from(["plain", "force", "id", "late"]))
    def cancel(self, task: D.DTask, how: str) -> None:
        """A cancellation fails what has not finished, and all that hangs on it."""
        statistics["rule cancel"] += 1
        done = task.isready()
        if how == "id":
            D.cancel(task.id)
            if not done and not task.isready():  # not launched: nobody knows it by its id yet
                return
        elif how == "late":
            cancel_task(task, graceful=False)
        else:
            task.cancel(force=how == "force")
        assert task.isready()
        if not done:
            self._fail({task})

    @precondition(seldom)
    @rule(halt=st.booleans())
    def cancel_all(self, halt: bool) -> None:
        """Everything that was launched fails; after a halt the next spawn starts a new scheduler."""
        statistics["rule halt" if halt else "rule cancel all"] += 1
        self.drastic = len(self.expected)
        launched = {t for t in self.expected if not t.isready() and state_name(t) != "unlaunched"}
        D.cancel(halt_sch=halt)
        assert all(task.isready() for task in launched)
        self._fail(launched)
        if halt:
            assert self.context.core is None
            self.held.drop()  # what it held belongs to the scheduler that is gone
            self._fail({t for t in self.expected if not t.isready()})
            self._fail({t for t in self.expected if state_name(t) == "failed"})

    def _fail(self, tasks: set[D.DTask]) -> None:
        """What the model says of tasks that were cancelled, and of their dependents."""
        for task in tasks:
            self.expected[task] = FAILED
        for task in self.expected:  # in the order in which they were spawned
            failed = task.isready() and state_name(task) == "failed"
            if failed or (not task.isready() and any(self.expected[up] == FAILED for up in task._deps)):
                self.expected[task] = FAILED

    # ---- workers come and go -----------------------------------------------------------------------

    @precondition(lambda self: self.expected)
    @rule(worker=st.sampled_from([2, 3]))
    def add_worker(self, worker: int) -> None:
        """A worker more, or none."""
        statistics["rule add worker"] += 1
        D.addprocs(self.context, [worker])
        self.workers.add(worker)

    @precondition(lambda self: self.expected)
    @rule(worker=st.sampled_from([2, 3]))
    def remove_worker(self, worker: int) -> None:
        """A worker less: it finishes what it has."""
        statistics["rule remove worker"] += 1
        D.rmprocs(self.context, [worker])
        self.workers.discard(worker)

    @precondition(lambda self: self.expected)
    @rule()
    def remove_slot(self) -> None:
        """A slot goes; what waited for it alone is placed again."""
        statistics["rule remove slot"] += 1
        core = self.context.start()
        slot = core.slots.get(D.ThreadProc(1, 2))
        if slot is not None:
            core.driver.enqueue_ready(core.remove_slots([slot.processor]))
            core.driver.add_slots(core.add_worker(1, [slot]))
        self._fail(set())

    # ---- always -----------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """No rule of the core's state is broken, whatever just happened; what is kept in memory has its limit."""
        if hasattr(self, "context"):
            if self.context.core is not None:
                D.check(self.context.core)
            assert not self.seen.forbidden

    def teardown(self) -> None:
        """Everything left can still be finished, and then nothing is left."""
        if not hasattr(self, "context"):
            return
        try:
            self.held.launch()
            for task in self.expected:
                D.wait(task)
                assert (state_name(task) == "failed") == (self.expected[task] == FAILED)
            if self.context.core is not None:
                check_idle(self.context.core)
            assert not limits._holds
            assert not limits._waits
        finally:
            D.set_limit("machine", None)
            self.context.__exit__(None, None, None)
            self._recording.__exit__(None, None, None)
            seen.add(self.seen)
            shutil.rmtree(self.folder, ignore_errors=True)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture(autouse=True)
def fresh_topology() -> Iterator[None]:
    """Pretended workers leave no trace."""
    yield
    topology.reset()


def scenario(context: D.Context) -> None:
    """Each allowed move, once at least, in a fixed order."""
    core = context.start()

    def boom() -> None:
        raise ValueError("boom")

    up = D.spawn(int, 1)
    down, further = D.spawn(int, up), D.spawn(int, up)
    down.cancel()  # waiting → failed
    D.fetch(further)  # unlaunched → waiting → ready → queued → running → finished
    failed = D.spawn(boom)
    D.wait(failed)  # running → failed
    D.wait(D.spawn(int, failed))  # unlaunched → failed
    D.spawn(int).cancel()  # queued → failed
    with pytest.raises(D.DTaskFailedError):
        D.spawn(int, D.Options(scope=D.ProcessScope(2))).fetch()  # ready → failed
    D.spawn(int, D.Options(restore=lambda task: D.tochunk(5))).fetch()  # ready → finished
    attempts: list[int] = []

    def flaky() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("once")

    D.fetch(D.spawn(flaky, D.Options(retries=1)))  # running → ready
    slot = D.ThreadProc(1, 2)
    moved = D.spawn(int, D.Options(occupancy={D.ThreadProc: 0.5}, scope=D.ExactScope(slot)))
    kept = core.slots[slot]
    orphans = core.remove_slots([slot])
    core.add_worker(1, [kept])
    core.driver.enqueue_ready(orphans)  # queued → ready
    D.fetch(moved)


def test_every_allowed_move_is_made_and_no_other() -> None:
    """Issue 5, point 10: the moves that tasks make are exactly those that `ALLOWED` lists."""
    found = Transitions()
    with recording(found), D.Context([1], driver=D.InlineDriver({1: 2, 2: 1})) as context:
        scenario(context)
    assert set(found.moves) == ALLOWED


def test_the_machine_made_allowed_moves_only() -> None:
    """The moves of all random steps (of this run, before this test) are allowed ones, and most of those."""
    if statistics["examples"]:
        assert not seen.forbidden
        assert len(seen.missing) <= 2


def test_the_picture_shows_the_allowed_moves() -> None:
    """docs/concepts.md draws exactly the moves of `ALLOWED`."""
    text = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text()
    picture = text.split("```mermaid\nstateDiagram-v2\n")[1].split("```")[0]
    arrows = [line.split(":")[0].split("-->") for line in picture.strip().splitlines()]
    moves = {(before.strip(), after.strip()) for before, after in arrows}
    assert {move for move in moves if "[*]" not in move} == ALLOWED
    assert {move for move in moves if "[*]" in move} == {
        ("[*]", "unlaunched"),
        ("finished", "[*]"),
        ("failed", "[*]"),
    }


@pytest.mark.parametrize("logged", [False, True])
def test_a_task_with_inputs_is_retried(logged: bool) -> None:
    """The next attempt of a task that had waited for its inputs begins like the first one."""
    attempts: list[int] = []

    def flaky(*inputs: int) -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise ValueError("again")
        return sum(inputs)

    with D.Context(threads=1, log_sink=[] if logged else None):
        gate = threading.Event()
        first = D.spawn(gate.wait, 60)
        task = D.spawn(flaky, D.Options(retries=2), first, first)
        gate.set()
        assert task.fetch(timeout=60) == 2
    assert len(attempts) == 3


def test_tasks_behind_a_held_back_one_go_down_with_the_scheduler() -> None:
    """A task that waits for one that a queue still holds back ends with a halt, and whoever waits for it is woken."""
    with D.Context(threads=1):
        queue = BulkQueue()
        with D.in_queue(queue):
            held = D.spawn(int)
        down = D.spawn(int, held)
        got: list[BaseException] = []

        def fetch() -> None:
            try:
                down.fetch(timeout=60)
            except D.DTaskCancelledError as error:
                got.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        while not down._subs:
            time.sleep(0.001)
        D.cancel(halt_sch=True)
        thread.join(60)
        assert len(got) == 1
        queue.launch()
        with pytest.raises(D.TaskCancelled):
            held.fetch(timeout=60)


def test_a_queue_that_forgets_its_tasks_keeps_none_alive() -> None:
    """The core does not keep what a queue holds back."""
    with D.Context(threads=1) as context:
        with D.in_queue(BulkQueue()):
            D.spawn(int)
        gc.collect()
        assert context.start().held == {}
