"""The fast lane gives what the general way gives: every byte of every span, every count of every metric."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.places.processors import move
from otel_timespan.dagger.records import kinds
from otel_timespan.otel import OTelLog, semconv
from otel_timespan.otel.export.wire import encode_span, framed
from otel_timespan.otel.metrics.gauges import ConsumerGauges, default_consumers
from otel_timespan.otel.metrics.hub import MeterHub
from otel_timespan.otel.metrics.logmetrics import LogMetrics
from otel_timespan.otel.packing.lane import Lane, Taken
from otel_timespan.otel.replay import ReplayRuns
from otel_timespan.otel.spans import budget, ids
from otel_timespan.otel.spans.limits import NO_LIMITS, clip
from otel_timespan.otel.spans.mapping import SpanMapper
from otel_timespan.timespans.taskrecords import END, KINDS, OWNER_BITS, RETURN, START, SUBMIT, TAKEN

# ---- programs that say all kinds of things -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_custom_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests before these may have registered some, which all tasks heed from then on."""
    monkeypatch.setattr(move, "custom", False)


def leaf() -> int:
    """Nothing to say."""
    return 1


def sized(n: int) -> bytes:
    """A result of so many bytes."""
    return bytes(n)


def join(*values: Any, **named: Any) -> int:
    """Many dependencies, by position and by name."""
    return len(values) + len(named)


def failing(*values: Any) -> None:
    """A body that raises."""
    raise ValueError("no")


def telling() -> None:
    """A body that puts something on its span."""
    trace.get_current_span().set_attribute("mine", 1)


def looking() -> int:
    """A body that looks at its span, and leaves it as it is."""
    return trace.get_current_span().get_span_context().span_id


def spawning() -> int:
    """A body that spawns and fetches."""
    return ts.fetch(ts.spawn(leaf)) + ts.fetch(ts.spawn(sized, 10)).count(0)


def closure(n: int) -> Callable[[], int]:
    """A function that carries data."""
    return lambda: n


async def waiting() -> int:
    """A body that is a coroutine."""
    return 1


STEPS = ("leaf", "sized", "nested", "join", "mixed", "named", "failing", "telling", "looking", "spawning", "closure",
         "partial", "labelled", "retried", "coroutine", "chunk", "cancelled", "twice", "wide")  # fmt: skip


class Program:
    """Spawns what `steps` say, each after some of those before it, and waits for all."""

    def __init__(self, steps: list[str], seed: int) -> None:
        self.steps, self.choose = steps, random.Random(seed)
        self.tasks: list[Any] = []

    def run(self) -> None:
        for step in self.steps:
            self.tasks.append(getattr(self, step, self.plain)(step))
        for task in self.tasks:
            with contextlib.suppress(Exception):
                ts.fetch(task)

    def some(self, most: int = 3) -> list[Any]:
        return self.choose.sample(self.tasks, min(len(self.tasks), self.choose.randrange(most + 1)))

    def plain(self, step: str) -> Any:
        return ts.spawn({"leaf": leaf, "telling": telling, "looking": looking, "spawning": spawning}[step])

    def sized(self, step: str) -> Any:
        return ts.spawn(sized, self.choose.choice((0, 100, 200, 20_000, 3_000_000)))

    def join(self, step: str) -> Any:
        return ts.spawn(join, *self.some())

    def mixed(self, step: str) -> Any:
        return ts.spawn(join, *self.some(1), 5, *self.some(2), "text")

    def named(self, step: str) -> Any:
        return ts.spawn(join, 3, *self.some(), **{f"n{n}": task for n, task in enumerate(self.some(2))})

    def failing(self, step: str) -> Any:
        return ts.spawn(failing, *self.some(1))

    def closure(self, step: str) -> Any:
        return ts.spawn(closure(self.choose.randrange(3)))

    def nested(self, step: str) -> Any:
        return ts.spawn(lambda: 1)

    def partial(self, step: str) -> Any:
        return ts.spawn(functools.partial(join, 1))

    def labelled(self, step: str) -> Any:
        return ts.spawn(leaf, D.Options(name="a label"))

    def retried(self, step: str) -> Any:
        return ts.spawn(failing, D.Options(retries=1))

    def coroutine(self, step: str) -> Any:
        return ts.spawn(waiting)

    def chunk(self, step: str) -> Any:
        return ts.spawn(join, D.tochunk([1, 2]), *self.some(1))

    def cancelled(self, step: str) -> Any:
        task = ts.spawn(join, *self.some())
        task.cancel()
        return task

    def twice(self, step: str) -> Any:
        some = self.some(1)
        return ts.spawn(join, *some, *some)

    def wide(self, step: str) -> Any:
        return ts.spawn(join, *self.tasks[-40:])


