"""From events to spans: the tree, the waits, links, failures, and what is never lost or doubled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_timespan import dagger
from otel_timespan.errors import InvalidOptionError, TaskCancelled
from otel_timespan.otel import replay, semconv
from otel_timespan.otel.replay import ReplayRuns
from otel_timespan.otel.spans import ids, paths
from otel_timespan.otel.spans.mapping import SCHEDULER_CATEGORIES, SpanMapper
from otel_timespan.otel.spans.spandata import ERROR, UNSET, SpanData
from otel_timespan.timespans import ChunkInfo, Event, EventId
from tests.otel.stories import (
    MS,
    RUN_ID,
    body,
    failed,
    finish,
    half,
    move,
    raised,
    schedule,
    skipped,
    submit,
    taken,
    whole,
)

WAITS = (
    semconv.WAIT_DEPENDENCY,
    semconv.WAIT_SCHEDULE,
    semconv.WAIT_QUEUE,
    semconv.WAIT_MOVE,
    semconv.RUN_WALL,
    semconv.WAIT_FINISH,
)


def spans_of(events: Any, **options: Any) -> list[SpanData]:
    """All spans of these events."""
    return list(replay(events, offset_ns=0, **options))


def task_span(spans: list[SpanData], task: int) -> SpanData:
    """The span of a task (of its last attempt)."""
    return [s for s in spans if s.attributes.get(semconv.TASK_ID) == task and semconv.TASK_ATTEMPT in s.attributes][-1]


def named(spans: list[SpanData], name: str) -> list[SpanData]:
    """Spans of a name."""
    return [s for s in spans if s.name == name]


def test_tree_of_one_task() -> None:
    """The root holds the task, the task its phases, each with the times of its events."""
    spans = spans_of(whole(2, 10 * MS))
    task = task_span(spans, 2)
    root = named(spans, "dag")[0]
    assert root.parent_id == 0 and task.parent_id == root.span_id
    children = [s for s in spans if s.parent_id == task.span_id]
    times = [(s.name, (s.start_ns - task.start_ns) // MS, (s.end_ns - task.start_ns) // MS) for s in children]
    assert times == [("queue", 2, 3), ("compute", 4, 5)]
    assert {s.trace_id for s in spans} == {root.trace_id}
    assert (root.start_ns, root.end_ns) == (task.start_ns, task.end_ns) == (10 * MS, 16 * MS)


def test_task_attributes() -> None:
    """A task's span says what it was, where it ran and how long it waited, in seconds."""
    task = task_span(spans_of(whole(2, f=len, name="count words")), 2)
    assert task.name == "len"
    found = dict(task.attributes)
    assert found[semconv.TASK_NAME] == "count words"
    assert found[semconv.TASK_STATE] == "finished" and found[semconv.TASK_RESULT] == "success"
    assert found[semconv.FUNCTION_NAME] == "len"
    assert found[semconv.WORKER_ID] == 1 and found[semconv.PROCESSOR] == "p1"
    assert found[semconv.THREAD_ID] == 7 and found[semconv.THREAD_NAME] == "t7"
    assert [round(found[key], 9) for key in WAITS] == [0.001, 0.001, 0.001, 0.001, 0.001, 0.001]
    assert found[semconv.RUN_CPU] == 1e-6


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**10), min_size=7, max_size=7), st.integers(0, 6), st.booleans())
def test_waits_add_up(times: list[int], reached: int, in_order: bool) -> None:
    """Whatever the times and wherever a task stopped, no wait is negative and their sum is the span."""
    at = sorted(times) if in_order else times
    stages = [
        schedule(2, at[1], at[2]),
        taken(2, at[3]),
        [*move(2, 1, at[3], at[4])],
        [body(2, at[4], at[5])[0]],
        [body(2, at[4], at[5])[1]],
    ]
    events = submit(2, at[0])
    for stage in stages[:reached]:
        events += stage
    task = task_span(spans_of([*events, *finish(2, at[5], at[6])]), 2)
    waits = [task.attributes[key] for key in WAITS]
    assert all(wait >= 0 for wait in waits)  # type: ignore[operator]
    assert sum(waits) == pytest.approx((task.end_ns - task.start_ns) / 1e9, abs=1e-12, rel=1e-12)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=7, max_size=7))
