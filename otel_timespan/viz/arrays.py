"""A log of streams as arrays: what `read_logs` (rows.py) says of it, with no object an event, a span or a task.

For logs whose times and ids are kept by columns (timespans/segments.py), without a stream of timelines. Whatever else
is in a log is an `UntoldError`, and it is read by rows. Both say the same (tests/viz/test_viz_frames.py).

An integer that the log does not say is `NONE`. Columns are numpy arrays, imported at first use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ..timespans.arrays import ABSENT, FIELDS, ArrayReader
from ..timespans.fetched import parts_together
from ..timespans.model import Event
from ..timespans.texts import printable
from .rows import LogTable, Span, TaskRow, id_field, note_nested, unique

__all__ = ["NONE", "LogArrays", "SpanArrays", "TaskArrays", "UntoldError", "read_arrays"]

NONE = -(2**63)
_LATEST = 2**63 - 1
_TASK, _PROCESSOR = FIELDS.index("thunk_id"), FIELDS.index("processor")
_OF_TASKS = ("add_thunk", "schedule", "move", "compute", "finish")
_NAMED = "data_annotation"
_TELLING = (
    ("add_thunk", True),
    ("add_thunk", False),
    ("schedule", True),
    ("schedule", False),
    ("move", True),
    ("compute", False),
    ("finish", False),
)
"""(category, whether it starts) of the events from which `read_logs` learns that there is a task."""


class UntoldError(Exception):
    """There is something in the log that arrays don't tell."""