@contextlib.contextmanager
def captured(
    workers: dict[int, int] | None = None, procs: list[int] | None = None, **options: Any
) -> Iterator[tuple[OTelLog, list[Any]]]:
    """A log that keeps the records that it was told, and sends nothing. `workers`: pretended ones, `procs` of these."""
    records: list[Any] = []
    driver = D.InlineDriver(workers, seed=1, clock=time.monotonic_ns) if workers else None
    with ts.Context(procs, driver=driver) if driver is not None else ts.Context(threads=2) as context:
        log = OTelLog(metrics=False, span_exporter=InMemorySpanExporter(), **options)
        assert log._connect() is not None
        log.recorder.append = log.recorder.put = log.recorder.event = records.append
        context.log_sink = log
        try:
            yield log, records
        finally:
            context.log_sink = ts.NoOpLog()
            log.close()


def records_of(program: Any, **options: Any) -> list[Any]:
    """What the scheduler says of a program."""
    with captured(**options) as (_, records), ts.dag("run"):
        program.run()
    return [record for record in records if record[0] in (*KINDS, "start", "finish") or len(record) > 1]


# ---- both ways -------------------------------------------------------------------------------------------------


class Way:
    """Records taken in batches, and all that came of them."""

    def __init__(
        self, records: list[Any], fast: bool, size: int, detail: str = "phases", max_spans: int | None = None
    ) -> None:
        self.runs = ReplayRuns()
        for record in records:
            parent = ids.unpack(record[11]) if record[0] == SUBMIT and record[11] is not None else None
            if parent is not None and parent.root is not None:
                self.runs.arrived(parent)
        self.mapper = SpanMapper(self.runs, detail=detail, offset_ns=1000, max_spans=max_spans)
        self.lane = Lane(self.mapper, 1000, NO_LIMITS if fast else None)
        self.reader = InMemoryMetricReader()
        hub = MeterHub(MeterProvider([self.reader]))
        self.metrics = LogMetrics(
            hub, ConsumerGauges(default_consumers()), clock=lambda: 0, lock=threading.RLock(), prepare=bool,
            account=lambda: {"recorded": 0, "exported": 0, "sampled": 0, "pending": 0, "dropped": {}}, worker=lambda: 1,
        )  # fmt: skip
        self.metrics.mapper, self.metrics.lane = self.mapper, self.lane
        self.mapper.observer = self.metrics
        hub.add(self.metrics)
        self.packed = self.failed = 0
        spans = []
        for start in range(0, len(records), size):
            taken = self.lane.take(records[start : start + size])
            self.metrics.tasks_packed(taken)
            assert self.metrics.feed(taken) is None
            spans += self.bodies(taken)
        left = Taken()
        left.spans += self.lane.hand_over()
        left.spans += self.mapper.abandon(max(1, *(run.latest_ns for run in self.runs._open.values())))
        for run in self.runs.end_all():
            run.whole = True  # here tasks arrive once more by the general way
            left.spans += self.mapper.end_run(run)
        left.packed += self.mapper.budgets.take_packed()
        spans += self.bodies(left)
        message = ScopeSpans.FromString(b"".join(spans))
        self.spans = {span.span_id: span for span in message.spans}
        assert len(self.spans) == len(message.spans), "a span was told twice"

    def bodies(self, taken: Taken) -> list[bytes]:
        self.packed += taken.count
        self.failed += taken.failed
        return [*taken.packed, *(framed(b"\x12", encode_span(clip(span, NO_LIMITS))) for span in taken.spans)]

    def points(self) -> dict[Any, Any]:
        """Each point of each metric, but for moments and exemplars."""
        found: dict[Any, Any] = {}
        data = self.reader.get_metrics_data()
        for metric in [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]:  # type: ignore[union-attr]
            if metric.name in (semconv.LOAD_AVERAGE, semconv.MEMORY_FREE):
                continue
            for point in metric.data.data_points:
                key = (metric.name, tuple(sorted(point.attributes.items())))
                counts = getattr(point, "bucket_counts", None)
                if counts is None:
                    found[key] = round(point.value, 9)
                else:
                    found[key] = (*counts, point.count, round(point.sum, 9), point.min, point.max)
        return found