def test_children_within_parents(times: list[int]) -> None:
    """No child starts before or ends after its parent, even when timestamps come out of order."""
    at = sorted(times)
    events = [*submit(2, at[0]), *schedule(2, at[1], at[2]), *taken(2, at[2]), *move(2, 1, at[2], at[4])]
    spans = spans_of([*events, *body(2, at[3], at[6]), *finish(2, at[4], at[5])])
    by_id = {s.span_id: s for s in spans}
    for span in spans:
        parent = by_id.get(span.parent_id)
        assert parent is None or parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns


def test_moves_are_spans_by_kind() -> None:
    """Chunks, shards, files and custom moves are spans, however short; values and local results never, however long."""
    events = [*submit(2, 0), *schedule(2, 0, 1)]
    for position, kind in enumerate(("chunk", "shard", "file", "custom", "value", "task"), 1):
        events += move(2, position, 10, 10 if position < 5 else 10**9, kind)
    events += move(2, "key", 10, 20)
    moves = named(spans_of([*events, *body(2, 10**9, 10**9 + 1), *finish(2, 10**9 + 1, 10**9 + 2)]), "move")
    assert [m.attributes[semconv.MOVE_POSITION] for m in moves] == ["1", "2", "3", "4", "key"]
    assert len({m.span_id for m in moves}) == 5
    assert {m.attributes[semconv.MOVE_SOURCE] for m in moves} == {2} and moves[0].attributes[semconv.MOVE_SIZE] == 100


def test_dependency_links() -> None:
    """Each dependency is a link to the upstream's span, the last one to finish first, and says so."""
    events = [*whole(2, 0), *whole(3, 10 * MS), *whole(4, 30 * MS, deps=((1, 2), (2, 3), (None, 2)))]
    spans = spans_of(events)
    links = task_span(spans, 4).links
    assert [link.span_id for link in links] == [task_span(spans, n).span_id for n in (3, 2, 2)]
    assert [link.attributes.get(semconv.LINK_POSITION) for link in links] == ["2", "1", None]
    assert [link.attributes.get(semconv.LINK_BLOCKING) for link in links] == [True, None, None]
    assert {link.attributes[semconv.LINK_TYPE] for link in links} == {"dependency"}


def test_link_limit() -> None:
    """Beyond the limit the latest upstreams stay, the blocking one first, and the rest is counted."""
    events = [event for n in range(2, 12) for event in whole(n, n * 10 * MS)]
    events += whole(12, 500 * MS, deps=tuple((n - 1, n) for n in range(2, 12)))
    runs = ReplayRuns()
    mapper = SpanMapper(runs, link_limit=3)
    spans = [span for event in events for span in mapper.feed(event)]
    task = task_span(spans, 12)
    assert [link.span_id for link in task.links] == [task_span(spans, n).span_id for n in (11, 10, 9)]
    assert task.dropped_links == 7


def test_link_to_unknown_upstream() -> None:
    """The id of an upstream that was never seen follows from ours."""
    link = task_span(spans_of(whole(4, deps=((1, 3),))), 4).links[0]
    assert link.span_id == ids.span_id(RUN_ID, 3, ids.TASK)


def test_failure_recorded_once() -> None:
    """A raising body: the exception stands once, on compute; compute and task are errors of its type."""
    spans = spans_of(failed(2, 0, raised(ValueError("no such file"))))
    task, compute = task_span(spans, 2), named(spans, "compute")[0]
    assert (task.status, compute.status) == (ERROR, ERROR)
    assert task.status_message == compute.status_message == "no such file"
    assert task.attributes[semconv.ERROR_TYPE] == "ValueError" == compute.attributes[semconv.ERROR_TYPE]
    recorded = [(s.name, e.name) for s in spans for e in s.events]
    assert recorded == [("compute", "exception")]
    event = compute.events[0].attributes
    assert event[semconv.EXCEPTION_TYPE] == "ValueError" and "Traceback" in str(event[semconv.EXCEPTION_STACKTRACE])


def test_failure_without_body() -> None:
    """A task that failed before it ran carries its exception itself."""
    error = raised(RuntimeError("no place"))
    spans = spans_of([*submit(2, 0), *schedule(2, 1, 2), *finish(2, 3, 4, error, "failure")])
    task = task_span(spans, 2)
    assert named(spans, "compute") == [] and [e.name for e in task.events] == ["exception"]
    assert task.attributes[semconv.TASK_STATE] == "failed"