@dataclass
class SpanArrays:
    """Matched pairs in the order of their starts (as `LogTable.spans`): an entry each."""

    start: Any
    finish: Any
    worker: Any
    at: Any
    task: Any
    """`NONE` where the id has no task."""
    processor: Any
    """The number of one in `LogArrays.processors`; `ABSENT` where the id has none."""
    category: Any
    """The number of one in the categories that were asked for."""
    open: Any
    order: Any
    """In which order they ended: those still open last."""

    def taken(self, chosen: Any) -> SpanArrays:
        """Some of them."""
        return SpanArrays(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass
class TaskArrays:
    """As `TaskRow`, an entry a task, in the order of their ids; `deps` and texts are lists."""

    task_id: Any
    function: list[str] = field(default_factory=list)
    label: list[str | None] = field(default_factory=list)
    deps: list[tuple[int, ...]] = field(default_factory=list)
    worker: Any = None
    processor: Any = None
    submitted: Any = None
    ready: Any = None
    placed: Any = None
    first_move: Any = None
    first_body: Any = None
    body_start: Any = None
    body_end: Any = None
    running_until: Any = None
    finished: Any = None
    compute_ns: Any = None
    nested_ns: Any = None
    computes: Any = None

    def at(self, ids: Any) -> Any:
        """The entries of these tasks, all of which are there."""
        import numpy as np

        return np.searchsorted(self.task_id, ids)

    def names(self) -> list[str]:
        """See `TaskRow.name`."""
        ids = self.task_id.tolist()
        return [a or f or f"task {id}" for a, f, id in zip(self.label, self.function, ids, strict=True)]


class LogArrays:
    """The events of some categories of a log, in the order in which `read_logs` sees them."""

    def __init__(self, logs: Mapping[int, Mapping[str, Any]], categories: Iterable[str]) -> None:
        import numpy as np

        self.logs = logs
        self.categories = tuple(dict.fromkeys((*_OF_TASKS, _NAMED, *categories)))
        self.reader = ArrayReader(id_field)
        parts = list(chain.from_iterable(self._worker(worker, logs[worker]) for worker in _in_order(logs)))
        columns = [np.concatenate(some, axis=-1) for some in zip(*[each[0] for each in parts], strict=True)]
        self.times, self.category, self.starts, self.layouts, self.ids, self.at, self.worker = columns or [
            np.zeros((len(FIELDS), 0) if n == 4 else 0, "int64") for n in range(7)
        ]
        self.start_ns = min([each[1] for each in parts], default=0)
        self.finish_ns = max([each[2] for each in parts], default=0)

    @property
    def processors(self) -> dict[int, Any]:
        """Processors by their numbers."""
        return self.reader.processors

    def _worker(self, worker: int, log: Mapping[str, Any]) -> Iterator[tuple[list[Any], int, int]]:
        """Of each segment the columns of what is wanted, and the first and the last time of all its events."""
        import numpy as np

        if "core" not in log or "id" not in log or log.get("timeline") or any(map(_of_events, log.values())):
            raise UntoldError
        if not len(log["core"]) and not len(log["id"]):
            return
        parts = parts_together(log["core"], log["id"])
        if parts is None:
            raise UntoldError
        base = -parts.skip
        for segment in parts.segments:
            arrays = self.reader.read(segment)
            skip = max(0, -base)
            heads = list(self.reader.heads)
            wanted = {category: number for number, category in enumerate(self.categories)}
            categories = np.array([wanted.get(category, ABSENT) for category, _ in heads], "int64")[arrays.heads]
            phases = np.array([phase == "start" for _, phase in heads], bool)[arrays.heads]
            at: Any = np.flatnonzero(categories[skip:] != ABSENT) + skip
            columns = [arrays.times[at], categories[at], phases[at], arrays.layouts[at], arrays.ids[:, at]]
            columns += [at + base, np.full(len(at), worker)]
            if segment.count > skip:
                yield columns, int(arrays.times[skip:].min()), int(arrays.times[skip:].max())
            base += segment.count

    def _number(self, category: str) -> int:
        return self.categories.index(category)

    def events(self, category: str, start: bool) -> Any:
        """The entries of the starts, or finishes, of a category."""
        import numpy as np

        return np.flatnonzero((self.category == self._number(category)) & (self.starts == start))

    def tasks_of(self, entries: Any) -> Any:
        """Their tasks, `ABSENT` where an id has none."""
        return self.ids[_TASK][entries]

    # ---- spans -----------------------------------------------------------------------------------

    def spans(self, categories: Sequence[str]) -> SpanArrays:
        """Of these categories: a finish belongs to what comes before it with its id, if that is a start.

        Bodies without a finish last until the log's end.
        """
        import numpy as np

        numbers = [self._number(category) for category in categories]
        chosen = np.flatnonzero(np.isin(self.category, numbers) & (self.layouts != ABSENT))
        keys = [self.worker, self.category, self.layouts, *self.ids]
        chosen = chosen[np.lexsort([chosen, *[key[chosen] for key in keys]])]
        follows: Any = np.zeros(len(chosen) + 1, bool)  # the one before it, with the same id
        for_all = [key[chosen[1:]] == key[chosen[:-1]] for key in keys]
        follows[1:-1] = np.logical_and.reduce(for_all) if len(chosen) > 1 else False
        starts = self.starts[chosen]
        ended = np.flatnonzero(~starts[1:] & starts[:-1] & follows[1:-1])
        running = np.flatnonzero(starts & ~follows[1:] & (self.category[chosen] == self._number("compute")))
        start, finish, still = chosen[ended], chosen[ended + 1], chosen[running]
        begun = np.concatenate([start, still])
        ends = np.concatenate([self.times[finish], np.full(len(still), self.finish_ns)])
        spans = SpanArrays(
            start=self.times[begun],
            finish=np.maximum(self.times[begun], ends),
            worker=self.worker[begun],
            at=self.at[np.concatenate([finish, still])],
            task=np.where(self.ids[_TASK][begun] == ABSENT, NONE, self.ids[_TASK][begun]),
            processor=self.ids[_PROCESSOR][begun],
            category=self.category[begun],
            open=np.arange(len(begun)) >= len(start),
            order=np.concatenate([finish, still + len(self.times)]),
        )
        return spans.taken(np.lexsort([spans.at, spans.worker, spans.finish, spans.start]))

    # ---- tasks -----------------------------------------------------------------------------------

    def tasks(self, computes: SpanArrays) -> TaskArrays:
        """All tasks, given the spans of all bodies."""
        import numpy as np

        bodies, computes = computes, computes.taken(computes.task > 0)
        submits = self.events("add_thunk", True)
        functions, names = self._functions(submits)
        deps = self._dependencies()
        found = [self.tasks_of(self.events(*head)) for head in _TELLING]
        ids = np.unique(np.concatenate([*found, computes.task, np.array([*functions, *names, *deps], "int64")]))
        tasks = TaskArrays(ids[ids > 0])
        for name, head, first in (
            ("submitted", ("add_thunk", True), True),
            ("ready", ("schedule", True), True),
            ("placed", ("schedule", False), True),
            ("first_move", ("move", True), True),
            ("finished", ("finish", False), False),
        ):
            setattr(tasks, name, self._times_of(tasks, self.events(*head), first))
        labels = self._labels()
        for id in tasks.task_id.tolist():
            tasks.function.append(functions.get(id) or names.get(id, ""))
            tasks.label.append(labels.get(id))
            tasks.deps.append(deps.get(id, ()))
        self._note_computes(tasks, computes)
        _note_ready(tasks)
        tasks.nested_ns = self._nested(tasks, bodies)
        return tasks

    def _times_of(self, tasks: TaskArrays, entries: Any, first: bool) -> Any:
        """Of each task the earliest of these times, or the one of the last event."""
        import numpy as np

        entries = entries[self.tasks_of(entries) > 0]
        at, times = tasks.at(self.tasks_of(entries)), self.times[entries]
        out = np.full(len(tasks.task_id), _LATEST if first else NONE)
        if not first:
            out[at] = times  # the last one stays
            return out
        np.minimum.at(out, at, times)
        out[out == _LATEST] = NONE
        return out

    def _note_computes(self, tasks: TaskArrays, computes: SpanArrays) -> None:
        import numpy as np

        count = len(tasks.task_id)
        at = tasks.at(computes.task)
        tasks.computes = np.bincount(at, minlength=count)
        tasks.compute_ns = np.zeros(count, "int64")
        np.add.at(tasks.compute_ns, at, computes.finish - computes.start)
        by_start = np.lexsort([computes.order, computes.start])

        def of_last(values: Any, order: Any = by_start, missing: int = NONE) -> Any:
            out = np.full(count, missing)
            out[at[order]] = values[order]  # the last one stays
            return out

        tasks.first_body = of_last(computes.start, by_start[::-1])
        tasks.body_start = of_last(computes.start)
        tasks.body_end = of_last(np.where(computes.open, NONE, computes.finish))
        tasks.running_until = of_last(np.where(computes.open, computes.finish, NONE))
        tasks.worker, tasks.processor = of_last(computes.worker), of_last(computes.processor, missing=ABSENT)

    def _nested(self, tasks: TaskArrays, computes: SpanArrays) -> Any:
        """What the slots of bodies did for others meanwhile: those slots where that happened are told by rows."""
        import numpy as np

        nested: Any = np.zeros(len(tasks.task_id), "int64")
        order = np.lexsort([-computes.finish, computes.start, computes.processor, computes.worker])
        by_slot = computes.taken(order)
        slot: Any = np.zeros(len(order), "int64")
        slot[1:] = np.cumsum(
            (by_slot.processor[1:] != by_slot.processor[:-1]) | (by_slot.worker[1:] != by_slot.worker[:-1])
        )
        within: set[int] = set()
        begins = np.flatnonzero(np.diff(slot, prepend=-1))
        for number, some in enumerate(np.split(np.arange(len(order)), begins[1:])):
            reached = np.maximum.accumulate(by_slot.finish[some])
            if (by_slot.start[some][1:] < reached[:-1]).any() and by_slot.processor[some[0]] != ABSENT:
                within.add(number)
        if not within:
            return nested
        some = by_slot.taken(np.isin(slot, list(within)))
        table = LogTable(tasks={id: TaskRow(id) for id in set(some.task.tolist()) if id > 0})
        fields = (some.worker, some.task, some.start, some.finish, some.processor, some.at)
        for worker, task, start, finish, processor, at in zip(*map(np.ndarray.tolist, fields), strict=True):
            id = {"thunk_id": task, "processor": processor}
            table.spans.append(Span(worker, "compute", id, start, finish, None, at))
        note_nested(table)
        for task, row in table.tasks.items():
            nested[tasks.at(task)] = row.nested_ns
        return nested

    # ---- what streams and annotations say ----------------------------------------------------------

    def _functions(self, submits: Any) -> tuple[dict[int, str], dict[int, str]]:
        """The functions of tasks, and where these are not said, of what `tasknames` says of them."""
        functions: dict[int, str] = {}
        names: dict[int, str] = {}
        tasks = self.tasks_of(submits)
        for worker, streams in self.logs.items():
            chosen = self.worker[submits] == worker
            of = dict(zip(self.at[submits][chosen].tolist(), tasks[chosen].tolist(), strict=True))
            said = dict(_said(streams.get("taskfuncnames")))
            try:
                functions.update({of[at]: printable(function) for at, function in said.items()})
                for at, name in _said(streams.get("tasknames")):
                    if at not in said:
                        names[of[at]] = printable(name).rpartition(" [")[0]
            except KeyError:  # it is said elsewhere than at a submission
                raise UntoldError from None
        return functions, names

    def _dependencies(self) -> dict[int, tuple[int, ...]]:
        deps: dict[int, tuple[int, ...]] = {}
        for streams in self.logs.values():
            for _, (task, upstreams) in _said(streams.get("taskdeps")):
                if type(task) is not int or task <= 0:
                    raise UntoldError
                deps[task] = deps.get(task) or unique(upstreams)
        return deps

    def _labels(self) -> dict[Any, str]:
        others = {number: id for (_, id), number in self.reader.others.items()}
        labels = {}
        for layout in self.layouts[self.events(_NAMED, True)].tolist():
            if layout != ABSENT:
                id = others[layout]
                objectid = id_field(id, "objectid")
                labels[getattr(objectid, "objid", objectid)] = printable(id_field(id, "name"))
        return labels


def read_arrays(logs: Any, categories: Iterable[str]) -> LogArrays:
    """The events of these categories, and those of tasks.

    Raises `UntoldError` for a log that has to be read by rows, or what a value raises that is not as the scheduler's.
    """
    if not isinstance(logs, Mapping) or not all(isinstance(log, Mapping) for log in logs.values()):
        raise UntoldError
    return LogArrays(logs, categories)


def _in_order(logs: Mapping[Any, Any]) -> list[Any]:
    return sorted(logs, key=lambda worker: (str(type(worker)), worker))


def _of_events(stream: Any) -> bool:
    """Whether it is a stream of whole events."""
    if getattr(stream, "view", None) is not None:
        return False
    return isinstance(next((value for value in stream if value is not None), None), Event)


def _said(stream: Any) -> Iterable[tuple[int, Any]]:
    """(index, entry) of the entries of a stream that are not None."""
    view = getattr(stream, "view", None)
    if view is not None:
        return view.said()  # type: ignore[no-any-return]
    return [(at, value) for at, value in enumerate(stream or ()) if value is not None]


def _note_ready(tasks: TaskArrays) -> None:
    """See `rows.note_ready`."""
    import numpy as np

    counts = np.fromiter(map(len, tasks.deps), "int64", len(tasks.deps))
    flat = np.fromiter(chain.from_iterable(tasks.deps), "int64", int(counts.sum()))
    place = np.minimum(np.searchsorted(tasks.task_id, flat), max(0, len(tasks.task_id) - 1))
    ended = np.where(tasks.task_id[place] == flat, tasks.finished[place], NONE) if len(flat) else flat
    whole = (tasks.ready != NONE) & (tasks.submitted != NONE)
    latest = tasks.submitted.copy()
    some = np.flatnonzero(counts)
    if len(some):
        begins = (np.cumsum(counts) - counts)[some]
        whole[some] &= np.minimum.reduceat(ended, begins) != NONE
        latest[some] = np.maximum(latest[some], np.maximum.reduceat(ended, begins))
    tasks.ready = np.where(whole, np.minimum(tasks.ready, latest), tasks.ready)
