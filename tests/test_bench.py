"""The benchmarks: that they run, check their results and write what they say. Never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Future

import pytest

from bench import report
from bench.budgets import BUDGETS, Budget, judge
from bench.collector import receiving
from bench.peers import CountingPool, dask_get
from bench.run import ROOT, Run, Table
from bench.systems import SYSTEMS
from bench.workloads import WORKLOADS, inc


@pytest.fixture
def pool():
    """A thread pool with dependencies."""
    pool = CountingPool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_on_the_thread_pool(name, pool):
    """Each workload gives its expected result on the thread pool."""
    workload = WORKLOADS[name]
    plan = workload.prepare(workload.quick)
    assert workload.eager(plan, pool.spawn, Future.result) == workload.expected(plan)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_on_dask(name):
    """Each workload gives its expected result on Dask's threaded scheduler."""
    workload = WORKLOADS[name]
    plan = workload.prepare(workload.quick)
    assert workload.dask(plan)(dask_get(2)) == workload.expected(plan)


def test_a_long_chain_on_the_pool_does_not_recurse(pool):
    """The pool's dependency counter survives a chain far deeper than the recursion limit."""
    task = pool.spawn(inc, 0)
    for _ in range(20 * sys.getrecursionlimit()):
        task = pool.spawn(inc, task)
    assert task.result(timeout=120) == 20 * sys.getrecursionlimit() + 1


def test_a_failing_task_fails_its_dependents_on_the_pool(pool):
    """An exception reaches whoever waits for a dependent; nothing hangs."""
    task = pool.spawn(inc, pool.spawn(inc, pool.spawn(inc, "text")))
    with pytest.raises(TypeError):
        task.result(timeout=60)


def test_upstreams_of_the_layers_are_fixed_and_distinct():
    """W4's graph is the same each time, with three different upstreams a task."""
    edges = WORKLOADS["W4"].prepare(4)
    assert edges == WORKLOADS["W4"].prepare(4)
    assert {len(set(ups)) for layer in edges for ups in layer} == {3}


def test_budgets_judge():
    """A bound itself is met, a missing figure is not measured, and the rest is not met."""
    budget = Budget("a", "a", "ours", least=1.0, most=2.0)
    assert [budget.met(value) for value in (0.9, 1.0, 2.0, 2.1)] == [False, True, True, False]
    words = {verdict.budget.figure: verdict.word for verdict in judge({"W1.noop.vs_tpe": 2.9, "W2.noop.vs_tpe": 3.0})}
    assert (words["W1.noop.vs_tpe"], words["W2.noop.vs_tpe"], words["W3.noop.vs_tpe"]) == (
        "not met",
        "met",
        "not measured",
    )


def test_every_budget_has_a_bound_and_a_name_of_its_own():
    """No budget is empty, none is said twice."""
    assert all(budget.least is not None or budget.most is not None for budget in BUDGETS)
    assert len({budget.figure for budget in BUDGETS}) == len(BUDGETS)


def test_tables_are_aligned():
    """Every line of a table is as wide as its columns say."""
    text = report.render(Table("Title", ("a", "long name"), [("longer", "x"), ("y", "z")]))
    assert text.splitlines() == ["Title", "", "a       long name", "------  ---------", "longer  x", "y       z"]


def test_machine_names_nobody():
    """The facts about the machine hold no host name and no path."""
    import getpass
    import platform

    text = json.dumps(report.machine())
    assert platform.node() not in text or not platform.node()
    assert str(ROOT) not in text and f"/{getpass.getuser()}/" not in text


def test_the_counting_receiver_counts_distinct_spans():
    """Spans sent twice count once, and metrics are taken without complaint."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    for number in range(7):
        tracer.start_span(f"span {number}").end()
    with receiving() as receiver:
        exporter = OTLPSpanExporter(endpoint=receiver.endpoint, insecure=True)
        spans = memory.get_finished_spans()
        assert exporter.export(spans) is exporter.export(spans[:3]) is SpanExportResult.SUCCESS
        assert receiver.count() == 7
        exporter.shutdown()
    provider.shutdown()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The whole of the benchmarks on tiny graphs: (output, result file)."""
    results = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "bench", "--quick", "--name", "test", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((results / "test.json").read_text())


def test_quick_measures_every_workload_on_every_system(quick):
    """Each pair of workload and system has a positive figure; only the real collector may be missing."""
    _, content = quick
    for workload in WORKLOADS:
        for system in SYSTEMS:
            if system != "otel-collector":
                assert content["figures"][f"{workload}.{system}.us"] > 0


def test_quick_judges_every_budget(quick):
    """With all sections run no budget is left unmeasured, and the output says so line by line."""
    output, content = quick
    assert [entry["verdict"] for entry in content["budgets"] if entry["verdict"] not in ("met", "not met")] == []
    for budget in BUDGETS:
        assert budget.text in output


def test_quick_loses_no_span(quick):
    """Whatever the size: every span that was made arrived, once."""
    _, content = quick
    assert content["figures"]["arrival.W1.share"] == content["figures"]["arrival.W4.share"] == 1.0


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--workloads", "W9"], "none of W1"),
        (["--systems", "numpy"], "none of noop"),
        (["--rounds", "0"], "at least 1"),
        (["--name", "../x"], "without folders"),
    ],
)
def test_wrong_arguments_are_refused(arguments, complaint, capsys):
    """A wrong argument ends the command with an error that names what is allowed."""
    from bench.__main__ import main

    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_sample_that_fails_says_why():
    """The error of a sample's process is in the error of the run."""
    from bench.run import BenchError

    run = Run(say=lambda text: None)
    with pytest.raises(BenchError, match="no system is called 'nothing'"):
        run.sample("time", "W1", "nothing", 10)
