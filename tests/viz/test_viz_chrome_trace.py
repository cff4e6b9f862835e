"""Chrome traces: the format's rules, tracks, arrows, counters, bounds and files."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from otel_timespan.errors import InvalidOptionError
from otel_timespan.viz import chrome_trace, show_logs, write_chrome_trace
from tests.viz.trace_rules import check_trace
from tests.viz.viz_logs import Proc, Run, count, diamond, layered, load


def parsed(logs: Any, **options: Any) -> list[dict[str, Any]]:
    """The events of a trace that follows the rules."""
    return check_trace(json.loads(str(chrome_trace(logs, **options))))


def computes(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bodies."""
    return [e for e in events if e["ph"] == "X" and e["cat"] == "compute"]


@pytest.mark.parametrize("kind", ["streams", "raw", "timespans"])
@pytest.mark.parametrize("detail", ["tasks", "phases", "scheduler"])
def test_every_log_at_every_detail_follows_the_format(kind: str, detail: str) -> None:
    """One complete event a task and one pair of arrow ends a dependency, whatever the log."""
    run = layered(6, 7, [500, 20_000, 3])
    events = parsed(getattr(run, kind)(), detail=detail)
    assert sorted(e["args"]["task_id"] for e in computes(events)) == list(range(1, 43))
    assert Counter(e["ph"] for e in events)["s"] == 5 * 7 * 2


def test_a_body_says_when_where_and_what() -> None:
    """Microseconds, worker, thread, name; the rest is among its arguments."""
    events = parsed(diamond().streams())
    body = next(e for e in computes(events) if e["args"]["task_id"] == 3)
    assert (body["name"], body["ts"], body["dur"], body["pid"], body["tid"]) == ("count", 12.2, 40.0, 1, 102)
    assert body["args"]["dependencies"] == [1] and body["args"]["wait_queue_us"] == 0.15
    names = {e["args"]["name"] for e in events if e["name"] in ("thread_name", "process_name")}
    assert names == {"worker 1", "worker-1", "worker-2", "scheduler"}


def test_an_arrow_leads_from_each_dependency_to_its_dependent() -> None:
    """It begins inside the upstream's body and ends where the dependent's begins."""
    events = parsed(diamond().raw())
    at = {e["args"]["task_id"]: e for e in computes(events)}
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    found = set()
    for number, start in starts.items():
        source = next(
            t for t, e in at.items() if e["tid"] == start["tid"] and 0 < e["ts"] + e["dur"] - start["ts"] <= 1
        )
        target = next(t for t, e in at.items() if (e["tid"], e["ts"]) == (ends[number]["tid"], ends[number]["ts"]))
        found.add((source, target))
    assert found == {(1, 2), (1, 3), (2, 4), (3, 4)}


def test_an_arrow_never_ends_before_it_begins_even_where_clocks_disagree() -> None:
    """Workers on two hosts: the dependent seems to begin before its dependency ended."""
    run = Run()
    run.task(1, 0, 10, 5_000, 9_000)
    run.task(2, 0, 10, 2_000, 3_000, deps=[1], proc=Proc(2, 1), thread=(7, "other"))
    events = json.loads(str(chrome_trace(run.raw())))["traceEvents"]
    start, end = (next(e for e in events if e["ph"] == ph) for ph in "sf")
    assert start["ts"] <= end["ts"]


def test_tasks_that_never_computed_are_left_out() -> None:
    """Neither a bar nor an arrow; the others are there."""
    run = diamond()
    run.submit(5, 2_000, deps=[4])
    run.finish(5, 70_000, 70_010, ValueError("x"), "skip")
    events = parsed(run.raw())
    assert len(computes(events)) == 4 and Counter(e["ph"] for e in events)["s"] == 4


def test_a_body_that_still_runs_is_drawn_as_unfinished() -> None:
    """It lasts until the end of the log."""
    run = Run()
    run.begin(1, 30, 40, Proc(1, 1), (101, "t"))
    run.submit(2, 700)
    (body,) = computes(parsed(run.raw()))
    assert body["args"]["unfinished"] is True and body["dur"] == 0.661