def test_exception_text_is_cut() -> None:
    """A message of megabytes leaves as kilobytes; one that can't be had does no harm."""

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("never")

    long, broken = failed(2, 0, raised(ValueError("x" * 10**6))), failed(3, 0, raised(BrokenError()))
    spans = spans_of([*long, *broken])
    assert len(task_span(spans, 2).status_message) <= 4096
    assert "str() raised RuntimeError" in task_span(spans, 3).status_message


def test_skipped_task() -> None:
    """A dependent that never ran is an error of DTaskFailedError that links to its cause, without arguments' text."""
    error = raised(ValueError("secret argument"))
    spans = spans_of([*failed(2, 0, error), *skipped(3, 0, 2, error, deps=((1, 2),))])
    task = task_span(spans, 3)
    assert task.status == ERROR and task.attributes[semconv.ERROR_TYPE] == "DTaskFailedError"
    assert task.status_message == "upstream task 2 failed" and task.events == ()
    assert [link.attributes[semconv.LINK_TYPE] for link in task.links] == ["cause", "dependency"]
    assert task.links[0].span_id == task_span(spans, 2).span_id
    assert task.attributes[semconv.TASK_STATE] == "skipped"


def test_cancelled_before_it_ran() -> None:
    """A cancelled task is no error."""
    task = task_span(spans_of([*submit(2, 0), *finish(2, 5, 6, TaskCancelled(), "cancellation")]), 2)
    assert task.status == UNSET and task.attributes[semconv.TASK_STATE] == "cancelled" and task.events == ()


def test_cancelled_while_running() -> None:
    """Its spans come when the body ends at last, each once, and the root waits for them."""
    runs = ReplayRuns()
    mapper = SpanMapper(runs)
    start, end = body(2, 4 * MS, 90 * MS)
    early = [*submit(2, 0), *schedule(2, MS, 2 * MS), *taken(2, 3 * MS), start]
    early += finish(2, 5 * MS, 6 * MS, TaskCancelled(), "cancellation")
    before = [span for event in early for span in mapper.feed(event)]
    assert [s.name for s in before] == ["queue"]
    after = mapper.feed(end)
    assert [s.name for s in after] == ["compute", "len"]
    task = after[-1]
    assert task.attributes[semconv.TASK_STATE] == "cancelled" and task.end_ns == 90 * MS
    assert task.attributes[semconv.RUN_WALL] == 0.086
    assert mapper.feed(end) == [] and mapper.abandon(100 * MS) == []


def test_body_begins_after_cancellation() -> None:
    """A task that was settled on its way to a body still delivers its compute, once."""
    events = [*submit(2, 0), *finish(2, 1, 2, TaskCancelled(), "cancellation"), *body(2, 3, 4)]
    spans = spans_of(events)
    assert sorted(s.name for s in spans) == ["compute", "dag", "len"]


def test_retry_links_to_the_attempt_before() -> None:
    """A second attempt is a span of its own with a link to the first, whose body's span is closed."""
    first = [*submit(2, 0), *schedule(2, 1, 2), *taken(2, 3), body(2, 4, 5)[0]]
    spans = spans_of([*first, *whole(2, 10 * MS, attempt=2)])
    before, after = [s for s in spans if semconv.TASK_ATTEMPT in s.attributes]
    assert before.attributes[semconv.TASK_STATE] == "retried" and before.status == ERROR
    assert [(link.span_id, link.attributes[semconv.LINK_TYPE]) for link in after.links] == [(before.span_id, "retry")]
    assert len({s.span_id for s in spans}) == len(spans)
    assert named(spans, "dag")[0].attributes[semconv.DAG_RETRIED] == 1


def test_an_attempt_that_raised_says_so_and_ends_with_its_body() -> None:
    """A retried attempt carries its own error; the delay until the next one is in neither of the two."""
    error = raised(ValueError("no luck"))
    first = [*submit(2, 0), *schedule(2, 1, 2), *taken(2, 3), *body(2, 4, 5, error)]
    for detail in ("phases", "task"):
        spans = spans_of([*first, *whole(2, 10 * MS, attempt=2)], detail=detail)
        before, after = [s for s in spans if semconv.TASK_ATTEMPT in s.attributes]
        assert (before.status, before.status_message) == (ERROR, "no luck")
        assert before.attributes[semconv.ERROR_TYPE] == "ValueError"
        assert before.end_ns - before.start_ns == 5 and after.start_ns - before.start_ns == 10 * MS
        assert sum(len(s.events) for s in spans) == 1