def assert_the_same(records: list[Any], size: int, detail: str = "phases", max_spans: int | None = None) -> Way:
    """Both ways say the same of these records; the fast one."""
    fast, general = (Way(records, is_fast, size, detail, max_spans) for is_fast in (True, False))
    assert general.packed == 0
    assert fast.mapper.budgets.waiting == general.mapper.budgets.waiting == 0
    assert fast.mapper.budgets.rolled_up == general.mapper.budgets.rolled_up
    assert fast.spans.keys() == general.spans.keys()
    for key, span in general.spans.items():
        assert fast.spans[key] == span
    assert fast.failed == general.failed == 0
    assert fast.points() == general.points()
    for one, other in zip(fast.runs._open.values(), general.runs._open.values(), strict=True):
        assert vars(one).keys() == vars(other).keys()
    assert fast.mapper.done.keys() == general.mapper.done.keys()
    return fast


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.lists(st.sampled_from(STEPS), min_size=1, max_size=40),
    st.integers(0, 1000),
    st.sampled_from((1, 7, 64, 10_000)),
    st.sampled_from(("phases", "task")),
    st.sampled_from((None, None, 1, 8, 20, 60, 200)),
    st.sampled_from((3, 8192)),
    st.sampled_from((None, {1: 2, 2: 1, 3: 1})),
    st.booleans(),
)  # fmt: skip
def test_both_ways_say_the_same(
    steps: list[str],
    seed: int,
    size: int,
    detail: str,
    max_spans: int | None,
    candidates: int,
    workers: Any,
    processes: bool,
) -> None:
    """Random programs: spans equal field by field, metrics point by point, in batches of any size, rolled up or not."""
    records = records_of(Program(steps, seed), workers=workers, detail=detail)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "CANDIDATES", candidates)
        way = assert_the_same(of_processes(records) if processes else records, size, detail, max_spans)
    assert_whole(way)


def of_processes(records: list[Any]) -> list[Any]:
    """The same as if other workers than 1 were processes: their answers are received a little later."""
    return [
        (TAKEN, *record[1:], record[2] + 100 + record[4] % 7, None)
        if record[0] == RETURN and record[5] >> OWNER_BITS != 1 and record[14] is not None
        else record
        for record in records
    ]


def assert_whole(way: Way) -> None:
    """Parents and links lead to spans that are there, and each task is there or in a roll-up."""
    spans = way.spans
    roots = {run.root.span_id.to_bytes(8, "big") for run in way.runs._open.values()}
    for span in spans.values():
        assert not span.parent_span_id or span.parent_span_id in spans or span.parent_span_id in roots
        for link in span.links:
            assert link.span_id in spans, (span.name, link)


def test_ordinary_tasks_are_packed() -> None:
    """Of many tasks of one function all but the first ones of their shapes go the fast way."""
    way = assert_the_same(records_of(Program(["leaf"] * 200 + ["join"] * 200, 1)), 64)
    assert way.packed > 0.7 * len(way.spans)


