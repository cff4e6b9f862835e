"""The command line, as its user has it: in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from otel_timespan import session
from otel_timespan.errors import InvalidOptionError

ROOT = Path(__file__).resolve().parents[1]
NOBODY = "http://127.0.0.1:1"
"""An address at which nobody listens."""


def cli(*arguments: object, cwd: Path | None = None, python: tuple[str, ...] = (), **environ: str):
    """Run `python -m otel_timespan ARGUMENTS`; without a collector unless the environment names one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env = {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY, **environ}
    command = [sys.executable, *(python or ("-m", "otel_timespan")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd or ROOT, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture
def script(tmp_path):
    """Writes a script and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write


# ---- the frame ---------------------------------------------------------------------------------


def test_help_lists_the_commands():
    """Every command that exists is listed, with a line about it."""
    done = cli("--help")
    assert done.returncode == 0
    assert set(re.findall(r"^  (\w+)  +\S", done.stdout, re.M)) == {"bench", "demo", "run", "stack", "version"}


def test_version_names_package_and_python():
    """`version` prints the versions that a bug report needs."""
    done = cli("version")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()][:2] == ["otel-timespan", "opentelemetry-sdk"]


def test_unknown_command_is_wrong_usage():
    """An unknown command ends with 2 and says what it was."""
    done = cli("nothing")
    assert done.returncode == 2 and "nothing" in done.stderr


@pytest.mark.parametrize("library", ["click", "rich"])
def test_a_missing_library_is_one_line_with_the_extra(library):
    """Without click or rich the command says in one line what to install."""
    code = f"import sys; sys.modules[{library!r}] = None\nfrom otel_timespan.cli import main\nmain(['version'])"
    done = cli(python=("-c", code))
    assert done.returncode == 1
    assert done.stderr.strip() == f"otel-timespan: {library} is not installed: pip install 'otel-timespan[cli]'"


def test_bench_hands_its_arguments_on():
    """`bench` is `python -m bench` with the same arguments and exit code."""
    assert "--quick" in cli("bench", "--help").stdout
    assert cli("bench", "--rounds", "0").returncode == 2


# ---- run ---------------------------------------------------------------------------------------

WORK = """
import sys
import otel_timespan as ts

def double(x):
    return 2 * x

print(__name__, sys.argv[1:], ts.fetch(ts.spawn(double, ts.spawn(double, 1))))
"""


def test_run_leaves_the_output_alone_and_adds_a_summary(script):
    """The script runs as the main program with its arguments; the tables go to standard error."""
    done = cli("run", script(WORK), "--trace", "a b", "-x")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "__main__ ['--trace', 'a b', '-x'] 4\n"
    assert re.search(r"^compute +2 ", done.stderr, re.M)
    assert "double" in done.stderr
    assert f"not exported: no collector at {NOBODY}" in done.stderr


def test_run_writes_the_trace_where_it_was_asked_to(script, tmp_path):
    """The trace goes to the path as the caller meant it, whatever folder the script ends up in."""
    path = script(f"import os\nos.chdir('/')\n{WORK}")
    done = cli("run", "--trace", "trace.json", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "compute" and event["ph"] == "X" for event in events) == 2


@pytest.mark.parametrize(
    "ending, code, text",
    [
        ("", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('a reason')", 1, "a reason"),
        ("raise LookupError('gone')", 1, "LookupError: gone"),
    ],
)
def test_run_keeps_the_exit_code(script, ending, code, text):
    """However the script ends, the command ends like it, and the summary is still there."""
    done = cli("run", script(WORK + ending + "\n"))
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert re.search(r"^compute +2 ", done.stderr, re.M)


@pytest.mark.parametrize("text, frames", [("raise LookupError('gone')", 1), ("def f(:", 0)])
def test_run_shows_the_traceback_of_the_script_alone(script, text, frames):
    """An uncaught exception looks as under `python script.py`: no frame of ours, nor of runpy."""
    path = script(text)
    done = cli("run", path)
    assert done.returncode == 1
    shown = done.stderr.partition("nothing was recorded")[0]
    assert shown == cli(python=(str(path),)).stderr
    assert shown.count("in <module>") == frames


FAILS = """
import json
import threading
import otel_timespan as ts

def load(n):
    if n == 3:
        return json.loads("{")
    return n

def merge(*n):
    return sum(n)

def held():
    threading.Event().wait(30)

ts.spawn(held)
loaded = [ts.spawn(load, n) for n in range(6)]
whole = ts.spawn(merge, *loaded)
"""


@pytest.mark.parametrize("ending", ["ts.fetch(whole)", "ts.wait(whole)", "ts.wait(whole); raise SystemExit(3)"])
def test_run_tells_the_first_failure_before_anything_else(script, ending):
    """Function, task, type, message and the user's own line; then what else failed, was skipped, was dropped."""
    path = script(FAILS + ending)
    done = cli("run", path)
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"failed: load \(task \d+\) raised JSONDecodeError: Expecting property name .*", lines[0])
    number = 1 + FAILS.splitlines().index('        return json.loads("{")')
    assert lines[1:3] == [f'  File "{path}", line {number}, in load', '    return json.loads("{")']
    assert re.match(r"1 of 8 tasks failed, 1 were skipped because of that, \d were cancelled, or dropped", lines[3])
    assert done.stderr.count("failed: ") == 1


def test_run_tells_nothing_of_failures_where_there_are_none(script):
    """Tasks that the program dropped are none; how many these are is said as without the command."""
    dropping = "ts.eager_context()\nheld = [ts.spawn(threading.Event().wait, 20) for _ in range(9)]\n"
    done = cli("run", script("import threading\nimport otel_timespan as ts\n" + dropping))
    assert done.returncode == 0 and "failed" not in done.stderr
    assert re.match(r"the program ends, and \d+ of the tasks it spawned have not begun", done.stderr)


def test_run_finds_modules_beside_the_script(script, tmp_path):
    """The script's folder is the first place that it imports from, as with `python script.py`."""
    (tmp_path / "beside.py").write_text("value = 'found'\n")
    done = cli("run", script("import beside\nprint(beside.value)\n"))
    assert done.stdout == "found\n"
    assert "nothing was recorded" in done.stderr


def test_run_with_workers_uses_processes(script, tmp_path):
    """The script's functions and the modules beside it are there, too; the summary says what each worker did."""
    (tmp_path / "beside.py").write_text("import os\ndef pid(n):\n    return os.getpid()\n")
    text = (
        "import os, sys, beside\nfrom otel_timespan import dagger as D\n"
        "def mine(n):\n    return beside.pid(n)\n"
        "found = set()\n"
        "for f in (mine, beside.pid):\n"
        "    tasks = [D.spawn.opts(scope=D.scope(worker=w))(f, w) for w in D.procs()]\n"
        "    found.update(map(D.fetch, tasks))\n"
        "print(D.workers(), len(found), os.getpid() in found, sys.argv[1:])\n"
        "sys.exit(3)\n"
    )
    done = cli("run", "--workers", 2, script(text), "--workers", 9)
    assert (done.returncode, done.stdout) == (3, "[2, 3] 3 True ['--workers', '9']\n"), done.stderr
    rows = re.findall(r"^(\d)( \(this process\))? +(\d+) ", done.stderr, re.M)
    assert [(worker, bool(this)) for worker, this, _ in rows] == [("1", True), ("2", False), ("3", False)]


@pytest.mark.parametrize("number", ["-1", "2.5", "two"])
def test_run_refuses_a_wrong_number_of_workers(script, number):
    """Before the script runs."""
    done = cli("run", f"--workers={number}", script("print('ran')"))
    assert done.returncode == 2 and "--workers" in done.stderr and "ran" not in done.stdout


def test_run_says_when_the_script_has_a_log_of_its_own(script):
    """A script that sets a sink keeps it; the summary then says why it is empty."""
    done = cli(
        "run", script(f"import otel_timespan as ts\nts.enable_logging()\n{WORK}\nassert ts.fetch_logs()[1]['core']\n")
    )
    assert done.returncode == 0, done.stderr
    assert "a log sink of its own" in done.stderr


def test_run_needs_a_script(tmp_path):
    """A script that is missing, or a folder, is said to be so."""
    done = cli("run", tmp_path / "nothing.py")
    assert done.returncode == 1 and f"there is no script {tmp_path / 'nothing.py'}" in done.stderr
    assert "it is a folder" in cli("run", tmp_path).stderr


def test_run_checks_the_trace_file_before_the_script(script, tmp_path):
    """A trace that can't be written is an error before anything ran."""
    done = cli("run", "--trace", tmp_path / "no" / "trace.json", script("print('ran')"))
    assert done.returncode == 1
    assert "can't write the trace" in done.stderr and "--trace" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


# ---- demo --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_demo_reports_and_writes_a_trace(tmp_path, workers):
    """The demo on forty real modules: report, tables, path, trace file, and one line about the collector."""
    done = cli("demo", "--limit", "40", "--workers", workers, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "40 modules" in done.stdout
    for title in (
        "Hardest functions",
        "Largest modules",
        "Most imported",
        "Timespans",
        "Where the time went",
        "Slowest path",
    ):
        assert title in done.stdout
    assert re.search(r"^compute +126 ", done.stdout, re.M), done.stdout  # 3 a module, 5 leaves, 1 root
    rows = re.findall(r"^(\d)(?: \(this process\))? +\d+ +([\d,]+) ", done.stdout, re.M)
    tasks = [int(number) for _, number in rows]
    if workers:  # each has half of the modules, and perhaps some of the rest
        assert len(tasks) == 3 and sum(tasks) == 126 and min(tasks[1:]) >= 40, done.stdout
    else:
        assert not tasks, done.stdout
    assert done.stdout.count("not exported: no collector at") == 1
    events = json.loads((tmp_path / "otel-timespan-demo-trace.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "compute" and event["ph"] == "X" for event in events) == 126


def test_demo_lists_what_failed(tmp_path):
    """A module that can't be parsed is in the report with its error; the command succeeds."""
    (tmp_path / "good.py").write_text("def f(): pass\n")
    (tmp_path / "bad.py").write_text("def f(:\n")
    done = cli("demo", "--source", tmp_path, "--trace", tmp_path / "trace.json")
    assert done.returncode == 0, done.stderr
    assert "1 modules" in done.stdout
    assert re.search(r"^bad +parse +SyntaxError", done.stdout, re.M)


def test_demo_checks_its_options_before_it_begins(tmp_path):
    """Wrong options are one line each."""
    for arguments, text in (
        (("--limit", "0"), "at least 1"),
        (("--source", tmp_path / "nothing"), "is no folder"),
        (("--trace", tmp_path), "can't write the trace"),
    ):
        done = cli("demo", *arguments, cwd=tmp_path)
        assert done.returncode == 1 and text in done.stderr
        assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_wrong_endpoint_is_named(tmp_path):
    """A variable with a value that is no address is named, with what it should look like."""
    done = cli("demo", "--trace", tmp_path / "t.json", OTEL_EXPORTER_OTLP_ENDPOINT="http://host:port")
    assert done.returncode == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in done.stderr and "Traceback" not in done.stderr


def test_demo_exports_to_the_collector(stack, tmp_path):
    """With a collector the link leads to a trace with all spans that were recorded, the root among them."""
    from tests.backends import eventually

    done = cli(
        "demo", "--limit", "20", "--trace", tmp_path / "t.json",
        OTEL_EXPORTER_OTLP_ENDPOINT=stack.otlp_grpc, JAEGER_UI=stack.jaeger,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    exported, recorded, trace_id = re.search(
        rf"exported ([\d,]+) of ([\d,]+) spans: {stack.jaeger}/trace/(\w+)", done.stdout.replace("\n", " ")
    ).groups()
    assert exported == recorded

    def spans() -> set[str]:
        found = stack.trace(trace_id) or {"spans": []}
        return {span["spanID"] for span in found["spans"]}

    eventually(lambda: len(spans()) == int(recorded.replace(",", "")))


def test_run_exports_what_failed_and_nothing_else_in_red(stack, script):
    """In Jaeger the root names the first failure and refers to its span; only that and its dependent are errors."""
    from tests.backends import eventually

    to_stack = {"OTEL_EXPORTER_OTLP_ENDPOINT": stack.otlp_grpc, "JAEGER_UI": stack.jaeger}
    done = cli("run", script(FAILS + "ts.fetch(whole)"), **to_stack)
    assert done.returncode == 1
    recorded, trace_id = re.search(
        rf"exported [\d,]+ of ([\d,]+) spans: {stack.jaeger}/trace/(\w+)", done.stderr.replace("\n", " ")
    ).groups()
    found = eventually(
        lambda: (
            trace
            if len((trace := stack.trace(trace_id) or {"spans": []})["spans"]) == int(recorded.replace(",", ""))
            else None
        )
    )
    tags = {span["spanID"]: {tag["key"]: tag["value"] for tag in span["tags"]} for span in found["spans"]}
    names = {span["spanID"]: span["operationName"] for span in found["spans"]}
    (root,) = (span for span in found["spans"] if names[span["spanID"]].startswith("dag "))
    assert sorted(names[span] for span in tags if tags[span].get("error")) == [
        "compute", f"dag {script('').name}", "load", "merge",
    ]  # fmt: skip
    of_root = tags[root["spanID"]]
    assert of_root["error.type"] == "json.decoder.JSONDecodeError"
    assert of_root["timespan.dag.failure.message"].startswith("Expecting property name")
    (failed,) = (span for span in tags if names[span] == "load" and tags[span].get("error"))
    assert of_root["timespan.dag.failure.task"] == tags[failed]["timespan.task.id"]
    assert of_root["timespan.dag.failure.span_id"] == failed


# ---- stack check -------------------------------------------------------------------------------


def test_stack_check_says_what_is_missing():
    """Without back ends each of them is a failed line with the cure, and the exit code is 1."""
    done = cli("stack", "check", JAEGER_UI=NOBODY, PROMETHEUS_URL=NOBODY)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].split() for line in lines] == [
        ["failed", "collector"],
        ["failed", "Jaeger"],
        ["failed", "Prometheus"],
    ]
    assert "docker compose" in lines[0] and "JAEGER_UI" in lines[1] and "PROMETHEUS_URL" in lines[2]


def test_stack_check_passes_on_the_real_stack(stack):
    """With the real back ends a test span and a test metric arrive."""
    done = cli(
        "stack", "check", "--timeout", "60",
        OTEL_EXPORTER_OTLP_ENDPOINT=stack.otlp_grpc, JAEGER_UI=stack.jaeger, PROMETHEUS_URL=stack.prometheus,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line.split(":")[0] for line in done.stdout.splitlines()]
    expected = ["collector", "Jaeger", "Prometheus", "delivery", "test span", "test metric"]
    assert steps == [f"ok     {what}" for what in expected]


# ---- session -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ, host, port",
    [
        ({}, "localhost", 4317),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "localhost", 4318),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "b:2"}, "b", 2),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://a.example"}, "a.example", 443),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4317"}, "::1", 4317),
    ],
)
def test_endpoint(environ, host, port):
    """The endpoint is what the standard variables say, the more special one first."""
    endpoint = session.otlp_endpoint(environ)
    assert (endpoint.host, endpoint.port) == (host, port)


@pytest.mark.parametrize("url", ["http://host:port", "http://", "http://host:99999", "http://[::1"])
def test_a_bad_endpoint_is_an_error_of_ours(url):
    """A value that is no address names its variable."""
    with pytest.raises(InvalidOptionError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        session.otlp_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": url})


def test_why_not_exported():
    """Export happens where something listens and nothing forbids it; else the reason is given."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        there = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}
        assert session.why_not_exported(there) is None
        assert "OTEL_SDK_DISABLED" in session.why_not_exported({**there, "OTEL_SDK_DISABLED": "True"})
        assert "OTEL_TRACES_EXPORTER" in session.why_not_exported({**there, "OTEL_TRACES_EXPORTER": "none"})
    assert NOBODY in session.why_not_exported({"OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY})
    assert session.why_not_exported({"OTEL_TRACES_EXPORTER": "console"}) is None


def test_check_writable_leaves_things_as_they_were(tmp_path):
    """A file that could be written is not made, one that is there keeps its content."""
    session.check_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_text("content")
    session.check_writable(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "content"
    with pytest.raises(InvalidOptionError, match="--trace"):
        session.check_writable(tmp_path)
