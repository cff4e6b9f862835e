"""design/otel-model.md §3: the OTEL_* variables, unreachable ends, exits; each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from tests.acceptance_otel.acc_otel_support import Ear, check_account, last_json, pairs, run
from tests.backends import ROOT, eventually, free_ports

PROGRAM = """
    import json, time
    import otel_timespan as ts
    began = time.monotonic()
    ctx = ts.eager_context()
    ctx.log_sink = log = ts.OTelLog()
    parts = [ts.spawn(pow, i, 2) for i in range(100)]
    print("RESULT", ts.fetch(ts.spawn(lambda *a: sum(a), *parts)), flush=True)
"""
IMPATIENT = PROGRAM.replace("OTelLog()", "OTelLog(exit_timeout_s=1)")
"""The same where nobody takes its spans: it does not wait the usual five seconds for that at its end."""
EXPECTED = "RESULT 328350"


def test_3_sdk_disabled(ear: Ear) -> None:
    """OTEL_SDK_DISABLED: same result, nothing sent, nothing said, stats and flush work."""
    done = run(PROGRAM + """
    print(json.dumps([log.flush(), log.stats()]))
    log.close()
    """, {**ear.env(), "OTEL_SDK_DISABLED": "true"})  # fmt: skip
    assert EXPECTED in done.stdout
    assert done.stderr == ""
    assert ear.requests == []
    flushed, stats = last_json(done)
    assert flushed is True
    assert stats["exported"] == 0


def test_3_traces_exporter_none_metrics_go_on(ear: Ear) -> None:
    """OTEL_TRACES_EXPORTER=none: no spans leave, metrics do."""
    done = run(PROGRAM, {**ear.env(), "OTEL_TRACES_EXPORTER": "none"})
    assert EXPECTED in done.stdout
    assert done.stderr == ""
    assert ear.spans() == []
    points = ear.metrics()["timespan.task.count"].sum.data_points
    assert sum(p.as_int for p in points) == 101


def test_3_metrics_exporter_none_traces_go_on(ear: Ear) -> None:
    """OTEL_METRICS_EXPORTER=none: no metrics leave, spans do."""
    done = run(PROGRAM, {**ear.env(), "OTEL_METRICS_EXPORTER": "none"})
    assert done.stderr == ""
    assert len([s for s in ear.spans() if s.name == "pow"]) == 100
    assert ear.metrics() == {}


def test_3_console_exporter(ear: Ear) -> None:
    """OTEL_TRACES_EXPORTER=console prints spans and sends none."""
    done = run(PROGRAM, {**ear.env(), "OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"})
    assert EXPECTED in done.stdout
    assert done.stdout.count('"name": "pow"') == 100
    assert ear.requests == []


def test_3_exporter_lists(ear: Ear) -> None:
    """OTEL_TRACES_EXPORTER=console,otlp does both."""
    done = run(PROGRAM, {**ear.env(), "OTEL_TRACES_EXPORTER": "console,otlp"})
    assert done.stdout.count('"name": "pow"') == 100
    assert len([s for s in ear.spans() if s.name == "pow"]) == 100


def test_3_short_program_sends_everything_at_exit(ear: Ear) -> None:
    """No flush, no close: interpreter exit sends all spans and the final metrics, whatever the interval."""
    done = run(PROGRAM, {**ear.env(), "OTEL_METRIC_EXPORT_INTERVAL": "3600000"})
    assert done.stderr == ""
    spans = ear.spans()
    assert len({s.span_id for s in spans}) == len(spans)
    assert len([s for s in spans if s.name == "dag"]) == 1
    assert len(spans) == 1 + 101 * 3
    points = ear.metrics()["timespan.task.count"].sum.data_points
    assert sum(p.as_int for p in points) == 101


FLUSHED = PROGRAM + "    assert log.flush(60)\n"
"""The end of a program waits but a moment for a receiver that never answered; this one has its answers then."""
HISTOGRAMS = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"


@pytest.mark.parametrize("value", ["base2_exponential_bucket_histogram", " Base2_Exponential_Bucket_Histogram "])
def test_3_exponential_histograms(ear: Ear, value: str) -> None:
    """The standard variable makes histograms exponential, with as many values as tasks and their exemplars."""
    done = run(FLUSHED, {**ear.env(), HISTOGRAMS: value})
    assert done.stderr == ""
    for name in ("timespan.task.duration", "timespan.task.run"):
        points = {p.count: p for p in ear.metrics()[name].exponential_histogram.data_points}
        assert points.keys() == {1, 100}  # of two functions
        for count, point in points.items():
            assert sum(point.positive.bucket_counts) + point.zero_count == count
            assert point.exemplars and point.start_time_unix_nano < point.time_unix_nano


@pytest.mark.parametrize(
    ("variable", "value", "warnings"),
    [(HISTOGRAMS, "junk", 1), (HISTOGRAMS, "", 0), ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "junk", 1)],
)
def test_3_shapes_of_metrics_that_nobody_knows(ear: Ear, variable: str, value: str, warnings: int) -> None:
    """One warning that names the variable, and metrics as by default."""
    done = run(FLUSHED, {**ear.env(), variable: value})
    assert done.stderr.count(variable) == len(done.stderr.splitlines()) == warnings
    durations = ear.metrics()["timespan.task.duration"].histogram
    assert sum(point.count for point in durations.data_points) == 101 and durations.aggregation_temporality == 2


def test_3_resource_and_scope(ear: Ear) -> None:
    """Service name, resource attributes and scope are those of the variables; the instance differs per process."""
    extra = {"OTEL_SERVICE_NAME": "bakery", "OTEL_RESOURCE_ATTRIBUTES": "team=blue,deployment.environment.name=x"}
    env = {**ear.env(), **extra}
    run(PROGRAM, env)
    run(PROGRAM, env)
    found = ear.resource_spans()
    resources = [pairs(r.resource.attributes) for r in found]
    assert {r["service.name"] for r in resources} == {"bakery"}
    assert {r["team"] for r in resources} == {"blue"}
    assert len({r["service.instance.id"] for r in resources}) == 2
    assert all(r["telemetry.sdk.language"] == "python" and r["process.pid"] for r in resources)
    scopes = {(s.scope.name, s.schema_url) for r in found for s in r.scope_spans}
    ((name, schema),) = scopes
    assert name == "otel_timespan"
    assert schema.startswith("https://")


def test_3_default_service_name(ear: Ear) -> None:
    """Unless named, the service is called like the program."""
    run(PROGRAM, ear.env())
    assert {pairs(r.resource.attributes)["service.name"] for r in ear.resource_spans()} == {"python"}


def test_3_headers_and_signal_endpoints(ear: Ear) -> None:
    """Signal-specific variables win over the general ones."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{ear.endpoint}/v1/traces", "OTEL_METRICS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }  # fmt: skip
    done = run(PROGRAM, env)
    assert done.stderr == ""
    assert len([s for s in ear.spans() if s.name == "pow"]) == 100


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://host:port"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no-equals-sign"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/does/not/exist.pem"),
        ("OTEL_TRACES_EXPORTER", "zipkin-by-post"),
        ("OTEL_METRICS_EXPORTER", "abacus"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "many"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-3"),
    ],
)
def test_3_wrong_variables_are_errors_of_ours(variable: str, value: str) -> None:
    """A value that can't work is a clear error that names the variable, when the log is made, not later."""
    done = run(
        """
        import otel_timespan as ts
        try:
            ts.OTelLog()
        except ts.TimespanError as error:
            print("OURS", type(error).__name__, error)
        else:
            print("NOTHING SAID")
        """,
        {variable: value},
        code=None,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.startswith("OURS InvalidOptionError"), done.stdout + done.stderr
    assert variable in done.stdout


@pytest.mark.parametrize("arg", ["7", "x"])
def test_3_wrong_sampler_argument(arg: str) -> None:
    """OTEL_TRACES_SAMPLER_ARG out of range or no number is an error that names it."""
    done = run(
        """
        import otel_timespan as ts
        try:
            ts.OTelLog()
        except ts.TimespanError as error:
            print("OURS", error)
        """,
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": arg},
    )
    assert "OURS" in done.stdout
    assert "OTEL_TRACES_SAMPLER_ARG" in done.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_3_unreachable_endpoint(protocol: str) -> None:
    """Nobody listens: the result is right, one warning, and the program ends soon."""
    (port,) = free_ports(1)
    began = time.monotonic()
    done = run(
        IMPATIENT,
        {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
        timeout=30,
    )
    assert EXPECTED in done.stdout
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    # One warning a signal, and the count of what was lost.
    assert 1 <= len(lines) <= 3, done.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("status", [503, 400])
def test_3_refusing_collector(ear: Ear, status: int) -> None:
    """A collector that always refuses (for now, or for good): result right, account right, end soon."""
    ear.status = status
    done = run(IMPATIENT + """
    log.close()
    print(json.dumps(log.stats()))
    """, ear.env(), timeout=30)  # fmt: skip
    assert EXPECTED in done.stdout
    stats = last_json(done)
    assert stats["exported"] == 0
    check_account(stats)
    assert stats["recorded"] == 1 + 101 * 3
    assert "Traceback" not in done.stderr


def test_3_collector_that_accepts_and_never_answers() -> None:
    """A port that swallows everything: the program ends within its exit timeout, not the exporter's."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        for protocol in ("http/protobuf", "grpc"):
            done = run(
                IMPATIENT,
                {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
                    "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                },
                timeout=30,
            )
            assert EXPECTED in done.stdout


def test_3_collector_that_comes_back(ear: Ear) -> None:
    """A collector that answers 503 for a while costs no span within the bound."""
    ear.status = 503
    program = (
        PROGRAM
        + """
    import sys
    sys.stdin.readline()
    print(json.dumps([log.flush(40), log.stats()]))
    """
    )
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}, **ear.env(), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=env, cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline().startswith("RESULT")
    ear.status = 200
    out, err = process.communicate("go\n", timeout=60)
    flushed, stats = json.loads(out.splitlines()[-1])
    assert flushed, err
    assert stats["exported"] == stats["recorded"] == 1 + 101 * 3
    assert len({s.span_id for s in ear.spans()}) == 1 + 101 * 3


def test_3_a_configured_global_provider_is_used(ear: Ear) -> None:
    """Where the program set its own global provider, spans go there and nowhere else, and it stays the global one."""
    done = run(
        """
        import otel_timespan as ts
        from opentelemetry import trace, metrics
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        ctx = ts.eager_context()
        ctx.log_sink = log = ts.OTelLog()            # before: it resolves at the first event
        kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(kept))
        trace.set_tracer_provider(provider)
        ts.fetch(ts.spawn(len, [1]))
        log.flush()
        assert trace.get_tracer_provider() is provider
        print(sorted(s.name for s in kept.get_finished_spans()))
        """,
        {**ear.env(), "OTEL_METRICS_EXPORTER": "none"},
    )
    assert done.stdout.strip() == "['compute', 'dag', 'len', 'queue']"
    assert ear.spans() == []


def test_3_our_provider_becomes_the_global_one(ear: Ear) -> None:
    """The user's spans made with the API alone reach the same end, nested under ours."""
    run(
        """
        import otel_timespan as ts
        from opentelemetry import trace
        ctx = ts.eager_context()
        ctx.log_sink = ts.OTelLog()
        def body():
            with trace.get_tracer("user").start_as_current_span("mine"):
                return 1
        ts.fetch(ts.spawn(body))
        """,
        ear.env(),
    )
    spans = {s.name: s for s in ear.spans()}
    assert spans["mine"].parent_span_id == spans["compute"].span_id
    assert spans["mine"].trace_id == spans["compute"].trace_id


def test_3_first_user_tracer_before_the_log(ear: Ear) -> None:
    """A tracer taken from the API before the log exists works as soon as the log has set up its provider."""
    run(
        """
        from opentelemetry import trace
        tracer = trace.get_tracer("user")
        import otel_timespan as ts
        ts.eager_context().log_sink = ts.OTelLog()
        def body():
            with tracer.start_as_current_span("mine"):
                return 1
        ts.fetch(ts.spawn(body))
        """,
        ear.env(),
    )
    assert "mine" in [s.name for s in ear.spans()]


def test_3_setup_explicitly(ear: Ear) -> None:
    """otel.setup with explicit values; a second call, and a wrong value, are errors of ours."""
    done = run(
        f"""
        import otel_timespan as ts
        from otel_timespan import otel
        for wrong in (dict(protocol="x"), dict(endpoint="nonsense"), dict(on_full="explode"), dict(max_bytes=-1),
                      dict(timeout_s=0), dict(metric_interval_s=-1), dict(service_name=3), dict(headers="a=b")):
            try:
                otel.setup(**wrong)
            except ts.TimespanError as error:
                if next(iter(wrong)) not in str(error):
                    print("UNCLEAR", wrong, error)
            else:
                raise SystemExit(f"accepted {{wrong}}")
        otel.setup(service_name="explicit", resource={{"a": "b"}}, endpoint="{ear.endpoint}", protocol="http/protobuf")
        try:
            otel.setup()
        except ts.TimespanError as error:
            print("second", type(error).__name__)
        ts.eager_context().log_sink = ts.OTelLog()
        ts.fetch(ts.spawn(len, [1]))
        """
    )
    assert "second ConcurrencyViolationError" in done.stdout
    assert "UNCLEAR" not in done.stdout, done.stdout
    (resource,) = {r.resource.SerializeToString() for r in ear.resource_spans()}
    assert b"explicit" in resource


@pytest.mark.parametrize(
    "options",
    [
        {"on_full": "explode"}, {"max_bytes": 0}, {"max_bytes": "big"}, {"block_timeout_s": -1},
        {"exit_timeout_s": "x"}, {"root_quiet_s": -0.1}, {"redact": 3}, {"consumers": 7},
        {"tracer_provider": object()}, {"span_exporter": object()}, {"meter_provider": object()},
        {"metrics": "yes"}, {"clock": 3},
    ],
    ids=str,
)  # fmt: skip
def test_3_wrong_options_are_errors_of_ours(options: dict[str, Any]) -> None:
    """A wrong option is an error at once that names it."""
    import otel_timespan as ts

    with pytest.raises(ts.TimespanError, match=next(iter(options))):
        ts.OTelLog(**options)


def test_3_sigterm_flushes(ear: Ear) -> None:
    """SIGTERM in the middle: what is there is sent, running tasks as abandoned, and the process dies of SIGTERM."""
    program = """
        import time
        import otel_timespan as ts
        ts.eager_context().log_sink = ts.OTelLog()
        ts.fetch(ts.spawn(len, [1]))
        def body():
            print("RUNNING", flush=True)
            time.sleep(300)
        ts.spawn(body)
        time.sleep(300)
    """
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}, **ear.env(), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline().strip() == "RUNNING"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    spans = {s.name: s for s in ear.spans()}
    assert "len" in spans
    body = spans["body"]
    assert pairs(body.attributes)["timespan.task.state"] == "abandoned"
    assert body.status.code == 0
    assert "dag" in spans


