"""The fast lane: records of ordinary tasks straight to bytes, everything else to the general way, in order.

Of a task under way `Lane.take` keeps just its records (taskrecords.py). When its body returned, they become the
bytes of its spans by the packer of its shape (packer.py). The first tasks of each shape go the general way, for the
packer to be made from the spans of one. So does, with all that it told so far, a task that is not ordinary after all:
one that has a label, whose body put something on its span, that failed, was cancelled or is tried
again, or whose clock readings are out of order. The general way is the `SpanMapper`: both see the same finished tasks
and runs.

Not thread-safe: the log's lock guards it.
"""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from types import BuiltinFunctionType
from typing import Any, NamedTuple

from ...timespans.journal import expand_all
from ...timespans.model import ChunkInfo, Event, EventId
from ...timespans.taskrecords import END, EVICT, OWNER_BITS, RESULTS, RETURN, SCHEDULE, START, SUBMIT, TAKEN, Steps
from ...timespans.warn import warn_once
from ..export.wire import varint
from ..spans import ids
from ..spans.bodyspan import SEEN
from ..spans.budget import CANDIDATE_BYTES, MUST, Budget, Candidate
from ..spans.ids import TraceParent
from ..spans.limits import Limits, clip
from ..spans.mapping import ENDED, SpanMapper
from ..spans.paths import AnyPath, Path, length_of, path_of
from ..spans.spandata import SpanData
from ..spans.tasks import Done, OpenTask, named, processor_name, qualified_name
from ..spans.values import plain_text
from .moves import Moved, moved_of, shape_of, sizes_of
from .packer import Facts, Packer, compile_packer

__all__ = ["FIRST_BOUNDARY", "Lane", "Taken"]

_PATH, _ID, FIRST_BOUNDARY = 4, 5, 6
"""Where an entry of `Taken.tasks` has its path, its id, and the first of its boundaries."""

MAX_SHAPES = 4096
"""Packers kept, about 2 KB each; beyond it all are forgotten, and made again."""

COMMON = 3
"""Tasks of a shape until its packer is made, of the last one: that takes as long as thirty tasks in the general way."""

MAX_LINKS = 16
"""A task with more dependencies goes the general way."""

MAX_PARENTS = 4096
"""Callers whose ids are kept in the form that packers want."""

MAX_LOOKED_AT = 10_000
"""Open tasks among which the oldest of a state is looked for."""

_new = tuple.__new__
_POSITIONS = [tuple(range(1, count + 1)) for count in range(MAX_LINKS + 1)]
_ENDS = (RETURN, END, TAKEN)
_HOME = 1 << OWNER_BITS
_M64 = (1 << 64) - 1
_submitted, _finished = itemgetter(FIRST_BOUNDARY), itemgetter(FIRST_BOUNDARY + 6)


def _owner(code: int) -> int:
    return code >> OWNER_BITS


def _taken(record: Any, ended: int) -> int:
    """When a task finished whose result came from another worker; `ended`: its body."""
    return max(record[16], ended + 1) + 3 if record[0] == TAKEN else ended + 4


def _path_length(task: tuple[Any, ...]) -> int:
    return length_of(task[_PATH])


class _Caller(NamedTuple):
    """What a task has of its caller, as the packers want it."""

    parent: TraceParent
    trace: bytes
    span: int
    seed: int
    sampled: bool
    budget: Budget | None


class _Function(NamedTuple):
    """A function as a shape has it, as metrics call it, and as spans are told of it; nothing keeps its data."""

    key: Any
    name: str
    like: Any


_SUBMISSION, _CALLER, _PLACING, _PLACED, _SCHEDULE, _START, _FUNCTION, _ROLLS, _MOVED = range(9)
"""A task under way: a list of its records and of what was read of them, for an object costs three times as much."""


def _records_of(task: list[Any]) -> list[Any]:
    """All that a task told so far."""
    return [record for record in (task[_SUBMISSION], task[_SCHEDULE], task[_START]) if record is not None]