def test_a_body_that_raised_is_not_running_until_its_next_attempt() -> None:
    """While a retry waits for its delay the gauge of running tasks does not count it."""
    mapper = SpanMapper(ReplayRuns())
    for event in [*submit(2, 0), *schedule(2, 1, 2), *taken(2, 3), *body(2, 4, 5, raised(ValueError()))]:
        mapper.feed(event)
    assert {state: dict(tasks) for state, tasks in mapper.active.items() if tasks} == {"waiting": {2: 5}}


def test_a_task_that_is_placed_again() -> None:
    """Two placements are two spans; ready is when the first began, placed when the last one ended."""
    events = [*submit(2, 0), *schedule(2, 1, 2), *schedule(2, 20, 30), *taken(2, 40), *body(2, 41, 50)]
    spans = spans_of([*events, *finish(2, 51, 52)], detail="scheduler")
    assert [(s.start_ns, s.end_ns) for s in named(spans, "schedule")] == [(1, 2), (20, 30)]
    assert [(s.start_ns, s.end_ns) for s in named(spans, "queue")] == [(30, 40)]
    assert len({s.span_id for s in spans}) == len(spans)
    attributes = task_span(spans, 2).attributes
    assert attributes[semconv.WAIT_DEPENDENCY] == 1e-9 and attributes[semconv.WAIT_SCHEDULE] == 29e-9


def test_ready_is_when_the_last_upstream_had_finished() -> None:
    """What is placed late waited in `schedule`; it was ready at its last upstream's end, or when it was submitted."""
    upstreams = [*whole(2, 0), *whole(3, 10 * MS)]  # each takes 6 ms
    deps = ((1, 2), (2, 3))
    for submitted, ready in ((5 * MS, 16 * MS), (20 * MS, 20 * MS)):
        late = [*submit(4, submitted, deps=deps), *schedule(4, 50 * MS, 51 * MS), *taken(4, 52 * MS)]
        events = [*upstreams, *late, *body(4, 53 * MS, 54 * MS), *finish(4, 55 * MS, 56 * MS)]
        spans = spans_of(events, detail="scheduler")
        task = task_span(spans, 4)
        assert task.attributes[semconv.WAIT_DEPENDENCY] == (ready - submitted) / 1e9
        assert task.attributes[semconv.WAIT_SCHEDULE] == (51 * MS - ready) / 1e9
        assert [s.start_ns for s in named(spans, "schedule") if s.parent_id == task.span_id] == [ready]


def test_a_processor_whose_text_raises() -> None:
    """A custom processor that can't be shown goes by its type, and costs no event."""

    class Shy:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    start, end = body(2, 4, 5)
    id = EventId(thunk_id=2, processor=Shy())
    shy = [start._replace(id=id), end._replace(id=id)]
    spans = spans_of([*submit(2, 0), *schedule(2, 1, 2), *taken(2, 3), *shy, *finish(2, 6, 7)])
    assert task_span(spans, 2).attributes[semconv.PROCESSOR] == "Shy"


def test_lost_finish_is_abandoned() -> None:
    """What never ends is closed as abandoned when the log ends, task and body: nobody knows of a failure."""
    spans = spans_of([*submit(2, 0), *schedule(2, 1, 2), *taken(2, 3), body(2, 4, 5)[0], *whole(3, 9)])
    for span in (task_span(spans, 2), named(spans, "compute")[-1]):
        assert span.status == UNSET and span.attributes[semconv.TASK_STATE] == "abandoned"
    assert named(spans, "dag")[0].attributes[semconv.DAG_COMPLETE] is False


def test_spawned_task_is_child_of_the_body() -> None:
    """A task spawned in a body is a child of that body's compute span."""
    start, end = body(2, 4 * MS, 50 * MS)
    events = [*submit(2, 0), *schedule(2, 1, 2), *taken(2, 3), start, *whole(3, 10 * MS, spawned_by=2), end]
    spans = spans_of([*events, *finish(2, 50 * MS, 51 * MS)])
    compute = next(s for s in named(spans, "compute") if s.attributes[semconv.TASK_ID] == 2)
    assert task_span(spans, 3).parent_id == compute.span_id
    assert task_span(spans, 3).attributes[semconv.TASK_SPAWNED_BY] == 2


