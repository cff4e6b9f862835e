"""What forked children and processes of multiprocessing do: nothing hangs, is lost, or touches what is the parent's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import forks as soak
from tests.backends import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A program of its own, which ends well within a minute."""
    whole = {**{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], env=whole | (env or {}), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def receiver() -> Iterator[soak.Receiver]:
    """A receiver of spans in this process."""
    made = soak.Receiver()
    yield made
    made.close()


def spilling(folder: Path) -> dict[str, str]:
    """Variables with which nearly everything goes to files below a folder."""
    return {"OTEL_TIMESPAN_SPILL": "on", "OTEL_TIMESPAN_SPILL_MEMORY": "10kB", "TMPDIR": str(folder)}


def test_children_of_a_busy_program_lose_nothing() -> None:
    """20 forks under load (`python -m bench.forks` does 200): none hangs or crashes, and all spans arrive."""
    outcome = soak.run(20)
    assert outcome.is_fine, f"{outcome._replace(said='')}\n{outcome.said}"


# ---- multiprocessing ---------------------------------------------------------------------------------------

WORK = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import otel_timespan as ts

def child(i): return i

def new_log():
    # On a machine that gives nobody a turn a receiver that has not answered yet is given up too early.
    ts.eager_context().log_sink = log = ts.OTelLog(metrics=False, exit_timeout_s=60)
    ts.fetch(ts.spawn(abs, -1))
    assert log.flush(60)

def work(n):
    if not isinstance(ts.eager_context().log_sink, ts.OTelLog):  # a child that was not forked makes its own
        new_log()
    return [ts.fetch(ts.spawn(child, i)) for i in range(10)]

if __name__ == "__main__":
    method, how = sys.argv[1:]
    new_log()
    context = multiprocessing.get_context(method)
    if how == "Process":
        processes = [context.Process(target=work, args=(i,)) for i in range(2)]
        [p.start() for p in processes]
        [p.join() for p in processes]
    elif how == "Pool":
        with context.Pool(2) as pool:
            pool.map(work, range(2), chunksize=1)
            pool.close()
            pool.join()
    else:
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            list(executor.map(work, range(2)))
"""


@pytest.mark.parametrize("how", ["Process", "Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_of_multiprocessing_deliver_their_spans(
    tmp_path: Path, receiver: soak.Receiver, method: str, how: str
) -> None:
    """A child that comes to the end of its work sends what it has, although `atexit` does not run there."""
    program = tmp_path / "program.py"
    program.write_text(WORK)
    run(str(program), method, how, env=receiver.variables)
    assert receiver.names["child"] == 20


def test_a_process_of_a_process_delivers_its_spans_too(receiver: soak.Receiver) -> None:
    """A grandchild is told of the end as a child is."""
    code = """if True:
        import multiprocessing
        import otel_timespan as ts
        def grandchild(i): return i
        def below():
            for i in range(10): ts.fetch(ts.spawn(grandchild, i))
        def child(depth):
            target, args = (child, (depth - 1,)) if depth else (below, ())
            one = multiprocessing.get_context("fork").Process(target=target, args=args)
            one.start(); one.join()
        ts.eager_context().log_sink = log = ts.OTelLog(metrics=False, exit_timeout_s=60)
        ts.fetch(ts.spawn(abs, -1))
        assert log.flush(60)  # it has answered: see above
        child(1)
    """
    run("-c", code, env=receiver.variables)
    assert receiver.names["grandchild"] == 10


def test_what_a_child_still_runs_is_done_before_its_log_is_closed(receiver: soak.Receiver) -> None:
    """An executor's calls are waited for first, as at the end of any program, and then the log is closed."""
    code = """if True:
        import multiprocessing, time
        import otel_timespan as ts
        def late(i): time.sleep(0.05); return i
        def work():
            executor = ts.Executor(2)
            for i in range(6): executor.submit(late, i)
            kept.append(executor)
        kept = []
        ts.eager_context().log_sink = log = ts.OTelLog(metrics=False, exit_timeout_s=60)
        ts.fetch(ts.spawn(abs, -1))
        assert log.flush(60)  # it has answered: see above
        one = multiprocessing.get_context("fork").Process(target=work)
        one.start(); one.join()
    """
    run("-c", code, env=receiver.variables)
    assert receiver.names["late"] == 6


def test_a_process_of_multiprocessing_finishes_its_own_files(tmp_path: Path) -> None:
    """Its `IOLog` has its last line, and its folder of spilled values is gone."""
    path = tmp_path / "child.jsonl"
    code = f"""if True:
        import multiprocessing
        import otel_timespan as ts
        from otel_timespan.timespans import IOLog, read_events
        def work():
            ts.eager_context().log_sink = IOLog({str(path)!r})
            kept.extend(ts.spawn(bytes, 5000) for i in range(10))
            for one in kept: ts.fetch(one)
        kept = []
        one = multiprocessing.get_context("fork").Process(target=work)
        one.start(); one.join()
        assert one.exitcode == 0 and read_events({str(path)!r})
    """
    run("-c", code, env=spilling(tmp_path))
    assert [one for one in tmp_path.iterdir() if one.is_dir()] == []


# ---- what is the parent's ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [("path", "log.jsonl"), ("path", "log.jsonl.gz"), ("file", "log.jsonl"), ("plain", "log.jsonl")]
)
def test_a_child_leaves_its_parents_file_alone(tmp_path: Path, kind: str, name: str) -> None:
    """Events, flushes and the end of a child change nothing of a log in its parent's file; the loss is told."""
    path = str(tmp_path / name)
    done = run("-c", f"""if True:
        import os, sys
        import otel_timespan as ts
        from otel_timespan.timespans import IOLog, TeeLog, read_events
        file = open({path!r}, "w") if {kind != "path"} else None
        log = file if {kind == "plain"} else IOLog(file or {path!r})
        ts.eager_context().log_sink = TeeLog(log)
        def some(): [ts.fetch(ts.spawn(abs, i)) for i in range(50)]
        for k in range(4):
            some()
            child = os.fork()
            if child == 0:
                some()
                if log is not file:
                    log.flush()
                    assert log.written == 0 and log.lost > 50, (log.written, log.lost)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
        some()
        ts.eager_context().shutdown()
        file.flush() if log is file else log.close()
        events = read_events({path!r}, partial=log is file)
        assert log is file or len(events) == log.written
        assert sum(e.category == "compute" and e.phase == "finish" for e in events) == 250
    """)  # fmt: skip
    assert "parent process" in done.stderr