def test_only_the_last_attempt_is_the_task_s_compute() -> None:
    """An earlier attempt is drawn with a category of its own, so that there is one compute a task."""
    run, proc = Run(), Proc(1, 1)
    run.task(1, 0, 10, 100, 200)
    run.begin(1, 300, 310, proc, (101, "t"))
    run.end(1, 350, proc, (101, "t"))
    events = parsed(run.raw())
    assert [e["ts"] for e in computes(events)] == [0.31]
    assert [e["ts"] for e in events if e.get("cat") == "attempt"] == [0.1]


def test_bodies_that_overlap_in_one_thread_s_place_get_lanes() -> None:
    """Two bodies took turns in a slot: the second goes to a second lane, named after the first."""
    run, proc = Run(), Proc(1, 3)
    for task_id, start, end in ((1, 100, 500), (2, 300, 900)):
        run.begin(task_id, start, start, proc, None)
        run.end(task_id, end, proc, None)
    events = parsed(run.raw())
    assert len({e["tid"] for e in computes(events)}) == 2
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert names == ["W: 1, TID: 3", "W: 1, TID: 3 (2)"]


def test_thread_ids_that_do_not_fit_are_replaced_by_small_ones() -> None:
    """Perfetto reads 32 bits; the real id stays among the arguments."""
    run = Run()
    for task_id, thread in ((1, 139_637_976_123_456), (2, 139_637_976_654_321), (3, 2)):
        run.task(task_id, 0, 10, 100 * task_id, 100 * task_id + 50, thread=(thread, f"t{thread}"))
    bodies = computes(parsed(run.raw()))
    assert len({e["tid"] for e in bodies}) == 3
    assert {e["args"]["thread_id"] for e in bodies} == {139_637_976_123_456, 139_637_976_654_321, 2}


def test_a_processor_without_a_thread_is_unknown_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Its bodies are drawn under process and thread -1, named so."""
    run = Run()
    from otel_timespan.timespans.model import EventId

    run.span("compute", EventId(thunk_id=1, processor="gpu 0"), 10, 20)
    events = parsed(run.raw())
    assert [(e["pid"], e["tid"]) for e in computes(events)] == [(-1, -1)]
    assert [e["args"]["name"] for e in events if e["pid"] == -1 and e["ph"] == "M" and "name" in e["args"]] == [
        "Unknown",
        "Unknown",
    ]
    assert "gpu 0" in caplog.text


def test_workers_are_processes() -> None:
    """What another worker ran is in that worker's process."""
    run = Run()
    run.task(1, 0, 10, 100, 200)
    run.task(2, 0, 10, 300, 400, deps=[1], proc=Proc(2, 1), thread=(9, "t"))
    events = parsed(run.streams())
    assert {e["args"]["task_id"]: e["pid"] for e in computes(events)} == {1: 1, 2: 2}
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"worker 1", "worker 2"}


def test_streams_become_counters() -> None:
    """Bytes, saturations and any other stream of numbers; changes only, vanished series are 0."""
    proc = Proc(1, 1)
    sampled = {
        "bytes": lambda e: e.timestamp // 10_000 * 80,
        "wsat": lambda e: 1,
        "psat": lambda e: [(proc, 1)] if 2_000 < e.timestamp < 40_000 else [],
        "esat": lambda e: {e.category: 1},
        "temperature": lambda e: 20.5,
        "gc_stats": lambda e: 5,
    }
    counters = [e for e in parsed(diamond().streams(**sampled)) if e["ph"] == "C"]
    by_name: dict[str, list[Any]] = {}
    for counter in counters:
        by_name.setdefault(counter["name"], []).append(counter["args"])
    assert set(by_name) == {
        "bytes allocated",
        "worker saturation",
        "processor saturation",
        "event saturation",
        "temperature",
        "tasks",
    }
    assert [args["value"] for args in by_name["bytes allocated"]][-1] == 480
    assert by_name["worker saturation"] == [{"value": 1}]
    assert by_name["processor saturation"] == [{"W: 1, TID: 1": 1}, {"W: 1, TID: 1": 0}]