class Taken:
    """What came of some records.

    `packed`: of each packed task the bytes of its spans, `count` in all, as fields of a ScopeSpans message. `spans`:
    those of the general way. `events`: what that expanded; `failed` of them could not be turned into spans. `tasks`:
    (function's name, caller, base of its ids, CPU ns, path, id, then the seven boundaries) of each that took the lane
    to its end, sampled or not; `ended` are their records, in the same order. `functions`: names not seen before.
    `moves`: by (source, destination), of each argument that came from one worker to another, (None, caller, base of
    the task's ids, bytes, None, its id, begin, end). `submitted`, `placed`, `begun`, `ended`, `evicted`, `processors`:
    as in `Steps`, of all workers. `away`: how many were placed on each worker but 1; None while none but that was
    heard of. `quiet`: how many events the records hold that were not expanded.
    """

    __slots__ = (
        "away", "begun", "count", "ended", "events", "evicted", "failed", "functions", "moves", "packed", "placed",
        "processors", "quiet", "spans", "submitted", "tasks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.packed: list[bytes] = []
        self.count = self.failed = self.quiet = self.submitted = self.placed = 0
        self.spans: list[SpanData] = []
        self.events: list[Event] = []
        self.tasks: list[tuple[Any, ...]] = []
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.evicted: list[Any] = []
        self.functions: list[str] = []
        self.processors: Mapping[int, Any] = {}
        self.away: dict[int, int] | None = None
        self.moves: dict[tuple[int, int], list[tuple[Any, ...]]] = {}

    def steps(self) -> Iterator[Steps]:
        """By worker, what was not expanded."""
        begun, ended, evicted, away = self.begun, self.ended, self.evicted, self.away
        if away is None:
            head = self.submitted, self.placed, self.placed, 0, len(ended)
            yield Steps(1, *head, begun, ended, ended, evicted, self.processors)
            return
        ran, lie = _grouped(ended, lambda record: record[5] >> OWNER_BITS), _grouped(ended, lambda record: record[10])
        runs = _grouped(begun, lambda record: record[6] >> OWNER_BITS)
        gone = _grouped(evicted, lambda record: record[5])
        for worker in {1, *away, *map(_owner, self.processors), *gone}:
            returned, made = ran.get(worker, []), lie.get(worker, [])
            if worker == 1:
                queued = self.placed - sum(away.values())
                head = self.submitted, self.placed, queued, len(ended) - len(returned), len(ended)
            else:
                head = 0, 0, away.get(worker, 0), 0, 0
                made = [record for record in made if record[5] >> OWNER_BITS == worker]  # it hears of no others
            here = {code: one for code, one in self.processors.items() if code >> OWNER_BITS == worker}
            yield Steps(worker, *head, runs.get(worker, []), returned, made, gone.get(worker, []), here)


def _grouped(records: Sequence[Any], worker_of: Callable[[Any], int]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for record in records:
        found.setdefault(worker_of(record), []).append(record)
    return found


class Lane:
    """See the module. `offset_ns` is wall clock minus monotonic clock. Events of the general way are changed by
    `restamp` and sifted by `keep`.

    `limits`: those of the pipeline that takes bytes, None where there is none: then only tasks that are not sampled go
    the fast way. With detail "scheduler", whose spans are of events, none does.
    """

    def __init__(
        self,
        mapper: SpanMapper,
        offset_ns: int,
        limits: Limits | None,
        restamp: Callable[[Event], Event] | None = None,
        keep: Callable[[list[Event]], list[Event]] = list,
    ) -> None:
        self.mapper, self._offset, self.limits, self._restamp, self._keep = mapper, offset_ns, limits, restamp, keep
        self._is_open = mapper.detail != "scheduler"
        self._per_task = mapper.spans_per_task
        self._open: dict[int, list[Any]] = {}
        self._shapes: dict[Any, Packer | None] = {}
        self._rare: dict[Any, int] = {}
        self._callers: dict[tuple[Any, ...], _Caller | None] = {}
        self._last: tuple[Any, _Caller | None] = (None, None)
        self._ended_runs = 0
        self._functions: dict[Any, _Function] = {}
        self._processors: dict[int, Any] = {}
        self._is_spread = False  # whether there is any worker but 1
        self._taken = Taken()
        self._begun = [0, 0]  # bodies that run: of tasks that are not sampled, and of those that are
        self._example: tuple[Any, Facts, Sequence[int], TraceParent | None] | None = None
        self._make = self._spans_of
        mapper.budgets.open_tasks.append(self._find_open)

    def take(self, records: Sequence[Any]) -> Taken:
        """Take records, and events among them, in order."""
        taken = self._taken = Taken()
        self._packed, self._ended, self._tasks = taken.packed.append, taken.ended.append, taken.tasks.append
        opened, known, functions, numbered = self._open, self.mapper.done, self._functions, self._processors
        begun, running = taken.begun.append, self._begun
        quiet = submitted = placed = 0
        away: list[Any] = []  # placements that are perhaps on other workers
        if self._ended_runs != self.mapper.ended_runs:  # what their callers hold goes with them
            self._ended_runs, self._last = self.mapper.ended_runs, (None, None)
            self._callers.clear()
        for record in records:
            kind = record[0] if self._is_open else -1
            if kind in _ENDS:
                task = opened.get(record[4])
                try:
                    if task is not None and self._returned(_as_return(record) if kind == END else record, task):
                        continue
                except (struct.error, OverflowError):  # numbers that no message has room for
                    self._example = None
            elif kind == START:
                task = opened.get(record[5])
                waiting = task if task is not None and task[5] is None and task[3] else None
                if waiting is not None and (record[6] in numbered or self._is_numbered(record)):
                    if record[2]:
                        if not self._moves(record, waiting):
                            self._generally(record)
                            continue
                        quiet += len(record[2]) // 4 * 2 if record[2][0] is RESULTS else len(record[2]) * 2
                    quiet += 5
                    waiting[5] = record
                    running[waiting[1][4]] += 1
                    begun(record)
                    continue
            elif kind == SUBMIT:
                caller, id, place, f = self._caller(record), record[3], record[13], record[4]
                function = functions.get(f) if type(f) is int else None
                if function is None:
                    function = self._function(record)
                if caller is not None and function is not None and id not in opened and id not in known:
                    submitted += 1
                    budget = caller[5]
                    rolls = budget is not None and budget.charge(self._per_task, taken.spans)
                    if place is None:
                        opened[id] = [record, caller, 0, 0, None, None, function, rolls, ()]
                        continue
                    placed += 1
                    if type(place) is int:
                        t0 = record[12]
                        opened[id] = [record, caller, t0, t0 + 1, None, None, function, rolls, ()]
                    else:
                        t0 = place[1]
                        opened[id] = [record, caller, t0, max(place[2], t0 + 1), None, None, function, rolls, ()]
                    if place != _HOME:
                        away.append(place)
                    continue
            elif kind == SCHEDULE:
                task = opened.get(record[5])
                if task is not None and not task[3] and record[6] is not None:
                    t0 = record[1]
                    task[2:5] = t0, max(record[2], t0 + 1), record
                    placed += 1
                    away.append(record)
                    continue
            elif kind == EVICT:
                taken.evicted.append(record)
                if record[5] != 1:
                    self._is_spread = True
                continue
            self._generally(record)
        taken.count += len(taken.packed) * self._per_task
        taken.submitted, taken.placed, taken.processors = submitted, placed, self._processors
        taken.quiet = quiet + 2 * submitted + 6 * placed + 5 * len(taken.ended) + 2 * len(taken.evicted)
        self._spread(taken, away)
        self._settle_runs()
        self.mapper.budgets.sweep(taken.spans)
        self.mapper.forget_oldest()
        return taken

    def _spread(self, taken: Taken, placements: Sequence[Any]) -> None:
        """Note what was placed on other workers, and the events that only their tasks have."""
        workers = [place >> OWNER_BITS if type(place) is int else place[7] for place in placements]
        away = Counter([worker for worker in workers if worker != 1])
        if away or self._is_spread:
            self._is_spread, taken.away = True, away
            taken.quiet += 2 * sum([record[5] >> OWNER_BITS != 1 for record in taken.ended])  # `take`

    # ---- a task -------------------------------------------------------------------------------------

    def _caller(self, submission: Any) -> _Caller | None:
        """The caller of an ordinary task; None for a task that goes the general way from the beginning."""
        options, packed = submission[6], submission[11]
        if packed is None or submission[10] != 1 or (options is not None and options.name is not None):
            return None
        known, caller = self._last
        if known is packed:
            return caller
        caller = self._callers.get(_key_of(packed)) or self._new_caller(packed)
        self._last = (packed, caller)
        return caller

    def _new_caller(self, packed: Any) -> _Caller | None:
        parent = ids.unpack(packed)
        if parent is None or parent.trace_state or (parent.flags & 1 and self.limits is None):
            return None
        above = ids.swapped(parent.span_id)
        trace, sampled = parent.trace_id.to_bytes(16, "big"), bool(parent.flags & 1)
        caller = _Caller(parent, trace, above, parent.seed, sampled, self.mapper.budget_of(parent))
        if len(self._callers) >= MAX_PARENTS:
            self._callers.clear()
        self._callers[_key_of(packed)] = caller
        return caller

    def _function(self, submission: Any) -> _Function | None:
        """What a submission has for its function; None for what is none, or has no name of its own."""
        given = submission[4]
        f = expand_all([submission])[0].timeline.f if type(given) is int else given
        code = getattr(f, "__code__", None)
        if type(given) is not int:
            if code is None and not isinstance(f, (type, BuiltinFunctionType)):
                return None
            # Not the function, which may be another one each time, and hold data.
            given = (code, f.__name__, f.__qualname__, f.__module__)
        found = self._functions.get(given)
        if found is None:
            if len(self._functions) >= MAX_SHAPES:
                self._functions.clear()
            name = qualified_name(f)
            found = self._functions[given] = _Function(given, name, named(f))
            self._taken.functions.append(name)
        return found

    def _is_numbered(self, start: Any) -> bool:
        """Whether a body runs on a processor that has a number."""
        code = start[6]
        if type(code) is not int:
            return False
        self._processors[code] = expand_all([start])[-1].id.processor
        if code >> OWNER_BITS != 1:
            self._is_spread = True
        return True

    def _moves(self, start: Any, task: list[Any]) -> bool:
        """Note the arguments that come from elsewhere. False where their task has to go the general way."""
        moved = moved_of(start)
        if moved is None or (moved and task[_ROLLS]):
            return False
        task[_MOVED] = moved
        caller: _Caller = task[_CALLER]
        if moved and caller.budget is not None and caller.sampled and self._per_task > 1:
            for _ in moved:
                caller.budget.charge(1, self._taken.spans)
        return True

    def _has_moved(self, moved: Sequence[Moved], caller: _Caller, base: int, id: int, begun: int, ended: int) -> None:
        """The arguments of a packed task came from elsewhere."""
        moves = self._taken.moves
        for _, _, source, destination, nbytes in moved:
            entry = (None, caller, base, nbytes, None, id, begun, ended)
            moves.setdefault((source, destination), []).append(entry)
        if self._per_task > 1:
            if caller.sampled:
                self._taken.count += len(moved)
            else:
                self.mapper.sampled += len(moved)

    def _returned(self, record: Any, task: list[Any]) -> bool:
        """A body returned: pack its task. False where it has to go the general way."""
        submission, caller, placing, t2, _, start, function, rolls, moved = task
        if start is None or not record or record[14] != "success" or rolls is MUST:
            return False
        if record[12] is not None and (rolls or record[12] != SEEN):
            return False
        _, trace, above, seed, sampled, budget = caller
        t0, t3, t4, t5 = submission[1], start[1] + 1, start[3], record[2]
        if t4 < t3 + 4:
            t4 = t3 + 4
        if t5 < record[1] + 2:
            t5 = record[1] + 2
        ready, blocking, positions = t0, 0, ()
        ups: list[int] | tuple[()] = ()
        path: AnyPath = t5 - t3
        id = record[4]
        over = rolls and budget.over
        if submission[5] or submission[7]:
            found = self._upstreams(submission, caller[0], id, t5 - t3, over)
            if found is None:
                return False
            positions, ups, ready, blocking, path = found
        t1 = ready if ready < placing else placing
        if t1 < t0:
            t1 = t0
        cpu_ns, nbytes, spawned_by = record[11], record[8], submission[8]
        if not t1 <= t2 < t3 <= t4 < t5 or (nbytes is not None and nbytes < 0):  # the clock went back; or nonsense
            return False
        # As `ids.mixed`.
        base = (seed + id * 0x9E3779B97F4A7C15) & _M64
        base = ((base ^ base >> 30) * 0xBF58476D1CE4E5B9) & _M64
        base = ((base ^ base >> 27) * 0x94D049BB133111EB) & _M64
        base ^= base >> 31
        t6 = t5 + 2 if record[5] >> OWNER_BITS == 1 else _taken(record, t5)
        if not sampled:
            self.mapper.sampled += self._per_task
        elif not over:
            number = varint(id)
            size = b"" if nbytes is None else varint(nbytes)
            spawner = varint(spawned_by) if spawned_by else b""
            sizes = sizes_of(moved) if moved else ()
            shape = (
                function[0], record[5], record[13], len(number), len(size), len(spawner), positions, blocking,
                cpu_ns is None, shape_of(moved, sizes) if moved else (),
            )  # fmt: skip
            pack = self._shapes.get(shape)
            if pack is None:
                if shape not in self._shapes and self._is_common(shape):
                    times = (t0, t1, t2, t3, t4, t5, t6)
                    moves = tuple([(each.position, size) for each, size in zip(moved, sizes, strict=True)])
                    facts = Facts(trace, base, above, number, self._offset, cpu_ns or 0, size, spawner, times, moves)
                    self._example = (shape, facts, ups, caller[0] if rolls else None)
                return False
            packed = pack(
                trace, base, above, number, self._offset, cpu_ns or 0, size, spawner, t0, t1, t2, t3, t4, t5, t6,
                *sizes, *ups,
            )  # fmt: skip
            if not rolls:
                self._packed(packed)
        self._begun[sampled] -= 1
        del self._open[id]
        entry = (function[1], caller, base, cpu_ns, path, id, t0, t1, t2, t3, t4, t5, t6)
        if rolls:
            self._wait(task, record, entry, positions, None if over else packed)
        else:
            self.mapper.done[id] = _new(Done, (caller[0], t6, 1, path, base))
        if moved:
            self._has_moved(moved, caller, base, id, t3 + 1, t4 - 1)
        self._ended(record)
        self._tasks(entry)
        return True

    def _is_common(self, shape: Any) -> bool:
        """Whether a shape came often enough for a packer: of thousands that come once each it would take seconds."""
        if len(self._rare) >= MAX_SHAPES:
            self._rare.clear()
        self._rare[shape] = count = self._rare.get(shape, 0) + 1
        if count >= COMMON:
            del self._rare[shape]
        return count >= COMMON

    def _wait(
        self, task: list[Any], record: Any, entry: tuple[Any, ...], positions: Sequence[Any], packed: bytes | None
    ) -> None:
        """A candidate ended. Of its records as little is kept as its spans can be made of."""
        submission, caller, _, _, _, _, function, _, _ = task
        name, _, base, cpu_ns, path, id, t0, t1, t2, t3, t4, t5, t6 = entry
        budget, parent, known = caller[5], caller[0], self.mapper.done
        rollup = budget.rollups.get(name) or budget.rollup(name, lambda: function.like)
        known[id] = _new(Done, (parent, t6, 1, path, base if packed is not None else rollup.base))
        ups: list[Any] | tuple[()] = ()
        if positions:
            ups = [both for _, up in _dependencies(submission[5], submission[7]) for both in (up, known[up])]
        budget.end(
            _new(Candidate, (
                id, parent, submission[8], rollup, self._per_task, t0, t5 - t4, t6, path, tuple(ups), packed,
                CANDIDATE_BYTES + len(packed or b""), self._make,
                t1, t2, t3, t4, t5, function, record[5], record[13], record[8], cpu_ns, positions,
            )),
            self._taken.spans,
        )  # fmt: skip

    def _spans_of(self, one: Candidate) -> list[SpanData]:
        """The spans of a candidate, by the general way."""
        ready, placed, taken, begun, ended, function, processor, thread, nbytes, cpu_ns, positions = one.facts
        task = OpenTask(one.id, one.parent, one.start_ns)
        task.f, task.deps = function.like, tuple(zip(positions, one.ups[::2], strict=True))
        task.ready, task.placed, task.taken, task.body_start, task.body_end = ready, placed, taken, begun, ended
        task.finished = task.latest = one.end_ns
        task.spawned_by, task.cpu_ns, task.result_nbytes = one.spawner, cpu_ns, nbytes
        task.thread = (thread[0], plain_text(thread[1]))
        task.processor, task.worker = processor_name(self._processors[processor]), processor >> OWNER_BITS
        task.held = self.mapper.ordinary_spans(task)
        return self.mapper.spans_of(one, task, task.bounds(), "success")

    def _find_open(self, id: int, must: bool) -> bool:
        task = self._open.get(id)
        if task is not None and must and task[_ROLLS]:
            task[_ROLLS] = MUST
        return task is not None

    def _upstreams(
        self, submission: Any, parent: TraceParent, task: int, own_ns: int, rolled: bool = False, mixed: bool = False
    ) -> tuple[Any, list[int], int, int, AnyPath] | None:
        """(positions, mixed ids, when the last one finished, which one that was, the task's longest path).

        None where the general way has to tell: many, the same twice, forgotten ones, of another trace or attempt.
        """
        ups, others = submission[5], submission[7]
        if len(ups) > MAX_LINKS:
            return None
        positions: tuple[Any, ...] = _POSITIONS[len(ups)]
        if mixed or others or (ups and not type(ups[0]) is int is type(ups[-1])):
            links = [*_dependencies(ups, others)]
            positions, ups = tuple([position for position, _ in links]), [up for _, up in links]
        ready, blocking, latest, longest = submission[1], 0, 0, -1
        before: Any = None
        known, bases = self.mapper.done, []
        for n, up in enumerate(ups):
            done = known.get(up)
            if done is None:  # forgotten, or no task but a plain value
                if type(up) is int:
                    return None
                return self._upstreams(submission, parent, task, own_ns, rolled, mixed=True)
            above, finished, attempt, path, base = done
            if above is not parent:
                if above[0] != parent[0] or above[2:5] != parent[2:5]:
                    return None
                if above[5] != parent[5]:
                    if not self.mapper.budgets.is_sent(above):
                        return None
                    path = -1  # of another run
                    self.mapper.budgets.settle(up, done)
            if attempt != 1 or (base in bases and not rolled):
                return None
            bases.append(base)
            if finished > latest:
                latest, blocking = finished, n
            length = path if type(path) is int else path.length_ns  # type: ignore[union-attr]
            if length > longest:
                longest, before = length, (up, path)
        if before is None:
            return positions, bases, max(ready, latest), blocking, own_ns
        own = Path(task, own_ns + longest, path_of(*before))
        return positions, bases, max(ready, latest), blocking, own

    def _settle_runs(self) -> None:
        """Account for the packed tasks: the counts of their runs, and the critical paths."""
        tasks = self._taken.tasks
        by_caller: dict[int, list[tuple[Any, ...]]] = {}
        if tasks and all(task[1] is tasks[0][1] for task in tasks):
            by_caller[0] = tasks
        else:
            for task in tasks:
                by_caller.setdefault(id(task[1]), []).append(task)
        moved = Counter[int]()
        for moves in self._taken.moves.values():
            for move in moves:
                moved[id(move[1])] += move[3] or 0
        for some in by_caller.values():
            longest = max(some, key=_path_length)
            first, last = min(map(_submitted, some)), max(map(_finished, some))
            root = some[0][1].parent.root
            self.mapper.settle_run(root, len(some), first, last, longest[_ID], longest[_PATH], moved[id(some[0][1])])

    # ---- the general way ----------------------------------------------------------------------------

    def _generally(self, record: Any) -> None:
        """A record for the mapper. Whatever it says of a task of ours: that task is the mapper's from here on."""
        taken, before = self._taken, len(self._taken.spans)
        events = expand_all([record])
        if self._restamp is not None:
            events = list(map(self._restamp, events))
        if self._open:
            for event in events:
                task = _task_of(event)
                if task in self._open:
                    self._hand_over(task)
        for event in self._keep(events):
            if self._feed(event):
                taken.events.append(event)
        if self._example is not None:
            (shape, facts, ups, waits), self._example = self._example, None
            spans = taken.spans[before:] if waits is None else self.mapper.waiting_spans(waits, record[4])
            self._learn(shape, facts, ups, spans)

    def _hand_over(self, id: int) -> None:
        task = self._open.pop(id)
        if task[_START] is not None:
            self._begun[task[_CALLER].sampled] -= 1
        self.mapper.charged = task[_CALLER].budget if task[_ROLLS] else None, task[_ROLLS] is MUST
        self.mapper.moves_charged = bool(task[_MOVED])
        for event in expand_all(_records_of(task)):
            self._feed(event)
        self.mapper.charged, self.mapper.moves_charged = None, False

    def forget(self, key: Any) -> int:
        """The end of a task was given up: the mapper is to know it, to forget it. How many spans of it are lost now."""
        if key not in self._open:
            return 0
        self._taken = Taken()
        self._hand_over(key)
        return len(self._taken.spans)

    @property
    def held(self) -> tuple[int, int]:
        """Spans that are over and not made yet, not sampled and sampled: `queue` of the tasks whose bodies run."""
        unsampled, sampled = self._begun if self._per_task > 1 else (0, 0)
        return unsampled, sampled

    def hand_over(self, *, begun: bool = False) -> list[SpanData]:
        """Give all open tasks (`begun`: those whose body runs) to the mapper: the spans that this completed."""
        self._taken = taken = Taken()
        for task in [id for id, open in self._open.items() if open[_START] is not None or not begun]:
            self._hand_over(task)
        return taken.spans

    def _feed(self, event: Event) -> bool:
        try:
            self.mapper.feed_into(event, self._taken.spans)
        except Exception:
            self._taken.failed += 1
            category = plain_text(event.category)[:256]  # not its texts, which may be anybody's
            warn_once(self.mapper, "an event %r could not be turned into spans", category)
            return False
        return True

    def _learn(self, shape: Any, facts: Facts, ups: Sequence[int], spans: list[SpanData]) -> None:
        """Make the packer of a shape from the spans of its first task."""
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        limits = self.limits
        if limits is None or len(spans) != self._per_task + len(facts.moves) * (self._per_task > 1):
            self._shapes[shape] = None
        else:
            with contextlib.suppress(struct.error, OverflowError):  # the example has times that no message has room for
                self._shapes[shape] = compile_packer([clip(span, limits) for span in spans], facts, ups)

    # ---- who is under way ---------------------------------------------------------------------------

    def active(self) -> dict[str, tuple[int, int | None]]:
        """State of open tasks → (how many, since when the oldest one)."""
        found: dict[str, tuple[int, int | None]] = {}
        for task in islice(self._open.values(), MAX_LOOKED_AT):
            if task[_START] is not None:
                state, since = "running", task[_START][3]
            elif task[_PLACED]:
                state, since = "queued", task[_PLACED]
            else:
                state, since = "waiting", task[_SUBMISSION][1]
            count, oldest = found.get(state, (0, None))
            found[state] = count + 1, since if oldest is None else min(oldest, since)
        more = len(self._open) - MAX_LOOKED_AT
        if more > 0:  # what comes last is what waits
            count, oldest = found.get("waiting", (0, None))
            found["waiting"] = count + more, oldest
        return found


def _as_return(end: Any) -> Any:
    """An END whose result is a chunk, as the RETURN that says the same; () for others."""
    if type(end[7]) is not ChunkInfo:
        return ()
    return (RETURN, *end[1:7], *end[7], *end[8:11], *end[12:])


def _key_of(packed: Any) -> Any:
    """A caller's ids, flags and seed, and the run whose counts its tasks enter."""
    return (*packed[:5], packed[5] and packed[5][0])


def _task_of(event: Event) -> Any:
    """The task that an event is about."""
    if type(event.id) is EventId:
        return event.id.get("thunk_id") or getattr(event.timeline, "thunk_id", None)
    return event.id if event.category == ENDED else None


def _dependencies(args: tuple[Any, ...], others: tuple[Any, ...]) -> Iterator[tuple[Any, int]]:
    """(position, task) of each dependency, in the order of the event `add_thunk`."""
    for position, value in enumerate(args, 1):
        if type(value) is int:
            yield position, value
        elif type(value) is dict:
            for name, given in value.items():
                if type(given) is int:
                    yield name, given
    yield from others