def test_3_sigterm_handler_of_the_program_stays(ear: Ear) -> None:
    """A handler of the program is called as if we were not there."""
    program = """
        import signal, sys, time
        import otel_timespan as ts
        def mine(*_):
            print("MINE", flush=True)
            sys.exit(7)
        signal.signal(signal.SIGTERM, mine)
        ts.eager_context().log_sink = ts.OTelLog()
        ts.fetch(ts.spawn(len, [1]))
        print("READY", flush=True)
        time.sleep(300)
    """
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}, **ear.env(), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline().strip() == "READY"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert "MINE" in out
    assert process.returncode == 7
    assert "len" in [s.name for s in ear.spans()]


def test_3_exception_in_the_main_program_still_sends(ear: Ear) -> None:
    """A program that ends with a traceback, inside a dag, has all its spans, and its root says why."""
    done = run(
        """
        import otel_timespan as ts
        ts.eager_context().log_sink = ts.OTelLog()
        with ts.dag("doomed"):
            ts.fetch(ts.spawn(len, [1]))
            raise LookupError("the end")
        """,
        ear.env(),
        code=1,
    )
    assert "LookupError: the end" in done.stderr
    spans = {s.name: s for s in ear.spans()}
    assert spans["dag doomed"].status.code == 2
    assert "len" in spans


