"""Spans on disk: what is damaged or gone is counted and costs itself; what a killed program left is sent on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otel_timespan.otel.export import spill
from otel_timespan.otel.export.accounts import PipelineStats
from otel_timespan.otel.export.pipeline import SpanPipeline
from otel_timespan.otel.export.readable import readable_from_request
from otel_timespan.otel.export.transport import ACCEPTED, RETRY, Outcome
from tests.backends import ROOT
from tests.otel.test_pipeline import DEADLINE_S, RESOURCE, SCOPE, Collector, _size, _spans

COUNT = 400


def _full(place: Path, collector: Collector) -> SpanPipeline:
    """A pipeline with most of `COUNT` spans on disk; `collector` is held up."""
    collector.gate.clear()
    options: dict[str, Any] = {"resource": RESOURCE, "scope": SCOPE, "linger_s": 0.0, "on_full": "spill"}
    pipeline = SpanPipeline(collector, max_bytes=40 * _size(), spill_dir=str(place), **options)
    for first in range(1, COUNT, 10):
        pipeline.put(_spans(first, first + 9))
    assert pipeline.stats() == PipelineStats(COUNT, 0, COUNT, {})
    return pipeline


def _files(place: Path) -> list[Path]:
    return sorted(place.glob("otel-timespan-*/0*"))


def _release(pipeline: SpanPipeline, collector: Collector) -> PipelineStats:
    collector.gate.set()
    assert pipeline.flush(DEADLINE_S)
    stats = pipeline.stats()
    assert len(collector.received) == len(set(collector.received)) == stats.exported
    assert stats.pending == 0
    pipeline.close()
    return stats


def test_damage_costs_the_damaged(tmp_path: Path) -> None:
    """Bytes that changed on disk cost the spans that they are of, under a reason of their own."""
    collector = Collector()
    pipeline = _full(tmp_path, collector)
    file = _files(tmp_path)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 10] = bytes(10)
    file.write_bytes(data)
    stats = _release(pipeline, collector)
    assert 1 <= stats.dropped["spill_failed"] <= 2
    assert stats.exported == COUNT - stats.dropped["spill_failed"]


@pytest.mark.parametrize("what", ["appended", "cut", "emptied", "deleted", "junk"])
def test_files_that_changed(tmp_path: Path, what: str) -> None:
    """Nothing is sent twice, or that is no span of ours; the account holds."""
    collector = Collector()
    pipeline = _full(tmp_path, collector)
    file = _files(tmp_path)[0]
    data = file.read_bytes()
    if what == "deleted":
        file.unlink()
    else:
        file.write_bytes({"appended": data + data, "cut": data[:-5], "emptied": b"", "junk": os.urandom(9999)}[what])
    stats = _release(pipeline, collector)
    assert stats.exported + stats.dropped.get("spill_failed", 0) == COUNT
    assert (stats.dropped == {}) is (what == "appended")
    if what == "cut":
        assert stats.dropped == {"spill_failed": 1}


def test_a_folder_that_vanishes_is_made_anew(tmp_path: Path) -> None:
    """What was in it is lost and counted, what comes later is kept; also where the place for it is gone."""
    collector = Collector()
    place = tmp_path / "place"
    pipeline = _full(place, collector)
    shutil.rmtree(place)
    pipeline.put(_spans(COUNT + 1, COUNT + 100))
    assert _files(place)
    stats = _release(pipeline, collector)
    assert set(range(COUNT + 1, COUNT + 101)) <= set(collector.received)
    assert stats.exported + stats.dropped["spill_failed"] == COUNT + 100
    assert not list(place.iterdir())


def test_a_write_that_stops_short_costs_what_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full in the middle of a write keeps whole spans; the others are dropped, and nothing is twice."""
    collector = Collector()
    pipeline = _full(tmp_path, collector)
    write, room = os.write, [1000]

    def short(fd: int, data: Any) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = write(fd, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(spill.os, "write", short)
    pipeline.put(_spans(COUNT + 1, COUNT + 50))
    monkeypatch.undo()
    stats = pipeline.stats()
    assert 0 < stats.dropped["queue_full"] < 50
    assert stats.pending + stats.dropped["queue_full"] == COUNT + 50
    pipeline.put(_spans(COUNT + 51, COUNT + 60))
    assert _release(pipeline, collector).dropped == stats.dropped
    assert set(range(COUNT + 51, COUNT + 61)) <= set(collector.received)


_KILLED = """
import os, signal, sys
from tests.otel.test_pipeline import *
from tests.otel.test_spill import _full
from pathlib import Path
RESOURCE._attributes = {"service.name": "killed"}
pipeline = _full(Path(sys.argv[1]), Collector())
if len(sys.argv) > 2:
    if os.fork() == 0:
        os._exit(0)
    os.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", [[], ["fork"]], ids=["killed", "killed after a fork"])
def test_what_a_killed_program_left_is_sent(tmp_path: Path, how: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """The next program with the same settings finds it, says so, sends it as the other's, and leaves no file."""
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), *how], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert _files(tmp_path)
    bodies: list[bytes] = []
    collector = Collector()
    collector.send = lambda body, *_: bodies.append(body) or Outcome(ACCEPTED)  # type: ignore
    options: dict[str, Any] = {"resource": RESOURCE, "scope": SCOPE, "spill_dir": str(tmp_path)}
    elsewhere = Collector()
    elsewhere.target = "another"
    SpanPipeline(elsewhere, on_full="spill", **options).close()
    assert _files(tmp_path)
    pipeline = SpanPipeline(collector, on_full="spill", **options)
    assert "earlier program left" in caplog.text
    assert pipeline.flush(DEADLINE_S)
    spans = [span for body in bodies for span in readable_from_request(body)]
    ids = sorted(span.context.span_id for span in spans if span.context is not None)
    assert ids[-1] == COUNT and len(set(ids)) == len(ids) > COUNT // 2
    assert {span.resource.attributes["service.name"] for span in spans} == {"killed"}
    assert pipeline.stats() == PipelineStats(len(ids), len(ids), 0, {})
    pipeline.close()
    assert not list(tmp_path.iterdir())


def test_what_a_living_program_has_is_left_alone(tmp_path: Path) -> None:
    """A second pipeline with the same settings takes nothing of the first one's."""
    collector = Collector()
    pipeline = _full(tmp_path, collector)
    second = SpanPipeline(
        Collector(lambda ids: Outcome(RETRY)), resource=RESOURCE, scope=SCOPE, on_full="spill", spill_dir=str(tmp_path)
    )
    assert second.stats().recorded == 0
    second.close()
    assert _release(pipeline, collector).exported == COUNT
