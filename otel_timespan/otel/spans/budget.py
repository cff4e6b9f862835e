"""How many spans a run may have: which of its tasks are sent one by one, which are rolled up.

Tasks are charged when they are submitted. Those within half of the bound go out as ever. The ones after them
are *candidates*: they wait when they ended, and if the run ends within its bound they are sent as they are. When it
outgrows the bound, ordinary tasks are rolled up by function (rollup.py); what is left of the bound is for those that
tell something: the critical path, the slowest of each function, and the chain of tasks that each of these, and each
failure, waited for. What is no ordinary task (it failed, was skipped, cancelled or tried again, its body put something
on its span or gave its ids away) is sent in any case, beyond the bound too.

Which tasks are on the critical path is known in the end only. So of a run that is rolled up the newest candidates stay
(some thousands), and of the older ones those that would be chosen if the run ended now: memory is bounded.

Where only interesting runs are sent (interest.py), all tasks are candidates, and nothing is sent, until it is known.

Parents and links of what is sent lead to spans that are sent: what a kept task refers to is kept, too, or is rolled up
there and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

from .. import semconv
from . import ids
from .ids import Root, TraceParent
from .interest import FULL, Interest
from .paths import AnyPath, Path
from .rollup import RollUp
from .runs import Run
from .spandata import SpanData
from .tasks import Done, code_attributes, task_name

__all__ = ["MAX_SPANS", "MUST", "Budget", "Budgets", "Candidate"]

MAX_SPANS = 32_000
"""Of a run, where nothing is said. Jaeger's page gets slow beyond 40,000; 10,000 ordinary tasks are within it."""

MUST = 2
"""Instead of True: a candidate that is sent one by one, whatever comes of it."""

CANDIDATES = 8192
"""Of all runs that are being rolled up together."""

WAITING = 64_000
"""Spans of all runs within their bounds that may wait together, or those of two runs where that is more."""

CANDIDATE_BYTES = 700
"""What one holds about, besides the bytes of its spans; another one and a half for each span that was made."""

MAX_UNSENT = 65_536
"""Runs of which it is known that they were not sent."""

UNBOUNDED = 1 << 62

SLOWEST = 3
"""So many of each function are kept."""

CHAIN = 32
"""So many of the tasks that a kept one waited for are kept, at most."""

MAX_STRAYS = 1000
"""Traces with tasks in no run whose spans are counted; of one that is forgotten all further tasks are sent."""

MAX_ROLLUPS = 500
"""Of a run; the functions that come after share one more."""

OTHER = "other"

_run_ns = attrgetter("run_ns")
_new = tuple.__new__


class Candidate(NamedTuple):
    """A task that ended, and of which it is not decided how it is sent. Times are monotonic ns.

    `rollup` is None for one that must be sent. `make(one)` gives its `spans` spans, its own last, of the `facts` that
    follow in the tuple; `packed` are the same as bytes, where there are; all that holds `nbytes`, about. `ups`: the
    tasks that it depended on, each followed by what was known of it.

    One flat tuple, for many of them wait, and each object that outlives others costs the collector of garbage time.
    """

    id: int
    parent: TraceParent
    spawner: int
    rollup: RollUp | None
    spans: int
    start_ns: int
    run_ns: int
    end_ns: int
    path: AnyPath
    ups: tuple[Any, ...]
    packed: bytes | None
    nbytes: int
    make: Callable[[Candidate], list[SpanData]]

    @property
    def facts(self) -> tuple[Any, ...]:
        """What `make` needs besides."""
        return self[len(self._fields) :]

    @property
    def dependencies(self) -> list[tuple[int, Done]]:
        """The tasks that it depended on, and what was known of them."""
        return list(zip(self.ups[::2], self.ups[1::2], strict=True))

    def unpacked(self) -> Candidate:
        """The same without bytes."""
        at = self._fields.index("packed")
        return _new(Candidate, (*self[:at], None, self.nbytes - len(self.packed or b""), *self[at + 2 :]))