def test_3_fork_child(ear: Ear) -> None:
    """A forked child logs its own tasks, sends nothing of the parent's twice, and neither hangs."""
    done = run(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import otel_timespan as ts
        ts.eager_context().log_sink = log = ts.OTelLog()
        def parent_task(): return 1
        def child_task(): return os.getpid()
        def later_task(): return 2
        with ts.dag("parent"):
            ts.fetch(ts.spawn(parent_task))
        pid = os.fork()
        if pid == 0:
            with ts.dag("child"):
                assert ts.fetch(ts.spawn(child_task)) == os.getpid()
            ok = log.flush(20)
            os._exit(0 if ok else 3)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        ts.fetch(ts.spawn(later_task))
        print("DONE")
        """,
        ear.env(),
    )
    assert "DONE" in done.stdout
    names = [s.name for s in ear.spans()]
    for name in ("parent_task", "child_task", "later_task", "dag parent", "dag child"):
        assert names.count(name) == 1, name
    by_name = {}
    for r in ear.resource_spans():
        for scope in r.scope_spans:
            for s in scope.spans:
                by_name[s.name] = pairs(r.resource.attributes)
    assert by_name["child_task"]["service.instance.id"] != by_name["parent_task"]["service.instance.id"]
    assert by_name["child_task"]["process.pid"] != by_name["parent_task"]["process.pid"]


def test_3_child_forked_inside_a_run(ear: Ear) -> None:
    """A child forked while a dag is open and tasks run: it ends without sending the parent's spans."""
    done = run(
        """
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import threading
        import otel_timespan as ts
        ts.eager_context().log_sink = ts.OTelLog()
        gate = threading.Event()
        def body(): gate.wait(60)
        with ts.dag("outer"):
            t = ts.spawn(body)
            pid = os.fork()
            if pid == 0:
                import sys
                sys.exit(0)          # runs atexit in the child
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0, status
            gate.set()
            ts.wait(t)
        print("DONE")
        """,
        ear.env(),
    )
    assert "DONE" in done.stdout
    spans = ear.spans()
    assert len({s.span_id for s in spans}) == len(spans)
    (root,) = [s for s in spans if s.name == "dag outer"]
    assert root.status.code == 0


def test_3_span_limits_from_variables(ear: Ear) -> None:
    """OTEL_SPAN_LINK_COUNT_LIMIT and the attribute length limit hold on the wire of our own set-up."""
    run(
        """
        import otel_timespan as ts
        from opentelemetry import trace
        ts.eager_context().log_sink = ts.OTelLog()
        ups = [ts.spawn(int, i) for i in range(5)]
        ts.waitall(ups)
        def body(*a):
            trace.get_current_span().set_attribute("long", "y" * 500)
        ts.wait(ts.spawn(body, *ups))
        """,
        {**ear.env(), "OTEL_SPAN_LINK_COUNT_LIMIT": "2", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100"},
    )
    (task,) = [s for s in ear.spans() if s.name == "body"]
    assert len(task.links) == 2
    assert task.dropped_links_count == 3
    longs = [pairs(s.attributes)["long"] for s in ear.spans() if s.name == "compute" and "long" in pairs(s.attributes)]
    assert longs == ["y" * 100]


def test_3_sampler_from_variables(ear: Ear) -> None:
    """OTEL_TRACES_SAMPLER=always_off sends no span and exact metrics."""
    run(PROGRAM, {**ear.env(), "OTEL_TRACES_SAMPLER": "always_off"})
    assert ear.spans() == []
    assert sum(p.as_int for p in ear.metrics()["timespan.task.count"].sum.data_points) == 101


def test_3_metrics_are_sent_while_busy(ear: Ear) -> None:
    """Without an interval in the environment, metrics come every second while tasks run, not only at the end."""
    program = """
        import sys, threading
        import otel_timespan as ts
        ts.eager_context().log_sink = ts.OTelLog()
        gate = threading.Event()
        def body(): gate.wait(120)
        t = ts.spawn(body)
        print("RUNNING", flush=True)
        sys.stdin.readline()
        gate.set()
        ts.wait(t)
    """
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}, **ear.env(), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=env, cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline().strip() == "RUNNING"

    def running() -> bool:
        active = ear.metrics().get("timespan.task.active")
        return active is not None and any(p.as_int == 1 for p in active.sum.data_points)

    assert eventually(running, 30)
    process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    assert all(p.as_int == 0 for p in ear.metrics()["timespan.task.active"].sum.data_points)
