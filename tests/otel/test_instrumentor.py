"""`opentelemetry-instrument python program.py` turns the log on, with no code change."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_timespan import dagger as D
from otel_timespan import timespans as T
from otel_timespan.integrations.instrumentor import OTelTimespanInstrumentor
from otel_timespan.otel import OTelLog
from tests.acceptance_otel.acc_otel_support import Ear
from tests.backends import ROOT

PROGRAM = """
import otel_timespan as ts
from opentelemetry import trace
with trace.get_tracer("mine").start_as_current_span("mine"):
    print(ts.fetch(ts.spawn(pow, 2, 5)))
"""


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A listening collector."""
    listening = Ear()
    yield listening
    listening.close()


@pytest.fixture
def instrument(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program under the command, with the package's entry point as if it were installed."""
    command = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("opentelemetry-distro is not installed")
    entry = re.search(r"^otel_timespan = \"(.*)\"$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert entry is not None
    info = tmp_path / "as_installed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: as-installed\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[opentelemetry_instrumentor]\nas_installed = {entry[1]}\n")

    def run(program: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        path = os.pathsep.join([str(ROOT), str(tmp_path)])
        done = subprocess.run(
            [str(command), sys.executable, "-c", program],
            env={**clean, "PYTHONPATH": path, **env}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_a_program_is_logged_without_a_change(
    instrument: Callable[..., subprocess.CompletedProcess[str]], ear: Ear
) -> None:
    """Tasks arrive as spans under the user's own, metrics beside them, all of the service that the variable names."""
    done = instrument(PROGRAM, OTEL_SERVICE_NAME="untouched", **ear.env())
    assert done.stdout == "32\n"
    spans = {span.name: span for span in ear.spans()}
    assert spans["pow"].parent_span_id == spans["mine"].span_id
    assert spans["compute"].parent_span_id == spans["pow"].span_id
    count = ear.metrics()["timespan.task.count"].sum
    assert sum(point.as_int for point in count.data_points) == 1
    (service,) = {
        a.value.string_value for r in ear.resource_spans() for a in r.resource.attributes if a.key == "service.name"
    }
    assert service == "untouched"


WITH_WORKER = """
import os
import otel_timespan as ts
from otel_timespan import dagger as D
from opentelemetry import trace

def body():
    with trace.get_tracer("mine").start_as_current_span("made there"):
        return os.getpid()

(worker,) = D.cluster.add_workers(1)
with trace.get_tracer("mine").start_as_current_span("mine"):
    print(ts.fetch(ts.spawn.opts(scope=D.scope(worker=worker))(body)) != os.getpid())
D.cluster.remove_workers([worker])
"""


def test_worker_processes_are_instrumented_too(
    instrument: Callable[..., subprocess.CompletedProcess[str]], ear: Ear
) -> None:
    """They have a provider of their own, which sends what bodies make there, under the spans of these bodies, once."""
    assert instrument(WITH_WORKER, OTEL_SERVICE_NAME="untouched", **ear.env()).stdout == "True\n"
    spans = {span.name: span for span in ear.spans()}
    assert len(ear.spans()) == len(spans)
    assert spans["made there"].parent_span_id == spans["compute"].span_id
    assert {span.trace_id for span in spans.values()} == {spans["mine"].trace_id}


def test_a_program_that_chooses_a_sink_has_it(
    instrument: Callable[..., subprocess.CompletedProcess[str]], ear: Ear
) -> None:
    """The program's own choice, made later, wins: nothing of its tasks is sent."""
    program = PROGRAM.replace("from opentelemetry", "ts.eager_context().log_sink = ts.NoOpLog()\nfrom opentelemetry")
    assert instrument(program, **ear.env()).stdout == "32\n"
    assert {span.name for span in ear.spans()} == {"mine"}


def test_on_and_off_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It takes the place of no other sink, starts once, and what keeps it from starting is logged, not raised."""
    instrumentor, context = OTelTimespanInstrumentor(), D.eager_context()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    before = context.log_sink
    try:
        context.log_sink = chosen = []
        instrumentor.instrument()
        assert context.log_sink is chosen
        context.log_sink = T.NoOpLog()
        instrumentor.instrument(skip_dep_check=True)
        log = context.log_sink
        assert type(log) is OTelLog
        OTelTimespanInstrumentor().instrument()
        assert context.log_sink is log
        instrumentor.uninstrument()
        assert type(context.log_sink) is T.NoOpLog
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "soon")
        instrumentor.instrument()
        assert type(context.log_sink) is T.NoOpLog
        assert "OTEL_METRIC_EXPORT_INTERVAL" in caplog.text
    finally:
        context.log_sink = before
