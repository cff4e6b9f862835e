"""Forks of a busy program: `python -m bench.forks [number]`. How many children hang, crash, or lose spans.

A program with `OTelLog` and metrics, an `IOLog`, spilling, limits, an `Executor` and coroutines forks in the middle of
its work. Each child uses all of that from its first line, and ends as programs do: by `sys.exit`, as a process of
`multiprocessing`, or as one forked from inside of a task. A receiver counts the spans of all of them.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gzip
import http.server
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Outcome", "Receiver", "run"]

CHILD_S = 60.0
"""A child that takes longer hangs: it uses half a second of it."""

BESIDE = 4
"""Children that run at once: the machine has few cores."""


class Outcome(NamedTuple):
    """`statuses` of the children (-6: it hung), spans of tasks and what they should be, events of the parent's file."""

    forks: int
    statuses: dict[int, int]
    spans: dict[str, int]
    expected: dict[str, int]
    events_written: int
    events_read: int
    folders_left: int
    said: str

    @property
    def is_fine(self) -> bool:
        """Nothing hung, crashed or was lost."""
        well = self.statuses == {0: self.forks} and not self.folders_left
        return well and self.spans == self.expected and self.events_read == self.events_written > 0


def run(forks: int) -> Outcome:
    """Fork a busy program so often, in a process of its own."""
    receiver = Receiver()
    try:
        with tempfile.TemporaryDirectory() as folder:
            env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
            env |= {
                **receiver.variables,
                "OTEL_METRIC_EXPORT_INTERVAL": "20",  # a reader that is always at it is where forks used to hang
                "OTEL_TIMESPAN_SPILL": "on",
                "OTEL_TIMESPAN_SPILL_MEMORY": "10kB",
                "TMPDIR": folder,
                "PYTHONPATH": str(Path(__file__).parent.parent),
            }
            command = [sys.executable, "-m", "bench.forks", "--program", str(forks), folder]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60 + 10 * forks)
            if done.returncode:
                raise RuntimeError(f"the program ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            told = json.loads(done.stdout.splitlines()[-1])
            left = len([path for path in Path(folder).iterdir() if path.is_dir()])
        statuses = {int(status): count for status, count in told.pop("statuses").items()}
        spans = {name: receiver.names[name] for name in told["expected"]}
        return Outcome(forks, statuses, spans=spans, folders_left=left, said=done.stderr, **told)
    finally:
        receiver.close()


class Receiver:
    """An OTLP receiver in this process, which is never forked: counts spans by name."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        names = self.names = Counter[str]()
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path.endswith("/v1/traces"):
                    request = ExportTraceServiceRequest.FromString(body)
                    with lock:
                        for part in (part for group in request.resource_spans for part in group.scope_spans):
                            names.update(span.name for span in part.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# ---- the program ----------------------------------------------------------------------------------------------


def parent_task(i: int) -> bytes:
    """Of the parent: some bytes, which are spilled."""
    return bytes(2000 + i % 7)


def child_task(i: int) -> bytes:
    """The same in a child."""
    return bytes(2000 + i % 7)


async def child_coroutine(i: int) -> int:
    """A body on the event loop, in a child."""
    await asyncio.sleep(0)
    return i


async def parent_coroutine(i: int) -> int:
    """A body on the event loop."""
    await asyncio.sleep(0)
    return i


EACH = 8
"""Tasks of each kind that a child runs."""


def child_work() -> None:
    """What a child does from its first line on."""
    import otel_timespan as ts

    # A plain fork that knows its siblings would wait for them at its exit, and fail: they are not its children.
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    if os.environ.get("DBG"):
        import faulthandler

        faulthandler.dump_traceback_later(12, exit=False)
    limited = ts.spawn.opts(limit="db")
    for handle in [limited(child_task, i) for i in range(EACH)]:
        ts.fetch(handle, timeout=CHILD_S)
    for handle in [ts.spawn(child_coroutine, i) for i in range(EACH)]:
        ts.fetch(handle, timeout=CHILD_S)
    with ts.Executor(2) as executor:
        assert len(list(executor.map(child_task, range(EACH)))) == EACH


def parent_work(stop: threading.Event, counts: Counter[str]) -> None:
    """Keeps everything busy until it is stopped."""
    import otel_timespan as ts

    limited = ts.spawn.opts(limit="db")
    executor = ts.Executor(2)
    while not stop.is_set():
        handles = [limited(parent_task, i) for i in range(20)] + [ts.spawn(parent_task, i) for i in range(20)]
        coroutines = [ts.spawn(parent_coroutine, i) for i in range(10)]
        futures = [executor.submit(parent_task, i) for i in range(10)]
        for handle in [*handles, *coroutines]:
            ts.fetch(handle)
        for future in futures:
            future.result()
        counts.update(parent_task=50, parent_coroutine=10)
    executor.shutdown()


class Child:
    """One child, of the kind that its number says."""

    def __init__(self, k: int) -> None:
        import otel_timespan as ts

        self.began = time.monotonic()
        self.process: Any = None
        self.status: int | None = None
        """0 where it ended well, None while it runs."""
        if k % 3 == 0:
            self.pid = os.fork()
            if self.pid == 0:
                child_work()
                sys.exit(0)
            return
        self.process = multiprocessing.get_context("fork").Process(target=child_work)
        if k % 3 == 1:
            self.process.start()
        else:
            ts.fetch(ts.spawn(self.process.start))
        self.pid = self.process.pid

    def is_over(self) -> bool:
        """Whether it ended, now or earlier; one that hangs is killed."""
        if time.monotonic() - self.began > CHILD_S:
            os.kill(self.pid, signal.SIGABRT)  # faulthandler says where it was
        if self.process is not None:
            self.status = self.process.exitcode
        else:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status is not None


def program(forks: int, folder: str) -> None:
    """Forks in the middle of its work; prints what became of it as JSON."""
    import otel_timespan as ts
    from otel_timespan import dagger
    from otel_timespan.timespans import IOLog, TeeLog, read_events

    path = os.path.join(folder, "log.jsonl.gz")
    saved = IOLog(path)
    log = ts.OTelLog(detail="task", exit_timeout_s=30, block_timeout_s=30, max_spans=None)
    ts.eager_context().log_sink = TeeLog(log, saved)
    dagger.set_limit("db", 2)
    stop, counts = threading.Event(), Counter[str]()
    busy = threading.Thread(target=parent_work, args=(stop, counts))
    busy.start()
    running: list[Child] = []
    statuses = Counter[int]()
    for k in range(forks):
        running.append(Child(k))
        while len(running) >= BESIDE or (running and k == forks - 1):
            time.sleep(0.005)
            statuses.update(child.status for child in running if child.is_over())
            running = [child for child in running if child.status is None]
    stop.set()
    busy.join()
    log.flush(60)
    saved.close()
    each = forks * EACH
    expected = {"child_task": 2 * each, "child_coroutine": each, **counts}
    read = len(read_events(path))
    told = {"statuses": statuses, "expected": expected}
    print(json.dumps({**told, "events_written": saved.written, "events_read": read}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--program"]:
        faulthandler.enable()
        program(int(sys.argv[2]), sys.argv[3])
    else:
        outcome = run(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
        print(outcome.said, file=sys.stderr)
        print(outcome._replace(said=""))
        sys.exit(not outcome.is_fine)