def test_tasks_on_other_workers_are_packed() -> None:
    """Bodies of several workers go the fast way, each with its worker on its spans."""
    way = assert_the_same(records_of(Program(["leaf"] * 300, 1), workers={1: 1, 2: 1, 3: 1}), 64)
    assert way.packed > 0.7 * len(way.spans)
    ran = Counter(_worker_of(span) for span in way.spans.values() if span.name == "compute")
    assert set(ran) == {1, 2, 3} and min(ran.values()) > 30


def test_tasks_on_worker_processes_are_packed() -> None:
    """The same of bodies in other processes; how long their answers took is a part of their tasks."""
    records = of_processes(records_of(Program(["leaf"] * 300, 1), workers={1: 1, 2: 1, 3: 1}))
    way = assert_the_same(records, 64)
    assert way.packed > 0.7 * len(way.spans)
    received = {record[4]: record[16] for record in records if record[0] == TAKEN}
    assert {way.mapper.done[id].finished_ns - ns for id, ns in received.items()} == {3}


def _worker_of(span: Any) -> int:
    return next(each.value.int_value for each in span.attributes if each.key == semconv.WORKER_ID)


class Given:
    """A program whose tasks are given results of others: by position, by name, beside a value."""

    def run(self) -> None:
        """300 tasks on 20 results."""
        ups = [ts.spawn(sized, 100) for _ in range(20)]
        tasks = [ts.spawn(join, 1, up) for up in ups * 10] + [ts.spawn(join, named=up) for up in ups * 5]
        for task in tasks:
            ts.fetch(task)


@pytest.mark.parametrize("max_spans", [None, 200])
@pytest.mark.parametrize("detail", ["phases", "task"])
def test_arguments_from_other_workers_are_packed(detail: str, max_spans: int | None) -> None:
    """Tasks go the fast way with what they are given from elsewhere: each is a span, and its bytes are counted."""
    records = records_of(Given(), workers={1: 1, 2: 1, 3: 1}, detail=detail)
    way = assert_the_same(records, 64, detail, max_spans)
    moves = [span for span in way.spans.values() if span.name == "move"]
    if max_spans is None:
        assert way.packed > 0.7 * len(way.spans)
        assert len(moves) > 100 if detail == "phases" else not moves
    assert any(key[0] == semconv.MOVE_IO for key in way.points())
    general = Way(records, False, 64, detail, max_spans)
    assert [run.moved for run in way.runs._open.values()] == [run.moved for run in general.runs._open.values()]
    assert all(run.moved > 0 for run in way.runs._open.values())


def test_the_only_worker_may_be_another_one() -> None:
    """A scheduler without worker 1 is told of as any other: its bodies and their queue count for the one it has."""
    way = assert_the_same(records_of(Program(["leaf", "sized"] * 60, 1), workers={1: 1, 2: 2}, procs=[2]), 64)
    assert way.packed > 0.7 * len(way.spans)
    assert {_worker_of(span) for span in way.spans.values() if span.name == "compute"} == {2}


def test_detail_scheduler_takes_the_general_way() -> None:
    """Spans of the scheduler itself are made of events."""
    way = assert_the_same(records_of(Program(["leaf", "join"] * 20, 1)), 64, "scheduler")
    assert way.packed == 0
    assert {span.name for span in way.spans.values()} >= {"schedule", "finish", "fire", "enqueue"}


def test_functions_made_anew_share_a_shape() -> None:
    """A function that is made for each task, with data or without, goes the fast way, and is not kept."""
    way = assert_the_same(records_of(Program(["nested"] * 100 + ["closure"] * 100, 1)), 64)
    assert way.packed > 0.9 * 3 * 200 * 0.9
    assert len(way.lane._functions) == 2 and not any(callable(key) for key in way.lane._functions)


