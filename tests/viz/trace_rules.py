"""The rules of Chrome's trace event format that Perfetto relies on, as assertions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FIELDS = {"name", "ph", "ts", "pid", "tid"}
PHASES = {"X", "M", "C", "s", "f"}


def check_trace(document: Any) -> list[dict[str, Any]]:
    """Assert that a parsed trace follows the format; its events."""
    events: list[dict[str, Any]] = document["traceEvents"]
    for event in events:
        assert event.keys() >= FIELDS, event
        assert event["ph"] in PHASES, event
        assert isinstance(event["name"], str) and event["name"], event
        assert isinstance(event["ts"], (int, float)) and event["ts"] >= 0, event
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int), event
        assert -1 <= event["pid"] < 2**32 and -1 <= event["tid"] < 2**32, event
        if event["ph"] == "C":
            assert event["args"] and all(isinstance(v, (int, float)) for v in event["args"].values()), event
    check_slices(events)
    check_flows(events)
    check_names(events)
    return events


def check_slices(events: Iterable[dict[str, Any]]) -> None:
    """Complete events have a duration, and on one track they nest or follow each other."""
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["cat"], event
            start = round(event["ts"] * 1000)
            tracks.setdefault((event["pid"], event["tid"]), []).append((start, start + round(event["dur"] * 1000)))
    for track, slices in tracks.items():
        ends: list[int] = []
        for start, end in sorted(slices, key=lambda s: (s[0], -s[1])):
            while ends and ends[-1] <= start:
                ends.pop()
            assert not ends or end <= ends[-1], (track, start, end, ends)
            ends.append(end)


def check_flows(events: list[dict[str, Any]]) -> None:
    """Arrows come in pairs matched by (cat, id), never end before they begin, and touch slices at both ends."""
    ends: dict[tuple[str, Any], dict[str, dict[str, Any]]] = {}
    for event in events:
        if event["ph"] in "sf":
            pair = ends.setdefault((event["cat"], event["id"]), {})
            assert event["ph"] not in pair, event
            pair[event["ph"]] = event
    slices = [e for e in events if e["ph"] == "X"]
    for pair in ends.values():
        assert pair.keys() == {"s", "f"}
        assert pair["s"]["ts"] <= pair["f"]["ts"]
        assert pair["f"]["bp"] == "e"
        for event in pair.values():
            assert any(_touches(s, event) for s in slices), event


def _touches(slice_: dict[str, Any], event: dict[str, Any]) -> bool:
    if (slice_["pid"], slice_["tid"]) != (event["pid"], event["tid"]):
        return False
    return bool(slice_["ts"] <= event["ts"] <= slice_["ts"] + slice_["dur"])


def check_names(events: Iterable[dict[str, Any]]) -> None:
    """Every process and every track with slices has a name."""
    named = {(e["name"], e["pid"], e["tid"] if e["name"] == "thread_name" else 0) for e in events if e["ph"] == "M"}
    for event in events:
        if event["ph"] == "X":
            assert ("thread_name", event["pid"], event["tid"]) in named, event
            assert event["pid"] == -1 or ("process_name", event["pid"], 0) in named, event