def test_root_counts_and_critical_path() -> None:
    """The root counts its tasks by result and names the longest path by the tasks' own times."""
    quick, slow = whole(2, 0), [*submit(3, 0), *schedule(3, 1, 2), *taken(3, 3), *body(3, 4, 40 * MS + 4)]
    events = [*quick, *slow, *finish(3, 41 * MS, 42 * MS), *whole(4, 50 * MS, deps=((1, 2), (2, 3)))]
    events += failed(5, 60 * MS, ValueError("x"))
    events += skipped(6, 60 * MS, 5, ValueError("x"), deps=((1, 5),))
    events += [*submit(7, 0), *finish(7, 5, 6, TaskCancelled(), "cancellation")]
    root = named(spans_of(events), "dag")[0].attributes
    assert root[semconv.DAG_TASKS] == 6 and root[semconv.DAG_FAILED] == 1
    assert root[semconv.DAG_SKIPPED] == 1 and root[semconv.DAG_CANCELLED] == 1
    assert root[semconv.DAG_PATH_TASKS] == (3, 4)
    assert root[semconv.DAG_PATH_LENGTH] == pytest.approx(0.042, abs=1e-6)
    assert root[semconv.DAG_COMPLETE] is True and root[semconv.DAG_RESULT] == "failure"


@pytest.mark.parametrize("length", [1, 499, 500, 501, 999, 1000, 1001, 5000])
def test_long_path_keeps_its_end(length: int) -> None:
    """A path of any length is summed whole; its list keeps the last 500 to 1,000 tasks and says so."""
    found: paths.AnyPath = 0
    for task in range(length):
        found = paths.extend(task, 7, [(task - 1, found)] if task else [])
    path = paths.path_of(length - 1, found)
    assert path.length_ns == paths.length_of(found) == 7 * length
    listed = path.tasks()
    assert listed == tuple(range(length))[-len(listed) :] and min(length, 500) <= len(listed) <= 1000
    assert path.truncated == (len(listed) < length)


def test_detail_task() -> None:
    """With detail "task" there are only roots and tasks, and the exception stands on the task."""
    spans = spans_of([*whole(2), *failed(3, 0, raised(ValueError("x")))], detail="task")
    assert [s.name for s in spans] == ["len", "len", "dag"]
    assert [len(s.events) for s in spans] == [0, 1, 0]
    assert semconv.WAIT_QUEUE in spans[0].attributes


def test_detail_scheduler() -> None:
    """With detail "scheduler" the scheduler's own timespans stand under the root, those before it too."""
    before = [half("start", "scheduler_init", 1, uid=1), half("finish", "scheduler_init", 2, uid=1)]
    during = [
        half("start", "fire", 11, uid=1, worker=1, thunk_id=2),
        half("start", "proc_steal_local", 12, uid=1, worker=1, processor="p", seq=1),
        half("finish", "proc_steal_local", 13, uid=1, worker=1, processor="p", seq=1),
        half("finish", "fire", 14, uid=1, worker=1, thunk_id=2),
        half("start", "proc_run_wait", 11, uid=1, worker=1, processor="p", seq=2),
        half("finish", "proc_run_wait", 12, uid=1, worker=1, processor="p", seq=2),
    ]
    events = whole(2, 10)
    spans = spans_of([*before, *events[:2], *during, *events[2:]], detail="scheduler")
    root = named(spans, "dag")[0]
    assert {s.name for s in spans if s.parent_id == root.span_id} == {"len", "scheduler_init", "fire", "steal"}
    assert root.start_ns == 1
    assert {s.name for s in spans_of([*before, *events[:2], *during, *events[2:]])} & {"fire", "steal"} == set()


def test_wrong_detail() -> None:
    """A wrong detail is refused with the allowed ones."""
    with pytest.raises(InvalidOptionError, match="task, phases, scheduler"):
        replay([], detail="all")