def test_more_functions_than_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no more functions are numbered, tasks end by another record, and go the fast way all the same."""
    monkeypatch.setattr(kinds, "_MAX_FUNCTIONS", 0)
    monkeypatch.setattr(kinds, "function_codes", {})
    monkeypatch.setattr("otel_timespan.dagger.bodies.run.function_codes", {})
    monkeypatch.setattr("otel_timespan.dagger.core.machine.function_codes", {})
    way = assert_the_same(records_of(Program(["leaf", "join", "nested"] * 60, 1)), 64)
    assert way.packed > 0.6 * len(way.spans)


def test_times_that_no_message_has_room_for() -> None:
    """A moment before 1970, or beyond 64 bits, costs the fast way of that task and nothing else."""
    records = records_of(Program(["leaf"] * 20, 2))

    def moved(record: Any, by: int) -> Any:
        at = {SUBMIT: (1, 12), START: (1, 3), RETURN: (1, 2), END: (1, 2)}.get(record[0], ())
        return tuple(item + by if n in at else item for n, item in enumerate(record))

    for by in (-(10**15) * 10, 1 << 64):
        assert_the_same([moved(record, by) for record in records], 64)


@pytest.mark.parametrize("kind", [(SUBMIT,), (START,), (RETURN, END)])
def test_a_record_is_missing(kind: tuple[int, ...]) -> None:
    """A log that began or was cut in the middle of tasks: what is known of them, both ways the same."""
    records = records_of(Program(["leaf", "join"] * 10, 2))
    missing = next(n for n, record in enumerate(records) if record[0] in kind)
    assert_the_same(records[:missing] + records[missing + 1 :], 16)


def test_a_clock_that_goes_back() -> None:
    """Readings that are out of order cost the fast way of that task, no span and no count."""
    records = records_of(Program(["leaf"] * 40, 2))
    for n, record in enumerate(records):
        if record[0] in (RETURN, END) and record[4] % 3 == 0:
            records[n] = (record[0], record[1] - 10**9, record[2] - 10**9, *record[3:])
        elif record[0] == START and record[5] % 5 == 0:
            records[n] = (record[0], record[1] - 10**9, *record[2:])
    assert_the_same(records, 64)


@pytest.mark.parametrize("first", [1 << 14, 1 << 21, 1 << 32, (1 << 63) - 20, 1 << 64])
def test_ids_of_any_size(first: int) -> None:
    """Task ids beyond 32 bits and beyond 64 are what the general way makes of them."""
    records = records_of(Program(["leaf", "join", "sized"] * 12, 3))
    lowest = min(record[3] for record in records if record[0] == SUBMIT)
    at = {SUBMIT: 3, START: 5, RETURN: 4, END: 4, 1: 5}

    def moved(record: Any) -> Any:
        record = list(record)
        place = at.get(record[0])
        if place is None:
            return tuple(record)
        record[place] += first - lowest
        if record[0] == SUBMIT:
            record[5] = tuple(a + first - lowest if type(a) is int else a for a in record[5])
        return tuple(record)

    only = [moved(record) for record in records if record[0] in at]
    assert_the_same(only, 64)


class ManyFunctions:
    """A program of functions that are called so many times each."""

    def __init__(self, functions: int, calls: int) -> None:
        self.functions = [eval(f"lambda: {n}") for n in range(functions)]
        self.calls = calls

    def run(self) -> None:
        """Call each in turn."""
        for f in self.functions * self.calls:
            D.fetch(D.spawn(f))


def test_a_packer_is_made_of_what_comes_again() -> None:
    """Functions that are called once or twice need none: of thousands it would take seconds to make them."""
    rare, common = (Way(records_of(ManyFunctions(30, calls)), fast=True, size=50) for calls in (1, 20))
    assert not rare.packed and not rare.lane._shapes
    assert common.packed > 30 * 10 and common.lane._shapes
    assert len(rare.spans) == 30 * 3 + 1 and len(common.spans) == 600 * 3 + 1