def test_the_tasks_counter_says_how_many_wait_and_run() -> None:
    """It follows from the tasks themselves, so that every kind of log has it."""
    counters = [e["args"] for e in parsed(diamond().timespans()) if e["ph"] == "C"]
    assert max(args["running"] for args in counters) == 2
    assert max(args["waiting"] for args in counters) == 3
    assert counters[-1] == {"waiting": 0, "queued": 0, "running": 0}


def test_real_transfers_have_a_track_and_plain_values_do_not() -> None:
    """A moved chunk is drawn with its size, source and destination."""
    from otel_timespan.timespans.model import ChunkInfo, EventId, Timeline

    run = diamond()
    data = ChunkInfo(1, 4_096, list)
    done = Timeline(f=load, data=data, kind="chunk", source=1, destination=2)
    run.span("move", EventId(thunk_id=4, position=1, processor=Proc(2, 1)), 100, 900, done, worker=2)
    moved = [e for e in parsed(run.raw()) if e.get("cat") == "move" and e["pid"] == 2]
    assert [e["args"]["nbytes"] for e in moved] == [4_096]
    assert moved[0]["args"]["destination"] == 2


def test_the_bound_leaves_out_whole_layers_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The least important first; the bodies stay."""
    trace = chrome_trace(diamond().raw(), max_events=15)
    assert len(computes(trace.events)) == 4 and Counter(e["ph"] for e in trace.events)["s"] == 4
    assert set(trace.left_out) == {"counters", "phases"}
    assert json.loads(str(trace))["otherData"]["left_out"] == trace.left_out
    assert "leaves out" in caplog.text


def test_a_trace_is_the_same_each_time() -> None:
    """The same log gives the same text."""
    assert show_logs(layered(4, 5).streams(), "chrome_trace") == show_logs(layered(4, 5).streams(), "chrome_trace")


def test_an_empty_log_is_an_empty_trace() -> None:
    """A valid document without events."""
    assert json.loads(str(chrome_trace({})))["traceEvents"] == []


def test_a_file_is_written(tmp_path: Path) -> None:
    """What is in it is what `show_logs` returns."""
    write_chrome_trace(diamond().streams(), tmp_path / "trace.json", detail="tasks")
    written = (tmp_path / "trace.json").read_text()
    assert written == show_logs(diamond().streams(), "chrome_trace", detail="tasks")


def test_a_path_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """The error names the path: a missing folder, a folder instead of a file, no permission."""
    for path in (tmp_path / "nowhere" / "trace.json", tmp_path):
        with pytest.raises(InvalidOptionError, match=str(path)):
            write_chrome_trace(diamond().streams(), path)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        return  # the superuser may write everywhere
    with pytest.raises(InvalidOptionError, match="Permission denied"):
        write_chrome_trace(diamond().streams(), locked / "trace.json")


@pytest.mark.parametrize("options", [{"detail": "all"}, {"max_events": 0}, {"max_events": "9"}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    """With the option and what is allowed."""
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        chrome_trace(diamond().streams(), **options)


def test_names_and_errors_are_escaped() -> None:
    """A task's label may hold anything; a failure shows its error."""
    run = Run()
    run.submit(1, 0, count, name='"quoted"\n\u2028 <b>')
    run.begin(1, 5, 10, Proc(1, 1), (101, "t"))
    run.end(1, 20, Proc(1, 1), (101, "t"), result=ValueError("bad\nvalue"))
    run.finish(1, 20, 25, ValueError("bad\nvalue"), "failure")
    (body,) = computes(parsed(run.raw()))
    assert body["name"] == r'"quoted"\n\u2028 <b>'
    assert (body["args"]["error"], body["cname"]) == ("ValueError: bad", "terrible")


def test_a_trace_shows_itself_in_a_notebook() -> None:
    """As a link to download it."""
    assert "ui.perfetto.dev" in chrome_trace(diamond().streams())._repr_html_()