def test_ids_do_not_depend_on_when() -> None:
    """A replay gives the same ids each time; phases, positions, attempts and tasks all differ."""
    events = [*whole(2), *whole(3, 5, deps=((1, 2),))]
    assert spans_of(events) == spans_of(events)
    seen = {
        ids.span_id(seed, task, phase, position, attempt)
        for seed in (RUN_ID, RUN_ID + 1)
        for task in range(100)
        for phase in range(1, 7)
        for position in (0, 1, 2, "a", "b")
        for attempt in (1, 2)
    }
    assert len(seen) == 2 * 100 * 6 * 5 * 2 and 0 not in seen


def test_program_without_scheduler() -> None:
    """Categories that nobody knows are spans named by them, under the enclosing open timespan."""
    events = [
        Event("start", "load", 1, None, 10),
        Event("start", "parse", ("a", 2), None, 20),
        Event("finish", "parse", ("a", 2), ValueError("odd"), 30),
        Event("finish", "load", 1, None, 40),
        Event("finish", "late", 5, None, 60),
        Event("start", "late", 5, None, 50),
        Event("start", "lost", 6, None, 70),
    ]
    parse, load, late, lost = spans_of(events)
    assert (parse.name, load.name, late.name, lost.name) == ("parse", "load", "late", "lost")
    assert parse.parent_id == load.span_id and load.parent_id == late.parent_id == 0
    assert parse.status == ERROR and parse.attributes[semconv.ERROR_TYPE] == "ValueError"
    assert (late.start_ns, late.end_ns) == (50, 60) and late.trace_id != load.trace_id
    assert lost.status == ERROR and lost.attributes[semconv.TASK_STATE] == "abandoned"


def test_a_program_may_use_our_words() -> None:
    """A program's own "compute" with an id of its own is a span of that name, not a task's."""
    spans = spans_of([Event("start", "compute", 1, None, 1), Event("finish", "compute", 1, None, 2)])
    assert [s.name for s in spans] == ["compute"] and spans[0].attributes[semconv.EVENT_CATEGORY] == "compute"


def test_knows_the_schedulers_categories() -> None:
    """The list of categories is the scheduler's."""
    assert frozenset(dagger.EVENT_CATEGORIES) == SCHEDULER_CATEGORIES


def test_log_switched_on_midway() -> None:
    """A task whose submission was not seen has a span from its first event on."""
    events = [*schedule(2, 1, 2), *taken(2, 3), *body(2, 4, 5), *finish(2, 5, 6)]
    spans = spans_of(events)
    task = task_span(spans, 2)
    assert (task.name, task.start_ns, task.end_ns) == ("len", 1, 6)


def test_memory_is_bounded() -> None:
    """After 75,000 tasks no task is held, and only so many are remembered."""
    runs = ReplayRuns()
    mapper = SpanMapper(runs)
    for n in range(75_000):
        for event in [*submit(n, n), *finish(n, n, n)]:
            mapper.feed(event)
    assert not mapper._tasks and not mapper._late and 65_536 <= len(mapper.done) <= 70_000
    assert not any(mapper.active.values())


def test_result_size() -> None:
    """The result's size in bytes, where it is known."""
    chunk = ChunkInfo("h", 4096, bytes)
    spans = spans_of([*submit(2, 0), *schedule(2, 1, 2), *body(2, 3, 4, chunk), *finish(2, 5, 6, chunk)])
    assert task_span(spans, 2).attributes[semconv.RESULT_SIZE] == 4096


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_order_of_events(data: Any) -> None:
    """However events are mixed up, cut off or repeated, nothing raises and no task's span comes twice."""
    error = ValueError("x")
    events = [*whole(2, 0), *move(2, 1, MS, 2 * MS), *whole(3, 5, deps=((1, 2),)), *failed(4, 9, error)]
    events += skipped(5, 10, 4, error, deps=((1, 4),))
    events += [*submit(6, 1), *finish(6, 2, 3, TaskCancelled(), "cancellation")]
    events += [Event("start", "mine", 1, None, 1), Event("finish", "mine", 1, None, 2)]
    mixed = data.draw(st.lists(st.sampled_from(events), max_size=60))
    spans = spans_of(mixed, detail=data.draw(st.sampled_from(["task", "phases", "scheduler"])))
    ours = [(s.attributes[semconv.TASK_ID], s.span_id) for s in spans if s.attributes.get(semconv.TASK_RESULT)]
    assert len(ours) == len(set(ours))
    for span in spans:
        assert span.span_id and span.trace_id and span.start_ns <= span.end_ns