def test_a_child_reads_what_its_parent_spilled_and_deletes_none_of_it(tmp_path: Path) -> None:
    """Handles of the parent work in a child, whose own values go to a folder of its own."""
    code = """if True:
        import os, sys
        import otel_timespan as ts
        def block(i): return bytes([i]) * 5000
        handles = [ts.spawn(block, i) for i in range(10)]
        assert [ts.fetch(h)[0] for h in handles] == list(range(10))
        child = os.fork()
        if child == 0:
            assert [ts.fetch(h)[0] for h in handles] == list(range(10))
            mine = [ts.spawn(block, i) for i in range(10)]
            assert [ts.fetch(h)[0] for h in mine] == list(range(10))
            del handles
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert [ts.fetch(h)[0] for h in handles] == list(range(10))
    """
    run("-c", code, env=spilling(tmp_path))
    assert [one for one in tmp_path.iterdir() if one.is_dir()] == []


def test_a_child_counts_from_zero() -> None:
    """Metrics of a child are of what happened in it: the parent tells its own."""
    run("-c", """if True:
        import os
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        import otel_timespan as ts
        reader = InMemoryMetricReader()
        log = ts.OTelLog(span_exporter=InMemorySpanExporter(), meter_provider=MeterProvider([reader]))
        ts.eager_context().log_sink = log
        def some(n): [ts.fetch(ts.spawn(abs, i)) for i in range(n)]
        def counts():
            log.flush()
            points = {m.name: m.data.data_points for r in reader.get_metrics_data().resource_metrics
                      for s in r.scope_metrics for m in s.metrics}
            tasks = sum(p.value for p in points["timespan.task.count"])
            return tasks, sum(p.count for p in points["timespan.task.duration"])
        some(30)
        assert counts() == (30, 30), counts()
        child = os.fork()
        if child == 0:
            some(7)
            found = counts()
            os._exit(0 if found == (7, 7) else print(found) or 1)
        assert os.waitpid(child, 0)[1] == 0
        some(5)
        assert counts() == (35, 35), counts()
    """)  # fmt: skip


# ---- bodies, modules, locks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status"), [("return 1", 0), ("sys.exit(3)", 3), ("raise ValueError('in a child')", 1), ("os._exit(4)", 4)]
)
def test_a_body_that_forks_ends_the_child_as_a_program(end: str, status: int) -> None:
    """It may use everything there; when it ends so does the child, which runs no other task of its parent's."""
    done = run("-c", f"""if True:
        import os, sys, threading
        import otel_timespan as ts
        parent, begun, gate = os.getpid(), threading.Event(), threading.Event()
        def body():
            begun.set()
            gate.wait()
            child = os.fork()
            if child == 0:
                assert ts.fetch(ts.spawn(abs, -3)) == 3
                {end}
            return child
        def other():
            assert os.getpid() == parent
            return os.getpid()
        with ts.Context(threads=1):
            forking = ts.spawn(body)
            begun.wait()
            others = [ts.spawn(other) for _ in range(5)]
            gate.set()
            child = ts.fetch(forking, timeout=30)
            assert [ts.fetch(one, timeout=30) for one in others] == [parent] * 5
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == {status}, status
    """)  # fmt: skip
    assert ("ValueError: in a child" in done.stderr) == (status == 1)


def test_a_fork_waits_for_who_loads_a_module() -> None:
    """Python's lock for a module that a thread loads would stay taken in the child."""
    done = run("-c", """if True:
        import os, threading
        from otel_timespan import forks
        inside, leave, left = threading.Event(), threading.Event(), []
        def load():
            with forks.held_off:
                inside.set()
                leave.wait()
                left.append(True)
        def fork():
            child = os.fork()
            if child == 0:
                with forks.held_off:
                    os._exit(0 if left else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        threading.Thread(target=load).start()
        inside.wait()
        forking = threading.Thread(target=fork)
        forking.start()
        leave.set()
        forking.join()
    """)  # fmt: skip
    assert done.stdout == "0\n"


def test_locks_that_others_hold_are_free_in_a_child() -> None:
    """One that the forking thread holds itself stays its own."""
    run("-c", """if True:
        import os, threading
        from otel_timespan import forks
        plain, theirs, own, bell = forks.lock(), forks.rlock(), forks.rlock(), forks.condition()
        held = threading.Event()
        def hold():
            with plain, theirs, bell:
                held.set()
                threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        with own:
            child = os.fork()
            if child == 0:
                free = [one.acquire(blocking=False) for one in (plain, theirs, bell)]
                os._exit(0 if free == [True] * 3 and own._is_owned() else 1)
        assert os.waitpid(child, 0)[1] == 0
    """)  # fmt: skip