class Budget:
    """The spans of one run. Methods append what is to be sent now to `out`. Not thread-safe."""

    def __init__(self, limit: int, run: Run, budgets: Budgets, *, holding: bool, is_stray: bool = False) -> None:
        self.limit, self._run, self._budgets, self.is_stray = limit, run, budgets, is_stray
        self.holding = holding
        """Whether nothing is sent, for it is not known whether anybody is interested."""
        self.kept_for = ""
        self.latest_ns = 0
        """When the last candidate ended."""
        self._part = 0
        self.nbytes = 0
        """What it holds meanwhile, about."""
        self._held: list[SpanData] = []
        self._held_rolled = 0
        self._ended = False
        self.at_once = 0 if self.holding else limit // 2
        self.charged = 1  # the root
        self.over = False
        """Whether the run outgrew its bound, and is rolled up."""
        self.candidates: dict[int, Candidate] = {}
        self.rollups: dict[str, RollUp] = {}
        self._must: list[Candidate] = []
        self._kept: set[int] = set()
        """Candidates that were sent after all."""
        self._sent = 0
        """Spans of candidates that were sent."""
        self._rolled = 0
        """Tasks that were rolled up."""
        self._first: float = math.inf
        """The first one of these."""

    # ---- a task's way ------------------------------------------------------------------------------

    def charge(self, spans: int, out: list[SpanData]) -> bool:
        """A task was submitted, or another span came up; whether the task is a candidate."""
        self.charged += spans
        if self.charged <= self.at_once or self._ended:
            return False
        if self.charged > self.limit and not self.over:
            self._outgrown(out)
        return True

    def rollup(self, function: str, f: Callable[[], Any], name: str = OTHER) -> RollUp:
        """Where the tasks of a function go; `f()` is the function, or what describes it, None for a mere name."""
        found = self.rollups.get(function)
        if found is None:
            most = min(MAX_ROLLUPS, max(1, self.limit // 8))
            if function != OTHER and len(self.rollups) >= most:
                return self.rollup(OTHER, _none)
            described, attributes = f(), {}
            if described is not None:
                name, attributes = task_name(described), code_attributes(described)
            found = self.rollups[function] = RollUp(self._run.root.span_id, self._part, function, name, attributes)
        return found

    def end(self, one: Candidate, out: list[SpanData]) -> None:
        """A candidate ended."""
        self._budgets.waiting += one.spans
        self.nbytes += one.nbytes
        self.latest_ns = one.end_ns
        if self.is_stray:
            self._budgets.waiting_strays[self] = None
        if self.holding:
            self.interest_so_far(out)
        if one.rollup is not None:
            self.candidates[one.id] = one
        elif self.over:
            self._send([one, *self._chain(one)], out)
        else:
            self._must.append(one)

    def roll_other(self, span: SpanData, out: list[SpanData]) -> bool:
        """A span of the scheduler itself: rolled up by its name where the run outgrew its bound; else False."""
        beyond = self.charge(1, out)
        if not self.over:
            self._sent += beyond
            if self.holding:
                self._budgets.waiting += 1
                self._put([span], out)
            return self.holding
        start_ns, end_ns = span.start_ns - self._budgets.offset_ns, span.end_ns - self._budgets.offset_ns
        self.rollup(f"scheduler {span.name}", _none, span.name).add([start_ns], [end_ns - start_ns], [end_ns])
        self._budgets.waiting += 1
        self._count_rolled(1)
        return True

    def roll(self, some: Iterable[Candidate]) -> None:
        """These, which are no candidates any more, are rolled up, for good."""
        groups: dict[RollUp | None, list[Candidate]] = {}
        for one in some:
            groups.setdefault(one.rollup, []).append(one)
        for rollup, of_one in groups.items():
            assert rollup is not None
            tasks, _, _, _, spans, starts, runs, ends, *_ = zip(*of_one, strict=False)  # facts differ in number
            rollup.add(starts, runs, ends)
            self.nbytes -= sum([one.nbytes for one in of_one])
            self._rolled += len(of_one)
            self._first = min(self._first, *tasks)
            self._count_rolled(sum(spans))

    def _count_rolled(self, spans: int) -> None:
        if self.holding:
            self._held_rolled += spans
        else:
            self._budgets.waiting -= spans
            self._budgets.rolled_up += spans

    def _put(self, spans: list[SpanData], out: list[SpanData]) -> None:
        """These are to be sent: now, or when it is known that anybody is interested."""
        interest = self._budgets.interest
        if self.holding and interest is not None:
            self._held += spans
            self.nbytes += sum([interest.weigh(span) for span in spans])
        else:
            out += spans
            self._budgets.waiting -= len(spans)

    # ---- a run that is held ------------------------------------------------------------------------

    def interest_so_far(self, out: list[SpanData]) -> None:
        """Send it from now on as any other run if it is known that it is interesting."""
        interest = self._budgets.interest
        reason = interest.so_far(self._run) if interest is not None and self.holding else ""
        if reason:
            self.keep(reason, out)

    def keep(self, reason: str, out: list[SpanData]) -> None:
        """Somebody is interested: what is ready to be sent goes out."""
        # Nothing goes out at once still: it may depend on a task that waits, and might be rolled up.
        self.holding, self.kept_for = False, reason
        held, self._held = self._held, []
        rolled, self._held_rolled = self._held_rolled, 0
        self._put(held, out)
        self._count_rolled(rolled)
        self._budgets.keep_around(self._run, reason, out)

    def drop(self) -> int:
        """Nobody is interested: how many spans are not sent."""
        waiting = [*self._must, *self.candidates.values()]
        count = len(self._held) + self._held_rolled + sum([one.spans for one in waiting])
        self._budgets.waiting -= count
        self._held, self._must, self.candidates = [], [], {}
        return count

    # ---- the end of a run --------------------------------------------------------------------------

    def _outgrown(self, out: list[SpanData]) -> None:
        self.over = True
        done = self._budgets.done
        for id, one in self.candidates.items():
            self.candidates[id] = unpacked = one.unpacked()  # its links lead to tasks that may be rolled up
            self.nbytes -= one.nbytes - unpacked.nbytes
            if one.rollup is not None and id in done:
                done[id] = done[id]._replace(base=one.rollup.base)
        must, self._must = self._must, []
        for one in must:
            self._send([one, *self._chain(one)], out)

    def release(self, out: list[SpanData]) -> None:
        """Send what waits, where the run is within its bound still, and not held."""
        if self.over or self.holding:
            return
        self.at_once = max(self.at_once, self.charged)
        waiting = [*self._must, *self.candidates.values()]
        self._must, self.candidates = [], {}
        for one in waiting:
            self._budgets.must_be_sent(one.spawner)
            self._budgets.waiting -= one.spans
            if one.packed is not None:
                self._budgets.packed.append(one.packed)
            else:
                out += one.make(one)

    @property
    def releasable(self) -> int:
        """How many spans wait, or will, that `release` would send."""
        return 0 if self.over or self.holding else max(0, self.charged - self.at_once)

    def finish(self, out: list[SpanData]) -> int | None:
        """The run is over: decide about all that waits, and give the roll-ups. How many spans, if it is not sent."""
        interest = self._budgets.interest
        if interest is not None:
            reason = interest.at_last(self._run, self.rollups)
            if self.holding and not reason:
                return self.drop()
            if self.holding:
                self.keep(reason, out)
        self._finish(out)
        return None

    def _finish(self, out: list[SpanData]) -> None:
        if not self.over:
            self.release(out)
            return
        chosen = self._chosen()
        self.roll([one for one in self.candidates.values() if one.id not in chosen])
        self.candidates = dict(chosen)
        self._send(list(chosen.values()), out)
        parent, offset_ns = self._run.parent, self._budgets.offset_ns
        out += [rollup.span(parent, offset_ns) for rollup in self.rollups.values() if rollup.count]

    def may_be_gone(self, task: int) -> bool:
        """Whether a task that is not remembered may have been rolled up, who knows where."""
        return task >= self._first and task not in self._kept

    @property
    def trace_id(self) -> int:
        """Of the run."""
        return self._run.parent.trace_id

    def finish_part(self, out: list[SpanData], *, last: bool) -> None:
        """Of tasks that are in no run: decide about those that wait, as at the end of a run; others may follow."""
        self._ended = last
        self._finish(out)
        self.rollups = {}
        self._part += 1

    def told(self, tasks: int) -> dict[str, Any]:
        """What the root says, of so many tasks: nothing of a run within its bound, but why it was kept."""
        kept_for = {semconv.DAG_KEPT_FOR: self.kept_for} if self.kept_for else {}
        if not self.over:
            return kept_for
        spent = self._spent(sum(1 for rollup in self.rollups.values() if rollup.count))
        return {
            semconv.DAG_KEPT: tasks - self._rolled,
            semconv.DAG_ROLLED_UP: self._rolled,
            semconv.DAG_EXCEEDED: spent > self.limit,
            **kept_for,
        }

    # ---- who is kept -------------------------------------------------------------------------------

    def sweep(self, most: int) -> None:
        """Where many candidates wait, roll up the older ones; those stay that would be chosen now."""
        if not self.over or len(self.candidates) <= most:
            return
        chosen, candidates = self._chosen(), self.candidates
        older = list(islice(candidates, len(candidates) - most // 4))
        self.roll([candidates.pop(id) for id in older if id not in chosen])

    def _spent(self, rollups: int) -> int:
        """How many spans are sent, with so many roll-ups."""
        return 1 + min(self.charged - 1, self.at_once) + self._sent + rollups

    def _room(self) -> int:
        """How many spans may be sent besides: after a `flush` in the middle of the run still a quarter."""
        rollups = len(self.rollups)
        return max(self.limit - self._spent(rollups), self.limit // 4 - self._sent - rollups)

    def _chosen(self) -> dict[int, Candidate]:
        """The candidates that tell most, the more telling first: as many as there is room for."""
        chosen: dict[int, Candidate] = {}

        def choose(some: Iterable[Candidate], most: int) -> int:
            for one in some:
                if one.spans <= most and one.id not in chosen:
                    chosen[one.id] = one
                    most -= one.spans
            return most

        room = self._room()
        on_path = self._on(self._run.path or 0, None)
        left = choose(on_path, room // 2) + room - room // 2
        groups: dict[RollUp | None, list[Candidate]] = {}
        for one in self.candidates.values():
            groups.setdefault(one.rollup, []).append(one)
        slowest = [nlargest(SLOWEST, some, key=_run_ns) for some in groups.values()]
        for rank in range(SLOWEST):
            left = choose([some[rank] for some in slowest if rank < len(some)], left)
        for one in list(chosen.values()):
            left = choose(self._on(one.path, CHAIN), left)
        choose(on_path, left)
        return chosen

    def _chain(self, one: Candidate) -> list[Candidate]:
        """What a task that is kept waited for: the candidates on the longest path that leads to it."""
        chain, room = [], self._room()
        for up in self._on(one.path, CHAIN):
            if up.id != one.id and up.spans <= room:
                chain.append(up)
                room -= up.spans
        return chain

    def _on(self, path: AnyPath, most: int | None) -> list[Candidate]:
        """The candidates among the tasks of a path, the last ones first."""
        tasks = path.latest(most) if isinstance(path, Path) else ()
        return [self.candidates[task] for task in tasks if task in self.candidates]

    # ---- who is sent -------------------------------------------------------------------------------

    def _send(self, some: list[Candidate], out: list[SpanData]) -> None:
        """Send these one by one, and whose bodies spawned them. What they link to is one of them or is rolled up."""
        done = self._budgets.done
        for one in some:
            if one.rollup is not None:
                self.candidates.pop(one.id, None)
        for one in some:  # grows
            if one.rollup is not None:
                self._kept.add(one.id)
                if one.id in done:
                    done[one.id] = done[one.id]._replace(base=ids.mixed(one.parent.seed, one.id))
            spawner = self.candidates.pop(one.spawner, None)
            if spawner is not None:
                some.append(spawner)
            else:
                self._budgets.must_be_sent(one.spawner)
        for one in some:
            self.nbytes -= one.nbytes
            for up, known in one.dependencies:
                self._budgets.settle(up, known)
            spans = one.make(one)
            if spans:
                spans[-1] = self._under_what_is_sent(one, spans[-1])
            self._put(spans, out)
            self._budgets.waiting += len(spans) - one.spans
            self._sent += one.spans

    def _under_what_is_sent(self, one: Candidate, span: SpanData) -> SpanData:
        """The span of a task, under the roll-up of the task that spawned it where that is rolled up."""
        if not one.spawner or span.parent_id == self._run.root.span_id:
            return span
        spawner = self._budgets.done.get(one.spawner)
        if spawner is None:
            return span if self._budgets.is_open(one.spawner) else span._replace(parent_id=self._run.root.span_id)
        if spawner.base != ids.mixed(spawner.parent.seed, one.spawner):
            return span._replace(parent_id=ids.of(spawner.base, ids.TASK))
        return span


class Budgets:
    """The budgets of the runs of one log. `limit`: None where runs have none.

    `done`: the tasks that are remembered; a task that is rolled up has its roll-up's base there. `waiting`: spans of
    candidates; `rolled_up`: those that were not made. `packed`: spans to be sent, as bytes. Each of `open_tasks`
    finds the task under way, if it has it, and has it sent one by one. `run_at` gives the open run of a root's id.
    `interest`: None where all runs are sent.
    """

    def __init__(
        self,
        limit: int | None,
        offset_ns: int,
        done: dict[int, Done],
        run_at: Callable[[int], Run | None],
        interest: Interest | None = None,
    ) -> None:
        self._run_at = run_at
        self.limit = UNBOUNDED if limit is None and interest is not None else limit
        self.offset_ns, self.done, self.interest = offset_ns, done, interest
        self.waiting = self.rolled_up = 0
        self.packed: list[bytes] = []
        self.open_tasks: list[Callable[[int, bool], bool]] = []
        self._open: dict[int, Budget] = {}
        self._unsent: dict[int, None] = {}  # runs that were not interesting
        self._strays: dict[int, Budget] = {}
        """By trace those of tasks that are in no run."""
        self.waiting_strays: dict[Budget, None] = {}

    def of(self, run: Run | None, parent: TraceParent) -> Budget | None:
        """That of a run, or of tasks under a span of the user's outside of any; None where they are not bounded."""
        if self.limit is None or not parent.flags & 1 or (run is None and parent.root is not None):
            return None
        if run is None:
            stray = self._strays.get(parent.trace_id)
            if stray is None:
                run = Run(parent._replace(root=Root(parent.span_id, "", 0)), None)
                stray = self._strays[parent.trace_id] = Budget(self.limit, run, self, holding=False, is_stray=True)
            return stray
        budget: Budget | None = run.budget
        if budget is None:
            budget = run.budget = Budget(self.limit, run, self, holding=self.interest is not None)
            self._open[run.root.span_id] = budget
        return budget

    def finish(self, run: Run, out: list[SpanData]) -> int | None:
        """A run is over. None, or, if it is not sent, how many of its spans."""
        budget = self.of(run, run.parent)
        self._open.pop(run.root.span_id, None)
        unsent = None if budget is None else budget.finish(out)
        if unsent is not None:
            self._unsent[run.root.span_id] = None
            if len(self._unsent) > MAX_UNSENT:
                del self._unsent[next(iter(self._unsent))]
        return unsent

    def keep_around(self, run: Run, reason: str, out: list[SpanData]) -> None:
        """A run is sent: so are those that are open in the same trace, for its root may be in one of them."""
        if run.outer is not None:
            self.of(run.outer, run.outer.parent)  # it may have had no task so far
        for budget in list(self._open.values()):
            if budget.holding and budget.trace_id == run.parent.trace_id:
                budget.keep(reason, out)

    def release(self, out: list[SpanData]) -> None:
        """Send what waits of runs that are within their bounds."""
        for budget in (*self._open.values(), *self._strays.values()):
            budget.release(out)

    def end_strays(self, before_ns: float, out: list[SpanData]) -> bool:
        """Decide about the tasks in no run, where all that wait ended before; whether others do wait."""
        while len(self._strays) > MAX_STRAYS:
            oldest = self._strays.pop(next(iter(self._strays)))
            oldest.finish_part(out, last=True)
            self.waiting_strays.pop(oldest, None)
        for stray in [stray for stray in self.waiting_strays if stray.latest_ns <= before_ns]:
            stray.finish_part(out, last=False)
            del self.waiting_strays[stray]
        return bool(self.waiting_strays)

    def take_packed(self) -> list[bytes]:
        """What is to be sent as bytes."""
        packed, self.packed = self.packed, []
        return packed

    def sweep(self, out: list[SpanData]) -> None:
        """Keep the number of candidates within its bound, and of what is held."""
        if self.interest is not None:
            self._let_go(self.interest, out)
        most = max(WAITING, 2 * (self.limit or 0))
        if self.waiting > most:
            budgets = (*self._open.values(), *self._strays.values())
            if sum([budget.releasable for budget in budgets]) > most:
                self.release(out)
        if self.waiting > CANDIDATES // 4:
            over = [budget for budget in (*self._open.values(), *self._strays.values()) if budget.over]
            for budget in over:
                budget.sweep(CANDIDATES // len(over))

    def _let_go(self, interest: Interest, out: list[SpanData]) -> None:
        """Send the runs that turned out to be interesting, and the largest ones if too much is held."""
        for budget in list(self._open.values()):
            budget.interest_so_far(out)
            if budget.charged <= budget.limit // 2:  # what waits of it was held until somebody was interested
                budget.release(out)
        holding = sorted([budget for budget in self._open.values() if budget.holding], key=attrgetter("nbytes"))
        held = sum([budget.nbytes for budget in holding])
        while held > interest.max_bytes:
            largest = holding.pop()
            held -= largest.nbytes
            if largest.holding:
                largest.keep(FULL, out)

    def settle(self, up: int, known: Done) -> None:
        """A link to a task is about to be sent: if it is a candidate still it is rolled up, that the link leads there.

        Only where its run is rolled up: else it will be sent as it is, or the link with it.
        """
        parent, root = known.parent, known.parent.root
        budget = self._strays.get(parent.trace_id) if root is None else self._open.get(root.span_id)
        if budget is not None and budget.over:
            one = budget.candidates.pop(up, None)
            if one is not None:
                budget.roll([one])

    def roll_others(self, out: list[SpanData], start: int) -> None:
        """Roll up what is in `out` from there on, spans of the scheduler itself, where their runs are."""
        made, out[start:] = out[start:], []
        for span in made:
            run = self._run_at(span.parent_id)
            budget = self.of(run, run.parent) if run is not None else None
            if budget is None or not budget.roll_other(span, out):
                out.append(span)

    def must_be_sent(self, task: int) -> None:
        """A task that is under way, if it is: it is sent one by one."""
        if task:
            any(find(task, True) for find in self.open_tasks)

    def is_held(self, parent: TraceParent) -> bool:
        """Whether the run of a task is held: it is not known whether its trace will be sent."""
        budget = self._open.get(parent.root.span_id) if self.interest is not None and parent.root is not None else None
        return budget is not None and budget.holding

    def is_sent(self, parent: TraceParent) -> bool | None:
        """Whether the run of a task is sent, as far as that is a matter of interest; None: it is not known yet."""
        if self.interest is None or parent.root is None:
            return True
        return None if self.is_held(parent) else parent.root.span_id not in self._unsent

    def is_open(self, task: int) -> bool:
        """Whether a task is under way."""
        return any(find(task, False) for find in self.open_tasks)


def _none() -> None:
    """No function in particular."""
